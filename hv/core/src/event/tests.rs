// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each operation against Xen's answers, and random histories against a model with model guests
//! that take events as Linux does.
use super::*;
use crate::machine::Meter;
use crate::machine::fake::FakeMem;
use core::cell::Cell;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const BASE: u64 = 0x4000_0000;
const VCPUS: usize = 3;
/// Pages of each test domain: shared_info, vcpu_infos, control blocks, four of array.
const PAGES: usize = 8;

fn at(slot: u8, vcpu: u8) -> VcpuRef {
    VcpuRef {
        slot: Slot(slot),
        vcpu: VcpuId(vcpu),
    }
}

fn page(slot: u8, n: usize) -> Mfn {
    Mfn::of(BASE + (usize::from(slot) * PAGES + n) as u64 * PAGE_SIZE)
}

fn pa(slot: u8, n: usize) -> Pa {
    Pa(page(slot, n).addr())
}

fn domid(slot: u8) -> DomId {
    DomId(100 + u16::from(slot))
}

struct World {
    e: Events,
    m: FakeMem,
    /// Guests' own list heads: slot, vcpu, priority.
    heads: BTreeMap<(u8, u8, u32), u32>,
}

impl World {
    fn new() -> Self {
        let m = FakeMem::new(BASE, 3 * PAGES);
        let mut e = Events::new();
        for slot in 0..3 {
            for n in 0..PAGES {
                m.zero_page(page(slot, n));
            }
            e.create_domain(Slot(slot), domid(slot), 4000, VCPUS)
                .unwrap();
            e.set_shared_info(Slot(slot), Some(pa(slot, 0))).unwrap();
        }
        Self {
            e,
            m,
            heads: BTreeMap::new(),
        }
    }

    /// Registers all vcpu_infos and takes the upcalls that this causes.
    fn with_infos() -> Self {
        let mut w = Self::new();
        for slot in 0..3 {
            for vcpu in 0..VCPUS as u32 {
                let info = pa(slot, 1).add(u64::from(vcpu) * 64);
                let n = w.e.set_vcpu_info(Slot(slot), vcpu, info, &w.m).unwrap();
                assert_eq!(n.upcalls, 1 << vcpu);
            }
            w.drain(slot);
        }
        w
    }

    fn fifo(&mut self, slot: u8, array_pages: usize) {
        for vcpu in 0..VCPUS as u32 {
            let offset = vcpu * 72;
            self.e
                .init_control(Slot(slot), vcpu, page(slot, 2), offset)
                .unwrap();
        }
        for n in 0..array_pages {
            let _ = self
                .e
                .expand_array(Slot(slot), page(slot, 3 + n), &self.m)
                .unwrap();
        }
    }

    fn word(&self, slot: u8, port: u32) -> Option<Pa> {
        self.e.domains[usize::from(slot)].word(port)
    }

    /// The guest sets or clears a port's mask itself.
    fn mask(&self, slot: u8, port: u32, on: bool) {
        if self.e.domains[usize::from(slot)].fifo {
            let Some(word) = self.word(slot, port) else {
                return;
            };
            if on {
                self.m.or32(word, MASKED).unwrap();
            } else {
                self.m.and32(word, !MASKED).unwrap();
            }
        } else {
            let mask = pa(slot, 0).add(SHARED_MASK + u64::from(port / 64 * 8));
            if on {
                self.m.or64(mask, 1 << (port % 64)).unwrap();
            } else {
                self.m.and64(mask, !(1 << (port % 64))).unwrap();
            }
        }
    }

    /// The guest handles the upcall of every vcpu that has one; gives the ports delivered.
    fn drain(&mut self, slot: u8) -> Vec<u32> {
        let mut got = vec![];
        for vcpu in 0..VCPUS as u8 {
            let Some(info) = self.e.vcpu_info(at(slot, vcpu)) else {
                continue;
            };
            if self.m.swap8(info, 0).unwrap() == 0 {
                continue;
            }
            if self.e.domains[usize::from(slot)].fifo {
                self.drain_fifo(slot, vcpu, &mut got);
            } else {
                self.drain_2l(slot, info, &mut got);
            }
        }
        got
    }

    fn drain_2l(&mut self, slot: u8, info: Pa, got: &mut Vec<u32>) {
        let sel = self.m.and64(info.add(INFO_SEL), 0).unwrap();
        for n in (0..64).filter(|n| sel & (1 << n) != 0) {
            let pending = pa(slot, 0).add(SHARED_PENDING + n * 8);
            let mask = self.m.load64(pa(slot, 0).add(SHARED_MASK + n * 8));
            let take = self.m.and64(pending, mask).unwrap() & !mask;
            got.extend(
                (0..64)
                    .filter(|b| take & (1 << b) != 0)
                    .map(|b| n as u32 * 64 + b),
            );
        }
    }

    fn drain_fifo(&mut self, slot: u8, vcpu: u8, got: &mut Vec<u32>) {
        let Some(control) = self.e.domains[usize::from(slot)].vcpus[usize::from(vcpu)].control
        else {
            return;
        };
        let mut ready = self.m.and32(control, 0).unwrap();
        while ready != 0 {
            let priority = ready.trailing_zeros();
            let head = self.heads.entry((slot, vcpu, priority)).or_default();
            if *head == 0 {
                *head = self
                    .m
                    .load32(control.add(CONTROL_HEAD + u64::from(priority) * 4));
            }
            let port = *head;
            let word = self.e.domains[usize::from(slot)]
                .word(port)
                .expect("a link to nowhere");
            let old = self.m.and32(word, !(LINKED | LINK)).unwrap();
            assert_ne!(old & LINKED, 0, "port {port} on a list twice");
            *head = old & LINK;
            if *head == 0 {
                ready &= !(1 << priority);
            }
            if old & (PENDING | MASKED) == PENDING {
                self.m.and32(word, !PENDING).unwrap();
                got.push(port);
            }
            ready |= self.m.and32(control, 0).unwrap();
        }
    }

    fn destroy(&mut self, slot: u8) -> Vec<Mfn> {
        let mut pages = vec![];
        let mut rounds = 0;
        while self.e.destroy(Slot(slot), 16, &self.m, |p| pages.push(p)) == Progress::More {
            rounds += 1;
            assert!(rounds < 10_000);
        }
        pages
    }

    fn reset(&mut self, slot: u8) -> Vec<Mfn> {
        let mut pages = vec![];
        let mut again = false;
        while self
            .e
            .reset(Slot(slot), again, 16, &self.m, |p| pages.push(p))
            .unwrap()
            == Progress::More
        {
            again = true;
        }
        pages
    }

    /// A channel between two domains, its first event taken: port in `a`, port in `b`.
    fn pair(&mut self, a: u8, b: u8) -> (Port, Port) {
        let pa = self.e.alloc_unbound(Slot(a), domid(b), &self.m).unwrap();
        let (pb, _) = self
            .e
            .bind_interdomain(Slot(b), Slot(a), pa, &self.m)
            .unwrap();
        self.drain(b);
        (pa, pb)
    }

    fn bytes(&self, slot: u8) -> Vec<u8> {
        let mut b = vec![0; PAGES * 4096];
        self.m.read(pa(slot, 0), &mut b);
        b
    }
}

fn both(test: impl Fn(World, bool)) {
    test(World::with_infos(), false);
    let mut w = World::with_infos();
    for slot in 0..3 {
        w.fifo(slot, 4);
    }
    test(w, true);
}

