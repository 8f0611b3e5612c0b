// SPDX-License-Identifier: MIT OR Apache-2.0
//! What single advisories of Xen's were about, tried on the whole hypervisor.

use guest_abi::calls::{domctl, grant, memory};
use guest_abi::grant_table::{GnttabCacheFlush, cache};
use guest_abi::memory::{
    MapSpace, MemoryOp, MemoryReservation, RESOURCE_GRANT_TABLE_SHARED, Resource,
};
use guest_abi::{DomId, Errno, Gfn, arch};
use hv_core::hypercall::Reply;
use hv_core::room::fail_after;
use hv_core::types::Access;
use sim::{Config, DomU, Guest, WINDOW, World};

const RAM0: u64 = arch::GUEST_RAM0_BASE;
/// For calls' structures.
const ARG: u64 = RAM0 + 0x2000;
/// Beyond this no frame is.
const LAST: u64 = (1 << 28) - 1;

/// A world where what is made once and kept is there.
fn world() -> (World, sim::Totals) {
    let w = World::boot(3);
    let first = w.create(Config::default()).unwrap();
    let h = w.dom0();
    let mut errs = [0];
    memory::map_foreign(
        &h,
        first.id,
        &[Gfn::of(RAM0)],
        &[Gfn::of(WINDOW)],
        &mut errs,
    )
    .unwrap();
    memory::remove_from_physmap(&h, DomId::SELF, Gfn::of(WINDOW)).unwrap();
    w.destroy(first.id);
    let start = w.totals();
    (w, start)
}

/// A reservation's structure at `at`, its list behind it.
fn reservation(g: &Guest<'_>, at: u64, list: &[u64], extents: u64, order: u32, flags: u32) {
    for (k, gfn) in list.iter().enumerate() {
        g.put(at + 64 + k as u64 * 8, gfn);
    }
    g.put(
        at,
        &MemoryReservation {
            extent_start: at + 64,
            nr_extents: extents,
            extent_order: order,
            mem_flags: flags,
            domid: DomId::SELF,
            ..Default::default()
        },
    );
}

/// Entries of a multicall whose every one is preempted are gone on with, each where it was, and none of them is lost,
/// made twice, or begun before the one before it is done.
#[test]
fn xsa_145_213_entries_that_are_preempted_go_on() {
    let (w, start) = world();
    let h = w.dom0();
    let d = w.create(Config::default()).unwrap();
    let g = d.guest(&w);
    domctl::max_mem(&h, d.id, 64 << 10).unwrap();
    let before = w.hv.borrow().frames.guest_pages(d.v.slot);
    let calls = RAM0 + 0x10000;
    let (populate, decrease) = (
        MemoryOp::PopulatePhysmap.number(),
        MemoryOp::DecreaseReservation.number(),
    );
    // 192 pages come, go and come again; and a block of 2 MiB; all in one multicall.
    let list: Vec<u64> = (0..192).map(|k| 0x10_0000 + k).collect();
    let entry = |n: u64, nr: u64, x: [u64; 3]| {
        let mut e = [0u64; 8];
        (e[0], e[2], e[3], e[4]) = (nr, x[0], x[1], x[2]);
        g.put(calls + n * 64, &e);
    };
    for n in 0..3 {
        let at = RAM0 + 0x4000 + n * 0x1000;
        reservation(&g, at, &list, 192, 0, 0);
        entry(n, 12, [[populate, decrease][n as usize % 2], at, 0]);
    }
    reservation(&g, ARG, &[0x20_0000], 1, 9, 0);
    entry(3, 12, [populate, ARG, 0]);
    // EVTCHNOP_reset, and a multicall within it, which does not exist there.
    let reset = RAM0 + 0x9000;
    g.put(reset, &DomId::SELF);
    entry(4, 32, [10, reset, 0]);
    entry(5, 13, [calls, 6, 0]);
    let mut x = [calls, 6, 0, 0, 0];
    let (mut slices, mut most) = (1, before);
    while w.slice(g.v, 13, &mut x) == Reply::Again {
        slices += 1;
        w.check();
        most = most.max(w.hv.borrow().frames.guest_pages(d.v.slot));
        assert!(slices < 1000, "it does not end");
    }
    assert!(slices > 8, "only {slices} slices");
    let result = |n: u64| g.get::<i64>(calls + n * 64 + 8);
    assert_eq!([0, 1, 2, 3, 4].map(result), [192, 192, 192, 1, 0]);
    assert!(result(5) < 0, "{}", result(5));
    let after = w.hv.borrow().frames.guest_pages(d.v.slot);
    assert_eq!((after - before, most - before), (192 + 512, 192 + 512));
    w.check();
    w.destroy(d.id);
    assert_eq!(w.totals(), start);
}

