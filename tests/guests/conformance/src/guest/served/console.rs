// SPDX-License-Identifier: MIT OR Apache-2.0
//! The PV console's ring: what is taken from it, and when.

use super::{MS, Served};
use alloc::format;
use alloc::vec;
use guest_abi::io::console::{IN, OUT};
use guest_abi::mem::SharedMem;

impl Served {
    pub fn consoles(&mut self) {
        for key in ["backend", "backend-id", "limit", "type", "output"] {
            let path = format!("console/{key}");
            let node = self.node(&path);
            self.case(format!("console.node.{key}"), node);
        }
        self.settle();
        let page = self.console;
        let input = page.load32(IN.prod) == page.load32(IN.cons);
        self.case("console.input_empty", input);
        // Text that is no case, a line at a time.
        let line = |n: usize| {
            let mut bytes = vec![b'.'; n];
            let n = n.saturating_sub(2);
            bytes.truncate(n);
            bytes.extend_from_slice(b"\r\n");
            bytes
        };
        for (name, n) in [("short", 3), ("almost_all", 2047), ("whole_ring", 2048)] {
            self.settle();
            let wrote = OUT.write(&page, &line(n)) == Ok(n);
            self.send(self.console_port);
            let taken = self.settle();
            self.case(format!("console.{name}"), format!("{wrote} {taken}"));
        }
        self.settle();
        let mut sent = 0;
        let text = line(100);
        while sent < 200 {
            let n = OUT.write(&page, &text).unwrap_or(0);
            // All or nothing.
            if n == text.len() {
                self.send(self.console_port);
                sent += 1;
            } else if self.settle() {
                let _ = OUT.write(&page, b"\r\n");
            } else {
                break;
            }
        }
        self.case("console.ten_rings", sent);
        // Nobody is told of these.
        self.settle();
        self.wait_ms(50);
        let _ = OUT.write(&page, &line(20));
        let taken = self.taken_within(100 * MS);
        self.case("console.without_event", taken);
        self.send(self.console_port);
        let taken = self.settle();
        self.case("console.event_later", taken);
        // An event, and nothing to take.
        self.send(self.console_port);
        self.send(self.console_port);
        let taken = self.settle();
        self.case("console.empty_event", taken);
        // Indexes run on and wrap.
        for (name, at) in [
            ("high", 0x8000_0000_u32),
            ("wrap", 0xffff_fe00),
            ("zero", 0),
        ] {
            self.settle();
            page.store32(OUT.cons, at);
            page.store32(OUT.prod, at);
            let wrote = OUT.write(&page, &line(1024)) == Ok(1024);
            self.send(self.console_port);
            let taken = self.settle();
            let after = page.load32(OUT.cons) == at.wrapping_add(1024);
            self.case(
                format!("console.index_{name}"),
                format!("{wrote} {taken} {after}"),
            );
        }
        // More than the ring holds: nothing is taken until it makes sense again.
        self.settle();
        let cons = page.load32(OUT.cons);
        page.store32(OUT.prod, cons.wrapping_add(2049));
        self.send(self.console_port);
        self.taken_within(100 * MS);
        page.store32(OUT.prod, cons);
        page.store32(OUT.prod, cons.wrapping_sub(1));
        self.send(self.console_port);
        let taken = self.taken_within(100 * MS);
        page.store32(OUT.prod, cons);
        self.case("console.behind", taken);
        let _ = OUT.write(&page, &line(20));
        self.send(self.console_port);
        let taken = self.settle();
        self.case("console.after_overrun", taken);
        // The reader's index is the other end's, but is read from the page.
        self.settle();
        let prod = page.load32(OUT.prod);
        page.store32(OUT.cons, prod.wrapping_sub(10));
        self.send(self.console_port);
        let taken = self.settle();
        self.case("console.reader_set_back", taken);
        self.settle();
        let _ = OUT.write(&page, &line(500));
        page.store32(OUT.cons, page.load32(OUT.prod));
        self.send(self.console_port);
        let taken = self.settle();
        self.case("console.reader_set_forward", taken);
    }

    fn taken_within(&mut self, ns: u64) -> bool {
        let page = self.console;
        self.within(ns, |_| {
            (page.load32(OUT.cons) == page.load32(OUT.prod)).then_some(())
        })
        .is_some()
    }

    /// Waits until the other end has taken everything.
    fn settle(&mut self) -> bool {
        self.taken_within(2000 * MS)
    }
}
