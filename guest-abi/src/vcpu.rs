// SPDX-License-Identifier: MIT OR Apache-2.0
//! Virtual CPUs (`vcpu.h`).

use crate::mem::SharedMem;
use core::sync::atomic::{Ordering, fence};

numbers! {
    /// Operations of `vcpu_op` (`VCPUOP_*`). Arm has the two that register memory.
    pub enum VcpuOp: u64 {
        /// Not on Arm.
        Initialise = 0, "initialise";
        /// Not on Arm: PSCI does it.
        Up = 1, "up";
        /// Not on Arm: PSCI does it.
        Down = 2, "down";
        /// Not on Arm.
        IsUp = 3, "is_up";
        /// Not on Arm.
        GetRunstateInfo = 4, "get_runstate_info";
        /// Keep a [`VcpuRunstateInfo`] up to date: [`VcpuRegisterRunstateMemoryArea`].
        RegisterRunstateMemoryArea = 5, "register_runstate_memory_area";
        /// Not on Arm.
        SetPeriodicTimer = 6, "set_periodic_timer";
        /// Not on Arm.
        StopPeriodicTimer = 7, "stop_periodic_timer";
        /// Not on Arm.
        SetSingleshotTimer = 8, "set_singleshot_timer";
        /// Not on Arm.
        StopSingleshotTimer = 9, "stop_singleshot_timer";
        /// Move the [`VcpuInfo`](crate::xen::VcpuInfo): [`VcpuRegisterVcpuInfo`].
        RegisterVcpuInfo = 10, "register_vcpu_info";
        /// Not on Arm.
        SendNmi = 11, "send_nmi";
        /// Not on Arm.
        GetPhysid = 12, "get_physid";
        /// Not on Arm.
        RegisterVcpuTimeMemoryArea = 13, "register_vcpu_time_memory_area";
    }

    /// What a vcpu is doing (`RUNSTATE_*`).
    pub enum RunState: u32 {
        /// It runs.
        Running = 0, "running";
        /// It could run, but others do.
        Runnable = 1, "runnable";
        /// It waits for an event.
        Blocked = 2, "blocked";
        /// It is stopped or paused.
        Offline = 3, "offline";
    }
}

/// Set in `state_entry_time` while the hypervisor writes the area (`XEN_RUNSTATE_UPDATE`), when the
/// guest switched that on with `vm_assist`.
pub const RUNSTATE_UPDATE: u64 = 1 << 63;

/// How often [`read_runstate`] tries before it gives up.
const TRIES: u32 = 64;

/// Reads the area that the hypervisor keeps at `offset` of `mem`, which must be a multiple of 8, as a whole
/// that belongs together. Another vcpu's area must be one for which [`RUNSTATE_UPDATE`] was switched on
/// ([`VmAssist::RUNSTATE_UPDATE_FLAG`](crate::xen::VmAssist::RUNSTATE_UPDATE_FLAG)).
///
/// `None` when it was being written at each of many tries.
#[must_use]
pub fn read_runstate(mem: &(impl SharedMem + ?Sized), offset: usize) -> Option<VcpuRunstateInfo> {
    const WORDS: usize = size_of::<VcpuRunstateInfo>() / 4;
    const ENTRY_TIME: usize = core::mem::offset_of!(VcpuRunstateInfo, state_entry_time) / 4;
    let load = |word: usize| mem.load32(offset + 4 * word);
    let entry_time = || u64::from(load(ENTRY_TIME)) | u64::from(load(ENTRY_TIME + 1)) << 32;
    for _ in 0..TRIES {
        let before = entry_time();
        if before & RUNSTATE_UPDATE == 0 {
            let mut words = [0_u32; WORDS];
            for (n, word) in words.iter_mut().enumerate() {
                *word = load(n).to_le();
            }
            fence(Ordering::Acquire);
            let info: VcpuRunstateInfo = zerocopy::transmute!(words);
            if entry_time() == before && info.state_entry_time == before {
                return Some(info);
            }
        }
        core::hint::spin_loop();
    }
    None
}

abi! {
    /// Where a vcpu's [`VcpuInfo`](crate::xen::VcpuInfo) shall be.
    ["vcpu_register_vcpu_info", 16, "vcpu.h"]
    pub struct VcpuRegisterVcpuInfo {
        /// In: its frame.
        pub mfn: u64,
        /// In: its byte offset in the frame; the structure must not cross the page's end.
        pub offset: u32,
        /// Zero.
        pub rsvd: u32,
    }

    /// What a vcpu did with its time.
    ["vcpu_runstate_info", 48, "vcpu.h"]
    pub struct VcpuRunstateInfo {
        /// [`RunState`].
        pub state: u32,
        /// Padding.
        pub _pad: u32 = "-",
        /// System time in nanoseconds when the state was entered; bit 63 is [`RUNSTATE_UPDATE`].
        pub state_entry_time: u64,
        /// Nanoseconds in each [`RunState`].
        pub time: [u64; 4],
    }

    /// Where the hypervisor shall keep a [`VcpuRunstateInfo`].
    ["vcpu_register_runstate_memory_area", 8, "vcpu.h"]
    pub struct VcpuRegisterRunstateMemoryArea {
        /// In: guest virtual address; 0 ends it.
        pub addr: u64,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::mem::Interfering;
    use core::cell::Cell;
    use zerocopy::IntoBytes;

    fn info(n: u64) -> VcpuRunstateInfo {
        VcpuRunstateInfo {
            state: n as u32 % 4,
            state_entry_time: n << 33 | n,
            time: [n << 40 | n, n, n * 2, n * 3],
            ..Default::default()
        }
    }

    #[test]
    fn what_is_read_belongs_together() {
        let bytes = [const { Cell::new(0_u8) }; 64];
        let mem: &[Cell<u8>] = &bytes;
        mem.write(8, info(1).as_bytes());
        assert_eq!(read_runstate(mem, 8), Some(info(1)));
        // The hypervisor writes between any two of the reader's accesses: flag, contents, no flag.
        for start in 0..20 {
            let step = Cell::new(0);
            let writer = Interfering::new(mem, || {
                let n = step.replace(step.get() + 1);
                let flagged = VcpuRunstateInfo {
                    state_entry_time: info(1).state_entry_time | RUNSTATE_UPDATE,
                    ..info(1)
                };
                let new = info(7);
                match n - start {
                    0 => mem.write(16, &flagged.state_entry_time.to_le_bytes()),
                    1 => mem.write(8, &new.state.to_le_bytes()),
                    2 => mem.write(24, new.time.as_bytes()),
                    3 => mem.write(16, &(new.state_entry_time | RUNSTATE_UPDATE).to_le_bytes()),
                    4 => mem.write(16, &new.state_entry_time.to_le_bytes()),
                    _ => {}
                }
            });
            mem.write(8, info(1).as_bytes());
            let got = read_runstate(&writer, 8).unwrap();
            assert!(got == info(1) || got == info(7), "{start}: {got:?}");
        }
        mem.write(16, &RUNSTATE_UPDATE.to_le_bytes());
        assert_eq!(read_runstate(mem, 8), None);
    }
}
