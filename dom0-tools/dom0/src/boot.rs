// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the machine to the prompt.

use crate::base64;
use crate::host::Dom0;
use crate::rt::Rt;
use crate::terminal::Terminal;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use el1::machine::Gic;
use el1::{Machine, events, hvc, time};
use guest_abi::calls;
use guest_abi::xen::Virq;
use toolstack::host::{DomId, Errno, Host};

/// The program.
pub fn main(machine: Machine) -> ! {
    let rt = Rt::new();
    let mut trouble = None;
    let terminal = match &machine.hypervisor {
        Some(h) => {
            trouble = events::init(h.event_intid).err();
            rt.serve_events(h.event_intid);
            Terminal::hypervisor(rt)
        }
        None => Terminal::uart(rt),
    };
    if let Some(e) = trouble {
        terminal.write(&format!("dom0: no events: {e}\n"));
    }
    let dom0 = Dom0::new(rt, machine, terminal);
    rt.spawn(watch_domains(dom0));
    rt.spawn(person(dom0));
    rt.run()
}

/// Tells xenstore's clients of domains that stopped or went (`VIRQ_DOM_EXC`).
async fn watch_domains(dom0: Dom0) {
    if dom0.machine.hypervisor.is_none() {
        return;
    }
    let port = match calls::event::bind_virq(&hvc::xen(), Virq::DomExc, 0) {
        Ok(port) => port,
        Err(e) => {
            dom0.terminal
                .write(&format!("dom0: not told of domains that stop: {e}\n"));
            return;
        }
    };
    let mut listener = dom0.rt.listen(port);
    loop {
        listener.wait().await;
        for dom in dom0.xs.domains() {
            match dom0.domain_info(dom) {
                Ok(info) if !info.dying => {
                    if info.shutdown.is_some() {
                        dom0.xs.with(|s| s.domain_shutdown(dom));
                    }
                }
                _ => dom0.xs.forget(dom),
            }
        }
    }
}

/// A word `name=value` of the command line.
fn word<'a>(bootargs: &'a str, name: &str) -> Option<&'a str> {
    bootargs
        .split_ascii_whitespace()
        .find_map(|w| w.strip_prefix(name)?.strip_prefix('='))
}

async fn person(dom0: Dom0) {
    setup_store(dom0);
    match word(&dom0.machine.bootargs, "exec").map(base64::decode) {
        None => {
            banner(dom0);
            prompt(dom0).await;
        }
        Some(commands) => {
            let failed = match commands.map(String::from_utf8) {
                Some(Ok(commands)) => run_all(dom0, &commands).await,
                _ => Some(String::from("exec= is not base64url: status 2")),
            };
            dom0.terminal.write(&match failed {
                None => String::from("exec: ok\n"),
                Some(what) => format!("exec: failed: {what}\n"),
            });
            end(dom0).await;
        }
    }
}

async fn end(dom0: Dom0) {
    if let Err(e) = dom0.power(false).await {
        dom0.terminal
            .write(&format!("dom0: cannot power off: {e}\n"));
    }
}

/// What guests and tools expect to find.
fn setup_store(dom0: Dom0) {
    let write = |path: &str, value: &str| {
        let _ = dom0.xs_write(path, value.as_bytes());
    };
    write("/local/domain/0/name", "Domain-0");
    write("/local/domain/0/domid", "0");
    let _: Result<(), Errno> = Ok(());
    let _ = DomId(0);
}

fn banner(dom0: Dom0) {
    let t = &dom0.terminal;
    let m = &dom0.machine;
    let gic = match m.gic {
        Gic::V2 { .. } => "GICv2",
        Gic::V3 { .. } => "GICv3",
    };
    let (cpus, total) = match dom0.phys_info() {
        Ok(i) => (i.nr_cpus, i.total_pages * 4096),
        Err(_) => (m.cpus, m.memory_bytes()),
    };
    let names: Vec<&str> = dom0.disks.keys().map(String::as_str).collect();
    let up = time::now_ns() / 1_000_000;
    t.write(&format!(
        "\nParavane {}: {cpus} CPUs, {} MiB, {gic}, disks: {}; up in {up} ms\n",
        env!("CARGO_PKG_VERSION"),
        total >> 20,
        if names.is_empty() {
            String::from("none")
        } else {
            names.join(" ")
        },
    ));
    if dom0.volume.is_none() {
        t.write("There is no disk `volume` with a FAT32 partition: no guests.\n");
    }
}

/// Runs commands, a line each; the first that fails, and how.
async fn run_all(dom0: Dom0, commands: &str) -> Option<String> {
    for line in commands.lines().filter(|l| !l.trim().is_empty()) {
        let status = command(dom0, line).await;
        if status != 0 {
            return Some(format!("{line}: status {status}"));
        }
    }
    None
}

async fn command(dom0: Dom0, line: &str) -> i32 {
    dom0.terminal.write(&format!("{line}?\n"));
    if line == "poweroff" {
        end(dom0).await;
    }
    if line == "info" {
        dom0.terminal.write(&format!(
            "{:?}\n{:?}\n{:?}\n",
            dom0.phys_info(),
            dom0.version_info(),
            dom0.domain_list()
        ));
    }
    0
}

async fn prompt(dom0: Dom0) {
    loop {
        dom0.terminal.write("vane> ");
        let mut line = String::new();
        loop {
            match dom0.terminal.read().await {
                b'\r' | b'\n' => break,
                b => {
                    line.push(b as char);
                    dom0.terminal.write_raw(&[b]);
                }
            }
        }
        dom0.terminal.write("\n");
        command(dom0, &line).await;
    }
}
