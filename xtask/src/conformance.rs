// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask conformance`: the guest `conformance` tries, case by case, what a hypervisor does; what the real Xen does
//! is the expectation, recorded in tests/conformance. A difference must be in docs/CONFORMANCE.md, with its reason.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::build::{self, Built};
use crate::machine::BOARDS;
use crate::project::{Project, write_atomic};
use crate::rig::{Domain, Hypervisor, PvDisk, Rig, Served, Started};
use crate::setup;
use crate::xen;

#[derive(clap::Args)]
pub struct Args {
    /// Run on the real Xen too (downloaded once, 66 MB with the Linux that serves its guests), and compare with what it
    /// does now
    #[arg(long, value_enum)]
    on: Option<Hypervisor>,
    /// Write what Xen did as the expectation
    #[arg(long)]
    record: bool,
    /// Only the hypervisor, with this version of the interrupt controller (else both)
    #[arg(long, value_name = "2|3")]
    gic: Option<u32>,
    /// Only one part: gicv2, gicv3, races, or served (what a control domain serves)
    #[arg(long, conflicts_with = "gic")]
    only: Option<String>,
    /// Show every case, not only those that differ
    #[arg(long)]
    all: bool,
}

/// What is run at one time.
#[derive(Clone, Copy, PartialEq)]
pub enum Part {
    /// The hypervisor, with this version of the interrupt controller.
    Gic(u32),
    /// Two domains that make and bind channels to each other at the same time.
    Races,
    /// What a control domain serves.
    Served,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Gic(2), Self::Gic(3), Self::Races, Self::Served];

    /// As files and people name it.
    pub fn name(self) -> String {
        match self {
            Self::Gic(gic) => format!("gicv{gic}"),
            Self::Races => "races".to_owned(),
            Self::Served => "served".to_owned(),
        }
    }
}

/// Results by case, in the order in which they were printed.
type Results = Vec<(String, String)>;

