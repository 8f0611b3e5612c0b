// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's console: what waits for the UART, the log that `vane dmesg` shows, what guests may print
//! there, and bytes typed that wait for dom0.
//!
//! Nobody waits for the UART: what is printed goes into a ring ([`Output`]) that its interrupt empties. Guests come
//! first to where there is no more room for them, then dom0, whose call is made again when there is room, and the
//! hypervisor last.
//!
//! A guest prints whole lines of printable ASCII that begin with `(dN) ` (as Xen has it) and fit a terminal of 80
//! columns ([`Lines`]), so that nothing of it can be taken for anybody else's.

use crate::types::DomId;
use alloc::collections::VecDeque;

/// Bytes typed that dom0 has not read yet; more are dropped.
const INPUT: usize = 4096;
/// Bytes that wait for the UART; as many are kept for `vane dmesg`. A power of two.
pub const RING: usize = 16 * 1024;
/// Of them, those that only the hypervisor itself may use.
const RESERVE: usize = RING / 4;
/// How often dom0 finds that nothing has left before what it prints is dropped: the UART is stuck.
const STUCK: u32 = 300;

/// Who prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaker {
    /// The hypervisor, a line at a time. (Not 0: an empty [`Output`] is to take no room in the image.)
    Hypervisor = 1,
    /// The control domain, bytes as they come.
    Control,
    /// A guest, lines that [`Lines`] made.
    Guest,
}

/// The last bytes of those that were put in.
struct Ring {
    bytes: [u8; RING],
    /// Bytes ever put in, and how many of the last are there still.
    end: u64,
    len: usize,
}

impl Ring {
    const NEW: Self = Self {
        bytes: [0; RING],
        end: 0,
        len: 0,
    };

    /// Puts a byte in; the oldest goes where there is no room.
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.end as usize % RING) {
            *place = byte;
        }
        self.end = self.end.wrapping_add(1);
        self.len = self.len.saturating_add(1).min(RING);
    }

    const fn oldest(&self) -> u64 {
        self.end.wrapping_sub(self.len as u64)
    }

    /// Copies bytes from position `at` on, none of which is missing; gives how many.
    fn read(&self, at: u64, buf: &mut [u8]) -> usize {
        let mut n = 0;
        while n < buf.len() {
            let from = at.saturating_add(n as u64);
            let most = self.end.saturating_sub(from) as usize;
            if most == 0 {
                break;
            }
            let place = from as usize % RING;
            let (Some(from), Some(to)) = (self.bytes.get(place..), buf.get_mut(n..)) else {
                break;
            };
            let count = from.len().min(to.len()).min(most);
            if let (Some(from), Some(to)) = (from.get(..count), to.get_mut(..count)) {
                to.copy_from_slice(from);
            }
            n = n.saturating_add(count);
        }
        n
    }
}

/// What waits for the UART, and the log.
pub struct Output {
    ring: Ring,
    log: Ring,
    /// Whose line is not at its end.
    open: Option<Speaker>,
    /// Lines of the hypervisor's that had no room.
    lost: u32,
    /// How often dom0 found no room since a byte left last.
    waits: u32,
}

impl Output {
    /// Nothing printed yet.
    pub const NEW: Self = Self {
        ring: Ring::NEW,
        log: Ring::NEW,
        open: None,
        lost: 0,
        waits: 0,
    };

