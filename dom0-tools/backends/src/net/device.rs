// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an interface's back end writes to the store.

use super::Limits;
use super::config::{FrontConfig, front_config};
use crate::device::{self, BadKey, Kind, Writes};
use alloc::string::{String, ToString};

/// The back end of one network interface (`xenbus`, device type `vif`).
pub type Device = device::Device<Vif>;

/// What is to be done next for an interface's device.
pub type Step = device::Step<FrontConfig>;

/// The kind of device that a network interface is.
#[derive(Debug)]
pub struct Vif {
    limits: Limits,
}

impl Device {
    /// A device of which nothing was written yet.
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self::of(Vif { limits })
    }
}

impl Kind for Vif {
    type Front = FrontConfig;

    fn offer(&self) -> Writes {
        let one = || String::from("1");
        alloc::vec![
            ("feature-rx-copy", one()),
            ("feature-sg", one()),
            ("feature-gso-tcpv4", one()),
            ("feature-gso-tcpv6", one()),
            ("feature-ipv6-csum-offload", one()),
            ("feature-multicast-control", one()),
            ("feature-dynamic-multicast-control", one()),
            ("feature-split-event-channels", one()),
            (
                "multi-queue-max-queues",
                self.limits.queues.max(1).to_string()
            ),
        ]
    }

    fn details(&self) -> Writes {
        Writes::new()
    }

    fn front(&self, read: impl FnMut(&str) -> Option<String>) -> Result<FrontConfig, BadKey> {
        front_config(&self.limits, read)
    }
}
