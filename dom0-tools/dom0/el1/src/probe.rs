// SPDX-License-Identifier: MIT OR Apache-2.0
//! For programs that try a hypervisor: accesses that may fault, interrupts by vector, calls by
//! `hvc #0`, and a second CPU that answers interrupts. Feature `probe`.
//!
//! Interrupts are taken only within [`interruptible`], and its handler runs to its end before
//! anything else does, so that what the crate says of [`Global`](crate::Global) holds: a borrow is
//! made and given back between two instructions of whom it interrupts, or panics. The second CPU
//! runs nothing but `second_cpu`, which uses atomics alone.

use crate::machine::Gic;
use crate::{cpu, gic};
use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

core::arch::global_asm!(include_str!("probe.s"));

/// An exception that an access or instruction took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// `ESR_EL1`.
    pub esr: u64,
    /// `FAR_EL1`.
    pub far: u64,
}

impl Trap {
    /// The exception's class (`ESR_EL1.EC`).
    #[must_use]
    pub fn class(self) -> u32 {
        (self.esr >> 26) as u32 & 0x3f
    }
}

pub(crate) fn outcome<T>(value: T, esr: u64, far: u64) -> Result<T, Trap> {
    if esr >> 63 == 0 {
        Ok(value)
    } else {
        Err(Trap {
            esr: esr & !(1 << 63),
            far,
        })
    }
}

/// Puts the vectors of this module in the place of those to which every exception is the end.
pub fn install() {
    unsafe extern "C" {
        static probe_vectors: u8;
    }
    // SAFETY: a whole table of vectors, which keep what they interrupt as it was.
    unsafe {
        asm!("msr tpidr_el0, xzr", "msr vbar_el1, {}", "isb", in(reg) &raw const probe_vectors,
             options(nostack));
    }
}

/// One instruction that may fault: resumes after it, and tells by x17 whether it did.
macro_rules! attempt {
    ($instruction:expr, $($operand:tt)*) => {
        asm!(
            "adr x17, 77f", "msr tpidr_el0, x17", "mov x17, #0",
            $instruction,
            "77:", "msr tpidr_el0, xzr",
            $($operand)*
        )
    };
}
#[cfg(any(feature = "registers", feature = "attack"))]
pub(crate) use attempt;

/// What a system register of this CPU's holds.
macro_rules! register {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reads a register without side effects.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack)) }
        value
    }};
}
#[cfg(feature = "attack")]
pub(crate) use register;

/// Panics if an address is in the program's memory.
fn outside(at: u64) {
    assert!(
        !crate::shared::is_own(at),
        "{at:#x} is the program's own memory"
    );
}

macro_rules! accesses {
    ($($load:ident $store:ident $ty:ty, $ldr:literal, $str:literal, $form:literal;)*) => {$(
        /// Loads from an address outside of the program's memory, such as a device's register.
        ///
        /// # Errors
        /// The exception that it took.
        ///
        /// # Panics
        /// If the address is in the program's memory.
        pub fn $load(at: u64) -> Result<$ty, Trap> {
            outside(at);
            let (value, esr, far): (u64, u64, u64);
            // SAFETY: reads no memory that Rust knows of; a fault resumes after it.
            unsafe {
                attempt!(concat!($ldr, " ", $form, ", [{at}]"), at = in(reg) at,
                         v = inout(reg) 0u64 => value, out("x17") esr, out("x16") far,
                         options(nostack));
            }
            outcome(value as $ty, esr, far)
        }

        /// Stores to an address outside of the program's memory, such as a device's register.
        ///
        /// # Errors
        /// The exception that it took.
        ///
        /// # Panics
        /// If the address is in the program's memory.
        pub fn $store(at: u64, value: $ty) -> Result<(), Trap> {
            outside(at);
            let (esr, far): (u64, u64);
            // SAFETY: writes no memory that Rust knows of; a fault resumes after it.
            unsafe {
                attempt!(concat!($str, " ", $form, ", [{at}]"), at = in(reg) at,
                         v = in(reg) u64::from(value), out("x17") esr, out("x16") far,
                         options(nostack));
            }
            outcome((), esr, far)
        }
    )*};
}

