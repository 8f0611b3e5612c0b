// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames that wait for a receiver, in a bounded number.

use super::Frame;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use core::cell::Cell;

/// Most frames that wait: as many as a guest's ring has entries.
const MAX_FRAMES: usize = 256;
/// Most bytes of them.
const MAX_BYTES: usize = 512 << 10;
/// Bytes of them that a [`Pool`] need not have left: a large frame.
const OWN_BYTES: usize = 64 << 10;

/// Bytes that may wait for many receivers together, beside a few that may for each: so receivers that do not keep up, or do not
/// want to, use no more memory than these however many there are.
#[derive(Debug)]
pub struct Pool(Cell<usize>);

impl Pool {
    /// With so many bytes.
    #[must_use]
    pub const fn new(bytes: usize) -> Self {
        Self(Cell::new(bytes))
    }

    /// What of a receiver's bytes it has.
    const fn part(bytes: usize) -> usize {
        bytes.saturating_sub(OWN_BYTES)
    }

    /// A receiver's bytes are to be others; false when there are too few left.
    fn change(&self, from: usize, to: usize) -> bool {
        let left = (self.0.get() + Self::part(from)).checked_sub(Self::part(to));
        left.map(|n| self.0.set(n)).is_some()
    }
}

/// Frames that wait, each as it is to be received.
#[derive(Default)]
pub struct Waiting {
    frames: VecDeque<Rc<Frame>>,
    bytes: usize,
    pool: Option<Rc<Pool>>,
}

impl Waiting {
    /// Frames that wait beside others in a pool.
    #[must_use]
    pub fn of(pool: Rc<Pool>) -> Self {
        Self {
            frames: VecDeque::new(),
            bytes: 0,
            pool: Some(pool),
        }
    }

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
        if !self.set_bytes(self.bytes + len) {
            return false;
        }
        self.frames.push_back(frame);
        true
    }

    /// False when it would be more and the pool has not as much.
    fn set_bytes(&mut self, bytes: usize) -> bool {
        let pool = self.pool.as_ref();
        let fits = pool.is_none_or(|p| p.change(self.bytes, bytes));
        if fits {
            self.bytes = bytes;
        }
        fits
    }

    /// The first one.
    #[must_use]
    pub fn first(&self) -> Option<&Frame> {
        self.frames.front().map(|f| &**f)
    }

    /// The first one's turn.
    pub fn take(&mut self) -> Option<Rc<Frame>> {
        let frame = self.frames.pop_front()?;
        self.set_bytes(self.bytes - frame.bytes().len());
        Some(frame)
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.frames = VecDeque::new();
        self.set_bytes(0);
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

impl Drop for Waiting {
    fn drop(&mut self) {
        self.set_bytes(0);
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

    // XSA-392.
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
    #[test]
    fn all_together_are_bounded_and_each_has_a_little() {
        let pool = Rc::new(Pool::new(600 << 10));
        let of = || Waiting::of(pool.clone());
        let fill = |w: &mut Waiting| {
            while w.add(frame(4096), false, 65_535) {}
            w.bytes() >> 10
        };
        let (mut a, mut b, mut c) = (of(), of(), of());
        assert_eq!((fill(&mut a), fill(&mut b), fill(&mut c)), (512, 216, 64));
        assert_eq!(pool.0.get(), 0);
        // What one no longer has, another may.
        for _ in 0..10 {
            assert!(a.take().is_some());
        }
        assert_eq!((fill(&mut c), fill(&mut a)), (104, 472));
        b.clear();
        assert_eq!((fill(&mut a), fill(&mut c), fill(&mut b)), (512, 216, 64));
        drop((a, b, c));
        assert_eq!(pool.0.get(), 600 << 10);
    }
}
