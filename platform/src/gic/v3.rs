// SPDX-License-Identifier: MIT OR Apache-2.0
//! GICv3: distributor and redistributors by MMIO, CPU interfaces by system registers. Affinity
//! routing is on; everything is group 1. Guests use system registers too: their `ICC_SRE_EL1`
//! is left trapping, so that none can turn its interface off for the next.

use super::{Ack, GicError, MAX_LRS, POLL, VgicCpuIf, reg, reset_bank, write_edge};
use crate::dt::{MAX_CPUS, MAX_GICR};
use crate::mmio::Mmio;
use crate::sysreg::{dsb_sy, isb, mrs, msr};
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const GICD_IROUTER: usize = 0x6000;
const GICD_CTLR_RWP: u32 = 1 << 31;
/// EnableGrp1A in the non-secure view, EnableGrp1 in the single-security-state one (bit 1), and
/// bit 0 (EnableGrp1 without affinity routing, or EnableGrp0); ARE(_NS) is bit 4.
const GICD_CTLR_ON: u32 = 1 << 0 | 1 << 1 | 1 << 4;

const GICR_CTLR: usize = 0x000;
const GICR_TYPER: usize = 0x008;
const GICR_WAKER: usize = 0x014;
const GICR_CTLR_RWP: u32 = 1 << 3;
const GICR_TYPER_VLPIS: u64 = 1 << 1;
const GICR_TYPER_LAST: u64 = 1 << 4;
const WAKER_PROCESSOR_SLEEP: u32 = 1 << 1;
const WAKER_CHILDREN_ASLEEP: u32 = 1 << 2;
/// The SGI frame follows the RD frame.
const GICR_SGI: usize = 0x1_0000;

const SRE: u64 = 1 << 0;
const SRE_DFB_DIB: u64 = 0b110;
const ICC_CTLR_EOIMODE: u64 = 1 << 1;

/// A GICv3.
#[derive(Debug)]
pub struct GicV3 {
    gicd: Mmio,
    regions: ArrayVec<(Mmio, usize), MAX_GICR>,
    stride: Option<usize>,
    nr_irqs: u32,
    nr_lrs: usize,
    /// Active-priority registers of each group that exist beyond the first.
    more_aprs: usize,
    /// Each CPU's redistributor (virtual address; 0: not yet) and affinity.
    gicr: [AtomicUsize; MAX_CPUS],
    affinity: [AtomicU64; MAX_CPUS],
    /// Affinity to CPU number of the caller is looked up in `affinity`.
    cpus: AtomicUsize,
}

/// MPIDR's affinity fields, packed as GICR_TYPER has them.
fn packed(mpidr: u64) -> u32 {
    (mpidr & 0xff_ffff | mpidr >> 32 << 24) as u32
}

fn own_affinity() -> u64 {
    mrs!("mpidr_el1") & 0xff_00ff_ffff
}

macro_rules! lr {
    ($n:expr, $op:ident $(, $v:expr)?) => {
        match $n {
            0 => $op!("S3_4_C12_C12_0" $(, $v)?),
            1 => $op!("S3_4_C12_C12_1" $(, $v)?),
            2 => $op!("S3_4_C12_C12_2" $(, $v)?),
            3 => $op!("S3_4_C12_C12_3" $(, $v)?),
            4 => $op!("S3_4_C12_C12_4" $(, $v)?),
            5 => $op!("S3_4_C12_C12_5" $(, $v)?),
            6 => $op!("S3_4_C12_C12_6" $(, $v)?),
            7 => $op!("S3_4_C12_C12_7" $(, $v)?),
            8 => $op!("S3_4_C12_C13_0" $(, $v)?),
            9 => $op!("S3_4_C12_C13_1" $(, $v)?),
            10 => $op!("S3_4_C12_C13_2" $(, $v)?),
            11 => $op!("S3_4_C12_C13_3" $(, $v)?),
            12 => $op!("S3_4_C12_C13_4" $(, $v)?),
            13 => $op!("S3_4_C12_C13_5" $(, $v)?),
            14 => $op!("S3_4_C12_C13_6" $(, $v)?),
            _ => $op!("S3_4_C12_C13_7" $(, $v)?),
        }
    };
}

