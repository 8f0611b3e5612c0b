// SPDX-License-Identifier: MIT OR Apache-2.0
//! Machines with a network card: guests that reach the world, and what the world may send.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;

use super::tap::{Tap, set_link};
use super::*;
use crate::net::{Forward, Link, Net};
use crate::world::{self, Wire};

/// The control domain's page, on this port of the host's, has lines that begin so.
fn status_page(port: u16, lines: &[&str]) -> Result<()> {
    let page = String::from_utf8(world::fetch(port, "/")?)?;
    for begin in lines {
        ensure!(
            page.lines().any(|line| line.starts_with(begin)),
            "no line {begin:?}... in:\n{page}"
        );
    }
    Ok(())
}

/// Two Linux guests in a machine with a card, which QEMU's own network connects with this host: each gets its address
/// by DHCP, resolves a name, fetches a file from a server of this host, and serves it to a client of this host, who must
/// get what the server had. The Rust guest `httpd` serves its page, bytes and a checksum of what it is sent to a client of
/// this host, too. The name is asked of a server of this test: what QEMU's own (10.0.2.3) answers depends on
/// this host. The control domain has an address of its own, too, answers guests' pings, and shows its page to them and
/// to this host.
pub(super) fn world(stage: &Stage) -> Result<()> {
    const SIZE: usize = 4 << 20;
    let host = Ipv4Addr::new(10, 0, 2, 2);
    let files: Vec<world::File> = KERNELS
        .iter()
        .zip(1..)
        .map(|(kernel, seed)| (format!("/{}", kernel.guest), world::bytes(seed, SIZE)))
        .collect();
    let http = world::serve_files(files.clone())?;
    let dns = world::serve_name("world.test", host)?;
    // Whichever address a guest is given, one of these leads to it.
    let mut forwards = Vec::new();
    for last in [15, 16, 17, 18, 99] {
        forwards.push(Forward {
            udp: false,
            host: world::free_port()?,
            to: Some(Ipv4Addr::new(10, 0, 2, last)),
            to_port: 80,
        });
    }
    let port_to = |address: Ipv4Addr| {
        let forward = forwards.iter().find(|f| f.to == Some(address));
        forward
            .map(|f| f.host.port())
            .with_context(|| format!("unforeseen {address}"))
    };
    let machine = |append: &[&str]| Machine {
        net: Some(Net {
            link: Link::User(forwards.clone()),
            mac: Some("52:54:00:00:00:07".into()),
        }),
        append: append.iter().map(ToString::to_string).collect(),
        ..machine(3, 2)
    };
    // What the control domain is told of its address.
    stage.play(&machine(&["dom0_ip=off"]), |session| {
        session.vane_shows("info", "^control_address +: -$")?;
        let ports = session.vane("bridge-list")?;
        ensure!(!ports.contains("dom0"), "it is on the bridge:\n{ports}");
        Ok(())
    })?;
    stage.play_on(&machine(&["dom0_ip=10.0.2.99/24,10.0.2.2"]), |session| {
        session.vane_shows("info", "^control_address +: 10.0.2.99/24$")?;
        status_page(port_to(Ipv4Addr::new(10, 0, 2, 99))?, &["Domain-0"])
    })?;
    stage.play_on(&machine(&[]), |session| {
        session.vane_shows("bridge-list", "^xenbr0 +eth0 +52:54:00:00:00:07 up ")?;
        let mut own = String::new();
        wait_until(session, LINUX, |session| {
            let info = session.json("info --json")?;
            let address = info["control_address"].as_str().unwrap_or_default();
            own = address.trim_end_matches("/24").to_owned();
            Ok(!own.is_empty())
        })?;
        session.vane_shows("bridge-list", "^xenbr0 +dom0 +02:16:00:00:00:07 up ")?;
        let card =
            format!("^  network +eth0 52:54:00:00:00:07, link up, on xenbr0; dom0 has {own}/24$");
        session.vane_shows("doctor", &card)?;
        for kernel in KERNELS {
            session.vane(&format!("create /guests/{}.cfg", kernel.guest))?;
        }
        session.vane("create /guests/httpd.cfg")?;
        let mut ports = Vec::new();
        for kernel in KERNELS {
            session.attach(kernel.guest)?;
            linux_ready(session, kernel, 1)?;
            session.shell(
                "until grep -q '^nameserver 10.0.2.3$' /etc/resolv.conf; do sleep 1; done",
            )?;
            let shown = session.shell("ip -4 address show dev eth0")?;
            let address = shown
                .split_whitespace()
                .find_map(|word| word.strip_suffix("/24")?.parse::<Ipv4Addr>().ok());
            let address = address.with_context(|| format!("no address in:\n{shown}"))?;
            ports.push(port_to(address)?);
            session.shell(&format!("ping -c 2 -W 5 {own}"))?;
            session.shell(&format!(
                "wget -q -O - http://{own}/ | grep -q '^Domain-0 '"
            ))?;
            session.shell("ip route | grep '^default via 10.0.2.2 '")?;
            let shown = session.shell(&format!("nslookup world.test {host}:{dns}"))?;
            ensure!(
                shown
                    .lines()
                    .any(|line| line.starts_with("Address") && line.ends_with(&format!(" {host}"))),
                "no {host} in:\n{shown}"
            );
            session.shell(&format!("! nslookup nowhere.test {host}:{dns}"))?;
            // Goes on while the other one does the same.
            session.shell(&format!(
                "wget -q -O /tmp/file http://{host}:{http}/{} & true",
                kernel.guest
            ))?;
            session.detach()?;
        }
        for kernel in KERNELS {
            session.attach(kernel.guest)?;
            session.shell("wait; httpd -p 80 -h /tmp")?;
            session.detach()?;
        }
        let clients: Vec<_> = ports
            .iter()
            .map(|port| {
                let port = *port;
                thread::spawn(move || world::fetch(port, "/file"))
            })
            .collect();
        for (client, (name, file)) in clients.into_iter().zip(&files) {
            let got = client.join().ok().context("a client panicked")??;
            ensure!(
                got == *file,
                "{name}: {} bytes came back of {SIZE}, or others",
                got.len()
            );
        }
        session.attach("httpd")?;
        let shown = session.expect(r"^httpd: serving http://\S+/ \(\S+/24, by DHCP\)$", LINUX)?;
        session.detach()?;
        let address = shown.split(['/', ' ']).find_map(|word| word.parse().ok());
        served_by_httpd(port_to(address.with_context(|| shown.clone())?)?)?;
        // More than it has places for at a time, one after another.
        for _ in 0..10 {
            let names = ["Domain-0 ", "linux ", "linux612 ", "httpd ", "xenbr0 "];
            status_page(port_to(own.parse()?)?, &names)?;
        }
        let bridges = session.json("bridge-list --json")?;
        let card = &bridges[0]["ports"][0];
        ensure!(
            ["in", "out"]
                .iter()
                .all(|way| card[way]["bytes"].as_u64() > Some(2 * SIZE as u64)),
            "`bridge-list`: {bridges}"
        );
        for guest in KERNELS.iter().map(|kernel| kernel.guest).chain(["httpd"]) {
            session.vane(&format!("destroy {guest}"))?;
            gone(session, guest)?;
        }
        let ports = session.vane("bridge-list")?;
        ensure!(!ports.contains("vif"), "what is left:\n{ports}");
        Ok(())
    })
}

