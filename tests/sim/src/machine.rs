// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine: RAM, translation caches, registers, a clock and a console.

use hv_core::console::{Output, Speaker};
use hv_core::machine::{
    Cache, CacheOp, Clock, Contended, GuestVa, Meter, PhysMem, StartState, Tlb, Uart, VcpuIf,
    VcpuRegs, cost,
};
use hv_core::p2m::Stage2Root;
use hv_core::types::{Access, Errno, Mfn, PAGE_SIZE, Pa, VcpuRef};
use hv_core::vgic::ListRegs;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

/// What a free page is filled with.
pub const POISON: u8 = 0xa5;

/// Bytes of a cache line.
const LINE: usize = 64;

const TABLE_ADDR: u64 = 0x0000_ffff_ffff_f000;

/// An entry of the stage-2 tables that translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The first guest frame that it covers.
    pub gfn: u64,
    /// The machine frame of that.
    pub mfn: u64,
    /// log2 of the frames that it covers.
    pub order: u8,
    /// It may be read.
    pub read: bool,
    /// It may be written.
    pub write: bool,
    /// Its type field, bits 55 to 58.
    pub kind: u8,
}

/// The machine.
pub struct Machine {
    base: u64,
    /// What accesses with caches see.
    ram: RefCell<Vec<u8>>,
    /// What is behind the write-back cache: what accesses without caches see.
    dram: RefCell<Vec<u8>>,
    /// Lines of the cache that were not written back.
    dirty: RefCell<Vec<bool>>,
    /// Lines of memory that hold what a page's last owner left, and how many each page has.
    stale: RefCell<(Vec<bool>, Vec<u8>)>,
    /// Pages of which an instruction cache may hold what a last owner executed.
    fetched: RefCell<Vec<bool>>,
    /// Pages that somebody may execute now.
    executed: RefCell<Vec<bool>>,
    /// Pages that are free: nobody may touch them.
    poisoned: RefCell<Vec<bool>>,
    /// Pages that are stage-2 tables.
    tables: RefCell<Vec<bool>>,
    /// Entries of these that were taken away and may still be cached: VMID, order and first guest frame.
    broken: RefCell<BTreeMap<u64, (u64, u8, u64)>>,
    /// VTTBR_EL2 by VMID, as some CPU may have it: it walks the tables there at any time.
    walkable: RefCell<BTreeMap<u64, u64>>,
    /// Of a table's page: VTTBR_EL2, level, first guest frame.
    places: RefCell<BTreeMap<u64, (u64, u8, u64)>>,
    /// Cached translations, by VMID, order and first guest frame.
    tlb: RefCell<BTreeMap<(u64, u8, u64), Leaf>>,
    /// VTTBR_EL2 of the vcpu that is on the CPU.
    pub vttbr: Cell<u64>,
    /// Its stage 1: pages of virtual addresses, their guest physical addresses, and whether they
    /// may be written. Other addresses are guest physical ones.
    pub stage1: RefCell<BTreeMap<u64, (u64, bool)>>,
    /// The root of its stage-1 tables for the upper half of the address space, guest physical; 0: it has none, and
    /// `stage1` is all.
    pub upper: Cell<u64>,
    /// How often an address of a vcpu was translated.
    pub translations: Cell<u64>,
    spent: Cell<u32>,
    /// Nanoseconds.
    pub now: Cell<u64>,
    vcpus: RefCell<BTreeMap<VcpuRef, StartState>>,
    /// What was printed.
    pub printed: RefCell<Vec<u8>>,
    /// What waits for the UART, and how many bytes that takes at once.
    output: RefCell<Output>,
    /// See `output`.
    pub uart_takes: Cell<usize>,
    /// Cache maintenance: calls and bytes.
    pub maintained: Cell<(u64, u64)>,
    /// How often instruction caches were emptied.
    pub dropped: Cell<u64>,
    /// Broadcast invalidations of TLBs: of one address, of a whole VMID.
    pub flushes: Cell<(u64, u64)>,
    /// The list registers of the CPU, in its GIC's format.
    lr: RefCell<[u64; 4]>,
    /// The vcpu that is on the CPU has IRQs masked.
    pub masked: Cell<bool>,
    /// Interrupts of a lower priority value are signalled to it.
    pub threshold: Cell<u8>,
    /// How many tries of each update of a single word fail.
    pub failing: Cell<u32>,
    /// Pages that somebody stores to without end: no update succeeds there.
    pub held: RefCell<BTreeSet<u64>>,
    /// Updates that were tried.
    pub updates: Cell<u64>,
}

