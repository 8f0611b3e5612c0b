// SPDX-License-Identifier: MIT OR Apache-2.0
//! The heap as the balloon's memory.

use alloc::vec::Vec;
use el1::{heap, pages::Pages};
use guest_abi::Gfn;
use pv_frontends::balloon::Memory;

/// Bytes of the heap that the balloon leaves to the kernel.
const RESERVE: usize = 1 << 20;

/// Pages of the heap that are in the balloon.
#[derive(Default)]
pub struct Spare(Vec<Pages>);

impl Memory for Spare {
    fn take(&mut self, frames: &mut [Gfn]) -> usize {
        for (n, frame) in frames.iter_mut().enumerate() {
            let left = heap::total().saturating_sub(heap::used());
            let page = Pages::new(1).filter(|_| left > RESERVE);
            let Some(page) = page.filter(|_| self.0.try_reserve(1).is_ok()) else {
                return n;
            };
            *frame = page.gfn(0);
            self.0.push(page);
        }
        frames.len()
    }

    fn give(&mut self, frames: &[Gfn]) {
        self.0.retain(|page| !frames.contains(&page.gfn(0)));
    }
}
