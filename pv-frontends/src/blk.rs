// SPDX-License-Identifier: MIT OR Apache-2.0
//! Disks: the front end of `io/blkif.h`.
//!
//! ```
//! use pv_frontends::{Error, Platform, blk::{Config, Disk}, xenbus, xenstore::Xenstore};
//!
//! fn first_sector<P: Platform>(xs: &Xenstore<P>) -> Result<[u8; 512], Error> {
//!     let deadline = xs.platform().now() + 10_000_000_000;
//!     let store = xs.by(deadline);
//!     let ids = store.run(xenbus::devices(&store.access(), "vbd"))?;
//!     let id = *ids.first().ok_or(Error::NoDevice)?;
//!     let disk = store.run(Disk::open(store.access(), id, Config::default()))?;
//!     let mut sector = [0; 512];
//!     disk.by(deadline).read(0, &mut sector)?;
//!     Ok(sector)
//! }
//! ```
//!
//! Sectors are of 512 bytes throughout. Three ways to use a disk:
//!
//! * [`Disk::by`] blocks until a deadline: [`read`](Blocking::read), [`write`](Blocking::write),
//!   [`flush`](Blocking::flush), [`discard`](Blocking::discard); the futures of the same names are the disk's own. Any
//!   length: it is cut into as many requests as needed, which are under way together.
//! * [`Disk::submit_read`] and its like start one request each; [`Disk::kick`] shows all of them to the back end
//!   at once; each [`Request`] is a future, which can be asked ([`Request::poll_done`]) too.
//! * `Stream` reads and writes bytes, with the traits of `embedded-io` (feature), and `Disk` is the
//!   `BlockDevice` of `embedded-sdmmc` (feature).
//!
//! # How data go
//!
//! Through pages of the disk's own ([`Config::pool_pages`]), which are granted once for as long as the connection
//! lasts (persistent grants, where the back end knows them). So the back end never sees other memory of the kernel's,
//! and a request that is given up leaves nobody's buffer in its hands. The price is a copy.
//!
//! # When the back end fails
//!
//! When it closes, vanishes or breaks the protocol, all requests under way end with an error, and so do new ones;
//! [`Disk::reconnect`] begins anew, with a new ring and new pages. Whether a write that failed so was done is not
//! known: write again. A request that a deadline cut short keeps its pages until the back end answers.

mod queue;
#[cfg(any(feature = "embedded-io", feature = "embedded-sdmmc"))]
mod traits;

use crate::platform::NOBODY;
use crate::xenbus::Frontend;
use crate::xenstore::Access;
use crate::{Error, Platform, block_on};
use alloc::collections::VecDeque;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};
use core::cell::{Cell, RefCell};
use core::future::{Future, poll_fn};
use core::mem::take;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use guest_abi::Port;
use guest_abi::io::blkif::{
    self, MAX_SEGMENTS_PER_REQUEST, SECTOR_SIZE, SEGS_PER_INDIRECT_FRAME, VDISK_CDROM,
    VDISK_READONLY, VDISK_REMOVABLE,
};
use guest_abi::io::xenbus::State;
use queue::{Pool, Queue, What};

#[cfg(feature = "embedded-io")]
pub use traits::Stream;

/// How much a disk uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Rings, each with its event channel; at most what the back end offers. More than one is of use where a
    /// back end serves each on a CPU of its own.
    pub queues: u16,
    /// Binary logarithm of the pages of a ring; at most what the back end offers. A ring of one page holds 32
    /// requests.
    pub ring_page_order: u8,
    /// Most pages in one request, at most 512. More than 11 need a back end with indirect requests.
    pub segments: u16,
    /// Pages that data go through, for all requests under way together.
    pub pool_pages: u16,
}

impl Default for Config {
    /// One ring of a page, requests of 128 KiB, 256 KiB under way.
    fn default() -> Self {
        Self {
            queues: 1,
            ring_page_order: 0,
            segments: 32,
            pool_pages: 66,
        }
    }
}

