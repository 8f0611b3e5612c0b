// SPDX-License-Identifier: MIT OR Apache-2.0
//! The drivers against buffers for registers: what they write where.
use super::*;
use std::vec;
use std::vec::Vec;

fn range(size: u64) -> Range {
    Range { base: 0, size }
}

struct V2 {
    gicd: Vec<u32>,
    gicc: Vec<u32>,
    gich: Vec<u32>,
}

fn v2() -> (V2, Gic) {
    v2_of(0x0200_143b)
}

fn v2_of(iidr: u32) -> (V2, Gic) {
    let mut r = V2 {
        gicd: vec![0; 0x400],
        gicc: vec![0; 0x800],
        gich: vec![0; 0x80],
    };
    r.gicd[reg::TYPER / 4] = 2; // 96 interrupts
    r.gicd[reg::IIDR / 4] = iidr;
    r.gicd[reg::ITARGETSR / 4] = 0x0404_0404; // we are the GIC's CPU 2
    r.gich[1] = 3; // 4 list registers
    let blocks = [&mut r.gicd, &mut r.gicc, &mut r.gich].map(|b| b.as_mut_ptr() as usize);
    let mut blocks = blocks.into_iter();
    let info = GicInfo::V2 {
        gicd: range(0x1000),
        gicc: range(0x2000),
        gich: range(0x200),
        gicv: range(0x2000),
        maintenance: 25,
    };
    // SAFETY: the buffers live as long as the driver in each test.
    let gic = unsafe { Gic::new(&info, |_| blocks.next().unwrap()) }.unwrap();
    (r, gic)
}

#[test]
fn v2_comes_up() {
    let (r, gic) = v2();
    gic.init_dist();
    gic.init_cpu(1).unwrap();
    assert_eq!((gic.version(), gic.nr_irqs(), gic.nr_lrs()), (2, 96, 4));
    assert_eq!(r.gicd[reg::CTLR / 4], 1);
    assert_eq!(r.gicd[reg::ITARGETSR / 4 + 8], 0x0404_0404);
    assert_eq!(r.gicd[reg::IPRIORITYR / 4 + 23], 0xa0a0_a0a0);
    assert_eq!(
        r.gicd[reg::IPRIORITYR / 4 + 24],
        0,
        "beyond the last interrupt"
    );
    assert_eq!(r.gicd[reg::ISENABLER / 4], 0xffff);
    assert_eq!(r.gicc[0], 0x201, "enabled, EOImode 1");
    assert_eq!(r.gicc[1], 0xff);
    assert_eq!(r.gich[0], 0);
    assert_eq!(gic.init_cpu(MAX_CPUS), Err(GicError::TooManyCpus));
}

#[test]
fn v2_registers_of_one_interrupt() {
    let (mut r, gic) = v2();
    gic.init_cpu(1).unwrap();
    gic.enable(33);
    assert_eq!(r.gicd[reg::ISENABLER / 4 + 1], 2);
    gic.disable(70);
    assert_eq!(r.gicd[reg::ICENABLER / 4 + 2], 1 << 6);
    gic.set_active(27, true);
    assert_eq!(r.gicd[reg::ISACTIVER / 4], 1 << 27);
    gic.set_active(27, false);
    assert_eq!(r.gicd[reg::ICACTIVER / 4], 1 << 27);
    gic.set_edge(34, true);
    assert_eq!(r.gicd[reg::ICFGR / 4 + 2], 2 << 4);
    gic.set_edge(34, false);
    assert_eq!(r.gicd[reg::ICFGR / 4 + 2], 0);
    gic.set_target(33, 1);
    assert_eq!(r.gicd[reg::ITARGETSR / 4 + 8], 0x0400);
    gic.set_target(33, 0); // never came up
    assert_eq!(r.gicd[reg::ITARGETSR / 4 + 8], 0x0400);
    gic.send_sgi(3, 1);
    assert_eq!(r.gicd[reg::SGIR / 4], 0x0004_0003);
    gic.enable(96); // does not exist
    assert_eq!(r.gicd[reg::ISENABLER / 4 + 3], 0);
    r.gicc[3] = 2 << 10 | 5; // an SGI from CPU 2
    let ack = gic.ack();
    assert_eq!(ack.intid(), 5);
    gic.eoi(ack);
    gic.deactivate(ack);
    assert_eq!((r.gicc[4], r.gicc[0x400]), (2 << 10 | 5, 2 << 10 | 5));
}

