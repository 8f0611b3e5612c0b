// SPDX-License-Identifier: MIT OR Apache-2.0
//! The header of an arm64 Linux `Image` (Linux: `Documentation/arch/arm64/booting.rst`).

use core::fmt;

/// What an `Image`'s header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHeader {
    /// Where the image goes, in bytes from a 2 MiB-aligned base. Linux since 5.10 has 0 here.
    pub text_offset: u64,
    /// The memory that it needs from its start on, its zeroed data included, in bytes.
    pub image_size: u64,
    /// Bit 0: big-endian; bits 1 and 2: page size (0 unknown, 1 4K, 2 16K, 3 64K); bit 3: the base
    /// may be anywhere in memory.
    pub flags: u64,
}

/// Why a file is no kernel that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// The file ends too early: its size and the size that it must have.
    Truncated {
        /// Bytes in the file.
        have: u64,
        /// Bytes that it must have at least.
        need: u64,
    },
    /// It is compressed, with this.
    Compressed(&'static str),
    /// It is an EFI zboot image, which holds a compressed kernel.
    EfiZboot,
    /// It is something else, as its first bytes tell.
    Other(&'static str),
    /// Nothing known: the magic number is not there.
    NotImage,
    /// The header's numbers make no sense.
    BadHeader(&'static str),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { have, need } => {
                write!(
                    f,
                    "the file is cut short: it has {have} bytes and needs at least {need}; copy it anew"
                )
            }
            Self::Compressed(how) => write!(
                f,
                "it is compressed with {how}; uncompress it first, an arm64 Image is needed"
            ),
            Self::EfiZboot => f.write_str(
                "it is an EFI zboot image (vmlinuz.efi); the uncompressed arm64 Image is needed",
            ),
            Self::Other(what) => write!(
                f,
                "it is {what}; an uncompressed arm64 Image is needed, such as Linux's arch/arm64/boot/Image"
            ),
            Self::NotImage => {
                f.write_str(
                "it is not an arm64 Image (no \"ARM\\x64\" at byte 56 of it), as Linux's arch/arm64/boot/Image is",
            )
            }
            Self::BadHeader(what) => write!(f, "its arm64 Image header is wrong: {what}"),
        }
    }
}

impl core::error::Error for ImageError {}

const MAGIC: &[u8] = b"ARM\x64";
/// Where Linux before 3.17 starts, whose header leaves the image's size 0.
const OLD_TEXT_OFFSET: u64 = 0x8_0000;
/// No kernel is bigger; the bound keeps sums small.
const MAX_SIZE: u64 = 1 << 32;

fn le<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}
fn u16_at(bytes: &[u8], at: usize) -> Option<u64> {
    le(bytes, at).map(|b| u64::from(u16::from_le_bytes(b)))
}
fn u32_at(bytes: &[u8], at: usize) -> Option<u64> {
    le(bytes, at).map(|b| u64::from(u32::from_le_bytes(b)))
}
fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    le(bytes, at).map(u64::from_le_bytes)
}

impl ImageHeader {
    /// The header's own size in bytes.
    pub const LEN: usize = 64;
    /// What [`ImageHeader::parse`] is best given: with so much of the file it also finds most files
    /// that were cut short.
    pub const HEAD: usize = 4096;