/// The guest `httpd`, to which this port of the host's leads, serves its page and bytes, and tells the checksum of what it
/// is sent.
fn served_by_httpd(port: u16) -> Result<()> {
    const BYTES: u32 = 1_000_000;
    let crc32 = |bytes: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        format!("{:08x}", crc.sum())
    };
    let page = String::from_utf8(world::fetch(port, "/")?)?;
    ensure!(
        page.contains("This is httpd, a kernel in Rust"),
        "its page:\n{page}"
    );
    let got = world::fetch(port, &format!("/bytes/{BYTES}"))?;
    ensure!(
        crc32(&got) == network::sum(BYTES),
        "{} bytes came of {BYTES}, or others",
        got.len()
    );
    let sent = world::bytes(3, BYTES as usize);
    let said = String::from_utf8(world::post(port, "/sum", &sent)?)?;
    let expected = format!("crc32 {} of {BYTES} bytes\n", crc32(&sent));
    ensure!(said == expected, "it says {said}, not {expected}");
    Ok(())
}

/// How many frames there were, and their bytes.
#[derive(Clone, Copy)]
struct Seen {
    frames: u64,
    bytes: u64,
}

/// What came in at the card, and what went out, as the bridge counts it, and the same as this host's interface does, which
/// sends what the card receives.
fn seen(session: &mut Session, tap: &Tap) -> Result<[[Seen; 2]; 2]> {
    let bridges = session.json("bridge-list --json")?;
    let card = &bridges[0]["ports"][0];
    ensure!(card["port"] == "eth0", "no card first: {bridges}");
    let way = |way: &str, from_host: &str| {
        let number = |what: &str| card[way][what].as_u64().context("no number");
        let card = Seen {
            frames: number("frames")?,
            bytes: number("bytes")?,
        };
        let host = Seen {
            frames: tap.counter(&format!("{from_host}_packets"))?,
            bytes: tap.counter(&format!("{from_host}_bytes"))?,
        };
        Ok::<_, anyhow::Error>([card, host])
    };
    Ok([way("in", "tx")?, way("out", "rx")?])
}

