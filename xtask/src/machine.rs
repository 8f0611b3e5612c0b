// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machines that Paravane runs on, as data, and the QEMU process that plays one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::build::{Built, PACKAGES};
use crate::net::Net;
use crate::process::which;
use crate::project::Project;

/// A board that QEMU knows.
pub struct Board {
    /// As `--board` names it.
    pub name: &'static str,
    /// QEMU's machine with what never changes.
    pub machine: &'static str,
    /// QEMU's CPU models that can be chosen, the default one first, where CPU, GIC and the exception level to start at
    /// are to be chosen; else the machine is as it is.
    pub models: &'static [&'static str],
    /// The GIC versions that can be chosen, the default one first.
    pub gics: &'static [u32],
    /// The least and the most CPUs it can have, and how many it has by default.
    pub cpus: (u32, u32, u32),
    /// The least and the most memory, and how much by default, in MiB.
    pub memory: (u64, u64, u64),
    /// Which of its serial ports is the console.
    pub console: usize,
    /// Its device tree, a file of the kernel package; `None`: QEMU makes it.
    pub dtb: Option<&'static str>,
    /// dom0's volume is an SD card, and the only disk; else disks are virtio devices.
    pub card: bool,
    /// The least version of QEMU.
    pub qemu: (u32, u32),
}

/// Every board; the first one is the default.
pub const BOARDS: &[Board] = &[
    Board {
        name: "virt",
        machine: "virt",
        models: &[
            "cortex-a72",
            "cortex-a53",
            "cortex-a57",
            "cortex-a76",
            "cortex-a710",
            "neoverse-n1",
            "neoverse-v1",
            "max",
        ],
        gics: &[3, 2],
        cpus: (1, 8, 2),
        memory: (1 << 10, 16 << 10, 4 << 10),
        console: 0,
        dtb: None,
        card: false,
        qemu: (7, 2),
    },
    Board {
        name: "rpi4",
        machine: "raspi4b",
        models: &[],
        gics: &[2],
        cpus: (4, 4, 4),
        // What the model has; its device tree tells of 960 MiB.
        memory: (2 << 10, 2 << 10, 2 << 10),
        // The mini-UART, which is on the header's pins.
        console: 1,
        dtb: Some("bcm2711-rpi-4-b.dtb"),
        card: true,
        qemu: (9, 0),
    },
];

impl Board {
    /// Where its device tree is kept, once set up; `None` where QEMU makes it.
    pub fn device_tree(&self, project: &Project) -> Option<PathBuf> {
        Some(project.path(PACKAGES).join(self.dtb?))
    }
}

/// A raw disk for dom0 beside its volume.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Disk {
    pub file: PathBuf,
    pub read_only: bool,
    /// Requests that fail, for tests.
    pub faults: Vec<Fault>,
}

/// A kind of requests that a disk answers with an error (QEMU's `blkdebug`).
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    pub write: bool,
    /// The sector (of 512 bytes) that must be among the request's; any if `None`.
    pub sector: Option<u64>,
    /// Linux's number of the error.
    pub errno: u8,
}

/// What is chosen of a machine.
pub struct Machine {
    pub board: &'static Board,
    /// QEMU's CPU model, where the board has a choice.
    pub model: Option<&'static str>,
    pub gic: u32,
    pub cpus: u32,
    /// In MiB.
    pub memory: u64,
    pub disks: Vec<Disk>,
    /// Requests to dom0's volume that fail, for tests.
    pub volume_faults: Vec<Fault>,
    /// Its network card, if it has one.
    pub net: Option<Net>,
    /// The hypervisor's command line, which dom0 gets too.
    pub append: Vec<String>,
    /// Start at EL2, as a hypervisor needs it; else at EL1.
    pub el2: bool,
    /// Give dom0's image along.
    pub dom0: bool,
    /// Start anew at a reset, with its memory as it is, instead of ending.
    pub resets: bool,
    /// Wait for a debugger.
    pub gdb: bool,
    /// Where QEMU listens for commands (of its "human monitor"), for tests.
    pub monitor: Option<PathBuf>,
    /// QEMU's `-icount`: virtual time follows instructions.
    pub icount: Option<String>,
    /// A file that is its memory, with what is in it before the machine starts, for tests.
    pub memory_file: Option<PathBuf>,
}

impl Default for Machine {
    fn default() -> Self {
        Self::of(&BOARDS[0])
    }
}

impl Machine {
    /// A board's usual machine.
    pub fn of(board: &'static Board) -> Self {
        Self {
            board,
            model: board.models.first().copied(),
            gic: board.gics[0],
            cpus: board.cpus.2,
            memory: board.memory.2,
            disks: Vec::new(),
            volume_faults: Vec::new(),
            net: None,
            append: Vec::new(),
            el2: true,
            dom0: true,
            resets: false,
            gdb: false,
            monitor: None,
            icount: None,
            memory_file: None,
        }
    }
}

