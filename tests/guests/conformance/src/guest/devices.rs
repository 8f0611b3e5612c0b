// SPDX-License-Identifier: MIT OR Apache-2.0
//! Emulated devices: the interrupt controller, timers, the UART.

use super::{Suite, trap, value};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use el1::machine::Gic;
use el1::probe::{self, Register, Trap};
use el1::{cpu, gic, time};
use guest_abi::HypercallNr;

/// The emulated UART.
const UART: u64 = 0x2200_0000;

fn done(r: Result<(), Trap>) -> String {
    r.map_or_else(trap, |()| "done".into())
}

/// How often the virtual timer's interrupt was taken.
static RANG: AtomicU32 = AtomicU32::new(0);

/// Takes a timer's interrupt, and has both ring no more.
fn rang(intid: u32) {
    RANG.fetch_add(u32::from(intid == time::INTID), Relaxed);
    let _ = Register::CntvCtl.write(2);
    let _ = Register::CntpCtl.write(2);
}

/// The virtual timer rings, and rings once more before its interrupt is ended; the guest makes no call meanwhile. How often it is taken within a second.
fn again_while_active() -> String {
    let ms = time::frequency() / 1000;
    let _ = Register::CntvCval.write(0);
    let _ = Register::CntvCtl.write(1);
    let (begin, mut taken) = (time::ticks(), 0);
    while taken < 2 && time::ticks() - begin < 1000 * ms {
        gic::poll(|_| {
            taken += 1;
            let now = time::ticks();
            let _ = Register::CntvCval.write(match taken {
                1 => now + ms,
                _ => u64::MAX,
            });
            let _ = Register::CntvCtl.write(1);
            while taken == 1 && time::ticks() - now < 2 * ms {}
        });
    }
    let _ = Register::CntvCtl.write(0);
    format!("taken {taken}")
}

impl Suite {
    pub fn devices(&mut self) {
        self.distributor();
        self.sgis();
        self.active();
        self.timers();
        self.enables();
        self.masked();
        self.uart();
    }

