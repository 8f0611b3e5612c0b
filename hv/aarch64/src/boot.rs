// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the first instruction of Rust to dom0's first instruction.

use crate::mach::{Mach, counter};
use crate::mmu::{self, Image, Range};
use crate::run::{self, FIRMWARE, FIXED, Firmware, Fixed, GIC, HV, MACH, ONLINE};
use crate::{console, heap, last, panic};
use alloc::vec::Vec;
use builder::GicVersion;
use builder::facts::Facts;
use builder::image::ImageHeader;
use builder::layout::Region;
use builder::tree::{Device, Dom0Tree, GicNode};
use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{Ordering, fence};
use guest_abi::arch;
use hv_core::cpu::{Features, cptr, hcr};
use hv_core::errata::{self, Offered};
use hv_core::frame::{Frame, Frames, Use};
use hv_core::hypervisor::{Hypervisor, MachineInfo, NewDomain};
use hv_core::machine::{Cache, CacheOp, PhysMem, StartState};
use hv_core::p2m::Kind;
use hv_core::psci::Workarounds;
use hv_core::rate::Rate;
use hv_core::sysreg::IdRegs;
use hv_core::types::{CpuId, Errno, Gfn, Mfn, Pa, Slot, VcpuId, VcpuRef};
use platform::dt::{CpuStart, GicInfo, MAX_CPUS, Machine, UartKind};
use platform::gic::Gic;
use platform::lock::Lock;
use platform::mmio::Mmio;
use platform::psci::Psci;

unsafe extern "C" {
    static __text_end: u8;
    static __rodata_end: u8;
    static BOOT_STACK: u8;
    static hv_vectors: u8;
    fn _secondary();
    fn hv_enter_on(file: *mut core::ffi::c_void, stack: u64) -> !;
}

const STACK: usize = 0x8000;
/// As entry.s has it: building the tables of a whole hypervisor takes more than running it.
const BOOT_STACK_SIZE: u64 = 0x4_0000;
const MIB: u64 = 1 << 20;
/// Where dom0 may map grant-table frames: above any RAM that a board has.
const DOM0_GRANTS: Region = Region {
    base: 0x10_0000_0000,
    size: 0x0100_0000,
};
/// Where dom0 may map pages of others.
const DOM0_FOREIGN: Region = Region {
    base: 0x10_4000_0000,
    size: 0x1_0000_0000,
};

/// A stack, and below it a page that is not mapped.
const STRIDE: usize = STACK + 4096;

/// One stack for each CPU but the first.
#[repr(C, align(4096))]
struct Stacks(UnsafeCell<[[u8; STRIDE]; MAX_CPUS]>);
// SAFETY: Rust code never touches the bytes; each CPU uses its own part as its stack.
unsafe impl Sync for Stacks {}
static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STRIDE]; MAX_CPUS]));

/// What entry.s's `_secondary` reads with the MMU off.
#[repr(C)]
#[derive(Clone, Copy)]
struct SecondaryStart {
    ttbr: u64,
    tcr: u64,
    mair: u64,
    sctlr: u64,
    stack: u64,
    cpu: u64,
    mpidr: u64,
}

#[repr(C, align(64))]
struct Secondaries(UnsafeCell<[SecondaryStart; MAX_CPUS]>);
// SAFETY: written by the boot CPU alone, each entry before the CPU that reads it is started.
unsafe impl Sync for Secondaries {}
#[unsafe(no_mangle)]
static SECONDARIES: Secondaries = Secondaries(UnsafeCell::new(
    [SecondaryStart {
        ttbr: 0,
        tcr: mmu::TCR,
        mair: mmu::MAIR,
        sctlr: mmu::SCTLR,
        stack: 0,
        cpu: 0,
        mpidr: u64::MAX,
    }; MAX_CPUS],
));
const _: () = assert!(
    MAX_CPUS == 8 && size_of::<SecondaryStart>() == 56,
    "as entry.s has it"
);

fn image() -> Image {
    let at = |s: *const u8| s as u64;
    let (start, end) = panic::image();
    let text = Range {
        start,
        end: at(&raw const __text_end),
    };
    Image {
        whole: Range { start, end },
        guards: is_guard,
        text,
        rodata: Range {
            start: text.end,
            end: at(&raw const __rodata_end),
        },
    }
}

fn current_el() -> u64 {
    let el: u64;
    // SAFETY: reads the exception level.
    unsafe { asm!("mrs {}, currentel", out(reg) el, options(nomem, nostack)) };
    (el >> 2) & 3
}

/// There is no way to go on, nor to read the device tree (no MMU): says so on the UART that QEMU's virt board has.
#[cold]
fn cannot(text: &[u8]) -> ! {
    const UART: *mut u32 = 0x0900_0000 as *mut u32;
    for b in text {
        // SAFETY: a store to what is a PL011's data register on the only board where this happens.
        unsafe {
            asm!("str {v:w}, [{p}]", v = in(reg) u32::from(*b), p = in(reg) UART, options(nostack))
        };
    }
    run::halt()
}

