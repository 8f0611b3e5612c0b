// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ring page between a domain and the store (`docs/misc/xenstore-ring.txt`).

use guest_abi::DomId;

use crate::conn::ConnId;
use crate::store::Store;
use crate::wire::ring;

/// How often one pump looks for more to do before it lets others have a turn. Each time it takes at
/// most a ring full of requests.
const ROUNDS: usize = 4;

/// The page that a domain shares with the store (`struct xenstore_domain_interface`). The domain may
/// write to it at any time.
pub trait RingMem {
    /// Reads the word at byte `offset`, a multiple of 4 below 4096. Sequentially consistent with all
    /// other accesses here.
    fn load32(&self, offset: usize) -> u32;
    /// Writes the word at byte `offset`, a multiple of 4 below 4096. Sequentially consistent with all
    /// other accesses here.
    fn store32(&self, offset: usize, value: u32);
    /// Copies out of the page; `offset` plus the length is at most 2048. Not moved before an earlier
    /// [`RingMem::load32`], nor behind a later [`RingMem::store32`].
    fn read(&self, offset: usize, buf: &mut [u8]);
    /// Copies into the page; as [`RingMem::read`].
    fn write(&self, offset: usize, data: &[u8]);
}

/// What a pump did and what is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PumpResult {
    /// The page changed: signal the domain's event channel.
    pub notify: bool,
    /// There is more to do at once: pump again when others have had their turn.
    pub more: bool,
    /// Output is left that the ring had no room for. The domain signals when it has made room; some
    /// do not in rare races, so that pumping again after some milliseconds does no harm.
    pub waiting: bool,
    /// The ring is not served, for the reason given (`wire::ring::ERROR_*`), until the domain asks for a
    /// reconnection.
    pub failed: Option<u32>,
}

/// One direction of the ring: its part of the page and its two free-running indices.
#[derive(Clone, Copy)]
struct Half {
    data: usize,
    cons: u32,
    prod: u32,
}

impl Half {
    fn load(page: &impl RingMem, data: usize, cons: usize, prod: usize) -> Self {
        Self {
            data,
            cons: page.load32(cons),
            prod: page.load32(prod),
        }
    }

    fn filled(self) -> u32 {
        self.prod.wrapping_sub(self.cons)
    }

    /// The at most two stretches of the page that hold `len` bytes from `index` on: offset and length.
    fn stretches(self, index: u32, len: usize) -> [(usize, usize); 2] {
        let at = (index & (ring::SIZE - 1)) as usize;
        let head = len.min(ring::SIZE as usize - at);
        [(self.data + at, head), (self.data, len - head)]
    }
}

impl Store {
    /// Serves a domain's ring: takes its requests, gives it replies and events. To be called when the
    /// domain's event channel fires, when [`Store::next_ready`] names the domain, and after
    /// [`Store::introduce`]. Takes bounded time whatever the domain does.
    pub fn pump(&mut self, domid: DomId, page: &impl RingMem) -> PumpResult {
        let id = ConnId::Domain(domid);
        let mut result = PumpResult::default();
        self.clients.ready.remove(&id);
        let Some(conn) = self.clients.conns.get_mut(&id) else {
            return result;
        };
        if !conn.advertised {
            conn.advertised = true;
            page.store32(ring::ERROR, ring::ERROR_NONE);
            page.store32(
                ring::SERVER_FEATURES,
                ring::FEATURE_RECONNECTION | ring::FEATURE_ERROR,
            );
        }
        if page.load32(ring::CONNECTION) == ring::RECONNECT {
            self.reset_client(id);
            for word in [
                ring::REQ_CONS,
                ring::REQ_PROD,
                ring::RSP_CONS,
                ring::RSP_PROD,
            ] {
                page.store32(word, 0);
            }
            page.store32(ring::ERROR, ring::ERROR_NONE);
            page.store32(ring::CONNECTION, ring::CONNECTED);
            result.notify = true;
        }
        for _ in 0..ROUNDS {
            let moved = self
                .send(domid, page)
                .and_then(|sent| Ok(sent | self.receive(domid, page)?));
            match moved {
                Ok(moved) => {
                    result.notify |= moved;
                    result.more = moved;
                    if !moved {
                        break;
                    }
                }
                Err(why) => {
                    // A ring that failed before stays as it is.
                    let told = self.clients.conns.get(&id).and_then(|c| c.failed) == Some(why)
                        && page.load32(ring::ERROR) == why;
                    if !told {
                        self.fail(id, why);
                        page.store32(ring::ERROR, why);
                        result.notify = true;
                    }
                    return PumpResult {
                        failed: Some(why),
                        more: false,
                        ..result
                    };
                }
            }
        }
        self.clients.ready.remove(&id);
        result.waiting = self.clients.conns.get(&id).is_some_and(|c| c.has_output());
        result
    }

    /// Moves output to the ring; whether it moved any. The error is a `wire::ring::ERROR_*`.
    fn send(&mut self, domid: DomId, page: &impl RingMem) -> Result<bool, u32> {
        self.alive(domid)?;
        let half = Half::load(page, ring::RSP, ring::RSP_CONS, ring::RSP_PROD);
        let room = ring::SIZE
            .checked_sub(half.filled())
            .ok_or(ring::ERROR_RINGIDX)?;
        let mut buf = [0; ring::SIZE as usize];
        let n = self.output(domid, buf.get_mut(..room as usize).unwrap_or_default());
        let mut from = 0;
        for (offset, len) in half.stretches(half.prod, n) {
            page.write(offset, buf.get(from..from + len).unwrap_or_default());
            from += len;
        }
        if n > 0 {
            page.store32(ring::RSP_PROD, half.prod.wrapping_add(n as u32));
        }
        Ok(n > 0)
    }

    /// Takes requests from the ring; whether it took any. The error is a `wire::ring::ERROR_*`.
    fn receive(&mut self, domid: DomId, page: &impl RingMem) -> Result<bool, u32> {
        let half = Half::load(page, ring::REQ, ring::REQ_CONS, ring::REQ_PROD);
        if half.filled() > ring::SIZE {
            return Err(ring::ERROR_RINGIDX);
        }
        let mut buf = [0; ring::SIZE as usize];
        let mut to = 0;
        for (offset, len) in half.stretches(half.cons, half.filled() as usize) {
            page.read(offset, buf.get_mut(to..to + len).unwrap_or_default());
            to += len;
        }
        let taken = self.input(domid, buf.get(..to).unwrap_or_default());
        self.alive(domid)?;
        let taken = taken.unwrap_or(0);
        if taken > 0 {
            page.store32(ring::REQ_CONS, half.cons.wrapping_add(taken as u32));
        }
        Ok(taken > 0)
    }

    fn alive(&self, domid: DomId) -> Result<(), u32> {
        match self
            .clients
            .conns
            .get(&ConnId::Domain(domid))
            .and_then(|c| c.failed)
        {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }
}
