// SPDX-License-Identifier: MIT OR Apache-2.0
//! The p2m: a domain's map from guest frames to machine frames, kept as Armv8-A stage-2
//! translation tables (Arm ARM, "VMSAv8-64 translation table format descriptors").
//!
//! 4 KiB granule, 40 bits of IPA, walks begin at level 1 with two concatenated tables. Blocks of
//! 1 GiB and 2 MiB are used where alignment allows and broken when a part of one changes.
//! Every change of a live entry goes invalid, TLB clean, new value (break-before-make).

use crate::frame::{Clean, Frames, Use};
use crate::machine::{PhysMem, Tlb, cost};
use crate::types::{Access, CpuId, Errno, Gfn, MAX_CPUS, Mfn, Pa, Slot, VcpuId};

/// Bits of guest physical address space.
pub const IPA_BITS: u32 = 40;
/// The first guest frame that cannot exist.
pub const MAX_GFN: u64 = 1 << (IPA_BITS - 12);
const ROOT_ENTRIES: u64 = 1024;
/// Pages of a root.
pub const ROOT_PAGES: u32 = 2;

const VALID: u64 = 1;
const TABLE: u64 = 0b11;
const PAGE: u64 = 0b11;
const BLOCK: u64 = 0b01;
const ADDR: u64 = 0x0000_ffff_ffff_f000;
const AF: u64 = 1 << 10;
const SH_INNER: u64 = 0b11 << 8;
const S2AP_R: u64 = 1 << 6;
const S2AP_W: u64 = 1 << 7;
const ATTR_NORMAL: u64 = 0b1111 << 2;
const ATTR_DEVICE: u64 = 0b0001 << 2;
const XN: u64 = 0b10 << 53;
const TYPE_SHIFT: u32 = 55;

/// What stands behind a guest frame; kept in the software bits of the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The domain's own memory.
    Ram = 1,
    /// A hypervisor page: shared info, grant frames.
    Shared = 2,
    /// Another domain's page, mapped by a toolstack. Holds a reference.
    Foreign = 3,
    /// Another domain's page, by grant, read-write.
    Grant = 4,
    /// Another domain's page, by grant, read-only.
    GrantRo = 5,
    /// A device.
    Mmio = 6,
}

impl Kind {
    const fn from_bits(e: u64) -> Option<Self> {
        Some(match (e >> TYPE_SHIFT) & 0xf {
            1 => Self::Ram,
            2 => Self::Shared,
            3 => Self::Foreign,
            4 => Self::Grant,
            5 => Self::GrantRo,
            6 => Self::Mmio,
            _ => return None,
        })
    }

    const fn attributes(self) -> u64 {
        let common = AF | ((self as u64) << TYPE_SHIFT);
        match self {
            Self::Ram => common | ATTR_NORMAL | SH_INNER | S2AP_R | S2AP_W,
            Self::Shared | Self::Foreign | Self::Grant => {
                common | ATTR_NORMAL | SH_INNER | S2AP_R | S2AP_W | XN
            }
            Self::GrantRo if cfg!(feature = "planted-write") => Self::Grant.attributes(),
            Self::GrantRo => common | ATTR_NORMAL | SH_INNER | S2AP_R | XN,
            Self::Mmio => common | ATTR_DEVICE | S2AP_R | S2AP_W | XN,
        }
    }
}

/// One guest frame's translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The machine frame.
    pub mfn: Mfn,
    /// What it is.
    pub kind: Kind,
    /// log2 of the pages that the entry covers: 0, 9 or 18.
    pub order: u8,
}

impl Mapping {
    /// What an entry of a level says of a frame.
    #[inline]
    fn of(e: u64, level: u8, gfn: Gfn) -> Option<Self> {
        if e & VALID == 0 {
            return None;
        }
        let within = gfn.0 ^ first_of(gfn.0, level);
        Some(Self {
            mfn: Mfn((e & ADDR) >> 12).plus(within),
            kind: Kind::from_bits(e)?,
            order: order_of(level),
        })
    }

    /// Whether the mapping allows `access`.
    #[must_use]
    pub const fn allows(&self, access: Access) -> bool {
        !(matches!(self.kind, Kind::GrantRo) && matches!(access, Access::Write))
    }
}