/// The first Rust on the first CPU; MMU off.
#[unsafe(no_mangle)]
extern "C" fn hv_boot(dtb: u64) -> ! {
    if current_el() != 2 {
        cannot(b"\r\n(PV) Paravane needs EL2, but was started below. QEMU: -machine virt,virtualization=on\r\n");
    }
    let hcr: u64;
    // SAFETY: reads what `_start` has written.
    unsafe { asm!("mrs {}, hcr_el2", out(reg) hcr, options(nomem, nostack)) };
    if hcr & hcr::E2H != 0 {
        cannot(b"\r\n(PV) Paravane needs HCR_EL2.E2H to be 0, but this CPU has it fixed at 1 (no FEAT_E2H0)\r\n");
    }
    let image = image();
    // SAFETY: firmware's device tree; bytes, as nothing else may be unaligned while the MMU is off.
    let head =
        core::array::from_fn(|i| unsafe { core::ptr::read_volatile((dtb as *const u8).add(i)) });
    // A first map that knows the image and the device tree alone: what else may be read by speculation is not known yet.
    let size = platform::dt::size_of_tree(head).unwrap_or(8);
    let first = [pages(dtb, size)];
    // SAFETY: the boot CPU, MMU off; the vectors are the image's own.
    unsafe {
        asm!("msr vbar_el2, {}", "isb", in(reg) &raw const hv_vectors);
        match mmu::build(true, &first, &[], &image) {
            Ok(root) => mmu::enable(root),
            Err(_) => cannot(b"\r\n(PV) no map\r\n"),
        }
    }
    start(dtb, size, &image)
}

/// The pages of so many bytes.
fn pages(base: u64, size: usize) -> Range {
    Range::pages_of(platform::dt::Range {
        base,
        size: size as u64,
    })
}

#[cold]
fn start(dtb: u64, size: usize, image: &Image) -> ! {
    let t0 = counter();
    // SAFETY: firmware's device tree, mapped just now, which nobody else looks at any more.
    let blob = unsafe { core::slice::from_raw_parts_mut(dtb as *mut u8, size) };
    let machine = match Machine::parse(blob) {
        Ok(m) => m,
        Err(e) => panic!("{e}"),
    };
    if let Some(u) = &machine.uart {
        // SAFETY: from the device tree; Device memory in the first map as in the second.
        unsafe { console::init(u) };
    }
    log::info!(
        "Paravane {} on {}",
        env!("CARGO_PKG_VERSION"),
        machine.model
    );
    let noreboot = machine.bootargs.split_whitespace().any(|w| w == "noreboot");
    last::NOREBOOT.store(noreboot, Ordering::Relaxed);

    let (ram, no_map) = (machine.ram(), machine.forbidden());
    let initrd = machine.initrd.map(Range::pages_of);
    if initrd.is_some_and(|i| no_map.iter().any(|n| n.overlaps(&i))) {
        panic!("the firmware reserves memory as no-map where the initrd is");
    }
    // SAFETY: second and last table, before other CPUs run; it covers what is used of the first one.
    let root = unsafe {
        match mmu::build(false, &ram, &no_map, image) {
            Ok(root) => root,
            Err(e) => panic!("{e}"),
        }
    };
    // SAFETY: the table just made.
    unsafe {
        asm!("msr ttbr0_el2, {}", "isb", "tlbi alle2", "dsb ish", "isb", in(reg) root);
    }
    let taken = pages(dtb, machine.dtb_size);
    let (hv, beyond) = memory(&machine, image, &ram, taken, initrd, t0);
    HV.call_once(|| Lock::new(hv));
    FIRMWARE.call_once(|| Firmware {
        psci: machine.psci.map(Psci::new),
        // SAFETY: registers from the device tree, Device memory in our map, driven by nobody else.
        pm: machine.pm.map(|r| unsafe { Mmio::new(r.base as usize) }),
    });
    // SAFETY: registers from the device tree, Device memory in our map, driven by nobody else.
    let gic = match unsafe { Gic::new(&machine.gic, |r| r.base as usize) } {
        Ok(g) => g,
        Err(e) => panic!("interrupt controller: {e:?}"),
    };
    gic.init_dist();
    let nr_irqs = gic.nr_irqs();
    let version = gic.version();
    GIC.call_once(|| gic);
    FIXED.call_once(|| constants(&machine, version));
    if !machine.board.emulated && !run::gic().overlooks() {
        platform::lock::cpus_are_real();
    }
    if let Some(Firmware { pm: Some(_), .. }) = FIRMWARE.get()
        && !machine.board.emulated
        && !run::gic().overlooks()
    {
        run::feed_from_now();
    }
    cpu_init(0);
    dom0(&machine, nr_irqs, initrd, &beyond);
    if let Some(irq) = fixed_uart() {
        run::gic().set_edge(irq, false);
        run::gic().set_target(irq, 0);
        run::gic().enable(irq);
        console::by_interrupt();
        // What came before the interrupt was on.
        while run::typed() {}
    }
    secondaries(&machine, root, |at| {
        ram.iter().any(|r| r.contains(at, 8)) && !no_map.iter().any(|r| r.contains(at, 8))
    });
    log::info!(
        "{} CPUs, GICv{version}, {} MiB of memory, {} bytes of the heap in use, ready after {} us",
        machine.cpus.len(),
        run::hv().lock().frames.total_pages() >> 8,
        heap::used(),
        run::mach().ns(counter()) / 1000
    );
    if machine
        .bootargs
        .split_whitespace()
        .any(|w| w == "panic=now")
    {
        panic!("asked for by panic=now");
    }
    if machine
        .bootargs
        .split_whitespace()
        .any(|w| w == "panic=overflow")
    {
        overflow(0);
    }
    let file = run::resume(CpuId(0), None);
    // SAFETY: a register file from the scheduler; this CPU's stack begins anew.
    unsafe { hv_enter_on(file.cast(), &raw const BOOT_STACK as u64 + BOOT_STACK_SIZE) }
}

