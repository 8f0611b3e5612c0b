// SPDX-License-Identifier: MIT OR Apache-2.0
//! The scheduler: shares the CPUs among runnable vcpus in proportion to their domains' weights.
//!
//! Every vcpu has a *virtual runtime*: the time it ran, in ns, scaled by 256 / weight. A CPU runs the
//! least of the vcpus in its queue, for a slice; and at a slice's end it takes a vcpu waiting
//! on another CPU instead if that one is behind by more than a slice. So all virtual runtimes move together,
//! whatever CPU a vcpu is on, and that is fairness. A CPU that would be idle takes any waiting vcpu.
//!
//! Virtual runtimes may drift apart where fairness is impossible (more weight than one CPU can
//! serve, hard affinity) or idle (everybody has a CPU). What a vcpu is owed or owes is therefore bounded
//! wherever it meets others: against the *clock* of the CPU whose queue it enters (the
//! virtual runtime at which that CPU last picked), and, while it is alone on a CPU, against
//! the slowest clock of the CPUs where vcpus wait.
//!
//! A CPU whose vcpu has no one to yield to runs without a deadline. When somebody waits anywhere,
//! each such CPU must come back to look: [`Scheduler::wake`] and [`Decision::kick`] name one at a
//! time, the next is named by the one before.
//!
//! Times are ns of one monotonic clock, given by the caller.

use alloc::vec::Vec;

use crate::hypervisor::NothingToTake;
use crate::types::{CpuId, Errno, MAX_CPUS, MAX_DOMAINS, MAX_VCPUS, Slot, VcpuId, VcpuRef};

#[cfg(test)]
mod tests;

/// Weight of a domain that was given none.
pub const WEIGHT_DEFAULT: u32 = 256;
/// Largest weight.
pub const WEIGHT_MAX: u32 = 65535;

/// Longest time, in ns, that a vcpu runs while another one waits.
pub const SLICE_NS: u64 = 10_000_000;
/// Slice of a vcpu of small weight: a slice is in proportion to weight between the two.
const SLICE_MIN_NS: u64 = 1_000_000;
/// A vcpu is not preempted before it ran for so long, in ns, since it came onto its CPU. What it sends meanwhile,
/// packets say, is then served together, and not each at the price of two switches.
const MIN_RUN_NS: u64 = 1_000_000;
/// A woken vcpu preempts one that is ahead by more than this.
const GRANULARITY: u64 = 1_000_000;
/// A vcpu waiting elsewhere is taken if it is behind by more than this.
const STEAL: u64 = SLICE_NS;
/// How far behind its new CPU's clock a vcpu may be after it slept.
const BONUS: u64 = SLICE_NS;
/// How far behind it may be after it waited elsewhere.
const LAG: u64 = 500_000_000;
/// How far ahead it may be, beyond what a slice costs it.
const LEAD: u64 = 100_000_000;

/// States of a vcpu as guests are told: `RUNSTATE_*` of `vcpu.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// On a CPU.
    Running = 0,
    /// Waits for a CPU.
    Runnable = 1,
    /// Waits for an event.
    Blocked = 2,
    /// Down or paused.
    Offline = 3,
}

/// How a vcpu spent its time: `vcpu_runstate_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runstate {
    /// The state that it is in.
    pub state: State,
    /// Since when, in ns.
    pub entry_time: u64,
    /// Time in each state, in ns, the present stay not included.
    pub time: [u64; 4],
}

impl Runstate {
    fn enter(&mut self, state: State, now: u64) {
        if let Some(t) = self.time.get_mut(self.state as usize) {
            *t = t.wrapping_add(now.saturating_sub(self.entry_time));
        }
        self.state = state;
        self.entry_time = now;
    }
}

/// What a CPU is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Decision {
    /// The vcpu to run, or idle.
    pub run: Option<VcpuRef>,
    /// When to call [`Scheduler::schedule`] again at the latest, `u64::MAX` for never.
    pub until: u64,
    /// Another CPU that is to call it now.
    pub kick: Option<CpuId>,
}

