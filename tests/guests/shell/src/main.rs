// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest with a prompt: its part of xenstore, its disks, time and memory.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
el1::entry!(guest::main);

#[cfg(target_os = "none")]
mod guest {
    use alloc::format;
    use alloc::string::String;
    use core::fmt::Write;
    use el1::{Machine, heap, time};
    use guest_abi::sched::ShutdownReason;
    use rt::pv_frontends::blk::{Config, Disk};
    use rt::pv_frontends::xenstore::Blocking;
    use rt::pv_frontends::{Error, Platform, xenbus};
    use rt::{Console, Control, Guest, Kernel, Line, Store, disk_name};

    const PROMPT: &str = "shell> ";
    /// How long a command may wait for others, in nanoseconds.
    const PATIENCE: u64 = 10_000_000_000;

    const HELP: &str = "\
ls [PATH]         what is below a node of xenstore; paths are relative to /local/domain/OWN
read PATH         a node's value
write PATH VALUE  sets it
rm PATH           removes it and what is below
disks             the disks
sector N [DISK]   a sector of 512 bytes, of the first disk or of the one with that name
time              the time of day, UTC
uptime            how long the guest has run
memory            memory and what is in use of it
poweroff, reboot";

    pub fn main(machine: Machine) -> ! {
        let entry_ns = time::ticks_to_ns(machine.entry_ticks);
        let mut guest = Guest::new(machine);
        let store = guest.xenstore();
        let mut control = store.and_then(Control::open);
        if let Err(e) = &control {
            let _ = writeln!(guest.console, "no xenstore: {e}");
        }
        let name = store.and_then(|xs| by(xs).read_text("name"));
        let name = name.unwrap_or_else(|_| "nobody".into());
        let _ = write!(
            guest.console,
            "This is {name}, a shell in Rust. help tells what there is.\n{PROMPT}"
        );
        let mut line = Line::default();
        loop {
            while let Some(line) = line.typed(&mut guest.console) {
                command(&mut guest, store, &line, entry_ns);
                let _ = write!(guest.console, "{PROMPT}");
            }
            if let Ok(control) = &mut control
                && let Ok(Some(reason)) = control.asked()
            {
                let _ = writeln!(guest.console, "\nasked to end: {reason:?}");
                guest.shutdown(reason);
            }
            guest.wait(None);
        }
    }

    fn by(xs: &'static Store) -> Blocking<'static, &'static Kernel> {
        xs.by(xs.platform().now() + PATIENCE)
    }

    fn command(guest: &mut Guest, store: Result<&'static Store, Error>, line: &str, entry_ns: u64) {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match verb {
            "" => {}
            "help" => drop(writeln!(guest.console, "{HELP}")),
            "time" => match guest.kernel.wall_clock() {
                Some(seconds) => clock(&mut guest.console, seconds),
                None => drop(writeln!(guest.console, "nobody has told the time")),
            },
            "uptime" => {
                let up = time::now_ns().saturating_sub(entry_ns) / 1_000_000;
                let _ = writeln!(guest.console, "up {}.{:03} s", up / 1000, up % 1000);
            }
            "memory" => {
                let all = guest.machine.memory_bytes() >> 10;
                let (total, used) = (heap::total() >> 10, heap::used() >> 10);
                let _ = writeln!(
                    guest.console,
                    "{all} KiB, of them heap {total} KiB, in use {used} KiB"
                );
            }
            "poweroff" => guest.shutdown(ShutdownReason::Poweroff),
            "reboot" => guest.shutdown(ShutdownReason::Reboot),
            _ => {
                let answer = store.and_then(|xs| with_store(xs, verb, rest.trim()));
                let _ = match answer {
                    Ok(Some(text)) => guest.console.write_str(&text),
                    Ok(None) => writeln!(guest.console, "{verb}: no such command; help lists them"),
                    Err(e) => writeln!(guest.console, "{verb}: {e}"),
                };
            }
        }
    }

    /// What needs xenstore; `None` for a word that is no command.
    fn with_store(xs: &'static Store, verb: &str, rest: &str) -> Result<Option<String>, Error> {
        let store = by(xs);
        let mut out = String::new();
        match verb {
            "ls" => {
                // The domain's own part has a path of its own.
                let path = match rest {
                    "" => format!("/local/domain/{}", store.read_text("domid")?),
                    path => path.into(),
                };
                for name in store.list(&path)? {
                    let value = store.read(&format!("{path}/{name}")).unwrap_or_default();
                    let value = value.escape_ascii();
                    let _ = writeln!(out, "{name} = \"{value}\"");
                }
            }
            "read" => {
                let value = store.read(rest)?;
                let _ = writeln!(out, "{}", value.escape_ascii());
            }
            "write" => {
                let (path, value) = rest.split_once(' ').unwrap_or((rest, ""));
                store.write(path, value.as_bytes())?;
            }
            "rm" => store.rm(rest)?,
            "disks" => {
                for id in store.run(xenbus::devices(&store.access(), "vbd"))? {
                    let disk = store.run(Disk::open(store.access(), id, Config::default()))?;
                    let info = disk.info();
                    let access = if info.read_only {
                        "read-only"
                    } else {
                        "writable"
                    };
                    let _ = writeln!(out, "{}: {} sectors, {access}", disk_name(id), info.sectors);
                    store.run(disk.close())?;
                }
            }
            "sector" => {
                let (n, name) = rest.split_once(' ').unwrap_or((rest, ""));
                let sector = n.parse().map_err(|_| Error::Invalid)?;
                let ids = store.run(xenbus::devices(&store.access(), "vbd"))?;
                let wanted = |id: &u32| name.is_empty() || disk_name(*id) == name;
                let id = ids.into_iter().find(wanted).ok_or(Error::NoDevice)?;
                let disk = store.run(Disk::open(store.access(), id, Config::default()))?;
                let mut bytes = [0; 512];
                let read = disk.by(store.deadline()).read(sector, &mut bytes);
                store.run(disk.close())?;
                read?;
                dump(&mut out, &bytes);
            }
            _ => return Ok(None),
        }
        Ok(Some(out))
    }

    /// Bytes as numbers and as letters, 16 a line.
    fn dump(out: &mut String, bytes: &[u8]) {
        for (n, line) in bytes.chunks(16).enumerate() {
            let _ = write!(out, "{:04x} ", n * 16);
            for byte in line {
                let _ = write!(out, " {byte:02x}");
            }
            let letter = |b: &u8| {
                if (b' '..=b'~').contains(b) {
                    *b as char
                } else {
                    '.'
                }
            };
            let letters: String = line.iter().map(letter).collect();
            let _ = writeln!(out, "  {letters}");
        }
    }

    /// A day's date by Howard Hinnant's `civil_from_days`.
    fn clock(console: &mut Console, seconds: u64) {
        let days = seconds / 86400 + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        let year = year + era * 400 + u64::from(month <= 2);
        let (h, m, s) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        let _ = writeln!(
            console,
            "{year}-{month:02}-{day:02} {h:02}:{m:02}:{s:02} UTC"
        );
    }
}
