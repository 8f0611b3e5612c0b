// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's own grants: pages that it lets other domains map or copy.
//!
//! A [`GrantTable`] hands out references over the frames that the hypervisor shares with the guest,
//! and adds frames as they are needed. What it hands out is owned: a [`Grant`] of a page to a
//! domain, for reading or for writing too. [`GrantTable::end`] takes it back, and fails, with the
//! grant in the error, while the other domain still uses the page. A grant that is to go but is
//! still in use can wait ([`GrantTable::end_later`], [`GrantTable::sweep`]).
//!
//! Nothing here allocates and nothing is global: a kernel with several vcpus keeps the table behind
//! its own lock.
//!
//! **Dropping a [`Grant`] ends nothing.** The other domain keeps its access and the reference stays
//! taken; the page must then never be used for anything else. That is safe, and a leak.
//!
//! ```
//! # use guest_abi::{Errno, Hypercall, HypercallNr, Lent, call, grant_table::GnttabQuerySize};
//! # use zerocopy::{FromBytes, IntoBytes};
//! # struct Fake;
//! # impl Hypercall for Fake {
//! #     fn call(&self, nr: HypercallNr, args: [u64; 5], lent: &mut [Lent<'_>]) -> i64 {
//! #         if nr == HypercallNr::GrantTableOp {
//! #             let a = GnttabQuerySize { max_nr_frames: 4, ..Default::default() };
//! #             assert!(call::write(lent, args[1], a.as_bytes()));
//! #         }
//! #         0
//! #     }
//! # }
//! # let hypercall = Fake;
//! # static FRAMES: guest_abi::mem::SharedPage = guest_abi::mem::SharedPage::new();
//! use guest_abi::grants::{GrantTable, ReadWrite};
//! use guest_abi::{DomId, Gfn};
//!
//! // The window for the table's frames (`reg` of the `/hypervisor` node), which the kernel has
//! // mapped at `FRAMES`; room for as many references as one frame holds.
//! let window = Gfn::of(0x3800_0000);
//! let mut table = GrantTable::new(hypercall, FRAMES.words(), window, [0; 512])?;
//!
//! let ring = table.grant::<ReadWrite>(DomId(0), Gfn(0x40123))?;
//! assert_eq!(ring.gref().0, 8);
//! // … tell domain 0 the reference, work with it, tell it to stop …
//! match table.end(ring) {
//!     Ok(gfn) => assert_eq!(gfn, Gfn(0x40123)), // the page is the guest's alone again
//!     Err(in_use) => table.end_later(in_use.0).map_or((), |_| ()),
//! }
//! # Ok::<(), guest_abi::calls::grant::Error>(())
//! ```

use crate::grant_table::{NR_RESERVED_ENTRIES, V1_ENTRIES_PER_FRAME, gtf};
use crate::mem::SharedMem;
use crate::memory::MapSpace;
use crate::{DomId, Errno, Gfn, GrantRef, Hypercall, calls};
use core::fmt;
use core::marker::PhantomData;

/// What a [`Grant`] allows: [`ReadOnly`] or [`ReadWrite`].
pub trait Access: sealed::Access {}

mod sealed {
    pub trait Access {
        const FLAGS: u16;
    }
}

/// The other domain may read the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOnly {}

/// The other domain may read and write the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadWrite {}

impl Access for ReadOnly {}
impl sealed::Access for ReadOnly {
    const FLAGS: u16 = gtf::PERMIT_ACCESS | gtf::READONLY;
}

impl Access for ReadWrite {}
impl sealed::Access for ReadWrite {
    const FLAGS: u16 = gtf::PERMIT_ACCESS;
}

/// A page that another domain may use. It is ended by [`GrantTable::end`]; dropping it leaks the
/// reference and leaves the access.
#[must_use = "dropping a grant leaves the access and leaks the reference"]
#[derive(Debug, PartialEq, Eq)]
pub struct Grant<A> {
    gref: GrantRef,
    to: DomId,
    gfn: Gfn,
    access: PhantomData<A>,
}

impl<A> Grant<A> {
    /// What the other domain is told.
    #[must_use]
    pub const fn gref(&self) -> GrantRef {
        self.gref
    }

    /// The domain that may use the page.
    #[must_use]
    pub const fn to(&self) -> DomId {
        self.to
    }

    /// The page.
    #[must_use]
    pub const fn gfn(&self) -> Gfn {
        self.gfn
    }
}

