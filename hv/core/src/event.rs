// SPDX-License-Identifier: MIT OR Apache-2.0
//! Event channels: `event_channel.h` of Xen's public headers, both ABIs.
//!
//! [`Events`] owns every domain's table of ports. A port is *bound* to what may raise it: another
//! domain's port, a virtual interrupt (VIRQ), or another vcpu of the domain (IPI). Raising a port
//! ends in words that the guest shares:
//!
//! - **2-level** (from birth): a bit in `shared_info.evtchn_pending`, then, if the bit in
//!   `evtchn_mask` is clear, a bit per word of 64 ports in the vcpu's `evtchn_pending_sel`. 4,096 ports.
//! - **FIFO** (after `EVTCHNOP_init_control`): a word per port in guest pages; unmasked words are
//!   linked to a list, one list for each of 16 priorities of each vcpu, whose head and `ready` bit
//!   are in the vcpu's control block. 131,072 ports.
//!
//! Either way the vcpu's `evtchn_upcall_pending` byte is set last, and only the step from 0 to 1 is
//! told to the caller (in [`Notify`]), who then raises the line of the event interrupt.
//!
//! Shared words are the guest's to corrupt: everything that the hypervisor relies on (states,
//! queue tails) is kept here, each shared word is read once, and the only loop on one
//! has at most five rounds (XSA-295). A guest that scribbles loses its own events only; one that keeps a word from
//! being updated at all is to be ended ([`Also::Contended`]).
//!
//! The ports are bound while the caller holds the hypervisor lock; what runs beside are guests.
//! Memory order: every update of a shared word is an acquire-release atomic, and a load that follows one is an
//! acquire load, which AArch64 keeps in program order. So "set pending, then look at the mask"
//! here and "clear the mask, then look at pending" in the guest cannot both miss.

use alloc::vec::Vec;

use crate::machine::{Contended, PhysMem, cost};
use crate::types::{
    DomId, Errno, MAX_DOMAINS, MAX_VCPUS, Mfn, PAGE_SIZE, Pa, Port, Slot, VcpuId, VcpuRef,
};

#[cfg(test)]
mod tests;

/// Ports of a domain under the 2-level ABI (64 words of 64 bits), port 0 included.
pub const PORTS_2L: u32 = 4096;
/// Ports of a domain under the FIFO ABI, port 0 included (`EVTCHN_FIFO_NR_CHANNELS`).
pub const PORTS_FIFO: u32 = 1 << FIFO_LINK_BITS;
/// Bits of a link in a FIFO event word; what `EVTCHNOP_init_control` answers in `link_bits`.
pub const FIFO_LINK_BITS: u8 = 17;
/// Pages of a FIFO event array, 1,024 words each.
pub const FIFO_ARRAY_PAGES: usize = 128;
/// Bytes of `evtchn_fifo_control_block_t`.
pub const FIFO_CONTROL_BYTES: u32 = 72;
/// Virtual interrupts (`NR_VIRQS` of `xen.h`).
pub const NR_VIRQS: u32 = 24;
/// Ports that one `SCHEDOP_poll` may name.
pub const POLL_MAX: usize = 128;

/// `shared_info.evtchn_pending`, bytes from the page's start.
const SHARED_PENDING: u64 = 48;
/// `shared_info.evtchn_mask`.
const SHARED_MASK: u64 = 560;
/// Bytes of `vcpu_info_t`; `evtchn_upcall_pending` is its first byte.
const VCPU_INFO_BYTES: u64 = 48;
/// `vcpu_info.evtchn_pending_sel`.
const INFO_SEL: u64 = 8;

/// FIFO event word: the event was raised and not yet taken.
const PENDING: u32 = 1 << 31;
/// FIFO event word: not to be linked.
const MASKED: u32 = 1 << 30;
/// FIFO event word: on a list.
const LINKED: u32 = 1 << 29;
/// FIFO event word: the hypervisor is changing the link; the guest must not unmask.
const BUSY: u32 = 1 << 28;
/// FIFO event word: port of the next event on the list.
const LINK: u32 = PORTS_FIFO - 1;

/// Priorities of FIFO events: 0 is the highest.
const PRIORITIES: usize = 16;
/// Priority that a port is bound with (`EVTCHN_FIFO_PRIORITY_DEFAULT`).
const PRIORITY_DEFAULT: u8 = 7;
/// `evtchn_fifo_control_block_t.head`.
const CONTROL_HEAD: u64 = 8;

/// Closed ports that are still on a list, at which one call looks.
const TRIES: u32 = 256;
/// Saved events that one call raises.
const RAISES: u32 = 64;

/// A port table grows by so many entries, as Xen's does (a port is *valid* once it is in the
/// table, and guests can tell a valid closed port from an invalid one).
const GROW: usize = 64;

/// True if a VIRQ is one per system or domain, bound to vcpu 0 first and moved freely; false if it
/// is one per vcpu (TIMER, DEBUG, XENOPROF, XENPMU). On Arm the architecture's are global.
#[must_use]
pub const fn virq_is_global(virq: u32) -> bool {
    !matches!(virq, 0 | 1 | 7 | 13)
}

/// A part of the hypervisor that takes events itself: such ports have no guest-visible side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consumer {
    /// The emulated PL011 console of the port's domain.
    Vpl011,
}

/// What is to be done beside waking vcpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Also {
    /// The event is for this part of the hypervisor, on behalf of the domain.
    Consumer(Consumer),
    /// A word that the domain shares could not be updated: it is to be ended, and has lost the event.
    Contended,
}

/// What an operation raised, for the caller to act on. All of it is in one domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Notify {
    /// The domain whose vcpus are named below.
    pub slot: Slot,
    /// Bit n: vcpu n's `evtchn_upcall_pending` became 1. Raise its event interrupt, wake it.
    pub upcalls: u64,
    /// Bit n: vcpu n was waiting in `SCHEDOP_poll` and is to be woken.
    pub pollers: u64,
    /// See [`Also`].
    pub also: Option<Also>,
}

impl Notify {
    /// Nothing to do.
    #[inline]
    pub const fn none(slot: Slot) -> Self {
        Self {
            slot,
            upcalls: 0,
            pollers: 0,
            also: None,
        }
    }

    /// See [`Also::Contended`].
    #[inline]
    const fn contended(slot: Slot) -> Self {
        Self {
            also: Some(Also::Contended),
            ..Self::none(slot)
        }
    }

    /// True if the caller has nothing to do.
    #[must_use]
    #[inline]
    pub const fn is_none(&self) -> bool {
        self.upcalls | self.pollers == 0 && self.also.is_none()
    }

    /// The vcpus of `upcalls`.
    #[inline]
    pub fn upcall_vcpus(&self) -> impl Iterator<Item = VcpuRef> + use<> {
        vcpus_of(self.slot, self.upcalls)
    }

    /// The vcpus of `pollers`.
    #[inline]
    pub fn poller_vcpus(&self) -> impl Iterator<Item = VcpuRef> + use<> {
        vcpus_of(self.slot, self.pollers)
    }
}