    /// Takes bytes to be sent, and gives how many: of the control domain as many as there is room for, of others all or
    /// none. A line feed gets its carriage return; who prints while another's line is not at its end begins a new
    /// one. What is not the control domain's is logged, the hypervisor's also when it cannot be sent.
    pub fn write(&mut self, from: Speaker, bytes: &[u8]) -> usize {
        let limit = match from {
            Speaker::Hypervisor => RING,
            Speaker::Control => RING - RESERVE,
            Speaker::Guest => RING / 2,
        };
        let mut room = limit.saturating_sub(self.ring.len);
        let whole = from != Speaker::Control;
        let feeds = bytes.iter().filter(|&&b| b == b'\n').count();
        let fits = bytes.len().saturating_add(feeds).saturating_add(2) <= room;
        if from == Speaker::Hypervisor || whole && fits {
            bytes.iter().for_each(|&b| self.log.push(b));
        }
        if whole && !fits {
            self.lost = self.lost.saturating_add(1);
            return 0;
        }
        if self.open.is_some_and(|o| o != from) && room >= 3 {
            self.send(b'\n');
            room = room.saturating_sub(2);
            self.open = None;
        }
        let mut taken = 0usize;
        for &b in bytes {
            let need = if b == b'\n' { 2 } else { 1 };
            let Some(left) = room.checked_sub(need) else {
                break;
            };
            room = left;
            self.send(b);
            self.open = (b != b'\n').then_some(from);
            taken = taken.saturating_add(1);
        }
        if taken == 0 && !whole {
            self.waits = self.waits.saturating_add(1);
            if self.waits > STUCK {
                return bytes.len();
            }
        }
        taken
    }

    fn send(&mut self, byte: u8) {
        if byte == b'\n' {
            self.ring.push(b'\r');
        }
        self.ring.push(byte);
    }

    /// The next byte for the UART.
    pub fn pop(&mut self) -> Option<u8> {
        let at = self.ring.oldest();
        let byte = (self.ring.len != 0).then(|| self.ring.bytes.get(at as usize % RING))?;
        self.ring.len = self.ring.len.saturating_sub(1);
        self.waits = 0;
        byte.copied()
    }

    /// Nothing waits for the UART.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ring.len == 0
    }

    /// How many lines of others than the control domain had no room since this was asked last.
    pub fn take_lost(&mut self) -> u32 {
        core::mem::take(&mut self.lost)
    }

    /// Copies log bytes from position `from` (counted since boot) on; gives how many were copied
    /// and the position of the first, which is later than `from` when the log has moved on.
    pub fn read_log(&self, from: u64, buf: &mut [u8]) -> (usize, u64) {
        let start = from.clamp(self.log.oldest(), self.log.end);
        (self.log.read(start, buf), start)
    }

    /// Copies the last bytes that were put in for the UART, the control domain's among them; gives how many.
    pub fn last(&self, buf: &mut [u8]) -> usize {
        let most = buf.len().min(RING) as u64;
        self.ring.read(self.ring.end.saturating_sub(most), buf)
    }

    /// Forgets the log.
    pub fn clear_log(&mut self) {
        self.log.len = 0;
    }
}

/// How fast may be printed: a byte in `NS` nanoseconds, and `BURST` bytes at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowance<const NS: u64, const BURST: u64> {
    /// When all that was printed is paid for.
    paid: u64,
}

impl<const NS: u64, const BURST: u64> Allowance<NS, BURST> {
    /// When so many bytes more may be printed, in ns.
    fn when(self, bytes: u64) -> u64 {
        self.paid
            .saturating_add(bytes.saturating_mul(NS))
            .saturating_sub(BURST.saturating_mul(NS))
    }

    fn take(&mut self, bytes: u64, now: u64) {
        self.paid = self.paid.max(now).saturating_add(bytes.saturating_mul(NS));
    }
}

/// Of all guests together 4 KiB a second, which is a third of what 115,200 baud carry, and 8 KiB at once.
pub type AllGuests = Allowance<{ 1_000_000_000 / 4096 }, 8192>;
/// Of one guest 3 KiB a second, and 6 KiB at once.
type OneGuest = Allowance<{ 1_000_000_000 / 3072 }, 6144>;

/// What a guest prints, made into lines.
#[derive(Clone, Copy, Debug)]
pub struct Lines {
    line: [u8; Self::WIDTH + 1],
    len: usize,
    /// Where the terminal's cursor would be.
    column: usize,
    /// What every line begins with: so many bytes of `line`.
    prefix: usize,
    /// Lines that were not printed.
    left_out: u32,
    allowance: OneGuest,
}

