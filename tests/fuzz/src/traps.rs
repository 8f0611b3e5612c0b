// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the CPU says of a trap, with every value that a guest can give it, and emulated devices' registers.

use crate::Input;
use hv_core::abort::Abort;
use hv_core::psci::{self, Call};
use hv_core::sysreg::{self, Emul, IdRegs, SysAccess};
use hv_core::types::{Slot, VcpuId};
use hv_core::vgic::{ListRegs, Region, Version, Vgics};

const S: Slot = Slot(1);

/// List registers of a CPU.
struct Lrs([u64; 4]);

impl ListRegs for Lrs {
    fn count(&self) -> usize {
        self.0.len()
    }
    fn read(&self, n: usize) -> u64 {
        self.0[n]
    }
    fn write(&mut self, n: usize, value: u64) {
        self.0[n] = value;
    }
    fn empty(&self) -> u32 {
        let empty = |(n, lr): (usize, &u64)| u32::from(lr >> 62 == 0) << n;
        self.0.iter().enumerate().map(empty).sum()
    }
    fn control(&mut self, _: u32) {}
    fn ends(&mut self) -> u32 {
        3
    }
}

/// Syndromes, firmware calls, registers of interrupt controllers of both versions. A user program is told nothing that
/// only a kernel may know.
pub fn traps(data: &[u8]) {
    let mut input = Input(data);
    let ids = IdRegs::read(|crm, op2| u64::from(crm) << 32 | u64::from(op2)).sanitised(true, 40);
    let v3 = input.u8() & 1 != 0;
    let version = if v3 { Version::V3 } else { Version::V2 };
    let mut vgics = Vgics::new();
    let vcpus = 1 + usize::from(input.u8() % 8);
    if vgics.create_domain(S, version, vcpus, 64).is_err() {
        return;
    }
    let mut lrs = Lrs([0; 4]);
    let mut on = VcpuId(0);
    while let Some(act) = input.act() {
        match act % 8 {
            0 => {
                let a = SysAccess::from_iss(input.u32() & 0x1ff_ffff);
                let (user, kernel) = (
                    sysreg::decode(&a, true, &ids),
                    sysreg::decode(&a, false, &ids),
                );
                assert!(user == kernel || matches!(user, Emul::Undef | Emul::Value(0)));
            }
            1 => {
                let _ = Abort::decode(input.u32() & 0x1ff_ffff, input.u8() & 1 != 0);
            }
            2 => {
                let function =
                    [0x8400_0000, 0xc400_0000, 0x8000_0000, 0][usize::from(input.u8() % 4)];
                let x = [
                    function | u64::from(input.u16()),
                    input.u64(),
                    input.u64(),
                    input.u64(),
                ];
                let call = psci::decode(x, &psci::Workarounds::NOT_REQUIRED);
                if let Call::CpuOn { target, .. } = call {
                    assert!(usize::from(target.0) < 64);
                }
            }
            3..=5 => {
                let region = if input.u8() & 1 == 0 {
                    Region::Gicd
                } else {
                    Region::Gicr
                };
                let offset = u64::from(input.u32()) & 0x3_ffff;
                let size = 1 << (input.u8() % 4);
                vgics.sync(S, on, &mut lrs);
                if act & 0x80 == 0 {
                    let _ = vgics.mmio_read(S, on, region, offset, size);
                } else {
                    let value = input.u64();
                    let _ = vgics.mmio_write(S, on, region, offset, size, value);
                }
                let _ = vgics.flush(S, on, &mut lrs);
            }
            6 => {
                let _ = vgics.unload(S, on, &mut lrs);
                lrs = Lrs([0; 4]);
                on = VcpuId(input.u8() % vcpus as u8);
                let _ = vgics.pulse(S, on, u32::from(input.u8()));
                let _ = vgics.set_level(S, on, u32::from(input.u8() % 96), act & 0x80 != 0);
                let _ = vgics.inject_hw(S, on, 27);
            }
            // The guest takes, ends and deactivates as it likes.
            _ => {
                let n = usize::from(input.u8() % 4);
                lrs.0[n] = lrs.0[n] & !(3 << 62) | u64::from(input.u8() % 4) << 62;
                if v3 {
                    let _ = vgics.sgi1r(S, on, input.u64());
                }
                vgics.maintenance(S, on);
            }
        }
        let _ = vgics.deliverable(S, on, act);
    }
}
