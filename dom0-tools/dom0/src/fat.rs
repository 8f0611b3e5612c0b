// SPDX-License-Identifier: MIT OR Apache-2.0
//! The FAT32 volume with the guests. Folders are read by `embedded-sdmmc`; where a file's data
//! lie is read from the FAT once, when it is opened, so that data go between the disk and
//! whatever memory they are for without passing here.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use backends::extent::{ExtentMap, Run};
use core::cell::RefCell;
use core::fmt;
use core::ops::ControlFlow;
use embedded_sdmmc::{
    Block, BlockCount, BlockDevice, BlockIdx, LfnBuffer, RawDirectory, RawVolume, ShortFileName,
    TimeSource, Timestamp, VolumeIdx, VolumeManager,
};
use guest_abi::Errno;

/// Bytes of a sector.
pub const SECTOR: usize = 512;
/// Sectors that are read at a time for folders and the FAT.
const CHUNK: usize = 128;
/// Such pieces that are kept.
const CHUNKS: usize = 16;

/// The disk, for folders and the FAT: small and seldom enough that the program waits for it.
pub trait Sectors {
    /// Reads sectors.
    fn read(&self, sector: u64, out: &mut [u8]) -> Result<(), Errno>;
    /// How many there are.
    fn count(&self) -> u64;
}

/// Where a file is.
#[derive(Debug)]
pub struct Placement {
    /// Its size in bytes.
    pub size: u64,
    /// Its sectors on the disk, up to its size at least.
    pub map: ExtentMap,
}

impl Placement {
    /// A whole disk.
    pub fn whole(sectors: u64) -> Result<Self, Errno> {
        let map = ExtentMap::whole(Run { lba: 0, sectors }).map_err(|_| Errno::ENOMEM)?;
        Ok(Self {
            size: sectors * SECTOR as u64,
            map,
        })
    }
}

/// A name in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its long name, or its short one in small letters if it has no other.
    pub name: String,
    /// It is a folder.
    pub dir: bool,
    /// A file's size in bytes.
    pub size: u64,
    short: ShortFileName,
    /// Where the entry itself is: sector and byte.
    place: (u64, usize),
}

/// A disk behind a cache of large pieces, least recently used first out.
struct Cached<S> {
    disk: S,
    pieces: RefCell<Vec<(u64, Vec<u8>)>>,
}

#[derive(Debug)]
struct DiskError(Errno);

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl core::error::Error for DiskError {}

impl<S: Sectors> Cached<S> {
    /// Copies from one sector on.
    fn copy(&self, sector: u64, out: &mut [u8]) -> Result<(), Errno> {
        for (i, part) in out.chunks_mut(SECTOR).enumerate() {
            let sector = sector + i as u64;
            let start = sector - sector % CHUNK as u64;
            let at = (sector - start) as usize * SECTOR;
            let mut pieces = self.pieces.borrow_mut();
            if let Some(i) = pieces.iter().position(|(s, _)| *s == start) {
                let hit = pieces.remove(i);
                pieces.push(hit);
            } else {
                let n = (self.disk.count().saturating_sub(start)).min(CHUNK as u64);
                let mut bytes = if pieces.len() >= CHUNKS {
                    pieces.remove(0).1
                } else {
                    Vec::new()
                };
                bytes.resize(n as usize * SECTOR, 0);
                self.disk.read(start, &mut bytes)?;
                pieces.push((start, bytes));
            }
            let piece = pieces.last().map(|(_, b)| b.as_slice()).unwrap_or_default();
            let from = piece.get(at..at + part.len()).ok_or(Errno::EIO)?;
            part.copy_from_slice(from);
        }
        Ok(())
    }
}

impl<S: Sectors> BlockDevice for &Cached<S> {
    type Error = DiskError;
    fn read(&self, blocks: &mut [Block], start: BlockIdx) -> Result<(), DiskError> {
        for (i, block) in blocks.iter_mut().enumerate() {
            self.copy(u64::from(start.0) + i as u64, &mut block.contents)
                .map_err(DiskError)?;
        }
        Ok(())
    }
    fn write(&self, _blocks: &[Block], _start: BlockIdx) -> Result<(), DiskError> {
        Err(DiskError(Errno::EROFS))
    }
    fn num_blocks(&self) -> Result<BlockCount, DiskError> {
        Ok(BlockCount(
            u32::try_from(self.disk.count()).unwrap_or(u32::MAX),
        ))
    }
}

