// SPDX-License-Identifier: MIT OR Apache-2.0
//! Grants ([`crate::grant_table`]). Each element of an array has its own status, which is to be
//! checked with [`GrantStatus::check`]; a call's error means that none or only some were tried.

use super::{NONE, len32};
use crate::grant_table::*;
use crate::{DomId, Errno, Gfn, Hypercall, HypercallNr, Lent};
use zerocopy::{FromBytes, IntoBytes};

#[inline]
fn array<T: FromBytes + IntoBytes>(
    h: &(impl Hypercall + ?Sized),
    cmd: GrantOp,
    ops: &mut [T],
    more: Lent<'_>,
) -> Result<(), Errno> {
    let n = len32(ops.len())?;
    let mut m = Lent::Out(ops.as_mut_bytes());
    let args = [cmd.number(), m.addr(), u64::from(n), 0, 0];
    Errno::check(h.call(HypercallNr::GrantTableOp, args, &mut [m, more])).map(drop)
}

fn one<T: FromBytes + IntoBytes>(
    h: &(impl Hypercall + ?Sized),
    cmd: GrantOp,
    arg: &mut T,
) -> Result<(), Errno> {
    array(h, cmd, core::slice::from_mut(arg), NONE)
}

/// Why an operation that has one status failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The call failed.
    Call(Errno),
    /// The operation failed.
    Status(GrantStatus),
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Call(e) => e.fmt(f),
            Self::Status(s) => s.fmt(f),
        }
    }
}

impl core::error::Error for Error {}

impl From<Errno> for Error {
    fn from(e: Errno) -> Self {
        Self::Call(e)
    }
}

impl From<GrantStatus> for Error {
    fn from(s: GrantStatus) -> Self {
        Self::Status(s)
    }
}

/// Maps granted pages.
///
/// # Errors
/// The general ones.
pub fn map(h: &(impl Hypercall + ?Sized), ops: &mut [GnttabMapGrantRef]) -> Result<(), Errno> {
    array(h, GrantOp::MapGrantRef, ops, NONE)
}

/// Unmaps them.
///
/// # Errors
/// The general ones.
pub fn unmap(h: &(impl Hypercall + ?Sized), ops: &mut [GnttabUnmapGrantRef]) -> Result<(), Errno> {
    array(h, GrantOp::UnmapGrantRef, ops, NONE)
}

/// Copies between granted pages and own ones.
///
/// # Errors
/// The general ones.
pub fn copy(h: &(impl Hypercall + ?Sized), ops: &mut [GnttabCopy]) -> Result<(), Errno> {
    array(h, GrantOp::Copy, ops, NONE)
}

/// Cleans or invalidates caches.
///
/// # Errors
/// `EPERM`, `EINVAL`; the call stops at the first that fails.
pub fn cache_flush(
    h: &(impl Hypercall + ?Sized),
    ops: &mut [GnttabCacheFlush],
) -> Result<(), Errno> {
    array(h, GrantOp::CacheFlush, ops, NONE)
}

/// Grows a table to as many frames as `frames` holds, and tells their numbers.
///
/// # Errors
/// [`Error::Status`] when the table cannot grow so far.
pub fn setup_table(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    frames: &mut [Gfn],
) -> Result<(), Error> {
    let mut a = GnttabSetupTable {
        dom,
        nr_frames: len32(frames.len())?,
        ..Default::default()
    };
    let mut list = Lent::Out(frames.as_mut_bytes());
    a.frame_list = list.addr();
    array(h, GrantOp::SetupTable, core::slice::from_mut(&mut a), list)?;
    Ok(GrantStatus::check(a.status)?)
}

/// How many frames a table has, and may have.
///
/// # Errors
/// The general ones.
pub fn query_size(h: &(impl Hypercall + ?Sized), dom: DomId) -> Result<(u32, u32), Error> {
    let mut a = GnttabQuerySize {
        dom,
        ..Default::default()
    };
    one(h, GrantOp::QuerySize, &mut a)?;
    GrantStatus::check(a.status)?;
    Ok((a.nr_frames, a.max_nr_frames))
}

/// Chooses the version of the entries. Returns the version in use.
///
/// # Errors
/// `ENOSYS` for version 2 where it is not served.
pub fn set_version(h: &(impl Hypercall + ?Sized), version: u32) -> Result<u32, Errno> {
    let mut a = GnttabSetVersion { version };
    one(h, GrantOp::SetVersion, &mut a)?;
    Ok(a.version)
}

/// Which version a domain uses.
///
/// # Errors
/// The general ones.
pub fn get_version(h: &(impl Hypercall + ?Sized), dom: DomId) -> Result<u32, Errno> {
    let mut a = GnttabGetVersion {
        dom,
        ..Default::default()
    };
    one(h, GrantOp::GetVersion, &mut a)?;
    Ok(a.version)
}
