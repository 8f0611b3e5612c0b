// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest that is a whole Debian 12: systemd, apt and an ssh server on the GPT partition of a PV disk.
//!
//! It is made once, from Debian's packages, as who runs this and without running arm64 code here: the host resolves and
//! downloads the packages and writes all their files, and what dpkg is to know of them, into one archive. A guest on
//! Paravane itself then unpacks that onto the disk and has dpkg configure the packages.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tar::{Archive, Builder, EntryType, Header};

use crate::apt::{self, Apt};
use crate::build::Built;
use crate::cpio;
use crate::guests::{self, KERNELS, Kernel};
use crate::kernel;
use crate::machine::{Disk, Machine};
use crate::process::{finish, output, spinner, which};
use crate::project::{Project, read, temporary_beside, write_atomic};
use crate::session::Session;
use crate::volume::Volume;

/// The guest's name, and its config file's.
pub const GUEST: &str = "debian";
/// The address that it gets on QEMU's own network, as the second one who asks there; dom0 is the first.
pub const ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 0, 2, 16);
/// The file that lists the modules that it inserts.
pub const ORDER: &str = "order-debian";
/// Those modules: what its disk and network take, and what systemd looks for.
pub const MODULES: &[&str] = &["xen-blkfront", "xen-netfront", "ext4", "autofs4"];

/// What it has beside the essential packages.
const PACKAGES: &[&str] = &[
    "?essential",
    "apt",
    "ca-certificates",
    "dbus",
    "iproute2",
    "iputils-ping",
    "less",
    "netbase",
    "openssh-server",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
    "usr-is-merged",
    "vim-tiny",
];
/// Debian 12's own.
const KERNEL: &Kernel = &KERNELS[0];
const MIB: u64 = 1 << 20;
/// The disk's size; the file has holes where nothing was written.
const DISK: u64 = 2048 * MIB;
/// Where its partition begins.
const PARTITION: u64 = MIB;
/// What the partition leaves at the end, for the second copy of the table.
const END: u64 = MIB;

const INIT: &str = include_str!("../guest/debian-init");
const MAKE: &str = include_str!("../guest/debian-make");
const NETWORK: &str = "[Match]\nType=ether\n\n[Network]\nDHCP=yes\n";
const HOSTS: &str = "127.0.0.1 localhost debian\n::1 localhost ip6-localhost ip6-loopback\n";
const FSTAB: &str = "LABEL=debian / ext4 errors=remount-ro 0 0\n";

/// The guest, made.
pub struct Debian {
    dir: PathBuf,
}

impl Debian {
    /// Makes it, if it is not made or made otherwise than now; says what it does.
    pub fn ensure(project: &Project, built: &Built) -> Result<Self> {
        let debian = Self {
            dir: project.dir("debian-guest")?,
        };
        let stamp = debian.dir.join("stamp");
        let recipe = recipe();
        if fs::read_to_string(&stamp).is_ok_and(|text| text == recipe) && debian.disk().is_file() {
            return Ok(debian);
        }
        debian
            .make(project, built)
            .context("cannot make the Debian guest")?;
        write_atomic(&stamp, recipe.as_bytes())?;
        Ok(debian)
    }

    /// Its disk as it was made, to be copied.
    fn disk(&self) -> PathBuf {
        self.dir.join("debian.img")
    }

    /// Copies its disk, holes as holes; whole or not at all.
    pub fn copy_disk(&self, to: &Path) -> Result<()> {
        let mut from = File::open(self.disk())?;
        let temporary = temporary_beside(to);
        let mut copy = File::create(&temporary)
            .with_context(|| format!("cannot write {}", temporary.display()))?;
        copy.set_len(from.metadata()?.len())?;
        let hole = vec![0; MIB as usize];
        let mut block = hole.clone();
        for at in (0..DISK).step_by(block.len()) {
            from.read_exact(&mut block)?;
            if block != hole {
                copy.seek(SeekFrom::Start(at))?;
                copy.write_all(&block)?;
            }
        }
        Ok(fs::rename(&temporary, to)?)
    }

