// SPDX-License-Identifier: MIT OR Apache-2.0
//! The life of a front end, against back ends that keep to it and such that do not.

mod common;

use common::*;
use guest_abi::DomId;
use guest_abi::io::xenbus::State;
use proptest::prelude::*;
use pv_frontends::xenbus::{Frontend, devices};
use pv_frontends::xenstore::Xenstore;
use pv_frontends::{Error, Platform};
use std::cell::Cell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

type Xs = Xenstore<&'static World>;
type Front = Frontend<'static, &'static World>;

const FRONT: &str = "/local/domain/1/device/vtoy/3";
const BACK: &str = "/local/domain/0/backend/vtoy/1/3";

fn start() -> (&'static World, Server, &'static Xs) {
    let w = World::new();
    let server = serve(w);
    (w, server, Box::leak(Box::new(Xenstore::open(w).unwrap())))
}

fn soon(w: &World) -> u64 {
    w.now() + SECOND
}

fn put(server: &Server, path: &str, value: &str) {
    server.borrow_mut().write(path, value.as_bytes()).unwrap();
}

fn get(server: &Server, path: &str) -> Option<String> {
    let value = server.borrow().read(path).ok()?;
    String::from_utf8(value).ok()
}

fn state(server: &Server, dir: &str) -> Option<State> {
    let number = get(server, &format!("{dir}/state"))?;
    number.parse().ok().and_then(State::from_number)
}

fn set(server: &Server, dir: &str, to: State) {
    put(server, &format!("{dir}/state"), &to.number().to_string());
}

fn nodes_at(server: &Server, back: &str, dom: &str) {
    put(server, &format!("{FRONT}/backend"), back);
    put(server, &format!("{FRONT}/backend-id"), dom);
    set(server, FRONT, State::Initialising);
    set(server, back, State::Initialising);
    let perms = [xenstore::Perm::none(DOM0), xenstore::Perm::read(ME)];
    for path in [back.to_string(), format!("{back}/state")] {
        server.borrow_mut().set_perms(&path, &perms).unwrap();
    }
}

fn nodes(server: &Server) {
    nodes_at(server, BACK, "0");
}

fn open(w: &World, xs: &'static Xs) -> Result<Front, Error> {
    xs.by(soon(w)).run(Frontend::open(xs.access(), "vtoy", 3))
}

/// A back end as Linux has them: what it does at each state of the front end. `on` false: nothing.
fn obedient(w: &World, server: &Server) -> Rc<Cell<bool>> {
    let on = Rc::new(Cell::new(true));
    let (s, run) = (server.clone(), on.clone());
    w.add(move |_| {
        let (Some(front), Some(back)) = (state(&s, FRONT), state(&s, BACK)) else {
            return false;
        };
        let next = match (front, back) {
            (State::Initialising, State::Initialising | State::Closed) => State::InitWait,
            (State::Initialised | State::Connected, State::InitWait) => State::Connected,
            (State::Closing, State::Connected | State::InitWait | State::Initialising) => {
                State::Closing
            }
            (State::Closed, State::Closing | State::Connected) => State::Closed,
            _ => return false,
        };
        if run.get() {
            set(&s, BACK, next);
        }
        run.get()
    });
    on
}

#[test]
fn devices_of_a_kind() {
    let (w, server, xs) = start();
    let list = |kind| xs.by(soon(w)).run(devices(&xs.access(), kind));
    assert_eq!(list("vtoy"), Ok(vec![]));
    for name in ["3", "51712", "x", "-1", "4294967296", "07"] {
        put(&server, &format!("{HOME}/device/vtoy/{name}/state"), "1");
    }
    let mut found = list("vtoy").unwrap();
    found.sort_unstable();
    assert_eq!(found, [3, 7, 51712]);
    assert_eq!(list("vother"), Ok(vec![]));
}

