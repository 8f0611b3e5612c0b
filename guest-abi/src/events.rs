// SPDX-License-Identifier: MIT OR Apache-2.0
//! Event channels, of either ABI, as a guest uses them.
//!
//! [`Events`] is the domain's side: it chooses the FIFO ABI where the hypervisor has it and falls
//! back to the 2-level one, makes ports, masks and unmasks them. It does not change once it is made,
//! so that all vcpus share it without a lock. Each vcpu has an [`Upcall`], which finds the events
//! that wait for that vcpu. A port is a [`Channel`], which closes the port when it is dropped.
//!
//! **A new port is masked and pending.** So nothing is lost before its owner is ready: the owner puts
//! the port where its interrupt handler finds it and unmasks it; the first event may be spurious,
//! any later one too (that is the nature of event channels), and none goes missing.
//!
//! Nothing here allocates and nothing is global.
//!
//! ```no_run
//! # use guest_abi::{DomId, Errno, Hypercall, Port};
//! # fn kernel<H: Hypercall + Copy>(hypercall: H) -> Result<(), Errno> {
//! use guest_abi::events::{Area, Events};
//! use guest_abi::mem::SharedPage;
//!
//! static INFO: SharedPage = SharedPage::new(); // the shared-info page comes here
//! static ARRAY: SharedPage = SharedPage::new(); // words of 1024 ports
//! static VCPUS: SharedPage = SharedPage::new(); // areas of up to 32 vcpus
//!
//! // At boot, on vcpu 0 (this kernel's virtual addresses are the guest physical ones):
//! guest_abi::calls::memory::map_shared_info(&hypercall, INFO.identity().gfn)?;
//! let area = |n| Area::new(VCPUS.identity(), n);
//! let (events, mut upcall) =
//!     Events::new(hypercall, INFO.words(), [ARRAY.identity()], area(0))?;
//!
//! let channel = events.alloc_unbound(DomId(0))?;
//! events.unmask(channel.port())?;
//! channel.send()?;
//!
//! // In the handler of the event-channel interrupt (PPI 31, as the device tree says):
//! while upcall.scan(&events, 256, |port| {
//!     if port == channel.port() { /* … wake whoever waits for it … */ }
//! }) {}
//! # Ok(())
//! # }
//! ```

use crate::calls::event as op;
use crate::event_channel::{EVTCHN_2L_NR_CHANNELS, EvtchnFifoControlBlock, EvtchnStatus, fifo};
use crate::mem::{Page, SharedMem};
use crate::xen::{VcpuInfo, Virq, offset};
use crate::{DomId, Errno, Hypercall, PAGE_SIZE, Port, calls};
use core::fmt;
use core::mem::offset_of;
use core::sync::atomic::{Ordering, fence};

/// Bytes of a vcpu's [`Area`].
pub const AREA_SIZE: usize = 128;
/// Where in it the [`VcpuInfo`] is; the FIFO control block comes before.
const AREA_INFO: usize = size_of::<EvtchnFifoControlBlock>();
const _: () =
    assert!(AREA_INFO + size_of::<VcpuInfo>() <= AREA_SIZE && AREA_INFO.is_multiple_of(8));
const READY: usize = offset_of!(EvtchnFifoControlBlock, ready);
const HEAD: usize = offset_of!(EvtchnFifoControlBlock, head);
const QUEUES: u32 = (1 << fifo::MAX_QUEUES) - 1;

/// How often [`Events::unmask`] tries to change a word that changes under its hands before it leaves
/// that to the hypervisor.
const TRIES: u32 = 8;

/// Which ABI the domain uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// Two levels of bitmaps in the shared-info page, 4096 ports, no priorities.
    TwoLevel,
    /// Queues of event words, 1024 ports for each page, 16 priorities.
    Fifo,
}

/// The memory that a vcpu shares with the hypervisor: [`AREA_SIZE`] bytes of a page.
#[derive(Clone, Copy, Debug)]
pub struct Area<M> {
    page: Page<M>,
    offset: usize,
}

impl<M> Area<M> {
    /// The area number `n`, 0 to 31, of a page that nothing else is in.
    ///
    /// # Panics
    /// For a higher number.
    #[must_use]
    pub fn new(page: Page<M>, n: usize) -> Self {
        assert!(n < PAGE_SIZE / AREA_SIZE, "a page has 32 areas");
        Self {
            page,
            offset: n * AREA_SIZE,
        }
    }
}