    /// The private key that root is let in with, if the host could make one.
    pub fn key(&self) -> PathBuf {
        self.dir.join("ssh-key")
    }

    /// Writes the files that dom0's volume needs into `folder`: kernel, ramdisk, and a configuration where its disk is the
    /// machine's `disk`th one.
    pub fn guests(&self, project: &Project, folder: &Path, disk: usize) -> Result<()> {
        fs::create_dir_all(folder)?;
        write_atomic(&folder.join("debian.cpio.gz"), &ramdisk(project)?)?;
        let text = config(GUEST, "", 512, 2, &[format!("/dev/disk{disk}")]);
        write_atomic(&folder.join(format!("{GUEST}.cfg")), text.as_bytes())
    }

    fn make(&self, project: &Project, built: &Built) -> Result<()> {
        let apt = Apt::find().context("it is made from Debian's packages, by apt on Debian 12")?;
        eprintln!("Making the Debian guest, once: this takes some minutes.");
        let key = self.make_key()?;
        let archive = self.dir.join("files.tar");
        {
            let (_held, debs) = apt.system(project, PACKAGES)?;
            let message = format!("unpacking {} packages", debs.len());
            let bar = spinner(&message);
            let made = write_archive(&archive, &debs, key.as_deref());
            finish(&bar, &message, made.is_ok());
            made?;
        }
        let disk = temporary_beside(&self.disk());
        make_disk(&disk)?;
        let message = "configuring the packages in a guest";
        let bar = spinner(message);
        let made = self.configure(project, built, &disk, &archive, |line| {
            bar.set_message(format!("{message}: {line}"));
        });
        finish(&bar, message, made.is_ok());
        made?;
        fs::remove_file(&archive)?;
        Ok(fs::rename(&disk, self.disk())?)
    }

    /// A key pair, if there is `ssh-keygen`; the public key.
    fn make_key(&self) -> Result<Option<String>> {
        let Some(ssh_keygen) = which("ssh-keygen") else {
            return Ok(None);
        };
        let key = self.key();
        let public = key.with_extension("pub");
        if !key.is_file() || !public.is_file() {
            let _ = fs::remove_file(&key);
            output(
                Command::new(ssh_keygen)
                    .args(["-q", "-t", "ed25519", "-N", "", "-C", "paravane", "-f"])
                    .arg(&key),
            )?;
        }
        Ok(Some(fs::read_to_string(public)?))
    }

    /// Has a guest unpack the archive onto the disk and configure the packages.
    fn configure(
        &self,
        project: &Project,
        built: &Built,
        disk: &Path,
        archive: &Path,
        mut say: impl FnMut(&str),
    ) -> Result<()> {
        let folder = self.dir.join("make");
        fs::create_dir_all(&folder)?;
        write_atomic(&folder.join("debian.cpio.gz"), &ramdisk(project)?)?;
        let disks = ["/dev/disk1".to_owned(), "/dev/disk2".to_owned()];
        let text = config("make", "make", 512, 1, &disks);
        write_atomic(&folder.join("make.cfg"), text.as_bytes())?;
        let kernel = guests::image(project, KERNEL);
        fs::copy(&kernel, folder.join(kernel.file_name().unwrap_or_default()))?;
        let volume = Volume::lock(&self.dir)?;
        volume.discard();
        volume.sync(&[&folder])?;
        let raw = |file: &Path| Disk {
            file: file.to_owned(),
            ..Disk::default()
        };
        let machine = Machine {
            cpus: 1,
            memory: 1 << 10,
            disks: vec![raw(disk), raw(archive)],
            ..Machine::default()
        };
        let log = self.dir.join("make.log");
        let _ = fs::remove_file(&log);
        let bound = Duration::from_secs(30 * 60);
        let qemu = machine.qemu(built, volume.image())?;
        let mut session = Session::start(qemu, &log, bound)?;
        session.prompt(Duration::from_secs(60))?;
        session.vane_within("create /guests/make.cfg", Duration::from_secs(120))?;
        session.attach("make")?;
        loop {
            let line = session
                .expect("^(debian: (made|failed)|Setting up [^ ]+).*$", bound)
                .with_context(|| format!("all that was shown: {}", project.show(&log)))?;
            ensure!(
                line != "debian: failed",
                "the guest could not; all that was shown: {}",
                project.show(&log)
            );
            if line == "debian: made" {
                break;
            }
            say(&line);
        }
        session.prompt(Duration::from_secs(60))?;
        session.line("poweroff")?;
        session.ended(Duration::from_secs(60))?;
        volume.discard();
        fs::remove_file(volume.image())?;
        Ok(fs::remove_dir_all(&folder)?)
    }
}