fn vcpus_of(slot: Slot, mut set: u64) -> impl Iterator<Item = VcpuRef> {
    core::iter::from_fn(move || {
        if set == 0 {
            return None;
        }
        let vcpu = VcpuId(set.trailing_zeros() as u8);
        set &= set.wrapping_sub(1);
        Some(VcpuRef { slot, vcpu })
    })
}

/// How far a sliced operation came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// All done.
    Done,
    /// Call again.
    More,
    /// A word that the domain shares could not be updated: it is to be ended.
    Contended,
}

/// What `SCHEDOP_poll` is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Poll {
    /// A named port is pending: return to the guest at once.
    Pending,
    /// Block the vcpu until it is woken (by [`Notify::pollers`], an interrupt or its timeout), then
    /// call [`Events::poll_done`].
    Wait,
}

/// What a port is bound to: `EVTCHNSTAT_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Not in use (0).
    Closed,
    /// Waits for this domain to bind (1).
    Unbound(DomId),
    /// Bound to a port of that domain (2).
    Interdomain(DomId, Port),
    /// Bound to a VIRQ (4).
    Virq(u32),
    /// For the domain's own use (5).
    Ipi,
}

/// The answer of `EVTCHNOP_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// What it is bound to.
    pub binding: Binding,
    /// The vcpu that is notified.
    pub vcpu: VcpuId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// Port 0.
    Reserved,
    Unbound(DomId),
    Interdomain(Slot, u32),
    Virq(u8),
    Ipi,
}

/// One port.
#[derive(Clone, Copy, Debug)]
struct Channel {
    state: State,
    /// The vcpu that is notified.
    vcpu: u8,
    /// FIFO priority of events to come.
    priority: u8,
    /// The list (of which vcpu and priority) that the word was linked to last.
    last_vcpu: u8,
    last_priority: u8,
    /// Raised while the FIFO array had no word for it.
    saved: bool,
    xen: Option<Consumer>,
}

const _: () = assert!(size_of::<Channel>() <= 16);

impl Channel {
    const FREE: Self = Self {
        state: State::Free,
        vcpu: 0,
        priority: PRIORITY_DEFAULT,
        last_vcpu: 0,
        last_priority: PRIORITY_DEFAULT,
        saved: false,
        xen: None,
    };

    /// True if the port has a side that the guest sees: shared words of other ports are not touched.
    const fn usable(&self) -> bool {
        self.xen.is_none() && !matches!(self.state, State::Free | State::Reserved)
    }
}

#[derive(Clone, Debug)]
struct Vcpu {
    /// Where its `vcpu_info` is, if anywhere yet.
    info: Option<Pa>,
    /// The guest registered `info`: a page reference is held.
    registered: bool,
    /// The one port that it polls, 0 for any.
    poll_port: u32,
    /// Ports bound to VIRQs, 0 for none.
    virqs: [u32; NR_VIRQS as usize],
    /// FIFO control block. A page reference is held.
    control: Option<Pa>,
    /// Last port of each FIFO list, 0 for none.
    tails: [u32; PRIORITIES],
}

impl Vcpu {
    const NEW: Self = Self {
        info: None,
        registered: false,
        poll_port: 0,
        virqs: [0; NR_VIRQS as usize],
        control: None,
        tails: [0; PRIORITIES],
    };
}

