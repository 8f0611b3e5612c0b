// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sizes and sums of what set-up unpacked into the cache, so that a damaged file is found and fetched again.
//!
//! Beside each mark that says that something is complete (`package`) stands a list (`package.sums`), a file per line:
//! `size mtime sum path`, separated by tabs. The sum is CRC-32: this is against disks and interruptions, not against people.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::Crc;

use crate::project::{Fingerprint, write_atomic};

fn list(mark: &Path) -> PathBuf {
    let mut name = mark.as_os_str().to_owned();
    name.push(".sums");
    name.into()
}

fn sum(path: &Path) -> Result<u32> {
    let mut crc = Crc::new();
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    loop {
        let bytes = file.fill_buf()?;
        if bytes.is_empty() {
            return Ok(crc.sum());
        }
        crc.update(bytes);
        let n = bytes.len();
        file.consume(n);
    }
}

/// All files below a folder.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => all.extend(files(&path)?),
            false => all.push(path),
        }
    }
    all.sort();
    Ok(all)
}

/// Keeps the sizes and sums of what `mark` stands for.
pub fn record(mark: &Path, files: &[PathBuf]) -> Result<()> {
    let mut text = String::new();
    for file in files {
        let Fingerprint { size, mtime } = Fingerprint::of(file)?;
        let sum = sum(file).with_context(|| format!("cannot read {}", file.display()))?;
        text += &format!("{size}\t{mtime}\t{sum:08x}\t{}\n", file.display());
    }
    write_atomic(&list(mark), text.as_bytes())
}

/// The first file of what `mark` stands for that is not as it was unpacked; `None` too where nothing is known. Files whose
/// size and time are as they were are read only if it is to be `thorough`.
pub fn damaged(mark: &Path, thorough: bool) -> Option<PathBuf> {
    let text = fs::read_to_string(list(mark)).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.splitn(4, '\t');
        let size = fields.next()?.parse::<u64>().ok()?;
        let mtime = fields.next()?.parse::<u128>().ok()?;
        let want = u32::from_str_radix(fields.next()?, 16).ok()?;
        let path = PathBuf::from(fields.next()?);
        let good = match Fingerprint::of(&path) {
            Err(_) => false,
            Ok(now) if now.size != size => false,
            Ok(now) if now.mtime == mtime && !thorough => true,
            Ok(_) => sum(&path).is_ok_and(|sum| sum == want),
        };
        (!good).then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_as_it_was_is_found() {
        let dir = std::env::temp_dir().join(format!("paravane-sums-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("modules")).unwrap();
        let (mark, image, module) = (
            dir.join("package"),
            dir.join("Image"),
            dir.join("modules/a.ko"),
        );
        fs::write(&image, b"a kernel").unwrap();
        fs::write(&module, b"a module").unwrap();
        assert_eq!(damaged(&mark, true), None, "nothing is known yet");
        let all = files(&dir).unwrap();
        assert_eq!(all, [image.clone(), module.clone()]);
        record(&mark, &all).unwrap();
        assert_eq!((damaged(&mark, false), damaged(&mark, true)), (None, None));
        // Cut short; gone; and one byte another, which is read where the time is another or thoroughness is asked for.
        fs::write(&image, b"a ker").unwrap();
        assert_eq!(damaged(&mark, false), Some(image.clone()));
        fs::remove_file(&image).unwrap();
        assert_eq!(damaged(&mark, false), Some(image.clone()));
        fs::write(&image, b"a kernel").unwrap();
        assert_eq!(damaged(&mark, false), None, "written again as it was");
        let then = fs::metadata(&module).unwrap().modified().unwrap();
        fs::write(&module, b"a modula").unwrap();
        File::options()
            .write(true)
            .open(&module)
            .unwrap()
            .set_modified(then)
            .unwrap();
        assert_eq!(damaged(&mark, false), None);
        assert_eq!(damaged(&mark, true), Some(module));
        fs::remove_dir_all(&dir).unwrap();
    }
}
