// SPDX-License-Identifier: MIT OR Apache-2.0
//! The block protocol: what the back end writes to the store, its states, and its answers to good and bad requests.
//!
//! The disk's sectors each hold their own number, as many little-endian words of 32 bits.

use super::front::Front;
use super::{MS, Served};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use el1::shared::Shared;
use guest_abi::io::blkif::{
    BlkifRequest, BlkifRequestDiscard, BlkifRequestIndirect, BlkifRequestSegment, BlkifResponse,
    Slot, Status,
};
use guest_abi::io::ring::FrontRing;
use guest_abi::mem::SharedMem;
use guest_abi::{GrantRef, Port};

const READ: u8 = 0;
const WRITE: u8 = 1;
const BARRIER: u8 = 2;
const FLUSH: u8 = 3;
const DISCARD: u8 = 5;
const INDIRECT: u8 = 6;

/// A connected disk.
struct Disk {
    ring: FrontRing<Slot, BlkifResponse>,
    page: Shared,
    port: Port,
}

fn segment(gref: u32, first: u8, last: u8) -> BlkifRequestSegment {
    BlkifRequestSegment {
        gref: GrantRef(gref),
        first_sect: first,
        last_sect: last,
        _pad: 0,
    }
}

/// A request with up to 11 segments, of which it says that there are `count`.
fn request(operation: u8, sector: u64, segments: &[BlkifRequestSegment], count: u8) -> Slot {
    let mut r = BlkifRequest {
        operation,
        nr_segments: count,
        id: 42,
        sector_number: sector,
        ..BlkifRequest::default()
    };
    for (to, from) in r.seg.iter_mut().zip(segments) {
        *to = *from;
    }
    r.into()
}

fn indirect(operation: u8, sector: u64, count: u16, page: u32) -> Slot {
    BlkifRequestIndirect {
        operation: INDIRECT,
        indirect_op: operation,
        nr_segments: count,
        id: 42,
        sector_number: sector,
        indirect_grefs: [GrantRef(page); 8],
        ..BlkifRequestIndirect::default()
    }
    .into()
}

fn discard(sector: u64, count: u64, flag: u8) -> Slot {
    BlkifRequestDiscard {
        operation: DISCARD,
        flag,
        id: 42,
        sector_number: sector,
        nr_sectors: count,
        ..BlkifRequestDiscard::default()
    }
    .into()
}

impl Served {
    pub fn blocks(&mut self) {
        let (Some(ring), Some(data), Some(list)) =
            (Shared::fresh(1), Shared::fresh(16), Shared::fresh(1))
        else {
            return self.case("blk", "no memory");
        };
        let mut front = self.front("blk", "vbd", 51712);
        self.begin(&front);
        let Some(mut disk) = self.connect_disk(&mut front, ring, &[]) else {
            return self.case("blk.connect", "failed");
        };
        self.nodes("blk.back", &front.back.clone());
        let grants: Vec<u32> = (0..16)
            .map(|i| self.grant(0, data.addr() + i * 4096, false))
            .collect();
        let read_only = self.grant(0, data.addr(), true);
        let foreign = self.grant(77, data.addr(), false);
        self.requests(&mut disk, data, &grants, read_only, foreign);
        self.discards(&mut disk);
        self.indirects(&mut disk, list, data, &grants);
        // Many at once.
        let mut done = 0;
        for n in 0..32 {
            let slot = request(READ, n, &[segment(grants[n as usize % 16], 0, 0)], 1);
            let _ = disk.ring.push(&disk.page, &slot);
        }
        if disk.ring.publish(&disk.page) {
            self.send(disk.port);
        }
        self.within(3000 * MS, |_| {
            while let Ok(Some(r)) = disk.ring.pop(&disk.page) {
                done += u32::from(r.status == Status::Okay.number());
            }
            (done == 32).then_some(())
        });
        self.case("blk.ring_full", done);
        let r = self.io(&mut disk, &request(READ, 0, &[segment(grants[0], 0, 0)], 1));
        self.case("blk.after_ring_full", r);
        let held: Vec<bool> = grants.iter().map(|g| self.in_use(*g)).collect();
        self.case("blk.grants_held", held.contains(&true));
        self.lives(front, ring, &grants);
        self.read_only_disk(ring, &grants);
    }

