// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's node in trees as toolstacks make them, and in broken ones.
#![cfg(feature = "fdt")]

use dtoolkit::fdt::Fdt;
use guest_abi::Gfn;
use guest_abi::fdt::hypervisor_node;
use proptest::prelude::*;
use vm_fdt::FdtWriter;

fn tree(compatible: &[&str], cells: [u32; 2], reg: &[u32], interrupts: &[u32]) -> Vec<u8> {
    let mut f = FdtWriter::new().unwrap();
    let root = f.begin_node("").unwrap();
    f.property_u32("#address-cells", cells[0]).unwrap();
    f.property_u32("#size-cells", cells[1]).unwrap();
    let memory = f.begin_node("memory@40000000").unwrap();
    f.property_string("device_type", "memory").unwrap();
    f.end_node(memory).unwrap();
    let node = f.begin_node("hypervisor").unwrap();
    let list = compatible.iter().map(|s| (*s).to_string()).collect();
    f.property_string_list("compatible", list).unwrap();
    f.property_array_u32("reg", reg).unwrap();
    f.property_array_u32("interrupts", interrupts).unwrap();
    f.end_node(node).unwrap();
    f.end_node(root).unwrap();
    f.finish().unwrap()
}

const XEN: &[&str] = &["xen,xen-4.17", "xen,xen"];
const WINDOW: &[u32] = &[0, 0x3800_0000, 0, 0x100_0000];
const EVENTS: &[u32] = &[1, 15, 0xf08];

#[test]
fn the_node_of_a_guest() {
    let reg = [WINDOW, &[0, 0x5000_0000, 0, 0xb000_0000, 2, 0, 0xfe, 0]].concat();
    let bytes = tree(XEN, [2, 2], &reg, EVENTS);
    let node = hypervisor_node(Fdt::new(&bytes).unwrap()).unwrap();
    assert_eq!(node.version, (4, 17));
    assert_eq!(node.grant_window, (0x3800_0000, 0x100_0000));
    assert_eq!(node.grant_frame(), Gfn(0x38000));
    assert_eq!(node.event_intid, 31);
    let regions: Vec<_> = node.extended_regions().collect();
    assert_eq!(regions, [(0x5000_0000, 0xb000_0000), (2 << 32, 0xfe << 32)]);
    // One cell, no regions, a shared interrupt.
    let bytes = tree(XEN, [1, 1], &[0x3800_0000, 0x2_0000], &[0, 3, 4]);
    let node = hypervisor_node(Fdt::new(&bytes).unwrap()).unwrap();
    assert_eq!(node.grant_window, (0x3800_0000, 0x2_0000));
    assert_eq!((node.event_intid, node.extended_regions().count()), (35, 0));
}

#[test]
fn nodes_that_make_no_sense() {
    for bytes in [
        tree(&["linux,kvm"], [2, 2], WINDOW, EVENTS),
        tree(&[], [2, 2], WINDOW, EVENTS),
        tree(&["xen,xen"], [2, 2], WINDOW, EVENTS),
        tree(&["xen,xen-4", "xen,xen"], [2, 2], WINDOW, EVENTS),
        tree(XEN, [2, 2], &WINDOW[..3], EVENTS),
        tree(XEN, [0, 0], WINDOW, EVENTS),
        tree(XEN, [3, 2], WINDOW, EVENTS),
        tree(XEN, [2, u32::MAX], WINDOW, EVENTS),
        tree(XEN, [2, 2], WINDOW, &[1]),
        tree(XEN, [2, 2], WINDOW, &[2, 1, 4]),
        tree(XEN, [2, 2], WINDOW, &[1, 16, 4]),
        tree(XEN, [2, 2], WINDOW, &[0, u32::MAX, 4]),
    ] {
        assert!(hypervisor_node(Fdt::new(&bytes).unwrap()).is_none());
    }
}

proptest! {
    /// Whatever the node says, looking at it ends.
    #[test]
    fn any_node(cells in any::<[u8; 2]>(), reg in prop::collection::vec(any::<u32>(), 0..20),
        interrupts in prop::collection::vec(any::<u32>(), 0..4)) {
        let bytes = tree(XEN, cells.map(|c| u32::from(c % 5)), &reg, &interrupts);
        if let Some(node) = hypervisor_node(Fdt::new(&bytes).unwrap()) {
            prop_assert!(node.extended_regions().count() <= 10);
        }
    }
}
