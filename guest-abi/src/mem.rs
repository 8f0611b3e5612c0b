// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pages that a guest shares with the hypervisor or with another domain.
//!
//! Everything here that works on such pages ([`grants`](crate::grants), [`events`](crate::events),
//! [`shared_info`](crate::xen::SharedInfo), the rings of [`io`](crate::io)) reaches them through
//! [`SharedMem`]. A slice of [`AtomicU32`] is one, so a kernel need not implement the trait: a
//! [`SharedPage`] is a page of its own to share, and memory that it mapped elsewhere becomes a slice
//! in one line:
//!
//! ```
//! # use core::sync::atomic::AtomicU32;
//! use guest_abi::mem::SharedMem;
//!
//! /// # Safety
//! /// `addr` is page-aligned, mapped as normal write-back memory for ever, and nothing else of Rust's
//! /// refers to it.
//! unsafe fn pages(addr: usize, pages: usize) -> &'static [AtomicU32] {
//!     unsafe { core::slice::from_raw_parts(addr as *const AtomicU32, pages * 1024) }
//! }
//!
//! # static PAGE: guest_abi::mem::SharedPage = guest_abi::mem::SharedPage::new();
//! # let addr = (&raw const PAGE).expose_provenance();
//! let ring = unsafe { pages(addr, 1) };
//! ring.store32(8, 7);
//! assert_eq!(ring.load32(8), 7);
//! ```

use crate::{Gfn, PAGE_SIZE};
use core::cell::Cell;
use core::sync::atomic::{AtomicU32, Ordering};

/// Memory that another party may write at any time.
///
/// Offsets are in bytes; whoever uses the trait keeps to the size it was told, and words to multiples
/// of 4. Nothing is promised about concurrent writes but that bytes are read as some value. Words
/// have the byte order of the ABI, which is little-endian.
pub trait SharedMem {
    /// Reads a word, with acquire ordering: what the other end wrote before it stored the word is
    /// seen by reads after.
    fn load32(&self, offset: usize) -> u32;
    /// Writes a word, with release ordering: it is seen after all reads and writes before.
    fn store32(&self, offset: usize, value: u32);
    /// Clears the bits of a word that `bits` has clear, atomically and in one order with all other
    /// such operations. Returns what was there.
    fn fetch_and32(&self, offset: usize, bits: u32) -> u32;
    /// Sets bits of a word, as [`SharedMem::fetch_and32`].
    fn fetch_or32(&self, offset: usize, bits: u32) -> u32;
    /// Writes `new` if the word is `old`, as [`SharedMem::fetch_and32`].
    ///
    /// # Errors
    /// It was another: what was there.
    fn compare_exchange32(&self, offset: usize, old: u32, new: u32) -> Result<u32, u32>;
    /// Copies out; each byte is read once.
    fn read(&self, offset: usize, to: &mut [u8]);
    /// Copies in.
    fn write(&self, offset: usize, from: &[u8]);
}

impl<M: SharedMem + ?Sized> SharedMem for &M {
    fn load32(&self, offset: usize) -> u32 {
        (**self).load32(offset)
    }
    fn store32(&self, offset: usize, value: u32) {
        (**self).store32(offset, value);
    }
    fn fetch_and32(&self, offset: usize, bits: u32) -> u32 {
        (**self).fetch_and32(offset, bits)
    }
    fn fetch_or32(&self, offset: usize, bits: u32) -> u32 {
        (**self).fetch_or32(offset, bits)
    }
    fn compare_exchange32(&self, offset: usize, old: u32, new: u32) -> Result<u32, u32> {
        (**self).compare_exchange32(offset, old, new)
    }
    fn read(&self, offset: usize, to: &mut [u8]) {
        (**self).read(offset, to);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        (**self).write(offset, from);
    }
}

