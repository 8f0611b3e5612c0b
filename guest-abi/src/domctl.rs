// SPDX-License-Identifier: MIT OR Apache-2.0
//! Control of a domain (`domctl.h`, interface version of Xen 4.17).
//!
//! The argument is a [`Domctl`]: command, version, domain, and a union of 128 bytes that holds the
//! command's own structure at its start ([`Domctl::payload`], [`Domctl::set_payload`]).

use crate::arch::ArchDomainconfig;
use crate::xen::{DomainHandle, XenctlBitmap};
use crate::{DomId, Port};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What every [`Domctl`] carries; another version answers `-EACCES`.
pub const INTERFACE_VERSION: u32 = 0x15;

numbers! {
    /// Commands (`XEN_DOMCTL_*`) that have a meaning on Arm.
    pub enum DomctlCmd: u32 {
        /// Make a domain: [`DomctlCreatedomain`]; its number is [`Domctl::domain`].
        Createdomain = 1, "createdomain";
        /// End a domain; to be called again while it answers `-ERESTART`.
        Destroydomain = 2, "destroydomain";
        /// Stop its vcpus; counts.
        Pausedomain = 3, "pausedomain";
        /// Undo one pause.
        Unpausedomain = 4, "unpausedomain";
        /// What it is: [`DomctlGetdomaininfo`].
        Getdomaininfo = 5, "getdomaininfo";
        /// Where a vcpu may run: [`DomctlVcpuaffinity`].
        Setvcpuaffinity = 9, "setvcpuaffinity";
        /// How much memory it may have: [`DomctlMaxMem`].
        MaxMem = 11, "max_mem";
        /// A vcpu's registers: [`DomctlVcpucontext`].
        Setvcpucontext = 12, "setvcpucontext";
        /// A vcpu's registers: [`DomctlVcpucontext`].
        Getvcpucontext = 13, "getvcpucontext";
        /// What a vcpu does: [`DomctlGetvcpuinfo`].
        Getvcpuinfo = 14, "getvcpuinfo";
        /// How many vcpus it has: [`DomctlMaxVcpus`].
        MaxVcpus = 15, "max_vcpus";
        /// Its scheduling parameters: [`DomctlSchedulerOp`].
        SchedulerOp = 16, "scheduler_op";
        /// Its UUID: [`DomctlSetdomainhandle`].
        Setdomainhandle = 17, "setdomainhandle";
        /// Debugging: [`DomctlSetdebugging`].
        Setdebugging = 18, "setdebugging";
        /// Access to an interrupt: [`DomctlIrqPermission`].
        IrqPermission = 19, "irq_permission";
        /// Access to device memory: [`DomctlIomemPermission`].
        IomemPermission = 20, "iomem_permission";
        /// Not on Arm: [`DomctlHypercallInit`].
        HypercallInit = 22, "hypercall_init";
        /// Its wall clock's offset: [`DomctlSettimeoffset`].
        Settimeoffset = 24, "settimeoffset";
        /// Where a vcpu may run: [`DomctlVcpuaffinity`].
        Getvcpuaffinity = 25, "getvcpuaffinity";
        /// Run on after a shutdown.
        Resumedomain = 27, "resumedomain";
        /// Press a button: [`DomctlSendtrigger`]; not on Arm.
        Sendtrigger = 28, "sendtrigger";
        /// Event when it is suspended: [`DomctlSubscribe`].
        Subscribe = 29, "subscribe";
        /// 32 or 64 bits: [`DomctlAddressSize`].
        SetAddressSize = 35, "set_address_size";
        /// 32 or 64 bits: [`DomctlAddressSize`].
        GetAddressSize = 36, "get_address_size";
        /// Give it a device behind an IOMMU: [`DomctlAssignDevice`].
        AssignDevice = 37, "assign_device";
        /// Give it an interrupt: [`DomctlBindPtIrq`].
        BindPtIrq = 38, "bind_pt_irq";
        /// Map device memory: [`DomctlMemoryMapping`].
        MemoryMapping = 39, "memory_mapping";
        /// Whether a device can be given.
        TestAssignDevice = 45, "test_assign_device";
        /// The domain that it may control: [`DomctlSetTarget`].
        SetTarget = 46, "set_target";
        /// Take a device back.
        DeassignDevice = 47, "deassign_device";
        /// Take an interrupt back: [`DomctlBindPtIrq`].
        UnbindPtIrq = 48, "unbind_pt_irq";
        /// Introspection.
        VmEventOp = 56, "vm_event_op";
        /// Introspection.
        SetAccessRequired = 64, "set_access_required";
        /// Give it a global virtual interrupt: [`DomctlSetVirqHandler`].
        SetVirqHandler = 66, "set_virq_handler";
        /// Its NUMA nodes: [`DomctlNodeaffinity`].
        Setnodeaffinity = 68, "setnodeaffinity";
        /// Its NUMA nodes: [`DomctlNodeaffinity`].
        Getnodeaffinity = 69, "getnodeaffinity";
        /// Write caches back for a range of its frames: [`DomctlCacheflush`].
        Cacheflush = 71, "cacheflush";
        /// Virtual NUMA.
        Setvnumainfo = 74, "setvnumainfo";
        /// Introspection.
        MonitorOp = 77, "monitor_op";
        /// Start anew with its memory kept.
        SoftReset = 79, "soft_reset";
        /// Its virtual UART: [`DomctlVuartOp`].
        VuartOp = 81, "vuart_op";
        /// Memory for its stage-2 tables: [`DomctlPagingMempool`].
        GetPagingMempoolSize = 85, "get_paging_mempool_size";
        /// Memory for its stage-2 tables: [`DomctlPagingMempool`].
        SetPagingMempoolSize = 86, "set_paging_mempool_size";
    }
}

