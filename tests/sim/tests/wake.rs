// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vcpu does not sleep through what it waits for: SCHEDOP_block and SCHEDOP_poll.

use guest_abi::calls::{event, sched};
use hv_core::machine::VcpuIf;
use hv_core::types::VcpuId;
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
