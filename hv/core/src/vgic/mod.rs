// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interrupt controllers that guests see: an emulated GICv2 (IHI 0048) or GICv3 (IHI 0069)
//! distributor per domain over the machine's list registers. A domain's version is the
//! machine's; the CPU interface is the hardware's own (GICV page or `ICC_*` registers), so
//! acknowledging and ending interrupts never traps.
//!
//! # Where the state is
//! All of an interrupt's state is in banks of 32 here. List registers are a cache of it: an
//! interrupt that is in one has its `in_lr` bit set, and its pending and active state is then
//! the register's. [`Vgics::unload`] brings everything back, so a vcpu that does not run has
//! nothing in hardware and may run on any CPU next.
//!
//! # What the shell does
//! 1. **Before each entry** to a guest: [`Vgics::flush`]. When nothing changed it is a load and
//!    a branch.
//! 2. **Before it hands a trap on this GIC's registers to [`Vgics::mmio_read`] or
//!    [`Vgics::mmio_write`]**, and before it asks [`Vgics::deliverable`] at a trapped WFI:
//!    [`Vgics::sync`] on the running vcpu (free when no list register is in use).
//! 3. **When a vcpu leaves a CPU** (switch, block, death): [`Vgics::unload`].
//! 4. **Maintenance interrupt**: acknowledge, end and deactivate it, then
//!    [`Vgics::maintenance`]; the flush that follows does the work.
//! 5. **[`Effects::kick`]**: a vcpu that runs on another CPU gets an SGI (its exit flushes); one
//!    that blocks is woken; the current one needs nothing.
//! 6. **[`Effects::phys`]**: enable, disable or deactivate these physical interrupts.
//! 7. A trapped write to `ICC_DIR_EL1` or `GICV_DIR` goes to [`Vgics::deactivate`], in the order of 2.
//! 8. `ICC_SGI1R_EL1` writes go to [`Vgics::sgi1r`]; `ICC_SGI0R_EL1` and `ICC_ASGI1R_EL1` are
//!    ignored (no interrupt of the guest is in those groups); `ICC_SRE_EL1` reads as 7 and
//!    ignores writes.
//!
//! # The virtual timer's interrupt, PPI 27
//! It is linked to the hardware: the shell acknowledges the physical PPI 27, drops its priority
//! (`eoi`), does **not** deactivate it, and calls [`Vgics::inject_hw`]. The list register
//! carries the link, so the guest's own end-of-interrupt deactivates the physical one, and if
//! the timer still asserts, it comes again: no masking, no trap, and a guest needs no habits of
//! any particular system. In between the physical PPI is *active* on that CPU, which belongs to
//! the vcpu, so a switch moves it along:
//!
//! - out: [`Vgics::unload`], then save and disable `CNTV`; `was = hw_active(old, 27)`;
//! - in: `now = hw_active(new, 27)`; if `was != now`, write PPI 27's active bit (a CPU that
//!   idled or ran a vcpu without it: `was = false`), and only then restore `CNTV`.
//!
//! A vcpu that sleeps has its timer watched by [`crate::vtimer`]; when that says the virtual
//! timer fired, [`Vgics::inject_hw`] with 27 puts the same state up without a further interrupt.
//!
//! # Interrupts of devices that are passed through
//! An SPI given with [`Vgics::link`] has the same number in the guest as in the machine. It is
//! acknowledged, priority-dropped and given to [`Vgics::inject_hw`] in the same way.
//!
//! # Rules that need no trap at the end of an interrupt
//! - A latched interrupt (edge, or [`Vgics::pulse`]) that fires again while active becomes
//!   "active and pending" in its list register.
//! - Where the register cannot say that it must come again (a line still high, a GICv2 SGI from
//!   a further sender, a physical interrupt behind a software one), it asks for a maintenance
//!   interrupt when it ends, and only then.
//! - More interrupts than list registers: the best that are pending are in, what is active has what room is left, and
//!   the interrupt that tells when none is pending in a register is asked for. What is active outside is
//!   ended by number where the guest deactivates (EOImode 1: that traps), else by count: ends come in the order of
//!   priorities, the best first.

mod lr;
mod regs;
#[cfg(test)]
mod tests;

use lr::{ACTIVE, Lr, PENDING};
pub use lr::{ListRegs, control};

use crate::types::{Errno, MAX_DOMAINS, MAX_VCPUS, Slot, VcpuId};
use alloc::vec::Vec;

/// Most SPIs that a domain may have: INTIDs 32 to 991.
pub const MAX_SPIS: u32 = 960;
/// Vcpus that a GICv2 can serve.
pub const MAX_VCPUS_V2: usize = 8;
/// Bytes of a GICv2 or GICv3 distributor's registers that answer, from its base on.
pub const GICD_SIZE_V2: u64 = 0x1000;
/// Bytes of a GICv3 distributor.
pub const GICD_SIZE_V3: u64 = 0x1_0000;
/// Bytes of one vcpu's GICv3 redistributor: an RD and an SGI frame.
pub const GICR_STRIDE: u64 = 0x2_0000;
/// List registers that are made use of.
const MAX_LRS: usize = 16;
/// SGIs and PPIs.
const PRIVATE: u32 = 32;
/// In the order in which interrupts get list registers, the first key of one that is not active.
const FIRST_PENDING: u16 = 0x100;

/// Which GIC a domain has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// GICv2.
    V2,
    /// GICv3 without LPIs.
    V3,
}

/// A block of emulated registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// The distributor.
    Gicd,
    /// GICv3's redistributors, one after the other by vcpu.
    Gicr,
    /// GICv2: the second page of the CPU interface, with GICC_DIR. The first is the hardware's (GICV); this one is not,
    /// as what is deactivated may be in no list register, where the hardware would only count it.
    Dir,
}

