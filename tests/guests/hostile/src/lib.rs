// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs that attack a hypervisor: what a vcpu does one after the other, as a pure function of a seed. The guest of
//! this name executes them, and the simulated machine (`tests/sim`) can.
//!
//! An operation depends on its seed, its vcpu and its number alone ([`operation`]), so that any range of a program can
//! be played again without what was before it.
#![no_std]
#![forbid(unsafe_code)]

mod calls;
mod code;
mod rng;
mod scene;

pub use calls::{Blob, Call};
pub use code::{Level, Run};
pub use rng::Rng;
pub use scene::{PAGE, Scene, evil, layout};

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one exists at a time")]
pub enum Op {
    /// A hypercall.
    Call(Call),
    /// A load of `size` bytes from a device's address, or where none is.
    Load {
        /// The address.
        at: u64,
        /// 1, 2, 4 or 8.
        size: u8,
    },
    /// A store of `size` bytes.
    Store {
        /// The address.
        at: u64,
        /// 1, 2, 4 or 8.
        size: u8,
        /// What is stored.
        value: u64,
    },
    /// A double word of the attacker's own memory, or of what it shares, is overwritten.
    Scribble {
        /// Its guest physical address, a multiple of 8.
        at: u64,
        /// What is written.
        value: u64,
    },
    /// Generated instructions.
    Run(Run),
    /// A call by Arm's convention.
    Smccc {
        /// By `smc` rather than by `hvc`.
        smc: bool,
        /// x0 to x3.
        x: [u64; 4],
    },
    /// Another tree of stage-1 tables for the upper half of the address space.
    Root(u8),
    /// Sleeps until something happens, at most for about so many microseconds.
    Sleep(u16),
}

impl Op {
    /// How many operations it counts as.
    #[must_use]
    pub fn count(&self) -> u64 {
        match self {
            Self::Call(call) => call.times.into(),
            _ => 1,
        }
    }
}

/// The operation with this number of a vcpu's program.
#[must_use]
pub fn operation(seed: u64, vcpu: u32, number: u64, scene: &Scene) -> Op {
    let mut rng = Rng::of(seed, u64::from(vcpu), number);
    let r = &mut rng;
    // The end of the domain, now and then, by whichever way.
    if r.one_in(100_000) {
        return scene.end(r);
    }
    match r.below(100) {
        0..46 => Op::Call(calls::any(r, scene)),
        46..62 => scene.scribble(r),
        62..76 => scene.device(r),
        76..90 => Op::Run(code::any(r, scene)),
        90..96 => scene.smccc(r),
        96 => Op::Root(r.below(u64::from(layout::ROOTS)) as u8),
        97 => Op::Sleep(r.below(300) as u16),
        _ => Op::Call(calls::storm(r, scene)),
    }
}

#[cfg(test)]
mod tests;
