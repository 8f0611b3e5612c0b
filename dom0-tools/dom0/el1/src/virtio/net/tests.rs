// SPDX-License-Identifier: MIT OR Apache-2.0
use super::super::fake::{Device, Fake, device};
use super::*;
use proptest::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;
use std::vec;
use virtio_drivers::Error;

const ADDRESS: [u8; 6] = [0x52, 0x54, 0, 0, 0, 7];
const CSUM: u64 = 1;

/// Address, status, pairs of queues, MTU.
fn config(mtu: u16) -> Vec<u8> {
    let [low, high] = mtu.to_le_bytes();
    [&ADDRESS[..], &[1, 0, 1, 0, low, high]].concat()
}

fn start(offered: u64, choose: u64) -> (Rc<RefCell<Device>>, Card<Fake>) {
    let (device, transport) = device(MAC | STATUS | VERSION_1 | offered, &config(1500));
    let card = Card::start(transport, |_| choose).unwrap();
    (device, card)
}

/// A header that says how many buffers there are, and bytes.
fn frame(buffers: u16, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[0] = 0x5a;
    bytes[BUFFERS..].copy_from_slice(&buffers.to_le_bytes());
    bytes.extend((0..len).map(|i| (i % 251) as u8));
    bytes
}

/// The card receives bytes: it writes them to as many buffers as it takes.
fn arrive(device: &RefCell<Device>, bytes: &[u8], part: usize) {
    let mut device = device.borrow_mut();
    for bytes in bytes.chunks(part) {
        let token = device.fill(RECEIVE, bytes).unwrap();
        device.give(RECEIVE, token.into(), bytes.len() as u32);
    }
}

#[test]
fn only_what_is_offered_is_used() {
    let (device, card) = start(CSUM, CSUM | MRG_RXBUF);
    assert_eq!(device.borrow().accepted, MAC | STATUS | VERSION_1 | CSUM);
    assert_eq!(card.features(), MAC | STATUS | VERSION_1 | CSUM);
    assert_eq!((card.mac(), card.link()), (Some(ADDRESS), true));
    drop(card);
    assert_eq!(device.borrow().status, 0);
    // And no more of it than what was chosen.
    let (device, card) = start(!0, MRG_RXBUF);
    assert_eq!(card.features(), MTU | MAC | STATUS | VERSION_1 | MRG_RXBUF);
    assert_eq!(device.borrow().accepted, card.features());
}

#[test]
fn cards_that_cannot_be_used() {
    let (_, transport) = device(MAC, &config(1500));
    let fault = Card::start(transport, |_| 0).err();
    assert_eq!(fault, Some(Fault::Legacy));
    let (device, transport) = device(VERSION_1, &ADDRESS[..3]);
    let fault = Card::start(transport, |_| 0).err();
    assert_eq!(fault, Some(Fault::Setup(Error::ConfigSpaceTooSmall)));
    assert_eq!(device.borrow().status, 0);
}

#[test]
fn mtus() {
    for (told, used) in [
        (0, 1500),
        (1499, 1500),
        (1501, 1501),
        (9000, 9000),
        (9001, 1500),
    ] {
        let (_, transport) = device(VERSION_1 | MTU, &config(told));
        let card = Card::start(transport, |_| 0).unwrap();
        assert_eq!(card.max_frame(), used + FRAME_EXTRA);
    }
}

/// Long enough for the queues' indices to come round, where that does not take all day.
#[test]
fn frames_both_ways() {
    let (device, mut card) = start(0, 0);
    for n in 0..if cfg!(miri) { 70 } else { 70_000_usize } {
        let bytes = frame(0, 14 + n % 64);
        arrive(&device, &bytes, 4096);
        let got = card.receive().unwrap().unwrap();
        assert_eq!([&got.header[..], &got.bytes].concat(), bytes);
        assert!(card.receive().unwrap().is_none());

        assert!(card.has_room().unwrap());
        let (header, bytes) = bytes.split_first_chunk().unwrap();
        assert!(card.send(*header, bytes.to_vec()));
        let sent = device.borrow_mut().read(SEND).unwrap();
        assert_eq!(sent, [header, bytes].concat());
    }
    assert!(!card.send([0; HEADER], Vec::new()));
    assert!(!card.send([0; HEADER], vec![0; card.max_frame() + 1]));
    let mut large = [0; HEADER];
    large[1] = 1;
    assert!(card.send(large, vec![0; LARGE]));
    assert!(!card.send(large, vec![0; LARGE + 1]));
}

