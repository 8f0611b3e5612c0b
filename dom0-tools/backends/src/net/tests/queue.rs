// SPDX-License-Identifier: MIT OR Apache-2.0
use super::super::*;
use super::rig::*;
use crate::testmem::Mem;
use guest_abi::io::netif::{
    NetifExtraInfo, NetifRxRequest, NetifRxResponse, NetifTxRequest, NetifTxResponse, netrxf,
    nettxf,
};
use guest_abi::io::ring::{FrontRing, head};
use guest_abi::mem::SharedMem;
use proptest::prelude::*;
use std::rc::Rc;
use zerocopy::{FromBytes, IntoBytes};

type TxFront = FrontRing<NetifTxRequest, NetifTxResponse>;
type RxFront = FrontRing<NetifRxRequest, NetifRxResponse>;

const NOW: u64 = 1_000_000_000;

fn request(gref: u32, offset: u16, size: u16, flags: u16) -> NetifTxRequest {
    NetifTxRequest {
        gref: GrantRef(gref),
        offset,
        flags,
        id: gref as u16 + 100,
        size,
    }
}

struct Sender {
    mem: Mem,
    front: TxFront,
    tx: Tx,
    guest: Guest,
    interface: Interface,
    frames: Vec<Frame>,
}

impl Sender {
    fn new(mtu: u16) -> Self {
        let mem = Mem::new(4096);
        let front = TxFront::new(&mem, 4096).unwrap();
        let limits = Limits {
            mtu,
            ..Limits::default()
        };
        let mut guest = Guest::default();
        for n in 0..8 {
            let page = (0..4096).map(|i| (i * 7 + i / 256 + n as usize) as u8);
            guest.pages.insert(n, page.collect());
        }
        Self {
            tx: Tx::attach(&mem, &limits).unwrap(),
            mem,
            front,
            guest,
            interface: Interface::new(Credit::unlimited()),
            frames: Vec::new(),
        }
    }

    fn send(&mut self, requests: &[NetifTxRequest]) {
        for r in requests {
            assert!(self.front.push(&self.mem, r));
        }
        let _ = self.front.publish(&self.mem);
    }

    fn take(&mut self, budget: usize, now: u64) -> Result<Taken, Fault> {
        self.tx.take(
            &self.mem,
            &mut self.guest,
            &mut self.interface,
            now,
            budget,
            &mut self.frames,
        )
    }

    fn answers(&mut self) -> Vec<(u16, i16)> {
        std::iter::from_fn(|| self.front.pop(&self.mem).unwrap())
            .map(|r| (r.id, r.status))
            .collect()
    }
}

#[test]
fn frames_are_gathered_with_one_call() {
    let mut s = Sender::new(9000);
    s.send(&[
        request(0, 10, 100, 0),
        request(
            1,
            4000,
            96 + 4096 + 50,
            nettxf::MORE_DATA | nettxf::DATA_VALIDATED,
        ),
        request(2, 0, 4096, nettxf::MORE_DATA),
        request(3, 7, 50, 0),
    ]);
    let taken = s.take(64, NOW).unwrap();
    assert!(taken.notify && !taken.more && taken.dropped == 0);
    assert_eq!(s.guest.calls, 1);
    assert_eq!(s.answers(), [(100, 0), (101, 0), (102, 0), (103, 0)]);
    assert_eq!(s.frames[0].bytes(), &s.guest.pages[&0][10..110]);
    assert_eq!(s.frames[1].checksum(), Checksum::Validated);
    let whole = [
        &s.guest.pages[&1][4000..],
        &s.guest.pages[&2][..],
        &s.guest.pages[&3][7..57],
    ];
    assert_eq!(s.frames[1].bytes(), whole.concat());
}

