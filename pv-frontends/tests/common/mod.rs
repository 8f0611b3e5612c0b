// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine for tests: memory, hypercalls, a clock that moves when the front end waits, and back ends that run
//! then.
#![allow(dead_code)]

pub mod disk;
pub mod net;

use guest_abi::call::{read, write};
use guest_abi::console::ConsoleOp;
use guest_abi::event_channel::{EventOp, EvtchnAllocUnbound, EvtchnClose, EvtchnSend};
use guest_abi::grant_table::{GnttabQuerySize, GrantOp, gtf};
use guest_abi::grants::{Grant, GrantTable, InUse, ReadWrite};
use guest_abi::hvm::{HvmOp, HvmParam, Param};
use guest_abi::mem::SharedMem;
use guest_abi::memory::{MemoryOp, MemoryReservation};
use guest_abi::sched::{SchedOp, SchedShutdown};
use guest_abi::{DomId, Errno, Gfn, GrantRef, Hypercall, HypercallNr, Lent, Port};
use pv_frontends::{Pages, Platform};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use zerocopy::{FromBytes, IntoBytes};

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000_000_000;

/// Pages, until the last holder is gone.
#[derive(Clone, Debug)]
pub struct Mem {
    bytes: Rc<[Cell<u8>]>,
    first: u64,
}

impl Mem {
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes.iter().map(Cell::get).collect()
    }
}

impl SharedMem for Mem {
    fn load32(&self, offset: usize) -> u32 {
        self.bytes.load32(offset)
    }
    fn store32(&self, offset: usize, value: u32) {
        self.bytes.store32(offset, value);
    }
    fn fetch_and32(&self, offset: usize, bits: u32) -> u32 {
        self.bytes.fetch_and32(offset, bits)
    }
    fn fetch_or32(&self, offset: usize, bits: u32) -> u32 {
        self.bytes.fetch_or32(offset, bits)
    }
    fn compare_exchange32(&self, offset: usize, old: u32, new: u32) -> Result<u32, u32> {
        self.bytes.compare_exchange32(offset, old, new)
    }
    fn read(&self, offset: usize, to: &mut [u8]) {
        self.bytes.read(offset, to);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        self.bytes.write(offset, from);
    }
}

impl Pages for Mem {
    fn gfn(&self, index: usize) -> Gfn {
        assert!(index < self.bytes.len() / 4096);
        Gfn(self.first + index as u64)
    }
}

/// Runs when the front end waits; whether it did anything.
pub type BackEnd = Box<dyn FnMut(&World) -> bool>;

/// Pages, and where in them the frame is.
type Frame = (Weak<[Cell<u8>]>, usize);

pub struct World {
    pub clock: Cell<u64>,
    next_gfn: Cell<u64>,
    frames: RefCell<BTreeMap<u64, Frame>>,
    /// Pages that the toolstack placed.
    placed: RefCell<BTreeMap<u64, Mem>>,
    pub params: RefCell<BTreeMap<u32, u64>>,
    pub ports: RefCell<BTreeSet<u32>>,
    /// Ports that were sent on and not looked at.
    pub sent: RefCell<BTreeSet<u32>>,
    pub back: RefCell<Vec<BackEnd>>,
    /// What went to the hypervisor's console.
    pub printed: RefCell<Vec<u8>>,
    pub yields: Cell<u32>,
    /// The grant table's frames, and what the front ends use of it.
    pub table: Mem,
    grants: RefCell<Option<GrantTable<&'static Self, Mem, Vec<u32>>>>,
    /// Pages that [`Platform::alloc`] may still give.
    pub free_pages: Cell<usize>,
    /// Pages that the domain has, and that the hypervisor could give.
    pub reserved: Cell<u64>,
    pub host_free: Cell<u64>,
    /// Frames without memory.
    pub holes: RefCell<BTreeSet<u64>>,
    /// Shutdown reasons that were told, and what such a call returns.
    pub ended: RefCell<Vec<u32>>,
    pub end_result: Cell<i64>,
}

