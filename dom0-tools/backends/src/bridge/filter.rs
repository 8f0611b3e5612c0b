// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a port may send.

use super::{Mac, same_prefix};
use crate::net::frame::{IPV4, IPV6, network, u16_at};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ARP: u16 = 0x0806;
/// Protocols in IP packets.
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// Messages of ICMPv6 (RFC 4861).
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
/// The ports of DHCP's clients and servers.
const DHCP_CLIENT: u16 = 68;
const DHCP_SERVER: u16 = 67;
const DHCPV6_CLIENT: u16 = 546;

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
    /// IP addresses. If there are any, the port sends nothing but IPv4 and IPv6 from them, and ARP and
    /// neighbour advertisements for them; and what a host must send before it has an address: DHCP, and IPv6 from
    /// none or from the address of its link that follows from the Ethernet address (RFC 4291, appendix A).
    /// What makes others send all to it, routes (RFC 4861) and the answers of a DHCP server, only a port
    /// sends that may use all addresses.
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
                let allowed = match self.has(from.into()) {
                    true => {
                        self.has(Ipv4Addr::UNSPECIFIED.into()) || !is_to_dhcp_client(frame, at)?
                    }
                    false => from.is_unspecified() && is_dhcp(frame, at)?,
                };
                Some(allowed)
            }
            IPV6 => {
                let from = v6_at(frame, at + 8)?;
                let own = |a: Ipv6Addr| self.has(a.into()) || a == of_link(source);
                let all = self.has(Ipv6Addr::UNSPECIFIED.into());
                let known = own(from) || from.is_unspecified();
                let (protocol, message) = payload(frame, at)?;
                let allowed = match protocol {
                    ICMPV6 => match *frame.get(message)? {
                        NEIGHBOUR_ADVERTISEMENT => own(v6_at(frame, message + 8)?),
                        ROUTER_ADVERTISEMENT | REDIRECT => all,
                        _ => true,
                    },
                    UDP => all || u16_at(frame, message + 2)? != DHCPV6_CLIENT,
                    _ => true,
                };
                Some(known && allowed)
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
    let whole = u16_at(frame, at + 6)? & 0x3fff == 0;
    Some(whole && udp_ports(frame, at)? == Some((DHCP_CLIENT, DHCP_SERVER)))
}

/// Whether an IPv4 packet, or the first part of one, is to a DHCP client's port.
fn is_to_dhcp_client(frame: &[u8], at: usize) -> Option<bool> {
    Some(udp_ports(frame, at)?.is_some_and(|(_, to)| to == DHCP_CLIENT))
}

/// The ports of an IPv4 packet of UDP, or of the first part of one.
fn udp_ports(frame: &[u8], at: usize) -> Option<Option<(u16, u16)>> {
    let header = usize::from(frame.get(at)? & 15) * 4;
    if *frame.get(at + 9)? != UDP || u16_at(frame, at + 6)? & 0x1fff != 0 {
        return Some(None);
    }
    let ports = (u16_at(frame, at + header)?, u16_at(frame, at + header + 2)?);
    Some(Some(ports))
}

fn v6_at(frame: &[u8], at: usize) -> Option<Ipv6Addr> {
    let b: [u8; 16] = frame.get(at..at + 16)?.try_into().ok()?;
    Some(b.into())
}

/// The address of the link that follows from an Ethernet address.
fn of_link([a, b, c, d, e, f]: Mac) -> Ipv6Addr {
    [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ]
    .into()
}

/// What an IPv6 packet carries behind all that a receiver looks through, and where that begins. Parts of a packet but
/// the first carry nothing that is known: no message of neighbours comes in parts (RFC 6980).
fn payload(frame: &[u8], packet: usize) -> Option<(u8, usize)> {
    let (mut next, mut at) = (*frame.get(packet + 6)?, packet + 40);
    loop {
        let bytes = match next {
            0 | 43 | 60 | 135 | 139 | 140 => (usize::from(*frame.get(at + 1)?) + 1) * 8,
            51 => (usize::from(*frame.get(at + 1)?) + 2) * 4,
            44 if u16_at(frame, at + 2)? & 0xfff8 != 0 => return Some((44, at)),
            44 => 8,
            _ => return Some((next, at)),
        };
        next = *frame.get(at)?;
        at += bytes;
    }
}
