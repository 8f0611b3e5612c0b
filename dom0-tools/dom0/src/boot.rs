// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the machine to the prompt.

use crate::base64;
use crate::card::{self, Card};
use crate::exec::Notify;
use crate::host::Dom0;
use crate::ip;
use crate::own;
use crate::prompt::Prompt;
use crate::rt::Rt;
use crate::terminal::Terminal;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use el1::machine::Gic;
use el1::{Machine, events, hvc, time};
use guest_abi::calls;
use guest_abi::xen::Virq;
use toolstack::cli::Status;
use toolstack::host::Host;
use toolstack::life::Toolstack;

/// The person's side, which tasks share.
struct Vane {
    dom0: Dom0,
    tools: Toolstack<Dom0>,
    prompt: Prompt,
    /// A domain stopped.
    stopped: Notify,
}

/// How long the loop under all tasks may take to turn, in seconds, unless the command line has `dom0_watchdog=`.
const PATIENCE: u32 = 30;

/// Has the hypervisor end this domain, and reset the machine, when the loop does not turn any more: the watchdog's number
/// and seconds. The command line may have other seconds, or `off`.
fn watchdog(bootargs: &str) -> Option<(u32, u32)> {
    let seconds = match word(bootargs, "dom0_watchdog") {
        Some("off") => return None,
        other => other.and_then(|s| s.parse().ok()).unwrap_or(PATIENCE),
    };
    let dog = calls::sched::watchdog(&hvc::xen(), 0, seconds).ok()?;
    Some((dog as u32, seconds))
}

/// Renews it.
async fn renew(rt: &'static Rt, (dog, seconds): (u32, u32)) {
    loop {
        rt.sleep_ms(u64::from(seconds) * 1000 / 3).await;
        let _ = calls::sched::watchdog(&hvc::xen(), dog, seconds);
    }
}

/// The program.
pub fn main(machine: Machine) -> ! {
    let rt = Rt::new();
    if machine.hypervisor.is_some()
        && let Some(dog) = watchdog(&machine.bootargs)
    {
        rt.spawn(renew(rt, dog));
    }
    let mut trouble = None;
    let terminal = match &machine.hypervisor {
        Some(h) => {
            trouble = events::init(h.event_intid).err();
            rt.serve_events(h.event_intid);
            Terminal::hypervisor(rt)
        }
        None => Terminal::uart(rt),
    };
    let dom0 = Dom0::new(rt, machine, terminal);
    let card = card::start(dom0);
    let vane: &'static Vane = Box::leak(Box::new(Vane {
        dom0,
        tools: Toolstack::new(dom0),
        prompt: Prompt::new(dom0),
        stopped: Notify::default(),
    }));
    if let Some(e) = trouble {
        vane.prompt.say(&format!("dom0: no events: {e}"));
    }
    if let Err(e) = vane.tools.start() {
        vane.prompt.say(&format!("dom0: {e}"));
    }
    if let Some(card) = card {
        join_network(vane, &card);
    }
    if vane.dom0.machine.hypervisor.is_some() {
        rt.spawn(watch_domains(vane));
        rt.spawn(reap(vane));
    }
    rt.spawn(person(vane));
    rt.run()
}

/// Gives the control domain its own place on the card's bridge, unless the command line has `dom0_ip=off`.
fn join_network(vane: &'static Vane, card: &Card) {
    let word = word(&vane.dom0.machine.bootargs, "dom0_ip").unwrap_or("dhcp");
    match ip::parse(word) {
        Some(ip::Source::Off) => {}
        Some(source) => {
            if own::start(vane.dom0, &vane.tools, card.mac(), source).is_none() {
                vane.prompt.say("dom0: the bridge has no port left for it");
            }
        }
        None => vane.prompt.say(&format!(
            "dom0: dom0_ip={word} makes no sense: it is off, dhcp or ADDRESS/BITS[,GATEWAY]"
        )),
    }
}

/// Tells xenstore's clients of domains that stopped or went (`VIRQ_DOM_EXC`).
async fn watch_domains(vane: &'static Vane) {
    let dom0 = vane.dom0;
    let port = match calls::event::bind_virq(&hvc::xen(), Virq::DomExc, 0) {
        Ok(port) => port,
        Err(e) => {
            vane.prompt
                .say(&format!("dom0: is not told of domains that stop: {e}"));
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
                        dom0.consoles.stopped(dom);
                    }
                }
                _ => dom0.xs.forget(dom),
            }
        }
        vane.stopped.notify();
    }
}

/// Does what domains' configurations ask for at their ends.
async fn reap(vane: &'static Vane) {
    let mut seen = vane.stopped.seen();
    loop {
        vane.stopped.changed(&mut seen).await;
        for exit in vane.tools.reap().await {
            vane.prompt.say(&format!("{exit}"));
        }
    }
}

/// A word `name=value` of the command line.
fn word<'a>(bootargs: &'a str, name: &str) -> Option<&'a str> {
    bootargs
        .split_ascii_whitespace()
        .find_map(|w| w.strip_prefix(name)?.strip_prefix('='))
}

async fn person(vane: &'static Vane) {
    let dom0 = vane.dom0;
    let Some(commands) = word(&dom0.machine.bootargs, "exec").map(base64::decode) else {
        banner(dom0);
        return vane.prompt.run(&vane.tools).await;
    };
    let failed = match commands.map(String::from_utf8) {
        Some(Ok(commands)) => run_all(vane, &commands).await,
        _ => Some(format!("exec=: status {}", Status::Usage.code())),
    };
    vane.prompt.say(&match failed {
        None => String::from("exec: ok"),
        Some(what) => format!("exec: failed: {what}"),
    });
    vane.tools.forget_actions();
    if let Err(e) = dom0.power(false).await {
        vane.prompt.say(&format!("dom0: cannot power off: {e}"));
    }
}

/// Runs commands, a line each, up to the first that fails: that one, and how it failed.
async fn run_all(vane: &Vane, commands: &str) -> Option<String> {
    for line in commands.lines() {
        let status = vane.prompt.command(&vane.tools, line).await;
        if status != Status::Done {
            return Some(format!("{line}: status {}", status.code()));
        }
    }
    None
}

fn banner(dom0: Dom0) {
    let m = &dom0.machine;
    let gic = match m.gic {
        Gic::V2 { .. } => "GICv2",
        Gic::V3 { .. } => "GICv3",
    };
    let (cpus, total) = match dom0.phys_info() {
        Ok(i) => (i.nr_cpus, i.total_pages * 4096),
        Err(_) => (m.cpus, m.memory_bytes()),
    };
    let disks: Vec<&str> = dom0.disks.keys().map(String::as_str).collect();
    let disks = match disks[..] {
        [] => String::from("no disks"),
        _ => format!("disks {}", disks.join(", ")),
    };
    dom0.terminal.write(&format!(
        "\nParavane {}: {cpus} CPUs, {} MiB, {gic}, {disks}; up {} ms after reset\n",
        env!("CARGO_PKG_VERSION"),
        total >> 20,
        time::now_ns() / 1_000_000,
    ));
    for trouble in &dom0.troubles {
        dom0.terminal.write(&format!("{trouble}\n"));
    }
    if dom0.volume.is_none() {
        dom0.terminal
            .write("There is no disk \"volume\" with a FAT32 partition, so there are no guests.\n");
    }
    dom0.terminal
        .write("Type \"help\" for what there is to do.\n");
}
