// SPDX-License-Identifier: MIT OR Apache-2.0
//! What every domain shares with the hypervisor (`xen.h`, `arch-arm.h`).

use crate::mem::SharedMem;
use core::sync::atomic::{Ordering, fence};

/// Number of 64-bit words of the 2-level event bitmaps in [`SharedInfo`].
pub const EVTCHN_WORDS: usize = 64;

abi! {
    /// Time of a vcpu; unused on Arm, where the architected timer serves.
    ["vcpu_time_info", 32, "xen.h"]
    pub struct VcpuTimeInfo {
        /// Odd while it is being written.
        pub version: u32,
        /// Padding.
        pub pad0: u32,
        /// Counter at the last update.
        pub tsc_timestamp: u64,
        /// Nanoseconds since boot at the last update.
        pub system_time: u64,
        /// Multiplier from counter to nanoseconds.
        pub tsc_to_system_mul: u32,
        /// Shift from counter to nanoseconds.
        pub tsc_shift: i8,
        /// Flags.
        pub flags: u8,
        /// Padding.
        pub pad1: [u8; 2],
    }

    /// What the hypervisor tells one vcpu. In [`SharedInfo`] for vcpu 0, or where
    /// `VCPUOP_register_vcpu_info` put it.
    ["vcpu_info", 48, "xen.h"]
    pub struct VcpuInfo {
        /// Non-zero while events wait; the event-channel interrupt's level follows it.
        pub evtchn_upcall_pending: u8,
        /// Upcall mask; unused on Arm, where the interrupt controller masks.
        pub pad0: u8,
        /// Padding.
        pub _pad: [u8; 6] = "-",
        /// 2-level events: which words of `evtchn_pending` have a new bit.
        pub evtchn_pending_sel: u64,
        /// Unused on Arm.
        pub time: VcpuTimeInfo,
    }

    /// The page that a domain shares with the hypervisor.
    ["shared_info", 1088, "xen.h"]
    pub struct SharedInfo {
        /// Vcpu 0's place, unless it registers another.
        pub vcpu_info: [VcpuInfo; 1],
        /// 2-level events: one bit for each pending port.
        pub evtchn_pending: [u64; EVTCHN_WORDS],
        /// 2-level events: one bit for each masked port.
        pub evtchn_mask: [u64; EVTCHN_WORDS],
        /// Odd while the wall clock is being written.
        pub wc_version: u32,
        /// Wall clock at the system's boot: seconds since 1970, low word.
        pub wc_sec: u32,
        /// Wall clock at the system's boot: nanoseconds.
        pub wc_nsec: u32,
        /// Wall clock at the system's boot: seconds, high word.
        pub wc_sec_hi: u32,
    }

    /// One call of a multicall.
    ["multicall_entry", 64, "xen.h"]
    pub struct MulticallEntry {
        /// Number of the hypercall.
        pub op: u64,
        /// Its result.
        pub result: u64,
        /// Its arguments.
        pub args: [u64; 6],
    }

    /// A bitmap in the caller's memory.
    ["xenctl_bitmap", 16, "xen.h"]
    pub struct XenctlBitmap {
        /// Address of its bytes, bit 0 first.
        pub bitmap: u64,
        /// Length in bits.
        pub nr_bits: u32,
        /// Padding.
        pub _pad: u32 = "-",
    }
}

/// Byte offsets within the pages that are shared as words, not as structures.
pub mod offset {
    use super::{SharedInfo, VcpuInfo};
    use core::mem::offset_of;

    /// `shared_info.evtchn_pending[0]`.
    pub const EVTCHN_PENDING: usize = offset_of!(SharedInfo, evtchn_pending);
    /// `shared_info.evtchn_mask[0]`.
    pub const EVTCHN_MASK: usize = offset_of!(SharedInfo, evtchn_mask);
    /// `shared_info.wc_version`.
    pub const WC_VERSION: usize = offset_of!(SharedInfo, wc_version);
    /// `shared_info.wc_sec`.
    pub const WC_SEC: usize = offset_of!(SharedInfo, wc_sec);
    /// `shared_info.wc_nsec`.
    pub const WC_NSEC: usize = offset_of!(SharedInfo, wc_nsec);
    /// `shared_info.wc_sec_hi`.
    pub const WC_SEC_HI: usize = offset_of!(SharedInfo, wc_sec_hi);
    /// `vcpu_info.evtchn_upcall_pending`.
    pub const UPCALL_PENDING: usize = offset_of!(VcpuInfo, evtchn_upcall_pending);
    /// `vcpu_info.evtchn_pending_sel`.
    pub const PENDING_SEL: usize = offset_of!(VcpuInfo, evtchn_pending_sel);
}

/// A time of day (`wc_*` of [`SharedInfo`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WallClock {
    /// Seconds since the beginning of 1970, UTC.
    pub secs: u64,
    /// Nanoseconds of the second.
    pub nanos: u32,
}

/// How often [`read_wall_clock`] tries before it gives up.
const TRIES: u32 = 64;