/// The domain's event channels.
///
/// `M` is the memory of its pages; `S` the pages of the FIFO ABI's event words, such as `[Page<M>;
/// 1]` or a `Vec`. Pages count in the order given, 1024 ports each; a domain that its toolstack gave
/// no more than the usual 1023 ports needs one.
#[derive(Debug)]
pub struct Events<H, M, S> {
    h: H,
    info: M,
    array: S,
    abi: Abi,
}

impl<H: Hypercall + Clone, M: SharedMem, S: AsRef<[Page<M>]>> Events<H, M, S> {
    /// Sets up event channels, on vcpu 0, whose [`Upcall`] it returns too. Every port that there is
    /// becomes masked.
    ///
    /// `info` is the shared-info page, mapped already ([`calls::memory::map_shared_info`]). Without
    /// pages in `array`, or when the hypervisor refuses the FIFO ABI, it is the 2-level one.
    ///
    /// # Errors
    /// `EINVAL` or `ENOSPC` when the hypervisor, which is on the FIFO ABI then, does not take a page
    /// of `array`: it has more than 128, or an earlier kernel gave pages (and did not
    /// [reset](calls::event::reset()) before it started this one).
    pub fn new(h: H, info: M, array: S, area: Area<M>) -> Result<(Self, Upcall<M>), Errno> {
        let upcall = Upcall::new(area, false);
        let fifo = !array.as_ref().is_empty() && upcall.init_control(&h, 0).is_ok();
        let events = Self {
            h,
            info,
            array,
            abi: if fifo { Abi::Fifo } else { Abi::TwoLevel },
        };
        if fifo {
            for page in events.array.as_ref() {
                for n in 0..PAGE_SIZE / 4 {
                    page.mem.store32(n * 4, fifo::MASKED);
                }
                op::expand_array(&events.h, page.gfn.0)?;
            }
        } else {
            for n in 0..EVTCHN_2L_NR_CHANNELS as usize / 32 {
                events.info.fetch_or32(offset::EVTCHN_MASK + n * 4, !0);
            }
        }
        Ok((events, upcall))
    }

    /// Makes ready a vcpu other than 0: before it is started, or on itself.
    ///
    /// # Errors
    /// `ENOENT` when there is no such vcpu; `EINVAL` when that was done before.
    pub fn add_vcpu(&self, vcpu: u32, area: Area<M>) -> Result<Upcall<M>, Errno> {
        let upcall = Upcall::new(area, true);
        calls::vcpu::register_vcpu_info(
            &self.h,
            vcpu,
            upcall.area.page.gfn.0,
            (upcall.area.offset + AREA_INFO) as u32,
        )?;
        if self.abi == Abi::Fifo {
            upcall.init_control(&self.h, vcpu)?;
        }
        Ok(upcall)
    }

    /// The ABI in use.
    #[must_use]
    pub fn abi(&self) -> Abi {
        self.abi
    }

    /// How many ports there can be; port 0 is none of them.
    #[must_use]
    pub fn ports(&self) -> u32 {
        match self.abi {
            Abi::TwoLevel => EVTCHN_2L_NR_CHANNELS,
            Abi::Fifo => {
                let pages = u32::try_from(self.array.as_ref().len()).unwrap_or(u32::MAX);
                pages.saturating_mul(fifo::WORDS_PER_PAGE)
            }
        }
    }

    /// Makes a port that the domain `remote` can connect to.
    ///
    /// # Errors
    /// `ENOSPC` when no port is left, or none that the pages of event words have room for.
    pub fn alloc_unbound(&self, remote: DomId) -> Result<Channel<H>, Errno> {
        self.adopt(op::alloc_unbound(&self.h, DomId::SELF, remote)?)
    }

    /// Connects to a port that another domain made for this one.
    ///
    /// # Errors
    /// `EINVAL` when that port does not wait for this domain; `ENOSPC` as
    /// [`Events::alloc_unbound`].
    pub fn bind_interdomain(&self, remote: DomId, port: Port) -> Result<Channel<H>, Errno> {
        self.adopt(op::bind_interdomain(&self.h, remote, port)?)
    }

    /// Binds a virtual interrupt; the vcpu is 0 for those that the domain has once.
    ///
    /// # Errors
    /// `EEXIST` when it is bound; `EINVAL` for a vcpu other than 0 when it is a global one;
    /// `ENOENT` when there is no such vcpu; `ENOSPC` as [`Events::alloc_unbound`].
    pub fn bind_virq(&self, virq: Virq, vcpu: u32) -> Result<Channel<H>, Errno> {
        self.adopt(op::bind_virq(&self.h, virq, vcpu)?)
    }

    /// Makes a port by which the domain's vcpus signal `vcpu`.
    ///
    /// # Errors
    /// `ENOENT` when there is no such vcpu; `ENOSPC` as [`Events::alloc_unbound`].
    pub fn bind_ipi(&self, vcpu: u32) -> Result<Channel<H>, Errno> {
        self.adopt(op::bind_ipi(&self.h, vcpu)?)
    }

