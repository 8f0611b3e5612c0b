// SPDX-License-Identifier: MIT OR Apache-2.0
//! Register files of virtual CPUs and their way on and off a physical CPU.
//!
//! The general registers are saved by entry.s on every trap; system and floating-point registers
//! stay in the hardware until another vcpu needs the CPU.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicPtr, Ordering};
use hv_core::cpu::Features;
use hv_core::machine::StartState;
use hv_core::p2m::Stage2Root;
use hv_core::setway::SetWay;
use hv_core::sysreg::VmReg;
use hv_core::types::{Errno, MAX_DOMAINS, MAX_VCPUS, Pa, VcpuRef};

/// A vcpu's registers. entry.s knows the offsets of the first three fields.
#[repr(C, align(16))]
pub struct VcpuFile {
    /// x0..x30.
    pub x: [u64; 31],
    /// Program counter (ELR_EL2) while off the CPU and in slow traps.
    pub pc: u64,
    /// PSTATE (SPSR_EL2), likewise.
    pub spsr: u64,
    /// Which vcpu this is.
    pub who: VcpuRef,
    /// EL1 and EL0 system registers, in the order of `switched!`.
    pub sys: [u64; SYS],
    /// VTTBR_EL2, VMPIDR_EL2, CNTVOFF_EL2, HCR_EL2.
    pub vttbr: Option<Stage2Root>,
    /// What the guest reads as MPIDR_EL1.
    pub vmpidr: u64,
    /// Virtual counter offset in ticks.
    pub cntvoff: u64,
    /// Trap configuration.
    pub hcr: u64,
    /// Virtual timer.
    pub cntv_ctl: u64,
    /// Virtual timer compare value.
    pub cntv_cval: u64,
    /// The CPU that it is on, or was last.
    pub cpu: u8,
    /// Cache maintenance by set and way.
    pub setway: SetWay,
    /// Another vcpu waits for the CPU that this one is on: its WFE gives it up.
    pub wanted: bool,
    /// The virtual interrupt interface.
    pub vif: platform::gic::VgicCpuIf,
    /// q0..q31.
    pub fp: [u128; 32],
    /// FPCR, FPSR.
    pub fpcr: u64,
    /// FPSR.
    pub fpsr: u64,
}

const _: () = {
    assert!(core::mem::offset_of!(VcpuFile, pc) == 248);
    assert!(core::mem::offset_of!(VcpuFile, spsr) == 256);
};

/// Whether a name is of EL1's or EL0's. EL2's view of AArch32 at EL1 (DACR32_EL2, IFSR32_EL2, FPEXC32_EL2) is
/// undefined on CPUs without that, and no guest has it: HCR_EL2.RW makes EL1 AArch64, and at EL0 those
/// registers are undefined (Arm ARM, "DACR32_EL2", "IFSR32_EL2").
const fn of_a_guest(name: &str) -> bool {
    matches!(name.as_bytes(), [.., b'_', b'e', b'l', b'0' | b'1'])
}

macro_rules! switched {
    ($($i:literal $reg:literal),* $(,)?) => {
        /// System registers switched with a vcpu.
        pub const SYS: usize = [$($i),*].len();
        const _: () = { $(assert!(of_a_guest($reg));)* };

        fn save_sys(s: &mut [u64; SYS]) {
            // SAFETY: reads EL1/EL0 registers that only guests use.
            unsafe { $(asm!(concat!("mrs {}, ", $reg), out(reg) s[$i], options(nomem, nostack));)* }
        }
        fn load_sys(s: &[u64; SYS]) {
            // SAFETY: writes EL1/EL0 registers that only guests use; nothing at EL2 depends on them.
            unsafe { $(asm!(concat!("msr ", $reg, ", {}"), in(reg) s[$i], options(nomem, nostack));)* }
        }
    };
}
switched! {
    0 "sctlr_el1", 1 "ttbr0_el1", 2 "ttbr1_el1", 3 "tcr_el1", 4 "mair_el1", 5 "amair_el1",
    6 "vbar_el1", 7 "esr_el1", 8 "far_el1", 9 "elr_el1", 10 "spsr_el1", 11 "sp_el0", 12 "sp_el1",
    13 "tpidr_el0", 14 "tpidr_el1", 15 "tpidrro_el0", 16 "contextidr_el1", 17 "cpacr_el1",
    18 "cntkctl_el1", 19 "par_el1", 20 "csselr_el1", 21 "afsr0_el1", 22 "afsr1_el1",
}
const SCTLR: usize = 0;
const TTBR0: usize = 1;
const TTBR1: usize = 2;
const TCR: usize = 3;
const ELR: usize = 9;
const SPSR: usize = 10;
const SP_EL0: usize = 11;
const SP_EL1: usize = 12;

