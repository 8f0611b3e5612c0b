// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end: a report with a call trace, then [`crate::last`].

use crate::console::panic_print;
use crate::run;
use core::sync::atomic::{AtomicBool, Ordering, fence};

/// A CPU panicked.
static ONCE: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    static _head: u8;
    static __symbols: u8;
    static __symbols_end: u8;
}

/// Whether a CPU panicked: all are to stop then.
pub fn happened() -> bool {
    ONCE.load(Ordering::Relaxed)
}

/// Where the image begins and ends, as its header says: its end is farther away than code can name.
pub fn image() -> (u64, u64) {
    let start = &raw const _head;
    // SAFETY: the third of the header's double words, which the image begins with.
    let size = unsafe { start.add(16).cast::<u64>().read() };
    (start as u64, start as u64 + size)
}

/// Prints an address as a place in the image, with the name of its function: that of the byte `back`
/// bytes before, as a call may be its function's last instruction.
fn place(what: &str, at: u64, back: u32) {
    let (start, _) = image();
    let offset = at.wrapping_sub(start);
    // SAFETY: the linker script's room for the table, which is part of the read-only image.
    let table = unsafe {
        let first = &raw const __symbols;
        let end = &raw const __symbols_end;
        core::slice::from_raw_parts(first, end as usize - first as usize)
    };
    let place = u32::try_from(offset).map_or(0, |o| o.saturating_sub(back));
    match hv_core::symbols::find(table, place) {
        Some((name, within)) => {
            let within = within + back;
            panic_print(format_args!(
                "(PV) {what}{name}+{within:#x} (image+{offset:#x})\n"
            ));
        }
        None => panic_print(format_args!("(PV) {what}image+{offset:#x}\n")),
    }
}

/// Prints return addresses from the chain of frame records.
fn trace(mut fp: u64) {
    let (start, end) = image();
    for _ in 0..32 {
        if fp < start || fp > end - 16 || !fp.is_multiple_of(8) {
            break;
        }
        // SAFETY: inside the image, where the stacks are too, and aligned.
        let (next, ret) = unsafe { (*(fp as *const u64), *((fp + 8) as *const u64)) };
        if ret < start || ret >= end {
            break;
        }
        place("  ", ret, 1);
        if next <= fp {
            break;
        }
        fp = next;
    }
}

/// Whether `cpu` is the one that ends the run. The others stop then where they are: in a guest, or waiting for the lock
/// for ever.
pub fn first(cpu: hv_core::types::CpuId) -> bool {
    let first = !ONCE.swap(true, Ordering::Relaxed);
    if first {
        // A CPU that is not online yet sees it when it is.
        fence(Ordering::SeqCst);
        if run::FIXED.get().is_some() {
            run::send_kicks(u64::MAX, cpu);
        }
    }
    first
}

/// The end on the CPU that was at `sp`.
fn finish(fp: u64, sp: u64) -> ! {
    if first(crate::boot::cpu_at(sp.wrapping_sub(1))) {
        panic_print(format_args!("(PV) call trace:\n"));
        trace(fp);
        crate::last::end(hv_core::last::Why::Panic);
    }
    run::halt()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    panic_print(format_args!("\n(PV) hypervisor panic: {info}\n"));
    let fp: u64;
    // SAFETY: reads the frame pointer.
    unsafe { core::arch::asm!("mov {}, x29", out(reg) fp, options(nomem, nostack)) };
    finish(fp, fp)
}

/// What entry.s's vectors of EL2 itself are for.
const KINDS: [&str; 4] = ["synchronous", "IRQ", "FIQ", "SError"];

/// An exception taken from EL2 itself, when its stack was at `sp`.
pub fn exception(kind: u64, esr: u64, pc: u64, far: u64, fp: u64, sp: u64) -> ! {
    let name = KINDS.get(kind as usize & 3).copied().unwrap_or("");
    let what = match crate::boot::is_guard(far & !4095) && kind & 3 == 0 {
        true => ": the stack is used up",
        false => "",
    };
    panic_print(format_args!(
        "\n(PV) hypervisor exception {kind} ({name}): esr {esr:#010x} address {far:#x}{what}\n"
    ));
    place("at ", pc, 0);
    finish(fp, sp)
}
