// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `vane` command line: one line in, text and a status out.

mod complete;
mod show;
mod store;
mod top;
pub mod verbs;

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

pub use complete::complete;

use crate::config::disk::device_number;
use crate::config::{Disk, DomainConfig, Vif, Warning, parse_cpus};
use crate::error::{Context, Error, Result, fail};
use crate::host::{DomId, DomInfo, Host, Output, Size};
use crate::life::Toolstack;
use crate::race::{First, first};
use crate::text;
use serde_json::{Value, json};
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

/// Runs one line and writes what it says. Errors are written as `error: …`, with `--json` as `{"error": "…"}`.
pub async fn run<H: Host>(tools: &Toolstack<H>, line: &str, out: &mut impl Output) -> Status {
    let status = match verbs::parse(line) {
        Ok(None) => Status::Done,
        Ok(Some(command)) if command.help => {
            out.write(&command.verb.help());
            Status::Done
        }
        Ok(Some(command)) => {
            let json = command.has("json") && command.verb.id != Id::XenstoreWatch;
            let mut said = Said {
                kept: json.then(String::new),
                out,
            };
            let result = execute(tools, &command, &mut said).await;
            match (said.kept, &result) {
                (None, Ok(())) => {}
                (None, Err(e)) => out.write(&format!("error: {e}\n")),
                (Some(text), _) if has_json(command.verb.id) && !text.is_empty() => {
                    out.write(&text);
                }
                (Some(text), _) => {
                    let lines: Vec<&str> = text.lines().collect();
                    let error = result.as_ref().err().map(ToString::to_string);
                    let value = json!({ "said": lines, "error": error });
                    out.write(&format!("{}\n", show::pretty(&value)));
                }
            }
            match result {
                Ok(()) => Status::Done,
                Err(_) => Status::Failed,
            }
        }
        Err(e) => {
            out.write(&format!("error: {e}\n"));
            Status::Usage
        }
    };
    out.flush().await;
    status
}

/// Whether a verb has a form of its own in JSON. What others say is put into one, a line each.
const fn has_json(id: Id) -> bool {
    matches!(
        id,
        Id::Create
            | Id::List
            | Id::Info
            | Id::Doctor
            | Id::Domid
            | Id::Domname
            | Id::VcpuList
            | Id::Sched
            | Id::Dmesg
            | Id::Uptime
            | Id::Top
            | Id::BlockList
            | Id::NetworkList
            | Id::BridgeList
            | Id::XenstoreLs
            | Id::XenstoreRead
            | Id::XenstoreList
            | Id::History
    )
}

/// Hands on what a command writes, or keeps it.
struct Said<'a, O> {
    kept: Option<String>,
    out: &'a mut O,
}

impl<O: Output> Output for Said<'_, O> {
    fn write(&mut self, text: &str) {
        match &mut self.kept {
            Some(kept) => kept.push_str(text),
            None => self.out.write(text),
        }
    }
    async fn flush(&mut self) {
        if self.kept.is_none() {
            self.out.flush().await;
        }
    }
    async fn interrupted(&mut self) {
        self.out.interrupted().await;
    }
    async fn key(&mut self) -> u8 {
        self.out.key().await
    }
    fn size(&self) -> Option<Size> {
        self.out.size()
    }
    fn history(&self) -> Vec<String> {
        self.out.history()
    }
}