#[test]
fn v2_virtual_interface_moves() {
    let (mut r, gic) = v2();
    gic.init_cpu(0).unwrap();
    gic.write_lr(2, 0x9000_001b);
    assert_eq!(r.gich[0x40 + 2], 0x9000_001b);
    assert_eq!(gic.read_lr(2), 0x9000_001b);
    r.gich[2] = 0x1234;
    r.gich[0x3c] = 0x55;
    r.gich[0xc] = 0b1011;
    assert_eq!(gic.elrsr(), 0b1011);
    let mut s = VgicCpuIf::new();
    gic.save_vif(&mut s);
    assert_eq!((s.hcr, s.vmcr, s.apr[0][0]), (HCR_EN, 0x1234, 0x55));
    assert_eq!(r.gich[0], 0, "off while nobody runs");
    gic.restore_vif(&VgicCpuIf::new());
    assert_eq!((r.gich[0], r.gich[2], r.gich[0x3c]), (HCR_EN, 0, 0));
    gic.set_hcr(HCR_EN | 1 << 1);
    assert_eq!(r.gich[0], 3);
    r.gich[0] |= 5 << 27;
    assert_eq!(gic.take_ends(), 5);
    assert_eq!((r.gich[0], gic.take_ends()), (3, 0));
    // The end of a priority is none where ending traps.
    r.gich[0] |= 5 << 27;
    r.gich[2] = 1 << 9;
    assert_eq!((gic.take_ends(), r.gich[0]), (0, 3));
}

#[test]
fn qemus_v2_is_made_to_look() {
    for (iidr, written) in [(0x0200_143b, 0), (0x43b, 0xff)] {
        let (mut r, gic) = v2_of(iidr);
        gic.init_cpu(0).unwrap();
        r.gicc[1] = 0;
        gic.save_vif(&mut VgicCpuIf::new());
        assert_eq!((r.gicc[1], gic.overlooks()), (written, written != 0));
    }
}

#[test]
fn v2_blocks_that_are_too_small_are_refused() {
    let info = GicInfo::V2 {
        gicd: range(0x1000),
        gicc: range(0x1000), // no room for GICC_DIR
        gich: range(0x200),
        gicv: range(0x1000),
        maintenance: 25,
    };
    // SAFETY: nothing is mapped, and nothing may be touched.
    let r = unsafe { Gic::new(&info, |_| panic!("mapped")) };
    assert_eq!(r.err(), Some(GicError::TooSmall));
}

#[test]
fn v3_finds_its_redistributor_and_comes_up() {
    let mut gicd = vec![0u64; 0x2000];
    // Two frames; the host's affinity reads as 0, which the second has.
    let mut gicr = vec![0u64; 0x8000];
    gicr[1] = 1 << 32;
    let frame = 0x2_0000 / 8;
    gicr[frame + 1] = GICR_LAST;
    const GICR_LAST: u64 = 1 << 4;
    gicd[0] = 2 << 32; // TYPER: 96 interrupts
    let info = GicInfo::V3 {
        gicd: range(0x1_0000),
        gicr: [range(0x4_0000)].into_iter().collect(),
        stride: None,
        maintenance: 25,
    };
    let mut blocks = [gicd.as_mut_ptr() as usize, gicr.as_mut_ptr() as usize].into_iter();
    // SAFETY: the buffers live as long as the driver.
    let gic = unsafe { Gic::new(&info, |_| blocks.next().unwrap()) }.unwrap();
    gic.init_dist();
    gic.init_cpu(0).unwrap();
    assert_eq!((gic.version(), gic.nr_irqs()), (3, 96));
    assert_eq!(gicd[0] as u32, 0b1_0011);
    gic.enable(27);
    gic.enable(40);
    let sgi_frame = frame + 0x1_0000 / 8;
    assert_eq!(gicr[sgi_frame + 0x100 / 8] as u32, 1 << 27);
    assert_eq!((gicd[0x100 / 8] >> 32) as u32, 1 << 8);
    gic.set_edge(27, true);
    assert_eq!((gicr[sgi_frame + 0xc00 / 8] >> 32) as u32, 2 << 22);

    gicr[frame + 1] = GICR_LAST | 7 << 32;
    assert_eq!(gic.init_cpu(1), Err(GicError::NoRedistributor));
}

/// The guest's priority mask, its group's enable, and what is active.
#[test]
fn v2_threshold_of_the_virtual_interface() {
    let (mut r, gic) = v2();
    gic.init_cpu(1).unwrap();
    for (vmcr, apr, below) in [
        (0, 0, 0),
        (0xf800_0000, 0, 0),
        (0xf800_0001, 0, 0xf8),
        (0x8000_0001, 0, 0x80),
        (0xf800_0001, 1 << 20, 0xa0),
        (0x8000_0001, 1 << 20 | 1 << 31, 0x80),
        (0xf800_0001, 1, 0),
    ] {
        r.gich[2] = vmcr;
        r.gich[0xf0 / 4] = apr;
        assert_eq!(gic.threshold(), below, "{vmcr:#x} {apr:#x}");
    }
}
