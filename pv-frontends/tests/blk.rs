// SPDX-License-Identifier: MIT OR Apache-2.0
//! The disk's front end against the workspace's own back-end, and against hostile ones.

mod common;

use backends::blk::{Disk as Served, Limits, Status};
use common::disk::*;
use common::*;
use guest_abi::io::blkif::BlkifResponse;
use guest_abi::io::ring::head;
use guest_abi::io::xenbus::State;
use guest_abi::mem::SharedMem;
use proptest::prelude::*;
use pv_frontends::blk::{Config, Disk, Stream};
use pv_frontends::xenstore::Xenstore;
use pv_frontends::{Error, Platform, xenbus};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use zerocopy::IntoBytes;

type Xs = Xenstore<&'static World>;
type Front = Disk<'static, &'static World>;

fn start() -> (&'static World, Server, &'static Xs) {
    let w = World::new();
    let server = serve(w);
    (w, server, Box::leak(Box::new(Xenstore::open(w).unwrap())))
}

fn soon(w: &World) -> u64 {
    w.now() + SECOND
}

fn open(xs: &'static Xs, config: Config) -> Result<Front, Error> {
    let s = xs.by(soon(xs.platform()));
    s.run(Disk::open(s.access(), VBD, config))
}

fn setup(
    served: Served,
    limits: Limits,
    config: Config,
) -> (&'static World, Server, &'static Xs, Front, Rc<Knobs>) {
    let (w, server, xs) = start();
    let knobs = attach(w, &server, served, limits);
    let disk = open(xs, config).unwrap();
    (w, server, xs, disk, knobs)
}

fn pattern(n: usize, seed: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 31 + i / 512 + seed) as u8).collect()
}

#[test]
fn a_disk_from_beginning_to_end() {
    let (w, server, xs, disk, k) = setup(DISK, LIMITS, Config::default());
    let s = xs.by(soon(w));
    assert_eq!(s.run(xenbus::devices(&xs.access(), "vbd")).unwrap(), [VBD]);
    let info = disk.info();
    assert_eq!(
        (info.sectors, info.sector_size, info.physical_sector_size),
        (4096, 512, 4096)
    );
    assert_eq!(
        (info.read_only, info.cdrom, info.flush, info.persistent),
        (false, false, true, true)
    );
    assert_eq!((info.segments, info.queues, disk.ports().len()), (32, 1, 1));
    let discard = info.discard.unwrap();
    assert_eq!(
        (discard.granularity, discard.alignment, discard.secure),
        (512, 0, false)
    );
    // Sizes around pages, requests and the pool.
    for (sector, sectors) in [
        (0, 1),
        (1, 7),
        (3, 8),
        (5, 9),
        (100, 88),
        (200, 89),
        (300, 256),
        (600, 257),
        (1000, 3000),
    ] {
        let data = pattern(sectors * 512, sector);
        disk.by(soon(w)).write(sector as u64, &data).unwrap();
        assert_eq!(k.data.borrow()[sector * 512..][..data.len()], data);
        let mut back = vec![0; data.len()];
        disk.by(soon(w)).read(sector as u64, &mut back).unwrap();
        assert!(back == data, "{sectors} sectors at {sector}");
    }
    assert_eq!(k.largest.get(), 32);
    assert_eq!(k.data.borrow()[4000 * 512..], [0; 96 * 512]);
    disk.by(soon(w)).flush().unwrap();
    assert_eq!(k.flushes.get(), 1);
    disk.by(soon(w)).discard(10, 5, false).unwrap();
    assert_eq!(k.data.borrow()[10 * 512..15 * 512], [0xdd; 5 * 512]);
    assert_eq!(
        disk.by(soon(w)).discard(10, 5, true),
        Err(Error::Unsupported)
    );
    assert_eq!(
        server.borrow().read(&format!("{FRONT}/state")).unwrap(),
        b"4"
    );
    s.run(disk.close()).unwrap();
    assert_eq!(
        server.borrow().read(&format!("{FRONT}/state")).unwrap(),
        b"6"
    );
    // Nothing is left: pages, grants, ports, watches.
    assert_eq!((w.held(), w.grants(), xs.retired()), (0, 0, 0));
    assert_eq!(w.ports.borrow().len(), 2);
    let _ = s.read("a");
    assert_eq!(server.borrow().domain_stats(ME).watches, 0);
}