async fn execute<H: Host>(t: &Toolstack<H>, c: &Command, out: &mut impl Output) -> Result<()> {
    match c.verb.id {
        Id::Create => create(t, c, out).await,
        Id::List => show::list(t, c, out),
        Id::Info => show::info(t, c, out),
        Id::Doctor => show::doctor(t, c, out),
        Id::Console => {
            let dom = t.find_guest(c.word(0))?.dom;
            console_is_there(t, dom, c)?;
            console(t, dom, c, out).await
        }
        Id::Shutdown => shutdown(t, c, out).await,
        Id::Reboot => reboot(t, c, out).await,
        Id::Destroy => {
            // One that cannot be destroyed is no reason to let the others run.
            let mut wrong = Vec::new();
            for info in guests(t, &c.words)? {
                wrong.extend(t.destroy(info.dom).await.err().map(|Error(e)| e));
            }
            match wrong.is_empty() {
                true => Ok(()),
                false => Err(Error(wrong.join("; "))),
            }
        }
        Id::Pause => guests(t, &c.words)?.iter().try_for_each(|i| t.pause(i.dom)),
        Id::Unpause => guests(t, &c.words)?
            .iter()
            .try_for_each(|i| t.unpause(i.dom)),
        Id::Domid => {
            let dom = t.find(c.word(0))?.dom;
            put(c, out, &json!({ "domid": dom.0 }), &dom.to_string());
            Ok(())
        }
        Id::Domname => {
            let Ok(number) = c.word(0).parse::<u16>() else {
                return fail!("\"{}\" is no domain's number", c.word(0));
            };
            let info = t.find(&number.to_string())?;
            let name = t.shown_name(info.dom);
            put(c, out, &json!({ "name": name }), &name);
            Ok(())
        }
        Id::Rename => t.rename(t.find_guest(c.word(0))?.dom, c.word(1)),
        Id::VcpuList => show::vcpu_list(t, c, out),
        Id::VcpuSet => {
            let info = t.find_guest(c.word(0))?;
            match c.word(1).parse() {
                Ok(count) => {
                    t.set_vcpus(&info, count)?;
                    out.write(&asked_for_vcpus(&info, count));
                    Ok(())
                }
                Err(_) => fail!("\"{}\" is no number of vcpus", c.word(1)),
            }
        }
        Id::VcpuPin => vcpu_pin(t, c),
        Id::Sched => show::sched(t, c, out),
        Id::MemSet => t.set_memory(t.find_guest(c.word(0))?.dom, size(c.word(1))?),
        Id::MemMax => t.set_max_memory(t.find_guest(c.word(0))?.dom, size(c.word(1))?),
        Id::ConfigUpdate => {
            let dom = t.find_guest(c.word(0))?.dom;
            let overrides: Vec<&str> = c.words.iter().skip(2).map(String::as_str).collect();
            let (config, warnings) = read_config(t, c.word(1), &overrides).await?;
            for warning in warnings {
                out.write(&format!("warning: {warning}\n"));
            }
            t.replace_config(dom, config)
        }
        Id::Sysrq => {
            let dom = t.find_guest(c.word(0))?.dom;
            match c.word(1).as_bytes() {
                [key] if key.is_ascii_alphanumeric() => t.press_sysrq(dom, c.word(1)),
                _ => fail!(
                    "\"{}\" is no key; write for instance s, h has Linux list them",
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
            let text: String = text.chars().filter(plain).collect();
            let lines: Vec<&str> = text.lines().collect();
            put(
                c,
                out,
                &json!({ "lines": lines }),
                text.trim_end_matches('\n'),
            );
            Ok(())
        }
        Id::Uptime => show::uptime(t, c, out),
        Id::Top => top::top(t, c, out).await,
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
        Id::Clear => {
            out.write("\x1b[H\x1b[2J");
            Ok(())
        }
        Id::History => history(c, out),
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
                None => Err(Error(verbs::unknown(name))),
            },
        },
        Id::Poweroff => poweroff(t, c, out).await,
    }
}

/// Writes a value as JSON, or a line of text.
fn put(c: &Command, out: &mut impl Output, value: &Value, text: &str) {
    let json = c.has("json").then(|| show::pretty(value));
    out.write(json.as_deref().unwrap_or(text));
    out.write("\n");
}