/// Reasons not to run, bits of [`Vcpu::stop`].
const OFFLINE: u8 = 1;
const BLOCKED: u8 = 2;
const PAUSED: u8 = 4;
/// Runnable, but must leave the CPU that it runs on.
const MOVE: u8 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Nowhere,
    Queued(CpuId),
    Running(CpuId),
}

#[derive(Debug)]
struct Vcpu {
    /// Why it may not run; 0 if it may.
    stop: u8,
    place: Place,
    /// The CPU it was on last.
    home: CpuId,
    pauses: u32,
    /// Virtual runtime; wraps.
    virt: u64,
    /// `virt` counts the time on a CPU until then.
    charged: u64,
    /// CPUs that it may run on.
    affinity: u64,
    runstate: Runstate,
}

impl Vcpu {
    fn runnable(&self) -> bool {
        self.stop & !MOVE == 0
    }

    /// Takes the state of a vcpu that is on no CPU.
    fn settle(&mut self, now: u64) {
        let state = if self.runnable() {
            State::Runnable
        } else if self.stop & OFFLINE == 0 && self.stop & BLOCKED != 0 {
            State::Blocked
        } else {
            State::Offline
        };
        if state != self.runstate.state {
            self.runstate.enter(state, now);
        }
    }
}

#[derive(Debug)]
struct Domain {
    weight: u32,
    /// 256 / weight, 16 bits after the point.
    scale: u64,
    vcpus: Vec<Vcpu>,
}

impl Domain {
    const fn new(weight: u32) -> Self {
        Self {
            weight,
            scale: match (256u64 << 16).checked_div(weight as u64) {
                Some(scale) => scale,
                None => 256 << 16,
            },
            vcpus: Vec::new(),
        }
    }

    fn slice(&self) -> u64 {
        (SLICE_NS / 256 * u64::from(self.weight)).clamp(SLICE_MIN_NS, SLICE_NS)
    }
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    virt: u64,
    who: VcpuRef,
}

#[derive(Debug)]
struct Cpu {
    current: Option<VcpuRef>,
    /// The current vcpu wants others to go first.
    yielded: bool,
    /// End of the current vcpu's slice; 0 if it has none.
    slice_end: u64,
    /// When it came onto this CPU.
    since: u64,
    /// Virtual runtime of the vcpu picked last, never falling while vcpus wait here.
    clock: u64,
    /// Vcpus waiting, the one to run first last.
    queue: Vec<Waiting>,
}

/// Real time to virtual time.
#[inline]
const fn scaled(ns: u64, scale: u64) -> u64 {
    ((ns as u128).wrapping_mul(scale as u128) >> 16) as u64
}

/// True if virtual runtime `a` is less than `b`.
#[inline]
const fn less(a: u64, b: u64) -> bool {
    (a.wrapping_sub(b) as i64) < 0
}

/// `virt` moved into `clock - lag ..= clock + lead`.
fn bounded(virt: u64, clock: u64, lag: u64, lead: u64) -> u64 {
    let (low, high) = (clock.wrapping_sub(lag), clock.wrapping_add(lead));
    if less(virt, low) {
        low
    } else if less(high, virt) {
        high
    } else {
        virt
    }
}

const fn bit(cpu: CpuId) -> u64 {
    1 << (cpu.0 & 63)
}

fn lowest(set: u64) -> Option<CpuId> {
    (set != 0).then(|| CpuId(set.trailing_zeros() as u8))
}

/// All vcpus and what each CPU runs.
///
/// Methods on a vcpu or CPU that does not exist do nothing. Where a method gives a CPU, that CPU
/// (which may be the caller's own) is to call [`Scheduler::schedule`] soon.
#[derive(Debug)]
pub struct Scheduler {
    cpus: Vec<Cpu>,
    domains: Vec<Domain>,
    /// CPUs that run: no vcpu is placed on another.
    online: u64,
    /// CPUs that have nothing to run, and were not told otherwise.
    idle: u64,
    /// CPUs that run a vcpu without a deadline, and were not told otherwise.
    untimed: u64,
    /// Vcpus in all queues.
    waiting: usize,
    vcpus: usize,
}

