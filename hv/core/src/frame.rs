// SPDX-License-Identifier: MIT OR Apache-2.0
//! Machine pages: who owns each, what it is used for, how many references keep it alive, and the
//! buddy allocator that hands them out.
//!
//! Twelve bytes of metadata stand for each 4 KiB page. A free block's head keeps its list links in
//! the two words that count references while the page is in use, so that allocation and freeing
//! need no further memory and take O(log n).

use crate::machine::{Cache, PhysMem};
use crate::types::{Errno, MAX_DOMAINS, Mfn, Slot};

/// The largest block: 2^18 pages are 1 GiB.
pub const MAX_ORDER: u8 = 18;
const NIL: u32 = u32::MAX;

/// What a page is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Use {
    /// Not RAM, or RAM that nobody may touch (firmware, the hypervisor itself).
    Reserved,
    /// In the allocator; the head of a free block, or inside one.
    Free,
    /// To be memory of a domain, but not scrubbed yet: nobody can name it.
    Dirty,
    /// Memory of a domain.
    Guest,
    /// A page of the hypervisor that a domain maps (shared info, grant frames).
    Shared,
    /// A stage-2 table.
    Table,
    /// A page of the hypervisor's alone: a domain's active grants and map entries.
    Private,
}

/// Metadata of one page. For [`Use::Free`] heads `a` and `b` are the list links; for pages in use
/// `a` counts references and `b` may link a chain (see [`Frames::chain`]).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Frame {
    a: u32,
    b: u32,
    owner: u8,
    usage: Use,
    order: u8,
    head: bool,
}

impl Frame {
    /// A page outside RAM, which every entry is until [`Frames::add_ram`].
    pub const RESERVED: Self = Self {
        a: 0,
        b: 0,
        owner: 0,
        usage: Use::Reserved,
        order: 0,
        head: false,
    };
}

/// 2^`order` pages as the allocator gives them: with whatever the last owner left in them. Only [`Frames`]
/// makes one, and what a domain may see is made of it by [`Frames::scrub`] alone.
#[derive(Debug)]
#[must_use = "pages that nobody frees are lost"]
pub struct Dirty {
    first: Mfn,
    order: u8,
    scrubbed: u32,
}

/// Pages of a block of an order, up to [`MAX_ORDER`].
const fn pages_of(order: u8) -> u64 {
    1u64.wrapping_shl(order as u32)
}

impl Dirty {
    /// Clears pages for stage-2 tables, which the hypervisor and the walks of CPUs see through caches
    /// (VTCR_EL2.IRGN0 and ORGN0), and nobody else.
    pub fn table<M: PhysMem>(self, m: &M) -> Mfn {
        for k in 0..1u64 << self.order {
            m.zero_page(self.first.plus(k));
        }
        self.first
    }
}

/// 2^`order` pages without a byte of anybody but their owner: fresh from [`Frames::scrub`], or in use
/// since then ([`Frames::known`]). What a domain's memory is mapped from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clean {
    first: Mfn,
    order: u8,
}

impl Clean {
    /// The first page.
    #[must_use]
    pub const fn mfn(self) -> Mfn {
        self.first
    }

    /// log2 of the pages.
    #[must_use]
    pub const fn order(self) -> u8 {
        self.order
    }

    /// Its blocks of 2^`order` pages; none that are larger than itself.
    pub fn blocks(self, order: u8) -> impl Iterator<Item = Self> {
        let n = (1u64 << self.order) >> order;
        (0..n).map(move |k| Self {
            first: self.first.plus(k << order),
            order,
        })
    }
}

/// All machine pages between the lowest and the highest RAM address.
pub struct Frames {
    base: u64,
    table: &'static mut [Frame],
    free_heads: [u32; MAX_ORDER as usize + 1],
    free_pages: u64,
    total_pages: u64,
    /// Pages per slot: guest memory (`tot_pages`). The last is [`NOBODY`]'s, as below.
    guest_pages: [u32; MAX_DOMAINS + 1],
    /// Pages per slot: shared pages, tables and private ones.
    hv_pages: [u32; MAX_DOMAINS + 1],
    /// Pages per slot that are free and kept for it.
    kept: [u32; MAX_DOMAINS + 1],
    /// All of these.
    all_kept: u64,
    /// A page that a domain could execute was freed since instruction caches were emptied: they may
    /// hold its instructions.
    executed: bool,
}

