// SPDX-License-Identifier: MIT OR Apache-2.0
use super::*;
use crate::machine::Meter;
use crate::machine::fake::FakeMem;
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

const BASE: u64 = 0x4000_0000;
const RAM_PAGES: usize = 160;
/// Frames of guest memory per domain: gfn 0x100 + n.
const OWN: u64 = 6;
const OWN_GFN: u64 = 0x100;

/// Memory that can be made to change under a compare-and-exchange, as a hostile vcpu would.
struct Mem {
    ram: FakeMem,
    hostile: Cell<u32>,
    flushed: RefCell<Vec<(Pa, u64, CacheOp)>>,
}

impl Cache for Mem {
    fn dcache(&self, pa: Pa, len: u64, op: CacheOp) {
        self.flushed.borrow_mut().push((pa, len, op));
    }
    fn drop_instructions(&self) {}
}

macro_rules! forward {
    ($($f:ident($($a:ident: $t:ty),*) $(-> $r:ty)?;)*) => {
        $(fn $f(&self, $($a: $t),*) $(-> $r)? { self.ram.$f($($a),*) })*
    };
}

impl Meter for Mem {
    forward! {
        spend(cost: u32);
        spent() -> u32;
        restart();
    }
}

impl PhysMem for Mem {
    forward! {
        load8(pa: Pa) -> u8;
        store8(pa: Pa, v: u8);
        swap8(pa: Pa, v: u8) -> Result<u8, Contended>;
        load16(pa: Pa) -> u16;
        store16(pa: Pa, v: u16);
        load32(pa: Pa) -> u32;
        store32(pa: Pa, v: u32);
        or32(pa: Pa, bits: u32) -> Result<u32, Contended>;
        and32(pa: Pa, bits: u32) -> Result<u32, Contended>;
        load64(pa: Pa) -> u64;
        store64(pa: Pa, v: u64);
        or64(pa: Pa, bits: u64) -> Result<u64, Contended>;
        and64(pa: Pa, bits: u64) -> Result<u64, Contended>;
        read(pa: Pa, buf: &mut [u8]);
        write(pa: Pa, buf: &[u8]);
        copy(dst: Pa, src: Pa, len: usize);
        zero_page(mfn: Mfn);
    }
    fn cmpxchg32(&self, pa: Pa, old: u32, new: u32) -> Result<u32, Contended> {
        if self.hostile.get() > 0 {
            self.hostile.set(self.hostile.get() - 1);
            self.ram.store32(pa, self.ram.load32(pa) ^ 0x8000);
        }
        self.ram.cmpxchg32(pa, old, new)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Ram(Mfn),
    Grant(Mfn, Access),
}

/// Counts references and mappings, and refuses whatever the real one would get wrong silently.
struct Host {
    mem: Mem,
    owner: Vec<Option<Slot>>,
    refs: Vec<u32>,
    /// Pages of the hypervisor's.
    own: Vec<bool>,
    p2m: BTreeMap<(Slot, u64), Entry>,
    readonly: Option<(Slot, u64)>,
    fail_map: bool,
    contended: Cell<Option<Slot>>,
    alive: [bool; 3],
}

impl Host {
    fn new() -> Self {
        Self {
            mem: Mem {
                ram: FakeMem::new(BASE, RAM_PAGES),
                hostile: Cell::new(0),
                flushed: RefCell::new(Vec::new()),
            },
            owner: std::vec![None; RAM_PAGES],
            refs: std::vec![0; RAM_PAGES],
            own: std::vec![false; RAM_PAGES],
            p2m: BTreeMap::new(),
            readonly: None,
            fail_map: false,
            contended: Cell::new(None),
            alive: [false; 3],
        }
    }
    fn i(mfn: Mfn) -> usize {
        (mfn.0 - (BASE >> 12)) as usize
    }
    fn alloc(&mut self, slot: Slot) -> Option<Mfn> {
        let i = (0..RAM_PAGES).find(|&i| self.refs[i] == 0)?;
        self.owner[i] = Some(slot);
        self.refs[i] = 1;
        Some(Mfn((BASE >> 12) + i as u64))
    }
    fn own(&self, slot: Slot, n: u64) -> Mfn {
        match self.p2m[&(slot, OWN_GFN + n)] {
            Entry::Ram(m) => m,
            Entry::Grant(..) => panic!("own memory replaced by a grant"),
        }
    }
    fn populate(&mut self, slot: Slot) {
        for n in 0..OWN {
            let m = self.alloc(slot).unwrap();
            self.mem.zero_page(m);
            self.p2m.insert((slot, OWN_GFN + n), Entry::Ram(m));
        }
    }
    /// What the rest of the hypervisor does with a dead domain's memory.
    fn depopulate(&mut self, slot: Slot) {
        for n in 0..OWN {
            if let Some(Entry::Ram(m)) = self.p2m.remove(&(slot, OWN_GFN + n)) {
                self.put_page(m);
            }
        }
    }
    fn grants(&self) -> impl Iterator<Item = (Slot, u64, Mfn, Access)> + '_ {
        self.p2m.iter().filter_map(|(&(s, g), e)| match *e {
            Entry::Grant(m, a) => Some((s, g, m, a)),
            Entry::Ram(_) => None,
        })
    }
}

