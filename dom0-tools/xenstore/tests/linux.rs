// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an unmodified Linux guest with a disk and a network interface asks of its store, in the order
//! in which one was seen to on Xen 4.17, against a tree as the toolstack makes it.

mod common;

use common::{Guest, event, ok, strings};
use guest_abi::DomId;
use guest_abi::io::xs_wire::MsgType as Op;
use xenstore::{ConnId, Perm, Store};

/// `r` read, `R` read of what is not there, `d` list, `D` list of what is not there, `w` write,
/// `W` watch, `(` start, `)` commit, `!` drop, `x` reset watches.
const BOOT: &[(char, &str, &str)] = &[
    ('r', "control/platform-feature-xs_reset_watches", "1"),
    ('x', "", ""),
    ('W', "memory/target", "FFFF800009EBBAD8"),
    ('W', "control/shutdown", "FFFF800009EBB2F0"),
    ('r', "memory/target", "262144"),
    ('W', "control/sysrq", "FFFF800009EBB320"),
    ('r', "memory/static-max", "262144"),
    ('w', "control/feature-poweroff", "1"),
    ('(', "", ""),
    ('w', "control/feature-reboot", "1"),
    ('r', "control/shutdown", ""),
    ('w', "control/feature-suspend", "1"),
    ('!', "", ""),
    ('D', "backend", ""),
    ('(', "", ""),
    ('W', "backend", "FFFF800009EBB868"),
    ('r', "control/sysrq", ""),
    ('d', "device", "suspend vbd vif"),
    ('!', "", ""),
    ('d', "device", "suspend vbd vif"),
    ('d', "device/suspend", "event-channel"),
    ('R', "device/suspend/event-channel/state", ""),
    ('d', "device/vbd", "51712"),
    ('r', "device/vbd/51712/state", "1"),
    ('d', "device/vif", "0"),
    ('r', "device/vif/0/state", "1"),
    ('W', "device", "FFFF800009EBBA50"),
    ('W', "cpu", "FFFF800009EBAF98"),
    ('r', "cpu/0/availability", "online"),
    ('r', "device/vbd/51712/backend-id", "0"),
    (
        'r',
        "device/vbd/51712/backend",
        "/local/domain/0/backend/vbd/1/51712",
    ),
    (
        'd',
        "/local/domain/0/backend/vbd/1/51712",
        "frontend state sectors info sector-size",
    ),
    ('r', "device/vbd/51712/virtual-device", "51712"),
    ('r', "device/vbd/51712/device-type", "disk"),
    (
        'W',
        "/local/domain/0/backend/vbd/1/51712/state",
        "FFFF000008521020",
    ),
    ('r', "/local/domain/0/backend/vbd/1/51712/state", "2"),
    ('r', "device/vbd/51712/trusted", "1"),
    (
        'R',
        "/local/domain/0/backend/vbd/1/51712/max-ring-page-order",
        "",
    ),
    (
        'R',
        "/local/domain/0/backend/vbd/1/51712/multi-queue-max-queues",
        "",
    ),
    ('(', "", ""),
    ('w', "device/vbd/51712/ring-ref", "8"),
    ('w', "device/vbd/51712/event-channel", "3"),
    ('w', "device/vbd/51712/protocol", "arm-abi"),
    ('w', "device/vbd/51712/feature-persistent", "1"),
    (')', "", ""),
    ('(', "", ""),
    ('r', "device/vbd/51712/state", "1"),
    ('w', "device/vbd/51712/state", "3"),
    (')', "", ""),
    ('d', "device/vbd/51712/ring-ref", ""),
    ('d', "device/vbd/51712/state", ""),
    ('r', "/local/domain/0/backend/vbd/1/51712/sectors", "131072"),
    ('r', "/local/domain/0/backend/vbd/1/51712/info", "0"),
    (
        'r',
        "/local/domain/0/backend/vbd/1/51712/sector-size",
        "512",
    ),
    (
        'R',
        "/local/domain/0/backend/vbd/1/51712/physical-sector-size",
        "",
    ),
    (
        'R',
        "/local/domain/0/backend/vbd/1/51712/feature-barrier",
        "",
    ),
    (
        'R',
        "/local/domain/0/backend/vbd/1/51712/feature-discard",
        "",
    ),
    ('(', "", ""),
    ('r', "device/vbd/51712/state", "3"),
    ('w', "device/vbd/51712/state", "4"),
    (')', "", ""),
    ('r', "device/vif/0/backend-id", "0"),
    (
        'r',
        "device/vif/0/backend",
        "/local/domain/0/backend/vif/1/0",
    ),
    ('r', "/local/domain/0/backend/vif/1/0/state", "2"),
    (
        'W',
        "/local/domain/0/backend/vif/1/0/state",
        "FFFF000008520820",
    ),
    ('r', "device/vif/0/mac", "00:16:3e:00:00:02"),
    ('w', "device/vif/0/xdp-headroom", "0"),
    ('(', "", ""),
    (
        'D',
        "/local/domain/0/backend/vif/1/0/multi-queue-max-queues",
        "",
    ),
    ('w', "device/vif/0/multi-queue-num-queues", "1"),
    ('w', "device/vif/0/tx-ring-ref", "522"),
    ('w', "device/vif/0/rx-ring-ref", "523"),
    ('w', "device/vif/0/event-channel-tx", "4"),
    ('w', "device/vif/0/event-channel-rx", "5"),
    ('w', "device/vif/0/request-rx-copy", "1"),
    (')', "", ""),
    ('(', "", ""),
    ('r', "device/vif/0/state", "1"),
    ('w', "device/vif/0/state", "4"),
    (')', "", ""),
    ('d', "device/vif/0/xdp-headroom", ""),
    ('r', "/local/domain/0/backend/vif/1/0/state", "2"),
];

