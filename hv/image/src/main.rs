// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor image: `hv-aarch64` holds the entry; this crate only links it.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
use hv_aarch64 as _;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("the hypervisor runs on aarch64 only: use `cargo xtask run`");
}
