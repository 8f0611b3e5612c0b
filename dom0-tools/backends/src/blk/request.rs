// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests, checked.

use super::{Disk, Limits, Pages};
use alloc::vec::Vec;
use guest_abi::io::blkif::{
    self, BlkifRequest, BlkifRequestDiscard, BlkifRequestIndirect, BlkifRequestSegment,
    BlkifResponse, DISCARD_SECURE, MAX_SEGMENTS_PER_REQUEST, Request, SEGS_PER_INDIRECT_FRAME,
    Slot, Status,
};
use zerocopy::IntoBytes;

/// Highest sector number in a page.
const LAST_SECTOR: u8 = (guest_abi::PAGE_SIZE / blkif::SECTOR_SIZE - 1) as u8;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From the disk to the guest's pages.
    Read,
    /// From the guest's pages to the disk.
    Write,
    /// Make durable every write that was answered before.
    Flush,
    /// Make durable every write that was answered before, write the pages there are, and make those durable. All
    /// requests before it have been answered, and none after it is given out until it is.
    Barrier,
    /// Forget the contents.
    Discard {
        /// So that they cannot be read any more.
        secure: bool,
    },
}

/// A request that passed every check. It is a private copy: the guest cannot change it any more.
///
/// It is to be handed back to its queue once ([`Queue::respond`](super::Queue::respond)), which is
/// why it cannot be copied.
#[derive(Debug)]
#[must_use = "each request is to be answered"]
pub struct Op {
    kind: Kind,
    sector: u64,
    sectors: u64,
    segments: Segments,
    id: u64,
    operation: u8,
}

#[derive(Debug)]
enum Segments {
    Direct([BlkifRequestSegment; MAX_SEGMENTS_PER_REQUEST], u8),
    Indirect(Vec<BlkifRequestSegment>),
}

const NO_SEGMENTS: Segments = Segments::Indirect(Vec::new());

impl Op {
    /// What is to be done.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// First sector on the disk.
    #[must_use]
    pub const fn sector(&self) -> u64 {
        self.sector
    }

    /// How many sectors, all of them on the disk; 0 for a flush, and for a barrier that is no more than that.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        self.sectors
    }

    /// The parts of granted pages to read into or write from, in the disk's order, as many sectors
    /// as [`Op::sectors`]; in each, `first_sect <= last_sect <= 7`. Empty for a flush or a discard.
    #[must_use]
    pub fn segments(&self) -> &[BlkifRequestSegment] {
        match &self.segments {
            Segments::Direct(s, n) => s.get(..usize::from(*n)).unwrap_or_default(),
            Segments::Indirect(s) => s,
        }
    }

    pub(super) const fn answer(&self, status: Status) -> BlkifResponse {
        BlkifResponse::new(self.id, self.operation, status)
    }
}

/// Checks a request that was copied out of the ring. An error is the answer to it.
pub(super) fn check(
    slot: &Slot,
    disk: &Disk,
    limits: &Limits,
    pages: &mut impl Pages,
) -> Result<Op, BlkifResponse> {
    match slot.decode() {
        Request::Direct(r) => {
            direct(&r, disk).map_err(|s| BlkifResponse::new(r.id, r.operation, s))
        }
        // The answer names what the indirect request stands for: front ends look for that.
        Request::Indirect(r) => indirect(&r, disk, limits, pages)
            .map_err(|s| BlkifResponse::new(r.id, r.indirect_op, s)),
        Request::Discard(r) => {
            discard(&r, disk).map_err(|s| BlkifResponse::new(r.id, r.operation, s))
        }
    }
}

