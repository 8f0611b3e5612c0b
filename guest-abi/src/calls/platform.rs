// SPDX-License-Identifier: MIT OR Apache-2.0
//! The platform ([`crate::platform`]).

use crate::platform::*;
use crate::{Errno, Hypercall, HypercallNr, Lent};
use zerocopy::IntoBytes;

/// Sets the wall clock: at `system_time` (nanoseconds since boot) it was `secs` seconds and `nsecs`
/// nanoseconds since 1970.
///
/// # Errors
/// `EPERM` but for the control domain.
pub fn settime(
    h: &(impl Hypercall + ?Sized),
    secs: u64,
    nsecs: u32,
    system_time: u64,
) -> Result<(), Errno> {
    let mut a = PlatformOp {
        cmd: PlatformCmd::Settime64.number(),
        interface_version: INTERFACE_VERSION,
        settime64: PlatformSettime64 {
            secs,
            nsecs,
            mbz: 0,
            system_time,
        },
        ..Default::default()
    };
    let mut m = Lent::Out(a.as_mut_bytes());
    let args = [m.addr(), 0, 0, 0, 0];
    Errno::check(h.call(HypercallNr::PlatformOp, args, &mut [m])).map(drop)
}
