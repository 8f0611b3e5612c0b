// SPDX-License-Identifier: MIT OR Apache-2.0
//! The console against a terminal at the other end, one that sleeps, and one that breaks the ring.

mod common;

use common::*;
use core::fmt::Write as _;
use embedded_io::{ErrorKind, Read, ReadReady, WriteReady};
use guest_abi::io::console::{IN, OUT, OUT_SIZE};
use guest_abi::mem::SharedMem;
use guest_abi::{Gfn, Hypercall as _};
use proptest::prelude::*;
use pv_frontends::console::{Console, EMERGENCY_TRIES, Emergency, LogSink};
use pv_frontends::{Error, Platform};
use std::cell::RefCell;
use std::rc::Rc;

/// A terminal that takes everything.
fn terminal(w: &World) -> Rc<RefCell<Vec<u8>>> {
    let shown = Rc::new(RefCell::new(Vec::new()));
    let (to, page) = (shown.clone(), w.placed(CONSOLE_GFN));
    w.add(move |w| {
        if !w.sent.borrow_mut().remove(&CONSOLE_PORT.0) {
            return false;
        }
        let mut buffer = [0; 300];
        let n = OUT.read(&page, &mut buffer).unwrap();
        to.borrow_mut().extend(&buffer[..n]);
        if OUT.available(&page).unwrap() > 0 {
            w.sent.borrow_mut().insert(CONSOLE_PORT.0);
        }
        n > 0
    });
    shown
}

#[test]
fn prints_and_reads() {
    let w = World::new();
    let shown = terminal(w);
    let mut c = Console::open(w).unwrap();
    writeln!(c, "one\ntwo {}", 3).unwrap();
    c.flush(w.now() + SECOND).unwrap();
    assert_eq!(*shown.borrow(), b"one\r\ntwo 3\r\n");
    // More than the ring holds.
    let long: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
    shown.borrow_mut().clear();
    c.write_all(&long, w.now() + SECOND).unwrap();
    embedded_io::Write::flush(&mut c).unwrap();
    assert_eq!(*shown.borrow(), long);
    let page = w.placed(CONSOLE_GFN);
    let mut buffer = [0; 4];
    assert_eq!(c.try_read(&mut buffer), Ok(0));
    assert_eq!(c.read_ready(), Ok(false));
    IN.write(&page, b"typed").unwrap();
    assert_eq!(c.read_ready(), Ok(true));
    assert_eq!(Read::read(&mut c, &mut buffer), Ok(4));
    assert_eq!(&buffer, b"type");
    assert!(
        w.sent.borrow().contains(&CONSOLE_PORT.0),
        "the room is told of"
    );
    assert_eq!(c.read(&mut buffer, w.now()), Ok(1));
    assert_eq!(c.read(&mut [], w.now()), Ok(0));
}

#[test]
fn nobody_at_the_other_end() {
    let w = World::new();
    let mut c = Console::open(w).unwrap();
    let begin = w.now();
    assert_eq!(c.read(&mut [0], begin + MS), Err(Error::TimedOut));
    c.set_read_timeout(MS);
    let e = Read::read(&mut c, &mut [0]).unwrap_err();
    assert_eq!(embedded_io::Error::kind(&e), ErrorKind::TimedOut);
    assert_eq!(
        c.write_all(&[b'x'; 3000], w.now() + MS),
        Err(Error::TimedOut)
    );
    assert_eq!((c.writable(), c.write_ready()), (Ok(0), Ok(false)));
    assert_eq!(c.try_write(b"x"), Ok(0));
    assert_eq!(
        embedded_io::Write::write(&mut c, b"x"),
        Err(Error::TimedOut)
    );
    assert_eq!(embedded_io::Write::write(&mut c, b""), Ok(0));
    let before = w.now();
    write!(c, "a\nb\nc").unwrap();
    assert!(
        w.now() - before <= SECOND + MS,
        "one timeout for all, and no error"
    );
    assert_eq!(c.flush(w.now() + MS), Err(Error::TimedOut));
}

