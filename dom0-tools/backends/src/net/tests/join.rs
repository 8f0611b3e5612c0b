// SPDX-License-Identifier: MIT OR Apache-2.0
use super::super::*;
use super::rig::{ipv4_tcp, ipv4_udp, ipv6_tcp, tagged};
use proptest::prelude::*;

const MAX_FRAME: usize = 1518;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// One frame that is to be split, of some kind.
fn large(shape: u8, data: &[u8], flags: u8, size: u16) -> Option<Frame> {
    let bytes = match shape {
        0 => ipv4_tcp(data, flags),
        1 => tagged(&ipv4_tcp(data, flags)),
        _ => ipv6_tcp(data),
    };
    Frame::large(bytes, size, shape > 1, MAX_FRAME)
}

fn joined(mut frames: Vec<Frame>) -> Vec<Frame> {
    join(&mut frames, MAX_FRAME);
    frames
}

/// The single frames.
fn split(frames: &[Frame]) -> Vec<Frame> {
    let parts = |f: &Frame| match f.split() {
        Some(_) => f.segments().collect(),
        None => vec![f.clone()],
    };
    frames.iter().flat_map(parts).collect()
}

/// The frames' bytes, with their checksums.
fn bytes(frames: Vec<Frame>) -> Vec<Vec<u8>> {
    frames.into_iter().map(Frame::into_bytes).collect()
}

proptest! {
    #[test]
    fn what_was_split_is_joined(
        data in prop::collection::vec(any::<u8>(), 100..9000),
        size in MIN_SEGMENT..1440,
        last in prop::sample::select(vec![ACK, ACK | PSH, ACK | 1, ACK | PSH | 1]),
        shape in 0u8..3,
    ) {
        let whole = large(shape, &data, last, size).unwrap();
        if whole.split().is_none() {
            return Ok(());
        }
        let parts: Vec<Frame> = whole.segments().collect();
        let one = joined(parts.clone());
        prop_assert_eq!((one.len(), one[0].split(), split(&one)), (1, Some(size), parts.clone()));
        // Behind others, and before the next ones of the same connection, which do not follow it.
        let alone = Frame::new(ipv4_udp(&data[..50]), Checksum::Present).unwrap();
        let many = [vec![alone.clone(), alone], parts.clone(), parts].concat();
        let four = joined(many.clone());
        prop_assert_eq!((four.len(), split(&four)), (4, many));
    }

    /// Whatever is wrong with some of them: what a receiver gets that takes no large frames is the same, byte for byte.
    #[test]
    fn nothing_is_lost_or_changed(
        data in prop::collection::vec(any::<u8>(), 1000..4000),
        size in MIN_SEGMENT..700,
        shape in 0u8..3,
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..90, any::<u8>(), any::<bool>()), 0..6),
        swaps in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..3),
        known: bool,
    ) {
        let whole = large(shape, &data, ACK | PSH, size).unwrap();
        let mut frames = bytes(whole.segments().collect());
        for (frame, at, value, longer) in edits {
            let n = frame.index(frames.len());
            let frame = &mut frames[n];
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
            if longer {
                frame.push(value);
            }
        }
        for (a, b) in swaps {
            let (a, b) = (a.index(frames.len()), b.index(frames.len()));
            frames.swap(a, b);
        }
        let checksum = if known { Checksum::Validated } else { Checksum::Present };
        let before: Vec<Frame> = frames.iter().filter_map(|f| Frame::new(f.clone(), checksum)).collect();
        let after = joined(before.clone());
        if known {
            // What the card calls right is not summed up again, but made anew.
            prop_assert_eq!(split(&after).len(), before.len());
        } else {
            prop_assert_eq!(bytes(split(&after)), bytes(before));
        }
    }
}

#[test]
fn a_packet_has_no_more_bytes_than_it_can_say() {
    for shape in 0..3 {
        let data = vec![7; 60_000];
        let first = large(shape, &data, ACK, 1000).unwrap();
        let mut frames: Vec<Frame> = first.segments().collect();
        // As many again, which go on where these end.
        let second: Vec<_> = frames.iter().map(|f| moved(f, shape)).collect();
        frames.extend(second);
        let together = joined(frames.clone());
        assert!(together.len() == 2 && together[0].bytes().len() > 64_000);
        assert_eq!(bytes(split(&together)), bytes(frames));
    }
}

/// The frame that comes 60 frames of 1,000 bytes after this one.
fn moved(frame: &Frame, shape: u8) -> Frame {
    let mut bytes = frame.bytes().to_vec();
    let (packet, tcp) = [(14, 34), (18, 38), (14, 54)][usize::from(shape)];
    let sequence = u32::from_be_bytes(bytes[tcp + 4..tcp + 8].try_into().unwrap());
    let first = sequence.wrapping_add(60_000);
    bytes[tcp + 4..tcp + 8].copy_from_slice(&first.to_be_bytes());
    if shape < 2 {
        let id = u16::from_be_bytes([bytes[packet + 4], bytes[packet + 5]]).wrapping_add(60);
        bytes[packet + 4..packet + 6].copy_from_slice(&id.to_be_bytes());
        bytes[packet + 10..packet + 12].fill(0);
        let sum = super::super::frame::complement(&bytes[packet..packet + 20]);
        bytes[packet + 10..packet + 12].copy_from_slice(&sum.to_be_bytes());
    }
    let bytes = Frame::new(bytes, Checksum::Blank).unwrap().into_bytes();
    Frame::new(bytes, Checksum::Present).unwrap()
}
