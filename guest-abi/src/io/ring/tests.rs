// SPDX-License-Identifier: MIT OR Apache-2.0
//! Both ends against a model, from indexes near the wrap on, and against a hostile other end.

extern crate std;

use super::*;
use crate::io::{blkif, console, netif, xs_wire};
use core::cell::Cell;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::{vec, vec::Vec};

/// 12 and 4 bytes, as a network interface has: entries are as large as the larger.
type Front = FrontRing<netif::NetifTxRequest, netif::NetifTxResponse>;
type Back = BackRing<netif::NetifTxRequest, netif::NetifTxResponse>;

/// Room for 8 entries, with some bytes to spare.
const BYTES: usize = 64 + 12 * 8 + 20;

fn memory(bytes: usize) -> Vec<Cell<u8>> {
    vec![Cell::new(0xee); bytes]
}

/// A connected pair whose indexes all start at `base`.
fn pair(mem: &[Cell<u8>], base: u32) -> (Front, Back) {
    let mut front = Front::new(&mem, BYTES).unwrap();
    front.req_prod = base;
    front.req_published = base;
    front.rsp_cons = base;
    front.rsp_seen = base;
    mem.store32(head::REQ_PROD, base);
    mem.store32(head::RSP_PROD, base);
    mem.store32(head::REQ_EVENT, base.wrapping_add(1));
    mem.store32(head::RSP_EVENT, base.wrapping_add(1));
    let back = Back::attach(&mem, BYTES).unwrap();
    (front, back)
}

fn request(n: u32) -> netif::NetifTxRequest {
    netif::NetifTxRequest {
        gref: crate::GrantRef(n),
        id: n as u16,
        ..Default::default()
    }
}

fn response(n: u32) -> netif::NetifTxResponse {
    netif::NetifTxResponse {
        id: n as u16,
        status: -1,
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Request,
    PublishRequests,
    Take,
    Respond,
    PublishResponses,
    TakeResponse,
    BackSleeps,
    FrontSleeps,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Request),
        2 => Just(Step::PublishRequests),
        3 => Just(Step::Take),
        3 => Just(Step::Respond),
        2 => Just(Step::PublishResponses),
        3 => Just(Step::TakeResponse),
        1 => Just(Step::BackSleeps),
        1 => Just(Step::FrontSleeps),
    ]
}