impl Scheduler {
    /// For CPUs 0 to `ncpus` - 1, of which those in `online` run already, all idle. Allocates; for boot.
    #[must_use]
    pub fn new(ncpus: usize, online: u64) -> Self {
        let cpu = || Cpu {
            current: None,
            yielded: false,
            slice_end: 0,
            since: 0,
            clock: 0,
            queue: Vec::new(),
        };
        let ncpus = ncpus.clamp(1, MAX_CPUS);
        let all = 1u64.wrapping_shl(ncpus as u32).wrapping_sub(1);
        Self {
            cpus: (0..ncpus).map(|_| cpu()).collect(),
            domains: (0..MAX_DOMAINS)
                .map(|_| Domain::new(WEIGHT_DEFAULT))
                .collect(),
            online: online & all,
            idle: online & all,
            untimed: 0,
            waiting: 0,
            vcpus: 0,
        }
    }

    #[inline]
    fn vcpu(&self, who: VcpuRef) -> Option<&Vcpu> {
        self.domains.get(who.slot.idx())?.vcpus.get(who.vcpu.idx())
    }

    #[inline]
    fn vcpu_mut(&mut self, who: VcpuRef) -> Option<&mut Vcpu> {
        self.domains
            .get_mut(who.slot.idx())?
            .vcpus
            .get_mut(who.vcpu.idx())
    }

    /// A CPU runs from now on, and will call [`Self::schedule`].
    pub fn online(&mut self, cpu: CpuId) {
        if cpu.idx() < self.cpus.len() {
            self.online |= bit(cpu);
            self.idle |= bit(cpu);
        }
    }

    /// Adds the domain's next vcpu, offline and not paused, that may run on every CPU. Everything that
    /// running it may need is allocated here. `EINVAL`: not the next one; `ENOMEM`.
    pub fn add_vcpu(&mut self, who: VcpuRef, now: u64) -> Result<(), Errno> {
        let next = self.vcpus.checked_rem(self.cpus.len());
        let next = CpuId(next.unwrap_or(0) as u8);
        let home = lowest(self.online & bit(next))
            .or(lowest(self.online))
            .unwrap_or(next);
        let domain = self.domains.get_mut(who.slot.idx()).ok_or(Errno::EINVAL)?;
        if who.vcpu.idx() != domain.vcpus.len() || who.vcpu.idx() >= MAX_VCPUS {
            return Err(Errno::EINVAL);
        }
        crate::room::reserve(&mut domain.vcpus, 1)?;
        for cpu in &mut self.cpus {
            let more = self.vcpus.saturating_add(1);
            let more = more.saturating_sub(cpu.queue.len());
            crate::room::reserve(&mut cpu.queue, more)?;
        }
        domain.vcpus.push(Vcpu {
            stop: OFFLINE,
            place: Place::Nowhere,
            home,
            pauses: 0,
            virt: 0,
            charged: now,
            affinity: u64::MAX,
            runstate: Runstate {
                state: State::Offline,
                entry_time: now,
                time: [0; 4],
            },
        });
        self.vcpus = self.vcpus.saturating_add(1);
        Ok(())
    }

    /// Removes all vcpus of a domain. `EBUSY`: one is still on a CPU (stop it, kick the CPU, try again).
    pub fn remove_domain(&mut self, slot: Slot) -> Result<(), Errno> {
        let domain = self.domains.get_mut(slot.idx()).ok_or(Errno::EINVAL)?;
        if domain
            .vcpus
            .iter()
            .any(|v| matches!(v.place, Place::Running(_)))
        {
            return Err(Errno::EBUSY);
        }
        self.vcpus = self.vcpus.saturating_sub(domain.vcpus.len());
        *domain = Domain::new(WEIGHT_DEFAULT);
        for cpu in &mut self.cpus {
            let before = cpu.queue.len();
            cpu.queue.retain(|w| w.who.slot != slot);
            let gone = before.saturating_sub(cpu.queue.len());
            self.waiting = self.waiting.saturating_sub(gone);
        }
        Ok(())
    }

