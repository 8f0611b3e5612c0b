// SPDX-License-Identifier: MIT OR Apache-2.0
//! Disks for tasks, and files as places on them.

use crate::exec::Notify;
use crate::fat::{Placement, SECTOR, Sectors};
use crate::rt::Rt;
use crate::sd::{self, Card, Do};
use crate::terminal::Terminal;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use backends::extent::Run;
use backends::fair::Fair;
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::task::{Poll, Waker};
use el1::cpu;
use el1::machine::{SdHost, VirtioMmio};
use el1::sdhci::Registers;
use el1::shared::Shared;
use el1::time;
use el1::virtio::{self, Buffer, Data, Done, Fault, MAX_SEGMENTS, Op};
use guest_abi::Errno;

/// Bytes that are read at a time.
pub const TRANSFER: usize = 512 << 10;

/// What dom0 does with a kind of disk.
trait Device {
    /// What it is, for people.
    fn kind(&self) -> &'static str;
    /// What tells which disk it is.
    fn serial(&self) -> &str;
    /// Its size in sectors of 512 bytes.
    fn sectors(&self) -> u64;
    /// It cannot be written.
    fn read_only(&self) -> bool;
    /// The most sectors of one discard; 0: it cannot.
    fn max_discard(&self) -> u32;
    /// Its requests end without an interrupt when their time is up: it is to be looked at.
    fn is_watched(&self) -> bool;
    /// Starts a request. `EAGAIN` with the data back: too many are in flight.
    fn submit(&mut self, op: Op, sector: u64, data: Data, tag: u64) -> Result<(), (Errno, Data)>;
    /// Its interrupt came up.
    fn acknowledge(&mut self);
    /// The next request that has ended.
    fn complete(&mut self) -> Option<Done>;
    /// Why it is used no more, if it misbehaved.
    fn fault(&self) -> Option<Fault>;
    /// It has not answered for long: it is reset, and all its requests end with errors.
    fn give_up(&mut self);
}

impl Device for virtio::Disk {
    fn kind(&self) -> &'static str {
        "virtio-blk"
    }
    fn serial(&self) -> &str {
        self.serial()
    }
    fn sectors(&self) -> u64 {
        self.sectors()
    }
    fn read_only(&self) -> bool {
        self.read_only()
    }
    fn max_discard(&self) -> u32 {
        self.max_discard()
    }
    fn is_watched(&self) -> bool {
        false
    }
    fn submit(&mut self, op: Op, sector: u64, data: Data, tag: u64) -> Result<(), (Errno, Data)> {
        self.submit(op, sector, data, tag)
    }
    fn acknowledge(&mut self) {
        self.acknowledge();
    }
    fn complete(&mut self) -> Option<Done> {
        self.complete()
    }
    fn fault(&self) -> Option<Fault> {
        self.fault()
    }
    fn give_up(&mut self) {
        self.give_up(Fault::Silent);
    }
}

impl sd::Port for Registers {
    fn read(&self, register: u8) -> u32 {
        self.read(register)
    }
    fn write(&self, register: u8, value: u32) {
        self.write(register, value);
    }
    fn now(&self) -> u64 {
        time::now_ns()
    }
}

/// Calls `f` with each piece of block `block` of a list of pages: what it is in, where there, and
/// where in the block.
fn each_piece(list: &[Shared], block: usize, mut f: impl FnMut(&Shared, usize, usize, usize)) {
    let (mut skip, mut done) = (block * SECTOR, 0);
    for page in list {
        if skip >= page.len() {
            skip -= page.len();
            continue;
        }
        let n = (page.len() - skip).min(SECTOR - done);
        f(page, skip, done, n);
        skip = 0;
        done += n;
        if done == SECTOR {
            break;
        }
    }
}

impl sd::Blocks for Data {
    fn bytes(&self) -> usize {
        self.bytes()
    }
    fn get(&self, block: usize, to: &mut [u8; sd::BLOCK]) {
        match self {
            Self::None => {}
            Self::Own(buffer) => to.copy_from_slice(&buffer[block * SECTOR..][..SECTOR]),
            Self::Shared(list) => each_piece(list, block, |page, from, at, n| {
                page.read(from, &mut to[at..at + n]);
            }),
        }
    }
    fn put(&mut self, block: usize, from: &[u8; sd::BLOCK]) {
        match self {
            Self::None => {}
            Self::Own(buffer) => buffer[block * SECTOR..][..SECTOR].copy_from_slice(from),
            Self::Shared(list) => each_piece(list, block, |page, to, at, n| {
                page.write(to, &from[at..at + n]);
            }),
        }
    }
}

