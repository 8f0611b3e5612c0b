// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ring page: a well-behaved guest on a page, and hostile ones.

mod common;

use std::cell::RefCell;

use common::{Guest, message};
use guest_abi::DomId;
use guest_abi::io::xs_wire::{self as wire, MsgType as Op, REQ, RSP};
use guest_abi::mem::SharedMem;
use proptest::prelude::*;
use xenstore::{Perm, PumpResult, Store, unnumbered};

struct Page(RefCell<Vec<u8>>);

impl Page {
    fn new() -> Self {
        Self(RefCell::new(vec![0; 4096]))
    }
}

impl SharedMem for Page {
    fn load32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.0.borrow()[offset..offset + 4].try_into().unwrap())
    }
    fn store32(&self, offset: usize, value: u32) {
        self.0.borrow_mut()[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }
    fn fetch_and32(&self, _: usize, _: u32) -> u32 {
        unreachable!("no ring uses it")
    }
    fn fetch_or32(&self, _: usize, _: u32) -> u32 {
        unreachable!("no ring uses it")
    }
    fn compare_exchange32(&self, _: usize, _: u32, _: u32) -> Result<u32, u32> {
        unreachable!("no ring uses it")
    }
    fn read(&self, offset: usize, to: &mut [u8]) {
        assert!(offset + to.len() <= 2048);
        to.copy_from_slice(&self.0.borrow()[offset..offset + to.len()]);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        assert!(offset + from.len() <= 2048);
        self.0.borrow_mut()[offset..offset + from.len()].copy_from_slice(from);
    }
}

const ONE: DomId = DomId(1);

/// A store with domain 1, whose page's indexes start anywhere.
fn setup(start: u32) -> (Store, Page) {
    let mut s = Store::new();
    Guest::introduced(&mut s, 1);
    let page = Page::new();
    for word in [REQ.cons, REQ.prod, RSP.cons, RSP.prod] {
        page.store32(word, start);
    }
    (s, page)
}

/// Sends a request over the ring in pieces of `step` bytes and fetches one message.
fn exchange(s: &mut Store, page: &Page, bytes: &[u8], step: usize) -> Vec<u8> {
    let (mut sent, mut got) = (0, Vec::new());
    for _ in 0..100_000 {
        let piece = &bytes[sent..bytes.len().min(sent + step)];
        sent += REQ.write(page, piece).unwrap();
        let result = s.pump(ONE, page);
        assert_eq!(result.failed, None);
        // No more than the answer: events may follow it.
        let len = |got: &[u8]| match got.get(12..16) {
            Some(len) => 16 + u32::from_le_bytes(len.try_into().unwrap()) as usize,
            None => 16,
        };
        let mut buf = vec![0; step.min(len(&got) - got.len())];
        let n = RSP.read(page, &mut buf).unwrap();
        got.extend_from_slice(&buf[..n]);
        if got.len() >= 16 && got.len() == len(&got) {
            assert_eq!(sent, bytes.len());
            return got;
        }
    }
    panic!("no answer");
}

/// The number of the next request is found wherever it is in the ring, and no other bytes are taken for one.
#[test]
fn who_numbers_requests_is_known() {
    for start in (1000..1024).chain([0, u32::MAX - 4]) {
        for id in [0, 1, 0x0100_0000, u32::MAX] {
            let (mut s, page) = setup(start);
            assert!(!unnumbered(&page));
            let request = message(Op::Read.number(), id, 0, b"a\0");
            REQ.write(&page, &request[..7]).unwrap();
            assert!(!unnumbered(&page));
            REQ.write(&page, &request[7..]).unwrap();
            assert_eq!(unnumbered(&page), id == 0);
            s.pump(ONE, &page);
            assert!(!unnumbered(&page));
        }
    }
    // An impossible index.
    let (_, page) = setup(0);
    page.store32(REQ.prod, 5000);
    assert!(!unnumbered(&page));
}

#[test]
fn requests_over_the_ring() {
    for start in [0, 1000, u32::MAX - 100] {
        for step in [1, 7, 1024] {
            let (mut s, page) = setup(start);
            let value = vec![b'v'; 2000];
            let payload = [&b"a\0"[..], &value].concat();
            let answer = exchange(
                &mut s,
                &page,
                &message(Op::Write.number(), 1, 0, &payload),
                step,
            );
            assert_eq!(answer, message(Op::Write.number(), 1, 0, b"OK\0"));
            let answer = exchange(
                &mut s,
                &page,
                &message(Op::Read.number(), 2, 0, b"a\0"),
                step,
            );
            assert_eq!(answer, message(Op::Read.number(), 2, 0, &value));
            let features = wire::SERVER_FEATURE_RECONNECTION | wire::SERVER_FEATURE_ERROR;
            assert_eq!(page.load32(wire::SERVER_FEATURES), features);
            assert_eq!(
                s.pump(ONE, &page),
                PumpResult::default(),
                "nothing to do, nothing done"
            );
        }
    }
}

