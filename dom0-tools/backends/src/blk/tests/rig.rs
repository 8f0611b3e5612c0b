// SPDX-License-Identifier: MIT OR Apache-2.0
//! A front end and its pages.
use super::super::*;
use crate::testmem::Mem;
use guest_abi::GrantRef;
use guest_abi::io::blkif::{BlkifRequest, BlkifRequestSegment, BlkifResponse, Op as Nr, Slot};
use guest_abi::io::ring::FrontRing;
use std::collections::{BTreeMap, HashMap};

pub const DISK: Disk = Disk {
    sectors: 1000,
    read_only: false,
    cdrom: false,
    flush: true,
    discard: Some(Discard {
        granularity: 512,
        alignment: 0,
        secure: false,
    }),
    physical_sector_size: 512,
};
pub const LIMITS: Limits = Limits {
    indirect_segments: 600,
    ring_page_order: 0,
    queues: 1,
    persistent_pages: 4,
};

/// A front end's pages: grants below 100 are good, 50 to 59 read-only.
#[derive(Default)]
pub struct Guest {
    pub pages: HashMap<u32, Vec<u8>>,
    pub mapped: BTreeMap<u64, (GrantRef, bool)>,
    pub next: u64,
    pub calls: usize,
}

impl Pages for Guest {
    type Page = u64;
    fn map(&mut self, list: &mut [Mapping<u64>]) {
        self.calls += 1;
        for m in list {
            assert_eq!(m.page, None);
            if m.gref.0 < 100 && !(m.writable && (50..60).contains(&m.gref.0)) {
                self.next += 1;
                self.mapped.insert(self.next, (m.gref, m.writable));
                m.page = Some(self.next);
            }
        }
    }
    fn unmap(&mut self, list: &[u64]) {
        self.calls += 1;
        for page in list {
            assert!(self.mapped.remove(page).is_some(), "unmapped twice");
        }
    }
    fn addr(&self, page: u64) -> u64 {
        assert!(self.mapped.contains_key(&page));
        page * 4096
    }
    fn copy_in(&mut self, gref: GrantRef, to: &mut [u8]) -> bool {
        let Some(p) = self.pages.get(&gref.0) else {
            return false;
        };
        to.copy_from_slice(&p[..to.len()]);
        true
    }
}

pub fn seg(gref: u32, first: u8, last: u8) -> BlkifRequestSegment {
    BlkifRequestSegment {
        gref: GrantRef(gref),
        first_sect: first,
        last_sect: last,
        _pad: 0xffff,
    }
}

pub fn direct(op: Nr, id: u64, sector: u64, segs: &[BlkifRequestSegment]) -> Slot {
    let mut r = BlkifRequest {
        operation: op.number(),
        nr_segments: segs.len() as u8,
        id,
        sector_number: sector,
        ..Default::default()
    };
    r.seg[..segs.len()].copy_from_slice(segs);
    r.into()
}

pub struct Rig {
    pub mem: Mem,
    pub front: FrontRing<Slot, BlkifResponse>,
    pub queue: Queue,
    pub guest: Guest,
}

pub fn rig_with(disk: Disk, limits: Limits) -> Rig {
    let mem = Mem::new(4096);
    let front = FrontRing::new(&mem, 4096).unwrap();
    let queue = Queue::attach(&mem, 4096, disk, limits).unwrap();
    Rig {
        mem,
        front,
        queue,
        guest: Guest::default(),
    }
}

pub fn rig() -> Rig {
    rig_with(DISK, LIMITS)
}

impl Rig {
    pub fn take(&mut self, budget: u32) -> (Vec<Op>, Taken) {
        let mut ops = Vec::new();
        let t = self
            .queue
            .take_requests(&self.mem, &mut self.guest, budget, &mut ops)
            .unwrap();
        (ops, t)
    }
    /// Sends one request and takes it.
    pub fn one(&mut self, slot: impl Into<Slot>) -> Option<Op> {
        assert!(self.front.push(&self.mem, &slot.into()));
        assert!(self.front.publish(&self.mem));
        let (mut ops, t) = self.take(10);
        assert_eq!((t.requests, t.more), (1, false));
        assert_eq!(t.notify, ops.is_empty());
        ops.pop()
    }
    pub fn answer(&mut self) -> BlkifResponse {
        let r = self.front.pop(&self.mem).unwrap().expect("an answer");
        assert_eq!(self.front.pop(&self.mem), Ok(None));
        assert_eq!(self.front.final_check(&self.mem), Ok(false));
        r
    }
    pub fn refused(&mut self, slot: impl Into<Slot>, id: u64, op: u8, status: Status) {
        let op_taken = self.one(slot);
        assert!(op_taken.is_none(), "{op_taken:?}");
        assert_eq!(self.answer(), BlkifResponse::new(id, op, status));
    }
}
