// SPDX-License-Identifier: MIT OR Apache-2.0
use super::super::*;
use super::rig::*;
use crate::testmem::Mem;
use guest_abi::GrantRef;
use guest_abi::io::blkif::{
    BlkifRequestDiscard, BlkifRequestIndirect, BlkifResponse, DISCARD_SECURE, Op as Nr,
};
use guest_abi::io::ring::head;
use guest_abi::mem::SharedMem;
use std::cell::RefCell;
use zerocopy::IntoBytes;

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
    r.refused(direct(Nr::FlushDiskcache, 6, 993, &ok), 6, 3, e);
    r.refused(direct(Nr::WriteBarrier, 7, 993, &ok), 7, 2, e);
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
    for (nr, segments) in [
        (Nr::WriteBarrier, &[][..]),
        (Nr::WriteBarrier, &[seg(1, 0, 7)]),
        (Nr::FlushDiskcache, &[seg(1, 0, 7)]),
    ] {
        let mut r = rig_with(disk, LIMITS);
        r.refused(direct(nr, 4, 0, segments), 4, nr.number(), Status::Error);
    }
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
    r.refused(
        direct(Nr::WriteBarrier, 5, 0, &[]),
        5,
        2,
        Status::Eopnotsupp,
    );
    let i = BlkifRequestIndirect {
        operation: Nr::Indirect.number(),
        nr_segments: 1,
        ..Default::default()
    };
    r.refused(i, 0, 0, Status::Eopnotsupp);
}

/// What came before a barrier is answered before it begins, and nothing after it begins before it is answered.
#[test]
fn barriers_keep_the_order() {
    let segments = [seg(1, 0, 7)];
    for barrier in [
        direct(Nr::WriteBarrier, 3, 24, &segments),
        direct(Nr::WriteBarrier, 3, 0, &[]),
        direct(Nr::FlushDiskcache, 3, 24, &segments),
    ] {
        let mut r = rig();
        for slot in [
            direct(Nr::Write, 1, 0, &segments),
            direct(Nr::Write, 2, 8, &segments),
            barrier,
            direct(Nr::WriteBarrier, 4, 0, &[]),
            direct(Nr::Write, 5, 16, &segments),
        ] {
            assert!(r.front.push(&r.mem, &slot));
        }
        assert!(r.front.publish(&r.mem));
        let ids = |ops: &[Op]| -> Vec<u64> {
            let answers = ops.iter().map(|op| op.answer(Status::Okay));
            answers.map(|a| a.id).collect()
        };
        let (mut ops, _) = r.take(10);
        assert_eq!((ids(&ops), r.queue.holds()), (vec![1, 2], true));
        while let Some(op) = ops.pop() {
            assert!(r.take(10).0.is_empty());
            let _ = r.queue.complete(&r.mem, op, Status::Okay);
        }
        for id in [3, 4, 5] {
            let (mut ops, _) = r.take(10);
            assert_eq!(ids(&ops), [id]);
            assert_eq!(
                (ops[0].kind() == Kind::Barrier, r.queue.holds()),
                (id < 5, false)
            );
            assert!(r.take(10).0.is_empty());
            let _ = r.queue.complete(&r.mem, ops.remove(0), Status::Okay);
        }
        assert_eq!(r.queue.in_flight(), 0);
    }
}

/// One that is held back when the queue stops is still given out and answered.
#[test]
fn a_stop_leaves_no_barrier_behind() {
    let mut r = rig();
    let write = r.one(direct(Nr::Write, 1, 0, &[seg(1, 0, 7)])).unwrap();
    assert!(r.front.push(&r.mem, &direct(Nr::WriteBarrier, 2, 0, &[])));
    assert!(r.front.publish(&r.mem));
    assert!(r.take(10).0.is_empty() && r.queue.holds());
    r.queue.stop();
    assert!(r.take(10).0.is_empty());
    let _ = r.queue.complete(&r.mem, write, Status::Okay);
    let barrier = r.take(10).0.remove(0);
    let _ = r.queue.complete(&r.mem, barrier, Status::Okay);
    assert_eq!(r.queue.in_flight(), 0);
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
    r.refused(i, 3, 6, Status::Error);
}

/// Counts how often each byte behind the head is read.
struct Counting<'a>(&'a Mem, RefCell<Vec<u32>>);

impl SharedMem for Counting<'_> {
    fn load32(&self, offset: usize) -> u32 {
        assert!(offset < head::ENTRIES);
        self.0.load32(offset)
    }
    fn store32(&self, offset: usize, value: u32) {
        self.0.store32(offset, value);
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
