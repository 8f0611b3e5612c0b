// SPDX-License-Identifier: MIT OR Apache-2.0
//! How much a guest may send in a time.

/// A credit in bytes that is filled up at each interval. A frame goes while there is any credit left;
/// what it takes beyond that is owed to the next intervals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credit {
    limit: Option<Limit>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Limit {
    bytes: i64,
    interval_ns: u64,
    left: i64,
    /// When it was filled up last.
    since: Option<u64>,
}

impl Credit {
    /// No limit.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self { limit: None }
    }

    /// So many bytes in each interval; neither may be 0, else there is no limit.
    #[must_use]
    pub fn new(bytes: u64, interval_us: u32) -> Self {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let limit = (bytes > 0 && interval_us > 0).then_some(Limit {
            bytes,
            interval_ns: u64::from(interval_us) * 1000,
            left: bytes,
            since: None,
        });
        Self { limit }
    }

    /// Whether a frame may be sent now, a time in nanoseconds.
    ///
    /// # Errors
    /// It may not; the time at which there is more credit.
    pub fn check(&mut self, now: u64) -> Result<(), u64> {
        let Some(l) = &mut self.limit else {
            return Ok(());
        };
        let since = *l.since.get_or_insert(now);
        let passed = now.saturating_sub(since) / l.interval_ns;
        let more = l
            .bytes
            .saturating_mul(i64::try_from(passed).unwrap_or(i64::MAX));
        l.left = l.left.saturating_add(more).min(l.bytes);
        let since = since.saturating_add(passed.saturating_mul(l.interval_ns));
        l.since = Some(since);
        if l.left > 0 {
            return Ok(());
        }
        Err(since.saturating_add(l.interval_ns))
    }

    /// A frame of so many bytes was sent.
    pub fn spend(&mut self, bytes: usize) {
        if let Some(l) = &mut self.limit {
            l.left = l.left.saturating_sub_unsigned(bytes as u64);
        }
    }
}
