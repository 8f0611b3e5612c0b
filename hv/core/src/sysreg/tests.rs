// SPDX-License-Identifier: MIT OR Apache-2.0
use super::*;

/// A CPU that claims everything.
fn boastful() -> IdRegs {
    IdRegs::read(|_, _| u64::MAX)
}

fn acc(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8, read: bool) -> SysAccess {
    SysAccess {
        op0,
        op1,
        crn,
        crm,
        op2,
        rt: 0,
        read,
    }
}

fn iss(a: &SysAccess) -> u32 {
    u32::from(a.op0) << 20
        | u32::from(a.op2) << 17
        | u32::from(a.op1) << 14
        | u32::from(a.crn) << 10
        | u32::from(a.rt) << 5
        | u32::from(a.crm) << 1
        | u32::from(a.read)
}

/// Every register access that a stock Linux 6.1 guest on Xen 4.17 was seen to trap with:
/// op0, op1, CRn, CRm, op2.
const LINUX_WRITES: [(u8, u8, u8, u8, u8); 28] = [
    (2, 0, 0, 2, 2),
    (3, 3, 9, 14, 0),
    (2, 0, 1, 3, 4),
    (2, 0, 1, 0, 4),
    (2, 0, 0, 0, 5),
    (2, 0, 0, 0, 4),
    (2, 0, 0, 1, 5),
    (2, 0, 0, 1, 4),
    (2, 0, 0, 2, 5),
    (2, 0, 0, 2, 4),
    (2, 0, 0, 3, 5),
    (2, 0, 0, 3, 4),
    (2, 0, 0, 4, 5),
    (2, 0, 0, 4, 4),
    (2, 0, 0, 5, 5),
    (2, 0, 0, 5, 4),
    (2, 0, 0, 0, 7),
    (2, 0, 0, 0, 6),
    (2, 0, 0, 1, 7),
    (2, 0, 0, 1, 6),
    (2, 0, 0, 2, 7),
    (2, 0, 0, 2, 6),
    (2, 0, 0, 3, 7),
    (2, 0, 0, 3, 6),
    // Of a second vcpu, and of other kernels.
    (2, 0, 0, 15, 7),
    (3, 3, 9, 12, 0),
    (3, 0, 9, 14, 2),
    (3, 0, 1, 0, 1),
];

/// Identification registers, by CRm and op2.
const LINUX_READS: [(u8, u8); 38] = [
    (5, 0),
    (4, 0),
    (7, 0),
    (7, 1),
    (6, 0),
    (7, 2),
    (5, 1),
    (6, 1),
    (6, 2),
    (4, 1),
    (4, 4),
    (4, 5),
    (1, 2),
    (3, 5),
    (2, 0),
    (2, 1),
    (2, 2),
    (2, 3),
    (2, 4),
    (2, 5),
    (2, 7),
    (1, 4),
    (1, 5),
    (1, 6),
    (1, 7),
    (2, 6),
    (3, 6),
    (1, 0),
    (1, 1),
    (3, 4),
    (3, 0),
    (3, 1),
    (3, 2),
    // Linux 6.12.
    (7, 3),
    (7, 4),
    (6, 3),
    (4, 2),
    (4, 7),
];

#[test]
fn what_a_linux_guest_was_seen_to_access() {
    let ids = boastful().sanitised(false, 40);
    for (op0, op1, crn, crm, op2) in LINUX_WRITES {
        let a = acc(op0, op1, crn, crm, op2, false);
        assert_eq!(decode(&a, false, &ids), Emul::Ignore, "{a:?}");
    }
    for (crm, op2) in LINUX_READS {
        let a = acc(3, 0, 0, crm, op2, true);
        assert_eq!(
            decode(&a, false, &ids),
            Emul::Value(ids.get(crm, op2)),
            "{a:?}"
        );
        assert_eq!(decode(&a, true, &ids), Emul::Undef);
        assert_eq!(
            decode(&acc(3, 0, 0, crm, op2, false), false, &ids),
            Emul::Undef
        );
    }
}

