// SPDX-License-Identifier: MIT OR Apache-2.0
//! dom0's volume: a disk image with one FAT32 partition that holds the guests under `/guests`.
//!
//! It is kept between runs, and only what changed on the host is copied into it. After a run, what the guests changed
//! in their files is copied back, each file whole or not at all. A run that ended without this (the power went, or
//! xtask was killed) left a mark, and the next one makes good for it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use rustix::fs::FlockOperation;

use crate::process::{finish, spinner};
use crate::project::{Fingerprint, temporary_beside, write_atomic};

/// Where the partition begins, in bytes: 1 MiB, as partitioning programs have it.
const PARTITION: u64 = 1 << 20;
const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;
/// Free room that a new volume has beside its content.
const SLACK: u64 = 256 * MIB;
/// A volume's least size (FAT32 needs 65525 clusters); the image file is sparse.
const LEAST: u64 = 1024 * MIB;
const COPY_BLOCK: usize = 1 << 20;
/// Where the prompt keeps the lines that a person entered, and its size: dom0 writes into files, but makes none.
const HISTORY: &str = "vane.his";
const HISTORY_SIZE: usize = 8 << 10;

/// The volume in one folder of the cache: `volume.img` and what is known of it.
pub struct Volume {
    image: PathBuf,
    /// What is on the volume, from where; not there while the image is being written.
    manifest: PathBuf,
    /// There while a machine may write to the image.
    dirty: PathBuf,
    /// Held while this is used.
    _lock: File,
}

/// A file on the volume and the host's file it came from.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    source: PathBuf,
    fingerprint: Fingerprint,
}

/// By path on the volume.
type Manifest = BTreeMap<String, Entry>;

impl Volume {
    /// The volume kept in `dir`, for this process alone until it is dropped.
    pub fn lock(dir: &Path) -> Result<Self> {
        let lock = File::create(dir.join("volume.lock"))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("another run uses the volume in {}", dir.display()))?;
        Ok(Self {
            image: dir.join("volume.img"),
            manifest: dir.join("volume.manifest"),
            dirty: dir.join("volume.dirty"),
            _lock: lock,
        })
    }

    /// The disk image.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Brings the volume up to date: `/guests` with all files of the folders, where a later folder's file replaces
    /// an earlier one's of the same name (in FAT's sense: upper and lower case are one).
    pub fn sync(&self, folders: &[&Path]) -> Result<()> {
        if self.dirty.exists() {
            self.write_back()
                .context("what the last run left on the volume cannot be written back")?;
        }
        let mut wanted = Manifest::new();
        for folder in folders {
            let mut found = Manifest::new();
            scan(folder, "guests", &mut found)?;
            wanted.retain(|other, _| !found.keys().any(|path| folded(path) == folded(other)));
            wanted.extend(found);
        }
        let old = self.read_manifest();
        let old = old
            .filter(|_| fs::metadata(&self.image).is_ok_and(|image| image.len().is_power_of_two()));
        if old.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let message = summary("dom0's volume", &wanted);
        let bar = spinner(&message);
        let _ = fs::remove_file(&self.manifest);
        let updated = match &old {
            Some(old) => self.update(old, &wanted).is_ok(),
            None => false,
        };
        if !updated && let Err(error) = create(&self.image, &wanted) {
            // Of no use, and in the way of whatever needs the room.
            let _ = fs::remove_file(&self.image);
            return Err(error.context(format!("cannot make {}", self.image.display())));
        }
        self.write_manifest(&wanted)?;
        finish(&bar, &message, true);
        Ok(())
    }

    /// Forgets what is on the volume, and what a machine changed there: the next [`Volume::sync`] makes it anew.
    pub fn discard(&self) {
        let _ = fs::remove_file(&self.manifest);
        let _ = fs::remove_file(&self.dirty);
    }

    /// To be called before a machine gets the image.
    pub fn begin_use(&self) -> Result<()> {
        File::create(&self.dirty)
            .with_context(|| format!("cannot write {}", self.dirty.display()))?;
        Ok(())
    }

    /// Copies files that changed on the volume back to where they came from. Returns those that were written.
    ///
    /// A source that was itself changed since is kept, and the volume's content is put beside it as `NAME.from-run`.
    pub fn write_back(&self) -> Result<Vec<PathBuf>> {
        let Some(mut manifest) = self.read_manifest() else {
            let _ = fs::remove_file(&self.dirty);
            return Ok(Vec::new());
        };
        let mut written = Vec::new();
        // A machine that wrote nothing left the image older than the mark.
        let mark = Fingerprint::of(&self.dirty).map_or(0, |mark| mark.mtime);
        if Fingerprint::of(&self.image)?.mtime >= mark {
            let fs = self.open(false)?;
            let root = fs.root_dir();
            for (name, entry) in &mut manifest {
                let Ok(mut file) = root.open_file(name) else {
                    continue;
                };
                let Some(first) = first_difference(&mut file, &entry.source)? else {
                    continue;
                };
                let target = match Fingerprint::of(&entry.source) {
                    Ok(now) if now == entry.fingerprint => entry.source.clone(),
                    _ => {
                        let mut name = entry.source.clone().into_os_string();
                        name.push(".from-run");
                        let target = PathBuf::from(name);
                        eprintln!(
                            "note: {} changed on the host during the run; the volume's content is in {}",
                            entry.source.display(),
                            target.display()
                        );
                        target
                    }
                };
                copy_back(&mut file, first, &entry.source, &target)?;
                if target == entry.source {
                    entry.fingerprint = Fingerprint::of(&target)?;
                }
                written.push(target);
            }
        }
        self.write_manifest(&manifest)?;
        let _ = fs::remove_file(&self.dirty);
        Ok(written)
    }

    /// Changes what differs, in place.
    fn update(&self, old: &Manifest, wanted: &Manifest) -> Result<()> {
        let fs = self.open(true)?;
        for (name, entry) in old {
            if wanted.get(name) != Some(entry) {
                fs.root_dir().remove(name)?;
            }
        }
        for (name, entry) in wanted {
            if old.get(name) != Some(entry) {
                copy_in(&fs, name, entry)?;
            }
        }
        make_history(&fs)?;
        fs.unmount()?;
        Ok(())
    }

    fn open(&self, write: bool) -> Result<FileSystem<Partition>> {
        open(&self.image, write)
    }

    /// `size mtime path-on-volume source`, separated by tabs, a file per line.
    fn read_manifest(&self) -> Option<Manifest> {
        let text = fs::read_to_string(&self.manifest).ok()?;
        text.lines()
            .map(|line| {
                let mut fields = line.splitn(4, '\t');
                let size = fields.next()?.parse().ok()?;
                let mtime = fields.next()?.parse().ok()?;
                let name = fields.next()?.to_owned();
                let source = fields.next()?.into();
                Some((
                    name,
                    Entry {
                        source,
                        fingerprint: Fingerprint { size, mtime },
                    },
                ))
            })
            .collect()
    }

    fn write_manifest(&self, manifest: &Manifest) -> Result<()> {
        let mut text = String::new();
        for (
            name,
            Entry {
                source,
                fingerprint,
            },
        ) in manifest
        {
            text += &format!(
                "{}\t{}\t{name}\t{}\n",
                fingerprint.size,
                fingerprint.mtime,
                source.display()
            );
        }
        write_atomic(&self.manifest, text.as_bytes())
    }
}

