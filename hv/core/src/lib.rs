// SPDX-License-Identifier: MIT OR Apache-2.0
//! All policy of the hypervisor: ordinary safe Rust that runs whole on the host.
//!
//! One rule shapes everything here: an operation takes the state (`&mut`), a request and the
//! machine as a parameter ([`machine`]), and returns a reply plus effects; the shell
//! (`hv-aarch64`) holds the one hypervisor lock around it and applies the effects.
#![cfg_attr(not(any(test, feature = "inject")), no_std)]
#![forbid(unsafe_code)]
// What could not be done is looked at: `machine::Contended` above all.
#![deny(unused_must_use)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]
extern crate alloc;

pub mod abort;
pub mod console;
pub mod cpu;
pub mod domain;
pub mod errata;
pub mod event;
pub mod frame;
pub mod grant;
pub mod guest;
pub mod hypercall;
pub mod hypervisor;
pub mod last;
pub mod machine;
pub mod p2m;
pub mod psci;
pub mod rate;
pub mod room;
pub mod sched;
pub mod serror;
pub mod setway;
pub mod symbols;
pub mod sysreg;
pub mod timers;
pub mod types;
pub mod vgic;
pub mod vpl011;
pub mod vtimer;
