// SPDX-License-Identifier: MIT OR Apache-2.0
//! The console: the PV ring, else the hypervisor's own, else a UART.

use alloc::collections::VecDeque;
use core::fmt;
use el1::shared::Shared;
use el1::{Machine, cpu, events, gic, hvc, print};

/// Parameters of `hvm_op` (`public/hvm/params.h`).
const CONSOLE_PFN: u32 = 17;
const CONSOLE_EVTCHN: u32 = 18;

/// `struct xencons_interface` (`public/io/console.h`): input of 1024 bytes, output of 2048, and
/// four free-running indices.
const IN: usize = 0;
const IN_SIZE: u32 = 1024;
const OUT: usize = 1024;
const OUT_SIZE: u32 = 2048;
const IN_CONS: usize = 3072;
const IN_PROD: usize = 3076;
const OUT_CONS: usize = 3080;
const OUT_PROD: usize = 3084;

/// The PL011's SPI in a guest's tree is told by nobody here: this is QEMU's and Xen's.
const UART_INTIDS: [u32; 2] = [32, 33];

struct Ring {
    page: Shared,
    port: u32,
}

/// The console.
pub struct Console {
    ring: Option<Ring>,
    input: VecDeque<u8>,
}

impl Console {
    pub(crate) fn open(machine: &Machine, events: bool) -> Self {
        let ring = events.then(Ring::open).flatten();
        if ring.is_none() && machine.uart.is_some() {
            print::uart_interrupts();
            for intid in UART_INTIDS {
                gic::enable(intid, gic::Trigger::Level);
            }
        }
        Self {
            ring,
            input: VecDeque::new(),
        }
    }

    /// What it is, for people.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        if self.ring.is_some() {
            "PV ring"
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
            ring.wait_for(OUT_SIZE);
        }
    }
}

impl Ring {
    fn open() -> Option<Self> {
        let gfn = hvc::hvm_param(CONSOLE_PFN).ok().filter(|&g| g != 0)?;
        let port = hvc::hvm_param(CONSOLE_EVTCHN).ok().filter(|&p| p != 0)? as u32;
        let ring = Self {
            page: Shared::at(gfn, 1)?,
            port,
        };
        events::unmask(port);
        Some(ring)
    }

    fn room(&self) -> u32 {
        let used = self
            .page
            .read32(OUT_PROD)
            .wrapping_sub(self.page.read32(OUT_CONS));
        OUT_SIZE.saturating_sub(used)
    }

    /// Sleeps until there is room for `bytes`, a second at most: the other end may be gone.
    fn wait_for(&self, bytes: u32) -> bool {
        let end = el1::time::now_ns() + 1_000_000_000;
        while self.room() < bytes {
            if el1::time::now_ns() >= end {
                return false;
            }
            el1::time::set_alarm(Some(end));
            cpu::idle();
            // Whatever came up is taken by the caller's next wait; only the event's line is
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
            let prod = self.page.read32(OUT_PROD);
            let at = prod % OUT_SIZE;
            let n = (self.room().min(OUT_SIZE - at) as usize).min(bytes.len());
            self.page.write(OUT + at as usize, &bytes[..n]);
            self.page.write32(OUT_PROD, prod.wrapping_add(n as u32));
            cpu::barrier();
            hvc::evtchn_send(self.port);
            bytes = &bytes[n..];
        }
    }

    fn take(&self, input: &mut VecDeque<u8>) {
        let prod = self.page.read32(IN_PROD);
        let mut cons = self.page.read32(IN_CONS);
        if prod == cons || prod.wrapping_sub(cons) > IN_SIZE {
            return;
        }
        while cons != prod {
            let mut b = [0];
            self.page.read(IN + (cons % IN_SIZE) as usize, &mut b);
            input.push_back(b[0]);
            cons = cons.wrapping_add(1);
        }
        self.page.write32(IN_CONS, cons);
        cpu::barrier();
        hvc::evtchn_send(self.port);
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
