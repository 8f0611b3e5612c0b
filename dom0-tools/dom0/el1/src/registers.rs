// SPDX-License-Identifier: MIT OR Apache-2.0
//! For a program that looks for what passes from one domain to another: every system register that there can be is tried,
//! and those that keep what is written are found, whatever their names are. Feature `registers`, with
//! [`probe`](crate::probe)'s vectors.

use crate::probe::{Trap, attempt, outcome};
use alloc::vec::Vec;
use core::arch::asm;
use core::fmt;

core::arch::global_asm!(include_str!("registers.s"));

/// A system register that keeps what EL1 writes to it, and whose value nothing in this program depends on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Register(u16);

impl fmt::Display for Register {
    /// As assemblers take it: `S3_0_C1_C0_0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (op0, op1, crn, crm, op2) = fields(self.0);
        write!(f, "S{op0}_{op1}_C{crn}_C{crm}_{op2}")
    }
}

/// op0, op1, CRn, CRm, op2.
const fn fields(n: u16) -> (u16, u16, u16, u16, u16) {
    (2 + (n >> 14), n >> 11 & 7, n >> 7 & 15, n >> 3 & 15, n & 7)
}

const fn number(op1: u16, crn: u16, crm: u16, op2: u16) -> u16 {
    1 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

/// CPACR_EL1: ZEN, FPEN and SMEN let SVE, floating point and SME through, as far as EL1 has a say.
const CPACR: u16 = number(0, 1, 0, 2);
const ALL: u64 = 3 << 16 | 3 << 20 | 3 << 24;
/// TPIDR_EL0 and TPIDR_EL1, which the vectors use.
const OF_VECTORS: [u16; 2] = [number(3, 13, 0, 2), number(0, 13, 0, 4)];

/// What is not tried: it would change how this program runs or is translated, acts instead of keeping, or is
/// time. No guest would live for long if the first of them were not its own.
const fn left_out(n: u16) -> bool {
    match fields(n) {
        // SCTLR, TTBR0, TCR, MAIR, VBAR _EL1.
        (3, 0, 1, 0, 0) | (3, 0, 2, 0, 0 | 2) | (3, 0, 10, 2, 0) | (3, 0, 12, 0, 0) => true,
        // PSTATE's fields, which are in SPSR_EL2.
        (3, 0 | 3, 4, 2, _) => true,
        // ICC_IAR, EOIR, HPPIR, NMIAR, DIR, SGI, ASGI: interrupts are taken, ended and sent.
        (3, 0, 12, 8 | 12, 0..=2) | (3, 0, 12, 11, _) | (3, 0, 12, 9, 5) => true,
        // FPCR, FPSR: `write_fp` and `read_fp` have them.
        (3, 3, 4, 4, 0 | 1) => true,
        // CNTP and CNTV: TVAL counts, CTL tells whether the time has come.
        (3, 3, 14, 2 | 3, 0 | 1) => true,
        _ => n == OF_VECTORS[0] || n == OF_VECTORS[1],
    }
}

unsafe extern "C" {
    static registers_read: [u64; 32768];
    static registers_write: [u64; 32768];
}

fn read_at(n: u16) -> u64 {
    // SAFETY: within the table, whose numbers have 15 bits.
    unsafe { &raw const registers_read[usize::from(n & 0x7fff)] as u64 }
}

fn write_at(n: u16) -> u64 {
    // SAFETY: as above.
    unsafe { &raw const registers_write[usize::from(n & 0x7fff)] as u64 }
}

fn try_read(n: u16) -> Result<u64, Trap> {
    let (value, esr, far): (u64, u64, u64);
    // SAFETY: what is not left out acts on nothing by being read; a fault resumes after it.
    unsafe {
        attempt!("blr {f}", f = in(reg) read_at(n), inout("x0") 0u64 => value, out("x17") esr, out("x16") far,
                 out("x30") _, options(nostack));
    }
    outcome(value, esr, far)
}

fn try_write(n: u16, value: u64) -> Result<(), Trap> {
    let (esr, far): (u64, u64);
    // SAFETY: what is not left out has no part in what this program's code and memory are; a fault resumes after it.
    unsafe {
        attempt!("blr {f}", f = in(reg) write_at(n), inout("x0") value => _, out("x17") esr, out("x16") far,
                 out("x30") _, options(nostack));
    }
    outcome((), esr, far)
}

/// What a register keeps of a value; `None` if it does not come to rest.
fn kept(n: u16, value: u64) -> Option<u64> {
    try_write(n, value).ok()?;
    let first = try_read(n).ok()?;
    (try_read(n) == Ok(first)).then_some(first)
}

/// Finds every register that keeps what is written to it, and leaves each as it was. Gives them, and how many could be
/// read.
#[must_use]
pub fn find() -> (Vec<Register>, u32) {
    let mut found: Vec<Register> = OF_VECTORS.map(Register).to_vec();
    let mut readable = 0;
    let cpacr = open();
    for n in (0..1 << 15).filter(|n| !left_out(*n)) {
        let Ok(old) = try_read(n) else { continue };
        readable += 1;
        let (a, b) = (kept(n, 0), kept(n, u64::MAX));
        if a.is_some() && b.is_some() && a != b {
            found.push(Register(n));
        }
        let _ = try_write(n, old);
    }
    Register(CPACR).write(cpacr);
    (found, readable)
}

impl Register {
    /// Reads it.
    #[must_use]
    pub fn read(self) -> u64 {
        let value: u64;
        // SAFETY: it was read without a fault when it was found, and reading it does nothing else.
        unsafe {
            asm!("blr {f}", f = in(reg) read_at(self.0), out("x0") value, out("x30") _, options(nostack));
        }
        value
    }

    /// Writes it.
    pub fn write(self, value: u64) {
        // SAFETY: it was written without a fault when it was found, and nothing in this program depends on it.
        unsafe {
            asm!("blr {f}", f = in(reg) write_at(self.0), inout("x0") value => _, out("x30") _, options(nostack));
        }
    }

    /// Whether it may read as zero after another domain ran: DISR_EL1, which belongs to error reporting that guests are
    /// not told of.
    #[must_use]
    pub fn may_be_cleared(self) -> bool {
        self.0 == number(0, 12, 1, 1)
    }
}

/// Executes an instruction that reads or changes what only some CPUs have; `None` if it is undefined here.
macro_rules! optional {
    ($($(#[$doc:meta])* $name:ident $code:literal;)*) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $name() -> Option<u64> {
            let (value, esr, far): (u64, u64, u64);
            let cpacr = open();
            // SAFETY: changes x0, or a register that this program has no use for, at most; a fault resumes after it.
            unsafe {
                attempt!(concat!(".inst ", $code), inout("x0") 0u64 => value, out("x17") esr, out("x16") far,
                         options(nostack));
            }
            Register(CPACR).write(cpacr);
            outcome(value, esr, far).ok()
        }
    )*};
}

optional! {
    /// SVE: `RDVL x0, #1`.
    sve "0x04bf5020";
    /// SVE: `SETFFR`.
    sve_first_fault "0x252c9000";
    /// SME: `RDSVL x0, #1`.
    sme "0x04bf5820";
    /// SME: `SMSTART`.
    sme_start "0xd503477f";
}

/// Lets everything through that CPACR_EL1 governs, and gives CPACR_EL1 as it was.
fn open() -> u64 {
    let cpacr = Register(CPACR);
    let old = cpacr.read();
    cpacr.write(old | ALL);
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack)) };
    old
}

