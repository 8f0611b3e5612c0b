// SPDX-License-Identifier: MIT OR Apache-2.0
//! Xen's advisories on xenstored, as tests of that name. (Others of them: `events_respect_permissions`, `death`
//! and `event_flood` in protocol.rs.)

mod common;

use common::{Guest, message};
use guest_abi::DomId;
use guest_abi::io::xs_wire::MsgType as Op;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use xenstore::{Perm, Quota, Store};

/// Counts what the thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends has no counter any more.
    let _ = HELD.try_with(|held| held.set(held.get() + bytes));
}

// SAFETY: hands everything to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn held() -> isize {
    HELD.with(Cell::get)
}

fn err<T>(name: &str) -> Result<T, String> {
    Err(name.into())
}

/// Every node is in its parent's list, and every name in a list has its node.
fn no_orphans(s: &Store) {
    assert_eq!(s.walk("/").count(), s.stats().nodes);
}

/// A path may have 3,072 bytes, or 2,048 below a domain's home, and no more.
#[test]
fn xsa_323_the_length_of_a_path() {
    let mut s = Store::new();
    let s = &mut s;
    let mut g = Guest::introduced(s, 1);
    let long = |n: usize| "n".repeat(n);
    assert_eq!(g.read(s, 0, &long(2048)), err("ENOENT"));
    assert_eq!(g.read(s, 0, &long(2049)), err("EINVAL"));
    for (path, answer) in [
        (format!("/local/domain/1/{}", long(2048)), "ENOENT"),
        (format!("/local/domain/1/{}", long(2049)), "EINVAL"),
        (format!("/{}", long(3072)), "EINVAL"),
        (format!("/{}", long(4000)), "EINVAL"),
    ] {
        assert_eq!(g.read(s, 0, &path), err(answer), "{}", path.len());
        assert_eq!(g.watch(s, &path, "t").is_ok(), answer == "ENOENT");
        assert_eq!(g.write(s, 0, &path, "").is_ok(), answer == "ENOENT");
    }
    assert!(g.ls(s, 0, "").is_err(), "an empty path is none");
    assert!(g.write(s, 0, "works", "still").is_ok());
    no_orphans(s);
}

/// What others have below a dead domain's home does not stop its removal, nor the news of it.
#[test]
fn xsa_325_nobody_disturbs_the_removal_of_a_domain() {
    let mut s = Store::new();
    let before = s.stats();
    let s = &mut s;
    let mut a = Guest::introduced(s, 1);
    let mut b = Guest::introduced(s, 2);
    a.call(s, Op::SetPerms, 0, &["/local/domain/1", "n1", "b2"])
        .unwrap();
    for i in 0..100 {
        b.write(s, 0, &format!("/local/domain/1/mine/{i}"), "x")
            .unwrap();
        b.watch(s, &format!("/local/domain/1/mine/{i}"), "t")
            .unwrap();
    }
    let t = b.start(s).unwrap();
    b.write(s, t, "/local/domain/1/mine/late", "x").unwrap();
    let me = s.open();
    s.watch(me, "@releaseDomain", "r").unwrap();
    while s.poll_event(me).is_some() {}
    s.release(DomId(1)).unwrap();
    assert!(!s.exists("/local/domain/1"));
    assert_eq!(&*s.poll_event(me).unwrap().path, "@releaseDomain");
    assert_eq!(b.end(s, t, "T"), err("EAGAIN"));
    assert_eq!(s.domain_stats(DomId(2)).nodes, 1, "its home");
    no_orphans(s);
    s.release(DomId(2)).unwrap();
    s.close(me);
    s.rm("/local").unwrap();
    assert_eq!(s.stats(), before);
}

