// SPDX-License-Identifier: MIT OR Apache-2.0
//! What this runtime brings to `pv-frontends`: the [`Platform`].

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::sync::atomic::AtomicU32;
use el1::shared::Shared;
use el1::{Machine, cpu, gic, hvc, pages, print, time};
use guest_abi::call::Hvc;
use guest_abi::events::{Area, Events, Upcall};
use guest_abi::grants::{Grant, GrantTable, InUse, ReadWrite};
use guest_abi::mem::{Page, SharedMem, SharedPage};
use guest_abi::{DomId, Errno, Gfn, calls, xen};
use pv_frontends::{Pages, Platform};

/// Pages that others may write at any time.
pub enum Mem {
    /// Of the kernel's own heap, where they go back to.
    Own(pages::Pages),
    /// Of the hypervisor's or the toolstack's, outside the kernel's memory.
    Placed(Shared),
}

impl Mem {
    fn mem(&self) -> &dyn SharedMem {
        match self {
            Self::Own(pages) => pages,
            Self::Placed(pages) => pages,
        }
    }
}

impl Pages for Mem {
    fn gfn(&self, index: usize) -> Gfn {
        match self {
            Self::Own(pages) => pages.gfn(index),
            Self::Placed(pages) => Gfn::of(pages.addr() + index as u64 * 4096),
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

/// Frames of the grant table that may come into use, 512 grants each.
const GRANT_FRAMES: usize = 4;
/// Most bytes of the UART's that wait to be read; further ones are lost.
const UART_INPUT: usize = 4096;

/// The shared-info page comes here, in the place of this memory.
static INFO: SharedPage = SharedPage::new();
/// Event words of 1024 ports.
static WORDS: SharedPage = SharedPage::new();
/// What the vcpus share with the hypervisor.
static VCPUS: SharedPage = SharedPage::new();

type Words = &'static [AtomicU32];

/// The domain's event channels, as vcpu 0 finds them.
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

    /// For the event-channel interrupt. Who waits looks at its own ring then, so it does not matter which port fired.
    fn interrupt(&self) {
        let mut upcall = self.upcall.borrow_mut();
        while upcall.scan(&self.events, 256, |_port| ()) {}
    }
}

/// What runs the guest: the hypervisor, if there is one, interrupts and the clock.
pub struct Kernel {
    xen: Hvc,
    event_intid: Option<u32>,
    channels: Option<Channels>,
    grants: RefCell<Option<GrantTable<Hvc, Shared, Vec<u32>>>>,
    uart: RefCell<VecDeque<u8>>,
}

impl Kernel {
    /// Sets up events and grants, where there is a hypervisor, and the timer. To be called once.
    pub(crate) fn new(machine: &Machine) -> &'static Self {
        let xen = hvc::xen();
        let hypervisor = machine.hypervisor.as_ref();
        let channels = hypervisor.and_then(|_| Channels::new(xen).ok());
        let event_intid = hypervisor.map(|h| h.event_intid);
        if let (Some(intid), Some(_)) = (event_intid, &channels) {
            gic::enable(intid, gic::Trigger::Level);
        }
        gic::enable(time::INTID, gic::Trigger::Level);
        Box::leak(Box::new(Self {
            xen,
            event_intid,
            channels,
            grants: RefCell::new(hypervisor.and_then(|h| grant_table(xen, h.grant_window.0))),
            uart: RefCell::default(),
        }))
    }

    /// Whether event channels work.
    #[must_use]
    pub fn events(&self) -> bool {
        self.channels.is_some()
    }

    /// Seconds since 1970, where somebody told the hypervisor.
    #[must_use]
    pub fn wall_clock(&self) -> Option<u64> {
        self.channels.as_ref()?;
        // The time when the counter was at 0.
        let base = xen::read_wall_clock(INFO.words()).filter(|w| w.secs != 0)?;
        let nanos = u64::from(base.nanos).saturating_add(self.now());
        Some(base.secs.saturating_add(nanos / 1_000_000_000))
    }

    /// Bytes that the UART got, where that is the console.
    pub(crate) fn uart_byte(&self) -> Option<u8> {
        self.uart_input();
        self.uart.borrow_mut().pop_front()
    }

    fn uart_input(&self) {
        let mut uart = self.uart.borrow_mut();
        while let Some(byte) = print::uart_byte() {
            if uart.len() < UART_INPUT {
                uart.push_back(byte);
            }
        }
    }
}

/// The grant table, whose frames come to the address that the device tree names (`/hypervisor`, `reg`).
fn grant_table(xen: Hvc, window: u64) -> Option<GrantTable<Hvc, Shared, Vec<u32>>> {
    let window = Gfn::of(window);
    let frames = Shared::at(window.0, GRANT_FRAMES)?;
    GrantTable::new(xen, frames, window, vec![0; GRANT_FRAMES * 512]).ok()
}

impl Platform for Kernel {
    type Xen = Hvc;
    type Pages = Mem;

    fn xen(&self) -> &Hvc {
        &self.xen
    }

    fn now(&self) -> u64 {
        time::now_ns()
    }

    fn wait(&self, until: u64) {
        time::set_alarm((until != u64::MAX).then_some(until));
        // An event after the last look left its interrupt pending: this returns at once then.
        cpu::idle();
        while gic::poll(|intid| {
            if intid == time::INTID {
                time::set_alarm(None);
            } else if let (true, Some(c)) = (Some(intid) == self.event_intid, &self.channels) {
                c.interrupt();
            } else {
                // The UART's, which stays up until its bytes are read.
                self.uart_input();
            }
        }) {}
    }

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

    fn map(&self, gfn: Gfn) -> Option<Mem> {
        // Mapped by the MMU's set-up: beside the grant window.
        Shared::at(gfn.0, 1).map(Mem::Placed)
    }
}
