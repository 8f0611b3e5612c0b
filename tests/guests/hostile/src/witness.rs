// SPDX-License-Identifier: MIT OR Apache-2.0
//! The witness: fills memory and looks at it again and again, sleeps for some milliseconds and looks how late it wakes,
//! and counts. It offers every domain a page that may be read, and a channel.

use el1::shared::Shared;
use el1::{Machine, cpu, gic, hvc, println, time};
use guest_abi::memory::MapSpace;
use guest_abi::{DomId, Errno, Gfn, calls};

/// Pages that hold a pattern.
const PAGES: usize = 2048;
/// Pages that are looked at between two sleeps.
const SLICE: usize = 8;
/// How long it sleeps, in nanoseconds.
const NAP: u64 = 5_000_000;
/// How often it says how things are.
const REPORT: u64 = 1_000_000_000;
/// Domains that get a page and a channel.
const DOMAINS: core::ops::Range<u16> = 2..400;

pub fn main(machine: &Machine) -> ! {
    if let Err(e) = watch(machine) {
        println!("witness: failed: {e}");
    }
    loop {
        cpu::idle();
    }
}

fn pattern(page: usize, word: usize, round: u64) -> u64 {
    (page as u64) << 40 | (word as u64) << 24 | round & 0xff_ffff
}

/// How many double words of a page are not what they were.
fn wrong(pages: &Shared, page: usize, round: u64) -> usize {
    let word = |n: usize| {
        pages
            .atomic64(page * 4096 + n * 8)
            .map(|a| a.load(core::sync::atomic::Ordering::Relaxed))
    };
    (0..512)
        .filter(|n| word(*n) != Some(pattern(page, *n, round)))
        .count()
}

fn fill(pages: &Shared, page: usize, round: u64) {
    for n in 0..512 {
        if let Some(a) = pages.atomic64(page * 4096 + n * 8) {
            a.store(
                pattern(page, n, round),
                core::sync::atomic::Ordering::Relaxed,
            );
        }
    }
}

fn watch(machine: &Machine) -> Result<(), Errno> {
    let xen = hvc::xen();
    let hypervisor = machine.hypervisor.clone().ok_or(Errno::ENXIO)?;
    let window = Gfn::of(hypervisor.grant_window.0);
    calls::memory::add_to_physmap(&xen, DomId::SELF, MapSpace::GrantTable, 0, window)?;
    let table = Shared::at(window.0, 1).ok_or(Errno::EINVAL)?;
    let offered = Shared::fresh(1).ok_or(Errno::ENOMEM)?;
    fill(&offered, 0, 0);
    for dom in DOMAINS {
        let at = (8 + usize::from(dom)) * 8;
        // Only to be read.
        table.write32(at + 4, (offered.addr() / 4096) as u32);
        table.write32(at, u32::from(dom) << 16 | 5);
        if dom < 64 {
            calls::event::alloc_unbound(&xen, DomId::SELF, DomId(dom))?;
        }
    }
    let info = Shared::fresh(1).ok_or(Errno::ENOMEM)?;
    calls::memory::map_shared_info(&xen, Gfn::of(info.addr()))?;
    let pages = Shared::fresh(PAGES).ok_or(Errno::ENOMEM)?;
    (0..PAGES).for_each(|page| fill(&pages, page, 0));
    gic::enable(time::INTID, gic::Trigger::Level);

    let (mut next, mut round, mut faults, mut beats) = (0, 0, 0, 0u64);
    let mut latest = 0;
    let mut report = time::now_ns();
    loop {
        let due = time::now_ns() + NAP;
        while time::now_ns() < due {
            time::set_alarm(Some(due));
            cpu::idle();
            time::set_alarm(None);
            while gic::poll(|_| ()) {}
        }
        latest = time::now_ns().saturating_sub(due).max(latest);
        beats += 1;
        for page in next..next + SLICE {
            let n = wrong(&pages, page, round);
            if n != 0 {
                faults += 1;
                println!("witness: FAULT: {n} double words of page {page} are not what they were");
            }
            fill(&pages, page, round + 1);
        }
        next += SLICE;
        if next == PAGES {
            (next, round) = (0, round + 1);
        }
        if wrong(&offered, 0, 0) != 0 {
            faults += 1;
            println!("witness: FAULT: the page that is only to be read was written");
        }
        let now = time::now_ns();
        if now - report >= REPORT {
            println!(
                "witness: beat {beats}, round {round}, late {} us, faults {faults}",
                latest / 1000
            );
            (latest, report) = (0, now);
        }
    }
}
