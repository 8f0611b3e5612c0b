// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's policy on a simulated machine.
//!
//! [`Machine`] is RAM, caches of translations and register files; [`World`] is a machine with a
//! hypervisor and a control domain on it; a [`Guest`] is one virtual CPU that reads and writes its
//! memory through the real stage-2 tables and makes hypercalls with the structures of the ABI.
//!
//! The machine is strict. It panics when the hypervisor touches a page that is free, and
//! [`World::check`] panics when a page has two owners, when a mapping lacks its reference, or when
//! a translation cache still holds what the tables no longer say.
#![forbid(unsafe_code)]

mod machine;
mod stage1;
mod toolstack;
mod world;

pub use machine::{Leaf, Machine, POISON};
pub use toolstack::{Config, DomU, WINDOW};
pub use world::{Guest, Totals, World};
