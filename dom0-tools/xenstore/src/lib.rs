// SPDX-License-Identifier: MIT OR Apache-2.0
//! xenstore: the tree of small values by which domains of one machine find and follow one another,
//! as a state machine that does no I/O of its own.
//!
//! [`Store`] holds everything. It has two kinds of users:
//!
//! * **Guests** speak the wire protocol (`io/xs_wire.h`, `docs/misc/xenstore.txt`), bytes in and bytes
//!   out, over the ring page that each shares with the store: [`Store::introduce`] opens the
//!   connection and [`Store::pump`] moves bytes whenever the domain's event channel fires or
//!   [`Store::next_ready`] names it. What a guest sends is hostile: it can neither make the store
//!   panic nor make it use more than that domain's [`Quota`].
//! * **The control domain** calls [`Store::read`], [`Store::write`], [`Store::transact`] and so on with
//!   domain 0's rights, and gets watch events by way of connections opened with [`Store::open`].
//!
//! ```
//! use xenstore::{Perm, Store};
//! use guest_abi::DomId;
//!
//! let mut store = Store::new();
//! let me = store.open();
//! store.write("/local/domain/1/device/vbd/51712/state", b"1")?;
//! store.set_perms("/local/domain/1/device/vbd/51712/state", &[Perm::none(DomId(1)), Perm::read(DomId(0))])?;
//! store.watch(me, "/local/domain/1/device/vbd", "disk")?;
//! let event = store.poll_event(me).expect("a watch fires once when it is set");
//! assert_eq!((&*event.path, &*event.token), ("/local/domain/1/device/vbd", "disk"));
//! # Ok::<(), guest_abi::Errno>(())
//! ```
//!
//! How it is built: nodes are immutable and shared (`Arc`), each with a generation that no other node
//! ever had. An operation works on an overlay of the nodes that it touches; committing the overlay
//! checks that every touched node is still the one that was seen, else the transaction ends with
//! `EAGAIN`. An operation outside a transaction is an overlay that is committed at once, so a request
//! has its whole effect or none.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

extern crate alloc;

mod conn;
mod path;
mod perm;
mod quota;
mod request;
mod ring;
mod store;
mod tree;
mod watch;

pub use conn::{ConnId, Event};
pub use perm::{Access, Perm};
pub use quota::Quota;
pub use ring::{PumpResult, unnumbered};
pub use store::{DomainStats, Effect, Stats, Store, Transaction};
pub use tree::{Entry, Walk};
