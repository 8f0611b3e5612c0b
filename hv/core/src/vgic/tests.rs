// SPDX-License-Identifier: MIT OR Apache-2.0
use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::vec;
use std::vec::Vec;

const S: Slot = Slot(5);
const V0: VcpuId = VcpuId(0);
const V1: VcpuId = VcpuId(1);

/// A CPU's list registers and the guest's side of them; refuses what the architecture forbids.
struct Hw {
    v3: bool,
    lr: Vec<u64>,
    control: u32,
    /// EOImode 1: an end drops the priority alone.
    split: bool,
    /// What is active and has dropped its priority.
    dropped: Vec<u32>,
    /// Ended in no list register.
    outside: u32,
    /// Active priorities with their interrupts, innermost last.
    running: Vec<(u8, u32)>,
    /// Linked interrupts that the guest ended.
    ended: Vec<u32>,
    writes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Raw {
    irq: u32,
    prio: u8,
    state: u8,
    hw: bool,
    eoi: bool,
    from: u8,
}

impl Hw {
    fn new(version: Version, n: usize) -> Self {
        Self {
            v3: version == Version::V3,
            lr: vec![0; n],
            control: 0,
            split: false,
            dropped: vec![],
            outside: 0,
            running: vec![],
            ended: vec![],
            writes: 0,
        }
    }
    /// The architecture's format, taken apart independently of the code under test.
    fn decode(&self, x: u64) -> Raw {
        let f = |shift: u32, width: u32| (x >> shift) & ((1 << width) - 1);
        if self.v3 {
            let hw = f(61, 1) != 0;
            assert!(x == 0 || f(60, 1) == 1, "group 1");
            assert!(!hw || f(32, 10) == f(0, 32));
            Raw {
                irq: f(0, 32) as u32,
                prio: f(48, 8) as u8,
                state: f(62, 2) as u8,
                hw,
                eoi: !hw && f(41, 1) != 0,
                from: 0,
            }
        } else {
            assert!(x >> 32 == 0);
            let hw = f(31, 1) != 0;
            assert!(f(30, 1) == 0, "group 0");
            assert!(!hw || f(10, 10) == f(0, 10));
            Raw {
                irq: f(0, 10) as u32,
                prio: (f(23, 5) << 3) as u8,
                state: f(28, 2) as u8,
                hw,
                eoi: !hw && f(19, 1) != 0,
                from: if hw { 0 } else { f(10, 3) as u8 },
            }
        }
    }
    fn set_state(&mut self, n: usize, state: u8) {
        let shift = if self.v3 { 62 } else { 28 };
        self.lr[n] = self.lr[n] & !(3 << shift) | u64::from(state) << shift;
    }
    fn all(&self) -> Vec<Raw> {
        self.lr.iter().map(|&x| self.decode(x)).collect()
    }
    fn busy(&self) -> bool {
        self.all().iter().any(|r| r.state != 0)
    }
    fn running_priority(&self) -> u16 {
        self.running.last().map_or(0x100, |r| r.0.into())
    }
    /// The guest acknowledges.
    fn ack(&mut self) -> Option<(u32, u8)> {
        let (n, r) = self
            .all()
            .into_iter()
            .enumerate()
            .filter(|(_, r)| r.state == PENDING)
            .min_by_key(|(_, r)| r.prio)?;
        if u16::from(r.prio) >= self.running_priority() {
            return None;
        }
        self.set_state(n, ACTIVE);
        self.running.push((r.prio, r.irq));
        Some((r.irq, r.from))
    }
    /// The guest ends its innermost interrupt.
    fn eoi(&mut self) -> Option<u32> {
        let (_, irq) = self.running.pop()?;
        if self.split {
            self.dropped.push(irq);
        } else {
            self.end(irq);
        }
        Some(irq)
    }
    /// What the hardware does about the end of an active interrupt.
    fn end(&mut self, irq: u32) {
        let all = self.all().into_iter().enumerate();
        match { all }.find(|(_, r)| r.irq == irq && r.state & ACTIVE != 0) {
            Some((n, r)) => {
                self.set_state(n, r.state & !ACTIVE);
                if r.hw {
                    self.ended.push(irq);
                }
            }
            None => self.outside = (self.outside + 1) % 32,
        }
    }
    fn maintenance(&self) -> bool {
        let all = self.all();
        let asked = |c| self.control & c != 0;
        all.iter().any(|r| r.eoi && r.state == 0)
            || asked(control::UNDERFLOW) && all.iter().filter(|r| r.state != 0).count() <= 1
            || asked(control::ENDS) && self.outside != 0
            || asked(control::NONE_PENDING) && all.iter().all(|r| r.state != PENDING)
    }
}

impl ListRegs for Hw {
    fn count(&self) -> usize {
        self.lr.len()
    }
    fn read(&self, n: usize) -> u64 {
        self.lr[n]
    }
    fn write(&mut self, n: usize, value: u64) {
        self.writes += 1;
        self.lr[n] = value;
        let mut seen = BTreeSet::new();
        for r in self.all() {
            if r.state != 0 {
                assert!(seen.insert(r.irq), "interrupt {} twice", r.irq);
                assert!(!(r.hw && r.state == 3), "linked, active and pending");
            }
        }
    }
    fn empty(&self) -> u32 {
        let e = self.all().into_iter().map(|r| r.state == 0 && !r.eoi);
        e.enumerate().fold(0, |m, (n, e)| m | u32::from(e) << n)
    }
    fn control(&mut self, bits: u32) {
        assert_ne!(self.control, bits);
        assert!(self.v3 || bits & control::TRAP_DEACTIVATE == 0);
        self.control = bits;
        self.outside = 0;
    }
    fn ends(&mut self) -> u32 {
        core::mem::take(&mut self.outside)
    }
}

fn vgic(version: Version, vcpus: usize, spis: u32) -> Vgics {
    let mut g = Vgics::new();
    g.create_domain(S, version, vcpus, spis).unwrap();
    g
}

fn rd(g: &mut Vgics, v: VcpuId, region: Region, off: u64, size: u8) -> u64 {
    g.mmio_read(S, v, region, off, size).unwrap()
}

fn wr(g: &mut Vgics, v: VcpuId, region: Region, off: u64, size: u8, val: u64) -> Effects {
    g.mmio_write(S, v, region, off, size, val).unwrap()
}

/// Everything on: distributor, all interrupts.
fn on(g: &mut Vgics, version: Version) {
    let v3 = version == Version::V3;
    let _ = wr(g, V0, Region::Gicd, 0, 4, if v3 { 2 } else { 1 });
    let n = g.nr_spis(S) / 32 + 1;
    for i in 0..n {
        let _ = wr(
            g,
            V0,
            Region::Gicd,
            0x100 + 4 * u64::from(i),
            4,
            0xffff_ffff,
        );
    }
    let vcpus = g.dom(S).unwrap().vcpus.len() as u64;
    for v in 0..vcpus {
        let _ = if v3 {
            wr(
                g,
                V0,
                Region::Gicr,
                v * GICR_STRIDE + 0x1_0100,
                4,
                0xffff_ffff,
            )
        } else {
            wr(g, VcpuId(v as u8), Region::Gicd, 0x100, 4, 0xffff_ffff)
        };
    }
}

const BOTH: [Version; 2] = [Version::V2, Version::V3];

#[test]
fn creation_checks_its_arguments() {
    let mut g = Vgics::new();
    use Version::{V2, V3};
    assert_eq!(g.create_domain(S, V2, 0, 0), Err(Errno::EINVAL));
    assert_eq!(g.create_domain(S, V2, 9, 0), Err(Errno::EINVAL));
    assert_eq!(g.create_domain(S, V3, 65, 0), Err(Errno::EINVAL));
    assert_eq!(g.create_domain(S, V3, 1, 961), Err(Errno::EINVAL));
    assert_eq!(g.create_domain(Slot(128), V3, 1, 0), Err(Errno::EINVAL));
    assert_eq!(g.create_domain(S, V3, 64, 960), Ok(()));
    assert_eq!(g.create_domain(S, V3, 1, 0), Err(Errno::EEXIST));
    assert_eq!(g.nr_spis(S), 960);
    g.destroy_domain(S, |_| panic!("no physical interrupts"));
    assert_eq!(g.nr_spis(S), 0);
    assert_eq!(g.create_domain(S, V2, 8, 33), Ok(()));
    assert_eq!(g.nr_spis(S), 64);
}

#[test]
fn identification_v2() {
    let mut g = vgic(Version::V2, 4, 70);
    let r = Region::Gicd;
    assert_eq!(rd(&mut g, V0, r, 0x000, 4), 0);
    assert_eq!(
        rd(&mut g, V0, r, 0x004, 4),
        3 << 5 | 3,
        "4 CPUs, 128 interrupts"
    );
    assert_eq!(rd(&mut g, V0, r, 0x008, 4), 0x43b);
    assert_eq!(rd(&mut g, V0, r, 0xfe8, 4) >> 4 & 0xf, 2);
    let _ = wr(&mut g, V0, r, 0, 4, 0xffff_ffff);
    assert_eq!(rd(&mut g, V0, r, 0x000, 4), 1);
    let _ = wr(&mut g, V0, r, 4, 4, 0xffff_ffff);
    assert_eq!(rd(&mut g, V0, r, 0x004, 4), 3 << 5 | 3, "read only");
    assert_eq!(g.mmio_read(S, V0, Region::Gicr, 0, 4), Err(BadAccess));
    assert_eq!(g.mmio_read(S, V0, r, 0x1000, 4), Err(BadAccess));
    assert_eq!(g.mmio_read(Slot(6), V0, r, 0, 4), Err(BadAccess));
}

#[test]
fn identification_v3() {
    let mut g = vgic(Version::V3, 18, 64);
    let r = Region::Gicd;
    assert_eq!(rd(&mut g, V0, r, 0x000, 4), 0x10);
    assert_eq!(rd(&mut g, V0, r, 0x004, 4), 9 << 19 | 1 << 25 | 7 << 5 | 2);
    assert_eq!(rd(&mut g, V0, r, 0xffe8, 4), 0x3b);
    let _ = wr(&mut g, V0, r, 0, 4, 0xffff_ffff);
    assert_eq!(rd(&mut g, V0, r, 0x000, 4), 0x12);
    let gicr = |n: u64| n * GICR_STRIDE;
    let r = Region::Gicr;
    assert_eq!(rd(&mut g, V0, r, gicr(0) + 8, 8), 0);
    assert_eq!(
        rd(&mut g, V0, r, gicr(17) + 8, 8),
        0x101 << 32 | 17 << 8 | 1 << 4
    );
    assert_eq!(rd(&mut g, V0, r, gicr(17) + 12, 4), 0x101);
    assert_eq!(rd(&mut g, V0, r, gicr(16) + 8, 4), 16 << 8);
    assert_eq!(rd(&mut g, V0, r, gicr(3) + 0xffe8, 4), 0x3b);
    assert_eq!(rd(&mut g, V0, r, gicr(3) + 0x14, 4), 0, "awake");
    let _ = wr(&mut g, V0, r, gicr(3) + 0x14, 4, 2);
    assert_eq!(rd(&mut g, V0, r, gicr(3) + 0x14, 4), 0);
    assert_eq!(rd(&mut g, V0, r, gicr(3) + 0x70, 8), 0, "no LPIs");
    assert_eq!(g.mmio_read(S, V0, r, gicr(18), 4), Err(BadAccess));
    assert_eq!(g.mmio_read(S, V0, r, !7, 8), Err(BadAccess));
}

#[test]
fn enables_are_set_and_cleared_by_bits() {
    let mut g = vgic(Version::V2, 2, 64);
    let r = Region::Gicd;
    assert_eq!(rd(&mut g, V0, r, 0x100, 4), 0xffff, "SGIs");
    let _ = wr(&mut g, V0, r, 0x180, 4, 0xffff_ffff);
    assert_eq!(rd(&mut g, V0, r, 0x180, 4), 0xffff, "which stay so");
    let _ = wr(&mut g, V0, r, 0x100, 4, 1 << 27);
    assert_eq!(rd(&mut g, V0, r, 0x100, 4), 0x0800_ffff);
    assert_eq!(rd(&mut g, V1, r, 0x100, 4), 0xffff, "private");
    let _ = wr(&mut g, V0, r, 0x108, 4, 0x8000_0001);
    let _ = wr(&mut g, V1, r, 0x108, 4, 0x10);
    assert_eq!(rd(&mut g, V1, r, 0x188, 4), 0x8000_0011, "shared");
    let _ = wr(&mut g, V1, r, 0x188, 4, 1);
    assert_eq!(rd(&mut g, V0, r, 0x108, 4), 0x8000_0010);
    let _ = wr(&mut g, V0, r, 0x10c, 4, !0);
    assert_eq!(rd(&mut g, V0, r, 0x10c, 4), 0, "no such bank");
    assert_eq!(rd(&mut g, V0, r, 0x084, 4), 0, "groups");

    let mut g = vgic(Version::V3, 2, 32);
    let _ = wr(&mut g, V0, r, 0x100, 4, !0);
    assert_eq!(
        rd(&mut g, V0, r, 0x100, 4),
        0,
        "private ones are in the redistributor"
    );
    let sgi = |n: u64| n * GICR_STRIDE + 0x1_0000;
    let _ = wr(&mut g, V0, Region::Gicr, sgi(1) + 0x180, 4, 0xff);
    let _ = wr(&mut g, V0, Region::Gicr, sgi(1) + 0x100, 4, 1 << 31);
    assert_eq!(rd(&mut g, V0, Region::Gicr, sgi(1) + 0x100, 4), 0x8000_ff00);
    assert_eq!(rd(&mut g, V0, Region::Gicr, sgi(0) + 0x100, 4), 0xffff);
}

#[test]
fn priorities_by_byte_and_word() {
    let mut g = vgic(Version::V2, 2, 32);
    let r = Region::Gicd;
    let _ = wr(&mut g, V0, r, 0x41c, 4, 0xffa0_8001);
    assert_eq!(rd(&mut g, V0, r, 0x41c, 4), 0xf8a0_8000);
    assert_eq!(rd(&mut g, V0, r, 0x41e, 1), 0xa0);
    assert_eq!(rd(&mut g, V1, r, 0x41c, 4), 0);
    let _ = wr(&mut g, V0, r, 0x43f, 1, 0xfff);
    assert_eq!(rd(&mut g, V1, r, 0x43c, 4), 0xf800_0000);
    let _ = wr(&mut g, V0, r, 0x440, 4, !0);
    assert_eq!(rd(&mut g, V0, r, 0x440, 4), 0, "no such interrupt");
    assert_eq!(g.mmio_read(S, V0, r, 0x420, 2), Err(BadAccess));
    assert_eq!(g.mmio_read(S, V0, r, 0x420, 8), Err(BadAccess));
    assert_eq!(g.mmio_read(S, V0, r, 0x422, 4), Err(BadAccess));
}

#[test]
fn targets_v2() {
    let mut g = vgic(Version::V2, 3, 32);
    let r = Region::Gicd;
    let v2 = VcpuId(2);
    assert_eq!(rd(&mut g, v2, r, 0x81c, 4), 0x0404_0404);
    assert_eq!(rd(&mut g, V0, r, 0x820, 4), 0x0101_0101);
    let _ = wr(&mut g, V0, r, 0x800, 4, 0x0202_0202);
    assert_eq!(
        rd(&mut g, V0, r, 0x800, 4),
        0x0101_0101,
        "private: read only"
    );
    let _ = wr(&mut g, V0, r, 0x821, 1, 6);
    assert_eq!(
        rd(&mut g, V0, r, 0x820, 4),
        0x0101_0201,
        "the lowest of several"
    );
    let _ = wr(&mut g, V0, r, 0x820, 4, 0x0400_f804);
    assert_eq!(rd(&mut g, V0, r, 0x820, 4), 0x0401_0204, "nobody: ignored");
    assert_eq!(rd(&mut g, V0, r, 0x840, 4), 0);
}

#[test]
fn routing_v3() {
    let mut g = vgic(Version::V3, 20, 32);
    let r = Region::Gicd;
    let at = |irq: u64| 0x6000 + 8 * irq;
    let _ = wr(&mut g, V0, r, at(32), 8, 0x103);
    assert_eq!(rd(&mut g, V0, r, at(32), 8), 0x103);
    assert_eq!(rd(&mut g, V0, r, at(32), 4), 0x103);
    assert_eq!(rd(&mut g, V0, r, at(32) + 4, 4), 0);
    for nobody in [0x104u64, 0x10, 0x1_0000, 1 << 32, 0x400] {
        let _ = wr(&mut g, V0, r, at(32), 8, nobody);
        assert_eq!(rd(&mut g, V0, r, at(32), 8), 0x103, "{nobody:#x}");
    }
    let _ = wr(&mut g, V0, r, at(32), 4, 2);
    let _ = wr(&mut g, V0, r, at(32) + 4, 4, 7);
    assert_eq!(rd(&mut g, V0, r, at(32), 8), 2);
    assert_eq!(rd(&mut g, V0, r, at(31), 8), 0, "private ones have none");
    assert_eq!(rd(&mut g, V0, r, at(64), 8), 0);
    let _ = wr(&mut g, V0, r, at(1019), 8, 1);
    let _ = wr(&mut g, V0, r, 0x820, 4, !0);
    assert_eq!(
        rd(&mut g, V0, r, 0x820, 4),
        0,
        "no ITARGETSR with affinity routing"
    );
}

#[test]
fn configuration_of_spis_only() {
    let mut g = vgic(Version::V2, 1, 32);
    let r = Region::Gicd;
    assert_eq!(rd(&mut g, V0, r, 0xc00, 4), 0xaaaa_aaaa);
    assert_eq!(rd(&mut g, V0, r, 0xc04, 4), 0);
    let _ = wr(&mut g, V0, r, 0xc04, 4, !0);
    assert_eq!(rd(&mut g, V0, r, 0xc04, 4), 0);
    let _ = wr(&mut g, V0, r, 0xc0c, 4, 0x8000_0003);
    assert_eq!(rd(&mut g, V0, r, 0xc0c, 4), 0x8000_0002);
    assert_eq!(rd(&mut g, V0, r, 0xc08, 4), 0);
}

/// As on Xen, whose injection does not ask GICD_CTLR: a kernel that sets only its bit 2 (Zephyr on GICv3) gets its timer.
#[test]
fn delivery_does_not_depend_on_the_distributors_enable_bits() {
    for ver in BOTH {
        for ctlr in [0, 4, 0] {
            let mut g = vgic(ver, 2, 32);
            let mut hw = Hw::new(ver, 4);
            on(&mut g, ver);
            let fx = wr(&mut g, V0, Region::Gicd, 0, 4, ctlr);
            assert_eq!((fx.kick, rd(&mut g, V0, Region::Gicd, 0, 4) & 7), (0, 0));
            assert_eq!(g.inject_hw(S, V0, 27).unwrap().kick, 1);
            assert!(g.deliverable(S, V0, u8::MAX));
            assert_eq!(g.flush(S, V0, &mut hw), 0);
            assert_eq!(hw.ack(), Some((27, 0)));
        }
    }
}

/// What a WFI waits for goes by priority, in a list register, a bank of its own, or among the SPIs.
#[test]
fn what_the_priority_mask_hides_ends_no_wfi() {
    for ver in BOTH {
        let mut g = vgic(ver, 1, 32);
        let mut hw = Hw::new(ver, 4);
        on(&mut g, ver);
        let _ = wr(&mut g, V0, Region::Gicd, 0x400 + 40, 1, 0x80);
        let _ = g.pulse(S, V0, 40);
        for loaded in [false, true] {
            if loaded {
                let _ = g.flush(S, V0, &mut hw);
                g.sync(S, V0, &mut hw);
            }
            for (below, says) in [(0, false), (0x80, false), (0x88, true), (u8::MAX, true)] {
                assert_eq!(g.deliverable(S, V0, below), says, "{below:#x} {loaded}");
            }
        }
    }
}

#[test]
fn pending_and_active_are_read_and_written() {
    for ver in BOTH {
        let mut g = vgic(ver, 1, 32);
        let r = Region::Gicd;
        let mut hw = Hw::new(ver, 4);
        let fx = wr(&mut g, V0, r, 0x204, 4, 5);
        assert_eq!(fx.kick, 0, "not enabled");
        assert_eq!(rd(&mut g, V0, r, 0x284, 4), 5);
        let _ = wr(&mut g, V0, r, 0x284, 4, 1);
        assert_eq!(rd(&mut g, V0, r, 0x204, 4), 4);
        on(&mut g, ver);
        assert!(g.deliverable(S, V0, u8::MAX));
        assert_eq!(g.flush(S, V0, &mut hw), 0);
        assert_eq!(hw.ack(), Some((34, 0)));
        g.sync(S, V0, &mut hw);
        assert_eq!(rd(&mut g, V0, r, 0x204, 4), 0);
        assert_eq!(rd(&mut g, V0, r, 0x304, 4), 4);
        // Ended by the back door.
        let _ = wr(&mut g, V0, r, 0x384, 4, 4);
        assert_eq!(rd(&mut g, V0, r, 0x384, 4), 0);
        let _ = g.flush(S, V0, &mut hw);
        assert!(!hw.busy());
        // And made active by it.
        let _ = wr(&mut g, V0, r, 0x304, 4, 8);
        let _ = g.flush(S, V0, &mut hw);
        assert_eq!(hw.all()[0].state, ACTIVE);
        assert_eq!(hw.all()[0].irq, 35);
    }
}

#[test]
fn sgi_of_v2_goes_where_the_filter_says() {
    let mut g = vgic(Version::V2, 3, 32);
    on(&mut g, Version::V2);
    let r = Region::Gicd;
    assert_eq!(wr(&mut g, V1, r, 0xf00, 4, 0x00ff_0003).kick, 0b111);
    assert_eq!(rd(&mut g, V0, r, 0xf10, 4), 0x0200_0000);
    assert_eq!(rd(&mut g, V0, r, 0xf23, 1), 2);
    assert_eq!(wr(&mut g, V1, r, 0xf00, 4, 1 << 24 | 4).kick, 0b101);
    assert_eq!(wr(&mut g, V1, r, 0xf00, 4, 2 << 24 | 5).kick, 0b010);
    assert_eq!(
        wr(&mut g, V1, r, 0xf00, 4, 0x00f8_0005).kick,
        0,
        "nobody there"
    );
    let _ = wr(&mut g, V0, r, 0xf10, 4, 0xff00_0000);
    assert_eq!(rd(&mut g, V0, r, 0xf10, 4), 0);
    assert_eq!(rd(&mut g, V0, r, 0x200, 4), 1 << 4);
    let _ = wr(&mut g, V0, r, 0xf22, 1, 0xff);
    assert_eq!(
        rd(&mut g, V0, r, 0xf20, 4),
        0x0007_0000,
        "only vcpus that exist"
    );
    let _ = wr(&mut g, V0, r, 0x280, 4, 0xffff);
    assert_eq!(
        rd(&mut g, V0, r, 0x200, 4),
        1 << 2 | 1 << 4,
        "not by ICPENDR"
    );
    assert_eq!(g.mmio_write(S, V0, r, 0xf00, 1, 0), Err(BadAccess));
}

#[test]
fn sgis_of_v2_come_once_from_each_sender() {
    let mut g = vgic(Version::V2, 3, 32);
    on(&mut g, Version::V2);
    let mut hw = Hw::new(Version::V2, 4);
    for from in 0..3 {
        for _ in 0..2 {
            let _ = wr(&mut g, VcpuId(from), Region::Gicd, 0xf00, 4, 0x0001_0007);
        }
    }
    let mut got = vec![];
    loop {
        let _ = g.flush(S, V0, &mut hw);
        let Some(a) = hw.ack() else { break };
        got.push(a);
        hw.eoi();
        if hw.maintenance() {
            g.maintenance(S, V0);
        }
    }
    assert_eq!(got, [(7, 0), (7, 1), (7, 2)]);
    assert!(!hw.maintenance() && !hw.busy());
}

#[test]
fn sgi1r_by_affinity() {
    let mut g = vgic(Version::V3, 20, 32);
    on(&mut g, Version::V3);
    let send = |g: &mut Vgics, v: u64| g.sgi1r(S, V1, v).kick;
    assert_eq!(send(&mut g, 3 << 24 | 0x8001), 0x8001);
    assert_eq!(send(&mut g, 3 << 24 | 1 << 16 | 0xffff), 0xf_0000);
    assert_eq!(
        send(&mut g, 3 << 24 | 1 << 40),
        0xf_fffd,
        "all but the sender"
    );
    let mut hw = Hw::new(Version::V3, 4);
    let _ = g.flush(S, V0, &mut hw);
    assert_eq!(hw.ack(), Some((3, 0)));
}

/// XSA-94: registers of banks that do not exist, for every number of SPIs.
#[test]
fn xsa_94_every_offset_of_every_size_is_harmless() {
    for (ver, vcpus) in [(Version::V2, 8), (Version::V3, 3)] {
        for spis in [0, 1, 32, 33, 64, 928, 960] {
            let mut g = vgic(ver, vcpus, spis);
            let mut hw = Hw::new(ver, 4);
            let end = if ver == Version::V2 { 0x1008 } else { 0x1_0008 };
            let wide = ver == Version::V3;
            for (region, len) in [
                (Region::Gicd, end),
                (Region::Gicr, if wide { 3 * 0x2_0000 + 8 } else { 8 }),
            ] {
                // The redistributors' larger frames are looked at in part.
                for off in (0..len).filter(|o| region == Region::Gicd || o & 0xffff < 0x1010) {
                    for size in [0, 1, 2, 3, 4, 5, 8, 16, 255] {
                        let v = VcpuId((off % 8) as u8 % vcpus as u8);
                        let _ = g.mmio_read(S, v, region, off, size);
                        let w = g.mmio_write(S, v, region, off, size, !0);
                        if size != 1 && size != 4 && size != 8 || off % u64::from(size) != 0 {
                            assert_eq!(w, Err(BadAccess));
                        }
                    }
                    if off % 64 == 0 {
                        g.sync(S, V0, &mut hw);
                        let _ = g.flush(S, V0, &mut hw);
                    }
                }
            }
            let _ = g.unload(S, V0, &mut hw);
            assert!(!hw.busy());
        }
    }
}

/// XSA-117: the reserved target filter of GICD_SGIR.
#[test]
fn xsa_117_reserved_sgi_filter_is_ignored() {
    let mut g = vgic(Version::V2, 2, 32);
    on(&mut g, Version::V2);
    for low in [0u64, 0x00ff_000f, 0x00ff_ffff] {
        assert_eq!(
            wr(&mut g, V0, Region::Gicd, 0xf00, 4, 3 << 24 | low).kick,
            0
        );
    }
    assert!(!g.deliverable(S, V0, u8::MAX) && !g.deliverable(S, V1, u8::MAX));
}

/// XSA-223: an interrupt that comes while it is disabled waits, in or out of a list register,
/// and a physical one stays active meanwhile.
#[test]
fn xsa_223_disabled_interrupts_wait() {
    for ver in BOTH {
        let mut g = vgic(ver, 1, 32);
        on(&mut g, ver);
        let mut hw = Hw::new(ver, 4);
        let r = Region::Gicd;
        g.link(S, 40).unwrap();
        let fx = wr(&mut g, V0, r, 0x184, 4, !0);
        assert_eq!(
            fx.phys,
            PhysIrqs {
                base: 32,
                enable: 0,
                disable: 1 << 8,
                deactivate: 0
            }
        );
        assert_eq!(g.inject_hw(S, V0, 40).unwrap().kick, 0);
        assert_eq!(g.pulse(S, V0, 41).kick, 0);
        let _ = g.flush(S, V0, &mut hw);
        assert!(!hw.busy() && !g.deliverable(S, V0, u8::MAX));
        let fx = wr(&mut g, V0, r, 0x104, 4, 3 << 8);
        assert_eq!((fx.kick, fx.phys.enable), (1, 1 << 8));
        let _ = g.flush(S, V0, &mut hw);
        assert_eq!(hw.all().iter().filter(|r| r.state == PENDING).count(), 2);
        // Disabled again before the guest takes them: they leave the list registers.
        g.sync(S, V0, &mut hw);
        let _ = wr(&mut g, V0, r, 0x184, 4, 3 << 8);
        let _ = g.flush(S, V0, &mut hw);
        assert!(!hw.busy());
        let _ = wr(&mut g, V0, r, 0x104, 4, 3 << 8);
        let _ = g.flush(S, V0, &mut hw);
        while hw.ack().is_some() {
            hw.eoi();
        }
        assert_eq!(
            hw.ended,
            [40],
            "the physical interrupt was ended once, by the guest"
        );
    }
}

/// XSA-225: SGIs to vcpus that do not exist.
#[test]
fn xsa_225_sgi_to_nobody() {
    for n in [1, 3, 16, 17, 64] {
        let mut g = vgic(Version::V3, n, 32);
        on(&mut g, Version::V3);
        let all = all_vcpus(n);
        for shift in 0..64 {
            for low in [0u64, 0xffff, 0x8000] {
                let v = 1u64 << shift | low | 5 << 24;
                let k = g.sgi1r(S, V0, v).kick;
                assert_eq!(k & !all, 0);
                if v >> 40 & 1 == 0 && v >> 32 & 0xff_f0ff != 0 {
                    assert_eq!(k, 0, "{v:#x}");
                }
            }
        }
        let _ = g.sgi1r(S, VcpuId(255), !0);
        let _ = g.sgi1r(S, VcpuId(63), 1 << 40);
    }
}

#[test]
fn nothing_to_do_touches_no_register() {
    let mut g = vgic(Version::V3, 1, 32);
    on(&mut g, Version::V3);
    let mut hw = Hw::new(Version::V3, 4);
    let _ = g.flush(S, V0, &mut hw);
    assert_eq!(hw.writes, 0);
    let _ = g.pulse(S, V0, 31);
    let _ = g.flush(S, V0, &mut hw);
    assert_eq!(hw.writes, 1);
    for _ in 0..3 {
        let _ = g.flush(S, V0, &mut hw);
    }
    assert_eq!(hw.writes, 1);
    assert!(!hw.maintenance());
}

#[test]
fn a_pulse_while_active_comes_again_without_a_trap() {
    for ver in BOTH {
        let mut g = vgic(ver, 1, 32);
        on(&mut g, ver);
        let mut hw = Hw::new(ver, 4);
        let _ = g.pulse(S, V0, 31);
        let _ = g.flush(S, V0, &mut hw);
        assert_eq!(hw.ack(), Some((31, 0)));
        for _ in 0..2 {
            assert_eq!(g.pulse(S, V0, 31).kick, 1);
            let _ = g.flush(S, V0, &mut hw);
        }
        hw.eoi();
        assert!(!hw.maintenance());
        assert_eq!(hw.ack(), Some((31, 0)));
        hw.eoi();
        assert_eq!(hw.ack(), None);
    }
}

#[test]
fn virtual_timer_moves_with_its_vcpu() {
    for ver in BOTH {
        let mut g = vgic(ver, 2, 32);
        on(&mut g, ver);
        let mut hw = Hw::new(ver, 4);
        let fx = g.inject_hw(S, V0, 27).unwrap();
        assert_eq!(fx.kick, 1);
        let _ = g.flush(S, V0, &mut hw);
        assert!(hw.all()[0].hw);
        assert_eq!(hw.ack(), Some((27, 0)));
        let _ = g.unload(S, V0, &mut hw);
        assert!(!hw.busy());
        assert!(g.hw_active(S, V0, 27) && !g.hw_active(S, V1, 27));
        assert!(!g.deliverable(S, V0, u8::MAX));
        // Elsewhere.
        let mut other = Hw::new(ver, 4);
        other.running = core::mem::take(&mut hw.running);
        let _ = g.flush(S, V0, &mut other);
        other.eoi();
        assert_eq!(other.ended, [27]);
        let _ = g.unload(S, V0, &mut other);
        assert!(!g.hw_active(S, V0, 27));
        assert!(g.inject_hw(S, VcpuId(2), 27).is_none());
        assert!(g.inject_hw(S, V0, 64).is_none());
    }
}

#[test]
fn passed_through_interrupts_are_given_back() {
    let mut g = vgic(Version::V2, 1, 64);
    on(&mut g, Version::V2);
    assert_eq!(g.link(S, 31), Err(Errno::EINVAL));
    assert_eq!(g.link(S, 96), Err(Errno::EINVAL));
    assert_eq!(g.link(S, 70), Ok(()));
    assert_eq!(g.link(S, 70), Err(Errno::EBUSY));
    assert_eq!(g.link(S, 33), Ok(()));
    let _ = g.inject_hw(S, V0, 70);
    assert_eq!(g.unlink(S, 71), Effects::default());
    // The guest throws it away: the physical one must not stay active.
    let fx = wr(&mut g, V0, Region::Gicd, 0x288, 4, 1 << 6);
    assert_eq!(
        fx.phys,
        PhysIrqs {
            base: 64,
            enable: 0,
            disable: 0,
            deactivate: 1 << 6
        }
    );
    let _ = g.inject_hw(S, V0, 70);
    let p = g.unlink(S, 70).phys;
    assert_eq!((p.base, p.disable, p.deactivate), (64, 1 << 6, 1 << 6));
    assert!(!g.deliverable(S, V0, u8::MAX));
    let _ = g.inject_hw(S, V0, 33);
    let mut seen = vec![];
    g.destroy_domain(S, |p| seen.push(p));
    assert_eq!(
        seen,
        [PhysIrqs {
            base: 32,
            enable: 0,
            disable: 2,
            deactivate: 2
        }]
    );
}

#[test]
fn the_best_are_in_the_list_registers() {
    for ver in BOTH {
        let mut g = vgic(ver, 1, 960);
        on(&mut g, ver);
        let mut hw = Hw::new(ver, 4);
        for irq in 32..992u64 {
            let _ = wr(
                &mut g,
                V0,
                Region::Gicd,
                0x400 + irq,
                1,
                8 * (1 + irq * 7 % 31),
            );
            let _ = g.pulse(S, V0, irq as u32);
        }
        let _ = g.flush(S, V0, &mut hw);
        assert_eq!(hw.control, control::NONE_PENDING);
        let mut last = 0;
        let mut seen = BTreeSet::new();
        while let Some((irq, _)) = hw.ack() {
            let prio = 1 + irq * 7 % 31;
            assert!(prio >= last, "in order of priority");
            last = prio;
            assert!(seen.insert(irq));
            hw.eoi();
            if hw.maintenance() {
                g.maintenance(S, V0);
                let _ = g.flush(S, V0, &mut hw);
            }
            assert!(!hw.maintenance());
        }
        assert_eq!(seen.len(), 960);
        assert_eq!(hw.control, 0);
    }
}

/// A guest pends what is also a physical interrupt: both come, one after the other, and the
/// physical one is ended exactly once.
#[test]
fn software_and_hardware_of_one_number() {
    for ver in BOTH {
        // Hardware first: the software one has to wait for an exit after its end.
        let mut g = vgic(ver, 1, 32);
        on(&mut g, ver);
        let mut hw = Hw::new(ver, 4);
        g.link(S, 40).unwrap();
        let _ = g.inject_hw(S, V0, 40);
        let _ = g.flush(S, V0, &mut hw);
        assert_eq!(hw.ack(), Some((40, 0)));
        g.sync(S, V0, &mut hw);
        let _ = wr(&mut g, V0, Region::Gicd, 0x204, 4, 1 << 8);
        let _ = g.flush(S, V0, &mut hw);
        assert_eq!(hw.all().iter().filter(|r| r.state != 0).count(), 1);
        hw.eoi();
        assert_eq!(hw.ack(), None);
        let _ = g.flush(S, V0, &mut hw); // any exit
        assert_eq!(hw.ack(), Some((40, 0)));
        assert_eq!(hw.ended, [40]);
        // Now the physical one comes behind the software one, which asks for its end.
        let _ = g.inject_hw(S, V0, 40);
        let _ = g.flush(S, V0, &mut hw);
        hw.eoi();
        assert_eq!(hw.ended, [40], "a software one ends nothing physical");
        assert!(hw.maintenance());
        g.maintenance(S, V0);
        let _ = g.flush(S, V0, &mut hw);
        assert_eq!(hw.ack(), Some((40, 0)));
        hw.eoi();
        assert_eq!(hw.ended, [40, 40]);
        assert!(!hw.maintenance());
    }
}

/// Handlers of six levels one in the other, four list registers: each comes at once, and each ends when the guest
/// ends it, the outer ones by count.
#[test]
fn nested_handlers_beyond_the_list_registers() {
    for ver in BOTH {
        let mut g = vgic(ver, 1, 64);
        on(&mut g, ver);
        let mut hw = Hw::new(ver, 4);
        for i in 0..6u64 {
            let _ = wr(&mut g, V0, Region::Gicd, 0x400 + 40 + i, 1, 0xf0 - 0x20 * i);
        }
        for irq in 40..46 {
            let _ = g.pulse(S, V0, irq);
            let _ = g.flush(S, V0, &mut hw);
            assert_eq!(hw.ack(), Some((irq, 0)));
            // Pending again behind its own handler.
            let _ = g.pulse(S, V0, irq);
            let _ = g.flush(S, V0, &mut hw);
            assert!(!hw.maintenance());
        }
        for irq in (40..46).rev() {
            assert_eq!(hw.eoi(), Some(irq));
            if hw.maintenance() {
                g.maintenance(S, V0);
                let _ = g.flush(S, V0, &mut hw);
            }
            assert!(!hw.maintenance());
            g.sync(S, V0, &mut hw);
            let active = rd(&mut g, V0, Region::Gicd, 0x304, 4);
            assert_eq!(active, ((1 << (irq - 32)) - 1) & !0xff, "{irq}");
            let _ = g.flush(S, V0, &mut hw);
            assert_eq!(hw.ack(), Some((irq, 0)), "it was pending again");
            hw.eoi();
            if hw.maintenance() {
                g.maintenance(S, V0);
                let _ = g.flush(S, V0, &mut hw);
            }
        }
        assert_eq!((hw.control, hw.busy()), (0, false));
    }
}

/// EOImode 1: a guest takes ten interrupts before it deactivates the first, in whatever order, with four list
/// registers. Each comes again when it was deactivated, and not before.
#[test]
fn more_are_active_than_list_registers() {
    for ver in BOTH {
        let mut g = vgic(ver, 1, 64);
        on(&mut g, ver);
        let mut hw = Hw::new(ver, 4);
        hw.split = true;
        // The timer's, which is linked, keeps its register.
        let _ = g.inject_hw(S, V0, 27);
        let _ = g.flush(S, V0, &mut hw);
        assert_eq!(hw.ack(), Some((27, 0)));
        hw.eoi();
        for irq in 40..50 {
            let _ = g.pulse(S, V0, irq);
        }
        let _ = g.flush(S, V0, &mut hw);
        for irq in 40..50 {
            assert_eq!(hw.ack(), Some((irq, 0)));
            hw.eoi();
            while hw.maintenance() {
                g.maintenance(S, V0);
                let _ = g.flush(S, V0, &mut hw);
            }
        }
        assert_eq!(hw.dropped.len(), 11);
        let traps = if ver == Version::V3 {
            control::TRAP_DEACTIVATE
        } else {
            0
        };
        assert_eq!(hw.control, control::ENDS | traps);
        for irq in 40..50 {
            let _ = g.pulse(S, V0, irq);
        }
        let _ = g.flush(S, V0, &mut hw);
        assert_eq!(hw.ack(), None, "all are active");
        let mut active: BTreeSet<u32> = (40..50).collect();
        for irq in [47u32, 40, 49, 43, 41, 48, 42, 46, 45, 44] {
            g.sync(S, V0, &mut hw);
            let fx = match ver {
                Version::V2 => wr(&mut g, V0, Region::Dir, 0, 4, irq.into()),
                Version::V3 => g.deactivate(S, V0, irq),
            };
            assert!(!fx.phys.any());
            let _ = g.flush(S, V0, &mut hw);
            g.sync(S, V0, &mut hw);
            active.remove(&irq);
            let seen = rd(&mut g, V0, Region::Gicd, 0x304, 4);
            assert_eq!(seen, active.iter().fold(0, |m, i| m | 1 << (i - 32)));
            let _ = g.flush(S, V0, &mut hw);
            assert_eq!(hw.ack(), Some((irq, 0)));
            hw.eoi();
            let _ = g.deactivate(S, V0, irq);
            g.sync(S, V0, &mut hw);
            let _ = g.deactivate(S, V0, irq);
            let _ = g.flush(S, V0, &mut hw);
        }
        hw.end(27);
        assert_eq!((hw.ended, hw.control), (vec![27], 0));
    }
}

/// The same by SGIs that are sent again meanwhile, as the conformance guest does it.
#[test]
fn sgis_that_are_active_come_again_when_they_are_deactivated() {
    for ver in BOTH {
        let mut g = vgic(ver, 1, 32);
        on(&mut g, ver);
        let mut hw = Hw::new(ver, 4);
        hw.split = true;
        let serve = |g: &mut Vgics, hw: &mut Hw| {
            let _ = g.flush(S, V0, hw);
            while hw.maintenance() {
                g.maintenance(S, V0);
                let _ = g.flush(S, V0, hw);
            }
        };
        let send = |g: &mut Vgics, hw: &mut Hw, sgi: u64| {
            if ver == Version::V3 {
                let _ = g.sgi1r(S, V0, sgi << 24 | 1);
            } else {
                g.sync(S, V0, hw);
                let _ = wr(g, V0, Region::Gicd, 0xf00, 4, 1 << 16 | sgi);
            }
            serve(g, hw);
        };
        let take = |g: &mut Vgics, hw: &mut Hw| {
            let irq = hw.ack()?.0;
            serve(g, hw);
            hw.eoi();
            serve(g, hw);
            Some(irq)
        };
        let end = |g: &mut Vgics, hw: &mut Hw, irq: u32| {
            hw.dropped.retain(|&i| i != irq);
            if ver == Version::V2 {
                g.sync(S, V0, hw);
                let _ = wr(g, V0, Region::Dir, 0, 4, irq.into());
            } else if hw.control & control::TRAP_DEACTIVATE != 0 {
                g.sync(S, V0, hw);
                let _ = g.deactivate(S, V0, irq);
            } else {
                hw.end(irq);
            }
            serve(g, hw);
        };
        for order in [[4, 5, 6, 7, 8, 9, 10, 11], [7, 11, 4, 9, 10, 6, 5, 8]] {
            (4..12).for_each(|sgi| send(&mut g, &mut hw, sgi));
            for sgi in 4..12 {
                assert_eq!(take(&mut g, &mut hw), Some(sgi));
            }
            (4..12).for_each(|sgi| send(&mut g, &mut hw, sgi));
            for sgi in order {
                assert_eq!(take(&mut g, &mut hw), None);
                end(&mut g, &mut hw, sgi);
                assert_eq!(take(&mut g, &mut hw), Some(sgi));
                end(&mut g, &mut hw, sgi);
            }
            assert_eq!((hw.control, hw.busy()), (0, false));
        }
    }
}

/// What a guest makes active by hand, beyond all list registers, ends as what it acknowledged.
#[test]
fn active_by_hand_beyond_the_list_registers() {
    for ver in BOTH {
        let mut g = vgic(ver, 1, 32);
        on(&mut g, ver);
        let mut hw = Hw::new(ver, 4);
        let _ = wr(&mut g, V0, Region::Gicd, 0x304, 4, 0xffff_ffff);
        let _ = g.inject_hw(S, V0, 27);
        let _ = g.flush(S, V0, &mut hw);
        assert_eq!(hw.ack(), Some((27, 0)), "the timer comes all the same");
        hw.end(27);
        assert_eq!(hw.ended, [27]);
        for irq in 32..64 {
            g.sync(S, V0, &mut hw);
            let _ = g.deactivate(S, V0, irq);
            let _ = g.flush(S, V0, &mut hw);
        }
        assert_eq!((hw.control, hw.busy()), (0, false));
        assert_eq!(rd(&mut g, V0, Region::Gicd, 0x304, 4), 0);
    }
}

/// What is pending behind its own handler does not come before what is better and has found no register.
#[test]
fn pending_behind_its_handler_gives_way() {
    let ops = [
        Op::Priority(3, 1, 64),
        Op::Pend(3, 1, true),
        Op::Ack(3),
        Op::Phys(3, true, true),
        Op::Sgi(0, 8, 7),
        Op::Pulse(3, 30),
        Op::Sgi(0, 8, 1),
    ];
    run(true, false, 4, 3, ops.into());
}

/// GICv2's second page of the CPU interface has one register, which is written by words.
#[test]
fn the_page_of_gicc_dir() {
    let mut g = vgic(Version::V2, 1, 32);
    let r = Region::Dir;
    assert_eq!(rd(&mut g, V0, r, 0, 4), 0);
    for (off, size) in [(0, 1), (0, 8), (2, 4)] {
        assert_eq!(g.mmio_write(S, V0, r, off, size, 1), Err(BadAccess));
    }
    let _ = wr(&mut g, V0, Region::Gicd, 0x304, 4, 3);
    let _ = wr(&mut g, V0, r, 4, 4, 32);
    let _ = wr(&mut g, V0, r, 0, 4, 1023);
    assert_eq!(rd(&mut g, V0, Region::Gicd, 0x304, 4), 3);
    let _ = wr(&mut g, V0, r, 0, 4, 33 | 5 << 10);
    assert_eq!(rd(&mut g, V0, Region::Gicd, 0x304, 4), 1);
    let mut g = vgic(Version::V3, 1, 32);
    assert_eq!(g.mmio_write(S, V0, r, 0, 4, 33), Err(BadAccess));
    assert_eq!(g.mmio_read(S, V0, r, 0, 4), Err(BadAccess));
}

#[test]
fn a_pending_spi_follows_its_target() {
    for ver in BOTH {
        let mut g = vgic(ver, 2, 32);
        on(&mut g, ver);
        let mut hw = [Hw::new(ver, 4), Hw::new(ver, 4)];
        let aim = |g: &mut Vgics, v, to: u64| match ver {
            Version::V2 => wr(g, v, Region::Gicd, 0x828, 1, 1 << to),
            Version::V3 => wr(g, v, Region::Gicd, 0x6000 + 8 * 40, 8, to),
        };
        assert_eq!(g.pulse(S, V0, 40).kick, 1);
        let _ = g.flush(S, V0, &mut hw[0]);
        g.sync(S, V0, &mut hw[0]);
        assert_eq!(aim(&mut g, V0, 1).kick, 2, "from its own list register");
        let _ = g.flush(S, V0, &mut hw[0]);
        assert_eq!(hw[0].ack(), None);
        let _ = g.flush(S, V1, &mut hw[1]);
        // Another vcpu aims it: it may still be taken where it is, or goes when that leaves.
        let _ = aim(&mut g, V0, 0);
        assert!(hw[1].busy());
        assert_eq!(g.unload(S, V1, &mut hw[1]), 1);
        assert_eq!(g.flush(S, V0, &mut hw[0]), 0);
        assert_eq!(hw[0].ack(), Some((40, 0)));
        // Active: it stays until it ends, then comes from the line at its new target.
        let _ = g.set_level(S, V0, 40, true);
        let _ = g.flush(S, V0, &mut hw[0]);
        g.sync(S, V0, &mut hw[0]);
        let _ = aim(&mut g, V0, 1);
        let _ = g.flush(S, V0, &mut hw[0]);
        hw[0].eoi();
        assert!(hw[0].maintenance());
        g.maintenance(S, V0);
        assert_eq!(g.flush(S, V0, &mut hw[0]), 2);
        assert_eq!(hw[0].ack(), None);
        let _ = g.flush(S, V1, &mut hw[1]);
        assert_eq!(hw[1].ack(), Some((40, 0)));
    }
}

// ---- A model of what a GIC does, against the code with random operations ----

/// One interrupt of the model: a private one of one vcpu, or an SPI.
#[derive(Clone, Default)]
struct Mirq {
    enabled: bool,
    edge: bool,
    latch: bool,
    line: bool,
    prio: u8,
    active: Option<u8>,
    target: u8,
    /// Vcpus that may get it: more than one after it was aimed elsewhere while pending.
    allowed: BTreeSet<u8>,
    senders: BTreeSet<u8>,
    // The physical side of 27 and of the one that is passed through.
    phys_line: bool,
    phys_active: bool,
    phys_enabled: bool,
}

impl Mirq {
    fn pending(&self) -> bool {
        self.latch || self.line && !self.edge
    }
}

const LINKED: u32 = 45;
const NR: u32 = 64;

struct Model {
    ver: Version,
    g: Vgics,
    hw: Vec<Hw>,
    private: Vec<Vec<Mirq>>,
    spi: Vec<Mirq>,
}

#[derive(Clone, Debug)]
enum Op {
    Enable(u8, u32, bool),
    Priority(u8, u32, u8),
    Level(u8, u32, bool),
    Pulse(u8, u32),
    Config(u32, bool),
    Phys(u8, bool, bool),
    Sgi(u8, u8, u32),
    Target(u8, u32, u8),
    Pend(u8, u32, bool),
    Turn(u8, bool),
    Ack(u8),
    Eoi(u8),
    Deactivate(u8, u8),
    Exit(u8),
    Switch(u8),
}

impl Model {
    fn new(ver: Version, vcpus: usize, lrs: usize) -> Self {
        let mut g = vgic(ver, vcpus, NR - 32);
        g.link(S, LINKED).unwrap();
        let private = (0..vcpus)
            .map(|v| {
                (0..32)
                    .map(|i| Mirq {
                        enabled: i < 16,
                        edge: i < 16,
                        target: v as u8,
                        phys_enabled: true,
                        allowed: [v as u8].into(),
                        ..Mirq::default()
                    })
                    .collect()
            })
            .collect();
        let one = Mirq {
            allowed: [0].into(),
            ..Mirq::default()
        };
        let hw = (0..vcpus).map(|_| Hw::new(ver, lrs)).collect();
        Self {
            ver,
            g,
            hw,
            private,
            spi: vec![one; 32],
        }
    }
    fn irq(&mut self, v: u8, irq: u32) -> &mut Mirq {
        if irq < 32 {
            &mut self.private[v as usize][irq as usize]
        } else {
            &mut self.spi[irq as usize - 32]
        }
    }
    fn v2_sgi(&self, irq: u32) -> bool {
        self.ver == Version::V2 && irq < 16
    }
    /// Something is pended: who may get it from here on.
    fn pend(&mut self, v: u8, irq: u32) {
        let m = self.irq(v, irq);
        if !m.pending() {
            m.allowed = [m.target].into();
            m.allowed.extend(m.active);
        }
    }
    fn effects(&mut self, cur: u8, fx: Effects) {
        let p = fx.phys;
        for n in bits(p.enable) {
            self.irq(cur, p.base + n).phys_enabled = true;
        }
        for n in bits(p.disable) {
            self.irq(cur, p.base + n).phys_enabled = false;
        }
        for n in bits(p.deactivate) {
            let m = self.irq(cur, p.base + n);
            assert!(m.phys_active, "deactivated what was not active");
            m.phys_active = false;
        }
        self.kick(fx.kick);
    }
    fn kick(&mut self, vcpus: u64) {
        for v in 0..self.hw.len() {
            if vcpus >> v & 1 != 0 {
                self.flush(v as u8);
            }
        }
    }
    fn flush(&mut self, v: u8) {
        let k = self.g.flush(S, VcpuId(v), &mut self.hw[v as usize]);
        assert_eq!(k >> v & 1, 0);
        self.kick(k);
    }
    /// A register write by vcpu `v`, as the shell does it.
    fn write(&mut self, v: u8, region: Region, off: u64, size: u8, val: u64) {
        self.g.sync(S, VcpuId(v), &mut self.hw[v as usize]);
        let fx = self
            .g
            .mmio_write(S, VcpuId(v), region, off, size, val)
            .unwrap();
        self.effects(v, fx);
        self.flush(v);
    }
    /// Where an interrupt's part of a register is for vcpu `v`.
    fn place(&self, v: u8, irq: u32, off: u64, per_word: u32) -> (Region, u64) {
        let off = off + u64::from(irq / per_word) * 4;
        if self.ver == Version::V3 && irq < 32 {
            (Region::Gicr, u64::from(v) * GICR_STRIDE + 0x1_0000 + off)
        } else {
            (Region::Gicd, off)
        }
    }
    /// Physical interrupts come in, maintenance interrupts are served, until all is quiet.
    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 50, "it never becomes quiet");
            let mut busy = false;
            for v in 0..self.hw.len() as u8 {
                for irq in core::mem::take(&mut self.hw[v as usize].ended) {
                    let m = self.irq(v, irq);
                    assert!(m.phys_active);
                    m.phys_active = false;
                }
                for irq in [27, LINKED] {
                    let m = self.irq(v, irq);
                    if m.phys_line && m.phys_enabled && !m.phys_active {
                        m.phys_active = true;
                        self.pend(v, irq);
                        self.irq(v, irq).latch = true;
                        let fx = self.g.inject_hw(S, VcpuId(v), irq).unwrap();
                        self.effects(v, fx);
                        busy = true;
                    }
                }
                if self.hw[v as usize].maintenance() {
                    self.g.maintenance(S, VcpuId(v));
                    self.flush(v);
                    busy = true;
                }
            }
            if !busy {
                break;
            }
        }
    }
    /// What the model would deliver to `v` now: number, priority, and whether it must.
    fn wanted(&self, v: u8) -> Vec<(u32, u8, bool)> {
        let all = self.private[v as usize].iter().chain(&self.spi).enumerate();
        all.filter(|(_, m)| {
            m.enabled && m.pending() && m.active.is_none() && m.allowed.contains(&v)
        })
        .map(|(i, m)| (i as u32, m.prio, m.allowed.len() == 1))
        .collect()
    }
    fn ack(&mut self, v: u8) -> bool {
        let wanted = self.wanted(v);
        let hw = &mut self.hw[v as usize];
        let running = hw.running_priority();
        // Nowhere to put it.
        let full = hw.all().iter().all(|r| r.hw && r.state == ACTIVE);
        match hw.ack() {
            None => {
                let missed = wanted.iter().find(|w| w.2 && u16::from(w.1) < running);
                assert!(
                    missed.is_none() || full,
                    "lost: {missed:?} on {v}: {:?}",
                    hw.all()
                );
                false
            }
            Some((irq, from)) => {
                let me = wanted.iter().find(|w| w.0 == irq);
                let me = *me.unwrap_or_else(|| panic!("{irq} is not for {v}: {wanted:?}"));
                let better = wanted.iter().find(|w| w.2 && w.1 < me.1);
                assert!(better.is_none() || full, "{better:?} before {me:?}");
                let v2_sgi = self.v2_sgi(irq);
                let m = self.irq(v, irq);
                if v2_sgi {
                    assert!(m.senders.remove(&from), "SGI {irq} twice from {from}");
                    m.latch = !m.senders.is_empty();
                } else {
                    m.latch = false;
                }
                m.active = Some(v);
                m.allowed = [m.target, v].into();
                true
            }
        }
    }
    fn eoi(&mut self, v: u8) -> bool {
        let Some(irq) = self.hw[v as usize].eoi() else {
            return false;
        };
        if !self.hw[v as usize].split {
            self.ended(v, irq);
        }
        true
    }
    /// An interrupt is active no longer.
    fn ended(&mut self, v: u8, irq: u32) {
        let m = self.irq(v, irq);
        assert_eq!(m.active, Some(v));
        m.active = None;
        if !m.pending() {
            m.allowed = [m.target].into();
        }
    }
    /// EOImode 1: the guest deactivates one of those whose priority it has dropped.
    fn deactivate(&mut self, v: u8, which: u8) -> bool {
        let hw = &mut self.hw[v as usize];
        if hw.dropped.is_empty() {
            return false;
        }
        let irq = hw.dropped.remove(which as usize % hw.dropped.len());
        if hw.v3 && hw.control & control::TRAP_DEACTIVATE == 0 {
            hw.end(irq);
            self.ended(v, irq);
            return true;
        }
        self.g.sync(S, VcpuId(v), hw);
        self.ended(v, irq);
        if self.ver == Version::V2 {
            self.write(v, Region::Dir, 0, 4, irq.into());
        } else {
            let fx = self.g.deactivate(S, VcpuId(v), irq);
            self.effects(v, fx);
            self.flush(v);
        }
        true
    }

    fn step(&mut self, op: Op) {
        let n = self.hw.len() as u8;
        match op {
            Op::Enable(v, irq, on) => {
                let v = v % n;
                if self.v2_sgi(irq) {
                    return;
                }
                self.irq(v, irq).enabled = on;
                let (r, off) = self.place(v, irq, if on { 0x100 } else { 0x180 }, 32);
                self.write(v, r, off, 4, 1 << (irq % 32));
            }
            Op::Priority(v, irq, p) => {
                let v = v % n;
                let m = self.irq(v, irq);
                if m.pending() || m.active.is_some() {
                    return; // what is in a list register keeps its priority
                }
                m.prio = p;
                let (r, off) = self.place(v, irq, 0x400, 4);
                self.write(v, r, off + u64::from(irq % 4), 1, p.into());
            }
            Op::Level(v, irq, level) => {
                let v = v % n;
                if !(irq == 30 || irq >= 32 && irq != LINKED) {
                    return;
                }
                self.pend(v, irq);
                let m = self.irq(v, irq);
                m.latch |= m.edge && level && !m.line;
                m.line = level;
                let fx = self.g.set_level(S, VcpuId(v), irq, level);
                self.effects(v, fx);
            }
            Op::Pulse(v, irq) => {
                let v = v % n;
                if irq < 16 || irq == 27 || irq == LINKED {
                    return;
                }
                self.pend(v, irq);
                self.irq(v, irq).latch = true;
                let fx = self.g.pulse(S, VcpuId(v), irq);
                self.effects(v, fx);
            }
            Op::Config(irq, edge) => {
                if irq < 32 || irq == LINKED {
                    return;
                }
                let m = self.irq(0, irq);
                if m.pending() || m.active.is_some() {
                    return;
                }
                m.edge = edge;
                if m.pending() {
                    m.allowed = [m.target].into();
                }
                let mut word = 0;
                for i in 0..16 {
                    word |=
                        u64::from(self.spi[(irq / 16 * 16 - 32 + i) as usize].edge) << (2 * i + 1);
                }
                self.write(0, Region::Gicd, 0xc00 + u64::from(irq / 16) * 4, 4, word);
            }
            Op::Phys(v, timer, level) => {
                self.irq(v % n, if timer { 27 } else { LINKED }).phys_line = level;
            }
            Op::Sgi(v, targets, sgi) => {
                let (v, sgi) = (v % n, sgi % 16);
                for t in 0..n {
                    if targets >> t & 1 != 0 {
                        let m = self.irq(t, sgi);
                        m.latch = true;
                        m.senders.insert(v);
                    }
                }
                if self.ver == Version::V3 {
                    let value = u64::from(sgi) << 24 | u64::from(targets);
                    self.g.sync(S, VcpuId(v), &mut self.hw[v as usize]);
                    let fx = self.g.sgi1r(S, VcpuId(v), value);
                    self.effects(v, fx);
                    self.flush(v);
                } else {
                    let value = u64::from(targets) << 16 | u64::from(sgi);
                    self.write(v, Region::Gicd, 0xf00, 4, value);
                }
            }
            Op::Target(v, irq, t) => {
                let (v, t) = (v % n, t % n);
                if irq < 32 {
                    return;
                }
                let m = self.irq(v, irq);
                m.target = t;
                if m.pending() || m.active.is_some() {
                    m.allowed.insert(t);
                } else {
                    m.allowed = [t].into();
                }
                if self.ver == Version::V3 {
                    self.write(v, Region::Gicd, 0x6000 + 8 * u64::from(irq), 8, t.into());
                } else {
                    self.write(v, Region::Gicd, 0x800 + u64::from(irq), 1, 1 << t);
                }
            }
            Op::Pend(v, irq, set) => {
                let v = v % n;
                let hw = irq == 27 || irq == LINKED;
                let m = self.irq(v, irq);
                // Another vcpu's list registers are out of reach for clearing.
                let elsewhere = m.allowed.iter().any(|&a| a != v);
                if irq < 16 && self.ver == Version::V2 || hw && set || !set && elsewhere {
                    return;
                }
                self.pend(v, irq);
                self.irq(v, irq).latch = set;
                let (r, off) = self.place(v, irq, if set { 0x200 } else { 0x280 }, 32);
                self.write(v, r, off, 4, 1 << (irq % 32));
            }
            Op::Turn(v, on) => {
                let bit = if self.ver == Version::V3 { 2 } else { 1 };
                self.write(v % n, Region::Gicd, 0, 4, if on { bit } else { 0 });
            }
            Op::Ack(v) => {
                self.ack(v % n);
            }
            Op::Eoi(v) => {
                self.eoi(v % n);
            }
            Op::Deactivate(v, which) => {
                self.deactivate(v % n, which);
            }
            Op::Exit(v) => {
                let v = v % n;
                self.g.sync(S, VcpuId(v), &mut self.hw[v as usize]);
                let must = self.wanted(v);
                let says = self.g.deliverable(S, VcpuId(v), u8::MAX);
                assert!(says || !must.iter().any(|w| w.2), "{must:?}");
                assert!(!says || !must.is_empty());
                let (r, off) = self.place(v, 0, 0x200, 32);
                let pending = rd(&mut self.g, VcpuId(v), r, off, 4);
                let active = rd(&mut self.g, VcpuId(v), r, off + 0x100, 4);
                for (i, m) in self.private[v as usize].iter().enumerate() {
                    assert_eq!(pending >> i & 1 != 0, m.pending(), "pending {i}");
                    assert_eq!(active >> i & 1 != 0, m.active.is_some(), "active {i}");
                }
                self.flush(v);
            }
            Op::Switch(v) => {
                let v = v % n;
                let k = self.g.unload(S, VcpuId(v), &mut self.hw[v as usize]);
                let hw = &self.hw[v as usize];
                assert!(!hw.busy() && !hw.maintenance());
                let held = self.g.hw_active(S, VcpuId(v), 27);
                self.kick(k);
                // What the guest ended before counts.
                for irq in core::mem::take(&mut self.hw[v as usize].ended) {
                    self.irq(v, irq).phys_active = false;
                }
                assert_eq!(held, self.irq(v, 27).phys_active);
                self.flush(v);
            }
        }
        self.settle();
    }

    /// Every line goes low, everything is enabled, every guest takes and ends all it gets.
    fn drain(&mut self) {
        let n = self.hw.len() as u8;
        for v in 0..n {
            self.step(Op::Phys(v, true, false));
            self.step(Op::Level(v, 30, false));
            for irq in 0..NR {
                self.step(Op::Enable(v, irq, true));
            }
        }
        self.step(Op::Phys(0, false, false));
        for irq in 32..NR {
            self.step(Op::Level(0, irq, false));
        }
        self.step(Op::Turn(0, true));
        let mut progress = true;
        while progress {
            progress = false;
            for v in 0..n {
                while self.eoi(v) || self.deactivate(v, 0) {
                    progress = true;
                    self.settle();
                }
                while self.ack(v) {
                    progress = true;
                    self.eoi(v);
                    self.settle();
                    self.deactivate(v, 0);
                    self.settle();
                }
                self.step(Op::Exit(v));
            }
        }
        for v in 0..n {
            self.step(Op::Switch(v));
            assert!(
                !self.hw[v as usize].busy(),
                "{:?}",
                self.hw[v as usize].all()
            );
        }
        for m in self.private.iter().flatten().chain(&self.spi) {
            assert!(!m.pending() && m.active.is_none() && !m.phys_active);
        }
    }
}