static TABLE: [[AtomicPtr<VcpuFile>; MAX_VCPUS]; MAX_DOMAINS] =
    [const { [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_VCPUS] }; MAX_DOMAINS];

fn cell(v: VcpuRef) -> Option<&'static AtomicPtr<VcpuFile>> {
    TABLE.get(v.slot.idx())?.get(v.vcpu.idx())
}

/// The register file of `v`.
///
/// Every use is under the hypervisor lock while the vcpu is on no CPU, or on the CPU that runs
/// the vcpu; that is what makes the exclusive reference sound.
pub fn file(v: VcpuRef) -> Option<&'static mut VcpuFile> {
    let p = cell(v)?.load(Ordering::Acquire);
    // SAFETY: the pointer is null or came from `Box::into_raw` in `create` and stays valid until
    // `destroy`, which runs after the vcpu left every CPU; see above for exclusiveness.
    unsafe { p.as_mut() }
}

/// Makes a register file.
pub fn create(v: VcpuRef) -> Result<(), Errno> {
    let mut room: Vec<VcpuFile> = Vec::new();
    room.try_reserve_exact(1).map_err(|_| Errno::ENOMEM)?;
    room.push(VcpuFile {
        x: [0; 31],
        pc: 0,
        spsr: 0x3c5,
        who: v,
        sys: [0; SYS],
        vttbr: None,
        vmpidr: 0,
        cntvoff: 0,
        hcr: 0,
        cntv_ctl: 0,
        cntv_cval: 0,
        cpu: 0,
        setway: SetWay::default(),
        wanted: false,
        vif: platform::gic::VgicCpuIf::new(),
        fp: [0; 32],
        fpcr: 0,
        fpsr: 0,
    });
    let slice: Box<[VcpuFile]> = room.into_boxed_slice();
    if let Some(c) = cell(v) {
        let old = c.swap(Box::into_raw(slice).cast::<VcpuFile>(), Ordering::AcqRel);
        debug_assert!(old.is_null());
    }
    Ok(())
}

/// Frees a register file.
pub fn destroy(v: VcpuRef) {
    let Some(c) = cell(v) else { return };
    let p = c.swap(core::ptr::null_mut(), Ordering::AcqRel);
    if !p.is_null() {
        // SAFETY: made by `create` as a boxed slice of one, and unreachable since the swap.
        drop(unsafe { Box::from_raw(core::ptr::slice_from_raw_parts_mut(p, 1)) });
    }
}

/// Sets the state of a vcpu that is about to start.
pub fn set_state(v: VcpuRef, s: &StartState) {
    let Some(f) = file(v) else { return };
    f.x = s.x;
    f.pc = s.pc;
    // A guest runs at EL1 or EL0 only, in AArch64 at EL1.
    let mode = s.cpsr & 0x1f;
    f.spsr = if matches!(mode, 0 | 4 | 5) {
        s.cpsr & 0xffff_ffff
    } else {
        (s.cpsr & 0xffff_ffe0) | 5
    };
    f.sys = [0; SYS];
    f.sys[SCTLR] = s.sctlr;
    f.sys[TTBR0] = s.ttbr0;
    f.sys[TTBR1] = s.ttbr1;
    f.sys[TCR] = s.tcr;
    f.sys[ELR] = s.elr_el1;
    f.sys[SPSR] = s.spsr_el1;
    f.sys[SP_EL0] = s.sp_el0;
    f.sys[SP_EL1] = s.sp_el1;
    f.fp = [0; 32];
    f.fpcr = 0;
    f.fpsr = 0;
    f.cntv_ctl = 0;
    f.cntv_cval = 0;
    f.setway = SetWay::default();
    // Whoever was stopped in a handler never ended it.
    f.vif.apr = Default::default();
}

