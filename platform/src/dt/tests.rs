// SPDX-License-Identifier: MIT OR Apache-2.0
use super::*;
use proptest::prelude::*;
use std::string::String;
use std::vec::Vec;
use vm_fdt::{FdtReserveEntry, FdtWriter};

/// QEMU's virt machine with `virtualization=on`, as its own tree has it.
fn virt(gic: u32, cpus: u32, spoil: &str) -> Vec<u8> {
    virt_with(gic, cpus, spoil, &[])
}

fn virt_with(gic: u32, cpus: u32, spoil: &str, no_map: &[(&str, &[u64])]) -> Vec<u8> {
    let mut f =
        FdtWriter::new_with_mem_reserv(&[FdtReserveEntry::new(0x4800_0000, 0x1000).unwrap()])
            .unwrap();
    let root = f.begin_node("").unwrap();
    f.property_string("compatible", "linux,dummy-virt").unwrap();
    f.property_string("model", "linux,dummy-virt").unwrap();
    f.property_u32("#address-cells", 2).unwrap();
    f.property_u32("#size-cells", 2).unwrap();
    let n = f.begin_node("psci").unwrap();
    f.property_string("method", "smc").unwrap();
    f.property("compatible", b"arm,psci-1.0\0arm,psci\0")
        .unwrap();
    f.end_node(n).unwrap();
    if spoil != "memory" {
        for (base, size) in [
            (0x1_0000_0000u64, 0x4000_0000u64),
            (0x4000_0000, 0x8000_0000),
        ] {
            let n = f.begin_node(&format!("memory@{base:x}")).unwrap();
            f.property_string("device_type", "memory").unwrap();
            f.property_array_u64("reg", &[base, size]).unwrap();
            f.end_node(n).unwrap();
        }
    }
    let n = f.begin_node("reserved-memory").unwrap();
    f.property_u32("#address-cells", 2).unwrap();
    f.property_u32("#size-cells", 2).unwrap();
    f.property_null("ranges").unwrap();
    let c = f.begin_node("tee@50000000").unwrap();
    f.property_array_u64("reg", &[0x5000_0000, 0x10_0000])
        .unwrap();
    f.end_node(c).unwrap();
    for (name, reg) in no_map {
        let c = f.begin_node(name).unwrap();
        f.property_array_u64("reg", reg).unwrap();
        f.property_null("no-map").unwrap();
        f.property_string("status", "disabled").unwrap();
        f.end_node(c).unwrap();
    }
    f.end_node(n).unwrap();
    for (i, base) in [0xa00_0200u64, 0xa00_0000].into_iter().enumerate() {
        let n = f.begin_node(&format!("virtio_mmio@{base:x}")).unwrap();
        f.property_string("compatible", "virtio,mmio").unwrap();
        f.property_array_u32("interrupts", &[0, 0x11 - i as u32, 1])
            .unwrap();
        f.property_array_u64("reg", &[base, 0x200]).unwrap();
        f.end_node(n).unwrap();
    }
    let n = f.begin_node("pl031@9010000").unwrap();
    f.property("compatible", b"arm,pl031\0arm,primecell\0")
        .unwrap();
    f.property_array_u32("interrupts", &[0, 2, 4]).unwrap();
    f.property_array_u64("reg", &[0x901_0000, 0x1000]).unwrap();
    f.end_node(n).unwrap();
    for (base, irq) in [(0x904_0000u64, 8), (0x900_0000, 1)] {
        let n = f.begin_node(&format!("pl011@{base:x}")).unwrap();
        f.property("compatible", b"arm,pl011\0arm,primecell\0")
            .unwrap();
        f.property_array_u32("interrupts", &[0, irq, 4]).unwrap();
        f.property_array_u64("reg", &[base, 0x1000]).unwrap();
        f.end_node(n).unwrap();
    }
    if spoil != "gic" {
        let n = f.begin_node("intc@8000000").unwrap();
        if spoil != "gic-virt" {
            f.property_array_u32("interrupts", &[1, 9, 4]).unwrap();
        }
        if gic == 2 {
            f.property_string("compatible", "arm,cortex-a15-gic")
                .unwrap();
            let mut reg = vec![0x800_0000u64, 0x1_0000, 0x801_0000, 0x1_0000];
            if spoil != "gic-virt" {
                reg.extend([0x803_0000, 0x1_0000, 0x804_0000, 0x1_0000]);
            }
            f.property_array_u64("reg", &reg).unwrap();
        } else {
            f.property_string("compatible", "arm,gic-v3").unwrap();
            f.property_u32("#redistributor-regions", 1).unwrap();
            f.property_array_u64("reg", &[0x800_0000, 0x1_0000, 0x80a_0000, 0xf6_0000])
                .unwrap();
        }
        f.end_node(n).unwrap();
    }
    let n = f.begin_node("cpus").unwrap();
    f.property_u32("#address-cells", 1).unwrap();
    f.property_u32("#size-cells", 0).unwrap();
    for i in 0..cpus {
        let c = f.begin_node(&format!("cpu@{i}")).unwrap();
        f.property_string("device_type", "cpu").unwrap();
        f.property_string("enable-method", "psci").unwrap();
        f.property_u32("reg", i).unwrap();
        f.end_node(c).unwrap();
    }
    f.end_node(n).unwrap();
    if spoil != "timer" {
        let n = f.begin_node("timer").unwrap();
        f.property("compatible", b"arm,armv8-timer\0arm,armv7-timer\0")
            .unwrap();
        f.property_array_u32("interrupts", &[1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4])
            .unwrap();
        f.end_node(n).unwrap();
    }
    let n = f.begin_node("aliases").unwrap();
    f.property_string("serial0", "/pl011@9000000").unwrap();
    f.end_node(n).unwrap();
    let n = f.begin_node("chosen").unwrap();
    f.property("rng-seed", &[9; 70]).unwrap();
    f.property_string("bootargs", "console=uart loglevel=debug")
        .unwrap();
    f.property_string("stdout-path", "serial0:115200n8")
        .unwrap();
    f.property_u32("linux,initrd-start", 0x4400_0000).unwrap();
    f.property_u64("linux,initrd-end", 0x4412_3456).unwrap();
    f.end_node(n).unwrap();
    f.end_node(root).unwrap();
    f.finish().unwrap()
}

