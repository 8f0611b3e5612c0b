// SPDX-License-Identifier: MIT OR Apache-2.0
//! A block front end: its ring, its pages, its keys.

use crate::{Input, Page};
use backends::blk::{
    Device, Discard, Disk, Kind, Limits, Mapping, Mappings, Op, Pages, Queue, Status, Step,
};
use guest_abi::io::blkif::{BlkifRequest, BlkifRequestIndirect, BlkifRequestSegment};
use guest_abi::io::ring::head;
use guest_abi::mem::SharedMem;
use guest_abi::{GrantRef, PAGE_SIZE};
use std::collections::BTreeSet;
use zerocopy::IntoBytes;

const ENTRIES: u32 = 32;
const ENTRY: u32 = 112;

/// The guest's pages: any bytes, the same in all. Every eighth is not granted.
struct Guest<'d> {
    bytes: &'d [u8],
    mapped: BTreeSet<u64>,
    next: u64,
}

impl Guest<'_> {
    fn granted(gref: GrantRef) -> bool {
        !gref.0.is_multiple_of(8)
    }
}

impl Pages for Guest<'_> {
    type Page = u64;

    fn map(&mut self, list: &mut [Mapping<u64>]) {
        for m in list.iter_mut().filter(|m| Self::granted(m.gref)) {
            self.next += 1;
            self.mapped.insert(self.next);
            m.page = Some(self.next);
        }
    }

    fn unmap(&mut self, list: &[u64]) {
        for page in list {
            assert!(self.mapped.remove(page), "a page that is not mapped");
        }
    }

    fn addr(&self, page: u64) -> u64 {
        assert!(self.mapped.contains(&page));
        page * PAGE_SIZE as u64
    }

    fn copy_in(&mut self, gref: GrantRef, to: &mut [u8]) -> bool {
        assert!(to.len() <= PAGE_SIZE);
        let bytes = self.bytes.iter().chain(core::iter::repeat(&0));
        for (to, from) in to.iter_mut().zip(bytes) {
            *to = *from;
        }
        Self::granted(gref)
    }
}