/// Reads the state of a vcpu that is off the CPUs.
pub fn get_state(v: VcpuRef) -> StartState {
    let Some(f) = file(v) else {
        return StartState::default();
    };
    StartState {
        x: f.x,
        pc: f.pc,
        cpsr: f.spsr,
        sctlr: f.sys[SCTLR],
        tcr: f.sys[TCR],
        ttbr0: f.sys[TTBR0],
        ttbr1: f.sys[TTBR1],
        sp_el0: f.sys[SP_EL0],
        sp_el1: f.sys[SP_EL1],
        elr_el1: f.sys[ELR],
        spsr_el1: f.sys[SPSR],
    }
}

macro_rules! fp {
    ($op:literal, $p:expr) => {
        asm!(
            ".arch_extension fp",
            ".arch_extension simd",
            concat!($op, " q0, q1, [{p}, #0]"), concat!($op, " q2, q3, [{p}, #32]"),
            concat!($op, " q4, q5, [{p}, #64]"), concat!($op, " q6, q7, [{p}, #96]"),
            concat!($op, " q8, q9, [{p}, #128]"), concat!($op, " q10, q11, [{p}, #160]"),
            concat!($op, " q12, q13, [{p}, #192]"), concat!($op, " q14, q15, [{p}, #224]"),
            concat!($op, " q16, q17, [{p}, #256]"), concat!($op, " q18, q19, [{p}, #288]"),
            concat!($op, " q20, q21, [{p}, #320]"), concat!($op, " q22, q23, [{p}, #352]"),
            concat!($op, " q24, q25, [{p}, #384]"), concat!($op, " q26, q27, [{p}, #416]"),
            concat!($op, " q28, q29, [{p}, #448]"), concat!($op, " q30, q31, [{p}, #480]"),
            p = in(reg) $p, options(nostack)
        )
    };
}

/// Whether what this CPU did until now has made an SError pending (Arm ARM, "Error synchronization event", "ISR_EL1");
/// [`take_serror`] takes it.
#[inline(always)]
pub fn serror_pending(has: Features) -> bool {
    let found: u64;
    if has.has(Features::RAS) {
        // SAFETY: ESB moves what is pending to DISR_EL1, as SErrors are masked at EL2.
        unsafe { asm!("hint #16", "mrs {}, s3_0_c12_c1_1", out(reg) found, options(nostack)) };
        found & 1 << 31 != 0
    } else {
        // SAFETY: a barrier, after which what was done has come to its end, and a register that says what is pending.
        unsafe { asm!("dsb sy", "isb", "mrs {}, isr_el1", out(reg) found, options(nostack)) };
        found & 1 << 8 != 0
    }
}

/// The syndrome of an SError of which [`serror_pending`] said that it is pending, as it is no more; 0 if it is none.
#[cold]
pub fn take_serror(has: Features) -> u64 {
    if !has.has(Features::RAS) {
        // SAFETY: entry.s: takes it at once, and comes back.
        return unsafe { hv_take_serror() };
    }
    let found: u64;
    // SAFETY: what ESB noted; it is read once.
    unsafe {
        asm!("mrs {}, s3_0_c12_c1_1", "msr s3_0_c12_c1_1, xzr", out(reg) found, options(nostack))
    };
    found
}

unsafe extern "C" {
    fn hv_take_serror() -> u64;
}

/// Takes the vcpu's registers out of this CPU's hardware; its virtual timer stops raising PPI 27.
pub fn leave(f: &mut VcpuFile) {
    save_sys(&mut f.sys);
    // SAFETY: floating-point and timer registers belong to the guest; EL2 code is soft-float.
    unsafe {
        fp!("stp", f.fp.as_mut_ptr());
        asm!("mrs {}, s3_3_c4_c4_0", "mrs {}, s3_3_c4_c4_1", out(reg) f.fpcr, out(reg) f.fpsr, options(nomem, nostack));
        // No walk is speculated with this root and the next one's registers (erratum 1319367), and an idle CPU names
        // no root that may be freed.
        asm!("mrs {}, cntv_ctl_el0", "mrs {}, cntv_cval_el0", "msr cntv_ctl_el0, xzr", "msr vttbr_el2, {e}", "isb",
            out(reg) f.cntv_ctl, out(reg) f.cntv_cval, e = in(reg) empty_root().0, options(nostack));
    }
}

