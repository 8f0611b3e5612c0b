// SPDX-License-Identifier: MIT OR Apache-2.0
//! The network's front end against a back-end made for it, and against hostile ones.

mod common;

use common::net::*;
use common::*;
use guest_abi::GrantRef;
use guest_abi::io::netif::{NetifRxResponse, NetifTxResponse, netrxf, nettxf};
use guest_abi::io::ring::head;
use guest_abi::mem::SharedMem;
use proptest::prelude::*;
use pv_frontends::net::{Checksum, Config, Phy, Vif};
use pv_frontends::xenstore::Xenstore;
use pv_frontends::{Error, Platform, xenbus};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use zerocopy::IntoBytes;

type Xs = Xenstore<&'static World>;
type Front = Vif<'static, &'static World>;

fn start() -> (&'static World, Server, &'static Xs) {
    let w = World::new();
    let server = serve(w);
    (w, server, Box::leak(Box::new(Xenstore::open(w).unwrap())))
}

fn soon(w: &World) -> u64 {
    w.now() + SECOND
}

fn open(xs: &'static Xs, config: Config) -> Result<Front, Error> {
    let s = xs.by(soon(xs.platform()));
    s.run(Vif::open(s.access(), 0, config))
}

fn setup(
    offers: &[(&str, &str)],
    config: Config,
) -> (&'static World, Server, &'static Xs, Front, Rc<Knobs>) {
    let (w, server, xs) = start();
    nodes(&server, offers);
    let knobs = serve_net(w, &server);
    let vif = open(xs, config).unwrap();
    (w, server, xs, vif, knobs)
}

fn frame(n: usize, seed: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 31 + i / 512 + seed) as u8).collect()
}

fn sent(k: &Knobs) -> Vec<Vec<u8>> {
    k.sent.take().into_iter().map(|(f, _, _)| f).collect()
}

#[test]
fn an_interface_from_beginning_to_end() {
    let (w, server, xs, vif, k) = setup(MODERN, Config::default());
    let s = xs.by(soon(w));
    assert_eq!(s.run(xenbus::devices(&xs.access(), "vif")).unwrap(), [0]);
    let info = vif.info();
    assert_eq!((info.mac, info.mtu, info.max_frame), (MAC, 1500, 1518));
    assert_eq!((info.queues, info.split_channels), (1, true));
    assert!(info.scatter_gather && info.blank_ipv4 && info.blank_ipv6);
    assert_eq!(vif.ports().len(), 2);
    for (key, value) in [
        ("request-rx-copy", "1"),
        ("feature-rx-notify", "1"),
        ("feature-sg", "1"),
        ("feature-no-csum-offload", "1"),
        ("feature-ipv6-csum-offload", "0"),
        ("feature-gso-tcpv4", "0"),
        ("multi-queue-num-queues", "1"),
        ("state", "4"),
    ] {
        let is = get(&server, &format!("{FRONT}/{key}"));
        assert_eq!(is.as_deref(), Some(value), "{key}");
    }
    let mut buffer = [0; 1518];
    // Many times around the rings.
    for n in 0..2000 {
        let out = frame(14 + n % 1505, n);
        vif.by(soon(w)).send(&out).unwrap();
        w.run();
        assert_eq!(sent(&k), std::slice::from_ref(&out));
        k.inbox.borrow_mut().push_back(((out.clone(), 0), 0));
        let got = vif.by(soon(w)).recv(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..got.len], got.checksum),
            (&out[..], Checksum::Present)
        );
    }
    vif.handle_event();
    let stats = vif.stats();
    assert_eq!((stats.received, stats.receive_errors), (2000, 0));
    assert_eq!(stats.send_errors, 0);
    assert_eq!(vif.try_recv(&mut buffer), Ok(None));
    let begin = w.now();
    let late = vif.by(begin + MS).recv(&mut buffer);
    assert_eq!(late, Err(Error::TimedOut));
    assert!(w.now() <= begin + 2 * MS);
    xs.by(soon(w)).run(vif.close()).unwrap();
    assert_eq!(get(&server, &format!("{FRONT}/state")).unwrap(), "6");
    // Nothing is left: pages, grants, ports, watches.
    assert_eq!((w.held(), w.grants(), xs.retired()), (0, 0, 0));
    assert_eq!(w.ports.borrow().len(), 2);
    let _ = xs.by(soon(w)).read("a");
    assert_eq!(server.borrow().domain_stats(ME).watches, 0);
}