#[test]
fn registers_that_act() {
    let ids = boastful().sanitised(true, 40);
    let at =
        |k: (u8, u8, u8, u8, u8), read, el0| decode(&acc(k.0, k.1, k.2, k.3, k.4, read), el0, &ids);
    for (k, reg) in [
        ((3, 3, 14, 2, 0), TimerReg::Tval),
        ((3, 3, 14, 2, 1), TimerReg::Ctl),
        ((3, 3, 14, 2, 2), TimerReg::Cval),
    ] {
        for (read, el0) in [(true, true), (true, false), (false, true), (false, false)] {
            assert_eq!(at(k, read, el0), Emul::Timer(reg));
        }
    }
    assert_eq!(
        at((3, 3, 14, 0, 1), true, true),
        Emul::Timer(TimerReg::Count)
    );
    assert_eq!(at((3, 3, 14, 0, 1), false, false), Emul::Undef);
    for (k, reg) in [
        ((3, 0, 12, 11, 5), SgiReg::Sgi1r),
        ((3, 0, 12, 11, 6), SgiReg::Asgi1r),
        ((3, 0, 12, 11, 7), SgiReg::Sgi0r),
    ] {
        assert_eq!(at(k, false, false), Emul::Sgi(reg));
        assert_eq!(at(k, true, false), Emul::Undef);
        assert_eq!(at(k, false, true), Emul::Undef);
    }
    for crm in [6, 10, 14] {
        assert_eq!(at((1, 0, 7, crm, 2), false, false), Emul::SetWay);
        assert_eq!(at((1, 0, 7, crm, 2), true, false), Emul::Undef);
    }
    assert_eq!(at((3, 0, 1, 0, 0), false, false), Emul::Vm(VmReg::Sctlr));
    assert_eq!(at((3, 0, 1, 0, 0), true, false), Emul::Undef);
    assert_eq!(at((3, 0, 12, 12, 5), true, false), Emul::Value(7));
    assert_eq!(at((2, 0, 1, 1, 4), true, false), Emul::Value(8));
    assert_eq!(at((2, 0, 1, 1, 4), false, false), Emul::Undef);
    assert_eq!(at((2, 0, 1, 0, 4), true, false), Emul::Undef);
    assert_eq!(at((3, 3, 9, 14, 0), true, true), Emul::Value(0));
    assert_eq!(at((3, 3, 9, 14, 0), false, true), Emul::Undef);
    assert_eq!(at((2, 3, 0, 1, 0), true, true), Emul::Value(0));
    assert_eq!(at((2, 3, 0, 1, 0), false, false), Emul::Undef);
    assert_eq!(
        at((3, 3, 9, 13, 0), true, true),
        Emul::Undef,
        "PMCCNTR_EL0 from user mode"
    );
}

/// XSA-93: registers that reveal or change what is not the guest's are an allow-list.
#[test]
fn xsa_93_every_encoding_is_decoded_and_few_are_allowed() {
    let ids = boastful().sanitised(true, 40);
    let mut allowed = 0;
    for bits in 0..1u32 << 22 {
        let a = SysAccess::from_iss(bits);
        if a.rt != 0 {
            assert_eq!(a.rt as u32, bits >> 5 & 31);
            continue;
        }
        assert_eq!(iss(&a), bits);
        for el0 in [false, true] {
            let e = decode(&a, el0, &ids);
            if e != Emul::Undef {
                allowed += 1;
                assert_eq!(
                    matches!(e, Emul::Value(_)),
                    a.read && !matches!(e, Emul::Timer(_))
                );
                let listed = match (a.op0, a.op1, a.crn) {
                    (1, 0, 7) | (2, 0, 0 | 1) | (2, 3, 0) => true,
                    (3, 0, 0) => (1..=7).contains(&a.crm),
                    (3, 0, 1 | 2 | 5 | 6 | 9 | 10 | 12 | 13) | (3, 3, 9 | 14) => true,
                    _ => false,
                };
                assert!(listed, "{a:?} gives {e:?}");
            }
        }
    }
    // 56 identification registers, 64 break- and watchpoints and 64 event counters (twice, for
    // reading and writing), and a few dozen more.
    assert!((300..420).contains(&allowed), "{allowed}");
}

/// One field of a register.
fn field(ids: &IdRegs, crm: u8, op2: u8, low: u32) -> u64 {
    ids.get(crm, op2) >> low & 0xf
}