    fn distributor(&mut self) {
        let gicd = self.gicd();
        for (name, at) in [
            ("ctlr", 0u64),
            ("typer", 4),
            ("iidr", 8),
            ("reserved_c", 0xc),
            ("statusr", 0x10),
            ("igroupr0", 0x80),
            ("igroupr1", 0x84),
            ("isenabler1", 0x104),
            ("icenabler1", 0x184),
            ("ispendr1", 0x204),
            ("icpendr1", 0x284),
            ("isactiver1", 0x304),
            ("icactiver1", 0x384),
            ("ipriorityr8", 0x420),
            ("itargetsr0", 0x800),
            ("itargetsr8", 0x820),
            ("icfgr0", 0xc00),
            ("icfgr1", 0xc04),
            ("icfgr2", 0xc08),
            ("nsacr0", 0xe00),
            ("sgir", 0xf00),
            ("cpendsgir0", 0xf10),
            ("spendsgir0", 0xf20),
            ("reserved_f40", 0xf40),
            ("icpidr2", 0xfe8),
        ] {
            let r = value(probe::load32(gicd + at));
            self.case(format!("gicd.read.{name}"), r);
        }
        for (name, at) in [
            ("ctlr", 0u64),
            ("isenabler1", 0x104),
            ("ipriorityr8", 0x420),
            ("itargetsr8", 0x820),
            ("icfgr2", 0xc08),
        ] {
            let r = value(probe::load8(gicd + at));
            self.case(format!("gicd.read8.{name}"), r);
            let r = value(probe::load16(gicd + at));
            self.case(format!("gicd.read16.{name}"), r);
            let r = value(probe::load64(gicd + at));
            self.case(format!("gicd.read64.{name}"), r);
        }
        // What is kept of what is written, by SPI 40.
        for (name, at, v) in [
            ("isenabler1", 0x104u64, 1u32 << 8),
            ("icenabler1", 0x184, 1 << 8),
            ("ispendr1", 0x204, 1 << 8),
            ("icpendr1", 0x284, 1 << 8),
            ("isactiver1", 0x304, 1 << 8),
            ("icactiver1", 0x384, 1 << 8),
            ("ipriorityr10", 0x428, 0xffff_ffff),
            ("itargetsr10", 0x828, 0x0303_0303),
            ("itargetsr10_none", 0x828, 0),
            ("itargetsr10_beyond", 0x828, 0xfcfc_fcfc),
            ("itargetsr0", 0x800, 0),
            ("icfgr2", 0xc08, 0xffff_ffff),
            ("icfgr0", 0xc00, 0),
            ("typer", 4, 0),
            ("reserved_c", 0xc, 1),
            ("igroupr1", 0x84, 0xffff_ffff),
        ] {
            let w = done(probe::store32(gicd + at, v));
            let r = value(probe::load32(gicd + at));
            self.case(format!("gicd.write.{name}"), format!("{w} {r}"));
        }
        for (name, at) in [
            ("ctlr", 0u64),
            ("isenabler1", 0x104),
            ("itargetsr10", 0x828),
            ("ipriorityr10", 0x428),
        ] {
            let r = done(probe::store8(gicd + at, 1));
            self.case(format!("gicd.write8.{name}"), r);
            let r = done(probe::store64(gicd + at, 1));
            self.case(format!("gicd.write64.{name}"), r);
        }
        let off = done(probe::store32(gicd, 0));
        let r = value(probe::load32(gicd));
        self.case("gicd.off", format!("{off} {r}"));
        // With affinity routing: group 1.
        let enable = if let Gic::V3 { .. } = self.machine.gic {
            0x12
        } else {
            1
        };
        let on = done(probe::store32(gicd, enable));
        let r = value(probe::load32(gicd));
        self.case("gicd.on", format!("{on} {r}"));
        let r = value(probe::load32(gicd + 0x1000));
        self.case("gicd.page_after", r);
        if let Gic::V3 { gicr, .. } = self.machine.gic {
            for (name, at) in [
                ("ctlr", 0u64),
                ("iidr", 4),
                ("typer", 8),
                ("typer_high", 0xc),
                ("statusr", 0x10),
                ("waker", 0x14),
                ("propbaser", 0x70),
                ("pidr2", 0xffe8),
                ("igroupr0", 0x1_0080),
                ("isenabler0", 0x1_0100),
                ("ispendr0", 0x1_0200),
                ("isactiver0", 0x1_0300),
                ("ipriorityr0", 0x1_0400),
                ("icfgr0", 0x1_0c00),
                ("icfgr1", 0x1_0c04),
                ("nsacr", 0x1_0e00),
                ("second_typer", 0x2_0008),
                ("second_typer_high", 0x2_000c),
                ("third", 0x4_0008),
            ] {
                let r = value(probe::load32(gicr + at));
                self.case(format!("gicr.read.{name}"), r);
            }
            for (name, at) in [("typer", 8u64), ("waker", 0x14), ("isenabler0", 0x1_0100)] {
                let r = value(probe::load8(gicr + at));
                self.case(format!("gicr.read8.{name}"), r);
                let r = value(probe::load64(gicr + at));
                self.case(format!("gicr.read64.{name}"), r);
            }
            for (name, at) in [
                ("irouter40", 0x6000u64 + 40 * 8),
                ("pidr2", 0xffe8),
                ("typer2", 0xc),
                ("setspi", 0x40),
            ] {
                let r = value(probe::load32(gicd + at));
                self.case(format!("gicd.read.{name}"), r);
            }
            for (name, v) in [
                ("first", 0u64),
                ("second", 1),
                ("none", 7),
                ("any", 1 << 31),
            ] {
                let w = done(probe::store64(gicd + 0x6000 + 40 * 8, v));
                let r = value(probe::load64(gicd + 0x6000 + 40 * 8));
                self.case(format!("gicd.write.irouter40.{name}"), format!("{w} {r}"));
            }
            let _ = probe::store64(gicd + 0x6000 + 40 * 8, 0);
        }
        if let Gic::V2 { gicc, .. } = self.machine.gic {
            for (name, at) in [
                ("ctlr", 0u64),
                ("pmr", 4),
                ("bpr", 8),
                ("rpr", 0x14),
                ("hppir", 0x18),
                ("iidr", 0xfc),
            ] {
                let r = value(probe::load32(gicc + at));
                self.case(format!("gicc.read.{name}"), r);
            }
        }
    }

