// SPDX-License-Identifier: MIT OR Apache-2.0
//! Domain configurations in xl's format (`xl.cfg(5)`).

pub mod disk;
pub mod syntax;
pub mod vif;

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

pub use disk::Disk;
pub use syntax::{ConfigError, Place};
pub use vif::{Mac, Rate, Vif};

use crate::host::GicVersion;
use crate::text;
use syntax::{Setting, Value};

/// A domain's UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uuid(pub [u8; 16]);

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let dash = if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl Uuid {
    /// From 32 hexadecimal digits, dashes anywhere between them.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut digits = text.chars().filter(|c| *c != '-').map(|c| c.to_digit(16));
        let mut uuid = [0; 16];
        for byte in &mut uuid {
            let pair = digits.next()?? << 4 | digits.next()??;
            *byte = u8::try_from(pair).ok()?;
        }
        (digits.next().is_none() && text.len() <= 36).then_some(Self(uuid))
    }

    /// Made of random bytes (version 4 of RFC 9562).
    #[must_use]
    pub const fn random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }
}

/// What happens when a domain has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is destroyed.
    Destroy,
    /// It is destroyed and made anew from its configuration.
    Restart,
    /// It keeps its memory under another name, and a new one is made.
    RenameRestart,
    /// It is left as it is.
    Preserve,
}

/// `on_*` values: the name, the action, and whether a core dump is asked for.
const ACTIONS: &[(&str, Action, bool)] = &[
    ("destroy", Action::Destroy, false),
    ("restart", Action::Restart, false),
    ("rename-restart", Action::RenameRestart, false),
    ("preserve", Action::Preserve, false),
    ("coredump-destroy", Action::Destroy, true),
    ("coredump-restart", Action::Restart, true),
];

impl Action {
    /// Its name in a configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        ACTIONS
            .iter()
            .find(|(_, a, _)| *a == self)
            .map_or("", |(name, ..)| name)
    }
}

/// A domain as a configuration describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainConfig {
    /// The file that it came from.
    pub file: String,
    /// Where its settings stand: by key, and by `disk 0`, `disk 1` … for each disk.
    pub places: BTreeMap<String, Place>,
    /// Its name.
    pub name: String,
    /// Its UUID, or `None` for a random one.
    pub uuid: Option<Uuid>,
    /// The kernel's path.
    pub kernel: String,
    /// The ramdisk's path.
    pub ramdisk: Option<String>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The most memory that it may have, in MiB.
    pub maxmem_mib: u64,
    /// Vcpus online at first.
    pub vcpus: u32,
    /// Vcpus in all.
    pub maxvcpus: u32,
    /// The CPUs that each vcpu may run on, as bits; the last entry is for all vcpus after it. Empty
    /// for no wish.
    pub cpus: Vec<u64>,
    /// Its share of the CPUs, 256 being everybody's.
    pub cpu_weight: Option<u16>,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Its network interfaces.
    pub vifs: Vec<Vif>,
    /// It has a virtual SBSA UART.
    pub vuart: bool,
    /// Its interrupt controller, or `None` for the host's.
    pub gic: Option<GicVersion>,
    /// When it powered off.
    pub on_poweroff: Action,
    /// When it asked for a restart.
    pub on_reboot: Action,
    /// When it crashed.
    pub on_crash: Action,
    /// When its watchdog ran out.
    pub on_watchdog: Action,
    /// The most grant-table frames.
    pub max_grant_frames: u32,
    /// The most maptrack frames.
    pub max_maptrack_frames: u32,
    /// The most event channels.
    pub max_event_channels: u32,
}

/// A remark on a configuration that is good nonetheless: `file:line: text`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning(pub String);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The keys that mean something here.
const KEYS: &[&str] = &[
    "name",
    "uuid",
    "kernel",
    "ramdisk",
    "extra",
    "cmdline",
    "root",
    "memory",
    "maxmem",
    "vcpus",
    "maxvcpus",
    "cpus",
    "cpu_weight",
    "disk",
    "vif",
    "vuart",
    "gic_version",
    "type",
    "builder",
    "on_poweroff",
    "on_reboot",
    "on_crash",
    "on_watchdog",
    "max_grant_frames",
    "max_maptrack_frames",
    "max_event_channels",
];