impl Lines {
    /// Columns of a line: at 80 a terminal would go on in the next one, with what the guest chose.
    pub const WIDTH: usize = 79;
    /// Lines that one call makes at most.
    pub const SLICE: u32 = 8;

    /// Of a domain that printed nothing yet.
    #[must_use]
    pub fn new(domid: DomId) -> Self {
        let mut new = Self {
            line: [0; Self::WIDTH + 1],
            len: 0,
            column: 0,
            prefix: 0,
            left_out: 0,
            allowance: OneGuest::default(),
        };
        new.text(b"(d");
        new.number(u32::from(domid.0));
        new.text(b") ");
        new.prefix = new.len;
        new
    }

    fn put(&mut self, byte: u8) {
        if let Some(place) = self.line.get_mut(self.len) {
            *place = byte;
            self.len = self.len.saturating_add(1);
            self.column = self.column.saturating_add(1);
        }
    }

    fn text(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&b| self.put(b));
    }

    fn number(&mut self, n: u32) {
        if n > 9 {
            self.number(n / 10);
        }
        self.put(b'0' | (n % 10) as u8);
    }

    /// Takes bytes until [`Self::SLICE`] lines are at their end, or one may not be printed yet. Gives how many, and when
    /// it may, in ns. `print` is given whole lines, and says whether there was room for one.
    pub fn write(
        &mut self,
        bytes: &[u8],
        all: &mut AllGuests,
        now: u64,
        mut print: impl FnMut(&[u8]) -> bool,
    ) -> (usize, Option<u64>) {
        let mut lines = 0;
        for (n, &b) in bytes.iter().enumerate() {
            if lines >= Self::SLICE {
                return (n, None);
            }
            let width = match b {
                b'\n' => Self::WIDTH,
                b'\t' => 8usize.wrapping_sub(self.column % 8),
                b' '..=b'~' => 1,
                // Controls of ASCII, and of ISO 8859-1 and UTF-8: also those are orders to some terminals.
                _ => continue,
            };
            if self.column.saturating_add(width) > Self::WIDTH {
                if let Err(until) = self.end(all, now, &mut print) {
                    return (n, Some(until));
                }
                lines = lines.wrapping_add(1);
            }
            if b != b'\n' {
                self.put(b);
                self.column = self.column.saturating_add(width).saturating_sub(1);
            }
        }
        (bytes.len(), None)
    }

    /// Prints a line that is not at its end, if there is one and it may be printed.
    pub fn flush(&mut self, all: &mut AllGuests, now: u64, mut print: impl FnMut(&[u8]) -> bool) {
        if self.len > self.prefix {
            let _ = self.end(all, now, &mut print);
        }
    }

    /// Prints the line, and before it how many there was no room for. The error is when it may be printed.
    fn end(
        &mut self,
        all: &mut AllGuests,
        now: u64,
        print: &mut impl FnMut(&[u8]) -> bool,
    ) -> Result<(), u64> {
        let told = if self.left_out == 0 { 0 } else { Self::WIDTH };
        let cost = self.len.saturating_add(2).saturating_add(told) as u64;
        let when = self.allowance.when(cost).max(all.when(cost));
        if when > now {
            return Err(when);
        }
        self.allowance.take(cost, now);
        all.take(cost, now);
        if self.left_out != 0 {
            let mut note = *self;
            note.begin();
            note.number(self.left_out);
            note.text(b" lines were left out");
            if print(note.whole()) {
                self.left_out = 0;
            }
        }
        if self.left_out != 0 || !print(self.whole()) {
            self.left_out = self.left_out.saturating_add(1);
        }
        self.begin();
        Ok(())
    }

    fn begin(&mut self) {
        self.len = self.prefix;
        self.column = self.prefix;
    }

    /// The line with its end.
    fn whole(&mut self) -> &[u8] {
        if let Some(end) = self.line.get_mut(self.len) {
            *end = b'\n';
        }
        self.line.get(..=self.len).unwrap_or_default()
    }
}