/// An access that the GIC does not answer (size, alignment or place): the guest gets an
/// external abort for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadAccess;

/// Physical interrupts `base` to `base + 31` that the shell has work on, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysIrqs {
    /// INTID of bit 0. Below 32: the CPU's own on which the shell runs.
    pub base: u32,
    /// To be enabled.
    pub enable: u32,
    /// To be disabled.
    pub disable: u32,
    /// Whose active state must be ended (the guest no longer will).
    pub deactivate: u32,
}

impl PhysIrqs {
    /// Whether there is anything to do.
    #[inline]
    #[must_use]
    pub const fn any(&self) -> bool {
        self.enable | self.disable | self.deactivate != 0
    }
}

/// What an operation asks the shell to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Effects {
    /// Bit per vcpu of the domain: it must be woken, or leave the guest once if it runs.
    pub kick: u64,
    /// Physical interrupts of devices that the domain has.
    pub phys: PhysIrqs,
}

/// The state of 32 interrupts, a bit or byte each: a vcpu's private ones, or SPIs.
#[derive(Clone)]
struct Bank {
    enabled: u32,
    /// Edge-triggered; otherwise the line's level counts.
    edge: u32,
    /// Pending by an edge, a pulse or a write.
    latch: u32,
    /// The device's line is high.
    line: u32,
    active: u32,
    /// In a list register (of the owner), which then holds the active state and may hold a
    /// pending one beside `latch` and `line`.
    in_lr: u32,
    /// Pending in the list register, as of the last look.
    lr_pending: u32,
    /// What is latched came from a physical interrupt, which is active until the guest ends it.
    hw: u32,
    /// The same of what is active, while it is in no list register.
    hw_active: u32,
    /// Passed through: the physical interrupt is enabled and disabled with it.
    linked: u32,
    priority: [u8; 32],
    /// SPIs: the vcpu that gets it.
    target: [u8; 32],
    /// SPIs that are active or in a list register: whose.
    owner: [u8; 32],
}

impl Bank {
    const fn new() -> Self {
        Self {
            enabled: 0,
            edge: 0,
            latch: 0,
            line: 0,
            active: 0,
            in_lr: 0,
            lr_pending: 0,
            hw: 0,
            hw_active: 0,
            linked: 0,
            priority: [0; 32],
            target: [0; 32],
            owner: [0; 32],
        }
    }
    /// Pending outside of any list register.
    #[inline]
    fn pending(&self) -> u32 {
        self.latch | self.line & !self.edge
    }
    /// Could be delivered now.
    #[inline]
    fn deliverable(&self) -> u32 {
        self.pending() & self.enabled & !self.active & !self.in_lr
    }
    /// Active, and in no list register.
    #[inline]
    fn outside(&self) -> u32 {
        self.active & !self.in_lr
    }
    #[inline]
    fn priority(&self, bit: u32) -> u8 {
        at(&self.priority, bit)
    }
    /// An SPI's vcpu: its owner while active or in a list register, otherwise its target.
    #[inline]
    fn home(&self, bit: u32) -> u8 {
        if (self.active | self.in_lr) >> bit & 1 != 0 {
            at(&self.owner, bit)
        } else {
            at(&self.target, bit)
        }
    }
    fn set_owner(&mut self, bit: u32, vcpu: u8) {
        if let Some(o) = self.owner.get_mut(bit as usize) {
            *o = vcpu;
        }
    }
}

#[inline]
fn at(bytes: &[u8], i: u32) -> u8 {
    bytes.get(i as usize).copied().unwrap_or(0)
}

/// `word` with `mask`'s bits set or cleared.
#[inline]
fn put(word: &mut u32, mask: u32, on: bool) {
    if on {
        *word |= mask;
    } else {
        *word &= !mask;
    }
}

/// A vcpu's part of its domain's GIC.
struct Vcpu {
    /// `flush` has something to look at.
    work: bool,
    /// The state here is what the list registers hold: between `sync` and `flush`.
    synced: bool,
    /// What is asked for, of [`control`]. With `ENDS`, something active is in no list register.
    control: u32,
    /// List registers in use.
    used: u32,
    /// List registers of private interrupts that ask for nothing when they end.
    plain: u32,
    /// List registers whose content here is newer than in hardware.
    dirty: u32,
    /// Banks of SPIs in which there may be something for this vcpu.
    spi_hint: u32,
    /// Banks of SPIs of which one left a list register: it may be pending for another vcpu now.
    returned: u32,
    private: Bank,
    /// GICv2: who sent each pending SGI, a bit per vcpu. Its `latch` bit says that there is any.
    sgi_from: [u8; 16],
    /// GICv2: who sent the SGI that is active and in no list register.
    sgi_active_from: [u8; 16],
    lr: [Lr; MAX_LRS],
}

impl Vcpu {
    fn new() -> Self {
        let mut private = Bank::new();
        private.enabled = 0xffff; // SGIs
        private.edge = 0xffff;
        Self {
            work: false,
            synced: false,
            control: 0,
            used: 0,
            plain: 0,
            dirty: 0,
            spi_hint: 0,
            returned: 0,
            private,
            sgi_from: [0; 16],
            sgi_active_from: [0; 16],
            lr: [Lr::EMPTY; MAX_LRS],
        }
    }
    /// An interrupt left its list register: if it is an SPI, it may be pending for somebody.
    #[inline]
    fn left(&mut self, irq: u32) {
        if let Some(i) = (irq / 32).checked_sub(1) {
            self.spi_hint |= 1 << i;
            self.returned |= 1 << i;
        }
    }
    /// The list register that holds an interrupt.
    fn find_lr(&self, irq: u32) -> Option<usize> {
        bits(self.used)
            .map(|n| n as usize)
            .find(|&n| self.lr.get(n).is_some_and(|l| u32::from(l.irq) == irq))
    }
}

