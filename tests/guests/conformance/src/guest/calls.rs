// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of hypercalls, and those that are small: version, parameters, scheduling, vcpus,
//! console, assists, several at once.

use super::{NOWHERE, Suite, code};
use alloc::format;
use el1::probe::hypercall;
use guest_abi::DomId;
use guest_abi::HypercallNr as Nr;

const SELF: u32 = DomId::SELF.0 as u32;

impl Suite {
    pub fn calls(&mut self) {
        self.numbers();
        self.version();
        self.parameters();
        self.scheduling();
        self.vcpus();
        self.console();
        self.several();
    }

    /// Every number with an operation that none of them has, and numbers beyond.
    fn numbers(&mut self) {
        for nr in (0..64).chain([64, 100, 0xffff_ffff, 1 << 32 | 17, u64::MAX]) {
            let r = code(hypercall(nr, [0xffff, 0, 0, 0, 0]));
            self.case(format!("call.{nr:#x}"), r);
        }
    }

    fn version(&mut self) {
        let nr = Nr::XenVersion;
        for op in 0..13 {
            let bad = self.call(nr, [op, NOWHERE, 0, 0, 0]);
            self.case(format!("version.{op}.bad_address"), bad);
        }
        for op in [1, 2, 3, 4, 5, 6, 8, 9, 10] {
            self.args.zero(0, 4096);
            let r = self.call(nr, [op, self.args.addr(), 0, 0, 0]);
            self.case(format!("version.{op}"), r);
        }
        self.args.zero(0, 64);
        self.call(nr, [3, self.args.addr(), 0, 0, 0]);
        let mut name = [0; 16];
        self.args.read(0, &mut name);
        let text = core::str::from_utf8(&name)
            .unwrap_or("no text")
            .trim_end_matches('\0');
        self.case("version.capabilities", format!("{text:?}"));
        for submap in [0, 1, 7, u32::MAX] {
            let mut info = [submap, 0xdead];
            let r = self.call_with(nr, 6, &mut info);
            self.case(
                format!("version.features.{submap:#x}"),
                format!("{r} {:#x}", info[1]),
            );
        }
        let high = self.call(nr, [1 << 32, 0, 0, 0, 0]);
        self.case("version.op_high_bits", high);
    }

    fn parameters(&mut self) {
        for index in 0..40 {
            let mut p = [SELF, index, 0xdead, 0];
            let r = self.call_with(Nr::HvmOp, 1, &mut p);
            self.case(format!("hvm.get.{index}"), r);
        }
        for (name, domid, index) in [
            ("self_by_number", u32::from(self.own.0), 0),
            ("dom0", 0, 0),
            ("peer", u32::from(self.peer.0), 0),
            ("nobody", 77, 0),
            ("reserved", 0x7ff2, 0),
            ("index_max", SELF, u32::MAX),
        ] {
            let mut p = [domid, index, 0, 0];
            let r = self.call_with(Nr::HvmOp, 1, &mut p);
            self.case(format!("hvm.get.{name}"), r);
        }
        for (index, v) in [
            (0, 1),
            (1, 7),
            (2, 1),
            (17, 1),
            (18, 1),
            (28, 0),
            (36, 1),
            (39, 1),
        ] {
            let mut p = [SELF, index, v, 0];
            let r = self.call_with(Nr::HvmOp, 0, &mut p);
            self.case(format!("hvm.set.{index}"), r);
        }
        for op in 0..28 {
            let r = self.call(Nr::HvmOp, [op, NOWHERE, 0, 0, 0]);
            self.case(format!("hvm.op.{op}.bad_address"), r);
        }
    }

