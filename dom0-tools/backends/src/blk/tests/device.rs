// SPDX-License-Identifier: MIT OR Apache-2.0
use super::super::*;
use guest_abi::io::xenbus::State;
use guest_abi::{GrantRef, Port};
use proptest::prelude::*;
use std::collections::BTreeMap;

const DISK: Disk = Disk {
    sectors: 2048,
    read_only: true,
    cdrom: false,
    flush: true,
    discard: None,
    physical_sector_size: 4096,
};

fn limits() -> Limits {
    Limits {
        ring_page_order: 2,
        ..Limits::default()
    }
}

fn device() -> Device {
    Device::new(DISK, limits())
}

type Keys = BTreeMap<String, String>;

fn keys(list: &[(&str, &str)]) -> Keys {
    list.iter()
        .map(|(k, v)| ((*k).into(), (*v).into()))
        .collect()
}

/// What Linux writes with one queue of one page.
fn linux() -> Keys {
    keys(&[
        ("ring-ref", "8"),
        ("event-channel", "3"),
        ("protocol", "arm-abi"),
        ("feature-persistent", "1"),
    ])
}

/// Steps until nothing is to be done; what was written, and the last step.
fn run(d: &mut Device, front: State, online: bool, k: &Keys) -> (Keys, Step) {
    let mut written = Keys::new();
    for _ in 0..10 {
        match d.step(front, online, |key| k.get(key).cloned()) {
            Step::Write(w) => written.extend(w.into_iter().map(|(k, v)| (k.into(), v))),
            Step::Refuse(e, w) => {
                written.extend(w.into_iter().map(|(k, v)| (k.into(), v)));
                written.insert("bad".into(), e.key);
            }
            step => return (written, step),
        }
    }
    panic!("does not come to rest");
}

fn connect(d: &mut Device) -> FrontConfig {
    let (w, s) = run(d, State::Initialising, true, &Keys::new());
    assert_eq!((w["state"].as_str(), s), ("2", Step::Wait));
    let (w, s) = run(d, State::Initialised, true, &linux());
    assert!(w.is_empty());
    let Step::Connect(c) = s else { panic!("{s:?}") };
    let w = d.connected();
    assert!(w.contains(&("sectors", "2048".into())));
    assert!(w.contains(&("info", "4".into())));
    assert!(w.contains(&("sector-size", "512".into())));
    assert!(w.contains(&("physical-sector-size", "4096".into())));
    assert_eq!(w.last(), Some(&("state", "4".into())));
    c
}

#[test]
fn linux_connects_and_goes() {
    let mut d = device();
    let (w, _) = run(&mut d, State::Initialising, true, &Keys::new());
    for (k, v) in [
        ("feature-barrier", "0"),
        ("feature-flush-cache", "1"),
        ("feature-discard", "0"),
        ("feature-persistent", "1"),
        ("feature-max-indirect-segments", "32"),
        ("max-ring-page-order", "2"),
        ("multi-queue-max-queues", "1"),
    ] {
        assert_eq!(w[k], v, "{k}");
    }
    let mut writable = Device::new(
        Disk {
            read_only: false,
            ..DISK
        },
        limits(),
    );
    let (w, _) = run(&mut writable, State::Initialising, true, &Keys::new());
    assert_eq!(w["feature-barrier"], "1");
    let mut d = device();
    let c = connect(&mut d);
    assert!(c.persistent);
    assert_eq!(
        c.queues,
        [QueueConfig {
            ring: vec![GrantRef(8)],
            port: Port(3)
        }]
    );
    assert_eq!(c.queues[0].ring_bytes(), 4096);
    let rest = |d: &mut Device, f, on| run(d, f, on, &linux());
    assert_eq!(rest(&mut d, State::Connected, true).1, Step::Wait);
    // The tools detach.
    assert_eq!(rest(&mut d, State::Connected, false).0["state"], "5");
    assert_eq!(rest(&mut d, State::Closing, false).1, Step::Wait);
    assert_eq!(rest(&mut d, State::Closed, false).1, Step::Disconnect);
    assert_eq!(rest(&mut d, State::Closed, false).1, Step::Wait);
    d.disconnected();
    let (w, s) = rest(&mut d, State::Closed, false);
    assert_eq!((w["state"].as_str(), s), ("6", Step::Gone));
}

#[test]
fn front_end_closes_and_reconnects() {
    let mut d = device();
    connect(&mut d);
    assert_eq!(run(&mut d, State::Closing, true, &linux()).0["state"], "5");
    assert_eq!(
        run(&mut d, State::Closed, true, &linux()).1,
        Step::Disconnect
    );
    d.disconnected();
    let (w, s) = run(&mut d, State::Closed, true, &linux());
    assert_eq!((w["state"].as_str(), s), ("6", Step::Wait));
    connect(&mut d);
    // Without a word, as after a crash.
    let (w, s) = run(&mut d, State::Initialising, true, &linux());
    assert_eq!((w.len(), s), (0, Step::Disconnect));
    d.disconnected();
    connect(&mut d);
}