fn fixed_uart() -> Option<u32> {
    run::fixed().uart
}

/// Lays out the hypervisor's own memory behind the image, and gives the rest to the allocator. What
/// the board's DMA does not reach is returned: the control domain's memory is taken before.
#[cold]
fn memory(
    machine: &Machine,
    image: &Image,
    ram: &[Range],
    dtb: Range,
    initrd: Option<Range>,
    t0: u64,
) -> (Hypervisor, Vec<Range>) {
    let lo = ram.iter().map(|r| r.start).min().unwrap_or(0);
    let hi = ram.iter().map(|r| r.end).max().unwrap_or(0);
    let pages = (hi - lo) / 4096;
    let total: u64 = ram.iter().map(|r| r.end - r.start).sum();
    let heap_size = (total / 1024).clamp(4 * MIB, 16 * MIB).next_power_of_two();
    let table_size = (pages * size_of::<Frame>() as u64 + 4095) & !4095;
    let own = Range {
        start: image.whole.start & !4095,
        end: image.whole.end + heap_size + table_size,
    };
    let reserved = (machine.reserved.iter()).map(|r| Range::pages_of(*r));
    let fits = ram
        .iter()
        .any(|r| r.contains(own.start, own.end - own.start));
    let taken = || [dtb].into_iter().chain(initrd).chain(reserved.clone());
    if !fits || taken().any(|r| r.overlaps(&own)) {
        panic!(
            "no room behind the image for {} KiB of tables",
            (heap_size + table_size) >> 10
        );
    }
    // SAFETY: RAM behind the image that nothing else uses, mapped read-write.
    let table = unsafe {
        heap::init(image.whole.end as usize, heap_size as usize);
        let p = (image.whole.end + heap_size) as *mut Frame;
        for i in 0..pages as usize {
            p.add(i).write(Frame::RESERVED);
        }
        core::slice::from_raw_parts_mut(p, pages as usize)
    };
    let all = Range { start: lo, end: hi };
    let rate = Rate::new(platform::timer::frequency());
    let lse = id_regs().get(6, 0) >> 20 & 15 >= 2;
    MACH.call_once(|| Mach::new(all, own, t0, rate, lse));
    let mut frames = Frames::new(Mfn::of(lo), table);
    let mut busy: Vec<Range> = Vec::new();
    for r in [own].into_iter().chain(taken()) {
        busy.insert(busy.partition_point(|b| b.start < r.start), r);
    }
    if let Some(page) = last::choose(ram, &own, &busy) {
        last::show(&page);
        busy.insert(busy.partition_point(|b| b.start < page.start), page);
    }
    let limit = machine.board.dma_limit.unwrap_or(u64::MAX);
    let mut beyond: Vec<Range> = Vec::new();
    let mut free = |start: u64, end: u64| {
        let middle = end.min(limit).max(start);
        add_ram(&mut frames, start, middle);
        beyond.push(Range { start: middle, end });
    };
    for bank in ram {
        let mut at = bank.start;
        for b in busy
            .iter()
            .filter(|b| b.start < bank.end && bank.start < b.end)
        {
            free(at, b.start);
            at = at.max(b.end);
        }
        free(at, bank.end);
    }
    let (gic_version, gicv) = match &machine.gic {
        GicInfo::V2 { gicv, .. } => (2, gicv.base),
        GicInfo::V3 { .. } => (3, 0),
    };

    let wall_sec = machine.rtc.map_or(0, |r| {
        // SAFETY: the data register of the PL031, Device memory by our map.
        u64::from(unsafe { core::ptr::read_volatile(r.base as *const u32) })
    });
    let info = MachineInfo {
        cpus: machine.cpus.len() as u32,
        started: 1,
        khz: (platform::timer::frequency() / 1000) as u32,
        gic_version,
        gicv: Mfn::of(gicv),
        wall_sec,
    };
    (Hypervisor::new(frames, info), beyond)
}

