// SPDX-License-Identifier: MIT OR Apache-2.0
//! The mechanism under the policy: the only assembly and system registers of the hypervisor.
//!
//! The way of a hypercall: `lower_sync` in entry.s saves x0..x18, x29, x30 and calls `hv_hvc`
//! (trap.rs), which takes the lock and calls `hv_core::hypercall`; x0 holds the answer, and
//! entry.s returns to the guest. Only when that asks for it does `resume` in run.rs look who runs.
#![no_std]
#![cfg(target_arch = "aarch64")]

extern crate alloc;

mod boot;
mod console;
mod heap;
mod last;
mod mach;
mod mmu;
mod panic;
mod run;
mod trap;
mod vcpu;

core::arch::global_asm!(include_str!("entry.s"), options(raw));