    /// Offers a ring, and waits until the back end is connected.
    fn connect_disk(
        &mut self,
        front: &mut Front,
        page: Shared,
        more: &[(&str, &str)],
    ) -> Option<Disk> {
        let ring = FrontRing::new(&page, 4096)?;
        let port = self.channel()?;
        let gref = self.grant(0, page.addr(), false);
        self.put(&format!("{}/ring-ref", front.path), gref);
        self.put(&format!("{}/event-channel", front.path), port.0);
        self.put(&format!("{}/protocol", front.path), "arm-abi");
        for (key, value) in more {
            self.put(&format!("{}/{key}", front.path), value);
        }
        self.enter(front, 3);
        (self.await_state(front, &[4, 5, 6]) == 4).then(|| {
            self.enter(front, 4);
            Disk { ring, page, port }
        })
    }

    /// Does one request; what was answered.
    fn io(&mut self, disk: &mut Disk, slot: &Slot) -> String {
        if !disk.ring.push(&disk.page, slot) {
            return "the ring is full".into();
        }
        if disk.ring.publish(&disk.page) {
            self.send(disk.port);
        }
        let answer = self.within(3000 * MS, |_| disk.ring.pop(&disk.page).ok().flatten());
        let Some(r) = answer else {
            return "no answer".into();
        };
        let status = Status::from_number(r.status);
        let status = status.map_or(r.status.to_string(), |s| format!("{s:?}"));
        let mut text = status;
        if r.id != 42 {
            text += &format!(" id {}", r.id);
        }
        if r.operation != slot.0.operation {
            text += &format!(" operation {}", r.operation);
        }
        text
    }