/// Who owns a page of a domain that is gone, while others hold references to it.
pub const NOBODY: Slot = Slot(MAX_DOMAINS as u8);

impl Frames {
    /// Takes charge of pages from machine frame `base` on, one for each entry of `table`; all are
    /// reserved until [`Frames::add_ram`] says otherwise.
    pub fn new(base: Mfn, table: &'static mut [Frame]) -> Self {
        table.fill(Frame::RESERVED);
        Self {
            base: base.0,
            table,
            free_heads: [NIL; MAX_ORDER as usize + 1],
            free_pages: 0,
            total_pages: 0,
            guest_pages: [0; MAX_DOMAINS + 1],
            hv_pages: [0; MAX_DOMAINS + 1],
            kept: [0; MAX_DOMAINS + 1],
            all_kept: 0,
            executed: true,
        }
    }

    /// Gives `pages` pages from `start` on to the allocator (at boot, or a boot module's memory
    /// when it is no longer needed).
    pub fn add_ram(&mut self, start: Mfn, pages: u64) {
        self.total_pages = self.total_pages.saturating_add(pages);
        let mut at = start.0;
        let end = start.0.saturating_add(pages);
        while at < end {
            let align = at.trailing_zeros().min(u32::from(MAX_ORDER)) as u8;
            let mut order = align;
            let left = end.saturating_sub(at);
            while order > 0 && pages_of(order) > left {
                order = order.saturating_sub(1);
            }
            if let Some(i) = self.index(Mfn(at)) {
                self.push_free(i, order);
                self.free_pages = self.free_pages.saturating_add(pages_of(order));
            }
            at = at.saturating_add(pages_of(order));
        }
    }

    /// Pages that anybody can allocate now: those that are free and kept for nobody.
    #[must_use]
    pub fn free_pages(&self) -> u64 {
        self.free_pages.saturating_sub(self.all_kept)
    }

    /// Pages that are free and kept for `slot`.
    #[must_use]
    pub fn kept(&self, slot: Slot) -> u32 {
        self.kept.get(slot.idx()).copied().unwrap_or(0)
    }

    /// Keeps `pages` more pages free for what the hypervisor needs on `slot`'s behalf: what is kept
    /// is to be had by [`Frames::alloc_kept`] whatever others use up.
    ///
    /// # Errors
    /// `ENOMEM` when there are not so many.
    pub fn keep(&mut self, slot: Slot, pages: u32) -> Result<(), Errno> {
        crate::room::may_fail()?;
        if u64::from(pages) > self.free_pages() {
            return Err(Errno::ENOMEM);
        }
        let k = self.kept.get_mut(slot.idx()).ok_or(Errno::ENOMEM)?;
        *k = k.checked_add(pages).ok_or(Errno::ENOMEM)?;
        self.all_kept = self.all_kept.saturating_add(u64::from(pages));
        Ok(())
    }

    /// Keeps `pages` pages less for `slot`, or all for `u32::MAX`.
    pub fn unkeep(&mut self, slot: Slot, pages: u32) {
        if let Some(k) = self.kept.get_mut(slot.idx()) {
            let less = pages.min(*k);
            *k = k.saturating_sub(less);
            self.all_kept = self.all_kept.saturating_sub(u64::from(less));
        }
    }

    /// Allocates one of the pages that are kept for `slot`, as [`Frames::alloc`] does.
    ///
    /// # Errors
    /// `ENOMEM` when none is kept any more.
    pub fn alloc_kept(&mut self, slot: Slot, usage: Use) -> Result<Dirty, Errno> {
        if self.kept(slot) == 0 {
            return Err(Errno::ENOMEM);
        }
        self.unkeep(slot, 1);
        let got = self.alloc(slot, usage, 0);
        if got.is_err() {
            // Cannot be but by injection: the page is one of those that were kept.
            self.keep_again(slot);
        }
        got
    }

