// SPDX-License-Identifier: MIT OR Apache-2.0
//! Device protocols (`io/*.h`): what front and back end share.

pub mod blkif;
pub mod console;
pub mod netif;
pub mod ninepfs;
pub mod ring;
pub mod xenbus;
pub mod xs_wire;