/// Bytes typed.
pub struct Console {
    input: VecDeque<u8>,
    /// What guests may print, all together.
    pub guests: AllGuests,
}

impl Console {
    /// Empty; allocates the buffer (at boot).
    #[must_use]
    pub fn new() -> Self {
        Self {
            input: VecDeque::with_capacity(INPUT),
            guests: AllGuests::default(),
        }
    }

    /// A byte was typed; `false` when it had to be dropped.
    pub fn typed(&mut self, byte: u8) -> bool {
        let room = self.input.len() < INPUT;
        if room {
            self.input.push_back(byte);
        }
        room
    }

    /// Takes typed bytes; gives how many.
    pub fn read_input(&mut self, buf: &mut [u8]) -> usize {
        let mut n = 0usize;
        for place in buf {
            let Some(b) = self.input.pop_front() else {
                break;
            };
            *place = b;
            n = n.wrapping_add(1);
        }
        n
    }
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

/// How much of the log guests may cause by what they do, all together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reports {
    window: u64,
    lines: u32,
    left_out: u32,
}

impl Reports {
    /// Lines in one window.
    const LINES: u32 = 60;
    /// Nanoseconds of a window.
    const WINDOW: u64 = 10_000_000_000;

    /// Whether a report of so many lines may be printed at `now`, in ns. Says in the log what was
    /// left out, once there is room again.
    pub fn allow(&mut self, lines: u32, now: u64) -> bool {
        let window = now / Self::WINDOW;
        if window != self.window {
            if self.left_out != 0 {
                log::warn!("{} reports of what guests did were left out", self.left_out);
            }
            *self = Self {
                window,
                ..Self::default()
            };
        }
        if self.lines.saturating_add(lines) > Self::LINES {
            self.left_out = self.left_out.saturating_add(1);
            return false;
        }
        self.lines = self.lines.saturating_add(lines);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drain(o: &mut Output) -> std::vec::Vec<u8> {
        core::iter::from_fn(|| o.pop()).collect()
    }

    /// What reaches the UART and the log when domain 7 prints `bytes` in these cuts.
    fn printed(bytes: &[u8], cuts: &[usize]) -> (std::vec::Vec<u8>, std::vec::Vec<u8>) {
        let (mut o, mut l, mut all) = (Output::NEW, Lines::new(DomId(7)), AllGuests::default());
        let (mut left, mut now, mut sent) = (bytes, 0, std::vec::Vec::new());
        let mut cuts = cuts.iter().cycle();
        while !left.is_empty() {
            let part = &left[..left.len().min(*cuts.next().unwrap_or(&usize::MAX))];
            let mut took = 0;
            while took < part.len() {
                let (n, until) = l.write(&part[took..], &mut all, now, |line| {
                    o.write(Speaker::Guest, line) != 0
                });
                took += n;
                now = until.unwrap_or(now);
                sent.extend(drain(&mut o));
            }
            left = &left[part.len()..];
        }
        l.flush(&mut all, now + 10_000_000_000, |line| {
            o.write(Speaker::Guest, line) != 0
        });
        sent.extend(drain(&mut o));
        let mut log = std::vec![0; RING];
        let (n, _) = o.read_log(0, &mut log);
        log.truncate(n);
        (sent, log)
    }

    proptest! {
        /// Whatever bytes in whatever pieces: each line begins with the domain's number and stays on its line of
        /// the screen, and there is nothing that is an order to a terminal.
        #[test]
        fn xsa_118_146_a_guest_cannot_print_what_looks_like_others(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b'\r'), Just(b'\t'), Just(0x1b), b' '..b'~'], 0..500),
            cuts in proptest::collection::vec(1usize..300, 1..8),
        ) {
            let (sent, log) = printed(&bytes, &cuts);
            let text = std::string::String::from_utf8(sent).unwrap();
            prop_assert!(text.is_empty() || text.ends_with("\r\n"));
            for line in text.split_terminator("\r\n") {
                prop_assert!(line.starts_with("(d7) "), "{line:?}");
                prop_assert!(line.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b)), "{line:?}");
                let columns = line.bytes().fold(0, |at, b| if b == b'\t' { at / 8 * 8 + 8 } else { at + 1 });
                prop_assert!(columns <= 79, "{line:?}");
            }
            prop_assert!(text.replace("\r\n", "\n").into_bytes().ends_with(&log), "and so in dmesg");
            // Nothing that may be shown is lost or changes its place.
            let shown = |s: &[u8]| s.iter().copied().filter(|b| (b' '..=b'~').contains(b)).collect::<std::vec::Vec<_>>();
            prop_assert_eq!(shown(text.replace("(d7) ", "").as_bytes()), shown(&bytes));
        }
    }

    #[test]
    fn xsa_118_146_a_flood_is_cut_to_a_part_of_what_the_line_carries() {
        let flood = |domains: u16| {
            let mut all = AllGuests::default();
            let mut lines: std::vec::Vec<_> = (1..=domains).map(|n| Lines::new(DomId(n))).collect();
            let mut bytes = 0;
            for ms in 0..1000 {
                for l in &mut lines {
                    l.write(b"\n\n\n", &mut all, ms * 10_000_000, |line| {
                        bytes += line.len() + 1;
                        true
                    });
                }
            }
            bytes
        };
        let (one, many) = (flood(1), flood(40));
        assert!((20_000..=6144 + 10 * 3073).contains(&one), "{one}");
        assert!((40_000..=8192 + 10 * 4097).contains(&many), "{many}");
    }

    #[test]
    fn who_prints_too_much_waits_and_loses_nothing() {
        let (mut l, mut all) = (Lines::new(DomId(3)), AllGuests::default());
        let text = [&[b'x'; 70][..], b"\n"].concat().repeat(100);
        let (mut at, mut now, mut lines, mut waits) = (0, 0, 0, 0);
        while at < text.len() {
            let (n, until) = l.write(&text[at..], &mut all, now, |_| {
                lines += 1;
                true
            });
            at += n;
            assert!(n > 0 || until.is_some_and(|t| t > now));
            waits += u32::from(until.is_some());
            now = until.unwrap_or(now);
        }
        assert_eq!((lines, waits), (100, 100 - 6144 / 77));
        assert_eq!(now, (100 * 77 - 6144) * (1_000_000_000 / 3072));
    }

    #[test]
    fn what_had_no_room_is_told() {
        let (mut l, mut all) = (Lines::new(DomId(3)), AllGuests::default());
        l.write(b"a\nb\nc", &mut all, 0, |_| false);
        let mut out = std::vec::Vec::new();
        l.write(b"\nd\n", &mut all, 0, |line| {
            out.extend_from_slice(line);
            true
        });
        assert_eq!(out, b"(d3) 2 lines were left out\n(d3) c\n(d3) d\n");
    }

    #[test]
    fn one_call_makes_a_few_lines_only() {
        let (mut l, mut all) = (Lines::new(DomId(3)), AllGuests::default());
        let mut lines = 0;
        let took = l.write(&[b'\n'; 256], &mut all, 0, |_| {
            lines += 1;
            true
        });
        assert_eq!((took, lines), ((Lines::SLICE as usize, None), Lines::SLICE));
    }

    #[test]
    fn who_prints_in_the_middle_begins_a_line() {
        let mut o = Output::NEW;
        o.write(Speaker::Control, b"vane> ");
        o.write(Speaker::Hypervisor, b"(PV) ");
        o.write(Speaker::Hypervisor, b"a\n");
        o.write(Speaker::Control, b"li");
        o.write(Speaker::Guest, b"(d1) b\n");
        o.write(Speaker::Control, b"st\n");
        assert_eq!(drain(&mut o), b"vane> \r\n(PV) a\r\nli\r\n(d1) b\r\nst\r\n");
        let mut log = [0; 100];
        let (n, from) = o.read_log(0, &mut log);
        assert_eq!((&log[..n], from), (&b"(PV) a\n(d1) b\n"[..], 0));
        let (n, from) = o.read_log(7, &mut log);
        assert_eq!((&log[..n], from), (&b"(d1) b\n"[..], 7));
        o.clear_log();
        assert_eq!(o.read_log(0, &mut log), (0, 14));
    }

    #[test]
    fn guests_lose_first_then_dom0_waits_and_the_hypervisor_has_the_rest() {
        let mut o = Output::NEW;
        let line = [&[b'x'; 78][..], b"\n"].concat();
        let mut guest = 0;
        while o.write(Speaker::Guest, &line) != 0 {
            guest += 80;
        }
        assert!((RING / 2 - 82..=RING / 2).contains(&guest));
        let mut dom0 = 0;
        loop {
            let n = o.write(Speaker::Control, &[b'y'; 256]);
            dom0 += n;
            if n < 256 {
                break;
            }
        }
        assert_eq!(guest + dom0, RING - RESERVE);
        assert_eq!(o.write(Speaker::Control, b"z"), 0, "to be made again");
        assert_eq!(o.write(Speaker::Guest, &line), 0);
        assert_ne!(o.write(Speaker::Hypervisor, &line), 0);
        for _ in 0..RING - RESERVE + 2 {
            o.pop();
        }
        assert_eq!(o.write(Speaker::Control, b"z"), 1);
        // All that came after is there, in its order.
        assert_eq!(drain(&mut o), [&line[..78], b"\r\n", b"z"].concat()[..]);
    }

    #[test]
    fn the_control_domain_does_not_wait_for_a_stuck_uart_for_ever() {
        let mut o = Output::NEW;
        while o.write(Speaker::Control, &[b'y'; 256]) != 0 {}
        let tries = (0..).find(|_| o.write(Speaker::Control, b"abc") == 3);
        assert_eq!(tries, Some(STUCK as usize - 1));
        assert_eq!(o.write(Speaker::Control, b"abc"), 3, "nor again");
        o.pop();
        assert_eq!(o.write(Speaker::Control, b"abc"), 1, "it works again");
    }

    #[test]
    fn the_log_keeps_the_last() {
        let mut o = Output::NEW;
        let mut all = std::vec::Vec::new();
        for n in 0..2000 {
            let line = std::format!("(PV) {n} and so on\n");
            o.write(Speaker::Hypervisor, line.as_bytes());
            all.extend(line.bytes());
        }
        let mut log = std::vec![0; 2 * RING];
        let (n, from) = o.read_log(0, &mut log);
        assert_eq!((n, from), (RING, (all.len() - RING) as u64));
        assert_eq!(log[..n], all[all.len() - RING..], "also what had no room");
        assert!(o.take_lost() > 1000);
    }

    /// A guest that crashes and is started again without end does not flood the log.
    #[test]
    fn xsa_118_146_reports_are_bounded_whoever_causes_them() {
        let mut r = Reports::default();
        let second = 1_000_000_000;
        let printed = |r: &mut Reports, from: u64| {
            (0..1000)
                .filter(|i| r.allow(10, from + i * second / 1000))
                .count()
        };
        assert_eq!(printed(&mut r, 100 * second), 6);
        assert_eq!(printed(&mut r, 105 * second), 0, "the same ten seconds");
        assert_eq!(r.left_out, 1994);
        assert!(r.allow(1, 110 * second));
        assert_eq!(r.left_out, 0);
        assert_eq!(
            printed(&mut r, 111 * second),
            5,
            "and no window is lent to another"
        );
        assert!(!r.allow(u32::MAX - 60, 112 * second));
    }
}
