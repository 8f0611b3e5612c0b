// SPDX-License-Identifier: MIT OR Apache-2.0
//! The programs of the hostile guest (`tests/guests/hostile`) on the simulated machine: several domains with several
//! vcpus each, whose calls are interleaved slice by slice as a seed says, with stage-1 tables that they change
//! meanwhile, beside a bystander. What `cargo xtask attack` prints of a program can be played here.

use guest_abi::{Errno, Gfn, arch, calls::memory, memory::MapSpace};
use hostile::{Op, PAGE, Rng, Scene, evil, layout};
use hv_core::hypercall::Reply;
use hv_core::machine::{Meter, cost};
use hv_core::room::fail_after;
use hv_core::types::{Access, CpuId, VcpuId, VcpuRef};
use hv_core::vgic::Region;
use sim::{Config, DomU, Guest, World};

const RAM0: u64 = arch::GUEST_RAM0_BASE;
/// The arena, behind the first 2 MiB.
const ARENA: u64 = RAM0 + (2 << 20);
const ATTACKER: Config = Config {
    vcpus: 3,
    blocks: 3,
    pages: 40,
    vuart: true,
};
const BYSTANDER: Config = Config {
    vcpus: 1,
    blocks: 0,
    pages: 80,
    vuart: false,
};
const SECRET: std::ops::Range<u64> = 8..40;

/// CPUs of the simulated machine.
const CPUS: usize = 2;

/// A call that is under way: its number and registers, and how often it is to be made still.
type Pending = (u64, [u64; 5], u8);

/// A vcpu that plays a program.
struct Player {
    domain: usize,
    v: VcpuRef,
    scene: Scene,
    seed: u64,
    next: u64,
    pending: Option<Pending>,
    root: u64,
}

struct Stage<'w> {
    w: &'w World,
    domains: Vec<DomU>,
    players: Vec<Player>,
    bystander: DomU,
    lives: u64,
    slices: u64,
    /// What the costliest slice of a call cost, and which it was.
    worst: (u32, u64, [u64; 5]),
}

fn scene(d: &DomU, peer: &DomU, vcpu: u64, v3: bool) -> Scene {
    Scene {
        own: u64::from(d.id.0),
        peer: u64::from(peer.id.0),
        vcpus: u64::from(ATTACKER.vcpus),
        vcpu,
        arena: ARENA,
        ram: RAM0,
        window: arch::GUEST_GNTTAB_BASE,
        gicd: arch::GUEST_GICD_BASE,
        gicx: if v3 {
            arch::GUEST_GICV3_GICR0_BASE
        } else {
            arch::GUEST_GICC_BASE
        },
        v3,
        uart: arch::GUEST_PL011_BASE,
        entry: RAM0,
        context: (RAM0 + PAGE, 64),
    }
}

impl<'w> Stage<'w> {
    fn new(w: &'w World, seed: u64, attackers: usize, v3: bool) -> Self {
        let bystander = w.create(BYSTANDER).unwrap();
        let b = bystander.guest(w);
        for k in SECRET {
            b.put(RAM0 + k * PAGE, &[k as u8; 4096]);
        }
        let mut stage = Self {
            w,
            domains: Vec::new(),
            players: Vec::new(),
            bystander,
            lives: 0,
            slices: 0,
            worst: (0, 0, [0; 5]),
        };
        for n in 0..attackers {
            let d = w.create(ATTACKER).unwrap();
            stage.domains.push(d);
            stage.arm(n, seed, v3);
        }
        stage
    }

    /// The players of a domain that has just been made.
    fn arm(&mut self, n: usize, seed: u64, v3: bool) {
        let d = self.domains[n];
        self.lives += 1;
        let g = d.guest(self.w);
        for i in 0..4 {
            let at = Gfn::of(arch::GUEST_GNTTAB_BASE + i * PAGE);
            memory::add_to_physmap(&g, guest_abi::DomId::SELF, MapSpace::GrantTable, i, at)
                .unwrap();
        }
        let info = Gfn::of(ARENA + layout::SHARED * PAGE);
        memory::map_shared_info(&g, info).unwrap();
        self.players.retain(|p| p.domain != n);
        let seed = Rng::of(seed, u64::MAX, u64::from(d.id.0)).draw();
        for vcpu in 0..ATTACKER.vcpus {
            let scene = scene(&d, &self.bystander, u64::from(vcpu), v3);
            if vcpu == 0 {
                for (page, k, descriptor) in evil::tables(&scene) {
                    g.put(scene.page(layout::TABLES + page) + k * 8, &descriptor);
                }
            }
            self.players.push(Player {
                domain: n,
                v: VcpuRef {
                    vcpu: VcpuId(vcpu as u8),
                    ..d.v
                },
                root: scene.page(layout::TABLES),
                scene,
                seed,
                next: 0,
                pending: None,
            });
        }
    }

