// SPDX-License-Identifier: MIT OR Apache-2.0
//! A pair of rings, and the pages that frames go through.

use super::{Checksum, Received, Stats};
use crate::share::{Line, Share};
use crate::xenstore::Xenstore;
use crate::{Error, Platform};
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;
use guest_abi::io::netif::{
    NR_SLOTS_MIN, NetifExtraInfo, NetifRxRequest, NetifRxResponse, NetifTxRequest, NetifTxResponse,
    RX_ENTRIES, Status, netrxf, nettxf,
};
use guest_abi::io::ring::FrontRing;
use guest_abi::mem::SharedMem;
use guest_abi::{DomId, GrantRef, PAGE_SIZE};

/// Bytes of an Ethernet frame's addresses and type.
pub(super) const HEADER: usize = 14;
/// Most entries of a received frame.
const MAX_PARTS: usize = NR_SLOTS_MIN as usize + 1;

/// A queue: rings to send and to receive.
pub(super) struct Queue<'x, P: Platform> {
    /// For sending, or for both.
    line: Line<'x, P>,
    receive_line: Option<Line<'x, P>>,
    tx: Tx<'x, P>,
    rx: Rx<'x, P>,
}

struct Tx<'x, P: Platform> {
    mem: Share<'x, P>,
    ring: FrontRing<NetifTxRequest, NetifTxResponse>,
    pages: Vec<Share<'x, P>>,
    free: Vec<u16>,
    /// For each page: what the back end has of it.
    under_way: Vec<Option<Piece>>,
    /// Entries with extra information that have no answer.
    extras: u32,
}

/// What the back end says to a request for a multicast address, when it does.
pub(super) type Answer = Rc<Cell<Option<bool>>>;

/// A page with the back end.
#[derive(Clone)]
enum Piece {
    /// Of a frame; of one of several pages the last one counts.
    Part { last: bool },
    /// Of no use but that its number is the request's.
    Group(Answer),
}

struct Rx<'x, P: Platform> {
    mem: Share<'x, P>,
    ring: FrontRing<NetifRxRequest, NetifRxResponse>,
    pages: Vec<Share<'x, P>>,
    free: Vec<u16>,
    /// The page with the request in each of the ring's entries. The response is in the same entry.
    posted: Vec<Option<u16>>,
    /// The next request's and the next response's index.
    requests: u32,
    responses: u32,
    /// Parts of frames, the last frame perhaps not complete.
    parts: VecDeque<Part>,
    /// Frames that are complete.
    complete: usize,
    /// A longer one makes no sense.
    max_frame: usize,
    /// The frame that is arriving.
    open: Open,
}

/// What is known of the frame that is arriving.
#[derive(Clone, Copy, Default)]
struct Open {
    /// Its entries so far, and of these, parts that are kept.
    entries: usize,
    kept: usize,
    bytes: usize,
    checksum: Checksum,
    /// The back end says that it went wrong.
    bad: bool,
    /// Another part follows.
    more: bool,
    /// The next entry is extra information.
    extra: bool,
}

#[derive(Clone, Copy)]
struct Part {
    page: u16,
    offset: usize,
    len: usize,
    /// Of a frame's last part: what the frame is.
    end: Option<Received>,
}

/// Takes pages, each granted.
fn pages<'x, P: Platform>(
    xs: &'x Xenstore<P>,
    to: DomId,
    n: usize,
) -> Result<(Vec<Share<'x, P>>, Vec<u16>), Error> {
    let all: Result<Vec<_>, _> = (0..n).map(|_| Share::new(xs, to, 1)).collect();
    Ok((all?, (0..n as u16).rev().collect()))
}

impl<'x, P: Platform> Queue<'x, P> {
    /// Makes the rings, with requests for all pages to receive into.
    pub(super) fn new(
        xs: &'x Xenstore<P>,
        to: DomId,
        split: bool,
        send_pages: usize,
        receive_pages: usize,
        max_frame: usize,
    ) -> Result<Self, Error> {
        let line = || Line::new(xs.platform(), to);
        let ring = || Share::new(xs, to, 1);
        let (tx_mem, rx_mem) = (ring()?, ring()?);
        let (tx_pages, tx_free) = pages(xs, to, send_pages)?;
        let (rx_pages, rx_free) = pages(xs, to, receive_pages)?;
        let mut queue = Self {
            line: line()?,
            receive_line: if split { Some(line()?) } else { None },
            tx: Tx {
                ring: FrontRing::new(&*tx_mem, PAGE_SIZE).ok_or(Error::Invalid)?,
                mem: tx_mem,
                under_way: vec![None; tx_pages.len()],
                pages: tx_pages,
                free: tx_free,
                extras: 0,
            },
            rx: Rx {
                ring: FrontRing::new(&*rx_mem, PAGE_SIZE).ok_or(Error::Invalid)?,
                mem: rx_mem,
                parts: VecDeque::with_capacity(rx_pages.len()),
                pages: rx_pages,
                free: rx_free,
                posted: vec![None; RX_ENTRIES as usize],
                requests: 0,
                responses: 0,
                complete: 0,
                max_frame,
                open: Open::default(),
            },
        };
        // Nobody listens yet; there is an event when all is connected.
        let _ = queue.rx.refill();
        Ok(queue)
    }

