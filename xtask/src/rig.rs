// SPDX-License-Identifier: MIT OR Apache-2.0
//! The same test domains on Paravane and on the real Xen. Paravane's dom0 creates them from config files. Xen starts
//! them from the device tree without a dom0 ("dom0less"); those that need back ends a Linux dom0 creates by `xl`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

use crate::build::Built;
use crate::machine::{Disk, Machine, option_value};
use crate::net::Net;
use crate::process::{output, which};
use crate::project::{Project, read, write_atomic};
use crate::session::Session;
use crate::volume::Volume;
use crate::{world, xen};

/// A hypervisor to run test domains on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Hypervisor {
    Paravane,
    /// Debian 12's Xen 4.17.
    Xen,
}

impl Hypervisor {
    /// As files and messages name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Paravane => "paravane",
            Self::Xen => "xen",
        }
    }
}

/// A test domain. The first one gets domain id 1, the second one 2.
pub struct Domain<'a> {
    pub name: &'a str,
    /// A flat arm64 image.
    pub image: &'a Path,
    pub command_line: &'a str,
    pub vcpus: u32,
    /// In MiB.
    pub memory: u32,
}

/// A test domain with devices.
pub struct Served<'a> {
    pub domain: Domain<'a>,
    pub ramdisk: Option<&'a Path>,
    pub disks: &'a [PvDisk<'a>],
    /// The Ethernet addresses of its interfaces, which are on the bridge that all are on.
    pub macs: &'a [&'a str],
}

/// A disk of a test domain's.
pub struct PvDisk<'a> {
    /// As `xvda`.
    pub vdev: &'a str,
    /// Its content, which is copied; `None`: the disk that the machine has of [`World`].
    pub file: Option<&'a Path>,
    pub read_only: bool,
}

/// What a rig is made of.
pub struct Rig<'a> {
    pub project: &'a Project,
    pub built: &'a Built,
    pub gic: u32,
    pub cpus: u32,
    /// Count instructions: QEMU's `-icount shift=0,sleep=off`.
    pub icount: bool,
    /// What the machine has of the host, for guests with devices.
    pub world: Option<World<'a>>,
    pub log: PathBuf,
    /// No wait goes beyond this.
    pub bound: Duration,
}

/// A network card on QEMU's own network, which is on the guests' bridge, a disk, and a counter of instructions that the
/// guests can ask ([`world::serve_counter`]). While every vcpu sleeps, virtual time goes on as the host's does, which
/// answers in its own time.
pub struct World<'a> {
    pub disk: &'a Path,
    pub counter: world::Counter,
}

/// Domains that run.
pub struct Started {
    pub session: Session,
    /// What was counted before they ran: lines as the guests print them.
    counted: String,
    /// dom0's, for this process alone as long as the machine may use it.
    _volume: Option<Volume>,
}

impl Started {
    /// What the first domain prints until its line `WHO: done`.
    ///
    /// # Errors
    /// It says `WHO:` and what matches `trouble` instead, or the Linux dom0 failed; or none of that within the rig's bound.
    pub fn report(mut self, rig: &Rig<'_>, who: &str, trouble: &str) -> Result<String> {
        let end = format!(r"(?s)\A.*?({who}: (done|[^\n]*({trouble})[^\n]*)|dom0: failed[^\n]*)$");
        let text = self
            .session
            .expect(&end, rig.bound)
            .with_context(|| format!("all that was shown: {}", rig.project.show(&rig.log)))?;
        ensure!(
            text.ends_with(&format!("{who}: done")),
            "the guest says: {}",
            text.lines().last().unwrap_or_default()
        );
        Ok(self.counted + &text)
    }
}

/// Where the first domain's image goes in the real machine's memory, and how far apart they are.
const MODULE: u64 = 0x5000_0000;
const MODULE_SPACE: u64 = 16 << 20;
/// Where dom0's kernel and its ramdisk go.
const KERNEL: u64 = 0x4900_0000;
const RAMDISK: u64 = 0x4e00_0000;
/// The machine's memory where domains have devices, in MiB.
const SERVED_MEMORY: u64 = 2 << 10;

