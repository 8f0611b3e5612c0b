// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bytes of the calling guest: an address that a guest names is a claim, checked at each use.

use crate::domain::Domains;
use crate::frame::Frames;
use crate::machine::{GuestVa, PhysMem};
use crate::p2m::P2m;
use crate::types::{Access, Errno, Gfn, Pa, Slot};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Copies from and to the virtual memory of the vcpu that makes the call.
pub struct Guest<'a, M> {
    /// The machine.
    pub m: &'a M,
    /// Page ownership, to refuse what is not RAM.
    pub frames: &'a Frames,
    /// Domains, for the caller's p2m.
    pub domains: &'a Domains,
    /// The caller.
    pub slot: Slot,
}

/// Where the guest's bytes were found last. Good as long as no page changes its place or its use.
#[derive(Default)]
pub struct Window {
    page: Option<(u64, Pa)>,
}

/// The pieces of a range of guest addresses that lie in one page each: where each begins, and its
/// bytes. What ends it is the number of bytes, wherever the range begins: one that goes on beyond the
/// last address goes on at 0, as the CPU's own arithmetic has it (and Xen's copies).
struct Pieces {
    va: u64,
    left: usize,
}

impl Pieces {
    #[inline]
    const fn of(va: u64, left: usize) -> Self {
        Self { va, left }
    }
}

impl Iterator for Pieces {
    type Item = (u64, usize);

    #[inline]
    fn next(&mut self) -> Option<(u64, usize)> {
        let va = self.va;
        let n = self.left.min(4096usize.wrapping_sub((va & 4095) as usize));
        self.va = va.wrapping_add(n as u64);
        self.left = self.left.saturating_sub(n);
        (n != 0).then_some((va, n))
    }
}

/// What stage 2 says of an address that stage 1 lets be written.
enum Stage2<'a> {
    /// It is there: this domain has no page that cannot be written.
    Writable(Pa),
    /// That is to be looked up.
    Look(&'a P2m, u64),
}

/// Where a guest physical address is, if it can be written.
#[cold]
fn stage2_writable<M: PhysMem>(m: &M, p2m: &P2m, ipa: u64) -> Option<Pa> {
    let map = p2m.lookup(m, Gfn::of(ipa))?;
    map.allows(Access::Write)
        .then(|| Pa(map.mfn.addr() | ipa & 4095))
}

