// SPDX-License-Identifier: MIT OR Apache-2.0
//! Room on the heap. All of it is taken when a domain is made, for the most that its limits allow: nothing that
//! a guest or the toolstack does with it later asks the heap for more.

use crate::types::Errno;
use alloc::vec::Vec;

/// Makes room for `n` more elements.
///
/// # Errors
/// `ENOMEM`.
#[cold]
pub fn reserve<T>(v: &mut Vec<T>, n: usize) -> Result<(), Errno> {
    may_fail()?;
    v.try_reserve_exact(n).map_err(|_| Errno::ENOMEM)
}

/// Where every allocation passes, of the heap and of machine pages, for tests to have it fail.
///
/// # Errors
/// `ENOMEM`.
#[cfg(not(feature = "inject"))]
#[inline(always)]
pub fn may_fail() -> Result<(), Errno> {
    Ok(())
}

#[cfg(feature = "inject")]
pub use inject::{fail_after, may_fail};

#[cfg(feature = "inject")]
mod inject {
    use super::Errno;
    use std::cell::Cell;

    std::thread_local! {
        static LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
    }

    /// Has the allocation after `n` more ones fail on this thread, and those after it succeed; `u64::MAX`: none
    /// fails. Gives what was left of the call before: `u64::MAX` after its failure.
    pub fn fail_after(n: u64) -> u64 {
        LEFT.replace(n)
    }

    /// Where every allocation passes.
    ///
    /// # Errors
    /// `ENOMEM` as [`fail_after`] says.
    pub fn may_fail() -> Result<(), Errno> {
        match LEFT.get() {
            u64::MAX => Ok(()),
            0 => {
                LEFT.set(u64::MAX);
                Err(Errno::ENOMEM)
            }
            n => {
                LEFT.set(n.saturating_sub(1));
                Ok(())
            }
        }
    }
}
