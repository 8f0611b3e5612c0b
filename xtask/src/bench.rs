// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bench`: what operations cost in instructions, counted by the guest `bench` on Paravane and on the real
//! Xen, beside the budgets. The figures that hold are in docs/bench.json; docs/BENCH.md shows them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use regex::Regex;
use serde_json::{Value, json};

use crate::build::{self, Built};
use crate::machine::BOARDS;
use crate::project::{Project, write_atomic};
use crate::rig::{Domain, Hypervisor, Rig, Served};
use crate::setup;
use crate::xen;

#[derive(clap::Args)]
pub struct Args {
    /// Count larger operations, by Linux guests, in place of the single ones
    #[arg(long, conflicts_with = "check")]
    spans: bool,
    /// Run on the real Xen too (downloaded once, 66 MB with the Linux that serves its guests), not only on Paravane
    #[arg(long, value_enum)]
    on: Option<Hypervisor>,
    /// Write the rows as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fail when a row is more than 5 % above docs/bench.json
    #[arg(long, conflicts_with = "update")]
    check: bool,
    /// Write docs/bench.json (with --spans docs/spans.json) and the table of docs/BENCH.md
    #[arg(long)]
    update: bool,
}

/// One operation.
struct Operation {
    /// As the guest names it.
    key: &'static str,
    label: &'static str,
    /// What Paravane is to cost at most.
    budget: f64,
    /// What of a measured figure is not the operation: see [`Kind`].
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Instructions for each time.
    Each,
    /// Percent above the instructions of the loop itself.
    Overhead,
    /// Bytes.
    Bytes,
}

/// The loop of the row `compute`, in instructions.
const COMPUTE: f64 = 80e6;

const fn op(key: &'static str, label: &'static str, budget: u32) -> Operation {
    Operation {
        key,
        label,
        budget: budget as f64,
        kind: Kind::Each,
    }
}

const OPERATIONS: &[Operation] = &[
    op("null", "xen_version (null hypercall)", 140),
    op("unknown", "unknown hypercall, -ENOSYS", 130),
    op("psci", "PSCI_VERSION by hvc", 200),
    op("gicd", "trapped GICD_CTLR read", 250),
    op("vpl011", "vpl011 flag register read", 250),
    op("cntp_cval", "trapped CNTP_CVAL write", 200),
    op("get_param", "hvm_op get_param (copy in and out)", 400),
    op(
        "get_features",
        "xen_version get_features (copy in and out)",
        400,
    ),
    op("yield", "sched_op yield, alone on the CPU", 500),
    op(
        "send_pending",
        "evtchn send, remote masked, already pending",
        260,
    ),
    op("send_fresh", "evtchn send, remote masked, fresh", 300),
    op(
        "upcall",
        "evtchn send to self, upcall taken and handled",
        600,
    ),
    op("sgi", "SGI to self, handled", 500),
    op("timer", "virtual timer fires, handled", 500),
    op("copy_refs", "grant copy 64 B ref to ref", 1_000),
    op("copy_64", "grant copy 64 B gfn to ref", 900),
    op("copy_4096", "grant copy 4 KiB gfn to ref", 1_500),
    op("copy_16", "16 grant copies of 64 B in one call", 5_000),
    op("map_unmap", "grant map + unmap of one page", 1_600),
    op("decrease", "decrease_reservation of one page", 900),
    op("populate", "populate_physmap of one page", 900),
    op(
        "ipi",
        "IPI ping-pong, two vcpus on one CPU, round trip",
        3_500,
    ),
    op(
        "domains",
        "event ping-pong, two domains on one CPU, round trip",
        3_500,
    ),
    op(
        "timer_wfi",
        "timer of 10 µs, WFI: awake after the deadline",
        2_000,
    ),
    op(
        "frame_60",
        "frame of 60 bytes to another guest, 32 at a time",
        6_000,
    ),
    op(
        "frame_1514",
        "frame of 1,514 bytes to another guest, 32 at a time",
        11_000,
    ),
    op(
        "frame_trip",
        "frame of 60 bytes to another guest and an answer",
        34_900,
    ),
    op("cntv_cval", "CNTV_CVAL write (not trapped)", 1),
    op("gicc_pmr", "GICC_PMR read (not trapped)", 1),
    op("wfi", "WFI with an interrupt pending (not trapped)", 1),
    Operation {
        key: "compute",
        label: "compute loop of 80 million instructions, overhead in %",
        budget: 0.005,
        kind: Kind::Overhead,
    },
    Operation {
        key: "image",
        label: "hypervisor image, bytes",
        budget: 262_144.0,
        kind: Kind::Bytes,
    },
];

