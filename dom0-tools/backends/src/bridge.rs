// SPDX-License-Identifier: MIT OR Apache-2.0
//! A learning bridge: which ports a frame goes to.
//!
//! Addresses are learned from frames' sources and forgotten when they are not seen for a time; a frame
//! to an address that is not known goes to all other ports. Tags of VLANs pass as they are and do not
//! matter. Frames to the addresses that bridges keep to themselves (IEEE 802.1Q, 8.6.3) go nowhere.
//!
//! A guest can send what it likes. It cannot fill the table: each port has its share. An address that is
//! [kept](Bridge::keep) at a port is not learned at another one; what else a guest may send from is what its
//! port's [`Filter`] is for.

use crate::net::HEADER;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::IpAddr;

mod filter;
#[cfg(test)]
mod tests;

pub use filter::{Filter, Net};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// How long an address is known without being seen, in nanoseconds: 300 s, as in IEEE 802.1Q.
pub const AGEING_NS: u64 = 300_000_000_000;
/// Most addresses that are known at one port.
pub const PORT_ADDRESSES: usize = 256;
/// Most ports.
pub const MAX_PORTS: usize = 1024;

/// A port's number; it is not used again on the same bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortId(u32);

/// What went through a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that came in, also those that went nowhere.
    pub in_frames: u64,
    /// Their bytes.
    pub in_bytes: u64,
    /// Frames that came in and were refused: by the filter, or as no frames at all.
    pub in_refused: u64,
    /// Frames that went out.
    pub out_frames: u64,
    /// Their bytes.
    pub out_bytes: u64,
    /// Frames that should have gone out and were dropped.
    pub out_dropped: u64,
}

#[derive(Debug, Default)]
struct Port {
    filter: Filter,
    counters: Counters,
    addresses: usize,
    /// Before this time none of its addresses is old.
    none_old_before: u64,
}

#[derive(Clone, Copy, Debug)]
struct Learned {
    mac: Mac,
    port: PortId,
    /// When; [`ALWAYS`] when it stays there.
    seen: u64,
}

/// A time that is never long ago.
const ALWAYS: u64 = u64::MAX;

/// One bridge. Times are in nanoseconds of one clock.
#[derive(Debug)]
pub struct Bridge {
    ports: BTreeMap<PortId, Port>,
    next: u32,
    /// By [`key`]: to compare two numbers takes less than to compare six bytes.
    table: BTreeMap<u64, Learned>,
    ageing_ns: u64,
}

impl Default for Bridge {
    fn default() -> Self {
        Self::new(AGEING_NS)
    }
}

impl Bridge {
    /// A bridge without ports, and how long it knows an address.
    #[must_use]
    pub const fn new(ageing_ns: u64) -> Self {
        Self {
            ports: BTreeMap::new(),
            next: 0,
            table: BTreeMap::new(),
            ageing_ns,
        }
    }

    /// Adds a port. `None` when there are [`MAX_PORTS`].
    pub fn add(&mut self, filter: Filter) -> Option<PortId> {
        let id = PortId(self.next);
        let next = self.next.checked_add(1)?;
        if self.ports.len() >= MAX_PORTS {
            return None;
        }
        self.next = next;
        let port = Port {
            filter,
            ..Port::default()
        };
        self.ports.insert(id, port);
        Some(id)
    }

    /// An address is at a port for as long as that is there: what comes from it at another one is refused.
    pub fn keep(&mut self, id: PortId, mac: Mac) {
        if self.ports.contains_key(&id) {
            self.place(mac, id, ALWAYS);
        }
    }

    /// Takes a port away, with all that was learned there.
    pub fn remove(&mut self, id: PortId) {
        self.ports.remove(&id);
        self.table.retain(|_, l| l.port != id);
    }

    /// The ports.
    pub fn ports(&self) -> impl Iterator<Item = PortId> {
        self.ports.keys().copied()
    }

    /// What went through a port.
    #[must_use]
    pub fn counters(&self, id: PortId) -> Counters {
        self.ports.get(&id).map(|p| p.counters).unwrap_or_default()
    }

    /// The addresses that are known, and where.
    pub fn addresses(&self, now: u64) -> impl Iterator<Item = (Mac, PortId)> {
        let ageing = self.ageing_ns;
        self.table
            .values()
            .filter(move |l| now.saturating_sub(l.seen) < ageing)
            .map(|l| (l.mac, l.port))
    }