/// No reservation is larger because a sum or a product wrapped, and what the flags say chooses no memory.
#[test]
fn xsa_231_385_reservations_do_not_wrap() {
    let (w, start) = world();
    let h = w.dom0();
    let d = w.create(Config::default()).unwrap();
    let g = d.guest(&w);
    let pages = || w.hv.borrow().frames.guest_pages(d.v.slot);
    let before = pages();
    // No room for one more page.
    domctl::max_mem(&h, d.id, u64::from(before) * 4).unwrap();
    let ops = [
        MemoryOp::PopulatePhysmap,
        MemoryOp::IncreaseReservation,
        MemoryOp::DecreaseReservation,
    ];
    for op in ops {
        for order in [0, 9, 10, 18, 31, 32, 52, 63, 64, u32::MAX] {
            for extents in [1, 1 << 20, 1 << 32, (1 << 52) + 1, u64::MAX - 1, u64::MAX] {
                for flags in [0, 1 << 4, 0xff << 8, u32::MAX] {
                    // What may be given back is not there.
                    reservation(&g, ARG, &[LAST + 1, LAST + 1], extents, order, flags);
                    let mut x = [op.number(), ARG, 0, 0, 0];
                    let done = (0..2000).find_map(|_| match w.slice(g.v, 12, &mut x) {
                        Reply::Done(r) => Some(r),
                        Reply::Again => None,
                    });
                    assert!(
                        done.is_some_and(|r| r <= 0),
                        "{op:?} of {extents:#x} of order {order}: {done:?}"
                    );
                    assert_eq!(pages(), before);
                }
            }
        }
    }
    // Neither is a limit.
    for limit in [u64::MAX, 1 << 34, (1 << 34) + 4, 1 << 44] {
        let _ = domctl::max_mem(&h, d.id, limit);
        let seen = memory::maximum_reservation(&h, d.id).unwrap();
        assert!(seen == u64::from(before) || seen == limit / 4, "{seen:#x}");
    }
    w.check();
    w.destroy(d.id);
    assert_eq!(w.totals(), start);
}

/// Whatever of acquire_resource is refused, or fails at whichever place, takes and keeps nothing.
#[test]
fn xsa_333_334_acquire_resource_keeps_nothing_of_what_failed() {
    let (w, start) = world();
    let h = w.dom0();
    let d = w.create(Config::default()).unwrap();
    let at = |k: u64| Gfn((WINDOW >> 12) + k);
    let acquire = |dom, kind, id, first, ours: &[Gfn]| {
        memory::acquire_resource(&h, dom, kind, id, first, ours)
    };
    let (kind, id) = (Resource::GrantTable, RESOURCE_GRANT_TABLE_SHARED);
    let before = w.totals();
    let refused = [
        acquire(DomId(99), kind, id, 0, &[at(0)]),
        acquire(d.id, kind, 7, 0, &[at(0)]),
        acquire(d.id, kind, id, 64, &[at(0)]),
        acquire(d.id, kind, id, 63, &[at(0), at(1)]),
        acquire(d.id, kind, id, u64::MAX, &[at(0)]),
        acquire(d.id, kind, id, u64::MAX, &[at(0), at(1)]),
        acquire(d.id, kind, id, 0, &[Gfn(LAST + 1)]),
        acquire(d.id, kind, id, 0, &[Gfn(u64::MAX)]),
        memory::acquire_resource(&d.guest(&w), d.id, kind, id, 0, &[at(0)]),
    ];
    assert!(refused.iter().all(Result::is_err), "{refused:?}");
    w.check();
    assert_eq!(w.totals(), before);
    // The second one's place is no frame: what was mapped before it is taken back, or said to be there.
    let _ = acquire(d.id, kind, id, 0, &[at(0), Gfn(LAST + 1)]);
    w.check();
    let _ = memory::remove_from_physmap(&h, DomId::SELF, at(0));
    // A table or a frame cannot be made.
    let mut n = 0;
    loop {
        fail_after(n);
        let far = Gfn((WINDOW >> 12) + (70 << 18));
        let done = acquire(d.id, kind, id, 5, &[far, at(2)]);
        let unused = fail_after(u64::MAX) != u64::MAX;
        w.check();
        for gfn in [far, at(2)] {
            let there = memory::remove_from_physmap(&h, DomId::SELF, gfn);
            assert!(done.is_err() || there.is_ok(), "{done:?}, {there:?}");
        }
        if unused {
            assert_eq!(done, Ok(()));
            break;
        }
        n += 1;
    }
    assert!(n > 1, "{n} allocations");
    w.check();
    w.destroy(d.id);
    assert_eq!(w.totals().domains, start.domains);
}

