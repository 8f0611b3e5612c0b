// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is known of cores by their MIDR_EL1, and what follows for guests and for EL2: XSA-254 (branch target
//! injection), XSA-263 (speculative store bypass), XSA-398 (branch history injection), XSA-436 (Cortex-A77's
//! deadlock) and its like. What needs no table: XSA-312 (a barrier stands behind each `eret`), XSA-453 (no lock of the
//! hypervisor's is raced by speculation to memory that a guest chooses), XSA-493 (TLB invalidations are repeated).
//!
//! What firmware alone can mend, and EL2 cannot see: CVE-2024-5660 (hardware page aggregation passes by stage 2 on
//! Cortex-A77, A78, A710, X1 to X4, X925, Neoverse N2, V1 to V3), by a bit of CPUECTLR_EL1.
//!
//! Sources: Arm, "Speculative Processor Vulnerability" and "Spectre-BHB" (lists of cores); SMCCC (DEN 0028); the lists of
//! Linux's `proton-pack.c` and `cpu_errata.c`, of version 6.15.

use crate::psci::{Workaround, Workarounds};

/// Branch targets of one context steer another's (Spectre v2).
const TARGET: u8 = 1;
/// A load passes an older store to its address (Spectre v4).
const BYPASS: u8 = 2;
/// Branch history of one context steers another's (Spectre-BHB).
const HISTORY: u8 = 4;

/// Cores that a guest can lock up by an instruction stream of its own: part number, and the last variant and revision.
/// Cortex-A77, exclusive stores and loads of devices (erratum 1508412, to r1p0); Cortex-A57, exclusives and loads of
/// devices (832075, to r1p2).
const LOCKING: [(u16, u8); 2] = [(0xd0d, 0x10), (0xd07, 0x12)];

/// Arm's cores: part number and weaknesses. What is not here is not known.
const CORES: [(u16, u8); 25] = [
    // Cortex-A35, A53, A55: in order.
    (0xd04, 0),
    (0xd03, 0),
    (0xd05, 0),
    // Cortex-A510, A520: the same; of store bypass Arm says no more than that PSTATE.SSBS is there.
    (0xd46, BYPASS),
    (0xd80, BYPASS),
    // Cortex-A57, A72, A73, A75.
    (0xd07, TARGET | BYPASS | HISTORY),
    (0xd08, TARGET | BYPASS | HISTORY),
    (0xd09, TARGET | BYPASS | HISTORY),
    (0xd0a, TARGET | BYPASS | HISTORY),
    // Cortex-A76, A76AE, A77, Neoverse N1.
    (0xd0b, BYPASS | HISTORY),
    (0xd0e, BYPASS | HISTORY),
    (0xd0d, BYPASS | HISTORY),
    (0xd0c, BYPASS | HISTORY),
    // Cortex-A78, A78AE, A78C, X1, A710, X2, A715, X3, A720, Neoverse V1, N2, V2.
    (0xd41, BYPASS | HISTORY),
    (0xd42, BYPASS | HISTORY),
    (0xd4b, BYPASS | HISTORY),
    (0xd44, BYPASS | HISTORY),
    (0xd47, BYPASS | HISTORY),
    (0xd48, BYPASS | HISTORY),
    (0xd4d, BYPASS | HISTORY),
    (0xd4e, BYPASS | HISTORY),
    (0xd81, BYPASS | HISTORY),
    (0xd40, BYPASS | HISTORY),
    (0xd49, BYPASS | HISTORY),
    (0xd4f, BYPASS | HISTORY),
];

/// What a table has for a core of Arm's.
fn listed(table: &[(u16, u8)], midr: u64) -> Option<u8> {
    let part = (midr >> 4 & 0xfff) as u16;
    let arm = midr >> 24 & 0xff == 0x41;
    let found = table.iter().find(|(p, _)| arm && *p == part);
    found.map(|&(_, what)| what)
}

/// Firmware's answers to SMCCC_ARCH_FEATURES of ARCH_WORKAROUND_1, 2 and 3 on a CPU; negative where it has none.
pub type Offered = [i32; 3];