/// The CPU's list registers.
pub struct Lrs<'a>(&'a Machine);

impl ListRegs for Lrs<'_> {
    fn count(&self) -> usize {
        self.0.lr.borrow().len()
    }
    fn read(&self, n: usize) -> u64 {
        self.0.lr.borrow()[n]
    }
    fn write(&mut self, n: usize, value: u64) {
        self.0.lr.borrow_mut()[n] = value;
    }
    fn empty(&self) -> u32 {
        let lr = self.0.lr.borrow();
        (0..lr.len())
            .filter(|&n| Machine::state(lr[n]) == 0)
            .fold(0, |m, n| m | 1 << n)
    }
    fn control(&mut self, _: u32) {}
    fn ends(&mut self) -> u32 {
        0 // who acknowledges here ends in list registers
    }
}

impl Machine {
    /// `pages` pages of RAM from `base` on, all poisoned.
    #[must_use]
    pub fn new(base: u64, pages: u64) -> Self {
        let bytes = usize::try_from(pages * PAGE_SIZE).expect("fits");
        Self {
            base,
            ram: RefCell::new(vec![POISON; bytes]),
            dram: RefCell::new(vec![POISON; bytes]),
            dirty: RefCell::new(vec![false; bytes / LINE]),
            stale: RefCell::new((vec![true; bytes / LINE], vec![64; bytes / 4096])),
            fetched: RefCell::new(vec![true; bytes / 4096]),
            executed: RefCell::new(vec![false; bytes / 4096]),
            poisoned: RefCell::new(vec![true; bytes / 4096]),
            tables: RefCell::new(vec![false; bytes / 4096]),
            broken: RefCell::new(BTreeMap::new()),
            walkable: RefCell::new(BTreeMap::new()),
            places: RefCell::new(BTreeMap::new()),
            tlb: RefCell::new(BTreeMap::new()),
            vttbr: Cell::new(0),
            stage1: RefCell::new(BTreeMap::new()),
            upper: Cell::new(0),
            translations: Cell::new(0),
            spent: Cell::new(0),
            now: Cell::new(1_000_000),
            vcpus: RefCell::new(BTreeMap::new()),
            printed: RefCell::new(Vec::new()),
            output: RefCell::new(Output::NEW),
            uart_takes: Cell::new(usize::MAX),
            maintained: Cell::new((0, 0)),
            dropped: Cell::new(0),
            flushes: Cell::new((0, 0)),
            lr: RefCell::new([0; 4]),
            masked: Cell::new(false),
            threshold: Cell::new(0xf8),
            failing: Cell::new(0),
            held: RefCell::new(BTreeSet::new()),
            updates: Cell::new(0),
        }
    }

    /// The state in a list register of either version: GICv2's are of 32 bits.
    fn state(lr: u64) -> u64 {
        if lr >> 32 == 0 {
            lr >> 28 & 3
        } else {
            lr >> 62
        }
    }

    /// The vcpu on the CPU acknowledges an interrupt, which must be pending in a list register.
    pub fn acknowledge(&self, irq: u32) {
        let mut lr = self.lr.borrow_mut();
        let found = lr.iter_mut().find(|x| {
            let id = if **x >> 32 == 0 {
                **x & 0x3ff
            } else {
                **x & 0xffff_ffff
            };
            Self::state(**x) == 1 && id == u64::from(irq)
        });
        let x = found.expect("it is pending");
        *x ^= if *x >> 32 == 0 { 3 << 28 } else { 3 << 62 };
    }