#[test]
fn what_needs_the_hypervisors_help_is_hidden() {
    let g = boastful().sanitised(true, 40);
    for (crm, op2, low, name) in [
        (4, 0, 28, "RAS"),
        (4, 0, 32, "SVE"),
        (4, 0, 36, "SEL2"),
        (4, 0, 40, "MPAM"),
        (4, 0, 44, "AMU"),
        (4, 0, 52, "RME"),
        (4, 1, 8, "MTE"),
        (4, 1, 12, "RAS_frac"),
        (4, 1, 16, "MPAM_frac"),
        (4, 1, 24, "SME"),
        (4, 1, 36, "NMI"),
        (5, 0, 8, "PMUVer"),
        (5, 0, 4, "TraceVer"),
        (5, 0, 32, "PMSVer"),
        (6, 0, 24, "TME"),
        (6, 1, 4, "APA"),
        (6, 1, 8, "API"),
        (6, 1, 24, "GPA"),
        (6, 1, 28, "GPI"),
        (6, 1, 60, "LS64"),
        (6, 2, 8, "GPA3"),
        (6, 2, 12, "APA3"),
        (6, 2, 16, "MOPS"),
        (7, 0, 56, "FGT"),
        (7, 1, 8, "VH"),
        (7, 2, 24, "NV"),
        (7, 2, 40, "FWB"),
        (1, 0, 20, "AMU of AArch32"),
        (1, 0, 28, "RAS of AArch32"),
        (1, 1, 12, "virtualization of AArch32"),
        (1, 2, 24, "PerfMon of AArch32"),
        (3, 4, 8, "RAS_frac of AArch32"),
    ] {
        assert_eq!(field(&g, crm, op2, low), 0, "{name}");
    }
    for (crm, op2) in [
        (4, 4),
        (4, 5),
        (4, 2),
        (4, 7),
        (5, 4),
        (6, 3),
        (7, 3),
        (7, 4),
        (1, 3),
    ] {
        assert_eq!(g.get(crm, op2), 0);
    }
    assert_eq!(field(&g, 5, 0, 0), 6);
    assert_eq!(field(&g, 4, 0, 4), 1, "AArch64 only at EL1");
    assert_eq!(field(&g, 4, 0, 24), 1);
    assert_eq!(field(&boastful().sanitised(false, 40), 4, 0, 24), 0);
    assert_eq!(field(&g, 7, 2, 32), 0xf, "LSE2 is kept");
    assert_eq!(field(&g, 6, 0, 20), 0xf, "atomics are kept");
    assert_eq!(field(&g, 7, 0, 0), 2, "40 bits of address");
    assert_eq!(field(&g, 7, 0, 32), 0);
}

#[test]
fn a_cortex_a72_looks_like_one() {
    // Values of QEMU's cortex-a72.
    let host = IdRegs::read(|crm, op2| match (crm, op2) {
        (4, 0) => 0x2222,
        (5, 0) => 0x1030_5106,
        (6, 0) => 0x1_1120,
        (7, 0) => 0x1124,
        (1, 0) => 0x131,
        (1, 1) => 0x1_1011,
        (2, 5) => 0x1_1121,
        (3, 0) => 0x1011_0222,
        _ => 0,
    });
    let g = host.sanitised(false, 40);
    assert_eq!(
        g.get(4, 0),
        0x2212,
        "EL2 and EL3 are above EL1: Zephyr decides by that"
    );
    assert_eq!(g.get(6, 0), 0x1_1120);
    assert_eq!(g.get(7, 0), 0x122);
    assert_eq!(g.get(5, 0), 0x10_1006);
    assert_eq!(
        (g.get(1, 0), g.get(2, 5), g.get(3, 0)),
        (0x131, 0x1_1121, 0x1011_0222)
    );
    // A smaller physical address space than the guest's is told as it is.
    assert_eq!(field(&host.sanitised(false, 48), 7, 0, 0), 4);
    assert_eq!(field(&host.sanitised(false, 36), 7, 0, 0), 1);
}

#[test]
fn a_cpu_without_aarch32_shows_none_of_it() {
    let host = IdRegs::read(|crm, op2| {
        if (crm, op2) == (4, 0) {
            0x1111
        } else {
            0x1111_1111
        }
    });
    let g = host.sanitised(true, 40);
    assert!((1..=3).all(|crm| (0..8).all(|op2| g.get(crm, op2) == 0)));
    assert_eq!(g.get(6, 0), 0x1011_1111);
    assert_eq!((g.get(0, 0), g.get(8, 0), g.get(255, 255)), (0, 0, 0));
}

/// Registers with some fields: CRm, op2, lowest bit, value.
fn with(fields: &[(u8, u8, u8, u64)]) -> IdRegs {
    IdRegs::read(|crm, op2| {
        let mine = fields.iter().filter(|f| (f.0, f.1) == (crm, op2));
        mine.map(|f| f.3 << f.2).sum()
    })
}