/// Further keys of xl, which are ignored with their own remark.
const XL_KEYS: &[&str] = &[
    "acpi",
    "altp2m",
    "bootloader",
    "bootloader_args",
    "cap",
    "channel",
    "claim_mode",
    "cpuid",
    "cpus_soft",
    "dtdev",
    "device_tree",
    "driver_domain",
    "event_channels",
    "firmware",
    "iomem",
    "ioports",
    "irqs",
    "nestedhvm",
    "nics",
    "nodes",
    "nr_spis",
    "on_soft_reset",
    "p9",
    "passthrough",
    "pci",
    "pool",
    "pvcalls",
    "sched",
    "seclabel",
    "serial",
    "shadow_memory",
    "smbios",
    "sve",
    "tee",
    "usbdev",
    "usbctrl",
    "vdispl",
    "vfb",
    "vga",
    "viommu",
    "virtio",
    "vkb",
    "vm_gen_id",
    "vnc",
    "vnuma",
    "vsnd",
    "vtpm",
    "xend_suspend_evtchn_compat",
];

/// The hypervisor's limits: vcpus of a guest (8 with a GICv2), frames of its grant table and of its maptrack.
const MAX_VCPUS: u64 = 64;
const MAX_GRANT_FRAMES: u32 = 64;
const MAX_MAPTRACK_FRAMES: u32 = 1024;
/// The most memory of any guest in MiB: both RAM banks.
const MAX_MEMORY_MIB: u64 = 1_043_456;
/// The default is xl's as far as it has one.
const DEFAULT_MEMORY_MIB: u64 = 32;

/// Where overrides are said to stand.
const COMMAND_LINE: &str = "command line";

impl DomainConfig {
    /// Reads a configuration. `overrides` are `key=value` of the command line, which win over the
    /// file's; their values need no quotes.
    ///
    /// # Errors
    /// The first mistake, with its place and what would be right.
    pub fn parse(
        text: &str,
        file: &str,
        overrides: &[&str],
    ) -> Result<(Self, Vec<Warning>), ConfigError> {
        let mut settings = syntax::parse(text, file)?;
        for o in overrides {
            for new in parse_override(o)? {
                settings.retain(|s| s.key != new.key);
                settings.push(new);
            }
        }
        Reader {
            settings,
            file,
            warnings: Vec::new(),
        }
        .domain()
    }
}

impl DomainConfig {
    /// Where the setting `key` stands, to be put before what is said of it: `file:line: `, or the file alone where
    /// the key is not there.
    #[must_use]
    pub fn at(&self, key: &str) -> String {
        match self.places.get(key) {
            Some(place) if place.file == COMMAND_LINE => format!("{COMMAND_LINE}: "),
            Some(place) => format!("{}:{}: ", place.file, place.line),
            None => format!("{}: ", self.file),
        }
    }
}

fn parse_override(text: &str) -> Result<Vec<Setting>, ConfigError> {
    let Some((key, value)) = text::key_value(text) else {
        return Err(ConfigError {
            place: Place {
                file: COMMAND_LINE.to_owned(),
                line: 1,
                col: 1,
            },
            message: format!("\"{text}\" is no setting; write key=value"),
        });
    };
    match syntax::parse(text, COMMAND_LINE) {
        Ok(settings) => Ok(settings),
        // A bare word is a string: the shell or the prompt took its quotes.
        Err(_) if !value.trim_start().starts_with(['\'', '"', '[']) => {
            let place = Place {
                file: COMMAND_LINE.to_owned(),
                line: 1,
                col: key.len() + 2,
            };
            Ok(alloc::vec![Setting {
                key_place: Place {
                    col: 1,
                    ..place.clone()
                },
                key: key.to_owned(),
                place,
                value: Value::Atom(value.to_owned()),
            }])
        }
        Err(e) => Err(e),
    }
}

struct Reader<'a> {
    settings: Vec<Setting>,
    file: &'a str,
    warnings: Vec<Warning>,
}

fn fail<T>(place: &Place, message: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError {
        place: place.clone(),
        message: message.into(),
    })
}

