// SPDX-License-Identifier: MIT OR Apache-2.0
//! What guests call firmware for: PSCI 1.1 (Arm DEN 0022) over the SMC Calling Convention 1.2
//! (Arm DEN 0028), by `hvc #0` or `smc #0`: decoding, and what is done for those that ask for something.
//!
//! Identifiers and replies are those a Xen guest meets, so a function that Xen does not know
//! (TRNG, say) is answered with [`Code::NotSupported`], never with an undefined instruction.

pub use guest_abi::psci::{AFFINITY_OFF, AFFINITY_ON, Code};
use guest_abi::psci::{
    Function, MIGRATE_NOT_REQUIRED, PSCI_VERSION_1_1, REVISION_MAJOR, REVISION_MINOR,
    SMCCC_VERSION_1_2, SSSC_UID, XEN_UID, uid_words,
};

use crate::hypervisor::Hypervisor;
use crate::machine::{Machine, StartState};
use crate::types::{Errno, MAX_VCPUS, VcpuId, VcpuRef};

/// SMCCC's answer that a workaround is not required on the CPUs of this machine.
const UNAFFECTED: i64 = 1;

/// What ARCH_FEATURES says of a speculation workaround.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workaround {
    /// Nothing is known, or the CPU is vulnerable and nothing is done: guests report so, and do
    /// not call.
    Unknown,
    /// The CPU needs none, or the hypervisor keeps the mitigation on: guests do not call.
    NotRequired,
    /// Firmware has it: guests call, and their calls are handed to firmware.
    Firmware,
}

impl Workaround {
    const fn reply(self) -> i64 {
        match self {
            Self::Unknown => number(Code::NotSupported),
            Self::NotRequired => UNAFFECTED,
            Self::Firmware => number(Code::Success),
        }
    }
}

