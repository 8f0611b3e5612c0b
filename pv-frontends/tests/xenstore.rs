// SPDX-License-Identifier: MIT OR Apache-2.0
//! The client against the workspace's own server, and against hostile ones.

mod common;

use common::*;
use guest_abi::io::xs_wire::{self as wire, MsgType, REQ, RSP, XsdSockmsg};
use guest_abi::mem::SharedMem;
use guest_abi::{DomId, Errno};
use proptest::prelude::*;
use pv_frontends::xenstore::{MAX_EVENTS, MAX_REQUESTS, MAX_WATCHES, Perm, Rights, Xenstore};
use pv_frontends::{Error, Platform};
use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use zerocopy::IntoBytes;

type Client = Xenstore<&'static World>;

fn setup() -> (&'static World, Server, &'static Client) {
    let world = World::new();
    let server = serve(world);
    let client = Box::leak(Box::new(Xenstore::open(world).unwrap()));
    (world, server, client)
}

fn soon(world: &World) -> u64 {
    world.now() + SECOND
}

#[test]
fn nodes_come_and_go() {
    let (w, server, xs) = setup();
    let s = xs.by(soon(w));
    assert_eq!(s.read("a"), Err(Error::Store(Errno::ENOENT)));
    s.write("a/b", b"value").unwrap();
    assert_eq!(
        server.borrow().read("/local/domain/1/a/b").unwrap(),
        b"value"
    );
    assert_eq!(s.read_text("a/b").unwrap(), "value");
    s.mkdir("a/c").unwrap();
    assert_eq!(s.read("a/c").unwrap(), b"");
    assert_eq!(s.list("a").unwrap(), ["b", "c"]);
    assert_eq!(s.list("a/c").unwrap(), [""; 0]);
    s.rm("a/b").unwrap();
    assert!(!s.exists("a/b").unwrap());
    assert!(s.exists("a").unwrap());
    assert_eq!(s.domain_path(DomId(1)).unwrap(), HOME);
    s.write("n", b"4294967296").unwrap();
    assert_eq!(s.read_number::<u64>("n"), Ok(1 << 32));
    assert_eq!(s.read_number::<u32>("n"), Err(Error::BadValue));
    for bad in ["", "+1", "0x1", " 1", "1\n"] {
        s.write("n", bad.as_bytes()).unwrap();
        assert_eq!(s.read_number::<u32>("n"), Err(Error::BadValue), "{bad:?}");
    }
    s.write("n", b"\xff").unwrap();
    assert_eq!(s.read_text("n"), Err(Error::BadValue));
    assert_eq!(s.read("/secret"), Err(Error::Store(Errno::EACCES)));
}

#[test]
fn permissions() {
    let (w, _server, xs) = setup();
    let s = xs.by(soon(w));
    s.write("a", b"").unwrap();
    let perms = [
        Perm {
            dom: ME,
            rights: Rights::None,
        },
        Perm {
            dom: DomId(0),
            rights: Rights::Both,
        },
    ];
    s.set_perms("a", &perms).unwrap();
    assert_eq!(s.perms("a").unwrap(), perms);
}

#[test]
fn arguments_that_cannot_be_sent() {
    let (w, _server, xs) = setup();
    let s = xs.by(soon(w));
    assert_eq!(s.read(""), Err(Error::Invalid));
    assert_eq!(s.read("a\0b"), Err(Error::Invalid));
    assert_eq!(s.write("a\0", b""), Err(Error::Invalid));
    assert_eq!(s.write("a", &[0; 4096]), Err(Error::Invalid));
    s.write("a", &[0; 2048]).unwrap();
    assert_eq!(s.read("a").unwrap(), [0; 2048]);
}

#[test]
fn long_lists_come_in_parts() {
    let (w, server, xs) = setup();
    let names: Vec<String> = (0..700).map(|n| format!("a-long-name-{n:03}")).collect();
    for n in &names {
        let path = format!("{HOME}/dir/{n}");
        server.borrow_mut().write(&path, b"").unwrap();
    }
    let perms = [xenstore::Perm::none(ME)];
    server
        .borrow_mut()
        .set_perms("/local/domain/1/dir", &perms)
        .unwrap();
    assert_eq!(xs.by(soon(w)).list("dir").unwrap(), names);
}

