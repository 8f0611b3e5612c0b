// SPDX-License-Identifier: MIT OR Apache-2.0
//! Executes programs.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use el1::machine::Gic;
use el1::{Machine, attack, cpu, hvc, println, probe};
use guest_abi::memory::MapSpace;
use guest_abi::{DomId, Errno, Gfn, Port, calls};
use hostile::{Level, Op, PAGE, Rng, Scene, evil, layout};

/// After so many operations a vcpu says how far it is.
const REPORT: u64 = 512;
/// Pages of the grant window that are mapped at first.
const GRANT_FRAMES: u64 = 4;

/// What all vcpus know; written before the second one starts.
struct Plan {
    seed: AtomicU64,
    to: AtomicU64,
    own: AtomicU64,
    peer: AtomicU64,
    vcpus: AtomicU64,
    arena: AtomicU64,
    ram: AtomicU64,
    window: AtomicU64,
    uart: AtomicU64,
    entry: AtomicU64,
    context: AtomicU64,
    step: AtomicU64,
}

const fn zero() -> AtomicU64 {
    AtomicU64::new(0)
}

static PLAN: Plan = Plan {
    seed: zero(),
    to: zero(),
    own: zero(),
    peer: zero(),
    vcpus: zero(),
    arena: zero(),
    ram: zero(),
    window: zero(),
    uart: zero(),
    entry: zero(),
    context: zero(),
    step: zero(),
};
/// The number of the next operation of each vcpu, and how many it did.
static NEXT: [AtomicU64; attack::CPUS] = [const { zero() }; attack::CPUS];
static DONE: [AtomicU64; attack::CPUS] = [const { zero() }; attack::CPUS];

pub fn word<'a>(machine: &'a Machine, name: &str) -> Option<&'a str> {
    let mut words = machine.bootargs.split(' ');
    words.find_map(|w| w.strip_prefix(name)?.strip_prefix('='))
}

pub fn number(machine: &Machine, name: &str) -> Option<u64> {
    word(machine, name)?.parse().ok()
}

pub fn main(machine: Machine) -> ! {
    match word(&machine, "role") {
        Some("witness") => crate::witness::main(&machine),
        Some("look") => {
            let word = number(&machine, "word").unwrap_or(0);
            let (all, found) = attack::count(&machine, word);
            println!("look: {found} of {all} words");
            loop {
                cpu::idle();
            }
        }
        _ => {}
    }
    match prepare(&machine) {
        Ok(()) => attack::begin(0, program),
        Err(e) => {
            println!("hostile: failed: {e}");
            loop {
                cpu::idle();
            }
        }
    }
}

/// This domain's number: what the other end of a channel to itself is.
fn own_domid() -> Result<DomId, Errno> {
    let xen = hvc::xen();
    let port = calls::event::alloc_unbound(&xen, DomId::SELF, DomId::SELF)?;
    let end = calls::event::bind_interdomain(&xen, DomId::SELF, port)?;
    let status = calls::event::status(&xen, DomId::SELF, end)?;
    let close = |port: Port| calls::event::close(&xen, port);
    close(end)?;
    close(port)?;
    Ok(status.remote_dom())
}

fn prepare(machine: &Machine) -> Result<(), Errno> {
    let xen = hvc::xen();
    let hypervisor = machine.hypervisor.clone().ok_or(Errno::ENXIO)?;
    let own = own_domid()?;
    let seed = number(machine, "seed").unwrap_or(1);
    let seed = if word(machine, "same").is_some() {
        seed
    } else {
        Rng::of(seed, u64::MAX, u64::from(own.0)).draw() >> 1
    };
    let pages = layout::PAGES as usize;
    let arena =
        attack::set_up(machine, pages, layout::CODE, layout::TABLES).ok_or(Errno::ENOMEM)?;
    let window = hypervisor.grant_window.0;
    for n in 0..GRANT_FRAMES {
        let at = Gfn::of(window + n * PAGE);
        calls::memory::add_to_physmap(&xen, DomId::SELF, MapSpace::GrantTable, n, at)?;
    }
    let info = Gfn::of(arena.base + layout::SHARED * PAGE);
    calls::memory::map_shared_info(&xen, info)?;
    let set = |a: &AtomicU64, v: u64| a.store(v, Relaxed);
    let p = &PLAN;
    set(&p.seed, seed);
    set(&p.to, number(machine, "to").unwrap_or(u64::MAX));
    set(&p.own, own.0.into());
    set(&p.peer, number(machine, "peer").unwrap_or(1));
    set(&p.vcpus, u64::from(machine.cpus).min(layout::VCPUS));
    set(&p.arena, arena.base);
    set(&p.ram, machine.memory.first().map_or(0, |m| m.0));
    set(&p.window, window);
    set(
        &p.uart,
        machine.uart.unwrap_or(guest_abi::arch::GUEST_PL011_BASE),
    );
    set(&p.entry, arena.entry);
    set(&p.context, arena.context.0);
    set(&p.step, arena.context.1);
    let from = number(machine, "from").unwrap_or(0);
    NEXT.iter().for_each(|n| set(n, from));
    let scene = scene(0, machine.gic);
    for (page, n, descriptor) in evil::tables(&scene) {
        let at = scene.page(layout::TABLES + page) + n * 8;
        let _ = attack::store(at, 8, descriptor);
    }
    println!(
        "hostile: d{} seed {seed} from {from}, {} vcpus",
        own.0,
        p.vcpus.load(Relaxed)
    );
    for vcpu in 1..p.vcpus.load(Relaxed) {
        let context = arena.context.0 + vcpu * arena.context.1;
        let _ = probe::smccc(
            probe::Conduit::Hvc,
            [0xc400_0003, vcpu, arena.entry, context],
        );
    }
    Ok(())
}

