// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's physical address space (`public/arch-arm.h`, "Memory map") and where its parts go.

use alloc::vec::Vec;
use core::fmt;

use crate::ImageHeader;

/// The size of a page.
pub const PAGE: u64 = 4096;
/// Grant-table window: the first range of the hypervisor node.
pub const GRANT_BASE: u64 = 0x3800_0000;
/// Its size.
pub const GRANT_SIZE: u64 = 0x0100_0000;
/// The pages that the toolstack shares with the guest.
pub const MAGIC_BASE: u64 = 0x3900_0000;
/// The console's ring.
pub const CONSOLE_PAGE: u64 = MAGIC_BASE;
/// xenstore's ring.
pub const XENSTORE_PAGE: u64 = MAGIC_BASE + PAGE;
/// The ring of memory events.
pub const MEMACCESS_PAGE: u64 = MAGIC_BASE + 2 * PAGE;
/// The virtual UART's ring.
pub const VUART_PAGE: u64 = MAGIC_BASE + 3 * PAGE;
/// How many magic pages there are.
pub const MAGIC_PAGES: u64 = 4;
/// The virtual UART's registers.
pub const VUART_BASE: u64 = 0x2200_0000;
/// GICv2 and GICv3 distributor.
pub const GICD_BASE: u64 = 0x0300_1000;
/// GICv2 CPU interface.
pub const GICC_BASE: u64 = 0x0300_2000;
/// GICv3 redistributors.
pub const GICR_BASE: u64 = 0x0302_0000;
/// The RAM banks: base and the most that fits, in bytes.
pub const RAM: [Bank; 2] = [
    Region {
        base: 0x4000_0000,
        size: 0xc000_0000,
    },
    Region {
        base: 0x2_0000_0000,
        size: 0xfe_0000_0000,
    },
];
/// Modules go so far from the start of memory if they can.
const MODULES_OFFSET: u64 = 128 << 20;
/// Unused ranges below this size are not worth telling the guest (`hypervisor` binding).
const MIN_EXTENDED: u64 = 64 << 20;

/// A range of guest physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first byte's address.
    pub base: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// A range of RAM.
pub type Bank = Region;

impl Region {
    /// The first address behind it.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.base.saturating_add(self.size)
    }
}

/// Where a guest's parts go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Its RAM.
    pub banks: Vec<Bank>,
    /// The kernel, with the zeroed data behind its file.
    pub kernel: Region,
    /// Where vcpu 0 starts.
    pub entry: u64,
    /// The ramdisk: exactly its file's bytes.
    pub ramdisk: Option<Region>,
    /// The device tree.
    pub dtb: Region,
}

/// What does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// The memory's size is 0 or no multiple of a page.
    BadMemory(u64),
    /// More than both banks hold.
    TooMuchMemory(u64),
    /// The parts' sizes together are no possible sum.
    TooBig,
    /// The kernel and its modules do not fit in the first bank.
    NoRoom {
        /// The kernel's memory in bytes, from the start of RAM.
        kernel: u64,
        /// The ramdisk's.
        ramdisk: u64,
        /// The device tree's.
        dtb: u64,
        /// What the first bank has.
        have: u64,
        /// The smallest memory with which they fit, or `None` if no bank is big enough.
        need: Option<u64>,
    },
}

struct Mib(u64);
impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            small if small < 1 << 20 => write!(f, "{} KiB", small.div_ceil(1 << 10)),
            n => write!(f, "{} MiB", n.div_ceil(1 << 20)),
        }
    }
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadMemory(n) => {
                write!(
                    f,
                    "memory of {n} bytes: it must be a multiple of 4 KiB, and not 0"
                )
            }
            Self::TooMuchMemory(n) => write!(
                f,
                "memory of {}: a guest can have at most {}",
                Mib(*n),
                Mib(RAM[0].size + RAM[1].size)
            ),
            Self::TooBig => f.write_str("the kernel, ramdisk or device tree is impossibly big"),
            Self::NoRoom {
                kernel,
                ramdisk,
                dtb,
                have,
                need,
            } => {
                write!(
                    f,
                    "the kernel ({}), ramdisk ({}) and device tree ({}) do not fit in the first {} of memory",
                    Mib(*kernel),
                    Mib(*ramdisk),
                    Mib(*dtb),
                    Mib(*have)
                )?;
                match need {
                    Some(n) => write!(f, "; at least {} are needed", Mib(*n)),
                    None => f.write_str("; no amount of memory is enough for them"),
                }
            }
        }
    }
}

impl core::error::Error for LayoutError {}

