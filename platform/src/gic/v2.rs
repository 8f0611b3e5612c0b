// SPDX-License-Identifier: MIT OR Apache-2.0
//! GICv2: everything is MMIO (GIC-400 on the Raspberry Pi 4, QEMU's `gic-version=2`).
//!
//! Written for both views: as non-secure software of a GIC with the security extensions
//! (interrupts are group 1 and GICD_CTLR/GICC_CTLR bit 0 enables that), and on one without them
//! (interrupts are left in group 0 and bit 0 enables that). IGROUPR is RAZ/WI for non-secure
//! software, so writing 0 to it suits both.

use super::{Ack, GicError, MAX_LRS, VgicCpuIf, bytes4, reg, reset_bank, write_edge};
use crate::dt::MAX_CPUS;
use crate::mmio::Mmio;
use crate::sysreg::dsb_sy;
use core::sync::atomic::{AtomicU8, Ordering};

const GICC_CTLR: usize = 0x000;
const GICC_PMR: usize = 0x004;
const GICC_BPR: usize = 0x008;
const GICC_IAR: usize = 0x00C;
const GICC_EOIR: usize = 0x010;
const GICC_APR0: usize = 0x0D0;
const GICC_DIR: usize = 0x1000;

/// GICD_IIDR of QEMU's model, which is no GIC-400's (0x0200_143b).
const IIDR_QEMU: u32 = 0x43b;

const GICC_CTLR_ENABLE: u32 = 1 << 0;
const GICC_CTLR_EOIMODE: u32 = 1 << 9;

const GICH_HCR: usize = 0x000;
const GICH_VTR: usize = 0x004;
const GICH_VMCR: usize = 0x008;
const GICH_MISR: usize = 0x010;
const GICH_EISR0: usize = 0x020;
const GICH_ELRSR0: usize = 0x030;
const GICH_APR: usize = 0x0F0;
const GICH_LR0: usize = 0x100;

/// A GICv2.
#[derive(Debug)]
pub struct GicV2 {
    gicd: Mmio,
    gicc: Mmio,
    gich: Mmio,
    nr_irqs: u32,
    nr_lrs: usize,
    /// Each CPU's bit in target lists, once it has been through `init_cpu`: the GIC numbers CPU
    /// interfaces itself.
    masks: [AtomicU8; MAX_CPUS],
    /// See [`super::Gic::overlooks`].
    overlooks: bool,
}

impl GicV2 {
    /// # Safety
    /// As [`Mmio::new`] for the three blocks.
    pub(super) unsafe fn new(gicd: usize, gicc: usize, gich: usize) -> Self {
        // SAFETY: the caller's promise.
        let (gicd, gicc, gich) = unsafe { (Mmio::new(gicd), Mmio::new(gicc), Mmio::new(gich)) };
        let nr_irqs = (((gicd.read32(reg::TYPER) & 0x1f) + 1) * 32).min(1020);
        let nr_lrs = ((gich.read32(GICH_VTR) & 0x3f) as usize + 1).min(MAX_LRS);
        Self {
            gicd,
            gicc,
            gich,
            nr_irqs,
            nr_lrs,
            masks: [const { AtomicU8::new(0) }; MAX_CPUS],
            overlooks: gicd.read32(reg::IIDR) == IIDR_QEMU,
        }
    }

    pub(super) fn init_dist(&self) {
        self.gicd.write32(reg::CTLR, 0);
        reset_bank(self.gicd, 32, self.nr_irqs, 0);
        let me = self.own_mask();
        for i in 8..self.nr_irqs as usize / 4 {
            self.gicd.write32(reg::ITARGETSR + i * 4, bytes4(me));
        }
        self.gicd.write32(reg::CTLR, 1);
    }

    /// The calling CPU's bit: it reads it in the target registers of its private interrupts
    /// (zero on a machine with one CPU).
    fn own_mask(&self) -> u8 {
        (0..8)
            .map(|i| self.gicd.read32(reg::ITARGETSR + i * 4))
            .find(|&v| v != 0)
            .map_or(1, |v| (v | v >> 8 | v >> 16 | v >> 24) as u8)
    }

    pub(super) fn init_cpu(&self, cpu: usize) -> Result<(), GicError> {
        if let Some(m) = self.masks.get(cpu) {
            m.store(self.own_mask(), Ordering::Release);
        }
        reset_bank(self.gicd, 0, 32, 0);
        self.gicd.write32(reg::ISENABLER, 0xffff); // SGIs
        self.gicc.write32(GICC_APR0, 0);
        self.gicc.write32(GICC_PMR, 0xff);
        self.gicc.write32(GICC_BPR, 0);
        self.gicc
            .write32(GICC_CTLR, GICC_CTLR_ENABLE | GICC_CTLR_EOIMODE);
        for n in 0..self.nr_lrs {
            self.write_lr(n, 0);
        }
        self.restore_vif(&VgicCpuIf {
            hcr: 0,
            ..VgicCpuIf::new()
        });
        Ok(())
    }

