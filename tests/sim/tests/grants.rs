// SPDX-License-Identifier: MIT OR Apache-2.0
//! Grants between domains: a disk's ring from end to end, and what every operation answers.

use guest_abi::calls::{event, grant, memory};
use guest_abi::grant_table::{
    GnttabCacheFlush, GnttabCopy, GnttabCopyPtr, GnttabMapGrantRef, GnttabSetupTable,
    GnttabUnmapAndReplace, GnttabUnmapGrantRef, GrantEntryV1, GrantStatus, cache, gntcopy, gntmap,
    gtf,
};
use guest_abi::hvm::{HvmOp, HvmParam, Param};
use guest_abi::io::blkif::{self, BlkifRequest, BlkifRequestSegment, BlkifResponse};
use guest_abi::io::ring::{BackRing, FrontRing};
use guest_abi::mem::SharedMem;
use guest_abi::memory::MapSpace;
use guest_abi::{DomId, Errno, Gfn, GrantRef, HypercallNr, arch};
use hv_core::hypercall::Reply;
use hv_core::types::Access;
use sim::{Config, DomU, Guest, WINDOW, World};

const RAM0: u64 = arch::GUEST_RAM0_BASE;
const GNTTAB: u64 = arch::GUEST_GNTTAB_BASE;
const RING: u64 = RAM0 + 0x5000;
const DATA: u64 = RAM0 + 0x6000;
const INFO: u64 = RAM0 + 0x8000;
const HOST: u32 = gntmap::HOST_MAP;

/// A page of a guest as ring memory.
struct Page<'w>(Guest<'w>, u64);

impl SharedMem for Page<'_> {
    fn load32(&self, offset: usize) -> u32 {
        self.0.get(self.1 + offset as u64)
    }
    fn store32(&self, offset: usize, value: u32) {
        self.0.put(self.1 + offset as u64, &value);
    }
    fn fetch_and32(&self, _: usize, _: u32) -> u32 {
        unreachable!("no ring uses it")
    }
    fn fetch_or32(&self, _: usize, _: u32) -> u32 {
        unreachable!("no ring uses it")
    }
    fn compare_exchange32(&self, _: usize, _: u32, _: u32) -> Result<u32, u32> {
        unreachable!("no ring uses it")
    }
    fn read(&self, offset: usize, to: &mut [u8]) {
        assert!(self.0.read(self.1 + offset as u64, to));
    }
    fn write(&self, offset: usize, from: &[u8]) {
        assert!(self.0.write(self.1 + offset as u64, from));
    }
}

fn setup<'w>(w: &'w World, d: &DomU) -> Guest<'w> {
    let g = d.guest(w);
    memory::add_to_physmap(&g, DomId::SELF, MapSpace::GrantTable, 0, Gfn::of(GNTTAB)).unwrap();
    memory::add_to_physmap(&g, DomId::SELF, MapSpace::SharedInfo, 0, Gfn::of(INFO)).unwrap();
    g
}

fn give(g: &Guest<'_>, gref: u32, to: DomId, page: u64, flags: u16) {
    let e = GrantEntryV1 {
        flags: gtf::PERMIT_ACCESS | flags,
        domid: to,
        frame: (page >> 12) as u32,
    };
    g.put(GNTTAB + u64::from(gref) * 8, &e);
}

fn flags(g: &Guest<'_>, gref: u32) -> u16 {
    g.get(GNTTAB + u64::from(gref) * 8)
}

fn map(h: &Guest<'_>, dom: DomId, gref: u32, at: u64, flags: u32) -> GnttabMapGrantRef {
    let mut op = [GnttabMapGrantRef {
        host_addr: at,
        flags,
        gref: GrantRef(gref),
        dom,
        ..Default::default()
    }];
    grant::map(h, &mut op).unwrap();
    op[0]
}

fn unmap(h: &Guest<'_>, handle: u32, at: u64) -> i16 {
    let mut op = [GnttabUnmapGrantRef {
        host_addr: at,
        handle,
        ..Default::default()
    }];
    grant::unmap(h, &mut op).unwrap();
    op[0].status
}

