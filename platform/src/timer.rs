// SPDX-License-Identifier: MIT OR Apache-2.0
//! The generic timer at EL2: the physical counter, the hypervisor's own timer (CNTHP), and the
//! saved part of a guest's virtual timer (CNTV), which the guest owns while it runs.
//! Times are in ticks of the counter (Arm ARM, D12).

use crate::sysreg::{isb, mrs, msr};

/// `CNT*_CTL.ENABLE`.
pub const CTL_ENABLE: u64 = 1;
/// `CNT*_CTL.IMASK`: the timer raises no interrupt.
pub const CTL_IMASK: u64 = 2;
/// `CNT*_CTL.ISTATUS`, read only: the time has come.
pub const CTL_ISTATUS: u64 = 4;

/// `CNTHCTL_EL2.EL1PCTEN`: EL1 may read the physical counter.
const CNTHCTL_EL1PCTEN: u64 = 1;

/// A guest's timer registers that live in the processor while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestTimer {
    /// `CNTV_CTL_EL0`: ENABLE and IMASK (ISTATUS is as it was when saved).
    pub cntv_ctl: u64,
    /// `CNTV_CVAL_EL0`, in virtual counter ticks.
    pub cntv_cval: u64,
    /// `CNTKCTL_EL1`: what EL0 may read.
    pub cntkctl: u64,
}

/// The physical counter.
#[inline]
#[must_use]
pub fn now() -> u64 {
    isb(); // the counter may otherwise be read early
    mrs!("cntpct_el0")
}

/// Ticks per second, as the firmware says.
#[must_use]
pub fn frequency() -> u64 {
    mrs!("cntfrq_el0") & 0xffff_ffff
}

/// Once on each CPU: guests may read the physical counter, their use of the physical timer
/// traps, the hypervisor's timer is off, and so is the virtual timer.
pub fn init_cpu() {
    msr!("cnthctl_el2", CNTHCTL_EL1PCTEN);
    msr!("cnthp_ctl_el2", 0);
    msr!("cntv_ctl_el0", 0);
    msr!("cntp_ctl_el0", 0);
    msr!("cntvoff_el2", 0);
    isb();
}

/// Arms this CPU's hypervisor timer: its PPI is raised from `deadline` (physical counter) on.
#[inline]
pub fn arm(deadline: u64) {
    msr!("cnthp_cval_el2", deadline);
    msr!("cnthp_ctl_el2", CTL_ENABLE);
    isb();
}

/// Arms this CPU's hypervisor timer, unless it is armed for an earlier time.
#[inline]
pub fn arm_by(deadline: u64) {
    let (control, armed) = (mrs!("cnthp_ctl_el2"), mrs!("cnthp_cval_el2"));
    if control & CTL_ENABLE == 0 || armed > deadline {
        arm(deadline);
    }
}

/// Turns this CPU's hypervisor timer off; its PPI goes low.
#[inline]
pub fn disarm() {
    msr!("cnthp_ctl_el2", 0);
    isb();
}

/// Takes the guest's timer out of the processor: saves it and turns it off, so that it raises
/// no interrupt while somebody else runs.
#[inline]
pub fn save_guest(t: &mut GuestTimer) {
    t.cntv_ctl = mrs!("cntv_ctl_el0");
    t.cntv_cval = mrs!("cntv_cval_el0");
    t.cntkctl = mrs!("cntkctl_el1");
    msr!("cntv_ctl_el0", 0);
}

/// Puts a guest's timer into the processor. `cntvoff` is the domain's: its virtual counter is
/// the physical one minus that. The PPI may be raised at once.
#[inline]
pub fn restore_guest(t: &GuestTimer, cntvoff: u64) {
    msr!("cntvoff_el2", cntvoff);
    msr!("cntkctl_el1", t.cntkctl);
    msr!("cntv_cval_el0", t.cntv_cval);
    isb(); // never enabled with another guest's compare value
    msr!("cntv_ctl_el0", t.cntv_ctl & (CTL_ENABLE | CTL_IMASK));
}

/// The running guest's virtual timer: (`CNTV_CTL_EL0`, `CNTV_CVAL_EL0`).
#[inline]
#[must_use]
pub fn guest_virtual() -> (u64, u64) {
    (mrs!("cntv_ctl_el0"), mrs!("cntv_cval_el0"))
}