accesses! {
    load8 store8 u8, "ldrb", "strb", "{v:w}";
    load16 store16 u16, "ldrh", "strh", "{v:w}";
    load32 store32 u32, "ldr", "str", "{v:w}";
    load64 store64 u64, "ldr", "str", "{v:x}";
}

macro_rules! registers {
    ($($(#[$doc:meta])* $variant:ident $name:literal;)*) => {
        /// A system register that a hypervisor may trap.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Register { $($(#[$doc])* $variant),* }

        impl Register {
            /// Reads it.
            ///
            /// # Errors
            /// The exception that it took.
            pub fn read(self) -> Result<u64, Trap> {
                let (value, esr, far): (u64, u64, u64);
                // SAFETY: none of these registers changes by reading but the interrupt
                // acknowledgement, and interrupts are masked; a fault resumes after it.
                unsafe {
                    match self { $(
                        Self::$variant => attempt!(concat!("mrs {v}, ", $name),
                            v = inout(reg) 0u64 => value, out("x17") esr, out("x16") far,
                            options(nostack)),
                    )* }
                }
                outcome(value, esr, far)
            }

            /// Writes it.
            ///
            /// # Errors
            /// The exception that it took.
            pub fn write(self, value: u64) -> Result<(), Trap> {
                let (esr, far): (u64, u64);
                // SAFETY: none of these registers takes part in translating addresses or in what
                // Rust's code relies on; a fault resumes after it.
                unsafe {
                    match self { $(
                        Self::$variant => attempt!(concat!("msr ", $name, ", {v}"),
                            v = in(reg) value, out("x17") esr, out("x16") far, options(nostack)),
                    )* }
                }
                outcome((), esr, far)
            }
        }
    };
}

registers! {
    /// Physical timer: compare value.
    CntpCval "cntp_cval_el0";
    /// Physical timer: control.
    CntpCtl "cntp_ctl_el0";
    /// Physical timer: what is left.
    CntpTval "cntp_tval_el0";
    /// Physical counter.
    Cntpct "S3_3_C14_C0_1";
    /// Virtual timer: compare value.
    CntvCval "cntv_cval_el0";
    /// Virtual timer: control.
    CntvCtl "cntv_ctl_el0";
    /// Virtual timer: what is left.
    CntvTval "cntv_tval_el0";
    /// Auxiliary control.
    Actlr "actlr_el1";
    /// Debug: monitor control.
    Mdscr "mdscr_el1";
    /// Debug: OS lock access.
    Oslar "S2_0_C1_C0_4";
    /// Debug: OS lock status.
    Oslsr "S2_0_C1_C1_4";
    /// Debug: OS double lock.
    Osdlr "osdlr_el1";
    /// Debug: breakpoint 0 value.
    Dbgbvr0 "dbgbvr0_el1";
    /// Debug: breakpoint 0 control.
    Dbgbcr0 "dbgbcr0_el1";
    /// Debug: watchpoint 0 control.
    Dbgwcr0 "dbgwcr0_el1";
    /// Debug: ROM address.
    Mdrar "S2_0_C1_C0_0";
    /// Debug: communication channel status.
    Mdccsr "S2_3_C0_C1_0";
    /// Performance monitors: control.
    Pmcr "pmcr_el0";
    /// Performance monitors: counter enable.
    Pmcntenset "pmcntenset_el0";
    /// Performance monitors: user enable.
    Pmuserenr "pmuserenr_el0";
    /// Performance monitors: cycle counter.
    Pmccntr "pmccntr_el0";
    /// Performance monitors: interrupt enable.
    Pmintenset "pmintenset_el1";
    /// Performance monitors: overflow flags.
    Pmovsclr "pmovsclr_el0";
    /// GICv3 CPU interface: system register enable.
    IccSre "S3_0_C12_C12_5";
    /// GICv3 CPU interface: priority mask.
    IccPmr "S3_0_C4_C6_0";
    /// GICv3 CPU interface: group 1 enable.
    IccIgrpen1 "S3_0_C12_C12_7";
    /// GICv3 CPU interface: control.
    IccCtlr "S3_0_C12_C12_4";
    /// GICv3 CPU interface: SGI of group 0.
    IccSgi0r "S3_0_C12_C11_7";
    /// GICv3 CPU interface: SGI of the other group 1.
    IccAsgi1r "S3_0_C12_C11_6";
    /// CPU identification.
    Midr "S3_0_C0_C0_0";
    /// CPU affinity.
    Mpidr "S3_0_C0_C0_5";
    /// Processor features 0.
    IdAa64pfr0 "S3_0_C0_C4_0";
    /// Processor features 1.
    IdAa64pfr1 "S3_0_C0_C4_1";
    /// Processor features: scalable vectors.
    IdAa64zfr0 "S3_0_C0_C4_4";
    /// Debug features 0.
    IdAa64dfr0 "S3_0_C0_C5_0";
    /// Instruction set 0.
    IdAa64isar0 "S3_0_C0_C6_0";
    /// Instruction set 1.
    IdAa64isar1 "S3_0_C0_C6_1";
    /// Memory model 0.
    IdAa64mmfr0 "S3_0_C0_C7_0";
    /// Memory model 1.
    IdAa64mmfr1 "S3_0_C0_C7_1";
    /// AArch32 processor features 0.
    IdPfr0 "S3_0_C0_C1_0";
    /// AArch32 debug features.
    IdDfr0 "S3_0_C0_C1_2";
    /// A place of the identification space that is reserved.
    IdReserved "S3_0_C0_C7_7";
    /// Error record selection.
    Errselr "S3_0_C5_C3_1";
    /// Branch record, which needs a feature that CPUs of 2016 lack.
    Lorc "S3_0_C10_C4_3";
    /// Random number.
    Rndr "S3_3_C2_C4_0";
    /// Hypervisor configuration, which is not EL1's.
    Hcr "hcr_el2";
    /// Secure configuration, which is not EL1's.
    Scr "scr_el3";
    /// A register of the implementation.
    Implementation "S3_1_C15_C2_1";
}

/// Instructions that may be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// `hvc` with an immediate that no interface has.
    HvcOther,
    /// `smc` with an immediate other than 0.
    SmcOther,
    /// `udf`.
    Undefined,
    /// `brk`, a breakpoint.
    Breakpoint,
    /// `dc isw`, by set and way.
    SetWay,
    /// `at s12e1r`, which is not EL1's.
    TranslateStage12,
    /// `tlbi alle2`, which is not EL1's.
    TlbiEl2,
    /// `wfe` with an event set before, which does not wait.
    WaitForEvent,
}

impl Instruction {
    /// Executes it.
    ///
    /// # Errors
    /// The exception that it took.
    pub fn execute(self) -> Result<(), Trap> {
        let (esr, far): (u64, u64);
        macro_rules! execute {
            ($text:literal) => {
                attempt!($text, out("x17") esr, out("x16") far, out("x0") _, out("x1") _,
                         out("x2") _, out("x3") _, options(nostack))
            };
        }
        // SAFETY: none of these changes what the program relies on; a fault resumes after it.
        unsafe {
            match self {
                Self::HvcOther => execute!("hvc #0x1234"),
                Self::SmcOther => execute!("smc #0x1234"),
                Self::Undefined => execute!("udf #0"),
                Self::Breakpoint => execute!("brk #1"),
                Self::SetWay => execute!("dc csw, xzr"),
                Self::TranslateStage12 => execute!("at s12e1r, xzr"),
                Self::TlbiEl2 => execute!("tlbi alle2"),
                Self::WaitForEvent => {
                    asm!("sevl", options(nostack));
                    execute!("wfe");
                }
            }
        }
        outcome((), esr, far)
    }
}

/// How a call of Arm's convention is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// `hvc #0`.
    Hvc,
    /// `smc #0`.
    Smc,
}

