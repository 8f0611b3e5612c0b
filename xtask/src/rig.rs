// SPDX-License-Identifier: MIT OR Apache-2.0
//! The same test domains on Paravane and on the real Xen: Paravane's dom0 creates them from config files, Xen starts
//! them from the device tree without a dom0 ("dom0less").

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

use crate::apt::Apt;
use crate::build::Built;
use crate::machine::Machine;
use crate::process::{output, which};
use crate::project::{Project, write_atomic};
use crate::session::Session;
use crate::volume::Volume;

/// A hypervisor to run test domains on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Hypervisor {
    Paravane,
    /// Debian 12's Xen 4.17.
    Xen,
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

/// What a rig is made of.
pub struct Rig<'a> {
    pub project: &'a Project,
    pub built: &'a Built,
    pub gic: u32,
    /// Count instructions: QEMU's `-icount shift=0,sleep=off`.
    pub icount: bool,
    pub log: PathBuf,
    /// No wait goes beyond this.
    pub bound: Duration,
}

/// Domains that run.
pub struct Started {
    pub session: Session,
    /// dom0's, for this process alone as long as the machine may use it.
    _volume: Option<Volume>,
}

const XEN_PACKAGE: &str = "xen-hypervisor-4.17-arm64:arm64";
/// Where the first domain's image goes in the real machine's memory, and how far apart they are.
const MODULE: u64 = 0x5000_0000;
const MODULE_SPACE: u64 = 16 << 20;

/// Xen's image, downloaded the first time, and the version of its package.
pub fn xen_image(project: &Project) -> Result<(PathBuf, String)> {
    let folder = project.dir("debian")?;
    let (image, package) = (folder.join("xen-4.17"), folder.join("xen-4.17.package"));
    if let Ok(version) = fs::read_to_string(&package)
        && image.is_file()
    {
        return Ok((image, version));
    }
    let apt = Apt::find()
        .context("the real Xen is taken from Debian 12's packages; this system is another one")?;
    if !apt.has_arm64() {
        apt.require_root(true)?;
        apt.add_arm64()?;
    }
    apt.know(&[XEN_PACKAGE])?;
    let version = apt
        .versions(XEN_PACKAGE)
        .into_iter()
        .next()
        .context("apt knows no Xen")?
        .version;
    let tree = project.path("unpacked");
    let _ = fs::remove_dir_all(&tree);
    apt.unpack(project, &[XEN_PACKAGE], &tree)?;
    let bytes = fs::read(tree.join("boot/xen-4.17-arm64"))
        .context("the package has no boot/xen-4.17-arm64")?;
    write_atomic(&image, &bytes)?;
    write_atomic(&package, version.as_bytes())?;
    fs::remove_dir_all(&tree)?;
    Ok((image, version))
}

impl Rig<'_> {
    /// Starts the domains, the second one first, on a machine with one CPU.
    pub fn start(&self, on: Hypervisor, domains: &[Domain<'_>]) -> Result<Started> {
        let _ = fs::remove_file(&self.log);
        match on {
            Hypervisor::Paravane => self.paravane(domains),
            Hypervisor::Xen => self.xen(domains),
        }
    }

    fn paravane(&self, domains: &[Domain<'_>]) -> Result<Started> {
        let dir = self.project.dir("rig")?;
        let guests = self.project.dir("rig/guests")?;
        for domain in domains {
            let name = domain.name;
            fs::copy(domain.image, guests.join(format!("{name}.bin")))
                .with_context(|| format!("no image {}", domain.image.display()))?;
            let config = format!(
                "name = \"{name}\"\nkernel = \"/guests/{name}.bin\"\ncmdline = \"{}\"\nmemory = {}\nvcpus = {}\n\
                 vuart = \"sbsa_uart\"\non_crash = \"preserve\"\non_poweroff = \"preserve\"\n",
                domain.command_line, domain.memory, domain.vcpus
            );
            fs::write(guests.join(format!("{name}.cfg")), config)?;
        }
        let volume = Volume::lock(&dir)?;
        volume.discard();
        volume.sync(&[&guests])?;
        let machine = Machine {
            gic: self.gic,
            cpus: 1,
            memory: 1 << 10,
            icount: self.icount.then(|| ICOUNT.to_owned()),
            ..Machine::default()
        };
        let mut session = Session::start(
            machine.qemu(self.built, volume.image())?,
            &self.log,
            self.bound,
        )?;
        session.prompt(Duration::from_secs(60))?;
        // Paused at first, so that all of them run once the last one is there.
        for domain in domains {
            session.vane(&format!("create -p /guests/{}.cfg", domain.name))?;
        }
        for domain in domains.iter().skip(1).rev() {
            session.vane(&format!("unpause {}", domain.name))?;
        }
        if let Some(first) = domains.first() {
            session.line(&format!("unpause {}", first.name))?;
        }
        Ok(Started {
            session,
            _volume: Some(volume),
        })
    }

    fn xen(&self, domains: &[Domain<'_>]) -> Result<Started> {
        let (image, _) = xen_image(self.project)?;
        let dir = self.project.dir("rig")?;
        let machine = |more: &str| -> Result<Command> {
            let mut qemu = Command::new(
                which("qemu-system-aarch64").context("there is no qemu-system-aarch64")?,
            );
            qemu.args([
                "-machine",
                &format!("virt,virtualization=on,gic-version={}{more}", self.gic),
            ]);
            qemu.args([
                "-cpu",
                "cortex-a72",
                "-smp",
                "1",
                "-m",
                "1G",
                "-nodefaults",
                "-no-user-config",
            ]);
            qemu.args(["-display", "none", "-monitor", "none", "-no-reboot"]);
            Ok(qemu)
        };
        let tree = dir.join("xen.dtb");
        let plain = dir.join("virt.dtb");
        output(&mut machine(&format!(",dumpdtb={}", plain.display()))?)?;
        write_atomic(&tree, &xen_tree(&fs::read(&plain)?, domains)?)?;
        let mut qemu = machine("")?;
        qemu.args([
            "-chardev",
            "stdio,id=console,signal=off,mux=off",
            "-serial",
            "chardev:console",
        ]);
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
        if self.icount {
            qemu.args(["-icount", ICOUNT]);
        }
        Ok(Started {
            session: Session::start(qemu, &self.log, self.bound)?,
            _volume: None,
        })
    }
}

/// A nanosecond of virtual time for each instruction; while nothing is to be done time goes on at once.
const ICOUNT: &str = "shift=0,sleep=off";

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
