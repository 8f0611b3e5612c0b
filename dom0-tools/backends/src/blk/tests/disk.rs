// SPDX-License-Identifier: MIT OR Apache-2.0
//! A front end that reads and writes a fragmented disk image through the whole engine.
use super::super::*;
use super::rig::*;
use crate::extent::{ExtentMap, Run};
use guest_abi::io::blkif::Op as Nr;
use proptest::prelude::*;

/// The back end's part, run only when it was sent an event: whether it sends one.
fn serve(
    r: &mut Rig,
    m: &mut Mappings<u64>,
    map: &ExtentMap,
    disk: &mut [u8],
    memory: &mut [u8],
    budget: u32,
) -> bool {
    let (mut ops, mut spans, mut notify) = (Vec::new(), Vec::new(), false);
    loop {
        let t = r
            .queue
            .take_requests(&r.mem, &mut r.guest, budget, &mut ops)
            .unwrap();
        notify |= t.notify;
        for op in ops.drain(..) {
            m.map(&op, &mut r.guest, &mut spans).unwrap();
            for t in map.transfers(op.sector(), &spans, 5).unwrap() {
                for n in 0..t.sectors {
                    let addr = t.addr + n * 512;
                    let gref = r.guest.mapped[&(addr / 4096)].0;
                    let at = gref.0 as usize * 4096 + (addr % 4096) as usize;
                    let on = (t.lba + n) as usize * 512;
                    let (mem, disk) = (&mut memory[at..at + 512], &mut disk[on..on + 512]);
                    match op.kind() {
                        Kind::Read => mem.copy_from_slice(disk),
                        _ => disk.copy_from_slice(mem),
                    }
                }
            }
            m.release(&op, &mut r.guest);
            r.queue.respond(&r.mem, op, Status::Okay);
        }
        notify |= r.queue.publish(&r.mem);
        if !t.more {
            return notify;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// What was written is read back, other sectors of the real disk stay, no event is missed.
    #[test]
    fn data_goes_through(
        work in prop::collection::vec((any::<bool>(), 0u64..900, prop::collection::vec((0u8..8, 0u8..8), 1..=11), any::<u8>()), 1..100),
        batch in 1usize..32,
        budget in 1u32..40,
        keep in 0usize..20,
    ) {
        // Ten clusters of 100 sectors, backwards, with gaps.
        let mut map = ExtentMap::new();
        for n in 0..10 {
            map.push(Run { lba: 2000 - n * 150, sectors: 100 }).unwrap();
        }
        let mut disk = vec![0xaa; 2200 * 512];
        let mut model = vec![0xaa; 1000 * 512];
        let mut memory = vec![0; 32 * 11 * 4096];
        let mut r = rig();
        let mut m = Mappings::new(keep);
        for chunk in work.chunks(batch) {
            let mut expected: Vec<(usize, Vec<u8>)> = Vec::new();
            for (slot, (write, sector, parts, fill)) in chunk.iter().enumerate() {
                // Each request has grants of its own (0 to 10, 11 to 21 and so on), below 50.
                let base = (slot * 11) as u32 % 44;
                if base == 0 && slot > 0 {
                    break;
                }
                let mut segs = Vec::new();
                let mut at = *sector as usize * 512;
                for (i, (a, b)) in parts.iter().enumerate() {
                    let gref = base + i as u32;
                    let (a, b) = (*a.min(b), *a.max(b));
                    segs.push(seg(gref, a, b));
                    let bytes = usize::from(b - a + 1) * 512;
                    let here = gref as usize * 4096 + usize::from(a) * 512;
                    if *write {
                        for (k, byte) in memory[here..here + bytes].iter_mut().enumerate() {
                            *byte = fill.wrapping_add((k / 512) as u8).wrapping_add(i as u8);
                        }
                        let data = memory[here..here + bytes].to_vec();
                        model[at..at + bytes].copy_from_slice(&data);
                    } else {
                        expected.push((here, model[at..at + bytes].to_vec()));
                    }
                    at += bytes;
                }
                let op = if *write { Nr::Write } else { Nr::Read };
                prop_assert!(r.front.push(&r.mem, &direct(op, slot as u64, *sector, &segs)));
            }
            let sent = r.front.in_flight();
            prop_assert!(r.front.publish(&r.mem), "the back end waits, so it is told");
            prop_assert!(serve(&mut r, &mut m, &map, &mut disk, &mut memory, budget));
            for id in 0..u64::from(sent) {
                let a = r.front.pop(&r.mem).unwrap().unwrap();
                prop_assert_eq!((a.id, a.status), (id, 0));
            }
            prop_assert_eq!(r.front.final_check(&r.mem), Ok(false));
            for (here, data) in expected {
                prop_assert!(memory[here..here + data.len()] == data[..]);
            }
        }
        m.close(&mut r.guest);
        prop_assert!(r.guest.mapped.is_empty());
        let mut want = vec![0xaa; 2200 * 512];
        for n in 0..10 {
            let lba = (2000 - n * 150) * 512;
            want[lba..lba + 51200].copy_from_slice(&model[n * 51200..(n + 1) * 51200]);
        }
        prop_assert!(disk == want);
    }
}
