// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests' disks: a task for each device, one for each of its rings, and one for each request.
//! Data go straight between the disk and the guest's pages.

use crate::disk::File;
use crate::exec::{Notify, Queue as Tasks, yield_now};
use crate::fat::SECTOR;
use crate::host::Dom0;
use crate::rt::Listener;
use crate::xs::Watch;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use backends::blk::{
    Device, Discard, Disk, FrontConfig, Kind, Limits, Mapping, Mappings, Op, Pages, Queue,
    QueueConfig, Span, Status, Step, Writes,
};
use core::cell::{Cell, RefCell};
use el1::mem::{self, Granted, ToMap};
use el1::shared::Shared;
use el1::virtio;
use embassy_futures::select::select3;
use guest_abi::grant_table::GrantStatus;
use guest_abi::io::xenbus::State;
use guest_abi::{DomId, Errno, GrantRef};
use toolstack::host::BlockStart;

/// What a front end may use.
const LIMITS: Limits = Limits {
    indirect_segments: 64,
    ring_page_order: 2,
    queues: 4,
    persistent_pages: 1056,
};
/// Requests that are taken from a ring at a time.
const BUDGET: u32 = 32;

/// A device that is served.
#[derive(Default)]
struct Served {
    /// It is to end at once.
    stop: Cell<bool>,
    /// Something in it changed: to be stopped, a queue broke or ended, it ended.
    changed: Notify,
    /// A queue broke.
    broken: Cell<bool>,
    /// Queues that are to end.
    draining: Cell<bool>,
    /// Wakes for the queues.
    wake: RefCell<Vec<Rc<Notify>>>,
    /// Queues that run.
    queues: Cell<usize>,
    ended: Cell<bool>,
}

/// Devices by their domain and number.
type Table = BTreeMap<(DomId, u32), Rc<Served>>;

/// All devices that are served.
#[derive(Default)]
pub struct Blocks {
    all: Rc<RefCell<Table>>,
}

impl Blocks {
    /// Serves a disk.
    pub fn start(&self, dom0: Dom0, start: &BlockStart, file: File) -> Result<(), Errno> {
        let key = (start.dom, start.vdev);
        if self.all.borrow().contains_key(&key) {
            return Err(Errno::EEXIST);
        }
        let sectors = file.size() / SECTOR as u64;
        let read_only = start.read_only || file.disk.read_only();
        let discard = start.discard && !read_only && file.disk.max_discard() > 0;
        let disk = Disk {
            sectors,
            read_only,
            cdrom: false,
            flush: true,
            discard: discard.then_some(Discard {
                granularity: SECTOR as u32,
                alignment: 0,
                secure: false,
            }),
            physical_sector_size: SECTOR as u32,
        };
        let back = format!("/local/domain/0/backend/vbd/{}/{}", key.0, key.1);
        let front = format!("/local/domain/{}/device/vbd/{}", key.0, key.1);
        let watches = (dom0.xs.watch(&back)?, dom0.xs.watch(&front)?);
        let served: Rc<Served> = Rc::default();
        self.all.borrow_mut().insert(key, served.clone());
        let task = Task {
            dom0,
            dom: start.dom,
            file,
            disk,
            back,
            front,
            served: served.clone(),
        };
        let all = self.all.clone();
        dom0.rt.spawn(async move {
            task.run(watches).await;
            all.borrow_mut().remove(&key);
            served.ended.set(true);
            served.changed.notify();
        });
        Ok(())
    }

    /// Ends serving a disk, and waits until nothing of the guest's is held any more.
    pub async fn stop(&self, dom: DomId, vdev: u32) {
        let served = self.all.borrow().get(&(dom, vdev)).cloned();
        let Some(served) = served else { return };
        let mut seen = served.changed.seen();
        served.stop.set(true);
        served.changed.notify();
        while !served.ended.get() {
            served.changed.changed(&mut seen).await;
        }
    }
}

struct Task {
    dom0: Dom0,
    dom: DomId,
    file: File,
    disk: Disk,
    back: String,
    front: String,
    served: Rc<Served>,
}

