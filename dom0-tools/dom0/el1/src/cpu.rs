// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions.

use core::arch::asm;

/// Sleeps until an interrupt is pending at this CPU, which stays masked: [`crate::gic::poll`]
/// takes it. Returns at once if one is pending already.
pub fn idle() {
    // SAFETY: waiting changes no state; the barrier has what was written before seen by then.
    unsafe { asm!("dsb sy", "wfi", options(nostack)) }
}

/// Whether an interrupt is pending at this CPU (`ISR_EL1`).
#[must_use]
pub fn interrupt_pending() -> bool {
    let isr: u64;
    // SAFETY: reads a register without side effects.
    unsafe { asm!("mrs {}, isr_el1", out(reg) isr, options(nostack)) }
    isr & 0xc0 != 0
}

/// A full barrier: what was written before is seen by everybody before what follows.
pub fn barrier() {
    // SAFETY: a barrier has no other effect.
    unsafe { asm!("dsb sy", options(nostack)) }
}

/// This CPU's affinity (`MPIDR_EL1`), bits 39:32 and 23:0.
#[must_use]
pub fn affinity() -> u64 {
    let mpidr: u64;
    // SAFETY: reads a register without side effects.
    unsafe { asm!("mrs {}, mpidr_el1", out(reg) mpidr, options(nomem, nostack)) }
    mpidr & 0xff_00ff_ffff
}

/// Does what no guest may: reads unmapped memory. For tests of what a crash looks like.
pub fn crash() -> ! {
    // SAFETY: the access is meant to fault, and a fault ends the program.
    unsafe { asm!("mov x0, #-8", "ldr x0, [x0]", "b .", options(noreturn)) }
}