#[test]
fn domain_ends() {
    let mut d = device();
    assert_eq!(
        run(&mut d, State::Unknown, true, &Keys::new()).1,
        Step::Wait
    );
    connect(&mut d);
    assert_eq!(
        run(&mut d, State::Unknown, true, &Keys::new()).1,
        Step::Disconnect
    );
    d.disconnected();
    let (w, s) = run(&mut d, State::Unknown, true, &Keys::new());
    assert_eq!((w["state"].as_str(), s), ("6", Step::Gone));
}

#[test]
fn never_online_goes_at_once() {
    let mut d = device();
    let (w, s) = run(&mut d, State::Unknown, false, &Keys::new());
    assert_eq!((w["state"].as_str(), s), ("6", Step::Gone));
}

#[test]
fn many_queues_and_pages() {
    let limits = Limits {
        queues: 4,
        ..limits()
    };
    let mut d = Device::new(DISK, limits);
    let k = keys(&[
        ("multi-queue-num-queues", "2"),
        ("ring-page-order", "1"),
        ("queue-0/ring-ref0", "10"),
        ("queue-0/ring-ref1", "11"),
        ("queue-0/event-channel", "5"),
        ("queue-1/ring-ref0", "12"),
        ("queue-1/ring-ref1", "13"),
        ("queue-1/event-channel", "6"),
    ]);
    let (_, s) = run(&mut d, State::Initialised, true, &k);
    let Step::Connect(c) = s else { panic!("{s:?}") };
    assert!(!c.persistent);
    assert_eq!(c.queues.len(), 2);
    assert_eq!(c.queues[1].ring, [GrantRef(12), GrantRef(13)]);
    assert_eq!(c.queues[1].port, Port(6));
    let w = d.connect_failed();
    assert_eq!(w, [("state", "5".to_string())]);
    assert_eq!(run(&mut d, State::Initialised, true, &k).1, Step::Wait);
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (key, value) in [
        ("ring-ref", None),
        ("ring-ref", Some("")),
        ("ring-ref", Some("-1")),
        ("ring-ref", Some("+8")),
        ("ring-ref", Some("4294967296")),
        ("event-channel", None),
        ("event-channel", Some("0")),
        ("protocol", Some("x86_32-abi")),
        ("ring-page-order", Some("3")),
        ("ring-page-order", Some("4294967295")),
        ("multi-queue-num-queues", Some("0")),
        ("multi-queue-num-queues", Some("2")),
        ("feature-persistent", Some("yes")),
    ] {
        let mut k = linux();
        match value {
            Some(v) => k.insert(key.into(), v.into()),
            None => k.remove(key),
        };
        let mut d = device();
        let (w, s) = run(&mut d, State::Initialised, true, &k);
        assert_eq!(w.get("bad").map(String::as_str), Some(key), "{value:?}");
        assert_eq!((w["state"].as_str(), s), ("5", Step::Wait));
        assert_eq!(run(&mut d, State::Closed, true, &k).0["state"], "6");
        connect(&mut d);
    }
}

proptest! {
    /// Whatever the front end writes and in whatever order: it comes to rest, connect and disconnect
    /// alternate, and every ring is within the limits.
    #[test]
    fn hostile_front_end(steps in prop::collection::vec((0u32..9, any::<bool>(), prop::collection::btree_map(
        prop::sample::select(vec!["ring-ref", "ring-ref0", "ring-ref1", "ring-page-order", "event-channel", "protocol", "multi-queue-num-queues", "queue-0/ring-ref", "queue-0/event-channel"]).prop_map(String::from),
        prop_oneof!["[0-9]{0,11}", "[0-4]", "arm-abi", ".{0,100}"], 0..8), any::<bool>()), 0..40)) {
        let mut d = device();
        let mut up = false;
        for (state, online, keys, ok) in steps {
            let (_, s) = run(&mut d, State::from_number(state).unwrap(), online, &keys);
            match s {
                Step::Connect(c) => {
                    prop_assert!(!up);
                    prop_assert_eq!(c.queues.len(), 1);
                    prop_assert!(matches!(c.queues[0].ring.len(), 1 | 2 | 4));
                    up = ok;
                    let w = if ok { d.connected() } else { d.connect_failed() };
                    prop_assert_eq!(w.last().unwrap().0, "state");
                }
                Step::Disconnect => {
                    prop_assert!(up);
                    up = false;
                    d.disconnected();
                }
                Step::Gone => { prop_assert!(!up); break }
                _ => {}
            }
        }
    }
}