#[test]
fn several_requests_are_under_way() {
    let (w, _server, xs) = setup();
    let s = xs.by(soon(w));
    for n in 0..20 {
        s.write(&format!("v{n}"), &[n; 900]).unwrap();
    }
    let replies: Vec<_> = (0..20)
        .map(|n| {
            let path = format!("v{n}\0");
            xs.request(MsgType::Read, 0, &[path.as_bytes()]).unwrap()
        })
        .collect();
    for (n, reply) in replies.into_iter().enumerate().rev() {
        assert_eq!(s.run(reply).unwrap(), [n as u8; 900]);
    }
}

#[test]
fn too_many_requests_are_refused_and_dropped_ones_do_not_count() {
    let w = World::new();
    let xs = Xenstore::open(w).unwrap();
    let ask = || xs.request(MsgType::Read, 0, &[b"a\0"]);
    let replies: Vec<_> = (0..MAX_REQUESTS).map(|_| ask().unwrap()).collect();
    assert_eq!(ask().unwrap_err(), Error::Busy);
    drop(replies);
    let replies: Vec<_> = (0..MAX_REQUESTS).map(|_| ask().unwrap()).collect();
    assert_eq!(ask().unwrap_err(), Error::Busy);
    // What went out before they were dropped is answered and ignored; all others are had.
    let server = serve(w);
    server
        .borrow_mut()
        .write("/local/domain/1/a", b"x")
        .unwrap();
    for reply in replies {
        let s = xs.by(soon(w));
        assert_eq!(s.run(reply), Ok(b"x".to_vec()));
    }
    assert!(ask().is_ok());
}

#[test]
fn a_server_that_does_not_answer_is_not_waited_for_for_ever() {
    let w = World::new();
    let xs = Xenstore::open(w).unwrap();
    let begin = w.now();
    assert_eq!(xs.by(begin + 5 * MS).read("a"), Err(Error::TimedOut));
    assert!(w.now() < begin + 6 * MS);
    assert_eq!(
        xs.by(w.now() + MS).transaction(|_| Ok(())),
        Err(Error::TimedOut)
    );
    assert_eq!(
        xs.by(w.now() + MS).watch("a").map(drop),
        Err(Error::TimedOut)
    );
    // It comes up after all: what was asked in vain is not mistaken for what is asked now, and the transaction
    // that nobody waited for is ended.
    let server = serve(w);
    let s = xs.by(soon(w));
    s.write("a", b"1").unwrap();
    assert_eq!(s.read("a").unwrap(), b"1");
    assert_eq!(server.borrow().domain_stats(ME).transactions, 0);
    assert_eq!(server.borrow().domain_stats(ME).watches, 0);
}

#[test]
fn transactions() {
    let (w, server, xs) = setup();
    let s = xs.by(soon(w));
    s.write("n", b"0").unwrap();
    // Another interferes twice.
    let tries = Cell::new(0);
    s.transaction(|t| {
        let n: u32 = t.read_number("n")?;
        tries.set(tries.get() + 1);
        if tries.get() <= 2 {
            server
                .borrow_mut()
                .write("/local/domain/1/n", (n + 10).to_string().as_bytes())
                .unwrap();
        }
        t.write("n", (n + 1).to_string().as_bytes())
    })
    .unwrap();
    assert_eq!((tries.get(), s.read_number::<u32>("n")), (3, Ok(21)));
    // What fails leaves nothing.
    let r = s.transaction(|t| {
        t.write("n", b"99")?;
        t.read("nowhere")
    });
    assert_eq!(r, Err(Error::Store(Errno::ENOENT)));
    assert_eq!(s.read("n").unwrap(), b"21");
    assert_eq!(server.borrow().domain_stats(ME).transactions, 0);
    // Others that interfere for ever end it.
    let r = s.transaction(|t| {
        t.read("n")?;
        server
            .borrow_mut()
            .write("/local/domain/1/n", b"5")
            .unwrap();
        t.write("n", b"6")
    });
    assert_eq!(r, Err(Error::Store(Errno::EAGAIN)));
    // The same as a future, and one in another.
    let r = s.run(s.access().transaction(async |t| {
        t.write("n", b"7").await?;
        t.transaction(async |t| t.read_number::<u8>("n").await)
            .await
    }));
    assert_eq!(r, Ok(7));
    assert_eq!(s.read("n").unwrap(), b"7");
    assert_eq!(server.borrow().domain_stats(ME).transactions, 0);
}

