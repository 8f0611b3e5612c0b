// SPDX-License-Identifier: MIT OR Apache-2.0
//! The person's terminal: the hypervisor's console, or a UART when there is no hypervisor.

use crate::exec::Notify;
use crate::rt::Rt;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use el1::{gic, hvc, print, time};
use guest_abi::calls;
use guest_abi::xen::Virq;
use toolstack::terminal::{ASK, Answers, Size};

/// Ctrl-C.
const INTERRUPT: u8 = 3;
/// Typed bytes that are kept for whoever reads them next.
const TYPED: usize = 64 << 10;
/// A terminal that has not told its size by then will not, in nanoseconds.
const ANSWER_NS: u64 = 2_000_000_000;

/// The terminal.
#[derive(Default)]
pub struct Terminal {
    typed: RefCell<VecDeque<u8>>,
    arrived: Notify,
    answers: RefCell<Answers>,
    asked_ns: Cell<u64>,
    size: Cell<Option<Size>>,
}

impl Terminal {
    /// The UART of a machine without a hypervisor, by its interrupt on QEMU's `virt`.
    pub fn uart(rt: &Rt) -> Rc<Self> {
        let terminal = Rc::new(Self::default());
        let this = terminal.clone();
        rt.on_interrupt(33, move || {
            while let Some(b) = print::uart_byte() {
                this.type_byte(b);
            }
        });
        gic::enable(33, gic::Trigger::Level);
        print::uart_interrupts();
        terminal
    }

    /// The hypervisor's console, with VIRQ_CONSOLE for what is typed.
    pub fn hypervisor(rt: &'static Rt) -> Rc<Self> {
        let terminal = Rc::new(Self::default());
        let this = terminal.clone();
        match calls::event::bind_virq(&hvc::xen(), Virq::Console, 0) {
            Ok(port) => rt.spawn(async move {
                let mut listener = rt.listen(port);
                loop {
                    let mut some = [0; 256];
                    let n = calls::console::read(&hvc::xen(), &mut some).unwrap_or(0);
                    this.type_bytes(some.get(..n).unwrap_or_default());
                    if n == 0 {
                        listener.wait().await;
                    }
                }
            }),
            Err(e) => terminal.write(&format!("no console input: {e}\n")),
        }
        terminal
    }

    /// Asks the terminal how large it is. One that did not answer is a pipe, and is asked again only if a person wants that.
    pub fn ask_size(&self, wanted: bool) {
        if !wanted && self.asked_ns.get() != 0 && self.size.get().is_none() {
            return;
        }
        self.asked_ns.set(time::now_ns().max(1));
        self.answers.borrow_mut().asked();
        self.write_raw(ASK.as_bytes());
    }

    /// The terminal's size, if it told.
    pub fn size(&self) -> Option<Size> {
        self.size.get()
    }

    fn type_byte(&self, byte: u8) {
        let mut answers = self.answers.borrow_mut();
        if answers.waiting() && time::now_ns() - self.asked_ns.get() > ANSWER_NS {
            answers.give_up().into_iter().for_each(|b| self.keep(b));
        }
        if let Some(size) = answers.input(byte, |b| self.keep(b)) {
            self.size.set(Some(size));
        }
    }

    fn keep(&self, byte: u8) {
        let mut typed = self.typed.borrow_mut();
        if typed.len() < TYPED {
            typed.push_back(byte);
        }
        drop(typed);
        self.arrived.notify();
    }

    /// Adds what was typed.
    pub fn type_bytes(&self, bytes: &[u8]) {
        for &b in bytes {
            self.type_byte(b);
        }
    }

    /// The next byte that was typed.
    pub async fn read(&self) -> u8 {
        loop {
            let mut seen = self.arrived.seen();
            if let Some(b) = self.try_read() {
                return b;
            }
            self.arrived.changed(&mut seen).await;
        }
    }

    /// The next byte, if one was typed.
    pub fn try_read(&self) -> Option<u8> {
        self.typed.borrow_mut().pop_front()
    }

    /// Puts bytes back, to be read next.
    pub fn untype(&self, bytes: &[u8]) {
        let mut typed = self.typed.borrow_mut();
        for &b in bytes.iter().rev() {
            typed.push_front(b);
        }
        drop(typed);
        self.arrived.notify();
    }

    /// Waits for Ctrl-C, which takes itself and what was typed before away. What is typed
    /// otherwise stays for the next reader.
    pub async fn interrupted(&self) {
        loop {
            let mut seen = self.arrived.seen();
            {
                let mut typed = self.typed.borrow_mut();
                if let Some(at) = typed.iter().position(|&b| b == INTERRUPT) {
                    typed.drain(..=at);
                    return;
                }
            }
            self.arrived.changed(&mut seen).await;
        }
    }

    /// Writes bytes as they are.
    pub fn write_raw(&self, bytes: &[u8]) {
        print::write(bytes);
    }

    /// Writes text; a line's end becomes a carriage return and a line feed.
    pub fn write(&self, text: &str) {
        for (i, line) in text.split('\n').enumerate() {
            if i > 0 {
                print::write(b"\r\n");
            }
            if !line.is_empty() {
                print::write(line.as_bytes());
            }
        }
    }
}