/// Pages as words. Panics on what [`SharedMem`] excludes: an offset outside, a word that is not
/// aligned.
///
/// [`SharedMem::write`] of a part of a word writes the word's other bytes back as it finds them.
impl SharedMem for [AtomicU32] {
    #[inline]
    fn load32(&self, offset: usize) -> u32 {
        word(self, offset).load(Ordering::Acquire)
    }
    #[inline]
    fn store32(&self, offset: usize, value: u32) {
        word(self, offset).store(value, Ordering::Release);
    }
    #[inline]
    fn fetch_and32(&self, offset: usize, bits: u32) -> u32 {
        word(self, offset).fetch_and(bits, Ordering::SeqCst)
    }
    #[inline]
    fn fetch_or32(&self, offset: usize, bits: u32) -> u32 {
        word(self, offset).fetch_or(bits, Ordering::SeqCst)
    }
    #[inline]
    fn compare_exchange32(&self, offset: usize, old: u32, new: u32) -> Result<u32, u32> {
        word(self, offset).compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
    }
    fn read(&self, offset: usize, to: &mut [u8]) {
        let mut at = offset;
        let mut to = to;
        while !to.is_empty() {
            let bytes = self[at / 4].load(Ordering::Relaxed).to_ne_bytes();
            let from = &bytes[at % 4..];
            let n = from.len().min(to.len());
            let (part, rest) = to.split_at_mut(n);
            part.copy_from_slice(&from[..n]);
            to = rest;
            at += n;
        }
    }
    fn write(&self, offset: usize, from: &[u8]) {
        let mut at = offset;
        let mut from = from;
        while !from.is_empty() {
            let word = &self[at / 4];
            let n = (4 - at % 4).min(from.len());
            let (part, rest) = from.split_at(n);
            let mut bytes = [0; 4];
            if n < 4 {
                bytes = word.load(Ordering::Relaxed).to_ne_bytes();
            }
            bytes[at % 4..][..n].copy_from_slice(part);
            word.store(u32::from_ne_bytes(bytes), Ordering::Relaxed);
            from = rest;
            at += n;
        }
    }
}

#[inline]
fn word(words: &[AtomicU32], offset: usize) -> &AtomicU32 {
    assert!(offset.is_multiple_of(4));
    &words[offset / 4]
}

/// Memory of one thread, for tests: both ends of a ring without a hypervisor. Panics on what
/// [`SharedMem`] excludes.
impl SharedMem for [Cell<u8>] {
    fn load32(&self, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(4));
        let mut b = [0; 4];
        self.read(offset, &mut b);
        u32::from_le_bytes(b)
    }
    fn store32(&self, offset: usize, value: u32) {
        assert!(offset.is_multiple_of(4));
        self.write(offset, &value.to_le_bytes());
    }
    fn fetch_and32(&self, offset: usize, bits: u32) -> u32 {
        let old = self.load32(offset);
        self.store32(offset, old & bits);
        old
    }
    fn fetch_or32(&self, offset: usize, bits: u32) -> u32 {
        let old = self.load32(offset);
        self.store32(offset, old | bits);
        old
    }
    fn compare_exchange32(&self, offset: usize, old: u32, new: u32) -> Result<u32, u32> {
        let was = self.load32(offset);
        if was != old {
            return Err(was);
        }
        self.store32(offset, new);
        Ok(was)
    }
    fn read(&self, offset: usize, to: &mut [u8]) {
        let n = to.len();
        for (to, from) in to.iter_mut().zip(&self[offset..][..n]) {
            *to = from.get();
        }
    }
    fn write(&self, offset: usize, from: &[u8]) {
        for (to, from) in self[offset..][..from.len()].iter().zip(from) {
            to.set(*from);
        }
    }
}

/// Memory whose other party acts before each of this party's accesses to a word, for tests.
#[cfg(test)]
pub(crate) struct Interfering<'m, F> {
    mem: &'m [Cell<u8>],
    act: core::cell::RefCell<F>,
}

#[cfg(test)]
impl<'m, F: FnMut()> Interfering<'m, F> {
    pub(crate) fn new(mem: &'m [Cell<u8>], act: F) -> Self {
        Self {
            mem,
            act: act.into(),
        }
    }

    fn act(&self) -> &'m [Cell<u8>] {
        (self.act.borrow_mut())();
        self.mem
    }
}

