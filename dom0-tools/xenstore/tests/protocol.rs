// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each command of the wire protocol, good and bad, and what follows from permissions and quotas.

mod common;

use common::{Guest, err, event, ok, strings};
use guest_abi::io::xs_wire::MsgType as Op;
use guest_abi::{DomId, Errno, Gfn, Port};
use xenstore::{ConnId, Effect, Perm, Quota, Store};

fn n(d: u16) -> Perm {
    Perm::none(DomId(d))
}
fn r(d: u16) -> Perm {
    Perm::read(DomId(d))
}
fn w(d: u16) -> Perm {
    Perm::write(DomId(d))
}
fn b(d: u16) -> Perm {
    Perm::both(DomId(d))
}

/// A store with domains 1 and 2.
fn two() -> (Store, Guest, Guest) {
    let mut s = Store::new();
    let a = Guest::introduced(&mut s, 1);
    let b = Guest::introduced(&mut s, 2);
    (s, a, b)
}

/// A store with a domain 0 on a ring.
fn root() -> (Store, Guest) {
    let mut s = Store::new();
    s.introduce(DomId(0)).unwrap();
    (s, Guest::new(0))
}

#[test]
fn read_write() {
    let (mut s, mut g, _) = two();
    let s = &mut s;
    assert_eq!(g.write(s, 0, "a/b/c", "1"), ok());
    assert_eq!(g.read(s, 0, "a/b/c"), Ok(b"1".to_vec()));
    assert_eq!(g.read(s, 0, "/local/domain/1/a/b/c"), Ok(b"1".to_vec()));
    assert_eq!(g.read(s, 0, "a/b"), Ok(vec![]));
    assert_eq!(g.write(s, 0, "a/b/c", "22"), ok());
    assert_eq!(g.read(s, 0, "a/b/c"), Ok(b"22".to_vec()));
    // Binary values, empty values.
    assert_eq!(g.raw(s, Op::Write as u32, 0, b"bin\0\0\xff\0"), ok());
    assert_eq!(g.read(s, 0, "bin"), Ok(vec![0, 0xff, 0]));
    assert_eq!(g.write(s, 0, "bin", ""), ok());
    assert_eq!(g.read(s, 0, "bin"), Ok(vec![]));
    // Errors.
    assert_eq!(g.read(s, 0, "nothing"), err("ENOENT"));
    assert_eq!(g.read(s, 0, "no/thing"), err("ENOENT"));
    assert_eq!(g.read(s, 0, "/other"), err("EACCES"));
    assert_eq!(g.read(s, 0, "/tool"), err("EACCES"));
    assert_eq!(g.write(s, 0, "/tool/x", ""), err("EACCES"));
    for bad in ["", "a//b", "a/", "//", "/a b", "@x"] {
        assert_eq!(g.read(s, 0, bad), err("EINVAL"), "{bad}");
        assert_eq!(g.write(s, 0, bad, "x"), err("EINVAL"), "{bad}");
    }
    assert_eq!(g.raw(s, Op::Read as u32, 0, b"a"), err("EINVAL"));
    assert_eq!(g.raw(s, Op::Read as u32, 0, b""), err("EINVAL"));
    assert_eq!(g.raw(s, Op::Read as u32, 0, b"a\0b\0"), err("EINVAL"));
    assert_eq!(g.raw(s, Op::Write as u32, 0, b"a"), err("EINVAL"));
    assert_eq!(g.read(s, 77, "a"), err("ENOENT"));
}

