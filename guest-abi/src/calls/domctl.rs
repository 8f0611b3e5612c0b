// SPDX-License-Identifier: MIT OR Apache-2.0
//! Control of a domain ([`crate::domctl`]); for the control domain.

use super::{NONE, len32};
use crate::arch::VcpuGuestContext;
use crate::domctl::*;
use crate::xen::{DomainHandle, Virq, XenctlBitmap};
use crate::{DomId, Errno, Gfn, Hypercall, HypercallNr, Lent, Mfn, Port};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Makes the call with memory that its structure names.
fn run(h: &(impl Hypercall + ?Sized), d: &mut Domctl, [a, b]: [Lent<'_>; 2]) -> Result<(), Errno> {
    let mut m = Lent::Out(d.as_mut_bytes());
    let args = [m.addr(), 0, 0, 0, 0];
    Errno::check(h.call(HypercallNr::Domctl, args, &mut [m, a, b])).map(drop)
}

/// A command without a structure.
fn bare(h: &(impl Hypercall + ?Sized), cmd: DomctlCmd, dom: DomId) -> Result<(), Errno> {
    run(h, &mut Domctl::new(cmd, dom), [NONE, NONE])
}

/// A command with its structure, which is returned as it is after.
fn with<T: FromBytes + IntoBytes + Immutable>(
    h: &(impl Hypercall + ?Sized),
    cmd: DomctlCmd,
    dom: DomId,
    t: &T,
) -> Result<T, Errno> {
    let mut d = Domctl::with(cmd, dom, t);
    run(h, &mut d, [NONE, NONE])?;
    Ok(d.payload())
}

/// Makes a domain with the number `want`, or any when that is 0. `config` is updated with what it
/// got. It is paused.
///
/// # Errors
/// `EINVAL` for a configuration that is not possible; `EEXIST` when the number is taken; `ENOMEM`.
pub fn createdomain(
    h: &(impl Hypercall + ?Sized),
    want: DomId,
    config: &mut DomctlCreatedomain,
) -> Result<DomId, Errno> {
    let mut d = Domctl::with(DomctlCmd::Createdomain, want, config);
    run(h, &mut d, [NONE, NONE])?;
    *config = d.payload();
    Ok(d.domain)
}

/// Ends a domain.
///
/// # Errors
/// `ERESTART` and `EAGAIN` when more is to be done: call again.
pub fn destroydomain(h: &(impl Hypercall + ?Sized), dom: DomId) -> Result<(), Errno> {
    bare(h, DomctlCmd::Destroydomain, dom)
}

/// Stops its vcpus; counts.
///
/// # Errors
/// The general ones.
pub fn pausedomain(h: &(impl Hypercall + ?Sized), dom: DomId) -> Result<(), Errno> {
    bare(h, DomctlCmd::Pausedomain, dom)
}

/// Undoes one pause.
///
/// # Errors
/// `EINVAL` when it is not paused.
pub fn unpausedomain(h: &(impl Hypercall + ?Sized), dom: DomId) -> Result<(), Errno> {
    bare(h, DomctlCmd::Unpausedomain, dom)
}

/// Lets it run on after a shutdown.
///
/// # Errors
/// The general ones.
pub fn resumedomain(h: &(impl Hypercall + ?Sized), dom: DomId) -> Result<(), Errno> {
    bare(h, DomctlCmd::Resumedomain, dom)
}

/// What the domain is. The number in the answer is to be compared: it may be that of another.
///
/// # Errors
/// `ESRCH` when there is none.
pub fn getdomaininfo(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
) -> Result<DomctlGetdomaininfo, Errno> {
    with(
        h,
        DomctlCmd::Getdomaininfo,
        dom,
        &DomctlGetdomaininfo::default(),
    )
}

/// How many vcpus it has; only before it ran.
///
/// # Errors
/// `EINVAL` for more than it was made for.
pub fn max_vcpus(h: &(impl Hypercall + ?Sized), dom: DomId, max: u32) -> Result<(), Errno> {
    with(h, DomctlCmd::MaxVcpus, dom, &DomctlMaxVcpus { max }).map(drop)
}

/// How many KiB of memory it may have.
///
/// # Errors
/// The general ones.
pub fn max_mem(h: &(impl Hypercall + ?Sized), dom: DomId, max_memkb: u64) -> Result<(), Errno> {
    with(h, DomctlCmd::MaxMem, dom, &DomctlMaxMem { max_memkb }).map(drop)
}

/// Sets a vcpu's registers; only while it is paused.
///
/// # Errors
/// `EINVAL` for registers that are not possible.
pub fn setvcpucontext(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    vcpu: u32,
    context: &VcpuGuestContext,
) -> Result<(), Errno> {
    let mut m = Lent::In(context.as_bytes());
    let a = DomctlVcpucontext {
        vcpu,
        ctxt: m.addr(),
        ..Default::default()
    };
    let mut d = Domctl::with(DomctlCmd::Setvcpucontext, dom, &a);
    run(h, &mut d, [m, NONE])
}

/// A vcpu's registers.
///
/// # Errors
/// `ENODATA` when it never ran.
pub fn getvcpucontext(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    vcpu: u32,
) -> Result<VcpuGuestContext, Errno> {
    let mut context = VcpuGuestContext::default();
    let mut m = Lent::Out(context.as_mut_bytes());
    let a = DomctlVcpucontext {
        vcpu,
        ctxt: m.addr(),
        ..Default::default()
    };
    let mut d = Domctl::with(DomctlCmd::Getvcpucontext, dom, &a);
    run(h, &mut d, [m, NONE])?;
    Ok(context)
}

/// What a vcpu does.
///
/// # Errors
/// `ESRCH` when there is no such vcpu.
pub fn getvcpuinfo(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    vcpu: u32,
) -> Result<DomctlGetvcpuinfo, Errno> {
    let a = DomctlGetvcpuinfo {
        vcpu,
        ..Default::default()
    };
    with(h, DomctlCmd::Getvcpuinfo, dom, &a)
}

/// 32 or 64 bits; only before it has memory.
///
/// # Errors
/// `EINVAL` for another number.
pub fn set_address_size(h: &(impl Hypercall + ?Sized), dom: DomId, size: u32) -> Result<(), Errno> {
    with(
        h,
        DomctlCmd::SetAddressSize,
        dom,
        &DomctlAddressSize { size },
    )
    .map(drop)
}

/// Writes caches back for a range of its frames.
///
/// # Errors
/// `EINVAL` for a range that wraps.
pub fn cacheflush(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    start: Gfn,
    pages: u64,
) -> Result<(), Errno> {
    let a = DomctlCacheflush {
        start_pfn: start.0,
        nr_pfns: pages,
    };
    with(h, DomctlCmd::Cacheflush, dom, &a).map(drop)
}

/// Sets the memory for its stage-2 tables, in bytes.
///
/// # Errors
/// `EINVAL` for a size that is not whole pages; `ENOMEM`; `ERESTART` when it is to be called again.
pub fn set_paging_mempool_size(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    size: u64,
) -> Result<(), Errno> {
    let a = DomctlPagingMempool { size };
    with(h, DomctlCmd::SetPagingMempoolSize, dom, &a).map(drop)
}

/// The memory for its stage-2 tables, in bytes.
///
/// # Errors
/// The general ones.
pub fn get_paging_mempool_size(h: &(impl Hypercall + ?Sized), dom: DomId) -> Result<u64, Errno> {
    let a = DomctlPagingMempool::default();
    Ok(with(h, DomctlCmd::GetPagingMempoolSize, dom, &a)?.size)
}

fn vcpuaffinity(
    h: &(impl Hypercall + ?Sized),
    cmd: DomctlCmd,
    dom: DomId,
    vcpu: u32,
    flags: u32,
    hard: &mut [u8],
    soft: &mut [u8],
) -> Result<(), Errno> {
    let bits = |n: usize| Ok::<u32, Errno>(len32(n)?.saturating_mul(8));
    let (hard_bits, soft_bits) = (bits(hard.len())?, bits(soft.len())?);
    let mut hard = Lent::Out(hard);
    let mut soft = Lent::Out(soft);
    let map = |m: &mut Lent<'_>, nr_bits| XenctlBitmap {
        bitmap: m.addr(),
        nr_bits,
        ..Default::default()
    };
    let a = DomctlVcpuaffinity {
        vcpu,
        flags,
        cpumap_hard: map(&mut hard, hard_bits),
        cpumap_soft: map(&mut soft, soft_bits),
    };
    run(h, &mut Domctl::with(cmd, dom, &a), [hard, soft])
}

