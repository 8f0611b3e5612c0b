// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables, in xl's columns and as JSON.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::IpAddr;

use serde_json::{Map, Value, json};

use super::verbs::Command;
use crate::config::{DomainConfig, Uuid};
use crate::error::{Context, Result, fail};
use crate::host::{
    BridgeInfo, BridgePort, CARD, DomId, DomInfo, GicVersion, Host, MachineFacts, Output, PhysInfo,
    ShutdownCode,
};
use crate::life::{BlockState, Toolstack, VifState};

/// A JSON value for people to read as well.
pub(super) fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn put_json(out: &mut impl Output, value: &Value) {
    out.write(&pretty(value));
    out.write("\n");
}

/// The domains that were named, or all.
fn chosen<H: Host>(t: &Toolstack<H>, c: &Command) -> Result<Vec<DomInfo>> {
    match c.words.is_empty() {
        true => t.host().domain_list().during("listing the domains"),
        false => c.words.iter().map(|w| t.find(w)).collect(),
    }
}

/// xl's letters.
pub(super) fn flags(i: &DomInfo) -> String {
    let crashed = matches!(
        i.shutdown,
        Some(ShutdownCode::Crash | ShutdownCode::Watchdog)
    );
    [
        (i.running, 'r'),
        (i.blocked, 'b'),
        (i.paused, 'p'),
        (i.shutdown.is_some(), 's'),
        (crashed, 'c'),
        (i.dying, 'd'),
    ]
    .map(|(on, letter)| if on { letter } else { '-' })
    .iter()
    .collect()
}

/// One word for programs.
pub(super) fn state(i: &DomInfo) -> &'static str {
    match i {
        DomInfo { dying: true, .. } => "dying",
        DomInfo {
            shutdown: Some(ShutdownCode::Crash | ShutdownCode::Watchdog),
            ..
        } => "crashed",
        DomInfo {
            shutdown: Some(_), ..
        } => "shutdown",
        DomInfo { paused: true, .. } => "paused",
        DomInfo { running: true, .. } => "running",
        _ => "blocked",
    }
}

/// Seconds with one place behind the point.
fn seconds(ns: u64) -> String {
    let tenths = ns / 100_000_000;
    format!("{}.{}", tenths / 10, tenths % 10)
}

fn domain_json<H: Host>(t: &Toolstack<H>, i: &DomInfo) -> Value {
    json!({
        "domid": i.dom.0,
        "name": t.shown_name(i.dom),
        "uuid": Uuid(i.handle).to_string(),
        "memory_mib": i.tot_pages / 256,
        "max_memory_mib": i.max_pages / 256,
        "vcpus": i.online_vcpus,
        "state": state(i),
        "flags": flags(i),
        "shutdown_reason": i.shutdown.map(ShutdownCode::name),
        "cpu_time_ns": i.cpu_time_ns,
    })
}

/// `list`.
pub(super) fn list<H: Host>(t: &Toolstack<H>, c: &Command, out: &mut impl Output) -> Result<()> {
    let domains = chosen(t, c)?;
    if c.has("json") || c.has("long") {
        let all: Vec<Value> = domains
            .iter()
            .map(|i| {
                let mut value = domain_json(t, i);
                if let (true, Some(map)) = (c.has("long"), value.as_object_mut()) {
                    map.extend(long_json(t, i));
                }
                value
            })
            .collect();
        put_json(out, &Value::Array(all));
        return Ok(());
    }
    let verbose = c.has("verbose");
    let more = if verbose {
        "   UUID                                 Reason"
    } else {
        ""
    };
    out.write(&format!(
        "Name                                        ID   Mem VCPUs\tState\tTime(s){more}\n"
    ));
    for i in &domains {
        let more = match verbose {
            true => format!(
                " {} {}",
                Uuid(i.handle),
                i.shutdown.map_or("-", ShutdownCode::name)
            ),
            false => String::new(),
        };
        out.write(&format!(
            "{:<40} {:>5} {:>5} {:>5}     {}  {:>8}{more}\n",
            t.shown_name(i.dom),
            i.dom.0,
            i.tot_pages / 256,
            i.online_vcpus,
            flags(i),
            seconds(i.cpu_time_ns)
        ));
    }
    Ok(())
}