impl Reader<'_> {
    fn find(&self, key: &str) -> Option<&Setting> {
        self.settings.iter().find(|s| s.key == key)
    }

    fn atom(&self, key: &str) -> Result<Option<(&str, &Place)>, ConfigError> {
        match self.find(key) {
            None => Ok(None),
            Some(Setting {
                value: Value::Atom(text),
                place,
                ..
            }) => Ok(Some((text, place))),
            Some(Setting { place, .. }) => fail(
                place,
                format!("{key} is a list; write one value: {key} = …"),
            ),
        }
    }

    fn string(&self, key: &str) -> Result<Option<String>, ConfigError> {
        Ok(self
            .atom(key)?
            .map(|(text, _)| text.to_owned())
            .filter(|text| !text.is_empty()))
    }

    fn number(&self, key: &str, min: u64, max: u64) -> Result<Option<u64>, ConfigError> {
        let Some((text, place)) = self.atom(key)? else {
            return Ok(None);
        };
        match text::number(text) {
            Some(n) if (min..=max).contains(&n) => Ok(Some(n)),
            Some(n) => fail(
                place,
                format!("{key} = {n} is out of range; it is {min} to {max}"),
            ),
            None => fail(
                place,
                format!(
                    "{key} = \"{text}\" is no number; write a whole number from {min} to {max}"
                ),
            ),
        }
    }

    fn number32(&self, key: &str, min: u32, max: u32, default: u32) -> Result<u32, ConfigError> {
        let n = self.number(key, min.into(), max.into())?;
        Ok(n.and_then(|n| u32::try_from(n).ok()).unwrap_or(default))
    }

    fn list(&self, key: &str, example: &str) -> Result<Vec<(&Place, &str)>, ConfigError> {
        let Some(setting) = self.find(key) else {
            return Ok(Vec::new());
        };
        let Value::List(items) = &setting.value else {
            return fail(
                &setting.place,
                format!("{key} is not a list; write: {key} = [ '{example}' ]"),
            );
        };
        items
            .iter()
            .map(|(place, value)| match value {
                Value::Atom(text) => Ok((place, text.as_str())),
                Value::List(_) => fail(
                    place,
                    format!("a list in the list of {key}; write: '{example}'"),
                ),
            })
            .collect()
    }

    fn choice<T: Copy>(
        &self,
        key: &str,
        choices: &[(&str, T)],
    ) -> Result<Option<(T, &Place)>, ConfigError> {
        let Some((text, place)) = self.atom(key)? else {
            return Ok(None);
        };
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return Ok(Some((*value, place)));
        }
        let remedy = match text::closest(text, choices.iter().map(|(name, _)| *name)) {
            Some(name) => format!("did you mean \"{name}\"?"),
            None => {
                let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
                format!("it is one of {}", names.join(", "))
            }
        };
        fail(place, format!("{key} = \"{text}\" is unknown; {remedy}"))
    }

    fn warn(&mut self, place: &Place, text: &str) {
        self.warnings
            .push(Warning(format!("{}:{}: {text}", place.file, place.line)));
    }

    fn action(&mut self, key: &str, default: Action) -> Result<Action, ConfigError> {
        let choices: Vec<_> = ACTIONS
            .iter()
            .map(|(n, a, dump)| (*n, (*a, *dump)))
            .collect();
        let Some(((action, dump), place)) = self.choice(key, &choices)? else {
            return Ok(default);
        };
        let place = place.clone();
        if dump {
            self.warn(
                &place,
                &format!(
                    "{key}: core dumps are not written; taken as \"{}\"",
                    action.name()
                ),
            );
        }
        Ok(action)
    }

    fn unknown_keys(&mut self) {
        let remarks: Vec<_> = self
            .settings
            .iter()
            .filter(|s| !KEYS.contains(&s.key.as_str()))
            .map(|s| {
                let key = &s.key;
                let remark = if XL_KEYS.contains(&key.as_str()) {
                    format!("\"{key}\" is not supported and is ignored")
                } else if let Some(meant) = text::closest(key, KEYS.iter().copied()) {
                    format!("unknown key \"{key}\" is ignored; did you mean \"{meant}\"?")
                } else {
                    format!("unknown key \"{key}\" is ignored")
                };
                (s.key_place.clone(), remark)
            })
            .collect();
        for (place, remark) in remarks {
            self.warn(&place, &remark);
        }
    }

    fn cmdline(&mut self) -> Result<String, ConfigError> {
        let extra = self.string("extra")?;
        let root = self.string("root")?;
        if let Some((text, _)) = self.atom("cmdline")? {
            let text = text.to_owned();
            for key in ["root", "extra"] {
                if let Some(place) = self.find(key).map(|s| s.key_place.clone()) {
                    self.warn(&place, &format!("{key} is ignored as there is a cmdline"));
                }
            }
            return Ok(text);
        }
        let parts = [root.map(|r| format!("root={r}")), extra];
        Ok(parts.into_iter().flatten().collect::<Vec<_>>().join(" "))
    }

    fn name(&self) -> Result<String, ConfigError> {
        let Some((name, place)) = self.atom("name")? else {
            return fail(&self.whole_file(), self.missing("name", "name = \"guest\""));
        };
        if let Some(why) = bad_name(name) {
            return fail(place, format!("name = \"{name}\": {why}"));
        }
        Ok(name.to_owned())
    }

    /// That a needed key is not there, and which other one may have been meant for it.
    fn missing(&self, key: &str, example: &str) -> String {
        let unknown =
            |s: &&Setting| !KEYS.contains(&s.key.as_str()) && !XL_KEYS.contains(&s.key.as_str());
        let meant = |s: &&Setting| text::closest(&s.key, KEYS.iter().copied()) == Some(key);
        let other = self.settings.iter().filter(unknown).find(meant);
        match other {
            Some(s) => format!(
                "there is no {key}; line {} has an unknown key \"{}\": did you mean \"{key}\"?",
                s.key_place.line, s.key
            ),
            None => format!("there is no {key}; write: {example}"),
        }
    }

    fn whole_file(&self) -> Place {
        Place {
            file: self.file.to_owned(),
            line: 1,
            col: 1,
        }
    }

    fn cpus(&self) -> Result<Vec<u64>, ConfigError> {
        let Some(setting) = self.find("cpus") else {
            return Ok(Vec::new());
        };
        let read = |place: &Place, text: &str| match parse_cpus(text) {
            Some(cpus) => Ok(cpus),
            None => fail(
                place,
                format!(
                    "cpus \"{text}\" names no CPUs; write for instance \"0-3,^1\" or \"all\" (CPUs 0 to 63)"
                ),
            ),
        };
        match &setting.value {
            Value::Atom(text) => Ok(alloc::vec![read(&setting.place, text)?]),
            Value::List(_) => self
                .list("cpus", "0-3")?
                .into_iter()
                .map(|(place, text)| read(place, text))
                .collect(),
        }
    }

    /// Where everything stands.
    fn places(&self) -> BTreeMap<String, Place> {
        let mut places: BTreeMap<String, Place> = self
            .settings
            .iter()
            .map(|s| (s.key.clone(), s.place.clone()))
            .collect();
        if let Some(Setting {
            value: Value::List(items),
            ..
        }) = self.find("disk")
        {
            let items = items.iter().enumerate();
            places.extend(items.map(|(i, (place, _))| (format!("disk {i}"), place.clone())));
        }
        places
    }

    fn disks(&self) -> Result<Vec<Disk>, ConfigError> {
        let mut disks: Vec<Disk> = Vec::new();
        for (place, spec) in self.list("disk", "/guests/disk.img,raw,xvda,w")? {
            let disk = match Disk::parse(spec) {
                Ok(disk) => disk,
                Err(e) => return fail(place, format!("disk \"{spec}\": {e}")),
            };
            if disks.iter().any(|d| d.devid == disk.devid) {
                return fail(
                    place,
                    format!(
                        "disk \"{spec}\": there is already a disk {}; give it another vdev",
                        disk.vdev
                    ),
                );
            }
            disks.push(disk);
        }
        Ok(disks)
    }

    fn vifs(&self) -> Result<Vec<Vif>, ConfigError> {
        self.list("vif", "mac=00:16:3e:12:34:56,bridge=xenbr0")?
            .into_iter()
            .map(|(place, spec)| {
                Vif::parse(spec).or_else(|e| fail(place, format!("vif \"{spec}\": {e}")))
            })
            .collect()
    }

    fn domain(mut self) -> Result<(DomainConfig, Vec<Warning>), ConfigError> {
        self.unknown_keys();
        let name = self.name()?;
        let uuid = match self.atom("uuid")? {
            None => None,
            Some((text, place)) => match Uuid::parse(text) {
                Some(uuid) => Some(uuid),
                None => {
                    return fail(
                        place,
                        format!(
                            "uuid = \"{text}\" is none; write 32 hexadecimal digits, such as \
                            bdc998cb-c010-4165-97c2-c3167a8060e3"
                        ),
                    );
                }
            },
        };
        match self.atom("type")? {
            // xl takes it for a guest of Arm's all the same.
            Some(("pv", place)) => {
                let place = place.clone();
                self.warn(
                    &place,
                    "type = \"pv\" is a kind of x86 guest; taken as \"pvh\"",
                );
            }
            Some((text @ "hvm", place)) => {
                return fail(
                    place,
                    format!(
                        "type = \"{text}\" is a kind of x86 guest; leave type out or write \"pvh\""
                    ),
                );
            }
            _ => drop(self.choice("type", &[("pvh", ())])?),
        }
        self.choice("builder", &[("generic", ()), ("linux", ())])?;

        let memory = self.number("memory", 1, MAX_MEMORY_MIB)?;
        let maxmem = self.number("maxmem", 1, MAX_MEMORY_MIB)?;
        let memory_mib = memory.or(maxmem).unwrap_or(DEFAULT_MEMORY_MIB);
        let maxmem_mib = maxmem.unwrap_or(memory_mib);
        if let (true, Some(s)) = (maxmem_mib < memory_mib, self.find("maxmem")) {
            return fail(
                &s.place,
                format!(
                    "maxmem = {maxmem_mib} is less than memory = {memory_mib}; make it at least as much"
                ),
            );
        }
        let vcpus = self.number("vcpus", 1, MAX_VCPUS)?;
        let maxvcpus = self.number("maxvcpus", 1, MAX_VCPUS)?;
        let online = vcpus.or(maxvcpus).unwrap_or(1);
        let most = maxvcpus.unwrap_or(online);
        if let (true, Some(s)) = (most < online, self.find("maxvcpus")) {
            return fail(
                &s.place,
                format!(
                    "maxvcpus = {most} is less than vcpus = {online}; make it at least as many"
                ),
            );
        }
        let gic = self.choice(
            "gic_version",
            &[
                ("default", None),
                ("v2", Some(GicVersion::V2)),
                ("v3", Some(GicVersion::V3)),
            ],
        )?;
        let gic = gic.and_then(|(gic, _)| gic);
        if let (true, Some(GicVersion::V2), Some(s)) =
            (most > 8, gic, self.find("maxvcpus").or(self.find("vcpus")))
        {
            return fail(
                &s.place,
                format!("{most} vcpus are too many for gic_version = \"v2\"; at most 8, or use v3"),
            );
        }
        let vuart = self.choice("vuart", &[("sbsa_uart", true), ("unknown", false)])?;
        let Some(kernel) = self.string("kernel")? else {
            return fail(
                &self.whole_file(),
                self.missing("kernel", "kernel = \"/guests/Image\""),
            );
        };
        let weight = self.number("cpu_weight", 1, 65535)?;
        let config = DomainConfig {
            file: self.file.to_string(),
            places: self.places(),
            name,
            uuid,
            kernel,
            ramdisk: self.string("ramdisk")?,
            memory_mib,
            maxmem_mib,
            vcpus: u32::try_from(online).unwrap_or(1),
            maxvcpus: u32::try_from(most).unwrap_or(1),
            cpus: self.cpus()?,
            cpu_weight: weight.and_then(|n| u16::try_from(n).ok()),
            disks: self.disks()?,
            vifs: self.vifs()?,
            vuart: vuart.is_some_and(|(on, _)| on),
            gic,
            // xl's own defaults.
            max_grant_frames: self.number32("max_grant_frames", 1, MAX_GRANT_FRAMES, 64)?,
            max_maptrack_frames: self.number32(
                "max_maptrack_frames",
                0,
                MAX_MAPTRACK_FRAMES,
                64,
            )?,
            max_event_channels: self.number32("max_event_channels", 1, 131_071, 1023)?,
            cmdline: self.cmdline()?,
            on_poweroff: self.action("on_poweroff", Action::Destroy)?,
            on_reboot: self.action("on_reboot", Action::Restart)?,
            on_crash: self.action("on_crash", Action::Destroy)?,
            on_watchdog: self.action("on_watchdog", Action::Destroy)?,
        };
        Ok((config, self.warnings))
    }
}