#[test]
fn every_shape_of_connection() {
    let plain = Limits {
        indirect_segments: 0,
        ring_page_order: 0,
        queues: 1,
        persistent_pages: 0,
    };
    let no_extras = Served {
        flush: false,
        discard: None,
        ..DISK
    };
    for (served, limits, config, expect) in [
        (
            DISK,
            LIMITS,
            Config {
                queues: 3,
                ring_page_order: 2,
                segments: 64,
                pool_pages: 300,
            },
            (64, 3, true),
        ),
        (
            DISK,
            LIMITS,
            Config {
                queues: 9,
                ring_page_order: 9,
                segments: 600,
                pool_pages: 20,
            },
            (19, 4, true),
        ),
        (
            DISK,
            LIMITS,
            Config {
                queues: 1,
                ring_page_order: 1,
                segments: 1,
                pool_pages: 1,
            },
            (1, 1, true),
        ),
        (
            no_extras,
            plain,
            Config {
                queues: 4,
                ring_page_order: 4,
                ..Config::default()
            },
            (11, 1, false),
        ),
    ] {
        let (w, _server, xs, disk, k) = setup(served, limits, config);
        let info = disk.info();
        assert_eq!((info.segments, info.queues, info.persistent), expect);
        assert_eq!(disk.ports().len(), usize::from(expect.1));
        for round in 0..3 {
            let data = pattern(512 * 1001, round);
            disk.by(soon(w)).write(7, &data).unwrap();
            let mut back = vec![0; data.len()];
            disk.by(soon(w)).read(7, &mut back).unwrap();
            assert!(back == data);
        }
        assert_eq!(k.largest.get(), usize::from(expect.0).min(126));
        if !served.flush {
            assert_eq!(disk.by(soon(w)).flush(), Err(Error::Unsupported));
            assert_eq!(
                disk.by(soon(w)).discard(0, 1, false),
                Err(Error::Unsupported)
            );
        }
        xs.by(soon(w)).run(disk.close()).unwrap();
        assert_eq!((w.held(), w.grants(), w.ports.borrow().len()), (0, 0, 2));
    }
}