#[test]
fn every_shape_of_connection() {
    let small = Config {
        queues: 1,
        receive_pages: 0,
        send_pages: 0,
        blank_checksums: true,
        multicast_control: false,
    };
    let large = Config {
        queues: 9,
        receive_pages: u16::MAX,
        send_pages: u16::MAX,
        blank_checksums: true,
        multicast_control: true,
    };
    let plain: &[(&str, &str)] = &[("feature-no-csum-offload", "1"), ("mtu", "9000")];
    let jumbo = [MODERN, &[("mtu", "9000")]].concat();
    let most = [MODERN, &[("mtu", "65517")]].concat();
    for (offers, config, queues, mtu, ports) in [
        (plain, small, 1, 4078, 1),
        (plain, large, 1, 4078, 1),
        (&jumbo[..], small, 1, 9000, 2),
        (&jumbo[..], Config { queues: 3, ..large }, 3, 9000, 6),
        (&most[..], small, 1, 65517, 2),
        (&most[..], Config { queues: 1, ..large }, 1, 65517, 2),
    ] {
        let (w, server, xs, vif, k) = setup(offers, config);
        let info = vif.info();
        assert_eq!(
            (info.queues, info.mtu, info.max_frame),
            (queues, mtu, mtu + 18)
        );
        assert_eq!(vif.ports().len(), ports);
        assert_eq!(info.blank_ipv4, offers != plain);
        let key = |key: &str| get(&server, &format!("{FRONT}/{key}"));
        assert_eq!(key("feature-no-csum-offload").as_deref(), Some("0"));
        assert_eq!(key("tx-ring-ref").is_some(), queues == 1);
        assert_eq!(key("queue-0/tx-ring-ref").is_some(), queues > 1);
        k.echo.set(true);
        for n in [14, 60, 1514, 4095, 4096, 4097, 8192, 9018, 30000, 65535] {
            let out = frame(n, n);
            if n > info.max_frame {
                assert_eq!(vif.by(soon(w)).send(&out), Err(Error::Invalid));
                continue;
            }
            for _ in 0..20 {
                vif.by(soon(w)).send(&out).unwrap();
                let mut buffer = vec![0; info.max_frame];
                let got = vif.by(soon(w)).recv(&mut buffer).unwrap();
                assert!(buffer[..got.len] == out, "{n}");
            }
        }
        assert_eq!(vif.failed(), None);
        xs.by(soon(w)).run(vif.close()).unwrap();
        assert_eq!((w.held(), w.grants(), w.ports.borrow().len()), (0, 0, 2));
    }
}

#[test]
fn flows_spread_over_queues_and_frames_come_from_all() {
    let config = Config {
        queues: 4,
        ..Config::default()
    };
    let (w, _server, _xs, vif, k) = setup(MODERN, config);
    let flow = |n: u8| {
        let mut f = frame(60, 0);
        f[..12].fill(n.wrapping_mul(37));
        f
    };
    for n in 0..64 {
        vif.try_send(&flow(n), Checksum::Present).unwrap();
    }
    vif.kick();
    w.run();
    let first = k.sent.take();
    let used: std::collections::BTreeSet<_> = first.iter().map(|s| s.2).collect();
    assert_eq!(used.len(), 4);
    for (f, _, queue) in first {
        vif.by(soon(w)).send(&f).unwrap();
        w.run();
        assert_eq!(k.sent.take()[0].2, queue, "a flow keeps to its queue");
    }
    for n in 0..40 {
        k.inbox
            .borrow_mut()
            .push_back(((flow(n), 0), usize::from(n % 4)));
    }
    let mut got = Vec::new();
    for _ in 0..40 {
        let mut buffer = [0; 100];
        let len = vif.by(soon(w)).recv(&mut buffer).unwrap().len;
        got.push(buffer[..len].to_vec());
    }
    got.sort();
    let mut all: Vec<_> = (0..40).map(flow).collect();
    all.sort();
    assert_eq!(got, all);
}