    /// Takes up a port that there is already, such as those that the toolstack made for the console
    /// and for xenstore. Like every new channel it is masked, pending, and closed when it is
    /// dropped; what the toolstack made cannot be made again.
    ///
    /// # Errors
    /// `ENOSPC` for a port that the pages of event words have no room for. It is closed then.
    pub fn adopt(&self, port: Port) -> Result<Channel<H>, Errno> {
        let channel = Channel {
            h: self.h.clone(),
            port,
        };
        match self.place(port) {
            None => Err(Errno::ENOSPC),
            Some(Place::Word(mem, at)) => {
                mem.fetch_or32(at, fifo::MASKED | fifo::PENDING);
                Ok(channel)
            }
            Some(Place::Bit(at, bit)) => {
                self.info.fetch_or32(offset::EVTCHN_MASK + at, bit);
                self.info.fetch_or32(offset::EVTCHN_PENDING + at, bit);
                Ok(channel)
            }
        }
    }

    /// Masks a port: its events wait until it is unmasked. A port that cannot be is masked anyway.
    pub fn mask(&self, port: Port) {
        match self.place(port) {
            None => {}
            Some(Place::Word(mem, at)) => {
                mem.fetch_or32(at, fifo::MASKED);
            }
            Some(Place::Bit(at, bit)) => {
                self.info.fetch_or32(offset::EVTCHN_MASK + at, bit);
            }
        }
    }

    /// Unmasks a port. When an event waits, the hypervisor is asked to tell of it (to the vcpu that
    /// the port is bound to, which may be another one), else no call is made.
    ///
    /// # Errors
    /// `EINVAL` when there is no such port.
    pub fn unmask(&self, port: Port) -> Result<(), Errno> {
        match self.place(port) {
            None => return Err(Errno::EINVAL),
            Some(Place::Word(mem, at)) => {
                let mut word = mem.load32(at);
                for _ in 0..TRIES {
                    if word & fifo::MASKED == 0 {
                        return Ok(());
                    }
                    if word & fifo::PENDING != 0 {
                        break;
                    }
                    // Not while the hypervisor links the word.
                    let old = word & !fifo::BUSY;
                    match mem.compare_exchange32(at, old, old & !fifo::MASKED) {
                        Ok(_) => return Ok(()),
                        Err(now) => word = now,
                    }
                }
            }
            Some(Place::Bit(at, bit)) => {
                self.info.fetch_and32(offset::EVTCHN_MASK + at, !bit);
                // An event from here on is told of; one from before is seen here.
                fence(Ordering::SeqCst);
                if self.info.load32(offset::EVTCHN_PENDING + at) & bit == 0 {
                    return Ok(());
                }
                // The hypervisor tells only of what it unmasks itself.
                self.info.fetch_or32(offset::EVTCHN_MASK + at, bit);
            }
        }
        op::unmask(&self.h, port)
    }

    /// Whether an event waits at a port, masked or not.
    #[must_use]
    pub fn is_pending(&self, port: Port) -> bool {
        match self.place(port) {
            None => false,
            Some(Place::Word(mem, at)) => mem.load32(at) & fifo::PENDING != 0,
            Some(Place::Bit(at, bit)) => self.info.load32(offset::EVTCHN_PENDING + at) & bit != 0,
        }
    }

    /// Takes an event, if one waits: for who polls a port and keeps it masked
    /// ([`calls::sched::poll`] sleeps until one of some ports has an event, masked or not).
    pub fn take(&self, port: Port) -> bool {
        match self.place(port) {
            None => false,
            Some(Place::Word(mem, at)) => mem.fetch_and32(at, !fifo::PENDING) & fifo::PENDING != 0,
            Some(Place::Bit(at, bit)) => {
                self.info.fetch_and32(offset::EVTCHN_PENDING + at, !bit) & bit != 0
            }
        }
    }

    /// Where a port's bits are. `None` when it can be no port.
    #[inline]
    fn place(&self, port: Port) -> Option<Place<'_, M>> {
        if port.0 == 0 {
            return None;
        }
        match self.abi {
            Abi::Fifo => {
                let page = self
                    .array
                    .as_ref()
                    .get((port.0 / fifo::WORDS_PER_PAGE) as usize)?;
                let n = (port.0 % fifo::WORDS_PER_PAGE) as usize;
                Some(Place::Word(&page.mem, n * 4))
            }
            Abi::TwoLevel => (port.0 < EVTCHN_2L_NR_CHANNELS)
                .then(|| Place::Bit(port.0 as usize / 32 * 4, 1 << (port.0 % 32))),
        }
    }
}