/// Where stage 2 has a page read-only, a call reads its argument there and does not write its reply: the
/// right is looked up, as hardware is not asked for it (QEMU 10.0 ends with an assertion on `AT S12E1W`).
#[test]
fn a_reply_is_not_written_to_a_page_granted_read_only() {
    let w = World::boot(3);
    let (a, b) = (
        w.create(Config::default()).unwrap(),
        w.create(Config::default()).unwrap(),
    );
    let (g, h) = (setup(&w, &a), b.guest(&w));
    give(&g, 8, b.id, DATA, gtf::READONLY);
    give(&g, 9, b.id, RING, 0);
    let at = GNTTAB + 0x1_0000;
    let arg = HvmParam {
        domid: DomId::SELF,
        index: Param::StoreEvtchn.number(),
        value: 0x5a5a,
        ..Default::default()
    };
    g.put(DATA, &arg);
    g.put(RING, &arg);
    let get = |va| {
        let mut x = [HvmOp::GetParam.number(), va, 0, 0, 0];
        match w.slice(b.v, HypercallNr::HvmOp.number(), &mut x) {
            Reply::Done(r) => r,
            Reply::Again => unreachable!("one slice"),
        }
    };
    let r = map(&h, a.id, 8, at, HOST | gntmap::READONLY);
    assert_eq!(r.status, 0);
    let rw = map(&h, a.id, 9, at + 4096, HOST);
    assert_eq!(rw.status, 0);
    assert_eq!(get(at), Errno::EFAULT.to_ret());
    assert_eq!(g.get::<HvmParam>(DATA).value, 0x5a5a, "not written");
    assert_eq!(get(at + 4096), 0, "a page that can be written serves");
    assert_ne!(g.get::<HvmParam>(RING).value, 0x5a5a);
    assert_eq!(unmap(&h, r.handle, at), 0);
    assert_eq!(get(at), Errno::EFAULT.to_ret(), "nothing is there");
    let again = map(&h, a.id, 8, at, HOST | gntmap::READONLY);
    assert_eq!(get(at), Errno::EFAULT.to_ret());
    assert_eq!(unmap(&h, again.handle, at), 0);
    assert_eq!(unmap(&h, rw.handle, at + 4096), 0);
    w.check();
}

