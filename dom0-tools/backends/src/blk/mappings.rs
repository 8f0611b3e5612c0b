// SPDX-License-Identifier: MIT OR Apache-2.0
//! Granted pages, mapped while requests use them and, with persistent grants, longer.

use super::{Kind, Op};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use guest_abi::GrantRef;
use guest_abi::io::blkif::SECTOR_SIZE;

/// A page to be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping<T> {
    /// The front end's grant.
    pub gref: GrantRef,
    /// It is to be written; else the mapping is to be read-only, since the grant may be.
    pub writable: bool,
    /// Out: the mapped page; `None` when that failed.
    pub page: Option<T>,
}

/// What the caller can do with the pages that one front end granted.
pub trait Pages {
    /// A mapped page: what is needed to unmap it and to know its address.
    type Page: Copy;

    /// Maps pages (`GNTTABOP_map_grant_ref`, host mapping), each at a place of its own: sets `page` of
    /// each where that went well. Grant references are as the front end sent them.
    fn map(&mut self, list: &mut [Mapping<Self::Page>]);

    /// Unmaps pages that [`Pages::map`] mapped; none of them is used any more.
    fn unmap(&mut self, list: &[Self::Page]);

    /// Address of a mapped page's first byte, a multiple of 4096, as the disk's driver takes it: the
    /// machine address for one that transfers straight to the guest's memory.
    fn addr(&self, page: Self::Page) -> u64;

    /// Copies from a granted page's start (at most 4096 bytes) to private memory, each byte read
    /// once (`GNTTABOP_copy`). Whether that went well.
    fn copy_in(&mut self, gref: GrantRef, to: &mut [u8]) -> bool;
}

/// Memory to transfer, within one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Address ([`Pages::addr`]) of the first byte, a multiple of 512.
    pub addr: u64,
    /// Bytes, a multiple of 512, never 0.
    pub bytes: u32,
}

/// A page could not be mapped: a bad grant, or out of memory. The request is to be answered with an
/// error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapError;

impl core::fmt::Display for MapError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("a granted page could not be mapped")
    }
}

impl core::error::Error for MapError {}

/// The mapped pages of one queue: those that requests use, and up to a number of others, of which
/// the longest unused goes first.
#[derive(Debug)]
pub struct Mappings<T> {
    pages: BTreeMap<Key, Entry<T>>,
    /// Pages that no request uses, by when they were last used.
    idle: BTreeMap<u64, Key>,
    keep: usize,
    clock: u64,
    missing: Vec<Mapping<T>>,
    gone: Vec<T>,
}

/// A page mapped for reading and for writing is two mappings.
type Key = (GrantRef, bool);

#[derive(Debug)]
struct Entry<T> {
    /// `None` only while [`Mappings::map`] runs.
    page: Option<T>,
    /// Segments of requests that use it.
    uses: u32,
    /// Its place in `idle`, when `uses` is 0.
    since: u64,
}

impl<T: Copy> Mappings<T> {
    /// Keeps up to `keep` pages mapped that no request uses: [`Limits::persistent_pages`] if the
    /// front end chose persistent grants ([`FrontConfig::persistent`]), else 0.
    ///
    /// [`Limits::persistent_pages`]: super::Limits::persistent_pages
    /// [`FrontConfig::persistent`]: super::FrontConfig::persistent
    #[must_use]
    pub const fn new(keep: usize) -> Self {
        Self {
            pages: BTreeMap::new(),
            idle: BTreeMap::new(),
            keep,
            clock: 0,
            missing: Vec::new(),
            gone: Vec::new(),
        }
    }

    /// How many pages are mapped.
    #[must_use]
    pub fn mapped(&self) -> usize {
        self.pages.len()
    }

    /// Maps what a request needs and is not mapped, and lists its memory in the disk's order. To be
    /// followed by [`Mappings::release`] when the I/O is done.
    ///
    /// # Errors
    /// A page could not be mapped; nothing is held for the request.
    pub fn map(
        &mut self,
        op: &Op,
        pages: &mut impl Pages<Page = T>,
        spans: &mut Vec<Span>,
    ) -> Result<(), MapError> {
        spans.clear();
        self.missing.clear();
        let n = op.segments().len();
        spans.try_reserve(n).map_err(|_| MapError)?;
        self.missing.try_reserve(n).map_err(|_| MapError)?;

        for segment in op.segments() {
            let key = self.key(op, segment.gref);
            if let Some(e) = self.pages.get_mut(&key) {
                if e.uses == 0 {
                    self.idle.remove(&e.since);
                }
                e.uses += 1;
                continue;
            }
            self.pages.insert(
                key,
                Entry {
                    page: None,
                    uses: 1,
                    since: 0,
                },
            );
            self.missing.push(Mapping {
                gref: key.0,
                writable: key.1,
                page: None,
            });
        }
        if !self.missing.is_empty() {
            pages.map(&mut self.missing);
        }
        for m in &self.missing {
            if let Some(e) = self.pages.get_mut(&(m.gref, m.writable)) {
                e.page = m.page;
            }
        }
        for s in op.segments() {
            let key = self.key(op, s.gref);
            let Some(page) = self.pages.get(&key).and_then(|e| e.page) else {
                spans.clear();
                self.release(op, pages);
                return Err(MapError);
            };
            spans.push(Span {
                addr: pages
                    .addr(page)
                    .wrapping_add(u64::from(s.first_sect) * SECTOR_SIZE as u64),
                bytes: (u32::from(s.last_sect.wrapping_sub(s.first_sect)) + 1) * SECTOR_SIZE as u32,
            });
        }
        Ok(())
    }

    /// A request that was mapped needs its pages no more: unmaps those that are not kept.
    pub fn release(&mut self, op: &Op, pages: &mut impl Pages<Page = T>) {
        for segment in op.segments() {
            let key = self.key(op, segment.gref);
            let Some(e) = self.pages.get_mut(&key) else {
                continue;
            };
            e.uses = e.uses.saturating_sub(1);
            if e.uses > 0 {
                continue;
            }
            if e.page.is_none() {
                self.pages.remove(&key);
                continue;
            }
            self.clock = self.clock.wrapping_add(1);
            e.since = self.clock;
            self.idle.insert(self.clock, key);
        }
        while self.idle.len() > self.keep {
            self.drop_oldest(pages);
        }
        if !self.gone.is_empty() {
            pages.unmap(&self.gone);
            self.gone.clear();
        }
    }

    /// Unmaps every page that no request uses: all of them, once no request is in flight.
    pub fn close(&mut self, pages: &mut impl Pages<Page = T>) {
        while !self.idle.is_empty() {
            self.drop_oldest(pages);
        }
        if !self.gone.is_empty() {
            pages.unmap(&self.gone);
            self.gone.clear();
        }
    }

    fn drop_oldest(&mut self, pages: &mut impl Pages<Page = T>) {
        let Some((_, key)) = self.idle.pop_first() else {
            return;
        };
        if let Some(page) = self.pages.remove(&key).and_then(|e| e.page) {
            if self.gone.try_reserve(1).is_ok() {
                self.gone.push(page);
            } else {
                pages.unmap(&[page]);
            }
        }
    }

    /// What is kept serves both directions, so it is mapped for writing.
    fn key(&self, op: &Op, gref: GrantRef) -> Key {
        (gref, self.keep > 0 || op.kind() == Kind::Read)
    }
}
