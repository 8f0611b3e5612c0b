// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's own output, and the log of the `log` crate on it.

use core::fmt::Write;
use core::sync::atomic::{AtomicUsize, Ordering};
use platform::dt::UartInfo;
use platform::uart::Uart;
use spin::Once;
use spin::mutex::SpinMutex;

static UART: Once<SpinMutex<Uart>> = Once::new();
/// Bytes printed by the hypervisor itself, kept for `dmesg` until the log takes them over.
static EARLY: SpinMutex<Early> = SpinMutex::new(Early {
    len: 0,
    bytes: [0; 4096],
});
static LOST: AtomicUsize = AtomicUsize::new(0);

struct Early {
    len: usize,
    bytes: [u8; 4096],
}

/// Starts output.
///
/// # Safety
/// `info` describes a UART whose registers are mapped at their physical address, as Device memory.
pub unsafe fn init(info: &UartInfo) {
    // SAFETY: the contract above.
    let uart = unsafe { Uart::new(info, info.regs.base as usize) };
    uart.init();
    UART.call_once(|| SpinMutex::new(uart));
    let _ = log::set_logger(&Logger);
    log::set_max_level(log::LevelFilter::Info);
}

/// Sends bytes; a line feed gets its carriage return.
pub fn put(bytes: &[u8]) {
    if let Some(u) = UART.get() {
        let u = u.lock();
        for &b in bytes {
            if b == b'\n' {
                u.put(b'\r');
            }
            u.put(b);
        }
    }
}

/// Works on the UART, for its interrupt.
pub fn with_uart<R>(f: impl FnOnce(&Uart) -> R) -> Option<R> {
    UART.get().map(|u| f(&u.lock()))
}

/// Moves what was printed since the last call into the log.
pub fn drain(mut to: impl FnMut(&[u8])) {
    let mut e = EARLY.lock();
    to(&e.bytes[..e.len]);
    e.len = 0;
}

struct Out;
impl Write for Out {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        put(s.as_bytes());
        let mut e = EARLY.lock();
        for &b in s.as_bytes() {
            let at = e.len;
            if at == e.bytes.len() {
                LOST.fetch_add(1, Ordering::Relaxed);
                break;
            }
            e.bytes[at] = b;
            e.len += 1;
        }
        Ok(())
    }
}

struct Logger;
impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, r: &log::Record<'_>) {
        let _ = writeln!(Out, "(PV) {}", r.args());
    }
    fn flush(&self) {}
}

/// For a panic: prints without waiting for whoever holds the UART.
pub fn panic_print(args: core::fmt::Arguments<'_>) {
    if let Some(u) = UART.get() {
        // SAFETY: the machine is about to stop; a garbled line is better than none.
        unsafe { u.force_unlock() };
    }
    // SAFETY: as above.
    unsafe { EARLY.force_unlock() };
    let _ = Out.write_fmt(args);
}
