// SPDX-License-Identifier: MIT OR Apache-2.0
//! Xen's public Arm64 guest ABI in typed Rust, with the values of Xen 4.17.
//!
//! One module for each public header: numbers, structures whose size and field offsets are checked
//! against a measured table, and helpers. [`call`] holds the `hvc` instruction, the crate's only
//! `unsafe`; [`calls`] wraps every hypercall over the [`Hypercall`] trait, which tests implement
//! with a fake. [`io`] has the device protocols and the index algebra of their rings, for both ends.
//!
//! Guest handles (pointers) are `u64`; every structure can be read from and written as bytes
//! (`zerocopy`), so that the side which answers copies it in once and out once.
#![no_std]
#![deny(missing_docs, unsafe_code)]

#[macro_use]
mod macros;

pub mod arch;
pub mod call;
pub mod calls;
pub mod console;
#[cfg(feature = "toolstack")]
pub mod domctl;
pub mod errno;
pub mod event_channel;
pub mod events;
#[cfg(feature = "fdt")]
pub mod fdt;
pub mod grant_table;
pub mod grants;
pub mod hvm;
pub mod hypercall;
pub mod io;
pub mod layout;
pub mod mem;
pub mod memory;
pub mod physdev;
pub mod platform;
pub mod psci;
pub mod sched;
#[cfg(feature = "toolstack")]
pub mod sysctl;
pub mod types;
pub mod vcpu;
pub mod version;
pub mod xen;

pub use call::{Hypercall, Lent, Smccc};
pub use errno::Errno;
pub use hypercall::HypercallNr;
pub use types::{DomId, Gfn, GrantRef, Mfn, Port};

/// Size of a page of the ABI, in bytes: 4 KiB whatever the guest's own page size is.
pub const PAGE_SIZE: usize = 4096;
/// Binary logarithm of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// The README's example is compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
