// SPDX-License-Identifier: MIT OR Apache-2.0
//! From `hvc #0xEA1` to the answer: x16 names the hypercall, x0..x4 are its arguments, x0 its
//! result. Who may call what is decided here, before anything else is looked at.

mod control;
mod event;
mod grant;
mod memory;
mod misc;
mod sched;

use crate::guest::Guest;
use crate::hypervisor::Hypervisor;
use crate::machine::{Machine, cost, limit};
use crate::types::{CpuId, DomId, Errno, Slot, VcpuRef};
use guest_abi::HypercallNr;
use guest_abi::xen::MulticallEntry;

/// How a hypercall ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// With this result.
    Done(i64),
    /// It did a slice of its work and left its progress in its arguments: the vcpu makes the same
    /// call again, after interrupts and others had their turn.
    Again,
}

type Answer = Result<Reply, Errno>;

const OK: Answer = Ok(Reply::Done(0));

fn done(v: impl Into<i64>) -> Answer {
    Ok(Reply::Done(v.into()))
}

/// Who calls, and on what.
pub struct Call<'a, M> {
    /// Everything.
    pub hv: &'a mut Hypervisor,
    /// The machine.
    pub m: &'a M,
    /// The calling vcpu.
    pub who: VcpuRef,
    /// The CPU that it is on.
    pub cpu: CpuId,
    /// It belongs to the control domain.
    pub privileged: bool,
}

impl<M: Machine> Call<'_, M> {
    fn slot(&self) -> Slot {
        self.who.slot
    }

    fn guest(&self) -> Guest<'_, M> {
        Guest {
            m: self.m,
            frames: &self.hv.frames,
            domains: &self.hv.domains,
            slot: self.slot(),
        }
    }

    /// The slot of a domain that the caller may act on: itself, or any for the control domain.
    fn target(&self, domid: DomId) -> Result<Slot, Errno> {
        if domid == DomId::SELF {
            return Ok(self.slot());
        }
        match self.hv.domains.find(domid) {
            Some(slot) if slot == self.slot() || self.privileged => Ok(slot),
            Some(_) => Err(Errno::EPERM),
            None => Err(Errno::ESRCH),
        }
    }

    /// As [`Call::target`], but not a domain that is being destroyed.
    fn live_target(&self, domid: DomId) -> Result<Slot, Errno> {
        let slot = self.target(domid)?;
        match self.hv.domains.get(slot) {
            Some(d) if d.death == crate::domain::Death::Alive => Ok(slot),
            _ => Err(Errno::ESRCH),
        }
    }

    /// Where a slice ends. What a guest causes ends sooner.
    fn slice(&self) -> u32 {
        if self.privileged {
            limit::SLICE
        } else {
            limit::SLICE_GUEST
        }
    }

    /// Whether this entry has cost enough: the call leaves its progress and is made again.
    fn used_up(&self) -> bool {
        self.m.spent() >= self.slice()
    }

    /// How many things of `cost` this entry has room for, one at least.
    fn room(&self, cost: u32) -> u32 {
        self.m.room(self.slice(), cost)
    }

    fn require_privilege(&self) -> Result<(), Errno> {
        if self.privileged {
            Ok(())
        } else {
            Err(Errno::EPERM)
        }
    }

    // Each operation is a function of its own, and this one saves no registers for them.
    fn dispatch(&mut self, nr: u64, a: &mut [u64; 5]) -> Answer {
        let nr = HypercallNr::from_number(nr).ok_or(Errno::ENOSYS)?;
        // The one place that says which calls are the control domain's alone.
        if matches!(
            nr,
            HypercallNr::Domctl
                | HypercallNr::Sysctl
                | HypercallNr::PlatformOp
                | HypercallNr::HypfsOp
        ) {
            self.require_privilege()?;
        }
        match nr {
            HypercallNr::XenVersion => self.xen_version(a),
            HypercallNr::EventChannelOp => self.event_channel_op(a),
            HypercallNr::GrantTableOp => self.grant_table_op(a),
            HypercallNr::SchedOp => self.sched_op(a),
            HypercallNr::MemoryOp => self.memory_op(a),
            HypercallNr::VcpuOp => self.vcpu_op(a),
            HypercallNr::HvmOp => self.hvm_op(a),
            HypercallNr::ConsoleIo => self.console_io(a),
            HypercallNr::VmAssist => self.vm_assist(a),
            HypercallNr::Multicall => self.multicall(a),
            HypercallNr::Domctl => self.domctl(a),
            HypercallNr::Sysctl => self.sysctl(a),
            HypercallNr::PlatformOp => self.platform_op(a),
            _ => Err(Errno::ENOSYS),
        }
    }

    /// `multicall(list, count)`: each entry is a call. All of them and what they do share the one
    /// budget of the entry into the hypervisor.
    #[inline(never)]
    fn multicall(&mut self, a: &mut [u64; 5]) -> Answer {
        while a[1] != 0 {
            if self.m.spent() > limit::BEGIN {
                return Ok(Reply::Again);
            }
            self.m.spend(cost::CALL);
            let mut e: MulticallEntry = self.guest().get(a[0])?;
            let mut args = [e.args[0], e.args[1], e.args[2], e.args[3], e.args[4]];
            let nested = e.op == HypercallNr::Multicall.number();
            let answer = if nested {
                Err(Errno::EINVAL)
            } else {
                self.dispatch(e.op, &mut args)
            };
            match answer {
                Ok(Reply::Done(r)) => e.result = r as u64,
                Err(err) => e.result = err.to_ret() as u64,
                Ok(Reply::Again) => {
                    // Its progress goes back into the list, and the whole call is made again.
                    for (slot, v) in e.args.iter_mut().zip(args) {
                        *slot = v;
                    }
                    self.guest().put(a[0], &e)?;
                    return Ok(Reply::Again);
                }
            }
            self.guest().put(a[0], &e)?;
            a[0] = a[0].wrapping_add(size_of::<MulticallEntry>() as u64);
            a[1] = a[1].saturating_sub(1);
        }
        OK
    }
}

impl Hypervisor {
    /// Serves a hypercall of `who`, which runs on `cpu`. `x` are its registers x0..x4, changed only
    /// when the call is to be made again; `nr` is its x16.
    #[inline]
    pub fn hypercall<M: Machine>(
        &mut self,
        m: &M,
        who: VcpuRef,
        cpu: CpuId,
        nr: u64,
        x: &mut [u64; 5],
    ) -> Reply {
        m.restart();
        let privileged = self.domains.get(who.slot).is_some_and(|d| d.privileged);
        let mut call = Call {
            hv: self,
            m,
            who,
            cpu,
            privileged,
        };
        match call.dispatch(nr, x) {
            Ok(r) => r,
            Err(e) => Reply::Done(e.to_ret()),
        }
    }
}
