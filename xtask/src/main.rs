// SPDX-License-Identifier: MIT OR Apache-2.0
//! Paravane's commands, for people and for CI alike: `cargo xtask setup|run|build|image|test|bench|conformance|attack|lint`.
//!
//! One file per command ([`setup`], [`run`], [`build`], [`image`], [`mod@test`],
//! [`mod@bench`], [`conformance`], [`attack`], [`lint`]); the rest is what they share:
//!
//! * [`project`]: where things are; [`process`]: running programs with progress; [`apt`]: Debian's packages;
//! * [`kernel`], [`cpio`], [`guests`]: the demo guests from Debian's kernel and busybox; [`debian`]: one that is Debian;
//! * [`flat`]: ELF to flat image; [`volume`]: dom0's FAT volume;
//! * [`machine`], [`net`]: boards as data, the card's network and the QEMU process; [`session`], [`scenarios`], [`world`]: driving the prompt in tests;
//! * [`rig`]: the same test domains on Paravane and on the real Xen; [`xen`]: that one and a Linux dom0 for it.

#![forbid(unsafe_code)]

mod advisories;
mod apt;
mod attack;
mod bench;
mod build;
mod conformance;
mod cpio;
mod debian;
mod flat;
mod fuzz;
mod guests;
mod image;
mod kernel;
mod lint;
mod machine;
mod miri;
mod net;
mod process;
mod project;
mod rig;
mod run;
mod scenarios;
mod session;
mod setup;
mod spans;
mod sums;
mod symbols;
mod test;
mod toolchain;
mod volume;
mod world;
mod xen;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::project::Project;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Set up, build, run and test Paravane"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the project needs (says what before it does, does nothing twice)
    Setup(setup::Args),
    /// Set up, build, and boot to the `vane>` prompt on this terminal
    Run(run::Args),
    /// Build the hypervisor, dom0 and the Rust guests
    Build(build::Args),
    /// Make a card that a board boots from
    Image(image::Args),
    /// Set up, build, and run every test: host tests and QEMU scenarios
    Test(test::Args),
    /// Count what operations cost, on Paravane and on the real Xen
    Bench(bench::Args),
    /// Try, case by case, whether Paravane does what the real Xen does
    Conformance(conformance::Args),
    /// Give hostile bytes to what decodes them, guided by coverage (libFuzzer)
    Fuzz(fuzz::Args),
    /// Run the host tests of what has `unsafe` under Miri, which takes nightly Rust
    Miri(miri::Args),
    /// Let a hostile guest do to the hypervisor what a seed says
    Attack(attack::Args),
    /// Formatting, clippy, docs, dependency arrows and `unsafe` boundaries
    Lint(lint::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = Project::find().and_then(|project| match &cli.command {
        Command::Setup(args) => setup::main(&project, args),
        Command::Run(args) => run::main(&project, args),
        Command::Build(args) => build::main(&project, args),
        Command::Image(args) => image::main(&project, args),
        Command::Test(args) => test::main(&project, args),
        Command::Bench(args) => bench::main(&project, args),
        Command::Conformance(args) => conformance::main(&project, args),
        Command::Fuzz(args) => fuzz::main(&project, args),
        Command::Miri(args) => miri::main(&project, args),
        Command::Attack(args) => attack::main(&project, args),
        Command::Lint(args) => lint::main(&project, args),
    });
    match result {
        Ok(code) => code,
        Err(error) => {
            let text = format!("{error:#}");
            eprintln!("error: {}", full_disk(&text).unwrap_or(text));
            ExitCode::FAILURE
        }
    }
}

/// One line, where a full disk is what was wrong: the pages that a compiler or a packager print then tell no more.
fn full_disk(error: &str) -> Option<String> {
    let line = error
        .lines()
        .find(|line| line.contains("No space left on device"))?;
    Some(format!(
        "the disk is full ({}); free some room, then run this again: it goes on where it was",
        line.trim()
    ))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_full_disk_is_said_in_one_line() {
        let long = "dpkg-deb: failed\n  tar: ./boot: Cannot write: No space left on device\nmore";
        let said = super::full_disk(long).unwrap();
        assert!(said.starts_with("the disk is full (tar: ./boot") && !said.contains('\n'));
        assert_eq!(super::full_disk("something else"), None);
    }
}