#[test]
fn a_disk_request_goes_all_the_way() {
    let w = World::boot(3);
    let h = w.dom0();
    let d = w.create(Config::default()).unwrap();
    let g = setup(&w, &d);
    memory::add_to_physmap(
        &h,
        DomId::SELF,
        MapSpace::SharedInfo,
        0,
        Gfn::of(WINDOW + 0xf000),
    )
    .unwrap();

    // The front end: ring, grant, channel.
    let front_mem = Page(g, RING);
    let mut front: FrontRing<blkif::Slot, BlkifResponse> =
        FrontRing::new(&front_mem, 4096).unwrap();
    give(&g, 8, DomId(0), RING, 0);
    let port = event::alloc_unbound(&g, DomId::SELF, DomId(0)).unwrap();

    // The back end attaches.
    let ring = map(&h, d.id, 8, WINDOW, HOST);
    assert_eq!(ring.status, 0);
    assert_eq!(
        ring.dev_bus_addr >> 12,
        g.mfn(RING >> 12, Access::Read).unwrap()
    );
    let back_mem = Page(h, WINDOW);
    let mut back: BackRing<blkif::Slot, BlkifResponse> = BackRing::attach(&back_mem, 4096).unwrap();
    let back_port = event::bind_interdomain(&h, d.id, port).unwrap();
    let _ = (
        g.take_2l(INFO, port.0),
        h.take_2l(WINDOW + 0xf000, back_port.0),
    );

    for round in 0..100u64 {
        let read = round % 2 == 0;
        give(&g, 9, DomId(0), DATA, if read { 0 } else { gtf::READONLY });
        g.put(DATA, &[round as u8; 4096]);
        let op = if read {
            blkif::Op::Read
        } else {
            blkif::Op::Write
        };
        let mut r = BlkifRequest {
            operation: op.number(),
            nr_segments: 1,
            id: round,
            sector_number: 8,
            ..Default::default()
        };
        r.seg[0] = BlkifRequestSegment {
            gref: GrantRef(9),
            first_sect: 0,
            last_sect: 7,
            _pad: 0,
        };
        assert!(front.push(&front_mem, &r.into()));
        if front.publish(&front_mem) {
            event::send(&g, port).unwrap();
        }
        assert!(h.take_2l(WINDOW + 0xf000, back_port.0));

        let blkif::Request::Direct(r) = back.pop(&back_mem).unwrap().unwrap().decode() else {
            panic!()
        };
        assert!(back.pop(&back_mem).unwrap().is_none());
        let how = if read { HOST } else { HOST | gntmap::READONLY };
        let data = map(&h, d.id, r.seg[0].gref.0, WINDOW + 0x1000, how);
        assert_eq!(data.status, 0);
        assert_ne!(flags(&g, 9) & gtf::READING, 0);
        assert_eq!(flags(&g, 9) & gtf::WRITING != 0, read);
        if read {
            h.put(WINDOW + 0x1000, &[!(round as u8); 4096]);
        } else {
            assert_eq!(h.get::<[u8; 4096]>(WINDOW + 0x1000), [round as u8; 4096]);
            assert!(!h.write(WINDOW + 0x1000, b"x"), "a read-only grant");
        }
        w.check();
        assert_eq!(unmap(&h, data.handle, WINDOW + 0x1000), 0);
        assert!(!h.read(WINDOW + 0x1000, &mut [0]));
        assert_eq!(flags(&g, 9) & (gtf::READING | gtf::WRITING), 0);
        assert!(back.push(
            &back_mem,
            &BlkifResponse::new(r.id, r.operation, blkif::Status::Okay)
        ));
        if back.publish(&back_mem) {
            event::send(&h, back_port).unwrap();
        }
        assert!(!back.final_check(&back_mem).unwrap());

        assert!(g.take_2l(INFO, port.0));
        let answer = front.pop(&front_mem).unwrap().unwrap();
        assert_eq!((answer.id, answer.status), (round, 0));
        assert!(!front.final_check(&front_mem).unwrap());
        if read {
            assert_eq!(g.get::<[u8; 4096]>(DATA), [!(round as u8); 4096]);
        }
    }
    assert_eq!(unmap(&h, ring.handle, WINDOW), 0);
    let page = |at: u64| g.mfn(at >> 12, Access::Read).unwrap();
    assert_eq!((w.refs(page(RING)), w.refs(page(DATA))), (1, 1));
    assert_eq!(w.hv.borrow().grants.pins_outstanding(d.v.slot), 0);
    w.check();
    w.destroy(d.id);
    assert_eq!(w.slot(d.id), None);
}

#[test]
fn a_ballooned_page_stays_with_the_mapper() {
    let w = World::boot(3);
    let h = w.dom0();
    let d = w.create(Config::default()).unwrap();
    let g = setup(&w, &d);
    give(&g, 8, DomId(0), DATA, 0);
    let m = map(&h, d.id, 8, WINDOW, HOST);
    assert_eq!(m.status, 0);
    let mfn = g.mfn(DATA >> 12, Access::Read).unwrap();
    assert_eq!(
        memory::decrease_reservation(&g, DomId::SELF, 0, &[Gfn::of(DATA)]),
        Ok(1)
    );
    w.check();
    assert_eq!(w.refs(mfn), 1);
    h.put(WINDOW, b"still there");
    assert_eq!(
        memory::populate_physmap(&g, DomId::SELF, 0, &[Gfn::of(DATA)]),
        Ok(1)
    );
    assert_eq!(g.get::<[u8; 11]>(DATA), [0; 11]);
    // The reference names another page now: what is pinned is what is mapped.
    let again = map(&h, d.id, 8, WINDOW + 0x1000, HOST);
    assert_eq!(again.status, 0);
    assert_eq!(h.get::<[u8; 5]>(WINDOW + 0x1000), *b"still");
    assert_eq!(unmap(&h, again.handle, WINDOW + 0x1000), 0);
    assert_eq!(unmap(&h, m.handle, WINDOW), 0);
    assert_eq!(w.refs(mfn), 0, "freed");
    assert_eq!(
        map(&h, d.id, 8, WINDOW, HOST).status,
        0,
        "and now it is the new page"
    );
    assert_eq!(h.get::<[u8; 5]>(WINDOW), [0; 5]);
    w.check();
}

