// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory that domains get and give back.

use guest_abi::calls::{domctl, memory};
use guest_abi::memory::{MapSpace, MemoryOp, MemoryReservation};
use guest_abi::{DomId, Errno, Gfn, HypercallNr, arch};
use hv_core::hypercall::Reply;
use hv_core::types::Access;
use sim::{Config, Guest, WINDOW, World};

const RAM0: u64 = arch::GUEST_RAM0_BASE >> 12;

/// The registers of a call for one extent, whose arguments are put into the caller's memory.
fn arguments(g: &Guest<'_>, op: MemoryOp, dom: DomId, order: u32, frame: Gfn) -> [u64; 5] {
    let at = g.bounce;
    g.put(at + 64, &frame.0);
    g.put(
        at,
        &MemoryReservation {
            extent_start: at + 64,
            nr_extents: 1,
            extent_order: order,
            mem_flags: 0,
            domid: dom,
            ..Default::default()
        },
    );
    [op.number(), at, 0, 0, 0]
}

/// One call for one extent, slice by slice: its result and the number of slices.
fn extent(g: &Guest<'_>, op: MemoryOp, dom: DomId, order: u32, frame: Gfn) -> (i64, u32) {
    let mut x = arguments(g, op, dom, order, frame);
    let mut slices = 1;
    loop {
        match g.w.slice(g.v, HypercallNr::MemoryOp.number(), &mut x) {
            Reply::Done(r) => return (r, slices),
            Reply::Again => slices += 1,
        }
        g.w.check();
        assert!(slices < 1000, "the call does not end");
    }
}

#[test]
fn large_extents_come_and_go_in_slices() {
    let w = World::boot(3);
    let h = w.dom0();
    w.destroy(w.create(Config::default()).unwrap().id);
    let start = w.totals();
    let d = w.create(Config::default()).unwrap();
    domctl::max_mem(&h, d.id, 64 << 10).unwrap();
    let before = w.totals();
    let at = Gfn(0x10_0000);
    // 8 MiB, some hundred pages a slice.
    let (made, slices) = extent(&h, MemoryOp::PopulatePhysmap, d.id, 11, at);
    assert_eq!(made, 1);
    assert!((15..25).contains(&slices), "{slices} slices");
    let g = d.guest(&w);
    for page in [0, 511, 512, 2047] {
        assert_eq!(g.get::<[u8; 32]>((at.0 + page) << 12), [0; 32]);
    }
    assert_eq!(g.mfn(at.0 + 2048, Access::Read), None);
    // Where something is, nothing is made; what was made on the way there goes again.
    let low = Gfn(at.0 - 2048);
    assert_eq!(extent(&h, MemoryOp::PopulatePhysmap, d.id, 12, low).0, 0);
    assert_eq!(g.mfn(low.0, Access::Read), None);
    w.check();
    // A page in it goes for itself.
    let hole = Gfn(at.0 + 700);
    assert_eq!(
        memory::decrease_reservation(&g, DomId::SELF, 0, &[hole]),
        Ok(1)
    );
    assert_eq!(memory::populate_physmap(&g, DomId::SELF, 0, &[hole]), Ok(1));
    let gone = extent(&h, MemoryOp::DecreaseReservation, d.id, 11, at);
    assert_eq!(gone.0, 1);
    assert_eq!(g.mfn(at.0, Access::Read), None);
    // A table remains of the block that was broken, and those above both places.
    let now = w.totals();
    assert!(now.free <= before.free && now.free + 3 >= before.free);
    assert_eq!(
        extent(&h, MemoryOp::DecreaseReservation, d.id, 11, at).0,
        0,
        "nothing is there any more"
    );
    w.check();
    w.destroy(d.id);
    assert_eq!(w.totals(), start);
}

