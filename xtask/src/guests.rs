// SPDX-License-Identifier: MIT OR Apache-2.0
//! The demo guests, made in `cache/guests` and put on dom0's volume as `/guests`: Debian's kernels, each with a small
//! initramfs of busybox and that kernel's own modules, an ext4 disk, and their config files.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cpio;
use crate::debian;
use crate::kernel;
use crate::process::{finish, output, spinner, which};
use crate::project::{Project, write_atomic};

/// A kernel of Debian 12 that demo guests boot.
pub struct Kernel {
    /// The series, as in `vmlinuz-6.1` and in the package's version.
    pub series: &'static str,
    /// The guest's name, and its config file's.
    pub guest: &'static str,
    /// Where it comes from, in words.
    pub origin: &'static str,
    /// Whether it comes from backports.
    pub backports: bool,
}

/// The kernels of the demo guests.
pub const KERNELS: &[Kernel] = &[
    Kernel {
        series: "6.1",
        guest: "linux",
        origin: "Debian 12",
        backports: false,
    },
    Kernel {
        series: "6.12",
        guest: "linux612",
        origin: "Debian 12's backports",
        backports: true,
    },
];

/// The modules that the guests insert, with what they depend on: the PV disk and network drivers and the disk's file system.
pub const MODULES: &[&str] = &["xen-blkfront", "xen-netfront", "ext4"];

/// What is kept of each kernel's modules, by the name of the file that lists them in their order.
pub const MODULE_SETS: &[(&str, &[&str])] = &[("order", MODULES), (debian::ORDER, debian::MODULES)];

/// The Rust guests that have a disk.
const RUST_DISKS: &[&str] = &["shell", "blockcat"];

/// The ext4 disks' size, in MiB.
const DISK_MIB: u32 = 64;

const INIT: &str = include_str!("../guest/init");
const INITTAB: &str = include_str!("../guest/inittab");
const PROFILE: &str = include_str!("../guest/profile");
const UDHCPC: &str = include_str!("../guest/udhcpc.script");

impl Kernel {
    /// The folder of what was taken from the kernel's package.
    pub fn folder(&self, project: &Project) -> PathBuf {
        project
            .path("debian")
            .join(format!("linux-{}", self.series))
    }

    /// The package and version that [`Kernel::folder`] comes from; `None` when it is not complete, or lacks a module
    /// that is wanted by now.
    pub fn package(&self, project: &Project) -> Option<String> {
        let text = fs::read_to_string(self.mark(project)).ok()?;
        let (package, modules) = text.split_once('\n')?;
        (modules == module_sets()).then(|| package.to_owned())
    }

    /// The file that says that [`Kernel::folder`] is complete.
    pub fn mark(&self, project: &Project) -> PathBuf {
        self.folder(project).join("package")
    }

    /// Marks [`Kernel::folder`] as complete, from that package.
    pub fn set_package(&self, project: &Project, package: &str) -> Result<()> {
        write_atomic(
            &self.mark(project),
            format!("{package}\n{}", module_sets()).as_bytes(),
        )
    }
}

fn module_sets() -> String {
    let sets = MODULE_SETS.iter().map(|(_, modules)| modules.join(" "));
    sets.collect::<Vec<_>>().join("\n")
}

/// Where busybox is, once set up, with a file `busybox.package` beside it that names its package.
pub fn busybox(project: &Project) -> PathBuf {
    project.path("debian").join("busybox")
}

/// A kernel, once the guests are made.
pub fn image(project: &Project, kernel: &Kernel) -> PathBuf {
    let name = format!("vmlinuz-{}", kernel.series);
    project.path("guests").join(name)
}

/// Its ramdisk, once the guests are made.
pub fn ramdisk(project: &Project, kernel: &Kernel) -> PathBuf {
    let name = format!("initrd-{}.cpio.gz", kernel.series);
    project.path("guests").join(name)
}

