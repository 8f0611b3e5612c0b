// SPDX-License-Identifier: MIT OR Apache-2.0
use super::*;
use proptest::prelude::*;

const A: Mac = [2, 0, 0, 0, 0, 0xa];
const B: Mac = [2, 0, 0, 0, 0, 0xb];
const ALL: Mac = [0xff; 6];

fn frame(to: Mac, from: Mac, rest: &[u8]) -> Vec<u8> {
    [&to[..], &from[..], rest].concat()
}

fn plain(to: Mac, from: Mac) -> Vec<u8> {
    frame(to, from, &[0x88, 0xb5, 1, 2, 3])
}

fn send(b: &mut Bridge, from: PortId, f: &[u8], now: u64) -> Vec<PortId> {
    let mut to = Vec::new();
    b.forward(from, f, now, &mut to);
    to
}

fn bridge(n: usize) -> (Bridge, Vec<PortId>) {
    let mut b = Bridge::new(100);
    let ports = (0..n).map(|_| b.add(Filter::default()).unwrap()).collect();
    (b, ports)
}

#[test]
fn learns_and_forgets() {
    let (mut b, p) = bridge(3);
    assert_eq!(send(&mut b, p[0], &plain(B, A), 0), [p[1], p[2]]);
    assert_eq!(send(&mut b, p[1], &plain(A, B), 50), [p[0]]);
    assert_eq!(send(&mut b, p[0], &plain(B, A), 60), [p[1]]);
    assert_eq!(b.addresses(60).collect::<Vec<_>>(), [(A, p[0]), (B, p[1])]);
    // Not seen since 50.
    assert_eq!(send(&mut b, p[0], &plain(B, A), 150), [p[1], p[2]]);
    // It moved.
    assert_eq!(send(&mut b, p[2], &plain(A, B), 151), [p[0]]);
    assert_eq!(send(&mut b, p[0], &plain(B, A), 152), [p[2]]);
    // To where it came from.
    assert!(send(&mut b, p[2], &plain(B, A), 153).is_empty());
    b.remove(p[2]);
    assert_eq!(send(&mut b, p[0], &plain(B, A), 154), [p[1]]);
    assert!(send(&mut b, p[2], &plain(B, A), 155).is_empty());
}

#[test]
fn groups_go_to_all_and_reserved_ones_nowhere() {
    let (mut b, p) = bridge(3);
    assert_eq!(send(&mut b, p[1], &plain(ALL, A), 0), [p[0], p[2]]);
    let multicast = [1, 0, 0x5e, 0, 0, 1];
    assert_eq!(send(&mut b, p[1], &plain(multicast, A), 0), [p[0], p[2]]);
    assert!(send(&mut b, p[1], &plain([1, 0x80, 0xc2, 0, 0, 0xe], A), 0).is_empty());
    // A group as source, and no frames.
    assert!(send(&mut b, p[1], &plain(B, ALL), 0).is_empty());
    assert!(send(&mut b, p[1], &[0; 13], 0).is_empty());
    let c = b.counters(p[1]);
    assert_eq!((c.in_frames, c.in_refused), (5, 2));
    b.sent(p[0], 17, true);
    b.sent(p[0], 17, false);
    let c = b.counters(p[0]);
    assert_eq!((c.out_frames, c.out_bytes, c.out_dropped), (1, 17, 1));
}

#[test]
fn tags_of_vlans_do_not_matter() {
    let (mut b, p) = bridge(3);
    let tagged = frame(B, A, &[0x81, 0, 0, 5, 8, 0, 0]);
    assert_eq!(send(&mut b, p[0], &tagged, 0), [p[1], p[2]]);
    assert_eq!(send(&mut b, p[1], &plain(A, B), 0), [p[0]]);
}

#[test]
fn one_port_cannot_fill_the_table() {
    let (mut b, p) = bridge(2);
    for n in 0..10_000_u32 {
        let [x, y, z, w] = n.to_be_bytes();
        send(&mut b, p[0], &plain(ALL, [2, 1, x, y, z, w]), 0);
    }
    assert_eq!(b.addresses(0).count(), PORT_ADDRESSES);
    send(&mut b, p[1], &plain(ALL, B), 0);
    assert_eq!(send(&mut b, p[0], &plain(B, A), 0), [p[1]]);
    // When the old ones are forgotten there is room again.
    send(&mut b, p[0], &plain(ALL, A), 100);
    assert_eq!(send(&mut b, p[1], &plain(A, B), 100), [p[0]]);
}

#[test]
fn a_full_port_has_room_as_soon_as_an_address_is_old() {
    let (mut b, p) = bridge(2);
    for n in 0..=255 {
        send(&mut b, p[0], &plain(ALL, [2, 1, 0, 0, 0, n]), n.into());
    }
    let mut learns = |mac: Mac, now| {
        send(&mut b, p[0], &plain(ALL, mac), now);
        b.addresses(now).any(|(m, _)| m == mac)
    };
    // 156 are old, and as many come.
    for n in 0..156 {
        assert!(learns([2, 2, 0, 0, 0, n], 255));
    }
    assert!(!learns(A, 255) && learns(A, 256) && !learns(B, 256) && learns(B, 257));
}