/// A guest whose grant frame wanders through its address space makes tables until its own pool is used up, and nobody
/// else has less for it.
#[test]
fn xsa_409_tables_come_from_the_domains_own_pool() {
    let (w, start) = world();
    let h = w.dom0();
    let d = w.create(Config::default()).unwrap();
    let other = w.create(Config::default()).unwrap();
    let g = d.guest(&w);
    let pool = domctl::get_paging_mempool_size(&h, d.id).unwrap() / 4096;
    let free = w.totals().free;
    let mut made = 0;
    let refused = (2..1024).find(|k| {
        let gfn = Gfn(k << 18);
        match memory::add_to_physmap(&g, DomId::SELF, MapSpace::GrantTable, 0, gfn) {
            Ok(()) => memory::remove_from_physmap(&g, DomId::SELF, gfn).unwrap(),
            Err(e) => {
                assert_eq!(e, Errno::ENOMEM);
                return true;
            }
        }
        made += 2;
        false
    });
    assert!(refused.is_some() && made <= pool, "{made} of {pool}");
    assert!(
        made + 16 > pool,
        "{made} of {pool}: the pool was not used up"
    );
    assert_eq!(w.totals().free, free);
    w.check();
    // Others map as before.
    let o = other.guest(&w);
    memory::add_to_physmap(&o, DomId::SELF, MapSpace::GrantTable, 0, Gfn(9 << 18)).unwrap();
    w.destroy(d.id);
    w.destroy(other.id);
    assert_eq!(w.totals(), start);
}

/// Cache maintenance of frames, of whichever range, ends; and one of a part of a page brings each line of it to memory,
/// the last one too, and none beside it.
#[test]
fn xsa_437_447_cache_maintenance_to_the_last_line_and_the_last_frame() {
    let (w, start) = world();
    let h = w.dom0();
    let d = w.create(Config::default()).unwrap();
    for (first, pages) in [
        (u64::MAX, 1),
        (u64::MAX - 3, 8),
        (u64::MAX, u64::MAX),
        (LAST, 1),
        (LAST, 2),
        (LAST - 600, 2000),
        (RAM0 >> 12, u64::MAX - (RAM0 >> 12)),
        (RAM0 >> 12, u64::MAX),
        (0, 0),
    ] {
        let _ = domctl::cacheflush(&h, d.id, Gfn(first), pages);
        w.check();
    }
    // The control domain's own page, part by part.
    let page = w.dom0_base() + 0x5000;
    for (offset, length) in [
        (0, 64),
        (0, 4096),
        (60, 8),
        (63, 1),
        (63, 2),
        (4032, 64),
        (4095, 1),
        (1, 4095),
        (2000, 97),
    ] {
        w.m.evict();
        h.put(page, &[0x11u8; 4096]);
        w.m.evict();
        h.put(page, &[0x22u8; 4096]);
        let op = GnttabCacheFlush {
            a: page,
            offset,
            length,
            op: cache::CLEAN,
        };
        grant::cache_flush(&h, &mut [op]).unwrap();
        let mut seen = [0; 4096];
        assert!(h.read_uncached(page, &mut seen));
        let (from, to) = (usize::from(offset), usize::from(offset + length));
        let lines = from / 64 * 64..to.next_multiple_of(64);
        for (at, byte) in seen.iter().enumerate() {
            let expected = if lines.contains(&at) { 0x22 } else { 0x11 };
            assert_eq!(*byte, expected, "{offset}+{length}: byte {at}");
        }
    }
    // Not beyond the page's end, also where that is the end of all addresses.
    for a in [page, !4095, LAST << 12] {
        for (offset, length) in [(4095, 2), (1, 4096), (u16::MAX, u16::MAX), (64, u16::MAX)] {
            let op = GnttabCacheFlush {
                a,
                offset,
                length,
                op: cache::CLEAN,
            };
            assert!(grant::cache_flush(&h, &mut [op]).is_err());
        }
    }
    w.destroy(d.id);
    assert_eq!(w.totals(), start);
}