/// The guests that words name; `*` and `?` in one stand for all that match.
fn guests<H: Host>(t: &Toolstack<H>, words: &[String]) -> Result<Vec<DomInfo>> {
    let mut found: Vec<DomInfo> = Vec::new();
    for word in words {
        let some = match word.contains(['*', '?']) {
            false => alloc::vec![t.find_guest(word)?],
            true => {
                let mut all = t.host().domain_list().during("listing the domains")?;
                all.retain(|i| {
                    i.dom != DomId(0)
                        && t.name_of(i.dom)
                            .is_some_and(|name| text::matches(word, &name))
                });
                if all.is_empty() {
                    return fail!("no guest's name is like \"{word}\"; see: list");
                }
                all
            }
        };
        let known = |i: &DomInfo| found.iter().any(|f| f.dom == i.dom);
        let new: Vec<DomInfo> = some.into_iter().filter(|i| !known(i)).collect();
        found.extend(new);
    }
    Ok(found)
}

/// All guests that have not stopped, or those that were named.
fn running<H: Host>(t: &Toolstack<H>, c: &Command) -> Result<Vec<DomInfo>> {
    match (c.has("all"), c.words.is_empty()) {
        (true, true) => {
            let mut all = t.host().domain_list().during("listing the domains")?;
            all.retain(|i| i.dom != DomId(0) && i.shutdown.is_none() && !i.dying);
            Ok(all)
        }
        (true, false) => fail!("name guests, or all with -a, but not both"),
        (false, true) => fail!("name a guest, or all with -a"),
        (false, false) => guests(t, &c.words),
    }
}

/// What is said when a guest was told how many vcpus to use.
fn asked_for_vcpus(info: &DomInfo, count: u32) -> String {
    let dom = info.dom;
    match count.cmp(&info.online_vcpus) {
        core::cmp::Ordering::Equal => String::new(),
        core::cmp::Ordering::Less => format!(
            "note: domain {dom} takes {} of its vcpus off itself; where it does not: echo 0 >/sys/devices/system/cpu/cpuN/online in it\n",
            info.online_vcpus - count
        ),
        core::cmp::Ordering::Greater => format!(
            "note: domain {dom} brings {} vcpus more up itself; where it does not: echo 1 >/sys/devices/system/cpu/cpuN/online in it\n",
            count - info.online_vcpus
        ),
    }
}

/// The CPUs, their numbers or `all`, that a vcpu, or all of them, may run on.
fn vcpu_pin<H: Host>(t: &Toolstack<H>, c: &Command) -> Result<()> {
    let info = t.find(c.word(0))?;
    if !matches!(c.word(3), "" | "-" | "all") {
        return fail!("there is no soft affinity; leave it out, or write - or all");
    }
    let cpus = match (c.word(2), parse_cpus(c.word(2))) {
        // Only the soft one would change.
        ("-", _) => return Ok(()),
        (_, Some(cpus)) => cpus,
        (word, None) => {
            return fail!("\"{word}\" names no CPUs; write for instance 0-3,^1 or all");
        }
    };
    let nr_cpus = t
        .host()
        .phys_info()
        .during("asking for the machine")?
        .nr_cpus;
    let present = u64::MAX >> (64 - nr_cpus.clamp(1, 64));
    if cpus & present == 0 {
        return fail!(
            "the machine has CPUs 0 to {}, none of \"{}\"",
            nr_cpus - 1,
            c.word(2)
        );
    }
    let most = info.max_vcpu_id;
    let vcpus = match c.word(1) {
        "all" => 0..=most,
        word => match text::number(word).and_then(|n| u32::try_from(n).ok()) {
            Some(vcpu) if vcpu <= most => vcpu..=vcpu,
            _ => {
                return fail!(
                    "\"{word}\" is no vcpu of domain {}; it has 0 to {most}, or write all",
                    info.dom
                );
            }
        },
    };
    for vcpu in vcpus {
        t.host()
            .set_vcpu_affinity(info.dom, vcpu, &[cpus])
            .during(format!("domain {}: pinning vcpu {vcpu}", info.dom))?;
    }
    Ok(())
}

