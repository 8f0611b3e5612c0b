// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask setup`: everything that building and running needs. It says what it will install before it does,
//! does nothing twice, and with `--check` only reports. Installing is for Debian 12; elsewhere it names what to install.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::apt::{self, Apt, BACKPORTS};
use crate::guests::{self, KERNELS, Kernel};
use crate::kernel;
use crate::machine::{BOARDS, Board, parse_board};
use crate::process::{output, which};
use crate::project::{Project, TARGET, write_atomic};
use crate::sums;
use crate::toolchain;

#[derive(clap::Args)]
pub struct Args {
    /// The board to set up for
    #[arg(long, value_parser = parse_board, default_value = BOARDS[0].name)]
    board: &'static Board,
    /// Only report what is there and what is missing; exit status 1 when something is
    #[arg(long)]
    check: bool,
}

pub fn main(project: &Project, args: &Args) -> Result<ExitCode> {
    let damaged = damaged(project, true);
    if args.check {
        for (_, file) in &damaged {
            println!("damaged  {}", project.show(file));
        }
        let missing = missing(project, args.board);
        let tree = args.board.dtb.map(|_| Item::DeviceTree);
        for item in Item::ALL.into_iter().chain(tree) {
            let there = !missing.contains(&item);
            println!("{:8} {}", if there { "ok" } else { "missing" }, item.name());
        }
        if !missing.is_empty() {
            println!("`cargo xtask setup` would do this:");
            for line in plan(&missing, args.board, Apt::find().as_ref()) {
                println!("  {line}");
            }
        }
        return Ok(if missing.is_empty() && damaged.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    drop_damaged(project, damaged)?;
    if ensure(project, args.board)? {
        eprintln!("Set up.");
    } else {
        eprintln!("Everything is set up.");
    }
    Ok(ExitCode::SUCCESS)
}

/// Which kernel's package the boards' device trees are from: the newest.
const TREES: usize = KERNELS.len() - 1;

/// Something that set-up provides.
#[derive(Clone, Copy, PartialEq)]
enum Item {
    Target,
    Qemu,
    FileSystemTools,
    Kernel(usize),
    Busybox,
    Guests,
    DeviceTree,
}

impl Item {
    const ALL: [Self; 7] = [
        Self::Target,
        Self::Qemu,
        Self::FileSystemTools,
        Self::Kernel(0),
        Self::Kernel(1),
        Self::Busybox,
        Self::Guests,
    ];

    fn name(self) -> String {
        match self {
            Self::Target => format!("Rust target {TARGET}"),
            Self::Qemu => "QEMU for arm64 (qemu-system-aarch64)".to_owned(),
            Self::FileSystemTools => "mke2fs".to_owned(),
            Self::Kernel(index) => match KERNELS.get(index) {
                Some(Kernel { series, origin, .. }) => {
                    format!("Linux {series} for arm64 from {origin}, for guests")
                }
                None => String::new(),
            },
            Self::Busybox => "busybox-static for arm64, for guests".to_owned(),
            Self::Guests => "demo guests".to_owned(),
            Self::DeviceTree => "the board's device tree, from the kernel package".to_owned(),
        }
    }

    /// What to do by hand where set-up cannot install.
    fn by_hand(self, board: &Board) -> String {
        match self {
            Self::Target => format!("rustup target add {TARGET}"),
            Self::Qemu => {
                let (major, minor) = board.qemu;
                format!(
                    "install qemu-system-aarch64 {major}.{minor} or newer (Debian, Ubuntu: qemu-system-arm; \
                     Fedora: qemu-system-aarch64-core; Arch: qemu-system-aarch64)"
                )
            }
            Self::FileSystemTools => "install mke2fs (package e2fsprogs nearly everywhere)".to_owned(),
            Self::Kernel(index) => {
                let kernel = KERNELS.get(index).unwrap_or(&KERNELS[0]);
                let dpkg = if which("dpkg-deb").is_some() { "" } else { "; install dpkg-deb (package dpkg)" };
                format!(
                    "fetch {}'s package linux-image-{}*-arm64 for arm64 and put the .deb file into cache/debs{dpkg}",
                    kernel.origin, kernel.series
                )
            }
            Self::Busybox => {
                "fetch Debian's package busybox-static for arm64 and put the .deb file into cache/debs".to_owned()
            }
            Self::Guests => "then run this again: it makes the demo guests".to_owned(),
            Self::DeviceTree => Self::Kernel(TREES).by_hand(board),
        }
    }
}

/// What was unpacked and is not as it was: the mark that says that it is complete, and the file.
fn damaged(project: &Project, thorough: bool) -> Vec<(PathBuf, PathBuf)> {
    let kernels = KERNELS.iter().map(|kernel| kernel.mark(project));
    let marks = kernels.chain([guests::busybox(project).with_extension("package")]);
    marks
        .filter_map(|mark| {
            let file = sums::damaged(&mark, thorough)?;
            Some((mark, file))
        })
        .collect()
}

/// Takes the marks away, so that it counts as missing.
fn drop_damaged(project: &Project, damaged: Vec<(PathBuf, PathBuf)>) -> Result<()> {
    for (mark, file) in damaged {
        eprintln!(
            "{} is damaged, and is fetched again with what belongs to it.",
            project.show(&file)
        );
        if mark.exists() {
            fs::remove_file(&mark)?;
        }
    }
    Ok(())
}

/// Makes sure that everything is there; `true` when something had to be done.
pub fn ensure(project: &Project, board: &Board) -> Result<bool> {
    drop_damaged(project, damaged(project, false))?;
    let mut missing = missing(project, board);
    if missing.is_empty() {
        return Ok(false);
    }
    // Packages that were put into the cache by hand serve anywhere.
    if missing
        .iter()
        .any(|item| matches!(item, Item::Kernel(_) | Item::Busybox | Item::DeviceTree))
        && which("dpkg-deb").is_some()
    {
        take_given_packages(project, &missing)?;
        missing = self::missing(project, board);
    }
    let apt = Apt::find();
    if let Some(apt) = &apt {
        apt.require_root(needs_root(&missing, apt))?;
    }
    eprintln!("Paravane's set-up will do this:");
    for line in plan(&missing, board, apt.as_ref()) {
        eprintln!("  - {line}");
    }
    std::io::stderr().flush()?;
    match &apt {
        Some(apt) => install(project, &missing, apt)?,
        None => {
            if missing.contains(&Item::Target) && which("rustup").is_some() {
                toolchain::install(project, None)?;
                missing.retain(|item| *item != Item::Target);
            }
            let by_hand: Vec<_> = missing
                .iter()
                .filter(|item| **item != Item::Guests)
                .map(|item| format!("\n  - {}", item.by_hand(board)))
                .collect();
            if !by_hand.is_empty() {
                bail!(
                    "this is not Debian 12, where set-up installs by itself; please do this:{}",
                    by_hand.concat()
                );
            }
        }
    }
    guests::make(project)?;
    let left = self::missing(project, board);
    if !left.is_empty() {
        bail!(
            "still missing: {}",
            left.iter()
                .map(|item| item.name())
                .collect::<Vec<_>>()
                .join(", ")
        );
    }
    Ok(true)
}

fn missing(project: &Project, board: &Board) -> Vec<Item> {
    let mut missing = Vec::new();
    if toolchain::find(project).is_none() {
        missing.push(Item::Target);
    }
    if qemu_version().is_none_or(|version| version < board.qemu) {
        missing.push(Item::Qemu);
    }
    if which("mke2fs").is_none() {
        missing.push(Item::FileSystemTools);
    }
    for (index, kernel) in KERNELS.iter().enumerate() {
        if kernel.package(project).is_none() {
            missing.push(Item::Kernel(index));
        }
    }
    if !guests::busybox(project).with_extension("package").is_file() {
        missing.push(Item::Busybox);
    }
    if missing
        .iter()
        .any(|item| matches!(item, Item::Kernel(_) | Item::Busybox))
        || !guests::complete(project)
    {
        missing.push(Item::Guests);
    }
    if board
        .device_tree(project)
        .is_some_and(|tree| !tree.is_file())
    {
        missing.push(Item::DeviceTree);
    }
    missing
}

/// What installing will do, a line each.
fn plan(missing: &[Item], board: &Board, apt: Option<&Apt>) -> Vec<String> {
    let Some(apt) = apt else {
        return missing.iter().map(|item| item.by_hand(board)).collect();
    };
    let mut lines = Vec::new();
    if needs_backports(missing) && !apt.has_backports() {
        lines.push(format!("add the {}", apt.backports_plan()));
    }
    if needs_arm64(missing) && !apt.has_arm64() {
        lines.push("let apt know arm64 packages (dpkg --add-architecture arm64)".to_owned());
    }
    for item in missing {
        lines.push(match item {
            Item::Target => {
                format!("add the Rust target {TARGET} (rustup; else Debian's rustc-web and rust-web-src, unpacked into cache/)")
            }
            Item::Qemu => format!("install the package qemu-system-arm from {BACKPORTS} (QEMU 10)"),
            Item::FileSystemTools => "install the package e2fsprogs".to_owned(),
            Item::Kernel(_) | Item::Busybox | Item::DeviceTree => format!("download {} (unpacked into cache/, not installed)", item.name()),
            Item::Guests => "make the demo guests in cache/guests".to_owned(),
        });
    }
    lines
}

fn needs_backports(missing: &[Item]) -> bool {
    missing.iter().any(|item| match item {
        Item::Qemu => true,
        Item::Kernel(index) => KERNELS.get(*index).is_some_and(|kernel| kernel.backports),
        Item::DeviceTree => KERNELS.get(TREES).is_some_and(|kernel| kernel.backports),
        _ => false,
    })
}

fn needs_arm64(missing: &[Item]) -> bool {
    missing
        .iter()
        .any(|item| matches!(item, Item::Kernel(_) | Item::Busybox | Item::DeviceTree))
}

/// Whether installing changes the machine, and not the cache alone.
fn needs_root(missing: &[Item], apt: &Apt) -> bool {
    missing
        .iter()
        .any(|item| matches!(item, Item::Qemu | Item::FileSystemTools))
        || needs_backports(missing) && !apt.has_backports()
        || needs_arm64(missing) && !apt.has_arm64()
}

fn install(project: &Project, missing: &[Item], apt: &Apt) -> Result<()> {
    if needs_backports(missing) && !apt.has_backports() {
        apt.add_backports()?;
    }
    if needs_arm64(missing) && !apt.has_arm64() {
        apt.add_arm64()?;
    }
    for item in missing {
        match item {
            Item::Target => toolchain::install(project, Some(apt))?,
            Item::Qemu => {
                if !apt
                    .versions("qemu-system-arm")
                    .iter()
                    .any(|version| version.version.contains("bpo12"))
                {
                    apt.refresh()?;
                }
                apt.install(&["qemu-system-arm"], Some(BACKPORTS))?;
            }
            Item::FileSystemTools => apt.install(&["e2fsprogs"], None)?,
            Item::Kernel(index) => {
                if let Some(kernel) = KERNELS.get(*index) {
                    download_kernel(project, apt, kernel)?;
                }
            }
            Item::Busybox => {
                let tree = fresh_tree(project)?;
                apt.know(&["busybox-static:arm64"])?;
                apt.unpack(project, &["busybox-static:arm64"], &tree)?;
                take_busybox(project, &tree, "busybox-static:arm64")?;
            }
            // It may have come with a kernel.
            Item::DeviceTree if missing.contains(&Item::Kernel(TREES)) => {}
            Item::DeviceTree => {
                if let Some(kernel) = KERNELS.get(TREES) {
                    download_kernel(project, apt, kernel)?;
                }
            }
            Item::Guests => {}
        }
    }
    Ok(())
}

fn download_kernel(project: &Project, apt: &Apt, kernel: &Kernel) -> Result<()> {
    let (tree, package) = fetch_kernel(project, apt, kernel)?;
    take_kernel(project, kernel, &tree, &package)
}

/// Downloads a kernel, the newest of its series that `linux-image-arm64` stands for: its package unpacked, and that
/// package's name.
pub fn fetch_kernel(project: &Project, apt: &Apt, kernel: &Kernel) -> Result<(PathBuf, String)> {
    const META: &str = "linux-image-arm64:arm64";
    let find = || {
        let prefix = format!("{}.", kernel.series);
        let version = apt
            .versions(META)
            .into_iter()
            .find(|version| version.version.starts_with(&prefix))?;
        let name = version
            .depends
            .split_whitespace()
            .find(|word| word.starts_with("linux-image-"))?;
        let name = name.trim_end_matches(',').trim_end_matches(":arm64");
        Some(format!("{name}:arm64={}", version.version))
    };
    let package = match find() {
        Some(package) => package,
        None => {
            apt.refresh()?;
            find().with_context(|| {
                format!("apt knows no Linux {} for arm64 ({META})", kernel.series)
            })?
        }
    };
    let tree = fresh_tree(project)?;
    // A package that was superseded since the lists were read is no longer to be had: read them again, once.
    if let Err(error) = apt.unpack(project, &[&package], &tree) {
        apt.refresh()?;
        let newer = find().filter(|newer| *newer != package).ok_or(error)?;
        apt.unpack(project, &[&newer], &tree)?;
        return Ok((tree, newer));
    }
    Ok((tree, package))
}

/// Takes what guests need from an unpacked kernel package.
fn take_kernel(project: &Project, kernel: &Kernel, tree: &Path, package: &str) -> Result<()> {
    let folder = kernel.folder(project);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    kernel::import(tree, &folder, guests::MODULE_SETS)?;
    let mut files = sums::files(&folder)?;
    // Every kernel's package has the boards' device trees; they belong to one.
    let newest = KERNELS[TREES].series == kernel.series;
    for board in BOARDS.iter().filter(|_| newest) {
        if let Some(file) = board.device_tree(project)
            && let Some(bytes) = kernel::device_tree(tree, board.dtb.unwrap_or_default())?
        {
            write_atomic(&file, &bytes)?;
            files.push(file);
        }
    }
    sums::record(&kernel.mark(project), &files)?;
    kernel.set_package(project, package)?;
    fs::remove_dir_all(tree)?;
    Ok(())
}

fn take_busybox(project: &Project, tree: &Path, package: &str) -> Result<()> {
    let file = ["bin/busybox", "usr/bin/busybox"]
        .iter()
        .map(|name| tree.join(name))
        .find(|path| path.is_file());
    let bytes = fs::read(file.context("the package has no busybox")?)?;
    project.dir("debian")?;
    let busybox = guests::busybox(project);
    write_atomic(&busybox, &bytes)?;
    sums::record(
        &busybox.with_extension("package"),
        std::slice::from_ref(&busybox),
    )?;
    write_atomic(&busybox.with_extension("package"), package.as_bytes())?;
    fs::remove_dir_all(tree)?;
    Ok(())
}

/// Takes packages that somebody put into `cache/debs`.
fn take_given_packages(project: &Project, missing: &[Item]) -> Result<()> {
    for deb in apt::debs(&project.path("debs"))? {
        let name = deb
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let kernel = KERNELS
            .iter()
            .find(|kernel| name.starts_with(&format!("linux-image-{}.", kernel.series)));
        let tree_is_missing = missing.contains(&Item::DeviceTree);
        if let Some(kernel) =
            kernel.filter(|kernel| tree_is_missing || kernel.package(project).is_none())
        {
            let tree = fresh_tree(project)?;
            apt::unpack(&deb, &tree)?;
            take_kernel(project, kernel, &tree, &name)?;
        } else if name.starts_with("busybox-static_")
            && !guests::busybox(project).with_extension("package").is_file()
        {
            let tree = fresh_tree(project)?;
            apt::unpack(&deb, &tree)?;
            take_busybox(project, &tree, &name)?;
        }
    }
    Ok(())
}

/// An empty folder to unpack packages into.
pub fn fresh_tree(project: &Project) -> Result<PathBuf> {
    let tree = project.path("unpacked");
    let _ = fs::remove_dir_all(&tree);
    fs::create_dir_all(&tree)?;
    Ok(tree)
}

/// QEMU's version, if there is one.
fn qemu_version() -> Option<(u32, u32)> {
    let text = output(Command::new(which("qemu-system-aarch64")?).arg("--version")).ok()?;
    let version = text.split("version ").nth(1)?;
    let mut numbers = version
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    Some((numbers.next()?, numbers.next()?))
}
