// SPDX-License-Identifier: MIT OR Apache-2.0
//! When each CPU's timer is to ring, and for whom: a heap for each CPU, so that what a switch costs does not
//! depend on who else there is.
//!
//! A vcpu has one timer, for whatever it sleeps for, and a domain one for its watchdogs. A timer is on the CPU
//! that set it, which is the one that arms its own hardware for it. Room is made when a domain is created: nothing
//! here fails later. Times are ticks of the physical counter.

use crate::types::{CpuId, Errno, MAX_CPUS, MAX_DOMAINS, Slot, VcpuId, VcpuRef};
use alloc::vec::Vec;

/// Whose timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// A sleeping vcpu's.
    Vcpu(VcpuRef),
    /// A domain's watchdogs'.
    Watchdog(Slot),
}

impl Timer {
    /// The domain, and which of its timers.
    #[inline]
    const fn key(self) -> (Slot, u8) {
        match self {
            Self::Watchdog(slot) => (slot, 0),
            Self::Vcpu(v) => (v.slot, v.vcpu.0.saturating_add(1)),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    at: u64,
    slot: Slot,
    n: u8,
}

/// Where a timer is: the CPU, and the place in its heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    cpu: u8,
    index: u16,
}

const NOWHERE: Place = Place { cpu: 0, index: !0 };

/// All timers.
#[derive(Debug)]
pub struct Timers {
    /// By CPU: each entry is at or before the two at twice its place.
    heaps: [Vec<Entry>; MAX_CPUS],
    /// By slot: its timers' places, the watchdog's first.
    places: [Vec<Place>; MAX_DOMAINS],
    /// Timers that exist.
    all: usize,
}

impl Default for Timers {
    fn default() -> Self {
        Self::new()
    }
}

impl Timers {
    /// No domain has timers yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            heaps: [const { Vec::new() }; MAX_CPUS],
            places: [const { Vec::new() }; MAX_DOMAINS],
            all: 0,
        }
    }

    /// Gives a new domain its timers, off.
    ///
    /// # Errors
    /// `ENOMEM`; `EINVAL` for a slot that cannot be.
    pub fn create_domain(&mut self, slot: Slot, vcpus: usize) -> Result<(), Errno> {
        let places = self.places.get_mut(slot.idx()).ok_or(Errno::EINVAL)?;
        let n = vcpus.saturating_add(1);
        crate::room::reserve(places, n)?;
        for h in &mut self.heaps {
            let more = self.all.saturating_add(n).saturating_sub(h.len());
            crate::room::reserve(h, more)?;
        }
        places.resize(n, NOWHERE);
        self.all = self.all.saturating_add(n);
        Ok(())
    }

    /// Forgets a domain's timers. One that has none is left alone.
    pub fn destroy_domain(&mut self, slot: Slot) {
        let n = self.places.get(slot.idx()).map_or(0, Vec::len);
        self.clear(Timer::Watchdog(slot));
        for vcpu in (0..n.saturating_sub(1)).map(|n| VcpuId(n as u8)) {
            self.clear(Timer::Vcpu(VcpuRef { slot, vcpu }));
        }
        if let Some(p) = self.places.get_mut(slot.idx()) {
            *p = Vec::new();
            self.all = self.all.saturating_sub(n);
        }
    }

    /// A timer is to ring on `cpu` at a time, `u64::MAX` for never, and not when it was to before. A timer of a domain
    /// that has none is left alone.
    #[inline]
    pub fn set(&mut self, timer: Timer, cpu: CpuId, at: u64) {
        self.clear(timer);
        if at != u64::MAX {
            self.insert(timer, cpu, at);
        }
    }

    #[inline(never)]
    fn insert(&mut self, timer: Timer, cpu: CpuId, at: u64) {
        let (slot, n) = timer.key();
        let known = self.places.get(slot.idx());
        if known.is_none_or(|p| usize::from(n) >= p.len()) {
            return;
        }
        let Some(heap) = self.heaps.get_mut(cpu.idx()) else {
            return;
        };
        let last = heap.len();
        // There is room: `create_domain` made it.
        heap.push(Entry { at, slot, n });
        self.up(cpu.0, last);
    }

    /// A timer is not to ring.
    #[inline]
    pub fn clear(&mut self, timer: Timer) {
        let (slot, n) = timer.key();
        let place = self
            .places
            .get(slot.idx())
            .and_then(|p| p.get(usize::from(n)));
        if let Some(&place) = place
            && place != NOWHERE
        {
            self.remove(place);
        }
    }

    #[inline(never)]
    fn remove(&mut self, Place { cpu, index }: Place) {
        let index = usize::from(index);
        let Some(heap) = self.heaps.get_mut(usize::from(cpu)) else {
            return;
        };
        if index >= heap.len() {
            return;
        }
        let gone = heap.swap_remove(index);
        self.note(gone, NOWHERE);
        // What came in its place may belong above or below it.
        self.up(cpu, index);
        self.down(cpu, index);
    }

    /// When a CPU's first timer is to ring, `u64::MAX` if there is none.
    #[inline]
    #[must_use]
    pub fn first(&self, cpu: CpuId) -> u64 {
        self.heaps
            .get(cpu.idx())
            .and_then(|h| h.first())
            .map_or(u64::MAX, |e| e.at)
    }

    /// Takes a CPU's first timer, if its time has come.
    pub fn take_due(&mut self, cpu: CpuId, now: u64) -> Option<Timer> {
        let e = *self.heaps.get(cpu.idx())?.first()?;
        if e.at > now {
            return None;
        }
        self.remove(Place {
            cpu: cpu.0,
            index: 0,
        });
        let slot = e.slot;
        Some(match e.n.checked_sub(1) {
            None => Timer::Watchdog(slot),
            Some(n) => Timer::Vcpu(VcpuRef {
                slot,
                vcpu: VcpuId(n),
            }),
        })
    }

    /// Moves the entry at `i` up to where it belongs.
    fn up(&mut self, cpu: u8, mut i: usize) {
        while let Some(above) = i.checked_sub(1).map(|n| n / 2)
            && self.at(cpu, i) < self.at(cpu, above)
        {
            self.swap(cpu, i, above);
            i = above;
        }
        self.note_at(cpu, i);
    }

    /// Moves the entry at `i` down to where it belongs.
    fn down(&mut self, cpu: u8, mut i: usize) {
        loop {
            let left = i.wrapping_mul(2).wrapping_add(1);
            let right = left.wrapping_add(1);
            let least = if self.at(cpu, right) < self.at(cpu, left) {
                right
            } else {
                left
            };
            if self.at(cpu, least) >= self.at(cpu, i) {
                break;
            }
            self.swap(cpu, i, least);
            i = least;
        }
        self.note_at(cpu, i);
    }

    /// An entry's time; places behind the last one never come.
    fn at(&self, cpu: u8, i: usize) -> u64 {
        self.heaps
            .get(usize::from(cpu))
            .and_then(|h| h.get(i))
            .map_or(u64::MAX, |e| e.at)
    }

    fn swap(&mut self, cpu: u8, a: usize, b: usize) {
        if let Some(h) = self.heaps.get_mut(usize::from(cpu))
            && a.max(b) < h.len()
        {
            h.swap(a, b);
        }
        self.note_at(cpu, a);
    }

    /// Notes where the entry at `i` is.
    fn note_at(&mut self, cpu: u8, i: usize) {
        if let Some(&e) = self.heaps.get(usize::from(cpu)).and_then(|h| h.get(i)) {
            let index = i as u16;
            self.note(e, Place { cpu, index });
        }
    }

    fn note(&mut self, e: Entry, place: Place) {
        let known = self.places.get_mut(e.slot.idx());
        if let Some(p) = known.and_then(|p| p.get_mut(usize::from(e.n))) {
            *p = place;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const DOMS: [(u8, u8); 4] = [(0, 1), (3, 8), (7, 64), (127, 3)];

    fn timer(n: usize) -> Timer {
        let all = DOMS.iter().flat_map(|&(slot, vcpus)| {
            let slot = Slot(slot);
            (0..=vcpus).map(move |v| match v.checked_sub(1) {
                None => Timer::Watchdog(slot),
                Some(v) => Timer::Vcpu(VcpuRef {
                    slot,
                    vcpu: VcpuId(v),
                }),
            })
        });
        let all: Vec<_> = all.collect();
        all[n % all.len()]
    }

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Set(usize, u8, u64),
        Clear(usize),
        Due(u8, u64),
        Renew(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        let at = prop_oneof![8 => 0u64..100, 1 => Just(u64::MAX)];
        prop_oneof![
            6 => (any::<usize>(), 0u8..3, at).prop_map(|(t, c, at)| Op::Set(t, c, at)),
            2 => any::<usize>().prop_map(Op::Clear),
            3 => (0u8..3, 0u64..100).prop_map(|(c, now)| Op::Due(c, now)),
            1 => (0usize..4).prop_map(Op::Renew),
        ]
    }

    proptest! {
        /// Against a list in which everything is looked for.
        #[test]
        fn as_a_list_has_it(ops in prop::collection::vec(op(), 1..400)) {
            let mut t = Timers::new();
            for (slot, vcpus) in DOMS {
                t.create_domain(Slot(slot), vcpus.into()).unwrap();
            }
            let room = t.heaps.each_ref().map(Vec::capacity);
            let mut model: Vec<(Timer, u8, u64)> = Vec::new();
            for op in ops {
                match op {
                    Op::Set(n, cpu, at) => {
                        t.set(timer(n), CpuId(cpu), at);
                        model.retain(|x| x.0 != timer(n));
                        if at != u64::MAX {
                            model.push((timer(n), cpu, at));
                        }
                    }
                    Op::Clear(n) => {
                        t.clear(timer(n));
                        model.retain(|x| x.0 != timer(n));
                    }
                    Op::Due(cpu, now) => match t.take_due(CpuId(cpu), now) {
                        Some(found) => {
                            let at = model.iter().position(|x| x.0 == found && x.1 == cpu).unwrap();
                            let (_, _, when) = model.swap_remove(at);
                            prop_assert!(when <= now);
                            prop_assert!(model.iter().all(|x| x.1 != cpu || x.2 >= when));
                        }
                        None => prop_assert!(model.iter().all(|x| x.1 != cpu || x.2 > now)),
                    },
                    Op::Renew(n) => {
                        let (slot, vcpus) = DOMS[n];
                        t.destroy_domain(Slot(slot));
                        model.retain(|x| x.0.key().0 != Slot(slot));
                        t.create_domain(Slot(slot), vcpus.into()).unwrap();
                    }
                }
                for cpu in 0..3u8 {
                    let first = model.iter().filter(|x| x.1 == cpu).map(|x| x.2).min();
                    prop_assert_eq!(t.first(CpuId(cpu)), first.unwrap_or(u64::MAX));
                    prop_assert_eq!(t.heaps[usize::from(cpu)].capacity(), room[usize::from(cpu)], "nothing is allocated");
                }
            }
        }
    }

    #[test]
    fn timers_of_nobody_are_left_alone() {
        let mut t = Timers::new();
        let (slot, cpu) = (Slot(5), CpuId(0));
        let v = |n| {
            Timer::Vcpu(VcpuRef {
                slot,
                vcpu: VcpuId(n),
            })
        };
        t.set(Timer::Watchdog(slot), cpu, 1);
        t.destroy_domain(slot);
        t.destroy_domain(Slot(255));
        assert_eq!(t.create_domain(Slot(128), 1), Err(Errno::EINVAL));
        t.create_domain(slot, 2).unwrap();
        for n in [2, 63, 255] {
            t.set(v(n), cpu, 1);
            assert_eq!(t.first(cpu), u64::MAX);
        }
        t.set(v(1), CpuId(200), 1);
        t.set(v(1), CpuId(7), 1);
        assert_eq!((t.first(cpu), t.first(CpuId(7))), (u64::MAX, 1));
        t.destroy_domain(slot);
        assert_eq!(t.first(CpuId(7)), u64::MAX);
    }
}