#[test]
fn send_raises_the_other_end_once() {
    both(|mut w, _| {
        let (a, b) = w.pair(0, 1);
        w.e.bind_vcpu(Slot(1), b, 2).unwrap();
        let n = w.e.send(Slot(0), a, &w.m).unwrap();
        assert_eq!(
            (n.slot, n.upcalls, n.pollers, n.also),
            (Slot(1), 4, 0, None)
        );
        assert_eq!(n.upcall_vcpus().collect::<Vec<_>>(), [at(1, 2)]);
        assert!(w.e.upcall_pending(at(1, 2), &w.m));
        assert!(!w.e.upcall_pending(at(1, 0), &w.m));
        assert!(w.e.send(Slot(0), a, &w.m).unwrap().is_none());
        assert_eq!(w.drain(1), [b.0]);
        assert!(!w.e.upcall_pending(at(1, 2), &w.m));
        // and back
        assert_eq!(w.e.send(Slot(1), b, &w.m).unwrap().upcalls, 1);
        assert_eq!(w.drain(0), [a.0]);
    });
}

#[test]
fn masked_waits_for_unmask() {
    both(|mut w, _| {
        let (a, b) = w.pair(0, 1);
        w.mask(1, b.0, true);
        assert!(w.e.send(Slot(0), a, &w.m).unwrap().is_none());
        assert!(w.drain(1).is_empty());
        assert_eq!(w.e.unmask(Slot(1), b, &w.m).unwrap().upcalls, 1);
        assert_eq!(w.drain(1), [b.0]);
        assert!(w.e.unmask(Slot(1), b, &w.m).unwrap().is_none());
        assert_eq!(w.e.unmask(Slot(1), Port(64), &w.m), Err(Errno::EINVAL));
        assert_eq!(
            w.e.unmask(Slot(1), Port(63), &w.m),
            Ok(Notify::none(Slot(1)))
        );
    });
}

#[test]
fn send_is_answered_as_by_xen() {
    both(|mut w, _| {
        let (a, _) = w.pair(0, 1);
        let unbound = w.e.alloc_unbound(Slot(0), domid(1), &w.m).unwrap();
        let virq = w.e.bind_virq(Slot(0), 1, 0, &w.m).unwrap();
        let ipi = w.e.bind_ipi(Slot(0), 1, &w.m).unwrap();
        assert!(w.e.send(Slot(0), unbound, &w.m).unwrap().is_none());
        assert_eq!(w.e.send(Slot(0), virq, &w.m), Err(Errno::EINVAL));
        assert_eq!(w.e.send(Slot(0), ipi, &w.m).unwrap().upcalls, 2);
        for bad in [0, 60, 64, 4096, u32::MAX] {
            assert_eq!(w.e.send(Slot(0), Port(bad), &w.m), Err(Errno::EINVAL));
        }
        let _ = w.e.close(Slot(0), a, &w.m).unwrap();
        assert_eq!(w.e.send(Slot(0), a, &w.m), Err(Errno::EINVAL));
        assert!(w.e.send(Slot(9), a, &w.m).is_err());
    });
}

#[test]
fn binding_is_for_the_named_domain() {
    both(|mut w, _| {
        let p = w.e.alloc_unbound(Slot(0), domid(1), &w.m).unwrap();
        assert_eq!(p, Port(1));
        let st = |w: &World, s, p| w.e.status(Slot(s), p).map(|s| s.binding);
        assert_eq!(st(&w, 0, p), Ok(Binding::Unbound(domid(1))));
        assert_eq!(
            w.e.bind_interdomain(Slot(2), Slot(0), p, &w.m),
            Err(Errno::EINVAL)
        );
        assert_eq!(w.e.ports_in_use(Slot(2)), 0);
        let bad = w.e.bind_interdomain(Slot(1), Slot(0), Port(7), &w.m);
        assert_eq!(bad, Err(Errno::EINVAL));
        let bad = w.e.bind_interdomain(Slot(1), Slot(0), Port(u32::MAX), &w.m);
        assert_eq!(bad, Err(Errno::EINVAL));
        let bad = w.e.bind_interdomain(Slot(1), Slot(77), p, &w.m);
        assert_eq!(bad, Err(Errno::ESRCH));
        let (q, n) = w.e.bind_interdomain(Slot(1), Slot(0), p, &w.m).unwrap();
        assert_eq!((n.slot, n.upcalls), (Slot(1), 1));
        assert_eq!(st(&w, 0, p), Ok(Binding::Interdomain(domid(1), q)));
        assert_eq!(st(&w, 1, q), Ok(Binding::Interdomain(domid(0), p)));
        let again = w.e.bind_interdomain(Slot(1), Slot(0), p, &w.m);
        assert_eq!(again, Err(Errno::EINVAL));
        // Closing gives the other end back to the one that closed.
        let _ = w.e.close(Slot(1), q, &w.m).unwrap();
        assert_eq!(st(&w, 0, p), Ok(Binding::Unbound(domid(1))));
        assert_eq!(st(&w, 1, q), Ok(Binding::Closed));
        assert_eq!(w.e.close(Slot(1), q, &w.m), Err(Errno::EINVAL));
        assert_eq!(w.e.close(Slot(1), Port(0), &w.m), Err(Errno::EINVAL));
        assert!(w.e.bind_interdomain(Slot(1), Slot(0), p, &w.m).is_ok());
    });
}

#[test]
fn a_domain_may_be_its_own_peer() {
    both(|mut w, _| {
        let (a, b) = w.pair(0, 0);
        w.drain(0);
        assert_eq!(w.e.send(Slot(0), a, &w.m).unwrap().upcalls, 1);
        assert_eq!(w.drain(0), [b.0]);
        let _ = w.e.close(Slot(0), b, &w.m).unwrap();
        assert_eq!(
            w.e.status(Slot(0), a).unwrap().binding,
            Binding::Unbound(domid(0))
        );
        assert_eq!(w.e.ports_in_use(Slot(0)), 1);
    });
}

#[test]
fn virqs_are_bound_as_by_xen() {
    both(|mut w, _| {
        let s = Slot(0);
        assert_eq!(w.e.bind_virq(s, 24, 0, &w.m), Err(Errno::EINVAL));
        assert_eq!(w.e.bind_virq(s, u32::MAX, 0, &w.m), Err(Errno::EINVAL));
        assert_eq!(w.e.bind_virq(s, 2, 1, &w.m), Err(Errno::EINVAL));
        assert_eq!(w.e.bind_virq(s, 0, 3, &w.m), Err(Errno::ENOENT));
        assert_eq!(w.e.bind_virq(s, 0, u32::MAX, &w.m), Err(Errno::ENOENT));
        let timer: Vec<_> = (0..3)
            .map(|v| w.e.bind_virq(s, 0, v, &w.m).unwrap())
            .collect();
        let console = w.e.bind_virq(s, 2, 0, &w.m).unwrap();
        assert_eq!(w.e.bind_virq(s, 2, 0, &w.m), Err(Errno::EEXIST));
        assert_eq!(w.e.bind_virq(s, 0, 1, &w.m), Err(Errno::EEXIST));
        assert_eq!(w.e.send_virq(at(0, 1), 0, &w.m).upcalls, 2);
        assert_eq!(w.drain(0), [timer[1].0]);
        w.e.bind_vcpu(s, console, 2).unwrap();
        assert_eq!(w.e.bind_vcpu(s, timer[0], 1), Err(Errno::EINVAL));
        assert_eq!(w.e.send_global_virq(s, 2, &w.m).upcalls, 4);
        assert_eq!(w.drain(0), [console.0]);
        let status = w.e.status(s, console).unwrap();
        assert_eq!((status.binding, status.vcpu), (Binding::Virq(2), VcpuId(2)));
        // Not bound, not there.
        assert!(w.e.send_global_virq(s, 3, &w.m).is_none());
        assert!(w.e.send_virq(at(0, 9), 0, &w.m).is_none());
        assert!(w.e.send_virq(at(9, 0), 0, &w.m).is_none());
        assert!(w.e.send_virq(at(0, 0), 99, &w.m).is_none());
        // Moved or not, closing unbinds.
        let _ = w.e.close(s, console, &w.m).unwrap();
        let _ = w.e.close(s, timer[1], &w.m).unwrap();
        assert!(w.e.send_global_virq(s, 2, &w.m).is_none());
        assert!(w.e.send_virq(at(0, 1), 0, &w.m).is_none());
        w.e.bind_virq(s, 2, 0, &w.m).unwrap();
        w.e.bind_virq(s, 0, 1, &w.m).unwrap();
    });
}