/// What `list -l` tells beside `list --json`: what it was created with, what it has of that, and what it was given where its
/// configuration left it open.
fn long_json<H: Host>(t: &Toolstack<H>, i: &DomInfo) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("memory_given_kib".to_owned(), json!(i.tot_pages * 4));
    map.insert(
        "memory_target_kib".to_owned(),
        json!(t.memory_target(i.dom)),
    );
    map.insert("disk".to_owned(), Value::Array(block_json(t, i.dom)));
    map.insert("vif".to_owned(), Value::Array(vif_json(t, i.dom)));
    if let Some(config) = t.config_of(i.dom) {
        map.insert("config".to_owned(), config_json(&config));
    }
    map
}

/// A configuration as it was understood.
pub(super) fn config_json(c: &DomainConfig) -> Value {
    let disks: Vec<Value> = c
        .disks
        .iter()
        .map(|d| {
            json!({
                "target": d.target, "format": d.format.to_string(), "vdev": d.vdev, "devid": d.devid,
                "access": if d.read_only { "r" } else { "w" }, "cdrom": d.cdrom,
                "discard": d.discard, "trusted": d.trusted,
            })
        })
        .collect();
    let vifs: Vec<Value> = c
        .vifs
        .iter()
        .map(|v| {
            json!({
                "mac": v.mac.map(|m| m.to_string()), "bridge": v.bridge, "ip": v.ip, "mtu": v.mtu,
                "bytes_per_second": v.rate.map(|r| r.bytes_per_second),
            })
        })
        .collect();
    json!({
        "file": c.file, "name": c.name, "uuid": c.uuid.map(|u| u.to_string()),
        "kernel": c.kernel, "ramdisk": c.ramdisk, "cmdline": c.cmdline,
        "memory": c.memory_mib, "maxmem": c.maxmem_mib, "vcpus": c.vcpus, "maxvcpus": c.maxvcpus,
        "cpus": c.cpus.iter().map(|m| cpu_set(&[*m])).collect::<Vec<_>>(), "cpu_weight": c.cpu_weight,
        "gic_version": c.gic.map(|g| match g { GicVersion::V2 => "v2", GicVersion::V3 => "v3" }),
        "vuart": c.vuart, "disk": disks, "vif": vifs,
        "on_poweroff": c.on_poweroff.name(), "on_reboot": c.on_reboot.name(),
        "on_crash": c.on_crash.name(), "on_watchdog": c.on_watchdog.name(),
        "max_grant_frames": c.max_grant_frames, "max_maptrack_frames": c.max_maptrack_frames,
        "max_event_channels": c.max_event_channels,
    })
}

