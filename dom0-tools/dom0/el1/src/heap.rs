// SPDX-License-Identifier: MIT OR Apache-2.0
//! The heap: all memory but the image, the device tree and the ramdisk.

use crate::reserve::Reserve;
use crate::{Global, LIMIT, machine};
use core::alloc::{GlobalAlloc, Layout};
use dtoolkit::fdt::Fdt;
use talc::TalcCell;
use talc::source::Manual;

struct Heap(Reserve<TalcCell<Manual>>);

// SAFETY: one CPU, no interrupt handlers: there is one thread of control.
unsafe impl Sync for Heap {}

// SAFETY: every request goes to `Reserve`'s own implementation.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the same one.
        unsafe { self.0.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { self.0.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as above.
        unsafe { self.0.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static HEAP: Heap = Heap(Reserve::new(TalcCell::new(Manual)));

static TOTAL: Global<usize> = Global::new(0);

/// Bytes that the heap has in all.
#[must_use]
pub fn total() -> usize {
    *TOTAL.lock()
}

/// Bytes that are in use.
#[must_use]
pub fn used() -> usize {
    HEAP.0.inner().counters().allocated_bytes
}

/// Bytes that are kept back, and as many more that are to be free before something new is begun for a guest.
fn reserve() -> usize {
    (total() / 32).clamp(256 << 10, 4 << 20)
}

/// Whether there is memory to begin something new for a guest: a request, a message, a frame. Who is told that there is
/// none comes again later. What has been begun is ended from the reserve, where there is nothing else.
#[must_use]
pub fn admits() -> bool {
    HEAP.0.keep(reserve()) && total().saturating_sub(used()) >= reserve()
}

/// How often the reserve had to be used.
#[must_use]
pub fn reserve_used() -> u64 {
    HEAP.0.used()
}

/// The address range of the image, its stack included.
fn image() -> (u64, u64) {
    unsafe extern "C" {
        static __image_start: u8;
        static __image_end: u8;
    }
    (
        &raw const __image_start as u64,
        &raw const __image_end as u64,
    )
}

pub(crate) fn init(tree: &Fdt<'_>, dtb: usize) {
    // Holes in memory, sorted.
    let mut holes = [(0u64, 0u64); 16];
    let mut n = 0;
    let mut hole = |start: u64, end: u64| {
        if n < holes.len() && end > start {
            holes[n] = (start & !0xfff, (end + 0xfff) & !0xfff);
            n += 1;
        }
    };
    let (start, end) = image();
    hole(start, end);
    hole(dtb as u64, dtb as u64 + tree.data().len() as u64);
    machine::reserved(tree, |start, len| hole(start, start.saturating_add(len)));
    holes[..n].sort_unstable();

    machine::memory(tree, |start, len| {
        let end = start.saturating_add(len).min(LIMIT);
        let mut at = start;
        let claim = |from: u64, to: u64| {
            if to > from && to - from >= 1 << 20 && from != 0 {
                // SAFETY: memory that the device tree gives to this program and that nothing else
                // in it uses: the holes are cut out.
                let claimed =
                    unsafe { HEAP.0.inner().claim(from as *mut u8, (to - from) as usize) };
                if claimed.is_some() {
                    *TOTAL.lock() += (to - from) as usize;
                }
            }
        };
        for &(from, to) in &holes[..n] {
            if to > at && from < end {
                claim(at, from);
                at = to.max(at);
            }
        }
        claim(at, end);
    });
    HEAP.0.keep(reserve());
}