#[test]
fn what_is_not_granted_is_not_had() {
    let w = World::boot(3);
    let h = w.dom0();
    let (a, b) = (
        w.create(Config::default()).unwrap(),
        w.create(Config::default()).unwrap(),
    );
    let g = setup(&w, &a);
    let other = setup(&w, &b);
    give(&g, 8, DomId(0), DATA, 0);
    give(&g, 9, DomId(0), DATA, gtf::READONLY);
    give(&g, 10, DomId(0), GNTTAB, 0);
    give(&g, 11, DomId(0), 0x7_0000_0000, 0);
    let status = |s: GrantStatus| s.number();
    let at = WINDOW;
    assert_eq!(
        map(&other, a.id, 8, 0x3a00_0000, HOST).status,
        status(GrantStatus::GeneralError)
    );
    assert_eq!(
        map(&h, a.id, 9, at, HOST).status,
        status(GrantStatus::GeneralError)
    );
    assert_eq!(
        map(&h, a.id, 10, at, HOST).status,
        status(GrantStatus::BadPage)
    );
    assert_eq!(
        map(&h, a.id, 11, at, HOST).status,
        status(GrantStatus::BadPage)
    );
    assert_eq!(
        map(&h, a.id, 12, at, HOST).status,
        status(GrantStatus::GeneralError),
        "not granted"
    );
    assert_eq!(
        map(&h, a.id, 512, at, HOST).status,
        status(GrantStatus::BadGntref)
    );
    assert_eq!(
        map(&h, DomId(99), 8, at, HOST).status,
        status(GrantStatus::BadDomain)
    );
    assert_eq!(
        map(&h, DomId::SELF, 8, at, HOST).status,
        status(GrantStatus::BadDomain)
    );
    assert_eq!(
        map(&h, a.id, 8, w.dom0_base(), HOST).status,
        status(GrantStatus::GeneralError),
        "occupied"
    );
    assert_eq!(
        map(&h, a.id, 8, 1 << 50, HOST).status,
        status(GrantStatus::GeneralError)
    );
    assert_eq!(
        map(&h, a.id, 8, at, 0).status,
        status(GrantStatus::BadGntref)
    );
    for gref in 8..13 {
        assert_eq!(
            flags(&g, gref) & (gtf::READING | gtf::WRITING),
            0,
            "nothing is left in {gref}"
        );
    }
    assert_eq!(unmap(&h, 0, at), status(GrantStatus::BadHandle));
    assert_eq!(unmap(&h, u32::MAX, at), status(GrantStatus::BadHandle));
    let m = map(&h, a.id, 8, at, HOST);
    assert_eq!(
        unmap(&h, m.handle, at + 0x1000),
        status(GrantStatus::GeneralError)
    );
    // Taken away by nothing but its own operation.
    assert_eq!(
        memory::remove_from_physmap(&h, DomId::SELF, Gfn::of(at)),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        memory::decrease_reservation(&h, DomId::SELF, 0, &[Gfn::of(at)]),
        Ok(0)
    );
    let shared = memory::add_to_physmap(&h, DomId::SELF, MapSpace::GrantTable, 0, Gfn::of(at));
    assert_eq!(shared, Err(Errno::EINVAL));
    w.check();
    assert_eq!(unmap(&h, m.handle, at), 0);

    // A granted page is not one's own to grant on.
    give(&g, 8, b.id, DATA, 0);
    let m = map(&other, a.id, 8, 0x3a00_0000, HOST);
    assert_eq!(m.status, 0);
    give(&other, 8, DomId(0), 0x3a00_0000, 0);
    assert_eq!(
        map(&h, b.id, 8, at, HOST).status,
        status(GrantStatus::BadPage)
    );
    w.check();
}

