// SPDX-License-Identifier: MIT OR Apache-2.0
//! Grant tables, version 1 (`public/grant_table.h`): a domain lets others map or copy pages of
//! its own through entries of a table that it shares with the hypervisor.
//!
//! Each domain's table has two sides. As *granter* it has shared frames, which the guest writes,
//! and one active entry per shared entry, which only the hypervisor writes: what has been
//! resolved and how often it is pinned. As *mapper* it has the maptrack: one entry per mapping it
//! holds; the index is the handle that it gets.
//!
//! Rules that hold at all times, and that the tests check:
//! - an active entry's pin counts are the number of maptrack entries, of all domains, that name it,
//!   and each holds one reference on the page;
//! - `GTF_reading` and `GTF_writing` of a pinned shared entry were set by the hypervisor before it
//!   looked at the frame, and are cleared when the last (writing) pin goes;
//! - a maptrack entry names its granter by slot and birth: when the granter is gone, and another domain is in
//!   its slot, nobody's entry is unpinned but the page's reference dropped. Until then that mapping is
//!   charged to who holds it ([`Grants::orphans`]).
//!
//! Active entries and map entries lie in machine pages that are kept for their domain from its creation
//! on ([`Grants::pages`]): what one uses up is its own.
//!
//! A copy pins nothing: it is over before anybody else can get at the hypervisor's state. It still
//! sets the status bits, because the granter's own vcpus go on meanwhile.

use alloc::vec::Vec;

use guest_abi::grant_table::{cache, gntcopy, gntmap, gtf};

pub use guest_abi::grant_table::GrantStatus;

use crate::machine::{Cache, CacheOp, Contended, Meter, PhysMem, cost, limit};
use crate::types::{Access, DomId, Errno, Gfn, GrantRef, MAX_DOMAINS, Mfn, PAGE_SIZE, Pa, Slot};

/// Shared frames that a domain may have at most.
pub const MAX_GRANT_FRAMES: u32 = 64;
/// Maptrack frames (of [`MAPTRACK_PER_FRAME`] entries) that a domain may have at most.
pub const MAX_MAPTRACK_FRAMES: u32 = 1024;
/// Entries of version 1 in a shared frame: 8 bytes each.
pub const ENTRIES_PER_FRAME: u32 = guest_abi::grant_table::V1_ENTRIES_PER_FRAME;
/// Entries that count as one maptrack frame: those of a page.
pub const MAPTRACK_PER_FRAME: u32 = PER_PAGE;
/// Map entries that one call of [`Grants::cache_flush`] looks at.
pub const CACHE_FLUSH_SLICE: u32 = 256;
/// Bytes of an active entry and of a map entry.
const ENTRY: u64 = 16;
/// Such entries in a page.
const PER_PAGE: u32 = (PAGE_SIZE / ENTRY) as u32;
/// Pages of active entries for a shared frame.
const ACTIVE_PAGES: usize = (ENTRIES_PER_FRAME / PER_PAGE) as usize;
/// What a frame list says of a shared frame that is mapped nowhere (`INVALID_GFN`).
pub const INVALID_GFN: u64 = u64::MAX;

/// Mappings of each kind (read-only, writable) that one reference can have.
const MAX_PINS: u8 = 128;
/// How often the status bits are tried while the guest changes the entry at the same time.
const RETRIES: u32 = 5;
const NIL: u32 = u32::MAX;
/// A machine frame in an entry.
const FRAME: u64 = (1 << 48) - 1;

// A shared entry's first word: the flags, and above them who may use it.
const GTF_PERMIT_ACCESS: u32 = gtf::PERMIT_ACCESS as u32;
const GTF_TYPE_MASK: u32 = gtf::TYPE_MASK as u32;
const GTF_READONLY: u32 = gtf::READONLY as u32;
const GTF_READING: u32 = gtf::READING as u32;
const GTF_WRITING: u32 = gtf::WRITING as u32;
const GTF_SUB_PAGE: u32 = gtf::SUB_PAGE as u32;

/// Pages, p2m and TLB of all domains, as grants need them.
pub trait PageHost {
    /// Machine memory and caches.
    type Mem: PhysMem + Cache;
    /// Machine memory and caches.
    fn mem(&self) -> &Self::Mem;
    /// The slot of a domain number, of a domain that is not being destroyed.
    fn find(&self, domid: DomId) -> Option<Slot>;
    /// Resolves a frame of `slot` to a page of RAM that is the domain's own (no foreign, granted,
    /// shared or device page) and that its own p2m lets it access so. Takes no reference: good
    /// until the machine is given back.
    ///
    /// # Errors
    /// Any, when there is no such page.
    fn resolve(&self, slot: Slot, gfn: Gfn, access: Access) -> Result<Mfn, Errno>;
    /// Takes a reference on a page of RAM.
    ///
    /// # Errors
    /// `EBUSY` when the count is at its limit, `EINVAL` when the page is not in use.
    fn get_page(&mut self, mfn: Mfn) -> Result<(), Errno>;
    /// Drops a reference that [`PageHost::get_page`] took; the last one frees the page.
    fn put_page(&mut self, mfn: Mfn);
    /// Maps another domain's page at `gfn` of `slot` as a grant mapping. Refuses a frame where
    /// anything is mapped.
    ///
    /// # Errors
    /// `EINVAL` beyond the address space, `EEXIST` when occupied, `ENOMEM`.
    fn map_granted(&mut self, slot: Slot, gfn: Gfn, mfn: Mfn, access: Access) -> Result<(), Errno>;
    /// The page that is mapped at `gfn` of `slot` by a grant.
    fn granted(&self, slot: Slot, gfn: Gfn) -> Option<Mfn>;
    /// Removes that mapping again; gives its page. The TLB is clean when it returns.
    ///
    /// # Errors
    /// `EINVAL` when `gfn` maps no grant.
    fn unmap_granted(&mut self, slot: Slot, gfn: Gfn) -> Result<Mfn, Errno>;
    /// As [`PageHost::unmap_granted`] for a dead domain, of which no TLB holds anything: none is cleaned.
    fn forget_granted(&mut self, slot: Slot, gfn: Gfn) -> Option<Mfn>;
    /// Allocates a zeroed page of the hypervisor of those that are kept for `slot`: for it to map, or `private`.
    ///
    /// # Errors
    /// `ENOMEM`.
    fn alloc_own(&mut self, slot: Slot, private: bool) -> Result<Mfn, Errno>;
    /// A word that `slot` shares could not be updated: the domain is to be ended.
    fn contended(&self, slot: Slot);
    /// Whether a page is RAM of `slot`'s.
    fn owns(&self, slot: Slot, mfn: Mfn) -> bool;
}