/// A range for people.
fn range(
    least: impl std::fmt::Display + PartialEq,
    most: impl std::fmt::Display + PartialEq,
) -> String {
    let (least, most) = (least.to_string(), most.to_string());
    if least == most {
        least
    } else {
        format!("{least} to {most}")
    }
}

/// The longest command line that is passed on, in bytes.
const MAX_COMMAND_LINE: usize = 16 << 10;

impl Machine {
    /// Says what is wrong with the choice.
    pub fn check(&self) -> Result<()> {
        let Board {
            name,
            gics,
            cpus: (few, many, _),
            memory: (least, most, _),
            ..
        } = self.board;
        ensure!(
            gics.contains(&self.gic),
            "{name} has no GICv{} (choose of {gics:?})",
            self.gic
        );
        ensure!(
            (*few..=*many).contains(&self.cpus),
            "{name} has {} CPUs, not {}",
            range(few, many),
            self.cpus
        );
        ensure!(
            (*least..=*most).contains(&self.memory),
            "{name} has {} GiB of memory, not {} MiB",
            range(least >> 10, most >> 10),
            self.memory
        );
        ensure!(
            !self.board.card || self.disks.is_empty(),
            "{name} has no place for --disk: its only disk is the card with dom0's volume"
        );
        ensure!(
            !self.board.card || self.net.is_none(),
            "{name} has no network card that QEMU knows: --net none"
        );
        ensure!(
            self.model
                .is_none_or(|model| self.board.models.contains(&model)),
            "{name} has no CPU to choose"
        );
        ensure!(
            self.model.is_some() || self.el2,
            "{name} starts at EL2 only"
        );
        for disk in &self.disks {
            let meta = fs::metadata(&disk.file)
                .with_context(|| format!("no disk {}", disk.file.display()))?;
            ensure!(
                meta.len() >= 512,
                "the disk {} is shorter than a sector",
                disk.file.display()
            );
        }
        Ok(())
    }

    /// The QEMU command. The machine's serial port is QEMU's standard input and output, byte for byte: Ctrl-C goes
    /// to the machine. QEMU ends when the machine powers itself off or resets.
    ///
    /// QEMU fills its virtio-mmio slots from the highest address down, so dom0 tells its disks by their serial:
    /// `volume`, then `disk1`, `disk2` and so on.
    pub fn qemu(&self, built: &Built, volume: &Path) -> Result<Command> {
        self.check()?;
        let append = self.append.join(" ");
        ensure!(
            append.len() <= MAX_COMMAND_LINE,
            "the command line is {} bytes long, of {MAX_COMMAND_LINE} at most: fewer or shorter --exec commands",
            append.len()
        );
        let program = which("qemu-system-aarch64").context("there is no qemu-system-aarch64")?;
        if let Some(net) = &self.net {
            net.check(&program).context("--net")?;
        }
        let mut qemu = Command::new(program);
        match self.model {
            Some(cpu) => {
                let el2 = if self.el2 { "on" } else { "off" };
                qemu.arg("-machine").arg(format!(
                    "{},virtualization={el2},gic-version={}",
                    self.board.machine, self.gic
                ));
                qemu.args(["-cpu", cpu]);
            }
            None => drop(qemu.args(["-machine", self.board.machine])),
        }
        qemu.args([
            "-smp",
            &self.cpus.to_string(),
            "-m",
            &format!("{}M", self.memory),
        ]);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        if !self.resets {
            qemu.arg("-no-reboot");
        }
        if let Some(file) = &self.memory_file {
            let size = self.memory;
            let backend = format!(
                "memory-backend-file,id=ram,size={size}M,share=on,mem-path={}",
                option_value(file)?
            );
            qemu.args(["-object", &backend, "-machine", "memory-backend=ram"]);
        }
        let monitor = match &self.monitor {
            Some(socket) => format!("unix:{},server=on,wait=off", option_value(socket)?),
            None => "none".to_owned(),
        };
        qemu.args(["-monitor", &monitor]);
        qemu.args(["-chardev", "stdio,id=console,signal=off,mux=off"]);
        for _ in 0..self.board.console {
            qemu.args(["-serial", "null"]);
        }
        qemu.args(["-serial", "chardev:console"]);
        if let Some(tree) = self.board.dtb {
            qemu.arg("-dtb").arg(built.packages.join(tree));
        }
        qemu.arg("-kernel").arg(&built.hypervisor);
        if self.dom0 {
            qemu.arg("-initrd").arg(&built.dom0);
        }
        if !append.is_empty() {
            qemu.arg("-append").arg(append);
        }
        let volume = Disk {
            file: volume.to_owned(),
            faults: self.volume_faults.clone(),
            ..Disk::default()
        };
        if self.board.card {
            let file = option_value(&volume.file)?;
            qemu.arg("-drive")
                .arg(format!("if=sd,format=raw,cache=writeback,file={file}"));
        } else {
            qemu.args(["-global", "virtio-mmio.force-legacy=false"]);
            drive(&mut qemu, "volume", &volume)?;
        }
        for (disk, number) in self.disks.iter().zip(1..) {
            drive(&mut qemu, &format!("disk{number}"), disk)?;
        }
        if let Some(net) = &self.net {
            qemu.args(net.arguments());
        }
        if self.gdb {
            qemu.args(["-s", "-S"]);
        }
        if let Some(icount) = &self.icount {
            qemu.args(["-icount", icount]);
        }
        Ok(qemu)
    }
}

