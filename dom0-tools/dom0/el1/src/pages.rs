// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pages of the program's own that other domains may read and write.

use crate::shared::Shared;
use alloc::alloc::{alloc_zeroed, dealloc};
use core::alloc::Layout;
use core::ptr::NonNull;
use guest_abi::Gfn;
use guest_abi::mem::SharedMem;

/// Zeroed pages in one piece, aligned to their size of 4096 bytes, or `None`.
pub(crate) fn alloc_pages(pages: usize) -> Option<NonNull<u8>> {
    let layout = Layout::from_size_align(pages.checked_mul(4096)?, 4096).ok()?;
    if layout.size() == 0 {
        return None;
    }
    // SAFETY: the layout's size is not zero.
    NonNull::new(unsafe { alloc_zeroed(layout) })
}

/// # Safety
/// `p` is from [`alloc_pages`] with the same number, and is not used any more.
pub(crate) unsafe fn free_pages(p: NonNull<u8>, pages: usize) {
    if let Ok(layout) = Layout::from_size_align(pages * 4096, 4096) {
        // SAFETY: the caller's promise.
        unsafe { dealloc(p.as_ptr(), layout) }
    }
}

/// Zeroed pages from the heap, in one piece. They go back when this is dropped; by then no other domain may have
/// access to them.
pub struct Pages {
    start: NonNull<u8>,
    count: usize,
    shared: Shared,
}

impl Pages {
    /// So many pages, or `None` when there are none.
    #[must_use]
    pub fn new(count: usize) -> Option<Self> {
        let start = alloc_pages(count)?;
        Some(Self {
            start,
            count,
            shared: Shared::own(start, count),
        })
    }

    /// The frame of the page with this number, from 0 on.
    #[must_use]
    pub fn gfn(&self, index: usize) -> Gfn {
        Gfn::of(self.shared.addr() + index as u64 * 4096)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: from `alloc_pages` with this number; `shared` is private and goes with it.
        unsafe { free_pages(self.start, self.count) }
    }
}

/// As those of [`Shared`]: what goes beyond the end reads as zero and is not written.
impl SharedMem for Pages {
    fn load32(&self, offset: usize) -> u32 {
        self.shared.load32(offset)
    }
    fn store32(&self, offset: usize, value: u32) {
        self.shared.store32(offset, value);
    }
    fn fetch_and32(&self, offset: usize, bits: u32) -> u32 {
        self.shared.fetch_and32(offset, bits)
    }
    fn fetch_or32(&self, offset: usize, bits: u32) -> u32 {
        self.shared.fetch_or32(offset, bits)
    }
    fn compare_exchange32(&self, offset: usize, old: u32, new: u32) -> Result<u32, u32> {
        self.shared.compare_exchange32(offset, old, new)
    }
    fn read(&self, offset: usize, to: &mut [u8]) {
        self.shared.read(offset, to);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        self.shared.write(offset, from);
    }
}
