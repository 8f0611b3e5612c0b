// SPDX-License-Identifier: MIT OR Apache-2.0
//! The life cycle of domains: creation with undo, shutdown, destruction, what follows an exit, and
//! changes while they run.

mod create;
mod device;
mod exit;
mod files;
mod network;
mod tree;

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

pub use device::BlockState;
pub use exit::Exit;
pub use network::VifState;

use crate::config::{DomainConfig, bad_name};
use crate::error::{Context, Error, Result, fail};
use crate::host::{DomId, DomInfo, Errno, Host};

/// How many files are named where one was not found.
const SHOWN_FILES: usize = 12;
/// What a domain may have beyond its memory, in KiB: the pages that it shares with its back-ends
/// (xl's `LIBXL_MAXMEM_CONSTANT`).
const MEMORY_SLACK_KIB: u64 = 1024;
/// How long a back-end may take to let go of a device.
const DEVICE_TIMEOUT_MS: u64 = 10_000;
/// How long the hypervisor may take to free a domain's memory.
const DESTROY_TIMEOUT_NS: u64 = 60_000_000_000;
/// A domain that ends sooner after its creation is started anew only after this.
const MIN_LIFE_NS: u64 = 2_000_000_000;

/// What is remembered of a domain that this toolstack created.
#[derive(Clone, Debug)]
struct Kept {
    /// Its configuration, with the UUID that it got.
    config: DomainConfig,
    /// When it was created, in nanoseconds of [`Host::uptime_ns`].
    created_ns: u64,
    /// What its configuration asks for at its end has been done.
    ended: bool,
    /// Classes and numbers of devices that it had.
    used: BTreeSet<(&'static str, u32)>,
}

/// The toolstack: all operations on domains. Operations may run side by side on one executor; two of
/// them on one domain exclude each other.
pub struct Toolstack<H> {
    host: H,
    kept: RefCell<BTreeMap<u16, Kept>>,
    /// Names that are being given, and domains that are being destroyed.
    busy: RefCell<Vec<Claim>>,
    /// Files in use.
    uses: RefCell<Vec<files::Use>>,
    numbers: Cell<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Claim {
    Name(String),
    Domain(DomId),
}

/// Gives a claim back at the end of its scope.
struct Claimed<'a> {
    busy: &'a RefCell<Vec<Claim>>,
    claim: Claim,
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        self.busy.borrow_mut().retain(|c| *c != self.claim);
    }
}

impl<H: Host> Toolstack<H> {
    /// A toolstack over a host.
    pub fn new(host: H) -> Self {
        Self {
            host,
            kept: RefCell::default(),
            busy: RefCell::default(),
            uses: RefCell::default(),
            numbers: Cell::new(0),
        }
    }

    /// The host.
    pub fn host(&self) -> &H {
        &self.host
    }