#[test]
fn ipi_and_bind_vcpu_are_answered_as_by_xen() {
    both(|mut w, _| {
        let s = Slot(0);
        assert_eq!(w.e.bind_ipi(s, 3, &w.m), Err(Errno::ENOENT));
        let ipi = w.e.bind_ipi(s, 2, &w.m).unwrap();
        let status = w.e.status(s, ipi).unwrap();
        assert_eq!((status.binding, status.vcpu), (Binding::Ipi, VcpuId(2)));
        assert_eq!(w.e.bind_vcpu(s, ipi, 0), Err(Errno::EINVAL));
        assert_eq!(w.e.bind_vcpu(s, ipi, 3), Err(Errno::ENOENT));
        assert_eq!(w.e.bind_vcpu(s, Port(64), 0), Err(Errno::EINVAL));
        assert_eq!(w.e.bind_vcpu(s, Port(0), 0), Err(Errno::EINVAL));
        let unbound = w.e.alloc_unbound(s, domid(1), &w.m).unwrap();
        assert_eq!(w.e.bind_vcpu(s, unbound, 1), Ok(()));
        let (a, _) = w.pair(0, 1);
        assert_eq!(w.e.bind_vcpu(s, a, 1), Ok(()));
        assert_eq!(w.e.status(s, Port(64)), Err(Errno::EINVAL));
        assert_eq!(w.e.status(Slot(50), a), Err(Errno::ESRCH));
    });
}

#[test]
fn the_hypervisors_ports_are_not_the_guests() {
    both(|mut w, _| {
        let p =
            w.e.alloc_unbound_xen(Slot(1), domid(0), Consumer::Vpl011, &w.m)
                .unwrap();
        assert_eq!(w.e.close(Slot(1), p, &w.m), Err(Errno::EINVAL));
        assert_eq!(w.e.send(Slot(1), p, &w.m), Err(Errno::EINVAL));
        assert_eq!(w.e.bind_vcpu(Slot(1), p, 1), Err(Errno::EINVAL));
        assert_eq!(w.e.status(Slot(1), p), Err(Errno::EACCES));
        assert!(w.e.unmask(Slot(1), p, &w.m).unwrap().is_none());
        assert!(w.e.notify_xen(Slot(1), p, &w.m).is_none());
        let (q, _) = w.e.bind_interdomain(Slot(0), Slot(1), p, &w.m).unwrap();
        w.drain(0);
        let before = w.bytes(1);
        let n = w.e.send(Slot(0), q, &w.m).unwrap();
        assert_eq!(
            (n.slot, n.upcalls, n.also),
            (Slot(1), 0, Some(Also::Consumer(Consumer::Vpl011)))
        );
        assert_eq!(before, w.bytes(1));
        assert_eq!(w.e.notify_xen(Slot(1), p, &w.m).upcalls, 1);
        assert_eq!(w.drain(0), [q.0]);
        // A guest's port is no one's by that name.
        assert!(w.e.notify_xen(Slot(0), q, &w.m).is_none());
        assert_eq!(w.e.close_xen(Slot(0), q, &w.m), Err(Errno::EINVAL));
        // The guest's reset keeps it, its end does not.
        w.reset(1);
        assert_eq!(w.e.ports_in_use(Slot(1)), 1);
        assert_eq!(w.e.notify_xen(Slot(1), p, &w.m).upcalls, 1);
        let _ = w.e.close_xen(Slot(1), p, &w.m).unwrap();
        assert_eq!(w.e.ports_in_use(Slot(1)), 0);
        assert_eq!(
            w.e.status(Slot(0), q).unwrap().binding,
            Binding::Unbound(domid(1))
        );
    });
}

#[test]
fn ports_run_out_at_the_limit_and_are_lowest_first() {
    let mut w = World::new();
    let s = Slot(5);
    w.e.create_domain(s, DomId(9), 100, 1).unwrap();
    for n in 1..=100 {
        assert_eq!(w.e.alloc_unbound(s, domid(0), &w.m), Ok(Port(n)));
    }
    assert_eq!(w.e.alloc_unbound(s, domid(0), &w.m), Err(Errno::ENOSPC));
    assert_eq!(w.e.ports_in_use(s), 100);
    let _ = w.e.close(s, Port(70), &w.m).unwrap();
    let _ = w.e.close(s, Port(7), &w.m).unwrap();
    assert_eq!(w.e.bind_ipi(s, 0, &w.m), Ok(Port(7)));
    assert_eq!(w.e.bind_ipi(s, 0, &w.m), Ok(Port(70)));
    assert_eq!(w.e.bind_ipi(s, 0, &w.m), Err(Errno::ENOSPC));
    // 2-level has 4,096 whatever the limit; FIFO has more.
    let s = Slot(6);
    w.e.create_domain(s, DomId(10), 131_071, 1).unwrap();
    for _ in 1..PORTS_2L {
        w.e.alloc_unbound(s, domid(0), &w.m).unwrap();
    }
    assert_eq!(w.e.alloc_unbound(s, domid(0), &w.m), Err(Errno::ENOSPC));
    w.e.init_control(s, 0, page(0, 2), 0).unwrap();
    assert_eq!(w.e.alloc_unbound(s, domid(0), &w.m), Ok(Port(PORTS_2L)));
}

#[test]
fn slots_are_created_and_destroyed() {
    let mut w = World::new();
    assert_eq!(
        w.e.create_domain(Slot(0), DomId(1), 10, 1),
        Err(Errno::EEXIST)
    );
    assert_eq!(
        w.e.create_domain(Slot(5), DomId(1), 10, 65),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        w.e.create_domain(Slot(128), DomId(1), 10, 1),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        w.e.alloc_unbound(Slot(5), DomId(1), &w.m),
        Err(Errno::ESRCH)
    );
    assert_eq!(w.destroy(5), []);
}

#[test]
fn destroy_leaves_nothing() {
    both(|mut w, fifo| {
        for _ in 0..50 {
            w.pair(0, 1);
            w.pair(1, 0);
            w.pair(1, 1);
        }
        let (a, b) = w.pair(0, 1);
        w.e.bind_virq(Slot(1), 0, 1, &w.m).unwrap();
        w.e.alloc_unbound_xen(Slot(1), domid(0), Consumer::Vpl011, &w.m)
            .unwrap();
        assert_eq!(w.e.ports_in_use(Slot(1)), 203);
        let held = w.e.pages_held(Slot(1));
        assert_eq!(held, if fifo { 3 + 3 + 4 } else { 3 });
        // Dying, it can bind nothing, while what it still has works.
        let part = w.e.destroy(Slot(1), 3, &w.m, |_| panic!("released in use"));
        assert_eq!(part, Progress::More);
        assert_eq!(
            w.e.alloc_unbound(Slot(1), domid(0), &w.m),
            Err(Errno::EINVAL)
        );
        assert_eq!(w.e.bind_ipi(Slot(1), 0, &w.m), Err(Errno::EINVAL));
        assert_eq!(
            w.e.reset(Slot(1), false, 9, &w.m, |_| ()),
            Err(Errno::EINVAL)
        );
        assert_eq!(w.e.send(Slot(0), a, &w.m).unwrap().upcalls, 1);
        assert_eq!(w.destroy(1).len(), held);
        assert_eq!(w.e.ports_in_use(Slot(1)), 0);
        assert_eq!(w.e.pages_held(Slot(1)), 0);
        assert_eq!(
            w.e.status(Slot(0), a).unwrap().binding,
            Binding::Unbound(domid(1))
        );
        assert!(w.e.send(Slot(0), a, &w.m).unwrap().is_none());
        assert!(w.e.send(Slot(1), b, &w.m).is_err());
        assert_eq!(w.e.ports_in_use(Slot(0)), 101);
        // The slot is as new.
        w.e.create_domain(Slot(1), domid(1), 100, 1).unwrap();
        assert!(w.e.bind_interdomain(Slot(1), Slot(0), a, &w.m).is_ok());
    });
}