#[test]
fn no_map_is_kept_apart() {
    let pairs = |rs: &[Range]| rs.iter().map(|r| (r.base, r.size)).collect::<Vec<_>>();
    fn parse(no_map: &[(&str, &[u64])]) -> Result<Machine, DtError> {
        Machine::parse(&mut virt_with(2, 1, "", no_map))
    }
    // Two in one node, none, one that no CPU can address the end of.
    let m = parse(&[
        (
            "secure@60000800",
            &[0x6000_0800, 0x1001, 0x7000_0000, 0x1000],
        ),
        ("later", &[0, 0]),
        ("end", &[!0xfff, 0x1000]),
    ])
    .unwrap();
    let no_map = [
        (0x6000_0800, 0x1001),
        (0x7000_0000, 0x1000),
        (!0xfff, 0x1000),
    ];
    assert_eq!(pairs(&m.no_map), no_map);
    assert_eq!(
        pairs(&m.reserved)[..2],
        [(0x4800_0000, 0x1000), (0x5000_0000, 0x10_0000)]
    );
    assert_eq!(pairs(&m.reserved)[2..], no_map);
    // Within the same page as a register is over it.
    for at in [0x900_0000, 0x800_0fff, 0x805_0000 - 1, 0x901_0000] {
        assert_eq!(
            parse(&[("x", &[at, 1])]).unwrap_err(),
            DtError::NoMapOverRegisters,
            "{at:#x}"
        );
    }
    assert!(parse(&[("x", &[0x902_0000, 1])]).is_ok());
    let many: Vec<[u64; 2]> = (0..MAX_RESERVED as u64)
        .map(|i| [0x6000_0000 + i * 0x1000, 0x800])
        .collect();
    let many: Vec<(&str, &[u64])> = many.iter().map(|r| ("x", &r[..])).collect();
    assert_eq!(
        parse(&many).unwrap_err(),
        DtError::TooMany("reserved regions")
    );
}