    /// Adds a reason not to run. Gives the CPU that it is on.
    fn stop(&mut self, who: VcpuRef, reason: u8, now: u64) -> Option<CpuId> {
        let v = self.vcpu_mut(who)?;
        v.stop |= reason;
        if let Place::Running(cpu) = v.place {
            return Some(cpu);
        }
        v.settle(now);
        self.dequeue(who);
        None
    }

    /// Removes a reason not to run; if it was the last, the vcpu waits for a CPU.
    fn start(&mut self, who: VcpuRef, reason: u8, now: u64) -> Option<CpuId> {
        let v = self.vcpu_mut(who)?;
        if v.stop & reason == 0 {
            return None;
        }
        v.stop &= !reason;
        if v.place != Place::Nowhere {
            return None;
        }
        v.settle(now);
        if v.runnable() {
            self.place(who, now, BONUS)
        } else {
            None
        }
    }

    /// The vcpu is up (`VCPUOP_up`, PSCI `CPU_ON`).
    pub fn up(&mut self, who: VcpuRef, now: u64) -> Option<CpuId> {
        self.start(who, OFFLINE, now)
    }

    /// The vcpu is down. Gives the CPU that it is on.
    pub fn down(&mut self, who: VcpuRef, now: u64) -> Option<CpuId> {
        self.stop(who, OFFLINE, now)
    }

    /// The vcpu waits until [`Self::wake`]. If it is on a CPU, that one is to call
    /// [`Self::schedule`] next; woken before, it just goes on.
    pub fn block(&mut self, who: VcpuRef, now: u64, _: NothingToTake) {
        self.stop(who, BLOCKED, now);
    }

    /// Ends [`Self::block`].
    pub fn wake(&mut self, who: VcpuRef, now: u64) -> Option<CpuId> {
        self.start(who, BLOCKED, now)
    }

    /// Stops the vcpu until [`Self::unpause`] was called as often. Gives the CPU that it is on.
    pub fn pause(&mut self, who: VcpuRef, now: u64) -> Option<CpuId> {
        let v = self.vcpu_mut(who)?;
        v.pauses = v.pauses.saturating_add(1);
        self.stop(who, PAUSED, now)
    }

    /// Ends one [`Self::pause`].
    pub fn unpause(&mut self, who: VcpuRef, now: u64) -> Option<CpuId> {
        let v = self.vcpu_mut(who)?;
        v.pauses = v.pauses.saturating_sub(1);
        if v.pauses == 0 {
            self.start(who, PAUSED, now)
        } else {
            None
        }
    }

    /// The CPU's vcpu lets one that waits go first. If there is one (true), that CPU is to call
    /// [`Self::schedule`] next.
    pub fn yield_now(&mut self, cpu: CpuId) -> bool {
        if self.waiting != 0
            && let Some(c) = self.cpus.get_mut(cpu.idx())
        {
            c.yielded = true;
            return true;
        }
        false
    }

    /// Lets a vcpu run on the CPUs of a bit mask only. `EINVAL`: none of them exists.
    pub fn set_affinity(
        &mut self,
        who: VcpuRef,
        mask: u64,
        now: u64,
    ) -> Result<Option<CpuId>, Errno> {
        let mask = mask & self.online;
        let v = self.vcpu_mut(who).ok_or(Errno::ESRCH)?;
        if mask == 0 {
            return Err(Errno::EINVAL);
        }
        v.affinity = mask;
        match v.place {
            Place::Nowhere => Ok(None),
            Place::Running(cpu) => {
                let stay = mask & bit(cpu) != 0;
                v.stop = if stay { v.stop & !MOVE } else { v.stop | MOVE };
                Ok((!stay).then_some(cpu))
            }
            Place::Queued(_) => {
                self.dequeue(who);
                Ok(self.place(who, now, LAG))
            }
        }
    }

    /// CPUs that the vcpu may run on, of those that run.
    #[must_use]
    pub fn affinity(&self, who: VcpuRef) -> u64 {
        self.vcpu(who).map_or(0, |v| v.affinity & self.online)
    }

