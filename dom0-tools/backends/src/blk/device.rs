// SPDX-License-Identifier: MIT OR Apache-2.0
//! The device's life in the store: what is offered, what the front end chose, the states.

use super::config::{BadKey, FrontConfig, front_config};
use super::{Disk, Limits};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use guest_abi::io::blkif::{SECTOR_SIZE, VDISK_CDROM, VDISK_READONLY, VDISK_REMOVABLE};
use guest_abi::io::xenbus::State;

/// Keys and values to write in the back end's directory, in this order (or in one transaction).
pub type Writes = Vec<(&'static str, String)>;

/// What is to be done next for a device.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing until something changes.
    Wait,
    /// Write this, then ask again.
    Write(Writes),
    /// Map the rings, bind the event channels, attach the queues; then call [`Device::connected`] or
    /// [`Device::connect_failed`].
    Connect(FrontConfig),
    /// What the front end wrote is wrong: log it and write this, then ask again.
    Refuse(BadKey, Writes),
    /// Stop the queues; when no request is in flight, unmap all and close the event channels; then
    /// call [`Device::disconnected`].
    Disconnect,
    /// The device has ended; its back end can be forgotten.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Down,
    Connecting,
    Up,
    Disconnecting,
}

/// The back end of one virtual disk (`xenbus`, device type `vbd`).
#[derive(Debug)]
pub struct Device {
    disk: Disk,
    limits: Limits,
    state: State,
    link: Link,
}

impl Device {
    /// A device of which nothing was written yet.
    #[must_use]
    pub const fn new(disk: Disk, limits: Limits) -> Self {
        Self {
            disk,
            limits,
            state: State::Initialising,
            link: Link::Down,
        }
    }

    /// The state that was written last.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Decides what is next from how things are: to be called at the start, when the front end's
    /// `state` or the back end's `online` changed, after each step but [`Step::Wait`], and after
    /// [`Device::connected`], [`Device::connect_failed`] and [`Device::disconnected`].
    ///
    /// `front` is the front end's state, [`State::Unknown`] when its node is missing: its domain has
    /// ended. `online` is false when the device is to go away (`online` = 0). `read` gives the value
    /// of a key in the front end's directory. To detach without the front end's consent, pass
    /// [`State::Unknown`].
    pub fn step(
        &mut self,
        front: State,
        online: bool,
        read: impl FnMut(&str) -> Option<String>,
    ) -> Step {
        match self.link {
            Link::Connecting | Link::Disconnecting => Step::Wait,
            Link::Up => self.step_up(front, online),
            Link::Down => self.step_down(front, online, read),
        }
    }

    fn step_up(&mut self, front: State, online: bool) -> Step {
        match front {
            // Back at the start: it began anew without saying good-bye.
            State::Unknown | State::Initialising | State::Closed => {
                self.link = Link::Disconnecting;
                Step::Disconnect
            }
            State::Closing => self.enter(State::Closing),
            _ if !online => self.enter(State::Closing),
            _ => Step::Wait,
        }
    }

    fn step_down(
        &mut self,
        front: State,
        online: bool,
        read: impl FnMut(&str) -> Option<String>,
    ) -> Step {
        let fresh = self.state == State::Initialising;
        match front {
            State::Unknown if fresh && online => Step::Wait,
            State::Unknown | State::Closed => match self.enter(State::Closed) {
                Step::Wait if !online || front == State::Unknown => Step::Gone,
                step => step,
            },
            State::Closing => self.enter(State::Closing),
            _ if !online && self.state == State::InitWait => self.enter(State::Closing),
            _ if !online && fresh => self.enter(State::Closed),
            _ if !online => Step::Wait,
            State::Initialising => self.offer(),
            State::Initialised | State::Connected if fresh => self.offer(),
            State::Initialised | State::Connected if self.state == State::InitWait => {
                match front_config(&self.limits, read) {
                    Ok(config) => {
                        self.link = Link::Connecting;
                        Step::Connect(config)
                    }
                    Err(e) => {
                        self.state = State::Closing;
                        Step::Refuse(e, alloc::vec![state_key(self.state)])
                    }
                }
            }
            _ => Step::Wait,
        }
    }

    /// The queues run. Returns what is to be written.
    #[must_use]
    pub fn connected(&mut self) -> Writes {
        self.link = Link::Up;
        self.state = State::Connected;
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
            state_key(self.state),
        ]
    }

    /// The rings or event channels that the front end named do not serve; nothing of them is held.
    /// Returns what is to be written.
    #[must_use]
    pub fn connect_failed(&mut self) -> Writes {
        self.link = Link::Down;
        self.state = State::Closing;
        alloc::vec![state_key(self.state)]
    }

    /// A ring broke while connected ([`Queue::take_requests`](super::Queue::take_requests) failed):
    /// what is to be written so that the front end closes.
    #[must_use]
    pub fn broken(&mut self) -> Writes {
        self.state = State::Closing;
        alloc::vec![state_key(self.state)]
    }

    /// Nothing of the front end's is mapped or bound any more.
    pub fn disconnected(&mut self) {
        self.link = Link::Down;
    }

    fn enter(&mut self, state: State) -> Step {
        if self.state == state {
            return Step::Wait;
        }
        self.state = state;
        Step::Write(alloc::vec![state_key(state)])
    }

    /// Writes what is offered and waits for the front end, if that is not so already.
    fn offer(&mut self) -> Step {
        if self.state == State::InitWait {
            return Step::Wait;
        }
        self.state = State::InitWait;
        let (d, l) = (&self.disk, &self.limits);
        let bit = |b: bool| u8::from(b).to_string();
        let mut w = alloc::vec![
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
        w.push(state_key(self.state));
        Step::Write(w)
    }
}

fn state_key(state: State) -> (&'static str, String) {
    ("state", state.number().to_string())
}
