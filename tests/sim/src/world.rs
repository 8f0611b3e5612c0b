// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine with the hypervisor and a control domain on it.

use crate::machine::Machine;
use guest_abi::{Gfn, Hypercall, HypercallNr, Lent};
use hv_core::domain::{Death, Domain};
use hv_core::frame::{Frame, Frames, NOBODY, Use};
use hv_core::hypercall::Reply;
use hv_core::hypervisor::{Hypervisor, MachineInfo, NewDomain, Then};
use hv_core::machine::{Meter, PhysMem, StartState, limit};
use hv_core::p2m::Kind;
use hv_core::types::{Access, CpuId, DomId, MAX_DOMAINS, Mfn, Pa, Slot, VcpuId, VcpuRef};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Where RAM begins.
const RAM: u64 = 0x4000_0000;
/// Pages of RAM: 32 MiB.
const RAM_PAGES: u64 = 8192;
/// The control domain has 2^this pages.
const DOM0_ORDER: u8 = 10;
/// Pages at the end of a domain's memory through which its calls' structures pass.
pub const BOUNCE_PAGES: u64 = 24;

/// What exists, to compare before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Free pages of the machine.
    pub free: u64,
    /// Domains, dead ones included.
    pub domains: usize,
    /// Register files.
    pub vcpus: usize,
    /// Ports that the control domain has.
    pub dom0_ports: u32,
    /// Grant mappings that the control domain holds.
    pub dom0_mappings: u32,
    /// Pages of the control domain.
    pub dom0_pages: u32,
}

/// A machine, a hypervisor, a control domain.
pub struct World {
    /// The hypervisor.
    pub hv: RefCell<Hypervisor>,
    /// The machine.
    pub m: Machine,
    dom0: VcpuRef,
    dom0_bounce: u64,
    /// The CPU that calls are made on.
    cpu: Cell<CpuId>,
}

/// One virtual CPU, as the software on it sees it.
#[derive(Clone, Copy)]
pub struct Guest<'w> {
    /// Where it lives.
    pub w: &'w World,
    /// Which it is.
    pub v: VcpuRef,
    /// Guest physical address of the pages for calls' structures.
    pub bounce: u64,
}

impl World {
    /// Boots: a machine with `gic_version`, and a control domain whose memory is mapped at its
    /// machine addresses.
    #[must_use]
    pub fn boot(gic_version: u8) -> Self {
        let m = Machine::new(RAM, RAM_PAGES);
        let table = vec![Frame::RESERVED; RAM_PAGES as usize].leak();
        let mut frames = Frames::new(Mfn::of(RAM), table);
        frames.add_ram(Mfn::of(RAM), RAM_PAGES);
        let info = MachineInfo {
            cpus: 2,
            started: u64::MAX,
            khz: 62_500,
            gic_version,
            gicv: Mfn(0x8040),
            wall_sec: 1_700_000_000,
        };
        let mut hv = Hypervisor::new(frames, info);
        let new = NewDomain {
            handle: [0; 16],
            max_vcpus: 1,
            max_port: 4095,
            max_grant_frames: 64,
            max_maptrack_frames: 16,
            gic_version: 0,
            nr_spis: 64,
            privileged: true,
        };
        let slot = hv.create_domain(&m, &new).expect("the control domain");
        let memory = hv
            .frames
            .alloc(slot, Use::Guest, DOM0_ORDER)
            .expect("its memory");
        let memory = hv.frames.scrub_all(&m, memory);
        let (base, pages) = (memory.mfn(), 1u64 << DOM0_ORDER);
        let (d, mut c) = hv.p2m_of(&m, slot).expect("it exists");
        d.max_pages = pages as u32;
        d.p2m
            .set_table_limit(c.frames, 512)
            .expect("there are pages");
        for block in memory.blocks(9) {
            d.p2m
                .map(&mut c, Gfn(block.mfn().0), block, Kind::Ram)
                .expect("mapped");
        }
        let v = VcpuRef {
            slot,
            vcpu: VcpuId(0),
        };
        hv.start_vcpu(
            &m,
            v,
            &StartState {
                pc: base.addr(),
                ..Default::default()
            },
        )
        .expect("started");
        hv.pause_domain(&m, slot, false).expect("unpaused");
        let w = Self {
            hv: RefCell::new(hv),
            m,
            dom0: v,
            dom0_bounce: base.addr() + (pages - BOUNCE_PAGES) * 4096,
            cpu: Cell::new(CpuId(0)),
        };
        w.settle();
        w
    }

