// SPDX-License-Identifier: MIT OR Apache-2.0
use super::*;

fn cpu(fields: &[(u8, u8, u8, u64)]) -> IdRegs {
    IdRegs::read(|crm, op2| {
        let mine = fields.iter().filter(|f| (f.0, f.1) == (crm, op2));
        mine.map(|f| f.3 << f.2).sum()
    })
}

/// What of a CPU is hidden from guests (CRm, op2, lowest bit of the field, a value), and the traps that go with it:
/// ones and zeros of HCR_EL2, CPTR_EL2 and MDCR_EL2. What FGT and HCX trap by zeros has none here: their
/// registers are written as zeros wherever they are.
type Kept = (&'static str, u8, u8, u8, u64, u64, u64, u64);
const KEPT: [Kept; 14] = [
    // Name, field, value; HCR, CPTR, MDCR.
    ("SVE", 4, 0, 32, 1, 0, cptr::TZ, 0),
    ("SME", 4, 1, 24, 1, 0, cptr::TSM, 0),
    ("AMU", 4, 0, 44, 1, 0, cptr::TAM, 0),
    ("RAS", 4, 0, 28, 1, hcr::TERR, 0, 0),
    ("LOR", 7, 1, 16, 1, hcr::TLOR, 0, 0),
    ("MTE", 4, 1, 8, 2, hcr::TID5, 0, 0),
    ("PAuth (QARMA5)", 6, 1, 4, 1, 0, 0, 0),
    ("PAuth (other)", 6, 1, 8, 1, 0, 0, 0),
    ("PAuth (QARMA3)", 6, 2, 12, 1, 0, 0, 0),
    ("PMU", 5, 0, 8, 6, 0, 0, mdcr::TPM | mdcr::TPMCR),
    ("trace", 5, 0, 4, 1, 0, cptr::TTA, 0),
    ("SPE", 5, 0, 32, 1, 0, 0, mdcr::TPMS),
    ("TRF", 5, 0, 40, 1, 0, 0, mdcr::TTRF),
    ("TRBE", 5, 0, 44, 1, 0, 0, 0),
];

#[test]
fn xsa_91_what_is_hidden_is_trapped_too() {
    for (name, crm, op2, lsb, value, h, c, m) in KEPT {
        let ids = cpu(&[(crm, op2, lsb, value)]);
        let f = Features::of(&ids);
        assert_eq!(
            ids.sanitised(true, 40).get(crm, op2) >> lsb & 0xf,
            0,
            "{name} is shown"
        );
        assert_eq!(
            (f.hcr() & h, f.cptr() & c, f.mdcr(6) & m),
            (h, c, m),
            "{name} is not trapped"
        );
    }
    // Whatever the CPU has, what traps by a zero traps, and a guest keeps floating point.
    for ids in [IdRegs::read(|_, _| u64::MAX), cpu(&[])] {
        use hcr::*;
        let f = Features::of(&ids);
        assert_eq!(f.hcr() & (API | APK | ATA | EN_SCXT | FIEN), 0);
        assert_eq!(f.cptr() & (cptr::TFP | cptr::TCPAC), 0);
        assert_eq!(f.mdcr(31) & (mdcr::E2PB | mdcr::E2TB | mdcr::EN_SPM), 0);
        assert_eq!(f.cptr() & 0x33ff, 0x33ff, "RES1 without SVE and SME");
        assert_eq!(
            f.hcr() & (TID3 | TIDCP | TACR | TSC | RW | VM),
            TID3 | TIDCP | TACR | TSC | RW | VM
        );
    }
}

#[test]
fn features_follow_their_fields() {
    assert_eq!(Features::of(&cpu(&[])), Features::default());
    let ras = Features::of(&cpu(&[(4, 0, 28, 2)]));
    assert!(ras.has(Features::RAS) && !ras.has(Features::SVE));
    // MPAM 0.1 is in the fraction alone; MTE1 has no GMID_EL1; another PMU has no PMCR_EL0.
    assert!(Features::of(&cpu(&[(4, 1, 16, 1)])).has(Features::MPAM));
    assert!(!Features::of(&cpu(&[(4, 1, 8, 1)])).has(Features::MTE2));
    assert!(!Features::of(&cpu(&[(5, 0, 8, 15)])).has(Features::PMU));
    assert!(Features::of(&cpu(&[(5, 0, 8, 1)])).has(Features::PMU));
    let fgt = Features::of(&cpu(&[(7, 0, 56, 1)]));
    assert!(fgt.has(Features::FGT) && !fgt.has(Features::FGT2));
    assert_eq!(Features::default().mdcr(6) & 0x1f, 6, "HPMN is PMCR_EL0.N");
    assert_eq!(Features::default().hcrx(), 0);
    assert_eq!(Features::NMI.hcrx(), HCRX_TALLINT);
}
