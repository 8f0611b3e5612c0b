// SPDX-License-Identifier: MIT OR Apache-2.0
//! Traps from guests, as entry.s hands them over.

use crate::mach::counter;
use crate::run::{fixed, flush, gic, hv, interrupts, mach, physical, resume, settle};
use crate::vcpu::{self, VcpuFile};
use core::arch::asm;
use guest_abi::arch as map;
use hv_core::abort::{Abort, At, Exception, Mmio, Place, Trapped};
use hv_core::hypercall::Reply;
use hv_core::hypervisor::Hypervisor;
use hv_core::machine::Clock;
use hv_core::psci::{self, Call};
use hv_core::sysreg::{self, Emul, SgiReg, SysAccess};
use hv_core::types::{CpuId, DomId, Slot, VcpuRef};
use hv_core::vgic::{Effects, Region};

const EC_WFX: u64 = 0x01;
const EC_SMC: u64 = 0x17;
const EC_CP15: u64 = 0x03;
const EC_CP15_WIDE: u64 = 0x04;
const EC_SYSREG: u64 = 0x18;
const EC_IABT: u64 = 0x20;
const EC_DABT: u64 = 0x24;
const XEN_HVC: u64 = 0xea1;

fn cpu_of(f: &VcpuFile) -> CpuId {
    CpuId(f.cpu)
}

/// What [`hv_hvc`] says of an `hvc` that is no instruction of this machine.
const HVC_UNDEFINED: u64 = 2;
/// What it says of a call that is to be made again.
const AGAIN: u64 = 3;

/// `hvc` from AArch64. 0: back to the guest at once; else [`hv_after_hvc`] is called with it.
#[unsafe(no_mangle)]
extern "C" fn hv_hvc(f: &mut VcpuFile, esr: u64) -> u64 {
    let cpu = cpu_of(f);
    match esr & 0xffff {
        XEN_HVC => {
            let nr = f.x[16];
            let [a, b, c, d, e, ..] = f.x;
            let mut x = [a, b, c, d, e];
            let mut h = hv().lock();
            let reply = h.hypercall(mach(), f.who, cpu, nr, &mut x);
            match reply {
                Reply::Done(r) => {
                    f.x[0] = r as u64;
                    u64::from(!settle(h, f.who, cpu))
                }
                Reply::Again => {
                    drop(h);
                    f.x[..5].copy_from_slice(&x);
                    AGAIN
                }
            }
        }
        0 => smccc(f),
        _ => HVC_UNDEFINED,
    }
}

/// PSCI and SMCCC. Gives 1 when the scheduler must be asked, [`AGAIN`] when the call is to be made again as well.
fn smccc(f: &mut VcpuFile) -> u64 {
    let x = [f.x[0], f.x[1], f.x[2], f.x[3]];
    let v = f.who;
    f.x[0] = match psci::decode(x, &fixed().workarounds) {
        Call::Reply(r) => r as u64,
        Call::Reply2(a, b) => {
            f.x[1] = u64::from(b);
            u64::from(a)
        }
        Call::Reply4(r) => {
            for (to, from) in f.x.iter_mut().zip(r) {
                *to = u64::from(from);
            }
            return 0;
        }
        Call::Nop => return 0,
        Call::Firmware(function) => {
            crate::run::workaround(function, 0);
            return 0;
        }
        call => {
            let mut h = hv().lock();
            let Some(r) = h.psci(mach(), v, call) else {
                return AGAIN;
            };
            f.x[0] = r as u64;
            return u64::from(!settle(h, v, cpu_of(f)));
        }
    };
    0
}

#[unsafe(no_mangle)]
extern "C" fn hv_after_hvc(f: &mut VcpuFile, why: u64) -> *mut VcpuFile {
    if why >= HVC_UNDEFINED {
        f.pc -= 4;
    }
    if why == HVC_UNDEFINED {
        undef(f);
    }
    resume(cpu_of(f), Some(f.who))
}