/// A new image with all files.
fn create(path: &Path, wanted: &Manifest) -> Result<()> {
    let content: u64 = wanted.values().map(|entry| entry.fingerprint.size).sum();
    // QEMU's SD cards are of such sizes.
    let size = (content + content / 8 + SLACK)
        .next_power_of_two()
        .max(LEAST);
    let cluster = if size <= 2048 * MIB {
        8 << 10
    } else {
        32 << 10
    };
    let sectors = u32::try_from((size - PARTITION) / SECTOR)
        .context("the guests are too large for a FAT32 volume (2 TiB)")?;
    let _ = fs::remove_file(path);
    let mut image = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    image.set_len(size)?;
    image.write_all(&partition_table(sectors))?;
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_cluster(cluster)
        .total_sectors(sectors)
        .volume_label(*b"PARAVANE   ");
    fatfs::format_volume(Partition::new(image, size)?, options)
        .context("cannot make the volume's file system")?;
    let fs = open(path, true)?;
    for (name, entry) in wanted {
        copy_in(&fs, name, entry)?;
    }
    make_history(&fs)?;
    fs.unmount().context("cannot end writing the volume")
}

/// Makes the prompt's file, if it is not there.
fn make_history(fs: &FileSystem<Partition>) -> Result<()> {
    if fs.root_dir().open_file(HISTORY).is_err() {
        let mut file = fs.root_dir().create_file(HISTORY)?;
        file.write_all(&[0; HISTORY_SIZE])?;
    }
    Ok(())
}

fn open(path: &Path, write: bool) -> Result<FileSystem<Partition>> {
    let image = OpenOptions::new()
        .read(true)
        .write(write)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let size = image.metadata()?.len();
    FileSystem::new(Partition::new(image, size)?, FsOptions::new())
        .with_context(|| format!("cannot read the file system in {}", path.display()))
}

