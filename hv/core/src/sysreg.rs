// SPDX-License-Identifier: MIT OR Apache-2.0
//! Trapped accesses to system registers (`MRS`, `MSR` and `DC` by set and way; exception class
//! 0x18), and what a guest is told of the CPU.
//!
//! One table, `rule`, says what each register does; what it does not list is an undefined
//! instruction to the guest. Pure decoding: the caller acts, and steps over the instruction.

/// A register of the physical EL1 timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerReg {
    /// CNTP_CTL_EL0.
    Ctl,
    /// CNTP_TVAL_EL0.
    Tval,
    /// CNTP_CVAL_EL0.
    Cval,
    /// CNTPCT_EL0, read only.
    Count,
}

/// A register whose writes are trapped (HCR_EL2.TVM) to notice when the guest turns its caches on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum VmReg {
    Sctlr,
    Ttbr0,
    Ttbr1,
    Tcr,
    Esr,
    Far,
    Afsr0,
    Afsr1,
    Mair,
    Amair,
    Contextidr,
}

/// Which interrupts a write of an SGI register makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SgiReg {
    /// ICC_SGI1R_EL1: group 1.
    Sgi1r,
    /// ICC_ASGI1R_EL1: group 1 of the other security state.
    Asgi1r,
    /// ICC_SGI0R_EL1: group 0.
    Sgi0r,
}

/// What to do about an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emul {
    /// A read: this is the value.
    Value(u64),
    /// A write: nothing comes of it.
    Ignore,
    /// A timer register is read or written.
    Timer(TimerReg),
    /// Data cache maintenance by set and way: to be done by address over the guest's memory.
    SetWay,
    /// A write to carry out, with a look at what it does to the caches.
    Vm(VmReg),
    /// A write that sends an SGI; undefined for guests without a GICv3.
    Sgi(SgiReg),
    /// A write of ICC_DIR_EL1: an interrupt is active no longer; undefined for guests without a GICv3.
    Deactivate,
    /// The guest gets an undefined instruction exception.
    Undef,
}

/// A trapped access, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SysAccess {
    /// `op0`, 0 to 3.
    pub op0: u8,
    /// `op1`, 0 to 7.
    pub op1: u8,
    /// `CRn`, 0 to 15.
    pub crn: u8,
    /// `CRm`, 0 to 15.
    pub crm: u8,
    /// `op2`, 0 to 7.
    pub op2: u8,
    /// The general register, 31 being xzr.
    pub rt: u8,
    /// `MRS`.
    pub read: bool,
}

impl SysAccess {
    /// From the syndrome of an exception of class 0x18 (Arm ARM, "ISS encoding for an exception
    /// from MSR, MRS, or System instruction execution in AArch64 state").
    #[must_use]
    #[inline]
    pub const fn from_iss(iss: u32) -> Self {
        Self {
            op0: (iss >> 20 & 3) as u8,
            op1: (iss >> 14 & 7) as u8,
            crn: (iss >> 10 & 15) as u8,
            crm: (iss >> 1 & 15) as u8,
            op2: (iss >> 17 & 7) as u8,
            rt: (iss >> 5 & 31) as u8,
            read: iss & 1 != 0,
        }
    }

    /// From the syndrome of an access of AArch32's EL0 to a register of coprocessor 15: of class 0x03 (MCR, MRC), or
    /// `wide`, 0x04 (MCRR, MRRC; `rt` is the lower half's). The encoding of the AArch64 register with the same fields,
    /// which those that EL0 may reach have; `None` where there is none.
    #[must_use]
    pub const fn from_cp15(iss: u32, wide: bool) -> Option<Self> {
        let (crm, rt, read) = ((iss >> 1 & 15) as u8, (iss >> 5 & 31) as u8, iss & 1 != 0);
        let (crn, op2, known) = if wide {
            // CNTP_CVAL is all that traps.
            (14, 2, iss >> 16 & 15 == 2 && crm == 14)
        } else {
            let (crn, op2) = ((iss >> 10 & 15) as u8, (iss >> 17 & 7) as u8);
            (crn, op2, iss >> 14 & 7 == 0)
        };
        if !known {
            return None;
        }
        Some(Self {
            op0: 3,
            op1: 3,
            crn,
            crm: if wide { 2 } else { crm },
            op2,
            rt,
            read,
        })
    }
}