    /// The control domain's vcpu.
    #[must_use]
    pub fn dom0(&self) -> Guest<'_> {
        Guest {
            w: self,
            v: self.dom0,
            bounce: self.dom0_bounce,
        }
    }

    /// The control domain's first page.
    #[must_use]
    pub fn dom0_base(&self) -> u64 {
        self.dom0_bounce - ((1 << DOM0_ORDER) - BOUNCE_PAGES) * 4096
    }

    /// What exists.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let hv = self.hv.borrow();
        Totals {
            free: hv.frames.free_pages(),
            domains: hv.domains.iter().count(),
            vcpus: self.m.vcpus(),
            dom0_ports: hv.events.ports_in_use(self.dom0.slot),
            dom0_mappings: hv.grants.usage(self.dom0.slot).mappings,
            dom0_pages: hv.frames.guest_pages(self.dom0.slot),
        }
    }

    /// Pages that nobody uses, those included that are kept for somebody.
    #[must_use]
    pub fn unused(&self) -> u64 {
        let hv = self.hv.borrow();
        let kept = (0..MAX_DOMAINS).map(|i| u64::from(hv.frames.kept(Slot(i as u8))));
        hv.frames.free_pages() + kept.sum::<u64>()
    }

    /// A domain's slot, if it exists.
    #[must_use]
    pub fn slot(&self, dom: DomId) -> Option<Slot> {
        self.hv.borrow().domains.find(dom)
    }

    /// References to a machine page.
    #[must_use]
    pub fn refs(&self, mfn: u64) -> u32 {
        self.hv.borrow().frames.refs(Mfn(mfn))
    }

    /// VTTBR_EL2 of a domain.
    #[must_use]
    pub fn vttbr(&self, slot: Slot) -> u64 {
        self.hv
            .borrow()
            .domains
            .get(slot)
            .expect("a domain")
            .p2m
            .vttbr()
            .bits()
    }

    /// A guest makes calls on another CPU than the first.
    pub fn call_on<T>(&self, cpu: CpuId, g: &Guest<'_>, f: impl FnOnce(&Guest<'_>) -> T) -> T {
        self.cpu.set(cpu);
        let r = f(g);
        self.cpu.set(CpuId(0));
        r
    }

    /// Fills the translation cache with all that a domain's tables say.
    pub fn prefetch(&self, dom: DomId) {
        if let Some(slot) = self.slot(dom) {
            self.m.prefetch(self.vttbr(slot));
        }
    }

    /// One slice of a hypercall.
    pub fn slice(&self, v: VcpuRef, nr: u64, x: &mut [u64; 5]) -> Reply {
        self.m.vttbr.set(self.vttbr(v.slot));
        let reply = self
            .hv
            .borrow_mut()
            .hypercall(&self.m, v, self.cpu.get(), nr, x);
        let most = if v == self.dom0 {
            limit::HOLD
        } else {
            limit::HOLD_GUEST
        };
        let spent = self.m.spent();
        assert!(spent <= most, "hypercall {nr} {x:x?}: {spent} in one hold");
        self.carry_out();
        self.settle();
        reply
    }

    /// What comes after the lock. The machine goes on, whatever becomes of it.
    fn carry_out(&self) {
        let mut hv = self.hv.borrow_mut();
        if hv.effects.take().then.get() == Some(Then::EndContended) {
            hv.end_contended(&self.m);
            hv.effects = Default::default();
        }
    }

    /// After each step: pages that became free are poisoned, and no translation cache may hold
    /// what the tables no longer say.
    pub fn settle(&self) {
        let hv = self.hv.borrow();
        for mfn in RAM >> 12..(RAM >> 12) + RAM_PAGES {
            let found = hv.frames.lookup(Mfn(mfn));
            self.m.mark(mfn, matches!(found, Some((Use::Table, _))));
            match found {
                None => drop(self.m.poison(mfn)),
                // In nobody's reach.
                Some((Use::Dirty, _)) => {}
                Some((usage, slot)) => {
                    assert!(
                        !self.m.is_poisoned(mfn),
                        "page {mfn:#x} is in use and was never cleared"
                    );
                    if usage != Use::Table
                        && let Some(what) = self.m.leftover(mfn, usage == Use::Guest)
                    {
                        panic!("{usage:?} page {mfn:#x} of {slot:?} has its last owner's {what}");
                    }
                }
            }
        }
        let may_run = |d: &&Domain| matches!(d.death, Death::Alive | Death::Vcpus);
        let roots = hv.domains.iter().filter(may_run);
        let roots = roots.map(|d| d.p2m.vttbr().bits());
        self.m.set_walkable(roots.map(|r| (r >> 48, r)).collect());
        for vmid in self.m.cached_vmids() {
            let slot = Slot(u8::try_from(vmid - 1).expect("a VMID"));
            let Some(d) = hv.domains.get(slot) else {
                panic!("translations of VMID {vmid} are cached, which has no domain");
            };
            match d.death {
                Death::Alive => {}
                // Its vcpus may still be on CPUs; nothing of it is changed yet.
                Death::Vcpus => {}
                _ => panic!("translations of a dead domain are cached"),
            }
            for l in self.m.cached(vmid) {
                for gfn in [l.gfn, l.gfn + (1 << l.order) - 1] {
                    let now = self
                        .m
                        .walk(d.p2m.vttbr().bits(), gfn)
                        .map(|n| (n.mfn + gfn - n.gfn, n.read, n.write));
                    let then = (l.mfn + gfn - l.gfn, l.read, l.write);
                    assert_eq!(
                        now,
                        Some(then),
                        "VMID {vmid}: a stale translation of {gfn:#x} is cached"
                    );
                }
            }
        }
    }

    /// Checks the whole state: every page has one owner and one place there, every mapping its
    /// reference and its right, and the books of the allocator are right.
    pub fn check(&self) {
        let hv = self.hv.borrow();
        let mut ram: BTreeMap<u64, Slot> = BTreeMap::new();
        let mut tables: BTreeMap<u64, Slot> = BTreeMap::new();
        let mut held: BTreeMap<u64, u32> = BTreeMap::new();
        for d in hv.domains.iter() {
            let (leaves, t) = self.m.tables(d.p2m.vttbr().bits());
            for t in t {
                assert_eq!(
                    hv.frames.lookup(Mfn(t)),
                    Some((Use::Table, d.slot)),
                    "table {t:#x}"
                );
                assert!(
                    tables.insert(t, d.slot).is_none(),
                    "table {t:#x} is used twice"
                );
            }
            match d.death {
                Death::Alive => {}
                Death::Pages(_) => {
                    assert!(leaves.is_empty(), "a dead domain still maps {leaves:?}");
                    continue;
                }
                _ => continue,
            }
            self.m.prefetch(d.p2m.vttbr().bits());
            for l in &leaves {
                for k in 0..1u64 << l.order {
                    let (gfn, mfn) = (l.gfn + k, l.mfn + k);
                    let found = hv.frames.lookup(Mfn(mfn));
                    let (rw, owner_ok) = match l.kind {
                        1 => {
                            let old = ram.insert(mfn, d.slot);
                            assert!(old.is_none(), "{mfn:#x} is RAM of {old:?} and {:?}", d.slot);
                            (true, found == Some((Use::Guest, d.slot)))
                        }
                        2 => (true, found == Some((Use::Shared, d.slot))),
                        3 => (
                            true,
                            d.privileged && matches!(found, Some((Use::Guest | Use::Shared, _))),
                        ),
                        4 => (true, matches!(found, Some((Use::Guest, _)))),
                        5 => (false, matches!(found, Some((Use::Guest, _)))),
                        6 => (true, found.is_none()),
                        _ => panic!("kind {} at {gfn:#x}", l.kind),
                    };
                    assert!(
                        owner_ok,
                        "{:?} maps {found:?} at {gfn:#x} as kind {}",
                        d.domid, l.kind
                    );
                    assert_eq!((l.read, l.write), (true, rw), "rights at {gfn:#x}");
                    if matches!(l.kind, 1 | 3 | 4 | 5) {
                        *held.entry(mfn).or_default() += 1;
                    }
                }
            }
        }
        for (mfn, n) in held {
            assert!(
                hv.frames.refs(Mfn(mfn)) >= n,
                "{mfn:#x} is mapped {n} times and has fewer references"
            );
        }
        let mut guest = [0u32; MAX_DOMAINS + 1];
        let mut free = 0;
        for mfn in RAM >> 12..(RAM >> 12) + RAM_PAGES {
            match hv.frames.lookup(Mfn(mfn)) {
                None => free += 1,
                Some((usage, slot)) => {
                    assert!(
                        hv.domains.get(slot).is_some() || slot == NOBODY,
                        "{mfn:#x} of a domain that is gone"
                    );
                    if matches!(usage, Use::Guest | Use::Dirty) {
                        guest[slot.idx()] += 1;
                    }
                    assert_eq!(
                        usage == Use::Table,
                        tables.contains_key(&mfn),
                        "{mfn:#x} is a table: lost or not"
                    );
                }
            }
        }
        assert_eq!(free, self.unused());
        for (i, n) in guest.iter().enumerate() {
            assert_eq!(
                *n,
                hv.frames.guest_pages(Slot(i as u8)),
                "pages of slot {i}"
            );
        }
    }
}

