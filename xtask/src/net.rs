// SPDX-License-Identifier: MIT OR Apache-2.0
//! The network that the machine's card is on (`--net`), as QEMU has it.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, ToSocketAddrs, UdpSocket};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::process::output;

/// A card and what it is connected with.
#[derive(Clone, Debug, PartialEq)]
pub struct Net {
    pub link: Link,
    /// The card's address; if `None`, QEMU's own choice, which is the same for all machines.
    pub mac: Option<String>,
}

/// A card, or none. (By this name clap takes it for one value.)
pub type Choice = Option<Net>;

/// What a card is connected with.
#[derive(Clone, Debug, PartialEq)]
pub enum Link {
    /// QEMU's own network, which reaches whatever QEMU's process reaches.
    User(Vec<Forward>),
    /// An interface of the host's.
    Tap(String),
    /// Waits for another QEMU's connection.
    Listen(SocketAddrV4),
    /// Connects to another QEMU.
    Connect(String),
    /// A group that several QEMUs share, and the address of the host's interface to it.
    Mcast(SocketAddrV4, Option<Ipv4Addr>),
}

/// A port of the host's that leads into the machine's network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Forward {
    pub udp: bool,
    pub host: SocketAddrV4,
    /// 10.0.2.15, the first address that is given out, if `None`.
    pub to: Option<Ipv4Addr>,
    pub to_port: u16,
}

impl Default for Net {
    /// QEMU's own network, and nothing leads into it.
    fn default() -> Self {
        Self {
            link: Link::User(Vec::new()),
            mac: None,
        }
    }
}

/// `none` is `None`; else `user`, `tap=NAME` or `socket`, and options with commas between.
pub fn parse_net(text: &str) -> Result<Choice, String> {
    let mut words = text.split(',');
    let kind = words.next().unwrap_or_default();
    let (mut mac, mut options) = (None, Vec::new());
    for word in words {
        let (key, value) = word
            .split_once('=')
            .ok_or_else(|| format!("{word:?} is no KEY=VALUE"))?;
        match key {
            "mac" => mac = Some(parse_mac(value)?),
            _ => options.push((key, value)),
        }
    }
    let link = match kind.split_once('=') {
        Some(("tap", name)) => Link::Tap(name.to_owned()),
        None if kind == "none" => {
            return match options.is_empty() && mac.is_none() {
                true => Ok(None),
                false => Err("there is nothing to say of no network".to_owned()),
            };
        }
        None if kind == "user" => {
            let mut forwards = Vec::new();
            options.retain(|(key, value)| {
                let is = *key == "hostfwd";
                if is {
                    forwards.push(parse_forward(value));
                }
                !is
            });
            Link::User(forwards.into_iter().collect::<Result<_, _>>()?)
        }
        None if kind == "socket" => parse_socket(&mut options)?,
        _ => {
            return Err(format!(
                "no such network as {kind:?}: there are none, user, tap=NAME and socket"
            ));
        }
    };
    match options.first() {
        None => Ok(Some(Net { link, mac })),
        Some((key, _)) => Err(format!("{key} is no option of {kind}")),
    }
}

fn parse_mac(text: &str) -> Result<String, String> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| {
            u8::from_str_radix(part, 16)
                .ok()
                .filter(|_| part.len() == 2)
        })
        .collect();
    match bytes.as_deref() {
        Some([first, _, _, _, _, _]) if first & 1 == 0 => Ok(text.to_ascii_lowercase()),
        _ => Err(format!("{text:?} is no card's address")),
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port @ 1..) => Ok(port),
        _ => Err(format!("{text:?} is no port")),
    }
}

fn parse_address(text: &str) -> Result<Ipv4Addr, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is no IPv4 address"))
}

/// `[HOST]:PORT`; without a host, the loopback interface's address.
fn parse_place(text: &str) -> Result<SocketAddrV4, String> {
    let (host, port) = text
        .split_once(':')
        .ok_or_else(|| format!("{text:?} is no [ADDRESS]:PORT"))?;
    let host = match host {
        "" => Ipv4Addr::LOCALHOST,
        _ => parse_address(host)?,
    };
    Ok(SocketAddrV4::new(host, parse_port(port)?))
}