/// What it is made from: when it changes it is made again. Newer packages are the guest's own apt's.
fn recipe() -> String {
    let mut hasher = DefaultHasher::new();
    (PACKAGES, DISK, PARTITION, INIT, MAKE, NETWORK, HOSTS, FSTAB).hash(&mut hasher);
    apt::system_sources(false).hash(&mut hasher);
    which("ssh-keygen").is_some().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn config(name: &str, words: &str, memory: u32, vcpus: u32, disks: &[String]) -> String {
    let series = KERNEL.series;
    let disks: Vec<_> = disks
        .iter()
        .zip("abcd".chars())
        .map(|(target, letter)| {
            format!("\"format=raw,vdev=xvd{letter},access=rw,target={target}\"")
        })
        .collect();
    format!(
        "# Debian 12: systemd, apt, an ssh server; root has no password on the console.\n\
         name = \"{name}\"\n\
         kernel = \"/guests/vmlinuz-{series}\"\n\
         ramdisk = \"/guests/debian.cpio.gz\"\n\
         cmdline = \"console=hvc0 panic=1 {words} \"\n\
         memory = {memory}\n\
         vcpus = {vcpus}\n\
         disk = [ {} ]\n\
         vif = [ \"bridge=xenbr0\" ]\n\
         on_poweroff = \"destroy\"\n\
         on_reboot = \"restart\"\n\
         on_crash = \"destroy\"\n",
        disks.join(", ")
    )
}

/// Busybox and modules, and what mounts the disk's file system or makes it.
fn ramdisk(project: &Project) -> Result<Vec<u8>> {
    let modules = KERNEL.folder(project).join("modules");
    let mut archive = cpio::Archive::default();
    for dir in ["bin", "dev", "mnt", "modules", "proc", "sys"] {
        archive.dir(dir, 0o755);
    }
    archive.char_device("dev/console", 0o600, 5, 1);
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("make", 0o644, MAKE.as_bytes());
    archive.file("bin/busybox", 0o755, &read(&guests::busybox(project))?);
    archive.symlink("bin/sh", "busybox");
    kernel::pack(&mut archive, &modules, ORDER)?;
    guests::gzip(&archive.finish())
}

/// An empty disk: a GPT with one partition, and an ext4 file system in that.
fn make_disk(disk: &Path) -> Result<()> {
    let _ = fs::remove_file(disk);
    File::create(disk)?.set_len(DISK)?;
    let sectors = u32::try_from(DISK / 512 - 1).unwrap_or(u32::MAX);
    let mut file = File::options().read(true).write(true).open(disk)?;
    gpt::mbr::ProtectiveMBR::with_lb_size(sectors).overwrite_lba0(&mut file)?;
    let mut table = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(gpt::disk::LogicalBlockSize::Lb512)
        .create_from_device(file, None)?;
    let size = DISK - PARTITION - END;
    table.add_partition(
        GUEST,
        size,
        gpt::partition_types::LINUX_FS,
        0,
        Some(PARTITION / 512),
    )?;
    let first = table
        .partitions()
        .values()
        .next()
        .map(|part| part.first_lba);
    ensure!(
        first == Some(PARTITION / 512),
        "the partition begins elsewhere: {first:?}"
    );
    table.write()?;
    let mke2fs = which("mke2fs").context("there is no mke2fs (Debian: e2fsprogs)")?;
    output(
        Command::new(mke2fs)
            .args(["-q", "-F", "-t", "ext4", "-L", GUEST, "-E"])
            .arg(format!(
                "offset={PARTITION},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"
            ))
            .arg(disk)
            .arg(format!("{}k", size >> 10)),
    )?;
    Ok(())
}

/// Writes all files of the packages, what dpkg knows of packages that it has unpacked, and the guest's own settings.
fn write_archive(to: &Path, debs: &[PathBuf], key: Option<&str>) -> Result<()> {
    let file = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    let mut files = Files {
        archive: Builder::new(BufWriter::new(file)),
        folders: BTreeSet::new(),
    };
    files.folder("usr", 0o755)?;
    for name in ["bin", "lib", "sbin"] {
        files.folder(&format!("usr/{name}"), 0o755)?;
        files.link(name, &format!("usr/{name}"))?;
    }
    let mut status = String::new();
    let mut triggers = Triggers::default();
    files.folder("var", 0o755)?;
    files.folder("var/lib", 0o755)?;
    for name in [
        "",
        "/alternatives",
        "/info",
        "/parts",
        "/triggers",
        "/updates",
    ] {
        files.folder(&format!("var/lib/dpkg{name}"), 0o755)?;
    }
    for deb in debs {
        files
            .package(deb, &mut status, &mut triggers)
            .with_context(|| format!("{}", deb.display()))?;
    }
    let dpkg = "var/lib/dpkg";
    files.file(&format!("{dpkg}/status"), 0o644, status.as_bytes())?;
    for (name, text) in [
        ("info/format", "1\n"),
        ("available", ""),
        ("diversions", ""),
        ("statoverride", ""),
        ("arch", "arm64\n"),
        ("triggers/Unincorp", ""),
    ] {
        files.file(&format!("{dpkg}/{name}"), 0o644, text.as_bytes())?;
    }
    for (name, text) in triggers.files() {
        files.file(&format!("{dpkg}/triggers/{name}"), 0o644, text.as_bytes())?;
    }
    for (name, text) in [
        ("etc/fstab", FSTAB),
        ("etc/hostname", "debian\n"),
        ("etc/hosts", HOSTS),
        ("etc/systemd/network/50-dhcp.network", NETWORK),
        ("etc/apt/sources.list", &apt::system_sources(false)),
    ] {
        files.file(name, 0o644, text.as_bytes())?;
    }
    if let Some(key) = key {
        files.folder("root", 0o700)?;
        files.folder("root/.ssh", 0o700)?;
        files.file("root/.ssh/authorized_keys", 0o600, key.as_bytes())?;
    }
    files.archive.into_inner()?.flush()?;
    // A disk has whole sectors.
    let mut file = File::options().append(true).open(to)?;
    let size = file.seek(SeekFrom::End(0))?;
    Ok(file.set_len(size.next_multiple_of(MIB))?)
}

/// The archive while it is written.
struct Files {
    archive: Builder<BufWriter<File>>,
    folders: BTreeSet<PathBuf>,
}

impl Files {
    fn header(kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header
    }

    fn folder(&mut self, name: &str, mode: u32) -> Result<()> {
        if self.folders.insert(name.into()) {
            let mut header = Self::header(EntryType::Directory, mode, 0);
            self.archive
                .append_data(&mut header, format!("{name}/"), std::io::empty())?;
        }
        Ok(())
    }

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = Self::header(EntryType::Regular, mode, content.len() as u64);
        Ok(self.archive.append_data(&mut header, name, content)?)
    }

    fn link(&mut self, name: &str, target: &str) -> Result<()> {
        let mut header = Self::header(EntryType::Symlink, 0o777, 0);
        Ok(self.archive.append_link(&mut header, name, target)?)
    }

    /// Adds a package as dpkg unpacks it: its files, its maintainer's scripts, and its stanza to `status`.
    fn package(&mut self, deb: &Path, status: &mut String, triggers: &mut Triggers) -> Result<()> {
        let parts = control(deb)?;
        let stanza = parts.get("control").context("it has no control file")?;
        let stanza = String::from_utf8_lossy(stanza);
        let field = |key: &str| {
            stanza
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
        };
        let name = field("Package").context("it has no name")?;
        let full = match field("Multi-Arch") {
            Some("same") => format!("{name}:{}", field("Architecture").unwrap_or("arm64")),
            _ => name.to_owned(),
        };
        let settings: Vec<&str> = parts
            .get("conffiles")
            .map(|text| std::str::from_utf8(text))
            .transpose()?
            .unwrap_or_default()
            .lines()
            .filter(|line| line.starts_with('/'))
            .collect();
        let list = self.data(deb, &settings)?;
        self.file(
            &format!("var/lib/dpkg/info/{full}.list"),
            0o644,
            list.as_bytes(),
        )?;
        for (part, content) in &parts {
            let script = matches!(
                part.as_str(),
                "preinst" | "postinst" | "prerm" | "postrm" | "config"
            );
            if part != "control" {
                self.file(
                    &format!("var/lib/dpkg/info/{full}.{part}"),
                    if script { 0o755 } else { 0o644 },
                    content,
                )?;
            }
            if part == "triggers" {
                triggers.add(&full, &String::from_utf8_lossy(content));
            }
        }
        for line in stanza.trim_end().lines() {
            *status += &format!("{line}\n");
            if line.starts_with("Package: ") {
                *status += "Status: install ok unpacked\n";
            }
        }
        if !settings.is_empty() {
            *status += "Conffiles:\n";
            for file in settings {
                *status += &format!(" {file} newconffile\n");
            }
        }
        *status += "\n";
        Ok(())
    }

    /// Adds a package's files, its settings by the names that dpkg renames when it configures the package. Returns the
    /// list of its files.
    fn data(&mut self, deb: &Path, settings: &[&str]) -> Result<String> {
        let mut child = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(deb)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run dpkg-deb")?;
        let mut list = String::new();
        let mut archive = Archive::new(child.stdout.take().context("no output")?);
        for entry in archive.entries()? {
            let entry = entry?;
            let path = plain(&entry.path()?);
            let name = path
                .to_str()
                .context("a name that is not UTF-8")?
                .to_owned();
            list += &match name.as_str() {
                "" => "/.\n".to_owned(),
                _ => format!("/{name}\n"),
            };
            let mut header = Header::new_gnu();
            let old = entry.header();
            header.set_entry_type(old.entry_type());
            header.set_mode(old.mode()?);
            header.set_uid(old.uid()?);
            header.set_gid(old.gid()?);
            header.set_mtime(old.mtime()?);
            header.set_size(entry.size());
            let mut path = merged(&path);
            match old.entry_type() {
                EntryType::Directory => {
                    if path.as_os_str().is_empty() || !self.folders.insert(path.clone()) {
                        continue;
                    }
                    // A folder's name ends so.
                    path.push("");
                    self.archive
                        .append_data(&mut header, &path, std::io::empty())?;
                }
                EntryType::Link => {
                    let target = entry.link_name()?.context("a link to nothing")?;
                    let target = merged(&plain(&target));
                    self.archive.append_link(&mut header, &path, &target)?;
                }
                EntryType::Symlink => {
                    let target = entry
                        .link_name()?
                        .context("a link to nothing")?
                        .into_owned();
                    self.archive.append_link(&mut header, &path, &target)?;
                }
                _ => {
                    if settings.contains(&format!("/{name}").as_str()) {
                        let mut new = path.into_os_string();
                        new.push(".dpkg-new");
                        path = new.into();
                    }
                    self.archive.append_data(&mut header, &path, entry)?;
                }
            }
        }
        let status = child.wait()?;
        ensure!(status.success(), "dpkg-deb: {status}");
        Ok(list)
    }
}

