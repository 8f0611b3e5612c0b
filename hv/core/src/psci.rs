// SPDX-License-Identifier: MIT OR Apache-2.0
//! What guests call firmware for: PSCI 1.1 (Arm DEN 0022) over the SMC Calling Convention 1.2
//! (Arm DEN 0028), by `hvc #0` or `smc #0`. Pure decoding: the caller acts and writes the reply.
//!
//! Identifiers and replies are those a Xen guest meets, so a function that Xen does not know
//! (TRNG, say) is answered with [`NOT_SUPPORTED`], never with an undefined instruction.

use crate::types::{MAX_VCPUS, VcpuId};

/// Done.
pub const SUCCESS: i64 = 0;
/// Unknown function, or unknown feature.
pub const NOT_SUPPORTED: i64 = -1;
/// No such CPU, or a bad affinity level.
pub const INVALID_PARAMETERS: i64 = -2;
/// Refused.
pub const DENIED: i64 = -3;
/// CPU_ON of a CPU that is on.
pub const ALREADY_ON: i64 = -4;
/// What SYSTEM_OFF and SYSTEM_RESET would return if they returned.
pub const INTERNAL_FAILURE: i64 = -6;
/// CPU_ON with an entry point that is none (not aligned to an instruction).
pub const INVALID_ADDRESS: i64 = -9;
/// AFFINITY_INFO: at least one CPU is on.
pub const AFFINITY_ON: i64 = 0;
/// AFFINITY_INFO: all are off.
pub const AFFINITY_OFF: i64 = 1;

/// PSCI 1.1.
const PSCI_VERSION: i64 = 1 << 16 | 1;
/// SMCCC 1.2.
const SMCCC_VERSION: i64 = 1 << 16 | 2;
/// MIGRATE_INFO_TYPE: no trusted OS, or one that needs no migration.
const TOS_NOT_PRESENT: i64 = 2;

const FN_SMCCC_VERSION: u32 = 0x8000_0000;
const FN_ARCH_FEATURES: u32 = 0x8000_0001;
const FN_ARCH_WORKAROUND_1: u32 = 0x8000_8000;
const FN_ARCH_WORKAROUND_2: u32 = 0x8000_7fff;
const FN_ARCH_WORKAROUND_3: u32 = 0x8000_3fff;
const FN_VERSION: u32 = 0x8400_0000;
const FN_CPU_SUSPEND: u32 = 0x8400_0001;
const FN_CPU_OFF: u32 = 0x8400_0002;
const FN_CPU_ON: u32 = 0x8400_0003;
const FN_AFFINITY_INFO: u32 = 0x8400_0004;
const FN_MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
const FN_SYSTEM_OFF: u32 = 0x8400_0008;
const FN_SYSTEM_RESET: u32 = 0x8400_0009;
const FN_FEATURES: u32 = 0x8400_000a;
/// In an identifier: 64-bit arguments.
const SMC64: u32 = 1 << 30;
const FN_CPU_SUSPEND64: u32 = FN_CPU_SUSPEND | SMC64;
const FN_CPU_ON64: u32 = FN_CPU_ON | SMC64;
const FN_AFFINITY_INFO64: u32 = FN_AFFINITY_INFO | SMC64;
/// PSCI 0.1, as the generated device tree's `cpu_off` and `cpu_on` name them.
const FN_CPU_OFF_0_1: u32 = 1;
const FN_CPU_ON_0_1: u32 = 2;
const FN_STANDARD_COUNT: u32 = 0x8400_ff00;
const FN_STANDARD_UID: u32 = 0x8400_ff01;
const FN_STANDARD_REVISION: u32 = 0x8400_ff03;
const FN_HYPERVISOR_COUNT: u32 = 0x8600_ff00;
const FN_HYPERVISOR_UID: u32 = 0x8600_ff01;
const FN_HYPERVISOR_REVISION: u32 = 0x8600_ff03;

/// a71812dc-c698-4369-9acf-79d18ddee667, the UID of Xen's hypervisor service
/// (`public/arch-arm/smccc.h`), first byte lowest.
const HYPERVISOR_UID: [u32; 4] = [0xdc12_18a7, 0x6943_98c6, 0xd179_cf9a, 0x67e6_de8d];
/// f863386f-4b39-4cbd-9220-ce1641e59f6f, the UID of its standard service.
const STANDARD_UID: [u32; 4] = [0x6f38_63f8, 0xbd4c_394b, 0x16ce_2092, 0x6f9f_e541];

/// What ARCH_FEATURES says of a speculation workaround.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workaround {
    /// Nothing is known, or the CPU is vulnerable and nothing is done: guests report so, and do
    /// not call.
    Unknown,
    /// The CPU needs none, or the hypervisor keeps the mitigation on: guests do not call.
    NotRequired,
}