#[test]
fn vcpu_info_moves_and_loses_nothing() {
    let mut w = World::new();
    let (a, b) = w.pair(0, 1);
    // vcpu 0 has a place from the start, the others have none.
    assert_eq!(w.e.vcpu_info(at(1, 0)), Some(pa(1, 0)));
    assert_eq!(w.e.vcpu_info(at(1, 1)), None);
    w.e.bind_vcpu(Slot(1), b, 1).unwrap();
    assert!(w.e.send(Slot(0), a, &w.m).unwrap().is_none());
    assert!(!w.e.upcall_pending(at(1, 1), &w.m));
    let n =
        w.e.set_vcpu_info(Slot(1), 1, pa(1, 1).add(64), &w.m)
            .unwrap();
    assert_eq!((n.slot, n.upcalls), (Slot(1), 2));
    assert_eq!(w.drain(1), [b.0]);
    // What vcpu 0's first place held moves along.
    w.m.store64(pa(1, 0).add(16), 0x1234);
    let _ = w.e.set_vcpu_info(Slot(1), 0, pa(1, 1), &w.m).unwrap();
    assert_eq!(w.m.load64(pa(1, 1).add(16)), 0x1234);
    let again = w.e.set_vcpu_info(Slot(1), 0, pa(1, 1), &w.m);
    assert_eq!(again, Err(Errno::EINVAL));
    assert_eq!(
        w.e.set_vcpu_info(Slot(1), 3, pa(1, 1), &w.m),
        Err(Errno::ENOENT)
    );
    // The shared page may go; the registered one stays.
    w.e.set_shared_info(Slot(1), None).unwrap();
    assert_eq!(w.e.vcpu_info(at(1, 0)), Some(pa(1, 1)));
    assert!(w.e.send(Slot(0), a, &w.m).unwrap().is_none());
    assert_eq!(w.destroy(1).len(), 2);
}

#[test]
fn xsa_327_vcpu_info_offset() {
    let w = World::new();
    for offset in 0..=4096u64 {
        let ok = offset % 8 == 0 && offset <= 4096 - 48;
        let answer = if ok { Ok(()) } else { Err(Errno::ENXIO) };
        assert_eq!(w.e.check_vcpu_info(Slot(0), 1, offset), answer);
    }
    assert_eq!(w.e.check_vcpu_info(Slot(0), 1, u64::MAX), Err(Errno::ENXIO));
}

#[test]
fn init_control_is_answered_as_by_xen() {
    let mut w = World::with_infos();
    let s = Slot(0);
    assert_eq!(w.e.check_expand_array(s), Err(Errno::EOPNOTSUPP));
    assert_eq!(w.e.set_priority(s, Port(0), 0), Err(Errno::ENOSYS));
    assert_eq!(w.e.init_control(s, 3, page(0, 2), 0), Err(Errno::ENOENT));
    for bad in [4, 4096 - 71, 4096, u32::MAX - 7] {
        assert_eq!(w.e.check_init_control(s, 0, bad), Err(Errno::EINVAL));
        assert_eq!(w.e.init_control(s, 0, page(0, 2), bad), Err(Errno::EINVAL));
    }
    assert_eq!(w.e.pages_held(s), 3);
    w.e.init_control(s, 0, page(0, 2), 4096 - 72).unwrap();
    assert_eq!(w.e.check_init_control(s, 0, 0), Err(Errno::EINVAL));
    let p = w.e.alloc_unbound(s, domid(1), &w.m).unwrap();
    assert_eq!(w.e.set_priority(s, p, 16), Err(Errno::EINVAL));
    assert_eq!(w.e.set_priority(s, p, 15), Ok(()));
    assert_eq!(w.e.set_priority(s, Port(64), 15), Err(Errno::EINVAL));
    assert_eq!(w.e.set_priority(s, Port(60), 15), Err(Errno::EACCES));
    for n in 0..128 {
        let _ = w.e.expand_array(s, page(0, 3), &w.m).unwrap();
        assert_eq!(w.e.pages_held(s), 3 + 1 + n + 1);
    }
    assert_eq!(w.e.expand_array(s, page(0, 3), &w.m), Err(Errno::ENOSPC));
}

#[test]
fn fifo_takes_over_what_was_pending() {
    let mut w = World::with_infos();
    let pairs: Vec<_> = (0..1500).map(|_| w.pair(0, 1)).collect();
    for &(a, b) in pairs.iter().step_by(7) {
        w.e.bind_vcpu(Slot(1), b, b.0 % 3).unwrap();
        let _ = w.e.send(Slot(0), a, &w.m).unwrap();
    }
    w.fifo(1, 0);
    // Also while the words are missing.
    let _ = w.e.send(Slot(0), pairs[1].0, &w.m).unwrap();
    let _ = w.e.send(Slot(0), pairs[2].0, &w.m).unwrap();
    let _ = w.e.close(Slot(1), pairs[2].1, &w.m).unwrap();
    assert!(w.drain(1).is_empty());
    let mut got = vec![];
    for k in [3, 4] {
        let mut n = w.e.expand_array(Slot(1), page(1, k), &w.m).unwrap();
        while w.e.late(Slot(1)) {
            w.m.restart();
            let more = w.e.raise_saved(Slot(1), &w.m).unwrap();
            assert!(w.m.spent() < 20_000);
            n.upcalls |= more.upcalls;
        }
        // The bytes were left set: each vcpu learnt of it before.
        assert_eq!(n.upcalls, 7);
        got.extend(w.drain(1));
    }
    assert_eq!(w.e.raise_saved(Slot(1), &w.m), Err(Errno::ENOSYS));
    got.sort_unstable();
    let due = pairs.iter().step_by(7).map(|p| p.1.0).chain([pairs[1].1.0]);
    let mut due: Vec<_> = due.collect();
    due.sort_unstable();
    assert_eq!(got, due);
}

