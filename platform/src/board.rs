// SPDX-License-Identifier: MIT OR Apache-2.0
//! Boards as data: what the device tree does not say, each with its reason. A machine without
//! an entry here runs too, as [`GENERIC`]: the device tree is enough for most. A new board is a
//! file like the two below this one, and its line in [`BOARDS`].

mod rpi4;
mod virt;

use crate::dt::{Range, UartKind};

/// What is known of a board beyond its device tree.
#[derive(Debug, PartialEq, Eq)]
pub struct Board {
    /// A name for people.
    pub name: &'static str,
    /// Any of these in the root node's `compatible` tells the board.
    pub compatible: &'static [&'static str],
    /// Memory that the firmware uses on without saying so in the device tree.
    pub reserved: &'static [Range],
    /// The board's DMA masters reach physical addresses below this only. `None`: all of memory.
    pub dma_limit: Option<u64>,
    /// The kind of UART that is the console where `stdout-path` names none.
    pub uart: UartKind,
    /// Its CPUs may be threads of a host, which stops them at any time.
    pub emulated: bool,
    /// The control domain gets the devices with one of these in `compatible`: its disks. All else
    /// stays the hypervisor's. Register blocks share no page with a device that is not in here.
    pub dom0: &'static [&'static str],
}

/// A machine that needs nothing special.
pub const GENERIC: Board = Board {
    name: "generic",
    compatible: &[],
    reserved: &[],
    dma_limit: None,
    uart: UartKind::Pl011,
    emulated: false,
    dom0: &["virtio,mmio"],
};

impl Default for &'static Board {
    fn default() -> Self {
        &GENERIC
    }
}

/// All boards with an entry.
pub const BOARDS: &[Board] = &[virt::BOARD, rpi4::BOARD];

/// The board with one of these `compatible` strings, or [`GENERIC`].
#[must_use]
pub fn find<'a>(mut compatible: impl Iterator<Item = &'a str>) -> &'static Board {
    compatible
        .find_map(|c| BOARDS.iter().find(|b| b.compatible.contains(&c)))
        .unwrap_or(&GENERIC)
}
