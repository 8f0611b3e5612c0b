// SPDX-License-Identifier: MIT OR Apache-2.0
//! Indexes of rings: what one end publishes the other end finds, or is told of; nothing is read before it is whole.

use guest_abi::io::ring::{BackRing, ByteRing, FrontRing};
use loom::thread;
use loom_models::{Memory, View, model};

const RING: u64 = 0x1000;
/// Room for the indexes and four entries of 4 bytes.
const BYTES: usize = 64 + 16;

type Front = FrontRing<u32, u32>;
type Back = BackRing<u32, u32>;

fn view() -> View {
    View {
        memory: Memory::new(&[(RING, BYTES as u64)]),
        base: RING,
    }
}

/// A consumer that looks once and, where there is nothing, asks to be told and looks again before it sleeps: it has
/// every request, or its sender knows that it has to tell.
#[test]
fn a_request_is_found_or_told_of() {
    model(None, || {
        let mem = view();
        let mut front = Front::new(&mem, BYTES).unwrap();
        let mut back = Back::attach(&mem, BYTES).unwrap();
        let theirs = mem.clone();
        let consumer = thread::spawn(move || {
            let mut had = Vec::new();
            loop {
                while let Some(q) = back.pop(&theirs).unwrap() {
                    had.push(q);
                }
                if !back.final_check(&theirs).unwrap() {
                    return (had, back);
                }
            }
        });
        assert!(front.push(&mem, &0x1234_5678));
        let told = front.publish(&mem);
        let (mut had, mut back) = consumer.join().unwrap();
        if told {
            while let Some(q) = back.pop(&mem).unwrap() {
                had.push(q);
            }
        }
        assert_eq!(had, [0x1234_5678], "told: {told}");
    });
}

/// The same the other way round: responses.
#[test]
fn a_response_is_found_or_told_of() {
    model(None, || {
        let mem = view();
        let mut front = Front::new(&mem, BYTES).unwrap();
        assert!(front.push(&mem, &7));
        let _ = front.publish(&mem);
        let mut back = Back::attach(&mem, BYTES).unwrap();
        let theirs = mem.clone();
        let consumer = thread::spawn(move || {
            let mut had = Vec::new();
            loop {
                while let Some(s) = front.pop(&theirs).unwrap() {
                    had.push(s);
                }
                if !front.final_check(&theirs).unwrap() {
                    return (had, front);
                }
            }
        });
        assert_eq!(back.pop(&mem), Ok(Some(7)));
        assert!(back.push(&mem, &9));
        let told = back.publish(&mem);
        let (mut had, mut front) = consumer.join().unwrap();
        if told {
            while let Some(s) = front.pop(&mem).unwrap() {
                had.push(s);
            }
        }
        assert_eq!(had, [9], "told: {told}");
    });
}

/// Bytes of a console's or xenstore's ring: those that are there are the ones that were written, in order.
#[test]
fn bytes_come_whole_and_in_order() {
    model(None, || {
        let mem = view();
        // Indexes at 0 and 4, eight bytes of data behind.
        let ring = ByteRing {
            data: 8,
            size: 8,
            prod: 0,
            cons: 4,
        };
        let theirs = mem.clone();
        let writer = thread::spawn(move || {
            assert_eq!(ring.write(&theirs, b"ab"), Ok(2));
            assert_eq!(ring.write(&theirs, b"c"), Ok(1));
        });
        let mut had = Vec::new();
        while had.len() < 3 {
            let mut buf = [0; 8];
            let n = ring.read(&mem, &mut buf).unwrap();
            had.extend_from_slice(&buf[..n]);
            assert!(b"abc".starts_with(&had), "{had:?}");
            thread::yield_now();
        }
        writer.join().unwrap();
        assert_eq!(had, b"abc");
    });
}