/// `info`.
pub(super) fn info<H: Host>(t: &Toolstack<H>, c: &Command, out: &mut impl Output) -> Result<()> {
    let p = t.host().phys_info().during("asking for the machine")?;
    let v = t
        .host()
        .version_info()
        .during("asking for the hypervisor's version")?;
    let own = t.host().own_use();
    let rows: Vec<(&str, Value)> = alloc::vec![
        ("machine", json!("aarch64")),
        ("nr_cpus", json!(p.nr_cpus)),
        (
            "cpu_mhz",
            json!(format!("{}.{:03}", p.cpu_khz / 1000, p.cpu_khz % 1000))
        ),
        ("total_memory", json!(p.total_pages / 256)),
        ("free_memory", json!(p.free_pages / 256)),
        ("free_pages", json!(p.free_pages)),
        (
            "control_address",
            json!(own.address.map(|(ip, bits)| format!("{ip}/{bits}")))
        ),
        ("control_event_channels", json!(own.ports)),
        ("control_mapped_pages", json!(own.mapped_pages)),
        ("control_heap_kib", json!(own.heap.1 >> 10)),
        ("control_heap_used_kib", json!(own.heap.0 >> 10)),
        ("xen_major", json!(v.major)),
        ("xen_minor", json!(v.minor)),
        ("xen_extra", json!(v.extra)),
        (
            "xen_version",
            json!(format!("{}.{}{}", v.major, v.minor, v.extra))
        ),
        ("xen_caps", json!(v.capabilities.trim())),
        ("xen_scheduler", json!(v.scheduler)),
        ("xen_pagesize", json!(4096)),
        (
            "platform_params",
            json!(format!("virt_start=0x{:x}", v.virt_start))
        ),
        ("xen_changeset", json!(v.changeset)),
        ("xen_commandline", json!(v.command_line)),
        ("cc_compiler", json!(v.compiler)),
        ("cc_compile_by", json!(v.compile_by)),
        ("cc_compile_domain", json!(v.compile_domain)),
        ("cc_compile_date", json!(v.compile_date)),
    ];
    // All memory is one node's.
    let node = json!([{ "node": 0, "memsize_mib": p.total_pages / 256, "memfree_mib": p.free_pages / 256, "distances": [10] }]);
    if c.has("json") {
        let mut map: Map<String, Value> =
            rows.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        if c.has("numa") {
            map.insert("numa_info".to_owned(), node);
        }
        put_json(out, &Value::Object(map));
        return Ok(());
    }
    for (name, value) in rows {
        let text = match value {
            Value::Null => "-".to_owned(),
            Value::String(text) => text,
            value => value.to_string(),
        };
        out.write(format!("{name:<23}: {text}").trim_end());
        out.write("\n");
    }
    if c.has("numa") {
        out.write(&format!(
            "numa_info              :\nnode:    memsize    memfree    distances\n   0:    {:>7}    {:>7}      10\n",
            p.total_pages / 256,
            p.free_pages / 256
        ));
    }
    Ok(())
}

/// CPUs as `0-3,5`, or `all`.
fn cpu_set(words: &[u64]) -> String {
    if words.iter().all(|w| *w == u64::MAX) {
        return "all".to_owned();
    }
    let has = |cpu: usize| {
        words
            .get(cpu / 64)
            .is_some_and(|w| w >> (cpu % 64) & 1 == 1)
    };
    let mut parts: Vec<String> = Vec::new();
    let mut cpu = 0;
    while cpu < words.len() * 64 {
        let start = cpu;
        while has(cpu) {
            cpu += 1;
        }
        match cpu - start {
            0 => cpu += 1,
            1 => parts.push(start.to_string()),
            _ => parts.push(format!("{start}-{}", cpu - 1)),
        }
    }
    parts.join(",")
}

/// `vcpu-list`.
pub(super) fn vcpu_list<H: Host>(
    t: &Toolstack<H>,
    c: &Command,
    out: &mut impl Output,
) -> Result<()> {
    let nr_cpus = t
        .host()
        .phys_info()
        .during("asking for the machine")?
        .nr_cpus;
    let present = u64::MAX
        .checked_shr(64u32.saturating_sub(nr_cpus.clamp(1, 64)))
        .unwrap_or(u64::MAX);
    let mut all = Vec::new();
    if !c.has("json") {
        out.write(&format!(
            "{:<32} {:>5} {:>5} {:>5} {:>5} {:>9} {}\n",
            "Name", "ID", "VCPU", "CPU", "State", "Time(s)", "Affinity (Hard / Soft)"
        ));
    }
    for i in chosen(t, c)? {
        let name = t.shown_name(i.dom);
        for vcpu in 0..=i.max_vcpu_id {
            // A vcpu that was never made, or a domain that ended meanwhile.
            let Ok(v) = t.host().vcpu_info(i.dom, vcpu) else {
                continue;
            };
            let mut hard = t.host().vcpu_affinity(i.dom, vcpu).unwrap_or_default();
            if hard.first().is_none_or(|w| w & present == present) {
                hard = alloc::vec![u64::MAX];
            }
            let affinity = cpu_set(&hard);
            if c.has("json") {
                all.push(json!({
                    "domid": i.dom.0, "name": name, "vcpu": vcpu, "cpu": v.online.then_some(v.cpu),
                    "online": v.online, "running": v.running, "blocked": v.blocked,
                    "cpu_time_ns": v.cpu_time_ns, "affinity": affinity,
                }));
                continue;
            }
            let (cpu, state) = match v.online {
                false => ("-".to_owned(), "--p".to_owned()),
                true => (
                    v.cpu.to_string(),
                    format!(
                        "{}{}-",
                        if v.running { 'r' } else { '-' },
                        if v.blocked { 'b' } else { '-' }
                    ),
                ),
            };
            out.write(&format!(
                "{name:<32} {:>5} {vcpu:>5} {cpu:>5} {state:>5} {:>9} {affinity} / all\n",
                i.dom.0,
                seconds(v.cpu_time_ns)
            ));
        }
    }
    if c.has("json") {
        put_json(out, &Value::Array(all));
    }
    Ok(())
}