#[test]
fn parts_extra_information_and_checksums() {
    let config = Config {
        blank_checksums: true,
        ..Config::default()
    };
    let (w, _server, _xs, vif, k) = setup(MODERN, config);
    let mut buffer = vec![0; 1518];
    for (size, offset, extras) in [(100, 0, 0), (100, 256, 0), (700, 10, 1), (4096, 0, 3)] {
        k.part.set((size, offset));
        k.extras.set(extras);
        for (flags, checksum) in [
            (0, Checksum::Present),
            (netrxf::DATA_VALIDATED, Checksum::Validated),
            (netrxf::DATA_VALIDATED | netrxf::CSUM_BLANK, Checksum::Blank),
        ] {
            let f = frame(1400, size + extras);
            for _ in 0..200 {
                k.inbox.borrow_mut().push_back(((f.clone(), flags), 0));
                let got = vif.by(soon(w)).recv(&mut buffer).unwrap();
                assert!(buffer[..got.len] == f);
                assert_eq!(got.checksum, checksum);
            }
        }
    }
    for (checksum, flags) in [
        (Checksum::Present, 0),
        (Checksum::Validated, nettxf::DATA_VALIDATED),
        (Checksum::Blank, nettxf::DATA_VALIDATED | nettxf::CSUM_BLANK),
    ] {
        vif.by(soon(w))
            .send_with(&buffer[..1000], checksum)
            .unwrap();
        w.run();
        assert_eq!(k.sent.take()[0].1, flags);
    }
    // Frames that went wrong or make no sense cost nothing but themselves.
    k.part.set((500, 0));
    k.extras.set(1);
    for n in 0..300 {
        k.receive_error.set(n % 2 == 0);
        let len = if n % 2 == 0 {
            1400
        } else {
            [13, 1519][n / 2 % 2]
        };
        k.inbox.borrow_mut().push_back(((frame(len, n), 0), 0));
        w.run();
        assert_eq!(vif.try_recv(&mut buffer), Ok(None));
    }
    assert_eq!(vif.stats().receive_errors, 300);
    k.inbox.borrow_mut().push_back(((frame(99, 9), 0), 0));
    w.run();
    // One that does not fit stays.
    assert_eq!(vif.next_len(), Some(99));
    assert_eq!(vif.try_recv(&mut [0; 98]), Err(Error::Invalid));
    assert_eq!(vif.try_recv(&mut buffer).unwrap().unwrap().len, 99);
    assert_eq!(vif.next_len(), None);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (w, _server, _xs, vif, k) = setup(MODERN, Config::default());
    for n in [0, 1, 13, 1519, 70_000] {
        assert_eq!(
            vif.try_send(&vec![0; n], Checksum::Present),
            Err(Error::Invalid)
        );
    }
    w.run();
    assert_eq!(sent(&k).len(), 0);
    for (key, value) in [
        ("mac", "00:16:3e:01:02"),
        ("mtu", "67"),
        ("mtu", "65518"),
        ("mtu", "-1"),
        ("mtu", "18446744073709551615"),
    ] {
        let (w, server, xs) = start();
        nodes(&server, MODERN);
        let _k = serve_net(w, &server);
        put(&server, &format!("{FRONT}/{key}"), value);
        let e = open(xs, Config::default()).map(drop);
        assert_eq!(e, Err(Error::BadValue), "{key} {value}");
        assert_eq!((w.held(), w.grants()), (0, 0));
    }
    let (w, server, xs) = start();
    nodes(&server, &[("feature-rx-copy", "0")]);
    let _k = serve_net(w, &server);
    assert_eq!(
        open(xs, Config::default()).map(drop),
        Err(Error::Unsupported)
    );
    server.borrow_mut().rm(&format!("{FRONT}/mac")).unwrap();
    put(&server, &format!("{BACK}/feature-rx-copy"), "1");
    assert_eq!(open(xs, Config::default()).map(drop), Err(Error::BadValue));
}

#[test]
fn a_full_ring_one_event_and_errors() {
    let config = Config {
        send_pages: 300,
        ..Config::default()
    };
    let (w, _server, _xs, vif, k) = setup(MODERN, config);
    w.run();
    // One each, when it was connected.
    assert_eq!(k.events.get(), (1, 1));
    let before = 1;
    for n in 0..256 {
        vif.try_send(&frame(60, n), Checksum::Present).unwrap();
    }
    assert_eq!(
        vif.try_send(&frame(60, 0), Checksum::Present),
        Err(Error::Busy)
    );
    assert!(!vif.has_room(60));
    w.run();
    assert_eq!(k.events.get().0, before, "nothing was shown yet");
    vif.kick();
    k.status.set(-1);
    let notified = k.notified.get();
    w.run();
    assert_eq!(k.events.get().0, before + 1);
    assert_eq!(
        k.notified.get(),
        notified + 1,
        "one event said that there is room"
    );
    assert!(vif.has_room(1518));
    assert_eq!(vif.stats().send_errors, 256);
    assert_eq!(sent(&k).len(), 256);
    k.status.set(0);
    // The same again.
    for n in 0..256 {
        vif.try_send(&frame(60, n), Checksum::Present).unwrap();
    }
    let full = vif.try_send(&frame(60, 0), Checksum::Present);
    assert_eq!(full, Err(Error::Busy));
    vif.kick();
    let notified = k.notified.get();
    w.run();
    assert_eq!((sent(&k).len(), k.notified.get()), (256, notified + 1));
    assert!(vif.has_room(60));
    assert_eq!(vif.stats().sent, 256);
    // While there is room, nobody asks for events.
    let notified = k.notified.get();
    for n in 0..100 {
        vif.by(soon(w)).send(&frame(60, n)).unwrap();
        w.run();
    }
    vif.handle_event();
    assert_eq!((vif.stats().sent, k.notified.get()), (356, notified));
}

