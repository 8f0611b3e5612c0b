// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of hypercalls (`xen.h`).
//!
//! A guest puts the number in x16 and up to five arguments in x0..x4, executes `hvc #0xEA1` and
//! reads the result from x0: 0 or more, or an [`Errno`](crate::Errno) negated. A number that is not
//! in the table, and one that has no meaning on Arm, answers `-ENOSYS`.

/// The immediate of the `hvc` instruction of a hypercall (`XEN_HYPERCALL_TAG` of `arch-arm.h`).
pub const HYPERCALL_TAG: u16 = 0xea1;

macro_rules! hypercalls {
    ($( $(#[$doc:meta])* $variant:ident = $n:literal, $text:literal, $arm:literal; )*) => {
        numbers! {
            /// The number of a hypercall (`__HYPERVISOR_*` of `xen.h`), as x16 holds it.
            pub enum HypercallNr: u64 { $( $(#[$doc])* $variant = $n, $text; )* }
        }

        impl HypercallNr {
            /// Whether it exists on Arm; the others answer `-ENOSYS` there.
            #[must_use]
            pub const fn on_arm(self) -> bool {
                match self { $( Self::$variant => $arm ),* }
            }
        }
    };
}

hypercalls! {
    /// x86 only.
    SetTrapTable = 0, "set_trap_table", false;
    /// x86 only.
    MmuUpdate = 1, "mmu_update", false;
    /// x86 only.
    SetGdt = 2, "set_gdt", false;
    /// x86 only.
    StackSwitch = 3, "stack_switch", false;
    /// x86 only.
    SetCallbacks = 4, "set_callbacks", false;
    /// x86 only.
    FpuTaskswitch = 5, "fpu_taskswitch", false;
    /// The scheduler call of old; superseded.
    SchedOpCompat = 6, "sched_op_compat", false;
    /// Platform control: [`crate::platform`].
    PlatformOp = 7, "platform_op", true;
    /// x86 only.
    SetDebugreg = 8, "set_debugreg", false;
    /// x86 only.
    GetDebugreg = 9, "get_debugreg", false;
    /// x86 only.
    UpdateDescriptor = 10, "update_descriptor", false;
    /// Memory: [`crate::memory`].
    MemoryOp = 12, "memory_op", true;
    /// Several calls at once: [`crate::xen::MulticallEntry`].
    Multicall = 13, "multicall", true;
    /// x86 only.
    UpdateVaMapping = 14, "update_va_mapping", false;
    /// x86 only.
    SetTimerOp = 15, "set_timer_op", false;
    /// The event-channel call of old; superseded.
    EventChannelOpCompat = 16, "event_channel_op_compat", false;
    /// Version, features: [`crate::version`].
    XenVersion = 17, "xen_version", true;
    /// The hypervisor's console: [`crate::console`].
    ConsoleIo = 18, "console_io", true;
    /// The physical-device call of old; superseded.
    PhysdevOpCompat = 19, "physdev_op_compat", false;
    /// Grants: [`crate::grant_table`].
    GrantTableOp = 20, "grant_table_op", true;
    /// Assists: [`crate::xen::VmAssist`].
    VmAssist = 21, "vm_assist", true;
    /// x86 only.
    UpdateVaMappingOtherdomain = 22, "update_va_mapping_otherdomain", false;
    /// x86 only.
    Iret = 23, "iret", false;
    /// Virtual CPUs: [`crate::vcpu`].
    VcpuOp = 24, "vcpu_op", true;
    /// x86 only.
    SetSegmentBase = 25, "set_segment_base", false;
    /// x86 only.
    MmuextOp = 26, "mmuext_op", false;
    /// Security modules.
    XsmOp = 27, "xsm_op", true;
    /// x86 only.
    NmiOp = 28, "nmi_op", false;
    /// Scheduling: [`crate::sched`].
    SchedOp = 29, "sched_op", true;
    /// x86 only.
    CallbackOp = 30, "callback_op", false;
    /// x86 only.
    XenoprofOp = 31, "xenoprof_op", false;
    /// Event channels: [`crate::event_channel`].
    EventChannelOp = 32, "event_channel_op", true;
    /// Physical devices: [`crate::physdev`].
    PhysdevOp = 33, "physdev_op", true;
    /// Parameters of a domain: [`crate::hvm`].
    HvmOp = 34, "hvm_op", true;
    /// Control of the whole system: `sysctl`, feature `toolstack`.
    Sysctl = 35, "sysctl", true;
    /// Control of a domain: `domctl`, feature `toolstack`.
    Domctl = 36, "domctl", true;
    /// x86 only.
    KexecOp = 37, "kexec_op", false;
    /// Gone.
    TmemOp = 38, "tmem_op", false;
    /// Messages between domains.
    ArgoOp = 39, "argo_op", true;
    /// x86 only.
    XenpmuOp = 40, "xenpmu_op", false;
    /// Device models.
    DmOp = 41, "dm_op", true;
    /// The hypervisor's file system.
    HypfsOp = 42, "hypfs_op", true;
    /// Arch-specific; unused on Arm.
    Arch0 = 48, "arch_0", false;
    /// Arch-specific; unused on Arm.
    Arch1 = 49, "arch_1", false;
    /// Arch-specific; unused on Arm.
    Arch2 = 50, "arch_2", false;
    /// Arch-specific; unused on Arm.
    Arch3 = 51, "arch_3", false;
    /// Arch-specific; unused on Arm.
    Arch4 = 52, "arch_4", false;
    /// Arch-specific; unused on Arm.
    Arch5 = 53, "arch_5", false;
    /// Arch-specific; unused on Arm.
    Arch6 = 54, "arch_6", false;
    /// Arch-specific; unused on Arm.
    Arch7 = 55, "arch_7", false;
}
