// SPDX-License-Identifier: MIT OR Apache-2.0
use super::super::*;
use crate::testmem::Mem;
use guest_abi::GrantRef;
use guest_abi::io::blkif::{
    BlkifRequest, BlkifRequestDiscard, BlkifRequestIndirect, BlkifRequestSegment, BlkifResponse,
    DISCARD_SECURE, Op as Nr, Slot,
};
use guest_abi::io::ring::{FrontRing, RingMem, head};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use zerocopy::{FromBytes, IntoBytes};

const DISK: Disk = Disk {
    sectors: 1000,
    read_only: false,
    cdrom: false,
    flush: true,
    discard: Some(Discard {
        granularity: 512,
        alignment: 0,
        secure: false,
    }),
    physical_sector_size: 512,
};
const LIMITS: Limits = Limits {
    indirect_segments: 600,
    ring_page_order: 0,
    queues: 1,
    persistent_pages: 4,
};

/// A front end's pages: grants below 100 are good, 50 to 59 read-only.
#[derive(Default)]
struct Guest {
    pages: HashMap<u32, Vec<u8>>,
    mapped: BTreeMap<u64, (GrantRef, bool)>,
    next: u64,
    calls: usize,
}

impl Pages for Guest {
    type Page = u64;
    fn map(&mut self, list: &mut [Mapping<u64>]) {
        self.calls += 1;
        for m in list {
            assert_eq!(m.page, None);
            if m.gref.0 < 100 && !(m.writable && (50..60).contains(&m.gref.0)) {
                self.next += 1;
                self.mapped.insert(self.next, (m.gref, m.writable));
                m.page = Some(self.next);
            }
        }
    }
    fn unmap(&mut self, list: &[u64]) {
        self.calls += 1;
        for page in list {
            assert!(self.mapped.remove(page).is_some(), "unmapped twice");
        }
    }
    fn addr(&self, page: u64) -> u64 {
        assert!(self.mapped.contains_key(&page));
        page * 4096
    }
    fn copy_in(&mut self, gref: GrantRef, to: &mut [u8]) -> bool {
        let Some(p) = self.pages.get(&gref.0) else {
            return false;
        };
        to.copy_from_slice(&p[..to.len()]);
        true
    }
}

fn seg(gref: u32, first: u8, last: u8) -> BlkifRequestSegment {
    BlkifRequestSegment {
        gref: GrantRef(gref),
        first_sect: first,
        last_sect: last,
        _pad: 0xffff,
    }
}

fn direct(op: Nr, id: u64, sector: u64, segs: &[BlkifRequestSegment]) -> Slot {
    let mut r = BlkifRequest {
        operation: op.number(),
        nr_segments: segs.len() as u8,
        id,
        sector_number: sector,
        ..Default::default()
    };
    r.seg[..segs.len()].copy_from_slice(segs);
    r.into()
}

struct Rig {
    mem: Mem,
    front: FrontRing<Slot, BlkifResponse>,
    queue: Queue,
    guest: Guest,
}

fn rig_with(disk: Disk, limits: Limits) -> Rig {
    let mem = Mem::new(4096);
    let front = FrontRing::new(&mem, 4096).unwrap();
    let queue = Queue::attach(&mem, 4096, disk, limits).unwrap();
    Rig {
        mem,
        front,
        queue,
        guest: Guest::default(),
    }
}

fn rig() -> Rig {
    rig_with(DISK, LIMITS)
}

impl Rig {
    fn take(&mut self, budget: u32) -> (Vec<Op>, Taken) {
        let mut ops = Vec::new();
        let t = self
            .queue
            .take_requests(&self.mem, &mut self.guest, budget, &mut ops)
            .unwrap();
        (ops, t)
    }
    /// Sends one request and takes it.
    fn one(&mut self, slot: impl Into<Slot>) -> Option<Op> {
        assert!(self.front.push(&self.mem, &slot.into()));
        assert!(self.front.publish(&self.mem));
        let (mut ops, t) = self.take(10);
        assert_eq!((t.requests, t.more), (1, false));
        assert_eq!(t.notify, ops.is_empty());
        ops.pop()
    }
    fn answer(&mut self) -> BlkifResponse {
        let r = self.front.pop(&self.mem).unwrap().expect("an answer");
        assert_eq!(self.front.pop(&self.mem), Ok(None));
        assert_eq!(self.front.final_check(&self.mem), Ok(false));
        r
    }
    fn refused(&mut self, slot: impl Into<Slot>, id: u64, op: u8, status: Status) {
        let op_taken = self.one(slot);
        assert!(op_taken.is_none(), "{op_taken:?}");
        assert_eq!(self.answer(), BlkifResponse::new(id, op, status));
    }
}

