// SPDX-License-Identifier: MIT OR Apache-2.0
//! Control of the whole system (`sysctl.h`, interface version of Xen 4.17).
//!
//! The argument is a [`Sysctl`], whose union holds the command's own structure at its start.

use crate::DomId;
use crate::domctl::Payload;
use crate::xen::XenctlBitmap;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What every [`Sysctl`] carries; another version answers `-EACCES`.
pub const INTERFACE_VERSION: u32 = 0x15;

numbers! {
    /// Commands (`XEN_SYSCTL_*`).
    pub enum SysctlCmd: u32 {
        /// The hypervisor's messages: [`SysctlReadconsole`].
        Readconsole = 1, "readconsole";
        /// Trace buffers: [`SysctlTbufOp`].
        TbufOp = 2, "tbuf_op";
        /// The machine: [`SysctlPhysinfo`].
        Physinfo = 3, "physinfo";
        /// The scheduler: [`SysctlSchedId`].
        SchedId = 4, "sched_id";
        /// Performance counters: [`SysctlPerfcOp`].
        PerfcOp = 5, "perfc_op";
        /// All domains: [`SysctlGetdomaininfolist`].
        Getdomaininfolist = 6, "getdomaininfolist";
        /// Debug keys: [`SysctlDebugKeys`].
        DebugKeys = 7, "debug_keys";
        /// Idle time: [`SysctlGetcpuinfo`].
        Getcpuinfo = 8, "getcpuinfo";
        /// Free memory: [`SysctlAvailheap`].
        Availheap = 9, "availheap";
        /// Power statistics.
        GetPmstat = 10, "get_pmstat";
        /// CPUs on and off.
        CpuHotplug = 11, "cpu_hotplug";
        /// Power management.
        PmOp = 12, "pm_op";
        /// Bad pages.
        PageOfflineOp = 14, "page_offline_op";
        /// Lock statistics: [`SysctlLockprofOp`].
        LockprofOp = 15, "lockprof_op";
        /// The CPUs: [`SysctlCputopoinfo`].
        Cputopoinfo = 16, "cputopoinfo";
        /// The memory nodes: [`SysctlNumainfo`].
        Numainfo = 17, "numainfo";
        /// CPU pools: [`SysctlCpupoolOp`].
        CpupoolOp = 18, "cpupool_op";
        /// Scheduler parameters: [`SysctlSchedulerOp`].
        SchedulerOp = 19, "scheduler_op";
        /// Test coverage.
        CoverageOp = 20, "coverage_op";
        /// PCI devices' nodes: [`SysctlPcitopoinfo`].
        Pcitopoinfo = 22, "pcitopoinfo";
        /// Live patches.
        LivepatchOp = 27, "livepatch_op";
    }
}

/// [`SysctlPhysinfo::capabilities`] (`XEN_SYSCTL_PHYSCAP_*`).
pub mod physcap {
    /// Hardware virtualization.
    pub const HVM: u32 = 1 << 0;
    /// x86.
    pub const PV: u32 = 1 << 1;
    /// Devices can be given behind an IOMMU.
    pub const DIRECTIO: u32 = 1 << 2;
    /// Stage-2 translation.
    pub const HAP: u32 = 1 << 3;
    /// x86.
    pub const SHADOW: u32 = 1 << 4;
    /// The IOMMU shares stage-2 tables.
    pub const IOMMU_HAP_PT_SHARE: u32 = 1 << 5;
    /// x86.
    pub const VMTRACE: u32 = 1 << 6;
    /// Performance counters for guests.
    pub const VPMU: u32 = 1 << 7;
    /// Grant tables of version 1.
    pub const GNTTAB_V1: u32 = 1 << 8;
    /// Grant tables of version 2.
    pub const GNTTAB_V2: u32 = 1 << 9;
}

/// Commands of [`SysctlCpupoolOp`] (`XEN_SYSCTL_CPUPOOL_OP_*`).
pub mod cpupool {
    /// Make.
    pub const CREATE: u32 = 1;
    /// End.
    pub const DESTROY: u32 = 2;
    /// The first pool from a number on.
    pub const INFO: u32 = 3;
    /// Add a CPU.
    pub const ADDCPU: u32 = 4;
    /// Remove a CPU.
    pub const RMCPU: u32 = 5;
    /// Move a domain.
    pub const MOVEDOMAIN: u32 = 6;
    /// CPUs in no pool.
    pub const FREEINFO: u32 = 7;
    /// Any pool, any CPU.
    pub const PAR_ANY: u32 = u32::MAX;
}

/// A CPU, node or size that does not exist (`XEN_INVALID_*`).
pub const INVALID: u32 = u32::MAX;

