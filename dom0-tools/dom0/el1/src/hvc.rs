// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way to the hypervisor.

use core::arch::asm;
use guest_abi::call::Hvc;
use guest_abi::calls;
use guest_abi::hvm::Param;
use guest_abi::sched::ShutdownReason;
use guest_abi::{DomId, Errno, Port};

/// For [`guest_abi::calls`]. What changes the map of this program's own memory is not to be called
/// with it but left to [`crate::mem`] and [`crate::events`].
#[must_use]
pub fn xen() -> Hvc {
    // SAFETY: EL1, memory mapped at its own address as normal write-back memory.
    unsafe { Hvc::new() }
}

/// Writes to the hypervisor's console; false if it refuses.
pub(crate) fn console_write(bytes: &[u8]) -> bool {
    calls::console::write(&xen(), bytes).is_ok()
}

/// Stops this domain. Returns only if the hypervisor refuses.
pub fn shutdown(reason: ShutdownReason) {
    let _ = calls::sched::shutdown(&xen(), reason);
}

/// Notifies the other end of a channel.
pub fn send(port: Port) {
    let _ = calls::event::send(&xen(), port);
}

/// A parameter of this domain.
pub fn param(param: Param) -> Result<u64, Errno> {
    calls::hvm::get_param(&xen(), DomId::SELF, param)
}

/// PSCI `SYSTEM_OFF`, for a machine without a hypervisor. Returns only if refused.
pub fn psci_off() {
    // SAFETY: asks the firmware to power off.
    unsafe {
        asm!("hvc #0", inout("x0") 0x8400_0008u64 => _, out("x1") _, out("x2") _, out("x3") _,
             options(nostack));
    }
}