impl<M: PhysMem + GuestVa> Guest<'_, M> {
    #[inline]
    fn place(&self, va: u64, access: Access) -> Result<Pa, Errno> {
        let pa = match access {
            Access::Read => self.m.readable(va),
            Access::Write => self.writable(va).and_then(|place| match place {
                Stage2::Writable(pa) => Some(pa),
                Stage2::Look(p2m, ipa) => stage2_writable(self.m, p2m, ipa),
            }),
        };
        let pa = pa.ok_or(Errno::EFAULT)?;
        if self.frames.is_guest_accessible(pa.mfn()) {
            Ok(pa)
        } else {
            Err(Errno::EFAULT)
        }
    }

    /// Where an address is that stage 1 lets the caller write.
    #[inline]
    fn writable(&self, va: u64) -> Option<Stage2<'_>> {
        let (ipa, pa) = self.m.stage1_writable(va)?;
        match self.domains.get(self.slot)?.p2m.with_read_only() {
            None => Some(Stage2::Writable(pa)),
            Some(p2m) => Some(Stage2::Look(p2m, ipa)),
        }
    }

    /// The place of bytes within one page, which nearly every structure is: kept apart as
    /// [`Guest::writable_at_once`] is.
    #[inline]
    fn readable_at_once(&self, va: u64, len: usize) -> Option<Pa> {
        if ((va & 4095) as usize).saturating_add(len) > 4096 {
            return None;
        }
        let pa = self.m.readable(va)?;
        self.frames.is_guest_accessible(pa.mfn()).then_some(pa)
    }

    /// The place of bytes within one page of a caller that has no page read-only, which is nearly every
    /// reply: kept apart, so that it saves no registers for the others.
    #[inline]
    fn writable_at_once(&self, va: u64, len: usize) -> Option<Pa> {
        if ((va & 4095) as usize).saturating_add(len) > 4096 {
            return None;
        }
        match self.writable(va)? {
            Stage2::Writable(pa) => self.frames.is_guest_accessible(pa.mfn()).then_some(pa),
            Stage2::Look(..) => None,
        }
    }

    /// Copies `buf.len()` bytes in.
    ///
    /// # Errors
    /// `EFAULT` where the guest itself could not read.
    pub fn read(&self, va: u64, buf: &mut [u8]) -> Result<(), Errno> {
        match self.readable_at_once(va, buf.len()) {
            Some(pa) => {
                self.m.read(pa, buf);
                Ok(())
            }
            None => self.read_as(va, buf, Access::Read),
        }
    }

    #[inline(never)]
    fn read_as(&self, va: u64, buf: &mut [u8], access: Access) -> Result<(), Errno> {
        let mut rest = buf;
        for (va, n) in Pieces::of(va, rest.len()) {
            let (now, later) = rest.split_at_mut_checked(n).ok_or(Errno::EFAULT)?;
            self.m.read(self.place(va, access)?, now);
            rest = later;
        }
        Ok(())
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// `EFAULT` where the guest itself could not write; bytes of earlier pages are then written.
    pub fn write(&self, va: u64, buf: &[u8]) -> Result<(), Errno> {
        match self.writable_at_once(va, buf.len()) {
            Some(pa) => {
                self.m.write(pa, buf);
                Ok(())
            }
            None => self.write_slowly(va, buf),
        }
    }

    #[inline(never)]
    fn write_slowly(&self, va: u64, buf: &[u8]) -> Result<(), Errno> {
        let mut rest = buf;
        for (va, n) in Pieces::of(va, rest.len()) {
            let (now, later) = rest.split_at_checked(n).ok_or(Errno::EFAULT)?;
            self.m.write(self.place(va, Access::Write)?, now);
            rest = later;
        }
        Ok(())
    }

    /// The place of bytes that the guest could write, if they are within a page.
    #[inline]
    fn place_by(&self, window: &mut Window, va: u64, len: usize) -> Result<Option<Pa>, Errno> {
        let (page, offset) = (va & !4095, va & 4095);
        if len > 4096usize.wrapping_sub(offset as usize) {
            return Ok(None);
        }
        let pa = match window.page {
            Some((seen, pa)) if seen == page => pa,
            _ => {
                let pa = self.place(page, Access::Write)?;
                window.page = Some((page, pa));
                pa
            }
        };
        Ok(Some(pa.add(offset)))
    }

    /// Reads an element of a list that is to be written too, once.
    ///
    /// # Errors
    /// `EFAULT` where the guest itself could not write.
    #[inline]
    pub fn get_by<T: FromBytes + IntoBytes>(
        &self,
        window: &mut Window,
        va: u64,
    ) -> Result<T, Errno> {
        let mut t = T::new_zeroed();
        match self.place_by(window, va, size_of::<T>())? {
            Some(pa) => self.m.read(pa, t.as_mut_bytes()),
            None => self.read_as(va, t.as_mut_bytes(), Access::Write)?,
        }
        Ok(t)
    }

    /// Writes to an element of a list.
    ///
    /// # Errors
    /// `EFAULT`.
    #[inline]
    pub fn put_by<T: IntoBytes + Immutable>(
        &self,
        window: &mut Window,
        va: u64,
        t: &T,
    ) -> Result<(), Errno> {
        match self.place_by(window, va, size_of::<T>())? {
            Some(pa) => self.m.write(pa, t.as_bytes()),
            None => self.write(va, t.as_bytes())?,
        }
        Ok(())
    }

    /// Reads a structure of the ABI, once.
    ///
    /// # Errors
    /// `EFAULT`.
    #[inline]
    pub fn get<T: FromBytes + IntoBytes>(&self, va: u64) -> Result<T, Errno> {
        let mut t = T::new_zeroed();
        self.read(va, t.as_mut_bytes())?;
        Ok(t)
    }

    /// Reads a structure of the ABI that is to be written too, once.
    ///
    /// # Errors
    /// `EFAULT` where the guest itself could not write.
    #[inline]
    pub fn get_writable<T: FromBytes + IntoBytes>(&self, va: u64) -> Result<T, Errno> {
        let mut t = T::new_zeroed();
        match self.writable_at_once(va, size_of::<T>()) {
            Some(pa) => self.m.read(pa, t.as_mut_bytes()),
            None => self.read_as(va, t.as_mut_bytes(), Access::Write)?,
        }
        Ok(t)
    }

    /// Writes a structure of the ABI; its types have no padding, so nothing else can leak.
    ///
    /// # Errors
    /// `EFAULT`.
    #[inline]
    pub fn put<T: IntoBytes + Immutable>(&self, va: u64, t: &T) -> Result<(), Errno> {
        self.write(va, t.as_bytes())
    }

    /// Whether the guest could write `len` bytes there.
    ///
    /// # Errors
    /// `EFAULT` if not.
    pub fn check_writable(&self, va: u64, len: usize) -> Result<(), Errno> {
        Pieces::of(va, len).try_for_each(|(va, _)| self.place(va, Access::Write).map(drop))
    }
}
