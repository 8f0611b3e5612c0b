// SPDX-License-Identifier: MIT OR Apache-2.0
//! Last words: why a run of the machine ended, in a page of memory that a warm reset leaves as it is.

/// Bytes of the page.
pub const PAGE: usize = 4096;
/// Of which so many are text at most: what 115,200 baud carry in a fifth of a second.
pub const TEXT: usize = 2048;
const MAGIC: u32 = 0x5056_4c57;
/// A run that was longer begins a new count of crashes, in seconds.
const CALM: u64 = 600;
/// What is waited before the first reset, as Xen does, and the most, in seconds.
const PAUSE: u64 = 5;
const MOST_PAUSE: u64 = 320;

/// What ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The hypervisor itself.
    Panic,
    /// The control domain, with this reason (`SHUTDOWN_*`).
    Dom0(u8),
}

impl Why {
    /// The number in the page: 255 is [`Why::Panic`], else the reason.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Panic => 255,
            Self::Dom0(reason) => reason,
        }
    }

    /// In words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Panic => "the hypervisor panicked",
            Self::Dom0(3) => "dom0 crashed",
            Self::Dom0(4) => "dom0 did not renew its watchdog",
            Self::Dom0(_) => "dom0 stopped",
        }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words<'a> {
    /// Why.
    pub why: Why,
    /// How many runs ended like that, one after the other.
    pub crashes: u32,
    /// How long this one was, in seconds.
    pub lasted: u64,
    /// What the console showed last.
    pub text: &'a [u8],
}

/// FNV-1a, of 64 bits.
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| {
        (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
    })
}

/// How many runs of `lasted` seconds have ended by a crash, when there were `before` before.
#[must_use]
pub const fn count(before: u32, lasted: u64) -> u32 {
    match lasted < CALM {
        true => before.saturating_add(1),
        false => 1,
    }
}

/// Seconds to wait before the reset that follows so many crashes.
#[must_use]
pub fn pause(crashes: u32) -> u64 {
    let doubled = 1u64.checked_shl(crashes.saturating_sub(1)).unwrap_or(0);
    match PAUSE.saturating_mul(doubled) {
        0 => MOST_PAUSE,
        pause => pause.min(MOST_PAUSE),
    }
}

impl<'a> Words<'a> {
    /// From the page, if they are there and whole.
    #[must_use]
    pub fn read(page: &'a [u8; PAGE]) -> Option<Self> {
        let (head, rest) = page.split_first_chunk::<32>()?;
        let word = |at: usize| {
            let bytes = head.get(at..).and_then(|b| b.first_chunk::<4>());
            bytes.map_or(0, |b| u32::from_le_bytes(*b))
        };
        let text = rest.get(..word(4) as usize).filter(|t| t.len() <= TEXT)?;
        let sums = [sum(head.get(..20)?), sum(text)];
        let whole = sums[0] ^ sums[1].rotate_left(1);
        if word(0) != MAGIC || [word(20), word(24)] != [whole as u32, (whole >> 32) as u32] {
            return None;
        }
        let why = match word(8) as u8 {
            255 => Why::Panic,
            reason => Why::Dom0(reason),
        };
        Some(Self {
            why,
            crashes: word(12),
            lasted: word(16).into(),
            text,
        })
    }

    /// Into the page; of a text that is too long, the end.
    pub fn write(&self, page: &mut [u8; PAGE]) {
        let from = self.text.len().saturating_sub(TEXT);
        let text = self.text.get(from..).unwrap_or_default();
        let mut head = [0; 32];
        let mut put = |at: usize, word: u32| {
            let place = head.get_mut(at..).and_then(|b| b.first_chunk_mut::<4>());
            if let Some(place) = place {
                *place = word.to_le_bytes();
            }
        };
        put(0, MAGIC);
        put(4, text.len() as u32);
        put(8, self.why.number().into());
        put(12, self.crashes);
        put(16, u32::try_from(self.lasted).unwrap_or(u32::MAX));
        let whole = sum(head.get(..20).unwrap_or_default()) ^ sum(text).rotate_left(1);
        for (at, byte) in whole.to_le_bytes().into_iter().enumerate() {
            if let Some(place) = head.get_mut(at.saturating_add(20)) {
                *place = byte;
            }
        }
        for (to, from) in page.iter_mut().zip(head.iter().chain(text)) {
            *to = *from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_what_was_not_is_nothing() {
        let mut page = [0x5a; PAGE];
        assert_eq!(Words::read(&page), None);
        let long: Vec<u8> = (0..5000u32).map(|i| i as u8).collect();
        for (text, why) in [
            (&b"panicked at x.rs:1"[..], Why::Panic),
            (&[], Why::Dom0(4)),
            (&long, Why::Dom0(3)),
        ] {
            let words = Words {
                why,
                crashes: 7,
                lasted: 12,
                text,
            };
            words.write(&mut page);
            let text = &text[text.len().saturating_sub(TEXT)..];
            assert_eq!(Words::read(&page), Some(Words { text, ..words }));
            // Whatever bit is lost on the way.
            for at in (0..28).chain(32..32 + text.len()) {
                for bit in 0..8 {
                    page[at] ^= 1 << bit;
                    assert_eq!(Words::read(&page), None, "byte {at}, bit {bit}");
                    page[at] ^= 1 << bit;
                }
            }
        }
    }

    #[test]
    fn a_loop_of_crashes_slows_down_and_a_calm_run_ends_it() {
        let mut crashes = 0;
        let mut pauses = [0; 10];
        for p in &mut pauses {
            crashes = count(crashes, 3);
            *p = pause(crashes);
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 320, 320, 320]);
        assert_eq!((pause(64), pause(65), pause(u32::MAX)), (320, 320, 320));
        assert_eq!((count(9, 599), count(9, 600)), (10, 1));
        assert_eq!(count(u32::MAX, 0), u32::MAX);
    }
}
