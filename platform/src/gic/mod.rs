// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interrupt controller at EL2: GICv2 (IHI 0048) and GICv3 (IHI 0069), physical side and
//! virtual interface.
//!
//! Physical interrupts are handled in two steps (EOImode 1): [`Gic::eoi`] drops the running
//! priority, so that others can come; [`Gic::deactivate`] lets the same one come again. An
//! interrupt that is handed to a guest with a hardware-linked list register is not deactivated
//! here: the guest's own end-of-interrupt does that.
//!
//! All interrupts are group 1 as non-secure software sees them, and of one priority.
//!
//! The virtual interface: list registers are moved as raw words in the machine's own format
//! (32 bits on GICv2, 64 on GICv3); `hv-core::vgic` makes and reads them. Virtual-interface
//! registers belong to the CPU that touches them.

mod v2;
mod v3;

pub use v2::GicV2;
pub use v3::GicV3;

use crate::dt::{GicInfo, MAX_CPUS, Range};

/// List registers that any GIC has at most (GICv2 may have 64; 16 are used).
pub const MAX_LRS: usize = 16;

/// Priority of every physical interrupt: a level that all implementations have, in both views.
const PRIORITY: u8 = 0xa0;

/// How often a register is polled before we go on without the answer.
const POLL: u32 = 1_000_000;

/// `GICH_HCR.En`, `ICH_HCR_EL2.En`: the virtual interface signals interrupts.
pub const HCR_EN: u32 = 1 << 0;
/// `GICH_HCR.EOICount`, `ICH_HCR_EL2.EOIcount`: 5 bits from here on.
const HCR_ENDS: u32 = 27;
/// `GICH_VMCR.VEM`, `ICH_VMCR_EL2.VEOIM`: the guest's EOImode.
const VMCR_EOIMODE: u32 = 1 << 9;

/// Highest INTID that is an interrupt plus one; from here on they are special (1023: none).
pub const SPURIOUS_FROM: u32 = 1020;

/// What the acknowledge register gave: to be handed back to [`Gic::eoi`] and
/// [`Gic::deactivate`] as it is (on GICv2 an SGI's has its sender in it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack(pub u32);

impl Ack {
    /// The interrupt. At or above [`SPURIOUS_FROM`]: there was none, and nothing must be ended.
    #[inline]
    #[must_use]
    pub const fn intid(self) -> u32 {
        self.0 & 0x3ff
    }
}

/// Why the GIC cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GicError {
    /// A register block is smaller than the architecture's.
    TooSmall,
    /// GICv3: the system register interface cannot be turned on at EL2 (firmware did not allow
    /// it).
    NoSystemRegisters,
    /// GICv3: no redistributor for this CPU in the regions given.
    NoRedistributor,
    /// More CPUs than [`MAX_CPUS`].
    TooManyCpus,
}

/// The interrupt controller. Methods may be called on any CPU after its
/// [`init_cpu`](Gic::init_cpu); those on private interrupts (below 32) mean the calling CPU's.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // there is one, in a static
pub enum Gic {
    /// GICv2.
    V2(GicV2),
    /// GICv3 and later.
    V3(GicV3),
}

/// What the virtual CPU interface holds of a vcpu beside its list registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VgicCpuIf {
    /// `GICH_HCR` / `ICH_HCR_EL2`.
    pub hcr: u32,
    /// `GICH_VMCR` / `ICH_VMCR_EL2`: the guest's masks and enables.
    pub vmcr: u32,
    /// Active priorities: `GICH_APR` in `apr[0][0]`; on GICv3 `ICH_AP0R<n>` and `ICH_AP1R<n>`, whose
    /// highest bit is that of non-maskable interrupts.
    pub apr: [[u64; 4]; 2],
}

impl VgicCpuIf {
    /// As after a reset: everything masked until the guest turns it on.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            hcr: HCR_EN,
            vmcr: 0,
            apr: [[0; 4]; 2],
        }
    }
}

impl Default for VgicCpuIf {
    fn default() -> Self {
        Self::new()
    }
}

