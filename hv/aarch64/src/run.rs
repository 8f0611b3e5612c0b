// SPDX-License-Identifier: MIT OR Apache-2.0
//! From a trap to the next guest: the lock, what is to be done when it is dropped, the switch
//! from one vcpu to another, and idling.

use crate::mach::{Mach, counter};
use crate::vcpu::{self, VcpuFile};
use core::arch::asm;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use hv_core::cpu::Features;
use hv_core::hypervisor::{Effects, Hypervisor, Power, Then};
use hv_core::machine::{Cache, Clock};
use hv_core::types::{CpuId, Pa, Slot, VcpuId, VcpuRef};
use hv_core::vgic::{ListRegs, PhysIrqs};
use platform::gic::Gic;
use platform::lock::{Guard, Lock};
use platform::mmio::Mmio;
use platform::psci::Psci;
use spin::Once;

/// The one lock: all policy runs under it. IRQs stay masked at EL2, so a holder is never
/// interrupted, and every operation under it is bounded.
pub static HV: Once<Lock<Hypervisor>> = Once::new();
/// The machine.
pub static MACH: Once<Mach> = Once::new();
/// The interrupt controller.
pub static GIC: Once<Gic> = Once::new();
/// What starts CPUs and stops the machine.
pub static FIRMWARE: Once<Firmware> = Once::new();
/// Bit n: CPU n takes kicks.
pub static ONLINE: AtomicU64 = AtomicU64::new(0);

/// SGI that makes a CPU look at its vcpu and its queue.
pub const SGI_KICK: u32 = 0;
/// Event-channel interrupt of every guest.
pub const PPI_EVENT: u32 = guest_abi::arch::GUEST_EVTCHN_PPI;

/// See [`FIRMWARE`].
pub struct Firmware {
    /// Firmware calls, where there are any.
    pub psci: Option<Psci>,
    /// The power management block of boards without them.
    pub pm: Option<Mmio>,
}

/// Emulation constants that boot found out.
pub struct Fixed {
    /// HCR_EL2 of every guest.
    pub hcr: u64,
    /// What the CPUs have.
    pub has: Features,
    /// PPIs: virtual timer, the hypervisor's timer, GIC maintenance.
    pub ppi_virt: u32,
    /// The hypervisor's timer.
    pub ppi_hyp: u32,
    /// GIC maintenance.
    pub ppi_maint: u32,
    /// Longest time, in ticks, that a vcpu runs without a physical interrupt, where the GIC needs that
    /// ([`Gic::overlooks`]).
    pub longest_run: u64,
    /// The UART's interrupt.
    pub uart: Option<u32>,
    /// Emulated distributor in the control domain: address and size.
    pub dom0_gicd: (u64, u64),
    /// Emulated redistributors in the control domain; GICv2: the second page of its CPU interface.
    pub dom0_gicr: (u64, u64),
    /// Both in other domains.
    pub guest_gic: ((u64, u64), (u64, u64)),
    /// What programs rely on of CTR_EL0 and DCZID_EL0.
    pub caches: (u64, u64),
    /// The CPUs have PSTATE.PAN.
    pub pan: bool,
    /// What guests are told of speculation, and what is done between two domains.
    pub workarounds: hv_core::psci::Workarounds,
    /// Firmware's answers that make it so.
    pub offered: hv_core::errata::Offered,
    /// What guests see of the ID registers.
    pub ids: hv_core::sysreg::IdRegs,
}
/// See [`Fixed`].
pub static FIXED: Once<Fixed> = Once::new();

/// The machine.
#[inline]
pub fn mach() -> &'static Mach {
    // SAFETY: set at boot before the first guest or other CPU runs, and nothing calls this before.
    unsafe { MACH.get_unchecked() }
}

/// The interrupt controller.
#[inline]
pub fn gic() -> &'static Gic {
    // SAFETY: as for `mach`.
    unsafe { GIC.get_unchecked() }
}

/// The constants.
#[inline]
pub fn fixed() -> &'static Fixed {
    // SAFETY: as for `mach`.
    unsafe { FIXED.get_unchecked() }
}

/// The lock.
#[inline]
pub fn hv() -> &'static Lock<Hypervisor> {
    // SAFETY: as for `mach`.
    unsafe { HV.get_unchecked() }
}

/// This CPU's list registers.
pub struct Lrs;

