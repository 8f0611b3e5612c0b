// SPDX-License-Identifier: MIT OR Apache-2.0
//! A spin lock that is fair where CPUs are real.
//!
//! Whoever finds it free and nobody waiting takes it by one compare-and-exchange. Others take a number, and wait until
//! as many got it as came before; nobody who comes later takes it before, as somebody waits. Where the machine's CPUs
//! are threads of a host (QEMU), the host may stop one that is next: so there all who wait lose their
//! patience after a while, and take the lock when they find it free.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

/// A word that CPUs share; tests have one of their own.
pub trait Word {
    /// Acquire load.
    fn load(&self) -> u32;
    /// Release store.
    fn store(&self, v: u32);
    /// From 0 to 1, acquire; whether it did. May fail for no reason.
    fn take(&self) -> bool;
    /// Adds, wrapping, acquire and release; gives the old value.
    fn add(&self, n: u32) -> u32;
    /// Another CPU is to change it.
    fn pause();
}

impl Word for AtomicU32 {
    #[inline]
    fn load(&self) -> u32 {
        self.load(Ordering::Acquire)
    }
    #[inline]
    fn store(&self, v: u32) {
        self.store(v, Ordering::Release);
    }
    #[inline]
    fn take(&self) -> bool {
        self.compare_exchange_weak(0, 1, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }
    #[inline]
    fn add(&self, n: u32) -> u32 {
        self.fetch_add(n, Ordering::AcqRel)
    }
    #[inline]
    fn pause() {
        core::hint::spin_loop();
    }
}

/// The lock without what it guards. Its words are 0 at the start.
#[derive(Debug)]
pub struct Raw<W> {
    /// Somebody has it.
    pub held: W,
    /// How many wait.
    pub waiting: W,
    /// Numbers given to those, and how many were served.
    pub numbers: W,
    /// See `numbers`.
    pub served: W,
}

impl<W: Word> Raw<W> {
    /// Waits for the lock and takes it. One that waits is patient with those before it for so many looks.
    #[inline]
    pub fn lock(&self, patience: impl FnOnce() -> u32) {
        // Who was between these two when somebody began to wait is the only one to come before.
        if self.waiting.load() != 0 || !self.held.take() {
            self.wait(patience());
        }
    }

    #[cold]
    #[inline(never)]
    fn wait(&self, patience: u32) {
        self.waiting.add(1);
        let number = self.numbers.add(1);
        let mut looks = 0;
        // As many were served as came before, or more, if others lost their patience.
        while self.served.load().wrapping_sub(number) > u32::MAX / 2 && looks != patience {
            W::pause();
            looks = looks.saturating_add(1);
        }
        while self.held.load() != 0 || !self.held.take() {
            W::pause();
        }
        self.served.add(1);
        self.waiting.add(u32::MAX);
    }

    /// Gives the lock back.
    #[inline]
    pub fn unlock(&self) {
        self.held.store(0);
    }
}

/// For [`Lock`]: how often a CPU looks before it no longer lets others go first. 16: as if CPUs were threads of a host, which
/// stops them.
static PATIENCE: AtomicU32 = AtomicU32::new(16);

/// The CPUs are real: nobody is stopped who is next, and the order is kept.
pub fn cpus_are_real() {
    PATIENCE.store(u32::MAX, Ordering::Relaxed);
}

/// A value, and the lock that guards it.
pub struct Lock<T> {
    raw: Raw<AtomicU32>,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by one CPU at a time, so that it is sent from one to the next.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    /// Free.
    pub const fn new(value: T) -> Self {
        Self {
            raw: Raw {
                held: AtomicU32::new(0),
                waiting: AtomicU32::new(0),
                numbers: AtomicU32::new(0),
                served: AtomicU32::new(0),
            },
            value: UnsafeCell::new(value),
        }
    }

    /// Waits for the value.
    #[inline]
    pub fn lock(&self) -> Guard<'_, T> {
        self.raw.lock(|| PATIENCE.load(Ordering::Relaxed));
        Guard { lock: self }
    }

    /// Makes it free whoever has it.
    ///
    /// # Safety
    /// Whoever has it does not use the value any more, or what comes of two who use it does not matter.
    pub unsafe fn force_unlock(&self) {
        // Nor is anybody waited for who has stopped.
        PATIENCE.store(16, Ordering::Relaxed);
        self.raw.unlock();
    }
}

/// The value of a [`Lock`], until it is dropped.
pub struct Guard<'a, T> {
    lock: &'a Lock<T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: only who has the lock has a guard.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above; the guard is borrowed exclusively.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.raw.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicBool;

    #[test]
    fn one_at_a_time() {
        static LOCK: Lock<(u64, u64)> = Lock::new((0, 0));
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..20_000 {
                        let mut v = LOCK.lock();
                        v.0 += 1;
                        let n = v.0;
                        v.1 = n;
                    }
                });
            }
        });
        assert_eq!(*LOCK.lock(), (80_000, 80_000));
        assert_eq!(LOCK.raw.waiting.load(Ordering::Relaxed), 0);
    }

    /// While somebody waits, who had the lock last does not get it again and again.
    #[test]
    fn who_waits_comes_before_who_had_it() {
        static LOCK: Lock<u32> = Lock::new(0);
        static DONE: AtomicBool = AtomicBool::new(false);
        let most = std::thread::scope(|s| {
            let mut v = LOCK.lock();
            s.spawn(|| {
                LOCK.raw.lock(|| u32::MAX);
                DONE.store(true, Ordering::Relaxed);
                LOCK.raw.unlock();
            });
            while LOCK.raw.waiting.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            let mut most = 0;
            while !DONE.load(Ordering::Relaxed) {
                drop(v);
                LOCK.raw.lock(|| u32::MAX);
                v = Guard { lock: &LOCK };
                most += 1;
            }
            drop(v);
            most
        });
        assert_eq!(most, 1);
    }
}