impl GicV3 {
    /// # Safety
    /// As [`Mmio::new`] for the distributor (64 KiB) and each region of that many bytes.
    pub(super) unsafe fn new(
        gicd: usize,
        regions: ArrayVec<(usize, usize), MAX_GICR>,
        stride: Option<usize>,
    ) -> Self {
        // SAFETY: the caller's promise.
        let gicd = unsafe { Mmio::new(gicd) };
        let regions = regions
            .into_iter()
            // SAFETY: the caller's promise.
            .map(|(base, size)| (unsafe { Mmio::new(base) }, size))
            .collect();
        let nr_irqs = (((gicd.read32(reg::TYPER) & 0x1f) + 1) * 32).min(1020);
        let vtr = mrs!("S3_4_C12_C11_1"); // ICH_VTR_EL2
        let pre_bits = (vtr >> 26 & 7) as usize + 1;
        Self {
            gicd,
            regions,
            stride,
            nr_irqs,
            nr_lrs: ((vtr & 0x1f) as usize + 1).min(MAX_LRS),
            more_aprs: match pre_bits {
                7.. => 3,
                6 => 1,
                _ => 0,
            },
            gicr: [const { AtomicUsize::new(0) }; MAX_CPUS],
            affinity: [const { AtomicU64::new(0) }; MAX_CPUS],
            cpus: AtomicUsize::new(0),
        }
    }

    fn wait_dist(&self) {
        for _ in 0..POLL {
            if self.gicd.read32(reg::CTLR) & GICD_CTLR_RWP == 0 {
                return;
            }
        }
    }

    pub(super) fn init_dist(&self) {
        self.gicd.write32(reg::CTLR, 0);
        self.wait_dist();
        self.gicd.write32(reg::CTLR, 1 << 4); // IROUTER exists with affinity routing only
        self.wait_dist();
        reset_bank(self.gicd, 32, self.nr_irqs, !0);
        let me = own_affinity();
        for i in 32..self.nr_irqs as usize {
            self.gicd.write64(GICD_IROUTER + i * 8, me);
        }
        self.gicd.write32(reg::CTLR, GICD_CTLR_ON);
        self.wait_dist();
    }

    /// The redistributor of the CPU with this affinity.
    fn find_redistributor(&self, affinity: u64) -> Option<Mmio> {
        for &(region, size) in &self.regions {
            let mut off = 0;
            while off + 0x2_0000 <= size {
                let frame = region.at(off);
                let typer = frame.read64(GICR_TYPER);
                if (typer >> 32) as u32 == packed(affinity) {
                    return Some(frame);
                }
                if typer & GICR_TYPER_LAST != 0 {
                    break;
                }
                let own = if typer & GICR_TYPER_VLPIS != 0 {
                    0x4_0000
                } else {
                    0x2_0000
                };
                off += self.stride.unwrap_or(own).max(0x2_0000);
            }
        }
        None
    }

