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
#![no_std]
#![cfg(target_os = "none")]

extern crate alloc;

pub mod cpu;
pub mod events;
mod fault;
pub mod gic;
mod global;
pub mod heap;
pub mod hvc;
pub mod machine;
pub mod mem;

mod mmio;
mod mmu;
pub mod pages;
pub mod print;
#[cfg(feature = "probe")]
pub mod probe;
#[cfg(feature = "sdhci")]
pub mod sdhci;
pub mod shared;
pub mod time;
#[cfg(feature = "virtio")]
pub mod virtio;

pub use global::Global;
pub use machine::Machine;

core::arch::global_asm!(include_str!("boot.s"));

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

unsafe extern "Rust" {
    safe fn el1_main(machine: Machine) -> !;
}

/// From `boot.s`: the MMU is on over a provisional map, `.bss` is clear.
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
