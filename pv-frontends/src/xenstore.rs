// SPDX-License-Identifier: MIT OR Apache-2.0
//! The client of xenstore (`io/xs_wire.h`, `docs/misc/xenstore.txt`): the tree of small values by which
//! domains find their devices.
//!
//! [`Xenstore`] is the connection, one for each domain. What is done over it comes in two forms that differ in
//! nothing else: [`Xenstore::access`] gives futures, [`Xenstore::by`] gives calls that block until a
//! deadline. Several requests may be under way; answers are matched by their number.
//!
//! ```
//! use pv_frontends::{Error, Platform, xenstore::Xenstore};
//!
//! fn greet<P: Platform>(platform: P) -> Result<(), Error> {
//!     let second = platform.now() + 1_000_000_000;
//!     let xs = Xenstore::open(platform)?;
//!     let store = xs.by(second);
//!     // Paths without a slash in front are relative to the domain's own part of the store.
//!     let name = store.read_text("name")?;
//!     store.write("data/greeting", format!("hello from {name}").as_bytes())?;
//!     // All or nothing, tried again as long as others interfere.
//!     store.transaction(|t| {
//!         let n: u32 = t.read_number("data/count").unwrap_or(0);
//!         t.write("data/count", (n + 1).to_string().as_bytes())
//!     })?;
//!     // A watch fires once when it is set, and then at each change at or below its path.
//!     let watch = store.watch("memory/target")?;
//!     assert_eq!(store.next(&watch)?, "memory/target");
//!     Ok(())
//! }
//! ```
//!
//! # Memory
//!
//! At most [`MAX_REQUESTS`] requests of callers are under way, each with up to 4 KiB of its own and 4 KiB of an
//! answer, at most [`MAX_WATCHES`] watches exist, and each keeps at most [`MAX_EVENTS`] paths.

mod client;
mod watch;

use crate::{Error, Platform, block_on};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::future::{Future, poll_fn};
use core::str::FromStr;
use guest_abi::io::xs_wire::MsgType;
use guest_abi::{DomId, Errno};

pub use client::{MAX_REQUESTS, Reply, Xenstore};
pub use watch::{MAX_EVENTS, MAX_WATCHES, Watch};

/// Most bytes of a directory's list; a longer one is nonsense.
const MAX_LIST: usize = 1 << 16;
/// How often what others interfere with is tried again.
const TRIES: u32 = 100;

/// What an entry of a node's permissions allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Nothing, `n`.
    None,
    /// Reading, `r`.
    Read,
    /// Writing, `w`.
    Write,
    /// Both, `b`.
    Both,
}

/// An entry of a node's permissions. The first one names the node's owner, who may do everything, and the
/// rights of all domains that no other entry names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Perm {
    /// Whose.
    pub dom: DomId,
    /// What it may do.
    pub rights: Rights,
}

impl Perm {
    fn parse(text: &[u8]) -> Option<Self> {
        let (letter, number) = text.split_first()?;
        let rights = match letter {
            b'n' => Rights::None,
            b'r' => Rights::Read,
            b'w' => Rights::Write,
            b'b' => Rights::Both,
            _ => return None,
        };
        let dom = DomId(decimal(number)?);
        Some(Self { dom, rights })
    }
}

impl fmt::Display for Perm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.rights {
            Rights::None => 'n',
            Rights::Read => 'r',
            Rights::Write => 'w',
            Rights::Both => 'b',
        };
        write!(f, "{letter}{}", self.dom)
    }
}

/// A number in decimal digits and nothing else.
pub(crate) fn decimal<T: FromStr>(text: &[u8]) -> Option<T> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let text = core::str::from_utf8(text).ok().filter(|_| digits)?;
    text.parse().ok()
}

/// The payload's strings, each closed by a zero.
fn strings(payload: &[u8]) -> Result<impl Iterator<Item = &[u8]>, Error> {
    let text = match payload.split_last() {
        None => None,
        Some((0, text)) => Some(text),
        Some(_) => return Err(Error::Protocol("xenstore: a string without an end")),
    };
    Ok(text.into_iter().flat_map(|t| t.split(|b| *b == 0)))
}

fn string(bytes: &[u8]) -> Result<String, Error> {
    let text = core::str::from_utf8(bytes).map_err(|_| Error::BadValue)?;
    Ok(text.into())
}

/// What can be done with the store: futures. From [`Xenstore::access`]; in a transaction, from
/// [`Access::transaction`].
pub struct Access<'x, P: Platform> {
    xs: &'x Xenstore<P>,
    tx: u32,
}

