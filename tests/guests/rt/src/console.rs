// SPDX-License-Identifier: MIT OR Apache-2.0
//! The console: the PV ring, else the hypervisor's own, else a UART; with `console=uart` on the command line the UART
//! though there are others.

use crate::Kernel;
use alloc::collections::VecDeque;
use core::fmt;
use el1::{Machine, gic, print};
use pv_frontends::{Platform, console};

/// The PL011's SPI in a guest's tree is told by nobody here: this is QEMU's and Xen's.
const UART_INTIDS: [u32; 2] = [32, 33];
/// How long the other end may take to make room, in nanoseconds: it may be gone.
const TIMEOUT_NS: u64 = 1_000_000_000;

/// The console.
pub struct Console {
    kernel: &'static Kernel,
    pv: Option<console::Console<&'static Kernel>>,
    uart: bool,
    input: VecDeque<u8>,
}

impl Console {
    pub(crate) fn open(machine: &Machine, kernel: &'static Kernel) -> Self {
        let wanted = machine.bootargs.split(' ').any(|w| w == "console=uart");
        let uart = machine.uart.filter(|_| wanted);
        if let Some(base) = uart {
            print::to_uart(base);
        }
        let pv = (kernel.events() && uart.is_none())
            .then(|| console::Console::open(kernel).ok())
            .flatten();
        if pv.is_none() && machine.uart.is_some() {
            print::uart_interrupts();
            for intid in UART_INTIDS {
                gic::enable(intid, gic::Trigger::Level);
            }
        }
        Self {
            kernel,
            pv,
            uart: uart.is_some(),
            input: VecDeque::new(),
        }
    }

    /// What it is, for people.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        if self.pv.is_some() {
            "PV ring"
        } else if self.uart {
            "UART"
        } else {
            "early console"
        }
    }

    /// The next byte of input, if one is there.
    pub fn byte(&mut self) -> Option<u8> {
        let Some(pv) = &self.pv else {
            return self.kernel.uart_byte();
        };
        if self.input.is_empty() {
            let mut buffer = [0; 256];
            let n = pv.try_read(&mut buffer).unwrap_or(0);
            self.input.extend(&buffer[..n]);
        }
        self.input.pop_front()
    }

    /// Writes bytes; waits for room, a second at most.
    pub fn write(&mut self, bytes: &[u8]) {
        match &self.pv {
            // What finds no room is dropped: the other end may be gone.
            Some(pv) => drop(pv.write_all(bytes, self.kernel.now() + TIMEOUT_NS)),
            None => print::write(bytes),
        }
    }

    /// Waits until the other end has taken everything, a second at most.
    pub fn flush(&mut self) {
        if let Some(pv) = &self.pv {
            let _ = pv.flush(self.kernel.now() + TIMEOUT_NS);
        }
    }
}

impl fmt::Write for Console {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for (i, line) in s.split('\n').enumerate() {
            if i > 0 {
                self.write(b"\r\n");
            }
            self.write(line.as_bytes());
        }
        Ok(())
    }
}
