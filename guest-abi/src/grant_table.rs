// SPDX-License-Identifier: MIT OR Apache-2.0
//! Grants: pages that one domain lets another map or copy (`grant_table.h`).

use crate::{DomId, GrantRef};

numbers! {
    /// Operations of `grant_table_op` (`GNTTABOP_*`). The arguments are an array and its length.
    pub enum GrantOp: u64 {
        /// Map granted pages: [`GnttabMapGrantRef`].
        MapGrantRef = 0, "map_grant_ref";
        /// Unmap them: [`GnttabUnmapGrantRef`].
        UnmapGrantRef = 1, "unmap_grant_ref";
        /// Where the table's frames are: [`GnttabSetupTable`].
        SetupTable = 2, "setup_table";
        /// Print a table; for debugging.
        DumpTable = 3, "dump_table";
        /// Give pages away; not for domains that are translated.
        Transfer = 4, "transfer";
        /// Copy between granted or own pages: [`GnttabCopy`].
        Copy = 5, "copy";
        /// How many frames a table has: [`GnttabQuerySize`].
        QuerySize = 6, "query_size";
        /// Not for domains that are translated: [`GnttabUnmapAndReplace`].
        UnmapAndReplace = 7, "unmap_and_replace";
        /// Choose the entries' version; 1 on Arm: [`GnttabSetVersion`].
        SetVersion = 8, "set_version";
        /// Version 2 only: [`GnttabGetStatusFrames`].
        GetStatusFrames = 9, "get_status_frames";
        /// Which version a domain uses: [`GnttabGetVersion`].
        GetVersion = 10, "get_version";
        /// Exchange two entries.
        SwapGrantRef = 11, "swap_grant_ref";
        /// Clean or invalidate the cache of a granted page: [`GnttabCacheFlush`].
        CacheFlush = 12, "cache_flush";
    }

    /// How one operation of an array went (`GNTST_*`).
    pub enum GrantStatus: i16 {
        /// Done.
        Okay = 0, "okay";
        /// An error without a number of its own.
        GeneralError = -1, "general error";
        /// No such domain.
        BadDomain = -2, "bad domain";
        /// No such grant, or not for this use.
        BadGntref = -3, "bad grant reference";
        /// No such handle.
        BadHandle = -4, "bad handle";
        /// No page can be mapped at that address.
        BadVirtAddr = -5, "bad virtual address";
        /// Wrong device address at an unmap.
        BadDevAddr = -6, "bad device address";
        /// Out of space in the IOMMU.
        NoDeviceSpace = -7, "no device space";
        /// The grant does not allow it.
        PermissionDenied = -8, "permission denied";
        /// The page does not serve.
        BadPage = -9, "bad page";
        /// A copy would cross a page's border.
        BadCopyArg = -10, "bad copy argument";
        /// Page address too large.
        AddressTooBig = -11, "address too big";
        /// Not now; try again.
        Eagain = -12, "try again";
        /// Out of handles.
        NoSpace = -13, "no space";
    }
}

/// Bits of a grant entry's flags (`GTF_*`).
pub mod gtf {
    /// Type: not in use.
    pub const INVALID: u16 = 0;
    /// Type: the grantee may map and copy.
    pub const PERMIT_ACCESS: u16 = 1;
    /// Type: the grantee may hand over a page.
    pub const ACCEPT_TRANSFER: u16 = 2;
    /// Type: stands for another domain's grant; version 2.
    pub const TRANSITIVE: u16 = 3;
    /// The type.
    pub const TYPE_MASK: u16 = 3;
    /// The grantee may only read.
    pub const READONLY: u16 = 1 << 2;
    /// Set by the hypervisor: mapped for reading.
    pub const READING: u16 = 1 << 3;
    /// Set by the hypervisor: mapped for writing.
    pub const WRITING: u16 = 1 << 4;
    /// Cache attributes; not honoured on Arm.
    pub const PWT: u16 = 1 << 5;
    /// Cache attributes; not honoured on Arm.
    pub const PCD: u16 = 1 << 6;
    /// Cache attributes; not honoured on Arm.
    pub const PAT: u16 = 1 << 7;
    /// Part of a page; version 2.
    pub const SUB_PAGE: u16 = 1 << 8;
}