#[test]
fn a_silent_back_end_costs_no_more_than_the_deadline() {
    let config = Config {
        send_pages: 4,
        receive_pages: 4,
        ..Config::default()
    };
    let (w, _server, xs, vif, k) = setup(MODERN, config);
    k.silent.set(true);
    for n in 0..10 {
        let begin = w.now();
        let result = vif.by(begin + MS).send(&frame(1000, n));
        assert_eq!(result, if n < 4 { Ok(()) } else { Err(Error::TimedOut) });
        assert!(w.now() <= begin + 2 * MS);
    }
    k.silent.set(false);
    vif.by(soon(w)).send(&frame(1000, 10)).unwrap();
    w.run();
    assert_eq!(sent(&k).len(), 5);
    // It goes with the rings mapped: they stay away from the kernel until it lets go.
    k.dead.set(true);
    let begin = w.now();
    assert_eq!(xs.by(begin + MS).run(vif.close()), Err(Error::TimedOut));
    assert_eq!((xs.retired(), w.held()), (2, 2));
    w.back.borrow_mut().clear();
    for at in 0..20 {
        w.mark(GrantRef(8 + at), false);
    }
    assert_eq!((xs.retired(), w.held(), w.grants()), (0, 0, 0));
}

#[test]
fn pages_are_kept_while_the_back_end_copies() {
    let (w, _server, xs, vif, k) = setup(MODERN, Config::default());
    k.silent.set(true);
    vif.by(soon(w)).send(&frame(1000, 1)).unwrap();
    w.run();
    // The page of the frame, in use by a copy that does not end.
    let used = (8..300).map(GrantRef).find(|g| {
        let Some((gfn, _)) = w.granted(*g, DOM0) else {
            return false;
        };
        let (page, at) = w.frame(gfn.0).unwrap();
        page.to_vec()[at..][..1000] == frame(1000, 1)
    });
    let used = used.unwrap();
    w.mark(used, true);
    k.silent.set(false);
    xs.by(soon(w)).run(vif.close()).unwrap();
    assert_eq!((xs.retired(), w.held(), w.grants()), (1, 1, 1));
    w.mark(used, false);
    assert_eq!((xs.retired(), w.held(), w.grants()), (0, 0, 0));
}

#[test]
fn a_back_end_that_closes_and_comes_back() {
    let (w, server, xs, mut vif, k) = setup(MODERN, Config::default());
    vif.by(soon(w)).send(&frame(60, 1)).unwrap();
    k.inbox.borrow_mut().push_back(((frame(60, 2), 0), 0));
    w.run();
    put(&server, &format!("{BACK}/online"), "0");
    w.run();
    let mut buffer = [0; 1518];
    // What came before is there still.
    assert_eq!(vif.by(soon(w)).recv(&mut buffer).unwrap().len, 60);
    assert_eq!(vif.by(soon(w)).recv(&mut buffer), Err(Error::Gone));
    assert_eq!(vif.failed(), Some(Error::Gone));
    assert_eq!(vif.by(soon(w)).send(&buffer), Err(Error::Gone));
    assert!(!vif.has_room(60));
    // It stays away: a deadline ends the attempt.
    let away = xs.by(w.now() + MS).run(vif.reconnect());
    assert_eq!(away, Err(Error::TimedOut));
    put(&server, &format!("{BACK}/online"), "1");
    xs.by(soon(w)).run(vif.reconnect()).unwrap();
    assert_eq!((vif.failed(), vif.stats().received), (None, 1));
    k.echo.set(true);
    vif.by(soon(w)).send(&frame(80, 1)).unwrap();
    assert_eq!(vif.by(soon(w)).recv(&mut buffer).unwrap().len, 80);
    // Anew without having failed.
    xs.by(soon(w)).run(vif.reconnect()).unwrap();
    vif.by(soon(w)).send(&frame(81, 1)).unwrap();
    assert_eq!(vif.by(soon(w)).recv(&mut buffer).unwrap().len, 81);
    // Taken away for good.
    server.borrow_mut().rm(BACK).unwrap();
    server.borrow_mut().rm(FRONT).unwrap();
    assert_eq!(vif.by(soon(w)).recv(&mut buffer), Err(Error::Gone));
    let gone = xs.by(soon(w)).run(vif.reconnect());
    assert_eq!(gone, Err(Error::NoDevice));
    drop(vif);
    assert_eq!((w.held(), w.grants(), xs.retired()), (0, 0, 0));
    assert_eq!(w.ports.borrow().len(), 2);
}