    /// Interrupts that were taken, by number.
    fn taken(&self) -> String {
        let mut text = String::new();
        while gic::poll(|intid| text += &format!(" {intid}")) {}
        if text.is_empty() {
            " none".into()
        } else {
            text
        }
    }

    fn sgis(&mut self) {
        gic::enable_sgis();
        let gicd = self.gicd();
        // Where the registers of SGIs are.
        let own = match self.machine.gic {
            Gic::V2 { gicd, .. } => gicd,
            Gic::V3 { gicr, .. } => gicr + 0x1_0000,
        };
        self.taken();
        for sgi in [0, 7, 15] {
            gic::send_sgi(cpu::affinity(), sgi);
            let t = self.taken();
            self.case(format!("sgi.{sgi}"), t);
        }
        gic::send_sgi(cpu::affinity(), 4);
        gic::send_sgi(cpu::affinity(), 4);
        gic::send_sgi(cpu::affinity(), 2);
        let t = self.taken();
        self.case("sgi.twice_and_another", t);
        if let Gic::V2 { .. } = self.machine.gic {
            for (name, v) in [
                ("self", 2u32 << 24 | 3),
                ("others", 1 << 24 | 3),
                ("reserved", 3 << 24 | 3),
                ("list_none", 3),
                ("list_beyond", 0xf0 << 16 | 3),
            ] {
                let w = done(probe::store32(gicd + 0xf00, v));
                let t = self.taken();
                self.case(format!("sgi.filter.{name}"), format!("{w}{t}"));
            }
        }
        // Disabled, then enabled while pending.
        let _ = probe::store32(own + 0x180, 1 << 6);
        gic::send_sgi(cpu::affinity(), 6);
        let before = self.taken();
        let _ = probe::store32(own + 0x100, 1 << 6);
        let after = self.taken();
        self.case("sgi.disabled", format!("{before} then{after}"));
        // An SPI that the guest makes pending by hand.
        let _ = probe::store32(gicd + 0x828, 0x0101_0101);
        gic::enable(40, gic::Trigger::Edge);
        let _ = probe::store32(gicd + 0x204, 1 << 8);
        let t = self.taken();
        self.case("spi.by_hand", t);
        let p = value(probe::load32(gicd + 0x204).map(|v| v >> 8 & 1));
        self.case("spi.by_hand.pending_after", p);
        let _ = probe::store32(gicd + 0x204, 1 << 8);
        let _ = probe::store32(gicd + 0x284, 1 << 8);
        let t = self.taken();
        self.case("spi.by_hand.taken_back", t);
        // Priorities: the more urgent one is taken first.
        let _ = probe::store8(own + 0x400 + 8, 0xa0);
        let _ = probe::store8(own + 0x400 + 9, 0x40);
        gic::send_sgi(cpu::affinity(), 8);
        gic::send_sgi(cpu::affinity(), 9);
        let t = self.taken();
        self.case("sgi.priorities", t);
    }

    /// EOImode 1: interrupts are taken, and deactivated later, more of them than the machine has list registers.
    fn active(&mut self) {
        const ALL: core::ops::Range<u32> = 4..12;
        let own = match self.machine.gic {
            Gic::V2 { gicd, .. } => gicd,
            Gic::V3 { gicr, .. } => gicr + 0x1_0000,
        };
        for sgi in ALL {
            let _ = probe::store8(own + 0x400 + u64::from(sgi), 0xa0);
        }
        self.taken();
        gic::split(true);
        for (name, order) in [
            ("in_order", [4u32, 5, 6, 7, 8, 9, 10, 11]),
            ("backwards", [11, 10, 9, 8, 7, 6, 5, 4]),
            ("mixed", [7, 11, 4, 9, 10, 6, 5, 8]),
        ] {
            ALL.for_each(|sgi| gic::send_sgi(cpu::affinity(), sgi));
            let mut active: Vec<(u32, u32)> = Vec::new();
            while let Some(taken) = gic::take_active() {
                active.push(taken);
            }
            self.case(format!("gic.split.{name}.active"), active.len());
            // Again while they are active: each comes when it was deactivated, and not before.
            ALL.for_each(|sgi| gic::send_sgi(cpu::affinity(), sgi));
            let (mut again, mut early) = (0, 0);
            for sgi in order {
                let Some(at) = active.iter().position(|(_, intid)| *intid == sgi) else {
                    continue;
                };
                early += u32::from(gic::take_active().is_some());
                gic::deactivate(active.remove(at).0);
                while let Some((iar, intid)) = gic::take_active() {
                    again += u32::from(intid == sgi);
                    early += u32::from(intid != sgi && active.iter().any(|a| a.1 == intid));
                    gic::deactivate(iar);
                }
            }
            self.case(
                format!("gic.split.{name}"),
                format!("{again} again, {early} early"),
            );
        }
        gic::split(false);
        let t = self.taken();
        self.case("gic.split.left", t);
        // Handlers within handlers, six levels of priority.
        for (sgi, level) in (4..10u64).zip([0xd0u8, 0xb0, 0x90, 0x70, 0x50, 0x30]) {
            let _ = probe::store8(own + 0x400 + sgi, level);
        }
        let t = self.nested(4);
        self.case("gic.nested", t);
        let t = self.taken();
        self.case("gic.nested.left", t);
        for sgi in ALL {
            let _ = probe::store8(own + 0x400 + u64::from(sgi), 0xa0);
        }
    }

