// SPDX-License-Identifier: MIT OR Apache-2.0
//! A domain's console (`io/console.h`): one page with two byte rings, at their fixed places.

use super::ring::ByteRing;
use core::mem::offset_of;

/// Size in bytes of the ring from the console to the guest.
pub const IN_SIZE: u32 = 1024;
/// Size in bytes of the ring from the guest to the console.
pub const OUT_SIZE: u32 = 2048;

abi! {
    /// The page.
    ["xencons_interface", 3088, "io/console.h"]
    pub struct XenconsInterface {
        /// From the console to the guest.
        pub input: [u8; 1024] = "in",
        /// From the guest to the console.
        pub output: [u8; 2048] = "out",
        /// The guest's.
        pub in_cons: u32,
        /// The console's.
        pub in_prod: u32,
        /// The console's.
        pub out_cons: u32,
        /// The guest's.
        pub out_prod: u32,
    }
}

/// What is typed: the console writes, the guest reads.
pub const IN: ByteRing = ByteRing {
    data: offset_of!(XenconsInterface, input),
    size: IN_SIZE,
    prod: offset_of!(XenconsInterface, in_prod),
    cons: offset_of!(XenconsInterface, in_cons),
};

/// What is printed: the guest writes, the console reads.
pub const OUT: ByteRing = ByteRing {
    data: offset_of!(XenconsInterface, output),
    size: OUT_SIZE,
    prod: offset_of!(XenconsInterface, out_prod),
    cons: offset_of!(XenconsInterface, out_cons),
};