#[cfg(test)]
impl<F: FnMut()> SharedMem for Interfering<'_, F> {
    fn load32(&self, offset: usize) -> u32 {
        self.act().load32(offset)
    }
    fn store32(&self, offset: usize, value: u32) {
        self.act().store32(offset, value);
    }
    fn fetch_and32(&self, offset: usize, bits: u32) -> u32 {
        self.act().fetch_and32(offset, bits)
    }
    fn fetch_or32(&self, offset: usize, bits: u32) -> u32 {
        self.act().fetch_or32(offset, bits)
    }
    fn compare_exchange32(&self, offset: usize, old: u32, new: u32) -> Result<u32, u32> {
        self.act().compare_exchange32(offset, old, new)
    }
    fn read(&self, offset: usize, to: &mut [u8]) {
        self.act().read(offset, to);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        self.act().write(offset, from);
    }
}

/// A page of the guest's own, to be shared: put it into a `static`, and give its frame away.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct SharedPage([AtomicU32; PAGE_SIZE / 4]);

impl SharedPage {
    /// A page of zeros.
    #[must_use]
    pub const fn new() -> Self {
        Self([const { AtomicU32::new(0) }; PAGE_SIZE / 4])
    }

    /// Its address. Where guest physical and virtual addresses are the same,
    /// [`Gfn::of`](Gfn::of())`(page.addr())` is its frame.
    #[must_use]
    pub fn addr(&self) -> u64 {
        (&raw const *self).expose_provenance() as u64
    }

    /// Its words.
    #[must_use]
    pub fn words(&self) -> &[AtomicU32] {
        &self.0
    }

    /// The page and its frame, of a kernel whose virtual addresses are the guest physical ones.
    #[must_use]
    pub fn identity(&self) -> Page<&[AtomicU32]> {
        Page {
            mem: self.words(),
            gfn: Gfn::of(self.addr()),
        }
    }
}

impl Default for SharedPage {
    fn default() -> Self {
        Self::new()
    }
}

/// A page, and how it is reached: what the hypervisor is told is the frame, what the guest uses is
/// the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page<M> {
    /// The page's bytes; offset 0 is its first.
    pub mem: M,
    /// Its frame.
    pub gfn: Gfn,
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    proptest! {
        /// Words and bytes are the same as those of the simple memory.
        #[test]
        fn words_are_bytes(steps in prop::collection::vec((0usize..60, any::<[u8; 7]>(), 0usize..8, 0u8..6), 1..40)) {
            let words: vec::Vec<_> = (0..17).map(|_| AtomicU32::new(0)).collect();
            let bytes = vec![Cell::new(0u8); 68];
            let (a, b): (&[AtomicU32], &[Cell<u8>]) = (&words, &bytes);
            for (at, data, n, what) in steps {
                let value = u32::from_le_bytes([data[0], data[1], data[2], data[3]]);
                let w = at & !3;
                match what {
                    0 => { a.write(at, &data[..n.min(7)]); b.write(at, &data[..n.min(7)]); }
                    1 => { a.store32(w, value); b.store32(w, value); }
                    2 => prop_assert_eq!(a.fetch_and32(w, value), b.fetch_and32(w, value)),
                    3 => prop_assert_eq!(a.fetch_or32(w, value), b.fetch_or32(w, value)),
                    4 => prop_assert_eq!(a.compare_exchange32(w, value, 1), b.compare_exchange32(w, value, 1)),
                    _ => {
                        let old = b.load32(w);
                        prop_assert_eq!(a.compare_exchange32(w, old, value), b.compare_exchange32(w, old, value));
                    }
                }
                let (mut x, mut y) = ([0; 7], [0; 7]);
                a.read(at, &mut x);
                b.read(at, &mut y);
                prop_assert_eq!(x, y);
                prop_assert_eq!(a.load32(w), b.load32(w));
            }
        }
    }

    #[test]
    fn a_page_is_a_page() {
        let p = SharedPage::new();
        assert_eq!(p.addr() % 4096, 0);
        assert_eq!(size_of::<SharedPage>(), 4096);
        assert_eq!(p.identity().gfn.addr(), p.addr());
        p.words().store32(4092, 5);
        assert_eq!(p.words().load32(4092), 5);
    }
}
