// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `vane` command line: one line in, text and a status out.

mod complete;
mod show;
mod store;
pub mod verbs;

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

pub use complete::complete;

use crate::config::disk::device_number;
use crate::config::{Disk, DomainConfig, Vif, Warning};
use crate::error::{Context, Error, Result, fail};
use crate::host::{DomId, DomInfo, Host, Output};
use crate::life::Toolstack;
use crate::race::{First, first};
use crate::text;
use verbs::{Command, Id};

/// What a command ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It was done: 0.
    Done,
    /// It failed: 1.
    Failed,
    /// It was not understood: 2.
    Usage,
}

impl Status {
    /// The number for scripts.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
        }
    }
}

/// Where configurations without a folder are looked for.
pub const GUESTS: &str = "/guests";
/// A configuration is no longer than this.
const MAX_CONFIG: u64 = 256 << 10;
/// How often a waiting command looks.
const POLL_MS: u64 = 100;
/// How long guests may take to end before the machine is powered off.
const POWEROFF_TIMEOUT_S: u64 = 30;

/// Runs one line and writes what it says. Errors are written as `error: …`.
pub async fn run<H: Host>(tools: &Toolstack<H>, line: &str, out: &mut impl Output) -> Status {
    let status = match verbs::parse(line) {
        Ok(None) => Status::Done,
        Ok(Some(command)) if command.help => {
            out.write(&command.verb.help());
            Status::Done
        }
        Ok(Some(command)) => match execute(tools, &command, out).await {
            Ok(()) => Status::Done,
            Err(e) => {
                out.write(&format!("error: {e}\n"));
                Status::Failed
            }
        },
        Err(e) => {
            out.write(&format!("error: {e}\n"));
            Status::Usage
        }
    };
    out.flush().await;
    status
}

async fn execute<H: Host>(t: &Toolstack<H>, c: &Command, out: &mut impl Output) -> Result<()> {
    match c.verb.id {
        Id::Create => create(t, c, out).await,
        Id::List => show::list(t, c, out),
        Id::Info => show::info(t, c, out),
        Id::Doctor => show::doctor(t, c, out),
        Id::Console => console(t, t.find_guest(c.word(0))?.dom, out).await,
        Id::Shutdown => shutdown(t, c, out).await,
        Id::Reboot => reboot(t, c, out).await,
        Id::Destroy => {
            for info in guests(t, &c.words)? {
                t.destroy(info.dom).await?;
            }
            Ok(())
        }
        Id::Pause => guests(t, &c.words)?.iter().try_for_each(|i| t.pause(i.dom)),
        Id::Unpause => guests(t, &c.words)?
            .iter()
            .try_for_each(|i| t.unpause(i.dom)),
        Id::Domid => {
            out.write(&format!("{}\n", t.find(c.word(0))?.dom));
            Ok(())
        }
        Id::Domname => {
            let Ok(number) = c.word(0).parse::<u16>() else {
                return fail!("\"{}\" is no domain's number", c.word(0));
            };
            let info = t.find(&number.to_string())?;
            out.write(&format!("{}\n", t.shown_name(info.dom)));
            Ok(())
        }
        Id::Rename => t.rename(t.find_guest(c.word(0))?.dom, c.word(1)),
        Id::VcpuList => show::vcpu_list(t, c, out),
        Id::VcpuSet => {
            let info = t.find_guest(c.word(0))?;
            match c.word(1).parse() {
                Ok(count) => t.set_vcpus(&info, count),
                Err(_) => fail!("\"{}\" is no number of vcpus", c.word(1)),
            }
        }
        Id::MemSet => {
            let dom = t.find_guest(c.word(0))?.dom;
            match size_kib(c.word(1)) {
                Some(kib) => t.set_memory(dom, kib),
                None => fail!(
                    "\"{}\" is no size; write for instance 256, 256m or 1g",
                    c.word(1)
                ),
            }
        }
        Id::Dmesg => {
            let log = t
                .host()
                .read_console(c.has("clear"))
                .during("reading the hypervisor's log")?;
            // Whatever got into the log, it does not command the terminal.
            let text = String::from_utf8_lossy(&log);
            let plain = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
            out.write(&text.chars().filter(plain).collect::<String>());
            Ok(())
        }
        Id::Uptime => show::uptime(t, c, out),
        Id::BlockList => show::block_list(t, c, out),
        Id::BlockAttach => block_attach(t, c).await,
        Id::BlockDetach => block_detach(t, c).await,
        Id::NetworkList => show::network_list(t, c, out),
        Id::NetworkAttach => network_attach(t, c, out).await,
        Id::NetworkDetach => network_detach(t, c).await,
        Id::BridgeList => {
            show::bridge_list(t, c, out);
            Ok(())
        }
        Id::XenstoreLs => store::ls(t, c, out).await,
        Id::XenstoreRead => store::read(t, c, out),
        Id::XenstoreWrite => store::write(t, c),
        Id::XenstoreRm => store::rm(t, c),
        Id::XenstoreList => store::list(t, c, out),
        Id::XenstoreWatch => store::watch(t, c, out).await,
        Id::Help => match c.words.first() {
            None => {
                out.write(&verbs::overview());
                Ok(())
            }
            Some(name) => match verbs::find(name) {
                Some(verb) => {
                    out.write(&verb.help());
                    Ok(())
                }
                None => match text::closest(name, verbs::VERBS.iter().map(|v| v.name)) {
                    Some(meant) => fail!("there is no \"{name}\"; did you mean \"{meant}\"?"),
                    None => fail!("there is no \"{name}\"; see: help"),
                },
            },
        },
        Id::Poweroff => poweroff(t, c, out).await,
    }
}