#[test]
fn read_is_taken_and_answered() {
    let mut r = rig();
    let segs = [seg(1, 0, 7), seg(2, 3, 3)];
    let op = r.one(direct(Nr::Read, 77, 991, &segs)).unwrap();
    assert_eq!((op.kind(), op.sector(), op.sectors()), (Kind::Read, 991, 9));
    assert_eq!(op.segments(), segs);
    assert_eq!(r.queue.in_flight(), 1);
    assert!(r.queue.complete(&r.mem, op, Status::Okay));
    assert_eq!(r.answer(), BlkifResponse::new(77, 0, Status::Okay));
    assert_eq!(r.queue.in_flight(), 0);
}

#[test]
fn bad_requests_are_refused() {
    let mut r = rig();
    let ok = [seg(1, 0, 7)];
    let e = Status::Error;
    r.refused(direct(Nr::Read, 1, 0, &[]), 1, 0, e);
    r.refused(direct(Nr::Read, 2, 993, &ok), 2, 0, e);
    r.refused(direct(Nr::Write, 3, u64::MAX, &ok), 3, 1, e);
    r.refused(direct(Nr::Read, 4, 0, &[seg(1, 0, 8)]), 4, 0, e);
    r.refused(direct(Nr::Read, 5, 0, &[seg(1, 3, 2)]), 5, 0, e);
    r.refused(direct(Nr::FlushDiskcache, 6, 0, &ok), 6, 3, e);
    r.refused(
        direct(Nr::WriteBarrier, 7, 0, &ok),
        7,
        2,
        Status::Eopnotsupp,
    );
    let mut many = direct(Nr::Read, 8, 0, &ok);
    many.0.nr_segments = 12;
    r.refused(many, 8, 0, e);
    many.0.operation = 200;
    r.refused(many, 8, 200, Status::Eopnotsupp);
    let flush = r.one(direct(Nr::FlushDiskcache, 9, 0, &[])).unwrap();
    assert_eq!((flush.kind(), flush.sectors()), (Kind::Flush, 0));
}

#[test]
fn read_only_and_plain_disks() {
    let disk = Disk {
        read_only: true,
        ..DISK
    };
    let mut r = rig_with(disk, LIMITS);
    r.refused(
        direct(Nr::Write, 1, 0, &[seg(1, 0, 7)]),
        1,
        1,
        Status::Error,
    );
    let d = BlkifRequestDiscard {
        operation: Nr::Discard.number(),
        id: 2,
        nr_sectors: 1,
        ..Default::default()
    };
    r.refused(d, 2, 5, Status::Error);
    assert!(r.one(direct(Nr::Read, 3, 0, &[seg(1, 0, 7)])).is_some());
    let disk = Disk {
        flush: false,
        discard: None,
        ..DISK
    };
    let limits = Limits {
        indirect_segments: 0,
        ..LIMITS
    };
    let mut r = rig_with(disk, limits);
    r.refused(d, 2, 5, Status::Eopnotsupp);
    r.refused(
        direct(Nr::FlushDiskcache, 4, 0, &[]),
        4,
        3,
        Status::Eopnotsupp,
    );
    let i = BlkifRequestIndirect {
        operation: Nr::Indirect.number(),
        nr_segments: 1,
        ..Default::default()
    };
    r.refused(i, 0, 0, Status::Eopnotsupp);
}

#[test]
fn discard_ranges() {
    let mut r = rig();
    let mut d = BlkifRequestDiscard {
        operation: Nr::Discard.number(),
        id: 5,
        sector_number: 10,
        nr_sectors: 990,
        ..Default::default()
    };
    let op = r.one(d).unwrap();
    assert_eq!(op.kind(), Kind::Discard { secure: false });
    assert_eq!((op.sector(), op.sectors()), (10, 990));
    assert!(r.queue.complete(&r.mem, op, Status::Okay));
    r.answer();
    for n in [0, 991, u64::MAX] {
        d.nr_sectors = n;
        r.refused(d, 5, 5, Status::Error);
    }
    d.flag = DISCARD_SECURE;
    r.refused(d, 5, 5, Status::Eopnotsupp);
}