#[test]
fn an_address_that_is_kept_is_nobody_elses() {
    let (mut b, p) = bridge(3);
    b.keep(p[0], A);
    assert!(send(&mut b, p[1], &plain(B, A), 0).is_empty());
    assert_eq!(b.counters(p[1]).in_refused, 1);
    assert_eq!(send(&mut b, p[2], &plain(A, B), 0), [p[0]]);
    // It need not be seen, and is used as any other.
    assert_eq!(send(&mut b, p[2], &plain(A, B), 1000), [p[0]]);
    assert_eq!(send(&mut b, p[0], &plain(B, A), 1000), [p[2]]);
    assert!(send(&mut b, p[1], &plain(B, A), 5000).is_empty());
    assert_eq!(b.addresses(5000).collect::<Vec<_>>(), [(A, p[0])]);
    b.remove(p[0]);
    assert_eq!(send(&mut b, p[1], &plain(B, A), 5000), [p[2]]);
}

#[test]
fn an_address_that_was_learned_elsewhere_is_kept() {
    let (mut b, p) = bridge(2);
    let others = (0..PORT_ADDRESSES as u16).map(|n| [2, 2, 0, 0, (n >> 8) as u8, n as u8]);
    send(&mut b, p[1], &plain(ALL, A), 0);
    b.keep(p[0], A);
    // There is room for as many as before.
    for mac in others {
        send(&mut b, p[1], &plain(ALL, mac), 1);
    }
    let at = |b: &Bridge, port| b.addresses(1).filter(|(_, p)| *p == port).count();
    assert_eq!((at(&b, p[0]), at(&b, p[1])), (1, PORT_ADDRESSES));
}

fn ipv4(from: [u8; 4], protocol: u8, ports: [u8; 4]) -> Vec<u8> {
    let mut f = frame(
        ALL,
        A,
        &[8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0],
    );
    f.extend(from);
    f.extend([255; 4]);
    f.extend(ports);
    f
}

fn arp(sender: Mac, from: [u8; 4]) -> Vec<u8> {
    let mut f = frame(ALL, A, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    f.extend(sender);
    f.extend(from);
    f.extend([0; 10]);
    f
}

fn ipv6_of(from: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    let mut f = frame(ALL, A, &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, next, 255]);
    f.extend(from);
    f.extend([0xff; 16]);
    f.extend(payload);
    f
}

/// A ping.
fn ipv6(from: [u8; 16]) -> Vec<u8> {
    ipv6_of(from, 58, &[128, 0, 0, 0])
}

/// A message about an address.
fn neighbour(kind: u8, target: [u8; 16]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target].concat()
}

fn octets(address: &str) -> [u8; 16] {
    address.parse::<core::net::Ipv6Addr>().unwrap().octets()
}

