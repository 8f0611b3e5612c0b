// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where words go before there is a console, and when everything else fails.

use crate::{Global, hvc, machine, mmio};
use core::fmt;
use dtoolkit::fdt::Fdt;

#[derive(Clone, Copy)]
enum Sink {
    None,
    /// The hypervisor's console (`HYPERVISOR_console_io`).
    Hypervisor,
    /// A PL011's address.
    Uart(u64),
}

static SINK: Global<Sink> = Global::new(Sink::None);

/// Under a hypervisor its console, which a guest may be refused; else a UART.
pub(crate) fn early(tree: &Fdt<'_>) {
    let uart = machine::uart(tree);
    let sink = if tree.find_node("/hypervisor").is_some() && hvc::console_write(b"") {
        Sink::Hypervisor
    } else if let Some(base) = uart {
        Sink::Uart(base)
    } else {
        Sink::None
    };
    *SINK.lock() = sink;
}

/// From here on a PL011 at this address, for a program that is told to use it.
pub fn to_uart(base: u64) {
    *SINK.lock() = Sink::Uart(base);
}

/// Whether there is anything to write to.
#[must_use]
pub fn available() -> bool {
    !matches!(*SINK.lock(), Sink::None)
}

/// Writes bytes, waiting until they are out.
pub fn write(bytes: &[u8]) {
    let Some(sink) = SINK.try_lock() else { return };
    match *sink {
        Sink::None => {}
        Sink::Hypervisor => {
            for part in bytes.chunks(1024) {
                hvc::console_write(part);
            }
        }
        Sink::Uart(base) => {
            for &b in bytes {
                // SAFETY: a PL011's flag and data registers, per the device tree.
                unsafe {
                    while mmio::read32(base + 0x18) & 1 << 5 != 0 {}
                    mmio::write32(base, u32::from(b));
                }
            }
        }
    }
}

/// A byte from the UART, if that is the console and one is there.
#[must_use]
pub fn uart_byte() -> Option<u8> {
    let Sink::Uart(base) = *SINK.lock() else {
        return None;
    };
    // SAFETY: a PL011's flag and data registers, per the device tree.
    unsafe { (mmio::read32(base + 0x18) & 1 << 4 == 0).then(|| mmio::read32(base) as u8) }
}

/// Has the UART raise its interrupt when bytes arrive.
pub fn uart_interrupts() {
    if let Sink::Uart(base) = *SINK.lock() {
        // SAFETY: a PL011's control and interrupt mask registers: receive, and receive time-out.
        unsafe {
            mmio::write32(base + 0x30, 0x301);
            mmio::write32(base + 0x38, 1 << 4 | 1 << 6);
        }
    }
}

/// [`write()`] as a [`fmt::Write`].
pub struct Writer;

impl fmt::Write for Writer {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for (i, line) in s.split('\n').enumerate() {
            if i > 0 {
                write(b"\r\n");
            }
            write(line.as_bytes());
        }
        Ok(())
    }
}

/// Prints a line to the early console.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => {{
        let _ = core::fmt::Write::write_fmt(
            &mut $crate::print::Writer, format_args!("{}\n", format_args!($($arg)*)));
    }};
}