/// Whatever a guest does, it holds what [`Quota`] says and no more: every request, in as many transactions as it may
/// have, replies and events that it does not fetch.
#[test]
fn xsa_326_memory_that_a_guest_can_make_the_store_hold() {
    let quota = Quota {
        memory: 256 << 10,
        ..Quota::default()
    };
    let bound = quota.memory as usize + (quota.outstanding + 1) * 4112 + quota.event_bytes;
    // What else a guest with an empty home takes.
    let mut s = Store::with_quota(quota);
    let mut g = Guest::introduced(&mut s, 1);
    let s = &mut s;
    let start = held();
    let value = |c: char| c.to_string().repeat(2000);
    let most = Cell::new(0);
    let look = |s: &Store| {
        let charged = s.domain_stats(DomId(1));
        let now = (held() - start).max(0) as usize;
        most.set(most.get().max(now));
        assert!(
            now <= bound + bound / 4,
            "{now} bytes are held, {bound} may be; charged {charged:?}"
        );
    };
    // A base of nodes, then transactions that read and replace all of them with new values.
    for i in 0..40 {
        g.write(s, 0, &format!("n{i}"), &value('a')).unwrap();
        look(s);
    }
    let mut refused = 0;
    for round in 0..quota.transactions {
        let Ok(t) = g.start(s) else {
            refused += 1;
            continue;
        };
        for i in 0..40 {
            let new = value((b'b' + round as u8) as char);
            refused += usize::from(g.write(s, t, &format!("n{i}"), &new).is_err());
            refused += usize::from(g.write(s, t, &format!("new{i}/x"), &new).is_err());
            look(s);
        }
    }
    assert!(refused > 0, "the transactions had to end somewhere");
    let token = "t".repeat(1500);
    for i in 0..200 {
        let _ = g.watch(s, &format!("n{i}"), &token);
        look(s);
    }
    // Nothing is fetched any more.
    let ask = message(Op::Read as u32, 1, 0, b"n0\0");
    for i in 0..1000 {
        let _ = s.input(DomId(1), &ask);
        s.write(
            &format!("/local/domain/1/n{}", i % 40),
            value('z').as_bytes(),
        )
        .unwrap();
        look(s);
    }
    assert!(most.get() > quota.memory as usize / 2, "the test tries");
    s.release(DomId(1)).unwrap();
    assert!(held() - start < 4096, "and nothing is left");
}

/// Many guests, each within its own limits, hold no more than the whole store may, in nodes, watches and open
/// transactions alike; domain 0 goes on, and what is given back can be had again.
#[test]
fn xsa_326_memory_that_all_guests_together_can_make_the_store_hold() {
    let quota = Quota {
        memory: 256 << 10,
        total: 1 << 20,
        ..Quota::default()
    };
    let mut s = Store::with_quota(quota);
    let mut guests: Vec<Guest> = (1..=16).map(|d| Guest::introduced(&mut s, d)).collect();
    let empty = s.stats();
    let value = "v".repeat(2000);
    let mut refused = [0; 3];
    for g in &mut guests {
        for i in 0..40 {
            let full = g.write(&mut s, 0, &format!("n{i}"), &value).is_err();
            refused[0] += usize::from(full);
        }
        let token = "t".repeat(1500);
        for i in 0..8 {
            refused[1] += usize::from(g.watch(&mut s, &format!("n{i}"), &token).is_err());
        }
        if let Ok(t) = g.start(&mut s) {
            for i in 0..40 {
                let full = g.write(&mut s, t, &format!("n{i}"), "other").is_err();
                refused[2] += usize::from(full);
            }
        }
        let now = s.stats();
        assert!(now.node_bytes + now.session_bytes <= quota.total, "{now:?}");
    }
    assert!(refused.iter().all(|n| *n > 0), "{refused:?}");
    s.write("/local/domain/16/from-dom0", value.as_bytes())
        .unwrap();
    // The first guest goes, and the last one gets room.
    s.release(DomId(1)).unwrap();
    guests[15].write(&mut s, 0, "n0", &value).unwrap();
    for d in 2..=16 {
        s.release(DomId(d)).unwrap();
    }
    assert_eq!(s.stats().session_bytes, 0);
    assert!(s.stats().node_bytes <= empty.node_bytes);
}

