// SPDX-License-Identifier: MIT OR Apache-2.0
//! Image layout and device trees of domains: pure functions, used by the hypervisor for the control
//! domain and by the toolstack for guests.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

/// A version of the Generic Interrupt Controller's architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GicVersion {
    /// GICv2: memory-mapped CPU interface, at most 8 vcpus.
    V2,
    /// GICv3: CPU interface in system registers.
    V3,
}