#[test]
fn a_ring_that_is_not_drained_is_not_read() {
    let (mut s, page) = setup(0);
    let write = [&b"a\0"[..], &[b'x'; 2000]].concat();
    exchange(
        &mut s,
        &page,
        &message(Op::Write.number(), 1, 0, &write),
        1024,
    );
    let read = message(Op::Read.number(), 2, 0, b"a\0");
    let mut last = PumpResult::default();
    let mut sent = 0;
    for _ in 0..100 {
        while REQ.free(&page).unwrap() as usize >= read.len() {
            sent += 1;
            REQ.write(&page, &read).unwrap();
        }
        last = s.pump(ONE, &page);
    }
    assert!(last.waiting && !last.more && !last.notify);
    assert!(s.domain_stats(ONE).queued_bytes <= 21 * 2016);
    assert!(
        REQ.available(&page).unwrap() > 1000,
        "requests stay in the ring"
    );
    // The guest wakes up: everything is answered in turn.
    let mut bytes = 0;
    while bytes < sent * 2016 {
        let mut buf = [0; 1024];
        let n = RSP.read(&page, &mut buf).unwrap();
        assert!(n > 0);
        bytes += n;
        assert!(s.pump(ONE, &page).notify || bytes == sent * 2016);
    }
    assert_eq!(bytes, sent * 2016);
    assert_eq!(s.domain_stats(ONE).queued_bytes, 0);
}

#[test]
fn events_make_a_ring_ready() {
    let (mut s, page) = setup(0);
    exchange(
        &mut s,
        &page,
        &message(Op::Watch.number(), 1, 0, b"a\0t\0"),
        1024,
    );
    let mut buf = [0; 1024];
    let n = RSP.read(&page, &mut buf).unwrap();
    assert_eq!(&buf[..n], message(Op::WatchEvent.number(), 0, 0, b"a\0t\0"));
    while s.next_ready().is_some() {}
    s.write("/local/domain/1/a", b"x").unwrap();
    assert_eq!(s.next_ready(), Some(xenstore::ConnId::Domain(ONE)));
    assert_eq!(s.next_ready(), None);
    assert!(s.pump(ONE, &page).notify);
    let n = RSP.read(&page, &mut buf).unwrap();
    assert_eq!(&buf[..n], message(Op::WatchEvent.number(), 0, 0, b"a\0t\0"));
    s.write("/local/domain/1/b", b"x").unwrap();
    assert_eq!(s.next_ready(), None);
}

#[test]
fn bad_indexes_stop_the_ring_until_a_reconnection() {
    for word in [REQ.prod, RSP.cons] {
        for value in [1025, 5000, 1 << 31, (1 << 31) + 7] {
            let (mut s, page) = setup(0);
            exchange(
                &mut s,
                &page,
                &message(Op::Watch.number(), 1, 0, b"a\0t\0"),
                1024,
            );
            let bad = if word == REQ.prod {
                page.load32(REQ.cons)
            } else {
                page.load32(RSP.prod)
            };
            page.store32(word, bad.wrapping_add(value));
            let result = s.pump(ONE, &page);
            let failed = Some(wire::ERROR_RINGIDX);
            assert_eq!(
                result,
                PumpResult {
                    notify: true,
                    failed,
                    ..Default::default()
                }
            );
            assert_eq!(page.load32(wire::ERROR), wire::ERROR_RINGIDX);
            assert_eq!(s.stats().watches, 0);
            assert_eq!(
                s.pump(ONE, &page),
                PumpResult {
                    failed,
                    ..Default::default()
                }
            );
            s.write("/local/domain/1/a", b"").unwrap();
            assert_eq!(s.next_ready(), None);
            // Reconnection.
            page.store32(wire::CONNECTION, wire::RECONNECT);
            assert!(s.pump(ONE, &page).notify);
            assert_eq!(page.load32(wire::CONNECTION), wire::CONNECTED);
            assert_eq!(page.load32(wire::ERROR), wire::ERROR_NONE);
            let answer = exchange(
                &mut s,
                &page,
                &message(Op::Read.number(), 9, 0, b"a\0"),
                1024,
            );
            assert_eq!(answer, message(Op::Read.number(), 9, 0, b""));
        }
    }
}

