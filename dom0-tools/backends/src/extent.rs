// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where a virtual disk's sectors are on the real disk: a disk image's clusters as ranges of sectors.
//!
//! Sectors are of 512 bytes. The map is made once, from the file's clusters in their order; each
//! request is then looked up and cut into [`Transfer`]s, each one piece on the disk and one piece in
//! memory.

use crate::blk::Span;
use alloc::vec::Vec;
use core::fmt;
use guest_abi::io::blkif::SECTOR_SIZE;

/// Sectors that lie one after the other on the real disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first, on the real disk.
    pub lba: u64,
    /// How many.
    pub sectors: u64,
}

/// What cannot be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentError {
    /// Sector numbers pass 2^64.
    TooLarge,
    /// The request goes past the disk's end.
    OutOfRange,
    /// Out of memory for the map.
    NoMemory,
}

impl fmt::Display for ExtentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "sector numbers pass 2^64",
            Self::OutOfRange => "past the disk's end",
            Self::NoMemory => "out of memory for the disk's map",
        })
    }
}

impl core::error::Error for ExtentError {}

/// A virtual disk's sectors, from 0 on without holes, as ranges on the real disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtentMap {
    extents: Vec<Extent>,
    sectors: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    /// First sector on the virtual disk.
    at: u64,
    run: Run,
}

impl ExtentMap {
    /// A map of no sectors.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            extents: Vec::new(),
            sectors: 0,
        }
    }

    /// A map of one piece: a whole disk or partition.
    ///
    /// # Errors
    /// As [`ExtentMap::push`].
    pub fn whole(run: Run) -> Result<Self, ExtentError> {
        let mut map = Self::new();
        map.push(run)?;
        Ok(map)
    }

    /// Adds sectors at the virtual disk's end; joined with the last when they follow it on the real
    /// disk too.
    ///
    /// # Errors
    /// [`ExtentError::TooLarge`], [`ExtentError::NoMemory`]; the map is as before.
    pub fn push(&mut self, run: Run) -> Result<(), ExtentError> {
        if run.sectors == 0 {
            return Ok(());
        }
        let end = self.sectors.checked_add(run.sectors);
        let (Some(end), Some(_)) = (end, run.lba.checked_add(run.sectors)) else {
            return Err(ExtentError::TooLarge);
        };
        match self.extents.last_mut() {
            Some(last) if last.run.lba + last.run.sectors == run.lba => {
                last.run.sectors += run.sectors;
            }
            _ => {
                self.extents
                    .try_reserve(1)
                    .map_err(|_| ExtentError::NoMemory)?;
                self.extents.push(Extent {
                    at: self.sectors,
                    run,
                });
            }
        }
        self.sectors = end;
        Ok(())
    }

    /// Forgets what is past `sectors`: the part of the last cluster that is not the file's.
    pub fn truncate(&mut self, sectors: u64) {
        if sectors >= self.sectors {
            return;
        }
        self.extents.retain_mut(|e| {
            e.run.sectors = e.run.sectors.min(sectors.saturating_sub(e.at));
            e.run.sectors > 0
        });
        self.sectors = sectors;
    }

    /// The virtual disk's size.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        self.sectors
    }

    /// How many pieces there are on the real disk.
    #[must_use]
    pub fn extents(&self) -> usize {
        self.extents.len()
    }

    /// Where `count` sectors from `sector` on are, in the virtual disk's order, in pieces of at most
    /// `max` sectors (0 counts as 1).
    ///
    /// # Errors
    /// [`ExtentError::OutOfRange`].
    pub fn runs(&self, sector: u64, count: u64, max: u64) -> Result<Runs<'_>, ExtentError> {
        match sector.checked_add(count) {
            Some(end) if end <= self.sectors => {}
            _ => return Err(ExtentError::OutOfRange),
        }
        let first = self.extents.partition_point(|e| e.at <= sector);
        let rest = self
            .extents
            .get(first.saturating_sub(1)..)
            .unwrap_or_default();
        Ok(Runs {
            rest,
            at: sector,
            left: count,
            max: max.max(1),
        })
    }

    /// Cuts a request into transfers: `spans` is its memory in the disk's order, `sector` its first
    /// sector, `max` the most sectors of a transfer (0 counts as 1). Spans that follow each other in
    /// memory are joined.
    ///
    /// # Errors
    /// [`ExtentError::OutOfRange`].
    pub fn transfers<'a>(
        &'a self,
        sector: u64,
        spans: &'a [Span],
        max: u64,
    ) -> Result<Transfers<'a>, ExtentError> {
        let count = spans
            .iter()
            .map(|s| sectors_of(s.bytes))
            .try_fold(0u64, u64::checked_add)
            .ok_or(ExtentError::OutOfRange)?;
        Ok(Transfers {
            runs: self.runs(sector, count, u64::MAX)?,
            spans,
            skip: 0,
            max: max.max(1),
        })
    }
}

const fn sectors_of(bytes: u32) -> u64 {
    (bytes / SECTOR_SIZE as u32) as u64
}

/// See [`ExtentMap::runs`].
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    /// The extent that holds `at`, and those after.
    rest: &'a [Extent],
    at: u64,
    left: u64,
    max: u64,
}

impl Runs<'_> {
    /// The next piece, of at most `max` sectors.
    fn next_up_to(&mut self, max: u64) -> Option<Run> {
        if self.left == 0 {
            return None;
        }
        let mut extent = self.rest.first()?;
        if self.at - extent.at == extent.run.sectors {
            self.rest = self.rest.get(1..)?;
            extent = self.rest.first()?;
        }
        let skip = self.at - extent.at;
        let sectors = (extent.run.sectors - skip).min(self.left).min(max);
        self.at += sectors;
        self.left -= sectors;
        Some(Run {
            lba: extent.run.lba + skip,
            sectors,
        })
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;
    fn next(&mut self) -> Option<Run> {
        self.next_up_to(self.max)
    }
}

/// One piece on the disk and in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Address of the memory, as in [`Span`].
    pub addr: u64,
    /// First sector on the real disk.
    pub lba: u64,
    /// How many sectors.
    pub sectors: u64,
}

/// See [`ExtentMap::transfers`].
#[derive(Clone, Debug)]
pub struct Transfers<'a> {
    runs: Runs<'a>,
    spans: &'a [Span],
    /// Sectors of the first span that are done.
    skip: u64,
    max: u64,
}

impl Iterator for Transfers<'_> {
    type Item = Transfer;
    fn next(&mut self) -> Option<Transfer> {
        let (first, mut rest) = self.spans.split_first()?;
        let addr = first.addr.wrapping_add(self.skip * SECTOR_SIZE as u64);
        // What lies in one piece in memory from here on.
        let mut together = sectors_of(first.bytes) - self.skip;
        while let Some((s, r)) = rest.split_first()
            && together < self.max
            && addr.checked_add(together * SECTOR_SIZE as u64) == Some(s.addr)
        {
            together += sectors_of(s.bytes);
            rest = r;
        }
        let run = self.runs.next_up_to(together.min(self.max))?;
        let mut done = self.skip + run.sectors;
        while let Some((s, r)) = self.spans.split_first()
            && done >= sectors_of(s.bytes)
        {
            done -= sectors_of(s.bytes);
            self.spans = r;
        }
        self.skip = done;
        Some(Transfer {
            addr,
            lba: run.lba,
            sectors: run.sectors,
        })
    }
}

#[cfg(test)]
mod tests;
