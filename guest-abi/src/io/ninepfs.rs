// SPDX-License-Identifier: MIT OR Apache-2.0
//! 9pfs (`io/9pfs.h`): a page of indexes and grants, and two byte rings of half the granted pages.

/// Highest order of the granted pages that the index page has room for.
pub const MAX_RING_ORDER: u32 = 9;

abi! {
    /// The index page. A grant for each of the `1 << ring_order` data pages follows.
    ["xen_9pfs_data_intf", 132, "io/9pfs.h"]
    pub struct Xen9pfsDataIntf {
        /// Responses: the front end's.
        pub in_cons: u32,
        /// Responses: the back end's.
        pub in_prod: u32,
        /// Padding.
        pub pad1: [u8; 56],
        /// Requests: the back end's.
        pub out_cons: u32,
        /// Requests: the front end's.
        pub out_prod: u32,
        /// Padding.
        pub pad2: [u8; 56],
        /// Binary logarithm of the data pages.
        pub ring_order: u32,
    }
}

/// Offset of the grants in the index page (`ref`), a `u32` each.
pub const GRANTS: usize = size_of::<Xen9pfsDataIntf>();
/// Bytes before each message on the byte rings (`struct xen_9pfs_header`): size with this head (4, little-endian),
/// kind (1), tag (2, little-endian).
pub const HEADER_SIZE: usize = 7;

/// Size in bytes of each of the two byte rings, or `None` when the order is out of range.
#[must_use]
pub const fn ring_size(order: u32) -> Option<u32> {
    if order == 0 || order > MAX_RING_ORDER {
        return None;
    }
    Some(1 << (order + crate::PAGE_SHIFT - 1))
}

// The grants of the largest ring fit into the index page.
const _: () = assert!(GRANTS + 4 * (1 << MAX_RING_ORDER) <= crate::PAGE_SIZE);