impl PageHost for Host {
    type Mem = Mem;
    fn mem(&self) -> &Mem {
        &self.mem
    }
    fn find(&self, number: DomId) -> Option<Slot> {
        D.into_iter()
            .find(|&s| domid(s) == number && self.alive[s.idx()])
    }
    fn resolve(&self, slot: Slot, gfn: Gfn, access: Access) -> Result<Mfn, Errno> {
        if access == Access::Write && self.readonly == Some((slot, gfn.0)) {
            return Err(Errno::EACCES);
        }
        match self.p2m.get(&(slot, gfn.0)) {
            Some(&Entry::Ram(m)) => Ok(m),
            _ => Err(Errno::EINVAL),
        }
    }
    fn get_page(&mut self, mfn: Mfn) -> Result<(), Errno> {
        assert!(self.refs[Self::i(mfn)] > 0, "reference on a free page");
        self.refs[Self::i(mfn)] += 1;
        Ok(())
    }
    fn put_page(&mut self, mfn: Mfn) {
        let r = &mut self.refs[Self::i(mfn)];
        assert!(*r > 0, "double put");
        *r -= 1;
        if *r == 0 {
            assert!(
                !self.grants().any(|(_, _, m, _)| m == mfn),
                "freed while mapped"
            );
            self.owner[Self::i(mfn)] = None;
            self.own[Self::i(mfn)] = false;
        }
    }
    fn map_granted(&mut self, slot: Slot, gfn: Gfn, mfn: Mfn, access: Access) -> Result<(), Errno> {
        if self.fail_map {
            return Err(Errno::ENOMEM);
        }
        if gfn.0 >= 1 << 28 {
            return Err(Errno::EINVAL);
        }
        if self.p2m.contains_key(&(slot, gfn.0)) {
            return Err(Errno::EEXIST);
        }
        self.p2m.insert((slot, gfn.0), Entry::Grant(mfn, access));
        Ok(())
    }
    fn granted(&self, slot: Slot, gfn: Gfn) -> Option<Mfn> {
        match self.p2m.get(&(slot, gfn.0)) {
            Some(&Entry::Grant(m, _)) => Some(m),
            _ => None,
        }
    }
    fn unmap_granted(&mut self, slot: Slot, gfn: Gfn) -> Result<Mfn, Errno> {
        self.forget_granted(slot, gfn).ok_or(Errno::EINVAL)
    }
    fn forget_granted(&mut self, slot: Slot, gfn: Gfn) -> Option<Mfn> {
        let page = self.granted(slot, gfn)?;
        self.p2m.remove(&(slot, gfn.0));
        Some(page)
    }
    fn alloc_own(&mut self, slot: Slot, _: bool) -> Result<Mfn, Errno> {
        let m = self.alloc(slot).ok_or(Errno::ENOMEM)?;
        self.mem.zero_page(m);
        self.own[Self::i(m)] = true;
        Ok(m)
    }
    fn contended(&self, slot: Slot) {
        self.contended.set(Some(slot));
    }
    fn owns(&self, slot: Slot, mfn: Mfn) -> bool {
        let i = mfn.0.checked_sub(BASE >> 12).map(|i| i as usize);
        let owner = i.and_then(|i| self.owner.get(i).copied().flatten());
        owner == Some(slot) && !self.own[Self::i(mfn)]
    }
}

const RO: u32 = gntmap::HOST_MAP | gntmap::READONLY;
const RW: u32 = gntmap::HOST_MAP;
const D: [Slot; 3] = [Slot(0), Slot(1), Slot(2)];

fn domid(slot: Slot) -> DomId {
    DomId(10 + u16::from(slot.0))
}

struct World {
    g: Box<Grants>,
    h: Host,
}

impl World {
    fn new() -> Self {
        let mut w = Self {
            g: Box::new(Grants::new()),
            h: Host::new(),
        };
        for s in D {
            w.create(s);
        }
        w
    }
    fn create(&mut self, s: Slot) {
        self.h.populate(s);
        self.g
            .create_domain(&mut self.h, s, domid(s), 4, 2)
            .unwrap();
        self.h.alive[s.idx()] = true;
    }
    fn entry_pa(&self, s: Slot, gref: u32) -> Pa {
        let t = self.g.table(s).unwrap();
        let mfn = t.shared[(gref / 512) as usize].mfn;
        Pa(mfn.addr() + u64::from(gref % 512) * 8)
    }
    /// The granter writes an entry.
    fn grant(&self, s: Slot, gref: u32, flags: u16, to: DomId, gfn: u64) {
        let pa = self.entry_pa(s, gref);
        self.h.mem.store32(pa.add(4), gfn as u32);
        self.h
            .mem
            .store32(pa, u32::from(flags) | u32::from(to.0) << 16);
    }
    fn flags(&self, s: Slot, gref: u32) -> u16 {
        self.h.mem.load16(self.entry_pa(s, gref))
    }
    fn map(
        &mut self,
        by: Slot,
        from: Slot,
        gref: u32,
        gfn: u64,
        flags: u32,
    ) -> Result<Mapped, GrantStatus> {
        let op = MapOp {
            host_addr: gfn << 12,
            flags,
            gref: GrantRef(gref),
            dom: domid(from),
        };
        self.g.map(&mut self.h, by, &op)
    }
    fn unmap(&mut self, by: Slot, handle: u32, gfn: u64) -> GrantStatus {
        self.g.unmap(
            &mut self.h,
            by,
            &UnmapOp {
                host_addr: gfn << 12,
                handle,
            },
        )
    }
    fn copy(&mut self, by: Slot, op: CopyOp) -> GrantStatus {
        self.g.copy(&self.h, by, &op)
    }
    fn refs(&self, mfn: Mfn) -> u32 {
        self.h.refs[Host::i(mfn)]
    }
    fn destroy_all(&mut self, s: Slot) -> Destroyed {
        loop {
            match self.g.destroy(&mut self.h, s, 7) {
                Destroyed::More => {}
                d => return d,
            }
        }
    }
}

fn gref(r: u32, d: Slot, offset: u16) -> CopyPtr {
    CopyPtr {
        frame: r.into(),
        domid: domid(d),
        offset,
    }
}
fn own(n: u64, offset: u16) -> CopyPtr {
    CopyPtr {
        frame: OWN_GFN + n,
        domid: DomId::SELF,
        offset,
    }
}

#[test]
fn map_and_unmap_count_everything() {
    let mut w = World::new();
    w.grant(D[1], 8, 1, domid(D[0]), OWN_GFN + 2);
    let page = w.h.own(D[1], 2);
    let m = w.map(D[0], D[1], 8, 0x900, RW).unwrap();
    assert_eq!(m.dev_bus_addr, page.addr());
    assert_eq!(w.flags(D[1], 8), 1 | 0x18);
    assert_eq!(w.refs(page), 2);
    assert_eq!(w.h.p2m[&(D[0], 0x900)], Entry::Grant(page, Access::Write));
    let again = w.map(D[0], D[1], 8, 0x901, RO).unwrap();
    assert_ne!(again.handle, m.handle);
    assert_eq!(w.refs(page), 3);
    assert_eq!(w.g.usage(D[1]).pinned_refs, 1);
    assert_eq!(w.g.usage(D[0]).mappings, 2);
    assert_eq!(w.unmap(D[0], m.handle, 0x900), GrantStatus::Okay);
    assert_eq!(w.flags(D[1], 8), 1 | 8, "still read");
    assert_eq!(w.unmap(D[0], again.handle, 0x901), GrantStatus::Okay);
    assert_eq!(w.flags(D[1], 8), 1);
    assert_eq!(w.refs(page), 1);
    assert_eq!(
        (w.g.usage(D[1]).pinned_refs, w.g.usage(D[0]).mappings),
        (0, 0)
    );
}