impl Device for Card<Registers, Data> {
    fn kind(&self) -> &'static str {
        "SD card"
    }
    /// A card of the machine's own slot is where the guests are.
    fn serial(&self) -> &str {
        "volume"
    }
    fn sectors(&self) -> u64 {
        self.blocks()
    }
    fn read_only(&self) -> bool {
        self.read_only()
    }
    fn max_discard(&self) -> u32 {
        0
    }
    fn is_watched(&self) -> bool {
        self.busy()
    }
    fn submit(&mut self, op: Op, sector: u64, data: Data, tag: u64) -> Result<(), (Errno, Data)> {
        let what = match op {
            Op::Read => Do::Read,
            Op::Write => Do::Write,
            Op::Flush => Do::Flush,
            Op::Discard(_) => return Err((Errno::EOPNOTSUPP, data)),
        };
        self.submit(what, sector, data, tag)
    }
    fn acknowledge(&mut self) {}
    fn complete(&mut self) -> Option<Done> {
        self.advance();
        let (tag, data, result) = self.ended()?;
        Some(Done { tag, data, result })
    }
    /// Its errors are those of requests.
    fn fault(&self) -> Option<Fault> {
        None
    }
    /// It ends requests itself when their time is up.
    fn give_up(&mut self) {}
}

#[derive(Default)]
struct Slot {
    waker: Option<Waker>,
    done: Option<Done>,
}

/// Somebody who waits for a turn at the disk.
#[derive(Default)]
struct Waiter {
    waker: RefCell<Option<Waker>>,
    /// It is its turn.
    granted: Cell<bool>,
    /// Nobody waits any more.
    gone: Cell<bool>,
}

/// A disk that tasks share.
pub struct Disk {
    /// Who waits for a turn, and what it will cost.
    turns: RefCell<Fair<u16, (Rc<Waiter>, u64)>>,
    /// Turns that were given and are not used yet.
    given: Cell<usize>,
    /// Requests that the device has, by their tags, and since when.
    in_flight: RefCell<BTreeMap<u64, u64>>,
    device: RefCell<Box<dyn Device>>,
    requests: RefCell<BTreeMap<u64, Slot>>,
    next: Cell<u64>,
    started: Notify,
    ended: Notify,
    terminal: Rc<Terminal>,
    /// It was said why it is used no more.
    said: Cell<bool>,
}

/// How often a request that is watched is looked at, in ms.
const WATCH: u64 = 500;
/// Requests that a disk has at a time. What comes beyond waits, and has its turn by whose it is: the first of each
/// domain's that had least.
const DEPTH: usize = 32;
/// How long a disk may take for a request, in ns, before it is given up.
const HUNG: u64 = 60_000_000_000;
/// How often it is looked whether one has taken so long, in ms.
const LOOK: u64 = 1000;

/// What a request costs whose it is, in units of 4 KiB that are moved.
fn cost(op: Op, data: &Data) -> u64 {
    let own = match op {
        Op::Read | Op::Write => 2,
        Op::Discard(_) => 8,
        Op::Flush => 16,
    };
    own + data.bytes() as u64 / 4096
}

impl Disk {
    /// The disk behind a transport, if there is one.
    pub fn virtio(rt: &'static Rt, terminal: &Rc<Terminal>, at: &VirtioMmio) -> Option<Rc<Self>> {
        match virtio::Disk::open(at) {
            Ok(disk) => {
                let disk = Self::open(rt, terminal, at.intid, Box::new(disk?));
                rt.spawn(disk.clone().watch(rt));
                Some(disk)
            }
            Err(e) => {
                terminal.write(&format!("dom0: the disk at {:#x} {e}\n", at.base));
                None
            }
        }
    }