#[unsafe(no_mangle)]
extern "C" fn hv_irq(f: &mut VcpuFile) -> *mut VcpuFile {
    let (cpu, v) = (cpu_of(f), f.who);
    if interrupts(cpu, Some(v)) {
        resume(cpu, Some(v))
    } else {
        f
    }
}

#[unsafe(no_mangle)]
extern "C" fn hv_serror(f: &mut VcpuFile) -> *mut VcpuFile {
    serror(&mut hv().lock(), f.who.slot, esr());
    resume(cpu_of(f), Some(f.who))
}

/// Does what follows from an SError that is charged to a domain: the control domain, where the CPU was idle. 0: there is
/// none.
#[cold]
pub fn serror(h: &mut Hypervisor, slot: Slot, esr: u64) {
    if esr != 0 && h.serror(mach(), slot, esr) {
        panic!("SError");
    }
}

fn esr() -> u64 {
    let v: u64;
    // SAFETY: reads the syndrome.
    unsafe { asm!("mrs {}, esr_el2", out(reg) v, options(nomem, nostack)) };
    v
}

/// Ends the guest's domain with a report.
#[cold]
fn crash(f: &VcpuFile, esr: u64, why: &str, addr: u64) {
    let mut h = hv().lock();
    let domid = h.domid(f.who.slot);
    // How many lines the report has.
    if h.reports.allow(10, mach().now()) {
        report(f, domid, esr, why, addr);
    }
    h.shutdown_domain(mach(), f.who.slot, 3);
}

/// Prints the report of a guest that is ended.
fn report(f: &VcpuFile, domid: DomId, esr: u64, why: &str, addr: u64) {
    log::error!("domain {domid} vcpu {}: {why}", f.who.vcpu.0);
    log::error!(
        "  pc {:016x} pstate {:08x} esr {esr:08x} address {addr:016x}",
        f.pc,
        f.spsr
    );
    for (i, r) in f.x.chunks(4).enumerate() {
        let n = i * 4;
        match r {
            [a, b, c, d] => log::error!("  x{n:<2} {a:016x} {b:016x} {c:016x} {d:016x}"),
            [a, b, c] => log::error!("  x{n:<2} {a:016x} {b:016x} {c:016x}"),
            _ => {}
        }
    }
}

/// Where the guest is, for an exception that its EL1 is to take; its state is in `f`.
fn at(f: &VcpuFile, esr: u64) -> At {
    let (vbar, sctlr): (u64, u64);
    // SAFETY: EL1 registers are the running guest's.
    unsafe {
        asm!("mrs {}, vbar_el1", "mrs {}, sctlr_el1", out(reg) vbar, out(reg) sctlr, options(nomem, nostack));
    }
    At {
        pc: f.pc,
        pstate: f.spsr,
        vbar,
        sctlr,
        pan: fixed().pan,
        il: esr & (1 << 25) != 0,
    }
}

/// Makes the guest's EL1 take an exception.
fn inject(f: &mut VcpuFile, at: &At, what: Exception) {
    let entry = at.take(what);
    // SAFETY: EL1 registers are the running guest's: what the exception itself would have written.
    unsafe {
        asm!("msr elr_el1, {}", "msr spsr_el1, {}", "msr esr_el1, {}",
            in(reg) f.pc, in(reg) f.spsr, in(reg) entry.esr, options(nomem, nostack));
    }
    f.pc = entry.pc;
    f.spsr = entry.pstate;
}

/// Gives the guest an undefined-instruction exception.
fn undef(f: &mut VcpuFile) {
    let at = at(f, 0);
    inject(f, &at, Exception::Undefined);
}

/// The guest's access went wrong: its EL1 is told by an abort, and the log by a line. A guest that
/// aborts in its own exception vectors cannot be told, and is ended.
#[cold]
fn abort(f: &mut VcpuFile, esr: u64, abort: Abort, why: &str, addr: u64) {
    let at = at(f, esr);
    if at.in_own_vectors() {
        return crash(f, esr, "its exception vector aborts", addr);
    }
    let far = fault_va();
    let mut h = hv().lock();
    if h.may_report(f.who.slot, mach().now()) {
        let domid = h.domid(f.who.slot);
        log::warn!(
            "domain {domid} vcpu {}: {why}: address {addr:#x} (virtual {far:#x}), pc {:#x}, esr {esr:#x}",
            f.who.vcpu.0,
            f.pc
        );
    }
    drop(h);
    // SAFETY: as in `inject`: the address that the exception is about.
    unsafe { asm!("msr far_el1, {}", in(reg) far, options(nomem, nostack)) };
    inject(f, &at, abort.exception());
}