#[test]
fn the_search_for_a_closed_port_is_bounded() {
    let mut w = World::with_infos();
    // As if it had been made with that limit.
    w.e.domains[1].max_port = 8191;
    w.e.domains[1].ports.reserve(8192);
    w.e.domains[1].closed.reserve(128);
    w.fifo(1, 8);
    let all: Vec<_> = (0..8191)
        .map(|_| w.e.bind_ipi(Slot(1), 0, &w.m).unwrap())
        .collect();
    // The guest keeps all of them on lists, and closes all but the first half.
    for p in &all {
        let word = w.word(1, p.0).unwrap();
        w.m.or32(word, LINKED).unwrap();
    }
    for p in &all[4096..] {
        let _ = w.e.close(Slot(1), *p, &w.m).unwrap();
    }
    let mut calls = 0;
    let end = loop {
        w.m.restart();
        let r = w.e.alloc_unbound(Slot(1), DomId(0), &w.m);
        assert!(w.m.spent() < 10_000, "{} in one call", w.m.spent());
        calls += 1;
        if r != Err(Errno::ERESTART) {
            break r;
        }
    };
    assert_eq!(end, Err(Errno::ENOSPC));
    assert!(calls > 10 && calls < 40, "{calls} calls");
    // One is taken off its list: the search, which begins anew, comes to it.
    let freed = all[8000];
    w.m.and32(w.word(1, freed.0).unwrap(), !LINKED).unwrap();
    let found = loop {
        match w.e.alloc_unbound(Slot(1), DomId(0), &w.m) {
            Err(Errno::ERESTART) => {}
            r => break r,
        }
    };
    assert_eq!(found, Ok(freed));
}

#[test]
fn fifo_keeps_order_and_priority() {
    let mut w = World::with_infos();
    w.fifo(1, 1);
    let pairs: Vec<_> = (0..6).map(|_| w.pair(0, 1)).collect();
    w.drain(1);
    w.e.set_priority(Slot(1), pairs[4].1, 0).unwrap();
    w.e.set_priority(Slot(1), pairs[2].1, 15).unwrap();
    for n in [5, 2, 0, 3, 4, 1] {
        let _ = w.e.send(Slot(0), pairs[n].0, &w.m).unwrap();
    }
    let due: Vec<_> = [4, 5, 0, 3, 1, 2]
        .iter()
        .map(|&n: &usize| pairs[n].1.0)
        .collect();
    assert_eq!(w.drain(1), due);
}

#[test]
fn fifo_event_moves_between_lists_while_linked() {
    // The tail of one list is closed off, moved and raised elsewhere: both lists stay whole.
    let mut w = World::with_infos();
    w.fifo(1, 1);
    let (a, b) = w.pair(0, 1);
    let (c, d) = w.pair(0, 1);
    let _ = w.e.send(Slot(0), a, &w.m).unwrap();
    w.e.bind_vcpu(Slot(1), b, 1).unwrap();
    w.e.set_priority(Slot(1), b, 3).unwrap();
    // Still linked: stays where it is.
    assert!(w.e.send(Slot(0), a, &w.m).unwrap().is_none());
    assert_eq!(w.drain(1), [b.0]);
    assert_eq!(w.e.send(Slot(0), a, &w.m).unwrap().upcalls, 2);
    // The old list's tail was b: d must not be appended to b now.
    assert_eq!(w.e.send(Slot(0), c, &w.m).unwrap().upcalls, 1);
    assert_eq!(w.drain(1), [d.0, b.0]);
}

#[test]
fn fifo_port_is_not_reused_while_on_a_list() {
    let mut w = World::with_infos();
    w.fifo(1, 1);
    let (a, b) = w.pair(0, 1);
    let _ = w.e.send(Slot(0), a, &w.m).unwrap();
    let _ = w.e.close(Slot(1), b, &w.m).unwrap();
    let next = w.e.bind_ipi(Slot(1), 0, &w.m).unwrap();
    assert_ne!(next, b);
    assert!(w.drain(1).is_empty(), "a closed port's event");
    assert_eq!(w.e.bind_ipi(Slot(1), 0, &w.m).unwrap(), b);
}

#[test]
fn poll_is_woken_by_the_port() {
    both(|mut w, _| {
        let (a, b) = w.pair(0, 1);
        let (c, d) = w.pair(0, 1);
        for &p in &[b, d] {
            w.mask(1, p.0, true);
        }
        let wait = |w: &mut World, v, ports: &[Port]| w.e.poll_prepare(at(1, v), ports, &w.m);
        assert_eq!(wait(&mut w, 0, &[b]), Ok(Poll::Wait));
        assert_eq!(wait(&mut w, 1, &[b, d]), Ok(Poll::Wait));
        assert_eq!(wait(&mut w, 2, &[]), Ok(Poll::Wait));
        // One port named: that one only. Else: any.
        let n = w.e.send(Slot(0), c, &w.m).unwrap();
        assert_eq!((n.upcalls, n.pollers), (0, 6));
        assert_eq!(n.poller_vcpus().count(), 2);
        let n = w.e.send(Slot(0), a, &w.m).unwrap();
        assert_eq!((n.upcalls, n.pollers), (0, 1));
        assert_eq!(wait(&mut w, 0, &[d, b]), Ok(Poll::Pending));
        // Pending before, no one is told again.
        let (e, f) = w.pair(0, 1);
        w.mask(1, f.0, true);
        assert_eq!(wait(&mut w, 0, &[f]), Ok(Poll::Wait));
        assert!(w.e.send(Slot(0), a, &w.m).unwrap().is_none());
        w.e.poll_done(at(1, 0));
        assert_eq!(w.e.send(Slot(0), e, &w.m).unwrap().pollers, 0);
    });
}

#[test]
fn xsa_338_poll_checks_its_ports() {
    both(|mut w, _| {
        let p = w.e.alloc_unbound(Slot(0), domid(1), &w.m).unwrap();
        for bad in [64, 4095, 4096, 131_071, 131_072, u32::MAX] {
            let ports = [p, Port(bad)];
            assert_eq!(w.e.poll_prepare(at(0, 0), &ports, &w.m), Err(Errno::EINVAL));
        }
        assert_eq!(
            w.e.poll_prepare(at(0, 0), &[p; 129], &w.m),
            Err(Errno::EINVAL)
        );
        assert_eq!(w.e.poll_prepare(at(0, 9), &[p], &w.m), Err(Errno::ENOENT));
        assert_eq!(w.e.domains[0].poll_mask, 0);
        // Port 0 exists and is never pending.
        w.m.store64(pa(0, 0).add(SHARED_PENDING), 1);
        assert_eq!(w.e.poll_prepare(at(0, 0), &[Port(0)], &w.m), Ok(Poll::Wait));
    });
}

#[test]
fn xsa_343_reset_against_other_operations() {
    both(|mut w, fifo| {
        let pairs: Vec<_> = (0..100).map(|_| w.pair(0, 1)).collect();
        let mut pages = vec![];
        let mut slice =
            |w: &mut World, again| w.e.reset(Slot(1), again, 30, &w.m, |p| pages.push(p));
        assert_eq!(slice(&mut w, true), Err(Errno::EBUSY));
        assert_eq!(slice(&mut w, false), Ok(Progress::More));
        assert_eq!(slice(&mut w, false), Err(Errno::EBUSY));
        // Its peers and the domain itself go on in between.
        for &(a, b) in &pairs {
            assert!(w.e.send(Slot(0), a, &w.m).is_ok());
            let _ = w.e.send(Slot(1), b, &w.m);
        }
        let late = w.e.bind_ipi(Slot(1), 0, &w.m).unwrap();
        assert_eq!(late, Port(1));
        while slice(&mut w, true) == Ok(Progress::More) {}
        assert_eq!(w.e.ports_in_use(Slot(1)), 1);
        assert_eq!(
            w.e.domains[1].fifo, fifo,
            "a port is in use: the ABI must stay"
        );
        while slice(&mut w, false) == Ok(Progress::More)
            || slice(&mut w, true) == Ok(Progress::More)
        {}
        assert_eq!(w.e.ports_in_use(Slot(1)), 0);
        assert!(!w.e.domains[1].fifo);
        assert_eq!(pages.len(), if fifo { 3 + 4 } else { 0 });
        for &(a, _) in &pairs {
            assert_eq!(
                w.e.status(Slot(0), a).unwrap().binding,
                Binding::Unbound(domid(1))
            );
        }
    });
}

