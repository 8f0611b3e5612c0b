// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a control domain serves: xenstore, the PV console, disks and network interfaces (`role=served`).
//!
//! Nothing here uses the front ends' own code: a case writes what a front end would not.

mod block;
mod console;
mod front;
mod net;
mod store;
mod wire;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Display;
use el1::shared::Shared;
use el1::{Machine, gic, hvc, time};
use guest_abi::hvm::Param;
use guest_abi::io::console::OUT;
use guest_abi::mem::SharedMem;
use guest_abi::xen::offset::{
    EVTCHN_PENDING as PENDING, PENDING_SEL as SELECTOR, UPCALL_PENDING as UPCALL,
};
use guest_abi::{DomId, Errno, Port, calls};

use wire::Wire;

const MS: u64 = 1_000_000;
/// How long others may take to answer.
const PATIENCE: u64 = 5_000 * MS;

/// What cases work with.
pub struct Served {
    info: Shared,
    grants: Shared,
    /// The next entry of the grant table that is free.
    gref: u32,
    given: front::Given,
    event_intid: u32,
    console: Shared,
    console_port: Port,
    wire: Wire,
    own: u32,
}

/// A page and port that the toolstack gave the domain.
fn attach(page: Param, port: Param) -> Result<(Shared, Port), Errno> {
    let get = |param| calls::hvm::get_param(&hvc::xen(), DomId::SELF, param);
    let gfn = get(page)?;
    let port = Port(get(port)? as u32);
    calls::event::unmask(&hvc::xen(), port)?;
    Ok((Shared::at(gfn, 1).ok_or(Errno::EINVAL)?, port))
}

/// Runs the cases; comes back only when it cannot.
pub fn run(machine: &Machine, info: Shared, grants: Shared) -> Result<(), Errno> {
    let hypervisor = machine.hypervisor.as_ref().ok_or(Errno::ENXIO)?;
    gic::enable(hypervisor.event_intid, gic::Trigger::Level);
    gic::enable(time::INTID, gic::Trigger::Level);
    let (console, console_port) = attach(Param::ConsolePfn, Param::ConsoleEvtchn)?;
    let (page, port) = attach(Param::StorePfn, Param::StoreEvtchn)?;
    let mut served = Served {
        info,
        grants,
        // The first eight are the toolstack's.
        gref: 8,
        given: Vec::new(),
        event_intid: hypervisor.event_intid,
        console,
        console_port,
        wire: Wire::new(page, port),
        own: 0,
    };
    let own = served.text("domid");
    served.own = own.parse().map_err(|_| Errno::EINVAL)?;
    served.store();
    served.consoles();
    served.blocks();
    served.nets();
    served.last_of_store();
    served.print("conformance: done\r\n");
    loop {
        served.wait(u64::MAX);
    }
}

/// Bytes for people: what is not plain is written as `\xNN`, a zero as `|`.
fn show(bytes: &[u8]) -> String {
    let mut text = String::new();
    for b in bytes {
        match b {
            0 => text.push('|'),
            b' '..=b'~' => text.push(*b as char),
            _ => text += &format!("\\x{b:02x}"),
        }
    }
    text
}

impl Served {
    /// Tells what came of a case.
    fn case(&mut self, name: impl Display, result: impl Display) {
        self.print(&format!("case {name} = {result}\r\n"));
        // Taken as a whole before the next case has dom0 say something of its own.
        let page = self.console;
        self.within(1000 * MS, |_| {
            (page.load32(OUT.cons) == page.load32(OUT.prod)).then_some(())
        });
    }

    /// Writes to the PV console, and waits for room.
    fn print(&mut self, line: &str) {
        let mut rest = line.as_bytes();
        let end = time::now_ns() + PATIENCE;
        while !rest.is_empty() && time::now_ns() < end {
            let n = OUT.write(&self.console, rest).unwrap_or(0);
            rest = rest.get(n..).unwrap_or_default();
            if n > 0 {
                self.send(self.console_port);
            } else {
                self.wait(end);
            }
        }
    }

    fn send(&self, port: Port) {
        let _ = calls::event::send(&hvc::xen(), port);
    }

    /// Sleeps until an event or the time comes.
    fn wait(&self, until: u64) {
        time::set_alarm((until != u64::MAX).then_some(until));
        el1::cpu::idle();
        while gic::poll(|intid| {
            if intid == time::INTID {
                time::set_alarm(None);
            } else if intid == self.event_intid {
                self.info.write32(UPCALL, 0);
                self.info.write32(SELECTOR, 0);
                for word in 0..64 {
                    self.info.fetch_and32(PENDING + word * 4, 0);
                }
            }
        }) {}
    }

    /// Waits until `f` has a value, at most so many nanoseconds.
    fn within<T>(&mut self, ns: u64, mut f: impl FnMut(&mut Self) -> Option<T>) -> Option<T> {
        let end = time::now_ns() + ns;
        loop {
            if let Some(t) = f(self) {
                return Some(t);
            }
            let now = time::now_ns();
            if now >= end {
                return None;
            }
            // Not every change comes with an event.
            self.wait(end.min(now + 5 * MS));
        }
    }

    /// A node's value, empty when there is none.
    fn text(&mut self, path: &str) -> String {
        let reply = self.call(2, 0, &[path.as_bytes(), b"\0"].concat());
        if reply.kind == 2 {
            String::from_utf8_lossy(&reply.payload).to_string()
        } else {
            String::new()
        }
    }

    /// Sets a node.
    fn put(&mut self, path: &str, value: impl Display) {
        let value = value.to_string();
        self.call(11, 0, &[path.as_bytes(), b"\0", value.as_bytes()].concat());
    }

    /// What is below a node.
    fn list(&mut self, path: &str) -> Vec<String> {
        let reply = self.call(1, 0, &[path.as_bytes(), b"\0"].concat());
        if reply.kind != 1 {
            return Vec::new();
        }
        reply
            .payload
            .split(|b| *b == 0)
            .filter(|n| !n.is_empty())
            .map(|n| String::from_utf8_lossy(n).to_string())
            .collect()
    }
}
