// SPDX-License-Identifier: MIT OR Apache-2.0
//! The real Xen, and a Linux dom0 with `xl` for it, from Debian 12's packages: unpacked into the cache, never installed.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::apt::Apt;
use crate::cpio::Archive;
use crate::guests;
use crate::kernel;
use crate::project::{Project, read, write_atomic};
use crate::setup;

const XEN_PACKAGE: &str = "xen-hypervisor-4.17-arm64:arm64";

/// The modules that dom0 inserts, with what they depend on.
const MODULES: &[&str] = &[
    "xen-evtchn",
    "xen-privcmd",
    "xenfs",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-blkback",
    "xen-netback",
    "loop",
    "bridge",
    "virtio-mmio",
    "virtio-blk",
    "virtio-net",
];

/// The packages with what dom0 needs of them.
const TOOLS: &[(&str, &[&str])] = &[
    (
        "xen-utils-4.17",
        &[
            "usr/lib/xen-4.17/bin/xl",
            "usr/lib/xen-4.17/bin/xenstored",
            "usr/lib/xen-4.17/bin/xenconsoled",
            "usr/lib/xen-4.17/bin/xen-init-dom0",
        ],
    ),
    ("xenstore-utils", &["usr/bin/xenstore"]),
    (
        "libxenmisc4.17",
        &[
            "usr/lib/aarch64-linux-gnu/libxenlight.so.4.17",
            "usr/lib/aarch64-linux-gnu/libxlutil.so.4.17",
            "usr/lib/aarch64-linux-gnu/libxenctrl.so.4.17",
            "usr/lib/aarch64-linux-gnu/libxenguest.so.4.17",
        ],
    ),
    (
        "libxentoollog1",
        &["usr/lib/aarch64-linux-gnu/libxentoollog.so.1"],
    ),
    (
        "libxentoolcore1",
        &["usr/lib/aarch64-linux-gnu/libxentoolcore.so.1"],
    ),
    (
        "libxenevtchn1",
        &["usr/lib/aarch64-linux-gnu/libxenevtchn.so.1"],
    ),
    (
        "libxenstore4",
        &["usr/lib/aarch64-linux-gnu/libxenstore.so.4"],
    ),
    (
        "libxenhypfs1",
        &["usr/lib/aarch64-linux-gnu/libxenhypfs.so.1"],
    ),
    (
        "libxengnttab1",
        &["usr/lib/aarch64-linux-gnu/libxengnttab.so.1"],
    ),
    (
        "libxenforeignmemory1",
        &["usr/lib/aarch64-linux-gnu/libxenforeignmemory.so.1"],
    ),
    (
        "libxendevicemodel1",
        &["usr/lib/aarch64-linux-gnu/libxendevicemodel.so.1"],
    ),
    (
        "libxencall1",
        &["usr/lib/aarch64-linux-gnu/libxencall.so.1"],
    ),
    ("libyajl2", &["usr/lib/aarch64-linux-gnu/libyajl.so.2"]),
    ("libuuid1", &["usr/lib/aarch64-linux-gnu/libuuid.so.1"]),
    ("libfdt1", &["usr/lib/aarch64-linux-gnu/libfdt.so.1"]),
    ("zlib1g", &["lib/aarch64-linux-gnu/libz.so.1"]),
    // xl cancels threads, for which the C library loads this.
    ("libgcc-s1", &["lib/aarch64-linux-gnu/libgcc_s.so.1"]),
    (
        "libc6",
        &[
            "lib/ld-linux-aarch64.so.1",
            "lib/aarch64-linux-gnu/libc.so.6",
        ],
    ),
];

const INIT: &str = include_str!("../xen/init");
const BLOCK: &str = include_str!("../xen/block");
const VIF: &str = include_str!("../xen/vif-bridge");

fn apt() -> Result<Apt> {
    let apt = Apt::find()
        .context("the real Xen is taken from Debian 12's packages; this system is another one")?;
    if !apt.has_arm64() {
        apt.require_root(true)?;
        apt.add_arm64()?;
    }
    Ok(apt)
}

/// Xen's image, downloaded the first time, and the version of its package.
pub fn image(project: &Project) -> Result<(PathBuf, String)> {
    let folder = project.dir("debian")?;
    let (image, package) = (folder.join("xen-4.17"), folder.join("xen-4.17.package"));
    if let Ok(version) = fs::read_to_string(&package)
        && image.is_file()
    {
        return Ok((image, version));
    }
    let apt = apt()?;
    apt.know(&[XEN_PACKAGE])?;
    let version = apt
        .versions(XEN_PACKAGE)
        .into_iter()
        .next()
        .context("apt knows no Xen")?
        .version;
    let tree = setup::fresh_tree(project)?;
    apt.unpack(project, &[XEN_PACKAGE], &tree)?;
    let bytes = fs::read(tree.join("boot/xen-4.17-arm64"))
        .context("the package has no boot/xen-4.17-arm64")?;
    write_atomic(&image, &bytes)?;
    write_atomic(&package, version.as_bytes())?;
    fs::remove_dir_all(&tree)?;
    Ok((image, version))
}

