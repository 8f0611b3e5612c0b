// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask image`: a card for a board, ready to boot: the firmware, the hypervisor, dom0 and the guests on one FAT32
//! partition.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use crate::apt::Apt;
use crate::build::{self, Built};
use crate::machine::{BOARDS, Board, parse_board, warn_of_words};
use crate::process::finish;
use crate::project::{Project, temporary_beside};
use crate::setup;
use crate::volume;

#[derive(clap::Args)]
pub struct Args {
    /// The board
    #[arg(long, value_parser = parse_board)]
    board: &'static Board,
    /// A folder copied to the card as /guests, beside the demo guests
    #[arg(long, value_name = "DIR")]
    guests: Option<PathBuf>,
    /// The image, or the card's block device [default: paravane-BOARD.img in the cache]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// A folder with the board's firmware files [default: Debian's package raspi-firmware, fetched now]
    #[arg(long, value_name = "DIR")]
    firmware: Option<PathBuf>,
    /// More for the hypervisor's command line
    #[arg(long, value_name = "WORDS")]
    append: Vec<String>,
    /// Write over a file that is there, or over all that is on a block device
    #[arg(long)]
    force: bool,
}

/// The firmware that a Raspberry Pi 4 needs on its card: what its EEPROM starts, and what fits that to the memory.
const FIRMWARE: &[&str] = &["start4.elf", "fixup4.dat"];
/// The same in Debian's package.
const PACKAGE: (&str, &str, &str) = (
    "raspi-firmware",
    "non-free-firmware",
    "usr/lib/raspi-firmware",
);

/// The names on the card.
const KERNEL: &str = "kernel8.img";
const DOM0: &str = "dom0.bin";
const COMMAND_LINE: &str = "cmdline.txt";

/// What the firmware reads first; docs/raspberry-pi-4.md has the reasons. Addresses are where QEMU has the same: the
/// hypervisor's own memory is behind its image.
fn config(tree: &str) -> String {
    format!(
        "# Paravane. docs/raspberry-pi-4.md says what each line is for.\n\
         arm_64bit=1\n\
         enable_gic=1\n\
         enable_uart=1\n\
         uart_2ndstage=1\n\
         kernel={KERNEL}\n\
         kernel_address=0x200000\n\
         initramfs {DOM0} 0x08000000\n\
         device_tree={tree}\n\
         device_tree_address=0x0a000000\n\
         cmdline={COMMAND_LINE}\n"
    )
}

pub fn main(project: &Project, args: &Args) -> Result<ExitCode> {
    let Some(tree) = args.board.dtb else {
        let with: Vec<_> = BOARDS.iter().filter(|b| b.dtb.is_some()).collect();
        bail!(
            "{} boots from no card; {} does",
            args.board.name,
            with.iter().map(|b| b.name).collect::<Vec<_>>().join(", ")
        );
    };
    let target = match &args.output {
        Some(path) => path.clone(),
        None => project.path(&format!("paravane-{}.img", args.board.name)),
    };
    let device = check_target(&target, args.force)?;
    setup::ensure(project, args.board)?;
    let built = build::build(
        project,
        &build::Args {
            dev: false,
            quiet: true,
        },
    )?;
    // Everything that is at the card's root, in one folder.
    let root = project.path("image");
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(&root)?;
    let firmware = match &args.firmware {
        Some(folder) => folder.clone(),
        None => fetch_firmware(project)?,
    };
    for name in FIRMWARE {
        let from = firmware.join(name);
        fs::copy(&from, root.join(name))
            .with_context(|| format!("no firmware {}", from.display()))?;
    }
    fs::copy(&built.hypervisor, root.join(KERNEL))?;
    fs::copy(&built.dom0, root.join(DOM0))?;
    fs::copy(built.packages.join(tree), root.join(tree))?;
    fs::write(root.join("config.txt"), config(tree))?;
    warn_of_words(&args.append);
    fs::write(
        root.join(COMMAND_LINE),
        format!("{}\n", args.append.join(" ")),
    )?;
    let demo = project.path("guests");
    let mut folders = vec![(root.as_path(), ""), (demo.as_path(), "guests")];
    folders.extend(args.guests.as_deref().map(|folder| (folder, "guests")));
    // A device is written from an image that is whole.
    let image = if device {
        project.path("card.img")
    } else {
        temporary_beside(&target)
    };
    let made = volume::make(&image, &folders).and_then(|()| match device {
        true => write_device(&image, &target),
        false => Ok(fs::rename(&image, &target)?),
    });
    let _ = fs::remove_file(&image);
    made.with_context(|| format!("cannot make {}", target.display()))?;
    fs::remove_dir_all(&root)?;
    println!("{}", project.show(&target));
    Ok(ExitCode::SUCCESS)
}