/// So many bytes went this way since in fewer frames than an Ethernet's are: how large TCP makes its own is a matter of time. Of what
/// goes out the bridge counts large frames whoever splits them, and the tap those that it gets.
fn went_whole(what: &str, before: [Seen; 2], after: [Seen; 2], size: usize) -> Result<()> {
    let least = size as u64 / 1460;
    for (who, (before, after)) in ["the bridge", "the tap"]
        .iter()
        .zip(before.iter().zip(&after))
    {
        let (frames, bytes) = (after.frames - before.frames, after.bytes - before.bytes);
        ensure!(
            bytes > size as u64 && frames < least * 3 / 4,
            "{what}, {who} counts {bytes} bytes in {frames} frames, of which there would be {least} if all were an Ethernet's"
        );
    }
    Ok(())
}

/// A machine's card at a tap interface of this host's, which leaves checksums and segments to whoever comes last: a
/// Linux guest fetches a file from this host and serves it to it, and large frames cross the card whole, both ways. The
/// link goes and comes, and the bridge knows.
pub(super) fn tap(stage: &Stage) -> Result<()> {
    const SIZE: usize = 16 << 20;
    let tap = Tap::new()?;
    let (host, guest) = (tap.address(1), tap.address(2));
    let file = world::bytes(5, SIZE);
    let port = world::serve_files_at(host, vec![("/file".into(), file.clone())])?;
    let dns = world::serve_name_at(host, "world.test", guest)?;
    let monitor = stage.dir()?.join("monitor");
    let machine = Machine {
        net: Some(Net {
            link: Link::Tap(tap.name().into()),
            mac: Some("52:54:00:00:00:07".into()),
        }),
        append: vec!["dom0_ip=off".into()],
        monitor: Some(monitor.clone()),
        ..machine(3, 1)
    };
    stage.play(&machine, |session| {
        session.vane("create linux disk=[] \"vif=['']\"")?;
        linux_gets_address(session, "linux", &guest.to_string())?;
        let before = seen(session, &tap)?;
        session.attach("linux")?;
        session.shell_within(
            &format!("wget -q -O /tmp/file http://{host}:{port}/file"),
            LINUX,
        )?;
        session.shell("httpd -p 80 -h /tmp")?;
        session.detach()?;
        let between = seen(session, &tap)?;
        let got = world::fetch_from(SocketAddrV4::new(guest, 80), "/file")?;
        ensure!(
            got == file,
            "{} bytes came back of {SIZE}, or others",
            got.len()
        );
        let after = seen(session, &tap)?;
        went_whole("from this host", before[0], between[0], SIZE)?;
        went_whole("to this host", between[1], after[1], SIZE)?;

        for (up, shown) in [(false, "down"), (true, "up")] {
            set_link(&monitor, up)?;
            wait_until(session, ANSWER, |session| {
                let bridges = session.json("bridge-list --json")?;
                Ok(bridges[0]["ports"][0]["link"] == up)
            })
            .with_context(|| format!("the link is not {shown}"))?;
        }
        session.attach("linux")?;
        session.shell(&format!("ping -c 2 -W 5 {host}"))?;
        // UDP's checksums are left to the card, too.
        let shown = session.shell(&format!("nslookup world.test {host}:{dns}"))?;
        ensure!(
            shown.contains(&guest.to_string()),
            "no {guest} in:\n{shown}"
        );
        session.detach()?;
        session.vane("destroy linux").map(drop)
    })
}

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a silent client may hold one of the page's places, and some more.
const PLACES_FREE: Duration = Duration::from_secs(60);
/// How many places there are.
const PLACES: usize = 8;
/// How many addresses a bridge learns at a port.
const LEARNED: usize = 256;
/// How many frames of nonsense there are.
const NONSENSE: u64 = 4000;