/// The virtual address of an abort.
fn fault_va() -> u64 {
    let far: u64;
    // SAFETY: reads the fault address.
    unsafe { asm!("mrs {}, far_el2", out(reg) far, options(nomem, nostack)) };
    far
}

/// Goes past the instruction that trapped.
fn skip(f: &mut VcpuFile, esr: u64) {
    (f.pc, f.spsr) = Trapped(esr).skip(f.pc, f.spsr);
}

/// Goes on with a vcpu that trapped, or asks who is next.
fn after(f: &mut VcpuFile, goes_on: bool) -> *mut VcpuFile {
    if goes_on {
        f
    } else {
        resume(cpu_of(f), Some(f.who))
    }
}

/// Any other synchronous trap.
#[unsafe(no_mangle)]
extern "C" fn hv_sync(f: &mut VcpuFile, esr: u64) -> *mut VcpuFile {
    match esr >> 26 {
        EC_DABT => data_abort(f, esr),
        EC_SYSREG => sysreg_access(f, esr),
        _ => other_sync(f, esr),
    }
}

#[inline(never)]
fn other_sync(f: &mut VcpuFile, esr: u64) -> *mut VcpuFile {
    let (cpu, v) = (cpu_of(f), f.who);
    let iss = (esr & 0x1ff_ffff) as u32;
    let goes_on = match esr >> 26 {
        _ if Trapped(esr).condition_fails(f.spsr) => {
            skip(f, esr);
            true
        }
        EC_WFX => {
            skip(f, esr);
            if iss & 1 == 0 {
                hv().lock().sleep(mach(), v, None);
                false
            } else {
                !hv().lock().sched.yield_now(cpu)
            }
        }
        EC_SMC if iss & 0xffff != 0 => {
            undef(f);
            true
        }
        EC_SMC => {
            let r = smccc(f);
            if r != AGAIN {
                skip(f, esr);
            }
            r == 0
        }
        EC_CP15 | EC_CP15_WIDE => {
            if cp15_access(f, esr, iss).is_none() {
                undef(f);
            }
            false
        }
        EC_IABT => {
            let a = Abort::decode(iss, true);
            if let Some(ipa) = fault_ipa(a)
                && !hv().lock().goes_through_now(mach(), v.slot, ipa, a)
            {
                abort(f, esr, a, "executed what it may not", ipa);
            }
            false
        }
        _ => {
            undef(f);
            true
        }
    };
    after(f, goes_on)
}

/// The same of AArch32's EL0: registers of 32 bits, and two of them for one of 64. `None`: there is no such register.
#[cold]
fn cp15_access(f: &mut VcpuFile, esr: u64, iss: u32) -> Option<()> {
    let wide = esr >> 26 == EC_CP15_WIDE;
    let a = SysAccess::from_cp15(iss, wide)?;
    let (low, high) = (usize::from(a.rt), (iss >> 10 & 31) as usize);
    let v = f.who;
    let mut h = hv().lock();
    let value = match sysreg::decode(&a, true, &fixed().ids) {
        Emul::Value(x) => x,
        Emul::Timer(reg) if a.read => h.vtimers.read(v.slot, v.vcpu, reg, counter()),
        Emul::Timer(reg) => {
            let upper = if wide { *f.x.get(high)? << 32 } else { 0 };
            let value = f.x.get(low)? & 0xffff_ffff | upper;
            let line = h.vtimers.write(v.slot, v.vcpu, reg, value, counter());
            let _ = h.vgics.set_level(v.slot, v.vcpu, 30, line);
            value
        }
        _ => return None,
    };
    if a.read {
        *f.x.get_mut(low)? = value & 0xffff_ffff;
        if wide {
            *f.x.get_mut(high)? = value >> 32;
        }
    }
    skip(f, esr);
    Some(())
}