fn judge(weak: Option<u8>, which: u8, offered: i32) -> Workaround {
    match offered {
        0 => Workaround::Firmware,
        1 => Workaround::NotRequired,
        _ if weak.is_some_and(|w| w & which == 0) => Workaround::NotRequired,
        _ => Workaround::Unknown,
    }
}

/// What guests are told of the workarounds on this CPU: by its own word (`csv2`, ID_AA64PFR0_EL1.CSV2), by firmware's,
/// by the table; what none of them knows is unknown.
#[must_use]
#[cold]
pub fn workarounds(midr: u64, csv2: u64, offered: Offered) -> Workarounds {
    let weak = listed(&CORES, midr);
    let [target, bypass, history] = offered;
    Workarounds {
        branch_predictor: match csv2 {
            0 => judge(weak, TARGET, target),
            _ => Workaround::NotRequired,
        },
        // Where firmware has a switch, EL2 turns it on for good.
        store_bypass: match judge(weak, BYPASS, bypass) {
            Workaround::Firmware => Workaround::NotRequired,
            other => other,
        },
        branch_history: match csv2 {
            0..=2 => judge(weak, HISTORY, history),
            _ => Workaround::NotRequired,
        },
    }
}

/// Whether a guest can lock this core up (XSA-436), unless firmware has changed its settings.
#[must_use]
pub fn locks_up(midr: u64) -> bool {
    let version = (midr >> 16 & 0xf0 | midr & 0xf) as u8;
    listed(&LOCKING, midr).is_some_and(|last| version <= last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Workaround::{Firmware, NotRequired, Unknown};

    const A53: u64 = 0x410f_d034;
    const A72: u64 = 0x410f_d083;
    const N1: u64 = 0x413f_d0c1;
    const NONE: Offered = [-1; 3];

    fn told(midr: u64, csv2: u64, offered: Offered) -> [Workaround; 3] {
        let w = workarounds(midr, csv2, offered);
        [w.branch_predictor, w.store_bypass, w.branch_history]
    }

    #[test]
    fn xsa_254_263_398_what_guests_are_told_of_a_core() {
        assert_eq!(told(A53, 0, NONE), [NotRequired; 3]);
        // A Raspberry Pi 4: nothing is done, and nobody says otherwise.
        assert_eq!(told(A72, 0, NONE), [Unknown; 3]);
        assert_eq!(told(A72, 0, [0, 0, 0]), [Firmware, NotRequired, Firmware]);
        assert_eq!(told(A72, 0, [1, 1, 1]), [NotRequired; 3]);
        assert_eq!(told(A72, 0, [0, -2, -1]), [Firmware, Unknown, Unknown]);
        assert_eq!(told(N1, 1, NONE), [NotRequired, Unknown, Unknown]);
        // Cortex-A510: branches are no matter, store bypass may be one.
        assert_eq!(
            told(0x410f_d461, 1, NONE),
            [NotRequired, Unknown, NotRequired]
        );
        assert_eq!(told(N1, 3, NONE), [NotRequired, Unknown, NotRequired]);
        // Another's core, or one that is not in the table, whatever its part number is with Arm.
        assert_eq!(told(0x510f_d034, 0, NONE), [Unknown; 3]);
        assert_eq!(told(0x410f_dff0, 0, NONE), [Unknown; 3]);
        assert_eq!(told(0, 0, NONE), [Unknown; 3]);
    }

    #[test]
    fn xsa_436_a_cortex_a77_of_the_first_revisions_locks_up() {
        assert!(locks_up(0x410f_d0d0) && locks_up(0x411f_d0d0));
        assert!(!locks_up(0x411f_d0d1) && !locks_up(0x412f_d0d0) && !locks_up(A72));
        // The same by another erratum, and the first revision without it.
        assert!(locks_up(0x410f_d070) && locks_up(0x411f_d072));
        assert!(!locks_up(0x411f_d073) && !locks_up(0x511f_d070));
    }

    #[test]
    fn every_core_is_there_once() {
        for (i, (part, weak)) in CORES.iter().enumerate() {
            assert!(CORES[..i].iter().all(|(p, _)| p != part));
            // One whose history steers others can be steered by it with CSV2 as without.
            assert!(weak & TARGET == 0 || weak & HISTORY != 0);
        }
    }
}