#[test]
fn copies_respect_borders_and_rights() {
    let w = World::boot(3);
    let h = w.dom0();
    let d = w.create(Config::default()).unwrap();
    let g = setup(&w, &d);
    let own = w.dom0_base() + 0x7000;
    h.put(own, b"0123456789");
    give(&g, 8, DomId(0), DATA, 0);
    give(&g, 9, DomId(0), DATA, gtf::READONLY);
    let put = |gref, off, len| GnttabCopy {
        source: GnttabCopyPtr::own(Gfn::of(own), 2),
        dest: GnttabCopyPtr::gref(d.id, GrantRef(gref), off),
        len,
        flags: gntcopy::DEST_GREF,
        ..Default::default()
    };
    let mut ops = [put(8, 100, 5), put(9, 0, 5), put(8, 4095, 2), put(77, 0, 1)];
    grant::copy(&h, &mut ops).unwrap();
    assert_eq!(ops.map(|o| o.status), [0, -1, -10, -1]);
    assert_eq!(g.get::<[u8; 7]>(DATA + 99), *b"\x0023456\0");
    assert_eq!(flags(&g, 8) & (gtf::READING | gtf::WRITING), 0);
    // Out of another domain's frame without a grant: no.
    let mut ops = [GnttabCopy {
        source: GnttabCopyPtr {
            u: DATA >> 12,
            domid: d.id,
            ..Default::default()
        },
        ..put(8, 0, 1)
    }];
    grant::copy(&h, &mut ops).unwrap();
    assert_eq!(ops[0].status, GrantStatus::PermissionDenied.number());
    w.check();
}

#[test]
fn a_long_list_of_copies_may_lie_anywhere() {
    const COUNT: u64 = 70;
    const SIZE: u64 = size_of::<GnttabCopy>() as u64;
    let w = World::boot(3);
    let h = w.dom0();
    let d = w.create(Config::default()).unwrap();
    let g = setup(&w, &d);
    // Some pages of the guest's, also from both sides of a border of 2 MiB.
    let pages = [DATA, RAM0 + 0x1f_f000, RAM0 + 0x20_0000];
    for (gref, page) in (8..).zip(pages) {
        give(&g, gref, DomId(0), page, 0);
    }
    let base = w.dom0_base();
    let source = |k: u64| base + [0x1_0000, 0x20_0000, 0x30_0000][(k % 3) as usize] + k * 16;
    // Elements 20 and 61 cannot be had.
    let element = |k: u64| GnttabCopy {
        source: GnttabCopyPtr::own(
            Gfn::of(if k == 20 { 1 << 50 } else { source(k) }),
            (source(k) & 0xfff) as u16,
        ),
        dest: GnttabCopyPtr::gref(
            d.id,
            GrantRef(if k == 61 { 400 } else { 8 + (k / 3 % 3) as u32 }),
            (k * 8) as u16,
        ),
        len: 8,
        flags: gntcopy::DEST_GREF,
        status: 77,
        ..Default::default()
    };
    // It begins 60 bytes before a page's end: its second element lies in two pages.
    let list = base + 0x8000 - 60;
    for k in 0..COUNT {
        h.put(source(k), &(k + 1).to_ne_bytes());
        h.put(list + k * SIZE, &element(k));
    }
    let copy =
        |at: u64, count: u64| h.raw(HypercallNr::GrantTableOp.number(), [5, at, count, 0, 0]);
    assert_eq!(copy(list, COUNT), 0);
    for k in 0..COUNT {
        let want = match k {
            20 => GrantStatus::BadPage.number(),
            61 => GrantStatus::GeneralError.number(),
            _ => 0,
        };
        let done: GnttabCopy = h.get(list + k * SIZE);
        assert_eq!(done.status, want, "{k}");
        assert_eq!((done.len, done.flags), (8, gntcopy::DEST_GREF), "{k}");
        let page = pages[(k / 3 % 3) as usize];
        let arrived = u64::from_ne_bytes(g.get(page + k * 8));
        assert_eq!(arrived, if want == 0 { k + 1 } else { 0 }, "{k}");
    }
    assert!((8..11).all(|gref| flags(&g, gref) & (gtf::READING | gtf::WRITING) == 0));

    // A list that runs off the end of memory is carried out as far as it goes.
    let mut end = base;
    while h.mfn(end >> 12, Access::Write).is_some() {
        end += 0x1000;
    }
    let list = end - 2 * SIZE;
    for k in 0..2 {
        h.put(list + k * SIZE, &element(k));
    }
    assert_eq!(copy(list, 3), Errno::EFAULT.to_ret());
    for k in 0..2 {
        assert_eq!(h.get::<GnttabCopy>(list + k * SIZE).status, 0, "{k}");
    }
    w.check();
}