    /// Reads the header from the file's first bytes ([`Self::HEAD`] of them, or all of a shorter
    /// file) and its size.
    ///
    /// # Errors
    /// Says what the file is if it is no `Image`, or that it is cut short.
    pub fn parse(head: &[u8], file_size: u64) -> Result<Self, ImageError> {
        if head.get(56..60) != Some(MAGIC) {
            return Err(identify(head, file_size));
        }
        let fields = (u64_at(head, 8), u64_at(head, 16), u64_at(head, 24));
        let (Some(text_offset), Some(image_size), Some(flags), true) =
            (fields.0, fields.1, fields.2, head.len() >= Self::LEN)
        else {
            return Err(ImageError::Truncated {
                have: file_size,
                need: Self::LEN as u64,
            });
        };
        if flags & 1 != 0 {
            return Err(ImageError::BadHeader(
                "it is a big-endian kernel, which is not supported",
            ));
        }
        let need = raw_size(head).unwrap_or(0).max(Self::LEN as u64);
        if file_size < need {
            return Err(ImageError::Truncated {
                have: file_size,
                need,
            });
        }
        // Without a size the offset is not to be believed either (booting.rst, "image_size").
        let (text_offset, image_size) = match image_size {
            0 => (OLD_TEXT_OFFSET, file_size),
            size => (text_offset, size.max(file_size)),
        };
        if text_offset % 4096 != 0 || text_offset >= 2 << 20 {
            return Err(ImageError::BadHeader(
                "its text offset is no multiple of 4 KiB below 2 MiB",
            ));
        }
        if image_size > MAX_SIZE {
            return Err(ImageError::BadHeader("its image size is over 4 GiB"));
        }
        Ok(Self {
            text_offset,
            image_size,
            flags,
        })
    }
}

/// The file size that the PE sections of a kernel with an EFI stub ask for.
fn raw_size(head: &[u8]) -> Option<u64> {
    if head.get(..2)? != b"MZ" {
        return None;
    }
    let pe = usize::try_from(u32_at(head, 60)?).ok()?;
    if head.get(pe..pe.checked_add(4)?)? != b"PE\0\0" {
        return None;
    }
    let sections = u16_at(head, pe.checked_add(6)?)?;
    let optional = usize::try_from(u16_at(head, pe.checked_add(20)?)?).ok()?;
    let first = pe.checked_add(24)?.checked_add(optional)?;
    (0..sections.min(16))
        .map_while(|i| {
            let at = first.checked_add(usize::try_from(i).ok()?.checked_mul(40)?)?;
            u32_at(head, at.checked_add(16)?)?.checked_add(u32_at(head, at.checked_add(20)?)?)
        })
        .max()
}