#[test]
fn xsa_448_parts_of_no_bytes() {
    let more = nettxf::MORE_DATA;
    let mut s = Sender::new(1500);
    // At the end, in the midst, before all that there is, and nothing but such.
    s.send(&[request(0, 0, 60, more), request(1, 4096, 0, 0)]);
    s.send(&[
        request(0, 0, 60, more),
        request(77, 0, 0, more),
        request(1, 9, 20, 0),
    ]);
    s.send(&[request(77, 4096, 60, more), request(1, 0, 60, 0)]);
    s.send(&[request(0, 0, 0, more), request(1, 0, 0, 0)]);
    assert_eq!(s.take(64, NOW).unwrap().dropped, 1);
    let page = |n| &s.guest.pages[&n];
    let expected = [
        page(0)[..60].to_vec(),
        [&page(0)[..40], &page(1)[9..29]].concat(),
        page(1)[..60].to_vec(),
    ];
    assert_eq!(
        s.frames.iter().map(Frame::bytes).collect::<Vec<_>>(),
        expected
    );
    let statuses: Vec<i16> = s.answers().iter().map(|a| a.1).collect();
    assert_eq!(statuses, [0, 0, 0, 0, 0, 0, 0, -1, -1]);
}

/// Headers that come a byte at a time lie in one piece in what goes on, also where frames between them are dropped.
#[test]
fn xsa_423_424_headers_in_small_parts() {
    let more = nettxf::MORE_DATA;
    let mut s = Sender::new(1500);
    let mut parts = vec![request(0, 0, 60, more)];
    parts.extend((0..16).map(|n| request(1, n, 1, more)));
    parts.push(request(2, 100, 1, 0));
    s.send(&parts);
    // Too short for an Ethernet header, then a good one.
    s.send(&[request(0, 0, 13, 0), request(0, 0, 60, 0)]);
    assert_eq!(s.take(64, NOW).unwrap().dropped, 1);
    let page = |n| &s.guest.pages[&n];
    let whole = [&page(0)[..43], &page(1)[..16], &page(2)[100..101]].concat();
    let frames: Vec<_> = s.frames.iter().map(Frame::bytes).collect();
    assert_eq!(frames, [whole, page(0)[..60].to_vec()]);
    let answers = s.answers();
    assert_eq!(answers.len(), 20);
    assert_eq!(answers.iter().filter(|a| a.1 != 0).count(), 1);
}

#[test]
fn budget_and_credit_hold_packets_back() {
    let mut s = Sender::new(1500);
    s.send(&[request(0, 0, 100, 0); 5]);
    let taken = s.take(2, NOW).unwrap();
    assert_eq!((taken.more, s.frames.len()), (true, 2));
    s.interface.credit = Credit::new(150, 1000);
    let taken = s.take(64, NOW).unwrap();
    assert_eq!((s.frames.len(), taken.until), (4, Some(NOW + 1_000_000)));
    assert_eq!(s.answers().len(), 4);
    // It is kept until there is credit, and only then answered.
    assert_eq!(s.take(64, NOW + 5).unwrap().until, Some(NOW + 1_000_000));
    assert!(s.answers().is_empty());
    let taken = s.take(64, NOW + 1_000_000).unwrap();
    assert_eq!((s.frames.len(), taken.until), (5, None));
    assert_eq!(s.answers().len(), 1);
}

#[test]
fn packets_that_are_not_sent() {
    let gso = NetifExtraInfo::gso(1448, 1, 0).to_tx();
    for requests in [
        vec![request(0, 0, 13, 0)],
        vec![request(0, 0, 1519, 0)],
        vec![request(0, 0, 50, nettxf::MORE_DATA), request(1, 0, 60, 0)],
        vec![request(77, 0, 60, 0)],
        vec![request(0, 0, 60, nettxf::MORE_DATA), request(77, 0, 20, 0)],
        // Not IP, so there is no checksum to fill in.
        vec![request(0, 0, 60, nettxf::CSUM_BLANK)],
        vec![request(0, 0, 60, nettxf::EXTRA_INFO), gso],
    ] {
        let mut s = Sender::new(1500);
        s.send(&requests);
        assert_eq!(s.take(64, NOW).unwrap().dropped, 1);
        assert!(s.frames.is_empty());
        let answers = s.answers();
        assert_eq!(answers.len(), requests.len(), "{requests:?}");
        assert_eq!(answers[0], (requests[0].id, -1));
        // The queue goes on.
        s.send(&[request(1, 0, 60, 0)]);
        assert_eq!(s.take(64, NOW).unwrap().dropped, 0);
        assert_eq!((s.frames.len(), s.answers()), (1, vec![(101, 0)]));
    }
}