    /// The tries of an update of a single word: an exclusive store fails when somebody else wrote nearby.
    fn tries(&self, pa: Pa) -> Result<(), Contended> {
        self.updates.set(self.updates.get() + 1);
        let fail = if self.held.borrow().contains(&(pa.0 >> 12)) {
            cost::TRIES
        } else {
            self.failing.get()
        };
        self.spend(fail * cost::TRY);
        if fail >= cost::TRIES {
            return Err(Contended);
        }
        Ok(())
    }

    fn spend_copy(&self, len: usize) {
        if len > cost::SMALL {
            self.spend(cost::copy(len));
        }
    }

    /// How many register files there are.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.vcpus.borrow().len()
    }

    /// Poisons a page that is free now. Gives whether it was not known as free before.
    pub fn poison(&self, mfn: u64) -> bool {
        let at = (mfn * PAGE_SIZE - self.base) as usize;
        let fresh = !std::mem::replace(&mut self.poisoned.borrow_mut()[at / 4096], true);
        if fresh {
            self.ram.borrow_mut()[at..at + 4096].fill(POISON);
            self.dram.borrow_mut()[at..at + 4096].fill(POISON);
            self.dirty.borrow_mut()[at / LINE..(at + 4096) / LINE].fill(false);
            let mut stale = self.stale.borrow_mut();
            stale.0[at / LINE..(at + 4096) / LINE].fill(true);
            stale.1[at / 4096] = 64;
            let executed = std::mem::take(&mut self.executed.borrow_mut()[at / 4096]);
            self.fetched.borrow_mut()[at / 4096] |= executed;
        }
        fresh
    }

    /// What of a page's last owner whoever has it now could still get at, if anything: bytes, past the
    /// caches, or instructions. From now on it may be executed, if that is so.
    #[must_use]
    pub fn leftover(&self, mfn: u64, executable: bool) -> Option<&'static str> {
        let page = (mfn - (self.base >> 12)) as usize;
        if self.stale.borrow().1[page] != 0 {
            return Some("bytes");
        }
        self.executed.borrow_mut()[page] |= executable;
        (executable && self.fetched.borrow()[page]).then_some("instructions")
    }

    /// A line of memory was written.
    fn fresh(&self, line: usize) {
        let mut stale = self.stale.borrow_mut();
        if std::mem::take(&mut stale.0[line]) {
            stale.1[line / 64] -= 1;
        }
    }

    /// Bytes were written with caches: their lines are not in memory yet.
    fn soil(&self, at: usize, len: usize) {
        if len != 0 {
            self.dirty.borrow_mut()[at / LINE..=(at + len - 1) / LINE].fill(true);
        }
    }

    /// Writes the dirty ones of these lines back, as a cache also may at any time.
    fn write_back(&self, lines: std::ops::Range<usize>) {
        let (ram, mut dram) = (self.ram.borrow(), self.dram.borrow_mut());
        let mut dirty = self.dirty.borrow_mut();
        for l in lines.filter(|&l| std::mem::take(&mut dirty[l])) {
            let r = l * LINE..(l + 1) * LINE;
            dram[r.clone()].copy_from_slice(&ram[r]);
            self.fresh(l);
        }
    }

    /// The cache writes back all that is dirty in it.
    pub fn evict(&self) {
        let all = 0..self.dirty.borrow().len();
        self.write_back(all);
    }

    /// Reads as an access without caches does.
    pub fn read_uncached(&self, pa: Pa, buf: &mut [u8]) {
        let o = self.at(pa.0, buf.len(), 1);
        buf.copy_from_slice(&self.dram.borrow()[o..o + buf.len()]);
    }

    /// Writes as an access without caches does: a dirty line is written back over it some day.
    pub fn write_uncached(&self, pa: Pa, buf: &[u8]) {
        let o = self.at(pa.0, buf.len(), 1);
        for (i, b) in buf.iter().enumerate() {
            self.dram.borrow_mut()[o + i] = *b;
            if !self.dirty.borrow()[(o + i) / LINE] {
                self.ram.borrow_mut()[o + i] = *b;
            }
        }
    }

    /// Whether a page is known to be free.
    #[must_use]
    pub fn is_poisoned(&self, mfn: u64) -> bool {
        self.poisoned.borrow()[(mfn - (self.base >> 12)) as usize]
    }

    /// Says whether a page is a stage-2 table, between calls.
    pub fn mark(&self, mfn: u64, table: bool) {
        self.tables.borrow_mut()[(mfn - (self.base >> 12)) as usize] = table;
        self.broken.borrow_mut().clear();
    }

    /// The roots that CPUs may have in VTTBR_EL2, by VMID, between two calls.
    pub fn set_walkable(&self, roots: BTreeMap<u64, u64>) {
        let old = self.walkable.replace(roots.clone());
        let mut places = self.places.borrow_mut();
        places.retain(|_, (v, ..)| roots.get(&(*v >> 48)) == Some(v));
        for (_, vttbr) in roots.into_iter().filter(|(k, v)| old.get(k) != Some(v)) {
            let root = (vttbr & TABLE_ADDR) >> 12;
            let mut todo = vec![(root, 1, 0), (root + 1, 1, 512 << 18)];
            while let Some((table, level, first)) = todo.pop() {
                places.insert(table, (vttbr, level, first));
                for i in 0..if level < 3 { 512u64 } else { 0 } {
                    let e = self.load64(Pa(table * 4096 + i * 8));
                    if e & 3 == 3 {
                        let gfn = first + (i << (9 * (3 - level)));
                        todo.push(((e & TABLE_ADDR) >> 12, level + 1, gfn));
                    }
                }
            }
        }
    }

    /// A stage-2 entry changes: live ones only to nothing, and then the cache is cleaned before
    /// anything else gets there ("break before make"). Some CPU looks at it at the worst time, just before it goes:
    /// it is cached from then on, until the right invalidation.
    fn change(&self, pa: u64, old: u64, new: u64) {
        let page = (pa - self.base) as usize / 4096;
        if !self.tables.borrow()[page] {
            return;
        }
        if new & 1 != 0 {
            assert_eq!(old & 1, 0, "the live entry at {pa:#x} is changed");
            assert!(
                !self.broken.borrow().contains_key(&pa),
                "the entry at {pa:#x} is made before the cache is clean"
            );
        }
        // A map that no CPU walks: it is being made, or its domain is dead.
        let Some((vttbr, level, first)) = self.places.borrow().get(&(pa >> 12)).copied() else {
            return;
        };
        let order = 9 * (3 - level);
        let gfn = first + ((pa >> 3 & 511) << order);
        let table = |e: u64| level < 3 && e & 3 == 3;
        if new & 1 != 0 {
            if table(new) {
                let child = (new & TABLE_ADDR) >> 12;
                self.tables.borrow_mut()[(child - (self.base >> 12)) as usize] = true;
                let place = (vttbr, level + 1, gfn);
                self.places.borrow_mut().insert(child, place);
            }
        } else if old & 1 != 0 {
            assert!(
                !table(old),
                "the table at {pa:#x} is taken out of a map that may be walked: walks may be cached"
            );
            let leaf = Self::leaf(level, gfn, old);
            self.tlb
                .borrow_mut()
                .insert((vttbr >> 48, order, gfn), leaf);
            let entry = (vttbr >> 48, order, gfn);
            self.broken.borrow_mut().insert(pa, entry);
        }
    }

    /// Where the entry is that translates a guest frame.
    #[must_use]
    pub fn entry(&self, vttbr: u64, gfn: u64) -> Pa {
        let mut pa = Pa((vttbr & 0x0000_ffff_ffff_fffe) + (gfn >> 18) * 8);
        for level in 2..=3 {
            let e = self.load64(pa);
            if e & 3 == 3 {
                pa = Pa((e & TABLE_ADDR) + (gfn >> (9 * (3 - level)) & 511) * 8);
            }
        }
        pa
    }

    /// Whether there is memory at a machine frame.
    #[must_use]
    pub fn is_ram(&self, mfn: u64) -> bool {
        let at = mfn.checked_sub(self.base >> 12);
        at.is_some_and(|at| at < self.poisoned.borrow().len() as u64)
    }

    fn unpoison(&self, mfn: u64) {
        let page = mfn.checked_sub(self.base >> 12).expect("below RAM") as usize;
        self.poisoned.borrow_mut()[page] = false;
    }

    fn at(&self, pa: u64, len: usize, align: u64) -> usize {
        assert_eq!(pa % align, 0, "misaligned access at {pa:#x}");
        let off = pa
            .checked_sub(self.base)
            .unwrap_or_else(|| panic!("{pa:#x} is below RAM")) as usize;
        assert!(
            off + len <= self.ram.borrow().len(),
            "{pa:#x} is beyond RAM"
        );
        let free = self.poisoned.borrow();
        let pages = &free[off / 4096..=(off + len.max(1) - 1) / 4096];
        assert!(!pages.contains(&true), "{pa:#x} is in a free page");
        off
    }

    fn get<const N: usize>(&self, pa: Pa) -> [u8; N] {
        let o = self.at(pa.0, N, N as u64);
        self.ram.borrow()[o..o + N].try_into().expect("N bytes")
    }

    fn set<const N: usize>(&self, pa: Pa, v: [u8; N]) {
        let o = self.at(pa.0, N, N as u64);
        self.ram.borrow_mut()[o..o + N].copy_from_slice(&v);
        self.soil(o, N);
    }

    fn leaf(level: u8, gfn: u64, e: u64) -> Leaf {
        let order = 9 * (3 - level);
        assert_ne!(
            e & 1 << 10,
            0,
            "a stage-2 entry without the access flag: {e:#x}"
        );
        let device = e >> 2 & 15 == 1;
        assert!(
            device || e >> 8 & 3 == 3,
            "memory that is not inner shareable: {e:#x}"
        );
        Self::check_address(e, order);
        Leaf {
            gfn: gfn >> order << order,
            mfn: (e & TABLE_ADDR) >> 12,
            order,
            read: e & 1 << 6 != 0,
            write: e & 1 << 7 != 0,
            kind: (e >> 55 & 15) as u8,
        }
    }

    fn check_address(e: u64, order: u8) {
        assert_eq!(
            (e & TABLE_ADDR) >> 12 & ((1 << order) - 1),
            0,
            "a misaligned stage-2 block: {e:#x}"
        );
    }

    /// Walks the stage-2 tables as the architecture defines: 4 KiB granule, 40 bits, two tables of
    /// level 1 side by side. No cache.
    #[must_use]
    pub fn walk(&self, vttbr: u64, gfn: u64) -> Option<Leaf> {
        if gfn >> 28 != 0 {
            return None;
        }
        let root = vttbr & 0x0000_ffff_ffff_fffe;
        assert_eq!(root % 8192, 0, "a misaligned root table");
        let mut e = self.load64(Pa(root + (gfn >> 18) * 8));
        for level in 1..=3u8 {
            if e & 1 == 0 {
                return None;
            }
            if level == 3 || e & 2 == 0 {
                assert!(level != 3 || e & 2 != 0, "a block at level 3");
                return Some(Self::leaf(level, gfn, e));
            }
            let index = gfn >> (9 * (2 - level)) & 511;
            e = self.load64(Pa((e & TABLE_ADDR) + index * 8));
        }
        None
    }

    /// Every translating entry, and every table below the root.
    #[must_use]
    pub fn tables(&self, vttbr: u64) -> (Vec<Leaf>, Vec<u64>) {
        let root = vttbr & 0x0000_ffff_ffff_fffe;
        let (mut leaves, mut tables) = (Vec::new(), vec![root >> 12, (root >> 12) + 1]);
        let mut todo: Vec<(u8, u64, u64, u64)> = vec![(1, root, 0, 1024)];
        while let Some((level, table, first, n)) = todo.pop() {
            for i in 0..n {
                let e = self.load64(Pa(table + i * 8));
                let gfn = first + (i << (9 * (3 - level)));
                if e & 1 == 0 {
                    continue;
                }
                if level == 3 || e & 2 == 0 {
                    leaves.push(Self::leaf(level, gfn, e));
                } else {
                    tables.push((e & TABLE_ADDR) >> 12);
                    todo.push((level + 1, e & TABLE_ADDR, gfn, 512));
                }
            }
        }
        (leaves, tables)
    }

    /// Translates a guest frame as a CPU does: from the cache if it is there.
    pub fn translate_gfn(&self, vttbr: u64, gfn: u64, access: Access) -> Option<u64> {
        let vmid = vttbr >> 48;
        let cached = [0u8, 9, 18].into_iter().find_map(|o| {
            let key = (vmid, o, gfn >> o << o);
            self.tlb.borrow().get(&key).copied()
        });
        let leaf = match cached {
            Some(l) => l,
            None => {
                let l = self.walk(vttbr, gfn)?;
                self.tlb.borrow_mut().insert((vmid, l.order, l.gfn), l);
                l
            }
        };
        let ok = if access == Access::Write {
            leaf.write
        } else {
            leaf.read
        };
        ok.then(|| leaf.mfn + (gfn - leaf.gfn))
    }

    /// Translates a virtual address of the vcpu that is on the CPU to a guest physical one.
    fn stage1(&self, va: u64, access: Access) -> Option<u64> {
        match self.stage1.borrow().get(&(va >> 12)) {
            Some(&(_, false)) if access == Access::Write => None,
            Some(&(page, _)) => Some(page | (va & 4095)),
            None if self.upper.get() != 0 => self.walk_stage1(self.upper.get(), va, access),
            None => Some(va),
        }
    }

    /// Fills the cache with all that the tables say, as a CPU may at any time.
    pub fn prefetch(&self, vttbr: u64) {
        let mut tlb = self.tlb.borrow_mut();
        for l in self.tables(vttbr).0 {
            tlb.insert((vttbr >> 48, l.order, l.gfn), l);
        }
    }

    /// Puts a translation into the cache, as the last owner of a VMID may have left it.
    pub fn leave_cached(&self, vmid: u64, leaf: Leaf) {
        self.tlb
            .borrow_mut()
            .insert((vmid, leaf.order, leaf.gfn), leaf);
    }

    /// The cached translations of a VMID.
    #[must_use]
    pub fn cached(&self, vmid: u64) -> Vec<Leaf> {
        let tlb = self.tlb.borrow();
        tlb.iter()
            .filter(|(k, _)| k.0 == vmid)
            .map(|(_, l)| *l)
            .collect()
    }

    /// Every VMID of which something is cached.
    #[must_use]
    pub fn cached_vmids(&self) -> BTreeSet<u64> {
        self.tlb.borrow().keys().map(|k| k.0).collect()
    }
}