#[test]
fn several_requests_with_one_event() {
    let (w, _server, _xs, disk, k) = setup(
        DISK,
        LIMITS,
        Config {
            pool_pages: 33,
            ..Config::default()
        },
    );
    let mut cx = Context::from_waker(Waker::noop());
    let before = k.events.get();
    let mut writes: Vec<_> = (0..32)
        .map(|n| disk.submit_write(n, &[n as u8 + 1; 512]).unwrap())
        .collect();
    assert_eq!(
        disk.submit_write(0, &[0; 512]).map(drop),
        Err(Error::Busy),
        "the ring is full"
    );
    w.run();
    assert_eq!(k.events.get(), before, "nothing was shown yet");
    disk.kick();
    w.run();
    assert_eq!(k.events.get(), before + 1);
    for write in &mut writes {
        assert_eq!(write.poll_done(&mut cx), Poll::Ready(Ok(())));
    }
    drop(writes);
    // Read requests given up are finished by and by, and their pages come back.
    let mut buffers = [[0; 512]; 32];
    let reads: Vec<_> = buffers
        .iter_mut()
        .zip(0..)
        .map(|(b, n)| disk.submit_read(n, b).unwrap())
        .collect();
    drop(reads);
    assert_eq!(buffers, [[0; 512]; 32]);
    let mut all = vec![0; 32 * 512];
    disk.by(soon(w)).read(0, &mut all).unwrap();
    assert!(all.chunks(512).zip(1..).all(|(c, n)| c == [n; 512]));
    let mut large = vec![0; 4096 * 33];
    let one = disk.submit_read(0, &mut large);
    assert_eq!(
        one.map(drop),
        Err(Error::Invalid),
        "more than there are pages"
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (w, _server, _xs, disk, _k) = setup(DISK, LIMITS, Config::default());
    let d = disk.by(soon(w));
    for (sector, bytes) in [
        (4096, 512),
        (4095, 1024),
        (u64::MAX, 512),
        (0, 511),
        (u64::MAX - 1, 1024),
    ] {
        assert_eq!(d.read(sector, &mut vec![0; bytes]), Err(Error::Invalid));
        assert_eq!(d.write(sector, &vec![0; bytes]), Err(Error::Invalid));
    }
    assert_eq!(d.discard(4000, 97, false), Err(Error::Invalid));
    assert_eq!(d.read(4096, &mut []), Ok(()));
    let (w, _server, _xs, disk, _k) = setup(
        Served {
            read_only: true,
            cdrom: true,
            ..DISK
        },
        LIMITS,
        Config::default(),
    );
    let info = disk.info();
    assert!(info.read_only && info.cdrom && info.removable);
    assert_eq!(
        disk.by(soon(w)).write(0, &[0; 512]),
        Err(Error::Unsupported)
    );
    assert_eq!(disk.by(soon(w)).read(0, &mut [0; 512]), Ok(()));
}

#[test]
fn the_disks_own_errors() {
    let (w, _server, _xs, disk, k) = setup(DISK, LIMITS, Config::default());
    k.status.set(Some(Status::Error));
    assert_eq!(disk.by(soon(w)).read(0, &mut [0; 8192]), Err(Error::Failed));
    assert_eq!(disk.by(soon(w)).write(0, &[0; 512]), Err(Error::Failed));
    k.status.set(Some(Status::Eopnotsupp));
    assert_eq!(disk.by(soon(w)).flush(), Err(Error::Unsupported));
    k.status.set(None);
    assert_eq!(disk.by(soon(w)).read(0, &mut [0; 8192]), Ok(()));
}

#[test]
fn a_silent_back_end_costs_no_more_than_the_deadline() {
    let (w, _server, xs, disk, k) = setup(
        DISK,
        LIMITS,
        Config {
            pool_pages: 4,
            ..Config::default()
        },
    );
    k.silent.set(true);
    for _ in 0..6 {
        let begin = w.now();
        let mut sectors = [1; 1024];
        assert_eq!(
            disk.by(begin + MS).read(0, &mut sectors),
            Err(Error::TimedOut)
        );
        assert!(w.now() <= begin + 2 * MS);
        assert_eq!(sectors, [1; 1024]);
    }
    // It answers after all: those are nobody's, and all is as before.
    k.silent.set(false);
    disk.by(soon(w)).write(0, &[7; 1024]).unwrap();
    k.silent.set(true);
    let _ = disk.by(w.now() + MS).write(0, &[8; 1024]);
    // Given up with pages mapped: they stay away from the kernel until the back end lets go.
    let begin = w.now();
    k.dead.set(true);
    assert_eq!(xs.by(begin + MS).run(disk.close()), Err(Error::TimedOut));
    assert!(xs.retired() > 0);
    assert!(w.held() > 0 && w.held() < 6, "{} pages", w.held());
    // The back end ends, and its mappings with it.
    w.back.borrow_mut().clear();
    for at in 0..5 {
        w.mark(guest_abi::GrantRef(8 + at), false);
    }
    assert_eq!((xs.retired(), w.held(), w.grants()), (0, 0, 0));
}

#[test]
fn a_back_end_that_closes_and_comes_back() {
    let (w, server, xs, mut disk, k) = setup(DISK, LIMITS, Config::default());
    disk.by(soon(w)).write(0, &[1; 512]).unwrap();
    k.silent.set(true);
    let mut buffer = [0; 512];
    let read = disk.submit_read(0, &mut buffer).unwrap();
    disk.kick();
    w.run();
    // The toolstack takes the disk away.
    server
        .borrow_mut()
        .write(&format!("{BACK}/online"), b"0")
        .unwrap();
    assert_eq!(xs.by(soon(w)).run(read), Err(Error::Gone));
    assert_eq!(disk.failed(), Some(Error::Gone));
    assert_eq!(disk.by(soon(w)).read(0, &mut buffer), Err(Error::Gone));
    assert_eq!(disk.submit_write(0, &buffer).map(drop), Err(Error::Gone));
    // It stays away: a deadline ends the attempt.
    assert_eq!(
        xs.by(w.now() + MS).run(disk.reconnect()),
        Err(Error::TimedOut)
    );
    // It comes back, and knows nothing of before.
    k.silent.set(false);
    server
        .borrow_mut()
        .write(&format!("{BACK}/online"), b"1")
        .unwrap();
    xs.by(soon(w)).run(disk.reconnect()).unwrap();
    assert_eq!(disk.failed(), None);
    disk.by(soon(w)).read(0, &mut buffer).unwrap();
    assert_eq!(buffer, [1; 512]);
    // Anew without having failed, as after a resume.
    xs.by(soon(w)).run(disk.reconnect()).unwrap();
    disk.by(soon(w)).read(0, &mut buffer).unwrap();
    xs.by(soon(w)).run(disk.close()).unwrap();
    assert_eq!((w.held(), w.grants(), xs.retired()), (0, 0, 0));
}

#[test]
fn a_domain_that_was_restored() {
    let (w, server, xs, mut disk, k) = setup(DISK, LIMITS, Config::default());
    disk.by(soon(w)).write(0, &[5; 512]).unwrap();
    // Ports and grants of before are no more, and their numbers are free.
    k.dead.set(true);
    w.run();
    w.ports.borrow_mut().retain(|p| *p <= 2);
    w.table.write(64, &vec![0; w.table.len() - 64]);
    server.borrow_mut().rm(BACK).unwrap();
    server.borrow_mut().rm(FRONT).unwrap();
    w.back.borrow_mut().pop();
    let new = attach(w, &server, DISK, LIMITS);
    new.data.borrow_mut()[..512].fill(5);
    xs.resume().unwrap();
    xs.by(soon(w)).run(disk.resume()).unwrap();
    let mut ports = disk.ports().into_iter();
    assert!(ports.all(|p| w.ports.borrow().contains(&p.0)));
    let mut sector = [0; 512];
    disk.by(soon(w)).read(0, &mut sector).unwrap();
    assert_eq!(sector, [5; 512]);
    xs.by(soon(w)).run(disk.close()).unwrap();
    assert_eq!((w.held(), w.grants(), w.ports.borrow().len()), (0, 0, 2));
}

#[test]
fn a_device_that_is_removed() {
    let (w, server, xs, disk, _k) = setup(DISK, LIMITS, Config::default());
    server.borrow_mut().rm(BACK).unwrap();
    server.borrow_mut().rm(FRONT).unwrap();
    assert_eq!(disk.by(soon(w)).read(0, &mut [0; 512]), Err(Error::Gone));
    xs.by(soon(w)).run(disk.close()).unwrap();
    assert_eq!((w.held(), w.grants()), (0, 0));
    assert_eq!(open(xs, Config::default()).map(drop), Err(Error::NoDevice));
}

#[test]
fn a_kernel_before_that_left_it_connected() {
    let (w, _server, xs, disk, _k) = setup(DISK, LIMITS, Config::default());
    disk.by(soon(w)).write(0, &[3; 512]).unwrap();
    std::mem::forget(disk);
    let disk = open(xs, Config::default()).unwrap();
    let mut sector = [0; 512];
    disk.by(soon(w)).read(0, &mut sector).unwrap();
    assert_eq!(sector, [3; 512]);
    // Connections of other shapes leave other keys.
    let large = Config {
        queues: 3,
        ring_page_order: 2,
        ..Config::default()
    };
    for config in [large, Config::default(), large] {
        std::mem::forget(open(xs, config).unwrap());
        let disk = open(xs, Config::default()).unwrap();
        assert_eq!(disk.ports().len(), 1);
        disk.by(soon(w)).read(0, &mut sector).unwrap();
        std::mem::forget(disk);
    }
}

#[test]
fn no_back_end_no_memory_no_device() {
    let (w, server, xs) = start();
    assert_eq!(open(xs, Config::default()).map(drop), Err(Error::NoDevice));
    nodes(&server);
    assert_eq!(open(xs, Config::default()).map(drop), Err(Error::TimedOut));
    let _k = serve_disk(w, &server, DISK, LIMITS);
    for free in [0, 1, 5, 40] {
        w.free_pages.set(free);
        assert_eq!(open(xs, Config::default()).map(drop), Err(Error::NoMemory));
        assert_eq!((w.held(), w.grants()), (0, 0));
    }
    w.free_pages.set(10_000);
    // More than the grant table has.
    assert_eq!(
        open(
            xs,
            Config {
                pool_pages: 3000,
                ..Config::default()
            }
        )
        .map(drop),
        Err(Error::NoMemory)
    );
    assert_eq!((w.held(), w.grants()), (0, 0));
    open(xs, Config::default()).unwrap();
}

#[test]
fn the_disk_grows() {
    let (w, server, xs, disk, _k) = setup(DISK, LIMITS, Config::default());
    server
        .borrow_mut()
        .write(&format!("{BACK}/sectors"), b"5000")
        .unwrap();
    assert_eq!(xs.by(soon(w)).run(disk.refresh()).unwrap().sectors, 5000);
    for bad in ["x", "-1", "18446744073709551615"] {
        server
            .borrow_mut()
            .write(&format!("{BACK}/sectors"), bad.as_bytes())
            .unwrap();
        assert_eq!(xs.by(soon(w)).run(disk.refresh()), Err(Error::BadValue));
    }
}

#[test]
fn traits_of_other_crates() {
    use embedded_io::{Read, Seek, SeekFrom, Write};
    use embedded_sdmmc_types::blockdevice::{Block, BlockCount, BlockDevice, BlockIdx};
    let (_w, _server, _xs, disk, k) = setup(DISK, LIMITS, Config::default());
    let blocks = [1, 2, 3].map(|n| Block { contents: [n; 512] });
    BlockDevice::write(&disk, &blocks, BlockIdx(9)).unwrap();
    let mut back = vec![Block { contents: [0; 512] }; 3];
    BlockDevice::read(&disk, &mut back, BlockIdx(9)).unwrap();
    assert!(
        back.iter()
            .zip(&blocks)
            .all(|(a, b)| a.contents == b.contents)
    );
    assert_eq!(disk.num_blocks(), Ok(BlockCount(4096)));
    assert_eq!(
        BlockDevice::read(&disk, &mut back, BlockIdx(4095)),
        Err(Error::Invalid)
    );
    // Bytes, whatever their place.
    let mut s = Stream::new(&disk);
    let mut model = k.data.borrow().clone();
    for (at, len) in [
        (0, 10),
        (500, 30),
        (512, 512),
        (1000, 3000),
        (4096, 4096),
        (777, 1),
    ] {
        s.seek(SeekFrom::Start(at as u64)).unwrap();
        let data = pattern(len, at);
        s.write_all(&data).unwrap();
        model[at..][..len].copy_from_slice(&data);
        assert_eq!(s.seek(SeekFrom::Current(-(len as i64))), Ok(at as u64));
        let mut back = vec![0; len];
        s.read_exact(&mut back).unwrap();
        assert!(back == data);
    }
    s.flush().unwrap();
    assert!(*k.data.borrow() == model);
    assert_eq!(s.seek(SeekFrom::End(-3)), Ok(4096 * 512 - 3));
    assert_eq!(s.write(&[9; 10]), Ok(3));
    assert_eq!(s.write(&[9; 10]), Err(Error::Invalid));
    assert_eq!(s.read(&mut [0; 10]), Ok(0));
    assert_eq!(s.seek(SeekFrom::Current(-1 << 40)), Err(Error::Invalid));
}

#[test]
fn impossible_answers_end_the_connection() {
    // An index out of range, an answer to nothing, an answer twice.
    for what in 0..3 {
        let (w, _server, xs, mut disk, k) = setup(DISK, LIMITS, Config::default());
        k.silent.set(true);
        let mut buffer = [0; 512];
        let read = disk.submit_read(0, &mut buffer).unwrap();
        let flush = disk.submit_flush().unwrap();
        disk.kick();
        w.run();
        k.dead.set(true);
        let (ring, _) = w
            .frame(w.granted(guest_abi::GrantRef(8), DOM0).unwrap().0.0)
            .unwrap();
        let mut id = [0; 8];
        ring.read(head::ENTRIES + 8, &mut id);
        let id = u64::from_le_bytes(id);
        for at in 0..2 {
            let id = if what == 1 { id ^ 1 << 20 } else { id };
            let r = BlkifResponse::new(id, 0, Status::Okay);
            ring.write(head::ENTRIES + at * 112, r.as_bytes());
        }
        ring.store32(head::RSP_PROD, if what == 0 { 3 } else { 2 });
        let e = xs.by(w.now() + MS).run(flush).unwrap_err();
        assert!(matches!(e, Error::Protocol(_)), "{what}: {e}");
        let r = xs.by(w.now() + MS).run(read);
        assert_eq!(r, if what == 2 { Ok(()) } else { Err(e) });
        assert_eq!(disk.failed(), Some(e));
        k.dead.set(false);
        k.silent.set(false);
        xs.by(soon(w)).run(disk.reconnect()).unwrap();
        disk.by(soon(w)).read(0, &mut buffer).unwrap();
    }
}

#[derive(Clone, Debug)]
enum Move {
    Word(usize, u32),
    Entry(usize, u64, i16),
    Node(usize, String),
    Nothing,
}

const KEYS: &[&str] = &[
    "state",
    "sectors",
    "sector-size",
    "info",
    "physical-sector-size",
    "feature-max-indirect-segments",
    "max-ring-page-order",
    "multi-queue-max-queues",
    "feature-persistent",
    "feature-flush-cache",
    "feature-discard",
    "discard-granularity",
];

fn moves() -> impl Strategy<Value = Move> {
    let word = prop::sample::select(vec![0, 4, 8, 12]);
    let value = prop_oneof![
        4 => (0..9_u32).prop_map(|n| n.to_string()),
        2 => any::<u64>().prop_map(|n| n.to_string()),
        1 => "[a-z0-9+ -]{0,6}",
        1 => Just("512".to_string()),
    ];
    prop_oneof![
        2 => (word, prop_oneof![0..40_u32, any::<u32>()]).prop_map(|(w, v)| Move::Word(w, v)),
        4 => (0..32_usize, prop_oneof![(1..20_u64, 0..32_u64).prop_map(|(c, n)| c << 16 | n), any::<u64>()], -3..2_i16)
            .prop_map(|(e, id, s)| Move::Entry(e, id, s)),
        6 => (0..KEYS.len(), value).prop_map(|(k, v)| Move::Node(k, v)),
        2 => Just(Move::Node(0, "2".into())),
        2 => Just(Move::Node(0, "4".into())),
        1 => Just(Move::Nothing),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the back end writes to the ring and the store, calls end by their deadline, and nothing panics; what
    /// it maps is all that is kept.
    #[test]
    fn a_hostile_back_end(script in prop::collection::vec(moves(), 1..80), connected in any::<bool>()) {
        let (w, server, xs) = start();
        nodes(&server);
        if connected {
            for (key, value) in [("sectors", "64"), ("feature-flush-cache", "1"), ("state", "2")] {
                server.borrow_mut().write(&format!("{BACK}/{key}"), value.as_bytes()).unwrap();
            }
        }
        let mut script = script.into_iter();
        let s = server.clone();
        w.add(move |w| {
            if connected && s.borrow().read(&format!("{FRONT}/state")).unwrap() == b"3"
                && s.borrow().read(&format!("{BACK}/state")).unwrap() == b"2" {
                s.borrow_mut().write(&format!("{BACK}/state"), b"4").unwrap();
                return true;
            }
            let ring = (8..20).find_map(|r| w.granted(guest_abi::GrantRef(r), DOM0)).and_then(|g| w.frame(g.0.0));
            match script.next() {
                None => return false,
                Some(Move::Node(key, value)) => {
                    s.borrow_mut().write(&format!("{BACK}/{}", KEYS[key]), value.as_bytes()).unwrap();
                }
                Some(Move::Word(at, value)) => if let Some((ring, _)) = ring { ring.store32(at, value) },
                Some(Move::Entry(at, id, status)) => if let Some((ring, _)) = ring {
                    ring.write(head::ENTRIES + at * 112, &id.to_le_bytes());
                    ring.write(head::ENTRIES + at * 112 + 10, &status.to_le_bytes());
                },
                Some(Move::Nothing) => {}
            }
            true
        });
        let config = Config { pool_pages: 12, ..Config::default() };
        let begin = w.now();
        let mut disk = xs.by(begin + 5 * MS).run(Disk::open(xs.access(), VBD, config));
        for _ in 0..3 {
            let deadline = w.now() + 5 * MS;
            if let Ok(disk) = &mut disk {
                let d = disk.by(deadline);
                let _ = d.read(0, &mut [0; 8192]);
                let _ = d.write(3, &[0; 4096]);
                let _ = d.flush();
                disk.handle_event();
                let _ = xs.by(deadline).run(disk.refresh());
                let _ = xs.by(deadline).run(disk.reconnect());
            }
            prop_assert!(w.now() <= deadline + 20 * MS);
        }
        if let Ok(disk) = disk {
            let _ = xs.by(w.now() + MS).run(disk.close());
        }
        prop_assert_eq!((w.held(), w.grants(), xs.retired()), (0, 0, 0));
        prop_assert_eq!(w.ports.borrow().len(), 2);
        let _ = State::Unknown;
    }
}
