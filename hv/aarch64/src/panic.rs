// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end: a report with a call trace, then halt (or reset, with `panic=reboot` on the command
//! line).

use crate::console::panic_print;
use core::sync::atomic::{AtomicBool, Ordering};

/// Reset instead of halting.
pub static REBOOT: AtomicBool = AtomicBool::new(false);
static ONCE: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    static _head: u8;
    static _image_end: u8;
}

fn image() -> (u64, u64) {
    (
        core::ptr::addr_of!(_head) as u64,
        core::ptr::addr_of!(_image_end) as u64,
    )
}

/// Prints return addresses from the chain of frame records. They are relative to the image, as
/// `cargo xtask` resolves them against the ELF file.
fn trace(mut fp: u64) {
    let (start, end) = image();
    for _ in 0..32 {
        if fp < start || fp >= end || !fp.is_multiple_of(8) {
            break;
        }
        // SAFETY: inside the image, where the stacks are too, and aligned.
        let (next, ret) = unsafe { (*(fp as *const u64), *((fp + 8) as *const u64)) };
        if ret < start || ret >= end {
            break;
        }
        panic_print(format_args!("(PV)   image+{:#x}\n", ret - start));
        if next <= fp {
            break;
        }
        fp = next;
    }
}

fn finish(fp: u64) -> ! {
    if !ONCE.swap(true, Ordering::Relaxed) {
        panic_print(format_args!("(PV) call trace:\n"));
        trace(fp);
        if REBOOT.load(Ordering::Relaxed) {
            crate::run::power(hv_core::hypervisor::Power::Reset);
        }
        panic_print(format_args!("(PV) halted\n"));
    }
    crate::run::halt()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    panic_print(format_args!("\n(PV) hypervisor panic: {info}\n"));
    let fp: u64;
    // SAFETY: reads the frame pointer.
    unsafe { core::arch::asm!("mov {}, x29", out(reg) fp, options(nomem, nostack)) };
    finish(fp)
}

/// An exception taken from EL2 itself.
pub fn exception(kind: u64, esr: u64, pc: u64, far: u64, fp: u64) -> ! {
    let (start, _) = image();
    panic_print(format_args!(
        "\n(PV) hypervisor exception {kind}: esr {esr:#010x} pc image+{:#x} address {far:#x}\n",
        pc.wrapping_sub(start)
    ));
    finish(fp)
}