/// How a thing of the machine is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Health {
    Good,
    Doubtful,
    Wrong,
}

/// The machine's network card, and the control domain's address.
fn network(bridges: &[BridgeInfo], address: Option<(IpAddr, u8)>) -> (Health, String) {
    let mut ports = bridges
        .iter()
        .flat_map(|b| b.ports.iter().map(move |p| (b, p)));
    let Some((bridge, card)) = ports.find(|(_, p)| p.name == CARD) else {
        let text = "no card: guests reach each other, not the world".to_owned();
        return (Health::Doubtful, text);
    };
    let mac = card.mac.map_or_else(String::new, |m| format!(" {m}"));
    let link = if card.link { "up" } else { "down" };
    let own = match address {
        Some((ip, bits)) => format!("has {ip}/{bits}"),
        None => "has no address".to_owned(),
    };
    let health = match card.link {
        true => Health::Good,
        false => Health::Doubtful,
    };
    let text = format!("{CARD}{mac}, link {link}, on {}; dom0 {own}", bridge.name);
    (health, text)
}

/// How many lines `doctor` shows of what the last run said before it ended.
const LAST_WORDS: usize = 5;

/// What `doctor` finds, a line each.
fn findings(
    m: &MachineFacts,
    p: &PhysInfo,
    network: (Health, String),
    log: &[u8],
) -> Vec<(&'static str, Health, String)> {
    use Health::{Doubtful, Good, Wrong};
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let mut all = Vec::new();
    let mut add = |what, health, text| all.push((what, health, text));
    let f = m.facts.unwrap_or_default();
    add("board", Good, m.board.clone());
    if m.facts.is_none() {
        let text = "it says nothing of the machine".to_owned();
        add("hypervisor", Doubtful, text);
    } else {
        let kind = match f.uart {
            1 => "PL011",
            2 => "mini-UART",
            _ => "UART",
        };
        match (f.uart, f.uart_intid) {
            (0, _) => add("console", Wrong, "no UART".to_owned()),
            (_, 0) => {
                let text = format!("{kind} at {:#x}, without an interrupt", f.uart_base);
                add("console", Wrong, text);
            }
            (_, intid) => {
                let text = format!("{kind} at {:#x}, interrupt {intid}", f.uart_base);
                add("console", Good, text);
            }
        }
        let text = format!(
            "GICv{}, {} list registers, {} interrupts",
            m.gic, f.list_registers, f.interrupts
        );
        add("interrupts", Good, text);
    }
    if f.last_end != 0 {
        let why = match f.last_end & 255 {
            255 => "the hypervisor panicked",
            3 => "dom0 crashed",
            4 => "dom0 did not renew its watchdog",
            _ => "dom0 stopped",
        };
        let text = format!("{why}, and the machine was reset ({} in a row)", f.crashes);
        add("last run", Doubtful, text);
        let lines: Vec<_> = (log.split(|b| *b == b'\n'))
            .filter_map(|l| l.strip_prefix(b"(PV) | "))
            .collect();
        for line in lines.iter().skip(lines.len().saturating_sub(LAST_WORDS)) {
            let text = String::from_utf8_lossy(line).trim_end().to_owned();
            add("last words", Doubtful, text);
        }
    }
    let found = m.facts.map_or(u64::from(p.nr_cpus), |f| f.cpus);
    let all_run = u64::from(m.started) >= found;
    let more = match f.cpus_left_out {
        0 => String::new(),
        n => format!("; {n} more than the hypervisor takes"),
    };
    add(
        "cpus",
        if all_run { Good } else { Wrong },
        format!("{} of {found} run{more}", m.started),
    );
    let (mhz, rest) = (m.counter_hz / 1_000_000, m.counter_hz / 1000 % 1000);
    let sane = (1..=1000).contains(&mhz);
    let text = format!("{mhz}.{rest:03} MHz");
    add("counter", if sane { Good } else { Doubtful }, text);
    let text = format!(
        "{}, {} of it free",
        mib(p.total_pages * 4096),
        mib(p.free_pages * 4096)
    );
    add("memory", Good, text);
    for &(base, bytes) in &m.memory {
        let reached = f.dma_limit == 0 || base + bytes <= f.dma_limit;
        let limit = match f.dma_limit {
            0 => "all of memory".to_owned(),
            limit => format!("the first {}", mib(limit)),
        };
        let text = format!("{} at {base:#x}; DMA reaches {limit}", mib(bytes));
        add("dom0", if reached { Good } else { Wrong }, text);
    }
    for disk in &m.disks {
        let read_only = if disk.read_only { ", read-only" } else { "" };
        let text = format!(
            "{}: {}, {}{read_only}",
            disk.name,
            disk.kind,
            mib(disk.bytes)
        );
        add("disk", Good, text);
    }
    for trouble in &m.troubles {
        add("disk", Doubtful, trouble.clone());
    }
    match m.volume {
        true => add("guests", Good, "on the disk volume".to_owned()),
        false => {
            let text = "no disk \"volume\" with a FAT32 partition".to_owned();
            add("guests", Wrong, text);
        }
    }
    add("network", network.0, network.1);
    if m.facts.is_some() {
        let health = if f.seed >= 16 { Good } else { Doubtful };
        let text = match f.seed {
            0 => "none from the firmware".to_owned(),
            n => format!("{n} bytes from the firmware"),
        };
        add("seed", health, text);
    }
    all
}