/// Emulates an access to a system register.
#[inline(never)]
fn sysreg_access(f: &mut VcpuFile, esr: u64) -> *mut VcpuFile {
    let cpu = cpu_of(f);
    let mut goes_on = true;
    let a = SysAccess::from_iss((esr & 0x1ff_ffff) as u32);
    let el0 = f.spsr & 0xf == 0;
    let (v, rt) = (f.who, a.rt as usize);
    let value = if rt == 31 { 0 } else { f.x[rt] };
    let mut result = None;
    match sysreg::decode(&a, el0, &fixed().ids) {
        Emul::Value(x) => result = Some(x),
        Emul::Ignore => {}
        Emul::SetWay => {
            f.setway.operation();
            vcpu::set_hcr(f, vcpu::hcr(fixed().hcr, f));
            goes_on = false;
        }
        Emul::Vm(reg) => {
            let before = vcpu::sctlr();
            vcpu::write_vm(reg, value);
            f.setway.wrote(before, vcpu::sctlr());
            vcpu::set_hcr(f, vcpu::hcr(fixed().hcr, f));
            goes_on = false;
        }
        Emul::Timer(reg) => {
            let mut h = hv().lock();
            if a.read {
                result = Some(h.vtimers.read(v.slot, v.vcpu, reg, counter()));
            } else {
                let deadline = |h: &Hypervisor| h.vtimers.deadline(v.slot, v.vcpu, false, false);
                let before = deadline(&h);
                let high = h.vtimers.write(v.slot, v.vcpu, reg, value, counter());
                let _ = h.vgics.set_level(v.slot, v.vcpu, 30, high);
                // The hypervisor's own timer rings for it.
                goes_on = deadline(&h) == before;
                flush(&mut h, v);
                goes_on = settle(h, v, cpu) && goes_on;
            }
        }
        Emul::Sgi(SgiReg::Sgi1r) if gic().version() == 3 => {
            let mut h = hv().lock();
            let e = h.vgics.sgi1r(v.slot, v.vcpu, value);
            let now = mach().ns(counter());
            h.kick_vcpus(v.slot, e.kick, now);
            goes_on = settle(h, v, cpu);
        }
        Emul::Sgi(_) if gic().version() == 3 => {}
        Emul::Deactivate if gic().version() == 3 => {
            let mut h = hv().lock();
            h.vgics.sync(v.slot, v.vcpu, &mut crate::run::Lrs);
            let e = h.vgics.deactivate(v.slot, v.vcpu, value as u32);
            gic_changed(&mut h, v, e);
            goes_on = settle(h, v, cpu);
        }
        Emul::Sgi(_) | Emul::Deactivate | Emul::Undef => {
            undef(f);
            return f;
        }
    }
    if let Some(x) = result
        && rt != 31
    {
        f.x[rt] = x;
    }
    skip(f, esr);
    after(f, goes_on)
}

/// The guest physical address of a stage-2 fault; `None` where the guest has changed its stage 1 meanwhile, so that
/// the access is to be made again.
fn fault_ipa(a: Abort) -> Option<u64> {
    if a.place() == Place::Far {
        return at_fault(fault_va());
    }
    let hpfar: u64;
    // SAFETY: reads a fault register.
    unsafe { asm!("mrs {}, hpfar_el2", out(reg) hpfar, options(nomem, nostack)) };
    Some(((hpfar & 0xfff_ffff_fff0) << 8) | (fault_va() & 0xfff))
}

/// Translates by the guest's stage 1; its EL1 may read whatever its EL0 or a fetch reached.
#[cold]
fn at_fault(va: u64) -> Option<u64> {
    mach().stage1_readable(va)
}

fn within(base: u64, size: u64, at: u64) -> Option<u64> {
    at.checked_sub(base).filter(|&o| o < size)
}

/// What a store stores.
fn stored(f: &VcpuFile, access: Mmio) -> u64 {
    f.x.get(usize::from(access.rt())).copied().unwrap_or(0)
}