fn identify(head: &[u8], file_size: u64) -> ImageError {
    const KNOWN: &[(&[u8], ImageError)] = &[
        (b"\x1f\x8b", ImageError::Compressed("gzip")),
        (b"\x28\xb5\x2f\xfd", ImageError::Compressed("zstd")),
        (b"\x02\x21\x4c\x18", ImageError::Compressed("lz4")),
        (b"\x04\x22\x4d\x18", ImageError::Compressed("lz4")),
        (b"\xfd7zXZ", ImageError::Compressed("xz")),
        (b"BZh", ImageError::Compressed("bzip2")),
        (b"\x5d\0\0", ImageError::Compressed("lzma")),
        (b"\x7fELF", ImageError::Other("an ELF file (a vmlinux?)")),
        (b"\x27\x05\x19\x56", ImageError::Other("a U-Boot uImage")),
        (
            b"\xd0\x0d\xfe\xed",
            ImageError::Other("a device tree or a FIT image"),
        ),
        (b"070701", ImageError::Other("a cpio archive (a ramdisk?)")),
    ];
    if head.get(..2) == Some(b"MZ") && head.get(4..8) == Some(b"zimg") {
        return ImageError::EfiZboot;
    }
    for (magic, error) in KNOWN {
        if head.starts_with(magic) {
            return error.clone();
        }
    }
    if head.get(0x202..0x206) == Some(b"HdrS") {
        return ImageError::Other("an x86 kernel (bzImage)");
    }
    if file_size < ImageHeader::LEN as u64 {
        return ImageError::Truncated {
            have: file_size,
            need: ImageHeader::LEN as u64,
        };
    }
    ImageError::NotImage
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec::Vec;

    fn image(text_offset: u64, image_size: u64, flags: u64) -> Vec<u8> {
        let mut b = alloc::vec![0; 64];
        b[8..16].copy_from_slice(&text_offset.to_le_bytes());
        b[16..24].copy_from_slice(&image_size.to_le_bytes());
        b[24..32].copy_from_slice(&flags.to_le_bytes());
        b[56..60].copy_from_slice(MAGIC);
        b
    }

    #[test]
    fn good_headers() {
        let h = ImageHeader::parse(&image(0, 0x200_0000, 0xa), 0x180_0000).unwrap();
        assert_eq!(
            h,
            ImageHeader {
                text_offset: 0,
                image_size: 0x200_0000,
                flags: 0xa
            }
        );
        let h = ImageHeader::parse(&image(0x8_0000, 0x200_0000, 2), 64).unwrap();
        assert_eq!(h.text_offset, 0x8_0000);
        // Before 3.17: no size, the offset is what it always was.
        let h = ImageHeader::parse(&image(0, 0, 0), 0x70_0000).unwrap();
        assert_eq!((h.text_offset, h.image_size), (0x8_0000, 0x70_0000));
        // A file with more than the image says keeps all its bytes.
        assert_eq!(
            ImageHeader::parse(&image(0, 100, 0), 5000)
                .unwrap()
                .image_size,
            5000
        );
    }

    #[test]
    fn each_other_thing_is_named() {
        let say = |bytes: &[u8], size| ImageHeader::parse(bytes, size).unwrap_err().to_string();
        let pad = |magic: &[u8]| {
            let mut v = magic.to_vec();
            v.resize(64, 0);
            v
        };
        assert_eq!(
            say(&pad(b"\x1f\x8b"), 64),
            "it is compressed with gzip; uncompress it first, an arm64 Image is needed"
        );
        assert_eq!(
            say(&pad(b"MZ\0\0zimg"), 64),
            "it is an EFI zboot image (vmlinuz.efi); the uncompressed arm64 Image is needed"
        );
        assert_eq!(
            say(&pad(b"\x7fELF"), 64),
            "it is an ELF file (a vmlinux?); an uncompressed arm64 Image is needed, such as Linux's arch/arm64/boot/Image"
        );
        assert_eq!(
            say(&pad(b"hello"), 64),
            "it is not an arm64 Image (no \"ARM\\x64\" at byte 56 of it), as Linux's arch/arm64/boot/Image is"
        );
        assert_eq!(
            say(b"", 0),
            "the file is cut short: it has 0 bytes and needs at least 64; copy it anew"
        );
        assert_eq!(
            say(&image(0, 64, 0)[..60], 60),
            "the file is cut short: it has 60 bytes and needs at least 64; copy it anew"
        );
        assert!(say(&image(0, 64, 1), 64).contains("big-endian"));
        assert!(say(&image(12, 64, 0), 64).contains("text offset"));
        assert!(say(&image(0, u64::MAX, 0), 64).contains("over 4 GiB"));
    }

    #[test]
    fn a_kernel_with_an_efi_stub_is_found_cut_short() {
        let mut b = image(0, 0x20_0000, 0);
        b[..2].copy_from_slice(b"MZ");
        b[60..64].copy_from_slice(&64u32.to_le_bytes());
        b.resize(4096, 0);
        b[64..68].copy_from_slice(b"PE\0\0");
        b[70..72].copy_from_slice(&2u16.to_le_bytes());
        b[84..86].copy_from_slice(&160u16.to_le_bytes());
        let data = 64 + 24 + 160 + 40;
        b[data + 16..data + 20].copy_from_slice(&0x1000u32.to_le_bytes());
        b[data + 20..data + 24].copy_from_slice(&0x10_0000u32.to_le_bytes());
        assert!(ImageHeader::parse(&b, 0x10_1000).is_ok());
        assert_eq!(
            ImageHeader::parse(&b, 0x10_0fff),
            Err(ImageError::Truncated {
                have: 0x10_0fff,
                need: 0x10_1000
            })
        );
    }

    proptest::proptest! {
        #[test]
        fn never_panics(
            mut head in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
            size: u64,
            magic: bool,
        ) {
            if magic && head.len() > 64 {
                head[..2].copy_from_slice(b"MZ");
                head[56..60].copy_from_slice(MAGIC);
                head[62] = 0;
                head[63] = 0;
            }
            let _ = ImageHeader::parse(&head, size);
        }
    }
}