#[test]
fn what_the_folder_must_say() {
    let (w, server, xs) = start();
    assert_eq!(open(w, xs).map(drop), Err(Error::NoDevice));
    nodes(&server);
    let front = open(w, xs).unwrap();
    assert_eq!(front.node(), "device/vtoy/3");
    assert_eq!((front.backend(), front.backend_dom()), (BACK, DomId(0)));
    assert_eq!(front.peer(), State::Unknown);
    let long = format!("/{}", "x".repeat(1024));
    for (key, bad) in [
        ("backend", "relative"),
        ("backend", ""),
        ("backend", &long),
        ("backend-id", "x"),
        ("backend-id", "32752"),
        ("backend-id", "65536"),
        ("backend-id", "-1"),
    ] {
        nodes(&server);
        put(&server, &format!("{FRONT}/{key}"), bad);
        assert_eq!(open(w, xs).map(drop), Err(Error::BadValue), "{key} {bad}");
    }
    nodes(&server);
    server
        .borrow_mut()
        .rm(&format!("{FRONT}/backend-id"))
        .unwrap();
    assert_eq!(open(w, xs).map(drop), Err(Error::NoDevice));
    let _ = xs.by(soon(w)).read("a");
    assert_eq!(
        server.borrow().domain_stats(ME).watches,
        1,
        "only of the first"
    );
}

#[test]
fn offers_of_the_back_end() {
    let (w, server, xs) = start();
    nodes(&server);
    let front = open(w, xs).unwrap();
    for (value, number, yes) in [
        ("1", Ok(Some(1_u32)), Ok(true)),
        ("0", Ok(Some(0)), Ok(false)),
        ("65536", Ok(Some(65536)), Ok(true)),
        ("4294967296", Err(Error::BadValue), Err(Error::BadValue)),
        ("on", Err(Error::BadValue), Err(Error::BadValue)),
        ("", Err(Error::BadValue), Err(Error::BadValue)),
    ] {
        put(&server, &format!("{BACK}/feature"), value);
        let perms = [xenstore::Perm::none(DOM0), xenstore::Perm::read(ME)];
        let path = format!("{BACK}/feature");
        server.borrow_mut().set_perms(&path, &perms).unwrap();
        let s = xs.by(soon(w));
        assert_eq!(s.run(front.offer::<u32>("feature")), number, "{value}");
        assert_eq!(s.run(front.offers("feature")), yes, "{value}");
    }
    let s = xs.by(soon(w));
    assert_eq!(s.run(front.offer::<u32>("nothing")), Ok(None));
    assert_eq!(s.run(front.offers("nothing")), Ok(false));
}

#[test]
fn the_other_ends_state_is_followed() {
    let (w, server, xs) = start();
    nodes(&server);
    let mut front = open(w, xs).unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    let mut seen = Vec::new();
    let mut look = |front: &mut Front| {
        for _ in 0..4 {
            w.run();
            while let Poll::Ready(s) = front.poll_peer(&mut cx) {
                seen.push(s.unwrap());
            }
        }
        seen.last().copied()
    };
    assert_eq!(look(&mut front), Some(State::Initialising));
    for (text, state) in [
        ("2", State::InitWait),
        ("4", State::Connected),
        ("8", State::Reconfigured),
        ("9", State::Unknown),
        ("6", State::Closed),
        ("four", State::Unknown),
        ("-1", State::Unknown),
    ] {
        put(&server, &format!("{BACK}/state"), text);
        assert_eq!(look(&mut front), Some(state), "{text}");
        assert_eq!(front.peer(), state);
    }
    server.borrow_mut().rm(BACK).unwrap();
    assert_eq!(look(&mut front), Some(State::Unknown));
    let at = w.now() + MS;
    let waits = xs.by(at).run(front.wait_for(|s| s == State::Connected));
    assert_eq!(waits, Err(Error::TimedOut));
    set(&server, BACK, State::Connected);
    let perms = [xenstore::Perm::none(DOM0), xenstore::Perm::read(ME)];
    let path = format!("{BACK}/state");
    server.borrow_mut().set_perms(&path, &perms).unwrap();
    let waits = xs
        .by(soon(w))
        .run(front.wait_for(|s| s == State::Connected));
    assert_eq!(waits, Ok(State::Connected));
}