#[test]
fn indirect_segments_come_from_pages() {
    let mut r = rig();
    let segs: Vec<_> = (0..600).map(|n| seg(n, 7, 7)).collect();
    for (n, part) in segs.chunks(512).enumerate() {
        let mut page = vec![0xff; 4096];
        page[..part.len() * 8].copy_from_slice(part.as_bytes());
        r.guest.pages.insert(900 + n as u32, page);
    }
    let mut i = BlkifRequestIndirect {
        operation: Nr::Indirect.number(),
        indirect_op: Nr::Write.number(),
        nr_segments: 600,
        id: 3,
        sector_number: 400,
        ..Default::default()
    };
    i.indirect_grefs[0] = GrantRef(900);
    i.indirect_grefs[1] = GrantRef(901);
    let op = r.one(i).unwrap();
    assert_eq!((op.kind(), op.sectors()), (Kind::Write, 600));
    assert_eq!(op.segments(), segs);
    assert!(r.queue.complete(&r.mem, op, Status::Okay));
    // The answer names the operation that the indirect one stands for.
    assert_eq!(r.answer(), BlkifResponse::new(3, 1, Status::Okay));
    i.sector_number = 401;
    r.refused(i, 3, 1, Status::Error);
    i.sector_number = 0;
    i.indirect_grefs[1] = GrantRef(902);
    r.refused(i, 3, 1, Status::Error);
    i.nr_segments = 601;
    r.refused(i, 3, 1, Status::Error);
    i.nr_segments = 0;
    r.refused(i, 3, 1, Status::Error);
    i.nr_segments = 1;
    i.indirect_op = Nr::Indirect.number();
    r.refused(i, 3, 6, Status::Eopnotsupp);
}

/// Counts how often each byte behind the head is read.
struct Counting<'a>(&'a Mem, RefCell<Vec<u32>>);

impl RingMem for Counting<'_> {
    fn load32(&self, offset: usize) -> u32 {
        assert!(offset < head::ENTRIES);
        self.0.load32(offset)
    }
    fn store32(&self, offset: usize, value: u32) {
        self.0.store32(offset, value);
    }
    fn read(&self, offset: usize, to: &mut [u8]) {
        for n in &mut self.1.borrow_mut()[offset..offset + to.len()] {
            *n += 1;
        }
        self.0.read(offset, to);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        self.0.write(offset, from);
    }
}

/// XSA-155: a request is read once, and what the guest writes later has no effect.
#[test]
fn requests_are_fetched_once() {
    let mut r = rig();
    for id in 0..32 {
        assert!(
            r.front
                .push(&r.mem, &direct(Nr::Write, id, id, &[seg(9, 1, 2)]))
        );
    }
    assert!(r.front.publish(&r.mem));
    let counting = Counting(&r.mem, RefCell::new(vec![0; 4096]));
    let mut ops = Vec::new();
    let t = r
        .queue
        .take_requests(&counting, &mut r.guest, 99, &mut ops)
        .unwrap();
    assert_eq!((t.requests, t.more, ops.len()), (32, false, 32));
    assert!(counting.1.borrow()[head::ENTRIES..].iter().all(|n| *n <= 1));
    r.mem.write(head::ENTRIES, &[0xff; 32 * 112]);
    for (n, op) in (0..).zip(ops) {
        assert_eq!((op.kind(), op.sector(), op.sectors()), (Kind::Write, n, 2));
        assert_eq!(op.segments(), [seg(9, 1, 2)]);
        r.queue.respond(&r.mem, op, Status::Okay);
    }
    assert!(r.queue.publish(&r.mem));
    for id in 0..32 {
        let a = r.front.pop(&r.mem).unwrap();
        assert_eq!(a, Some(BlkifResponse::new(id, 1, Status::Okay)));
    }
}

/// XSA-216: no byte of an answer is left as it was in memory.
#[test]
fn answers_have_no_stale_bytes() {
    let mut r = rig();
    let op = r.one(direct(Nr::Read, 5, 0, &[seg(1, 0, 0)])).unwrap();
    r.mem.write(head::ENTRIES, &[0xee; 112]);
    let _ = r.queue.complete(&r.mem, op, Status::Error);
    let mut b = [0; 112];
    r.mem.read(head::ENTRIES, &mut b);
    assert_eq!(b[..8], 5u64.to_le_bytes());
    assert_eq!(b[8..16], [0, 0, 0xff, 0xff, 0, 0, 0, 0]);
    assert_eq!(b[16..], [0xee; 96]);
}

#[test]
fn budget_and_stop() {
    let mut r = rig();
    for id in 0..5 {
        assert!(
            r.front
                .push(&r.mem, &direct(Nr::Read, id, 0, &[seg(1, 0, 0)]))
        );
    }
    let _ = r.front.publish(&r.mem);
    let (ops, t) = r.take(3);
    assert_eq!((ops.len(), t.more), (3, true));
    let (ops, t) = r.take(2);
    assert_eq!((ops.len(), t.more), (2, false));
    // The next request brings an event.
    assert!(
        r.front
            .push(&r.mem, &direct(Nr::Read, 9, 0, &[seg(1, 0, 0)]))
    );
    assert!(r.front.publish(&r.mem));
    r.queue.stop();
    assert_eq!(r.take(9).1, Taken::default());
    assert_eq!(r.queue.in_flight(), 5);
}

