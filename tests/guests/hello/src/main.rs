// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that greets, echoes what is typed, and knows a few commands.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
el1::entry!(guest::main);

#[cfg(target_os = "none")]
mod guest {
    use core::fmt::Write;
    use el1::cpu::Misdeed;
    use el1::machine::Gic;
    use el1::{Machine, cpu, hvc, time};
    use guest_abi::calls;
    use guest_abi::sched::ShutdownReason;
    use rt::{Guest, Line};

    pub fn main(machine: Machine) -> ! {
        let entry_ns = time::ticks_to_ns(machine.entry_ticks);
        let mut guest = Guest::new(machine);
        greet(&mut guest, entry_ns);
        let mut line = Line::default();
        loop {
            while let Some(line) = line.typed(&mut guest.console) {
                command(&mut guest, &line, entry_ns);
                let _ = write!(guest.console, "hello> ");
            }
            guest.wait(None);
        }
    }

    fn greet(guest: &mut Guest, entry_ns: u64) {
        let m = guest.machine.clone();
        let out = &mut guest.console;
        let _ = writeln!(out, "Hello from a Rust guest!");
        if let Some(h) = &m.hypervisor {
            let (major, minor) = calls::version::version(&hvc::xen()).unwrap_or_default();
            let _ = writeln!(
                out,
                "  hypervisor {} (ABI {}.{}), features {:#x}",
                h.compatible,
                major,
                minor,
                calls::version::features(&hvc::xen(), 0).unwrap_or_default()
            );
        } else {
            let _ = writeln!(out, "  no hypervisor");
        }
        let gic = match m.gic {
            el1::machine::Gic::V2 { .. } => "GICv2",
            el1::machine::Gic::V3 { .. } => "GICv3",
        };
        let kind = out.kind();
        let _ = writeln!(
            out,
            "  {} MiB of memory, {} vcpus, {gic}, console: {kind}",
            m.memory_bytes() >> 20,
            m.cpus
        );
        let up = time::now_ns().saturating_sub(entry_ns);
        let _ = writeln!(
            out,
            "  booted in {}.{:03} ms",
            up / 1_000_000,
            up / 1000 % 1000
        );
        let _ = write!(out, "hello> ");
    }

    fn command(guest: &mut Guest, line: &str, entry_ns: u64) {
        let _ = match line {
            "" => Ok(()),
            "help" => writeln!(
                guest.console,
                "uptime, seed, setway, exit, reboot, crash [null|undefined|text|data|wild|pair]; anything else is echoed"
            ),
            "uptime" => {
                let up = time::now_ns().saturating_sub(entry_ns);
                let (s, ms) = (up / 1_000_000_000, up / 1_000_000 % 1000);
                writeln!(guest.console, "up {s}.{ms:03} s")
            }
            "seed" => {
                let _ = write!(
                    guest.console,
                    "{} bytes of random seed:",
                    guest.machine.seed.len()
                );
                for byte in guest.machine.seed.iter().take(8) {
                    let _ = write!(guest.console, " {byte:02x}");
                }
                writeln!(guest.console)
            }
            "setway" => setway(guest),
            "exit" => guest.shutdown(ShutdownReason::Poweroff),
            "reboot" => guest.shutdown(ShutdownReason::Reboot),
            "crash" => crash(guest, "unmapped"),
            text if text.starts_with("crash ") => crash(guest, &text[6..]),
            text => writeln!(guest.console, "you said: {text}"),
        };
    }

    /// Cache maintenance by set and way, which a hypervisor has to do in another way; twice, as the
    /// second series may cost less.
    fn setway(guest: &mut Guest) -> core::fmt::Result {
        for _ in 0..2 {
            let before = time::now_ns();
            let lines = cpu::clean_by_set_and_way();
            let us = (time::now_ns() - before) / 1000;
            writeln!(guest.console, "{lines} lines by set and way in {us} us")?;
        }
        match cpu::check_translation_registers() {
            None => writeln!(guest.console, "set and way: ok"),
            Some(name) => writeln!(guest.console, "set and way: {name} was not written"),
        }
    }

    /// Does what a guest should not.
    fn crash(guest: &mut Guest, how: &str) -> core::fmt::Result {
        let gicd = match guest.machine.gic {
            Gic::V2 { gicd, .. } | Gic::V3 { gicd, .. } => gicd,
        };
        let misdeed = match how {
            "null" => Misdeed::Null,
            "undefined" => Misdeed::Undefined,
            "text" => Misdeed::WriteText,
            "data" => Misdeed::ExecuteData,
            "wild" => Misdeed::Wild,
            "pair" => Misdeed::Pair(gicd),
            _ => Misdeed::Unmapped,
        };
        writeln!(guest.console, "misdeed: {misdeed:?}")?;
        guest.console.flush();
        misdeed.commit();
        writeln!(guest.console, "nobody minded")
    }
}