    fn requests(
        &mut self,
        disk: &mut Disk,
        data: Shared,
        grants: &[u32],
        read_only: u32,
        foreign: u32,
    ) {
        let last = 4095;
        let one = |g: u32, first: u8, last: u8| [segment(g, first, last)];
        let eleven: Vec<_> = grants[..11].iter().map(|g| segment(*g, 0, 7)).collect();
        let words = |at: &[usize]| {
            let words: Vec<_> = at.iter().map(|at| data.load32(*at).to_string()).collect();
            words.join(" ")
        };
        for (name, slot) in [
            ("sector", request(READ, 5, &one(grants[0], 0, 0), 1)),
            ("page", request(READ, 8, &one(grants[0], 0, 7), 1)),
            ("within_page", request(READ, 21, &one(grants[0], 3, 4), 1)),
            ("last_sector", request(READ, last, &one(grants[0], 0, 0), 1)),
            ("eleven_segments", request(READ, 100, &eleven, 11)),
            ("beyond", request(READ, last + 1, &one(grants[0], 0, 0), 1)),
            (
                "over_the_end",
                request(READ, last, &one(grants[0], 0, 1), 1),
            ),
            (
                "far_beyond",
                request(READ, 1 << 40, &one(grants[0], 0, 0), 1),
            ),
            ("negative", request(READ, 1 << 63, &one(grants[0], 0, 0), 1)),
            (
                "max_sector",
                request(READ, u64::MAX, &one(grants[0], 0, 0), 1),
            ),
            ("no_segments", request(READ, 0, &[], 0)),
            ("twelve_segments", request(READ, 0, &eleven, 12)),
            ("many_segments", request(READ, 0, &eleven, 255)),
            (
                "first_after_last",
                request(READ, 0, &one(grants[0], 3, 2), 1),
            ),
            ("last_is_8", request(READ, 0, &one(grants[0], 0, 8), 1)),
            ("first_is_8", request(READ, 0, &one(grants[0], 8, 8), 1)),
            ("last_is_255", request(READ, 0, &one(grants[0], 0, 255), 1)),
            (
                "bad_second",
                request(
                    READ,
                    0,
                    &[segment(grants[0], 0, 0), segment(grants[1], 2, 1)],
                    2,
                ),
            ),
            ("no_grant", request(READ, 0, &one(400, 0, 0), 1)),
            ("grant_beyond", request(READ, 0, &one(1_000_000, 0, 0), 1)),
            ("grant_max", request(READ, 0, &one(u32::MAX, 0, 0), 1)),
            ("grant_of_another", request(READ, 0, &one(foreign, 0, 0), 1)),
            ("into_read_only", request(READ, 0, &one(read_only, 0, 0), 1)),
            (
                "second_without_grant",
                request(READ, 0, &[segment(grants[0], 0, 0), segment(400, 0, 0)], 2),
            ),
            (
                "same_grant_twice",
                request(
                    READ,
                    40,
                    &[segment(grants[0], 0, 0), segment(grants[0], 1, 1)],
                    2,
                ),
            ),
            ("good_again", request(READ, 6, &one(grants[0], 0, 0), 1)),
        ] {
            for at in (0..16 * 4096).step_by(512) {
                data.store32(at, 99_999);
            }
            let r = self.io(disk, &slot);
            self.case(format!("blk.read.{name}"), &r);
            if r == "Okay" {
                self.case(
                    format!("blk.read.{name}.data"),
                    words(&[
                        0,
                        512,
                        3 * 512,
                        4 * 512,
                        7 * 512,
                        4096,
                        10 * 4096,
                        11 * 4096,
                    ]),
                );
            }
        }
        let fill = |value: u32| {
            for at in (0..4096).step_by(4) {
                data.store32(at, value);
            }
        };
        for (name, slot, sector) in [
            ("sector", request(WRITE, 200, &one(grants[0], 0, 0), 1), 200),
            ("page", request(WRITE, 208, &one(grants[0], 0, 7), 1), 215),
            (
                "within_page",
                request(WRITE, 220, &one(grants[0], 3, 4), 1),
                221,
            ),
            (
                "from_read_only",
                request(WRITE, 224, &one(read_only, 0, 0), 1),
                224,
            ),
            (
                "last_sector",
                request(WRITE, last, &one(grants[0], 0, 0), 1),
                last,
            ),
            (
                "beyond",
                request(WRITE, last + 1, &one(grants[0], 0, 0), 1),
                1,
            ),
            (
                "over_the_end",
                request(WRITE, last, &one(grants[0], 0, 1), 1),
                last,
            ),
            ("no_segments", request(WRITE, 0, &[], 0), 1),
            ("twelve_segments", request(WRITE, 0, &eleven, 12), 1),
            (
                "first_after_last",
                request(WRITE, 0, &one(grants[0], 3, 2), 1),
                1,
            ),
            ("last_is_8", request(WRITE, 0, &one(grants[0], 0, 8), 1), 1),
            ("no_grant", request(WRITE, 1, &one(400, 0, 0), 1), 1),
            (
                "grant_of_another",
                request(WRITE, 1, &one(foreign, 0, 0), 1),
                1,
            ),
        ] {
            fill(7000);
            let r = self.io(disk, &slot);
            self.case(format!("blk.write.{name}"), r);
            fill(99_999);
            let back = self.io(disk, &request(READ, sector, &one(grants[0], 0, 0), 1));
            self.case(
                format!("blk.write.{name}.back"),
                format!("{back} {}", words(&[0])),
            );
        }
        for (name, slot) in [
            ("flush", request(FLUSH, 0, &[], 0)),
            ("flush.sector", request(FLUSH, 1 << 40, &[], 0)),
            (
                "flush.segments",
                request(FLUSH, 0, &one(grants[0], 0, 0), 1),
            ),
            ("barrier", request(BARRIER, 0, &[], 0)),
            (
                "barrier.segment",
                request(BARRIER, 300, &one(grants[0], 0, 0), 1),
            ),
            ("op_4", request(4, 0, &[], 0)),
            ("op_7", request(7, 0, &one(grants[0], 0, 0), 1)),
            ("op_128", request(128, 0, &one(grants[0], 0, 0), 1)),
            ("op_255", request(255, 0, &one(grants[0], 0, 0), 1)),
        ] {
            let r = self.io(disk, &slot);
            self.case(format!("blk.{name}"), r);
        }
        let mut other = request(READ, 0, &one(grants[0], 0, 0), 1);
        other.0.handle = 0x1234;
        let r = self.io(disk, &other);
        self.case("blk.other_handle", r);
        other.0.id = u64::MAX;
        let r = self.io(disk, &other);
        self.case("blk.large_id", r);
    }