/// `tcp|udp:[HOST]:PORT-[ADDRESS]:PORT`
fn parse_forward(text: &str) -> Result<Forward, String> {
    const FORM: &str = "hostfwd is tcp|udp:[HOST]:PORT-[ADDRESS]:PORT, such as tcp::8080-:80";
    let (kind, rest) = text.split_once(':').ok_or(FORM)?;
    let udp = match kind {
        "tcp" => false,
        "udp" => true,
        _ => return Err(FORM.to_owned()),
    };
    let (host, to) = rest.split_once('-').ok_or(FORM)?;
    let (to, to_port) = to.split_once(':').ok_or(FORM)?;
    Ok(Forward {
        udp,
        host: parse_place(host)?,
        to: match to {
            "" => None,
            _ => Some(parse_address(to)?),
        },
        to_port: parse_port(to_port)?,
    })
}

fn parse_socket(options: &mut Vec<(&str, &str)>) -> Result<Link, String> {
    let mut take = |key| {
        let at = options.iter().position(|(k, _)| *k == key)?;
        Some(options.remove(at).1)
    };
    match (take("listen"), take("connect"), take("mcast")) {
        (Some(place), None, None) => parse_place(place).map(Link::Listen),
        (None, Some(place), None) => {
            let port = place.rsplit_once(':').map(|(_, port)| port);
            parse_port(port.unwrap_or_default())?;
            Ok(Link::Connect(place.to_owned()))
        }
        (None, None, Some(group)) => {
            let group = parse_place(group)?;
            if !group.ip().is_multicast() {
                return Err(format!("{} is no multicast group", group.ip()));
            }
            let local = take("localaddr").map(parse_address).transpose()?;
            Ok(Link::Mcast(group, local))
        }
        _ => Err("socket wants one of listen=, connect= and mcast=".to_owned()),
    }
}

impl Net {
    /// On a network with others, a card for which no address is given has one of this host's and folder's own, the same
    /// each time: QEMU's choice is the same for all.
    pub fn with_address(mut self, folder: &Path) -> Self {
        if self.mac.is_none() && !matches!(self.link, Link::User(_)) {
            let host = fs::read("/etc/machine-id").unwrap_or_default();
            let mut hasher = DefaultHasher::new();
            (host, folder).hash(&mut hasher);
            let [a, b, c, ..] = hasher.finish().to_le_bytes();
            self.mac = Some(format!("52:54:00:{a:02x}:{b:02x}:{c:02x}"));
        }
        self
    }

    /// Says what is wrong with it on this host, before QEMU starts.
    pub fn check(&self, qemu: &Path) -> Result<()> {
        match &self.link {
            Link::User(forwards) => {
                let known =
                    output(Command::new(qemu).args(["-machine", "none", "-netdev", "help"]))?;
                ensure!(
                    known.lines().any(|line| line.trim() == "user"),
                    "{} has no user-mode network; --net none goes without one",
                    qemu.display()
                );
                let mut places = BTreeSet::new();
                for forward in forwards {
                    ensure!(
                        places.insert((forward.udp, forward.host)),
                        "two of hostfwd are for {}",
                        forward.host
                    );
                    free(forward.udp, forward.host)?;
                }
                Ok(())
            }
            Link::Tap(name) => check_tap(name),
            Link::Listen(place) => free(false, *place),
            Link::Connect(place) => {
                let found = place.to_socket_addrs();
                found.with_context(|| format!("{place} is nowhere"))?;
                Ok(())
            }
            Link::Mcast(..) => Ok(()),
        }
    }

    /// QEMU's options.
    pub fn arguments(&self) -> [String; 4] {
        let link = match &self.link {
            Link::User(forwards) => {
                let mut text = "user".to_owned();
                for Forward {
                    udp,
                    host,
                    to,
                    to_port,
                } in forwards
                {
                    let kind = if *udp { "udp" } else { "tcp" };
                    let to = to.map_or_else(String::new, |to| to.to_string());
                    text += &format!(",hostfwd={kind}:{host}-{to}:{to_port}");
                }
                text
            }
            Link::Tap(name) => format!("tap,ifname={name},script=no,downscript=no"),
            Link::Listen(place) => format!("socket,listen={place}"),
            Link::Connect(place) => format!("socket,connect={}", place.replace(',', ",,")),
            Link::Mcast(group, None) => format!("socket,mcast={group}"),
            Link::Mcast(group, Some(local)) => format!("socket,mcast={group},localaddr={local}"),
        };
        let mut device = "virtio-net-device,netdev=net".to_owned();
        if let Some(mac) = &self.mac {
            device += &format!(",mac={mac}");
        }
        [
            "-netdev".to_owned(),
            format!("{link},id=net"),
            "-device".to_owned(),
            device,
        ]
    }
}