/// A domain's GIC.
struct Vgic {
    v3: bool,
    /// The enable bit of GICD_CTLR as last written. As on Xen no delivery depends on it: some kernels set
    /// another bit than the one that this view of the register has.
    on: bool,
    vcpus: Vec<Vcpu>,
    spis: Vec<Bank>,
}

/// The set bits' numbers, lowest first.
#[inline]
fn bits(mut word: u32) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let b = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        Some(b)
    })
}

/// All domains' interrupt controllers.
pub struct Vgics {
    doms: [Option<Vgic>; MAX_DOMAINS],
}

impl Default for Vgics {
    fn default() -> Self {
        Self::new()
    }
}

impl Vgics {
    /// No domain has a GIC yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            doms: [const { None }; MAX_DOMAINS],
        }
    }

    #[inline]
    fn dom(&mut self, slot: Slot) -> Option<&mut Vgic> {
        self.doms.get_mut(slot.idx())?.as_mut()
    }

    /// Gives a new domain its GIC, as after a reset. `nr_spis` is rounded up to a multiple of
    /// 32.
    ///
    /// # Errors
    /// `EINVAL`: no vcpu, more than the version can serve, or more SPIs than [`MAX_SPIS`].
    /// `EEXIST`: the slot has one. `ENOMEM`.
    pub fn create_domain(
        &mut self,
        slot: Slot,
        version: Version,
        nr_vcpus: usize,
        nr_spis: u32,
    ) -> Result<(), Errno> {
        let v3 = version == Version::V3;
        let max = if v3 { MAX_VCPUS } else { MAX_VCPUS_V2 };
        if nr_vcpus == 0 || nr_vcpus > max || nr_spis > MAX_SPIS {
            return Err(Errno::EINVAL);
        }
        let place = self.doms.get_mut(slot.idx()).ok_or(Errno::EINVAL)?;
        if place.is_some() {
            return Err(Errno::EEXIST);
        }
        let banks = nr_spis.div_ceil(32) as usize;
        let (mut vcpus, mut spis) = (Vec::new(), Vec::new());
        crate::room::reserve(&mut vcpus, nr_vcpus)?;
        crate::room::reserve(&mut spis, banks)?;
        vcpus.resize_with(nr_vcpus, Vcpu::new);
        spis.resize_with(banks, Bank::new);
        *place = Some(Vgic {
            v3,
            on: false,
            vcpus,
            spis,
        });
        Ok(())
    }

    /// Forgets a domain's GIC; its vcpus must be unloaded. `phys` is called for each bank with
    /// physical interrupts to be disabled and deactivated.
    pub fn destroy_domain(&mut self, slot: Slot, mut phys: impl FnMut(PhysIrqs)) {
        let Some(d) = self.doms.get_mut(slot.idx()).and_then(Option::take) else {
            return;
        };
        for (i, b) in d.spis.iter().enumerate() {
            let deactivate = b.linked & (b.hw | b.hw_active);
            let p = PhysIrqs {
                base: (i as u32).wrapping_add(1) << 5,
                enable: 0,
                disable: b.linked,
                deactivate,
            };
            if p.any() {
                phys(p);
            }
        }
    }

    /// A domain's SPIs, 0 if it has no GIC.
    #[must_use]
    pub fn nr_spis(&self, slot: Slot) -> u32 {
        let d = self.doms.get(slot.idx()).and_then(Option::as_ref);
        d.map_or(0, |d| (d.spis.len() as u32) << 5)
    }

    /// Passes the physical SPI `irq` through to the domain under the same number. The physical
    /// interrupt stays disabled until the guest enables it.
    ///
    /// # Errors
    /// `EINVAL`: not an SPI of this domain. `EBUSY`: it is already.
    pub fn link(&mut self, slot: Slot, irq: u32) -> Result<(), Errno> {
        let b = self
            .dom(slot)
            .and_then(|d| d.spi(irq))
            .ok_or(Errno::EINVAL)?;
        if b.linked & bit(irq) != 0 {
            return Err(Errno::EBUSY);
        }
        b.linked |= bit(irq);
        Ok(())
    }

    /// Ends what [`Self::link`] began: the physical interrupt is to be disabled, and
    /// deactivated if the guest had not ended it.
    pub fn unlink(&mut self, slot: Slot, irq: u32) -> Effects {
        let mut fx = Effects::default();
        let Some(d) = self.dom(slot) else { return fx };
        let Some(b) = d.spi(irq) else { return fx };
        let m = bit(irq);
        if b.linked & m == 0 {
            return fx;
        }
        b.linked &= !m;
        fx.phys = PhysIrqs {
            base: irq & !31,
            enable: 0,
            disable: m,
            deactivate: 0,
        };
        // One that is in a running vcpu's list register is ended by that.
        fx.phys.deactivate = (b.hw | b.hw_active) & m;
        if b.hw & m != 0 {
            b.latch &= !m;
        }
        b.hw &= !m;
        b.hw_active &= !m;
        fx
    }

    /// A device's line changed. `vcpu` matters for private interrupts only.
    pub fn set_level(&mut self, slot: Slot, vcpu: VcpuId, irq: u32, level: bool) -> Effects {
        let mut fx = Effects::default();
        let Some(d) = self.dom(slot) else { return fx };
        let Some(b) = d.bank(vcpu, irq) else {
            return fx;
        };
        let m = bit(irq);
        let was = b.line & m != 0;
        if was == level {
            return fx;
        }
        put(&mut b.line, m, level);
        if level {
            b.latch |= b.edge & m;
            d.pended(vcpu, irq & !31, m, &mut fx);
        } else if b.in_lr & m != 0 {
            d.look(vcpu, irq & !31, m, &mut fx);
        }
        fx
    }

    /// An interrupt happens once: it is delivered once however it is configured, unless it was
    /// pending already. `vcpu` matters for private interrupts only.
    #[inline]
    pub fn pulse(&mut self, slot: Slot, vcpu: VcpuId, irq: u32) -> Effects {
        let mut fx = Effects::default();
        let Some(d) = self.dom(slot) else { return fx };
        let Some(b) = d.bank(vcpu, irq) else {
            return fx;
        };
        b.latch |= bit(irq);
        d.pended(vcpu, irq & !31, bit(irq), &mut fx);
        fx
    }

    /// The physical interrupt of the same number was acknowledged and its priority dropped; it
    /// is active until the guest ends the virtual one. `vcpu` matters for private interrupts
    /// only.
    ///
    /// Gives `None` when the domain has no such interrupt: the shell must deactivate the
    /// physical one itself.
    #[inline]
    pub fn inject_hw(&mut self, slot: Slot, vcpu: VcpuId, irq: u32) -> Option<Effects> {
        let mut fx = Effects::default();
        let d = self.dom(slot)?;
        let b = d.bank(vcpu, irq)?;
        b.latch |= bit(irq);
        b.hw |= bit(irq);
        d.pended(vcpu, irq & !31, bit(irq), &mut fx);
        Some(fx)
    }

    /// Whether a private physical interrupt is active on behalf of this vcpu, which is not
    /// loaded: see the module's text on PPI 27.
    #[must_use]
    pub fn hw_active(&self, slot: Slot, vcpu: VcpuId, ppi: u32) -> bool {
        self.doms
            .get(slot.idx())
            .and_then(Option::as_ref)
            .and_then(|d| d.vcpus.get(vcpu.idx()))
            .is_some_and(|v| {
                (v.private.hw | v.private.hw_active) & bit(ppi) != 0
                    || v.find_lr(ppi)
                        .and_then(|n| v.lr.get(n))
                        .is_some_and(|l| l.hw)
            })
    }

    /// Whether the vcpu has an interrupt that ends its WFI, of a priority value less than `below`. For one that is
    /// loaded, as of its last [`Self::sync`].
    #[must_use]
    pub fn deliverable(&self, slot: Slot, vcpu: VcpuId, below: u8) -> bool {
        let Some(d) = self.doms.get(slot.idx()).and_then(Option::as_ref) else {
            return false;
        };
        let Some(v) = d.vcpus.get(vcpu.idx()) else {
            return false;
        };
        let any = |b: &Bank, mut mine: u32| {
            mine &= b.deliverable();
            bits(mine).any(|n| b.priority(n) < below)
        };
        let loaded = |l: &Lr| l.state == PENDING && l.priority < below;
        bits(v.used).any(|n| v.lr.get(n as usize).is_some_and(loaded))
            || any(&v.private, !0)
            || bits(v.spi_hint).any(|i| {
                d.spis.get(i as usize).is_some_and(|b| {
                    let mine = bits(b.deliverable()).filter(|&n| at(&b.target, n) == vcpu.0);
                    any(b, mine.fold(0, |m, n| m | 1 << n))
                })
            })
    }

    /// Something about the loaded vcpu's list registers must be looked at by the next
    /// [`Self::flush`]: the maintenance interrupt came.
    #[inline]
    pub fn maintenance(&mut self, slot: Slot, vcpu: VcpuId) {
        if let Some(v) = self.dom(slot).and_then(|d| d.vcpus.get_mut(vcpu.idx())) {
            v.work = true;
        }
    }

    /// Brings what the list registers say of the running vcpu into the state here.
    #[inline]
    pub fn sync(&mut self, slot: Slot, vcpu: VcpuId, lrs: &mut impl ListRegs) {
        let Some(d) = self.dom(slot) else { return };
        if let Some(v) = d.vcpus.get_mut(vcpu.idx())
            && v.used != 0
            && !v.synced
        {
            Vgic::fold(v, &mut d.spis, vcpu.0, d.v3, lrs);
        }
    }

    /// Puts what is to be delivered into list registers; the last thing before the guest runs.
    /// Gives the vcpus to be kicked: nearly always none.
    #[inline]
    #[must_use]
    pub fn flush(&mut self, slot: Slot, vcpu: VcpuId, lrs: &mut impl ListRegs) -> u64 {
        let Some(d) = self.dom(slot) else { return 0 };
        match d.vcpus.get(vcpu.idx()) {
            Some(v) if v.work => d.refill(vcpu, lrs),
            _ => 0,
        }
    }

    /// Empties the list registers: the vcpu stops running here. Gives the vcpus to be kicked
    /// (SPIs that were aimed elsewhere meanwhile).
    #[inline]
    #[must_use]
    pub fn unload(&mut self, slot: Slot, vcpu: VcpuId, lrs: &mut impl ListRegs) -> u64 {
        let Some(d) = self.dom(slot) else { return 0 };
        match d.vcpus.get_mut(vcpu.idx()) {
            Some(v) if v.used | v.dirty | v.control != 0 => d.evacuate(vcpu, lrs),
            _ => 0,
        }
    }

    /// A guest's write to `ICC_DIR_EL1` or `GICV_DIR` that trapped: `irq` is active no longer, in a list register of
    /// this vcpu's or in none.
    #[cold]
    pub fn deactivate(&mut self, slot: Slot, vcpu: VcpuId, irq: u32) -> Effects {
        let mut fx = Effects::default();
        if let Some(d) = self.dom(slot) {
            d.clear_active(vcpu, irq & !31, bit(irq), &mut fx);
        }
        fx
    }

    /// A guest's write to `ICC_SGI1R_EL1`: SGIs to vcpus by affinity.
    pub fn sgi1r(&mut self, slot: Slot, from: VcpuId, value: u64) -> Effects {
        let mut fx = Effects::default();
        let Some(d) = self.dom(slot) else { return fx };
        let all = all_vcpus(d.vcpus.len());
        let targets = if value >> 40 & 1 != 0 {
            all & !(1 << (from.0 & 63)) // everybody but the sender
        } else {
            // Aff3, Aff2 and the range selector are zero in every vcpu's affinity.
            let cluster = value >> 16 & 0xff;
            if value >> 32 & 0xff_f0ff != 0 || cluster >= 4 {
                0
            } else {
                (value & 0xffff).wrapping_shl((cluster as u32) << 4) & all
            }
        };
        d.sgi((value >> 24 & 0xf) as u32, targets, from, &mut fx);
        fx
    }

    /// A guest's read of an emulated register. `vcpu` is the one that reads. Registers that do
    /// not exist read as zero.
    ///
    /// # Errors
    /// [`BadAccess`].
    pub fn mmio_read(
        &mut self,
        slot: Slot,
        vcpu: VcpuId,
        region: Region,
        offset: u64,
        size: u8,
    ) -> Result<u64, BadAccess> {
        self.dom(slot)
            .ok_or(BadAccess)?
            .read(vcpu, region, offset, size)
    }

    /// A guest's write to an emulated register; of `value` only the low `size` bytes count.
    /// Registers that do not exist ignore it.
    ///
    /// # Errors
    /// [`BadAccess`].
    pub fn mmio_write(
        &mut self,
        slot: Slot,
        vcpu: VcpuId,
        region: Region,
        offset: u64,
        size: u8,
        value: u64,
    ) -> Result<Effects, BadAccess> {
        let mut fx = Effects::default();
        self.dom(slot)
            .ok_or(BadAccess)?
            .write(vcpu, region, offset, size, value, &mut fx)?;
        Ok(fx)
    }
}