    fn keep_again(&mut self, slot: Slot) {
        if let Some(k) = self.kept.get_mut(slot.idx()) {
            *k = k.saturating_add(1);
            self.all_kept = self.all_kept.saturating_add(1);
        }
    }

    /// Takes the pages that are left of a domain that is gone away from its slot, among `n` of the machine's from
    /// the `from`th on; where to go on, or `None` when none is left. Others hold references to them.
    /// `own` pages of the hypervisor's are still the domain's, tables all of them.
    pub fn disown(&mut self, slot: Slot, own: u32, from: u32, n: u32) -> Option<u32> {
        let left = |f: &Self| f.guest_pages(slot) != 0 || f.hv_pages(slot) > own;
        let end = from.saturating_add(n).min(self.table.len() as u32);
        for i in from..end {
            if !left(self) {
                return None;
            }
            let Some(f) = self.table.get_mut(i as usize) else {
                break;
            };
            if f.owner == slot.0 && matches!(f.usage, Use::Guest | Use::Shared) {
                f.owner = NOBODY.0;
                let usage = f.usage;
                for (who, more) in [(slot, u32::MAX), (NOBODY, 1)] {
                    if let Some(c) = self.account(who, usage) {
                        *c = c.wrapping_add(more);
                    }
                }
            }
        }
        (left(self) && (end as usize) < self.table.len()).then_some(end)
    }

    /// Pages that the allocator ever managed.
    #[must_use]
    pub fn total_pages(&self) -> u64 {
        self.total_pages
    }

    /// The highest machine frame.
    #[must_use]
    pub fn max_mfn(&self) -> Mfn {
        Mfn(self
            .base
            .saturating_add(self.table.len() as u64)
            .saturating_sub(1))
    }

    /// Pages of guest memory that `slot` owns.
    #[must_use]
    pub fn guest_pages(&self, slot: Slot) -> u32 {
        self.guest_pages.get(slot.idx()).copied().unwrap_or(0)
    }

    /// Pages that the hypervisor holds on `slot`'s behalf: shared pages, stage-2 tables, private ones.
    #[must_use]
    pub fn hv_pages(&self, slot: Slot) -> u32 {
        self.hv_pages.get(slot.idx()).copied().unwrap_or(0)
    }

    fn index(&self, mfn: Mfn) -> Option<u32> {
        let i = mfn.0.checked_sub(self.base)?;
        (i < self.table.len() as u64).then_some(i as u32)
    }

    fn frame(&self, i: u32) -> Frame {
        self.table
            .get(i as usize)
            .copied()
            .unwrap_or(Frame::RESERVED)
    }

    fn set(&mut self, i: u32, f: Frame) {
        if let Some(slot) = self.table.get_mut(i as usize) {
            *slot = f;
        }
    }

    fn push_free(&mut self, i: u32, order: u8) {
        let Some(head) = self.free_heads.get_mut(order as usize) else {
            return;
        };
        let next = core::mem::replace(head, i);
        self.set(
            i,
            Frame {
                a: NIL,
                b: next,
                owner: 0,
                usage: Use::Free,
                order,
                head: true,
            },
        );
        if let Some(n) = self.table.get_mut(next as usize) {
            n.a = i;
        }
    }

    fn unlink(&mut self, i: u32) {
        let f = self.frame(i);
        if let Some(n) = self.table.get_mut(f.b as usize) {
            n.a = f.a;
        }
        if let Some(p) = self.table.get_mut(f.a as usize) {
            p.b = f.b;
        } else if let Some(head) = self.free_heads.get_mut(f.order as usize) {
            *head = f.b;
        }
        if let Some(e) = self.table.get_mut(i as usize) {
            e.head = false;
        }
    }