fn guests<H: Host>(t: &Toolstack<H>, names: &[String]) -> Result<Vec<DomInfo>> {
    names.iter().map(|n| t.find_guest(n)).collect()
}

/// A size: MiB, or KiB, MiB, GiB with a letter.
fn size_kib(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let (digits, scale) = match lower.strip_suffix(['k', 'm', 'g']) {
        Some(digits) if lower.ends_with('k') => (digits, 1),
        Some(digits) if lower.ends_with('g') => (digits, 1 << 20),
        Some(digits) => (digits, 1 << 10),
        None => (lower.as_str(), 1 << 10),
    };
    text::number(digits)?.checked_mul(scale)
}

/// Finds and reads a configuration file.
async fn read_config<H: Host>(
    t: &Toolstack<H>,
    file: &str,
    overrides: &[&str],
) -> Result<(DomainConfig, Vec<Warning>)> {
    let names = match file.contains('/') {
        true => alloc::vec![file.to_owned()],
        false => alloc::vec![format!("{GUESTS}/{file}"), format!("{GUESTS}/{file}.cfg")],
    };
    let mut found = None;
    for name in &names {
        match t.host().open(name).await {
            Ok(opened) => {
                found = Some((opened, name));
                break;
            }
            Err(crate::host::Errno::ENOENT) => {}
            Err(e) => return Err(e).during(name),
        }
    }
    let Some((opened, name)) = found else {
        let last = names.last().map_or("", String::as_str);
        return fail!("{}: {}", names.join(" or "), t.no_such_file(last).await);
    };
    let size = t.host().file_size(&opened).await.during(name)?;
    if size > MAX_CONFIG {
        return fail!("{name}: {size} bytes are too many for a configuration; is it one?");
    }
    let mut bytes = alloc::vec![0; usize::try_from(size).unwrap_or(0)];
    let got = t
        .host()
        .read_at(&opened, 0, &mut bytes)
        .await
        .during(name)?;
    bytes.truncate(got);
    // xl takes any byte in a comment; elsewhere one that is no text is in nobody's name.
    for line in bytes.split_mut(|b| *b == b'\n') {
        let bare = line.trim_ascii_start().len();
        let from = line.len() - bare;
        if line.get(from) == Some(&b'#') && core::str::from_utf8(line).is_err() {
            line[from..].fill(b'#');
        }
    }
    let Ok(text) = core::str::from_utf8(&bytes) else {
        return fail!("{name}: it is no text (UTF-8); is it a configuration?");
    };
    DomainConfig::parse(text, name, overrides).map_err(|e| Error(e.to_string()))
}

