// SPDX-License-Identifier: MIT OR Apache-2.0
//! Xen's paravirtual devices for a kernel in Rust, on any hypervisor with Xen's arm64 guest ABI.
//!
//! * [`console`]: the PV console, a sink for `log`, and a way to print a panic.
//! * [`xenstore`]: the client of the store: requests, transactions, watches.
//! * [`xenbus`]: the life of a device's front end.
//! * [`blk`] is for disks, [`net`] for networks.
//! * [`balloon`] gives memory back and takes it again as the toolstack wants.
//! * [`shutdown`] tells when the domain shall power off, restart, or be suspended, and what to do then.
//!
//! # What the kernel brings
//!
//! One value that implements [`Platform`]: hypercalls, pages to share, a clock, and sleeping until an
//! event comes. The kernel's own interrupt handler, page allocator and address translation stay as they
//! are; nothing here is global, and nothing here is `unsafe`.
//!
//! # How to call it
//!
//! Each front end is a state machine that moves when it is called. There are three ways:
//!
//! * **poll**: call `poll` or `handle_event` when its event channel fired, then look.
//! * **wait**: blocking calls take a *deadline* (nanoseconds of [`Platform::now`]) and end with
//!   [`Error::TimedOut`] when it has passed, whatever the other end does.
//! * **async**: futures of `core`, for any executor. They wake when `handle_event` is called after an event;
//!   a future that is dropped takes its request back. The deadline is the executor's matter.
//!
//! A front end is for one thread of control at a time (its types are not `Sync`), and is not to be called
//! from an interrupt handler that may interrupt a call to it: the handler should note the port and wake whoever
//! then calls.
//!
//! # The other end
//!
//! The back end may restart, misbehave or vanish at any time. What it writes is checked; the answer to
//! nonsense is an [`Error`], never a panic, and nothing waits for it without a deadline.
//!
//! # Memory
//!
//! The console needs no allocator. All else needs `alloc` (feature `alloc`, on by default), in bounded amounts:
//! each item says what.
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

#[cfg(feature = "alloc")]
extern crate alloc;

/// `Debug` that shows the name alone and asks nothing of the platform.
macro_rules! opaque {
    ($($name:ident<$($life:lifetime,)? P>),* $(,)?) => {$(
        impl<$($life,)? P: crate::Platform> core::fmt::Debug for $name<$($life,)? P> {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    )*};
}

#[cfg(feature = "alloc")]
pub mod balloon;
#[cfg(feature = "alloc")]
pub mod blk;
pub mod console;
mod error;
#[cfg(feature = "alloc")]
pub mod net;
mod platform;
#[cfg(feature = "alloc")]
mod share;
#[cfg(feature = "alloc")]
pub mod shutdown;
#[cfg(feature = "alloc")]
pub mod xenbus;
#[cfg(feature = "alloc")]
pub mod xenstore;

pub use error::Error;
pub use guest_abi;
pub use platform::{Pages, Platform, block_on};

/// The README's example is compiled.
#[cfg(all(doctest, feature = "alloc"))]
#[doc = include_str!("../README.md")]
mod readme {}