/// What a disk is and can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its size in sectors of 512 bytes.
    pub sectors: u64,
    /// What requests must be a multiple of, and begin at a multiple of, in bytes; 512 to 4096.
    pub sector_size: u32,
    /// What is best read and written at once, in bytes.
    pub physical_sector_size: u32,
    /// Writes and discards fail.
    pub read_only: bool,
    /// It shows as a CD-ROM.
    pub cdrom: bool,
    /// It can be taken out.
    pub removable: bool,
    /// It makes durable what was written when it is told to; where it does not, [`Disk::flush`] fails.
    pub flush: bool,
    /// It forgets contents.
    pub discard: Option<Discard>,
    /// Pages in one request at most.
    pub segments: u16,
    /// Rings.
    pub queues: u16,
    /// The back end keeps pages mapped between requests.
    pub persistent: bool,
}

/// How a disk forgets contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discard {
    /// Unit, in bytes.
    pub granularity: u32,
    /// Offset of the first unit, in bytes.
    pub alignment: u32,
    /// It can make contents unreadable for good.
    pub secure: bool,
}

/// A disk that is connected.
pub struct Disk<'x, P: Platform> {
    config: Config,
    front: RefCell<Frontend<'x, P>>,
    info: Cell<Info>,
    link: RefCell<Link<'x, P>>,
    #[cfg_attr(
        not(any(feature = "embedded-io", feature = "embedded-sdmmc")),
        allow(dead_code)
    )]
    timeout: Cell<u64>,
}

/// A disk, blocking until a deadline. From [`Disk::by`].
pub struct Blocking<'d, 'x, P: Platform> {
    disk: &'d Disk<'x, P>,
    deadline: u64,
}

impl<P: Platform> core::fmt::Debug for Disk<'_, P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Disk")
            .field("info", &self.info.get())
            .finish_non_exhaustive()
    }
}

struct Link<'x, P: Platform> {
    queues: Vec<Queue<'x, P>>,
    pool: Pool<'x, P>,
    failed: Option<Error>,
    /// Who waits for room.
    waiting: Vec<Waker>,
    woken: Vec<Waker>,
}

/// A request under way, a future. Dropped before it is done, it goes on without anybody to take its result.
#[must_use = "it tells whether it was done"]
pub struct Request<'d, 'x, 'b, P: Platform> {
    disk: &'d Disk<'x, P>,
    queue: usize,
    id: u64,
    buffer: Option<&'b mut [u8]>,
    done: bool,
}

