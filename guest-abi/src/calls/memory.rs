// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory ([`crate::memory`]).

use super::{NONE, len32, op, op_with};
use crate::memory::*;
use crate::{DomId, Errno, Gfn, Hypercall, HypercallNr, Lent};
use zerocopy::IntoBytes;

const NR: HypercallNr = HypercallNr::MemoryOp;

fn reservation(
    h: &(impl Hypercall + ?Sized),
    cmd: MemoryOp,
    dom: DomId,
    order: u32,
    frames: &[Gfn],
) -> Result<usize, Errno> {
    let mut list = Lent::In(frames.as_bytes());
    let mut r = MemoryReservation {
        extent_start: list.addr(),
        nr_extents: frames.len() as u64,
        extent_order: order,
        domid: dom,
        ..Default::default()
    };
    let n = op_with(h, NR, cmd.number(), &mut r, [list, NONE, NONE])?;
    Ok(usize::try_from(n).unwrap_or(frames.len()).min(frames.len()))
}

/// Gives a domain memory at the frames given: extents of `1 << order` pages, each from a frame of
/// the list on. Returns how many extents it got; fewer than asked for when memory ran out.
///
/// # Errors
/// The general ones.
pub fn populate_physmap(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    order: u32,
    frames: &[Gfn],
) -> Result<usize, Errno> {
    reservation(h, MemoryOp::PopulatePhysmap, dom, order, frames)
}

/// Gives a domain's extents back. Returns how many were given.
///
/// # Errors
/// The general ones.
pub fn decrease_reservation(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    order: u32,
    frames: &[Gfn],
) -> Result<usize, Errno> {
    reservation(h, MemoryOp::DecreaseReservation, dom, order, frames)
}

/// Maps the shared-info page, or a frame of the grant table (`idx`).
///
/// # Errors
/// `EINVAL` for a space or index that does not exist.
pub fn add_to_physmap(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    space: MapSpace,
    idx: u64,
    gpfn: Gfn,
) -> Result<(), Errno> {
    let mut a = AddToPhysmap {
        domid: dom,
        size: 0,
        space: space.number(),
        idx,
        gpfn,
    };
    op(h, NR, MemoryOp::AddToPhysmap.number(), &mut a).map(drop)
}

/// Maps the calling domain's shared-info page at one of its frames. The page that was there is lost to
/// the domain.
///
/// # Errors
/// `EBUSY` when it is mapped already, at another frame (Xen 4.17).
pub fn map_shared_info(h: &(impl Hypercall + ?Sized), gpfn: Gfn) -> Result<(), Errno> {
    add_to_physmap(h, DomId::SELF, MapSpace::SharedInfo, 0, gpfn)
}

/// Maps another domain's pages (`theirs`) into the caller's map at `ours`. `errs` gets 0 or an error
/// number negated for each.
///
/// # Errors
/// `E2BIG` for more than 65535 pages, without a call; the call's own when none was tried.
pub fn map_foreign(
    h: &(impl Hypercall + ?Sized),
    foreign: DomId,
    theirs: &[Gfn],
    ours: &[Gfn],
    errs: &mut [i32],
) -> Result<(), Errno> {
    map_batch(h, MapSpace::GmfnForeign, foreign, theirs, ours, errs)
}

/// Maps pages of a space into the caller's map at `ours`, as [`map_foreign`].
///
/// # Errors
/// As [`map_foreign`].
pub fn map_batch(
    h: &(impl Hypercall + ?Sized),
    space: MapSpace,
    foreign: DomId,
    theirs: &[Gfn],
    ours: &[Gfn],
    errs: &mut [i32],
) -> Result<(), Errno> {
    if theirs.len() != ours.len() || errs.len() != ours.len() {
        return Err(Errno::EINVAL);
    }
    let mut idxs = Lent::In(theirs.as_bytes());
    let mut gpfns = Lent::In(ours.as_bytes());
    let mut errs = Lent::Out(errs.as_mut_bytes());
    let mut a = AddToPhysmapBatch {
        domid: DomId::SELF,
        space: space.number() as u16,
        size: u16::try_from(ours.len()).map_err(|_| Errno::E2BIG)?,
        foreign_domid: foreign,
        idxs: idxs.addr(),
        gpfns: gpfns.addr(),
        errs: errs.addr(),
    };
    let cmd = MemoryOp::AddToPhysmapBatch.number();
    op_with(h, NR, cmd, &mut a, [idxs, gpfns, errs]).map(drop)
}

/// Takes a frame out of a map; a page of the domain's own stays charged to it.
///
/// # Errors
/// `EINVAL` when nothing is mapped there.
pub fn remove_from_physmap(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    gpfn: Gfn,
) -> Result<(), Errno> {
    let mut a = RemoveFromPhysmap {
        domid: dom,
        gpfn,
        ..Default::default()
    };
    op(h, NR, MemoryOp::RemoveFromPhysmap.number(), &mut a).map(drop)
}

/// Pages that a domain has.
///
/// # Errors
/// The general ones.
pub fn current_reservation(h: &(impl Hypercall + ?Sized), mut dom: DomId) -> Result<u64, Errno> {
    op(h, NR, MemoryOp::CurrentReservation.number(), &mut dom)
}

/// Pages that a domain may have.
///
/// # Errors
/// The general ones.
pub fn maximum_reservation(h: &(impl Hypercall + ?Sized), mut dom: DomId) -> Result<u64, Errno> {
    op(h, NR, MemoryOp::MaximumReservation.number(), &mut dom)
}

/// The highest frame of a domain's map.
///
/// # Errors
/// The general ones.
pub fn maximum_gpfn(h: &(impl Hypercall + ?Sized), mut dom: DomId) -> Result<Gfn, Errno> {
    op(h, NR, MemoryOp::MaximumGpfn.number(), &mut dom).map(Gfn)
}

/// The machine's highest page.
///
/// # Errors
/// The general ones.
pub fn maximum_ram_page(h: &(impl Hypercall + ?Sized)) -> Result<u64, Errno> {
    let args = [MemoryOp::MaximumRamPage.number(), 0, 0, 0, 0];
    Errno::check(h.call(NR, args, &mut []))
}

/// Maps pages that the hypervisor keeps for a domain, from its frame `first` on, at `ours`.
///
/// # Errors
/// `EINVAL` for frames that do not exist; `EOPNOTSUPP` for a resource that does not.
pub fn acquire_resource(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    kind: Resource,
    id: u32,
    first: u64,
    ours: &[Gfn],
) -> Result<(), Errno> {
    let mut list = Lent::In(ours.as_bytes());
    let mut a = MemAcquireResource {
        domid: dom,
        kind: kind.number(),
        id,
        nr_frames: len32(ours.len())?,
        pad: 0,
        frame: first,
        frame_list: list.addr(),
    };
    let cmd = MemoryOp::AcquireResource.number();
    op_with(h, NR, cmd, &mut a, [list, NONE, NONE]).map(drop)
}

/// How many frames a resource has.
///
/// # Errors
/// As [`acquire_resource`].
pub fn resource_size(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    kind: Resource,
    id: u32,
) -> Result<u32, Errno> {
    let mut a = MemAcquireResource {
        domid: dom,
        kind: kind.number(),
        id,
        ..Default::default()
    };
    op(h, NR, MemoryOp::AcquireResource.number(), &mut a)?;
    Ok(a.nr_frames)
}
