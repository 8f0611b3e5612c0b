// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine of simulated CPUs that obey the scheduler: they come back at their deadlines and
//! when kicked, and nowhere else.
use super::*;
use crate::types::VcpuId;
use proptest::prelude::*;
use std::collections::BTreeMap;

const MS: u64 = 1_000_000;
const S: u64 = 1_000 * MS;

fn v(slot: u8, vcpu: u8) -> VcpuRef {
    VcpuRef {
        slot: Slot(slot),
        vcpu: VcpuId(vcpu),
    }
}

struct Sim {
    s: Scheduler,
    now: u64,
    until: Vec<u64>,
    created: BTreeMap<VcpuRef, u64>,
}

impl Sim {
    fn new(ncpus: usize) -> Self {
        Self {
            s: Scheduler::new(ncpus, u64::MAX),
            now: 0,
            until: vec![u64::MAX; ncpus],
            created: BTreeMap::new(),
        }
    }

    /// Adds a vcpu that computes all the time.
    fn hog(&mut self, slot: u8, vcpu: u8, weight: u32) -> VcpuRef {
        let who = v(slot, vcpu);
        self.s.add_vcpu(who, self.now).unwrap();
        self.s.set_weight(Slot(slot), weight).unwrap();
        self.created.insert(who, self.now);
        let kick = self.s.up(who, self.now);
        self.kick(kick);
        who
    }

    fn kick(&mut self, kick: Option<CpuId>) {
        let mut kick = kick;
        let mut rounds = 0;
        while let Some(cpu) = kick {
            let d = self.s.schedule(cpu, self.now);
            assert_eq!(d.run, self.s.current(cpu));
            assert!(d.until > self.now);
            self.until[cpu.idx()] = d.until;
            kick = d.kick;
            rounds += 1;
            assert!(
                rounds <= 4 * self.until.len(),
                "CPUs kick each other forever"
            );
        }
        self.check();
    }

    /// Lets time pass.
    fn run(&mut self, ns: u64) {
        let end = self.now + ns;
        loop {
            let (cpu, &t) = self
                .until
                .iter()
                .enumerate()
                .min_by_key(|(_, t)| **t)
                .unwrap();
            if t > end {
                break;
            }
            self.now = t;
            self.kick(Some(CpuId(cpu as u8)));
        }
        self.now = end;
    }

    fn block(&mut self, who: VcpuRef) {
        let on = self.s.running_on(who);
        self.s.block(who, self.now, NothingToTake::assumed());
        self.kick(on);
    }

    fn wake(&mut self, who: VcpuRef) {
        let kick = self.s.wake(who, self.now);
        self.kick(kick);
    }

    fn ran(&self, who: VcpuRef) -> u64 {
        self.s.runstate_at(who, self.now).unwrap().time[0]
    }

    /// Everything that must hold whenever all kicks are obeyed.
    fn check(&self) {
        let s = &self.s;
        let mut seen = BTreeMap::new();
        for (n, c) in s.cpus.iter().enumerate() {
            let cpu = CpuId(n as u8);
            if let Some(who) = c.current {
                assert!(seen.insert(who, Place::Running(cpu)).is_none());
                assert!(s.affinity(who) & bit(cpu) != 0);
            }
            let idles = c.current.is_none() && s.online & bit(cpu) != 0;
            assert_eq!(idles, s.idle & bit(cpu) != 0);
            for w in &c.queue {
                assert!(seen.insert(w.who, Place::Queued(cpu)).is_none());
                assert_eq!(s.vcpu(w.who).unwrap().virt, w.virt);
                assert_eq!(
                    s.affinity(w.who) & s.idle,
                    0,
                    "{:?} waits for nothing",
                    w.who
                );
            }
            assert!(c.queue.windows(2).all(|w| !less(w[0].virt, w[1].virt)));
        }
        assert_eq!(
            s.waiting,
            s.cpus.iter().map(|c| c.queue.len()).sum::<usize>()
        );
        if s.waiting != 0 {
            assert_eq!(s.untimed, 0, "a CPU was not told that a vcpu waits");
        }
        for (slot, d) in s.domains.iter().enumerate() {
            for (n, vcpu) in d.vcpus.iter().enumerate() {
                let who = v(slot as u8, n as u8);
                let place = seen.get(&who).copied().unwrap_or(Place::Nowhere);
                assert_eq!(vcpu.place, place);
                assert_eq!(vcpu.stop == 0, place != Place::Nowhere, "{who:?} {vcpu:?}");
                let state = match place {
                    Place::Running(_) => State::Running,
                    Place::Queued(_) => State::Runnable,
                    Place::Nowhere if vcpu.stop & OFFLINE != 0 => State::Offline,
                    Place::Nowhere if vcpu.stop & BLOCKED != 0 => State::Blocked,
                    Place::Nowhere => State::Offline,
                };
                assert_eq!(vcpu.runstate.state, state);
                assert_eq!(vcpu.stop & PAUSED != 0, vcpu.pauses != 0);
                let rs = s.runstate_at(who, self.now).unwrap();
                assert_eq!(rs.time.iter().sum::<u64>(), self.now - self.created[&who]);
            }
        }
    }