/// What a guest writes to paths that a back end watches waits in bounded memory, and the back end still finds out.
#[test]
fn xsa_349_events_of_a_watched_path_that_nobody_fetches() {
    let mut s = Store::new();
    let s = &mut s;
    let mut g = Guest::introduced(s, 1);
    let me = s.open();
    s.watch(me, "/local/domain/1", "guest").unwrap();
    while s.poll_event(me).is_some() {}
    let write = |s: &mut Store, g: &mut Guest, i: u32| {
        let path = format!("device/vbd/{}/x{}", i % 7, "y".repeat((i % 50) as usize));
        g.write(s, 0, &path, &i.to_string()).unwrap();
    };
    (0..400).for_each(|i| write(s, &mut g, i));
    let before = held();
    (0..20_000).for_each(|i| write(s, &mut g, i));
    assert!(held() - before < 16 << 10, "{} bytes", held() - before);
    let mut seen = 0;
    while s.poll_event(me).is_some() {
        seen += 1;
        assert!(seen < 1000);
    }
    assert!(seen > 0);
    write(s, &mut g, 1);
    assert!(s.poll_event(me).is_some(), "and hears of what comes after");
}

/// Watches and transactions that are reset leave nothing.
#[test]
fn xsa_330_416_nothing_is_left_of_what_was_reset_or_failed() {
    let mut s = Store::new();
    let s = &mut s;
    let mut g = Guest::introduced(s, 1);
    g.write(s, 0, "a", "1").unwrap();
    let round = |s: &mut Store, g: &mut Guest| {
        for i in 0..50 {
            g.watch(s, "a", &i.to_string()).unwrap();
        }
        let t = g.start(s).unwrap();
        g.write(s, t, "b/c/d", "x").unwrap();
        g.call(s, Op::ResetWatches, 0, &[""]).unwrap();
        // Requests that fail at each of their steps.
        for (op, args) in [
            (Op::Read, &["nothing"][..]),
            (Op::Write, &["/not/mine", "x"]),
            (Op::Mkdir, &["/not/mine"]),
            (Op::Rm, &["/"]),
            (Op::SetPerms, &["a", "n1", "r2", "r3", "r4", "r5", "r6"]),
            (Op::SetPerms, &["a", "?"]),
            (Op::Watch, &["a//", "t"]),
            (Op::Unwatch, &["a", "none"]),
            (Op::TransactionEnd, &["maybe"]),
            (Op::Control, &["stats"]),
        ] {
            assert!(g.call(s, op, 0, args).is_err(), "{op:?}");
        }
        assert_eq!(g.call(s, Op::Read, 77, &["a"]), err("ENOENT"));
        g.fetch(s);
        g.events = std::collections::VecDeque::new();
    };
    for _ in 0..3 {
        round(s, &mut g);
    }
    let (stats, before) = (s.stats(), held());
    for _ in 0..100 {
        round(s, &mut g);
    }
    assert_eq!(s.stats(), stats);
    assert!(held() - before < 1024, "{} bytes more", held() - before);
}

/// A node's owner is changed by domain 0 alone, and the root's permissions count.
#[test]
fn xsa_352_353_owners_and_the_root() {
    let mut s = Store::new();
    let s = &mut s;
    let mut g = Guest::introduced(s, 1);
    let _other = Guest::introduced(s, 2);
    g.write(s, 0, "a", "").unwrap();
    for perms in [["a", "n2"], ["a", "n0"], ["a", "b2"]] {
        assert_eq!(
            g.call(s, Op::SetPerms, 0, &perms),
            err("EPERM"),
            "{perms:?}"
        );
        let t = g.start(s).unwrap();
        assert_eq!(g.call(s, Op::SetPerms, t, &perms), err("EPERM"));
        g.end(s, t, "F").unwrap();
    }
    assert_eq!(
        s.get_perms("/local/domain/1/a"),
        Ok(vec![Perm::none(DomId(1))])
    );
    for (op, args) in [
        (Op::Directory, &["/"][..]),
        (Op::Read, &["/"]),
        (Op::GetPerms, &["/"]),
        (Op::SetPerms, &["/", "b1"]),
        (Op::Mkdir, &["/mine"]),
    ] {
        assert_eq!(g.call(s, op, 0, args), err("EACCES"), "{op:?}");
    }
    assert_eq!(g.write(s, 0, "/", "x"), err("EACCES"));
    assert!(g.call(s, Op::Rm, 0, &["/"]).is_err());
    assert!(s.exists("/local/domain/1/a"));
}