/// What a register does.
#[derive(Clone, Copy)]
enum Rule {
    /// Reads as this value, writes are ignored. EL1 only.
    Fixed(u64),
    /// As `Fixed`, but writes are undefined.
    ReadOnly(u64),
    /// Writes are ignored, reads are undefined. EL1 only.
    WriteOnly,
    /// Reads as zero also at EL0; written at EL1 to no effect, if at all.
    El0Zero {
        write: bool,
    },
    /// An identification register.
    Id,
    /// A timer register, also at EL0 (the guest's own CNTKCTL_EL1 has let it pass); whether it can
    /// be written.
    Timer(TimerReg, bool),
    SetWay,
    Vm(VmReg),
    Sgi(SgiReg),
    Deactivate,
    Undef,
}

/// The table. Names are those of the Arm ARM; the trap that brings them here stands above.
#[inline]
const fn rule(a: &SysAccess) -> Rule {
    match (a.op0, a.op1, a.crn, a.crm, a.op2) {
        // No trap of their own: CNTHCTL_EL2.EL1PCEN, and EL1PCTEN where the host's clock is held
        // back.
        (3, 3, 14, 2, 0) => Rule::Timer(TimerReg::Tval, true),
        (3, 3, 14, 2, 1) => Rule::Timer(TimerReg::Ctl, true),
        (3, 3, 14, 2, 2) => Rule::Timer(TimerReg::Cval, true),
        (3, 3, 14, 0, 1) => Rule::Timer(TimerReg::Count, false),
        // HCR_EL2.IMO, FMO.
        (3, 0, 12, 11, 5) => Rule::Sgi(SgiReg::Sgi1r),
        (3, 0, 12, 11, 6) => Rule::Sgi(SgiReg::Asgi1r),
        (3, 0, 12, 11, 7) => Rule::Sgi(SgiReg::Sgi0r),
        // ICH_HCR_EL2.TDIR.
        (3, 0, 12, 11, 1) => Rule::Deactivate,
        // ICC_SRE_EL1: guests always have the system-register interface on a GICv3.
        (3, 0, 12, 12, 5) => Rule::Fixed(7),
        // HCR_EL2.TID3: the identification registers of group 3, unallocated ones included.
        (3, 0, 0, 1..=7, _) => Rule::Id,
        // HCR_EL2.TACR: ACTLR_EL1.
        (3, 0, 1, 0, 1) => Rule::Fixed(0),
        // HCR_EL2.TVM.
        (3, 0, 1, 0, 0) => Rule::Vm(VmReg::Sctlr),
        (3, 0, 2, 0, 0) => Rule::Vm(VmReg::Ttbr0),
        (3, 0, 2, 0, 1) => Rule::Vm(VmReg::Ttbr1),
        (3, 0, 2, 0, 2) => Rule::Vm(VmReg::Tcr),
        (3, 0, 5, 1, 0) => Rule::Vm(VmReg::Afsr0),
        (3, 0, 5, 1, 1) => Rule::Vm(VmReg::Afsr1),
        (3, 0, 5, 2, 0) => Rule::Vm(VmReg::Esr),
        (3, 0, 6, 0, 0) => Rule::Vm(VmReg::Far),
        (3, 0, 10, 2, 0) => Rule::Vm(VmReg::Mair),
        (3, 0, 10, 3, 0) => Rule::Vm(VmReg::Amair),
        (3, 0, 13, 0, 1) => Rule::Vm(VmReg::Contextidr),
        // HCR_EL2.TSW: DC ISW, DC CSW, DC CISW.
        (1, 0, 7, 6 | 10 | 14, 2) => Rule::SetWay,
        // MDCR_EL2.TDA: MDSCR_EL1; DBGBVR, DBGBCR, DBGWVR, DBGWCR<n>_EL1.
        (2, 0, 0, 2, 2) => Rule::Fixed(0),
        (2, 0, 0, _, 4..=7) => Rule::Fixed(0),
        // MDCCSR_EL0, DBGDTR_EL0, DBGDTRRX_EL0 and DBGDTRTX_EL0.
        (2, 3, 0, 1, 0) => Rule::El0Zero { write: false },
        (2, 3, 0, 4 | 5, 0) => Rule::Fixed(0),
        // MDCR_EL2.TDRA: MDRAR_EL1.
        (2, 0, 1, 0, 0) => Rule::ReadOnly(0),
        // MDCR_EL2.TDOSA: OSLAR_EL1, OSLSR_EL1 (the lock is there and open), OSDLR_EL1.
        (2, 0, 1, 0, 4) => Rule::WriteOnly,
        (2, 0, 1, 1, 4) => Rule::ReadOnly(1 << 3),
        (2, 0, 1, 3, 4) => Rule::Fixed(0),
        // MDCR_EL2.TPM, TPMCR: PMINTENSET_EL1, PMINTENCLR_EL1, PMMIR_EL1.
        (3, 0, 9, 14, 1 | 2) => Rule::Fixed(0),
        (3, 0, 9, 14, 6) => Rule::ReadOnly(0),
        // PMCR, PMCNTENSET, PMCNTENCLR, PMOVSCLR, PMSWINC, PMSELR, PMCEID0, PMCEID1 _EL0.
        (3, 3, 9, 12, _) => Rule::Fixed(0),
        // PMCCNTR, PMXEVTYPER, PMXEVCNTR _EL0.
        (3, 3, 9, 13, 0..=2) => Rule::Fixed(0),
        // PMUSERENR_EL0, PMOVSSET_EL0.
        (3, 3, 9, 14, 0) => Rule::El0Zero { write: true },
        (3, 3, 9, 14, 3) => Rule::Fixed(0),
        // PMEVCNTR<n>_EL0, PMEVTYPER<n>_EL0, PMCCFILTR_EL0.
        (3, 3, 14, 8..=15, _) => Rule::Fixed(0),
        _ => Rule::Undef,
    }
}