    /// Sets a domain's weight. Its vcpus start even with the others: a small weight's debts are
    /// forgiven. `EINVAL`: not 1 to 65535.
    pub fn set_weight(&mut self, slot: Slot, weight: u32) -> Result<(), Errno> {
        let domain = self.domains.get_mut(slot.idx()).ok_or(Errno::EINVAL)?;
        if weight == 0 || weight > WEIGHT_MAX {
            return Err(Errno::EINVAL);
        }
        domain.weight = weight;
        domain.scale = Domain::new(weight).scale;
        for n in 0..domain.vcpus.len() {
            let who = VcpuRef {
                slot,
                vcpu: VcpuId(n as u8),
            };
            let Some(&Vcpu { place, home, .. }) = self.vcpu(who) else {
                continue;
            };
            let clock = self.cpus.get(home.idx()).map_or(0, |c| c.clock);
            self.dequeue(who);
            if let Some(v) = self.vcpu_mut(who) {
                v.virt = bounded(v.virt, clock, BONUS, BONUS);
            }
            if let Place::Queued(cpu) = place {
                self.enqueue(who, cpu);
            }
        }
        Ok(())
    }

    /// A domain's weight.
    #[must_use]
    pub fn weight(&self, slot: Slot) -> u32 {
        self.domains.get(slot.idx()).map_or(0, |d| d.weight)
    }

    /// Whether another vcpu waits for this very CPU.
    #[must_use]
    #[inline]
    pub fn wanted(&self, cpu: CpuId) -> bool {
        self.cpus
            .get(cpu.idx())
            .is_some_and(|c| !c.queue.is_empty())
    }

    /// The vcpu that a CPU runs.
    #[must_use]
    #[inline]
    pub fn current(&self, cpu: CpuId) -> Option<VcpuRef> {
        self.cpus.get(cpu.idx())?.current
    }

    /// The CPU that a vcpu is on.
    #[must_use]
    pub fn running_on(&self, who: VcpuRef) -> Option<CpuId> {
        match self.vcpu(who)?.place {
            Place::Running(cpu) => Some(cpu),
            _ => None,
        }
    }

    /// The CPU that a vcpu is on, or was on last.
    #[must_use]
    pub fn home(&self, who: VcpuRef) -> CpuId {
        self.vcpu(who).map_or(CpuId(0), |v| v.home)
    }

    /// True if the vcpu runs or waits for a CPU.
    #[must_use]
    pub fn is_runnable(&self, who: VcpuRef) -> bool {
        self.vcpu(who).is_some_and(Vcpu::runnable)
    }

    /// True if the vcpu is down.
    #[must_use]
    pub fn is_down(&self, who: VcpuRef) -> bool {
        self.vcpu(who).is_none_or(|v| v.stop & OFFLINE != 0)
    }

    /// True if the vcpu waits for [`Self::wake`].
    #[must_use]
    pub fn is_blocked(&self, who: VcpuRef) -> bool {
        self.vcpu(who).is_some_and(|v| v.stop & BLOCKED != 0)
    }

    /// How the vcpu spent its time, as of its last change of state: what a guest's runstate area
    /// is to hold.
    #[must_use]
    #[inline]
    pub fn runstate(&self, who: VcpuRef) -> Option<&Runstate> {
        Some(&self.vcpu(who)?.runstate)
    }

    /// The same with the present stay added: `VCPUOP_get_runstate_info`.
    #[must_use]
    pub fn runstate_at(&self, who: VcpuRef, now: u64) -> Option<Runstate> {
        let mut rs = self.vcpu(who)?.runstate;
        let entry_time = rs.entry_time;
        rs.enter(rs.state, now);
        Some(Runstate { entry_time, ..rs })
    }

    /// Time that a domain's vcpus were on CPUs, in ns.
    #[must_use]
    pub fn cpu_time(&self, slot: Slot, now: u64) -> u64 {
        let running = |v: &Vcpu| match v.runstate.state {
            State::Running => now.saturating_sub(v.runstate.entry_time),
            _ => 0,
        };
        let vcpus = self.domains.get(slot.idx()).map(|d| d.vcpus.iter());
        vcpus.into_iter().flatten().fold(0, |sum: u64, v| {
            let [past, ..] = v.runstate.time;
            sum.wrapping_add(past).wrapping_add(running(v))
        })
    }