#[test]
fn refusals_have_the_status_of_the_abi() {
    let mut w = World::new();
    let me = domid(D[0]);
    w.grant(D[1], 8, 1, me, OWN_GFN);
    w.grant(D[1], 9, 1 | 4, me, OWN_GFN);
    w.grant(D[1], 10, 1, me, 0x5555);
    w.grant(D[1], 11, 1, domid(D[2]), OWN_GFN);
    w.grant(D[1], 12, 3, me, OWN_GFN);
    w.grant(D[1], 13, 1 | 0x100, me, OWN_GFN);
    use GrantStatus::*;
    for (gref, flags, gfn, want) in [
        (8, 0, 0x900, BadGntref),
        (8, gntmap::READONLY, 0x900, BadGntref),
        (8, RW | gntmap::DEVICE_MAP, 0x900, GeneralError),
        (8, gntmap::DEVICE_MAP, 0x900, GeneralError),
        (8, RW | gntmap::CONTAINS_PTE, 0x900, GeneralError),
        (8, RW | 1 << 5, 0x900, GeneralError),
        (8, RW | 1 << 16, 0x900, GeneralError),
        (8, RW, OWN_GFN, GeneralError),
        (8, RW, 1 << 51, GeneralError),
        (512, RW, 0x900, BadGntref),
        (u32::MAX, RW, 0x900, BadGntref),
        (9, RW, 0x900, GeneralError),
        (10, RW, 0x900, BadPage),
        (11, RW, 0x900, GeneralError),
        (12, RW, 0x900, GeneralError),
        (13, RW, 0x900, GeneralError),
        (0, RO, 0x900, GeneralError),
    ] {
        assert_eq!(
            w.map(D[0], D[1], gref, gfn, flags),
            Err(want),
            "{gref} {flags:#x} {gfn:#x}"
        );
        if gref < 512 {
            assert_eq!(
                w.flags(D[1], gref) & 0x18,
                0,
                "status bits left behind by {gref}"
            );
        }
    }
    let op = MapOp {
        dom: DomId(77),
        flags: RW,
        ..MapOp::default()
    };
    assert_eq!(w.g.map(&mut w.h, D[0], &op), Err(BadDomain));
    for s in D {
        assert_eq!(
            w.g.usage(s),
            Usage {
                shared_frames: 1,
                ..Usage::default()
            }
        );
        (0..OWN).for_each(|n| assert_eq!(w.refs(w.h.own(s, n)), 1));
    }
    assert_eq!(w.h.grants().count(), 0);
}

#[test]
fn only_the_domain_that_pinned_an_entry_uses_it_further() {
    let mut w = World::new();
    w.grant(D[1], 8, 1, domid(D[0]), OWN_GFN);
    w.map(D[0], D[1], 8, 0x900, RO).unwrap();
    // The granter turns the entry over to another domain and page while it is pinned.
    w.grant(D[1], 8, 1, domid(D[2]), OWN_GFN + 1);
    assert_eq!(
        w.map(D[2], D[1], 8, 0x900, RO),
        Err(GrantStatus::GeneralError)
    );
    let op = CopyOp {
        source: gref(8, D[1], 0),
        dest: own(0, 0),
        len: 4,
        flags: 1,
    };
    assert_eq!(w.copy(D[2], op), GrantStatus::GeneralError);
    // The first one goes on with the page that it has.
    let m = w.map(D[0], D[1], 8, 0x901, RW).unwrap();
    assert_eq!(m.dev_bus_addr, w.h.own(D[1], 0).addr());
}

#[test]
fn a_read_pin_does_not_open_a_page_for_writing() {
    let mut w = World::new();
    w.grant(D[1], 8, 1, domid(D[0]), OWN_GFN);
    w.h.readonly = Some((D[1], OWN_GFN));
    w.map(D[0], D[1], 8, 0x900, RO).unwrap();
    assert_eq!(w.map(D[0], D[1], 8, 0x901, RW), Err(GrantStatus::BadPage));
    assert_eq!(w.flags(D[1], 8), 1 | 8);
    w.h.readonly = None;
    w.grant(D[1], 8, 1 | 4 | 8, domid(D[0]), OWN_GFN);
    assert_eq!(
        w.map(D[0], D[1], 8, 0x901, RW),
        Err(GrantStatus::GeneralError)
    );
    // A write pin is refused, too, when the frame is another page by now.
    w.grant(D[1], 8, 1 | 8, domid(D[0]), OWN_GFN);
    let (a, b) = (w.h.own(D[1], 0), w.h.own(D[1], 1));
    w.h.p2m.insert((D[1], OWN_GFN), Entry::Ram(b));
    w.h.p2m.insert((D[1], OWN_GFN + 1), Entry::Ram(a));
    assert_eq!(
        w.map(D[0], D[1], 8, 0x901, RW),
        Err(GrantStatus::GeneralError)
    );
    assert_eq!(w.flags(D[1], 8), 1 | 8);
}

#[test]
fn forged_stale_and_misused_handles() {
    let mut w = World::new();
    w.grant(D[1], 8, 1, domid(D[0]), OWN_GFN);
    w.grant(D[1], 9, 1, domid(D[0]), OWN_GFN);
    let a = w.map(D[0], D[1], 8, 0x900, RW).unwrap().handle;
    let b = w.map(D[0], D[1], 9, 0x901, RW).unwrap().handle;
    for forged in [a.max(b) + 1, 255, 256, u32::MAX] {
        assert_eq!(w.unmap(D[0], forged, 0x900), GrantStatus::BadHandle);
    }
    assert_eq!(w.unmap(D[2], a, 0x900), GrantStatus::BadHandle);
    assert_eq!(
        w.unmap(D[0], a, 0x901),
        GrantStatus::GeneralError,
        "another mapping's address"
    );
    assert_eq!(w.unmap(D[0], a, 0), GrantStatus::Okay);
    assert_eq!(
        w.g.usage(D[0]).mappings,
        2,
        "without an address nothing is done"
    );
    assert_eq!(w.unmap(D[0], a, 0x900), GrantStatus::Okay);
    assert_eq!(w.unmap(D[0], a, 0x900), GrantStatus::BadHandle);
    assert_eq!(w.unmap(D[0], b, 0x901), GrantStatus::Okay);
}

