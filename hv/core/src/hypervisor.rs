// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor as one value: all tables of all subsystems, and what concerns several of them:
//! the birth and death of domains, waking vcpus, the host that grant operations work on.

use crate::console::Console;
use crate::domain::{Death, Domain, Domains, Extent, HVM_PARAMS, Vcpu};
use crate::event::{Also, Events, Notify, Progress};
use crate::frame::{Frames, Use};
use crate::grant::{Destroyed, Grants, PageHost};
use crate::machine::{Machine, StartState, cost, limit};
use crate::p2m::{Ctx, Kind, P2m, Part, ROOT_PAGES};
use crate::sched::Scheduler;
use crate::timers::{Timer, Timers};
use crate::types::{Access, CpuId, DomId, Errno, Gfn, Mfn, Pa, Slot, VcpuId, VcpuRef};
use crate::vgic::{Version, Vgics};
use crate::vtimer::{PPI_PHYSICAL, PPI_VIRTUAL, VTimers};
use alloc::vec::Vec;
use core::cell::Cell;

/// VIRQ_DOM_EXC: a domain's state changed (`xen.h`).
pub const VIRQ_DOM_EXC: u32 = 3;
/// VIRQ_CONSOLE: bytes came in on the hypervisor's console.
pub const VIRQ_CONSOLE: u32 = 2;
/// How many pages, ports or mappings a sliced operation handles before it lets others in.
pub const SLICE: u32 = 256;
/// How many timers that ring at the same time are dealt with before others are let in.
const DUE: u32 = 16;
/// How many entries of stage-2 tables a slice of a tear-down looks at.
const ENTRIES: i64 = 4096;
/// How many of the machine's pages a slice looks at for those of a dead domain.
const FRAMES: u32 = 8192;

/// What the shell does after it dropped the lock.
#[derive(Debug, Default)]
pub struct Effects {
    /// Bit n: interrupt CPU n, so that it looks at its vcpu and its queue anew.
    pub kick: u64,
    /// Bit n: the vcpu on CPU n has a new interrupt, and nothing else is to be looked at there.
    pub look: u64,
    /// What comes before any guest goes on.
    pub then: Cell<Option<Then>>,
    /// This CPU is to call the scheduler before it goes back to a guest.
    pub resched: bool,
}

impl Effects {
    /// Nothing is to be done.
    #[inline]
    #[must_use]
    pub fn none(&self) -> bool {
        (self.kick | self.look) == 0 && !self.resched && self.then.get().is_none()
    }

    /// Whether `cpu`, whose own work has led to these, has to decide again who runs and with which interrupts.
    #[inline]
    #[must_use]
    pub fn concern(&self, cpu: CpuId) -> bool {
        (self.kick | self.look) & (1 << cpu.0) != 0 || self.resched
    }

    /// Takes what there is to do, and leaves nothing.
    #[inline]
    #[must_use]
    pub fn take(&mut self) -> Self {
        core::mem::take(self)
    }
}

/// See [`Effects::then`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The machine is to stop or start anew.
    Power(Power),
    /// [`Hypervisor::end_contended`] is to be called.
    EndContended,
}

/// What becomes of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Off.
    Off,
    /// Reset.
    Reset,
    /// The control domain ended in another way than it should, with this reason (`SHUTDOWN_*`): reset, with last words.
    Crashed(u8),
}

/// What the machine is, as told to toolstacks.
#[derive(Clone, Copy, Debug, Default)]
pub struct MachineInfo {
    /// CPUs that are to run.
    pub cpus: u32,
    /// Bit n: CPU n has been started.
    pub started: u64,
    /// Counter frequency in kHz.
    pub khz: u32,
    /// Interrupt controller: 2 or 3.
    pub gic_version: u8,
    /// GICv2: where the virtual CPU interface is, which guests get as their CPU interface.
    pub gicv: Mfn,
    /// Seconds since 1970 when the hypervisor started.
    pub wall_sec: u64,
}

/// What a domain is created with (`xen_domctl_createdomain`).
#[derive(Clone, Copy, Debug)]
pub struct NewDomain {
    /// UUID.
    pub handle: [u8; 16],
    /// vcpus.
    pub max_vcpus: u32,
    /// The highest event-channel port.
    pub max_port: u32,
    /// Grant table limit in frames.
    pub max_grant_frames: u32,
    /// Maptrack limit in frames.
    pub max_maptrack_frames: u32,
    /// Emulated GIC: 2, 3, or 0 for the machine's.
    pub gic_version: u8,
    /// Shared peripheral interrupts.
    pub nr_spis: u16,
    /// Control domain.
    pub privileged: bool,
}

/// Says that a vcpu has nothing to do: no interrupt that it could take, no event. Without it no vcpu sleeps
/// ([`Scheduler::block`]), so that none sleeps through what came before.
#[derive(Debug)]
pub struct NothingToTake(());

impl NothingToTake {
    /// Looks at the list registers too, as `v` is on this CPU. `masked`: whether interrupts count that it has masked.
    fn of<M: Machine>(h: &mut Hypervisor, m: &M, v: VcpuRef, masked: bool) -> Option<Self> {
        h.vgics.sync(v.slot, v.vcpu, &mut m.lrs());
        let any = h.vgics.deliverable(v.slot, v.vcpu, u8::MAX)
            && h.vgics.deliverable(v.slot, v.vcpu, m.threshold())
            || h.events.upcall_pending(v, m);
        (!any || !masked && m.irqs_masked()).then_some(Self(()))
    }