/// The bytes are acts of a front end on its ring and its keys, and ends of requests. Nothing panics; what is accepted is
/// within the disk and within pages; every request taken is answered once, and no page stays mapped in the end.
pub fn blkback(data: &[u8]) {
    let mut input = Input(data);
    let start = input.u32();
    let flags = input.u8();
    let flag = |bit: u8| flags >> bit & 1 != 0;
    let disk = Disk {
        sectors: input.u16().into(),
        read_only: flag(0),
        cdrom: flag(1),
        flush: flag(2),
        discard: flag(3).then_some(Discard {
            granularity: 512,
            alignment: 0,
            secure: flag(4),
        }),
        physical_sector_size: 512,
    };
    let limits = Limits {
        indirect_segments: input.u16() % 5000,
        ring_page_order: 0,
        queues: 1,
        persistent_pages: usize::from(input.u8() % 8),
    };
    let page = Page::new(start);
    let Some(mut queue) = Queue::attach(&page.mem(), PAGE_SIZE, disk, limits) else {
        panic!("a page holds a ring");
    };
    let mut guest = Guest {
        bytes: data,
        mapped: BTreeSet::new(),
        next: 0,
    };
    let mut mappings = Mappings::new(if flag(5) { limits.persistent_pages } else { 0 });
    let mut device = Device::new(disk, limits);
    let mut flying: Vec<Op> = Vec::new();
    let (mut prod, mut broken) = (start, false);
    let mut spans = Vec::new();

    while let Some(act) = input.act() {
        match act % 10 {
            // Any bytes anywhere in the ring's page.
            0 => {
                let at = usize::from(input.u16() % 4096);
                page.write(at & !3, input.take(24));
            }
            // Requests that make some sense, and are shown.
            1..4 => {
                let mut request = BlkifRequest {
                    operation: input.u8() % 8,
                    nr_segments: input.u8() % 14,
                    id: input.u8().into(),
                    sector_number: input.u16().into(),
                    ..Default::default()
                };
                let count = usize::from(request.nr_segments).min(request.seg.len());
                for seg in &mut request.seg[..count] {
                    *seg = BlkifRequestSegment {
                        gref: GrantRef(u32::from(input.u8() % 32)),
                        first_sect: input.u8() % 9,
                        last_sect: input.u8() % 9,
                        _pad: 0,
                    };
                }
                write(&page, &mut prod, request.as_bytes());
            }
            4 => {
                let request = BlkifRequestIndirect {
                    operation: 6,
                    indirect_op: input.u8() % 3,
                    nr_segments: input.u16() % 5000,
                    id: input.u8().into(),
                    sector_number: input.u64(),
                    indirect_grefs: core::array::from_fn(|_| GrantRef(input.u8().into())),
                    ..Default::default()
                };
                write(&page, &mut prod, request.as_bytes());
            }
            // An index that is any number.
            5 => page.mem().store32(head::REQ_PROD, input.u32()),
            // The keys, and states of both ends.
            6 => {
                let (front, online) = (input.state(), input.u8() % 4 != 0);
                match device.step(front, online, |_| input.value()) {
                    Step::Connect(config) => {
                        assert!(config.queues.len() == 1 && config.queues[0].ring.len() == 1);
                        let _ = match input.u8() % 2 {
                            0 => device.connected(),
                            _ => device.connect_failed(),
                        };
                    }
                    Step::Disconnect => device.disconnected(),
                    _ => {}
                }
            }
            // The disk ends one.
            7 if !flying.is_empty() => {
                let op = flying.swap_remove(usize::from(input.u8()) % flying.len());
                mappings.release(&op, &mut guest);
                let _ = queue.complete(&page.mem(), op, Status::Okay);
            }
            // A turn of the back end's.
            _ => {
                let budget = u32::from(input.u8() % 40);
                guest.bytes = input.0;
                let mut ops = Vec::new();
                let taken = queue.take_requests(&page.mem(), &mut guest, budget, &mut ops);
                assert!(ops.len() <= ENTRIES as usize && (!broken || ops.len() <= 1));
                broken |= taken.is_err();
                for op in ops {
                    let Some(end) = op.sector().checked_add(op.sectors()) else {
                        panic!("beyond all disks");
                    };
                    assert!(end <= disk.sectors);
                    assert!(!disk.read_only || matches!(op.kind(), Kind::Read | Kind::Flush));
                    if matches!(op.kind(), Kind::Read | Kind::Write | Kind::Barrier) {
                        if mappings.map(&op, &mut guest, &mut spans).is_err() {
                            queue.respond(&page.mem(), op, Status::Error);
                            continue;
                        }
                        let within = |at: u64, bytes: u32| {
                            at % PAGE_SIZE as u64 + u64::from(bytes) <= PAGE_SIZE as u64
                        };
                        assert!(spans.iter().all(|s| s.bytes > 0 && within(s.addr, s.bytes)));
                        let bytes: u64 = spans.iter().map(|s| u64::from(s.bytes)).sum();
                        assert_eq!(bytes, op.sectors() * 512);
                    }
                    flying.push(op);
                }
                let _ = queue.publish(&page.mem());
                assert_eq!(
                    queue.in_flight() as usize,
                    flying.len() + usize::from(queue.holds())
                );
            }
        }
    }
    queue.stop();
    for op in flying.drain(..) {
        mappings.release(&op, &mut guest);
        queue.respond(&page.mem(), op, Status::Error);
    }
    // A barrier that was held back is given out now, and nothing else is.
    let held = queue.holds();
    let mut last = Vec::new();
    let _ = queue.take_requests(&page.mem(), &mut guest, 40, &mut last);
    assert_eq!(last.len(), usize::from(held));
    for op in last {
        queue.respond(&page.mem(), op, Status::Error);
    }
    let _ = queue.publish(&page.mem());
    assert_eq!(queue.in_flight(), 0);
    mappings.close(&mut guest);
    assert!(guest.mapped.is_empty());
}

/// Puts a request into the next place, and shows it.
fn write(page: &Page, prod: &mut u32, request: &[u8]) {
    page.write(head::ENTRIES + (*prod % ENTRIES * ENTRY) as usize, request);
    *prod = prod.wrapping_add(1);
    page.mem().store32(head::REQ_PROD, *prod);
}