/// Reads the time of day at which the system (the counter that the architected timer shows) was at 0, from the
/// shared-info page; now is that and the counter's time. All 0 when nobody told the hypervisor.
///
/// `None` when it was being written at each of many tries.
#[must_use]
pub fn read_wall_clock(shared_info: &(impl SharedMem + ?Sized)) -> Option<WallClock> {
    for _ in 0..TRIES {
        let version = shared_info.load32(offset::WC_VERSION);
        if version.is_multiple_of(2) {
            let low = shared_info.load32(offset::WC_SEC);
            let nanos = shared_info.load32(offset::WC_NSEC);
            let high = shared_info.load32(offset::WC_SEC_HI);
            fence(Ordering::Acquire);
            if shared_info.load32(offset::WC_VERSION) == version {
                return Some(WallClock {
                    secs: u64::from(high) << 32 | u64::from(low),
                    nanos,
                });
            }
        }
        core::hint::spin_loop();
    }
    None
}

numbers! {
    /// Virtual interrupts that a domain can bind to an event channel (`VIRQ_*`).
    pub enum Virq: u32 {
        /// Timer; per vcpu; unused on Arm.
        Timer = 0, "TIMER";
        /// A request to print one's state; per vcpu.
        Debug = 1, "DEBUG";
        /// Input on the hypervisor's console; the control domain.
        Console = 2, "CONSOLE";
        /// A domain died, shut down or crashed; the control domain.
        DomExc = 3, "DOM_EXC";
        /// Trace records wait; the control domain.
        Tbuf = 4, "TBUF";
        /// A domain stopped for a debugger; the control domain.
        Debugger = 6, "DEBUGGER";
        /// Profiler; per vcpu.
        Xenoprof = 7, "XENOPROF";
        /// New output in the hypervisor's console ring; the control domain.
        ConRing = 8, "CON_RING";
        /// A physical CPU came or went; the control domain.
        PcpuState = 9, "PCPU_STATE";
        /// Memory event; the control domain.
        MemEvent = 10, "MEM_EVENT";
        /// A message between domains; any domain.
        Argo = 11, "ARGO";
        /// The hypervisor is short of memory; the control domain.
        Enomem = 12, "ENOMEM";
        /// Performance counters; per vcpu.
        Xenpmu = 13, "XENPMU";
    }

    /// What `vm_assist` does (`VMASST_CMD_*`).
    pub enum VmAssistCmd: u64 {
        /// Switch on.
        Enable = 0, "enable";
        /// Switch off.
        Disable = 1, "disable";
    }
}

/// How many virtual interrupts there are, the arch-specific ones (16..24) included (`NR_VIRQS`).
pub const NR_VIRQS: u32 = 24;

impl Virq {
    /// Whether each vcpu binds its own (the others have one binding in the domain).
    #[must_use]
    pub const fn per_vcpu(self) -> bool {
        matches!(
            self,
            Self::Timer | Self::Debug | Self::Xenoprof | Self::Xenpmu
        )
    }
}

/// Assists that a guest can switch on (`VMASST_TYPE_*`).
pub struct VmAssist;

impl VmAssist {
    /// The hypervisor flags its updates of the runstate area with
    /// [`RUNSTATE_UPDATE`](crate::vcpu::RUNSTATE_UPDATE).
    pub const RUNSTATE_UPDATE_FLAG: u64 = 5;
}

/// Start-info flag: the domain is privileged (`SIF_PRIVILEGED`).
pub const SIF_PRIVILEGED: u32 = 1 << 0;
/// Start-info flag: the domain is the first control domain (`SIF_INITDOMAIN`).
pub const SIF_INITDOMAIN: u32 = 1 << 1;

/// A domain's UUID (`xen_domain_handle_t`).
pub type DomainHandle = [u8; 16];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::Interfering;
    use core::cell::Cell;

    #[test]
    fn the_wall_clock_is_of_one_version() {
        let bytes = [const { Cell::new(0_u8) }; size_of::<SharedInfo>()];
        let mem: &[Cell<u8>] = &bytes;
        let time = |n: u32| WallClock {
            secs: u64::from(n) << 32 | u64::from(n),
            nanos: n,
        };
        let set = |n| {
            for at in [offset::WC_SEC, offset::WC_NSEC, offset::WC_SEC_HI] {
                mem.store32(at, n);
            }
        };
        assert_eq!(read_wall_clock(mem), Some(time(0)));
        for start in 0..8 {
            mem.store32(offset::WC_VERSION, 2);
            set(1);
            let step = Cell::new(0);
            let writer = Interfering::new(mem, || match step.replace(step.get() + 1) - start {
                0 => mem.store32(offset::WC_VERSION, 3),
                1 => set(5),
                2 => mem.store32(offset::WC_VERSION, 4),
                _ => {}
            });
            let got = read_wall_clock(&writer).unwrap();
            assert!(got == time(1) || got == time(5), "{start}: {got:?}");
        }
        mem.store32(offset::WC_VERSION, 5);
        assert_eq!(read_wall_clock(mem), None);
    }
}