    /// One slice of a player's call, or its next operation.
    fn step(&mut self, n: usize) {
        let w = self.w;
        let p = &mut self.players[n];
        let g = Guest {
            v: p.v,
            ..self.domains[p.domain].guest(w)
        };
        if let Some((nr, mut x, times)) = p.pending.take() {
            w.m.upper.set(p.root);
            w.m.restart();
            let was = x;
            let cpu = CpuId((n % CPUS) as u8);
            let reply = w.call_on(cpu, &g, |g| w.slice(g.v, nr, &mut x));
            w.m.upper.set(0);
            self.slices += 1;
            if w.m.spent() > self.worst.0 {
                self.worst = (w.m.spent(), nr, was);
            }
            p.pending = match reply {
                Reply::Again => Some((nr, x, times)),
                Reply::Done(_) if times > 1 => Some((nr, x, times - 1)),
                Reply::Done(_) => None,
            };
            return;
        }
        let op = hostile::operation(p.seed, p.scene.vcpu as u32, p.next, &p.scene);
        p.next += 1;
        let (slot, vcpu) = (p.v.slot, p.v.vcpu);
        match op {
            Op::Call(call) => {
                for (at, word) in (call.blob.at..).step_by(8).zip(call.blob.words()) {
                    let _ = g.write(at, &word.to_le_bytes());
                }
                p.pending = Some((call.nr, call.x, call.times));
            }
            Op::Scribble { at, value } => drop(g.write(at, &value.to_le_bytes())),
            Op::Root(root) => p.root = p.scene.page(layout::TABLES + u64::from(root)),
            Op::Load { at, size } => self.device(slot, vcpu, at, size, None),
            Op::Store { at, size, value } => self.device(slot, vcpu, at, size, Some(value)),
            // What takes a CPU, or the shell around the policy.
            Op::Run(_) | Op::Smccc { .. } | Op::Sleep(_) => {}
        }
    }

    /// An access to an emulated device, as the trap handler passes it on.
    fn device(
        &self,
        slot: hv_core::types::Slot,
        vcpu: VcpuId,
        at: u64,
        size: u8,
        value: Option<u64>,
    ) {
        let mut hv = self.w.hv.borrow_mut();
        let v3 = self.players[0].scene.v3;
        let gicd = if v3 { 0x1_0000 } else { 0x1000 };
        let regions = [
            (arch::GUEST_GICD_BASE, gicd, Region::Gicd),
            (
                arch::GUEST_GICV3_GICR0_BASE,
                if v3 {
                    u64::from(ATTACKER.vcpus) << 17
                } else {
                    0
                },
                Region::Gicr,
            ),
        ];
        for (base, len, region) in regions {
            let Some(offset) = at.checked_sub(base).filter(|o| *o < len) else {
                continue;
            };
            let _ = match value {
                None => hv
                    .vgics
                    .mmio_read(slot, vcpu, region, offset, size)
                    .map(drop),
                Some(v) => hv
                    .vgics
                    .mmio_write(slot, vcpu, region, offset, size, v)
                    .map(drop),
            };
        }
        let uart = at.checked_sub(arch::GUEST_PL011_BASE);
        if let Some(offset) = uart.filter(|o| *o < PAGE) {
            let _ = hv.vuart_access(&self.w.m, slot, offset, size, value.map(|v| v as u32));
        }
    }

    fn check(&self) {
        self.w.check();
        let b = self.bystander.guest(self.w);
        for k in SECRET {
            let page: [u8; 4096] = b.get(RAM0 + k * PAGE);
            assert_eq!(page, [k as u8; 4096], "page {k} of the bystander");
            let mfn = b.mfn((RAM0 >> 12) + k, Access::Read).unwrap();
            assert_eq!(self.w.refs(mfn), 1, "page {k} of the bystander");
        }
    }
}