/// Makes an image with what is in folders, each below a folder of the volume (`""`: at its root), with progress.
pub fn make(image: &Path, folders: &[(&Path, &str)]) -> Result<()> {
    let mut wanted = Manifest::new();
    for (folder, prefix) in folders {
        scan(folder, prefix, &mut wanted)?;
    }
    let message = summary("the card", &wanted);
    let bar = spinner(&message);
    let made = create(image, &wanted);
    finish(&bar, &message, made.is_ok());
    made
}

/// A file of an image's volume.
pub fn read(image: &Path, name: &str) -> Result<Vec<u8>> {
    let fs = open(image, false)?;
    let mut bytes = Vec::new();
    fs.root_dir()
        .open_file(name)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {name} of {}", image.display()))?;
    Ok(bytes)
}

/// What goes on a volume, in words.
fn summary(what: &str, wanted: &Manifest) -> String {
    let total: u64 = wanted.values().map(|entry| entry.fingerprint.size).sum();
    format!("{what} ({} files, {} MiB)", wanted.len(), total / MIB)
}

/// A path as FAT compares it: without regard to upper and lower case, and to dots and spaces at the end.
fn folded(path: &str) -> String {
    let parts = path
        .split('/')
        .map(|part| part.trim_end_matches(['.', ' ']));
    parts.collect::<Vec<_>>().join("/").to_uppercase()
}

/// Adds all files below `folder` to `wanted` as `prefix/...`.
fn scan(folder: &Path, prefix: &str, wanted: &mut Manifest) -> Result<()> {
    for entry in fs::read_dir(folder)
        .with_context(|| format!("cannot read the folder {}", folder.display()))?
    {
        let source = entry?.path();
        let Some(name) = source.file_name().and_then(|name| name.to_str()) else {
            bail!("{} has a name that is no UTF-8", source.display());
        };
        if name.starts_with('.') || name.ends_with(".from-run") {
            continue;
        }
        let path = match prefix {
            "" => name.to_owned(),
            _ => format!("{prefix}/{name}"),
        };
        ensure!(
            !path.contains(['\t', '\n']),
            "{} has a name that a volume cannot have",
            source.display()
        );
        // Follows links, so that a folder may point to images elsewhere.
        let meta =
            fs::metadata(&source).with_context(|| format!("cannot read {}", source.display()))?;
        if meta.is_dir() {
            scan(&source, &path, wanted)?;
        } else if meta.is_file() {
            ensure!(
                meta.len() < 1 << 32,
                "{} is of 4 GiB or more, which FAT cannot hold: give it to dom0 with --disk",
                source.display()
            );
            let fingerprint = Fingerprint::of(&source)?;
            let source = source.canonicalize()?;
            let key = folded(&path);
            if let Some(other) = wanted.keys().find(|other| folded(other) == key) {
                let mut both = [other.as_str(), &path];
                both.sort_unstable();
                bail!(
                    "{} are names that FAT cannot tell apart: give one of the two files another",
                    both.join(" and ")
                );
            }
            wanted.insert(
                path,
                Entry {
                    source,
                    fingerprint,
                },
            );
        }
    }
    Ok(())
}

fn copy_in(fs: &FileSystem<Partition>, name: &str, entry: &Entry) -> Result<()> {
    let root = fs.root_dir();
    for (at, _) in name.match_indices('/') {
        root.create_dir(&name[..at])?;
    }
    let mut from = File::open(&entry.source)
        .with_context(|| format!("cannot read {}", entry.source.display()))?;
    let mut to = root
        .create_file(name)
        .with_context(|| format!("cannot make /{name} on the volume"))?;
    to.truncate()?;
    let mut block = vec![0; COPY_BLOCK];
    loop {
        let n = from.read(&mut block)?;
        if n == 0 {
            return Ok(to.flush()?);
        }
        to.write_all(&block[..n])
            .with_context(|| format!("cannot write /{name} on the volume"))?;
    }
}

/// Where the two files begin to differ (rounded down to [`COPY_BLOCK`]), if they do.
fn first_difference(file: &mut impl Read, source: &Path) -> Result<Option<u64>> {
    let Ok(mut other) = File::open(source) else {
        return Ok(Some(0));
    };
    let (mut a, mut b) = (vec![0; COPY_BLOCK], vec![0; COPY_BLOCK]);
    let mut at = 0;
    loop {
        let (n, m) = (read_full(file, &mut a)?, read_full(&mut other, &mut b)?);
        if a[..n] != b[..m] {
            return Ok(Some(at));
        }
        if n == 0 {
            return Ok(None);
        }
        at += n as u64;
    }
}

