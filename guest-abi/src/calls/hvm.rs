// SPDX-License-Identifier: MIT OR Apache-2.0
//! Parameters of a domain ([`crate::hvm`]).

use super::op;
use crate::hvm::{HvmOp, HvmParam, Param};
use crate::{DomId, Errno, Hypercall, HypercallNr};

/// Sets a parameter.
///
/// # Errors
/// `EPERM` for a guest; `EEXIST` when it was set to another value before.
pub fn set_param(
    h: &(impl Hypercall + ?Sized),
    dom: DomId,
    param: Param,
    value: u64,
) -> Result<(), Errno> {
    let mut a = HvmParam {
        domid: dom,
        pad: 0,
        index: param.number(),
        value,
    };
    op(h, HypercallNr::HvmOp, HvmOp::SetParam.number(), &mut a).map(drop)
}

/// Gets a parameter.
///
/// # Errors
/// `EINVAL` when the caller may not see it.
pub fn get_param(h: &(impl Hypercall + ?Sized), dom: DomId, param: Param) -> Result<u64, Errno> {
    let mut a = HvmParam {
        domid: dom,
        pad: 0,
        index: param.number(),
        value: 0,
    };
    op(h, HypercallNr::HvmOp, HvmOp::GetParam.number(), &mut a)?;
    Ok(a.value)
}