    /// Allocates 2^`order` pages, aligned to their size, each with one reference.
    ///
    /// # Errors
    /// `ENOMEM` when no block of that size is free.
    pub fn alloc(&mut self, slot: Slot, usage: Use, order: u8) -> Result<Dirty, Errno> {
        crate::room::may_fail()?;
        if self.free_pages() < 1 << order {
            return Err(Errno::ENOMEM);
        }
        let mut have = order;
        let i = loop {
            let head = *self.free_heads.get(have as usize).ok_or(Errno::ENOMEM)?;
            if head != NIL {
                break head;
            }
            have = have.saturating_add(1);
        };
        self.unlink(i);
        while have > order {
            have = have.saturating_sub(1);
            self.push_free(i.wrapping_add(pages_of(have) as u32), have);
        }
        let pages = pages_of(order) as u32;
        let usage = match usage {
            Use::Guest => Use::Dirty,
            _ => usage,
        };
        for k in i..i.saturating_add(pages) {
            self.set(
                k,
                Frame {
                    a: 1,
                    b: 0,
                    owner: slot.0,
                    usage,
                    order: 0,
                    head: false,
                },
            );
        }
        self.free_pages = self.free_pages.saturating_sub(pages.into());
        if let Some(c) = self.account(slot, usage) {
            *c = c.saturating_add(pages);
        }
        Ok(Dirty {
            first: Mfn(self.base).plus(i.into()),
            order,
            scrubbed: 0,
        })
    }

    /// Makes pages fit for a domain: clears them and cleans that to the point of coherency, so that the
    /// domain sees nothing of the last owner past the caches either, and no late write-back takes away
    /// what it writes there (XSA-364); drops what instruction caches hold of the last owner's. Goes on
    /// until the meter is at `limit`, but for a page at least.
    ///
    /// # Errors
    /// What is not done yet, to be given in again.
    #[cold]
    pub fn scrub<M: PhysMem + Cache>(
        &mut self,
        m: &M,
        mut d: Dirty,
        limit: u32,
    ) -> Result<Clean, Dirty> {
        // Between this and the mapping nobody can fetch from there.
        if d.scrubbed == 0 && core::mem::take(&mut self.executed) {
            m.drop_instructions();
        }
        while d.scrubbed >> d.order == 0 {
            let page = d.first.plus(d.scrubbed.into());
            m.scrub_page(page);
            let entry = self
                .index(page)
                .and_then(|i| self.table.get_mut(i as usize));
            if let Some(f) = entry.filter(|f| f.usage == Use::Dirty) {
                f.usage = Use::Guest;
            }
            d.scrubbed = d.scrubbed.saturating_add(1);
            if m.spent() >= limit && d.scrubbed >> d.order == 0 {
                return Err(d);
            }
        }
        Ok(Clean {
            first: d.first,
            order: d.order,
        })
    }

    /// As [`Frames::scrub`], all at once.
    pub fn scrub_all<M: PhysMem + Cache>(&mut self, m: &M, mut d: Dirty) -> Clean {
        loop {
            match self.scrub(m, d, u32::MAX) {
                Ok(c) => return c,
                Err(rest) => d = rest,
            }
        }
    }

    /// Gives pages back that were not used.
    #[cold]
    pub fn discard(&mut self, d: Dirty) {
        self.put_block(d.first, d.order);
    }

    /// A page that is in use and that domains may see.
    ///
    /// # Errors
    /// `EINVAL` for all others.
    #[inline]
    pub fn known(&self, mfn: Mfn) -> Result<Clean, Errno> {
        if !self.is_guest_accessible(mfn) {
            return Err(Errno::EINVAL);
        }
        Ok(Clean {
            first: mfn,
            order: 0,
        })
    }

    /// 2^`order` pages that are all a domain's memory.
    #[must_use]
    pub fn owned(&self, slot: Slot, mfn: Mfn, order: u8) -> Option<Clean> {
        let end = mfn.0.checked_add(1 << order)?;
        let mut all = mfn.0..end;
        let own = all.all(|k| self.lookup(Mfn(k)) == Some((Use::Guest, slot)));
        own.then_some(Clean { first: mfn, order })
    }

