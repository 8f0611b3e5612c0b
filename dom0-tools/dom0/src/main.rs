// SPDX-License-Identifier: MIT OR Apache-2.0
//! The control domain's image; all of it is in the library.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![forbid(unsafe_code)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
el1::entry!(dom0::main);
