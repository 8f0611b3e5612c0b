// SPDX-License-Identifier: MIT OR Apache-2.0
//! Domains come and go, and nothing of them stays.

use guest_abi::calls::{domctl, event, grant, memory, sched, vcpu};
use guest_abi::domctl::{Domctl, DomctlCmd, INTERFACE_VERSION, dominf};
use guest_abi::grant_table::{
    GnttabMapGrantRef, GnttabUnmapGrantRef, RESERVED_CONSOLE, RESERVED_XENSTORE, gntmap,
};
use guest_abi::memory::{MapSpace, RESOURCE_GRANT_TABLE_SHARED, Resource};
use guest_abi::sched::ShutdownReason;
use guest_abi::xen::Virq;
use guest_abi::{DomId, Errno, Gfn, GrantRef, Port, arch};
use hv_core::frame::NOBODY;
use hv_core::hypercall::Reply;
use hv_core::types::{CpuId, VcpuId};
use sim::{Config, DomU, Guest, WINDOW, World};

const RAM0: u64 = arch::GUEST_RAM0_BASE;
/// The answer of a `destroydomain` that has more to do.
const MORE: Reply = Reply::Done(Errno::ERESTART.to_ret());

/// The registers of a domctl without a payload, whose arguments are put into the control domain's memory.
fn domctl_on(h: &Guest<'_>, cmd: DomctlCmd, domain: DomId) -> [u64; 5] {
    h.put(
        h.bounce,
        &Domctl {
            cmd: cmd.number(),
            interface_version: INTERFACE_VERSION,
            domain,
            ..Default::default()
        },
    );
    [h.bounce, 0, 0, 0, 0]
}

/// A guest does a little of everything that leaves traces.
fn live(w: &World, d: &DomU) {
    let g = d.guest(w);
    let gfn = |n: u64| Gfn((RAM0 >> 12) + n);
    memory::add_to_physmap(&g, DomId::SELF, MapSpace::SharedInfo, 0, gfn(8)).unwrap();
    for i in (0..3).rev() {
        memory::add_to_physmap(
            &g,
            DomId::SELF,
            MapSpace::GrantTable,
            i,
            Gfn((arch::GUEST_GNTTAB_BASE >> 12) + i),
        )
        .unwrap();
    }
    for v in 0..d.config.vcpus {
        vcpu::register_vcpu_info(&g, v, gfn(9).0, v * 64).unwrap();
        vcpu::register_runstate_memory_area(&g, v, gfn(10).addr() + u64::from(v) * 64).unwrap();
        event::init_control(&g, v, gfn(11 + u64::from(v)).0, 0).unwrap();
        event::bind_ipi(&g, v).unwrap();
        event::bind_virq(&g, Virq::Timer, v).unwrap();
    }
    event::expand_array(&g, gfn(20).0).unwrap();
    // Nobody has connected yet: dropped.
    event::send(&g, d.store).unwrap();
    // Balloon: singles out of a block, and back.
    let list: Vec<Gfn> = (100..120).map(gfn).collect();
    assert_eq!(
        memory::decrease_reservation(&g, DomId::SELF, 0, &list),
        Ok(20)
    );
    assert_eq!(
        memory::populate_physmap(&g, DomId::SELF, 0, &list[..7]),
        Ok(7)
    );
}

/// The control domain binds the guest's two channels.
fn attach(h: &Guest<'_>, d: &DomU) -> [Port; 2] {
    [d.store, d.console].map(|p| event::bind_interdomain(h, d.id, p).unwrap())
}