async fn create<H: Host>(t: &Toolstack<H>, c: &Command, out: &mut impl Output) -> Result<()> {
    let overrides: Vec<&str> = c.words.iter().skip(1).map(String::as_str).collect();
    let (config, warnings) = read_config(t, c.word(0), &overrides).await?;
    for warning in warnings {
        out.write(&format!("warning: {warning}\n"));
    }
    if c.has("dryrun") {
        t.check(&config).await?;
        out.write(&format!("{}\n", show::pretty(&show::config_json(&config))));
        return Ok(());
    }
    let dom = t.create(&config, c.has("paused")).await?;
    if c.has("console") {
        return console(t, dom, out).await;
    }
    out.write(&format!("domain {dom} ({}) created\n", config.name));
    Ok(())
}

async fn console<H: Host>(t: &Toolstack<H>, dom: DomId, out: &mut impl Output) -> Result<()> {
    out.flush().await;
    t.host()
        .console_attach(dom)
        .await
        .during(format!("the console of domain {dom}"))
}

/// Waits until all have stopped, a time is over, or the person has enough of it.
async fn wait_stopped<H: Host>(
    t: &Toolstack<H>,
    doms: &[DomId],
    timeout_s: Option<u64>,
    out: &mut impl Output,
) -> Result<()> {
    out.flush().await;
    let limit = timeout_s.map(|s| s.saturating_mul(1_000_000_000));
    let start = t.host().uptime_ns();
    loop {
        let Some(dom) = doms.iter().find(|d| !t.has_stopped(**d)) else {
            return Ok(());
        };
        let waited = t.host().uptime_ns().saturating_sub(start);
        if limit.is_some_and(|l| waited >= l) {
            return fail!(
                "domain {dom} has not stopped after {} s; to end it at once: destroy {dom}",
                waited / 1_000_000_000
            );
        }
        if let First::A(()) = first(out.interrupted(), t.host().sleep_ms(POLL_MS)).await {
            return fail!("interrupted; domain {dom} has not stopped yet");
        }
    }
}

fn timeout(c: &Command) -> Result<Option<u64>> {
    match c.value("timeout") {
        None => Ok(None),
        Some(text) => match text::number(text) {
            Some(seconds) => Ok(Some(seconds)),
            None => fail!("\"{text}\" is no number of seconds"),
        },
    }
}

async fn shutdown<H: Host>(t: &Toolstack<H>, c: &Command, out: &mut impl Output) -> Result<()> {
    let timeout = timeout(c)?;
    let infos = match (c.has("all"), c.words.is_empty()) {
        (true, true) => {
            let all = t.host().domain_list().during("listing the domains")?;
            let running = |i: &DomInfo| i.dom != DomId(0) && i.shutdown.is_none() && !i.dying;
            all.into_iter().filter(running).collect()
        }
        (true, false) => return fail!("name guests, or all with -a, but not both"),
        (false, true) => return fail!("name a guest, or all with -a"),
        (false, false) => guests(t, &c.words)?,
    };
    ask(t, &infos, false, c, timeout, out).await
}

