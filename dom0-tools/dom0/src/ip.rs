// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the control domain comes by an IP address: the word `dom0_ip=` of the command line.

use core::net::Ipv4Addr;

/// An address and its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address, which is one host's.
    pub ip: Ipv4Addr,
    /// Bits of its network's number, at most 32.
    pub bits: u8,
    /// Who forwards to other networks.
    pub gateway: Option<Ipv4Addr>,
}

impl Address {
    /// `None` when that is no address of a host, or no network. A gateway that is no host is left out.
    #[must_use]
    pub fn new(ip: Ipv4Addr, bits: u8, gateway: Option<Ipv4Addr>) -> Option<Self> {
        (is_host(ip) && bits <= 32).then(|| Self {
            ip,
            bits,
            gateway: gateway.filter(|g| is_host(*g)),
        })
    }
}

/// Whether an address can be one host's.
fn is_host(ip: Ipv4Addr) -> bool {
    // 240.0.0.0/4 is reserved; the broadcast address is in it.
    !(ip.octets()[0] == 0 || ip.is_loopback() || ip.is_multicast() || ip.octets()[0] >= 240)
}

/// Where an address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// There is to be none, and nothing that answers.
    Off,
    /// From a server on the network.
    Dhcp,
    /// From the command line.
    Fixed(Address),
}

/// `off`, `dhcp` or `ADDRESS/BITS[,GATEWAY]`.
#[must_use]
pub fn parse(text: &str) -> Option<Source> {
    match text {
        "off" => return Some(Source::Off),
        "dhcp" => return Some(Source::Dhcp),
        _ => {}
    }
    let (address, gateway) = match text.split_once(',') {
        Some((address, gateway)) => (address, Some(gateway.parse().ok()?)),
        None => (text, None),
    };
    let (ip, bits) = address.split_once('/')?;
    let address = Address::new(ip.parse().ok()?, bits.parse().ok()?, gateway)?;
    (address.gateway == gateway).then_some(Source::Fixed(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        assert_eq!(parse("off"), Some(Source::Off));
        assert_eq!(parse("dhcp"), Some(Source::Dhcp));
        let ip = Ipv4Addr::new(10, 0, 2, 99);
        let gateway = Ipv4Addr::new(10, 0, 2, 2);
        let fixed = |gateway| {
            Some(Source::Fixed(Address {
                ip,
                bits: 24,
                gateway,
            }))
        };
        assert_eq!(parse("10.0.2.99/24"), fixed(None));
        assert_eq!(parse("10.0.2.99/24,10.0.2.2"), fixed(Some(gateway)));
        for bad in [
            "",
            "on",
            "10.0.2.99",
            "10.0.2.99/33",
            "10.0.2/24",
            "0.0.0.0/0",
            "127.0.0.1/8",
            "224.0.0.1/24",
            "255.255.255.255/24",
            "10.0.2.99/24,",
            "10.0.2.99/24,239.0.0.1",
            "10.0.2.99/24,10.0.2.2,",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        // A server's nonsense gives no address; its nonsense of a gateway only no gateway.
        assert_eq!(Address::new(Ipv4Addr::BROADCAST, 24, None), None);
        let got = Address::new(ip, 24, Some(Ipv4Addr::UNSPECIFIED)).unwrap();
        assert_eq!(got.gateway, None);
    }
}