pub fn main(project: &Project, args: &Args) -> Result<ExitCode> {
    ensure!(
        !args.record || args.on == Some(Hypervisor::Xen),
        "--record writes what Xen does: give --on xen"
    );
    setup::ensure(project, &BOARDS[0])?;
    let built = build::build(project, &build::Args::default())?;
    let mut wrong = 0;
    let only = match (args.gic, &args.only) {
        (Some(gic), _) => Some(format!("gicv{gic}")),
        (None, only) => only.clone(),
    };
    if let Some(only) = &only {
        ensure!(
            Part::ALL.iter().any(|part| part.name() == *only),
            "there is no part {only}"
        );
    }
    for part in Part::ALL
        .into_iter()
        .filter(|part| only.as_ref().is_none_or(|only| *only == part.name()))
    {
        let paravane = run(project, &built, Hypervisor::Paravane, part)?;
        let xen = if args.on == Some(Hypervisor::Xen) {
            let xen = run(project, &built, Hypervisor::Xen, part)?;
            if args.record {
                record(project, part, &xen)?;
            }
            xen
        } else {
            recorded(project, part)?
        };
        let report = compare(&paravane, &xen, &accepted(project)?);
        print!("{}", report.text(args.all));
        println!("{}: {}", part.name(), report.summary());
        wrong += report.wrong();
    }
    Ok(if wrong == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs the suite on Paravane, for the tests: every difference must be accepted.
pub fn check(project: &Project, built: &Built, part: Part) -> Result<()> {
    let paravane = run(project, built, Hypervisor::Paravane, part)?;
    let report = compare(&paravane, &recorded(project, part)?, &accepted(project)?);
    ensure!(
        report.wrong() == 0,
        "{}\n{}",
        report.summary(),
        report.text(false)
    );
    println!("  {}: {}", part.name(), report.summary());
    Ok(())
}

fn run(project: &Project, built: &Built, on: Hypervisor, part: Part) -> Result<Results> {
    let name = on.name();
    println!("trying {name}, {} ...", part.name());
    std::io::stdout().flush()?;
    let rig = Rig {
        project,
        built,
        gic: match part {
            Part::Gic(gic) => gic,
            Part::Races | Part::Served => 2,
        },
        cpus: if part == Part::Races { 2 } else { 1 },
        icount: false,
        world: None,
        log: project
            .dir("conformance")?
            .join(format!("{name}-{}.log", part.name())),
        bound: Duration::from_secs(240),
    };
    let image = project.path("build/conformance.bin");
    let started = match part {
        Part::Gic(_) => rig.start(on, &domains(on, &image))?,
        Part::Races => rig.start(on, &racers(&image))?,
        Part::Served => served(&rig, on, &image)?,
    };
    parse(&started.report(&rig, "conformance", "failed")?)
}

/// The domains that try the hypervisor.
fn domains(on: Hypervisor, image: &Path) -> [Domain<'_>; 2] {
    [
        Domain {
            name: "suite",
            image,
            command_line: match on {
                Hypervisor::Paravane => "own=1 peer=2",
                Hypervisor::Xen => "own=1 peer=2 spare=1",
            },
            vcpus: 2,
            memory: 32,
        },
        Domain {
            name: "peer",
            image,
            command_line: "peer=1 role=peer",
            vcpus: 1,
            memory: 16,
        },
    ]
}

/// The domains that try channels at the same time.
fn racers(image: &Path) -> [Domain<'_>; 2] {
    let racer = |name, command_line| Domain {
        name,
        image,
        command_line,
        vcpus: 1,
        memory: 16,
    };
    [
        racer("race", "own=1 peer=2 role=race"),
        racer("racer", "own=2 peer=1 role=racer"),
    ]
}

/// Starts the domains that try what a control domain serves.
fn served(rig: &Rig<'_>, on: Hypervisor, image: &Path) -> Result<Started> {
    let file = rig.project.dir("conformance")?.join("disk.img");
    write_atomic(&file, &disk())?;
    let disk = |vdev, read_only| PvDisk {
        vdev,
        file: Some(&file),
        read_only,
    };
    // One to try, and seven that end.
    let macs = [0, 1, 2, 3, 4, 5, 6, 7].map(|n| format!("00:16:3e:00:00:{:02x}", 0x10 + n));
    rig.start_served(
        on,
        &[
            Served {
                domain: Domain {
                    name: "suite",
                    image,
                    command_line: "role=served",
                    vcpus: 1,
                    memory: 32,
                },
                ramdisk: None,
                disks: &[disk("xvda", false), disk("xvdb", true)],
                macs: &macs.each_ref().map(String::as_str),
            },
            // It answers frames.
            Served {
                domain: Domain {
                    name: "echo",
                    image: &rig.project.path("build/bench.bin"),
                    command_line: "role=answers",
                    vcpus: 1,
                    memory: 16,
                },
                ramdisk: None,
                disks: &[],
                macs: &["00:16:3e:00:00:20"],
            },
        ],
    )
}

/// A disk of 4,096 sectors, each full of its own number.
fn disk() -> Vec<u8> {
    (0..4096_u32)
        .flat_map(|sector| sector.to_le_bytes().repeat(128))
        .collect()
}

/// The cases in what the guest printed.
fn parse(text: &str) -> Result<Results> {
    let mut results = Results::new();
    // Paravane shows what a guest prints in pieces of 79 columns.
    let mut joined: Vec<String> = Vec::new();
    let mut full = false;
    for line in text.lines() {
        let rest = line
            .split_once(") ")
            .filter(|(guest, text)| guest.starts_with("(d") && !text.starts_with("case "));
        match (rest, joined.last_mut()) {
            (Some((_, rest)), Some(before)) if full => before.push_str(rest),
            _ => joined.push(line.to_owned()),
        }
        full = line.len() == 79;
    }
    for line in &joined {
        let Some((_, case)) = line.split_once("case ") else {
            continue;
        };
        let (name, result) = case
            .split_once(" = ")
            .with_context(|| format!("no result in {line:?}"))?;
        ensure!(
            results.iter().all(|(other, _)| other != name),
            "two cases are named {name}"
        );
        results.push((name.to_owned(), result.trim_end().to_owned()));
    }
    Ok(results)
}

fn file(project: &Project, part: Part) -> PathBuf {
    project
        .root
        .join(format!("tests/conformance/xen-4.17-{}.tsv", part.name()))
}

fn record(project: &Project, part: Part, xen: &Results) -> Result<()> {
    let (_, version) = xen::image(project)?;
    let mut text = format!(
        "# Xen {version} of Debian 12, virt, {}; cargo xtask conformance --on xen --record\n",
        part.name()
    );
    for (name, result) in xen {
        writeln!(text, "{name}\t{result}")?;
    }
    let file = file(project, part);
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    write_atomic(&file, text.as_bytes())
}

fn recorded(project: &Project, part: Part) -> Result<Results> {
    let file = file(project, part);
    let text = fs::read_to_string(&file)
        .with_context(|| format!("cannot read {}", project.show(&file)))?;
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, result) = line
                .split_once('\t')
                .with_context(|| format!("no tab in {line:?}"))?;
            Ok((name.to_owned(), result.to_owned()))
        })
        .collect()
}

/// The differences that docs/CONFORMANCE.md lists: patterns of names (`*` for anything), and why.
fn accepted(project: &Project) -> Result<Vec<String>> {
    let file = project.root.join("docs/CONFORMANCE.md");
    let text = fs::read_to_string(&file)
        .with_context(|| format!("cannot read {}", project.show(&file)))?;
    Ok(patterns(&text))
}

