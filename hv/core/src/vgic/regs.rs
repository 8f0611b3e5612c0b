// SPDX-License-Identifier: MIT OR Apache-2.0
//! The registers: GICD of both versions, GICR of GICv3.
//!
//! One security state's non-secure view: all interrupts are what the view calls group 1, group
//! registers are RAZ/WI. Priorities have 5 bits. PPIs are level-triggered, as wired. What is not
//! there is RAZ/WI; a wrong size or alignment is refused, as Xen refuses it.

use super::{
    ACTIVE, BadAccess, Bank, Effects, GICD_SIZE_V2, GICD_SIZE_V3, GICR_STRIDE, PENDING, PRIVATE,
    Region, Vcpu, VcpuId, Vgic, all_vcpus, bank_of, bit, bits, mirror, put,
};
use crate::psci::{affinity_of, vcpu_at};

/// Offsets common to both versions, in the distributor and in a redistributor's SGI frame.
mod off {
    pub const CTLR: u64 = 0x000;
    pub const TYPER: u64 = 0x004;
    pub const IIDR: u64 = 0x008;
    pub const BITMAPS_END: u64 = 0x400;
    pub const IPRIORITYR: u64 = 0x400;
    pub const ITARGETSR: u64 = 0x800;
    pub const ICFGR: u64 = 0xC00;
    pub const ICFGR_END: u64 = 0xD00;
    /// GICv2 only, from here on.
    pub const SGIR: u64 = 0xF00;
    pub const CPENDSGIR: u64 = 0xF10;
    pub const SPENDSGIR: u64 = 0xF20;
    pub const SGI_END: u64 = 0xF30;
    pub const V2_PIDR2: u64 = 0xFE8;
    /// GICv3 only.
    pub const IROUTER: u64 = 0x6000;
    pub const IROUTER_END: u64 = 0x8000;
    pub const V3_PIDR2: u64 = 0xFFE8;
    pub const GICR_TYPER: u64 = 0x008;
    pub const GICR_SGI_FRAME: u64 = 0x1_0000;
}

/// Arm, as implementer.
const IIDR: u64 = 0x43b;
const PIDR2_V2: u64 = 0x2b;
const PIDR2_V3: u64 = 0x3b;
/// GICD_CTLR of GICv3: affinity routing is always on. DS is clear, as in a non-secure view, and GICD_TYPER says nothing of
/// a second security state: so Xen shows it, and kernels that choose by either are met as there.
const CTLR_ARE_NS: u64 = 1 << 4;
const CTLR_ENABLE_G1A: u64 = 1 << 1;
/// GICD_TYPER of GICv3: 10 bits of INTID, no 1-of-N.
const TYPER_V3: u64 = 9 << 19 | 1 << 25;
/// The priority bits that exist.
const PRIORITY_MASK: u8 = 0xf8;

/// Registers with a bit per interrupt, in their order from 0x080 on, 0x80 bytes each.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bitmap {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
}

impl Bitmap {
    fn at(offset: u64) -> Option<Self> {
        Some(match offset >> 7 {
            1 => Self::Group,
            2 => Self::SetEnable,
            3 => Self::ClearEnable,
            4 => Self::SetPending,
            5 => Self::ClearPending,
            6 => Self::SetActive,
            7 => Self::ClearActive,
            _ => return None,
        })
    }
}

/// An access within the part that `GICD` and the SGI frame have in common.
struct Access {
    vcpu: VcpuId,
    offset: u64,
    size: u8,
}

impl Vgic {
    /// The highest vcpu's number.
    fn last_vcpu(&self) -> u64 {
        (self.vcpus.len() as u64).saturating_sub(1)
    }

    pub(super) fn read(
        &mut self,
        vcpu: VcpuId,
        region: Region,
        offset: u64,
        size: u8,
    ) -> Result<u64, BadAccess> {
        aligned(offset, size)?;
        match (region, self.v3) {
            (Region::Gicd, false) => self.read_gicd_v2(vcpu, offset, size),
            (Region::Gicd, true) => self.read_gicd_v3(vcpu, offset, size),
            (Region::Gicr, true) => self.read_gicr(offset, size),
            (Region::Dir, false) => word(size, 0),
            (Region::Gicr, false) | (Region::Dir, true) => Err(BadAccess),
        }
    }

