// SPDX-License-Identifier: MIT OR Apache-2.0
use super::super::*;
use super::rig::{ipv4_tcp, ipv4_udp, ipv6_tcp, tagged};
use proptest::prelude::*;

/// The sum over pseudo-header and segment, which is 0xffff when the checksum is right (RFC 1071).
fn sum_of(frame: &[u8], addresses: core::ops::Range<usize>, segment: usize, protocol: u8) -> u32 {
    let mut words = frame[addresses].to_vec();
    words.extend([0, protocol]);
    words.extend(((frame.len() - segment) as u16).to_be_bytes());
    words.extend(&frame[segment..]);
    if words.len() % 2 == 1 {
        words.push(0);
    }
    let mut sum = 0_u32;
    for w in words.chunks(2) {
        sum += u32::from(u16::from_be_bytes([w[0], w[1]]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

fn blank(bytes: &[u8]) -> Option<Frame> {
    Frame::new(bytes.to_vec(), Checksum::Blank)
}

proptest! {
    #[test]
    fn blank_checksums_are_filled_in(data in prop::collection::vec(any::<u8>(), 0..300)) {
        let f = blank(&ipv4_udp(&data)).unwrap().completed().unwrap();
        prop_assert_eq!(sum_of(&f, 26..34, 34, 17), 0xffff);
        let f = blank(&ipv6_tcp(&data)).unwrap().completed().unwrap();
        prop_assert_eq!(sum_of(&f, 22..54, 54, 6), 0xffff);
        let f = blank(&tagged(&ipv4_udp(&data))).unwrap().completed().unwrap();
        prop_assert_eq!(sum_of(&f, 30..38, 38, 17), 0xffff);
        // The rest is as it was.
        let before = ipv4_udp(&data);
        let after = blank(&before).unwrap().completed().unwrap();
        prop_assert_eq!(&before[..40], &after[..40]);
        prop_assert_eq!(&before[42..], &after[42..]);
    }

    #[test]
    fn cut_and_changed_frames(at in 0usize..60, value: u8, len in 0usize..100, v6: bool) {
        let mut bytes = if v6 { ipv6_tcp(&[1; 30]) } else { ipv4_udp(&[1; 50]) };
        if let Some(b) = bytes.get_mut(at) {
            *b = value;
        }
        bytes.truncate(len);
        if let Some(f) = blank(&bytes) {
            let done = f.completed().unwrap();
            prop_assert_eq!(done.len(), bytes.len());
            let changed = done.iter().zip(&bytes).filter(|(a, b)| a != b).count();
            prop_assert!(changed <= 2);
        }
        if let Some(f) = Frame::new(bytes, Checksum::Present) {
            let _ = f.flow();
        }
    }
}

proptest! {
    #[test]
    fn large_frames_are_split(
        data in prop::collection::vec(any::<u8>(), 1..9000),
        size in MIN_SEGMENT..2000,
        flags: u8,
        shape in 0..3,
        padding in 0usize..9,
    ) {
        // The packet, the addresses, the segment, and its data, by where they begin.
        let (mut bytes, at) = match shape {
            0 => (ipv4_tcp(&data, flags), [14, 26, 34, 58]),
            1 => (tagged(&ipv4_tcp(&data, flags)), [18, 30, 38, 62]),
            _ => (ipv6_tcp(&data), [14, 22, 54, 74]),
        };
        let [packet, addresses, segment, start] = at;
        let v6 = shape == 2;
        let header = bytes[..start].to_vec();
        bytes.extend(vec![0xee; padding]);
        let large = Frame::large(bytes, size, v6, start + 2000).unwrap();
        prop_assert_eq!(large.checksum(), Checksum::Blank);
        prop_assert_eq!(large.bytes().len(), start + data.len());
        if data.len() <= usize::from(size) {
            prop_assert_eq!((large.split(), large.segments().count()), (None, 0));
            return Ok(());
        }
        prop_assert_eq!(large.split(), Some(size));
        let segments: Vec<Frame> = large.segments().collect();
        prop_assert_eq!(segments.len(), data.len().div_ceil(size.into()));
        let u32_at = |b: &[u8], at: usize| u32::from_be_bytes(b[at..at + 4].try_into().unwrap());
        let u16_at = |b: &[u8], at: usize| u16::from_be_bytes([b[at], b[at + 1]]);
        let mut joined = Vec::<u8>::new();
        for (n, s) in segments.iter().enumerate() {
            let (b, last) = (s.bytes(), n + 1 == segments.len());
            prop_assert!(last || b.len() == start + usize::from(size));
            prop_assert_eq!((s.checksum(), s.split()), (Checksum::Present, None));
            prop_assert_eq!(sum_of(b, addresses..segment, segment, 6), 0xffff);
            let sequence = u32_at(&header, segment + 4).wrapping_add(joined.len() as u32);
            prop_assert_eq!(u32_at(b, segment + 4), sequence);
            if v6 {
                prop_assert_eq!(usize::from(u16_at(b, packet + 4)), b.len() - packet - 40);
            } else {
                prop_assert_eq!(usize::from(u16_at(b, packet + 2)), b.len() - packet);
                prop_assert_eq!(u16_at(b, packet + 4), 0xfffe_u16.wrapping_add(n as u16));
                let sum: u32 = (0..10).map(|i| u32::from(u16_at(b, packet + 2 * i))).sum();
                prop_assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
                // FIN and PSH are the last one's, CWR the first one's.
                let keep = !(if last { 0 } else { 0x09 } | if n == 0 { 0 } else { 0x80 });
                prop_assert_eq!(b[segment + 13], flags & keep);
            }
            joined.extend(&b[start..]);
        }
        prop_assert_eq!(joined, data);
    }
}

#[test]
fn what_cannot_be_split() {
    let large = |f: &[u8], size, v6| Frame::large(f.to_vec(), size, v6, 1518);
    let tcp = ipv4_tcp(&[7; 5000], 0x10);
    assert!(large(&tcp, 1448, false).is_some());
    // The other version, too small and too large segments, no TCP, a header longer than the packet.
    assert!(large(&tcp, 1448, true).is_none());
    assert!(large(&tcp, MIN_SEGMENT - 1, false).is_none());
    assert!(large(&tcp, 1461, false).is_none());
    assert!(large(&ipv4_udp(&[7; 5000]), 1448, false).is_none());
    let mut short = ipv4_tcp(&[], 0x10);
    short[46] = 0x70;
    assert!(large(&short, 1448, false).is_none());
}

#[test]
fn a_small_packet_in_a_large_frame_holds_no_more_memory_than_it_has_bytes() {
    for data in [60, 3000] {
        let mut bytes = ipv4_tcp(&vec![7; data], 0x10);
        bytes.resize(65_535, 0);
        let large = Frame::large(bytes, 1448, false, 1518).unwrap();
        assert_eq!(large.bytes().len(), 58 + data);
        assert!(large.into_bytes().capacity() < 4096);
    }
}

#[test]
fn what_has_no_checksum_cannot_be_blank() {
    let good = ipv4_udp(&[0; 20]);
    assert!(blank(&good).is_some());
    for (at, value) in [
        (12, 9),    // not IP
        (14, 0x55), // not version 4
        (14, 0x44), // header too short
        (17, 200),  // longer than the frame
        (20, 0x20), // a fragment
        (23, 1),    // ICMP
    ] {
        let mut f = good.clone();
        f[at] = value;
        assert!(blank(&f).is_none(), "{at}");
        assert!(Frame::new(f, Checksum::Validated).is_some());
    }
    assert!(Frame::new(vec![0; 13], Checksum::Present).is_none());
}

#[test]
fn a_sum_of_zero_of_udp_is_sent_as_ones() {
    // Data chosen so that the sum is 0xffff and the checksum would be 0.
    let with = |n: u16| {
        blank(&ipv4_udp(&n.to_be_bytes()))
            .unwrap()
            .completed()
            .unwrap()
    };
    let field = |f: &[u8]| u16::from_be_bytes([f[40], f[41]]);
    let n = field(&with(0));
    assert_eq!(field(&with(n)), 0xffff);
}

#[test]
fn flows_keep_together() {
    let flow = |f: Vec<u8>| Frame::new(f, Checksum::Present).unwrap().flow();
    assert_eq!(flow(ipv4_udp(&[1; 9])), flow(ipv4_udp(&[2; 30])));
    let mut other = ipv4_udp(&[1; 9]);
    other[35] ^= 1;
    assert_ne!(flow(ipv4_udp(&[1; 9])), flow(other));
}

#[test]
fn credit_is_filled_up_and_debts_are_paid() {
    let mut c = Credit::new(1000, 10);
    assert_eq!(c.check(5), Ok(()));
    c.spend(2500);
    // 1500 is owed: two intervals, and with the third it is positive.
    assert_eq!(c.check(10), Err(10_005));
    assert_eq!(c.check(10_005), Err(20_005));
    assert_eq!(c.check(20_006), Ok(()));
    // A long pause gives no more than one interval's.
    assert_eq!(c.check(10_000_000), Ok(()));
    c.spend(1000);
    assert!(c.check(10_000_001).is_err());
    let mut c = Credit::new(0, 10);
    c.spend(usize::MAX);
    assert_eq!((c.check(0), c), (Ok(()), Credit::unlimited()));
    let mut c = Credit::new(u64::MAX, u32::MAX);
    for now in [0, u64::MAX, 1] {
        let _ = c.check(now);
        c.spend(usize::MAX);
    }
}