/// The files of a package's control part.
fn control(deb: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let output = Command::new("dpkg-deb")
        .arg("--ctrl-tarfile")
        .arg(deb)
        .stdin(Stdio::null())
        .output()
        .context("cannot run dpkg-deb")?;
    ensure!(output.status.success(), "dpkg-deb: {}", output.status);
    let mut parts = BTreeMap::new();
    for entry in Archive::new(&output.stdout[..]).entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            let name = plain(&entry.path()?).to_string_lossy().into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            parts.insert(name, content);
        }
    }
    Ok(parts)
}

/// Without `./` and `/` before it.
fn plain(path: &Path) -> PathBuf {
    path.components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .collect()
}

/// Where a file is on a system whose `/bin`, `/lib` and `/sbin` are links into `/usr`.
fn merged(path: &Path) -> PathBuf {
    let moved = ["bin", "lib", "sbin"].map(OsStr::new);
    match path.components().next() {
        Some(Component::Normal(first)) if moved.contains(&first) => Path::new("usr").join(path),
        _ => path.to_owned(),
    }
}

/// Who wants to be told of what (`dpkg`'s `doc/triggers.txt`, "Persistent file formats").
#[derive(Default)]
struct Triggers {
    paths: String,
    names: BTreeMap<String, String>,
}

