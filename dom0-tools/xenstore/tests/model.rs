// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random operations of several clients, with transactions, against a model that keeps whole copies
//! of the tree; and random bytes.

mod common;

use std::collections::BTreeMap;

use common::{Answer, Guest, strings};
use guest_abi::DomId;
use guest_abi::io::xs_wire::MsgType as Op;
use proptest::prelude::*;
use xenstore::{Perm, Quota, Store};

#[derive(Clone, Debug)]
enum Act {
    Read,
    List,
    GetPerms,
    Write(u8),
    Mkdir,
    Rm,
    SetPerms(usize),
}

/// One node of the model.
#[derive(Clone, Debug, PartialEq)]
struct Item {
    value: Vec<u8>,
    perms: Vec<String>,
    /// When it was made, for the order of lists.
    born: u64,
}

/// The model: a tree as simple as can be.
#[derive(Clone, Debug, PartialEq)]
struct Model {
    items: BTreeMap<String, Item>,
    clock: u64,
    /// Operations that changed something, or might have.
    changes: u64,
}

fn up(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) => "/",
        Some(at) => &path[..at],
        None => unreachable!(),
    }
}

const PERMS: &[&[&str]] = &[
    &["n0"],
    &["r0"],
    &["b0"],
    &["n1"],
    &["n1", "r2"],
    &["w1", "b2"],
    &["n2", "b1"],
    &["r2"],
    &["b2", "n1"],
];

impl Model {
    fn may(&self, who: u16, perms: &[String], right: char) -> bool {
        let entry = |p: &String| (p.chars().next().unwrap(), p[1..].parse::<u16>().unwrap());
        if who == 0 || entry(&perms[0]).1 == who {
            return true;
        }
        let found = perms[1..].iter().map(entry).find(|e| e.1 == who);
        let letter = found.unwrap_or(entry(&perms[0])).0;
        right != 'o' && (letter == 'b' || letter == right)
    }

    /// Whether `who` has the right to the node, or why not.
    fn check(&self, who: u16, path: &str, right: char) -> Result<&Item, String> {
        if let Some(item) = self.items.get(path) {
            return if self.may(who, &item.perms, right) {
                Ok(item)
            } else {
                Err("EACCES".into())
            };
        }
        let mut at = up(path);
        while !self.items.contains_key(at) {
            at = up(at);
        }
        let perms = &self.items[at].perms;
        // To change permissions of what is not there: any right will do to be told so.
        let told = match right {
            'o' => ['r', 'w'].iter().any(|r| self.may(who, perms, *r)),
            r => self.may(who, perms, r),
        };
        Err(if told { "ENOENT" } else { "EACCES" }.into())
    }

    fn make(&mut self, who: u16, path: &str) {
        if self.items.contains_key(path) {
            return;
        }
        self.make(who, up(path));
        let mut perms = self.items[up(path)].perms.clone();
        if who != 0 {
            perms[0] = format!("{}{who}", &perms[0][..1]);
        }
        self.clock += 1;
        self.items.insert(
            path.into(),
            Item {
                value: vec![],
                perms,
                born: self.clock,
            },
        );
    }

    fn children(&self, path: &str) -> Vec<String> {
        let mut names: Vec<(u64, String)> = self
            .items
            .iter()
            .filter(|(p, _)| *p != "/" && up(p) == path)
            .map(|(p, i)| (i.born, p.rsplit('/').next().unwrap().into()))
            .collect();
        names.sort();
        names.into_iter().map(|(_, name)| name).collect()
    }

