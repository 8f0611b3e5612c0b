// SPDX-License-Identifier: MIT OR Apache-2.0
use super::fake::{Device, Fake, device, poke};
use super::*;
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

const ALL: u64 = FLUSH | DISCARD | INDIRECT | VERSION_1;

/// 1000 sectors, and discards of at most 100.
fn config() -> Vec<u8> {
    let mut config = std::vec![0; 60];
    config[..2].copy_from_slice(&1000_u16.to_le_bytes());
    config[36] = 100;
    config
}

/// Does what it is asked: the parts that it writes are filled with a letter, the last one's byte is the status.
fn serve(device: &mut Device, queue: u16) {
    while let Some((token, parts)) = device.take(queue) {
        let mut written = 0;
        for (at, len, _) in parts.iter().filter(|p| p.2) {
            (*at..*at + *len as u64).for_each(|at| poke(at, b'x'));
            written += len;
        }
        if let Some((at, ..)) = parts.last() {
            poke(*at, 0_u8);
        }
        device.give(queue, token.into(), written as u32);
    }
}

fn start(features: u64) -> (Rc<RefCell<Device>>, Disk<Fake>) {
    let (device, transport) = device(features, &config());
    device.borrow_mut().act = Some(serve);
    let disk = Disk::start(transport, || false).unwrap();
    assert_eq!((disk.sectors(), disk.serial()), (1000, &*"x".repeat(20)));
    (device, disk)
}

fn own(len: usize) -> Data {
    Data::Own(Buffer::new(len).unwrap())
}

fn read(disk: &mut Disk<Fake>, tag: u64) -> Result<(), Errno> {
    disk.submit(Op::Read, 0, own(1024), tag).map_err(|(e, _)| e)
}

#[test]
fn requests_end_as_the_disk_says() {
    for features in [ALL, ALL & !INDIRECT] {
        let (_, mut disk) = start(features);
        for (tag, op) in [Op::Read, Op::Write, Op::Flush, Op::Discard(100)]
            .into_iter()
            .enumerate()
        {
            let data = match op {
                Op::Read | Op::Write => own(1024),
                _ => Data::None,
            };
            assert!(disk.submit(op, 8, data, tag as u64).is_ok());
            let done = disk.complete().unwrap();
            assert_eq!((done.tag, done.result), (tag as u64, Ok(())));
            if let (Op::Read, Data::Own(data)) = (op, &done.data) {
                assert!(data.iter().all(|b| *b == b'x'));
            }
            assert!(disk.complete().is_none());
        }
        assert_eq!(disk.fault(), None);
    }
}

#[test]
fn requests_that_are_refused() {
    let (_, mut disk) = start(ALL | RO);
    let mut refused = |op, sector, data| disk.submit(op, sector, data, 1).map_err(|(e, _)| e);
    assert_eq!(refused(Op::Write, 0, own(512)), Err(Errno::EROFS));
    assert_eq!(refused(Op::Read, 999, own(1024)), Err(Errno::EINVAL));
    assert_eq!(refused(Op::Read, 0, own(100)), Err(Errno::EINVAL));
    assert_eq!(refused(Op::Read, 0, Data::None), Err(Errno::EINVAL));
    assert_eq!(refused(Op::Flush, 0, own(512)), Err(Errno::EINVAL));
    assert_eq!(
        refused(Op::Discard(101), 0, Data::None),
        Err(Errno::EOPNOTSUPP)
    );
}

/// It is reset, all requests end with errors and their data come back, and so does each one after that.
#[test]
fn a_disk_that_misbehaves() {
    type Wrong = fn(&mut Device);
    let cases: [(Wrong, Fault); 4] = [
        (|d| d.give(0, 500, 0), Fault::NotIts(500)),
        (|d| d.give(0, 127, 0), Fault::NotIts(127)),
        (|d| d.jump(0, 3), Fault::NotIts(0)),
        (
            |d| {
                d.status |= 64;
                d.interrupt = 2;
            },
            Fault::Stuck,
        ),
    ];
    for (wrong, fault) in cases {
        let (device, mut disk) = start(ALL);
        device.borrow_mut().act = None;
        for tag in 1..=5 {
            read(&mut disk, tag).unwrap();
        }
        assert!(disk.complete().is_none() && disk.fault().is_none());
        // What was done before is done.
        serve_one(&device);
        let done = disk.complete().unwrap();
        assert_eq!((done.tag, done.result), (1, Ok(())));
        wrong(&mut device.borrow_mut());
        disk.acknowledge();
        let mut tags = BTreeSet::new();
        while let Some(done) = disk.complete() {
            assert_eq!((done.result, done.data.bytes()), (Err(Errno::EIO), 1024));
            tags.insert(done.tag);
        }
        assert_eq!(tags, BTreeSet::from([2, 3, 4, 5]));
        assert_eq!((disk.fault(), device.borrow().status), (Some(fault), 0));
        assert_eq!(read(&mut disk, 6), Err(Errno::EIO));
        assert!(disk.complete().is_none());
    }
}

fn serve_one(device: &RefCell<Device>) {
    let mut device = device.borrow_mut();
    let (token, parts) = device.take(0).unwrap();
    poke(parts.last().unwrap().0, 0_u8);
    device.give(0, token.into(), 0);
}

#[test]
fn a_disk_that_cannot_be_used() {
    let (device, transport) = device(ALL, &config());
    device.borrow_mut().act = Some(|d, queue| d.give(queue, 77, 0));
    assert_eq!(
        Disk::start(transport, || false).err(),
        Some(Fault::NotIts(77))
    );
    assert_eq!(device.borrow().status, 0);
    let (device, transport) = super::fake::device(ALL, &config());
    let mut waits = 0..3;
    let disk = Disk::start(transport, || waits.next().is_some());
    assert_eq!((disk.err(), waits.len()), (Some(Fault::Silent), 0));
    assert_eq!(
        device.borrow().status,
        0,
        "it may not write to freed memory"
    );
    let (_, transport) = super::fake::device(ALL, &[]);
    let fault = Fault::Setup(Error::ConfigSpaceTooSmall);
    assert_eq!(Disk::start(transport, || false).err(), Some(fault));
}

proptest! {
    /// Whatever is given back, each request ends once, and there is a fault if one is wrong.
    #[test]
    fn whatever_a_disk_gives_back(
        given in prop::collection::vec((0..12_u32, any::<u32>()), 1..20),
        indirect: bool,
    ) {
        let (device, mut disk) = start(if indirect { ALL } else { ALL & !INDIRECT });
        device.borrow_mut().act = None;
        let mut asked = BTreeSet::new();
        for tag in 0..10 {
            if read(&mut disk, tag).is_ok() {
                asked.insert(tag);
            }
        }
        for (token, len) in given {
            device.borrow_mut().give(0, token, len);
            while let Some(done) = disk.complete() {
                prop_assert!(asked.remove(&done.tag));
                prop_assert_eq!((done.result, done.data.bytes()), (Err(Errno::EIO), 1024));
            }
        }
        prop_assert!(disk.fault().is_none() || asked.is_empty());
    }
}