/// Calls firmware or hypervisor by Arm's calling convention: x0 to x3 in and out. Not for calls
/// that end this CPU's run, which is the program's own risk.
///
/// # Errors
/// The exception that it took.
pub fn smccc(conduit: Conduit, [x0, x1, x2, x3]: [u64; 4]) -> Result<[u64; 4], Trap> {
    let mut x = [x0, x1, x2, x3];
    let [x0, x1, x2, x3] = &mut x;
    let (esr, far): (u64, u64);
    macro_rules! call {
        ($text:literal) => {
            attempt!($text, inout("x0") *x0, inout("x1") *x1, inout("x2") *x2, inout("x3") *x3,
                     out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _,
                     out("x10") _, out("x11") _, out("x12") _, out("x13") _, out("x14") _,
                     out("x15") _, out("x17") esr, out("x16") far, options(nostack))
        };
    }
    // SAFETY: the convention keeps all other registers, and its functions change no memory of the
    // caller's; a fault resumes after it.
    unsafe {
        match conduit {
            Conduit::Hvc => call!("hvc #0"),
            Conduit::Smc => call!("smc #0"),
        }
    }
    outcome(x, esr, far)
}

/// Who is told of an interrupt.
static HANDLER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Runs `f` with interrupts unmasked. Each is acknowledged, `handler` is called with its INTID, and it
/// is ended. Needs [`install`].
pub fn interruptible<R>(handler: fn(u32), f: impl FnOnce() -> R) -> R {
    unmasked_by(handler, || {
        // SAFETY: `probe_irq` keeps what it interrupts as it was, and `el1_interrupt` finds a handler.
        unsafe { asm!("msr daifclr, #2") };
        f()
    })
}