    /// The card behind a controller.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn card(
        rt: &'static Rt,
        terminal: &Rc<Terminal>,
        at: &SdHost,
    ) -> Result<Rc<Self>, &'static str> {
        let registers = Registers::open(at).ok_or("the controller is in use")?;
        registers.enable_interrupt();
        let disk = Self::open(rt, terminal, at.intid, Box::new(Card::start(registers)?));
        let watched = disk.clone();
        rt.spawn(async move {
            let mut seen = 0;
            loop {
                watched.started.changed(&mut seen).await;
                // A flush may have ended at once.
                watched.collect();
                while watched.device.borrow().is_watched() {
                    rt.sleep_ms(WATCH).await;
                    watched.collect();
                }
            }
        });
        Ok(disk)
    }

    fn open(rt: &Rt, terminal: &Rc<Terminal>, intid: u32, device: Box<dyn Device>) -> Rc<Self> {
        let disk = Rc::new(Self {
            turns: RefCell::default(),
            given: Cell::default(),
            in_flight: RefCell::default(),
            device: RefCell::new(device),
            requests: RefCell::default(),
            next: Cell::new(1),
            started: Notify::default(),
            ended: Notify::default(),
            terminal: terminal.clone(),
            said: Cell::default(),
        });
        let handle = disk.clone();
        rt.on_interrupt(intid, move || {
            handle.device.borrow_mut().acknowledge();
            handle.collect();
        });
        disk
    }

    /// What it is, for people.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.device.borrow().kind()
    }
    /// What tells which disk it is.
    #[must_use]
    pub fn serial(&self) -> String {
        self.device.borrow().serial().into()
    }
    /// Its size in sectors of 512 bytes.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.device.borrow().sectors()
    }
    /// It cannot be written.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.device.borrow().read_only()
    }
    /// The most sectors of one discard; 0: it cannot.
    #[must_use]
    pub fn max_discard(&self) -> u32 {
        self.device.borrow().max_discard()
    }

    /// Sleeps until an interrupt. The disk's own ends it, and stays for the loop under the tasks.
    /// What is watched is looked at without a pause: it knows when its time is up.
    fn pause(&self) {
        if !self.device.borrow().is_watched() {
            cpu::idle();
            self.device.borrow_mut().acknowledge();
        }
    }

    /// Gives it up when it does not answer.
    async fn watch(self: Rc<Self>, rt: &'static Rt) {
        let mut seen = 0;
        loop {
            self.started.changed(&mut seen).await;
            loop {
                rt.sleep_ms(LOOK).await;
                let first = self.in_flight.borrow().values().min().copied();
                let Some(first) = first else { break };
                if time::now_ns().saturating_sub(first) > HUNG {
                    self.device.borrow_mut().give_up();
                    self.collect();
                }
            }
        }
    }

    /// Gives turns, as many as the device is to have requests.
    fn admit(&self) {
        while self.given.get() + self.in_flight.borrow().len() < DEPTH {
            let mut turns = self.turns.borrow_mut();
            let Some((whose, (waiter, cost))) = turns.pop() else {
                return;
            };
            if waiter.gone.get() {
                continue;
            }
            turns.charge(whose, cost);
            drop(turns);
            self.given.set(self.given.get() + 1);
            waiter.granted.set(true);
            if let Some(waker) = waiter.waker.take() {
                waker.wake();
            }
        }
    }

    /// Takes what has ended.
    fn collect(&self) {
        let mut any = false;
        loop {
            let done = self.device.borrow_mut().complete();
            let Some(done) = done else { break };
            any = true;
            self.in_flight.borrow_mut().remove(&done.tag);
            // Nobody waits any more if the task was dropped; the data go now, not earlier.
            if let Some(slot) = self.requests.borrow_mut().get_mut(&done.tag) {
                if let Some(waker) = slot.waker.take() {
                    waker.wake();
                }
                slot.done = Some(done);
            }
        }
        if any {
            self.admit();
            self.ended.notify();
        }
        if !self.said.get()
            && let Some(fault) = self.device.borrow().fault()
        {
            self.said.set(true);
            // Whoever waits for room is to see that there is none any more.
            self.ended.notify();
            let text = format!(
                "dom0: the disk {} {fault}; its requests fail\n",
                self.serial()
            );
            self.terminal.write(&text);
        }
    }

    /// Makes a request for somebody ([`crate::exec::OWN`], or a domain) and waits for its end. The data come back however
    /// it ended.
    pub async fn request(
        &self,
        whose: u16,
        op: Op,
        sector: u64,
        mut data: Data,
    ) -> (Data, Result<(), Errno>) {
        let tag = self.next.get();
        self.next.set(tag + 1);
        let turn = Turn {
            disk: self,
            waiter: Rc::default(),
        };
        let waits = (turn.waiter.clone(), cost(op, &data));
        self.turns.borrow_mut().push(whose, waits);
        self.admit();
        core::future::poll_fn(|cx| {
            if turn.waiter.granted.get() {
                return Poll::Ready(());
            }
            *turn.waiter.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        loop {
            let mut seen = self.ended.seen();
            self.requests.borrow_mut().insert(tag, Slot::default());
            let submitted = self.device.borrow_mut().submit(op, sector, data, tag);
            match submitted {
                Ok(()) => {
                    self.in_flight.borrow_mut().insert(tag, time::now_ns());
                    break;
                }
                Err((e, back)) => {
                    self.requests.borrow_mut().remove(&tag);
                    if e != Errno::EAGAIN {
                        return (back, Err(e));
                    }
                    data = back;
                    self.ended.changed(&mut seen).await;
                }
            }
        }
        drop(turn);
        self.started.notify();
        let _forget = Forget { disk: self, tag };
        core::future::poll_fn(|cx| {
            let mut requests = self.requests.borrow_mut();
            let Some(slot) = requests.get_mut(&tag) else {
                return Poll::Ready((Data::None, Err(Errno::EIO)));
            };
            if let Some(done) = slot.done.take() {
                return Poll::Ready((done.data, done.result));
            }
            slot.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Has all that was written on stable storage. A disk without a cache has nothing to do.
    pub async fn flush(&self, whose: u16) -> Result<(), Errno> {
        match self.request(whose, Op::Flush, 0, Data::None).await.1 {
            Err(Errno::EOPNOTSUPP | Errno::EROFS) => Ok(()),
            r => r,
        }
    }
}

/// A turn at the disk, or the wait for one. It ends when the device has the request, or when there is none.
struct Turn<'a> {
    disk: &'a Disk,
    waiter: Rc<Waiter>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.waiter.gone.set(true);
        if self.waiter.granted.get() {
            self.disk.given.set(self.disk.given.get() - 1);
            self.disk.admit();
        }
    }
}

struct Forget<'a> {
    disk: &'a Disk,
    tag: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.disk.requests.borrow_mut().remove(&self.tag);
    }
}