/// `doctor`.
pub(super) fn doctor<H: Host>(t: &Toolstack<H>, c: &Command, out: &mut impl Output) -> Result<()> {
    let m = t.host().machine().during("asking for the machine")?;
    let p = t.host().phys_info().during("asking for the machine")?;
    let network = network(&t.host().bridges(), t.host().own_use().address);
    let log = t.host().read_console(false).unwrap_or_default();
    let all = findings(&m, &p, network, &log);
    let wrong = all.iter().filter(|f| f.1 == Health::Wrong).count();
    if c.has("json") {
        let rows = all.iter().map(|(what, health, text)| {
            let health = match health {
                Health::Good => "good",
                Health::Doubtful => "doubtful",
                Health::Wrong => "wrong",
            };
            json!({ "what": what, "health": health, "text": text })
        });
        put_json(out, &Value::Array(rows.collect()));
    } else {
        for (what, health, text) in &all {
            let mark = match health {
                Health::Good => ' ',
                Health::Doubtful => '?',
                Health::Wrong => '!',
            };
            out.write(&format!("{mark} {what:<11} {text}\n"));
        }
    }
    match wrong {
        0 => Ok(()),
        1 => fail!("one thing is wrong"),
        n => fail!("{n} things are wrong"),
    }
}

/// `uptime`.
pub(super) fn uptime<H: Host>(t: &Toolstack<H>, c: &Command, out: &mut impl Output) -> Result<()> {
    let now = t.host().uptime_ns();
    let mut all = Vec::new();
    if !c.has("json") {
        out.write(&format!("{:<33} {:>4} {}\n", "Name", "ID", "Uptime"));
    }
    for i in chosen(t, c)? {
        let name = t.shown_name(i.dom);
        let up = t
            .created_ns(i.dom)
            .map(|from| now.saturating_sub(from) / 1_000_000_000);
        if c.has("json") {
            all.push(json!({ "domid": i.dom.0, "name": name, "uptime_s": up }));
            continue;
        }
        let shown = up.map_or("-".to_owned(), |s| {
            let (days, hours, minutes, s) = (s / 86400, s / 3600 % 24, s / 60 % 60, s % 60);
            match days {
                0 => format!("{hours:>2}:{minutes:02}:{s:02}"),
                1 => format!("1 day, {hours:>2}:{minutes:02}:{s:02}"),
                n => format!("{n} days, {hours:>2}:{minutes:02}:{s:02}"),
            }
        });
        out.write(&format!("{name:<33} {:>4} {shown}\n", i.dom.0));
    }
    if c.has("json") {
        put_json(out, &Value::Array(all));
    }
    Ok(())
}

