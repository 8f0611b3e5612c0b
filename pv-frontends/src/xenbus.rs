// SPDX-License-Identifier: MIT OR Apache-2.0
//! The life of a device's front end (`io/xenbus.h`): where it is in the store, its state and the other end's.
//!
//! Both ends write a `state` in their folder and watch the other's. A front end that begins goes from
//! [`State::Initialising`] by way of [`State::Initialised`] to [`State::Connected`]; one that ends, by way of
//! [`State::Closing`] to [`State::Closed`].

use crate::xenstore::{Access, Watch};
use crate::{Error, Platform};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::str::FromStr;
use core::task::{Context, Poll};
use guest_abi::io::xenbus::State;
use guest_abi::io::xs_wire::MsgType;
use guest_abi::{DomId, Errno};

use crate::xenstore::Reply;

/// Most bytes of a path of the other end's; longer ones are nonsense.
const MAX_PATH: usize = 1024;

/// The devices of a kind (`vbd`, `vif`), by their names in the store, which are decimal numbers. Others are left out.
///
/// # Errors
/// xenstore's; a kind of which there is none is an empty list.
pub async fn devices<P: Platform>(store: &Access<'_, P>, kind: &str) -> Result<Vec<u32>, Error> {
    let names = match store.list(&format!("device/{kind}")).await {
        Err(Error::Store(Errno::ENOENT)) => return Ok(Vec::new()),
        names => names?,
    };
    let number = |n: &String| crate::xenstore::decimal(n.as_bytes());
    Ok(names.iter().filter_map(number).collect())
}

/// The front end of a device: its folder, the other end's, and what is known of the other end's state.
pub struct Frontend<'x, P: Platform> {
    store: Access<'x, P>,
    node: String,
    backend: String,
    backend_dom: DomId,
    watch: Watch<'x, P>,
    reading: Option<Reply<'x, P>>,
    peer: State,
}

