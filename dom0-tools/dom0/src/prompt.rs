// SPDX-License-Identifier: MIT OR Apache-2.0
//! The person at the terminal: the line editor, commands, and messages between them.

use crate::disk::File;
use crate::host::Dom0;
use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use toolstack::cli::{self, Status};
use toolstack::editor::{Editor, Event};
use toolstack::host::{Output, Size};
use toolstack::life::Toolstack;

/// The file of the volume that keeps the lines that a person entered, the newest at its end, filled with zeros.
const HISTORY: &str = "/vane.his";
/// No more of it is used.
const HISTORY_SIZE: u64 = 8 << 10;
/// Ctrl-L.
const REDRAW: u8 = 0x0c;

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
        let history = self.dom0.file(HISTORY).ok();
        if let Some(file) = &history {
            self.recall(file).await;
        }
        loop {
            self.dom0.terminal.ask_size(false);
            self.editor.borrow_mut().prompt();
            self.typing.set(true);
            self.show();
            let line = loop {
                let byte = self.dom0.terminal.read().await;
                if let Some(size) = self.dom0.terminal.size() {
                    self.editor.borrow_mut().set_width(size.columns);
                }
                if byte == REDRAW {
                    self.dom0.terminal.ask_size(true);
                }
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
            // A terminal that tells its size has a person.
            if let (Some(file), Some(_)) = (&history, self.dom0.terminal.size())
                && !line.trim().is_empty()
            {
                self.keep(file.clone());
            }
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

    /// Takes the lines of former runs from the volume.
    async fn recall(&self, file: &File) {
        let mut bytes = vec![0; file.size().min(HISTORY_SIZE) as usize];
        if file.read_at(0, &mut bytes).await.is_ok() {
            let text = String::from_utf8_lossy(&bytes);
            let lines = text.trim_end_matches('\0').lines();
            self.editor.borrow_mut().remember(lines);
        }
    }

    /// Writes the newest lines to the volume, as many as there is room for.
    fn keep(&self, file: File) {
        let size = file.size().min(HISTORY_SIZE) as usize;
        let mut text = String::new();
        for line in self.history().iter().rev() {
            if text.len() + line.len() + 1 > size {
                break;
            }
            text = [line, "\n", &text].concat();
        }
        let mut bytes = text.into_bytes();
        bytes.resize(size, 0);
        // Lines that were not kept are no reason to say anything.
        self.dom0.rt.spawn(async move {
            let _ = file.write_sectors(0, &bytes).await;
        });
    }

    fn history(&self) -> Vec<String> {
        let editor = self.editor.borrow();
        editor.history().map(ToOwned::to_owned).collect()
    }

    /// Runs one line.
    pub async fn command(&self, tools: &Toolstack<Dom0>, line: &str) -> Status {
        self.crash_test(line);
        cli::run(tools, line, &mut Screen(self)).await
    }
}

/// What a command writes to.
struct Screen<'a>(&'a Prompt);

impl Output for Screen<'_> {
    fn write(&mut self, text: &str) {
        self.0.dom0.terminal.write(text);
    }
    async fn flush(&mut self) {}
    async fn interrupted(&mut self) {
        self.0.dom0.terminal.interrupted().await;
    }
    async fn key(&mut self) -> u8 {
        self.0.dom0.terminal.read().await
    }
    fn size(&self) -> Option<Size> {
        self.0.dom0.terminal.size()
    }
    fn history(&self) -> Vec<String> {
        self.0.history()
    }
}