    fn account(&mut self, slot: Slot, usage: Use) -> Option<&mut u32> {
        match usage {
            Use::Guest | Use::Dirty => self.guest_pages.get_mut(slot.idx()),
            _ => self.hv_pages.get_mut(slot.idx()),
        }
    }

    fn release(&mut self, i: u32, mut order: u8) {
        let f = self.frame(i);
        let pages = 1u32 << order;
        if let Some(c) = self.account(Slot(f.owner), f.usage) {
            *c = c.saturating_sub(pages);
        }
        self.executed |= f.usage == Use::Guest;
        self.free_pages = self.free_pages.saturating_add(pages.into());
        for k in 1..pages {
            self.set(
                i.wrapping_add(k),
                Frame {
                    usage: Use::Free,
                    ..Frame::RESERVED
                },
            );
        }
        let mut at = i;
        while order < MAX_ORDER {
            // Buddies are paired by machine frame number, not by table index.
            let buddy = Mfn(self.base).plus(at.into()).0 ^ pages_of(order);
            let Some(b) = self.index(Mfn(buddy)) else {
                break;
            };
            let other = self.frame(b);
            if !(other.head && other.usage == Use::Free && other.order == order) {
                break;
            }
            self.unlink(b);
            self.set(
                at.max(b),
                Frame {
                    usage: Use::Free,
                    ..Frame::RESERVED
                },
            );
            at = at.min(b);
            order = order.saturating_add(1);
        }
        self.push_free(at, order);
    }

    /// What a page is used for and by whom; `None` for addresses outside RAM.
    #[must_use]
    #[inline]
    pub fn lookup(&self, mfn: Mfn) -> Option<(Use, Slot)> {
        let f = self.frame(self.index(mfn)?);
        match f.usage {
            Use::Reserved | Use::Free => None,
            usage => Some((usage, Slot(f.owner))),
        }
    }

    /// Whether the allocator manages a page, or somebody has it of it.
    #[must_use]
    pub fn is_ram(&self, mfn: Mfn) -> bool {
        self.index(mfn)
            .is_some_and(|i| self.frame(i).usage != Use::Reserved)
    }

    /// Whether a page is memory that a guest may name: its own or another's guest memory, or a
    /// shared page, and not a table, free or outside RAM.
    #[must_use]
    #[inline]
    pub fn is_guest_accessible(&self, mfn: Mfn) -> bool {
        matches!(self.lookup(mfn), Some((Use::Guest | Use::Shared, _)))
    }

    /// Takes one more reference.
    ///
    /// # Errors
    /// `EINVAL` when the page is not in use, `EBUSY` when the count is at its limit.
    pub fn get(&mut self, mfn: Mfn) -> Result<Clean, Errno> {
        let i = self.index(mfn).ok_or(Errno::EINVAL)?;
        let f = self.table.get_mut(i as usize).ok_or(Errno::EINVAL)?;
        if !matches!(f.usage, Use::Guest | Use::Shared) {
            return Err(Errno::EINVAL);
        }
        f.a = f.a.checked_add(1).ok_or(Errno::EBUSY)?;
        Ok(Clean {
            first: mfn,
            order: 0,
        })
    }

    /// Drops a reference; the last one frees the page.
    pub fn put(&mut self, mfn: Mfn) {
        let Some(i) = self.index(mfn) else { return };
        let Some(f) = self.table.get_mut(i as usize) else {
            return;
        };
        if matches!(f.usage, Use::Reserved | Use::Free) || f.a == 0 {
            debug_assert!(false, "put of a page that is not in use");
            return;
        }
        f.a = f.a.saturating_sub(1);
        let lost = cfg!(feature = "planted-loss") && mfn.0.is_multiple_of(64);
        if f.a == 0 && !lost {
            self.release(i, 0);
        }
    }

