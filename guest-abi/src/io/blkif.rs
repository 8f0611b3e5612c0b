// SPDX-License-Identifier: MIT OR Apache-2.0
//! Block devices (`io/blkif.h`), in the layout that 64-bit Arm guests use (`protocol` "arm-abi").
//!
//! A sector is 512 bytes throughout, whatever the device's own sector size is.

use super::ring::ring_size;
use crate::GrantRef;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

numbers! {
    /// What a request asks (`BLKIF_OP_*`).
    pub enum Op: u8 {
        /// Read: [`BlkifRequest`].
        Read = 0, "READ";
        /// Write: [`BlkifRequest`].
        Write = 1, "WRITE";
        /// Write after all before and before all after: [`BlkifRequest`].
        WriteBarrier = 2, "WRITE_BARRIER";
        /// Make durable what was written: [`BlkifRequest`], without segments.
        FlushDiskcache = 3, "FLUSH_DISKCACHE";
        /// The sectors' contents are not needed: [`BlkifRequestDiscard`].
        Discard = 5, "DISCARD";
        /// Read or write with segments in pages of their own: [`BlkifRequestIndirect`].
        Indirect = 6, "INDIRECT";
    }

    /// How it went (`BLKIF_RSP_*`).
    pub enum Status: i16 {
        /// Done.
        Okay = 0, "OKAY";
        /// Failed.
        Error = -1, "ERROR";
        /// Not supported.
        Eopnotsupp = -2, "EOPNOTSUPP";
    }
}

/// Most segments in a request.
pub const MAX_SEGMENTS_PER_REQUEST: usize = 11;
/// Most pages of segments in an indirect request.
pub const MAX_INDIRECT_PAGES_PER_REQUEST: usize = 8;
/// Segments in a page of segments.
pub const SEGS_PER_INDIRECT_FRAME: usize = 512;
/// Bytes of a sector.
pub const SECTOR_SIZE: usize = 512;
/// Flag of a discard: the data must not be readable any more.
pub const DISCARD_SECURE: u8 = 1 << 0;
/// `info` in the store: a CD-ROM.
pub const VDISK_CDROM: u32 = 0x1;
/// `info` in the store: removable.
pub const VDISK_REMOVABLE: u32 = 0x2;
/// `info` in the store: read-only.
pub const VDISK_READONLY: u32 = 0x4;
/// Bytes of a ring entry.
pub const ENTRY_SIZE: usize = size_of::<BlkifRequest>();

/// Entries of a ring of `pages` pages.
#[must_use]
pub const fn entries(pages: usize) -> Option<u32> {
    ring_size(pages * crate::PAGE_SIZE, ENTRY_SIZE)
}

abi! {
    /// Part of a granted page.
    ["blkif_request_segment", 8, "io/blkif.h"]
    pub struct BlkifRequestSegment {
        /// The page.
        pub gref: GrantRef,
        /// First sector in it, 0 to 7.
        pub first_sect: u8,
        /// Last sector in it, 0 to 7, included.
        pub last_sect: u8,
        /// Padding.
        pub _pad: u16 = "-",
    }

    /// Read, write or flush.
    ["blkif_request_t", 112, "io/blkif.h"]
    pub struct BlkifRequest {
        /// [`Op`].
        pub operation: u8,
        /// How many of `seg` are used.
        pub nr_segments: u8,
        /// The device.
        pub handle: u16,
        /// Padding.
        pub _pad: u32 = "-",
        /// The front end's number, which the response repeats.
        pub id: u64,
        /// First sector on the device.
        pub sector_number: u64,
        /// The memory, in the order of the sectors.
        pub seg: [BlkifRequestSegment; MAX_SEGMENTS_PER_REQUEST],
    }

    /// Read or write with segments in pages of their own.
    ["blkif_request_indirect_t", 64, "io/blkif.h"]
    pub struct BlkifRequestIndirect {
        /// [`Op::Indirect`].
        pub operation: u8,
        /// [`Op::Read`] or [`Op::Write`].
        pub indirect_op: u8,
        /// How many segments.
        pub nr_segments: u16,
        /// Padding.
        pub _pad0: u32 = "-",
        /// The front end's number, which the response repeats.
        pub id: u64,
        /// First sector on the device.
        pub sector_number: u64,
        /// The device.
        pub handle: u16,
        /// Padding.
        pub _pad1: u16 = "-",
        /// Pages of [`BlkifRequestSegment`]s.
        pub indirect_grefs: [GrantRef; MAX_INDIRECT_PAGES_PER_REQUEST],
        /// Padding.
        pub _pad2: u32 = "-",
    }

    /// The sectors' contents are not needed.
    ["blkif_request_discard_t", 32, "io/blkif.h"]
    pub struct BlkifRequestDiscard {
        /// [`Op::Discard`].
        pub operation: u8,
        /// [`DISCARD_SECURE`].
        pub flag: u8,
        /// The device.
        pub handle: u16,
        /// Padding.
        pub _pad: u32 = "-",
        /// The front end's number, which the response repeats.
        pub id: u64,
        /// First sector on the device.
        pub sector_number: u64,
        /// How many.
        pub nr_sectors: u64,
    }

    /// How a request went.
    ["blkif_response_t", 16, "io/blkif.h"]
    pub struct BlkifResponse {
        /// The request's.
        pub id: u64,
        /// The request's.
        pub operation: u8,
        /// Padding.
        pub _pad0: u8 = "-",
        /// [`Status`].
        pub status: i16,
        /// Padding.
        pub _pad1: u32 = "-",
    }
}

impl BlkifResponse {
    /// Answers a request.
    #[must_use]
    pub const fn new(id: u64, operation: u8, status: Status) -> Self {
        Self {
            id,
            operation,
            _pad0: 0,
            status: status.number(),
            _pad1: 0,
        }
    }
}

/// A ring's entry for a request, of whatever kind: the union of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Slot(pub BlkifRequest);

/// A request, by its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "lives on the stack, one at a time"
)]
pub enum Request {
    /// Read, write or flush: segments in the request; any operation number that is no other's.
    Direct(BlkifRequest),
    /// Read or write: segments in pages of their own.
    Indirect(BlkifRequestIndirect),
    /// Discard.
    Discard(BlkifRequestDiscard),
}

impl Slot {
    /// Reads the kind that its operation tells.
    #[must_use]
    pub fn decode(&self) -> Request {
        fn cut<T: FromBytes + IntoBytes>(from: &BlkifRequest) -> T {
            let mut t = T::new_zeroed();
            for (to, from) in t.as_mut_bytes().iter_mut().zip(from.as_bytes()) {
                *to = *from;
            }
            t
        }
        match Op::from_number(self.0.operation) {
            Some(Op::Indirect) => Request::Indirect(cut(&self.0)),
            Some(Op::Discard) => Request::Discard(cut(&self.0)),
            _ => Request::Direct(self.0),
        }
    }

    fn fill(t: &(impl IntoBytes + Immutable)) -> Self {
        let mut slot = Self(BlkifRequest::default());
        for (to, from) in slot.as_mut_bytes().iter_mut().zip(t.as_bytes()) {
            *to = *from;
        }
        slot
    }
}

impl From<BlkifRequest> for Slot {
    fn from(r: BlkifRequest) -> Self {
        Self(r)
    }
}

impl From<BlkifRequestIndirect> for Slot {
    fn from(r: BlkifRequestIndirect) -> Self {
        Self::fill(&r)
    }
}

impl From<BlkifRequestDiscard> for Slot {
    fn from(r: BlkifRequestDiscard) -> Self {
        Self::fill(&r)
    }
}