/// A Linux dom0, and what it runs on.
pub struct Dom0 {
    folder: PathBuf,
}

/// What is in the cache comes from these.
fn recipe() -> String {
    let tools: Vec<_> = TOOLS
        .iter()
        .map(|(name, files)| format!("{name} {}", files.join(" ")))
        .collect();
    format!("{}\n{}", MODULES.join(" "), tools.join("\n"))
}

impl Dom0 {
    /// Downloads it the first time (65 MB).
    pub fn fetch(project: &Project) -> Result<Self> {
        let folder = project.path("debian").join("xen-dom0");
        let mark = folder.join("complete");
        if fs::read_to_string(&mark).is_ok_and(|made| made == recipe()) {
            return Ok(Self { folder });
        }
        let apt = apt()?;
        let names: Vec<_> = TOOLS
            .iter()
            .map(|(name, _)| format!("{name}:arm64"))
            .collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        apt.know(&names)?;
        let _ = fs::remove_dir_all(&folder);
        let root = folder.join("root");
        fs::create_dir_all(&root)?;
        let (tree, _) = setup::fetch_kernel(project, &apt, &guests::KERNELS[0])?;
        kernel::import(&tree, &folder, &[("order", MODULES)])?;
        let tree = setup::fresh_tree(project)?;
        apt.unpack(project, &names, &tree)?;
        for (package, files) in TOOLS {
            for file in *files {
                let bytes = fs::read(tree.join(file))
                    .with_context(|| format!("the package {package} has no {file}"))?;
                let to = root.join(file);
                fs::create_dir_all(to.parent().context("a file at the root")?)?;
                write_atomic(&to, &bytes)?;
            }
        }
        fs::remove_dir_all(&tree)?;
        write_atomic(&mark, recipe().as_bytes())?;
        Ok(Self { folder })
    }

    /// Its kernel, an arm64 `Image`.
    pub fn image(&self) -> PathBuf {
        self.folder.join("Image")
    }

    /// A ramdisk with its system, and with a job: the files in `/job`, of which `run` is a script for it to do.
    pub fn ramdisk(&self, project: &Project, job: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        for dir in [
            "bin",
            "dev",
            "etc",
            "etc/xen",
            "etc/xen/scripts",
            "job",
            "lib",
            "lib/aarch64-linux-gnu",
            "modules",
            "proc",
            "root",
            "run",
            "sbin",
            "sys",
            "usr",
            "usr/bin",
            "usr/lib",
            "usr/lib/aarch64-linux-gnu",
            "usr/lib/xen-4.17",
            "usr/lib/xen-4.17/bin",
            "usr/sbin",
            "var",
            "var/lib",
            "var/lib/xen",
            "var/lib/xenstored",
            "var/log",
            "var/log/xen",
        ] {
            archive.dir(dir, 0o755);
        }
        archive.symlink("var/run", "/run");
        archive.symlink("var/lock", "/run/lock");
        // The kernel opens the console before /init can mount devtmpfs.
        archive.char_device("dev/console", 0o600, 5, 1);
        archive.file("init", 0o755, INIT.as_bytes());
        archive.file("etc/xen/scripts/block", 0o755, BLOCK.as_bytes());
        archive.file("etc/xen/scripts/vif-bridge", 0o755, VIF.as_bytes());
        archive.file("etc/xen/xl.conf", 0o644, b"autoballoon=\"off\"\n");
        archive.file("bin/busybox", 0o755, &read(&guests::busybox(project))?);
        archive.symlink("bin/sh", "busybox");
        for file in TOOLS.iter().flat_map(|(_, files)| *files) {
            archive.file(file, 0o755, &read(&self.folder.join("root").join(file))?);
            if let Some(program) = file.strip_prefix("usr/lib/xen-4.17/bin/") {
                archive.symlink(&format!("usr/sbin/{program}"), &format!("/{file}"));
            }
        }
        for name in ["read", "write", "ls"] {
            archive.symlink(&format!("usr/bin/xenstore-{name}"), "xenstore");
        }
        kernel::pack(&mut archive, &self.folder.join("modules"), "order")?;
        for (name, bytes) in job {
            archive.file(&format!("job/{name}"), 0o644, bytes);
        }
        Ok(archive.finish())
    }
}
