// SPDX-License-Identifier: MIT OR Apache-2.0
//! Event channels: every operation, what signals do, and both ABIs.

use super::{NOWHERE, SELECTOR, Suite, UPCALL, code};
use alloc::format;
use alloc::string::String;
use el1::probe;
use el1::shared::Shared;
use el1::{gic, hvc};
use guest_abi::HypercallNr as Nr;
use guest_abi::{DomId, Port, calls};

const SELF: u32 = DomId::SELF.0 as u32;
const NR: Nr = Nr::EventChannelOp;

impl Suite {
    pub fn events(&mut self) {
        for op in 0..16 {
            let r = self.call(NR, [op, NOWHERE, 0, 0, 0]);
            self.case(format!("event.{op}.bad_address"), r);
        }
        self.unbound_ports();
        self.bindings();
        self.signals();
        self.virqs();
        self.between_domains();
    }

    fn op<const N: usize>(&self, op: u64, words: &mut [u32; N]) -> String {
        self.call_with(NR, op, words)
    }

    fn status(&self, domid: u32, port: u32) -> String {
        let mut words = [domid, port, 0xdead, 0xdead, 0xdead, 0xdead];
        let r = self.op(5, &mut words);
        if r != "0" {
            return r;
        }
        // What the state's own fields are.
        match words[2] {
            1 => format!("unbound for {}", words[4] & 0xffff),
            2 => format!("interdomain with {}", words[4] & 0xffff),
            4 => format!("virq {}", words[4]),
            n => format!("{n}"),
        }
    }

    /// A new unbound port for `remote`.
    fn unbound(&self, remote: u32) -> u32 {
        let mut words = [SELF | remote << 16, 0];
        self.op(6, &mut words);
        words[1]
    }

    /// A channel of this domain with itself: the unbound end and the other one.
    fn pair(&self) -> (u32, u32) {
        let far = self.unbound(SELF);
        let mut words = [SELF, far, 0];
        self.op(0, &mut words);
        (far, words[2])
    }

    fn close(&self, port: u32) -> String {
        self.op(3, &mut [port])
    }

    fn unbound_ports(&mut self) {
        let peer = u32::from(self.peer.0);
        for (name, domid, remote) in [
            ("self_self", SELF, SELF),
            ("self_own", SELF, u32::from(self.own.0)),
            ("own_self", u32::from(self.own.0), SELF),
            ("self_dom0", SELF, 0),
            ("self_peer", SELF, peer),
            ("self_nobody", SELF, 77),
            ("self_reserved", SELF, 0x7ff2),
            ("dom0_self", 0, SELF),
            ("peer_self", peer, SELF),
            ("nobody_self", 77, SELF),
        ] {
            let mut words = [domid | remote << 16, 0];
            let r = self.op(6, &mut words);
            self.case(format!("event.alloc.{name}"), &r);
            if r == "0" {
                let s = self.status(SELF, words[1]);
                self.case(format!("event.alloc.{name}.status"), s);
                let r = self.close(words[1]);
                self.case(format!("event.alloc.{name}.close"), r);
            }
        }
    }

