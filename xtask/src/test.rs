// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask test`: every test, on the host and in QEMU. The last line is `N passed, N failed, N skipped`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, ExitCode, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use regex::Regex;

use crate::build;
use crate::machine::BOARDS;
use crate::process::output;
use crate::project::Project;
use crate::scenarios::{self, Scenario, Skip, Stage};
use crate::setup;

#[derive(clap::Args)]
pub struct Args {
    /// Run only the QEMU scenarios whose name contains one of these
    filter: Vec<String>,
    /// List the QEMU scenarios
    #[arg(long)]
    list: bool,
    /// Run the host's tests alone
    #[arg(long, alias = "no-qemu", conflicts_with_all = ["qemu_only", "filter"])]
    host_only: bool,
    /// Run the QEMU scenarios alone
    #[arg(long)]
    qemu_only: bool,
}

/// How many tests there were.
#[derive(Debug, Default, PartialEq)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

pub fn main(project: &Project, args: &Args) -> Result<ExitCode> {
    let chosen: Vec<Scenario> = scenarios::all()
        .into_iter()
        .filter(|scenario| {
            args.filter.is_empty() || args.filter.iter().any(|part| scenario.name.contains(part))
        })
        .collect();
    ensure!(
        !chosen.is_empty(),
        "no scenario has such a name; `cargo xtask test --list` shows them"
    );
    if args.list {
        for Scenario { name, bound, .. } in chosen {
            println!("{name} (at most {} min)", bound.as_secs() / 60);
        }
        return Ok(ExitCode::SUCCESS);
    }
    for board in BOARDS {
        setup::ensure(project, board)?;
    }
    let mut counts = Counts::default();
    if args.filter.is_empty() && !args.qemu_only {
        host(project, &mut counts)?;
    }
    if !args.host_only {
        qemu(project, &chosen, &mut counts)?;
    }
    std::io::stderr().flush()?;
    println!(
        "{} passed, {} failed, {} skipped",
        counts.passed, counts.failed, counts.skipped
    );
    Ok(if counts.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn host(project: &Project, counts: &mut Counts) -> Result<()> {
    let nextest = output(Command::new("cargo").args(["nextest", "--version"])).is_ok();
    let runs: &[&[&str]] = if nextest {
        &[
            &["nextest", "run", "--workspace", "--no-fail-fast"],
            &["test", "--workspace", "--doc", "--no-fail-fast"],
        ]
    } else {
        &[&["test", "--workspace", "--no-fail-fast"]]
    };
    for arguments in runs {
        println!("== cargo {}", arguments.join(" "));
        let mut child = Command::new("cargo")
            .current_dir(&project.root)
            .args(*arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run cargo")?;
        let errors = child.stderr.take().context("no standard error")?;
        let output = child.stdout.take().context("no standard output")?;
        let errors = thread::spawn(move || copy_and_count(errors));
        let mut run = copy_and_count(output);
        run.add(&errors.join().unwrap_or_default());
        // A build that failed is a failure too, though no test of it was counted.
        if !child.wait()?.success() && run.failed == 0 {
            run.failed = 1;
        }
        counts.add(&run);
    }
    Ok(())
}

/// Passes a runner's lines on to standard output and adds up its summary lines.
fn copy_and_count(from: impl Read) -> Counts {
    let mut counts = Counts::default();
    for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        counts.add(&summary(&line));
    }
    counts
}

/// What a summary line of cargo test or nextest says; nothing for any other line.
fn summary(line: &str) -> Counts {
    static NUMBER: OnceLock<Option<Regex>> = OnceLock::new();
    let line = line.trim_start();
    let mut counts = Counts::default();
    let nextest = line.starts_with("Summary [");
    if !nextest && !line.starts_with("test result: ") {
        return counts;
    }
    let Some(number) =
        NUMBER.get_or_init(|| Regex::new(r"(\d+) (passed|failed|timed out|skipped|ignored)").ok())
    else {
        return counts;
    };
    for found in number.captures_iter(line) {
        let n: u64 = found[1].parse().unwrap_or(0);
        match &found[2] {
            "passed" => counts.passed += n,
            "skipped" | "ignored" => counts.skipped += n,
            _ => counts.failed += n,
        }
    }
    counts
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

fn qemu(project: &Project, chosen: &[Scenario], counts: &mut Counts) -> Result<()> {
    println!("== {} QEMU scenarios", chosen.len());
    let built = build::build(
        project,
        &build::Args {
            dev: false,
            quiet: false,
        },
    )?;
    let logs = project.dir("test/logs")?;
    for Scenario { name, bound, run } in chosen {
        let log = logs.join(format!("{name}.log"));
        let _ = fs::remove_file(&log);
        let stage = Stage {
            project,
            built: &built,
            log,
            bound: *bound,
            begin: Instant::now(),
        };
        let result = run(&stage);
        if crate::run::interrupted() {
            bail!("interrupted in {name}");
        }
        let seconds = stage.begin.elapsed().as_secs_f32();
        match result {
            Ok(()) => {
                counts.passed += 1;
                println!("PASS [{seconds:7.1}s] {name}");
            }
            Err(error) if error.is::<Skip>() => {
                counts.skipped += 1;
                println!("SKIP [{seconds:7.1}s] {name}: {error}");
            }
            Err(error) => {
                counts.failed += 1;
                println!("FAIL [{seconds:7.1}s] {name}: {error:#}");
                println!(
                    "  all that the machine showed: {}",
                    project.show(&stage.log)
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runners_summaries_are_understood() {
        let of = |passed, failed, skipped| Counts {
            passed,
            failed,
            skipped,
        };
        let nextest = "     Summary [   9.631s] 17 tests run: 12 passed (1 slow), 3 failed, 2 timed out, 4 skipped";
        assert_eq!(summary(nextest), of(12, 5, 4));
        let cargo = "test result: FAILED. 7 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        assert_eq!(summary(cargo), of(7, 1, 2));
        assert_eq!(summary("test a_1 passed ... ok"), Counts::default());
    }
}
