// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vcpu does not sleep through what it waits for: SCHEDOP_block and SCHEDOP_poll.

use guest_abi::calls::{event, sched};
use hv_core::machine::VcpuIf;
use hv_core::types::{CpuId, VcpuId};
use hv_core::vgic::Region;
use hv_core::vtimer::PPI_VIRTUAL;
use sim::{Config, DomU, Guest, World};

/// The domain's interrupt controller forwards its virtual timer's interrupt.
fn gic_on(w: &World, d: &DomU) {
    let (slot, v) = (d.v.slot, VcpuId(0));
    let mut hv = w.hv.borrow_mut();
    let (on, enable) = match hv.info.gic_version {
        2 => (1, (Region::Gicd, 0x100)),
        _ => (2, (Region::Gicr, 0x1_0100)),
    };
    for (region, offset, value) in [
        (Region::Gicd, 0, on),
        (enable.0, enable.1, 1 << PPI_VIRTUAL),
    ] {
        let done = hv.vgics.mmio_write(slot, v, region, offset, 4, value);
        assert!(done.is_ok());
    }
}

fn timer_fires(w: &World, d: &DomU) {
    let fx =
        w.hv.borrow_mut()
            .vgics
            .inject_hw(d.v.slot, d.v.vcpu, PPI_VIRTUAL);
    assert!(fx.is_some());
}

fn asleep(w: &World, g: &Guest<'_>) -> bool {
    w.hv.borrow().sched.is_blocked(g.v)
}

/// Puts what waits into the list registers, as before each entry to the guest.
fn enter(w: &World, g: &Guest<'_>) {
    let k =
        w.hv.borrow_mut()
            .vgics
            .flush(g.v.slot, g.v.vcpu, &mut w.m.lrs());
    assert_eq!(k, 0);
}

#[test]
fn block_does_not_sleep_over_an_interrupt_that_came_before() {
    for gic in [2, 3] {
        let w = World::boot(gic);
        let d = w.create(Config::default()).unwrap();
        let g = d.guest(&w);
        gic_on(&w, &d);
        sched::block(&g).unwrap();
        assert!(asleep(&w, &g), "there is nothing to do");
        w.hv.borrow_mut().wake(g.v, 0);

        // In the tables alone, then in a list register, then taken and not ended.
        timer_fires(&w, &d);
        sched::block(&g).unwrap();
        assert!(!asleep(&w, &g));
        enter(&w, &g);
        w.m.masked.set(true);
        sched::block(&g).unwrap();
        assert!(!asleep(&w, &g));
        assert!(!w.m.masked.get(), "as on Xen: it waits to be interrupted");
        enter(&w, &g);
        w.m.acknowledge(PPI_VIRTUAL);
        sched::block(&g).unwrap();
        assert!(asleep(&w, &g), "an active interrupt is no news");
    }
}

#[test]
fn poll_does_not_sleep_over_an_interrupt_unless_they_are_masked() {
    let w = World::boot(3);
    let d = w.create(Config::default()).unwrap();
    let g = d.guest(&w);
    gic_on(&w, &d);
    let port = event::bind_ipi(&g, 0).unwrap();
    for masked in [false, true] {
        w.m.masked.set(masked);
        timer_fires(&w, &d);
        enter(&w, &g);
        sched::poll(&g, &[port], 0).unwrap();
        assert_eq!(asleep(&w, &g), masked);
        assert_eq!(w.m.masked.get(), masked, "a poll leaves the mask alone");
    }
    // It is the port that ends it then, and nothing of the poll stays behind.
    event::send(&d.vcpu(&w, 1), port).unwrap();
    assert!(!asleep(&w, &g));
}

/// Its vcpu leaves the CPU that it was on, as it sleeps.
fn leaves(w: &World, g: &Guest<'_>, cpu: CpuId, cval: u64) {
    assert!(asleep(w, g));
    w.hv.borrow_mut()
        .vcpu_left(&w.m, g.v, cpu, u64::from(cval != 0), cval);
}

fn rings(w: &World, cpu: CpuId, at: u64) {
    let mut hv = w.hv.borrow_mut();
    hv.timer_rang(&w.m, cpu, None, at);
    hv.effects = Default::default();
}

fn next(w: &World, cpu: CpuId) -> u64 {
    w.hv.borrow().next_timer(cpu, None)
}