impl Workaround {
    const fn reply(self) -> i64 {
        match self {
            Self::Unknown => NOT_SUPPORTED,
            Self::NotRequired => 1,
        }
    }
}

/// The three workarounds of SMCCC, as the CPUs of this machine stand. Neither answer makes a guest
/// call them on its way in and out of its kernel, which cost Xen thousands of traps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workarounds {
    /// ARCH_WORKAROUND_1: branch target injection (CVE-2017-5715).
    pub branch_predictor: Workaround,
    /// ARCH_WORKAROUND_2: speculative store bypass (CVE-2018-3639).
    pub store_bypass: Workaround,
    /// ARCH_WORKAROUND_3: branch history injection (CVE-2022-23960).
    pub branch_history: Workaround,
}

impl Workarounds {
    /// For CPUs that need none, and for machines that speculate nothing (QEMU's TCG).
    pub const NOT_REQUIRED: Self = Self {
        branch_predictor: Workaround::NotRequired,
        store_bypass: Workaround::NotRequired,
        branch_history: Workaround::NotRequired,
    };
    /// For CPUs of which nothing is known.
    pub const UNKNOWN: Self = Self {
        branch_predictor: Workaround::Unknown,
        store_bypass: Workaround::Unknown,
        branch_history: Workaround::Unknown,
    };
}

/// A decoded call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Answer this in x0.
    Reply(i64),
    /// Answer these in x0 and x1.
    Reply2(u32, u32),
    /// Answer these in x0 to x3.
    Reply4([u32; 4]),
    /// Answer nothing, change no register.
    Nop,
    /// Wait for an interrupt as WFI does, then answer [`SUCCESS`]: every power state is treated as
    /// standby.
    CpuSuspend,
    /// Take the calling vcpu down. Answers [`SUCCESS`], which nobody sees.
    CpuOff,
    /// Start a vcpu at `entry` (EL1h, MMU off, interrupts masked) with x0 = `context`.
    /// [`INVALID_PARAMETERS`] when `target` names none, [`ALREADY_ON`] (for PSCI 0.1
    /// `INVALID_PARAMETERS`) when it is up, [`DENIED`] when it cannot be started.
    CpuOn {
        /// Which; `None` is no vcpu that could exist.
        target: Option<VcpuId>,
        /// Guest physical address.
        entry: u64,
        /// For the new vcpu's x0.
        context: u64,
        /// Asked for by the PSCI 0.1 identifier.
        v0_1: bool,
    },
    /// [`AFFINITY_ON`] if any vcpu that [`Affinity::holds`] is up, else [`AFFINITY_OFF`].
    AffinityInfo(Affinity),
    /// Power the domain off (`SHUTDOWN_poweroff`).
    SystemOff,
    /// Reboot it (`SHUTDOWN_reboot`).
    SystemReset,
}

/// A set of vcpus that agree in their upper affinity fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    value: u64,
    mask: u64,
}

impl Affinity {
    fn new(target: u64, level: u64) -> Option<Self> {
        let mask = match level {
            0 => 0xff_00ff_ffff,
            1 => 0xff_00ff_ff00,
            2 => 0xff_00ff_0000,
            3 => 0xff_0000_0000,
            _ => return None,
        };
        Some(Self {
            value: target & mask,
            mask,
        })
    }

    /// Whether a vcpu is one of them.
    #[must_use]
    pub const fn holds(&self, vcpu: VcpuId) -> bool {
        affinity_of(vcpu) & self.mask == self.value
    }
}

/// A vcpu's affinity, as in MPIDR_EL1 and the device tree's `reg`: 16 vcpus to an Aff1 (which is
/// what one GICv3 SGI reaches); the 8 of a GICv2 guest all have Aff1 0.
#[must_use]
pub const fn affinity_of(vcpu: VcpuId) -> u64 {
    (vcpu.0 as u64 & 15) | (vcpu.0 as u64 >> 4) << 8
}

/// A vcpu's VMPIDR_EL2: its affinity and the bit that is always one.
#[must_use]
pub const fn vmpidr(vcpu: VcpuId) -> u64 {
    1 << 31 | affinity_of(vcpu)
}

/// The vcpu number that an affinity stands for, whether or not there is such a vcpu.
#[must_use]
pub const fn vcpu_at(affinity: u64) -> Option<VcpuId> {
    let (aff0, aff1) = (affinity & 0xff, affinity >> 8 & 0xff);
    let id = aff0 | aff1 << 4;
    if affinity >> 16 == 0 && aff0 < 16 && id < MAX_VCPUS as u64 {
        Some(VcpuId(id as u8))
    } else {
        None
    }
}

