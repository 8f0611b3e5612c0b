// SPDX-License-Identifier: MIT OR Apache-2.0
//! From an ELF executable to the flat image that a boot loader puts into memory.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use object::LittleEndian;
use object::elf::{EM_AARCH64, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};

use crate::project::{read, write_atomic};
use crate::symbols::{self, Room};

/// More than any image of ours, less than what would be a mistake in a linker script.
const MAX_IMAGE: u64 = 64 << 20;

/// The content of the `PT_LOAD` segments at their physical addresses, from the lowest one on.
/// Gaps are zero; what has no content in the file (`.bss`) is left out at the end.
pub fn flatten(elf: &[u8]) -> Result<Vec<u8>> {
    let header = FileHeader64::<LittleEndian>::parse(elf).context("not a 64-bit ELF file")?;
    let endian = header.endian().context("not a little-endian ELF file")?;
    ensure!(
        header.e_machine(endian) == EM_AARCH64,
        "not an ELF file for arm64"
    );
    let mut parts = Vec::new();
    for segment in header.program_headers(endian, elf)? {
        if segment.p_type(endian) == PT_LOAD && segment.p_filesz(endian) > 0 {
            let Ok(content) = segment.data(endian, elf) else {
                bail!("a segment lies outside of the file")
            };
            parts.push((segment.p_paddr(endian), content));
        }
    }
    parts.sort_by_key(|(address, _)| *address);
    let base = parts.first().context("no segment with content")?.0;
    let mut image = Vec::new();
    for (address, content) in parts {
        let start = usize::try_from(address - base)?;
        ensure!(start >= image.len(), "segments overlap at {address:#x}");
        ensure!(
            start as u64 + content.len() as u64 <= MAX_IMAGE,
            "the image would be larger than 64 MiB"
        );
        image.resize(start, 0);
        image.extend_from_slice(content);
    }
    Ok(image)
}

/// Flattens `elf` into `image`, padded with zeros to a multiple of `align`; an equal image is left untouched.
/// Gives its room for names of functions.
pub fn flatten_file(elf: &Path, image: &Path, align: usize) -> Result<Room> {
    let bytes = read(elf)?;
    let mut flat = flatten(&bytes).with_context(|| format!("cannot flatten {}", elf.display()))?;
    let names = symbols::fill(&bytes, &mut flat)?;
    flat.resize(flat.len().next_multiple_of(align), 0);
    if fs::read(image).is_ok_and(|old| old == flat) {
        return Ok(names);
    }
    write_atomic(image, &flat)?;
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A minimal ELF64 with one program header per `(p_type, p_paddr, content, p_memsz)`.
    fn elf(segments: &[(u32, u64, &[u8], u64)]) -> Vec<u8> {
        let mut out = vec![0; 64];
        out[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        out[16..18].copy_from_slice(&2u16.to_le_bytes());
        out[18..20].copy_from_slice(&183u16.to_le_bytes());
        out[32..40].copy_from_slice(&64u64.to_le_bytes());
        out[54..56].copy_from_slice(&56u16.to_le_bytes());
        out[56..58].copy_from_slice(&u16::try_from(segments.len()).unwrap().to_le_bytes());
        let mut offset = 64 + 56 * segments.len() as u64;
        for (kind, paddr, content, memsz) in segments {
            out.extend_from_slice(&kind.to_le_bytes());
            out.extend_from_slice(&4u32.to_le_bytes());
            for word in [
                offset,
                paddr + 0xffff_0000_0000,
                *paddr,
                content.len() as u64,
                *memsz,
                1,
            ] {
                out.extend_from_slice(&word.to_le_bytes());
            }
            offset += content.len() as u64;
        }
        for (_, _, content, _) in segments {
            out.extend_from_slice(content);
        }
        out
    }

    #[test]
    fn gaps_are_filled_and_bss_is_left_out() {
        let file = elf(&[
            (1, 0x1004, b"cd", 2),
            (4, 0x10, b"note", 4),
            (1, 0x1000, b"ab", 2),
            (1, 0x2000, b"", 64),
        ]);
        assert_eq!(flatten(&file).unwrap(), b"ab\0\0cd");
    }

    #[test]
    fn bad_files_are_refused() {
        assert!(flatten(b"MZ").is_err());
        assert!(flatten(&elf(&[])).is_err());
        assert!(
            flatten(&elf(&[(1, 0, b"abc", 3), (1, 2, b"x", 1)])).is_err(),
            "overlap"
        );
        assert!(
            flatten(&elf(&[(1, 0, b"a", 1), (1, 1 << 40, b"x", 1)])).is_err(),
            "too large"
        );
        let mut truncated = elf(&[(1, 0, b"abcdef", 6)]);
        truncated.truncate(truncated.len() - 2);
        assert!(flatten(&truncated).is_err());
    }
}
