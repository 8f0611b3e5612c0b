// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each CPU has beyond Armv8.0, and how EL2 keeps from guests what is not theirs.
//!
//! A feature that guests do not get is hidden in their ID registers (`sysreg`) *and* trapped here: what is only
//! hidden could still be used, and its registers, which nobody switches, would pass from one domain to the next.
//! Names of registers, fields and features are those of the Arm ARM (DDI 0487).

use crate::sysreg::IdRegs;

/// Bits of HCR_EL2.
pub mod hcr {
    #![allow(missing_docs)]
    pub const VM: u64 = 1 << 0;
    pub const SWIO: u64 = 1 << 1;
    pub const PTW: u64 = 1 << 2;
    pub const FMO: u64 = 1 << 3;
    pub const IMO: u64 = 1 << 4;
    pub const AMO: u64 = 1 << 5;
    pub const FB: u64 = 1 << 9;
    pub const BSU_INNER: u64 = 1 << 10;
    pub const TWI: u64 = 1 << 13;
    pub const TWE: u64 = 1 << 14;
    pub const TID3: u64 = 1 << 18;
    pub const TSC: u64 = 1 << 19;
    pub const TIDCP: u64 = 1 << 20;
    pub const TACR: u64 = 1 << 21;
    pub const TSW: u64 = 1 << 22;
    pub const TVM: u64 = 1 << 26;
    pub const RW: u64 = 1 << 31;
    pub const E2H: u64 = 1 << 34;
    pub const TLOR: u64 = 1 << 35;
    pub const TERR: u64 = 1 << 36;
    /// Zero traps the keys of pointer authentication.
    pub const APK: u64 = 1 << 40;
    /// Zero traps the instructions of pointer authentication.
    pub const API: u64 = 1 << 41;
    /// Zero traps the registers of error records' fault injection.
    pub const FIEN: u64 = 1 << 47;
    /// Zero traps SCXTNUM_EL1 and SCXTNUM_EL0.
    pub const EN_SCXT: u64 = 1 << 53;
    /// Zero traps the registers of allocation tags.
    pub const ATA: u64 = 1 << 56;
    pub const TID5: u64 = 1 << 58;
}

/// Bits of CPTR_EL2 where HCR_EL2.E2H is 0.
pub mod cptr {
    #![allow(missing_docs)]
    /// Bits 13, 9 and 7 to 0.
    pub const RES1: u64 = 0x22ff;
    /// Also RES1 without SVE.
    pub const TZ: u64 = 1 << 8;
    pub const TFP: u64 = 1 << 10;
    /// Also RES1 without SME.
    pub const TSM: u64 = 1 << 12;
    pub const TTA: u64 = 1 << 20;
    pub const TAM: u64 = 1 << 30;
    pub const TCPAC: u64 = 1 << 31;
}

/// Bits of MDCR_EL2; HPMN is the lowest five.
pub mod mdcr {
    #![allow(missing_docs)]
    pub const TPMCR: u64 = 1 << 5;
    pub const TPM: u64 = 1 << 6;
    pub const TDA: u64 = 1 << 9;
    pub const TDOSA: u64 = 1 << 10;
    pub const TDRA: u64 = 1 << 11;
    /// Zero: the profiling buffer is EL2's, and EL1 traps.
    pub const E2PB: u64 = 3 << 12;
    pub const TPMS: u64 = 1 << 14;
    /// Zero traps the system performance monitors.
    pub const EN_SPM: u64 = 1 << 15;
    pub const TTRF: u64 = 1 << 19;
    /// Zero: the trace buffer is EL2's, and EL1 traps.
    pub const E2TB: u64 = 3 << 24;
}

/// HCRX_EL2.TALLINT. Every other feature that HCRX_EL2 governs is enabled by a one.
pub const HCRX_TALLINT: u64 = 1 << 6;

/// Registers of EL2 that not every CPU has, and what goes with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(u32);

