// SPDX-License-Identifier: MIT OR Apache-2.0
//! Both ABIs against a model of the hypervisor, and against pages full of nonsense.

extern crate std;

use super::*;
use crate::event_channel::*;
use crate::vcpu::VcpuRegisterVcpuInfo;
use crate::{Gfn, HypercallNr, Lent, call};
use core::cell::{Cell, RefCell};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::{vec, vec::Vec};
use zerocopy::{FromBytes, IntoBytes};

type Mem<'a> = &'a [Cell<u8>];

const VCPUS: usize = 2;
/// Ports are handed out with gaps, so that several words and pages are used.
const STRIDE: u32 = 397;
const NR_PORTS: u32 = 5;

#[derive(Clone, Copy, Debug, Default)]
struct Chan {
    vcpu: usize,
    priority: usize,
}

#[derive(Debug, Default)]
struct State {
    chans: BTreeMap<u32, Chan>,
    control: [Option<usize>; VCPUS],
    info: [Option<usize>; VCPUS],
    /// Pages of event words that were added, by index.
    array: Vec<u64>,
    tails: [[u32; 16]; VCPUS],
    unmasks: u32,
}

/// A hypervisor, with the pages.
struct Hv {
    has_fifo: bool,
    info: Vec<Cell<u8>>,
    areas: Vec<Cell<u8>>,
    array: [Vec<Cell<u8>>; 2],
    state: RefCell<State>,
}

const AREAS: Gfn = Gfn(2);
const ARRAY: u64 = 10;

impl Hv {
    fn new(has_fifo: bool) -> Self {
        let page = |fill| vec![Cell::new(fill); 4096];
        Self {
            has_fifo,
            info: page(0),
            areas: page(0xee),
            array: [page(0xee), page(0xee)],
            state: RefCell::default(),
        }
    }

    fn array(&self) -> [Page<Mem<'_>>; 2] {
        [0, 1].map(|n| Page {
            mem: &self.array[n][..],
            gfn: Gfn(ARRAY + n as u64),
        })
    }

    fn area(&self, n: usize) -> Area<Mem<'_>> {
        Area::new(
            Page {
                mem: &self.areas[..],
                gfn: AREAS,
            },
            n,
        )
    }

    fn word(&self, s: &State, port: u32) -> Option<(Mem<'_>, usize)> {
        let gfn = s.array.get(port as usize / 1024)?;
        Some((
            &self.array[(gfn - ARRAY) as usize],
            port as usize % 1024 * 4,
        ))
    }

    fn upcall(&self, s: &State, vcpu: usize) {
        let (mem, at): (Mem<'_>, usize) = match s.info[vcpu] {
            Some(at) => (&self.areas, at),
            None => (&self.info, 0),
        };
        assert!(s.info[vcpu].is_some() || vcpu == 0);
        mem[at].set(1);
    }

    fn is_fifo(s: &State) -> bool {
        s.control[0].is_some()
    }

    /// What a send of the other end does.
    fn raise(&self, port: u32) {
        let mut s = self.state.borrow_mut();
        let chan = s.chans[&port];
        if !Self::is_fifo(&s) {
            let (at, bit) = (port as usize / 32 * 4, 1 << (port % 32));
            let info: Mem<'_> = &self.info;
            info.fetch_or32(offset::EVTCHN_PENDING + at, bit);
            if info.load32(offset::EVTCHN_MASK + at) & bit == 0 {
                self.select(&s, chan.vcpu, port);
            }
            return;
        }
        let Some((mem, at)) = self.word(&s, port) else {
            return;
        };
        let was = mem.fetch_or32(at, fifo::PENDING);
        if was & (fifo::MASKED | fifo::LINKED) != 0 {
            return;
        }
        mem.fetch_or32(at, fifo::LINKED);
        let tail = s.tails[chan.vcpu][chan.priority];
        let areas: Mem<'_> = &self.areas;
        let control = s.control[chan.vcpu].unwrap();
        let mut linked = false;
        if tail != 0 {
            let (mem, at) = self.word(&s, tail).unwrap();
            if mem.load32(at) & fifo::LINKED != 0 && tail != port {
                mem.fetch_or32(at, port);
                linked = true;
            }
        }
        // It may have been the tail of the queue that it was in before.
        for tail in s.tails.as_flattened_mut() {
            if *tail == port {
                *tail = 0;
            }
        }
        s.tails[chan.vcpu][chan.priority] = port;
        if !linked {
            areas.store32(control + 8 + 4 * chan.priority, port);
            let bit = 1 << chan.priority;
            if areas.fetch_or32(control, bit) & bit == 0 {
                self.upcall(&s, chan.vcpu);
            }
        }
    }

    fn select(&self, s: &State, vcpu: usize, port: u32) {
        let (mem, at): (Mem<'_>, usize) = match s.info[vcpu] {
            Some(at) => (&self.areas, at),
            None => (&self.info, 0),
        };
        let word = port / 64;
        mem.fetch_or32(at + 8 + word as usize / 32 * 4, 1 << (word % 32));
        self.upcall(s, vcpu);
    }

    fn unmask(&self, port: u32) {
        let mut s = self.state.borrow_mut();
        s.unmasks += 1;
        let chan = s.chans[&port];
        if !Self::is_fifo(&s) {
            let (at, bit) = (port as usize / 32 * 4, 1 << (port % 32));
            let info: Mem<'_> = &self.info;
            if info.fetch_and32(offset::EVTCHN_MASK + at, !bit) & bit != 0
                && info.load32(offset::EVTCHN_PENDING + at) & bit != 0
            {
                self.select(&s, chan.vcpu, port);
            }
            return;
        }
        let (mem, at) = self.word(&s, port).unwrap();
        if mem.fetch_and32(at, !fifo::MASKED) & fifo::PENDING != 0 {
            drop(s);
            self.raise(port);
        }
    }

    fn open(&self, vcpu: usize) -> Port {
        let mut s = self.state.borrow_mut();
        let port = (1..NR_PORTS + 1)
            .map(|n| n * STRIDE)
            .find(|p| !s.chans.contains_key(p))
            .unwrap();
        s.chans.insert(port, Chan { vcpu, priority: 7 });
        Port(port)
    }
}