/// Nothing is written, so that nothing needs a time.
struct NoTime;

impl TimeSource for NoTime {
    fn get_timestamp(&self) -> Timestamp {
        Timestamp {
            year_since_1970: 0,
            zero_indexed_month: 0,
            zero_indexed_day: 0,
            hours: 0,
            minutes: 0,
            seconds: 0,
        }
    }
}

type Manager<'a, S> = VolumeManager<&'a Cached<S>, NoTime, 4, 1, 1>;

/// The volume.
pub struct Volume<S: Sectors> {
    disk: Cached<S>,
    /// Its number in the partition table, from 0.
    partition: usize,
    /// The first sector of the FAT.
    fat: u64,
    /// The sector of cluster 2.
    data: u64,
    cluster_sectors: u64,
    clusters: u64,
}

fn errno(e: embedded_sdmmc::Error<DiskError>) -> Errno {
    use embedded_sdmmc::Error as E;
    match e {
        E::DeviceError(e) => e.0,
        E::NotFound => Errno::ENOENT,
        E::OpenedFileAsDir => Errno::ENOENT,
        E::OpenedDirAsFile => Errno::EISDIR,
        _ => Errno::EIO,
    }
}

fn le16(b: &[u8], at: usize) -> u64 {
    b.get(at..at + 2)
        .map_or(0, |b| u64::from(b[0]) | u64::from(b[1]) << 8)
}

fn le32(b: &[u8], at: usize) -> u64 {
    le16(b, at) | le16(b, at + 2) << 16
}

impl<S: Sectors> Volume<S> {
    /// The FAT32 file system in the first partition of that type on the disk. [`Errno::EINVAL`]:
    /// there is none.
    pub fn open(disk: S) -> Result<Self, Errno> {
        let disk = Cached {
            disk,
            pieces: RefCell::default(),
        };
        let mut sector = [0; SECTOR];
        disk.copy(0, &mut sector)?;
        if le16(&sector, 510) != 0xaa55 {
            return Err(Errno::EINVAL);
        }
        let mut parts = sector[446..510].chunks(16);
        let partition = parts
            .position(|part| matches!(part[4], 0x0b | 0x0c))
            .ok_or(Errno::EINVAL)?;
        let start = le32(&sector, 446 + 16 * partition + 8);
        // The BIOS parameter block, as the FAT32 specification has it.
        disk.copy(start, &mut sector)?;
        let (per_cluster, reserved) = (u64::from(sector[13]), le16(&sector, 14));
        let (fats, fat_sectors) = (u64::from(sector[16]), le32(&sector, 36));
        let total = le32(&sector, 32);
        let overhead = reserved + fats * fat_sectors;
        if le16(&sector, 510) != 0xaa55
            || le16(&sector, 11) != SECTOR as u64
            || per_cluster == 0
            || le16(&sector, 22) != 0
            || fats == 0
            || total <= overhead
            || start + total > disk.disk.count()
        {
            return Err(Errno::EINVAL);
        }
        let volume = Self {
            partition,
            fat: start + reserved,
            data: start + overhead,
            cluster_sectors: per_cluster,
            clusters: (total - overhead) / per_cluster,
            disk,
        };
        volume.in_dir("/", |_, _| Ok(()))?;
        Ok(volume)
    }