    fn discards(&mut self, disk: &mut Disk) {
        for (name, slot) in [
            ("page", discard(1024, 8, 0)),
            ("many", discard(1024, 1024, 0)),
            ("sector", discard(1024, 1, 0)),
            ("last_page", discard(4088, 8, 0)),
            ("all", discard(2048, 2048, 0)),
            ("none", discard(1024, 0, 0)),
            ("beyond", discard(4096, 8, 0)),
            ("over_the_end", discard(4090, 8, 0)),
            ("far_beyond", discard(1 << 40, 8, 0)),
            ("wraps", discard(u64::MAX, 8, 0)),
            ("wraps_to_good", discard(u64::MAX - 7, 16, 0)),
            ("huge", discard(0, u64::MAX, 0)),
            ("secure", discard(1024, 8, 1)),
            ("other_flag", discard(1024, 8, 2)),
        ] {
            let r = self.io(disk, &slot);
            self.case(format!("blk.discard.{name}"), r);
        }
    }

    fn indirects(&mut self, disk: &mut Disk, list: Shared, data: Shared, grants: &[u32]) {
        let page = self.grant(0, list.addr(), true);
        let writable = self.grant(0, list.addr(), false);
        let fill = |bad: Option<(usize, BlkifRequestSegment)>| {
            for i in 0..512 {
                let s = segment(grants[i % 16], 0, 0);
                let s = bad.filter(|b| b.0 == i).map_or(s, |b| b.1);
                list.store32(i * 8, s.gref.0);
                list.store32(
                    i * 8 + 4,
                    u32::from(s.first_sect) | u32::from(s.last_sect) << 8,
                );
            }
        };
        for (name, slot, bad) in [
            ("one", indirect(READ, 3, 1, page), None),
            ("twelve", indirect(READ, 30, 12, page), None),
            ("sixteen", indirect(READ, 40, 16, page), None),
            ("writable_list", indirect(READ, 40, 16, writable), None),
            ("32", indirect(READ, 50, 32, page), None),
            ("64", indirect(READ, 50, 64, page), None),
            ("256", indirect(READ, 50, 256, page), None),
            ("257", indirect(READ, 50, 257, page), None),
            ("513", indirect(READ, 50, 513, page), None),
            ("65535", indirect(READ, 50, 65535, page), None),
            ("none", indirect(READ, 0, 0, page), None),
            ("write", indirect(WRITE, 500, 2, page), None),
            ("flush", indirect(FLUSH, 0, 0, page), None),
            ("flush_one", indirect(FLUSH, 0, 1, page), None),
            ("barrier_one", indirect(BARRIER, 0, 1, page), None),
            ("discard", indirect(DISCARD, 0, 1, page), None),
            ("indirect", indirect(INDIRECT, 0, 1, page), None),
            ("op_200", indirect(200, 0, 1, page), None),
            ("no_list", indirect(READ, 0, 2, 400), None),
            ("over_the_end", indirect(READ, 4090, 12, page), None),
            (
                "bad_grant",
                indirect(READ, 0, 4, page),
                Some((2, segment(400, 0, 0))),
            ),
            (
                "bad_sectors",
                indirect(READ, 0, 4, page),
                Some((2, segment(grants[0], 4, 3))),
            ),
            (
                "last_is_8",
                indirect(READ, 0, 4, page),
                Some((2, segment(grants[0], 0, 8))),
            ),
            (
                "bad_behind",
                indirect(READ, 60, 4, page),
                Some((4, segment(400, 9, 3))),
            ),
        ] {
            fill(bad);
            data.store32(0, 99_999);
            let r = self.io(disk, &slot);
            self.case(format!("blk.indirect.{name}"), &r);
            if r == "Okay" {
                let words = [0, 4096, 11 * 4096].map(|at| data.load32(at));
                self.case(format!("blk.indirect.{name}.data"), format!("{words:?}"));
            }
        }
    }

