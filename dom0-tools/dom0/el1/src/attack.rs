// SPDX-License-Identifier: MIT OR Apache-2.0
//! For programs that attack a hypervisor. Feature `attack`.
//!
//! Several CPUs run the same function ([`begin`]), each on a stack of its own, and share nothing but what is here and
//! atomics of theirs: nothing of this crate that uses [`Global`](crate::Global), heap and console among it. What is
//! attacked with, the arena, is memory that no Rust code reaches but by the functions of this module, each access of
//! which may fault. All else of the program is its own, and a hypercall that names it may be its end: that is for the
//! caller to want.

use crate::machine::Gic;
use crate::probe::{Start, Trap, attempt, outcome, register};
use crate::{Machine, cpu, gic, mmio, probe, shared, time};
use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};

core::arch::global_asm!(include_str!("attack.s"));

/// Most CPUs.
pub const CPUS: usize = 8;
/// Bytes of a stack.
const STACK: usize = 32 << 10;
/// Where generated instructions are executed: a page for each CPU, below 4 GiB for AArch32's sake.
const CODE: u64 = 2 << 30;

/// As `attack.s` lays it out.
#[repr(C, align(64))]
struct Context {
    x: [u64; 31],
    pc: u64,
    pstate: u64,
    sp: u64,
    own_sp: u64,
    esr: u64,
    far: u64,
}

#[repr(C, align(4096))]
struct Page<T>(UnsafeCell<T>);

// SAFETY: each CPU uses its own part; the tables are written before another CPU runs.
unsafe impl<T> Sync for Page<T> {}

static STACKS: Page<[[u8; STACK]; CPUS]> = Page(UnsafeCell::new([[0; STACK]; CPUS]));
static CONTEXTS: [Page<Context>; CPUS] = [const {
    Page(UnsafeCell::new(Context {
        x: [0; 31],
        pc: 0,
        pstate: 0,
        sp: 0,
        own_sp: 0,
        esr: 0,
        far: 0,
    }))
}; CPUS];
static STARTS: [Start; CPUS] = [const { Start::new() }; CPUS];
/// The lower half's root, and the tables that lead to the generated instructions.
static TABLES: Page<[[u64; 512]; 3]> = Page(UnsafeCell::new([[0; 512]; 3]));

/// The arena's begin and bytes, and the program's memory.
static ARENA: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static MEMORY: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// Version, distributor, CPU interface or first redistributor.
static GIC: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
static PROGRAM: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// What generated instructions are executed with.
pub struct Registers<'a> {
    /// x0 to x30.
    pub x: &'a [u64; 31],
    /// PSTATE.
    pub pstate: u64,
}

/// A piece of memory for attacks.
pub struct Arena {
    /// Its first address, guest physical and virtual alike.
    pub base: u64,
    /// What other CPUs are started at.
    pub entry: u64,
    /// What they are to find in x0: for the first one, and how much more for each further one.
    pub context: (u64, u64),
}

