// SPDX-License-Identifier: MIT OR Apache-2.0
use super::super::*;
use super::rig::*;
use crate::testmem::Mem;
use guest_abi::io::blkif::{BlkifRequest, BlkifResponse};
use guest_abi::io::ring::head;
use guest_abi::mem::SharedMem;
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

#[derive(Clone, Debug)]
enum Act {
    Slot(usize, Vec<u8>),
    Nice(usize, u8, u64, u8, Vec<(u32, u8, u8)>),
    Prod(u32),
    Take(u32),
    Finish(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (0usize..32, prop::collection::vec(any::<u8>(), 112)).prop_map(|(n, b)| Act::Slot(n, b)),
        (
            0usize..32,
            0u8..8,
            0u64..1010,
            0u8..14,
            prop::collection::vec((0u32..110, 0u8..8, 0u8..9), 11)
        )
            .prop_map(|(n, o, s, k, g)| Act::Nice(n, o, s, k, g)),
        (0u32..12).prop_map(Act::Prod),
        prop_oneof![Just(99u32), 0u32..8].prop_map(Act::Take),
        any::<usize>().prop_map(Act::Finish),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever a guest writes and whenever: nothing panics, every request taken is answered once
    /// with its number, accepted ones are within the disk, and no page stays mapped.
    #[test]
    fn hostile_ring(acts in prop::collection::vec(act(), 1..120), keep in 0usize..6, wild in 0u32..40, start in any::<u32>()) {
        let mem = Mem::new(4096);
        mem.store32(head::REQ_PROD, start);
        mem.store32(head::RSP_PROD, start);
        let mut q = Queue::attach(&mem, 4096, DISK, LIMITS).unwrap();
        let mut guest = Guest::default();
        guest.pages.insert(3, vec![1; 4096]);
        let mut m = Mappings::new(keep);
        let (mut prod, mut taken, mut answered) = (start, 0u32, 0u32);
        let mut flying: Vec<Op> = Vec::new();
        let mut spans = Vec::new();
        let mut broken = false;
        for a in acts {
            match a {
                Act::Slot(n, b) => mem.write(64 + n * 112, &b),
                Act::Nice(n, o, s, k, g) => {
                    let mut r = BlkifRequest { operation: o, nr_segments: k, id: u64::from(start), sector_number: s, ..Default::default() };
                    for (to, (gref, f, l)) in r.seg.iter_mut().zip(g) { *to = seg(gref, f, l); }
                    mem.write(64 + n * 112, r.as_bytes());
                }
                Act::Prod(n) => { prod = prod.wrapping_add(n); mem.store32(head::REQ_PROD, prod); }
                Act::Take(budget) => {
                    let room = 32 - q.in_flight();
                    let waiting = prod.wrapping_sub(start.wrapping_add(taken));
                    let mut ops = Vec::new();
                    let before = q.in_flight();
                    let given = |q: &Queue| q.in_flight() - u32::from(q.holds());
                    let given_before = given(&q);
                    let ordered = q.holds() || flying.iter().any(|op| op.kind() == Kind::Barrier);
                    match q.take_requests(&mem, &mut guest, budget, &mut ops) {
                        Ok(t) => {
                            prop_assert!(t.requests <= budget && t.requests <= room.max(waiting));
                            prop_assert_eq!(given(&q), given_before + ops.len() as u32);
                            taken += t.requests;
                            answered += t.requests - (q.in_flight() - before);
                            let barrier = q.holds() || ops.iter().any(|op| op.kind() == Kind::Barrier);
                            prop_assert!(!ordered || ops.len() <= 1 && t.requests == 0 || flying.is_empty());
                            if !broken && !ordered && !barrier && waiting <= room { prop_assert_eq!(t.requests, waiting.min(budget).min(32)); }
                        }
                        Err(_) => {
                            broken = true;
                            let _ = q.publish(&mem);
                            answered = mem.load32(head::RSP_PROD).wrapping_sub(start);
                            prop_assert_eq!(given(&q), given_before + ops.len() as u32);
                        }
                    }
                    // A barrier is alone.
                    let barriers = ops.iter().chain(&flying).filter(|op| op.kind() == Kind::Barrier).count();
                    prop_assert!(barriers == 0 || ops.len() + flying.len() == 1);
                    for op in ops {
                        prop_assert!(op.sector().checked_add(op.sectors()).unwrap() <= DISK.sectors);
                        let sum: u64 = op.segments().iter().map(|s| u64::from(s.last_sect - s.first_sect) + 1).sum();
                        match op.kind() {
                            Kind::Read | Kind::Write | Kind::Barrier => {
                                prop_assert_eq!(sum, op.sectors());
                                if m.map(&op, &mut guest, &mut spans).is_err() {
                                    q.respond(&mem, op, Status::Error);
                                    answered += 1;
                                    continue;
                                }
                                prop_assert_eq!(spans.iter().map(|s| u64::from(s.bytes)).sum::<u64>(), sum * 512);
                                prop_assert!(spans.iter().all(|s| s.addr % 4096 + u64::from(s.bytes) <= 4096));
                            }
                            _ => prop_assert!(op.segments().is_empty()),
                        }
                        flying.push(op);
                    }
                }
                Act::Finish(n) if !flying.is_empty() => {
                    let op = flying.swap_remove(n % flying.len());
                    m.release(&op, &mut guest);
                    let want = op.answer(Status::Okay);
                    let _ = q.complete(&mem, op, Status::Okay);
                    let at = mem.load32(head::RSP_PROD).wrapping_sub(1);
                    answered += 1;
                    prop_assert_eq!(at, start.wrapping_add(answered - 1));
                    let mut b = [0; 16];
                    mem.read(64 + (at % 32) as usize * 112, &mut b);
                    prop_assert_eq!(BlkifResponse::read_from_bytes(&b).unwrap(), want);
                }
                Act::Finish(_) => {}
            }
            prop_assert_eq!(q.in_flight(), flying.len() as u32 + u32::from(q.holds()));
        }
        mem.store32(head::REQ_PROD, prod.wrapping_add(wild));
        q.stop();
        for op in flying.drain(..) {
            m.release(&op, &mut guest);
            let _ = q.complete(&mem, op, Status::Error);
            answered += 1;
        }
        // A barrier that was held back is given out now.
        let mut last = Vec::new();
        prop_assert!(q.take_requests(&mem, &mut guest, 99, &mut last).is_ok() && last.len() < 2);
        for op in last {
            let _ = q.complete(&mem, op, Status::Error);
            answered += 1;
        }
        let _ = q.publish(&mem);
        prop_assert_eq!(q.in_flight(), 0);
        prop_assert_eq!(mem.load32(head::RSP_PROD), start.wrapping_add(answered));
        if !broken { prop_assert_eq!(answered, taken); }
        prop_assert!(guest.mapped.len() <= keep);
        m.close(&mut guest);
        prop_assert!(guest.mapped.is_empty());
    }
}