/// Sets where a vcpu may run and would rather run ([`affinity`] says which counts), as bitmaps of
/// CPUs. They are updated with what holds in fact.
///
/// # Errors
/// `EINVAL` when no CPU is left.
pub fn setvcpuaffinity(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    vcpu: u32,
    flags: u32,
    hard: &mut [u8],
    soft: &mut [u8],
) -> Result<(), Errno> {
    vcpuaffinity(h, DomctlCmd::Setvcpuaffinity, dom, vcpu, flags, hard, soft)
}

/// Where a vcpu may run and would rather run.
///
/// # Errors
/// The general ones.
pub fn getvcpuaffinity(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    vcpu: u32,
    flags: u32,
    hard: &mut [u8],
    soft: &mut [u8],
) -> Result<(), Errno> {
    vcpuaffinity(h, DomctlCmd::Getvcpuaffinity, dom, vcpu, flags, hard, soft)
}

/// Allows or forbids device memory.
///
/// # Errors
/// `EPERM` when the caller itself may not use it.
pub fn iomem_permission(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    first: Mfn,
    count: u64,
    allow: bool,
) -> Result<(), Errno> {
    let a = DomctlIomemPermission {
        first_mfn: first.0,
        nr_mfns: count,
        allow_access: u8::from(allow),
        ..Default::default()
    };
    with(h, DomctlCmd::IomemPermission, dom, &a).map(drop)
}