proptest! {
    #[test]
    fn all_arrives_in_order_and_no_wakeup_is_lost(
        from_wrap in 0_u32..40,
        steps in prop::collection::vec(step(), 0..400),
    ) {
        let mem = memory(BYTES);
        let mem = &mem[..];
        let (mut front, mut back) = pair(mem, 0_u32.wrapping_sub(from_wrap));
        // What is between the two ends, each stage in order.
        let mut written = VecDeque::new();
        let mut shown = VecDeque::new();
        let mut taken = VecDeque::new();
        let mut answered = VecDeque::new();
        let mut visible = VecDeque::new();
        let (mut back_sleeps, mut front_sleeps) = (false, false);
        let mut next = 0_u32;
        for s in steps {
            match s {
                Step::Request => {
                    let full = written.len() + shown.len() + taken.len() + answered.len()
                        + visible.len() == 8;
                    prop_assert_eq!(front.push(&mem, &request(next)), !full);
                    if !full {
                        written.push_back(next);
                        next += 1;
                    }
                }
                Step::PublishRequests => {
                    let some = !written.is_empty();
                    shown.append(&mut written);
                    let notify = front.publish(&mem);
                    prop_assert!(some || !notify);
                    if some && back_sleeps {
                        prop_assert!(notify, "the back end sleeps on");
                        back_sleeps = false;
                    }
                }
                Step::Take => {
                    prop_assert_eq!(back.pop(&mem), Ok(shown.front().map(|n| request(*n))));
                    taken.extend(shown.pop_front());
                }
                Step::Respond => {
                    let n: Option<u32> = taken.pop_front();
                    prop_assert_eq!(back.push(&mem, &response(n.unwrap_or(0))), n.is_some());
                    answered.extend(n);
                }
                Step::PublishResponses => {
                    let some = !answered.is_empty();
                    visible.append(&mut answered);
                    let notify = back.publish(&mem);
                    prop_assert!(some || !notify);
                    if some && front_sleeps {
                        prop_assert!(notify, "the front end sleeps on");
                        front_sleeps = false;
                    }
                }
                Step::TakeResponse => {
                    prop_assert_eq!(front.pop(&mem), Ok(visible.pop_front().map(response)));
                }
                Step::BackSleeps => {
                    let work = back.final_check(&mem).unwrap();
                    prop_assert_eq!(work, !shown.is_empty());
                    back_sleeps = !work;
                }
                Step::FrontSleeps => {
                    let work = front.final_check(&mem).unwrap();
                    prop_assert_eq!(work, !visible.is_empty());
                    front_sleeps = !work;
                }
            }
            prop_assert_eq!(back.in_flight() as usize, taken.len());
            prop_assert_eq!(back.pending(&mem), Ok(shown.len() as u32));
            prop_assert_eq!(front.pending(&mem), Ok(visible.len() as u32));
        }
    }

    /// Whatever the other end writes, an end takes no more than there can be, and stays able to say
    /// so.
    #[test]
    fn a_hostile_end_is_found(
        base: u32,
        pushed in 0_u32..8,
        jump in prop_oneof![0_u32..20, any::<u32>()],
    ) {
        let mem = memory(BYTES);
        let mem = &mem[..];
        let (mut front, mut back) = pair(mem, base);
        for n in 0..pushed {
            prop_assert!(front.push(&mem, &request(n)));
        }
        let _ = front.publish(&mem);

        let bad = base.wrapping_add(jump);
        mem.store32(head::RSP_PROD, bad);
        let limit = pushed;
        let expected = if jump <= limit { Ok(jump) } else {
            Err(RingError { index: bad, own: base, limit })
        };
        prop_assert_eq!(front.pending(&mem), expected);
        prop_assert_eq!(front.final_check(&mem).is_ok(), expected.is_ok());

        mem.store32(head::REQ_PROD, bad);
        let expected = if jump <= 8 { Ok(jump) } else {
            Err(RingError { index: bad, own: base, limit: 8 })
        };
        prop_assert_eq!(back.pending(&mem), expected);
        if let Ok(n) = expected {
            for _ in 0..n {
                prop_assert!(back.pop(&mem).unwrap().is_some());
            }
            prop_assert_eq!(back.pop(&mem), Ok(None));
            // With these in flight, fewer may come; and none that came may be taken back.
            mem.store32(head::REQ_PROD, bad.wrapping_add(9 - n));
            prop_assert!(back.pop(&mem).is_err());
            mem.store32(head::REQ_PROD, bad.wrapping_sub(1));
            prop_assert!(back.pop(&mem).is_err());
        } else {
            prop_assert!(back.pop(&mem).is_err());
        }
    }

    #[test]
    fn notify_means_that_the_event_is_among_the_new(base: u32, new in 0_u32..1000, event in 0_u32..2000) {
        // Indexes from `base` on: entries base.. base+new are new, `event` counts from base too; an
        // index n is published with entry n - 1.
        let expected = event >= 1 && event <= new;
        prop_assert_eq!(
            needs_notify(base, base.wrapping_add(new), base.wrapping_add(event)),
            expected
        );
    }

    #[test]
    fn bytes_arrive_in_order(
        base: u32,
        which in 0_usize..4,
        moves in prop::collection::vec((0_usize..3000, 0_usize..3000), 0..40),
    ) {
        let ring = [console::IN, console::OUT, xs_wire::REQ, xs_wire::RSP][which];
        let mem = memory(4096);
        let mem = &mem[..];
        mem.store32(ring.prod, base);
        mem.store32(ring.cons, base);
        let mut model: VecDeque<u8> = VecDeque::new();
        let mut next = 0_u8;
        for (put, take) in moves {
            let from: Vec<u8> = (0..put).map(|_| { next = next.wrapping_add(7); next }).collect();
            let n = ring.write(&mem, &from).unwrap();
            prop_assert_eq!(n, put.min(ring.size as usize - model.len()));
            model.extend(&from[..n]);
            prop_assert_eq!(ring.available(&mem), Ok(model.len() as u32));
            prop_assert_eq!(ring.free(&mem), Ok(ring.size - model.len() as u32));
            let mut to = vec![0; take];
            let n = ring.read(&mem, &mut to).unwrap();
            prop_assert_eq!(n, take.min(model.len()));
            prop_assert!(model.drain(..n).eq(to[..n].iter().copied()));
        }
    }

    #[test]
    fn impossible_byte_indexes_are_found(cons: u32, ahead: u32) {
        let mem = memory(4096);
        let mem = &mem[..];
        let ring = console::OUT;
        mem.store32(ring.cons, cons);
        mem.store32(ring.prod, cons.wrapping_add(ahead));
        let ok = ahead <= 2048;
        prop_assert_eq!(ring.available(&mem).is_ok(), ok);
        prop_assert_eq!(ring.free(&mem).is_ok(), ok);
        prop_assert_eq!(ring.read(&mem, &mut [0; 4000]).is_ok(), ok);
        mem.store32(ring.cons, cons);
        prop_assert_eq!(ring.write(&mem, &[0; 4000]).is_ok(), ok);
    }

    #[test]
    fn sizes_are_powers_of_two_that_fit(bytes in 0_usize..70_000, entry in 0_usize..300) {
        match ring_size(bytes, entry) {
            Some(n) => {
                prop_assert!(n.is_power_of_two());
                prop_assert!(64 + n as usize * entry <= bytes);
                prop_assert!(64 + 2 * n as usize * entry > bytes);
            }
            None => prop_assert!(entry == 0 || bytes < 64 + entry),
        }
    }
}