/// Writes q0 to q31, FPCR and FPSR.
pub fn write_fp(values: &[u128; 32], control: u64, status: u64) {
    let old = open();
    // SAFETY: the program's own code uses no floating point.
    unsafe {
        asm!(
            ".arch_extension fp", ".arch_extension simd",
            "ldp q0, q1, [{p}]", "ldp q2, q3, [{p}, #32]", "ldp q4, q5, [{p}, #64]", "ldp q6, q7, [{p}, #96]",
            "ldp q8, q9, [{p}, #128]", "ldp q10, q11, [{p}, #160]", "ldp q12, q13, [{p}, #192]",
            "ldp q14, q15, [{p}, #224]", "ldp q16, q17, [{p}, #256]", "ldp q18, q19, [{p}, #288]",
            "ldp q20, q21, [{p}, #320]", "ldp q22, q23, [{p}, #352]", "ldp q24, q25, [{p}, #384]",
            "ldp q26, q27, [{p}, #416]", "ldp q28, q29, [{p}, #448]", "ldp q30, q31, [{p}, #480]",
            "msr s3_3_c4_c4_0, {c}", "msr s3_3_c4_c4_1, {s}",
            p = in(reg) values, c = in(reg) control, s = in(reg) status, options(nostack)
        );
    }
    Register(CPACR).write(old);
}

/// Reads q0 to q31, FPCR and FPSR.
#[must_use]
pub fn read_fp() -> ([u128; 32], u64, u64) {
    let old = open();
    let mut values = [0; 32];
    let (control, status): (u64, u64);
    // SAFETY: stores to the array.
    unsafe {
        asm!(
            ".arch_extension fp", ".arch_extension simd",
            "stp q0, q1, [{p}]", "stp q2, q3, [{p}, #32]", "stp q4, q5, [{p}, #64]", "stp q6, q7, [{p}, #96]",
            "stp q8, q9, [{p}, #128]", "stp q10, q11, [{p}, #160]", "stp q12, q13, [{p}, #192]",
            "stp q14, q15, [{p}, #224]", "stp q16, q17, [{p}, #256]", "stp q18, q19, [{p}, #288]",
            "stp q20, q21, [{p}, #320]", "stp q22, q23, [{p}, #352]", "stp q24, q25, [{p}, #384]",
            "stp q26, q27, [{p}, #416]", "stp q28, q29, [{p}, #448]", "stp q30, q31, [{p}, #480]",
            "mrs {c}, s3_3_c4_c4_0", "mrs {s}, s3_3_c4_c4_1",
            p = in(reg) &mut values, c = out(reg) control, s = out(reg) status, options(nostack)
        );
    }
    Register(CPACR).write(old);
    (values, control, status)
}
