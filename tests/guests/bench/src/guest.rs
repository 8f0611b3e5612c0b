// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest itself: set-up, then a function for each group of rows.

use core::hint::black_box;
use core::sync::atomic::{AtomicU32, Ordering};
use el1::machine::Gic;
use el1::probe::{self, Conduit, Device, Register, Untrapped};
use el1::shared::Shared;
use el1::{Global, Machine, cpu, gic, hvc, println, time};
use guest_abi::grant_table::{
    GnttabCopy, GnttabCopyPtr, GnttabMapGrantRef, GnttabUnmapGrantRef, gntcopy, gntmap,
};
use guest_abi::hvm::Param;
use guest_abi::memory::MapSpace;
use guest_abi::version::FeatureInfo;
use guest_abi::xen::offset::{
    EVTCHN_MASK as MASK, EVTCHN_PENDING as PENDING, PENDING_SEL as SELECTOR,
    UPCALL_PENDING as UPCALL,
};
use guest_abi::{DomId, Errno, Gfn, GrantRef, Hypercall, HypercallNr, Port, calls};

/// Times that a cheap operation is repeated, and a dear one.
const MANY: u32 = 20_000;
const SOME: u32 = 2_000;

/// The emulated UART's flag register.
const UART_FLAGS: u64 = 0x2200_0018;

/// The interrupt that this guest sends to itself.
const OWN_SGI: u32 = 5;

/// Interrupts that were taken: of every kind, and those of events and of other vcpus.
static TAKEN: AtomicU32 = AtomicU32::new(0);
static EVENTS: AtomicU32 = AtomicU32::new(0);
static SGIS: AtomicU32 = AtomicU32::new(0);
static INFO: Global<Option<Shared>> = Global::new(None);

pub fn main(machine: Machine) -> ! {
    if machine.bootargs.split(' ').any(|w| w.starts_with("role=")) {
        crate::spans::main(machine);
    }
    match run(&machine) {
        Ok(()) => println!("bench: done"),
        Err(e) => println!("bench: failed: {e}"),
    }
    loop {
        cpu::idle();
    }
}

struct Bench {
    own: DomId,
    peer: DomId,
    info: Shared,
    grants: Shared,
    gic: Gic,
}