/// Makes `target` as `file` is, where the first `same` bytes are as in `source`; through a temporary file.
fn copy_back(file: &mut (impl Read + Seek), same: u64, source: &Path, target: &Path) -> Result<()> {
    let temporary = temporary_beside(target);
    let mut copy = || -> Result<()> {
        if source.is_file() {
            // Keeps permissions, and what is sparse, where the file system can.
            fs::copy(source, &temporary)?;
        }
        let mut out = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&temporary)?;
        file.seek(SeekFrom::Start(same))?;
        let (mut new, mut old) = (vec![0; COPY_BLOCK], vec![0; COPY_BLOCK]);
        let mut at = same;
        loop {
            let n = read_full(file, &mut new)?;
            if n == 0 {
                break;
            }
            out.seek(SeekFrom::Start(at))?;
            let m = read_full(&mut out, &mut old[..n])?;
            if new[..n] != old[..m] {
                out.seek(SeekFrom::Start(at))?;
                out.write_all(&new[..n])?;
            }
            at += n as u64;
        }
        out.set_len(at)?;
        out.sync_all()?;
        Ok(fs::rename(&temporary, target)?)
    };
    copy()
        .with_context(|| format!("cannot write {} back", target.display()))
        .inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })
}

/// Reads until the buffer is full or the file ends.
fn read_full(from: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match from.read(&mut buffer[n..])? {
            0 => break,
            more => n += more,
        }
    }
    Ok(n)
}

/// A master boot record with one FAT32 partition (type 0x0C) of that many sectors, to the image's end.
fn partition_table(sectors: u32) -> [u8; 512] {
    let mut record = [0; 512];
    let first = (PARTITION / SECTOR) as u32;
    let entry = &mut record[446..462];
    // No cylinders, heads and sectors: such a disk is addressed by block alone.
    entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[4] = 0x0c;
    entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[8..12].copy_from_slice(&first.to_le_bytes());
    entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    record
}

/// The partition within the image, for `fatfs`.
struct Partition {
    image: File,
    size: u64,
    at: u64,
}

impl Partition {
    fn new(image: File, image_size: u64) -> Result<Self> {
        let size = image_size
            .checked_sub(PARTITION)
            .context("the image is too small")?;
        Ok(Self { image, size, at: 0 })
    }
}

