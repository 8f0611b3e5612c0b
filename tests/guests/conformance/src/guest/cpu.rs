// SPDX-License-Identifier: MIT OR Apache-2.0
//! The CPU as the guest sees it: system registers, instructions, Arm's calling convention, power.

use super::{Suite, trap, value};
use alloc::format;
use alloc::string::String;
use el1::probe::{self, Conduit, Instruction, Register};

fn answer(r: Result<[u64; 4], probe::Trap>) -> String {
    r.map_or_else(trap, |x| {
        // 32 bits: the upper half of an error's register is nobody's business.
        let x = x.map(|v| v as u32 as i32);
        format!("{}", x[0])
    })
}

impl Suite {
    pub fn cpu(&mut self) {
        self.registers();
        self.instructions();
        self.convention();
        self.power();
    }

    fn registers(&mut self) {
        use Register::*;
        for reg in [
            Actlr,
            Mdscr,
            Oslsr,
            Osdlr,
            Dbgbvr0,
            Dbgbcr0,
            Dbgwcr0,
            Mdrar,
            Mdccsr,
            Pmcr,
            Pmcntenset,
            Pmuserenr,
            Pmccntr,
            Pmintenset,
            Pmovsclr,
            IdAa64pfr1,
            IdAa64zfr0,
            IdAa64dfr0,
            IdPfr0,
            IdDfr0,
            IdReserved,
            Errselr,
            Lorc,
            Rndr,
            Hcr,
            Scr,
            Implementation,
        ] {
            let r = value(reg.read());
            self.case(format!("register.read.{reg:?}"), r);
        }
        // The same CPU under both, so that what is hidden can be told.
        for reg in [
            Midr,
            Mpidr,
            IdAa64pfr0,
            IdAa64isar0,
            IdAa64isar1,
            IdAa64mmfr0,
            IdAa64mmfr1,
        ] {
            let r = value(reg.read());
            self.case(format!("register.read.{reg:?}"), r);
        }
        for reg in [
            Actlr,
            Oslar,
            Osdlr,
            Dbgbvr0,
            Dbgbcr0,
            Pmcr,
            Pmcntenset,
            Pmuserenr,
            Pmccntr,
            Pmintenset,
            Errselr,
            Hcr,
            Scr,
            Implementation,
            IdAa64pfr0,
        ] {
            let w = reg.write(0).map_or_else(trap, |()| "done".into());
            self.case(format!("register.write.{reg:?}"), w);
        }
        if let el1::machine::Gic::V2 { .. } = self.machine.gic {
            for reg in [IccSre, IccPmr, IccIgrpen1, IccCtlr] {
                let r = value(reg.read());
                self.case(format!("register.read.{reg:?}"), r);
            }
            for reg in [IccSre, IccSgi0r, IccAsgi1r] {
                let w = reg.write(0).map_or_else(trap, |()| "done".into());
                self.case(format!("register.write.{reg:?}"), w);
            }
        }
    }

    fn instructions(&mut self) {
        for i in [
            Instruction::HvcOther,
            Instruction::SmcOther,
            Instruction::Undefined,
            Instruction::Breakpoint,
            Instruction::SetWay,
            Instruction::TranslateStage12,
            Instruction::TlbiEl2,
            Instruction::WaitForEvent,
        ] {
            let r = i.execute().map_or_else(trap, |()| "done".into());
            self.case(format!("instruction.{i:?}"), r);
        }
    }

