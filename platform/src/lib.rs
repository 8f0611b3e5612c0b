// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine under the hypervisor: boards as data, the firmware's device tree, interrupt
//! controllers with their virtual interfaces, UARTs, the generic timer, PSCI and what stands in for it.
//!
//! Nothing here allocates or holds policy. `unsafe` is used for MMIO ([`mmio`]) and for system
//! registers and firmware calls only. The crate also compiles on the host, where MMIO becomes
//! plain volatile memory (so a test can give a driver a buffer as its registers), system
//! registers read as zero and ignore writes, and firmware calls answer "not supported".
#![cfg_attr(not(test), no_std)]

pub mod board;
pub mod dt;
pub mod gic;
pub mod lock;
pub mod map;
pub mod mmio;
pub mod power;
pub mod psci;
mod sysreg;
pub mod timer;
pub mod uart;
