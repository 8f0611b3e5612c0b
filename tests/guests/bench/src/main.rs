// SPDX-License-Identifier: MIT OR Apache-2.0
//! Counts what operations cost, by the virtual counter: under QEMU's `-icount shift=0` a nanosecond
//! is an instruction. The same image runs on every hypervisor with this ABI.
//!
//! Command line: `own=DOMID peer=DOMID`, the peer being a second domain with `echo=DOMID` (of the
//! first one) on the same CPU. Prints `row NAME TICKS TIMES` for each operation (loop included), then
//! `bench: done`.
//!
//! With `role=sends` it counts frames to a second domain, which has `role=answers`. Both are on the PV console.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
el1::entry!(guest::main);

#[cfg(target_os = "none")]
mod guest;

#[cfg(target_os = "none")]
mod spans;
