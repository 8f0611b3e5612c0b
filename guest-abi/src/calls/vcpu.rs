// SPDX-License-Identifier: MIT OR Apache-2.0
//! Virtual CPUs ([`crate::vcpu`]).

use crate::vcpu::*;
use crate::{Errno, Hypercall, HypercallNr, Lent};
use zerocopy::{FromBytes, IntoBytes};

fn vcpu_op<T: FromBytes + IntoBytes>(
    h: &(impl Hypercall + ?Sized),
    cmd: VcpuOp,
    vcpu: u32,
    arg: &mut T,
) -> Result<(), Errno> {
    let mut m = Lent::Out(arg.as_mut_bytes());
    let args = [cmd.number(), u64::from(vcpu), m.addr(), 0, 0];
    Errno::check(h.call(HypercallNr::VcpuOp, args, &mut [m])).map(drop)
}

/// Moves a vcpu's [`VcpuInfo`](crate::xen::VcpuInfo) to a byte offset in a frame, once and for all;
/// what is pending is told of again.
///
/// # Errors
/// `EINVAL` when it was moved before or the place is bad; `ENOENT` when there is no such vcpu.
pub fn register_vcpu_info(
    h: &(impl Hypercall + ?Sized),
    vcpu: u32,
    frame: u64,
    offset: u32,
) -> Result<(), Errno> {
    let mut a = VcpuRegisterVcpuInfo {
        mfn: frame,
        offset,
        rsvd: 0,
    };
    vcpu_op(h, VcpuOp::RegisterVcpuInfo, vcpu, &mut a)
}

/// Has the hypervisor keep a [`VcpuRunstateInfo`] at a virtual address of the caller's, 0 to end it.
/// The memory there is shared from then on: it is for raw pointers alone.
///
/// # Errors
/// `EFAULT` when nothing can be written there.
pub fn register_runstate_memory_area(
    h: &(impl Hypercall + ?Sized),
    vcpu: u32,
    addr: u64,
) -> Result<(), Errno> {
    let mut a = VcpuRegisterRunstateMemoryArea { addr };
    vcpu_op(h, VcpuOp::RegisterRunstateMemoryArea, vcpu, &mut a)
}
