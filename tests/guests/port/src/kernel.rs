// SPDX-License-Identifier: MIT OR Apache-2.0
//! What this kernel brings to `pv-frontends`.

// [memory]
use el1::{pages, shared::Shared};
use guest_abi::mem::SharedMem;
use guest_abi::{DomId, Errno, Gfn};
use pv_frontends::{Pages, Platform};

/// Pages that others may write at any time.
pub enum Mem {
    /// Of the toolstack's or the hypervisor's, mapped at their own address.
    Placed(Shared),
    /// Of the kernel's heap, where they go back to when this is dropped.
    Own(pages::Pages),
}

impl Mem {
    fn mem(&self) -> &dyn SharedMem {
        match self {
            Self::Placed(pages) => pages,
            Self::Own(pages) => pages,
        }
    }
}

impl Pages for Mem {
    fn gfn(&self, index: usize) -> Gfn {
        match self {
            Self::Placed(pages) => Gfn::of(pages.addr() + index as u64 * 4096),
            Self::Own(pages) => pages.gfn(index),
        }
    }
}

impl SharedMem for Mem {
    fn load32(&self, offset: usize) -> u32 {
        self.mem().load32(offset)
    }
    fn store32(&self, offset: usize, value: u32) {
        self.mem().store32(offset, value);
    }
    fn fetch_and32(&self, offset: usize, bits: u32) -> u32 {
        self.mem().fetch_and32(offset, bits)
    }
    fn fetch_or32(&self, offset: usize, bits: u32) -> u32 {
        self.mem().fetch_or32(offset, bits)
    }
    fn compare_exchange32(&self, offset: usize, old: u32, new: u32) -> Result<u32, u32> {
        self.mem().compare_exchange32(offset, old, new)
    }
    fn read(&self, offset: usize, to: &mut [u8]) {
        self.mem().read(offset, to);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        self.mem().write(offset, from);
    }
}
// [/memory]

// [platform]
use guest_abi::call::Hvc;

impl Platform for Kernel {
    type Xen = Hvc;
    type Pages = Mem;

    fn xen(&self) -> &Hvc {
        &self.xen
    }

    fn now(&self) -> u64 {
        el1::time::now_ns()
    }

    fn map(&self, gfn: Gfn) -> Option<Mem> {
        Shared::at(gfn.0, 1).map(Mem::Placed)
    }
    // [/platform]

    // [alloc]
    fn alloc(&self, pages: usize) -> Option<Mem> {
        pages::Pages::new(pages).map(Mem::Own)
    }

    fn grant(&self, to: DomId, gfn: Gfn) -> Result<Grant<ReadWrite>, Errno> {
        let mut table = self.grants.borrow_mut();
        table.as_mut().ok_or(Errno::ENOSPC)?.grant(to, gfn)
    }

    fn end_grant(&self, grant: Grant<ReadWrite>) -> Result<Gfn, InUse<ReadWrite>> {
        match self.grants.borrow_mut().as_mut() {
            Some(table) => table.end(grant),
            None => Err(InUse(grant)),
        }
    }
    // [/alloc]

    // [wait]
    fn wait(&self, until: u64) {
        el1::time::set_alarm((until != u64::MAX).then_some(until));
        // An event that came after the caller looked has left its interrupt pending, which ends this at once.
        el1::cpu::idle();
        while el1::gic::poll(|intid| {
            if intid == el1::time::INTID {
                el1::time::set_alarm(None);
            } else if let Some(events) = &self.events {
                events.interrupt();
            }
        }) {}
    }
    // [/wait]
}

// [events]
use core::cell::RefCell;
use core::sync::atomic::AtomicU32;
use guest_abi::calls;
use guest_abi::events::{Area, Events, Upcall};
use guest_abi::mem::{Page, SharedPage};

/// The shared-info page comes here, in the place of this memory.
static INFO: SharedPage = SharedPage::new();
/// Event words of 1024 ports.
static WORDS: SharedPage = SharedPage::new();
/// What the vcpus share with the hypervisor.
static VCPUS: SharedPage = SharedPage::new();

type Words = &'static [AtomicU32];

struct Channels {
    events: Events<Hvc, Words, [Page<Words>; 1]>,
    upcall: RefCell<Upcall<Words>>,
}

impl Channels {
    fn new(xen: Hvc) -> Result<Self, Errno> {
        calls::memory::map_shared_info(&xen, INFO.identity().gfn)?;
        let area = Area::new(VCPUS.identity(), 0);
        let (events, upcall) = Events::new(xen, INFO.words(), [WORDS.identity()], area)?;
        let upcall = RefCell::new(upcall);
        Ok(Self { events, upcall })
    }

    /// For the event-channel interrupt. Who waits looks at its own ring, so it does not matter which port fired.
    fn interrupt(&self) {
        let mut upcall = self.upcall.borrow_mut();
        while upcall.scan(&self.events, 256, |_port| ()) {}
    }
}
// [/events]

// [grants]
use guest_abi::grants::{Grant, GrantTable, InUse, ReadWrite};

/// Frames that the grant table may grow to, 512 grants each.
const FRAMES: usize = 1;

type Grants = GrantTable<Hvc, Shared, [u32; FRAMES * 512]>;

impl Kernel {
    /// To be called before the first grant. The frames come to the address that the device tree names.
    pub fn start_grants(&self) -> Result<(), pv_frontends::Error> {
        let frames = Shared::at(self.window.0, FRAMES);
        let frames = frames.ok_or(pv_frontends::Error::NoMemory)?;
        let table = GrantTable::new(self.xen, frames, self.window, [0; FRAMES * 512]);
        *self.grants.borrow_mut() = Some(table.map_err(|_| pv_frontends::Error::NoMemory)?);
        Ok(())
    }
}
// [/grants]

// [kernel]
pub struct Kernel {
    xen: Hvc,
    events: Option<Channels>,
    window: Gfn,
    grants: RefCell<Option<Grants>>,
}

impl Kernel {
    pub fn new(machine: &el1::Machine) -> Self {
        let xen = el1::hvc::xen();
        let events = Channels::new(xen).ok();
        let (mut window, mut intid) = (0, 31);
        if let Some(h) = &machine.hypervisor {
            (window, intid) = (h.grant_window.0, h.event_intid);
        }
        el1::gic::enable(intid, el1::gic::Trigger::Level);
        el1::gic::enable(el1::time::INTID, el1::gic::Trigger::Level);
        Self {
            xen,
            events,
            window: Gfn::of(window),
            grants: RefCell::default(),
        }
    }
}
// [/kernel]
