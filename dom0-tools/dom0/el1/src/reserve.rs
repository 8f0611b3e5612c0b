// SPDX-License-Identifier: MIT OR Apache-2.0
//! An allocator that keeps a piece of memory back for the moment when there is none left: a small request that fails
//! then is served from it, so that what has been begun can be ended, and nothing new is begun until it is there again.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use core::ptr::NonNull;

/// Larger requests do not get the reserve: those who make them can go without.
const SMALL: usize = 64 << 10;

/// An allocator with a reserve. One thread of control uses it at a time.
pub(crate) struct Reserve<A> {
    inner: A,
    kept: Cell<Option<(NonNull<u8>, Layout)>>,
    /// How often it was given away.
    used: Cell<u64>,
}

impl<A: GlobalAlloc> Reserve<A> {
    /// Nothing is kept yet.
    pub(crate) const fn new(inner: A) -> Self {
        Self {
            inner,
            kept: Cell::new(None),
            used: Cell::new(0),
        }
    }

    pub(crate) fn inner(&self) -> &A {
        &self.inner
    }

    /// Has `bytes` kept back, unless something is; whether it is so now.
    pub(crate) fn keep(&self, bytes: usize) -> bool {
        if self.kept.get().is_some() {
            return true;
        }
        let Ok(layout) = Layout::from_size_align(bytes.max(1), 4096) else {
            return false;
        };
        // SAFETY: the layout is not of size 0.
        let kept = NonNull::new(unsafe { self.inner.alloc(layout) });
        self.kept.set(kept.map(|at| (at, layout)));
        kept.is_some()
    }

    /// How often the reserve was given away.
    pub(crate) fn used(&self) -> u64 {
        self.used.get()
    }

    /// Gives the reserve back to the allocator, where that may help; whether it did.
    fn release(&self, size: usize) -> bool {
        if size > SMALL {
            return false;
        }
        let Some((at, layout)) = self.kept.take() else {
            return false;
        };
        self.used.set(self.used.get().wrapping_add(1));
        // SAFETY: it is from `keep`, with this layout, and nobody has it any more.
        unsafe { self.inner.dealloc(at.as_ptr(), layout) };
        true
    }
}

// SAFETY: every request goes to `A`'s own implementation, whose promises are what is asked for here; one that failed
// is made again, as if it had not been made.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Reserve<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the same one, here and below.
        let at = unsafe { self.inner.alloc(layout) };
        if !at.is_null() || !self.release(layout.size()) {
            return at;
        }
        // SAFETY: as above.
        unsafe { self.inner.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        let at = unsafe { self.inner.alloc_zeroed(layout) };
        if !at.is_null() || !self.release(layout.size()) {
            return at;
        }
        // SAFETY: as above.
        unsafe { self.inner.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { self.inner.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as above.
        let at = unsafe { self.inner.realloc(ptr, layout, new_size) };
        if !at.is_null() || !self.release(new_size) {
            return at;
        }
        // SAFETY: as above; a reallocation that failed left the old piece as it was.
        unsafe { self.inner.realloc(ptr, layout, new_size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::ptr::null_mut;
    use std::alloc::System;

    /// Has so many bytes to give.
    struct Small(Cell<usize>);

    // SAFETY: what it gives is the system's.
    unsafe impl GlobalAlloc for Small {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            let Some(left) = self.0.get().checked_sub(layout.size()) else {
                return null_mut();
            };
            self.0.set(left);
            // SAFETY: the caller's promise is the system's.
            unsafe { System.alloc(layout) }
        }
        unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
            self.0.set(self.0.get() + layout.size());
            // SAFETY: as above.
            unsafe { System.dealloc(ptr, layout) }
        }
    }

    #[test]
    fn what_was_begun_is_ended_from_the_reserve() {
        let heap = Reserve::new(Small(Cell::new(100 << 10)));
        assert!(heap.keep(40 << 10));
        let page = Layout::from_size_align(4096, 8).unwrap();
        let large = Layout::from_size_align(SMALL + 1, 8).unwrap();
        let mut got = Vec::new();
        for n in 0..25 {
            // SAFETY: no size is 0.
            unsafe {
                assert!(heap.alloc(large).is_null(), "the reserve is not for these");
                let at = heap.alloc(page);
                assert!(!at.is_null(), "after {n}");
                got.push(at);
            }
            assert_eq!(heap.used(), u64::from(n >= 15), "after {n}");
        }
        assert!(!heap.keep(40 << 10), "it is in use");
        // SAFETY: it is from `alloc`, and so is the rest.
        unsafe {
            assert!(heap.alloc(page).is_null());
            let grown = heap.realloc(got[0], page, 8192);
            assert!(grown.is_null(), "what failed is as it was");
            got.into_iter().for_each(|at| heap.dealloc(at, page));
        }
        assert!(heap.keep(40 << 10));
        assert_eq!(heap.used(), 1);
        heap.release(1);
    }
}