/// Gives whole pages to the allocator, if there are any.
fn add_ram(frames: &mut Frames, start: u64, end: u64) {
    if start < end {
        frames.add_ram(Mfn::of(start), (end - start) / 4096);
    }
}

macro_rules! id_regs {
    ($crm:expr, $op2:expr; $($c:literal),*) => {
        match $crm {
            $($c => id_regs!(@ $op2, $c; 0, 1, 2, 3, 4, 5, 6, 7),)*
            _ => 0,
        }
    };
    (@ $op2:expr, $c:literal; $($o:literal),*) => {
        match $op2 {
            $($o => {
                let v: u64;
                // SAFETY: identification registers; those that do not exist read as zero.
                unsafe { asm!(concat!("mrs {}, s3_0_c0_c", $c, "_", $o), out(reg) v, options(nomem, nostack)) };
                v
            })*
            _ => 0,
        }
    };
}

/// This CPU's identification registers.
#[cold]
fn id_regs() -> IdRegs {
    IdRegs::read(|crm, op2| id_regs!(crm, op2; 1, 2, 3, 4, 5, 6, 7))
}

/// CTR_EL0's and DCZID_EL0's parts that programs rely on: sizes of cache lines, and what DC ZVA clears. Guests read
/// them from the CPU that they are on.
fn caches() -> (u64, u64) {
    let (ctr, dczid): (u64, u64);
    // SAFETY: identification registers.
    unsafe {
        asm!("mrs {}, ctr_el0", "mrs {}, dczid_el0", out(reg) ctr, out(reg) dczid, options(nomem, nostack));
    }
    // IminLine, DminLine, IDC, DIC.
    (ctr & 0x300f_000f, dczid)
}

/// What guests are told of speculation on this CPU, and what firmware offers on it.
#[cold]
fn speculation(ids: &IdRegs) -> (Workarounds, Offered) {
    let midr: u64;
    // SAFETY: an identification register.
    unsafe { asm!("mrs {}, midr_el1", out(reg) midr, options(nomem, nostack)) };
    if errata::locks_up(midr) {
        log::warn!(
            "guests can lock this CPU up: erratum 1508412 of Cortex-A77 (XSA-436) or 832075 of A57"
        );
    }
    let psci = FIRMWARE.get().and_then(|f| f.psci);
    let offered = SPECULATION.map(|f| psci.map_or(-1, |p| p.workaround_offered(f)));
    if offered[1] == 0 {
        // Speculative store bypass stays off for everybody.
        run::workaround(SPECULATION[1], 1);
    }
    (
        errata::workarounds(midr, ids.get(4, 0) >> 56 & 15, offered),
        offered,
    )
}

/// SMCCC_ARCH_WORKAROUND_1, 2 and 3.
const SPECULATION: [u32; 3] = [0x8000_8000, 0x8000_7fff, 0x8000_3fff];

/// Whether this CPU has what guests were shown of the first one, and what the world switch goes by. Guests run on
/// any of them in turn, and the ID registers that they have read cannot be taken back.
#[cold]
fn like_the_first() -> bool {
    let f = run::fixed();
    let ids = id_regs();
    Features::of(&ids).hcr() == f.hcr
        && caches() == f.caches
        && speculation(&ids) == (f.workarounds, f.offered)
        && ids
            .sanitised(run::gic().version() == 3, hv_core::p2m::IPA_BITS)
            .covers(&f.ids)
}

