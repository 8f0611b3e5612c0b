// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's lock: one at a time, whatever the patience, and whoever waits gets it.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use platform::lock::{Raw, Word};

struct Shared(AtomicU32);

impl Word for Shared {
    fn load(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
    fn store(&self, v: u32) {
        self.0.store(v, Ordering::Release);
    }
    fn take(&self) -> bool {
        self.0
            .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }
    fn add(&self, n: u32) -> u32 {
        self.0.fetch_add(n, Ordering::AcqRel)
    }
    fn pause() {
        thread::yield_now();
    }
}

struct Guarded {
    lock: Raw<Shared>,
    value: loom::cell::UnsafeCell<u32>,
}

fn with(patience: u32, cpus: usize, times: u32) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.max_branches = 50_000;
    // With three CPUs there are more orders than one waits for.
    model.max_permutations = Some(500);
    model.check(move || {
        let word = || Shared(AtomicU32::new(0));
        let shared = Arc::new(Guarded {
            lock: Raw {
                held: word(),
                waiting: word(),
                numbers: word(),
                served: word(),
            },
            value: loom::cell::UnsafeCell::new(0),
        });
        let work = move |s: &Guarded| {
            for _ in 0..times {
                s.lock.lock(|| patience);
                // Two at once are found by loom's cell.
                s.value.with_mut(|_| ());
                s.lock.unlock();
            }
        };
        let others: Vec<_> = (1..cpus)
            .map(|_| {
                let s = shared.clone();
                thread::spawn(move || work(&s))
            })
            .collect();
        work(&shared);
        for o in others {
            o.join().unwrap();
        }
        assert_eq!(shared.lock.waiting.load(), 0);
        assert_eq!(shared.lock.numbers.load(), shared.lock.served.load());
    });
}

#[test]
fn two_cpus_with_all_patience() {
    with(u32::MAX, 2, 2);
}

#[test]
fn two_cpus_with_none() {
    with(0, 2, 2);
}

#[test]
fn three_cpus() {
    with(u32::MAX, 3, 1);
    with(1, 3, 1);
}