#[test]
fn limits_hold_for_large_extents() {
    let w = World::boot(3);
    let h = w.dom0();
    w.destroy(w.create(Config::default()).unwrap().id);
    let start = w.totals();
    let d = w.create(Config::default()).unwrap();
    let (g, at) = (d.guest(&w), Gfn(0x10_0000));
    let before = w.totals().free;
    // A guest may ask for 2 MiB, the control domain for 1 GiB: Xen's limits.
    domctl::max_mem(&h, d.id, 64 << 10).unwrap();
    for op in [MemoryOp::PopulatePhysmap, MemoryOp::DecreaseReservation] {
        assert_eq!(extent(&g, op, DomId::SELF, 10, at), (0, 1));
        assert_eq!(extent(&h, op, d.id, 19, at), (0, 1));
    }
    // Its limit is reached on the way.
    domctl::max_mem(&h, d.id, (580 + 1536) * 4).unwrap();
    assert_eq!(extent(&h, MemoryOp::PopulatePhysmap, d.id, 12, at).0, 0);
    assert_eq!(w.hv.borrow().frames.guest_pages(d.v.slot), 580);
    // The machine's memory is not enough.
    domctl::max_mem(&h, d.id, 4 << 20).unwrap();
    assert_eq!(
        extent(&h, MemoryOp::PopulatePhysmap, d.id, 18, Gfn(1 << 18)).0,
        0
    );
    let end = Gfn((1 << 28) - 512);
    assert_eq!(extent(&h, MemoryOp::PopulatePhysmap, d.id, 10, end).0, 0);
    assert_eq!(
        extent(&h, MemoryOp::PopulatePhysmap, d.id, 10, Gfn(u64::MAX)).0,
        0
    );
    assert_eq!(w.hv.borrow().frames.guest_pages(d.v.slot), 580);
    assert!(w.totals().free + 8 >= before, "but for a few tables");
    w.check();
    // It dies in the midst of one.
    let call = || arguments(&h, MemoryOp::PopulatePhysmap, d.id, 12, Gfn(0x10_0000));
    let mut x = call();
    let nr = HypercallNr::MemoryOp.number();
    assert_eq!(w.slice(h.v, nr, &mut x), Reply::Again);
    w.destroy(d.id);
    // The arguments again, as that used the same memory.
    let _ = call();
    assert_eq!(w.slice(h.v, nr, &mut x), Reply::Done(0));
    assert_eq!(w.totals(), start);
}

/// A domain that is mapped at machine addresses: what it gives back stays its own, and it
/// gets the very same page again.
#[test]
fn the_control_domain_gets_its_own_pages_back() {
    let w = World::boot(3);
    let h = w.dom0();
    w.destroy(w.create(Config::default()).unwrap().id);
    let first = w.dom0_base() >> 12;
    let list: Vec<Gfn> = (600..620).map(|k| Gfn(first + k)).collect();
    h.put(list[3].0 << 12, b"kept");
    let free = w.totals().free;
    let pages = w.totals().dom0_pages;
    assert_eq!(
        memory::decrease_reservation(&h, DomId::SELF, 0, &list),
        Ok(20)
    );
    assert_eq!(h.mfn(list[3].0, Access::Read), None);
    w.check();
    // One table was made to break the block, of those that are kept; the pages are nobody else's.
    assert_eq!((w.totals().free, w.totals().dom0_pages), (free, pages));
    let other = w.create(Config::default()).unwrap();
    let theirs = other.guest(&w).mfn(RAM0, Access::Read).unwrap();
    // Foreign pages are mapped in the hole, as Linux does it.
    let mut errs = [1];
    memory::map_foreign(&h, other.id, &[Gfn(RAM0)], &list[..1], &mut errs).unwrap();
    assert_eq!((errs, h.mfn(list[0].0, Access::Read)), ([0], Some(theirs)));
    assert_eq!(
        memory::populate_physmap(&h, DomId::SELF, 0, &list[..1]),
        Ok(0)
    );
    memory::remove_from_physmap(&h, DomId::SELF, list[0]).unwrap();
    assert_eq!(memory::populate_physmap(&h, DomId::SELF, 0, &list), Ok(20));
    for g in &list {
        assert_eq!(
            h.mfn(g.0, Access::Write),
            Some(g.0),
            "at its machine address"
        );
    }
    assert_eq!(h.get::<[u8; 4]>(list[3].0 << 12), *b"kept");
    w.check();
    // Pages that are not its own: another's, a free one, no memory at all.
    let unused = WINDOW >> 12;
    for g in [theirs, first + 1024 + 4096, unused, u64::MAX] {
        assert_eq!(
            memory::populate_physmap(&h, DomId::SELF, 0, &[Gfn(g)]),
            Ok(0)
        );
    }
    // A block of 2 MiB.
    let block = [Gfn(first)];
    assert_eq!(
        memory::decrease_reservation(&h, DomId::SELF, 9, &block),
        Ok(1)
    );
    assert_eq!(memory::populate_physmap(&h, DomId::SELF, 9, &block), Ok(1));
    assert_eq!(h.mfn(first + 70, Access::Write), Some(first + 70));
    w.check();
}