#[test]
fn reads_virt_with_gic_v2() {
    let dtb = virt(2, 2, "");
    let m = Machine::parse(&mut dtb.clone()).unwrap();
    assert_eq!(m.board.name, "QEMU virt");
    assert_eq!(m.model.as_str(), "linux,dummy-virt");
    let banks: Vec<_> = m.memory.iter().map(|r| (r.base, r.size)).collect();
    assert_eq!(
        banks,
        [(0x4000_0000, 0x8000_0000), (0x1_0000_0000, 0x4000_0000)]
    );
    let reserved: Vec<_> = m.reserved.iter().map(|r| (r.base, r.size)).collect();
    assert_eq!(reserved, [(0x4800_0000, 0x1000), (0x5000_0000, 0x10_0000)]);
    let cpus: Vec<_> = m.cpus.iter().map(|c| (c.mpidr, c.start)).collect();
    assert_eq!(cpus, [(0, CpuStart::Psci), (1, CpuStart::Psci)]);
    assert_eq!(m.psci, Some(Conduit::Smc));
    let r = |base| Range {
        base,
        size: 0x1_0000,
    };
    assert_eq!(
        m.gic,
        GicInfo::V2 {
            gicd: r(0x800_0000),
            gicc: r(0x801_0000),
            gich: r(0x803_0000),
            gicv: r(0x804_0000),
            maintenance: 25,
        }
    );
    let u = m.uart.unwrap();
    assert_eq!(
        (u.regs.base, u.irq),
        (
            0x900_0000,
            Some(Irq {
                intid: 33,
                edge: false
            })
        )
    );
    let t = m.timer;
    assert_eq!(
        (t.secure, t.physical, t.virt, t.hyp, t.frequency),
        (29, 30, 27, 26, None)
    );
    assert_eq!(m.bootargs.as_str(), "console=uart loglevel=debug");
    assert_eq!(m.seed.as_slice(), [9; MAX_SEED]);
    assert_eq!(
        m.initrd,
        Some(Range {
            base: 0x4400_0000,
            size: 0x12_3456
        })
    );
    assert!(m.devices.iter().all(|d| d.kind == "virtio,mmio"));
    let v: Vec<_> = m
        .devices
        .iter()
        .map(|d| (d.regs.base, d.irq.unwrap()))
        .collect();
    let edge = |intid| Irq { intid, edge: true };
    assert_eq!(v, [(0xa00_0000, edge(48)), (0xa00_0200, edge(49))]);
    assert_eq!(m.rtc.unwrap().base, 0x901_0000);
    assert_eq!(m.dtb_size, dtb.len());
}

#[test]
fn reads_virt_with_gic_v3_and_pads() {
    let mut dtb = virt(3, 11, "");
    dtb.resize(dtb.len() + 100, 0xee);
    let m = Machine::parse(&mut dtb.clone()).unwrap();
    let GicInfo::V3 {
        gicd,
        gicr,
        stride,
        maintenance,
    } = m.gic
    else {
        panic!("not v3")
    };
    assert_eq!(
        (gicd.base, gicr.len(), stride, maintenance),
        (0x800_0000, 1, None, 25)
    );
    assert_eq!(
        gicr[0],
        Range {
            base: 0x80a_0000,
            size: 0xf6_0000
        }
    );
    assert_eq!((m.cpus.len(), m.cpus_left_out), (8, 3));
    assert_eq!(m.dtb_size, dtb.len() - 100);
}

#[test]
fn says_what_is_missing() {
    let err = |gic, cpus, spoil| Machine::parse(&mut virt(gic, cpus, spoil)).unwrap_err();
    assert_eq!(err(2, 1, "memory"), DtError::NoMemory);
    assert_eq!(err(2, 0, ""), DtError::NoCpus);
    assert_eq!(err(2, 1, "gic"), DtError::NoGic);
    assert_eq!(err(2, 1, "gic-virt"), DtError::NoGicVirtualInterface);
    assert_eq!(err(3, 1, "gic-virt"), DtError::NoGicVirtualInterface);
    assert_eq!(err(3, 1, "timer"), DtError::NoTimer);
    assert_eq!(Machine::parse(&mut []).unwrap_err(), DtError::NoDeviceTree);
    assert_eq!(
        Machine::parse(&mut [0; 64]).unwrap_err(),
        DtError::NoDeviceTree
    );
    let mut good = virt(2, 1, "");
    let short = good.len() - 1;
    assert_eq!(
        Machine::parse(&mut good[..short]).unwrap_err(),
        DtError::TooLarge
    );
    assert_eq!(
        size_of_tree([0xd0, 0x0d, 0xfe, 0xed, 0, 0x20, 0, 1]),
        Err(DtError::TooLarge)
    );
    let said: String = format!("{}", DtError::NoGicVirtualInterface);
    assert!(said.contains("virtualization=on"));
}