/// Nodes are made below ones that go meanwhile, in and out of transactions: no node is without its parent, and
/// nothing ends the store.
#[test]
fn xsa_414_415_no_node_is_without_its_parent() {
    let quota = Quota {
        nodes: 12,
        ..Quota::default()
    };
    let mut s = Store::with_quota(quota);
    let s = &mut s;
    let mut g = Guest::introduced(s, 1);
    g.write(s, 0, "a/b/c", "1").unwrap();
    let t = g.start(s).unwrap();
    g.write(s, t, "a/b/d/e", "2").unwrap();
    g.call(s, Op::Rm, 0, &["a"]).unwrap();
    assert_eq!(g.end(s, t, "T"), err("EAGAIN"));
    no_orphans(s);
    // Removed and made anew within one.
    let t = g.start(s).unwrap();
    g.write(s, t, "x/y/z", "1").unwrap();
    g.call(s, Op::Rm, t, &["x"]).unwrap();
    g.write(s, t, "x/y", "2").unwrap();
    assert_eq!(g.read(s, t, "x/y/z"), err("ENOENT"));
    g.end(s, t, "T").unwrap();
    no_orphans(s);
    // The quota ends one in the middle of its way.
    assert_eq!(g.write(s, 0, "p/q/r/s/t/u/v/w/x/y/z", ""), err("ENOSPC"));
    assert_eq!(g.read(s, 0, "p"), err("ENOENT"));
    let t = g.start(s).unwrap();
    assert_eq!(g.write(s, t, "p/q/r/s/t/u/v/w/x/y/z", ""), err("ENOSPC"));
    g.end(s, t, "T").unwrap();
    no_orphans(s);
    assert_eq!(g.read(s, 0, "p"), err("ENOENT"));
}

/// A node of a dead domain's is not the next one's, nor is a right for a number that nobody has.
#[test]
fn xsa_417_nodes_of_a_dead_domain() {
    let mut s = Store::new();
    let s = &mut s;
    let mut g = Guest::introduced(s, 1);
    let mut h = Guest::introduced(s, 2);
    // A right, and a node, for who is not there.
    g.write(s, 0, "a", "secret").unwrap();
    g.call(s, Op::SetPerms, 0, &["a", "n1", "b3"]).unwrap();
    assert_eq!(
        s.get_perms("/local/domain/1/a"),
        Ok(vec![Perm::none(DomId(1))])
    );
    assert_eq!(
        h.call(s, Op::SetPerms, 0, &["/local/domain/2", "n3"]),
        err("ENOENT")
    );
    // Given while it is there, and by a transaction that ends after it.
    let mut third = Guest::introduced(s, 3);
    g.call(s, Op::SetPerms, 0, &["a", "n1", "b3"]).unwrap();
    third.write(s, 0, "/local/domain/1/a/of3", "x").unwrap();
    let t = g.start(s).unwrap();
    g.write(s, t, "b", "secret").unwrap();
    g.call(s, Op::SetPerms, t, &["b", "n1", "r3"]).unwrap();
    s.release(DomId(3)).unwrap();
    assert_eq!(g.end(s, t, "T"), err("EAGAIN"));
    let mut third = Guest::introduced(s, 3);
    for path in ["a", "a/of3", "b"] {
        let path = format!("/local/domain/1/{path}");
        assert_ne!(third.read(s, 0, &path), Ok(b"secret".to_vec()));
        assert!(third.write(s, 0, &path, "mine").is_err(), "{path}");
    }
    no_orphans(s);
}