impl<'w> Guest<'w> {
    /// Its domain's number.
    #[must_use]
    pub fn domid(&self) -> DomId {
        self.w.hv.borrow().domid(self.v.slot)
    }

    fn vttbr(&self) -> u64 {
        self.w.vttbr(self.v.slot)
    }

    /// The machine page behind a guest frame, as its CPU sees it.
    #[must_use]
    pub fn mfn(&self, gfn: u64, access: Access) -> Option<u64> {
        let mfn = self.w.m.translate_gfn(self.vttbr(), gfn, access)?;
        let hv = self.w.hv.borrow();
        match hv.frames.lookup(Mfn(mfn)) {
            Some((Use::Guest | Use::Shared, _)) => Some(mfn),
            found => panic!("{:?} reaches {found:?} at {gfn:#x}", self.v),
        }
    }

    fn each(
        &self,
        gpa: u64,
        len: usize,
        access: Access,
        mut f: impl FnMut(Pa, std::ops::Range<usize>),
    ) -> bool {
        pieces(gpa, len).all(|r| {
            let here = gpa + r.start as u64;
            let mfn = self.mfn(here >> 12, access);
            mfn.is_some_and(|mfn| {
                f(Pa(mfn * 4096 + (here & 4095)), r);
                true
            })
        })
    }