fn map(h: &Guest<'_>, dom: DomId, gref: GrantRef, at: u64, flags: u32) -> Result<u32, i16> {
    let mut op = [GnttabMapGrantRef {
        host_addr: at,
        flags,
        gref,
        dom,
        ..Default::default()
    }];
    grant::map(h, &mut op).unwrap();
    if op[0].status == 0 {
        Ok(op[0].handle)
    } else {
        Err(op[0].status)
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

#[test]
fn two_hundred_rounds_leave_nothing() {
    for (gic, rounds) in [(3, 200u64), (2, 12)] {
        let w = World::boot(gic);
        let h = w.dom0();
        // The window's tables stay: count after the first round.
        let mut start = None;
        for round in 0..rounds {
            let config = Config {
                vcpus: 1 + (round % 3) as u32,
                vuart: round % 4 == 0,
                ..Config::default()
            };
            let d = w.create(config).unwrap();
            live(&w, &d);
            let ports = attach(&h, &d);
            let handle = map(
                &h,
                d.id,
                RESERVED_XENSTORE,
                WINDOW + 0x1000,
                gntmap::HOST_MAP,
            )
            .unwrap();
            if round % 10 == 0 {
                w.check();
            }
            let guest = d.guest(&w);
            if round % 3 == 0 {
                sched::shutdown(&guest, ShutdownReason::Poweroff).unwrap();
                let info = domctl::getdomaininfo(&h, d.id).unwrap();
                assert_ne!(info.flags & dominf::SHUTDOWN, 0);
                assert_eq!(dominf::shutdown_code(info.flags), 0);
            }
            if round % 2 == 0 {
                // Let go before the end...
                assert_eq!(unmap(&h, handle, WINDOW + 0x1000), 0);
                ports.into_iter().for_each(|p| event::close(&h, p).unwrap());
                w.destroy(d.id);
            } else {
                // ... or after it.
                w.destroy(d.id);
                ports.into_iter().for_each(|p| event::close(&h, p).unwrap());
                assert_eq!(w.slot(d.id), None, "nothing but a page is left");
                assert_eq!(unmap(&h, handle, WINDOW + 0x1000), 0);
            }
            assert_eq!(w.slot(d.id), None);
            assert_eq!(domctl::pausedomain(&h, d.id), Err(Errno::ESRCH));
            let now = w.totals();
            assert_eq!(
                &now,
                start.get_or_insert_with(|| now.clone()),
                "round {round}"
            );
        }
        w.check();
    }
}

#[test]
fn of_a_dead_domain_only_the_mapped_pages_stay() {
    let w = World::boot(3);
    let h = w.dom0();
    let first = w.create(Config::default()).unwrap();
    w.destroy(first.id);
    let start = w.totals();

    let d = w.create(Config::default()).unwrap();
    let at = [Gfn(WINDOW >> 12), Gfn((WINDOW >> 12) + 1)];
    let theirs = [Gfn((RAM0 >> 12) + 3), Gfn((RAM0 >> 12) + 515)];
    let mut errs = [1; 2];
    memory::map_foreign(&h, d.id, &theirs, &at, &mut errs).unwrap();
    assert_eq!(errs, [0; 2]);
    let table = Gfn((WINDOW >> 12) + 2);
    memory::acquire_resource(
        &h,
        d.id,
        Resource::GrantTable,
        RESOURCE_GRANT_TABLE_SHARED,
        0,
        &[table],
    )
    .unwrap();
    let rw = map(
        &h,
        d.id,
        RESERVED_CONSOLE,
        WINDOW + 0x3000,
        gntmap::HOST_MAP,
    )
    .unwrap();
    let ro = map(
        &h,
        d.id,
        RESERVED_CONSOLE,
        WINDOW + 0x4000,
        gntmap::HOST_MAP | gntmap::READONLY,
    )
    .unwrap();
    h.put(WINDOW, b"mine");
    h.put(WINDOW + 0x3000, b"ring");
    assert!(!h.write(WINDOW + 0x4000, b"no"));
    w.check();

    let slot = d.v.slot;
    w.destroy(d.id);
    w.check();
    // Its number and slot are free, and the pages nobody's: two of dom0's foreign mappings, one granted, and
    // the grant frame.
    assert_eq!(w.slot(d.id), None);
    assert_eq!(w.hv.borrow().frames.guest_pages(slot), 0);
    assert_eq!(w.hv.borrow().frames.guest_pages(NOBODY), 3);
    assert_eq!(w.hv.borrow().frames.hv_pages(NOBODY), 1);
    assert_eq!(w.hv.borrow().grants.orphans(h.v.slot), 2);
    assert_eq!(
        domctl::getdomaininfo(&h, d.id).map(|i| i.domain),
        Err(Errno::ESRCH)
    );
    // Nothing new can be had of it.
    assert_eq!(
        map(
            &h,
            d.id,
            RESERVED_CONSOLE,
            WINDOW + 0x5000,
            gntmap::HOST_MAP
        ),
        Err(-2)
    );
    let mut errs = [1];
    let more = memory::map_foreign(
        &h,
        d.id,
        &theirs[..1],
        &[Gfn((WINDOW >> 12) + 9)],
        &mut errs,
    );
    assert_eq!(more, Err(Errno::ESRCH));
    assert_eq!(
        event::bind_interdomain(&h, d.id, d.store),
        Err(Errno::ESRCH)
    );
    assert_eq!(memory::populate_physmap(&h, d.id, 0, &[Gfn(5)]), Ok(0));
    assert_eq!(domctl::unpausedomain(&h, d.id), Err(Errno::ESRCH));
    // What is mapped is still there.
    assert_eq!(h.get::<[u8; 4]>(WINDOW), *b"mine");
    assert_eq!(h.get::<[u8; 4]>(WINDOW + 0x4000), *b"ring");
    // Another domain comes, gets its slot and VMID, and none of its pages or its number.
    let other = w.create(Config::default()).unwrap();
    assert_ne!(other.id, d.id);
    assert_eq!(other.v.slot, slot);
    w.check();

    for g in at {
        memory::remove_from_physmap(&h, DomId::SELF, g).unwrap();
    }
    memory::remove_from_physmap(&h, DomId::SELF, table).unwrap();
    assert_eq!(unmap(&h, rw, WINDOW + 0x3000), 0);
    assert_eq!(w.hv.borrow().frames.guest_pages(NOBODY), 1);
    assert_eq!(unmap(&h, ro, WINDOW + 0x4000), 0);
    assert_eq!(w.hv.borrow().frames.guest_pages(NOBODY), 0);
    w.destroy(other.id);
    w.check();
    assert_eq!(w.totals(), start);
}

#[test]
fn a_grant_frame_that_is_mapped_outlives_its_domain_harmlessly() {
    let w = World::boot(3);
    let h = w.dom0();
    w.destroy(w.create(Config::default()).unwrap().id);
    let start = w.totals();
    let d = w.create(Config::default()).unwrap();
    let at = Gfn(WINDOW >> 12);
    memory::acquire_resource(
        &h,
        d.id,
        Resource::GrantTable,
        RESOURCE_GRANT_TABLE_SHARED,
        0,
        &[at],
    )
    .unwrap();
    w.destroy(d.id);
    w.check();
    let other = w.create(Config::default()).unwrap();
    h.put(WINDOW + 16, &u64::MAX);
    w.check();
    memory::remove_from_physmap(&h, DomId::SELF, at).unwrap();
    w.check();
    w.destroy(other.id);
    assert_eq!(w.totals(), start);
}

#[test]
fn guests_that_map_each_other_die_in_any_order() {
    let w = World::boot(3);
    w.destroy(w.create(Config::default()).unwrap().id);
    let start = w.totals();
    for order in 0..2 {
        let d = [
            w.create(Config::default()).unwrap(),
            w.create(Config::default()).unwrap(),
        ];
        for i in 0..2 {
            let (me, other) = (d[i].guest(&w), &d[1 - i]);
            let frame = Gfn(arch::GUEST_GNTTAB_BASE >> 12);
            memory::add_to_physmap(&me, DomId::SELF, MapSpace::GrantTable, 0, frame).unwrap();
            let e = guest_abi::grant_table::GrantEntryV1 {
                flags: guest_abi::grant_table::gtf::PERMIT_ACCESS,
                domid: other.id,
                frame: (RAM0 >> 12) as u32 + 7,
            };
            me.put(arch::GUEST_GNTTAB_BASE + 8 * 8, &e);
        }
        for i in 0..2 {
            let me = d[i].guest(&w);
            map(&me, d[1 - i].id, GrantRef(8), 0x3a00_0000, gntmap::HOST_MAP).unwrap();
            me.put(0x3a00_0000, &[i as u8; 8]);
        }
        assert_eq!(d[1].guest(&w).get::<[u8; 8]>(RAM0 + 0x7000), [0; 8]);
        w.check();
        w.destroy(d[order].id);
        w.check();
        assert_eq!(w.slot(d[order].id), None);
        // The survivor still reads the dead one's page.
        assert_eq!(
            d[1 - order].guest(&w).get::<[u8; 8]>(0x3a00_0000),
            [(1 - order) as u8; 8]
        );
        w.destroy(d[1 - order].id);
        w.check();
        assert_eq!(w.totals(), start);
    }
}

#[test]
fn creation_that_fails_leaves_nothing() {
    let w = World::boot(3);
    w.destroy(w.create(Config::default()).unwrap().id);
    let start = w.totals();
    // More than the machine has.
    for blocks in [15, 16, 40] {
        assert!(
            w.create(Config {
                blocks,
                ..Config::default()
            })
            .is_err()
        );
        w.check();
        assert_eq!(w.totals(), start);
    }
    // Domains until nothing is free.
    let mut all = Vec::new();
    let last = loop {
        match w.create(Config {
            blocks: 0,
            pages: 40,
            vcpus: 1,
            vuart: false,
        }) {
            Ok(d) => all.push(d),
            Err(e) => break e,
        }
    };
    assert_eq!(last, Errno::ENOMEM);
    assert!(all.len() >= 12, "only {} domains", all.len());
    w.check();
    all.iter().for_each(|d| w.destroy(d.id));
    assert_eq!(w.totals(), start);
}

#[test]
fn a_domain_that_runs_is_taken_off_its_cpu_first() {
    use hv_core::types::CpuId;
    let w = World::boot(3);
    let h = w.dom0();
    let d = w
        .create(Config {
            vcpus: 1,
            ..Config::default()
        })
        .unwrap();
    let on = |cpu| w.hv.borrow_mut().sched.schedule(CpuId(cpu), 5_000_000).run;
    let got = [on(0), on(1)];
    assert!(got.contains(&Some(d.v)), "{got:?}");
    let cpu = got.iter().position(|g| *g == Some(d.v)).unwrap() as u8;
    assert_eq!(domctl::destroydomain(&h, d.id), Err(Errno::ERESTART));
    // Meanwhile a hypercall that it has begun must not bring back what is torn down.
    let g = d.guest(&w);
    assert_eq!(
        memory::populate_physmap(&g, DomId::SELF, 0, &[Gfn(1)]),
        Ok(0)
    );
    assert_eq!(
        event::alloc_unbound(&g, DomId::SELF, DomId(0)),
        Err(Errno::ESRCH)
    );
    assert_ne!(on(cpu), Some(d.v));
    w.destroy(d.id);
    assert_eq!(w.slot(d.id), None);
    w.check();
}

#[test]
fn a_sparse_domain_ends_in_bounded_slices() {
    let w = World::boot(3);
    let h = w.dom0();
    w.destroy(w.create(Config::default()).unwrap().id);
    let start = w.totals();
    let d = w.create(Config::default()).unwrap();
    let g = d.guest(&w);
    // Pages far apart leave a table each, and go again.
    let far: Vec<Gfn> = (0..100).map(|k| Gfn(0x10_0000 + k * 512)).collect();
    assert_eq!(memory::populate_physmap(&g, DomId::SELF, 0, &far), Ok(100));
    assert_eq!(
        memory::decrease_reservation(&g, DomId::SELF, 0, &far),
        Ok(100)
    );
    let mut slices = 0;
    let mut x = domctl_on(&h, DomctlCmd::Destroydomain, d.id);
    while w.slice(h.v, 36, &mut x) == MORE {
        slices += 1;
    }
    assert!(slices > 100 * 512 / 4096, "only {slices} slices");
    assert_eq!(w.slot(d.id), None);
    assert_eq!(w.totals(), start);
}

/// While one vcpu's call breaks a block, another may be stopped in it by stage 2: its access is then
/// made again. One to what is not mapped, or not so, is not.
#[test]
fn an_access_that_a_broken_block_stopped_is_made_again() {
    use hv_core::abort::Abort;
    const READ: u32 = 0x06;
    const WRITE: u32 = 0x06 | 1 << 6;
    const WALK: u32 = 0x06 | 1 << 7;
    const PERMISSION: u32 = 0x0e;
    let w = World::boot(3);
    let d = w.create(Config::default()).unwrap();
    let g = d.guest(&w);
    let block = RAM0 >> 12;
    let again = |gfn: u64, iss: u32, fetch: bool| {
        let abort = Abort::decode(iss, fetch);
        w.hv.borrow()
            .goes_through_now(&w.m, g.v.slot, gfn << 12, abort)
    };
    assert_eq!(
        memory::decrease_reservation(&g, DomId::SELF, 0, &[Gfn(block + 100)]),
        Ok(1)
    );
    for (iss, fetch) in [
        (READ, false),
        (WRITE, false),
        (WALK, false),
        (READ, true),
        (WALK, true),
    ] {
        assert!(again(block + 101, iss, fetch), "{iss:#x} {fetch}");
        assert!(!again(block + 100, iss, fetch), "{iss:#x} {fetch}");
        assert!(!again(1 << 40, iss, fetch), "{iss:#x} {fetch}");
    }
    // What was not allowed and is now: another vcpu has changed the entry meanwhile.
    assert!(again(block + 101, PERMISSION, false));
    assert!(
        !again(block + 101, PERMISSION | 1 << 7, false),
        "tables in a device"
    );
    assert!(!again(block + 101, 0x21, false), "alignment");
    // Pages that are not its own RAM are not executed, though they are mapped.
    memory::add_to_physmap(&g, DomId::SELF, MapSpace::SharedInfo, 0, Gfn(block + 102)).unwrap();
    assert!(again(block + 102, WRITE, false));
    assert!(!again(block + 102, READ, true));
}

#[test]
fn the_tables_of_a_dead_domain_go_in_bounded_slices() {
    let w = World::boot(3);
    let h = w.dom0();
    w.destroy(w.create(Config::default()).unwrap().id);
    let start = w.totals();
    let d = w.create(Config::default()).unwrap();
    domctl::set_paging_mempool_size(&h, d.id, 8 << 20).unwrap();
    let g = d.guest(&w);
    // Pages a GiB apart leave two tables each.
    let far: Vec<Gfn> = (16..516).map(|k| Gfn(k << 18)).collect();
    for some in far.chunks(200) {
        let n = Ok(some.len());
        assert_eq!(memory::populate_physmap(&g, DomId::SELF, 0, some), n);
        assert_eq!(memory::decrease_reservation(&g, DomId::SELF, 0, some), n);
    }
    let mut x = domctl_on(&h, DomctlCmd::Destroydomain, d.id);
    let (mut slices, mut most) = (0, 0);
    loop {
        let before = w.unused();
        let memory = w.hv.borrow().frames.guest_pages(d.v.slot);
        let reply = w.slice(h.v, 36, &mut x);
        // Its memory goes in larger slices.
        if memory == 0 {
            most = most.max(w.unused() - before);
            slices += 1;
        }
        if reply != MORE {
            break;
        }
    }
    assert!(most < 128, "{most} pages in one slice of {slices}");
    assert_eq!(w.slot(d.id), None);
    assert_eq!(w.totals(), start);
}

/// A pause is over when no vcpu is on a CPU any more, and counts once however often it is made again.
#[test]
fn a_paused_domain_is_on_no_cpu() {
    use guest_abi::HypercallNr;
    use hv_core::types::CpuId;
    let w = World::boot(3);
    let d = w.create(Config::default()).unwrap();
    let at = |w: &World, now| w.hv.borrow_mut().sched.schedule(CpuId(1), now).run;
    let cpu1 = |w: &World| at(w, w.m.now.get());
    assert_eq!(cpu1(&w), Some(d.v));
    let h = w.dom0();
    let mut x = domctl_on(&h, DomctlCmd::Pausedomain, d.id);
    let nr = HypercallNr::Domctl.number();
    for _ in 0..3 {
        assert_eq!(w.slice(h.v, nr, &mut x), Reply::Again);
    }
    assert_ne!(cpu1(&w), Some(d.v));
    assert_eq!(w.slice(h.v, nr, &mut x), Reply::Done(0));
    assert_eq!(w.hv.borrow().domains.get(d.v.slot).unwrap().paused, 1);
    domctl::unpausedomain(&h, d.id).unwrap();
    // Who took its CPU may keep it for a while.
    assert_eq!(at(&w, w.m.now.get() + 1_000_000), Some(d.v));
}

/// Cache maintenance by set and way becomes one by address: over all that the domain has, once, and
/// in small pieces.
#[test]
fn set_and_way_cleans_every_page_once_in_slices() {
    use hv_core::setway::SetWay;
    use std::collections::BTreeSet;
    for gic in [2, 3] {
        let w = World::boot(gic);
        let d = w.create(Config::default()).unwrap();
        live(&w, &d);
        let far = [Gfn(1 << 20), Gfn((1 << 28) - 1)];
        assert_eq!(
            memory::populate_physmap(&d.guest(&w), DomId::SELF, 0, &far),
            Ok(2)
        );
        let hv = w.hv.borrow();
        let slot = d.v.slot;
        let (leaves, _) = w.m.tables(hv.domains.get(slot).unwrap().p2m.vttbr().bits());
        let mut want: BTreeSet<u64> = leaves
            .iter()
            .filter(|l| l.kind != 6)
            .flat_map(|l| l.mfn..l.mfn + (1 << l.order))
            .collect();
        let mut state = SetWay::default();
        state.operation();
        let mut slices = 0;
        while let Some((mfn, pages)) = hv.next_to_clean(&w.m, slot, &mut state) {
            slices += 1;
            assert!(pages <= 64 && slices < 100_000);
            (mfn.0..mfn.0 + pages).for_each(|p| assert!(want.remove(&p), "{p:#x}"));
        }
        assert!(!state.due());
        assert_eq!(want, BTreeSet::new(), "{slices} slices");
        // A domain that is gone has nothing to clean.
        let mut state = SetWay::default();
        state.operation();
        let gone = hv_core::types::Slot(77);
        assert_eq!(hv.next_to_clean(&w.m, gone, &mut state), None);
        assert!(!state.due());
    }
}

/// A VMID that is given anew has nothing of its last owner's, whatever a CPU speculated after that one's end.
#[test]
fn a_vmid_is_clean_when_it_is_given() {
    let w = World::boot(3);
    let first = w.create(Config::default()).unwrap();
    let vmid = u64::from(first.v.slot.0) + 1;
    let w = World::boot(3);
    for order in [0, 9, 18] {
        let leaf = sim::Leaf {
            gfn: 0x4_0000,
            mfn: 0x4_0000,
            order,
            read: true,
            write: true,
            kind: 1,
        };
        w.m.leave_cached(vmid, leaf);
    }
    let d = w.create(Config::default()).unwrap();
    assert_eq!(u64::from(d.v.slot.0) + 1, vmid);
    assert_eq!(w.m.cached(vmid).len(), 0);
    w.settle();
}

/// Two vcpus of a domain have one VMID, and may have one ASID: what one left in a CPU's TLB is not the other's.
#[test]
fn another_vcpu_of_the_domain_finds_nothing_in_a_cpus_tlb() {
    let w = World::boot(3);
    let d = w.create(Config::default()).unwrap();
    let mut hv = w.hv.borrow_mut();
    let p2m = &mut hv.domains.get_mut(d.v.slot).unwrap().p2m;
    let mut comes = |cpu, vcpu| p2m.comes_onto(CpuId(cpu), VcpuId(vcpu));
    assert!(!comes(0, 0), "the first");
    assert!(!comes(0, 0), "the same");
    assert!(!comes(1, 1), "the first there");
    assert!(comes(0, 1), "another");
    assert!(!comes(0, 1));
    assert!(comes(0, 0), "back again");
    assert!(!comes(1, 1), "each CPU for itself");
    assert!(comes(200, 0), "a CPU that there is not");
}

/// The hostile guest of `dead_mappings_cost_no_flush_each`: `n` of its pages are granted to `to`, which
/// maps them from `at` on.
fn lend(w: &World, from: &DomU, to: &DomU, n: u64, at: u64) {
    let (g, h) = (from.guest(w), to.guest(w));
    let table = Gfn(arch::GUEST_GNTTAB_BASE >> 12);
    memory::add_to_physmap(&g, DomId::SELF, MapSpace::GrantTable, 0, table).unwrap();
    for k in 0..n {
        let e = guest_abi::grant_table::GrantEntryV1 {
            flags: guest_abi::grant_table::gtf::PERMIT_ACCESS,
            domid: to.id,
            frame: (RAM0 >> 12) as u32 + k as u32,
        };
        g.put(arch::GUEST_GNTTAB_BASE + (8 + k) * 8, &e);
        let gref = GrantRef(8 + k as u32);
        map(&h, from.id, gref, at + k * 4096, gntmap::HOST_MAP).unwrap();
    }
}

/// A domain that maps much and dies: each mapping goes without a broadcast of its own, and before anything is
/// freed no CPU holds a translation of it any more. Each call is a slice that returns to the control domain.
#[test]
fn xsa_380_394_dead_mappings_cost_no_flush_each() {
    let w = World::boot(3);
    let h = w.dom0();
    w.destroy(w.create(Config::default()).unwrap().id);
    let start = w.totals();
    let [a, b] = [0, 1].map(|_| w.create(Config::default()).unwrap());
    lend(&w, &a, &b, 400, 0x3a00_0000);
    w.check();
    let vmid = u64::from(b.v.slot.0) + 1;
    assert!(w.m.cached(vmid).len() > 400, "the TLBs are full");
    let (one, all) = w.m.flushes.get();
    let mut x = domctl_on(&h, DomctlCmd::Destroydomain, b.id);
    let free = w.totals().free;
    let mut calls = 1;
    while w.slice(h.v, 36, &mut x) == MORE {
        // `settle` looks at what is cached after each.
        let cached = w.m.cached(vmid).len();
        assert!(
            cached == 0 || w.totals().free == free,
            "{cached} translations"
        );
        calls += 1;
    }
    assert!(calls > 5, "only {calls} calls");
    assert_eq!(w.m.flushes.get(), (one, all + 1));
    w.check();
    w.destroy(a.id);
    assert_eq!(w.totals(), start);
}

/// 126 rounds of this took all slots once: a granter reboots again and again while who maps its pages keeps
/// them. Now its number, slot and VMID are free each time, and the pages are charged to who holds them.
#[test]
fn xsa_276_who_keeps_a_dead_domains_pages_pays_for_them() {
    let w = World::boot(3);
    let h = w.dom0();
    w.destroy(w.create(Config::default()).unwrap().id);
    let start = w.totals();
    let small = Config {
        vcpus: 1,
        blocks: 0,
        pages: 40,
        vuart: false,
    };
    let keeper = w.create(Config::default()).unwrap();
    let k = keeper.guest(&w);
    let before = domctl::getdomaininfo(&h, keeper.id).unwrap().tot_pages;
    let mut slot = None;
    let mut kept = 0;
    for _ in 0..200 {
        let a = w.create(small).unwrap();
        assert_eq!(*slot.get_or_insert(a.v.slot), a.v.slot);
        let table = Gfn(arch::GUEST_GNTTAB_BASE >> 12);
        let g = a.guest(&w);
        memory::add_to_physmap(&g, DomId::SELF, MapSpace::GrantTable, 0, table).unwrap();
        for n in 0..2 {
            let e = guest_abi::grant_table::GrantEntryV1 {
                flags: guest_abi::grant_table::gtf::PERMIT_ACCESS,
                domid: keeper.id,
                frame: (RAM0 >> 12) as u32 + n as u32,
            };
            g.put(arch::GUEST_GNTTAB_BASE + (8 + n) * 8, &e);
        }
        let at = |n: u64| 0x3a00_0000 + (kept + n) * 4096;
        let got = [0, 1].map(|n| {
            map(
                &k,
                a.id,
                GrantRef(8 + n),
                at(u64::from(n)),
                gntmap::HOST_MAP,
            )
            .is_ok()
        });
        // Beyond its own limit it maps no more.
        let over = before + kept > before + 256;
        assert_eq!(got, [!over; 2], "{kept} pages");
        kept += 2 * u64::from(!over);
        w.destroy(a.id);
        assert_eq!(w.slot(a.id), None);
        let info = domctl::getdomaininfo(&h, keeper.id).unwrap();
        assert_eq!(info.tot_pages, before + kept);
    }
    w.check();
    assert!(kept > 256, "{kept}");
    assert_eq!(u64::from(w.hv.borrow().frames.guest_pages(NOBODY)), kept);
    // It gets no memory of its own either, before it lets go.
    let more = [Gfn(0x10_0000)];
    assert_eq!(memory::populate_physmap(&k, DomId::SELF, 0, &more), Ok(0));
    for n in 0..kept {
        assert_eq!(unmap(&k, n as u32, 0x3a00_0000 + n * 4096), 0);
    }
    assert_eq!(memory::populate_physmap(&k, DomId::SELF, 0, &more), Ok(1));
    w.destroy(keeper.id);
    w.check();
    assert_eq!(w.totals(), start);
}

/// A page that left its domain's memory while somebody maps it is found when the domain dies, though nothing
/// of the domain leads to it.
#[test]
fn xsa_379_a_page_that_was_given_back_while_mapped_is_not_the_successors() {
    let w = World::boot(3);
    let [a, b] = [0, 1].map(|_| w.create(Config::default()).unwrap());
    lend(&w, &a, &b, 3, 0x3a00_0000);
    let g = a.guest(&w);
    let gone = [Gfn((RAM0 >> 12) + 1)];
    assert_eq!(
        memory::decrease_reservation(&g, DomId::SELF, 0, &gone),
        Ok(1)
    );
    b.guest(&w).put(0x3a00_1000, b"still here");
    w.destroy(a.id);
    w.check();
    let c = w.create(Config::default()).unwrap();
    assert_eq!(c.v.slot, a.v.slot);
    let hv = w.hv.borrow();
    assert_eq!(u64::from(hv.frames.guest_pages(c.v.slot)), 512 + 64 + 4);
    assert_eq!(hv.frames.guest_pages(NOBODY), 3);
    drop(hv);
    assert_eq!(b.guest(&w).get::<[u8; 10]>(0x3a00_1000), *b"still here");
    w.destroy(b.id);
    assert_eq!(w.hv.borrow().frames.guest_pages(NOBODY), 0);
    w.check();
}

/// The granter dies in slices while the mapper unmaps, and the other way round: whichever comes first, each page
/// goes once.
#[test]
fn xsa_147_a_domain_dies_while_another_unmaps() {
    let w = World::boot(3);
    let h = w.dom0();
    w.destroy(w.create(Config::default()).unwrap().id);
    let start = w.totals();
    for between in 0..12 {
        let [a, b] = [0, 1].map(|_| w.create(Config::default()).unwrap());
        lend(&w, &a, &b, 8, 0x3a00_0000);
        let mut x = domctl_on(&h, DomctlCmd::Destroydomain, a.id);
        let mut n = 0;
        for slice in 0.. {
            let more = w.slice(h.v, 36, &mut x) == MORE;
            if slice >= between && n < 8 {
                let at = 0x3a00_0000 + u64::from(n) * 4096;
                assert_eq!(unmap(&b.guest(&w), n, at), 0, "{between} {slice}");
                n += 1;
            }
            if !more {
                break;
            }
        }
        w.check();
        w.destroy(b.id);
        w.check();
        assert_eq!(w.totals(), start);
    }
}