#[test]
fn xsa_344_reset_and_destroy_are_sliced() {
    let mut w = World::with_infos();
    w.fifo(0, 4);
    for _ in 0..3900 {
        w.e.bind_ipi(Slot(0), 0, &w.m).unwrap();
    }
    let before = w.e.ports_in_use(Slot(0));
    assert_eq!(
        w.e.reset(Slot(0), false, 64, &w.m, |_| ()),
        Ok(Progress::More)
    );
    assert!(before - w.e.ports_in_use(Slot(0)) <= 64);
    let part = w.e.destroy(Slot(0), 64, &w.m, |_| ());
    assert_eq!(part, Progress::More);
    assert!(before - w.e.ports_in_use(Slot(0)) <= 128);
}

#[test]
fn reset_goes_back_to_two_level_and_fifo_can_start_again() {
    let mut w = World::with_infos();
    for round in 0..3 {
        w.fifo(1, 4);
        let (a, b) = w.pair(0, 1);
        let _ = w.e.send(Slot(0), a, &w.m).unwrap();
        assert_eq!(w.drain(1), [b.0], "round {round}");
        let _ = w.e.send(Slot(0), a, &w.m).unwrap();
        assert_eq!(w.reset(1).len(), 7);
        w.heads.clear();
        for n in 2..PAGES {
            w.m.zero_page(page(1, n));
        }
        w.drain(1);
        let (a, b) = w.pair(0, 1);
        let _ = w.e.send(Slot(0), a, &w.m).unwrap();
        assert_eq!(w.drain(1), [b.0], "2-level again");
        w.reset(1);
    }
}

#[test]
fn xsa_342_a_2l_port_beyond_4096_touches_nothing() {
    // A FIFO domain's high port of the hypervisor outlives the reset to 2-level.
    let mut w = World::with_infos();
    let s = Slot(5);
    w.e.create_domain(s, DomId(10), 131_071, 1).unwrap();
    w.e.init_control(s, 0, page(0, 2), 0).unwrap();
    for _ in 1..PORTS_2L {
        w.e.alloc_unbound(s, domid(0), &w.m).unwrap();
    }
    let p =
        w.e.alloc_unbound_xen(s, domid(1), Consumer::Vpl011, &w.m)
            .unwrap();
    assert_eq!(p.0, PORTS_2L);
    let (q, _) = w.e.bind_interdomain(Slot(1), s, p, &w.m).unwrap();
    let mut again = false;
    while w.e.reset(s, again, 100, &w.m, |_| ()) == Ok(Progress::More) {
        again = true;
    }
    w.e.set_shared_info(s, Some(pa(2, 0))).unwrap();
    let before = w.bytes(2);
    assert_eq!(
        w.e.send(Slot(1), q, &w.m).unwrap().also,
        Some(Also::Consumer(Consumer::Vpl011))
    );
    assert!(w.e.unmask(s, p, &w.m).unwrap().is_none());
    let _ = w.e.close_xen(s, p, &w.m).unwrap();
    assert_eq!(before, w.bytes(2));
}

#[test]
fn xsa_496_a_failed_bind_changes_nothing() {
    let mut w = World::with_infos();
    let console = w.e.bind_virq(Slot(0), 2, 0, &w.m).unwrap();
    while w.e.bind_ipi(Slot(1), 0, &w.m).is_ok() {}
    let in_use = w.e.ports_in_use(Slot(1));
    for virq in 0..40 {
        for vcpu in 0..4 {
            assert!(w.e.bind_virq(Slot(1), virq, vcpu, &w.m).is_err());
        }
    }
    assert_eq!(w.e.bind_virq(Slot(1), 2, 0, &w.m), Err(Errno::ENOSPC));
    assert_eq!(w.e.ports_in_use(Slot(1)), in_use);
    assert!(w.e.domains[1].vcpus.iter().all(|v| v.virqs == [0; 24]));
    assert_eq!(w.e.send_global_virq(Slot(0), 2, &w.m).upcalls, 1);
    assert_eq!(w.drain(0), [console.0]);
    // With a port free again, it can be bound.
    let _ = w.e.close(Slot(1), Port(3), &w.m).unwrap();
    assert_eq!(w.e.bind_virq(Slot(1), 2, 0, &w.m), Ok(Port(3)));
}

/// Memory of a guest that changes a word whenever the hypervisor is about to.
struct Hostile<'a> {
    m: &'a FakeMem,
    word: Pa,
    tries: Cell<u32>,
}

impl Meter for Hostile<'_> {
    fn spend(&self, cost: u32) {
        self.m.spend(cost);
    }
    fn spent(&self) -> u32 {
        self.m.spent()
    }
    fn restart(&self) {
        self.m.restart();
    }
}

impl PhysMem for Hostile<'_> {
    fn cmpxchg32(&self, pa: Pa, old: u32, new: u32) -> Result<u32, Contended> {
        if pa == self.word {
            self.tries.set(self.tries.get() + 1);
            self.m.store32(pa, old ^ MASKED | LINKED);
        }
        self.m.cmpxchg32(pa, old, new)
    }
    fn load8(&self, pa: Pa) -> u8 {
        self.m.load8(pa)
    }
    fn store8(&self, pa: Pa, v: u8) {
        self.m.store8(pa, v);
    }
    fn swap8(&self, pa: Pa, v: u8) -> Result<u8, Contended> {
        self.m.swap8(pa, v)
    }
    fn load16(&self, pa: Pa) -> u16 {
        self.m.load16(pa)
    }
    fn store16(&self, pa: Pa, v: u16) {
        self.m.store16(pa, v);
    }
    fn load32(&self, pa: Pa) -> u32 {
        self.m.load32(pa)
    }
    fn store32(&self, pa: Pa, v: u32) {
        self.m.store32(pa, v);
    }
    fn or32(&self, pa: Pa, bits: u32) -> Result<u32, Contended> {
        self.m.or32(pa, bits)
    }
    fn and32(&self, pa: Pa, bits: u32) -> Result<u32, Contended> {
        self.m.and32(pa, bits)
    }
    fn load64(&self, pa: Pa) -> u64 {
        self.m.load64(pa)
    }
    fn store64(&self, pa: Pa, v: u64) {
        self.m.store64(pa, v);
    }
    fn or64(&self, pa: Pa, bits: u64) -> Result<u64, Contended> {
        self.m.or64(pa, bits)
    }
    fn and64(&self, pa: Pa, bits: u64) -> Result<u64, Contended> {
        self.m.and64(pa, bits)
    }
    fn read(&self, pa: Pa, buf: &mut [u8]) {
        self.m.read(pa, buf);
    }
    fn write(&self, pa: Pa, buf: &[u8]) {
        self.m.write(pa, buf);
    }
    fn copy(&self, dst: Pa, src: Pa, len: usize) {
        self.m.copy(dst, src, len);
    }
    fn zero_page(&self, mfn: Mfn) {
        self.m.zero_page(mfn);
    }
}

#[test]
fn xsa_295_a_changing_word_is_given_up() {
    let mut w = World::with_infos();
    w.fifo(1, 1);
    let (a, b) = w.pair(0, 1);
    let (c, _) = w.pair(0, 1);
    w.drain(1);
    let _ = w.e.send(Slot(0), a, &w.m).unwrap();
    let word = w.word(1, b.0).unwrap();
    let hostile = Hostile {
        m: &w.m,
        word,
        tries: Cell::new(0),
    };
    let _ = w.e.send(Slot(0), c, &hostile).unwrap();
    assert_eq!(hostile.tries.get(), 5);
    assert_eq!(w.m.load32(word) & BUSY, 0, "the word stays busy");
}