/// Sets every trap of this CPU's, in registers that it has. Each is written as a whole: what reset and the firmware
/// left in them is not known.
#[cold]
fn traps() {
    let has = Features::of(&id_regs());
    macro_rules! clear {
        ($feature:ident: $($reg:literal)*) => {
            if has.has(Features::$feature) {
                // SAFETY: EL2 configuration that the CPU says it has, before any guest runs on it.
                unsafe { $(asm!(concat!("msr ", $reg, ", xzr"), options(nomem, nostack));)* }
            }
        };
    }
    // SAFETY: EL2 configuration, as above; SVE's and SME's registers are reached while they do not trap.
    unsafe { asm!("msr cptr_el2, {}", "isb", in(reg) cptr::RES1, options(nomem, nostack)) };
    // ZCR_EL2; SMCR_EL2 and SVCR.
    clear!(SVE: "s3_4_c1_c2_0");
    clear!(SME: "s3_4_c1_c2_6" "s3_3_c4_c2_2");
    // HFGRTR, HFGWTR, HFGITR, HDFGRTR, HDFGWTR _EL2: zeros trap what came with FGT and after it, and leave to
    // other traps what was there before.
    clear!(FGT: "s3_4_c1_c1_4" "s3_4_c1_c1_5" "s3_4_c1_c1_6" "s3_4_c3_c1_4" "s3_4_c3_c1_5");
    // HFGRTR2, HFGWTR2, HFGITR2, HDFGRTR2, HDFGWTR2 _EL2.
    clear!(FGT2: "s3_4_c3_c1_2" "s3_4_c3_c1_3" "s3_4_c3_c1_7" "s3_4_c3_c1_0" "s3_4_c3_c1_1");
    // TRFCR_EL2, PMSCR_EL2, BRBCR_EL2: nothing is recorded of EL2. VDISR_EL2, VSESR_EL2: no error is pending.
    clear!(TRF: "s3_4_c1_c2_1");
    clear!(SPE: "s3_4_c9_c9_0");
    clear!(BRBE: "s2_4_c9_c0_0");
    clear!(RAS: "s3_4_c12_c1_1" "s3_4_c5_c2_3");
    let mut counters = 0;
    // SAFETY: as above.
    unsafe {
        if has.has(Features::AMU) && has.has(Features::FGT) {
            // HAFGRTR_EL2.
            asm!("msr s3_4_c3_c1_6, xzr", options(nomem, nostack));
        }
        if has.has(Features::HCX) {
            asm!("msr s3_4_c1_c2_2, {}", in(reg) has.hcrx(), options(nomem, nostack));
        }
        if has.has(Features::MPAM) {
            // MPAM2_EL2.TRAPMPAM0EL1, TRAPMPAM1EL1; MPAMHCR_EL2.TRAP_MPAMIDR_EL1 if MPAMIDR_EL1.HAS_HCR.
            let idr: u64;
            asm!("msr s3_4_c10_c5_0, {}", "mrs {}, s3_0_c10_c4_4", in(reg) 3u64 << 48, out(reg) idr,
                options(nomem, nostack));
            if idr & (1 << 17) != 0 {
                asm!("msr s3_4_c10_c4_0, {}", in(reg) 1u64 << 31, options(nomem, nostack));
            }
        }
        if has.has(Features::PMU) {
            asm!("mrs {}, pmcr_el0", out(reg) counters, options(nomem, nostack));
        }
        asm!("msr mdcr_el2, {}", "msr mdscr_el1, xzr", "msr cptr_el2, {}", "isb",
            in(reg) has.mdcr(counters >> 11), in(reg) has.cptr(), options(nomem, nostack));
    }
}

#[cold]
fn constants(machine: &Machine, version: u8) -> Fixed {
    let ids = id_regs();
    let has = Features::of(&ids);
    let (gicd, gicr, maint) = match &machine.gic {
        GicInfo::V2 {
            gicd,
            gicc,
            maintenance,
            ..
        } => (
            (gicd.base, gicd.size.min(0x1000)),
            (gicc.base + 0x1000, 0x1000),
            *maintenance,
        ),
        GicInfo::V3 {
            gicd,
            gicr,
            maintenance,
            ..
        } => {
            let base = gicr.first().map_or(0, |r| r.base);
            ((gicd.base, 0x1_0000), (base, 0x2_0000), *maintenance)
        }
    };
    let (workarounds, offered) = speculation(&ids);
    Fixed {
        workarounds,
        offered,
        hcr: has.hcr(),
        has,
        ppi_virt: machine.timer.virt,
        ppi_hyp: machine.timer.hyp,
        ppi_maint: maint,
        // 25 ms: late for a clock tick that was overlooked, and too seldom to be seen in what a guest computes.
        longest_run: match run::gic().overlooks() {
            true => platform::timer::frequency() / 40,
            false => u64::MAX,
        },
        uart: machine.uart.and_then(|u| u.irq).map(|i| i.intid),
        dom0_gicd: gicd,
        dom0_gicr: gicr,
        guest_gic: match version {
            3 => (
                (arch::GUEST_GICV3_GICD_BASE, arch::GUEST_GICV3_GICD_SIZE),
                (arch::GUEST_GICV3_GICR0_BASE, arch::GUEST_GICV3_GICR0_SIZE),
            ),
            _ => (
                (arch::GUEST_GICD_BASE, arch::GUEST_GICD_SIZE),
                (arch::GUEST_GICC_BASE + 0x1000, 0x1000),
            ),
        },
        pan: ids.pan(),
        caches: caches(),
        ids: ids.sanitised(version == 3, hv_core::p2m::IPA_BITS),
    }
}

