// SPDX-License-Identifier: MIT OR Apache-2.0
//! `memory_op(op, argument)` (`memory.h`). Progress of long operations travels in the upper bits
//! of the operation number, as Xen's does.

use super::{Answer, Call, OK, Reply, done};
use crate::domain::{Extent, Vcpu};
use crate::frame::{MAX_ORDER, Use};
use crate::machine::Machine;
use crate::p2m::{Kind, MAX_GFN};
use crate::types::{DomId, Errno, Gfn, Mfn, Slot};
use guest_abi::memory::{
    AddToPhysmap, AddToPhysmapBatch, MEMOP_CMD_MASK, MEMOP_EXTENT_SHIFT, MapSpace,
    MemAcquireResource, MemoryOp, MemoryReservation, RESOURCE_GRANT_TABLE_SHARED,
    RemoveFromPhysmap, Resource,
};

/// log2 of the pages that are mapped by one entry where they fit: 2 MiB.
const BLOCK: u8 = 9;
/// What the books of a page cost, in instructions. Those of a block's pages cost a sixteenth of that each.
const BOOKS: u32 = 200;

impl Extent {
    fn at(&self, page: u32) -> Gfn {
        self.gfn.plus(page.into())
    }
}

impl<M: Machine> Call<'_, M> {
    #[inline(never)]
    pub(super) fn memory_op(&mut self, a: &mut [u64; 5]) -> Answer {
        let op = MemoryOp::from_number(a[0] & MEMOP_CMD_MASK).ok_or(Errno::ENOSYS)?;
        let start = a[0] >> MEMOP_EXTENT_SHIFT;
        match op {
            MemoryOp::PopulatePhysmap
            | MemoryOp::IncreaseReservation
            | MemoryOp::DecreaseReservation => self.reservation(a, op, start),
            MemoryOp::AddToPhysmap => {
                let x: AddToPhysmap = self.guest().get(a[1])?;
                let target = self.live_target(x.domid)?;
                match MapSpace::from_number(x.space) {
                    Some(MapSpace::SharedInfo) => self.map_shared_info(target, x.idx, x.gpfn)?,
                    Some(MapSpace::GrantTable) => {
                        if !self.grow_for(target, x.idx)? {
                            return Ok(Reply::Again);
                        }
                        self.map_grant_frame(target, x.idx, x.gpfn)?;
                    }
                    // An empty range.
                    Some(MapSpace::GmfnRange) if x.size == 0 => {}
                    Some(MapSpace::DevMmio) => return Err(Errno::EACCES),
                    _ => return Err(Errno::ENOSYS),
                }
                OK
            }
            MemoryOp::AddToPhysmapBatch => self.map_foreign_batch(a, start),
            MemoryOp::RemoveFromPhysmap => {
                let x: RemoveFromPhysmap = self.guest().get(a[1])?;
                let target = self.live_target(x.domid)?;
                self.unmap_page(target, x.gpfn)?;
                OK
            }
            MemoryOp::CurrentReservation | MemoryOp::MaximumReservation | MemoryOp::MaximumGpfn => {
                let domid: u16 = self.guest().get(a[1])?;
                let target = self.target(DomId(domid))?;
                let d = self.hv.domains.get(target).ok_or(Errno::ESRCH)?;
                done(match op {
                    MemoryOp::CurrentReservation => i64::from(self.hv.frames.guest_pages(target)),
                    MemoryOp::MaximumReservation => i64::from(d.max_pages),
                    _ => d.p2m.max_gfn().0 as i64,
                })
            }
            MemoryOp::MaximumRamPage => done(self.hv.frames.max_mfn().0 as i64),
            MemoryOp::GetSharingFreedPages | MemoryOp::GetSharingSharedPages => OK,
            MemoryOp::AcquireResource => self.acquire_resource(a[1]),
            MemoryOp::GetVnumainfo => Err(Errno::EOPNOTSUPP),
            MemoryOp::ClaimPages => {
                self.require_privilege()?;
                OK
            }
            _ => Err(Errno::ENOSYS),
        }
    }

    /// Xen's limits (`memop-max-order`): 2 MiB for guests, the largest block for the control domain.
    fn max_order(&self) -> u32 {
        if self.privileged {
            u32::from(MAX_ORDER)
        } else {
            BLOCK.into()
        }
    }

    fn reservation(&mut self, a: &mut [u64; 5], op: MemoryOp, start: u64) -> Answer {
        let Ok(r) = self.guest().get::<MemoryReservation>(a[1]) else {
            return done(start as i64);
        };
        // The counter of extents must fit the bits that carry progress.
        if r.nr_extents > u64::from(u32::MAX >> MEMOP_EXTENT_SHIFT) || start > r.nr_extents {
            return done(start as i64);
        }
        if r.extent_order > self.max_order() {
            return done(start as i64);
        }
        let Ok(target) = self.live_target(r.domid) else {
            return done(start as i64);
        };
        let mut i = start;
        while i < r.nr_extents {
            let whole = match op {
                // The new pages are nowhere in the guest's memory: it is not told which they are.
                MemoryOp::IncreaseReservation => self.extent(op, target, Gfn(i), r.extent_order),
                _ => {
                    let at = r.extent_start.wrapping_add(i << 3);
                    let Ok(frame) = self.guest().get::<u64>(at) else {
                        break;
                    };
                    self.extent(op, target, Gfn(frame), r.extent_order)
                }
            };
            match whole {
                Ok(true) => i = i.saturating_add(1),
                Ok(false) => {
                    a[0] = op.number() | (i << MEMOP_EXTENT_SHIFT);
                    return Ok(Reply::Again);
                }
                Err(_) => break,
            }
        }
        done(i as i64)
    }

    /// Works on one extent until the slice's end; `false` when the call is to be made again to go
    /// on. Where it is then, stays with the calling vcpu.
    fn extent(&mut self, op: MemoryOp, target: Slot, gfn: Gfn, order: u32) -> Result<bool, Errno> {
        let mut x = Extent {
            op: op.number() as u8,
            target,
            gfn,
            order: order as u8,
            done: 0,
            undone: None,
            block: None,
        };
        let key = |x: &Extent| (x.op, x.target, x.gfn, x.order);
        let caller = self.caller().ok_or(Errno::ESRCH)?;
        match caller.extent.take() {
            Some(old) if key(&old) == key(&x) => x = old,
            // Of a call that was given up.
            Some(old) => self.discard(old),
            None => {}
        }
        let r = self.go_on(op, &mut x);
        match self.caller() {
            Some(v) if r == Ok(false) => v.extent = Some(x),
            _ => self.discard(x),
        }
        r
    }

    fn caller(&mut self) -> Option<&mut Vcpu> {
        let d = self.hv.domains.get_mut(self.who.slot)?;
        d.vcpus.get_mut(self.who.vcpu.idx())
    }

    fn discard(&mut self, x: Extent) {
        if let Some(block) = x.block {
            self.hv.frames.discard(block);
        }
    }

    /// When a piece of populating fails, what was done before it is taken back.
    fn go_on(&mut self, op: MemoryOp, x: &mut Extent) -> Result<bool, Errno> {
        let all = 1u32 << x.order;
        x.gfn.0.checked_add(u64::from(all)).ok_or(Errno::EINVAL)?;
        while x.undone.is_none() && x.done < all {
            if self.used_up() {
                return Ok(false);
            }
            let r = match op {
                MemoryOp::PopulatePhysmap => self.populate(x),
                MemoryOp::IncreaseReservation => self.increase(x),
                _ => self.decrease(x.target, x.at(x.done), all.saturating_sub(x.done)),
            };
            match r {
                Ok(pages) => x.done = x.done.saturating_add(pages),
                Err(e) if op != MemoryOp::PopulatePhysmap => return Err(e),
                Err(_) => x.undone = Some(0),
            }
        }
        let Some(mut n) = x.undone else {
            return Ok(true);
        };
        while n < x.done {
            if self.used_up() {
                return Ok(false);
            }
            let gone = self.decrease(x.target, x.at(n), x.done.saturating_sub(n));
            n = n.saturating_add(gone.unwrap_or(1));
            x.undone = Some(n);
        }
        Err(Errno::ENOMEM)
    }

    /// Whether a domain may get 2^`order` more pages.
    fn check_limit(&self, slot: Slot, order: u8) -> Result<(), Errno> {
        let d = self.hv.domains.get(slot).ok_or(Errno::ESRCH)?;
        let have = self.hv.charged(slot);
        match have.checked_add(1 << order) {
            Some(n) if n <= d.max_pages => Ok(()),
            _ => Err(Errno::ENOMEM),
        }
    }

    /// Charges a domain with pages that are nowhere in its memory, as Xen does on Arm: it has no use of
    /// them, and never sees them.
    fn increase(&mut self, x: &Extent) -> Result<u32, Errno> {
        let order = x.order.min(BLOCK);
        self.check_limit(x.target, order)?;
        self.m.spend(BOOKS);
        self.m.spend(BOOKS.wrapping_shl(order.into()) >> 4);
        let (d, c) = self.hv.p2m_of(self.m, x.target)?;
        let pages = c.frames.alloc(x.target, Use::Guest, order)?;
        c.frames.chain(pages, &mut d.unmapped);
        Ok(1 << order)
    }

    /// Gives a domain the next pages of an extent: a block where one fits, which is scrubbed in slices
    /// before, else a page. To a domain that is mapped at machine addresses, the very pages of these
    /// addresses, if they are its own. Gives how many there are now, which may be none yet.
    fn populate(&mut self, x: &mut Extent) -> Result<u32, Errno> {
        let (m, slot, gfn) = (self.m, x.target, x.at(x.done));
        let (d, mut c) = self.hv.p2m_of(m, slot)?;
        m.spend(BOOKS);
        let pages = 1u32 << BLOCK;
        let left = 1u32.wrapping_shl(x.order.into()).saturating_sub(x.done);
        let fits = left >= pages && gfn.0.is_multiple_of(pages.into());
        if fits && d.p2m.is_hole(m, gfn) {
            if d.direct_mapped {
                if let Some(own) = c.frames.owned(slot, Mfn(gfn.0), BLOCK) {
                    d.p2m.map(&mut c, gfn, own, Kind::Ram)?;
                    return Ok(pages);
                }
            } else {
                let block = match x.block.take() {
                    Some(b) => b,
                    None => {
                        self.check_limit(slot, BLOCK)?;
                        m.spend(BOOKS << BLOCK >> 4);
                        self.hv.frames.alloc(slot, Use::Guest, BLOCK)?
                    }
                };
                let limit = self.slice();
                let (d, mut c) = self.hv.p2m_of(m, slot)?;
                let block = match c.frames.scrub(m, block, limit) {
                    Ok(b) => b,
                    Err(rest) => {
                        x.block = Some(rest);
                        return Ok(0);
                    }
                };
                let r = d.p2m.map(&mut c, gfn, block, Kind::Ram);
                return r.map(|()| pages).inspect_err(|_| {
                    c.frames.put_block(block.mfn(), BLOCK);
                });
            }
        }
        // Somebody else was faster there.
        if let Some(b) = x.block.take() {
            c.frames.discard(b);
        }
        if gfn.0 >= MAX_GFN {
            return Err(Errno::EINVAL);
        }
        if d.direct_mapped {
            let own = c.frames.owned(slot, Mfn(gfn.0), 0).ok_or(Errno::EINVAL)?;
            d.p2m.map(&mut c, gfn, own, Kind::Ram)?;
            return Ok(1);
        }
        // Where something is mapped already, the page comes back.
        self.check_limit(slot, 0)?;
        let (d, mut c) = self.hv.p2m_of(m, slot)?;
        let page = c.frames.alloc(slot, Use::Guest, 0)?;
        let page = c.frames.scrub_all(m, page);
        let r = d.p2m.map(&mut c, gfn, page, Kind::Ram);
        if r.is_err() {
            c.frames.put(page.mfn());
        }
        r.map(|()| 1)
    }

    /// Takes memory away: a block if one is there and within `most` pages, else a page. Gives how many
    /// these are. Pages before one that is no memory are gone.
    fn decrease(&mut self, slot: Slot, gfn: Gfn, most: u32) -> Result<u32, Errno> {
        let m = self.m;
        let (d, mut c) = self.hv.p2m_of(m, slot)?;
        m.spend(BOOKS);
        let pages = 1u32 << BLOCK;
        if most >= pages
            && gfn.0.is_multiple_of(pages.into())
            && let Some(x) = d.p2m.lookup(m, gfn)
            && (x.kind, x.order) == (Kind::Ram, BLOCK)
        {
            m.spend(BOOKS << BLOCK >> 4);
            // A whole entry goes as such: nothing has to be broken.
            d.p2m.unmap_entry(&mut c, gfn)?;
            if !d.direct_mapped {
                c.frames.put_block(x.mfn, BLOCK);
            }
            return Ok(pages);
        }
        self.unmap_if(slot, gfn, |kind| kind == Kind::Ram)?;
        Ok(1)
    }

    /// Takes what is mapped at `gfn` away, dropping the reference that the mapping held.
    fn unmap_page(&mut self, slot: Slot, gfn: Gfn) -> Result<(), Errno> {
        self.unmap_if(slot, gfn, |kind| match kind {
            // These end by their own operations.
            Kind::Grant | Kind::GrantRo | Kind::Mmio => false,
            Kind::Ram | Kind::Foreign | Kind::Shared => true,
        })
    }

    fn unmap_if(&mut self, slot: Slot, gfn: Gfn, may: fn(Kind) -> bool) -> Result<(), Errno> {
        let (d, mut c) = self.hv.p2m_of(self.m, slot)?;
        let direct = d.direct_mapped;
        let old = d.p2m.unmap(&mut c, gfn, may)?;
        match old.kind {
            // It stays the domain's: no other page will do at that address.
            Kind::Ram if direct => {}
            Kind::Ram | Kind::Foreign => c.frames.put(old.mfn),
            _ if d.shared_info == old.mfn => d.shared_info_gfn = None,
            _ => self.hv.grants.set_shared_gfn(slot, old.mfn, None),
        }
        Ok(())
    }

    /// Maps a page of the hypervisor at `gfn`, in place of what is there.
    fn map_shared(&mut self, slot: Slot, gfn: Gfn, mfn: Mfn) -> Result<(), Errno> {
        let m = self.m;
        let (d, _) = self.hv.p2m_of(m, slot)?;
        match d.p2m.lookup(m, gfn) {
            Some(x) if x.mfn == mfn && x.kind == Kind::Shared => return Ok(()),
            Some(_) => self.unmap_page(slot, gfn)?,
            None => {}
        }
        let (d, mut c) = self.hv.p2m_of(m, slot)?;
        let page = c.frames.known(mfn)?;
        d.p2m.map(&mut c, gfn, page, Kind::Shared)
    }

    fn map_shared_info(&mut self, slot: Slot, idx: u64, gfn: Gfn) -> Result<(), Errno> {
        let d = self.hv.domains.get(slot).ok_or(Errno::ESRCH)?;
        if idx != 0 {
            return Err(Errno::EINVAL);
        }
        if d.shared_info_gfn.is_some() {
            return Err(Errno::EBUSY);
        }
        let mfn = d.shared_info;
        self.map_shared(slot, gfn, mfn)?;
        if let Some(d) = self.hv.domains.get_mut(slot) {
            d.shared_info_gfn = Some(gfn);
        }
        Ok(())
    }

    /// Makes a domain's grant table so large that it has the frame `idx`, if it may have it: false when
    /// there is more to make.
    fn grow_for(&mut self, slot: Slot, idx: u64) -> Result<bool, Errno> {
        let most = self.hv.grants.query_size(slot).map_or(0, |(_, max)| max);
        if idx >= u64::from(most) {
            return Ok(true);
        }
        // `idx` itself too, where others make the last one themselves.
        self.grow(slot, (idx as u32).saturating_add(2))
            .map_err(|_| Errno::EINVAL)
    }

    fn map_grant_frame(&mut self, slot: Slot, idx: u64, gfn: Gfn) -> Result<(), Errno> {
        let grants = &self.hv.grants;
        let mfn = grants.shared_frame(slot, idx)?;
        // A frame is in one place, and taken away there first.
        if grants.shared_gfn(slot, idx as u32) != u64::MAX {
            return Err(Errno::EBUSY);
        }
        self.map_shared(slot, gfn, mfn)?;
        self.hv.grants.set_shared_gfn(slot, mfn, Some(gfn));
        Ok(())
    }

    /// Maps pages of another domain into the caller's address space.
    fn map_foreign_batch(&mut self, a: &mut [u64; 5], start: u64) -> Answer {
        let x: AddToPhysmapBatch = self.guest().get(a[1])?;
        let target = self.live_target(x.domid)?;
        if MapSpace::from_number(u32::from(x.space)) != Some(MapSpace::GmfnForeign) {
            return Err(Errno::ENOSYS);
        }
        self.require_privilege()?;
        let source = self
            .hv
            .domains
            .find_alive(x.foreign_domid)
            .ok_or(Errno::ESRCH)?;
        if source == target {
            return Err(Errno::EINVAL);
        }
        let mut i = start;
        while i < u64::from(x.size) {
            if i != start && self.used_up() {
                a[0] = MemoryOp::AddToPhysmapBatch.number() | (i << MEMOP_EXTENT_SHIFT);
                return Ok(Reply::Again);
            }
            let from: u64 = self.guest().get(x.idxs.wrapping_add(i << 3))?;
            let to: u64 = self.guest().get(x.gpfns.wrapping_add(i << 3))?;
            let rc = match self.map_foreign(target, source, Gfn(from), Gfn(to)) {
                Ok(()) => 0,
                Err(e) => e.number().wrapping_neg(),
            };
            self.guest().put(x.errs.wrapping_add(i << 2), &rc)?;
            i = i.saturating_add(1);
        }
        OK
    }

    fn map_foreign(&mut self, target: Slot, source: Slot, from: Gfn, to: Gfn) -> Result<(), Errno> {
        let d = self.hv.domains.get(source).ok_or(Errno::ESRCH)?;
        let page = match d.p2m.lookup(self.m, from) {
            Some(x) if x.kind == Kind::Ram => x.mfn,
            _ => return Err(Errno::EINVAL),
        };
        self.install_foreign(target, to, page)
    }

    fn install_foreign(&mut self, target: Slot, to: Gfn, page: Mfn) -> Result<(), Errno> {
        let page = self.hv.frames.get(page)?;
        let m = self.m;
        let (d, mut c) = self.hv.p2m_of(m, target)?;
        let r = d.p2m.map(&mut c, to, page, Kind::Foreign);
        if r.is_err() {
            c.frames.put(page.mfn());
        }
        r
    }

    /// Maps a domain's grant frames into the control domain (`XENMEM_acquire_resource`).
    fn acquire_resource(&mut self, arg: u64) -> Answer {
        let x: MemAcquireResource = self.guest().get(arg)?;
        if !self.privileged {
            // Of another domain that exists it would be told that it may not; by its number.
            self.hv.domains.find(x.domid).ok_or(Errno::ESRCH)?;
            return Err(Errno::EPERM);
        }
        let source = self.hv.domains.find_alive(x.domid).ok_or(Errno::ESRCH)?;
        if Resource::from_number(x.kind) != Some(Resource::GrantTable)
            || x.id != RESOURCE_GRANT_TABLE_SHARED
        {
            return Err(Errno::EOPNOTSUPP);
        }
        if x.nr_frames == 0 {
            let (_, max) = self
                .hv
                .grants
                .query_size(source)
                .map_err(|_| Errno::EINVAL)?;
            return self
                .guest()
                .put(
                    arg,
                    &MemAcquireResource {
                        nr_frames: max,
                        ..x
                    },
                )
                .and(OK);
        }
        if x.nr_frames > 32 {
            return Err(Errno::E2BIG);
        }
        let last = x
            .frame
            .saturating_add(u64::from(x.nr_frames).saturating_sub(1));
        if !self.grow_for(source, last)? {
            return Ok(Reply::Again);
        }
        for i in 0..u64::from(x.nr_frames) {
            let to: u64 = self.guest().get(x.frame_list.wrapping_add(i << 3))?;
            let index = x.frame.checked_add(i).ok_or(Errno::EINVAL)?;
            let page = self.hv.grants.shared_frame(source, index)?;
            self.install_foreign(self.who.slot, Gfn(to), page)?;
        }
        OK
    }
}
