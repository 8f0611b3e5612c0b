// SPDX-License-Identifier: MIT OR Apache-2.0
//! Generated instructions: system registers of every encoding, and whatever else may trap.

use crate::scene::evil;
use crate::{Rng, Scene};

/// Instructions of a run, at most.
pub const MOST: usize = 8;

/// Where instructions are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// EL1, on EL0's stack pointer.
    El1,
    /// EL0.
    El0,
    /// AArch32 at EL0.
    A32,
    /// AArch32 at EL0, Thumb.
    T32,
}

/// A piece of code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where it is executed.
    pub level: Level,
    words: [u32; MOST],
    len: usize,
    /// x0 to x30.
    pub x: [u64; 31],
    /// Bits of PSTATE that are set beside the mode: flags, mask bits, AArch32's IT bits.
    pub pstate: u64,
}

impl Run {
    /// Its words; what comes after them in memory is to be a trap.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        self.words.get(..self.len).unwrap_or_default()
    }
}

/// Encodings that EL1 does not write: the vcpu would be lost, with nothing learned (op0, op1, CRn, CRm, op2; the
/// translation regime, the vectors, and the stack pointer's choice).
fn kept(encoding: u32) -> bool {
    let at = |op0: u32, op1: u32, crn: u32, crm: u32, op2: u32| {
        op0 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5
    };
    let of = encoding & 0x1f_ffe0;
    // SCTLR, ACTLR and CPACR are 1.0; TTBR0, TTBR1, TCR and their like 2.0; MAIR 10.2; VBAR 12.0; all with op1 0, or
    // 5 where they go by another name.
    let family = of & !0xe0;
    [0, 5].into_iter().any(|op1| {
        family == at(3, op1, 1, 0, 0)
            || family == at(3, op1, 2, 0, 0)
            || family == at(3, op1, 10, 2, 0)
            || family == at(3, op1, 10, 3, 0)
            || of == at(3, op1, 12, 0, 0)
    }) || of == at(3, 0, 4, 2, 0)
}

/// `mrs`, `msr` or a system instruction, of any encoding or of a family that is known to be something.
fn system(r: &mut Rng, level: Level) -> u32 {
    let rt = r.below(32) as u32;
    let field = |r: &mut Rng, n: u64| r.below(n) as u32;
    let op0 = match r.below(8) {
        0 => 1,
        1 | 2 => 2,
        _ => 3,
    };
    let (op1, crn) = match r.below(8) {
        0 => (field(r, 8), field(r, 16)),
        1 => (
            0,
            r.pick(&[0, 1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14]) as u32,
        ),
        2 => (3, r.pick(&[0, 2, 4, 9, 13, 14]) as u32),
        3 => (0, 12),
        4 => (3, 14),
        5 => (3, 9),
        6 => (0, 0),
        _ => (field(r, 8), 11 + field(r, 5)),
    };
    let crm = field(r, 16);
    let op2 = field(r, 8);
    let read = r.one_in(2);
    let word = 0xd500_0000
        | u32::from(read) << 21
        | op0 << 19
        | op1 << 16
        | crn << 12
        | crm << 8
        | op2 << 5
        | rt;
    if !read && level == Level::El1 && kept(word) {
        return word | 1 << 21;
    }
    // ICC_BPR1_EL1: QEMU 10.0.2 keeps the lowest three bits of a value that it compared whole with the least one, and
    // ends with an assertion when they are 0 (`icv_gprio_mask`). Only xzr is written.
    if word & !0x1f == 0xd518_cc60 {
        return word | 31;
    }
    word
}

fn a64(r: &mut Rng, level: Level) -> u32 {
    let n = r.below(31) as u32;
    let t = r.below(31) as u32;
    match r.below(32) {
        0..20 => system(r, level),
        // Loads and stores of forms that the syndrome does not describe, or does: pair, pre- and post-indexed, exclusive,
        // atomic, of vectors, of literals, signed.
        20..23 => {
            let base = r.pick(&[
                0x2940_0000,
                0xa940_0000,
                0xa900_0000,
                0x2900_0000,
                0xf840_8c00,
                0xb800_8400,
                0x3840_1c00,
                0x885f_7c00,
                0xc85f_fc00,
                0x8800_7c00,
                0xb820_0000,
                0xf8e0_8000,
                0x3dc0_0000,
                0x3d80_0000,
                0x4c40_7000,
                0x3980_0000,
                0x7980_0000,
                0xb980_0000,
                0x1c00_0000,
                0xd5_0000,
                0xf980_0000,
                0xb860_8000,
            ]) as u32;
            base | n << 5 | t
        }
        // dc zva, dc civac, dc cvac, dc ivac, ic ivau, at s1e1r, at s1e1w, at s12e1r by an address of a device's.
        23 => {
            r.pick(&[
                0xd50b_7420,
                0xd50b_7e20,
                0xd50b_7a20,
                0xd508_7620,
                0xd50b_7520,
                0xd508_7800,
                0xd508_7820,
                0xd50c_7880,
            ]) as u32
                | t
        }
        // hvc, smc, svc, brk, udf, eret, hlt, dcps1.
        24 => 0xd400_0002 | (r.below(0x1_0000) as u32) << 5,
        25 => 0xd400_0003 | (r.below(4) as u32) << 5,
        26 => r.pick(&[
            0xd400_0001,
            0xd420_0000,
            0x0000_0000,
            0xd440_0000,
            0xd4a0_0001,
            0xd4a0_0002,
            0xd69f_03e0,
        ]) as u32,
        // Hints, among them wfe and wfi, and barriers.
        27 => 0xd503_201f | (r.below(128) as u32) << 5,
        28 => 0xd503_301f | (r.below(16) as u32) << 8 | (r.below(8) as u32) << 5,
        // wfet, wfit.
        29 => 0xd503_1000 | (r.below(2) as u32) << 5 | t,
        30 => 0x9100_0400 | n << 5 | t,
        _ => {
            // At EL1 anything could be done to the program itself.
            let word = r.draw() as u32;
            if level == Level::El1 && !r.one_in(16) {
                0x1e60_4000 | n << 5 | t
            } else {
                word
            }
        }
    }
}