#[test]
fn handles_run_out_at_the_limit_and_come_back() {
    let mut w = World::new();
    for r in 0..4 {
        w.grant(D[1], 8 + r, 1, domid(D[0]), OWN_GFN);
    }
    // 2 frames of 256 entries; 128 read-only mappings at most of one reference.
    let mut handles = std::vec![];
    for i in 0..512u32 {
        handles.push(
            w.map(D[0], D[1], 8 + i / 128, 0x900 + u64::from(i), RO)
                .unwrap()
                .handle,
        );
    }
    assert_eq!(
        w.map(D[0], D[1], 8, 0x900 + 512, RO),
        Err(GrantStatus::NoSpace)
    );
    let mut sorted = handles.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted, (0..512).collect::<Vec<_>>());
    assert_eq!(w.unmap(D[0], handles[77], 0x900 + 77), GrantStatus::Okay);
    assert_eq!(
        w.map(D[0], D[1], 9, 0x900 + 77, RO),
        Err(GrantStatus::GeneralError),
        "128 pins"
    );
    assert_eq!(
        w.map(D[0], D[1], 8, 0x900 + 77, RO).unwrap().handle,
        handles[77]
    );
}

#[test]
fn xsa_230_two_read_only_mappings_keep_the_reading_bit() {
    let mut w = World::new();
    w.grant(D[1], 8, 1, domid(D[0]), OWN_GFN);
    let a = w.map(D[0], D[1], 8, 0x900, RO).unwrap().handle;
    w.map(D[0], D[1], 8, 0x901, RO).unwrap();
    assert_eq!(w.flags(D[1], 8), 1 | 8);
    w.unmap(D[0], a, 0x900);
    let op = CopyOp {
        source: gref(8, D[1], 0),
        dest: own(0, 0),
        len: 4,
        flags: 1,
    };
    assert_eq!(w.copy(D[0], op), GrantStatus::Okay);
    assert_eq!(w.flags(D[1], 8), 1 | 8);
}

#[test]
fn xsa_224_a_failed_map_leaves_no_reference() {
    let mut w = World::new();
    w.grant(D[1], 8, 1, domid(D[0]), OWN_GFN);
    w.h.fail_map = true;
    for flags in [RO, RW] {
        assert_eq!(
            w.map(D[0], D[1], 8, 0x900, flags),
            Err(GrantStatus::GeneralError)
        );
        assert_eq!((w.flags(D[1], 8), w.refs(w.h.own(D[1], 0))), (1, 1));
    }
    w.h.fail_map = false;
    w.map(D[0], D[1], 8, 0x900, RO).unwrap();
    w.h.fail_map = true;
    assert!(w.map(D[0], D[1], 8, 0x901, RW).is_err());
    assert_eq!((w.flags(D[1], 8), w.refs(w.h.own(D[1], 0))), (1 | 8, 2));
}

#[test]
fn xsa_226_transitive_grants_are_refused() {
    let mut w = World::new();
    w.grant(D[1], 8, 3, domid(D[0]), OWN_GFN);
    let op = CopyOp {
        source: gref(8, D[1], 0),
        dest: own(0, 0),
        len: 4,
        flags: 1,
    };
    assert_eq!(w.copy(D[0], op), GrantStatus::GeneralError);
    assert_eq!(w.flags(D[1], 8), 3);
}

#[test]
fn xsa_295_a_guest_that_hammers_the_entry_cannot_hold_the_hypervisor() {
    let mut w = World::new();
    w.grant(D[1], 8, 1, domid(D[0]), OWN_GFN);
    w.h.mem.hostile.set(4);
    assert!(
        w.map(D[0], D[1], 8, 0x900, RW).is_ok(),
        "a few retries are allowed"
    );
    w.grant(D[1], 9, 1, domid(D[0]), OWN_GFN);
    w.h.mem.hostile.set(u32::MAX);
    assert_eq!(
        w.map(D[0], D[1], 9, 0x901, RW),
        Err(GrantStatus::GeneralError)
    );
    let tries = u32::MAX - w.h.mem.hostile.get();
    assert_eq!(tries, RETRIES);
}

#[test]
fn xsa_486_the_frame_is_not_read_again_for_a_pinned_entry() {
    let mut w = World::new();
    w.grant(D[1], 8, 1, domid(D[0]), OWN_GFN);
    let first = w.map(D[0], D[1], 8, 0x900, RW).unwrap().dev_bus_addr;
    w.grant(D[1], 8, 1 | 0x18, domid(D[0]), OWN_GFN + 3);
    assert_eq!(w.map(D[0], D[1], 8, 0x901, RO).unwrap().dev_bus_addr, first);
    w.h.mem.write(Pa(first), b"pinned");
    w.h.mem.write(Pa(w.h.own(D[1], 3).addr()), b"other!");
    let op = CopyOp {
        source: gref(8, D[1], 0),
        dest: own(0, 0),
        len: 6,
        flags: 1,
    };
    assert_eq!(w.copy(D[0], op), GrantStatus::Okay);
    let mut got = [0; 6];
    w.h.mem.read(Pa(w.h.own(D[0], 0).addr()), &mut got);
    assert_eq!(&got, b"pinned");
}

#[test]
fn xsa_448_copies_of_no_bytes_and_at_the_edges() {
    let mut w = World::new();
    w.grant(D[1], 8, 1 | 4, domid(D[0]), OWN_GFN);
    let op = |s, d, len| CopyOp {
        source: gref(8, D[1], s),
        dest: own(0, d),
        len,
        flags: 1,
    };
    use GrantStatus::*;
    for (s, d, len, want) in [
        (0, 0, 0, Okay),
        (4096, 4096, 0, Okay),
        (4097, 0, 0, BadCopyArg),
        (0, 0, 4096, Okay),
        (4095, 4095, 1, Okay),
        (4096, 0, 1, BadCopyArg),
        (0, 4096, 1, BadCopyArg),
        (1, 0, 4096, BadCopyArg),
        (0, 0, 4097, BadCopyArg),
        (u16::MAX, u16::MAX, u16::MAX, BadCopyArg),
    ] {
        assert_eq!(w.copy(D[0], op(s, d, len)), want, "{s} {d} {len}");
        assert_eq!(w.flags(D[1], 8), 5);
    }
}

