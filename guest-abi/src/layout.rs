// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the layout test reads: size and field offsets of every structure of this crate.

/// A structure of the ABI, described.
pub trait Abi {
    /// Its size and fields.
    const LAYOUT: Layout;
}

/// Size and fields of a structure.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Name in this crate.
    pub rust_name: &'static str,
    /// Name in Xen's header.
    pub c_name: &'static str,
    /// The header, below `xen/include/public`.
    pub header: &'static str,
    /// Size in bytes.
    pub size: usize,
    /// Fields in the order of their offsets.
    pub fields: &'static [Field],
}

/// A field of a structure.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Path in C, such as `u.virq`; `-` for padding that C leaves unnamed.
    pub path: &'static str,
    /// Offset in bytes.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
}

macro_rules! all {
    ($(#[$attribute:meta])* $name:ident: $($ty:path),* $(,)?) => {
        $(#[$attribute])*
        pub const $name: &[Layout] = &[$( <$ty as Abi>::LAYOUT ),*];
    };
}

use crate::{
    arch, event_channel as ev, grant_table as gt, hvm, io, memory as mm, physdev, platform, sched,
    vcpu, version, xen,
};
#[cfg(feature = "toolstack")]
use crate::{domctl, sysctl};

all![
    /// Every structure of this crate but those of feature `toolstack`.
    ALL:
    xen::SharedInfo,
    xen::VcpuInfo,
    xen::VcpuTimeInfo,
    xen::MulticallEntry,
    xen::XenctlBitmap,
    arch::VcpuGuestContext,
    arch::VcpuGuestCoreRegs,
    arch::ArchDomainconfig,
    ev::EvtchnAllocUnbound,
    ev::EvtchnBindInterdomain,
    ev::EvtchnBindVirq,
    ev::EvtchnBindIpi,
    ev::EvtchnBindVcpu,
    ev::EvtchnClose,
    ev::EvtchnSend,
    ev::EvtchnStatus,
    ev::EvtchnUnmask,
    ev::EvtchnReset,
    ev::EvtchnInitControl,
    ev::EvtchnExpandArray,
    ev::EvtchnSetPriority,
    ev::EvtchnFifoControlBlock,
    gt::GrantEntryV1,
    gt::GnttabMapGrantRef,
    gt::GnttabUnmapGrantRef,
    gt::GnttabUnmapAndReplace,
    gt::GnttabSetupTable,
    gt::GnttabCopyPtr,
    gt::GnttabCopy,
    gt::GnttabQuerySize,
    gt::GnttabSetVersion,
    gt::GnttabGetVersion,
    gt::GnttabGetStatusFrames,
    gt::GnttabCacheFlush,
    mm::MemoryReservation,
    mm::MemoryExchange,
    mm::AddToPhysmap,
    mm::AddToPhysmapBatch,
    mm::RemoveFromPhysmap,
    mm::MemAcquireResource,
    mm::MemoryMap,
    hvm::HvmParam,
    vcpu::VcpuRegisterVcpuInfo,
    vcpu::VcpuRunstateInfo,
    vcpu::VcpuRegisterRunstateMemoryArea,
    sched::SchedShutdown,
    sched::SchedPoll,
    sched::SchedRemoteShutdown,
    sched::SchedWatchdog,
    sched::SchedPinOverride,
    version::FeatureInfo,
    version::CompileInfo,
    version::BuildId,
    version::PlatformParameters,
    physdev::PhysdevPciDeviceAdd,
    physdev::PhysdevPciDevice,
    platform::PlatformOp,
    platform::PlatformSettime64,
    io::console::XenconsInterface,
    io::xs_wire::XenstoreDomainInterface,
    io::xs_wire::XsdSockmsg,
    io::blkif::BlkifRequest,
    io::blkif::BlkifRequestSegment,
    io::blkif::BlkifRequestIndirect,
    io::blkif::BlkifRequestDiscard,
    io::blkif::BlkifResponse,
    io::netif::NetifTxRequest,
    io::netif::NetifTxResponse,
    io::netif::NetifRxRequest,
    io::netif::NetifRxResponse,
    io::netif::NetifExtraInfo,
    io::netif::NetifCtrlRequest,
    io::netif::NetifCtrlResponse,
    io::ninepfs::Xen9pfsDataIntf,
];

#[cfg(feature = "toolstack")]
all![
    /// The structures of feature `toolstack`.
    TOOLSTACK:
    domctl::Domctl,
    domctl::DomctlCreatedomain,
    domctl::DomctlGetdomaininfo,
    domctl::DomctlVcpuaffinity,
    domctl::DomctlNodeaffinity,
    domctl::DomctlMaxMem,
    domctl::DomctlMaxVcpus,
    domctl::DomctlVcpucontext,
    domctl::DomctlGetvcpuinfo,
    domctl::DomctlSchedulerOp,
    domctl::DomctlSetdomainhandle,
    domctl::DomctlSetdebugging,
    domctl::DomctlIrqPermission,
    domctl::DomctlIomemPermission,
    domctl::DomctlHypercallInit,
    domctl::DomctlSettimeoffset,
    domctl::DomctlSendtrigger,
    domctl::DomctlSubscribe,
    domctl::DomctlAddressSize,
    domctl::DomctlAssignDevice,
    domctl::DomctlBindPtIrq,
    domctl::DomctlMemoryMapping,
    domctl::DomctlSetTarget,
    domctl::DomctlSetVirqHandler,
    domctl::DomctlCacheflush,
    domctl::DomctlVuartOp,
    domctl::DomctlPagingMempool,
    sysctl::Sysctl,
    sysctl::SysctlReadconsole,
    sysctl::SysctlTbufOp,
    sysctl::SysctlPhysinfo,
    sysctl::SysctlSchedId,
    sysctl::SysctlPerfcOp,
    sysctl::SysctlGetdomaininfolist,
    sysctl::SysctlDebugKeys,
    sysctl::SysctlCpuinfo,
    sysctl::SysctlGetcpuinfo,
    sysctl::SysctlAvailheap,
    sysctl::SysctlLockprofOp,
    sysctl::SysctlCputopo,
    sysctl::SysctlCputopoinfo,
    sysctl::SysctlMeminfo,
    sysctl::SysctlNumainfo,
    sysctl::SysctlCpupoolOp,
    sysctl::SysctlSchedulerOp,
    sysctl::SysctlPcitopoinfo,
];