/// The tree that the toolstack makes before the guest starts.
fn build(s: &mut Store) {
    let shared = [Perm::none(DomId(0)), Perm::read(DomId(1))];
    let guests = [Perm::none(DomId(1))];
    let front = [Perm::none(DomId(1)), Perm::read(DomId(0))];
    s.transact(|t| {
        t.mkdir("/local/domain/1")?;
        t.set_perms("/local/domain/1", &shared)?;
        for (path, value) in [
            ("cpu/0/availability", "online"),
            ("memory/static-max", "262144"),
            ("memory/target", "262144"),
            ("control/platform-feature-xs_reset_watches", "1"),
        ] {
            t.write(&format!("/local/domain/1/{path}"), value.as_bytes())?;
        }
        for path in ["suspend/event-channel", "vbd", "vif"] {
            t.mkdir(&format!("/local/domain/1/device/{path}"))?;
        }
        for path in [
            "shutdown",
            "sysrq",
            "feature-poweroff",
            "feature-reboot",
            "feature-suspend",
        ] {
            let path = format!("/local/domain/1/control/{path}");
            t.mkdir(&path)?;
            t.set_perms(&path, &guests)?;
        }
        for (kind, dev) in [("vbd", "51712"), ("vif", "0")] {
            let (fe, be) = (
                format!("/local/domain/1/device/{kind}/{dev}"),
                format!("/local/domain/0/backend/{kind}/1/{dev}"),
            );
            t.mkdir(&fe)?;
            t.set_perms(&fe, &front)?;
            t.write(&format!("{fe}/backend"), be.as_bytes())?;
            t.write(&format!("{fe}/backend-id"), b"0")?;
            t.write(&format!("{fe}/state"), b"1")?;
            t.write(&format!("{fe}/virtual-device"), b"51712")?;
            t.write(&format!("{fe}/device-type"), b"disk")?;
            t.write(&format!("{fe}/trusted"), b"1")?;
            t.write(&format!("{fe}/mac"), b"00:16:3e:00:00:02")?;
            t.mkdir(&be)?;
            t.set_perms(&be, &shared)?;
            t.write(&format!("{be}/frontend"), fe.as_bytes())?;
            t.write(&format!("{be}/state"), b"2")?;
        }
        for (key, value) in [("sectors", "131072"), ("info", "0"), ("sector-size", "512")] {
            t.write(
                &format!("/local/domain/0/backend/vbd/1/51712/{key}"),
                value.as_bytes(),
            )?;
        }
        Ok(())
    })
    .unwrap();
    s.introduce(DomId(1)).unwrap();
}