    pub(super) fn write(
        &mut self,
        vcpu: VcpuId,
        region: Region,
        offset: u64,
        size: u8,
        value: u64,
        fx: &mut Effects,
    ) -> Result<(), BadAccess> {
        aligned(offset, size)?;
        let value = value & size_mask(size);
        match (region, self.v3) {
            (Region::Gicd, false) => self.write_gicd_v2(vcpu, offset, size, value, fx),
            (Region::Gicd, true) => self.write_gicd_v3(vcpu, offset, size, value, fx),
            (Region::Gicr, true) => self.write_gicr(vcpu, offset, size, value, fx),
            (Region::Dir, false) => {
                word(size, 0)?;
                if offset == 0 {
                    // Bits 10 to 12 name an SGI's sender, which is not looked at: one SGI is active at a time.
                    let irq = value as u32 & 0x3ff;
                    self.clear_active(vcpu, irq & !31, bit(irq), fx);
                }
                Ok(())
            }
            (Region::Gicr, false) | (Region::Dir, true) => Err(BadAccess),
        }
    }

    fn read_gicd_v2(&self, vcpu: VcpuId, offset: u64, size: u8) -> Result<u64, BadAccess> {
        if offset >= GICD_SIZE_V2 {
            return Err(BadAccess);
        }
        let a = Access { vcpu, offset, size };
        match offset {
            off::CTLR => word(size, self.on.into()),
            off::TYPER => word(size, self.spis.len() as u64 | self.last_vcpu() << 5),
            off::IIDR => word(size, IIDR),
            off::IPRIORITYR..off::ITARGETSR => self.read_priority(&a),
            off::ITARGETSR..off::ICFGR => self.read_targets(&a),
            off::CPENDSGIR..off::SGI_END => {
                byte_or_word(size)?;
                // Both kinds read the same: who has sent SGIs that wait here.
                Ok(self.vcpus.get(vcpu.idx()).map_or(0, |v| {
                    gather(size, |i| sgi_senders(v, (offset & 0xf) as u32 | i))
                }))
            }
            off::V2_PIDR2 => word(size, PIDR2_V2),
            _ => self.read_common(&a, true),
        }
    }

    fn write_gicd_v2(
        &mut self,
        vcpu: VcpuId,
        offset: u64,
        size: u8,
        value: u64,
        fx: &mut Effects,
    ) -> Result<(), BadAccess> {
        if offset >= GICD_SIZE_V2 {
            return Err(BadAccess);
        }
        let a = Access { vcpu, offset, size };
        match offset {
            off::SGIR => {
                word(size, 0)?;
                let all = all_vcpus(self.vcpus.len());
                let me = 1u64 << (vcpu.0 & 63);
                let targets = match value >> 24 & 3 {
                    0 => value >> 16 & 0xff & all,
                    1 => all & !me,
                    2 => me & all,
                    _ => 0, // reserved
                };
                self.sgi((value & 0xf) as u32, targets, vcpu, fx);
                Ok(())
            }
            off::CTLR => {
                word(size, 0)?;
                self.on = value & 1 != 0;
                Ok(())
            }
            off::IPRIORITYR..off::ITARGETSR => self.write_priority(&a, value, true),
            off::ITARGETSR..off::ICFGR => {
                byte_or_word(size)?;
                let first = offset as u32 & 0x3ff;
                let all = all_vcpus(self.vcpus.len());
                for i in 0..u32::from(size) {
                    // Of several targets the lowest gets it; a list of none is ignored.
                    let list = u64::from(nth(value, i)) & all;
                    if list != 0 {
                        self.retarget(vcpu, first | i, list.trailing_zeros() as u8, fx);
                    }
                }
                Ok(())
            }
            off::CPENDSGIR..off::SGI_END => {
                byte_or_word(size)?;
                let set = offset >= off::SPENDSGIR;
                for i in 0..u32::from(size) {
                    let from = nth(value, i);
                    self.change_sgi(vcpu, (offset & 0xf) as u32 | i, from, set, fx);
                }
                Ok(())
            }
            _ => self.write_common(&a, value, true, fx),
        }
    }

