// SPDX-License-Identifier: MIT OR Apache-2.0
use super::*;
use crate::testmem::Mem;
use proptest::prelude::*;

fn all(log: &Log) -> Vec<u8> {
    let (a, b) = log.since(0);
    [a, b].concat()
}

#[test]
fn output_reaches_log_and_guest_is_told() {
    let page = Mem::new(4096);
    let mut c = Console::new(LOG_SIZE).unwrap();
    assert_eq!(c.pump(&page), Ok(false));
    assert_eq!(OUT.write(&page, b"hello"), Ok(5));
    assert_eq!(c.pump(&page), Ok(true));
    assert_eq!(all(c.log()), b"hello");
    assert_eq!(OUT.free(&page), Ok(OUT_SIZE));
    assert_eq!(c.pump(&page), Ok(false));
}

#[test]
fn input_waits_for_space() {
    let page = Mem::new(4096);
    let mut c = Console::new(16).unwrap();
    let typed: Vec<u8> = (0..5000u32).map(|n| n as u8).collect();
    assert_eq!(c.push_input(&typed), INPUT_SIZE);
    assert_eq!(c.push_input(b"x"), 0);
    let mut got: Vec<u8> = Vec::new();
    while c.flush_input(&page) == Ok(true) {
        let mut b = [0; 700];
        let n = IN.read(&page, &mut b).unwrap();
        got.extend(&b[..n]);
    }
    let mut b = [0; 4096];
    let n = IN.read(&page, &mut b).unwrap();
    got.extend(&b[..n]);
    assert_eq!(got, &typed[..INPUT_SIZE]);
    assert_eq!(c.input_waiting(), 0);
}

#[test]
fn impossible_indexes_move_nothing_until_they_are_possible() {
    let page = Mem::new(4096);
    let mut c = Console::new(16).unwrap();
    page.store32(OUT.prod, OUT_SIZE + 1);
    assert!(c.pump(&page).is_err());
    assert!(c.pump(&page).is_err());
    assert!(all(c.log()).is_empty());
    page.store32(OUT.prod, 3);
    c.push_input(b"abc");
    assert_eq!(c.pump(&page), Ok(true));
    assert_eq!(all(c.log()).len(), 3);
    assert_eq!(c.input_waiting(), 0);
}

#[test]
fn broken_input_ring_is_told() {
    let page = Mem::new(4096);
    let mut c = Console::new(16).unwrap();
    page.store32(IN.cons, 1);
    assert_eq!(c.flush_input(&page), Ok(false));
    c.push_input(b"abc");
    assert!(c.flush_input(&page).is_err());
    assert_eq!(c.input_waiting(), 3);
    page.store32(IN.cons, 0);
    assert_eq!(c.flush_input(&page), Ok(true));
}

#[test]
fn follower_sees_what_was_before_and_what_comes() {
    let mut log = Log::new(8).unwrap();
    log.push(b"0123456789");
    assert_eq!((log.start(), log.end()), (2, 10));
    let (mut pos, mut b) = (0, [0; 5]);
    assert_eq!(log.read(&mut pos, &mut b), 5);
    assert_eq!((&b, pos), (b"23456", 7));
    log.push(b"ab");
    assert_eq!(log.read(&mut pos, &mut b), 5);
    assert_eq!((&b, pos), (b"789ab", 12));
    assert_eq!(log.read(&mut pos, &mut b), 0);
    let mut ahead = 99;
    assert_eq!(log.read(&mut ahead, &mut b), 0);
    assert_eq!(ahead, 12);
}

proptest! {
    #[test]
    fn log_keeps_the_last_bytes(size in 0usize..40, parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30), 0..20), from in 0u64..200) {
        let mut log = Log::new(size).unwrap();
        let mut model = Vec::new();
        for p in &parts {
            log.push(p);
            model.extend_from_slice(p);
        }
        let start = model.len().saturating_sub(size);
        prop_assert_eq!(log.start(), start as u64);
        prop_assert_eq!(log.end(), model.len() as u64);
        let at = (from as usize).clamp(start, model.len());
        let (a, b) = log.since(from);
        prop_assert_eq!([a, b].concat(), &model[at..]);
    }

    #[test]
    fn hostile_indexes_never_panic(words in prop::collection::vec((0usize..4, any::<u32>(), any::<bool>()), 1..50)) {
        let page = Mem::new(4096);
        let mut c = Console::new(100).unwrap();
        for (which, value, small) in words {
            let at = [IN.prod, IN.cons, OUT.prod, OUT.cons][which];
            page.store32(at, if small { value % 3000 } else { value });
            c.push_input(b"some");
            let _ = c.pump(&page);
            prop_assert!(c.log().end() - c.log().start() <= 100);
        }
    }

    #[test]
    fn bytes_arrive_in_order(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..900), 0..20)) {
        let page = Mem::new(4096);
        let mut c = Console::new(1 << 16).unwrap();
        for at in [IN.prod, IN.cons, OUT.prod, OUT.cons] {
            page.store32(at, u32::MAX - 500);
        }
        for p in &parts {
            prop_assert_eq!(OUT.write(&page, p), Ok(p.len()));
            prop_assert_eq!(c.drain_output(&page), Ok(!p.is_empty()));
        }
        prop_assert_eq!(all(c.log()), parts.concat());
    }
}