/// Sets the upcall byte of a `vcpu_info`; true if it was clear.
#[inline]
fn mark(info: Option<Pa>, mem: &impl PhysMem) -> Result<bool, Contended> {
    match info {
        Some(info) => Ok(mem.swap8(info, 1)? == 0),
        None => Ok(false),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Absent,
    Live,
    Dying,
}

#[derive(Debug)]
struct Domain {
    life: Life,
    domid: DomId,
    fifo: bool,
    /// Highest port that may be in use.
    max_port: u32,
    /// Bit n of word m: port 64 m + n of the table is closed.
    closed: Vec<u64>,
    /// Where the search for a closed port goes on that is on no list any more; 0: at the lowest.
    search: u32,
    /// From this port on, events are left that were saved until their words came; 0: none.
    late: u32,
    /// Progress of a reset or destroy: the next port to close; 0 if none is under way.
    cursor: u32,
    /// Ports in use, all and of these the hypervisor's.
    in_use: u32,
    in_use_xen: u32,
    /// Vcpus in `SCHEDOP_poll`.
    poll_mask: u64,
    shared: Option<Pa>,
    ports: Vec<Channel>,
    vcpus: Vec<Vcpu>,
    /// Pages of the FIFO array. A page reference is held for each.
    array: Vec<Pa>,
}

impl Domain {
    const ABSENT: Self = Self {
        life: Life::Absent,
        domid: DomId::INVALID,
        fifo: false,
        max_port: 0,
        closed: Vec::new(),
        search: 0,
        late: 0,
        cursor: 0,
        in_use: 0,
        in_use_xen: 0,
        poll_mask: 0,
        shared: None,
        ports: Vec::new(),
        vcpus: Vec::new(),
        array: Vec::new(),
    };

    #[inline]
    fn chan(&self, port: u32) -> Result<&Channel, Errno> {
        self.ports.get(port as usize).ok_or(Errno::EINVAL)
    }

    #[inline]
    fn chan_mut(&mut self, port: u32) -> Result<&mut Channel, Errno> {
        self.ports.get_mut(port as usize).ok_or(Errno::EINVAL)
    }

    /// A guest's vcpu number, if it has that vcpu.
    fn vcpu_id(&self, vcpu: u32) -> Result<u8, Errno> {
        if (vcpu as usize) < self.vcpus.len() {
            Ok(vcpu as u8)
        } else {
            Err(Errno::ENOENT)
        }
    }

    /// The shared words and the bit of a port, 2-level: pending, mask, bit.
    #[inline]
    fn words_2l(&self, port: u32) -> Option<(Pa, Pa, u64)> {
        let shared = self.shared?;
        if port >= PORTS_2L {
            return None;
        }
        let off = u64::from(port / 64) << 3;
        Some((
            shared.add(SHARED_PENDING).add(off),
            shared.add(SHARED_MASK).add(off),
            1 << (port % 64),
        ))
    }

    /// The event word of a port, FIFO.
    #[inline]
    fn word(&self, port: u32) -> Option<Pa> {
        let page = self.array.get(port as usize / 1024)?;
        Some(page.add(u64::from(port % 1024) << 2))
    }

    /// Raises a port.
    #[inline(never)]
    fn raise(&mut self, slot: Slot, port: u32, mem: &impl PhysMem) -> Notify {
        self.raise_at_once(slot, port, mem)
    }

    /// As [`Domain::raise`], in the midst of its caller: what has no consequences, a port that is pending or masked,
    /// ends soon.
    #[inline(always)]
    fn raise_at_once(&mut self, slot: Slot, port: u32, mem: &impl PhysMem) -> Notify {
        // An update that fails ends in a value of its own, not in a Result of a Notify, which would be taken apart in memory.
        if self.fifo {
            return self
                .raise_fifo(slot, port, mem)
                .unwrap_or(Notify::contended(slot));
        }
        let (Ok(chan), Some((pending, mask, bit))) = (self.chan(port), self.words_2l(port)) else {
            return Notify::none(slot);
        };
        let Ok(old) = mem.or64(pending, bit) else {
            return Notify::contended(slot);
        };
        if old & bit != 0 {
            return Notify::none(slot);
        }
        let masked = mem.load64(mask) & bit != 0;
        if masked && self.poll_mask == 0 {
            return Notify::none(slot);
        }
        let upcalls = if masked {
            0
        } else {
            match self.select(chan.vcpu, port, mem) {
                Ok(upcalls) => upcalls,
                Err(Contended) => return Notify::contended(slot),
            }
        };
        self.raised(slot, port, upcalls)
    }

    /// What follows when a port has become pending.
    #[inline]
    fn raised(&mut self, slot: Slot, port: u32, upcalls: u64) -> Notify {
        let pollers = if self.poll_mask == 0 {
            0
        } else {
            self.take_pollers(port)
        };
        Notify {
            upcalls,
            pollers,
            ..Notify::none(slot)
        }
    }

    /// Sets the port's word in the vcpu's selector; gives the vcpu's bit if it is to be notified.
    #[inline]
    fn select(&self, vcpu: u8, port: u32, mem: &impl PhysMem) -> Result<u64, Contended> {
        let Some(v) = self.vcpus.get(usize::from(vcpu)) else {
            return Ok(0);
        };
        let Some(info) = v.info else { return Ok(0) };
        let sel = 1u64 << (port / 64 % 64);
        if mem.or64(info.add(INFO_SEL), sel)? & sel == 0 && mark(v.info, mem)? {
            Ok(vcpu_bit(vcpu))
        } else {
            Ok(0)
        }
    }

    #[inline(never)]
    fn raise_fifo(
        &mut self,
        slot: Slot,
        port: u32,
        mem: &impl PhysMem,
    ) -> Result<Notify, Contended> {
        let word = self.word(port);
        let Some(chan) = self.ports.get_mut(port as usize) else {
            return Ok(Notify::none(slot));
        };
        let Some(word) = word else {
            chan.saved = true;
            return Ok(Notify::none(slot));
        };
        let old = mem.or32(word, PENDING)?;
        let upcalls = if old & (MASKED | LINKED) == 0 {
            self.link(port, word, mem)?
        } else {
            0
        };
        if old & PENDING != 0 {
            // Who polls was told when it became pending.
            return Ok(Notify {
                upcalls,
                ..Notify::none(slot)
            });
        }
        Ok(self.raised(slot, port, upcalls))
    }

    /// Links a port that is pending, was not masked and was on no list; gives its vcpu's bit if
    /// that is to be notified.
    #[inline(never)]
    fn link(&mut self, port: u32, word: Pa, mem: &impl PhysMem) -> Result<u64, Contended> {
        let Some(chan) = self.ports.get_mut(port as usize) else {
            return Ok(0);
        };
        let (vcpu, priority) = (chan.vcpu, chan.priority);
        let Some(v) = self.vcpus.get(usize::from(vcpu)) else {
            return Ok(0);
        };
        let info = v.info;
        // Without a control block the guest must not have unmasked the event: it stays pending.
        let Some(control) = v.control else {
            return Ok(0);
        };
        if mem.or32(word, LINKED)? & LINKED != 0 {
            return Ok(0);
        }
        // We put LINKED there, so the event is on no list. If it ended its last list, then the
        // guest has emptied that list, and nothing may be appended to this word as its tail.
        let last = core::mem::replace(&mut chan.last_priority, priority);
        let last_vcpu = core::mem::replace(&mut chan.last_vcpu, vcpu);
        if let Some(tail) = tail_mut(&mut self.vcpus, last_vcpu, last)
            && *tail == port
        {
            *tail = 0;
        }
        let Some(tail) = tail_mut(&mut self.vcpus, vcpu, priority) else {
            return Ok(0);
        };
        let before = core::mem::replace(tail, port);
        if before != 0
            && let Some(before) = self.word(before)
            && set_link(before, port, mem)?
        {
            return Ok(0);
        }
        mem.store32(
            control.add(CONTROL_HEAD).add(u64::from(priority) << 2),
            port,
        );
        let ready = 1u32 << (priority & 15);
        if mem.or32(control, ready)? & ready == 0 && mark(info, mem)? {
            Ok(vcpu_bit(vcpu))
        } else {
            Ok(0)
        }
    }

    /// Clears a port's mask, and raises what waited behind it at `vcpu`.
    fn unmask(
        &mut self,
        slot: Slot,
        port: u32,
        vcpu: u8,
        mem: &impl PhysMem,
    ) -> Result<Notify, Contended> {
        let mut n = Notify::none(slot);
        if self.fifo {
            if let Some(word) = self.word(port)
                && mem.and32(word, !MASKED)? & PENDING != 0
            {
                return self.raise_fifo(slot, port, mem);
            }
        } else if let Some((pending, mask, bit)) = self.words_2l(port)
            && mem.and64(mask, !bit)? & bit != 0
            && mem.load64(pending) & bit != 0
        {
            n.upcalls = self.select(vcpu, port, mem)?;
        }
        Ok(n)
    }

    /// Takes the vcpus out of the poll mask that wait for this port.
    #[cold]
    fn take_pollers(&mut self, port: u32) -> u64 {
        let mut woken = 0;
        for (v, bit) in self.vcpus.iter_mut().zip((0..MAX_VCPUS).map(|n| 1u64 << n)) {
            if self.poll_mask & bit != 0 && (v.poll_port == 0 || v.poll_port == port) {
                v.poll_port = 0;
                woken |= bit;
            }
        }
        self.poll_mask &= !woken;
        woken
    }

    fn is_pending(&self, port: u32, mem: &impl PhysMem) -> bool {
        if self.fifo {
            self.word(port)
                .is_some_and(|w| mem.load32(w) & PENDING != 0)
        } else {
            self.words_2l(port)
                .is_some_and(|(pending, _, bit)| mem.load64(pending) & bit != 0)
        }
    }

    fn clear_pending(&mut self, port: u32, mem: &impl PhysMem) -> Result<(), Contended> {
        match self.word(port) {
            // It may be on a list: the guest takes it off, and drops what is not pending.
            Some(word) if self.fifo => drop(mem.and32(word, !PENDING)?),
            // So that it is not saved when its word comes.
            _ => {
                if let Some((pending, _, bit)) = self.words_2l(port) {
                    mem.and64(pending, !bit)?;
                }
            }
        }
        Ok(())
    }

    /// Finds the lowest free port and makes room for it. `ERESTART`: the domain keeps many closed ports
    /// on its lists; call again to look further.
    fn find_free(&mut self, mem: &impl PhysMem) -> Result<u32, Errno> {
        if self.life != Life::Live {
            return Err(Errno::EINVAL);
        }
        let ports = if self.fifo { PORTS_FIFO } else { PORTS_2L };
        let last = self.max_port.min(ports.saturating_sub(1));
        let from = core::mem::take(&mut self.search);
        let skipped = from as usize / GROW;
        let mut mask = u64::MAX << (from % 64);
        let mut left = TRIES;
        let looks = self.closed.len().saturating_sub(skipped) as u32;
        mem.spend(looks.saturating_mul(5));
        for (i, &word) in self.closed.iter().enumerate().skip(skipped) {
            let mut set = word & core::mem::replace(&mut mask, u64::MAX);
            while set != 0 {
                let port = (i as u32) << 6 | set.trailing_zeros();
                set &= set.wrapping_sub(1);
                if port > last {
                    return Err(Errno::ENOSPC);
                }
                // A closed port may still be on a FIFO list: not before the guest took it off.
                if !self.fifo || self.word(port).is_none_or(|w| mem.load32(w) & LINKED == 0) {
                    return Ok(port);
                }
                mem.spend(cost::ENTRY * 3);
                left = left.saturating_sub(1);
                if left == 0 {
                    self.search = port.saturating_add(1);
                    return Err(Errno::ERESTART);
                }
            }
        }
        let port = self.ports.len() as u32;
        if port > last {
            return Err(Errno::ENOSPC);
        }
        self.grow()?;
        Ok(port)
    }

    /// Saves what is pending under the 2-level ABI, of the ports from `first` on that a page of the
    /// FIFO array is for.
    fn save_2l(&mut self, first: u32, mem: &impl PhysMem) {
        for base in (first..first.saturating_add(1024).min(PORTS_2L)).step_by(64) {
            let Some((pending, ..)) = self.words_2l(base) else {
                return;
            };
            let mut set = mem.load64(pending);
            while set != 0 {
                let port = base.saturating_add(set.trailing_zeros());
                set &= set.wrapping_sub(1);
                if let Ok(chan) = self.chan_mut(port) {
                    chan.saved |= chan.usable();
                }
            }
        }
        mem.spend(1024 * cost::ENTRY);
    }

    /// Makes so many more ports valid. The room for all was taken when the domain was made.
    fn grow(&mut self) -> Result<(), Errno> {
        let more = self.ports.len().saturating_add(GROW);
        if more > self.ports.capacity() || self.closed.len() == self.closed.capacity() {
            return Err(Errno::ENOMEM);
        }
        self.ports.resize(more, Channel::FREE);
        self.closed.push(u64::MAX);
        Ok(())
    }

    /// Binds a port that [`Self::find_free`] gave.
    fn claim(&mut self, port: u32, state: State, vcpu: u8, xen: Option<Consumer>) {
        if let Ok(chan) = self.chan_mut(port) {
            // Where the word was linked last stays known: its list may still have it as its tail.
            chan.state = state;
            chan.vcpu = vcpu;
            chan.xen = xen;
            chan.priority = PRIORITY_DEFAULT;
            chan.saved = false;
            self.in_use = self.in_use.saturating_add(1);
            self.in_use_xen = self.in_use_xen.saturating_add(u32::from(xen.is_some()));
            self.set_closed(port, false);
        }
    }

    /// Frees a port whose binding is undone. Nobody looks at the words of a domain that is dying.
    fn free(&mut self, port: u32, mem: &impl PhysMem) -> Result<(), Contended> {
        let live = self.life == Life::Live;
        let mut cleared = Ok(());
        if live && self.chan(port).is_ok_and(Channel::usable) {
            cleared = self.clear_pending(port, mem);
        }
        if let Ok(chan) = self.chan_mut(port) {
            let xen = chan.xen.take().is_some();
            chan.state = State::Free;
            chan.vcpu = 0;
            chan.saved = false;
            self.in_use = self.in_use.saturating_sub(1);
            self.in_use_xen = self.in_use_xen.saturating_sub(u32::from(xen));
            self.search = self.search.min(port);
            self.set_closed(port, true);
        }
        cleared
    }

    fn set_closed(&mut self, port: u32, closed: bool) {
        if let Some(word) = self.closed.get_mut(port as usize / GROW) {
            let bit = 1 << (port % 64);
            *word = if closed { *word | bit } else { *word & !bit };
        }
    }

    /// Back to the 2-level ABI.
    fn drop_fifo(&mut self, release: &mut impl FnMut(Mfn)) {
        self.fifo = false;
        self.late = 0;
        for page in self.array.drain(..) {
            release(page.mfn());
        }
        for v in &mut self.vcpus {
            v.tails = [0; PRIORITIES];
            if let Some(control) = v.control.take() {
                release(control.mfn());
            }
        }
    }

    /// Checks the arguments of `EVTCHNOP_init_control`; gives the vcpu.
    fn check_control(&self, vcpu: u32, offset: u32) -> Result<u8, Errno> {
        let vcpu = self.vcpu_id(vcpu)?;
        let last = (PAGE_SIZE as u32).wrapping_sub(FIFO_CONTROL_BYTES);
        if offset > last || !offset.is_multiple_of(8) {
            return Err(Errno::EINVAL);
        }
        match self.vcpus.get(usize::from(vcpu)) {
            Some(v) if v.control.is_none() => Ok(vcpu),
            _ => Err(Errno::EINVAL),
        }
    }

    fn check_expand(&self) -> Result<(), Errno> {
        if !self.fifo {
            Err(Errno::EOPNOTSUPP)
        } else if self.array.len() >= FIFO_ARRAY_PAGES {
            Err(Errno::ENOSPC)
        } else {
            Ok(())
        }
    }
}

#[inline]
const fn vcpu_bit(vcpu: u8) -> u64 {
    1 << (vcpu & 63)
}

#[inline]
fn tail_mut(vcpus: &mut [Vcpu], vcpu: u8, priority: u8) -> Option<&mut u32> {
    vcpus
        .get_mut(usize::from(vcpu))?
        .tails
        .get_mut(usize::from(priority))
}

/// Links `port` after the event of `word`, a list's tail, if that is still on the list; false if
/// the list was emptied. At most five tries: a guest that keeps changing a linked
/// word in ways that the ABI forbids loses the event.
#[inline]
fn set_link(word: Pa, port: u32, mem: &impl PhysMem) -> Result<bool, Contended> {
    let w = mem.load32(word);
    if w & LINKED == 0 {
        return Ok(false);
    }
    let found = mem.cmpxchg32(word, w, w & !(BUSY | LINK) | port & LINK)?;
    if found == w {
        return Ok(true);
    }
    set_link_again(word, port, mem)
}

/// The four other tries.
#[cold]
fn set_link_again(word: Pa, port: u32, mem: &impl PhysMem) -> Result<bool, Contended> {
    // Keeps the guest from unmasking: what it may still do, it can do once each.
    let mut w = mem.or32(word, BUSY)? | BUSY;
    // It is not unrolled: it is seldom.
    let mut left = core::hint::black_box(4u32);
    while left != 0 && w & LINKED != 0 {
        let found = mem.cmpxchg32(word, w, w & !(BUSY | LINK) | port & LINK)?;
        if found == w {
            return Ok(true);
        }
        w = found;
        left = left.saturating_sub(1);
    }
    mem.and32(word, !BUSY)?;
    Ok(left == 0)
}

/// All event channels of all domains.
///
/// A method answers `ESRCH` for a slot without a domain. Page references that the caller takes
/// for pages given to [`Events::set_vcpu_info`], [`Events::init_control`] and
/// [`Events::expand_array`] belong to `Events` if the call succeeds (if it fails, the caller drops
/// its reference); [`Events::reset`] and [`Events::destroy`] give each back through `release`.
#[derive(Debug)]
pub struct Events {
    domains: Vec<Domain>,
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

impl Events {
    /// No domain yet. Allocates the table of slots; for boot.
    #[must_use]
    pub fn new() -> Self {
        Self {
            domains: (0..MAX_DOMAINS).map(|_| Domain::ABSENT).collect(),
        }
    }

    #[inline]
    fn dom(&self, slot: Slot) -> Result<&Domain, Errno> {
        match self.domains.get(slot.idx()) {
            Some(d) if d.life != Life::Absent => Ok(d),
            _ => Err(Errno::ESRCH),
        }
    }

    #[inline]
    fn dom_mut(&mut self, slot: Slot) -> Result<&mut Domain, Errno> {
        match self.domains.get_mut(slot.idx()) {
            Some(d) if d.life != Life::Absent => Ok(d),
            _ => Err(Errno::ESRCH),
        }
    }

    /// Gives a domain its port table (64 ports) and `nr_vcpus` vcpus. `max_port` is the highest
    /// port that it may use (`max_evtchn_port` of createdomain). `EEXIST`: the slot is in
    /// use; `EINVAL`: more than 64 vcpus; `ENOMEM`.
    pub fn create_domain(
        &mut self,
        slot: Slot,
        domid: DomId,
        max_port: u32,
        nr_vcpus: usize,
    ) -> Result<(), Errno> {
        let d = self.domains.get_mut(slot.idx()).ok_or(Errno::EINVAL)?;
        if d.life != Life::Absent {
            return Err(Errno::EEXIST);
        }
        if nr_vcpus > MAX_VCPUS {
            return Err(Errno::EINVAL);
        }
        let mut new = Domain {
            life: Life::Live,
            domid,
            max_port,
            ..Domain::ABSENT
        };
        crate::room::reserve(&mut new.vcpus, nr_vcpus)?;
        new.vcpus.resize(nr_vcpus, Vcpu::NEW);
        // A table's last step may go beyond the highest port.
        let ports = (max_port.min(PORTS_FIFO - 1) as usize | (GROW - 1)).saturating_add(1);
        crate::room::reserve(&mut new.ports, ports)?;
        crate::room::reserve(&mut new.closed, ports / GROW)?;
        crate::room::reserve(&mut new.array, FIFO_ARRAY_PAGES)?;
        new.grow()?;
        new.chan_mut(0)?.state = State::Reserved;
        new.set_closed(0, false);
        *d = new;
        Ok(())
    }

    /// Ends a domain: from the first call on no port can be allocated; each call closes ports, the
    /// hypervisor's too, until `budget` table entries were looked at. Peers' ends become unbound. When
    /// done, all page references are released and the slot is free.
    pub fn destroy(
        &mut self,
        slot: Slot,
        budget: u32,
        mem: &impl PhysMem,
        mut release: impl FnMut(Mfn),
    ) -> Progress {
        let Ok(d) = self.dom_mut(slot) else {
            return Progress::Done;
        };
        if d.life != Life::Dying {
            d.life = Life::Dying;
            d.cursor = 1;
        }
        match self.close_slice(slot, budget, true, mem) {
            Progress::Done => {}
            p => return p,
        }
        if let Ok(d) = self.dom_mut(slot) {
            d.drop_fifo(&mut release);
            for v in &d.vcpus {
                if let (true, Some(info)) = (v.registered, v.info) {
                    release(info.mfn());
                }
            }
            *d = Domain::ABSENT;
        }
        Progress::Done
    }

    /// `EVTCHNOP_reset`: closes all ports but the hypervisor's and goes back to the 2-level ABI,
    /// `budget` table entries a call. `resuming` is false on the first call and true when called again
    /// after `More`. `EBUSY`: a reset is under way (or, resuming, none is); `EAGAIN`: done, but ports
    /// were bound meanwhile.
    pub fn reset(
        &mut self,
        slot: Slot,
        resuming: bool,
        budget: u32,
        mem: &impl PhysMem,
        mut release: impl FnMut(Mfn),
    ) -> Result<Progress, Errno> {
        let d = self.dom_mut(slot)?;
        if d.life != Life::Live {
            return Err(Errno::EINVAL);
        }
        if resuming != (d.cursor != 0) {
            return Err(Errno::EBUSY);
        }
        d.cursor = d.cursor.max(1);
        let p = self.close_slice(slot, budget, false, mem);
        if p == Progress::More {
            return Ok(p);
        }
        let d = self.dom_mut(slot)?;
        d.cursor = 0;
        if p == Progress::Contended {
            return Ok(p);
        }
        if d.in_use > d.in_use_xen {
            return Err(Errno::EAGAIN);
        }
        d.drop_fifo(&mut release);
        Ok(Progress::Done)
    }

    /// Closes ports from the domain's cursor on, fewer where that costs more than it should.
    fn close_slice(
        &mut self,
        slot: Slot,
        budget: u32,
        xen_too: bool,
        mem: &impl PhysMem,
    ) -> Progress {
        let end = mem
            .spent()
            .saturating_add(budget.saturating_mul(cost::CLOSE));
        for _ in 0..budget {
            if mem.spent() > end {
                break;
            }
            let Ok(d) = self.dom_mut(slot) else {
                return Progress::Done;
            };
            let port = d.cursor;
            let Ok(chan) = d.chan(port) else {
                return Progress::Done;
            };
            let close = chan.state != State::Free && (xen_too || chan.xen.is_none());
            d.cursor = d.cursor.saturating_add(1);
            mem.spend(cost::ENTRY);
            if close {
                mem.spend(cost::CLOSE);
                if self.unbind(slot, port, mem) == Err(Contended) {
                    return Progress::Contended;
                }
            }
        }
        Progress::More
    }

    /// Undoes a port's binding and frees it.
    fn unbind(&mut self, slot: Slot, port: u32, mem: &impl PhysMem) -> Result<(), Contended> {
        let Ok(d) = self.dom_mut(slot) else {
            return Ok(());
        };
        let domid = d.domid;
        let Ok(&chan) = d.chan(port) else {
            return Ok(());
        };
        match chan.state {
            State::Virq(virq) => {
                let home = if virq_is_global(virq.into()) {
                    0
                } else {
                    chan.vcpu
                };
                if let Some(v) = d.vcpus.get_mut(usize::from(home))
                    && let Some(bound) = v.virqs.get_mut(usize::from(virq))
                {
                    *bound = 0;
                }
            }
            State::Interdomain(peer, peer_port) => {
                if let Ok(peer) = self.dom_mut(peer)
                    && let Ok(end) = peer.chan_mut(peer_port)
                {
                    end.state = State::Unbound(domid);
                }
            }
            State::Free | State::Reserved | State::Unbound(_) | State::Ipi => {}
        }
        match self.dom_mut(slot) {
            Ok(d) => d.free(port, mem),
            Err(_) => Ok(()),
        }
    }

    /// As [`Self::unbind`], for one port alone.
    fn unbind_one(&mut self, slot: Slot, port: u32, mem: &impl PhysMem) -> Notify {
        match self.unbind(slot, port, mem) {
            Ok(()) => Notify::none(slot),
            Err(Contended) => Notify::contended(slot),
        }
    }

    /// Says where the domain's `shared_info` page is (hypervisor-owned, zeroed by the caller when
    /// new), or that it has none any more. It also holds vcpu 0's `vcpu_info` until the
    /// guest registers another. Without one, 2-level events are dropped.
    pub fn set_shared_info(&mut self, slot: Slot, page: Option<Pa>) -> Result<(), Errno> {
        let d = self.dom_mut(slot)?;
        d.shared = page;
        if let Some(v) = d.vcpus.first_mut()
            && !v.registered
        {
            v.info = page;
        }
        Ok(())
    }

    /// Checks a `VCPUOP_register_vcpu_info` before the page is looked up. `ENOENT`: no such vcpu;
    /// `ENXIO`: `offset` is not 8-aligned or the 48 bytes would leave the page (XSA-327);
    /// `EINVAL`: registered already.
    pub fn check_vcpu_info(&self, slot: Slot, vcpu: u32, offset: u64) -> Result<(), Errno> {
        let d = self.dom(slot)?;
        let vcpu = d.vcpu_id(vcpu)?;
        if offset > PAGE_SIZE - VCPU_INFO_BYTES || !offset.is_multiple_of(8) {
            return Err(Errno::ENXIO);
        }
        match d.vcpus.get(usize::from(vcpu)) {
            Some(v) if !v.registered => Ok(()),
            _ => Err(Errno::EINVAL),
        }
    }

    /// `VCPUOP_register_vcpu_info`: the vcpu's info moves to `info` (a page reference is held).
    /// What it held is copied, and then everything is marked pending, so nothing that was raised
    /// before is lost. Errors as of [`Self::check_vcpu_info`].
    pub fn set_vcpu_info(
        &mut self,
        slot: Slot,
        vcpu: u32,
        info: Pa,
        mem: &impl PhysMem,
    ) -> Result<Notify, Errno> {
        self.check_vcpu_info(slot, vcpu, info.0 % PAGE_SIZE)?;
        let d = self.dom_mut(slot)?;
        let v = d.vcpus.get_mut(vcpu as usize).ok_or(Errno::ENOENT)?;
        let mut bytes = [0; VCPU_INFO_BYTES as usize];
        if let Some(old) = v.info {
            mem.read(old, &mut bytes);
        }
        mem.write(info, &bytes);
        v.info = Some(info);
        v.registered = true;
        let all = mem.or64(info.add(INFO_SEL), u64::MAX);
        if all.and_then(|_| mem.swap8(info, 1)).is_err() {
            return Ok(Notify::contended(slot));
        }
        Ok(Notify {
            upcalls: vcpu_bit(vcpu as u8),
            ..Notify::none(slot)
        })
    }

    /// Where the vcpu's `vcpu_info` is, if anywhere yet.
    #[must_use]
    pub fn vcpu_info(&self, v: VcpuRef) -> Option<Pa> {
        self.domains
            .get(v.slot.idx())?
            .vcpus
            .get(v.vcpu.idx())?
            .info
    }

    /// The level of the vcpu's event interrupt: its `evtchn_upcall_pending` is set.
    #[must_use]
    #[inline]
    pub fn upcall_pending(&self, v: VcpuRef, mem: &impl PhysMem) -> bool {
        self.vcpu_info(v).is_some_and(|info| mem.load8(info) != 0)
    }

    /// `EVTCHNOP_alloc_unbound`: a new port in `slot` that domain `remote` may bind to.
    /// `DOMID_SELF` must be resolved before. `ENOSPC`: no port is free; `EINVAL`: the domain is dying; `ENOMEM`.
    pub fn alloc_unbound(
        &mut self,
        slot: Slot,
        remote: DomId,
        mem: &impl PhysMem,
    ) -> Result<Port, Errno> {
        let d = self.dom_mut(slot)?;
        let port = d.find_free(mem)?;
        d.claim(port, State::Unbound(remote), 0, None);
        Ok(Port(port))
    }

    /// A new port in `slot`, consumed by the hypervisor, that domain `remote` may bind to.
    /// The guest can neither close, move, send nor unmask it. Errors as of [`Self::alloc_unbound`].
    pub fn alloc_unbound_xen(
        &mut self,
        slot: Slot,
        remote: DomId,
        consumer: Consumer,
        mem: &impl PhysMem,
    ) -> Result<Port, Errno> {
        let d = self.dom_mut(slot)?;
        let port = d.find_free(mem)?;
        d.claim(port, State::Unbound(remote), 0, Some(consumer));
        Ok(Port(port))
    }

    /// Closes a port of [`Self::alloc_unbound_xen`]; `EINVAL` if it is not one.
    pub fn close_xen(
        &mut self,
        slot: Slot,
        port: Port,
        mem: &impl PhysMem,
    ) -> Result<Notify, Errno> {
        if self.dom(slot)?.chan(port.0)?.xen.is_none() {
            return Err(Errno::EINVAL);
        }
        Ok(self.unbind_one(slot, port.0, mem))
    }

    /// The hypervisor raises the remote end of its own port; nothing if that is not bound.
    pub fn notify_xen(&mut self, slot: Slot, port: Port, mem: &impl PhysMem) -> Notify {
        if let Ok(chan) = self.dom(slot).and_then(|d| d.chan(port.0))
            && chan.xen.is_some()
            && let State::Interdomain(peer, peer_port) = chan.state
            && let Ok(d) = self.dom_mut(peer)
        {
            return d.raise(peer, peer_port, mem);
        }
        Notify::none(slot)
    }

    /// `EVTCHNOP_bind_interdomain`: a new port in `slot`, connected to `remote_port`, which must be
    /// unbound and meant for it. The new port is raised, since what was sent while
    /// unbound was lost. `EINVAL`: no such port to bind to; `ENOSPC`, `ENOMEM`.
    pub fn bind_interdomain(
        &mut self,
        slot: Slot,
        remote: Slot,
        remote_port: Port,
        mem: &impl PhysMem,
    ) -> Result<(Port, Notify), Errno> {
        let d = self.dom_mut(slot)?;
        let domid = d.domid;
        let port = d.find_free(mem)?;
        let end = self.dom_mut(remote)?.chan_mut(remote_port.0)?;
        if end.state != State::Unbound(domid) {
            return Err(Errno::EINVAL);
        }
        end.state = State::Interdomain(slot, port);
        let d = self.dom_mut(slot)?;
        d.claim(port, State::Interdomain(remote, remote_port.0), 0, None);
        Ok((Port(port), d.raise(slot, port, mem)))
    }

    /// `EVTCHNOP_bind_virq`. `EINVAL`: no such VIRQ, or a global one and not vcpu 0; `ENOENT`: no
    /// such vcpu; `EEXIST`: bound already; `ENOSPC`, `ENOMEM`. Whether the domain may have
    /// this VIRQ is the caller's to check. An error leaves all as it was (XSA-496).
    pub fn bind_virq(
        &mut self,
        slot: Slot,
        virq: u32,
        vcpu: u32,
        mem: &impl PhysMem,
    ) -> Result<Port, Errno> {
        let d = self.dom_mut(slot)?;
        if virq >= NR_VIRQS || (virq_is_global(virq) && vcpu != 0) {
            return Err(Errno::EINVAL);
        }
        let vcpu = d.vcpu_id(vcpu)?;
        let bound = |d: &mut Domain| {
            d.vcpus
                .get(usize::from(vcpu))
                .and_then(|v| v.virqs.get(virq as usize))
                .copied()
        };
        if bound(d) != Some(0) {
            return Err(Errno::EEXIST);
        }
        let port = d.find_free(mem)?;
        if let Some(v) = d.vcpus.get_mut(usize::from(vcpu))
            && let Some(bound) = v.virqs.get_mut(virq as usize)
        {
            *bound = port;
        }
        d.claim(port, State::Virq(virq as u8), vcpu, None);
        Ok(Port(port))
    }

    /// `EVTCHNOP_bind_ipi`: a new port that the domain itself raises at `vcpu`. `ENOENT`: no such
    /// vcpu; `ENOSPC`, `ENOMEM`.
    pub fn bind_ipi(&mut self, slot: Slot, vcpu: u32, mem: &impl PhysMem) -> Result<Port, Errno> {
        let d = self.dom_mut(slot)?;
        let vcpu = d.vcpu_id(vcpu)?;
        let port = d.find_free(mem)?;
        d.claim(port, State::Ipi, vcpu, None);
        Ok(Port(port))
    }

    /// `EVTCHNOP_bind_vcpu`: events to come notify `vcpu`. `ENOENT`: no such vcpu; `EINVAL`: no
    /// such port, one of the hypervisor's, an IPI's or a per-vcpu VIRQ's.
    pub fn bind_vcpu(&mut self, slot: Slot, port: Port, vcpu: u32) -> Result<(), Errno> {
        let d = self.dom_mut(slot)?;
        let vcpu = d.vcpu_id(vcpu)?;
        let chan = d.chan_mut(port.0)?;
        let movable = match chan.state {
            State::Unbound(_) | State::Interdomain(..) => chan.xen.is_none(),
            State::Virq(virq) => virq_is_global(virq.into()),
            State::Free | State::Reserved | State::Ipi => false,
        };
        if !movable {
            return Err(Errno::EINVAL);
        }
        chan.vcpu = vcpu;
        Ok(())
    }

    /// `EVTCHNOP_close` by the domain. Its peer's end becomes unbound, meant for this domain.
    /// `EINVAL`: not in use, or the hypervisor's.
    pub fn close(&mut self, slot: Slot, port: Port, mem: &impl PhysMem) -> Result<Notify, Errno> {
        if !self.dom(slot)?.chan(port.0)?.usable() {
            return Err(Errno::EINVAL);
        }
        Ok(self.unbind_one(slot, port.0, mem))
    }

    /// `EVTCHNOP_send`: raises the port's other end (its own, for an IPI). Sending to an unbound
    /// port does nothing. `EINVAL`: not a port to send by.
    #[inline]
    pub fn send(&mut self, slot: Slot, port: Port, mem: &impl PhysMem) -> Result<Notify, Errno> {
        // A slot without a domain has no ports: no other check is needed here.
        let d = self.domains.get(slot.idx()).ok_or(Errno::ESRCH)?;
        let chan = d.chan(port.0)?;
        if chan.xen.is_some() {
            return Err(Errno::EINVAL);
        }
        let (slot, port) = match chan.state {
            State::Interdomain(peer, peer_port) => (peer, peer_port),
            State::Ipi => (slot, port.0),
            State::Unbound(_) => return Ok(Notify::none(slot)),
            State::Free | State::Reserved | State::Virq(_) => return Err(Errno::EINVAL),
        };
        let d = self.domains.get_mut(slot.idx()).ok_or(Errno::EINVAL)?;
        match d.chan(port)?.xen {
            None => Ok(d.raise_at_once(slot, port, mem)),
            Some(xen) => Ok(Notify {
                also: Some(Also::Consumer(xen)),
                ..Notify::none(slot)
            }),
        }
    }

    /// Raises a per-vcpu VIRQ; nothing if the guest has not bound it.
    pub fn send_virq(&mut self, v: VcpuRef, virq: u32, mem: &impl PhysMem) -> Notify {
        if let Ok(d) = self.dom_mut(v.slot)
            && let Some(vcpu) = d.vcpus.get(v.vcpu.idx())
            && let Some(&port) = vcpu.virqs.get(virq as usize)
            && port != 0
        {
            return d.raise(v.slot, port, mem);
        }
        Notify::none(v.slot)
    }

    /// Raises a global VIRQ at the domain that handles it; nothing if it has not bound it.
    pub fn send_global_virq(&mut self, handler: Slot, virq: u32, mem: &impl PhysMem) -> Notify {
        self.send_virq(
            VcpuRef {
                slot: handler,
                vcpu: VcpuId(0),
            },
            virq,
            mem,
        )
    }

    /// `EVTCHNOP_unmask`: clears the mask and raises what waited behind it. Nothing for a
    /// closed port; `EINVAL`: no such port.
    pub fn unmask(&mut self, slot: Slot, port: Port, mem: &impl PhysMem) -> Result<Notify, Errno> {
        let d = self.dom_mut(slot)?;
        let &chan = d.chan(port.0)?;
        if !chan.usable() {
            return Ok(Notify::none(slot));
        }
        Ok(d.unmask(slot, port.0, chan.vcpu, mem)
            .unwrap_or_else(|Contended| Notify::contended(slot)))
    }

    /// `EVTCHNOP_status`. `EINVAL`: no such port; `EACCES`: the hypervisor's.
    pub fn status(&self, slot: Slot, port: Port) -> Result<Status, Errno> {
        let chan = self.dom(slot)?.chan(port.0)?;
        if chan.xen.is_some() {
            return Err(Errno::EACCES);
        }
        let binding = match chan.state {
            State::Free | State::Reserved => Binding::Closed,
            State::Unbound(remote) => Binding::Unbound(remote),
            State::Interdomain(peer, port) => {
                Binding::Interdomain(self.dom(peer)?.domid, Port(port))
            }
            State::Virq(virq) => Binding::Virq(virq.into()),
            State::Ipi => Binding::Ipi,
        };
        Ok(Status {
            binding,
            vcpu: VcpuId(chan.vcpu),
        })
    }

    /// Checks `EVTCHNOP_init_control` before the page is looked up. `ENOENT`: no such vcpu;
    /// `EINVAL`: `offset` is not 8-aligned or leaves the page, or the vcpu has a control block.
    pub fn check_init_control(&self, slot: Slot, vcpu: u32, offset: u32) -> Result<(), Errno> {
        self.dom(slot)?.check_control(vcpu, offset).map(|_| ())
    }

    /// `EVTCHNOP_init_control`: the vcpu's control block is at `offset` bytes in page `mfn`
    /// (guest RAM, writable; a page reference is held). The first one switches the domain to the
    /// FIFO ABI: events pending under the 2-level ABI are raised again when the array gets
    /// their words. The answer's `link_bits` is [`FIFO_LINK_BITS`]. Errors as of
    /// [`Self::check_init_control`].
    pub fn init_control(
        &mut self,
        slot: Slot,
        vcpu: u32,
        mfn: Mfn,
        offset: u32,
    ) -> Result<(), Errno> {
        let d = self.dom_mut(slot)?;
        if d.life != Life::Live {
            return Err(Errno::EINVAL);
        }
        let vcpu = d.check_control(vcpu, offset)?;
        if let Some(v) = d.vcpus.get_mut(usize::from(vcpu)) {
            v.control = Some(Pa(mfn.addr()).add(offset.into()));
        }
        d.fifo = true;
        Ok(())
    }

    /// Checks `EVTCHNOP_expand_array` before the page is looked up. `EOPNOTSUPP`: not under the
    /// FIFO ABI; `ENOSPC`: 128 pages are there.
    pub fn check_expand_array(&self, slot: Slot) -> Result<(), Errno> {
        self.dom(slot)?.check_expand()
    }

    /// `EVTCHNOP_expand_array`: page `mfn` (guest RAM, writable; a page reference is held) has
    /// the next 1,024 event words. Errors as of [`Self::check_expand_array`], and `ENOMEM`.
    pub fn expand_array(
        &mut self,
        slot: Slot,
        mfn: Mfn,
        mem: &impl PhysMem,
    ) -> Result<Notify, Errno> {
        let d = self.dom_mut(slot)?;
        d.check_expand()?;
        let first = (d.array.len() as u32) << 10;
        d.array.push(Pa(mfn.addr()));
        d.save_2l(first, mem);
        if d.late == 0 {
            d.late = first.max(1);
        }
        self.raise_saved(slot, mem)
    }

    /// Raises, a slice at a time, the events that waited for their words in the array; see
    /// [`Self::late`]. `ENOSYS`: there are none.
    pub fn raise_saved(&mut self, slot: Slot, mem: &impl PhysMem) -> Result<Notify, Errno> {
        let d = self.dom_mut(slot)?;
        if d.late == 0 {
            return Err(Errno::ENOSYS);
        }
        let mut n = Notify::none(slot);
        let mut left = RAISES;
        let end = ((d.array.len() as u32) << 10).min(d.ports.len() as u32);
        let stop = d.late.saturating_add(1024).min(end);
        let mut port = d.late;
        let most = mem.spent().saturating_add(RAISES * cost::RAISE);
        while port < stop && left != 0 && mem.spent() <= most && n.also.is_none() {
            mem.spend(cost::ENTRY);
            if let Ok(chan) = d.chan_mut(port)
                && core::mem::take(&mut chan.saved)
            {
                left = left.saturating_sub(1);
                mem.spend(cost::RAISE);
                let raised = d.raise(slot, port, mem);
                n.upcalls |= raised.upcalls;
                n.pollers |= raised.pollers;
                n.also = raised.also;
            }
            port = port.saturating_add(1);
        }
        d.late = if port < end { port } else { 0 };
        Ok(n)
    }

    /// Whether [`Self::expand_array`] left events for [`Self::raise_saved`].
    #[must_use]
    pub fn late(&self, slot: Slot) -> bool {
        self.dom(slot).is_ok_and(|d| d.late != 0)
    }

    /// `EVTCHNOP_set_priority`: of events to come, 0 highest to 15. `ENOSYS`: not under the FIFO
    /// ABI; `EACCES`: not in use or the hypervisor's; `EINVAL`: no such port or priority.
    pub fn set_priority(&mut self, slot: Slot, port: Port, priority: u32) -> Result<(), Errno> {
        let d = self.dom_mut(slot)?;
        let fifo = d.fifo;
        let chan = d.chan_mut(port.0)?;
        if !fifo {
            return Err(Errno::ENOSYS);
        }
        if !chan.usable() {
            return Err(Errno::EACCES);
        }
        if priority as usize >= PRIORITIES {
            return Err(Errno::EINVAL);
        }
        chan.priority = priority as u8;
        Ok(())
    }

    /// First half of `SCHEDOP_poll`: if none of `ports` is pending, the vcpu is noted as waiting
    /// for the one port, or, if not just one was named, for any event of the domain.
    /// `EINVAL`: more than [`POLL_MAX`] ports, or one that does not exist (XSA-338). Whether an
    /// interrupt is deliverable is the caller's to check before.
    pub fn poll_prepare(
        &mut self,
        v: VcpuRef,
        ports: &[Port],
        mem: &impl PhysMem,
    ) -> Result<Poll, Errno> {
        let d = self.dom_mut(v.slot)?;
        if ports.len() > POLL_MAX {
            return Err(Errno::EINVAL);
        }
        for port in ports {
            if d.chan(port.0)?.usable() && d.is_pending(port.0, mem) {
                return Ok(Poll::Pending);
            }
        }
        let vcpu = d.vcpus.get_mut(v.vcpu.idx()).ok_or(Errno::ENOENT)?;
        vcpu.poll_port = match ports {
            [port] => port.0,
            _ => 0,
        };
        d.poll_mask |= vcpu_bit(v.vcpu.0);
        Ok(Poll::Wait)
    }

    /// The vcpu waits no more (timeout, interrupt, or [`Notify::pollers`] named it).
    pub fn poll_done(&mut self, v: VcpuRef) {
        if let Ok(d) = self.dom_mut(v.slot) {
            d.poll_mask &= !vcpu_bit(v.vcpu.0);
            if let Some(vcpu) = d.vcpus.get_mut(v.vcpu.idx()) {
                vcpu.poll_port = 0;
            }
        }
    }

    /// Ports in use by a domain, the hypervisor's included; 0 for no domain.
    #[must_use]
    pub fn ports_in_use(&self, slot: Slot) -> u32 {
        self.dom(slot).map_or(0, |d| d.in_use)
    }

    /// Page references held for a domain: registered `vcpu_info`s, control blocks, array pages.
    #[must_use]
    pub fn pages_held(&self, slot: Slot) -> usize {
        self.dom(slot).map_or(0, |d| {
            let vcpus = d.vcpus.iter();
            let blocks = vcpus.clone().filter(|v| v.control.is_some()).count();
            let registered = vcpus.filter(|v| v.registered).count();
            let all = d.array.len().saturating_add(blocks);
            all.saturating_add(registered)
        })
    }
}