/// Flags of [`DomctlCreatedomain`] (`XEN_DOMCTL_CDF_*`).
pub mod cdf {
    /// Hardware virtualization; always on Arm.
    pub const HVM: u32 = 1 << 0;
    /// Stage-2 translation; always on Arm.
    pub const HAP: u32 = 1 << 1;
    /// x86.
    pub const S3_INTEGRITY: u32 = 1 << 2;
    /// x86.
    pub const OOS_OFF: u32 = 1 << 3;
    /// It holds the xenstore.
    pub const XS_DOMAIN: u32 = 1 << 4;
    /// It may be given devices behind an IOMMU.
    pub const IOMMU: u32 = 1 << 5;
    /// x86.
    pub const NESTED_VIRT: u32 = 1 << 6;
    /// It sees the performance counters.
    pub const VPMU: u32 = 1 << 7;
}

/// Flags of [`DomctlGetdomaininfo`] (`XEN_DOMINF_*`).
pub mod dominf {
    /// It is being destroyed.
    pub const DYING: u32 = 1 << 0;
    /// Hardware virtualization.
    pub const HVM_GUEST: u32 = 1 << 1;
    /// It stopped; why is in bits 16 to 23: [`shutdown_code`].
    pub const SHUTDOWN: u32 = 1 << 2;
    /// It is paused by the toolstack.
    pub const PAUSED: u32 = 1 << 3;
    /// All its vcpus wait.
    pub const BLOCKED: u32 = 1 << 4;
    /// One of its vcpus runs.
    pub const RUNNING: u32 = 1 << 5;
    /// A debugger stopped it.
    pub const DEBUGGED: u32 = 1 << 6;
    /// It holds the xenstore.
    pub const XS_DOMAIN: u32 = 1 << 7;
    /// Stage-2 translation.
    pub const HAP: u32 = 1 << 8;
    /// Where the reason of a shutdown stands.
    pub const SHUTDOWN_SHIFT: u32 = 16;
    /// The reason of a shutdown, shifted down.
    pub const SHUTDOWN_MASK: u32 = 255;