/// Plays so many steps of the programs of a seed; where `fails`, the first or second allocation of every other step does.
/// Of each update of a single word, so many tries are `failing`.
fn play(seed: u64, steps: u64, gic: u8, fails: bool, failing: u32) {
    let w = World::boot(gic);
    w.m.failing.set(failing);
    // Tables of the control domain's window are made once and kept.
    let first = w.create(ATTACKER).unwrap();
    w.destroy(first.id);
    let before = w.totals();
    let v3 = gic == 3;
    let mut stage = Stage::new(&w, seed, 2, v3);
    let mut r = Rng::of(seed, 0x51, 0);
    let mut failed = 0;
    for step in 0..steps {
        let n = r.below(stage.players.len() as u64) as usize;
        let failing = fails && r.one_in(2);
        if failing {
            fail_after(r.below(2));
        }
        stage.step(n);
        if failing {
            failed += u64::from(fail_after(u64::MAX) == u64::MAX);
        }
        // A CPU may walk any tables at any time.
        if r.one_in(16) {
            let n = r.below(stage.domains.len() as u64) as usize;
            w.prefetch(stage.domains[n].id);
        }
        if step % 512 == 511 {
            stage.check();
        }
        // An end, with calls of the others under way.
        if r.one_in(4000) {
            let n = r.below(stage.domains.len() as u64) as usize;
            w.destroy(stage.domains[n].id);
            stage
                .players
                .iter_mut()
                .filter(|p| p.domain == n)
                .for_each(|p| p.pending = None);
            let anew = match w.create(ATTACKER) {
                Ok(d) => vec![(n, d)],
                // The other one's pages, and what it maps of the dead one's, leave no blocks of 2 MiB: without it
                // all of them are there.
                Err(Errno::ENOMEM) => {
                    for (k, d) in stage.domains.iter().enumerate().filter(|(k, _)| *k != n) {
                        w.destroy(d.id);
                        stage.players.retain(|p| p.domain != k);
                    }
                    let all = 0..stage.domains.len();
                    all.map(|k| (k, w.create(ATTACKER).unwrap())).collect()
                }
                Err(e) => panic!("{e:?}"),
            };
            for (k, d) in anew {
                stage.domains[k] = d;
                stage.arm(k, seed, v3);
            }
            stage.check();
        }
    }
    assert!(
        stage.slices * 3 > steps,
        "{} slices of {steps} steps",
        stage.slices
    );
    stage.check();
    assert!(!fails || failed > 2, "{failed} allocations failed");
    let (cost, nr, x) = stage.worst;
    eprintln!(
        "{} lives, {} slices, {failed} failed allocations; the costliest: {cost}, of call {nr} {x:x?}",
        stage.lives, stage.slices
    );
    for d in stage.domains {
        w.destroy(d.id);
    }
    w.destroy(stage.bystander.id);
    assert_eq!(w.totals(), before, "everything comes back");
    w.check();
}

/// `PARAVANE_PROGRAM_STEPS` has it go on for longer, `PARAVANE_PROGRAM_SEED` begin elsewhere, `PARAVANE_PROGRAM_SEEDS` more often.
fn environment(name: &str, or: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.and_then(|t| t.parse().ok()).unwrap_or(or)
}

fn played(gic: u8, fails: bool) {
    let first = environment("PARAVANE_PROGRAM_SEED", u64::from(gic));
    for seed in first..first + environment("PARAVANE_PROGRAM_SEEDS", 1) {
        eprintln!("seed {seed}, GICv{gic}");
        let steps = environment("PARAVANE_PROGRAM_STEPS", 4000);
        play(seed, steps, gic, fails, 0);
    }
}

#[test]
fn hostile_programs_on_gicv2() {
    played(2, false);
}

#[test]
fn hostile_programs_on_gicv3() {
    played(3, false);
}

#[test]
fn xsa_316_318_hostile_programs_whose_allocations_fail() {
    played(3, true);
}

/// Every update of a word that is shared fails once, or as often as one may: no hold becomes longer than it may be.
#[test]
fn xsa_295_every_update_is_contended() {
    for (failing, gic) in [(1, 3), (cost::TRIES - 1, 2), (cost::TRIES - 1, 3)] {
        play(0x295, 3000, gic, false, failing);
    }
}