    fn scheduling(&mut self) {
        let nr = Nr::SchedOp;
        for op in [0, 4, 5, 6, 7, 8, 0xffff_fffe] {
            let r = self.call(nr, [op, NOWHERE, 0, 0, 0]);
            self.case(format!("sched.{op:#x}.bad_address"), r);
        }
        let r = self.call(nr, [2, NOWHERE, 0, 0, 0]);
        self.case("sched.shutdown.bad_address", r);
        let r = self.call(nr, [3, NOWHERE, 0, 0, 0]);
        self.case("sched.poll.bad_address", r);
        let r = self.call_with(nr, 5, &mut [0]);
        self.case("sched.shutdown_code", r);
        for (name, id, timeout) in [("unknown", 1, 10), ("three", 3, 10), ("max", u32::MAX, 10)] {
            let r = self.call_with(nr, 6, &mut [id, timeout]);
            self.case(format!("sched.watchdog.{name}"), r);
        }
        for name in ["first", "second", "third"] {
            let r = self.call_with(nr, 6, &mut [0, 60]);
            self.case(format!("sched.watchdog.new.{name}"), r);
        }
        for (name, id, timeout) in [
            ("renew", 1, 60),
            ("off1", 1, 0),
            ("off2", 2, 0),
            ("off_again", 1, 0),
        ] {
            let r = self.call_with(nr, 6, &mut [id, timeout]);
            self.case(format!("sched.watchdog.{name}"), r);
        }
        for (name, domid) in [
            ("self", SELF),
            ("own", u32::from(self.own.0)),
            ("dom0", 0),
            ("peer", u32::from(self.peer.0)),
            ("nobody", 77),
        ] {
            let r = self.call_with(nr, 4, &mut [domid, 0]);
            self.case(format!("sched.remote_shutdown.{name}"), r);
        }
        self.polls();
        let r = self.call_with(nr, 7, &mut [0]);
        self.case("sched.pin_override", r);
    }

    fn polls(&mut self) {
        let nr = Nr::SchedOp;
        let ports = self.args.addr() + 256;
        let (low, high) = (ports as u32, (ports >> 32) as u32);
        self.args.write32(256, 4000);
        self.args.write32(260, 5000);
        let past = 1;
        let poll = |suite: &mut Self, name: &str, at: (u32, u32), n: u32, until: u64| {
            let r = suite.call_with(
                nr,
                3,
                &mut [at.0, at.1, n, 0, until as u32, (until >> 32) as u32],
            );
            suite.case(format!("sched.poll.{name}"), r);
        };
        poll(self, "none_past", (low, high), 0, past);
        poll(self, "unknown_port", (low, high), 1, past);
        poll(self, "port_beyond", (low, high), 2, past);
        poll(self, "port_max", (low, high), 128, past);
        poll(self, "too_many", (low, high), 129, past);
        poll(self, "bad_list", (0xffff_f000, 0x7f), 1, past);
        // A port of this domain's that is pending already.
        let xen = el1::hvc::xen();
        let Ok(far) = guest_abi::calls::event::alloc_unbound(&xen, DomId::SELF, DomId::SELF) else {
            return;
        };
        self.args.write32(256, far.0);
        poll(self, "not_pending_past", (low, high), 1, past);
        if let Ok(near) = guest_abi::calls::event::bind_interdomain(&xen, DomId::SELF, far) {
            let _ = guest_abi::calls::event::send(&xen, near);
            poll(self, "pending", (low, high), 1, 0);
            let _ = guest_abi::calls::event::close(&xen, near);
        }
        self.clear(far);
        let _ = guest_abi::calls::event::close(&xen, far);
    }

