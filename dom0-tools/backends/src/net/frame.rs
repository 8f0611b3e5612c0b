// SPDX-License-Identifier: MIT OR Apache-2.0
//! A frame, and as much of its contents as a back end must know.

use super::HEADER;
use alloc::vec::Vec;
use core::ops::Range;
use zerocopy::FromBytes;

/// What is known of a frame's TCP or UDP checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// It is in the frame, and nobody looked whether it is right.
    #[default]
    Present,
    /// It is in the frame, and its sender says that it is right.
    Validated,
    /// Its place is to be filled in.
    Blank,
}

/// Least bytes of a segment that a frame may be asked to be split into: the least that a TCP of today makes. It bounds
/// how many there are.
pub const MIN_SEGMENT: u16 = 48;

/// An Ethernet frame without its check sequence; or one that is still to be split into such frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    bytes: Vec<u8>,
    checksum: Checksum,
    /// Of a blank checksum: the packet is IPv6.
    ipv6: bool,
    /// TCP that is to be split: the most bytes of data in a segment.
    split: Option<u16>,
}

impl Frame {
    /// `None` when it is shorter than its header, or its checksum is said to be blank and it has none.
    #[must_use]
    pub fn new(bytes: Vec<u8>, checksum: Checksum) -> Option<Self> {
        if bytes.len() < HEADER {
            return None;
        }
        let ipv6 = match checksum {
            Checksum::Blank => Segment::find(&bytes)?.ipv6,
            _ => false,
        };
        Some(Self {
            bytes,
            checksum,
            ipv6,
            split: None,
        })
    }

    /// A frame of TCP that is to be split into segments of `size` bytes of data, each frame of which has at most `max_frame` bytes.
    /// Its checksum counts as blank. `None` when it is no such frame, or `size` is less than [`MIN_SEGMENT`].
    #[must_use]
    pub fn large(mut bytes: Vec<u8>, size: u16, ipv6: bool, max_frame: usize) -> Option<Self> {
        let segment = Segment::find(&bytes).filter(|s| !s.udp && s.ipv6 == ipv6)?;
        let data = segment.tcp_data(&bytes)?;
        if size < MIN_SEGMENT || data + usize::from(size) > max_frame {
            return None;
        }
        bytes.truncate(segment.end);
        // What waits is counted by its bytes: it is to hold no more.
        bytes.shrink_to_fit();
        segment.begin(&mut bytes)?;
        Some(Self {
            split: (segment.end - data > usize::from(size)).then_some(size),
            bytes,
            checksum: Checksum::Blank,
            ipv6,
        })
    }

    /// Of a frame that is to be split: the most bytes of data in a segment.
    #[must_use]
    pub const fn split(&self) -> Option<u16> {
        self.split
    }

    /// The frames that a frame which is to be split becomes, with their checksums; none for other frames.
    pub fn segments(&self) -> impl Iterator<Item = Frame> + '_ {
        let whole = self.split.and_then(|size| {
            let segment = Segment::find(&self.bytes)?;
            let data = segment.tcp_data(&self.bytes)?;
            Some((segment, data, usize::from(size)))
        });
        whole.into_iter().flat_map(move |(segment, data, size)| {
            let starts = (data..segment.end).step_by(size).zip(0..);
            starts.map_while(move |(at, number)| {
                let end = segment.end.min(at + size);
                segment.cut(&self.bytes, data, at..end, number)
            })
        })
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What is known of its checksum.
    #[must_use]
    pub const fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// Of a frame with a blank checksum, or that is to be split, whether it is IPv6.
    pub(super) const fn blank_ipv6(&self) -> bool {
        self.ipv6
    }

    /// The bytes as they are.
    pub(super) fn bare(self) -> Vec<u8> {
        self.bytes
    }

    /// The bytes with the checksum filled in, when it is blank. A frame that is to be split stays whole: see
    /// [`Frame::segments`].
    #[must_use]
    pub fn completed(&self) -> Option<Vec<u8>> {
        (self.checksum == Checksum::Blank).then(|| self.clone().into_bytes())
    }

    /// The bytes for where checksums must be in them: a blank one is filled in.
    #[must_use]
    pub fn into_bytes(mut self) -> Vec<u8> {
        if self.checksum == Checksum::Blank
            && let Some(segment) = Segment::find(&self.bytes)
        {
            segment.complete(&mut self.bytes);
        }
        self.bytes
    }