/// Flags of a mapping (`GNTMAP_*`).
pub mod gntmap {
    /// For a device's access.
    pub const DEVICE_MAP: u32 = 1 << 0;
    /// For the CPU's access.
    pub const HOST_MAP: u32 = 1 << 1;
    /// Only for reading.
    pub const READONLY: u32 = 1 << 2;
    /// For applications.
    pub const APPLICATION_MAP: u32 = 1 << 3;
    /// `host_addr` is a page-table entry's; not on Arm.
    pub const CONTAINS_PTE: u32 = 1 << 4;
}

/// Flags of a copy (`GNTCOPY_*`).
pub mod gntcopy {
    /// The source is a grant.
    pub const SOURCE_GREF: u16 = 1 << 0;
    /// The destination is a grant.
    pub const DEST_GREF: u16 = 1 << 1;
}

/// Operations of a cache flush (`GNTTAB_CACHE_*`).
pub mod cache {
    /// Write back.
    pub const CLEAN: u32 = 1 << 0;
    /// Throw away.
    pub const INVAL: u32 = 1 << 1;
    /// The page is named by a grant.
    pub const SOURCE_GREF: u32 = 1 << 31;
}

/// First entries, which the toolstack fills (`GNTTAB_NR_RESERVED_ENTRIES`).
pub const NR_RESERVED_ENTRIES: u32 = 8;
/// The console ring's entry (`GNTTAB_RESERVED_CONSOLE`).
pub const RESERVED_CONSOLE: GrantRef = GrantRef(0);
/// The xenstore ring's entry (`GNTTAB_RESERVED_XENSTORE`).
pub const RESERVED_XENSTORE: GrantRef = GrantRef(1);
/// Entries of version 1 in a frame.
pub const V1_ENTRIES_PER_FRAME: u32 = 512;
/// A mapping's handle that means none (`GRANT_HANDLE_INVALID` of guests).
pub const INVALID_HANDLE: u32 = u32::MAX;