    /// Drops a reference of each of 2^`order` pages, aligned to that; at once if they are the last ones
    /// of all.
    #[cold]
    pub fn put_block(&mut self, mfn: Mfn, order: u8) {
        let pages = 1u32 << order;
        if let Some(i) = self.index(mfn)
            && let Some(all) = self.table.get(i as usize..i.saturating_add(pages) as usize)
            && let Some(first) = all.first()
            && first.usage != Use::Reserved
            && all
                .iter()
                .all(|f| f.usage != Use::Free && (f.a, f.owner) == (1, first.owner))
        {
            self.release(i, order);
            return;
        }
        (0..u64::from(pages)).for_each(|k| self.put(mfn.plus(k)));
    }

    /// Puts pages at the head of a chain, for such that nothing else leads to and nobody sees. The links
    /// lie in the pages' entries: `b` of [`Frame`], unused otherwise.
    #[cold]
    pub fn chain(&mut self, d: Dirty, head: &mut Option<Mfn>) {
        for k in 0..1u64 << d.order {
            let next = head.map_or(NIL, |h| self.index(h).unwrap_or(NIL));
            let page = d.first.plus(k);
            let entry = self
                .index(page)
                .and_then(|i| self.table.get_mut(i as usize));
            if let Some(f) = entry {
                f.b = next;
                *head = Some(page);
            }
        }
    }

    /// Takes the page at the head of a chain off it.
    pub fn unchain(&mut self, head: &mut Option<Mfn>) -> Option<Mfn> {
        let first = (*head)?;
        let next = self.index(first).map_or(NIL, |i| self.frame(i).b);
        *head = (next != NIL).then(|| Mfn(self.base).plus(next.into()));
        Some(first)
    }