/// Ends a load.
fn load(f: &mut VcpuFile, access: Mmio, value: u64) {
    if let Some(x) = f.x.get_mut(usize::from(access.rt())) {
        *x = access.loaded(value);
    }
}

/// What lies beside the distributor.
fn second() -> Region {
    match gic().version() {
        3 => Region::Gicr,
        _ => Region::Dir,
    }
}

/// What a register of the interrupt controller of this vcpu's domain set off.
fn gic_changed(h: &mut Hypervisor, v: VcpuRef, e: Effects) {
    let now = mach().ns(counter());
    h.kick_vcpus(v.slot, e.kick, now);
    physical(e.phys);
    flush(h, v);
}

/// Emulates an access to a device, or tells the guest that there is none.
#[inline(never)]
fn data_abort(f: &mut VcpuFile, esr: u64) -> *mut VcpuFile {
    let a = Abort::decode((esr & 0x1ff_ffff) as u32, false);
    let Some(ipa) = fault_ipa(a) else {
        return after(f, false);
    };
    let v = f.who;
    let privileged = v.slot.0 == 0;
    if let Some(off) = within(map::GUEST_PL011_BASE, map::GUEST_PL011_SIZE, ipa)
        && !privileged
        && let Some(access) = a.emulated()
    {
        let value = access.write().then(|| stored(f, access) as u32);
        let mut h = hv().lock();
        if let Some(x) = h.vuart_access(mach(), v.slot, off, access.size(), value) {
            if !access.write() {
                load(f, access, u64::from(x));
            }
            skip(f, esr);
            let goes_on = settle(h, v, cpu_of(f));
            return after(f, goes_on);
        }
    }
    let (gicd, gicr) = if privileged {
        (fixed().dom0_gicd, fixed().dom0_gicr)
    } else {
        fixed().guest_gic
    };
    let region = within(gicd.0, gicd.1, ipa)
        .map(|o| (Region::Gicd, o))
        .or_else(|| within(gicr.0, gicr.1, ipa).map(|o| (second(), o)));
    let (Some((region, offset)), Some(access)) = (region, a.emulated()) else {
        return no_device(f, esr, a, ipa, region.is_some());
    };
    let mut h = hv().lock();
    h.vgics.sync(v.slot, v.vcpu, &mut crate::run::Lrs);
    let ok = if access.write() {
        let value = stored(f, access);
        match h
            .vgics
            .mmio_write(v.slot, v.vcpu, region, offset, access.size(), value)
        {
            Ok(e) => {
                gic_changed(&mut h, v, e);
                true
            }
            Err(_) => false,
        }
    } else {
        match h
            .vgics
            .mmio_read(v.slot, v.vcpu, region, offset, access.size())
        {
            Ok(x) => {
                load(f, access, x);
                flush(&mut h, v);
                true
            }
            Err(_) => false,
        }
    };
    if ok {
        skip(f, esr);
        let goes_on = settle(h, v, cpu_of(f));
        after(f, goes_on)
    } else {
        drop(h);
        let why = "accessed a register of the interrupt controller in a way that it does not allow";
        abort(f, esr, a, why, ipa);
        after(f, false)
    }
}

/// Of a guest's access that no device answers. `behind`: there is one at the place.
#[cold]
#[inline(never)]
fn no_device(f: &mut VcpuFile, esr: u64, a: Abort, ipa: u64, behind: bool) -> *mut VcpuFile {
    if behind && a.undescribed() {
        let why = "accessed a device with an instruction that the CPU does not describe (ISV=0)";
        abort(f, esr, a, why, ipa);
    } else if !hv().lock().goes_through_now(mach(), f.who.slot, ipa, a) {
        abort(f, esr, a, "touched what it does not have", ipa);
    }
    after(f, false)
}

/// An exception in the hypervisor itself.
#[unsafe(no_mangle)]
extern "C" fn hv_exception(kind: u64, esr: u64, pc: u64, far: u64, fp: u64, sp: u64) -> ! {
    crate::panic::exception(kind, esr, pc, far, fp, sp)
}