    fn act(&mut self, who: u16, path: &str, act: &Act) -> Answer {
        let joined = |l: &[String]| {
            l.iter()
                .flat_map(|s| [s.as_bytes(), b"\0"].concat())
                .collect()
        };
        match act {
            Act::Read => return Ok(self.check(who, path, 'r')?.value.clone()),
            Act::List => {
                self.check(who, path, 'r')?;
                return Ok(joined(&self.children(path)));
            }
            Act::GetPerms => return Ok(joined(&self.check(who, path, 'r')?.perms)),
            Act::Write(_) | Act::Mkdir => {
                match self.check(who, path, 'w') {
                    Err(e) if e != "ENOENT" => return Err(e),
                    _ => self.make(who, path),
                }
                if let Act::Write(v) = act {
                    self.items.get_mut(path).unwrap().value = vec![*v];
                }
            }
            Act::Rm => {
                match self.check(who, path, 'w') {
                    Err(e) if e == "ENOENT" && self.items.contains_key(up(path)) => {}
                    other => {
                        other?;
                    }
                }
                if path == "/" {
                    return Err("EINVAL".into());
                }
                let below = format!("{path}/");
                self.items
                    .retain(|p, _| p != path && !p.starts_with(&below));
            }
            Act::SetPerms(i) => {
                let item = self.check(who, path, 'o')?;
                let perms: Vec<String> = PERMS[*i].iter().map(|p| p.to_string()).collect();
                if who != 0 && perms[0][1..] != item.perms[0][1..] {
                    return Err("EPERM".into());
                }
                self.items.get_mut(path).unwrap().perms = perms;
            }
        }
        self.changes += 1;
        Ok(b"OK\0".to_vec())
    }
}

fn perform(s: &mut Store, g: &mut Guest, tx: u32, path: &str, act: &Act) -> Answer {
    match act {
        Act::Read => g.read(s, tx, path),
        Act::List => g.call(s, Op::Directory, tx, &[path]),
        Act::GetPerms => g.call(s, Op::GetPerms, tx, &[path]),
        Act::Write(v) => g.raw(
            s,
            Op::Write.number(),
            tx,
            &[path.as_bytes(), &[0, *v]].concat(),
        ),
        Act::Mkdir => g.call(s, Op::Mkdir, tx, &[path]),
        Act::Rm => g.call(s, Op::Rm, tx, &[path]),
        Act::SetPerms(i) => g.call(s, Op::SetPerms, tx, &[&[path], PERMS[*i]].concat()),
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Client, in its transaction if it has one, path, what.
    Do(usize, bool, String, Act),
    Start(usize),
    End(usize, bool),
    /// What the control domain does directly.
    Local(String, Act),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => Just(Act::Read),
        2 => Just(Act::List),
        1 => Just(Act::GetPerms),
        4 => any::<u8>().prop_map(Act::Write),
        1 => Just(Act::Mkdir),
        2 => Just(Act::Rm),
        2 => (0..PERMS.len()).prop_map(Act::SetPerms),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let path = || prop_oneof![1 => Just("/".to_string()), 30 => "(/[ab]){1,3}"];
    prop_oneof![
        10 => (0..3_usize, any::<bool>(), path(), act()).prop_map(|(c, t, p, a)| Step::Do(c, t, p, a)),
        2 => (0..3_usize).prop_map(Step::Start),
        2 => (0..3_usize, prop::bool::weighted(0.8)).prop_map(|(c, t)| Step::End(c, t)),
        2 => (path(), act()).prop_map(|(p, a)| Step::Local(p, a)),
    ]
}

/// A client's open transaction: its number, the copy that it works on, what it did and was answered,
/// and the tree as it was at the start.
struct Open {
    tx: u32,
    copy: Model,
    start: Model,
    log: Vec<(String, Act, Answer)>,
}

fn tree(s: &Store) -> BTreeMap<String, (Vec<u8>, Vec<String>)> {
    let item = |e: xenstore::Entry<'_>| {
        (
            e.path.into(),
            (
                e.value.to_vec(),
                e.perms.iter().map(Perm::to_string).collect(),
            ),
        )
    };
    s.walk("/").map(item).collect()
}

