// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the test guests share: the kernel's side of `pv-frontends`, a console on whatever there is, and a prompt.
//! On a host there are checksums alone.
#![no_std]
#![forbid(unsafe_code)]

pub mod crc;

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod bare {
    pub use crate::console::Console;
    pub use crate::control::Control;
    pub use crate::guest::{Guest, Store, disk_name};
    pub use crate::line::Line;
    pub use crate::platform::{Kernel, Mem};
    pub use crate::spare::Spare;
    pub use pv_frontends;
}

#[cfg(target_os = "none")]
pub use bare::*;

#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod control;
#[cfg(target_os = "none")]
mod guest;
#[cfg(target_os = "none")]
mod line;
#[cfg(target_os = "none")]
mod platform;
#[cfg(target_os = "none")]
mod spare;