#[test]
fn a_back_end_that_closes_as_it_is_connected() {
    let (w, server, xs) = start();
    nodes(&server, MODERN);
    let s = server.clone();
    // Taken away by the toolstack at once: it ends when the front end has.
    w.add(move |_| {
        let state = |at: &str| get(&s, &format!("{at}/state"));
        let (front, back) = (state(FRONT), state(BACK));
        let next = match (front.as_deref(), back.as_deref()) {
            (Some("1"), Some("1")) => "2",
            (Some("4"), Some("2")) => "5",
            (Some("6"), Some("5")) => "6",
            _ => return false,
        };
        put(&s, &format!("{BACK}/state"), next);
        true
    });
    assert_eq!(open(xs, Config::default()).err(), Some(Error::Gone));
    assert_eq!(get(&server, &format!("{BACK}/state")).as_deref(), Some("6"));
    assert_eq!((w.held(), w.grants()), (0, 0));
}

#[test]
fn a_kernel_before_that_left_it_connected() {
    let config = Config {
        queues: 4,
        ..Config::default()
    };
    let (w, server, xs, vif, k) = setup(MODERN, config);
    std::mem::forget(vif);
    let vif = open(xs, Config::default()).unwrap();
    vif.by(soon(w)).send(&frame(60, 1)).unwrap();
    w.run();
    assert_eq!(sent(&k), [frame(60, 1)]);
    // The back end offers less than before.
    std::mem::forget(vif);
    put(&server, &format!("{FRONT}/ctrl-ring-ref"), "8");
    for key in ["feature-split-event-channels", "feature-sg"] {
        put(&server, &format!("{BACK}/{key}"), "0");
    }
    let vif = open(xs, config).unwrap();
    assert_eq!((vif.info().split_channels, vif.ports().len()), (false, 4));
    let left = get(&server, &format!("{FRONT}/queue-0/event-channel-tx"));
    assert_eq!(left, None);
    let vif = {
        std::mem::forget(vif);
        open(xs, Config::default()).unwrap()
    };
    assert_eq!(vif.ports().len(), 1);
    assert_eq!(get(&server, &format!("{FRONT}/ctrl-ring-ref")), None);
    vif.by(soon(w)).send(&frame(60, 2)).unwrap();
    w.run();
    assert_eq!(sent(&k), [frame(60, 2)]);
}

#[test]
fn no_back_end_no_memory_no_device() {
    let (w, server, xs) = start();
    assert_eq!(open(xs, Config::default()).map(drop), Err(Error::NoDevice));
    nodes(&server, MODERN);
    assert_eq!(open(xs, Config::default()).map(drop), Err(Error::TimedOut));
    let _k = serve_net(w, &server);
    for free in [0, 1, 2, 3, 100] {
        w.free_pages.set(free);
        assert_eq!(open(xs, Config::default()).map(drop), Err(Error::NoMemory));
        assert_eq!((w.held(), w.grants(), w.ports.borrow().len()), (0, 0, 2));
    }
    w.free_pages.set(10_000);
    open(xs, Config::default()).unwrap();
}

#[test]
fn a_domain_that_was_restored() {
    let (w, server, xs, mut vif, _old) = setup(MODERN, Config::default());
    // Ports and grants of before are no more, and their numbers are free.
    w.ports.borrow_mut().retain(|p| *p <= 2);
    w.table.write(64, &vec![0; w.table.len() - 64]);
    server.borrow_mut().rm(BACK).unwrap();
    server.borrow_mut().rm(FRONT).unwrap();
    w.back.borrow_mut().pop();
    let other = "/local/domain/0/backend/vif/7/0";
    nodes_at(&server, other, MODERN);
    let k = serve_net_at(w, &server, other);
    xs.resume().unwrap();
    xs.by(soon(w)).run(vif.resume()).unwrap();
    assert!(vif.ports().iter().all(|p| w.ports.borrow().contains(&p.0)));
    k.echo.set(true);
    let mut buffer = [0; 1518];
    vif.by(soon(w)).send(&frame(80, 1)).unwrap();
    assert_eq!(vif.by(soon(w)).recv(&mut buffer).unwrap().len, 80);
    xs.by(soon(w)).run(vif.close()).unwrap();
    assert_eq!((w.held(), w.grants(), w.ports.borrow().len()), (0, 0, 2));
}