fn history(c: &Command, out: &mut impl Output) -> Result<()> {
    let all = out.history();
    let count = match c.words.first() {
        None => all.len(),
        Some(word) => match text::number(word) {
            Some(n) => usize::try_from(n).unwrap_or(usize::MAX),
            None => return fail!("\"{word}\" is no number of lines"),
        },
    };
    let skipped = all.len().saturating_sub(count);
    let lines = all.get(skipped..).unwrap_or_default();
    if c.has("json") {
        out.write(&format!("{}\n", show::pretty(&json!(lines))));
        return Ok(());
    }
    for (n, line) in (skipped + 1..).zip(lines) {
        out.write(&format!("{n:>5}  {line}\n"));
    }
    Ok(())
}

/// A size in KiB.
fn size(text: &str) -> Result<u64> {
    match size_kib(text) {
        Some(kib) => Ok(kib),
        None => fail!("\"{text}\" is no size; write for instance 256, 256m or 1g"),
    }
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
        if core::str::from_utf8(line).is_err()
            && let Some(comment @ [b'#', ..]) = line.get_mut(from..)
        {
            comment.fill(b'#');
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
    let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    let json = c.has("json");
    if json && (c.has("console") || c.has("foreground")) {
        return fail!("a console has no JSON");
    }
    if !json && !c.has("quiet") {
        for warning in &warnings {
            out.write(&format!("warning: {warning}\n"));
        }
    }
    let shown = || show::config_json(&config);
    if c.has("dryrun") {
        t.check(&config).await?;
        let value = json!({ "warnings": warnings, "config": shown() });
        put(c, out, &value, &show::pretty(&shown()));
        return Ok(());
    }
    if c.has("debug") && !json {
        out.write(&format!("{}\n", show::pretty(&shown())));
    }
    let dom = t.create(&config, c.has("paused")).await?;
    if c.has("console") {
        return console(t, dom, c, out).await;
    }
    let value = json!({ "domid": dom.0, "name": config.name, "warnings": warnings });
    if json || !c.has("quiet") {
        put(
            c,
            out,
            &value,
            &format!("domain {dom} ({}) created", config.name),
        );
    }
    if !c.has("foreground") {
        return Ok(());
    }
    out.flush().await;
    while !t.is_over(dom) {
        if let First::A(()) = first(out.interrupted(), t.host().sleep_ms(POLL_MS)).await {
            return Ok(());
        }
    }
    Ok(())
}

/// Whether a guest has the console that was asked for.
fn console_is_there<H: Host>(t: &Toolstack<H>, dom: DomId, c: &Command) -> Result<()> {
    let vuart = t.config_of(dom).is_some_and(|config| config.vuart);
    match c.value("type") {
        None | Some("pv") => {}
        Some("vuart") if vuart => {}
        Some("vuart") => {
            return fail!(
                "domain {dom} has no virtual UART; its configuration needs vuart = \"sbsa_uart\""
            );
        }
        Some(other) => {
            return fail!("there is no console of type \"{other}\"; there are pv and vuart");
        }
    }
    match c.value("num") {
        None | Some("0") => Ok(()),
        Some(other) => fail!("domain {dom} has no console {other}, only 0"),
    }
}

async fn console<H: Host>(
    t: &Toolstack<H>,
    dom: DomId,
    c: &Command,
    out: &mut impl Output,
) -> Result<()> {
    if c.has("json") {
        return fail!("a console has no JSON");
    }
    if !c.has("quiet") {
        out.write(&format!(
            "console of {} (domain {dom}), from its beginning as far as kept; Ctrl-] leaves\n",
            t.shown_name(dom)
        ));
    }
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
    let infos = running(t, c)?;
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
    let infos = running(t, c)?;
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
            "\"{}\" is no virtual device; {}",
            c.word(1),
            t.disks_in_words(dom)
        );
    };
    if !t.blocks(dom).iter().any(|b| b.vdev == vdev) {
        return fail!(
            "domain {dom} has no disk {}; {}",
            c.word(1),
            t.disks_in_words(dom)
        );
    }
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
