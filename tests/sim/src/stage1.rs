// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stage 1 as a CPU walks it: in the guest's own memory, through its stage 2, read at each use.

use crate::machine::Machine;
use hv_core::machine::PhysMem;
use hv_core::types::{Access, Pa};

const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

impl Machine {
    /// The guest physical address behind a virtual one: 4 KiB granule; 48 bits in the upper half, by the tables at
    /// `root`; the lower half's first 39 bits are mapped where they are (Arm ARM, "The VMSAv8-64 address translation
    /// system"). `None` where the access would fault.
    pub(crate) fn walk_stage1(&self, root: u64, va: u64, access: Access) -> Option<u64> {
        match va >> 48 {
            0 if va >> 39 == 0 => return Some(va),
            0xffff => {}
            _ => return None,
        }
        let (mut table, mut read_only) = (root, false);
        for level in 0..4u32 {
            let shift = 39 - 9 * level;
            let mfn = self.translate_gfn(self.vttbr.get(), table >> 12, Access::Read)?;
            if !self.is_ram(mfn) {
                return None;
            }
            let e = self.load64(Pa(mfn * 4096 + (va >> shift & 511) * 8));
            let is_table = e & 2 != 0;
            if e & 1 == 0 || (level == 3 && !is_table) || (level == 0 && !is_table) {
                return None;
            }
            if level < 3 && is_table {
                // APTable[1]: nothing below may be written.
                read_only |= e >> 62 & 1 != 0;
                table = e & ADDRESS;
                continue;
            }
            let within = (1 << shift) - 1;
            let refused = access == Access::Write && (read_only || e & 1 << 7 != 0);
            return (e & 1 << 10 != 0 && !refused).then_some(e & ADDRESS & !within | va & within);
        }
        None
    }
}