impl Task {
    fn node(&self, dir: &str, key: &str) -> Option<String> {
        let value = self
            .dom0
            .xs
            .with(|s| s.read(&format!("{dir}/{key}")))
            .ok()?;
        String::from_utf8(value).ok()
    }

    /// Writes to the back end's folder, unless that is gone.
    fn write(&self, writes: Writes) {
        let _ = self.dom0.xs.with(|s| {
            s.transact(|t| {
                if t.exists(&format!("{}/frontend", self.back)) {
                    for (key, value) in &writes {
                        t.write(&format!("{}/{key}", self.back), value.as_bytes())?;
                    }
                }
                Ok::<(), Errno>(())
            })
        });
    }

    async fn run(&self, (mut back, mut front): (Watch, Watch)) {
        let mut device = Device::new(self.disk, LIMITS);
        loop {
            let mut seen = self.served.changed.seen();
            while back.try_next().is_some() || front.try_next().is_some() {}
            if self.served.broken.replace(false) {
                self.write(device.broken());
            }
            let state = self.node(&self.front, "state");
            let state = match state
                .and_then(|s| s.parse().ok())
                .and_then(State::from_number)
            {
                Some(state) if !self.served.stop.get() => state,
                _ => State::Unknown,
            };
            let online = self.node(&self.back, "online").as_deref() != Some("0");
            match device.step(state, online, |key| self.node(&self.front, key)) {
                Step::Wait if self.served.stop.get() => break,
                Step::Wait => {
                    let changed = self.served.changed.changed(&mut seen);
                    select3(back.changed(), front.changed(), changed).await;
                }
                Step::Write(writes) => self.write(writes),
                Step::Connect(config) => {
                    let writes = match self.connect(&config) {
                        Ok(()) => device.connected(),
                        Err(e) => {
                            self.say(&format!("cannot connect: {e}"));
                            device.connect_failed()
                        }
                    };
                    self.write(writes);
                }
                Step::Refuse(bad, writes) => {
                    self.say(&format!("the front end's {bad:?} makes no sense"));
                    self.write(writes);
                }
                Step::Disconnect => {
                    self.disconnect().await;
                    device.disconnected();
                }
                Step::Gone => break,
            }
        }
        self.disconnect().await;
        if !self.disk.read_only
            && let Err(e) = self.file.disk.flush().await
        {
            self.say(&format!("cannot flush: {e}"));
        }
    }

    fn say(&self, what: &str) {
        self.dom0
            .terminal
            .write(&format!("{}: {what}\n", self.back));
    }

    fn connect(&self, config: &FrontConfig) -> Result<(), Errno> {
        self.served.draining.set(false);
        let keep = if config.persistent {
            LIMITS.persistent_pages
        } else {
            0
        };
        let mut ready = Vec::new();
        for q in &config.queues {
            ready.push(self.open(q)?);
        }
        for (ring, queue, listener) in ready {
            self.served.wake.borrow_mut().push(listener.waker());
            self.served.queues.set(self.served.queues.get() + 1);
            let runner = Runner {
                dom0: self.dom0,
                file: self.file.clone(),
                served: self.served.clone(),
                queue,
                mappings: Mappings::new(keep),
                pages: Grants(self.dom),
                done: Rc::default(),
            };
            self.dom0.rt.spawn(runner.run(ring, listener));
        }
        Ok(())
    }

    fn open(&self, q: &QueueConfig) -> Result<(mem::Mapping, Queue, Listener), Errno> {
        let ring = mem::map_grants(self.dom, &q.ring, true).map_err(|e| match e {
            GrantStatus::NoSpace => Errno::ENOMEM,
            _ => Errno::EINVAL,
        })?;
        let queue =
            Queue::attach(&*ring, q.ring_bytes(), self.disk, LIMITS).ok_or(Errno::EINVAL)?;
        Ok((ring, queue, self.dom0.rt.connect(self.dom, q.port)?))
    }

    async fn disconnect(&self) {
        self.served.draining.set(true);
        for wake in self.served.wake.take() {
            wake.notify();
        }
        let mut seen = self.served.changed.seen();
        while self.served.queues.get() > 0 {
            self.served.changed.changed(&mut seen).await;
        }
    }
}

