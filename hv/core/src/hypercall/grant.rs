// SPDX-License-Identifier: MIT OR Apache-2.0
//! `grant_table_op(op, array, count)` (`grant_table.h`): each element has its own status.

use super::{Answer, Call, OK, Reply, done};
use crate::grant::{CacheFlushOp, CopyOp, CopyPtr, Grants, MapOp, UnmapOp};
use crate::guest::{Guest, Window};
use crate::hypervisor::Host;
use crate::machine::{Machine, cost};
use crate::types::{Errno, GrantRef, Slot};
use guest_abi::grant_table::{
    GnttabCacheFlush, GnttabCopy, GnttabCopyPtr, GnttabGetStatusFrames, GnttabGetVersion,
    GnttabMapGrantRef, GnttabQuerySize, GnttabSetVersion, GnttabSetupTable, GnttabUnmapAndReplace,
    GnttabUnmapGrantRef, GrantOp, GrantStatus,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The bits of the operation's number that name it; those above carry a cache flush's progress
/// from slice to slice (`GNTTABOP_CMD_MASK` of Xen's continuations).
const CMD_MASK: u64 = (1 << PROGRESS_SHIFT) - 1;
const PROGRESS_SHIFT: u32 = 12;

impl<M: Machine> Call<'_, M> {
    #[inline(never)]
    pub(super) fn grant_table_op(&mut self, a: &mut [u64; 5]) -> Answer {
        let op = GrantOp::from_number(a[0] & CMD_MASK);
        let progress = a[0] as u32 >> PROGRESS_SHIFT;
        let (m, slot) = (self.m, self.slot());
        // The count is an unsigned int: the rest of the register says nothing.
        a[2] &= 0xffff_ffff;
        if (a[2] as i32) < 0 || (progress != 0 && op != Some(GrantOp::CacheFlush)) {
            return Err(Errno::EINVAL);
        }
        let op = op.ok_or(Errno::ENOSYS)?;
        match op {
            GrantOp::MapGrantRef => self.each(a, |c, e: &mut GnttabMapGrantRef| {
                let op = MapOp {
                    host_addr: e.host_addr,
                    flags: e.flags,
                    gref: e.gref,
                    dom: e.dom,
                };
                if c.hv.overdrawn(slot) {
                    e.status = GrantStatus::NoSpace.number();
                    return;
                }
                match c.with_host(|g, h| g.map(h, slot, &op)) {
                    Ok(mapped) => {
                        e.handle = mapped.handle;
                        e.dev_bus_addr = mapped.dev_bus_addr;
                        e.status = 0;
                    }
                    Err(s) => e.status = s.number(),
                }
            }),
            GrantOp::UnmapGrantRef => self.each(a, |c, e: &mut GnttabUnmapGrantRef| {
                let op = UnmapOp {
                    host_addr: e.host_addr,
                    handle: e.handle,
                };
                e.status = c.with_host(|g, h| g.unmap(h, slot, &op)).number();
            }),
            GrantOp::Copy => self.copy_list(a),
            GrantOp::SetupTable => {
                if a[2] != 1 {
                    return Err(Errno::EINVAL);
                }
                let mut e: GnttabSetupTable = self.guest().get(a[1])?;
                match self.target(e.dom) {
                    Ok(target) => {
                        if self.grow(target, e.nr_frames) == Ok(false) {
                            return Ok(Reply::Again);
                        }
                        let (grants, mut host) = self.hv.grants_and_host(m);
                        e.status = grants.setup_table(&mut host, target, e.nr_frames).number();
                        if e.status == 0 && self.list_frames(target, &e).is_err() {
                            e.status = GrantStatus::BadVirtAddr.number();
                        }
                    }
                    Err(err) => e.status = status_of(err),
                }
                self.guest().put(a[1], &e)?;
                OK
            }
            GrantOp::QuerySize => {
                if a[2] != 1 {
                    return Err(Errno::EINVAL);
                }
                let mut e: GnttabQuerySize = self.guest().get(a[1])?;
                match self.target(e.dom) {
                    Ok(target) => match self.hv.grants.query_size(target) {
                        Ok((now, max)) => {
                            e.nr_frames = now;
                            e.max_nr_frames = max;
                            e.status = 0;
                        }
                        Err(s) => e.status = s.number(),
                    },
                    Err(err) => e.status = status_of(err),
                }
                self.guest().put(a[1], &e)?;
                OK
            }
            GrantOp::SetVersion => {
                let mut e: GnttabSetVersion = self.guest().get(a[1])?;
                let answer = Grants::set_version(e.version);
                // Told in any case.
                e.version = Grants::get_version();
                self.guest().put(a[1], &e)?;
                answer.and(OK)
            }
            GrantOp::GetVersion => {
                let mut e: GnttabGetVersion = self.guest().get(a[1])?;
                self.target(e.dom)?;
                e.version = 1;
                self.guest().put(a[1], &e)?;
                OK
            }
            GrantOp::SwapGrantRef => self.each(a, |c, e: &mut [u32; 3]| {
                let (x, y) = (GrantRef(e[0]), GrantRef(e[1]));
                let s = c.with_host(|g, h| g.swap_grant_ref(h, slot, x, y));
                e[2] = u32::from(s.number() as u16);
            }),
            GrantOp::CacheFlush => self.cache_flush_list(a, progress),
            GrantOp::Transfer => Err(Errno::EOPNOTSUPP),
            GrantOp::UnmapAndReplace => self.each(a, |_, e: &mut GnttabUnmapAndReplace| {
                e.status = Grants::unmap_and_replace().number();
            }),
            GrantOp::GetStatusFrames => {
                if a[2] != 1 {
                    return Err(Errno::EINVAL);
                }
                let mut e: GnttabGetStatusFrames = self.guest().get(a[1])?;
                e.status = match self.target(e.dom) {
                    Ok(_) => Grants::get_status_frames(e.nr_frames).number(),
                    Err(err) => status_of(err),
                };
                self.guest().put(a[1], &e)?;
                OK
            }
            GrantOp::DumpTable => Err(Errno::ENOSYS),
        }
    }

    /// Copies as the list at `a[1]` says, a batch at a time. A copy moves no page, so what stands behind
    /// the list's addresses and the frames is looked up once in a batch; a grant is looked at anew each
    /// time, as its granter may take it back meanwhile.
    fn copy_list(&mut self, a: &mut [u64; 5]) -> Answer {
        const STATUS: u64 = core::mem::offset_of!(GnttabCopy, status) as u64;
        let (slot, end_of_slice) = (self.slot(), self.slice());
        let (grants, host) = self.hv.grants_and_host(self.m);
        let guest = Guest {
            m: self.m,
            frames: &*host.frames,
            domains: &*host.domains,
            slot,
        };
        let mut list = Window::default();
        while a[2] != 0 {
            self.m.spend(cost::GRANT);
            let e: GnttabCopy = guest.get_by(&mut list, a[1])?;
            let end = |p: &GnttabCopyPtr| CopyPtr {
                frame: p.u,
                domid: p.domid,
                offset: p.offset,
            };
            let op = CopyOp {
                source: end(&e.source),
                dest: end(&e.dest),
                len: e.len,
                flags: e.flags,
            };
            let status = grants.copy(&host, slot, &op).number();
            let at = a[1].wrapping_add(STATUS);
            guest.put_by(&mut list, at, &status)?;
            a[1] = a[1].wrapping_add(size_of::<GnttabCopy>() as u64);
            a[2] = a[2].saturating_sub(1);
            if a[2] != 0 && self.m.spent() >= end_of_slice {
                return Ok(Reply::Again);
            }
        }
        OK
    }

    /// Makes a domain's table larger as long as the entry lasts: false when there is more to make.
    ///
    /// # Errors
    /// What the table says of a frame that cannot be.
    pub(super) fn grow(&mut self, target: Slot, frames: u32) -> Result<bool, Errno> {
        loop {
            let have = self.hv.grants.usage(target).shared_frames;
            let next = have.saturating_add(1);
            if frames <= next {
                return Ok(true);
            }
            if self.used_up() {
                return Ok(false);
            }
            let m = self.m;
            m.spend(cost::GROW);
            let (grants, mut host) = self.hv.grants_and_host(m);
            grants.grow(&mut host, target, next)?;
        }
    }

    /// Writes where the domain has its shared frames.
    fn list_frames(&self, target: Slot, e: &GnttabSetupTable) -> Result<(), Errno> {
        for i in 0..e.nr_frames {
            let gfn = self.hv.grants.shared_gfn(target, i);
            let at = e.frame_list.wrapping_add(u64::from(i) * 8);
            self.guest().put(at, &gfn)?;
        }
        Ok(())
    }

    /// Maintains caches over the pages of the list at `a[1]`; the first that cannot be had ends it.
    /// `cursor` is how far the search for the first element's grant was.
    fn cache_flush_list(&mut self, a: &mut [u64; 5], mut cursor: u32) -> Answer {
        let slot = self.slot();
        while a[2] != 0 {
            let e: GnttabCacheFlush = self.guest().get(a[1])?;
            let op = CacheFlushOp {
                dev_bus_addr: e.a,
                offset: e.offset,
                length: e.length,
                op: e.op,
            };
            let found = self.with_host(|g, h| g.cache_flush(h, slot, &op, &mut cursor))?;
            if found {
                cursor = 0;
                a[1] = a[1].wrapping_add(size_of::<GnttabCacheFlush>() as u64);
                a[2] = a[2].saturating_sub(1);
            }
            if a[2] != 0 && self.used_up() {
                a[0] = GrantOp::CacheFlush.number() | (u64::from(cursor) << PROGRESS_SHIFT);
                return Ok(Reply::Again);
            }
        }
        OK
    }

    fn with_host<R>(&mut self, f: impl FnOnce(&mut Grants, &mut Host<'_, M>) -> R) -> R {
        let (grants, mut host) = self.hv.grants_and_host(self.m);
        f(grants, &mut host)
    }

    /// Runs an operation over the array at `a[1]`, `a[2]` long, a batch at a time.
    fn each<T: FromBytes + IntoBytes + Immutable>(
        &mut self,
        a: &mut [u64; 5],
        mut f: impl FnMut(&mut Self, &mut T),
    ) -> Answer {
        while a[2] != 0 {
            self.m.spend(cost::GRANT);
            let mut e: T = self.guest().get_writable(a[1])?;
            f(self, &mut e);
            self.guest().put(a[1], &e)?;
            a[1] = a[1].wrapping_add(size_of::<T>() as u64);
            a[2] = a[2].saturating_sub(1);
            if a[2] != 0 && self.used_up() {
                return Ok(Reply::Again);
            }
        }
        done(0i64)
    }
}

fn status_of(e: Errno) -> i16 {
    match e {
        Errno::ESRCH => GrantStatus::BadDomain.number(),
        _ => GrantStatus::PermissionDenied.number(),
    }
}
