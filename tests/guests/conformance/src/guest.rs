// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the cases share, and their order.

mod calls;
mod cpu;
mod devices;
mod events;
mod grants;
mod memory;
mod races;
mod served;
mod user;

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt::Display;
use el1::machine::Gic;
use el1::probe::{self, Trap};
use el1::shared::Shared;
use el1::{Machine, hvc, println, time};
use guest_abi::xen::offset::{
    EVTCHN_MASK as MASK, EVTCHN_PENDING as PENDING, PENDING_SEL as SELECTOR,
    UPCALL_PENDING as UPCALL,
};
use guest_abi::{DomId, Errno, Gfn, Hypercall as _, HypercallNr, Port};

/// An address that nothing is at.
pub const NOWHERE: u64 = 0x7f_ffff_f000;

/// What cases work with.
pub struct Suite {
    pub machine: Machine,
    pub own: DomId,
    pub peer: DomId,
    pub info: Shared,
    pub event_intid: u32,
    /// Arguments of calls.
    pub args: Shared,
    /// The grant table's first frame.
    pub grants: Shared,
    /// Address space with nothing behind it, for mappings.
    pub window: u64,
    /// Leave out what makes the real Xen's vcpu fault for ever.
    pub spare: bool,
    printed: usize,
}

pub fn main(machine: Machine) -> ! {
    match run(machine) {
        Ok(()) => println!("conformance: done"),
        Err(e) => println!("conformance: failed: {e}"),
    }
    loop {
        el1::cpu::idle();
    }
}

fn word<'a>(machine: &'a Machine, name: &str) -> Option<&'a str> {
    let mut words = machine.bootargs.split(' ');
    words.find_map(|w| w.strip_prefix(name)?.strip_prefix('='))
}

fn domid(machine: &Machine, name: &str) -> Result<DomId, Errno> {
    let number = word(machine, name).and_then(|w| w.parse().ok());
    number.map(DomId).ok_or(Errno::EINVAL)
}

fn run(machine: Machine) -> Result<(), Errno> {
    let hypervisor = machine.hypervisor.clone().ok_or(Errno::ENXIO)?;
    let info = Shared::fresh(1).ok_or(Errno::ENOMEM)?;
    guest_abi::calls::memory::map_shared_info(&hvc::xen(), Gfn::of(info.addr()))?;
    for at in (MASK..MASK + 512).step_by(4) {
        info.write32(at, !0);
    }
    probe::install();
    let grants = Gfn::of(hypervisor.grant_window.0);
    let space = guest_abi::memory::MapSpace::GrantTable;
    guest_abi::calls::memory::add_to_physmap(&hvc::xen(), DomId::SELF, space, 0, grants)?;
    let table = Shared::at(grants.0, 1).ok_or(Errno::EINVAL)?;
    if word(&machine, "role") == Some("served") {
        return served::run(&machine, info, table);
    }
    let mut suite = Suite {
        own: domid(&machine, "own").unwrap_or(DomId::SELF),
        peer: domid(&machine, "peer")?,
        info,
        event_intid: hypervisor.event_intid,
        args: Shared::fresh(2).ok_or(Errno::ENOMEM)?,
        grants: table,
        window: hypervisor.grant_window.0 + 16 * 4096,
        spare: word(&machine, "spare").is_some(),
        machine,
        printed: 0,
    };
    match word(&suite.machine, "role") {
        Some("peer") => return suite.serve(),
        Some("race") => {
            suite.race("first");
            suite.sleep(2_000_000_000);
            return Ok(());
        }
        Some("racer") => {
            suite.race("second");
            loop {
                el1::cpu::idle();
            }
        }
        _ => {}
    }
    suite.calls();
    suite.memory();
    suite.events();
    suite.grants();
    suite.devices();
    suite.cpu();
    suite.user();
    // For good: it cannot be taken back.
    suite.fifo();
    Ok(())
}

/// An answer of a hypercall.
pub fn code(r: Result<i64, Trap>) -> String {
    match r {
        Ok(n) => match Errno::from_number(n.wrapping_neg() as i32) {
            Some(e) if (-4095..0).contains(&n) => format!("-{e:?}"),
            _ => n.to_string(),
        },
        Err(t) => trap(t),
    }
}

/// An exception: its class and the rest of the syndrome.
pub fn trap(t: Trap) -> String {
    format!("trap ec {:#x} iss {:#x}", t.class(), t.esr & 0x1ff_ffff)
}

/// A value or an exception.
pub fn value<T: core::fmt::LowerHex>(r: Result<T, Trap>) -> String {
    r.map_or_else(trap, |v| format!("{v:#x}"))
}

