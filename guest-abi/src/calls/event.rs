// SPDX-License-Identifier: MIT OR Apache-2.0
//! Event channels ([`crate::event_channel`]).

use super::op;
use crate::event_channel::*;
use crate::xen::Virq;
use crate::{DomId, Errno, Hypercall, HypercallNr, Port};
use zerocopy::{FromBytes, IntoBytes};

#[inline]
fn event<T: FromBytes + IntoBytes>(
    h: &(impl Hypercall + ?Sized),
    cmd: EventOp,
    arg: &mut T,
) -> Result<(), Errno> {
    op(h, HypercallNr::EventChannelOp, cmd.number(), arg).map(drop)
}

/// Makes a port of `dom`'s that `remote` can connect to.
///
/// # Errors
/// `ENOSPC` when no port is left.
pub fn alloc_unbound(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    remote: DomId,
) -> Result<Port, Errno> {
    let mut a = EvtchnAllocUnbound {
        dom,
        remote_dom: remote,
        port: Port(0),
    };
    event(h, EventOp::AllocUnbound, &mut a)?;
    Ok(a.port)
}

/// Connects to a remote domain's unbound port. The new port is pending at once.
///
/// # Errors
/// `EINVAL` when the remote port does not wait for the caller.
pub fn bind_interdomain(
    h: &(impl Hypercall + ?Sized),
    remote: DomId,
    port: Port,
) -> Result<Port, Errno> {
    let mut a = EvtchnBindInterdomain {
        remote_dom: remote,
        remote_port: port,
        ..Default::default()
    };
    event(h, EventOp::BindInterdomain, &mut a)?;
    Ok(a.local_port)
}

/// Binds a virtual interrupt to a new port.
///
/// # Errors
/// `EEXIST` when it is bound; `EINVAL` for a vcpu other than 0 when it is a global one.
pub fn bind_virq(h: &(impl Hypercall + ?Sized), virq: Virq, vcpu: u32) -> Result<Port, Errno> {
    let mut a = EvtchnBindVirq {
        virq: virq.number(),
        vcpu,
        port: Port(0),
    };
    event(h, EventOp::BindVirq, &mut a)?;
    Ok(a.port)
}

/// Makes a port by which own vcpus signal `vcpu`.
///
/// # Errors
/// `ENOENT` when there is no such vcpu.
pub fn bind_ipi(h: &(impl Hypercall + ?Sized), vcpu: u32) -> Result<Port, Errno> {
    let mut a = EvtchnBindIpi {
        vcpu,
        port: Port(0),
    };
    event(h, EventOp::BindIpi, &mut a)?;
    Ok(a.port)
}

/// Chooses the vcpu that is told of a port's events.
///
/// # Errors
/// `EINVAL` for a port that belongs to one vcpu.
pub fn bind_vcpu(h: &(impl Hypercall + ?Sized), port: Port, vcpu: u32) -> Result<(), Errno> {
    event(h, EventOp::BindVcpu, &mut EvtchnBindVcpu { port, vcpu })
}

/// Closes a port; its other end waits for a new connection.
///
/// # Errors
/// `EINVAL` when it is not open.
pub fn close(h: &(impl Hypercall + ?Sized), port: Port) -> Result<(), Errno> {
    event(h, EventOp::Close, &mut EvtchnClose { port })
}

/// Signals the other end.
///
/// # Errors
/// `EINVAL` when the port cannot be signalled.
#[inline]
pub fn send(h: &(impl Hypercall + ?Sized), port: Port) -> Result<(), Errno> {
    event(h, EventOp::Send, &mut EvtchnSend { port })
}

/// Unmasks a port, and tells of it if it is pending.
///
/// # Errors
/// `EINVAL` when it does not exist.
#[inline]
pub fn unmask(h: &(impl Hypercall + ?Sized), port: Port) -> Result<(), Errno> {
    event(h, EventOp::Unmask, &mut EvtchnUnmask { port })
}

/// What a port is.
///
/// # Errors
/// `EINVAL` when it does not exist.
pub fn status(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    port: Port,
) -> Result<EvtchnStatus, Errno> {
    let mut a = EvtchnStatus {
        dom,
        port,
        ..Default::default()
    };
    event(h, EventOp::Status, &mut a)?;
    Ok(a)
}

/// Closes every port of a domain and takes it back to the 2-level ABI.
///
/// # Errors
/// The general ones.
pub fn reset(h: &(impl Hypercall + ?Sized), dom: DomId) -> Result<(), Errno> {
    event(h, EventOp::Reset, &mut EvtchnReset { dom })
}

/// Switches a vcpu to the FIFO ABI, its control block at a byte offset (a multiple of 8) in a frame.
/// Returns how many bits a link has.
///
/// # Errors
/// `EINVAL` for a bad place; `ENOENT` when there is no such vcpu.
pub fn init_control(
    h: &(impl Hypercall + ?Sized),
    vcpu: u32,
    control_gfn: u64,
    offset: u32,
) -> Result<u8, Errno> {
    let mut a = EvtchnInitControl {
        control_gfn,
        offset,
        vcpu,
        ..Default::default()
    };
    event(h, EventOp::InitControl, &mut a)?;
    Ok(a.link_bits)
}

/// Adds a page of FIFO event words.
///
/// # Errors
/// `ENOSPC` when the array is complete.
pub fn expand_array(h: &(impl Hypercall + ?Sized), array_gfn: u64) -> Result<(), Errno> {
    event(
        h,
        EventOp::ExpandArray,
        &mut EvtchnExpandArray { array_gfn },
    )
}

/// Sets a port's priority, 0 (highest) to 15.
///
/// # Errors
/// `EINVAL` for another priority.
pub fn set_priority(h: &(impl Hypercall + ?Sized), port: Port, priority: u32) -> Result<(), Errno> {
    event(
        h,
        EventOp::SetPriority,
        &mut EvtchnSetPriority { port, priority },
    )
}
