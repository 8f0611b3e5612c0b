// SPDX-License-Identifier: MIT OR Apache-2.0
//! The person at the terminal: the line editor, commands, and messages between them.

use crate::host::Dom0;
use core::cell::{Cell, RefCell};
use toolstack::cli::{self, Status};
use toolstack::editor::{Editor, Event};
use toolstack::host::Output;
use toolstack::life::Toolstack;

/// The terminal with its line editor.
pub struct Prompt {
    dom0: Dom0,
    editor: RefCell<Editor>,
    /// A line is being typed, so that messages take its place for a moment.
    typing: Cell<bool>,
}

impl Prompt {
    /// Shows nothing yet.
    #[must_use]
    pub fn new(dom0: Dom0) -> Self {
        Self {
            dom0,
            editor: RefCell::new(Editor::new("vane> ")),
            typing: Cell::new(false),
        }
    }

    fn show(&self) {
        let text = self.editor.borrow_mut().take_output();
        self.dom0.terminal.write_raw(text.as_bytes());
    }

    /// Shows a message, above the line that is being typed.
    pub fn say(&self, text: &str) {
        if self.typing.get() {
            self.editor.borrow_mut().hide();
            self.show();
        }
        self.dom0.terminal.write(text);
        self.dom0.terminal.write("\n");
        if self.typing.get() {
            self.editor.borrow_mut().prompt();
            self.show();
        }
    }

    /// Reads lines and runs them, for ever.
    pub async fn run(&self, tools: &Toolstack<Dom0>) {
        loop {
            self.editor.borrow_mut().prompt();
            self.typing.set(true);
            self.show();
            let line = loop {
                let byte = self.dom0.terminal.read().await;
                let event = self.editor.borrow_mut().input(byte);
                match event {
                    Event::Line(line) => break line,
                    Event::Complete(typed) => {
                        let found = cli::complete(tools, &typed).await;
                        self.editor.borrow_mut().complete(&found);
                    }
                    Event::Eof => self.editor.borrow_mut().prompt(),
                    Event::None | Event::Interrupt => {}
                }
                self.show();
            };
            self.typing.set(false);
            self.show();
            self.command(tools, &line).await;
        }
    }

    /// Ends this domain in one of the ways in which it can end, where the command line has `crash-test`.
    fn crash_test(&self, line: &str) {
        let args = &self.dom0.machine.bootargs;
        if args.split_ascii_whitespace().any(|w| w == "crash-test") {
            match line {
                "crash-test panic" => panic!("asked for by crash-test"),
                "crash-test hang" => loop {
                    core::hint::spin_loop();
                },
                _ => {}
            }
        }
    }

    /// Runs one line.
    pub async fn command(&self, tools: &Toolstack<Dom0>, line: &str) -> Status {
        self.crash_test(line);
        cli::run(tools, line, &mut Screen(self.dom0)).await
    }
}

/// What a command writes to.
struct Screen(Dom0);

impl Output for Screen {
    fn write(&mut self, text: &str) {
        self.0.terminal.write(text);
    }
    async fn flush(&mut self) {}
    async fn interrupted(&mut self) {
        self.0.terminal.interrupted().await;
    }
}