fn get<T: FromBytes + IntoBytes>(lent: &mut [Lent<'_>], addr: u64) -> T {
    let mut t = T::new_zeroed();
    assert!(call::read(lent, addr, t.as_mut_bytes()));
    t
}

impl Hypercall for Hv {
    fn call(&self, nr: HypercallNr, args: [u64; 5], lent: &mut [Lent<'_>]) -> i64 {
        let [cmd, a, b, ..] = args;
        if nr == HypercallNr::VcpuOp {
            let x: VcpuRegisterVcpuInfo = get(lent, b);
            assert_eq!(Gfn(x.mfn), AREAS);
            assert_eq!(x.offset % 8, 0);
            let mut s = self.state.borrow_mut();
            return match s.info[a as usize].replace(x.offset as usize) {
                None => 0,
                Some(_) => Errno::EINVAL.to_ret(),
            };
        }
        assert_eq!(nr, HypercallNr::EventChannelOp);
        match EventOp::from_number(cmd).unwrap() {
            EventOp::InitControl => {
                if !self.has_fifo {
                    return Errno::ENOSYS.to_ret();
                }
                let x: EvtchnInitControl = get(lent, a);
                assert_eq!(Gfn(x.control_gfn), AREAS);
                self.state.borrow_mut().control[x.vcpu as usize] = Some(x.offset as usize);
            }
            EventOp::ExpandArray => {
                let x: EvtchnExpandArray = get(lent, a);
                self.state.borrow_mut().array.push(x.array_gfn);
            }
            EventOp::BindIpi => {
                let mut x: EvtchnBindIpi = get(lent, a);
                x.port = self.open(x.vcpu as usize);
                assert!(call::write(lent, a, x.as_bytes()));
            }
            EventOp::AllocUnbound => {
                let mut x: EvtchnAllocUnbound = get(lent, a);
                x.port = self.open(0);
                assert!(call::write(lent, a, x.as_bytes()));
            }
            EventOp::BindInterdomain => {
                let mut x: EvtchnBindInterdomain = get(lent, a);
                x.local_port = self.open(0);
                assert!(call::write(lent, a, x.as_bytes()));
                self.raise(x.local_port.0);
            }
            EventOp::BindVirq => {
                let mut x: EvtchnBindVirq = get(lent, a);
                x.port = self.open(x.vcpu as usize);
                assert!(call::write(lent, a, x.as_bytes()));
            }
            EventOp::BindVcpu => {
                let x: EvtchnBindVcpu = get(lent, a);
                let mut s = self.state.borrow_mut();
                s.chans.get_mut(&x.port.0).unwrap().vcpu = x.vcpu as usize;
            }
            EventOp::SetPriority => {
                let x: EvtchnSetPriority = get(lent, a);
                let mut s = self.state.borrow_mut();
                if !Self::is_fifo(&s) {
                    return Errno::ENOSYS.to_ret();
                }
                s.chans.get_mut(&x.port.0).unwrap().priority = x.priority as usize;
            }
            EventOp::Close => {
                let x: EvtchnClose = get(lent, a);
                let mut s = self.state.borrow_mut();
                if s.chans.remove(&x.port.0).is_none() {
                    return Errno::EINVAL.to_ret();
                }
                if !Self::is_fifo(&s) {
                    let info: Mem<'_> = &self.info;
                    let at = offset::EVTCHN_PENDING + x.port.0 as usize / 32 * 4;
                    info.fetch_and32(at, !(1 << (x.port.0 % 32)));
                } else if let Some((mem, at)) = self.word(&s, x.port.0) {
                    mem.fetch_and32(at, !fifo::PENDING);
                }
            }
            EventOp::Send => {
                let x: EvtchnSend = get(lent, a);
                self.raise(x.port.0);
            }
            EventOp::Unmask => {
                let x: EvtchnUnmask = get(lent, a);
                self.unmask(x.port.0);
            }
            op => unreachable!("{op:?}"),
        }
        0
    }
}

type Set<'a> = Events<&'a Hv, Mem<'a>, [Page<Mem<'a>>; 2]>;

fn start(hv: &Hv) -> (Set<'_>, [Upcall<Mem<'_>>; VCPUS]) {
    let (events, zero) = Events::new(hv, &hv.info[..], hv.array(), hv.area(0)).unwrap();
    let one = events.add_vcpu(1, hv.area(3)).unwrap();
    (events, [zero, one])
}