    /// The event channels: for sending, or for both; and for receiving.
    pub(super) fn lines(&self) -> impl Iterator<Item = &Line<'x, P>> {
        core::iter::once(&self.line).chain(&self.receive_line)
    }

    /// The grants of the rings, to send and to receive.
    pub(super) fn grefs(&self) -> (GrantRef, GrantRef) {
        (self.tx.mem.gref(), self.rx.mem.gref())
    }

    /// Shows the frames that were written to the ring.
    pub(super) fn kick(&mut self) {
        if self.tx.ring.publish(&*self.tx.mem) {
            self.line.send();
        }
    }

    /// Gives the back end the pages that are free to receive into.
    pub(super) fn refill(&mut self) {
        if self.rx.refill() {
            self.receive_line.as_ref().unwrap_or(&self.line).send();
        }
    }

    pub(super) fn has_room(&self, bytes: usize) -> bool {
        let n = bytes.div_ceil(PAGE_SIZE);
        self.tx.free.len() >= n && self.tx.ring.free() as usize >= n
    }

    /// Writes a frame to the ring.
    pub(super) fn submit(&mut self, frame: &[u8], checksum: Checksum) -> Result<(), Error> {
        if !self.has_room(frame.len()) {
            return Err(Error::Busy);
        }
        self.tx.submit(frame, checksum);
        Ok(())
    }

    /// Writes a request for a multicast address to the ring.
    pub(super) fn ask(&mut self, info: NetifExtraInfo) -> Result<Answer, Error> {
        self.tx.ask(info)
    }

    /// Takes what the back end did; whether that was anything.
    pub(super) fn take_responses(
        &mut self,
        want_room: bool,
        stats: &mut Stats,
    ) -> Result<bool, Error> {
        let sent = self.tx.take(want_room, stats)?;
        let received = self.rx.take(stats)?;
        // Pages of frames that went wrong.
        self.refill();
        Ok(sent | received)
    }

    /// Bytes of the next frame.
    pub(super) fn next_len(&self) -> Option<usize> {
        self.rx.next().map(|frame| frame.len)
    }

    /// Takes the next frame.
    pub(super) fn receive(&mut self, to: &mut [u8]) -> Result<Option<Received>, Error> {
        let Some(frame) = self.rx.next() else {
            return Ok(None);
        };
        let to = to.get_mut(..frame.len).ok_or(Error::Invalid)?;
        self.rx.copy(to);
        Ok(Some(frame))
    }
}