const GRANT_FRAMES: usize = 4;
const WINDOW: Gfn = Gfn(0x38000);
pub const CONSOLE_GFN: u64 = 0x39000;
pub const STORE_GFN: u64 = 0x39001;
pub const CONSOLE_PORT: Port = Port(1);
pub const STORE_PORT: Port = Port(2);

impl World {
    pub fn new() -> &'static Self {
        let world = Self {
            clock: Cell::new(SECOND),
            next_gfn: Cell::new(0x40000),
            frames: RefCell::default(),
            placed: RefCell::default(),
            params: RefCell::default(),
            ports: RefCell::new([1, 2].into()),
            sent: RefCell::default(),
            back: RefCell::default(),
            printed: RefCell::default(),
            yields: Cell::new(0),
            table: Mem {
                bytes: vec![Cell::new(0); GRANT_FRAMES * 4096].into(),
                first: WINDOW.0,
            },
            grants: RefCell::default(),
            free_pages: Cell::new(10_000),
            reserved: Cell::new(0),
            host_free: Cell::new(0),
            holes: RefCell::default(),
            ended: RefCell::default(),
            end_result: Cell::new(0),
        };
        for (gfn, page, port, evtchn) in [
            (
                CONSOLE_GFN,
                Param::ConsolePfn,
                Param::ConsoleEvtchn,
                CONSOLE_PORT,
            ),
            (STORE_GFN, Param::StorePfn, Param::StoreEvtchn, STORE_PORT),
        ] {
            let mem = world.make(gfn, 1);
            world.placed.borrow_mut().insert(gfn, mem);
            let mut params = world.params.borrow_mut();
            params.insert(page.number(), gfn);
            params.insert(port.number(), evtchn.0.into());
        }
        let world: &'static Self = Box::leak(Box::new(world));
        let room = vec![0; GRANT_FRAMES * 512];
        let table = GrantTable::new(world, world.table.clone(), WINDOW, room).unwrap();
        *world.grants.borrow_mut() = Some(table);
        world
    }

    /// The frame behind a grant and whether it may be written, if it is for `dom`.
    pub fn granted(&self, gref: GrantRef, dom: DomId) -> Option<(Gfn, bool)> {
        let at = gref.0 as usize * 8;
        if at + 8 > self.table.len() {
            return None;
        }
        let word = self.table.load32(at);
        let flags = word as u16;
        if flags & gtf::TYPE_MASK != gtf::PERMIT_ACCESS || word >> 16 != u32::from(dom.0) {
            return None;
        }
        let gfn = Gfn(self.table.load32(at + 4).into());
        Some((gfn, flags & gtf::READONLY == 0))
    }

    /// Marks a grant as mapped, or not.
    pub fn mark(&self, gref: GrantRef, mapped: bool) {
        let bits = u32::from(gtf::READING | gtf::WRITING);
        let at = gref.0 as usize * 8;
        if mapped {
            self.table.fetch_or32(at, bits);
        } else {
            self.table.fetch_and32(at, !bits);
        }
    }

    /// How many grants there are.
    pub fn grants(&self) -> usize {
        let entries = (0..self.table.len()).step_by(8);
        entries.filter(|at| self.table.load32(*at) != 0).count()
    }

    fn make(&self, first: u64, pages: usize) -> Mem {
        let bytes: Rc<[Cell<u8>]> = vec![Cell::new(0); pages * 4096].into();
        for i in 0..pages {
            let place = (Rc::downgrade(&bytes), i * 4096);
            self.frames.borrow_mut().insert(first + i as u64, place);
        }
        Mem { bytes, first }
    }

    pub fn placed(&self, gfn: u64) -> Mem {
        self.placed.borrow()[&gfn].clone()
    }

    /// A page for as long as somebody holds it, and where in it the frame is.
    pub fn frame(&self, gfn: u64) -> Option<(Mem, usize)> {
        let frames = self.frames.borrow();
        let (bytes, offset) = frames.get(&gfn)?;
        let bytes = bytes.upgrade()?;
        let first = gfn - (*offset / 4096) as u64;
        Some((Mem { bytes, first }, *offset))
    }

    /// How many pages of [`Platform::alloc`] are held.
    pub fn held(&self) -> usize {
        let frames = self.frames.borrow();
        let placed = self.placed.borrow();
        frames
            .iter()
            .filter(|(gfn, (bytes, _))| !placed.contains_key(gfn) && bytes.strong_count() > 0)
            .count()
    }

    pub fn add(&self, back: impl FnMut(&World) -> bool + 'static) {
        self.back.borrow_mut().push(Box::new(back));
    }

    /// Runs the back ends once; whether any did anything.
    pub fn run(&self) -> bool {
        let mut all = self.back.take();
        let mut any = false;
        for back in &mut all {
            any |= back(self);
        }
        all.append(&mut self.back.borrow_mut());
        *self.back.borrow_mut() = all;
        any
    }

    /// Extents of one page, until `f` refuses; how many.
    fn balloon(&self, addr: u64, lent: &mut [Lent<'_>], f: impl Fn(&Self, u64) -> bool) -> i64 {
        let mut r = MemoryReservation::default();
        assert!(read(lent, addr, r.as_mut_bytes()));
        assert_eq!((r.extent_order, r.domid), (0, DomId::SELF));
        let frames = (0..r.nr_extents).take_while(|i| {
            let mut gfn = Gfn(0);
            assert!(read(lent, r.extent_start + 8 * i, gfn.as_mut_bytes()));
            f(self, gfn.0)
        });
        frames.count() as i64
    }

    fn event<T: FromBytes + IntoBytes + zerocopy::Immutable>(
        lent: &mut [Lent<'_>],
        addr: u64,
        f: impl FnOnce(&mut T) -> i64,
    ) -> i64 {
        let mut arg = T::new_zeroed();
        assert!(read(lent, addr, arg.as_mut_bytes()));
        let result = f(&mut arg);
        assert!(write(lent, addr, arg.as_bytes()));
        result
    }
}

impl Hypercall for World {
    fn call(&self, nr: HypercallNr, args: [u64; 5], lent: &mut [Lent<'_>]) -> i64 {
        let ok = |yes| if yes { 0 } else { Errno::EINVAL.to_ret() };
        match nr {
            HypercallNr::HvmOp if args[0] == HvmOp::GetParam.number() => {
                Self::event(lent, args[1], |a: &mut HvmParam| {
                    let value = self.params.borrow().get(&a.index).copied();
                    a.value = value.unwrap_or(0);
                    ok(value.is_some())
                })
            }
            HypercallNr::EventChannelOp => match EventOp::from_number(args[0]) {
                Some(EventOp::Send) => Self::event(lent, args[1], |a: &mut EvtchnSend| {
                    self.sent.borrow_mut().insert(a.port.0);
                    ok(self.ports.borrow().contains(&a.port.0))
                }),
                Some(EventOp::Unmask) => Self::event(lent, args[1], |a: &mut EvtchnSend| {
                    ok(self.ports.borrow().contains(&a.port.0))
                }),
                Some(EventOp::AllocUnbound) => {
                    Self::event(lent, args[1], |a: &mut EvtchnAllocUnbound| {
                        let mut ports = self.ports.borrow_mut();
                        let port = (1..).find(|p| !ports.contains(p)).unwrap();
                        ports.insert(port);
                        a.port = Port(port);
                        0
                    })
                }
                Some(EventOp::Close) => Self::event(lent, args[1], |a: &mut EvtchnClose| {
                    ok(self.ports.borrow_mut().remove(&a.port.0))
                }),
                _ => Errno::ENOSYS.to_ret(),
            },
            HypercallNr::ConsoleIo if args[0] == ConsoleOp::Write.number() => {
                let mut bytes = vec![0; args[1] as usize];
                assert!(read(lent, args[2], &mut bytes));
                self.printed.borrow_mut().extend(bytes);
                0
            }
            HypercallNr::SchedOp if args[0] == SchedOp::Shutdown.number() => {
                Self::event(lent, args[1], |a: &mut SchedShutdown| {
                    self.ended.borrow_mut().push(a.reason);
                    self.end_result.get()
                })
            }
            HypercallNr::SchedOp => {
                self.yields.set(self.yields.get() + 1);
                0
            }
            HypercallNr::GrantTableOp if args[0] == GrantOp::QuerySize.number() => {
                Self::event(lent, args[1], |a: &mut GnttabQuerySize| {
                    a.max_nr_frames = GRANT_FRAMES as u32;
                    0
                })
            }
            HypercallNr::MemoryOp => match MemoryOp::from_number(args[0]) {
                Some(MemoryOp::CurrentReservation) => self.reserved.get() as i64,
                Some(MemoryOp::DecreaseReservation) => self.balloon(args[1], lent, |w, frame| {
                    w.reserved.set(w.reserved.get() - 1);
                    w.host_free.set(w.host_free.get() + 1);
                    w.holes.borrow_mut().insert(frame)
                }),
                Some(MemoryOp::PopulatePhysmap) => self.balloon(args[1], lent, |w, frame| {
                    let Some(left) = w.host_free.get().checked_sub(1) else {
                        return false;
                    };
                    w.host_free.set(left);
                    w.reserved.set(w.reserved.get() + 1);
                    assert!(w.holes.borrow_mut().remove(&frame));
                    true
                }),
                _ => 0,
            },
            _ => Errno::ENOSYS.to_ret(),
        }
    }
}

impl Platform for World {
    type Xen = Self;
    type Pages = Mem;
    fn xen(&self) -> &Self {
        self
    }
    fn now(&self) -> u64 {
        self.clock.get()
    }
    /// Back ends run; when none has anything to do, the time comes.
    fn wait(&self, until: u64) {
        self.clock.set(self.clock.get() + 1000);
        if !self.run() {
            assert_ne!(until, u64::MAX, "nobody would ever wake this up");
            self.clock.set(self.clock.get().max(until));
        }
    }
    fn alloc(&self, pages: usize) -> Option<Mem> {
        let left = self.free_pages.get().checked_sub(pages)?;
        self.free_pages.set(left);
        let first = self.next_gfn.get();
        self.next_gfn.set(first + pages as u64 + 1);
        Some(self.make(first, pages))
    }
    fn grant(&self, to: DomId, gfn: Gfn) -> Result<Grant<ReadWrite>, Errno> {
        self.grants.borrow_mut().as_mut().unwrap().grant(to, gfn)
    }
    fn end_grant(&self, grant: Grant<ReadWrite>) -> Result<Gfn, InUse<ReadWrite>> {
        self.grants.borrow_mut().as_mut().unwrap().end(grant)
    }
    fn map(&self, gfn: Gfn) -> Option<Mem> {
        self.placed.borrow().get(&gfn.0).cloned()
    }
}

/// The store's server, at the other end of the ring.
pub type Server = Rc<RefCell<xenstore::Store>>;

pub const ME: DomId = DomId(1);
pub const DOM0: DomId = DomId(0);
pub const HOME: &str = "/local/domain/1";

/// A store that serves the domain.
pub fn serve(world: &World) -> Server {
    let mut store = xenstore::Store::new();
    store.mkdir(HOME).unwrap();
    store.set_perms(HOME, &[xenstore::Perm::none(ME)]).unwrap();
    store.introduce(ME).unwrap();
    let server = Rc::new(RefCell::new(store));
    let (store, page) = (server.clone(), world.placed(STORE_GFN));
    world.add(move |world| {
        world.sent.borrow_mut().remove(&STORE_PORT.0);
        let result = store.borrow_mut().pump(ME, &page);
        result.notify || result.more
    });
    server
}