macro_rules! words {
    ($($load:ident $store:ident $t:ty;)*) => {
        $(
            fn $load(&self, pa: Pa) -> $t {
                <$t>::from_le_bytes(self.get(pa))
            }
            fn $store(&self, pa: Pa, v: $t) {
                self.set(pa, v.to_le_bytes());
            }
        )*
    };
}

macro_rules! updates {
    ($($name:ident $load:ident $store:ident $t:ty, $old:ident $v:ident => $e:expr;)*) => {
        $(
            fn $name(&self, pa: Pa, $v: $t) -> Result<$t, Contended> {
                self.tries(pa)?;
                let $old = self.$load(pa);
                self.$store(pa, $e);
                Ok($old)
            }
        )*
    };
}

impl Meter for Machine {
    fn spend(&self, cost: u32) {
        self.spent.set(self.spent.get() + cost);
    }
    fn spent(&self) -> u32 {
        self.spent.get()
    }
    fn restart(&self) {
        self.spent.set(0);
    }
}

impl PhysMem for Machine {
    words! {
        load8 store8 u8;
        load16 store16 u16;
        load32 store32 u32;
    }
    updates! {
        swap8 load8 store8 u8, old v => v;
        or32 load32 store32 u32, old v => old | v;
        and32 load32 store32 u32, old v => old & v;
        or64 load64 store64 u64, old v => old | v;
        and64 load64 store64 u64, old v => old & v;
    }
    fn cmpxchg32(&self, pa: Pa, old: u32, new: u32) -> Result<u32, Contended> {
        self.tries(pa)?;
        let found = self.load32(pa);
        if found == old {
            self.store32(pa, new);
        }
        Ok(found)
    }
    fn load64(&self, pa: Pa) -> u64 {
        u64::from_le_bytes(self.get(pa))
    }
    fn store64(&self, pa: Pa, v: u64) {
        self.change(pa.0, self.load64(pa), v);
        self.set(pa, v.to_le_bytes());
    }
    fn read(&self, pa: Pa, buf: &mut [u8]) {
        self.spend_copy(buf.len());
        let o = self.at(pa.0, buf.len(), 1);
        buf.copy_from_slice(&self.ram.borrow()[o..o + buf.len()]);
    }
    fn write(&self, pa: Pa, buf: &[u8]) {
        self.spend_copy(buf.len());
        let o = self.at(pa.0, buf.len(), 1);
        self.ram.borrow_mut()[o..o + buf.len()].copy_from_slice(buf);
        self.soil(o, buf.len());
    }
    fn copy(&self, dst: Pa, src: Pa, len: usize) {
        self.spend_copy(len);
        let (d, s) = (self.at(dst.0, len, 1), self.at(src.0, len, 1));
        self.ram.borrow_mut().copy_within(s..s + len, d);
        self.soil(d, len);
    }
    fn zero_page(&self, mfn: Mfn) {
        self.spend(cost::ZERO_PAGE);
        let (tlb, walkable) = (self.tlb.borrow(), self.walkable.borrow());
        let reach = tlb.iter().find(|(k, l)| {
            mfn.0 >= l.mfn && mfn.0 - l.mfn < 1 << l.order && walkable.contains_key(&k.0)
        });
        assert!(
            reach.is_none(),
            "page {:#x} is cleared for another owner, and still reached by {reach:x?}",
            mfn.0
        );
        self.unpoison(mfn.0);
        let o = self.at(mfn.addr(), 4096, PAGE_SIZE);
        self.ram.borrow_mut()[o..o + 4096].fill(0);
        self.soil(o, 4096);
    }
}