/// [`interruptible`] for a function that begins with interrupts masked: a hypercall in it may unmask them.
pub fn unmasked_by<R>(handler: fn(u32), f: impl FnOnce() -> R) -> R {
    HANDLER.store(handler as *mut (), Ordering::Relaxed);
    let result = f();
    // SAFETY: as before.
    unsafe { asm!("msr daifset, #2") };
    result
}

#[unsafe(no_mangle)]
extern "C" fn el1_interrupt() {
    gic::take(|intid| {
        // SAFETY: `interruptible` stored a function of this type before an interrupt could come.
        let handler: fn(u32) = unsafe { core::mem::transmute(HANDLER.load(Ordering::Relaxed)) };
        handler(intid);
    });
}

/// What another CPU is started with: TTBR0, TCR, MAIR, SCTLR, VBAR, its stack, TTBR1, and the Rust function that it goes
/// on with, as `probe.s` loads them.
#[repr(C, align(64))]
pub(crate) struct Start([AtomicU64; 8]);

impl Start {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 8])
    }

    /// Whoever is started with it goes on with `function` on the stack that ends at `sp`, has the translation tables
    /// given, and all else as this CPU has it. Cleans it from the caches.
    pub(crate) fn set(
        &self,
        [ttbr0, ttbr1, tcr]: [u64; 3],
        sp: u64,
        function: extern "C" fn(&'static Self) -> !,
    ) {
        let [mair, sctlr, vbar] = [
            register!("mair_el1"),
            register!("sctlr_el1"),
            register!("vbar_el1"),
        ];
        let function = function as *const () as u64;
        let values = [ttbr0, tcr, mair, sctlr, vbar, sp, ttbr1, function];
        for (to, value) in self.0.iter().zip(values) {
            to.store(value, Ordering::Relaxed);
        }
        // SAFETY: the other CPU reads it with its caches off; no byte changes by cleaning.
        unsafe { asm!("dsb sy", "dc cvac, {}", "dsb sy", in(reg) self, options(nostack)) }
    }

    /// Where another CPU is to begin, with the address of a [`Start`] that was [set](Self::set) in x0.
    pub(crate) fn entry() -> u64 {
        unsafe extern "C" {
            static probe_cpu: u8;
        }
        &raw const probe_cpu as u64
    }

    /// The translation tables' registers as they were set: TTBR0, TTBR1, TCR; and the stack.
    #[cfg(feature = "attack")]
    pub(crate) fn tables_and_stack(&self) -> [u64; 4] {
        [0, 6, 1, 5].map(|i| self.0[i].load(Ordering::Relaxed))
    }
}

