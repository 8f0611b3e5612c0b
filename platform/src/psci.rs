// SPDX-License-Identifier: MIT OR Apache-2.0
//! Calls to the machine's firmware: PSCI (Arm DEN0022) over SMC or HVC.
//!
//! Boards whose firmware parks CPUs in a spin table need none of this: the address of a CPU's
//! release word is in [`crate::dt::CpuStart::SpinTable`]; whoever maps memory writes the entry
//! point there, cleans that line to memory and sends an event. [`crate::power`] stops those.

/// How the firmware is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// `smc #0`: firmware at EL3 (or QEMU's own when it emulates EL2 without EL3).
    Smc,
    /// `hvc #0`: only ever right when we are not at EL2.
    Hvc,
}

/// Why a PSCI call failed: DEN0022's number, from -1 (`NOT_SUPPORTED`) to -9 (`INVALID_ADDRESS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PsciError(pub i32);

impl PsciError {
    /// The firmware does not know the function.
    pub const NOT_SUPPORTED: Self = Self(-1);
    /// The firmware says that it went well, and it did not.
    pub const INTERNAL_FAILURE: Self = Self(-6);
}

impl core::fmt::Display for PsciError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "PSCI error {}", self.0)
    }
}

/// The machine's PSCI firmware.
#[derive(Clone, Copy, Debug)]
pub struct Psci {
    conduit: Conduit,
}

const PSCI_VERSION: u64 = 0x8400_0000;
const CPU_OFF: u64 = 0x8400_0002;
const CPU_ON_64: u64 = 0xC400_0003;
const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;
const PSCI_FEATURES: u64 = 0x8400_000A;
const SMCCC_VERSION: u64 = 0x8000_0000;
const SMCCC_ARCH_FEATURES: u64 = 0x8000_0001;

impl Psci {
    /// Firmware that is called by `conduit`.
    #[must_use]
    pub const fn new(conduit: Conduit) -> Self {
        Self { conduit }
    }

    /// PSCI_VERSION: (major, minor).
    #[must_use]
    pub fn version(self) -> (u16, u16) {
        let v = self.call(PSCI_VERSION, [0; 3]) as u32;
        ((v >> 16) as u16, v as u16)
    }

    /// CPU_ON: starts the CPU with affinity `mpidr` at physical address `entry`, at our exception
    /// level, MMU off, with `context` in x0.
    ///
    /// # Errors
    /// The firmware's.
    ///
    /// # Safety
    /// `entry` must be code that is fit to run on a fresh CPU, with a stack of its own, and
    /// `context` what that code expects.
    pub unsafe fn cpu_on(self, mpidr: u64, entry: u64, context: u64) -> Result<(), PsciError> {
        check(self.call(CPU_ON_64, [mpidr, entry, context]))
    }

    /// CPU_OFF: stops the calling CPU. Returns only on failure.
    pub fn cpu_off(self) -> PsciError {
        check(self.call(CPU_OFF, [0; 3]))
            .err()
            .unwrap_or(PsciError::INTERNAL_FAILURE)
    }

    /// SYSTEM_OFF. Returns only on failure.
    pub fn system_off(self) -> PsciError {
        check(self.call(SYSTEM_OFF, [0; 3]))
            .err()
            .unwrap_or(PsciError::INTERNAL_FAILURE)
    }

    /// SYSTEM_RESET. Returns only on failure.
    pub fn system_reset(self) -> PsciError {
        check(self.call(SYSTEM_RESET, [0; 3]))
            .err()
            .unwrap_or(PsciError::INTERNAL_FAILURE)
    }

    /// What the firmware says of the workaround `function` (SMCCC_ARCH_WORKAROUND_n) on this CPU: 0 it has it, 1 it is not
    /// needed here, negative: nothing. Firmware from before SMCCC 1.1 is not asked (DEN 0028, "discovery").
    #[cold]
    #[must_use]
    pub fn workaround_offered(self, function: u32) -> i32 {
        let known = self.version().0 >= 1
            && self.call(PSCI_FEATURES, [SMCCC_VERSION, 0, 0]) as i32 >= 0
            && self.call(SMCCC_VERSION, [0; 3]) as i32 >= 0x1_0001;
        if !known {
            return -1;
        }
        self.call(SMCCC_ARCH_FEATURES, [function.into(), 0, 0]) as i32
    }

    /// Calls a workaround that was offered.
    pub fn workaround(self, function: u32, argument: u64) {
        self.call(function.into(), [argument, 0, 0]);
    }

    /// One SMCCC call with up to three arguments; gives x0.
    fn call(self, function: u64, args: [u64; 3]) -> u64 {
        let [a1, a2, a3] = args;
        #[cfg(target_arch = "aarch64")]
        {
            let r: u64;
            macro_rules! go {
                ($insn:literal) => {
                    // SAFETY: the PSCI functions called here touch no memory of ours but through
                    // `cpu_on`'s entry point, for which its caller answers. SMCCC lets firmware
                    // clobber x0-x17.
                    unsafe {
                        core::arch::asm!($insn,
                            inout("x0") function => r, inout("x1") a1 => _, inout("x2") a2 => _,
                            inout("x3") a3 => _, out("x4") _, out("x5") _, out("x6") _,
                            out("x7") _, out("x8") _, out("x9") _, out("x10") _, out("x11") _,
                            out("x12") _, out("x13") _, out("x14") _, out("x15") _,
                            out("x16") _, out("x17") _, options(nostack))
                    }
                };
            }
            match self.conduit {
                Conduit::Smc => go!("smc #0"),
                Conduit::Hvc => go!("hvc #0"),
            }
            r
        }
        #[cfg(not(target_arch = "aarch64"))]
        {
            let _ = (self.conduit, function, a1, a2, a3);
            i64::from(-1i32) as u64
        }
    }
}

/// What x0 says: the low 32 bits as a signed number.
fn check(x0: u64) -> Result<(), PsciError> {
    match x0 as i32 {
        0 => Ok(()),
        e => Err(PsciError(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_as_signed_32_bits() {
        assert_eq!(check(0), Ok(()));
        assert_eq!(check(0xffff_ffff), Err(PsciError::NOT_SUPPORTED));
        assert_eq!(check(-4i64 as u64), Err(PsciError(-4)));
        assert_eq!(check(5), Err(PsciError(5)));
    }

    #[test]
    fn no_firmware_on_the_host() {
        assert_eq!(
            Psci::new(Conduit::Smc).system_off(),
            PsciError::NOT_SUPPORTED
        );
    }
}
