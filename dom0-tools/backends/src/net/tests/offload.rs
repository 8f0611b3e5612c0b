// SPDX-License-Identifier: MIT OR Apache-2.0
use super::super::*;
use super::rig::{ipv4_tcp, ipv4_udp, ipv6_tcp, tagged};
use proptest::prelude::*;

const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const HOST_ECN: u64 = 1 << 13;
const MRG_RXBUF: u64 = 1 << 15;
const ALL: u64 =
    CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6 | HOST_ECN | MRG_RXBUF;
const MAX_FRAME: usize = 1518;

/// Flags, type, length of headers, bytes of a segment, where the checksum begins, its place from there.
type Fields = (u8, u8, u16, u16, u16, u16);

fn header((flags, kind, headers, size, start, offset): Fields) -> Header {
    let words = [headers, size, start, offset, 0xeeee];
    let bytes = [flags, kind].into_iter();
    let bytes: Vec<u8> = bytes
        .chain(words.into_iter().flat_map(u16::to_le_bytes))
        .collect();
    Header::from_bytes(bytes.try_into().unwrap())
}

fn fields(header: &Header) -> Fields {
    let b = header.to_bytes();
    let at = |n: usize| u16::from_le_bytes([b[n], b[n + 1]]);
    (b[0], b[1], at(2), at(4), at(6), at(8))
}

fn card(features: u64) -> Offload {
    Offload::new(features, MAX_FRAME)
}