#[test]
fn watches() {
    let (w, server, xs) = setup();
    let s = xs.by(soon(w));
    let a = s.watch("a").unwrap();
    let b = s.watch("/local/domain/1/a/b").unwrap();
    assert_eq!(s.next(&a).unwrap(), "a");
    assert_eq!(s.next(&b).unwrap(), "/local/domain/1/a/b");
    assert_eq!(a.try_next(), Ok(None));
    server
        .borrow_mut()
        .write("/local/domain/1/a/b", b"")
        .unwrap();
    server
        .borrow_mut()
        .write("/local/domain/1/a/c", b"")
        .unwrap();
    assert_eq!(s.next(&b).unwrap(), "/local/domain/1/a/b");
    let all = [s.next(&a).unwrap(), s.next(&a).unwrap()];
    assert_eq!(all, ["a/b", "a/c"]);
    assert_eq!(xs.by(w.now() + MS).try_next(&a), Ok(None));
    drop(a);
    drop(b);
    s.read("a/b").unwrap();
    assert_eq!(server.borrow().domain_stats(ME).watches, 0);
    // More events than are kept become one: look at everything.
    let a = s.watch("a").unwrap();
    s.next(&a).unwrap();
    for n in 0..2 * MAX_EVENTS {
        server
            .borrow_mut()
            .write(&format!("/local/domain/1/a/{n}"), b"")
            .unwrap();
        let _ = s.exists("x");
    }
    assert_eq!(s.next(&a).unwrap(), "a");
    server
        .borrow_mut()
        .write("/local/domain/1/a/z", b"")
        .unwrap();
    let mut seen = Vec::new();
    while let Some(path) = xs.by(w.now() + MS).try_next(&a).unwrap() {
        seen.push(path);
    }
    assert!(
        seen.len() <= MAX_EVENTS && seen.iter().any(|p| p == "a" || p == "a/z"),
        "{seen:?}"
    );
}

#[test]
fn too_many_watches_are_refused() {
    let w = World::new();
    let server = serve(w);
    let xs = Xenstore::open(w).unwrap();
    let s = xs.by(soon(w));
    let all: Vec<_> = (0..MAX_WATCHES)
        .map(|n| s.watch(&format!("w{n}")).unwrap())
        .collect();
    assert_eq!(s.watch("w").map(drop), Err(Error::Busy));
    assert_eq!(
        server.borrow().domain_stats(ME).watches as usize,
        MAX_WATCHES
    );
    drop(all);
    let one = s.watch("w").unwrap();
    s.next(&one).unwrap();
    assert_eq!(server.borrow().domain_stats(ME).watches, 1);
}

#[test]
fn what_a_kernel_before_left_is_forgotten() {
    let (w, server, xs) = setup();
    let s = xs.by(soon(w));
    assert_eq!(s.reset_watches(), Err(Error::Unsupported));
    server
        .borrow_mut()
        .write(
            "/local/domain/1/control/platform-feature-xs_reset_watches",
            b"1",
        )
        .unwrap();
    let perms = [xenstore::Perm::none(DomId(0)), xenstore::Perm::read(ME)];
    for node in ["control", "control/platform-feature-xs_reset_watches"] {
        server
            .borrow_mut()
            .set_perms(&format!("{HOME}/{node}"), &perms)
            .unwrap();
    }
    std::mem::forget(s.watch("a").unwrap());
    // Half an answer is in the ring, and is nobody's.
    std::mem::forget(xs.request(MsgType::Read, 0, &[b"a\0"]).unwrap());
    w.run();
    let xs = Xenstore::open(w).unwrap();
    let s = xs.by(soon(w));
    s.reset_watches().unwrap();
    assert_eq!(server.borrow().domain_stats(ME).watches, 0);
    s.write("a", b"1").unwrap();
    assert_eq!(s.read("a").unwrap(), b"1");
}