/// Deep trees are walked, removed and forgotten without recursion: on a stack of 64 KiB.
#[test]
fn xsa_418_a_deep_tree_and_a_small_stack() {
    let deep = || {
        let mut s = Store::new();
        let before = s.stats();
        s.introduce(DomId(1)).unwrap();
        let name = "/d".repeat(1000);
        for top in ["/p", "/q"] {
            s.write(&format!("{top}{name}"), b"x").unwrap();
            s.set_perms(&format!("{top}{}", &name[..1000]), &[Perm::none(DomId(1))])
                .unwrap();
        }
        assert_eq!(s.walk("/p").count(), 1001);
        let mut g = Guest::new(1);
        let half = format!("/p{}", &name[..1000]);
        g.call(&mut s, Op::Rm, 0, &[&half]).unwrap();
        assert!(!s.exists(&half));
        s.release(DomId(1)).unwrap();
        s.rm("/p").unwrap();
        s.rm("/q").unwrap();
        assert_eq!(s.stats(), before);
    };
    let thread = std::thread::Builder::new().stack_size(64 << 10);
    thread.spawn(deep).unwrap().join().unwrap();
}

/// Two that help each other have what both may have, and no more.
#[test]
fn xsa_419_421_nodes_of_two_that_work_together_and_of_transactions() {
    let quota = Quota {
        nodes: 20,
        ..Quota::default()
    };
    let mut s = Store::with_quota(quota);
    let s = &mut s;
    let mut guests = [Guest::introduced(s, 1), Guest::introduced(s, 2)];
    for (me, other) in [(1, 2), (2, 1)] {
        let home = format!("/local/domain/{me}");
        let right = format!("b{other}");
        guests[me - 1]
            .call(s, Op::SetPerms, 0, &[&home, &format!("n{me}"), &right])
            .unwrap();
    }
    // Each in each one's home, and in transactions that are all open at the same time.
    for i in 0..100 {
        let g = &mut guests[i % 2];
        for home in [1, 2] {
            let _ = g.write(s, 0, &format!("/local/domain/{home}/n{i}"), "");
        }
    }
    let mut open = Vec::new();
    for i in 0..20 {
        let g = &mut guests[i % 2];
        let Ok(t) = g.start(s) else { continue };
        g.call(s, Op::Rm, t, &[&format!("n{i}")]).unwrap();
        for k in 0..30 {
            let _ = g.write(s, t, &format!("t{i}x{k}"), "");
        }
        open.push((i % 2, t));
    }
    for (g, t) in open {
        let _ = guests[g].end(s, t, "T");
    }
    for domid in [1, 2] {
        let have = s.domain_stats(DomId(domid)).nodes;
        assert!((15..=20).contains(&have), "{have}");
    }
    no_orphans(s);
}

/// Numbers beyond 31 bits, or beyond their type.
#[test]
fn xsa_420_large_numbers() {
    let mut s = Store::new();
    let s = &mut s;
    let mut g = Guest::introduced(s, 1);
    g.write(s, 0, "a", "1").unwrap();
    for t in [0x7fff_ffff, 0x8000_0000, 0x8000_0001, u32::MAX] {
        assert_eq!(g.read(s, t, "a"), err("ENOENT"));
        assert_eq!(g.end(s, t, "T"), err("ENOENT"));
        let bytes = message(Op::Read as u32, t, 0, b"a\0");
        s.input(DomId(1), &bytes).unwrap();
        let replies = g.fetch(s);
        assert_eq!((replies[0].0.req_id, &replies[0].1[..]), (t, &b"1"[..]));
    }
    for kind in [24, 25, 128, 0x8000_0000, u32::MAX] {
        assert!(g.raw(s, kind, 0, b"a\0").is_err());
    }
    for number in [
        "32752",
        "65536",
        "4294967296",
        "4294967297",
        "-1",
        "18446744073709551616",
    ] {
        assert_eq!(
            g.call(s, Op::GetDomainPath, 0, &[number]),
            err("EINVAL"),
            "{number}"
        );
    }
}