/// Sets everything up: an arena of so many pages; the generated instructions' page for each CPU at page `code` of it;
/// `upper` for the upper half's root, a page of it. To be called once, on the first CPU, with nothing else running.
/// Returns `None` if there is too little memory.
pub fn set_up(machine: &Machine, pages: usize, code: u64, upper: u64) -> Option<Arena> {
    // Blocks of 2 MiB may be in its place.
    let arena = shared::Shared::fresh(pages + 512)?;
    let base = arena.addr().next_multiple_of(2 << 20);
    let (start, len) = *machine.memory.first()?;
    store_all(&ARENA, &[base, pages as u64 * 4096]);
    store_all(&MEMORY, &[start, len]);
    let (version, a, b) = match machine.gic {
        Gic::V2 { gicd, gicc } => (2, gicd, gicc),
        Gic::V3 { gicd, gicr } => (3, gicd, gicr),
    };
    store_all(&GIC, &[version, a, b]);
    probe::install();
    let old = register!("ttbr0_el1");
    // SAFETY: nothing else runs; the old root is a page of this program's, and stays as it is.
    let root = unsafe {
        let [root, l2, l3] = &mut *TABLES.0.get();
        let top = ((old & 0xffff_ffff_f000) as *const [u64; 512]).read();
        *root = top;
        root[(CODE >> 30) as usize] = core::ptr::from_ref(l2) as u64 | 3;
        l2[0] = core::ptr::from_ref(l3) as u64 | 3;
        for (n, entry) in l3.iter_mut().enumerate().take(16) {
            let page = base + (code + n as u64) * 4096;
            // Executed at both levels and written at none; the upper ones written at both, and not executed.
            *entry = page | 0x703 | if n < CPUS { 0xc0 } else { 0x40 | 3 << 53 };
        }
        core::ptr::from_ref(root) as u64
    };
    // The upper half too: 48 bits, 4 KiB pages, cacheable walks.
    let tcr = register!("tcr_el1") & !(0xff_u64 << 24 | 0xff << 16)
        | 16 << 16
        | 1 << 24
        | 1 << 26
        | 3 << 28
        | 2 << 30;
    let ttbr1 = base + upper * 4096;
    for (n, start) in STARTS.iter().enumerate() {
        let stack = STACKS.0.get() as u64 + (n as u64 + 1) * STACK as u64;
        start.set([root | 1 << 48, ttbr1, tcr], stack, started);
    }
    Some(Arena {
        base,
        entry: Start::entry(),
        context: (&raw const STARTS as u64, size_of::<Start>() as u64),
    })
}

fn store_all(to: &[AtomicU64], values: &[u64]) {
    to.iter()
        .zip(values)
        .for_each(|(a, v)| a.store(*v, Relaxed));
}

/// Goes on with `program` on the stack of CPU `index`, as every CPU does that is started: with its number, for ever.
/// Needs [`set_up`].
pub fn begin(index: usize, program: fn(usize) -> !) -> ! {
    PROGRAM.store(program as *mut (), Relaxed);
    let start = &STARTS[index % CPUS];
    let [ttbr0, ttbr1, tcr, sp] = start.tables_and_stack();
    // SAFETY: the new tables have what the old ones have, and the pages of generated instructions; the stack is this
    // CPU's own, and what is on the old one is not needed any more.
    unsafe {
        asm!("msr ttbr0_el1, {}", "msr ttbr1_el1, {}", "msr tcr_el1, {}", "isb", "tlbi vmalle1", "dsb nsh", "isb",
             "mov sp, {}", "mov x29, xzr", "mov x30, xzr", "b {}",
             in(reg) ttbr0, in(reg) ttbr1, in(reg) tcr, in(reg) sp, sym started, in("x0") start,
             options(noreturn));
    }
}

/// As [`begin`] for this CPU, which goes on where it is. What [`run`] executes at EL0 may wait (WFI, WFE) and see the
/// timers. Needs [`set_up`].
pub fn stay() {
    let [ttbr0, ttbr1, tcr, _] = STARTS[0].tables_and_stack();
    let (sctlr, cntkctl) = (register!("sctlr_el1"), register!("cntkctl_el1"));
    // SAFETY: the new tables have what the old ones have, and the pages of generated instructions; the other bits are
    // about EL0 alone.
    unsafe {
        asm!("msr ttbr0_el1, {}", "msr ttbr1_el1, {}", "msr tcr_el1, {}", "isb", "tlbi vmalle1", "dsb nsh",
             "msr sctlr_el1, {}", "msr cntkctl_el1, {}", "isb",
             in(reg) ttbr0, in(reg) ttbr1, in(reg) tcr, in(reg) sctlr | 1 << 16 | 1 << 18,
             in(reg) cntkctl | 0x303, options(nostack));
    }
}

/// Where the page is that [`run`]'s instructions may write at EL0.
pub const WRITABLE: u64 = CODE + CPUS as u64 * 4096;