#[test]
fn copies_between_all_kinds_of_ends() {
    let mut w = World::new();
    w.grant(D[1], 8, 1 | 4, domid(D[0]), OWN_GFN);
    w.grant(D[2], 9, 1, domid(D[0]), OWN_GFN + 1);
    let (src, dst) = (w.h.own(D[1], 0), w.h.own(D[2], 1));
    w.h.mem
        .write(Pa(src.addr() + 100), b"from one guest to the other");
    let op = CopyOp {
        source: gref(8, D[1], 100),
        dest: gref(9, D[2], 7),
        len: 27,
        flags: 3,
    };
    assert_eq!(w.copy(D[0], op), GrantStatus::Okay);
    let mut got = [0; 27];
    w.h.mem.read(Pa(dst.addr() + 7), &mut got);
    assert_eq!(&got, b"from one guest to the other");
    assert_eq!((w.flags(D[1], 8), w.flags(D[2], 9)), (5, 1));

    use GrantStatus::*;
    let bad = [
        (
            CopyOp {
                dest: gref(8, D[1], 0),
                source: own(0, 0),
                len: 4,
                flags: 2,
            },
            GeneralError,
        ),
        (
            CopyOp {
                source: gref(8, D[1], 0),
                dest: own(9, 0),
                len: 4,
                flags: 1,
            },
            BadPage,
        ),
        (
            CopyOp {
                source: own(9, 0),
                dest: own(0, 0),
                len: 4,
                flags: 0,
            },
            BadPage,
        ),
        (
            CopyOp {
                source: gref(9, D[0], 0),
                dest: own(0, 0),
                len: 4,
                flags: 0,
            },
            PermissionDenied,
        ),
        (
            CopyOp {
                source: own(0, 0),
                dest: gref(1, D[1], 0),
                len: 4,
                flags: 0,
            },
            PermissionDenied,
        ),
        (
            CopyOp {
                source: gref(512, D[1], 0),
                dest: own(0, 0),
                len: 4,
                flags: 1,
            },
            BadGntref,
        ),
        (
            CopyOp {
                source: gref(8, Slot(66), 0),
                dest: own(0, 0),
                len: 4,
                flags: 1,
            },
            BadDomain,
        ),
    ];
    for (op, want) in bad {
        assert_eq!(w.copy(D[0], op), want, "{op:?}");
        assert_eq!((w.flags(D[1], 8), w.flags(D[2], 9)), (5, 1));
    }

    // Within one page, overlapping both ways.
    let page = Pa(w.h.own(D[0], 0).addr());
    let bytes: Vec<u8> = (0..200).collect();
    for (s, d) in [(0u16, 3u16), (3, 0), (5, 5), (0, 150)] {
        w.h.mem.write(page, &[0; 512]);
        w.h.mem.write(page.add(s.into()), &bytes);
        let op = CopyOp {
            source: own(0, s),
            dest: own(0, d),
            len: 200,
            flags: 0,
        };
        assert_eq!(w.copy(D[0], op), GrantStatus::Okay);
        let mut got = [0; 200];
        w.h.mem.read(page.add(d.into()), &mut got);
        assert_eq!(&got[..], &bytes[..], "{s} to {d}");
    }
}

#[test]
fn tables_grow_from_any_index_up_to_the_limit() {
    let mut w = World::new();
    assert_eq!(w.g.query_size(D[0]), Ok((1, 4)));
    assert_eq!(w.g.shared_frame(D[0], 2), Err(Errno::EINVAL), "not yet");
    w.g.grow(&mut w.h, D[0], 3).unwrap();
    let top = w.g.shared_frame(D[0], 2).unwrap();
    assert_eq!(w.g.query_size(D[0]), Ok((3, 4)));
    assert_eq!(w.g.shared_frame(D[0], 2), Ok(top));
    for beyond in [3, 4, u64::MAX] {
        assert_eq!(w.g.shared_frame(D[0], beyond), Err(Errno::EINVAL));
    }
    assert_eq!(w.g.query_size(D[0]), Ok((3, 4)), "a look makes nothing");
    assert_eq!(
        w.g.setup_table(&mut w.h, D[0], 5),
        GrantStatus::GeneralError
    );
    assert_eq!(w.g.setup_table(&mut w.h, D[0], 4), GrantStatus::Okay);
    assert_eq!(w.g.setup_table(&mut w.h, D[0], 0), GrantStatus::Okay);
    assert_eq!(w.g.query_size(D[0]), Ok((4, 4)));
    // XSA-101: nothing stale in the list.
    assert_eq!(w.g.shared_gfn(D[0], 2), INVALID_GFN);
    w.g.set_shared_gfn(D[0], top, Some(Gfn(0x38002)));
    assert_eq!(w.g.shared_gfn(D[0], 2), 0x38002);
    w.g.set_shared_gfn(D[0], top, None);
    assert_eq!(w.g.shared_gfn(D[0], 2), INVALID_GFN);
    assert_eq!(w.g.shared_gfn(D[0], 4), INVALID_GFN);
    for (frames, track) in [(0, 1), (65, 1), (1, 1025), (u32::MAX, u32::MAX)] {
        assert_eq!(Grants::pages(frames, track), Err(Errno::EINVAL));
    }
    assert_eq!(Grants::pages(64, 1024), Ok(64 * 3 + 1024));
    assert_eq!(
        w.g.create_domain(&mut w.h, D[0], DomId(9), 1, 1),
        Err(Errno::EEXIST),
        "a slot is not made twice"
    );
}

#[test]
fn versions() {
    assert_eq!(Grants::set_version(1), Ok(()));
    assert_eq!(
        Grants::set_version(2),
        Err(Errno::ENOSYS),
        "XSA-268: version 1 only"
    );
    assert_eq!(Grants::set_version(0), Err(Errno::EINVAL));
    assert_eq!(Grants::set_version(3), Err(Errno::EINVAL));
    assert_eq!(Grants::get_status_frames(0), GrantStatus::Okay);
    assert_eq!(Grants::get_status_frames(1), GrantStatus::GeneralError);
}

#[test]
fn swapped_entries() {
    let mut w = World::new();
    w.grant(D[1], 8, 1, domid(D[0]), OWN_GFN);
    w.grant(D[1], 9, 5, domid(D[2]), OWN_GFN + 1);
    let (a, b) = (
        w.h.mem.load64(w.entry_pa(D[1], 8)),
        w.h.mem.load64(w.entry_pa(D[1], 9)),
    );
    let swap = |w: &mut World, x, y| w.g.swap_grant_ref(&mut w.h, D[1], GrantRef(x), GrantRef(y));
    assert_eq!(swap(&mut w, 8, 9), GrantStatus::Okay);
    assert_eq!(w.h.mem.load64(w.entry_pa(D[1], 8)), b);
    assert_eq!(w.h.mem.load64(w.entry_pa(D[1], 9)), a);
    assert_eq!(swap(&mut w, 8, 512), GrantStatus::BadGntref);
    assert_eq!(swap(&mut w, u32::MAX, 8), GrantStatus::BadGntref);
    w.map(D[0], D[1], 9, 0x900, RO).unwrap();
    assert_eq!(swap(&mut w, 8, 9), GrantStatus::Eagain);
    assert_eq!(swap(&mut w, 9, 9), GrantStatus::Okay);
}

