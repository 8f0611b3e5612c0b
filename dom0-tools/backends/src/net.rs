// SPDX-License-Identifier: MIT OR Apache-2.0
//! The network back-end (`io/netif.h`), without its I/O.
//!
//! * [`Device`] talks to the front end through the store: what is offered, what was chosen, states.
//! * [`Tx`] takes what the guest sends from one ring, checks it, and answers each request once.
//! * [`Rx`] puts frames into the pages that the guest posted on another ring.
//! * [`Waiting`] has what waits for a receiver, be it an [`Rx`] or one of the caller's.
//! * [`Offload`] has a network card fill in checksums and split frames, and takes such from it.
//! * [`Credit`] bounds how much a guest sends in a time, and [`Groups`] which multicast frames it receives.
//!
//! What the caller brings is [`Copies`] (the grant copies, many at a time), the rings' mapped pages
//! ([`SharedMem`](guest_abi::mem::SharedMem)), event channels, and a [`bridge`](crate::bridge) that says
//! where frames go. No page of a guest's but the rings is mapped.
//!
//! ```text
//! event of a queue:  taken = tx.take(&ring, &mut copies, &mut interface, now, budget, &mut frames)?
//!                    if taken.notify { send event }           // Err: close the device
//!                    for each frame: for each port that the bridge names: if interface.groups.allow(frame): rx.queue(frame)
//!                    for each rx that got any: if rx.flush(&ring, &mut copies)? { send event }
//! ```
//!
//! A frame of which the guest says that its checksum is blank goes so to receivers that take such
//! frames; for others the checksum is filled in. So do frames of up to 64 KiB that are still to be split
//! into segments of TCP: whole where the receiver takes them, else in their segments.

mod config;
mod credit;
mod device;
pub(crate) mod frame;
mod groups;
mod join;
mod offload;
mod rx;
#[cfg(test)]
mod tests;
mod tx;
mod waiting;

pub use crate::device::{BadKey, Writes};
pub use config::{FrontConfig, QueueConfig};
pub use credit::Credit;
pub use device::{Device, Step, Vif};
pub use frame::{Checksum, Frame, MIN_SEGMENT};
pub use groups::{Groups, MAX_GROUPS};
pub use join::join;
pub use offload::{Header, Offload};
pub use rx::Rx;
pub use tx::{Fault, Taken, Tx};
pub use waiting::{Pool, Waiting};

use guest_abi::GrantRef;

/// Bytes of a frame's addresses and type.
pub const HEADER: usize = 14;
/// Bytes of a frame beside what the MTU counts: addresses, type, a VLAN's tag.
pub const FRAME_EXTRA: usize = 18;
/// Usual MTU.
pub const DEFAULT_MTU: u16 = 1500;

/// How much of dom0 an interface may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most pairs of rings. 0 counts as 1.
    pub queues: u16,
    /// Most bytes of a packet: of a frame without its addresses and type.
    pub mtu: u16,
}

impl Default for Limits {
    /// One pair of rings, and an Ethernet's packets.
    fn default() -> Self {
        Self {
            queues: 1,
            mtu: DEFAULT_MTU,
        }
    }
}

impl Limits {
    /// Most bytes of a frame.
    #[must_use]
    pub fn max_frame(&self) -> usize {
        usize::from(self.mtu).saturating_add(FRAME_EXTRA)
    }
}

/// What all queues of an interface have in common.
#[derive(Debug)]
pub struct Interface {
    /// How much the guest may send.
    pub credit: Credit,
    /// Which multicast frames it receives.
    pub groups: Groups,
}

impl Interface {
    /// Of an interface that was not connected yet.
    #[must_use]
    pub fn new(credit: Credit) -> Self {
        Self {
            credit,
            groups: Groups::default(),
        }
    }
}

/// Bytes to copy out of a granted page.
#[derive(Debug)]
pub struct CopyIn<'a> {
    /// The page.
    pub gref: GrantRef,
    /// First byte in it; the copy does not go beyond the page's end.
    pub offset: u16,
    /// Where to.
    pub to: &'a mut [u8],
    /// Out: it went well.
    pub ok: bool,
}

/// Bytes to copy into a granted page, from its start on.
#[derive(Debug)]
pub struct CopyOut<'a> {
    /// The page.
    pub gref: GrantRef,
    /// The bytes, at most a page of them.
    pub from: &'a [u8],
    /// Out: it went well.
    pub ok: bool,
}

/// Grant copies from and to one guest (`GNTTABOP_copy`), many with one call.
pub trait Copies {
    /// Copies out of the guest's pages.
    fn copy_in(&mut self, list: &mut [CopyIn<'_>]);
    /// Copies into the guest's pages.
    fn copy_out(&mut self, list: &mut [CopyOut<'_>]);
}
