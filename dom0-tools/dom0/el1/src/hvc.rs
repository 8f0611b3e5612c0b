// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way to the hypervisor: `hvc #0xEA1`.

use core::arch::asm;

/// The call itself: number in x16, arguments and result in x0 to x4.
///
/// # Safety
/// What the hypervisor is asked to do must not break memory safety: every pointer among the
/// arguments is good for what the call reads and writes, and no memory that Rust owns is taken away.
pub unsafe fn hypercall(number: u64, args: [u64; 5]) -> i64 {
    let ret: i64;
    // SAFETY: the ABI preserves every register but x0 to x4 and x16, x17; memory effects are the
    // caller's promise.
    unsafe {
        asm!("hvc #0xea1",
             in("x16") number,
             inlateout("x0") args[0] => ret,
             inlateout("x1") args[1] => _,
             inlateout("x2") args[2] => _,
             inlateout("x3") args[3] => _,
             inlateout("x4") args[4] => _,
             options(nostack));
    }
    ret
}

/// `HYPERVISOR_console_io` write.
pub(crate) fn console_write(bytes: &[u8]) -> i64 {
    // SAFETY: the hypervisor reads `bytes`.
    unsafe { hypercall(18, [0, bytes.len() as u64, bytes.as_ptr() as u64, 0, 0]) }
}

/// `SCHEDOP_shutdown`: 0 power off, 1 reboot, 3 crash. Returns only if refused.
pub fn shutdown(reason: u32) {
    // SAFETY: the hypervisor reads one word and stops this domain.
    unsafe { hypercall(29, [2, &raw const reason as u64, 0, 0, 0]) };
}

/// PSCI `SYSTEM_OFF`, for a machine without a hypervisor. Returns only if refused.
pub fn psci_off() {
    // SAFETY: asks the firmware to power off.
    unsafe {
        asm!("hvc #0", inout("x0") 0x8400_0008u64 => _, out("x1") _, out("x2") _, out("x3") _, options(nostack))
    }
}

/// `XENMEM_add_to_physmap` of the shared information page over a frame of this program's own,
/// which is out of use for anything else.
pub(crate) fn map_shared_info(gfn: u64) -> Result<(), i64> {
    // struct xen_add_to_physmap: domid@0:2 (self), size@2:2, space@4:4 (0), idx@8:8, gpfn@16:8.
    let arg = [0x7ff0u64, 0, gfn];
    // SAFETY: the caller gives a page away.
    match unsafe { hypercall(12, [7, arg.as_ptr() as u64, 0, 0, 0]) } {
        0 => Ok(()),
        e => Err(e),
    }
}

/// `EVTCHNOP_unmask`.
pub(crate) fn evtchn_unmask(port: u32) {
    // SAFETY: the hypervisor reads one word and may set an event pending.
    unsafe { hypercall(32, [9, &raw const port as u64, 0, 0, 0]) };
}

/// `EVTCHNOP_send`: notifies the other end of a channel.
pub fn evtchn_send(port: u32) -> i64 {
    // SAFETY: the hypervisor reads one word and sets an event pending elsewhere.
    unsafe { hypercall(32, [4, &raw const port as u64, 0, 0, 0]) }
}

/// `HVMOP_get_param` of this domain.
pub fn hvm_param(index: u32) -> Result<u64, i64> {
    // struct xen_hvm_param: domid@0:2, index@4:4, value@8:8.
    let mut arg = [0x7ff0u64 | u64::from(index) << 32, 0];
    // SAFETY: the hypervisor reads and writes `arg`.
    match unsafe { hypercall(34, [1, arg.as_mut_ptr() as u64, 0, 0, 0]) } {
        0 => Ok(arg[1]),
        e => Err(e),
    }
}

/// `XENVER_get_features` of submap 0; none if the hypervisor refuses.
#[must_use]
pub fn features() -> u32 {
    let mut arg = [0u32, 0];
    // SAFETY: the hypervisor reads and writes `arg`.
    match unsafe { hypercall(17, [6, arg.as_mut_ptr() as u64, 0, 0, 0]) } {
        0 => arg[1],
        _ => 0,
    }
}

/// `XENVER_version`: the ABI's major version in the upper half, its minor one in the lower.
#[must_use]
pub fn version() -> u32 {
    // SAFETY: no memory takes part.
    unsafe { hypercall(17, [0; 5]) as u32 }
}