impl Rig<'_> {
    /// Starts the domains, the second one first, all at once.
    pub fn start(&self, on: Hypervisor, domains: &[Domain<'_>]) -> Result<Started> {
        let _ = fs::remove_file(&self.log);
        match on {
            Hypervisor::Paravane => self.paravane(domains),
            Hypervisor::Xen => self.xen(domains),
        }
    }

    fn paravane(&self, domains: &[Domain<'_>]) -> Result<Started> {
        let guests = self.project.dir("rig/guests")?;
        for domain in domains {
            let name = domain.name;
            copy(domain.image, &guests.join(format!("{name}.bin")))?;
            let config = format!(
                "name = \"{name}\"\nkernel = \"/guests/{name}.bin\"\ncmdline = \"{}\"\nmemory = {}\nvcpus = {}\n\
                 vuart = \"sbsa_uart\"\non_crash = \"preserve\"\non_poweroff = \"preserve\"\n",
                domain.command_line, domain.memory, domain.vcpus
            );
            fs::write(guests.join(format!("{name}.cfg")), config)?;
        }
        let names: Vec<_> = domains.iter().map(|domain| domain.name).collect();
        let mut started = self.on_paravane(&guests, 1 << 10, &names)?;
        if let Some(first) = names.first() {
            started.session.line(&format!("unpause {first}"))?;
        }
        Ok(started)
    }

    /// Paravane with these guests on dom0's volume, created and paused, so that all of them run once the last one is
    /// there: all but the first one run.
    fn on_paravane(&self, guests: &Path, memory: u64, names: &[&str]) -> Result<Started> {
        let volume = Volume::lock(&self.project.dir("rig")?)?;
        volume.discard();
        volume.sync(&[guests])?;
        let mut machine = Machine {
            gic: self.gic,
            cpus: self.cpus,
            memory,
            icount: self.icount().map(str::to_owned),
            ..Machine::default()
        };
        if let Some(world) = &self.world {
            machine.net = Some(Net::default());
            machine.disks.push(Disk {
                file: world.disk.to_owned(),
                ..Disk::default()
            });
        }
        let mut qemu = machine.qemu(self.built, volume.image())?;
        self.monitor(&mut qemu);
        let mut session = Session::start(qemu, &self.log, self.bound)?;
        session.prompt(Duration::from_secs(60))?;
        let mut counted = String::new();
        for name in names {
            let command = format!("create -p /guests/{name}.cfg");
            match &self.world {
                None => drop(session.vane(&command)?),
                Some(world) => {
                    let begin = world.counter.read()?;
                    session.vane(&command)?;
                    let took = world.counter.read()? - begin;
                    counted += &format!("span create_{name} {took} 1\n");
                }
            }
        }
        for name in names.iter().skip(1).rev() {
            session.vane(&format!("unpause {name}"))?;
        }
        Ok(Started {
            session,
            counted,
            _volume: Some(volume),
        })
    }

    /// Starts domains that have devices, all at once; what is shown is the first one's PV console.
    pub fn start_served(&self, on: Hypervisor, guests: &[Served<'_>]) -> Result<Started> {
        let _ = fs::remove_file(&self.log);
        match on {
            Hypervisor::Paravane => self.paravane_served(guests),
            Hypervisor::Xen => self.xen_served(guests),
        }
    }

    fn paravane_served(&self, guests: &[Served<'_>]) -> Result<Started> {
        let folder = self.project.dir("rig")?.join("guests");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        for guest in guests {
            let name = guest.domain.name;
            copy(guest.domain.image, &folder.join(format!("{name}.bin")))?;
            if let Some(ramdisk) = guest.ramdisk {
                copy(ramdisk, &folder.join(format!("{name}.cpio")))?;
            }
            for disk in guest.disks {
                if let Some(file) = disk.file {
                    copy(file, &folder.join(disk.image(name)))?;
                }
            }
            let config = guest.config("/guests", |disk| match disk.file {
                Some(_) => format!("/guests/{}", disk.image(name)),
                None => "/dev/disk1".to_owned(),
            });
            fs::write(folder.join(format!("{name}.cfg")), config)?;
        }
        let names: Vec<_> = guests.iter().map(|guest| guest.domain.name).collect();
        let mut started = self.on_paravane(&folder, SERVED_MEMORY, &names)?;
        if let Some(first) = names.first() {
            started.session.vane(&format!("unpause {first}"))?;
            started.session.line(&format!("console {first}"))?;
        }
        Ok(started)
    }

    fn xen_served(&self, guests: &[Served<'_>]) -> Result<Started> {
        let (image, _) = xen::image(self.project)?;
        let dom0 = xen::Dom0::fetch(self.project)?;
        let dir = self.project.dir("rig")?;
        let mut job = Vec::new();
        // Ends at the first command that fails.
        let mut script = "set -e\n".to_owned();
        if self.world.is_some() {
            // A frame for who is gone does not leave the machine: QEMU would send its packet on.
            script += "brctl addif xenbr0 eth0\necho 0 >/sys/class/net/eth0/brport/unicast_flood\n\
                       ip link set eth0 up\nip address add 10.0.2.60/24 dev xenbr0\n";
        }
        let mut loops = 0..;
        for guest in guests {
            let name = guest.domain.name;
            job.push((format!("{name}.bin"), read(guest.domain.image)?));
            if let Some(ramdisk) = guest.ramdisk {
                job.push((format!("{name}.cpio"), read(ramdisk)?));
            }
            let mut devices = Vec::new();
            for disk in guest.disks {
                let Some(content) = disk.file else { continue };
                let number = loops.next().unwrap_or(0);
                let file = disk.image(name);
                job.push((file.clone(), read(content)?));
                // Linux's tmpfs can forget sectors, its root file system cannot.
                let flag = if disk.read_only { "-r " } else { "" };
                script += &format!(
                    "cp /job/{file} /run/{file}\nlosetup {flag}/dev/loop{number} /run/{file}\n"
                );
                devices.push((disk.vdev, number));
            }
            let config = guest.config("/job", |disk| {
                match devices.iter().find(|(vdev, _)| *vdev == disk.vdev) {
                    Some((_, number)) => format!("/dev/loop{number}"),
                    None => "/dev/vda".to_owned(),
                }
            });
            job.push((format!("{name}.cfg"), config.into_bytes()));
        }
        for guest in guests {
            let name = guest.domain.name;
            let create = format!("xl create -p /job/{name}.cfg\n");
            match &self.world {
                None => script += &create,
                Some(world) => {
                    let read = format!("$(wget -q -O - {})", world.counter.url());
                    script += &format!(
                        "begin={read}\ncost=$(({read} - begin))\nbegin={read}\n{create}\
                         echo \"span create_{name} $(({read} - begin - cost)) 1\"\n"
                    );
                }
            }
        }
        if let Some(first) = guests.first() {
            script += &format!("tail -f /run/console/guest-{}.log &\n", first.domain.name);
        }
        for guest in guests.iter().rev() {
            script += &format!("xl unpause {}\n", guest.domain.name);
        }
        job.push(("run".to_owned(), script.into_bytes()));
        let ramdisk = dir.join("xen-dom0.cpio");
        write_atomic(&ramdisk, &dom0.ramdisk(self.project, &job)?)?;
        let mut qemu = self.xen_machine("", SERVED_MEMORY)?;
        qemu.arg("-kernel").arg(image);
        qemu.args([
            "-append",
            "console=dtuart dtuart=/pl011@9000000 dom0_mem=768M bootscrub=0 sched=credit2",
        ]);
        if let Some(world) = &self.world {
            qemu.args(["-global", "virtio-mmio.force-legacy=false"]);
            qemu.args(Net::default().arguments());
            let disk = option_value(world.disk)?;
            qemu.args([
                "-drive",
                &format!("if=none,id=disk,format=raw,cache=writeback,file={disk}"),
                "-device",
                "virtio-blk-device,drive=disk",
            ]);
        }
        self.monitor(&mut qemu);
        qemu.args([
            "-device",
            &format!(
                "guest-loader,addr={KERNEL:#x},kernel={},bootargs=console=hvc0 loglevel=0 rdinit=/init",
                option_value(&dom0.image())?
            ),
            "-device",
            &format!(
                "guest-loader,addr={RAMDISK:#x},initrd={}",
                option_value(&ramdisk)?
            ),
        ]);
        Ok(Started {
            session: Session::start(qemu, &self.log, self.bound)?,
            counted: String::new(),
            _volume: None,
        })
    }

    /// The machine that the real Xen runs on, but for what it boots.
    fn xen_machine(&self, more: &str, memory: u64) -> Result<Command> {
        let mut qemu =
            Command::new(which("qemu-system-aarch64").context("there is no qemu-system-aarch64")?);
        qemu.args([
            "-machine",
            &format!("virt,virtualization=on,gic-version={}{more}", self.gic),
        ]);
        qemu.args([
            "-cpu",
            "cortex-a72",
            "-smp",
            &self.cpus.to_string(),
            "-m",
            &format!("{memory}M"),
        ]);
        qemu.args(["-nodefaults", "-no-user-config"]);
        qemu.args(["-display", "none", "-monitor", "none", "-no-reboot"]);
        qemu.args([
            "-chardev",
            "stdio,id=console,signal=off,mux=off",
            "-serial",
            "chardev:console",
        ]);
        if let Some(icount) = self.icount() {
            qemu.args(["-icount", icount]);
        }
        Ok(qemu)
    }

    /// A nanosecond of virtual time for each instruction. While nothing is to be done time goes on at once, or with the
    /// host's.
    fn icount(&self) -> Option<&'static str> {
        self.icount.then_some(match self.world {
            None => "shift=0,sleep=off",
            Some(_) => "shift=0,sleep=on",
        })
    }

    /// Lets QEMU tell what it counts.
    fn monitor(&self, qemu: &mut Command) {
        if let Some(world) = &self.world {
            qemu.args(["-qmp", &format!("tcp:127.0.0.1:{}", world.counter.monitor)]);
        }
    }

    fn xen(&self, domains: &[Domain<'_>]) -> Result<Started> {
        let (image, _) = xen::image(self.project)?;
        let dir = self.project.dir("rig")?;
        let tree = dir.join("xen.dtb");
        let plain = dir.join("virt.dtb");
        output(&mut self.xen_machine(&format!(",dumpdtb={}", plain.display()), 1 << 10)?)?;
        write_atomic(&tree, &xen_tree(&fs::read(&plain)?, domains)?)?;
        let mut qemu = self.xen_machine("", 1 << 10)?;
        qemu.arg("-kernel").arg(image).arg("-dtb").arg(&tree);
        for (domain, at) in domains
            .iter()
            .zip((MODULE..).step_by(MODULE_SPACE as usize))
        {
            qemu.args([
                "-device",
                &format!(
                    "loader,file={},addr={at:#x},force-raw=on",
                    domain.image.display()
                ),
            ]);
        }
        Ok(Started {
            session: Session::start(qemu, &self.log, self.bound)?,
            counted: String::new(),
            _volume: None,
        })
    }
}

impl Served<'_> {
    /// Its config file, in the format that `xl` and Paravane's dom0 read: its image is in `folder`, and `target` tells
    /// where a disk is.
    fn config(&self, folder: &str, target: impl Fn(&PvDisk<'_>) -> String) -> String {
        let Domain {
            name,
            command_line,
            vcpus,
            memory,
            ..
        } = self.domain;
        let disks: Vec<_> = self
            .disks
            .iter()
            .map(|disk| {
                let access = if disk.read_only { "ro" } else { "rw" };
                let target = target(disk);
                format!(
                    "\"format=raw,vdev={},access={access},target={target}\"",
                    disk.vdev
                )
            })
            .collect();
        let ramdisk = self.ramdisk.map_or(String::new(), |_| {
            format!("ramdisk = \"{folder}/{name}.cpio\"\n")
        });
        let vifs: Vec<_> = self
            .macs
            .iter()
            .map(|mac| format!("\"mac={mac},bridge=xenbr0\""))
            .collect();
        format!(
            "name = \"{name}\"\nkernel = \"{folder}/{name}.bin\"\n{ramdisk}cmdline = \"{command_line}\"\n\
             memory = {memory}\nvcpus = {vcpus}\ndisk = [ {} ]\nvif = [ {} ]\n\
             on_crash = \"preserve\"\non_poweroff = \"preserve\"\n",
            disks.join(", "),
            vifs.join(", ")
        )
    }
}

impl PvDisk<'_> {
    /// The name of its file.
    fn image(&self, guest: &str) -> String {
        format!("{guest}-{}.img", self.vdev)
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

/// QEMU's device tree with a node for each domain.
fn xen_tree(plain: &[u8], domains: &[Domain<'_>]) -> Result<Vec<u8>> {
    let fdt = Fdt::new(plain).map_err(|e| anyhow::anyhow!("QEMU's device tree: {e}"))?;
    let mut tree = DeviceTree::from_fdt(&fdt);
    let chosen = tree
        .find_node_mut("/chosen")
        .context("QEMU's device tree has no /chosen")?;
    set(
        chosen,
        "xen,xen-bootargs",
        "console=dtuart dtuart=/pl011@9000000 bootscrub=0 xsm=dummy guest_loglvl=all sched=credit2",
    )?;
    for (i, domain) in domains.iter().enumerate() {
        let at = MODULE + i as u64 * MODULE_SPACE;
        let size = fs::metadata(domain.image)
            .with_context(|| format!("no image {}", domain.image.display()))?
            .len();
        ensure!(
            size <= MODULE_SPACE,
            "the image {} is too large",
            domain.image.display()
        );
        let mut node = DeviceTreeNode::new(format!("domU{}", i + 1)).map_err(model)?;
        set(&mut node, "compatible", "xen,domain")?;
        set(&mut node, "#address-cells", 2u32)?;
        set(&mut node, "#size-cells", 2u32)?;
        set(&mut node, "cpus", domain.vcpus)?;
        // In KiB.
        set(&mut node, "memory", u64::from(domain.memory) << 10)?;
        set(&mut node, "vpl011", Vec::<u8>::new())?;
        set(&mut node, "xen,enhanced", "no-xenstore")?;
        let mut module = DeviceTreeNode::new(format!("module@{at:x}")).map_err(model)?;
        set(
            &mut module,
            "compatible",
            b"multiboot,kernel\0multiboot,module\0".to_vec(),
        )?;
        set(
            &mut module,
            "reg",
            [at.to_be_bytes(), size.to_be_bytes()].concat(),
        )?;
        set(&mut module, "bootargs", domain.command_line)?;
        node.add_child(module);
        chosen.add_child(node);
    }
    Ok(tree.to_dtb())
}

fn set(node: &mut DeviceTreeNode, name: &str, value: impl dtoolkit::ToPropertyValue) -> Result<()> {
    node.add_property(DeviceTreeProperty::new(name, value).map_err(model)?);
    Ok(())
}

fn model(error: dtoolkit::error::ModelError) -> anyhow::Error {
    anyhow::anyhow!("device tree: {error}")
}
