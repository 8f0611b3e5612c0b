// SPDX-License-Identifier: MIT OR Apache-2.0
//! The Rust compiler for bare metal: rustup's target, or else Debian's `rustc-web` with `core` and `alloc` built
//! from `rust-web-src`, unpacked into the cache (it is never installed, so it does not meet rustup's).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::apt::Apt;
use crate::process::{output, which};
use crate::project::{Project, TARGET, write_atomic};

/// The least minor version of Rust 1 that builds the project.
const MINOR: u32 = 91;

/// Where the libraries for [`TARGET`] come from.
pub enum Toolchain {
    /// The target of the toolchain in use.
    Target,
    /// Debian's compiler in this folder, with `-Zbuild-std`.
    Debian(PathBuf),
}

/// Finds the toolchain, or `None` when it has to be set up.
pub fn find(project: &Project) -> Option<Toolchain> {
    let libraries =
        output(Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]));
    let has_core = libraries
        .ok()
        .and_then(|dir| fs::read_dir(dir.trim()).ok())
        .is_some_and(|dir| {
            dir.flatten()
                .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
        });
    if has_core {
        return Some(Toolchain::Target);
    }
    let unpacked = project.path("toolchain");
    unpacked
        .join("complete")
        .is_file()
        .then_some(Toolchain::Debian(unpacked))
}

impl Toolchain {
    /// A `cargo SUBCOMMAND` for the bare-metal target.
    pub fn cargo(&self, project: &Project, subcommand: &str) -> Result<Command> {
        let mut cargo = Command::new("cargo");
        cargo
            .current_dir(&project.root)
            .args([subcommand, "--target", TARGET]);
        if let Self::Debian(dir) = self {
            let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
            let linker = find_file(Path::new(sysroot.trim()), "rust-lld")
                .or_else(|| which("rust-lld"))
                .or_else(|| which("ld.lld"))
                .context(
                    "no linker: neither the toolchain's rust-lld nor ld.lld (Debian: lld) is there",
                )?;
            cargo
                .args([
                    "-Zbuild-std=core,alloc",
                    "-Zbuild-std-features=compiler-builtins-mem",
                ])
                .env("RUSTC", dir.join("rustc"))
                .env("RUSTC_BOOTSTRAP", "1")
                .env("CARGO_TARGET_AARCH64_UNKNOWN_NONE_SOFTFLOAT_LINKER", linker)
                .env("CARGO_TARGET_DIR", dir.join("target"));
        }
        Ok(cargo)
    }

    /// Cargo's target folder, which Debian's compiler has for itself.
    pub fn target_dir(&self, project: &Project) -> Result<PathBuf> {
        match self {
            Self::Debian(dir) => Ok(dir.join("target")),
            Self::Target => {
                let metadata = crate::build::metadata(project)?;
                Ok(metadata["target_directory"]
                    .as_str()
                    .context("cargo metadata names no target folder")?
                    .into())
            }
        }
    }
}

/// Sets the toolchain up: rustup's target, or the fallback on Debian.
pub fn install(project: &Project, apt: Option<&Apt>) -> Result<()> {
    let problem = if which("rustup").is_some() {
        match crate::process::with_spinner(
            &format!("Rust target {TARGET}"),
            Command::new("rustup").args(["target", "add", TARGET]),
        ) {
            Ok(()) => return Ok(()),
            Err(error) => format!("{error:#}"),
        }
    } else {
        "there is no rustup".to_owned()
    };
    let Some(apt) = apt else {
        bail!("the Rust target {TARGET} is missing, and {problem}")
    };
    eprintln!(
        "  the Rust target cannot be had ({}); using Debian's rustc-web",
        problem.lines().last().unwrap_or("")
    );
    install_debian(project, apt)
}

fn install_debian(project: &Project, apt: &Apt) -> Result<()> {
    let dir = project.dir("toolchain")?;
    let tree = dir.join("tree");
    let _ = fs::remove_dir_all(&tree);
    apt.know(&["rustc-web", "rust-web-src"])?;
    // Older ones are too old for the project (`rust-version` in Cargo.toml); Debian's security updates have newer.
    let version = apt
        .versions("rustc-web")
        .first()
        .map(|v| v.version.clone())
        .unwrap_or_default();
    let minor = version
        .split('.')
        .nth(1)
        .and_then(|minor| minor.parse::<u32>().ok())
        .unwrap_or(0);
    ensure!(
        version.starts_with("1.") && minor >= MINOR,
        "apt has rustc-web {version}, older than Rust 1.{MINOR}: is Debian's security source (bookworm-security) missing?"
    );
    // The compiler's library package carries its version in its name, and names the LLVM that it needs.
    let library = apt.dependency("libstd-rust-web-dev", "libstd-rust-web-")?;
    let llvm = apt.dependency(&library, "libllvm")?;
    apt.install(&[&llvm], None)?;
    apt.unpack(
        project,
        &["rustc-web", "libstd-rust-web-dev", &library, "rust-web-src"],
        &tree,
    )?;
    let compiler = tree.join("usr/bin/rustc");
    let driver = find_file(&tree.join("usr/lib"), "librustc_driver")
        .context("rustc-web's packages hold no compiler library")?;
    let libraries = driver.parent().context("no folder")?;
    let script = format!(
        "#!/bin/sh\nLD_LIBRARY_PATH='{}' exec '{}' \"$@\"\n",
        libraries.display(),
        compiler.display()
    );
    let wrapper = dir.join("rustc");
    write_atomic(&wrapper, script.as_bytes())?;
    fs::set_permissions(
        &wrapper,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    let version =
        output(Command::new(&wrapper).arg("-V")).context("Debian's rustc does not start")?;
    write_atomic(&dir.join("complete"), version.as_bytes())
}

/// The first file below `dir` whose name begins with `prefix`.
fn find_file(dir: &Path, prefix: &str) -> Option<PathBuf> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(dir).ok()?.flatten() {
        let kind = entry.file_type().ok()?;
        if kind.is_dir() {
            folders.push(entry.path());
        } else if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Some(entry.path());
        }
    }
    folders.iter().find_map(|folder| find_file(folder, prefix))
}