/// Whether the host lets this process listen there.
fn free(udp: bool, place: SocketAddrV4) -> Result<()> {
    let bound = match udp {
        true => UdpSocket::bind(place).map(drop),
        false => TcpListener::bind(place).map(drop),
    };
    let kind = if udp { "UDP" } else { "TCP" };
    bound.with_context(|| format!("cannot listen on the host's {kind} port {place}"))
}

fn check_tap(name: &str) -> Result<()> {
    // The kernel's own limit (IFNAMSIZ), and nothing that would be a path or another option.
    let good = (1..16).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && !name.starts_with('.');
    ensure!(good, "{name:?} is no name of an interface");
    let dir = Path::new("/sys/class/net").join(name);
    ensure!(
        dir.is_dir(),
        "the host has no interface {name}; `ip tuntap add dev {name} mode tap user $USER` makes one"
    );
    let flags = fs::read_to_string(dir.join("tun_flags")).unwrap_or_default();
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap_or(0);
    // IFF_TAP.
    ensure!(flags & 2 != 0, "{name} is no tap interface");
    match fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
    {
        Ok(_) => Ok(()),
        Err(e) => bail!("cannot use /dev/net/tun: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Net {
        parse_net(text).unwrap().unwrap()
    }

    #[test]
    fn addresses_differ_where_machines_meet() {
        let mac = |text, folder: &str| net(text).with_address(Path::new(folder)).mac;
        assert_eq!(mac("user", "/a"), None);
        for link in ["tap=t", "socket,connect=a:1", "socket,mcast=230.0.0.1:1"] {
            let a = mac(link, "/a").unwrap();
            assert_eq!(Some(&a), mac(link, "/a").as_ref());
            assert_ne!(Some(&a), mac(link, "/b").as_ref());
            assert_eq!(
                parse_net(&format!("{link},mac={a}")).unwrap().unwrap().mac,
                Some(a)
            );
        }
        let given = "52:54:00:00:00:01";
        assert_eq!(mac(&format!("tap=t,mac={given}"), "/a").unwrap(), given);
    }

    #[test]
    fn networks_are_as_qemu_writes_them() {
        for (text, netdev) in [
            ("user", "user,id=net"),
            (
                "user,hostfwd=tcp::8080-:80,hostfwd=udp:0.0.0.0:53-10.0.2.16:5353",
                "user,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=udp:0.0.0.0:53-10.0.2.16:5353,id=net",
            ),
            ("tap=tap0", "tap,ifname=tap0,script=no,downscript=no,id=net"),
            ("socket,listen=:1234", "socket,listen=127.0.0.1:1234,id=net"),
            (
                "socket,connect=host.example:1234",
                "socket,connect=host.example:1234,id=net",
            ),
            (
                "socket,mcast=230.0.0.1:1234,localaddr=127.0.0.1",
                "socket,mcast=230.0.0.1:1234,localaddr=127.0.0.1,id=net",
            ),
        ] {
            assert_eq!(net(text).arguments()[1], netdev, "{text}");
        }
        assert_eq!(parse_net("none"), Ok(None));
        assert_eq!(
            net("tap=t,mac=52:54:00:AB:00:01").arguments()[3],
            "virtio-net-device,netdev=net,mac=52:54:00:ab:00:01"
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "",
            "usr",
            "none,mac=52:54:00:ab:00:01",
            "user,",
            "user,restrict=on",
            "user,hostfwd=tcp:8080",
            "user,hostfwd=sctp::8080-:80",
            "user,hostfwd=tcp::0-:80",
            "user,hostfwd=tcp::8080-:65536",
            "user,hostfwd=tcp:localhost:8080-:80",
            "tap",
            "tap=t,listen=:1",
            "tap=t,mac=01:00:00:00:00:01",
            "tap=t,mac=52:54:00:ab:00",
            "socket",
            "socket,listen=:1,connect=a:1",
            "socket,connect=host",
            "socket,mcast=10.0.0.1:1",
            "socket,listen=:1,localaddr=127.0.0.1",
        ] {
            assert!(parse_net(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_host_is_looked_at_first() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let check = |text: &str| net(text).check(Path::new("/bin/false"));
        assert!(check(&format!("socket,listen=:{port}")).is_err());
        drop(taken);
        assert!(check(&format!("socket,listen=:{port}")).is_ok());
        for name in ["", "lo", "no/name", "nowhere-at-all-0", "..", "nowhere0"] {
            assert!(check(&format!("tap={name}")).is_err(), "{name}");
        }
    }
}