extern "C" fn started(start: &'static Start) -> ! {
    let index = (&raw const *start as usize - &raw const STARTS as usize) / size_of::<Start>();
    // Floating point, so that its instructions do something.
    // SAFETY: this program has none of its own.
    unsafe { asm!("msr cpacr_el1, {}", "isb", in(reg) 3u64 << 20, options(nostack)) }
    // SAFETY: `begin` stored a function of this type before another CPU could be started.
    let program: fn(usize) -> ! = unsafe { core::mem::transmute(PROGRAM.load(Relaxed)) };
    program(index % CPUS)
}

/// Sets this CPU's part of the interrupt controller up.
#[must_use]
pub fn controller() -> Gic {
    let [version, a, b] = [0, 1, 2].map(|i| GIC[i].load(Relaxed));
    gic::init_cpu(&if version == 2 {
        Gic::V2 { gicd: a, gicc: b }
    } else {
        Gic::V3 { gicd: a, gicr: b }
    })
}

/// Whatever was done to the controller: this CPU's timer comes through again, `ticks` from now.
pub fn alarm(gic: Gic, ticks: u64) {
    let own = 1 << time::INTID;
    // SAFETY: registers of the controller; an interrupt is taken by vectors that expect it, or not at all.
    unsafe {
        match gic {
            Gic::V2 { gicd, gicc } => {
                mmio::write32(gicd, 1);
                mmio::write32(gicd + 0x380, !0);
                mmio::write32(gicd + 0x400 + 24, 0xa0a0_a0a0);
                mmio::write32(gicd + 0x100, own);
                mmio::write32(gicc + 0xd0, 0);
                mmio::write32(gicc + 4, 0xff);
                mmio::write32(gicc, 1);
            }
            Gic::V3 { gicd, gicr } => {
                mmio::write32(gicd, 1 << 4 | 1 << 1);
                mmio::write32(gicr + 0x1_0380, !0);
                mmio::write32(gicr + 0x1_0080, !0);
                mmio::write32(gicr + 0x1_0400 + 24, 0xa0a0_a0a0);
                mmio::write32(gicr + 0x1_0100, own);
                asm!("msr S3_0_C12_C9_0, xzr", "msr S3_0_C12_C8_4, xzr", "msr S3_0_C4_C6_0, {ff}",
                     "msr S3_0_C12_C12_4, xzr", "msr S3_0_C12_C12_7, {on}", "isb",
                     ff = in(reg) 0xffu64, on = in(reg) 1u64, options(nostack));
            }
        }
        asm!("msr cntv_cval_el0, {}", "msr cntv_ctl_el0, {}", "isb",
             in(reg) time::ticks().saturating_add(ticks), in(reg) 1u64, options(nostack));
    }
}

/// Has the timer interrupt this CPU `ticks` from now, if the controller lets it.
pub fn timer(ticks: u64) {
    // SAFETY: programs this CPU's own timer.
    unsafe {
        asm!("msr cntv_cval_el0, {}", "msr cntv_ctl_el0, {}", "isb",
             in(reg) time::ticks().saturating_add(ticks), in(reg) 1u64, options(nostack));
    }
}

/// Takes what interrupts there are, the timer's among them.
pub fn take_interrupts(gic: Gic) {
    // SAFETY: this CPU's own timer.
    unsafe { asm!("msr cntv_ctl_el0, {}", "isb", in(reg) 2u64, options(nostack)) }
    for _ in 0..4 {
        if !cpu::interrupt_pending() || !gic::take_at(gic, |_| ()) {
            break;
        }
    }
}

/// Whether an access of so many bytes touches nothing of Rust's: it is in the arena, or outside of memory.
fn allowed(at: u64, size: u64) -> bool {
    let within = |range: &[AtomicU64; 2], at: u64| {
        let [start, len] = [range[0].load(Relaxed), range[1].load(Relaxed)];
        at >= start && at - start < len
    };
    [at, at.wrapping_add(size - 1)]
        .into_iter()
        .all(|at| within(&ARENA, at) || !within(&MEMORY, at))
}