    /// A number that is the same for all frames of a flow: of its addresses, and ports where there are
    /// such.
    #[must_use]
    pub fn flow(&self) -> u32 {
        let part = |at: usize, n: usize| self.bytes.get(at..at + n).unwrap_or_default();
        let (kind, at) = network(&self.bytes).unwrap_or((0, 0));
        let addresses = match kind {
            IPV4 => part(at + 12, 8),
            IPV6 => part(at + 8, 32),
            _ => part(0, 12),
        };
        let ports = match Segment::find(&self.bytes) {
            Some(s) => part(s.start, 4),
            None => &[],
        };
        // FNV-1a.
        let hash = addresses.iter().chain(ports).fold(0x811c_9dc5_u32, |h, b| {
            (h ^ u32::from(*b)).wrapping_mul(0x0100_0193)
        });
        hash ^ hash >> 16
    }
}

/// Types of what a frame carries.
pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const IPV6: u16 = 0x86dd;
/// Most tags of VLANs that are looked through.
const TAGS: usize = 2;

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let b = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(b.try_into().ok()?))
}

/// The type of what a frame carries, and where that begins, behind tags of VLANs.
pub(crate) fn network(frame: &[u8]) -> Option<(u16, usize)> {
    let mut at = 12;
    for _ in 0..=TAGS {
        match u16_at(frame, at)? {
            0x8100 | 0x88a8 => at += 4,
            kind => return Some((kind, at + 2)),
        }
    }
    None
}

/// A TCP or UDP segment in a frame: a packet that is whole.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    /// Where the packet begins.
    pub(super) packet: usize,
    pub(super) start: usize,
    pub(super) end: usize,
    /// Where its checksum is.
    pub(super) checksum: usize,
    pub(super) udp: bool,
    pub(super) ipv6: bool,
    /// The sum of the pseudo-header.
    pseudo: u32,
}

impl Segment {
    pub(super) fn find(frame: &[u8]) -> Option<Self> {
        let (kind, at) = network(frame)?;
        let byte = |n: usize| frame.get(at + n).copied();
        let ipv6 = kind == IPV6;
        let (protocol, start, end, addresses) = match kind {
            IPV4 => {
                let first = byte(0)?;
                let header = usize::from(first & 15) * 4;
                let total = usize::from(u16_at(frame, at + 2)?);
                let fragment = u16_at(frame, at + 6)? & 0x3fff != 0;
                if first >> 4 != 4 || header < 20 || total < header || fragment {
                    return None;
                }
                (
                    byte(9)?,
                    at + header,
                    at + total,
                    frame.get(at + 12..at + 20)?,
                )
            }
            IPV6 => {
                if byte(0)? >> 4 != 6 {
                    return None;
                }
                let end = at + 40 + usize::from(u16_at(frame, at + 4)?);
                let (mut next, mut start) = (byte(6)?, at + 40);
                // Options for all on the way, and for the receiver; each moves on by 8 bytes at least.
                while let 0 | 60 = next {
                    next = *frame.get(start)?;
                    start += (usize::from(*frame.get(start + 1)?) + 1) * 8;
                }
                (next, start, end, frame.get(at + 8..at + 40)?)
            }
            _ => return None,
        };
        let (checksum, least) = match protocol {
            6 => (start + 16, 20),
            17 => (start + 6, 8),
            _ => return None,
        };
        if end > frame.len() || end.checked_sub(start)? < least {
            return None;
        }
        let length = (end - start) as u32;
        Some(Self {
            packet: at,
            start,
            end,
            checksum,
            udp: protocol == 17,
            ipv6,
            pseudo: sum(addresses) + u32::from(protocol) + (length & 0xffff) + (length >> 16),
        })
    }

    /// Puts the sum of the pseudo-header into the checksum's place: what whoever fills it in goes on from.
    pub(super) fn begin(&self, frame: &mut [u8]) -> Option<()> {
        let field = frame.get_mut(self.checksum..self.checksum + 2)?;
        field.copy_from_slice(&fold(self.pseudo).to_be_bytes());
        Some(())
    }

    /// Whether its checksum is right. A UDP packet without one is not.
    pub(super) fn is_right(&self, frame: &[u8]) -> bool {
        let segment = frame.get(self.start..self.end);
        segment.is_some_and(|s| fold(self.pseudo + sum(s)) == 0xffff)
    }

    fn complete(&self, frame: &mut [u8]) -> Option<()> {
        frame
            .get_mut(self.checksum..self.checksum + 2)?
            .copy_from_slice(&[0, 0]);
        let folded = fold(self.pseudo + sum(frame.get(self.start..self.end)?));
        let value = match !folded {
            // Of UDP, 0 says that there is none.
            0 if self.udp => 0xffff,
            value => value,
        };
        frame
            .get_mut(self.checksum..self.checksum + 2)?
            .copy_from_slice(&value.to_be_bytes());
        Some(())
    }
}

