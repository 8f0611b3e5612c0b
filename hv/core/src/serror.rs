// SPDX-License-Identifier: MIT OR Apache-2.0
//! What follows from an SError interrupt, an error that the CPU was told of later than what caused it (XSA-201).
//!
//! Whoever made it pending is charged with it: the shell looks for one before a CPU changes from one vcpu to
//! another or begins to idle, and before another runs on it. What is charged to a vcpu may therefore come from what the
//! hypervisor did for it, or from a device; the verdicts are such that a guest can end itself by errors that it
//! causes and nobody else, and that memory which is known to be damaged is not used further.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use crate::hypervisor::Hypervisor;
use crate::machine::Machine;
use crate::types::Slot;

/// To whom an error is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A vcpu of an unprivileged domain.
    Guest,
    /// The control domain's, or nobody, as the CPU was idle: devices are the control domain's.
    ControlDomain,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is lost.
    GoOn,
    /// The log is told, and nothing else is done.
    Report,
    /// The domain is ended.
    End,
    /// Nothing can be relied on any more.
    Panic,
}

/// The verdict on an error by its syndrome: ESR_EL2's for SError (exception class 0x2f), or DISR_EL1, which has the
/// same fields (Arm ARM, "ISS encoding for an SError interrupt", "DISR_EL1").
///
/// Without a syndrome of the architecture's (IDS = 1, or DFSC other than 0x11, as on every CPU without FEAT_RAS) nothing is
/// known of the error's kind. Mostly it is a write to where there is no device, so a guest is ended. dom0 goes on: its end
/// would be the machine's, and a line in the log serves its owner better; Xen's default (`serrors=diverse`) panics for
/// neither, and leaves it to the kernel.
#[must_use]
pub const fn judge(syndrome: u64, by: By) -> Verdict {
    let (ids, dfsc) = (syndrome >> 24 & 1, syndrome & 0x3f);
    let guest = matches!(by, By::Guest);
    if ids != 0 || dfsc != 0x11 {
        return if guest { Verdict::End } else { Verdict::Report };
    }
    // AET. EA says where it came from, not what it damaged.
    match syndrome >> 10 & 7 {
        // Corrected; restartable: the state of the CPU is whole, and what is lost was not consumed.
        0b110 | 0b010 => Verdict::GoOn,
        // Unrecoverable, recoverable: contained in what ran.
        0b001 | 0b011 if guest => Verdict::End,
        // These in the control domain; uncontainable: it may have reached anything; reserved.
        _ => Verdict::Panic,
    }
}

impl Hypervisor {
    /// Reports an SError, and ends the domain in `slot`, to which it is charged, where that follows. True: nothing can be
    /// relied on any more.
    #[must_use]
    pub fn serror<M: Machine>(&mut self, m: &M, slot: Slot, syndrome: u64) -> bool {
        let privileged = self.domains.get(slot).is_none_or(|d| d.privileged);
        let by = if privileged {
            By::ControlDomain
        } else {
            By::Guest
        };
        let verdict = judge(syndrome, by);
        if verdict != Verdict::GoOn {
            let why = format_args!("SError, esr {syndrome:08x}");
            self.blame(m, slot, why, verdict == Verdict::End);
        }
        verdict == Verdict::Panic
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every syndrome that an SError can have, by its fields.
    fn all() -> impl Iterator<Item = (u64, u64, u64, u64)> {
        // ISS: IDS, AET, DFSC; the other bits.
        (0..1u64 << 13).map(|n| {
            let (ids, aet, dfsc, other) = (n & 1, n >> 1 & 7, n >> 4 & 0x3f, n >> 10);
            let rest = (other & 1) << 9 | (other >> 1 & 1) << 13 | (other >> 2 & 1) << 31;
            (
                0x2f << 26 | ids << 24 | aet << 10 | dfsc | rest,
                ids,
                aet,
                dfsc,
            )
        })
    }

    #[test]
    fn xsa_201_a_guest_never_ends_the_machine_by_an_error_that_is_contained() {
        for (s, ids, aet, dfsc) in all() {
            let v = judge(s, By::Guest);
            let uncontained =
                ids == 0 && dfsc == 0x11 && !matches!(aet, 0b001 | 0b010 | 0b011 | 0b110);
            assert_eq!(v == Verdict::Panic, uncontained, "{s:#x}");
            // And one that was damaged does not go on.
            let whole = ids == 0 && dfsc == 0x11 && matches!(aet, 0b010 | 0b110);
            assert_eq!(v == Verdict::GoOn, whole, "{s:#x}");
            assert_ne!(v, Verdict::Report, "{s:#x}");
        }
    }

    #[test]
    fn xsa_201_the_control_domain_is_not_ended_by_what_is_not_known() {
        for (s, ids, aet, dfsc) in all() {
            let v = judge(s, By::ControlDomain);
            assert_ne!(v, Verdict::End, "{s:#x}: its end is the machine's");
            let known = ids == 0 && dfsc == 0x11;
            assert_eq!(v == Verdict::Report, !known, "{s:#x}");
            assert_eq!(
                v == Verdict::GoOn,
                known && matches!(aet, 0b010 | 0b110),
                "{s:#x}"
            );
        }
    }

    #[test]
    fn xsa_201_what_cpus_say() {
        // A Cortex-A72 (no FEAT_RAS) of an unassigned address: IDS = 1 or DFSC = 0; a Cortex-A76's of the three kinds.
        for (s, guest, dom0) in [
            (0xbf00_0000, Verdict::End, Verdict::Report),
            (0xbe00_0000, Verdict::End, Verdict::Report),
            (0xbe00_0011, Verdict::Panic, Verdict::Panic),
            (0xbe00_0411, Verdict::End, Verdict::Panic),
            (0xbe00_0811, Verdict::GoOn, Verdict::GoOn),
            (0xbe00_0c11, Verdict::End, Verdict::Panic),
            (0xbe00_1a11, Verdict::GoOn, Verdict::GoOn),
            // DISR_EL1: A, and the same.
            (0x8000_0411, Verdict::End, Verdict::Panic),
        ] {
            assert_eq!(judge(s, By::Guest), guest, "{s:#x}");
            assert_eq!(judge(s, By::ControlDomain), dom0, "{s:#x}");
        }
    }
}