    fn read_gicd_v3(&self, vcpu: VcpuId, offset: u64, size: u8) -> Result<u64, BadAccess> {
        if offset >= GICD_SIZE_V3 {
            return Err(BadAccess);
        }
        let a = Access { vcpu, offset, size };
        match offset {
            off::CTLR => word(
                size,
                CTLR_ARE_NS | if self.on { CTLR_ENABLE_G1A } else { 0 },
            ),
            off::TYPER => {
                let cpus = self.last_vcpu().min(7);
                word(size, self.spis.len() as u64 | cpus << 5 | TYPER_V3)
            }
            off::IIDR => word(size, IIDR),
            off::IPRIORITYR..off::ITARGETSR => {
                let private = offset < off::IPRIORITYR + u64::from(PRIVATE);
                if private {
                    byte_or_word(size).map(|()| 0)
                } else {
                    self.read_priority(&a)
                }
            }
            off::ITARGETSR..off::ICFGR => byte_or_word(size).map(|()| 0),
            off::IROUTER..off::IROUTER_END => {
                let (irq, high) = router(offset, size)?;
                let Some(b) = shared(&self.spis, irq) else {
                    return Ok(0);
                };
                let target = super::at(&b.target, irq & 31);
                let aff = affinity_of(VcpuId(target));
                Ok(if high {
                    aff >> 32
                } else {
                    aff & size_mask(size)
                })
            }
            off::V3_PIDR2 => word(size, PIDR2_V3),
            _ => self.read_common(&a, false),
        }
    }

    fn write_gicd_v3(
        &mut self,
        vcpu: VcpuId,
        offset: u64,
        size: u8,
        value: u64,
        fx: &mut Effects,
    ) -> Result<(), BadAccess> {
        if offset >= GICD_SIZE_V3 {
            return Err(BadAccess);
        }
        let a = Access { vcpu, offset, size };
        match offset {
            off::CTLR => {
                word(size, 0)?;
                self.on = value & CTLR_ENABLE_G1A != 0;
                Ok(())
            }
            off::IPRIORITYR..off::ITARGETSR => {
                if offset < off::IPRIORITYR + u64::from(PRIVATE) {
                    return byte_or_word(size);
                }
                self.write_priority(&a, value, false)
            }
            off::ITARGETSR..off::ICFGR => byte_or_word(size),
            off::IROUTER..off::IROUTER_END => {
                let (irq, high) = router(offset, size)?;
                // The upper half holds Aff3, which is 0 in every vcpu's: nothing to change by it
                // alone. An affinity that nobody has is ignored.
                let affinity = value & 0xff_00ff_ffff;
                if let Some(t) = vcpu_at(affinity)
                    && !high
                    && t.idx() < self.vcpus.len()
                {
                    self.retarget(vcpu, irq, t.0, fx);
                }
                Ok(())
            }
            _ => self.write_common(&a, value, false, fx),
        }
    }