#[test]
fn a_panic_is_printed_without_clock_and_interrupts() {
    let w = World::new();
    let c = Console::open(w).unwrap();
    let page = w.placed(CONSOLE_GFN);
    let before = w.now();
    write!(c.emergency(), "panic:\n1").unwrap();
    let mut out = [0; 9];
    assert_eq!(OUT.read(&page, &mut out), Ok(9));
    assert_eq!(&out, b"panic:\r\n1");
    // A full ring: some patience, and then the hypervisor's console.
    c.try_write(&[b'.'; OUT_SIZE as usize - 2]).unwrap();
    let mut e = Emergency::new(&page, w, CONSOLE_PORT);
    write!(e, "abcd").unwrap();
    assert_eq!(w.yields.get(), EMERGENCY_TRIES);
    assert_eq!(*w.printed.borrow(), b"cd");
    write!(e, "ef").unwrap();
    assert_eq!(
        (w.yields.get(), &**w.printed.borrow()),
        (EMERGENCY_TRIES, &b"cdef"[..])
    );
    // A ring that makes no sense: at once.
    page.store32(OUT.cons, 77777);
    w.printed.borrow_mut().clear();
    write!(c.emergency(), "x").unwrap();
    assert_eq!(
        (w.yields.get(), &**w.printed.borrow()),
        (EMERGENCY_TRIES, &b"x"[..])
    );
    assert_eq!(w.now(), before);
}

#[test]
fn impossible_indexes_are_errors() {
    let w = World::new();
    let c = Console::open(w).unwrap();
    let page = w.placed(CONSOLE_GFN);
    page.store32(OUT.cons, 1);
    page.store32(IN.prod, 1025);
    let e = Error::Protocol("impossible ring index");
    assert_eq!(c.try_write(b"x"), Err(e));
    assert_eq!(c.write_all(b"x", u64::MAX), Err(e));
    assert_eq!(c.flush(u64::MAX), Err(e));
    assert_eq!(c.try_read(&mut [0]), Err(e));
    assert_eq!(c.read(&mut [0], u64::MAX), Err(e));
}

#[test]
fn no_console() {
    let w = World::new();
    w.params.borrow_mut().clear();
    assert_eq!(Console::open(w).map(drop), Err(Error::NoDevice));
    assert!(w.map(Gfn(1)).is_none());
    let _ = w.call(guest_abi::HypercallNr::SchedOp, [0; 5], &mut []);
}

thread_local! {
    static LINES: RefCell<String> = const { RefCell::new(String::new()) };
}

#[test]
fn log_records_are_lines() {
    fn print(line: core::fmt::Arguments<'_>) {
        LINES.with_borrow_mut(|l| l.write_fmt(line).unwrap());
    }
    static SINK: LogSink = LogSink::new(print);
    log::set_logger(&SINK).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    log::warn!(target: "disk", "slow: {} ms", 7);
    log::debug!("not shown");
    LINES.with_borrow(|l| assert_eq!(l, "WARN  disk: slow: 7 ms\n"));
}

proptest! {
    /// Whatever the other end writes to the page, nothing panics and every call ends.
    #[test]
    fn a_hostile_console(words in prop::collection::vec((0..4_usize, any::<u32>()), 1..20)) {
        let w = World::new();
        let mut c = Console::open(w).unwrap();
        let page = w.placed(CONSOLE_GFN);
        for (word, value) in words {
            page.store32([IN.cons, IN.prod, OUT.cons, OUT.prod][word], value % 6000);
            let _ = c.try_read(&mut [0; 2000]);
            let _ = c.write_all(&[0; 5000], w.now() + MS);
            let _ = c.read(&mut [0; 10], w.now() + MS);
            let _ = writeln!(c, "text");
        }
    }
}