/// A number of a device that it may not have yet.
fn number(n: Option<u64>) -> String {
    n.map_or("-1".to_owned(), |n| n.to_string())
}

fn block_json<H: Host>(t: &Toolstack<H>, dom: DomId) -> Vec<Value> {
    let blocks = t.blocks(dom).into_iter();
    let json = |b: BlockState| {
        json!({
            "domid": dom.0, "devid": b.vdev, "vdev": b.name, "target": b.target,
            "access": if b.read_only { "r" } else { "w" }, "backend_domid": b.backend_id,
            "state": b.state, "event_channel": b.event_channel, "ring_ref": b.ring_ref,
            "backend": b.backend,
        })
    };
    blocks.map(json).collect()
}

/// `block-list`.
pub(super) fn block_list<H: Host>(
    t: &Toolstack<H>,
    c: &Command,
    out: &mut impl Output,
) -> Result<()> {
    let guests = super::guests(t, &c.words)?;
    if c.has("json") {
        let all = guests.iter().flat_map(|i| block_json(t, i.dom)).collect();
        put_json(out, &Value::Array(all));
        return Ok(());
    }
    out.write("Vdev  BE  handle state evt-ch ring-ref BE-path\n");
    for i in guests {
        for b in t.blocks(i.dom) {
            out.write(&format!(
                "{:<5} {:<3} {:<6} {:<5} {:<6} {:<8} {}\n",
                b.vdev,
                b.backend_id,
                i.dom.0,
                b.state,
                number(b.event_channel),
                number(b.ring_ref),
                b.backend
            ));
        }
    }
    Ok(())
}

fn vif_json<H: Host>(t: &Toolstack<H>, dom: DomId) -> Vec<Value> {
    let vifs = t.vifs(dom).into_iter();
    let json = |v: VifState| {
        json!({
            "domid": dom.0, "devid": v.devid, "mac": v.mac, "bridge": v.bridge,
            "backend_domid": v.backend_id, "state": v.state,
            "event_channel_tx": v.event_channels.0, "event_channel_rx": v.event_channels.1,
            "tx_ring_ref": v.ring_refs.0, "rx_ring_ref": v.ring_refs.1,
            "backend": v.backend,
        })
    };
    vifs.map(json).collect()
}