/// An interrupt's bit in its bank.
#[inline]
const fn bit(irq: u32) -> u32 {
    1 << (irq & 31)
}

const fn all_vcpus(n: usize) -> u64 {
    if n >= 64 {
        !0
    } else {
        1u64.wrapping_shl(n as u32).wrapping_sub(1)
    }
}

impl Vgic {
    #[inline]
    fn spi(&mut self, irq: u32) -> Option<&mut Bank> {
        self.spis.get_mut((irq.checked_sub(PRIVATE)? / 32) as usize)
    }

    /// The bank with an interrupt, as `vcpu` sees it.
    #[inline]
    fn bank(&mut self, vcpu: VcpuId, irq: u32) -> Option<&mut Bank> {
        if irq < PRIVATE {
            self.vcpus.get_mut(vcpu.idx()).map(|v| &mut v.private)
        } else {
            self.spi(irq)
        }
    }

    /// Interrupts `mask` of the bank at `base` became pending, or pending ones enabled: whoever
    /// gets them must look, and be kicked if one can be delivered.
    #[inline]
    fn pended(&mut self, vcpu: VcpuId, base: u32, mask: u32, fx: &mut Effects) {
        if base == 0 {
            if let Some(v) = self.vcpus.get_mut(vcpu.idx()) {
                v.work = true;
                if (v.private.deliverable() | v.private.in_lr) & mask != 0 {
                    fx.kick |= 1 << (vcpu.0 & 63);
                }
            }
            return;
        }
        let index = (base / 32).wrapping_sub(1);
        let Some(b) = self.spis.get(index as usize) else {
            return;
        };
        let now = b.deliverable() | b.in_lr;
        for n in bits(mask & b.pending()) {
            let home = b.home(n);
            if let Some(v) = self.vcpus.get_mut(usize::from(home)) {
                v.work = true;
                v.spi_hint |= 1 << index;
                if now >> n & 1 != 0 {
                    fx.kick |= 1 << (home & 63);
                }
            }
        }
    }

