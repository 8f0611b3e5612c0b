// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a control domain's back ends cost: frames from this domain to another, over the bridge that both are on.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Write;
use el1::{Machine, time};
use rt::pv_frontends::net::{self, Checksum, Vif};
use rt::pv_frontends::{Error, Platform, xenbus};
use rt::{Guest, Kernel, Store};

const PATIENCE: u64 = 60_000_000_000;
/// Frames until an answer is waited for.
const WINDOW: u32 = 32;
/// Frames in all, for each size.
const FRAMES: u32 = 2048;
/// Round trips of one frame.
const TRIPS: u32 = 512;
/// An Ethernet type for experiments (IEEE 802).
const TYPE: [u8; 2] = [0x88, 0xb5];
const BROADCAST: [u8; 6] = [0xff; 6];

type Interface = Vif<'static, &'static Kernel>;

pub fn main(machine: Machine) -> ! {
    let answers = machine.bootargs.split(' ').any(|w| w == "role=answers");
    let mut guest = Guest::new(machine);
    let result = match guest.xenstore() {
        Ok(xs) if answers => answer(&mut guest, xs),
        Ok(xs) => send(&mut guest, xs),
        Err(e) => Err(e),
    };
    let _ = match result {
        Ok(()) => writeln!(guest.console, "bench: done"),
        Err(e) => writeln!(guest.console, "bench: failed: {e}"),
    };
    loop {
        guest.wait(None);
    }
}

/// The interface that this domain has.
fn interface(guest: &mut Guest, xs: &'static Store) -> Result<Interface, Error> {
    let store = xs.by(guest.kernel.now() + PATIENCE);
    let ids = store.run(xenbus::devices(&store.access(), "vif"))?;
    let id = *ids.first().ok_or(Error::NoDevice)?;
    store.run(Vif::open(store.access(), id, net::Config::default()))
}

/// A frame of `size` bytes, that wants an answer or not.
fn frame(to: [u8; 6], from: [u8; 6], size: usize, answer: bool) -> Vec<u8> {
    let mut frame = [&to[..], &from, &TYPE, &[u8::from(answer)]].concat();
    frame.resize(size, 0);
    frame
}

/// Whose frame it is, if it is one of these, and which answer it wants: none (0), one to itself, or one to a multicast
/// address with this number.
fn ours(frame: &[u8]) -> Option<([u8; 6], u8)> {
    let from = frame.get(6..12)?.try_into().ok()?;
    (frame.get(12..14)? == TYPE).then_some((from, *frame.get(14)?))
}

/// Sends what is to be sent, waiting where there is no room.
fn put(kernel: &Kernel, vif: &Interface, frame: &[u8]) -> Result<(), Error> {
    loop {
        match vif.try_send(frame, Checksum::Present) {
            Err(Error::Busy) => {
                vif.kick();
                kernel.wait(kernel.now() + PATIENCE);
            }
            result => return result,
        }
    }
}

/// The peer: answers what wants an answer.
fn answer(guest: &mut Guest, xs: &'static Store) -> Result<(), Error> {
    let vif = interface(guest, xs)?;
    let mut buffer = vec![0; vif.info().max_frame];
    loop {
        let n = vif.by(u64::MAX).recv(&mut buffer)?.len;
        let to = match ours(&buffer[..n]) {
            None | Some((_, 0)) => continue,
            Some((from, 1)) => from,
            Some((_, n)) => [1, 0, 0x5e, 0, 0, n],
        };
        let reply = frame(to, vif.info().mac, 60, false);
        put(guest.kernel, &vif, &reply)?;
        vif.kick();
    }
}

/// Waits for an answer; whose it is.
fn answered(vif: &Interface, buffer: &mut [u8], deadline: u64) -> Result<[u8; 6], Error> {
    loop {
        let n = vif.by(deadline).recv(buffer)?.len;
        if let Some((from, _)) = ours(&buffer[..n]) {
            return Ok(from);
        }
    }
}

fn report(guest: &mut Guest, name: &str, ticks: u64, times: u32) {
    let _ = writeln!(guest.console, "row {name} {ticks} {times}");
}

fn send(guest: &mut Guest, xs: &'static Store) -> Result<(), Error> {
    let kernel = guest.kernel;
    let _ = writeln!(
        guest.console,
        "bench: {} ticks per second",
        time::frequency()
    );
    let vif = interface(guest, xs)?;
    let own = vif.info().mac;
    let mut buffer = vec![0; vif.info().max_frame];
    // The peer may still be starting.
    let end = kernel.now() + PATIENCE;
    let peer = loop {
        put(kernel, &vif, &frame(BROADCAST, own, 60, true))?;
        vif.kick();
        match answered(&vif, &mut buffer, kernel.now() + 200_000_000) {
            Err(Error::TimedOut) if kernel.now() < end => {}
            result => break result?,
        }
    };
    // Answers to earlier ones may be on their way.
    while answered(&vif, &mut buffer, kernel.now() + 500_000_000).is_ok() {}
    for size in [60, 1514] {
        let (plain, last) = (frame(peer, own, size, false), frame(peer, own, size, true));
        let mut begin = 0;
        for window in 0..FRAMES / WINDOW + 4 {
            if window == 4 {
                begin = time::ticks();
            }
            for _ in 1..WINDOW {
                put(kernel, &vif, &plain)?;
            }
            put(kernel, &vif, &last)?;
            vif.kick();
            answered(&vif, &mut buffer, kernel.now() + PATIENCE)?;
        }
        let ticks = time::ticks() - begin;
        report(guest, &format!("frame_{size}"), ticks, FRAMES);
    }
    let last = frame(peer, own, 60, true);
    let begin = time::ticks();
    for _ in 0..TRIPS {
        put(kernel, &vif, &last)?;
        vif.kick();
        answered(&vif, &mut buffer, kernel.now() + PATIENCE)?;
    }
    let ticks = time::ticks() - begin;
    report(guest, "frame_trip", ticks, TRIPS);
    let stats = vif.stats();
    if stats.send_errors != 0 || stats.receive_errors != 0 {
        let _ = writeln!(guest.console, "bench: frames failed: {stats:?}");
    }
    Ok(())
}
