// SPDX-License-Identifier: MIT OR Apache-2.0
//! QEMU's `virt` machine: its device tree says everything.

use super::{Board, GENERIC};

pub(super) const BOARD: Board = Board {
    name: "QEMU virt",
    compatible: &["linux,dummy-virt"],
    emulated: true,
    ..GENERIC
};