/// The shape of a Raspberry Pi 4's: devices behind `/soc` with `ranges`, CPUs in a spin table.
fn pi4(stdout: Option<&str>) -> Vec<u8> {
    let mut f = FdtWriter::new().unwrap();
    let root = f.begin_node("").unwrap();
    f.property("compatible", b"raspberrypi,4-model-b\0brcm,bcm2711\0")
        .unwrap();
    f.property_u32("#address-cells", 2).unwrap();
    f.property_u32("#size-cells", 1).unwrap();
    let n = f.begin_node("memory@0").unwrap();
    f.property_string("device_type", "memory").unwrap();
    f.property_array_u32("reg", &[0, 0, 0x3b40_0000, 0, 0x4000_0000, 0xbc00_0000])
        .unwrap();
    f.end_node(n).unwrap();
    let soc = f.begin_node("soc").unwrap();
    f.property_string("compatible", "simple-bus").unwrap();
    f.property_u32("#address-cells", 1).unwrap();
    f.property_u32("#size-cells", 1).unwrap();
    f.property_array_u32(
        "ranges",
        &[
            0x7e00_0000,
            0,
            0xfe00_0000,
            0x180_0000,
            0x4000_0000,
            0,
            0xff80_0000,
            0x80_0000,
        ],
    )
    .unwrap();
    let n = f.begin_node("serial@7e201000").unwrap();
    f.property("compatible", b"arm,pl011\0arm,primecell\0")
        .unwrap();
    f.property_array_u32("reg", &[0x7e20_1000, 0x200]).unwrap();
    f.property_array_u32("interrupts", &[0, 121, 4]).unwrap();
    f.end_node(n).unwrap();
    let n = f.begin_node("serial@7e215040").unwrap();
    f.property_string("compatible", "brcm,bcm2835-aux-uart")
        .unwrap();
    f.property_array_u32("reg", &[0x7e21_5040, 0x40]).unwrap();
    f.property_array_u32("interrupts", &[0, 93, 4]).unwrap();
    f.end_node(n).unwrap();
    let n = f.begin_node("mmc@7e300000").unwrap();
    f.property_string("compatible", "brcm,bcm2835-sdhci")
        .unwrap();
    f.property_array_u32("reg", &[0x7e30_0000, 0x100]).unwrap();
    f.property_array_u32("interrupts", &[0, 126, 4]).unwrap();
    f.end_node(n).unwrap();
    let n = f.begin_node("watchdog@7e100000").unwrap();
    f.property("compatible", b"brcm,bcm2711-pm\0brcm,bcm2835-pm-wdt\0")
        .unwrap();
    f.property_array_u32("reg", &[0x7e10_0000, 0x114, 0x7e00_a000, 0x24])
        .unwrap();
    f.end_node(n).unwrap();
    let n = f.begin_node("serial@7e201400").unwrap();
    f.property("compatible", b"arm,pl011\0arm,primecell\0")
        .unwrap();
    f.property_array_u32("reg", &[0x7e20_1400, 0x200]).unwrap();
    f.property_string("status", "disabled").unwrap();
    f.end_node(n).unwrap();
    let n = f.begin_node("interrupt-controller@40041000").unwrap();
    f.property_string("compatible", "arm,gic-400").unwrap();
    f.property_array_u32(
        "reg",
        &[
            0x4004_1000,
            0x1000,
            0x4004_2000,
            0x2000,
            0x4004_4000,
            0x2000,
            0x4004_6000,
            0x2000,
        ],
    )
    .unwrap();
    f.property_array_u32("interrupts", &[1, 9, 0xf04]).unwrap();
    f.end_node(n).unwrap();
    f.end_node(soc).unwrap();
    let n = f.begin_node("cpus").unwrap();
    f.property_u32("#address-cells", 1).unwrap();
    f.property_u32("#size-cells", 0).unwrap();
    for i in 0..4u32 {
        let c = f.begin_node(&format!("cpu@{i}")).unwrap();
        f.property_string("device_type", "cpu").unwrap();
        f.property_string("enable-method", "spin-table").unwrap();
        f.property_u64("cpu-release-addr", 0xd8 + 8 * u64::from(i))
            .unwrap();
        f.property_u32("reg", i).unwrap();
        f.end_node(c).unwrap();
    }
    f.end_node(n).unwrap();
    let n = f.begin_node("timer").unwrap();
    f.property_string("compatible", "arm,armv8-timer").unwrap();
    f.property_array_u32(
        "interrupts",
        &[1, 13, 0xf08, 1, 14, 0xf08, 1, 11, 0xf08, 1, 10, 0xf08],
    )
    .unwrap();
    f.end_node(n).unwrap();
    if let Some(path) = stdout {
        let n = f.begin_node("chosen").unwrap();
        f.property_string("stdout-path", path).unwrap();
        f.end_node(n).unwrap();
    }
    f.end_node(root).unwrap();
    f.finish().unwrap()
}

