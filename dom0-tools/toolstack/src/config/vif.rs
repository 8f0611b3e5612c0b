// SPDX-License-Identifier: MIT OR Apache-2.0
//! Network interface specifications (`xl-network-configuration(5)`).

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::text;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A limit on what a guest sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bytes a second.
    pub bytes_per_second: u64,
    /// How often the credit is filled up, in microseconds.
    pub interval_us: u32,
}

impl Rate {
    /// Bytes in an interval.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let bytes = u128::from(self.bytes_per_second) * u128::from(self.interval_us) / 1_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

/// A network interface as a configuration describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vif {
    /// Its address, or `None` for one that follows from the guest's UUID.
    pub mac: Option<Mac>,
    /// The bridge that it is put on.
    pub bridge: Option<String>,
    /// The addresses that the guest may use.
    pub ip: Vec<String>,
    /// The limit on what it sends.
    pub rate: Option<Rate>,
    /// The hotplug script.
    pub script: Option<String>,
    /// The back-end interface's name.
    pub vifname: Option<String>,
    /// The largest packet.
    pub mtu: Option<u16>,
    /// Its number, or `None` for the next.
    pub devid: Option<u32>,
    /// The guest need not trust the back-end.
    pub untrusted: bool,
}

const KEYS: &[&str] = &[
    "mac",
    "bridge",
    "gatewaydev",
    "netdev",
    "type",
    "model",
    "vifname",
    "script",
    "ip",
    "backend",
    "rate",
    "devid",
    "mtu",
    "trusted",
    "untrusted",
    "forwarddev",
    "accel",
];

impl Vif {
    /// Reads a specification: `key=value` parts with commas between; empty is an interface with
    /// nothing special.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn parse(spec: &str) -> Result<Self, String> {
        let mut vif = Self::default();
        let mut seen: Vec<&str> = Vec::new();
        for part in spec.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (key, value) = match part.split_once('=') {
                Some((key, value)) => (key.trim(), value.trim()),
                None => (part, ""),
            };
            if seen.contains(&key) {
                return Err(format!("{key} is given twice; give it once"));
            }
            seen.push(key);
            let text = || match value {
                "" => Err(format!("{key} has no value; write {key}=…")),
                _ => Ok(value.to_owned()),
            };
            match key {
                "mac" => vif.mac = Some(parse_mac(value)?),
                "bridge" => vif.bridge = Some(parse_ifname("bridge", &text()?)?),
                "ip" => vif.ip = parse_ips(&text()?)?,
                "rate" => vif.rate = Some(parse_rate(value)?),
                "script" => vif.script = Some(text()?),
                "vifname" => vif.vifname = Some(parse_ifname("interface", &text()?)?),
                "mtu" => {
                    let mtu = text::number(value).and_then(|n| u16::try_from(n).ok());
                    vif.mtu = mtu.filter(|n| *n >= 68);
                    if vif.mtu.is_none() {
                        return Err(format!("\"{value}\" is no mtu; it is 68 to 65535"));
                    }
                }
                "devid" => {
                    vif.devid = text::number(value).and_then(|n| u32::try_from(n).ok());
                    if vif.devid.is_none() {
                        return Err(format!("\"{value}\" is no devid; it is a number"));
                    }
                }
                "type" => match value {
                    "vif" => {}
                    "ioemu" => {
                        return Err(
                            "type=ioemu is an emulated card, which Arm guests do not have; write type=vif"
                                .to_owned(),
                        );
                    }
                    _ => return Err(format!("\"{value}\" is no type; write type=vif")),
                },
                "backend" if matches!(value, "0" | "Domain-0") => {}
                "backend" => {
                    return Err(format!(
                        "the back-end domain \"{value}\" is not supported; leave backend out"
                    ));
                }
                "trusted" => {}
                "untrusted" => vif.untrusted = true,
                // For emulated cards and routed set-ups: accepted as xl does, of no effect here.
                "model" | "gatewaydev" | "netdev" | "forwarddev" | "accel" => {}
                _ => {
                    let hint = match text::closest(key, KEYS.iter().copied()) {
                        Some(k) => format!("did you mean \"{k}\"?"),
                        None => {
                            "write for instance \"mac=00:16:3e:12:34:56,bridge=xenbr0\"".to_owned()
                        }
                    };
                    return Err(format!(
                        "\"{key}\" is no key of a network interface; {hint}"
                    ));
                }
            }
        }
        Ok(vif)
    }

    /// The addresses that the guest may use, each with how many of its bits matter.
    #[must_use]
    pub fn nets(&self) -> Vec<(IpAddr, u8)> {
        let net = |text: &String| {
            let (address, bits) = text.split_once('/').unwrap_or((text, "128"));
            Some((address.parse().ok()?, bits.parse().ok()?))
        };
        self.ip.iter().filter_map(net).collect()
    }
}

