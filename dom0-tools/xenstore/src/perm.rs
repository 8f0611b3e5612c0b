// SPDX-License-Identifier: MIT OR Apache-2.0
//! Permissions: who may do what with a node.

use core::fmt;

use guest_abi::DomId;

/// What one entry of a node's permissions allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `n`
    None,
    /// `r`
    Read,
    /// `w`
    Write,
    /// `b`
    Both,
}

/// One entry of a node's permissions. The first entry names the **owner**, who may do everything, and
/// what all domains may do that no entry names. Each further entry names a domain and what it may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Perm {
    /// The domain.
    pub domid: DomId,
    /// What it (or, in the first entry, everybody) may do.
    pub access: Access,
}

impl Perm {
    /// `n<domid>`: no access; as the first entry, a node private to its owner.
    #[must_use]
    pub const fn none(domid: DomId) -> Self {
        Self {
            domid,
            access: Access::None,
        }
    }

    /// `r<domid>`: read.
    #[must_use]
    pub const fn read(domid: DomId) -> Self {
        Self {
            domid,
            access: Access::Read,
        }
    }

    /// `w<domid>`: write.
    #[must_use]
    pub const fn write(domid: DomId) -> Self {
        Self {
            domid,
            access: Access::Write,
        }
    }

    /// `b<domid>`: read and write.
    #[must_use]
    pub const fn both(domid: DomId) -> Self {
        Self {
            domid,
            access: Access::Both,
        }
    }

    /// From the protocol's form, a letter and a decimal domain number, such as `r1`.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (letter, number) = text.split_first()?;
        let access = match letter {
            b'n' => Access::None,
            b'r' => Access::Read,
            b'w' => Access::Write,
            b'b' => Access::Both,
            _ => return None,
        };
        let domid = parse_domid(number)?;
        Some(Self { domid, access })
    }
}

impl fmt::Display for Perm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.access {
            Access::None => 'n',
            Access::Read => 'r',
            Access::Write => 'w',
            Access::Both => 'b',
        };
        write!(f, "{letter}{}", self.domid)
    }
}

/// A real domain's number in decimal digits.
pub(crate) fn parse_domid(text: &[u8]) -> Option<DomId> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n: u16 = core::str::from_utf8(text).ok()?.parse().ok()?;
    (n < DomId::FIRST_RESERVED.0).then_some(DomId(n))
}

/// A set of rights to one node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rights(u8);

impl Rights {
    pub(crate) const READ: Self = Self(1);
    pub(crate) const WRITE: Self = Self(2);
    /// Everything that the owner may: read, write, change permissions.
    pub(crate) const OWN: Self = Self(7);

    pub(crate) const fn has(self, need: Self) -> bool {
        self.0 & need.0 == need.0
    }

    pub(crate) const fn has_any(self, of: Self) -> bool {
        self.0 & of.0 != 0
    }
}

/// On whose behalf something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) domid: DomId,
    /// A domain whose rights it has as well (`SET_TARGET`).
    pub(crate) target: Option<DomId>,
}

impl Who {
    pub(crate) const fn new(domid: DomId) -> Self {
        Self {
            domid,
            target: None,
        }
    }

    /// Domain 0 may do everything and has no quota.
    pub(crate) fn privileged(self) -> bool {
        self.domid == DomId(0)
    }

    fn is(self, domid: DomId) -> bool {
        self.domid == domid || self.target == Some(domid)
    }

    /// What it may do with a node of these permissions.
    pub(crate) fn rights(self, perms: &[Perm]) -> Rights {
        let Some((owner, others)) = perms.split_first() else {
            return Rights(0);
        };
        if self.privileged() || self.is(owner.domid) {
            return Rights::OWN;
        }
        let entry = others.iter().find(|p| self.is(p.domid)).unwrap_or(owner);
        match entry.access {
            Access::None => Rights(0),
            Access::Read => Rights::READ,
            Access::Write => Rights::WRITE,
            Access::Both => Rights(3),
        }
    }

    pub(crate) fn may_read(self, perms: &[Perm]) -> bool {
        self.rights(perms).has(Rights::READ)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text() {
        for t in ["n0", "r1", "w22", "b32751"] {
            assert_eq!(Perm::parse(t.as_bytes()).unwrap().to_string(), t);
        }
        for t in [
            "",
            "r",
            "x1",
            "r-1",
            "r+1",
            "r 1",
            "r1x",
            "r32752",
            "r65536",
            "r99999999999",
        ] {
            assert_eq!(Perm::parse(t.as_bytes()), None, "{t}");
        }
    }

    /// Every access letter, for the owner, a named domain, an unnamed one, domain 0 and one whose
    /// target is the owner.
    #[test]
    fn matrix() {
        let all = [Access::None, Access::Read, Access::Write, Access::Both];
        let bits = |a: Access| match a {
            Access::None => 0,
            Access::Read => 1,
            Access::Write => 2,
            Access::Both => 3,
        };
        for default in all {
            for named in all {
                let perms = [
                    Perm {
                        domid: DomId(1),
                        access: default,
                    },
                    Perm {
                        domid: DomId(2),
                        access: named,
                    },
                ];
                let rights = |who: Who| who.rights(&perms).0;
                assert_eq!(rights(Who::new(DomId(0))), 7);
                assert_eq!(rights(Who::new(DomId(1))), 7);
                assert_eq!(rights(Who::new(DomId(2))), bits(named));
                assert_eq!(rights(Who::new(DomId(3))), bits(default));
                assert_eq!(
                    rights(Who {
                        domid: DomId(3),
                        target: Some(DomId(1))
                    }),
                    7
                );
                assert_eq!(
                    rights(Who {
                        domid: DomId(3),
                        target: Some(DomId(2))
                    }),
                    bits(named)
                );
            }
        }
        assert_eq!(Who::new(DomId(0)).rights(&[]).0, 0);
    }
}
