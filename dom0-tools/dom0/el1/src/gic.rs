// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interrupt controller at EL1: GICv2 by its CPU interface's page, GICv3 by system registers.

use crate::machine::Gic;
use crate::{Global, cpu, mmio};
use core::arch::asm;

static GIC: Global<Gic> = Global::new(Gic::V2 { gicd: 0, gicc: 0 });

/// Distributor registers, as offsets.
const CTLR: u64 = 0x0;
const IGROUPR: u64 = 0x80;
const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const IPRIORITYR: u64 = 0x400;
const ITARGETSR: u64 = 0x800;
const ICFGR: u64 = 0xc00;
const IROUTER: u64 = 0x6000;

fn read(addr: u64) -> u32 {
    // SAFETY: only called with registers of the controller that the device tree names.
    unsafe { mmio::read32(addr) }
}

fn write(addr: u64, value: u32) {
    // SAFETY: as `read`; an interrupt is never taken, or by vectors that keep what they interrupt
    // (`probe`), so that no setting can break memory safety.
    unsafe { mmio::write32(addr, value) }
}

/// The redistributor of this CPU.
fn own_redistributor(first: u64) -> u64 {
    let own = cpu::affinity();
    let own = (own >> 32 << 24 | own & 0xff_ffff) as u32;
    let mut at = first;
    loop {
        let (low, high) = (read(at + 8), read(at + 12));
        // GICR_TYPER: the affinity above, bit 4 says that it is the last one.
        if high == own || low & 1 << 4 != 0 {
            return at;
        }
        // Two frames of 64 KiB, and two more if there are virtual LPIs.
        at += if low & 2 != 0 { 0x4_0000 } else { 0x2_0000 };
    }
}

pub(crate) fn init(gic: &Gic) {
    match *gic {
        Gic::V2 { gicd, .. } => write(gicd + CTLR, 1),
        // Affinity routing, non-secure group 1.
        Gic::V3 { gicd, .. } => write(gicd + CTLR, 1 << 4 | 1 << 1),
    }
    *GIC.lock() = init_cpu(gic);
}

/// Sets up what is this CPU's own. Returns the controller with this CPU's redistributor, not the first.
pub(crate) fn init_cpu(gic: &Gic) -> Gic {
    match *gic {
        Gic::V2 { gicc, .. } => {
            write(gicc + 4, 0xff);
            write(gicc, 1);
            *gic
        }
        Gic::V3 { gicd, gicr } => {
            let gicr = own_redistributor(gicr);
            // Wake the redistributor.
            write(gicr + 0x14, read(gicr + 0x14) & !2);
            for _ in 0..1_000_000 {
                if read(gicr + 0x14) & 4 == 0 {
                    break;
                }
            }
            write(gicr + 0x1_0000 + IGROUPR, !0);
            // SAFETY: this CPU's interface: system registers on, every priority, group 1 on.
            // Interrupts stay masked.
            unsafe {
                asm!("mrs {x}, S3_0_C12_C12_5", "orr {x}, {x}, #1", "msr S3_0_C12_C12_5, {x}", "isb",
                     "mov {x}, #0xff", "msr S3_0_C4_C6_0, {x}",
                     "mov {x}, #1", "msr S3_0_C12_C12_7, {x}", "isb",
                     x = out(reg) _, options(nostack));
            }
            Gic::V3 { gicd, gicr }
        }
    }
}

/// How an interrupt is signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// For as long as the line is active.
    Level,
    /// Once for each change.
    Edge,
}

/// Lets an interrupt through to this CPU.
pub fn enable(intid: u32, trigger: Trigger) {
    let (word, bit) = (u64::from(intid / 32) * 4, 1 << (intid % 32));
    let gic = *GIC.lock();
    let (gicd, frame) = match gic {
        Gic::V2 { gicd, .. } => (gicd, gicd),
        Gic::V3 { gicd, gicr } if intid < 32 => (gicd, gicr + 0x1_0000),
        Gic::V3 { gicd, .. } => (gicd, gicd),
    };
    let priority = frame + IPRIORITYR + u64::from(intid & !3);
    let shift = intid % 4 * 8;
    write(priority, read(priority) & !(0xff << shift) | 0xa0 << shift);
    if intid >= 32 {
        let config = frame + ICFGR + u64::from(intid / 16) * 4;
        let edge = 2 << (intid % 16 * 2);
        let old = read(config);
        write(
            config,
            if trigger == Trigger::Edge {
                old | edge
            } else {
                old & !edge
            },
        );
        match gic {
            Gic::V2 { .. } => {
                let target = gicd + ITARGETSR + u64::from(intid & !3);
                // This CPU's own bit, as the first interrupts' read-only targets tell it.
                let own = read(gicd + ITARGETSR) & 0xff;
                let own = if own == 0 { 1 } else { own };
                write(target, read(target) & !(0xff << shift) | own << shift);
            }
            Gic::V3 { .. } => {
                write(gicd + IGROUPR + word, read(gicd + IGROUPR + word) | bit);
                let router = gicd + IROUTER + u64::from(intid) * 8;
                // SAFETY: the interrupt's routing register.
                unsafe { mmio::write64(router, cpu::affinity()) };
            }
        }
    }
    write(frame + ISENABLER + word, bit);
}

