// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whose turn it is: what several parties want done is done in such an order that each of those who want something
//! gets as much as any other, measured by what their things cost (start-time fair queueing), and what one party wants
//! is done in the order in which it came.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};

/// Items of several parties that wait for their turns.
#[derive(Debug)]
pub struct Fair<K, T> {
    parties: BTreeMap<K, Party<T>>,
    /// Those that wait, by what they have had.
    turns: BTreeSet<(u64, K)>,
    /// What the party has had that was served last, before that. Nobody who waits has had less by more than what one
    /// item cost.
    floor: u64,
    len: usize,
}

#[derive(Debug)]
struct Party<T> {
    /// What it has had, in units of cost. Who comes back is not behind the others: what was not used is lost.
    had: u64,
    waiting: VecDeque<T>,
}

impl<K, T> Default for Fair<K, T> {
    fn default() -> Self {
        Self {
            parties: BTreeMap::new(),
            turns: BTreeSet::new(),
            floor: 0,
            len: 0,
        }
    }
}

impl<K: Ord + Copy, T> Fair<K, T> {
    /// Adds an item to those of `who`.
    pub fn push(&mut self, who: K, item: T) {
        let floor = self.floor;
        let party = self.parties.entry(who).or_insert(Party {
            had: floor,
            waiting: VecDeque::new(),
        });
        if party.waiting.is_empty() {
            party.had = party.had.max(floor);
            self.turns.insert((party.had, who));
        }
        party.waiting.push_back(item);
        self.len += 1;
    }

    /// The next item, and whose it is: to be charged when it is known what it cost ([`Fair::charge`]).
    pub fn pop(&mut self) -> Option<(K, T)> {
        let (had, who) = self.turns.pop_first()?;
        self.floor = self.floor.max(had);
        let party = self.parties.get_mut(&who)?;
        let item = party.waiting.pop_front()?;
        self.len -= 1;
        if !party.waiting.is_empty() {
            self.turns.insert((party.had, who));
        }
        Some((who, item))
    }

    /// `who` has caused so much cost.
    pub fn charge(&mut self, who: K, cost: u64) {
        let floor = self.floor;
        let party = self.parties.entry(who).or_insert(Party {
            had: floor,
            waiting: VecDeque::new(),
        });
        let waits = self.turns.remove(&(party.had, who));
        party.had = party.had.max(floor).saturating_add(cost);
        if waits {
            self.turns.insert((party.had, who));
        }
        // Who waits for nothing and has had no more than anybody is not remembered.
        if self.parties.len() > 2 * self.turns.len() + 32 {
            self.parties
                .retain(|_, p| !p.waiting.is_empty() || p.had > floor);
        }
    }

    /// Whether somebody else than `who` waits.
    #[must_use]
    pub fn is_wanted(&self, who: K) -> bool {
        self.turns.iter().take(2).any(|&(_, k)| k != who)
    }

    /// How many items wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// What becomes of a peer's event channel that rings without cause: it is left masked for longer and longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patience(u32);

impl Patience {
    /// So many events in a row may be for nothing: races make some.
    const FREE: u32 = 8;
    /// The longest time that a port stays masked, in milliseconds.
    const LONGEST: u64 = 16;

    /// An event was looked after, and there was something to do or not: for how long, in milliseconds, no further one is
    /// to be taken. What the peer does meanwhile is found afterwards.
    pub fn judge(&mut self, useful: bool) -> u64 {
        if useful {
            self.0 = 0;
            return 0;
        }
        self.0 = self.0.saturating_add(1);
        match self.0.checked_sub(Self::FREE + 1) {
            None => 0,
            Some(n) => 1_u64
                .checked_shl(n)
                .unwrap_or(Self::LONGEST)
                .clamp(1, Self::LONGEST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_gets_as_much_as_any_other() {
        // Three that flood with dear items, and one that asks for a cheap one as soon as it has the last.
        let mut fair: Fair<u16, ()> = Fair::default();
        let mut had = [0_u64; 4];
        for who in 1..4 {
            for _ in 0..1000 {
                fair.push(who, ());
            }
        }
        fair.push(0, ());
        for _ in 0..800 {
            let (who, ()) = fair.pop().unwrap();
            let cost = if who == 0 { 3 } else { 50 };
            fair.charge(who, cost);
            had[usize::from(who)] += cost;
            if who == 0 {
                fair.push(0, ());
            }
        }
        let all: u64 = had.iter().sum();
        assert!(had[0] >= all / 4 - 50, "{had:?}");
        assert!(had[1..].iter().all(|h| h.abs_diff(had[1]) <= 50), "{had:?}");
    }

    #[test]
    fn who_comes_now_and_then_waits_for_one_item_of_another_at_most() {
        let mut fair: Fair<u16, u32> = Fair::default();
        for n in 0..300 {
            fair.push(1 + n % 3, 1);
        }
        for _ in 0..20 {
            for _ in 0..7 {
                let (who, _) = fair.pop().unwrap();
                fair.charge(who, 40);
            }
            fair.push(9, 0);
            let turn = (0..4)
                .position(|_| {
                    let (who, _) = fair.pop().unwrap();
                    fair.charge(who, 40);
                    who == 9
                })
                .expect("it has its turn with the others");
            assert!(turn <= 3);
        }
    }

    #[test]
    fn nobody_saves_for_later() {
        let mut fair: Fair<u16, ()> = Fair::default();
        for _ in 0..1000 {
            fair.push(1, ());
            fair.pop();
            fair.charge(1, 10);
        }
        // 2 comes now: that it wanted nothing while 1 had 10,000 gives it nothing.
        let mut turns = [0_u32; 3];
        for who in [1, 2] {
            for _ in 0..100 {
                fair.push(who, ());
            }
        }
        for _ in 0..100 {
            let (who, ()) = fair.pop().unwrap();
            fair.charge(who, 10);
            turns[usize::from(who)] += 1;
        }
        assert!(turns[1].abs_diff(turns[2]) <= 2, "{turns:?}");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_each_partys_order_is_kept(
            steps in proptest::collection::vec((0_u8..3, 0_u16..5, 0_u64..100), 0..400)
        ) {
            let mut fair: Fair<u16, usize> = Fair::default();
            let mut model: BTreeMap<u16, VecDeque<usize>> = BTreeMap::new();
            for (n, (what, who, cost)) in steps.into_iter().enumerate() {
                match what {
                    0 => {
                        fair.push(who, n);
                        model.entry(who).or_default().push_back(n);
                    }
                    1 => fair.charge(who, cost),
                    _ => match fair.pop() {
                        Some((who, item)) => {
                            prop_assert_eq!(model.get_mut(&who).unwrap().pop_front(), Some(item));
                            fair.charge(who, cost);
                        }
                        None => prop_assert!(model.values().all(VecDeque::is_empty)),
                    },
                }
                prop_assert_eq!(fair.len(), model.values().map(VecDeque::len).sum::<usize>());
            }
        }
    }

    #[test]
    fn a_port_that_rings_for_nothing_is_heard_less_and_less() {
        let mut p = Patience::default();
        let waits: Vec<u64> = (0..16).map(|_| p.judge(false)).collect();
        assert_eq!(waits[..8], [0; 8]);
        assert_eq!(waits[8..], [1, 2, 4, 8, 16, 16, 16, 16]);
        for _ in 0..100 {
            assert!(p.judge(false) <= 16);
        }
        assert_eq!(p.judge(true), 0);
        assert_eq!(p.judge(false), 0);
    }
}