/// What the guests of a kernel are made from: when it changes they are made again.
fn recipe(project: &Project, kernel: &Kernel) -> String {
    let mut hasher = DefaultHasher::new();
    (INIT, INITTAB, PROFILE, UDHCPC, MODULES, DISK_MIB).hash(&mut hasher);
    kernel.package(project).hash(&mut hasher);
    fs::read_to_string(busybox(project).with_extension("package"))
        .ok()
        .hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn stamp(project: &Project, kernel: &Kernel) -> PathBuf {
    project
        .path("debian")
        .join(format!("guest-{}.stamp", kernel.series))
}

/// Whether nothing is to be made.
pub fn complete(project: &Project) -> bool {
    let dir = project.path("guests");
    KERNELS.iter().all(|kernel| {
        fs::read_to_string(stamp(project, kernel)).is_ok_and(|text| text == recipe(project, kernel))
            && [
                image(project, kernel),
                ramdisk(project, kernel),
                dir.join(format!("{}-disk.img", kernel.guest)),
            ]
            .iter()
            .all(|file| fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.len() > 0))
    }) && RUST_DISKS
        .iter()
        .all(|guest| dir.join(format!("{guest}-disk.img")).is_file())
        && configs()
            .iter()
            .all(|(name, text)| fs::read_to_string(dir.join(name)).is_ok_and(|old| old == *text))
}

/// Makes what is missing or out of date. A disk that is there stays: it holds the guest's data.
pub fn make(project: &Project) -> Result<()> {
    let dir = project.dir("guests")?;
    for kernel in KERNELS {
        let recipe = recipe(project, kernel);
        if fs::read_to_string(stamp(project, kernel)).is_ok_and(|text| text == recipe) {
            continue;
        }
        let message = format!("guest with Linux {}", kernel.series);
        let bar = spinner(&message);
        let folder = kernel.folder(project);
        // A copy and no link: a guests' folder is the user's to change.
        fs::copy(folder.join("Image"), image(project, kernel))?;
        let archive = initramfs(&folder.join("modules"), &busybox(project))?;
        write_atomic(&ramdisk(project, kernel), &gzip(&archive)?)?;
        write_atomic(&stamp(project, kernel), recipe.as_bytes())?;
        finish(&bar, &message, true);
    }
    for kernel in KERNELS {
        let disk = dir.join(format!("{}-disk.img", kernel.guest));
        if !disk.is_file() {
            make_disk(project, &disk, kernel.guest)?;
        }
    }
    for guest in RUST_DISKS {
        let disk = dir.join(format!("{guest}-disk.img"));
        if !disk.is_file() {
            write_atomic(&disk, &raw_disk(guest))?;
        }
    }
    for (name, text) in configs() {
        let path = dir.join(name);
        if !fs::read_to_string(&path).is_ok_and(|old| old == text) {
            write_atomic(&path, text.as_bytes())?;
        }
    }
    Ok(())
}

/// A new ext4 disk image with a file on it.
pub fn make_disk(project: &Project, disk: &Path, label: &str) -> Result<()> {
    let content = project.path("debian").join("disk-content");
    let _ = fs::remove_dir_all(&content);
    fs::create_dir_all(&content)?;
    fs::write(
        content.join("README"),
        "This ext4 disk belongs to a Paravane guest. What is written here stays.\n",
    )?;
    let temporary = crate::project::temporary_beside(disk);
    let _ = fs::remove_file(&temporary);
    let mke2fs = which("mke2fs").context("there is no mke2fs (Debian: e2fsprogs)")?;
    output(
        Command::new(mke2fs)
            .args([
                "-q",
                "-F",
                "-t",
                "ext4",
                "-E",
                "root_owner=0:0",
                "-L",
                label,
                "-d",
            ])
            .arg(&content)
            .arg(&temporary)
            .arg(format!("{DISK_MIB}M")),
    )?;
    fs::remove_dir_all(&content)?;
    fs::rename(&temporary, disk).with_context(|| format!("cannot write {}", disk.display()))
}

/// A disk without a file system: a line of text, and zeros up to 1 MiB.
fn raw_disk(guest: &str) -> Vec<u8> {
    let mut disk = format!("This disk belongs to the guest {guest}.\n").into_bytes();
    disk.resize(1 << 20, 0);
    disk
}