impl<P: Platform> core::fmt::Debug for Request<'_, '_, '_, P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Request")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl<'x, P: Platform> Disk<'x, P> {
    /// Connects with a disk (`device/vbd/ID`; [`xenbus::devices`](crate::xenbus::devices) lists them).
    ///
    /// # Errors
    /// [`Error::NoDevice`]; [`Error::BadValue`] when the back end describes no disk; [`Error::Gone`] when it closes
    /// meanwhile; [`Error::NoMemory`]. It waits for the back end as long as it takes: give it a deadline.
    pub async fn open(store: Access<'x, P>, id: u32, config: Config) -> Result<Self, Error> {
        let mut front = Frontend::open(store, "vbd", id).await?;
        let (link, info) = connect(&mut front, &config).await?;
        Ok(Self {
            config,
            front: RefCell::new(front),
            info: Cell::new(info),
            link: RefCell::new(link),
            timeout: Cell::new(30_000_000_000),
        })
    }

    /// Begins anew after the back end failed or restarted. What can be done may have changed ([`Disk::info`]).
    ///
    /// # Errors
    /// As [`Disk::open`].
    pub async fn reconnect(&mut self) -> Result<(), Error> {
        self.link.get_mut().fail(Error::Gone);
        let (link, info) = connect(self.front.get_mut(), &self.config).await?;
        self.link = RefCell::new(link);
        self.info.set(info);
        Ok(())
    }

    /// Connects anew after the domain was restored or moved ([`shutdown`](crate::shutdown) says what comes before).
    /// Requests that were under way end with [`Error::Gone`]: make them again.
    ///
    /// # Errors
    /// As [`Disk::open`].
    pub async fn resume(&mut self) -> Result<(), Error> {
        let link = self.link.get_mut();
        link.queues.iter().for_each(Queue::lost);
        link.fail(Error::Gone);
        self.front.get_mut().resume().await?;
        self.reconnect().await
    }

    /// Ends the connection in good order: waits until the back end has let go of everything. What is under way is lost;
    /// flush before.
    ///
    /// # Errors
    /// xenstore's. It waits for the back end as long as it takes: give it a deadline. When that cuts it short, what
    /// the back end still has mapped is kept from other use.
    pub async fn close(self) -> Result<(), Error> {
        self.front.into_inner().close().await
    }

    /// What the disk is and can do.
    pub fn info(&self) -> Info {
        self.info.get()
    }

    /// Its event channels, one for each ring. When one fires, [`Disk::handle_event`] is to be called; blocking calls
    /// and the polls of futures do so by themselves.
    pub fn ports(&self) -> Vec<Port> {
        self.link.borrow().queues.iter().map(Queue::port).collect()
    }

    /// Why the disk does not work any more, if so.
    pub fn failed(&self) -> Option<Error> {
        self.link.borrow().failed
    }

    /// Takes what the back end answered, and wakes whoever waited for it.
    pub fn handle_event(&self) {
        let mut cx = Context::from_waker(NOBODY);
        self.poll(&mut cx);
    }

    fn poll(&self, cx: &mut Context<'_>) {
        let gone = Frontend::is_gone(&self.front, cx);
        let woken = {
            let mut link = self.link.borrow_mut();
            link.take_responses();
            if gone && link.failed.is_none() {
                link.fail(Error::Gone);
            }
            take(&mut link.woken)
        };
        woken.into_iter().for_each(Waker::wake);
    }

    /// Looks again how large the disk is, which may change while it is connected.
    ///
    /// # Errors
    /// xenstore's; [`Error::BadValue`].
    pub async fn refresh(&self) -> Result<Info, Error> {
        let (store, path) = {
            let front = self.front.borrow();
            (front.store(), format!("{}/sectors", front.backend()))
        };
        let sectors = store.read_number(&path).await?;
        let info = Info {
            sectors: check_sectors(sectors)?,
            ..self.info.get()
        };
        self.info.set(info);
        Ok(info)
    }

    /// Most bytes of one request.
    pub fn max_bytes(&self) -> usize {
        usize::from(self.info.get().segments) * guest_abi::PAGE_SIZE
    }

    fn check(&self, sector: u64, sectors: u64, write: bool) -> Result<(), Error> {
        let info = self.info.get();
        let unit = u64::from(info.sector_size / SECTOR_SIZE as u32).max(1);
        let inside = sector
            .checked_add(sectors)
            .is_some_and(|end| end <= info.sectors);
        if !inside || !sector.is_multiple_of(unit) || !sectors.is_multiple_of(unit) {
            return Err(Error::Invalid);
        }
        if write && info.read_only {
            return Err(Error::Unsupported);
        }
        Ok(())
    }

    fn check_buffer(&self, sector: u64, bytes: usize, write: bool) -> Result<(), Error> {
        if !bytes.is_multiple_of(SECTOR_SIZE) {
            return Err(Error::Invalid);
        }
        self.check(sector, (bytes / SECTOR_SIZE) as u64, write)
    }

    fn submit<'b>(
        &self,
        sector: u64,
        what: What<'_>,
        buffer: Option<&'b mut [u8]>,
    ) -> Result<Request<'_, 'x, 'b, P>, Error> {
        let mut link = self.link.borrow_mut();
        if let Some(e) = link.failed {
            return Err(e);
        }
        let (queue, id) = link.submit(sector, what)?;
        Ok(Request {
            disk: self,
            queue,
            id,
            buffer,
            done: false,
        })
    }

    /// Starts to read: at most [`Disk::max_bytes`] into `to`, which is filled when the request is done. The back end
    /// sees it with the next [`Disk::kick`] or poll.
    ///
    /// # Errors
    /// [`Error::Busy`] when the ring or the pages are used up: poll those under way first. [`Error::Invalid`] for a length
    /// or place that is not the disk's. Why the disk failed.
    pub fn submit_read<'b>(
        &self,
        sector: u64,
        to: &'b mut [u8],
    ) -> Result<Request<'_, 'x, 'b, P>, Error> {
        self.check_buffer(sector, to.len(), false)?;
        self.submit(sector, What::Read(to.len()), Some(to))
    }

    /// Starts to write: at most [`Disk::max_bytes`]. `from` is free again at once.
    ///
    /// # Errors
    /// As [`Disk::submit_read`]; [`Error::Unsupported`] for a disk that is read-only.
    pub fn submit_write(
        &self,
        sector: u64,
        from: &[u8],
    ) -> Result<Request<'_, 'x, 'static, P>, Error> {
        self.check_buffer(sector, from.len(), true)?;
        self.submit(sector, What::Write(from), None)
    }

    /// Starts to make durable what was written: every write that was done before.
    ///
    /// # Errors
    /// As [`Disk::submit_read`]; [`Error::Unsupported`] where the disk does not offer it.
    pub fn submit_flush(&self) -> Result<Request<'_, 'x, 'static, P>, Error> {
        if !self.info.get().flush {
            return Err(Error::Unsupported);
        }
        self.submit(0, What::Flush, None)
    }

    /// Starts to have the disk forget sectors; `secure`: so that they cannot be read any more.
    ///
    /// # Errors
    /// As [`Disk::submit_read`]; [`Error::Unsupported`] where the disk does not offer it.
    pub fn submit_discard(
        &self,
        sector: u64,
        sectors: u64,
        secure: bool,
    ) -> Result<Request<'_, 'x, 'static, P>, Error> {
        let offered = self.info.get().discard;
        if !offered.is_some_and(|d| d.secure || !secure) {
            return Err(Error::Unsupported);
        }
        self.check(sector, sectors, true)?;
        self.submit(sector, What::Discard { sectors, secure }, None)
    }

    /// Shows the back end what was submitted, with one event for all if it wants one.
    pub fn kick(&self) {
        self.link
            .borrow_mut()
            .queues
            .iter_mut()
            .for_each(Queue::kick);
    }

    /// Waits until a request of so many bytes can be submitted, with the help of what is under way.
    async fn room(
        &self,
        bytes: usize,
        under_way: &mut VecDeque<Request<'_, 'x, '_, P>>,
    ) -> Result<(), Error> {
        loop {
            {
                let link = self.link.borrow();
                if let Some(e) = link.failed {
                    return Err(e);
                }
                if link.has_room(bytes) {
                    return Ok(());
                }
            }
            match under_way.pop_front() {
                Some(oldest) => oldest.await?,
                // Others use it all.
                None => {
                    let mut waited = false;
                    poll_fn(|cx| {
                        self.kick();
                        self.poll(cx);
                        if core::mem::replace(&mut waited, true) {
                            return Poll::Ready(());
                        }
                        self.link.borrow_mut().waiting.push(cx.waker().clone());
                        Poll::Pending
                    })
                    .await;
                }
            }
        }
    }

    async fn all_done(under_way: VecDeque<Request<'_, 'x, '_, P>>) -> Result<(), Error> {
        for request in under_way {
            request.await?;
        }
        Ok(())
    }

    /// Reads any number of sectors.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a length or place that is not the disk's; [`Error::Failed`] when the disk reports an
    /// error; why the back end failed.
    pub async fn read(&self, sector: u64, to: &mut [u8]) -> Result<(), Error> {
        self.check_buffer(sector, to.len(), false)?;
        let mut under_way = VecDeque::new();
        let mut at = sector;
        for part in to.chunks_mut(self.max_bytes()) {
            let next = at + (part.len() / SECTOR_SIZE) as u64;
            self.room(part.len(), &mut under_way).await?;
            under_way.push_back(self.submit_read(at, part)?);
            at = next;
        }
        Self::all_done(under_way).await
    }

    /// Writes any number of sectors. They are durable after [`Disk::flush`].
    ///
    /// # Errors
    /// As [`Disk::read`]; [`Error::Unsupported`] for a disk that is read-only.
    pub async fn write(&self, sector: u64, from: &[u8]) -> Result<(), Error> {
        self.check_buffer(sector, from.len(), true)?;
        let mut under_way = VecDeque::new();
        let mut at = sector;
        for part in from.chunks(self.max_bytes()) {
            self.room(part.len(), &mut under_way).await?;
            under_way.push_back(self.submit_write(at, part)?);
            at += (part.len() / SECTOR_SIZE) as u64;
        }
        Self::all_done(under_way).await
    }

    /// Makes durable every write that was done before.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the disk does not offer it; as [`Disk::read`].
    pub async fn flush(&self) -> Result<(), Error> {
        self.room(0, &mut VecDeque::new()).await?;
        self.submit_flush()?.await
    }

    /// Has the disk forget sectors; `secure`: so that they cannot be read any more.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the disk does not offer it; as [`Disk::write`].
    pub async fn discard(&self, sector: u64, sectors: u64, secure: bool) -> Result<(), Error> {
        self.room(0, &mut VecDeque::new()).await?;
        self.submit_discard(sector, sectors, secure)?.await
    }

    /// The disk, blocking until `deadline` ([`Platform::now`]).
    pub fn by(&self, deadline: u64) -> Blocking<'_, 'x, P> {
        Blocking {
            disk: self,
            deadline,
        }
    }

    fn platform(&self) -> &'x P {
        self.front.borrow().store().xenstore().platform()
    }
}

