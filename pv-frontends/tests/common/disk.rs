// SPDX-License-Identifier: MIT OR Apache-2.0
//! The workspace's own block back-end at the other end, as dom0 runs it.
#![allow(dead_code)]

use super::*;
use backends::blk::{
    Device, Disk, Kind, Limits, Mapping, Mappings, Op, Queue, Status, Step, Writes,
};
use guest_abi::io::xenbus::State;

pub const VBD: u32 = 51712;
pub const FRONT: &str = "/local/domain/1/device/vbd/51712";
pub const BACK: &str = "/local/domain/0/backend/vbd/1/51712";

pub const DISK: Disk = Disk {
    sectors: 4096,
    read_only: false,
    cdrom: false,
    flush: true,
    discard: Some(backends::blk::Discard {
        granularity: 512,
        alignment: 0,
        secure: false,
    }),
    physical_sector_size: 4096,
};

pub const LIMITS: Limits = Limits {
    indirect_segments: 64,
    ring_page_order: 2,
    queues: 4,
    persistent_pages: 1056,
};

/// What a test sees and sets.
pub struct Knobs {
    pub data: RefCell<Vec<u8>>,
    /// Requests are taken and not answered.
    pub silent: Cell<bool>,
    /// It does nothing at all.
    pub dead: Cell<bool>,
    /// Answers are this instead.
    pub status: Cell<Option<Status>>,
    pub flushes: Cell<u32>,
    pub events: Cell<u32>,
    /// Segments of the largest request.
    pub largest: Cell<usize>,
}

struct Grants<'w>(&'w World);

impl backends::blk::Pages for Grants<'_> {
    type Page = (u64, GrantRef);
    fn map(&mut self, list: &mut [Mapping<Self::Page>]) {
        for m in list {
            let granted = self.0.granted(m.gref, DOM0);
            if let Some((gfn, writable)) = granted.filter(|(_, w)| *w || !m.writable) {
                assert!(writable);
                self.0.mark(m.gref, true);
                m.page = Some((gfn.0, m.gref));
            }
        }
    }
    fn unmap(&mut self, list: &[Self::Page]) {
        for (_, gref) in list {
            self.0.mark(*gref, false);
        }
    }
    fn addr(&self, page: Self::Page) -> u64 {
        page.0 * 4096
    }
    fn copy_in(&mut self, gref: GrantRef, to: &mut [u8]) -> bool {
        let Some((gfn, _)) = self.0.granted(gref, DOM0) else {
            return false;
        };
        let (mem, at) = self.0.frame(gfn.0).unwrap();
        mem.read(at, to);
        true
    }
}

struct Ring {
    queue: Queue,
    mem: Mem,
    refs: Vec<GrantRef>,
    port: Port,
    mappings: Mappings<(u64, GrantRef)>,
    kept: Vec<Op>,
}

pub fn nodes(server: &Server) {
    let mut s = server.borrow_mut();
    for (key, value) in [("backend", BACK), ("backend-id", "0"), ("state", "1")] {
        s.write(&format!("{FRONT}/{key}"), value.as_bytes())
            .unwrap();
    }
    for (key, value) in [("frontend", FRONT), ("online", "1"), ("state", "1")] {
        s.write(&format!("{BACK}/{key}"), value.as_bytes()).unwrap();
    }
    let perms = [xenstore::Perm::none(DOM0), xenstore::Perm::read(ME)];
    s.set_perms(BACK, &perms).unwrap();
    for key in ["frontend", "online", "state"] {
        s.set_perms(&format!("{BACK}/{key}"), &perms).unwrap();
    }
}

/// Serves a disk of zeros.
pub fn attach(world: &'static World, server: &Server, disk: Disk, limits: Limits) -> Rc<Knobs> {
    nodes(server);
    serve_disk(world, server, disk, limits)
}

