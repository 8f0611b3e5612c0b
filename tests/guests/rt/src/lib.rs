// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the test guests share: a console on whatever there is, and waiting without spinning.
#![no_std]
#![cfg(target_os = "none")]
#![forbid(unsafe_code)]

extern crate alloc;

mod console;

pub use console::Console;
use el1::{Machine, cpu, events, gic, time};
use guest_abi::sched::ShutdownReason;

/// The guest's surroundings.
pub struct Guest {
    /// The machine.
    pub machine: Machine,
    /// The console.
    pub console: Console,
    /// Whether a hypervisor serves event channels.
    pub events: bool,
}

impl Guest {
    /// Sets up events and the console.
    #[must_use]
    pub fn new(machine: Machine) -> Self {
        let events = machine
            .hypervisor
            .as_ref()
            .is_some_and(|h| events::init(h.event_intid).is_ok());
        let console = Console::open(&machine, events);
        gic::enable(time::INTID, gic::Trigger::Level);
        Self {
            machine,
            console,
            events,
        }
    }

    /// Sleeps until something happens, at most until `until` nanoseconds of [`time::now_ns`].
    pub fn wait(&mut self, until: Option<u64>) {
        time::set_alarm(until);
        if !cpu::interrupt_pending() {
            cpu::idle();
        }
        let event = self.machine.hypervisor.as_ref().map(|h| h.event_intid);
        while gic::poll(|intid| {
            if intid == time::INTID {
                time::set_alarm(None);
            } else if Some(intid) == event {
                events::take(|_port| ());
            } else {
                // The UART's, which stays up until its bytes are read.
                self.console.fill();
            }
        }) {}
    }

    /// Ends the guest.
    pub fn shutdown(&mut self, reason: ShutdownReason) -> ! {
        self.console.flush();
        if self.machine.hypervisor.is_some() {
            el1::hvc::shutdown(reason);
        }
        el1::hvc::psci_off();
        loop {
            cpu::idle();
        }
    }
}
