// SPDX-License-Identifier: MIT OR Apache-2.0
use super::super::*;
use super::rig::*;
use guest_abi::io::blkif::{BlkifRequestSegment, Op as Nr};

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
