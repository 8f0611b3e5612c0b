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

/// Does what a program should not. For tests of what that looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misdeed {
    /// Reads an address that no memory is at.
    Unmapped,
    /// Reads address 0.
    Null,
    /// Executes an instruction that does not exist.
    Undefined,
    /// Writes its own text.
    WriteText,
    /// Executes its own data.
    ExecuteData,
    /// Turns the MMU off, and faults with its exception vectors where no memory is.
    Wild,
    /// Accesses a register of an emulated device at `.0` with an instruction that the hypervisor
    /// cannot follow.
    Pair(u64),
}

impl Misdeed {
    /// Does it. Comes back when nobody minded.
    pub fn commit(self) {
        const RET: u32 = 0xd65f_03c0;
        let data = RET;
        unsafe extern "C" {
            static __image_start: u8;
        }
        // SAFETY: each is meant to fault, and a fault ends the program. Where it does not, the
        // program's own bytes are written as they were, a `ret` is executed, or a register is read.
        unsafe {
            match self {
                Self::Unmapped => asm!("ldr {0}, [{0}]", inout(reg) 0x7f_ffff_fff8u64 => _),
                Self::Null => asm!("ldr {0}, [{0}]", inout(reg) 0u64 => _),
                Self::Undefined => asm!("udf #0"),
                Self::WriteText => {
                    asm!("ldr {0:w}, [{1}]", "str {0:w}, [{1}]", out(reg) _, in(reg) &raw const __image_start)
                }
                Self::ExecuteData => asm!("blr {}", in(reg) &raw const data, clobber_abi("C")),
                Self::Wild => asm!(
                    "mrs {0}, sctlr_el1", "bic {0}, {0}, #1", "msr vbar_el1, {1}",
                    "msr sctlr_el1, {0}", "isb", "udf #0",
                    out(reg) _, in(reg) 0x7f_ffff_f000u64
                ),
                Self::Pair(at) => asm!("ldp {0}, {1}, [{2}]", out(reg) _, out(reg) _, in(reg) at),
            }
        }
    }
}

/// Cleans and invalidates this CPU's data caches by set and way, as old boot loaders do. Gives how
/// many lines that were.
pub fn clean_by_set_and_way() -> u64 {
    let clidr: u64;
    // SAFETY: reads a register without side effects.
    unsafe { asm!("mrs {}, clidr_el1", out(reg) clidr, options(nomem, nostack)) }
    let mut lines = 0;
    for level in 0..7u64 {
        // 0 is no cache, 1 one of instructions alone.
        if (clidr >> (3 * level)) & 7 < 2 {
            continue;
        }
        let ccsidr: u64;
        // SAFETY: selects and reads a description of a cache.
        unsafe {
            asm!("msr csselr_el1, {}", "isb", "mrs {}, ccsidr_el1",
                 in(reg) level << 1, out(reg) ccsidr, options(nomem, nostack));
        }
        let line = (ccsidr & 7) + 4;
        let (ways, sets) = (ccsidr >> 3 & 0x3ff, ccsidr >> 13 & 0x7fff);
        let shift = (ways as u32).leading_zeros();
        for set in 0..=sets {
            for way in 0..=ways {
                let it = (way as u32).checked_shl(shift).unwrap_or(0);
                // SAFETY: no byte that anybody sees changes.
                unsafe {
                    asm!("dc cisw, {}", in(reg) u64::from(it) | set << line | level << 1, options(nostack))
                }
                lines += 1;
            }
        }
    }
    barrier();
    lines
}

/// Writes registers of the translation regime, each after an operation by set and way and with the
/// caches off, when a hypervisor may trap them, and reads them again. Gives the name of one that did
/// not take what was written.
#[must_use]
pub fn check_translation_registers() -> Option<&'static str> {
    let sctlr: u64;
    // SAFETY: reads a register without side effects.
    unsafe { asm!("mrs {}, sctlr_el1", out(reg) sctlr, options(nomem, nostack)) }
    macro_rules! check {
        ($($name:literal $flip:expr),*) => {
            $({
                let (old, new, got, off): (u64, u64, u64, u64);
                // SAFETY: the caches are off while the register has another value, and on again at
                // the end; nothing is loaded or stored meanwhile. What is changed is either not in
                // use (fault registers, the context number) or written as it was.
                unsafe {
                    asm!(
                        "dc cisw, xzr", "msr sctlr_el1, {off}", "isb", "mrs {is}, sctlr_el1",
                        concat!("mrs {old}, ", $name),
                        "eor {new}, {old}, {flip}",
                        concat!("msr ", $name, ", {new}"), "isb",
                        concat!("mrs {got}, ", $name),
                        concat!("msr ", $name, ", {old}"), "isb",
                        "msr sctlr_el1, {on}", "isb",
                        on = in(reg) sctlr, off = in(reg) sctlr & !4, flip = in(reg) $flip,
                        is = out(reg) off, old = out(reg) old, new = out(reg) new, got = out(reg) got,
                        options(nostack)
                    );
                }
                if off != sctlr & !4 {
                    return Some("sctlr_el1");
                }
                if got != new || new ^ old != $flip {
                    return Some($name);
                }
            })*
        };
    }
    check!(
        "esr_el1" 0x5au64, "far_el1" 0x1234_5678_9abcu64, "contextidr_el1" 0x77u64,
        "ttbr1_el1" 0x4_2000u64, "mair_el1" 0x44u64 << 16, "ttbr0_el1" 0u64, "tcr_el1" 0u64,
        "amair_el1" 0u64, "afsr0_el1" 0u64, "afsr1_el1" 0u64
    );
    let again: u64;
    // SAFETY: reads a register without side effects.
    unsafe { asm!("mrs {}, sctlr_el1", out(reg) again, options(nomem, nostack)) }
    (again != sctlr).then_some("sctlr_el1")
}