#[test]
fn impossible_index_is_told_once() {
    let mut r = rig();
    r.mem.store32(head::REQ_PROD, 33);
    let mut ops = Vec::new();
    let mut take = || r.queue.take_requests(&r.mem, &mut r.guest, 9, &mut ops);
    assert!(take().is_err());
    assert_eq!(take(), Ok(Taken::default()));
}

#[test]
fn a_new_back_end_takes_what_was_not_answered() {
    let mut r = rig();
    let op = r.one(direct(Nr::Read, 5, 0, &[seg(1, 0, 0)]));
    drop(op);
    r.queue = Queue::attach(&r.mem, 4096, DISK, LIMITS).unwrap();
    assert_eq!(r.take(9).0.len(), 1);
}

fn transfer(r: &mut Rig, op: Nr, segs: &[BlkifRequestSegment]) -> Op {
    let op = r.one(direct(op, 0, 0, segs)).unwrap();
    let _ = r.front.pop(&r.mem);
    op
}

#[test]
fn pages_are_kept_longest_unused_goes_first() {
    let mut r = rig();
    let mut m = Mappings::new(2);
    let mut spans = Vec::new();
    let op = transfer(
        &mut r,
        Nr::Write,
        &[seg(1, 2, 3), seg(2, 0, 7), seg(1, 4, 4)],
    );
    m.map(&op, &mut r.guest, &mut spans).unwrap();
    assert_eq!(r.guest.calls, 1);
    assert_eq!(m.mapped(), 2);
    let span = |addr, bytes| Span { addr, bytes };
    assert_eq!(
        spans,
        [
            span(4096 + 1024, 1024),
            span(8192, 4096),
            span(4096 + 2048, 512)
        ]
    );
    m.release(&op, &mut r.guest);
    assert_eq!((r.guest.calls, m.mapped()), (1, 2));
    // Kept for the other direction too; the third page makes the oldest go once it is not in use.
    let read = transfer(&mut r, Nr::Read, &[seg(2, 0, 0), seg(3, 0, 0)]);
    m.map(&read, &mut r.guest, &mut spans).unwrap();
    assert_eq!((r.guest.calls, m.mapped()), (2, 3));
    m.release(&read, &mut r.guest);
    let left: Vec<_> = r.guest.mapped.values().map(|v| v.0.0).collect();
    assert_eq!(left, [2, 3]);
    m.close(&mut r.guest);
    assert!(r.guest.mapped.is_empty());
    assert_eq!(m.mapped(), 0);
}

#[test]
fn nothing_is_held_after_a_failed_map() {
    for keep in [0, 8] {
        let mut r = rig();
        let mut m = Mappings::new(keep);
        let mut spans = Vec::new();
        let op = transfer(
            &mut r,
            Nr::Write,
            &[seg(1, 0, 7), seg(500, 0, 7), seg(500, 0, 7)],
        );
        assert_eq!(m.map(&op, &mut r.guest, &mut spans), Err(MapError));
        assert!(spans.is_empty());
        m.close(&mut r.guest);
        assert_eq!((m.mapped(), r.guest.mapped.len()), (0, 0));
        // Read-only grants serve for writes to the disk when they are not to be kept.
        let op = transfer(&mut r, Nr::Write, &[seg(50, 0, 7)]);
        assert_eq!(m.map(&op, &mut r.guest, &mut spans).is_ok(), keep == 0);
        let op = transfer(&mut r, Nr::Read, &[seg(50, 0, 7)]);
        assert!(m.map(&op, &mut r.guest, &mut spans).is_err());
    }
}

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
                    match q.take_requests(&mem, &mut guest, budget, &mut ops) {
                        Ok(t) => {
                            prop_assert!(t.requests <= budget && t.requests <= room.max(waiting));
                            prop_assert_eq!(q.in_flight(), before + ops.len() as u32);
                            taken += t.requests;
                            answered += t.requests - ops.len() as u32;
                            if !broken && waiting <= room { prop_assert_eq!(t.requests, waiting.min(budget).min(32)); }
                        }
                        Err(_) => {
                            broken = true;
                            let _ = q.publish(&mem);
                            answered = mem.load32(head::RSP_PROD).wrapping_sub(start);
                            prop_assert_eq!(q.in_flight(), before + ops.len() as u32);
                        }
                    }
                    for op in ops {
                        prop_assert!(op.sector().checked_add(op.sectors()).unwrap() <= DISK.sectors);
                        let sum: u64 = op.segments().iter().map(|s| u64::from(s.last_sect - s.first_sect) + 1).sum();
                        match op.kind() {
                            Kind::Read | Kind::Write => {
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
            prop_assert_eq!(q.in_flight(), flying.len() as u32);
        }
        mem.store32(head::REQ_PROD, prod.wrapping_add(wild));
        q.stop();
        for op in flying.drain(..) {
            m.release(&op, &mut guest);
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
