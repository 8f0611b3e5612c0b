// SPDX-License-Identifier: MIT OR Apache-2.0
//! `memory_op(op, argument)` (`memory.h`). Progress of long operations travels in the upper bits
//! of the operation number, as Xen's does.

use super::{Answer, Call, OK, Reply, done};
use crate::domain::Extent;
use crate::frame::{MAX_ORDER, Use};
use crate::hypervisor::Host;
use crate::machine::Machine;
use crate::p2m::{Ctx, Kind};
use crate::types::{DomId, Errno, Gfn, Mfn, Slot};
use guest_abi::memory::{
    AddToPhysmap, AddToPhysmapBatch, MEMOP_CMD_MASK, MEMOP_EXTENT_SHIFT, MapSpace,
    MemAcquireResource, MemoryOp, MemoryReservation, RESOURCE_GRANT_TABLE_SHARED,
    RemoveFromPhysmap, Resource,
};

/// What is done at a time: 2 MiB, so that clearing them holds the hypervisor for a bounded time.
const BLOCK: u32 = 9;
/// Pages handled before others get their turn.
const BATCH_PAGES: u64 = 1024;

impl<M: Machine> Call<'_, M> {
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
                    Some(MapSpace::GrantTable) => self.map_grant_frame(target, x.idx, x.gpfn)?,
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
            BLOCK
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
        let mut budget = BATCH_PAGES;
        let mut i = start;
        while i < r.nr_extents {
            let whole = match op {
                // The new pages are nowhere in the guest's memory: it is not told which they are.
                MemoryOp::IncreaseReservation => {
                    self.extent(op, target, Gfn(i), r.extent_order, &mut budget)
                }
                _ => {
                    let at = r.extent_start.wrapping_add(i * 8);
                    let Ok(frame) = self.guest().get::<u64>(at) else {
                        break;
                    };
                    self.extent(op, target, Gfn(frame), r.extent_order, &mut budget)
                }
            };
            match whole {
                Ok(true) => i += 1,
                Ok(false) => {
                    a[0] = op.number() | (i << MEMOP_EXTENT_SHIFT);
                    return Ok(Reply::Again);
                }
                Err(_) => break,
            }
        }
        if op == MemoryOp::PopulatePhysmap {
            self.m.drop_instructions();
        }
        done(i as i64)
    }

    /// Works on one extent by blocks of at most 2 MiB, as long as `budget` pages last; `false` when
    /// the call is to be made again to go on. Where it is then, stays with the target domain. When a
    /// block fails, what was populated before it is taken back.
    fn extent(
        &mut self,
        op: MemoryOp,
        slot: Slot,
        gfn: Gfn,
        order: u32,
        budget: &mut u64,
    ) -> Result<bool, Errno> {
        let new = Extent {
            op: op.number() as u8,
            gfn,
            order: order as u8,
            done: 0,
            failed: false,
        };
        let d = self.hv.domains.get_mut(slot).ok_or(Errno::ESRCH)?;
        let mut x = match d.extent.take() {
            Some(x) if (x.op, x.gfn, x.order) == (new.op, new.gfn, new.order) => x,
            _ => new,
        };
        gfn.0.checked_add(1 << order).ok_or(Errno::EINVAL)?;
        let block = order.min(BLOCK);
        let pages = 1u64 << block;
        while !x.failed && x.done < 1 << order {
            if *budget == 0 {
                self.put_extent(slot, x);
                return Ok(false);
            }
            *budget = budget.saturating_sub(pages);
            let at = Gfn(gfn.0 + x.done);
            let r = match op {
                MemoryOp::PopulatePhysmap => self.populate(slot, at, block as u8),
                MemoryOp::IncreaseReservation => self.increase(slot, block as u8),
                _ => self.decrease(slot, at, block),
            };
            match r {
                Ok(()) => x.done += pages,
                Err(e) if op != MemoryOp::PopulatePhysmap => return Err(e),
                Err(_) => x.failed = true,
            }
        }
        if !x.failed {
            return Ok(true);
        }
        while x.done != 0 {
            if *budget == 0 {
                self.put_extent(slot, x);
                return Ok(false);
            }
            *budget = budget.saturating_sub(pages);
            x.done -= pages;
            let _ = self.decrease(slot, Gfn(gfn.0 + x.done), block);
        }
        Err(Errno::ENOMEM)
    }

    fn put_extent(&mut self, slot: Slot, x: Extent) {
        if let Some(d) = self.hv.domains.get_mut(slot) {
            d.extent = Some(x);
        }
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

    /// Charges a domain with 2^`order` pages that are nowhere in its memory, as Xen does on Arm: it
    /// has no use of them.
    fn increase(&mut self, slot: Slot, order: u8) -> Result<(), Errno> {
        self.check_limit(slot, order)?;
        let m = self.m;
        let (d, c) = self.hv.p2m_of(m, slot)?;
        let first = c.frames.alloc(slot, Use::Guest, order)?;
        for k in 0..1u64 << order {
            let page = Mfn(first.0 + k);
            m.zero_page(page);
            c.frames.chain(page, &mut d.unmapped);
        }
        Ok(())
    }

    /// Gives a domain 2^`order` cleared pages at `gfn`; to a domain that is mapped at machine
    /// addresses, the very pages of these addresses, if they are its own.
    fn populate(&mut self, slot: Slot, gfn: Gfn, order: u8) -> Result<(), Errno> {
        let m = self.m;
        let pages = 1u64 << order;
        if gfn
            .0
            .checked_add(pages)
            .is_none_or(|e| e > crate::p2m::MAX_GFN)
        {
            return Err(Errno::EINVAL);
        }
        let (d, c) = self.hv.p2m_of(m, slot)?;
        if (0..pages).any(|k| d.p2m.lookup(m, Gfn(gfn.0 + k)).is_some()) {
            return Err(Errno::EEXIST);
        }
        let direct = d.direct_mapped;
        let mfn = if direct {
            let own = |k: u64| c.frames.lookup(Mfn(gfn.0 + k)) == Some((Use::Guest, slot));
            if !(0..pages).all(own) {
                return Err(Errno::EINVAL);
            }
            Mfn(gfn.0)
        } else {
            self.check_limit(slot, order)?;
            let mfn = self.hv.frames.alloc(slot, Use::Guest, order)?;
            (0..pages).for_each(|k| m.zero_page(Mfn(mfn.0 + k)));
            mfn
        };
        let (d, mut c) = self.hv.p2m_of(m, slot)?;
        let give_back = |c: &mut Ctx<'_, M>| {
            if !direct {
                (0..pages).for_each(|k| c.frames.put(Mfn(mfn.0 + k)));
            }
        };
        if u32::from(order) == BLOCK && gfn.0.is_multiple_of(pages) {
            match d.p2m.map(&mut c, gfn, mfn, order, Kind::Ram) {
                Ok(()) => return Ok(()),
                // A table is there from pages that were given back: go on by pages.
                Err(Errno::EEXIST) => {}
                Err(e) => {
                    give_back(&mut c);
                    return Err(e);
                }
            }
        }
        for k in 0..pages {
            let page = Mfn(mfn.0 + k);
            if let Err(e) = d.p2m.map(&mut c, Gfn(gfn.0 + k), page, 0, Kind::Ram) {
                for back in 0..k {
                    let _ = d.p2m.unmap(&mut c, Gfn(gfn.0 + back));
                }
                give_back(&mut c);
                return Err(e);
            }
        }
        Ok(())
    }

    /// Takes 2^`order` pages away, at most 2 MiB. Pages before one that is no memory are gone.
    fn decrease(&mut self, slot: Slot, gfn: Gfn, order: u32) -> Result<(), Errno> {
        let m = self.m;
        let (d, mut c) = self.hv.p2m_of(m, slot)?;
        d.extent = None;
        let direct = d.direct_mapped;
        let whole = d.p2m.lookup(m, gfn).filter(|x| {
            x.kind == Kind::Ram && u32::from(x.order) == order && gfn.0.is_multiple_of(1 << order)
        });
        if let Some(x) = whole {
            // A whole entry goes as such: nothing has to be broken.
            d.p2m.unmap_entry(&mut c, gfn)?;
            for k in 0..1u64 << order {
                if !direct {
                    c.frames.put(Mfn(x.mfn.0 + k));
                }
            }
            return Ok(());
        }
        for k in 0..1u64 << order {
            let at = Gfn(gfn.0.checked_add(k).ok_or(Errno::EINVAL)?);
            let d = self.hv.domains.get(slot).ok_or(Errno::ESRCH)?;
            if d.p2m.lookup(m, at).map(|x| x.kind) != Some(Kind::Ram) {
                return Err(Errno::EINVAL);
            }
            self.unmap_page(slot, at)?;
        }
        Ok(())
    }

    /// Takes what is mapped at `gfn` away, dropping the reference that the mapping held.
    fn unmap_page(&mut self, slot: Slot, gfn: Gfn) -> Result<(), Errno> {
        let m = self.m;
        let (d, mut c) = self.hv.p2m_of(m, slot)?;
        let found = d.p2m.lookup(m, gfn).ok_or(Errno::ENOENT)?;
        match found.kind {
            // These end by their own operations.
            Kind::Grant | Kind::GrantRo | Kind::Mmio => return Err(Errno::EINVAL),
            Kind::Ram | Kind::Foreign | Kind::Shared => {}
        }
        // What a call in slices did here so far, may be no more.
        d.extent = None;
        let direct = d.direct_mapped;
        let old = d.p2m.unmap(&mut c, gfn)?;
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
        d.p2m.map(&mut c, gfn, mfn, 0, Kind::Shared)
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

    fn map_grant_frame(&mut self, slot: Slot, idx: u64, gfn: Gfn) -> Result<(), Errno> {
        let (grants, mut host) = self.hv.grants_and_host(self.m);
        let mfn = grants.shared_frame(&mut host, slot, idx)?;
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
            let from: u64 = self.guest().get(x.idxs.wrapping_add(i * 8))?;
            let to: u64 = self.guest().get(x.gpfns.wrapping_add(i * 8))?;
            let rc = match self.map_foreign(target, source, Gfn(from), Gfn(to)) {
                Ok(()) => 0,
                Err(e) => -e.number(),
            };
            self.guest().put(x.errs.wrapping_add(i * 4), &rc)?;
            i += 1;
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
        self.hv.frames.get(page)?;
        let m = self.m;
        let (d, mut c) = self.hv.p2m_of(m, target)?;
        let r = d.p2m.map(&mut c, to, page, 0, Kind::Foreign);
        if r.is_err() {
            c.frames.put(page);
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
        for i in 0..u64::from(x.nr_frames) {
            let to: u64 = self.guest().get(x.frame_list.wrapping_add(i * 8))?;
            let (grants, mut host): (_, Host<'_, M>) = self.hv.grants_and_host(self.m);
            let index = x.frame.checked_add(i).ok_or(Errno::EINVAL)?;
            let page = grants.shared_frame(&mut host, source, index)?;
            self.install_foreign(self.who.slot, Gfn(to), page)?;
        }
        OK
    }
}