/// Lets an interrupt through no more.
pub fn disable(intid: u32) {
    let frame = match *GIC.lock() {
        Gic::V2 { gicd, .. } => gicd,
        Gic::V3 { gicr, .. } if intid < 32 => gicr + 0x1_0000,
        Gic::V3 { gicd, .. } => gicd,
    };
    write(
        frame + ICENABLER + u64::from(intid / 32) * 4,
        1 << (intid % 32),
    );
}

/// Takes one pending interrupt, has `handle` deal with its cause, and ends it. False if there was
/// none.
pub fn poll(handle: impl FnOnce(u32)) -> bool {
    cpu::interrupt_pending() && take(handle)
}

/// [`poll`] without asking the CPU first.
pub(crate) fn take(handle: impl FnOnce(u32)) -> bool {
    let gic = *GIC.lock();
    take_at(gic, handle)
}

pub(crate) fn take_at(gic: Gic, handle: impl FnOnce(u32)) -> bool {
    let Some((iar, intid)) = acknowledge_at(gic) else {
        return false;
    };
    handle(intid);
    end_at(gic, iar);
    true
}

/// Acknowledges an interrupt: what the register gave, and its number.
fn acknowledge_at(gic: Gic) -> Option<(u32, u32)> {
    let iar: u32 = match gic {
        Gic::V2 { gicc, .. } => read(gicc + 0xc),
        Gic::V3 { .. } => {
            let v: u64;
            // SAFETY: acknowledges an interrupt (ICC_IAR1_EL1).
            unsafe { asm!("mrs {}, S3_0_C12_C12_0", "dsb sy", out(reg) v, options(nostack)) }
            v as u32
        }
    };
    let intid = if matches!(gic, Gic::V2 { .. }) {
        iar & 0x3ff
    } else {
        iar & 0xff_ffff
    };
    (!(1020..1024).contains(&intid)).then_some((iar, intid))
}

fn end_at(gic: Gic, iar: u32) {
    match gic {
        Gic::V2 { gicc, .. } => write(gicc + 0x10, iar),
        // SAFETY: ends the interrupt just acknowledged (ICC_EOIR1_EL1).
        Gic::V3 { .. } => unsafe {
            asm!("msr S3_0_C12_C12_1, {}", "isb", in(reg) u64::from(iar), options(nostack));
        },
    }
}

/// Whether the end of an interrupt drops its priority alone (EOImode 1): it is to be [deactivated](deactivate) then.
#[cfg(feature = "probe")]
pub fn split(on: bool) {
    match *GIC.lock() {
        Gic::V2 { gicc, .. } => write(gicc, 1 | u32::from(on) << 9),
        // SAFETY: ICC_CTLR_EL1 of this CPU's interface; interrupts are taken by this module alone.
        Gic::V3 { .. } => unsafe {
            asm!("msr S3_0_C12_C12_4, {}", "isb", in(reg) u64::from(on) << 1, options(nostack));
        },
    }
}

/// With [`split`]: acknowledges an interrupt and drops its priority. What is to be given to [`deactivate`], and its
/// number.
#[cfg(feature = "probe")]
pub fn take_active() -> Option<(u32, u32)> {
    let gic = *GIC.lock();
    let taken = cpu::interrupt_pending().then(|| acknowledge_at(gic))??;
    end_at(gic, taken.0);
    Some(taken)
}

/// Deactivates an interrupt that [`take_active`] gave.
#[cfg(feature = "probe")]
pub fn deactivate(iar: u32) {
    match *GIC.lock() {
        Gic::V2 { gicc, .. } => write(gicc + 0x1000, iar),
        // SAFETY: ICC_DIR_EL1.
        Gic::V3 { .. } => unsafe {
            asm!("msr S3_0_C12_C11_1, {}", "isb", in(reg) u64::from(iar), options(nostack));
        },
    }
}

/// Lets all software-generated interrupts through to this CPU.
#[cfg(feature = "probe")]
pub fn enable_sgis() {
    let gic = *GIC.lock();
    enable_sgis_at(gic);
}

#[cfg(feature = "probe")]
pub(crate) fn enable_sgis_at(gic: Gic) {
    let (Gic::V2 { gicd: frame, .. } | Gic::V3 { gicr: frame, .. }) = gic;
    let frame = if matches!(gic, Gic::V3 { .. }) {
        frame + 0x1_0000
    } else {
        frame
    };
    write(frame + ISENABLER, 0xffff);
}

/// Sends a software-generated interrupt, 0 to 15, to a CPU by its affinity.
#[cfg(feature = "probe")]
pub fn send_sgi(affinity: u64, sgi: u32) {
    let gic = *GIC.lock();
    send_sgi_at(gic, affinity, sgi);
}

#[cfg(feature = "probe")]
pub(crate) fn send_sgi_at(gic: Gic, affinity: u64, sgi: u32) {
    match gic {
        Gic::V2 { gicd, .. } => write(gicd + 0xf00, 1 << (16 + (affinity & 7)) | sgi),
        Gic::V3 { .. } => {
            let value = (affinity >> 32 & 0xff) << 48
                | (affinity >> 16 & 0xff) << 32
                | u64::from(sgi) << 24
                | (affinity >> 8 & 0xff) << 16
                | 1 << (affinity & 0xf);
            // SAFETY: raises an interrupt (ICC_SGI1R_EL1).
            unsafe {
                asm!("dsb sy", "msr S3_0_C12_C11_5, {}", "isb", in(reg) value, options(nostack));
            }
        }
    }
}