fn patterns(page: &str) -> Vec<String> {
    page.lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split_once('|'))
        .flat_map(|(names, _)| {
            names
                .split('`')
                .filter(|name| !name.trim_matches([' ', ',']).is_empty())
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect()
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.get(at..).is_some_and(|rest| matches(tail, rest)))
        }),
    }
}

struct Row {
    name: String,
    paravane: String,
    xen: String,
    accepted: bool,
}

struct Report {
    rows: Vec<Row>,
    /// Accepted differences that nothing differs by.
    unused: Vec<String>,
}

fn compare(paravane: &Results, xen: &Results, accepted: &[String]) -> Report {
    const NONE: &str = "(not tried)";
    let other: BTreeMap<&str, &str> = paravane
        .iter()
        .map(|(n, r)| (n.as_str(), r.as_str()))
        .collect();
    let theirs: BTreeMap<&str, &str> = xen.iter().map(|(n, r)| (n.as_str(), r.as_str())).collect();
    let names = xen.iter().map(|(name, _)| name).chain(
        paravane
            .iter()
            .map(|(name, _)| name)
            .filter(|name| !theirs.contains_key(name.as_str())),
    );
    let rows: Vec<Row> = names
        .map(|name| {
            let get =
                |map: &BTreeMap<&str, &str>| map.get(name.as_str()).map_or(NONE, |r| r).to_owned();
            Row {
                name: name.clone(),
                paravane: get(&other),
                xen: get(&theirs),
                accepted: accepted.iter().any(|pattern| matches(pattern, name)),
            }
        })
        .collect();
    let unused = accepted
        .iter()
        .filter(|pattern| {
            // Those of another part match nothing.
            let mut here = rows.iter().filter(|row| matches(pattern, &row.name));
            here.clone().next().is_some() && here.all(|row| row.paravane == row.xen)
        })
        .cloned()
        .collect();
    Report { rows, unused }
}

impl Report {
    fn differing(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.paravane != row.xen)
    }

    fn wrong(&self) -> usize {
        self.differing().filter(|row| !row.accepted).count()
    }

    fn summary(&self) -> String {
        let differing = self.differing().count();
        let mut text = format!(
            "{} cases, {} as on Xen, {} accepted differences, {} wrong",
            self.rows.len(),
            self.rows.len() - differing,
            differing - self.wrong(),
            self.wrong()
        );
        if !self.unused.is_empty() {
            text += &format!(
                "\nin docs/CONFORMANCE.md, but no difference here: {}",
                self.unused.join(", ")
            );
        }
        text
    }

    fn text(&self, all: bool) -> String {
        let mut text = String::new();
        for row in self
            .rows
            .iter()
            .filter(|row| all || row.paravane != row.xen)
        {
            let mark = match (row.paravane == row.xen, row.accepted) {
                (true, _) => "same    ",
                (false, true) => "accepted",
                (false, false) => "WRONG   ",
            };
            let _ = writeln!(
                text,
                "{mark} {:<40} Paravane: {:<32} Xen: {}",
                row.name, row.paravane, row.xen
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(of: &[(&str, &str)]) -> Results {
        of.iter()
            .map(|(n, r)| ((*n).to_owned(), (*r).to_owned()))
            .collect()
    }

    #[test]
    fn cases_are_read() {
        let text = "(d1) case a.b = 0\nvane> case c = -EINVAL status -3\nother\nconformance: done";
        assert_eq!(
            parse(text).unwrap(),
            results(&[("a.b", "0"), ("c", "-EINVAL status -3")])
        );
        assert!(parse("case a = 0\ncase a = 1").is_err());
        let long = format!(
            "(d1) case long = {}\n(d1) yz\n(d1) case d = 1",
            "x".repeat(62)
        );
        assert_eq!(
            parse(&long).unwrap(),
            results(&[("long", &("x".repeat(62) + "yz")), ("d", "1")])
        );
    }

    #[test]
    fn differences_are_told() {
        let xen = results(&[("a", "0"), ("b.1", "1"), ("b.2", "2"), ("gone", "x")]);
        let own = results(&[("a", "0"), ("b.1", "9"), ("b.2", "2"), ("new", "y")]);
        let report = compare(&own, &xen, &["b.*".to_owned(), "a".to_owned()]);
        assert_eq!(report.wrong(), 2, "one is missing, one is new");
        assert_eq!(report.unused, ["a"]);
        assert!(report.text(false).contains("accepted b.1"));
    }

    #[test]
    fn the_pages_patterns() {
        let page = "text\n| name | why |\n|---|---|\n| `abort.*`, `x` | because `y` |\n";
        assert_eq!(patterns(page), ["abort.*", "x"]);
        assert!(matches("a*c*", "abcd") && !matches("a*c", "abcd") && matches("*", ""));
    }
}
