// SPDX-License-Identifier: MIT OR Apache-2.0
//! Disk specifications (`xl-disk-configuration(5)`) and virtual device numbers
//! (`xen-vbd-interface(7)`).

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;

use crate::text;

/// A disk image's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The sectors as they are.
    Raw,
    /// QEMU's old copy-on-write format.
    Qcow,
    /// QEMU's format.
    Qcow2,
    /// Microsoft's format.
    Vhd,
    /// QEMU's enhanced format.
    Qed,
    /// A drive without a medium.
    Empty,
}

const FORMATS: &[(&str, Format)] = &[
    ("raw", Format::Raw),
    ("qcow", Format::Qcow),
    ("qcow2", Format::Qcow2),
    ("vhd", Format::Vhd),
    ("qed", Format::Qed),
    ("empty", Format::Empty),
];

/// A disk as a configuration describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The file or device.
    pub target: String,
    /// Its format.
    pub format: Format,
    /// The name that the configuration has for it, such as `xvda`.
    pub vdev: String,
    /// The same as a number.
    pub devid: u32,
    /// It may not be written.
    pub read_only: bool,
    /// It is a CD-ROM drive.
    pub cdrom: bool,
    /// The guest may discard sectors.
    pub discard: bool,
    /// The guest may trust the back-end (`untrusted` says that it may not).
    pub trusted: bool,
}

/// The virtual device number of a name: `xvda`, `xvdb1`, `sda`, `hda2`, `d0p1`, or a number.
///
/// `None` if it is no such name, or its number is not representable.
#[must_use]
pub fn device_number(name: &str) -> Option<u32> {
    let letters = |prefix: &str| -> Option<(u64, u64)> {
        let rest = name.strip_prefix(prefix)?;
        let digits = rest.trim_start_matches(|c: char| c.is_ascii_lowercase());
        let letters = rest.get(..rest.len() - digits.len())?;
        if letters.is_empty() || letters.len() > 4 {
            return None;
        }
        let disk = letters
            .bytes()
            .fold(0, |n, c| n * 26 + u64::from(c - b'a') + 1)
            - 1;
        Some((disk, partition(digits)?))
    };
    let xen = |(disk, part): (u64, u64)| match (disk, part) {
        (0..=15, 0..=15) => Some(202 << 8 | disk << 4 | part),
        (0..=0xf_ffff, 0..=255) => Some(1 << 28 | disk << 8 | part),
        _ => None,
    };
    let number = if let Some(number) = text::number(name) {
        Some(number)
    } else if name.starts_with("xvd") {
        xen(letters("xvd")?)
    } else if name.starts_with("sd") {
        match letters("sd")? {
            (disk @ 0..=15, part @ 0..=15) => Some(8 << 8 | disk << 4 | part),
            _ => None,
        }
    } else if name.starts_with("hd") {
        match letters("hd")? {
            (disk @ 0..=3, part @ 0..=63) => {
                let major = if disk < 2 { 3 } else { 22 };
                Some(major << 8 | (disk & 1) << 6 | part)
            }
            _ => None,
        }
    } else {
        let (disk, part) = match name.strip_prefix('d')?.split_once('p') {
            Some((disk, part)) => (disk, partition(part).filter(|_| !part.is_empty())?),
            None => (name.strip_prefix('d')?, 0),
        };
        xen((partition(disk).filter(|_| !disk.is_empty())?, part))
    };
    number.and_then(|n| u32::try_from(n).ok())
}

/// A partition's number; nothing is 0, the whole disk.
fn partition(digits: &str) -> Option<u64> {
    match digits {
        "" => Some(0),
        _ if digits.len() > 7 || !digits.bytes().all(|c| c.is_ascii_digit()) => None,
        _ => digits.parse().ok(),
    }
}

const KEYS: &[&str] = &[
    "target",
    "format",
    "vdev",
    "access",
    "backend",
    "backendtype",
    "script",
    "devtype",
    "cdrom",
    "discard",
    "no-discard",
    "direct-io-safe",
    "readwrite",
    "readonly",
    "trusted",
    "untrusted",
];

#[derive(Default)]
struct Parts {
    target: Option<String>,
    format: Option<Format>,
    vdev: Option<String>,
    read_only: Option<bool>,
    cdrom: bool,
    no_discard: bool,
    untrusted: bool,
    /// The target had a prefix of old, whose syntax is `prefix:target,vdev,access`.
    old: bool,
}