    pub(super) fn init_cpu(&self, cpu: usize) -> Result<(), GicError> {
        msr!("S3_4_C12_C9_5", SRE | SRE_DFB_DIB | 1 << 3); // ICC_SRE_EL2, EL1's not trapping yet
        isb();
        if cfg!(target_arch = "aarch64") && mrs!("S3_4_C12_C9_5") & SRE == 0 {
            return Err(GicError::NoSystemRegisters);
        }
        msr!("S3_0_C12_C12_5", SRE | SRE_DFB_DIB); // ICC_SRE_EL1, the guests'
        isb();
        msr!("S3_4_C12_C9_5", SRE | SRE_DFB_DIB); // and from here on it traps
        isb();

        let affinity = own_affinity();
        let rd = self
            .find_redistributor(affinity)
            .ok_or(GicError::NoRedistributor)?;
        let (Some(slot), Some(aff)) = (self.gicr.get(cpu), self.affinity.get(cpu)) else {
            return Err(GicError::TooManyCpus);
        };
        aff.store(affinity, Ordering::Relaxed);
        slot.store(rd.base(), Ordering::Release);
        self.cpus.fetch_max(cpu + 1, Ordering::AcqRel);
        rd.write32(GICR_WAKER, rd.read32(GICR_WAKER) & !WAKER_PROCESSOR_SLEEP);
        for _ in 0..POLL {
            if rd.read32(GICR_WAKER) & WAKER_CHILDREN_ASLEEP == 0 {
                break;
            }
        }
        let sgi = rd.at(GICR_SGI);
        reset_bank(sgi, 0, 32, !0);
        sgi.write32(reg::ISENABLER, 0xffff); // SGIs
        wait_redist(rd);

        msr!("S3_0_C4_C6_0", 0xff); // ICC_PMR_EL1
        msr!("S3_0_C12_C12_3", 0); // ICC_BPR1_EL1
        let ctlr = mrs!("S3_0_C12_C12_4");
        msr!("S3_0_C12_C12_4", ctlr & !1 | ICC_CTLR_EOIMODE); // ICC_CTLR_EL1
        msr!("S3_0_C12_C12_7", 1); // ICC_IGRPEN1_EL1
        for n in 0..self.nr_lrs {
            self.write_lr(n, 0);
        }
        self.restore_vif(&VgicCpuIf {
            hcr: 0,
            ..VgicCpuIf::new()
        });
        isb();
        Ok(())
    }

    pub(super) fn nr_irqs(&self) -> u32 {
        self.nr_irqs
    }

    /// The calling CPU's redistributor.
    fn own_redistributor(&self) -> Option<Mmio> {
        let me = own_affinity();
        let cpus = self.cpus.load(Ordering::Acquire);
        let i = self
            .affinity
            .iter()
            .take(cpus)
            .position(|a| a.load(Ordering::Relaxed) == me)?;
        let base = self.gicr.get(i)?.load(Ordering::Acquire);
        // SAFETY: a frame that `find_redistributor` found within a region given to `new`.
        (base != 0).then(|| unsafe { Mmio::new(base) })
    }

    /// The bank with an interrupt's registers.
    #[inline]
    fn bank(&self, intid: u32) -> Option<Mmio> {
        if intid < 32 {
            Some(self.own_redistributor()?.at(GICR_SGI))
        } else {
            (intid < self.nr_irqs).then_some(self.gicd)
        }
    }

    #[inline]
    pub(super) fn set_bit(&self, intid: u32, register: usize) {
        if let Some(bank) = self.bank(intid) {
            bank.write32(register + (intid / 32) as usize * 4, 1 << (intid % 32));
        }
    }

    /// Waits until a disable counts.
    pub(super) fn settle(&self, intid: u32) {
        if intid >= 32 {
            self.wait_dist();
        } else if let Some(rd) = self.own_redistributor() {
            wait_redist(rd);
        }
    }

    pub(super) fn set_edge(&self, intid: u32, edge: bool) {
        if intid >= 16
            && let Some(bank) = self.bank(intid)
        {
            write_edge(bank, intid, edge);
        }
    }

    pub(super) fn set_target(&self, intid: u32, cpu: usize) {
        if intid < self.nr_irqs
            && cpu < self.cpus.load(Ordering::Acquire)
            && let Some(a) = self.affinity.get(cpu)
        {
            self.gicd
                .write64(GICD_IROUTER + intid as usize * 8, a.load(Ordering::Relaxed));
        }
    }

    #[inline]
    pub(super) fn ack(&self) -> Ack {
        let v = mrs!("S3_0_C12_C12_0") as u32; // ICC_IAR1_EL1
        dsb_sy(); // what the sender wrote before is seen from here on
        Ack(v)
    }

    #[inline]
    pub(super) fn eoi(&self, ack: Ack) {
        msr!("S3_0_C12_C12_1", ack.0.into()); // ICC_EOIR1_EL1
        isb();
    }

    #[inline]
    pub(super) fn deactivate(&self, ack: Ack) {
        msr!("S3_0_C12_C11_1", ack.0.into()); // ICC_DIR_EL1
        isb();
    }