/// Takes all that an interrupt would bring to a vcpu.
fn all<'a>(events: &Set<'a>, upcall: &mut Upcall<Mem<'a>>) -> Vec<u32> {
    let mut got = Vec::new();
    if upcall.is_pending(events) {
        while upcall.scan(events, 3, |p| got.push(p.0)) {}
    }
    got
}

#[test]
fn a_new_port_is_masked_and_pending() {
    for has_fifo in [false, true] {
        let hv = Hv::new(has_fifo);
        let (events, mut upcalls) = start(&hv);
        assert_eq!(
            events.abi(),
            if has_fifo { Abi::Fifo } else { Abi::TwoLevel }
        );
        assert_eq!(events.ports(), if has_fifo { 2048 } else { 4096 });
        let channels = [
            events.alloc_unbound(DomId(0)).unwrap(),
            events.bind_interdomain(DomId(0), Port(5)).unwrap(),
            events.bind_virq(Virq::Debug, 1).unwrap(),
            events.bind_ipi(1).unwrap(),
        ];
        for c in &channels {
            c.send().unwrap();
            assert!(events.is_pending(c.port()));
        }
        assert_eq!(all(&events, &mut upcalls[0]), []);
        assert_eq!(all(&events, &mut upcalls[1]), []);
        for (c, vcpu) in channels.iter().zip([0, 0, 1, 1]) {
            events.unmask(c.port()).unwrap();
            assert_eq!(all(&events, &mut upcalls[1 - vcpu]), []);
            assert_eq!(all(&events, &mut upcalls[vcpu]), [c.port().0]);
            assert!(!events.is_pending(c.port()));
            let before = hv.state.borrow().unmasks;
            events.mask(c.port());
            events.unmask(c.port()).unwrap();
            assert_eq!(
                hv.state.borrow().unmasks,
                before,
                "no call without an event"
            );
            events.mask(c.port());
            c.send().unwrap();
            assert!(events.take(c.port()));
            assert!(!events.take(c.port()));
        }
    }
}