    /// Whoever has interrupts `mask` of the bank at `base` in list registers must look at them
    /// again: they may have to be withdrawn.
    fn look(&mut self, vcpu: VcpuId, base: u32, mask: u32, fx: &mut Effects) {
        if base == 0 {
            if let Some(v) = self.vcpus.get_mut(vcpu.idx())
                && v.private.in_lr & mask != 0
            {
                v.work = true;
                fx.kick |= 1 << (vcpu.0 & 63);
            }
            return;
        }
        let Some(b) = self.spis.get((base / 32).wrapping_sub(1) as usize) else {
            return;
        };
        for n in bits(mask & b.in_lr) {
            let home = b.home(n);
            if let Some(v) = self.vcpus.get_mut(usize::from(home)) {
                v.work = true;
                fx.kick |= 1 << (home & 63);
            }
        }
    }

    /// Sends SGI `sgi` from one vcpu to those in `targets`.
    fn sgi(&mut self, sgi: u32, targets: u64, from: VcpuId, fx: &mut Effects) {
        let m = 1 << sgi;
        let mut rest = targets;
        while rest != 0 {
            let t = rest.trailing_zeros();
            rest &= rest.wrapping_sub(1);
            let Some(v) = self.vcpus.get_mut(t as usize) else {
                return;
            };
            v.private.latch |= m;
            v.work = true;
            if let Some(s) = v.sgi_from.get_mut(sgi as usize) {
                *s |= 1 << (from.0 & 7); // GICv2 only looks at it
            }
            let p = &v.private;
            if (p.enabled & !p.active | p.in_lr) & m != 0 {
                fx.kick |= 1 << t;
            }
        }
    }