#[test]
fn xsa_217_222_cache_maintenance_only_within_pages_that_one_may_touch() {
    let mut w = World::new();
    w.grant(D[1], 8, 1 | 4, domid(D[0]), OWN_GFN);
    let theirs = w.h.own(D[1], 0).addr();
    let mine = w.h.own(D[0], 0).addr();
    let flush = |w: &mut World, addr, offset, length, op| {
        let op = CacheFlushOp {
            dev_bus_addr: addr,
            offset,
            length,
            op,
        };
        w.g.cache_flush(&mut w.h, D[0], &op, &mut 0)
    };
    assert_eq!(flush(&mut w, mine, 0, 4096, 1), Ok(true));
    assert_eq!(flush(&mut w, mine + 8, 4095, 1, 2), Ok(true));
    assert_eq!(flush(&mut w, mine, 64, 64, 3), Ok(true));
    assert_eq!(
        *w.h.mem.flushed.borrow(),
        [
            (Pa(mine), 4096, CacheOp::Clean),
            (Pa(mine + 4095), 1, CacheOp::Invalidate),
            (Pa(mine + 64), 64, CacheOp::Invalidate)
        ]
    );
    w.h.mem.flushed.borrow_mut().clear();
    let table = w.g.table(D[1]).unwrap().shared[0].mfn.addr();
    // Linux asks with op 0 whether the call exists.
    assert_eq!(flush(&mut w, 0, 0, 0, 0), Ok(true));
    assert_eq!(flush(&mut w, mine, 0, 4096, 0), Ok(true));
    for (addr, offset, length, op, want) in [
        (mine, 4096, 0, 1, Errno::EINVAL),
        (mine, 0, 4097, 1, Errno::EINVAL),
        (mine, 4095, 2, 1, Errno::EINVAL),
        (mine, u16::MAX, u16::MAX, 1, Errno::EINVAL),
        (mine, 0, 1, 4, Errno::EINVAL),
        (mine, 0, 1, 1 << 31, Errno::EINVAL),
        (0, 0, 1, 1, Errno::EINVAL),
        (
            BASE + ((RAM_PAGES as u64 - 1) << 12),
            0,
            1,
            1,
            Errno::EINVAL,
        ),
        (table, 0, 1, 1, Errno::EINVAL),
        (theirs, 0, 1, 1, Errno::EINVAL),
    ] {
        assert_eq!(
            flush(&mut w, addr, offset, length, op),
            Err(want),
            "{addr:#x} {offset} {length}"
        );
    }
    assert!(w.h.mem.flushed.borrow().is_empty());
    let m = w.map(D[0], D[1], 8, 0x900, RO).unwrap();
    assert_eq!(flush(&mut w, m.dev_bus_addr, 0, 64, 2), Ok(true));
    w.unmap(D[0], m.handle, 0x900);
    assert_eq!(flush(&mut w, m.dev_bus_addr, 0, 64, 2), Err(Errno::EINVAL));
}

#[test]
fn xsa_394_a_dead_mapper_lets_go_of_everything_in_bounded_steps() {
    let mut w = World::new();
    for r in 0..100 {
        w.grant(D[1], r, 1, domid(D[0]), OWN_GFN + u64::from(r) % OWN);
        w.map(
            D[0],
            D[1],
            r,
            0x900 + u64::from(r),
            if r % 2 == 0 { RO } else { RW },
        )
        .unwrap();
    }
    let mut steps = 0;
    while w.g.destroy(&mut w.h, D[0], 10) == Destroyed::More {
        steps += 1;
    }
    assert!((9..=30).contains(&steps), "{steps}");
    assert_eq!(w.h.grants().count(), 0);
    assert_eq!(w.g.pins_outstanding(D[1]), 0);
    assert!((0..100).all(|r| w.flags(D[1], r) & 0x18 == 0));
    (0..OWN).for_each(|n| assert_eq!(w.refs(w.h.own(D[1], n)), 1));
    assert_eq!(w.g.usage(D[0]), Usage::default());
}

#[test]
fn xsa_147_a_dead_granters_pages_live_until_they_are_unmapped() {
    let mut w = World::new();
    w.grant(D[1], 8, 1, domid(D[0]), OWN_GFN);
    w.grant(D[1], 9, 1, domid(D[0]), OWN_GFN);
    let page = w.h.own(D[1], 0);
    let m = w.map(D[0], D[1], 8, 0x900, RW).unwrap();
    w.h.alive[1] = false;
    w.h.depopulate(D[1]);
    // It is gone at once, but for the page.
    assert_eq!(w.destroy_all(D[1]), Destroyed::Done);
    assert_eq!((w.refs(page), w.g.orphans(D[0])), (1, 1));
    assert_eq!(w.map(D[0], D[1], 9, 0x901, RO), Err(GrantStatus::BadDomain));
    let op = CopyOp {
        source: gref(8, D[1], 0),
        dest: own(0, 0),
        len: 4,
        flags: 1,
    };
    assert_eq!(w.copy(D[0], op), GrantStatus::BadDomain);
    assert_eq!(flush_page(&mut w, D[0], page), Ok(true));
    // A successor in its slot has nothing to do with that mapping: what it grants stays as it is.
    w.create(D[1]);
    w.grant(D[1], 8, 1, domid(D[0]), OWN_GFN);
    let other = w.map(D[0], D[1], 8, 0x902, RW).unwrap();
    assert_ne!(other.dev_bus_addr, page.addr());
    assert_eq!(w.unmap(D[0], m.handle, 0x900), GrantStatus::Okay);
    assert_eq!((w.refs(page), w.g.orphans(D[0])), (0, 0));
    assert_eq!(w.flags(D[1], 8), 1 | 0x18);
    assert_eq!(w.g.pins_outstanding(D[1]), 1);
    assert_eq!(w.unmap(D[0], other.handle, 0x902), GrantStatus::Okay);
    assert_eq!(w.flags(D[1], 8), 1);
    assert_eq!(w.g.pins_outstanding(D[1]), 0);
}

