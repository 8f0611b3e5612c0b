// SPDX-License-Identifier: MIT OR Apache-2.0
//! Power of CPUs and of the system, and Arm's calling convention (Arm DEN 0022 PSCI, DEN 0028
//! SMCCC), as `hvc #0` or `smc #0` with the function in w0.

numbers! {
    /// Functions that a guest may call.
    pub enum Function: u32 {
        /// PSCI 0.1 of Xen: as [`Function::CpuOff`].
        Xen01CpuOff = 1, "0.1 cpu_off";
        /// PSCI 0.1 of Xen: as [`Function::CpuOn32`].
        Xen01CpuOn = 2, "0.1 cpu_on";
        /// Version of PSCI.
        Version = 0x8400_0000, "PSCI_VERSION";
        /// Sleep until an interrupt; 32-bit arguments.
        CpuSuspend32 = 0x8400_0001, "CPU_SUSPEND";
        /// Stop the calling CPU.
        CpuOff = 0x8400_0002, "CPU_OFF";
        /// Start a CPU; 32-bit arguments.
        CpuOn32 = 0x8400_0003, "CPU_ON";
        /// Whether a CPU runs; 32-bit arguments.
        AffinityInfo32 = 0x8400_0004, "AFFINITY_INFO";
        /// Whether a trusted system must be moved.
        MigrateInfoType = 0x8400_0006, "MIGRATE_INFO_TYPE";
        /// Power off.
        SystemOff = 0x8400_0008, "SYSTEM_OFF";
        /// Restart.
        SystemReset = 0x8400_0009, "SYSTEM_RESET";
        /// Whether a function exists.
        Features = 0x8400_000a, "PSCI_FEATURES";
        /// Sleep until an interrupt.
        CpuSuspend64 = 0xc400_0001, "CPU_SUSPEND64";
        /// Start a CPU: x1 its MPIDR affinity, x2 the entry address, x3 what its x0 gets.
        CpuOn64 = 0xc400_0003, "CPU_ON64";
        /// Whether a CPU runs.
        AffinityInfo64 = 0xc400_0004, "AFFINITY_INFO64";
        /// Version of SMCCC.
        SmcccVersion = 0x8000_0000, "SMCCC_VERSION";
        /// Whether an architecture function exists.
        SmcccArchFeatures = 0x8000_0001, "SMCCC_ARCH_FEATURES";
        /// Branch-predictor mitigation.
        ArchWorkaround1 = 0x8000_8000, "ARCH_WORKAROUND_1";
        /// Speculative-store mitigation.
        ArchWorkaround2 = 0x8000_7fff, "ARCH_WORKAROUND_2";
        /// Branch-history mitigation.
        ArchWorkaround3 = 0x8000_3fff, "ARCH_WORKAROUND_3";
        /// Hypervisor service: how many calls.
        HypCallCount = 0x8600_ff00, "HYP_CALL_COUNT";
        /// Hypervisor service: its UUID, [`XEN_UID`].
        HypCallUid = 0x8600_ff01, "HYP_CALL_UID";
        /// Hypervisor service: its revision.
        HypRevision = 0x8600_ff03, "HYP_REVISION";
        /// Standard service: how many calls.
        StdCallCount = 0x8400_ff00, "STD_CALL_COUNT";
        /// Standard service: its UUID, [`SSSC_UID`].
        StdCallUid = 0x8400_ff01, "STD_CALL_UID";
        /// Standard service: its revision.
        StdRevision = 0x8400_ff03, "STD_REVISION";
    }

    /// What a function returns, apart from its values.
    pub enum Code: i32 {
        /// Done.
        Success = 0, "SUCCESS";
        /// No such function.
        NotSupported = -1, "NOT_SUPPORTED";
        /// Wrong argument.
        InvalidParameters = -2, "INVALID_PARAMETERS";
        /// Not allowed.
        Denied = -3, "DENIED";
        /// The CPU runs already.
        AlreadyOn = -4, "ALREADY_ON";
        /// The CPU is being started.
        OnPending = -5, "ON_PENDING";
        /// Something broke.
        InternalFailure = -6, "INTERNAL_FAILURE";
        /// There is none.
        NotPresent = -7, "NOT_PRESENT";
        /// It is disabled.
        Disabled = -8, "DISABLED";
        /// Wrong address.
        InvalidAddress = -9, "INVALID_ADDRESS";
    }
}

/// PSCI 1.1.
pub const PSCI_VERSION_1_1: u32 = 0x1_0001;
/// SMCCC 1.1.
pub const SMCCC_VERSION_1_1: u32 = 0x1_0001;
/// SMCCC 1.2.
pub const SMCCC_VERSION_1_2: u32 = 0x1_0002;
/// `ARCH_FEATURES`: the CPU does not need that mitigation.
pub const SMCCC_NOT_REQUIRED: i32 = -2;
/// `AFFINITY_INFO`: it runs.
pub const AFFINITY_ON: i32 = 0;
/// `AFFINITY_INFO`: it does not run.
pub const AFFINITY_OFF: i32 = 1;
/// `AFFINITY_INFO`: it is being started.
pub const AFFINITY_ON_PENDING: i32 = 2;
/// `MIGRATE_INFO_TYPE`: nothing needs to be moved.
pub const MIGRATE_NOT_REQUIRED: i32 = 2;
/// The hypervisor service's UUID (`XEN_SMCCC_UID` of `arch-arm/smccc.h`); four bytes to a result
/// register, the first in its lowest byte.
pub const XEN_UID: [u8; 16] = 0xa718_12dc_c698_4369_9acf_79d1_8dde_e667_u128.to_be_bytes();
/// The standard service's UUID (`SSSC_SMCCC_UID` of `arch-arm/smccc.h`).
pub const SSSC_UID: [u8; 16] = 0xf863_386f_4b39_4cbd_9220_ce16_41e5_9f6f_u128.to_be_bytes();
/// Revision of both services: major 0.
pub const REVISION_MAJOR: u32 = 0;
/// Revision of both services: minor 1.
pub const REVISION_MINOR: u32 = 1;

/// A UUID as the four result registers.
#[must_use]
pub const fn uid_words(uid: [u8; 16]) -> [u32; 4] {
    let v = u128::from_le_bytes(uid);
    [
        v as u32,
        (v >> 32) as u32,
        (v >> 64) as u32,
        (v >> 96) as u32,
    ]
}