    #[inline]
    pub(super) fn send_sgi(&self, sgi: u32, cpu: usize) {
        let Some(a) = self.affinity.get(cpu) else {
            return;
        };
        let a = a.load(Ordering::Relaxed);
        let (aff0, aff1, aff2, aff3) = (a & 0xff, a >> 8 & 0xff, a >> 16 & 0xff, a >> 32 & 0xff);
        dsb_sy();
        let v = aff3 << 48
            | (aff0 >> 4) << 44
            | aff2 << 32
            | u64::from(sgi & 0xf) << 24
            | aff1 << 16
            | 1 << (aff0 & 0xf);
        msr!("S3_0_C12_C11_5", v); // ICC_SGI1R_EL1
        isb();
    }

    #[inline]
    pub(super) fn nr_lrs(&self) -> usize {
        self.nr_lrs
    }

    #[inline]
    pub(super) fn read_lr(&self, n: usize) -> u64 {
        lr!(n, mrs)
    }

    #[inline]
    pub(super) fn write_lr(&self, n: usize, lr: u64) {
        lr!(n, msr, lr);
    }

    #[inline]
    pub(super) fn elrsr(&self) -> u32 {
        mrs!("S3_4_C12_C11_5") as u32
    }

    #[inline]
    pub(super) fn eisr(&self) -> u32 {
        mrs!("S3_4_C12_C11_3") as u32
    }

    pub(super) fn misr(&self) -> u32 {
        mrs!("S3_4_C12_C11_2") as u32
    }

    /// `ICH_VTR_EL2.TDS`.
    pub(super) fn traps_deactivation(&self) -> bool {
        mrs!("S3_4_C12_C11_1") & 1 << 19 != 0
    }

    pub(super) fn hcr(&self) -> u32 {
        mrs!("S3_4_C12_C11_0") as u32
    }

    #[inline]
    pub(super) fn set_hcr(&self, hcr: u32) {
        msr!("S3_4_C12_C11_0", hcr.into());
    }

    #[inline]
    pub(super) fn save_vif(&self, s: &mut VgicCpuIf) {
        self.read_vif(s);
        self.set_hcr(0);
    }

    /// How many words of active priorities there are.
    #[inline]
    pub(super) fn read_vif(&self, s: &mut VgicCpuIf) -> usize {
        dsb_sy(); // the guest's last accesses to its interface count
        s.vmcr = mrs!("S3_4_C12_C11_7") as u32;
        s.apr[0][0] = mrs!("S3_4_C12_C8_0");
        s.apr[1][0] = mrs!("S3_4_C12_C9_0");
        if self.more_aprs >= 1 {
            s.apr[0][1] = mrs!("S3_4_C12_C8_1");
            s.apr[1][1] = mrs!("S3_4_C12_C9_1");
        }
        if self.more_aprs >= 3 {
            s.apr[0][2] = mrs!("S3_4_C12_C8_2");
            s.apr[1][2] = mrs!("S3_4_C12_C9_2");
            s.apr[0][3] = mrs!("S3_4_C12_C8_3");
            s.apr[1][3] = mrs!("S3_4_C12_C9_3");
        }
        self.more_aprs + 1
    }

    #[inline]
    pub(super) fn restore_vif(&self, s: &VgicCpuIf) {
        msr!("S3_4_C12_C11_7", s.vmcr.into());
        msr!("S3_4_C12_C8_0", s.apr[0][0]);
        msr!("S3_4_C12_C9_0", s.apr[1][0]);
        if self.more_aprs >= 1 {
            msr!("S3_4_C12_C8_1", s.apr[0][1]);
            msr!("S3_4_C12_C9_1", s.apr[1][1]);
        }
        if self.more_aprs >= 3 {
            msr!("S3_4_C12_C8_2", s.apr[0][2]);
            msr!("S3_4_C12_C9_2", s.apr[1][2]);
            msr!("S3_4_C12_C8_3", s.apr[0][3]);
            msr!("S3_4_C12_C9_3", s.apr[1][3]);
        }
        self.set_hcr(s.hcr);
        isb();
    }
}

fn wait_redist(rd: Mmio) {
    for _ in 0..POLL {
        if rd.read32(GICR_CTLR) & GICR_CTLR_RWP == 0 {
            return;
        }
    }
}