struct Count(AtomicU32);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn futures_wake_for_frames_room_and_the_end() {
    let config = Config {
        send_pages: 3,
        ..Config::default()
    };
    let (w, server, xs, vif, k) = setup(MODERN, config);
    let counts = [0, 1].map(|_| Arc::new(Count(AtomicU32::new(0))));
    let wakers = counts.clone().map(Waker::from);
    let count = |n: usize| counts[n].0.load(Ordering::Relaxed);
    let mut buffer = [0; 1518];
    k.silent.set(true);
    for n in 0..3 {
        vif.try_send(&frame(60, n), Checksum::Present).unwrap();
    }
    let message = frame(60, 9);
    for _ in 0..4 {
        w.run();
        vif.handle_event();
    }
    let mut send = Box::pin(vif.send(&message));
    let mut recv = Box::pin(vif.recv(&mut buffer));
    assert!(
        recv.as_mut()
            .poll(&mut Context::from_waker(&wakers[0]))
            .is_pending()
    );
    assert!(
        send.as_mut()
            .poll(&mut Context::from_waker(&wakers[1]))
            .is_pending()
    );
    w.run();
    vif.handle_event();
    assert_eq!((count(0), count(1)), (0, 0));
    k.silent.set(false);
    k.inbox.borrow_mut().push_back(((frame(70, 0), 0), 0));
    w.run();
    vif.handle_event();
    assert_eq!((count(0), count(1)), (1, 1));
    let mut cx = Context::from_waker(&wakers[1]);
    assert_eq!(send.as_mut().poll(&mut cx), Poll::Ready(Ok(())));
    let mut cx = Context::from_waker(&wakers[0]);
    assert!(matches!(recv.as_mut().poll(&mut cx), Poll::Ready(Ok(r)) if r.len == 70));
    drop(recv);
    // The end is told by xenstore's event alone, although somebody looked in between.
    let mut recv = Box::pin(vif.recv(&mut buffer));
    assert!(recv.as_mut().poll(&mut cx).is_pending());
    vif.handle_event();
    put(&server, &format!("{BACK}/state"), "6");
    k.dead.set(true);
    let mut end = Poll::Pending;
    let mut woken = count(0);
    for _ in 0..4 {
        w.run();
        xs.handle_event();
        if count(0) > woken && end.is_pending() {
            woken = count(0);
            end = recv.as_mut().poll(&mut cx);
        }
    }
    assert_eq!(end, Poll::Ready(Err(Error::Gone)));
}

#[test]
fn impossible_answers_end_the_connection() {
    for what in 0..7 {
        let (w, _server, xs, mut vif, k) = setup(MODERN, Config::default());
        k.silent.set(true);
        vif.by(soon(w)).send(&frame(60, 1)).unwrap();
        w.run();
        k.dead.set(true);
        w.run();
        let ring = |n: u32| {
            w.frame(w.granted(GrantRef(8 + n), DOM0).unwrap().0.0)
                .unwrap()
                .0
        };
        let (tx, rx) = (ring(0), ring(1));
        let answer = |at: usize, id: u16, offset, flags, status| {
            let r = NetifRxResponse {
                id,
                offset,
                flags,
                status,
            };
            rx.write(head::ENTRIES + at * 8, r.as_bytes());
        };
        let sent = |id: u16| {
            let r = NetifTxResponse { id, status: 0 };
            tx.write(head::ENTRIES, r.as_bytes());
            tx.store32(head::RSP_PROD, 1);
        };
        match what {
            0 => tx.store32(head::RSP_PROD, 2),
            1 => rx.store32(head::RSP_PROD, 65),
            2 => sent(5),
            3 => sent(u16::MAX),
            4 => {
                answer(0, 1, 0, 0, 60);
                rx.store32(head::RSP_PROD, 1);
            }
            5 => {
                answer(0, 0, 4090, 0, 60);
                rx.store32(head::RSP_PROD, 1);
            }
            _ => {
                for n in 0..20 {
                    answer(n.into(), n, 0, netrxf::MORE_DATA, 60);
                }
                rx.store32(head::RSP_PROD, 20);
            }
        }
        let mut buffer = [0; 1518];
        let e = vif.by(w.now() + MS).recv(&mut buffer).unwrap_err();
        assert!(matches!(e, Error::Protocol(_)), "{what}: {e}");
        assert_eq!(vif.failed(), Some(e));
        assert_eq!(vif.try_send(&buffer, Checksum::Present), Err(e));
        k.dead.set(false);
        k.silent.set(false);
        k.echo.set(true);
        xs.by(soon(w)).run(vif.reconnect()).unwrap();
        vif.by(soon(w)).send(&frame(60, 1)).unwrap();
        vif.by(soon(w)).recv(&mut buffer).unwrap();
    }
}