    /// The reason of a shutdown: [`ShutdownReason`](crate::sched::ShutdownReason)'s number.
    #[must_use]
    pub const fn shutdown_code(flags: u32) -> u32 {
        flags >> SHUTDOWN_SHIFT & SHUTDOWN_MASK
    }
}

/// Flags of [`DomctlVcpuaffinity`] (`XEN_VCPUAFFINITY_*`).
pub mod affinity {
    /// Where it may run.
    pub const HARD: u32 = 1 << 0;
    /// Where it would rather run.
    pub const SOFT: u32 = 1 << 1;
    /// Undo a temporary pin.
    pub const FORCE: u32 = 1 << 2;
}

/// Schedulers (`XEN_SCHEDULER_*`).
pub mod scheduler {
    /// Credit.
    pub const CREDIT: u32 = 5;
    /// Credit2.
    pub const CREDIT2: u32 = 6;
    /// ARINC 653.
    pub const ARINC653: u32 = 7;
    /// Real-time deferrable server.
    pub const RTDS: u32 = 8;
    /// One vcpu for each CPU.
    pub const NULL: u32 = 9;
}

/// Commands of [`DomctlSchedulerOp`] (`XEN_DOMCTL_SCHEDOP_*`).
pub mod schedop {
    /// Set.
    pub const PUTINFO: u32 = 0;
    /// Get.
    pub const GETINFO: u32 = 1;
    /// Set for each vcpu.
    pub const PUTVCPUINFO: u32 = 2;
    /// Get for each vcpu.
    pub const GETVCPUINFO: u32 = 3;
}

/// [`DomctlBindPtIrq::irq_type`]: a shared peripheral interrupt (`PT_IRQ_TYPE_SPI`).
pub const PT_IRQ_TYPE_SPI: u32 = 4;
/// [`DomctlAssignDevice::dev`]: a PCI device.
pub const DEV_PCI: u32 = 0;
/// [`DomctlAssignDevice::dev`]: a device of the device tree.
pub const DEV_DT: u32 = 1;
/// [`DomctlMemoryMapping::add_mapping`]: map.
pub const ADD_MAPPING: u32 = 1;
/// [`DomctlMemoryMapping::add_mapping`]: unmap.
pub const REMOVE_MAPPING: u32 = 0;
/// [`DomctlVuartOp::cmd`]: make it.
pub const VUART_OP_INIT: u32 = 0;
/// [`DomctlVuartOp::kind`]: a PL011.
pub const VUART_TYPE_VPL011: u32 = 0;
/// [`DomctlCreatedomain::grant_opts`]: the version of grant tables.
pub const GRANT_VERSION_MASK: u32 = 0xf;
/// [`DomctlGetdomaininfo::max_vcpu_id`] of a domain without vcpus.
pub const INVALID_MAX_VCPU_ID: u32 = u32::MAX;

