// SPDX-License-Identifier: MIT OR Apache-2.0
//! One ring.

use super::request::{Kind, Op, check};
use super::{Disk, Limits, Pages};
use alloc::vec::Vec;
use guest_abi::io::blkif::{BlkifResponse, Slot, Status};
use guest_abi::io::ring::{BackRing, RingError};
use guest_abi::mem::SharedMem;

/// What [`Queue::take_requests`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Taken {
    /// How many requests were taken, those counted that were answered at once.
    pub requests: u32,
    /// The front end is to be sent an event: bad requests were answered.
    pub notify: bool,
    /// There are more requests and no event will tell of them: call again.
    pub more: bool,
}

/// One ring of a device: takes requests, each copied once and checked, and answers each once.
pub struct Queue {
    ring: BackRing<Slot, BlkifResponse>,
    disk: Disk,
    limits: Limits,
    stopped: bool,
    /// A barrier that waits until it is the only request without an answer.
    held: Option<Op>,
    /// A barrier was given out, and nothing since.
    barrier: bool,
}

impl Queue {
    /// Takes up the ring that a front end made in `bytes` bytes (its pages, one after the other). What
    /// an earlier back end did not answer is taken again. `None` when the size holds no entry.
    pub fn attach(ring: &impl SharedMem, bytes: usize, disk: Disk, limits: Limits) -> Option<Self> {
        Some(Self {
            ring: BackRing::attach(ring, bytes)?,
            disk,
            limits,
            stopped: false,
            held: None,
            barrier: false,
        })
    }

    /// How many requests were taken and have no answer yet, one that is held back among them.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.ring.in_flight()
    }

    /// Whether a barrier is held back: [`Queue::take_requests`] gives it out once all before it are answered.
    #[must_use]
    pub const fn holds(&self) -> bool {
        self.held.is_some()
    }

    /// Takes no more requests. Those in flight are still to be answered, and one that is held back to be taken.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Takes up to `budget` requests and appends those to do to `ops`; bad ones are answered here.
    /// When none is left, the front end is asked for an event at the next one. Nothing is taken that a barrier keeps
    /// back: call again when a request has been answered.
    ///
    /// # Errors
    /// The front end's index is impossible. The queue has stopped, and the device is to be closed; what
    /// is in `ops` is still to be answered.
    pub fn take_requests(
        &mut self,
        ring: &impl SharedMem,
        pages: &mut impl Pages,
        budget: u32,
        ops: &mut Vec<Op>,
    ) -> Result<Taken, RingError> {
        let mut taken = Taken::default();
        let most = budget.min(self.ring.size());
        if ops.try_reserve(most.max(1) as usize).is_err() {
            taken.more = true;
            return Ok(taken);
        }
        self.barrier &= self.in_flight() > 0;
        if self.in_flight() == 1
            && let Some(op) = self.held.take()
        {
            self.barrier = true;
            ops.push(op);
        }
        if self.stopped || self.held.is_some() || self.barrier {
            return Ok(taken);
        }
        let result = self.take(ring, pages, most, ops, &mut taken);
        self.stopped = result.is_err();
        result.map(|()| {
            taken.notify = self.ring.publish(ring);
            taken
        })
    }

    fn take(
        &mut self,
        ring: &impl SharedMem,
        pages: &mut impl Pages,
        budget: u32,
        ops: &mut Vec<Op>,
        taken: &mut Taken,
    ) -> Result<(), RingError> {
        while taken.requests < budget {
            let Some(slot) = self.ring.pop(ring)? else {
                if self.ring.final_check(ring)? {
                    continue;
                }
                return Ok(());
            };
            taken.requests += 1;
            match check(&slot, &self.disk, &self.limits, pages) {
                Ok(op) if op.kind() == Kind::Barrier => {
                    if self.in_flight() == 1 {
                        self.barrier = true;
                        ops.push(op);
                    } else {
                        self.held = Some(op);
                    }
                    return Ok(());
                }
                Ok(op) => ops.push(op),
                Err(answer) => {
                    // There is space: the request that was just taken has no answer.
                    let _ = self.ring.push(ring, &answer);
                }
            }
        }
        taken.more = self.ring.final_check(ring)?;
        Ok(())
    }

    /// Writes the answer to one of this queue's requests; [`Queue::publish`] shows it.
    pub fn respond(&mut self, ring: &impl SharedMem, op: Op, status: Status) {
        // There is space: `op` was taken, has no answer, and cannot be handed in again.
        let _ = self.ring.push(ring, &op.answer(status));
    }

    /// Shows the answers written since the last time. Whether the front end is to be sent an event.
    #[must_use]
    pub fn publish(&mut self, ring: &impl SharedMem) -> bool {
        self.ring.publish(ring)
    }

    /// [`Queue::respond`] and [`Queue::publish`].
    #[must_use]
    pub fn complete(&mut self, ring: &impl SharedMem, op: Op, status: Status) -> bool {
        self.respond(ring, op, status);
        self.publish(ring)
    }
}
