// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether the simulated machine sees what it is there to see: translations that are cached at the worst time.

use guest_abi::arch;
use hv_core::machine::{PhysMem, Tlb};
use hv_core::types::{Access, Mfn};
use sim::{Config, DomU, World};

const GFN: u64 = (arch::GUEST_RAM0_BASE >> 12) + 3;

fn world() -> (World, DomU) {
    let w = World::boot(3);
    let config = Config {
        vcpus: 1,
        blocks: 0,
        pages: 40,
        vuart: false,
    };
    let d = w.create(config).unwrap();
    (w, d)
}

/// Takes a page out of a domain's map as no code should, with `flush` before, after or not at all.
fn taken_away(flush: Option<bool>) {
    let (w, d) = world();
    let root = w.hv.borrow().domains.get(d.v.slot).unwrap().p2m.vttbr();
    let pa = w.m.entry(root.bits(), GFN);
    if flush == Some(false) {
        w.m.flush_ipa(root, GFN << 12);
    }
    w.m.store64(pa, 0);
    if flush == Some(true) {
        w.m.flush_ipa(root, GFN << 12);
    }
    w.settle();
}

#[test]
fn a_flush_after_the_change_is_right() {
    taken_away(Some(true));
}

#[test]
#[should_panic(expected = "stale translation")]
fn a_missing_flush_is_seen() {
    taken_away(None);
}

#[test]
#[should_panic(expected = "stale translation")]
fn a_flush_before_the_change_is_seen() {
    taken_away(Some(false));
}

/// Another address, or another VMID, is none of its business.
#[test]
#[should_panic(expected = "made before the cache is clean")]
fn xsa_393_a_flush_of_another_address_is_seen() {
    let (w, d) = world();
    let root = w.hv.borrow().domains.get(d.v.slot).unwrap().p2m.vttbr();
    let pa = w.m.entry(root.bits(), GFN);
    let old = w.m.load64(pa);
    w.m.store64(pa, 0);
    w.m.flush_ipa(root, (GFN + 1) << 12);
    w.m.store64(pa, old);
}

#[test]
#[should_panic(expected = "cleared for another owner")]
fn xsa_393_a_page_that_is_reached_is_not_given_anew() {
    let (w, d) = world();
    let root = w.vttbr(d.v.slot);
    let mfn = d.guest(&w).mfn(GFN, Access::Read).unwrap();
    w.m.store64(w.m.entry(root, GFN), 0);
    w.m.zero_page(Mfn(mfn));
}

#[test]
#[should_panic(expected = "walks may be cached")]
fn a_table_that_goes_is_seen() {
    let (w, d) = world();
    let root = w.vttbr(d.v.slot);
    let table = (root & 0x0000_ffff_ffff_f000) + (GFN >> 18) * 8;
    w.m.store64(hv_core::types::Pa(table), 0);
}
