// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian's arm64 kernel packages: the plain `Image` inside, and the few modules that a guest needs.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use object::{Object, ObjectSection};

use crate::cpio::Archive;
use crate::project::{read, write_atomic};

/// Larger than any distribution's kernel, to bound what an archive unpacks to.
const MAX_UNPACKED: u64 = 512 << 20;

/// Takes from an unpacked kernel package `tree` what the guests need, into `out`:
/// `Image`, `release` (the kernel's name for itself) and `modules/`: for each of `wanted`, a name and modules, a file of that
/// name (file names, in the order to insert them) and the modules with all that they depend on, not compressed.
pub fn import(tree: &Path, out: &Path, wanted: &[(&str, &[&str])]) -> Result<()> {
    let boot = tree.join("boot");
    let (file, release) = fs::read_dir(&boot)
        .with_context(|| format!("no kernel in {}", boot.display()))?
        .flatten()
        .find_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some((entry.path(), name.strip_prefix("vmlinuz-")?.to_owned()))
        })
        .with_context(|| format!("no vmlinuz in {}", boot.display()))?;
    let packed = fs::read(&file)?;
    let image =
        plain_image(&packed).with_context(|| format!("{} is of no known kind", file.display()))?;
    let modules = out.join("modules");
    fs::create_dir_all(&modules)?;
    let folder = ["lib/modules", "usr/lib/modules"]
        .iter()
        .map(|dir| tree.join(dir).join(&release))
        .find(|dir| dir.is_dir())
        .with_context(|| format!("the package has no modules for {release}"))?;
    for (order, names) in wanted {
        let mut set = Modules::read(&folder)?;
        for name in *names {
            set.insert(name, &modules)?;
        }
        write_atomic(
            &modules.join(order),
            (set.order.join("\n") + "\n").as_bytes(),
        )?;
    }
    write_atomic(&out.join("release"), release.as_bytes())?;
    write_atomic(&out.join("Image"), &image)
}

/// Puts modules that [`import`] made into an initramfs, as `modules/`: those that the file `list` names, and that file as
/// `modules/order`.
pub fn pack(archive: &mut Archive, modules: &Path, list: &str) -> Result<()> {
    let order = fs::read_to_string(modules.join(list))?;
    archive.file("modules/order", 0o644, order.as_bytes());
    for module in order.lines() {
        archive.file(
            &format!("modules/{module}"),
            0o644,
            &read(&modules.join(module))?,
        );
    }
    Ok(())
}

/// The device tree called `name` in an unpacked kernel package.
pub fn device_tree(tree: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    for folder in [tree.join("usr/lib"), tree.join("lib")] {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let file = entry.path().join("broadcom").join(name);
            if entry
                .file_name()
                .to_string_lossy()
                .starts_with("linux-image-")
                && file.is_file()
            {
                return Ok(Some(fs::read(file)?));
            }
        }
    }
    Ok(None)
}

/// A plain arm64 `Image` from what a distribution ships: itself, compressed, or an EFI zboot image with a
/// compressed one inside (Linux `Documentation/arch/arm64/booting.rst` and `drivers/firmware/efi/libstub/zboot-header.S`).
pub fn plain_image(bytes: &[u8]) -> Result<Vec<u8>> {
    if is_image(bytes) {
        return Ok(bytes.to_vec());
    }
    let unpacked = if bytes.starts_with(b"MZ") && bytes.get(4..8) == Some(b"zimg") {
        let word = |at: usize| {
            bytes
                .get(at..at + 4)
                .and_then(|b| b.try_into().ok())
                .map(u32::from_le_bytes)
                .context("a short zboot header")
        };
        let (start, size) = (word(8)? as usize, word(12)? as usize);
        let payload = bytes
            .get(start..start.saturating_add(size))
            .context("a truncated zboot image")?;
        let kind = bytes.get(24..56).context("a short zboot header")?;
        let kind: Vec<u8> = kind.iter().copied().take_while(|byte| *byte != 0).collect();
        match &kind[..] {
            b"gzip" => unpack(payload)?,
            b"zstd" | b"zstd22" => unpack(payload)?,
            b"xz" | b"xzkern" => unpack(payload)?,
            other => bail!(
                "an EFI zboot image packed with {}",
                String::from_utf8_lossy(other)
            ),
        }
    } else {
        unpack(bytes)?
    };
    ensure!(is_image(&unpacked), "there is no arm64 Image in it");
    Ok(unpacked)
}

fn is_image(bytes: &[u8]) -> bool {
    bytes.get(56..60) == Some(b"ARM\x64")
}

/// Unpacks gzip, zstd or xz, told apart by their first bytes.
fn unpack(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    match bytes {
        [0x1f, 0x8b, ..] => {
            flate2::read::GzDecoder::new(bytes)
                .take(MAX_UNPACKED)
                .read_to_end(&mut out)?;
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(bytes)
                .map_err(|e| anyhow::anyhow!("zstd: {e}"))?;
            decoder.take(MAX_UNPACKED).read_to_end(&mut out)?;
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            lzma_rust2::XzReader::new(bytes, false)
                .take(MAX_UNPACKED)
                .read_to_end(&mut out)?;
        }
        _ => bail!("neither an arm64 Image nor gzip, zstd or xz"),
    }
    Ok(out)
}

