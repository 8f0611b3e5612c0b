// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory that another domain writes at the same time: no reference to it is ever made.

use crate::{Global, LIMIT, pages};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Memory banks, where the heap is: no shared page may lie there.
static MEMORY: Global<Vec<(u64, u64)>> = Global::new(Vec::new());

pub(crate) fn init(memory: &[(u64, u64)]) {
    *MEMORY.lock() = memory.to_vec();
}

/// Whether an address is in a memory bank.
#[cfg(feature = "probe")]
pub(crate) fn is_own(at: u64) -> bool {
    MEMORY.lock().iter().any(|&(s, n)| at >= s && at - s < n)
}

/// A range of pages that other domains may write too. Offsets are in bytes from its start; what
/// goes beyond its end reads as zero and is not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    base: u64,
    len: usize,
}

impl Shared {
    /// The range of `pages` pages from guest frame `gfn`, or `None` if part of it is memory of
    /// this program's own, or not in the identity map.
    #[must_use]
    pub fn at(gfn: u64, pages: usize) -> Option<Self> {
        let base = gfn.checked_mul(4096)?;
        let len = pages.checked_mul(4096)?;
        let end = base.checked_add(len as u64)?;
        let own = MEMORY.lock().iter().any(|&(s, n)| base < s + n && end > s);
        (!own && base != 0 && end <= LIMIT).then_some(Self { base, len })
    }

    /// Zeroed pages of this program's own, in one piece, that are shared for ever (never freed);
    /// `None` when there is no memory.
    #[must_use]
    pub fn fresh(pages: usize) -> Option<Self> {
        Some(Self::own(pages::alloc_pages(pages)?, pages))
    }

    /// Pages of this program's own, from the heap, that nothing else in it uses as long as this is used.
    pub(crate) fn own(start: core::ptr::NonNull<u8>, pages: usize) -> Self {
        Self {
            base: start.as_ptr() as u64,
            len: pages * 4096,
        }
    }

    /// Its address, which is guest physical and virtual alike.
    #[must_use]
    pub fn addr(&self) -> u64 {
        self.base
    }

    /// Its length in bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    fn place<T>(&self, offset: usize) -> Option<*mut T> {
        let size = size_of::<T>();
        (offset.is_multiple_of(size) && offset.checked_add(size)? <= self.len)
            .then(|| (self.base + offset as u64) as *mut T)
    }

    /// A word as an atomic.
    #[must_use]
    pub fn atomic32(&self, offset: usize) -> Option<&AtomicU32> {
        // SAFETY: in range, aligned, mapped normal memory that Rust knows of by this type alone.
        self.place(offset)
            .map(|p| unsafe { AtomicU32::from_ptr(p) })
    }

    /// A double word as an atomic.
    #[must_use]
    pub fn atomic64(&self, offset: usize) -> Option<&AtomicU64> {
        // SAFETY: as `atomic32`.
        self.place(offset)
            .map(|p| unsafe { AtomicU64::from_ptr(p) })
    }

    /// A word, in one order with all other words.
    #[must_use]
    pub fn read32(&self, offset: usize) -> u32 {
        self.atomic32(offset)
            .map_or(0, |a| a.load(Ordering::SeqCst))
    }

    /// Sets a word, in one order with all other words, after all that was written before.
    pub fn write32(&self, offset: usize, value: u32) {
        if let Some(a) = self.atomic32(offset) {
            a.store(value, Ordering::SeqCst);
        }
    }

    /// The part of `len` bytes at `offset` that is in range.
    fn clip(&self, offset: usize, len: usize) -> usize {
        self.len.saturating_sub(offset).min(len)
    }

    /// Copies bytes out.
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        let n = self.clip(offset, out.len());
        if n < out.len() {
            out[n..].fill(0);
        }
        // SAFETY: in range of mapped memory; `out` is the caller's own. Whoever writes at the
        // same time makes the bytes arbitrary, which `u8` allows; the compiler knows nothing of
        // this memory and cannot see more than one access.
        unsafe {
            copy(
                (self.base as usize + offset) as *const u8,
                out.as_mut_ptr(),
                n,
            )
        }
    }

    /// Copies bytes in.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let n = self.clip(offset, bytes.len());
        // SAFETY: as `read`.
        unsafe { copy(bytes.as_ptr(), (self.base as usize + offset) as *mut u8, n) }
    }

    /// Clears bytes.
    pub fn zero(&self, offset: usize, len: usize) {
        let n = self.clip(offset, len);
        // SAFETY: as `write`.
        unsafe { core::ptr::write_bytes((self.base as usize + offset) as *mut u8, 0, n) }
    }

    /// A part of it, clipped to what there is.
    #[must_use]
    pub fn part(&self, offset: usize, len: usize) -> Self {
        let offset = offset.min(self.len);
        Self {
            base: self.base + offset as u64,
            len: self.clip(offset, len),
        }
    }
}

/// A copy that the compiler can neither split in two reads nor leave out. What is as short as a ring's entry goes by
/// words.
///
/// # Safety
/// As [`core::ptr::copy_nonoverlapping`].
#[inline(never)]
unsafe fn copy(from: *const u8, to: *mut u8, n: usize) {
    const SHORT: usize = 64;
    if n <= SHORT && (from.addr() | to.addr() | n) & 3 == 0 {
        for word in 0..n / 4 {
            // SAFETY: the caller's promise; both are aligned.
            unsafe {
                let value = from.cast::<u32>().add(word).read_volatile();
                to.cast::<u32>().add(word).write_volatile(value);
            }
        }
        return;
    }
    // SAFETY: the caller's promise.
    unsafe { core::ptr::copy_nonoverlapping(from, to, n) };
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
}

impl guest_abi::mem::SharedMem for Shared {
    fn load32(&self, offset: usize) -> u32 {
        self.read32(offset)
    }
    fn store32(&self, offset: usize, value: u32) {
        self.write32(offset, value);
    }
    fn fetch_and32(&self, offset: usize, bits: u32) -> u32 {
        self.atomic32(offset)
            .map_or(0, |a| a.fetch_and(bits, Ordering::SeqCst))
    }
    fn fetch_or32(&self, offset: usize, bits: u32) -> u32 {
        self.atomic32(offset)
            .map_or(0, |a| a.fetch_or(bits, Ordering::SeqCst))
    }
    fn compare_exchange32(&self, offset: usize, old: u32, new: u32) -> Result<u32, u32> {
        self.atomic32(offset).map_or(Err(0), |a| {
            a.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
        })
    }
    fn read(&self, offset: usize, to: &mut [u8]) {
        Self::read(self, offset, to);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        Self::write(self, offset, from);
    }
}