#[test]
fn mkdir_rm_directory() {
    let (mut s, mut g, _) = two();
    let s = &mut s;
    assert_eq!(g.call(s, Op::Mkdir, 0, &["z/y"]), ok());
    assert_eq!(g.write(s, 0, "z", "kept"), ok());
    assert_eq!(g.call(s, Op::Mkdir, 0, &["z"]), ok());
    assert_eq!(g.read(s, 0, "z"), Ok(b"kept".to_vec()));
    for name in ["c", "a", "b"] {
        g.call(s, Op::Mkdir, 0, &[&format!("z/{name}")]).unwrap();
    }
    let names = |l: &[&str]| Ok(l.iter().map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(
        g.ls(s, 0, "z"),
        names(&["y", "c", "a", "b"]),
        "oldest first"
    );
    assert_eq!(g.ls(s, 0, "z/a"), names(&[]));
    assert_eq!(g.call(s, Op::Rm, 0, &["z/c"]), ok());
    assert_eq!(g.ls(s, 0, "z"), names(&["y", "a", "b"]));
    assert_eq!(g.call(s, Op::Rm, 0, &["z/c"]), ok(), "gone already");
    assert_eq!(g.call(s, Op::Rm, 0, &["no/thing"]), err("ENOENT"));
    assert_eq!(g.call(s, Op::Rm, 0, &["/"]), err("EACCES"));
    assert_eq!(g.call(s, Op::Rm, 0, &["/tool"]), err("EACCES"));
    assert_eq!(g.ls(s, 0, "nothing"), err("ENOENT"));
    assert_eq!(g.ls(s, 0, "/tool"), err("EACCES"));
    assert_eq!(g.call(s, Op::Mkdir, 0, &["/x"]), err("EACCES"));
    assert_eq!(g.call(s, Op::Rm, 0, &["z"]), ok());
    assert_eq!(g.read(s, 0, "z/y"), err("ENOENT"));
    assert_eq!(s.rm("/"), Err(Errno::EINVAL));
}

#[test]
fn rm_of_a_very_deep_and_wide_tree() {
    let mut s = Store::new();
    let before = s.stats();
    let deep = "/d".repeat(1000);
    s.write(&deep, b"x").unwrap();
    for i in 0..2000 {
        s.write(&format!("/d/w{i}"), b"x").unwrap();
    }
    assert_eq!(s.stats().nodes, before.nodes + 3000);
    assert_eq!(s.walk("/d").count(), 3000);
    s.rm("/d").unwrap();
    assert_eq!(s.stats(), before);
}

#[test]
fn directory_part() {
    let (mut s, mut g, _) = two();
    let s = &mut s;
    let all: Vec<String> = (0..900).map(|i| format!("child-number-{i}")).collect();
    for name in &all {
        g.write(s, 0, &format!("long/{name}"), "").unwrap();
    }
    assert_eq!(g.ls(s, 0, "long"), err("E2BIG"));
    let fetch = |s: &mut Store, g: &mut Guest| {
        let (mut names, mut gens, mut offset, mut parts) = (Vec::new(), Vec::new(), 0, 0);
        loop {
            let reply = g
                .call(s, Op::DirectoryPart, 0, &["long", &offset.to_string()])
                .unwrap();
            let mut got = strings(&reply);
            gens.push(got.remove(0));
            parts += 1;
            let done = got.last().is_some_and(String::is_empty);
            if done {
                got.pop();
            }
            offset += got.iter().map(|n| n.len() + 1).sum::<usize>();
            names.extend(got);
            if done {
                gens.dedup();
                assert_eq!(gens.len(), 1);
                return (names, gens.remove(0), parts);
            }
        }
    };
    let (names, generation, parts) = fetch(s, &mut g);
    assert_eq!(names, all);
    assert!(parts > 1);
    g.write(s, 0, "long/one-more", "").unwrap();
    assert_ne!(fetch(s, &mut g).1, generation, "a change shows");
    assert_eq!(
        strings(
            &g.call(s, Op::DirectoryPart, 0, &["long", "999999"])
                .unwrap()
        )[1..],
        [String::new()]
    );
    assert_eq!(
        g.call(s, Op::DirectoryPart, 0, &["long", "x"]),
        err("EINVAL")
    );
    assert_eq!(g.call(s, Op::DirectoryPart, 0, &["long"]), err("EINVAL"));
    assert_eq!(
        g.call(s, Op::DirectoryPart, 0, &["none", "0"]),
        err("ENOENT")
    );
    let empty = strings(
        &g.call(s, Op::DirectoryPart, 0, &["long/one-more", "0"])
            .unwrap(),
    );
    assert_eq!(empty[1..], [String::new()]);
}

#[test]
fn perms() {
    let (mut s, mut g, mut h) = two();
    let s = &mut s;
    g.write(s, 0, "a", "secret").unwrap();
    assert_eq!(g.call(s, Op::GetPerms, 0, &["a"]), Ok(b"n1\0".to_vec()));
    assert_eq!(h.read(s, 0, "/local/domain/1/a"), err("EACCES"));
    assert_eq!(
        h.call(s, Op::GetPerms, 0, &["/local/domain/1/a"]),
        err("EACCES")
    );
    assert_eq!(g.call(s, Op::SetPerms, 0, &["a", "n1", "r2"]), ok());
    assert_eq!(h.read(s, 0, "/local/domain/1/a"), Ok(b"secret".to_vec()));
    assert_eq!(
        h.call(s, Op::GetPerms, 0, &["/local/domain/1/a"]),
        Ok(b"n1\0r2\0".to_vec())
    );
    assert_eq!(h.write(s, 0, "/local/domain/1/a", "x"), err("EACCES"));
    assert_eq!(
        h.call(s, Op::SetPerms, 0, &["/local/domain/1/a", "n2"]),
        err("EACCES")
    );
    // Children inherit, and belong to who makes them.
    g.write(s, 0, "a/child", "").unwrap();
    assert_eq!(s.get_perms("/local/domain/1/a/child"), Ok(vec![n(1), r(2)]));
    g.call(s, Op::SetPerms, 0, &["a", "r1", "b2"]).unwrap();
    h.write(s, 0, "/local/domain/1/a/theirs/deep", "").unwrap();
    for p in ["theirs", "theirs/deep"] {
        assert_eq!(
            s.get_perms(&format!("/local/domain/1/a/{p}")),
            Ok(vec![r(2), b(2)])
        );
    }
    // What domain 0 makes inherits the owner too.
    s.write("/local/domain/1/a/by0", b"").unwrap();
    assert_eq!(s.get_perms("/local/domain/1/a/by0"), Ok(vec![r(1), b(2)]));
    // Giving a node away is domain 0's privilege.
    assert_eq!(g.call(s, Op::SetPerms, 0, &["a", "n2"]), err("EPERM"));
    s.set_perms("/local/domain/1/a", &[w(2), n(1)]).unwrap();
    assert_eq!(g.read(s, 0, "a"), err("EACCES"));
    assert_eq!(h.read(s, 0, "/local/domain/1/a"), Ok(b"secret".to_vec()));
    // Errors.
    g.write(s, 0, "q", "").unwrap();
    for bad in [
        &["q"][..],
        &["q", ""],
        &["q", "x1"],
        &["q", "n"],
        &["q", "n1", "r99999"],
    ] {
        assert_eq!(g.call(s, Op::SetPerms, 0, bad), err("EINVAL"), "{bad:?}");
    }
    assert_eq!(g.call(s, Op::SetPerms, 0, &["none", "n1"]), err("ENOENT"));
    assert_eq!(g.call(s, Op::GetPerms, 0, &["none"]), err("ENOENT"));
    assert_eq!(g.raw(s, Op::SetPerms as u32, 0, b"q\0n1"), err("EINVAL"));
    assert_eq!(s.set_perms("/q", &[]), Err(Errno::EINVAL));
    // A right for a domain that is not there is not kept for a later one.
    g.call(s, Op::SetPerms, 0, &["q", "n1", "b9", "r2"])
        .unwrap();
    assert_eq!(s.get_perms("/local/domain/1/q"), Ok(vec![n(1), r(2)]));
}

/// Every access for owner, named and unnamed domains, over every command, in and out of transactions.
#[test]
fn permission_matrix() {
    for default in ["n", "r", "w", "b"] {
        for named in ["n", "r", "w", "b"] {
            for in_tx in [false, true] {
                let (mut s, mut g1, mut g2) = two();
                let mut g3 = Guest::introduced(&mut s, 3);
                let s = &mut s;
                s.write("/x/node/child", b"v").unwrap();
                let perms = [format!("{default}1"), format!("{named}2")];
                let perms: Vec<Perm> = perms
                    .iter()
                    .map(|p| Perm::parse(p.as_bytes()).unwrap())
                    .collect();
                s.set_perms("/x/node", &perms).unwrap();
                for (g, access, owner) in [
                    (&mut g1, "b", true),
                    (&mut g2, named, false),
                    (&mut g3, default, false),
                ] {
                    let tx = if in_tx { g.start(s).unwrap() } else { 0 };
                    let what = format!("{default}1 {named}2 as {} tx {tx}", g.domid);
                    let reads = matches!(access, "r" | "b");
                    let writes = matches!(access, "w" | "b");
                    let expect = |may: bool| {
                        if may {
                            None
                        } else {
                            Some("EACCES".to_string())
                        }
                    };
                    let check = |answer: Result<Vec<u8>, String>, may: bool, op: &str| {
                        assert_eq!(answer.err(), expect(may), "{op} {what}");
                    };
                    check(g.read(s, tx, "/x/node"), reads, "read");
                    check(g.call(s, Op::Directory, tx, &["/x/node"]), reads, "ls");
                    check(
                        g.call(s, Op::DirectoryPart, tx, &["/x/node", "0"]),
                        reads,
                        "part",
                    );
                    check(
                        g.call(s, Op::GetPerms, tx, &["/x/node"]),
                        reads,
                        "get_perms",
                    );
                    check(g.write(s, tx, "/x/node", "v"), writes, "write");
                    check(g.call(s, Op::Mkdir, tx, &["/x/node"]), writes, "mkdir");
                    let made = format!("/x/node/by{}", g.domid);
                    check(g.write(s, tx, &made, ""), writes, "create");
                    check(g.call(s, Op::Rm, tx, &[&made]), writes, "rm what it made");
                    let text: Vec<String> = perms.iter().map(Perm::to_string).collect();
                    let set = g.call(s, Op::SetPerms, tx, &["/x/node", &text[0], &text[1]]);
                    check(set, owner, "set_perms");
                    // A missing node shows only to those with the right to what is above.
                    let missing = g.read(s, tx, "/x/node/none").unwrap_err();
                    assert_eq!(missing, if reads { "ENOENT" } else { "EACCES" }, "{what}");
                    check(g.call(s, Op::Rm, tx, &["/x/node"]), writes, "rm");
                    if in_tx {
                        g.end(s, tx, "F").unwrap();
                    } else {
                        // Put it back for the next one.
                        s.write("/x/node/child", b"v").unwrap();
                        s.set_perms("/x/node", &perms).unwrap();
                    }
                }
            }
        }
    }
}

#[test]
fn transactions() {
    let (mut s, mut g, _) = two();
    let s = &mut s;
    g.write(s, 0, "a", "0").unwrap();
    let t = g.start(s).unwrap();
    assert_eq!(g.write(s, t, "a", "1"), ok());
    assert_eq!(g.write(s, t, "new/deep", "1"), ok());
    assert_eq!(g.read(s, t, "a"), Ok(b"1".to_vec()));
    assert_eq!(g.ls(s, t, "new"), Ok(vec!["deep".into()]));
    assert_eq!(g.read(s, 0, "a"), Ok(b"0".to_vec()));
    assert_eq!(g.read(s, 0, "new"), err("ENOENT"));
    assert_eq!(g.call(s, Op::TransactionStart, t, &[""]), err("EBUSY"));
    assert_eq!(g.end(s, t, "x"), err("EINVAL"));
    assert_eq!(g.end(s, t, "T"), ok());
    assert_eq!(g.read(s, 0, "a"), Ok(b"1".to_vec()));
    assert_eq!(g.read(s, 0, "new/deep"), Ok(b"1".to_vec()));
    assert_eq!(g.end(s, t, "T"), err("ENOENT"));
    assert_eq!(g.end(s, 0, "T"), err("ENOENT"));
    assert_eq!(g.read(s, t, "a"), err("ENOENT"));
    // Dropped.
    let t = g.start(s).unwrap();
    g.write(s, t, "a", "2").unwrap();
    assert_eq!(g.end(s, t, "F"), ok());
    assert_eq!(g.read(s, 0, "a"), Ok(b"1".to_vec()));
    // Removal.
    let t = g.start(s).unwrap();
    g.call(s, Op::Rm, t, &["new"]).unwrap();
    assert_eq!(g.read(s, t, "new/deep"), err("ENOENT"));
    assert_eq!(g.read(s, 0, "new/deep"), Ok(b"1".to_vec()));
    g.end(s, t, "T").unwrap();
    assert_eq!(g.read(s, 0, "new"), err("ENOENT"));
    assert_eq!(s.stats().transactions, 0);
}

#[test]
fn conflicts() {
    let (mut s, mut g, _) = two();
    let s = &mut s;
    g.write(s, 0, "a", "0").unwrap();
    g.write(s, 0, "b", "0").unwrap();
    // Read, then changed by another; also where the value is the same again.
    for value in ["1", "0"] {
        let t = g.start(s).unwrap();
        g.read(s, t, "a").unwrap();
        g.write(s, t, "b", "t").unwrap();
        s.write("/local/domain/1/a", value.as_bytes()).unwrap();
        assert_eq!(g.end(s, t, "T"), err("EAGAIN"));
        assert_eq!(g.read(s, 0, "b"), Ok(b"0".to_vec()));
    }
    // What the transaction did not touch does not matter.
    let t = g.start(s).unwrap();
    g.write(s, t, "b", "1").unwrap();
    s.write("/local/domain/1/a", b"9").unwrap();
    assert_eq!(g.end(s, t, "T"), ok());
    // A node that was looked for in vain and came.
    let t = g.start(s).unwrap();
    assert_eq!(g.read(s, t, "c"), err("ENOENT"));
    s.write("/local/domain/1/c", b"").unwrap();
    assert_eq!(g.end(s, t, "T"), err("EAGAIN"));
    // A list of children that was read and grew.
    let t = g.start(s).unwrap();
    g.ls(s, t, "c").unwrap();
    s.write("/local/domain/1/c/d", b"").unwrap();
    assert_eq!(g.end(s, t, "T"), err("EAGAIN"));
    // Two transactions on one node: the second fails; after a new start it succeeds.
    let (t1, t2) = (g.start(s).unwrap(), g.start(s).unwrap());
    g.write(s, t1, "a", "t1").unwrap();
    g.write(s, t2, "a", "t2").unwrap();
    assert_eq!(g.end(s, t2, "T"), ok());
    assert_eq!(g.end(s, t1, "T"), err("EAGAIN"));
    assert_eq!(g.read(s, 0, "a"), Ok(b"t2".to_vec()));
    // Reads are repeatable.
    let t = g.start(s).unwrap();
    g.read(s, t, "a").unwrap();
    s.write("/local/domain/1/a", b"later").unwrap();
    assert_eq!(g.read(s, t, "a"), Ok(b"t2".to_vec()));
    assert_eq!(g.end(s, t, "T"), err("EAGAIN"));
    // Permissions taken away meanwhile.
    let t = g.start(s).unwrap();
    g.write(s, t, "a", "mine").unwrap();
    s.set_perms("/local/domain/1/a", &[n(0)]).unwrap();
    assert_eq!(g.end(s, t, "T"), err("EAGAIN"));
}

#[test]
fn watches() {
    let (mut s, mut g, _) = two();
    let s = &mut s;
    let home = "/local/domain/1";
    assert_eq!(g.watch(s, "a", "rel"), ok());
    assert_eq!(
        g.seen(s),
        [event("a", "rel")],
        "once at the start, even where nothing is"
    );
    assert_eq!(g.watch(s, &format!("{home}/a"), "abs"), ok());
    assert_eq!(g.seen(s), [event("/local/domain/1/a", "abs")]);
    assert_eq!(g.watch(s, "a", "rel"), err("EEXIST"));
    // Make, write, mkdir, permissions, below and at.
    g.write(s, 0, "a/b", "1").unwrap();
    assert_eq!(
        g.seen(s),
        [event("a/b", "rel"), event("/local/domain/1/a/b", "abs")]
    );
    g.write(s, 0, "a/b", "1").unwrap();
    assert_eq!(g.seen(s).len(), 2, "also where the value is the same");
    g.call(s, Op::Mkdir, 0, &["a/b"]).unwrap();
    assert!(g.seen(s).is_empty(), "nothing changed");
    g.call(s, Op::SetPerms, 0, &["a", "r1"]).unwrap();
    assert_eq!(g.seen(s)[0], event("a", "rel"));
    g.read(s, 0, "a").unwrap();
    assert!(g.seen(s).is_empty());
    g.write(s, 0, "ab", "x").unwrap();
    assert!(g.seen(s).is_empty(), "a sibling whose name begins alike");
    // Removal of a parent: the watch on the child reports itself, the one above the root removed.
    g.watch(s, "a/b", "below").unwrap();
    g.seen(s);
    g.call(s, Op::Rm, 0, &["a"]).unwrap();
    assert_eq!(
        g.seen(s),
        [
            event("a", "rel"),
            event("/local/domain/1/a", "abs"),
            event("a/b", "below")
        ]
    );
    // Unwatch.
    assert_eq!(g.call(s, Op::Unwatch, 0, &["a", "rel"]), ok());
    assert_eq!(g.call(s, Op::Unwatch, 0, &["a", "rel"]), err("ENOENT"));
    assert_eq!(g.call(s, Op::Unwatch, 0, &["a"]), err("EINVAL"));
    assert_eq!(g.call(s, Op::Watch, 0, &["a"]), err("EINVAL"));
    assert_eq!(g.call(s, Op::Watch, 0, &["a//", "t"]), err("EINVAL"));
    g.write(s, 0, "a", "").unwrap();
    assert_eq!(g.seen(s), [event("/local/domain/1/a", "abs")]);
    // Reset drops watches and transactions.
    let t = g.start(s).unwrap();
    assert_eq!(g.call(s, Op::ResetWatches, 0, &[""]), ok());
    assert_eq!(g.raw(s, Op::ResetWatches as u32, 0, b""), ok());
    g.write(s, 0, "a/b", "2").unwrap();
    assert!(g.seen(s).is_empty());
    assert_eq!(g.end(s, t, "T"), err("ENOENT"));
    assert_eq!(s.stats().watches, 0);
}

#[test]
fn transactions_fire_when_committed() {
    let (mut s, mut g, _) = two();
    let s = &mut s;
    g.write(s, 0, "gone/x", "").unwrap();
    g.watch(s, "a", "t").unwrap();
    g.watch(s, "gone/x", "x").unwrap();
    g.seen(s);
    let t = g.start(s).unwrap();
    g.write(s, t, "a/1", "").unwrap();
    g.write(s, t, "a/1", "again").unwrap();
    g.write(s, t, "a/2", "").unwrap();
    g.write(s, t, "a/3", "").unwrap();
    g.call(s, Op::Rm, t, &["a/3"]).unwrap();
    g.call(s, Op::Rm, t, &["gone"]).unwrap();
    assert!(g.seen(s).is_empty());
    g.end(s, t, "T").unwrap();
    assert_eq!(
        g.seen(s),
        [event("a/1", "t"), event("a/2", "t"), event("gone/x", "x")]
    );
    let t = g.start(s).unwrap();
    g.write(s, t, "a/1", "x").unwrap();
    g.end(s, t, "F").unwrap();
    let t = g.start(s).unwrap();
    g.write(s, t, "a/1", "x").unwrap();
    s.write("/local/domain/1/a/1", b"y").unwrap();
    g.seen(s);
    assert_eq!(g.end(s, t, "T"), err("EAGAIN"));
    assert!(g.seen(s).is_empty());
    // Removed with its parent and made again: a change of the node, told above too.
    g.write(s, 0, "p/q", "").unwrap();
    g.watch(s, "p", "p").unwrap();
    g.seen(s);
    let t = g.start(s).unwrap();
    g.call(s, Op::Rm, t, &["p"]).unwrap();
    g.write(s, t, "p/q", "").unwrap();
    g.end(s, t, "T").unwrap();
    assert_eq!(g.seen(s), [event("p", "p"), event("p/q", "p")]);
}

/// XSA-115: whoever cannot read a node is not told of it.
#[test]
fn events_respect_permissions() {
    let (mut s, mut g, mut h) = two();
    let s = &mut s;
    h.watch(s, "/", "all").unwrap();
    h.watch(s, "/local/domain/1/a", "a").unwrap();
    h.seen(s);
    g.write(s, 0, "a", "1").unwrap();
    g.write(s, 0, "a/b", "1").unwrap();
    g.call(s, Op::Rm, 0, &["a/b"]).unwrap();
    s.write("/secret", b"").unwrap();
    assert!(h.seen(s).is_empty());
    // Readable: told of what happens to it, and of children that come and go, as a list would show.
    g.call(s, Op::SetPerms, 0, &["a", "n1", "r2"]).unwrap();
    assert_eq!(h.seen(s).len(), 2);
    g.write(s, 0, "a/c", "").unwrap();
    g.call(s, Op::SetPerms, 0, &["a/c", "n1"]).unwrap();
    assert_eq!(
        h.seen(s).len(),
        2,
        "made and hidden: each event once per watch"
    );
    g.write(s, 0, "a/c", "hidden").unwrap();
    assert!(h.seen(s).is_empty());
    g.call(s, Op::Rm, 0, &["a/c"]).unwrap();
    assert_eq!(h.seen(s).len(), 2);
    // Told that it was hidden, then no more.
    g.call(s, Op::SetPerms, 0, &["a", "n1"]).unwrap();
    assert_eq!(h.seen(s).len(), 2);
    g.call(s, Op::Rm, 0, &["a"]).unwrap();
    assert!(h.seen(s).is_empty());
    // A readable child of a removed parent that is not.
    g.write(s, 0, "p/q", "").unwrap();
    g.call(s, Op::SetPerms, 0, &["p/q", "n1", "r2"]).unwrap();
    h.watch(s, "/local/domain/1/p/q", "q").unwrap();
    h.seen(s);
    g.call(s, Op::Rm, 0, &["p"]).unwrap();
    assert_eq!(h.seen(s), [event("/local/domain/1/p/q", "q")]);
}

#[test]
fn special_watches() {
    let (mut s, mut g, mut h) = two();
    let s = &mut s;
    let me = s.open();
    s.watch(me, "@introduceDomain", "i").unwrap();
    s.watch(me, "@releaseDomain", "r").unwrap();
    s.watch(me, "/", "root").unwrap();
    while s.poll_event(me).is_some() {}
    g.watch(s, "@releaseDomain", "g").unwrap();
    assert_eq!(g.seen(s), [event("@releaseDomain", "g")]);
    s.introduce(DomId(7)).unwrap();
    let e = s.poll_event(me).unwrap();
    assert_eq!((&*e.path, &*e.token), ("@introduceDomain", "i"));
    assert_eq!(s.poll_event(me), None);
    s.domain_shutdown(DomId(7));
    s.domain_shutdown(DomId(7));
    let e = s.poll_event(me).unwrap();
    assert_eq!((&*e.path, &*e.token), ("@releaseDomain", "r"));
    assert_eq!(s.poll_event(me), None, "once");
    s.domain_resumed(DomId(7)).unwrap();
    s.domain_shutdown(DomId(7));
    assert!(s.poll_event(me).is_some());
    s.release(DomId(7)).unwrap();
    assert_eq!(&*s.poll_event(me).unwrap().path, "@releaseDomain");
    assert_eq!(s.release(DomId(7)), Err(Errno::ENOENT));
    s.domain_died(DomId(7));
    assert_eq!(s.poll_event(me), None, "died and was not served");
    assert!(g.seen(s).is_empty(), "not for guests");
    // Unless permitted.
    assert_eq!(
        g.call(s, Op::GetPerms, 0, &["@releaseDomain"]),
        err("EINVAL")
    );
    assert_eq!(
        g.call(s, Op::SetPerms, 0, &["@releaseDomain", "r1"]),
        err("EACCES")
    );
    s.set_perms("@releaseDomain", &[n(0), r(1)]).unwrap();
    h.watch(s, "@releaseDomain", "h").unwrap();
    h.seen(s);
    s.introduce(DomId(7)).unwrap();
    s.release(DomId(7)).unwrap();
    assert_eq!(g.seen(s), [event("@releaseDomain", "g")]);
    assert!(h.seen(s).is_empty());
    assert_eq!(g.watch(s, "@", "t"), ok());
    assert_eq!(g.call(s, Op::Watch, 0, &["x", "t", "more"]), err("EINVAL"));
    assert_eq!(g.call(s, Op::Unwatch, 0, &["x//", "t"]), err("ENOENT"));
    assert_eq!(g.watch(s, "@nothing", "t"), ok());
    assert_eq!(s.set_perms("@other", &[n(0)]), Err(Errno::EINVAL));
}

/// XSA-322: nothing of a dead domain's rights passes to a later one of its number.
#[test]
fn death() {
    let mut s = Store::new();
    let mut h = Guest::introduced(&mut s, 2);
    s.write("/shared/x", b"v").unwrap();
    s.set_perms("/shared", &[n(0), r(2)]).unwrap();
    s.set_perms("/shared/x", &[n(0), r(2)]).unwrap();
    let before = s.stats();
    let s = &mut s;

    let mut g = Guest::introduced(s, 1);
    s.set_perms("/shared/x", &[n(0), r(1), r(2)]).unwrap();
    s.set_perms("@releaseDomain", &[n(0), r(1)]).unwrap();
    s.set_target(DomId(2), DomId(1)).unwrap();
    s.write("/local/domain/1/dev/by0", b"").unwrap();
    s.set_perms("/local/domain/1/dev/by0", &[n(0), r(1)])
        .unwrap();
    s.set_perms("/local/domain/1", &[n(0), r(1)]).unwrap();
    h.write(s, 0, "mine", "").unwrap();
    h.call(s, Op::SetPerms, 0, &["mine", "n2", "b1"]).unwrap();
    g.watch(s, "dev", "t").unwrap();
    let t = g.start(s).unwrap();
    g.write(s, t, "dev/more", "").unwrap();
    // Another's transaction that would give domain 1 something.
    let ht = h.start(s).unwrap();
    h.write(s, ht, "late", "").unwrap();
    h.call(s, Op::SetPerms, ht, &["late", "n2", "b1"]).unwrap();
    h.watch(s, "/local/domain/1/dev", "dev").unwrap();
    h.seen(s);

    s.release(DomId(1)).unwrap();
    assert!(
        !s.exists("/local/domain/1/dev"),
        "its own, and what was below"
    );
    assert!(s.exists("/local/domain/1"), "domain 0's");
    assert_eq!(s.get_perms("/local/domain/1"), Ok(vec![n(0)]));
    assert_eq!(s.get_perms("/shared/x"), Ok(vec![n(0), r(2)]));
    assert_eq!(s.get_perms("@releaseDomain"), Ok(vec![n(0)]));
    assert_eq!(s.get_perms("/local/domain/2/mine"), Ok(vec![n(2)]));
    assert_eq!(s.domain_stats(DomId(1)), xenstore::DomainStats::default());
    assert_eq!(h.end(s, ht, "T"), err("EAGAIN"));
    assert_eq!(
        h.seen(s),
        [event("/local/domain/1/dev", "dev")],
        "its peer is told"
    );
    assert_eq!(
        h.read(s, 0, "/local/domain/1/x"),
        err("EACCES"),
        "no target any more"
    );

    s.introduce(DomId(1)).unwrap();
    let mut g = Guest::new(1);
    for path in ["/shared/x", "/local/domain/2/mine", "/local/domain/1"] {
        assert_eq!(g.read(s, 0, path), err("EACCES"), "{path}");
    }
    s.domain_died(DomId(1));
    s.rm("/local/domain/1").unwrap();
    s.rm("/local/domain/2/mine").unwrap();
    h.call(s, Op::ResetWatches, 0, &[""]).unwrap();
    assert_eq!(s.stats(), before);
    // A domain that was prepared and never introduced.
    s.write("/local/domain/9/x", b"").unwrap();
    s.set_perms("/local/domain/9/x", &[n(9)]).unwrap();
    s.domain_died(DomId(9));
    assert!(!s.exists("/local/domain/9/x"));
    s.rm("/local/domain/9").unwrap();
    assert_eq!(s.stats(), before);
}

#[test]
fn nothing_is_left_of_created_and_destroyed_domains() {
    let mut s = Store::new();
    let before = s.stats();
    for round in 0..50_u16 {
        let id = 1 + round % 3;
        let mut g = Guest::introduced(&mut s, id);
        for i in 0..20 {
            g.write(&mut s, 0, &format!("device/vbd/{i}/state"), "1")
                .unwrap();
            g.watch(&mut s, &format!("device/{i}"), "t").unwrap();
        }
        let t = g.start(&mut s).unwrap();
        g.write(&mut s, t, "x", "y").unwrap();
        // Half a request and unfetched replies.
        let bytes = common::message(Op::Read as u32, 1, 0, b"x\0");
        s.input(DomId(id), &bytes).unwrap();
        s.input(DomId(id), &bytes[..17]).unwrap();
        assert_ne!(s.stats(), before);
        s.release(DomId(id)).unwrap();
        let _ = s.rm(&format!("/local/domain/{id}"));
        s.rm("/local").unwrap();
        assert_eq!(s.stats(), before);
        assert_eq!(s.next_ready(), None);
    }
}

#[test]
fn domain_commands() {
    let (mut s, mut z) = root();
    let mut g = Guest::introduced(&mut s, 1);
    let s = &mut s;
    for (op, args) in [
        (Op::Introduce, &["5", "1", "2"][..]),
        (Op::Release, &["2"]),
        (Op::Resume, &["1"]),
        (Op::SetTarget, &["1", "2"]),
        (Op::Control, &["help"]),
        (Op::IsDomainIntroduced, &["1"]),
    ] {
        assert_eq!(g.call(s, op, 0, args), err("EACCES"), "{op:?}");
    }
    assert_eq!(
        g.call(s, Op::GetDomainPath, 0, &["7"]),
        Ok(b"/local/domain/7\0".to_vec())
    );
    assert_eq!(g.call(s, Op::GetDomainPath, 0, &["x"]), err("EINVAL"));
    assert_eq!(
        z.call(s, Op::IsDomainIntroduced, 0, &["1"]),
        Ok(b"T\0".to_vec())
    );
    assert_eq!(
        z.call(s, Op::IsDomainIntroduced, 0, &["5"]),
        Ok(b"F\0".to_vec())
    );
    // Domain 0 on a ring.
    assert_eq!(z.call(s, Op::Introduce, 0, &["5", "1234", "9"]), ok());
    let want = Effect::Introduce {
        domid: DomId(5),
        gfn: Gfn(1234),
        port: Port(9),
    };
    assert_eq!(s.next_effect(), Some(want));
    assert!(s.is_introduced(DomId(5)));
    assert_eq!(z.call(s, Op::Introduce, 0, &["0", "1", "2"]), err("EINVAL"));
    assert_eq!(z.call(s, Op::Introduce, 0, &["6", "1"]), err("EINVAL"));
    assert_eq!(
        z.call(s, Op::Introduce, 0, &["40000", "1", "1"]),
        err("EINVAL")
    );
    assert_eq!(z.call(s, Op::Resume, 0, &["5"]), ok());
    assert_eq!(z.call(s, Op::Resume, 0, &["6"]), err("ENOENT"));
    assert_eq!(z.call(s, Op::SetTarget, 0, &["5", "1"]), ok());
    assert_eq!(z.call(s, Op::SetTarget, 0, &["5", "6"]), err("ENOENT"));
    assert_eq!(z.call(s, Op::SetTarget, 0, &["0", "1"]), err("EINVAL"));
    let mut five = Guest::new(5);
    assert_eq!(five.write(s, 0, "/local/domain/1/x", "by 5"), ok());
    assert_eq!(z.call(s, Op::Release, 0, &["5"]), ok());
    assert_eq!(s.next_effect(), Some(Effect::Release { domid: DomId(5) }));
    assert_eq!(s.next_effect(), None);
    assert_eq!(z.call(s, Op::Release, 0, &["5"]), err("ENOENT"));
    assert_eq!(z.call(s, Op::Release, 0, &["0"]), err("EINVAL"));
    let help = strings(&z.call(s, Op::Control, 0, &["help"]).unwrap());
    assert!(help[0].contains("quota"));
    assert!(
        z.call(s, Op::Control, 0, &["quota"])
            .unwrap()
            .starts_with(b"nodes 1000\n")
    );
    assert!(
        z.call(s, Op::Control, 0, &["stats"])
            .unwrap()
            .starts_with(b"nodes ")
    );
    assert_eq!(z.call(s, Op::Control, 0, &["nonsense"]), err("EINVAL"));
    // Domain 0 has no quota.
    for i in 0..1200 {
        z.write(s, 0, &format!("/many/{i}"), "").unwrap();
    }
    // What is not there.
    for kind in [15, 16, 20, 23, 0xffff, u32::MAX] {
        assert_eq!(g.raw(s, kind, 0, b"x\0"), err("ENOSYS"), "{kind}");
    }
    assert_eq!(s.introduce(DomId(0x7ff0)), Err(Errno::EINVAL));
}

#[test]
fn quotas() {
    let quota = Quota {
        nodes: 8,
        node_size: 10,
        perms: 2,
        depth: 6,
        watches: 3,
        transactions: 2,
        transaction_nodes: 5,
        ..Quota::default()
    };
    let mut s = Store::with_quota(quota);
    let mut g = Guest::introduced(&mut s, 1);
    let s = &mut s;
    // Nodes: the home is one.
    for i in 0..7 {
        assert_eq!(g.write(s, 0, &format!("n{i}"), ""), ok());
    }
    assert_eq!(g.write(s, 0, "n7", ""), err("ENOSPC"));
    assert_eq!(s.domain_stats(DomId(1)).nodes, 8);
    assert_eq!(g.write(s, 0, "n0", "still"), ok());
    g.call(s, Op::Rm, 0, &["n6"]).unwrap();
    g.call(s, Op::Rm, 0, &["n5"]).unwrap();
    assert_eq!(g.write(s, 0, "x/y/z", ""), err("ENOSPC"), "all or nothing");
    assert_eq!(g.read(s, 0, "x"), err("ENOENT"));
    assert_eq!(g.write(s, 0, "x/y", ""), ok());
    g.call(s, Op::Rm, 0, &["x"]).unwrap();
    // In a transaction, too; and where another took the room meanwhile.
    let t = g.start(s).unwrap();
    assert_eq!(g.write(s, t, "t/1", ""), ok());
    assert_eq!(g.write(s, t, "t/2", ""), err("ENOSPC"));
    g.write(s, 0, "n0/other", "").unwrap();
    assert_eq!(g.end(s, t, "T"), err("ENOSPC"));
    assert_eq!(g.read(s, 0, "t"), err("ENOENT"));
    // Sizes.
    assert_eq!(g.write(s, 0, "n0", "0123456789"), ok());
    assert_eq!(g.write(s, 0, "n0", "0123456789a"), err("ENOSPC"));
    assert_eq!(g.call(s, Op::SetPerms, 0, &["n0", "n1", "r0"]), ok());
    assert_eq!(
        g.call(s, Op::SetPerms, 0, &["n0", "n1", "r0", "r0"]),
        err("ENOSPC")
    );
    assert_eq!(g.write(s, 0, "n0/d/e/f", ""), err("ENOSPC"), "depth 7");
    // Watches.
    for t in ["1", "2", "3"] {
        assert_eq!(g.watch(s, "n0", t), ok());
    }
    assert_eq!(g.watch(s, "n0", "4"), err("E2BIG"));
    g.call(s, Op::Unwatch, 0, &["n0", "1"]).unwrap();
    assert_eq!(g.watch(s, "n0", "4"), ok());
    // Transactions and their size.
    let t = g.start(s).unwrap();
    g.start(s).unwrap();
    assert_eq!(g.start(s), err("ENOSPC"));
    for i in 0..5 {
        g.read(s, t, &format!("n{i}")).unwrap();
    }
    assert_eq!(g.read(s, t, "n0"), Ok(b"0123456789".to_vec()));
    assert_eq!(g.read(s, t, "x"), err("ENOSPC"));
    g.end(s, t, "T").unwrap();
    g.start(s).unwrap();
    // Domain 0 has none of these limits.
    s.write(
        "/local/domain/1/more/and/more/and/more/and/more",
        &[0; 4096],
    )
    .unwrap();
    assert_eq!(s.write("/big", &[0; 4097]), Err(Errno::E2BIG));
}

#[test]
fn memory_quota_covers_everything() {
    let quota = Quota {
        memory: 20_000,
        ..Quota::default()
    };
    let mut s = Store::with_quota(quota);
    let mut g = Guest::introduced(&mut s, 1);
    let s = &mut s;
    let used = |s: &Store| {
        let d = s.domain_stats(DomId(1));
        d.node_bytes + d.session_bytes
    };
    let value = "v".repeat(2000);
    let mut i = 0;
    while g.write(s, 0, &format!("n{i}"), &value).is_ok() {
        i += 1;
    }
    assert!((5..10).contains(&i));
    assert!(used(s) <= 20_000);
    g.call(s, Op::Rm, 0, &["n0"]).unwrap();
    // A transaction that holds on to old nodes is charged for them.
    let t = g.start(s).unwrap();
    let mut refused = 0;
    for k in 1..i {
        refused += usize::from(g.read(s, t, &format!("n{k}")) == err("ENOSPC"));
    }
    assert!(refused > 0);
    g.call(s, Op::ResetWatches, 0, &[""]).unwrap();
    // Watches.
    let token = "t".repeat(1000);
    let mut count = 0;
    while g.watch(s, "n1", &format!("{token}{count}")).is_ok() {
        count += 1;
        assert!(used(s) <= 20_000);
    }
    assert!(count < 3);
}

/// A domain that does not fetch its replies is not read any more.
#[test]
fn flow_control() {
    let (mut s, mut g, _) = two();
    let s = &mut s;
    g.write(s, 0, "a", &"x".repeat(2000)).unwrap();
    let request = common::message(Op::Read as u32, 1, 0, b"a\0");
    let mut taken = 0;
    for _ in 0..100 {
        taken += s.input(DomId(1), &request).unwrap();
    }
    assert_eq!(taken, 20 * request.len());
    assert!(s.domain_stats(DomId(1)).queued_bytes <= 20 * 2016);
    let mut some = [0; 2016];
    assert_eq!(s.output(DomId(1), &mut some), 2016);
    assert_eq!(s.input(DomId(1), &request), Ok(request.len()));
    assert_eq!(s.input(DomId(1), &request), Ok(0));
    assert_eq!(g.fetch(s).len(), 20);
}

/// Events that nobody fetches are bounded, and none is lost for good.
#[test]
fn event_flood() {
    let (mut s, mut g, _) = two();
    let s = &mut s;
    g.watch(s, "a", "one").unwrap();
    g.watch(s, "b", "two").unwrap();
    g.seen(s);
    for _ in 0..1000 {
        s.write("/local/domain/1/a", b"x").unwrap();
    }
    assert_eq!(g.seen(s), [event("a", "one")], "alike ones are one");
    for i in 0..5000 {
        s.write(&format!("/local/domain/1/a/{i}"), b"x").unwrap();
    }
    s.write("/local/domain/1/b/last", b"x").unwrap();
    assert!(s.domain_stats(DomId(1)).queued_bytes <= s.quota().event_bytes);
    let seen = g.seen(s);
    assert_eq!(seen.len(), s.quota().events + 2);
    assert_eq!(
        seen[seen.len() - 2..],
        [event("a", "one"), event("b", "two")]
    );
    s.write("/local/domain/1/a/7", b"x").unwrap();
    assert_eq!(g.seen(s), [event("a/7", "one")], "and works as before");
    // A path and a token that together do not fit a message (XSA-324).
    let token = "t".repeat(4090);
    g.watch(s, "a", &token).unwrap();
    assert!(g.seen(s) == [event("a", &token)]);
    s.write("/local/domain/1/a/0123456789", b"x").unwrap();
    assert!(g.seen(s) == [event("a/0123456789", "one"), event("a", &token)]);
    let me = s.open();
    assert_eq!(s.watch(me, "/a", &"t".repeat(4093)), Err(Errno::EINVAL));
    assert_eq!(s.watch(me, "/a", &"t".repeat(4092)), Ok(()));
}

#[test]
fn local_connections() {
    let mut s = Store::new();
    let (a, b) = (s.open(), s.open());
    assert_ne!(a, b);
    s.watch(a, "/x", "a").unwrap();
    s.watch(b, "/x", "b").unwrap();
    s.watch(b, "rel", "r").unwrap();
    assert_eq!(s.watch(a, "/x", "a"), Err(Errno::EEXIST));
    assert_eq!(s.next_ready(), Some(a));
    assert_eq!(s.next_ready(), Some(b));
    assert_eq!(s.next_ready(), None);
    while s.poll_event(a).is_some() || s.poll_event(b).is_some() {}
    s.write("/x/y", b"").unwrap();
    s.write("/local/domain/0/rel", b"").unwrap();
    assert_eq!(&*s.poll_event(a).unwrap().path, "/x/y");
    assert_eq!(&*s.poll_event(b).unwrap().path, "/x/y");
    let e = s.poll_event(b).unwrap();
    assert_eq!((&*e.path, &*e.token), ("rel", "r"));
    assert_eq!(s.unwatch(b, "/x", "z"), Err(Errno::ENOENT));
    s.unwatch(b, "/x", "b").unwrap();
    s.close(a);
    s.write("/x/y", b"").unwrap();
    assert_eq!(s.poll_event(a), None);
    assert_eq!(s.poll_event(b), None);
    assert_eq!(s.watch(a, "/x", "a"), Err(Errno::EINVAL), "closed");
    s.close(b);
    s.rm("/x").unwrap();
    s.rm("/local").unwrap();
    assert_eq!(s.stats(), Store::new().stats());
    s.close(ConnId::Domain(DomId(1)));
}

#[test]
fn transact() {
    let mut s = Store::new();
    let me = s.open();
    s.watch(me, "/a", "t").unwrap();
    s.poll_event(me);
    let got = s.transact(|t| {
        t.write("/a/b", b"1")?;
        t.mkdir("/a/c")?;
        t.set_perms("/a/c", &[n(0), r(3)])?;
        assert_eq!(t.read("/a/b")?, b"1");
        assert_eq!(t.ls("/a")?, ["b", "c"]);
        assert!(t.exists("/a/c") && !t.exists("/a/d"));
        t.get_perms("/a/c")
    });
    assert_eq!(got, Ok(vec![n(0), r(3)]));
    assert_eq!(&*s.poll_event(me).unwrap().path, "/a/b");
    assert_eq!(&*s.poll_event(me).unwrap().path, "/a/c");
    let stats = s.stats();
    let failed: Result<(), _> = s.transact(|t| {
        t.rm("/a")?;
        t.write("/z", b"")?;
        Err(Errno::EIO)
    });
    assert_eq!(failed, Err(Errno::EIO));
    assert_eq!(s.stats(), stats);
    assert_eq!(s.poll_event(me), None);
    let lines: Vec<String> = s
        .walk("/a")
        .map(|e| {
            let perms: Vec<String> = e.perms.iter().map(Perm::to_string).collect();
            format!(
                "{}{} {:?} ({})",
                " ".repeat(e.depth),
                e.path,
                e.value,
                perms.join(",")
            )
        })
        .collect();
    assert_eq!(lines, ["/a [] (n0)", " /a/b [49] (n0)", " /a/c [] (n0,r3)"]);
    assert_eq!(s.walk("/none").count(), 0);
    let all: Vec<_> = s.walk("/").map(|e| (e.path.to_string(), e.depth)).collect();
    assert_eq!(
        all[..3],
        [
            ("/".into(), 0),
            ("/tool".into(), 1),
            ("/tool/xenstored".into(), 2)
        ]
    );
}
