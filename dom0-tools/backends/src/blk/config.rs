// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the front end wrote to the store, read and checked.

use super::Limits;
use crate::device::{BadKey, bad, optional, port, queue_places, required};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
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

/// Reads what the front end wrote.
pub(super) fn front_config(
    limits: &Limits,
    mut read: impl FnMut(&str) -> Option<String>,
) -> Result<FrontConfig, BadKey> {
    if let Some(p) = read("protocol").filter(|p| p != "arm-abi") {
        return Err(bad("protocol", Some(p)));
    }
    let persistent = optional(&mut read, "feature-persistent", 1)? == Some(1);
    let places = queue_places(&mut read, limits.queues())?;
    let order = optional(
        &mut read,
        "ring-page-order",
        limits.ring_page_order().into(),
    )?;
    let queues = places
        .iter()
        .map(|at| queue_config(at, order, &mut read))
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
    let port = port(read, &format!("{at}event-channel"))?;
    Ok(QueueConfig { ring, port })
}