impl<P: Platform> Blocking<'_, '_, P> {
    fn run<T>(&self, future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        block_on(self.disk.platform(), self.deadline, future)
    }

    /// [`Disk::read`].
    ///
    /// # Errors
    /// [`Error::TimedOut`]; as there.
    pub fn read(&self, sector: u64, to: &mut [u8]) -> Result<(), Error> {
        self.run(self.disk.read(sector, to))
    }

    /// [`Disk::write`].
    ///
    /// # Errors
    /// [`Error::TimedOut`]; as there.
    pub fn write(&self, sector: u64, from: &[u8]) -> Result<(), Error> {
        self.run(self.disk.write(sector, from))
    }

    /// [`Disk::flush`].
    ///
    /// # Errors
    /// [`Error::TimedOut`]; as there.
    pub fn flush(&self) -> Result<(), Error> {
        self.run(self.disk.flush())
    }

    /// [`Disk::discard`].
    ///
    /// # Errors
    /// [`Error::TimedOut`]; as there.
    pub fn discard(&self, sector: u64, sectors: u64, secure: bool) -> Result<(), Error> {
        self.run(self.disk.discard(sector, sectors, secure))
    }
}

impl<P: Platform> Request<'_, '_, '_, P> {
    /// Whether it is done, and how it went. Whoever waits is woken. Not to be called again when it was done.
    pub fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.disk.kick();
        self.disk.poll(cx);
        let mut link = self.disk.link.borrow_mut();
        let buffer = self.buffer.as_deref_mut();
        let result = link.result(self.queue, self.id, buffer, cx.waker());
        self.done = result.is_ready();
        result
    }
}