    /// Decides what a CPU runs next. Called by that CPU: when its deadline passed, its vcpu
    /// stopped or yielded, or it was kicked.
    #[inline]
    pub fn schedule(&mut self, cpu: CpuId, now: u64) -> Decision {
        if self.waiting == 0
            && let Some(c) = self.cpus.get_mut(cpu.idx())
            && let Some(who) = c.current
            && let Some(d) = self.domains.get(who.slot.idx())
            && let Some(v) = d.vcpus.get(who.vcpu.idx())
            && v.stop == 0
        {
            c.slice_end = 0;
            self.untimed |= bit(cpu);
            return Decision {
                run: Some(who),
                until: u64::MAX,
                kick: None,
            };
        }
        self.reschedule(cpu, now)
    }

    /// Whether the CPU's vcpu goes on although one that was woken would go first: it came onto its CPU just now. Then
    /// the CPU is to call [`Self::schedule`] at the time that is given.
    #[inline]
    pub fn stays(&mut self, cpu: CpuId, now: u64) -> Option<u64> {
        let c = self.cpus.get(cpu.idx())?;
        let settled = c.since.saturating_add(MIN_RUN_NS);
        let others = self.untimed & !bit(cpu);
        if c.yielded || now >= settled || self.vcpu(c.current?)?.stop != 0 || others != 0 {
            return None;
        }
        self.untimed &= !bit(cpu);
        Some(settled)
    }

    fn reschedule(&mut self, cpu: CpuId, now: u64) -> Decision {
        self.charge(cpu, now);
        let Some(c) = self.cpus.get_mut(cpu.idx()) else {
            return Decision {
                run: None,
                until: u64::MAX,
                kick: None,
            };
        };
        let yielded = core::mem::take(&mut c.yielded);
        let (old, slice_end) = (c.current, c.slice_end);
        let settled = c.since.saturating_add(MIN_RUN_NS);
        let head = c.queue.last().copied();
        let own = old.and_then(|who| {
            let v = self.vcpu(who)?;
            (v.stop == 0).then_some(Waiting { virt: v.virt, who })
        });

        if let Some(own) = own
            && !yielded
        {
            let behind = head.is_some_and(|h| less(h.virt.wrapping_add(GRANULARITY), own.virt));
            let until = if behind || slice_end <= now {
                settled
            } else {
                slice_end
            };
            if now < until {
                self.untimed &= !bit(cpu);
                let kick = self.kick_untimed();
                return Decision {
                    run: old,
                    until,
                    kick,
                };
            }
        }

        let local = match (own, head) {
            (Some(own), Some(h)) if yielded || less(h.virt, own.virt) => Some(h),
            (None, h) => h,
            (own, _) => own,
        };
        let next = match (local, self.elsewhere(cpu)) {
            (Some(l), Some(e)) if less(e.virt.wrapping_add(STEAL), l.virt) => Some(e),
            (None, e) => e,
            (l, _) => l,
        };
        if next.map(|n| n.who) != old {
            if let Some(n) = next {
                self.dequeue(n.who);
            }
            return self.switch(cpu, old, next, local.is_some(), yielded, now);
        }
        self.begin(cpu, old, None, now)
    }

    /// Puts another vcpu, or none, on a CPU. `next` is in no queue.
    fn switch(
        &mut self,
        cpu: CpuId,
        old: Option<VcpuRef>,
        next: Option<Waiting>,
        contended: bool,
        yielded: bool,
        now: u64,
    ) -> Decision {
        let clock = self.cpus.get(cpu.idx()).map_or(0, |c| c.clock);
        if let Some(next) = next
            && let Some(v) = self.vcpu_mut(next.who)
        {
            if contended && v.home != cpu {
                v.virt = bounded(v.virt, clock, LAG, LAG);
            }
            v.place = Place::Running(cpu);
            v.home = cpu;
            v.charged = now;
            v.runstate.enter(State::Running, now);
        }
        if let Some(c) = self.cpus.get_mut(cpu.idx()) {
            c.current = next.map(|n| n.who);
            c.since = now;
        }
        let mut kick = None;
        if let Some(who) = old
            && let Some(v) = self.vcpu_mut(who)
        {
            v.place = Place::Nowhere;
            v.stop &= !MOVE;
            if let (true, Some(next)) = (yielded, next)
                && less(v.virt, next.virt)
            {
                v.virt = next.virt;
            }
            v.settle(now);
            if v.runnable() {
                kick = self.requeue(who, cpu, now);
            }
        }
        self.begin(cpu, next.map(|n| n.who), kick, now)
    }

