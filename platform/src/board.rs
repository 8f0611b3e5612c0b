// SPDX-License-Identifier: MIT OR Apache-2.0
//! Boards as data: what the device tree does not say, each with its reason. A machine without
//! an entry here runs too, as [`GENERIC`]: the device tree is enough for most.

use crate::dt::Range;

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
}

/// A machine that needs nothing special.
pub const GENERIC: Board = Board {
    name: "generic",
    compatible: &[],
    reserved: &[],
    dma_limit: None,
};

/// All boards with an entry.
pub const BOARDS: &[Board] = &[
    Board {
        name: "QEMU virt",
        compatible: &["linux,dummy-virt"],
        reserved: &[],
        dma_limit: None,
    },
    Board {
        name: "Raspberry Pi 4",
        compatible: &["raspberrypi,4-model-b", "brcm,bcm2711"],
        // The firmware's stub, in which secondary CPUs spin, and its release words are in the
        // first page; older device trees do not reserve it.
        reserved: &[Range {
            base: 0,
            size: 0x1000,
        }],
        // The peripherals' legacy masters see the first GiB only, through the 0xC000_0000 alias.
        dma_limit: Some(0x4000_0000),
    },
];

/// The board with one of these `compatible` strings, or [`GENERIC`].
#[must_use]
pub fn find<'a>(mut compatible: impl Iterator<Item = &'a str>) -> &'static Board {
    compatible
        .find_map(|c| BOARDS.iter().find(|b| b.compatible.contains(&c)))
        .unwrap_or(&GENERIC)
}