#[test]
fn each_operation_answers_as_the_header_says() {
    let w = World::boot(3);
    let d = w.create(Config::default()).unwrap();
    let g = setup(&w, &d);
    let at = RAM0 + 0x3_0000;
    let op =
        |cmd: u64, count: u64| g.raw(HypercallNr::GrantTableOp.number(), [cmd, at, count, 0, 0]);

    // The version in use is told with the error.
    for (version, answer) in [(2u32, -38), (3, -22), (0, -22), (1, 0)] {
        g.put(at, &version);
        assert_eq!(op(8, 1), answer);
        assert_eq!(g.get::<u32>(at), 1);
    }
    // Status frames: version 1 has none.
    for (n, status) in [(0u32, 0i16), (1, -1)] {
        g.put(at, &[0u8; 16]);
        g.put(at, &n);
        g.put(at + 4, &DomId::SELF);
        assert_eq!(op(9, 1), 0);
        assert_eq!(g.get::<i16>(at + 6), status);
    }
    g.put(at + 4, &DomId(0));
    assert_eq!(op(9, 1), 0);
    assert_eq!(g.get::<i16>(at + 6), GrantStatus::PermissionDenied.number());
    assert_eq!(op(9, 2), Errno::EINVAL.to_ret());
    assert_eq!(op(4, 3), Errno::EOPNOTSUPP.to_ret());
    // Replacements: every element has its status.
    g.put(at, &[0u8; 48]);
    assert_eq!(op(7, 2), 0);
    assert!(
        [0, 24]
            .iter()
            .all(|o| g.get::<GnttabUnmapAndReplace>(at + o).status == -4)
    );
    // A frame list that cannot be written.
    let mut s = GnttabSetupTable {
        dom: DomId::SELF,
        nr_frames: 2,
        frame_list: 0x10,
        ..Default::default()
    };
    g.put(at, &s);
    assert_eq!(op(2, 1), 0);
    assert_eq!(
        g.get::<GnttabSetupTable>(at).status,
        GrantStatus::BadVirtAddr.number()
    );
    s = GnttabSetupTable {
        nr_frames: 65,
        frame_list: at + 64,
        ..s
    };
    g.put(at, &s);
    assert_eq!(op(2, 1), 0);
    assert_eq!(
        g.get::<GnttabSetupTable>(at).status,
        GrantStatus::GeneralError.number()
    );
    s = GnttabSetupTable {
        dom: DomId(0),
        nr_frames: 1,
        ..s
    };
    g.put(at, &s);
    assert_eq!(op(2, 1), 0);
    assert_eq!(
        g.get::<GnttabSetupTable>(at).status,
        GrantStatus::PermissionDenied.number()
    );
    // Numbers.
    assert_eq!(op(3, 1), Errno::ENOSYS.to_ret());
    assert_eq!(op(13, 1), Errno::ENOSYS.to_ret());
    assert_eq!(op(0, u64::from(u32::MAX)), Errno::EINVAL.to_ret());
    assert_eq!(
        op(1 << 12, 1),
        Errno::EINVAL.to_ret(),
        "only a cache flush goes on"
    );
    assert_eq!(op(5, 0), 0);
    assert_eq!(op(5, 7 << 32), 0, "the count has 32 bits");
}

