// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shared pages for tests.

use guest_abi::mem::SharedMem;
use std::cell::RefCell;

/// Pages that both ends of a test hold.
pub struct Mem(pub RefCell<Vec<u8>>);

impl Mem {
    pub fn new(bytes: usize) -> Self {
        Self(RefCell::new(vec![0; bytes]))
    }
}

impl SharedMem for Mem {
    fn load32(&self, offset: usize) -> u32 {
        let mut b = [0; 4];
        b.copy_from_slice(&self.0.borrow()[offset..offset + 4]);
        u32::from_le_bytes(b)
    }
    fn store32(&self, offset: usize, value: u32) {
        self.0.borrow_mut()[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }
    fn fetch_and32(&self, _: usize, _: u32) -> u32 {
        unreachable!("no ring uses it")
    }
    fn fetch_or32(&self, _: usize, _: u32) -> u32 {
        unreachable!("no ring uses it")
    }
    fn compare_exchange32(&self, _: usize, _: u32, _: u32) -> Result<u32, u32> {
        unreachable!("no ring uses it")
    }
    fn read(&self, offset: usize, to: &mut [u8]) {
        to.copy_from_slice(&self.0.borrow()[offset..offset + to.len()]);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        self.0.borrow_mut()[offset..offset + from.len()].copy_from_slice(from);
    }
}