impl Triggers {
    /// Adds what a package's file `triggers` says.
    fn add(&mut self, package: &str, text: &str) {
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let (Some(directive), Some(trigger)) = (words.next(), words.next()) else {
                continue;
            };
            let Some(kind) = directive.strip_prefix("interest") else {
                continue;
            };
            let suffix = if kind == "-noawait" { "/noawait" } else { "" };
            if trigger.starts_with('/') {
                self.paths += &format!("{trigger} {package}{suffix}\n");
            } else {
                let who = self.names.entry(trigger.to_owned()).or_default();
                *who += &format!("{package}{suffix}\n");
            }
        }
    }

    fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        let names = self.names.iter();
        names
            .map(|(name, who)| (name.as_str(), who.as_str()))
            .chain([("File", self.paths.as_str())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_go_where_the_links_lead() {
        for (from, to) in [
            ("./bin/sh", "usr/bin/sh"),
            ("./lib/a/b", "usr/lib/a/b"),
            ("/sbin/init", "usr/sbin/init"),
            ("./lib", "usr/lib"),
            ("./library/x", "library/x"),
            ("./usr/bin/x", "usr/bin/x"),
            ("./", ""),
        ] {
            assert_eq!(merged(&plain(Path::new(from))), Path::new(to), "{from}");
        }
    }

    #[test]
    fn triggers_are_as_dpkg_keeps_them() {
        let mut triggers = Triggers::default();
        triggers.add(
            "man-db",
            "interest-noawait /usr/share/man # all\nactivate x\n",
        );
        triggers.add("libc-bin", "interest ldconfig\n\n");
        triggers.add("initramfs", "interest-await ldconfig\n");
        let files: Vec<_> = triggers.files().collect();
        assert_eq!(
            files,
            [
                ("ldconfig", "libc-bin\ninitramfs\n"),
                ("File", "/usr/share/man man-db/noawait\n"),
            ]
        );
    }

    #[test]
    fn the_disk_has_a_file_system_in_its_partition() {
        let disk = std::env::temp_dir().join(format!("paravane-gpt-{}", std::process::id()));
        if which("mke2fs").is_none() {
            return;
        }
        make_disk(&disk).unwrap();
        let mut file = File::open(&disk).unwrap();
        let mut at = |offset: u64| {
            let mut bytes = [0; 8];
            file.seek(SeekFrom::Start(offset)).unwrap();
            file.read_exact(&mut bytes).unwrap();
            bytes
        };
        assert_eq!(&at(512), b"EFI PART");
        assert_eq!(&at(DISK - 512), b"EFI PART");
        // The magic of ext4's superblock.
        assert_eq!(at(PARTITION + 1024 + 56)[..2], [0x53, 0xef]);
        fs::remove_file(disk).unwrap();
    }
}
