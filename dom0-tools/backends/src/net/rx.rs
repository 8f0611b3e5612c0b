// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest receives.

use super::{Checksum, Copies, CopyOut, Frame, FrontConfig, Waiting};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::mem::take;
use guest_abi::io::netif::{
    GSO_TYPE_TCPV4, GSO_TYPE_TCPV6, NetifExtraInfo, NetifRxRequest, NetifRxResponse, Status, netrxf,
};
use guest_abi::io::ring::{BackRing, RingError};
use guest_abi::mem::SharedMem;
use guest_abi::{GrantRef, PAGE_SIZE};

/// One ring of what a guest receives, and what waits for its pages.
pub struct Rx {
    ring: BackRing<NetifRxRequest, NetifRxResponse>,
    scatter_gather: bool,
    blank_ipv4: bool,
    blank_ipv6: bool,
    split_ipv4: bool,
    split_ipv6: bool,
    waiting: Waiting,
    broken: bool,
    /// What [`Rx::flush`] works with, kept so that it needs no memory: frames on their way, and what goes into which place.
    frames: Vec<Outgoing>,
    slots: Vec<Slot>,
}

/// A frame on its way into pages.
struct Outgoing {
    frame: Rc<Frame>,
    /// The bytes when they differ from the frame's.
    completed: Option<Vec<u8>>,
    flags: u16,
}

/// A request of the guest's that was taken.
struct Slot {
    id: u16,
    gref: GrantRef,
    holds: Holds,
}

/// What goes into its place.
#[derive(Clone, Copy)]
enum Holds {
    /// A page's bytes of a frame, by its number among those on their way, from a byte on.
    Part {
        frame: usize,
        start: usize,
        flags: u16,
    },
    /// How the frame is to be split.
    Split(NetifExtraInfo),
}

impl Outgoing {
    fn bytes(&self) -> &[u8] {
        match &self.completed {
            Some(bytes) => bytes,
            None => self.frame.bytes(),
        }
    }
}

impl Rx {
    /// Takes up the ring that a front end made in one page; frames wait in `waiting`. `None` never happens with a page.
    pub fn attach(ring: &impl SharedMem, config: &FrontConfig, waiting: Waiting) -> Option<Self> {
        Some(Self {
            ring: BackRing::attach(ring, PAGE_SIZE)?,
            scatter_gather: config.scatter_gather,
            blank_ipv4: config.blank_ipv4,
            blank_ipv6: config.blank_ipv6,
            split_ipv4: config.split_ipv4,
            split_ipv6: config.split_ipv6,
            waiting,
            broken: false,
            frames: Vec::new(),
            slots: Vec::new(),
        })
    }

    /// Adds a frame, which [`Rx::flush`] delivers; its segments when it is to be split and the guest does not take such. `false`
    /// when it, or one of them, is dropped: the guest does not keep up, or cannot take a frame of that length.
    #[must_use]
    pub fn queue(&mut self, frame: Rc<Frame>) -> bool {
        let whole = match frame.blank_ipv6() {
            true => self.split_ipv6,
            false => self.split_ipv4,
        };
        let max_frame = match self.scatter_gather {
            true => usize::MAX,
            false => PAGE_SIZE,
        };
        !self.broken && self.waiting.add(frame, whole, max_frame)
    }

    /// Frames that wait for the guest's pages.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Bytes of the frames that wait.
    #[must_use]
    pub const fn waiting_bytes(&self) -> usize {
        self.waiting.bytes()
    }

    /// Puts as many frames as there are pages for into them, with one call for all. For the others the
    /// front end is asked for an event when it posted pages. Whether the front end is to be sent one.
    ///
    /// # Errors
    /// The front end's index is impossible. The device is to be closed; nothing more is delivered.
    pub fn flush(
        &mut self,
        ring: &impl SharedMem,
        copies: &mut impl Copies,
    ) -> Result<bool, RingError> {
        if self.broken || self.waiting.is_empty() {
            return Ok(false);
        }
        let (mut frames, mut slots) = (take(&mut self.frames), take(&mut self.slots));
        if let Err(e) = self.gather(ring, &mut frames, &mut slots) {
            self.broken = true;
            self.waiting.clear();
            return Err(e);
        }
        if !frames.is_empty() {
            self.deliver(ring, copies, &frames, &slots);
        }
        frames.clear();
        slots.clear();
        (self.frames, self.slots) = (frames, slots);
        Ok(self.ring.publish(ring))
    }

