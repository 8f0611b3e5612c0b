// SPDX-License-Identifier: MIT OR Apache-2.0
//! Looks for registers that pass from one domain to another (XSA-91): finds every system register that keeps what EL1
//! writes to it, among all encodings there are, fills them and the floating-point registers with values of its own, lets
//! others have the CPU, and looks whether they are still there. Two of these on one CPU have different values, so that a
//! register that is not the domain's own is found by both. What guests must not have at all (SVE, SME) is tried too.
//!
//! Prints `register NAME` for each, `leak: …` for what it finds, and `registers: ok after N switches` or
//! `registers: failed` at the end; then it goes on, for the other one's sake.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
el1::entry!(guest::main);

#[cfg(target_os = "none")]
mod guest {
    use alloc::vec::Vec;
    use core::fmt::Write;
    use el1::registers::{self, Register};
    use el1::shared::Shared;
    use el1::{Machine, hvc, probe};
    use guest_abi::calls;
    use guest_abi::vcpu::read_runstate;
    use rt::Guest;

    /// How often others must have had the CPU.
    const SWITCHES: u32 = 5000;
    /// FPCR: AHP, DN, FZ, RMode; FPSR: QC, IDC, IXC, UFC, OFC, DZC, IOC.
    const FPCR: u64 = 0x07c0_0000;
    const FPSR: u64 = 0x0800_009f;

    /// A step of SplitMix64.
    fn random(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// A register that did not keep its value.
    struct Leak {
        register: Register,
        wrote: u64,
        found: u64,
    }

    pub fn main(machine: Machine) -> ! {
        let mut state = machine.entry_ticks;
        let mut guest = Guest::new(machine);
        probe::install();
        let mut bad = false;
        for (name, there) in [
            ("SVE", registers::sve()),
            ("SVE's SETFFR", registers::sve_first_fault()),
            ("SME", registers::sme()),
            ("SME's SMSTART", registers::sme_start()),
        ] {
            if let Some(value) = there {
                bad = true;
                let _ = writeln!(guest.console, "leak: {name} is not trapped ({value:#x})");
            }
        }
        if bad {
            let _ = writeln!(guest.console, "registers: failed");
            loop {
                guest.wait(None);
            }
        }
        let (found, readable) = registers::find();
        for register in &found {
            let _ = writeln!(guest.console, "register {register}");
        }
        let _ = writeln!(
            guest.console,
            "registers: {} of {readable} keep what is written",
            found.len()
        );
        let area = Shared::fresh(1);
        if let Some(area) = &area {
            let _ = calls::vcpu::register_runstate_memory_area(&hvc::xen(), 0, area.addr());
        }
        let entered = || {
            area.as_ref()
                .and_then(|area| read_runstate(area, 0))
                .map_or(0, |i| i.state_entry_time)
        };
        guest.console.flush();

        let (mut switches, mut told) = (0, false);
        loop {
            let mut leaks: Vec<Leak> = Vec::with_capacity(64);
            let mut fp_leaks = 0;
            let old: Vec<u64> = found.iter().map(|r| r.read()).collect();
            let mut wrote = old.clone();
            for _ in 0..100 {
                let q: [u128; 32] = core::array::from_fn(|_| {
                    u128::from(random(&mut state)) << 64 | u128::from(random(&mut state))
                });
                let fp = (q, random(&mut state) & FPCR, random(&mut state) & FPSR);
                registers::write_fp(&fp.0, fp.1, fp.2);
                for (register, wrote) in found.iter().zip(&mut wrote) {
                    register.write(random(&mut state));
                    *wrote = register.read();
                }
                let before = entered();
                let _ = calls::sched::yield_now(&hvc::xen());
                if entered() != before {
                    switches += 1;
                }
                for (register, wrote) in found.iter().zip(&wrote) {
                    let (register, wrote, found) = (*register, *wrote, register.read());
                    let cleared = found == 0 && register.may_be_cleared();
                    if found != wrote && !cleared && leaks.len() < leaks.capacity() {
                        leaks.push(Leak {
                            register,
                            wrote,
                            found,
                        });
                    }
                }
                fp_leaks += u32::from(registers::read_fp() != fp);
            }
            found
                .iter()
                .zip(&old)
                .for_each(|(register, old)| register.write(*old));
            bad |= !leaks.is_empty() || fp_leaks != 0;
            if told {
                continue;
            }
            for Leak {
                register,
                wrote,
                found,
            } in &leaks
            {
                let _ = writeln!(
                    guest.console,
                    "leak: {register} was {wrote:#x}, is {found:#x}"
                );
            }
            if fp_leaks != 0 {
                let _ = writeln!(
                    guest.console,
                    "leak: floating point, in {fp_leaks} of 100 rounds"
                );
            }
            if bad {
                let _ = writeln!(guest.console, "registers: failed after {switches} switches");
                told = true;
            } else if switches >= SWITCHES {
                let _ = writeln!(guest.console, "registers: ok after {switches} switches");
                told = true;
            }
            guest.console.flush();
        }
    }
}