/// Input of `GNTTABOP_map_grant_ref`.
#[derive(Clone, Copy, Debug, Default)]
pub struct MapOp {
    /// Where to map: a guest physical address.
    pub host_addr: u64,
    /// `GNTMAP_*`.
    pub flags: u32,
    /// The reference, in the granter's table.
    pub gref: GrantRef,
    /// The granter.
    pub dom: DomId,
}

/// Output of `GNTTABOP_map_grant_ref` when it went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The name of this mapping.
    pub handle: u32,
    /// The page's machine address, for DMA.
    pub dev_bus_addr: u64,
}

/// Input of `GNTTABOP_unmap_grant_ref`.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnmapOp {
    /// Where it is mapped; with 0 nothing is done.
    pub host_addr: u64,
    /// The mapping's name.
    pub handle: u32,
}

/// One end of a copy.
#[derive(Clone, Copy, Debug, Default)]
pub struct CopyPtr {
    /// A grant reference (32 bits), or a guest frame number of the caller's.
    pub frame: u64,
    /// Whose; `DOMID_SELF` for a frame number.
    pub domid: DomId,
    /// Bytes from the page's begin on.
    pub offset: u16,
}

/// Input of `GNTTABOP_copy`.
#[derive(Clone, Copy, Debug, Default)]
pub struct CopyOp {
    /// From here.
    pub source: CopyPtr,
    /// To there.
    pub dest: CopyPtr,
    /// Bytes.
    pub len: u16,
    /// `GNTCOPY_*`: which end is a reference.
    pub flags: u16,
}

/// Input of `GNTTABOP_cache_flush`.
#[derive(Clone, Copy, Debug, Default)]
pub struct CacheFlushOp {
    /// A machine address in the page, as a mapping's `dev_bus_addr`.
    pub dev_bus_addr: u64,
    /// Bytes from the page's begin on.
    pub offset: u16,
    /// Bytes.
    pub length: u16,
    /// `GNTTAB_CACHE_*`.
    pub op: u32,
}

/// How far a table's destruction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destroyed {
    /// Call again.
    More,
    /// Nothing is left of it.
    Done,
}

/// What a map entry costs that goes with its domain, in instructions.
const FORGET: u32 = 120;

/// What a domain holds, for accounting and for tests that nothing leaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Shared frames allocated.
    pub shared_frames: u32,
    /// References of its own that somebody maps.
    pub pinned_refs: u32,
    /// Mappings of granted pages that it holds.
    pub mappings: u32,
}

/// The hypervisor's side of a shared entry. In its page: frame, `ro` and `rw`; then `gfn` and `by`. Zeroes are
/// an entry that is not in use.
#[derive(Clone, Copy)]
struct Active {
    /// The page; meaningful while pinned, as are `gfn` and `by`.
    mfn: Mfn,
    /// Which frame of the granter's that was when it was resolved.
    gfn: u32,
    /// The only domain that may use the entry while it is pinned.
    by: DomId,
    /// Read-only mappings.
    ro: u8,
    /// Writable mappings.
    rw: u8,
}