impl<P: Platform> Future for Request<'_, '_, '_, P> {
    type Output = Result<(), Error>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_done(cx)
    }
}

impl<P: Platform> Drop for Request<'_, '_, '_, P> {
    fn drop(&mut self) {
        if !self.done {
            self.disk.link.borrow_mut().abandon(self.queue, self.id);
        }
    }
}

fn check_sectors(sectors: u64) -> Result<u64, Error> {
    if sectors > u64::MAX / SECTOR_SIZE as u64 {
        return Err(Error::BadValue);
    }
    Ok(sectors)
}

/// Makes rings and pool, tells the back end, and waits until it has them.
async fn connect<'x, P: Platform>(
    front: &mut Frontend<'x, P>,
    config: &Config,
) -> Result<(Link<'x, P>, Info), Error> {
    let xs = front.store().xenstore();
    xs.sweep();
    front.restart().await?;
    let order = front.offer("max-ring-page-order").await?.unwrap_or(0);
    let order = config.ring_page_order.min(order).min(4);
    let queues = front.offer("multi-queue-max-queues").await?.unwrap_or(1);
    let queues = config.queues.min(queues).max(1);
    let to = front.backend_dom();

    let mut keys = vec![
        ("protocol".into(), "arm-abi".into()),
        ("feature-persistent".into(), "1".into()),
    ];
    if order > 0 {
        keys.push(("ring-page-order".into(), order.to_string()));
    }
    if queues > 1 {
        keys.push(("multi-queue-num-queues".into(), queues.to_string()));
    }
    let mut rings = Vec::new();
    for n in 0..queues {
        let queue = Queue::new(xs, to, 1 << order)?;
        let at = if queues == 1 {
            String::new()
        } else {
            format!("queue-{n}/")
        };
        for (i, gref) in queue.grefs().enumerate() {
            let number = if order == 0 {
                String::new()
            } else {
                i.to_string()
            };
            keys.push((format!("{at}ring-ref{number}"), gref.to_string()));
        }
        keys.push((format!("{at}event-channel"), queue.port().to_string()));
        rings.push(queue);
    }
    let pool = Pool::new(xs, to, config.pool_pages)?;
    front
        .forget(|key| {
            matches!(key, "ring-page-order" | "multi-queue-num-queues") || key.starts_with("queue-")
        })
        .await?;
    front.switch(State::Initialised, &keys).await?;
    front.connected().await?;
    let info = info(front, config, queues).await?;
    front.switch(State::Connected, &[]).await?;
    let link = Link {
        queues: rings,
        pool,
        failed: None,
        waiting: Vec::new(),
        woken: Vec::new(),
    };
    Ok((link, info))
}