    fn claim(&self, claim: Claim) -> Option<Claimed<'_>> {
        let mut busy = self.busy.borrow_mut();
        if busy.contains(&claim) {
            return None;
        }
        busy.push(claim.clone());
        Some(Claimed {
            busy: &self.busy,
            claim,
        })
    }

    fn read_text(&self, path: &str) -> Option<String> {
        let bytes = self.host.xs_read(path).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn read_number(&self, path: &str) -> Option<u64> {
        self.read_text(path)?.parse().ok()
    }

    fn write_text(&self, path: &str, text: &str) -> Result<()> {
        self.host
            .xs_write(path, text.as_bytes())
            .during(format!("xenstore: writing {path}"))
    }

    /// That a file is not there, and what is there that may have been meant: files with the same ending, if there are.
    pub(crate) async fn no_such_file(&self, path: &str) -> String {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let folder = if folder.is_empty() { "/" } else { folder };
        let Ok(entries) = self.host.list_dir(folder).await else {
            return format!("there is no folder {folder}; the guests' files are under /guests");
        };
        let files = entries.iter().filter(|e| !e.dir).map(|e| e.name.as_str());
        let prefix = folder.trim_end_matches('/');
        match crate::text::closest(name, files.clone()) {
            Some(meant) => {
                format!("there is no such file; did you mean \"{prefix}/{meant}\"?")
            }
            None => {
                let ending = |f: &str| f.rsplit_once('.').map(|(_, ending)| ending.to_owned());
                let mut names: Vec<&str> = files.collect();
                if names.iter().any(|f| ending(f) == ending(name)) {
                    names.retain(|f| ending(f) == ending(name));
                }
                names.sort_unstable();
                let more = if names.len() > SHOWN_FILES {
                    " …"
                } else {
                    ""
                };
                names.truncate(SHOWN_FILES);
                match names.is_empty() {
                    true => format!("there is no such file; {folder} has no files"),
                    false => format!(
                        "there is no such file; {folder} has {}{more}",
                        names.join(", ")
                    ),
                }
            }
        }
    }

    /// A domain's name, if it has one.
    pub fn name_of(&self, dom: DomId) -> Option<String> {
        self.read_text(&format!("/local/domain/{dom}/name"))
            .filter(|n| !n.is_empty())
    }

    /// A domain's name, or `(null)` as xl says.
    pub fn shown_name(&self, dom: DomId) -> String {
        self.name_of(dom).unwrap_or_else(|| "(null)".to_owned())
    }

    /// The domain of a name or number.
    ///
    /// # Errors
    /// There is none; says what there is of a similar name.
    pub fn find(&self, what: &str) -> Result<DomInfo> {
        if let Ok(number) = what.parse::<u16>() {
            return match self.host.domain_info(DomId(number)) {
                Ok(info) => Ok(info),
                Err(Errno::ESRCH) => fail!("there is no domain {number}; see: list"),
                Err(e) => Err(e).during(format!("domain {number}")),
            };
        }
        let domains = self.host.domain_list().during("listing the domains")?;
        let names: Vec<_> = domains
            .iter()
            .map(|d| self.name_of(d.dom).unwrap_or_default())
            .collect();
        let at = names.iter().position(|n| n == what);
        if let Some(info) = at.and_then(|at| domains.into_iter().nth(at)) {
            return Ok(info);
        }
        match crate::text::closest(what, names.iter().map(String::as_str)) {
            Some(name) => fail!("there is no domain \"{what}\"; did you mean \"{name}\"?"),
            None => fail!("there is no domain \"{what}\"; see: list"),
        }
    }

    /// As [`Self::find`], but not the control domain.
    ///
    /// # Errors
    /// There is none, or it is the control domain.
    pub fn find_guest(&self, what: &str) -> Result<DomInfo> {
        let info = self.find(what)?;
        match info.dom {
            DomId(0) => fail!("domain 0 is the control domain; this is for guests only"),
            _ => Ok(info),
        }
    }

    /// When a domain was created, in nanoseconds of [`Host::uptime_ns`], if it was created here.
    pub fn created_ns(&self, dom: DomId) -> Option<u64> {
        match dom {
            DomId(0) => Some(0),
            _ => self.kept.borrow().get(&dom.0).map(|k| k.created_ns),
        }
    }

    /// The configuration that a domain was created with.
    pub fn config_of(&self, dom: DomId) -> Option<DomainConfig> {
        self.kept.borrow().get(&dom.0).map(|k| k.config.clone())
    }

    /// Stops a guest's vcpus.
    ///
    /// # Errors
    /// The hypervisor refused.
    pub fn pause(&self, dom: DomId) -> Result<()> {
        self.host
            .pause_domain(dom)
            .during(format!("pausing domain {dom}"))
    }

    /// Lets a guest's vcpus run again.
    ///
    /// # Errors
    /// It is not paused, or the hypervisor refused.
    pub fn unpause(&self, dom: DomId) -> Result<()> {
        match self.host.unpause_domain(dom) {
            Err(Errno::EINVAL) => fail!("domain {dom} is not paused"),
            done => done.during(format!("unpausing domain {dom}")),
        }
    }

    /// Asks a guest to power off (`poweroff`) or to restart (`reboot`), and answers whether it has
    /// said that it listens to that.
    ///
    /// # Errors
    /// The guest has stopped already, or xenstore refused.
    pub fn request_shutdown(&self, info: &DomInfo, reboot: bool) -> Result<bool> {
        let dom = info.dom;
        if info.shutdown.is_some() || info.dying {
            return fail!("domain {dom} has stopped already");
        }
        let (word, feature) = match reboot {
            true => ("reboot", "feature-reboot"),
            false => ("poweroff", "feature-poweroff"),
        };
        let control = format!("/local/domain/{dom}/control");
        self.write_text(&format!("{control}/shutdown"), word)?;
        Ok(self.read_text(&format!("{control}/{feature}")).as_deref() == Some("1"))
    }

    /// Whether a guest has said that it listens to requests to power off.
    pub fn listens(&self, dom: DomId) -> bool {
        let path = format!("/local/domain/{dom}/control/feature-poweroff");
        self.read_text(&path).as_deref() == Some("1")
    }

    /// Lets nothing follow any more when domains stop: the machine is about to be powered off.
    pub fn forget_actions(&self) {
        self.kept
            .borrow_mut()
            .values_mut()
            .for_each(|k| k.ended = true);
    }

    /// Whether a domain is gone or has stopped.
    pub fn has_stopped(&self, dom: DomId) -> bool {
        self.host
            .domain_info(dom)
            .map_or(true, |i| i.shutdown.is_some() || i.dying)
    }

    /// Gives a guest another name.
    ///
    /// # Errors
    /// The name is taken or no name.
    pub fn rename(&self, dom: DomId, name: &str) -> Result<()> {
        if let Some(why) = bad_name(name) {
            return fail!("\"{name}\": {why}");
        }
        let Some(_claim) = self.claim(Claim::Name(name.to_owned())) else {
            return fail!("the name \"{name}\" is being given to another domain");
        };
        if let Some(other) = self.named(name)? {
            return match other == dom {
                true => Ok(()),
                false => fail!("the name \"{name}\" is taken by domain {other}; choose another"),
            };
        }
        self.write_name(dom, name)?;
        if let Some(kept) = self.kept.borrow_mut().get_mut(&dom.0) {
            kept.config.name = name.to_owned();
        }
        Ok(())
    }

    /// The domain that has a name.
    fn named(&self, name: &str) -> Result<Option<DomId>> {
        let domains = self.host.domain_list().during("listing the domains")?;
        let mut doms = domains.iter().map(|d| d.dom);
        Ok(doms.find(|d| self.name_of(*d).as_deref() == Some(name)))
    }

    /// Whether a domain is gone, or has stopped and is kept as it is.
    pub fn is_over(&self, dom: DomId) -> bool {
        match self.host.domain_info(dom) {
            Err(_) => true,
            Ok(info) => {
                let kept = self.kept.borrow();
                let ended = kept.get(&dom.0).is_none_or(|k| k.ended);
                info.shutdown.is_some() && ended
            }
        }
    }

    /// Gives a guest another configuration, for when it is started anew. Its name and its UUID stay.
    ///
    /// # Errors
    /// It was not created here.
    pub fn replace_config(&self, dom: DomId, config: DomainConfig) -> Result<()> {
        let mut kept = self.kept.borrow_mut();
        let Some(kept) = kept.get_mut(&dom.0) else {
            return fail!("domain {dom} was not created here");
        };
        kept.config = DomainConfig {
            name: kept.config.name.clone(),
            uuid: kept.config.uuid,
            ..config
        };
        Ok(())
    }

    /// Presses a key of Linux's magic SysRq (`control/sysrq`, docs/misc/xenstore-paths.pandoc).
    ///
    /// # Errors
    /// xenstore refused.
    pub fn press_sysrq(&self, dom: DomId, key: &str) -> Result<()> {
        self.write_text(&format!("/local/domain/{dom}/control/sysrq"), key)
    }

    /// Limits a guest's memory, in KiB.
    ///
    /// # Errors
    /// Less than what it was told to have, or the hypervisor refused.
    pub fn set_max_memory(&self, dom: DomId, kib: u64) -> Result<()> {
        if let Some(target) = self.memory_target(dom).filter(|t| kib < *t) {
            return fail!(
                "domain {dom} is to have {} now; lower that first: mem-set {dom} {}",
                mib(target),
                kib >> 10
            );
        }
        self.host
            .set_max_mem(dom, kib.saturating_add(MEMORY_SLACK_KIB))
            .during(format!("domain {dom}: limiting its memory"))
    }

    fn write_name(&self, dom: DomId, name: &str) -> Result<()> {
        self.write_text(&format!("/local/domain/{dom}/name"), name)?;
        if let Some(vm) = self.read_text(&format!("/local/domain/{dom}/vm")) {
            self.write_text(&format!("{vm}/name"), name)?;
        }
        Ok(())
    }

    fn name_is_free(&self, name: &str) -> Result<()> {
        let domains = self.host.domain_list().during("listing the domains")?;
        match domains
            .iter()
            .find(|d| self.name_of(d.dom).as_deref() == Some(name))
        {
            None => Ok(()),
            Some(d) => fail!(
                "the name \"{name}\" is taken by domain {}; destroy that one or give another with name=…",
                d.dom
            ),
        }
    }

    /// How much memory a domain was told to have, in KiB.
    pub fn memory_target(&self, dom: DomId) -> Option<u64> {
        self.read_number(&format!("/local/domain/{dom}/memory/target"))
    }

    /// Tells a guest's balloon how much memory to have, in KiB.
    ///
    /// # Errors
    /// More than its maximum, less than anything runs with, or the hypervisor refused.
    pub fn set_memory(&self, dom: DomId, kib: u64) -> Result<()> {
        let memory = format!("/local/domain/{dom}/memory");
        let most = self.read_number(&format!("{memory}/static-max"));
        if let Some(most) = most.filter(|m| kib > *m) {
            return fail!(
                "{} is more than the most that domain {dom} may have, {}; set maxmem in its configuration",
                mib(kib),
                mib(most)
            );
        }
        if kib < 4096 {
            return fail!("{} is too little; 4 MiB are the least", mib(kib));
        }
        let limit = kib.saturating_add(MEMORY_SLACK_KIB);
        self.host
            .set_max_mem(dom, limit)
            .during(format!("domain {dom}: limiting its memory"))?;
        self.write_text(&format!("{memory}/target"), &kib.to_string())
    }

    /// Tells a guest how many vcpus to have online.
    ///
    /// # Errors
    /// None, or more than it was created with.
    pub fn set_vcpus(&self, info: &DomInfo, count: u32) -> Result<()> {
        let dom = info.dom;
        let most = info.max_vcpu_id.saturating_add(1);
        if count == 0 || count > most {
            return fail!(
                "domain {dom} can have 1 to {most} vcpus; for more set maxvcpus in its configuration"
            );
        }
        for vcpu in 0..most {
            let word = if vcpu < count { "online" } else { "offline" };
            self.write_text(
                &format!("/local/domain/{dom}/cpu/{vcpu}/availability"),
                word,
            )?;
        }
        Ok(())
    }

    /// Makes the control domain's own nodes. Call it once, before anything else.
    ///
    /// # Errors
    /// xenstore refused.
    pub fn start(&self) -> Result<()> {
        tree::control_domain(&self.host)
    }

    /// Destroys a guest: back-ends, xenstore nodes and the domain itself. It is not an error if
    /// parts of it are gone already.
    ///
    /// # Errors
    /// The hypervisor refused, or takes too long; everything else is done.
    pub async fn destroy(&self, dom: DomId) -> Result<()> {
        if dom == DomId(0) {
            return fail!("domain 0 is the control domain; to end everything use poweroff");
        }
        let Some(_claim) = self.claim(Claim::Domain(dom)) else {
            return fail!("domain {dom} is being destroyed already");
        };
        self.tear_down(dom).await
    }

    /// Destroys without asking whether anybody else does.
    async fn tear_down(&self, dom: DomId) -> Result<()> {
        match self.host.pause_domain(dom) {
            // A domain that is dying already cannot be paused any more.
            Ok(()) | Err(Errno::ESRCH | Errno::EINVAL) => {}
            Err(e) => return Err(e).during(format!("pausing domain {dom}")),
        }
        self.stop_devices(dom).await;
        self.host.console_stop(dom).await;
        tree::remove(&self.host, dom);
        let release = match self.host.xs_release(dom) {
            Err(Errno::ENOENT) => Ok(()),
            other => other.during(format!("xenstore: releasing domain {dom}")),
        };
        self.kept.borrow_mut().remove(&dom.0);
        self.destroy_memory(dom).await?;
        release
    }

    async fn destroy_memory(&self, dom: DomId) -> Result<()> {
        let deadline = self.host.uptime_ns().saturating_add(DESTROY_TIMEOUT_NS);
        loop {
            match self.host.destroy_domain(dom) {
                Ok(()) | Err(Errno::ESRCH) => return Ok(()),
                Err(Errno::ERESTART | Errno::EAGAIN) if self.host.uptime_ns() < deadline => {
                    self.host.pause_point().await;
                }
                Err(e) => return Err(e).during(format!("destroying domain {dom}")),
            }
        }
    }
}

/// KiB as people read them.
pub(crate) fn mib(kib: u64) -> String {
    match kib % 1024 {
        0 => format!("{} MiB", kib / 1024),
        _ => format!("{kib} KiB"),
    }
}

impl From<Errno> for Error {
    fn from(e: Errno) -> Self {
        Self(crate::error::words(e).to_owned())
    }
}

#[cfg(test)]
pub(crate) mod tests;