fn word(machine: &Machine, name: &str) -> Option<u16> {
    let mut words = machine.bootargs.split(' ');
    words.find_map(|w| w.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

fn run(machine: &Machine) -> Result<(), Errno> {
    let hypervisor = machine.hypervisor.as_ref().ok_or(Errno::ENXIO)?;
    let info = Shared::fresh(1).ok_or(Errno::ENOMEM)?;
    calls::memory::map_shared_info(&hvc::xen(), Gfn::of(info.addr()))?;
    for word in 0..64 {
        info.write32(MASK + word * 8, !0);
        info.write32(MASK + word * 8 + 4, !0);
    }
    *INFO.lock() = Some(info);
    probe::install();
    gic::enable(hypervisor.event_intid, gic::Trigger::Level);
    gic::enable_sgis();
    gic::enable(time::INTID, gic::Trigger::Level);
    if let Some(first) = word(machine, "echo") {
        return echo(info, DomId(first));
    }
    let window = Gfn::of(hypervisor.grant_window.0);
    calls::memory::add_to_physmap(&hvc::xen(), DomId::SELF, MapSpace::GrantTable, 0, window)?;
    let bench = Bench {
        own: DomId(word(machine, "own").ok_or(Errno::EINVAL)?),
        peer: DomId(word(machine, "peer").ok_or(Errno::EINVAL)?),
        info,
        grants: Shared::at(window.0, 1).ok_or(Errno::EINVAL)?,
        gic: machine.gic,
    };
    println!("bench: {} ticks per second", time::frequency());
    bench.calls()?;
    bench.traps();
    bench.events()?;
    bench.interrupts();
    bench.grants()?;
    bench.memory()?;
    bench.domains()?;
    bench.second_cpu()
}

fn report(name: &str, ticks: u64, times: u32) {
    println!("row {name} {ticks} {times}");
}

/// Counts `times` of `f`, after a few to warm up.
#[inline(always)]
fn count(name: &str, times: u32, mut f: impl FnMut()) {
    for _ in 0..times / 16 {
        f();
    }
    let begin = time::ticks();
    for _ in 0..times {
        f();
    }
    report(name, time::ticks() - begin, times);
}

/// The interrupt handler: lowers the line, and no more.
fn handle(intid: u32) {
    if intid == time::INTID {
        time::set_alarm(None);
    } else if intid < 16 {
        SGIS.fetch_add(1, Ordering::Relaxed);
    } else if let Some(info) = *INFO.lock() {
        info.write32(UPCALL, 0);
        info.write32(SELECTOR, 0);
        info.write32(PENDING, 0);
        EVENTS.fetch_add(1, Ordering::Relaxed);
    }
    TAKEN.fetch_add(1, Ordering::Relaxed);
}

/// Sleeps until an interrupt is pending, and handles what is.
fn await_interrupt() {
    while !cpu::interrupt_pending() {
        cpu::idle();
    }
    while gic::poll(handle) {}
}

/// Has `f` provoke an interrupt of a kind, and sleeps until that has come.
fn round_trip(kind: &AtomicU32, f: impl FnOnce()) {
    let before = kind.load(Ordering::Relaxed);
    f();
    while kind.load(Ordering::Relaxed) == before {
        await_interrupt();
    }
}

/// Counts `times` of `f`, each of which makes an interrupt that is handled by its vector.
fn count_handled(name: &str, times: u32, mut f: impl FnMut()) {
    probe::interruptible(handle, || {
        count(name, times, || {
            let before = TAKEN.load(Ordering::Relaxed);
            f();
            while TAKEN.load(Ordering::Relaxed) == before {}
        });
    });
}

impl Bench {
    fn calls(&self) -> Result<(), Errno> {
        let xen = hvc::xen();
        let version = HypercallNr::XenVersion;
        count("null", MANY, || {
            black_box(xen.call(version, [0; 5], &mut []));
        });
        // A number of x86's.
        count("unknown", MANY, || {
            black_box(xen.call(HypercallNr::SetGdt, [0; 5], &mut []));
        });
        count("psci", MANY, || {
            let _ = black_box(probe::smccc(Conduit::Hvc, [0x8400_0000, 0, 0, 0]));
        });
        let mut features = FeatureInfo::default();
        calls::version::features(&xen, 0)?;
        let at = &raw mut features as u64;
        count("get_features", MANY, || {
            black_box(xen.call(version, [6, black_box(at), 0, 0, 0], &mut []));
        });
        black_box(&features);
        calls::hvm::get_param(&xen, DomId::SELF, Param::StoreEvtchn)?;
        count("get_param", MANY, || {
            let _ = black_box(calls::hvm::get_param(&xen, DomId::SELF, Param::StoreEvtchn));
        });
        count("yield", MANY, || {
            let _ = calls::sched::yield_now(&xen);
        });
        Ok(())
    }

    fn traps(&self) {
        let (Gic::V2 { gicd, .. } | Gic::V3 { gicd, .. }) = self.gic;
        let gicd = Device::at(gicd);
        count("gicd", MANY, || {
            black_box(gicd.read());
        });
        let uart = Device::at(UART_FLAGS);
        count("vpl011", MANY, || {
            black_box(uart.read());
        });
        count("cntp_cval", MANY, || {
            let _ = Register::CntpCval.write(u64::MAX);
        });
        let begin = time::ticks();
        probe::compute(40_000_000);
        report("compute", time::ticks() - begin, 1);
        self.untrapped("cntv_cval", Untrapped::TimerWrite);
        if let Gic::V2 { gicc, .. } = self.gic {
            self.untrapped("gicc_pmr", Untrapped::Load(Device::at(gicc + 4)));
        }
        gic::send_sgi(cpu::affinity(), OWN_SGI);
        self.untrapped("wfi", Untrapped::Wfi);
        await_interrupt();
    }

    /// The loop is one for many and counts for nothing.
    fn untrapped(&self, name: &str, what: Untrapped) {
        let begin = time::ticks();
        for _ in 0..SOME {
            probe::repeat(what);
        }
        report(name, time::ticks() - begin, SOME * probe::REPEATED);
    }

    fn clear(&self, port: Port) {
        set_bit(self.info, PENDING, port, false);
    }

    fn mask(&self, port: Port, on: bool) {
        set_bit(self.info, MASK, port, on);
    }

    fn events(&self) -> Result<(), Errno> {
        let xen = hvc::xen();
        let far = calls::event::alloc_unbound(&xen, DomId::SELF, DomId::SELF)?;
        let near = calls::event::bind_interdomain(&xen, DomId::SELF, far)?;
        // `far` is masked.
        let send = |port| {
            let _ = calls::event::send(&xen, port);
        };
        send(near);
        count("send_pending", MANY, || send(near));
        count("send_fresh", MANY, || {
            send(near);
            self.clear(far);
        });
        self.clear(far);
        self.info.write32(UPCALL, 0);
        self.info.write32(SELECTOR, 0);
        self.mask(far, false);
        count_handled("upcall", MANY, || send(near));
        self.mask(far, true);
        calls::event::close(&xen, near)?;
        calls::event::close(&xen, far)
    }

    fn interrupts(&self) {
        let own = cpu::affinity();
        count_handled("sgi", MANY, || gic::send_sgi(own, OWN_SGI));
        count_handled("timer", MANY, || time::set_alarm(Some(0)));
        // How late one wakes.
        let mut late = 0;
        for _ in 0..SOME {
            let end = time::now_ns() + 10_000;
            time::set_alarm(Some(end));
            while !cpu::interrupt_pending() {
                cpu::idle();
            }
            late += time::now_ns().saturating_sub(end);
            while gic::poll(handle) {}
        }
        // Back in ticks, as all rows are.
        report(
            "timer_wfi",
            (u128::from(late) * u128::from(time::frequency()) / 1_000_000_000) as u64,
            SOME,
        );
    }

    /// Grants a page of this domain's to itself, by grant 8 or after.
    fn grant(&self, n: u32, page: u64) -> GrantRef {
        let gref = 8 + n;
        let at = gref as usize * 8;
        self.grants.write32(at + 4, (page / 4096) as u32);
        self.grants.write32(at, u32::from(self.own.0) << 16 | 1);
        GrantRef(gref)
    }

    fn grants(&self) -> Result<(), Errno> {
        let xen = hvc::xen();
        let pages = Shared::fresh(4).ok_or(Errno::ENOMEM)?;
        let frame = |n: u64| pages.addr() + n * 4096;
        let (from, to) = (self.grant(0, frame(0)), self.grant(1, frame(1)));
        let own = self.own;
        let by_ref = GnttabCopy {
            source: GnttabCopyPtr::gref(own, from, 0),
            dest: GnttabCopyPtr::gref(own, to, 0),
            len: 64,
            flags: gntcopy::SOURCE_GREF | gntcopy::DEST_GREF,
            ..Default::default()
        };
        let by_frame = GnttabCopy {
            source: GnttabCopyPtr::own(Gfn::of(frame(2)), 0),
            flags: gntcopy::DEST_GREF,
            ..by_ref
        };
        let copy = |name, times, op: GnttabCopy| {
            let mut ops = [op];
            let _ = calls::grant::copy(&xen, &mut ops);
            if ops[0].status != 0 {
                println!("bench: {name}: status {}", ops[0].status);
            }
            count(name, times, || {
                let _ = black_box(calls::grant::copy(&xen, &mut ops));
            });
        };
        copy("copy_refs", MANY, by_ref);
        copy("copy_64", MANY, by_frame);
        copy(
            "copy_4096",
            SOME,
            GnttabCopy {
                len: 4096,
                ..by_frame
            },
        );
        let mut sixteen = [by_frame; 16];
        count("copy_16", SOME, || {
            let _ = black_box(calls::grant::copy(&xen, &mut sixteen));
        });
        // Mapped where the grant window goes on.
        let place = self.grants.addr() + 16 * 4096;
        let mut failed = 0;
        count("map_unmap", SOME, || {
            let mut map = [GnttabMapGrantRef {
                host_addr: place,
                flags: gntmap::HOST_MAP,
                gref: to,
                dom: own,
                ..Default::default()
            }];
            let _ = calls::grant::map(&xen, &mut map);
            let mut unmap = [GnttabUnmapGrantRef {
                host_addr: place,
                handle: map[0].handle,
                ..Default::default()
            }];
            let _ = calls::grant::unmap(&xen, &mut unmap);
            failed += u32::from(map[0].status != 0 || unmap[0].status != 0);
        });
        if failed != 0 {
            println!("bench: map_unmap: {failed} failed");
        }
        Ok(())
    }

    fn memory(&self) -> Result<(), Errno> {
        const PAGES: u32 = 512;
        let xen = hvc::xen();
        // In 2 MiB blocks of their own, and not the first, so that no row counts breaking them up.
        let pages = Shared::fresh(2 * PAGES as usize).ok_or(Errno::ENOMEM)?;
        let first = pages.addr().next_multiple_of(2 << 20) / 4096;
        let frames = || (first..first + u64::from(PAGES) - 8).map(Gfn);
        let mut ticks = [0; 2];
        for round in 0..5 {
            let begin = time::ticks();
            let mut done = 0;
            for frame in frames() {
                done += calls::memory::decrease_reservation(&xen, DomId::SELF, 0, &[frame])?;
            }
            let middle = time::ticks();
            for frame in frames() {
                done += calls::memory::populate_physmap(&xen, DomId::SELF, 0, &[frame])?;
            }
            let end = time::ticks();
            if done != 2 * frames().count() {
                return Err(Errno::ENOMEM);
            }
            if round > 0 {
                ticks[0] += middle - begin;
                ticks[1] += end - middle;
            }
        }
        let times = 4 * frames().count() as u32;
        report("decrease", ticks[0], times);
        report("populate", ticks[1], times);
        Ok(())
    }

    /// Events to another domain on this CPU, which sends one back for each.
    fn domains(&self) -> Result<(), Errno> {
        let xen = hvc::xen();
        // The peer makes one port for this domain, soon.
        let mut port = None;
        let end = time::now_ns() + 5_000_000_000;
        while port.is_none() && time::now_ns() < end {
            time::set_alarm(Some(time::now_ns() + 1_000_000));
            await_interrupt();
            port =
                (1..16).find_map(|p| calls::event::bind_interdomain(&xen, self.peer, Port(p)).ok());
        }
        let port = port.ok_or(Errno::ENOENT)?;
        // It is pending at once when it is bound.
        self.clear(port);
        self.mask(port, false);
        count("domains", SOME, || {
            round_trip(&EVENTS, || {
                let _ = calls::event::send(&xen, port);
            });
        });
        calls::event::close(&xen, port)
    }

    fn second_cpu(&self) -> Result<(), Errno> {
        let started = probe::start_second(1, &self.gic);
        if started != 0 {
            println!("bench: no second vcpu: {started}");
            return Err(Errno::ENXIO);
        }
        while !probe::second_runs() {
            let _ = calls::sched::yield_now(&hvc::xen());
        }
        count("ipi", SOME, || {
            round_trip(&SGIS, || gic::send_sgi(1, OWN_SGI));
        });
        probe::stop_second(1);
        Ok(())
    }
}

/// Sets or clears a port's bit in one of the arrays of `shared_info`.
#[inline(always)]
fn set_bit(info: Shared, array: usize, port: Port, on: bool) {
    if let Some(word) = info.atomic32(array + port.0 as usize / 32 * 4) {
        let bit = 1 << (port.0 % 32);
        if on {
            word.fetch_or(bit, Ordering::SeqCst);
        } else {
            word.fetch_and(!bit, Ordering::SeqCst);
        }
    }
}

/// The peer.
fn echo(info: Shared, first: DomId) -> Result<(), Errno> {
    let xen = hvc::xen();
    let port = calls::event::alloc_unbound(&xen, DomId::SELF, first)?;
    set_bit(info, MASK, port, false);
    loop {
        round_trip(&EVENTS, || ());
        let _ = calls::event::send(&xen, port);
    }
}
