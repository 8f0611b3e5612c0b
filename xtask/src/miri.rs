// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask miri`: the host tests of the crates that have `unsafe` and run on the host, under Miri.

use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};

use crate::process::{inherit, output};
use crate::project::Project;

/// The crates: the rest of what has `unsafe` is registers and assembly, which no host executes.
const CRATES: [&str; 2] = ["platform", "el1"];

#[derive(clap::Args)]
pub struct Args {
    /// Only tests with this in their names
    filter: Option<String>,
}

pub fn main(project: &Project, args: &Args) -> Result<ExitCode> {
    ensure!(
        output(Command::new("cargo").args(["+nightly", "miri", "--version"])).is_ok(),
        "Miri is part of nightly Rust alone: `rustup toolchain install nightly --component miri,rust-src`"
    );
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(&project.root)
        .args(["+nightly", "miri", "test", "--target-dir", "target/miri"])
        .args(CRATES.iter().flat_map(|name| ["-p", name]))
        .args(&args.filter)
        // Devices of tests are found by their address, as those of machines are: the model of aliasing has to allow
        // that. Random cases are few, as each takes seconds. What a device has when it is reset for good, virtio-drivers
        // does not take back: its lists of descriptors, some bytes each.
        .env(
            "MIRIFLAGS",
            "-Zmiri-tree-borrows -Zmiri-permissive-provenance -Zmiri-disable-isolation -Zmiri-ignore-leaks",
        )
        .env("PROPTEST_CASES", "2");
    inherit(&mut cargo)?;
    println!("miri: {}: nothing found", CRATES.join(", "));
    Ok(ExitCode::SUCCESS)
}
