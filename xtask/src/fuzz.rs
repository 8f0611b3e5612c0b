// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask fuzz`: the targets of tests/fuzz under libFuzzer, one after the other.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::process::{inherit, output, which};
use crate::project::Project;

const MANIFEST: &str = "tests/fuzz/libfuzzer/Cargo.toml";

#[derive(clap::Args)]
pub struct Args {
    /// Targets; all if none is named
    targets: Vec<String>,
    /// List the targets
    #[arg(long)]
    list: bool,
    /// Seconds for each target
    #[arg(long = "for", default_value_t = 60, value_name = "SECONDS")]
    seconds: u32,
    /// Run this input alone, a file that an earlier run left in tests/fuzz/libfuzzer/artifacts
    #[arg(long, value_name = "FILE", conflicts_with = "seconds")]
    input: Option<String>,
}

pub fn main(project: &Project, args: &Args) -> Result<ExitCode> {
    let known = targets(&std::fs::read_to_string(project.root.join(MANIFEST))?);
    if args.list {
        known.iter().for_each(|name| println!("{name}"));
        return Ok(ExitCode::SUCCESS);
    }
    for name in &args.targets {
        ensure!(
            known.contains(name),
            "there is no target {name}; `cargo xtask fuzz --list` shows them"
        );
    }
    let chosen = if args.targets.is_empty() {
        &known
    } else {
        &args.targets
    };
    ensure!(
        args.input.is_none() || args.targets.len() == 1,
        "an input is one target's: name it"
    );
    ensure!(
        which("c++").is_some(),
        "libFuzzer takes a C++ compiler: `apt-get install g++`"
    );
    if output(Command::new("cargo").args(["fuzz", "--version"])).is_err() {
        println!("cargo install cargo-fuzz ...");
        inherit(Command::new("cargo").args(["install", "--locked", "--quiet", "cargo-fuzz"]))
            .context("cargo-fuzz cannot be installed")?;
    }
    let mut failed = Vec::new();
    for name in chosen {
        println!("== {name}");
        let mut cargo = Command::new("cargo");
        // There is no unsafe code for a sanitizer to look at, and without one stable Rust does.
        cargo
            .current_dir(&project.root)
            .args(["fuzz", "run", "--sanitizer", "none"])
            .args(["--fuzz-dir", "tests/fuzz/libfuzzer", name]);
        match &args.input {
            Some(file) => cargo.arg(file),
            None => cargo
                .arg("--")
                .arg(format!("-max_total_time={}", args.seconds))
                .args(["-max_len=4096", "-print_final_stats=1", "-verbosity=0"]),
        };
        if inherit(&mut cargo).is_err() {
            failed.push(name.as_str());
        }
    }
    ensure!(
        failed.is_empty(),
        "found something: {} (the inputs are in tests/fuzz/libfuzzer/artifacts)",
        failed.join(", ")
    );
    println!(
        "{} targets, {} s each: nothing found",
        chosen.len(),
        args.seconds
    );
    Ok(ExitCode::SUCCESS)
}

/// The names of the manifest's programs.
fn targets(manifest: &str) -> Vec<String> {
    manifest
        .split("[[bin]]")
        .skip(1)
        .filter_map(|part| part.split('"').nth(1))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn targets_of_a_manifest() {
        let manifest = include_str!("../../tests/fuzz/libfuzzer/Cargo.toml");
        let names = super::targets(manifest);
        assert!(names.len() > 5 && names.contains(&"netback".to_owned()));
        assert!(super::targets("[package]\nname = \"x\"\n").is_empty());
    }
}
