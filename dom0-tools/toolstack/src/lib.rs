// SPDX-License-Identifier: MIT OR Apache-2.0
//! xl-style configuration, the life cycle of domains with undo, and the `vane` command line.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod cli;
pub mod config;
pub mod editor;
pub mod error;
#[cfg(test)]
mod fake;
pub mod host;
pub mod life;
mod race;
mod text;