    fn bindings(&mut self) {
        let unbound = self.unbound(u32::from(self.peer.0));
        for (name, domid, port) in [
            ("other_remote", SELF, unbound),
            ("free", SELF, 4000),
            ("zero", SELF, 0),
            ("beyond", SELF, 5000),
            ("max", SELF, u32::MAX),
            ("nobody", 77, 1),
            ("dom0", 0, 1),
        ] {
            let r = self.op(0, &mut [domid, port, 0]);
            self.case(format!("event.bind.{name}"), r);
        }
        self.close(unbound);
        let (far, near) = self.pair();
        let s = self.status(SELF, near);
        self.case("event.pair.near", s);
        let s = self.status(SELF, far);
        self.case("event.pair.far", s);
        let pending = self.pending(Port(near));
        self.case(
            "event.pair.pending_at_once",
            format!("{pending} {}", self.pending(Port(far))),
        );
        let r = self.op(0, &mut [SELF, far, 0]);
        self.case("event.bind.bound_already", r);
        for (name, port, vcpu) in [
            ("second", near, 1),
            ("first", near, 0),
            ("none", near, 2),
            ("free", 4000, 0),
            ("beyond", 5000, 0),
        ] {
            let r = self.op(8, &mut [port, vcpu]);
            self.case(format!("event.bind_vcpu.{name}"), r);
        }
        let r = self.close(near);
        self.case("event.close.near", r);
        let s = self.status(SELF, far);
        self.case("event.close.far_status", s);
        let s = self.status(SELF, near);
        self.case("event.close.near_status", s);
        let r = self.close(near);
        self.case("event.close.again", r);
        let r = self.op(4, &mut [far]);
        self.case("event.send.unbound", r);
        let r = self.op(4, &mut [near]);
        self.case("event.send.closed", r);
        self.close(far);
        for port in [0, 4000, 4095, 4096, 131_071, 131_072, u32::MAX] {
            let r = self.close(port);
            self.case(format!("event.close.{port}"), r);
            let r = self.op(4, &mut [port]);
            self.case(format!("event.send.{port}"), r);
            let r = self.op(9, &mut [port]);
            self.case(format!("event.unmask.{port}"), r);
            let s = self.status(SELF, port);
            self.case(format!("event.status.{port}"), s);
        }
        for (name, domid) in [
            ("own", u32::from(self.own.0)),
            ("dom0", 0),
            ("peer", u32::from(self.peer.0)),
            ("nobody", 77),
        ] {
            let s = self.status(domid, 4000);
            self.case(format!("event.status.of_{name}"), s);
        }
        for (name, domid) in [
            ("dom0", 0),
            ("peer", u32::from(self.peer.0)),
            ("nobody", 77),
        ] {
            let r = self.op(10, &mut [domid]);
            self.case(format!("event.reset.{name}"), r);
        }
    }

    /// Whether the event interrupt came up, which it is taken by.
    fn upcall(&self) -> bool {
        let mut events = false;
        let own = self.event_intid;
        while gic::poll(|intid| events |= intid == own) {}
        events
    }

    fn quiet(&self) {
        self.info.write32(UPCALL, 0);
        self.info.write32(SELECTOR, 0);
    }

    fn signals(&mut self) {
        gic::enable(self.event_intid, gic::Trigger::Level);
        let (far, near) = self.pair();
        self.clear(Port(near));
        self.clear(Port(far));
        self.quiet();
        while self.upcall() {}
        let seen = |s: &Self| {
            format!(
                "pending {} upcall {} selector {} interrupt {}",
                s.pending(Port(far)),
                s.info.read32(UPCALL) & 0xff,
                s.info.read32(SELECTOR) >> (far / 64) & 1,
                s.upcall()
            )
        };
        let r = self.op(4, &mut [near]);
        self.case("signal.masked.send", r);
        let s = seen(self);
        self.case("signal.masked", s);
        let r = self.op(9, &mut [far]);
        self.case("signal.unmask", r);
        let s = seen(self);
        self.case("signal.unmasked", s);
        // Not yet taken: the guest clears neither upcall nor selector.
        let r = self.op(4, &mut [near]);
        self.case("signal.pending_already.send", r);
        let s = seen(self);
        self.case("signal.pending_already", s);
        self.clear(Port(far));
        self.op(4, &mut [near]);
        let s = seen(self);
        self.case("signal.upcall_already", s);
        self.clear(Port(far));
        self.quiet();
        self.op(4, &mut [near]);
        let s = seen(self);
        self.case("signal.fresh", s);
        self.clear(Port(far));
        self.quiet();
        // Masked by the guest alone, then unmasked by the call with nothing pending.
        self.mask(Port(far), true);
        self.op(9, &mut [far]);
        let s = seen(self);
        self.case("signal.unmask_nothing", s);
        // To the second vcpu, which has no upcall of its own here.
        self.op(8, &mut [far, 1]);
        self.op(4, &mut [near]);
        let s = seen(self);
        self.case("signal.to_second_vcpu", s);
        self.clear(Port(far));
        self.quiet();
        self.close(near);
        self.close(far);
        self.case("signal.closed_is_not_pending", self.pending(Port(far)));
        // The interrupt's line while nobody takes it.
        let (far, near) = self.pair();
        self.clear(Port(near));
        self.quiet();
        while self.upcall() {}
        self.mask(Port(far), false);
        self.op(4, &mut [near]);
        self.quiet();
        self.clear(Port(far));
        let after = self.upcall();
        self.case("signal.taken_back_by_hand", after);
        self.close(near);
        self.close(far);
    }