/// On Arm, more reservation is pages that nobody sees: charged, bounded, and gone with the domain.
#[test]
fn increased_reservation_is_charged_and_goes_with_the_domain() {
    let w = World::boot(3);
    let h = w.dom0();
    w.destroy(w.create(Config::default()).unwrap().id);
    let start = w.totals();
    let d = w.create(Config::default()).unwrap();
    let g = d.guest(&w);
    let have = || w.hv.borrow().frames.guest_pages(d.v.slot);
    assert_eq!(have(), 580);
    let add =
        |g: &Guest<'_>, dom, order| extent(g, MemoryOp::IncreaseReservation, dom, order, Gfn(0)).0;
    assert_eq!(add(&g, DomId::SELF, 0), 1);
    assert_eq!(add(&g, DomId::SELF, 7), 1);
    assert_eq!(have(), 580 + 129);
    assert_eq!(add(&g, DomId::SELF, 7), 0, "its limit is 256 pages more");
    assert_eq!(add(&g, DomId(0), 0), 0, "not for others");
    domctl::max_mem(&h, d.id, 64 << 10).unwrap();
    assert_eq!(add(&h, d.id, 11), 1);
    assert_eq!(have(), 580 + 129 + 2048);
    w.check();
    w.destroy(d.id);
    assert_eq!(w.totals(), start);
    assert_eq!(domctl::pausedomain(&h, d.id), Err(Errno::ESRCH));
}

/// A call that is made of slices finds what it did by the vcpu that makes it: another's on the same domain
/// neither takes it over nor loses it.
#[test]
fn two_callers_extents_do_not_meet() {
    let w = World::boot(3);
    let h = w.dom0();
    w.destroy(w.create(Config::default()).unwrap().id);
    let start = w.totals();
    let d = w.create(Config::default()).unwrap();
    let (g, nr) = (d.guest(&w), HypercallNr::MemoryOp.number());
    domctl::max_mem(&h, d.id, 64 << 10).unwrap();
    let at = Gfn(0x10_0000);
    let mut x = arguments(&h, MemoryOp::PopulatePhysmap, d.id, 11, at);
    for _ in 0..10 {
        assert_eq!(w.slice(h.v, nr, &mut x), Reply::Again);
    }
    let have = || w.hv.borrow().frames.guest_pages(d.v.slot);
    let before = have();
    assert!(before > 580, "some of it is there or on its way");
    // The domain's own, of another size, and one that it never goes on with.
    let mine = extent(
        &g,
        MemoryOp::PopulatePhysmap,
        DomId::SELF,
        9,
        Gfn(0x20_0000),
    );
    assert_eq!(mine.0, 1);
    assert!(mine.1 > 10, "{} slices", mine.1);
    let other = d.vcpu(&w, 1);
    let mut y = arguments(
        &other,
        MemoryOp::PopulatePhysmap,
        DomId::SELF,
        9,
        Gfn(0x30_0000),
    );
    assert_eq!(w.slice(other.v, nr, &mut y), Reply::Again);
    w.check();
    loop {
        match w.slice(h.v, nr, &mut x) {
            Reply::Again => w.check(),
            Reply::Done(r) => break assert_eq!(r, 1),
        }
    }
    assert_eq!(have(), 580 + 2048 + 512 + 512);
    // It dies with one under way, and one of the control domain's on it.
    let mut x = arguments(&h, MemoryOp::PopulatePhysmap, d.id, 9, Gfn(0x40_0000));
    assert_eq!(w.slice(h.v, nr, &mut x), Reply::Again);
    w.destroy(d.id);
    assert_eq!(w.totals(), start);
    w.check();
}