#[test]
fn what_is_sent_waits_for_the_card() {
    let (device, mut card) = start(0, 0);
    let mut sent = 0;
    while card.has_room().unwrap() {
        assert!(card.send([0; HEADER], vec![sent; 60]));
        sent += 1;
    }
    assert_eq!(usize::from(sent), QUEUE / 2);
    assert!(!card.send([0; HEADER], vec![0; 60]));
    assert_eq!(device.borrow_mut().read(SEND).unwrap()[HEADER..], [0; 60]);
    assert!(card.has_room().unwrap());
}

#[test]
#[cfg_attr(miri, ignore = "moves a hundred thousand bytes one by one")]
fn frames_in_several_buffers() {
    let (device, mut card) = start(MRG_RXBUF, MRG_RXBUF);
    for len in [0, 1, 4084, 4085, 9000, LARGE - 1, LARGE] {
        let buffers = (HEADER + len).div_ceil(PART);
        let bytes = frame(buffers as u16, len);
        arrive(&device, &bytes, PART);
        let got = card.receive().unwrap().unwrap();
        assert_eq!((&got.header[..], &got.bytes[..]), bytes.split_at(HEADER));
        assert!(card.receive().unwrap().is_none());
    }
    // The second half comes later.
    let bytes = frame(4, 15_000);
    arrive(&device, &bytes[..2 * PART], PART);
    assert!(card.receive().unwrap().is_none());
    arrive(&device, &bytes[2 * PART..], PART);
    assert_eq!(card.receive().unwrap().unwrap().bytes, bytes[HEADER..]);
    // One that is too long is none, and the next is whole.
    let long = frame(18, 18 * PART - HEADER);
    let last = frame(1, 100);
    arrive(&device, &[&long[..], &last].concat(), PART);
    assert!(card.receive().unwrap().unwrap().bytes.is_empty());
    assert_eq!(card.receive().unwrap().unwrap().bytes, last[HEADER..]);
    assert!(card.receive().unwrap().is_none());
}

/// What the card does wrong, and what is said of it. It is reset then.
#[test]
fn a_card_that_misbehaves() {
    type Wrong = fn(&mut Device);
    let cases: [(Wrong, Fault); 11] = [
        (
            |d| d.give(RECEIVE, QUEUE as u32, 60),
            Fault::NotIts(QUEUE as u16),
        ),
        (|d| d.give(RECEIVE, 0xffff_ffff, 60), Fault::NotIts(0xffff)),
        // As many bytes as the buffer has, and one more.
        (
            |d| d.give(RECEIVE, 5, PART as u32 + 1),
            Fault::Length(PART as u32 + 1),
        ),
        (|d| d.give(RECEIVE, 5, u32::MAX), Fault::Length(u32::MAX)),
        (|d| d.give(RECEIVE, 5, 11), Fault::Length(11)),
        (|d| d.give(RECEIVE, 5, 0), Fault::Length(0)),
        // Nothing was written.
        (|d| d.give(RECEIVE, 5, 60), Fault::Buffers(0)),
        (
            |d| {
                let token = d.fill(RECEIVE, &frame(QUEUE as u16 + 1, 60)).unwrap();
                d.give(RECEIVE, token.into(), 72);
            },
            Fault::Buffers(QUEUE as u16 + 1),
        ),
        (
            |d| {
                d.status |= 64;
                d.interrupt = 2;
            },
            Fault::Stuck,
        ),
        // It never had anything to send.
        (|d| d.give(SEND, 0, 0), Fault::NotIts(0)),
        (|d| d.jump(SEND, 40_000), Fault::NotIts(0)),
    ];
    for (wrong, fault) in cases {
        let (device, mut card) = start(MRG_RXBUF, MRG_RXBUF);
        wrong(&mut device.borrow_mut());
        card.acknowledge();
        let told = match card.receive() {
            Ok(None) => card.has_room().err(),
            received => received.map(|_| ()).err(),
        };
        assert_eq!(told, Some(fault));
        drop(card);
        assert_eq!(device.borrow().status, 0);
    }
}