    fn assert_share(&self, who: VcpuRef, of: u64, share: f64, tolerance: f64) {
        let got = self.ran(who) as f64 / of as f64;
        assert!(
            (got - share).abs() <= share * tolerance,
            "{who:?} got {got:.4}, due {share:.4}"
        );
    }
}

#[test]
fn one_cpu_is_shared_by_weight() {
    let mut m = Sim::new(1);
    let weights = [128, 256, 512, 1024];
    let hogs: Vec<_> = (0..4).map(|n| m.hog(n, 0, weights[n as usize])).collect();
    m.run(20 * S);
    for (who, w) in hogs.iter().zip(weights) {
        m.assert_share(*who, 20 * S, f64::from(w) / 1920.0, 0.02);
    }
}

#[test]
fn three_vcpus_share_two_cpus() {
    let mut m = Sim::new(2);
    let hogs: Vec<_> = (0..3).map(|n| m.hog(n, 0, 256)).collect();
    m.run(10 * S);
    for who in hogs {
        m.assert_share(who, 10 * S, 2.0 / 3.0, 0.02);
    }
}

#[test]
fn four_cpus_are_shared_by_weight() {
    let mut m = Sim::new(4);
    let weights = [256, 512, 128, 256, 1024, 300, 77, 640, 256, 256, 400, 512];
    let sum: u32 = weights.iter().sum();
    let hogs: Vec<_> = (0..12).map(|n| m.hog(n, 0, weights[n as usize])).collect();
    m.run(40 * S);
    for (who, w) in hogs.iter().zip(weights) {
        m.assert_share(*who, 40 * S, 4.0 * f64::from(w) / f64::from(sum), 0.03);
    }
}

#[test]
fn more_weight_than_a_cpu_gets_that_cpu_and_no_more() {
    let mut m = Sim::new(3);
    let heavy = m.hog(0, 0, 20_000);
    let light: Vec<_> = (1..7).map(|n| m.hog(n, 0, 256)).collect();
    m.run(20 * S);
    m.assert_share(heavy, 20 * S, 1.0, 0.01);
    for &who in &light {
        m.assert_share(who, 20 * S, 2.0 / 6.0, 0.03);
    }
    // When it is gone, nobody pays for it.
    m.block(heavy);
    let before: Vec<_> = light.iter().map(|&w| m.ran(w)).collect();
    m.run(10 * S);
    for (who, before) in light.iter().zip(before) {
        let got = (m.ran(*who) - before) as f64 / (10 * S) as f64;
        assert!((got - 0.5).abs() < 0.03, "{who:?} {got}");
    }
}