#[test]
fn a_broken_ring_fails_until_a_reconnection() {
    for (word, end) in [(RSP.prod, RSP.cons), (REQ.cons, REQ.prod)] {
        let (w, server, xs) = setup();
        let s = xs.by(soon(w));
        let page = w.placed(STORE_GFN);
        let watch = s.watch("a").unwrap();
        s.next(&watch).unwrap();
        let pending = xs.request(MsgType::Read, 0, &[b"a\0"]).unwrap();
        page.store32(word, page.load32(end).wrapping_add(5000));
        // Whoever sees it first.
        let e = s.run(pending).unwrap_err();
        assert!(matches!(e, Error::Protocol(_)), "{e}");
        assert_eq!(s.read("a"), Err(e));
        assert_eq!(s.next(&watch), Err(e));
        assert_eq!(xs.failed(), Some(e));
        s.reconnect().unwrap();
        assert_eq!(xs.failed(), None);
        assert_eq!(s.next(&watch).unwrap(), "a");
        server.borrow_mut().write("/local/domain/1/a", b"").unwrap();
        assert_eq!(s.next(&watch).unwrap(), "a");
        s.write("b", b"2").unwrap();
        assert_eq!(s.read("b").unwrap(), b"2");
    }
}

#[test]
fn a_server_that_reports_an_error_or_offers_nothing() {
    let (w, _server, xs) = setup();
    let page = w.placed(STORE_GFN);
    let s = xs.by(soon(w));
    let _ = s.read("a");
    page.store32(wire::ERROR, wire::ERROR_COMM);
    let e = Error::Protocol("xenstore: the server reports an error");
    assert_eq!(s.read("a"), Err(e));
    page.store32(wire::SERVER_FEATURES, 0);
    assert_eq!(s.reconnect(), Err(Error::Unsupported));
    assert_eq!(s.read("a"), Err(e));
}

#[test]
fn a_reconnection_that_never_ends() {
    let w = World::new();
    let xs = Xenstore::open(w).unwrap();
    let page = w.placed(STORE_GFN);
    page.store32(wire::SERVER_FEATURES, wire::SERVER_FEATURE_RECONNECTION);
    assert_eq!(xs.by(w.now() + MS).reconnect(), Err(Error::TimedOut));
    assert_eq!(xs.by(w.now() + MS).read("a"), Err(Error::TimedOut));
    assert_eq!(page.load32(REQ.prod), 0, "the ring is not the client's");
    let _server = serve(w);
    assert_eq!(xs.by(soon(w)).read("a"), Err(Error::Store(Errno::ENOENT)));
}

#[test]
fn resume_takes_up_the_new_ring() {
    let (w, server, xs) = setup();
    let s = xs.by(soon(w));
    let watch = s.watch("a").unwrap();
    s.next(&watch).unwrap();
    let lost = xs.request(MsgType::Read, 0, &[b"a\0"]).unwrap();
    // As after a restore: a ring without memory of what was.
    let page = w.placed(STORE_GFN);
    page.write(0, &[0; 4096]);
    server.borrow_mut().introduce(ME).unwrap();
    xs.resume().unwrap();
    assert_eq!(s.run(lost), Err(Error::Gone));
    assert_eq!(s.next(&watch).unwrap(), "a");
    assert_eq!(server.borrow().domain_stats(ME).watches, 1);
}

#[test]
fn no_store_no_connection() {
    let w = World::new();
    w.params.borrow_mut().clear();
    assert_eq!(Xenstore::open(w).map(drop), Err(Error::NoDevice));
}