#[test]
fn extra_information_is_no_part() {
    let mut s = Sender::new(1500);
    let first = request(0, 0, 60, nettxf::EXTRA_INFO | nettxf::MORE_DATA);
    let hash = NetifExtraInfo::hash(1, 1, [1; 4], 0).to_tx();
    s.send(&[first, hash, request(1, 0, 20, 0)]);
    assert_eq!(s.take(64, NOW).unwrap().dropped, 0);
    assert_eq!(s.answers(), [(100, 0), (0, 1), (101, 0)]);
    let whole = [&s.guest.pages[&0][..40], &s.guest.pages[&1][..20]];
    assert_eq!(s.frames[0].bytes(), whole.concat());
}

#[test]
fn requests_say_which_multicast_frames_are_wanted() {
    const EXTRA: u16 = nettxf::EXTRA_INFO;
    let group = |n: u8| [1, 0, 0x5e, 0, 0, n];
    let mcast = |add, n| NetifExtraInfo::mcast(add, group(n));
    let asks = |info: NetifExtraInfo| [request(9, 0, 0, EXTRA), info.to_tx()];
    let gets = |s: &Sender, n: u8| s.interface.groups.allow(&group(n));
    let mut s = Sender::new(1500);
    // Before control is requested, it changes nothing.
    s.send(&asks(mcast(true, 1)));
    let taken = s.take(64, NOW).unwrap();
    assert!(taken.notify && taken.dropped == 0);
    assert_eq!(s.answers(), [(109, 0), (0, 1)]);
    assert!(gets(&s, 1) && gets(&s, 2));
    s.interface.groups.control = true;
    assert!(gets(&s, 1) && !gets(&s, 2));
    // One that is not there is taken away; what goes before and after is sent all the same.
    s.send(&[request(0, 0, 60, 0)]);
    s.send(&asks(mcast(false, 3)));
    s.send(&asks(mcast(false, 1)));
    s.send(&[request(1, 0, 60, 0)]);
    assert_eq!(s.take(64, NOW).unwrap().dropped, 0);
    assert_eq!(
        s.answers(),
        [(100, 0), (109, 0), (0, 1), (109, 0), (0, 1), (101, 0)]
    );
    assert_eq!((s.frames.len(), s.guest.calls), (2, 1));
    assert!(!gets(&s, 1));
    // Several with one request, an address that is no group's, and fields that make no sense.
    let more = |mut info: NetifExtraInfo| {
        info.flags = 1;
        info.to_tx()
    };
    let odd = nettxf::CSUM_BLANK | nettxf::MORE_DATA | EXTRA;
    s.send(&[
        request(9, 5000, 9000, odd),
        more(mcast(true, 4)),
        more(NetifExtraInfo::mcast(true, [2, 0, 0, 0, 0, 1])),
        more(NetifExtraInfo::hash(1, 1, [1; 4], 0)),
        more(mcast(true, 5)),
        mcast(false, 4).to_tx(),
        request(2, 0, 60, 0),
    ]);
    assert_eq!(s.take(64, NOW).unwrap().dropped, 0);
    let null = (0, 1);
    let answers = [(109, 0), null, null, null, null, null, (102, 0)];
    assert_eq!(s.answers(), answers);
    assert_eq!(s.frames.len(), 3);
    assert!(gets(&s, 5) && !gets(&s, 4));
    // As many as there may be, and no more.
    for n in 0..62 {
        s.send(&asks(mcast(true, 100 + n)));
    }
    assert_eq!(s.take(64, NOW).unwrap().dropped, 0);
    s.answers();
    s.send(&asks(mcast(true, 99)));
    s.send(&asks(mcast(false, 100)));
    s.send(&asks(mcast(true, 98)));
    assert_eq!(s.take(64, NOW).unwrap().dropped, 0);
    assert_eq!(
        s.answers(),
        [(109, -1), null, (109, 0), null, (109, 0), null]
    );
    assert!(!gets(&s, 99) && !gets(&s, 100) && gets(&s, 98) && gets(&s, 161));
    // Without its end, it is a breach like any other.
    s.send(&[request(9, 0, 0, EXTRA), more(mcast(true, 1))]);
    assert_eq!(s.take(64, NOW), Err(Fault::Incomplete));
}