/// Decodes an access that was trapped; `el0` says that the guest's user mode made it.
#[must_use]
#[inline]
pub fn decode(a: &SysAccess, el0: bool, ids: &IdRegs) -> Emul {
    let kernel = !el0;
    match (rule(a), a.read) {
        (Rule::Timer(reg, writable), read) if read || writable => Emul::Timer(reg),
        (Rule::El0Zero { .. }, true) => Emul::Value(0),
        (Rule::El0Zero { write: true }, false) if kernel => Emul::Ignore,
        (Rule::Fixed(v) | Rule::ReadOnly(v), true) if kernel => Emul::Value(v),
        (Rule::Fixed(_) | Rule::WriteOnly, false) if kernel => Emul::Ignore,
        (Rule::Id, true) if kernel => Emul::Value(ids.get(a.crm, a.op2)),
        (Rule::SetWay, false) if kernel => Emul::SetWay,
        (Rule::Vm(reg), false) if kernel => Emul::Vm(reg),
        (Rule::Sgi(reg), false) if kernel => Emul::Sgi(reg),
        (Rule::Deactivate, false) if kernel => Emul::Deactivate,
        _ => Emul::Undef,
    }
}

/// The identification registers of group 3: op0 3, op1 0, CRn 0, CRm 1 to 7, op2 0 to 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRegs([u64; 56]);