/// Sets up the calling CPU's traps, interrupts and timer.
#[cold]
fn cpu_init(cpu: usize) {
    // 40-bit IPA and PA, 4 KiB granule, walks from level 1, write-back inner-shareable.
    let vtcr: u64 = 24 | (1 << 6) | (1 << 8) | (1 << 10) | (3 << 12) | (2 << 16) | (1 << 31);
    traps();
    // SAFETY: EL2 configuration, before any guest runs on this CPU.
    unsafe {
        asm!(
            "msr vbar_el2, {v}", "msr vtcr_el2, {vtcr}",
            "msr hstr_el2, {hstr}", "mrs {t}, midr_el1", "msr vpidr_el2, {t}", "msr vttbr_el2, {e}", "msr hcr_el2, {hcr}",
            "tlbi alle1", "dsb nsh", "isb",
            v = in(reg) &raw const hv_vectors, vtcr = in(reg) vtcr,
            e = in(reg) crate::vcpu::empty_root().0, hstr = in(reg) 1u64 << 15, hcr = in(reg) run::fixed().hcr, t = out(reg) _,
        );
    }
    if let Err(e) = run::gic().init_cpu(cpu) {
        panic!("interrupt controller of CPU {cpu}: {e:?}");
    }
    platform::timer::init_cpu();
    let f = run::fixed();
    for irq in [f.ppi_virt, f.ppi_hyp, f.ppi_maint] {
        run::gic().enable(irq);
    }
    ONLINE.fetch_or(1 << cpu, Ordering::Release);
}

/// The first Rust on every other CPU; MMU on.
#[unsafe(no_mangle)]
extern "C" fn hv_secondary(cpu: u64) -> ! {
    if !like_the_first() {
        log::warn!("CPU {cpu} is left out: it has less than the first one, or other caches");
        run::halt();
    }
    cpu_init(cpu as usize);
    run::hv().lock().cpu_started(CpuId(cpu as u8));
    // Whoever panicked before this CPU was online did not know of it.
    fence(Ordering::SeqCst);
    if panic::happened() {
        run::halt();
    }
    let file = run::resume(CpuId(cpu as u8), None);
    // SAFETY: as in `start`.
    unsafe { hv_enter_on(file.cast(), stack_top(cpu as usize)) }
}

/// The CPU whose stack an address is of; the first one has a stack of its own.
pub fn cpu_at(sp: u64) -> CpuId {
    let at = sp.wrapping_sub(STACKS.0.get() as u64) / STRIDE as u64;
    CpuId(if at < MAX_CPUS as u64 { at as u8 } else { 0 })
}

fn stack_top(cpu: usize) -> u64 {
    STACKS.0.get() as u64 + (cpu as u64 + 1) * STRIDE as u64
}

/// Whether a page is one of those below the stacks, which are not mapped.
pub fn is_guard(page: u64) -> bool {
    let boot = &raw const BOOT_STACK as u64;
    let at = page.wrapping_sub(STACKS.0.get() as u64);
    page == boot - 4096
        || page == boot + BOOT_STACK_SIZE
        || at < (MAX_CPUS * STRIDE) as u64 && at.is_multiple_of(STRIDE as u64)
}

/// Uses up the stack, for panic=overflow.
#[cold]
#[inline(never)]
#[allow(unconditional_recursion)]
fn overflow(n: u64) -> u64 {
    let room = core::hint::black_box([n; 32]);
    overflow(n + 1) + room[0]
}

#[cold]
fn secondaries(machine: &Machine, root: u64, mapped: impl Fn(u64) -> bool) {
    let entry = _secondary as *const () as u64;
    for (i, c) in machine.cpus.iter().enumerate().skip(1) {
        // SAFETY: this CPU's entry, which it reads only when it has been started.
        let at = unsafe {
            let start = &mut (&mut *SECONDARIES.0.get())[i];
            start.ttbr = root;
            start.stack = stack_top(i);
            start.cpu = i as u64;
            start.mpidr = c.mpidr;
            core::ptr::from_mut(start) as u64
        };
        clean(at);
        clean(at + 55);
        let psci = FIRMWARE.get().and_then(|f| f.psci);
        match (c.start, psci) {
            // SAFETY: entry.s: the CPU reads what was written above.
            (CpuStart::Psci, Some(psci)) => match unsafe { psci.cpu_on(c.mpidr, entry, 0) } {
                Ok(()) => {}
                Err(e) => log::warn!("CPU {i} does not start: {e}"),
            },
            (CpuStart::SpinTable { release }, _) if release % 8 == 0 && mapped(release) => {
                // SAFETY: a word of RAM that is the firmware's, where the CPU looks for its entry.
                unsafe { core::ptr::write_volatile(release as *mut u64, entry) };
                clean(release);
                // SAFETY: wakes the CPUs that wait for an event.
                unsafe { asm!("sev", options(nomem, nostack)) };
            }
            _ => log::warn!("CPU {i}: the device tree has no way to start it that is of use"),
        }
    }
}

