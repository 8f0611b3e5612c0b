// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every allocation fails once: what was begun is undone, and nothing is lost. And when the machine has no page left,
//! each domain still has what was kept for it.

use guest_abi::calls::{domctl, event, grant, memory};
use guest_abi::grant_table::{GnttabMapGrantRef, GnttabUnmapGrantRef, RESERVED_XENSTORE, gntmap};
use guest_abi::memory::MapSpace;
use guest_abi::{DomId, Errno, Gfn, arch};
use hv_core::room::fail_after;
use sim::{Config, Guest, WINDOW, World};

const SMALL: Config = Config {
    vcpus: 2,
    blocks: 1,
    pages: 40,
    vuart: true,
};

fn map(h: &Guest<'_>, dom: DomId, at: u64) -> Result<u32, i16> {
    let mut op = [GnttabMapGrantRef {
        host_addr: at,
        flags: gntmap::HOST_MAP,
        gref: RESERVED_XENSTORE,
        dom,
        ..Default::default()
    }];
    grant::map(h, &mut op).unwrap();
    match op[0].status {
        0 => Ok(op[0].handle),
        s => Err(s),
    }
}

fn unmap(h: &Guest<'_>, handle: u32, at: u64) -> i16 {
    let mut op = [GnttabUnmapGrantRef {
        host_addr: at,
        handle,
        ..Default::default()
    }];
    grant::unmap(h, &mut op).unwrap();
    op[0].status
}

/// Calls `f` with each of its allocations failing in turn, then with none. Gives how many there were.
fn each_fails(mut f: impl FnMut()) -> u64 {
    for n in 0.. {
        assert!(n < 10_000, "it does not end");
        fail_after(n);
        f();
        if fail_after(u64::MAX) != u64::MAX {
            return n;
        }
    }
    0
}

#[test]
fn xsa_181_every_allocation_of_a_creation_fails_once() {
    for gic in [2, 3] {
        let w = World::boot(gic);
        w.destroy(w.create(SMALL).unwrap().id);
        let start = w.totals();
        let n = each_fails(|| match w.create(SMALL) {
            Ok(d) => {
                w.check();
                w.destroy(d.id);
                assert_eq!(w.totals(), start);
            }
            Err(e) => {
                assert_eq!(e, Errno::ENOMEM);
                w.check();
                assert_eq!(w.totals(), start);
            }
        });
        assert!(n > 20, "only {n} allocations");
    }
}

#[test]
fn xsa_316_318_every_allocation_of_a_call_fails_once() {
    let w = World::boot(3);
    let h = w.dom0();
    w.destroy(w.create(SMALL).unwrap().id);
    let start = w.totals();
    let d = w.create(SMALL).unwrap();
    let g = d.guest(&w);
    let first = w.totals();
    // A mapping, with a page of map entries and two tables.
    let mut n = 0;
    let far = WINDOW + (64 << 30);
    n += each_fails(|| match map(&h, d.id, far) {
        Ok(handle) => assert_eq!(unmap(&h, handle, far), 0),
        Err(_) => {
            w.check();
            assert_eq!(w.totals(), first);
        }
    });
    // Grant frames, tables, memory.
    let at = |k: u64| Gfn((arch::GUEST_GNTTAB_BASE >> 12) + k);
    n += each_fails(|| {
        let _ = memory::add_to_physmap(&g, DomId::SELF, MapSpace::GrantTable, 9, at(9));
        w.check();
    });
    let page = [Gfn(0x20_0000)];
    n += each_fails(|| {
        let before = w.hv.borrow().frames.guest_pages(d.v.slot);
        let got = memory::populate_physmap(&g, DomId::SELF, 0, &page).unwrap();
        let after = w.hv.borrow().frames.guest_pages(d.v.slot);
        assert_eq!(after - before, got as u32);
        w.check();
    });
    assert!(n >= 8, "only {n} allocations");
    // Ports take nothing: all of theirs was taken when the domain was made.
    let ports = each_fails(|| {
        for _ in 0..1000 {
            let p = event::alloc_unbound(&g, DomId::SELF, DomId(0)).unwrap();
            let _ = p;
        }
        event::reset(&g, DomId::SELF).unwrap();
    });
    assert_eq!(ports, 0);
    w.destroy(d.id);
    w.check();
    assert_eq!(w.totals(), start);
}

/// One guest's map entries took the whole heap once; then nobody's ports, tables and mappings grew, dom0's included.
#[test]
fn what_is_kept_is_there_when_the_machine_is_full() {
    let w = World::boot(3);
    let h = w.dom0();
    let d = w.create(SMALL).unwrap();
    let g = d.guest(&w);
    // Somebody takes all there is.
    let hog = w.create(Config::default()).unwrap();
    domctl::max_mem(&h, hog.id, 1 << 30).unwrap();
    domctl::set_paging_mempool_size(&h, hog.id, 2 << 20).unwrap();
    let mut next = 0x10_0000;
    while memory::populate_physmap(&hog.guest(&w), DomId::SELF, 0, &[Gfn(next)]) == Ok(1) {
        next += 1;
    }
    assert_eq!(w.totals().free, 0);
    assert!(matches!(w.create(SMALL), Err(Errno::ENOMEM)));
    // The pool of another's tables is not to be had, and its size stays what it was.
    let pool = domctl::get_paging_mempool_size(&h, d.id).unwrap();
    assert_eq!(
        domctl::set_paging_mempool_size(&h, d.id, 64 << 20),
        Err(Errno::ENOMEM)
    );
    assert_eq!(domctl::get_paging_mempool_size(&h, d.id), Ok(pool));
    // All grant frames, all ports.
    for k in (0..64).rev() {
        let at = Gfn((arch::GUEST_GNTTAB_BASE >> 12) + k);
        memory::add_to_physmap(&g, DomId::SELF, MapSpace::GrantTable, k, at).unwrap();
    }
    let ports = (0..).take_while(|_| event::alloc_unbound(&g, DomId::SELF, DomId(0)).is_ok());
    assert!(ports.count() > 1000);
    // The control domain's mappings: more than a page of entries, in tables of their own.
    for k in 0..128u64 {
        map(&h, d.id, WINDOW + (1 << 30) + (k << 21)).unwrap();
    }
    w.check();
}