    /// Reads the list registers in use into the state here.
    #[inline]
    fn fold(v: &mut Vcpu, spis: &mut [Bank], me: u8, v3: bool, lrs: &mut impl ListRegs) {
        if v.control & control::ENDS != 0 {
            Self::fold_ends(v, spis, me, lrs);
        }
        let empty = lrs.empty();
        if v.used & !(empty & v.plain) == 0 {
            // All have ended, as they mostly have.
            let p = &mut v.private;
            p.active &= !p.in_lr;
            p.in_lr = 0;
            p.lr_pending = 0;
            v.used = 0;
        } else {
            Self::fold_each(v, spis, v3, empty, lrs);
        }
    }

    /// What was ended outside of list registers: the best of what is active there, as handlers end the innermost
    /// first. One that is linked stays, since nothing has ended its physical interrupt.
    #[cold]
    fn fold_ends(v: &mut Vcpu, spis: &mut [Bank], me: u8, lrs: &mut impl ListRegs) {
        v.work = true;
        for _ in 0..lrs.ends() {
            let mut best: Option<(u32, u8)> = None;
            let mut offer = |base: u32, b: &Bank| {
                for n in bits(b.outside() & !b.hw_active) {
                    let p = b.priority(n);
                    if (base == 0 || b.home(n) == me) && best.is_none_or(|(_, k)| p < k) {
                        best = Some((base | n, p));
                    }
                }
            };
            offer(0, &v.private);
            for i in bits(v.spi_hint) {
                if let Some(b) = spis.get(i as usize) {
                    offer(i.wrapping_add(1) << 5, b);
                }
            }
            let Some((irq, _)) = best else { return };
            if let Some(b) = bank_of(&mut v.private, spis, irq) {
                b.active &= !bit(irq);
            }
            v.left(irq);
        }
    }

    #[inline(never)]
    fn fold_each(v: &mut Vcpu, spis: &mut [Bank], v3: bool, empty: u32, lrs: &mut impl ListRegs) {
        for n in bits(v.used) {
            let Some(lr) = v.lr.get_mut(n as usize) else {
                continue;
            };
            let state = if empty >> n & 1 != 0 {
                0
            } else {
                lr::state_of(lrs.read(n as usize), v3)
            };
            if state == 0 && lr.eoi {
                v.dirty |= 1 << n; // only a write takes the maintenance interrupt's cause away
            }
            lr.state = state;
            let irq = u32::from(lr.irq);
            if let Some(b) = bank_of(&mut v.private, spis, irq) {
                mirror(b, irq, state);
            }
            if state == 0 {
                v.used &= !(1 << n);
                v.left(irq);
            }
        }
        v.synced = true;
        v.work = true;
    }

    /// Takes an interrupt out of list register `n`, of which the state here is up to date,
    /// back into its bank.
    fn withdraw(v: &mut Vcpu, spis: &mut [Bank], n: usize, v3: bool) {
        let Some(lr) = v.lr.get_mut(n) else { return };
        let (irq, m) = (u32::from(lr.irq), bit(lr.irq.into()));
        let Some(b) = bank_of(&mut v.private, spis, irq) else {
            return;
        };
        if lr.state & PENDING != 0 && !lr.line {
            b.latch |= m;
        }
        if lr.hw {
            put(
                if lr.state & ACTIVE != 0 {
                    &mut b.hw_active
                } else {
                    &mut b.hw
                },
                m,
                true,
            );
        }
        if !v3 && irq < 16 {
            let i = irq as usize;
            if lr.state & PENDING != 0
                && let Some(s) = v.sgi_from.get_mut(i)
            {
                *s |= 1 << (lr.from & 7);
            }
            if lr.state & ACTIVE != 0
                && let Some(s) = v.sgi_active_from.get_mut(i)
            {
                *s = lr.from;
            }
        }
        b.in_lr &= !m;
        b.lr_pending &= !m;
        *lr = Lr::EMPTY;
        v.left(irq);
        v.used &= !(1 << n);
        v.dirty |= 1 << n;
    }

    /// Brings an interrupt that is in list register `n` in line with its bank. Whether it has
    /// to wait there for something that no interrupt will announce is the answer.
    fn adjust(v: &mut Vcpu, spis: &mut [Bank], n: usize, v3: bool) -> bool {
        let Some(lr) = v.lr.get_mut(n) else {
            return false;
        };
        let (irq, m) = (u32::from(lr.irq), bit(lr.irq.into()));
        let Some(b) = bank_of(&mut v.private, spis, irq) else {
            return false;
        };
        let enabled = b.enabled & m != 0;
        let gone = lr.line && b.line & m == 0;
        if lr.state == PENDING && (!enabled || gone) {
            Self::withdraw(v, spis, n, v3);
            return false;
        }
        let old = *lr;
        if !enabled && lr.state & PENDING != 0 {
            b.latch |= m; // both: it stays active
            lr.state = ACTIVE;
            if !v3
                && irq < 16
                && let Some(s) = v.sgi_from.get_mut(irq as usize)
            {
                *s |= 1 << (lr.from & 7);
            }
        }
        let mut wait = false;
        if enabled && b.latch & m != 0 {
            if !v3 && irq < 16 {
                let Some(s) = v.sgi_from.get_mut(irq as usize) else {
                    return false;
                };
                if lr.state & PENDING != 0 {
                    *s &= !(1 << (lr.from & 7));
                }
                put(&mut b.latch, m, *s != 0);
                lr.eoi |= *s != 0;
            } else if b.hw & m != 0 || lr.hw && lr.state & ACTIVE != 0 {
                // The physical interrupt can be linked to a register of its own only, and a
                // linked register cannot be active and pending.
                wait = lr.hw;
                lr.eoi |= !lr.hw;
            } else {
                lr.state |= PENDING;
                lr.line = false;
                b.latch &= !m;
            }
        }
        if enabled && !lr.hw && b.line & !b.edge & m != 0 {
            lr.eoi = true;
        }
        mirror(b, irq, lr.state);
        if *lr != old {
            v.dirty |= 1 << n;
            v.plain &= !(u32::from(lr.eoi) << n);
        }
        wait
    }