#[test]
fn reads_a_pi_4_like_tree() {
    let m = Machine::parse(&mut pi4(None)).unwrap();
    assert_eq!(m.board.name, "Raspberry Pi 4");
    assert_eq!(
        m.reserved[0],
        Range {
            base: 0,
            size: 0x1000
        }
    );
    let level = |intid| Some(Irq { intid, edge: false });
    let uart = |path| {
        let m = Machine::parse(&mut pi4(path)).unwrap();
        m.uart.map(|u| (u.kind, u.regs.base, u.irq))
    };
    let mini = Some((UartKind::MiniUart, 0xfe21_5040, level(125)));
    assert_eq!(uart(None), mini);
    assert_eq!(uart(Some("/soc/serial@7e215040")), mini);
    let pl011 = Some((UartKind::Pl011, 0xfe20_1000, level(153)));
    assert_eq!(uart(Some("/soc/serial@7e201000:115200n8")), pl011);
    let devices: Vec<_> = m.devices.iter().map(|d| (d.kind, d.regs.base)).collect();
    assert_eq!(devices, [("brcm,bcm2835-sdhci", 0xfe30_0000)]);
    assert_eq!(m.pm.unwrap().base, 0xfe10_0000);
    assert_eq!(
        m.cpus[3],
        Cpu {
            mpidr: 3,
            start: CpuStart::SpinTable { release: 0xf0 }
        }
    );
    assert_eq!(m.psci, None);
    assert_eq!(
        m.memory[1],
        Range {
            base: 0x4000_0000,
            size: 0xbc00_0000
        }
    );
    let GicInfo::V2 {
        gicd,
        gicv,
        maintenance,
        ..
    } = m.gic
    else {
        panic!("not v2")
    };
    assert_eq!(
        (gicd.base, gicv.base, maintenance),
        (0xff84_1000, 0xff84_6000, 25)
    );
}

/// As libfdt strikes a node out: each of its words becomes a NOP.
#[test]
fn nodes_struck_out_are_gone() {
    let mut dtb = virt(2, 2, "");
    let word = |dtb: &[u8], at: usize| be32(dtb, at).unwrap();
    let begins: Vec<usize> = (0..dtb.len() - 16)
        .step_by(4)
        .filter(|&at| word(&dtb, at) == BEGIN_NODE && dtb[at + 4..].starts_with(b"virtio_mmio@"))
        .collect();
    assert_eq!(begins.len(), 2);
    let mut at = begins[0];
    // None of its properties has a word that looks like an end.
    while word(&dtb, at) != END_NODE {
        dtb[at..at + 4].copy_from_slice(&NOP.to_be_bytes());
        at += 4;
    }
    dtb[at..at + 4].copy_from_slice(&NOP.to_be_bytes());
    let m = Machine::parse(&mut dtb).unwrap();
    let left: Vec<_> = m.devices.iter().map(|d| d.regs.base).collect();
    assert_eq!(left, [0xa00_0000]);
    assert_eq!((m.cpus.len(), m.bootargs.len()), (2, 27));
    // Once read, there are none left.
    let again = Machine::parse(&mut dtb).unwrap();
    assert_eq!(again.devices, m.devices);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]
    /// A damaged tree is read or refused, but breaks nothing.
    #[test]
    fn damage_never_panics(
        gic in 2u32..4,
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        use std::sync::LazyLock;
        static TREES: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| [virt(2, 2, ""), virt(3, 2, "")]);
        let mut dtb = TREES[gic as usize - 2].clone();
        for (at, v) in hits {
            let i = at.index(dtb.len());
            dtb[i] = v;
        }
        if let Some(at) = cut {
            let n = at.index(dtb.len());
            dtb.truncate(n);
        }
        let _ = Machine::parse(&mut dtb.clone());
    }
}