#[test]
fn an_oversized_message_stops_the_ring() {
    let (mut s, page) = setup(0);
    let mut head = message(Op::Write.number(), 1, 0, b"");
    head[12..16].copy_from_slice(&4097_u32.to_le_bytes());
    REQ.write(&page, &head).unwrap();
    let result = s.pump(ONE, &page);
    assert_eq!(result.failed, Some(wire::ERROR_PROTO));
    assert_eq!(page.load32(wire::ERROR), wire::ERROR_PROTO);
    assert_eq!(s.input(ONE, b"x"), Err(guest_abi::Errno::EINVAL));
    s.release(ONE).unwrap();
    assert_eq!(s.pump(ONE, &page), PumpResult::default());
}

#[test]
fn reconnection_drops_everything_in_flight() {
    let (mut s, page) = setup(77);
    exchange(
        &mut s,
        &page,
        &message(Op::Mkdir.number(), 1, 0, b"a\0"),
        1024,
    );
    exchange(
        &mut s,
        &page,
        &message(Op::Watch.number(), 1, 0, b"a\0t\0"),
        1024,
    );
    exchange(
        &mut s,
        &page,
        &message(Op::TransactionStart.number(), 1, 0, b"\0"),
        1024,
    );
    REQ.write(&page, &message(Op::Read.number(), 1, 0, b"a\0")[..10])
        .unwrap();
    s.pump(ONE, &page);
    page.store32(wire::CONNECTION, wire::RECONNECT);
    assert!(s.pump(ONE, &page).notify);
    for word in [REQ.cons, REQ.prod, RSP.cons, RSP.prod, wire::CONNECTION] {
        assert_eq!(page.load32(word), 0);
    }
    let stats = s.domain_stats(ONE);
    assert_eq!(
        (stats.watches, stats.transactions, stats.queued_bytes),
        (0, 0, 0)
    );
    assert!(s.exists("/local/domain/1/a"));
    let answer = exchange(
        &mut s,
        &page,
        &message(Op::Read.number(), 5, 0, b"a\0"),
        1024,
    );
    assert_eq!(answer, message(Op::Read.number(), 5, 0, b""));
    // A domain that is introduced anew starts anew, too.
    exchange(
        &mut s,
        &page,
        &message(Op::Watch.number(), 1, 0, b"a\0t\0"),
        1024,
    );
    s.introduce(ONE).unwrap();
    assert_eq!(s.domain_stats(ONE).watches, 0);
}

#[derive(Clone, Debug)]
enum Step {
    Word(usize, u32),
    Bytes(usize, Vec<u8>),
    Advance(u32),
    Drain,
    Request(u32, Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let words = prop::sample::select(vec![2048_usize, 2052, 2056, 2060, 2064, 2068, 2072]);
    prop_oneof![
        (words, prop_oneof![0..4_u32, any::<u32>()]).prop_map(|(w, v)| Step::Word(w, v)),
        (0..1024_usize, prop::collection::vec(any::<u8>(), 0..64))
            .prop_map(|(o, b)| Step::Bytes(o, b)),
        (0..1100_u32).prop_map(Step::Advance),
        Just(Step::Drain),
        (0..24_u32, "[a-c/]{0,6}\0[a-c0-9/]{0,6}\0?").prop_map(|(k, p)| Step::Request(k, p.into())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever a guest does to its page, the store neither panics nor holds more than it may, and
    /// serves another guest as ever.
    #[test]
    fn a_hostile_page(steps in prop::collection::vec(step(), 1..60)) {
        let (mut s, page) = setup(0);
        s.write("/secret", b"x").unwrap();
        let mut other = Guest::introduced(&mut s, 2);
        s.set_perms("/local/domain/2", &[Perm::none(DomId(2))]).unwrap();
        for step in steps {
            match step {
                Step::Word(offset, value) => page.store32(offset, value),
                Step::Bytes(offset, bytes) => {
                    let end = (offset + bytes.len()).min(1024);
                    page.0.borrow_mut()[offset..end].copy_from_slice(&bytes[..end - offset]);
                }
                Step::Advance(n) => page.store32(REQ.prod, page.load32(REQ.prod).wrapping_add(n)),
                Step::Drain => page.store32(RSP.cons, page.load32(RSP.prod)),
                Step::Request(kind, payload) => {
                    let _ = REQ.write(&page, &message(kind, 1, 0, &payload));
                }
            }
            s.pump(ONE, &page);
            let d = s.domain_stats(ONE);
            let q = *s.quota();
            prop_assert!(d.nodes <= q.nodes && d.watches <= q.watches);
            prop_assert!(d.node_bytes + d.session_bytes <= q.memory + 4096);
            prop_assert!(d.queued_bytes <= (q.outstanding + 2) * 4112 + q.event_bytes);
        }
        prop_assert_eq!(other.write(&mut s, 0, "a", "1"), common::ok());
        prop_assert_eq!(other.read(&mut s, 0, "a"), Ok(b"1".to_vec()));
        s.release(ONE).unwrap();
        prop_assert_eq!(s.domain_stats(ONE), xenstore::DomainStats::default());
    }
}
