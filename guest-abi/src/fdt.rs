// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the device tree says of the hypervisor (`docs/misc/arm/device-tree/guest.txt` of Xen), with `dtoolkit`.
//! Feature `fdt`.

use crate::Gfn;
use core::fmt;
use core::ops::Range;
use dtoolkit::fdt::Fdt;
use dtoolkit::{Node, Property};

/// The `/hypervisor` node.
#[derive(Clone, Copy)]
pub struct HypervisorNode<'t> {
    /// The ABI's version, of the first `compatible` string: major and minor.
    pub version: (u16, u16),
    /// Addresses where the grant table's frames may be mapped, start and bytes: its first range. Nothing else is
    /// there.
    pub grant_window: (u64, u64),
    /// The interrupt by which the hypervisor tells of events, as an INTID of the GIC: 16 to 31 are each CPU's own
    /// (PPIs).
    pub event_intid: u32,
    tree: Fdt<'t>,
}

impl fmt::Debug for HypervisorNode<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HypervisorNode")
            .field("version", &self.version)
            .field("grant_window", &self.grant_window)
            .field("event_intid", &self.event_intid)
            .finish_non_exhaustive()
    }
}

impl<'t> HypervisorNode<'t> {
    /// The frame from which on the grant table may be mapped
    /// ([`GrantTable::new`](crate::grants::GrantTable::new)).
    #[must_use]
    pub fn grant_frame(&self) -> Gfn {
        Gfn::of(self.grant_window.0)
    }

    /// Addresses without memory behind them, for other domains' pages: each range's start and bytes. There may be
    /// none.
    pub fn extended_regions(&self) -> impl Iterator<Item = (u64, u64)> + use<'t> {
        let tree = self.tree;
        (1..).map_while(move |n| range(tree, n))
    }
}

/// A range of the node's `reg`, by its number.
fn range(tree: Fdt<'_>, n: usize) -> Option<(u64, u64)> {
    let root = tree.root();
    let count = |name: &str, default| {
        let found = root.property(name);
        let n = found.map_or(Some(default), |p| cells(p.value(), 0..1))?;
        usize::try_from(n).ok().filter(|n| matches!(n, 1 | 2))
    };
    let (address_cells, size_cells) = (count("#address-cells", 2)?, count("#size-cells", 1)?);
    let start = n.checked_mul(address_cells + size_cells)?;
    let size = start.checked_add(address_cells)?;
    let node = root.child("hypervisor")?;
    let reg = node.property("reg")?;
    let address = cells(reg.value(), start..size)?;
    Some((address, cells(reg.value(), size..size + size_cells)?))
}

/// Big-endian words of a property as one number.
fn cells(bytes: &[u8], range: Range<usize>) -> Option<u64> {
    let mut value = 0;
    for word in bytes
        .get(range.start.checked_mul(4)?..range.end.checked_mul(4)?)?
        .chunks_exact(4)
    {
        value = value << 32 | u64::from(u32::from_be_bytes(word.try_into().ok()?));
    }
    Some(value)
}

/// The interrupt that three cells of the GIC name: kind, number, flags.
fn intid(bytes: &[u8]) -> Option<u32> {
    let number = u32::try_from(cells(bytes, 1..2)?).ok()?;
    match cells(bytes, 0..1)? {
        0 => number.checked_add(32).filter(|n| *n < 1020),
        1 => number.checked_add(16).filter(|n| *n < 32),
        _ => None,
    }
}

/// Finds the hypervisor in a device tree. `None` when there is none with Xen's ABI, or its node makes no sense.
///
/// ```
/// use dtoolkit::fdt::Fdt;
/// use guest_abi::fdt::hypervisor_node;
///
/// fn look(tree: &[u8]) -> Option<()> {
///     let tree = Fdt::new(tree).ok()?;
///     let node = hypervisor_node(tree)?;
///     let (window, irq) = (node.grant_frame(), node.event_intid);
///     for (start, bytes) in node.extended_regions() {
///         // Room for foreign pages.
///     }
///     Some(())
/// }
/// ```
#[must_use]
pub fn hypervisor_node(tree: Fdt<'_>) -> Option<HypervisorNode<'_>> {
    let root = tree.root();
    let node = root.child("hypervisor")?;
    let compatible = node.property("compatible")?;
    let mut strings = compatible.value().split(|b| *b == 0);
    let version = version(strings.next()?)?;
    if !strings.any(|s| s == b"xen,xen") {
        return None;
    }
    Some(HypervisorNode {
        version,
        grant_window: range(tree, 0)?,
        event_intid: intid(node.property("interrupts")?.value())?,
        tree,
    })
}

/// The version in `xen,xen-4.17`.
fn version(compatible: &[u8]) -> Option<(u16, u16)> {
    let text = core::str::from_utf8(compatible).ok()?;
    let (major, minor) = text.strip_prefix("xen,xen-")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