/// A file in QEMU's option syntax, in which a comma in a value is written twice.
pub fn option_value(file: &Path) -> Result<String> {
    Ok(file
        .to_str()
        .with_context(|| format!("{} is no UTF-8", file.display()))?
        .replace(',', ",,"))
}

fn drive(qemu: &mut Command, serial: &str, disk: &Disk) -> Result<()> {
    let file = option_value(&disk.file)?;
    let mut options = format!("if=none,id={serial},format=raw,cache=writeback,discard=unmap");
    if disk.read_only {
        options += ",readonly=on";
    }
    if disk.faults.is_empty() {
        options += &format!(",file={file}");
    } else {
        options +=
            &format!(",file.driver=blkdebug,file.image.driver=file,file.image.filename={file}");
    }
    for (i, fault) in disk.faults.iter().enumerate() {
        let kind = if fault.write { "write" } else { "read" };
        let rule = format!("file.inject-error.{i}");
        options += &format!(
            ",{rule}.event=none,{rule}.iotype={kind},{rule}.errno={}",
            fault.errno
        );
        if let Some(sector) = fault.sector {
            options += &format!(",{rule}.sector={sector}");
        }
    }
    qemu.arg("-drive").arg(options);
    // An error of the file (the host's disk is full, say) is the guest's to see; else QEMU would stop the machine.
    qemu.arg("-device").arg(format!(
        "virtio-blk-device,drive={serial},serial={serial},werror=report,rerror=report"
    ));
    Ok(())
}

/// A memory size as QEMU takes it (`4G`, `1024M`, or MiB without a unit), in MiB.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    );
    let number: u64 = number
        .parse()
        .map_err(|_| "not a size such as 4G or 2048M".to_owned())?;
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "M" | "MB" | "MIB" => 0,
        "G" | "GB" | "GIB" => 10,
        _ => return Err(format!("unknown unit {unit:?}: M or G")),
    };
    number
        .checked_shl(shift)
        .ok_or_else(|| "too large".to_owned())
}

/// `FILE` or `FILE,ro`.
pub fn parse_disk(text: &str) -> Result<Disk, String> {
    let (file, read_only) = match text.strip_suffix(",ro") {
        Some(file) => (file, true),
        None => (text, false),
    };
    if file.is_empty() {
        Err("no file".to_owned())
    } else {
        Ok(Disk {
            file: file.into(),
            read_only,
            faults: Vec::new(),
        })
    }
}

/// A CPU model by its name, of any board.
pub fn parse_model(text: &str) -> Result<&'static str, String> {
    let mut models = BOARDS.iter().flat_map(|board| board.models);
    models
        .clone()
        .find(|model| **model == text)
        .copied()
        .ok_or_else(|| {
            let all: Vec<&str> = models.by_ref().copied().collect();
            format!("no such CPU; there is {}", all.join(", "))
        })
}

/// A board by its name.
pub fn parse_board(text: &str) -> Result<&'static Board, String> {
    BOARDS
        .iter()
        .find(|board| board.name == text)
        .ok_or_else(|| {
            format!(
                "no such board; there is {}",
                BOARDS
                    .iter()
                    .map(|board| board.name)
                    .collect::<Vec<_>>()
                    .join(", ")
            )
        })
}

/// The words of the command line, and what is taken of their values; `None`: anything.
const WORDS: &[(&str, Option<&[&str]>)] = &[
    ("dom0_mem", None),
    ("dom0_ip", None),
    ("exec", None),
    ("panic", Some(&["now", "overflow"])),
    ("noreboot", Some(&[""])),
    ("crash-test", Some(&[""])),
    ("dom0_watchdog", None),
];

/// Says which words of `--append` nobody knows.
pub fn warn_of_words(append: &[String]) {
    for word in append.iter().flat_map(|words| words.split_whitespace()) {
        if let Some(what) = unknown_word(word) {
            eprintln!("warning: --append: {what}");
        }
    }
}

