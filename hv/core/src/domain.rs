// SPDX-License-Identifier: MIT OR Apache-2.0
//! Domains: what one consists of besides the tables that the subsystems keep for it.

use crate::console::Lines;
use crate::frame::Dirty;
use crate::p2m::P2m;
use crate::types::{DomId, Errno, Gfn, MAX_DOMAINS, Mfn, Port, Slot, VcpuId, VcpuRef};
use crate::vpl011::Vpl011;
use alloc::vec::Vec;

/// Parameters that HVMOP_set_param and get_param know (`HVM_NR_PARAMS`, `hvm/params.h`).
pub const HVM_PARAMS: usize = 39;

/// Where a vcpu's runstate is reported: a guest virtual address, and the guest's page tables may
/// change under it, so it is looked up at each use.
#[derive(Debug)]
pub struct Vcpu {
    /// Guest virtual address of `vcpu_runstate_info`, 0 for none.
    pub runstate_area: u64,
    /// Has been given a start state, by the toolstack or by CPU_ON.
    pub initialised: bool,
    /// SCHEDOP_poll: waits for ports.
    pub polling: bool,
    /// When SCHEDOP_poll gives up, in ns; `u64::MAX` for never.
    pub poll_until: u64,
    /// An extent of `memory_op` that a call of its in slices is at work on.
    pub extent: Option<Extent>,
}

impl Vcpu {
    /// A vcpu that never ran.
    pub const NEW: Self = Self {
        runstate_area: 0,
        initialised: false,
        polling: false,
        poll_until: u64::MAX,
        extent: None,
    };
}

/// How far a dying domain's tear-down is. Each step is made in bounded slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// Alive.
    Alive,
    /// Wait until no vcpu is on a CPU; then no CPU walks its stage-2 tables any more, and its VMID is
    /// cleaned from the TLBs, once and before anything is freed.
    Vcpus,
    /// Close event channels.
    Events,
    /// Drop grant mappings that it holds.
    Grants,
    /// Give back its memory, from this guest frame on.
    Memory(Gfn),
    /// Free the stage-2 tables, which map nothing any more.
    Tables,
    /// Give the pages to nobody that others still hold, from this one of the machine's on.
    Pages(u32),
}

/// How far `memory_op` is with an extent that takes more than one slice.
#[derive(Debug)]
pub struct Extent {
    /// Which operation.
    pub op: u8,
    /// Whose memory.
    pub target: Slot,
    /// The extent's first frame.
    pub gfn: Gfn,
    /// log2 of its pages.
    pub order: u8,
    /// Pages that are done.
    pub done: u32,
    /// It failed: how many of these were looked at to be taken back.
    pub undone: Option<u32>,
    /// The block that goes there next, while it is scrubbed: the target's, but not in its memory yet.
    pub block: Option<Dirty>,
}

/// A domain.
pub struct Domain {
    /// Its number.
    pub domid: DomId,
    /// Its place in all tables.
    pub slot: Slot,
    /// The UUID that the toolstack gave it.
    pub handle: [u8; 16],
    /// May control others (dom0).
    pub privileged: bool,
    /// Its memory is mapped at machine addresses (dom0).
    pub direct_mapped: bool,
    /// Times it was paused by the toolstack.
    pub paused: u32,
    /// The toolstack's vcpu whose call to pause it waits for the vcpus to leave their CPUs.
    pub pausing: Option<VcpuRef>,
    /// Built, but not yet unpaused for the first time.
    pub creating: bool,
    /// SCHEDOP_shutdown's reason, once it has shut down.
    pub shutdown: Option<u32>,
    /// How far its tear-down is.
    pub death: Death,
    /// Virtual CPUs.
    pub vcpus: Vec<Vcpu>,
    /// Limit of its memory in pages.
    pub max_pages: u32,
    /// Its guest physical memory.
    pub p2m: P2m,
    /// The first of its pages that are not in its guest physical memory, see
    /// [`Frames::chain`](crate::frame::Frames::chain).
    pub unmapped: Option<Mfn>,
    /// The `shared_info` page.
    pub shared_info: Mfn,
    /// Where that is mapped now.
    pub shared_info_gfn: Option<Gfn>,
    /// HVM parameters.
    pub params: [u64; HVM_PARAMS],
    /// vm_assist bits.
    pub assist: u64,
    /// Emulated interrupt controller: 2 or 3.
    pub gic_version: u8,
    /// Shared peripheral interrupts that it has.
    pub nr_spis: u16,
    /// The emulated PL011, if it has one, and the port that its back-end is bound to.
    pub vuart: Option<(Vpl011, Port)>,
    /// SCHEDOP_watchdog: when each expires, in ns (0 = off).
    pub watchdogs: [u64; 2],
    /// Nanoseconds that its virtual counter is behind the machine's, as ticks.
    pub cntvoff: u64,
    /// What it prints through the hypervisor.
    pub lines: Lines,
    /// Misdeeds that were reported, see [`Hypervisor::may_report`](crate::hypervisor::Hypervisor::may_report).
    pub reports: u32,
}