const fn features(function: u32) -> i64 {
    match function {
        FN_VERSION | FN_CPU_SUSPEND | FN_CPU_SUSPEND64 | FN_CPU_OFF | FN_CPU_ON | FN_CPU_ON64
        | FN_AFFINITY_INFO | FN_AFFINITY_INFO64 | FN_MIGRATE_INFO_TYPE | FN_SYSTEM_OFF
        | FN_SYSTEM_RESET | FN_FEATURES | FN_SMCCC_VERSION => SUCCESS,
        _ => NOT_SUPPORTED,
    }
}

const fn arch_features(function: u32, w: &Workarounds) -> i64 {
    match function {
        FN_SMCCC_VERSION | FN_ARCH_FEATURES => SUCCESS,
        FN_ARCH_WORKAROUND_1 => w.branch_predictor.reply(),
        FN_ARCH_WORKAROUND_2 => w.store_bypass.reply(),
        FN_ARCH_WORKAROUND_3 => w.branch_history.reply(),
        _ => NOT_SUPPORTED,
    }
}

/// Decodes a call from x0 to x3. The identifier is the lower half of x0; calls of the 32-bit
/// convention have arguments in the lower halves only, whatever the upper ones hold.
#[must_use]
pub fn decode(x: [u64; 4], workarounds: &Workarounds) -> Call {
    let [x0, x1, x2, x3] = x;
    let id = x0 as u32;
    // The call's own width; PSCI 0.1 has no such bit, and its arguments are registers.
    let arg = |v: u64| {
        if id & SMC64 != 0 || id == FN_CPU_ON_0_1 {
            v
        } else {
            v & 0xffff_ffff
        }
    };
    match id {
        FN_VERSION => Call::Reply(PSCI_VERSION),
        FN_CPU_SUSPEND | FN_CPU_SUSPEND64 => Call::CpuSuspend,
        FN_CPU_OFF | FN_CPU_OFF_0_1 => Call::CpuOff,
        FN_CPU_ON | FN_CPU_ON64 | FN_CPU_ON_0_1 => {
            let v0_1 = id == FN_CPU_ON_0_1;
            let (entry, context) = (arg(x2), if v0_1 { 0 } else { arg(x3) });
            if entry & 3 != 0 {
                return Call::Reply(if v0_1 {
                    INVALID_PARAMETERS
                } else {
                    INVALID_ADDRESS
                });
            }
            // A 0.1 CPU number is 32 bits wide.
            let target = if v0_1 { x1 & 0xffff_ffff } else { arg(x1) };
            Call::CpuOn {
                target: vcpu_at(target),
                entry,
                context,
                v0_1,
            }
        }
        FN_AFFINITY_INFO | FN_AFFINITY_INFO64 => match Affinity::new(arg(x1), x2 & 0xffff_ffff) {
            Some(set) => Call::AffinityInfo(set),
            None => Call::Reply(INVALID_PARAMETERS),
        },
        FN_MIGRATE_INFO_TYPE => Call::Reply(TOS_NOT_PRESENT),
        FN_SYSTEM_OFF => Call::SystemOff,
        FN_SYSTEM_RESET => Call::SystemReset,
        FN_FEATURES => Call::Reply(features(x1 as u32)),
        FN_SMCCC_VERSION => Call::Reply(SMCCC_VERSION),
        FN_ARCH_FEATURES => Call::Reply(arch_features(x1 as u32, workarounds)),
        // Offered to nobody; but who calls all the same is not told an error, as these return
        // nothing.
        FN_ARCH_WORKAROUND_1 | FN_ARCH_WORKAROUND_2 | FN_ARCH_WORKAROUND_3 => Call::Nop,
        FN_HYPERVISOR_COUNT => Call::Reply(3),
        FN_HYPERVISOR_UID => Call::Reply4(HYPERVISOR_UID),
        FN_STANDARD_COUNT => Call::Reply(15),
        FN_STANDARD_UID => Call::Reply4(STANDARD_UID),
        FN_HYPERVISOR_REVISION | FN_STANDARD_REVISION => Call::Reply2(0, 1),
        _ => Call::Reply(NOT_SUPPORTED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn call(x0: u64, x1: u64, x2: u64, x3: u64) -> Call {
        decode([x0, x1, x2, x3], &Workarounds::NOT_REQUIRED)
    }

    #[test]
    fn what_a_linux_guest_was_seen_to_call() {
        assert_eq!(call(0x8400_0000, 0, 0, 0), Call::Reply(0x1_0001));
        assert_eq!(call(0x8400_0006, 0, 0, 0), Call::Reply(2));
        assert_eq!(call(0x8400_000a, 0x8000_0000, 0, 0), Call::Reply(0));
        assert_eq!(call(0x8400_000a, 0xc400_0001, 0, 0), Call::Reply(0));
        assert_eq!(
            call(0x8400_000a, 0xc400_000e, 0, 0),
            Call::Reply(-1),
            "SYSTEM_SUSPEND"
        );
        assert_eq!(call(0x8000_0000, 0, 0, 0), Call::Reply(0x1_0002));
        assert_eq!(call(0x8400_0050, 0, 0, 0), Call::Reply(-1), "TRNG");
        assert!(matches!(call(0x8600_ff01, 0, 0, 0), Call::Reply4(_)));
        // None of the answers has Linux call the workarounds: only 0 (success) would.
        for w in [Workarounds::NOT_REQUIRED, Workarounds::UNKNOWN] {
            for f in [0x8000_8000, 0x8000_7fff, 0x8000_3fff, 0x8000_0002] {
                let Call::Reply(r) = decode([0x8000_0001, f, 0, 0], &w) else {
                    panic!()
                };
                assert!(r == 1 || r == -1, "{f:#x} {r}");
            }
        }
        assert_eq!(call(0x8000_0001, 0x8000_7fff, 0, 0), Call::Reply(1));
        assert_eq!(call(0x8000_7fff, 1, 0, 0), Call::Nop);
    }

    #[test]
    fn the_upper_half_of_x0_and_of_32_bit_arguments_is_ignored() {
        let junk = 0xdead_beef_0000_0000;
        assert_eq!(call(junk | 0x8400_0000, 0, 0, 0), Call::Reply(0x1_0001));
        let on = |entry, context| Call::CpuOn {
            target: Some(VcpuId(1)),
            entry,
            context,
            v0_1: false,
        };
        assert_eq!(
            call(junk | 0x8400_0003, junk | 1, junk | 0x8000, junk | 5),
            on(0x8000, 5)
        );
        assert_eq!(
            call(0xc400_0003, 1, 0x2_0000_8000, junk | 5),
            on(0x2_0000_8000, junk | 5)
        );
        assert_eq!(
            call(2, junk | 1, 0x2_0000_8000, 9),
            Call::CpuOn {
                target: Some(VcpuId(1)),
                entry: 0x2_0000_8000,
                context: 0,
                v0_1: true
            }
        );
        assert!(
            matches!(
                call(0xc400_0003, junk | 1, 0x8000, 5),
                Call::CpuOn { target: None, .. }
            ),
            "a 64-bit affinity has all its bits"
        );
    }

    #[test]
    fn refused_arguments() {
        assert_eq!(
            call(0xc400_0003, 1, 0x8001, 0),
            Call::Reply(INVALID_ADDRESS)
        );
        assert_eq!(call(2, 1, 0x8002, 0), Call::Reply(INVALID_PARAMETERS));
        assert_eq!(call(0xc400_0004, 0, 4, 0), Call::Reply(INVALID_PARAMETERS));
        assert_eq!(call(0x8400_0004, 0, 1 << 32, 0), call(0x8400_0004, 0, 0, 0));
    }

    #[test]
    fn affinities_and_numbers_are_each_others_inverse() {
        for id in 0..MAX_VCPUS as u8 {
            let v = VcpuId(id);
            assert_eq!(vcpu_at(affinity_of(v)), Some(v));
            assert_eq!(vmpidr(v) & 0xff_00ff_ffff, affinity_of(v));
        }
        assert_eq!(affinity_of(VcpuId(7)), 7);
        assert_eq!(affinity_of(VcpuId(17)), 0x101);
        for none in [16, 0x400, 0xff, 0x1_0000, 1 << 32, 1 << 31, u64::MAX] {
            assert_eq!(vcpu_at(none), None, "{none:#x}");
        }
    }

    #[test]
    fn affinity_sets() {
        let at = |level| match call(0xc400_0004, 0x105, level, 0) {
            Call::AffinityInfo(set) => (0..MAX_VCPUS as u8)
                .filter(|&v| set.holds(VcpuId(v)))
                .collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(at(0), [21]);
        assert_eq!(at(1), (16..32).collect::<Vec<_>>());
        assert_eq!(at(2), (0..64).collect::<Vec<_>>());
        assert_eq!(at(3), (0..64).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn any_registers_decode(x in any::<[u64; 4]>(), id in prop::sample::select(std::vec![
            0u32, 1, 2, 3, 0x8000_0000, 0x8000_0001, 0x8400_0001, 0x8400_0003, 0xc400_0003,
            0x8400_0004, 0xc400_0004, 0x8400_000a, 0x8400_ff03, 0x8600_ff03, 0xc200_0000])) {
            let _ = decode(x, &Workarounds::UNKNOWN);
            let known = decode([u64::from(id), x[1], x[2], x[3]], &Workarounds::UNKNOWN);
            if let Call::CpuOn { target: Some(v), entry, .. } = known {
                prop_assert!(v.idx() < MAX_VCPUS && entry & 3 == 0);
            }
        }
    }
}