#[test]
fn a_packet_that_is_to_be_split_is_one_frame() {
    let mut s = Sender::new(1500);
    let frame = ipv4_tcp(&[5; 8000], 0x18);
    for (n, part) in (0..).zip(frame.chunks(4096)) {
        let page = s.guest.pages.get_mut(&n).unwrap();
        page[..part.len()].copy_from_slice(part);
    }
    let more = nettxf::MORE_DATA;
    let first = request(0, 0, frame.len() as u16, more | nettxf::EXTRA_INFO);
    let split = NetifExtraInfo::gso(1448, 1, 0).to_tx();
    s.send(&[first, split, request(1, 0, 3962, 0)]);
    assert_eq!(frame.len(), 4096 + 3962);
    assert_eq!(s.take(64, NOW).unwrap().dropped, 0);
    assert_eq!(s.answers(), [(100, 0), (0, 1), (101, 0)]);
    assert_eq!(s.frames[0].split(), Some(1448));
    assert_eq!(s.frames[0].bytes()[58..], [5; 8000]);
    // Its segments would not fit the wire.
    s.send(&[
        first,
        NetifExtraInfo::gso(1500, 1, 0).to_tx(),
        request(1, 0, 3962, 0),
    ]);
    assert_eq!(s.take(64, NOW).unwrap().dropped, 1);
    assert_eq!(s.answers(), [(100, -1), (0, 1), (101, -1)]);
}

// Among them those of XSA-39 and XSA-432.
#[test]
fn breaches_of_the_protocol_end_the_queue() {
    let cross = |offset, size| Fault::CrossPage { offset, size };
    let more = nettxf::MORE_DATA;
    let odd = |kind| {
        let mut e = NetifExtraInfo::gso(1, 1, 1);
        e.kind = kind;
        e.to_tx()
    };
    let split = |size, kind| NetifExtraInfo::gso(size, kind, 0).to_tx();
    let mut endless = vec![request(0, 0, 2000, more)];
    endless.extend(vec![request(1, 0, 1, more); 30]);
    let extras = vec![NetifExtraInfo::hash(0, 0, [0; 4], 1).to_tx(); 30];
    for (requests, fault) in [
        (vec![request(0, 4000, 97, 0)], cross(4000, 97)),
        (vec![request(0, 65535, 14, 0)], cross(65535, 14)),
        (
            vec![request(0, 0, 100, more), request(1, 4095, 2, 0)],
            cross(4095, 2),
        ),
        (
            vec![request(0, 0, 5000, more), request(1, 0, 14, 0)],
            cross(0, 4986),
        ),
        (vec![request(0, 0, 100, more)], Fault::Incomplete),
        (
            vec![request(0, 0, 100, nettxf::EXTRA_INFO)],
            Fault::Incomplete,
        ),
        (endless, Fault::Endless),
        (
            [vec![request(0, 0, 60, nettxf::EXTRA_INFO)], extras].concat(),
            Fault::Endless,
        ),
        (
            vec![request(0, 0, 60, nettxf::EXTRA_INFO), odd(0)],
            Fault::Extra(0),
        ),
        (
            vec![request(0, 0, 60, nettxf::EXTRA_INFO), odd(9)],
            Fault::Extra(9),
        ),
        (
            vec![request(0, 0, 60, nettxf::EXTRA_INFO), split(0, 1)],
            Fault::Split { size: 0, kind: 1 },
        ),
        (
            vec![request(0, 0, 60, nettxf::EXTRA_INFO), split(1448, 3)],
            Fault::Split {
                size: 1448,
                kind: 3,
            },
        ),
    ] {
        let mut s = Sender::new(1500);
        s.send(&requests);
        assert_eq!(s.take(64, NOW), Err(fault));
        assert!(!fault.to_string().is_empty());
        s.send(&[request(1, 0, 60, 0)]);
        assert_eq!(s.take(64, NOW), Ok(Taken::default()));
        assert!(s.frames.is_empty() && s.guest.calls == 0);
    }
    let mut s = Sender::new(1500);
    s.mem.store32(head::REQ_PROD, 257);
    assert!(matches!(s.take(64, NOW), Err(Fault::Ring(_))));
}