/// Which fields of the CPU's registers guests may see: `CRm`, `op2`, bits. What is missing reads as
/// zero, so that a feature of tomorrow stays hidden until somebody has thought about it.
const SHOWN: [(u8, u8, u64); 32] = [
    // ID_PFR0_EL1: instruction sets, CSV2, DIT. Not AMU, RAS.
    (1, 0, 0x0f0f_ffff),
    // ID_PFR1_EL1: programmers' model, M profile, generic timer. Not security, virtualization, GIC.
    (1, 1, 0x000f_0f0f),
    // ID_MMFR0..3_EL1.
    (1, 4, 0xffff_ffff),
    (1, 5, 0xffff_ffff),
    (1, 6, 0xffff_ffff),
    (1, 7, 0xffff_ffff),
    // ID_ISAR0..5_EL1, ID_MMFR4_EL1, ID_ISAR6_EL1.
    (2, 0, 0xffff_ffff),
    (2, 1, 0xffff_ffff),
    (2, 2, 0xffff_ffff),
    (2, 3, 0xffff_ffff),
    (2, 4, 0xffff_ffff),
    (2, 5, 0xffff_ffff),
    (2, 6, 0xffff_ffff),
    (2, 7, 0xffff_ffff),
    // MVFR0..2_EL1.
    (3, 0, 0xffff_ffff),
    (3, 1, 0xffff_ffff),
    (3, 2, 0xffff_ffff),
    // ID_PFR2_EL1: CSV3, SSBS. Not RAS_frac.
    (3, 4, 0x0000_00ff),
    // ID_AA64PFR0_EL1: EL0, EL2, EL3, FP, AdvSIMD, DIT, CSV2, CSV3. Not RAS, SVE, SEL2, MPAM, AMU, RME; EL1
    // and GIC are put in. EL2 and EL3 are there, and not the guest's: a kernel that finds neither takes EL1
    // for the highest level and sets up what only that one may (Zephyr: CNTFRQ_EL0).
    (4, 0, 0xff0f_0000_00ff_ff0f),
    // ID_AA64PFR1_EL1: BT, SSBS, CSV2_frac. Not MTE, RAS_frac, MPAM_frac, SME, NMI.
    (4, 1, 0x0000_000f_0000_00ff),
    // ID_AA64ISAR0_EL1: all but TME.
    (6, 0, 0xffff_ffff_f0ff_ffff),
    // ID_AA64ISAR1_EL1: all but pointer authentication (APA, API, GPA, GPI) and LS64.
    (6, 1, 0x0fff_ffff_00ff_f00f),
    // ID_AA64ISAR2_EL1: RPRES, BC, CLRBHB. Not WFxT, MOPS (they need the hypervisor's help).
    (6, 2, 0x0000_0000_f0f0_00f0),
    // ID_AA64MMFR0_EL1: ASIDBits, BigEnd, BigEndEL0, stage 1 granules. Not SNSMem, stage 2 granules,
    // FGT, ECV; PARange is bounded.
    (7, 0, 0x0000_0000_ffff_0ff0),
    // ID_AA64MMFR1_EL1: HAFDBS, HPDS, PAN, ETS, AFP, nTLBPA, ECBHB. Not VMIDBits, VH, LO, SpecSEI,
    // XNX, TWED, HCX, TIDCP1, CMOW.
    (7, 1, 0xf00f_f0f0_00f0_f00f),
    // ID_AA64MMFR2_EL1: CnP, UAO, LSM, VARange, CCIDX, ST, AT (LSE2), IDS, TTL, BBM, E0PD. Not IESB,
    // NV, FWB, EVT.
    (7, 2, 0xf0ff_00ff_f0ff_0fff),
    // The rest is written out for whoever looks for it: nothing is shown.
    // ID_DFR0_EL1, ID_DFR1_EL1: debug and performance monitors of AArch32.
    (1, 2, 0),
    (3, 5, 0),
    // ID_AA64ZFR0_EL1, ID_AA64SMFR0_EL1: SVE, SME.
    (4, 4, 0),
    (4, 5, 0),
    // ID_AA64MMFR3_EL1, ID_AA64MMFR4_EL1.
    (7, 3, 0),
    (7, 4, 0),
];

/// ID_AA64DFR0_EL1 of every guest: Armv8 debug, two breakpoints and two watchpoints (the least that
/// there can be; they do nothing), no performance monitors, no trace.
const AA64DFR0: u64 = 6 | 1 << 12 | 1 << 20;

impl IdRegs {
    const fn at(crm: u8, op2: u8) -> usize {
        (crm.wrapping_sub(1) as usize) << 3 | op2 as usize & 7
    }