/// A growth above this share fails [`Args::check`].
const GROWTH: f64 = 0.05;

/// Figures in the order of [`OPERATIONS`].
type Column = Vec<f64>;

/// Where the figures that hold are.
fn committed(project: &Project) -> PathBuf {
    project.root.join("docs/bench.json")
}

pub fn main(project: &Project, args: &Args) -> Result<ExitCode> {
    setup::ensure(project, &BOARDS[0])?;
    let built = build::build(project, &build::Args::default())?;
    if args.spans {
        crate::spans::main(project, &built, args.on, args.json.as_deref(), args.update)?;
        return Ok(ExitCode::SUCCESS);
    }
    let paravane = measure(project, &built, Hypervisor::Paravane)?;
    let old = read(project);
    let xen = if args.on == Some(Hypervisor::Xen) {
        Some(measure(project, &built, Hypervisor::Xen)?)
    } else {
        old.as_ref().ok().and_then(|old| old.column("xen"))
    };
    let version = if args.on == Some(Hypervisor::Xen) {
        xen::image(project)?.1
    } else {
        old.as_ref()
            .map_or_else(|_| String::new(), |old| old.xen_version.clone())
    };
    print!("{}", table(&paravane, xen.as_ref(), false));
    println!("{}", conditions(&version));
    let rows = document(&paravane, xen.as_ref(), &version);
    if let Some(file) = &args.json {
        write_atomic(file, &serde_json::to_vec_pretty(&rows)?)?;
    }
    if args.update {
        let mut text = serde_json::to_string_pretty(&rows)?;
        text.push('\n');
        write_atomic(&committed(project), text.as_bytes())?;
        update_page(project, "bench", &table(&paravane, xen.as_ref(), true))?;
    }
    if args.check {
        check(&old?, &paravane)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the bench on Paravane and fails when it costs more than what is committed.
pub fn check_committed(project: &Project, built: &Built) -> Result<()> {
    check(
        &read(project)?,
        &measure(project, built, Hypervisor::Paravane)?,
    )
}

fn check(old: &Committed, new: &Column) -> Result<()> {
    let old = old
        .column("paravane")
        .context("docs/bench.json lacks a row: `cargo xtask bench --on xen --update`")?;
    let grown: Vec<String> = OPERATIONS
        .iter()
        .zip(old.iter().zip(new))
        .filter(|(op, (old, new))| round(**new, op.kind) > **old * (1.0 + GROWTH))
        .map(|(op, (old, new))| {
            format!(
                "{}: {} -> {}",
                op.label,
                show_as(*old, op.kind),
                show_as(*new, op.kind)
            )
        })
        .collect();
    ensure!(
        grown.is_empty(),
        "above docs/bench.json by more than 5 %:\n  {}\nIf that is meant, say why and run `cargo xtask bench --update`",
        grown.join("\n  ")
    );
    Ok(())
}

/// Runs the guests and reads their rows.
fn measure(project: &Project, built: &Built, on: Hypervisor) -> Result<Column> {
    let name = on.name();
    println!("counting on {name} ...");
    std::io::stdout().flush()?;
    let image = project.path("build/bench.bin");
    let rig = Rig {
        project,
        built,
        gic: 2,
        cpus: 1,
        icount: true,
        world: None,
        log: project.dir("bench")?.join(format!("{name}.log")),
        bound: Duration::from_secs(200),
    };
    let domains = [
        Domain {
            name: "bench",
            image: &image,
            command_line: "own=1 peer=2",
            vcpus: 2,
            memory: 32,
        },
        Domain {
            name: "echo",
            image: &image,
            command_line: "echo=1",
            vcpus: 1,
            memory: 16,
        },
    ];
    let text = rig
        .start(on, &domains)?
        .report(&rig, "bench", "failed|status|no second")?;
    let frames = frames(&rig, on, &image)?;
    rows(&(text + &frames), hypervisor_size(project, built, on)?)
}

/// Counts frames between two domains, on a bridge of the control domain's.
fn frames(rig: &Rig<'_>, on: Hypervisor, image: &Path) -> Result<String> {
    let guest = |name, command_line, macs| Served {
        domain: Domain {
            name,
            image,
            command_line,
            vcpus: 1,
            memory: 32,
        },
        ramdisk: None,
        disks: &[],
        macs,
    };
    let guests = [
        guest("bench", "role=sends", &["00:16:3e:00:00:01"]),
        guest("echo", "role=answers", &["00:16:3e:00:00:02"]),
    ];
    rig.start_served(on, &guests)?
        .report(rig, "bench", "failed")
}

fn hypervisor_size(project: &Project, built: &Built, on: Hypervisor) -> Result<u64> {
    Ok(match on {
        Hypervisor::Paravane => fs::metadata(&built.hypervisor)?.len() - built.names.size,
        Hypervisor::Xen => fs::metadata(xen::image(project)?.0)?.len(),
    })
}

/// The figures from what the guest printed.
fn rows(text: &str, image: u64) -> Result<Column> {
    let number = |pattern: &str| -> Result<Option<(f64, f64)>> {
        let found = Regex::new(pattern)?.captures(text);
        Ok(found.map(|c| {
            let part = |i: usize| {
                c.get(i)
                    .map_or(1.0, |m| m.as_str().parse().unwrap_or(f64::NAN))
            };
            (part(1), part(2))
        }))
    };
    let (hz, _) =
        number(r"bench: (\d+) ticks per second")?.context("the guest names no frequency")?;
    OPERATIONS
        .iter()
        .map(|op| {
            if op.kind == Kind::Bytes {
                return Ok(image as f64);
            }
            let row = number(&format!(r"row {} (\d+) (\d+)", op.key))?;
            let Some((ticks, times)) = row else {
                bail!("the guest has no row {}", op.key)
            };
            // A nanosecond is an instruction.
            let instructions = ticks * 1e9 / hz / times;
            Ok(match op.kind {
                Kind::Overhead => ((instructions / COMPUTE - 1.0) * 100.0).max(0.0),
                _ => instructions,
            })
        })
        .collect()
}

fn show_as(figure: f64, kind: Kind) -> String {
    match kind {
        Kind::Overhead => format!("{figure:.4}"),
        _ => show(figure),
    }
}

/// A figure with its thousands apart.
pub fn show(figure: f64) -> String {
    if figure < 10.0 {
        return format!("{figure:.1}");
    }
    let digits = format!("{figure:.0}");
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The table, for people or for the page.
fn table(paravane: &Column, xen: Option<&Column>, markdown: bool) -> String {
    let mut text = if markdown {
        "| operation | Paravane | Xen 4.17 | Paravane / Xen | budget |\n|---|---:|---:|---:|---:|\n"
            .to_owned()
    } else {
        format!(
            "{:<56} {:>10} {:>10} {:>6} {:>10}\n",
            "operation", "Paravane", "Xen 4.17", "ratio", "budget"
        )
    };
    for (i, op) in OPERATIONS.iter().enumerate() {
        let own = paravane.get(i).copied().unwrap_or(f64::NAN);
        let theirs = xen.and_then(|xen| xen.get(i).copied());
        let ratio = match theirs {
            Some(theirs) if theirs > 0.0 => format!("{:.2}", own / theirs),
            _ => "-".to_owned(),
        };
        let theirs = theirs.map_or_else(|| "-".to_owned(), |v| show_as(v, op.kind));
        let over = if own > 2.0 * op.budget {
            "**"
        } else if own > op.budget * 1.05 {
            "*"
        } else {
            ""
        };
        let budget = if op.kind == Kind::Overhead {
            format!("{:.3}", op.budget)
        } else {
            show_as(op.budget, Kind::Bytes)
        };
        text += &if markdown {
            let over = over.replace('*', "\\*");
            format!(
                "| {} | {}{over} | {theirs} | {ratio} | {budget} |\n",
                op.label,
                show_as(own, op.kind)
            )
        } else {
            format!(
                "{:<56} {:>10} {theirs:>10} {ratio:>6} {budget:>10} {over}\n",
                op.label,
                show_as(own, op.kind)
            )
        };
    }
    text
}

fn conditions(version: &str) -> String {
    format!(
        "Instructions as the guest counts them, its loop included: virtual counter under QEMU's -icount shift=0,sleep=off,\n\
         virt with GICv2, one cortex-a72, 1 GiB; one domain with 2 vcpus and one with 1 (frames: 2 GiB, two with 1). * above\n\
         the budget, ** above twice. Xen: {}; frames with a Linux 6.1 dom0.",
        if version.is_empty() {
            "not run"
        } else {
            version
        }
    )
}

/// A figure as docs/bench.json has it: what a tick of the counter more or less makes of it does not show.
fn round(figure: f64, kind: Kind) -> f64 {
    match kind {
        Kind::Overhead => (figure * 1e4).round() / 1e4,
        Kind::Each => (figure * 10.0).round() / 10.0,
        Kind::Bytes => figure.round(),
    }
}

fn document(paravane: &Column, xen: Option<&Column>, version: &str) -> Value {
    let figure = |v: f64, kind: Kind| match kind {
        Kind::Bytes => json!(v as u64),
        _ => json!(round(v, kind)),
    };
    let rows: Vec<Value> = OPERATIONS
        .iter()
        .enumerate()
        .map(|(i, op)| {
            json!({
                "op": op.label,
                "paravane": figure(paravane.get(i).copied().unwrap_or(f64::NAN), op.kind),
                "xen": xen.and_then(|xen| xen.get(i)).map(|v| figure(*v, op.kind)),
                "budget": if op.kind == Kind::Overhead { json!(op.budget) } else { json!(op.budget as u64) },
            })
        })
        .collect();
    json!({ "conditions": conditions(version), "xen_version": version, "rows": rows })
}

/// docs/bench.json.
struct Committed {
    xen_version: String,
    rows: Value,
}

fn read(project: &Project) -> Result<Committed> {
    let file = committed(project);
    let text = fs::read(&file).with_context(|| format!("cannot read {}", project.show(&file)))?;
    let mut value: Value = serde_json::from_slice(&text)
        .with_context(|| format!("{} is no JSON", project.show(&file)))?;
    Ok(Committed {
        xen_version: value["xen_version"].as_str().unwrap_or_default().to_owned(),
        rows: value["rows"].take(),
    })
}

impl Committed {
    /// A column, if it has every operation.
    fn column(&self, name: &str) -> Option<Column> {
        let rows = self.rows.as_array()?;
        OPERATIONS
            .iter()
            .map(|op| rows.iter().find(|row| row["op"] == op.label)?[name].as_f64())
            .collect()
    }
}

/// Puts the table that a command makes between its marks of docs/BENCH.md.
pub fn update_page(project: &Project, command: &str, table: &str) -> Result<()> {
    let begin = format!("<!-- table: cargo xtask {command} --update -->\n");
    const END: &str = "<!-- end of table -->";
    let file = project.root.join("docs/BENCH.md");
    let text = fs::read_to_string(&file)
        .with_context(|| format!("cannot read {}", project.show(&file)))?;
    let (head, rest) = text
        .split_once(&begin)
        .context("docs/BENCH.md has no mark for its table")?;
    let (_, tail) = rest
        .split_once(END)
        .context("docs/BENCH.md has no mark for its table's end")?;
    write_atomic(&file, format!("{head}{begin}{table}{END}{tail}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(figure: f64) -> Column {
        vec![figure; OPERATIONS.len()]
    }

    #[test]
    fn rows_are_read() {
        let mut text = "bench: 62500000 ticks per second\n".to_owned();
        for op in OPERATIONS {
            let ticks = if op.key == "compute" { 5_001_000 } else { 100 };
            let times = if op.key == "compute" { 1 } else { 10 };
            text += &format!("row {} {ticks} {times}\n", op.key);
        }
        let rows = rows(&text, 7).unwrap();
        assert_eq!(rows.first(), Some(&160.0));
        assert_eq!(rows.last(), Some(&7.0));
        assert!((rows[rows.len() - 2] - 0.02).abs() < 1e-9);
        assert!(super::rows("bench: 62500000 ticks per second", 0).is_err());
    }

    #[test]
    fn growth_is_found() {
        let old = Committed {
            xen_version: String::new(),
            rows: document(&column(100.0), None, "")["rows"].take(),
        };
        assert!(check(&old, &column(104.0)).is_ok());
        let error = check(&old, &column(106.0)).unwrap_err().to_string();
        assert!(error.contains("null hypercall"), "{error}");
        let none = Committed {
            xen_version: String::new(),
            rows: document(&column(0.0), None, "")["rows"].take(),
        };
        assert!(check(&none, &column(0.000_02)).is_ok(), "a tick");
        assert!(check(&none, &column(0.06)).is_err());
        assert!(old.column("xen").is_none());
    }

    #[test]
    fn figures_are_shown() {
        assert_eq!(show_as(1_234_567.4, Kind::Bytes), "1,234,567");
        assert_eq!(show_as(194.04, Kind::Each), "194");
        assert_eq!(show_as(0.02551, Kind::Overhead), "0.0255");
    }
}