    /// Starts a slice of the vcpu that is now current, or idleness.
    fn begin(
        &mut self,
        cpu: CpuId,
        who: Option<VcpuRef>,
        kick: Option<CpuId>,
        now: u64,
    ) -> Decision {
        self.untimed &= !bit(cpu);
        self.idle &= !bit(cpu);
        let mut until = u64::MAX;
        if let Some(who) = who
            && let Some(d) = self.domains.get(who.slot.idx())
            && let Some(v) = d.vcpus.get(who.vcpu.idx())
            && let Some(c) = self.cpus.get_mut(cpu.idx())
        {
            if c.queue.is_empty() || less(c.clock, v.virt) {
                c.clock = v.virt;
            }
            if self.waiting == 0 {
                c.slice_end = 0;
                self.untimed |= bit(cpu);
            } else {
                until = now.saturating_add(d.slice());
                c.slice_end = until;
            }
        } else {
            self.idle |= bit(cpu);
        }
        let kick = kick.or_else(|| self.kick_untimed());
        Decision {
            run: who,
            until,
            kick,
        }
    }

    /// If a vcpu waits, a CPU that must be told so.
    fn kick_untimed(&mut self) -> Option<CpuId> {
        if self.waiting == 0 {
            return None;
        }
        let cpu = lowest(self.untimed)?;
        self.untimed &= !bit(cpu);
        Some(cpu)
    }

    /// Adds to the virtual runtime of a CPU's vcpu what it ran.
    fn charge(&mut self, cpu: CpuId, now: u64) {
        let slowest = self.slowest_clock();
        let Some(c) = self.cpus.get_mut(cpu.idx()) else {
            return;
        };
        let Some(who) = c.current else { return };
        let Some(d) = self.domains.get_mut(who.slot.idx()) else {
            return;
        };
        let (scale, slice) = (d.scale, scaled(d.slice(), d.scale));
        let Some(v) = d.vcpus.get_mut(who.vcpu.idx()) else {
            return;
        };
        let ran = now.saturating_sub(v.charged);
        v.charged = v.charged.max(now);
        v.virt = v.virt.wrapping_add(scaled(ran, scale));
        if c.queue.is_empty() {
            if let Some(slowest) = slowest {
                v.virt = bounded(v.virt, slowest, LAG, LEAD.wrapping_add(slice << 1));
            }
            c.clock = v.virt;
        }
    }

    /// The least clock of the CPUs where vcpus wait.
    fn slowest_clock(&self) -> Option<u64> {
        if self.waiting == 0 {
            return None;
        }
        let contended = self
            .cpus
            .iter()
            .filter(|c| c.current.is_some() && !c.queue.is_empty());
        contended
            .map(|c| c.clock)
            .reduce(|a, b| if less(b, a) { b } else { a })
    }

    /// The vcpu that waits on another CPU, may run on this one and is behind most.
    fn elsewhere(&self, cpu: CpuId) -> Option<Waiting> {
        if self.waiting == 0 {
            return None;
        }
        let mut best: Option<Waiting> = None;
        for (n, c) in self.cpus.iter().enumerate() {
            if n == cpu.idx() {
                continue;
            }
            let may = |w: &&Waiting| self.affinity(w.who) & bit(cpu) != 0;
            if let Some(&w) = c.queue.iter().rev().find(may)
                && best.is_none_or(|b| less(w.virt, b.virt))
            {
                best = Some(w);
            }
        }
        best
    }

