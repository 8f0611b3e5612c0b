// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line.

use core::fmt;
use core::net::Ipv4Addr;

/// An address of the guest's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub ip: Ipv4Addr,
    /// Bits of the network's number.
    pub bits: u8,
    pub gateway: Option<Ipv4Addr>,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.bits)
    }
}

/// What the command line says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Its address; by DHCP if there is none here.
    pub fixed: Option<Address>,
    /// Its address as long as no DHCP server answers.
    pub otherwise: Option<Address>,
    pub stall: bool,
}

impl Config {
    /// Reads it. Words that mean nothing are left out: others may read them.
    ///
    /// # Errors
    /// The word that makes no sense.
    pub fn parse(line: &str) -> Result<Self, &str> {
        let mut config = Self::default();
        for word in line.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("ip", "dhcp")) => config.fixed = None,
                Some(("ip", text)) => config.fixed = Some(address(text).ok_or(word)?),
                Some(("else", text)) => config.otherwise = Some(address(text).ok_or(word)?),
                _ => config.stall |= word == "stall",
            }
        }
        Ok(config)
    }
}

/// `ADDRESS/BITS[,GATEWAY]`.
fn address(text: &str) -> Option<Address> {
    let (net, gateway) = match text.split_once(',') {
        Some((net, gateway)) => (net, Some(gateway.parse().ok()?)),
        None => (text, None),
    };
    let (ip, bits) = net.split_once('/')?;
    let address = Address {
        ip: ip.parse().ok()?,
        bits: bits.parse().ok().filter(|b| *b <= 32)?,
        gateway,
    };
    (is_host(address.ip) && gateway.is_none_or(is_host)).then_some(address)
}

/// Whether an address can be that of one host.
pub fn is_host(ip: Ipv4Addr) -> bool {
    !(ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() || ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines() {
        assert_eq!(Config::parse("console=hvc0"), Ok(Config::default()));
        assert_eq!(Config::parse("ip=dhcp"), Ok(Config::default()));
        let config = Config::parse("ip=10.0.0.80/24 else=10.1.0.80/16,10.1.0.1 stall").unwrap();
        let fixed = config.fixed.unwrap();
        assert_eq!(fixed.to_string(), "10.0.0.80/24");
        assert_eq!(fixed.gateway, None);
        let otherwise = config.otherwise.unwrap();
        assert_eq!(otherwise.gateway, Some(Ipv4Addr::new(10, 1, 0, 1)));
        assert!(config.stall);
        for word in [
            "ip=10.0.0.80",
            "ip=10.0.0.80/33",
            "ip=10.0.0/24",
            "ip=224.0.0.1/24",
            "ip=0.0.0.0/0",
            "ip=127.0.0.1/8",
            "ip=10.0.0.80/24,",
            "else=255.255.255.255/24",
            "else=10.0.0.80/24,239.0.0.1",
        ] {
            assert_eq!(Config::parse(word), Err(word));
        }
    }
}