impl Tlb for Machine {
    fn flush_ipa(&self, root: Stage2Root, ipa: u64) {
        let vttbr = root.bits();
        self.spend(cost::FLUSH);
        let (one, all) = self.flushes.get();
        self.flushes.set((one + 1, all));
        let gfn = ipa >> 12;
        self.broken
            .borrow_mut()
            .retain(|_, &mut (vmid, o, first)| vmid != vttbr >> 48 || gfn >> o != first >> o);
        let mut tlb = self.tlb.borrow_mut();
        for o in [0u8, 9, 18] {
            tlb.remove(&(vttbr >> 48, o, (ipa >> 12) >> o << o));
        }
    }
    fn flush_vmid(&self, root: Stage2Root) {
        let vttbr = root.bits();
        self.spend(cost::FLUSH);
        let (one, all) = self.flushes.get();
        self.flushes.set((one, all + 1));
        self.broken
            .borrow_mut()
            .retain(|_, (vmid, ..)| *vmid != vttbr >> 48);
        self.tlb.borrow_mut().retain(|k, _| k.0 != vttbr >> 48);
        // Made, or dead: no CPU has it until the next vcpu of it is entered.
        self.walkable.borrow_mut().remove(&(vttbr >> 48));
        self.places
            .borrow_mut()
            .retain(|_, (v, ..)| *v >> 48 != vttbr >> 48);
    }
}