pub fn serve_disk(world: &'static World, server: &Server, disk: Disk, limits: Limits) -> Rc<Knobs> {
    let knobs = Rc::new(Knobs {
        data: RefCell::new(vec![0; disk.sectors as usize * 512]),
        silent: Cell::new(false),
        dead: Cell::new(false),
        status: Cell::new(None),
        flushes: Cell::new(0),
        events: Cell::new(0),
        largest: Cell::new(0),
    });
    let (server, k) = (server.clone(), knobs.clone());
    let mut device = Device::new(disk, limits);
    let mut rings: Vec<Ring> = Vec::new();
    world.add(move |w| {
        if k.dead.get() {
            // What it had mapped stays marked; a test takes the marks away.
            rings.clear();
            return false;
        }
        let read = |dir: &str, key: &str| {
            let value = server.borrow().read(&format!("{dir}/{key}")).ok()?;
            String::from_utf8(value).ok()
        };
        let put = |writes: Writes| {
            let mut s = server.borrow_mut();
            if s.exists(&format!("{BACK}/frontend")) {
                for (key, value) in writes {
                    s.write(&format!("{BACK}/{key}"), value.as_bytes()).unwrap();
                }
            }
        };
        let mut any = false;
        loop {
            let state = read(FRONT, "state").and_then(|s| s.parse().ok());
            let state = state.and_then(State::from_number).unwrap_or(State::Unknown);
            let online = read(BACK, "online").as_deref() != Some("0");
            match device.step(state, online, |key| read(FRONT, key)) {
                Step::Wait | Step::Gone => break,
                Step::Write(writes) | Step::Refuse(_, writes) => put(writes),
                Step::Connect(config) => {
                    for q in config.queues {
                        let (gfn, _) = w.granted(q.ring[0], DOM0).expect("a ring");
                        let (mem, at) = w.frame(gfn.0).unwrap();
                        assert_eq!((at, mem.len()), (0, q.ring_bytes()));
                        q.ring.iter().for_each(|r| w.mark(*r, true));
                        assert!(w.ports.borrow().contains(&q.port.0));
                        rings.push(Ring {
                            queue: Queue::attach(&mem, q.ring_bytes(), disk, limits).unwrap(),
                            mem,
                            refs: q.ring,
                            port: q.port,
                            mappings: Mappings::new(if config.persistent {
                                limits.persistent_pages
                            } else {
                                0
                            }),
                            kept: Vec::new(),
                        });
                    }
                    put(device.connected());
                }
                Step::Disconnect => {
                    for ring in &mut rings {
                        for op in ring.kept.drain(..) {
                            ring.mappings.release(&op, &mut Grants(w));
                        }
                        for op in ring.kept.drain(..) {
                            ring.mappings.release(&op, &mut Grants(w));
                        }
                        ring.mappings.close(&mut Grants(w));
                        ring.refs.iter().for_each(|r| w.mark(*r, false));
                    }
                    rings.clear();
                    device.disconnected();
                }
            }
            any = true;
        }
        let mut broken = false;
        for ring in &mut rings {
            if w.sent.borrow_mut().remove(&ring.port.0) {
                k.events.set(k.events.get() + 1);
            }
            let mut ops = Vec::new();
            let taken = ring
                .queue
                .take_requests(&ring.mem, &mut Grants(w), 99, &mut ops);
            any |= !ops.is_empty();
            broken |= taken.is_err();
            if k.silent.get() {
                for op in &ops {
                    let _ = ring.mappings.map(op, &mut Grants(w), &mut Vec::new());
                }
                ring.kept.append(&mut ops);
                continue;
            }
            // Backwards, to have answers in another order than requests.
            for op in ops.into_iter().rev().chain(std::mem::take(&mut ring.kept)) {
                let status = perform(w, &k, &mut ring.mappings, &op);
                ring.queue
                    .respond(&ring.mem, op, k.status.get().unwrap_or(status));
                any = true;
            }
            any |= ring.queue.publish(&ring.mem);
        }
        if broken {
            put(device.broken());
        }
        any
    });
    knobs
}

fn perform(w: &World, k: &Knobs, mappings: &mut Mappings<(u64, GrantRef)>, op: &Op) -> Status {
    let at = op.sector() as usize * 512;
    let mut data = k.data.borrow_mut();
    k.largest.set(k.largest.get().max(op.segments().len()));
    match op.kind() {
        Kind::Flush => k.flushes.set(k.flushes.get() + 1),
        Kind::Discard { .. } => data[at..][..op.sectors() as usize * 512].fill(0xdd),
        kind => {
            let mut spans = Vec::new();
            if mappings.map(op, &mut Grants(w), &mut spans).is_err() {
                return Status::Error;
            }
            let mut at = at;
            for s in spans {
                let (mem, offset) = w.frame(s.addr / 4096).unwrap();
                let offset = offset + (s.addr % 4096) as usize;
                let part = &mut data[at..][..s.bytes as usize];
                if kind == Kind::Read {
                    mem.write(offset, part)
                } else {
                    mem.read(offset, part)
                }
                at += s.bytes as usize;
            }
            mappings.release(op, &mut Grants(w));
        }
    }
    Status::Okay
}