opaque!(Frontend<'x, P>);

impl<'x, P: Platform> Frontend<'x, P> {
    /// Finds a device's other end and follows its state from now on.
    ///
    /// # Errors
    /// [`Error::NoDevice`] when it is not in the store; [`Error::BadValue`] when its other end is nonsense.
    pub async fn open(store: Access<'x, P>, kind: &str, id: u32) -> Result<Self, Error> {
        let node = format!("device/{kind}/{id}");
        let (backend, backend_dom, watch) = Self::find(store, &node).await?;
        Ok(Self {
            store,
            node,
            backend,
            backend_dom,
            watch,
            reading: None,
            peer: State::Unknown,
        })
    }

    /// The other end's folder, its domain and a watch on its state.
    async fn find(
        store: Access<'x, P>,
        node: &str,
    ) -> Result<(String, DomId, Watch<'x, P>), Error> {
        let none = |e| match e {
            Error::Store(Errno::ENOENT) => Error::NoDevice,
            e => e,
        };
        let backend = store
            .read_text(&format!("{node}/backend"))
            .await
            .map_err(none)?;
        let dom: u16 = store
            .read_number(&format!("{node}/backend-id"))
            .await
            .map_err(none)?;
        if backend.len() > MAX_PATH
            || !backend.starts_with('/')
            || DomId(dom) >= DomId::FIRST_RESERVED
        {
            return Err(Error::BadValue);
        }
        let watch = store.watch(&format!("{backend}/state")).await?;
        Ok((backend, DomId(dom), watch))
    }

    /// Finds the other end again after the domain was restored or moved: its folder is another one, and may be
    /// another domain's. The front end's folder is as the toolstack made it for the new domain.
    ///
    /// # Errors
    /// As [`Frontend::open`].
    pub async fn resume(&mut self) -> Result<(), Error> {
        let found = Self::find(self.store, &self.node).await?;
        (self.backend, self.backend_dom, self.watch) = found;
        self.reading = None;
        self.peer = State::Unknown;
        Ok(())
    }

    /// The store.
    pub fn store(&self) -> Access<'x, P> {
        self.store
    }

    /// The front end's folder, relative to the domain's part of the store.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The back end's folder.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// The back end's domain, which grants and event channels are for.
    pub fn backend_dom(&self) -> DomId {
        self.backend_dom
    }

    /// The other end's state as it was seen last; [`State::Unknown`] when its folder is gone.
    pub fn peer(&self) -> State {
        self.peer
    }

    /// Follows the other end: the state it changed to, when it did. Does not wait.
    pub fn poll_peer(&mut self, cx: &mut Context<'_>) -> Poll<Result<State, Error>> {
        loop {
            if let Some(reply) = &mut self.reading {
                let Poll::Ready(answer) = Pin::new(reply).poll(cx) else {
                    return Poll::Pending;
                };
                self.reading = None;
                self.peer = state_of(answer)?;
                return Poll::Ready(Ok(self.peer));
            }
            match self.watch.poll_any(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => return Poll::Pending,
            }
            let path = format!("{}/state\0", self.backend);
            let xs = self.store.xenstore();
            self.reading = Some(xs.request(MsgType::Read, 0, &[path.as_bytes()])?);
        }
    }

    /// Whether the other end of a device that was connected is not any more.
    pub(crate) fn is_gone(front: &RefCell<Self>, cx: &mut Context<'_>) -> bool {
        let Ok(mut front) = front.try_borrow_mut() else {
            // Whoever looks at it has woken the caller, and looks to its end.
            return false;
        };
        while let Poll::Ready(Ok(_)) = front.poll_peer(cx) {}
        front.peer != State::Connected
    }

    /// Waits until the other end is in a state that `wanted` accepts, which may be the one it is in.
    ///
    /// # Errors
    /// The connection with xenstore failed.
    pub async fn wait_for(
        &mut self,
        mut wanted: impl FnMut(State) -> bool,
    ) -> Result<State, Error> {
        if self.peer != State::Unknown && wanted(self.peer) {
            return Ok(self.peer);
        }
        // The watch's first event tells of the state when it was set.
        let path = format!("{}/state", self.backend);
        self.peer = state_of(self.store.read(&path).await)?;
        while !wanted(self.peer) {
            poll_fn(|cx| self.poll_peer(cx)).await?;
        }
        Ok(self.peer)
    }

    /// Writes keys and values into the front end's folder and then its state, as one step. Nothing is written when
    /// the device was taken away meanwhile.
    ///
    /// # Errors
    /// [`Error::NoDevice`] when the folder is gone; xenstore's.
    pub async fn switch(&self, state: State, keys: &[(String, String)]) -> Result<(), Error> {
        let node = &self.node;
        let number = format!("{}", state.number());
        self.store
            .transaction(async |t| {
                if !t.exists(&format!("{node}/backend")).await? {
                    return Err(Error::NoDevice);
                }
                for (key, value) in keys {
                    t.write(&format!("{node}/{key}"), value.as_bytes()).await?;
                }
                t.write(&format!("{node}/state"), number.as_bytes()).await
            })
            .await
    }

    /// Removes the keys and folders that `which` tells by their names from the front end's folder: what a kernel before
    /// this one left, and the other end would take for this one's. To be called between [`Frontend::restart`] and
    /// [`Frontend::switch`].
    ///
    /// # Errors
    /// xenstore's.
    pub async fn forget(&self, which: impl Fn(&str) -> bool) -> Result<(), Error> {
        let there = match self.store.list(&self.node).await {
            Err(Error::Store(Errno::ENOENT)) => return Err(Error::NoDevice),
            there => there?,
        };
        for key in there.iter().filter(|k| which(k)) {
            self.store.rm(&format!("{}/{key}", self.node)).await?;
        }
        Ok(())
    }

    /// Has the other end forget an earlier connection, whoever made it: closes if need be, and begins anew.
    /// Returns when the other end waits for the front end's details.
    ///
    /// # Errors
    /// [`Error::NoDevice`] when the device is gone; xenstore's. It waits as long as the other end does not answer:
    /// give it a deadline.
    pub async fn restart(&mut self) -> Result<(), Error> {
        let own = self.own_state().await?;
        let path = format!("{}/state", self.backend);
        self.peer = state_of(self.store.read(&path).await)?;
        let fresh = matches!(own, State::Unknown | State::Initialising);
        if !fresh || matches!(self.peer, State::Connected | State::Closing) {
            if !matches!(own, State::Closed) {
                self.switch(State::Closing, &[]).await?;
                self.wait_for(|s| !matches!(s, State::Connected | State::Initialised))
                    .await?;
            }
            self.switch(State::Closed, &[]).await?;
            // A back end that has ended says so, or has begun anew.
            self.wait_for(|s| {
                matches!(
                    s,
                    State::Closed | State::Unknown | State::InitWait | State::Initialising
                )
            })
            .await?;
        }
        self.switch(State::Initialising, &[]).await?;
        loop {
            match self
                .wait_for(|s| matches!(s, State::InitWait | State::Unknown))
                .await?
            {
                State::InitWait => return Ok(()),
                // The other end is not there yet, or was taken away with the device.
                _ if self.own_state().await? == State::Unknown => return Err(Error::NoDevice),
                _ => poll_fn(|cx| self.poll_peer(cx)).await?,
            };
        }
    }

    /// Waits until the other end has connected. When it closes instead, this end does too: it would be waited for.
    pub(crate) async fn connected(&mut self) -> Result<(), Error> {
        let state = self
            .wait_for(|s| !matches!(s, State::InitWait | State::Initialised))
            .await?;
        if state == State::Connected {
            return Ok(());
        }
        self.close().await?;
        Err(Error::Gone)
    }

    /// Ends: tells the other end, and waits until it has let go of everything.
    ///
    /// # Errors
    /// xenstore's. A device that was taken away counts as ended. It waits as long as the other end does not answer:
    /// give it a deadline.
    pub async fn close(&mut self) -> Result<(), Error> {
        match self.switch(State::Closing, &[]).await {
            Err(Error::NoDevice) => return Ok(()),
            result => result?,
        }
        self.wait_for(|s| !matches!(s, State::Connected | State::Initialised | State::InitWait))
            .await?;
        match self.switch(State::Closed, &[]).await {
            Err(Error::NoDevice) => return Ok(()),
            result => result?,
        }
        self.wait_for(|s| matches!(s, State::Closed | State::Unknown | State::InitWait))
            .await
            .map(drop)
    }

    async fn own_state(&self) -> Result<State, Error> {
        state_of(self.store.read(&format!("{}/state", self.node)).await)
    }

    /// A number in the back end's folder; `None` when it is not there.
    ///
    /// # Errors
    /// [`Error::BadValue`] when it is not a decimal number in range; xenstore's.
    pub async fn offer<T: FromStr>(&self, key: &str) -> Result<Option<T>, Error> {
        match self
            .store
            .read_number(&format!("{}/{key}", self.backend))
            .await
        {
            Ok(n) => Ok(Some(n)),
            Err(Error::Store(Errno::ENOENT)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether the back end offers something (`key` is 1 in its folder).
    ///
    /// # Errors
    /// As [`Frontend::offer`].
    pub async fn offers(&self, key: &str) -> Result<bool, Error> {
        Ok(self.offer::<u32>(key).await?.is_some_and(|n| n != 0))
    }

    /// Leaves a note of what went wrong for people, in `error/` of the domain's part of the store.
    pub async fn report(&self, error: Error) {
        let path = format!("error/{}/error", self.node);
        let _ = self.store.write(&path, format!("{error}").as_bytes()).await;
    }
}

/// The state that an answer tells. What is missing or no number is none.
fn state_of(answer: Result<Vec<u8>, Error>) -> Result<State, Error> {
    match answer {
        Ok(text) => Ok(crate::xenstore::decimal(&text)
            .and_then(State::from_number)
            .unwrap_or(State::Unknown)),
        Err(Error::Store(Errno::ENOENT | Errno::EACCES)) => Ok(State::Unknown),
        Err(e) => Err(e),
    }
}