/// What the model knows of a port.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    Unbound(u8),
    Peer(u8, u32),
    Virq(u32, u8),
    Ipi,
}

#[derive(Clone, Debug)]
enum Op {
    Alloc(u8, u8),
    Bind(u8, usize),
    Virq(u8, u32, u8),
    Ipi(u8, u8),
    Close(usize),
    Send(usize),
    RaiseVirq(u8, u32, u8),
    Move(usize, u8),
    Priority(usize, u32),
    Mask(usize),
    Unmask(usize),
    Drain(u8),
    Fifo(u8),
    Reset(u8),
    Recreate(u8),
}

fn ops() -> impl Strategy<Value = Op> {
    let (d, v) = (0u8..3, 0u8..3);
    let p = any::<usize>();
    let virq = prop_oneof![Just(0u32), Just(1), Just(2), Just(3)];
    prop_oneof![
        6 => (d.clone(), d.clone()).prop_map(|(a, b)| Op::Alloc(a, b)),
        8 => (d.clone(), p).prop_map(|(a, n)| Op::Bind(a, n)),
        2 => (d.clone(), virq.clone(), v.clone()).prop_map(|(d, q, v)| Op::Virq(d, q, v)),
        2 => (d.clone(), v.clone()).prop_map(|(d, v)| Op::Ipi(d, v)),
        3 => p.prop_map(Op::Close),
        20 => p.prop_map(Op::Send),
        4 => (d.clone(), virq, v.clone()).prop_map(|(d, q, v)| Op::RaiseVirq(d, q, v)),
        4 => (p, v).prop_map(|(n, v)| Op::Move(n, v)),
        3 => (p, 0u32..16).prop_map(|(n, q)| Op::Priority(n, q)),
        4 => p.prop_map(Op::Mask),
        5 => p.prop_map(Op::Unmask),
        5 => d.clone().prop_map(Op::Drain),
        1 => d.clone().prop_map(Op::Fifo),
        1 => d.clone().prop_map(Op::Reset),
        1 => d.prop_map(Op::Recreate),
    ]
}

/// The world beside a model of it.
struct Checked {
    w: World,
    bound: BTreeMap<(u8, u32), Bound>,
    /// Raised and not yet delivered.
    due: BTreeSet<(u8, u32)>,
    masked: BTreeSet<(u8, u32)>,
}

impl Checked {
    fn new() -> Self {
        Self {
            w: World::with_infos(),
            bound: BTreeMap::new(),
            due: BTreeSet::new(),
            masked: BTreeSet::new(),
        }
    }

    fn pick(&self, n: usize) -> Option<(u8, u32)> {
        let len = self.bound.len();
        (len != 0).then(|| *self.bound.keys().nth(n % len).unwrap())
    }

    fn opened(&mut self, slot: u8, port: Port, bound: Bound) {
        assert!(
            self.bound.insert((slot, port.0), bound).is_none(),
            "a port given twice"
        );
        assert!(!self.due.contains(&(slot, port.0)));
        // The mask is the guest's and stays over a close.
        self.w.mask(slot, port.0, false);
        self.masked.remove(&(slot, port.0));
    }

    fn closed(&mut self, slot: u8, port: u32) {
        if let Some(Bound::Peer(peer, peer_port)) = self.bound.remove(&(slot, port)) {
            self.bound.insert((peer, peer_port), Bound::Unbound(slot));
        }
        self.due.remove(&(slot, port));
    }

    fn close_all(&mut self, slot: u8) {
        while let Some(&(_, port)) = self.bound.keys().find(|k| k.0 == slot) {
            self.closed(slot, port);
        }
        self.masked.retain(|k| k.0 != slot);
        self.w.heads.retain(|k, _| k.0 != slot);
    }

    fn drain(&mut self, slot: u8) {
        for port in self.w.drain(slot) {
            assert!(
                self.due.remove(&(slot, port)),
                "{slot}.{port} was not raised"
            );
            assert!(
                !self.masked.contains(&(slot, port)),
                "{slot}.{port} is masked"
            );
        }
        // Nothing that can be delivered is left.
        for &(s, port) in &self.due {
            let word = !self.w.e.domains[usize::from(s)].fifo || self.w.word(s, port).is_some();
            assert!(
                s != slot || self.masked.contains(&(s, port)) || !word,
                "{s}.{port} is lost"
            );
        }
    }

    fn wipe(&self, slot: u8) {
        for n in 2..PAGES {
            self.w.m.zero_page(page(slot, n));
        }
    }

