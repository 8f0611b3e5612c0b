// SPDX-License-Identifier: MIT OR Apache-2.0
//! Grants: every operation, with this domain's own grants and with the peer's.

use super::{NOWHERE, Suite, trap};
use alloc::format;
use alloc::string::String;
use el1::probe;
use el1::shared::Shared;
use guest_abi::DomId;
use guest_abi::HypercallNr as Nr;

const SELF: u32 = DomId::SELF.0 as u32;
const NR: Nr = Nr::GrantTableOp;

/// Flags of a mapping.
const DEVICE: u32 = 1;
const HOST: u32 = 2;
const READ_ONLY: u32 = 4;
const APPLICATION: u32 = 8;
const PTE: u32 = 16;

/// What a mapping is made of and what came of it.
struct Map {
    call: String,
    status: i16,
    handle: u32,
}

impl Suite {
    pub fn grants(&mut self) {
        for op in 0..14 {
            let r = self.call(NR, [op, NOWHERE, 1, 0, 0]);
            self.case(format!("grant.{op}.bad_address"), r);
            let r = self.call(NR, [op, NOWHERE, 0, 0, 0]);
            self.case(format!("grant.{op}.none"), r);
            let r = self.call(NR, [op, NOWHERE, u64::MAX, 0, 0]);
            self.case(format!("grant.{op}.count_max"), r);
        }
        self.table();
        let Some(pages) = Shared::fresh(4) else {
            return;
        };
        self.maps(&pages);
        self.copies(&pages);
        self.others(&pages);
        self.of_the_peer(&pages);
    }

    fn table(&mut self) {
        for (name, domid) in self.domains() {
            let mut words = [domid, 0, 0, 0xdead];
            let r = self.call_with(NR, 6, &mut words);
            self.case(
                format!("grant.size.{name}"),
                format!(
                    "{r} frames {} of {} status {}",
                    words[1], words[2], words[3] as i16
                ),
            );
            let mut words = [domid, 0];
            let r = self.call_with(NR, 10, &mut words);
            self.case(format!("grant.version.{name}"), format!("{r} {}", words[1]));
        }
        for version in [0, 1, 2, 3, u32::MAX] {
            let mut words = [version];
            let r = self.call_with(NR, 8, &mut words);
            self.case(
                format!("grant.set_version.{version}"),
                format!("{r} {}", words[0]),
            );
        }
        let list = self.args.addr() + 512;
        for (name, domid, frames, list) in [
            ("none", SELF, 0, list),
            ("one", SELF, 1, list),
            ("two", SELF, 2, list),
            ("too_many", SELF, 10_000, list),
            ("bad_list", SELF, 1, NOWHERE),
            ("dom0", 0, 1, list),
            ("peer", u32::from(self.peer.0), 1, list),
            ("nobody", 77, 1, list),
        ] {
            let mut words = [domid, frames, 0xdead, 0, list as u32, (list >> 32) as u32];
            let r = self.call_with(NR, 2, &mut words);
            self.case(
                format!("grant.setup.{name}"),
                format!("{r} status {}", words[2] as i16),
            );
        }
        let mut words = [1, SELF, 0xdead, 0, list as u32, (list >> 32) as u32];
        let r = self.call_with(NR, 9, &mut words);
        self.case("grant.status_frames.one", r);
    }

