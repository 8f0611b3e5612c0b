// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests' timers, as far as the hypervisor has a part in them.
//!
//! - The **virtual timer** (CNTV, PPI 27) is the guest's own while it runs: nothing traps, and
//!   its interrupt is linked to the hardware (see [`crate::vgic`]). Only while a vcpu sleeps is
//!   it watched here: the shell saves `CNTV_CTL` and `CNTV_CVAL` when the vcpu leaves its CPU
//!   ([`VTimers::save_virtual`]), and the hypervisor's timer stands in for it.
//! - The **physical timer** (CNTP, PPI 30) traps and is emulated, so that it costs nothing to
//!   those who do not use it. Its counter is the machine's, without offset.
//!
//! Times are ticks of the physical counter.
//!
//! # What the shell does
//! 1. Trapped `CNTP_{CTL,CVAL,TVAL}_EL0` ([`TimerReg`]): [`VTimers::read`], [`VTimers::write`]; a write gives
//!    the line's level for `Vgics::set_level(slot, vcpu, 30, level)`.
//! 2. A vcpu is **about to run**: the hypervisor's timer is armed for
//!    [`VTimers::deadline`]`(.., asleep = false, ..)`, among whatever else the CPU waits for.
//! 3. A vcpu **sleeps**: after [`VTimers::save_virtual`], armed for `deadline(.., asleep =
//!    true, virtual_quiet)` with `virtual_quiet = Vgics::hw_active(slot, vcpu, 27)`: an
//!    interrupt that is already there and not ended does not come again.
//! 4. At that time: [`VTimers::expire`]. `physical` says that PPI 30's line is now high
//!    (`set_level(.., 30, true)`); `virt` that the virtual timer of a sleeping vcpu fired
//!    (`inject_hw(.., 27)`). The kicks of those calls wake the vcpu.

use crate::sysreg::TimerReg;
use crate::types::{Errno, MAX_DOMAINS, MAX_VCPUS, Slot, VcpuId};
use alloc::vec::Vec;

/// INTID of the virtual timer.
pub const PPI_VIRTUAL: u32 = 27;
/// INTID of the (non-secure EL1) physical timer.
pub const PPI_PHYSICAL: u32 = 30;

const ENABLE: u64 = 1;
const IMASK: u64 = 2;
const ISTATUS: u64 = 4;

/// What happened by now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fired {
    /// The physical timer's line is high, which it was not at the last look.
    pub physical: bool,
    /// The sleeping vcpu's virtual timer fired.
    pub virt: bool,
}

#[derive(Clone, Copy, Default)]
struct Timer {
    /// ENABLE and IMASK.
    cntp_ctl: u64,
    cntp_cval: u64,
    /// The line as last told to the vGIC.
    line: bool,
    /// The virtual timer as saved, in the domain's virtual ticks.
    cntv_ctl: u64,
    cntv_cval: u64,
}

impl Timer {
    /// The physical timer's condition.
    fn met(&self, now: u64) -> bool {
        self.cntp_ctl & ENABLE != 0 && now >= self.cntp_cval
    }
    fn level(&self, now: u64) -> bool {
        self.met(now) && self.cntp_ctl & IMASK == 0
    }
    /// When the saved virtual timer raises its interrupt, if it does. A compare value that is
    /// past counts as now.
    fn virtual_deadline(&self, offset: u64) -> Option<u64> {
        if self.cntv_ctl & (ENABLE | IMASK) != ENABLE {
            return None;
        }
        // Beyond the counter's range: never.
        self.cntv_cval.checked_add(offset)
    }
}

struct Timers {
    offset: u64,
    vcpus: Vec<Timer>,
}

/// All domains' timers.
pub struct VTimers {
    doms: [Option<Timers>; MAX_DOMAINS],
}

impl Default for VTimers {
    fn default() -> Self {
        Self::new()
    }
}