/// The guests' config files, in xl's syntax.
fn configs() -> Vec<(String, String)> {
    let mut configs: Vec<_> = KERNELS
        .iter()
        .map(|Kernel { series, guest, origin, .. }| {
            let text = format!(
                "# {origin}'s own Linux {series}: a shell on the PV console, an ext4 file system on the PV disk, a PV network.\n\
                 name = \"{guest}\"\n\
                 kernel = \"/guests/vmlinuz-{series}\"\n\
                 ramdisk = \"/guests/initrd-{series}.cpio.gz\"\n\
                 cmdline = \"console=hvc0 panic=1\"\n\
                 memory = 256\n\
                 vcpus = 1\n\
                 disk = [ \"format=raw,vdev=xvda,access=rw,target=/guests/{guest}-disk.img\" ]\n\
                 vif = [ \"bridge=xenbr0\" ]\n\
                 on_poweroff = \"destroy\"\n\
                 on_reboot = \"restart\"\n\
                 on_crash = \"destroy\"\n"
            );
            (format!("{guest}.cfg"), text)
        })
        .collect();
    configs.push((
        "hello.cfg".to_owned(),
        "# A guest in Rust, on bare metal.\n\
         name = \"hello\"\n\
         kernel = \"/guests/hello.bin\"\n\
         memory = 8\n\
         vcpus = 1\n\
         on_poweroff = \"destroy\"\n\
         on_reboot = \"restart\"\n\
         on_crash = \"destroy\"\n"
            .to_owned(),
    ));
    for (guest, what) in [
        (
            "shell",
            "A prompt in Rust: xenstore, disks, time and memory.",
        ),
        (
            "blockcat",
            "A guest in Rust that reads its disk and prints a checksum.",
        ),
    ] {
        let text = format!(
            "# {what}\n\
             name = \"{guest}\"\n\
             kernel = \"/guests/{guest}.bin\"\n\
             memory = 8\n\
             vcpus = 1\n\
             disk = [ \"format=raw,vdev=xvda,access=rw,target=/guests/{guest}-disk.img\" ]\n\
             on_poweroff = \"destroy\"\n\
             on_reboot = \"restart\"\n\
             on_crash = \"destroy\"\n"
        );
        configs.push((format!("{guest}.cfg"), text));
    }
    configs.push((
        "httpd.cfg".to_owned(),
        "# A guest in Rust that serves a page at the address that it gets by DHCP, or else at 10.0.0.80.\n\
         # ip=ADDRESS/BITS[,GATEWAY] in the place of ip=dhcp gives it another one.\n\
         name = \"httpd\"\n\
         kernel = \"/guests/httpd.bin\"\n\
         cmdline = \"ip=dhcp else=10.0.0.80/24\"\n\
         memory = 8\n\
         vcpus = 1\n\
         vif = [ \"\" ]\n\
         on_poweroff = \"destroy\"\n\
         on_reboot = \"restart\"\n\
         on_crash = \"destroy\"\n"
            .to_owned(),
    ));
    configs
}

/// The initramfs: busybox, the modules in the order they are inserted in, and what starts the shell.
fn initramfs(modules: &Path, busybox: &Path) -> Result<Vec<u8>> {
    let mut archive = cpio::Archive::default();
    for dir in [
        "bin",
        "dev",
        "etc",
        "etc/udhcpc",
        "mnt",
        "modules",
        "proc",
        "root",
        "run",
        "sbin",
        "sys",
        "tmp",
    ] {
        archive.dir(dir, 0o755);
    }
    // The kernel opens the console before /init can mount devtmpfs.
    archive.char_device("dev/console", 0o600, 5, 1);
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("etc/inittab", 0o644, INITTAB.as_bytes());
    archive.file("etc/profile", 0o644, PROFILE.as_bytes());
    archive.file("etc/udhcpc/default.script", 0o755, UDHCPC.as_bytes());
    archive.file("etc/passwd", 0o644, b"root::0:0:root:/root:/bin/sh\n");
    archive.file(
        "bin/busybox",
        0o755,
        &fs::read(busybox).context("cannot read busybox")?,
    );
    archive.symlink("bin/sh", "busybox");
    // Where the kernel looks for them when the toolstack asks for a shutdown.
    for name in ["init", "poweroff", "reboot", "halt"] {
        archive.symlink(&format!("sbin/{name}"), "/bin/busybox");
    }
    kernel::pack(&mut archive, modules, "order")?;
    Ok(archive.finish())
}

/// Compressed.
pub fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}
