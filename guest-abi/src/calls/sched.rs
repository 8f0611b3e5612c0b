// SPDX-License-Identifier: MIT OR Apache-2.0
//! Scheduling ([`crate::sched`]).

use super::{NONE, len32, op, op_with};
use crate::sched::*;
use crate::{DomId, Errno, Hypercall, HypercallNr, Lent, Port};
use zerocopy::IntoBytes;

const NR: HypercallNr = HypercallNr::SchedOp;

/// Lets others run.
///
/// # Errors
/// The general ones.
pub fn yield_now(h: &(impl Hypercall + ?Sized)) -> Result<(), Errno> {
    let args = [SchedOp::Yield.number(), 0, 0, 0, 0];
    Errno::check(h.call(NR, args, &mut [])).map(drop)
}

/// Sleeps until an event comes.
///
/// # Errors
/// The general ones.
pub fn block(h: &(impl Hypercall + ?Sized)) -> Result<(), Errno> {
    let args = [SchedOp::Block.number(), 0, 0, 0, 0];
    Errno::check(h.call(NR, args, &mut [])).map(drop)
}

/// Stops the calling domain, all its vcpus. Returns only when it failed, or when the domain was
/// resumed.
///
/// # Errors
/// The general ones.
pub fn shutdown(h: &(impl Hypercall + ?Sized), reason: ShutdownReason) -> Result<(), Errno> {
    let mut a = SchedShutdown {
        reason: reason.number(),
    };
    op(h, NR, SchedOp::Shutdown.number(), &mut a).map(drop)
}

/// Stops the calling domain to be saved. Returns when the domain goes on: whether in a new domain
/// (restored or moved), where event channels, grants and the shared pages are gone and are to be set up
/// again; else (`false`) the attempt was given up and all is as before.
///
/// # Errors
/// The general ones.
pub fn suspend(h: &(impl Hypercall + ?Sized)) -> Result<bool, Errno> {
    let mut a = SchedShutdown {
        reason: ShutdownReason::Suspend.number(),
    };
    Ok(op(h, NR, SchedOp::Shutdown.number(), &mut a)? == 0)
}

/// Says why the domain will stop, for when it does.
///
/// # Errors
/// The general ones.
pub fn shutdown_code(h: &(impl Hypercall + ?Sized), reason: ShutdownReason) -> Result<(), Errno> {
    let mut a = SchedShutdown {
        reason: reason.number(),
    };
    op(h, NR, SchedOp::ShutdownCode.number(), &mut a).map(drop)
}

/// Sleeps until one of the ports is pending, or the system time is `timeout` nanoseconds (0 for
/// never).
///
/// # Errors
/// `EINVAL` for more than [`POLL_MAX_PORTS`] ports, or one that does not exist.
pub fn poll(h: &(impl Hypercall + ?Sized), ports: &[Port], timeout: u64) -> Result<(), Errno> {
    let mut list = Lent::In(ports.as_bytes());
    let mut a = SchedPoll {
        ports: list.addr(),
        nr_ports: len32(ports.len())?,
        timeout,
        ..Default::default()
    };
    op_with(h, NR, SchedOp::Poll.number(), &mut a, [list, NONE, NONE]).map(drop)
}

/// Stops another domain.
///
/// # Errors
/// The general ones.
pub fn remote_shutdown(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    reason: ShutdownReason,
) -> Result<(), Errno> {
    let mut a = SchedRemoteShutdown {
        domain_id: dom,
        reason: reason.number(),
        ..Default::default()
    };
    op(h, NR, SchedOp::RemoteShutdown.number(), &mut a).map(drop)
}

/// Sets a watchdog to fire in `timeout` seconds, 0 to stop it; `id` 0 asks for a new one. Returns a
/// new one's id, else 0.
///
/// # Errors
/// `ENOSPC` when none is left; `EINVAL` for an id that is not in use.
pub fn watchdog(h: &(impl Hypercall + ?Sized), id: u32, timeout: u32) -> Result<u64, Errno> {
    let mut a = SchedWatchdog { id, timeout };
    op(h, NR, SchedOp::Watchdog.number(), &mut a)
}