struct Receiver {
    mem: Mem,
    front: RxFront,
    rx: Rx,
    guest: Guest,
}

const CONFIG: FrontConfig = FrontConfig {
    scatter_gather: true,
    blank_ipv4: true,
    blank_ipv6: false,
    split_ipv4: true,
    split_ipv6: false,
    queues: Vec::new(),
};

impl Receiver {
    fn new(config: &FrontConfig) -> Self {
        let mem = Mem::new(4096);
        let front = RxFront::new(&mem, 4096).unwrap();
        Self {
            rx: Rx::attach(&mem, config, Waiting::default()).unwrap(),
            mem,
            front,
            guest: Guest::default(),
        }
    }

    fn post(&mut self, grefs: impl IntoIterator<Item = u32>) -> bool {
        for gref in grefs {
            self.guest.pages.insert(gref, vec![0; 4096]);
            let request = NetifRxRequest {
                id: gref as u16 + 50,
                pad: 0,
                gref: GrantRef(gref),
            };
            assert!(self.front.push(&self.mem, &request));
        }
        self.front.publish(&self.mem)
    }

    fn queue(&mut self, bytes: Vec<u8>, checksum: Checksum) -> bool {
        self.rx.queue(Rc::new(Frame::new(bytes, checksum).unwrap()))
    }

    fn flush(&mut self) -> bool {
        self.rx.flush(&self.mem, &mut self.guest).unwrap()
    }

    fn answers(&mut self) -> Vec<NetifRxResponse> {
        std::iter::from_fn(|| self.front.pop(&self.mem).unwrap()).collect()
    }
}

fn answer(id: u16, flags: u16, status: i16) -> NetifRxResponse {
    NetifRxResponse {
        id,
        offset: 0,
        flags,
        status,
    }
}

#[test]
fn frames_are_put_into_posted_pages() {
    let mut r = Receiver::new(&CONFIG);
    r.post(1..6);
    let long: Vec<u8> = (0..9000).map(|i| (i / 3) as u8).collect();
    assert!(r.queue(vec![7; 60], Checksum::Validated));
    assert!(r.queue(long.clone(), Checksum::Present));
    assert!(r.flush());
    assert_eq!(r.guest.calls, 1);
    let validated = netrxf::DATA_VALIDATED;
    assert_eq!(
        r.answers(),
        [
            answer(51, validated, 60),
            answer(52, netrxf::MORE_DATA, 4096),
            answer(53, netrxf::MORE_DATA, 4096),
            answer(54, 0, 808),
        ]
    );
    assert_eq!(r.guest.pages[&1][..60], [7; 60]);
    let parts = [2, 3, 4].map(|n| r.guest.pages[&n].clone()).concat();
    assert_eq!(parts[..9000], long);
    // Nothing to do, nothing to tell.
    assert!(!r.flush());
}

#[test]
fn frames_wait_for_pages_and_an_event_tells() {
    let mut r = Receiver::new(&CONFIG);
    r.post([1]);
    assert!(r.queue(vec![1; 5000], Checksum::Present));
    assert!(!r.flush());
    // One more is what it needs.
    assert!(r.post([2]), "the front end does not send an event");
    assert!(r.flush());
    assert_eq!(r.answers().len(), 2);
    // No more waits than may; what comes then is dropped.
    let took = (0..1000)
        .filter(|_| r.queue(vec![1; 60], Checksum::Present))
        .count();
    assert_eq!(took, 256);
    let mut r = Receiver::new(&CONFIG);
    let took = (0..1000)
        .filter(|_| r.queue(vec![1; 60_000], Checksum::Present))
        .count();
    assert_eq!(took, 8);
}