/// What a card does for a frame with a blank checksum: it sums up to the end (Virtio 1.2, section 5.1.6.2).
fn card_fills_in(header: &Header, mut bytes: Vec<u8>) -> Vec<u8> {
    let (flags, _, _, _, start, offset) = fields(header);
    assert_eq!(flags, 1);
    let (start, offset) = (usize::from(start), usize::from(offset));
    let mut sum = 0_u32;
    for w in bytes[start..].chunks(2) {
        sum += u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = match !(sum as u16) {
        0 => 0xffff,
        sum => sum,
    };
    bytes[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn shaped(shape: u8, data: &[u8], flags: u8) -> Vec<u8> {
    match shape {
        0 => ipv4_udp(data),
        1 => ipv4_tcp(data, flags),
        2 => ipv6_tcp(data),
        3 => tagged(&ipv4_tcp(data, flags)),
        _ => tagged(&ipv6_tcp(data)),
    }
}

proptest! {
    #[test]
    fn only_what_is_offered_is_used_and_nothing_without_what_it_needs(offered: u64) {
        let chosen = Offload::choose(offered);
        prop_assert_eq!(chosen & !(offered & ALL), 0);
        let has = |f: u64| chosen & f != 0;
        prop_assert!(!has(HOST_TSO4 | HOST_TSO6) || has(CSUM));
        prop_assert!(!has(HOST_ECN) || has(HOST_TSO4 | HOST_TSO6));
        prop_assert!(!has(GUEST_TSO4 | GUEST_TSO6) || has(GUEST_CSUM) && has(MRG_RXBUF));
        prop_assert!(!has(MRG_RXBUF) || has(GUEST_TSO4 | GUEST_TSO6));
        prop_assert_eq!(Offload::choose(offered | ALL), ALL);
    }

    #[test]
    fn the_card_fills_in_what_the_driver_would(
        shape in 0..5_u8,
        data in prop::collection::vec(any::<u8>(), 0..300),
        padding in 0usize..3,
    ) {
        let mut bytes = shaped(shape, &data, 0x10);
        bytes.extend(vec![0xee; padding]);
        let frame = Frame::new(bytes, Checksum::Blank).unwrap();
        let done = frame.completed().unwrap();
        let (none, sent) = card(0).send(frame.clone());
        prop_assert_eq!((none, &sent), (Header::default(), &done));
        let (header, sent) = card(CSUM).send(frame);
        match padding {
            0 => prop_assert_eq!(card_fills_in(&header, sent), done),
            _ => prop_assert_eq!((header, sent), (Header::default(), done)),
        }
    }

    #[test]
    fn what_is_sent_is_received_as_it_was(
        shape in 1..5_u8,
        data in prop::collection::vec(any::<u8>(), 0..9000),
        size in MIN_SEGMENT..1441,
        flags: u8,
    ) {
        let ipv6 = shape % 2 == 0;
        let bytes = shaped(shape, &data, flags);
        let frame = Frame::large(bytes, size, ipv6, MAX_FRAME).unwrap();
        if frame.split().is_some() {
            prop_assert!(card(ALL).splits(&frame));
        } else if frame.bytes().len() > MAX_FRAME {
            return Ok(());
        }
        let (header, sent) = card(ALL).send(frame.clone());
        prop_assert_eq!(&sent, frame.bytes());
        let (flags, kind, _, told, _, _) = fields(&header);
        prop_assert_eq!((flags, told), (1, frame.split().unwrap_or(0)));
        // Nobody is to be told of congestion without having asked for it.
        let header = match kind & 0x80 {
            0 => header,
            _ => {
                prop_assert_eq!(card(ALL).receive(&header, sent.clone()), None);
                let (flags, kind, headers, size, start, offset) = fields(&header);
                self::header((flags, kind & 0x7f, headers, size, start, offset))
            }
        };
        prop_assert_eq!(card(ALL).receive(&header, sent), Some(frame));
    }

    #[test]
    fn whatever_the_card_says(
        shape in 0..5_u8,
        len in 0usize..3000,
        at in 0usize..100,
        value: u8,
        features: u64,
        words: (u8, u8, u16, u16, u16, u16),
        right in 0..4_u8,
    ) {
        let mut bytes = shaped(shape, &vec![7; len], 0x10);
        if let Some(b) = bytes.get_mut(at) {
            *b = value;
        }
        // Much of it is as it should be, so that more than one thing is looked at.
        let (mut flags, mut kind, headers, mut size, mut start, mut offset) = words;
        if right > 0 {
            (flags, start, offset) = (1, [34, 34, 54, 38, 58][usize::from(shape)], 16);
        }
        if right > 1 {
            (kind, size) = ([1, 1, 4, 1, 4][usize::from(shape)], size % 2000);
        }
        let features = if right > 2 { ALL } else { features };
        let header = header((flags, kind, headers, size, start, offset));
        let before = bytes.len();
        let Some(frame) = card(features).receive(&header, bytes) else {
            return Ok(());
        };
        prop_assert!(frame.bytes().len() <= before);
        prop_assert!(frame.split().is_some() || frame.bytes().len() <= MAX_FRAME);
        prop_assert!(frame.segments().all(|s| s.bytes().len() <= MAX_FRAME));
        prop_assert!(frame.split().is_none() || frame.segments().count() > 1);
        if features & GUEST_CSUM == 0 {
            prop_assert_eq!((frame.checksum(), frame.split()), (Checksum::Present, None));
        }
        prop_assert!(features & (GUEST_TSO4 | GUEST_TSO6) != 0 || frame.split().is_none());
        // And it can be sent on, whatever the next card does.
        let (_, sent) = card(features).send(frame.clone());
        prop_assert_eq!(sent.len(), frame.bytes().len());
    }
}

#[test]
fn what_the_card_says_of_large_frames_must_be_so() {
    let tcp = ipv4_tcp(&[7; 5000], 0x18);
    let good = (1, 1, 58, 1448, 34, 16);
    let receive =
        |features, fields, bytes: &[u8]| card(features).receive(&header(fields), bytes.to_vec());
    let frame = receive(ALL, good, &tcp).unwrap();
    assert_eq!(
        (frame.split(), frame.checksum()),
        (Some(1448), Checksum::Blank)
    );
    assert_eq!(frame.segments().count(), 4);
    // What is said of the length of headers is of no consequence.
    assert_eq!(
        receive(ALL, (1, 1, 0xffff, 1448, 34, 16), &tcp),
        Some(frame)
    );
    for (what, wrong) in [
        ("it needs no checksum", (0, 1, 58, 1448, 34, 16)),
        ("the other version", (1, 4, 58, 1448, 34, 16)),
        ("fragments of UDP", (1, 3, 58, 1448, 34, 16)),
        ("UDP", (1, 5, 58, 1448, 34, 16)),
        (
            "congestion, which was not agreed",
            (1, 0x81, 58, 1448, 34, 16),
        ),
        ("segments of nothing", (1, 1, 58, 0, 34, 16)),
        ("tiny segments", (1, 1, 58, MIN_SEGMENT - 1, 34, 16)),
        ("segments that are too long", (1, 1, 58, 1461, 34, 16)),
        ("the checksum begins elsewhere", (1, 1, 58, 1448, 33, 17)),
        ("the checksum is elsewhere", (1, 1, 58, 1448, 34, 6)),
        ("it is one frame", (1, 0, 0, 0, 34, 16)),
    ] {
        assert_eq!(receive(ALL, wrong, &tcp), None, "{what}");
    }
    for missing in [GUEST_TSO4, GUEST_CSUM] {
        assert_eq!(receive(ALL & !missing, good, &tcp), None);
    }
    assert_eq!(receive(ALL, good, &ipv4_udp(&[7; 5000])), None);
    assert_eq!(receive(ALL, good, &tcp[..40]), None);
    assert_eq!(receive(ALL, good, &[]), None);
}

#[test]
fn checksums_of_what_was_received() {
    let receive = |fields, bytes: &[u8]| card(GUEST_CSUM).receive(&header(fields), bytes.to_vec());
    let udp = ipv4_udp(&[7; 50]);
    let checksum = |fields| receive(fields, &udp).map(|f| f.checksum());
    assert_eq!(checksum((0, 0, 0, 0, 0, 0)), Some(Checksum::Present));
    assert_eq!(checksum((2, 0, 0, 0, 0, 0)), Some(Checksum::Validated));
    assert_eq!(checksum((1, 0, 0, 0, 34, 6)), Some(Checksum::Blank));
    // Flags that are not known say nothing.
    assert_eq!(checksum((0xfc, 0, 0, 0, 0, 0)), Some(Checksum::Present));
    // Elsewhere, it is filled in as the card would have.
    let sum_of = |bytes: &[u8]| {
        let sum: u32 = bytes
            .chunks(2)
            .map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)))
            .sum();
        (sum & 0xffff) + (sum >> 16)
    };
    let inner = receive((1, 0, 0, 0, 43, 3), &udp).unwrap();
    assert_eq!(inner.checksum(), Checksum::Present);
    assert_eq!(inner.bytes()[..46], udp[..46]);
    assert_eq!(inner.bytes()[48..], udp[48..]);
    let mut before = udp[43..].to_vec();
    let sum = [inner.bytes()[46], inner.bytes()[47]];
    assert_eq!(!sum_of(&before) as u16, u16::from_be_bytes(sum));
    before[3..5].copy_from_slice(&[0, 0]);
    // Behind the end there is nothing to fill in.
    let end = udp.len() as u16;
    for (start, offset) in [(end - 1, 0), (end, 0), (end - 2, 1), (0xffff, 0xffff)] {
        assert_eq!(receive((1, 0, 0, 0, start, offset), &udp), None);
    }
    assert!(receive((1, 0, 0, 0, end - 2, 0), &udp).is_some());
    // What is longer than the card's frames is none, and what is shorter than a header.
    assert!(receive((0, 0, 0, 0, 0, 0), &[0; MAX_FRAME]).is_some());
    assert_eq!(receive((0, 0, 0, 0, 0, 0), &[0; MAX_FRAME + 1]), None);
    assert_eq!(receive((0, 0, 0, 0, 0, 0), &[0; 13]), None);
    let old = card(0).receive(&header((1, 1, 9, 9, 9, 9)), vec![0; MAX_FRAME]);
    assert_eq!(old.map(|f| f.checksum()), Some(Checksum::Present));
}

#[test]
fn what_the_card_does_not_split() {
    let frame = |flags| Frame::large(ipv4_tcp(&[7; 5000], flags), 1448, false, 9000).unwrap();
    assert!(card(CSUM | HOST_TSO4).splits(&frame(0x18)));
    let kind = |features, flags| fields(&card(features).send(frame(flags)).0).1;
    assert_eq!(kind(ALL, 0x18), 1);
    assert_eq!(kind(ALL, 0x98), 0x81);
    // That congestion was noticed is lost on a card that does not know of it.
    assert!(!card(CSUM | HOST_TSO4).splits(&frame(0x98)));
    assert!(!card(CSUM | HOST_TSO6).splits(&frame(0x18)));
    // Segments that are too long for it.
    let long = Frame::large(ipv4_tcp(&[7; 5000], 0x18), 1461, false, 9000).unwrap();
    assert!(!card(ALL).splits(&long));
    // What is not to be split.
    let one = Frame::new(ipv4_tcp(&[7; 500], 0x18), Checksum::Blank).unwrap();
    assert!(!card(ALL).splits(&one));
}