#[test]
fn keys_and_state_are_written_as_one() {
    let (w, server, xs) = start();
    nodes(&server);
    let front = open(w, xs).unwrap();
    let watcher = server.borrow_mut().open();
    server.borrow_mut().watch(watcher, FRONT, "t").unwrap();
    let keys = [("a", "1"), ("queue-0/b", "2")].map(|(k, v)| (k.into(), v.into()));
    let s = server.clone();
    let torn = Rc::new(Cell::new(false));
    let t = torn.clone();
    w.add(move |_| {
        let all = ["a", "queue-0/b"].map(|k| get(&s, &format!("{FRONT}/{k}")).is_some());
        let connected = state(&s, FRONT) == Some(State::Connected);
        t.set(t.get() || all != [connected; 2]);
        false
    });
    xs.by(soon(w))
        .run(front.switch(State::Connected, &keys))
        .unwrap();
    w.run();
    assert!(!torn.get());
    assert_eq!(
        get(&server, &format!("{FRONT}/queue-0/b")).as_deref(),
        Some("2")
    );
    // Nothing is made anew when the device was taken away.
    server.borrow_mut().rm(FRONT).unwrap();
    let gone = xs.by(soon(w)).run(front.switch(State::Closed, &keys));
    assert_eq!(gone, Err(Error::NoDevice));
    assert!(!server.borrow().exists(FRONT));
}

#[test]
fn beginning_anew_from_every_state() {
    for own in State::ALL {
        for peer in State::ALL {
            let (w, server, xs) = start();
            nodes(&server);
            set(&server, FRONT, *own);
            set(&server, BACK, *peer);
            let _on = obedient(w, &server);
            let mut front = open(w, xs).unwrap();
            let result = xs.by(soon(w)).run(front.restart());
            // States that no back end is in for good: it changes something, or its driver is not there.
            let odd = matches!(
                peer,
                State::Unknown | State::Reconfiguring | State::Reconfigured | State::Initialised
            );
            if result.is_err() && odd {
                assert_eq!(result, Err(Error::TimedOut), "{own:?} {peer:?}");
                continue;
            }
            assert_eq!(result, Ok(()), "{own:?} {peer:?}");
            assert_eq!(state(&server, FRONT), Some(State::Initialising));
            assert_eq!(front.peer(), State::InitWait);
            // And on to the end.
            let s = xs.by(soon(w));
            s.run(front.switch(State::Connected, &[])).unwrap();
            s.run(front.wait_for(|s| s == State::Connected)).unwrap();
            s.run(front.close()).unwrap();
            assert_eq!(state(&server, FRONT), Some(State::Closed));
            assert_eq!(state(&server, BACK), Some(State::Closed));
        }
    }
}

#[test]
fn a_device_that_is_taken_away_while_it_begins() {
    let (w, server, xs) = start();
    nodes(&server);
    set(&server, FRONT, State::Initialising);
    set(&server, BACK, State::Closed);
    let mut front = open(w, xs).unwrap();
    let s = server.clone();
    let mut waited = 0;
    // As the toolstack does it: the front end's folder, then the other.
    w.add(move |_| {
        waited += 1;
        if waited == 20 {
            s.borrow_mut().rm(FRONT).unwrap();
            s.borrow_mut().rm(BACK).unwrap();
        }
        waited <= 20
    });
    let result = xs.by(soon(w)).run(front.restart());
    assert_eq!(result, Err(Error::NoDevice));
}