#[test]
fn receivers_get_what_they_can_take() {
    let mut r = Receiver::new(&CONFIG);
    r.post(1..6);
    assert!(r.queue(ipv4_udp(&[1; 40]), Checksum::Blank));
    assert!(r.queue(ipv6_tcp(&[1; 40]), Checksum::Blank));
    r.flush();
    let blank = netrxf::CSUM_BLANK | netrxf::DATA_VALIDATED;
    let n = (
        ipv4_udp(&[1; 40]).len() as i16,
        ipv6_tcp(&[1; 40]).len() as i16,
    );
    assert_eq!(r.answers(), [answer(51, blank, n.0), answer(52, 0, n.1)]);
    assert_eq!(r.guest.pages[&1][40..42], [0x77, 0x66]);
    let done = Frame::new(ipv6_tcp(&[1; 40]), Checksum::Blank)
        .unwrap()
        .completed()
        .unwrap();
    assert_eq!(r.guest.pages[&2][..done.len()], done);
    // A page that is not granted is an error of that part alone.
    r.guest.pages.remove(&3);
    r.queue(vec![1; 60], Checksum::Present);
    r.queue(vec![1; 60], Checksum::Present);
    r.flush();
    assert_eq!(r.answers(), [answer(53, 0, -1), answer(54, 0, 60)]);
    // Without scatter-gather, no more than a page.
    let mut r = Receiver::new(&FrontConfig {
        scatter_gather: false,
        ..CONFIG
    });
    assert!(r.queue(vec![1; 4096], Checksum::Present));
    assert!(!r.queue(vec![1; 4097], Checksum::Present));
}

