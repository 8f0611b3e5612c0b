// SPDX-License-Identifier: MIT OR Apache-2.0
//! The registers of a standard SD host controller (SD Host Controller Simplified Specification),
//! without DMA: whoever has them can move data through the processor only.

use crate::machine::SdHost;
use crate::{Global, gic, mmio};
use alloc::vec::Vec;

/// Transfer mode in the low half, command in the high one; bit 0 turns DMA on.
const COMMAND: u8 = 0x0c;

static TAKEN: Global<Vec<u64>> = Global::new(Vec::new());

/// A controller's registers.
pub struct Registers {
    base: u64,
    intid: u32,
}

impl Registers {
    /// Those of a controller, or `None` if they are in use.
    #[must_use]
    pub fn open(host: &SdHost) -> Option<Self> {
        let mut taken = TAKEN.lock();
        if host.size < 0x100 || taken.contains(&host.base) {
            return None;
        }
        taken.push(host.base);
        Some(Self {
            base: host.base,
            intid: host.intid,
        })
    }

    /// Reads the word at an offset, of which the lowest two bits do not count.
    #[must_use]
    pub fn read(&self, offset: u8) -> u32 {
        // SAFETY: a register of the controller that the device tree names, mapped for ever.
        unsafe { mmio::read32(self.base + u64::from(offset & !3)) }
    }

    /// Writes the word at an offset, of which the lowest two bits do not count.
    pub fn write(&self, offset: u8, value: u32) {
        let offset = offset & !3;
        let value = if offset == COMMAND { value & !1 } else { value };
        // SAFETY: as `read`; without DMA the controller touches no memory.
        unsafe { mmio::write32(self.base + u64::from(offset), value) }
    }

    /// Lets the controller's interrupt through. It is up for as long as a status is set that is
    /// enabled to raise it.
    pub fn enable_interrupt(&self) {
        gic::enable(self.intid, gic::Trigger::Level);
    }

    /// Its interrupt.
    #[must_use]
    pub fn intid(&self) -> u32 {
        self.intid
    }
}
