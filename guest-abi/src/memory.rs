// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory of a domain (`memory.h`).

use crate::{DomId, Gfn};

numbers! {
    /// Operations of `memory_op` (`XENMEM_*`).
    ///
    /// A call that was cut short continues with its progress in the operation's bits from
    /// [`MEMOP_EXTENT_SHIFT`] on.
    pub enum MemoryOp: u64 {
        /// More memory, anywhere: [`MemoryReservation`].
        IncreaseReservation = 0, "increase_reservation";
        /// Give pages back: [`MemoryReservation`].
        DecreaseReservation = 1, "decrease_reservation";
        /// The machine's highest page.
        MaximumRamPage = 2, "maximum_ram_page";
        /// Pages that a domain has.
        CurrentReservation = 3, "current_reservation";
        /// Pages that a domain may have.
        MaximumReservation = 4, "maximum_reservation";
        /// x86 only.
        MachphysMfnList = 5, "machphys_mfn_list";
        /// Memory at given frames: [`MemoryReservation`].
        PopulatePhysmap = 6, "populate_physmap";
        /// Map a page of the hypervisor's: [`AddToPhysmap`].
        AddToPhysmap = 7, "add_to_physmap";
        /// The memory map: [`MemoryMap`]; not on Arm.
        MemoryMap = 9, "memory_map";
        /// The machine's memory map; not on Arm.
        MachineMemoryMap = 10, "machine_memory_map";
        /// Give pages for others: [`MemoryExchange`].
        Exchange = 11, "exchange";
        /// x86 only.
        MachphysMapping = 12, "machphys_mapping";
        /// Not on Arm.
        SetMemoryMap = 13, "set_memory_map";
        /// The highest frame of a domain.
        MaximumGpfn = 14, "maximum_gpfn";
        /// Take a frame out of the map: [`RemoveFromPhysmap`].
        RemoveFromPhysmap = 15, "remove_from_physmap";
        /// Not on Arm.
        SetPodTarget = 16, "set_pod_target";
        /// Not on Arm.
        GetPodTarget = 17, "get_pod_target";
        /// Pages saved by sharing; 0 on Arm.
        GetSharingFreedPages = 18, "get_sharing_freed_pages";
        /// Pages shared; 0 on Arm.
        GetSharingSharedPages = 19, "get_sharing_shared_pages";
        /// Not on Arm.
        PagingOp = 20, "paging_op";
        /// Page permissions for introspection.
        AccessOp = 21, "access_op";
        /// Not on Arm.
        SharingOp = 22, "sharing_op";
        /// Map several pages of another domain's: [`AddToPhysmapBatch`].
        AddToPhysmapBatch = 23, "add_to_physmap_batch";
        /// Reserve pages for a domain to come.
        ClaimPages = 24, "claim_pages";
        /// x86 only.
        MachphysCompatMfnList = 25, "machphys_compat_mfn_list";
        /// Virtual NUMA.
        GetVnumainfo = 26, "get_vnumainfo";
        /// Reserved device memory.
        ReservedDeviceMemoryMap = 27, "reserved_device_memory_map";
        /// Map a domain's grant table, say: [`MemAcquireResource`].
        AcquireResource = 28, "acquire_resource";
    }

    /// What is mapped by [`AddToPhysmap`] (`XENMAPSPACE_*`).
    pub enum MapSpace: u32 {
        /// The shared-info page.
        SharedInfo = 0, "shared_info";
        /// A frame of the grant table, by its index.
        GrantTable = 1, "grant_table";
        /// A frame of one's own.
        Gmfn = 2, "gmfn";
        /// Frames of one's own.
        GmfnRange = 3, "gmfn_range";
        /// A frame of another domain's; batch only.
        GmfnForeign = 4, "gmfn_foreign";
        /// A device's registers; the control domain.
        DevMmio = 5, "dev_mmio";
    }

    /// What is mapped by [`MemAcquireResource`] (`XENMEM_resource_*`).
    pub enum Resource: u16 {
        /// Pages of a device model.
        IoreqServer = 0, "ioreq_server";
        /// Frames of the grant table.
        GrantTable = 1, "grant_table";
        /// Trace buffer; x86 only.
        VmtraceBuf = 2, "vmtrace_buf";
    }
}

