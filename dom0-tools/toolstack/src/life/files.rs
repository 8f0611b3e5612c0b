// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files that are in use. Whoever uses one holds the sectors that it consists of, and none that another may write.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;

use super::Toolstack;
use crate::error::{Result, fail, told};
use crate::host::{DomId, Errno, Extents, Host};

/// What a file is used as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Read when a domain is made: the key that names it.
    Loaded(&'static str),
    /// A disk: its name in the guest, and whether that may write.
    Disk(String, bool),
}

impl Role {
    fn writes(&self) -> bool {
        matches!(self, Self::Disk(_, true))
    }
}

/// Who uses a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum User {
    /// Something that is being done: its number.
    Doing(u64),
    /// A domain has it as the disk with this number.
    Domain(DomId, u32),
}

/// A file in use.
#[derive(Clone, Debug)]
pub(super) struct Use {
    number: u64,
    user: User,
    role: Role,
    path: String,
    extents: Extents,
}

/// An opened file, whose sectors are held as long as this lives.
pub(super) struct Opened<'a, H: Host> {
    pub(super) file: H::File,
    pub(super) size: u64,
    hold: Hold<'a, H>,
}

/// Gives a use back at its end.
struct Hold<'a, H: Host> {
    tools: &'a Toolstack<H>,
    number: u64,
}

impl<H: Host> Drop for Hold<'_, H> {
    fn drop(&mut self) {
        let (number, mut uses) = (self.number, self.tools.uses.borrow_mut());
        uses.retain(|u| u.number != number || matches!(u.user, User::Domain(..)));
    }
}

impl<H: Host> Opened<'_, H> {
    /// The file, which a domain has now as the disk `vdev`, until [`Toolstack::released`].
    pub(super) fn given_to(self, dom: DomId, vdev: u32) -> H::File {
        let mut uses = self.hold.tools.uses.borrow_mut();
        if let Some(u) = uses.iter_mut().find(|u| u.number == self.hold.number) {
            u.user = User::Domain(dom, vdev);
        }
        drop(uses);
        self.file
    }
}

impl<H: Host> Toolstack<H> {
    /// A number for something that is being done with files.
    pub(super) fn doing(&self) -> u64 {
        let number = self.numbers.get().wrapping_add(1);
        self.numbers.set(number);
        number
    }

    /// Opens a file. What is written by one domain is used by no other and for nothing else: by its sectors, since a file has
    /// many names.
    pub(super) async fn open_file(
        &self,
        doing: u64,
        role: Role,
        path: &str,
    ) -> Result<Opened<'_, H>> {
        let file = match self.host.open(path).await {
            Err(Errno::ENOENT) => return fail!("{}", self.no_such_file(path).await),
            opened => opened.map_err(told)?,
        };
        let size = self.host.file_size(&file).await.map_err(told)?;
        let extents = self.host.extents(&file).map_err(told)?;
        let mut uses = self.uses.borrow_mut();
        let other = uses
            .iter()
            .find(|u| (u.role.writes() || role.writes()) && u.extents.overlaps(&extents));
        if let Some(other) = other {
            let alias = match other.path == path {
                true => String::new(),
                false => format!(" ({})", other.path),
            };
            return match (&role, other.user, &other.role) {
                (Role::Disk(..), User::Domain(dom, _), Role::Disk(name, _)) => fail!(
                    "domain {dom} has it as {name}{alias}; a disk can be shared only if all have access r"
                ),
                (Role::Loaded(_), User::Domain(dom, _), Role::Disk(name, _)) => fail!(
                    "domain {dom} has it as {name}{alias} and can write it; give that disk access r, or copy the file"
                ),
                (Role::Disk(..), User::Doing(n), Role::Disk(..)) if n == doing => {
                    fail!("it is given twice{alias}; both must have access r")
                }
                (_, User::Doing(n), Role::Loaded(key)) if n == doing => {
                    fail!("it is the {key}, too{alias}; give the disk access r, or copy the file")
                }
                _ => fail!("it is being given to another domain{alias}"),
            };
        }
        let number = self.doing();
        uses.push(Use {
            number,
            user: User::Doing(doing),
            role,
            path: path.to_owned(),
            extents,
        });
        drop(uses);
        let hold = Hold {
            tools: self,
            number,
        };
        Ok(Opened { file, size, hold })
    }

    /// A domain's disk is served no more.
    pub(super) fn released(&self, dom: DomId, vdev: u32) {
        let mut uses = self.uses.borrow_mut();
        uses.retain(|u| u.user != User::Domain(dom, vdev));
    }

    /// The numbers of the disks whose files a domain holds.
    pub(super) fn held_by(&self, dom: DomId) -> alloc::vec::Vec<u32> {
        let uses = self.uses.borrow();
        let held = uses.iter().filter_map(|u| match u.user {
            User::Domain(d, vdev) if d == dom => Some(vdev),
            _ => None,
        });
        held.collect()
    }
}
