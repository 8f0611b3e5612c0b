// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the toolstack asks of the guest (`control/shutdown` of xenstore, `docs/misc/xenstore-paths.pandoc`).

use crate::Store;
use guest_abi::sched::ShutdownReason;
use pv_frontends::xenstore::Watch;
use pv_frontends::{Error, Platform};

const SECOND: u64 = 1_000_000_000;

// [control]
/// Requests to power off and to restart.
pub struct Control {
    xs: &'static Store,
    watch: Watch<'static, &'static crate::Kernel>,
}

impl Control {
    /// Says that the guest listens, and listens.
    ///
    /// # Errors
    /// xenstore's.
    pub fn open(xs: &'static Store) -> Result<Self, Error> {
        let store = xs.by(xs.platform().now() + 10 * SECOND);
        let watch = store.watch("control/shutdown")?;
        store.write("control/feature-poweroff", b"1")?;
        store.write("control/feature-reboot", b"1")?;
        Ok(Self { xs, watch })
    }

    /// What is asked since the last call. Does not wait when nothing is.
    ///
    /// # Errors
    /// xenstore's.
    pub fn asked(&self) -> Result<Option<ShutdownReason>, Error> {
        if self.watch.try_next()?.is_none() {
            return Ok(None);
        }
        let store = self.xs.by(self.xs.platform().now() + 10 * SECOND);
        let word = store.read("control/shutdown")?;
        let reason = match word.as_slice() {
            b"poweroff" | b"halt" => ShutdownReason::Poweroff,
            b"reboot" => ShutdownReason::Reboot,
            _ => return Ok(None),
        };
        // That it was understood.
        store.write("control/shutdown", b"")?;
        Ok(Some(reason))
    }
}
// [/control]
