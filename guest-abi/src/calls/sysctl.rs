// SPDX-License-Identifier: MIT OR Apache-2.0
//! Control of the whole system ([`crate::sysctl`]); for the control domain.

use super::{NONE, len32};
use crate::domctl::DomctlGetdomaininfo;
use crate::sysctl::*;
use crate::xen::XenctlBitmap;
use crate::{DomId, Errno, Hypercall, HypercallNr, Lent};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A command with its structure and the memory that it names.
fn with<T: FromBytes + IntoBytes + Immutable>(
    h: &(impl Hypercall + ?Sized),
    cmd: SysctlCmd,
    t: &T,
    more: Lent<'_>,
) -> Result<T, Errno> {
    let mut s = Sysctl::with(cmd, t);
    let mut m = Lent::Out(s.as_mut_bytes());
    let args = [m.addr(), 0, 0, 0, 0];
    Errno::check(h.call(HypercallNr::Sysctl, args, &mut [m, more]))?;
    Ok(s.payload())
}

/// What was written to the first elements of a slice, by the count that the call told.
fn written(count: u32, room: usize) -> usize {
    usize::try_from(count).unwrap_or(room).min(room)
}

/// The machine.
///
/// # Errors
/// The general ones.
pub fn physinfo(h: &(impl Hypercall + ?Sized)) -> Result<SysctlPhysinfo, Errno> {
    with(h, SysctlCmd::Physinfo, &SysctlPhysinfo::default(), NONE)
}

/// Domains from the number `first` on, in the order of their numbers. Returns how many are in `to`.
///
/// # Errors
/// The general ones.
pub fn getdomaininfolist(
    h: &(impl Hypercall + ?Sized),
    first: DomId,
    to: &mut [DomctlGetdomaininfo],
) -> Result<usize, Errno> {
    let room = to.len();
    let mut m = Lent::Out(to.as_mut_bytes());
    let a = SysctlGetdomaininfolist {
        first_domain: first,
        max_domains: len32(room)?,
        buffer: m.addr(),
        ..Default::default()
    };
    let a = with(h, SysctlCmd::Getdomaininfolist, &a, m)?;
    Ok(written(a.num_domains, room))
}

/// The hypervisor's messages: as many bytes of the end as fit, or with `from` those after that
/// index. Returns how many are in `to`, and the index where to go on.
///
/// # Errors
/// The general ones.
pub fn readconsole(
    h: &(impl Hypercall + ?Sized),
    clear: bool,
    from: Option<u32>,
    to: &mut [u8],
) -> Result<(usize, u32), Errno> {
    let room = to.len();
    let mut m = Lent::Out(to);
    let a = SysctlReadconsole {
        clear: u8::from(clear),
        incremental: u8::from(from.is_some()),
        index: from.unwrap_or(0),
        buffer: m.addr(),
        count: len32(room)?,
        ..Default::default()
    };
    let a = with(h, SysctlCmd::Readconsole, &a, m)?;
    Ok((written(a.count, room), a.index))
}

/// The scheduler's number.
///
/// # Errors
/// The general ones.
pub fn sched_id(h: &(impl Hypercall + ?Sized)) -> Result<u32, Errno> {
    Ok(with(h, SysctlCmd::SchedId, &SysctlSchedId::default(), NONE)?.sched_id)
}

/// Presses debug keys.
///
/// # Errors
/// The general ones.
pub fn debug_keys(h: &(impl Hypercall + ?Sized), keys: &[u8]) -> Result<(), Errno> {
    let mut m = Lent::In(keys);
    let a = SysctlDebugKeys {
        keys: m.addr(),
        nr_keys: len32(keys.len())?,
        ..Default::default()
    };
    with(h, SysctlCmd::DebugKeys, &a, m).map(drop)
}

/// Each CPU's idle time. Returns how many are in `to`.
///
/// # Errors
/// The general ones.
pub fn getcpuinfo(h: &(impl Hypercall + ?Sized), to: &mut [SysctlCpuinfo]) -> Result<usize, Errno> {
    let room = to.len();
    let mut m = Lent::Out(to.as_mut_bytes());
    let a = SysctlGetcpuinfo {
        max_cpus: len32(room)?,
        info: m.addr(),
        ..Default::default()
    };
    let a = with(h, SysctlCmd::Getcpuinfo, &a, m)?;
    Ok(written(a.nr_cpus, room))
}

/// Where each CPU is. Returns how many are in `to`.
///
/// # Errors
/// The general ones.
pub fn cputopoinfo(
    h: &(impl Hypercall + ?Sized),
    to: &mut [SysctlCputopo],
) -> Result<usize, Errno> {
    let room = to.len();
    let mut m = Lent::Out(to.as_mut_bytes());
    let a = SysctlCputopoinfo {
        num_cpus: len32(room)?,
        cputopo: m.addr(),
        ..Default::default()
    };
    let a = with(h, SysctlCmd::Cputopoinfo, &a, m)?;
    Ok(written(a.num_cpus, room))
}

/// The memory nodes, without their distances. Returns how many are in `to`.
///
/// # Errors
/// The general ones.
pub fn numainfo(h: &(impl Hypercall + ?Sized), to: &mut [SysctlMeminfo]) -> Result<usize, Errno> {
    let room = to.len();
    let mut m = Lent::Out(to.as_mut_bytes());
    let a = SysctlNumainfo {
        num_nodes: len32(room)?,
        meminfo: m.addr(),
        ..Default::default()
    };
    let a = with(h, SysctlCmd::Numainfo, &a, m)?;
    Ok(written(a.num_nodes, room))
}

/// Bytes of free memory.
///
/// # Errors
/// The general ones.
pub fn availheap(h: &(impl Hypercall + ?Sized)) -> Result<u64, Errno> {
    let a = SysctlAvailheap {
        node: -1,
        ..Default::default()
    };
    Ok(with(h, SysctlCmd::Availheap, &a, NONE)?.avail_bytes)
}

/// The first CPU pool from the number `pool` on; its CPUs go to the bitmap `cpus`.
///
/// # Errors
/// `ENOENT` when there is none.
pub fn cpupool_info(
    h: &(impl Hypercall + ?Sized),
    pool: u32,
    cpus: &mut [u8],
) -> Result<SysctlCpupoolOp, Errno> {
    let nr_bits = len32(cpus.len())?.saturating_mul(8);
    let mut m = Lent::Out(cpus);
    let a = SysctlCpupoolOp {
        op: cpupool::INFO,
        cpupool_id: pool,
        cpumap: XenctlBitmap {
            bitmap: m.addr(),
            nr_bits,
            ..Default::default()
        },
        ..Default::default()
    };
    with(h, SysctlCmd::CpupoolOp, &a, m)
}