impl Read for Partition {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let n = buffer.len().min(left);
        let n = std::os::unix::fs::FileExt::read_at(
            &self.image,
            &mut buffer[..n],
            PARTITION + self.at,
        )?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Write for Partition {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let n = buffer.len().min(left);
        let n =
            std::os::unix::fs::FileExt::write_at(&self.image, &buffer[..n], PARTITION + self.at)?;
        self.at += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Seek for Partition {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let dir =
                std::env::temp_dir().join(format!("paravane-volume-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            for part in ["demo", "own/sub", "cache"] {
                fs::create_dir_all(dir.join(part)).unwrap();
            }
            Self(dir)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn content(volume: &Volume, name: &str) -> Option<Vec<u8>> {
        let fs = volume.open(false).unwrap();
        let mut bytes = Vec::new();
        fs.root_dir()
            .open_file(name)
            .ok()?
            .read_to_end(&mut bytes)
            .unwrap();
        Some(bytes)
    }

    /// As a machine does: some bytes of a file on the volume change.
    fn change(volume: &Volume, name: &str, at: u64, bytes: &[u8]) {
        volume.begin_use().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let fs = volume.open(true).unwrap();
        let root = fs.root_dir();
        let mut file = root.open_file(name).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(bytes).unwrap();
        drop(file);
    }

    #[test]
    fn files_go_in_change_and_come_back() {
        let dir = Folder::new("life");
        let disk = dir.path("own/disk image of a guest.img");
        fs::write(dir.path("demo/linux.cfg"), "demo").unwrap();
        fs::write(dir.path("demo/hello.cfg"), "hello").unwrap();
        fs::write(dir.path("own/LINUX.cfg"), "own").unwrap();
        fs::write(dir.path("own/sub/a"), "a").unwrap();
        fs::write(&disk, vec![1; 3 * COPY_BLOCK + 5]).unwrap();
        let volume = Volume::lock(&dir.path("cache")).unwrap();
        let folders = [dir.path("demo"), dir.path("own")];
        let folders = [folders[0].as_path(), folders[1].as_path()];
        volume.sync(&folders).unwrap();
        assert_eq!(
            content(&volume, "guests/linux.cfg").unwrap(),
            b"own",
            "the later folder wins"
        );
        assert_eq!(content(&volume, "guests/hello.cfg").unwrap(), b"hello");
        assert_eq!(content(&volume, "guests/sub/a").unwrap(), b"a");
        let made = Fingerprint::of(volume.image()).unwrap();
        volume.sync(&folders).unwrap();
        assert_eq!(
            Fingerprint::of(volume.image()).unwrap(),
            made,
            "nothing changed, nothing is done"
        );

        change(
            &volume,
            "guests/disk image of a guest.img",
            COPY_BLOCK as u64 * 2,
            b"data",
        );
        assert_eq!(volume.write_back().unwrap(), [disk.canonicalize().unwrap()]);
        let bytes = fs::read(&disk).unwrap();
        assert_eq!(bytes.len(), 3 * COPY_BLOCK + 5);
        assert_eq!(
            &bytes[2 * COPY_BLOCK - 1..2 * COPY_BLOCK + 5],
            b"\x01data\x01"
        );
        assert_eq!(volume.write_back().unwrap(), [] as [PathBuf; 0]);
        assert!(
            !fs::read_dir(dir.path("own"))
                .unwrap()
                .flatten()
                .any(|e| e.file_name().to_string_lossy().starts_with('.'))
        );

        fs::write(dir.path("own/sub/a"), "longer").unwrap();
        fs::remove_file(dir.path("own/LINUX.cfg")).unwrap();
        volume.sync(&folders).unwrap();
        assert_eq!(content(&volume, "guests/sub/a").unwrap(), b"longer");
        assert_eq!(content(&volume, "guests/linux.cfg").unwrap(), b"demo");
        assert_eq!(
            content(&volume, "guests/disk image of a guest.img").unwrap(),
            bytes
        );
    }

    #[test]
    fn names_that_fat_cannot_tell_apart_are_named() {
        let dir = Folder::new("names");
        let volume = Volume::lock(&dir.path("cache")).unwrap();
        let own = dir.path("own");
        for (one, other) in [
            ("hq.cfg", "HQ.CFG"),
            ("sub/ä.img", "sub/Ä.img"),
            ("a", "a."),
        ] {
            fs::write(dir.path(&format!("own/{one}")), "1").unwrap();
            fs::write(dir.path(&format!("own/{other}")), "2").unwrap();
            let mut both = [format!("guests/{one}"), format!("guests/{other}")];
            both.sort();
            assert_eq!(
                volume.sync(&[&own]).unwrap_err().to_string(),
                format!(
                    "{} are names that FAT cannot tell apart: give one of the two files another",
                    both.join(" and ")
                )
            );
            fs::remove_file(dir.path(&format!("own/{other}"))).unwrap();
            volume.sync(&[&own]).unwrap();
        }
    }

    #[test]
    fn a_killed_run_is_made_good_and_a_conflict_keeps_both() {
        let dir = Folder::new("kill");
        let disk = dir.path("own/d.img");
        fs::write(&disk, vec![0; 4096]).unwrap();
        let volume = Volume::lock(&dir.path("cache")).unwrap();
        let own = dir.path("own");
        volume.sync(&[&own]).unwrap();
        change(&volume, "guests/d.img", 0, b"guest");
        volume.sync(&[&own]).unwrap();
        assert_eq!(&fs::read(&disk).unwrap()[..6], b"guest\0");

        change(&volume, "guests/d.img", 0, b"again");
        fs::write(&disk, "host").unwrap();
        volume.write_back().unwrap();
        assert_eq!(fs::read(&disk).unwrap(), b"host");
        assert_eq!(
            &fs::read(dir.path("own/d.img.from-run")).unwrap()[..5],
            b"again"
        );
        volume.sync(&[&own]).unwrap();
        assert_eq!(content(&volume, "guests/d.img").unwrap(), b"host");
    }

    #[test]
    fn what_does_not_fit_makes_a_larger_volume() {
        let dir = Folder::new("grow");
        let own = dir.path("own");
        fs::write(own.join("small"), "x").unwrap();
        let volume = Volume::lock(&dir.path("cache")).unwrap();
        volume.sync(&[&own]).unwrap();
        File::create(own.join("large"))
            .unwrap()
            .set_len(600 * MIB)
            .unwrap();
        volume.sync(&[&own]).unwrap();
        assert!(fs::metadata(volume.image()).unwrap().len() > 800 * MIB);
        assert_eq!(content(&volume, "guests/small").unwrap(), b"x");
        File::create(own.join("huge"))
            .unwrap()
            .set_len(5 << 30)
            .unwrap();
        assert!(volume.sync(&[&own]).is_err());
    }
}