const OWN_MAC: [u8; 6] = [2, 0x16, 0, 0, 0, 7];
const OWN_IP: [u8; 4] = [10, 9, 9, 9];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER_IP: [u8; 4] = [10, 9, 9, 1];

/// What comes from the wire is as bad as it can be, and the control domain goes on: frames of nonsense of every length,
/// from more addresses than a bridge learns, packets that are nearly right, and connections that nobody means to use.
/// This test is at the wire's other end (QEMU's `socket`).
pub(super) fn wire(stage: &Stage) -> Result<()> {
    let (port, wire) = Wire::wait()?;
    let machine = Machine {
        net: Some(Net {
            link: Link::Connect(format!("127.0.0.1:{port}")),
            mac: Some("52:54:00:00:00:07".into()),
        }),
        append: vec!["dom0_ip=10.9.9.9/24".into()],
        ..machine(3, 1)
    };
    stage.play(&machine, |session| {
        let mut wire = wire.join().ok().context("no wire")??;
        let heap = |session: &mut Session| -> Result<u64> {
            let info = session.json("info --json")?;
            info["control_heap_used_kib"].as_u64().context("no heap")
        };
        is_there(&mut wire)?;
        let before = heap(session)?;

        for seed in 1..=NONSENSE {
            wire.send(&nonsense(seed))?;
        }
        is_there(&mut wire)?;
        let bridges = session.json("bridge-list --json")?;
        let (card, own) = (&bridges[0]["ports"][0], &bridges[0]["ports"][1]);
        let learned = card["macs"].as_array().map_or(0, Vec::len);
        ensure!(
            card["link"] == true
                // Some are too long for the card.
                && card["in"]["frames"].as_u64() > Some(NONSENSE * 99 / 100)
                && card["in"]["refused"].as_u64() > Some(0)
                && own["out"]["frames"].as_u64() > Some(NONSENSE / 2)
                && learned == LEARNED,
            "{learned} addresses; `bridge-list`: {bridges}"
        );
        let after = heap(session)?;
        ensure!(
            after <= before + 256,
            "the control domain used {before} KiB of its heap before, and {after} KiB after"
        );

        // As many connections as there are places are answered, the others are refused.
        let asked = 1000..1064_u16;
        for port in asked.clone() {
            wire.send(&syn(port))?;
        }
        let (mut taken, mut refused) = (BTreeSet::new(), BTreeSet::new());
        while taken.len() + refused.len() < asked.len() {
            let (port, flags) = wire.expect(ANSWER, tcp_answer)?;
            match flags & 0x16 {
                0x12 => taken.insert(port),
                0x14 => refused.insert(port),
                _ => continue,
            };
        }
        ensure!(
            taken.len() == PLACES && refused.len() == asked.len() - PLACES,
            "{} connections taken, {} refused",
            taken.len(),
            refused.len()
        );
        session.vane_shows("list", "^Domain-0 ")?;
        // And when nobody says anything there, they are for others.
        let begin = Instant::now();
        for port in 2000.. {
            wire.send(&syn(port))?;
            let (_, flags) = wire.expect(ANSWER, |f| tcp_answer(f).filter(|a| a.0 == port))?;
            if flags & 0x16 == 0x12 {
                break;
            }
            ensure!(begin.elapsed() < PLACES_FREE, "the places stay taken");
            thread::sleep(Duration::from_millis(500));
        }
        is_there(&mut wire)
    })
}

