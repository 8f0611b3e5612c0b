// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtual counter and its timer (PPI 27).

use crate::Global;
use core::arch::asm;

/// The virtual timer's interrupt.
pub const INTID: u32 = 27;

static FREQUENCY: Global<u64> = Global::new(0);

pub(crate) fn init() {
    let hz: u64;
    // SAFETY: reads a register without side effects.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) hz, options(nomem, nostack)) }
    *FREQUENCY.lock() = if hz == 0 { 62_500_000 } else { hz };
}

/// Ticks of the counter per second.
#[must_use]
pub fn frequency() -> u64 {
    *FREQUENCY.lock()
}

/// The counter (`CNTVCT_EL0`).
#[must_use]
pub fn ticks() -> u64 {
    let t: u64;
    // SAFETY: reads a register; the barrier keeps it from being read early.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) t, options(nostack)) }
    t
}

/// Nanoseconds for a number of ticks.
#[must_use]
pub fn ticks_to_ns(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000_000 / u128::from(frequency())) as u64
}

/// Nanoseconds since the counter began.
#[must_use]
pub fn now_ns() -> u64 {
    ticks_to_ns(ticks())
}

/// Has the timer's interrupt come up at `at` (of [`now_ns`]), or never. It is level-triggered:
/// who handles it sets another time.
pub fn set_alarm(at: Option<u64>) {
    match at {
        Some(ns) => {
            let ticks = (u128::from(ns) * u128::from(frequency())).div_ceil(1_000_000_000) as u64;
            // SAFETY: programs this CPU's own timer, which nothing but this function uses.
            unsafe {
                asm!("msr cntv_cval_el0, {}", "msr cntv_ctl_el0, {}", "isb",
                     in(reg) ticks, in(reg) 1u64, options(nostack));
            }
        }
        // SAFETY: as above.
        None => unsafe { asm!("msr cntv_ctl_el0, {}", "isb", in(reg) 2u64, options(nostack)) },
    }
}
