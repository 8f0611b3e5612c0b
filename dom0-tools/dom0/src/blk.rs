// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests' disks: a task for each device, one for each of its rings, and one for each request.
//! Data go straight between the disk and the guest's pages.

use crate::device::{Devices, Served, Service};
use crate::disk::File;
use crate::exec::{Notify, Queue as Tasks, yield_now};
use crate::fat::SECTOR;
use crate::host::Dom0;
use crate::rt::Listener;
use alloc::format;
use alloc::rc::Rc;
use alloc::vec::Vec;
use backends::blk::{
    Device, Discard, Disk, FrontConfig, Kind, Limits, Mapping, Mappings, Op, Pages, Queue,
    QueueConfig, Span, Status, Vbd,
};
use el1::heap;
use el1::mem::{self, Granted, ToMap};
use el1::shared::Shared;
use el1::virtio;
use embassy_futures::select::select;
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
/// How long a ring waits for memory before it is looked at again, in milliseconds.
const RETRY_MS: u64 = 20;

/// All disks that are served.
#[derive(Default)]
pub struct Blocks {
    all: Devices,
}

impl Blocks {
    /// Serves a disk.
    pub fn start(&self, dom0: Dom0, start: &BlockStart, mut file: File) -> Result<(), Errno> {
        let new = self.all.open(dom0, "vbd", start.dom, start.vdev)?;
        file.whose = start.dom.0;
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
        let task = Task {
            file,
            disk,
            served: new.0.clone(),
        };
        self.all.serve(new, Device::new(disk, LIMITS), task);
        Ok(())
    }

    /// Ends serving a disk, and waits until nothing of the guest's is held any more.
    pub async fn stop(&self, dom: DomId, vdev: u32) {
        self.all.stop(dom, vdev).await;
    }
}

struct Task {
    file: File,
    disk: Disk,
    served: Rc<Served>,
}

impl Service for Task {
    type Kind = Vbd;

    fn connect(&self, config: &FrontConfig) -> Result<(), Errno> {
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
            let runner = Runner {
                file: self.file.clone(),
                served: self.served.clone(),
                queue,
                mappings: Mappings::new(keep),
                pages: Grants(self.served.dom),
                done: Rc::default(),
            };
            self.served
                .begin(listener.waker(), runner.run(ring, listener));
        }
        Ok(())
    }

    async fn ended(&self) {
        if !self.disk.read_only
            && let Err(e) = self.file.disk.flush(self.file.whose).await
        {
            self.served.say(&format!("cannot flush: {e}"));
        }
    }
}

impl Task {
    fn open(&self, q: &QueueConfig) -> Result<(mem::Mapping, Queue, Listener), Errno> {
        let ring = self.served.map(&q.ring)?;
        let queue =
            Queue::attach(&*ring, q.ring_bytes(), self.disk, LIMITS).ok_or(Errno::EINVAL)?;
        Ok((ring, queue, self.served.bind(q.port)?))
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
            if self.served.draining() {
                self.queue.stop();
            }
            // Without memory nothing is begun, and no request is lost: it waits in its ring.
            let admits = heap::admits();
            let budget = if admits { BUDGET } else { 0 };
            let taken = self
                .queue
                .take_requests(&*ring, &mut self.pages, budget, &mut ops);
            let mut refused = false;
            for op in ops.drain(..) {
                if let Some(op) = self.begin(op, port.waker()) {
                    self.queue.respond(&*ring, op, Status::Error);
                    refused = true;
                }
            }
            if self.queue.publish(&*ring) {
                port.send();
            }
            let mut useful = answered;
            let more = match taken {
                Ok(taken) => {
                    useful |= taken.requests > 0;
                    if taken.notify {
                        port.send();
                    }
                    taken.more
                }
                Err(e) => {
                    self.served.broke(e);
                    false
                }
            };
            if self.served.draining() && self.queue.in_flight() == 0 {
                break;
            }
            if !admits && !self.served.draining() {
                select(port.wait(), self.served.dom0.rt.sleep_ms(RETRY_MS)).await;
            } else if more || refused {
                // What waits for the one that was refused can begin now.
                yield_now().await;
            } else {
                let pause = port.judge(useful);
                if pause > 0 {
                    self.served.dom0.rt.sleep_ms(pause).await;
                }
                port.wait().await;
            }
        }
        self.mappings.close(&mut self.pages);
    }

    /// Starts a request, in a task of its own. Gives it back if its pages cannot be mapped.
    fn begin(&mut self, op: Op, wake: Rc<Notify>) -> Option<Op> {
        let mut spans = Vec::new();
        let transfer = matches!(op.kind(), Kind::Read | Kind::Write | Kind::Barrier);
        if transfer && self.mappings.map(&op, &mut self.pages, &mut spans).is_err() {
            return Some(op);
        }
        let (file, done) = (self.file.clone(), self.done.clone());
        let dom = self.served.dom;
        self.served.dom0.rt.spawn_for(dom, async move {
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
    match op.kind() {
        Kind::Read => transfer(file, virtio::Op::Read, op, spans).await,
        Kind::Write => transfer(file, virtio::Op::Write, op, spans).await,
        Kind::Flush => file.disk.flush(file.whose).await,
        Kind::Barrier => {
            file.disk.flush(file.whose).await?;
            if spans.is_empty() {
                return Ok(());
            }
            transfer(file, virtio::Op::Write, op, spans).await?;
            file.disk.flush(file.whose).await
        }
        Kind::Discard { .. } => file.discard(op.sector(), op.sectors()).await,
    }
}

async fn transfer(
    file: &File,
    direction: virtio::Op,
    op: &Op,
    spans: &[Span],
) -> Result<(), Errno> {
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
