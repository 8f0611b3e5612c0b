// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs at EL0, of AArch64 and of both instruction sets of AArch32: what of theirs traps to the hypervisor, and where
//! they go on after it (XSA-102, 103). Each ends with the exception that it takes; one that waits is woken by the timer.

use super::Suite;
use alloc::format;
use alloc::string::String;
use el1::attack::{self, Arena, Registers};
use el1::probe::Register;
use el1::time;

/// Pages of the arena, the first one of the instructions, and the root of the upper half.
const PAGES: usize = 64;
const CODE: u64 = 16;
const UPPER: u64 = 40;
/// PSTATE: interrupts masked; AArch32, its T32, and the flag Z.
const MASKED: u64 = 0x3c0;
const A32: u64 = MASKED & !0x200 | 0x10;
const T32: u64 = A32 | 0x20;
const Z: u64 = 1 << 30;
/// `svc #5` and `svc #6`.
const A64_ENDS: [u32; 2] = [0xd400_00a1, 0xd400_00c1];
const A32_ENDS: [u32; 2] = [0xef00_0005, 0xef00_0006];

impl Suite {
    pub fn user(&mut self) {
        let Some(arena) = attack::set_up(&self.machine, PAGES, CODE, UPPER) else {
            return self.case("el0", "no memory");
        };
        attack::stay();
        for (name, first) in [("wfi", 0xd503_207fu32), ("wfe", 0xd503_205f)] {
            let words = [0xd503_20bf, first, A64_ENDS[0], A64_ENDS[1]];
            let words = if name == "wfe" {
                &words[..]
            } else {
                &words[1..]
            };
            let r = execute(&arena, words, MASKED);
            self.case(format!("el0.a64.{name}"), r);
        }
        for (name, word, flags) in [
            ("wfi", 0xe320_f003u32, 0),
            ("wfi_if_equal", 0x0320_f003, Z),
            ("wfi_if_equal_and_is_not", 0x0320_f003, 0),
            ("hvc", 0xe140_0070, 0),
            ("smc", 0xe160_0070, 0),
            ("sctlr", 0xee11_0f10, 0),
            ("tpidrurw", 0xee1d_0f50, 0),
            ("barrier", 0xee07_0fba, 0),
            ("cntp_ctl", 0xee1e_0f32, 0),
            ("cntp_ctl_if_equal_and_is_not", 0x0e1e_0f32, 0),
            ("cntp_tval", 0xee1e_0f12, 0),
            ("cntp_cval", 0xec51_0f2e, 0),
            ("cntpct", 0xec51_0f0e, 0),
            ("cntv_ctl", 0xee1e_0f33, 0),
            ("pmccntr", 0xee19_0f1d, 0),
            ("pmuserenr", 0xee19_0f1e, 0),
            ("dbgdscr", 0xee10_0e11, 0),
            ("dbgdtr_load", 0xed90_5e00, 0),
            ("dbgdrar", 0xec51_0e01, 0),
        ] {
            let r = execute(&arena, &[word, A32_ENDS[0], A32_ENDS[1]], A32 | flags);
            self.case(format!("el0.a32.{name}"), r);
        }
        for (name, halves, flags) in [
            ("wfi", &[0xbf30u16, 0xdf05, 0xdf06][..], 0),
            ("wfi_wide", &[0xf3af, 0x8003, 0xdf05, 0xdf06], 0),
            // IT EQ, and WFI in it.
            ("it.wfi", &[0xbf08, 0xbf30, 0xdf05, 0xdf06], Z),
            ("it.wfi_is_not", &[0xbf08, 0xbf30, 0xdf05, 0xdf06], 0),
            // QEMU says of a trapped WFI that its IT state is the next instruction's, so that none follows here that
            // depends on it. What is so with a coprocessor's register:
            // ITEE EQ: CNTP_CTL, and twice else SVC 7, which is not reached.
            (
                "it.cntp_ctl_else",
                &[0xbf0e, 0xee1e, 0x0f32, 0xdf07, 0xdf07, 0xdf05, 0xdf06],
                Z,
            ),
            ("cntp_ctl", &[0xee1e, 0x0f32, 0xdf05, 0xdf06], 0),
            ("cntpct", &[0xec51, 0x0f0e, 0xdf05, 0xdf06], 0),
        ] {
            let words: alloc::vec::Vec<u32> = halves
                .chunks(2)
                .map(|h| u32::from(h[0]) | h.get(1).map_or(0, |h| u32::from(*h) << 16))
                .collect();
            let r = execute(&arena, &words, T32 | flags);
            self.case(format!("el0.t32.{name}"), r);
        }
    }
}

/// What ends a program.
fn execute(arena: &Arena, words: &[u32], pstate: u64) -> String {
    for (at, word) in (arena.base + CODE * 4096..).step_by(4).zip(words) {
        let _ = attack::store(at, 4, (*word).into());
    }
    // What waits is woken, and what does not wait is not held up.
    let begin = time::ticks();
    let _ = Register::CntvCval.write(begin + time::frequency() / 200);
    let _ = Register::CntvCtl.write(1);
    let mut x = [0; 31];
    x[0] = attack::WRITABLE;
    let (vector, trap) = attack::run(0, &Registers { x: &x, pstate });
    let _ = Register::CntvCtl.write(0);
    let what = match trap.class() {
        0x11 | 0x15 => format!("svc {}", trap.esr & 0xffff),
        class => format!("ec {class:#x} iss {:#x}", trap.esr & 0x1ff_ffff),
    };
    if vector == 8 || vector == 12 {
        what
    } else {
        format!("vector {vector} {what}")
    }
}