impl ListRegs for Lrs {
    fn count(&self) -> usize {
        gic().nr_lrs()
    }
    fn read(&self, n: usize) -> u64 {
        gic().read_lr(n)
    }
    fn write(&mut self, n: usize, value: u64) {
        gic().write_lr(n, value);
    }
    fn empty(&self) -> u32 {
        gic().elrsr()
    }
    fn control(&mut self, bits: u32) {
        gic().set_hcr(platform::gic::HCR_EN | bits);
    }
    fn ends(&mut self) -> u32 {
        gic().take_ends()
    }
}

/// Carries out what a vGIC operation asks of physical interrupts.
#[inline]
pub fn physical(p: PhysIrqs) {
    if p.any() {
        physical_one_by_one(p);
    }
}

#[cold]
#[inline(never)]
fn physical_one_by_one(p: PhysIrqs) {
    for b in 0..32 {
        let irq = p.base + b;
        if p.enable & (1 << b) != 0 {
            gic().enable(irq);
        }
        if p.disable & (1 << b) != 0 {
            gic().disable(irq);
        }
        if p.deactivate & (1 << b) != 0 {
            gic().set_active(irq, false);
        }
    }
}

/// Interrupts other CPUs; a kick for this one is its own business.
pub fn send_kicks(set: u64, cpu: CpuId) {
    let mut set = set & ONLINE.load(Ordering::Relaxed) & !(1 << cpu.0);
    while set != 0 {
        gic().send_sgi(SGI_KICK, set.trailing_zeros() as usize);
        set &= set - 1;
    }
}

/// When the board's watchdog is to be fed, in ticks; `u64::MAX`: never.
static FEED: AtomicU64 = AtomicU64::new(u64::MAX);

/// Has the board's watchdog look after the hypervisor from now on.
pub fn feed_from_now() {
    FEED.store(0, Ordering::Relaxed);
    feed();
}

/// Feeds the board's watchdog, if it has one and it is time. To be called on one CPU; answers when it is time again.
#[inline]
pub fn feed() -> u64 {
    match FEED.load(Ordering::Relaxed) {
        u64::MAX => u64::MAX,
        at => feed_at(at),
    }
}

#[cold]
fn feed_at(at: u64) -> u64 {
    let now = counter();
    if now < at {
        return at;
    }
    if let Some(Firmware { pm: Some(pm), .. }) = FIRMWARE.get() {
        platform::power::watch(*pm);
    }
    let next = now.saturating_add(platform::timer::frequency() * 4);
    FEED.store(next, Ordering::Relaxed);
    next
}

/// Stops or restarts the machine.
pub fn power(p: Power) -> ! {
    crate::console::flush();
    match FIRMWARE.get() {
        Some(Firmware {
            psci: Some(psci), ..
        }) => {
            let e = match p {
                Power::Off => psci.system_off(),
                _ => psci.system_reset(),
            };
            log::error!("the firmware did not {p:?} the machine: {e}");
        }
        Some(Firmware { pm: Some(pm), .. }) => platform::power::reset(*pm, matches!(p, Power::Off)),
        _ => log::error!("{p:?}: this machine has no way to do it"),
    }
    halt()
}

/// Stops this CPU.
pub fn halt() -> ! {
    loop {
        // SAFETY: waits; interrupts are masked.
        unsafe { asm!("wfi", options(nomem, nostack)) };
    }
}

fn switch_out(h: &mut Hypervisor, v: VcpuRef, cpu: CpuId, now: u64) {
    let Some(f) = vcpu::file(v) else { return };
    h.write_runstate(mach(), v, now);
    let kicks = h.vgics.unload(v.slot, v.vcpu, &mut Lrs);
    h.kick_vcpus(v.slot, kicks, now);
    vcpu::leave(f);
    gic().save_vif(&mut f.vif);
    h.vcpu_left(mach(), v, cpu, f.cntv_ctl, f.cntv_cval);
    if h.vgics.hw_active(v.slot, v.vcpu, fixed().ppi_virt) {
        gic().set_active(fixed().ppi_virt, false);
    }
}

fn switch_in(h: &mut Hypervisor, v: VcpuRef, cpu: CpuId, now: u64) {
    let Some(f) = vcpu::file(v) else { return };
    let Some(d) = h.domains.get_mut(v.slot) else {
        return;
    };
    f.cpu = cpu.0;
    f.vttbr = Some(d.p2m.vttbr());
    let fresh = d.p2m.comes_onto(cpu, v.vcpu);
    f.vmpidr = hv_core::psci::vmpidr(v.vcpu);
    f.cntvoff = h.vtimers.offset(v.slot);
    f.hcr = vcpu::hcr(fixed().hcr, f);
    h.vcpu_comes(v);
    if h.vgics.hw_active(v.slot, v.vcpu, fixed().ppi_virt) {
        gic().set_active(fixed().ppi_virt, true);
    }
    gic().restore_vif(&f.vif);
    between_domains(v.slot, cpu);
    vcpu::enter(f, fixed().has, fresh);
    h.write_runstate(mach(), v, now);
}

