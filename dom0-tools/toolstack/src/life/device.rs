// SPDX-License-Identifier: MIT OR Apache-2.0
//! Block devices: their nodes, their back-ends, attaching and detaching.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::files::{Opened, Role};
use super::tree::{self, Kind};
use super::{Claim, DEVICE_TIMEOUT_MS, Toolstack};
use crate::config::Disk;
use crate::error::{Context, Result, fail};
use crate::host::{BlockStart, DomId, Errno, Host};

/// A block device as xenstore shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockState {
    /// Its number.
    pub vdev: u32,
    /// Its name in the guest, such as `xvda`.
    pub name: String,
    /// The back-end's domain.
    pub backend_id: u32,
    /// The front-end's state (`XenbusState*`, 4 is connected).
    pub state: u32,
    /// The front-end's event channel, once it has one.
    pub event_channel: Option<u64>,
    /// The front-end's ring, once it has one.
    pub ring_ref: Option<u64>,
    /// The back-end's folder.
    pub backend: String,
    /// What it is served from.
    pub target: String,
    /// It cannot be written.
    pub read_only: bool,
}

const INITIALISING: &str = "1";
const CLOSING: &str = "5";
const CLOSED: u64 = 6;
const CONNECTED: u64 = 4;

impl<H: Host> Toolstack<H> {
    /// Opens what a disk is served from, and looks whether it can be: it is there, can be written if it is to be, and is
    /// not in use elsewhere.
    pub(super) async fn open_disk(&self, doing: u64, disk: &Disk) -> Result<Opened<'_, H>> {
        let target = &disk.target;
        let role = Role::Disk(disk.vdev.clone(), !disk.read_only);
        let opened = self
            .open_file(doing, role, target)
            .await
            .during(format!("disk {target}"))?;
        let probe = self
            .host
            .block_probe(&opened.file)
            .during(format!("disk {target}"))?;
        if probe.sectors == 0 {
            return fail!("disk {target}: it has no whole sector of 512 bytes");
        }
        if !disk.read_only && !probe.writable {
            return fail!("disk {target}: it cannot be written; give it access r");
        }
        Ok(opened)
    }

    /// Makes a disk's nodes and starts its back-end.
    pub(super) async fn add_disk(
        &self,
        dom: DomId,
        disk: &Disk,
        opened: Opened<'_, H>,
    ) -> Result<()> {
        let file = opened.given_to(dom, disk.devid);
        let dev = &disk.devid.to_string();
        let back = &tree::backend_path(dom, "vbd", dev);
        let front = &format!("/local/domain/{dom}/device/vbd/{dev}");
        let device_type = if disk.cdrom { "cdrom" } else { "disk" };
        let bit = |b: bool| if b { "1" } else { "0" };
        tree::ensure(
            &self.host,
            &format!("/local/domain/{dom}/device/vbd"),
            Kind::ForGuest(dom),
        )?;
        tree::backend(
            &self.host,
            dom,
            "vbd",
            dev,
            &[
                ("frontend", front),
                ("params", &disk.target),
                ("frontend-id", &dom.to_string()),
                ("online", "1"),
                ("removable", bit(disk.cdrom)),
                ("bootable", "1"),
                ("state", "1"),
                ("dev", &disk.vdev),
                ("type", "phy"),
                ("mode", if disk.read_only { "r" } else { "w" }),
                ("device-type", device_type),
                ("discard-enable", bit(disk.discard)),
                ("specification", "xen"),
                ("hotplug-status", "connected"),
            ],
        )?;
        // The guest's watch fires on these: the back-end's folder is whole by then.
        tree::put(&self.host, front, "", Kind::Front(dom))?;
        tree::put_all(
            &self.host,
            front,
            Kind::Front(dom),
            &[
                ("backend", back),
                ("backend-id", "0"),
                ("state", "1"),
                ("virtual-device", dev),
                ("device-type", device_type),
                ("trusted", bit(disk.trusted)),
            ],
        )?;
        let start = BlockStart {
            dom,
            vdev: disk.devid,
            target: disk.target.clone(),
            read_only: disk.read_only,
            discard: disk.discard,
        };
        self.host
            .block_start(&start, file)
            .await
            .during(format!("disk {}", disk.target))
    }

    /// Removes a disk at once, back-end and nodes.
    pub(super) async fn remove_disk(&self, dom: DomId, vdev: u32) {
        self.host.block_stop(dom, vdev).await;
        self.released(dom, vdev);
        tree::remove_device(&self.host, dom, "vbd", &vdev.to_string());
    }

    /// Stops all back-ends of a domain, and leaves the nodes.
    pub(super) async fn stop_devices(&self, dom: DomId) {
        for vdev in self.held_by(dom) {
            self.host.block_stop(dom, vdev).await;
            self.released(dom, vdev);
        }
        for devid in self.devids(dom, "vif") {
            self.host.net_stop(dom, devid).await;
        }
    }

    fn vdevs(&self, dom: DomId) -> Vec<u32> {
        self.devids(dom, "vbd")
    }

    /// The numbers of a domain's devices of a class. The guest cannot change this folder.
    pub(super) fn devids(&self, dom: DomId, class: &str) -> Vec<u32> {
        self.listed_devids(dom, class).unwrap_or_default()
    }

    /// The same for one who must not take a device that is there for one that is not.
    pub(super) fn listed_devids(&self, dom: DomId, class: &str) -> Result<Vec<u32>> {
        let dir = format!("/local/domain/0/backend/{class}/{dom}");
        let names = match self.host.xs_list(&dir) {
            Err(Errno::ENOENT) => Vec::new(),
            names => names.during(format!("xenstore: listing {dir}"))?,
        };
        let mut ids: Vec<u32> = names.iter().filter_map(|n| n.parse().ok()).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// A domain's disks, in the order of their numbers.
    pub fn blocks(&self, dom: DomId) -> Vec<BlockState> {
        self.vdevs(dom)
            .into_iter()
            .map(|vdev| {
                let backend = tree::backend_path(dom, "vbd", &vdev.to_string());
                let front = format!("/local/domain/{dom}/device/vbd/{vdev}");
                // Of several queues the first one is told.
                let front_number = |name: &str| {
                    self.read_number(&format!("{front}/{name}"))
                        .or_else(|| self.read_number(&format!("{front}/queue-0/{name}")))
                };
                let back_text = |name: &str| {
                    self.read_text(&format!("{backend}/{name}"))
                        .unwrap_or_default()
                };
                BlockState {
                    vdev,
                    name: back_text("dev"),
                    backend_id: 0,
                    state: front_number("state")
                        .and_then(|n| u32::try_from(n).ok())
                        .unwrap_or(0),
                    event_channel: front_number("event-channel"),
                    ring_ref: front_number("ring-ref").or_else(|| front_number("ring-ref0")),
                    target: back_text("params"),
                    read_only: back_text("mode") != "w",
                    backend,
                }
            })
            .collect()
    }

    /// Gives a running guest a further disk.
    ///
    /// # Errors
    /// The device number is taken, or the disk cannot be served.
    pub async fn attach(&self, dom: DomId, disk: &Disk) -> Result<()> {
        let Some(_claim) = self.claim(Claim::Domain(dom)) else {
            return fail!("domain {dom} is being changed; try again");
        };
        if self.vdevs(dom).contains(&disk.devid) {
            return fail!(
                "domain {dom} has a disk {} already; give another vdev",
                disk.vdev
            );
        }
        let opened = self.open_disk(self.doing(), disk).await?;
        let again = self.number_is_free(dom, "vbd", disk.devid).await?;
        let mut added = self.add_disk(dom, disk, opened).await;
        if added.is_ok() && again {
            added = self.taken_up(dom, "vbd", disk.devid).await;
        }
        match added {
            Ok(()) => {
                if let Some(kept) = self.kept.borrow_mut().get_mut(&dom.0) {
                    kept.config.disks.push(disk.clone());
                }
                Ok(())
            }
            Err(e) => {
                self.remove_disk(dom, disk.devid).await;
                Err(e)
            }
        }
    }

    /// Takes a disk from a guest: asks it to let go and waits, or does not wait if `force`.
    ///
    /// # Errors
    /// There is no such disk, or the guest does not let go of it.
    pub async fn detach(&self, dom: DomId, vdev: u32, force: bool) -> Result<()> {
        let Some(_claim) = self.claim(Claim::Domain(dom)) else {
            return fail!("domain {dom} is being changed; try again");
        };
        if !self.vdevs(dom).contains(&vdev) {
            return fail!("domain {dom} has no disk {vdev}; see: block-list {dom}");
        }
        if !force && !self.let_go(dom, "vbd", vdev).await? {
            return fail!(
                "domain {dom} does not let go of the disk (is it mounted?); unmount it there, or detach it with -f"
            );
        }
        self.remove_disk(dom, vdev).await;
        if let Some(kept) = self.kept.borrow_mut().get_mut(&dom.0) {
            kept.config.disks.retain(|d| d.devid != vdev);
            kept.used.insert(("vbd", vdev));
        }
        Ok(())
    }

    /// The names of a domain's disks, in words.
    pub(crate) fn disks_in_words(&self, dom: DomId) -> String {
        let names: Vec<String> = self.blocks(dom).into_iter().map(|b| b.name).collect();
        match names.is_empty() {
            true => "it has none".to_string(),
            false => format!("it has {}", names.join(", ")),
        }
    }

    /// Asks a guest to let go of a device, if it runs and has it or is about to, and waits. Whether it did.
    pub(super) async fn let_go(&self, dom: DomId, class: &str, devid: u32) -> Result<bool> {
        let back = tree::backend_path(dom, class, &devid.to_string());
        let front = format!("/local/domain/{dom}/device/{class}/{devid}");
        let state = || self.read_number(&format!("{front}/state"));
        let asked = match state() {
            None | Some(CLOSED) => false,
            Some(CONNECTED) => true,
            // A driver that is at its beginning answers too. One that is taken away from may never find its way back.
            Some(_) => self.host.xs_is_watched(dom, &front),
        };
        if !asked || self.has_stopped(dom) {
            return Ok(true);
        }
        self.write_text(&format!("{back}/online"), "0")?;
        self.write_text(&format!("{back}/state"), CLOSING)?;
        let closed = self.wait_closed(&format!("{back}/state")).await?;
        Ok(closed || state() != Some(CONNECTED))
    }

    /// Waits until a guest has forgotten the device that had this number before: until it does not watch the back-end any more,
    /// it would not see that the device is another one, and Linux's network driver, at its end, waits for a state that
    /// a new one is not in. Whether there was one.
    ///
    /// # Errors
    /// It does not forget it.
    pub(super) async fn number_is_free(
        &self,
        dom: DomId,
        class: &'static str,
        devid: u32,
    ) -> Result<bool> {
        let kept = self
            .kept
            .borrow()
            .get(&dom.0)
            .map(|k| k.used.contains(&(class, devid)));
        if kept != Some(true) {
            return Ok(false);
        }
        let state = format!(
            "{}/state",
            tree::backend_path(dom, class, &devid.to_string())
        );
        if !self.host.xs_unwatched(dom, &state, DEVICE_TIMEOUT_MS).await {
            return fail!(
                "domain {dom} still holds on to the device {class}/{devid} that it had; try again, or give another number"
            );
        }
        Ok(true)
    }

    /// Waits until a guest has taken up a device whose number another one had before, if it looks for devices at all. Its
    /// driver for the other one, which may still be at its end, can take this one for that and close it: then this
    /// one begins anew.
    ///
    /// # Errors
    /// The guest closes it again and again.
    pub(super) async fn taken_up(&self, dom: DomId, class: &str, devid: u32) -> Result<()> {
        let front = format!("/local/domain/{dom}/device/{class}/{devid}");
        if !self.host.xs_is_watched(dom, &front) {
            return Ok(());
        }
        let back = format!(
            "{}/state",
            tree::backend_path(dom, class, &devid.to_string())
        );
        let front = format!("{front}/state");
        let mut watch = self
            .host
            .xs_watch(&back)
            .during(format!("xenstore: watching {back}"))?;
        let deadline = self
            .host
            .uptime_ns()
            .saturating_add(DEVICE_TIMEOUT_MS * 1_000_000);
        let mut attempts = 3;
        loop {
            match (self.read_number(&front), self.read_number(&back)) {
                (_, Some(CONNECTED)) => return Ok(()),
                (Some(CLOSED), Some(CLOSED)) => {
                    if attempts == 0 {
                        return fail!("domain {dom} closes the device {class}/{devid} at once");
                    }
                    attempts -= 1;
                    self.write_text(&front, INITIALISING)?;
                }
                _ => {}
            }
            let left = deadline.saturating_sub(self.host.uptime_ns()) / 1_000_000;
            // One that takes longer may have no driver yet.
            if left == 0 || self.host.xs_next(&mut watch, Some(left)).await.is_none() {
                return Ok(());
            }
        }
    }

    async fn wait_closed(&self, state: &str) -> Result<bool> {
        let mut watch = self
            .host
            .xs_watch(state)
            .during(format!("xenstore: watching {state}"))?;
        let deadline = self
            .host
            .uptime_ns()
            .saturating_add(DEVICE_TIMEOUT_MS * 1_000_000);
        loop {
            if matches!(self.read_number(state), None | Some(CLOSED)) {
                return Ok(true);
            }
            let left = deadline.saturating_sub(self.host.uptime_ns()) / 1_000_000;
            if left == 0 || self.host.xs_next(&mut watch, Some(left)).await.is_none() {
                return Ok(matches!(self.read_number(state), None | Some(CLOSED)));
            }
        }
    }
}
