// SPDX-License-Identifier: MIT OR Apache-2.0
//! What follows when a domain has stopped.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::{Claim, MIN_LIFE_NS, Toolstack};
use crate::config::{Action, DomainConfig};
use crate::error::{Error, Result, fail};
use crate::host::{DomId, Errno, Host, ShutdownCode};

/// A domain that stopped, and what was done about it. Its text is one line for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The domain.
    pub dom: DomId,
    /// Its name.
    pub name: String,
    /// Why it stopped.
    pub code: ShutdownCode,
    /// What its configuration asks for.
    pub action: Action,
    /// The domain that took its place, if one was to, or why the action failed.
    pub outcome: Result<Option<DomId>>,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dom, name, .. } = self;
        let why = match self.code {
            ShutdownCode::Poweroff => "powered off",
            ShutdownCode::Reboot => "asked for a restart",
            ShutdownCode::Suspend => "suspended itself",
            ShutdownCode::Crash => "crashed",
            ShutdownCode::Watchdog => "was stopped by its watchdog",
            ShutdownCode::SoftReset => "asked for a soft reset",
            ShutdownCode::Other(_) => "stopped",
        };
        write!(f, "domain {dom} ({name}) {why}: ")?;
        match (&self.outcome, self.action) {
            (Err(e), action) => write!(f, "{} failed: {e}", action.name()),
            (Ok(Some(new)), _) => write!(f, "started anew as domain {new}"),
            (Ok(None), Action::Preserve) => f.write_str("kept as it is"),
            (Ok(None), _) => f.write_str("destroyed"),
        }
    }
}

impl<H: Host> Toolstack<H> {
    /// Looks which domains have stopped and does for each what its configuration asks for. To be
    /// called on every `VIRQ_DOM_EXC`; calls that find nothing do nothing.
    pub async fn reap(&self) -> Vec<Exit> {
        let mut exits = Vec::new();
        for info in self.host.domain_list().unwrap_or_default() {
            if let (Some(code), false) = (info.shutdown, info.dying) {
                exits.extend(self.on_domain_exit(info.dom, code).await);
            }
        }
        exits
    }

    /// Does what a domain's configuration asks for now that it has stopped. `None` if that has been
    /// done before, or if the domain was not created here.
    pub async fn on_domain_exit(&self, dom: DomId, code: ShutdownCode) -> Option<Exit> {
        let (config, created_ns) = {
            let mut kept = self.kept.borrow_mut();
            let kept = kept.get_mut(&dom.0).filter(|k| !k.ended)?;
            kept.ended = true;
            (kept.config.clone(), kept.created_ns)
        };
        let action = match code {
            ShutdownCode::Poweroff => config.on_poweroff,
            ShutdownCode::Reboot => config.on_reboot,
            // Nobody here asked for it: it is left for people to look at.
            ShutdownCode::Suspend => Action::Preserve,
            ShutdownCode::Watchdog => config.on_watchdog,
            ShutdownCode::Crash | ShutdownCode::SoftReset | ShutdownCode::Other(_) => {
                config.on_crash
            }
        };
        let outcome = self.act(dom, action, &config, created_ns).await;
        Some(Exit {
            dom,
            name: config.name,
            code,
            action,
            outcome,
        })
    }

    async fn act(
        &self,
        dom: DomId,
        action: Action,
        config: &DomainConfig,
        created_ns: u64,
    ) -> Result<Option<DomId>> {
        match action {
            Action::Preserve => Ok(None),
            Action::Destroy => self.destroy(dom).await.map(|()| None),
            Action::Restart => {
                self.destroy(dom).await?;
                self.restart(config, created_ns).await
            }
            Action::RenameRestart => {
                self.retire(dom, config).await?;
                // The old domain keeps the UUID.
                let config = DomainConfig {
                    uuid: None,
                    ..config.clone()
                };
                self.restart(&config, created_ns).await
            }
        }
    }

    async fn restart(&self, config: &DomainConfig, created_ns: u64) -> Result<Option<DomId>> {
        let lived = self.host.uptime_ns().saturating_sub(created_ns);
        if lived < MIN_LIFE_NS {
            self.host.sleep_ms((MIN_LIFE_NS - lived) / 1_000_000).await;
        }
        self.create(config, false).await.map(Some)
    }

    /// Takes a stopped domain's name and devices away, and leaves its memory.
    async fn retire(&self, dom: DomId, config: &DomainConfig) -> Result<()> {
        let Some(_claim) = self.claim(Claim::Domain(dom)) else {
            return fail!("domain {dom} is being destroyed");
        };
        for block in self.blocks(dom) {
            self.remove_disk(dom, block.vdev).await;
        }
        for devid in self.devids(dom, "vif") {
            self.remove_vif(dom, devid).await;
        }
        let name = format!("{}-{dom}", config.name);
        self.name_is_free(&name)?;
        self.write_name(dom, &name)?;
        if let Some(kept) = self.kept.borrow_mut().get_mut(&dom.0) {
            kept.config.name = name;
            kept.config.disks.clear();
            kept.config.vifs.clear();
        }
        Ok(())
    }

    /// Restarts a domain that does not listen to requests: destroys it and creates it anew.
    ///
    /// # Errors
    /// It was not created here, or one of the two failed.
    pub async fn force_reboot(&self, dom: DomId) -> Result<DomId> {
        let Some((config, created_ns)) = self
            .kept
            .borrow()
            .get(&dom.0)
            .map(|k| (k.config.clone(), k.created_ns))
        else {
            return Err(Error(format!(
                "domain {dom} was not created here: {}",
                Errno::ENOENT
            )));
        };
        self.destroy(dom).await?;
        match self.restart(&config, created_ns).await? {
            Some(new) => Ok(new),
            None => fail!("domain {dom} was not started anew"),
        }
    }
}
