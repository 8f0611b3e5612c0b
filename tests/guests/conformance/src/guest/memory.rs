// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory operations, and what addresses without memory do.

use super::{NOWHERE, Suite, code, trap};
use alloc::format;
use alloc::string::String;
use el1::probe;
use el1::shared::Shared;
use guest_abi::DomId;
use guest_abi::HypercallNr as Nr;

const SELF: u32 = DomId::SELF.0 as u32;
const NR: Nr = Nr::MemoryOp;

impl Suite {
    pub fn memory(&mut self) {
        for op in 0..32 {
            // With an address that nothing is at, and one of zeroes.
            let r = self.call(NR, [op, NOWHERE, 0, 0, 0]);
            self.case(
                format!("memory.{op}.bad_address"),
                if op == 2 { "skipped".into() } else { r },
            );
        }
        for (name, domid) in [
            ("self", SELF),
            ("own", u32::from(self.own.0)),
            ("dom0", 0),
            ("peer", u32::from(self.peer.0)),
            ("nobody", 77),
            ("reserved", 0x7ff2),
            ("none", 0x7ff4),
        ] {
            for (what, op) in [("current", 3), ("maximum", 4), ("gpfn", 14)] {
                self.args.write32(0, domid);
                let r = self.sign(NR, [op, self.args.addr(), 0, 0, 0]);
                self.case(format!("memory.{what}.{name}"), r);
            }
        }
        let r = self.sign(NR, [2, 0, 0, 0, 0]);
        self.case("memory.maximum_ram_page", r);
        self.reservations();
        self.physmap();
        self.nothing_there();
    }

    /// A reservation operation over one extent.
    fn reserve(
        &self,
        op: u64,
        gfn: u64,
        n: u64,
        order: u32,
        domid: u32,
        list: Option<u64>,
    ) -> String {
        let at = self.args.addr() + 512;
        self.args.write32(512, gfn as u32);
        self.args.write32(516, (gfn >> 32) as u32);
        let list = list.unwrap_or(at);
        let mut words = [
            list as u32,
            (list >> 32) as u32,
            n as u32,
            (n >> 32) as u32,
            order,
            0,
            domid,
            0,
        ];
        self.call_with(NR, op, &mut words)
    }

    fn reservations(&mut self) {
        let Some(pages) = Shared::fresh(1024) else {
            return;
        };
        let first = pages.addr().next_multiple_of(2 << 20) / 4096;
        for (what, op) in [("increase", 0), ("decrease", 1), ("populate", 6)] {
            for (name, gfn, n, order, domid, list) in [
                ("none", first, 0, 0, SELF, None),
                ("bad_list", first, 1, 0, SELF, Some(NOWHERE)),
                ("order_19", first, 1, 19, SELF, None),
                ("order_64", first, 1, 64, SELF, None),
                ("order_max", first, 1, u32::MAX, SELF, None),
                ("count_max", first, u64::MAX, 0, SELF, None),
                ("dom0", first, 1, 0, 0, None),
                ("peer", first, 1, 0, u32::from(self.peer.0), None),
                ("nobody", first, 1, 0, 77, None),
            ] {
                // The count is not tried with memory that could be taken.
                let list = if name == "count_max" {
                    Some(NOWHERE)
                } else {
                    list
                };
                let r = self.reserve(op, gfn, n, order, domid, list);
                self.case(format!("memory.{what}.{name}"), r);
            }
        }
        for (name, op, gfn) in [
            ("decrease.page", 1, first),
            ("decrease.again", 1, first),
            ("populate.page", 6, first),
            ("populate.again", 6, first),
            ("decrease.nowhere", 1, 0x7_ff00),
            ("decrease.beyond", 1, 1 << 40),
            ("populate.beyond", 6, 1 << 40),
        ] {
            let r = self.reserve(op, gfn, 1, 0, SELF, None);
            self.case(format!("memory.{name}"), r);
        }
        let r = self.reserve(1, first, 1, 0, u32::from(self.own.0), None);
        self.case("memory.decrease.own_by_number", r);
        let t = probe::load32(0x7_f000_0000).map_or_else(trap, |v| format!("{v:#x}"));
        self.case("memory.load.unmapped", t);
        // Two pages at once, the second of which is gone already.
        let at = self.args.addr() + 512;
        for (i, gfn) in [first + 1, first, first + 2].into_iter().enumerate() {
            self.args.write32(512 + i * 8, gfn as u32);
            self.args.write32(516 + i * 8, 0);
        }
        let mut words = [at as u32, (at >> 32) as u32, 3, 0, 0, 0, SELF, 0];
        let r = self.call_with(NR, 1, &mut words);
        self.case("memory.decrease.middle_is_gone", r);
        for gfn in [first, first + 1, first + 2] {
            let r = self.reserve(6, gfn, 1, 0, SELF, None);
            self.case(format!("memory.populate.back.{}", gfn - first), r);
        }
        pages.write32((first * 4096 - pages.addr()) as usize, 7);
        let r = self.reserve(1, first, 1, 9, SELF, None);
        self.case("memory.decrease.order_9", r);
        let r = self.reserve(6, first, 1, 9, SELF, None);
        self.case("memory.populate.order_9", r);
        let read = pages.read32((first * 4096 - pages.addr()) as usize);
        self.case("memory.populate.zeroed", read);
        let r = self.reserve(1, first + 8, 1, 2, SELF, None);
        self.case("memory.decrease.order_2", r);
        let r = self.reserve(6, first + 8, 1, 2, SELF, None);
        self.case("memory.populate.order_2", r);
    }