#[test]
fn a_thousand_vcpus_all_run() {
    let mut m = Sim::new(8);
    let all: Vec<_> = (0..100u8)
        .flat_map(|slot| (0..10u8).map(move |n| (slot, n)))
        .collect();
    // Checking everything at each of 20,000 steps is for smaller machines.
    for &(slot, n) in &all {
        m.s.add_vcpu(v(slot, n), 0).unwrap();
        let mut kick = m.s.up(v(slot, n), 0);
        while let Some(cpu) = kick {
            let d = m.s.schedule(cpu, 0);
            m.until[cpu.idx()] = d.until;
            kick = d.kick;
        }
    }
    while m.now < 20 * S {
        let (cpu, &t) = m.until.iter().enumerate().min_by_key(|(_, t)| **t).unwrap();
        m.now = t;
        let d = m.s.schedule(CpuId(cpu as u8), t);
        m.until[cpu] = d.until;
        assert!(d.run.is_some());
    }
    for &(slot, n) in &all {
        let got = m.ran(v(slot, n)) as f64;
        assert!((got - 0.16e9).abs() <= 0.02e9, "{slot}.{n}: {got}");
    }
}

#[test]
fn the_lightest_is_not_starved_by_the_heaviest() {
    let mut m = Sim::new(1);
    let light = m.hog(0, 0, 1);
    let heavy = m.hog(1, 0, 256);
    m.run(60 * S);
    m.assert_share(light, 60 * S, 1.0 / 257.0, 0.1);
    m.assert_share(heavy, 60 * S, 256.0 / 257.0, 0.01);
}

#[test]
fn a_sleeper_runs_at_once_when_woken() {
    let mut m = Sim::new(2);
    for n in 0..6 {
        m.hog(n, 0, 256);
    }
    let sleeper = m.hog(6, 0, 256);
    m.run(S);
    m.block_until_running(sleeper);
    for _ in 0..100 {
        m.run(37 * MS);
        m.wake(sleeper);
        assert!(m.s.running_on(sleeper).is_some(), "woken and not run");
        m.run(MS / 2);
        m.block(sleeper);
    }
}

impl Sim {
    fn block_until_running(&mut self, who: VcpuRef) {
        while self.s.running_on(who).is_none() {
            self.run(MS);
        }
        self.block(who);
    }
}

#[test]
fn sleeping_earns_no_more_than_a_slice() {
    let mut m = Sim::new(1);
    let hog = m.hog(0, 0, 256);
    let sleeper = m.hog(1, 0, 256);
    m.block_until_running(sleeper);
    m.run(1000 * S);
    m.wake(sleeper);
    let (h, s) = (m.ran(hog), m.ran(sleeper));
    m.run(2 * S);
    let (h, s) = (m.ran(hog) - h, m.ran(sleeper) - s);
    assert!(h.abs_diff(s) <= 3 * SLICE_NS, "hog {h}, sleeper {s}");
}

#[test]
fn who_just_came_runs_a_while_before_a_woken_one() {
    let mut m = Sim::new(1);
    let (hog, sleeper) = (m.hog(1, 0, 256), m.hog(2, 0, 256));
    m.run(30 * MS);
    m.block(sleeper);
    m.run(30 * MS);
    // It has run for long.
    m.wake(sleeper);
    assert_eq!(m.s.current(CpuId(0)), Some(sleeper));
    m.run(MS);
    m.block(sleeper);
    assert_eq!(m.s.current(CpuId(0)), Some(hog));
    m.run(MIN_RUN_NS / 4);
    m.wake(sleeper);
    assert_eq!(m.s.current(CpuId(0)), Some(hog));
    m.run(MIN_RUN_NS / 2);
    assert_eq!(m.s.current(CpuId(0)), Some(hog));
    m.run(MIN_RUN_NS / 4);
    assert_eq!(m.s.current(CpuId(0)), Some(sleeper));
    // The short way says the same.
    assert_eq!(m.s.stays(CpuId(0), m.now), Some(m.now + MIN_RUN_NS));
    assert_eq!(m.s.stays(CpuId(0), m.now + MIN_RUN_NS), None);
    // Who sleeps keeps nobody from the CPU.
    m.s.block(sleeper, m.now, NothingToTake::assumed());
    assert_eq!(m.s.stays(CpuId(0), m.now), None);
    m.kick(Some(CpuId(0)));
    m.wake(sleeper);
    m.block(hog);
    assert_eq!(m.s.current(CpuId(0)), Some(sleeper));
}