macro_rules! each {
    ($self:ident, $g:ident => $e:expr) => {
        match $self {
            Self::V2($g) => $e,
            Self::V3($g) => $e,
        }
    };
}

impl Gic {
    /// The GIC that the device tree describes. `map` gives the virtual address of a physical
    /// range. Call [`init_dist`](Self::init_dist) on one CPU, then
    /// [`init_cpu`](Self::init_cpu) on each.
    ///
    /// # Errors
    /// [`GicError::TooSmall`].
    ///
    /// # Safety
    /// `map`'s mappings must be device memory, readable and writable, and last for ever; nothing
    /// else may drive the GIC.
    #[inline(never)]
    pub unsafe fn new(
        info: &GicInfo,
        mut map: impl FnMut(Range) -> usize,
    ) -> Result<Self, GicError> {
        match info {
            GicInfo::V2 {
                gicd, gicc, gich, ..
            } => {
                // GICC_DIR is in the second page.
                if gicd.size < 0x1000 || gicc.size < 0x2000 || gich.size < 0x200 {
                    return Err(GicError::TooSmall);
                }
                // SAFETY: the caller's promise.
                Ok(Self::V2(unsafe {
                    GicV2::new(map(*gicd), map(*gicc), map(*gich))
                }))
            }
            GicInfo::V3 {
                gicd, gicr, stride, ..
            } => {
                if gicd.size < 0x1_0000 || gicr.iter().any(|r| r.size < 0x2_0000) {
                    return Err(GicError::TooSmall);
                }
                let gicd = map(*gicd);
                let gicr = gicr.iter().map(|r| (map(*r), r.size as usize)).collect();
                // SAFETY: the caller's promise.
                Ok(Self::V3(unsafe {
                    GicV3::new(gicd, gicr, stride.map(|s| s as usize))
                }))
            }
        }
    }

    /// Resets the distributor: all SPIs disabled, inactive, level-triggered, to this CPU.
    #[inline(never)]
    pub fn init_dist(&self) {
        each!(self, g => g.init_dist());
    }

    /// Makes the calling CPU, number `cpu` below [`MAX_CPUS`], take interrupts, with all its
    /// private ones disabled but the SGIs; clears its virtual interface.
    ///
    /// # Errors
    /// [`GicError::NoSystemRegisters`], [`GicError::NoRedistributor`],
    /// [`GicError::TooManyCpus`].
    #[inline(never)]
    pub fn init_cpu(&self, cpu: usize) -> Result<(), GicError> {
        if cpu >= MAX_CPUS {
            return Err(GicError::TooManyCpus);
        }
        each!(self, g => g.init_cpu(cpu))
    }

    /// 2 or 3.
    #[inline]
    #[must_use]
    pub const fn version(&self) -> u8 {
        match self {
            Self::V2(_) => 2,
            Self::V3(_) => 3,
        }
    }

    /// Interrupts that the distributor has: INTIDs below this, a multiple of 32, at most 1020.
    #[must_use]
    pub fn nr_irqs(&self) -> u32 {
        each!(self, g => g.nr_irqs())
    }

    /// Enables an interrupt.
    #[inline(never)]
    pub fn enable(&self, intid: u32) {
        each!(self, g => g.set_bit(intid, reg::ISENABLER));
    }

    /// Disables an interrupt; after it returns, it is no longer signalled anew.
    #[inline(never)]
    pub fn disable(&self, intid: u32) {
        each!(self, g => { g.set_bit(intid, reg::ICENABLER); g.settle(intid) });
    }

    /// Takes a pending state away (of a level interrupt: only the latched part).
    pub fn clear_pending(&self, intid: u32) {
        each!(self, g => g.set_bit(intid, reg::ICPENDR));
    }

    /// Sets or clears an interrupt's active state. An active interrupt is not signalled again.
    /// For switching the vcpu that owns an active private interrupt.
    #[inline]
    pub fn set_active(&self, intid: u32, active: bool) {
        each!(self, g => g.set_bit(intid, if active { reg::ISACTIVER } else { reg::ICACTIVER }));
    }

    /// Edge- or level-triggered. The interrupt should be disabled.
    pub fn set_edge(&self, intid: u32, edge: bool) {
        each!(self, g => g.set_edge(intid, edge));
    }