/// How 2 MiB of a domain's guest frames are translated: by one entry, or by a table of pages. Good
/// until the p2m changes.
#[derive(Clone, Copy)]
pub struct Part {
    entry: u64,
    index: u32,
    slot: Slot,
    level: u8,
}

impl Default for Part {
    /// Has no frame.
    fn default() -> Self {
        Self {
            entry: 0,
            index: u32::MAX,
            slot: Slot(0),
            level: 2,
        }
    }
}

impl Part {
    /// Whether the frame is one of these.
    #[inline]
    #[must_use]
    pub fn has(&self, slot: Slot, gfn: Gfn) -> bool {
        self.slot == slot && u64::from(self.index) == gfn.0 >> 9
    }

    /// Translates one of these frames.
    #[inline]
    #[must_use]
    pub fn lookup<M: PhysMem>(&self, m: &M, gfn: Gfn) -> Option<Mapping> {
        let (e, level) = if self.level == 2 && self.entry & TABLE == TABLE {
            (m.load64(P2m::entry_pa(self.entry & ADDR, 3, gfn.0)), 3)
        } else {
            (self.entry, self.level)
        };
        Mapping::of(e, level, gfn)
    }
}

/// Root of a domain's stage-2 tables and its VMID, which are one thing: only a p2m makes one, and nobody has a
/// root without its VMID, or a VMID over another's root. VMID 0 is no domain's: CPUs have it, over tables that
/// translate nothing, while they are idle and between two vcpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2Root(u64);

impl Stage2Root {
    /// As VTTBR_EL2 has it.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Its VMID over the tables at `empty`, which translate nothing: for TLB maintenance on a CPU that has another
    /// domain's EL1 registers, whose walks and `AT` may not be speculated with these tables (erratum 1319367).
    #[must_use]
    pub const fn over(self, empty: Pa) -> u64 {
        self.0 >> 48 << 48 | empty.0
    }
}

/// No vcpu.
const NOBODY: u8 = u8::MAX;

/// What a p2m operation works with besides the p2m itself.
pub struct Ctx<'a, M> {
    /// Machine memory and TLB.
    pub m: &'a M,
    /// The page allocator, for tables.
    pub frames: &'a mut Frames,
}

/// A domain's p2m.
pub struct P2m {
    slot: Slot,
    root: Mfn,
    tables: u32,
    table_limit: u32,
    /// The highest guest frame ever mapped, for XENMEM_maximum_gpfn and for tear-down.
    max_gfn: u64,
    /// Entries that cannot be written.
    read_only: u32,
    /// The vcpu that was on each CPU last.
    ran: [u8; MAX_CPUS],
}

/// log2 of the pages that one entry of a level, 1 to 3, covers.
const fn order_of(level: u8) -> u8 {
    27u8.wrapping_sub(level.wrapping_mul(9))
}

/// Pages that one entry of a level covers.
const fn span(level: u8) -> u64 {
    1u64.wrapping_shl(order_of(level) as u32)
}

/// The first frame of the entry of a level that covers this one.
const fn first_of(gfn: u64, level: u8) -> u64 {
    gfn & span(level).wrapping_neg()
}

/// Where the `n`th entry of a table is.
const fn nth(table: u64, n: u64) -> Pa {
    Pa(table.wrapping_add(n << 3))
}

