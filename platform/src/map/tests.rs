// SPDX-License-Identifier: MIT OR Apache-2.0
use super::*;
use crate::dt::{MAX_BANKS, MAX_RESERVED};
use proptest::prelude::*;
use std::vec::Vec;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Where the tables lie.
const BASE: u64 = 0x1234_5000;

const fn r(start: u64, end: u64) -> Range {
    Range { start, end }
}

/// Loaded at an odd place, with one guard page.
const IMAGE: Image = Image {
    whole: r(0x4020_1000, 0x4030_0000),
    text: r(0x4020_1000, 0x4023_0000),
    rodata: r(0x4023_0000, 0x4024_0000),
    guards: |page| page == 0x402a_0000,
};
const RAM: Range = r(GIB, 2 * GIB);

/// The entry that the MMU finds for an address, without its address; 0: none.
fn walk(tables: &[Table], at: u64) -> u64 {
    let (mut table, mut shift) = (0, 30);
    loop {
        let e = tables[table][(at >> shift) as usize & 511];
        let address = e & 0x0000_ffff_ffff_f000;
        match (e & 3, shift) {
            (0, _) => return 0,
            (0b01, 12) => panic!("no block on the last level"),
            (0b11, 12) | (0b01, _) => {
                assert_eq!(address, at >> shift << shift, "it is an identity map");
                return e & !0x0000_ffff_ffff_f003;
            }
            _ => {
                table = ((address - BASE) / 4096) as usize;
                shift -= 9;
            }
        }
    }
}

fn build(ram: &[Range], no_map: &[Range], tables: usize) -> Result<Vec<Table>, MapError> {
    let mut t = std::vec![[!0; 512]; tables];
    let image = &IMAGE;
    Map { ram, no_map, image }.build(&mut t, BASE)?;
    Ok(t)
}

/// What an address is to be, by its definition alone.
fn expected(ram: &[Range], no_map: &[Range], at: u64) -> u64 {
    let of = |rs: &[Range]| rs.iter().any(|r| r.start <= at && at < r.end);
    match () {
        () if (IMAGE.guards)(at & !4095) => 0,
        () if of(&[IMAGE.text]) => NORMAL & !XN | RO,
        () if of(&[IMAGE.rodata]) => NORMAL | RO,
        () if of(&[IMAGE.whole]) => NORMAL,
        () if of(no_map) => 0,
        () if of(ram) => NORMAL,
        () => DEVICE,
    }
}

/// All that is near an edge, and the ends of the map.
fn places(ranges: &[&[Range]]) -> impl Iterator<Item = u64> {
    let image = [
        IMAGE.whole,
        IMAGE.text,
        IMAGE.rodata,
        r(0x402a_0000, 0x402a_1000),
        r(0, 512 * GIB),
    ];
    let edges: Vec<u64> = (ranges.iter().flat_map(|r| r.iter()))
        .chain(&image)
        .flat_map(|r| [r.start, r.end])
        .collect();
    let around = |e: u64| {
        [2 * MIB, 4096, 1, 0]
            .into_iter()
            .flat_map(move |d| [e.wrapping_sub(d), e.wrapping_add(d)])
    };
    edges
        .into_iter()
        .flat_map(around)
        .filter(|&at| at < 512 * GIB)
}

fn check(ram: &[Range], no_map: &[Range]) {
    let tables = build(ram, no_map, 128).unwrap();
    for at in places(&[ram, no_map]) {
        assert_eq!(
            walk(&tables, at),
            expected(ram, no_map, at),
            "{at:#x} of {ram:x?} without {no_map:x?}"
        );
    }
}

#[test]
fn the_image_and_its_guards() {
    check(&[RAM], &[]);
}

