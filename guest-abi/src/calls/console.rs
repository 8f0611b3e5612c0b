// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's console ([`crate::console`]).

use crate::console::ConsoleOp;
use crate::{Errno, Hypercall, HypercallNr, Lent};

/// Prints bytes.
///
/// # Errors
/// `EPERM` when the domain has no part in the console.
pub fn write(h: &(impl Hypercall + ?Sized), bytes: &[u8]) -> Result<(), Errno> {
    let mut m = Lent::In(bytes);
    let args = [
        ConsoleOp::Write.number(),
        bytes.len() as u64,
        m.addr(),
        0,
        0,
    ];
    Errno::check(h.call(HypercallNr::ConsoleIo, args, &mut [m])).map(drop)
}

/// Takes what was typed. Returns how many bytes there are now in `to`; 0 when nothing was typed.
///
/// # Errors
/// `EPERM` when the domain has no part in the console.
pub fn read(h: &(impl Hypercall + ?Sized), to: &mut [u8]) -> Result<usize, Errno> {
    let len = to.len();
    let mut m = Lent::Out(to);
    let args = [ConsoleOp::Read.number(), len as u64, m.addr(), 0, 0];
    let n = Errno::check(h.call(HypercallNr::ConsoleIo, args, &mut [m]))?;
    Ok(usize::try_from(n).unwrap_or(len).min(len))
}
