// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames that wait for a receiver, in a bounded number.

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use backends::net::Frame;
use core::cell::{Cell, RefCell};

/// Most frames that wait.
const MAX_FRAMES: usize = 256;
/// Most bytes of them.
const MAX_BYTES: usize = 512 << 10;

/// Frames that wait, each whole as it is to be received.
#[derive(Default)]
pub struct Waiting {
    frames: RefCell<VecDeque<Rc<Frame>>>,
    bytes: Cell<usize>,
}

impl Waiting {
    /// Adds a frame; its segments when it is to be split. False when it, or one of them, is dropped: it has more
    /// than `max_frame` bytes, or too many wait.
    pub fn add(&self, frame: &Rc<Frame>, max_frame: usize) -> bool {
        if frame.split().is_some() {
            return frame
                .segments()
                .all(|s| self.add_one(Rc::new(s), max_frame));
        }
        self.add_one(frame.clone(), max_frame)
    }

    fn add_one(&self, frame: Rc<Frame>, max_frame: usize) -> bool {
        let len = frame.bytes().len();
        let mut frames = self.frames.borrow_mut();
        let room = frames.len() < MAX_FRAMES && self.bytes.get() + len <= MAX_BYTES;
        if len > max_frame || !room || frames.try_reserve(1).is_err() {
            return false;
        }
        self.bytes.set(self.bytes.get() + len);
        frames.push_back(frame);
        true
    }

    /// The first one's turn.
    pub fn next(&self) -> Option<Rc<Frame>> {
        let frame = self.frames.borrow_mut().pop_front()?;
        self.bytes.set(self.bytes.get() - frame.bytes().len());
        Some(frame)
    }

    /// Forgets all.
    pub fn clear(&self) {
        while self.next().is_some() {}
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.borrow().is_empty()
    }

    /// Bytes that wait.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backends::net::Checksum;

    fn frame(len: usize) -> Rc<Frame> {
        Rc::new(Frame::new(vec![0; len], Checksum::Present).unwrap())
    }

    #[test]
    fn what_waits_is_bounded() {
        let w = Waiting::default();
        assert!(!w.add(&frame(1519), 1518));
        let mut taken = 0;
        while w.add(&frame(60), 1518) {
            taken += 1;
        }
        assert_eq!((taken, w.bytes()), (MAX_FRAMES, 60 * MAX_FRAMES));
        assert_eq!(w.next().map(|f| f.bytes().len()), Some(60));
        assert!(w.add(&frame(60), 1518));
        w.clear();
        assert!(w.is_empty() && w.bytes() == 0 && w.next().is_none());
        let mut bytes = 0;
        while w.add(&frame(60_000), 65_535) {
            bytes += 60_000;
        }
        assert!(bytes == w.bytes() && bytes <= MAX_BYTES);
    }
}