/// A grant could not be ended because the other domain has the page mapped, or is copying. The
/// grant, which is as it was.
#[derive(Debug, PartialEq, Eq)]
pub struct InUse<A>(pub Grant<A>);

impl<A> fmt::Display for InUse<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "domain {} uses grant {}", self.0.to, self.0.gref)
    }
}

impl<A: fmt::Debug> core::error::Error for InUse<A> {}

/// Bytes of an entry, and of the frame number's place in it ([`GrantEntryV1`](crate::grant_table::GrantEntryV1)).
const ENTRY: usize = 8;
const FRAME: usize = 4;

/// How often an entry that changes under our hands is tried. Each failure is a mapping, unmapping or
/// copy of the other domain's in between.
const TRIES: u32 = 16;

/// No reference: the end of a list. The first references are reserved, so that it is none of ours.
const END: u32 = 0;

/// The references of the guest's own grants.
///
/// `M` is the memory of the table's frames, which follow one another in it. `S` has an entry for
/// each reference that there can be: an array, or a slice that the kernel lends (`&'static mut
/// [u32]`), of any contents.
#[derive(Debug)]
pub struct GrantTable<H, M, S> {
    h: H,
    mem: M,
    window: Gfn,
    /// The next reference of the list that a reference is in.
    next: S,
    free: u32,
    later: u32,
    /// Lengths of the lists.
    nr_free: u32,
    nr_later: u32,
    /// References that there are, and that there can be.
    refs: u32,
    max: u32,
}

impl<H: Hypercall, M: SharedMem, S: AsRef<[u32]> + AsMut<[u32]>> GrantTable<H, M, S> {
    /// Takes up the guest's table, of which there is one: its first frame is mapped at the frame
    /// `window` of the guest's, further ones follow when they are needed. `mem` reaches these frames
    /// and is as long as `next` needs, 4096 bytes for each 512 references begun.
    ///
    /// The first 8 references are the toolstack's. Entries that an earlier kernel left in use are
    /// left alone, other entries are cleared.
    ///
    /// # Errors
    /// Those of `GNTTABOP_query_size`; those of `XENMEM_add_to_physmap`; `ENOSPC` when `next` has no
    /// room for a reference that is not reserved.
    pub fn new(h: H, mem: M, window: Gfn, next: S) -> Result<Self, calls::grant::Error> {
        let (_, frames) = calls::grant::query_size(&h, DomId::SELF)?;
        let room = u32::try_from(next.as_ref().len()).unwrap_or(u32::MAX);
        let mut table = Self {
            h,
            mem,
            window,
            next,
            free: END,
            later: END,
            nr_free: 0,
            nr_later: 0,
            refs: 0,
            max: room.min(frames.saturating_mul(V1_ENTRIES_PER_FRAME)),
        };
        table.grow()?;
        Ok(table)
    }

    /// How many references can still be had, the table's growth included.
    #[must_use]
    pub fn available(&self) -> u32 {
        self.nr_free + (self.max - self.refs)
    }

    /// How many grants wait for their end ([`GrantTable::end_later`]).
    #[must_use]
    pub fn waiting(&self) -> u32 {
        self.nr_later
    }

    /// Lets a domain use a page. The page's contents are then whatever that domain makes of them
    /// (with [`ReadWrite`]) or sees (with either), from the first byte to the last.
    ///
    /// # Errors
    /// `ENOSPC` when no reference is left; `EOVERFLOW` for a frame whose number does not fit the
    /// entry's 32 bits; those of `XENMEM_add_to_physmap` when the table has to grow.
    pub fn grant<A: Access>(&mut self, to: DomId, gfn: Gfn) -> Result<Grant<A>, Errno> {
        let frame = u32::try_from(gfn.0).map_err(|_| Errno::EOVERFLOW)?;
        if self.free == END {
            self.grow()?;
        }
        let gref = self.free;
        self.free = self.pop(gref);
        self.nr_free -= 1;
        let at = gref as usize * ENTRY;
        self.mem.store32(at + FRAME, frame);
        // Flags and domain are one word, stored after the frame.
        self.mem
            .store32(at, u32::from(A::FLAGS) | u32::from(to.0) << 16);
        Ok(Grant {
            gref: GrantRef(gref),
            to,
            gfn,
            access: PhantomData,
        })
    }