/// What is wrong with a word.
fn unknown_word(word: &str) -> Option<String> {
    let (name, value) = word.split_once('=').unwrap_or((word, ""));
    let known = || {
        let names: Vec<&str> = WORDS.iter().map(|(name, _)| *name).collect();
        format!(
            "\"{word}\" is a word that nobody knows; there are {}",
            names.join(", ")
        )
    };
    let Some((_, values)) = WORDS.iter().find(|(known, _)| *known == name) else {
        return Some(known());
    };
    match values {
        Some(values) if !values.contains(&value) => Some(format!(
            "\"{word}\" has no effect; {name} is {}",
            values.join(" or ")
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_nobody_knows_are_named() {
        for known in ["dom0_mem=64M", "dom0_ip=off", "panic=now", "exec=YQ"] {
            assert_eq!(unknown_word(known), None, "{known}");
        }
        assert!(
            unknown_word("dom0_men=64M")
                .unwrap()
                .contains("dom0_mem, dom0_ip, ")
        );
        assert!(
            unknown_word("panic=later")
                .unwrap()
                .contains("now or overflow")
        );
        // Whatever the hypervisor and dom0 look for is known here.
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .unwrap();
        let looked_for = regex::Regex::new(r#"bootargs, "(\w+)"|w == "([\w-]+)"#).unwrap();
        let mut found = 0;
        for file in [
            "hv/aarch64/src/boot.rs",
            "dom0-tools/dom0/src/boot.rs",
            "dom0-tools/dom0/src/prompt.rs",
        ] {
            let text = std::fs::read_to_string(root.join(file)).unwrap();
            for word in looked_for.captures_iter(&text) {
                let name = word.get(1).or(word.get(2)).unwrap().as_str();
                assert!(
                    WORDS.iter().any(|(known, _)| *known == name),
                    "{file}: {name}"
                );
                found += 1;
            }
        }
        assert!(found >= WORDS.len(), "{found}");
    }

    #[test]
    fn option_values() {
        assert_eq!(parse_memory("4G"), Ok(4096));
        assert_eq!(parse_memory("1536m"), Ok(1536));
        assert_eq!(parse_memory("2048"), Ok(2048));
        assert!(
            parse_memory("G").is_err() && parse_memory("4T").is_err() && parse_memory("").is_err()
        );
        assert_eq!(
            parse_disk("a,b.img,ro"),
            Ok(Disk {
                file: "a,b.img".into(),
                read_only: true,
                faults: Vec::new(),
            })
        );
        assert_eq!(
            parse_disk("a.img"),
            Ok(Disk {
                file: "a.img".into(),
                ..Disk::default()
            })
        );
        assert!(parse_disk(",ro").is_err());
        assert!(parse_board("virt").is_ok() && parse_board("toaster").is_err());
    }

    #[test]
    fn a_board_without_choices_has_none() {
        let rpi4 = || Machine::of(parse_board("rpi4").unwrap());
        assert!(rpi4().check().is_ok());
        let refused = |machine: Machine| machine.check().unwrap_err().to_string();
        let said = refused(Machine { gic: 3, ..rpi4() });
        assert!(said.contains("no GICv3"), "{said}");
        let model = parse_model("max").ok();
        assert!(model.is_some() && parse_model("toaster").is_err());
        let said = refused(Machine { model, ..rpi4() });
        assert!(said.contains("no CPU to choose"), "{said}");
        let said = refused(Machine { cpus: 2, ..rpi4() });
        assert!(said.contains("has 4 CPUs, not 2"), "{said}");
        let memory = 4 << 10;
        let said = refused(Machine { memory, ..rpi4() });
        assert!(said.contains("has 2 GiB of memory"), "{said}");
        let disks = vec![Disk::default()];
        let said = refused(Machine { disks, ..rpi4() });
        assert!(said.contains("--disk"), "{said}");
        let said = refused(Machine {
            el2: false,
            ..rpi4()
        });
        assert!(said.contains("EL2"), "{said}");
    }

    #[test]
    fn a_machine_that_cannot_be_is_refused() {
        assert!(Machine::default().check().is_ok());
        assert!(
            Machine {
                gic: 4,
                ..Machine::default()
            }
            .check()
            .is_err()
        );
        assert!(
            Machine {
                cpus: 9,
                ..Machine::default()
            }
            .check()
            .is_err()
        );
        assert!(
            Machine {
                cpus: 0,
                ..Machine::default()
            }
            .check()
            .is_err()
        );
        assert!(
            Machine {
                memory: 512,
                ..Machine::default()
            }
            .check()
            .is_err()
        );
        let disk = Disk {
            file: "/nowhere/disk.img".into(),
            ..Disk::default()
        };
        assert!(
            Machine {
                disks: vec![disk],
                ..Machine::default()
            }
            .check()
            .is_err()
        );
    }
}
