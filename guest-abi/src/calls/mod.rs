// SPDX-License-Identifier: MIT OR Apache-2.0
//! A function for each operation that guests and the control domain's tools call, over any
//! [`Hypercall`].
//!
//! Errors are the call's [`Errno`]: `ENOSYS` when the operation does not exist, `EPERM` or `EACCES`
//! when the caller may not, `ESRCH` when there is no such domain; functions name what else matters.
//! Slices that belong together must have the same length, or the answer is `EINVAL` without a call.

pub mod console;
#[cfg(feature = "toolstack")]
pub mod domctl;
pub mod event;
pub mod grant;
pub mod hvm;
pub mod memory;
pub mod platform;
pub mod psci;
pub mod sched;
#[cfg(feature = "toolstack")]
pub mod sysctl;
pub mod vcpu;
pub mod version;

use crate::xen::{MulticallEntry, VmAssistCmd};
use crate::{Errno, Hypercall, HypercallNr, Lent};
use zerocopy::{FromBytes, IntoBytes};

/// Most pieces of memory that one [`multicall`] can lend.
pub const MULTICALL_LENT_MAX: usize = 8;

/// A structure for `[op, address of it]`, the shape of most calls.
#[inline]
fn op<T: FromBytes + IntoBytes>(
    h: &(impl Hypercall + ?Sized),
    nr: HypercallNr,
    op: u64,
    arg: &mut T,
) -> Result<u64, Errno> {
    let mut m = Lent::Out(arg.as_mut_bytes());
    let addr = m.addr();
    Errno::check(h.call(nr, [op, addr, 0, 0, 0], &mut [m]))
}

/// The same with memory that the structure names.
#[inline]
fn op_with<T: FromBytes + IntoBytes>(
    h: &(impl Hypercall + ?Sized),
    nr: HypercallNr,
    op: u64,
    arg: &mut T,
    [a, b, c]: [Lent<'_>; 3],
) -> Result<u64, Errno> {
    let mut m = Lent::Out(arg.as_mut_bytes());
    let addr = m.addr();
    Errno::check(h.call(nr, [op, addr, 0, 0, 0], &mut [m, a, b, c]))
}

/// No memory.
const NONE: Lent<'static> = Lent::In(&[]);

/// A length for a 32-bit field.
fn len32(n: usize) -> Result<u32, Errno> {
    u32::try_from(n).map_err(|_| Errno::E2BIG)
}

/// Makes several calls at once. The memory that their arguments name is `lent`, at most
/// [`MULTICALL_LENT_MAX`] pieces or it does not compile; its addresses are those that
/// [`Lent::addr`] gave. Each entry's result is in it after.
///
/// # Errors
/// The call's own, not that of an entry.
pub fn multicall<'a, const N: usize>(
    h: &(impl Hypercall + ?Sized),
    entries: &'a mut [MulticallEntry],
    lent: [Lent<'a>; N],
) -> Result<(), Errno> {
    const { assert!(N <= MULTICALL_LENT_MAX) };
    let n = entries.len() as u64;
    let mut first = Lent::Out(entries.as_mut_bytes());
    let addr = first.addr();
    let mut all = [const { Lent::In(&[]) }; MULTICALL_LENT_MAX + 1];
    for (to, from) in all.iter_mut().zip(core::iter::once(first).chain(lent)) {
        *to = from;
    }
    Errno::check(h.call(HypercallNr::Multicall, [addr, n, 0, 0, 0], &mut all)).map(drop)
}

/// Switches an assist on or off ([`VmAssist`](crate::xen::VmAssist)'s numbers).
///
/// # Errors
/// `EINVAL` for an assist that does not exist.
pub fn vm_assist(
    h: &(impl Hypercall + ?Sized),
    cmd: VmAssistCmd,
    assist: u64,
) -> Result<(), Errno> {
    let args = [cmd.number(), assist, 0, 0, 0];
    Errno::check(h.call(HypercallNr::VmAssist, args, &mut [])).map(drop)
}