#[test]
fn vcpus_that_never_met_start_even() {
    // One ran alone for an hour, then others come on both CPUs.
    let mut m = Sim::new(2);
    let old = m.hog(0, 0, 256);
    m.run(3600 * S);
    let new: Vec<_> = (1..4).map(|n| m.hog(n, 0, 256)).collect();
    let start = m.ran(old);
    m.run(20 * S);
    assert!(
        (m.ran(old) - start).abs_diff(10 * S) < S,
        "{}",
        m.ran(old) - start
    );
    for who in new {
        assert!(m.ran(who).abs_diff(10 * S) < S, "{who:?} {}", m.ran(who));
    }
}

#[test]
fn alone_there_is_no_deadline() {
    let mut m = Sim::new(2);
    let a = m.hog(0, 0, 256);
    let b = m.hog(0, 1, 256);
    assert_eq!(m.until, [u64::MAX; 2]);
    m.run(5 * S);
    // The third is told to one CPU, the other is told by that one.
    let c = v(1, 0);
    m.s.add_vcpu(c, m.now).unwrap();
    m.created.insert(c, m.now);
    let first = m.s.up(c, m.now).unwrap();
    let d = m.s.schedule(first, m.now);
    m.until[first.idx()] = d.until;
    let second = d.kick.expect("the other CPU must come to look");
    assert_ne!(first, second);
    m.kick(Some(second));
    assert!(m.until.iter().all(|&t| t != u64::MAX));
    m.run(S);
    m.block_until_running(c);
    m.run(20 * MS);
    assert_eq!(m.until, [u64::MAX; 2]);
    assert!(m.ran(a) > 5 * S && m.ran(b) > 5 * S);
    // Yielding alone goes straight back.
    m.s.yield_now(CpuId(0));
    let cur = m.s.current(CpuId(0));
    assert_eq!(m.s.schedule(CpuId(0), m.now).run, cur);
}

#[test]
fn yield_lets_the_other_go_first() {
    let mut m = Sim::new(1);
    let a = m.hog(0, 0, 256);
    let b = m.hog(1, 0, 256);
    for _ in 0..10 {
        let (from, to) = if m.s.current(CpuId(0)) == Some(a) {
            (a, b)
        } else {
            (b, a)
        };
        m.s.yield_now(CpuId(0));
        m.kick(Some(CpuId(0)));
        assert_eq!(m.s.current(CpuId(0)), Some(to), "{from:?} yielded");
        // and a look in between changes nothing
        m.run(10);
        m.kick(Some(CpuId(0)));
        assert_eq!(m.s.current(CpuId(0)), Some(to));
        m.run(MS);
    }
}

#[test]
fn affinity_is_obeyed_at_once() {
    let mut m = Sim::new(4);
    let hogs: Vec<_> = (0..4).map(|n| m.hog(0, n, 256)).collect();
    assert_eq!(m.s.set_affinity(hogs[0], 0, 0), Err(Errno::EINVAL));
    assert_eq!(m.s.set_affinity(hogs[0], 0xf0, 0), Err(Errno::EINVAL));
    assert_eq!(m.s.set_affinity(v(9, 9), 1, 0), Err(Errno::ESRCH));
    for &who in &hogs {
        let kick = m.s.set_affinity(who, 0b0100, m.now).unwrap();
        m.kick(kick);
    }
    m.run(S);
    for &who in &hogs {
        m.assert_share(who, S, 0.25, 0.1);
    }
    assert_eq!(m.s.current(CpuId(0)), None);
    for &who in &hogs {
        let kick = m.s.set_affinity(who, !0, m.now).unwrap();
        m.kick(kick);
    }
    assert!((0..4).all(|n| m.s.current(CpuId(n)).is_some()));
}

#[test]
fn a_wake_before_the_cpu_looks_is_not_lost() {
    let mut m = Sim::new(1);
    let a = m.hog(0, 0, 256);
    m.s.block(a, 0, NothingToTake::assumed());
    assert_eq!(m.s.wake(a, 0), None);
    m.kick(Some(CpuId(0)));
    assert_eq!(m.s.current(CpuId(0)), Some(a));
    m.block(a);
    assert_eq!(m.s.current(CpuId(0)), None);
    assert_eq!(m.s.runstate(a).unwrap().state, State::Blocked);
    assert_eq!(m.s.wake(a, 5), Some(CpuId(0)));
    assert_eq!(m.s.wake(a, 5), None);
}

