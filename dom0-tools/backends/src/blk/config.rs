// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the front end wrote to the store, read and checked.

use super::Limits;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use guest_abi::{GrantRef, PAGE_SIZE, Port};

/// What the front end chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontConfig {
    /// It uses its grants again, so they can stay mapped.
    pub persistent: bool,
    /// Its queues, at least one.
    pub queues: Vec<QueueConfig>,
}

/// One queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// The ring's pages in their order, a power of two.
    pub ring: Vec<GrantRef>,
    /// The front end's event-channel port.
    pub port: Port,
}

impl QueueConfig {
    /// Size of the ring in bytes.
    #[must_use]
    pub fn ring_bytes(&self) -> usize {
        self.ring.len() * PAGE_SIZE
    }
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

/// Reads what the front end wrote.
pub(super) fn front_config(
    limits: &Limits,
    mut read: impl FnMut(&str) -> Option<String>,
) -> Result<FrontConfig, BadKey> {
    if let Some(p) = read("protocol").filter(|p| p != "arm-abi") {
        return Err(bad("protocol", Some(p)));
    }
    let persistent = optional(&mut read, "feature-persistent", 1)? == Some(1);
    let max_queues = u32::from(limits.queues());
    let count = optional(&mut read, "multi-queue-num-queues", max_queues)?;
    let order = optional(
        &mut read,
        "ring-page-order",
        limits.ring_page_order().into(),
    )?;
    let count = match count {
        Some(0) => return Err(bad("multi-queue-num-queues", Some("0".into()))),
        Some(n) => n,
        None => 1,
    };
    let queues = (0..count)
        .map(|n| {
            // A single queue has its keys at the top.
            let at = if count == 1 {
                String::new()
            } else {
                format!("queue-{n}/")
            };
            queue_config(&at, order, &mut read)
        })
        .collect::<Result<_, _>>()?;
    Ok(FrontConfig {
        persistent: persistent && limits.persistent_pages > 0,
        queues,
    })
}

fn queue_config(
    at: &str,
    order: Option<u32>,
    read: &mut impl FnMut(&str) -> Option<String>,
) -> Result<QueueConfig, BadKey> {
    let single = format!("{at}ring-ref");
    let pages = 1u32 << order.unwrap_or(0);
    let ring = if pages == 1 && (order.is_none() || read(&single).is_some()) {
        alloc::vec![GrantRef(required(read, &single)?)]
    } else {
        (0..pages)
            .map(|i| required(read, &format!("{single}{i}")).map(GrantRef))
            .collect::<Result<_, _>>()?
    };
    let key = format!("{at}event-channel");
    let port = required(read, &key)?;
    if port == 0 {
        return Err(bad(&key, Some("0".into())));
    }
    Ok(QueueConfig {
        ring,
        port: Port(port),
    })
}

fn required(read: &mut impl FnMut(&str) -> Option<String>, key: &str) -> Result<u32, BadKey> {
    optional(read, key, u32::MAX)?.ok_or_else(|| bad(key, None))
}

/// A decimal number of at most `max`, if the key is there.
fn optional(
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

fn bad(key: &str, value: Option<String>) -> BadKey {
    BadKey {
        key: key.into(),
        value: value.map(|v| v.chars().take(64).collect()),
    }
}
