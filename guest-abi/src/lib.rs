// SPDX-License-Identifier: MIT OR Apache-2.0
//! Xen's public Arm64 guest ABI in typed Rust.
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

pub mod errno;
pub mod types;

pub use errno::Errno;
pub use types::{DomId, Gfn, GrantRef, Mfn, Port};