#[test]
fn smoltcp_talks_udp_over_it() {
    use smoltcp::iface::{Config as Settings, Interface, SocketSet};
    use smoltcp::phy::{ChecksumCapabilities, Device};
    use smoltcp::socket::udp;
    use smoltcp::time::Instant;
    use smoltcp::wire::*;
    for blank in [false, true] {
        let config = Config {
            blank_checksums: blank,
            ..Config::default()
        };
        let (w, _server, _xs, vif, k) = setup(MODERN, config);
        let mut phy = Phy::new(&vif);
        assert_eq!(phy.capabilities().max_transmission_unit, 1514);
        assert_eq!(phy.capabilities().checksum.udp.rx(), !blank);
        assert!(phy.capabilities().checksum.udp.tx());
        let me = EthernetAddress(vif.info().mac);
        let now = |w: &World| Instant::from_micros((w.now() / 1000) as i64);
        let mut iface = Interface::new(Settings::new(me.into()), &mut phy, now(w));
        let address = Ipv4Address::new(10, 0, 0, 2);
        iface.update_ip_addrs(|a| a.push(IpCidr::new(address.into(), 24)).unwrap());
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 8192]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(7).unwrap();
        let mut sockets = SocketSet::new(vec![]);
        let handle = sockets.add(socket);
        let peer = (
            EthernetAddress([2, 0, 0, 0, 0, 1]),
            Ipv4Address::new(10, 0, 0, 1),
        );
        let caps = ChecksumCapabilities::default();
        let datagram = |payload: &[u8]| {
            let udp = UdpRepr {
                src_port: 9,
                dst_port: 7,
            };
            let ip = Ipv4Repr {
                src_addr: peer.1,
                dst_addr: address,
                next_header: IpProtocol::Udp,
                payload_len: udp.header_len() + payload.len(),
                hop_limit: 64,
            };
            let mut bytes = vec![0; 14 + ip.buffer_len() + ip.payload_len];
            let mut frame = EthernetFrame::new_unchecked(&mut bytes);
            frame.set_src_addr(peer.0);
            frame.set_dst_addr(me);
            frame.set_ethertype(EthernetProtocol::Ipv4);
            let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
            ip.emit(&mut packet, &caps);
            udp.emit(
                &mut UdpPacket::new_unchecked(packet.payload_mut()),
                &peer.1.into(),
                &address.into(),
                payload.len(),
                |to| to.copy_from_slice(payload),
                &caps,
            );
            bytes
        };
        let good = datagram(b"hello");
        let mut spoilt = datagram(b"blank");
        spoilt[40] ^= 0xff;
        for f in [spoilt, good] {
            k.inbox.borrow_mut().push_back(((f, 0), 0));
        }
        w.run();
        for _ in 0..4 {
            iface.poll(now(w), &mut phy, &mut sockets);
        }
        let socket = sockets.get_mut::<udp::Socket>(handle);
        let mut got = Vec::new();
        while let Ok((data, _)) = socket.recv() {
            got.push(data.to_vec());
        }
        let all: &[&[u8]] = if blank {
            &[b"blank", b"hello"]
        } else {
            &[b"hello"]
        };
        assert_eq!(got, all);
        // It asks for the peer's address first; then the datagram goes out whole.
        socket
            .send_slice(&[7; 1472], IpEndpoint::new(peer.1.into(), 9))
            .unwrap();
        iface.poll(now(w), &mut phy, &mut sockets);
        w.run();
        let asked = sent(&k);
        assert_eq!(asked.len(), 1);
        assert_eq!(asked[0][12..14], [8, 6]);
        let mut answer = vec![0; 42];
        let mut f = EthernetFrame::new_unchecked(&mut answer);
        f.set_src_addr(peer.0);
        f.set_dst_addr(me);
        f.set_ethertype(EthernetProtocol::Arp);
        ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: peer.0,
            source_protocol_addr: peer.1,
            target_hardware_addr: me,
            target_protocol_addr: address,
        }
        .emit(&mut ArpPacket::new_unchecked(f.payload_mut()));
        k.inbox.borrow_mut().push_back(((answer, 0), 0));
        w.run();
        for _ in 0..4 {
            w.clock.set(w.now() + SECOND);
            iface.poll(now(w), &mut phy, &mut sockets);
            w.run();
        }
        let out = sent(&k);
        let out = out
            .iter()
            .find(|f| f[12..14] == [8, 0])
            .expect("a datagram");
        assert_eq!((out.len(), &out[42..]), (1514, &[7; 1472][..]));
        let packet = Ipv4Packet::new_checked(&out[14..]).unwrap();
        let udp = UdpPacket::new_checked(packet.payload()).unwrap();
        assert!(udp.verify_checksum(&address.into(), &peer.1.into()));
    }
}

#[derive(Clone, Debug)]
enum Move {
    Word(usize, usize, u32),
    Receive(usize, u16, u16, u16, i16),
    Send(usize, u16, i16),
    Node(usize, String),
    Nothing,
}

