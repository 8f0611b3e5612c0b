// SPDX-License-Identifier: MIT OR Apache-2.0
//! A virtqueue that owns what the device works on. It is used without `EVENT_IDX`, whose test in
//! `VirtQueue::should_notify` fails when the index wraps.

use super::{El1, Fault, QUEUE};
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};
use virtio_drivers::Error;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;

/// Memory that a device works on.
///
/// # Safety
/// The parts are the same ones at each call, none of them is empty, and they stay where they are until this is dropped,
/// also when it is moved.
pub(super) unsafe trait Parts {
    /// Calls `f` with the lists of what the device reads and what it writes.
    fn with_parts<R>(
        &mut self,
        f: impl for<'a> FnOnce(&'a [&'a [u8]], &'a mut [&'a mut [u8]]) -> R,
    ) -> R;
}

/// The queue, and what is in it. The device must be reset before it is dropped.
pub(super) struct Queue<P> {
    queue: VirtQueue<El1, QUEUE>,
    number: u16,
    /// By the tokens.
    slots: Vec<Option<P>>,
}

impl<P: Parts> Queue<P> {
    /// The device's queue with this number.
    pub fn new(transport: &mut impl Transport, number: u16, indirect: bool) -> Result<Self, Error> {
        Ok(Self {
            queue: VirtQueue::new(transport, number, indirect, false)?,
            number,
            slots: (0..QUEUE).map(|_| None).collect(),
        })
    }

    /// Gives the device something to work on; it comes back when there is no room.
    pub fn add(&mut self, mut parts: P, transport: &mut impl Transport) -> Result<(), P> {
        let queue = &mut self.queue;
        // SAFETY: it stays in `slots`, and nobody looks at it, until `pop_used`, or until the device is reset.
        let token = parts.with_parts(|inputs, outputs| unsafe { queue.add(inputs, outputs) });
        let Ok(token) = token else {
            return Err(parts);
        };
        // Which is the queue's own, and less than its size.
        self.slots[usize::from(token)] = Some(parts);
        fence(Ordering::SeqCst);
        if self.queue.should_notify() {
            transport.notify(self.number);
        }
        Ok(())
    }

    /// The next one that the device is done with, and how many bytes it says that it wrote.
    pub fn take(&mut self) -> Result<Option<(P, u32)>, Fault> {
        let Some(token) = self.queue.peek_used() else {
            return Ok(None);
        };
        let slot = self.slots.get_mut(usize::from(token));
        let slot = slot.ok_or(Fault::NotIts(token))?;
        let parts = slot.as_mut().ok_or(Fault::NotIts(token))?;
        let queue = &mut self.queue;
        // SAFETY: the same parts as at `add`.
        let popped =
            parts.with_parts(|inputs, outputs| unsafe { queue.pop_used(token, inputs, outputs) });
        let len = popped.map_err(|_| Fault::NotIts(token))?;
        Ok(slot.take().map(|parts| (parts, len)))
    }

    /// One of those that the device had when it was reset.
    pub fn take_back(&mut self) -> Option<P> {
        self.slots.iter_mut().find_map(Option::take)
    }

    /// How many more parts it takes.
    pub fn room(&self) -> usize {
        self.queue.available_desc()
    }

    /// Whether an interrupt is to tell of what the device is done with.
    pub fn set_interrupt(&mut self, wanted: bool) {
        self.queue.set_dev_notify(wanted);
        // What it has done until it sees that is not told.
        fence(Ordering::SeqCst);
    }
}