/// Whether the target is a block device. Refuses what is in use, what is there unless asked, and what is neither.
fn check_target(target: &Path, force: bool) -> Result<bool> {
    let Ok(meta) = fs::metadata(target) else {
        return Ok(false);
    };
    let kind = meta.file_type();
    ensure!(
        kind.is_file() || kind.is_block_device(),
        "{} is neither a file nor a block device",
        target.display()
    );
    if kind.is_block_device() {
        let device = target.canonicalize()?;
        let mounts = fs::read_to_string("/proc/mounts").context("cannot see what is mounted")?;
        if let Some(used) = mounted(&mounts, &device.to_string_lossy()) {
            bail!("{used} is mounted: unmount it first");
        }
        ensure!(
            force,
            "{} is a block device: --force writes over all that is on it",
            target.display()
        );
    } else {
        ensure!(
            force,
            "{} is there: --force writes over it",
            target.display()
        );
    }
    Ok(kind.is_block_device())
}

/// The device or a partition of it (`sdb1`, `mmcblk0p1`) among what is mounted.
fn mounted<'a>(mounts: &'a str, device: &str) -> Option<&'a str> {
    mounts
        .lines()
        .filter_map(|line| line.split(' ').next())
        .find(|name| {
            name.strip_prefix(device).is_some_and(|rest| {
                rest.trim_start_matches('p')
                    .chars()
                    .all(|c| c.is_ascii_digit())
            })
        })
}

/// Writes an image over a device's beginning, with progress, until it is on it.
fn write_device(image: &Path, device: &Path) -> Result<()> {
    let mut from = File::open(image)?;
    let mut to = OpenOptions::new().read(true).write(true).open(device)?;
    let (size, room) = (from.metadata()?.len(), to.seek(SeekFrom::End(0))?);
    ensure!(
        room >= size,
        "the card has {} MiB, of {} that are needed",
        room >> 20,
        size >> 20
    );
    to.rewind()?;
    let bar = ProgressBar::new(size);
    bar.set_style(ProgressStyle::with_template(
        "  {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}",
    )?);
    let message = format!("writing {}", device.display());
    bar.set_message(message.clone());
    let mut block = vec![0; 4 << 20];
    loop {
        let n = from.read(&mut block)?;
        if n == 0 {
            break;
        }
        to.write_all(&block[..n])?;
        // What is still in the host's memory is not on the card.
        to.sync_data()?;
        bar.inc(n as u64);
    }
    to.sync_all()?;
    finish(&bar, &message, true);
    Ok(())
}

/// Fetches the firmware: its licence does not let it be part of the project.
fn fetch_firmware(project: &Project) -> Result<PathBuf> {
    const BY_HAND: &str = "give a folder with start4.elf and fixup4.dat by --firmware \
         (they are in the folder boot of github.com/raspberrypi/firmware)";
    let (package, component, folder) = PACKAGE;
    let apt = Apt::find().with_context(|| format!("this is not Debian 12: {BY_HAND}"))?;
    let tree = project.path("firmware");
    let _ = fs::remove_dir_all(&tree);
    fs::create_dir_all(&tree)?;
    apt.unpack_apart(project, package, component, &tree)
        .with_context(|| format!("cannot fetch {package}; {BY_HAND}"))?;
    Ok(tree.join(folder))
}

/// What the firmware would load from a card, for a machine without it.
pub struct Card {
    /// Where its files are now; `built` is of them.
    pub built: Built,
    /// The command line.
    pub append: String,
}

/// Takes from an image what the firmware would: the hypervisor, dom0, the device tree and the command line.
pub fn unpack(project: &Project, image: &Path, board: &Board) -> Result<Card> {
    let tree = board
        .dtb
        .with_context(|| format!("{} boots from no card", board.name))?;
    let folder = project.dir("card")?;
    for name in [KERNEL, DOM0, tree, COMMAND_LINE] {
        fs::write(folder.join(name), volume::read(image, name)?)?;
    }
    Ok(Card {
        append: fs::read_to_string(folder.join(COMMAND_LINE))?
            .trim()
            .to_owned(),
        built: Built {
            names: Default::default(),
            hypervisor: folder.join(KERNEL),
            hypervisor_elf: PathBuf::new(),
            dom0: folder.join(DOM0),
            packages: folder,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_in_use_is_known_by_its_partitions() {
        let mounts = "proc /proc proc rw 0 0\n/dev/sdb1 /media/x vfat rw 0 0\n/dev/mmcblk0p2 / ext4 rw 0 0\n";
        assert_eq!(mounted(mounts, "/dev/sdb"), Some("/dev/sdb1"));
        assert_eq!(mounted(mounts, "/dev/mmcblk0"), Some("/dev/mmcblk0p2"));
        assert_eq!(mounted(mounts, "/dev/sdb1"), Some("/dev/sdb1"));
        assert_eq!(mounted(mounts, "/dev/sd"), None);
        assert_eq!(mounted(mounts, "/dev/sda"), None);
    }

    #[test]
    fn what_is_there_is_kept() {
        let dir = std::env::temp_dir().join(format!("paravane-image-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("card.img");
        assert!(!check_target(&file, false).unwrap());
        fs::write(&file, "mine").unwrap();
        assert!(check_target(&file, false).is_err());
        assert!(!check_target(&file, true).unwrap());
        assert!(check_target(&dir, true).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}