impl P2m {
    /// An empty map. `table_limit` bounds the tables (4 KiB each) it may grow to, which are [kept](Frames::keep)
    /// for the domain. Nothing that a former domain left under the VMID is in a TLB any more.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new<M: PhysMem + Tlb>(
        c: &mut Ctx<'_, M>,
        slot: Slot,
        table_limit: u32,
    ) -> Result<Self, Errno> {
        let root = c.frames.alloc(slot, Use::Table, 1)?;
        if let Err(e) = c.frames.keep(slot, table_limit) {
            c.frames.discard(root);
            return Err(e);
        }
        let root = root.table(c.m);
        let new = Self {
            slot,
            root,
            tables: 0,
            table_limit,
            max_gfn: 0,
            read_only: 0,
            ran: [NOBODY; MAX_CPUS],
        };
        c.m.flush_vmid(new.vttbr());
        Ok(new)
    }

    /// Notes that a vcpu comes onto a CPU. True if another one of this domain was there last: what the CPU's TLB has
    /// of that one's stage 1, by the VMID and an ASID that both may use, is to be dropped.
    pub fn comes_onto(&mut self, cpu: CpuId, vcpu: VcpuId) -> bool {
        self.ran.get_mut(cpu.idx()).is_none_or(|last| {
            let other = *last != NOBODY && *last != vcpu.0;
            *last = vcpu.0;
            other
        })
    }

    /// Sets how many tables the map may grow to (XEN_DOMCTL_set_paging_mempool_size); they are kept for it.
    ///
    /// # Errors
    /// `ENOMEM` when there are not so many pages.
    pub fn set_table_limit(&mut self, frames: &mut Frames, limit: u32) -> Result<(), Errno> {
        let room = |limit: u32| limit.saturating_sub(self.tables);
        let (old, new) = (room(self.table_limit), room(limit));
        match new.checked_sub(old) {
            Some(more) => frames.keep(self.slot, more)?,
            None => frames.unkeep(self.slot, old.saturating_sub(new)),
        }
        self.table_limit = limit;
        Ok(())
    }

    /// How many tables the map may grow to.
    #[must_use]
    pub fn table_limit(&self) -> u32 {
        self.table_limit
    }

    /// VTTBR_EL2 for this map: the root and the VMID, which is the slot plus one.
    #[must_use]
    pub fn vttbr(&self) -> Stage2Root {
        Stage2Root(self.root.addr() | ((u64::from(self.slot.0) + 1) << 48))
    }

    /// This map, if it has pages that can only be read. One that has none allows every write to what it maps.
    #[inline]
    #[must_use]
    pub fn with_read_only(&self) -> Option<&Self> {
        (self.read_only != 0).then_some(self)
    }

    /// Notes that an entry goes.
    fn forget(&mut self, kind: Kind) {
        self.read_only = self
            .read_only
            .saturating_sub(u32::from(kind == Kind::GrantRo));
    }

    /// The highest guest frame ever mapped.
    #[must_use]
    pub fn max_gfn(&self) -> Gfn {
        Gfn(self.max_gfn)
    }

    fn entry_pa(table: u64, level: u8, gfn: u64) -> Pa {
        let index = if level == 1 {
            (gfn >> 18) & (ROOT_ENTRIES - 1)
        } else {
            gfn.wrapping_shr(order_of(level) as u32) & 511
        };
        nth(table, index)
    }

    /// Finds the entry that translates `gfn`, down to `to` at most: its place, value and level.
    fn walk<M: PhysMem>(&self, m: &M, gfn: u64, to: u8) -> (Pa, u64, u8) {
        m.spend(cost::WALK);
        let mut table = self.root.addr();
        let mut level = 1;
        loop {
            let pa = Self::entry_pa(table, level, gfn);
            let e = m.load64(pa);
            if level == to || e & TABLE != TABLE {
                return (pa, e, level);
            }
            table = e & ADDR;
            level = level.wrapping_add(1);
        }
    }

    /// Translates a guest frame.
    #[must_use]
    pub fn lookup<M: PhysMem>(&self, m: &M, gfn: Gfn) -> Option<Mapping> {
        self.part(m, gfn)?.lookup(m, gfn)
    }

    /// How the 2 MiB around a guest frame are translated.
    #[must_use]
    pub fn part<M: PhysMem>(&self, m: &M, gfn: Gfn) -> Option<Part> {
        if gfn.0 >= MAX_GFN {
            return None;
        }
        let (_, entry, level) = self.walk(m, gfn.0, 2);
        Some(Part {
            entry,
            index: (gfn.0 >> 9) as u32,
            slot: self.slot,
            level,
        })
    }

    /// Whether nothing is in the 2 MiB around a guest frame, not even a table: a block can be mapped.
    #[must_use]
    pub fn is_hole<M: PhysMem>(&self, m: &M, gfn: Gfn) -> bool {
        self.part(m, gfn).is_some_and(|p| p.entry & VALID == 0)
    }

    fn new_table<M: PhysMem>(&mut self, c: &mut Ctx<'_, M>) -> Result<Mfn, Errno> {
        if self.tables >= self.table_limit {
            return Err(Errno::ENOMEM);
        }
        let t = c.frames.alloc_kept(self.slot, Use::Table)?.table(c.m);
        self.tables = self.tables.saturating_add(1);
        Ok(t)
    }

    /// Gives the place of `gfn`'s entry at `level`, making tables and breaking blocks on the way.
    fn descend<M: PhysMem + Tlb>(
        &mut self,
        c: &mut Ctx<'_, M>,
        gfn: u64,
        level: u8,
    ) -> Result<Pa, Errno> {
        loop {
            let (pa, e, at) = self.walk(c.m, gfn, level);
            if at == level {
                return Ok(pa);
            }
            let table = self.new_table(c)?;
            if e & VALID != 0 {
                c.m.spend(cost::BREAK);
                // A block: the same translation in pieces of the next level.
                let child = at.wrapping_add(1);
                let low = if child == 3 { PAGE } else { BLOCK };
                let attributes = e & !(ADDR | 0b11);
                let first = e & ADDR;
                for i in 0..512u64 {
                    let addr = first.wrapping_add(i.wrapping_mul(span(child) << 12));
                    c.m.store64(nth(table.addr(), i), addr | attributes | low);
                }
                c.m.store64(pa, 0);
                c.m.flush_ipa(self.vttbr(), first_of(gfn, at) << 12);
            }
            c.m.store64(pa, table.addr() | TABLE);
        }
    }

    /// Maps pages (order 0, 9 or 18; both numbers aligned to it). Nothing may be mapped there. The caller
    /// holds the references that the entry stands for.
    ///
    /// # Errors
    /// `EINVAL` beyond the address space or misaligned, `EEXIST` where something is mapped,
    /// `ENOMEM` when the domain's table pool or memory is used up.
    pub fn map<M: PhysMem + Tlb>(
        &mut self,
        c: &mut Ctx<'_, M>,
        gfn: Gfn,
        pages: Clean,
        kind: Kind,
    ) -> Result<(), Errno> {
        self.install(c, gfn, pages.mfn(), pages.order(), kind)
    }

    /// Maps a page of a device, which is no memory.
    ///
    /// # Errors
    /// As [`P2m::map`]; `EINVAL` for memory.
    pub fn map_device<M: PhysMem + Tlb>(
        &mut self,
        c: &mut Ctx<'_, M>,
        gfn: Gfn,
        mfn: Mfn,
    ) -> Result<(), Errno> {
        if c.frames.is_ram(mfn) {
            return Err(Errno::EINVAL);
        }
        self.install(c, gfn, mfn, 0, Kind::Mmio)
    }

    fn install<M: PhysMem + Tlb>(
        &mut self,
        c: &mut Ctx<'_, M>,
        gfn: Gfn,
        mfn: Mfn,
        order: u8,
        kind: Kind,
    ) -> Result<(), Errno> {
        let level = match order {
            0 => 3,
            9 => 2,
            18 => 1,
            _ => return Err(Errno::EINVAL),
        };
        let pages = span(level);
        if gfn.0 >= MAX_GFN
            || MAX_GFN.saturating_sub(gfn.0) < pages
            || !gfn.0.is_multiple_of(pages)
            || !mfn.0.is_multiple_of(pages)
        {
            return Err(Errno::EINVAL);
        }
        let pa = self.descend(c, gfn.0, level)?;
        if c.m.load64(pa) & VALID != 0 {
            return Err(Errno::EEXIST);
        }
        let low = if level == 3 { PAGE } else { BLOCK };
        c.m.store64(pa, mfn.addr() | kind.attributes() | low);
        self.read_only = self
            .read_only
            .saturating_add(u32::from(kind == Kind::GrantRo));
        self.max_gfn = self.max_gfn.max(gfn.0 | pages.wrapping_sub(1));
        Ok(())
    }

    /// Removes the mapping of one frame, if it is of a kind that `may` be, and cleans the TLB; a block around it is
    /// broken. The reference that the entry stood for passes to the caller.
    ///
    /// # Errors
    /// `ENOENT` when nothing is mapped, `EINVAL` for another kind, `ENOMEM` when a block cannot be broken.
    pub fn unmap<M: PhysMem + Tlb>(
        &mut self,
        c: &mut Ctx<'_, M>,
        gfn: Gfn,
        may: impl FnOnce(Kind) -> bool,
    ) -> Result<Mapping, Errno> {
        if gfn.0 >= MAX_GFN {
            return Err(Errno::ENOENT);
        }
        let (pa, e, level) = self.walk(c.m, gfn.0, 3);
        let old = Mapping::of(e, level, gfn).ok_or(Errno::ENOENT)?;
        if !may(old.kind) {
            return Err(Errno::EINVAL);
        }
        let pa = match level {
            3 => pa,
            _ => self.descend(c, gfn.0, 3)?,
        };
        self.forget(old.kind);
        c.m.store64(pa, 0);
        c.m.flush_ipa(self.vttbr(), gfn.addr());
        Ok(Mapping { order: 0, ..old })
    }

    /// Removes the whole entry that translates `gfn`, a block or a page, and cleans the TLB. The
    /// references that it stood for pass to the caller.
    ///
    /// # Errors
    /// `ENOENT` when nothing is mapped.
    pub fn unmap_entry<M: PhysMem + Tlb>(
        &mut self,
        c: &mut Ctx<'_, M>,
        gfn: Gfn,
    ) -> Result<(), Errno> {
        let (pa, e, level) = self.walk(c.m, gfn.0, 3);
        if gfn.0 >= MAX_GFN || e & VALID == 0 {
            return Err(Errno::ENOENT);
        }
        if let Some(kind) = Kind::from_bits(e) {
            self.forget(kind);
        }
        c.m.store64(pa, 0);
        c.m.flush_ipa(self.vttbr(), first_of(gfn.0, level) << 12);
        Ok(())
    }

    /// Finds the first mapping at or after `from`, for tear-down; gives its frame, or `None` at the
    /// end. Each entry looked at costs one of `budget`; when that is used up, the frame to go on
    /// from comes without a mapping.
    #[must_use]
    pub fn next_mapped<M: PhysMem>(
        &self,
        m: &M,
        from: Gfn,
        budget: &mut i64,
    ) -> Option<(Gfn, Option<Mapping>)> {
        let mut gfn = from.0;
        while gfn <= self.max_gfn {
            if *budget <= 0 {
                return Some((Gfn(gfn), None));
            }
            *budget = budget.saturating_sub(1);
            let (_, e, level) = self.walk(m, gfn, 3);
            if e & VALID != 0 {
                let start = Gfn(first_of(gfn, level));
                return self.lookup(m, start).map(|x| (start, Some(x)));
            }
            gfn = first_of(gfn, level).saturating_add(span(level));
        }
        None
    }

    /// Removes a whole entry without cleaning the TLB: for a domain that will never run again, whose
    /// VMID was cleaned since.
    pub fn clear_entry<M: PhysMem>(&mut self, m: &M, gfn: Gfn) {
        let (pa, e, _) = self.walk(m, gfn.0, 3);
        if let Some(kind) = Kind::from_bits(e) {
            self.forget(kind);
        }
        m.store64(pa, 0);
    }

    /// Frees the tables below the root, leaves first; each entry looked at costs one of `budget`,
    /// which must be more than those of the root and one table. `true` when only the root is left.
    /// Nothing may be mapped any more, and the TLB must be clean of this VMID.
    pub fn free_tables<M: PhysMem>(&mut self, c: &mut Ctx<'_, M>, mut budget: i64) -> bool {
        let root = self.root.addr();
        for i in 0..ROOT_ENTRIES {
            let pa1 = nth(root, i);
            let e1 = c.m.load64(pa1);
            budget = budget.saturating_sub(1);
            if e1 & TABLE != TABLE {
                continue;
            }
            if budget < 512 {
                return false;
            }
            budget = budget.saturating_sub(512);
            for j in 0..512 {
                let pa2 = nth(e1 & ADDR, j);
                let e2 = c.m.load64(pa2);
                if e2 & TABLE == TABLE {
                    c.m.store64(pa2, 0);
                    c.frames.put(Mfn((e2 & ADDR) >> 12));
                    self.tables = self.tables.saturating_sub(1);
                }
            }
            c.m.store64(pa1, 0);
            c.frames.put(Mfn((e1 & ADDR) >> 12));
            self.tables = self.tables.saturating_sub(1);
        }
        true
    }

    /// Frees the root, which is all that is left of the map.
    pub fn free_root<M>(self, c: &mut Ctx<'_, M>) {
        debug_assert_eq!(self.tables, 0, "tables are lost");
        c.frames.put(self.root);
        c.frames.put(self.root.plus(1));
    }
}