    /// Puts a runnable vcpu, in no queue, where it will run soonest; after sleeping or waiting it is
    /// owed `lag` at most.
    fn place(&mut self, who: VcpuRef, now: u64, lag: u64) -> Option<CpuId> {
        let (slowest, idle) = (self.slowest_clock(), self.idle);
        let affinity = self.affinity(who);
        let v = self.vcpu_mut(who)?;
        let home = v.home;
        let idle = affinity & idle;
        if idle != 0 {
            let mut virt = v.virt;
            if let Some(clock) = slowest
                && less(virt, clock.wrapping_sub(lag))
            {
                virt = clock.wrapping_sub(lag);
                v.virt = virt;
            }
            let cpu = if idle & bit(home) != 0 {
                home
            } else {
                lowest(idle)?
            };
            self.enqueue(who, cpu);
            if let Some(c) = self.cpus.get_mut(cpu.idx()) {
                c.clock = virt;
            }
            self.idle &= !bit(cpu);
            return Some(cpu);
        }
        // The CPU whose vcpu is ahead most, its own if that is good enough.
        let home = if affinity & bit(home) != 0 {
            home
        } else {
            lowest(affinity)?
        };
        let mut best = (home, self.placed_at(who, home, now, lag)?);
        if best.1.1 <= GRANULARITY as i64 {
            for n in 0..self.cpus.len() {
                let cpu = CpuId(n as u8);
                if affinity & bit(cpu) != 0
                    && let Some(at) = self.placed_at(who, cpu, now, lag)
                    && at.1 > best.1.1.max(GRANULARITY as i64)
                {
                    best = (cpu, at);
                }
            }
        }
        let (cpu, (virt, ahead)) = best;
        if let Some(v) = self.vcpu_mut(who) {
            v.virt = virt;
        }
        self.enqueue(who, cpu);
        if ahead > GRANULARITY as i64 || self.untimed & bit(cpu) != 0 {
            self.untimed &= !bit(cpu);
            return Some(cpu);
        }
        self.kick_untimed()
    }

    /// The virtual runtime that a vcpu would have on a busy CPU, and by how much that one's vcpu is ahead.
    fn placed_at(&mut self, who: VcpuRef, cpu: CpuId, now: u64, lag: u64) -> Option<(u64, i64)> {
        self.charge(cpu, now);
        let c = self.cpus.get(cpu.idx())?;
        let virt = bounded(self.vcpu(who)?.virt, c.clock, lag, LAG);
        let ahead = match c.current.and_then(|r| self.vcpu(r)) {
            Some(current) if current.stop == 0 => current.virt.wrapping_sub(virt) as i64,
            // It was kicked and comes for whatever waits.
            _ => 0,
        };
        Some((virt, ahead))
    }

    /// Puts back a runnable vcpu that gave way on a CPU.
    fn requeue(&mut self, who: VcpuRef, cpu: CpuId, now: u64) -> Option<CpuId> {
        let affinity = self.affinity(who);
        if affinity & bit(cpu) == 0 || affinity & self.idle != 0 {
            return self.place(who, now, LAG);
        }
        self.enqueue(who, cpu);
        None
    }

    fn enqueue(&mut self, who: VcpuRef, cpu: CpuId) {
        let Some(v) = self.vcpu_mut(who) else { return };
        v.place = Place::Queued(cpu);
        let virt = v.virt;
        if let Some(c) = self.cpus.get_mut(cpu.idx()) {
            // After its equals. There is room: `add_vcpu` made it.
            let at = c.queue.partition_point(|w| less(virt, w.virt));
            c.queue.insert(at, Waiting { virt, who });
            self.waiting = self.waiting.saturating_add(1);
        }
    }

    fn dequeue(&mut self, who: VcpuRef) {
        let Some(v) = self.vcpu_mut(who) else { return };
        let Place::Queued(cpu) = v.place else { return };
        v.place = Place::Nowhere;
        let virt = v.virt;
        if let Some(c) = self.cpus.get_mut(cpu.idx()) {
            let from = c.queue.partition_point(|w| less(virt, w.virt));
            let found = c.queue.iter().skip(from).position(|w| w.who == who);
            if let Some(at) = found {
                c.queue.remove(from.saturating_add(at));
                self.waiting = self.waiting.saturating_sub(1);
            }
        }
    }
}