/// Writes the cache line at an address back to memory, for CPUs with their caches off.
fn clean(at: u64) {
    // SAFETY: cleaning changes no content.
    unsafe { asm!("dc civac, {}", "dsb sy", in(reg) at, options(nostack)) };
}

/// A size on the command line: `name=` a number, and `M` or `G` if it is not of bytes. Byte by byte: cutting
/// text would bring along what `core` needs to say that it was cut within a character, which is large.
fn option(args: &str, name: &str) -> Option<u64> {
    let v = args
        .split_whitespace()
        .find_map(|a| a.strip_prefix(name)?.strip_prefix('='))?;
    let (mut n, mut unit) = (0u64, 1);
    for b in v.bytes() {
        match b {
            b'0'..=b'9' if unit == 1 => n = n.checked_mul(10)?.checked_add(u64::from(b - b'0'))?,
            b'M' | b'm' if unit == 1 => unit = MIB,
            b'G' | b'g' if unit == 1 => unit = MIB << 10,
            _ => return None,
        }
    }
    n.checked_mul(unit).filter(|n| *n != 0)
}

/// Random bytes for the control domain, from which it makes those of guests: the firmware's seed, the
/// CPU's generator where there is one, and the clock, combined so that the best of them counts.
#[cold]
fn seed(machine: &Machine) -> [u8; 128] {
    let mut seed = [0; 128];
    let mut add = |at: usize, bytes: &[u8]| {
        for (to, b) in seed.iter_mut().skip(at).zip(bytes) {
            *to ^= b;
        }
    };
    add(0, &machine.seed);
    add(120, &counter().to_le_bytes());
    let isar0: u64;
    // SAFETY: an identification register.
    unsafe { asm!("mrs {}, id_aa64isar0_el1", out(reg) isar0, options(nomem, nostack)) };
    let mut words = 0;
    if isar0 >> 60 != 0 {
        for i in 0..16 {
            let (word, ok): (u64, u64);
            // SAFETY: RNDR, which the CPU has; it may fail, and says so in the flags.
            unsafe {
                asm!("mrs {}, s3_3_c2_c4_0", "cset {}, ne", out(reg) word, out(reg) ok, options(nomem, nostack));
            }
            if ok != 0 {
                add(i * 8, &word.to_le_bytes());
                words += 1;
            }
        }
    }
    if machine.seed.len() < 16 && words == 0 {
        log::warn!(
            "no random seed from the firmware or the CPU: only the clock makes guests' seeds differ"
        );
    }
    seed
}