/// Splits `memory` bytes over the RAM banks.
///
/// # Errors
/// The size is 0, no multiple of a page, or more than the banks hold.
pub fn banks(memory: u64) -> Result<Vec<Bank>, LayoutError> {
    if memory == 0 || !memory.is_multiple_of(PAGE) {
        return Err(LayoutError::BadMemory(memory));
    }
    let mut rest = memory;
    let mut banks = Vec::new();
    for bank in RAM {
        let size = rest.min(bank.size);
        if size > 0 {
            banks.push(Bank {
                base: bank.base,
                size,
            });
        }
        rest -= size;
    }
    if rest > 0 {
        return Err(LayoutError::TooMuchMemory(memory));
    }
    Ok(banks)
}

fn page_up(n: u64) -> Result<u64, LayoutError> {
    n.checked_next_multiple_of(PAGE).ok_or(LayoutError::TooBig)
}

/// Places the kernel at the start of RAM and its modules 128 MiB on, or else as high in the first
/// bank as they go.
///
/// # Errors
/// [`LayoutError::NoRoom`] says what does not fit and what memory would do.
pub fn place(
    banks: &[Bank],
    kernel: &ImageHeader,
    kernel_size: u64,
    ramdisk_size: Option<u64>,
    dtb_size: u64,
) -> Result<Layout, LayoutError> {
    let Some(bank) = banks.first().copied() else {
        return Err(LayoutError::BadMemory(0));
    };
    let image = kernel.image_size.max(kernel_size);
    let kernel_len = page_up(
        kernel
            .text_offset
            .checked_add(image)
            .ok_or(LayoutError::TooBig)?,
    )?;
    let ramdisk_len = page_up(ramdisk_size.unwrap_or(0))?;
    let dtb_len = page_up(dtb_size)?;
    let modules = ramdisk_len
        .checked_add(dtb_len)
        .ok_or(LayoutError::TooBig)?;
    let total = kernel_len.checked_add(modules).ok_or(LayoutError::TooBig)?;

    if total > bank.size {
        return Err(LayoutError::NoRoom {
            kernel: kernel_len,
            ramdisk: ramdisk_size.unwrap_or(0),
            dtb: dtb_size,
            have: bank.size,
            need: (total <= RAM[0].size).then_some(total),
        });
    }
    let at_128 = kernel_len <= MODULES_OFFSET
        && MODULES_OFFSET
            .checked_add(modules)
            .is_some_and(|end| end <= bank.size);
    let base = match at_128 {
        true => bank.base.saturating_add(MODULES_OFFSET),
        false => bank.end().saturating_sub(modules),
    };
    let entry = bank.base.saturating_add(kernel.text_offset);
    Ok(Layout {
        banks: banks.to_vec(),
        kernel: Region {
            base: entry,
            size: image,
        },
        entry,
        ramdisk: ramdisk_size.map(|size| Region { base, size }),
        dtb: Region {
            base: base.saturating_add(ramdisk_len),
            size: dtb_size,
        },
    })
}