#[test]
fn a_linux_guest_boots() {
    let mut s = Store::new();
    let before = s.stats();
    build(&mut s);
    let back = s.open();
    s.watch(back, "/local/domain/1/device/vbd/51712/state", "disk")
        .unwrap();
    s.poll_event(back);
    let mut g = Guest::new(1);
    let s = &mut s;
    let mut tx = 0;
    let mut watched = Vec::new();
    for (what, path, value) in BOOT {
        let at = format!("{what} {path}");
        match what {
            'r' => assert_eq!(g.read(s, tx, path), Ok(value.as_bytes().to_vec()), "{at}"),
            'R' => assert_eq!(g.read(s, tx, path), Err("ENOENT".into()), "{at}"),
            'd' => {
                let names: Vec<String> = value.split_whitespace().map(String::from).collect();
                assert_eq!(g.ls(s, tx, path), Ok(names), "{at}");
            }
            'D' => assert_eq!(g.ls(s, tx, path), Err("ENOENT".into()), "{at}"),
            'w' => assert_eq!(g.write(s, tx, path, value), ok(), "{at}"),
            'W' => {
                assert_eq!(g.watch(s, path, value), ok(), "{at}");
                watched.push(event(path, value));
            }
            '(' => {
                tx = strings(&g.call(s, Op::TransactionStart, 0, &[""]).unwrap())[0]
                    .parse()
                    .unwrap()
            }
            ')' | '!' => {
                assert_eq!(
                    g.end(s, tx, if *what == ')' { "T" } else { "F" }),
                    ok(),
                    "{at}"
                );
                tx = 0;
            }
            'x' => assert_eq!(g.call(s, Op::ResetWatches, 0, &[""]), ok()),
            _ => unreachable!(),
        }
    }
    let seen = g.seen(s);
    for e in &watched {
        assert!(seen.contains(e), "{e:?}");
    }
    // What it wrote is its own and its back-end's to read, as seen on Xen.
    let front = vec![Perm::none(DomId(1)), Perm::read(DomId(0))];
    assert_eq!(
        s.get_perms("/local/domain/1/device/vbd/51712/ring-ref"),
        Ok(front)
    );
    let told = s.poll_event(back).unwrap();
    assert_eq!(&*told.path, "/local/domain/1/device/vbd/51712/state");

    // The back-end connects, the toolstack asks for a shutdown, the guest obeys.
    s.write("/local/domain/0/backend/vbd/1/51712/state", b"4")
        .unwrap();
    assert!(g.seen(s).contains(&event(
        "/local/domain/0/backend/vbd/1/51712/state",
        "FFFF000008521020"
    )));
    s.write("/local/domain/1/control/shutdown", b"poweroff")
        .unwrap();
    assert_eq!(g.seen(s), [event("control/shutdown", "FFFF800009EBB2F0")]);
    assert_eq!(g.read(s, 0, "control/shutdown"), Ok(b"poweroff".to_vec()));
    assert_eq!(g.write(s, 0, "control/shutdown", ""), ok());
    // It may not write where the toolstack rules.
    assert_eq!(g.write(s, 0, "memory/target", "1"), Err("EACCES".into()));
    assert_eq!(g.write(s, 0, "device/vbd/1", "1"), Err("EACCES".into()));

    // It goes, and all of it.
    s.domain_shutdown(DomId(1));
    for path in ["/local/domain/1", "/local/domain/0", "/local"] {
        s.rm(path).unwrap();
    }
    s.release(DomId(1)).unwrap();
    s.close(back);
    assert_eq!(s.stats(), before);
    assert!(!matches!(s.next_ready(), Some(ConnId::Domain(_))));
}
