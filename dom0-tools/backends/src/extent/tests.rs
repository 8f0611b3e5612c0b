// SPDX-License-Identifier: MIT OR Apache-2.0
use super::*;
use proptest::prelude::*;

fn run(lba: u64, sectors: u64) -> Run {
    Run { lba, sectors }
}

fn map(runs: &[Run]) -> ExtentMap {
    let mut m = ExtentMap::new();
    for r in runs {
        m.push(*r).unwrap();
    }
    m
}

#[test]
fn neighbours_are_joined() {
    let m = map(&[run(100, 8), run(108, 8), run(0, 0), run(50, 8), run(116, 8)]);
    assert_eq!((m.extents(), m.sectors()), (3, 32));
    let runs: Vec<_> = m.runs(10, 20, 100).unwrap().collect();
    assert_eq!(runs, [run(110, 6), run(50, 8), run(116, 6)]);
    let runs: Vec<_> = m.runs(0, 16, 7).unwrap().collect();
    assert_eq!(runs, [run(100, 7), run(107, 7), run(114, 2)]);
    assert_eq!(m.runs(32, 0, 1).unwrap().next(), None);
}

#[test]
fn ends() {
    let mut m = map(&[run(100, 8), run(50, 8)]);
    for (s, n) in [(16, 1), (0, 17), (u64::MAX, 1), (1, u64::MAX)] {
        assert_eq!(m.runs(s, n, 1).unwrap_err(), ExtentError::OutOfRange);
    }
    assert_eq!(m.push(run(0, u64::MAX)), Err(ExtentError::TooLarge));
    assert_eq!(m.push(run(u64::MAX, 1)), Err(ExtentError::TooLarge));
    m.truncate(99);
    assert_eq!(m.sectors(), 16);
    m.truncate(9);
    assert_eq!(m, map(&[run(100, 8), run(50, 1)]));
    m.truncate(8);
    assert_eq!(m, map(&[run(100, 8)]));
    assert!(ExtentMap::whole(run(7, 9)).unwrap().runs(0, 9, 9).is_ok());
    assert!(ExtentMap::new().runs(0, 1, 1).is_err());
}

proptest! {
    /// Sector by sector the same as a table, in pieces that are as large as they can be.
    #[test]
    fn as_a_table(
        runs in prop::collection::vec((0u64..40, 0u64..9), 0..12),
        cut in 0u64..100,
        at in 0u64..60,
        // Pages, their order in memory, and parts of them.
        spans in prop::collection::vec((0u64..6, 0u8..8, 0u8..8), 0..10),
        max in 0u64..12,
    ) {
        let mut m = map(&runs.iter().map(|r| run(r.0, r.1)).collect::<Vec<_>>());
        m.truncate(cut);
        let mut table: Vec<u64> = runs.iter().flat_map(|r| r.0..r.0 + r.1).collect();
        table.truncate(cut as usize);
        prop_assert_eq!(m.sectors(), table.len() as u64);
        let spans: Vec<Span> = spans.iter().map(|(p, a, b)| {
            let (a, b) = (*a.min(b), *a.max(b));
            Span { addr: p * 4096 + u64::from(a) * 512, bytes: (u32::from(b - a) + 1) * 512 }
        }).collect();
        let memory: Vec<u64> = spans.iter().flat_map(|s| (s.addr..s.addr + u64::from(s.bytes)).step_by(512)).collect();
        let count = memory.len() as u64;
        let Some(disk) = table.get(at as usize..at as usize + memory.len()) else {
            prop_assert!(m.transfers(at, &spans, max).is_err());
            prop_assert!(m.runs(at, count, max).is_err());
            return Ok(());
        };
        let model: Vec<_> = memory.iter().copied().zip(disk.iter().copied()).collect();

        let got: Vec<_> = m.transfers(at, &spans, max).unwrap().collect();
        let flat: Vec<_> = got.iter().flat_map(|t| (0..t.sectors).map(|n| (t.addr + n * 512, t.lba + n))).collect();
        prop_assert_eq!(flat, model);
        let max = max.max(1);
        prop_assert!(got.iter().all(|t| (1..=max).contains(&t.sectors)));
        for w in got.windows(2) {
            let joins = w[0].addr + w[0].sectors * 512 == w[1].addr && w[0].lba + w[0].sectors == w[1].lba;
            prop_assert!(!joins || w[0].sectors == max);
        }

        let got: Vec<_> = m.runs(at, count, max).unwrap().collect();
        let flat: Vec<_> = got.iter().flat_map(|r| r.lba..r.lba + r.sectors).collect();
        prop_assert_eq!(&flat[..], disk);
        prop_assert!(got.iter().all(|r| (1..=max).contains(&r.sectors)));
        for w in got.windows(2) {
            prop_assert!(w[0].lba + w[0].sectors != w[1].lba || w[0].sectors == max);
        }
    }
}
