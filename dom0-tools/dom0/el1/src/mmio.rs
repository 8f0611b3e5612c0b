// SPDX-License-Identifier: MIT OR Apache-2.0
//! Device registers, by single loads and stores that a hypervisor can decode from the syndrome.

use core::arch::asm;

/// # Safety
/// `addr` is a device's 32-bit register, and reading it does no harm to memory safety.
pub unsafe fn read32(addr: u64) -> u32 {
    let v: u32;
    // SAFETY: the caller's promise.
    unsafe { asm!("ldr {:w}, [{}]", out(reg) v, in(reg) addr, options(nostack)) }
    v
}

/// # Safety
/// `addr` is a device's 32-bit register, and writing it does no harm to memory safety.
pub unsafe fn write32(addr: u64, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { asm!("str {:w}, [{}]", in(reg) value, in(reg) addr, options(nostack)) }
}

/// # Safety
/// `addr` is a device's 64-bit register, and writing it does no harm to memory safety.
pub unsafe fn write64(addr: u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("str {}, [{}]", in(reg) value, in(reg) addr, options(nostack)) }
}