fn scene(vcpu: u64, gic: Gic) -> Scene {
    let p = &PLAN;
    let get = |a: &AtomicU64| a.load(Relaxed);
    let (v3, gicd, gicx) = match gic {
        Gic::V2 { gicd, gicc } => (false, gicd, gicc),
        // The first one's, whichever this vcpu's is.
        Gic::V3 { gicd, .. } => (true, gicd, guest_abi::arch::GUEST_GICV3_GICR0_BASE),
    };
    Scene {
        own: get(&p.own),
        peer: get(&p.peer),
        vcpus: get(&p.vcpus),
        vcpu,
        arena: get(&p.arena),
        ram: get(&p.ram),
        window: get(&p.window),
        gicd,
        gicx,
        v3,
        uart: get(&p.uart),
        entry: get(&p.entry),
        context: (get(&p.context), get(&p.step)),
    }
}

/// What each vcpu does from its start on, and again when another one has started it anew.
fn program(index: usize) -> ! {
    let gic = attack::controller();
    let scene = scene(index as u64, gic);
    let vcpu = Vcpu { index, gic, scene };
    vcpu.say();
    loop {
        let number = NEXT[index].fetch_add(1, Relaxed);
        if number >= PLAN.to.load(Relaxed) {
            vcpu.say();
            attack::timer(u64::MAX >> 1);
            loop {
                cpu::idle();
                attack::take_interrupts(gic);
            }
        }
        let op = hostile::operation(PLAN.seed.load(Relaxed), index as u32, number, &vcpu.scene);
        vcpu.execute(&op, number);
        let before = DONE[index].fetch_add(op.count(), Relaxed);
        if before / REPORT != (before + op.count()) / REPORT {
            vcpu.say();
        }
    }
}

/// A line that is being made.
struct Line([u8; 96], usize);

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for (to, from) in self.0.iter_mut().skip(self.1).zip(s.bytes()) {
            *to = from;
            self.1 += 1;
        }
        Ok(())
    }
}

struct Vcpu {
    index: usize,
    gic: Gic,
    scene: Scene,
}

impl Vcpu {
    /// Says how far it is.
    fn say(&self) {
        let mut line = Line([0; 96], 0);
        let _ = writeln!(
            line,
            "hostile: d{} v{} at {} did {}",
            self.scene.own,
            self.index,
            NEXT[self.index].load(Relaxed),
            DONE[self.index].load(Relaxed),
        );
        let at = line.0.as_ptr() as u64;
        let _ = probe::hypercall(18, [0, line.1 as u64, at, 0, 0]);
    }

    fn execute(&self, op: &Op, number: u64) {
        match op {
            Op::Call(call) => {
                for (at, word) in (call.blob.at..).step_by(8).zip(call.blob.words()) {
                    // A page that is not there any more does not matter.
                    let _ = attack::store(at, 8, *word);
                }
                if call.sleeps {
                    attack::alarm(self.gic, 2000 + number % 4096);
                }
                for _ in 0..call.times {
                    let _ = probe::hypercall(call.nr, call.x);
                }
            }
            Op::Load { at, size } => drop(attack::load(*at, *size)),
            Op::Store { at, size, value } => drop(attack::store(*at, *size, *value)),
            Op::Scribble { at, value } => drop(attack::store(*at, 8, *value)),
            Op::Run(run) => self.run(run, number),
            Op::Smccc { smc, x } => {
                let sleeps = x[0] & 0xbfff_ffff == 0x8400_0001;
                if sleeps {
                    attack::alarm(self.gic, 2000 + number % 4096);
                }
                let conduit = if *smc {
                    probe::Conduit::Smc
                } else {
                    probe::Conduit::Hvc
                };
                let _ = probe::smccc(conduit, *x);
            }
            Op::Root(n) => attack::upper_root(layout::TABLES + u64::from(*n)),
            Op::Sleep(us) => {
                attack::alarm(self.gic, u64::from(*us) * 60);
                cpu::idle();
                attack::take_interrupts(self.gic);
            }
        }
    }

    fn run(&self, run: &hostile::Run, number: u64) {
        // Behind the instructions stands what ends them.
        let (mode, end) = match run.level {
            Level::El1 => (0x4, 0xd420_0000),
            Level::El0 => (0x0, 0xd420_0000),
            Level::A32 => (0x10, 0xe120_0070),
            Level::T32 => (0x30, 0xbe00_be00),
        };
        let mut at = self.scene.page(layout::CODE + self.index as u64);
        for word in run.words() {
            let _ = attack::store(at, 4, u64::from(*word));
            at += 4;
        }
        for _ in 0..4 {
            let _ = attack::store(at, 4, end);
            at += 4;
        }
        // `eret` may have it go round for ever.
        let round = run.words().contains(&0xd69f_03e0);
        let masked = if round { 0 } else { run.pstate & 1 << 7 };
        if number.is_multiple_of(16) || masked != 0 {
            attack::alarm(self.gic, 10_000);
        } else {
            attack::timer(10_000);
        }
        let registers = attack::Registers {
            x: &run.x,
            pstate: run.pstate & !(1 << 7) | masked | mode,
        };
        let _ = attack::run(self.index, &registers);
        attack::take_interrupts(self.gic);
    }
}