    /// For tests of the scheduler alone.
    #[cfg(test)]
    pub(crate) const fn assumed() -> Self {
        Self(())
    }
}

/// Everything.
pub struct Hypervisor {
    /// Machine pages.
    pub frames: Frames,
    /// Domains.
    pub domains: Domains,
    /// Event channels.
    pub events: Events,
    /// Grant tables.
    pub grants: Grants,
    /// Who runs where.
    pub sched: Scheduler,
    /// Emulated interrupt controllers.
    pub vgics: Vgics,
    /// Emulated timers.
    pub vtimers: VTimers,
    /// When each CPU's timer is to ring.
    timers: Timers,
    /// What was typed at the console, and how much guests may print.
    pub console: Console,
    /// How much of the log guests caused lately.
    pub reports: crate::console::Reports,
    /// What is to be done when the lock is dropped.
    pub effects: Effects,
    /// Bit n: the domain in slot n is to be ended.
    contended: Cell<u128>,
    /// The machine.
    pub info: MachineInfo,
}

/// Pages, p2ms and TLBs, borrowed for grant operations.
pub struct Host<'a, M> {
    /// Machine.
    pub m: &'a M,
    /// Pages.
    pub frames: &'a mut Frames,
    /// Domains, for their p2ms.
    pub domains: &'a mut Domains,
    /// The last two parts of p2ms that pages were found in, the last one first. Whoever changes a p2m
    /// through this forgets them.
    seen: [Cell<Part>; 2],
    /// See [`mark_contended`].
    contended: (&'a Cell<u128>, &'a Effects),
}

const _: () = assert!(crate::types::MAX_DOMAINS <= 128);

const fn bit_of(slot: Slot) -> u128 {
    1u128.wrapping_shl(slot.0 as u32)
}

/// The domain in `slot` keeps a word that it shares from being updated: it is ended before any guest
/// goes on.
#[cold]
fn mark_contended((set, effects): (&Cell<u128>, &Effects), slot: Slot) {
    set.set(set.get() | bit_of(slot));
    if effects.then.get().is_none() {
        effects.then.set(Some(Then::EndContended));
    }
}

impl<M: Machine> PageHost for Host<'_, M> {
    type Mem = M;
    fn mem(&self) -> &M {
        self.m
    }
    fn find(&self, domid: DomId) -> Option<Slot> {
        self.domains.find_alive(domid)
    }
    fn resolve(&self, slot: Slot, gfn: Gfn, access: Access) -> Result<Mfn, Errno> {
        let [last, other] = &self.seen;
        let part = if last.get().has(slot, gfn) {
            last.get()
        } else if other.get().has(slot, gfn) {
            other.get()
        } else {
            let d = self.domains.get(slot).ok_or(Errno::ESRCH)?;
            let part = d.p2m.part(self.m, gfn).ok_or(Errno::EINVAL)?;
            other.set(last.replace(part));
            part
        };
        let map = part.lookup(self.m, gfn).ok_or(Errno::EINVAL)?;
        if map.kind == Kind::Ram && map.allows(access) {
            Ok(map.mfn)
        } else {
            Err(Errno::EINVAL)
        }
    }
    fn get_page(&mut self, mfn: Mfn) -> Result<(), Errno> {
        self.frames.get(mfn).map(drop)
    }
    fn put_page(&mut self, mfn: Mfn) {
        self.frames.put(mfn);
    }
    fn map_granted(&mut self, slot: Slot, gfn: Gfn, mfn: Mfn, access: Access) -> Result<(), Errno> {
        self.seen = Default::default();
        let page = self.frames.known(mfn)?;
        let d = self.domains.get_mut(slot).ok_or(Errno::ESRCH)?;
        let kind = if access == Access::Write {
            Kind::Grant
        } else {
            Kind::GrantRo
        };
        d.p2m.map(
            &mut Ctx {
                m: self.m,
                frames: self.frames,
            },
            gfn,
            page,
            kind,
        )
    }
    fn granted(&self, slot: Slot, gfn: Gfn) -> Option<Mfn> {
        let found = self.domains.get(slot)?.p2m.lookup(self.m, gfn)?;
        matches!(found.kind, Kind::Grant | Kind::GrantRo).then_some(found.mfn)
    }
    fn unmap_granted(&mut self, slot: Slot, gfn: Gfn) -> Result<Mfn, Errno> {
        self.seen = Default::default();
        let d = self.domains.get_mut(slot).ok_or(Errno::EINVAL)?;
        let c = &mut Ctx {
            m: self.m,
            frames: self.frames,
        };
        let granted = |kind| matches!(kind, Kind::Grant | Kind::GrantRo);
        let old = d.p2m.unmap(c, gfn, granted).map_err(|_| Errno::EINVAL)?;
        Ok(old.mfn)
    }
    fn forget_granted(&mut self, slot: Slot, gfn: Gfn) -> Option<Mfn> {
        let mfn = self.granted(slot, gfn)?;
        self.domains.get_mut(slot)?.p2m.clear_entry(self.m, gfn);
        Some(mfn)
    }
    fn alloc_own(&mut self, slot: Slot, private: bool) -> Result<Mfn, Errno> {
        let usage = if private { Use::Private } else { Use::Shared };
        let page = self.frames.alloc_kept(slot, usage)?;
        Ok(self.frames.scrub_all(self.m, page).mfn())
    }
    fn contended(&self, slot: Slot) {
        mark_contended(self.contended, slot);
    }
    fn owns(&self, slot: Slot, mfn: Mfn) -> bool {
        self.frames.lookup(mfn) == Some((Use::Guest, slot))
    }
}

