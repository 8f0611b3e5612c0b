// SPDX-License-Identifier: MIT OR Apache-2.0
//! The console: the PV ring, else the hypervisor's own, else a UART; with `console=uart` on the command line the UART
//! though there are others.

use alloc::collections::VecDeque;
use core::fmt;
use el1::shared::Shared;
use el1::{Machine, cpu, events, gic, hvc, print};
use guest_abi::Port;
use guest_abi::hvm::Param;
use guest_abi::io::console::{IN, OUT};

/// The PL011's SPI in a guest's tree is told by nobody here: this is QEMU's and Xen's.
const UART_INTIDS: [u32; 2] = [32, 33];

struct Ring {
    page: Shared,
    port: Port,
}

/// The console.
pub struct Console {
    ring: Option<Ring>,
    uart: bool,
    input: VecDeque<u8>,
}

impl Console {
    pub(crate) fn open(machine: &Machine, events: bool) -> Self {
        let wanted = machine.bootargs.split(' ').any(|w| w == "console=uart");
        let uart = machine.uart.filter(|_| wanted);
        if let Some(base) = uart {
            print::to_uart(base);
        }
        let ring = (events && uart.is_none()).then(Ring::open).flatten();
        if ring.is_none() && machine.uart.is_some() {
            print::uart_interrupts();
            for intid in UART_INTIDS {
                gic::enable(intid, gic::Trigger::Level);
            }
        }
        Self {
            ring,
            uart: uart.is_some(),
            input: VecDeque::new(),
        }
    }

    /// What it is, for people.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        if self.ring.is_some() {
            "PV ring"
        } else if self.uart {
            "UART"
        } else {
            "early console"
        }
    }

    /// Takes whatever input has come.
    pub fn fill(&mut self) {
        if let Some(ring) = &self.ring {
            ring.take(&mut self.input);
        } else {
            while let Some(b) = print::uart_byte() {
                self.input.push_back(b);
            }
        }
    }

    /// The next byte of input, if one is there.
    pub fn byte(&mut self) -> Option<u8> {
        if self.input.is_empty() {
            self.fill();
        }
        self.input.pop_front()
    }

    /// Writes bytes; waits for room.
    pub fn write(&mut self, bytes: &[u8]) {
        match &self.ring {
            Some(ring) => ring.put(bytes),
            None => print::write(bytes),
        }
    }

    /// Waits until the other end has taken everything, a second at most.
    pub fn flush(&mut self) {
        if let Some(ring) = &self.ring {
            ring.wait_for(OUT.size);
        }
    }
}

impl Ring {
    fn open() -> Option<Self> {
        let gfn = hvc::param(Param::ConsolePfn).ok().filter(|&g| g != 0)?;
        let port = hvc::param(Param::ConsoleEvtchn).ok().filter(|&p| p != 0)?;
        let ring = Self {
            page: Shared::at(gfn, 1)?,
            port: Port(port as u32),
        };
        events::unmask(ring.port.0);
        Some(ring)
    }

    fn notify(&self) {
        cpu::barrier();
        hvc::send(self.port);
    }

    /// Sleeps until there is room for `bytes`, a second at most: the other end may be gone.
    fn wait_for(&self, bytes: u32) -> bool {
        let end = el1::time::now_ns() + 1_000_000_000;
        while OUT.free(&self.page).unwrap_or(0) < bytes {
            if el1::time::now_ns() >= end {
                return false;
            }
            el1::time::set_alarm(Some(end));
            cpu::idle();
            // Whatever came up is looked for again by the caller's next wait; only the lines are
            // lowered here, for the sleep to last.
            while gic::poll(|intid| {
                if intid == el1::time::INTID {
                    el1::time::set_alarm(None);
                } else {
                    events::take(|_| ());
                }
            }) {}
        }
        true
    }

    fn put(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if !self.wait_for(1) {
                return;
            }
            let n = OUT.write(&self.page, bytes).unwrap_or(bytes.len());
            self.notify();
            bytes = bytes.get(n..).unwrap_or_default();
        }
    }

    fn take(&self, input: &mut VecDeque<u8>) {
        let mut buffer = [0; 256];
        let mut any = false;
        while let Ok(n) = IN.read(&self.page, &mut buffer)
            && n > 0
        {
            input.extend(&buffer[..n]);
            any = true;
        }
        if any {
            self.notify();
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