impl Features {
    /// RAS: VDISR_EL2, VSESR_EL2.
    pub const RAS: Self = Self(1 << 0);
    /// Performance monitors: PMCR_EL0.
    pub const PMU: Self = Self(1 << 1);
    /// ZCR_EL2.
    pub const SVE: Self = Self(1 << 2);
    /// SMCR_EL2, SVCR.
    pub const SME: Self = Self(1 << 3);
    /// HCRX_EL2.
    pub const HCX: Self = Self(1 << 4);
    /// HFGRTR_EL2, HFGWTR_EL2, HFGITR_EL2, HDFGRTR_EL2, HDFGWTR_EL2.
    pub const FGT: Self = Self(1 << 5);
    /// HFGRTR2_EL2 and the others.
    pub const FGT2: Self = Self(1 << 6);
    /// Activity monitors; with FGT, HAFGRTR_EL2.
    pub const AMU: Self = Self(1 << 7);
    /// MPAM2_EL2, MPAMHCR_EL2.
    pub const MPAM: Self = Self(1 << 8);
    /// TRFCR_EL2.
    pub const TRF: Self = Self(1 << 9);
    /// PMSCR_EL2.
    pub const SPE: Self = Self(1 << 10);
    /// BRBCR_EL2.
    pub const BRBE: Self = Self(1 << 11);
    /// LORC_EL1 and the others.
    pub const LOR: Self = Self(1 << 12);
    /// GMID_EL1.
    pub const MTE2: Self = Self(1 << 13);
    /// PSTATE.ALLINT.
    pub const NMI: Self = Self(1 << 14);

    /// Whether all of `other` is there.
    #[must_use]
    #[inline]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What the CPU with these (its own) ID registers has. The fields: CRm, op2, lowest bit, least value.
    #[must_use]
    pub fn of(ids: &IdRegs) -> Self {
        const FIELDS: [(Features, u8, u8, u8, u64); 15] = [
            (Features::RAS, 4, 0, 28, 1),
            (Features::SVE, 4, 0, 32, 1),
            (Features::MPAM, 4, 0, 40, 1),
            (Features::AMU, 4, 0, 44, 1),
            (Features::MTE2, 4, 1, 8, 2),
            // MPAM_frac: version 0.1.
            (Features::MPAM, 4, 1, 16, 1),
            (Features::SME, 4, 1, 24, 1),
            (Features::NMI, 4, 1, 36, 1),
            (Features::SPE, 5, 0, 32, 1),
            (Features::TRF, 5, 0, 40, 1),
            (Features::BRBE, 5, 0, 52, 1),
            (Features::FGT, 7, 0, 56, 1),
            (Features::FGT2, 7, 0, 56, 2),
            (Features::LOR, 7, 1, 16, 1),
            (Features::HCX, 7, 1, 40, 1),
        ];
        // PMUVer: 15 is something else than Arm's.
        let mut all = match ids.get(5, 0) >> 8 & 0xf {
            0 | 0xf => 0,
            _ => Self::PMU.0,
        };
        for (feature, crm, op2, lsb, least) in FIELDS {
            if ids.get(crm, op2) >> lsb & 0xf >= least {
                all |= feature.0;
            }
        }
        Self(all)
    }

    /// HCR_EL2 of every guest.
    #[must_use]
    pub const fn hcr(self) -> u64 {
        use hcr::*;
        VM | SWIO
            | PTW
            | FMO
            | IMO
            | AMO
            | FB
            | BSU_INNER
            | TWI
            | TID3
            | TSC
            | TIDCP
            | TACR
            | TSW
            | RW
            | if self.has(Self::LOR) { TLOR } else { 0 }
            | if self.has(Self::RAS) { TERR } else { 0 }
            | if self.has(Self::MTE2) { TID5 } else { 0 }
    }

    /// CPTR_EL2: floating point is the guests', and nothing else of what it governs.
    #[must_use]
    pub const fn cptr(self) -> u64 {
        use cptr::*;
        RES1 | TZ | TSM | TTA | if self.has(Self::AMU) { TAM } else { 0 }
    }

    /// MDCR_EL2 of a CPU with `counters` event counters (PMCR_EL0.N): HPMN is to say that all of them are not EL2's
    /// own, as less, and zero above all, is not allowed everywhere.
    #[must_use]
    pub const fn mdcr(self, counters: u64) -> u64 {
        use mdcr::*;
        TDRA | TDOSA
            | TDA
            | TPM
            | TPMCR
            | if self.has(Self::SPE) { TPMS } else { 0 }
            | if self.has(Self::TRF) { TTRF } else { 0 }
            | counters & 0x1f
    }

    /// HCRX_EL2, where there is one.
    #[must_use]
    pub const fn hcrx(self) -> u64 {
        if self.has(Self::NMI) { HCRX_TALLINT } else { 0 }
    }
}

#[cfg(test)]
mod tests;
