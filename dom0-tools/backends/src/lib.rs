// SPDX-License-Identifier: MIT OR Apache-2.0
//! Back-ends without I/O: what dom0 does with a guest's console, disks and networks.
//!
//! Each engine works on pages that the guest shares ([`SharedMem`](guest_abi::mem::SharedMem)),
//! takes their contents for hostile, and says what is to be done; hypercalls, disks and terminals
//! are the caller's.
//!
//! * [`console`]: one domain's console, its log and what is typed to it.
//! * [`blk`]: one virtual disk: negotiation, requests, granted pages.
//! * [`net`]: one network interface: negotiation, frames from and to the guest.
//! * [`bridge`]: where frames go.
//! * [`device`]: the life of a device in the store, for every kind of device.
//! * [`extent`]: where a disk image is on the real disk.
//! * [`fair`]: whose turn it is, among guests that want more than there is.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

extern crate alloc;

pub mod blk;
pub mod bridge;
pub mod console;
pub mod device;
pub mod extent;
pub mod fair;
pub mod net;
#[cfg(test)]
mod testmem;