#[test]
fn ports_are_closed_when_they_are_dropped() {
    let hv = Hv::new(true);
    let (events, _) = start(&hv);
    let a = events.bind_ipi(0).unwrap();
    let b = events.bind_ipi(0).unwrap();
    let c = events.bind_ipi(0).unwrap();
    let kept = b.into_port();
    drop(a);
    assert_eq!(
        hv.state.borrow().chans.keys().collect::<Vec<_>>(),
        [&kept.0, &c.port().0]
    );
    c.close().unwrap();
    assert_eq!(
        hv.state.borrow().chans.keys().collect::<Vec<_>>(),
        [&kept.0]
    );
    assert!(hv.state.borrow_mut().chans.remove(&kept.0).is_some());
    assert_eq!(events.adopt(kept).unwrap().close(), Err(Errno::EINVAL));
}

#[test]
fn a_port_without_a_word_is_closed_and_refused() {
    let hv = Hv::new(true);
    let page = [hv.array()[0]];
    let (events, _) = Events::new(&hv, &hv.info[..], page, hv.area(0)).unwrap();
    let held = [0; 2].map(|_| events.bind_ipi(0).unwrap());
    assert_eq!(events.bind_ipi(0).unwrap_err(), Errno::ENOSPC);
    assert_eq!(hv.state.borrow().chans.len(), held.len());
    assert_eq!(events.unmask(Port(1024)), Err(Errno::EINVAL));
    assert_eq!(events.unmask(Port(0)), Err(Errno::EINVAL));
    events.mask(Port(u32::MAX));
    assert!(!events.take(Port(5000)) && !events.is_pending(Port(5000)));
}

#[test]
fn higher_priorities_come_first() {
    let hv = Hv::new(true);
    let (events, [mut upcall, _]) = start(&hv);
    let chans = [3, 0, 15, 7].map(|p| {
        let c = events.bind_ipi(0).unwrap();
        c.set_priority(p).unwrap();
        events.take(c.port());
        events.unmask(c.port()).unwrap();
        c
    });
    for c in &chans {
        c.send().unwrap();
    }
    let order = [1, 0, 3, 2].map(|n: usize| chans[n].port().0);
    assert_eq!(all(&events, &mut upcall), order);
    // Of two that wait, the one that comes meanwhile goes first when its priority is higher.
    chans[0].send().unwrap();
    chans[2].send().unwrap();
    let mut got = Vec::new();
    while upcall.scan(&events, 1, |p| {
        got.push(p.0);
        if got.len() == 1 {
            chans[1].send().unwrap();
        }
    }) {}
    assert_eq!(got, [0, 1, 2].map(|n: usize| chans[n].port().0));
}

/// A word that the hypervisor holds busy is left to it.
#[test]
fn busy_words_are_unmasked_by_the_hypervisor() {
    let hv = Hv::new(true);
    let (events, _) = start(&hv);
    let c = events.bind_ipi(0).unwrap();
    events.take(c.port());
    let at = c.port().0 as usize * 4;
    let page: Mem<'_> = &hv.array[0];
    page.fetch_or32(at, fifo::BUSY);
    events.unmask(c.port()).unwrap();
    assert_eq!(hv.state.borrow().unmasks, 1);
    assert_eq!(page.load32(at), fifo::BUSY);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Bind(usize),
    Close(usize),
    Raise(usize),
    Mask(usize),
    Unmask(usize),
    Take(usize),
    Move(usize, usize),
    Priority(usize, u32),
    Scan(usize, u32),
}

fn step() -> impl Strategy<Value = Step> {
    let n = 0usize..NR_PORTS as usize;
    prop_oneof![
        2 => (0..VCPUS).prop_map(Step::Bind),
        1 => n.clone().prop_map(Step::Close),
        6 => n.clone().prop_map(Step::Raise),
        2 => n.clone().prop_map(Step::Mask),
        4 => n.clone().prop_map(Step::Unmask),
        1 => n.clone().prop_map(Step::Take),
        1 => (n.clone(), 0..VCPUS).prop_map(|(n, v)| Step::Move(n, v)),
        1 => (n, 0u32..16).prop_map(|(n, p)| Step::Priority(n, p)),
        4 => (0..VCPUS, 0u32..6).prop_map(|(v, b)| Step::Scan(v, b)),
    ]
}

struct Model<'a> {
    channel: Channel<&'a Hv>,
    masked: bool,
    pending: bool,
}