impl GuestVa for Machine {
    fn readable(&self, va: u64) -> Option<Pa> {
        self.translations.set(self.translations.get() + 1);
        self.spend(cost::TRANSLATE);
        let ipa = self.stage1(va, Access::Read)?;
        let mfn = self.translate_gfn(self.vttbr.get(), ipa >> 12, Access::Read)?;
        Some(Pa(mfn * PAGE_SIZE + (ipa & 4095)))
    }
    fn stage1_writable(&self, va: u64) -> Option<(u64, Pa)> {
        Some((self.stage1(va, Access::Write)?, self.readable(va)?))
    }
}

impl Cache for Machine {
    fn dcache(&self, pa: Pa, len: u64, _: CacheOp) {
        self.spend(cost::cache(len));
        let o = self.at(pa.0, len as usize, 1);
        self.write_back(o / LINE..(o + len as usize).div_ceil(LINE));
        let (calls, bytes) = self.maintained.get();
        self.maintained.set((calls + 1, bytes + len));
    }
    fn drop_instructions(&self) {
        self.fetched.borrow_mut().fill(false);
        // Those that are in use still are found again after the slice.
        self.executed.borrow_mut().fill(false);
        self.dropped.set(self.dropped.get() + 1);
    }
}

impl Clock for Machine {
    fn now(&self) -> u64 {
        self.now.set(self.now.get() + 1000);
        self.now.get()
    }
    fn ticks(&self, ns: u64) -> u64 {
        ns / 16
    }
}