    /// Copies frames into pages, and answers.
    fn deliver(
        &mut self,
        ring: &impl SharedMem,
        copies: &mut impl Copies,
        frames: &[Outgoing],
        slots: &[Slot],
    ) {
        let mut list = Vec::with_capacity(slots.len());
        for slot in slots {
            let Holds::Part { frame, start, .. } = slot.holds else {
                continue;
            };
            let bytes = frames.get(frame).and_then(|f| f.bytes().get(start..));
            let Some(bytes) = bytes else { continue };
            list.push(CopyOut {
                gref: slot.gref,
                from: bytes.get(..PAGE_SIZE).unwrap_or(bytes),
                ok: false,
            });
        }
        copies.copy_out(&mut list);
        let mut done = list.iter();
        for slot in slots {
            let answer = match slot.holds {
                Holds::Split(info) => info.to_rx(),
                Holds::Part { flags, .. } => NetifRxResponse {
                    id: slot.id,
                    offset: 0,
                    flags,
                    status: match done.next() {
                        Some(copy) if copy.ok => copy.from.len() as i16,
                        _ => Status::Error.number(),
                    },
                },
            };
            // There is space, and it is the request's own place: they are answered in order.
            let _ = self.ring.push(ring, &answer);
        }
    }

    /// Takes frames, and requests for all their parts.
    fn gather(
        &mut self,
        ring: &impl SharedMem,
        frames: &mut Vec<Outgoing>,
        slots: &mut Vec<Slot>,
    ) -> Result<(), RingError> {
        while let Some(frame) = self.waiting.first() {
            let parts = frame.bytes().len().div_ceil(PAGE_SIZE);
            let split = frame.split().map(|size| {
                let kind = match frame.blank_ipv6() {
                    true => GSO_TYPE_TCPV6,
                    false => GSO_TYPE_TCPV4,
                };
                NetifExtraInfo::gso(size, kind, 0)
            });
            let entries = parts + usize::from(split.is_some());
            if !self.ring.wait_for(ring, entries as u32)? {
                break;
            }
            let Some(frame) = self.waiting.take() else {
                break;
            };
            let out = self.prepare(frame);
            for n in 0..parts {
                let mut flags = if n + 1 < parts { netrxf::MORE_DATA } else { 0 };
                if n == 0 {
                    flags |= out.flags;
                }
                let part = Holds::Part {
                    frame: frames.len(),
                    start: n * PAGE_SIZE,
                    flags,
                };
                slots.extend(self.slot(ring, part)?);
                // It follows the first part.
                if let Some(info) = split.filter(|_| n == 0) {
                    slots.extend(self.slot(ring, Holds::Split(info))?);
                }
            }
            frames.push(out);
        }
        Ok(())
    }

    /// Takes a request.
    fn slot(&mut self, ring: &impl SharedMem, holds: Holds) -> Result<Option<Slot>, RingError> {
        let request = self.ring.pop(ring)?;
        Ok(request.map(|r| Slot {
            id: r.id,
            gref: r.gref,
            holds,
        }))
    }

    fn prepare(&self, frame: Rc<Frame>) -> Outgoing {
        let takes_blank = match frame.blank_ipv6() {
            true => self.blank_ipv6,
            false => self.blank_ipv4,
        };
        let (completed, flags) = match frame.checksum() {
            Checksum::Present => (None, 0),
            Checksum::Validated => (None, netrxf::DATA_VALIDATED),
            Checksum::Blank if takes_blank => (None, netrxf::CSUM_BLANK | netrxf::DATA_VALIDATED),
            Checksum::Blank => (frame.completed(), 0),
        };
        let split = frame.split().map_or(0, |_| netrxf::EXTRA_INFO);
        Outgoing {
            frame,
            completed,
            flags: flags | split,
        }
    }
}