/// Where a continued call keeps its progress in the operation's number (`MEMOP_EXTENT_SHIFT`).
pub const MEMOP_EXTENT_SHIFT: u32 = 6;
/// The bits of the operation's number that name the operation.
pub const MEMOP_CMD_MASK: u64 = (1 << MEMOP_EXTENT_SHIFT) - 1;
/// `add_to_physmap` of the grant table: the index is a status frame's.
pub const MAPIDX_GRANT_TABLE_STATUS: u64 = 0x8000_0000;
/// `acquire_resource` of the grant table: the entries.
pub const RESOURCE_GRANT_TABLE_SHARED: u32 = 0;
/// `acquire_resource` of the grant table: the status frames.
pub const RESOURCE_GRANT_TABLE_STATUS: u32 = 1;

/// Flags of a reservation (`XENMEMF_*`).
pub mod memf {
    /// Lower bits: how many address bits the pages may have, 0 for any.
    pub const ADDRESS_BITS_MASK: u32 = 0xff;
    /// Populate when touched; not on Arm.
    pub const POPULATE_ON_DEMAND: u32 = 1 << 16;
    /// No other than the given node.
    pub const EXACT_NODE_REQUEST: u32 = 1 << 17;
    /// The node is a virtual one.
    pub const VNODE: u32 = 1 << 18;
}

abi! {
    /// Extents of memory.
    ["xen_memory_reservation", 32, "memory.h"]
    pub struct MemoryReservation {
        /// In: address of an array of frame numbers (`u64`), one for each extent.
        pub extent_start: u64,
        /// In: how many extents.
        pub nr_extents: u64,
        /// In: binary logarithm of an extent's pages.
        pub extent_order: u32,
        /// In: [`memf`].
        pub mem_flags: u32,
        /// In: whose.
        pub domid: DomId,
        /// Padding.
        pub _pad: [u16; 3] = "-",
    }

    /// Give pages for others.
    ["xen_memory_exchange", 72, "memory.h"]
    pub struct MemoryExchange {
        /// In: the pages given.
        pub input: MemoryReservation = "in",
        /// In: the pages wanted.
        pub output: MemoryReservation = "out",
        /// Out: how many input extents were exchanged.
        pub nr_exchanged: u64,
    }

    /// Map a page.
    ["xen_add_to_physmap", 24, "memory.h"]
    pub struct AddToPhysmap {
        /// In: in whose map.
        pub domid: DomId,
        /// In: how many pages of a range.
        pub size: u16,
        /// In: [`MapSpace`].
        pub space: u32,
        /// In: which of the space.
        pub idx: u64,
        /// In: the frame where it goes.
        pub gpfn: Gfn,
    }

    /// Map several pages.
    ["xen_add_to_physmap_batch", 32, "memory.h"]
    pub struct AddToPhysmapBatch {
        /// In: in whose map.
        pub domid: DomId,
        /// In: [`MapSpace`].
        pub space: u16,
        /// In: how many.
        pub size: u16,
        /// In: whose pages.
        pub foreign_domid: DomId = "u.foreign_domid",
        /// In: address of an array of `u64`: the pages.
        pub idxs: u64,
        /// In: address of an array of `u64`: the frames where they go.
        pub gpfns: u64,
        /// In: address of an array of `i32`, which gets an error number (negated) or 0 for each.
        pub errs: u64,
    }

    /// Take a frame out of the map.
    ["xen_remove_from_physmap", 16, "memory.h"]
    pub struct RemoveFromPhysmap {
        /// In: of whose map.
        pub domid: DomId,
        /// Padding.
        pub _pad: [u16; 3] = "-",
        /// In: the frame.
        pub gpfn: Gfn,
    }

    /// Map pages that the hypervisor keeps for a domain.
    ["xen_mem_acquire_resource", 32, "memory.h"]
    pub struct MemAcquireResource {
        /// In: whose.
        pub domid: DomId,
        /// In: [`Resource`].
        pub kind: u16 = "type",
        /// In: which.
        pub id: u32,
        /// In: how many frames; 0 asks for the number there are.
        pub nr_frames: u32,
        /// Zero.
        pub pad: u32,
        /// In: the first frame of the resource.
        pub frame: u64,
        /// In: address of an array of `u64`: the frames where they go.
        pub frame_list: u64,
    }

    /// The memory map; not on Arm.
    ["xen_memory_map_t", 16, "memory.h"]
    pub struct MemoryMap {
        /// In: room, out: entries.
        pub nr_entries: u32,
        /// Padding.
        pub _pad: u32 = "-",
        /// In: address of the entries.
        pub buffer: u64,
    }
}
