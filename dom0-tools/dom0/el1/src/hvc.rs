// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way to the hypervisor.

use core::arch::asm;
use guest_abi::Port;
use guest_abi::call::Hvc;
use guest_abi::calls;
use guest_abi::sched::ShutdownReason;

/// For [`guest_abi::calls`]. What changes the map of this program's own memory is not to be called
/// with it but left to [`crate::mem`] and [`crate::events`], or done in the place of a
/// [`SharedPage`](guest_abi::mem::SharedPage) or where no memory is (the grant window).
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

/// PSCI `SYSTEM_OFF`, for a machine without a hypervisor. Returns only if refused.
pub fn psci_off() {
    // SAFETY: asks the firmware to power off.
    unsafe {
        asm!("hvc #0", inout("x0") 0x8400_0008u64 => _, out("x1") _, out("x2") _, out("x3") _,
             options(nostack));
    }
}
