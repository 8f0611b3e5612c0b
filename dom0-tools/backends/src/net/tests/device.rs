// SPDX-License-Identifier: MIT OR Apache-2.0
use super::super::*;
use guest_abi::Port;
use guest_abi::io::xenbus::State;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn step(d: &mut Device, front: State, keys: &[(&str, &str)]) -> Step {
    let keys: BTreeMap<&str, &str> = keys.iter().copied().collect();
    d.step(front, true, |key| keys.get(key).map(|v| (*v).into()))
}

fn choice(limits: Limits, keys: &[(&str, &str)]) -> Result<FrontConfig, BadKey> {
    let mut d = Device::new(limits);
    let Step::Write(offer) = step(&mut d, State::Initialising, &[]) else {
        panic!("no offer");
    };
    assert_eq!(offer.last(), Some(&("state", "2".into())));
    for key in [
        "feature-rx-copy",
        "feature-sg",
        "feature-split-event-channels",
        "feature-ipv6-csum-offload",
        "feature-gso-tcpv4",
        "feature-gso-tcpv6",
        "feature-multicast-control",
        "feature-dynamic-multicast-control",
    ] {
        assert!(offer.contains(&(key, "1".into())), "{key}");
    }
    match step(&mut d, State::Connected, keys) {
        Step::Connect(c) => {
            assert_eq!(d.connected(), [("state", "4".into())]);
            Ok(c)
        }
        Step::Refuse(e, w) => {
            assert_eq!(w, [("state", "5".into())]);
            Err(e)
        }
        s => panic!("{s:?}"),
    }
}

/// What Linux writes with one queue.
const LINUX: &[(&str, &str)] = &[
    ("tx-ring-ref", "8"),
    ("rx-ring-ref", "9"),
    ("event-channel-tx", "3"),
    ("event-channel-rx", "4"),
    ("request-rx-copy", "1"),
    ("feature-rx-notify", "1"),
    ("feature-sg", "1"),
    ("feature-gso-tcpv4", "1"),
    ("feature-gso-tcpv6", "1"),
    ("feature-ipv6-csum-offload", "1"),
];

#[test]
fn linux_connects() {
    let c = choice(Limits::default(), LINUX).unwrap();
    assert!(c.scatter_gather && c.blank_ipv4 && c.blank_ipv6);
    assert!(c.split_ipv4 && c.split_ipv6);
    let queue = QueueConfig {
        tx_ring: GrantRef(8),
        rx_ring: GrantRef(9),
        tx_port: Port(3),
        rx_port: Port(4),
    };
    assert_eq!(c.queues, [queue]);
}

#[test]
fn one_channel_and_several_queues() {
    let two = Limits {
        queues: 2,
        ..Limits::default()
    };
    let keys = &[
        ("request-rx-copy", "1"),
        ("feature-no-csum-offload", "1"),
        ("feature-gso-tcpv4", "1"),
        ("multi-queue-num-queues", "2"),
        ("queue-0/tx-ring-ref", "8"),
        ("queue-0/rx-ring-ref", "9"),
        ("queue-0/event-channel", "3"),
        ("queue-1/tx-ring-ref", "10"),
        ("queue-1/rx-ring-ref", "11"),
        ("queue-1/event-channel", "4"),
    ];
    let c = choice(two, keys).unwrap();
    assert!(!c.scatter_gather && !c.blank_ipv4 && !c.blank_ipv6);
    assert!(!c.split_ipv4 && !c.split_ipv6);
    let seen: Vec<_> = c
        .queues
        .iter()
        .map(|q| (q.tx_ring.0, q.rx_ring.0, q.tx_port.0, q.rx_port.0))
        .collect();
    assert_eq!(seen, [(8, 9, 3, 3), (10, 11, 4, 4)]);
    let e = choice(Limits::default(), keys).unwrap_err();
    assert_eq!(e.key, "multi-queue-num-queues");
}

#[test]
fn bad_keys() {
    for (key, value) in [
        ("request-rx-copy", "0"),
        ("request-rx-copy", "yes"),
        ("tx-ring-ref", "-1"),
        ("rx-ring-ref", "99999999999"),
        ("event-channel-tx", "0"),
        ("event-channel-rx", "x"),
        ("feature-sg", "maybe"),
        ("multi-queue-num-queues", "0"),
    ] {
        let mut keys = LINUX.to_vec();
        keys.retain(|(k, _)| *k != key);
        keys.push((key, value));
        let e = choice(Limits::default(), &keys).unwrap_err();
        assert_eq!((e.key.as_str(), e.value.as_deref()), (key, Some(value)));
    }
    for key in [
        "request-rx-copy",
        "tx-ring-ref",
        "rx-ring-ref",
        "event-channel-rx",
    ] {
        let mut keys = LINUX.to_vec();
        keys.retain(|(k, _)| *k != key);
        let e = choice(Limits::default(), &keys).unwrap_err();
        assert_eq!((e.key.as_str(), e.value), (key, None));
    }
}

#[test]
fn what_breaks_is_disconnected_whatever_the_front_end_says() {
    let mut d = Device::new(Limits::default());
    for _ in 0..2 {
        let _ = step(&mut d, State::Initialising, LINUX);
        let Step::Connect(_) = step(&mut d, State::Connected, LINUX) else {
            panic!("it does not connect");
        };
        let _ = d.connected();
        assert_eq!(step(&mut d, State::Connected, LINUX), Step::Wait);
        assert_eq!(d.broken(), [("state", "5".into())]);
        assert_eq!(step(&mut d, State::Connected, LINUX), Step::Disconnect);
        assert_eq!(step(&mut d, State::Connected, LINUX), Step::Wait);
        d.disconnected();
        // It begins anew when the front end does.
        assert_eq!(step(&mut d, State::Connected, LINUX), Step::Wait);
        assert_eq!(step(&mut d, State::Closing, LINUX), Step::Wait);
        let closed = step(&mut d, State::Closed, LINUX);
        assert_eq!(closed, Step::Write(vec![("state", "6".into())]));
    }
}

proptest! {
    #[test]
    fn any_keys_and_states(steps in prop::collection::vec((0u32..9, any::<bool>(), "[0-9]{0,3}|.{0,5}"), 1..40)) {
        let mut d = Device::new(Limits::default());
        for (front, online, value) in steps {
            let front = State::from_number(front).unwrap_or(State::Unknown);
            match d.step(front, online, |_| Some(value.clone())) {
                Step::Connect(c) => {
                    prop_assert_eq!(c.queues.len(), 1);
                    let _ = d.connected();
                    if value.is_empty() {
                        let _ = d.broken();
                    }
                }
                Step::Disconnect => d.disconnected(),
                _ => {}
            }
        }
    }
}