    fn domains(&self) -> [(&'static str, u32); 5] {
        let (own, peer) = (u32::from(self.own.0), u32::from(self.peer.0));
        [
            ("self", SELF),
            ("own", own),
            ("dom0", 0),
            ("peer", peer),
            ("nobody", 77),
        ]
    }

    /// Writes an entry of the table.
    fn entry(&self, gref: u32, domid: u32, frame: u64, flags: u32) {
        let at = gref as usize * 8;
        self.grants.write32(at, 0);
        self.grants.write32(at + 4, frame as u32);
        self.grants.write32(at, domid << 16 | flags);
    }

    fn flags(&self, gref: u32) -> u32 {
        self.grants.read32(gref as usize * 8) & 0xffff
    }

    fn map(&self, at: u64, flags: u32, gref: u32, domid: u32) -> Map {
        let mut w = [
            at as u32,
            (at >> 32) as u32,
            flags,
            gref,
            domid | 0xdead << 16,
            0,
            0,
            0,
        ];
        let call = self.call_with(NR, 0, &mut w);
        Map {
            call,
            status: (w[4] >> 16) as i16,
            handle: w[5],
        }
    }

    fn unmap(&self, at: u64, handle: u32) -> String {
        let mut w = [at as u32, (at >> 32) as u32, 0, 0, handle, 0xdead];
        let call = self.call_with(NR, 1, &mut w);
        format!("{call} status {}", w[5] as i16)
    }

    fn show(m: &Map) -> String {
        format!("{} status {}", m.call, m.status)
    }

    fn maps(&mut self, pages: &Shared) {
        let own = u32::from(self.own.0);
        let frame = pages.addr() / 4096;
        let place = self.window + 128 * 4096;
        pages.write32(0, 0x5555_aaaa);
        self.entry(20, own, frame, 1);
        self.entry(21, own, frame + 1, 1 | 4);
        self.entry(22, 77, frame, 1);
        self.entry(23, own, frame, 0);
        self.entry(24, own, frame, 2);
        self.entry(25, own, frame, 3);
        self.entry(26, own, 0x7_ffff, 1);
        self.entry(27, own, u64::from(u32::MAX), 1);
        for (name, at, flags, gref, domid) in [
            ("self_by_number", place, HOST, 20, own),
            ("self", place, HOST, 20, SELF),
            ("nobody", place, HOST, 20, 77),
            ("dom0", place, HOST, 20, 0),
            ("no_flags", place, 0, 20, own),
            ("device", place, DEVICE, 20, own),
            ("device_and_host", place, DEVICE | HOST, 20, own),
            ("application", place, HOST | APPLICATION, 20, own),
            ("pte", place, HOST | PTE, 20, own),
            ("unknown_flag", place, HOST | 1 << 12, 20, own),
            ("misaligned", place + 8, HOST, 20, own),
            ("beyond", 1 << 52, HOST, 20, own),
            ("address_max", !0xfff, HOST, 20, own),
            ("read_only_of_writable", place, HOST | READ_ONLY, 20, own),
            ("writable_of_read_only", place, HOST, 21, own),
            ("read_only", place, HOST | READ_ONLY, 21, own),
            ("for_another", place, HOST, 22, own),
            ("not_granted", place, HOST, 23, own),
            ("transfer_entry", place, HOST, 24, own),
            ("transitive_entry", place, HOST, 25, own),
            ("frame_of_nothing", place, HOST, 26, own),
            ("frame_max", place, HOST, 27, own),
            ("ref_free", place, HOST, 300, own),
            ("ref_beyond", place, HOST, 100_000, own),
            ("ref_max", place, HOST, u32::MAX, own),
            ("over_memory", pages.addr() + 3 * 4096, HOST, 20, own),
        ] {
            let m = self.map(at, flags, gref, domid);
            self.case(format!("grant.map.{name}"), Self::show(&m));
            if m.status == 0 {
                let during = self.flags(gref);
                self.case(format!("grant.map.{name}.flags"), format!("{during:#x}"));
                let u = self.unmap(if flags & HOST == 0 { 0 } else { at }, m.handle);
                self.case(format!("grant.map.{name}.unmap"), u);
                let after = self.flags(gref);
                self.case(
                    format!("grant.map.{name}.flags_after"),
                    format!("{after:#x}"),
                );
            }
        }
        let m = self.map(place, HOST, 20, own);
        let read = probe::load32(place).map_or_else(trap, |v| format!("{v:#x}"));
        self.case("grant.mapped.read", read);
        let wrote = probe::store32(place + 4, 0x77).map_or_else(trap, |()| "done".into());
        self.case("grant.mapped.write", wrote);
        self.case("grant.mapped.seen", format!("{:#x}", pages.read32(4)));
        let twice = self.map(place + 4096, HOST, 20, own);
        self.case("grant.map.twice", Self::show(&twice));
        self.case("grant.map.twice.flags", format!("{:#x}", self.flags(20)));
        for (name, at, handle) in [
            ("other_address", place + 8 * 4096, m.handle),
            ("handle_free", place, 500),
            ("handle_max", place, u32::MAX),
            ("first", place, m.handle),
            ("again", place, m.handle),
        ] {
            let u = self.unmap(at, handle);
            self.case(format!("grant.unmap.{name}"), u);
        }
        self.case(
            "grant.unmap.flags_between",
            format!("{:#x}", self.flags(20)),
        );
        let u = self.unmap(place + 4096, twice.handle);
        self.case("grant.unmap.second", u);
        self.case("grant.unmap.flags_end", format!("{:#x}", self.flags(20)));
        let gone = probe::load32(place).map_or_else(trap, |v| format!("{v:#x}"));
        self.case("grant.unmapped.read", gone);
        let m = self.map(place, HOST | READ_ONLY, 21, own);
        if !self.spare {
            let wrote = probe::store32(place, 1).map_or_else(trap, |()| "done".into());
            self.case("grant.read_only.write", wrote);
            // HVMOP_get_param of STORE_EVTCHN: read there, and answered there.
            let r = self.call(Nr::HvmOp, [1, place, 0, 0, 0]);
            self.case("grant.read_only.reply", r);
        }
        let u = self.unmap(place, m.handle);
        self.case("grant.read_only.unmap", u);
        // Two at once, the first of which fails.
        let mut w = [0u32; 16];
        for (i, gref) in [300u32, 20].into_iter().enumerate() {
            w[i * 8] = place as u32;
            w[i * 8 + 1] = (place >> 32) as u32;
            w[i * 8 + 2] = HOST;
            w[i * 8 + 3] = gref;
            w[i * 8 + 4] = own | 0xdead << 16;
        }
        for (i, v) in w.iter().enumerate() {
            self.args.write32(i * 4, *v);
        }
        let r = self.call(NR, [0, self.args.addr(), 2, 0, 0]);
        let (first, second) = (self.args.read32(16) >> 16, self.args.read32(48) >> 16);
        let handle = self.args.read32(52);
        self.case(
            "grant.map.batch",
            format!("{r} status {} {}", first as i16, second as i16),
        );
        let u = self.unmap(place, handle);
        self.case("grant.map.batch.unmap", u);
    }

    /// A copy of `len` bytes: each end is a frame or a grant, of a domain, at an offset.
    fn copy(&self, from: (u64, u32, u32), to: (u64, u32, u32), len: u32, flags: u32) -> String {
        let mut w = [
            from.0 as u32,
            (from.0 >> 32) as u32,
            from.1 | from.2 << 16,
            0,
            to.0 as u32,
            (to.0 >> 32) as u32,
            to.1 | to.2 << 16,
            0,
            len | flags << 16,
            0xdead,
        ];
        let call = self.call_with(NR, 5, &mut w);
        format!("{call} status {}", w[9] as i16)
    }

    fn copies(&mut self, pages: &Shared) {
        let own = u32::from(self.own.0);
        let f = pages.addr() / 4096;
        self.entry(20, own, f, 1);
        self.entry(21, own, f + 1, 1 | 4);
        self.entry(22, 77, f, 1);
        for (name, from, to, len, flags) in [
            ("frame_to_frame", (f, SELF, 0), (f + 2, SELF, 0), 64, 0),
            ("frame_to_ref", (f + 2, SELF, 0), (20, own, 0), 64, 2),
            ("ref_to_frame", (20, own, 0), (f + 2, SELF, 0), 64, 1),
            ("ref_to_ref", (21, own, 0), (20, own, 64), 64, 3),
            ("ref_of_self", (20, SELF, 0), (f + 2, SELF, 0), 64, 1),
            ("to_read_only", (f, SELF, 0), (21, own, 0), 64, 2),
            ("from_read_only", (21, own, 0), (f + 2, SELF, 0), 64, 1),
            ("for_another", (22, own, 0), (f + 2, SELF, 0), 64, 1),
            ("not_granted", (23, own, 0), (f + 2, SELF, 0), 64, 1),
            ("ref_free", (300, own, 0), (f + 2, SELF, 0), 64, 1),
            ("ref_beyond", (100_000, own, 0), (f + 2, SELF, 0), 64, 1),
            ("none", (f, SELF, 0), (f + 2, SELF, 0), 0, 0),
            ("whole", (f, SELF, 0), (f + 2, SELF, 0), 4096, 0),
            ("too_long", (f, SELF, 0), (f + 2, SELF, 0), 4097, 0),
            ("from_crosses", (f, SELF, 4064), (f + 2, SELF, 0), 64, 0),
            ("to_crosses", (f, SELF, 0), (f + 2, SELF, 4064), 64, 0),
            ("from_beyond", (f, SELF, 5000), (f + 2, SELF, 0), 1, 0),
            ("to_end", (f, SELF, 4032), (f + 2, SELF, 4032), 64, 0),
            ("same_page", (f, SELF, 0), (f, SELF, 128), 64, 0),
            (
                "frame_of_nothing",
                (0x7_ffff, SELF, 0),
                (f + 2, SELF, 0),
                64,
                0,
            ),
            (
                "to_frame_of_nothing",
                (f, SELF, 0),
                (0x7_ffff, SELF, 0),
                64,
                0,
            ),
            ("frame_max", (u64::MAX, SELF, 0), (f + 2, SELF, 0), 64, 0),
            ("frame_by_number", (f, own, 0), (f + 2, SELF, 0), 64, 0),
            (
                "frame_of_peer",
                (f, u32::from(self.peer.0), 0),
                (f + 2, SELF, 0),
                64,
                0,
            ),
            ("frame_of_nobody", (f, 77, 0), (f + 2, SELF, 0), 64, 0),
            ("ref_of_nobody", (20, 77, 0), (f + 2, SELF, 0), 64, 1),
            ("ref_of_dom0", (20, 0, 0), (f + 2, SELF, 0), 64, 1),
            ("unknown_flags", (f, SELF, 0), (f + 2, SELF, 0), 64, 0xfc),
        ] {
            let r = self.copy(from, to, len, flags);
            self.case(format!("grant.copy.{name}"), r);
        }
        self.case(
            "grant.copy.flags_end",
            format!("{:#x} {:#x}", self.flags(20), self.flags(21)),
        );
        pages.zero(0, 3 * 4096);
        for i in 0..16 {
            pages.write32(i * 4, i as u32 * 3 + 1);
        }
        self.copy((f, SELF, 5), (f + 2, SELF, 9), 30, 0);
        let mut bytes = [0; 48];
        pages.read(8192, &mut bytes);
        let sum = bytes
            .iter()
            .enumerate()
            .fold(0u32, |s, (i, b)| s + (i as u32 + 1) * u32::from(*b));
        self.case("grant.copy.bytes", sum);
        self.entry(20, own, f, 0);
    }

    fn others(&mut self, pages: &Shared) {
        let own = u32::from(self.own.0);
        let f = pages.addr() / 4096;
        self.entry(30, own, f, 1);
        self.entry(31, 77, f + 1, 5);
        let swap = |s: &Self, a: u32, b: u32| {
            let mut w = [a, b, 0xdead];
            let r = s.call_with(NR, 11, &mut w);
            format!("{r} status {}", w[2] as i16)
        };
        for (name, a, b) in [
            ("good", 30, 31),
            ("same", 30, 30),
            ("beyond", 30, 100_000),
            ("max", u32::MAX, 30),
        ] {
            let r = swap(self, a, b);
            self.case(format!("grant.swap.{name}"), r);
        }
        self.case(
            "grant.swap.seen",
            format!(
                "{:#x} {:#x}",
                self.grants.read32(30 * 8),
                self.grants.read32(31 * 8) & 0xffff
            ),
        );
        let m = self.map(self.window + 128 * 4096, HOST, 31, own);
        let r = swap(self, 30, 31);
        self.case("grant.swap.mapped", r);
        self.unmap(self.window + 128 * 4096, m.handle);
        self.entry(31, 0, 0, 0);
        self.entry(30, 0, 0, 0);
        let mut w = [0, 0, SELF, 20, 0xdead, 0];
        let r = self.call_with(NR, 4, &mut w);
        self.case("grant.transfer", format!("{r} status {}", w[4] as i16));
        let mut w = [0, 0, 0, 0, 1, 0xdead];
        let r = self.call_with(NR, 7, &mut w);
        self.case(
            "grant.unmap_and_replace",
            format!("{r} status {}", w[5] as i16),
        );
        for (name, offset, length, op) in [
            ("none", 0u32, 0u32, 1u32),
            ("no_op", 0, 64, 0),
            ("clean", 0, 64, 1),
            ("inval", 0, 64, 2),
            ("both", 0, 64, 3),
            ("unknown_op", 0, 64, 4),
            ("crosses", 4064, 64, 1),
            ("beyond", 5000, 1, 1),
            ("ref_free", 0, 64, 1 | 1 << 31),
        ] {
            // By a machine address that is no business of this domain's, or by a grant.
            let mut w = [0x1000_0000, 0, offset | length << 16, op];
            let r = self.call_with(NR, 12, &mut w);
            self.case(format!("grant.flush.{name}"), r);
        }
        let r = self.call(NR, [3, self.args.addr(), 1, 0, 0]);
        self.case("grant.dump", r);
    }

    fn of_the_peer(&mut self, pages: &Shared) {
        let peer = u32::from(self.peer.0);
        let place = self.window + 128 * 4096;
        let f = pages.addr() / 4096;
        for (name, flags, gref) in [
            ("writable", HOST, 8),
            ("read_only", HOST | READ_ONLY, 9),
            ("read_only_for_writing", HOST, 9),
            ("not_granted", HOST, 10),
            ("transfer", HOST, 11),
            ("for_another", HOST, 12),
        ] {
            let m = self.map(place, flags, gref, peer);
            self.case(format!("peer.map.{name}"), Self::show(&m));
            if m.status == 0 {
                let r = probe::load32(place).map_or_else(trap, |v| format!("{v:#x}"));
                self.case(format!("peer.map.{name}.read"), r);
                if !self.spare || flags & READ_ONLY == 0 {
                    let r = probe::store32(place + 8, 3).map_or_else(trap, |()| "done".into());
                    self.case(format!("peer.map.{name}.write"), r);
                }
                let u = self.unmap(place, m.handle);
                self.case(format!("peer.map.{name}.unmap"), u);
            }
        }
        pages.zero(0, 4096);
        for (name, from, to, flags) in [
            ("from", (8, peer, 0), (f, SELF, 0), 1),
            ("from_read_only", (9, peer, 0), (f, SELF, 4), 1),
            ("to", (f, SELF, 0), (8, peer, 16), 2),
            ("to_read_only", (f, SELF, 0), (9, peer, 16), 2),
            ("between", (9, peer, 0), (8, peer, 32), 3),
            ("not_granted", (10, peer, 0), (f, SELF, 0), 1),
        ] {
            let r = self.copy(from, to, 4, flags);
            self.case(format!("peer.copy.{name}"), r);
        }
        self.case(
            "peer.copy.seen",
            format!("{:#x} {:#x}", pages.read32(0), pages.read32(4)),
        );
        // What is mapped of another domain's cannot be granted on, given away or moved.
        let m = self.map(place, HOST, 8, peer);
        self.entry(33, u32::from(self.own.0), place / 4096, 1);
        let again = self.map(place + 4096, HOST, 33, u32::from(self.own.0));
        self.case("peer.mapped.granted_on", Self::show(&again));
        if again.status == 0 {
            self.unmap(place + 4096, again.handle);
        }
        let gfn = place / 4096;
        self.args.write32(512, gfn as u32);
        self.args.write32(516, 0);
        let list = self.args.addr() + 512;
        let mut w = [list as u32, (list >> 32) as u32, 1, 0, 0, 0, SELF, 0];
        let r = self.call_with(Nr::MemoryOp, 1, &mut w);
        self.case("peer.mapped.decrease", r);
        let r = self.copy((gfn, SELF, 0), (f, SELF, 0), 4, 0);
        self.case("peer.mapped.copy_by_frame", r);
        let over = self.map(place, HOST, 9, peer);
        self.case("peer.mapped.mapped_over", Self::show(&over));
        let u = self.unmap(place, m.handle);
        self.case("peer.mapped.unmap", u);
        if over.status == 0 {
            self.unmap(place, over.handle);
        }
    }
}