/// The same as [`Access`], blocking until a deadline. From [`Xenstore::by`]; in a transaction, from
/// [`Blocking::transaction`].
pub struct Blocking<'x, P: Platform> {
    access: Access<'x, P>,
    deadline: u64,
}

opaque!(Access<'x, P>, Blocking<'x, P>);

impl<P: Platform> Clone for Access<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<P: Platform> Copy for Access<'_, P> {}
impl<P: Platform> Clone for Blocking<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<P: Platform> Copy for Blocking<'_, P> {}

impl<P: Platform> Xenstore<P> {
    /// What can be done with the store, as futures.
    pub fn access(&self) -> Access<'_, P> {
        Access { xs: self, tx: 0 }
    }

    /// What can be done with the store, blocking until `deadline` ([`Platform::now`]).
    pub fn by(&self, deadline: u64) -> Blocking<'_, P> {
        Blocking {
            access: self.access(),
            deadline,
        }
    }
}

/// Declares operations twice: as futures, and blocking.
macro_rules! operations {
    ($(
        $(#[$doc:meta])*
        async fn $name:ident(&$self:ident $(, $arg:ident: $ty:ty)*) -> $ret:ty $body:block
    )*) => {
        impl<'x, P: Platform> Access<'x, P> {$(
            $(#[$doc])*
            pub async fn $name(&$self $(, $arg: $ty)*) -> Result<$ret, Error> $body
        )*}
        impl<'x, P: Platform> Blocking<'x, P> {$(
            $(#[$doc])*
            pub fn $name(&$self $(, $arg: $ty)*) -> Result<$ret, Error> {
                $self.run($self.access.$name($($arg),*))
            }
        )*}
    };
}

operations! {
    /// Value of a node.
    ///
    /// # Errors
    /// [`Error::Store`] with `ENOENT` when there is none, with `EACCES` when it may not be read.
    async fn read(&self, path: &str) -> Vec<u8> {
        self.request(MsgType::Read, &[path])?.await
    }

    /// Value of a node, as text.
    ///
    /// # Errors
    /// As [`Self::read`]; [`Error::BadValue`] when it is not UTF-8.
    async fn read_text(&self, path: &str) -> String {
        string(&self.read(path).await?)
    }

    /// Writes a node, which is made with its parents if it is not there.
    ///
    /// # Errors
    /// [`Error::Store`] with `EACCES` when it may not be written, with `ENOSPC` when the domain's quota is used up.
    async fn write(&self, path: &str, value: &[u8]) -> () {
        check(path)?;
        let parts: &[&[u8]] = &[path.as_bytes(), b"\0", value];
        self.xs.request(MsgType::Write, self.tx, parts)?.await.map(drop)
    }

    /// Makes a node with an empty value, and its parents, unless it is there.
    ///
    /// # Errors
    /// As [`Self::write`].
    async fn mkdir(&self, path: &str) -> () {
        self.request(MsgType::Mkdir, &[path])?.await.map(drop)
    }

    /// Removes a node and all below. Removing what is not there is no error if its parent is.
    ///
    /// # Errors
    /// As [`Self::write`].
    async fn rm(&self, path: &str) -> () {
        self.request(MsgType::Rm, &[path])?.await.map(drop)
    }

    /// Whether a node is there.
    ///
    /// # Errors
    /// [`Error::Store`], but for `ENOENT`.
    async fn exists(&self, path: &str) -> bool {
        match self.read(path).await {
            Ok(_) => Ok(true),
            Err(Error::Store(Errno::ENOENT)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Names of the nodes directly below one, however many.
    ///
    /// # Errors
    /// As [`Self::read`]; [`Error::BadValue`] for names that are not UTF-8.
    async fn list(&self, path: &str) -> Vec<String> {
        match self.request(MsgType::Directory, &[path])?.await {
            Ok(list) => strings(&list)?.map(string).collect(),
            // Too long for one message.
            Err(Error::Store(Errno::E2BIG)) => self.list_parts(path).await,
            Err(e) => Err(e),
        }
    }

    /// Permissions of a node.
    ///
    /// # Errors
    /// As [`Self::read`].
    async fn perms(&self, path: &str) -> Vec<Perm> {
        let list = self.request(MsgType::GetPerms, &[path])?.await?;
        strings(&list)?.map(|p| Perm::parse(p).ok_or(Error::BadValue)).collect()
    }

    /// Sets the permissions of a node.
    ///
    /// # Errors
    /// [`Error::Store`] with `EACCES` when the caller is not the owner, or gives the node away without the right to.
    async fn set_perms(&self, path: &str, perms: &[Perm]) -> () {
        let list: Vec<String> = perms.iter().map(|p| alloc::format!("{p}")).collect();
        let args: Vec<&str> = core::iter::once(path).chain(list.iter().map(|s| s.as_str())).collect();
        self.request(MsgType::SetPerms, &args)?.await.map(drop)
    }

    /// The path of a domain's part of the store.
    ///
    /// # Errors
    /// The general ones.
    async fn domain_path(&self, dom: DomId) -> String {
        let text = self.request(MsgType::GetDomainPath, &[&alloc::format!("{dom}")])?.await?;
        string(strings(&text)?.next().unwrap_or_default())
    }

    /// Has the store forget every watch and transaction that this domain had before this connection, those of a
    /// boot loader or of a kernel that started this one. Not in a transaction, and before the first watch.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the store does not offer it.
    async fn reset_watches(&self) -> () {
        // Old servers close the connection at a request that they do not know.
        let offered = self.read("control/platform-feature-xs_reset_watches").await;
        if offered.as_deref() != Ok(b"1") {
            return Err(Error::Unsupported);
        }
        let request = self.xs.request(MsgType::ResetWatches, 0, &[b"\0"])?;
        request.await.map(drop)
    }

    /// Watches a node and all below, from now on until the watch is dropped. It fires once at once.
    /// `@introduceDomain` and `@releaseDomain` are paths too. Transactions do not matter to watches.
    ///
    /// # Errors
    /// [`Error::Busy`] when there are [`MAX_WATCHES`]; [`Error::Store`] with `E2BIG` when the
    /// store's own quota is used up.
    async fn watch(&self, path: &str) -> Watch<'x, P> {
        check(path)?;
        Watch::new(self.xs, path).await
    }

    /// Waits until a watch fires; which path changed, in the form in which the watch was set.
    ///
    /// # Errors
    /// The connection failed.
    async fn next(&self, watch: &Watch<'_, P>) -> String {
        watch.next().await
    }

    /// Begins anew after the connection failed, with a server that offers it: both rings are emptied, requests
    /// under way end with [`Error::Gone`], watches are set again (and fire).
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the server does not offer it.
    async fn reconnect(&self) -> () {
        self.xs.begin_reconnect()?;
        poll_fn(|cx| self.xs.poll_reconnect(cx)).await
    }
}

/// What the protocol cannot carry as a path or word.
fn check(text: &str) -> Result<(), Error> {
    if text.is_empty() || text.contains('\0') {
        return Err(Error::Invalid);
    }
    Ok(())
}

impl<'x, P: Platform> Access<'x, P> {
    /// The connection.
    #[must_use]
    pub fn xenstore(&self) -> &'x Xenstore<P> {
        self.xs
    }

    /// A request of strings, each closed by a zero.
    fn request(&self, kind: MsgType, strings: &[&str]) -> Result<Reply<'x, P>, Error> {
        let mut parts: Vec<&[u8]> = Vec::with_capacity(2 * strings.len());
        for s in strings {
            check(s)?;
            parts.extend([s.as_bytes(), b"\0"]);
        }
        self.xs.request(kind, self.tx, &parts)
    }

    /// Value of a node, as a decimal number.
    ///
    /// # Errors
    /// As [`Self::read`]; [`Error::BadValue`] when it is not a number, or out of range.
    pub async fn read_number<T: FromStr>(&self, path: &str) -> Result<T, Error> {
        decimal(&self.read(path).await?).ok_or(Error::BadValue)
    }

    async fn list_parts(&self, path: &str) -> Result<Vec<String>, Error> {
        'anew: for _ in 0..TRIES {
            let mut names = Vec::new();
            let (mut at, mut generation) = (0, None);
            loop {
                let offset = alloc::format!("{at}");
                let part = self.request(MsgType::DirectoryPart, &[path, &offset])?;
                let part = part.await?;
                let mut list = strings(&part)?;
                let this = list.next().map(Vec::from);
                if generation.is_some() && this != generation {
                    continue 'anew;
                }
                generation = this;
                let before = at;
                for name in list {
                    if name.is_empty() {
                        return Ok(names);
                    }
                    at += name.len() + 1;
                    names.push(string(name)?);
                }
                if at == before || at > MAX_LIST {
                    return Err(Error::Protocol("xenstore: a list without an end"));
                }
            }
        }
        Err(Error::Store(Errno::EAGAIN))
    }

    async fn begin(&self) -> Result<Open<'x, P>, Error> {
        let id = self.xs.request(MsgType::TransactionStart, 0, &[b"\0"])?;
        let id = id.await?;
        let id = strings(&id)?.next().and_then(decimal).filter(|id| *id != 0);
        Ok(Open {
            access: Self {
                xs: self.xs,
                tx: id.ok_or(Error::Protocol("xenstore: not a transaction's number"))?,
            },
            done: false,
        })
    }

    /// Does what `work` does as one step: all of it or, when it fails, nothing, and others see nothing of it before
    /// its end. It is tried again as long as others interfere; `work` should do nothing else.
    ///
    /// # Errors
    /// `work`'s own; [`Error::Store`] with `EAGAIN` when others interfered for ever.
    pub async fn transaction<R>(
        &self,
        work: impl AsyncFn(&Self) -> Result<R, Error>,
    ) -> Result<R, Error> {
        if self.tx != 0 {
            return work(self).await;
        }
        for _ in 0..TRIES {
            let open = self.begin().await?;
            let result = work(&open.access).await?;
            match open.commit().await {
                Ok(()) => return Ok(result),
                Err(Error::Store(Errno::EAGAIN)) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Error::Store(Errno::EAGAIN))
    }
}

/// A transaction that is ended without effect if it is dropped.
struct Open<'x, P: Platform> {
    access: Access<'x, P>,
    done: bool,
}

impl<P: Platform> Open<'_, P> {
    async fn commit(mut self) -> Result<(), Error> {
        let Access { xs, tx } = self.access;
        let end = xs.request(MsgType::TransactionEnd, tx, &[b"T\0"])?;
        self.done = true;
        end.await.map(drop)
    }
}