    fn read_gicr(&self, offset: u64, size: u8) -> Result<u64, BadAccess> {
        let (owner, offset) = self.frame(offset)?;
        let a = Access {
            vcpu: owner,
            offset: offset & 0xffff,
            size,
        };
        if offset >= off::GICR_SGI_FRAME {
            return match a.offset {
                off::IPRIORITYR..off::ITARGETSR => self.read_priority(&a),
                off::ITARGETSR..off::ICFGR => byte_or_word(size).map(|()| 0),
                _ => self.read_common(&a, true),
            };
        }
        match offset {
            off::GICR_TYPER..0x010 => {
                let last = u64::from(u64::from(owner.0) == self.last_vcpu());
                // Affinity in the upper half, packed to 32 bits (Aff3 is 0).
                let typer = affinity_of(owner) << 32 | u64::from(owner.0) << 8 | last << 4;
                match size {
                    8 => Ok(typer),
                    4 if offset & 4 != 0 => Ok(typer >> 32),
                    4 => Ok(typer & 0xffff_ffff),
                    _ => Err(BadAccess),
                }
            }
            off::TYPER => word(size, IIDR), // GICR_IIDR
            off::V3_PIDR2 => word(size, PIDR2_V3),
            _ => wide_or_word(size).map(|()| 0),
        }
    }

    fn write_gicr(
        &mut self,
        vcpu: VcpuId,
        offset: u64,
        size: u8,
        value: u64,
        fx: &mut Effects,
    ) -> Result<(), BadAccess> {
        let (owner, offset) = self.frame(offset)?;
        if offset < off::GICR_SGI_FRAME {
            return wide_or_word(size); // nothing in the RD frame can be changed
        }
        let a = Access {
            vcpu: owner,
            offset: offset & 0xffff,
            size,
        };
        match a.offset {
            off::IPRIORITYR..off::ITARGETSR => self.write_priority(&a, value, true),
            off::ITARGETSR..off::ICFGR => byte_or_word(size),
            _ => {
                let done = self.write_common(&a, value, true, fx);
                if owner != vcpu && fx.phys.base == 0 {
                    // The shell can only reach the current CPU's private interrupts.
                    fx.phys = Default::default();
                }
                done
            }
        }
    }

    /// Which vcpu's redistributor, and the offset in it.
    fn frame(&self, offset: u64) -> Result<(VcpuId, u64), BadAccess> {
        let n = offset / GICR_STRIDE;
        if n >= self.vcpus.len() as u64 {
            return Err(BadAccess);
        }
        Ok((VcpuId(n as u8), offset % GICR_STRIDE))
    }

    /// The bank with interrupts `32 * index` on; the first is private, and only there where
    /// `private` says so.
    fn bank_at(&self, vcpu: VcpuId, index: u32, private: bool) -> Option<&Bank> {
        match index.checked_sub(1) {
            Some(i) => self.spis.get(i as usize),
            None if private => self.vcpus.get(vcpu.idx()).map(|v| &v.private),
            None => None,
        }
    }

    fn bank_at_mut(&mut self, vcpu: VcpuId, index: u32, private: bool) -> Option<&mut Bank> {
        match index.checked_sub(1) {
            Some(i) => self.spis.get_mut(i as usize),
            None if private => self.vcpus.get_mut(vcpu.idx()).map(|v| &mut v.private),
            None => None,
        }
    }

    /// Bitmaps, configuration, and what reads as zero.
    fn read_common(&self, a: &Access, private: bool) -> Result<u64, BadAccess> {
        word(a.size, 0)?;
        if a.offset < off::BITMAPS_END {
            let Some(map) = Bitmap::at(a.offset) else {
                return Ok(0);
            };
            let index = (a.offset as u32 & 0x7f) / 4;
            let Some(b) = self.bank_at(a.vcpu, index, private) else {
                return Ok(0);
            };
            return Ok(u64::from(match map {
                Bitmap::Group => 0,
                Bitmap::SetEnable | Bitmap::ClearEnable => b.enabled,
                Bitmap::SetPending | Bitmap::ClearPending => b.pending() | b.lr_pending,
                Bitmap::SetActive | Bitmap::ClearActive => b.active,
            }));
        }
        if (off::ICFGR..off::ICFGR_END).contains(&a.offset) {
            let n = (a.offset as u32 & 0xff) / 4;
            let Some(b) = self.bank_at(a.vcpu, n / 2, private) else {
                return Ok(0);
            };
            let edge = if n & 1 == 0 { b.edge } else { b.edge >> 16 };
            let v = bits(edge & 0xffff).fold(0u32, |v, i| v | 2u32.wrapping_shl(i << 1));
            return Ok(v.into());
        }
        Ok(0)
    }