    fn virqs(&mut self) {
        for virq in (0..14).chain([23, 24, 100, u32::MAX]) {
            let mut words = [virq, 0, 0];
            let r = self.op(1, &mut words);
            self.case(format!("event.virq.{virq}"), &r);
            if r == "0" {
                let again = self.op(1, &mut [virq, 0, 0]);
                self.case(format!("event.virq.{virq}.again"), again);
                let s = self.status(SELF, words[2]);
                self.case(format!("event.virq.{virq}.status"), s);
                let sent = self.op(4, &mut [words[2]]);
                self.case(format!("event.virq.{virq}.send"), sent);
                let moved = self.op(8, &mut [words[2], 1]);
                self.case(format!("event.virq.{virq}.bind_vcpu"), moved);
                self.close(words[2]);
            }
        }
        for (name, virq, vcpu) in [
            ("timer_second", 0, 1),
            ("timer_none", 0, 2),
            ("debug_max", 1, u32::MAX),
            ("console_second", 2, 1),
        ] {
            let mut words = [virq, vcpu, 0];
            let r = self.op(1, &mut words);
            self.case(format!("event.virq.{name}"), &r);
            if r == "0" {
                self.close(words[2]);
            }
        }
        for vcpu in [0, 1, 2, 200, u32::MAX] {
            let mut words = [vcpu, 0];
            let r = self.op(7, &mut words);
            self.case(format!("event.ipi.{vcpu}"), &r);
            if r == "0" {
                let s = self.status(SELF, words[1]);
                self.case(format!("event.ipi.{vcpu}.status"), s);
                self.clear(Port(words[1]));
                let sent = self.op(4, &mut [words[1]]);
                self.case(format!("event.ipi.{vcpu}.send"), sent);
                self.case(
                    format!("event.ipi.{vcpu}.pending"),
                    self.pending(Port(words[1])),
                );
                let moved = self.op(8, &mut [words[1], 0]);
                self.case(format!("event.ipi.{vcpu}.bind_vcpu"), moved);
                self.close(words[1]);
                self.clear(Port(words[1]));
            }
        }
        let r = self.op(2, &mut [32, 0, 0]);
        self.case("event.pirq", r);
        self.quiet();
    }

    /// The peer's ports: one that answers, one that it closed, one that is its own.
    fn between_domains(&mut self) {
        let peer = u32::from(self.peer.0);
        // The peer may still be starting.
        let mut found = None;
        for _ in 0..50 {
            found = (1..16).find_map(|port| {
                let mut words = [peer, port, 0];
                (self.op(0, &mut words) == "0").then_some((port, words[2]))
            });
            if found.is_some() {
                break;
            }
            self.sleep(20_000_000);
        }
        let Some((theirs, ours)) = found else {
            return self.case("peer.bind", "no port");
        };
        self.case("peer.bind", "0");
        let s = self.status(SELF, ours);
        self.case("peer.status", s);
        for (name, port) in [
            ("again", theirs),
            ("closed", theirs + 1),
            ("not_for_us", theirs + 2),
        ] {
            let r = self.op(0, &mut [peer, port, 0]);
            self.case(format!("peer.bind.{name}"), r);
        }
        let s = self.status(peer, theirs);
        self.case("peer.status_of_theirs", s);
        self.clear(Port(ours));
        self.quiet();
        let r = self.op(4, &mut [ours]);
        self.case("peer.send", r);
        let mut answered = false;
        for _ in 0..100 {
            answered = self.pending(Port(ours));
            if answered {
                break;
            }
            self.sleep(5_000_000);
        }
        self.case("peer.answers", answered);
        let r = self.close(ours);
        self.case("peer.close", r);
        self.clear(Port(ours));
        let mut words = [peer, theirs, 0];
        let r = self.op(0, &mut words);
        self.case("peer.bind_anew", &r);
        if r == "0" {
            self.close(words[2]);
            self.clear(Port(words[2]));
        }
        self.quiet();
    }

