// SPDX-License-Identifier: MIT OR Apache-2.0
//! Virtual CPUs (`vcpu.h`).

numbers! {
    /// Operations of `vcpu_op` (`VCPUOP_*`). Arm has the two that register memory.
    pub enum VcpuOp: u64 {
        /// Not on Arm.
        Initialise = 0, "initialise";
        /// Not on Arm: PSCI does it.
        Up = 1, "up";
        /// Not on Arm: PSCI does it.
        Down = 2, "down";
        /// Not on Arm.
        IsUp = 3, "is_up";
        /// Not on Arm.
        GetRunstateInfo = 4, "get_runstate_info";
        /// Keep a [`VcpuRunstateInfo`] up to date: [`VcpuRegisterRunstateMemoryArea`].
        RegisterRunstateMemoryArea = 5, "register_runstate_memory_area";
        /// Not on Arm.
        SetPeriodicTimer = 6, "set_periodic_timer";
        /// Not on Arm.
        StopPeriodicTimer = 7, "stop_periodic_timer";
        /// Not on Arm.
        SetSingleshotTimer = 8, "set_singleshot_timer";
        /// Not on Arm.
        StopSingleshotTimer = 9, "stop_singleshot_timer";
        /// Move the [`VcpuInfo`](crate::xen::VcpuInfo): [`VcpuRegisterVcpuInfo`].
        RegisterVcpuInfo = 10, "register_vcpu_info";
        /// Not on Arm.
        SendNmi = 11, "send_nmi";
        /// Not on Arm.
        GetPhysid = 12, "get_physid";
        /// Not on Arm.
        RegisterVcpuTimeMemoryArea = 13, "register_vcpu_time_memory_area";
    }

    /// What a vcpu is doing (`RUNSTATE_*`).
    pub enum RunState: u32 {
        /// It runs.
        Running = 0, "running";
        /// It could run, but others do.
        Runnable = 1, "runnable";
        /// It waits for an event.
        Blocked = 2, "blocked";
        /// It is stopped or paused.
        Offline = 3, "offline";
    }
}

/// Set in `state_entry_time` while the hypervisor writes the area (`XEN_RUNSTATE_UPDATE`), when the
/// guest switched that on with `vm_assist`.
pub const RUNSTATE_UPDATE: u64 = 1 << 63;

abi! {
    /// Where a vcpu's [`VcpuInfo`](crate::xen::VcpuInfo) shall be.
    ["vcpu_register_vcpu_info", 16, "vcpu.h"]
    pub struct VcpuRegisterVcpuInfo {
        /// In: its frame.
        pub mfn: u64,
        /// In: its byte offset in the frame; the structure must not cross the page's end.
        pub offset: u32,
        /// Zero.
        pub rsvd: u32,
    }

    /// What a vcpu did with its time.
    ["vcpu_runstate_info", 48, "vcpu.h"]
    pub struct VcpuRunstateInfo {
        /// [`RunState`].
        pub state: u32,
        /// Padding.
        pub _pad: u32 = "-",
        /// System time in nanoseconds when the state was entered; bit 63 is [`RUNSTATE_UPDATE`].
        pub state_entry_time: u64,
        /// Nanoseconds in each [`RunState`].
        pub time: [u64; 4],
    }

    /// Where the hypervisor shall keep a [`VcpuRunstateInfo`].
    ["vcpu_register_runstate_memory_area", 8, "vcpu.h"]
    pub struct VcpuRegisterRunstateMemoryArea {
        /// In: guest virtual address; 0 ends it.
        pub addr: u64,
    }
}