async fn ask<H: Host>(
    t: &Toolstack<H>,
    infos: &[DomInfo],
    reboot: bool,
    c: &Command,
    timeout: Option<u64>,
    out: &mut impl Output,
) -> Result<()> {
    let mut doms = Vec::new();
    for info in infos {
        let dom = info.dom;
        if !t.request_shutdown(info, reboot)? {
            out.write(&format!(
                "note: domain {dom} has not said that it listens to this; to end it at once: destroy {dom}\n"
            ));
        }
        if info.paused {
            out.write(&format!(
                "note: domain {dom} is paused; unpause {dom} lets it go on\n"
            ));
        }
        doms.push(dom);
    }
    match c.has("wait") || timeout.is_some() {
        true => wait_stopped(t, &doms, timeout, out).await,
        false => Ok(()),
    }
}

async fn reboot<H: Host>(t: &Toolstack<H>, c: &Command, out: &mut impl Output) -> Result<()> {
    let timeout = timeout(c)?;
    let infos = guests(t, &c.words)?;
    if !c.has("force") {
        return ask(t, &infos, true, c, timeout, out).await;
    }
    for info in infos {
        let new = t.force_reboot(info.dom).await?;
        out.write(&format!("domain {} is domain {new} now\n", info.dom));
    }
    Ok(())
}

async fn block_attach<H: Host>(t: &Toolstack<H>, c: &Command) -> Result<()> {
    let dom = t.find_guest(c.word(0))?.dom;
    let spec = c.words.get(1..).unwrap_or_default().join(",");
    let disk = Disk::parse(&spec).map_err(|e| Error(format!("disk \"{spec}\": {e}")))?;
    t.attach(dom, &disk).await
}

async fn block_detach<H: Host>(t: &Toolstack<H>, c: &Command) -> Result<()> {
    let dom = t.find_guest(c.word(0))?.dom;
    let Some(vdev) = device_number(c.word(1)) else {
        return fail!(
            "\"{}\" is no virtual device; write for instance xvda or 51712",
            c.word(1)
        );
    };
    t.detach(dom, vdev, c.has("force")).await
}

async fn network_attach<H: Host>(
    t: &Toolstack<H>,
    c: &Command,
    out: &mut impl Output,
) -> Result<()> {
    let dom = t.find_guest(c.word(0))?.dom;
    let spec = c.words.get(1..).unwrap_or_default().join(",");
    let vif = Vif::parse(&spec).map_err(|e| Error(format!("vif \"{spec}\": {e}")))?;
    let devid = t.attach_vif(dom, &vif).await?;
    out.write(&format!("domain {dom} has interface {devid} now\n"));
    Ok(())
}

async fn network_detach<H: Host>(t: &Toolstack<H>, c: &Command) -> Result<()> {
    let dom = t.find_guest(c.word(0))?.dom;
    t.detach_vif(dom, c.word(1), c.has("force")).await
}

async fn poweroff<H: Host>(t: &Toolstack<H>, c: &Command, out: &mut impl Output) -> Result<()> {
    t.forget_actions();
    let all = t.host().domain_list().during("listing the domains")?;
    let guests: Vec<DomInfo> = all.into_iter().filter(|i| i.dom != DomId(0)).collect();
    if !c.has("force") {
        let mut listening = Vec::new();
        for info in guests
            .iter()
            .filter(|i| i.shutdown.is_none() && !i.dying && !i.paused)
        {
            if t.listens(info.dom) {
                out.write(&format!(
                    "asking domain {} ({}) to power off\n",
                    info.dom,
                    t.shown_name(info.dom)
                ));
                t.request_shutdown(info, false)?;
                listening.push(info.dom);
            }
        }
        if let Err(e) = wait_stopped(t, &listening, Some(POWEROFF_TIMEOUT_S), out).await {
            out.write(&format!("note: {e}\n"));
        }
    }
    for info in &guests {
        if let Err(e) = t.destroy(info.dom).await {
            out.write(&format!("note: {e}\n"));
        }
    }
    out.flush().await;
    t.host().power(c.has("reboot")).await.during("powering off")
}

#[cfg(test)]
mod tests;
