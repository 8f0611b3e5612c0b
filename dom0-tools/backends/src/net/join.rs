// SPDX-License-Identifier: MIT OR Apache-2.0
//! Segments of TCP that came one after another become one frame that is still to be split: a receiver that takes such
//! frames has one to look at in place of many.

use super::frame::{ACK, FIN, PSH, Segment, complement, u16_at};
use super::{Checksum, Frame, MIN_SEGMENT};
use alloc::vec::Vec;

/// Most bytes of a packet.
const MAX_PACKET: usize = 0xffff;

/// Joins those frames that follow one another in one connection, so that splitting gives the same ones again: they
/// differ in nothing but what splitting makes differ, and their checksums are right. Single frames have at most
/// `max_frame` bytes. What cannot be joined stays as it is; the order stays.
pub fn join(frames: &mut Vec<Frame>, max_frame: usize) {
    let (mut done, mut at) = (0, 0);
    while let Some(rest) = frames.get_mut(at..).filter(|rest| !rest.is_empty()) {
        let mut count = run(rest, max_frame);
        at += count;
        if count > 1
            && let (run, _) = rest.split_at_mut(count)
            && let Some(joined) = whole(run, max_frame)
            && let Some(last) = run.last_mut()
        {
            *last = joined;
            count = 1;
        }
        for from in at - count..at {
            frames.swap(done, from);
            done += 1;
        }
    }
    frames.truncate(done);
}

/// How many frames, of one at least, are one.
fn run(frames: &[Frame], max_frame: usize) -> usize {
    let Some(((first, mut last), rest)) = frames
        .split_first()
        .and_then(|(first, rest)| Some(((first, Part::of(first)?), rest)))
    else {
        return 1;
    };
    let size = last.len();
    if size < usize::from(MIN_SEGMENT) || last.data + size > max_frame {
        return 1;
    }
    let (mut count, mut total) = (1, first.bytes().len());
    for (before, next) in frames.iter().zip(rest) {
        let Some(part) = Part::of(next) else { break };
        total += part.len();
        let one = last.flags == ACK
            && last.len() == size
            && part.len() <= size
            && total - part.segment.packet <= MAX_PACKET
            && last.is_followed_by(before.bytes(), &part, next.bytes()) == Some(true)
            && (count > 1 || last.is_right(before))
            && part.is_right(next);
        if !one {
            break;
        }
        last = part;
        count += 1;
    }
    count
}

/// The frame that a run is.
fn whole(run: &[Frame], max_frame: usize) -> Option<Frame> {
    let (first, rest) = run.split_first()?;
    let part = Part::of(first)?;
    let (start, tcp, ipv6) = (part.segment.packet, part.segment.start, part.segment.ipv6);
    let more: usize = rest.iter().map(|f| f.bytes().len() - part.data).sum();
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(first.bytes().len() + more).ok()?;
    bytes.extend_from_slice(first.bytes());
    let mut flags = part.flags;
    for frame in rest {
        bytes.extend_from_slice(frame.bytes().get(part.data..)?);
        flags = *frame.bytes().get(tcp + 13)?;
    }
    *bytes.get_mut(tcp + 13)? = flags;
    let packet = bytes.get_mut(start..)?;
    let length = packet.len();
    let mut put = |at: usize, value: u16| {
        let to = packet.get_mut(at..at + 2)?;
        to.copy_from_slice(&value.to_be_bytes());
        Some(())
    };
    if ipv6 {
        put(4, u16::try_from(length - 40).ok()?)?;
    } else {
        put(2, u16::try_from(length).ok()?)?;
        put(10, 0)?;
        let sum = complement(packet.get(..tcp - start)?);
        packet.get_mut(10..12)?.copy_from_slice(&sum.to_be_bytes());
    }
    Frame::large(bytes, part.len() as u16, ipv6, max_frame)
}

/// Where what is, in a frame that may be one of several.
struct Part {
    segment: Segment,
    data: usize,
    flags: u8,
}

impl Part {
    /// `None` when the frame is none: no TCP with data, with bytes behind it, or with flags that are not for several.
    fn of(frame: &Frame) -> Option<Self> {
        let bytes = frame.bytes();
        if frame.split().is_some() || frame.checksum() == Checksum::Blank {
            return None;
        }
        let segment = Segment::find(bytes).filter(|s| !s.udp && s.end == bytes.len())?;
        let data = segment.tcp_data(bytes)?;
        let flags = segment.tcp_flags(bytes)?;
        let good = data < segment.end && flags & ACK != 0 && flags & !(ACK | PSH | FIN) == 0;
        good.then_some(Self {
            segment,
            data,
            flags,
        })
    }

    /// Bytes of data.
    const fn len(&self) -> usize {
        self.segment.end - self.data
    }

    /// Whether its checksums are right. That of TCP may be known to be.
    fn is_right(&self, frame: &Frame) -> bool {
        let bytes = frame.bytes();
        let segment = &self.segment;
        let header = bytes.get(segment.packet..segment.start);
        (segment.ipv6 || header.is_some_and(|h| complement(h) == 0))
            && (frame.checksum() == Checksum::Validated || segment.is_right(bytes))
    }

    /// Whether the next frame's data follow this one's, and nothing else is different.
    fn is_followed_by(&self, bytes: &[u8], next: &Self, next_bytes: &[u8]) -> Option<bool> {
        let same = |from: usize, to: usize| {
            let range = from..to;
            bytes.get(range.clone()).is_some() && bytes.get(range.clone()) == next_bytes.get(range)
        };
        let places = |p: &Self| (p.segment.packet, p.segment.start, p.data, p.segment.ipv6);
        if places(self) != places(next) {
            return Some(false);
        }
        let (packet, tcp) = (self.segment.packet, self.segment.start);
        let sequence = |b: &[u8]| {
            let b = b.get(tcp + 4..tcp + 8)?;
            Some(u32::from_be_bytes(b.try_into().ok()?))
        };
        let id = |b: &[u8]| u16_at(b, packet + 4);
        // All but lengths, checksums and flags.
        let ip = match self.segment.ipv6 {
            true => same(packet, packet + 4) && same(packet + 6, tcp),
            false => {
                same(packet, packet + 2)
                    && id(next_bytes)? == id(bytes)?.wrapping_add(1)
                    && same(packet + 6, packet + 10)
                    && same(packet + 12, tcp)
            }
        };
        Some(
            ip && same(0, packet)
                && same(tcp, tcp + 4)
                && sequence(next_bytes)? == sequence(bytes)?.wrapping_add(self.len() as u32)
                && same(tcp + 8, tcp + 13)
                && same(tcp + 14, tcp + 16)
                && same(tcp + 18, self.data),
        )
    }
}
