// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tries what a hypervisor with this ABI does, case by case, good input and bad. The same image runs
//! on every such hypervisor; what the real Xen does is the expectation (docs/CONFORMANCE.md).
//!
//! Command line: `own=1 peer=2`, with `spare=1` to leave out what makes a vcpu of Xen 4.17 fault for
//! ever; the peer being a second domain with `peer=1 role=peer`. With `role=race` and
//! a second one with `role=racer` both make and bind channels to each other at the same time. With `role=served` it tries what a control domain
//! serves, on the PV console. Prints a line
//! `case NAME = RESULT` for each case, then `conformance: done`. A result is what a guest can see: a
//! return value, an error's name, an exception's syndrome, an effect. It never holds an address, a
//! time or a size that differs from run to run.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
el1::entry!(guest::main);

#[cfg(target_os = "none")]
mod guest;
