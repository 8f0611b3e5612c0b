// SPDX-License-Identifier: MIT OR Apache-2.0
//! The network's front end against the workspace's own back end and bridge, as dom0 runs them.

mod common;

use backends::bridge::{Bridge, Filter};
use backends::net::{
    Checksum as Sum, Copies, CopyIn, CopyOut, Credit, Device, Frame, Groups, Interface, Limits, Rx,
    Step, Tx, Waiting, Writes,
};
use common::net::{BACK, FRONT, get, nodes, put};
use common::*;
use guest_abi::GrantRef;
use guest_abi::io::ring::head;
use guest_abi::io::xenbus::State;
use guest_abi::mem::SharedMem;
use pv_frontends::net::{Checksum, Config, Vif};
use pv_frontends::xenstore::Xenstore;
use pv_frontends::{Error, Platform};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

struct Grants<'w>(&'w World);

impl Copies for Grants<'_> {
    fn copy_in(&mut self, list: &mut [CopyIn<'_>]) {
        for c in list {
            let (gfn, _) = self.0.granted(c.gref, DOM0).expect("a page");
            let (page, at) = self.0.frame(gfn.0).unwrap();
            page.read(at + usize::from(c.offset), c.to);
            c.ok = true;
        }
    }
    fn copy_out(&mut self, list: &mut [CopyOut<'_>]) {
        for c in list {
            let (gfn, writable) = self.0.granted(c.gref, DOM0).expect("a page");
            assert!(writable);
            let (page, at) = self.0.frame(gfn.0).unwrap();
            page.write(at, c.from);
            c.ok = true;
        }
    }
}

struct Queue {
    tx: (Tx, Mem, GrantRef),
    rx: (Rx, Mem, GrantRef),
}

#[derive(Default)]
struct Knobs {
    /// What arrived at the bridge's other port.
    arrived: RefCell<Vec<Frame>>,
    /// What is to be sent from there.
    inbox: RefCell<Vec<Frame>>,
    /// What was said when the device was closed.
    fault: RefCell<Option<String>>,
    /// Memory of the first sending ring.
    ring: RefCell<Option<Mem>>,
    queues: Cell<usize>,
    /// It does nothing.
    stuck: Cell<bool>,
}

fn serve_net(w: &'static World, server: &Server, limits: Limits) -> Rc<Knobs> {
    let knobs: Rc<Knobs> = Rc::default();
    let (server, k) = (server.clone(), knobs.clone());
    let mut device = Device::new(limits);
    let mut queues: Vec<Queue> = Vec::new();
    let mut bridge = Bridge::default();
    let vif = bridge.add(Filter::default()).unwrap();
    let peer = bridge.add(Filter::default()).unwrap();
    let mut interface = Interface::new(Credit::unlimited());
    w.add(move |w| {
        if k.stuck.get() {
            return false;
        }
        let write = |writes: Writes| {
            for (key, value) in writes {
                put(&server, &format!("{BACK}/{key}"), &value);
            }
        };
        let state = get(&server, &format!("{FRONT}/state"));
        let state = state.and_then(|s| State::from_number(s.parse().ok()?));
        let online = get(&server, &format!("{BACK}/online")).as_deref() == Some("1");
        let read = |key: &str| get(&server, &format!("{FRONT}/{key}"));
        interface.groups.control = Groups::requested(read("request-multicast-control").as_deref());
        let mut any = true;
        match device.step(state.unwrap_or(State::Unknown), online, read) {
            Step::Write(writes) => write(writes),
            Step::Connect(c) => {
                let map = |gref| {
                    let (gfn, writable) = w.granted(gref, DOM0).unwrap();
                    assert!(writable);
                    w.mark(gref, true);
                    w.frame(gfn.0).unwrap().0
                };
                for q in &c.queues {
                    let (tx, rx) = (map(q.tx_ring), map(q.rx_ring));
                    k.ring.borrow_mut().get_or_insert(tx.clone());
                    queues.push(Queue {
                        tx: (Tx::attach(&tx, &limits).unwrap(), tx, q.tx_ring),
                        rx: (
                            Rx::attach(&rx, &c, Waiting::default()).unwrap(),
                            rx,
                            q.rx_ring,
                        ),
                    });
                }
                k.queues.set(queues.len());
                interface.groups.clear();
                write(device.connected());
            }
            Step::Refuse(e, _) => panic!("{e}"),
            Step::Disconnect => {
                for q in queues.drain(..) {
                    w.mark(q.tx.2, false);
                    w.mark(q.rx.2, false);
                }
                device.disconnected();
            }
            Step::Wait | Step::Gone => any = false,
        }
        let (mut frames, mut to) = (Vec::new(), Vec::new());
        for q in &mut queues {
            let (tx, ring, _) = &mut q.tx;
            match tx.take(ring, &mut Grants(w), &mut interface, 0, 16, &mut frames) {
                Ok(taken) => any |= taken.notify || taken.more,
                Err(e) => {
                    *k.fault.borrow_mut() = Some(e.to_string());
                    write(device.broken());
                    any = true;
                }
            }
        }
        for f in frames {
            bridge.forward(vif, f.bytes(), 0, &mut to);
            assert!(to.drain(..).all(|p| p == peer));
            k.arrived.borrow_mut().push(f);
        }
        for f in k.inbox.take() {
            bridge.forward(peer, f.bytes(), 0, &mut to);
            let wanted = to.drain(..).any(|p| p == vif) && interface.groups.allow(f.bytes());
            if wanted && !queues.is_empty() {
                let n = f.flow() as usize % queues.len();
                assert!(queues[n].rx.0.queue(Rc::new(f)));
            }
        }
        for q in &mut queues {
            let (rx, ring, _) = &mut q.rx;
            any |= rx.flush(ring, &mut Grants(w)).unwrap();
        }
        any
    });
    knobs
}

type Xs = Xenstore<&'static World>;
type Front = Vif<'static, &'static World>;

fn soon(w: &World) -> u64 {
    w.now() + SECOND
}

fn setup(
    limits: Limits,
    config: Config,
) -> (&'static World, Server, &'static Xs, Front, Rc<Knobs>) {
    let w = World::new();
    let server = serve(w);
    let xs: &'static Xs = Box::leak(Box::new(Xenstore::open(w).unwrap()));
    nodes(&server, &[("mtu", "8000")]);
    let knobs = serve_net(w, &server, limits);
    let s = xs.by(soon(w));
    let vif = s.run(Vif::open(s.access(), 0, config)).unwrap();
    (w, server, xs, vif, knobs)
}

const PEER: [u8; 6] = [0, 0x16, 0x3e, 9, 9, 9];
const OWN: [u8; 6] = common::net::MAC;

fn frame(to: [u8; 6], from: [u8; 6], len: usize, seed: usize) -> Vec<u8> {
    let mut f = [&to[..], &from[..], &[0x88, 0xb5]].concat();
    f.extend((0..len).map(|i| (i * 31 + seed) as u8));
    f
}

#[test]
fn frames_go_both_ways() {
    let limits = Limits {
        queues: 4,
        mtu: 8000,
    };
    for queues in [1, 3] {
        let config = Config {
            queues,
            ..Config::default()
        };
        let (w, _, _, vif, k) = setup(limits, config);
        let info = vif.info();
        assert!(info.scatter_gather && info.split_channels && info.blank_ipv6);
        assert_eq!(k.queues.get(), usize::from(queues));
        let mut buffer = vec![0; 9000];
        // Many times around the rings.
        for n in 0..1500 {
            let len = n * 7 % info.max_frame.saturating_sub(14);
            let out = frame(PEER, OWN, len, n);
            vif.by(soon(w)).send(&out).unwrap();
            w.run();
            let arrived = k.arrived.take();
            assert_eq!(arrived.len(), 1);
            assert_eq!(arrived[0].bytes(), out);
            let back = frame(OWN, PEER, len, n + 1);
            let back = Frame::new(back, Sum::Validated).unwrap();
            k.inbox.borrow_mut().push(back.clone());
            let got = vif.by(soon(w)).recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..got.len], back.bytes());
            assert_eq!(got.checksum, Checksum::Validated);
        }
        let stats = vif.stats();
        assert_eq!((stats.send_errors, stats.receive_errors), (0, 0));
        // A frame for somebody else at the other port, and one without a checksum to fill in.
        k.inbox
            .borrow_mut()
            .push(Frame::new(frame(PEER, PEER, 9, 0), Sum::Present).unwrap());
        w.run();
        assert_eq!(vif.try_recv(&mut buffer), Ok(None));
        let wrong = frame(PEER, OWN, 40, 0);
        let s = soon(w);
        vif.by(s).send_with(&wrong, Checksum::Blank).unwrap();
        while w.run() {}
        vif.handle_event();
        assert_eq!(vif.stats().send_errors, 1);
        assert!(k.arrived.take().is_empty());
    }
}