impl Domain {
    /// The vcpu numbered `id`, as a reference.
    #[must_use]
    pub fn vcpu(&self, id: u32) -> Option<VcpuRef> {
        let known = (id as usize) < self.vcpus.len();
        known.then_some(VcpuRef {
            slot: self.slot,
            vcpu: VcpuId(id as u8),
        })
    }

    /// References to all its vcpus.
    pub fn vcpu_refs(&self) -> impl Iterator<Item = VcpuRef> + use<> {
        let slot = self.slot;
        (0..self.vcpus.len() as u8).map(move |v| VcpuRef {
            slot,
            vcpu: VcpuId(v),
        })
    }

    /// Whether its vcpus may run.
    #[must_use]
    pub fn may_run(&self) -> bool {
        self.paused == 0 && self.shutdown.is_none() && self.death == Death::Alive
    }
}

/// All domains, by slot.
pub struct Domains {
    table: Vec<Option<Domain>>,
    /// By a domain number's low bits, the slot of the last domain that had such a one: numbers that
    /// exist are seldom more than this apart.
    hints: [Slot; HINTS],
    /// No domain is in this slot or a higher one.
    end: usize,
    next_domid: u16,
}

const HINTS: usize = 256;

fn hint(domid: DomId) -> usize {
    usize::from(domid.0) % HINTS
}

impl Domains {
    /// No domain yet; allocates the table (at boot).
    #[must_use]
    pub fn new() -> Self {
        let mut table = Vec::new();
        table.resize_with(MAX_DOMAINS, || None);
        Self {
            table,
            hints: [Slot(0); HINTS],
            end: 0,
            next_domid: 1,
        }
    }

    /// The domain in a slot.
    #[inline]
    #[must_use]
    pub fn get(&self, slot: Slot) -> Option<&Domain> {
        self.table.get(slot.idx())?.as_ref()
    }

    /// The domain in a slot.
    #[inline]
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut Domain> {
        self.table.get_mut(slot.idx())?.as_mut()
    }

    /// The slot of a domain number that exists, dying ones included.
    #[must_use]
    pub fn find(&self, domid: DomId) -> Option<Slot> {
        self.by_number(domid).map(|d| d.slot)
    }

    fn by_number(&self, domid: DomId) -> Option<&Domain> {
        if domid >= DomId::FIRST_RESERVED {
            return None;
        }
        let likely = self.hints.get(hint(domid)).and_then(|&s| self.get(s));
        likely
            .filter(|d| d.domid == domid)
            .or_else(|| self.iter().find(|d| d.domid == domid))
    }

    /// The slot of a domain number, without domains that are being destroyed.
    #[must_use]
    pub fn find_alive(&self, domid: DomId) -> Option<Slot> {
        self.by_number(domid)
            .filter(|d| d.death == Death::Alive)
            .map(|d| d.slot)
    }

    /// The domain with the lowest number that is not below `domid`, dying ones included.
    #[must_use]
    pub fn next_from(&self, domid: DomId) -> Option<&Domain> {
        self.iter()
            .filter(|d| d.domid >= domid)
            .min_by_key(|d| d.domid)
    }

    /// Slots from this one on hold no domain.
    #[must_use]
    pub fn end(&self) -> Slot {
        Slot(self.end as u8)
    }

    /// All domains, in slot order.
    pub fn iter(&self) -> impl Iterator<Item = &Domain> {
        self.table.iter().take(self.end).flatten()
    }

    /// A slot that nobody uses.
    ///
    /// # Errors
    /// `ENOMEM` when all are taken.
    pub fn free_slot(&self) -> Result<Slot, Errno> {
        let i = self
            .table
            .iter()
            .position(Option::is_none)
            .ok_or(Errno::ENOMEM)?;
        Ok(Slot(i as u8))
    }

    /// The next domain number: numbers rise and are used again only after all others were.
    ///
    /// # Errors
    /// `ENOMEM` when none is free.
    pub fn free_domid(&mut self) -> Result<DomId, Errno> {
        for _ in 0..=MAX_DOMAINS {
            let id = DomId(self.next_domid);
            self.next_domid = match self.next_domid.checked_add(1) {
                Some(next) if next < DomId::FIRST_RESERVED.0 => next,
                _ => 1,
            };
            if self.find(id).is_none() {
                return Ok(id);
            }
        }
        Err(Errno::ENOMEM)
    }

    /// Puts a domain in its slot.
    pub fn insert(&mut self, d: Domain) {
        let place = d.slot.idx();
        if let Some(h) = self.hints.get_mut(hint(d.domid)) {
            *h = d.slot;
        }
        if let Some(s) = self.table.get_mut(place) {
            *s = Some(d);
            self.end = self.end.max(place.saturating_add(1));
        }
    }

    /// Takes a domain out of its slot.
    pub fn remove(&mut self, slot: Slot) -> Option<Domain> {
        let gone = self.table.get_mut(slot.idx())?.take();
        while let Some(last) = self.end.checked_sub(1)
            && self.table.get(last).is_none_or(Option::is_none)
        {
            self.end = last;
        }
        gone
    }
}

impl Default for Domains {
    fn default() -> Self {
        Self::new()
    }
}
