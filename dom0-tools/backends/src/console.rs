// SPDX-License-Identifier: MIT OR Apache-2.0
//! A domain's console (`io/console.h`): what it printed, and what is typed to it.
//!
//! What the guest prints goes to a [`Log`] of fixed size that forgets the oldest bytes; any number of
//! readers follow it, each by its own position. A guest is thus never held up by a slow reader. What
//! is typed waits in a bounded queue until the guest's ring has space.
//!
//! The caller clears the event, then calls [`Console::pump`], then sends an event if it says so.

use alloc::collections::{TryReserveError, VecDeque};
use guest_abi::io::console::{IN, OUT, OUT_SIZE};
use guest_abi::io::ring::RingError;
use guest_abi::mem::SharedMem;

/// Usual size of a log in bytes.
pub const LOG_SIZE: usize = 64 * 1024;
/// Most typed bytes that wait for space in the guest's ring.
pub const INPUT_SIZE: usize = 4096;

/// The last bytes that a domain printed. A position is the number of bytes printed before it since
/// the log was made.
#[derive(Debug)]
pub struct Log {
    bytes: VecDeque<u8>,
    size: usize,
    end: u64,
}

impl Log {
    /// An empty log that keeps the last `size` bytes.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(size: usize) -> Result<Self, TryReserveError> {
        let mut bytes = VecDeque::new();
        bytes.try_reserve_exact(size)?;
        Ok(Self {
            bytes,
            size,
            end: 0,
        })
    }

    /// Position of the oldest byte that is kept.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.end.saturating_sub(self.bytes.len() as u64)
    }

    /// Position of the next byte to be printed: where one that wants only what is new starts.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Adds bytes; the oldest give way.
    pub fn push(&mut self, bytes: &[u8]) {
        self.end = self.end.saturating_add(bytes.len() as u64);
        let (_, kept) = bytes.split_at(bytes.len().saturating_sub(self.size));
        let surplus = (self.bytes.len() + kept.len()).saturating_sub(self.size);
        self.bytes.drain(..surplus.min(self.bytes.len()));
        self.bytes.extend(kept);
    }

    /// What is kept from `position` on, as two pieces, the second often empty. A position that the
    /// log forgot counts as the oldest. To follow, go on from [`Log::end`].
    #[must_use]
    pub fn since(&self, position: u64) -> (&[u8], &[u8]) {
        let skip = position.saturating_sub(self.start());
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let (a, b) = self.bytes.as_slices();
        let tail = b.get(skip.saturating_sub(a.len())..).unwrap_or_default();
        (a.get(skip..).unwrap_or_default(), tail)
    }

    /// Copies what is kept from `*position` on, as much as fits in `to`, and moves the position
    /// behind it. Returns how many bytes were copied.
    pub fn read(&self, position: &mut u64, to: &mut [u8]) -> usize {
        let (a, b) = self.since(*position);
        let mut n = 0;
        for (to, from) in to.iter_mut().zip(a.iter().chain(b)) {
            *to = *from;
            n += 1;
        }
        *position = (*position)
            .clamp(self.start(), self.end)
            .saturating_add(n as u64);
        n
    }
}

/// One domain's console.
#[derive(Debug)]
pub struct Console {
    log: Log,
    input: VecDeque<u8>,
}

impl Console {
    /// A console whose log keeps `log_size` bytes (usually [`LOG_SIZE`]).
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(log_size: usize) -> Result<Self, TryReserveError> {
        let mut input = VecDeque::new();
        input.try_reserve_exact(INPUT_SIZE)?;
        Ok(Self {
            log: Log::new(log_size)?,
            input,
        })
    }

    /// What the domain printed.
    #[must_use]
    pub const fn log(&self) -> &Log {
        &self.log
    }

    /// Adds a line of the tools' own to the log, such as that the domain started.
    pub fn note(&mut self, bytes: &[u8]) {
        self.log.push(bytes);
    }

    /// Takes what the guest printed, at most the ring's size in one call, into the log. Returns
    /// whether the guest is to be sent an event.
    ///
    /// # Errors
    /// The guest's indexes are impossible: nothing moves until they are possible again.
    pub fn drain_output(&mut self, page: &impl SharedMem) -> Result<bool, RingError> {
        let mut buffer = [0; OUT_SIZE as usize];
        let n = OUT.read(page, &mut buffer)?;
        self.log.push(buffer.get(..n).unwrap_or_default());
        Ok(n > 0)
    }

    /// Queues what was typed. Returns how many bytes were taken; no more than [`INPUT_SIZE`] wait.
    /// [`Console::flush_input`] hands them to the guest.
    pub fn push_input(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(INPUT_SIZE.saturating_sub(self.input.len()));
        self.input.extend(bytes.iter().take(n));
        n
    }

    /// How many typed bytes wait for space in the guest's ring.
    #[must_use]
    pub fn input_waiting(&self) -> usize {
        self.input.len()
    }

    /// Moves typed bytes to the guest, as many as its ring has space for. Returns whether the guest
    /// is to be sent an event.
    ///
    /// # Errors
    /// As [`Console::drain_output`].
    pub fn flush_input(&mut self, page: &impl SharedMem) -> Result<bool, RingError> {
        let mut moved = false;
        while !self.input.is_empty() {
            let (first, _) = self.input.as_slices();
            let n = IN.write(page, first)?;
            if n == 0 {
                break;
            }
            self.input.drain(..n.min(self.input.len()));
            moved = true;
        }
        Ok(moved)
    }

    /// All that is to be done when the guest sent an event: [`Console::drain_output`] and
    /// [`Console::flush_input`]. Returns whether the guest is to be sent an event.
    ///
    /// # Errors
    /// As [`Console::drain_output`].
    pub fn pump(&mut self, page: &impl SharedMem) -> Result<bool, RingError> {
        let out = self.drain_output(page)?;
        let input = self.flush_input(page)?;
        Ok(out || input)
    }
}

#[cfg(test)]
mod tests;
