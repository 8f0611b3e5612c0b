// SPDX-License-Identifier: MIT OR Apache-2.0
//! xl-style configuration, the life cycle of domains with undo, and the `vane` command line.
//!
//! [`host::Host`] is what this crate needs of the control domain that it runs in. Over one,
//! [`life::Toolstack`] holds all operations on domains: [`life::Toolstack::start`] once at boot,
//! [`life::Toolstack::reap`] whenever a domain may have stopped. [`cli::run`] runs one line of the
//! command line over it, [`cli::complete`] and [`editor::Editor`] make it a prompt.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

extern crate alloc;

pub mod cli;
pub mod config;
pub mod editor;
pub mod error;
pub mod extents;
#[cfg(test)]
mod fake;
pub mod host;
pub mod life;
mod race;
pub mod terminal;
mod text;