    fn write_common(
        &mut self,
        a: &Access,
        value: u64,
        private: bool,
        fx: &mut Effects,
    ) -> Result<(), BadAccess> {
        word(a.size, 0)?;
        let v = value as u32;
        if a.offset < off::BITMAPS_END {
            let Some(map) = Bitmap::at(a.offset) else {
                return Ok(());
            };
            let index = (a.offset as u32 & 0x7f) / 4;
            if self.bank_at(a.vcpu, index, private).is_some() {
                self.write_bitmap(a.vcpu, map, index << 5, v, fx);
            }
        } else if (off::ICFGR..off::ICFGR_END).contains(&a.offset) {
            let n = (a.offset as u32 & 0xff) / 4;
            // Private interrupts are as they are.
            if let Some(b) = n
                .checked_sub(2)
                .and_then(|i| self.spis.get_mut(i as usize / 2))
            {
                let (all, shift) = if n & 1 == 0 {
                    (0xffff, 0)
                } else {
                    (0xffff_0000, 16)
                };
                let edge = bits(v & 0xaaaa_aaaa).fold(0, |e, i| e | bit(i / 2));
                b.edge = b.edge & !all | u32::wrapping_shl(edge, shift);
                self.pended(a.vcpu, (n / 2) << 5, all, fx);
            }
        }
        Ok(())
    }

    fn write_bitmap(&mut self, vcpu: VcpuId, map: Bitmap, base: u32, v: u32, fx: &mut Effects) {
        let v2 = !self.v3;
        let Some(b) = self.bank_at_mut(vcpu, base / 32, true) else {
            return;
        };
        fx.phys.base = base;
        match map {
            Bitmap::Group => {}
            Bitmap::SetEnable => {
                let fresh = v & !b.enabled;
                b.enabled |= v;
                fx.phys.enable = fresh & b.linked;
                self.pended(vcpu, base, fresh, fx);
            }
            Bitmap::ClearEnable => {
                // GICv2's SGIs are always enabled.
                let v = if v2 && base == 0 { v & !0xffff } else { v };
                let gone = v & b.enabled;
                b.enabled &= !v;
                fx.phys.disable = gone & b.linked;
                self.look(vcpu, base, gone, fx);
            }
            Bitmap::SetPending => {
                let v = if v2 && base == 0 { v & !0xffff } else { v }; // SPENDSGIR is for those
                b.latch |= v;
                self.pended(vcpu, base, v, fx);
            }
            Bitmap::ClearPending => {
                let v = if v2 && base == 0 { v & !0xffff } else { v };
                fx.phys.deactivate |= v & b.latch & b.hw;
                b.latch &= !v;
                b.hw &= !v;
                let in_lr = v & b.in_lr;
                for n in bits(in_lr) {
                    self.edit_lr(vcpu, base | n, PENDING, false, fx);
                }
            }
            Bitmap::SetActive => {
                let fresh = v & !b.active;
                let loose = fresh & !b.in_lr;
                b.active |= loose;
                for n in bits(loose) {
                    let target = super::at(&b.target, n);
                    b.set_owner(n, target);
                }
                for n in bits(fresh & !loose) {
                    self.edit_lr(vcpu, base | n, ACTIVE, true, fx);
                }
                self.activated(vcpu, base, loose);
            }
            Bitmap::ClearActive => self.clear_active(vcpu, base, v, fx),
        }
    }

    /// Interrupts `mask` of the bank at `base` are active no longer.
    pub(super) fn clear_active(&mut self, vcpu: VcpuId, base: u32, mask: u32, fx: &mut Effects) {
        let Some(b) = self.bank_at_mut(vcpu, base / 32, true) else {
            return;
        };
        fx.phys.base = base;
        let loose = mask & b.outside();
        let in_lr = mask & b.active & b.in_lr;
        b.active &= !loose;
        fx.phys.deactivate |= loose & b.hw_active;
        b.hw_active &= !loose;
        self.pended(vcpu, base, loose, fx);
        for n in bits(in_lr) {
            self.edit_lr(vcpu, base | n, ACTIVE, false, fx);
        }
    }