#[test]
fn a_frame_that_is_to_be_split_goes_whole_or_in_segments() {
    let frame = ipv4_tcp(&[9; 5000], 0x18);
    let large = |f: &[u8], v6| {
        let size = if v6 { 1440 } else { 1448 };
        Rc::new(Frame::large(f.to_vec(), size, v6, 1518).unwrap())
    };
    let mut r = Receiver::new(&CONFIG);
    r.post(1..3);
    assert!(r.rx.queue(large(&frame, false)));
    // Two pages of data, and one entry that says how.
    assert!(!r.flush());
    assert!(r.post([3]));
    assert!(r.flush());
    let flags = netrxf::CSUM_BLANK | netrxf::DATA_VALIDATED | netrxf::EXTRA_INFO;
    let info = NetifExtraInfo::gso(1448, 1, 0).to_rx();
    assert_eq!(
        r.answers(),
        [
            answer(51, flags | netrxf::MORE_DATA, 4096),
            info,
            answer(53, 0, 962)
        ]
    );
    let whole = [r.guest.pages[&1].clone(), r.guest.pages[&3].clone()].concat();
    assert_eq!(whole[58..5058], [9; 5000]);
    // One that fits a page has its extra entry all the same.
    r.post(4..6);
    assert!(r.rx.queue(large(&ipv4_tcp(&[8; 3000], 0), false)));
    r.flush();
    assert_eq!(r.answers(), [answer(54, flags, 3058), info]);
    // This guest takes no such frame of IPv6.
    let mut r = Receiver::new(&CONFIG);
    r.post(1..9);
    let frame = ipv6_tcp(&[9; 3000]);
    assert!(r.rx.queue(large(&frame, true)));
    assert_eq!(r.rx.waiting(), 3);
    assert!(r.flush());
    let n = [74 + 1440, 74 + 1440, 74 + 120];
    assert_eq!(
        r.answers(),
        [0, 1, 2].map(|i| answer(51 + i as u16, 0, n[i]))
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever a guest writes and whenever: nothing panics, and every request taken is answered once,
    /// in its own place.
    #[test]
    fn hostile_sender(
        start: u32,
        acts in prop::collection::vec(
            (0usize..256, prop::collection::vec(any::<u8>(), 12), any::<bool>(), 0u32..40, 0usize..40), 1..60),
        wild in 0u32..60,
        split in 0u32..60,
        size in 0u16..1600,
    ) {
        let mem = Mem::new(4096);
        mem.store32(head::REQ_PROD, start);
        mem.store32(head::RSP_PROD, start);
        let mut tx = Tx::attach(&mem, &Limits::default()).unwrap();
        let mut guest = Guest::default();
        guest.pages.insert(3, vec![8; 4096]);
        guest.pages.insert(4, ipv4_tcp(&[8; 4096 - 58], 0x10));
        let mut interface = Interface::new(Credit::new(3000, 10));
        let (mut prod, mut now) = (start, NOW);
        for (n, (slot, bytes, nice, more, budget)) in acts.into_iter().enumerate() {
            for i in 0..=more {
                let mut r = NetifTxRequest::read_from_bytes(&bytes).unwrap();
                if nice {
                    r = request(3, r.offset % 4090, r.size % 1600, r.flags & 7 & !(i as u16));
                }
                if n == split as usize {
                    r = match i % 2 {
                        0 => request(4, 0, 4096, nettxf::EXTRA_INFO),
                        _ if size < 800 => NetifExtraInfo::gso(size, 1, 0).to_tx(),
                        _ => NetifExtraInfo::mcast(size < 1200, [1; 6]).to_tx(),
                    };
                }
                mem.write(64 + (slot + i as usize) % 256 * 12, r.as_bytes());
            }
            prod = prod.wrapping_add(if n == wild as usize { 5000 } else { more });
            mem.store32(head::REQ_PROD, prod);
            let mut frames = Vec::new();
            let before = mem.load32(head::RSP_PROD);
            let taken = tx.take(&mem, &mut guest, &mut interface, now, budget, &mut frames);
            prop_assert!(frames.len() <= budget);
            let answered = mem.load32(head::RSP_PROD).wrapping_sub(before);
            prop_assert!(answered <= 256 && answered as usize >= frames.len());
            for f in &frames {
                let most = match f.split() {
                    Some(_) => f.segments().map(|s| s.bytes().len()).max().unwrap(),
                    None => f.bytes().len(),
                };
                prop_assert!((HEADER..=1518).contains(&most));
            }
            match taken {
                Err(_) => {
                    prop_assert!(frames.is_empty() && answered == 0);
                    prop_assert_eq!(
                        tx.take(&mem, &mut guest, &mut interface, now, 9, &mut frames),
                        Ok(Taken::default())
                    );
                    break;
                }
                Ok(t) if t.until.is_none() && !t.more => {
                    prop_assert_eq!(mem.load32(head::RSP_PROD), prod);
                }
                Ok(_) => {}
            }
            now += 7_000;
        }
    }

    #[test]
    fn hostile_receiver(
        start: u32,
        acts in prop::collection::vec((prop::collection::vec(any::<u8>(), 8), 0u32..300, 14usize..9000), 1..40),
    ) {
        let mem = Mem::new(4096);
        mem.store32(head::REQ_PROD, start);
        mem.store32(head::RSP_PROD, start);
        let mut rx = Rx::attach(&mem, &CONFIG, Waiting::default()).unwrap();
        let mut guest = Guest::default();
        guest.pages.insert(3, vec![8; 4096]);
        let mut prod = start;
        for (bytes, more, len) in acts {
            for slot in 0..256 {
                mem.write(64 + slot * 8, &bytes);
            }
            prod = prod.wrapping_add(more % 5);
            mem.store32(head::REQ_PROD, prod.wrapping_add(more / 290 * 1000));
            let _ = rx.queue(Rc::new(Frame::new(vec![1; len], Checksum::Present).unwrap()));
            let before = mem.load32(head::RSP_PROD);
            let flushed = rx.flush(&mem, &mut guest);
            let answered = mem.load32(head::RSP_PROD).wrapping_sub(before);
            prop_assert!(answered <= 256);
            if flushed.is_err() {
                prop_assert_eq!((answered, rx.waiting()), (0, 0));
                break;
            }
            prop_assert!(prod.wrapping_sub(mem.load32(head::RSP_PROD)) <= 256 + 40 * 5);
        }
    }
}
