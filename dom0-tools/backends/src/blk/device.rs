// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a disk's back end writes to the store.

use super::config::{FrontConfig, front_config};
use super::{Disk, Limits};
use crate::device::{self, BadKey, Kind, Writes};
use alloc::string::{String, ToString};
use guest_abi::io::blkif::{SECTOR_SIZE, VDISK_CDROM, VDISK_READONLY, VDISK_REMOVABLE};

/// The back end of one virtual disk (`xenbus`, device type `vbd`).
pub type Device = device::Device<Vbd>;

/// What is to be done next for a disk's device.
pub type Step = device::Step<FrontConfig>;

/// The kind of device that a virtual disk is.
#[derive(Debug)]
pub struct Vbd {
    disk: Disk,
    limits: Limits,
}

impl Device {
    /// A device of which nothing was written yet.
    #[must_use]
    pub const fn new(disk: Disk, limits: Limits) -> Self {
        Self::of(Vbd { disk, limits })
    }
}

impl Kind for Vbd {
    type Front = FrontConfig;

    fn offer(&self) -> Writes {
        let (d, l) = (&self.disk, &self.limits);
        let bit = |b: bool| u8::from(b).to_string();
        let mut w = alloc::vec![
            ("feature-barrier", bit(d.flush && !d.read_only)),
            ("feature-flush-cache", bit(d.flush)),
            ("feature-discard", bit(d.discard.is_some())),
            ("feature-persistent", bit(l.persistent_pages > 0)),
            (
                "feature-max-indirect-segments",
                l.indirect_segments().to_string()
            ),
            ("max-ring-page-order", l.ring_page_order().to_string()),
            ("multi-queue-max-queues", l.queues().to_string()),
        ];
        if let Some(c) = &d.discard {
            w.push(("discard-granularity", c.granularity.to_string()));
            w.push(("discard-alignment", c.alignment.to_string()));
            w.push(("discard-secure", bit(c.secure)));
        }
        w
    }

    fn details(&self) -> Writes {
        let d = &self.disk;
        let mut info = 0;
        if d.cdrom {
            info |= VDISK_CDROM | VDISK_REMOVABLE;
        }
        if d.read_only {
            info |= VDISK_READONLY;
        }
        alloc::vec![
            ("sectors", d.sectors.to_string()),
            ("info", info.to_string()),
            ("sector-size", SECTOR_SIZE.to_string()),
            ("physical-sector-size", d.physical_sector_size.to_string()),
        ]
    }

    fn front(&self, read: impl FnMut(&str) -> Option<String>) -> Result<FrontConfig, BadKey> {
        front_config(&self.limits, read)
    }
}
