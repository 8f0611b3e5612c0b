// SPDX-License-Identifier: MIT OR Apache-2.0
//! Words that are stored to all the time, so that an update of them is tried often, or in vain (XSA-295).

use guest_abi::calls::event;
use guest_abi::grant_table::{GnttabMapGrantRef, GrantEntryV1, GrantStatus, gntmap, gtf};
use guest_abi::memory::MapSpace;
use guest_abi::{Gfn, GrantRef, arch, calls::grant, calls::memory};
use hv_core::domain::Death;
use hv_core::types::{Access, DomId};
use sim::{Config, DomU, Guest, WINDOW, World};

/// Why a domain was ended, if it was.
fn ended(w: &World, d: &DomU) -> Option<u32> {
    w.hv.borrow().domains.get(d.v.slot).unwrap().shutdown
}

/// Nobody but `d` has come to harm: others go on.
fn only(w: &World, d: &DomU, other: &DomU) {
    assert_eq!(ended(w, d), Some(3), "it crashed");
    assert_eq!(ended(w, other), None);
    assert_eq!(
        w.hv.borrow().domains.get(w.dom0().v.slot).unwrap().shutdown,
        None
    );
    let told = String::from_utf8_lossy(&w.m.printed.borrow()).into_owned();
    assert!(!told.contains("panic"));
    w.check();
}

/// A channel between two domains: the port of each.
fn channel(from: &Guest<'_>, to: &Guest<'_>) -> (guest_abi::Port, guest_abi::Port) {
    let p = event::alloc_unbound(to, DomId::SELF, from.domid()).unwrap();
    (event::bind_interdomain(from, to.domid(), p).unwrap(), p)
}

/// Holds the page that is mapped at `gfn` of `g`.
fn hold(w: &World, g: &Guest<'_>, gfn: u64) {
    let mfn = g.mfn(gfn, Access::Read).unwrap();
    w.m.held.borrow_mut().insert(mfn);
}

const INFO: u64 = arch::GUEST_RAM0_BASE + (1 << 20);

#[test]
fn xsa_295_who_keeps_a_word_contended_is_ended_and_nobody_else() {
    for receives in [false, true] {
        let w = World::boot(3);
        let (a, b) = (
            w.create(Config::default()).unwrap(),
            w.create(Config::default()).unwrap(),
        );
        let (ga, gb) = (a.guest(&w), b.guest(&w));
        let (pa, pb) = channel(&ga, &gb);
        memory::map_shared_info(&gb, Gfn::of(INFO)).unwrap();
        hold(&w, &gb, INFO >> 12);
        if receives {
            // Whoever sends to it does not know.
            event::send(&ga, pa).unwrap();
        } else {
            event::unmask(&gb, pb).unwrap();
        }
        only(&w, &b, &a);
        // Sending to it, and its end, cost a bounded time still.
        event::send(&ga, pa).unwrap();
        event::close(&ga, pa).unwrap();
        let before = w.m.updates.get();
        w.destroy(b.id);
        assert_eq!(
            w.m.updates.get(),
            before,
            "nobody looks at a dead domain's words"
        );
        assert!(w.slot(b.id).is_none());
        assert_eq!(ended(&w, &a), None);
    }
}

#[test]
fn xsa_295_a_contended_grant_entry_ends_the_granter() {
    let w = World::boot(2);
    let (a, b) = (
        w.create(Config::default()).unwrap(),
        w.create(Config::default()).unwrap(),
    );
    let g = a.guest(&w);
    let table = arch::GUEST_GNTTAB_BASE;
    memory::add_to_physmap(&g, DomId::SELF, MapSpace::GrantTable, 0, Gfn::of(table)).unwrap();
    let entry = GrantEntryV1 {
        flags: gtf::PERMIT_ACCESS,
        domid: DomId(0),
        frame: (INFO >> 12) as u32,
    };
    g.put(table + 20 * 8, &entry);
    hold(&w, &g, table >> 12);
    let mut list = [GnttabMapGrantRef {
        host_addr: WINDOW,
        flags: gntmap::HOST_MAP,
        gref: GrantRef(20),
        dom: a.id,
        ..Default::default()
    }];
    grant::map(&w.dom0(), &mut list).unwrap();
    assert_eq!(list[0].status, GrantStatus::GeneralError.number());
    only(&w, &a, &b);
    assert_eq!(w.totals().dom0_mappings, 0);
}

#[test]
fn xsa_295_a_contended_word_of_the_control_domain_is_reported() {
    let w = World::boot(3);
    let a = w.create(Config::default()).unwrap();
    let (ga, h) = (a.guest(&w), w.dom0());
    let (pa, _) = channel(&ga, &h);
    let info = w.hv.borrow().events.vcpu_info(h.v).unwrap();
    w.m.held.borrow_mut().insert(info.0 >> 12);
    event::send(&ga, pa).unwrap();
    w.m.held.borrow_mut().clear();
    let hv = w.hv.borrow();
    assert_eq!(hv.domains.get(h.v.slot).unwrap().shutdown, None);
    assert_eq!(hv.domains.get(a.v.slot).unwrap().death, Death::Alive);
    drop(hv);
    assert_eq!(ended(&w, &a), None);
    event::send(&ga, pa).unwrap();
    w.check();
}

/// An error that a guest's work made pending ends that guest, and is reported where it is the control domain's.
#[test]
fn xsa_201_an_error_ends_whom_it_is_charged_to() {
    let w = World::boot(3);
    let (a, b) = (
        w.create(Config::default()).unwrap(),
        w.create(Config::default()).unwrap(),
    );
    let serror = |slot, esr| w.hv.borrow_mut().serror(&w.m, slot, esr);
    let dom0 = w.dom0().v.slot;
    // Corrected, restartable; not known, of dom0's.
    assert!(!serror(a.v.slot, 0xbe00_1811) && !serror(a.v.slot, 0xbe00_0811));
    assert!(!serror(dom0, 0xbf00_0000));
    assert_eq!((ended(&w, &a), ended(&w, &b)), (None, None));
    assert!(!serror(a.v.slot, 0xbf00_0000));
    only(&w, &a, &b);
    assert!(
        serror(dom0, 0xbe00_0411) && serror(b.v.slot, 0xbe00_0011),
        "contained in nobody"
    );
}