/// For folders and the FAT: the program waits, asleep.
impl Sectors for Rc<Disk> {
    fn read(&self, sector: u64, out: &mut [u8]) -> Result<(), Errno> {
        let buffer = Buffer::new(out.len()).ok_or(Errno::ENOMEM)?;
        let tag = self.next.get();
        self.next.set(tag + 1);
        let mut data = Data::Own(buffer);
        self.requests.borrow_mut().insert(tag, Slot::default());
        let _forget = Forget { disk: self, tag };
        loop {
            let submitted = self.device.borrow_mut().submit(Op::Read, sector, data, tag);
            match submitted {
                Ok(()) => break,
                Err((Errno::EAGAIN, back)) => {
                    data = back;
                    self.pause();
                    self.collect();
                }
                Err((e, _)) => return Err(e),
            }
        }
        loop {
            self.collect();
            let done = self
                .requests
                .borrow_mut()
                .get_mut(&tag)
                .and_then(|s| s.done.take());
            if let Some(done) = done {
                done.result?;
                let Data::Own(buffer) = done.data else {
                    return Err(Errno::EIO);
                };
                out.copy_from_slice(&buffer);
                return Ok(());
            }
            self.pause();
        }
    }
    fn count(&self) -> u64 {
        self.sectors()
    }
}

/// A file, or a whole disk.
#[derive(Clone)]
pub struct File {
    /// The disk that it is on.
    pub disk: Rc<Disk>,
    /// Where it is there.
    pub place: Rc<Placement>,
    /// For whom it is read and written.
    pub whose: u16,
}