#[repr(C, align(16))]
struct Stack(UnsafeCell<[u8; 16384]>);

// SAFETY: nothing but the second CPU's stack pointer ever refers to it.
unsafe impl Sync for Stack {}

/// The second CPU.
struct Second {
    start: Start,
    stack: Stack,
    /// The interrupt controller's addresses: distributor, and CPU interface or redistributors.
    gic: [AtomicU64; 2],
    v3: AtomicBool,
    /// The CPU to answer.
    answer: AtomicU64,
    running: AtomicBool,
    stop: AtomicBool,
    answered: AtomicU32,
}

static SECOND: Second = Second {
    start: Start::new(),
    stack: Stack(UnsafeCell::new([0; 16384])),
    gic: [const { AtomicU64::new(0) }; 2],
    v3: AtomicBool::new(false),
    answer: AtomicU64::new(0),
    running: AtomicBool::new(false),
    stop: AtomicBool::new(false),
    answered: AtomicU32::new(0),
};

/// Starts another CPU (PSCI `CPU_ON`), which answers each software-generated interrupt that it takes
/// with [`ANSWER`] to this CPU, until [`stop_second`]. Returns what PSCI does.
pub fn start_second(affinity: u64, gic: &Gic) -> i64 {
    let s = &SECOND;
    let (a, b, v3) = match *gic {
        Gic::V2 { gicd, gicc } => (gicd, gicc, false),
        Gic::V3 { gicd, gicr } => (gicd, gicr, true),
    };
    s.gic[0].store(a, Ordering::Relaxed);
    s.gic[1].store(b, Ordering::Relaxed);
    s.v3.store(v3, Ordering::Relaxed);
    s.answer.store(cpu::affinity(), Ordering::Relaxed);
    s.stop.store(false, Ordering::Relaxed);
    let tables = [
        register!("ttbr0_el1"),
        register!("ttbr1_el1"),
        register!("tcr_el1"),
    ];
    let top = s.stack.0.get() as u64 + 16384;
    s.start.set(tables, top, second_cpu);
    let (entry, context) = (Start::entry(), &raw const s.start as u64);
    smccc(Conduit::Hvc, [0xc400_0003, affinity, entry, context]).map_or(i64::MIN, |x| x[0] as i64)
}

/// The interrupt by which the second CPU answers.
pub const ANSWER: u32 = 3;

/// Whether the second CPU runs, as far as it tells.
#[must_use]
pub fn second_runs() -> bool {
    SECOND.running.load(Ordering::Acquire)
}

/// How many interrupts the second CPU has answered.
#[must_use]
pub fn second_answers() -> u32 {
    SECOND.answered.load(Ordering::Acquire)
}

/// Has the second CPU stop (PSCI `CPU_OFF`) at the next interrupt, which this sends.
pub fn stop_second(affinity: u64) {
    SECOND.stop.store(true, Ordering::Release);
    cpu::barrier();
    gic::send_sgi(affinity, ANSWER);
}