/// The invariants of the accounts, found anew by counting.
fn audit(s: &Store) {
    let mut counts: BTreeMap<u16, u64> = BTreeMap::new();
    for e in s.walk("/") {
        *counts.entry(e.perms[0].domid.0).or_default() += 1;
    }
    for d in 0..4 {
        let want = counts.get(&d).copied().unwrap_or(0);
        assert_eq!(s.domain_stats(DomId(d)).nodes, want);
    }
    assert_eq!(s.stats().nodes as u64, counts.values().sum::<u64>());
    assert_eq!(s.stats().owners, counts.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Outside transactions the store answers as the model does. A transaction that commits did as if
    /// it had run at once at its end; one that does not had another client's change to thank for it.
    #[test]
    fn as_the_model(steps in prop::collection::vec(step(), 1..80)) {
        let mut s = Store::new();
        s.rm("/tool").unwrap();
        s.set_perms("/", &[Perm::both(DomId(0))]).unwrap();
        let root = Item { value: vec![], perms: vec!["b0".into()], born: 0 };
        let mut model = Model { items: BTreeMap::from([("/".into(), root)]), clock: 0, changes: 0 };
        let mut clients: Vec<Guest> = Vec::new();
        for domid in 0..3 {
            s.introduce(DomId(domid)).unwrap();
            clients.push(Guest::new(domid));
        }
        let mut open: BTreeMap<usize, Open> = BTreeMap::new();
        for step in &steps {
            match step {
                Step::Do(c, in_tx, path, act) => {
                    let who = clients[*c].domid.0;
                    match open.get_mut(c).filter(|_| *in_tx) {
                        Some(t) => {
                            let answer = perform(&mut s, &mut clients[*c], t.tx, path, act);
                            let expected = t.copy.act(who, path, act);
                            if t.start == model {
                                prop_assert_eq!(&answer, &expected, "{:?}", step);
                            }
                            t.log.push((path.clone(), act.clone(), answer));
                        }
                        None => {
                            let answer = perform(&mut s, &mut clients[*c], 0, path, act);
                            prop_assert_eq!(answer, model.act(who, path, act), "{:?}", step);
                        }
                    }
                }
                Step::Start(c) => {
                    if !open.contains_key(c) {
                        let tx = clients[*c].start(&mut s).unwrap();
                        let (copy, start) = (model.clone(), model.clone());
                        open.insert(*c, Open { tx, copy, start, log: Vec::new() });
                    }
                }
                Step::End(c, commit) => {
                    let Some(t) = open.remove(c) else { continue };
                    let who = clients[*c].domid.0;
                    let verdict = if *commit { "T" } else { "F" };
                    let answer = clients[*c].end(&mut s, t.tx, verdict);
                    if !commit {
                        prop_assert_eq!(answer, common::ok());
                    } else if answer == common::ok() {
                        for (path, act, answer) in &t.log {
                            prop_assert_eq!(answer, &model.act(who, path, act), "{:?} in {:?}", act, path);
                        }
                    } else {
                        prop_assert_eq!(answer, common::err("EAGAIN"));
                        prop_assert!(t.start.changes != model.changes, "without a reason");
                    }
                }
                Step::Local(path, act) => {
                    let expected = model.act(0, path, act);
                    let done = |r: Result<(), guest_abi::Errno>| {
                        r.map(|()| b"OK\0".to_vec()).map_err(|e| e.name().to_string())
                    };
                    let name = |e: guest_abi::Errno| e.name().to_string();
                    let join = |l: Vec<String>| l.iter().flat_map(|n| [n.as_bytes(), b"\0"].concat()).collect();
                    let answer = match act {
                        Act::Read => s.read(path).map_err(name),
                        Act::List => s.ls(path).map(join).map_err(name),
                        Act::GetPerms => s
                            .get_perms(path)
                            .map(|l| join(l.iter().map(Perm::to_string).collect()))
                            .map_err(name),
                        Act::Write(v) => done(s.write(path, &[*v])),
                        Act::Mkdir => done(s.mkdir(path)),
                        Act::Rm => done(s.rm(path)),
                        Act::SetPerms(i) => {
                            let perms: Vec<Perm> =
                                PERMS[*i].iter().map(|p| Perm::parse(p.as_bytes()).unwrap()).collect();
                            done(s.set_perms(path, &perms))
                        }
                    };
                    prop_assert_eq!(answer, expected, "{:?}", step);
                }
            }
        }
        let want: BTreeMap<_, _> =
            model.items.iter().map(|(p, i)| (p.clone(), (i.value.clone(), i.perms.clone()))).collect();
        prop_assert_eq!(tree(&s), want);
        audit(&s);
        // Death leaves nothing of a domain.
        for domid in [1, 2] {
            s.domain_died(DomId(domid));
            audit(&s);
            prop_assert!(s.walk("/").all(|e| e.perms.iter().all(|p| p.domid != DomId(domid))));
        }
    }

    /// Without another's change a transaction always commits.
    #[test]
    fn alone_there_is_no_conflict(steps in prop::collection::vec(("(/[ab]){1,3}", act()), 1..40)) {
        let mut s = Store::new();
        s.set_perms("/", &[Perm::both(DomId(0))]).unwrap();
        s.introduce(DomId(1)).unwrap();
        let mut g = Guest::new(1);
        let tx = g.start(&mut s).unwrap();
        for (path, act) in &steps {
            let _ = perform(&mut s, &mut g, tx, path, act);
        }
        prop_assert_eq!(g.end(&mut s, tx, "T"), common::ok());
        audit(&s);
    }

    /// Random requests of one guest under small quotas: within them, one reply each, and nothing left
    /// when it is gone.
    #[test]
    fn random_requests(
        requests in prop::collection::vec(
            (0..24_u32, 0..4_u32, prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                "(/?([abc]|local/domain/1)){0,5}\0[a-z0-9TF]{0,9}\0?".prop_map(String::into_bytes),
                "T\0|F\0|\0|1\0|@releaseDomain\0t\0".prop_map(String::into_bytes),
                "[ab](/[ab]){0,8}\0n1\0[rwbn][0-3]\0".prop_map(String::into_bytes),
            ]),
            1..150,
        )
    ) {
        let quota = Quota {
            nodes: 10, node_size: 12, watches: 4, transactions: 2, transaction_nodes: 8,
            memory: 4000, events: 4, depth: 8, ..Quota::default()
        };
        let mut s = Store::with_quota(quota);
        let before = s.stats();
        let mut g = Guest::introduced(&mut s, 1);
        let node = |s: &Store| s.domain_stats(DomId(1));
        for (kind, tx, payload) in requests {
            if let Ok(reply) = g.raw(&mut s, kind, tx, &payload)
                && kind == Op::Directory.number()
            {
                strings(&reply);
            }
            let d = node(&s);
            prop_assert!(d.nodes <= quota.nodes);
            prop_assert!(d.watches <= quota.watches);
            prop_assert!(d.transactions <= quota.transactions);
            prop_assert!(d.node_bytes + d.session_bytes <= quota.memory + 2 * 64, "{:?}", d);
            audit(&s);
        }
        s.release(DomId(1)).unwrap();
        let _ = s.rm("/local/domain/1");
        s.rm("/local").unwrap();
        prop_assert_eq!(s.stats(), before);
    }

    /// Random bytes in random pieces.
    #[test]
    fn random_bytes(pieces in prop::collection::vec(prop::collection::vec(prop_oneof![3 => Just(0_u8), 2 => 0..24_u8, 1 => any::<u8>()], 0..200), 1..40)) {
        let mut s = Store::new();
        let mut other = Guest::introduced(&mut s, 2);
        s.introduce(DomId(1)).unwrap();
        for piece in &pieces {
            let taken = s.input(DomId(1), piece);
            prop_assert!(taken.is_err() || taken.unwrap() <= piece.len());
            let mut out = [0; 64];
            s.output(DomId(1), &mut out);
            let d = s.domain_stats(DomId(1));
            let q = s.quota();
            prop_assert!(d.queued_bytes <= (q.outstanding + 2) * 4112 + q.event_bytes);
        }
        prop_assert_eq!(other.write(&mut s, 0, "a", "1"), common::ok());
    }
}
