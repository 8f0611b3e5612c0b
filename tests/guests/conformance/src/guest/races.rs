// SPDX-License-Identifier: MIT OR Apache-2.0
//! Two domains on two CPUs that make, bind, use and close channels to each other at the same time (`role=race`): which
//! answers there are, and that nothing is left in the end.

use super::{Suite, code};
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use el1::{probe, time};
use guest_abi::HypercallNr as Nr;
use guest_abi::{DomId, Port};

const SELF: u32 = DomId::SELF.0 as u32;
/// For how long, and until when the other one has surely ended, in nanoseconds.
const RACE: u64 = 3_000_000_000;
const AFTER: u64 = 6_000_000_000;
/// Ports that are tried: the least free one is what a domain gets.
const PORTS: core::ops::Range<u32> = 1..10;

/// The answers to each operation.
#[derive(Default)]
struct Answers([BTreeSet<String>; 6]);

const NAMES: [&str; 6] = ["alloc", "bind", "send", "unmask", "status", "close"];

impl Answers {
    fn note(&mut self, which: usize, answer: &str) {
        if !self.0[which].contains(answer) {
            self.0[which].insert(answer.into());
        }
    }
}

impl Suite {
    fn channel(&self, op: u64, words: &mut [u32; 6]) -> String {
        for (i, w) in words.iter().enumerate() {
            self.args.write32(i * 4, *w);
        }
        let r = probe::hypercall(Nr::EventChannelOp.number(), [op, self.args.addr(), 0, 0, 0]);
        for (i, w) in words.iter_mut().enumerate() {
            *w = self.args.read32(i * 4);
        }
        code(r)
    }

    fn state(&self, port: u32) -> String {
        let mut words = [SELF, port, 0, 0, 0, 0];
        let r = self.channel(5, &mut words);
        if r == "0" { format!("{}", words[2]) } else { r }
    }

    /// What can be done with a port, at a time when the other end may go.
    fn use_port(&self, port: u32, answers: &mut Answers) {
        answers.note(2, &self.channel(4, &mut [port, 0, 0, 0, 0, 0]));
        answers.note(3, &self.channel(9, &mut [port, 0, 0, 0, 0, 0]));
        answers.note(4, &self.state(port));
        answers.note(5, &self.channel(3, &mut [port, 0, 0, 0, 0, 0]));
        self.clear(Port(port));
    }

    /// Which ports are not closed.
    fn open_ports(&self) -> Vec<u32> {
        (1..64).filter(|port| self.state(*port) != "0").collect()
    }

    pub fn race(&mut self, name: &str) {
        let peer = u32::from(self.peer.0);
        let before = self.open_ports();
        let mut answers = Answers::default();
        let begin = time::now_ns();
        let mut rounds = 0_u32;
        let mut bound = 0_u32;
        while time::now_ns() < begin + RACE {
            // A port for the other one to find, for a while that is never the same.
            let mut words = [SELF | peer << 16, 0, 0, 0, 0, 0];
            answers.note(0, &self.channel(6, &mut words));
            let own = words[1];
            for _ in 0..rounds % 61 * 7 {
                core::hint::spin_loop();
            }
            if rounds.is_multiple_of(2) {
                self.use_port(own, &mut answers);
            }
            for port in PORTS {
                let mut words = [peer, port, 0, 0, 0, 0];
                let r = self.channel(0, &mut words);
                answers.note(1, &r);
                if r == "0" {
                    bound += 1;
                    self.use_port(words[2], &mut answers);
                }
            }
            if !rounds.is_multiple_of(2) {
                self.use_port(own, &mut answers);
            }
            rounds += 1;
        }
        // The other one may be at it still.
        self.sleep((begin + AFTER).saturating_sub(time::now_ns()));
        for (which, all) in NAMES.iter().zip(&answers.0) {
            let all: Vec<_> = all.iter().map(String::as_str).collect();
            self.case(format!("race.{name}.{which}"), all.join(" "));
        }
        self.case(format!("race.{name}.many"), rounds > 100 && bound > 10);
        let left = self.open_ports() == before;
        self.case(format!("race.{name}.nothing_left"), left);
        // Channels work as before.
        let mut words = [SELF | SELF << 16, 0, 0, 0, 0, 0];
        let r = self.channel(6, &mut words);
        let mut near = [SELF, words[1], 0, 0, 0, 0];
        let bind = self.channel(0, &mut near);
        self.clear(Port(words[1]));
        let send = self.channel(4, &mut [near[2], 0, 0, 0, 0, 0]);
        let pending = self.pending(Port(words[1]));
        self.case(
            format!("race.{name}.after"),
            format!("{r} {bind} {send} {pending}"),
        );
    }
}
