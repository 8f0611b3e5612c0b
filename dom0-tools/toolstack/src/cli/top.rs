// SPDX-License-Identifier: MIT OR Apache-2.0
//! `top`: what domains use, between two looks at them.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde_json::{Value, json};

use super::show;
use super::verbs::Command;
use crate::error::{Context, Result, fail};
use crate::host::{DomInfo, Host, Output, PhysInfo, Size};
use crate::life::Toolstack;
use crate::race::{First, first};
use crate::text;

/// How long the two looks lie apart where nobody says.
const DELAY_S: u64 = 2;
/// Ctrl-C.
const INTERRUPT: u8 = 3;
/// A terminal that does not tell its size.
const USUAL: Size = Size {
    rows: 24,
    columns: 80,
};

/// One look.
struct Look {
    at_ns: u64,
    /// A domain's time on CPUs in nanoseconds, and bytes that it sent and got.
    used: BTreeMap<u16, (u64, u64, u64)>,
    domains: Vec<DomInfo>,
}

/// A domain between two looks.
struct Row {
    info: DomInfo,
    name: String,
    /// Tenths of a percent of one CPU.
    permille: u64,
    sent: u64,
    got: u64,
    vifs: usize,
    vbds: usize,
}

fn look<H: Host>(t: &Toolstack<H>) -> Result<Look> {
    let domains = t.host().domain_list().during("listing the domains")?;
    let mut used: BTreeMap<u16, (u64, u64, u64)> = domains
        .iter()
        .map(|i| (i.dom.0, (i.cpu_time_ns, 0, 0)))
        .collect();
    for port in t.host().bridges().iter().flat_map(|b| &b.ports) {
        if let Some((_, sent, got)) = port.guest.and_then(|(dom, _)| used.get_mut(&dom.0)) {
            *sent += port.came.1;
            *got += port.went.1;
        }
    }
    Ok(Look {
        at_ns: t.host().uptime_ns(),
        used,
        domains,
    })
}

/// What lies between two looks, the busiest first. A domain that is new was created between them: all of its time counts.
fn rows<H: Host>(t: &Toolstack<H>, before: &Look, now: &Look) -> Vec<Row> {
    let passed = now.at_ns.saturating_sub(before.at_ns).max(1);
    let row = |info: &DomInfo| {
        let id = info.dom.0;
        let cpu = |look: &Look| look.used.get(&id).map_or(0, |u| u.0);
        let ran = cpu(now).saturating_sub(cpu(before));
        let (_, sent, got) = now.used.get(&id).copied().unwrap_or_default();
        Row {
            name: t.shown_name(info.dom),
            permille: ran.saturating_mul(1000) / passed,
            sent,
            got,
            vifs: t.vifs(info.dom).len(),
            vbds: t.blocks(info.dom).len(),
            info: info.clone(),
        }
    };
    let mut rows: Vec<Row> = now.domains.iter().map(row).collect();
    rows.sort_by_key(|r| (core::cmp::Reverse(r.permille), r.info.dom.0));
    rows
}

fn json(r: &Row) -> Value {
    json!({
        "domid": r.info.dom.0, "name": r.name, "state": show::state(&r.info),
        "cpu_time_ns": r.info.cpu_time_ns,
        "cpu_percent": r.permille as f64 / 10.0,
        "memory_kib": r.info.tot_pages * 4, "max_memory_kib": r.info.max_pages * 4,
        "vcpus": r.info.online_vcpus, "vifs": r.vifs, "vbds": r.vbds,
        "bytes_sent": r.sent, "bytes_received": r.got,
    })
}

/// The screen's lines, xentop's columns in the order of what matters on a narrow one.
fn lines(rows: &[Row], p: &PhysInfo, now_ns: u64) -> Vec<String> {
    let up = now_ns / 1_000_000_000;
    let count = |state: &str| {
        rows.iter()
            .filter(|r| show::state(&r.info) == state)
            .count()
    };
    let mut all = alloc::vec![
        format!(
            "up {}:{:02}:{:02}  {} domains: {} running, {} blocked, {} paused, {} crashed",
            up / 3600,
            up / 60 % 60,
            up % 60,
            rows.len(),
            count("running"),
            count("blocked"),
            count("paused"),
            count("crashed"),
        ),
        format!(
            "Mem: {}k total, {}k free    CPUs: {}",
            p.total_pages * 4,
            p.free_pages * 4,
            p.nr_cpus
        ),
        "NAME         STATE  CPU(s) CPU(%)   MEM(k) MEM(%) VCPUS NETTX(k) NETRX(k) NETS VBDS"
            .into(),
    ];
    for r in rows {
        let memory = r.info.tot_pages * 1000 / p.total_pages.max(1);
        let name: String = r.name.chars().take(12).collect();
        all.push(format!(
            "{name:<12} {} {:>6} {:>4}.{} {:>8} {:>4}.{} {:>5} {:>8} {:>8} {:>4} {:>4}",
            show::flags(&r.info),
            r.info.cpu_time_ns / 1_000_000_000,
            r.permille / 10,
            r.permille % 10,
            r.info.tot_pages * 4,
            memory / 10,
            memory % 10,
            r.info.online_vcpus,
            r.sent >> 10,
            r.got >> 10,
            r.vifs,
            r.vbds,
        ));
    }
    all
}

/// `top`.
pub(super) async fn top<H: Host>(
    t: &Toolstack<H>,
    c: &Command,
    out: &mut impl Output,
) -> Result<()> {
    let delay_s = match c.value("delay") {
        None => DELAY_S,
        Some(word) => match text::number(word).filter(|s| (1..=3600).contains(s)) {
            Some(seconds) => seconds,
            None => return fail!("\"{word}\" is no number of seconds from 1 to 3600"),
        },
    };
    let once = c.has("once") || c.has("json");
    let mut before = look(t)?;
    if once {
        if let First::A(()) = first(out.interrupted(), t.host().sleep_ms(delay_s * 1000)).await {
            return fail!("interrupted");
        }
        let now = look(t)?;
        let rows = rows(t, &before, &now);
        if c.has("json") {
            let all = Value::Array(rows.iter().map(json).collect());
            out.write(&format!("{}\n", show::pretty(&all)));
            return Ok(());
        }
        let p = t.host().phys_info().during("asking for the machine")?;
        for line in lines(&rows, &p, now.at_ns) {
            out.write(&format!("{line}\n"));
        }
        return Ok(());
    }
    out.write("\x1b[2J");
    // What there is at once is since the domains' creation; all that follows is between two looks.
    before.used.clear();
    before.at_ns = 0;
    loop {
        let now = look(t)?;
        let rows = rows(t, &before, &now);
        let p = t.host().phys_info().during("asking for the machine")?;
        let size = out.size().unwrap_or(USUAL);
        let (height, width) = (usize::from(size.rows), usize::from(size.columns));
        out.write("\x1b[H");
        for line in lines(&rows, &p, now.at_ns)
            .iter()
            .take(height.saturating_sub(2).max(1))
        {
            let line: String = line.chars().take(width).collect();
            out.write(&format!("{line}\x1b[K\n"));
        }
        out.write("\x1b[Jq leaves");
        out.flush().await;
        before = now;
        if let First::A(b'q' | b'Q' | INTERRUPT) =
            first(out.key(), t.host().sleep_ms(delay_s * 1000)).await
        {
            out.write("\r\x1b[K");
            return Ok(());
        }
    }
}