    /// Calls `f` with the folder at `path`.
    fn in_dir<R>(
        &self,
        path: &str,
        f: impl FnOnce(&Manager<'_, S>, RawDirectory) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        let manager: Manager<'_, S> = VolumeManager::new_with_limits(&self.disk, NoTime, 0);
        let volume: RawVolume = manager
            .open_raw_volume(VolumeIdx(self.partition))
            .map_err(errno)?;
        let mut dir = manager.open_root_dir(volume).map_err(errno)?;
        for name in path.split('/').filter(|n| !n.is_empty()) {
            let entry = Self::entry(&manager, dir, name)?;
            if !entry.dir {
                return Err(Errno::ENOENT);
            }
            let next = manager.open_dir(dir, entry.short).map_err(errno)?;
            manager.close_dir(dir).map_err(errno)?;
            dir = next;
        }
        // The manager goes, and all its handles with it.
        f(&manager, dir)
    }

    fn each(
        manager: &Manager<'_, S>,
        dir: RawDirectory,
        mut f: impl FnMut(Entry) -> ControlFlow<()>,
    ) -> Result<(), Errno> {
        let mut storage = [0; 768];
        let mut lfn = LfnBuffer::new(&mut storage);
        manager
            .iterate_dir_lfn(dir, &mut lfn, |e, long| {
                let attributes = e.attributes;
                if attributes.is_volume() || attributes.is_lfn() {
                    return ControlFlow::Continue(());
                }
                let short = || e.name.to_string().to_ascii_lowercase();
                let name = long.map_or_else(short, ToString::to_string);
                if name == "." || name == ".." {
                    return ControlFlow::Continue(());
                }
                f(Entry {
                    name,
                    dir: attributes.is_directory(),
                    size: u64::from(e.size),
                    short: e.name,
                    place: (u64::from(e.entry_block.0), e.entry_offset as usize),
                })
            })
            .map_err(errno)
    }

    fn entry(manager: &Manager<'_, S>, dir: RawDirectory, name: &str) -> Result<Entry, Errno> {
        let mut found = None;
        Self::each(manager, dir, |e| {
            if e.name.eq_ignore_ascii_case(name) || e.short.to_string().eq_ignore_ascii_case(name) {
                found = Some(e);
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        found.ok_or(Errno::ENOENT)
    }

    /// What is in a folder.
    pub fn list(&self, path: &str) -> Result<Vec<Entry>, Errno> {
        self.in_dir(path, |manager, dir| {
            let mut all = Vec::new();
            Self::each(manager, dir, |e| {
                all.push(e);
                ControlFlow::Continue(())
            })?;
            Ok(all)
        })
    }

    /// Where a file is. [`Errno::EISDIR`]: it is a folder.
    pub fn find(&self, path: &str) -> Result<Placement, Errno> {
        let path = path.trim_matches('/');
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        if name.is_empty() {
            return Err(Errno::EISDIR);
        }
        let entry = self.in_dir(dir, |manager, dir| Self::entry(manager, dir, name))?;
        if entry.dir {
            return Err(Errno::EISDIR);
        }
        // The entry's own first cluster, which the library keeps to itself.
        let mut sector = [0; SECTOR];
        self.disk.copy(entry.place.0, &mut sector)?;
        let raw = sector
            .get(entry.place.1..entry.place.1 + 32)
            .ok_or(Errno::EIO)?;
        let first = le16(raw, 20) << 16 | le16(raw, 26);
        Ok(Placement {
            size: entry.size,
            map: self.chain(first, entry.size)?,
        })
    }

    /// Follows a file's clusters.
    fn chain(&self, first: u64, size: u64) -> Result<ExtentMap, Errno> {
        let cluster_bytes = self.cluster_sectors * SECTOR as u64;
        let mut map = ExtentMap::new();
        let mut cluster = first;
        for _ in 0..size.div_ceil(cluster_bytes) {
            // A chain that ends early, or leaves the volume, is not a file's.
            if cluster < 2 || cluster - 2 >= self.clusters {
                return Err(Errno::EIO);
            }
            map.push(Run {
                lba: self.data + (cluster - 2) * self.cluster_sectors,
                sectors: self.cluster_sectors,
            })
            .map_err(|_| Errno::ENOMEM)?;
            let mut word = [0; SECTOR];
            self.disk.copy(self.fat + cluster / 128, &mut word)?;
            cluster = le32(&word, (cluster % 128) as usize * 4) & 0x0fff_ffff;
        }
        Ok(map)
    }

    /// The disk.
    pub fn disk(&self) -> &S {
        &self.disk.disk
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Cursor, Read, Seek, SeekFrom, Write};

    struct Image(Vec<u8>);

    impl Sectors for Image {
        fn read(&self, sector: u64, out: &mut [u8]) -> Result<(), Errno> {
            let at = sector as usize * SECTOR;
            out.copy_from_slice(self.0.get(at..at + out.len()).ok_or(Errno::EIO)?);
            Ok(())
        }
        fn count(&self) -> u64 {
            (self.0.len() / SECTOR) as u64
        }
    }

    /// A FAT32 partition at 1 MiB with some files, made by another implementation.
    fn image(files: &[(&str, Vec<u8>)]) -> Image {
        const START: usize = 1 << 20;
        let sectors = 70_000usize;
        let mut part = Cursor::new(vec![0u8; sectors * SECTOR]);
        let options = fatfs::FormatVolumeOptions::new()
            .fat_type(fatfs::FatType::Fat32)
            .bytes_per_cluster(512);
        fatfs::format_volume(&mut part, options).unwrap();
        {
            let fs = fatfs::FileSystem::new(&mut part, fatfs::FsOptions::new()).unwrap();
            let root = fs.root_dir();
            root.create_dir("guests").unwrap();
            root.create_dir("guests/Unterordner mit langem Namen")
                .unwrap();
            // Interleaved writes make fragments.
            let mut open: Vec<_> = files
                .iter()
                .map(|(name, bytes)| (root.create_file(name).unwrap(), bytes.as_slice()))
                .collect();
            while open.iter().any(|(_, b)| !b.is_empty()) {
                for (file, bytes) in &mut open {
                    let n = bytes.len().min(3000);
                    file.write_all(&bytes[..n]).unwrap();
                    *bytes = &bytes[n..];
                }
            }
        }
        let mut all = vec![0u8; START + sectors * SECTOR];
        part.seek(SeekFrom::Start(0)).unwrap();
        part.read_exact(&mut all[START..]).unwrap();
        all[450] = 0x0c;
        all[454..458].copy_from_slice(&2048u32.to_le_bytes());
        all[458..462].copy_from_slice(&(sectors as u32).to_le_bytes());
        all[510..512].copy_from_slice(&[0x55, 0xaa]);
        Image(all)
    }

    fn content(seed: u32, len: usize) -> Vec<u8> {
        (0..len as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8)
            .collect()
    }

    #[test]
    fn files_are_found_where_another_implementation_put_them() {
        let files = [
            ("guests/initrd-6.1.cpio.gz", content(1, 100_000)),
            ("guests/vmlinuz-6.1", content(2, 65_537)),
            ("guests/linux.cfg", content(3, 100)),
            ("guests/Unterordner mit langem Namen/leer", Vec::new()),
        ];
        let volume = Volume::open(image(&files)).unwrap();
        for (name, bytes) in &files {
            let place = volume.find(&format!("/{name}")).unwrap();
            assert_eq!(place.size, bytes.len() as u64);
            let mut read = Vec::new();
            for run in place.map.runs(0, place.map.sectors(), u64::MAX).unwrap() {
                let at = run.lba as usize * SECTOR;
                let sectors = run.sectors as usize * SECTOR;
                read.extend_from_slice(&volume.disk().0[at..at + sectors]);
            }
            assert!(read.len() >= bytes.len() && &read[..bytes.len()] == bytes.as_slice());
            if bytes.len() > 10_000 {
                assert!(place.map.extents() > 3, "the test wants fragments");
            }
        }
        assert_eq!(volume.find("/GUESTS/LINUX.CFG").unwrap().size, 100);
        // The same behind partitions of other kinds.
        let mut third = image(&files);
        third.0.copy_within(446..462, 478);
        third.0[446 + 4] = 0x83;
        let third = Volume::open(third).unwrap();
        assert_eq!(third.find("/guests/linux.cfg").unwrap().size, 100);
        let error = |path| volume.find(path).unwrap_err();
        assert_eq!(error("/guests/none"), Errno::ENOENT);
        assert_eq!(error("/guests/linux.cfg/x"), Errno::ENOENT);
        assert_eq!(error("/guests"), Errno::EISDIR);
        assert_eq!(error("/"), Errno::EISDIR);
        let mut names: Vec<_> = volume
            .list("/guests")
            .unwrap()
            .into_iter()
            .map(|e| (e.name, e.dir))
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                ("Unterordner mit langem Namen".to_string(), true),
                ("initrd-6.1.cpio.gz".to_string(), false),
                ("linux.cfg".to_string(), false),
                ("vmlinuz-6.1".to_string(), false),
            ]
        );
    }

    #[test]
    fn a_broken_volume_is_an_error() {
        assert!(matches!(
            Volume::open(Image(vec![0; 1 << 20])),
            Err(Errno::EINVAL)
        ));
        let files = [("f", content(1, 100_000))];
        let mut broken = image(&files);
        // A chain that ends at once.
        let fat = {
            let v = Volume::open(Image(broken.0.clone())).unwrap();
            v.fat as usize * SECTOR
        };
        for word in broken.0[fat + 12..fat + 4096].chunks_mut(4) {
            word.copy_from_slice(&[0xff, 0xff, 0xff, 0x0f]);
        }
        let volume = Volume::open(broken).unwrap();
        assert_eq!(volume.find("/f").unwrap_err(), Errno::EIO);
    }
}