impl Segment {
    /// The flags of TCP.
    pub(super) fn tcp_flags(&self, frame: &[u8]) -> Option<u8> {
        frame.get(self.start + 13).copied()
    }

    /// Where the data of TCP begin.
    pub(super) fn tcp_data(&self, frame: &[u8]) -> Option<usize> {
        let header = usize::from(frame.get(self.start + 12)? >> 4) * 4;
        let data = self.start + header;
        (header >= 20 && data <= self.end).then_some(data)
    }

    /// The frame of one part, which has this number, of the data of TCP, which begin at `data`.
    fn cut(&self, frame: &[u8], data: usize, part: Range<usize>, number: u16) -> Option<Frame> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(data + part.len()).ok()?;
        bytes.extend_from_slice(frame.get(..data)?);
        bytes.extend_from_slice(frame.get(part.clone())?);
        let mut put = |at: usize, value: &[u8]| {
            let to = bytes.get_mut(at..at + value.len())?;
            to.copy_from_slice(value);
            Some(())
        };
        let before = part.start - data;
        let (packet, tcp) = (self.packet, self.start);
        if self.ipv6 {
            let length = (data + part.len() - packet - 40) as u16;
            put(packet + 4, &length.to_be_bytes())?;
        } else {
            let length = (data + part.len() - packet) as u16;
            put(packet + 2, &length.to_be_bytes())?;
            // Each packet has its own identification (RFC 6864 asks for it where packets may be fragmented).
            let id = u16_at(frame, packet + 4)?.wrapping_add(number);
            put(packet + 4, &id.to_be_bytes())?;
            put(packet + 10, &[0, 0])?;
        }
        let sequence = frame.get(tcp + 4..tcp + 8)?;
        let sequence = u32::from_be_bytes(sequence.try_into().ok()?).wrapping_add(before as u32);
        put(tcp + 4, &sequence.to_be_bytes())?;
        let mut flags = self.tcp_flags(frame)?;
        if part.end < self.end {
            flags &= !(FIN | PSH);
        }
        if before > 0 {
            flags &= !CWR;
        }
        put(tcp + 13, &[flags])?;
        if !self.ipv6 {
            let sum = complement(bytes.get(packet..tcp)?);
            let to = bytes.get_mut(packet + 10..packet + 12)?;
            to.copy_from_slice(&sum.to_be_bytes());
        }
        Segment::find(&bytes)?.complete(&mut bytes)?;
        Frame::new(bytes, Checksum::Present)
    }
}

/// Flags of TCP (RFC 9293, 3.1).
pub(super) const FIN: u8 = 1 << 0;
pub(super) const PSH: u8 = 1 << 3;
pub(super) const ACK: u8 = 1 << 4;
pub(super) const CWR: u8 = 1 << 7;

/// The sum of 16-bit words, of which 0 is the same as 0xffff (RFC 1071). It is that of words of any size, in any order of
/// their bytes, as long as all are of one: so nearly all is taken by words of eight bytes.
fn sum(bytes: &[u8]) -> u32 {
    let before = bytes.as_ptr().align_offset(align_of::<u64>());
    let (odd, bytes) = bytes.split_at(before.min(bytes.len()) % 2);
    let (first, bytes) = bytes.split_at((before - odd.len()).min(bytes.len()));
    let (middle, last) = bytes.split_at(bytes.len() & !7);
    let words = <[u64]>::ref_from_bytes(middle).unwrap_or_default();
    let middle: u64 = words.iter().map(|w| (w & 0xffff_ffff) + (w >> 32)).sum();
    let middle = u16::from_be(fold64(middle));
    let rest = u32::from(middle) + sum_of_pairs(first) + sum_of_pairs(last);
    match odd {
        [] => rest,
        // What follows is a byte off.
        [byte, ..] => u32::from(fold(rest).swap_bytes()) + (u32::from(*byte) << 8),
    }
}

fn sum_of_pairs(bytes: &[u8]) -> u32 {
    let (words, last) = bytes.as_chunks::<2>();
    let sum: u32 = words
        .iter()
        .map(|w| u32::from(u16::from_be_bytes(*w)))
        .sum();
    sum + last.first().map_or(0, |b| u32::from(*b) << 8)
}

/// The checksum of bytes.
pub(super) fn complement(bytes: &[u8]) -> u16 {
    !fold(sum(bytes))
}

fn fold(sum: u32) -> u16 {
    fold64(sum.into())
}

fn fold64(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sums_are_the_same_wherever_bytes_are(bytes in prop::collection::vec(any::<u8>(), 0..200), from in 0usize..16) {
            let bytes = bytes.get(from..).unwrap_or_default();
            prop_assert_eq!(fold(sum(bytes)), fold(sum_of_pairs(bytes)));
        }
    }
}
