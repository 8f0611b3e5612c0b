// SPDX-License-Identifier: MIT OR Apache-2.0
//! The built-in control domain. `el1` has what touches the machine; everything here is safe Rust:
//! async tasks on one executor, asleep when there is nothing to do.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod base64;
pub mod exec;
pub mod fat;
pub mod ip;
pub mod sd;
pub mod status;

#[cfg(target_os = "none")]
mod blk;
#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
mod card;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod device;
#[cfg(target_os = "none")]
mod disk;
#[cfg(target_os = "none")]
mod host;
#[cfg(target_os = "none")]
mod net;
#[cfg(target_os = "none")]
mod own;
#[cfg(target_os = "none")]
mod prompt;
#[cfg(target_os = "none")]
mod rt;
#[cfg(target_os = "none")]
mod terminal;
#[cfg(target_os = "none")]
mod xs;

#[cfg(target_os = "none")]
pub use boot::main;