    pub(super) fn nr_irqs(&self) -> u32 {
        self.nr_irqs
    }

    #[inline]
    pub(super) fn set_bit(&self, intid: u32, register: usize) {
        if intid < self.nr_irqs {
            self.gicd
                .write32(register + (intid / 32) as usize * 4, 1 << (intid % 32));
        }
    }

    /// The write has reached the distributor when a later read of it is answered.
    pub(super) fn settle(&self, _intid: u32) {
        let _ = self.gicd.read32(reg::CTLR);
    }

    pub(super) fn set_edge(&self, intid: u32, edge: bool) {
        if (16..self.nr_irqs).contains(&intid) {
            write_edge(self.gicd, intid, edge);
        }
    }

    pub(super) fn set_target(&self, intid: u32, cpu: usize) {
        let mask = self.masks.get(cpu).map_or(0, |m| m.load(Ordering::Acquire));
        if mask != 0 && intid < self.nr_irqs {
            let o = reg::ITARGETSR + (intid / 4) as usize * 4;
            let shift = intid % 4 * 8;
            let old = self.gicd.read32(o) & !(0xff << shift);
            self.gicd.write32(o, old | u32::from(mask) << shift);
        }
    }

    #[inline]
    pub(super) fn ack(&self) -> Ack {
        Ack(self.gicc.read32(GICC_IAR) & 0x1fff)
    }

    #[inline]
    pub(super) fn eoi(&self, ack: Ack) {
        self.gicc.write32(GICC_EOIR, ack.0);
    }

    #[inline]
    pub(super) fn deactivate(&self, ack: Ack) {
        self.gicc.write32(GICC_DIR, ack.0);
    }

    #[inline]
    pub(super) fn send_sgi(&self, sgi: u32, cpu: usize) {
        let mask = self.masks.get(cpu).map_or(0, |m| m.load(Ordering::Acquire));
        dsb_sy();
        self.gicd
            .write32(reg::SGIR, u32::from(mask) << 16 | sgi & 0xf);
    }

    #[inline]
    pub(super) fn overlooks(&self) -> bool {
        self.overlooks
    }

    #[inline]
    pub(super) fn nr_lrs(&self) -> usize {
        self.nr_lrs
    }

    #[inline]
    pub(super) fn read_lr(&self, n: usize) -> u64 {
        self.gich.read32(GICH_LR0 + (n & 63) * 4).into()
    }

    #[inline]
    pub(super) fn write_lr(&self, n: usize, lr: u64) {
        self.gich.write32(GICH_LR0 + (n & 63) * 4, lr as u32);
    }

    #[inline]
    pub(super) fn elrsr(&self) -> u32 {
        self.gich.read32(GICH_ELRSR0)
    }

    #[inline]
    pub(super) fn eisr(&self) -> u32 {
        self.gich.read32(GICH_EISR0)
    }

    pub(super) fn misr(&self) -> u32 {
        self.gich.read32(GICH_MISR)
    }

    /// GICV_DIR is in a page that guests do not have.
    pub(super) const fn traps_deactivation(&self) -> bool {
        true
    }

    pub(super) fn hcr(&self) -> u32 {
        self.gich.read32(GICH_HCR)
    }

    #[inline]
    pub(super) fn set_hcr(&self, hcr: u32) {
        self.gich.write32(GICH_HCR, hcr);
    }

    #[inline]
    pub(super) fn read_vif(&self, s: &mut VgicCpuIf) -> usize {
        s.vmcr = self.gich.read32(GICH_VMCR);
        s.apr[0][0] = self.gich.read32(GICH_APR).into();
        1
    }

    #[inline]
    pub(super) fn save_vif(&self, s: &mut VgicCpuIf) {
        self.read_vif(s);
        self.set_hcr(0);
        if self.overlooks {
            // A write to the physical interface of what is there has it look.
            self.gicc.write32(GICC_PMR, 0xff);
        }
    }

    #[inline]
    pub(super) fn restore_vif(&self, s: &VgicCpuIf) {
        self.gich.write32(GICH_VMCR, s.vmcr);
        self.gich.write32(GICH_APR, s.apr[0][0] as u32);
        self.set_hcr(s.hcr);
    }
}