fn irqs() -> impl Strategy<Value = u32> {
    prop_oneof![
        Just(1u32),
        Just(7),
        Just(27),
        Just(30),
        Just(31),
        32u32..40,
        Just(LINKED)
    ]
}

fn ops() -> impl Strategy<Value = Op> {
    let v = 0u8..4;
    let b = any::<bool>();
    prop_oneof![
        2 => (v.clone(), irqs(), b).prop_map(|(v, i, b)| Op::Enable(v, i, b)),
        1 => (v.clone(), irqs(), 0u8..4).prop_map(|(v, i, p)| Op::Priority(v, i, p << 6)),
        3 => (v.clone(), irqs(), b).prop_map(|(v, i, b)| Op::Level(v, i, b)),
        4 => (v.clone(), irqs()).prop_map(|(v, i)| Op::Pulse(v, i)),
        1 => (irqs(), b).prop_map(|(i, b)| Op::Config(i, b)),
        3 => (v.clone(), b, b).prop_map(|(v, t, b)| Op::Phys(v, t, b)),
        3 => (v.clone(), 0u8..16, irqs()).prop_map(|(v, t, i)| Op::Sgi(v, t, i)),
        2 => (v.clone(), irqs(), v.clone()).prop_map(|(v, i, t)| Op::Target(v, i, t)),
        2 => (v.clone(), irqs(), b).prop_map(|(v, i, b)| Op::Pend(v, i, b)),
        1 => (v.clone(), prop::bool::weighted(0.8)).prop_map(|(v, b)| Op::Turn(v, b)),
        8 => v.clone().prop_map(Op::Ack),
        7 => v.clone().prop_map(Op::Eoi),
        5 => (v.clone(), 0u8..16).prop_map(|(v, w)| Op::Deactivate(v, w)),
        2 => v.clone().prop_map(Op::Exit),
        2 => v.prop_map(Op::Switch),
    ]
}