    fn vcpus(&mut self) {
        let nr = Nr::VcpuOp;
        for op in 0..15 {
            let r = self.call(nr, [op, 0, NOWHERE, 0, 0]);
            // Those that work with a virtual address take any.
            self.case(format!("vcpu.{op}.bad_address"), r);
        }
        for (name, vcpu) in [
            ("self", 0),
            ("second", 1),
            ("none", 2),
            ("high", 128),
            ("max", 0xffff_ffff),
        ] {
            let r = self.call(nr, [3, vcpu, 0, 0, 0]);
            self.case(format!("vcpu.is_up.{name}"), r);
            let r = self.call(nr, [4, vcpu, self.args.addr(), 0, 0]);
            self.case(format!("vcpu.runstate.{name}"), r);
        }
        // The area of before, if it was taken, is given up for a good one.
        let mut area = self.args.addr() + 1024;
        self.args.zero(1024, 64);
        self.args.write32(0, area as u32);
        self.args.write32(4, (area >> 32) as u32);
        let r = self.call(nr, [5, 0, self.args.addr(), 0, 0]);
        self.case("vcpu.runstate_area", r);
        self.case("vcpu.runstate_area.state", self.args.read32(1024));
        for (name, vcpu) in [("second", 1), ("none", 2)] {
            let r = self.call(nr, [5, vcpu, self.args.addr(), 0, 0]);
            self.case(format!("vcpu.runstate_area.{name}"), r);
        }
        area += 4096 - 1024 - 16;
        self.args.write32(0, area as u32);
        self.args.write32(4, (area >> 32) as u32);
        let r = self.call(nr, [5, 0, self.args.addr(), 0, 0]);
        self.case("vcpu.runstate_area.two_pages", r);
        let page = self.args.addr() / 4096;
        for (name, vcpu, gfn, offset) in [
            ("misaligned", 0, page, 2052u32),
            ("beyond", 0, page, 4096 - 16),
            ("nowhere", 0, 0x7_ffff, 0),
            ("vcpu_none", 2, page, 2048),
            ("good", 0, page, 2048),
            ("again", 0, page, 2048),
        ] {
            self.args.write32(0, gfn as u32);
            self.args.write32(4, 0);
            self.args.write32(8, offset);
            self.args.write32(12, 0);
            let r = self.call(nr, [10, vcpu, self.args.addr(), 0, 0]);
            self.case(format!("vcpu.register_info.{name}"), r);
        }
    }

    fn console(&mut self) {
        let nr = Nr::ConsoleIo;
        let at = self.args.addr();
        for (name, op, count, to) in [
            ("write_none", 0, 0, at),
            ("write_bad_address", 0, 8, NOWHERE),
            ("read", 1, 8, at),
            ("read_bad_address", 1, 8, NOWHERE),
            ("op_2", 2, 0, at),
        ] {
            let r = self.call(nr, [op, count, to, 0, 0]);
            self.case(format!("console.{name}"), r);
        }
        let nr = Nr::VmAssist;
        for (name, cmd, assist) in [
            ("runstate_on", 0, 5),
            ("runstate_off", 1, 5),
            ("zero", 0, 0),
            ("four", 0, 4),
            ("big", 0, 64),
            ("huge", 0, u64::MAX),
            ("cmd_2", 2, 5),
        ] {
            let r = self.call(nr, [cmd, assist, 0, 0, 0]);
            self.case(format!("assist.{name}"), r);
        }
    }

    fn several(&mut self) {
        let nr = Nr::Multicall;
        let at = self.args.addr();
        let r = self.call(nr, [at, 0, 0, 0, 0]);
        self.case("multicall.none", r);
        let r = self.call(nr, [NOWHERE, 1, 0, 0, 0]);
        self.case("multicall.bad_address", r);
        // xen_version, a number that does not exist, and itself.
        self.args.zero(0, 3 * 64);
        for (i, op) in [17, 0x55, 13].into_iter().enumerate() {
            self.args.write32(i * 64, op);
            self.args.write32(i * 64 + 8, 0xdead);
        }
        let r = self.call(nr, [at, 3, 0, 0, 0]);
        self.case("multicall.three", r);
        for i in 0..3 {
            let low = u64::from(self.args.read32(i * 64 + 8));
            let high = u64::from(self.args.read32(i * 64 + 12));
            let r = code(Ok((high << 32 | low) as i64));
            self.case(format!("multicall.three.{i}"), r);
        }
    }
}
