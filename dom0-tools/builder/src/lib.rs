// SPDX-License-Identifier: MIT OR Apache-2.0
//! Image layout and device trees of domains: pure functions, used by the hypervisor for the control
//! domain and by the toolstack for guests.
//!
//! [`ImageHeader::parse`] reads a kernel's header, [`build`] says where everything of a guest goes
//! and makes its device tree, [`dom0_tree`] makes the control domain's. Nothing here panics, whatever
//! it is given.
#![no_std]
#![forbid(unsafe_code)]
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

pub mod facts;
pub mod image;
pub mod layout;
pub mod tree;

pub use image::{ImageError, ImageHeader};
pub use layout::{Bank, Layout, LayoutError, Region};
pub use tree::{Device, Dom0Tree, GicNode, GuestTree, TreeError, dom0_tree, guest_tree};

use alloc::vec::Vec;
use core::fmt;

/// A version of the Generic Interrupt Controller's architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GicVersion {
    /// GICv2: memory-mapped CPU interface, at most 8 vcpus.
    V2,
    /// GICv3: CPU interface in system registers, at most 128 vcpus.
    V3,
}

impl GicVersion {
    /// The most vcpus that a guest with it can have: 8 by GICv2's target masks, 128 by the size of
    /// the redistributor window in the guest's memory map.
    #[must_use]
    pub const fn max_vcpus(self) -> u32 {
        match self {
            Self::V2 => 8,
            Self::V3 => 128,
        }
    }
}

/// What a guest is made of.
#[derive(Clone, Debug)]
pub struct GuestSpec<'a> {
    /// Memory in bytes, a multiple of 4096.
    pub memory: u64,
    /// The kernel's header.
    pub kernel: ImageHeader,
    /// The size of the kernel's file.
    pub kernel_size: u64,
    /// The size of the ramdisk's file, if there is one.
    pub ramdisk_size: Option<u64>,
    /// The number of vcpus.
    pub vcpus: u32,
    /// Its interrupt controller.
    pub gic: GicVersion,
    /// The kernel's command line.
    pub bootargs: &'a str,
    /// Randomness for the kernel's generator.
    pub rng_seed: Option<&'a [u8; 128]>,
    /// It has a virtual SBSA UART.
    pub vuart: bool,
    /// The timer's frequency in Hz, or 0 if its own register is right.
    pub clock_frequency: u32,
    /// The width of guest physical addresses in bits.
    pub gpaddr_bits: u8,
}

/// A guest ready to be put in memory.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Where everything goes.
    pub layout: Layout,
    /// The device tree, to be put at [`Layout::dtb`].
    pub dtb: Vec<u8>,
}

/// Why a guest cannot be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// Something does not fit.
    Layout(LayoutError),
    /// The device tree cannot be made.
    Tree(TreeError),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layout(e) => e.fmt(f),
            Self::Tree(e) => e.fmt(f),
        }
    }
}

impl core::error::Error for BuildError {}

impl From<LayoutError> for BuildError {
    fn from(e: LayoutError) -> Self {
        Self::Layout(e)
    }
}

impl From<TreeError> for BuildError {
    fn from(e: TreeError) -> Self {
        Self::Tree(e)
    }
}

/// Places a guest's parts and makes its device tree.
///
/// # Errors
/// Says what does not fit, or what of the specification is out of range.
pub fn build(spec: &GuestSpec<'_>) -> Result<Guest, BuildError> {
    let banks = layout::banks(spec.memory)?;
    let mut tree = GuestTree {
        banks: &banks,
        vcpus: spec.vcpus,
        gic: spec.gic,
        bootargs: spec.bootargs,
        // Its size is the tree's business, its address not yet known.
        initrd: spec.ramdisk_size.map(|_| (0, 0)),
        rng_seed: spec.rng_seed,
        vuart: spec.vuart,
        clock_frequency: spec.clock_frequency,
        gpaddr_bits: spec.gpaddr_bits,
    };
    let size = guest_tree(&tree)?.len() as u64;
    let layout = layout::place(
        &banks,
        &spec.kernel,
        spec.kernel_size,
        spec.ramdisk_size,
        size,
    )?;
    tree.initrd = layout.ramdisk.map(|r| (r.base, r.end()));
    let dtb = guest_tree(&tree)?;
    Ok(Guest { layout, dtb })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dtoolkit::fdt::Fdt;
    use dtoolkit::{Node, Property};

    #[test]
    fn a_guest_is_built_whole() {
        let spec = GuestSpec {
            memory: 256 << 20,
            kernel: ImageHeader {
                text_offset: 0,
                image_size: 0x210_0000,
                flags: 10,
            },
            kernel_size: 0x200_0000,
            ramdisk_size: Some(0x43_3210),
            vcpus: 2,
            gic: GicVersion::V2,
            bootargs: "console=hvc0",
            rng_seed: Some(&[3; 128]),
            vuart: false,
            clock_frequency: 0,
            gpaddr_bits: 40,
        };
        let guest = build(&spec).unwrap();
        // The tree takes exactly the room that was laid out for it and tells the ramdisk's place.
        assert_eq!(guest.dtb.len() as u64, guest.layout.dtb.size);
        let chosen = Fdt::new(&guest.dtb).unwrap().find_node("/chosen").unwrap();
        let value = |name| chosen.property(name).unwrap().value().to_vec();
        assert_eq!(value("linux,initrd-start"), 0x4800_0000u64.to_be_bytes());
        assert_eq!(value("linux,initrd-end"), 0x4843_3210u64.to_be_bytes());
        assert_eq!(guest.layout.dtb.base, 0x4843_4000);

        let e = build(&GuestSpec {
            memory: 32 << 20,
            ..spec.clone()
        })
        .unwrap_err();
        assert!(e.to_string().contains("at least 38 MiB are needed"), "{e}");
        let e = build(&GuestSpec { vcpus: 9, ..spec }).unwrap_err();
        assert_eq!(
            e.to_string(),
            "9 vcpus: there can be 1 to 8 with this interrupt controller"
        );
    }

    use alloc::string::ToString;
}
