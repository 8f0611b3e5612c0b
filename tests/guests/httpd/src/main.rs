// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that serves a page over HTTP on its first network interface. Words of its command line:
//!
//! | word | what it does |
//! |---|---|
//! | `ip=dhcp` | asks for an address by DHCP; so it is without the word |
//! | `ip=ADDRESS/BITS[,GATEWAY]` | has this address |
//! | `else=ADDRESS/BITS[,GATEWAY]` | has this one when no server answers within 5 seconds, until one does |
//! | `stall` | offers `POST /stall`, see below |
//!
//! What it serves, on port 80, to eight connections at a time:
//!
//! | path | what it is |
//! |---|---|
//! | `GET /` | a page: what the guest is, how long it has run, what it has served |
//! | `GET /bytes/N` | N bytes, byte `i` being the highest one of the 32-bit product of `i % 65521` and 2654435761; their CRC-32 is in the header `X-CRC32` |
//! | `PUT /sum`, `POST /sum` | answers with CRC-32 and length of what was sent |
//! | `POST /stall` | from now on the guest leaves its interface alone, as a kernel that hangs: nothing is taken and nothing is sent |
//!
//! It answers pings, sleeps when there is nothing to do, gives memory back when the toolstack asks (`mem-set`), and ends
//! when it asks. When its interface is taken away it says so and waits for another one.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![cfg_attr(not(target_os = "none"), forbid(unsafe_code))]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(any(target_os = "none", test))]
extern crate alloc;

#[cfg(any(target_os = "none", test))]
mod config;
#[cfg(target_os = "none")]
mod guest;
#[cfg(any(target_os = "none", test))]
mod http;

#[cfg(target_os = "none")]
el1::entry!(guest::main);