abi! {
    /// The argument of `domctl`.
    ["xen_domctl", 144, "domctl.h"]
    pub struct Domctl {
        /// [`DomctlCmd`].
        pub cmd: u32,
        /// [`INTERFACE_VERSION`].
        pub interface_version: u32,
        /// The domain.
        pub domain: DomId,
        /// Padding.
        pub pad: [u16; 3] = "_pad",
        /// The command's own structure, at the start.
        pub u: Payload = "u.pad",
    }

    /// What a domain is made of.
    ["xen_domctl_createdomain", 68, "domctl.h"]
    pub struct DomctlCreatedomain {
        /// Security label.
        pub ssidref: u32,
        /// UUID.
        pub handle: DomainHandle,
        /// [`cdf`].
        pub flags: u32,
        /// IOMMU options.
        pub iommu_opts: u32,
        /// Most vcpus.
        pub max_vcpus: u32,
        /// Highest event-channel port.
        pub max_evtchn_port: u32,
        /// Most frames of its grant table; negative for the default.
        pub max_grant_frames: i32,
        /// Most frames that track its mappings of grants; negative for the default.
        pub max_maptrack_frames: i32,
        /// Grant-table version in [`GRANT_VERSION_MASK`].
        pub grant_opts: u32,
        /// x86.
        pub vmtrace_size: u32,
        /// Its CPU pool.
        pub cpupool_id: u32,
        /// The Arm part.
        pub arch: ArchDomainconfig,
    }

    /// What a domain is.
    ["xen_domctl_getdomaininfo", 120, "domctl.h"]
    pub struct DomctlGetdomaininfo {
        /// Its number.
        pub domain: DomId,
        /// Padding.
        pub pad1: u16,
        /// [`dominf`].
        pub flags: u32,
        /// Pages that it has.
        pub tot_pages: u64,
        /// Pages that it may have.
        pub max_pages: u64,
        /// Pages claimed and not yet populated.
        pub outstanding_pages: u64,
        /// Shared pages; 0 on Arm.
        pub shr_pages: u64,
        /// Paged-out pages; 0 on Arm.
        pub paged_pages: u64,
        /// Frame of its shared-info page, all ones when there is none.
        pub shared_info_frame: u64,
        /// Nanoseconds that its vcpus ran.
        pub cpu_time: u64,
        /// Vcpus that are online.
        pub nr_online_vcpus: u32,
        /// Highest vcpu number.
        pub max_vcpu_id: u32,
        /// Security label.
        pub ssidref: u32,
        /// UUID.
        pub handle: DomainHandle,
        /// Its CPU pool.
        pub cpupool: u32,
        /// Bits of a guest physical address.
        pub gpaddr_bits: u8,
        /// Padding.
        pub pad2: [u8; 7],
        /// The Arm part.
        pub arch_config: ArchDomainconfig,
        /// Padding.
        pub _pad: u32 = "-",
    }

    /// Where a vcpu may run.
    ["xen_domctl_vcpuaffinity", 40, "domctl.h"]
    pub struct DomctlVcpuaffinity {
        /// In: which.
        pub vcpu: u32,
        /// In: [`affinity`].
        pub flags: u32,
        /// In and out: the CPUs where it may run.
        pub cpumap_hard: XenctlBitmap,
        /// In and out: the CPUs where it would rather run.
        pub cpumap_soft: XenctlBitmap,
    }

    /// A domain's NUMA nodes.
    ["xen_domctl_nodeaffinity", 16, "domctl.h"]
    pub struct DomctlNodeaffinity {
        /// The nodes.
        pub nodemap: XenctlBitmap,
    }

    /// How much memory a domain may have.
    ["xen_domctl_max_mem", 8, "domctl.h"]
    pub struct DomctlMaxMem {
        /// In: KiB.
        pub max_memkb: u64,
    }

    /// How many vcpus a domain has.
    ["xen_domctl_max_vcpus", 4, "domctl.h"]
    pub struct DomctlMaxVcpus {
        /// In: how many.
        pub max: u32,
    }

    /// A vcpu's registers.
    ["xen_domctl_vcpucontext", 16, "domctl.h"]
    pub struct DomctlVcpucontext {
        /// In: which.
        pub vcpu: u32,
        /// Padding.
        pub _pad: u32 = "-",
        /// In: address of a [`VcpuGuestContext`](crate::arch::VcpuGuestContext).
        pub ctxt: u64,
    }

    /// What a vcpu does.
    ["xen_domctl_getvcpuinfo", 24, "domctl.h"]
    pub struct DomctlGetvcpuinfo {
        /// In: which.
        pub vcpu: u32,
        /// Out: it is not switched off.
        pub online: u8,
        /// Out: it waits for an event.
        pub blocked: u8,
        /// Out: it runs.
        pub running: u8,
        /// Padding.
        pub _pad0: u8 = "-",
        /// Out: nanoseconds that it ran.
        pub cpu_time: u64,
        /// Out: its CPU.
        pub cpu: u32,
        /// Padding.
        pub _pad1: u32 = "-",
    }

    /// A domain's scheduling parameters.
    ["xen_domctl_scheduler_op", 24, "domctl.h"]
    pub struct DomctlSchedulerOp {
        /// In: [`scheduler`].
        pub sched_id: u32,
        /// In: [`schedop`].
        pub cmd: u32,
        /// Credit and credit2: the weight.
        pub weight: u16 = "u.credit2.weight",
        /// Credit and credit2: the cap in percent of a CPU, 0 for none.
        pub cap: u16 = "u.credit2.cap",
        /// The rest of the union.
        pub _pad: [u32; 3] = "-",
    }

    /// A domain's UUID.
    ["xen_domctl_setdomainhandle", 16, "domctl.h"]
    pub struct DomctlSetdomainhandle {
        /// In: the UUID.
        pub handle: DomainHandle,
    }

    /// Debugging.
    ["xen_domctl_setdebugging", 1, "domctl.h"]
    pub struct DomctlSetdebugging {
        /// In: non-zero to switch on.
        pub enable: u8,
    }

    /// Access to an interrupt.
    ["xen_domctl_irq_permission", 8, "domctl.h"]
    pub struct DomctlIrqPermission {
        /// In: the interrupt.
        pub pirq: u32,
        /// In: non-zero to allow.
        pub allow_access: u8,
        /// Zero.
        pub pad: [u8; 3],
    }

    /// Access to device memory.
    ["xen_domctl_iomem_permission", 24, "domctl.h"]
    pub struct DomctlIomemPermission {
        /// In: first machine frame.
        pub first_mfn: u64,
        /// In: how many.
        pub nr_mfns: u64,
        /// In: non-zero to allow.
        pub allow_access: u8,
        /// Padding.
        pub _pad: [u8; 7] = "-",
    }

    /// Not on Arm.
    ["xen_domctl_hypercall_init", 8, "domctl.h"]
    pub struct DomctlHypercallInit {
        /// In: frame.
        pub gmfn: u64,
    }

    /// A domain's wall clock's offset.
    ["xen_domctl_settimeoffset", 8, "domctl.h"]
    pub struct DomctlSettimeoffset {
        /// In: seconds.
        pub time_offset_seconds: i64,
    }

    /// Press a button.
    ["xen_domctl_sendtrigger", 8, "domctl.h"]
    pub struct DomctlSendtrigger {
        /// In: which button.
        pub trigger: u32,
        /// In: which vcpu.
        pub vcpu: u32,
    }

    /// Event when a domain is suspended.
    ["xen_domctl_subscribe", 4, "domctl.h"]
    pub struct DomctlSubscribe {
        /// In: the caller's port, 0 to end it.
        pub port: Port,
    }

    /// 32 or 64 bits.
    ["xen_domctl_address_size", 4, "domctl.h"]
    pub struct DomctlAddressSize {
        /// 32 or 64.
        pub size: u32,
    }

    /// Give a device.
    ["xen_domctl_assign_device", 24, "domctl.h"]
    pub struct DomctlAssignDevice {
        /// In: [`DEV_PCI`] or [`DEV_DT`].
        pub dev: u32,
        /// In: flags.
        pub flags: u32,
        /// In: bytes of the device tree's path; of a PCI device, its address.
        pub size: u32 = "u.dt.size",
        /// Padding.
        pub _pad: u32 = "-",
        /// In: address of the device tree's path.
        pub path: u64 = "u.dt.path",
    }

    /// Give an interrupt.
    ["xen_domctl_bind_pt_irq", 24, "domctl.h"]
    pub struct DomctlBindPtIrq {
        /// In: the machine's interrupt.
        pub machine_irq: u32,
        /// In: [`PT_IRQ_TYPE_SPI`].
        pub irq_type: u32,
        /// In: the guest's interrupt.
        pub spi: u16 = "u.spi.spi",
        /// The rest of the union.
        pub _pad: [u16; 7] = "-",
    }

    /// Map device memory.
    ["xen_domctl_memory_mapping", 32, "domctl.h"]
    pub struct DomctlMemoryMapping {
        /// In: first guest frame.
        pub first_gfn: u64,
        /// In: first machine frame.
        pub first_mfn: u64,
        /// In: how many.
        pub nr_mfns: u64,
        /// In: [`ADD_MAPPING`] or [`REMOVE_MAPPING`].
        pub add_mapping: u32,
        /// Zero.
        pub padding: u32,
    }

    /// The domain that a domain may control.
    ["xen_domctl_set_target", 2, "domctl.h"]
    pub struct DomctlSetTarget {
        /// In: which.
        pub target: DomId,
    }

    /// Give a global virtual interrupt.
    ["xen_domctl_set_virq_handler", 4, "domctl.h"]
    pub struct DomctlSetVirqHandler {
        /// In: [`Virq`](crate::xen::Virq).
        pub virq: u32,
    }

    /// Write caches back.
    ["xen_domctl_cacheflush", 16, "domctl.h"]
    pub struct DomctlCacheflush {
        /// In: first frame.
        pub start_pfn: u64,
        /// In: how many.
        pub nr_pfns: u64,
    }

    /// A domain's virtual UART.
    ["xen_domctl_vuart_op", 24, "domctl.h"]
    pub struct DomctlVuartOp {
        /// In: [`VUART_OP_INIT`].
        pub cmd: u32,
        /// In: [`VUART_TYPE_VPL011`].
        pub kind: u32 = "type",
        /// In: frame of its ring.
        pub gfn: u64,
        /// In: the domain that holds the other end.
        pub console_domid: DomId,
        /// Zero.
        pub pad: [u8; 2],
        /// Out: the event channel.
        pub evtchn: Port,
    }

    /// Memory for stage-2 tables.
    ["xen_domctl_paging_mempool", 8, "domctl.h"]
    pub struct DomctlPagingMempool {
        /// Bytes, whole pages.
        pub size: u64,
    }
}