impl VcpuRegs for Machine {
    fn create_vcpu(&self, v: VcpuRef) -> Result<(), Errno> {
        let old = self.vcpus.borrow_mut().insert(v, StartState::default());
        assert!(old.is_none(), "{v:?} made twice");
        Ok(())
    }
    fn destroy_vcpu(&self, v: VcpuRef) {
        self.vcpus.borrow_mut().remove(&v);
    }
    fn set_state(&self, v: VcpuRef, s: &StartState) {
        *self.vcpus.borrow_mut().get_mut(&v).expect("a vcpu") = *s;
    }
    fn get_state(&self, v: VcpuRef) -> StartState {
        *self.vcpus.borrow().get(&v).expect("a vcpu")
    }
}

impl VcpuIf for Machine {
    fn lrs(&self) -> impl ListRegs {
        Lrs(self)
    }
    fn irqs_masked(&self) -> bool {
        self.masked.get()
    }
    fn threshold(&self) -> u8 {
        self.threshold.get()
    }
    fn unmask_irqs(&self) {
        self.masked.set(false);
    }
}

impl Uart for Machine {
    fn put(&self, from: Speaker, bytes: &[u8]) -> usize {
        self.spend(cost::UART_BYTE * bytes.len() as u32);
        let taken = self.output.borrow_mut().write(from, bytes);
        self.send(self.uart_takes.get());
        taken
    }
    fn read_log(&self, from: u64, buf: &mut [u8]) -> (usize, u64) {
        self.output.borrow().read_log(from, buf)
    }
    fn clear_log(&self) {
        self.output.borrow_mut().clear_log();
    }
}

impl Machine {
    /// The UART takes so many bytes.
    pub fn send(&self, bytes: usize) {
        let mut output = self.output.borrow_mut();
        let taken = std::iter::from_fn(|| output.pop()).take(bytes);
        self.printed.borrow_mut().extend(taken);
    }
}