/// Maps or unmaps device memory.
///
/// # Errors
/// `EPERM` when the domain or the caller may not use it; `E2BIG` for too many frames at once.
pub fn memory_mapping(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    gfn: Gfn,
    mfn: Mfn,
    count: u64,
    add: bool,
) -> Result<(), Errno> {
    let a = DomctlMemoryMapping {
        first_gfn: gfn.0,
        first_mfn: mfn.0,
        nr_mfns: count,
        add_mapping: if add { ADD_MAPPING } else { REMOVE_MAPPING },
        padding: 0,
    };
    with(h, DomctlCmd::MemoryMapping, dom, &a).map(drop)
}

/// Gives it a shared peripheral interrupt; on Arm the guest's number is the machine's.
///
/// # Errors
/// `EINVAL`, `EBUSY`.
pub fn bind_pt_irq(h: &(impl Hypercall + ?Sized), dom: DomId, spi: u16) -> Result<(), Errno> {
    let a = DomctlBindPtIrq {
        machine_irq: u32::from(spi),
        irq_type: PT_IRQ_TYPE_SPI,
        spi,
        ..Default::default()
    };
    with(h, DomctlCmd::BindPtIrq, dom, &a).map(drop)
}

/// Takes it back.
///
/// # Errors
/// `EINVAL`, `EBUSY`.
pub fn unbind_pt_irq(h: &(impl Hypercall + ?Sized), dom: DomId, spi: u16) -> Result<(), Errno> {
    let a = DomctlBindPtIrq {
        machine_irq: u32::from(spi),
        irq_type: PT_IRQ_TYPE_SPI,
        spi,
        ..Default::default()
    };
    with(h, DomctlCmd::UnbindPtIrq, dom, &a).map(drop)
}

/// Its weight and cap (percent of a CPU, 0 for none).
///
/// # Errors
/// `EINVAL` when it runs under a scheduler without them.
pub fn sched_get(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    sched_id: u32,
) -> Result<(u16, u16), Errno> {
    let a = DomctlSchedulerOp {
        sched_id,
        cmd: schedop::GETINFO,
        ..Default::default()
    };
    let a = with(h, DomctlCmd::SchedulerOp, dom, &a)?;
    Ok((a.weight, a.cap))
}

/// Sets its weight and cap.
///
/// # Errors
/// As [`sched_get`].
pub fn sched_set(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    sched_id: u32,
    weight: u16,
    cap: u16,
) -> Result<(), Errno> {
    let a = DomctlSchedulerOp {
        sched_id,
        cmd: schedop::PUTINFO,
        weight,
        cap,
        ..Default::default()
    };
    with(h, DomctlCmd::SchedulerOp, dom, &a).map(drop)
}

/// Makes its virtual UART, with a ring in its frame `gfn` whose other end is `console`'s. Returns
/// that end's event channel.
///
/// # Errors
/// `EOPNOTSUPP` where there is none; `EINVAL`.
pub fn vuart_init(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    console: DomId,
    gfn: Gfn,
) -> Result<Port, Errno> {
    let a = DomctlVuartOp {
        cmd: VUART_OP_INIT,
        kind: VUART_TYPE_VPL011,
        gfn: gfn.0,
        console_domid: console,
        ..Default::default()
    };
    Ok(with(h, DomctlCmd::VuartOp, dom, &a)?.evtchn)
}

/// Sets its UUID.
///
/// # Errors
/// The general ones.
pub fn setdomainhandle(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    handle: DomainHandle,
) -> Result<(), Errno> {
    let a = DomctlSetdomainhandle { handle };
    with(h, DomctlCmd::Setdomainhandle, dom, &a).map(drop)
}

/// Sets its wall clock's offset, in seconds.
///
/// # Errors
/// The general ones.
pub fn settimeoffset(h: &(impl Hypercall + ?Sized), dom: DomId, secs: i64) -> Result<(), Errno> {
    let a = DomctlSettimeoffset {
        time_offset_seconds: secs,
    };
    with(h, DomctlCmd::Settimeoffset, dom, &a).map(drop)
}

/// Lets a domain control another.
///
/// # Errors
/// `EINVAL` when it has another target.
pub fn set_target(h: &(impl Hypercall + ?Sized), dom: DomId, target: DomId) -> Result<(), Errno> {
    with(h, DomctlCmd::SetTarget, dom, &DomctlSetTarget { target }).map(drop)
}

/// Gives it a global virtual interrupt.
///
/// # Errors
/// `EINVAL` for one that cannot be given.
pub fn set_virq_handler(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    virq: Virq,
) -> Result<(), Errno> {
    let a = DomctlSetVirqHandler {
        virq: virq.number(),
    };
    with(h, DomctlCmd::SetVirqHandler, dom, &a).map(drop)
}