/// The union of a [`Domctl`]: 128 bytes, aligned to 8.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, zerocopy::KnownLayout,
)]
#[repr(transparent)]
pub struct Payload(pub [u64; 16]);

impl Payload {
    /// The structure of type `T` at its start. `T` has at most 128 bytes, or it does not compile.
    #[must_use]
    pub fn get<T: FromBytes + IntoBytes>(&self) -> T {
        const { assert!(size_of::<T>() <= 128) };
        let mut t = T::new_zeroed();
        for (to, from) in t.as_mut_bytes().iter_mut().zip(self.as_bytes()) {
            *to = *from;
        }
        t
    }

    /// Puts a structure at its start. `T` has at most 128 bytes, or it does not compile.
    pub fn set<T: IntoBytes + Immutable>(&mut self, t: &T) {
        const { assert!(size_of::<T>() <= 128) };
        for (to, from) in self.as_mut_bytes().iter_mut().zip(t.as_bytes()) {
            *to = *from;
        }
    }
}

impl Domctl {
    /// A command without a structure of its own.
    #[must_use]
    pub fn new(cmd: DomctlCmd, domain: DomId) -> Self {
        Self {
            cmd: cmd.number(),
            interface_version: INTERFACE_VERSION,
            domain,
            ..Self::default()
        }
    }

    /// A command with its structure.
    #[must_use]
    pub fn with<T: IntoBytes + Immutable>(cmd: DomctlCmd, domain: DomId, t: &T) -> Self {
        let mut d = Self::new(cmd, domain);
        d.u.set(t);
        d
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