    /// Closing, opening anew, and what a front end may write that makes no sense.
    fn lives(&mut self, mut front: Front, ring: Shared, grants: &[u32]) {
        let r = self.close(&mut front);
        self.case("blk.close", r);
        let held = self.in_use(self.gref_of(&ring));
        self.case("blk.close.ring_held", held);
        let r = self.reopen(&mut front);
        self.case("blk.reopen", r);
        // The grants may stay mapped where that was agreed upon.
        let disk = self.connect_disk(&mut front, ring, &[("feature-persistent", "1")]);
        if let Some(mut disk) = disk {
            let r = self.io(&mut disk, &request(READ, 9, &[segment(grants[0], 0, 0)], 1));
            let held = self.in_use(grants[0]);
            self.case("blk.persistent", format!("{r} held {held}"));
            let r = self.io(&mut disk, &request(READ, 9, &[segment(grants[0], 0, 0)], 1));
            self.case("blk.persistent.again", r);
        }
        let r = self.close(&mut front);
        self.case(
            "blk.persistent.close",
            format!("{r} held {}", self.in_use(grants[0])),
        );
        let remove = |s: &mut Self, front: &Front, key: &str| {
            s.rm(&format!("{}/{key}", front.path));
        };
        remove(self, &front, "feature-persistent");
        for (name, keys) in [
            ("no_grant", &[("ring-ref", "400")][..]),
            ("grant_beyond", &[("ring-ref", "1000000")]),
            ("grant_text", &[("ring-ref", "x")]),
            ("no_port", &[("event-channel", "1000")]),
            ("port_text", &[("event-channel", "x")]),
            ("port_of_console", &[("event-channel", "2")]),
            ("other_protocol", &[("protocol", "vax-abi")]),
            ("other_arm", &[("protocol", "x86_64-abi")]),
            ("no_queues", &[("multi-queue-num-queues", "0")]),
            ("many_queues", &[("multi-queue-num-queues", "100")]),
            ("large_ring", &[("ring-page-order", "20")]),
        ] {
            self.reopen(&mut front);
            let connected = self.connect_disk(&mut front, ring, keys).is_some();
            let state = self.text(&format!("{}/state", front.back));
            let closed = self.close(&mut front);
            self.case(
                format!("blk.front.{name}"),
                format!("{connected} {state}; {closed}"),
            );
            for (key, _) in keys {
                remove(self, &front, key);
            }
        }
        // A request more than the ring holds.
        self.reopen(&mut front);
        if let Some(mut disk) = self.connect_disk(&mut front, ring, &[]) {
            let r = self.io(&mut disk, &request(READ, 9, &[segment(grants[0], 0, 0)], 1));
            self.case("blk.before_jump", r);
            disk.page.store32(0, 1000);
            self.send(disk.port);
            self.wait_ms(100);
            let state = self.text(&format!("{}/state", front.back));
            self.case("blk.jump.state", state);
            let moved = disk.page.load32(8);
            self.case("blk.jump.answers", moved);
        }
        let r = self.close(&mut front);
        self.case("blk.jump.close", r);
        self.reopen(&mut front);
        if let Some(mut disk) = self.connect_disk(&mut front, ring, &[]) {
            let r = self.io(&mut disk, &request(READ, 9, &[segment(grants[0], 0, 0)], 1));
            self.case("blk.after_jump", r);
        }
        // Gone back to the start without a word.
        self.enter(&front, 1);
        let state = self.await_state(&front, &[2]);
        self.case("blk.begin_without_close", state);
        let r = self.close(&mut front);
        self.case("blk.last_close", r);
    }

    fn read_only_disk(&mut self, ring: Shared, grants: &[u32]) {
        let mut front = self.front("blk.ro", "vbd", 51728);
        self.begin(&front);
        let Some(mut disk) = self.connect_disk(&mut front, ring, &[]) else {
            return self.case("blk.ro.connect", "failed");
        };
        self.nodes("blk.ro.back", &front.back.clone());
        let one = [segment(grants[0], 0, 0)];
        for (name, slot) in [
            ("read", request(READ, 9, &one, 1)),
            ("write", request(WRITE, 9, &one, 1)),
            ("flush", request(FLUSH, 0, &[], 0)),
            ("barrier", request(BARRIER, 0, &[], 0)),
            ("discard", discard(0, 8, 0)),
        ] {
            let r = self.io(&mut disk, &slot);
            self.case(format!("blk.ro.{name}"), r);
        }
        let r = self.close(&mut front);
        self.case("blk.ro.close", r);
    }
}