impl Disk {
    /// Reads a specification: `target, format, vdev, access` in this order, each of which may be
    /// empty or be given as `key=value` anywhere; `target=` takes the rest of the text and comes
    /// last. The deprecated prefixes `raw:`, `file:`, `phy:` … of the target are understood.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn parse(spec: &str) -> Result<Self, String> {
        let mut parts = Parts::default();
        let mut position = 0;
        let mut rest = Some(spec);
        while let Some(text) = rest {
            // `target=` takes everything, commas included.
            if let Some(("target", target)) = key_of(text) {
                set(&mut parts.target, "target", target.trim().to_owned())?;
                break;
            }
            let (word, after) = match text.split_once(',') {
                Some((word, after)) => (word.trim(), Some(after)),
                None => (text.trim(), None),
            };
            rest = after;
            match key_of(word) {
                Some((key, value)) => parts.named(key, value.trim())?,
                None if parts.flag(word)? => {}
                None => {
                    // Positions that were given by name are not given again; the format has none
                    // in the syntax of old, though many write it.
                    while position < 4 && parts.has(position, word) {
                        position += 1;
                    }
                    if !word.is_empty() {
                        parts.positional(position, word)?;
                    }
                    position += 1;
                }
            }
        }
        parts.finish()
    }
}

fn key_of(word: &str) -> Option<(&str, &str)> {
    text::key_value(word)
}

fn set<T>(slot: &mut Option<T>, what: &str, value: T) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("{what} is given twice; give it once")),
    }
}

impl Parts {
    fn has(&self, position: usize, word: &str) -> bool {
        match position {
            0 => self.target.is_some(),
            1 if self.old => !word.is_empty() && !FORMATS.iter().any(|(name, _)| *name == word),
            1 => self.format.is_some(),
            2 => self.vdev.is_some(),
            _ => self.read_only.is_some(),
        }
    }

    fn positional(&mut self, position: usize, word: &str) -> Result<(), String> {
        match position {
            0 => self.old_target(word),
            1 => self.named("format", word),
            2 => self.named("vdev", word),
            3 => self.named("access", word),
            _ => Err(format!(
                "\"{word}\" is one part too many; a disk is \"target, format, vdev, access\""
            )),
        }
    }

    /// A target that may have prefixes of old, such as `tap:qcow2:`.
    fn old_target(&mut self, word: &str) -> Result<(), String> {
        let mut target = word;
        while let Some((prefix, rest)) = target.split_once(':') {
            match prefix {
                "phy" | "file" | "tap" | "tap2" | "aio" | "ioemu" | "tapdisk" => {}
                _ => match FORMATS
                    .iter()
                    .find(|(name, f)| *name == prefix && *f != Format::Empty)
                {
                    Some((_, format)) => set(&mut self.format, "format", *format)?,
                    None => break,
                },
            }
            target = rest;
            self.old = true;
        }
        set(&mut self.target, "target", target.to_owned())
    }