    /// Takes SGI `sgi`, and in its handler the next one, which is better.
    fn nested(&self, sgi: u32) -> String {
        if sgi == 10 {
            return " end".into();
        }
        gic::send_sgi(cpu::affinity(), sgi);
        let mut text = String::new();
        if !gic::poll(|intid| text = format!(" {intid}{}", self.nested(sgi + 1))) {
            text = " none".into();
        }
        text
    }

    /// What is delivered with which bits of GICD_CTLR.
    fn enables(&mut self) {
        let gicd = self.gicd();
        gic::enable(time::INTID, gic::Trigger::Level);
        for bits in [0u32, 1, 2, 3, 4, 5, 6, 7, 0x10, 0x12, 0x37] {
            let _ = probe::store32(gicd, bits);
            let kept = value(probe::load32(gicd));
            gic::send_sgi(cpu::affinity(), 5);
            let sgi = self.taken();
            let _ = Register::CntvCval.write(0);
            let _ = Register::CntvCtl.write(1);
            let mut timer = 0;
            while gic::poll(|intid| {
                timer += u32::from(intid == time::INTID);
                let _ = Register::CntvCtl.write(2);
            }) {}
            let _ = Register::CntvCtl.write(0);
            self.case(
                format!("gicd.ctlr.{bits:#x}"),
                format!("{kept} sgi{sgi} timer {timer}"),
            );
        }
        let v3 = matches!(self.machine.gic, Gic::V3 { .. });
        let _ = probe::store32(gicd, if v3 { 0x12 } else { 1 });
        self.taken();
    }

    /// Who waits with interrupts masked is woken by the virtual timer: one that rings meanwhile, one that has rung. (The
    /// physical one ends it after 200 ms.)
    fn masked(&mut self) {
        gic::enable(time::INTID, gic::Trigger::Level);
        gic::enable(30, gic::Trigger::Level);
        self.taken();
        // SCHEDOP_block; SCHEDOP_poll of no ports and without an end.
        for (name, op) in [("block", 1u64), ("poll", 3)] {
            for (when, ahead) in [("ahead", time::frequency() / 100), ("past", 0)] {
                let begin = time::ticks();
                RANG.store(0, Relaxed);
                let answer = probe::unmasked_by(rang, || {
                    let _ = Register::CntvCval.write(begin + ahead);
                    let _ = Register::CntvCtl.write(1);
                    while ahead == 0 && !cpu::interrupt_pending() {}
                    let _ = Register::CntpTval.write(time::frequency() / 5);
                    let _ = Register::CntpCtl.write(1);
                    self.call_with(HypercallNr::SchedOp, op, &mut [0; 6])
                });
                let ms = (time::ticks() - begin) * 1000 / time::frequency();
                let _ = Register::CntvCtl.write(2);
                let _ = Register::CntpCtl.write(2);
                let in_handler = RANG.load(Relaxed);
                let left = self.taken();
                let slept = if ms >= 190 {
                    "to the end"
                } else {
                    "and was woken"
                };
                self.case(
                    format!("sched.{name}.masked.timer_{when}"),
                    format!("{answer} slept {slept}, handler {in_handler}, left{left}"),
                );
            }
        }
    }

