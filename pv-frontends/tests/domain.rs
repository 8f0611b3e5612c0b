// SPDX-License-Identifier: MIT OR Apache-2.0
//! What concerns the domain as a whole: the balloon, shutdown, suspension.

mod common;

use common::*;
use guest_abi::Errno;
use guest_abi::Gfn;
use proptest::prelude::*;
use pv_frontends::balloon::{Balloon, Memory, Progress, SLICE};
use pv_frontends::shutdown::{Accept, Request, Shutdown, suspend};
use pv_frontends::xenstore::Xenstore;
use pv_frontends::{Error, Platform};
use std::collections::BTreeSet;
use std::task::{Context, Poll, Waker};

type Xs = Xenstore<&'static World>;

fn start() -> (&'static World, Server, &'static Xs) {
    let w = World::new();
    let server = serve(w);
    (w, server, Box::leak(Box::new(Xenstore::open(w).unwrap())))
}

fn soon(w: &World) -> u64 {
    w.now() + SECOND
}

fn put(server: &Server, key: &str, value: &str) {
    let path = format!("{HOME}/{key}");
    server.borrow_mut().write(&path, value.as_bytes()).unwrap();
}

fn get(server: &Server, key: &str) -> String {
    let value = server.borrow().read(&format!("{HOME}/{key}")).unwrap();
    String::from_utf8(value).unwrap()
}

/// Pages of the kernel's that nothing uses; `keep` of them it does not give.
struct Spare {
    frames: Vec<Gfn>,
    keep: usize,
}

impl Memory for Spare {
    fn take(&mut self, frames: &mut [Gfn]) -> usize {
        let n = frames
            .len()
            .min(self.frames.len().saturating_sub(self.keep));
        for to in &mut frames[..n] {
            *to = self.frames.pop().unwrap();
        }
        n
    }
    fn give(&mut self, frames: &[Gfn]) {
        self.frames.extend(frames);
    }
}

const PAGES: u64 = 4096;
/// Pages of the console and the like.
const EXTRA: u64 = 5;

type Ball = Balloon<'static, &'static World, Spare>;

fn balloon(w: &'static World, server: &Server, xs: &'static Xs) -> Ball {
    w.reserved.set(PAGES + EXTRA);
    w.host_free.set(100);
    put(server, "memory/target", &(PAGES * 4).to_string());
    let spare = Spare {
        frames: (0..3000).map(Gfn).collect(),
        keep: 10,
    };
    let b = xs
        .by(soon(w))
        .run(Balloon::open(xs.access(), spare))
        .unwrap();
    assert_eq!((b.pages(), w.reserved.get()), (0, PAGES + EXTRA));
    b
}

/// Runs the kernel's idle loop until nothing moves; how it ended.
fn settle(w: &World, b: &mut Ball) -> Progress {
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..5 {
        w.run();
        if let Poll::Ready(r) = b.poll(&mut cx) {
            r.unwrap();
        }
    }
    loop {
        let before = w.reserved.get();
        let progress = b.adjust().unwrap();
        assert!(w.reserved.get().abs_diff(before) <= SLICE as u64);
        if progress != Progress::More {
            return progress;
        }
    }
}

#[test]
fn the_balloon_follows_the_target() {
    let (w, server, xs) = start();
    let mut b = balloon(w, &server, xs);
    for (target, progress, has) in [
        (PAGES, Progress::Done, PAGES),
        (PAGES - 1, Progress::Done, PAGES - 1),
        (PAGES - 1500, Progress::Done, PAGES - 1500),
        (PAGES - 700, Progress::Done, PAGES - 700),
        // More than the kernel can give.
        (100, Progress::Short, PAGES - 2990),
        (PAGES, Progress::Done, PAGES),
        // More than there ever was.
        (PAGES + 50, Progress::Short, PAGES),
    ] {
        put(&server, "memory/target", &(target * 4).to_string());
        assert_eq!(settle(w, &mut b), progress, "{target}");
        assert_eq!(w.reserved.get(), has + EXTRA);
        assert_eq!(b.pages() as u64, PAGES - has);
        let holes: Vec<_> = w.holes.borrow().iter().copied().collect();
        assert!(!b.memory().frames.iter().any(|f| holes.contains(&f.0)));
    }
    // The hypervisor has too little; later it has more.
    put(&server, "memory/target", &((PAGES - 1000) * 4).to_string());
    assert_eq!(settle(w, &mut b), Progress::Done);
    w.host_free.set(300);
    put(&server, "memory/target", &(PAGES * 4).to_string());
    assert_eq!(settle(w, &mut b), Progress::Short);
    assert_eq!(b.pages(), 700);
    w.host_free.set(1000);
    assert_eq!(settle(w, &mut b), Progress::Done);
    assert_eq!((b.pages(), b.memory().frames.len()), (0, 3000));
    // Nonsense is no target.
    for bad in ["", "x", "-4", "99999999999999999999999"] {
        put(&server, "memory/target", bad);
        assert_eq!(settle(w, &mut b), Progress::Done);
    }
    server.borrow_mut().rm(&format!("{HOME}/memory")).unwrap();
    assert_eq!(settle(w, &mut b), Progress::Done);
    put(&server, "memory/target", &u64::MAX.to_string());
    assert_eq!(settle(w, &mut b), Progress::Short);
}

