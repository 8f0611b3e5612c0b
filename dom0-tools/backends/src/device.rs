// SPDX-License-Identifier: MIT OR Apache-2.0
//! The life of a device's back end in the store, whatever the device: what is offered, what the
//! front end chose, the states.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use guest_abi::Port;
use guest_abi::io::xenbus::State;

/// Keys and values to write in the back end's directory, in this order (or in one transaction).
pub type Writes = Vec<(&'static str, String)>;

/// What a kind of device says and understands.
pub trait Kind {
    /// What the front end chose.
    type Front;
    /// What is offered, without the state.
    fn offer(&self) -> Writes;
    /// What is to be known once the queues run, without the state.
    fn details(&self) -> Writes;
    /// Reads what the front end wrote; `read` gives the value of a key in its directory.
    ///
    /// # Errors
    /// A key that is missing or makes no sense.
    fn front(&self, read: impl FnMut(&str) -> Option<String>) -> Result<Self::Front, BadKey>;
}

/// What is to be done next for a device.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<F> {
    /// Nothing until something changes.
    Wait,
    /// Write this, then ask again.
    Write(Writes),
    /// Map the rings, bind the event channels, attach the queues; then call [`Device::connected`] or
    /// [`Device::connect_failed`].
    Connect(F),
    /// What the front end wrote is wrong: log it and write this, then ask again.
    Refuse(BadKey, Writes),
    /// Stop the queues; when nothing is under way, unmap all and close the event channels; then
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
    /// A ring broke: it is to be disconnected, whatever the front end says.
    Broken,
    Disconnecting,
}

/// The back end of one device.
#[derive(Debug)]
pub struct Device<K> {
    kind: K,
    state: State,
    link: Link,
}

impl<K: Kind> Device<K> {
    /// A device of which nothing was written yet.
    #[must_use]
    pub const fn of(kind: K) -> Self {
        Self {
            kind,
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
    /// [`Device::connected`], [`Device::connect_failed`], [`Device::broken`] and [`Device::disconnected`].
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
    ) -> Step<K::Front> {
        match self.link {
            Link::Connecting | Link::Disconnecting => Step::Wait,
            Link::Up => self.step_up(front, online),
            Link::Broken => {
                self.link = Link::Disconnecting;
                Step::Disconnect
            }
            Link::Down => self.step_down(front, online, read),
        }
    }

    fn step_up(&mut self, front: State, online: bool) -> Step<K::Front> {
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
    ) -> Step<K::Front> {
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
                match self.kind.front(read) {
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
        let mut writes = self.kind.details();
        writes.push(state_key(self.state));
        writes
    }

    /// The rings or event channels that the front end named do not serve; nothing of them is held.
    /// Returns what is to be written.
    #[must_use]
    pub fn connect_failed(&mut self) -> Writes {
        self.link = Link::Down;
        self.state = State::Closing;
        alloc::vec![state_key(self.state)]
    }

    /// A ring broke while connected: what is to be written so that the front end closes. [`Device::step`] has all
    /// rings disconnected next, without waiting for that.
    #[must_use]
    pub fn broken(&mut self) -> Writes {
        if self.link == Link::Up {
            self.link = Link::Broken;
        }
        self.state = State::Closing;
        alloc::vec![state_key(self.state)]
    }

    /// Nothing of the front end's is mapped or bound any more.
    pub fn disconnected(&mut self) {
        self.link = Link::Down;
    }

    fn enter(&mut self, state: State) -> Step<K::Front> {
        if self.state == state {
            return Step::Wait;
        }
        self.state = state;
        Step::Write(alloc::vec![state_key(state)])
    }

    /// Writes what is offered and waits for the front end, if that is not so already.
    fn offer(&mut self) -> Step<K::Front> {
        if self.state == State::InitWait {
            return Step::Wait;
        }
        self.state = State::InitWait;
        let mut writes = self.kind.offer();
        writes.push(state_key(self.state));
        Step::Write(writes)
    }
}

fn state_key(state: State) -> (&'static str, String) {
    ("state", state.number().to_string())
}

/// A key of the front end that is missing or makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadKey {
    /// Its name in the front end's directory.
    pub key: String,
    /// What it holds, at most 64 characters of it; `None` when it is missing.
    pub value: Option<String>,
}

impl fmt::Display for BadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(v) => write!(f, "the front end wrote {v:?} to {}", self.key),
            None => write!(f, "the front end did not write {}", self.key),
        }
    }
}

impl core::error::Error for BadKey {}

/// A decimal number.
pub(crate) fn required(
    read: &mut impl FnMut(&str) -> Option<String>,
    key: &str,
) -> Result<u32, BadKey> {
    optional(read, key, u32::MAX)?.ok_or_else(|| bad(key, None))
}

/// A decimal number of at most `max`, if the key is there.
pub(crate) fn optional(
    read: &mut impl FnMut(&str) -> Option<String>,
    key: &str,
    max: u32,
) -> Result<Option<u32>, BadKey> {
    let Some(text) = read(key) else {
        return Ok(None);
    };
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse().ok().filter(|n| digits && *n <= max) {
        Some(n) => Ok(Some(n)),
        None => Err(bad(key, Some(text))),
    }
}

pub(crate) fn bad(key: &str, value: Option<String>) -> BadKey {
    BadKey {
        key: key.into(),
        value: value.map(|v| v.chars().take(64).collect()),
    }
}

/// An event-channel port.
pub(crate) fn port(
    read: &mut impl FnMut(&str) -> Option<String>,
    key: &str,
) -> Result<Port, BadKey> {
    match required(read, key)? {
        0 => Err(bad(key, Some("0".into()))),
        port => Ok(Port(port)),
    }
}

/// The number of queues, and where in the front end's directory the keys of each are: those of a
/// single one at the top.
pub(crate) fn queue_places(
    read: &mut impl FnMut(&str) -> Option<String>,
    most: u16,
) -> Result<Vec<String>, BadKey> {
    const KEY: &str = "multi-queue-num-queues";
    match optional(read, KEY, most.into())? {
        Some(0) => Err(bad(KEY, Some("0".into()))),
        None | Some(1) => Ok(alloc::vec![String::new()]),
        Some(n) => Ok((0..n).map(|n| format!("queue-{n}/")).collect()),
    }
}
