// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's console: a log of what was printed, and bytes typed that wait for dom0.

use alloc::collections::VecDeque;

/// Bytes of the log that `vane dmesg` shows.
pub const LOG: usize = 16 * 1024;
/// Bytes typed that dom0 has not read yet; more are dropped.
const INPUT: usize = 4096;

/// Log and input.
pub struct Console {
    log: VecDeque<u8>,
    /// Bytes ever logged, for incremental reads.
    logged: u64,
    input: VecDeque<u8>,
}

impl Console {
    /// Empty; allocates both buffers (at boot).
    #[must_use]
    pub fn new() -> Self {
        Self {
            log: VecDeque::with_capacity(LOG),
            logged: 0,
            input: VecDeque::with_capacity(INPUT),
        }
    }

    /// Remembers what the hypervisor printed; the oldest goes.
    pub fn log(&mut self, bytes: &[u8]) {
        for &b in bytes {
            if self.log.len() >= LOG {
                self.log.pop_front();
            }
            self.log.push_back(b);
            self.logged += 1;
        }
    }

    /// Copies log bytes from position `from` (counted since boot) on; gives how many were copied
    /// and the position of the first, which is later than `from` when the log has moved on.
    pub fn read_log(&self, from: u64, buf: &mut [u8]) -> (usize, u64) {
        let oldest = self.logged - self.log.len() as u64;
        let start = from.clamp(oldest, self.logged);
        let skip = (start - oldest) as usize;
        let mut n = 0;
        for (place, &b) in buf.iter_mut().zip(self.log.iter().skip(skip)) {
            *place = b;
            n += 1;
        }
        (n, start)
    }

    /// Forgets the log.
    pub fn clear_log(&mut self) {
        self.log.clear();
    }

    /// A byte was typed; `false` when it had to be dropped.
    pub fn typed(&mut self, byte: u8) -> bool {
        let room = self.input.len() < INPUT;
        if room {
            self.input.push_back(byte);
        }
        room
    }

    /// Takes typed bytes; gives how many.
    pub fn read_input(&mut self, buf: &mut [u8]) -> usize {
        let mut n = 0;
        for place in buf {
            let Some(b) = self.input.pop_front() else {
                break;
            };
            *place = b;
            n += 1;
        }
        n
    }
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

/// How much of the log guests may cause by what they do, all together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reports {
    window: u64,
    lines: u32,
    left_out: u32,
}

impl Reports {
    /// Lines in one window.
    const LINES: u32 = 60;
    /// Nanoseconds of a window.
    const WINDOW: u64 = 10_000_000_000;

    /// Whether a report of so many lines may be printed at `now`, in ns. Says in the log what was
    /// left out, once there is room again.
    pub fn allow(&mut self, lines: u32, now: u64) -> bool {
        let window = now / Self::WINDOW;
        if window != self.window {
            if self.left_out != 0 {
                log::warn!("{} reports of what guests did were left out", self.left_out);
            }
            *self = Self {
                window,
                ..Self::default()
            };
        }
        if self.lines.saturating_add(lines) > Self::LINES {
            self.left_out = self.left_out.saturating_add(1);
            return false;
        }
        self.lines += lines;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that crashes and is started again without end does not flood the log.
    #[test]
    fn xsa_118_146_reports_are_bounded_whoever_causes_them() {
        let mut r = Reports::default();
        let second = 1_000_000_000;
        let printed = |r: &mut Reports, from: u64| {
            (0..1000)
                .filter(|i| r.allow(10, from + i * second / 1000))
                .count()
        };
        assert_eq!(printed(&mut r, 100 * second), 6);
        assert_eq!(printed(&mut r, 105 * second), 0, "the same ten seconds");
        assert_eq!(r.left_out, 1994);
        assert!(r.allow(1, 110 * second));
        assert_eq!(r.left_out, 0);
        assert_eq!(
            printed(&mut r, 111 * second),
            5,
            "and no window is lent to another"
        );
        assert!(!r.allow(u32::MAX - 60, 112 * second));
    }
}