impl Active {
    fn load<M: PhysMem>(mem: &M, at: Pa) -> Self {
        let (a, b) = (mem.load64(at), mem.load64(at.add(8)));
        Self {
            mfn: Mfn(a & FRAME),
            ro: (a >> 48) as u8,
            rw: (a >> 56) as u8,
            gfn: b as u32,
            by: DomId((b >> 32) as u16),
        }
    }
    fn store<M: PhysMem>(&self, mem: &M, at: Pa) {
        let pins = u64::from(self.ro) << 48 | u64::from(self.rw) << 56;
        mem.store64(at, self.mfn.0 & FRAME | pins);
        mem.store64(at.add(8), u64::from(self.by.0) << 32 | u64::from(self.gfn));
    }
    const fn pinned(&self) -> bool {
        self.ro | self.rw != 0
    }
    /// Whether the status bits that `access` needs are already set.
    const fn covers(&self, access: Access) -> bool {
        match access {
            Access::Read => self.pinned(),
            Access::Write => self.rw != 0,
        }
    }
    /// The status bits that stand for no pin.
    const fn surplus(&self, access: Access) -> u32 {
        let reading = if self.pinned() { 0 } else { GTF_READING };
        match access {
            Access::Write if self.rw == 0 => reading | GTF_WRITING,
            _ => reading,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Held {
    Free = 0,
    ReadOnly = 1,
    Writable = 2,
}

impl Held {
    const fn access(self) -> Option<Access> {
        match self {
            Self::Free => None,
            Self::ReadOnly => Some(Access::Read),
            Self::Writable => Some(Access::Write),
        }
    }
}

/// One mapping that a domain holds, or a link of the list of free entries. In its page: `gfn`, reference, slot and
/// kind; then the birth or link. Zeroes are a free entry.
#[derive(Clone, Copy)]
struct Track {
    /// Where it is mapped.
    gfn: Gfn,
    /// The reference.
    gref: u32,
    /// The granter.
    granter: Slot,
    held: Held,
    /// The granter's [`Table::birth`]; of a free entry, the next free one or [`NIL`].
    birth: u64,
}

impl Track {
    const fn free(next: u32) -> Self {
        Self {
            gfn: Gfn(0),
            gref: 0,
            granter: Slot(0),
            held: Held::Free,
            birth: next as u64,
        }
    }
    fn load<M: PhysMem>(mem: &M, at: Pa) -> Self {
        let a = mem.load64(at);
        Self {
            gfn: Gfn(a & 0xffff_ffff),
            gref: (a >> 32) as u16 as u32,
            granter: Slot((a >> 48) as u8),
            held: match a >> 56 {
                0 => Held::Free,
                1 => Held::ReadOnly,
                _ => Held::Writable,
            },
            birth: mem.load64(at.add(8)),
        }
    }
    fn store<M: PhysMem>(&self, mem: &M, at: Pa) {
        let whom = u64::from(self.gref & 0xffff) << 32 | u64::from(self.granter.0) << 48;
        mem.store64(
            at,
            self.gfn.0 & 0xffff_ffff | whom | (self.held as u64) << 56,
        );
        mem.store64(at.add(8), self.birth);
    }
}

struct Shared {
    mfn: Mfn,
    /// Where the domain has it mapped.
    gfn: Option<Gfn>,
}

struct Table {
    domid: DomId,
    dying: bool,
    max_frames: u32,
    max_maptrack: u32,
    /// Of all tables that there ever were, which this is.
    birth: u64,
    shared: Vec<Shared>,
    /// Pages of active entries.
    active: Vec<Mfn>,
    /// Pages of map entries.
    track: Vec<Mfn>,
    /// The first of the map entries that were in use and are free.
    free: u32,
    /// Map entries from this one on were never in use.
    fresh: u32,
    /// References pinned.
    pinned: u32,
    /// Map entries in use.
    mappings: u32,
    /// How many of its pins each slot holds.
    lent: Vec<u32>,
    /// Its mappings of pages whose granter is gone.
    orphans: u32,
}

/// Where an entry lies in an array of pages.
#[inline]
fn place(pages: &[Mfn], index: u32) -> Option<Pa> {
    let page = pages.get((index / PER_PAGE) as usize)?;
    Some(Pa(page.addr()).add(u64::from(index % PER_PAGE).wrapping_mul(ENTRY)))
}

impl Table {
    /// Where the shared entry and the active entry of a reference are.
    #[inline]
    fn entry(&self, gref: u32) -> Option<(Pa, Pa)> {
        let (frame, at) = (gref / ENTRIES_PER_FRAME, gref % ENTRIES_PER_FRAME);
        let mfn = self.shared.get(frame as usize)?.mfn;
        Some((
            Pa(mfn.addr()).add(u64::from(at) << 3),
            place(&self.active, gref)?,
        ))
    }

    /// The mapping of a handle, what it allows, and where its entry is.
    fn held<M: PhysMem>(&self, mem: &M, handle: u32) -> Option<(Track, Access, Pa)> {
        if handle >= self.fresh {
            return None;
        }
        let at = place(&self.track, handle)?;
        let e = Track::load(mem, at);
        Some((e, e.held.access()?, at))
    }

    /// A free handle; it stays free until [`Table::take_handle`].
    fn free_handle<H: PageHost>(&mut self, host: &mut H, slot: Slot) -> Option<u32> {
        if self.free != NIL {
            return Some(self.free);
        }
        let pages = self.track.len() as u32;
        if self.fresh / PER_PAGE >= pages {
            if pages >= self.max_maptrack {
                return None;
            }
            self.track.push(host.alloc_own(slot, true).ok()?);
        }
        Some(self.fresh)
    }

    fn take_handle<M: PhysMem>(&mut self, mem: &M, handle: u32, track: &Track) {
        let Some(at) = place(&self.track, handle) else {
            return;
        };
        if handle == self.fresh {
            self.fresh = self.fresh.saturating_add(1);
        } else {
            self.free = Track::load(mem, at).birth as u32;
        }
        track.store(mem, at);
        self.mappings = self.mappings.saturating_add(1);
    }

    fn put_handle<M: PhysMem>(&mut self, mem: &M, handle: u32, at: Pa) {
        Track::free(self.free).store(mem, at);
        self.free = handle;
        self.mappings = self.mappings.saturating_sub(1);
    }

    fn grow<H: PageHost>(&mut self, host: &mut H, slot: Slot, frames: u32) -> Result<(), Errno> {
        if frames > self.max_frames {
            return Err(Errno::EINVAL);
        }
        // There is room in the lists for all that the limit allows.
        while (self.shared.len() as u32) < frames {
            let wanted = self.shared.len().saturating_add(1);
            if self.active.len() < wanted.saturating_mul(ACTIVE_PAGES) {
                self.active.push(host.alloc_own(slot, true)?);
            } else {
                let mfn = host.alloc_own(slot, false)?;
                self.shared.push(Shared { mfn, gfn: None });
            }
        }
        Ok(())
    }
}

/// Sets the status bits that `access` needs in a shared entry, if the entry allows it. The entry
/// is checked only when nothing pins it yet: afterwards the guest must not change it, and what it
/// does to it all the same changes nothing for the mapper.
#[inline]
fn set_status<H: PageHost>(
    host: &H,
    granter: Slot,
    entry: Pa,
    pinned: bool,
    access: Access,
    by: DomId,
    type_mask: u32,
) -> Result<(), GrantStatus> {
    let want = GTF_PERMIT_ACCESS | (u32::from(by.0) << 16);
    let mut seen = host.mem().load32(entry);
    for _ in 0..RETRIES {
        if !pinned && seen & (type_mask | 0xffff_0000) != want {
            return Err(GrantStatus::GeneralError);
        }
        let mut new = seen | GTF_READING;
        if access == Access::Write {
            if seen & GTF_READONLY != 0 {
                return Err(GrantStatus::GeneralError);
            }
            new |= GTF_WRITING;
        }
        match host.mem().cmpxchg32(entry, seen, new) {
            Ok(found) if found == seen => return Ok(()),
            Ok(found) => seen = found,
            Err(Contended) => {
                host.contended(granter);
                break;
            }
        }
    }
    Err(GrantStatus::GeneralError)
}

#[inline]
fn clear_status<H: PageHost>(host: &H, granter: Slot, entry: Pa, bits: u32) {
    if bits != 0 && host.mem().and32(entry, !bits) == Err(Contended) {
        host.contended(granter);
    }
}

/// Sets the status bits for one more use of an entry and finds its page.
#[inline]
fn acquire<H: PageHost>(
    host: &H,
    granter: Slot,
    entry: Pa,
    act: &Active,
    access: Access,
    by: DomId,
    type_mask: u32,
) -> Result<(Mfn, u32), GrantStatus> {
    let pinned = act.pinned();
    if pinned && act.by != by {
        return Err(GrantStatus::GeneralError);
    }
    if act.covers(access) {
        return Ok((act.mfn, act.gfn));
    }
    set_status(host, granter, entry, pinned, access, by, type_mask)?;
    // The frame is read once, after the bits told the guest to leave the entry alone; of a pinned
    // entry it is not read again.
    let gfn = if pinned {
        act.gfn
    } else {
        host.mem().load32(entry.add(4))
    };
    let found = match host.resolve(granter, Gfn(u64::from(gfn)), access) {
        Ok(mfn) if pinned && mfn != act.mfn => Err(GrantStatus::GeneralError),
        Ok(mfn) => return Ok((mfn, gfn)),
        Err(_) => Err(GrantStatus::BadPage),
    };
    clear_status(host, granter, entry, act.surplus(access));
    found
}

/// One end of a copy, resolved.
#[derive(Clone, Copy)]
struct End {
    mfn: Mfn,
    /// Whose entry that is.
    owner: Slot,
    /// The shared entry whose status bits are to be cleared, and which; 0 for none.
    entry: Pa,
    clear: u32,
}

/// Copies within machine memory, also where the ranges overlap.
fn copy_bytes<M: PhysMem>(mem: &M, dst: Pa, src: Pa, len: u64) {
    if dst.0.abs_diff(src.0) >= len {
        mem.copy(dst, src, len as usize);
        return;
    }
    let mut buf = [0u8; 64];
    let mut done = 0;
    mem.spend((len as u32).saturating_mul(2));
    while done < len {
        let left = len.saturating_sub(done);
        let n = left.min(buf.len() as u64);
        let at = if dst > src {
            left.saturating_sub(n)
        } else {
            done
        };
        let Some(chunk) = buf.get_mut(..n as usize) else {
            return;
        };
        mem.read(src.add(at), chunk);
        mem.write(dst.add(at), chunk);
        done = done.saturating_add(n);
    }
}

/// All domains' grant tables.
pub struct Grants {
    tables: [Option<Table>; MAX_DOMAINS],
    /// Tables that there ever were: too many to be counted round.
    births: u64,
}

impl Default for Grants {
    fn default() -> Self {
        Self::new()
    }
}

impl Grants {
    /// No tables.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            tables: [const { None }; MAX_DOMAINS],
            births: 0,
        }
    }

    #[inline]
    fn table(&self, slot: Slot) -> Option<&Table> {
        self.tables.get(slot.idx())?.as_ref()
    }

    #[inline]
    fn table_mut(&mut self, slot: Slot) -> Option<&mut Table> {
        self.tables.get_mut(slot.idx())?.as_mut()
    }

    /// A domain that may still grant.
    #[inline]
    fn granter(&mut self, slot: Option<Slot>) -> Result<(Slot, &mut Table), GrantStatus> {
        let slot = slot.ok_or(GrantStatus::BadDomain)?;
        match self.table_mut(slot) {
            Some(t) if !t.dying => Ok((slot, t)),
            _ => Err(GrantStatus::BadDomain),
        }
    }

    // ---- tables ------------------------------------------------------------------------------

    /// How many pages a table of these limits takes at most; they must be kept for its domain before it is
    /// made.
    ///
    /// # Errors
    /// `EINVAL` for limits out of range.
    pub const fn pages(max_grant_frames: u32, max_maptrack_frames: u32) -> Result<u32, Errno> {
        if max_grant_frames == 0
            || max_grant_frames > MAX_GRANT_FRAMES
            || max_maptrack_frames > MAX_MAPTRACK_FRAMES
        {
            return Err(Errno::EINVAL);
        }
        Ok(max_grant_frames
            .saturating_mul((ACTIVE_PAGES as u32).saturating_add(1))
            .saturating_add(max_maptrack_frames))
    }

    /// Makes a domain's table with one shared frame. Limits are those of `createdomain`, in
    /// frames; negative ones (defaults) are the caller's to replace.
    ///
    /// # Errors
    /// `EINVAL` for limits out of range, `EEXIST` when the slot has a table, `ENOMEM`.
    pub fn create_domain<H: PageHost>(
        &mut self,
        host: &mut H,
        slot: Slot,
        domid: DomId,
        max_grant_frames: u32,
        max_maptrack_frames: u32,
    ) -> Result<(), Errno> {
        let place = self.tables.get_mut(slot.idx()).ok_or(Errno::EINVAL)?;
        if place.is_some() {
            return Err(Errno::EEXIST);
        }
        self.births = self.births.saturating_add(1);
        let mut t = Table {
            birth: self.births,
            domid,
            dying: false,
            max_frames: max_grant_frames,
            max_maptrack: max_maptrack_frames,
            shared: Vec::new(),
            active: Vec::new(),
            track: Vec::new(),
            free: NIL,
            fresh: 0,
            pinned: 0,
            mappings: 0,
            lent: Vec::new(),
            orphans: 0,
        };
        let frames = max_grant_frames as usize;
        crate::room::reserve(&mut t.shared, frames)?;
        crate::room::reserve(&mut t.active, frames.saturating_mul(ACTIVE_PAGES))?;
        crate::room::reserve(&mut t.track, max_maptrack_frames as usize)?;
        crate::room::reserve(&mut t.lent, MAX_DOMAINS)?;
        t.lent.resize(MAX_DOMAINS, 0);
        let made = t.grow(host, slot, 1);
        *place = Some(t);
        // What there is of it goes as any table does.
        if made.is_err() {
            while self.destroy(host, slot, u32::MAX) == Destroyed::More {}
        }
        made
    }

    /// Makes the table at least `frames` shared frames large. On failure it may have grown less.
    ///
    /// # Errors
    /// `EINVAL` beyond the domain's limit, `ENOMEM`, `ESRCH` without a table.
    pub fn grow<H: PageHost>(
        &mut self,
        host: &mut H,
        slot: Slot,
        frames: u32,
    ) -> Result<(), Errno> {
        self.table_mut(slot)
            .ok_or(Errno::ESRCH)?
            .grow(host, slot, frames)
    }

    /// The shared frame `idx`, for `XENMEM_add_to_physmap` and `XENMEM_acquire_resource`. It is there: what makes
    /// frames is [`Grants::grow`] alone, in slices.
    ///
    /// # Errors
    /// `EINVAL` for one that is not there, `ESRCH` without a table.
    pub fn shared_frame(&self, slot: Slot, idx: u64) -> Result<Mfn, Errno> {
        let t = self.table(slot).ok_or(Errno::ESRCH)?;
        t.shared
            .get(idx as usize)
            .map(|s| s.mfn)
            .ok_or(Errno::EINVAL)
    }

    /// Notes where the domain has mapped a shared frame, or (`None`) that it no longer has.
    pub fn set_shared_gfn(&mut self, slot: Slot, mfn: Mfn, gfn: Option<Gfn>) {
        let Some(t) = self.table_mut(slot) else {
            return;
        };
        if let Some(s) = t.shared.iter_mut().find(|s| s.mfn == mfn) {
            s.gfn = gfn;
        }
    }

    /// Where the domain has mapped shared frame `idx`; [`INVALID_GFN`] if nowhere. That is what
    /// `GNTTABOP_setup_table` lists on Arm.
    #[must_use]
    pub fn shared_gfn(&self, slot: Slot, idx: u32) -> u64 {
        self.table(slot)
            .and_then(|t| t.shared.get(idx as usize)?.gfn)
            .map_or(INVALID_GFN, |gfn| gfn.0)
    }

    /// What the domain holds.
    #[must_use]
    pub fn usage(&self, slot: Slot) -> Usage {
        self.table(slot).map_or(Usage::default(), |t| Usage {
            shared_frames: t.shared.len() as u32,
            pinned_refs: t.pinned,
            mappings: t.mappings,
        })
    }

    /// References of the domain that somebody maps.
    #[must_use]
    pub fn pins_outstanding(&self, slot: Slot) -> u32 {
        self.table(slot).map_or(0, |t| t.pinned)
    }

    /// Mappings that the domain holds of pages whose granter is gone: each keeps a page that is nobody
    /// else's, and is charged to it.
    #[must_use]
    #[inline]
    pub fn orphans(&self, slot: Slot) -> u32 {
        self.table(slot).map_or(0, |t| t.orphans)
    }

    /// Takes a domain's table down, at most `budget` mappings of its own at a call. From the first
    /// call on nobody can map or copy its pages any more; its vcpus must not run again. Pages that
    /// others map stay theirs to unmap, and are charged to them from now on.
    pub fn destroy<H: PageHost>(&mut self, host: &mut H, slot: Slot, budget: u32) -> Destroyed {
        let Some(t) = self.table_mut(slot) else {
            return Destroyed::Done;
        };
        t.dying = true;
        t.free = NIL;
        t.max_maptrack = 0;
        let mut left = budget;
        while let Some(t) = self.table_mut(slot) {
            let Some(handle) = t.fresh.checked_sub(1) else {
                break;
            };
            if left == 0 || host.mem().spent() >= limit::SLICE {
                return Destroyed::More;
            }
            left = left.saturating_sub(1);
            host.mem().spend(FORGET);
            let found = t.held(host.mem(), handle);
            t.fresh = handle;
            if let Some((e, access, _)) = found {
                t.mappings = t.mappings.saturating_sub(1);
                let page = host.forget_granted(slot, e.gfn);
                self.unpin(host, slot, &e, access);
                page.into_iter().for_each(|p| host.put_page(p));
            }
        }
        let Some(t) = self.tables.get_mut(slot.idx()).and_then(Option::take) else {
            return Destroyed::Done;
        };
        for (mapper, n) in self.tables.iter_mut().zip(&t.lent) {
            if let Some(mapper) = mapper {
                mapper.orphans = mapper.orphans.saturating_add(*n);
            }
        }
        let shared = t.shared.iter().map(|s| s.mfn);
        let pages = shared.chain(t.active).chain(t.track);
        pages.for_each(|mfn| host.put_page(mfn));
        Destroyed::Done
    }

    /// Undoes one pin of `mapper`'s: the count and the status bits, where the granter is there; the page's
    /// reference is the caller's to drop.
    fn unpin<H: PageHost>(&mut self, host: &H, mapper: Slot, e: &Track, access: Access) {
        let granter = self.table_mut(e.granter).filter(|t| t.birth == e.birth);
        let Some(t) = granter else {
            if let Some(me) = self.table_mut(mapper) {
                me.orphans = me.orphans.saturating_sub(1);
            }
            return;
        };
        let Some((entry, at)) = t.entry(e.gref) else {
            return;
        };
        let mut act = Active::load(host.mem(), at);
        let count = match access {
            Access::Read => &mut act.ro,
            Access::Write => &mut act.rw,
        };
        let Some(less) = count.checked_sub(1) else {
            debug_assert!(false, "unpin of an entry that is not pinned");
            return;
        };
        *count = less;
        act.store(host.mem(), at);
        clear_status(host, e.granter, entry, act.surplus(access));
        t.pinned = t.pinned.saturating_sub(u32::from(!act.pinned()));
        if let Some(n) = t.lent.get_mut(mapper.idx()) {
            *n = n.saturating_sub(1);
        }
    }

    // ---- operations --------------------------------------------------------------------------

    /// `GNTTABOP_map_grant_ref`, one element.
    ///
    /// # Errors
    /// The element's status.
    pub fn map<H: PageHost>(
        &mut self,
        host: &mut H,
        caller: Slot,
        op: &MapOp,
    ) -> Result<Mapped, GrantStatus> {
        let flags = op.flags;
        if flags & (gntmap::DEVICE_MAP | gntmap::HOST_MAP) == 0 {
            return Err(GrantStatus::BadGntref);
        }
        if flags & (gntmap::DEVICE_MAP | gntmap::APPLICATION_MAP | gntmap::CONTAINS_PTE) != 0 {
            return Err(GrantStatus::GeneralError);
        }
        let access = if flags & gntmap::READONLY == 0 {
            Access::Write
        } else {
            Access::Read
        };
        let (granter, _) = self.granter(host.find(op.dom))?;
        let me = self
            .table_mut(caller)
            .filter(|t| !t.dying)
            .ok_or(GrantStatus::BadDomain)?;
        let by = me.domid;
        let handle = me.free_handle(host, caller).ok_or(GrantStatus::NoSpace)?;

        let (_, t) = self.granter(Some(granter))?;
        let (entry, active) = t.entry(op.gref.0).ok_or(GrantStatus::BadGntref)?;
        let mut act = Active::load(host.mem(), active);
        let full = match access {
            Access::Read => act.ro,
            Access::Write => act.rw,
        } >= MAX_PINS;
        if act.pinned() && (act.by != by || full) {
            return Err(GrantStatus::GeneralError);
        }
        let mask = GTF_TYPE_MASK | GTF_SUB_PAGE;
        let (mfn, gfn) = acquire(host, granter, entry, &act, access, by, mask)?;
        let at = Gfn::of(op.host_addr);
        let installed = host.get_page(mfn).and_then(|()| {
            let made = if flags & !gntmap::READONLY == gntmap::HOST_MAP {
                host.map_granted(caller, at, mfn, access)
            } else {
                Err(Errno::EINVAL)
            };
            made.inspect_err(|_| host.put_page(mfn))
        });
        if installed.is_err() {
            clear_status(host, granter, entry, act.surplus(access));
            return Err(GrantStatus::GeneralError);
        }

        let first = !act.pinned();
        if first {
            act = Active {
                mfn,
                gfn,
                by,
                ro: 0,
                rw: 0,
            };
        }
        let held = match access {
            Access::Read => {
                act.ro = act.ro.saturating_add(1);
                Held::ReadOnly
            }
            Access::Write => {
                act.rw = act.rw.saturating_add(1);
                Held::Writable
            }
        };
        act.store(host.mem(), active);
        t.pinned = t.pinned.saturating_add(u32::from(first));
        if let Some(n) = t.lent.get_mut(caller.idx()) {
            *n = n.saturating_add(1);
        }
        let track = Track {
            gfn: at,
            gref: op.gref.0,
            granter,
            held,
            birth: t.birth,
        };
        if let Some(me) = self.table_mut(caller) {
            me.take_handle(host.mem(), handle, &track);
        }
        Ok(Mapped {
            handle,
            dev_bus_addr: mfn.addr(),
        })
    }

    /// `GNTTABOP_unmap_grant_ref`, one element.
    pub fn unmap<H: PageHost>(&mut self, host: &mut H, caller: Slot, op: &UnmapOp) -> GrantStatus {
        let Some((e, access, at)) = self
            .table(caller)
            .and_then(|t| t.held(host.mem(), op.handle))
        else {
            return GrantStatus::BadHandle;
        };
        if op.host_addr == 0 {
            return GrantStatus::Okay;
        }
        if Gfn::of(op.host_addr) != e.gfn {
            return GrantStatus::GeneralError;
        }
        let Ok(mfn) = host.unmap_granted(caller, e.gfn) else {
            return GrantStatus::GeneralError;
        };
        if let Some(me) = self.table_mut(caller) {
            me.put_handle(host.mem(), op.handle, at);
        }
        self.unpin(host, caller, &e, access);
        host.put_page(mfn);
        GrantStatus::Okay
    }

    /// `GNTTABOP_unmap_and_replace`, which no Arm guest can use: the status of every element.
    #[must_use]
    pub const fn unmap_and_replace() -> GrantStatus {
        GrantStatus::BadHandle
    }

    #[inline]
    fn copy_end<H: PageHost>(
        &mut self,
        host: &H,
        caller: Slot,
        granter: Slot,
        ptr: &CopyPtr,
        is_ref: bool,
        access: Access,
    ) -> Result<End, GrantStatus> {
        if !is_ref {
            let mfn = host
                .resolve(caller, Gfn(ptr.frame), access)
                .map_err(|_| GrantStatus::BadPage)?;
            return Ok(End {
                mfn,
                owner: caller,
                entry: Pa(0),
                clear: 0,
            });
        }
        let by = self.table(caller).ok_or(GrantStatus::BadDomain)?.domid;
        let (_, t) = self.granter(Some(granter))?;
        let (entry, at) = t.entry(ptr.frame as u32).ok_or(GrantStatus::BadGntref)?;
        let act = Active::load(host.mem(), at);
        let (mfn, _) = acquire(host, granter, entry, &act, access, by, GTF_TYPE_MASK)?;
        Ok(End {
            mfn,
            owner: granter,
            entry,
            clear: act.surplus(access),
        })
    }

    /// `GNTTABOP_copy`, one element. `DOMID_SELF` is the caller.
    pub fn copy<H: PageHost>(&mut self, host: &H, caller: Slot, op: &CopyOp) -> GrantStatus {
        let who = |ptr: &CopyPtr, is_ref: bool| {
            if ptr.domid == DomId::SELF {
                return Ok(caller);
            }
            let slot = host.find(ptr.domid).ok_or(GrantStatus::BadDomain)?;
            if is_ref {
                Ok(slot)
            } else {
                Err(GrantStatus::PermissionDenied)
            }
        };
        let (src_ref, dst_ref) = (
            op.flags & gntcopy::SOURCE_GREF != 0,
            op.flags & gntcopy::DEST_GREF != 0,
        );
        let from = match who(&op.source, src_ref) {
            Ok(slot) => slot,
            Err(status) => return status,
        };
        let to = match who(&op.dest, dst_ref) {
            Ok(slot) => slot,
            Err(status) => return status,
        };
        let src = match self.copy_end(host, caller, from, &op.source, src_ref, Access::Read) {
            Ok(end) => end,
            Err(status) => return status,
        };
        let status = match self.copy_end(host, caller, to, &op.dest, dst_ref, Access::Write) {
            Err(status) => status,
            Ok(dst) => {
                let (s, d) = (u64::from(op.source.offset), u64::from(op.dest.offset));
                let len = u64::from(op.len);
                let status = if s.max(d).saturating_add(len) > PAGE_SIZE {
                    GrantStatus::BadCopyArg
                } else {
                    copy_bytes(
                        host.mem(),
                        Pa(dst.mfn.addr()).add(d),
                        Pa(src.mfn.addr()).add(s),
                        len,
                    );
                    GrantStatus::Okay
                };
                clear_status(host, dst.owner, dst.entry, dst.clear);
                status
            }
        };
        clear_status(host, src.owner, src.entry, src.clear);
        status
    }

    /// `GNTTABOP_setup_table` for `slot` (permission is the caller's to check): makes the table
    /// `nr_frames` large. The frame list is then [`Grants::shared_gfn`] of 0 to `nr_frames`.
    pub fn setup_table<H: PageHost>(
        &mut self,
        host: &mut H,
        slot: Slot,
        nr_frames: u32,
    ) -> GrantStatus {
        match self.grow(host, slot, nr_frames) {
            Ok(()) => GrantStatus::Okay,
            Err(Errno::ESRCH) => GrantStatus::BadDomain,
            Err(_) => GrantStatus::GeneralError,
        }
    }

    /// `GNTTABOP_query_size`: shared frames now and at most. Permission is the caller's to check.
    ///
    /// # Errors
    /// `BadDomain` without a table.
    pub fn query_size(&self, slot: Slot) -> Result<(u32, u32), GrantStatus> {
        let t = self.table(slot).ok_or(GrantStatus::BadDomain)?;
        Ok((t.shared.len() as u32, t.max_frames))
    }

    /// `GNTTABOP_set_version`. The version in use, which the call writes back in any case, is 1.
    ///
    /// # Errors
    /// `ENOSYS` for version 2, as before that call existed; `EINVAL` for others.
    pub const fn set_version(version: u32) -> Result<(), Errno> {
        match version {
            1 => Ok(()),
            2 => Err(Errno::ENOSYS),
            _ => Err(Errno::EINVAL),
        }
    }

    /// `GNTTABOP_get_version`.
    #[must_use]
    pub const fn get_version() -> u32 {
        1
    }

    /// `GNTTABOP_get_status_frames`: version 1 has none.
    #[must_use]
    pub const fn get_status_frames(nr_frames: u32) -> GrantStatus {
        if nr_frames == 0 {
            GrantStatus::Okay
        } else {
            GrantStatus::GeneralError
        }
    }

    /// `GNTTABOP_swap_grant_ref`, one element: swaps two of the caller's own entries.
    pub fn swap_grant_ref<H: PageHost>(
        &mut self,
        host: &mut H,
        caller: Slot,
        a: GrantRef,
        b: GrantRef,
    ) -> GrantStatus {
        let place = |gref: GrantRef| {
            let (entry, at) = self.table(caller)?.entry(gref.0)?;
            Some((entry, Active::load(host.mem(), at).pinned()))
        };
        let (Some((pa, a_pinned)), Some((pb, b_pinned))) = (place(a), place(b)) else {
            return GrantStatus::BadGntref;
        };
        if a == b {
            return GrantStatus::Okay;
        }
        if a_pinned || b_pinned {
            return GrantStatus::Eagain;
        }
        let mem = host.mem();
        let (va, vb) = (mem.load64(pa), mem.load64(pb));
        mem.store64(pa, vb);
        mem.store64(pb, va);
        GrantStatus::Okay
    }

    /// `GNTTABOP_cache_flush`, one element: maintains the cache over a page that is the caller's
    /// own, or that it has pinned by a grant. `Ok(false)`: call again with the same `cursor`,
    /// which is 0 for a new element.
    ///
    /// # Errors
    /// `EINVAL` for bounds, operations or pages that are not to be had, whatever they are: the machine's
    /// memory is not to be mapped out by this. (Xen answers `EPERM` for pages of no domain.)
    pub fn cache_flush<H: PageHost>(
        &mut self,
        host: &mut H,
        caller: Slot,
        op: &CacheFlushOp,
        cursor: &mut u32,
    ) -> Result<bool, Errno> {
        let (offset, length) = (u64::from(op.offset), u64::from(op.length));
        if offset >= PAGE_SIZE
            || length > PAGE_SIZE
            || offset.saturating_add(length) > PAGE_SIZE
            || op.op & !(cache::CLEAN | cache::INVAL) != 0
        {
            return Err(Errno::EINVAL);
        }
        if length == 0 || op.op == 0 {
            return Ok(true);
        }
        let mfn = Mfn::of(op.dev_bus_addr);
        if !host.owns(caller, mfn) && !self.maps(host, caller, mfn, cursor)? {
            return Ok(false);
        }
        let how = if op.op & cache::INVAL != 0 {
            CacheOp::Invalidate
        } else {
            CacheOp::Clean
        };
        host.mem().dcache(Pa(mfn.addr()).add(offset), length, how);
        Ok(true)
    }

    /// Looks, a slice at a time, for a mapping of `mfn` that `caller` holds: among its own, so that not even the
    /// time tells what else the page is.
    fn maps<H: PageHost>(
        &self,
        host: &H,
        caller: Slot,
        mfn: Mfn,
        cursor: &mut u32,
    ) -> Result<bool, Errno> {
        let t = self.table(caller).ok_or(Errno::EINVAL)?;
        let end = cursor.saturating_add(CACHE_FLUSH_SLICE).min(t.fresh);
        let looks = end.saturating_sub(*cursor);
        host.mem().spend(looks.saturating_mul(cost::ENTRY));
        let held = (*cursor..end).filter_map(|n| t.held(host.mem(), n));
        let mut pages = held.map(|(e, ..)| host.granted(caller, e.gfn));
        if pages.any(|page| page == Some(mfn)) {
            return Ok(true);
        }
        *cursor = end;
        if end < t.fresh {
            return Ok(false);
        }
        Err(Errno::EINVAL)
    }
}

#[cfg(test)]
mod tests;