#[test]
fn sizes_of_the_known_rings() {
    assert_eq!(blkif::entries(1), Some(32));
    assert_eq!(blkif::entries(2), Some(64));
    assert_eq!(blkif::entries(4), Some(128));
    assert_eq!(blkif::entries(16), Some(512));
    assert_eq!(ring_size(4096, netif::TX_ENTRY_SIZE), Some(256));
    assert_eq!(ring_size(4096, netif::RX_ENTRY_SIZE), Some(256));
    assert_eq!((console::IN.size, console::OUT.size), (1024, 2048));
}

#[test]
fn a_new_ring_asks_for_the_first_event() {
    let mem = memory(BYTES);
    let mem = &mem[..];
    let front = Front::new(&mem, BYTES).unwrap();
    assert_eq!((front.size(), front.free()), (8, 8));
    let words = [0, 4, 8, 12].map(|o| mem.load32(o));
    assert_eq!(words, [0, 1, 0, 1]);
    assert!((16..64).all(|o| mem[o].get() == 0));
}

#[test]
fn a_back_end_takes_up_what_has_no_response() {
    let mem = memory(BYTES);
    let mem = &mem[..];
    let (mut front, mut back) = pair(mem, u32::MAX);
    for n in 0..3 {
        assert!(front.push(&mem, &request(n)));
    }
    assert!(front.publish(&mem));
    for _ in 0..2 {
        assert!(back.pop(&mem).unwrap().is_some());
    }
    assert!(back.push(&mem, &response(0)));
    assert!(back.publish(&mem));

    let mut back = Back::attach(&mem, BYTES).unwrap();
    assert_eq!(back.pending(&mem), Ok(2));
    assert_eq!(back.pop(&mem), Ok(Some(request(1))));
    assert_eq!(back.pop(&mem), Ok(Some(request(2))));
    assert_eq!(back.pop(&mem), Ok(None));
}

#[test]
fn block_requests_keep_their_kind() {
    let slot = |r| {
        blkif::Slot::from(blkif::BlkifRequest {
            operation: r,
            id: 7,
            ..Default::default()
        })
    };
    assert!(matches!(slot(0).decode(), blkif::Request::Direct(r) if r.id == 7));
    assert!(matches!(slot(200).decode(), blkif::Request::Direct(_)));
    let i = blkif::BlkifRequestIndirect {
        operation: blkif::Op::Indirect.number(),
        nr_segments: 300,
        indirect_grefs: [crate::GrantRef(9); 8],
        ..Default::default()
    };
    assert_eq!(blkif::Slot::from(i).decode(), blkif::Request::Indirect(i));
    let d = blkif::BlkifRequestDiscard {
        operation: blkif::Op::Discard.number(),
        nr_sectors: 1 << 40,
        ..Default::default()
    };
    assert_eq!(blkif::Slot::from(d).decode(), blkif::Request::Discard(d));
}

#[test]
fn extra_information_lies_in_an_entry() {
    let e = netif::NetifExtraInfo::gso(1448, netif::GSO_TYPE_TCPV6, netif::EXTRA_FLAG_MORE);
    assert_eq!(netif::NetifExtraInfo::from_tx(&e.to_tx()), e);
    assert_eq!(netif::NetifExtraInfo::from_rx(&e.to_rx()), e);
    assert_eq!((e.gso_size(), e.gso_type()), (1448, 2));
    assert_eq!(e.as_bytes(), [1, 1, 0xa8, 0x05, 2, 0, 0, 0]);
}
