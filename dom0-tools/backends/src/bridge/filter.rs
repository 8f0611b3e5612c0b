// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a port may send.

use super::{Mac, same_prefix};
use crate::net::frame::{IPV4, IPV6, network, u16_at};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ARP: u16 = 0x0806;

/// Addresses that have their first bits in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net {
    /// One of them.
    pub address: IpAddr,
    /// How many bits; more than there are counts as all.
    pub bits: u8,
}

/// Addresses that a port's frames may come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The only Ethernet address, if there is to be but one.
    pub mac: Option<Mac>,
    /// IP addresses. If there are any, the port sends nothing but IPv4 and IPv6 from them and ARP for
    /// them; and what a host must send before it has an address: DHCP, and IPv6 of its own link.
    pub ips: Vec<Net>,
}

impl Filter {
    pub(super) fn allows(&self, source: Mac, frame: &[u8]) -> bool {
        if self.mac.is_some_and(|mac| mac != source) {
            return false;
        }
        self.ips.is_empty() || self.allows_packet(source, frame).unwrap_or(false)
    }

    /// `None` when the packet is cut short.
    fn allows_packet(&self, source: Mac, frame: &[u8]) -> Option<bool> {
        let (kind, at) = network(frame)?;
        let v4 = |n: usize| {
            let b: [u8; 4] = frame.get(at + n..at + n + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(b))
        };
        match kind {
            IPV4 => {
                let from = v4(12)?;
                Some(self.has(from.into()) || (from.is_unspecified() && is_dhcp(frame, at)?))
            }
            IPV6 => {
                let b: [u8; 16] = frame.get(at + 8..at + 24)?.try_into().ok()?;
                let from = Ipv6Addr::from(b);
                Some(self.has(from.into()) || from.is_unspecified() || from.is_unicast_link_local())
            }
            ARP => {
                let sender: Mac = frame.get(at + 8..at + 14)?.try_into().ok()?;
                let from = v4(14)?;
                // A probe whether an address is free has none itself (RFC 5227).
                Some(sender == source && (from.is_unspecified() || self.has(from.into())))
            }
            _ => Some(false),
        }
    }

    fn has(&self, address: IpAddr) -> bool {
        self.ips
            .iter()
            .any(|net| same_prefix(net.address, address, net.bits))
    }
}

/// Whether an IPv4 packet is from a DHCP client's port to a server's.
fn is_dhcp(frame: &[u8], at: usize) -> Option<bool> {
    let header = usize::from(frame.get(at)? & 15) * 4;
    let udp = *frame.get(at + 9)? == 17 && u16_at(frame, at + 6)? & 0x3fff == 0;
    Some(udp && u16_at(frame, at + header)? == 68 && u16_at(frame, at + header + 2)? == 67)
}
