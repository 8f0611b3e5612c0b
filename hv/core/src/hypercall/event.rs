// SPDX-License-Identifier: MIT OR Apache-2.0
//! `event_channel_op(op, argument)` (`event_channel.h`).

use super::{Answer, Call, OK, Reply};
use crate::event::{Binding, POLL_MAX, Progress};
use crate::machine::{Machine, cost};
use crate::p2m::Kind;
use crate::types::{DomId, Errno, Gfn, Mfn, Port};
use guest_abi::event_channel::{
    EventOp, EvtchnAllocUnbound, EvtchnBindInterdomain, EvtchnBindIpi, EvtchnBindVcpu,
    EvtchnBindVirq, EvtchnClose, EvtchnExpandArray, EvtchnInitControl, EvtchnReset, EvtchnSend,
    EvtchnSetPriority, EvtchnStat, EvtchnStatus, EvtchnUnmask, fifo,
};

/// The operation's number while a reset goes on: no register that is not an argument tells, as
/// callers leave anything in those.
const RESET_GOES_ON: u64 = EventOp::Reset.number() | 1 << 31;
/// The same for saved events that are raised when their words come.
const EXPAND_GOES_ON: u64 = EventOp::ExpandArray.number() | 1 << 31;

impl<M: Machine> Call<'_, M> {
    #[inline(never)]
    pub(super) fn event_channel_op(&mut self, a: &mut [u64; 5]) -> Answer {
        // The frequent one, apart from what the others need.
        if u64::from(a[0] as u32) == EventOp::Send.number() {
            return self.send_event(a[1]);
        }
        self.other_event_op(a)
    }

    #[inline(never)]
    fn send_event(&mut self, arg: u64) -> Answer {
        let s: EvtchnSend = self.guest().get(arg)?;
        let n = self.hv.events.send(self.slot(), s.port, self.m)?;
        if !n.is_none() {
            self.hv.notify_with(self.m, n);
        }
        OK
    }

    #[inline(never)]
    fn other_event_op(&mut self, a: &mut [u64; 5]) -> Answer {
        match self.event_op(a) {
            // The search for a closed port goes on; nothing else was done.
            Err(Errno::ERESTART) => Ok(Reply::Again),
            answer => answer,
        }
    }

    fn event_op(&mut self, a: &mut [u64; 5]) -> Answer {
        let (m, slot, arg) = (self.m, self.slot(), a[1]);
        let (op, resuming) = match EventOp::from_number(u64::from(a[0] as u32)) {
            Some(op) => (op, false),
            None if u64::from(a[0] as u32) == RESET_GOES_ON => (EventOp::Reset, true),
            None if u64::from(a[0] as u32) == EXPAND_GOES_ON => (EventOp::ExpandArray, true),
            None => return Err(Errno::ENOSYS),
        };
        match op {
            EventOp::Send => return self.send_event(arg),
            EventOp::AllocUnbound => {
                let mut o: EvtchnAllocUnbound = self.guest().get(arg)?;
                let target = self.live_target(o.dom)?;
                let remote = if o.remote_dom == DomId::SELF {
                    self.own_id()
                } else {
                    o.remote_dom
                };
                self.guest().check_writable(arg, size_of_val(&o))?;
                o.port = self.hv.events.alloc_unbound(target, remote, m)?;
                self.guest().put(arg, &o)?;
            }
            EventOp::BindInterdomain => {
                let mut o: EvtchnBindInterdomain = self.guest().get(arg)?;
                let remote = match o.remote_dom {
                    DomId::SELF => slot,
                    id => self.hv.domains.find_alive(id).ok_or(Errno::ESRCH)?,
                };
                self.guest().check_writable(arg, size_of_val(&o))?;
                let (port, n) = self
                    .hv
                    .events
                    .bind_interdomain(slot, remote, o.remote_port, m)?;
                self.hv.notify(n, m.now());
                o.local_port = port;
                self.guest().put(arg, &o)?;
            }
            EventOp::BindVirq => {
                let mut o: EvtchnBindVirq = self.guest().get(arg)?;
                self.guest().check_writable(arg, size_of_val(&o))?;
                o.port = self.hv.events.bind_virq(slot, o.virq, o.vcpu, m)?;
                self.guest().put(arg, &o)?;
            }
            EventOp::BindIpi => {
                let mut o: EvtchnBindIpi = self.guest().get(arg)?;
                self.guest().check_writable(arg, size_of_val(&o))?;
                o.port = self.hv.events.bind_ipi(slot, o.vcpu, m)?;
                self.guest().put(arg, &o)?;
            }
            EventOp::BindVcpu => {
                let o: EvtchnBindVcpu = self.guest().get(arg)?;
                self.hv.events.bind_vcpu(slot, o.port, o.vcpu)?;
            }
            EventOp::Close => {
                let o: EvtchnClose = self.guest().get(arg)?;
                let n = self.hv.events.close(slot, o.port, m)?;
                self.hv.notify(n, m.now());
            }
            EventOp::Unmask => {
                let o: EvtchnUnmask = self.guest().get(arg)?;
                let n = self.hv.events.unmask(slot, o.port, m)?;
                self.hv.notify(n, m.now());
            }
            EventOp::Status => {
                let mut o: EvtchnStatus = self.guest().get(arg)?;
                let target = self.target(o.dom)?;
                let s = self.hv.events.status(target, o.port)?;
                o.vcpu = u32::from(s.vcpu.0);
                let stat = match s.binding {
                    Binding::Closed => EvtchnStat::Closed,
                    Binding::Unbound(d) => {
                        o.set_remote_dom(d);
                        EvtchnStat::Unbound
                    }
                    Binding::Interdomain(d, port) => {
                        o.set_remote_dom(d);
                        o.remote_port = port;
                        EvtchnStat::Interdomain
                    }
                    Binding::Virq(v) => {
                        o.u = v;
                        EvtchnStat::Virq
                    }
                    Binding::Ipi => EvtchnStat::Ipi,
                };
                o.status = stat.number();
                self.guest().put(arg, &o)?;
            }
            EventOp::Reset => {
                let o: EvtchnReset = self.guest().get(arg)?;
                let target = self.target(o.dom)?;
                let ports = self.room(cost::CLOSE);
                let frames = &mut self.hv.frames;
                match self
                    .hv
                    .events
                    .reset(target, resuming, ports, m, |p| frames.put(p))?
                {
                    Progress::Done => {}
                    Progress::Contended => {
                        self.hv.contended(target);
                        return Err(Errno::EAGAIN);
                    }
                    Progress::More => {
                        a[0] = RESET_GOES_ON;
                        return Ok(Reply::Again);
                    }
                }
            }
            EventOp::InitControl => {
                let mut o: EvtchnInitControl = self.guest().get(arg)?;
                self.hv.events.check_init_control(slot, o.vcpu, o.offset)?;
                o.link_bits = fifo::LINK_BITS as u8;
                self.guest().put(arg, &o)?;
                let page = self.take_own_page(Gfn(o.control_gfn))?;
                if let Err(e) = self.hv.events.init_control(slot, o.vcpu, page, o.offset) {
                    self.hv.frames.put(page);
                    return Err(e);
                }
            }
            EventOp::ExpandArray => {
                let n = if resuming {
                    self.hv.events.raise_saved(slot, m)?
                } else {
                    let o: EvtchnExpandArray = self.guest().get(arg)?;
                    self.hv.events.check_expand_array(slot)?;
                    let page = self.take_own_page(Gfn(o.array_gfn))?;
                    self.hv
                        .events
                        .expand_array(slot, page, m)
                        .inspect_err(|_| self.hv.frames.put(page))?
                };
                self.hv.notify(n, m.now());
                if self.hv.events.late(slot) {
                    a[0] = EXPAND_GOES_ON;
                    return Ok(Reply::Again);
                }
            }
            EventOp::SetPriority => {
                let o: EvtchnSetPriority = self.guest().get(arg)?;
                self.hv.events.set_priority(slot, o.port, o.priority)?;
            }
            EventOp::BindPirq => return Err(Errno::EINVAL),
        }
        OK
    }

    fn own_id(&self) -> DomId {
        self.hv
            .domains
            .get(self.slot())
            .map_or(DomId::INVALID, |d| d.domid)
    }

    /// Takes a reference on a page of the caller's own memory.
    pub(super) fn take_own_page(&mut self, gfn: Gfn) -> Result<Mfn, Errno> {
        let d = self.hv.domains.get(self.slot()).ok_or(Errno::ESRCH)?;
        match d.p2m.lookup(self.m, gfn) {
            Some(map) if map.kind == Kind::Ram => {
                self.hv.frames.get(map.mfn)?;
                Ok(map.mfn)
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// The ports of a SCHEDOP_poll.
    pub(super) fn read_ports(&self, va: u64, ports: &mut [Port]) -> Result<(), Errno> {
        let mut raw = [[0u8; 4]; POLL_MAX];
        let raw = raw.get_mut(..ports.len()).ok_or(Errno::EINVAL)?;
        self.guest().read(va, raw.as_flattened_mut())?;
        for (to, from) in ports.iter_mut().zip(raw) {
            *to = Port(u32::from_le_bytes(*from));
        }
        self.m
            .spend((ports.len() as u32).saturating_mul(2 * cost::ENTRY));
        Ok(())
    }
}