    /// A frame came in at a port: adds to `to` the ports that it is to go out at, never its own.
    pub fn forward(&mut self, from: PortId, frame: &[u8], now: u64, to: &mut Vec<PortId>) {
        let Some(port) = self.ports.get_mut(&from) else {
            return;
        };
        port.counters.in_frames += 1;
        port.counters.in_bytes += frame.len() as u64;
        let table = &self.table;
        let addresses = addresses(frame).filter(|(_, source)| {
            let kept = table.get(&key(*source)).filter(|l| l.seen == ALWAYS);
            // A group is no source (IEEE 802.3, 3.2.3).
            !is_group(*source)
                && kept.is_none_or(|l| l.port == from)
                && port.filter.allows(*source, frame)
        });
        let Some((target, source)) = addresses else {
            port.counters.in_refused += 1;
            return;
        };
        self.learn(source, from, now);
        if is_reserved(target) {
            return;
        }
        let known = self
            .table
            .get(&key(target))
            .filter(|l| !is_group(target) && now.saturating_sub(l.seen) < self.ageing_ns);
        match known {
            Some(l) if l.port == from => {}
            Some(l) => to.push(l.port),
            None => to.extend(self.ports.keys().filter(|id| **id != from)),
        }
    }

    /// Frames came in at a port that are no frames.
    pub fn refused(&mut self, id: PortId, frames: u32) {
        if let Some(port) = self.ports.get_mut(&id) {
            port.counters.in_frames += u64::from(frames);
            port.counters.in_refused += u64::from(frames);
        }
    }

    /// A frame went out at a port, or was dropped there.
    pub fn sent(&mut self, id: PortId, bytes: usize, delivered: bool) {
        let Some(port) = self.ports.get_mut(&id) else {
            return;
        };
        if delivered {
            port.counters.out_frames += 1;
            port.counters.out_bytes += bytes as u64;
        } else {
            port.counters.out_dropped += 1;
        }
    }

    fn learn(&mut self, source: Mac, at: PortId, now: u64) {
        let old = self.table.get(&key(source));
        if old.is_some_and(|l| l.seen == ALWAYS) {
            return;
        }
        if old.map(|l| l.port) != Some(at) {
            let full = |p: &Port| p.addresses >= PORT_ADDRESSES && now >= p.none_old_before;
            if self.ports.get(&at).is_some_and(full) {
                self.forget_old(at, now);
            }
            let room = |p: &Port| p.addresses < PORT_ADDRESSES;
            if !self.ports.get(&at).is_some_and(room) {
                return;
            }
        }
        self.place(source, at, now);
    }

    /// An address is at a port from now on, and counts there.
    fn place(&mut self, mac: Mac, port: PortId, seen: u64) {
        let old = self.table.insert(key(mac), Learned { mac, port, seen });
        let old = old.map(|l| l.port);
        if old == Some(port) {
            return;
        }
        if let Some(port) = self.ports.get_mut(&port) {
            port.addresses += 1;
        }
        if let Some(port) = old.and_then(|p| self.ports.get_mut(&p)) {
            port.addresses = port.addresses.saturating_sub(1);
        }
    }

    /// Makes room among a port's addresses. As it looks at all ports' addresses, it is not done again before that can
    /// make more room.
    fn forget_old(&mut self, at: PortId, now: u64) {
        let ageing = self.ageing_ns;
        let (mut gone, mut oldest) = (0, now);
        self.table.retain(|_, l| {
            if l.port != at {
                return true;
            }
            let old = now.saturating_sub(l.seen) >= ageing;
            match old {
                true => gone += 1,
                false => oldest = oldest.min(l.seen),
            }
            !old
        });
        if let Some(port) = self.ports.get_mut(&at) {
            port.addresses = port.addresses.saturating_sub(gone);
            port.none_old_before = oldest.saturating_add(ageing);
        }
    }
}

/// A frame's target and source.
fn addresses(frame: &[u8]) -> Option<(Mac, Mac)> {
    let header = frame.get(..HEADER)?;
    let target = header.get(..6)?.try_into().ok()?;
    let source = header.get(6..12)?.try_into().ok()?;
    Some((target, source))
}

const fn key([a, b, c, d, e, f]: Mac) -> u64 {
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

pub(crate) const fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

const fn is_reserved(mac: Mac) -> bool {
    matches!(mac, [0x01, 0x80, 0xc2, 0, 0, 0..=0x0f])
}

/// Whether two addresses have the same first bits.
fn same_prefix(a: IpAddr, b: IpAddr, bits: u8) -> bool {
    let (a, b, width) = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return false,
    };
    let differ: u128 = a ^ b;
    let low = u32::from(width - bits.min(width));
    differ.checked_shr(low).unwrap_or(0) == 0
}