/// The three workarounds of SMCCC, as the CPUs of this machine stand ([`crate::errata`]). Guests call those that
/// firmware has on the way into their kernels, and no others, which cost Xen thousands of traps.
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
    /// Firmware's function that is called between two domains, 0 for none: that of the branch history does the
    /// branch targets too (DEN 0028, "SMCCC_ARCH_WORKAROUND_3").
    #[must_use]
    pub const fn between_domains(&self) -> u32 {
        match (self.branch_predictor, self.branch_history) {
            (_, Workaround::Firmware) => Function::ArchWorkaround3.number(),
            (Workaround::Firmware, _) => Function::ArchWorkaround1.number(),
            _ => 0,
        }
    }

    /// For CPUs that need none.
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
    /// Hand the function to firmware, answer nothing.
    Firmware(u32),
    /// Wait for an interrupt as WFI does, then answer [`Code::Success`]: every power state is treated as
    /// standby.
    CpuSuspend,
    /// Take the calling vcpu down. Answers [`Code::Success`], which nobody sees.
    CpuOff,
    /// Start a vcpu at `entry` (EL1h, MMU off, interrupts masked) with x0 = `context`.
    /// [`Code::InvalidParameters`] when `target` names none, [`Code::AlreadyOn`] (for PSCI 0.1
    /// `InvalidParameters`) when it is up, [`Code::Denied`] when it cannot be started.
    CpuOn {
        /// Which; the domain may have no such vcpu.
        target: VcpuId,
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

/// A code as x0 holds it: sign-extended.
#[must_use]
pub const fn number(code: Code) -> i64 {
    code.number() as i64
}

const fn features(function: u32) -> Code {
    use Function as F;
    match F::from_number(function) {
        Some(
            F::Version
            | F::CpuSuspend32
            | F::CpuSuspend64
            | F::CpuOff
            | F::CpuOn32
            | F::CpuOn64
            | F::AffinityInfo32
            | F::AffinityInfo64
            | F::MigrateInfoType
            | F::SystemOff
            | F::SystemReset
            | F::Features
            | F::SmcccVersion,
        ) => Code::Success,
        _ => Code::NotSupported,
    }
}

const fn arch_features(function: u32, w: &Workarounds) -> i64 {
    match Function::from_number(function) {
        Some(Function::SmcccVersion | Function::SmcccArchFeatures) => number(Code::Success),
        Some(Function::ArchWorkaround1) => w.branch_predictor.reply(),
        Some(Function::ArchWorkaround2) => w.store_bypass.reply(),
        Some(Function::ArchWorkaround3) => w.branch_history.reply(),
        _ => number(Code::NotSupported),
    }
}

/// Decodes a call from x0 to x3. The identifier is the lower half of x0; calls of the 32-bit
/// convention have arguments in the lower halves only, whatever the upper ones hold.
#[must_use]
#[inline]
pub fn decode(x: [u64; 4], workarounds: &Workarounds) -> Call {
    use Function as F;
    let [x0, x1, x2, x3] = x;
    let low = |v: u64| v & 0xffff_ffff;
    let code = |code| Call::Reply(number(code));
    let Some(function) = F::from_number(x0 as u32) else {
        return code(Code::NotSupported);
    };
    match function {
        F::Version => Call::Reply(PSCI_VERSION_1_1.into()),
        F::CpuSuspend32 | F::CpuSuspend64 => Call::CpuSuspend,
        F::CpuOff | F::Xen01CpuOff => Call::CpuOff,
        F::CpuOn32 => cpu_on(low(x1), low(x2), low(x3)),
        F::CpuOn64 => cpu_on(x1, x2, x3),
        F::Xen01CpuOn => cpu_on_0_1(low(x1), x2),
        F::AffinityInfo32 => affinity_info(low(x1), low(x2)),
        F::AffinityInfo64 => affinity_info(x1, low(x2)),
        F::MigrateInfoType => Call::Reply(MIGRATE_NOT_REQUIRED.into()),
        F::SystemOff => Call::SystemOff,
        F::SystemReset => Call::SystemReset,
        F::Features => code(features(x1 as u32)),
        F::SmcccVersion => Call::Reply(SMCCC_VERSION_1_2.into()),
        F::SmcccArchFeatures => Call::Reply(arch_features(x1 as u32, workarounds)),
        F::ArchWorkaround1 if workarounds.branch_predictor == Workaround::Firmware => {
            Call::Firmware(function.number())
        }
        F::ArchWorkaround3 if workarounds.branch_history == Workaround::Firmware => {
            Call::Firmware(function.number())
        }
        // Not offered; but who calls all the same is not told an error, as these return
        // nothing.
        F::ArchWorkaround1 | F::ArchWorkaround2 | F::ArchWorkaround3 => Call::Nop,
        F::HypCallCount => Call::Reply(3),
        F::HypCallUid => Call::Reply4(uid_words(XEN_UID)),
        F::StdCallCount => Call::Reply(15),
        F::StdCallUid => Call::Reply4(uid_words(SSSC_UID)),
        F::HypRevision | F::StdRevision => Call::Reply2(REVISION_MAJOR, REVISION_MINOR),
    }
}

fn cpu_on(target: u64, entry: u64, context: u64) -> Call {
    let Some(target) = vcpu_at(target) else {
        return Call::Reply(number(Code::InvalidParameters));
    };
    if entry & 3 != 0 {
        return Call::Reply(number(Code::InvalidAddress));
    }
    Call::CpuOn {
        target,
        entry,
        context,
        v0_1: false,
    }
}

/// PSCI 0.1 has no context, and one code for all that may be wrong.
fn cpu_on_0_1(target: u64, entry: u64) -> Call {
    match cpu_on(target, entry, 0) {
        Call::CpuOn {
            target,
            entry,
            context,
            ..
        } => Call::CpuOn {
            target,
            entry,
            context,
            v0_1: true,
        },
        _ => Call::Reply(number(Code::InvalidParameters)),
    }
}

fn affinity_info(target: u64, level: u64) -> Call {
    match Affinity::new(target, level) {
        Some(set) => Call::AffinityInfo(set),
        None => Call::Reply(number(Code::InvalidParameters)),
    }
}

impl Hypervisor {
    /// Does what a vcpu on this CPU asked for, and gives what it gets in x0. `None`: the call is to be made again.
    /// Calls that [`decode`] has answered already are not for here.
    pub fn psci<M: Machine>(&mut self, m: &M, v: VcpuRef, call: Call) -> Option<i64> {
        match call {
            Call::CpuSuspend => self.sleep(m, v, None),
            Call::CpuOff => {
                let _ = self.sched.down(v, m.now());
                self.effects.resched = true;
            }
            Call::CpuOn {
                target,
                entry,
                context,
                v0_1,
            } => {
                let slot = v.slot;
                let target = VcpuRef { slot, vcpu: target };
                return match self.cpu_on(m, target, entry, context) {
                    Ok(()) => Some(number(Code::Success)),
                    Err(Errno::EAGAIN) => None,
                    Err(Errno::EEXIST) if !v0_1 => Some(number(Code::AlreadyOn)),
                    Err(_) => Some(number(Code::InvalidParameters)),
                };
            }
            Call::AffinityInfo(set) => {
                let d = self.domains.get(v.slot)?;
                let on = d.vcpu_refs().any(|x| set.holds(x.vcpu) && !self.is_off(x));
                return Some(i64::from(if on { AFFINITY_ON } else { AFFINITY_OFF }));
            }
            Call::SystemOff => self.shutdown_domain(m, v.slot, 0),
            Call::SystemReset => self.shutdown_domain(m, v.slot, 1),
            Call::Reply(_) | Call::Reply2(..) | Call::Reply4(_) | Call::Nop | Call::Firmware(_) => {
            }
        }
        Some(number(Code::Success))
    }

    /// Whether a vcpu can be started: it is down, and the CPU that it was on has let it go. What is said of it
    /// and what is done with it go by this alone, so that no CPU_ON fails after an AFFINITY_INFO that said so.
    #[must_use]
    pub fn is_off(&self, v: VcpuRef) -> bool {
        self.sched.is_down(v) && self.sched.running_on(v).is_none()
    }

    /// `EAGAIN`: it is on its way down. `EEXIST`: it is up. `EINVAL`: there is none.
    fn cpu_on<M: Machine>(&mut self, m: &M, t: VcpuRef, pc: u64, x0: u64) -> Result<(), Errno> {
        let d = self.domains.get(t.slot).ok_or(Errno::EINVAL)?;
        let t = d.vcpu(t.vcpu.0.into()).ok_or(Errno::EINVAL)?;
        if !self.sched.is_down(t) {
            return Err(Errno::EEXIST);
        }
        if let Some(cpu) = self.sched.running_on(t) {
            self.effects.kick |= 1 << cpu.0;
            return Err(Errno::EAGAIN);
        }
        let mut s = StartState {
            pc,
            cpsr: 0x3c5,
            sctlr: guest_abi::arch::SCTLR_GUEST_INIT,
            ..StartState::default()
        };
        let [first, ..] = &mut s.x;
        *first = x0;
        self.start_vcpu(m, t, &s)
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
        assert_eq!(
            call(0x8600_ff01, 0, 0, 0),
            Call::Reply4([0xdc12_18a7, 0x6943_98c6, 0xd179_cf9a, 0x67e6_de8d])
        );
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
    fn what_firmware_has_is_offered_and_handed_on() {
        let w = Workarounds {
            branch_predictor: Workaround::Firmware,
            ..Workarounds::UNKNOWN
        };
        assert_eq!(w.between_domains(), 0x8000_8000);
        assert_eq!(Workarounds::UNKNOWN.between_domains(), 0);
        assert_eq!(decode([0x8000_0001, 0x8000_8000, 0, 0], &w), Call::Reply(0));
        assert_eq!(
            decode([0x8000_8000, 0, 0, 0], &w),
            Call::Firmware(0x8000_8000)
        );
        assert_eq!(decode([0x8000_3fff, 0, 0, 0], &w), Call::Nop, "not offered");
        let both = Workarounds {
            branch_history: Workaround::Firmware,
            ..w
        };
        assert_eq!(both.between_domains(), 0x8000_3fff);
        assert_eq!(
            decode([0x8000_3fff, 0, 0, 0], &both),
            Call::Firmware(0x8000_3fff)
        );
    }

    #[test]
    fn the_upper_half_of_x0_and_of_32_bit_arguments_is_ignored() {
        let junk = 0xdead_beef_0000_0000;
        assert_eq!(call(junk | 0x8400_0000, 0, 0, 0), Call::Reply(0x1_0001));
        let on = |entry, context| Call::CpuOn {
            target: VcpuId(1),
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
                target: VcpuId(1),
                entry: 0x2_0000_8000,
                context: 0,
                v0_1: true
            }
        );
        assert_eq!(
            call(0xc400_0003, junk | 1, 0x8000, 5),
            Call::Reply(-2),
            "a 64-bit affinity has all its bits"
        );
    }

    #[test]
    fn refused_arguments() {
        assert_eq!(call(0xc400_0003, 1, 0x8001, 0), Call::Reply(-9));
        assert_eq!(call(0xc400_0003, 16, 0x8001, 0), Call::Reply(-2));
        assert_eq!(call(2, 1, 0x8002, 0), Call::Reply(-2));
        assert_eq!(call(0xc400_0004, 0, 4, 0), Call::Reply(-2));
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
            if let Call::CpuOn { target: v, entry, .. } = known {
                prop_assert!(v.idx() < MAX_VCPUS && entry & 3 == 0);
            }
        }
    }
}
