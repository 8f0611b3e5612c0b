// SPDX-License-Identifier: MIT OR Apache-2.0
//! Power of CPUs and of the system ([`crate::psci`]), over [`Smccc`].

use crate::call::Smccc;
use crate::psci::{Code, Function};

/// Calls a function; what it returned, as the convention's signed 32 bits.
fn call(h: &(impl Smccc + ?Sized), function: Function, args: [u64; 3]) -> Result<u32, Code> {
    let [x0, ..] = h.smccc(function.number(), args);
    // 64-bit functions extend the sign, 32-bit ones leave the upper half alone.
    match x0 as i32 {
        n if n >= 0 => Ok(n as u32),
        n => Err(Code::from_number(n).unwrap_or(Code::InternalFailure)),
    }
}

/// Version of PSCI: major in the upper 16 bits.
///
/// # Errors
/// [`Code::NotSupported`] without PSCI 0.2 or newer.
pub fn version(h: &(impl Smccc + ?Sized)) -> Result<u32, Code> {
    call(h, Function::Version, [0; 3])
}

/// Whether a function exists.
pub fn has(h: &(impl Smccc + ?Sized), function: Function) -> bool {
    let args = [u64::from(function.number()), 0, 0];
    call(h, Function::Features, args).is_ok()
}

/// Starts the CPU whose MPIDR has this affinity, at the guest physical address `entry` with `context` in x0, the MMU
/// off and interrupts masked.
///
/// # Errors
/// [`Code::AlreadyOn`], [`Code::OnPending`]; [`Code::InvalidParameters`] for a CPU that does not exist;
/// [`Code::InvalidAddress`].
pub fn cpu_on(
    h: &(impl Smccc + ?Sized),
    affinity: u64,
    entry: u64,
    context: u64,
) -> Result<(), Code> {
    call(h, Function::CpuOn64, [affinity, entry, context]).map(drop)
}

/// Stops the calling CPU. Returns only when it failed.
pub fn cpu_off(h: &(impl Smccc + ?Sized)) -> Code {
    refused(call(h, Function::CpuOff, [0; 3]))
}

/// Whether the CPU whose MPIDR has this affinity runs: `AFFINITY_*` of [`crate::psci`].
///
/// # Errors
/// [`Code::InvalidParameters`] for a CPU that does not exist.
pub fn affinity_info(h: &(impl Smccc + ?Sized), affinity: u64) -> Result<i32, Code> {
    call(h, Function::AffinityInfo64, [affinity, 0, 0]).map(|n| n as i32)
}

/// Powers the domain off. Returns only when it failed. [`sched::shutdown`](super::sched::shutdown) does the same
/// on a hypervisor with Xen's ABI.
pub fn system_off(h: &(impl Smccc + ?Sized)) -> Code {
    refused(call(h, Function::SystemOff, [0; 3]))
}

/// Starts the domain anew. Returns only when it failed.
pub fn system_reset(h: &(impl Smccc + ?Sized)) -> Code {
    refused(call(h, Function::SystemReset, [0; 3]))
}

/// What a function says that returned although it does not.
fn refused(result: Result<u32, Code>) -> Code {
    result.err().unwrap_or(Code::InternalFailure)
}