#[test]
fn pauses_are_counted() {
    let mut m = Sim::new(1);
    let a = m.hog(0, 0, 256);
    let kick = m.s.pause(a, 0);
    assert_eq!(kick, Some(CpuId(0)));
    m.kick(kick);
    assert_eq!(m.s.pause(a, 0), None);
    assert_eq!(m.s.runstate(a).unwrap().state, State::Offline);
    assert_eq!(m.s.unpause(a, 0), None);
    assert!(!m.s.is_runnable(a));
    // One unpause too many is no credit.
    m.s.block(a, 0, NothingToTake::assumed());
    assert_eq!(m.s.unpause(a, 0), None);
    assert_eq!(m.s.unpause(a, 0), None);
    assert_eq!(m.s.wake(a, 0), Some(CpuId(0)));
    m.kick(Some(CpuId(0)));
    let kick = m.s.pause(a, 0);
    assert_eq!(kick, Some(CpuId(0)));
}

#[test]
fn a_domain_goes_when_off_all_cpus() {
    let mut m = Sim::new(1);
    let a = m.hog(0, 0, 300);
    m.hog(0, 1, 300);
    assert_eq!(m.s.add_vcpu(v(0, 5), 0), Err(Errno::EINVAL));
    assert_eq!(m.s.remove_domain(Slot(0)), Err(Errno::EBUSY));
    m.run(3 * MS);
    assert_eq!(m.s.cpu_time(Slot(0), m.now), 3 * MS);
    let on = m.s.current(CpuId(0)).unwrap();
    m.s.down(a, m.now);
    m.s.down(v(0, 1), m.now);
    m.kick(Some(CpuId(0)));
    assert_eq!(m.s.running_on(on), None);
    assert_eq!(m.s.remove_domain(Slot(0)), Ok(()));
    assert_eq!((m.s.vcpus, m.s.waiting), (0, 0));
    assert_eq!(m.s.weight(Slot(0)), WEIGHT_DEFAULT);
    assert_eq!(m.s.set_weight(Slot(0), 0), Err(Errno::EINVAL));
    assert_eq!(m.s.set_weight(Slot(0), 65536), Err(Errno::EINVAL));
    m.hog(0, 0, 256);
}

#[test]
fn what_does_not_exist_is_ignored() {
    let mut s = Scheduler::new(2, u64::MAX);
    let no = v(200, 200);
    assert_eq!(s.wake(no, 0), None);
    assert_eq!(s.pause(no, 0), None);
    assert_eq!(s.schedule(CpuId(77), 0).run, None);
    assert_eq!(s.schedule(CpuId(0), 0).run, None);
    assert_eq!(s.runstate(no), None);
    s.yield_now(CpuId(99));
    assert_eq!(s.add_vcpu(no, 0), Err(Errno::EINVAL));
}

#[derive(Clone, Debug)]
enum Op {
    Run(u64),
    Block(usize),
    Wake(usize),
    Pause(usize),
    Unpause(usize),
    Down(usize),
    Up(usize),
    Affinity(usize, u64),
    Weight(u8, u32),
    Yield(u8),
    Look(u8),
}

