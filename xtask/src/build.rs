// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask build`: the hypervisor, dom0 and the Rust guests, flattened to what a boot loader loads.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::flat::flatten_file;
use crate::process::{inherit, output};
use crate::project::{Project, TARGET};
use crate::symbols::Room;
use crate::toolchain;

#[derive(clap::Args, Default)]
pub struct Args {
    /// Build without optimisation
    #[arg(long)]
    pub dev: bool,
    /// Show this much less of what cargo does
    #[arg(short, long)]
    pub quiet: bool,
}

/// A bare-metal package of ours.
struct Package {
    name: &'static str,
    /// The flat image's path in the cache.
    image: &'static str,
    /// The image's size is a multiple of this, in bytes.
    align: usize,
}

const HYPERVISOR: &str = "hv";

const BARE_METAL: &[Package] = &[
    Package {
        name: HYPERVISOR,
        image: "build/paravane.bin",
        align: 8,
    },
    Package {
        name: "dom0",
        image: "build/dom0.bin",
        align: 4096,
    },
    Package {
        name: "hello",
        image: "guests/hello.bin",
        align: 8,
    },
    Package {
        name: "shell",
        image: "guests/shell.bin",
        align: 8,
    },
    Package {
        name: "blockcat",
        image: "guests/blockcat.bin",
        align: 8,
    },
    Package {
        name: "httpd",
        image: "guests/httpd.bin",
        align: 8,
    },
    Package {
        name: "port",
        image: "build/port.bin",
        align: 8,
    },
    Package {
        name: "bench",
        image: "build/bench.bin",
        align: 8,
    },
    Package {
        name: "conformance",
        image: "build/conformance.bin",
        align: 8,
    },
    Package {
        name: "registers",
        image: "build/registers.bin",
        align: 8,
    },
    Package {
        name: "hostile",
        image: "build/hostile.bin",
        align: 8,
    },
];

/// The names of the packages that are built for bare metal.
pub fn bare_metal_packages() -> impl Iterator<Item = &'static str> {
    BARE_METAL.iter().map(|package| package.name)
}

/// What the hypervisor's image may have of code and data (not of `.bss`, nor of the names of functions), in bytes.
const MAX_HYPERVISOR: u64 = 256 << 10;

/// What [`build`] made.
#[derive(Clone)]
pub struct Built {
    /// Names of functions in the hypervisor's image.
    pub names: Room,
    /// The hypervisor, an arm64 `Image`.
    pub hypervisor: PathBuf,
    /// The same with its symbols, for a debugger.
    pub hypervisor_elf: PathBuf,
    /// dom0, as the hypervisor's initrd.
    pub dom0: PathBuf,
    /// The folder with what comes from Debian's packages.
    pub packages: PathBuf,
}

/// The same folder in the cache.
pub const PACKAGES: &str = "debian";

pub fn main(project: &Project, args: &Args) -> Result<ExitCode> {
    if toolchain::find(project).is_none() {
        crate::setup::ensure(project, &crate::machine::BOARDS[0])?;
    }
    let built = build(project, args)?;
    weigh(project, &built, args.dev)?;
    println!(
        "{}: {} bytes",
        project.show(&built.dom0),
        fs::metadata(&built.dom0)?.len()
    );
    Ok(ExitCode::SUCCESS)
}

/// Builds everything that runs on the machine.
pub fn build(project: &Project, args: &Args) -> Result<Built> {
    let toolchain =
        toolchain::find(project).context("the Rust target is missing: run `cargo xtask setup`")?;
    let release = (!args.dev).then_some("--release");
    let quiet = args.quiet.then_some("--quiet");
    let flags = || release.into_iter().chain(quiet);
    let mut cargo = toolchain.cargo(project, "build")?;
    cargo.args(flags());
    for package in BARE_METAL.iter().filter(|p| p.name != HYPERVISOR) {
        cargo.args(["-p", package.name]);
    }
    inherit(&mut cargo)?;
    // The hypervisor's own: all that its code names lies within 1 MiB of it, so that an address is one instruction.
    let mut cargo = toolchain.cargo(project, "rustc")?;
    cargo.args(flags()).args(["-p", HYPERVISOR]);
    if !args.dev {
        cargo.args(["--", "-Ccode-model=tiny"]);
    }
    inherit(&mut cargo)?;
    let folder = toolchain
        .target_dir(project)?
        .join(TARGET)
        .join(if args.dev { "debug" } else { "release" });
    project.dir("build")?;
    project.dir("guests")?;
    let mut names = Room::default();
    for Package { name, image, align } in BARE_METAL {
        let room = flatten_file(&folder.join(name), &project.path(image), *align)?;
        if room.size != 0 {
            names = room;
        }
    }
    let built = Built {
        names,
        hypervisor: project.path("build/paravane.bin"),
        hypervisor_elf: folder.join("hv"),
        dom0: project.path("build/dom0.bin"),
        packages: project.path(PACKAGES),
    };
    let image = fs::read(&built.hypervisor)?;
    ensure!(
        image.get(56..60) == Some(b"ARM\x64"),
        "the hypervisor has no arm64 Image header"
    );
    Ok(built)
}

/// A hypervisor with a fault that an attack has to find, a feature of hv-core's: its image.
pub fn planted(project: &Project, fault: &str) -> Result<PathBuf> {
    let toolchain = toolchain::find(project).context("the Rust target is missing")?;
    let mut cargo = toolchain.cargo(project, "build")?;
    let feature = format!("hv-core/planted-{fault}");
    cargo.args(["--release", "--quiet", "-p", HYPERVISOR, "-p", "hv-core"]);
    inherit(cargo.args(["--features", &feature]))?;
    let folder = toolchain.target_dir(project)?.join(TARGET).join("release");
    let image = project.path(&format!("build/planted-{fault}.bin"));
    flatten_file(&folder.join("hv"), &image, 8)?;
    Ok(image)
}

/// Prints the size of the hypervisor's image, and fails when there is too much of it.
pub fn weigh(project: &Project, built: &Built, dev: bool) -> Result<()> {
    let size = fs::metadata(&built.hypervisor)?.len() - built.names.size;
    println!(
        "{}: {size} bytes of code and data (at most {MAX_HYPERVISOR}), {} of names for traces",
        project.show(&built.hypervisor),
        built.names.used
    );
    ensure!(
        dev || built.names.used <= built.names.size,
        "the names of functions do not fit: give .symbols more room in hv/image/image.ld"
    );
    ensure!(
        dev || size <= MAX_HYPERVISOR,
        "the hypervisor's image is too large"
    );
    Ok(())
}

/// `cargo metadata` of the workspace, without dependencies from elsewhere.
pub fn metadata(project: &Project) -> Result<serde_json::Value> {
    let text = output(Command::new("cargo").current_dir(&project.root).args([
        "metadata",
        "--format-version=1",
        "--no-deps",
    ]))?;
    serde_json::from_str(&text).context("cannot read cargo's metadata")
}