/// Reads what the back end says of the disk.
async fn info<P: Platform>(
    front: &Frontend<'_, P>,
    config: &Config,
    queues: u16,
) -> Result<Info, Error> {
    let sectors = check_sectors(front.offer("sectors").await?.ok_or(Error::BadValue)?)?;
    let size = front
        .offer("sector-size")
        .await?
        .unwrap_or(SECTOR_SIZE as u32);
    if !size.is_power_of_two() || !(512..=4096).contains(&size) {
        return Err(Error::BadValue);
    }
    let flags: u32 = front.offer("info").await?.unwrap_or(0);
    let indirect: u32 = front
        .offer("feature-max-indirect-segments")
        .await?
        .unwrap_or(0);
    let most = indirect.max(MAX_SEGMENTS_PER_REQUEST as u32);
    let most = most.min(SEGS_PER_INDIRECT_FRAME as u32) as u16;
    // A request must fit into the pool, its page of segments with it.
    let fits = config.pool_pages.saturating_sub(1).max(1);
    let discard = if front.offers("feature-discard").await? {
        Some(Discard {
            granularity: front.offer("discard-granularity").await?.unwrap_or(size),
            alignment: front.offer("discard-alignment").await?.unwrap_or(0),
            secure: front.offers("discard-secure").await?,
        })
    } else {
        None
    };
    Ok(Info {
        sectors,
        sector_size: size,
        physical_sector_size: front.offer("physical-sector-size").await?.unwrap_or(size),
        read_only: flags & VDISK_READONLY != 0,
        cdrom: flags & VDISK_CDROM != 0,
        removable: flags & VDISK_REMOVABLE != 0,
        flush: front.offers("feature-flush-cache").await?,
        discard,
        segments: config.segments.clamp(1, most).min(fits),
        queues,
        persistent: front.offers("feature-persistent").await?,
    })
}

/// Requests on a ring of so many pages.
const fn requests(pages: usize) -> usize {
    match blkif::entries(pages) {
        Some(n) => n as usize,
        None => 0,
    }
}
