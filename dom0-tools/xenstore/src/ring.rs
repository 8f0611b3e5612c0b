// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ring page between a domain and the store (`docs/misc/xenstore-ring.txt`).

use core::sync::atomic::{Ordering, fence};

use guest_abi::DomId;
use guest_abi::io::xs_wire::{self as wire, REQ, RSP};
use guest_abi::mem::SharedMem;

use crate::conn::ConnId;
use crate::store::Store;

/// How often one pump looks for more to do before it lets others have a turn. Each time it takes at
/// most one message, and gives at most one ring full of output.
const ROUNDS: usize = 64;

/// What a pump did and what is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PumpResult {
    /// The page changed: signal the domain's event channel.
    pub notify: bool,
    /// There may be more to do at once: pump again when others have had their turn.
    pub more: bool,
    /// Output is left that the ring had no room for. The domain signals when it has made room; some
    /// do not in rare races, so that pumping again after some milliseconds is wise.
    pub waiting: bool,
    /// The ring is not served, for the reason given (`xs_wire::ERROR_*`), until the domain asks for a
    /// reconnection.
    pub failed: Option<u32>,
}

/// Whether the next request in a domain's ring has the number 0. Who has more than one under way numbers them (Linux counts
/// from 0), so that the sender of this one most likely waits for nothing else.
#[must_use]
pub fn unnumbered(page: &impl SharedMem) -> bool {
    let cons = page.load32(REQ.cons);
    let there = page.load32(REQ.prod).wrapping_sub(cons);
    // Of the request's head: its kind, then its number.
    (8..=REQ.size).contains(&there)
        && (4..8).all(|n| {
            let mut byte = [0xff];
            let at = cons.wrapping_add(n) % REQ.size;
            page.read(REQ.data + at as usize, &mut byte);
            byte == [0]
        })
}

impl Store {
    /// Serves a domain's ring, the page `struct xenstore_domain_interface`: takes its requests, gives it
    /// replies and events. To be called when the domain's event channel fires, when
    /// [`Store::next_ready`] names the domain, and after [`Store::introduce`]. Takes bounded time
    /// whatever the domain does.
    pub fn pump(&mut self, domid: DomId, page: &impl SharedMem) -> PumpResult {
        let id = ConnId::Domain(domid);
        let mut result = PumpResult::default();
        self.clients.ready.remove(&id);
        let Some(conn) = self.clients.conns.get_mut(&id) else {
            return result;
        };
        if !conn.advertised {
            conn.advertised = true;
            page.store32(wire::ERROR, wire::ERROR_NONE);
            let features = wire::SERVER_FEATURE_RECONNECTION | wire::SERVER_FEATURE_ERROR;
            page.store32(wire::SERVER_FEATURES, features);
        }
        if page.load32(wire::CONNECTION) == wire::RECONNECT {
            self.reset_client(id);
            for word in [REQ.cons, REQ.prod, RSP.cons, RSP.prod] {
                page.store32(word, 0);
            }
            page.store32(wire::ERROR, wire::ERROR_NONE);
            page.store32(wire::CONNECTION, wire::CONNECTED);
            result.notify = true;
        }
        for _ in 0..ROUNDS {
            // The domain signals only if it finds our index as it was when it filled or emptied the
            // ring: so look again after each of our indices has become visible.
            fence(Ordering::SeqCst);
            let moved = self
                .send(domid, page)
                .and_then(|n| Ok(n + self.receive(domid, page)?));
            match moved {
                Ok(moved) => {
                    result.more = moved > 0;
                    result.notify |= result.more;
                }
                Err(why) => {
                    if self.failed(domid) != Some(why) {
                        self.fail(id, why);
                    }
                    if page.load32(wire::ERROR) != why {
                        page.store32(wire::ERROR, why);
                        result.notify = true;
                    }
                    return PumpResult {
                        failed: Some(why),
                        more: false,
                        ..result
                    };
                }
            }
            if !result.more {
                break;
            }
        }
        self.clients.ready.remove(&id);
        result.waiting = self.clients.conns.get(&id).is_some_and(|c| c.has_output());
        result
    }

    /// Moves output to the ring; returns how many bytes. The error is an `xs_wire::ERROR_*`.
    fn send(&mut self, domid: DomId, page: &impl SharedMem) -> Result<usize, u32> {
        if let Some(why) = self.failed(domid) {
            return Err(why);
        }
        let mut buf = [0; wire::RING_SIZE as usize];
        let room = RSP.free(page).map_err(|_| wire::ERROR_RINGIDX)?;
        let n = self.output(domid, buf.get_mut(..room as usize).unwrap_or_default());
        match RSP.write(page, buf.get(..n).unwrap_or_default()) {
            Ok(written) if written == n => Ok(n),
            // The domain took back room that it had given.
            _ => Err(wire::ERROR_RINGIDX),
        }
    }

    /// Takes the next piece of a request from the ring, if the domain's requests are read at present;
    /// returns its length. The error is an `xs_wire::ERROR_*`.
    fn receive(&mut self, domid: DomId, page: &impl SharedMem) -> Result<usize, u32> {
        let mut done = 0;
        let mut buf = [0; wire::RING_SIZE as usize];
        // Head and payload.
        for _ in 0..2 {
            let want = self.wanted(domid).min(buf.len());
            let piece = buf.get_mut(..want).unwrap_or_default();
            let n = REQ.read(page, piece).map_err(|_| wire::ERROR_RINGIDX)?;
            done += n;
            // All of it is taken: it is no more than is wanted. It fails by failing the connection.
            let _ = self.input(domid, piece.get(..n).unwrap_or_default());
            if let Some(why) = self.failed(domid) {
                return Err(why);
            }
        }
        Ok(done)
    }

    fn failed(&self, domid: DomId) -> Option<u32> {
        self.clients.conns.get(&ConnId::Domain(domid))?.failed
    }
}
