// SPDX-License-Identifier: MIT OR Apache-2.0
//! State of the whole program.

use core::cell::{RefCell, RefMut};

/// A value in a `static`. There is one CPU and no interrupt handler, so that a borrow can only
/// meet one of its own callers, which `RefCell` sees.
pub struct Global<T>(RefCell<T>);

// SAFETY: one CPU runs this program, and interrupts are never taken (see the crate's text), so
// that no two threads of control exist. With feature `probe` an interrupt's handler runs to its end
// between two instructions: it gives back what it borrowed, or panics at what is borrowed; and the
// second CPU uses no `Global`. Nor do tests on a host.
unsafe impl<T> Sync for Global<T> {}

impl<T> Global<T> {
    /// With a first value.
    pub const fn new(value: T) -> Self {
        Self(RefCell::new(value))
    }
    /// The value, for as long as the guard lives.
    ///
    /// # Panics
    /// If a caller holds it already.
    pub fn lock(&self) -> RefMut<'_, T> {
        self.0.borrow_mut()
    }
    /// The value, or `None` if a caller holds it already.
    pub fn try_lock(&self) -> Option<RefMut<'_, T>> {
        self.0.try_borrow_mut().ok()
    }
}
