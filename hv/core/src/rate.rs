// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ticks of the counter and nanoseconds.

/// A counter's rate, as factors: to divide numbers of 128 bits would cost hundreds of instructions
/// each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    ns_per_tick: Factor,
    ticks_per_ns: Factor,
}

/// A whole number and what is left, in units of 2^-64, rounded up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Factor {
    whole: u64,
    part: u64,
}

impl Factor {
    /// `a / b`; `b` is not 0.
    #[allow(clippy::arithmetic_side_effects)]
    const fn new(a: u64, b: u64) -> Self {
        // Bit by bit: once, at boot, and the compiler's division of 128 bits has a kilobyte.
        let (mut left, mut part, mut bits) = (a % b, 0u64, 64);
        while bits != 0 {
            let twice = (left as u128) << 1;
            part <<= 1;
            if twice >= b as u128 {
                left = (twice - b as u128) as u64;
                part |= 1;
            } else {
                left = twice as u64;
            }
            bits -= 1;
        }
        Self {
            whole: a / b,
            // A rest below `b` is at most 1 - 1/b, so that there is room.
            part: part + (left != 0) as u64,
        }
    }

    #[inline]
    fn times(self, n: u64) -> u64 {
        // 64 bits by 64 bits are 128 at most.
        let part = (u128::from(n).wrapping_mul(u128::from(self.part)) >> 64) as u64;
        n.saturating_mul(self.whole).saturating_add(part)
    }
}

impl Rate {
    /// Of a counter with `hz` ticks per second (0 counts as 1).
    #[must_use]
    pub const fn new(hz: u64) -> Self {
        const NS: u64 = 1_000_000_000;
        let hz = if hz == 0 { 1 } else { hz };
        Self {
            ns_per_tick: Factor::new(NS, hz),
            ticks_per_ns: Factor::new(hz, NS),
        }
    }

    /// Nanoseconds that so many ticks take, rounded down.
    #[inline]
    #[must_use]
    pub fn ns(&self, ticks: u64) -> u64 {
        self.ns_per_tick.times(ticks)
    }

    /// Ticks in so many nanoseconds, rounded down.
    #[inline]
    #[must_use]
    pub fn ticks(&self, ns: u64) -> u64 {
        self.ticks_per_ns.times(ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_rates() {
        let qemu = Rate::new(62_500_000);
        assert_eq!((qemu.ns(1), qemu.ticks(16), qemu.ticks(31)), (16, 1, 1));
        let pi = Rate::new(54_000_000);
        assert_eq!(pi.ns(54_000_000), 1_000_000_000);
        assert_eq!(pi.ticks(1_000_000_000), 54_000_000);
        let fast = Rate::new(1_000_000_000);
        assert_eq!((fast.ns(7), fast.ticks(u64::MAX)), (7, u64::MAX));
        assert_eq!(Rate::new(0).ns(1), 1_000_000_000);
        assert_eq!(Rate::new(u64::MAX).ticks(u64::MAX), u64::MAX);
    }

    proptest! {
        /// As exact division gives it, for the first decades of an uptime.
        #[test]
        fn exact(hz in 1_000_000u64..4_000_000_000, n in 0u64..1 << 60) {
            let exact = |n: u64, a: u64, b: u64| {
                u64::try_from(u128::from(n) * u128::from(a) / u128::from(b)).unwrap_or(u64::MAX)
            };
            let near = |a: u64, b: u64| a == b || a == b.saturating_add(1);
            let rate = Rate::new(hz);
            prop_assert!(near(rate.ns(n), exact(n, 1_000_000_000, hz)));
            prop_assert!(near(rate.ticks(n), exact(n, hz, 1_000_000_000)));
        }
    }
}
