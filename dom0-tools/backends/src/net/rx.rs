// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest receives.

use super::{Checksum, Copies, CopyOut, Frame, FrontConfig};
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use guest_abi::PAGE_SIZE;
use guest_abi::io::netif::{NetifRxRequest, NetifRxResponse, Status, netrxf};
use guest_abi::io::ring::{BackRing, RingError};
use guest_abi::mem::SharedMem;

/// Most frames that wait for the guest's pages: as many as its ring has entries.
const MAX_FRAMES: usize = 256;
/// Most bytes of them.
const MAX_BYTES: usize = 512 * 1024;

/// One ring of what a guest receives, and what waits for its pages.
pub struct Rx {
    ring: BackRing<NetifRxRequest, NetifRxResponse>,
    scatter_gather: bool,
    blank_ipv4: bool,
    blank_ipv6: bool,
    waiting: VecDeque<Rc<Frame>>,
    bytes: usize,
    broken: bool,
}

/// A frame on its way into pages.
struct Outgoing {
    frame: Rc<Frame>,
    /// The bytes when they differ from the frame's.
    completed: Option<Vec<u8>>,
    flags: u16,
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
    /// Takes up the ring that a front end made in one page. `None` never happens with a page.
    pub fn attach(ring: &impl SharedMem, config: &FrontConfig) -> Option<Self> {
        Some(Self {
            ring: BackRing::attach(ring, PAGE_SIZE)?,
            scatter_gather: config.scatter_gather,
            blank_ipv4: config.blank_ipv4,
            blank_ipv6: config.blank_ipv6,
            waiting: VecDeque::new(),
            bytes: 0,
            broken: false,
        })
    }

    /// Adds a frame, which [`Rx::flush`] delivers. `false` when it is dropped: the guest does not keep
    /// up, or cannot take a frame of that length.
    #[must_use]
    pub fn queue(&mut self, frame: Rc<Frame>) -> bool {
        let len = frame.bytes().len();
        let fits = len <= PAGE_SIZE || self.scatter_gather;
        let room = self.waiting.len() < MAX_FRAMES && self.bytes + len <= MAX_BYTES;
        if self.broken || !fits || !room || self.waiting.try_reserve(1).is_err() {
            return false;
        }
        self.bytes += len;
        self.waiting.push_back(frame);
        true
    }

    /// Frames that wait for the guest's pages.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
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
        let (mut frames, mut requests) = (Vec::new(), Vec::new());
        if let Err(e) = self.gather(ring, &mut frames, &mut requests) {
            self.broken = true;
            self.waiting.clear();
            return Err(e);
        }
        if frames.is_empty() {
            return Ok(false);
        }
        let mut next = requests.iter();
        let mut list = Vec::with_capacity(requests.len());
        for out in &frames {
            for (from, request) in out.bytes().chunks(PAGE_SIZE).zip(next.by_ref()) {
                list.push(CopyOut {
                    gref: request.gref,
                    from,
                    ok: false,
                });
            }
        }
        copies.copy_out(&mut list);
        let mut done = list.iter().zip(&requests);
        for out in &frames {
            let parts = out.bytes().len().div_ceil(PAGE_SIZE);
            for (n, (copy, request)) in done.by_ref().take(parts).enumerate() {
                let more = if n + 1 < parts { netrxf::MORE_DATA } else { 0 };
                let answer = NetifRxResponse {
                    id: request.id,
                    offset: 0,
                    flags: more | if n == 0 { out.flags } else { 0 },
                    status: match copy.ok {
                        true => copy.from.len() as i16,
                        false => Status::Error.number(),
                    },
                };
                // There is space, and it is the request's own place: they are answered in order.
                let _ = self.ring.push(ring, &answer);
            }
        }
        Ok(self.ring.publish(ring))
    }

    /// Takes frames, and requests for all their parts.
    fn gather(
        &mut self,
        ring: &impl SharedMem,
        frames: &mut Vec<Outgoing>,
        requests: &mut Vec<NetifRxRequest>,
    ) -> Result<(), RingError> {
        while let Some(frame) = self.waiting.front() {
            let parts = frame.bytes().len().div_ceil(PAGE_SIZE);
            if !self.ring.wait_for(ring, parts as u32)? {
                break;
            }
            for _ in 0..parts {
                requests.extend(self.ring.pop(ring)?);
            }
            let Some(frame) = self.waiting.pop_front() else {
                break;
            };
            self.bytes = self.bytes.saturating_sub(frame.bytes().len());
            frames.push(self.prepare(frame));
        }
        Ok(())
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
        Outgoing {
            frame,
            completed,
            flags,
        }
    }
}