fn direct(r: &BlkifRequest, disk: &Disk) -> Result<Op, Status> {
    let operation = blkif::Op::from_number(r.operation);
    let empty = r.nr_segments == 0;
    let kind = match operation {
        Some(blkif::Op::FlushDiskcache | blkif::Op::WriteBarrier) if !disk.flush => {
            return Err(Status::Eopnotsupp);
        }
        Some(blkif::Op::FlushDiskcache) if empty => Kind::Flush,
        // A flush with data is a write behind a flush for Linux's back end. A barrier is more than that.
        Some(blkif::Op::FlushDiskcache | blkif::Op::WriteBarrier) if disk.read_only => {
            return Err(Status::Error);
        }
        Some(blkif::Op::FlushDiskcache | blkif::Op::WriteBarrier) => Kind::Barrier,
        _ => transfer_kind(r.operation, disk)?,
    };
    if empty && matches!(kind, Kind::Flush | Kind::Barrier) {
        return Ok(Op {
            kind,
            sector: 0,
            sectors: 0,
            segments: NO_SEGMENTS,
            id: r.id,
            operation: r.operation,
        });
    }
    let used = r
        .seg
        .get(..usize::from(r.nr_segments))
        .ok_or(Status::Error)?;
    Ok(Op {
        kind,
        sector: r.sector_number,
        sectors: transfer_sectors(used, r.sector_number, disk)?,
        segments: Segments::Direct(r.seg, r.nr_segments),
        id: r.id,
        operation: r.operation,
    })
}

fn indirect(
    r: &BlkifRequestIndirect,
    disk: &Disk,
    limits: &Limits,
    pages: &mut impl Pages,
) -> Result<Op, Status> {
    if limits.indirect_segments() == 0 {
        return Err(Status::Eopnotsupp);
    }
    let kind = transfer_kind(r.indirect_op, disk).map_err(|_| Status::Error)?;
    if r.nr_segments > limits.indirect_segments() {
        return Err(Status::Error);
    }
    let n = usize::from(r.nr_segments);
    let mut segments = Vec::new();
    segments.try_reserve_exact(n).map_err(|_| Status::Error)?;
    segments.resize(n, BlkifRequestSegment::default());
    let parts = segments.chunks_mut(SEGS_PER_INDIRECT_FRAME);
    for (part, gref) in parts.zip(r.indirect_grefs) {
        if !pages.copy_in(gref, part.as_mut_bytes()) {
            return Err(Status::Error);
        }
    }
    Ok(Op {
        kind,
        sector: r.sector_number,
        sectors: transfer_sectors(&segments, r.sector_number, disk)?,
        segments: Segments::Indirect(segments),
        id: r.id,
        operation: r.indirect_op,
    })
}

fn discard(r: &BlkifRequestDiscard, disk: &Disk) -> Result<Op, Status> {
    let can = disk.discard.ok_or(Status::Eopnotsupp)?;
    let secure = r.flag & DISCARD_SECURE != 0;
    if secure && !can.secure {
        return Err(Status::Eopnotsupp);
    }
    if disk.read_only || r.nr_sectors == 0 || !on_disk(r.sector_number, r.nr_sectors, disk) {
        return Err(Status::Error);
    }
    Ok(Op {
        kind: Kind::Discard { secure },
        sector: r.sector_number,
        sectors: r.nr_sectors,
        segments: NO_SEGMENTS,
        id: r.id,
        operation: r.operation,
    })
}

fn transfer_kind(operation: u8, disk: &Disk) -> Result<Kind, Status> {
    match blkif::Op::from_number(operation) {
        Some(blkif::Op::Read) => Ok(Kind::Read),
        Some(blkif::Op::Write) if disk.read_only => Err(Status::Error),
        Some(blkif::Op::Write) => Ok(Kind::Write),
        _ => Err(Status::Eopnotsupp),
    }
}

/// How many sectors the segments hold together.
fn transfer_sectors(segments: &[BlkifRequestSegment], at: u64, disk: &Disk) -> Result<u64, Status> {
    let mut sectors = 0u64;
    for s in segments {
        if s.last_sect > LAST_SECTOR || s.first_sect > s.last_sect {
            return Err(Status::Error);
        }
        sectors += u64::from(s.last_sect - s.first_sect) + 1;
    }
    if sectors == 0 || !on_disk(at, sectors, disk) {
        return Err(Status::Error);
    }
    Ok(sectors)
}

fn on_disk(at: u64, sectors: u64, disk: &Disk) -> bool {
    at.checked_add(sectors)
        .is_some_and(|end| end <= disk.sectors)
}
