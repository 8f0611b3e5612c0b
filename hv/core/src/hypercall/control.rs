// SPDX-License-Identifier: MIT OR Apache-2.0
//! domctl and sysctl.
use super::{Answer, Call};
use crate::machine::Machine;
use crate::types::Errno;
impl<M: Machine> Call<'_, M> {
    pub(super) fn domctl(&mut self, _a: &mut [u64; 5]) -> Answer { Err(Errno::ENOSYS) }
    pub(super) fn sysctl(&mut self, _a: &mut [u64; 5]) -> Answer { Err(Errno::ENOSYS) }
}