/// Why a text cannot be a domain's name.
#[must_use]
pub fn bad_name(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("a name has at least one letter")
    } else if name.len() > 256 {
        Some("a name has at most 256 bytes")
    } else if name.bytes().all(|c| c.is_ascii_digit()) {
        Some("a name of digits alone would be taken for a domain's number; add a letter")
    } else if name
        .chars()
        .any(|c| c.is_control() || c.is_whitespace() || c == '/')
    {
        Some("a name has no blanks, control characters or slashes in it")
    } else {
        None
    }
}

/// CPUs as bits: `all`, `3`, `0-3`, `^2`, with commas between. `None` if it is none of these or
/// leaves no CPU.
#[must_use]
pub fn parse_cpus(text: &str) -> Option<u64> {
    let mut cpus = 0u64;
    for part in text.split(',').map(str::trim) {
        let (part, without) = match part.strip_prefix('^') {
            Some(part) => (part, true),
            None => (part, false),
        };
        let mask = if part == "all" {
            u64::MAX
        } else {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let (from, to) = (text::number(from.trim())?, text::number(to.trim())?);
            if from > to || to > 63 {
                return None;
            }
            (u64::MAX >> (63 - (to - from))) << from
        };
        cpus = if without { cpus & !mask } else { cpus | mask };
    }
    (cpus != 0).then_some(cpus)
}

#[cfg(test)]
mod tests;