    /// Interrupts that a write made active: their owners carry them in list registers.
    fn activated(&mut self, vcpu: VcpuId, base: u32, mask: u32) {
        for n in bits(mask) {
            let (home, hint) = match (base / 32).checked_sub(1) {
                None => (vcpu.0, 0),
                Some(i) => match self.spis.get(i as usize) {
                    Some(b) => (b.home(n), 1 << i),
                    None => return,
                },
            };
            if let Some(v) = self.vcpus.get_mut(usize::from(home)) {
                v.work = true;
                v.spi_hint |= hint;
            }
        }
    }

    /// Sets or clears a state bit of an interrupt that is in a list register. Only where the
    /// register's content is known, which is so for the vcpu that makes the access: another one
    /// that runs is left alone.
    fn edit_lr(&mut self, vcpu: VcpuId, irq: u32, state: u8, on: bool, fx: &mut Effects) {
        let Self { vcpus, spis, .. } = self;
        let home = match shared(spis, irq) {
            Some(b) => VcpuId(b.home(irq & 31)),
            None => vcpu,
        };
        let Some(v) = vcpus.get_mut(home.idx()) else {
            return;
        };
        if !v.synced {
            return;
        }
        let Some(n) = v.find_lr(irq) else { return };
        let Some(lr) = v.lr.get_mut(n) else { return };
        if on {
            // A linked one cannot be both.
            lr.state = if lr.hw { state } else { lr.state | state };
        } else {
            lr.state &= !state;
        }
        if lr.state == 0 && lr.hw {
            fx.phys.deactivate |= bit(irq);
        }
        let left = lr.state;
        v.work = true;
        v.dirty |= 1 << n;
        if left == 0 {
            v.used &= !(1 << n);
            v.left(irq);
        }
        if let Some(b) = bank_of(&mut v.private, spis, irq) {
            mirror(b, irq, left);
        }
    }

    fn read_priority(&self, a: &Access) -> Result<u64, BadAccess> {
        byte_or_word(a.size)?;
        let first = a.offset as u32 & 0x3ff;
        let Some(b) = self.bank_at(a.vcpu, first / 32, true) else {
            return Ok(0);
        };
        Ok(gather(a.size, |i| b.priority(first & 31 | i)))
    }

    fn write_priority(&mut self, a: &Access, value: u64, private: bool) -> Result<(), BadAccess> {
        byte_or_word(a.size)?;
        let first = a.offset as u32 & 0x3ff;
        let Some(b) = self.bank_at_mut(a.vcpu, first / 32, private) else {
            return Ok(());
        };
        for i in 0..u32::from(a.size) {
            if let Some(p) = b.priority.get_mut((first & 31 | i) as usize) {
                *p = nth(value, i) & PRIORITY_MASK;
            }
        }
        Ok(())
    }

    fn read_targets(&self, a: &Access) -> Result<u64, BadAccess> {
        byte_or_word(a.size)?;
        let first = a.offset as u32 & 0x3ff;
        let me = a.vcpu.0;
        if first < PRIVATE {
            return Ok(gather(a.size, |_| 1 << (me & 7)));
        }
        let Some(b) = shared(&self.spis, first) else {
            return Ok(0);
        };
        Ok(gather(a.size, |i| {
            1 << (super::at(&b.target, first & 31 | i) & 7)
        }))
    }