const KEYS: &[&str] = &[
    "state",
    "feature-rx-copy",
    "feature-sg",
    "feature-split-event-channels",
    "multi-queue-max-queues",
    "feature-no-csum-offload",
    "mtu",
];

fn moves() -> impl Strategy<Value = Move> {
    let word = prop::sample::select(vec![0, 4, 8, 12]);
    let value = prop_oneof![
        4 => (0..9_u32).prop_map(|n| n.to_string()),
        2 => any::<u64>().prop_map(|n| n.to_string()),
        1 => "[a-z0-9+ -]{0,6}",
        1 => Just("9000".to_string()),
    ];
    prop_oneof![
        3 => (0..2_usize, word, prop_oneof![0..70_u32, any::<u32>()]).prop_map(|(r, w, v)| Move::Word(r, w, v)),
        6 => (0..64_usize, 0..70_u16, prop_oneof![Just(0), any::<u16>()], 0..32_u16, prop_oneof![-3..1600_i16, any::<i16>()])
            .prop_map(|(e, id, o, f, s)| Move::Receive(e, if id < 64 { e as u16 } else { id }, o, f, s)),
        3 => (0..64_usize, 0..70_u16, -3..3_i16).prop_map(|(e, id, s)| Move::Send(e, id, s)),
        4 => (0..KEYS.len(), value).prop_map(|(k, v)| Move::Node(k, v)),
        2 => Just(Move::Node(0, "2".into())),
        2 => Just(Move::Node(0, "4".into())),
        1 => Just(Move::Nothing),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the back end writes to the rings and the store, calls end by their deadline, and nothing panics; what
    /// it maps is all that is kept.
    #[test]
    fn a_hostile_back_end(script in prop::collection::vec(moves(), 1..120), connected in any::<bool>()) {
        let (w, server, xs) = start();
        nodes(&server, MODERN);
        put(&server, &format!("{BACK}/feature-multicast-control"), "1");
        if connected {
            put(&server, &format!("{BACK}/state"), "2");
        }
        let mut script = script.into_iter();
        let s = server.clone();
        w.add(move |w| {
            if connected && get(&s, &format!("{FRONT}/state")).as_deref() == Some("4")
                && get(&s, &format!("{BACK}/state")).as_deref() == Some("2") {
                put(&s, &format!("{BACK}/state"), "4");
                return true;
            }
            let ring = |n: usize| {
                let mut all = (8..200).filter_map(|r| w.granted(GrantRef(r), DOM0));
                all.nth(n).and_then(|g| w.frame(g.0.0)).map(|r| r.0)
            };
            match script.next() {
                None => return false,
                Some(Move::Nothing) => {}
                Some(Move::Node(key, value)) => put(&s, &format!("{BACK}/{}", KEYS[key]), &value),
                Some(Move::Word(n, at, value)) => if let Some(ring) = ring(n) { ring.store32(at, value) },
                Some(Move::Receive(at, id, offset, flags, status)) => if let Some(ring) = ring(1) {
                    let r = NetifRxResponse { id, offset, flags, status };
                    ring.write(head::ENTRIES + at * 8, r.as_bytes());
                },
                Some(Move::Send(at, id, status)) => if let Some(ring) = ring(0) {
                    let r = NetifTxResponse { id, status };
                    ring.write(head::ENTRIES + at * 12, r.as_bytes());
                },
            }
            true
        });
        let mut vif = xs.by(w.now() + 10 * MS).run(Vif::open(xs.access(), 0, Config { send_pages: 4, multicast_control: true, ..Config::default() }));
        let mut buffer = [0; 2000];
        for n in 0..30 {
            let begin = w.now();
            match &mut vif {
                Ok(vif) => {
                    let _ = vif.by(begin + MS).send(&frame(14 + n, n));
                    if n % 4 == 0 {
                        let _ = vif.by(begin + MS).join([1, 0, 0x5e, 0, 0, n as u8]);
                    }
                    if let Ok(got) = vif.by(begin + 2 * MS).recv(&mut buffer) {
                        prop_assert!((14..=vif.info().max_frame).contains(&got.len));
                    }
                    if vif.failed().is_some() {
                        let _ = xs.by(begin + 3 * MS).run(vif.reconnect());
                    }
                }
                Err(_) => vif = xs.by(begin + 3 * MS).run(Vif::open(xs.access(), 0, Config::default())),
            }
            prop_assert!(w.now() <= begin + 4 * MS);
        }
        drop(vif);
        prop_assert_eq!((w.held(), w.grants(), xs.retired()), (0, 0, 0));
        prop_assert_eq!(w.ports.borrow().len(), 2);
    }
}