    /// Reads all registers of the group by `read(CRm, op2)`. Every CPU has all of them: those that
    /// it does not know read as zero.
    #[must_use]
    pub fn read(mut read: impl FnMut(u8, u8) -> u64) -> Self {
        let mut regs = [0; 56];
        for (i, r) in (0u8..).zip(&mut regs) {
            *r = read((i / 8).wrapping_add(1), i % 8);
        }
        Self(regs)
    }

    /// A register's value; 0 outside the group.
    #[must_use]
    #[inline]
    pub fn get(&self, crm: u8, op2: u8) -> u64 {
        self.0.get(Self::at(crm, op2)).copied().unwrap_or(0)
    }

    /// Whether the CPU has PSTATE.PAN (ID_AA64MMFR1_EL1.PAN).
    #[must_use]
    pub fn pan(&self) -> bool {
        self.get(7, 1) >> 20 & 0xf != 0
    }

    fn set(&mut self, crm: u8, op2: u8, value: u64) {
        if let Some(r) = self.0.get_mut(Self::at(crm, op2)) {
            *r = value;
        }
    }

    /// What a guest sees of these (the CPU's own) registers: `gic_v3` if its interrupt controller
    /// is a GICv3, `ipa_bits` the size of its physical address space (32 to 52).
    #[must_use]
    pub fn sanitised(&self, gic_v3: bool, ipa_bits: u32) -> Self {
        let mut guest = Self([0; 56]);
        // ID_AA64PFR0_EL1.EL0 = 2: AArch32 at EL0. Without it, nothing of AArch32 is shown.
        let aarch32 = self.get(4, 0) & 0xf == 2;
        for (crm, op2, bits) in SHOWN {
            if crm > 3 || aarch32 {
                guest.set(crm, op2, self.get(crm, op2) & bits);
            }
        }
        let gic = if gic_v3 { 1 << 24 } else { 0 };
        // EL1 = 1: AArch64 only.
        guest.set(4, 0, guest.get(4, 0) | 1 << 4 | gic);
        guest.set(5, 0, AA64DFR0);
        let range = match ipa_bits {
            0..36 => 0,
            36..40 => 1,
            40..42 => 2,
            42..44 => 3,
            44..48 => 4,
            48..52 => 5,
            _ => 6,
        };
        guest.set(7, 0, guest.get(7, 0) | range.min(self.get(7, 0) & 0xf));
        // CSV2 and CSV2_frac: from 2 on they promise SCXTNUM_EL1 and SCXTNUM_EL0 too, which trap (HCR_EL2.EnSCXT).
        for (crm, op2, lsb) in [(1, 0, 16), (4, 0, 56), (4, 1, 32)] {
            let value = guest.get(crm, op2);
            if value >> lsb & 0xf > 1 {
                guest.set(crm, op2, value & !(0xf << lsb) | 1 << lsb);
            }
        }
        guest
    }

    /// Whether a guest that was shown `other` and comes to a CPU that would show these finds all of that there: each
    /// field is a number of which a greater one is more (Arm ARM, "Principles of the ID scheme for fields in ID
    /// registers").
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        /// Numbers with a sign: ID_AA64PFR0_EL1.FP and AdvSIMD, ID_AA64MMFR0_EL1.TGran64 and TGran4.
        const SIGNED: [(usize, u32); 4] = [
            (IdRegs::at(4, 0), 16),
            (IdRegs::at(4, 0), 20),
            (IdRegs::at(7, 0), 24),
            (IdRegs::at(7, 0), 28),
        ];
        /// ID_AA64MMFR2_EL1.CCIDX, which is a format.
        const EQUAL: (usize, u32) = (IdRegs::at(7, 2), 20);
        self.0
            .iter()
            .zip(&other.0)
            .enumerate()
            .all(|(i, (mine, theirs))| {
                (0..64).step_by(4).all(|lsb| {
                    let flip = if SIGNED.contains(&(i, lsb)) { 8 } else { 0 };
                    let field = |v: &u64| v >> lsb & 0xf ^ flip;
                    let (mine, theirs) = (field(mine), field(theirs));
                    mine == theirs || mine > theirs && (i, lsb) != EQUAL
                })
            })
    }
}

#[cfg(test)]
mod tests;