#[test]
fn a_poll_ends_at_its_time_and_leaves_nothing() {
    let w = World::boot(3);
    let d = w.create(Config::default()).unwrap();
    let (g, cpu) = (d.guest(&w), CpuId(1));
    let port = event::bind_ipi(&g, 0).unwrap();
    let until = w.m.now.get() + 50_000_005;
    sched::poll(&g, &[port], until).unwrap();
    leaves(&w, &g, cpu, 0);
    let at = next(&w, cpu);
    assert_eq!((at, next(&w, CpuId(0))), (until / 16, u64::MAX));
    rings(&w, cpu, at - 1);
    assert!(asleep(&w, &g) && next(&w, cpu) == at);
    rings(&w, cpu, at);
    assert!(!asleep(&w, &g) && next(&w, cpu) == u64::MAX);

    // Ended by something else, it does not ring for the next sleep.
    sched::poll(&g, &[port], until + 10_000_000).unwrap();
    leaves(&w, &g, cpu, 0);
    let mut hv = w.hv.borrow_mut();
    hv.wake(g.v, 0);
    hv.vcpu_comes(g.v);
    drop(hv);
    assert_eq!(next(&w, cpu), u64::MAX);
    sched::block(&g).unwrap();
    leaves(&w, &g, cpu, 0);
    assert_eq!(next(&w, cpu), u64::MAX);
}

#[test]
fn a_sleeping_vcpus_timer_rings_on_the_cpu_that_it_left() {
    let w = World::boot(3);
    let d = w.create(Config::default()).unwrap();
    gic_on(&w, &d);
    let (g, cpu) = (d.guest(&w), CpuId(1));
    sched::block(&g).unwrap();
    leaves(&w, &g, cpu, 77);
    let offset = w.hv.borrow().vtimers.offset(g.v.slot);
    assert_eq!(next(&w, cpu), 77 + offset);
    rings(&w, CpuId(0), u64::MAX);
    rings(&w, cpu, 76 + offset);
    assert!(asleep(&w, &g));
    rings(&w, cpu, 77 + offset);
    assert!(!asleep(&w, &g));
    assert!(
        w.hv.borrow()
            .vgics
            .hw_active(g.v.slot, g.v.vcpu, PPI_VIRTUAL)
    );
}

#[test]
fn a_watchdog_fires_whatever_cpu_its_domain_is_on() {
    for gic in [2, 3] {
        let w = World::boot(gic);
        let d = w.create(Config::default()).unwrap();
        let (g, cpu) = (d.guest(&w), CpuId(1));
        let call = |id, timeout| {
            w.call_on(cpu, &g, |g| sched::watchdog(g, id, timeout))
                .unwrap()
        };
        let id = call(0, 2) as u32;
        let other = call(0, 1) as u32;
        let first = next(&w, cpu);
        call(other, 0);
        let at = next(&w, cpu);
        assert!(first < at && at != u64::MAX);
        assert_eq!(next(&w, CpuId(0)), u64::MAX);
        // Renewed elsewhere, it rings there.
        let moved = w
            .call_on(CpuId(0), &g, |g| sched::watchdog(g, id, 2))
            .unwrap();
        assert_eq!((moved, next(&w, cpu)), (0, u64::MAX));
        let at = next(&w, CpuId(0));
        rings(&w, CpuId(0), at - 1);
        let ended = || w.hv.borrow().domains.get(d.v.slot).unwrap().shutdown;
        assert_eq!(ended(), None);
        rings(&w, CpuId(0), at);
        assert_eq!((ended(), next(&w, CpuId(0))), (Some(4), u64::MAX));
    }
}

#[test]
fn what_rings_at_once_is_dealt_with_in_slices() {
    let w = World::boot(3);
    let doms: Vec<_> = (0..5)
        .map(|_| {
            let config = Config {
                vcpus: 8,
                blocks: 0,
                pages: 16,
                ..Config::default()
            };
            let d = w.create(config).unwrap();
            for v in 0..8 {
                let g = d.vcpu(&w, v);
                sched::block(&g).unwrap();
                leaves(&w, &g, CpuId(0), 100);
            }
            d
        })
        .collect();
    let sleepers = || {
        let all = doms.iter().flat_map(|d| (0..8).map(|v| d.vcpu(&w, v)));
        all.filter(|g| asleep(&w, g)).count()
    };
    let at = next(&w, CpuId(0));
    assert_ne!(at, u64::MAX);
    assert_eq!(sleepers(), 40);
    let mut rounds = 0;
    while next(&w, CpuId(0)) == at {
        let before = sleepers();
        rings(&w, CpuId(0), at);
        assert!(before - sleepers() <= 16);
        rounds += 1;
    }
    assert_eq!((sleepers(), rounds), (0, 3));
}