    /// Reads its memory; `false` when that faults.
    #[must_use]
    pub fn read(&self, gpa: u64, to: &mut [u8]) -> bool {
        self.each(gpa, to.len(), Access::Read, |pa, r| {
            self.w.m.read(pa, &mut to[r])
        })
    }

    /// Writes its memory; `false` when that faults.
    #[must_use]
    pub fn write(&self, gpa: u64, from: &[u8]) -> bool {
        self.each(gpa, from.len(), Access::Write, |pa, r| {
            self.w.m.write(pa, &from[r])
        })
    }

    /// Reads its memory as it does with its caches off.
    #[must_use]
    pub fn read_uncached(&self, gpa: u64, to: &mut [u8]) -> bool {
        self.each(gpa, to.len(), Access::Read, |pa, r| {
            self.w.m.read_uncached(pa, &mut to[r])
        })
    }

    /// Writes its memory as it does with its caches off.
    #[must_use]
    pub fn write_uncached(&self, gpa: u64, from: &[u8]) -> bool {
        self.each(gpa, from.len(), Access::Write, |pa, r| {
            self.w.m.write_uncached(pa, &from[r])
        })
    }

    /// Reads a structure; panics when that faults.
    #[must_use]
    pub fn get<T: FromBytes + IntoBytes>(&self, gpa: u64) -> T {
        let mut t = T::new_zeroed();
        assert!(
            self.read(gpa, t.as_mut_bytes()),
            "{:?} cannot read {gpa:#x}",
            self.v
        );
        t
    }

