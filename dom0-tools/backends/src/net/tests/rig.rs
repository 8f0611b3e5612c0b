// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest: its pages, its rings, and frames.

use super::super::*;
use std::collections::BTreeMap;

/// Pages by their grants.
#[derive(Default)]
pub struct Guest {
    pub pages: BTreeMap<u32, Vec<u8>>,
    /// Hypercalls that were made.
    pub calls: usize,
}

impl Copies for Guest {
    fn copy_in(&mut self, list: &mut [CopyIn<'_>]) {
        self.calls += 1;
        for c in list {
            let at = usize::from(c.offset);
            assert!(at + c.to.len() <= 4096 && !c.to.is_empty(), "{c:?}");
            if let Some(page) = self.pages.get(&c.gref.0) {
                c.to.copy_from_slice(&page[at..at + c.to.len()]);
                c.ok = true;
            }
        }
    }
    fn copy_out(&mut self, list: &mut [CopyOut<'_>]) {
        self.calls += 1;
        for c in list {
            assert!(c.from.len() <= 4096 && !c.from.is_empty(), "{c:?}");
            if let Some(page) = self.pages.get_mut(&c.gref.0) {
                page[..c.from.len()].copy_from_slice(c.from);
                c.ok = true;
            }
        }
    }
}

/// A frame of an IPv4 packet of UDP.
pub fn ipv4_udp(data: &[u8]) -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
    f.extend((28 + data.len() as u16).to_be_bytes());
    f.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    f.extend([0x12, 0x34, 0, 9]);
    f.extend((8 + data.len() as u16).to_be_bytes());
    f.extend([0x77, 0x66]);
    f.extend(data);
    f
}

/// A frame of an IPv4 packet of TCP, with 4 bytes of options and these flags.
pub fn ipv4_tcp(data: &[u8], flags: u8) -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
    f.extend((44 + data.len() as u16).to_be_bytes());
    f.extend([
        0xff, 0xfe, 0x40, 0, 64, 6, 0x55, 0x44, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    f.extend([0x12, 0x34, 0, 80, 0xff, 0xff, 0xff, 0, 0, 0, 0, 2]);
    f.extend([0x60, flags, 1, 0, 0x77, 0x66, 0, 0, 1, 1, 1, 1]);
    f.extend(data);
    f
}

/// A frame of an IPv6 packet of TCP.
pub fn ipv6_tcp(data: &[u8]) -> Vec<u8> {
    let mut f = vec![
        2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd, 0x60, 0, 0, 0,
    ];
    f.extend((20 + data.len() as u16).to_be_bytes());
    f.extend([6, 64]);
    f.extend([0xfd; 16]);
    f.extend([0xfe; 16]);
    f.extend([
        0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0x77, 0x66, 0, 0,
    ]);
    f.extend(data);
    f
}

/// The same in a VLAN.
pub fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, 7], &frame[12..]].concat()
}
