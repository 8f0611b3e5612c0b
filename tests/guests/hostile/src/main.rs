// SPDX-License-Identifier: MIT OR Apache-2.0
//! The attacker, and with `role=witness` the domain beside it that sees whether somebody else's attack can be felt. With
//! `role=look word=N` it looks at all of its memory for a word of the last owner's, and says how many there are.
//!
//! Command line of the attacker: `seed=N`, what the programs are made of; `peer=N`, the witness's number; `same=1` to
//! take the seed as it is, else it is mixed with the domain's number, so that every life of the domain is another one;
//! `from=N` and `to=N`, the numbers of the first operation and of the one after the last. Each vcpu prints
//! `hostile: dN vN at N` now and then.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
el1::entry!(guest::main);

#[cfg(target_os = "none")]
mod guest;
#[cfg(target_os = "none")]
mod witness;