impl<P: Platform> Tx<'_, P> {
    fn submit(&mut self, frame: &[u8], checksum: Checksum) {
        let count = frame.len().div_ceil(PAGE_SIZE);
        let mut flags = match checksum {
            Checksum::Present => 0,
            Checksum::Validated => nettxf::DATA_VALIDATED,
            Checksum::Blank => nettxf::CSUM_BLANK | nettxf::DATA_VALIDATED,
        };
        let mut size = frame.len();
        for (n, bytes) in frame.chunks(PAGE_SIZE).enumerate() {
            // There are enough, as was seen.
            let Some(page) = self.free.pop() else { return };
            let Some(share) = self.pages.get(usize::from(page)) else {
                return;
            };
            share.write(0, bytes);
            let last = n + 1 == count;
            let request = NetifTxRequest {
                gref: share.gref(),
                offset: 0,
                flags: flags | if last { 0 } else { nettxf::MORE_DATA },
                id: page,
                // The first request tells of the whole frame.
                size: size as u16,
            };
            let _ = self.ring.push(&*self.mem, &request);
            if let Some(place) = self.under_way.get_mut(usize::from(page)) {
                *place = Some(Piece::Part { last });
            }
            flags = 0;
            let next = frame.get((n + 1) * PAGE_SIZE..).unwrap_or_default();
            size = next.len().min(PAGE_SIZE);
        }
    }

    fn ask(&mut self, info: NetifExtraInfo) -> Result<Answer, Error> {
        if self.ring.free() < 2 {
            return Err(Error::Busy);
        }
        let page = self.free.pop().ok_or(Error::Busy)?;
        let request = NetifTxRequest {
            flags: nettxf::EXTRA_INFO,
            id: page,
            ..NetifTxRequest::default()
        };
        let _ = self.ring.push(&*self.mem, &request);
        let _ = self.ring.push(&*self.mem, &info.to_tx());
        self.extras += 1;
        let answer = Answer::default();
        if let Some(place) = self.under_way.get_mut(usize::from(page)) {
            *place = Some(Piece::Group(answer.clone()));
        }
        Ok(answer)
    }

    fn take(&mut self, want_room: bool, stats: &mut Stats) -> Result<bool, Error> {
        let mut any = false;
        // No more than there are entries, so that a back end that never stops cannot keep us here.
        for _ in 0..self.ring.size() {
            let Some(response) = self.ring.pop(&*self.mem)? else {
                if want_room && self.ring.final_check(&*self.mem)? {
                    continue;
                }
                break;
            };
            any = true;
            let status = Status::from_number(response.status);
            if status == Some(Status::Null) && self.extras > 0 {
                // The place of extra information, which has no number.
                self.extras -= 1;
                continue;
            }
            let place = self.under_way.get_mut(usize::from(response.id));
            let piece = place
                .and_then(Option::take)
                .ok_or(Error::Protocol("an answer to no request"))?;
            self.free.push(response.id);
            let good = status == Some(Status::Okay);
            match piece {
                Piece::Part { last: false } => {}
                Piece::Part { last: true } if good => stats.sent += 1,
                Piece::Part { last: true } => stats.send_errors += 1,
                Piece::Group(answer) => answer.set(Some(good)),
            }
        }
        Ok(any)
    }
}

impl<P: Platform> Rx<'_, P> {
    /// Whether the back end wants an event.
    fn refill(&mut self) -> bool {
        while self.ring.free() > 0 {
            let Some(page) = self.free.pop() else { break };
            let Some(share) = self.pages.get(usize::from(page)) else {
                break;
            };
            let slot = self.requests % RX_ENTRIES;
            let request = NetifRxRequest {
                id: slot as u16,
                pad: 0,
                gref: share.gref(),
            };
            let _ = self.ring.push(&*self.mem, &request);
            self.requests = self.requests.wrapping_add(1);
            if let Some(place) = self.posted.get_mut(slot as usize) {
                *place = Some(page);
            }
        }
        self.ring.publish(&*self.mem)
    }

    fn take(&mut self, stats: &mut Stats) -> Result<bool, Error> {
        let before = self.complete;
        // No more than there are entries, so that a back end that never stops cannot keep us here.
        for _ in 0..self.ring.size() {
            let Some(response) = self.ring.pop(&*self.mem)? else {
                if self.ring.final_check(&*self.mem)? {
                    continue;
                }
                break;
            };
            self.entry(&response, stats)?;
        }
        Ok(self.complete > before)
    }

    /// An entry of the ring: a part of a frame, or extra information.
    fn entry(&mut self, response: &NetifRxResponse, stats: &mut Stats) -> Result<(), Error> {
        let slot = self.responses % RX_ENTRIES;
        self.responses = self.responses.wrapping_add(1);
        let place = self.posted.get_mut(slot as usize);
        let page = place
            .and_then(Option::take)
            .ok_or(Error::Protocol("an answer to no request"))?;
        let open = &mut self.open;
        open.entries += 1;
        if open.entries > MAX_PARTS {
            return Err(Error::Protocol("a frame of too many parts"));
        }
        if open.extra {
            // None was asked for, so none matters.
            open.extra = NetifExtraInfo::from_rx(response).more();
            self.free.push(page);
        } else {
            if u32::from(response.id) != slot {
                return Err(Error::Protocol("an answer to another request"));
            }
            if open.entries == 1 {
                open.extra = response.flags & netrxf::EXTRA_INFO != 0;
                open.checksum = if response.flags & netrxf::CSUM_BLANK != 0 {
                    Checksum::Blank
                } else if response.flags & netrxf::DATA_VALIDATED != 0 {
                    Checksum::Validated
                } else {
                    Checksum::Present
                };
            }
            open.more = response.flags & netrxf::MORE_DATA != 0;
            let offset = usize::from(response.offset);
            match usize::try_from(response.status) {
                Ok(len) if offset + len > PAGE_SIZE => {
                    return Err(Error::Protocol("a part that is not in its page"));
                }
                Ok(len) => {
                    open.kept += 1;
                    open.bytes += len;
                    self.parts.push_back(Part {
                        page,
                        offset,
                        len,
                        end: None,
                    });
                }
                Err(_) => {
                    open.bad = true;
                    self.free.push(page);
                }
            }
        }
        if !open.more && !open.extra {
            self.finish(stats);
        }
        Ok(())
    }

    /// The frame that was arriving is there.
    fn finish(&mut self, stats: &mut Stats) {
        let open = core::mem::take(&mut self.open);
        let good = !open.bad && (HEADER..=self.max_frame).contains(&open.bytes);
        if let Some(last) = self.parts.back_mut().filter(|_| good) {
            last.end = Some(Received {
                len: open.bytes,
                checksum: open.checksum,
            });
            self.complete += 1;
            stats.received += 1;
            return;
        }
        stats.receive_errors += 1;
        for _ in 0..open.kept {
            self.free.extend(self.parts.pop_back().map(|p| p.page));
        }
    }

    /// The next frame that is complete.
    fn next(&self) -> Option<Received> {
        if self.complete == 0 {
            return None;
        }
        self.parts.iter().find_map(|p| p.end)
    }

    /// Copies the next frame, whose length `to` has.
    fn copy(&mut self, mut to: &mut [u8]) {
        self.complete -= 1;
        while let Some(part) = self.parts.pop_front() {
            let (now, rest) = to.split_at_mut(part.len.min(to.len()));
            if let Some(share) = self.pages.get(usize::from(part.page)) {
                share.read(part.offset, now);
            }
            to = rest;
            self.free.push(part.page);
            if part.end.is_some() {
                break;
            }
        }
    }
}