/// Where a port's bits are.
enum Place<'a, M> {
    /// The word at an offset.
    Word(&'a M, usize),
    /// A bit in the words at an offset of each bitmap.
    Bit(usize, u32),
}

/// What one vcpu needs to find its events. It is used on that vcpu alone.
#[derive(Debug)]
pub struct Upcall<M> {
    area: Area<M>,
    /// Its [`VcpuInfo`] is in the area; else in the shared-info page.
    registered: bool,
    /// FIFO: queues that may have events, and where in each the last scan stopped, 0 for the head.
    ready: u32,
    heads: [u32; fifo::MAX_QUEUES],
    /// 2-level: words that may have events, and with which to go on.
    sel: u64,
    next: u32,
}

impl<M: SharedMem> Upcall<M> {
    fn new(area: Area<M>, registered: bool) -> Self {
        area.page.mem.write(area.offset, &[0; AREA_SIZE]);
        Self {
            area,
            registered,
            ready: 0,
            heads: [0; fifo::MAX_QUEUES],
            sel: 0,
            next: 0,
        }
    }

    fn init_control(&self, h: &impl Hypercall, vcpu: u32) -> Result<(), Errno> {
        op::init_control(h, vcpu, self.area.page.gfn.0, self.area.offset as u32).map(drop)
    }

    /// The page with the [`VcpuInfo`], and where it is.
    fn info<'a, H, S>(&'a self, events: &'a Events<H, M, S>) -> (&'a M, usize) {
        if self.registered {
            (&self.area.page.mem, self.area.offset + AREA_INFO)
        } else {
            (&events.info, 0)
        }
    }

    /// Whether the hypervisor says that events wait for this vcpu. The interrupt's level follows it.
    #[must_use]
    pub fn is_pending<H, S>(&self, events: &Events<H, M, S>) -> bool {
        let (mem, at) = self.info(events);
        mem.load32(at + offset::UPCALL_PENDING) & 0xff != 0
    }

    /// Takes the events that wait at ports that are not masked, and calls `handle` for each: those
    /// of higher priority first with the FIFO ABI, all in turn with the 2-level one. Returns `false`
    /// when there are no more, and `true` when `budget` was used up before (about one unit an
    /// event): the caller may do something else and must then call it again, since there will be no
    /// further interrupt.
    ///
    /// `handle` may use [`Events`]: mask, unmask, take, make ports. What is in the shared pages is
    /// not trusted: whatever stands there, the work is bounded by `budget` and `handle` gets only
    /// ports that can be.
    #[must_use = "when it returns true events are left, and no interrupt will come for them"]
    pub fn scan<H: Hypercall + Clone, S: AsRef<[Page<M>]>>(
        &mut self,
        events: &Events<H, M, S>,
        budget: u32,
        mut handle: impl FnMut(Port),
    ) -> bool {
        let mut left = budget;
        loop {
            let (mem, at) = self.info(events);
            mem.fetch_and32(at + offset::UPCALL_PENDING, !0xff);
            // What is found empty from here on and filled after sets the flag again.
            fence(Ordering::SeqCst);
            let done = match events.abi {
                Abi::Fifo => self.queues(events, &mut left, &mut handle),
                Abi::TwoLevel => self.bitmaps(events, &mut left, &mut handle),
            };
            if !done {
                return true;
            }
            if !self.is_pending(events) {
                return false;
            }
            if left == 0 {
                return true;
            }
            left -= 1;
        }
    }

    /// Whether every queue was emptied.
    fn queues<H: Hypercall + Clone, S: AsRef<[Page<M>]>>(
        &mut self,
        events: &Events<H, M, S>,
        left: &mut u32,
        handle: &mut impl FnMut(Port),
    ) -> bool {
        let control = self.area.offset;
        loop {
            // An event of a higher priority that came meanwhile goes first.
            self.ready |= self.area.page.mem.fetch_and32(control + READY, 0) & QUEUES;
            if self.ready == 0 {
                return true;
            }
            if *left == 0 {
                return false;
            }
            *left -= 1;
            let queue = self.ready.trailing_zeros();
            let Some(head) = self.heads.get_mut(queue as usize) else {
                return true;
            };
            let port = match *head {
                0 => self
                    .area
                    .page
                    .mem
                    .load32(control + HEAD + 4 * queue as usize),
                port => port,
            };
            let Some(Place::Word(mem, at)) = events.place(Port(port)) else {
                // No port: the queue is empty, or its link was overwritten.
                *head = 0;
                self.ready &= !(1 << queue);
                continue;
            };
            let word = mem.fetch_and32(at, !(fifo::LINKED | fifo::LINK_MASK));
            *head = word & fifo::LINK_MASK;
            if *head == 0 {
                self.ready &= !(1 << queue);
            }
            // An event after this finds the word unlinked, and links it again.
            if word & (fifo::PENDING | fifo::MASKED) == fifo::PENDING
                && mem.fetch_and32(at, !fifo::PENDING) & fifo::PENDING != 0
            {
                handle(Port(port));
            }
        }
    }

    /// Whether every word that was selected was looked at.
    fn bitmaps<H: Hypercall + Clone, S: AsRef<[Page<M>]>>(
        &mut self,
        events: &Events<H, M, S>,
        left: &mut u32,
        handle: &mut impl FnMut(Port),
    ) -> bool {
        loop {
            let (mem, at) = self.info(events);
            let low = mem.fetch_and32(at + offset::PENDING_SEL, 0);
            let high = mem.fetch_and32(at + offset::PENDING_SEL + 4, 0);
            self.sel |= u64::from(low) | u64::from(high) << 32;
            if self.sel == 0 {
                return true;
            }
            if *left == 0 {
                return false;
            }
            // The next selected word, in turn, so that none waits for ever.
            let word = (self.next + self.sel.rotate_right(self.next).trailing_zeros()) % 64;
            self.next = (word + 1) % 64;
            self.sel &= !(1 << word);
            for half in [word * 2, word * 2 + 1] {
                let at = half as usize * 4;
                let mut bits = events.info.load32(offset::EVTCHN_PENDING + at)
                    & !events.info.load32(offset::EVTCHN_MASK + at);
                while bits != 0 {
                    let bit = bits.trailing_zeros();
                    bits &= bits - 1;
                    let port = half * 32 + bit;
                    *left = left.saturating_sub(1);
                    if port != 0
                        && events
                            .info
                            .fetch_and32(offset::EVTCHN_PENDING + at, !(1 << bit))
                            & 1 << bit
                            != 0
                    {
                        handle(Port(port));
                    }
                }
            }
        }
    }
}

