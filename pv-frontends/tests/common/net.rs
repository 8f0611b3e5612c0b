// SPDX-License-Identifier: MIT OR Apache-2.0
//! A network back-end for tests: what the guest sends is kept, what it shall receive is queued.
#![allow(dead_code)]

use super::*;
use guest_abi::io::netif::{
    NetifExtraInfo, NetifRxRequest, NetifRxResponse, NetifTxRequest, NetifTxResponse, netrxf,
    nettxf,
};
use guest_abi::io::ring::BackRing;
use guest_abi::io::xenbus::State;
use std::collections::VecDeque;

pub const FRONT: &str = "/local/domain/1/device/vif/0";
pub const BACK: &str = "/local/domain/0/backend/vif/1/0";
pub const MAC: [u8; 6] = [0, 0x16, 0x3e, 1, 2, 0xfe];

/// A frame on its way, and its flags in the ring.
pub type Frame = (Vec<u8>, u16);

/// What a test sees and sets.
pub struct Knobs {
    /// What the guest sent: frame, flags, queue.
    pub sent: RefCell<Vec<(Vec<u8>, u16, usize)>>,
    /// What it shall get, by which queue.
    pub inbox: RefCell<VecDeque<(Frame, usize)>>,
    /// Requests are taken and not answered.
    pub silent: Cell<bool>,
    /// It does nothing at all.
    pub dead: Cell<bool>,
    /// Frames sent are answered with this.
    pub status: Cell<i16>,
    /// The next frame to the guest is an error instead.
    pub receive_error: Cell<bool>,
    /// What is sent comes back.
    pub echo: Cell<bool>,
    /// Most bytes of a part to the guest, and where in the page it begins.
    pub part: Cell<(usize, usize)>,
    /// Extra information after the first part of each frame.
    pub extras: Cell<usize>,
    /// Events that came for sending and for receiving.
    pub events: Cell<(u32, u32)>,
    /// Events that were sent to the guest.
    pub notified: Cell<u32>,
}

struct Queue {
    tx: (BackRing<NetifTxRequest, NetifTxResponse>, Mem, GrantRef),
    rx: (BackRing<NetifRxRequest, NetifRxResponse>, Mem, GrantRef),
    ports: [Port; 2],
    kept: Vec<NetifTxRequest>,
    frame: Vec<u8>,
    flags: u16,
}

pub fn put(server: &Server, path: &str, value: &str) {
    server.borrow_mut().write(path, value.as_bytes()).unwrap();
}

pub fn get(server: &Server, path: &str) -> Option<String> {
    let value = server.borrow().read(path).ok()?;
    String::from_utf8(value).ok()
}

/// What the toolstack and the back end write. `offers` is added.
pub fn nodes(server: &Server, offers: &[(&str, &str)]) {
    nodes_at(server, BACK, offers);
}

/// The same with the back end in another folder.
pub fn nodes_at(server: &Server, at: &str, offers: &[(&str, &str)]) {
    for (key, value) in [
        ("backend", at),
        ("backend-id", "0"),
        ("mac", "00:16:3e:01:02:fe"),
        ("state", "1"),
    ] {
        put(server, &format!("{FRONT}/{key}"), value);
    }
    let fixed = [
        ("frontend", FRONT),
        ("online", "1"),
        ("feature-rx-copy", "1"),
        ("state", "1"),
    ];
    let perms = [xenstore::Perm::none(DOM0), xenstore::Perm::read(ME)];
    for (key, value) in fixed.iter().chain(offers) {
        let path = format!("{at}/{key}");
        put(server, &path, value);
        server.borrow_mut().set_perms(&path, &perms).unwrap();
    }
    server.borrow_mut().set_perms(at, &perms).unwrap();
}

pub const MODERN: &[(&str, &str)] = &[
    ("feature-sg", "1"),
    ("feature-split-event-channels", "1"),
    ("feature-ipv6-csum-offload", "1"),
    ("multi-queue-max-queues", "4"),
];