/// A frame of something, the same for the same seed. Most are for the control domain, some are nearly right.
fn nonsense(seed: u64) -> Vec<u8> {
    let len = 14 + (seed * 7919 % 1509) as usize;
    let mut frame = world::bytes(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), len + 8);
    let dice = frame.split_off(frame.len() - 8);
    if dice[0] & 7 != 0 {
        frame[..6].copy_from_slice(match dice[0] & 7 {
            1 => &[0xff; 6],
            // An address that bridges keep to themselves.
            2 => &[1, 0x80, 0xc2, 0, 0, 0],
            _ => &OWN_MAC,
        });
        // A third of the senders are groups, which is refused.
        if !dice[1].is_multiple_of(3) {
            frame[6] &= 0xfe;
        }
        let kind = [0x0800_u16, 0x0806, 0x86dd, 0x8100, 0x0800, 0x0800];
        let kind = kind[usize::from(dice[2]) % kind.len()];
        frame[12..14].copy_from_slice(&kind.to_be_bytes());
        let packet = &mut frame[14..];
        if kind == 0x0800 && packet.len() >= 40 {
            let len = packet.len() as u16;
            packet[0] = 0x45 + (dice[3] & 3);
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            packet[6..8].copy_from_slice(&[0, dice[4] & 1]);
            packet[9] = [1, 6, 17, 17][usize::from(dice[5] & 3)];
            packet[10..12].copy_from_slice(&[0, 0]);
            packet[16..20].copy_from_slice(&OWN_IP);
            let sum = checksum(&packet[..20]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            // To the page, or what comes from a DHCP server.
            packet[22..24].copy_from_slice(&[0, [80, 68][usize::from(dice[6] & 1)]]);
        }
    }
    frame
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn frame(to: [u8; 6], kind: u16, packet: &[u8]) -> Vec<u8> {
    [&to[..], &PEER_MAC, &kind.to_be_bytes(), packet].concat()
}

fn ipv4(protocol: u8, data: &[u8]) -> Vec<u8> {
    let len = (20 + data.len()) as u16;
    let mut head = vec![0x45, 0];
    head.extend(len.to_be_bytes());
    head.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
    head.extend(PEER_IP);
    head.extend(OWN_IP);
    let sum = checksum(&head);
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    frame(OWN_MAC, 0x0800, &[&head[..], data].concat())
}

/// The beginning of a connection with the page.
fn syn(port: u16) -> Vec<u8> {
    let mut data = port.to_be_bytes().to_vec();
    data.extend([0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0x20, 0, 0, 0, 0, 0]);
    let pseudo = [&PEER_IP[..], &OWN_IP, &[0, 6, 0, 20], &data].concat();
    let sum = checksum(&pseudo);
    data[16..18].copy_from_slice(&sum.to_be_bytes());
    ipv4(6, &data)
}

/// Of a segment from the page: the port that it is for, and its flags.
fn tcp_answer(frame: &[u8]) -> Option<(u16, u8)> {
    let is = frame.get(12..15)? == [8, 0, 0x45] && *frame.get(23)? == 6;
    let to = frame.get(36..38)?.try_into().ok()?;
    (is && frame.get(34..36)? == [0, 80]).then_some((u16::from_be_bytes(to), *frame.get(47)?))
}

/// The control domain tells its Ethernet address, and answers a ping.
fn is_there(wire: &mut Wire) -> Result<()> {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend(PEER_MAC);
    arp.extend(PEER_IP);
    arp.extend([0; 6]);
    arp.extend(OWN_IP);
    wire.send(&frame([0xff; 6], 0x0806, &arp))?;
    let told = |f: &[u8]| {
        (f.get(12..14)? == [8, 6] && f.get(20..22)? == [0, 2])
            .then(|| f.get(22..32).map(<[u8]>::to_vec))?
    };
    let told = wire.expect(ANSWER, told).context("ARP")?;
    ensure!(told == [&OWN_MAC[..], &OWN_IP].concat(), "ARP: {told:x?}");
    let mut echo = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
    echo.extend(b"is anybody there?");
    let sum = checksum(&echo);
    echo[2..4].copy_from_slice(&sum.to_be_bytes());
    wire.send(&ipv4(1, &echo))?;
    wire.expect(ANSWER, |f| {
        let same = f.get(23)? == &1 && f.get(34)? == &0 && f.get(38..)?.starts_with(&echo[4..]);
        same.then_some(())
    })
    .context("ping")
}
