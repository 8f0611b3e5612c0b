// SPDX-License-Identifier: MIT OR Apache-2.0
//! Messages to and from xenstore, as bytes.

use super::{MS, PATIENCE, Served, show};
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use el1::shared::Shared;
use el1::time;
use guest_abi::Port;
use guest_abi::io::xs_wire::{REQ, RSP};

/// The connection.
pub struct Wire {
    pub page: Shared,
    pub port: Port,
    id: u32,
    input: Vec<u8>,
    /// Watch events that came.
    pub events: VecDeque<Vec<u8>>,
}

impl Wire {
    pub fn new(page: Shared, port: Port) -> Self {
        Self {
            page,
            port,
            id: 1000,
            input: Vec::new(),
            events: VecDeque::new(),
        }
    }
}

/// What was answered.
pub struct Reply {
    pub kind: u32,
    pub id: u32,
    pub tx: u32,
    pub payload: Vec<u8>,
}

/// A message.
pub fn message(kind: u32, id: u32, tx: u32, payload: &[u8]) -> Vec<u8> {
    let head = [kind, id, tx, payload.len() as u32].map(u32::to_le_bytes);
    [head.as_flattened(), payload].concat()
}

impl Served {
    /// Sends bytes as the ring has room for them.
    pub fn put_bytes(&mut self, mut bytes: &[u8]) {
        let port = self.wire.port;
        self.within(PATIENCE, |s| {
            let n = REQ.write(&s.wire.page, bytes).unwrap_or(0);
            bytes = bytes.get(n..).unwrap_or_default();
            if n > 0 {
                s.send(port);
            }
            bytes.is_empty().then_some(())
        });
    }

    /// Takes what is there; the next whole message.
    fn take(&mut self) -> Option<Reply> {
        let mut buffer = [0; 1024];
        let n = RSP.read(&self.wire.page, &mut buffer).unwrap_or(0);
        if n > 0 {
            self.send(self.wire.port);
        }
        let input = &mut self.wire.input;
        input.extend_from_slice(&buffer[..n]);
        let word = |at: usize| {
            let bytes = input.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let (kind, id, tx, len) = (word(0)?, word(4)?, word(8)?, word(12)? as usize);
        let payload = input.get(16..16 + len)?.to_vec();
        input.drain(..16 + len);
        Some(Reply {
            kind,
            id,
            tx,
            payload,
        })
    }

    /// The next answer; events on the way are put aside.
    pub fn answer(&mut self, ns: u64) -> Option<Reply> {
        self.within(ns, |s| {
            loop {
                let reply = s.take()?;
                if reply.kind != 15 {
                    return Some(reply);
                }
                s.wire.events.push_back(reply.payload);
            }
        })
    }

    /// Asks and waits for the answer.
    pub fn call(&mut self, kind: u32, tx: u32, payload: &[u8]) -> Reply {
        let id = self.wire.id;
        self.wire.id += 1;
        self.put_bytes(&message(kind, id, tx, payload));
        self.answer(PATIENCE).unwrap_or(Reply {
            kind: u32::MAX,
            id,
            tx,
            payload: b"no answer".to_vec(),
        })
    }

    /// Asks; what was answered, in words.
    pub fn ask(&mut self, kind: u32, tx: u32, payload: &[u8]) -> String {
        let id = self.wire.id;
        let reply = self.call(kind, tx, payload);
        let mut text = show(&reply.payload);
        if text.len() > 200 {
            text = format!("{} bytes", reply.payload.len());
        }
        if reply.kind != kind && reply.kind != 16 {
            text = format!("{text} (kind {})", reply.kind);
        } else if reply.kind == 16 {
            text = format!("error {text}");
        }
        if reply.id != id || reply.tx != tx {
            text += " (another's)";
        }
        text
    }

    /// The events that came until now, each with its path and token, in their order. An answer that is asked for
    /// comes after the events of what was done before, but an event of a watch just set comes after its answer.
    pub fn events(&mut self) -> String {
        // What is on its way comes before this answer, or soon after it.
        self.call(2, 0, b"domid\0");
        let end = time::now_ns() + 20 * MS;
        while time::now_ns() < end {
            if let Some(reply) = self.take() {
                self.wire.events.push_back(reply.payload);
            } else {
                self.wait(end);
            }
        }
        let events: Vec<_> = self.wire.events.drain(..).map(|e| show(&e)).collect();
        if events.is_empty() {
            "none".into()
        } else {
            events.join(" ")
        }
    }
}