    /// Aims an SPI at a vcpu. One that is active stays with the vcpu that has to end it; one
    /// that is pending in a running vcpu's list register may still be taken there.
    fn retarget(&mut self, vcpu: VcpuId, irq: u32, target: u8, fx: &mut Effects) {
        let v3 = self.v3;
        let Self { vcpus, spis, .. } = self;
        let Some(b) = irq
            .checked_sub(PRIVATE)
            .and_then(|i| spis.get_mut((i / 32) as usize))
        else {
            return;
        };
        let n = irq & 31;
        match b.target.get_mut(n as usize) {
            Some(t) if *t != target => *t = target,
            _ => return,
        }
        if b.in_lr & bit(irq) != 0 {
            let home = b.home(n);
            if let Some(v) = vcpus.get_mut(usize::from(home))
                && v.synced
                && let Some(i) = v.find_lr(irq)
                && v.lr.get(i).is_some_and(|l| l.state == PENDING)
            {
                Self::withdraw(v, spis, i, v3);
                v.work = true;
            }
        }
        self.pended(vcpu, irq & !31, bit(irq), fx);
    }

    /// CPENDSGIR and SPENDSGIR: one SGI from several senders.
    fn change_sgi(&mut self, vcpu: VcpuId, sgi: u32, from: u8, set: bool, fx: &mut Effects) {
        let from = from & all_vcpus(self.vcpus.len()) as u8;
        let Some(v) = self.vcpus.get_mut(vcpu.idx()) else {
            return;
        };
        let Some(s) = v.sgi_from.get_mut(sgi as usize) else {
            return;
        };
        *s = if set { *s | from } else { *s & !from };
        let any = *s != 0;
        put(&mut v.private.latch, 1 << sgi, any);
        if set {
            self.pended(vcpu, 0, 1 << sgi, fx);
        } else if v.synced
            && let Some(n) = v.find_lr(sgi)
            && v.lr.get(n).is_some_and(|l| from >> (l.from & 7) & 1 != 0)
        {
            self.edit_lr(vcpu, sgi, PENDING, false, fx);
        }
    }
}

/// An SPI's bank.
fn shared(spis: &[Bank], irq: u32) -> Option<&Bank> {
    spis.get((irq.checked_sub(PRIVATE)? / 32) as usize)
}

/// Who has sent an SGI that waits, in a list register or not.
fn sgi_senders(v: &Vcpu, sgi: u32) -> u8 {
    let mut s = super::at(&v.sgi_from, sgi);
    if v.private.lr_pending & bit(sgi) != 0
        && let Some(lr) = v.find_lr(sgi).and_then(|n| v.lr.get(n))
    {
        s |= 1 << (lr.from & 7);
    }
    s
}

/// An IROUTER access: the interrupt, and whether it is to the upper half alone.
fn router(offset: u64, size: u8) -> Result<(u32, bool), BadAccess> {
    wide_or_word(size)?;
    Ok(((offset as u32 & 0x1fff) / 8, !offset.is_multiple_of(8)))
}

fn aligned(offset: u64, size: u8) -> Result<(), BadAccess> {
    if matches!(size, 1 | 2 | 4 | 8) && offset.is_multiple_of(size.into()) {
        Ok(())
    } else {
        Err(BadAccess)
    }
}

/// `v` for a 32-bit access, the only size allowed.
#[inline]
fn word(size: u8, v: u64) -> Result<u64, BadAccess> {
    if size == 4 { Ok(v) } else { Err(BadAccess) }
}

fn byte_or_word(size: u8) -> Result<(), BadAccess> {
    if size == 1 || size == 4 {
        Ok(())
    } else {
        Err(BadAccess)
    }
}

fn wide_or_word(size: u8) -> Result<(), BadAccess> {
    if size == 8 || size == 4 {
        Ok(())
    } else {
        Err(BadAccess)
    }
}

fn size_mask(size: u8) -> u64 {
    u64::MAX.wrapping_shr(u32::from(8u8.wrapping_sub(size) & 7) << 3)
}

/// A value's `n`th byte, the lowest being the first.
fn nth(value: u64, n: u32) -> u8 {
    value.wrapping_shr(n << 3) as u8
}

/// `size` bytes, the lowest first.
fn gather(size: u8, byte: impl Fn(u32) -> u8) -> u64 {
    (0..u32::from(size)).fold(0, |v, i| v | u64::from(byte(i)).wrapping_shl(i << 3))
}
