// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rings, and the pages that data go through.

use super::{Link, requests};
use crate::share::{Line, Share};
use crate::xenstore::Xenstore;
use crate::{Error, Platform};
use alloc::vec::Vec;
use core::task::{Poll, Waker};
use guest_abi::io::blkif::{
    BlkifRequest, BlkifRequestDiscard, BlkifRequestIndirect, BlkifRequestSegment, BlkifResponse,
    DISCARD_SECURE, MAX_SEGMENTS_PER_REQUEST, Op, SECTOR_SIZE, Slot, Status,
};
use guest_abi::io::ring::FrontRing;
use guest_abi::mem::SharedMem;
use guest_abi::{DomId, GrantRef, PAGE_SIZE, Port};
use zerocopy::IntoBytes;

const SECTORS_PER_PAGE: usize = PAGE_SIZE / SECTOR_SIZE;

/// What is asked.
pub(super) enum What<'w> {
    Read(usize),
    Write(&'w [u8]),
    Flush,
    Discard { sectors: u64, secure: bool },
}

impl What<'_> {
    fn bytes(&self) -> usize {
        match self {
            Self::Read(n) => *n,
            Self::Write(from) => from.len(),
            Self::Flush | Self::Discard { .. } => 0,
        }
    }
}

/// Pages of a request's data, and one of segments where they do not fit into the request.
fn pages_for(bytes: usize) -> usize {
    let n = bytes.div_ceil(PAGE_SIZE);
    n + usize::from(n > MAX_SEGMENTS_PER_REQUEST)
}

/// The pages that data go through, granted as long as the connection lasts.
pub(super) struct Pool<'x, P: Platform> {
    pages: Vec<Share<'x, P>>,
    free: Vec<u16>,
}

impl<'x, P: Platform> Pool<'x, P> {
    pub(super) fn new(xs: &'x Xenstore<P>, to: DomId, pages: u16) -> Result<Self, Error> {
        let all = (0..pages.max(1)).map(|_| Share::new(xs, to, 1));
        Ok(Self {
            pages: all.collect::<Result<_, _>>()?,
            free: (0..pages.max(1)).rev().collect(),
        })
    }

    fn gref(&self, page: u16) -> GrantRef {
        self.pages
            .get(usize::from(page))
            .map_or(GrantRef(0), Share::gref)
    }

    fn mem(&self, page: u16) -> Option<&P::Pages> {
        self.pages.get(usize::from(page)).map(|s| &**s)
    }
}

/// A request whose result was not taken.
struct Flight {
    id: u64,
    /// Pages of the pool, a page of segments last.
    pages: Vec<u16>,
    bytes: usize,
    answer: Option<Result<(), Error>>,
    waker: Option<Waker>,
    abandoned: bool,
}

pub(super) struct Queue<'x, P: Platform> {
    mem: Share<'x, P>,
    line: Line<'x, P>,
    ring: FrontRing<Slot, BlkifResponse>,
    flights: Vec<Option<Flight>>,
    /// Counts requests, so that an answer to one of before is known as such.
    count: u64,
}

impl<'x, P: Platform> Queue<'x, P> {
    pub(super) fn new(xs: &'x Xenstore<P>, to: DomId, pages: usize) -> Result<Self, Error> {
        let mem = Share::new(xs, to, pages)?;
        let ring = FrontRing::new(&*mem, pages * PAGE_SIZE).ok_or(Error::Invalid)?;
        Ok(Self {
            line: Line::new(xs.platform(), to)?,
            mem,
            ring,
            flights: (0..requests(pages)).map(|_| None).collect(),
            count: 0,
        })
    }

    pub(super) fn port(&self) -> Port {
        self.line.port()
    }

    /// The event channel is no more.
    pub(super) fn lost(&self) {
        self.line.lost();
    }

    pub(super) fn grefs(&self) -> impl Iterator<Item = GrantRef> {
        self.mem.grefs()
    }

    /// Shows what was written to the ring.
    pub(super) fn kick(&mut self) {
        if self.ring.publish(&*self.mem) {
            self.line.send();
        }
    }

