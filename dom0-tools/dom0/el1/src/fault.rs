// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end: a report, and the domain is marked as crashed.

use crate::{cpu, hvc, println};
use core::panic::PanicInfo;
use guest_abi::sched::ShutdownReason;

/// As `boot.s` lays it out.
#[repr(C)]
struct Frame {
    x: [u64; 31],
    sp: u64,
    elr: u64,
    spsr: u64,
    esr: u64,
    far: u64,
}

fn image_base() -> u64 {
    unsafe extern "C" {
        static __image_start: u8;
    }
    &raw const __image_start as u64
}

fn end() -> ! {
    hvc::shutdown(ShutdownReason::Crash);
    hvc::psci_off();
    loop {
        cpu::idle();
    }
}

#[unsafe(no_mangle)]
extern "C" fn el1_fault(frame: &Frame) -> ! {
    let what = match frame.esr >> 26 {
        0 => "unknown instruction",
        0x15 => "supervisor call",
        0x20 | 0x21 => "instruction abort",
        0x24 | 0x25 => "data abort",
        0x22 => "misaligned program counter",
        0x26 => "misaligned stack",
        0x2f => "system error",
        _ => "exception",
    };
    let base = image_base();
    println!("fault: {what}, esr {:#x} far {:#x}", frame.esr, frame.far);
    println!(
        "  pc {:#x} (image + {:#x}) sp {:#x} spsr {:#x}",
        frame.elr,
        frame.elr.wrapping_sub(base),
        frame.sp,
        frame.spsr
    );
    // Three to a line, which fits what the hypervisor lets a guest print.
    for (i, three) in frame.x.chunks(3).enumerate() {
        let mut line = alloc::string::String::new();
        for (j, v) in three.iter().enumerate() {
            let _ = core::fmt::write(&mut line, format_args!("  x{:<2} {v:016x}", i * 3 + j));
        }
        println!("{line}");
    }
    end()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("{info}");
    end()
}