struct Flag(AtomicU32);
impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn futures_wake_when_the_event_is_handled() {
    let (w, server, xs) = setup();
    let flag = Arc::new(Flag(AtomicU32::new(0)));
    let waker = Waker::from(flag.clone());
    let mut cx = Context::from_waker(&waker);
    let store = xs.access();
    let mut read = pin!(store.read("a"));
    assert_eq!(read.as_mut().poll(&mut cx), Poll::Pending);
    assert_eq!(flag.0.load(Ordering::Relaxed), 0);
    w.run();
    xs.handle_event();
    assert_eq!(flag.0.load(Ordering::Relaxed), 1);
    let none = Err(Error::Store(Errno::ENOENT));
    assert_eq!(read.as_mut().poll(&mut cx), Poll::Ready(none));
    let watch = xs.by(soon(w)).watch("a").unwrap();
    xs.by(soon(w)).next(&watch).unwrap();
    let mut next = pin!(watch.next());
    assert_eq!(next.as_mut().poll(&mut cx), Poll::Pending);
    server.borrow_mut().write("/local/domain/1/a", b"").unwrap();
    w.run();
    xs.handle_event();
    assert_eq!(flag.0.load(Ordering::Relaxed), 2);
    assert_eq!(next.as_mut().poll(&mut cx), Poll::Ready(Ok("a".into())));
}

/// What a hostile server does when the client waits.
#[derive(Clone, Debug)]
enum Move {
    Word(usize, u32),
    Bytes(Vec<u8>),
    Answer(u32, u32, u32, Vec<u8>),
    Event(Vec<u8>),
    Take,
    Nothing,
}

fn moves() -> impl Strategy<Value = Move> {
    let words = prop::sample::select(vec![
        REQ.cons,
        REQ.prod,
        RSP.cons,
        RSP.prod,
        wire::SERVER_FEATURES,
        wire::CONNECTION,
        wire::ERROR,
    ]);
    prop_oneof![
        1 => (words, prop_oneof![0..4_u32, any::<u32>()]).prop_map(|(w, v)| Move::Word(w, v)),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Move::Bytes),
        8 => (
            prop_oneof![Just(16), 0..24_u32, any::<u32>()],
            0..12_u32,
            prop_oneof![Just(None), (0..5000_u32).prop_map(Some)],
            prop_oneof![
                Just(b"OK\0".to_vec()), Just(b"ENOENT\0".to_vec()), Just(b"EAGAIN\0".to_vec()),
                Just(b"E2BIG\0".to_vec()), Just(b"7\0".to_vec()), Just(b"7\0a\0b\0".to_vec()),
                Just(b"r1\0".to_vec()), prop::collection::vec(any::<u8>(), 0..60),
            ],
        ).prop_map(|(k, i, l, b)| Move::Answer(k, i, l.unwrap_or(b.len() as u32), b)),
        2 => prop_oneof![Just(b"a\x001\0".to_vec()), prop::collection::vec(any::<u8>(), 0..40)]
            .prop_map(Move::Event),
        2 => Just(Move::Take),
        1 => Just(Move::Nothing),
    ]
}

fn send(page: &Mem, kind: u32, req_id: u32, len: u32, payload: &[u8]) {
    let head = XsdSockmsg {
        kind,
        req_id,
        tx_id: 0,
        len,
    };
    let _ = RSP.write(page, head.as_bytes());
    let _ = RSP.write(page, payload);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the server does, calls end by their deadline, with an error or an answer, and nothing panics.
    #[test]
    fn a_hostile_server(script in prop::collection::vec(moves(), 1..80)) {
        let w = World::new();
        let page = w.placed(STORE_GFN);
        let mut script = script.into_iter();
        w.add(move |_| {
            match script.next() {
                None => return false,
                Some(Move::Word(at, value)) => page.store32(at, value),
                Some(Move::Bytes(b)) => drop(RSP.write(&page, &b)),
                Some(Move::Answer(kind, id, len, b)) => send(&page, kind, id, len, &b),
                Some(Move::Event(b)) => send(&page, MsgType::WatchEvent.number(), 0, b.len() as u32, &b),
                Some(Move::Take) => drop(REQ.read(&page, &mut [0; 100])),
                Some(Move::Nothing) => {}
            }
            true
        });
        let xs = Xenstore::open(w).unwrap();
        let watch = xs.by(w.now() + MS).watch("a");
        for _ in 0..3 {
            let s = xs.by(w.now() + MS);
            let _ = s.read("a");
            let _ = s.list("a");
            let _ = s.perms("a");
            let _ = s.transaction(|t| t.write("a", b"x"));
            if let Ok(watch) = &watch {
                let _ = s.next(watch);
            }
            let _ = s.reconnect();
            prop_assert!(w.now() <= s.deadline() + 10 * MS);
        }
    }
}