/// The domain whose vcpu was on each CPU last.
static LAST: [AtomicU8; platform::dt::MAX_CPUS] =
    [const { AtomicU8::new(0) }; platform::dt::MAX_CPUS];

/// Has the firmware forget what branches of the last domain on this CPU did, where it has to.
fn between_domains(slot: Slot, cpu: CpuId) {
    let function = fixed().workarounds.between_domains();
    if function != 0
        && let Some(last) = LAST.get(cpu.idx())
        && last.swap(slot.0, Ordering::Relaxed) != slot.0
    {
        workaround(function, 0);
    }
}

/// Calls firmware's workaround.
#[cold]
pub fn workaround(function: u32, argument: u64) {
    if let Some(psci) = FIRMWARE.get().and_then(|f| f.psci) {
        psci.workaround(function, argument);
    }
}

/// Cleans a slice of the memory of a domain whose vcpu asked for that by set and way.
fn clean(f: &mut VcpuFile) {
    let next = hv().lock().next_to_clean(mach(), f.who.slot, &mut f.setway);
    match next {
        Some((mfn, pages)) => mach().clean(Pa(mfn.addr()), pages * 4096),
        None => mach().drop_instructions(),
    }
}

/// Decides who runs on this CPU, makes it so, and gives the register file to enter with. `loaded`
/// is the vcpu whose registers are in the CPU.
pub fn resume(cpu: CpuId, mut loaded: Option<VcpuRef>) -> *mut VcpuFile {
    loop {
        let mut h = hv().lock();
        let now_ticks = counter();
        let now = mach().ns(now_ticks);
        // What led here. As far as it is this CPU's, what follows answers it; what comes after that is for another round.
        let before = h.effects.take();
        let d = h.sched.schedule(cpu, now);
        if loaded != d.run {
            if vcpu::serror_pending(fixed().has) {
                let charged = loaded.map_or(Slot(0), |v| v.slot);
                crate::trap::serror(&mut h, charged, vcpu::take_serror(fixed().has));
            }
            if let Some(old) = loaded.take() {
                switch_out(&mut h, old, cpu, now);
            }
            if let Some(new) = d.run {
                switch_in(&mut h, new, cpu, now);
                loaded = Some(new);
            }
        }
        h.effects.kick |= d.kick.map_or(0, |c| 1 << c.0);
        if let Some(v) = d.run {
            flush(&mut h, v);
            // Who waits for a lock spins with WFE: its holder may be what waits for this CPU.
            let wanted = h.sched.wanted(cpu);
            if let Some(f) = vcpu::file(v)
                && f.wanted != wanted
            {
                f.wanted = wanted;
                vcpu::set_hcr(f, vcpu::hcr(fixed().hcr, f));
            }
        }
        let at = h.next_timer(cpu, d.run);
        let until = if d.until == u64::MAX {
            u64::MAX
        } else {
            mach().ticks(d.until)
        };
        let mut first = at.min(until);
        if d.run.is_some() {
            first = first.min(now_ticks.saturating_add(fixed().longest_run));
        }
        if cpu.0 == 0 {
            first = first.min(feed());
        }
        if first == u64::MAX {
            platform::timer::disarm();
        } else {
            platform::timer::arm(first);
        }
        let after = h.effects.take();
        drop(h);
        send_kicks(before.kick | before.look | after.kick | after.look, cpu);
        if before.then.get().or(after.then.get()).is_some() {
            first_of_all(&before, &after, cpu);
            continue;
        }
        if after.concern(cpu) {
            continue;
        }
        if let Some(v) = d.run
            && let Some(f) = vcpu::file(v)
        {
            if f.setway.due() {
                clean(f);
                interrupts(cpu, loaded);
                continue;
            }
            vcpu::set_current(f);
            return f;
        }
        // Nothing to run: sleep until an interrupt, which stays masked and is taken by hand.
        // SAFETY: waits for an interrupt.
        unsafe { asm!("dsb sy", "wfi", options(nostack)) };
        interrupts(cpu, None);
    }
}

/// What comes before any guest goes on.
#[cold]
fn first_of_all(before: &Effects, after: &Effects, cpu: CpuId) {
    let of = |fx: &Effects| match fx.then.get() {
        Some(Then::Power(p)) => Some(p),
        _ => None,
    };
    if let Some(p) = of(before).or(of(after)) {
        log::info!("{p:?}, {} bytes of the heap in use", crate::heap::used());
        match p {
            Power::Crashed(reason) => crate::last::dom0_ended(reason, cpu),
            p => power(p),
        }
    }
    hv().lock().end_contended(mach());
}