fn found(held: &mut [Model<'_>], port: Port) {
    let m = held
        .iter_mut()
        .find(|m| m.channel.port() == port)
        .expect("an event of a port that is open");
    assert!(m.pending && !m.masked, "{port}: pending and not masked");
    m.pending = false;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 512 }, failure_persistence: None, ..Default::default() })]

    /// Each event of a port that is not masked is found once, on an interrupt or in the scan that
    /// was not done, and nothing else is.
    #[test]
    fn no_event_is_lost(has_fifo in any::<bool>(), steps in prop::collection::vec(step(), 0..120)) {
        let hv = Hv::new(has_fifo);
        let (events, mut upcalls) = start(&hv);
        let mut held: Vec<Model<'_>> = Vec::new();
        let mut more = [false; VCPUS];
        for s in steps {
            match s {
                Step::Bind(vcpu) if held.len() < NR_PORTS as usize => {
                    let channel = events.bind_ipi(vcpu as u32).unwrap();
                    held.push(Model { channel, masked: true, pending: true });
                }
                Step::Bind(_) => {}
                Step::Close(n) => if n < held.len() {
                    held.swap_remove(n);
                }
                Step::Scan(vcpu, budget) => {
                    if more[vcpu] || upcalls[vcpu].is_pending(&events) {
                        more[vcpu] = upcalls[vcpu].scan(&events, budget, |p| found(&mut held, p));
                    }
                }
                Step::Raise(n) => if let Some(m) = held.get_mut(n) {
                    hv.raise(m.channel.port().0);
                    m.pending = true;
                }
                Step::Mask(n) => if let Some(m) = held.get_mut(n) {
                    events.mask(m.channel.port());
                    m.masked = true;
                }
                Step::Unmask(n) => if let Some(m) = held.get_mut(n) {
                    events.unmask(m.channel.port()).unwrap();
                    m.masked = false;
                }
                Step::Take(n) => if let Some(m) = held.get_mut(n) {
                    prop_assert_eq!(events.take(m.channel.port()), m.pending);
                    m.pending = false;
                }
                Step::Move(n, vcpu) => if let Some(m) = held.get(n) {
                    m.channel.bind_vcpu(vcpu as u32).unwrap();
                }
                Step::Priority(n, p) => if let Some(m) = held.get(n) {
                    prop_assert_eq!(m.channel.set_priority(p).is_ok(), has_fifo);
                }
            }
        }
        for (vcpu, upcall) in upcalls.iter_mut().enumerate() {
            if more[vcpu] || upcall.is_pending(&events) {
                let mut turns = 0;
                while upcall.scan(&events, 2, |p| found(&mut held, p)) {
                    turns += 1;
                    prop_assert!(turns < 1000);
                }
            }
        }
        for m in &held {
            prop_assert!(m.masked || !m.pending, "{} is lost", m.channel.port());
        }
    }

    /// Whatever stands in the pages, a scan ends, within its budget, with ports that can be.
    #[test]
    fn nonsense_is_bounded(
        has_fifo in any::<bool>(),
        budget in 0u32..300,
        noise in prop::collection::vec((0usize..4, 0usize..1024, any::<u32>()), 0..200),
        loops in prop::collection::vec((1u32..2048, 1u32..2048), 0..20),
    ) {
        let hv = Hv::new(has_fifo);
        let (events, mut upcalls) = start(&hv);
        let areas: Mem<'_> = &hv.areas;
        let info: Mem<'_> = &hv.info;
        for (page, at, value) in noise {
            let mem: Mem<'_> = match page {
                0 => info,
                1 => areas,
                n => &hv.array[n - 2],
            };
            let at = if page == 1 { at % 160 } else { at };
            mem.store32(at * 4, value);
        }
        for (port, link) in loops {
            let mem: Mem<'_> = &hv.array[port as usize / 1024];
            mem.store32(port as usize % 1024 * 4, fifo::PENDING | fifo::LINKED | link);
            areas.store32(3 * 128 + 8 + 4 * (link as usize % 16), port);
            areas.fetch_or32(3 * 128, 1 << (link % 16));
        }
        for upcall in &mut upcalls {
            let mut n = 0;
            let max = events.ports();
            // The flag is set again all the time.
            let _ = upcall.scan(&events, budget, |p| {
                assert!(p.0 > 0 && p.0 < max);
                n += 1;
                areas[3 * 128 + AREA_INFO].set(1);
                info[0].set(1);
            });
            prop_assert!(n <= budget + 63, "{n} of {budget}");
        }
    }
}
