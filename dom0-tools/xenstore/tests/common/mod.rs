// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest for tests: it speaks the wire protocol by way of `Store::input` and `Store::output`.
#![allow(dead_code)]

use std::collections::VecDeque;

use guest_abi::DomId;
use guest_abi::io::xs_wire::{MsgType as Op, PAYLOAD_MAX, XsdSockmsg};
use xenstore::{Perm, Store};
use zerocopy::{FromBytes, IntoBytes};

const HEAD: usize = size_of::<XsdSockmsg>();

/// What came back: the payload, or an error's name.
pub type Answer = Result<Vec<u8>, String>;

pub struct Guest {
    pub domid: DomId,
    pub events: VecDeque<(String, String)>,
    bytes: Vec<u8>,
    next: u32,
}

pub fn message(kind: u32, req_id: u32, tx_id: u32, payload: &[u8]) -> Vec<u8> {
    let header = XsdSockmsg {
        kind,
        req_id,
        tx_id,
        len: payload.len() as u32,
    };
    [header.as_bytes(), payload].concat()
}

impl Guest {
    pub fn new(domid: u16) -> Self {
        Self {
            domid: DomId(domid),
            events: VecDeque::new(),
            bytes: Vec::new(),
            next: 1,
        }
    }

    /// Introduces the domain with a home that it may read and write.
    pub fn introduced(store: &mut Store, domid: u16) -> Self {
        let home = format!("/local/domain/{domid}");
        store.mkdir(&home).unwrap();
        store.set_perms(&home, &[Perm::none(DomId(domid))]).unwrap();
        store.introduce(DomId(domid)).unwrap();
        Self::new(domid)
    }

    /// Fetches all output; events are kept, replies returned.
    pub fn fetch(&mut self, store: &mut Store) -> Vec<(XsdSockmsg, Vec<u8>)> {
        let mut buf = [0; 333];
        loop {
            let n = store.output(self.domid, &mut buf);
            if n == 0 {
                break;
            }
            self.bytes.extend_from_slice(&buf[..n]);
        }
        let mut replies = Vec::new();
        while let Ok((header, _)) = XsdSockmsg::read_from_prefix(&self.bytes) {
            let end = HEAD + header.len as usize;
            if self.bytes.len() < end {
                break;
            }
            let payload = self.bytes[HEAD..end].to_vec();
            assert!(payload.len() <= PAYLOAD_MAX);
            self.bytes.drain(..end);
            if header.kind == Op::WatchEvent.number() {
                assert_eq!((header.req_id, header.tx_id), (0, 0));
                let mut parts = payload
                    .split(|b| *b == 0)
                    .map(|p| String::from_utf8(p.to_vec()).unwrap());
                let event = (parts.next().unwrap(), parts.next().unwrap());
                assert_eq!((parts.next().as_deref(), parts.next()), (Some(""), None));
                self.events.push_back(event);
            } else {
                replies.push((header, payload));
            }
        }
        replies
    }

    pub fn raw(&mut self, store: &mut Store, kind: u32, tx: u32, payload: &[u8]) -> Answer {
        let req = self.next;
        self.next += 1;
        let bytes = message(kind, req, tx, payload);
        assert_eq!(store.input(self.domid, &bytes), Ok(bytes.len()));
        let replies = self.fetch(store);
        assert_eq!(replies.len(), 1, "one reply to one request");
        let (header, payload) = replies.into_iter().next().unwrap();
        assert_eq!((header.req_id, header.tx_id), (req, tx));
        if header.kind == Op::Error as u32 {
            let text = payload.strip_suffix(b"\0").unwrap();
            return Err(String::from_utf8(text.to_vec()).unwrap());
        }
        assert_eq!(header.kind, kind);
        Ok(payload)
    }

    /// A request whose arguments are strings.
    pub fn call(&mut self, store: &mut Store, op: Op, tx: u32, args: &[&str]) -> Answer {
        let payload: Vec<u8> = args
            .iter()
            .flat_map(|a| [a.as_bytes(), b"\0"].concat())
            .collect();
        self.raw(store, op as u32, tx, &payload)
    }

    pub fn read(&mut self, store: &mut Store, tx: u32, path: &str) -> Answer {
        self.call(store, Op::Read, tx, &[path])
    }

    pub fn write(&mut self, store: &mut Store, tx: u32, path: &str, value: &str) -> Answer {
        let payload = [path.as_bytes(), b"\0", value.as_bytes()].concat();
        self.raw(store, Op::Write as u32, tx, &payload)
    }

    pub fn ls(&mut self, store: &mut Store, tx: u32, path: &str) -> Result<Vec<String>, String> {
        let payload = self.call(store, Op::Directory, tx, &[path])?;
        Ok(strings(&payload))
    }

    pub fn start(&mut self, store: &mut Store) -> Result<u32, String> {
        let payload = self.call(store, Op::TransactionStart, 0, &[""])?;
        Ok(strings(&payload)[0].parse().unwrap())
    }

    pub fn end(&mut self, store: &mut Store, tx: u32, verdict: &str) -> Answer {
        self.call(store, Op::TransactionEnd, tx, &[verdict])
    }

    pub fn watch(&mut self, store: &mut Store, path: &str, token: &str) -> Answer {
        self.call(store, Op::Watch, 0, &[path, token])
    }

    /// Events since the last look.
    pub fn seen(&mut self, store: &mut Store) -> Vec<(String, String)> {
        assert!(self.fetch(store).is_empty());
        self.events.drain(..).collect()
    }
}

pub fn strings(payload: &[u8]) -> Vec<String> {
    let mut parts: Vec<String> = payload
        .split(|b| *b == 0)
        .map(|p| String::from_utf8(p.to_vec()).unwrap())
        .collect();
    assert_eq!(parts.pop().as_deref(), Some(""));
    parts
}

pub fn err<T>(name: &str) -> Result<T, String> {
    Err(name.into())
}

pub fn ok() -> Answer {
    Ok(b"OK\0".to_vec())
}

pub fn event(path: &str, token: &str) -> (String, String) {
    (path.into(), token.into())
}