/// Not with the program counter as a result or as a base with write-back: that is unpredictable, and QEMU 10.0.2 ends
/// with an assertion (`gen_pc_plus_diff`).
fn a32(r: &mut Rng) -> u32 {
    let cond = if r.one_in(2) { 0xe } else { r.below(15) as u32 };
    let f = |r: &mut Rng, n: u64| r.below(n) as u32;
    let cp = if r.one_in(4) { 14 } else { 15 };
    let body = match r.below(16) {
        // mcr, mrc
        0..7 => {
            0x0e00_0010
                | f(r, 8) << 21
                | f(r, 2) << 20
                | f(r, 16) << 16
                | f(r, 16) << 12
                | cp << 8
                | f(r, 8) << 5
                | f(r, 16)
        }
        // mcrr, mrrc
        7..9 => {
            0x0c40_0000
                | f(r, 2) << 20
                | f(r, 15) << 16
                | f(r, 15) << 12
                | cp << 8
                | f(r, 256) & 0xff
        }
        // ldc, stc
        9 => 0x0d80_0000 | f(r, 2) << 20 | f(r, 16) << 16 | f(r, 16) << 12 | cp << 8 | f(r, 256),
        // wfe, wfi, sev
        10 => 0x0320_f000 | f(r, 6),
        // svc, bkpt
        11 => 0x0f00_0000 | f(r, 1 << 16),
        12 => return 0xe120_0070 | f(r, 16),
        // ldr, str, ldm with write-back
        13 => 0x0490_0004 | f(r, 2) << 20 | f(r, 15) << 16 | f(r, 15) << 12,
        14 => 0x08b0_0000 | f(r, 2) << 20 | f(r, 15) << 16 | f(r, 1 << 15),
        // hvc, smc, vmrs
        _ => r.pick(&[0x0140_0070, 0x0160_0070, 0x0ef0_0a10, 0x0ef1_0a10]) as u32 | f(r, 16),
    };
    cond << 28 | body
}

fn t32(r: &mut Rng) -> u32 {
    let f = |r: &mut Rng, n: u64| r.below(n) as u32;
    let two = |a: u32, b: u32| a & 0xffff | b << 16;
    match r.below(8) {
        // it, and then wfi, wfe, nop, yield in 16 bits
        0 => two(0xbf00 | f(r, 256), 0xbf00 | f(r, 5) << 4),
        1 => two(0xbf00 | f(r, 5) << 4, 0xbf00 | f(r, 5) << 4),
        // mcr, mrc in 32 bits
        2..5 => two(
            0xee00 | f(r, 8) << 5 | f(r, 2) << 4 | f(r, 16),
            0x0e10 | f(r, 2) << 8 | f(r, 16) << 12 | f(r, 8) << 5 | f(r, 16),
        ),
        // ldr, str in 16 bits
        5 => two(0x6800 | f(r, 64), 0x6000 | f(r, 64)),
        6 => two(0xdf00 | f(r, 256), 0xbe00 | f(r, 256)),
        _ => {
            let word = r.draw() as u32;
            // In 32 bits, not with the program counter as base (see `a32`).
            match word & 0xf80f {
                0xe80f | 0xf00f | 0xf80f => word & !1,
                _ => word,
            }
        }
    }
}

/// A run.
pub(crate) fn any(r: &mut Rng, s: &Scene) -> Run {
    let level = match r.below(16) {
        0..8 => Level::El1,
        8..12 => Level::El0,
        12..15 => Level::A32,
        _ => Level::T32,
    };
    let len = 1 + r.below(MOST as u64) as usize;
    let mut words = [0; MOST];
    for word in words.iter_mut().take(len) {
        *word = match level {
            Level::A32 => a32(r),
            Level::T32 => t32(r),
            _ => a64(r, level),
        };
    }
    let mut x = [0; 31];
    for x in &mut x {
        *x = match r.below(8) {
            0..3 => s.device_address(r, 4),
            3 => evil::BASE + r.below(evil::PAGES * 4096),
            4 => r.border(),
            5 => s.args(s.vcpu) + r.below(0x8000),
            _ => s.value(r),
        };
    }
    let narrow = matches!(level, Level::A32 | Level::T32);
    let mut pstate = r.below(16) << 28;
    // Interrupts come through, but for EL1 now and then.
    if level == Level::El1 && r.one_in(2) {
        pstate |= 1 << 7;
    }
    if narrow && r.one_in(4) {
        // The IT bits, and which way round data are.
        pstate |= r.below(64) << 10 | r.below(4) << 25 | r.below(2) << 9;
    }
    Run {
        level,
        words,
        len,
        x,
        pstate,
    }
}