#[test]
fn xsa_91_scxtnum_traps_and_is_not_promised() {
    for value in 0..16 {
        // EL0 = 2, as ID_PFR0_EL1 is shown only then.
        let ids = with(&[
            (4, 0, 0, 2),
            (1, 0, 16, value),
            (4, 0, 56, value),
            (4, 1, 32, value),
        ]);
        let shown = ids.sanitised(true, 40);
        for (crm, op2, lsb) in [(1, 0, 16), (4, 0, 56), (4, 1, 32)] {
            assert_eq!(
                shown.get(crm, op2) >> lsb & 0xf,
                value.min(1),
                "{crm} {op2}"
            );
        }
    }
    for el1 in [true, false] {
        let op1 = if el1 { 0 } else { 3 };
        assert_eq!(
            decode(&acc(3, op1, 13, 0, 7, true), !el1, &boastful()),
            Emul::Undef
        );
    }
}

#[test]
fn a_cpu_with_less_than_was_shown_does_not_cover_it() {
    let shown = |fields: &[_]| with(fields).sanitised(true, 40);
    // LSE atomics; FP (signed: 15 is none); TGran4 (15 is none); TGran16 (0 is none); EL0's AArch32.
    for (crm, op2, lsb, less, more) in [
        (6, 0, 20, 0, 2),
        (4, 0, 16, 15, 0),
        (4, 0, 16, 0, 1),
        (7, 0, 28, 15, 0),
        (7, 0, 20, 0, 1),
        (4, 0, 0, 1, 2),
        (7, 1, 20, 1, 2),
    ] {
        let [less, more] = [less, more].map(|v| shown(&[(crm, op2, lsb, v)]));
        assert!(
            more.covers(&less) && more.covers(&more),
            "{crm} {op2} {lsb}"
        );
        assert!(!less.covers(&more), "{crm} {op2} {lsb}");
    }
    // A format is no matter of more and less.
    let [old, new] = [0, 1].map(|v| shown(&[(7, 2, 20, v)]));
    assert!(!old.covers(&new) && !new.covers(&old));
    // What guests are not shown may differ.
    assert!(shown(&[]).covers(&shown(&[(4, 0, 32, 1)])));
}

/// XSA-102, 103: what AArch32's EL0 reaches of coprocessor 15 is what it reaches of the same registers in AArch64.
#[test]
fn xsa_102_103_coprocessor_registers_are_those_of_aarch64() {
    let ids = IdRegs::read(|_, _| 0);
    let mcr = |opc1: u32, crn: u32, crm: u32, opc2: u32, read: u32| {
        SysAccess::from_cp15(
            opc2 << 17 | opc1 << 14 | crn << 10 | 3 << 5 | crm << 1 | read,
            false,
        )
    };
    let told = |a: Option<SysAccess>| a.map(|a| decode(&a, true, &ids));
    for read in [0, 1] {
        let is = |reg| Some(Emul::Timer(reg));
        assert_eq!(told(mcr(0, 14, 2, 0, read)), is(TimerReg::Tval));
        assert_eq!(told(mcr(0, 14, 2, 1, read)), is(TimerReg::Ctl));
        let wide = |opc1: u32, crm: u32| {
            SysAccess::from_cp15(opc1 << 16 | 4 << 10 | 3 << 5 | crm << 1 | read, true)
        };
        assert_eq!(told(wide(2, 14)), is(TimerReg::Cval));
        assert_eq!(wide(2, 14).map(|a| a.rt), Some(3));
        for (opc1, crm) in [(0, 14), (3, 14), (2, 15), (0, 9)] {
            assert_eq!(wide(opc1, crm), None);
        }
    }
    assert_eq!(told(mcr(0, 9, 14, 0, 1)), Some(Emul::Value(0)), "PMUSERENR");
    assert_eq!(told(mcr(0, 9, 14, 0, 0)), Some(Emul::Undef));
    // Nothing else: EL0 has no other.
    for n in 0..1 << 15 {
        let (opc1, crn, crm, opc2, read) = (n & 7, n >> 3 & 15, n >> 7 & 15, n >> 11 & 7, n >> 14);
        let timer = crn == 14
            && (crm == 2 && opc2 < 2
                || crm == 0 && opc2 == 1 && read == 1
                || crm == 2 && opc2 == 2);
        let r = told(mcr(opc1, crn, crm, opc2, read)).unwrap_or(Emul::Undef);
        let known = matches!(r, Emul::Timer(_) | Emul::Value(0));
        let zero = (crn, crm, opc2, read) == (9, 14, 0, 1);
        assert!(known || r == Emul::Undef);
        assert!(
            !known || opc1 == 0 && (timer || zero),
            "{opc1} {crn} {crm} {opc2}"
        );
    }
}