abi! {
    /// An entry of the table.
    ["grant_entry_v1_t", 8, "grant_table.h"]
    pub struct GrantEntryV1 {
        /// [`gtf`].
        pub flags: u16,
        /// Who may use it.
        pub domid: DomId,
        /// The granted frame.
        pub frame: u32,
    }

    /// Map a granted page.
    ["gnttab_map_grant_ref", 32, "grant_table.h"]
    pub struct GnttabMapGrantRef {
        /// In: guest physical address where it goes.
        pub host_addr: u64,
        /// In: [`gntmap`].
        pub flags: u32,
        /// In: the grant.
        pub gref: GrantRef = "ref",
        /// In: the granter.
        pub dom: DomId,
        /// Out: [`GrantStatus`].
        pub status: i16,
        /// Out: what unmaps it.
        pub handle: u32,
        /// Out: the machine address.
        pub dev_bus_addr: u64,
    }

    /// Unmap a granted page.
    ["gnttab_unmap_grant_ref", 24, "grant_table.h"]
    pub struct GnttabUnmapGrantRef {
        /// In: where it was mapped, or 0.
        pub host_addr: u64,
        /// In: its device mapping, or 0.
        pub dev_bus_addr: u64,
        /// In: the mapping.
        pub handle: u32,
        /// Out: [`GrantStatus`].
        pub status: i16,
        /// Padding.
        pub _pad: u16 = "-",
    }

    /// Unmap and put another page there; not on Arm.
    ["gnttab_unmap_and_replace", 24, "grant_table.h"]
    pub struct GnttabUnmapAndReplace {
        /// In: where it was mapped.
        pub host_addr: u64,
        /// In: the page that takes its place.
        pub new_addr: u64,
        /// In: the mapping.
        pub handle: u32,
        /// Out: [`GrantStatus`].
        pub status: i16,
        /// Padding.
        pub _pad: u16 = "-",
    }

    /// Grow a table, and tell its frames.
    ["gnttab_setup_table", 24, "grant_table.h"]
    pub struct GnttabSetupTable {
        /// In: whose.
        pub dom: DomId,
        /// Padding.
        pub _pad0: u16 = "-",
        /// In: how many frames.
        pub nr_frames: u32,
        /// Out: [`GrantStatus`].
        pub status: i16,
        /// Padding.
        pub _pad1: [u16; 3] = "-",
        /// In: address of an array of `u64` for the frames' numbers.
        pub frame_list: u64,
    }

    /// One side of a copy.
    ["gnttab_copy_ptr", 16, "grant_table.h"]
    pub struct GnttabCopyPtr {
        /// A frame's number, or a grant in the low 32 bits.
        pub u: u64,
        /// Whose.
        pub domid: DomId,
        /// First byte in the page.
        pub offset: u16,
        /// Padding.
        pub _pad: u32 = "-",
    }

    /// Copy within two pages.
    ["gnttab_copy", 40, "grant_table.h"]
    pub struct GnttabCopy {
        /// In: from.
        pub source: GnttabCopyPtr,
        /// In: to.
        pub dest: GnttabCopyPtr,
        /// In: bytes.
        pub len: u16,
        /// In: [`gntcopy`].
        pub flags: u16,
        /// Out: [`GrantStatus`].
        pub status: i16,
        /// Padding.
        pub _pad: u16 = "-",
    }

    /// How many frames a table has.
    ["gnttab_query_size", 16, "grant_table.h"]
    pub struct GnttabQuerySize {
        /// In: whose.
        pub dom: DomId,
        /// Padding.
        pub _pad0: u16 = "-",
        /// Out: now.
        pub nr_frames: u32,
        /// Out: at most.
        pub max_nr_frames: u32,
        /// Out: [`GrantStatus`].
        pub status: i16,
        /// Padding.
        pub _pad1: u16 = "-",
    }

    /// Choose the entries' version.
    ["gnttab_set_version", 4, "grant_table.h"]
    pub struct GnttabSetVersion {
        /// In: the wanted, out: the version in use.
        pub version: u32,
    }

    /// Which version a domain uses.
    ["gnttab_get_version", 8, "grant_table.h"]
    pub struct GnttabGetVersion {
        /// In: whose.
        pub dom: DomId,
        /// Padding.
        pub pad: u16,
        /// Out: the version.
        pub version: u32,
    }

    /// Where version 2's status frames are.
    ["gnttab_get_status_frames", 16, "grant_table.h"]
    pub struct GnttabGetStatusFrames {
        /// In: how many.
        pub nr_frames: u32,
        /// In: whose.
        pub dom: DomId,
        /// Out: [`GrantStatus`].
        pub status: i16,
        /// In: address of an array of `u64`.
        pub frame_list: u64,
    }

    /// Clean or invalidate the cache of a granted page.
    ["gnttab_cache_flush", 16, "grant_table.h"]
    pub struct GnttabCacheFlush {
        /// In: machine address, or a grant in the low 32 bits.
        pub a: u64,
        /// In: first byte in the page.
        pub offset: u16,
        /// In: bytes.
        pub length: u16,
        /// In: [`cache`].
        pub op: u32,
    }
}

impl GnttabCopyPtr {
    /// A place in a page that `domid` granted; needs its bit of [`gntcopy`].
    #[must_use]
    pub const fn gref(domid: DomId, gref: GrantRef, offset: u16) -> Self {
        Self {
            u: gref.0 as u64,
            domid,
            offset,
            _pad: 0,
        }
    }

    /// A place in a page of the caller's own.
    #[must_use]
    pub const fn own(gfn: crate::Gfn, offset: u16) -> Self {
        Self {
            u: gfn.0,
            domid: DomId::SELF,
            offset,
            _pad: 0,
        }
    }

    /// The grant, when the flags say that it is one.
    #[must_use]
    pub const fn as_gref(&self) -> GrantRef {
        GrantRef(self.u as u32)
    }
}

impl GrantStatus {
    /// Reads a status field.
    ///
    /// # Errors
    /// Every status but [`GrantStatus::Okay`]; an unknown number is a general error.
    pub const fn check(status: i16) -> Result<(), Self> {
        match Self::from_number(status) {
            Some(Self::Okay) => Ok(()),
            Some(e) => Err(e),
            None => Err(Self::GeneralError),
        }
    }
}

impl core::fmt::Display for GrantStatus {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

impl core::error::Error for GrantStatus {}
