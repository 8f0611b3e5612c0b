// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's small heap, for tables of domains; guest memory never comes from here.

use buddy_system_allocator::Heap;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use platform::lock::Lock;

struct Global(Lock<Heap<32>>);

#[global_allocator]
static HEAP: Global = Global(Lock::new(Heap::empty()));

// SAFETY: the buddy heap hands out disjoint blocks of the requested layout from memory that
// `init` gave it for ever; the lock makes it one caller's at a time.
unsafe impl GlobalAlloc for Global {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0
            .lock()
            .alloc(layout)
            .map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        if let Some(p) = NonNull::new(p) {
            // SAFETY: the caller hands back what `alloc` gave, with its layout.
            unsafe { self.0.lock().dealloc(p, layout) };
        }
    }
}

/// Bytes that are in use.
pub fn used() -> usize {
    HEAP.0.lock().stats_alloc_actual()
}

/// Gives the heap its memory.
///
/// # Safety
/// The range is mapped RAM that nothing else uses, ever.
pub unsafe fn init(start: usize, size: usize) {
    // SAFETY: the contract above.
    unsafe { HEAP.0.lock().init(start, size) };
}