/// Loads 1, 2, 4 or 8 bytes from the arena, or from outside of memory. Nothing, where that is Rust's.
///
/// # Errors
/// The exception that it took.
pub fn load(at: u64, size: u8) -> Result<u64, Trap> {
    if !allowed(at, u64::from(size)) {
        return Ok(0);
    }
    let (value, esr, far): (u64, u64, u64);
    macro_rules! load {
        ($text:literal) => {
            attempt!($text, at = in(reg) at, v = inout(reg) 0u64 => value, out("x17") esr, out("x16") far,
                     options(nostack))
        };
    }
    // SAFETY: reads no memory of Rust's; a fault resumes after it.
    unsafe {
        match size {
            1 => load!("ldrb {v:w}, [{at}]"),
            2 => load!("ldrh {v:w}, [{at}]"),
            4 => load!("ldr {v:w}, [{at}]"),
            _ => load!("ldr {v:x}, [{at}]"),
        }
    }
    outcome(value, esr, far)
}

/// Stores 1, 2, 4 or 8 bytes in the arena, or outside of memory. Does nothing, where that is Rust's.
///
/// # Errors
/// The exception that it took.
pub fn store(at: u64, size: u8, value: u64) -> Result<(), Trap> {
    if !allowed(at, u64::from(size)) {
        return Ok(());
    }
    let (esr, far): (u64, u64);
    macro_rules! store {
        ($text:literal) => {
            attempt!($text, at = in(reg) at, v = in(reg) value, out("x17") esr, out("x16") far, options(nostack))
        };
    }
    // SAFETY: writes no memory of Rust's; a fault resumes after it.
    unsafe {
        match size {
            1 => store!("strb {v:w}, [{at}]"),
            2 => store!("strh {v:w}, [{at}]"),
            4 => store!("str {v:w}, [{at}]"),
            _ => store!("str {v:x}, [{at}]"),
        }
    }
    outcome((), esr, far)
}

/// Looks at every double word of the program's memory: how many there are, and how many of them are `word`.
pub fn count(machine: &Machine, word: u64) -> (u64, u64) {
    let (mut all, mut found) = (0, 0);
    for &(start, len) in &machine.memory {
        for at in (start..start + len).step_by(8) {
            // SAFETY: RAM, where it is in the map; a copy of it is made at once, and may be of anything.
            found += u64::from(unsafe { (at as *const u64).read_volatile() } == word);
            all += 1;
        }
    }
    (all, found)
}

/// Another page of the arena as root of the upper half.
pub fn upper_root(page: u64) {
    let ttbr1 = ARENA[0].load(Relaxed) + page * 4096;
    // SAFETY: nothing of Rust's is in the upper half.
    unsafe {
        asm!("msr ttbr1_el1, {}", "isb", "tlbi vmalle1", "dsb nsh", "isb", in(reg) ttbr1, options(nostack));
    }
}

/// Executes what is in CPU `index`'s page of generated instructions, until the first exception: the number of its
/// vector (Arm ARM, "Exception vectors": a sixteenth of the table each), and what it was.
pub fn run(index: usize, registers: &Registers<'_>) -> (u64, Trap) {
    unsafe extern "C" {
        fn attack_enter(context: *mut Context) -> u64;
    }
    let index = index % CPUS;
    let context = CONTEXTS[index].0.get();
    // SAFETY: the context is this CPU's own. What runs can be anything, and could harm the program as a hypercall could
    // (see the module's text); the exception at its end brings everything back that the calling convention keeps.
    unsafe {
        (*context).x = *registers.x;
        (*context).pc = CODE + index as u64 * 4096;
        (*context).pstate = registers.pstate;
        (*context).sp = registers.x[0];
        asm!("dsb ish", "ic iallu", "dsb nsh", "isb", options(nostack));
        let vector = attack_enter(context);
        let (esr, far) = ((*context).esr, (*context).far);
        (vector, Trap { esr, far })
    }
}