/// The modules of one kernel. Debian's packages have no `modules.dep` (depmod makes it when one is installed),
/// so what a module depends on is read from the module itself.
struct Modules {
    files: BTreeMap<String, PathBuf>,
    builtin: Vec<String>,
    order: Vec<String>,
    done: Vec<String>,
}

impl Modules {
    fn read(folder: &Path) -> Result<Self> {
        let builtin = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
        let builtin = builtin
            .lines()
            .filter_map(|line| module_name(Path::new(line)))
            .collect();
        let mut files = BTreeMap::new();
        collect(folder, &mut files)?;
        Ok(Self {
            files,
            builtin,
            order: Vec::new(),
            done: Vec::new(),
        })
    }

    /// Copies a module and, before it, what it depends on, to `out`.
    fn insert(&mut self, name: &str, out: &Path) -> Result<()> {
        let name = name.replace('-', "_");
        if self.done.contains(&name) || self.builtin.contains(&name) {
            return Ok(());
        }
        self.done.push(name.clone());
        let path = self
            .files
            .get(&name)
            .with_context(|| format!("the kernel has no module {name}"))?;
        let mut content = fs::read(path)?;
        if !content.starts_with(b"\x7fELF") {
            content =
                unpack(&content).with_context(|| format!("cannot unpack {}", path.display()))?;
        }
        let (needs, wishes) =
            dependencies(&content).with_context(|| format!("cannot read {}", path.display()))?;
        for need in needs {
            self.insert(&need, out)?;
        }
        // A wish may name an algorithm (`crypto-crc32c`), whose portable module is `NAME_generic`, or built in.
        for wish in wishes {
            let algorithm = wish.trim_start_matches("crypto_");
            for module in [wish.clone(), format!("{algorithm}_generic")] {
                if self.files.contains_key(&module) {
                    self.insert(&module, out)?;
                }
            }
        }
        let file = format!("{name}.ko");
        write_atomic(&out.join(&file), &content)?;
        self.order.push(file);
        Ok(())
    }
}

/// What a module's `.modinfo` says it needs (`depends`) and wishes to have before it (`softdep=pre:`).
fn dependencies(module: &[u8]) -> Result<(Vec<String>, Vec<String>)> {
    let file = object::File::parse(module)?;
    let section = file.section_by_name(".modinfo").context("no .modinfo")?;
    let (mut needs, mut wishes) = (Vec::new(), Vec::new());
    for entry in section.data()?.split(|byte| *byte == 0) {
        let entry = String::from_utf8_lossy(entry);
        if let Some(list) = entry.strip_prefix("depends=") {
            needs.extend(
                list.split(',')
                    .filter(|name| !name.is_empty())
                    .map(str::to_owned),
            );
        } else if let Some(list) = entry.strip_prefix("softdep=pre:") {
            let before = list.split("post:").next().unwrap_or_default();
            wishes.extend(before.split_whitespace().map(|name| name.replace('-', "_")));
        }
    }
    Ok((needs, wishes))
}

fn collect(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else if let Some(name) = module_name(&entry.path()) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// `drivers/block/xen-blkfront.ko.xz` is the module `xen_blkfront`.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (stem, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".gz" | ".zst").then(|| stem.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn image() -> Vec<u8> {
        let mut image = vec![7; 4096];
        image[56..60].copy_from_slice(b"ARM\x64");
        image
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zboot(kind: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0; 64];
        out[..8].copy_from_slice(b"MZ\0\0zimg");
        out[8..12].copy_from_slice(&64u32.to_le_bytes());
        out[12..16].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        out[24..24 + kind.len()].copy_from_slice(kind);
        out.extend_from_slice(payload);
        out
    }

    #[test]
    fn every_kind_of_kernel_gives_the_plain_image() {
        let image = image();
        assert_eq!(plain_image(&image).unwrap(), image);
        assert_eq!(plain_image(&gzip(&image)).unwrap(), image);
        assert_eq!(plain_image(&zboot(b"gzip", &gzip(&image))).unwrap(), image);
        let zstd = ruzstd::encoding::compress_to_vec(
            &image[..],
            ruzstd::encoding::CompressionLevel::Fastest,
        );
        assert_eq!(plain_image(&zboot(b"zstd22", &zstd)).unwrap(), image);
        assert_eq!(plain_image(&zstd).unwrap(), image);
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert!(plain_image(b"").is_err());
        assert!(plain_image(&gzip(b"text")).is_err());
        assert!(plain_image(&zboot(b"lzo", &gzip(&image()))).is_err());
        let mut truncated = zboot(b"gzip", &gzip(&image()));
        truncated.truncate(80);
        assert!(plain_image(&truncated).is_err());
    }

    #[test]
    fn module_names() {
        assert_eq!(
            module_name(Path::new("a/xen-blkfront.ko.xz")).as_deref(),
            Some("xen_blkfront")
        );
        assert_eq!(module_name(Path::new("ext4.ko")).as_deref(), Some("ext4"));
        assert_eq!(module_name(Path::new("modules.dep")), None);
    }
}