/// Builds the control domain from the initrd.
#[cold]
fn dom0(machine: &Machine, nr_irqs: u32, initrd: Option<Range>, beyond: &[Range]) {
    let Some(initrd) = initrd else {
        panic!("no control domain: give its image as the initrd (QEMU: -initrd)");
    };
    let size = machine.initrd.map_or(0, |r| r.size);
    let m = run::mach();
    let start = machine.initrd.map_or(0, |r| r.base);
    let mut head = [0; ImageHeader::LEN];
    m.read(Pa(start), &mut head);
    let header = match ImageHeader::parse(&head, size) {
        Ok(h) => h,
        Err(e) => panic!("control domain: {e}"),
    };
    let memory = option(&machine.bootargs, "dom0_mem")
        .unwrap_or(128 * MIB)
        .next_power_of_two()
        .clamp(32 * MIB, 1 << 30);
    let order = (memory / 4096).trailing_zeros() as u8;
    let mut h = run::hv().lock();
    let nr_spis = (nr_irqs - 32).min(hv_core::vgic::MAX_SPIS) as u16;
    let new = NewDomain {
        handle: [0; 16],
        max_vcpus: 1,
        max_port: 4095,
        max_grant_frames: 64,
        max_maptrack_frames: 1024,
        gic_version: 0,
        nr_spis,
        privileged: true,
    };
    let slot = match h.create_domain(m, &new) {
        Ok(s) => s,
        Err(e) => panic!("control domain: {e}"),
    };
    let Ok(own) = h.frames.alloc(slot, Use::Guest, order) else {
        panic!(
            "control domain: no {} MiB of memory in one piece (dom0_mem=)",
            memory / MIB
        );
    };
    let own = h.frames.scrub_all(m, own);
    let base = own.mfn();
    let load = base.addr() + header.text_offset;
    if header.text_offset + header.image_size.max(size) + 4 * MIB > memory {
        panic!("control domain: larger than its memory (dom0_mem=)");
    }
    m.copy(Pa(load), Pa(start), size as usize);
    let gic = match &machine.gic {
        GicInfo::V2 { gicd, gicc, .. } => GicNode {
            version: GicVersion::V2,
            distributor: Region {
                base: gicd.base,
                size: 0x1000,
            },
            cpu: Region {
                base: gicc.base,
                size: 0x2000,
            },
        },
        GicInfo::V3 { .. } => GicNode {
            version: GicVersion::V3,
            distributor: Region {
                base: run::fixed().dom0_gicd.0,
                size: run::fixed().dom0_gicd.1,
            },
            cpu: Region {
                base: run::fixed().dom0_gicr.0,
                size: run::fixed().dom0_gicr.1,
            },
        },
    };
    let devices: Vec<Device<'_>> = machine
        .devices
        .iter()
        .filter_map(|d| {
            let irq = d.irq.filter(|i| i.intid >= 32)?;
            Some(Device {
                compatible: d.kind,
                reg: Region {
                    base: d.regs.base,
                    size: d.regs.size,
                },
                spi: irq.intid - 32,
                flags: if irq.edge { 1 } else { 4 },
            })
        })
        .collect();
    let tree = builder::tree::dom0_tree(&Dom0Tree {
        banks: &[Region {
            base: base.addr(),
            size: memory,
        }],
        vcpus: 1,
        gic,
        grant_window: DOM0_GRANTS,
        extended: &[DOM0_FOREIGN],
        event_intid: run::PPI_EVENT,
        bootargs: &machine.bootargs,
        initrd: None,
        rng_seed: Some(&seed(machine)),
        clock_frequency: 0,
        board: machine.board.name,
        facts: Facts {
            uart: machine.uart.map_or(0, |u| match u.kind {
                UartKind::Pl011 => 1,
                UartKind::MiniUart => 2,
            }),
            uart_base: machine.uart.map_or(0, |u| u.regs.base),
            uart_intid: run::fixed().uart.unwrap_or(0).into(),
            list_registers: run::gic().nr_lrs() as u64,
            interrupts: nr_irqs.into(),
            cpus: machine.cpus.len() as u64,
            cpus_left_out: machine.cpus_left_out as u64,
            dma_limit: machine.board.dma_limit.unwrap_or(0),
            seed: machine.seed.len() as u64,
            last_end: last::before().0,
            crashes: last::before().1,
        },
        devices: &devices,
    });
    let tree = match tree {
        Ok(t) => t,
        Err(e) => panic!("control domain's device tree: {e}"),
    };
    let dtb = base.addr() + memory - 2 * MIB;
    m.write(Pa(dtb), &tree);
    // It begins with its caches off. Where it has no bytes yet, `scrub` cleaned.
    for (at, len) in [(load, size), (dtb, tree.len() as u64)] {
        m.dcache(Pa(at), len, CacheOp::Clean);
    }
    m.drop_instructions();
    let mut pages: Vec<u64> = devices.iter().map(|v| v.reg.base >> 12).collect();
    pages.dedup();
    let r = (|| {
        let (d, mut c) = h.p2m_of(m, slot)?;
        d.max_pages = (memory / 4096) as u32;
        d.p2m.set_table_limit(c.frames, 1024)?;
        for block in own.blocks(9) {
            d.p2m.map(&mut c, Gfn(block.mfn().0), block, Kind::Ram)?;
        }
        for p in pages {
            d.p2m.map_device(&mut c, Gfn(p), Mfn(p))?;
        }
        if let GicInfo::V2 { gicc, gicv, .. } = &machine.gic {
            // The first page: the second is emulated (`vgic::Region::Dir`).
            d.p2m
                .map_device(&mut c, Gfn(gicc.base >> 12), Mfn::of(gicv.base))?;
        }
        for d in &devices {
            let irq = d.spi + 32;
            match h.vgics.link(slot, irq) {
                // Two devices may share one.
                Ok(()) | Err(Errno::EBUSY) => {}
                Err(e) => return Err(e),
            }
            run::gic().set_edge(irq, d.flags == 1);
            run::gic().set_target(irq, 0);
        }
        let v = VcpuRef {
            slot: Slot(slot.0),
            vcpu: VcpuId(0),
        };
        let mut s = StartState {
            pc: load,
            cpsr: 0x3c5,
            sctlr: arch::SCTLR_GUEST_INIT,
            ..StartState::default()
        };
        s.x[0] = dtb;
        h.start_vcpu(m, v, &s)?;
        // The image was copied out: its memory is free now.
        for r in beyond.iter().chain(&[initrd]) {
            add_ram(&mut h.frames, r.start, r.end);
        }
        h.pause_domain(m, slot, false)
    })();
    if let Err(e) = r {
        panic!("control domain: {e}");
    }
    log::info!("control domain: {} MiB at {:#x}", memory / MIB, base.addr());
}