#[test]
fn no_map_is_not_mapped_wherever_it_is() {
    // One page; a block and a half; both ends of RAM and beyond; one in another; beside one another; outside of RAM; all
    // of a GiB; beyond what is mapped.
    check(&[RAM], &[r(0x5000_0000, 0x5000_1000)]);
    check(&[RAM], &[r(0x5000_0000, 0x5030_0000)]);
    check(
        &[RAM],
        &[
            r(GIB - MIB, GIB + 0x3000),
            r(2 * GIB - 0x1000, 2 * GIB + MIB),
        ],
    );
    check(
        &[RAM],
        &[r(GIB, GIB + 0x1000), r(2 * GIB - 0x1000, 2 * GIB)],
    );
    check(
        &[RAM],
        &[r(0x5000_0000, 0x5040_0000), r(0x5000_1000, 0x5000_2000)],
    );
    check(
        &[RAM],
        &[
            r(0x5000_0000, 0x5010_0000),
            r(0x5010_0000, 0x5020_0000),
            r(0x501f_f000, 0x5040_0000),
        ],
    );
    check(&[RAM], &[r(0x0900_0000, 0x0900_1000)]);
    check(&[RAM, r(4 * GIB, 6 * GIB)], &[r(4 * GIB, 5 * GIB)]);
    check(&[RAM], &[r(511 * GIB, !4095)]);
    // Where the image is, but for it.
    check(
        &[RAM],
        &[r(GIB, IMAGE.whole.start), r(IMAGE.whole.end, 0x4040_0000)],
    );
}

#[test]
fn what_firmware_keeps_and_does_not_say_no_map_of_stays_mapped() {
    // A Raspberry Pi 4 of 1 GiB: the first page, with the release words, is kept and is RAM.
    let tables = build(&[r(0, 0x3b40_0000)], &[], 16).unwrap();
    assert_eq!(walk(&tables, 0xd8), NORMAL);
}

#[test]
fn over_the_image_is_an_error() {
    for no_map in [
        r(IMAGE.whole.start, IMAGE.whole.start + 4096),
        r(IMAGE.whole.end - 4096, IMAGE.whole.end),
        r(0, !4095),
    ] {
        assert_eq!(
            build(&[RAM], &[r(0, 4096), no_map], 16),
            Err(MapError::OverImage)
        );
    }
}

#[test]
fn pieces_beyond_the_tables_are_an_error() {
    let small: Vec<Range> = (0..MAX_RESERVED as u64)
        .map(|i| 0x5000_0000 + i * 4 * MIB)
        .map(|at| r(at, at + 4096))
        .collect();
    let needed = 1 + 1 + 1 + MAX_RESERVED;
    check(&[RAM], &small);
    assert!(build(&[RAM], &small, needed).is_ok());
    for fewer in 0..needed {
        assert_eq!(
            build(&[RAM], &small, fewer),
            Err(MapError::TooManyPieces),
            "{fewer}"
        );
    }
}

#[test]
fn pages_are_rounded_to_the_safe_side() {
    let d = |base, size| crate::dt::Range { base, size };
    assert_eq!(Range::pages_of(d(0x1fff, 2)), r(0x1000, 0x3000));
    assert_eq!(Range::pages_of(d(0x1000, 0x1000)), r(0x1000, 0x2000));
    assert_eq!(
        Range::pages_of(d(0x1000, !0)),
        r(0x1000, !4095),
        "to the end of the address space"
    );
    assert_eq!(Range::pages_in(d(0x1fff, 2)), r(0x2000, 0x2000));
    assert_eq!(Range::pages_in(d(0x1001, 0x1fff)), r(0x2000, 0x3000));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_ranges(
        banks in prop::collection::vec((0u64..64, 1u64..8), 1..MAX_BANKS),
        holes in prop::collection::vec((0u64..0x4_0000, 0u64..600, 1u64..1200), 0..MAX_RESERVED),
    ) {
        let ram: Vec<Range> = banks.iter().map(|(b, n)| r(b * 512 * MIB, (b + n) * 512 * MIB)).collect();
        // Most holes near the image.
        let no_map: Vec<Range> = holes.iter()
            .map(|(at, fine, pages)| (GIB.wrapping_sub(32 * MIB) + at * 4096 + fine * 4096, pages * 4096))
            .map(|(at, len)| r(at, at + len))
            .collect();
        match build(&ram, &no_map, 128) {
            Ok(tables) => for at in places(&[&ram, &no_map]) {
                prop_assert_eq!(walk(&tables, at), expected(&ram, &no_map, at), "{:#x}", at);
            },
            Err(e) => {
                prop_assert_eq!(e, MapError::OverImage);
                prop_assert!(no_map.iter().any(|h| h.overlaps(&IMAGE.whole)));
            }
        }
    }
}
