// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an opened file is: a piece of a device, whatever names lead to it.

use alloc::vec::Vec;

use crate::host::Errno;

/// Sectors of a device. There is no way to one from a path but by opening the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extents {
    device: u32,
    /// First sectors and how many, ascending.
    runs: Vec<(u64, u64)>,
}

impl Extents {
    /// Pieces of a device, each its first sector and how many there are, in any order.
    ///
    /// # Errors
    /// [`Errno::ENOMEM`].
    pub fn new(device: u32, pieces: impl Iterator<Item = (u64, u64)>) -> Result<Self, Errno> {
        let mut runs = Vec::new();
        for (first, sectors) in pieces.filter(|p| p.1 > 0) {
            runs.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
            runs.push((first, sectors));
        }
        runs.sort_unstable();
        Ok(Self { device, runs })
    }

    /// Whether a sector is in both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let (mut mine, mut theirs) = (self.runs.iter(), other.runs.iter());
        let (mut a, mut b) = (mine.next(), theirs.next());
        while self.device == other.device
            && let (Some(x), Some(y)) = (a, b)
        {
            if x.0.saturating_add(x.1) <= y.0 {
                a = mine.next();
            } else if y.0.saturating_add(y.1) <= x.0 {
                b = theirs.next();
            } else {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(device: u32, runs: &[(u64, u64)]) -> Extents {
        Extents::new(device, runs.iter().copied()).unwrap()
    }

    #[test]
    fn what_overlaps() {
        let a = of(1, &[(40, 8), (0, 8), (16, 0)]);
        for (b, same) in [
            (of(1, &[(0, 1)]), true),
            (of(1, &[(47, 100)]), true),
            (of(1, &[(8, 32), (48, 1)]), false),
            (of(1, &[(8, 33)]), true),
            (of(1, &[(20, 1), (30, 1), (44, 1)]), true),
            (of(2, &[(0, 48)]), false),
            (of(1, &[(u64::MAX, 9)]), false),
            (of(1, &[]), false),
        ] {
            assert_eq!((a.overlaps(&b), b.overlaps(&a)), (same, same), "{b:?}");
        }
        assert!(a.overlaps(&a));
    }
}