impl<P: Platform> Drop for Open<'_, P> {
    fn drop(&mut self) {
        if !self.done {
            self.access.xs.end_transaction(self.access.tx);
        }
    }
}

impl<'x, P: Platform> Blocking<'x, P> {
    /// The same as futures.
    #[must_use]
    pub fn access(&self) -> Access<'x, P> {
        self.access
    }

    /// When calls give up.
    #[must_use]
    pub fn deadline(&self) -> u64 {
        self.deadline
    }

    /// Runs a future to its end, until the deadline.
    ///
    /// # Errors
    /// [`Error::TimedOut`]; else its own.
    pub fn run<T>(&self, future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        block_on(self.access.xs.platform(), self.deadline, future)
    }

    /// Value of a node, as a decimal number.
    ///
    /// # Errors
    /// As [`Self::read`]; [`Error::BadValue`] when it is not a number, or out of range.
    pub fn read_number<T: FromStr>(&self, path: &str) -> Result<T, Error> {
        self.run(self.access.read_number(path))
    }

    /// Does what `work` does as one step: all of it or, when it fails, nothing, and others see nothing of it before
    /// its end. It is tried again as long as others interfere; `work` should do nothing else.
    ///
    /// # Errors
    /// `work`'s own; [`Error::Store`] with `EAGAIN` when others interfered for ever.
    pub fn transaction<R>(
        &self,
        mut work: impl FnMut(&Self) -> Result<R, Error>,
    ) -> Result<R, Error> {
        if self.access.tx != 0 {
            return work(self);
        }
        for _ in 0..TRIES {
            let open = self.run(self.access.begin())?;
            let result = work(&Self {
                access: open.access,
                deadline: self.deadline,
            })?;
            match self.run(open.commit()) {
                Ok(()) => return Ok(result),
                Err(Error::Store(Errno::EAGAIN)) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Error::Store(Errno::EAGAIN))
    }

    /// The next path at which a watch fired, or `None` when it does not until the deadline.
    ///
    /// # Errors
    /// The connection failed.
    pub fn try_next(&self, watch: &Watch<'_, P>) -> Result<Option<String>, Error> {
        match self.next(watch) {
            Ok(path) => Ok(Some(path)),
            Err(Error::TimedOut) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl<P: Platform> Xenstore<P> {
    /// Makes a request of any kind: `parts` one after the other are its payload. Sends it as far as the ring has
    /// room; the rest follows by itself when events come.
    ///
    /// # Errors
    /// [`Error::Busy`] when [`MAX_REQUESTS`] are under way; [`Error::Invalid`] for more than 4096 bytes;
    /// why the connection failed.
    pub fn request(&self, kind: MsgType, tx: u32, parts: &[&[u8]]) -> Result<Reply<'_, P>, Error> {
        let id = self.submit(kind, tx, parts)?;
        Ok(Reply::new(self, id))
    }
}