#[test]
fn a_buffer_comes_back_twice() {
    let (device, mut card) = start(0, 0);
    let used = |len| {
        let token = device.borrow_mut().fill(RECEIVE, &frame(0, len)).unwrap();
        device
            .borrow_mut()
            .give(RECEIVE, token.into(), (HEADER + len) as u32);
        token
    };
    let token = used(60);
    // The buffer is posted again, with the same token: that it comes back without having been looked at is no fault.
    assert_eq!(card.receive().unwrap().unwrap().bytes.len(), 60);
    device.borrow_mut().give(RECEIVE, token.into(), 72);
    assert_eq!(card.receive().unwrap().unwrap().bytes.len(), 60);
    // What is sent is given once.
    assert!(card.send([0; HEADER], vec![0; 60]));
    device.borrow_mut().give(SEND, 0, 0);
    assert_eq!(card.has_room(), Ok(true));
    device.borrow_mut().give(SEND, 0, 0);
    assert_eq!(card.has_room(), Err(Fault::NotIts(0)));
}

#[test]
fn the_link_is_followed() {
    let (device, mut card) = start(0, 0);
    for up in [false, true] {
        device.borrow_mut().config[6] = up.into();
        // Another interrupt says nothing of it.
        device.borrow_mut().interrupt = 1;
        card.acknowledge();
        assert_eq!(card.link(), !up);
        device.borrow_mut().interrupt = 2;
        card.acknowledge();
        assert_eq!(card.link(), up);
    }
}

/// One thing that a card does, right or wrong.
#[derive(Clone, Debug)]
enum Act {
    Receive { buffers: u16, len: usize },
    Give { queue: u16, token: u32, len: u32 },
    Jump { queue: u16, by: u16 },
    Sent,
    Interrupt { what: u32, status: u32 },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (0..20_u16, 0..6000_usize).prop_map(|(buffers, len)| Act::Receive { buffers, len }),
        8 => Just(Act::Sent),
        2 => (0..2_u16, 0..140_u32, 0..5000_u32)
            .prop_map(|(queue, token, len)| Act::Give { queue, token, len }),
        1 => (0..2_u16, any::<u16>()).prop_map(|(queue, by)| Act::Jump { queue, by }),
        1 => (0..4_u32, any::<u32>()).prop_map(|(what, status)| Act::Interrupt { what, status }),
    ]
}

proptest! {
    #[test]
    fn whatever_a_card_does(acts in prop::collection::vec(act(), 1..60), merge: bool) {
        let features = if merge { MRG_RXBUF } else { 0 };
        let (device, mut card) = start(features, features);
        for act in acts {
            let mut d = device.borrow_mut();
            match act {
                Act::Receive { buffers, len } => {
                    for bytes in frame(buffers, len).chunks(PART) {
                        if let Some(token) = d.fill(RECEIVE, bytes) {
                            d.give(RECEIVE, token.into(), bytes.len() as u32);
                        }
                    }
                }
                Act::Give { queue, token, len } => d.give(queue, token, len),
                Act::Jump { queue, by } => d.jump(queue, by),
                Act::Sent => drop(d.read(SEND)),
                Act::Interrupt { what, status } => (d.interrupt, d.status) = (what, status),
            }
            drop(d);
            card.acknowledge();
            // It goes on until there is nothing more, or the card is known to be no good.
            let mut frames = 0;
            let fault = loop {
                match card.receive() {
                    Ok(Some(got)) => {
                        prop_assert!(got.bytes.len() <= LARGE);
                        frames += 1;
                        prop_assert!(frames <= 1 << 16);
                    }
                    Ok(None) => break card.has_room().err(),
                    Err(fault) => break Some(fault),
                }
            };
            if fault.is_some() {
                drop(card);
                prop_assert_eq!(device.borrow().status, 0);
                return Ok(());
            }
            card.send([0; HEADER], vec![0; 60]);
        }
    }
}
