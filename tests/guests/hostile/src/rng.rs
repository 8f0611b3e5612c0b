// SPDX-License-Identifier: MIT OR Apache-2.0
//! Numbers from a seed: SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).

/// A stream of numbers.
#[derive(Clone, Debug)]
pub struct Rng(u64);

const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// The stream of a seed, a vcpu and a number.
    #[must_use]
    pub const fn of(seed: u64, vcpu: u64, number: u64) -> Self {
        Self(mix(
            mix(seed ^ vcpu.wrapping_mul(0xd134_2543_de82_ef95)).wrapping_add(number)
        ))
    }

    /// The next one.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// One below `n`; 0 if that is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(n)) >> 64) as u64
    }

    /// Whether it is this time, of `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of these; 0 if there is none.
    pub fn pick(&mut self, of: &[u64]) -> u64 {
        of.get(self.below(of.len() as u64) as usize)
            .copied()
            .unwrap_or_default()
    }

    /// One at a border: of a power of two, of the whole range, of a page.
    pub fn border(&mut self) -> u64 {
        match self.below(6) {
            0 => self.pick(&[0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 63, 64]),
            1 => u64::MAX.wrapping_sub(self.below(16)),
            2 => (1u64 << self.below(64)).wrapping_sub(self.below(3)),
            3 => u64::from(u32::MAX).wrapping_sub(self.below(4)),
            4 => (self.below(1 << 12) << 12).wrapping_sub(self.below(17)),
            _ => self.draw(),
        }
    }
}