/// What a CPU's own decision leads to is not lost: an SPI that leaves with a vcpu wakes another, on this very CPU.
#[test]
fn a_kick_for_the_cpu_that_decides_has_it_decide_again() {
    use hv_core::hypervisor::Effects;
    let cpu = CpuId(3);
    for (kick, look, resched, again) in [
        (0, 0, false, false),
        (1 << 3, 0, false, true),
        (0, 1 << 3, false, true),
        (!(1 << 3), !(1 << 3), false, false),
        (0, 0, true, true),
    ] {
        let mut fx = Effects {
            kick,
            look,
            resched,
            ..Effects::default()
        };
        assert_eq!(fx.concern(cpu), again);
        let _ = fx.take();
        assert!(fx.none());
    }
}

/// A vcpu that is on its way down is neither off nor to be started, as long as a CPU has it.
#[test]
fn what_affinity_info_calls_off_can_be_started() {
    use hv_core::psci::{Call, Workarounds, decode};
    let w = World::boot(3);
    let d = w.create(Config::default()).unwrap();
    let (g, v1) = (d.guest(&w), d.vcpu(&w, 1).v);
    let (cpu, other) = (CpuId(0), CpuId(1));
    let psci = |v, x| {
        let call = decode(x, &Workarounds::UNKNOWN);
        let mut hv = w.hv.borrow_mut();
        hv.effects = Default::default();
        let r = hv.psci(&w.m, v, call);
        (r, hv.effects.kick)
    };
    let on = [0xc400_0003, 1, 0x4000_0000, 7];
    let info = || psci(g.v, [0xc400_0004, 1, 0, 0]).0;
    let run = |cpu| w.hv.borrow_mut().sched.schedule(cpu, w.m.now.get()).run;
    assert_eq!(info(), Some(1));
    for _ in 0..3 {
        assert_eq!(psci(g.v, on).0, Some(0));
        assert_eq!((info(), psci(g.v, on).0), (Some(0), Some(-4)), "ALREADY_ON");
        assert_eq!(run(cpu).map(|v| v.slot), Some(w.dom0().v.slot));
        w.hv.borrow_mut().sched.set_affinity(g.v, 1, 0).unwrap();
        assert_eq!(run(other), Some(v1));
        // It takes itself down; its CPU has not decided anew yet.
        assert_eq!(psci(v1, [0x8400_0002, 0, 0, 0]).0, Some(0));
        assert_eq!(info(), Some(0), "still there");
        assert_eq!(
            psci(g.v, on),
            (None, 1 << 1),
            "made again, and that CPU is told"
        );
        assert_ne!(run(other), Some(v1));
        assert_eq!(info(), Some(1));
    }
    // As on Xen: of vcpus that are not there it is said that they are off.
    assert_eq!(psci(g.v, [0xc400_0004, 2, 0, 0]).0, Some(1));
    assert_eq!(psci(g.v, [0xc400_0003, 2, 0x4000_0000, 0]).0, Some(-2));
    assert!(matches!(
        decode([0xc400_0003, 1 << 40, 0, 0], &Workarounds::UNKNOWN),
        Call::Reply(-2)
    ));
    let _ = psci(g.v, [0x8400_0009, 0, 0, 0]);
    let hv = w.hv.borrow();
    assert_eq!(hv.domains.get(g.v.slot).unwrap().shutdown, Some(1));
}

#[test]
fn wfi_sleeps_where_the_priority_mask_hides_what_waits() {
    let w = World::boot(3);
    let d = w.create(Config::default()).unwrap();
    let g = d.guest(&w);
    gic_on(&w, &d);
    timer_fires(&w, &d);
    enter(&w, &g);
    for (threshold, sleeps) in [(0, true), (0xf8, false)] {
        w.m.threshold.set(threshold);
        w.hv.borrow_mut().sleep(&w.m, g.v, None);
        assert_eq!(asleep(&w, &g), sleeps);
        w.hv.borrow_mut().wake(g.v, 0);
    }
}