abi! {
    /// The argument of `sysctl`.
    ["xen_sysctl", 136, "sysctl.h"]
    pub struct Sysctl {
        /// [`SysctlCmd`].
        pub cmd: u32,
        /// [`INTERFACE_VERSION`].
        pub interface_version: u32,
        /// The command's own structure, at the start.
        pub u: Payload = "u.pad",
    }

    /// The hypervisor's messages.
    ["xen_sysctl_readconsole", 24, "sysctl.h"]
    pub struct SysctlReadconsole {
        /// In: non-zero to forget them after.
        pub clear: u8,
        /// In: non-zero to start at `index`.
        pub incremental: u8,
        /// Zero.
        pub pad0: u8,
        /// Zero.
        pub pad1: u8,
        /// In: where to start, out: where to go on.
        pub index: u32,
        /// In: address of the buffer.
        pub buffer: u64,
        /// In: its size, out: bytes written.
        pub count: u32,
        /// Padding.
        pub _pad: u32 = "-",
    }

    /// Trace buffers.
    ["xen_sysctl_tbuf_op", 48, "sysctl.h"]
    pub struct SysctlTbufOp {
        /// In: what to do.
        pub cmd: u32,
        /// Padding.
        pub _pad0: u32 = "-",
        /// In: the CPUs.
        pub cpu_mask: XenctlBitmap,
        /// In and out: the events.
        pub evt_mask: u32,
        /// Padding.
        pub _pad1: u32 = "-",
        /// Out: frame of the buffers' description.
        pub buffer_mfn: u64,
        /// In and out: pages.
        pub size: u32,
        /// Padding.
        pub _pad2: u32 = "-",
    }

    /// The machine.
    ["xen_sysctl_physinfo", 112, "sysctl.h"]
    pub struct SysctlPhysinfo {
        /// Threads of a core.
        pub threads_per_core: u32,
        /// Cores of a socket.
        pub cores_per_socket: u32,
        /// CPUs online.
        pub nr_cpus: u32,
        /// Highest CPU number.
        pub max_cpu_id: u32,
        /// Memory nodes.
        pub nr_nodes: u32,
        /// Highest node number.
        pub max_node_id: u32,
        /// The timer's frequency in kHz.
        pub cpu_khz: u32,
        /// [`physcap`].
        pub capabilities: u32,
        /// Of the architecture.
        pub arch_capabilities: u32,
        /// Padding.
        pub pad: u32,
        /// Pages of memory.
        pub total_pages: u64,
        /// Pages that are free.
        pub free_pages: u64,
        /// Free pages that are yet to be scrubbed.
        pub scrub_pages: u64,
        /// Pages claimed.
        pub outstanding_pages: u64,
        /// Highest machine frame.
        pub max_mfn: u64,
        /// x86.
        pub hw_cap: [u32; 8],
    }

    /// The scheduler.
    ["xen_sysctl_sched_id", 4, "sysctl.h"]
    pub struct SysctlSchedId {
        /// Out: [`scheduler`](crate::domctl::scheduler).
        pub sched_id: u32,
    }

    /// Performance counters.
    ["xen_sysctl_perfc_op", 32, "sysctl.h"]
    pub struct SysctlPerfcOp {
        /// In: 1 resets, 2 queries.
        pub cmd: u32,
        /// Out: counters.
        pub nr_counters: u32,
        /// Out: values.
        pub nr_vals: u32,
        /// Padding.
        pub _pad: u32 = "-",
        /// In: address for descriptions, or 0.
        pub desc: u64,
        /// In: address for values, or 0.
        pub val: u64,
    }

    /// All domains.
    ["xen_sysctl_getdomaininfolist", 24, "sysctl.h"]
    pub struct SysctlGetdomaininfolist {
        /// In: from which number on.
        pub first_domain: DomId,
        /// Padding.
        pub _pad0: u16 = "-",
        /// In: room in the buffer.
        pub max_domains: u32,
        /// In: address of an array of
        /// [`DomctlGetdomaininfo`](crate::domctl::DomctlGetdomaininfo).
        pub buffer: u64,
        /// Out: how many were written.
        pub num_domains: u32,
        /// Padding.
        pub _pad1: u32 = "-",
    }

    /// Debug keys.
    ["xen_sysctl_debug_keys", 16, "sysctl.h"]
    pub struct SysctlDebugKeys {
        /// In: address of the characters.
        pub keys: u64,
        /// In: how many.
        pub nr_keys: u32,
        /// Padding.
        pub _pad: u32 = "-",
    }

    /// A CPU's idle time.
    ["xen_sysctl_cpuinfo", 8, "sysctl.h"]
    pub struct SysctlCpuinfo {
        /// Nanoseconds.
        pub idletime: u64,
    }

    /// Idle time.
    ["xen_sysctl_getcpuinfo", 24, "sysctl.h"]
    pub struct SysctlGetcpuinfo {
        /// In: room in the array.
        pub max_cpus: u32,
        /// Padding.
        pub _pad0: u32 = "-",
        /// In: address of an array of [`SysctlCpuinfo`].
        pub info: u64,
        /// Out: how many were written.
        pub nr_cpus: u32,
        /// Padding.
        pub _pad1: u32 = "-",
    }

    /// Free memory.
    ["xen_sysctl_availheap", 24, "sysctl.h"]
    pub struct SysctlAvailheap {
        /// In: smallest address width, 0 for any.
        pub min_bitwidth: u32,
        /// In: largest address width, 0 for any.
        pub max_bitwidth: u32,
        /// In: the node, -1 for all.
        pub node: i32,
        /// Padding.
        pub _pad: u32 = "-",
        /// Out: bytes.
        pub avail_bytes: u64,
    }

    /// Lock statistics.
    ["xen_sysctl_lockprof_op", 32, "sysctl.h"]
    pub struct SysctlLockprofOp {
        /// In: 1 resets, 2 queries.
        pub cmd: u32,
        /// In: room.
        pub max_elem: u32,
        /// Out: how many there are.
        pub nr_elem: u32,
        /// Padding.
        pub _pad: u32 = "-",
        /// Out: nanoseconds measured.
        pub time: u64,
        /// In: address of the array, or 0.
        pub data: u64,
    }

    /// Where a CPU is.
    ["xen_sysctl_cputopo", 12, "sysctl.h"]
    pub struct SysctlCputopo {
        /// Its core.
        pub core: u32,
        /// Its socket.
        pub socket: u32,
        /// Its node.
        pub node: u32,
    }

    /// The CPUs.
    ["xen_sysctl_cputopoinfo", 16, "sysctl.h"]
    pub struct SysctlCputopoinfo {
        /// In: room, out: CPUs.
        pub num_cpus: u32,
        /// Padding.
        pub _pad: u32 = "-",
        /// In: address of an array of [`SysctlCputopo`], or 0.
        pub cputopo: u64,
    }

    /// A memory node.
    ["xen_sysctl_meminfo", 16, "sysctl.h"]
    pub struct SysctlMeminfo {
        /// Bytes.
        pub memsize: u64,
        /// Bytes free.
        pub memfree: u64,
    }

    /// The memory nodes.
    ["xen_sysctl_numainfo", 24, "sysctl.h"]
    pub struct SysctlNumainfo {
        /// In: room, out: nodes.
        pub num_nodes: u32,
        /// Padding.
        pub _pad: u32 = "-",
        /// In: address of an array of [`SysctlMeminfo`], or 0.
        pub meminfo: u64,
        /// In: address of a square of `u32` distances, or 0.
        pub distance: u64,
    }

    /// CPU pools.
    ["xen_sysctl_cpupool_op", 40, "sysctl.h"]
    pub struct SysctlCpupoolOp {
        /// In: [`cpupool`].
        pub op: u32,
        /// In and out: the pool.
        pub cpupool_id: u32,
        /// In and out: its scheduler.
        pub sched_id: u32,
        /// In: a domain.
        pub domid: u32,
        /// In: a CPU.
        pub cpu: u32,
        /// Out: its domains.
        pub n_dom: u32,
        /// In and out: its CPUs.
        pub cpumap: XenctlBitmap,
    }

    /// Scheduler parameters.
    ["xen_sysctl_scheduler_op", 32, "sysctl.h"]
    pub struct SysctlSchedulerOp {
        /// In: the pool.
        pub cpupool_id: u32,
        /// In: [`scheduler`](crate::domctl::scheduler).
        pub sched_id: u32,
        /// In: 0 sets, 1 gets.
        pub cmd: u32,
        /// Padding.
        pub _pad: u32 = "-",
        /// The scheduler's own; credit2: rate limit in microseconds; credit: time slice in
        /// milliseconds, rate limit in microseconds, migration delay in microseconds.
        pub u: [u32; 4],
    }

    /// PCI devices' nodes.
    ["xen_sysctl_pcitopoinfo", 24, "sysctl.h"]
    pub struct SysctlPcitopoinfo {
        /// In: devices, out: devices done.
        pub num_devs: u32,
        /// Padding.
        pub _pad: u32 = "-",
        /// In: address of an array of [`PhysdevPciDevice`](crate::physdev::PhysdevPciDevice).
        pub devs: u64,
        /// In: address of an array of `u32`.
        pub nodes: u64,
    }
}

impl Sysctl {
    /// A command without a structure of its own.
    #[must_use]
    pub fn new(cmd: SysctlCmd) -> Self {
        Self {
            cmd: cmd.number(),
            interface_version: INTERFACE_VERSION,
            ..Self::default()
        }
    }

    /// A command with its structure.
    #[must_use]
    pub fn with<T: IntoBytes + Immutable>(cmd: SysctlCmd, t: &T) -> Self {
        let mut s = Self::new(cmd);
        s.u.set(t);
        s
    }

    /// The command's structure.
    #[must_use]
    pub fn payload<T: FromBytes + IntoBytes>(&self) -> T {
        self.u.get()
    }

    /// Puts the command's structure.
    pub fn set_payload<T: IntoBytes + Immutable>(&mut self, t: &T) {
        self.u.set(t);
    }
}