    fn flag(&mut self, word: &str) -> Result<bool, String> {
        match word {
            "cdrom" => self.cdrom = true,
            "devtype" => return Err("devtype needs a value; write devtype=disk".to_string()),
            "discard" => self.no_discard = false,
            "no-discard" => self.no_discard = true,
            "direct-io-safe" | "trusted" => {}
            "untrusted" => self.untrusted = true,
            "readonly" => set(&mut self.read_only, "access", true)?,
            "readwrite" => set(&mut self.read_only, "access", false)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn named(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "format" => match FORMATS.iter().find(|(name, _)| *name == value) {
                Some((_, format)) => set(&mut self.format, "format", *format),
                None => {
                    let hint = match () {
                        () if device_number(value).is_some() => {
                            "; an empty format is written as two commas: \"target,,xvda,w\""
                                .to_owned()
                        }
                        () => "; it is raw (or qcow, qcow2, vhd, qed, empty)".to_owned(),
                    };
                    Err(format!("\"{value}\" is no format{hint}"))
                }
            },
            "vdev" => {
                let name = match value.strip_suffix(":cdrom") {
                    Some(name) => {
                        self.cdrom = true;
                        name
                    }
                    None => value,
                };
                if device_number(name).is_none() {
                    return Err(format!(
                        "\"{name}\" is no virtual device; write xvda, xvdb … (or sda, hda; xvda1 for a partition)"
                    ));
                }
                set(&mut self.vdev, "vdev", name.to_owned())
            }
            "access" => match value {
                "r" | "ro" => set(&mut self.read_only, "access", true),
                "w" | "rw" => set(&mut self.read_only, "access", false),
                _ => Err(format!(
                    "\"{value}\" is no access; write r (or ro) or w (or rw)"
                )),
            },
            "devtype" => match value {
                "disk" => Ok(()),
                "cdrom" => {
                    self.cdrom = true;
                    Ok(())
                }
                _ => Err(format!("\"{value}\" is no devtype; write disk or cdrom")),
            },
            "backendtype" => match value {
                "phy" | "qdisk" | "tap" | "standalone" => Ok(()),
                _ => Err(format!(
                    "\"{value}\" is no backendtype; leave it out (or write phy, qdisk, tap, standalone)"
                )),
            },
            "backend" => match value {
                "0" | "Domain-0" => Ok(()),
                _ => Err(format!(
                    "the back-end domain \"{value}\" is not supported; leave backend out, disks are served by domain 0"
                )),
            },
            // Hotplug scripts have nothing to do here.
            "script" => Ok(()),
            _ => {
                let hint = match text::closest(key, KEYS.iter().copied()) {
                    Some(k) => format!("did you mean \"{k}\"?"),
                    None => "a target with an = in it is written last, as target=…".to_owned(),
                };
                Err(format!("\"{key}\" is no key of a disk; {hint}"))
            }
        }
    }

    fn finish(self) -> Result<Disk, String> {
        let Some(vdev) = self.vdev else {
            return Err(
                "there is no vdev; write for instance \"/guests/disk.img,raw,xvda,w\"".to_owned(),
            );
        };
        let format = self.format.unwrap_or(Format::Raw);
        let target = self.target.unwrap_or_default();
        if self.cdrom && self.read_only == Some(false) {
            return Err("a CD-ROM cannot be written; leave the access out or make it r".to_owned());
        }
        match format {
            Format::Raw if target.is_empty() => {
                Err("there is no target; write the path of a file or device first".to_owned())
            }
            Format::Raw => Ok(Disk {
                target,
                format,
                devid: device_number(&vdev).unwrap_or(0),
                vdev,
                read_only: self.read_only.unwrap_or(self.cdrom),
                cdrom: self.cdrom,
                discard: !self.no_discard && !self.read_only.unwrap_or(self.cdrom),
                trusted: !self.untrusted,
            }),
            Format::Empty => {
                Err("a drive without a medium is not supported; give a target".to_owned())
            }
            other => Err(format!(
                "format {other} is not supported; convert the image to raw (qemu-img convert -O raw)"
            )),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = FORMATS
            .iter()
            .find(|(_, x)| x == self)
            .map_or("?", |(name, _)| name);
        f.write_str(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers() {
        for (name, number) in [
            ("xvda", Some(51712)),
            ("xvdb", Some(51728)),
            ("xvda1", Some(51713)),
            ("xvdp15", Some(51967)),
            ("xvdq", Some(1 << 28 | 16 << 8)),
            ("xvda16", Some(1 << 28 | 16)),
            ("xvdaa", Some(1 << 28 | 26 << 8)),
            ("xvdaa1", Some(1 << 28 | 26 << 8 | 1)),
            ("xvda256", None),
            ("xvd", None),
            ("xvd1", None),
            ("xvdA", None),
            ("xvdzzzzz", None),
            ("sda", Some(2048)),
            ("sdp15", Some(2303)),
            ("sdq", None),
            ("hda", Some(768)),
            ("hdb1", Some(768 + 65)),
            ("hdc", Some(22 << 8)),
            ("hdd63", Some((22 << 8) + 127)),
            ("hde", None),
            ("d0", Some(51712)),
            ("d0p1", Some(51713)),
            ("d1p", None),
            ("dp1", None),
            ("51712", Some(51712)),
            ("0xca00", Some(51712)),
            ("99999999999", None),
            ("disk", None),
            ("", None),
        ] {
            assert_eq!(device_number(name), number, "{name}");
        }
    }

    #[test]
    fn specifications() {
        for (spec, target, vdev, read_only) in [
            ("/guests/a.img,raw,xvda,w", "/guests/a.img", "xvda", false),
            (
                "/guests/a.img, raw, xvda, rw",
                "/guests/a.img",
                "xvda",
                false,
            ),
            ("/guests/a.img,,xvda", "/guests/a.img", "xvda", false),
            ("/guests/a.img,,xvda,r", "/guests/a.img", "xvda", true),
            (
                "format=raw, vdev=xvdb, access=ro, target=/a,b=c.img",
                "/a,b=c.img",
                "xvdb",
                true,
            ),
            ("vdev=xvda,/guests/a.img", "/guests/a.img", "xvda", false),
            (
                "/guests/a.img,vdev=xvda,raw,ro",
                "/guests/a.img",
                "xvda",
                true,
            ),
            ("phy:/dev/vdb,xvda,w", "/dev/vdb", "xvda", false),
            ("file:/guests/a.img,,hda1,w", "/guests/a.img", "hda1", false),
            ("tap:raw:/x,,sda", "/x", "sda", false),
            (
                "phy:/dev/vdb,raw,xvda,w,no-discard,script=block",
                "/dev/vdb",
                "xvda",
                false,
            ),
            ("/a.iso,raw,hdc:cdrom,r", "/a.iso", "hdc", true),
            ("/a.iso,raw,hdc,devtype=cdrom", "/a.iso", "hdc", true),
            (
                "/a:b.img,raw,xvda,w,backendtype=qdisk,backend=0",
                "/a:b.img",
                "xvda",
                false,
            ),
        ] {
            let d = Disk::parse(spec).unwrap();
            assert_eq!(
                (&*d.target, &*d.vdev, d.read_only),
                (target, vdev, read_only),
                "{spec}"
            );
        }
        let d = Disk::parse("/a,raw,xvda,w,no-discard,untrusted").unwrap();
        assert!(!d.discard && !d.trusted);
        assert!(Disk::parse("/a,raw,xvda,w").unwrap().discard);
        assert!(!Disk::parse("/a,raw,xvda,r").unwrap().discard);
    }

    #[test]
    fn mistakes() {
        for (spec, error) in [
            (
                "",
                "there is no vdev; write for instance \"/guests/disk.img,raw,xvda,w\"",
            ),
            (
                "/a,raw",
                "there is no vdev; write for instance \"/guests/disk.img,raw,xvda,w\"",
            ),
            (
                ",raw,xvda,w",
                "there is no target; write the path of a file or device first",
            ),
            (
                "/a,rwa,xvda,w",
                "\"rwa\" is no format; it is raw (or qcow, qcow2, vhd, qed, empty)",
            ),
            (
                "/a,raw,xvd,w",
                "\"xvd\" is no virtual device; write xvda, xvdb … (or sda, hda; xvda1 for a partition)",
            ),
            (
                "/a,raw,xvda,x",
                "\"x\" is no access; write r (or ro) or w (or rw)",
            ),
            (
                "/a,raw,xvda,w,more",
                "\"more\" is one part too many; a disk is \"target, format, vdev, access\"",
            ),
            (
                "/a,raw,xvda,w,access=r",
                "access is given twice; give it once",
            ),
            (
                "/a,raw,xvda,acces=r",
                "\"acces\" is no key of a disk; did you mean \"access\"?",
            ),
            (
                "/a,qcow2,xvda,w",
                "format qcow2 is not supported; convert the image to raw (qemu-img convert -O raw)",
            ),
            (
                "/a,raw,hdc:cdrom,w",
                "a CD-ROM cannot be written; leave the access out or make it r",
            ),
            (
                "/a,raw,xvda,w,backend=disks",
                "the back-end domain \"disks\" is not supported; leave backend out, disks are served by domain 0",
            ),
            (
                ",empty,hdc,r",
                "a drive without a medium is not supported; give a target",
            ),
        ] {
            assert_eq!(Disk::parse(spec).unwrap_err(), error, "{spec}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(spec in "[a-z0-9,=:/ é-]{0,60}") {
            let _ = Disk::parse(&spec);
            let _ = device_number(&spec);
        }
    }
}