/// From text as [`Vif::parse`] takes it.
impl core::str::FromStr for Mac {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        parse_mac(text)
    }
}

fn parse_mac(value: &str) -> Result<Mac, String> {
    let wrong =
        || format!("\"{value}\" is no Ethernet address; write six pairs such as 00:16:3e:12:34:56");
    let mut bytes = [0u8; 6];
    let mut parts = value.split(':');
    for byte in &mut bytes {
        let part = parts
            .next()
            .filter(|p| p.len() == 2 && p.bytes().all(|c| c.is_ascii_hexdigit()));
        *byte = part
            .and_then(|p| u8::from_str_radix(p, 16).ok())
            .ok_or_else(wrong)?;
    }
    if parts.next().is_some() {
        return Err(wrong());
    }
    if bytes[0] & 1 != 0 {
        return Err(format!(
            "\"{value}\" is a group address; an interface's first byte is even, such as 00:16:3e:12:34:56"
        ));
    }
    Ok(Mac(bytes))
}

fn parse_ips(value: &str) -> Result<Vec<String>, String> {
    value
        .split_whitespace()
        .map(|ip| {
            let (address, bits) = ip.split_once('/').map_or((ip, None), |(a, b)| (a, Some(b)));
            let most = match (address.parse::<Ipv4Addr>(), address.parse::<Ipv6Addr>()) {
                (Ok(_), _) => 32,
                (_, Ok(_)) => 128,
                _ => {
                    return Err(format!(
                        "\"{address}\" is no IP address; write for instance ip=10.0.0.2 or ip=fd00::2"
                    ));
                }
            };
            match bits.map(|b| b.parse::<u8>()) {
                None => {}
                Some(Ok(n)) if n <= most => {}
                Some(_) => return Err(format!("\"{ip}\" has no right prefix; it is 0 to {most}")),
            }
            Ok(ip.to_owned())
        })
        .collect()
}

/// A name as Linux takes for a network device, which a bridge is too.
fn parse_ifname(what: &str, value: &str) -> Result<String, String> {
    let good = value.len() <= 15
        && value
            .chars()
            .all(|c| c.is_ascii_graphic() && c != '/' && c != ':');
    match good {
        true => Ok(value.to_owned()),
        false => Err(format!(
            "{value:?} is no {what}'s name; it has at most 15 letters, and no spaces, / and :"
        )),
    }
}

