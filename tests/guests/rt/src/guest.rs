// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's surroundings.

use crate::{Console, Kernel};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use el1::{Machine, cpu};
use guest_abi::sched::ShutdownReason;
use pv_frontends::xenstore::Xenstore;
use pv_frontends::{Error, Platform};

/// The connection with xenstore.
pub type Store = Xenstore<&'static Kernel>;

/// The guest's surroundings.
pub struct Guest {
    /// The machine.
    pub machine: Machine,
    /// The console.
    pub console: Console,
    /// What front ends run on.
    pub kernel: &'static Kernel,
}

impl Guest {
    /// Sets up events, grants and the console. To be called once.
    #[must_use]
    pub fn new(machine: Machine) -> Self {
        let kernel = Kernel::new(&machine);
        Self {
            console: Console::open(&machine, kernel),
            machine,
            kernel,
        }
    }

    /// Sleeps until something happens, at most until `until` nanoseconds of the kernel's clock.
    pub fn wait(&mut self, until: Option<u64>) {
        self.kernel.wait(until.unwrap_or(u64::MAX));
    }

    /// The connection with xenstore, for ever. To be called once.
    ///
    /// # Errors
    /// [`Error::NoDevice`] without a hypervisor or a store.
    pub fn xenstore(&self) -> Result<&'static Store, Error> {
        if !self.kernel.events() {
            return Err(Error::NoDevice);
        }
        Ok(Box::leak(Box::new(Xenstore::open(self.kernel)?)))
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

/// What people call a virtual disk: `xvda` and so on, from its number in xenstore
/// (`docs/man/xen-vbd-interface.7.pandoc`), or else the number.
#[must_use]
pub fn disk_name(id: u32) -> String {
    match (id >> 8, id >> 4 & 15, id & 15) {
        (202, disk, 0) => format!("xvd{}", (b'a' + disk as u8) as char),
        _ => format!("{id}"),
    }
}