extern "C" fn second_cpu(_: &'static Start) -> ! {
    let s = &SECOND;
    let [a, b] = [0, 1].map(|i| s.gic[i].load(Ordering::Relaxed));
    let controller = if s.v3.load(Ordering::Relaxed) {
        Gic::V3 { gicd: a, gicr: b }
    } else {
        Gic::V2 { gicd: a, gicc: b }
    };
    let controller = gic::init_cpu(&controller);
    gic::enable_sgis_at(controller);
    let answer = s.answer.load(Ordering::Relaxed);
    s.running.store(true, Ordering::Release);
    loop {
        while !cpu::interrupt_pending() {
            cpu::idle();
        }
        gic::take_at(controller, |_| {
            s.answered.fetch_add(1, Ordering::AcqRel);
            if !s.stop.load(Ordering::Acquire) {
                gic::send_sgi_at(controller, answer, ANSWER);
            }
        });
        if s.stop.load(Ordering::Acquire) {
            s.running.store(false, Ordering::Release);
            let _ = smccc(Conduit::Hvc, [0x8400_0002, 0, 0, 0]);
        }
    }
}

/// A register outside of the program's memory, to be read often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device(u64);

impl Device {
    /// At an address.
    ///
    /// # Panics
    /// If that is in the program's memory.
    #[must_use]
    pub fn at(at: u64) -> Self {
        outside(at);
        Self(at)
    }

    /// Reads it, in one instruction.
    #[inline]
    #[must_use]
    pub fn read(self) -> u32 {
        // SAFETY: reads no memory that Rust knows of; a fault ends the program.
        unsafe { crate::mmio::read32(self.0) }
    }
}

/// Instructions that a hypervisor has no reason to trap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untrapped {
    /// Writes the virtual timer's compare value, the timer being off.
    TimerWrite,
    /// Reads a register, such as one of the GIC's CPU interface.
    Load(Device),
    /// Waits for an interrupt, one being pending.
    Wfi,
}

/// How often [`repeat`] does what it does.
pub const REPEATED: u32 = 64;

/// Does it [`REPEATED`] times, in as many instructions.
pub fn repeat(what: Untrapped) {
    // SAFETY: as each one's description says; nothing of the program's own is touched.
    unsafe {
        match what {
            Untrapped::TimerWrite => {
                asm!(".rept 64", "msr cntv_cval_el0, {}", ".endr", in(reg) u64::MAX, options(nostack));
            }
            Untrapped::Load(device) => {
                asm!(".rept 64", "ldr {v:w}, [{at}]", ".endr", v = out(reg) _, at = in(reg) device.0,
                     options(nostack));
            }
            Untrapped::Wfi => asm!(".rept 64", "wfi", ".endr", options(nostack)),
        }
    }
}

/// Executes twice as many instructions as `rounds` says, that neither load nor store.
pub fn compute(rounds: u64) {
    // SAFETY: counts a register down.
    unsafe {
        asm!("77:", "subs {n}, {n}, #1", "b.ne 77b", n = inout(reg) rounds.max(1) => _,
             options(nostack, nomem));
    }
}

/// Makes a hypercall of any number with any arguments, among them addresses of nothing: what the
/// hypervisor makes of that is what a test wants to know. Addresses that it is to write to must be
/// [`Shared`](crate::shared::Shared) pages.
///
/// # Errors
/// The exception that it took.
pub fn hypercall(nr: u64, [a0, a1, a2, a3, a4]: [u64; 5]) -> Result<i64, Trap> {
    let (ret, esr, far): (u64, u64, u64);
    // SAFETY: the hypervisor keeps every register but x0 by its ABI; what it writes is no memory of
    // Rust's by the contract above. A fault resumes after it.
    unsafe {
        attempt!("hvc #0xea1", inout("x16") nr => far, inout("x0") a0 => ret, inout("x1") a1 => _,
                 inout("x2") a2 => _, inout("x3") a3 => _, inout("x4") a4 => _, out("x17") esr,
                 options(nostack));
    }
    outcome(ret as i64, esr, far)
}