impl Queue {
    fn attach(w: &World, server: &Server, at: &str) -> Self {
        let number = |key: &str| -> Option<u32> {
            get(server, &format!("{FRONT}/{at}{key}")).map(|v| v.parse().unwrap())
        };
        let ring = |key: &str| {
            let gref = GrantRef(number(key).unwrap());
            let (gfn, writable) = w.granted(gref, DOM0).expect("a ring");
            assert!(writable);
            w.mark(gref, true);
            (w.frame(gfn.0).unwrap().0, gref)
        };
        let both = number("event-channel");
        let port = |key: &str| Port(number(key).or(both).unwrap());
        let ports = [port("event-channel-tx"), port("event-channel-rx")];
        assert!(ports.iter().all(|p| w.ports.borrow().contains(&p.0)));
        let (tx, tx_ref) = ring("tx-ring-ref");
        let (rx, rx_ref) = ring("rx-ring-ref");
        Self {
            tx: (BackRing::attach(&tx, 4096).unwrap(), tx, tx_ref),
            rx: (BackRing::attach(&rx, 4096).unwrap(), rx, rx_ref),
            ports,
            kept: Vec::new(),
            frame: Vec::new(),
            flags: 0,
        }
    }

    fn detach(&self, w: &World) {
        w.mark(self.tx.2, false);
        w.mark(self.rx.2, false);
    }

    /// Takes what the guest sent.
    fn take(&mut self, w: &World, k: &Knobs, n: usize) -> bool {
        let mut any = false;
        let (ring, mem, _) = &mut self.tx;
        while let Some(r) = ring.pop(mem).unwrap() {
            any = true;
            self.kept.push(r);
        }
        let _ = ring.final_check(mem).unwrap();
        if k.silent.get() {
            return any;
        }
        for r in self.kept.drain(..) {
            any = true;
            assert!(!r.flags & nettxf::EXTRA_INFO != 0);
            let (gfn, _) = w.granted(r.gref, DOM0).expect("a page");
            let (page, at) = w.frame(gfn.0).unwrap();
            if self.frame.is_empty() {
                self.frame = vec![0; r.size.into()];
                self.flags = r.flags & !nettxf::MORE_DATA;
                // How much of it is in the first part is known when the others are.
                let first = self.frame.len().min(4096);
                assert_eq!(first < self.frame.len(), r.flags & nettxf::MORE_DATA != 0);
                page.read(at + usize::from(r.offset), &mut self.frame[..first]);
                self.frame.truncate(first);
            } else {
                let before = self.frame.len();
                self.frame.resize(before + usize::from(r.size), 0);
                page.read(at + usize::from(r.offset), &mut self.frame[before..]);
            }
            if r.flags & nettxf::MORE_DATA == 0 {
                let frame = std::mem::take(&mut self.frame);
                if k.echo.get() {
                    k.inbox.borrow_mut().push_back(((frame.clone(), 0), n));
                }
                k.sent.borrow_mut().push((frame, self.flags, n));
            }
            let answer = NetifTxResponse {
                id: r.id,
                status: k.status.get(),
            };
            assert!(ring.push(mem, &answer));
        }
        if ring.publish(mem) {
            k.notified.set(k.notified.get() + 1);
        }
        any
    }

    /// Gives the guest a frame, if it has room.
    fn deliver(&mut self, w: &World, k: &Knobs, (frame, flags): &Frame) -> bool {
        let (size, offset) = k.part.get();
        let parts: Vec<_> = frame.chunks(size).collect();
        let (ring, mem, _) = &mut self.rx;
        let need = parts.len() + k.extras.get();
        if (ring.pending(mem).unwrap() as usize) < need {
            let _ = ring.final_check(mem).unwrap();
            return false;
        }
        for (n, part) in parts.iter().enumerate() {
            let r = ring.pop(mem).unwrap().unwrap();
            let (gfn, writable) = w.granted(r.gref, DOM0).unwrap_or_else(|| panic!("{r:?}"));
            assert!(writable);
            let (page, at) = w.frame(gfn.0).unwrap();
            page.write(at + offset, part);
            let mut answer = NetifRxResponse {
                id: r.id,
                offset: offset as u16,
                flags: 0,
                status: part.len() as i16,
            };
            if n == 0 {
                answer.flags = *flags;
                if k.extras.get() > 0 {
                    answer.flags |= netrxf::EXTRA_INFO;
                }
            }
            if n + 1 < parts.len() {
                answer.flags |= netrxf::MORE_DATA;
            }
            if n == 0 && k.receive_error.take() {
                answer.status = -1;
            }
            assert!(ring.push(mem, &answer));
            for left in (0..k.extras.get() * usize::from(n == 0)).rev() {
                ring.pop(mem).unwrap().unwrap();
                let e = NetifExtraInfo::hash(1, 1, [0xff; 4], u8::from(left > 0));
                assert!(ring.push(mem, &e.to_rx()));
            }
        }
        if ring.publish(mem) {
            k.notified.set(k.notified.get() + 1);
        }
        true
    }
}