impl Suite {
    /// Tells what came of a case.
    pub fn case(&mut self, name: impl Display, result: impl Display) {
        // In one piece, for nothing to come between.
        let line = format!("case {name} = {result}\r\n");
        // A hypervisor drops what a guest prints too fast.
        self.printed += line.len();
        if self.printed > 6000 {
            self.printed = 0;
            self.sleep(1_100_000_000);
        }
        el1::print::write(line.as_bytes());
    }

    /// Sleeps for nanoseconds.
    pub fn sleep(&self, ns: u64) {
        let end = time::now_ns() + ns;
        while time::now_ns() < end {
            time::set_alarm(Some(end));
            el1::cpu::idle();
        }
        time::set_alarm(None);
    }

    /// A call with the address of `words` as its second argument, which hold what it wrote after.
    pub fn call_with<const N: usize>(
        &self,
        nr: HypercallNr,
        op: u64,
        words: &mut [u32; N],
    ) -> String {
        for (i, w) in words.iter().enumerate() {
            self.args.write32(i * 4, *w);
        }
        let r = probe::hypercall(nr.number(), [op, self.args.addr(), 1, 0, 0]);
        for (i, w) in words.iter_mut().enumerate() {
            *w = self.args.read32(i * 4);
        }
        code(r)
    }

    /// A call with plain arguments.
    pub fn call(&self, nr: HypercallNr, args: [u64; 5]) -> String {
        code(probe::hypercall(nr.number(), args))
    }

    pub fn pending(&self, port: Port) -> bool {
        self.info.read32(PENDING + port.0 as usize / 32 * 4) >> (port.0 % 32) & 1 != 0
    }

    pub fn clear(&self, port: Port) {
        self.bit(PENDING, port, false);
    }

    pub fn mask(&self, port: Port, on: bool) {
        self.bit(MASK, port, on);
    }

    fn bit(&self, array: usize, port: Port, on: bool) {
        if let Some(word) = self.info.atomic32(array + port.0 as usize / 32 * 4) {
            let bit = 1 << (port.0 % 32);
            if on {
                word.fetch_or(bit, core::sync::atomic::Ordering::SeqCst);
            } else {
                word.fetch_and(!bit, core::sync::atomic::Ordering::SeqCst);
            }
        }
    }

    /// The distributor's address.
    pub fn gicd(&self) -> u64 {
        let (Gic::V2 { gicd, .. } | Gic::V3 { gicd, .. }) = self.machine.gic;
        gicd
    }

    /// The peer's part: unbound ports and grants for the first domain, which never change.
    fn serve(&mut self) -> Result<(), Errno> {
        let xen = hvc::xen();
        // A port that answers, one that was given up, and one for somebody else.
        let echo = guest_abi::calls::event::alloc_unbound(&xen, DomId::SELF, self.peer)?;
        let closed = guest_abi::calls::event::alloc_unbound(&xen, DomId::SELF, self.peer)?;
        guest_abi::calls::event::close(&xen, closed)?;
        guest_abi::calls::event::alloc_unbound(&xen, DomId::SELF, DomId::SELF)?;
        let pages = Shared::fresh(2).ok_or(Errno::ENOMEM)?;
        pages.write32(0, 0x1111_1111);
        pages.write32(4096, 0x2222_2222);
        for (gref, page, flags) in [(8u32, 0u64, 1u32), (9, 1, 5), (10, 0, 0), (11, 0, 2)] {
            let at = gref as usize * 8;
            let frame = pages.addr() / 4096 + page;
            self.grants.write32(at + 4, frame as u32);
            self.grants
                .write32(at, u32::from(self.peer.0) << 16 | flags);
        }
        // For another domain than the first one.
        self.grants
            .write32(12 * 8 + 4, (pages.addr() / 4096) as u32);
        self.grants.write32(12 * 8, 7 << 16 | 1);
        el1::gic::enable(self.event_intid, el1::gic::Trigger::Level);
        self.mask(echo, false);
        loop {
            while !el1::cpu::interrupt_pending() {
                el1::cpu::idle();
            }
            while el1::gic::poll(|_| ()) {}
            self.info.write32(UPCALL, 0);
            self.info.write32(SELECTOR, 0);
            if self.pending(echo) {
                self.clear(echo);
                let _ = guest_abi::calls::event::send(&xen, echo);
            }
        }
    }

    /// A guest-wide call whose result is a number that must only be told apart from an error.
    pub fn sign(&self, nr: HypercallNr, args: [u64; 5]) -> String {
        let r = hvc::xen().call(nr, args, &mut []);
        if r > 0 {
            "positive".into()
        } else {
            code(Ok(r))
        }
    }
}