/// `network-list`.
pub(super) fn network_list<H: Host>(
    t: &Toolstack<H>,
    c: &Command,
    out: &mut impl Output,
) -> Result<()> {
    let guests = super::guests(t, &c.words)?;
    if c.has("json") {
        let all = guests.iter().flat_map(|i| vif_json(t, i.dom)).collect();
        put_json(out, &Value::Array(all));
        return Ok(());
    }
    out.write("Idx BE Mac Addr.         handle state evt-ch   tx-/rx-ring-ref BE-path\n");
    for i in guests {
        for v in t.vifs(i.dom) {
            let pair = |(a, b): (Option<u64>, Option<u64>)| format!("{}/{}", number(a), number(b));
            out.write(&format!(
                "{:<3} {:<2} {:<17} {:<6} {:<5} {:<8} {:<15} {}\n",
                v.devid,
                v.backend_id,
                v.mac,
                v.devid,
                v.state,
                pair(v.event_channels),
                pair(v.ring_refs),
                v.backend
            ));
        }
    }
    Ok(())
}

/// `sched-credit2`: shows, or sets, shares.
pub(super) fn sched<H: Host>(t: &Toolstack<H>, c: &Command, out: &mut impl Output) -> Result<()> {
    let domains = match c.value("domain") {
        None => t.host().domain_list().during("listing the domains")?,
        Some(name) => alloc::vec![t.find(name)?],
    };
    if let Some(text) = c.value("weight") {
        let weight = crate::text::number(text).and_then(|n| u16::try_from(n).ok());
        let (Some(weight @ 1..), [i], Some(_)) = (weight, domains.as_slice(), c.value("domain"))
        else {
            return fail!("a weight is a number from 1 to 65535, for one domain (-d)");
        };
        return t
            .host()
            .set_weight(i.dom, weight)
            .during(format!("domain {}: setting its weight", i.dom));
    }
    let mut rows = Vec::new();
    for i in &domains {
        let weight = t
            .host()
            .weight(i.dom)
            .during(format!("domain {}: asking for its weight", i.dom))?;
        rows.push((t.shown_name(i.dom), i.dom.0, weight));
    }
    if c.has("json") {
        let row = |(name, dom, weight): &(String, u16, u16)| json!({ "name": name, "domid": dom, "weight": weight });
        put_json(out, &Value::Array(rows.iter().map(row).collect()));
        return Ok(());
    }
    out.write(&format!("{:<33} {:>4} {:>6}\n", "Name", "ID", "Weight"));
    for (name, dom, weight) in rows {
        out.write(&format!("{name:<33} {dom:>4} {weight:>6}\n"));
    }
    Ok(())
}

/// `bridge-list`.
pub(super) fn bridge_list<H: Host>(t: &Toolstack<H>, c: &Command, out: &mut impl Output) {
    let bridges = t.host().bridges();
    if c.has("json") {
        let port = |p: &BridgePort| {
            json!({
                "port": p.name, "domid": p.guest.map(|g| g.0.0), "devid": p.guest.map(|g| g.1),
                "mac": p.mac.map(|m| m.to_string()), "link": p.link,
                "in": { "frames": p.came.0, "bytes": p.came.1, "refused": p.refused },
                "out": { "frames": p.went.0, "bytes": p.went.1, "dropped": p.dropped },
                "macs": p.macs.iter().map(ToString::to_string).collect::<Vec<_>>(),
            })
        };
        let bridge = |b: &BridgeInfo| {
            let ports: Vec<Value> = b.ports.iter().map(port).collect();
            json!({ "name": b.name, "ports": ports })
        };
        put_json(out, &Value::Array(bridges.iter().map(bridge).collect()));
        return;
    }
    out.write("Bridge          Port     Mac Addr.         Link  In: frames / bytes / refused     Out: frames / bytes / dropped\n");
    for b in bridges {
        if b.ports.is_empty() {
            out.write(&format!("{:<15} -\n", b.name));
        }
        for p in b.ports {
            let came = format!("{} / {} / {}", p.came.0, p.came.1, p.refused);
            out.write(&format!(
                "{:<15} {:<8} {:<17} {:<5} {came:<32} {} / {} / {}\n",
                b.name,
                p.name,
                p.mac.map_or_else(|| "-".into(), |m| m.to_string()),
                if p.link { "up" } else { "down" },
                p.went.0,
                p.went.1,
                p.dropped,
            ));
        }
    }
}