    /// Writes a structure; panics when that faults.
    pub fn put<T: IntoBytes + Immutable + ?Sized>(&self, gpa: u64, t: &T) {
        assert!(
            self.write(gpa, t.as_bytes()),
            "{:?} cannot write {gpa:#x}",
            self.v
        );
    }

    /// A hypercall by numbers, made again until it is done.
    pub fn raw(&self, nr: u64, args: [u64; 5]) -> i64 {
        let mut x = args;
        for _ in 0..100_000 {
            match self.w.slice(self.v, nr, &mut x) {
                Reply::Done(r) => return r,
                Reply::Again => {}
            }
        }
        panic!("hypercall {nr} {args:x?} does not end");
    }

    /// Whether its event interrupt is raised.
    #[must_use]
    pub fn upcall(&self) -> bool {
        self.w.hv.borrow().events.upcall_pending(self.v, &self.w.m)
    }

    /// Takes a pending bit of the 2-level ABI, as an interrupt handler does. `info` is the guest
    /// physical address of its `shared_info`, with `vcpu_info` 0 in it.
    #[must_use]
    pub fn take_2l(&self, info: u64, port: u32) -> bool {
        use guest_abi::xen::offset;
        let word = u64::from(port / 64);
        let at = info + offset::EVTCHN_PENDING as u64 + word * 8;
        let pending: u64 = self.get(at);
        let bit = 1u64 << (port % 64);
        if pending & bit == 0 {
            return false;
        }
        self.put(at, &(pending & !bit));
        self.put(info + offset::UPCALL_PENDING as u64, &0u8);
        self.put(info + offset::PENDING_SEL as u64, &0u64);
        true
    }
}

/// The pieces of `len` bytes at an address that lie in one page each.
fn pieces(at: u64, len: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let n = (len - from).min(4096 - ((at + from as u64) & 4095) as usize);
        let r = from..from + n;
        from += n;
        (n != 0).then_some(r)
    })
}

/// Memory that a call lends becomes, for its time, virtual pages over the domain's bounce pages.
impl Hypercall for Guest<'_> {
    fn call(&self, nr: HypercallNr, args: [u64; 5], lent: &mut [Lent<'_>]) -> i64 {
        let mut pages: BTreeMap<u64, (u64, bool)> = BTreeMap::new();
        let spans: Vec<(u64, usize)> = lent
            .iter_mut()
            .map(|l| {
                let at = l.addr();
                let (len, out) = match l {
                    Lent::In(b) => (b.len(), false),
                    Lent::Out(b) => (b.len(), true),
                };
                if len != 0 {
                    for page in at >> 12..=(at + len as u64 - 1) >> 12 {
                        let next = self.bounce + pages.len() as u64 * 4096;
                        pages.entry(page).or_insert((next, false)).1 |= out;
                    }
                }
                (at, len)
            })
            .collect();
        assert!(pages.len() as u64 <= BOUNCE_PAGES, "too much memory lent");
        let place = |va: u64| pages[&(va >> 12)].0 | (va & 4095);
        for (l, &(at, len)) in lent.iter().zip(&spans) {
            let bytes: &[u8] = match l {
                Lent::In(b) => b,
                Lent::Out(b) => b,
            };
            for r in pieces(at, len) {
                self.put(place(at + r.start as u64), &bytes[r]);
            }
        }
        self.w.m.stage1.replace(pages.clone());
        let r = self.raw(nr.number(), args);
        self.w.m.stage1.borrow_mut().clear();
        for (l, &(at, len)) in lent.iter_mut().zip(&spans) {
            let Lent::Out(bytes) = l else { continue };
            for r in pieces(at, len) {
                assert!(self.read(place(at + r.start as u64), &mut bytes[r]));
            }
        }
        r
    }
}