/// XSA-364: what is scrubbed is in memory and not only in a cache: a guest with its caches off sees
/// nothing of the last owner, by any way to a page, and no line that is written back later takes
/// away what it writes.
#[test]
fn xsa_364_scrubbed_pages_reach_memory() {
    let w = World::boot(3);
    let h = w.dom0();
    let d = w.create(Config::default()).unwrap();
    let g = d.guest(&w);
    let clear = |g: &Guest<'_>, gfn: u64| {
        let mut page = [1; 4096];
        assert!(g.read_uncached(gfn << 12, &mut page));
        assert!(
            page.iter().all(|&b| b == 0),
            "the last owner's bytes at {gfn:#x}"
        );
        assert!(g.write_uncached(gfn << 12, &[0x5a; 4096]));
        g.w.m.evict();
        assert!(g.read_uncached(gfn << 12, &mut page));
        assert!(
            page.iter().all(|&b| b == 0x5a),
            "zeroes were written back at {gfn:#x}"
        );
    };
    let mut kernel = [0; 6];
    assert!(g.read_uncached(RAM0 << 12, &mut kernel));
    assert_eq!(&kernel, b"kernel", "the toolstack cleans what it copied");
    // All memory that it was built with and that nobody wrote: a block's pages, and single ones.
    for k in (1..512).chain(513..512 + 32) {
        clear(&g, RAM0 + k);
    }
    // What it makes for itself.
    domctl::max_mem(&h, d.id, 64 << 10).unwrap();
    let at = Gfn(0x10_0000);
    for (order, pages) in [(0, 1), (3, 8), (9, 512)] {
        assert_eq!(
            extent(&g, MemoryOp::PopulatePhysmap, DomId::SELF, order, at).0,
            1
        );
        (0..pages).for_each(|k| clear(&g, at.0 + k));
        assert_eq!(
            extent(&g, MemoryOp::DecreaseReservation, DomId::SELF, order, at).0,
            1
        );
    }
    // Grant frames, of which only the first was written; and shared_info, whose words are shared
    // through caches, but whose other bytes are nobody's.
    use guest_abi::memory::MapSpace;
    for k in 1..4u64 {
        memory::add_to_physmap(&g, DomId::SELF, MapSpace::GrantTable, k, Gfn(at.0 + k)).unwrap();
        clear(&g, at.0 + k);
    }
    memory::add_to_physmap(&g, DomId::SELF, MapSpace::SharedInfo, 0, at).unwrap();
    let mut page = [1; 4096];
    assert!(g.read_uncached(at.0 << 12, &mut page));
    assert!(!page.contains(&sim::POISON), "the last owner's bytes");
}

/// Every call that takes a frame, at the last one that there can be and beyond it.
#[test]
fn xsa_301_frames_at_and_beyond_the_end_of_the_address_space() {
    let w = World::boot(3);
    let d = w.create(Config::default()).unwrap();
    let (g, h) = (d.guest(&w), w.dom0());
    let end = hv_core::p2m::MAX_GFN;
    for beyond in [end, end + 1, 1 << 40, 1 << 52, u64::MAX - 1, u64::MAX] {
        let gfn = Gfn(beyond);
        for order in [0, 9] {
            let got = memory::populate_physmap(&g, DomId::SELF, order, &[gfn]);
            assert_eq!(got.unwrap_or(0), 0, "{beyond:#x}, order {order}");
            let got = memory::decrease_reservation(&g, DomId::SELF, order, &[gfn]);
            assert_eq!(got.unwrap_or(0), 0, "{beyond:#x}, order {order}");
        }
        for space in [MapSpace::SharedInfo, MapSpace::GrantTable] {
            let r = memory::add_to_physmap(&g, DomId::SELF, space, 0, gfn);
            assert!(r.is_err(), "{beyond:#x}, {space:?}");
        }
        assert!(memory::remove_from_physmap(&g, DomId::SELF, gfn).is_err());
        let mut errs = [0];
        memory::map_foreign(&h, d.id, &[gfn], &[Gfn::of(WINDOW)], &mut errs).unwrap();
        assert_ne!(errs, [0], "{beyond:#x} of a guest's");
        w.check();
    }
    // A block that would reach beyond, and the last frame itself.
    let got = memory::populate_physmap(&g, DomId::SELF, 9, &[Gfn(end - 511)]);
    assert_eq!(got.unwrap_or(0), 0);
    assert_eq!(
        memory::populate_physmap(&g, DomId::SELF, 0, &[Gfn(end - 1)]),
        Ok(1)
    );
    assert_eq!(
        memory::remove_from_physmap(&g, DomId::SELF, Gfn(end - 1)),
        Ok(())
    );
    w.check();
    w.destroy(d.id);
}