/// A number that is the same for all frames of a flow: of its addresses, and ports where there are such.
pub(super) fn flow(frame: &[u8]) -> u32 {
    let part = |at: usize, n: usize| frame.get(at..at + n).unwrap_or_default();
    let ports = |protocol: u8, at: usize| match protocol {
        6 | 17 => part(at, 4),
        _ => &[],
    };
    let first = |at: usize| part(at, 1).first().copied().unwrap_or(0);
    let (addresses, ports) = match part(12, 2) {
        // IPv4; the ports of a frame without options that is no fragment.
        [8, 0] => {
            let whole =
                first(HEADER) == 0x45 && first(HEADER + 6) & 0x3f == 0 && first(HEADER + 7) == 0;
            let protocol = if whole { first(HEADER + 9) } else { 0 };
            (part(HEADER + 12, 8), ports(protocol, HEADER + 20))
        }
        // IPv6.
        [0x86, 0xdd] => (part(HEADER + 8, 32), ports(first(HEADER + 6), HEADER + 40)),
        _ => (part(0, 12), &[][..]),
    };
    // FNV-1a.
    let all = addresses.iter().chain(ports);
    let hash = all.fold(0x811c_9dc5_u32, |h, b| {
        (h ^ u32::from(*b)).wrapping_mul(0x0100_0193)
    });
    hash ^ hash >> 16
}

#[cfg(test)]
mod tests {
    use super::flow;

    fn ipv4(id: u8, fragment: [u8; 2], port: u8) -> [u8; 40] {
        let mut f = [0; 40];
        f[12] = 8;
        f[14] = 0x45;
        f[19] = id;
        f[20..22].copy_from_slice(&fragment);
        f[23] = 17;
        f[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        f[35] = port;
        f
    }

    #[test]
    fn frames_of_a_flow_keep_together() {
        assert_eq!(flow(&ipv4(1, [0x40, 0], 5)), flow(&ipv4(2, [0x40, 0], 5)));
        assert_ne!(flow(&ipv4(1, [0, 0], 5)), flow(&ipv4(1, [0, 0], 6)));
        // Fragments have ports in the first only.
        assert_eq!(flow(&ipv4(1, [0x20, 0], 5)), flow(&ipv4(1, [0, 9], 6)));
        assert_ne!(flow(&[1; 14]), flow(&[2; 14]));
        for n in 0..60 {
            for kind in [[8, 0], [0x86, 0xdd], [8, 6]] {
                let mut f = [0x45; 60];
                f[12..14].copy_from_slice(&kind);
                flow(&f[..n]);
            }
        }
    }
}