impl File {
    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.place.size
    }

    /// Splits a run of the file's sectors into runs on the disk.
    pub fn runs(&self, sector: u64, count: u64) -> Result<Vec<Run>, Errno> {
        let runs = self.place.map.runs(sector, count, u64::MAX);
        Ok(runs.map_err(|_| Errno::EIO)?.collect())
    }

    /// Reads whole sectors into a fresh buffer, at most [`TRANSFER`] bytes.
    pub async fn read_sectors(&self, sector: u64, count: u64) -> Result<Buffer, Errno> {
        let mut all = Buffer::new(count as usize * SECTOR).ok_or(Errno::ENOMEM)?;
        let runs = self.runs(sector, count)?;
        if let [run] = runs[..] {
            let request = self
                .disk
                .request(self.whose, Op::Read, run.lba, Data::Own(all));
            return match request.await {
                (Data::Own(all), Ok(())) => Ok(all),
                (_, Err(e)) => Err(e),
                _ => Err(Errno::EIO),
            };
        }
        let mut at = 0;
        for run in runs {
            let part = Buffer::new(run.sectors as usize * SECTOR).ok_or(Errno::ENOMEM)?;
            let request = self
                .disk
                .request(self.whose, Op::Read, run.lba, Data::Own(part));
            let (data, result) = request.await;
            result?;
            let Data::Own(part) = data else {
                return Err(Errno::EIO);
            };
            all[at..at + part.len()].copy_from_slice(&part);
            at += part.len();
        }
        Ok(all)
    }

    /// Writes bytes from a sector on, at most [`TRANSFER`]; the last sector is filled with zeros.
    pub async fn write_sectors(&self, sector: u64, bytes: &[u8]) -> Result<(), Errno> {
        let mut rest = bytes;
        for run in self.runs(sector, bytes.len().div_ceil(SECTOR) as u64)? {
            let len = run.sectors as usize * SECTOR;
            let mut part = Buffer::new(len).ok_or(Errno::ENOMEM)?;
            let (now, later) = rest.split_at(len.min(rest.len()));
            part[..now.len()].copy_from_slice(now);
            rest = later;
            self.disk
                .request(self.whose, Op::Write, run.lba, Data::Own(part))
                .await
                .1?;
        }
        Ok(())
    }

    /// Reads up to `out.len()` bytes from a byte offset on; fewer at the end of the file.
    pub async fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize, Errno> {
        let len = (out.len() as u64).min(self.size().saturating_sub(offset)) as usize;
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let skip = (at % SECTOR as u64) as usize;
            let n = (len - done).min(TRANSFER - skip);
            let sectors = (skip + n).div_ceil(SECTOR) as u64;
            let buffer = self.read_sectors(at / SECTOR as u64, sectors).await?;
            out[done..done + n].copy_from_slice(&buffer[skip..skip + n]);
            done += n;
        }
        Ok(len)
    }
}

impl File {
    /// Transfers between whole sectors of the file and other domains' pages, straight.
    pub async fn transfer(&self, op: Op, sector: u64, pages: &[Shared]) -> Result<(), Errno> {
        let bytes: usize = pages.iter().map(Shared::len).sum();
        let mut pages = pages.iter().copied();
        let mut page = pages.next();
        let mut parts = Vec::new();
        for run in self.runs(sector, (bytes / SECTOR) as u64)? {
            let (mut lba, mut left) = (run.lba, run.sectors as usize * SECTOR);
            while left > 0 {
                let mut list = Vec::new();
                let mut n = 0;
                while n < left
                    && list.len() < MAX_SEGMENTS
                    && let Some(p) = page
                {
                    let part = p.part(0, left - n);
                    n += part.len();
                    list.push(part);
                    let rest = p.part(part.len(), usize::MAX);
                    page = if rest.len() > 0 {
                        Some(rest)
                    } else {
                        pages.next()
                    };
                }
                if n == 0 {
                    return Err(Errno::EINVAL);
                }
                let data = Data::Shared(list);
                parts.push(self.disk.request(self.whose, op, lba, data));
                lba += (n / SECTOR) as u64;
                left -= n;
            }
        }
        all(parts).await
    }

    /// Says that sectors of the file are of no use any more.
    pub async fn discard(&self, sector: u64, count: u64) -> Result<(), Errno> {
        let most = u64::from(self.disk.max_discard());
        let mut runs = self
            .place
            .map
            .runs(sector, count, most)
            .map_err(|_| Errno::EIO)?;
        // Few at a time: a whole disk has as many as its file has extents.
        loop {
            let some = runs.by_ref().take(8).map(|run| {
                let op = Op::Discard(run.sectors as u32);
                self.disk.request(self.whose, op, run.lba, Data::None)
            });
            let some: Vec<_> = some.collect();
            if some.is_empty() {
                return Ok(());
            }
            all(some).await?;
        }
    }
}

/// Waits for requests that run side by side; the first error.
async fn all<F: Future<Output = (Data, Result<(), Errno>)>>(list: Vec<F>) -> Result<(), Errno> {
    let mut list: Vec<_> = list.into_iter().map(|f| Some(Box::pin(f))).collect();
    let mut result = Ok(());
    core::future::poll_fn(|cx| {
        let mut waiting = false;
        for slot in &mut list {
            let Some(f) = slot else { continue };
            match f.as_mut().poll(cx) {
                Poll::Ready((_, r)) => {
                    *slot = None;
                    result = result.and(r);
                }
                Poll::Pending => waiting = true,
            }
        }
        if waiting {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
    .await;
    result
}