    /// The FIFO ABI: setting it up, words, queues, priorities, reset.
    pub fn fifo(&mut self) {
        let Some(pages) = Shared::fresh(4) else {
            return;
        };
        let gfn = pages.addr() / 4096;
        let xen = hvc::xen();
        let r = self.op(12, &mut [gfn as u32, 0]);
        self.case("fifo.expand_before_control", r);
        let r = self.op(13, &mut [1, 7]);
        self.case("fifo.priority_before_control", r);
        let control = |s: &Self, gfn: u64, offset: u32, vcpu: u32| {
            let mut words = [gfn as u32, (gfn >> 32) as u32, offset, vcpu, 0, 0];
            let r = s.op(11, &mut words);
            if r == "0" {
                format!("0 link bits {}", words[4] & 0xff)
            } else {
                r
            }
        };
        for (name, gfn, offset, vcpu) in [
            ("nowhere", 0x7_ffff, 0, 0),
            ("misaligned", gfn, 4, 0),
            ("crosses", gfn, 4096 - 64, 0),
            ("beyond", gfn, 4096, 0),
            ("vcpu_none", gfn, 0, 2),
            ("good", gfn, 0, 0),
            ("again", gfn, 0, 0),
            ("second", gfn, 1024, 1),
        ] {
            let r = control(self, gfn, offset, vcpu);
            self.case(format!("fifo.control.{name}"), r);
        }
        let r = self.op(12, &mut [0x7_ffff, 0]);
        self.case("fifo.expand.nowhere", r);
        let array = gfn + 1;
        let r = self.op(12, &mut [array as u32, 0]);
        self.case("fifo.expand", r);
        let word = |port: u32| pages.read32(4096 + port as usize * 4);
        let set = |port: u32, v: u32| pages.write32(4096 + port as usize * 4, v);
        let (far, near) = self.pair();
        for (name, port, priority) in [
            ("zero", far, 0),
            ("lowest", far, 15),
            ("sixteen", far, 16),
            ("max", far, u32::MAX),
            ("free_port", 900, 7),
            ("beyond", 2000, 7),
            ("port_max", u32::MAX, 7),
        ] {
            let r = self.op(13, &mut [port, priority]);
            self.case(format!("fifo.priority.{name}"), r);
        }
        const P: u32 = 1 << 31;
        const M: u32 = 1 << 30;
        const L: u32 = 1 << 29;
        let flags = |w: u32| {
            format!(
                "pending {} masked {} linked {}",
                w & P != 0,
                w & M != 0,
                w & L != 0
            )
        };
        self.op(13, &mut [far, 5]);
        set(near, M);
        set(far, M);
        pages.write32(0, 0);
        self.quiet();
        while self.upcall() {}
        let r = self.op(4, &mut [near]);
        self.case("fifo.masked.send", r);
        self.case("fifo.masked.word", flags(word(far)));
        self.case("fifo.masked.ready", pages.read32(0));
        let r = self.op(9, &mut [far]);
        self.case("fifo.unmask", r);
        self.case("fifo.unmask.word", flags(word(far)));
        self.case("fifo.unmask.ready", format!("{:#x}", pages.read32(0)));
        self.case("fifo.unmask.head", pages.read32(8 + 5 * 4) == far);
        let up = self.upcall();
        self.case("fifo.unmask.interrupt", up);
        let r = self.op(4, &mut [near]);
        self.case("fifo.pending_already.send", r);
        self.case("fifo.pending_already.word", flags(word(far)));
        // Two in one queue: the second hangs on the first one's link.
        let (far2, near2) = self.pair();
        self.op(13, &mut [far2, 5]);
        set(far2, 0);
        set(near2, M);
        self.op(4, &mut [near2]);
        self.case("fifo.link", word(far) & 0x1_ffff == far2);
        self.case("fifo.link.word", flags(word(far2)));
        // A higher priority has its own queue.
        let (far3, near3) = self.pair();
        self.op(13, &mut [far3, 2]);
        set(far3, 0);
        set(near3, M);
        self.op(4, &mut [near3]);
        self.case("fifo.two_queues.ready", format!("{:#x}", pages.read32(0)));
        self.case("fifo.two_queues.head", pages.read32(8 + 2 * 4) == far3);
        for port in [near, near2, near3, far, far2, far3] {
            self.close(port);
        }
        let r = self.op(10, &mut [SELF]);
        self.case("fifo.reset", r);
        let s = self.status(SELF, far);
        self.case("fifo.reset.closed", s);
        let r = self.op(13, &mut [1, 7]);
        self.case("fifo.reset.priority", r);
        let after = calls::event::alloc_unbound(&xen, DomId::SELF, DomId::SELF).is_ok();
        self.case("fifo.reset.alloc", after);
        let r = code(probe::hypercall(NR.number(), [14, NOWHERE, 0, 0, 0]));
        self.case("event.op_14", r);
    }
}