    /// Flights whose place is free; each has an entry of the ring then.
    fn free(&self) -> usize {
        let free = self.flights.iter().filter(|f| f.is_none()).count();
        free.min(self.ring.free() as usize)
    }
}

/// Where in the table of flights a request is.
fn place(id: u64) -> usize {
    (id & 0xffff) as usize
}

impl<P: Platform> Link<'_, P> {
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.pool.free.len() >= pages_for(bytes) && self.queues.iter().any(|q| q.free() > 0)
    }

    /// Puts a request on the emptiest ring; which one, and the request's number.
    pub(super) fn submit(&mut self, sector: u64, what: What<'_>) -> Result<(usize, u64), Error> {
        let bytes = what.bytes();
        let need = pages_for(bytes);
        if need > self.pool.pages.len()
            || (bytes == 0 && matches!(what, What::Read(_) | What::Write(_)))
        {
            return Err(Error::Invalid);
        }
        let rings = self.queues.iter_mut().enumerate();
        let Some((n, queue)) = rings.max_by_key(|(n, q)| (q.free(), usize::MAX - n)) else {
            return Err(Error::Busy);
        };
        let Some(at) = queue.flights.iter().position(Option::is_none) else {
            return Err(Error::Busy);
        };
        let Some(left) = self
            .pool
            .free
            .len()
            .checked_sub(need)
            .filter(|_| queue.ring.free() > 0)
        else {
            return Err(Error::Busy);
        };
        queue.count = queue.count.wrapping_add(1);
        let id = queue.count << 16 | at as u64;
        let mut pages = self.pool.free.split_off(left);
        pages.reverse();

        let slot = match &what {
            What::Read(_) => transfer(&self.pool, &pages, id, Op::Read, sector, bytes),
            What::Write(from) => {
                for (page, part) in pages.iter().zip(from.chunks(PAGE_SIZE)) {
                    if let Some(mem) = self.pool.mem(*page) {
                        mem.write(0, part);
                    }
                }
                transfer(&self.pool, &pages, id, Op::Write, sector, bytes)
            }
            What::Flush => Slot::from(BlkifRequest {
                operation: Op::FlushDiskcache.number(),
                id,
                ..Default::default()
            }),
            What::Discard { sectors, secure } => Slot::from(BlkifRequestDiscard {
                operation: Op::Discard.number(),
                flag: if *secure { DISCARD_SECURE } else { 0 },
                id,
                sector_number: sector,
                nr_sectors: *sectors,
                ..Default::default()
            }),
        };
        // There is an entry, as was seen.
        let _ = queue.ring.push(&*queue.mem, &slot);
        if let Some(flight) = queue.flights.get_mut(at) {
            *flight = Some(Flight {
                id,
                pages,
                bytes,
                answer: None,
                waker: None,
                abandoned: false,
            });
        }
        Ok((n, id))
    }

    /// Takes what the back end answered.
    pub(super) fn take_responses(&mut self) {
        if self.failed.is_some() {
            return;
        }
        let mut all = core::mem::take(&mut self.queues);
        let result = all.iter_mut().try_for_each(|q| self.take_from(q));
        self.queues = all;
        if let Err(e) = result {
            self.fail(e);
        }
    }

    fn take_from(&mut self, queue: &mut Queue<'_, P>) -> Result<(), Error> {
        // No more than there are entries, so that a back end that never stops cannot keep us here.
        for _ in 0..queue.ring.size() {
            let Some(response) = queue.ring.pop(&*queue.mem)? else {
                if queue.ring.final_check(&*queue.mem)? {
                    continue;
                }
                return Ok(());
            };
            let nonsense = Error::Protocol("an answer to no request");
            let place = queue.flights.get_mut(place(response.id)).ok_or(nonsense)?;
            let flight = place
                .as_mut()
                .filter(|f| f.id == response.id && f.answer.is_none());
            let flight = flight.ok_or(nonsense)?;
            flight.answer = Some(match Status::from_number(response.status) {
                Some(Status::Okay) => Ok(()),
                Some(Status::Eopnotsupp) => Err(Error::Unsupported),
                _ => Err(Error::Failed),
            });
            self.woken.extend(flight.waker.take());
            if flight.abandoned {
                let pages = core::mem::take(&mut flight.pages);
                *place = None;
                self.give(&pages);
            }
        }
        Ok(())
    }

    fn give(&mut self, pages: &[u16]) {
        self.pool.free.extend(pages.iter().rev());
        self.woken.append(&mut self.waiting);
    }

    /// Ends everything with an error. The pages stay with the back end until the connection is dropped.
    pub(super) fn fail(&mut self, error: Error) {
        self.failed = Some(error);
        for flight in self
            .queues
            .iter_mut()
            .flat_map(|q| q.flights.iter_mut().flatten())
        {
            flight.answer.get_or_insert(Err(error));
            self.woken.extend(flight.waker.take());
        }
        self.woken.append(&mut self.waiting);
    }

    /// The result of a request, if it is there; data go to `buffer`.
    pub(super) fn result(
        &mut self,
        queue: usize,
        id: u64,
        buffer: Option<&mut [u8]>,
        waker: &Waker,
    ) -> Poll<Result<(), Error>> {
        let flight = self
            .queues
            .get_mut(queue)
            .and_then(|q| q.flights.get_mut(place(id)));
        let Some(entry) = flight else {
            return Poll::Ready(Err(Error::Gone));
        };
        let Some(flight) = entry.as_mut().filter(|f| f.id == id) else {
            return Poll::Ready(Err(Error::Gone));
        };
        let Some(answer) = flight.answer else {
            flight.waker = Some(waker.clone());
            return Poll::Pending;
        };
        let pages = core::mem::take(&mut flight.pages);
        let bytes = flight.bytes;
        *entry = None;
        if let (Ok(()), Some(buffer)) = (answer, buffer) {
            debug_assert_eq!(buffer.len(), bytes);
            for (page, part) in pages.iter().zip(buffer.chunks_mut(PAGE_SIZE)) {
                if let Some(mem) = self.pool.mem(*page) {
                    mem.read(0, part);
                }
            }
        }
        self.give(&pages);
        Poll::Ready(answer)
    }

    /// Nobody takes this request's result.
    pub(super) fn abandon(&mut self, queue: usize, id: u64) {
        let flight = self
            .queues
            .get_mut(queue)
            .and_then(|q| q.flights.get_mut(place(id)));
        let Some(entry) = flight else { return };
        let Some(flight) = entry.as_mut().filter(|f| f.id == id) else {
            return;
        };
        if flight.answer.is_none() {
            flight.abandoned = true;
            flight.waker = None;
            return;
        }
        let pages = core::mem::take(&mut flight.pages);
        *entry = None;
        self.give(&pages);
    }
}