/// Whether a domain may maintain the cache over a page.
fn flush_page(w: &mut World, by: Slot, page: Mfn) -> Result<bool, Errno> {
    let op = CacheFlushOp {
        dev_bus_addr: page.addr(),
        offset: 0,
        length: 1,
        op: 1,
    };
    w.g.cache_flush(&mut w.h, by, &op, &mut 0)
}

#[derive(Clone, Debug)]
enum Op {
    Write {
        s: usize,
        r: u32,
        flags: u16,
        to: usize,
        gfn: u64,
    },
    Map {
        by: usize,
        from: usize,
        r: u32,
        at: u64,
        ro: bool,
    },
    Unmap {
        pick: usize,
        wrong_addr: bool,
        forge: Option<u32>,
    },
    Copy {
        by: usize,
        src: Option<(usize, u32)>,
        dst: Option<(usize, u32)>,
        off: u16,
        len: u16,
    },
    Swap {
        s: usize,
        a: u32,
        b: u32,
    },
    Exchange {
        s: usize,
        a: u64,
        b: u64,
    },
    Hammer(u32),
    FailMap(bool),
    Destroy {
        s: usize,
        budget: u32,
    },
    Create {
        s: usize,
    },
}

/// References in use by the random tests: few, so that they meet.
const REFS: u32 = 5;

fn op() -> impl Strategy<Value = Op> {
    let d = 0..3usize;
    let r = 0..REFS;
    let end = prop::option::of((0..3usize, 0..REFS));
    prop_oneof![
        6 => (d.clone(), r.clone(), prop::sample::select(std::vec![0u16, 1, 1, 1, 1, 5, 5, 2, 3, 0x19, 0x101]), d.clone(), 0..OWN + 1)
            .prop_map(|(s, r, flags, to, n)| Op::Write { s, r, flags, to, gfn: OWN_GFN + n }),
        8 => (d.clone(), d.clone(), r.clone(), 0..12u64, any::<bool>())
            .prop_map(|(by, from, r, at, ro)| Op::Map { by, from, r, at: 0x900 + at, ro }),
        5 => (any::<usize>(), prop::bool::weighted(0.1), prop::option::weighted(0.1, 0..600u32))
            .prop_map(|(pick, wrong_addr, forge)| Op::Unmap { pick, wrong_addr, forge }),
        5 => (d.clone(), end.clone(), end, 0..4100u16, 0..4100u16)
            .prop_map(|(by, src, dst, off, len)| Op::Copy { by, src, dst, off, len }),
        1 => (d.clone(), r.clone(), r).prop_map(|(s, a, b)| Op::Swap { s, a, b }),
        1 => (d.clone(), 0..OWN, 0..OWN).prop_map(|(s, a, b)| Op::Exchange { s, a, b }),
        1 => (1..8u32).prop_map(Op::Hammer),
        1 => any::<bool>().prop_map(Op::FailMap),
        1 => (d.clone(), 1..300u32).prop_map(|(s, budget)| Op::Destroy { s, budget }),
        2 => d.prop_map(|s| Op::Create { s }),
    ]
}

/// What a mapping should be, kept beside the code under test.
#[derive(Clone, Copy, Debug)]
struct Held_ {
    by: Slot,
    handle: u32,
    gfn: u64,
    mfn: Mfn,
    from: Slot,
    r: u32,
    ro: bool,
    /// The granter is gone.
    orphan: bool,
}

struct Model {
    held: Vec<Held_>,
    /// The guest itself wrote status bits, or wrote the entry while it was pinned.
    scribbled: BTreeMap<(Slot, u32), bool>,
}

fn check(w: &World, m: &Model) {
    let mut mapped: Vec<_> =
        w.h.grants()
            .map(|(s, g, mfn, a)| (s.0, g, mfn.0, a == Access::Read))
            .collect();
    let mut want: Vec<_> = m
        .held
        .iter()
        .map(|x| (x.by.0, x.gfn, x.mfn.0, x.ro))
        .collect();
    mapped.sort_unstable();
    want.sort_unstable();
    assert_eq!(mapped, want, "the p2m maps exactly what is held");
    for i in 0..RAM_PAGES {
        let mfn = Mfn((BASE >> 12) + i as u64);
        let base = w.h.p2m.values().filter(|e| **e == Entry::Ram(mfn)).count();
        let held = m.held.iter().filter(|x| x.mfn == mfn).count();
        let shared = usize::from(w.h.own[i]);
        assert_eq!(
            w.h.refs[i] as usize,
            base + held + shared,
            "references of page {i}"
        );
    }
    for s in D {
        let pins = |r: u32, ro: bool| {
            m.held
                .iter()
                .filter(|x| x.from == s && !x.orphan && x.r == r && x.ro == ro)
                .count()
        };
        let Some(t) = w.g.table(s) else {
            assert!(
                !m.held.iter().any(|x| x.from == s && !x.orphan || x.by == s),
                "held of or by nobody"
            );
            continue;
        };
        assert_eq!(
            t.mappings as usize,
            m.held.iter().filter(|x| x.by == s).count()
        );
        assert_eq!(
            t.orphans as usize,
            m.held.iter().filter(|x| x.by == s && x.orphan).count()
        );
        let mut pinned = 0;
        for r in 0..REFS {
            let a = Active::load(&w.h.mem, t.entry(r).unwrap().1);
            let (ro, rw) = (pins(r, true), pins(r, false));
            assert_eq!(
                (a.ro as usize, a.rw as usize),
                (ro, rw),
                "pins of {s:?} {r}"
            );
            pinned += u32::from(ro + rw > 0);
            if !m.scribbled.get(&(s, r)).copied().unwrap_or(false) {
                let bits = if rw > 0 {
                    0x18
                } else if ro > 0 {
                    8
                } else {
                    0
                };
                assert_eq!(w.flags(s, r) & 0x18, bits, "status bits of {s:?} {r}");
            }
        }
        assert_eq!(t.pinned, pinned);
    }
}