    /// Does it and gives the domains whose memory may change.
    fn apply(&mut self, op: &Op) -> [bool; 3] {
        let mut touched = [false; 3];
        match *op {
            Op::Alloc(a, b) => {
                let p = self
                    .w
                    .e
                    .alloc_unbound(Slot(a), domid(b), &self.w.m)
                    .unwrap();
                touched[usize::from(a)] = true;
                self.opened(a, p, Bound::Unbound(b));
            }
            Op::Bind(a, n) => {
                let Some((r, rp)) = self.pick(n) else {
                    return touched;
                };
                let bound = self.bound[&(r, rp)];
                let got = self
                    .w
                    .e
                    .bind_interdomain(Slot(a), Slot(r), Port(rp), &self.w.m);
                if bound == Bound::Unbound(a) {
                    let (p, n) = got.unwrap();
                    assert_eq!(n.slot, Slot(a));
                    touched[usize::from(a)] = true;
                    // Raised with whatever mask the guest left.
                    let before = self.masked.remove(&(a, p.0));
                    self.bound.insert((a, p.0), Bound::Peer(r, rp));
                    self.bound.insert((r, rp), Bound::Peer(a, p.0));
                    self.due.insert((a, p.0));
                    if before {
                        self.masked.insert((a, p.0));
                    }
                } else {
                    assert_eq!(got, Err(Errno::EINVAL));
                }
            }
            Op::Virq(d, q, v) => {
                let held = self
                    .bound
                    .iter()
                    .any(|(k, b)| k.0 == d && *b == Bound::Virq(q, v));
                let got = self.w.e.bind_virq(Slot(d), q, v.into(), &self.w.m);
                if virq_is_global(q) && v != 0 {
                    assert_eq!(got, Err(Errno::EINVAL));
                } else if held {
                    assert_eq!(got, Err(Errno::EEXIST));
                } else {
                    touched[usize::from(d)] = true;
                    self.opened(d, got.unwrap(), Bound::Virq(q, v));
                }
            }
            Op::Ipi(d, v) => {
                let p = self.w.e.bind_ipi(Slot(d), v.into(), &self.w.m).unwrap();
                touched[usize::from(d)] = true;
                self.opened(d, p, Bound::Ipi);
            }
            Op::Close(n) => {
                let Some((d, p)) = self.pick(n) else {
                    return touched;
                };
                let _ = self.w.e.close(Slot(d), Port(p), &self.w.m).unwrap();
                touched[usize::from(d)] = true;
                self.closed(d, p);
            }
            Op::Send(n) => {
                let Some((d, p)) = self.pick(n) else {
                    return touched;
                };
                let got = self.w.e.send(Slot(d), Port(p), &self.w.m);
                let target = match self.bound[&(d, p)] {
                    Bound::Peer(r, rp) => (r, rp),
                    Bound::Ipi => (d, p),
                    Bound::Unbound(_) => {
                        assert!(got.unwrap().is_none());
                        return touched;
                    }
                    Bound::Virq(..) => {
                        assert_eq!(got, Err(Errno::EINVAL));
                        return touched;
                    }
                };
                assert_eq!(got.unwrap().slot, Slot(target.0));
                touched[usize::from(target.0)] = true;
                self.due.insert(target);
            }
            Op::RaiseVirq(d, q, v) => {
                let v = if virq_is_global(q) { 0 } else { v };
                let n = self.w.e.send_virq(at(d, v), q, &self.w.m);
                let port = self
                    .bound
                    .iter()
                    .find(|(k, b)| k.0 == d && **b == Bound::Virq(q, v));
                if let Some((&key, _)) = port {
                    touched[usize::from(d)] = true;
                    self.due.insert(key);
                } else {
                    assert!(n.is_none());
                }
            }
            Op::Move(n, v) => {
                let Some((d, p)) = self.pick(n) else {
                    return touched;
                };
                let movable = match self.bound[&(d, p)] {
                    Bound::Virq(q, _) => virq_is_global(q),
                    Bound::Ipi => false,
                    _ => true,
                };
                assert_eq!(
                    self.w.e.bind_vcpu(Slot(d), Port(p), v.into()).is_ok(),
                    movable
                );
            }
            Op::Priority(n, q) => {
                let Some((d, p)) = self.pick(n) else {
                    return touched;
                };
                let fifo = self.w.e.domains[usize::from(d)].fifo;
                assert_eq!(self.w.e.set_priority(Slot(d), Port(p), q).is_ok(), fifo);
            }
            Op::Mask(n) => {
                let Some((d, p)) = self.pick(n) else {
                    return touched;
                };
                self.w.mask(d, p, true);
                touched[usize::from(d)] = true;
                self.masked.insert((d, p));
            }
            Op::Unmask(n) => {
                let Some((d, p)) = self.pick(n) else {
                    return touched;
                };
                let n = self.w.e.unmask(Slot(d), Port(p), &self.w.m).unwrap();
                assert_eq!(n.slot, Slot(d));
                touched[usize::from(d)] = true;
                self.masked.remove(&(d, p));
            }
            Op::Drain(d) => {
                touched[usize::from(d)] = true;
                self.drain(d);
            }
            Op::Fifo(d) => {
                touched[usize::from(d)] = true;
                if !self.w.e.domains[usize::from(d)].fifo {
                    // A guest that switches has masks where the new ABI has none.
                    self.wipe(d);
                    self.w.fifo(d, 0);
                    self.masked.retain(|k| k.0 != d);
                    let _ = self
                        .w
                        .e
                        .expand_array(Slot(d), page(d, 3), &self.w.m)
                        .unwrap();
                }
            }
            Op::Reset(d) => {
                touched[usize::from(d)] = true;
                let fifo = self.w.e.domains[usize::from(d)].fifo;
                assert_eq!(self.w.reset(d).len(), if fifo { 4 } else { 0 });
                // The guest starts anew: it clears what selectors the FIFO ABI left unused.
                self.wipe(d);
                self.w.m.zero_page(page(d, 0));
                self.w.m.zero_page(page(d, 1));
                self.close_all(d);
            }
            Op::Recreate(d) => {
                touched[usize::from(d)] = true;
                let held = self.w.e.pages_held(Slot(d));
                assert_eq!(self.w.destroy(d).len(), held);
                self.close_all(d);
                for n in 0..PAGES {
                    self.w.m.zero_page(page(d, n));
                }
                let (e, m) = (&mut self.w.e, &self.w.m);
                // What waited for the old domain waits for the new one: it has the same number.
                e.create_domain(Slot(d), domid(d), 4000, VCPUS).unwrap();
                e.set_shared_info(Slot(d), Some(pa(d, 0))).unwrap();
                for v in 0..VCPUS as u32 {
                    let info = pa(d, 1).add(u64::from(v) * 64);
                    let _ = e.set_vcpu_info(Slot(d), v, info, m).unwrap();
                }
            }
        }
        touched
    }

    fn check(&self) {
        for slot in 0..3 {
            let count = self.bound.keys().filter(|k| k.0 == slot).count();
            assert_eq!(self.w.e.ports_in_use(Slot(slot)) as usize, count);
        }
        for (&(slot, port), bound) in &self.bound {
            let due = match *bound {
                Bound::Unbound(d) => Binding::Unbound(domid(d)),
                Bound::Peer(d, p) => Binding::Interdomain(domid(d), Port(p)),
                Bound::Virq(q, _) => Binding::Virq(q),
                Bound::Ipi => Binding::Ipi,
            };
            assert_eq!(
                self.w.e.status(Slot(slot), Port(port)).unwrap().binding,
                due
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Three domains, both ABIs: what is raised and not masked is delivered, once, to
    /// the right domain; nothing else is; and no operation writes to a third domain's pages.
    #[test]
    fn no_event_is_lost_or_made_up(history in prop::collection::vec(ops(), 1..250)) {
        let mut c = Checked::new();
        for op in &history {
            let before = [0, 1, 2].map(|s| c.w.bytes(s));
            let touched = c.apply(op);
            for (s, before) in before.iter().enumerate() {
                assert!(touched[s] || *before == c.w.bytes(s as u8), "{op:?} wrote to {s}");
            }
            c.check();
        }
        for slot in 0..3 {
            c.drain(slot);
            let masked: Vec<_> = c.masked.iter().copied().filter(|k| k.0 == slot).collect();
            for (_, port) in masked {
                let _ = c.w.e.unmask(Slot(slot), Port(port), &c.w.m).unwrap();
            }
            c.masked.retain(|k| k.0 != slot);
            c.drain(slot);
            assert!(!c.due.iter().any(|k| k.0 == slot));
        }
        for slot in 0..3 {
            c.w.destroy(slot);
            prop_assert_eq!(c.w.e.pages_held(Slot(slot)), 0);
        }
    }

    /// A guest that scribbles over all its shared pages: every call ends, nothing panics (the
    /// fake panics on any access out of place), and the others' events still arrive.
    #[test]
    fn a_scribbling_guest_hurts_itself_only(
        fifo in any::<bool>(),
        steps in prop::collection::vec((0usize..PAGES, 0u64..1024, any::<u32>(), 0u8..12, any::<u8>()), 1..200),
    ) {
        let mut w = World::with_infos();
        if fifo {
            w.fifo(2, 4);
            w.fifo(1, 4);
        }
        let pairs: Vec<_> = (0..40).map(|_| w.pair(0, 2)).collect();
        let (good_a, good_b) = w.pair(0, 1);
        for (page, word, value, op, n) in steps {
            // Some values that mean something.
            let value = match n % 4 {
                0 => value,
                1 => value & LINK | LINKED,
                2 => LINKED | PENDING | (u32::from(n) % 41),
                _ => 0,
            };
            w.m.store32(pa(2, page).add(word * 4), value);
            let (a, b) = pairs[usize::from(n) % pairs.len()];
            let vcpu = u32::from(n) % 3;
            let s = Slot(2);
            match op {
                0..=3 => drop(w.e.send(Slot(0), a, &w.m)),
                4 => drop(w.e.unmask(s, b, &w.m)),
                5 => drop(w.e.bind_vcpu(s, b, vcpu)),
                6 => drop(w.e.set_priority(s, b, u32::from(n) % 16)),
                7 => drop(w.e.poll_prepare(at(2, vcpu as u8), &[b], &w.m)),
                8 => drop(w.e.bind_ipi(s, vcpu, &w.m)),
                9 => drop(w.e.close(s, b, &w.m)),
                10 => drop(w.e.bind_interdomain(s, Slot(0), a, &w.m)),
                _ => drop(w.e.expand_array(s, self::page(2, 3), &w.m)),
            }
            let _ = w.e.send(Slot(0), good_a, &w.m).unwrap();
            prop_assert_eq!(w.drain(1), [good_b.0]);
        }
        w.destroy(2);
    }
}