#[test]
fn cache_flushes_are_bounded_and_end() {
    let w = World::boot(3);
    let h = w.dom0();
    let d = w.create(Config::default()).unwrap();
    let g = setup(&w, &d);
    // The grant is the last of a large table, and its mapping the last of many: it is found, in slices.
    memory::add_to_physmap(
        &g,
        DomId::SELF,
        MapSpace::GrantTable,
        63,
        Gfn::of(GNTTAB + 63 * 4096),
    )
    .unwrap();
    let last = 64 * 512 - 1;
    let e = GrantEntryV1 {
        flags: gtf::PERMIT_ACCESS,
        domid: DomId(0),
        frame: (DATA >> 12) as u32,
    };
    g.put(GNTTAB + 63 * 4096 + 511 * 8, &e);
    for k in 0..2000 {
        // A reference can have 128 of a kind.
        let gref = 100 + k / 128;
        if k % 128 == 0 {
            give(&g, gref, DomId(0), RING, 0);
        }
        let at = WINDOW + 4096 * (1 + u64::from(k));
        let flags = HOST | gntmap::READONLY;
        assert_eq!(map(&h, d.id, gref, at, flags).status, 0);
    }
    let m = map(&h, d.id, last, WINDOW, HOST);
    assert_eq!(m.status, 0);
    let one = GnttabCacheFlush {
        a: m.dev_bus_addr,
        offset: 16,
        length: 64,
        op: cache::CLEAN,
    };
    let mut ops = [one; 40];
    let before = w.m.maintained.get();
    grant::cache_flush(&h, &mut ops).unwrap();
    let after = w.m.maintained.get();
    assert_eq!((after.0 - before.0, after.1 - before.1), (40, 40 * 64));
    // Nothing to do is no error, whatever the page.
    grant::cache_flush(
        &h,
        &mut [GnttabCacheFlush {
            a: 0,
            offset: 0,
            length: 0,
            op: 0,
        }],
    )
    .unwrap();
    // Its own page, a page that it has no grant of, no page.
    let own = GnttabCacheFlush {
        a: w.dom0_base(),
        op: cache::CLEAN | cache::INVAL,
        ..one
    };
    grant::cache_flush(&h, &mut [own]).unwrap();
    let page = |at: u64| g.mfn(at >> 12, Access::Read).unwrap() << 12;
    let foreign = GnttabCacheFlush {
        a: page(DATA + 0x1000),
        ..one
    };
    assert_eq!(
        grant::cache_flush(&h, &mut [one, foreign]),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        grant::cache_flush(&h, &mut [GnttabCacheFlush { a: 0x1000, ..one }]),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        grant::cache_flush(
            &h,
            &mut [GnttabCacheFlush {
                a: page(INFO),
                ..one
            }]
        ),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        grant::cache_flush(
            &h,
            &mut [GnttabCacheFlush {
                length: 4095,
                ..one
            }]
        ),
        Err(Errno::EINVAL)
    );
    assert_eq!(grant::cache_flush(&g, &mut [own]), Err(Errno::EINVAL));
    // One slice is bounded: the call comes back before it is done.
    let at = w.dom0_base() + 0x7000;
    h.put(at, &one);
    let mut x = [12, at, 1, u64::MAX, u64::MAX];
    assert_eq!(w.slice(h.v, 20, &mut x), hv_core::hypercall::Reply::Again);
}