    /// Sends an SPI to CPU number `cpu`, which must have been through
    /// [`init_cpu`](Self::init_cpu).
    pub fn set_target(&self, intid: u32, cpu: usize) {
        if (32..SPURIOUS_FROM).contains(&intid) {
            each!(self, g => g.set_target(intid, cpu));
        }
    }

    /// Acknowledges the highest-priority pending interrupt: it becomes active.
    #[inline]
    #[must_use]
    pub fn ack(&self) -> Ack {
        each!(self, g => g.ack())
    }

    /// Drops the running priority that [`ack`](Self::ack) raised.
    #[inline]
    pub fn eoi(&self, ack: Ack) {
        each!(self, g => g.eoi(ack));
    }

    /// Ends the interrupt's active state: it can come again. After [`eoi`](Self::eoi).
    #[inline]
    pub fn deactivate(&self, ack: Ack) {
        each!(self, g => g.deactivate(ack));
    }

    /// Raises SGI `sgi` (0 to 15) on CPU number `cpu`. What this CPU wrote to memory before is
    /// seen there when it arrives.
    #[inline]
    pub fn send_sgi(&self, sgi: u32, cpu: usize) {
        each!(self, g => g.send_sgi(sgi, cpu));
    }

    /// List registers that this machine has, at most [`MAX_LRS`].
    #[inline]
    #[must_use]
    pub fn nr_lrs(&self) -> usize {
        each!(self, g => g.nr_lrs())
    }

    /// Reads list register `n` (below [`nr_lrs`](Self::nr_lrs)).
    #[inline]
    #[must_use]
    pub fn read_lr(&self, n: usize) -> u64 {
        each!(self, g => g.read_lr(n))
    }

    /// Writes list register `n` (below [`nr_lrs`](Self::nr_lrs)).
    #[inline]
    pub fn write_lr(&self, n: usize, lr: u64) {
        each!(self, g => g.write_lr(n, lr));
    }

    /// Bit n: list register n holds nothing, nor an end-of-interrupt that was asked for.
    #[inline]
    #[must_use]
    pub fn elrsr(&self) -> u32 {
        each!(self, g => g.elrsr())
    }

    /// Bit n: list register n asked for a maintenance interrupt and its interrupt has ended.
    #[inline]
    #[must_use]
    pub fn eisr(&self) -> u32 {
        each!(self, g => g.eisr())
    }

    /// Why the maintenance interrupt is raised; bit 0: an end of interrupt, bit 1: underflow.
    #[must_use]
    pub fn misr(&self) -> u32 {
        each!(self, g => g.misr())
    }

    /// How many interrupts the guest ended that were active in no list register, up to 31; counts anew from here on.
    /// None, where it ends them by a register that traps (EOImode 1; QEMU's GICv3 counts the priority's drop all the same).
    #[cold]
    pub fn take_ends(&self) -> u32 {
        let hcr = each!(self, g => g.hcr());
        let ends = hcr >> HCR_ENDS;
        if ends == 0 {
            return 0;
        }
        self.set_hcr(hcr & !(31 << HCR_ENDS));
        let mut s = VgicCpuIf::new();
        each!(self, g => g.read_vif(&mut s));
        let split = s.vmcr & VMCR_EOIMODE != 0 && each!(self, g => g.traps_deactivation());
        if split { 0 } else { ends }
    }

    /// Writes the virtual interface's control: [`HCR_EN`], and what `hv_core::vgic::control` names.
    #[inline]
    pub fn set_hcr(&self, hcr: u32) {
        each!(self, g => g.set_hcr(hcr));
    }

    /// Whether a linked interrupt that came while a guest had it active is not signalled when the guest ends it, but only
    /// when something else happens at the controller. [`save_vif`](Self::save_vif) has it look; a vcpu that stays on
    /// its CPU must be interrupted now and then.
    ///
    /// A GIC does not do so. QEMU's GICv2 does: `gic_complete_irq` of its hw/intc/arm_gic.c looks at the virtual interface
    /// alone. The window is from the guest's acknowledgement, or from when its handler dealt with the cause, to its end of
    /// the interrupt: wide where the host stops the machine within it.
    #[inline]
    pub fn overlooks(&self) -> bool {
        match self {
            Self::V2(g) => g.overlooks(),
            Self::V3(_) => false,
        }
    }