/// Serves an interface.
pub fn serve_net(world: &'static World, server: &Server) -> Rc<Knobs> {
    serve_net_at(world, server, BACK)
}

/// Serves an interface whose back end's folder is another one.
pub fn serve_net_at(world: &'static World, server: &Server, at: &'static str) -> Rc<Knobs> {
    let knobs = Rc::new(Knobs {
        sent: RefCell::default(),
        inbox: RefCell::default(),
        silent: Cell::new(false),
        dead: Cell::new(false),
        status: Cell::new(0),
        receive_error: Cell::new(false),
        echo: Cell::new(false),
        part: Cell::new((4096, 0)),
        extras: Cell::new(0),
        events: Cell::new((0, 0)),
        notified: Cell::new(0),
    });
    let (server, k) = (server.clone(), knobs.clone());
    let mut queues: Vec<Queue> = Vec::new();
    world.add(move |w| {
        if k.dead.get() {
            // What it had mapped stays marked; a test takes the marks away.
            queues.clear();
            return false;
        }
        let state = |dir: &str| {
            let number = get(&server, &format!("{dir}/state")).and_then(|s| s.parse().ok());
            number
                .and_then(State::from_number)
                .unwrap_or(State::Unknown)
        };
        if get(&server, &format!("{at}/frontend")).is_none() {
            queues.drain(..).for_each(|q| q.detach(w));
            return false;
        }
        let online = get(&server, &format!("{at}/online")).as_deref() == Some("1");
        let (front, back) = (state(FRONT), state(at));
        let mut any = false;
        let mut go = |to: State| {
            any = true;
            put(&server, &format!("{at}/state"), &to.number().to_string());
        };
        match (front, back) {
            (_, State::Connected) if !online => {
                queues.drain(..).for_each(|q| q.detach(w));
                go(State::Closing);
            }
            (State::Closing | State::Unknown, State::Connected | State::InitWait) => {
                queues.drain(..).for_each(|q| q.detach(w));
                go(State::Closing);
            }
            (State::Closed | State::Unknown, State::Closing) => go(State::Closed),
            (State::Initialising, State::Initialising | State::Closed) if online => {
                go(State::InitWait);
            }
            (State::Connected, State::InitWait) => {
                let n = get(&server, &format!("{FRONT}/multi-queue-num-queues"));
                let n: usize = n.map_or(1, |n| n.parse().unwrap());
                let under = |i| match n {
                    1 => String::new(),
                    _ => format!("queue-{i}/"),
                };
                queues = (0..n)
                    .map(|i| Queue::attach(w, &server, &under(i)))
                    .collect();
                go(State::Connected);
            }
            _ => {}
        }
        for (n, q) in queues.iter_mut().enumerate() {
            let (tx, rx) = k.events.get();
            let mut sent = w.sent.borrow_mut();
            let split = q.ports[0] != q.ports[1];
            let for_tx = sent.remove(&q.ports[0].0);
            let for_rx = split && sent.remove(&q.ports[1].0);
            k.events
                .set((tx + u32::from(for_tx), rx + u32::from(for_rx)));
            drop(sent);
            any |= q.take(w, &k, n);
            loop {
                let next = k.inbox.borrow().iter().position(|(_, to)| *to == n);
                let Some(first) = next else { break };
                let frame = k.inbox.borrow()[first].0.clone();
                if k.silent.get() || !q.deliver(w, &k, &frame) {
                    break;
                }
                k.inbox.borrow_mut().remove(first);
                any = true;
            }
        }
        any
    });
    knobs
}
