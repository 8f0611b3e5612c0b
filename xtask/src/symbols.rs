// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of function names in the hypervisor's image, by which a panic's trace can be read without
//! another machine. Its form is told in `hv_core::symbols`; its room is reserved by the linker script.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use object::LittleEndian;
use object::elf::{FileHeader64, SHF_EXECINSTR, SHT_SYMTAB, STT_FUNC, STT_NOTYPE};
use object::read::elf::{FileHeader, SectionHeader, Sym};

/// Longer names lose their begin, as the end tells more.
const LONGEST: usize = 64;

/// Room for names in an image, and what of it is used, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Room {
    pub size: u64,
    /// More than `size` when the names did not fit, and were left out.
    pub used: u64,
}

/// Fills the table into the flat image of `elf`, if that has room for one. Names that do not fit, as
/// those of a build without optimisation, are left out altogether.
pub fn fill(elf: &[u8], flat: &mut [u8]) -> Result<Room> {
    let (functions, marks) = read(elf)?;
    let (Some(&start), Some(&end)) = (marks.get("__symbols"), marks.get("__symbols_end")) else {
        return Ok(Room::default());
    };
    let room = flat
        .get_mut(usize::try_from(start)?..usize::try_from(end)?)
        .context("the room for symbols lies outside of the image")?;
    let table = table(&functions);
    if let Some(place) = room.get_mut(..table.len()) {
        place.copy_from_slice(&table);
    }
    Ok(Room {
        size: room.len() as u64,
        used: table.len() as u64,
    })
}

type Symbols = BTreeMap<u64, String>;

/// Functions by address, and the linker script's marks by name.
fn read(elf: &[u8]) -> Result<(Symbols, BTreeMap<String, u64>)> {
    let header = FileHeader64::<LittleEndian>::parse(elf).context("not a 64-bit ELF file")?;
    let endian = header.endian()?;
    let sections = header.sections(endian, elf)?;
    let symbols = sections.symbols(endian, elf, SHT_SYMTAB)?;
    let (mut functions, mut marks) = (Symbols::new(), BTreeMap::new());
    for (index, symbol) in symbols.enumerate() {
        let Ok(name) = symbol.name(endian, symbols.strings()) else {
            continue;
        };
        let name = String::from_utf8_lossy(name);
        let code = symbols
            .symbol_section(endian, symbol, index)
            .ok()
            .flatten()
            .and_then(|section| sections.section(section).ok())
            .is_some_and(|s| s.sh_flags(endian).contains(SHF_EXECINSTR));
        match symbol.st_type() {
            STT_FUNC => {
                functions.insert(symbol.st_value(endian), short(&name));
            }
            // Labels of assembly; `$x` and the like mark what is code.
            STT_NOTYPE if code && !name.starts_with(['$', '.']) && !name.starts_with("__") => {
                functions
                    .entry(symbol.st_value(endian))
                    .or_insert_with(|| short(&name));
            }
            STT_NOTYPE => {
                marks.insert(name.into_owned(), symbol.st_value(endian));
            }
            _ => {}
        }
    }
    Ok((functions, marks))
}

/// A symbol as a person reads it, without its hash.
fn short(symbol: &str) -> String {
    let name = format!("{:#}", rustc_demangle::demangle(symbol));
    if name.len() <= LONGEST {
        return name;
    }
    let mut cut = name.len() - (LONGEST - 2);
    while !name.is_char_boundary(cut) {
        cut += 1;
    }
    format!("..{}", &name[cut..])
}

fn table(functions: &Symbols) -> Vec<u8> {
    let mut out = Vec::new();
    for (at, name) in functions {
        let (Ok(at), Ok(len)) = (u32::try_from(*at), u8::try_from(name.len())) else {
            continue;
        };
        if len != 0 {
            out.extend(at.to_le_bytes());
            out.push(len);
            out.extend(name.as_bytes());
        }
    }
    out.extend([0; 5]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_readable_and_short() {
        assert_eq!(
            short("_ZN7hv_core5grant6Grants7destroy17h0123456789abcdefE"),
            "hv_core::grant::Grants::destroy"
        );
        assert_eq!(short("hv_enter"), "hv_enter");
        let long = short(&"x".repeat(100));
        assert_eq!((long.len(), &long[..3]), (LONGEST, "..x"));
    }

    #[test]
    fn a_table_is_in_order_and_ends() {
        let functions = Symbols::from([(0x300, "b".into()), (0x10, "aa".into())]);
        assert_eq!(
            table(&functions),
            b"\x10\0\0\0\x02aa\0\x03\0\0\x01b\0\0\0\0\0"
        );
    }
}