    /// The priority value below which the virtual interface on this CPU signals interrupts to the guest; 0 for none: the
    /// guest's group is off, its mask is that high, or one of the highest priority is active. (GICv2 guests' interrupts are of
    /// group 0, GICv3 guests' of group 1.)
    #[must_use]
    pub fn threshold(&self) -> u8 {
        let mut s = VgicCpuIf::new();
        let words = each!(self, g => g.read_vif(&mut s));
        let v2 = matches!(self, Self::V2(_));
        let (enabled, mask, active) = if v2 {
            (s.vmcr & 1, (s.vmcr >> 27 << 3) as u8, s.apr[0])
        } else {
            (s.vmcr & 2, (s.vmcr >> 24) as u8, s.apr[1])
        };
        if enabled == 0 {
            return 0;
        }
        // Of 5, 6 or 7 bits of priority that preempt: a bit for each level, the best first.
        let first = active.iter().take(words).position(|&a| a as u32 != 0);
        let level = first.map_or(u32::MAX, |i| {
            i as u32 * 32 + (active[i] as u32).trailing_zeros()
        });
        let running = level.saturating_mul(8 / words as u32).min(255) as u8;
        mask.min(running)
    }

    /// Saves the virtual interface's state of the vcpu that leaves this CPU, list registers
    /// apart, and turns the interface off.
    #[inline]
    pub fn save_vif(&self, s: &mut VgicCpuIf) {
        each!(self, g => g.save_vif(s));
    }

    /// Puts back what [`save_vif`](Self::save_vif) saved; the list registers should be empty.
    #[inline]
    pub fn restore_vif(&self, s: &VgicCpuIf) {
        each!(self, g => g.restore_vif(s));
    }
}

/// Distributor registers that both versions share; GICv3 has those of private interrupts in the
/// redistributor's SGI frame at the same offsets.
mod reg {
    pub const CTLR: usize = 0x000;
    pub const TYPER: usize = 0x004;
    pub const IIDR: usize = 0x008;
    pub const IGROUPR: usize = 0x080;
    pub const ISENABLER: usize = 0x100;
    pub const ICENABLER: usize = 0x180;
    pub const ICPENDR: usize = 0x280;
    pub const ISACTIVER: usize = 0x300;
    pub const ICACTIVER: usize = 0x380;
    pub const IPRIORITYR: usize = 0x400;
    pub const ITARGETSR: usize = 0x800;
    pub const ICFGR: usize = 0xC00;
    pub const SGIR: usize = 0xF00;
}

/// Four times the same byte.
const fn bytes4(b: u8) -> u32 {
    b as u32 * 0x0101_0101
}

/// Disables, clears and levels all interrupts of a bank from `from` up to `to`.
fn reset_bank(regs: crate::mmio::Mmio, from: u32, to: u32, group: u32) {
    for i in (from / 32)..(to / 32) {
        let o = i as usize * 4;
        regs.write32(reg::ICENABLER + o, !0);
        regs.write32(reg::ICACTIVER + o, !0);
        regs.write32(reg::ICPENDR + o, !0);
        regs.write32(reg::IGROUPR + o, group);
    }
    for i in (from / 4)..(to / 4) {
        regs.write32(reg::IPRIORITYR + i as usize * 4, bytes4(PRIORITY));
    }
    // SGIs' configuration is fixed.
    for i in (from / 16).max(1)..(to / 16) {
        regs.write32(reg::ICFGR + i as usize * 4, 0);
    }
}

/// Changes an interrupt's two configuration bits in a bank.
fn write_edge(regs: crate::mmio::Mmio, intid: u32, edge: bool) {
    let o = reg::ICFGR + (intid / 16) as usize * 4;
    let bit = 2u32 << (intid % 16 * 2);
    let old = regs.read32(o);
    regs.write32(o, if edge { old | bit } else { old & !bit });
}

#[cfg(test)]
mod tests;