/// Whether frames to these addresses come, among others that do.
fn come(w: &World, vif: &Front, k: &Knobs, groups: &[[u8; 6]]) -> Vec<bool> {
    let all = groups.iter().flat_map(|group| [*group, OWN, [0xff; 6]]);
    let all = all.map(|to| Frame::new(frame(to, PEER, 46, 0), Sum::Present).unwrap());
    k.inbox.borrow_mut().extend(all);
    while w.run() {}
    let (mut buffer, mut got) = ([0; 2000], Vec::new());
    while vif.try_recv(&mut buffer).unwrap().is_some() {
        got.push([0, 1, 2, 3, 4, 5].map(|n| buffer[n]));
    }
    let mut got = got.into_iter().peekable();
    let seen = groups.iter().map(|group| {
        let came = got.next_if_eq(group).is_some();
        assert_eq!([got.next(), got.next()], [Some(OWN), Some([0xff; 6])]);
        came
    });
    let seen = seen.collect();
    assert_eq!(got.next(), None);
    seen
}

#[test]
fn multicast_frames_that_were_asked_for() {
    let config = Config {
        multicast_control: true,
        send_pages: 0,
        ..Config::default()
    };
    let (w, server, xs, mut vif, k) = setup(Limits::default(), config);
    assert!(vif.info().multicast_control);
    let group = |n| [0x33, 0x33, 0, 0, 0, n];
    let (a, b) = (group(1), group(2));
    assert_eq!(come(w, &vif, &k, &[a, b]), [false, false]);
    for _ in 0..3 {
        vif.by(soon(w)).join(a).unwrap();
    }
    assert_eq!(come(w, &vif, &k, &[a, b]), [true, false]);
    vif.by(soon(w)).join(b).unwrap();
    vif.by(soon(w)).leave(a).unwrap();
    vif.by(soon(w)).leave(a).unwrap();
    assert_eq!(come(w, &vif, &k, &[a, b]), [false, true]);
    assert_eq!(vif.by(soon(w)).join(OWN), Err(Error::Invalid));
    // The back end has room for 64; who waits for an answer that does not come is told so.
    for n in 3..=65 {
        vif.by(soon(w)).join(group(n)).unwrap();
    }
    assert_eq!(vif.by(soon(w)).join(a), Err(Error::Failed));
    assert_eq!(come(w, &vif, &k, &[a, group(65)]), [false, true]);
    vif.by(soon(w)).leave(group(65)).unwrap();
    k.stuck.set(true);
    for _ in 0..5 {
        assert_eq!(vif.by(w.now() + 1000).join(a), Err(Error::TimedOut));
    }
    k.stuck.set(false);
    vif.by(soon(w)).leave(b).unwrap();
    // Answers that nobody waited for are no frames, and pages come back.
    let out = frame(PEER, OWN, 40, 0);
    vif.by(soon(w)).send(&out).unwrap();
    while w.run() {}
    assert_eq!(k.arrived.take().len(), 1);
    vif.handle_event();
    assert_eq!((vif.stats().sent, vif.stats().send_errors), (1, 0));
    // It goes for a later connection too.
    vif.by(soon(w)).leave(group(3)).unwrap();
    xs.by(soon(w)).run(vif.reconnect()).unwrap();
    assert_eq!(
        come(w, &vif, &k, &[a, b, group(3), group(4)]),
        [false, false, false, true]
    );
    // The node may change at any time.
    let key = format!("{FRONT}/request-multicast-control");
    for (value, all) in [("0", true), ("1", false), ("x", true)] {
        put(&server, &key, value);
        assert_eq!(come(w, &vif, &k, &[a, group(4)]), [all, true], "{value}");
    }
    // Without such control, all come, and nothing is asked.
    let (w, server, _, vif, k) = setup(Limits::default(), Config::default());
    assert!(!vif.info().multicast_control);
    vif.by(soon(w)).join(a).unwrap();
    assert_eq!(come(w, &vif, &k, &[a, b]), [true, true]);
    let asks = get(&server, &format!("{FRONT}/request-multicast-control"));
    assert_eq!(asks.as_deref(), Some("0"));
}

#[test]
fn a_front_end_that_leaps_is_closed() {
    let (w, _, _, vif, k) = setup(Limits::default(), Config::default());
    let ring = k.ring.borrow().clone().unwrap();
    ring.store32(head::REQ_PROD, 5000);
    let s = soon(w);
    assert_eq!(vif.by(s).recv(&mut [0; 2000]), Err(Error::Gone));
    assert!(k.fault.borrow().as_ref().unwrap().contains("ring index"));
}