    /// The vcpu's best interrupt that is in no list register, and its key: what is active first (keys below
    /// [`FIRST_PENDING`]) where `active` asks for that, linked ones before others; then by priority, then by number.
    /// Cleans up the hint on the way.
    #[inline(never)]
    fn best(v: &mut Vcpu, spis: &[Bank], me: u8, active: bool) -> Option<(u32, u16)> {
        let mut best: Option<(u32, u16)> = None;
        let mut offer = |irq: u32, b: &Bank| {
            let m = bit(irq);
            let key = if b.active & m != 0 {
                u16::from(b.hw_active & m == 0)
            } else {
                FIRST_PENDING | u16::from(b.priority(irq & 31))
            };
            if (active || key >= FIRST_PENDING) && best.is_none_or(|(_, k)| key < k) {
                best = Some((irq, key));
            }
        };
        let p = &v.private;
        for n in bits(candidates(p)) {
            offer(n, p);
        }
        for i in bits(v.spi_hint) {
            let mut any = false;
            if let Some(b) = spis.get(i as usize) {
                for n in bits(candidates(b)).filter(|&n| b.home(n) == me) {
                    offer(i.wrapping_add(1) << 5 | n, b);
                    any = true;
                }
            }
            if !any {
                v.spi_hint &= !(1 << i);
            }
        }
        best
    }

    /// Puts interrupt `irq` into the empty list register `n`: gives what is to be written there.
    #[inline(always)]
    fn insert(v: &mut Vcpu, spis: &mut [Bank], n: usize, irq: u32, me: u8, v3: bool) -> Lr {
        let m = bit(irq);
        let Some(b) = bank_of(&mut v.private, spis, irq) else {
            return Lr::EMPTY;
        };
        let mut lr = Lr {
            irq: irq as u16,
            priority: b.priority(irq & 31),
            ..Lr::EMPTY
        };
        let level = b.line & !b.edge & m != 0;
        if b.active & m != 0 {
            lr.state = ACTIVE;
            lr.hw = b.hw_active & m != 0;
            b.hw_active &= !m;
            lr.from = if v3 { 0 } else { at(&v.sgi_active_from, irq) };
        } else {
            lr.state = PENDING;
            if !v3 && irq < 16 {
                if let Some(s) = v.sgi_from.get_mut(irq as usize) {
                    lr.from = (s.trailing_zeros() & 7) as u8;
                    *s &= s.wrapping_sub(1);
                    lr.eoi = *s != 0;
                    put(&mut b.latch, m, *s != 0);
                }
            } else if b.latch & m != 0 {
                lr.hw = b.hw & m != 0;
                lr.eoi = level && !lr.hw;
                b.latch &= !m;
                b.hw &= !m;
            } else {
                lr.line = true;
                lr.eoi = true;
            }
        }
        b.in_lr |= m;
        mirror(b, irq, lr.state);
        if irq >= PRIVATE {
            b.set_owner(irq & 31, me);
        }
        if let Some(place) = v.lr.get_mut(n) {
            *place = lr;
        }
        v.used |= 1 << n;
        put(&mut v.plain, 1 << n, irq < PRIVATE && !lr.eoi);
        lr
    }

    /// SPIs that left this vcpu's list registers and are pending for others go to them. Gives
    /// the vcpus to be kicked.
    fn hand_over(&mut self, from: VcpuId) -> u64 {
        let Self { vcpus, spis, .. } = self;
        let Some(v) = vcpus.get_mut(from.idx()) else {
            return 0;
        };
        let mut kick = 0;
        for i in bits(core::mem::take(&mut v.returned)) {
            let Some(b) = spis.get(i as usize) else {
                continue;
            };
            for n in bits(b.pending() & !b.active & !b.in_lr) {
                let target = at(&b.target, n);
                if target != from.0
                    && let Some(t) = vcpus.get_mut(usize::from(target))
                {
                    t.work = true;
                    t.spi_hint |= 1 << i;
                    if b.enabled >> n & 1 != 0 {
                        kick |= 1 << (target & 63);
                    }
                }
            }
        }
        kick
    }