#[test]
fn a_back_end_that_does_nothing() {
    let (w, server, xs) = start();
    nodes(&server);
    let on = obedient(w, &server);
    let mut front = open(w, xs).unwrap();
    xs.by(soon(w)).run(front.restart()).unwrap();
    xs.by(soon(w))
        .run(front.switch(State::Connected, &[]))
        .unwrap();
    let connected = front.wait_for(|s| s == State::Connected);
    xs.by(soon(w)).run(connected).unwrap();
    on.set(false);
    for _ in 0..3 {
        let begin = w.now();
        assert_eq!(xs.by(begin + MS).run(front.close()), Err(Error::TimedOut));
        assert_eq!(
            xs.by(begin + 2 * MS).run(front.restart()),
            Err(Error::TimedOut)
        );
        assert!(w.now() <= begin + 3 * MS);
    }
    // It wakes up in the middle of that.
    on.set(true);
    xs.by(soon(w)).run(front.restart()).unwrap();
    // A device that was taken away has ended.
    server.borrow_mut().rm(FRONT).unwrap();
    server.borrow_mut().rm(BACK).unwrap();
    assert_eq!(xs.by(soon(w)).run(front.close()), Ok(()));
    let anew = xs.by(soon(w)).run(front.restart());
    assert_eq!(anew, Err(Error::NoDevice));
}

#[test]
fn another_back_end_after_a_resume() {
    let (w, server, xs) = start();
    nodes(&server);
    let mut front = open(w, xs).unwrap();
    let other = "/local/domain/5/backend/vtoy/9/3";
    server.borrow_mut().rm(BACK).unwrap();
    nodes_at(&server, other, "5");
    xs.resume().unwrap();
    xs.by(soon(w)).run(front.resume()).unwrap();
    assert_eq!((front.backend(), front.backend_dom()), (other, DomId(5)));
    set(&server, other, State::InitWait);
    let waits = xs.by(soon(w)).run(front.wait_for(|s| s == State::InitWait));
    assert_eq!(waits, Ok(State::InitWait));
    let _ = xs.by(soon(w)).read("a");
    assert_eq!(server.borrow().domain_stats(ME).watches, 1);
    server.borrow_mut().rm(FRONT).unwrap();
    assert_eq!(xs.by(soon(w)).run(front.resume()), Err(Error::NoDevice));
}

#[test]
fn errors_are_left_for_people() {
    let (w, server, xs) = start();
    nodes(&server);
    let front = open(w, xs).unwrap();
    let report = async {
        front.report(Error::Protocol("nonsense")).await;
        Ok(())
    };
    xs.by(soon(w)).run(report).unwrap();
    let text = get(&server, &format!("{HOME}/error/device/vtoy/3/error")).unwrap();
    assert_eq!(text, "the other end broke the protocol: nonsense");
}

proptest! {
    /// Whatever states the other end goes through, and if its folder goes and comes, calls end by their deadline.
    #[test]
    fn any_sequence_of_states(script in prop::collection::vec(prop_oneof![8 => (0..10_u32).prop_map(Some), 1 => Just(None)], 0..60)) {
        let (w, server, xs) = start();
        nodes(&server);
        let mut front = open(w, xs).unwrap();
        let (s, mut script) = (server.clone(), script.into_iter());
        w.add(move |_| {
            match script.next() {
                None => return false,
                Some(Some(n)) => put(&s, &format!("{BACK}/state"), &n.to_string()),
                Some(None) => { let _ = s.borrow_mut().rm(BACK); }
            }
            true
        });
        for _ in 0..6 {
            let begin = w.now();
            let ready = xs.by(begin + MS).run(front.restart()).is_ok();
            prop_assert!(w.now() <= begin + 2 * MS);
            if ready {
                prop_assert_eq!(state(&server, FRONT), Some(State::Initialising));
            }
            let begin = w.now();
            let _ = xs.by(begin + MS).run(front.close());
            prop_assert!(w.now() <= begin + 2 * MS);
        }
        drop(front);
        let _ = xs.by(soon(w)).read("a");
        prop_assert_eq!(server.borrow().domain_stats(ME).watches, 0);
    }
}