fn run(v3: bool, split: bool, vcpus: usize, lrs: usize, ops: Vec<Op>) {
    let mut m = Model::new(if v3 { Version::V3 } else { Version::V2 }, vcpus, lrs);
    for hw in &mut m.hw {
        hw.split = split;
    }
    m.step(Op::Turn(0, true));
    for v in 0..vcpus as u8 {
        for irq in [1, 7, 27, 30, 31, 32, 33, 34, 35, 36, LINKED] {
            m.step(Op::Enable(v, irq, true));
        }
    }
    for op in ops {
        m.step(op);
    }
    m.drain();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("PROPTEST_CASES").ok().and_then(|c| c.parse().ok()).unwrap_or(500)
    ))]

    /// One vcpu: every pending, enabled interrupt is delivered, best first, once per edge and
    /// for as long as its line is high.
    #[test]
    fn model_of_one_vcpu(
        v3: bool,
        split: bool,
        lrs in 2usize..5,
        ops in prop::collection::vec(ops(), 1..120),
    ) {
        run(v3, split, 1, lrs, ops);
    }

    /// The same with several that run at once and SPIs that are aimed here and there.
    #[test]
    fn model_of_several_vcpus(
        v3: bool,
        split: bool,
        vcpus in 2usize..5,
        lrs in 2usize..5,
        ops in prop::collection::vec(ops(), 1..160),
    ) {
        run(v3, split, vcpus, lrs, ops);
    }

    /// Whatever a guest writes wherever, between exits and switches: nothing panics, nothing
    /// is in two list registers.
    #[test]
    fn random_registers(
        v3: bool,
        spis in prop::sample::select(vec![0u32, 32, 96, 960]),
        accesses in prop::collection::vec(
            (0u8..4, 0u64..0x1000, any::<bool>(), any::<u64>(), 0u8..18), 1..200),
    ) {
        let ver = if v3 { Version::V3 } else { Version::V2 };
        let mut g = vgic(ver, 4, spis);
        let mut hw: Vec<_> = (0..4).map(|_| Hw::new(ver, 4)).collect();
        on(&mut g, ver);
        for (v, off, redist, value, what) in accesses {
            let (id, h) = (VcpuId(v), &mut hw[v as usize]);
            let region = if redist { Region::Gicr } else { Region::Gicd };
            let off = if redist { 0x1_0000 + (off & 0xfff) + (value & 3) * 0x2_0000 } else { off };
            match what {
                0 => { h.ack(); }
                1 => { let _ = g.unload(S, id, h); h.running.clear(); }
                12 => { h.eoi(); }
                13 => { g.sync(S, id, h); let _ = g.deactivate(S, id, value as u32 % 1100); }
                2 => { let _ = g.inject_hw(S, id, value as u32 % 100); }
                3 => { let _ = g.sgi1r(S, id, value); }
                4 => { let _ = g.set_level(S, id, value as u32 % 1100, value >> 63 != 0); }
                5 => { let _ = g.pulse(S, id, value as u32); }
                _ => {
                    g.sync(S, id, h);
                    let _ = g.mmio_read(S, id, region, off & !3, 4);
                    let _ = g.mmio_write(S, id, region, off & !3, 4, value);
                    let _ = g.flush(S, id, h);
                }
            }
        }
    }
}