    /// Whether the other domain has the page mapped, or is copying, at this moment.
    #[must_use]
    pub fn in_use<A>(&self, grant: &Grant<A>) -> bool {
        self.mem.load32(grant.gref.0 as usize * ENTRY) & IN_USE != 0
    }

    /// Ends a grant. The page, which is the guest's alone from then on.
    ///
    /// # Errors
    /// The grant, when the other domain uses the page.
    pub fn end<A>(&mut self, grant: Grant<A>) -> Result<Gfn, InUse<A>> {
        if !self.clear(grant.gref.0) {
            return Err(InUse(grant));
        }
        self.release(grant.gref.0);
        Ok(grant.gfn)
    }

    /// Ends a grant now and returns its page, or, when the other domain still uses it, keeps it for
    /// [`GrantTable::sweep`] and returns `None`. Until then the access lasts.
    pub fn end_later<A>(&mut self, grant: Grant<A>) -> Option<Gfn> {
        match self.end(grant) {
            Ok(gfn) => Some(gfn),
            Err(InUse(grant)) => {
                let gref = grant.gref.0;
                self.push(gref, self.later);
                self.later = gref;
                self.nr_later += 1;
                None
            }
        }
    }

    /// Tries once to end each grant that waits, and gives the pages of those that it ended to
    /// `ended`. To be called from time to time while [`GrantTable::waiting`] is not 0.
    pub fn sweep(&mut self, mut ended: impl FnMut(Gfn)) {
        let mut gref = core::mem::replace(&mut self.later, END);
        for _ in 0..core::mem::take(&mut self.nr_later) {
            let next = self.pop(gref);
            let frame = self.mem.load32(gref as usize * ENTRY + FRAME);
            if self.clear(gref) {
                self.release(gref);
                ended(Gfn(frame.into()));
            } else {
                self.push(gref, self.later);
                self.later = gref;
                self.nr_later += 1;
            }
            gref = next;
        }
    }

    /// To be called when the domain goes on as a new one, restored or moved
    /// ([`suspend`](calls::sched::suspend)): maps the frames again. No access is left of the grants from before,
    /// which are still to be ended.
    ///
    /// # Errors
    /// Those of `XENMEM_add_to_physmap`; it can be called again.
    pub fn resume(&mut self) -> Result<(), Errno> {
        for idx in 0..u64::from(self.refs.div_ceil(V1_ENTRIES_PER_FRAME)) {
            calls::memory::add_to_physmap(
                &self.h,
                DomId::SELF,
                MapSpace::GrantTable,
                idx,
                Gfn(self.window.0 + idx),
            )?;
        }
        Ok(())
    }

    /// Adds a frame to the table.
    fn grow(&mut self) -> Result<(), Errno> {
        let (from, to) = (
            self.refs,
            self.max.min(self.refs.saturating_add(V1_ENTRIES_PER_FRAME)),
        );
        if from.max(NR_RESERVED_ENTRIES) >= to {
            return Err(Errno::ENOSPC);
        }
        let idx = u64::from(from / V1_ENTRIES_PER_FRAME);
        calls::memory::add_to_physmap(
            &self.h,
            DomId::SELF,
            MapSpace::GrantTable,
            idx,
            Gfn(self.window.0 + idx),
        )?;
        self.refs = to;
        for gref in (from.max(NR_RESERVED_ENTRIES)..to).rev() {
            if self.clear(gref) {
                self.release(gref);
            }
        }
        if self.free == END {
            return Err(Errno::ENOSPC);
        }
        Ok(())
    }

    /// Makes an entry invalid unless it is in use.
    fn clear(&self, gref: u32) -> bool {
        let at = gref as usize * ENTRY;
        let mut word = self.mem.load32(at);
        for _ in 0..TRIES {
            if word & IN_USE != 0 {
                return false;
            }
            match self.mem.compare_exchange32(at, word, 0) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    fn release(&mut self, gref: u32) {
        self.push(gref, self.free);
        self.free = gref;
        self.nr_free += 1;
    }

    fn push(&mut self, gref: u32, next: u32) {
        if let Some(n) = self.next.as_mut().get_mut(gref as usize) {
            *n = next;
        }
    }

    fn pop(&self, gref: u32) -> u32 {
        self.next
            .as_ref()
            .get(gref as usize)
            .copied()
            .unwrap_or(END)
    }
}

/// Bits of an entry's first word that say that it is in use.
const IN_USE: u32 = (gtf::READING | gtf::WRITING) as u32;

#[cfg(test)]
mod tests;
