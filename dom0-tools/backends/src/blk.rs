// SPDX-License-Identifier: MIT OR Apache-2.0
//! The block back-end (`io/blkif.h`), without its I/O.
//!
//! * [`Device`] talks to the front end through the store: what is offered, what was chosen, states.
//! * [`Queue`] takes requests from one ring, checks them, and answers each exactly once.
//! * [`Mappings`] keeps granted pages mapped for requests, and after them if grants are persistent.
//!
//! What the caller brings is [`Pages`] (the grant hypercalls), the ring's mapped pages
//! ([`SharedMem`](guest_abi::mem::SharedMem)), event channels, and the disk. For each event of a queue:
//!
//! ```text
//! loop { taken = queue.take_requests(&ring, &mut pages, budget, &mut ops)?   // Err: close the device
//!        for op in ops.drain(..) { match op.kind() {
//!            Read | Write => match mappings.map(&op, &mut pages, &mut spans) {
//!                Ok(())  => start I/O at op.sector(), to or from spans; keep op until it is done
//!                Err(_)  => queue.respond(&ring, op, Status::Error) }
//!            Flush, Discard => start it; keep op } }
//!        if taken.notify { send event }
//!        if !taken.more { break } }                       // or let others run first
//! I/O done: mappings.release(&op, &mut pages); queue.respond(&ring, op, status);
//!           if queue.publish(&ring) { send event }
//! Closing:  queue.stop(); when queue.in_flight() == 0: mappings.close(&mut pages), unmap the ring
//! ```
//!
//! With [`extent`](crate::extent), spans and the disk image's place become transfers on the real disk,
//! straight between it and the guest's memory.

mod config;
mod device;
mod mappings;
mod queue;
mod request;
#[cfg(test)]
mod tests;

pub use crate::device::{BadKey, Writes};
pub use config::{FrontConfig, QueueConfig};
pub use device::{Device, Step, Vbd};
pub use guest_abi::io::blkif::Status;
pub use mappings::{MapError, Mapping, Mappings, Pages, Span};
pub use queue::{Queue, Taken};
pub use request::{Kind, Op};

use guest_abi::io::blkif::{self, MAX_SEGMENTS_PER_REQUEST};

/// What a virtual disk is and can do. Sectors are of 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its size.
    pub sectors: u64,
    /// Writes and discards fail.
    pub read_only: bool,
    /// It is shown as a CD-ROM.
    pub cdrom: bool,
    /// It can make durable what was written.
    pub flush: bool,
    /// It can forget contents.
    pub discard: Option<Discard>,
    /// What is best read and written at once, in bytes: 512 or a larger power of two.
    pub physical_sector_size: u32,
}

/// How a disk forgets contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discard {
    /// Unit, in bytes.
    pub granularity: u32,
    /// Offset of the first unit, in bytes.
    pub alignment: u32,
    /// It can make contents unreadable for good.
    pub secure: bool,
}

/// How much of dom0 a front end may use at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most segments in an indirect request; 0 offers none. At most 4096.
    pub indirect_segments: u16,
    /// Binary logarithm of the most pages in a ring. At most 4.
    pub ring_page_order: u8,
    /// Most queues. 0 counts as 1.
    pub queues: u16,
    /// Most pages that a queue keeps mapped between requests; 0 offers no persistent grants.
    pub persistent_pages: usize,
}

impl Default for Limits {
    /// One queue, rings of one page, 32 segments: what Linux uses unless told otherwise.
    fn default() -> Self {
        Self {
            indirect_segments: 32,
            ring_page_order: 0,
            queues: 1,
            persistent_pages: 1056,
        }
    }
}

impl Limits {
    /// Most pages of a front end that are mapped for requests at any time, over all its queues,
    /// without the rings and with what is kept between requests.
    #[must_use]
    pub fn mapped_pages(&self) -> usize {
        let entries = blkif::entries(1 << self.ring_page_order()).unwrap_or(0) as usize;
        let segments = usize::from(self.indirect_segments()).max(MAX_SEGMENTS_PER_REQUEST);
        entries
            .saturating_mul(segments)
            .saturating_add(self.persistent_pages)
            .saturating_mul(usize::from(self.queues()))
    }

    fn indirect_segments(&self) -> u16 {
        let most = blkif::MAX_INDIRECT_PAGES_PER_REQUEST * blkif::SEGS_PER_INDIRECT_FRAME;
        self.indirect_segments.min(most as u16)
    }

    fn ring_page_order(&self) -> u8 {
        self.ring_page_order.min(4)
    }

    fn queues(&self) -> u16 {
        self.queues.max(1)
    }
}