#[test]
fn a_port_uses_no_address_of_others() {
    let mut b = Bridge::default();
    let filter = Filter {
        mac: Some(A),
        ips: vec![
            Net {
                address: "10.0.0.8".parse().unwrap(),
                bits: 30,
            },
            Net {
                address: "fd00::2".parse().unwrap(),
                bits: 200,
            },
        ],
    };
    let p = b.add(filter).unwrap();
    let _ = b.add(Filter::default()).unwrap();
    let (own, other) = (octets("fd00::2"), octets("fd00::3"));
    // What follows from the Ethernet address, and what does not.
    let (link, router) = (octets("fe80::ff:fe00:a"), octets("fe80::1"));
    let mut tagged = frame(ALL, A, &[0x81, 0, 0, 5]);
    tagged.extend(&ipv4([10, 0, 0, 12], 6, [0; 4])[12..]);
    for (good, f) in [
        (true, ipv4([10, 0, 0, 9], 6, [0; 4])),
        (false, ipv4([10, 0, 0, 12], 6, [0; 4])),
        (false, tagged),
        (true, ipv4([0; 4], 17, [0, 68, 0, 67])),
        (false, ipv4([0; 4], 17, [0, 68, 0, 68])),
        (false, ipv4([0; 4], 6, [0, 68, 0, 67])),
        (true, arp(A, [10, 0, 0, 8])),
        (true, arp(A, [0; 4])),
        (false, arp(A, [10, 0, 0, 1])),
        (false, arp(B, [10, 0, 0, 8])),
        (true, ipv6(own)),
        (false, ipv6(other)),
        (true, ipv6(link)),
        (false, ipv6(router)),
        (true, ipv6([0; 16])),
        (false, ipv6(own)[..54].to_vec()),
        // DHCP's servers answer to these ports.
        (true, ipv4([10, 0, 0, 9], 17, [0, 67, 0, 69])),
        (false, ipv4([10, 0, 0, 9], 17, [0, 67, 0, 68])),
        (true, ipv6_of(own, 17, &[2, 34, 2, 35])),
        (false, ipv6_of(own, 17, &[2, 35, 2, 34])),
        (false, plain(ALL, A)),
        (false, ipv4([10, 0, 0, 9], 6, [0; 4])[..29].to_vec()),
    ] {
        assert_eq!(!send(&mut b, p, &f, 0).is_empty(), good, "{f:x?}");
    }
    let mut f = ipv4([10, 0, 0, 9], 6, [0; 4]);
    f[6..12].copy_from_slice(&B);
    assert!(send(&mut b, p, &f, 0).is_empty());
    // Messages that say who has an address, or where all is to be sent, behind whatever headers.
    let headers: [(u8, &[u8]); 7] = [
        (58, &[]),
        (0, &[58, 0, 0, 0, 0, 0, 0, 0]),
        (60, &[43, 0, 0, 0, 0, 0, 0, 0, 58, 0, 0, 0, 0, 0, 0, 0]),
        (60, &[58, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (51, &[58, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (44, &[58, 0, 0, 1, 0, 0, 0, 0]),
        (135, &[58, 0, 0, 0, 0, 0, 0, 0]),
    ];
    for (first, headers) in headers {
        for (good, kind, target) in [
            (true, 136, own),
            (true, 136, link),
            (false, 136, other),
            (false, 136, router),
            (true, 135, router),
            (false, 134, own),
            (false, 137, own),
        ] {
            for from in [own, link, [0; 16]] {
                let message = [headers, &neighbour(kind, target)].concat();
                let f = ipv6_of(from, first, &message);
                assert_eq!(!send(&mut b, p, &f, 0).is_empty(), good, "{f:x?}");
            }
        }
    }
    // A later part of a packet has no message in it.
    let later = ipv6_of(own, 44, &[58, 0, 0, 8, 0, 0, 0, 0, 136]);
    assert!(!send(&mut b, p, &later, 0).is_empty());
}

#[test]
fn a_port_that_may_use_all_addresses_may_be_a_router() {
    let mut b = Bridge::default();
    let all = ["0.0.0.0", "::"].map(|address| Net {
        address: address.parse().unwrap(),
        bits: 0,
    });
    let p = b.add(Filter {
        mac: Some(A),
        ips: all.into(),
    });
    let (p, _) = (p.unwrap(), b.add(Filter::default()).unwrap());
    for f in [
        ipv6_of(octets("fe80::1"), 58, &neighbour(134, [0; 16])),
        ipv6_of(octets("fe80::1"), 17, &[2, 35, 2, 34]),
        ipv4([10, 0, 0, 9], 17, [0, 67, 0, 68]),
    ] {
        assert!(!send(&mut b, p, &f, 0).is_empty(), "{f:x?}");
    }
}

proptest! {
    /// Against a model: a map of addresses with the time they were seen.
    #[test]
    fn as_a_model(steps in prop::collection::vec((0usize..4, 0u8..5, 0u8..7, 0u64..40), 1..200)) {
        let (mut b, p) = bridge(4);
        let mut model: BTreeMap<u8, (usize, u64)> = BTreeMap::new();
        let mut now = 0;
        let mac = |n: u8| match n {
            5 => ALL,
            6 => [1, 0x80, 0xc2, 0, 0, 0],
            n => [2, 0, 0, 0, 0, n],
        };
        for (at, source, target, passed) in steps {
            now += passed;
            model.insert(source, (at, now));
            let known = model.get(&target).filter(|(_, seen)| now - seen < 100);
            let expected: Vec<PortId> = match (target, known) {
                (6, _) => vec![],
                (_, Some((to, _))) if *to == at => vec![],
                (_, Some((to, _))) => vec![p[*to]],
                _ => (0..4).filter(|n| *n != at).map(|n| p[n]).collect(),
            };
            prop_assert_eq!(send(&mut b, p[at], &plain(mac(target), mac(source)), now), expected);
        }
    }

    /// Whatever comes: nothing panics, a frame never goes back, and the table keeps its bound.
    #[test]
    fn hostile_frames(frames in prop::collection::vec((0usize..3, prop::collection::vec(any::<u8>(), 0..80)), 1..60), kind in 0usize..4) {
        let mut b = Bridge::default();
        let filter = Filter { mac: None, ips: vec![Net { address: "10.0.0.0".parse().unwrap(), bits: 8 }] };
        let p: Vec<_> = (0..3).map(|_| b.add(filter.clone()).unwrap()).collect();
        for (at, mut f) in frames {
            if let Some(place) = f.get_mut(12..14) {
                place.copy_from_slice(&[[8, 0], [0x86, 0xdd], [8, 6], [0x81, 0]][kind]);
            }
            let to = send(&mut b, p[at], &f, 0);
            prop_assert!(!to.contains(&p[at]));
            prop_assert!(b.addresses(0).count() <= 3 * PORT_ADDRESSES);
        }
    }
}