#[repr(C, align(8192))]
struct EmptyRoot(UnsafeCell<[u64; 1024]>);
// SAFETY: nobody writes it.
unsafe impl Sync for EmptyRoot {}
static EMPTY_ROOT: EmptyRoot = EmptyRoot(UnsafeCell::new([0; 1024]));

/// Stage-2 tables that translate nothing; with VMID 0, what VTTBR_EL2 holds while no vcpu's registers are in the CPU.
#[inline]
pub fn empty_root() -> Pa {
    Pa(EMPTY_ROOT.0.get() as u64)
}

/// Puts the vcpu's registers into this CPU's hardware, which has `has`; with `fresh`, drops what its TLB holds of another
/// vcpu of the same domain.
pub fn enter(f: &VcpuFile, has: Features, fresh: bool) {
    load_sys(&f.sys);
    if has.has(Features::RAS) {
        // VDISR_EL2 is what a guest reaches as DISR_EL1. It is not told that there is one: nothing is kept for it, and
        // nothing comes to it from another.
        // SAFETY: a register for guests only.
        unsafe { asm!("msr s3_4_c12_c1_1, xzr", options(nomem, nostack)) };
    }
    // SAFETY: as in `leave`; the stage-2 root is the domain's own.
    unsafe {
        fp!("ldp", f.fp.as_ptr());
        asm!("msr s3_3_c4_c4_0, {}", "msr s3_3_c4_c4_1, {}", in(reg) f.fpcr, in(reg) f.fpsr, options(nomem, nostack));
        asm!("msr cntvoff_el2, {}", "msr cntv_cval_el0, {}", "msr cntv_ctl_el0, {}",
            in(reg) f.cntvoff, in(reg) f.cntv_cval, in(reg) f.cntv_ctl, options(nomem, nostack));
        // The root last, when all registers that its walks go by are the vcpu's.
        asm!("msr vmpidr_el2, {}", "msr hcr_el2, {}", "isb", "msr vttbr_el2, {}", "isb",
            in(reg) f.vmpidr, in(reg) f.hcr, in(reg) f.vttbr.map_or(empty_root().0, Stage2Root::bits), options(nostack));
        if fresh {
            asm!("tlbi vmalle1", "dsb nsh", "isb", options(nostack));
        }
    }
}

/// HCR_EL2 of a vcpu whose traps are `base`, as far as its state changes it.
pub fn hcr(base: u64, f: &VcpuFile) -> u64 {
    let bit = |on, bit| if on { bit } else { 0 };
    base | bit(f.setway.watched(), hv_core::cpu::hcr::TVM) | bit(f.wanted, hv_core::cpu::hcr::TWE)
}

/// Changes the traps of the vcpu that is on this CPU.
pub fn set_hcr(f: &mut VcpuFile, hcr: u64) {
    f.hcr = hcr;
    // SAFETY: trap configuration; it takes effect with the return to the guest.
    unsafe { asm!("msr hcr_el2, {}", in(reg) hcr, options(nostack)) };
}

/// SCTLR_EL1 of the vcpu that is on this CPU.
pub fn sctlr() -> u64 {
    let v: u64;
    // SAFETY: reads a register of the guest.
    unsafe { asm!("mrs {}, sctlr_el1", out(reg) v, options(nomem, nostack)) };
    v
}

/// Does a trapped write to a register of the translation regime of the vcpu on this CPU.
pub fn write_vm(reg: VmReg, value: u64) {
    macro_rules! write {
        ($($name:ident $reg:literal),*) => {
            // SAFETY: EL1 registers that only the guest on this CPU uses; nothing at EL2 depends on them.
            match reg { $(VmReg::$name => unsafe {
                asm!(concat!("msr ", $reg, ", {}"), in(reg) value, options(nomem, nostack))
            },)* }
        };
    }
    write!(
        Sctlr "sctlr_el1", Ttbr0 "ttbr0_el1", Ttbr1 "ttbr1_el1", Tcr "tcr_el1", Esr "esr_el1",
        Far "far_el1", Afsr0 "afsr0_el1", Afsr1 "afsr1_el1", Mair "mair_el1", Amair "amair_el1",
        Contextidr "contextidr_el1"
    );
}

/// Makes `f` the register file into which traps on this CPU save.
pub fn set_current(f: *const VcpuFile) {
    // SAFETY: TPIDR_EL2 is the hypervisor's own.
    unsafe { asm!("msr tpidr_el2, {}", in(reg) f, options(nostack)) };
}