impl VTimers {
    /// No domain has timers yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            doms: [const { None }; MAX_DOMAINS],
        }
    }

    fn vcpu(&mut self, slot: Slot, vcpu: VcpuId) -> Option<&mut Timer> {
        self.doms
            .get_mut(slot.idx())?
            .as_mut()?
            .vcpus
            .get_mut(vcpu.idx())
    }

    /// Gives a new domain its timers, off. `cntvoff` is what its virtual counter lags behind
    /// the physical one.
    ///
    /// # Errors
    /// `EINVAL`, `EEXIST`, `ENOMEM`.
    pub fn create_domain(
        &mut self,
        slot: Slot,
        nr_vcpus: usize,
        cntvoff: u64,
    ) -> Result<(), Errno> {
        if nr_vcpus == 0 || nr_vcpus > MAX_VCPUS {
            return Err(Errno::EINVAL);
        }
        let place = self.doms.get_mut(slot.idx()).ok_or(Errno::EINVAL)?;
        if place.is_some() {
            return Err(Errno::EEXIST);
        }
        let mut vcpus = Vec::new();
        crate::room::reserve(&mut vcpus, nr_vcpus)?;
        vcpus.resize(nr_vcpus, Timer::default());
        *place = Some(Timers {
            offset: cntvoff,
            vcpus,
        });
        Ok(())
    }

    /// Forgets a domain's timers.
    pub fn destroy_domain(&mut self, slot: Slot) {
        if let Some(d) = self.doms.get_mut(slot.idx()) {
            *d = None;
        }
    }

    /// The domain's `CNTVOFF_EL2`, 0 if it has no timers.
    #[inline]
    #[must_use]
    pub fn offset(&self, slot: Slot) -> u64 {
        self.doms
            .get(slot.idx())
            .and_then(Option::as_ref)
            .map_or(0, |d| d.offset)
    }

    /// A guest's read of its physical timer at time `now`.
    #[inline]
    #[must_use]
    pub fn read(&mut self, slot: Slot, vcpu: VcpuId, reg: TimerReg, now: u64) -> u64 {
        let Some(t) = self.vcpu(slot, vcpu) else {
            return 0;
        };
        match reg {
            TimerReg::Ctl => t.cntp_ctl | if t.met(now) { ISTATUS } else { 0 },
            TimerReg::Cval => t.cntp_cval,
            TimerReg::Tval => t.cntp_cval.wrapping_sub(now) & 0xffff_ffff,
            TimerReg::Count => now,
        }
    }

    /// A guest's write to its physical timer at time `now`. Gives the level of PPI 30's line
    /// after it. The hypervisor's timer must be armed anew.
    #[inline]
    pub fn write(&mut self, slot: Slot, vcpu: VcpuId, reg: TimerReg, value: u64, now: u64) -> bool {
        let Some(t) = self.vcpu(slot, vcpu) else {
            return false;
        };
        match reg {
            TimerReg::Ctl => t.cntp_ctl = value & (ENABLE | IMASK),
            TimerReg::Cval => t.cntp_cval = value,
            // 32 bits, signed
            TimerReg::Tval => t.cntp_cval = now.wrapping_add(value as i32 as i64 as u64),
            TimerReg::Count => {} // read only
        }
        t.line = t.level(now);
        t.line
    }

    /// Takes note of a vcpu's virtual timer, which is no longer in the processor.
    #[inline]
    pub fn save_virtual(&mut self, slot: Slot, vcpu: VcpuId, ctl: u64, cval: u64) {
        if let Some(t) = self.vcpu(slot, vcpu) {
            (t.cntv_ctl, t.cntv_cval) = (ctl, cval);
        }
    }

    /// When the hypervisor must look at this vcpu's timers next, if ever; may be past. The
    /// virtual timer counts only while the vcpu is `asleep` (saved, not in the processor) and
    /// not `virtual_quiet` (its interrupt is already there).
    #[inline]
    #[must_use]
    pub fn deadline(
        &self,
        slot: Slot,
        vcpu: VcpuId,
        asleep: bool,
        virtual_quiet: bool,
    ) -> Option<u64> {
        let d = self.doms.get(slot.idx())?.as_ref()?;
        let t = d.vcpus.get(vcpu.idx())?;
        let physical = (t.cntp_ctl & (ENABLE | IMASK) == ENABLE && !t.line).then_some(t.cntp_cval);
        let virt = if asleep && !virtual_quiet {
            t.virtual_deadline(d.offset)
        } else {
            None
        };
        match (physical, virt) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// The time of [`Self::deadline`] has come, or may have: what fired by `now`. `asleep` and
    /// `virtual_quiet` as there.
    pub fn expire(
        &mut self,
        slot: Slot,
        vcpu: VcpuId,
        now: u64,
        asleep: bool,
        virtual_quiet: bool,
    ) -> Fired {
        let offset = self.offset(slot);
        let Some(t) = self.vcpu(slot, vcpu) else {
            return Fired::default();
        };
        let physical = !t.line && t.level(now);
        t.line |= physical;
        let virt = asleep && !virtual_quiet && t.virtual_deadline(offset).is_some_and(|d| now >= d);
        Fired { physical, virt }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TimerReg as Reg;

    const S: Slot = Slot(3);
    const V: VcpuId = VcpuId(1);

    fn timers() -> VTimers {
        let mut t = VTimers::new();
        t.create_domain(S, 2, 1000).unwrap();
        t
    }

    #[test]
    fn domains_come_and_go() {
        let mut t = timers();
        assert_eq!(t.create_domain(S, 1, 0), Err(Errno::EEXIST));
        assert_eq!(t.create_domain(Slot(4), 0, 0), Err(Errno::EINVAL));
        assert_eq!(
            t.create_domain(Slot(4), MAX_VCPUS + 1, 0),
            Err(Errno::EINVAL)
        );
        assert_eq!(t.create_domain(Slot(200), 1, 0), Err(Errno::EINVAL));
        assert_eq!(t.offset(S), 1000);
        t.write(S, V, Reg::Cval, 5, 0);
        t.destroy_domain(S);
        t.destroy_domain(Slot(255));
        assert_eq!(t.read(S, V, Reg::Cval, 0), 0);
        t.create_domain(S, 2, 0).unwrap();
        assert_eq!(
            t.read(S, V, Reg::Cval, 0),
            0,
            "nothing is left of the one before"
        );
        // Vcpus that are not there.
        assert!(!t.write(S, VcpuId(2), Reg::Ctl, 1, 0));
        assert_eq!(t.deadline(S, VcpuId(63), true, false), None);
    }

    #[test]
    fn physical_timer_counts_down_fires_and_is_quieted() {
        let mut t = timers();
        assert!(!t.write(S, V, Reg::Tval, 50, 100));
        assert_eq!(t.deadline(S, V, false, false), None, "not enabled");
        assert!(!t.write(S, V, Reg::Ctl, ENABLE | ISTATUS, 100));
        assert_eq!(t.read(S, V, Reg::Ctl, 149), ENABLE);
        assert_eq!(t.read(S, V, Reg::Tval, 120), 30);
        assert_eq!(t.deadline(S, V, false, false), Some(150));
        assert_eq!(t.expire(S, V, 149, false, false), Fired::default());
        assert_eq!(
            t.expire(S, V, 150, false, false),
            Fired {
                physical: true,
                virt: false
            }
        );
        assert_eq!(
            t.expire(S, V, 151, false, false),
            Fired::default(),
            "told once"
        );
        assert_eq!(
            t.deadline(S, V, false, false),
            None,
            "the line is high already"
        );
        assert_eq!(t.read(S, V, Reg::Ctl, 160), ENABLE | ISTATUS);
        assert_eq!(
            t.read(S, V, Reg::Tval, 160),
            0xffff_fff6,
            "negative, 32 bits"
        );
        assert!(!t.write(S, V, Reg::Ctl, ENABLE | IMASK, 160), "masked: low");
        assert_eq!(t.read(S, V, Reg::Ctl, 160), ENABLE | IMASK | ISTATUS);
        assert!(
            t.write(S, V, Reg::Ctl, ENABLE, 160),
            "and high again at once"
        );
        assert!(!t.write(S, V, Reg::Cval, 500, 160));
        assert_eq!(t.deadline(S, V, false, false), Some(500));
    }

    #[test]
    fn extremes() {
        let mut t = timers();
        t.write(S, V, Reg::Ctl, !0, 0);
        assert_eq!(t.read(S, V, Reg::Ctl, 0) & !7, 0);
        assert!(!t.write(S, V, Reg::Ctl, ENABLE, 0) || t.read(S, V, Reg::Cval, 0) == 0);
        assert!(t.write(S, V, Reg::Tval, 0xffff_ffff, 100), "one tick ago");
        assert_eq!(t.read(S, V, Reg::Cval, 0), 99);
        assert!(!t.write(S, V, Reg::Cval, u64::MAX, u64::MAX - 1));
        assert!(t.write(S, V, Reg::Cval, u64::MAX, u64::MAX));
        assert!(!t.write(S, V, Reg::Tval, 0x7fff_ffff, 0));
        // The virtual timer at a time that never comes.
        t.save_virtual(S, V, ENABLE, u64::MAX);
        t.write(S, V, Reg::Ctl, 0, 0);
        assert_eq!(t.deadline(S, V, true, false), None);
        assert_eq!(t.expire(S, V, u64::MAX, true, false), Fired::default());
    }

    #[test]
    fn virtual_timer_of_a_sleeping_vcpu() {
        let mut t = timers();
        t.save_virtual(S, V, ENABLE | ISTATUS, 50);
        assert_eq!(
            t.deadline(S, V, false, false),
            None,
            "awake: the processor does it"
        );
        assert_eq!(t.deadline(S, V, true, true), None, "there already");
        assert_eq!(t.deadline(S, V, true, false), Some(1050));
        assert_eq!(t.expire(S, V, 1049, true, false), Fired::default());
        assert_eq!(
            t.expire(S, V, 1050, true, false),
            Fired {
                physical: false,
                virt: true
            }
        );
        for ctl in [0, IMASK, ENABLE | IMASK] {
            t.save_virtual(S, V, ctl, 50);
            assert_eq!(t.deadline(S, V, true, false), None);
        }
        // The earlier of both.
        t.save_virtual(S, V, ENABLE, 50);
        t.write(S, V, Reg::Cval, 1040, 0);
        t.write(S, V, Reg::Ctl, ENABLE, 0);
        assert_eq!(t.deadline(S, V, true, false), Some(1040));
        t.write(S, V, Reg::Cval, 1060, 0);
        assert_eq!(t.deadline(S, V, true, false), Some(1050));
        assert_eq!(
            t.expire(S, V, 1060, true, false),
            Fired {
                physical: true,
                virt: true
            }
        );
    }
}
