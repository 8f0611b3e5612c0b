// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which multicast frames a guest receives (`feature-multicast-control`).

use crate::bridge::{Mac, is_group};
use alloc::vec::Vec;

/// Most addresses that are kept: as many as Linux's back end does.
pub const MAX_GROUPS: usize = 64;

/// The addresses that a guest asked for. As in Linux's back end, one that is asked for twice is there twice, and one that is
/// no group's has a place and no effect.
#[derive(Debug, Default)]
pub struct Groups {
    /// Of multicast frames the guest receives only those to these addresses. It may change at any time.
    pub control: bool,
    list: Vec<Mac>,
}

impl Groups {
    /// Whether a guest that has `request-multicast-control` in its directory has such control.
    #[must_use]
    pub fn requested(value: Option<&str>) -> bool {
        value.is_some_and(|v| v.parse::<u32>().is_ok_and(|n| n != 0))
    }

    /// Whether the guest receives a frame.
    #[must_use]
    pub fn allow(&self, frame: &[u8]) -> bool {
        let target = frame.first_chunk::<6>();
        !self.control
            || target.is_none_or(|t| !is_group(*t) || *t == [0xff; 6] || self.list.contains(t))
    }

    /// Forgets all addresses: the guest connects anew.
    pub fn clear(&mut self) {
        self.list.clear();
    }

    /// Adds an address; false when there are too many.
    pub(super) fn add(&mut self, address: Mac) -> bool {
        if self.list.len() >= MAX_GROUPS || self.list.try_reserve(1).is_err() {
            return false;
        }
        self.list.push(address);
        true
    }

    /// Takes an address away, if it is there.
    pub(super) fn remove(&mut self, address: Mac) {
        if let Some(n) = self.list.iter().position(|a| *a == address) {
            self.list.swap_remove(n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn what_a_front_end_writes() {
        for (value, control) in [
            (None, false),
            (Some("0"), false),
            (Some("1"), true),
            (Some("2"), true),
            (Some(""), false),
            (Some("-1"), false),
            (Some("yes"), false),
        ] {
            assert_eq!(Groups::requested(value), control, "{value:?}");
        }
    }

    proptest! {
        /// Against a model: how often each address is there.
        #[test]
        fn as_a_model(acts in prop::collection::vec((any::<bool>(), 0u8..8, any::<bool>()), 0..300)) {
            let (mut groups, mut model) = (Groups::default(), BTreeMap::<Mac, usize>::new());
            for (add, n, control) in acts {
                let address = match n {
                    0 => [0xff; 6],
                    1 => [2, 0, 0, 0, 0, 1],
                    n => [1, 0, 0x5e, 0, 0, n],
                };
                groups.control = control;
                let all: usize = model.values().sum();
                let place = model.entry(address).or_default();
                if add {
                    prop_assert_eq!(groups.add(address), all < MAX_GROUPS);
                    *place += usize::from(all < MAX_GROUPS);
                } else {
                    groups.remove(address);
                    *place = place.saturating_sub(1);
                }
                let expected = !control || n < 2 || *place > 0;
                prop_assert_eq!(groups.allow(&[&address[..], &[0; 54]].concat()), expected);
            }
            groups.control = true;
            prop_assert!(groups.allow(&[1, 0, 0x5e]), "no frame at all is not its affair");
            groups.clear();
            prop_assert!(!groups.allow(&[1, 0, 0x5e, 0, 0, 2]));
        }
    }
}