impl Hypervisor {
    /// A hypervisor without domains.
    #[must_use]
    pub fn new(frames: Frames, info: MachineInfo) -> Self {
        Self {
            frames,
            domains: Domains::new(),
            events: Events::new(),
            grants: Grants::new(),
            sched: Scheduler::new(info.cpus as usize, info.started),
            vgics: Vgics::new(),
            vtimers: VTimers::new(),
            timers: Timers::new(),
            console: Console::new(),
            reports: crate::console::Reports::default(),
            effects: Effects::default(),
            contended: Cell::new(0),
            info,
        }
    }

    /// A CPU other than the first runs, and will ask whom.
    pub fn cpu_started(&mut self, cpu: CpuId) {
        self.info.started |= 1 << cpu.0;
        self.sched.online(cpu);
    }

    /// Borrows what grant operations need, and the grant tables.
    pub fn grants_and_host<'a, M: Machine>(
        &'a mut self,
        m: &'a M,
    ) -> (&'a mut Grants, Host<'a, M>) {
        (
            &mut self.grants,
            Host {
                m,
                frames: &mut self.frames,
                domains: &mut self.domains,
                seen: Default::default(),
                contended: (&self.contended, &self.effects),
            },
        )
    }

    /// A domain's p2m and what its operations need.
    pub fn p2m_of<'a, M>(
        &'a mut self,
        m: &'a M,
        slot: Slot,
    ) -> Result<(&'a mut Domain, Ctx<'a, M>), Errno> {
        let d = self.domains.get_mut(slot).ok_or(Errno::ESRCH)?;
        Ok((
            d,
            Ctx {
                m,
                frames: &mut self.frames,
            },
        ))
    }

    fn kick(&mut self, cpu: Option<CpuId>) {
        if let Some(c) = cpu {
            self.effects.kick |= 1 << c.0;
        }
    }

    /// Wakes a vcpu that waits, or makes the CPU that runs it look at its interrupts.
    pub fn wake(&mut self, v: VcpuRef, now: u64) {
        if let Some(cpu) = self.sched.wake(v, now) {
            self.kick(Some(cpu));
        } else if let Some(cpu) = self.sched.running_on(v) {
            self.effects.look |= 1 << cpu.0;
        }
    }

    /// The vcpu on this CPU sleeps until something comes for it, unless that is there already. WFI, `CPU_SUSPEND`,
    /// SCHEDOP_block and SCHEDOP_poll end here: what keeps a vcpu awake is said once, and nobody else can
    /// make one sleep. `poll`: it waits for ports that [`Events::poll_prepare`] was told of, until such a time in ns
    /// (`u64::MAX` for ever), and then interrupts that it has masked (PSTATE.I) do not count, as on Xen; else they do.
    pub fn sleep<M: Machine>(&mut self, m: &M, v: VcpuRef, poll: Option<u64>) {
        if let Some(until) = poll
            && let Some(x) = self.vcpu_mut(v)
        {
            x.polling = true;
            x.poll_until = until;
        }
        let nothing = NothingToTake::of(self, m, v, poll.is_none());
        if nothing.is_none() || poll.is_none() {
            self.end_poll(v);
        }
        let Some(nothing) = nothing else { return };
        self.sched.block(v, m.now(), nothing);
        self.effects.resched = true;
    }

    fn vcpu_mut(&mut self, v: VcpuRef) -> Option<&mut Vcpu> {
        self.domains.get_mut(v.slot)?.vcpus.get_mut(v.vcpu.idx())
    }

    /// Acts on what an event-channel operation raised.
    #[inline]
    pub fn notify(&mut self, n: Notify, now: u64) {
        if n.is_none() {
            return;
        }
        if n.also.is_some() {
            debug_assert!(
                n.also == Some(Also::Contended),
                "events for the hypervisor go through notify_with"
            );
            return mark_contended((&self.contended, &self.effects), n.slot);
        }
        for v in n.upcall_vcpus() {
            // One interrupt for each time that the upcall became pending; the guest takes all
            // events in one go.
            let _ = self
                .vgics
                .pulse(v.slot, v.vcpu, guest_abi::arch::GUEST_EVTCHN_PPI);
            self.wake(v, now);
        }
        for v in n.poller_vcpus() {
            self.end_poll(v);
            self.wake(v, now);
        }
    }

    /// As [`Hypervisor::notify`], for events that may be for the hypervisor itself.
    pub fn notify_with<M: Machine>(&mut self, m: &M, n: Notify) {
        if let Some(Also::Consumer(_)) = n.also {
            let effects = match self.domains.get_mut(n.slot).and_then(|d| d.vuart.as_mut()) {
                Some((uart, _)) => uart.update(m),
                None => return,
            };
            self.vuart_effects(m, n.slot, effects);
        } else {
            self.notify(n, m.now());
        }
    }

    fn vuart_effects<M: Machine>(&mut self, m: &M, slot: Slot, e: crate::vpl011::Effects) {
        if let Some(level) = e.irq {
            let k = self
                .vgics
                .set_level(slot, VcpuId(0), crate::vpl011::INTID, level);
            self.kick_vcpus(slot, k.kick, m.now());
        }
        let port = self
            .domains
            .get(slot)
            .and_then(|d| d.vuart.as_ref())
            .map(|u| u.1);
        if let (true, Some(port)) = (e.notify, port) {
            let n = self.events.notify_xen(slot, port, m);
            self.notify(n, m.now());
        }
    }

    /// A vcpu reads (`value` is `None`) or writes a register of its emulated PL011. `None` when
    /// the access is not one that a PL011 answers, or there is none.
    pub fn vuart_access<M: Machine>(
        &mut self,
        m: &M,
        slot: Slot,
        off: u64,
        size: u8,
        value: Option<u32>,
    ) -> Option<u32> {
        let (uart, _) = self.domains.get_mut(slot)?.vuart.as_mut()?;
        let (answer, effects) = match value {
            Some(v) => (0, uart.write(m, off, size, v)?),
            None => uart.read(m, off, size)?,
        };
        self.vuart_effects(m, slot, effects);
        Some(answer)
    }

    /// Gives a domain its emulated PL011, whose bytes go through the ring page `ring` of its own
    /// memory to `console_dom`.
    ///
    /// # Errors
    /// `EINVAL` for a frame that is not its RAM, `EBUSY` when it has one.
    pub fn vuart_init<M: Machine>(
        &mut self,
        m: &M,
        slot: Slot,
        ring: Gfn,
        console_dom: DomId,
    ) -> Result<crate::types::Port, Errno> {
        let d = self.domains.get(slot).ok_or(Errno::ESRCH)?;
        if d.vuart.is_some() {
            return Err(Errno::EBUSY);
        }
        let page = match d.p2m.lookup(m, ring) {
            Some(x) if x.kind == Kind::Ram => x.mfn,
            _ => return Err(Errno::EINVAL),
        };
        self.frames.get(page)?;
        match self
            .events
            .alloc_unbound_xen(slot, console_dom, crate::event::Consumer::Vpl011, m)
        {
            Ok(port) => {
                if let Some(d) = self.domains.get_mut(slot) {
                    d.vuart = Some((crate::vpl011::Vpl011::new(Some(page)), port));
                }
                Ok(port)
            }
            Err(e) => {
                self.frames.put(page);
                Err(e)
            }
        }
    }

    /// SCHEDOP_poll is over for a vcpu, if it was in one.
    #[inline]
    fn end_poll(&mut self, v: VcpuRef) {
        if let Some(x) = self.vcpu_mut(v)
            && core::mem::take(&mut x.polling)
        {
            self.events.poll_done(v);
        }
    }

    /// Whether a domain's misdeed is still worth a line of the log: the first few are, if guests do not
    /// fill the log anyway.
    pub fn may_report(&mut self, slot: Slot, now: u64) -> bool {
        const MOST: u32 = 8;
        let Some(d) = self.domains.get_mut(slot) else {
            return false;
        };
        d.reports = d.reports.saturating_add(1);
        if d.reports > MOST || !self.reports.allow(1, now) {
            return false;
        }
        if d.reports == MOST {
            log::warn!("domain {}: no more of that is reported", d.domid);
        }
        d.reports < MOST
    }

    /// Raises a global VIRQ at the control domain.
    pub fn dom0_virq<M: Machine>(&mut self, m: &M, virq: u32) {
        if let Some(slot) = self.domains.find(DomId(0)) {
            let n = self.events.send_global_virq(slot, virq, m);
            self.notify(n, m.now());
        }
    }

    /// Makes a domain: no memory yet, paused, its vcpus down.
    ///
    /// # Errors
    /// `EINVAL` for limits that cannot be, `ENOMEM`.
    pub fn create_domain<M: Machine>(&mut self, m: &M, new: &NewDomain) -> Result<Slot, Errno> {
        let n = new.max_vcpus as usize;
        let gic = if new.gic_version == 0 {
            self.info.gic_version
        } else {
            new.gic_version
        };
        let most = if gic == 2 { 8 } else { crate::types::MAX_VCPUS };
        if n == 0 || n > most || gic != self.info.gic_version || new.nr_spis > 960 {
            return Err(Errno::EINVAL);
        }
        let slot = self.domains.free_slot()?;
        let domid = if new.privileged {
            DomId(0)
        } else {
            self.domains.free_domid()?
        };
        let mut vcpus: Vec<Vcpu> = Vec::new();
        crate::room::reserve(&mut vcpus, n)?;
        vcpus.resize_with(n, || Vcpu::NEW);
        let p2m = P2m::new(
            &mut Ctx {
                m,
                frames: &mut self.frames,
            },
            slot,
            64,
        )?;
        let mut d = Domain {
            domid,
            slot,
            handle: new.handle,
            privileged: new.privileged,
            direct_mapped: new.privileged,
            paused: 1,
            pausing: None,
            creating: true,
            shutdown: None,
            death: Death::Alive,
            vcpus,
            max_pages: 0,
            p2m,
            unmapped: None,
            shared_info: Mfn(0),
            shared_info_gfn: None,
            params: [0; HVM_PARAMS],
            assist: 0,
            gic_version: gic,
            nr_spis: new.nr_spis,
            vuart: None,
            watchdogs: [0; 2],
            cntvoff: 0,
            lines: crate::console::Lines::new(domid),
            reports: 0,
        };
        // Everything that can fail, with its undoing in reverse.
        let made = self.create_parts(m, &mut d, new);
        if let Err(e) = made {
            self.discard_parts(m, d);
            return Err(e);
        }
        self.domains.insert(d);
        Ok(slot)
    }

    fn create_parts<M: Machine>(
        &mut self,
        m: &M,
        d: &mut Domain,
        new: &NewDomain,
    ) -> Result<(), Errno> {
        let slot = d.slot;
        let page = self.frames.alloc(slot, Use::Shared, 0)?;
        d.shared_info = self.frames.scrub_all(m, page).mfn();
        self.events
            .create_domain(slot, d.domid, new.max_port, d.vcpus.len())?;
        self.events
            .set_shared_info(slot, Some(Pa(d.shared_info.addr())))?;
        let (granted, mapped) = (new.max_grant_frames, new.max_maptrack_frames);
        self.frames.keep(slot, Grants::pages(granted, mapped)?)?;
        let (grants, mut host) = self.grants_and_host(m);
        grants.create_domain(&mut host, slot, d.domid, granted, mapped)?;
        if d.gic_version == 2 && !new.privileged {
            // The first page: the second is emulated (`vgic::Region::Dir`).
            let gicc = Gfn(guest_abi::arch::GUEST_GICC_BASE >> 12);
            let mut c = Ctx {
                m,
                frames: &mut self.frames,
            };
            d.p2m.map_device(&mut c, gicc, self.info.gicv)?;
        }
        let version = if d.gic_version == 2 {
            Version::V2
        } else {
            Version::V3
        };
        self.vgics
            .create_domain(slot, version, d.vcpus.len(), u32::from(d.nr_spis))?;
        self.vtimers.create_domain(slot, d.vcpus.len(), d.cntvoff)?;
        self.timers.create_domain(slot, d.vcpus.len())?;
        let now = m.now();
        for v in d.vcpu_refs() {
            m.create_vcpu(v)?;
            self.sched.add_vcpu(v, now)?;
            let _ = self.sched.pause(v, now);
        }
        self.write_wall_clock(m, Pa(d.shared_info.addr()));
        Ok(())
    }

    /// Undoes a creation that failed.
    fn discard_parts<M: Machine>(&mut self, m: &M, mut d: Domain) {
        let slot = d.slot;
        let (grants, mut host) = self.grants_and_host(m);
        while grants.destroy(&mut host, slot, SLICE) == Destroyed::More {
            m.restart();
        }
        let frames = &mut self.frames;
        while self.events.destroy(slot, SLICE, m, |p| frames.put(p)) == Progress::More {}
        if d.shared_info.0 != 0 {
            self.frames.put(d.shared_info);
        }
        let mut c = Ctx {
            m,
            frames: &mut self.frames,
        };
        while !d.p2m.free_tables(&mut c, ENTRIES) {}
        self.forget_parts(m, d);
    }

    /// The last of a domain that has no pages and ports any more: vcpus, the root of its tables, what was kept for
    /// it. Its slot and VMID are free after that.
    fn forget_parts<M: Machine>(&mut self, m: &M, d: Domain) {
        let slot = d.slot;
        let _ = self.sched.remove_domain(slot);
        for v in d.vcpu_refs() {
            m.destroy_vcpu(v);
        }
        self.vgics.destroy_domain(slot, |_| {});
        self.vtimers.destroy_domain(slot);
        self.timers.destroy_domain(slot);
        d.p2m.free_root(&mut Ctx {
            m,
            frames: &mut self.frames,
        });
        self.frames.unkeep(slot, u32::MAX);
    }

    /// Pages that are charged to a domain: its own, and for each mapping that it holds of a page whose granter is
    /// gone one more.
    #[must_use]
    pub fn charged(&self, slot: Slot) -> u32 {
        let own = self.frames.guest_pages(slot);
        own.saturating_add(self.grants.orphans(slot))
    }

    /// Whether a domain holds so many pages of dead ones that it is beyond its memory limit: it makes no more
    /// mappings before it has given some back. The control domain is trusted.
    #[must_use]
    pub fn overdrawn(&self, slot: Slot) -> bool {
        let over = |d: &Domain| !d.privileged && self.charged(slot) > d.max_pages;
        self.grants.orphans(slot) != 0 && self.domains.get(slot).is_some_and(over)
    }

    /// Sets a vcpu's start state and brings it up.
    ///
    /// # Errors
    /// `EINVAL` when there is no such vcpu or it is up already.
    pub fn start_vcpu<M: Machine>(
        &mut self,
        m: &M,
        v: VcpuRef,
        s: &StartState,
    ) -> Result<(), Errno> {
        if !self.is_off(v) {
            return Err(Errno::EINVAL);
        }
        let d = self.domains.get_mut(v.slot).ok_or(Errno::ESRCH)?;
        let x = d.vcpus.get_mut(v.vcpu.idx()).ok_or(Errno::EINVAL)?;
        x.initialised = true;
        m.set_state(v, s);
        let cpu = self.sched.up(v, m.now());
        self.kick(cpu);
        Ok(())
    }

    /// XEN_DOMCTL_pausedomain and the reverse, which also starts a newly built domain.
    ///
    /// # Errors
    /// `ESRCH`; `EINVAL` when it is not paused.
    pub fn pause_domain<M: Machine>(
        &mut self,
        m: &M,
        slot: Slot,
        pause: bool,
    ) -> Result<(), Errno> {
        let d = self.domains.get_mut(slot).ok_or(Errno::ESRCH)?;
        if pause {
            d.paused = d.paused.checked_add(1).ok_or(Errno::EINVAL)?;
        } else {
            d.paused = d.paused.checked_sub(1).ok_or(Errno::EINVAL)?;
            d.creating = false;
        }
        let vcpus: u8 = d.vcpus.len() as u8;
        self.all_vcpus(m, slot, vcpus, pause);
        Ok(())
    }

    /// XEN_DOMCTL_pausedomain by `caller`, who makes the call again until it is true: no vcpu of the
    /// domain is on a CPU.
    ///
    /// # Errors
    /// As [`Hypervisor::pause_domain`].
    pub fn pause_domain_by<M: Machine>(
        &mut self,
        m: &M,
        slot: Slot,
        caller: VcpuRef,
    ) -> Result<bool, Errno> {
        let d = self.domains.get(slot).ok_or(Errno::ESRCH)?;
        if d.pausing != Some(caller) {
            self.pause_domain(m, slot, true)?;
        }
        let d = self.domains.get_mut(slot).ok_or(Errno::ESRCH)?;
        let still = d.vcpu_refs().any(|v| self.sched.running_on(v).is_some());
        d.pausing = still.then_some(caller);
        Ok(!still)
    }

    fn all_vcpus<M: Machine>(&mut self, m: &M, slot: Slot, n: u8, pause: bool) {
        let now = m.now();
        for vcpu in (0..n).map(VcpuId) {
            let v = VcpuRef { slot, vcpu };
            let cpu = if pause {
                self.sched.pause(v, now)
            } else {
                self.sched.unpause(v, now)
            };
            self.kick(cpu);
        }
        self.effects.resched = true;
    }

    /// As [`Hypervisor::notify`], of a domain of which nothing else is to be told.
    pub(crate) fn contended(&self, slot: Slot) {
        mark_contended((&self.contended, &self.effects), slot);
    }

    /// Ends the domains that kept a word that they share from being updated
    /// ([`Contended`](crate::machine::Contended)). The control domain is only reported: nobody but itself writes to its
    /// words, and its end would be the machine's.
    #[cold]
    pub fn end_contended<M: Machine>(&mut self, m: &M) {
        let mut set = self.contended.take();
        while set != 0 {
            let slot = Slot(set.trailing_zeros() as u8);
            set &= !bit_of(slot);
            let why =
                format_args!("stores without end to where a word of its own is to be updated");
            let privileged = self.domains.get(slot).is_some_and(|d| d.privileged);
            self.blame(m, slot, why, !privileged);
        }
    }

    /// Says in the log what a domain is to blame for, if that is worth a line ([`Hypervisor::may_report`]), and ends it.
    #[cold]
    #[inline(never)]
    pub fn blame<M: Machine>(
        &mut self,
        m: &M,
        slot: Slot,
        why: core::fmt::Arguments<'_>,
        end: bool,
    ) {
        if self.may_report(slot, m.now()) {
            log::error!("domain {}: {why}", self.domid(slot));
        }
        if end {
            self.shutdown_domain(m, slot, 3);
        }
    }

    /// A domain shuts itself down (or is made to): all its vcpus stop, the toolstack is told.
    /// dom0's shutdown is the machine's.
    pub fn shutdown_domain<M: Machine>(&mut self, m: &M, slot: Slot, reason: u32) {
        let Some(d) = self.domains.get_mut(slot) else {
            return;
        };
        if d.shutdown.is_some() || d.death != Death::Alive {
            return;
        }
        d.shutdown = Some(reason);
        let n = d.vcpus.len() as u8;
        let privileged = d.privileged;
        self.print_last(m, slot);
        if privileged {
            self.effects.then.set(Some(Then::Power(match reason {
                0 => Power::Off,
                1 => Power::Reset,
                reason => Power::Crashed(reason as u8),
            })));
        }
        self.all_vcpus(m, slot, n, true);
        self.dom0_virq(m, VIRQ_DOM_EXC);
    }

    /// Destroys a domain, a slice of it. When it succeeds nothing is left but pages that others hold
    /// references to. These are nobody's then, so that its slot, VMID and number can be used again.
    ///
    /// # Errors
    /// `ERESTART` while there is more to do: the caller tries again.
    pub fn destroy_slice<M: Machine>(&mut self, m: &M, slot: Slot) -> Result<(), Errno> {
        let d = self.domains.get_mut(slot).ok_or(Errno::ESRCH)?;
        match d.death {
            Death::Alive => {
                d.death = Death::Vcpus;
                let n = d.vcpus.len() as u8;
                self.print_last(m, slot);
                self.all_vcpus(m, slot, n, true);
            }
            Death::Vcpus => {
                for v in d.vcpu_refs() {
                    if let Some(cpu) = self.sched.running_on(v) {
                        self.effects.kick |= 1 << cpu.0;
                        return Err(Errno::ERESTART);
                    }
                }
                // Calls that were at work on its memory go on no more.
                if self.drop_extent(slot) {
                    return Err(Errno::ERESTART);
                }
                if let Some(d) = self.domains.get_mut(slot) {
                    d.death = Death::Events;
                    m.flush_vmid(d.p2m.vttbr());
                }
            }
            Death::Events => {
                let frames = &mut self.frames;
                let ports = m.room(limit::SLICE, cost::CLOSE);
                if self.events.destroy(slot, ports, m, |p| frames.put(p)) == Progress::Done {
                    let uart = self.domains.get_mut(slot).and_then(|d| d.vuart.take());
                    if let Some(page) = uart.and_then(|(u, _)| u.ring()) {
                        self.frames.put(page);
                    }
                    self.set_death(slot, Death::Grants);
                }
            }
            Death::Grants => {
                let (grants, mut host) = self.grants_and_host(m);
                let mappings = m.room(limit::SLICE, cost::GRANT + 2 * cost::FLUSH);
                if grants.destroy(&mut host, slot, mappings) != Destroyed::More {
                    self.set_death(slot, Death::Memory(Gfn(0)));
                }
            }
            Death::Memory(from) => {
                let at = self.release_memory(m, slot, from);
                self.set_death(slot, at.map_or(Death::Tables, Death::Memory));
            }
            Death::Tables => {
                let (d, mut c) = self.p2m_of(m, slot)?;
                if d.p2m.free_tables(&mut c, ENTRIES) {
                    d.death = Death::Pages(0);
                    c.frames.put(core::mem::replace(&mut d.shared_info, Mfn(0)));
                }
            }
            Death::Pages(from) => {
                m.spend(FRAMES * 6);
                match self.frames.disown(slot, ROOT_PAGES, from, FRAMES) {
                    Some(on) => d.death = Death::Pages(on),
                    None => {
                        self.contended.set(self.contended.get() & !bit_of(slot));
                        if let Some(d) = self.domains.remove(slot) {
                            self.forget_parts(m, d);
                            self.dom0_virq(m, VIRQ_DOM_EXC);
                        }
                        return Ok(());
                    }
                }
            }
        }
        Err(Errno::ERESTART)
    }

    /// Gives back what a call in slices has ready for a domain's memory, or was to give by one of its
    /// vcpus; one at a time, `false` when there is none.
    #[cold]
    fn drop_extent(&mut self, slot: Slot) -> bool {
        let found = self.domains.iter().find_map(|d| {
            let of = |x: &Extent| d.slot == slot || x.target == slot;
            let v = d.vcpu_refs().zip(&d.vcpus);
            let mut v = v.filter(|(_, v)| v.extent.as_ref().is_some_and(of));
            v.next().map(|(r, _)| r)
        });
        let Some(v) = found else { return false };
        let x = self
            .domains
            .get_mut(v.slot)
            .and_then(|d| d.vcpus.get_mut(v.vcpu.idx())?.extent.take());
        if let Some(block) = x.and_then(|x| x.block) {
            self.frames.discard(block);
        }
        true
    }

    fn set_death(&mut self, slot: Slot, death: Death) {
        if let Some(d) = self.domains.get_mut(slot) {
            d.death = death;
        }
    }

    /// Gives back a slice of a dying domain's memory; where to go on, or `None` at the end.
    fn release_memory<M: Machine>(&mut self, m: &M, slot: Slot, from: Gfn) -> Option<Gfn> {
        let d = self.domains.get_mut(slot)?;
        let mut at = from;
        let mut budget = i64::from(m.room(limit::SLICE, 2 * cost::WALK + 5 * cost::ENTRY));
        while let Some(page) = self.frames.unchain(&mut d.unmapped) {
            self.frames.put(page);
            budget = budget.saturating_sub(1);
            if budget <= 0 {
                return Some(at);
            }
        }
        while budget > 0 {
            let (gfn, map) = d.p2m.next_mapped(m, at, &mut budget)?;
            let Some(map) = map else { return Some(gfn) };
            let pages = 1u64 << map.order;
            if matches!(map.kind, Kind::Ram | Kind::Foreign) {
                let first = at.0.saturating_sub(gfn.0);
                let n = pages.saturating_sub(first).min(budget.max(1) as u64);
                let next = first.saturating_add(n);
                for k in first..next {
                    self.frames.put(map.mfn.plus(k));
                }
                budget = budget.saturating_sub(n as i64);
                at = gfn.plus(next);
            } else {
                budget = budget.saturating_sub(1);
                at = gfn.plus(pages);
            }
            if at == gfn.plus(pages) {
                d.p2m.clear_entry(m, gfn);
            }
        }
        Some(at)
    }

    /// A vcpu left its CPU: what its timers need while it sleeps. `ctl` and `cval` are its saved
    /// virtual timer. `cpu` is the CPU that will watch for it.
    pub fn vcpu_left<M: Machine>(&mut self, m: &M, v: VcpuRef, cpu: CpuId, ctl: u64, cval: u64) {
        self.vtimers.save_virtual(v.slot, v.vcpu, ctl, cval);
        self.watch(m, v, cpu);
    }

    /// A vcpu comes onto a CPU: nobody has to watch for it, and whatever it waited for is over.
    #[inline]
    pub fn vcpu_comes(&mut self, v: VcpuRef) {
        self.timers.clear(Timer::Vcpu(v));
        self.end_poll(v);
    }

    /// `cpu` watches for what may wake a vcpu, if it sleeps: its timers, and the end of SCHEDOP_poll.
    fn watch<M: Machine>(&mut self, m: &M, v: VcpuRef, cpu: CpuId) {
        let mut at = u64::MAX;
        if self.sched.is_blocked(v) {
            let quiet = self.vgics.hw_active(v.slot, v.vcpu, PPI_VIRTUAL);
            let timers = self.vtimers.deadline(v.slot, v.vcpu, true, quiet);
            at = timers.unwrap_or(u64::MAX).min(self.poll_end(m, v));
        }
        self.timers.set(Timer::Vcpu(v), cpu, at);
    }

    /// When a vcpu's SCHEDOP_poll gives up, in ticks; `u64::MAX` for never.
    fn poll_end<M: Machine>(&self, m: &M, v: VcpuRef) -> u64 {
        let x = self
            .domains
            .get(v.slot)
            .and_then(|d| d.vcpus.get(v.vcpu.idx()));
        match x.filter(|x| x.polling).map(|x| x.poll_until) {
            None | Some(u64::MAX) => u64::MAX,
            Some(ns) => m.ticks(ns),
        }
    }

    /// `cpu` watches over a domain's watchdogs, which were changed there; it arms its timer for that before a guest runs.
    pub fn watch_dogs<M: Machine>(&mut self, m: &M, slot: Slot, cpu: CpuId) {
        let dogs = self.domains.get(slot).map_or([0; 2], |d| d.watchdogs);
        let first = dogs.into_iter().filter(|&w| w != 0).min();
        let at = first.map_or(u64::MAX, |ns| m.ticks(ns));
        self.timers.set(Timer::Watchdog(slot), cpu, at);
        self.effects.resched = true;
    }

    /// When `cpu` must look at timers next: those that it watches, and the emulated one of `running`. In ticks.
    #[inline]
    #[must_use]
    pub fn next_timer(&self, cpu: CpuId, running: Option<VcpuRef>) -> u64 {
        let own = running.and_then(|v| self.vtimers.deadline(v.slot, v.vcpu, false, false));
        self.timers.first(cpu).min(own.unwrap_or(u64::MAX))
    }

    /// The timer of `cpu` rang: wakes those whose time has come, and ends domains whose watchdog
    /// was not renewed. What is left after some of them keeps [`Hypervisor::next_timer`] in the past, so that the
    /// timer rings again.
    pub fn timer_rang<M: Machine>(
        &mut self,
        m: &M,
        cpu: CpuId,
        running: Option<VcpuRef>,
        now_ticks: u64,
    ) {
        let now = m.now();
        if let Some(v) = running {
            self.expire_vcpu(v, false, now_ticks, now);
        }
        for _ in 0..DUE {
            match self.timers.take_due(cpu, now_ticks) {
                None => break,
                Some(Timer::Vcpu(v)) => {
                    if self.poll_end(m, v) <= now_ticks {
                        self.end_poll(v);
                        self.wake(v, now);
                    }
                    self.expire_vcpu(v, true, now_ticks, now);
                    self.watch(m, v, cpu);
                }
                Some(Timer::Watchdog(slot)) => {
                    let Some(d) = self.domains.get_mut(slot) else {
                        continue;
                    };
                    d.watchdogs = [0; 2];
                    self.shutdown_domain(m, slot, 4);
                }
            }
        }
    }

    fn expire_vcpu(&mut self, v: VcpuRef, asleep: bool, now_ticks: u64, now: u64) {
        let quiet = self.vgics.hw_active(v.slot, v.vcpu, PPI_VIRTUAL);
        let fired = self
            .vtimers
            .expire(v.slot, v.vcpu, now_ticks, asleep, quiet);
        if fired.physical {
            let e = self.vgics.set_level(v.slot, v.vcpu, PPI_PHYSICAL, true);
            self.kick_vcpus(v.slot, e.kick, now);
        }
        if fired.virt {
            let _ = self.vgics.inject_hw(v.slot, v.vcpu, PPI_VIRTUAL);
            self.wake(v, now);
        }
    }

    /// Wakes vcpus of a domain, or makes them look at their interrupts.
    pub fn kick_vcpus(&mut self, slot: Slot, mut set: u64, now: u64) {
        while set != 0 {
            let vcpu = VcpuId(set.trailing_zeros() as u8);
            set &= set.wrapping_sub(1);
            self.wake(VcpuRef { slot, vcpu }, now);
        }
    }

    /// Tells a vcpu how it spent its time, where it asked for that. Its EL1 registers must be in
    /// the CPU, as the address is one of its own virtual ones; an address that does not work is
    /// the guest's loss.
    pub fn write_runstate<M: Machine>(&mut self, m: &M, v: VcpuRef, now: u64) {
        let Some(d) = self.domains.get(v.slot) else {
            return;
        };
        let Some(area) = d
            .vcpus
            .get(v.vcpu.idx())
            .map(|x| x.runstate_area)
            .filter(|&a| a != 0)
        else {
            return;
        };
        let Some(r) = self.sched.runstate_at(v, now) else {
            return;
        };
        let guest = crate::guest::Guest {
            m,
            frames: &self.frames,
            domains: &self.domains,
            slot: v.slot,
        };
        let mut info = guest_abi::vcpu::VcpuRunstateInfo {
            state: r.state as u32,
            _pad: 0,
            state_entry_time: r.entry_time,
            time: r.time,
        };
        let flagged = d.assist & (1 << guest_abi::xen::VmAssist::RUNSTATE_UPDATE_FLAG) != 0;
        if flagged {
            let marked = r.entry_time | guest_abi::vcpu::RUNSTATE_UPDATE;
            if guest.put(area.wrapping_add(8), &marked).is_err() {
                return;
            }
            info.state_entry_time = marked;
        }
        let ok = guest.put(area, &info);
        if flagged && ok.is_ok() {
            let _ = guest.put(area.wrapping_add(8), &r.entry_time);
        }
    }
}