/// `maxmem` above `memory`: the domain begins with all, and goes to its target by itself.
#[test]
fn the_balloon_begins_with_all_that_it_may_have() {
    let (w, server, xs) = start();
    w.reserved.set(PAGES + EXTRA);
    put(&server, "memory/static-max", &(PAGES * 4).to_string());
    put(&server, "memory/target", &((PAGES - 700) * 4).to_string());
    let spare = Spare {
        frames: (0..3000).map(Gfn).collect(),
        keep: 10,
    };
    let open = Balloon::open(xs.access(), spare);
    let mut b: Ball = xs.by(soon(w)).run(open).unwrap();
    w.host_free.set(1000);
    assert_eq!(settle(w, &mut b), Progress::Done);
    assert_eq!(w.reserved.get(), PAGES - 700 + EXTRA);
    for target in [PAGES - 1, PAGES - 2000, PAGES] {
        put(&server, "memory/target", &(target * 4).to_string());
        assert_eq!(settle(w, &mut b), Progress::Done);
        assert_eq!(w.reserved.get(), target + EXTRA);
    }
}

#[test]
fn the_balloon_as_a_future() {
    let (w, server, xs) = start();
    let mut b = balloon(w, &server, xs);
    let waits = xs.by(w.now() + MS).run(async {
        b.follow().await?;
        Ok(())
    });
    assert_eq!(waits, Err(Error::TimedOut));
    put(&server, "memory/target", &((PAGES - 2000) * 4).to_string());
    assert_eq!(xs.by(soon(w)).run(b.follow()), Ok(Progress::Done));
    assert_eq!(b.pages(), 2000);
    let (w, _server, xs) = start();
    let spare = Spare {
        frames: Vec::new(),
        keep: 0,
    };
    let none = xs.by(soon(w)).run(Balloon::open(xs.access(), spare));
    assert_eq!(none.map(drop), Err(Error::Store(Errno::ENOENT)));
}

proptest! {
    /// Whatever the targets and however much there is, each frame is the kernel's or a hole, and never both.
    #[test]
    fn no_frame_is_lost(steps in prop::collection::vec((0..5000_u64, 0..2000_u64, 0..3000_usize), 1..12)) {
        let (w, server, xs) = start();
        let mut b = balloon(w, &server, xs);
        for (target, free, keep) in steps {
            w.host_free.set(free);
            b.memory().keep = keep;
            put(&server, "memory/target", &(target * 4).to_string());
            settle(w, &mut b);
            let mine: BTreeSet<u64> = b.memory().frames.iter().map(|f| f.0).collect();
            prop_assert_eq!(mine.len(), b.memory().frames.len());
            let holes = w.holes.borrow();
            prop_assert!(mine.is_disjoint(&holes));
            prop_assert_eq!(mine.len() + holes.len(), 3000);
            prop_assert_eq!(b.pages(), holes.len());
            prop_assert_eq!(w.reserved.get(), PAGES + EXTRA - holes.len() as u64);
        }
    }
}

const ALL: Accept = Accept {
    poweroff: true,
    reboot: true,
    suspend: true,
};

#[test]
fn requests_are_told_and_acknowledged() {
    let (w, server, xs) = start();
    let s = |w: &World| xs.by(soon(w));
    let mut shutdown = s(w).run(Shutdown::open(xs.access(), ALL)).unwrap();
    for name in ["poweroff", "reboot", "suspend"] {
        assert_eq!(get(&server, &format!("control/feature-{name}")), "1");
    }
    let late = xs.by(w.now() + MS).run(shutdown.next());
    assert_eq!(late, Err(Error::TimedOut));
    for (text, request) in [
        ("poweroff", Request::Poweroff),
        ("halt", Request::Halt),
        ("reboot", Request::Reboot),
        ("suspend", Request::Suspend),
        ("reboot", Request::Reboot),
    ] {
        put(&server, "control/shutdown", text);
        assert_eq!(s(w).run(shutdown.next()), Ok(request));
        assert_eq!(get(&server, "control/shutdown"), "");
    }
    for text in ["", "power", "crash", "\u{1}", "poweroff "] {
        put(&server, "control/shutdown", text);
        let late = xs.by(w.now() + MS).run(shutdown.next());
        assert_eq!(late, Err(Error::TimedOut));
        assert_eq!(get(&server, "control/shutdown"), text);
    }
}

#[test]
fn what_is_not_accepted_is_left() {
    let (w, server, xs) = start();
    put(&server, "control/shutdown", "suspend");
    let accept = Accept {
        poweroff: true,
        ..Accept::default()
    };
    let open = Shutdown::open(xs.access(), accept);
    let mut shutdown = xs.by(soon(w)).run(open).unwrap();
    assert_eq!(get(&server, "control/feature-suspend"), "0");
    let late = xs.by(w.now() + MS).run(shutdown.next());
    assert_eq!(late, Err(Error::TimedOut));
    assert_eq!(get(&server, "control/shutdown"), "suspend");
    put(&server, "control/shutdown", "poweroff");
    assert_eq!(xs.by(soon(w)).run(shutdown.next()), Ok(Request::Poweroff));
    // A toolstack that does not want to know.
    let path = format!("{HOME}/control/feature-reboot");
    let perms = [xenstore::Perm::none(DOM0)];
    server.borrow_mut().set_perms(&path, &perms).unwrap();
    let open = Shutdown::open(xs.access(), ALL);
    let mut shutdown = xs.by(soon(w)).run(open).unwrap();
    assert_eq!(get(&server, "control/feature-reboot"), "0");
    put(&server, "control/shutdown", "reboot");
    assert_eq!(xs.by(soon(w)).run(shutdown.next()), Ok(Request::Reboot));
}

#[test]
fn suspending() {
    let w = World::new();
    for (result, expected) in [(0, Ok(true)), (1, Ok(false))] {
        w.end_result.set(result);
        assert_eq!(suspend(&w), expected);
    }
    w.end_result.set(Errno::EPERM.to_ret());
    assert_eq!(suspend(&w), Err(Error::Xen(Errno::EPERM)));
    assert_eq!(w.ended.take(), [2, 2, 2]);
}