/// The unused parts of the RAM ranges, which a guest may use for foreign mappings: "extended
/// regions" of the hypervisor node. Each is 2 MiB-aligned and at least 64 MiB.
#[must_use]
pub fn extended_regions(banks: &[Bank], gpaddr_bits: u8) -> Vec<Region> {
    let limit = 1u64.checked_shl(u32::from(gpaddr_bits)).unwrap_or(u64::MAX);
    RAM.iter()
        .filter_map(|range| {
            let used = banks
                .iter()
                .find(|b| b.base == range.base)
                .map_or(range.base, |b| b.end());
            let base = used.checked_next_multiple_of(2 << 20)?;
            let size = range.end().min(limit).checked_sub(base)?;
            (size >= MIN_EXTENDED).then_some(Region { base, size })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;

    const MIB: u64 = 1 << 20;

    fn image(text_offset: u64, image_size: u64) -> ImageHeader {
        ImageHeader {
            text_offset,
            image_size,
            flags: 10,
        }
    }

    #[test]
    fn memory_is_split_over_the_banks() {
        assert_eq!(
            banks(256 * MIB).unwrap(),
            vec![Bank {
                base: 0x4000_0000,
                size: 256 * MIB
            }]
        );
        assert_eq!(
            banks(4096 * MIB).unwrap(),
            vec![
                Bank {
                    base: 0x4000_0000,
                    size: 3072 * MIB
                },
                Bank {
                    base: 0x2_0000_0000,
                    size: 1024 * MIB
                }
            ]
        );
        assert_eq!(banks(0), Err(LayoutError::BadMemory(0)));
        assert_eq!(banks(5), Err(LayoutError::BadMemory(5)));
        assert_eq!(
            banks(1 << 41).unwrap_err().to_string(),
            "memory of 2097152 MiB: a guest can have at most 1043456 MiB"
        );
    }

    #[test]
    fn as_the_real_toolstack_places_it() {
        // The guest of shared observations: 256 MiB, a ramdisk of 0x434000 bytes.
        let l = place(
            &banks(256 * MIB).unwrap(),
            &image(0, 0x210_0000),
            0x200_0000,
            Some(0x43_4000),
            2000,
        )
        .unwrap();
        assert_eq!(l.entry, 0x4000_0000);
        assert_eq!(
            l.kernel,
            Region {
                base: 0x4000_0000,
                size: 0x210_0000
            }
        );
        assert_eq!(
            l.ramdisk,
            Some(Region {
                base: 0x4800_0000,
                size: 0x43_4000
            })
        );
        assert_eq!(
            l.dtb,
            Region {
                base: 0x4843_4000,
                size: 2000
            }
        );
    }

    #[test]
    fn small_guests_have_their_modules_at_the_top() {
        let l = place(
            &banks(32 * MIB).unwrap(),
            &image(0x8_0000, MIB),
            MIB,
            Some(5000),
            4097,
        )
        .unwrap();
        assert_eq!(l.entry, 0x4008_0000);
        assert_eq!(
            l.ramdisk,
            Some(Region {
                base: 0x4200_0000 - 0x4000,
                size: 5000
            })
        );
        assert_eq!(
            l.dtb,
            Region {
                base: 0x4200_0000 - 0x2000,
                size: 4097
            }
        );
        // A kernel that reaches over the usual place pushes them to the top as well.
        let l = place(
            &banks(512 * MIB).unwrap(),
            &image(0, 200 * MIB),
            MIB,
            None,
            4096,
        )
        .unwrap();
        assert_eq!(l.dtb.base, 0x6000_0000 - 0x1000);
        assert_eq!(l.ramdisk, None);
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let e = place(
            &banks(16 * MIB).unwrap(),
            &image(0, 12 * MIB),
            MIB,
            Some(8 * MIB),
            2000,
        )
        .unwrap_err();
        assert_eq!(
            e.to_string(),
            "the kernel (12 MiB), ramdisk (8 MiB) and device tree (2 KiB) do not fit in the first 16 MiB \
             of memory; at least 21 MiB are needed"
        );
        let e = place(
            &banks(4096 * MIB).unwrap(),
            &image(0, MIB),
            MIB,
            Some(4096 * MIB),
            2000,
        )
        .unwrap_err();
        assert!(
            e.to_string()
                .ends_with("; no amount of memory is enough for them"),
            "{e}"
        );
        // Exactly what was asked for is enough.
        let LayoutError::NoRoom {
            need: Some(need), ..
        } = place(
            &banks(16 * MIB).unwrap(),
            &image(0, 12 * MIB),
            MIB,
            Some(8 * MIB),
            2000,
        )
        .unwrap_err()
        else {
            panic!()
        };
        assert!(
            place(
                &banks(need).unwrap(),
                &image(0, 12 * MIB),
                MIB,
                Some(8 * MIB),
                2000
            )
            .is_ok()
        );
    }

    #[test]
    fn extended_regions_are_the_holes() {
        assert_eq!(
            extended_regions(&banks(256 * MIB).unwrap(), 40),
            vec![
                Region {
                    base: 0x5000_0000,
                    size: 0xb000_0000
                },
                Region {
                    base: 0x2_0000_0000,
                    size: 0xfe_0000_0000
                }
            ]
        );
        // A full first bank has none; a narrow address space cuts the second.
        assert_eq!(
            extended_regions(&banks(4096 * MIB).unwrap(), 36),
            vec![Region {
                base: 0x2_4000_0000,
                size: 0xd_c000_0000
            }]
        );
        assert!(extended_regions(&banks(256 * MIB).unwrap(), 0).is_empty());
    }

    proptest::proptest! {
        #[test]
        fn parts_never_overlap_and_stay_in_memory(
            memory in 1u64..1 << 20, text in 0u64..512, image_size in 0u64..1 << 33, file in 0u64..1 << 33,
            ramdisk in proptest::option::of(0u64..u64::MAX), dtb in 0u64..1 << 21,
        ) {
            let banks = banks(memory * PAGE).unwrap();
            if let Ok(l) = place(&banks, &image(text * PAGE, image_size), file, ramdisk, dtb) {
                let mut parts = vec![l.kernel, l.dtb];
                parts.extend(l.ramdisk);
                parts.sort_by_key(|p| p.base);
                proptest::prop_assert!(parts.iter().all(|p| p.base >= banks[0].base && p.end() <= banks[0].end()));
                proptest::prop_assert!(parts.windows(2).all(|w| w[0].end() <= w[1].base));
                proptest::prop_assert!(l.kernel.size >= file);
            }
        }
    }
}
