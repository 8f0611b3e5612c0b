// SPDX-License-Identifier: MIT OR Apache-2.0
//! Off and reset on a board without PSCI: the power management block of Broadcom's BCM2711 and its
//! forebears, whose watchdog resets the chip. (Registers as in Linux' `bcm2835_wdt.c`.)
//!
//! There is no switch for the power. The firmware, started by the reset, reads the number of the
//! partition to boot from `RSTS`, and at 63 it halts: the board then draws little, until its power
//! goes off and on or, by the bootloader's default, pin 5 of the header is pulled low.

use crate::mmio::Mmio;

const RSTC: usize = 0x1c;
const RSTS: usize = 0x20;
const WDOG: usize = 0x24;

/// Every write has it in its top byte.
const PASSWORD: u32 = 0x5a00_0000;
/// What the watchdog does at its end: nothing, or a full reset.
const RSTC_WRCFG: u32 = 0x30;
const RSTC_FULL_RESET: u32 = 0x20;
/// Bits 0, 2, 4 to 10: the partition's number, 0 for the usual one. All set: 63.
const RSTS_PARTITION: u32 = 0x555;
/// Of 1/65536 s: about 150 us.
const TICKS: u32 = 10;

/// Resets the board whose block is mapped at `regs`, and has the firmware halt then if `off`.
/// Returns; the reset follows at once.
pub fn reset(regs: Mmio, off: bool) {
    let rsts = regs.read32(RSTS) & 0x00ff_ffff & !RSTS_PARTITION;
    let partition = if off { RSTS_PARTITION } else { 0 };
    regs.write32(RSTS, PASSWORD | rsts | partition);
    regs.write32(WDOG, PASSWORD | TICKS);
    let rstc = regs.read32(RSTC) & 0x00ff_ffff & !RSTC_WRCFG;
    regs.write32(RSTC, PASSWORD | rstc | RSTC_FULL_RESET);
}

/// Has the board reset unless this is called again within 15 seconds.
pub fn watch(regs: Mmio) {
    regs.write32(WDOG, PASSWORD | 15 << 16);
    let rstc = regs.read32(RSTC) & 0x00ff_ffff & !RSTC_WRCFG;
    regs.write32(RSTC, PASSWORD | rstc | RSTC_FULL_RESET);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_says_whether_the_firmware_halts() {
        let mut r = [0u32; 64];
        (r[RSTC / 4], r[RSTS / 4]) = (0x102 | 0x10, 0x1000 | 0x004);
        // SAFETY: the buffer outlives the use.
        let regs = unsafe { Mmio::new(r.as_mut_ptr() as usize) };
        reset(regs, true);
        assert_eq!(regs.read32(RSTS), 0x5a00_1555);
        assert_eq!(regs.read32(RSTC), 0x5a00_0122);
        assert_eq!(regs.read32(WDOG), 0x5a00_000a);
        reset(regs, false);
        assert_eq!(regs.read32(RSTS), 0x5a00_1000);
        watch(regs);
        assert_eq!(regs.read32(WDOG), 0x5a0f_0000);
        assert_eq!(regs.read32(RSTC), 0x5a00_0122);
    }
}