/// A guest's grants.
struct Grants(DomId);

impl Pages for Grants {
    type Page = Granted;
    fn map(&mut self, list: &mut [Mapping<Granted>]) {
        let mut work: Vec<ToMap> = list
            .iter()
            .map(|m| ToMap {
                gref: m.gref,
                writable: m.writable,
                page: None,
            })
            .collect();
        mem::map_granted(self.0, &mut work);
        for (to, from) in list.iter_mut().zip(work) {
            to.page = from.page;
        }
    }
    fn unmap(&mut self, list: &[Granted]) {
        mem::unmap_granted(list);
    }
    fn addr(&self, page: Granted) -> u64 {
        page.addr()
    }
    fn copy_in(&mut self, gref: GrantRef, to: &mut [u8]) -> bool {
        mem::copy_from_grant(self.0, gref, to)
    }
}

/// One ring at work.
struct Runner {
    dom0: Dom0,
    file: File,
    served: Rc<Served>,
    queue: Queue,
    mappings: Mappings<Granted>,
    pages: Grants,
    done: Rc<Tasks<(Op, Status)>>,
}

impl Runner {
    async fn run(mut self, ring: mem::Mapping, mut port: Listener) {
        let mut ops = Vec::new();
        loop {
            let mut answered = false;
            while let Some((op, status)) = self.done.try_pop() {
                self.mappings.release(&op, &mut self.pages);
                self.queue.respond(&*ring, op, status);
                answered = true;
            }
            if answered && self.queue.publish(&*ring) {
                port.send();
            }
            if self.served.draining.get() {
                self.queue.stop();
            }
            let taken = self
                .queue
                .take_requests(&*ring, &mut self.pages, BUDGET, &mut ops);
            for op in ops.drain(..) {
                if let Some(op) = self.begin(op, port.waker()) {
                    self.queue.respond(&*ring, op, Status::Error);
                }
            }
            if self.queue.publish(&*ring) {
                port.send();
            }
            let more = match taken {
                Ok(taken) => {
                    if taken.notify {
                        port.send();
                    }
                    taken.more
                }
                Err(_) => {
                    self.served.broken.set(true);
                    self.served.changed.notify();
                    false
                }
            };
            if self.served.draining.get() && self.queue.in_flight() == 0 {
                break;
            }
            if more {
                yield_now().await;
            } else {
                port.wait().await;
            }
        }
        self.mappings.close(&mut self.pages);
        drop(ring);
        drop(port);
        self.served.queues.set(self.served.queues.get() - 1);
        self.served.changed.notify();
    }

    /// Starts a request, in a task of its own. Gives it back if its pages cannot be mapped.
    fn begin(&mut self, op: Op, wake: Rc<Notify>) -> Option<Op> {
        let mut spans = Vec::new();
        let transfer = matches!(op.kind(), Kind::Read | Kind::Write);
        if transfer && self.mappings.map(&op, &mut self.pages, &mut spans).is_err() {
            return Some(op);
        }
        let (file, done) = (self.file.clone(), self.done.clone());
        self.dom0.rt.spawn(async move {
            let result = perform(&file, &op, &spans).await;
            let status = match result {
                Ok(()) => Status::Okay,
                Err(Errno::EOPNOTSUPP) => Status::Eopnotsupp,
                Err(_) => Status::Error,
            };
            done.push((op, status));
            wake.notify();
        });
        None
    }
}

async fn perform(file: &File, op: &Op, spans: &[Span]) -> Result<(), Errno> {
    let direction = match op.kind() {
        Kind::Read => virtio::Op::Read,
        Kind::Write => virtio::Op::Write,
        Kind::Flush => return file.disk.flush().await,
        Kind::Discard { .. } => return file.discard(op.sector(), op.sectors()).await,
    };
    let pages: Option<Vec<Shared>> = spans
        .iter()
        .map(|s| {
            let page = Shared::at(s.addr / 4096, 1)?;
            Some(page.part((s.addr % 4096) as usize, s.bytes as usize))
        })
        .collect();
    file.transfer(direction, op.sector(), &pages.ok_or(Errno::EIO)?)
        .await
}