/// A port of the guest's own. It is closed when it is dropped.
pub struct Channel<H: Hypercall> {
    h: H,
    /// 0 when it is not ours any more.
    port: Port,
}

impl<H: Hypercall> Channel<H> {
    /// Its number.
    #[must_use]
    pub fn port(&self) -> Port {
        self.port
    }

    /// Signals the other end.
    ///
    /// # Errors
    /// `EINVAL` for a virtual interrupt's port. A port that nobody is connected to takes the signal
    /// and loses it.
    #[inline]
    pub fn send(&self) -> Result<(), Errno> {
        op::send(&self.h, self.port)
    }

    /// Chooses the vcpu that is told of its events; a new port's is vcpu 0, but for IPIs and for the
    /// virtual interrupts of a vcpu.
    ///
    /// # Errors
    /// `EINVAL` for a port that belongs to one vcpu; `ENOENT` when there is no such vcpu.
    pub fn bind_vcpu(&self, vcpu: u32) -> Result<(), Errno> {
        op::bind_vcpu(&self.h, self.port, vcpu)
    }

    /// Sets its priority, 0 (highest) to 15 (lowest); a new port's is 7.
    ///
    /// # Errors
    /// `ENOSYS` with the 2-level ABI; `EINVAL` for another priority.
    pub fn set_priority(&self, priority: u32) -> Result<(), Errno> {
        op::set_priority(&self.h, self.port, priority)
    }

    /// What it is and to whom it is connected.
    ///
    /// # Errors
    /// The general ones.
    pub fn status(&self) -> Result<EvtchnStatus, Errno> {
        op::status(&self.h, DomId::SELF, self.port)
    }

    /// Closes it, and tells whether that went well.
    ///
    /// # Errors
    /// `EINVAL` when it was not open any more.
    pub fn close(mut self) -> Result<(), Errno> {
        let port = core::mem::take(&mut self.port);
        op::close(&self.h, port)
    }

    /// Gives the port up without closing it.
    #[must_use]
    pub fn into_port(mut self) -> Port {
        core::mem::take(&mut self.port)
    }
}

impl<H: Hypercall> Drop for Channel<H> {
    fn drop(&mut self) {
        if self.port.0 != 0 {
            // That it was closed already is all that can be wrong, and does not matter.
            let _ = op::close(&self.h, self.port);
        }
    }
}

impl<H: Hypercall> fmt::Debug for Channel<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Channel").field(&self.port).finish()
    }
}

#[cfg(test)]
mod tests;
