// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's own stage 1 as data: an identity map of the first 512 GiB. RAM is Normal write-back, what the
//! firmware reserves as `no-map` is not mapped, everything else is Device; the image's text is read-execute, its
//! constants read-only, and nothing else is executable.
//!
//! Whatever is Normal may be read by speculation at any time (Arm ARM, B2.7.1 "Normal memory"); Device memory, and what
//! is not mapped, may not. So a block stands for a range only where the range is of one kind.

const VALID: u64 = 1;
const TABLE: u64 = 0b11;
const PAGE: u64 = 0b11;
const AF: u64 = 1 << 10;
const SH_INNER: u64 = 0b11 << 8;
const RO: u64 = 1 << 7;
const AP_RES1: u64 = 1 << 6;
const XN: u64 = 1 << 54;
const NORMAL: u64 = AF | SH_INNER | AP_RES1 | XN;
const DEVICE: u64 = AF | AP_RES1 | XN | (1 << 2);

/// MAIR_EL2 to go with the entries: index 0 Normal write-back, index 1 Device-nGnRE.
pub const MAIR: u64 = 0x04ff;

/// A table of 512 entries.
pub type Table = [u64; 512];

/// A half-open range of addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Range {
    /// Whether `len` bytes from `at` on lie inside.
    #[inline]
    #[must_use]
    pub fn contains(&self, at: u64, len: u64) -> bool {
        at >= self.start && at.checked_add(len).is_some_and(|e| e <= self.end)
    }

    /// Whether the two have an address in common.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// All pages that have a byte of it; as far as the last whole page of the address space.
    #[must_use]
    pub const fn pages_of(r: crate::dt::Range) -> Self {
        Self {
            start: r.base & !4095,
            end: r.end().saturating_add(4095) & !4095,
        }
    }

    /// The pages that lie in it wholly.
    #[must_use]
    pub const fn pages_in(r: crate::dt::Range) -> Self {
        Self {
            start: r.base.saturating_add(4095) & !4095,
            end: r.end() & !4095,
        }
    }
}

/// Where the image's parts lie. All of it is mapped.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// All of it, .bss included.
    pub whole: Range,
    /// Executable.
    pub text: Range,
    /// Constants, after the text.
    pub rodata: Range,
    /// Which of its pages are not mapped.
    pub guards: fn(u64) -> bool,
}

/// Why there is no map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// What must not be mapped is where the image is.
    OverImage,
    /// More tables are needed than there are.
    TooManyPieces,
}

impl core::fmt::Display for MapError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::OverImage => "the firmware reserves memory as no-map where the hypervisor is",
            Self::TooManyPieces => {
                "memory and what the firmware reserves of it has too many pieces"
            }
        })
    }
}

/// What is to be mapped.
#[derive(Clone, Copy, Debug)]
pub struct Map<'a> {
    /// RAM, in whole pages.
    pub ram: &'a [Range],
    /// What must not be mapped, in whole pages, wherever it is.
    pub no_map: &'a [Range],
    /// The hypervisor.
    pub image: &'a Image,
}

impl Map<'_> {
    /// The attributes of a piece that is a page or holds nothing of the image, without an address or a type; 0 is no
    /// entry. `None`: it is of several kinds.
    fn kind(&self, piece: &Range) -> Option<u64> {
        let len = piece.end - piece.start;
        let inside = |r: &Range| r.contains(piece.start, len);
        if piece.overlaps(&self.image.whole) {
            return match len {
                4096 if (self.image.guards)(piece.start) => Some(0),
                4096 if inside(&self.image.text) => Some((NORMAL & !XN) | RO),
                4096 if inside(&self.image.rodata) => Some(NORMAL | RO),
                4096 => Some(NORMAL),
                _ => None,
            };
        }
        // What has only whole pages is around a page or beside it.
        for (ranges, attr) in [(self.no_map, 0), (self.ram, NORMAL)] {
            if ranges.iter().any(inside) {
                return Some(attr);
            }
            if ranges.iter().any(|r| r.overlaps(piece)) {
                return None;
            }
        }
        Some(DEVICE)
    }

    /// Writes the tables, which lie one after the other from the address `base` on. The first one is the root.
    ///
    /// # Errors
    /// [`MapError`]; the tables are of no use then.
    pub fn build(&self, tables: &mut [Table], base: u64) -> Result<(), MapError> {
        let over = |r: &Range| r.overlaps(&self.image.whole);
        if self.no_map.iter().any(over) {
            return Err(MapError::OverImage);
        }
        let mut used = 1;
        self.fill(tables, base, &mut used, 0, 0, 30)
    }

    /// Fills one table, of entries of `1 << shift` bytes from `start` on, and those below it.
    fn fill(
        &self,
        tables: &mut [Table],
        base: u64,
        used: &mut usize,
        table: usize,
        start: u64,
        shift: u32,
    ) -> Result<(), MapError> {
        for i in 0..512 {
            let start = start + ((i as u64) << shift);
            let end = start + (1 << shift);
            let entry = match self.kind(&Range { start, end }) {
                Some(0) => 0,
                Some(attr) if shift == 12 => start | attr | PAGE,
                Some(attr) => start | attr | VALID,
                // A page of several kinds: there is none, as the ranges are of whole pages.
                None if shift == 12 => 0,
                None => {
                    let below = *used;
                    *used += 1;
                    self.fill(tables, base, used, below, start, shift - 9)?;
                    (base + below as u64 * 4096) | TABLE
                }
            };
            *tables
                .get_mut(table)
                .and_then(|t| t.get_mut(i))
                .ok_or(MapError::TooManyPieces)? = entry;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