    /// References held on a page that is in use, 0 otherwise.
    #[must_use]
    pub fn refs(&self, mfn: Mfn) -> u32 {
        match self.lookup(mfn) {
            Some(_) => self.index(mfn).map_or(0, |i| self.frame(i).a),
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Pa;
    use proptest::prelude::*;

    fn frames(pages: usize) -> Frames {
        let table = std::vec![Frame::RESERVED; pages].leak();
        let mut f = Frames::new(Mfn(0x40003), table);
        f.add_ram(Mfn(0x40003), pages as u64);
        f
    }

    #[test]
    fn blocks_are_aligned_and_merge_again() {
        let mut f = frames(4096 + 5);
        let before = f.free_pages();
        let a = f.alloc(Slot(1), Use::Guest, 9).unwrap().first;
        assert_eq!(a.0 % 512, 0);
        assert_eq!(f.guest_pages(Slot(1)), 512);
        for k in 0..512 {
            f.put(Mfn(a.0 + k));
        }
        assert_eq!(f.free_pages(), before);
        assert_eq!(f.guest_pages(Slot(1)), 0);
        assert!(f.alloc(Slot(1), Use::Guest, 11).is_ok(), "buddies merged");
    }

    #[test]
    fn outside_ram_is_refused() {
        let mut f = frames(16);
        assert_eq!(f.get(Mfn(0)), Err(Errno::EINVAL));
        assert_eq!(f.get(Mfn(u64::MAX)), Err(Errno::EINVAL));
        assert_eq!(f.get(Mfn(0x40003)), Err(Errno::EINVAL), "a free page");
        assert_eq!(f.alloc(Slot(0), Use::Guest, 18).unwrap_err(), Errno::ENOMEM);
    }

    /// What is not scrubbed can be neither named nor referred to; a block is scrubbed in parts, and its
    /// pages come back as one.
    #[test]
    fn pages_are_nobodys_to_name_before_they_are_scrubbed() {
        use crate::machine::fake::FakeMem;
        let mut f = frames(4096);
        let m = FakeMem::new(0x4000_3000, 4096);
        let before = f.free_pages();
        let d = f.alloc(Slot(1), Use::Guest, 9).unwrap();
        let first = d.first;
        let hidden = |f: &mut Frames, k: u64| {
            let page = Mfn(first.0 + k);
            assert_eq!(f.lookup(page), Some((Use::Dirty, Slot(1))));
            assert!(!f.is_guest_accessible(page) && f.known(page).is_err());
            assert_eq!(f.get(page), Err(Errno::EINVAL));
        };
        hidden(&mut f, 0);
        let d = f.scrub(&m, d, 200 * 320).unwrap_err();
        hidden(&mut f, 500);
        assert_eq!(f.owned(Slot(1), first, 9), None);
        let c = f.scrub(&m, d, u32::MAX).unwrap();
        assert_eq!((c.mfn(), c.order()), (first, 9));
        assert_eq!(f.owned(Slot(1), first, 9), Some(c));
        assert_eq!(f.owned(Slot(2), first, 9), None);
        assert_eq!(f.known(Mfn(first.0 + 511)), Ok(c.blocks(0).last().unwrap()));
        assert!((0..512).all(|k| m.load64(Pa((first.0 + k) * 4096 + 8)) == 0));
        // One page has a reference more.
        let kept = Mfn(first.0 + 7);
        f.get(kept).unwrap();
        f.put_block(first, 9);
        assert_eq!((f.free_pages(), f.refs(kept)), (before - 1, 1));
        f.put(kept);
        assert_eq!((f.free_pages(), f.guest_pages(Slot(1))), (before, 0));
        let d = f.alloc(Slot(1), Use::Guest, 9).unwrap();
        let d = f.scrub(&m, d, 0).unwrap_err();
        f.discard(d);
        assert_eq!((f.free_pages(), f.guest_pages(Slot(1))), (before, 0));
        assert!(f.alloc(Slot(1), Use::Guest, 11).is_ok(), "buddies merged");
    }

    /// Instruction caches are emptied when, and only when, they may hold what a former owner executed.
    #[test]
    fn former_owners_instructions_are_dropped() {
        use crate::machine::fake::FakeMem;
        let mut f = frames(64);
        let m = FakeMem::new(0x4000_3000, 64);
        let one = |f: &mut Frames, usage| {
            let d = f.alloc(Slot(1), usage, 0).unwrap();
            (f.scrub_all(&m, d).mfn(), m.dropped())
        };
        let (a, n) = one(&mut f, Use::Guest);
        assert_eq!(n, 1, "what ran before the hypervisor");
        let (_, n) = one(&mut f, Use::Guest);
        assert_eq!(n, 1);
        let (s, _) = one(&mut f, Use::Shared);
        f.put(s);
        let (_, n) = one(&mut f, Use::Guest);
        assert_eq!(n, 1, "never executed");
        f.put(a);
        let (_, n) = one(&mut f, Use::Guest);
        assert_eq!(n, 2);
    }

    proptest! {
        #[test]
        fn never_hands_out_a_page_twice(ops in proptest::collection::vec((0u8..4, 0u8..7, any::<u8>()), 1..300)) {
            let mut f = frames(1000);
            let mem = crate::machine::fake::FakeMem::new(0x4000_3000, 1000);
            let total = f.free_pages();
            let mut held: Vec<(u64, u8)> = Vec::new();
            for (op, order, pick) in ops {
                if op < 2 {
                    if let Ok(d) = f.alloc(Slot(3), Use::Guest, order) {
                        let m = d.first;
                        f.scrub_all(&mem, d);
                        let end = m.0 + (1 << order);
                        for &(o, oo) in &held {
                            prop_assert!(end <= o || o + (1 << oo) <= m.0);
                        }
                        held.push((m.0, order));
                    }
                } else if !held.is_empty() {
                    let (m, o) = held.swap_remove(pick as usize % held.len());
                    for k in 0..1u64 << o {
                        if op == 3 {
                            f.get(Mfn(m + k)).unwrap();
                            f.put(Mfn(m + k));
                        }
                        f.put(Mfn(m + k));
                    }
                }
                let used: u64 = held.iter().map(|&(_, o)| 1u64 << o).sum();
                prop_assert_eq!(f.free_pages() + used, total);
                prop_assert_eq!(u64::from(f.guest_pages(Slot(3))), used);
            }
        }
    }
}