/// Whether the vcpu that trapped on this CPU can go on at once: nothing that was done under the lock
/// is a matter for [`resume`]. Its new interrupts are in the list registers then, and other CPUs
/// are told what is theirs; if not, [`resume`] does both.
#[inline(always)]
pub fn settle(h: Guard<'_, Hypervisor>, v: VcpuRef, cpu: CpuId) -> bool {
    if h.effects.none() {
        drop(h);
        return true;
    }
    carry_out(h, v, cpu)
}

#[inline(never)]
fn carry_out(mut h: Guard<'_, Hypervisor>, v: VcpuRef, cpu: CpuId) -> bool {
    let own = 1 << cpu.0;
    let fx = &h.effects;
    if fx.resched || fx.then.get().is_some() {
        return false;
    }
    if fx.kick & own != 0 {
        let now = mach().ns(counter());
        let Some(until) = h.sched.stays(cpu, now) else {
            return false;
        };
        platform::timer::arm_by(mach().ticks(until));
    }
    if (h.effects.kick | h.effects.look) & own != 0 {
        flush(&mut h, v);
    }
    let fx = &mut h.effects;
    let others = (fx.kick | fx.look) & !own;
    fx.kick = 0;
    fx.look = 0;
    drop(h);
    if others != 0 {
        send_kicks(others, cpu);
    }
    true
}

/// Puts the interrupts of the vcpu on this CPU into the list registers.
pub fn flush(h: &mut Hypervisor, v: VcpuRef) {
    let k = h.vgics.flush(v.slot, v.vcpu, &mut Lrs);
    if k != 0 {
        let now = mach().ns(counter());
        h.kick_vcpus(v.slot, k, now);
    }
}

/// Handles physical interrupts that are pending. `running` is the vcpu that was interrupted. False
/// when there were none but that vcpu's own, which are in its list registers: it can go on.
pub fn interrupts(cpu: CpuId, running: Option<VcpuRef>) -> bool {
    let mut look = running.is_none();
    loop {
        let ack = gic().ack();
        let irq = ack.intid();
        if irq >= platform::gic::SPURIOUS_FROM {
            return look;
        }
        gic().eoi(ack);
        let f = fixed();
        if irq == f.ppi_virt {
            let given = running.and_then(|v| {
                let mut h = hv().lock();
                let _ = h.vgics.inject_hw(v.slot, v.vcpu, irq)?;
                flush(&mut h, v);
                look |= (h.effects.kick | h.effects.look) != 0;
                Some(())
            });
            if given.is_none() {
                gic().deactivate(ack);
            }
            continue;
        }
        if irq >= 32 && Some(irq) != f.uart {
            let mut h = hv().lock();
            // SPIs that are passed through belong to the control domain, slot 0.
            match h.vgics.inject_hw(Slot(0), VcpuId(0), irq) {
                Some(e) => {
                    let now = mach().ns(counter());
                    h.kick_vcpus(Slot(0), e.kick, now);
                    drop(h);
                    physical(e.phys);
                    look = true;
                }
                None => gic().deactivate(ack),
            }
            continue;
        }
        if irq == SGI_KICK && crate::panic::happened() {
            halt();
        }
        look |= irq != f.ppi_maint && Some(irq) != f.uart;
        if irq == f.ppi_hyp {
            platform::timer::disarm();
            let mut h = hv().lock();
            h.timer_rang(mach(), cpu, running, counter());
        } else if irq == f.ppi_maint {
            if let Some(v) = running {
                // The line stays high until the list registers are written anew.
                let mut h = hv().lock();
                h.vgics.maintenance(v.slot, v.vcpu);
                flush(&mut h, v);
                look |= (h.effects.kick | h.effects.look) != 0;
            }
        } else if Some(irq) == f.uart {
            look |= typed();
        }
        gic().deactivate(ack);
    }
}

/// The UART's interrupt. Whether bytes came in: they are the control domain's.
pub fn typed() -> bool {
    let mut bytes = [0; 64];
    let n = crate::console::interrupt(&mut bytes);
    if n == 0 {
        return false;
    }
    let mut h = hv().lock();
    for &b in &bytes[..n] {
        let _ = h.console.typed(b);
    }
    h.dom0_virq(mach(), hv_core::hypervisor::VIRQ_CONSOLE);
    true
}
