// SPDX-License-Identifier: MIT OR Apache-2.0
//! Version and features ([`crate::version`]).

use super::op;
use crate::version::*;
use crate::{Errno, Hypercall, HypercallNr};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

fn get<T: FromBytes + IntoBytes>(
    h: &(impl Hypercall + ?Sized),
    cmd: VersionOp,
    to: &mut T,
) -> Result<u64, Errno> {
    op(h, HypercallNr::XenVersion, cmd.number(), to)
}

/// Major and minor version.
///
/// # Errors
/// The general ones.
pub fn version(h: &(impl Hypercall + ?Sized)) -> Result<(u16, u16), Errno> {
    let args = [VersionOp::Version.number(), 0, 0, 0, 0];
    let v = Errno::check(h.call(HypercallNr::XenVersion, args, &mut []))?;
    Ok(((v >> 16) as u16, v as u16))
}

/// Page size in bytes.
///
/// # Errors
/// The general ones.
pub fn pagesize(h: &(impl Hypercall + ?Sized)) -> Result<u64, Errno> {
    let args = [VersionOp::Pagesize.number(), 0, 0, 0, 0];
    Errno::check(h.call(HypercallNr::XenVersion, args, &mut []))
}

/// A submap of features: one bit for each [`Feature`].
///
/// # Errors
/// `EINVAL` for a submap that does not exist.
pub fn features(h: &(impl Hypercall + ?Sized), submap: u32) -> Result<u32, Errno> {
    let mut a = FeatureInfo {
        submap_idx: submap,
        submap: 0,
    };
    get(h, VersionOp::GetFeatures, &mut a)?;
    Ok(a.submap)
}

/// Extra version.
///
/// # Errors
/// The general ones.
pub fn extraversion(h: &(impl Hypercall + ?Sized)) -> Result<Extraversion, Errno> {
    let mut a = Extraversion::new_zeroed();
    get(h, VersionOp::Extraversion, &mut a)?;
    Ok(a)
}

/// How the hypervisor was built.
///
/// # Errors
/// The general ones.
pub fn compile_info(h: &(impl Hypercall + ?Sized)) -> Result<CompileInfo, Errno> {
    let mut a = CompileInfo::default();
    get(h, VersionOp::CompileInfo, &mut a)?;
    Ok(a)
}

/// Capabilities.
///
/// # Errors
/// The general ones.
pub fn capabilities(h: &(impl Hypercall + ?Sized), to: &mut CapabilitiesInfo) -> Result<(), Errno> {
    get(h, VersionOp::Capabilities, to).map(drop)
}

/// Change set.
///
/// # Errors
/// The general ones.
pub fn changeset(h: &(impl Hypercall + ?Sized)) -> Result<ChangesetInfo, Errno> {
    let mut a = ChangesetInfo::new_zeroed();
    get(h, VersionOp::Changeset, &mut a)?;
    Ok(a)
}

/// The hypervisor's command line.
///
/// # Errors
/// The general ones.
pub fn commandline(h: &(impl Hypercall + ?Sized), to: &mut Commandline) -> Result<(), Errno> {
    get(h, VersionOp::Commandline, to).map(drop)
}

/// Where the hypervisor's part of the address space starts.
///
/// # Errors
/// The general ones.
pub fn platform_parameters(h: &(impl Hypercall + ?Sized)) -> Result<u64, Errno> {
    let mut a = PlatformParameters::default();
    get(h, VersionOp::PlatformParameters, &mut a)?;
    Ok(a.virt_start)
}

/// The caller's UUID.
///
/// # Errors
/// The general ones.
pub fn guest_handle(h: &(impl Hypercall + ?Sized)) -> Result<crate::xen::DomainHandle, Errno> {
    let mut a = [0; 16];
    get(h, VersionOp::GuestHandle, &mut a)?;
    Ok(a)
}

/// The part of a fixed-size string before its first zero byte.
#[must_use]
pub fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}
