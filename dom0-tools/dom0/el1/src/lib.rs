// SPDX-License-Identifier: MIT OR Apache-2.0
//! The bare-metal layer under the control domain and the test guests: everything that has to be
//! `unsafe` there is here, behind functions that are safe to call.
//!
//! One CPU, and interrupts stay masked at the CPU for ever. A program runs to the end of what it
//! has to do, asks `gic::poll` what has come up meanwhile, and sleeps in `cpu::idle`, which a
//! pending interrupt ends although it is masked. So nothing here is ever entered twice at a time,
//! and shared state needs no locks (`Global`).
//!
//! A program names its `fn(Machine) -> !` with `entry!`.
//!
//! On a host there are only the drivers of virtio devices, for their tests.
#![cfg_attr(not(test), no_std)]
#![cfg(any(target_os = "none", test))]
#![cfg_attr(test, allow(dead_code))]

extern crate alloc;

#[cfg(all(feature = "attack", target_os = "none"))]
pub mod attack;
#[cfg(target_os = "none")]
pub mod cpu;
#[cfg(target_os = "none")]
pub mod events;
#[cfg(target_os = "none")]
mod fault;
#[cfg(target_os = "none")]
pub mod gic;
mod global;
#[cfg(target_os = "none")]
pub mod heap;
#[cfg(target_os = "none")]
pub mod hvc;
#[cfg(target_os = "none")]
pub mod machine;
#[cfg(target_os = "none")]
pub mod mem;
#[cfg(target_os = "none")]
mod mmio;
#[cfg(target_os = "none")]
mod mmu;
pub mod pages;
#[cfg(target_os = "none")]
pub mod print;
#[cfg(all(feature = "probe", target_os = "none"))]
pub mod probe;
#[cfg(all(feature = "registers", target_os = "none"))]
pub mod registers;
mod reserve;
#[cfg(all(feature = "sdhci", target_os = "none"))]
pub mod sdhci;
pub mod shared;
#[cfg(target_os = "none")]
pub mod time;
#[cfg(any(feature = "virtio", test))]
pub mod virtio;

pub use global::Global;
#[cfg(target_os = "none")]
pub use machine::Machine;

/// Below this address, memory and devices are mapped where they are.
const LIMIT: u64 = 1 << 39;

#[cfg(target_os = "none")]
core::arch::global_asm!(include_str!("boot.s"), include_str!("bytes.s"));

/// Names the program's main function, `fn(el1::Machine) -> !`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        fn el1_main(machine: $crate::Machine) -> ! {
            let main: fn($crate::Machine) -> ! = $main;
            main(machine)
        }
    };
}

#[cfg(target_os = "none")]
unsafe extern "Rust" {
    safe fn el1_main(machine: Machine) -> !;
}

/// From `boot.s`: the MMU is on over a provisional map, `.bss` is clear.
#[cfg(target_os = "none")]
#[unsafe(no_mangle)]
extern "C" fn el1_start(dtb: usize, counter: u64) -> ! {
    time::init();
    let tree = machine::tree(dtb);
    print::early(&tree);
    mmu::init(&tree);
    heap::init(&tree, dtb);
    let machine = machine::read(&tree, counter);
    shared::init(&machine.memory);
    if let Some(h) = &machine.hypervisor {
        mem::init(h, &machine.memory);
    }
    gic::init(&machine.gic);
    el1_main(machine)
}
