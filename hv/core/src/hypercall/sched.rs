// SPDX-License-Identifier: MIT OR Apache-2.0
//! `sched_op(op, argument)` (`sched.h`) and `vcpu_op(op, vcpu, argument)` (`vcpu.h`).

use super::{Answer, Call, OK, done};
use crate::event::Poll;
use crate::machine::Machine;
use crate::types::{DomId, Errno, Gfn, Pa, Port};
use guest_abi::sched::{
    NR_WATCHDOGS, POLL_MAX_PORTS, SchedOp, SchedPoll, SchedRemoteShutdown, SchedShutdown,
    SchedWatchdog,
};
use guest_abi::vcpu::{VcpuOp, VcpuRegisterRunstateMemoryArea, VcpuRegisterVcpuInfo};

impl<M: Machine> Call<'_, M> {
    #[inline(never)]
    pub(super) fn sched_op(&mut self, a: &mut [u64; 5]) -> Answer {
        let op = SchedOp::from_number(u64::from(a[0] as u32)).ok_or(Errno::ENOSYS)?;
        let (m, slot, who) = (self.m, self.slot(), self.who);
        match op {
            SchedOp::Yield => {
                self.hv.effects.resched |= self.hv.sched.yield_now(self.cpu);
            }
            SchedOp::Block => {
                // As Xen has it: whoever waits for events wants to be told of them.
                m.unmask_irqs();
                self.hv.sleep(m, who, None);
            }
            SchedOp::Shutdown => {
                let s: SchedShutdown = self.guest().get(a[1])?;
                self.hv.shutdown_domain(m, slot, s.reason & 0xff);
            }
            SchedOp::ShutdownCode => {
                let _: SchedShutdown = self.guest().get(a[1])?;
            }
            SchedOp::Poll => return self.poll(a[1]),
            SchedOp::RemoteShutdown => {
                let s: SchedRemoteShutdown = self.guest().get(a[1])?;
                // By its number, as Xen has it.
                if s.domain_id == DomId::SELF {
                    return Err(Errno::ESRCH);
                }
                let target = self.live_target(s.domain_id)?;
                if target == slot {
                    return Err(Errno::EPERM);
                }
                self.hv.shutdown_domain(m, target, s.reason & 0xff);
            }
            SchedOp::Watchdog => {
                let w: SchedWatchdog = self.guest().get(a[1])?;
                return self.watchdog(w);
            }
            SchedOp::PinOverride => {
                self.require_privilege()?;
                return Err(Errno::ENOSYS);
            }
        }
        OK
    }

    fn poll(&mut self, arg: u64) -> Answer {
        let p: SchedPoll = self.guest().get(arg)?;
        if p.nr_ports > POLL_MAX_PORTS {
            return Err(Errno::EINVAL);
        }
        let mut ports = [Port(0); POLL_MAX_PORTS as usize];
        let ports = ports.get_mut(..p.nr_ports as usize).ok_or(Errno::EINVAL)?;
        self.read_ports(p.ports, ports)?;
        match self.hv.events.poll_prepare(self.who, ports, self.m)? {
            Poll::Pending => {}
            Poll::Wait => {
                let until = if p.timeout == 0 { u64::MAX } else { p.timeout };
                self.hv.sleep(self.m, self.who, Some(until));
            }
        }
        OK
    }

    /// Sets, renews or stops a watchdog; a new one's number is the result.
    fn watchdog(&mut self, w: SchedWatchdog) -> Answer {
        let now = self.m.now();
        let d = self.hv.domains.get_mut(self.who.slot).ok_or(Errno::ESRCH)?;
        let expiry = now
            .saturating_add(u64::from(w.timeout).saturating_mul(1_000_000_000))
            .max(1);
        if w.id > NR_WATCHDOGS {
            return Err(Errno::EINVAL);
        }
        if w.id == 0 {
            if w.timeout == 0 {
                return Err(Errno::EINVAL);
            }
            let free = d
                .watchdogs
                .iter()
                .position(|&t| t == 0)
                .ok_or(Errno::ENOSPC)?;
            if let Some(t) = d.watchdogs.get_mut(free) {
                *t = expiry;
            }
            self.hv.watch_dogs(self.m, self.who.slot, self.cpu);
            return done((free as i64).saturating_add(1));
        }
        let t = d
            .watchdogs
            .get_mut((w.id as usize).wrapping_sub(1))
            .ok_or(Errno::EINVAL)?;
        if *t == 0 {
            return Err(Errno::EINVAL);
        }
        *t = if w.timeout == 0 { 0 } else { expiry };
        self.hv.watch_dogs(self.m, self.who.slot, self.cpu);
        OK
    }

    #[inline(never)]
    pub(super) fn vcpu_op(&mut self, a: &mut [u64; 5]) -> Answer {
        let (m, slot, who) = (self.m, self.slot(), self.who);
        let vcpu = u32::try_from(a[1]).unwrap_or(u32::MAX);
        let d = self.hv.domains.get(slot).ok_or(Errno::ESRCH)?;
        let target = d.vcpu(vcpu).ok_or(Errno::ENOENT)?;
        match VcpuOp::from_number(u64::from(a[0] as u32)) {
            Some(VcpuOp::RegisterVcpuInfo) => {
                let info: VcpuRegisterVcpuInfo = self.guest().get(a[2])?;
                self.hv
                    .events
                    .check_vcpu_info(slot, vcpu, u64::from(info.offset))?;
                let page = self.take_own_page(Gfn(info.mfn))?;
                let place = Pa(page.addr()).add(u64::from(info.offset));
                match self.hv.events.set_vcpu_info(slot, vcpu, place, m) {
                    Ok(n) => self.hv.notify(n, m.now()),
                    Err(e) => {
                        self.hv.frames.put(page);
                        return Err(e);
                    }
                }
                OK
            }
            Some(VcpuOp::RegisterRunstateMemoryArea) => {
                let area: VcpuRegisterRunstateMemoryArea = self.guest().get(a[2])?;
                let d = self.hv.domains.get_mut(slot).ok_or(Errno::ESRCH)?;
                if let Some(v) = d.vcpus.get_mut(target.vcpu.idx()) {
                    v.runstate_area = area.addr;
                }
                // It may read its own at once.
                if target == who {
                    self.hv.write_runstate(m, who, m.now());
                }
                OK
            }
            _ => Err(Errno::EINVAL),
        }
    }
}
