// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames that wait for a receiver, in a bounded number.

use super::Frame;
use alloc::collections::VecDeque;
use alloc::rc::Rc;

/// Most frames that wait: as many as a guest's ring has entries.
const MAX_FRAMES: usize = 256;
/// Most bytes of them.
const MAX_BYTES: usize = 512 << 10;

/// Frames that wait, each as it is to be received.
#[derive(Default)]
pub struct Waiting {
    frames: VecDeque<Rc<Frame>>,
    bytes: usize,
}

impl Waiting {
    /// Adds a frame; its segments when it is to be split and is not taken `whole`. False when it, or one of them, is
    /// dropped: it has more than `max_frame` bytes, or too many wait.
    #[must_use]
    pub fn add(&mut self, frame: Rc<Frame>, whole: bool, max_frame: usize) -> bool {
        if frame.split().is_some() && !whole {
            return frame
                .segments()
                .all(|s| self.add_one(Rc::new(s), max_frame));
        }
        self.add_one(frame, max_frame)
    }

    fn add_one(&mut self, frame: Rc<Frame>, max_frame: usize) -> bool {
        let len = frame.bytes().len();
        let room = self.frames.len() < MAX_FRAMES && self.bytes + len <= MAX_BYTES;
        if len > max_frame || !room || self.frames.try_reserve(1).is_err() {
            return false;
        }
        self.bytes += len;
        self.frames.push_back(frame);
        true
    }

    /// The first one.
    #[must_use]
    pub fn first(&self) -> Option<&Frame> {
        self.frames.front().map(|f| &**f)
    }

    /// The first one's turn.
    pub fn take(&mut self) -> Option<Rc<Frame>> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.bytes().len();
        Some(frame)
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes that wait.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Checksum;
    use std::vec;

    fn frame(len: usize) -> Rc<Frame> {
        Rc::new(Frame::new(vec![0; len], Checksum::Present).unwrap())
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut w = Waiting::default();
        assert!(!w.add(frame(1519), false, 1518));
        let mut taken = 0;
        while w.add(frame(60), false, 1518) {
            taken += 1;
        }
        assert_eq!((taken, w.bytes()), (MAX_FRAMES, 60 * MAX_FRAMES));
        assert_eq!(w.first().map(|f| f.bytes().len()), Some(60));
        assert_eq!(w.take().map(|f| f.bytes().len()), Some(60));
        assert_eq!(w.len(), MAX_FRAMES - 1);
        assert!(w.add(frame(60), false, 1518));
        w.clear();
        assert!(w.is_empty() && w.bytes() == 0 && w.take().is_none());
        let mut bytes = 0;
        while w.add(frame(60_000), false, 65_535) {
            bytes += 60_000;
        }
        assert!(bytes == w.bytes() && bytes <= MAX_BYTES);
    }
}