/// `<number>{,K,M,G}{B,b}/s[@<number>{s,ms,us}]`, in thousands.
fn parse_rate(value: &str) -> Result<Rate, String> {
    let wrong = || format!("\"{value}\" is no rate; write for instance 10Mb/s or 1GB/s@20ms");
    let (rate, interval) = value
        .split_once('@')
        .map_or((value, None), |(r, i)| (r, Some(i)));
    let rate = rate.strip_suffix("/s").ok_or_else(wrong)?;
    let (rate, bits) = match rate.strip_suffix('b') {
        Some(rate) => (rate, 8),
        None => (rate.strip_suffix('B').ok_or_else(wrong)?, 1),
    };
    let (digits, unit) = split_digits(rate);
    let scale: u64 = match unit {
        "" => 1,
        "K" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let bytes_per_second = number.checked_mul(scale).ok_or_else(wrong)? / bits;
    let interval_us = match interval {
        None => 50_000,
        Some(text) => {
            let (digits, unit) = split_digits(text);
            let scale: u32 = match unit {
                "us" => 1,
                "ms" => 1000,
                "s" => 1_000_000,
                _ => return Err(wrong()),
            };
            digits
                .parse::<u32>()
                .ok()
                .and_then(|n| n.checked_mul(scale))
                .ok_or_else(wrong)?
        }
    };
    if bytes_per_second == 0 || interval_us == 0 {
        return Err(wrong());
    }
    let parsed = Rate {
        bytes_per_second,
        interval_us,
    };
    match parsed.bytes() {
        0 => Err(format!(
            "\"{value}\" is less than a byte in each interval; write a longer one, such as 1Kb/s@50ms"
        )),
        _ => Ok(parsed),
    }
}

fn split_digits(text: &str) -> (&str, &str) {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    (
        text.get(..text.len() - unit.len()).unwrap_or_default(),
        unit,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn good() {
        assert_eq!(Vif::parse("").unwrap(), Vif::default());
        let v = Vif::parse(
            "mac=00:16:3E:00:00:02, bridge=xenbr0, ip=10.0.0.2/24 fd00::2, rate=10Mb/s@20ms, script=vif-x, vifname=v0, type=vif, mtu=1400, devid=3, untrusted",
        )
        .unwrap();
        assert_eq!(v.mac.unwrap().to_string(), "00:16:3e:00:00:02");
        assert_eq!(v.ip, ["10.0.0.2/24", "fd00::2"]);
        let nets = [("10.0.0.2", 24), ("fd00::2", 128)];
        assert_eq!(v.nets(), nets.map(|(a, n)| (a.parse().unwrap(), n)));
        assert_eq!(
            v.rate,
            Some(Rate {
                bytes_per_second: 1_250_000,
                interval_us: 20_000
            })
        );
        assert_eq!((v.mtu, v.devid, v.untrusted), (Some(1400), Some(3), true));
        assert_eq!(
            Vif::parse("rate=1GB/s").unwrap().rate,
            Some(Rate {
                bytes_per_second: 1_000_000_000,
                interval_us: 50_000
            })
        );
    }

    #[test]
    fn mistakes() {
        for (spec, error) in [
            (
                "mac=1",
                "\"1\" is no Ethernet address; write six pairs such as 00:16:3e:12:34:56",
            ),
            (
                "mac=01:16:3e:00:00:02",
                "\"01:16:3e:00:00:02\" is a group address; an interface's first byte is even, such as 00:16:3e:12:34:56",
            ),
            ("bridge=", "bridge has no value; write bridge=…"),
            (
                "brigde=x",
                "\"brigde\" is no key of a network interface; did you mean \"bridge\"?",
            ),
            (
                "what=x",
                "\"what\" is no key of a network interface; write for instance \"mac=00:16:3e:12:34:56,bridge=xenbr0\"",
            ),
            (
                "ip=10.0.0",
                "\"10.0.0\" is no IP address; write for instance ip=10.0.0.2 or ip=fd00::2",
            ),
            (
                "ip=10.0.0.1/33",
                "\"10.0.0.1/33\" has no right prefix; it is 0 to 32",
            ),
            (
                "rate=10",
                "\"10\" is no rate; write for instance 10Mb/s or 1GB/s@20ms",
            ),
            (
                "rate=99999999999999999999GB/s",
                "\"99999999999999999999GB/s\" is no rate; write for instance 10Mb/s or 1GB/s@20ms",
            ),
            (
                "rate=0b/s",
                "\"0b/s\" is no rate; write for instance 10Mb/s or 1GB/s@20ms",
            ),
            ("mtu=9", "\"9\" is no mtu; it is 68 to 65535"),
            (
                "type=ioemu",
                "type=ioemu is an emulated card, which Arm guests do not have; write type=vif",
            ),
            (
                "vifname=a-very-long-interface",
                "\"a-very-long-interface\" is no interface's name; it has at most 15 letters, and no spaces, / and :",
            ),
            (
                "bridge=a\x1b[2Jb",
                "\"a\\u{1b}[2Jb\" is no bridge's name; it has at most 15 letters, and no spaces, / and :",
            ),
            (
                "rate=1Kb/s@1us",
                "\"1Kb/s@1us\" is less than a byte in each interval; write a longer one, such as 1Kb/s@50ms",
            ),
            (
                "mac=00:16:3e:00:00:02,mac=00:16:3e:00:00:03",
                "mac is given twice; give it once",
            ),
        ] {
            assert_eq!(Vif::parse(spec).unwrap_err(), error, "{spec}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(spec in "(mac|rate|ip|mtu|x)=[a-zA-Z0-9,=:/@. é]{0,40}") {
            let _ = Vif::parse(&spec);
        }
    }
}