/// A domain that is introduced once more begins with no transaction and no watch, and nothing is lost or kept.
#[test]
fn xsa_425_483_what_a_domain_is_charged_survives_its_reconnection() {
    let mut s = Store::new();
    let s = &mut s;
    let mut g = Guest::introduced(s, 1);
    for i in 0..10 {
        g.write(s, 0, &format!("n{i}"), "x").unwrap();
    }
    let charged = s.domain_stats(DomId(1));
    for _ in 0..20 {
        let t = g.start(s).unwrap();
        g.write(s, t, "n0", "y").unwrap();
        g.watch(s, "n0", "t").unwrap();
        s.input(DomId(1), &message(Op::Read as u32, 1, 0, b"n0\0")[..18])
            .unwrap();
        s.introduce(DomId(1)).unwrap();
        g = Guest::new(1);
        assert_eq!(
            s.domain_stats(DomId(1)),
            charged,
            "its nodes count as before"
        );
        assert_eq!(g.read(s, t, "n0"), err("ENOENT"));
        assert_eq!(g.read(s, 0, "n0"), Ok(b"x".to_vec()));
    }
    s.release(DomId(1)).unwrap();
    s.introduce(DomId(1)).unwrap();
    assert_eq!(s.domain_stats(DomId(1)), xenstore::DomainStats::default());
}

/// A node has one name: what is not written in that form is no path.
#[test]
fn xsa_481_a_node_has_one_path() {
    let mut s = Store::new();
    let s = &mut s;
    let mut g = Guest::introduced(s, 1);
    g.write(s, 0, "a/b", "1").unwrap();
    assert_eq!(g.read(s, 0, "/local/domain/1/a/b"), Ok(b"1".to_vec()));
    for path in [
        "",
        "//",
        "/a//b",
        "a//b",
        "a/b/",
        "a/",
        "/local/domain/1/",
        "./a",
        "a/../a",
        "a/./b",
        "a b",
        "a\n",
        "a\u{e9}",
        "@a",
        "a\0b",
        "/local/domain/1//a",
        "//local/domain/1/a",
    ] {
        for op in [Op::Read, Op::Directory, Op::Mkdir, Op::Rm, Op::GetPerms] {
            assert_eq!(g.call(s, op, 0, &[path]), err("EINVAL"), "{op:?} {path:?}");
        }
    }
    // The same home by another number's text is another path, and not the guest's.
    for path in ["/local/domain/01/a/b", "/local/domain/+1/a/b"] {
        assert!(g.read(s, 0, path).is_err(), "{path}");
    }
    no_orphans(s);
}

/// A transaction ends once, however it is ended and whoever asks again.
#[test]
fn xsa_484_a_transaction_ends_once() {
    let mut s = Store::new();
    let s = &mut s;
    let mut g = Guest::introduced(s, 1);
    let mut h = Guest::introduced(s, 2);
    g.write(s, 0, "a", "1").unwrap();
    let stats = s.stats();
    for verdict in ["T", "F"] {
        let t = g.start(s).unwrap();
        g.write(s, t, "a", "1").unwrap();
        assert_eq!(h.end(s, t, verdict), err("ENOENT"), "another's");
        assert_eq!(g.end(s, t, "X"), err("EINVAL"), "and goes on");
        assert_eq!(g.read(s, t, "a"), Ok(b"1".to_vec()));
        g.end(s, t, verdict).unwrap();
        assert_eq!(g.end(s, t, verdict), err("ENOENT"));
        assert_eq!(g.read(s, t, "a"), err("ENOENT"));
    }
    // Ended by the removal of all, and by one that failed.
    let t = g.start(s).unwrap();
    g.read(s, t, "a").unwrap();
    g.write(s, 0, "a", "1").unwrap();
    g.write(s, t, "a", "2").unwrap();
    assert_eq!(g.end(s, t, "T"), err("EAGAIN"));
    assert_eq!(g.end(s, t, "T"), err("ENOENT"));
    let t = g.start(s).unwrap();
    g.call(s, Op::ResetWatches, 0, &[""]).unwrap();
    assert_eq!(g.end(s, t, "T"), err("ENOENT"));
    assert_eq!(s.stats(), stats);
}