    fn convention(&mut self) {
        for conduit in [Conduit::Hvc, Conduit::Smc] {
            for (name, f, x1) in [
                ("version", 0x8400_0000u64, 0u64),
                ("migrate_info_type", 0x8400_0006, 0),
                ("smccc_version", 0x8000_0000, 0),
                ("hyp_count", 0x8600_ff00, 0),
                ("std_count", 0x8400_ff00, 0),
                ("unknown_std", 0x8400_0fff, 0),
                ("unknown_hyp", 0x8600_0001, 0),
                ("unknown_arch", 0x8000_1234, 0),
                ("unknown_oem", 0x8300_0000, 0),
                ("unknown_app", 0xb000_0000, 0),
                ("zero", 0, 0),
                ("affinity_self", 0x8400_0004, 0),
                ("affinity_second", 0xc400_0004, 1),
                ("affinity_none", 0x8400_0004, 2),
                ("affinity_far", 0xc400_0004, 0xff_00ff_ffff),
            ] {
                let r = answer(probe::smccc(conduit, [f, x1, 0, 0]));
                self.case(format!("smccc.{conduit:?}.{name}"), r);
            }
        }
        for f in [
            0x8400_0000u64,
            0x8400_0001,
            0xc400_0001,
            0x8400_0002,
            0x8400_0003,
            0xc400_0003,
            0x8400_0004,
            0xc400_0004,
            0x8400_0005,
            0x8400_0006,
            0x8400_0007,
            0x8400_0008,
            0x8400_0009,
            0x8400_000a,
            0x8400_000e,
            0xc400_000e,
            0x8400_0012,
            0x8000_0000,
            0x8400_ff00,
            0x1,
        ] {
            let r = answer(probe::smccc(Conduit::Hvc, [0x8400_000a, f, 0, 0]));
            self.case(format!("psci.features.{f:#x}"), r);
        }
        for f in [
            0x8000_0000u64,
            0x8000_0001,
            0x8000_8000,
            0x8000_7fff,
            0x8000_3fff,
            0x8000_0002,
            0x8400_0000,
            0x8600_ff00,
            0x8000_1234,
        ] {
            let r = answer(probe::smccc(Conduit::Hvc, [0x8000_0001, f, 0, 0]));
            self.case(format!("smccc.features.{f:#x}"), r);
        }
        for (name, f) in [
            ("hyp_uid", 0x8600_ff01u64),
            ("std_uid", 0x8400_ff01),
            ("hyp_revision", 0x8600_ff03),
            ("std_revision", 0x8400_ff03),
        ] {
            let r = probe::smccc(Conduit::Hvc, [f, 0, 0, 0]).map_or_else(trap, |x| {
                format!(
                    "{:#x} {:#x} {:#x} {:#x}",
                    x[0] as u32, x[1] as u32, x[2] as u32, x[3] as u32
                )
            });
            let r = if name.ends_with("revision") {
                r.split(' ')
                    .take(2)
                    .collect::<alloc::vec::Vec<_>>()
                    .join(" ")
            } else {
                r
            };
            self.case(format!("smccc.{name}"), r);
        }
        for (name, f, target) in [
            ("none", 0xc400_0003u64, 2u64),
            ("self", 0xc400_0003, 0),
            ("far", 0xc400_0003, 0x1_0000_0000),
            ("cluster", 0x8400_0003, 0x100),
        ] {
            let r = answer(probe::smccc(Conduit::Hvc, [f, target, 0x4000_0000, 0]));
            self.case(format!("psci.cpu_on.{name}"), r);
        }
    }

    /// The second vcpu: on, answering, on again, off, on anew.
    fn power(&mut self) {
        let gic = self.machine.gic;
        let affinity = |s: &mut Self, name: &str| {
            let r = answer(probe::smccc(Conduit::Hvc, [0xc400_0004, 1, 0, 0]));
            s.case(format!("psci.affinity.{name}"), r);
        };
        affinity(self, "before");
        for round in ["first", "second"] {
            let r = probe::start_second(1, &gic);
            self.case(format!("psci.cpu_on.{round}"), r);
            let up = self.wait_for(probe::second_runs);
            self.case(format!("psci.cpu_on.{round}.runs"), up);
            affinity(self, &format!("running.{round}"));
            let r = answer(probe::smccc(Conduit::Hvc, [0xc400_0003, 1, 0x4000_0000, 0]));
            self.case(format!("psci.cpu_on.{round}.already"), r);
            let before = probe::second_answers();
            el1::gic::send_sgi(1, 5);
            let answered = self
                .wait_for(|| probe::second_answers() != before && el1::cpu::interrupt_pending());
            let mut by_sgi = false;
            while el1::gic::poll(|intid| by_sgi |= intid == probe::ANSWER) {}
            self.case(
                format!("psci.cpu_on.{round}.answers"),
                format!("{answered} {by_sgi}"),
            );
            probe::stop_second(1);
            let down = self.wait_for(|| {
                !probe::second_runs()
                    && probe::smccc(Conduit::Hvc, [0xc400_0004, 1, 0, 0])
                        .is_ok_and(|x| x[0] as u32 == 1)
            });
            self.case(format!("psci.cpu_off.{round}"), down);
            affinity(self, &format!("off.{round}"));
        }
        let answers = self.cycles(&gic);
        self.case("psci.cycles", answers);
    }

    /// The second vcpu is started as soon as it is told to be off, again and again: how often that was well.
    fn cycles(&self, gic: &el1::machine::Gic) -> String {
        let xen = el1::hvc::xen();
        let wait = |f: &dyn Fn() -> bool| {
            let end = el1::time::now_ns() + 2_000_000_000;
            while !f() && el1::time::now_ns() < end {
                let _ = guest_abi::calls::sched::yield_now(&xen);
            }
        };
        let off =
            || probe::smccc(Conduit::Hvc, [0xc400_0004, 1, 0, 0]).is_ok_and(|x| x[0] as u32 == 1);
        let mut well = 0;
        for _ in 0..100 {
            well += u32::from(probe::start_second(1, gic) == 0);
            wait(&probe::second_runs);
            probe::stop_second(1);
            wait(&|| !probe::second_runs() && off());
        }
        format!("{well} of 100")
    }

    /// Waits up to two seconds, and lets the other vcpu have the CPU.
    fn wait_for(&self, mut f: impl FnMut() -> bool) -> bool {
        for _ in 0..400 {
            if f() {
                return true;
            }
            self.sleep(5_000_000);
        }
        false
    }
}