fn op(vcpus: usize) -> impl Strategy<Value = Op> {
    let n = 0..vcpus;
    prop_oneof![
        4 => (0u64..30 * MS).prop_map(Op::Run),
        5 => n.clone().prop_map(Op::Block),
        5 => n.clone().prop_map(Op::Wake),
        1 => n.clone().prop_map(Op::Pause),
        2 => n.clone().prop_map(Op::Unpause),
        1 => n.clone().prop_map(Op::Down),
        3 => n.clone().prop_map(Op::Up),
        2 => (n, 1u64..16).prop_map(|(n, m)| Op::Affinity(n, m)),
        1 => (0u8..4, 1u32..1000).prop_map(|(s, w)| Op::Weight(s, w)),
        1 => (0u8..4).prop_map(Op::Yield),
        1 => (0u8..4).prop_map(Op::Look),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// After every operation the invariants of [`Sim::check`] hold; and what may run always
    /// gets to: in the end everything is started and must progress by its weight's measure.
    #[test]
    fn any_history(ncpus in 1usize..5, ops in prop::collection::vec(op(12), 1..200)) {
        let mut m = Sim::new(ncpus);
        let all: Vec<_> = (0..4).flat_map(|s| (0..3).map(move |n| (s, n))).collect();
        let all: Vec<_> = all.into_iter().map(|(s, n)| m.hog(s, n, 256)).collect();
        for op in ops {
            match op {
                Op::Run(ns) => m.run(ns),
                Op::Block(n) => m.block(all[n]),
                Op::Wake(n) => m.wake(all[n]),
                Op::Pause(n) => { let k = m.s.pause(all[n], m.now); m.kick(k) }
                Op::Unpause(n) => { let k = m.s.unpause(all[n], m.now); m.kick(k) }
                Op::Down(n) => { let k = m.s.down(all[n], m.now); m.kick(k) }
                Op::Up(n) => { let k = m.s.up(all[n], m.now); m.kick(k) }
                Op::Affinity(n, mask) => {
                    if let Ok(k) = m.s.set_affinity(all[n], mask, m.now) { m.kick(k) }
                }
                Op::Weight(s, w) => m.s.set_weight(Slot(s), w).unwrap(),
                Op::Yield(cpu) => {
                    let cpu = CpuId(cpu % ncpus as u8);
                    m.s.yield_now(cpu);
                    m.kick(Some(cpu));
                }
                Op::Look(cpu) => m.kick(Some(CpuId(cpu % ncpus as u8))),
            }
        }
        for &who in &all {
            while m.s.vcpu(who).unwrap().pauses != 0 {
                let k = m.s.unpause(who, m.now);
                m.kick(k);
            }
            let k = m.s.up(who, m.now);
            m.kick(k);
            m.wake(who);
            let k = m.s.set_affinity(who, !0, m.now).unwrap();
            m.kick(k);
        }
        for s in 0..4 {
            m.s.set_weight(Slot(s), 256).unwrap();
        }
        m.run(2 * S);
        let before: Vec<_> = all.iter().map(|&w| m.ran(w)).collect();
        m.run(10 * S);
        let due = (10 * S) as f64 * ncpus as f64 / 12.0;
        for (&who, before) in all.iter().zip(before) {
            let got = (m.ran(who) - before) as f64;
            prop_assert!((got - due).abs() < 0.05 * due, "{:?} got {} of {}", who, got, due);
        }
    }
}

#[test]
fn nothing_is_placed_on_a_cpu_that_did_not_start() {
    let mut m = Sim::new(4);
    m.s = Scheduler::new(4, 0b0101);
    let all: Vec<_> = (0..6).map(|n| m.hog(n, 0, 256)).collect();
    assert_eq!(m.s.affinity(all[0]), 0b0101);
    assert_eq!(m.s.set_affinity(all[0], 0b1010, 0), Err(Errno::EINVAL));
    for k in 0..200 {
        m.now += 1_000_000;
        for cpu in [CpuId(0), CpuId(2)] {
            m.kick(Some(cpu));
            let who = m.s.current(cpu).unwrap();
            if k % 3 == 0 {
                m.block(who);
                let kick = m.s.wake(who, m.now);
                assert!(kick.is_none_or(|c| c.0 % 2 == 0));
                m.kick(kick);
            }
        }
        for &v in &all {
            assert_eq!(m.s.home(v).0 % 2, 0, "where it waits or runs");
        }
    }
    // It comes after all: vcpus that are pinned nowhere may run there.
    m.s.online(CpuId(3));
    m.s.online(CpuId(9));
    assert_eq!(m.s.affinity(all[0]), 0b1101);
    m.kick(Some(CpuId(3)));
    assert!(m.s.current(CpuId(3)).is_some());
    assert!(m.s.wanted(CpuId(0)) || m.s.wanted(CpuId(2)));
}