/// A domain's page is mapped over another's, while what is behind the number changes.
#[test]
fn xsa_473_foreign_pages_over_foreign_pages() {
    let (w, start) = world();
    let h = w.dom0();
    let [a, b] = [0, 1].map(|_| w.create(Config::default()).unwrap());
    let theirs = |k: u64| Gfn((RAM0 >> 12) + 512 + k);
    let at = Gfn(WINDOW >> 12);
    let mfn = |d: &DomU, k: u64| d.guest(&w).mfn(theirs(k).0, Access::Read);
    let over = |d: &DomU, k: u64| {
        let mut errs = [1];
        let r = memory::map_foreign(&h, d.id, &[theirs(k)], &[at], &mut errs);
        w.check();
        r.is_ok() && errs == [0]
    };
    let page = mfn(&b, 2).unwrap();
    assert!(over(&b, 2));
    // Another's over it, or its own again, is refused, and all stays as it was.
    for (d, k) in [(&a, 1), (&b, 1), (&b, 2), (&a, 2)] {
        assert!(!over(d, k));
        assert_eq!(h.mfn(at.0, Access::Write), Some(page));
        assert_eq!(w.refs(page), 2, "its own, and one mapping");
        if (d.id, k) != (b.id, 2) {
            assert_eq!(w.refs(mfn(d, k).unwrap()), 1, "its own");
        }
    }
    // The number is given back, is another page's, is a shared page's; the mapping is of what it was.
    let old = mfn(&b, 2).unwrap();
    let g = b.guest(&w);
    memory::decrease_reservation(&g, DomId::SELF, 0, &[theirs(2)]).unwrap();
    assert_eq!((h.mfn(at.0, Access::Read), w.refs(old)), (Some(old), 1));
    let again = || {
        memory::remove_from_physmap(&h, DomId::SELF, at).unwrap();
        w.check();
        over(&b, 2)
    };
    assert!(!again(), "nothing is there");
    memory::add_to_physmap(&g, DomId::SELF, MapSpace::GrantTable, 0, theirs(2)).unwrap();
    if over(&b, 2) {
        memory::remove_from_physmap(&h, DomId::SELF, at).unwrap();
    }
    memory::remove_from_physmap(&g, DomId::SELF, theirs(2)).unwrap();
    w.check();
    memory::populate_physmap(&g, DomId::SELF, 0, &[theirs(2)]).unwrap();
    assert!(over(&b, 2));
    assert_eq!(h.mfn(at.0, Access::Read), mfn(&b, 2));
    // Its owner dies; the mapping is of what it was, until it goes.
    let last = mfn(&b, 2);
    w.destroy(b.id);
    w.check();
    assert_eq!(h.mfn(at.0, Access::Read), last);
    assert!(!over(&a, 3));
    memory::remove_from_physmap(&h, DomId::SELF, at).unwrap();
    w.destroy(a.id);
    w.check();
    assert_eq!(w.totals(), start);
}
