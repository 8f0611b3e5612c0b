// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way into the hypervisor: one trait, and its one real implementation, `hvc #0xEA1`.
#![allow(
    unsafe_code,
    reason = "the hvc instruction; nowhere else in this crate"
)]

use crate::HypercallNr;

/// Memory lent to the hypervisor for the time of a call: what the arguments and the structures that
/// they point to name by address.
///
/// The real call needs only the addresses; a fake reads and writes what was lent, by address, as the
/// hypervisor would ([`read`](read()), [`write`](write())).
#[derive(Debug)]
pub enum Lent<'a> {
    /// It is only read.
    In(&'a [u8]),
    /// It may be written.
    Out(&'a mut [u8]),
}

impl Lent<'_> {
    /// The address of its first byte.
    #[must_use]
    pub fn addr(&mut self) -> u64 {
        match self {
            Self::In(b) => b.as_ptr().expose_provenance() as u64,
            Self::Out(b) => b.as_mut_ptr().expose_provenance() as u64,
        }
    }
}

/// Makes hypercalls.
pub trait Hypercall {
    /// Makes one. `lent` is all memory that `args` name, directly or in structures; the hypervisor
    /// touches none but that. Returns what x0 holds after, see
    /// [`Errno::check`](crate::Errno::check).
    fn call(&self, nr: HypercallNr, args: [u64; 5], lent: &mut [Lent<'_>]) -> i64;
}

impl<H: Hypercall + ?Sized> Hypercall for &H {
    fn call(&self, nr: HypercallNr, args: [u64; 5], lent: &mut [Lent<'_>]) -> i64 {
        (**self).call(nr, args, lent)
    }
}

/// Makes calls by Arm's convention (Arm DEN 0028 SMCCC): `hvc #0`, the function in w0.
pub trait Smccc {
    /// Makes one: `function` in w0, `args` in x1 to x3. Returns x0 to x3.
    fn smccc(&self, function: u32, args: [u64; 3]) -> [u64; 4];
}

impl<H: Smccc + ?Sized> Smccc for &H {
    fn smccc(&self, function: u32, args: [u64; 3]) -> [u64; 4] {
        (**self).smccc(function, args)
    }
}

/// For a fake: copies `to.len()` bytes from an address. `false` when they were not all lent in one
/// piece.
#[must_use]
pub fn read(lent: &mut [Lent<'_>], addr: u64, to: &mut [u8]) -> bool {
    for l in lent {
        let start = l.addr();
        let bytes: &[u8] = match l {
            Lent::In(b) => b,
            Lent::Out(b) => b,
        };
        let from = addr
            .checked_sub(start)
            .and_then(|o| usize::try_from(o).ok())
            .and_then(|o| bytes.get(o..))
            .and_then(|b| b.get(..to.len()));
        if let Some(from) = from {
            to.copy_from_slice(from);
            return true;
        }
    }
    false
}

/// For a fake: copies bytes to an address. `false` when it was not all lent for writing in one piece.
#[must_use]
pub fn write(lent: &mut [Lent<'_>], addr: u64, from: &[u8]) -> bool {
    for l in lent {
        let start = l.addr();
        let Lent::Out(bytes) = l else { continue };
        let to = addr
            .checked_sub(start)
            .and_then(|o| usize::try_from(o).ok())
            .and_then(|o| bytes.get_mut(o..))
            .and_then(|b| b.get_mut(..from.len()));
        if let Some(to) = to {
            to.copy_from_slice(from);
            return true;
        }
    }
    false
}

/// The real way: `hvc #0xEA1`.
#[cfg(target_arch = "aarch64")]
#[derive(Clone, Copy, Debug)]
pub struct Hvc(());

#[cfg(target_arch = "aarch64")]
impl Hvc {
    /// Allows hypercalls.
    ///
    /// # Safety
    /// The code runs at EL1 as a guest of a hypervisor with this ABI; addresses are used as they
    /// are, so what is lent is mapped as normal write-back memory at the address by which it is
    /// known. Whoever gets the value passes to [`Hypercall::call`] only addresses of memory that
    /// it lends with the call (the functions of [`calls`](crate::calls) do), or of memory that Rust
    /// code reaches in no way but through raw pointers; and gives back, maps over or unmaps
    /// ([`crate::memory`], grants) only frames that hold nothing of Rust's. CPUs are started ([`Smccc`]) only at
    /// code that was written to be started so.
    #[must_use]
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

#[cfg(target_arch = "aarch64")]
impl Hypercall for Hvc {
    #[inline]
    fn call(&self, nr: HypercallNr, args: [u64; 5], _lent: &mut [Lent<'_>]) -> i64 {
        let [a0, a1, a2, a3, a4] = args;
        let ret: i64;
        // SAFETY: by the contract of `new`, the hypervisor reads and writes only memory that is lent
        // for the time of the call or that is not Rust's. Memory counts as clobbered, since
        // neither `nomem` nor `readonly` is given. The hypervisor keeps every register but x0, by
        // its ABI; x1 to x4 and x16 count as lost nevertheless, and the stack is not touched.
        unsafe {
            core::arch::asm!(
                "hvc #0xea1",
                inout("x16") nr.number() => _,
                inout("x0") a0 => ret,
                inout("x1") a1 => _,
                inout("x2") a2 => _,
                inout("x3") a3 => _,
                inout("x4") a4 => _,
                options(nostack),
            );
        }
        ret
    }
}

#[cfg(target_arch = "aarch64")]
impl Smccc for Hvc {
    #[inline]
    fn smccc(&self, function: u32, args: [u64; 3]) -> [u64; 4] {
        let mut x = [u64::from(function), args[0], args[1], args[2]];
        let [x0, x1, x2, x3] = &mut x;
        // SAFETY: functions of SMCCC take and give values in registers; those that start or stop CPUs or
        // the machine are used as the contract of `new` says. The convention keeps x4 on; x4 to x17 count as
        // lost nevertheless, since its version 1.0 did not. Memory counts as clobbered, and the stack is not
        // touched.
        unsafe {
            core::arch::asm!(
                "hvc #0",
                inout("x0") *x0, inout("x1") *x1, inout("x2") *x2, inout("x3") *x3,
                out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _,
                out("x10") _, out("x11") _, out("x12") _, out("x13") _, out("x14") _,
                out("x15") _, out("x16") _, out("x17") _,
                options(nostack),
            );
        }
        x
    }
}

#[cfg(target_arch = "aarch64")]
const _: () = assert!(crate::hypercall::HYPERCALL_TAG == 0xea1);