/// A request to read or write `bytes` bytes by way of `pages`.
fn transfer<P: Platform>(
    pool: &Pool<'_, P>,
    pages: &[u16],
    id: u64,
    op: Op,
    sector: u64,
    bytes: usize,
) -> Slot {
    let count = bytes.div_ceil(PAGE_SIZE);
    let mut left = bytes / SECTOR_SIZE;
    let segments = pages.iter().take(count).map(|page| {
        let n = left.min(SECTORS_PER_PAGE);
        left -= n;
        BlkifRequestSegment {
            gref: pool.gref(*page),
            first_sect: 0,
            last_sect: (n as u8).saturating_sub(1),
            _pad: 0,
        }
    });
    if count <= MAX_SEGMENTS_PER_REQUEST {
        let mut request = BlkifRequest {
            operation: op.number(),
            nr_segments: count as u8,
            id,
            sector_number: sector,
            ..Default::default()
        };
        for (to, segment) in request.seg.iter_mut().zip(segments) {
            *to = segment;
        }
        return request.into();
    }
    let list = pages.last().copied().unwrap_or(0);
    if let Some(mem) = pool.mem(list) {
        for (i, segment) in segments.enumerate() {
            mem.write(i * size_of::<BlkifRequestSegment>(), segment.as_bytes());
        }
    }
    let mut request = BlkifRequestIndirect {
        operation: Op::Indirect.number(),
        indirect_op: op.number(),
        nr_segments: count as u16,
        id,
        sector_number: sector,
        ..Default::default()
    };
    if let Some(gref) = request.indirect_grefs.first_mut() {
        *gref = pool.gref(list);
    }
    request.into()
}