    /// The slow part of `flush`.
    #[inline(never)]
    fn refill(&mut self, vcpu: VcpuId, lrs: &mut impl ListRegs) -> u64 {
        let me = vcpu.0;
        let v3 = self.v3;
        let Some(v) = self.vcpus.get_mut(vcpu.idx()) else {
            return 0;
        };
        let spis = &mut self.spis[..];
        let mut wait = false;
        if v.used != 0 && !v.synced {
            Self::fold(v, spis, me, v3, lrs);
        }
        for n in bits(v.used) {
            wait |= Self::adjust(v, spis, n as usize, v3);
        }
        // What left a register leaves it before it may enter another.
        if v.dirty & !v.used != 0 {
            for n in bits(v.dirty & !v.used) {
                lrs.write(n as usize, 0);
            }
            v.dirty &= v.used;
        }
        let private = candidates(&v.private);
        let free = (!v.used).trailing_zeros() as usize;
        let mut control = 0;
        if v.spi_hint == 0
            && private.is_power_of_two()
            && private & v.private.active == 0
            && free < lrs.count().min(MAX_LRS)
        {
            // What nearly always is: one interrupt, and room for it.
            let lr = Self::insert(v, spis, free, private.trailing_zeros() & 31, me, v3);
            lrs.write(free, lr::encode(&lr, v3));
        } else if private | v.spi_hint != 0 {
            (control, wait) = Self::place(v, spis, me, v3, wait, lrs);
        }
        for n in bits(v.dirty) {
            if let Some(lr) = v.lr.get(n as usize) {
                lrs.write(n as usize, lr::encode(lr, v3));
            }
        }
        v.dirty = 0;
        if v.control != control {
            v.control = control;
            lrs.control(control);
        }
        v.work = wait | (control & (control::UNDERFLOW | control::NONE_PENDING) != 0);
        v.synced = false;
        if v.returned == 0 {
            0
        } else {
            self.hand_over(vcpu)
        }
    }

    /// Fills list registers with what is active and the best of what waits. Where there is no room, what waits pushes
    /// out what is worse, and if nothing else waits in a register, one that is active and not linked. What is to be
    /// asked for ([`control`]), and whether something waits in its register.
    #[inline(never)]
    fn place(
        v: &mut Vcpu,
        spis: &mut [Bank],
        me: u8,
        v3: bool,
        mut wait: bool,
        lrs: &mut impl ListRegs,
    ) -> (u32, bool) {
        let nr = lrs.count().min(MAX_LRS);
        let mut left = 0;
        loop {
            let mut n = (!v.used).trailing_zeros() as usize;
            let full = n >= nr;
            let Some((irq, key)) = Self::best(v, spis, me, !full) else {
                break;
            };
            if full {
                let Some(w) = Self::yields(v, key) else {
                    left = if Self::any_waits(v) {
                        control::NONE_PENDING
                    } else {
                        control::UNDERFLOW
                    };
                    break;
                };
                n = w as usize;
                Self::withdraw(v, spis, n, v3);
                lrs.write(n, 0);
            }
            let _ = Self::insert(v, spis, n, irq, me, v3);
            v.dirty |= 1 << n;
            if key < FIRST_PENDING {
                wait |= Self::adjust(v, spis, n, v3);
            }
        }
        if Self::best(v, spis, me, true).is_some_and(|(_, key)| key < FIRST_PENDING) {
            left |= control::ENDS | if v3 { control::TRAP_DEACTIVATE } else { 0 };
        }
        (left, wait)
    }

    /// Which list register makes way for an interrupt that waits, with this key: the worst of those that hold a
    /// pending one which is worse (also one that is pending behind its own handler, and would come before when
    /// that ends); if none is to be taken before, of those that are not linked.
    fn yields(v: &Vcpu, key: u16) -> Option<u32> {
        let worst = |may: &dyn Fn(&Lr) -> bool| {
            bits(v.used)
                .filter_map(|n| v.lr.get(n as usize).map(|l| (n, l)))
                .filter(|(_, l)| !(l.hw && l.state & ACTIVE != 0) && may(l))
                .max_by_key(|(_, l)| l.priority)
                .map(|(n, _)| n)
        };
        worst(&|l| l.state & PENDING != 0 && FIRST_PENDING | u16::from(l.priority) > key)
            .or_else(|| (!Self::any_waits(v)).then(|| worst(&|_| true))?)
    }

    /// Whether a list register holds an interrupt that the guest can take.
    fn any_waits(v: &Vcpu) -> bool {
        bits(v.used).any(|n| v.lr.get(n as usize).is_some_and(|l| l.state == PENDING))
    }

    /// The slow part of `unload`.
    #[inline(never)]
    fn evacuate(&mut self, vcpu: VcpuId, lrs: &mut impl ListRegs) -> u64 {
        let v3 = self.v3;
        let Some(v) = self.vcpus.get_mut(vcpu.idx()) else {
            return 0;
        };
        let spis = &mut self.spis[..];
        if v.used != 0 && !v.synced {
            Self::fold(v, spis, vcpu.0, v3, lrs);
        }
        for n in bits(v.used) {
            Self::withdraw(v, spis, n as usize, v3);
        }
        for n in bits(v.dirty) {
            lrs.write(n as usize, 0);
        }
        if v.control != 0 {
            lrs.control(0);
        }
        v.dirty = 0;
        v.control = 0;
        v.synced = false;
        v.work = true;
        self.hand_over(vcpu)
    }
}

/// Everything that ought to be in a list register and is not.
#[inline]
fn candidates(b: &Bank) -> u32 {
    b.deliverable() | b.active & !b.in_lr
}

/// An interrupt's bank, private or shared.
#[inline]
fn bank_of<'a>(private: &'a mut Bank, spis: &'a mut [Bank], irq: u32) -> Option<&'a mut Bank> {
    match (irq / 32).checked_sub(1) {
        None => Some(private),
        Some(i) => spis.get_mut(i as usize),
    }
}

/// Notes a list register's state in the interrupt's bank; none: it is there no longer.
#[inline]
fn mirror(b: &mut Bank, irq: u32, state: u8) {
    let m = bit(irq);
    put(&mut b.lr_pending, m, state & PENDING != 0);
    put(&mut b.active, m, state & ACTIVE != 0);
    if state == 0 {
        b.in_lr &= !m;
    }
}