    fn timers(&mut self) {
        for (name, reg) in [("cntp", Register::CntpCtl), ("cntv", Register::CntvCtl)] {
            let r = value(reg.read());
            self.case(format!("timer.{name}.ctl"), r);
        }
        gic::enable(time::INTID, gic::Trigger::Level);
        gic::enable(30, gic::Trigger::Level);
        self.taken();
        for (name, ctl, cval, own) in [
            ("cntv", Register::CntvCtl, Register::CntvCval, 27u32),
            ("cntp", Register::CntpCtl, Register::CntpCval, 30),
        ] {
            let _ = cval.write(0);
            let w = done(ctl.write(1));
            let status = value(ctl.read());
            let mut seen = 0;
            while gic::poll(|intid| {
                seen += u32::from(intid == own);
                let _ = ctl.write(3);
            }) {}
            self.case(
                format!("timer.{name}.past"),
                format!("{w} {status} taken {seen}"),
            );
            let masked = value(ctl.read());
            self.case(format!("timer.{name}.masked"), masked);
            let _ = ctl.write(0);
            let _ = cval.write(u64::MAX);
            let _ = ctl.write(1);
            let t = self.taken();
            let status = value(ctl.read());
            self.case(format!("timer.{name}.never"), format!("{status}{t}"));
            let _ = ctl.write(0);
        }
        let _ = Register::CntpTval.write(0x7fff_ffff);
        let left = value(
            Register::CntpTval
                .read()
                .map(|v| u64::from(v > 0x7000_0000)),
        );
        self.case("timer.cntp.tval", left);
        let again = again_while_active();
        self.case("timer.cntv.again", again);
        // Awake in time, by the physical timer.
        let begin = time::ticks();
        let _ = Register::CntpTval.write(time::frequency() / 100);
        let _ = Register::CntpCtl.write(1);
        while !cpu::interrupt_pending() {
            cpu::idle();
        }
        let _ = Register::CntpCtl.write(0);
        let waited = time::ticks() - begin;
        let t = self.taken();
        self.case(
            "timer.cntp.wfi",
            format!("not early {}{t}", waited >= time::frequency() / 100),
        );
        let a = Register::Cntpct.read();
        let later = match (a, Register::Cntpct.read()) {
            (Ok(a), Ok(b)) => format!("rises {}", b > a),
            (Err(t), _) | (_, Err(t)) => trap(t),
        };
        self.case("timer.cntpct", later);
    }

    fn uart(&mut self) {
        for (name, at) in [
            ("dr", 0u64),
            ("rsr", 4),
            ("fr", 0x18),
            ("ibrd", 0x24),
            ("fbrd", 0x28),
            ("lcrh", 0x2c),
            ("cr", 0x30),
            ("ifls", 0x34),
            ("imsc", 0x38),
            ("ris", 0x3c),
            ("mis", 0x40),
            ("icr", 0x44),
            ("dmacr", 0x48),
            ("reserved", 0x50),
            ("pid0", 0xfe0),
            ("pid1", 0xfe4),
            ("pid2", 0xfe8),
            ("pid3", 0xfec),
            ("cid0", 0xff0),
            ("cid3", 0xffc),
        ] {
            let r = value(probe::load32(UART + at));
            self.case(format!("uart.read.{name}"), r);
        }
        for (name, at, v) in [
            ("rsr", 4u64, 0u32),
            ("fr", 0x18, 0),
            ("ibrd", 0x24, 1),
            ("cr", 0x30, 0x301),
            ("imsc", 0x38, 0x50),
            ("ris", 0x3c, 1),
            ("icr", 0x44, 0x7ff),
            ("dmacr", 0x48, 1),
            ("reserved", 0x50, 1),
            ("pid0", 0xfe0, 1),
        ] {
            let w = done(probe::store32(UART + at, v));
            self.case(format!("uart.write.{name}"), w);
        }
        let r = value(probe::load32(UART + 0x38));
        self.case("uart.imsc_kept", r);
        let w = done(probe::store32(UART + 0x38, 0));
        self.case("uart.imsc_off", w);
        for (name, r) in [
            ("8", value(probe::load8(UART + 0x18))),
            ("16", value(probe::load16(UART + 0x18))),
            ("64", value(probe::load64(UART + 0x18))),
        ] {
            self.case(format!("uart.read{name}.fr"), r);
        }
    }
}