fn apply(w: &mut World, m: &mut Model, op: Op) {
    let pinned =
        |m: &Model, s: Slot, r: u32| m.held.iter().any(|x| x.from == s && !x.orphan && x.r == r);
    match op {
        Op::Write {
            s,
            r,
            flags,
            to,
            gfn,
        } => {
            let s = D[s];
            if w.h.alive[s.idx()] {
                w.grant(s, r, flags, domid(D[to]), gfn);
                m.scribbled
                    .insert((s, r), flags & 0x18 != 0 || pinned(m, s, r));
            }
        }
        Op::Map {
            by,
            from,
            r,
            at,
            ro,
        } => {
            if !w.h.alive[by] {
                return;
            }
            let (by, from) = (D[by], D[from]);
            let before = w.g.table(from).map(|t| (w.flags(from, r), t.shared[0].mfn));
            if let Ok(x) = w.map(by, from, r, at, if ro { RO } else { RW }) {
                assert!(w.h.alive[from.idx()]);
                if !pinned(m, from, r) {
                    let (flags, _) = before.unwrap();
                    assert_eq!(flags & 3, 1);
                    assert!(ro || flags & 4 == 0, "written what is read-only");
                    m.scribbled.insert((from, r), false);
                    if flags & 0x10 != 0 {
                        m.scribbled.insert((from, r), true);
                    }
                }
                assert!(
                    !m.held.iter().any(|h| h.by == by && h.handle == x.handle),
                    "one handle twice"
                );
                let mfn = Mfn::of(x.dev_bus_addr);
                assert!(w.h.owns(from, mfn), "not the granter's page");
                m.held.push(Held_ {
                    by,
                    handle: x.handle,
                    gfn: at,
                    mfn,
                    from,
                    r,
                    ro,
                    orphan: false,
                });
            }
        }
        Op::Unmap {
            pick,
            wrong_addr,
            forge,
        } => {
            if m.held.is_empty() {
                return;
            }
            let pick = pick % m.held.len();
            let x = m.held[pick];
            if !w.h.alive[x.by.idx()] {
                return;
            }
            if let Some(handle) = forge {
                let known = m.held.iter().any(|h| h.by == x.by && h.handle == handle);
                if !known {
                    assert_eq!(w.unmap(x.by, handle, x.gfn), GrantStatus::BadHandle);
                }
            } else if wrong_addr {
                assert_eq!(
                    w.unmap(x.by, x.handle, x.gfn + 1),
                    GrantStatus::GeneralError
                );
            } else {
                assert_eq!(w.unmap(x.by, x.handle, x.gfn), GrantStatus::Okay);
                m.held.swap_remove(pick);
            }
        }
        Op::Copy {
            by,
            src,
            dst,
            off,
            len,
        } => {
            if !w.h.alive[by] {
                return;
            }
            let end = |e: Option<(usize, u32)>| e.map_or(own(0, off), |(d, r)| gref(r, D[d], off));
            let flags = u16::from(src.is_some()) | u16::from(dst.is_some()) << 1;
            let writable: Vec<_> = D
                .iter()
                .flat_map(|&s| (0..REFS).map(move |r| (s, r)))
                .filter(|&(s, _)| w.g.table(s).is_some())
                .map(|(s, r)| (s, r, w.flags(s, r)))
                .collect();
            let status = w.copy(
                D[by],
                CopyOp {
                    source: end(src),
                    dest: end(dst),
                    len,
                    flags,
                },
            );
            if status == GrantStatus::Okay {
                assert!(u32::from(off) + u32::from(len) <= 4096);
                if let Some((d, r)) = dst {
                    let (_, _, f) = writable.iter().find(|x| x.0 == D[d] && x.1 == r).unwrap();
                    let covered = m
                        .held
                        .iter()
                        .any(|x| x.from == D[d] && !x.orphan && x.r == r && !x.ro);
                    assert!(covered || f & 4 == 0, "wrote to a read-only grant");
                }
            }
        }
        Op::Swap { s, a, b } => {
            if w.h.alive[s] {
                let s = D[s];
                let status = w.g.swap_grant_ref(&mut w.h, s, GrantRef(a), GrantRef(b));
                let busy = a != b && (pinned(m, s, a) || pinned(m, s, b));
                assert_eq!(status == GrantStatus::Eagain, busy);
                if !busy {
                    let old = m.scribbled.get(&(s, a)).copied().unwrap_or(false);
                    let new = m.scribbled.insert((s, b), old).unwrap_or(false);
                    if a != b {
                        m.scribbled.insert((s, a), new);
                    }
                }
            }
        }
        Op::Exchange { s, a, b } => {
            if w.h.alive[s] {
                let (x, y) = (w.h.own(D[s], a), w.h.own(D[s], b));
                w.h.p2m.insert((D[s], OWN_GFN + a), Entry::Ram(y));
                w.h.p2m.insert((D[s], OWN_GFN + b), Entry::Ram(x));
            }
        }
        Op::Hammer(n) => w.h.mem.hostile.set(n),
        Op::FailMap(fail) => w.h.fail_map = fail,
        Op::Destroy { s, budget } => {
            let slot = D[s];
            if std::mem::take(&mut w.h.alive[s]) {
                w.h.depopulate(slot);
            }
            let before = w.g.usage(slot).mappings;
            let done = w.g.destroy(&mut w.h, slot, budget);
            let gone = before - w.g.usage(slot).mappings;
            assert!(gone <= budget);
            // Entries go from the highest handle down.
            let mut own: Vec<u32> = m
                .held
                .iter()
                .filter(|x| x.by == slot)
                .map(|x| x.handle)
                .collect();
            own.sort_unstable();
            let kept = own.len() - gone as usize;
            m.held
                .retain(|x| x.by != slot || own[..kept].contains(&x.handle));
            if done != Destroyed::More {
                assert_eq!(kept, 0);
                m.bury(slot);
            }
        }
        Op::Create { s } => {
            let slot = D[s];
            if !w.h.alive[s] {
                assert_eq!(w.g.destroy(&mut w.h, slot, u32::MAX), Destroyed::Done);
                m.held.retain(|x| x.by != slot);
                m.bury(slot);
                w.create(slot);
            }
        }
    }
}

impl Model {
    /// Nothing is left of a domain but what others map.
    fn bury(&mut self, slot: Slot) {
        self.scribbled.retain(|&(s, _), _| s != slot);
        for x in self.held.iter_mut().filter(|x| x.from == slot) {
            x.orphan = true;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn any_order_of_operations_keeps_the_books(ops in prop::collection::vec(op(), 1..120)) {
        let mut w = World::new();
        let mut m = Model { held: Vec::new(), scribbled: BTreeMap::new() };
        for op in ops {
            apply(&mut w, &mut m, op);
            check(&w, &m);
        }
        // Everybody dies, in the order of their slots; then nothing is left.
        for s in D {
            if std::mem::take(&mut w.h.alive[s.idx()]) {
                w.h.depopulate(s);
            }
            w.destroy_all(s);
        }
        prop_assert!(D.iter().all(|&s| w.g.table(s).is_none()));
        prop_assert!(w.h.refs.iter().all(|r| *r == 0));
        prop_assert!(w.h.p2m.is_empty());
    }
}