    fn physmap(&mut self) {
        let place = self.window / 4096 + 64;
        for (name, domid, space, idx, gfn) in [
            ("shared_info_again", SELF, 0, 0u64, self.info.addr() / 4096),
            ("shared_info_elsewhere", SELF, 0, 0, place),
            ("shared_info_1", SELF, 0, 1, place),
            ("grant_0", SELF, 1, 0, place),
            ("grant_1", SELF, 1, 1, place + 1),
            ("grant_beyond", SELF, 1, 100_000, place),
            ("grant_status", SELF, 1, 1 << 31, place),
            ("gmfn", SELF, 2, 0, place),
            ("gmfn_range", SELF, 3, 0, place),
            ("foreign", SELF, 4, 0, place),
            ("dev_mmio", SELF, 5, 0x9000, place),
            ("space_6", SELF, 6, 0, place),
            ("space_max", SELF, u32::MAX, 0, place),
            ("dom0", 0, 1, 0, place),
            ("peer", u32::from(self.peer.0), 1, 0, place),
            ("nobody", 77, 1, 0, place),
        ] {
            let mut words = [
                domid,
                space,
                idx as u32,
                (idx >> 32) as u32,
                gfn as u32,
                (gfn >> 32) as u32,
            ];
            let r = self.call_with(NR, 7, &mut words);
            self.case(format!("memory.add.{name}"), r);
        }
        // The table as it was.
        let mut words = [SELF, 1, 0, 0, (self.grants.addr() / 4096) as u32, 0];
        let r = self.call_with(NR, 7, &mut words);
        self.case("memory.add.grant_back", r);
        for (name, domid, gfn) in [
            ("nothing", SELF, place + 9),
            ("beyond", SELF, 1 << 40),
            ("dom0", 0, place),
            ("peer", u32::from(self.peer.0), place),
            ("nobody", 77, place),
        ] {
            let mut words = [domid, 0, gfn as u32, (gfn >> 32) as u32];
            let r = self.call_with(NR, 15, &mut words);
            self.case(format!("memory.remove.{name}"), r);
        }
        for (name, kind, id, frames) in [
            ("ioreq", 0u32, 0, 1),
            ("grant_size", 1, 0, 0),
            ("grant", 1, 0, 1),
            ("grant_status", 1, 1, 1),
            ("vmtrace", 2, 0, 1),
            ("kind_9", 9, 0, 1),
        ] {
            for (who, domid) in [
                ("self", SELF),
                ("peer", u32::from(self.peer.0)),
                ("nobody", 77),
            ] {
                let list = self.args.addr() + 512;
                self.args.write32(512, place as u32);
                self.args.write32(516, 0);
                let mut words = [
                    domid | kind << 16,
                    id,
                    frames,
                    0,
                    0,
                    0,
                    list as u32,
                    (list >> 32) as u32,
                ];
                let r = self.call_with(NR, 28, &mut words);
                self.case(format!("memory.acquire.{name}.{who}"), r);
            }
        }
    }

    /// Addresses that nothing is at, and one too large.
    fn nothing_there(&mut self) {
        for (name, at) in [
            ("low", 0x1000_0000u64),
            ("window", self.window + 0x40_0000),
            ("high", 0x3f_0000_0000),
        ] {
            let r = probe::load32(at).map_or_else(trap, |v| format!("{v:#x}"));
            self.case(format!("abort.load.{name}"), r);
            let r = probe::store32(at, 1).map_or_else(trap, |()| "done".into());
            self.case(format!("abort.store.{name}"), r);
        }
        let far = match probe::load32(0x1000_0004) {
            Err(t) => format!("{:#x}", t.far),
            Ok(_) => "none".into(),
        };
        self.case("abort.far", far);
        let r = code(probe::hypercall(
            NR.number(),
            [6 | 1 << 32, NOWHERE, 0, 0, 0],
        ));
        self.case("memory.op_high_bits", r);
    }
}
