// SPDX-License-Identifier: MIT OR Apache-2.0
//! A line editor for a VT100 terminal, as a state machine without I/O: bytes go in by
//! [`Editor::input`], what is to be shown is fetched by [`Editor::take_output`].
//!
//! The `no_std` editors that there are (noline, embedded-cli, menu) either have no completion or own
//! the stream that they read; this one leaves bytes behind a line to its caller, so that a whole
//! script may be pasted while a command runs.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// The longest line in characters.
const MAX_LINE: usize = 4096;
/// How many lines are remembered.
const MAX_HISTORY: usize = 200;
/// The longest escape sequence.
const MAX_ESCAPE: usize = 16;

/// What a byte led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing for the caller to do.
    None,
    /// A line is finished. Call [`Editor::prompt`] for the next.
    Line(String),
    /// Ctrl-C: the line was given up. A new prompt is shown already.
    Interrupt,
    /// Ctrl-D on an empty line.
    Eof,
    /// Tab: the caller finds completions of this, the line up to the cursor, and hands them to
    /// [`Editor::complete`].
    Complete(String),
}

/// What a word may be completed to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// How many characters before the cursor are the beginning of the word, and are replaced.
    pub typed: usize,
    /// The words. One that ends in `/` or `=` is no whole word.
    pub candidates: Vec<String>,
}

/// The editor.
pub struct Editor {
    prompt: String,
    width: usize,
    line: Vec<char>,
    cursor: usize,
    /// The row that the terminal's cursor is in, counted from the prompt's.
    row: usize,
    output: String,
    history: VecDeque<String>,
    /// The place in the history, and the line that was typed before going there.
    recall: Option<usize>,
    typed: Vec<char>,
    killed: Vec<char>,
    escape: Vec<u8>,
    utf8: Vec<u8>,
    after_cr: bool,
    after_tab: bool,
    search: Option<Search>,
}

/// A search of the history that is under way (Ctrl-R).
struct Search {
    /// The prompt that it took the place of.
    prompt: String,
    /// The line as it was before.
    before: Vec<char>,
    pattern: Vec<char>,
    /// The line of the history that is shown.
    found: Option<usize>,
}

impl Editor {
    /// An editor that shows `prompt` before each line.
    #[must_use]
    pub fn new(prompt: &str) -> Self {
        Self {
            prompt: prompt.into(),
            width: 80,
            line: Vec::new(),
            cursor: 0,
            row: 0,
            output: String::new(),
            history: VecDeque::new(),
            recall: None,
            typed: Vec::new(),
            killed: Vec::new(),
            escape: Vec::new(),
            utf8: Vec::new(),
            after_cr: false,
            after_tab: false,
            search: None,
        }
    }

    /// The terminal's width in columns; 80 until it is told. A line that is shown is taken to have been broken anew.
    pub fn set_width(&mut self, columns: u16) {
        self.width = usize::from(columns).max(10);
        self.row = self.place(self.cursor).0;
    }

    /// Remembers lines of before, the oldest first.
    pub fn remember<'a>(&mut self, lines: impl IntoIterator<Item = &'a str>) {
        for line in lines {
            let line: String = line.chars().filter(|c| !c.is_control()).collect();
            self.push_history(line);
        }
    }

    /// Shows the prompt, and what has been typed of a line; the terminal's cursor is at the start of
    /// a row. Also for after a message: [`Editor::hide`], the message with its line end, then this.
    pub fn prompt(&mut self) {
        self.draw();
    }

    /// Takes the line off the screen, for a message to be shown in its place.
    pub fn hide(&mut self) {
        self.rewind();
        self.output.push_str("\x1b[J");
        self.row = 0;
    }

    /// What is to be shown, which is given once.
    #[must_use]
    pub fn take_output(&mut self) -> String {
        core::mem::take(&mut self.output)
    }

    /// The lines that were entered, the oldest first.
    pub fn history(&self) -> impl Iterator<Item = &str> {
        self.history.iter().map(String::as_str)
    }

    /// Takes a byte from the terminal.
    pub fn input(&mut self, byte: u8) -> Event {
        let after_cr = core::mem::take(&mut self.after_cr);
        let after_tab = core::mem::take(&mut self.after_tab);
        if !self.escape.is_empty() {
            self.escaped(byte);
            return Event::None;
        }
        if !self.utf8.is_empty() || byte >= 0x80 {
            self.multibyte(byte);
            return Event::None;
        }
        if self.search.is_some() && self.searched(byte) {
            return Event::None;
        }
        match byte {
            b'\n' if after_cr => {}
            b'\r' | b'\n' => {
                self.after_cr = byte == b'\r';
                return Event::Line(self.enter());
            }
            b'\t' => {
                self.after_tab = after_tab;
                return Event::Complete(self.line.iter().take(self.cursor).collect());
            }
            0x1b => self.escape.push(byte),
            0x01 => self.move_to(0),
            0x02 => self.move_to(self.cursor.saturating_sub(1)),
            0x03 => {
                self.move_to(self.line.len());
                self.output.push_str("^C\r\n");
                self.clear();
                self.prompt();
                return Event::Interrupt;
            }
            0x04 if self.line.is_empty() => {
                self.output.push_str("\r\n");
                return Event::Eof;
            }
            0x04 => self.remove(self.cursor, self.cursor + 1),
            0x05 => self.move_to(self.line.len()),
            0x06 => self.move_to(self.cursor + 1),
            0x08 | 0x7f => self.remove(self.cursor.saturating_sub(1), self.cursor),
            0x0b => self.kill(self.cursor, self.line.len()),
            0x0c => {
                self.output.push_str("\x1b[H\x1b[2J");
                self.prompt();
            }
            0x0e => self.recall(false),
            0x10 => self.recall(true),
            0x12 => self.begin_search(),
            0x15 => self.kill(0, self.cursor),
            0x17 => self.kill(self.word_back(), self.cursor),
            0x19 => {
                for c in self.killed.clone() {
                    self.insert(c);
                }
            }
            0x20..=0x7e => self.insert(char::from(byte)),
            _ => {}
        }
        Event::None
    }

    /// Completes the word before the cursor: puts in what all candidates have in common, and shows
    /// them at the second Tab.
    pub fn complete(&mut self, completion: &Completion) {
        let again = core::mem::replace(&mut self.after_tab, true);
        let Some(first) = completion.candidates.first() else {
            self.output.push('\x07');
            return;
        };
        let mut common: Vec<char> = first.chars().collect();
        for other in &completion.candidates {
            let same = common
                .iter()
                .zip(other.chars())
                .take_while(|(a, b)| **a == *b)
                .count();
            common.truncate(same);
        }
        let whole = completion.candidates.len() == 1 && !first.ends_with(['/', '=']);
        let start = self.cursor.saturating_sub(completion.typed);
        let word: Vec<char> = self
            .line
            .iter()
            .take(self.cursor)
            .skip(start)
            .copied()
            .collect();
        if common.len() < word.len() || (common == word && !whole) {
            match again {
                true => self.show(&completion.candidates),
                false => self.output.push('\x07'),
            }
            return;
        }
        match common.strip_prefix(word.as_slice()) {
            Some(rest) => rest.iter().for_each(|c| self.insert(*c)),
            None => {
                self.remove(start, self.cursor);
                common.iter().for_each(|c| self.insert(*c));
            }
        }
        if whole && self.line.get(self.cursor) != Some(&' ') {
            self.insert(' ');
        }
    }

    fn show(&mut self, candidates: &[String]) {
        self.move_to(self.line.len());
        self.output.push_str("\r\n");
        let widest = candidates
            .iter()
            .map(|c| c.chars().count())
            .max()
            .unwrap_or(0)
            + 2;
        let columns = (self.width / widest).max(1);
        for row in candidates.chunks(columns) {
            for (i, c) in row.iter().enumerate() {
                let pad = if i + 1 == row.len() { 0 } else { widest };
                self.output.push_str(&format!("{c:pad$}"));
            }
            self.output.push_str("\r\n");
        }
        self.prompt();
    }

    fn enter(&mut self) -> String {
        self.move_to(self.line.len());
        self.output.push_str("\r\n");
        let line: String = self.line.iter().collect();
        self.push_history(line.clone());
        self.clear();
        line
    }

    fn push_history(&mut self, line: String) {
        if !line.trim().is_empty() && self.history.back() != Some(&line) {
            if self.history.len() == MAX_HISTORY {
                self.history.pop_front();
            }
            self.history.push_back(line);
        }
    }

    fn begin_search(&mut self) {
        self.search = Some(Search {
            prompt: core::mem::take(&mut self.prompt),
            before: self.line.clone(),
            pattern: Vec::new(),
            found: None,
        });
        self.show_search(false);
    }

    /// Ends a search; the line that it found stays, or the one of before is there again.
    fn end_search(&mut self, keep: bool) {
        if let Some(search) = self.search.take() {
            self.prompt = search.prompt;
            self.recall = None;
            if !keep || search.found.is_none() {
                self.line = search.before;
            }
            self.cursor = self.line.len();
            self.redraw();
        }
    }

    /// A key while the history is searched; whether it was for the search. Any other ends it, and does what it does.
    fn searched(&mut self, byte: u8) -> bool {
        match byte {
            0x12 => self.show_search(true),
            0x07 => self.end_search(false),
            0x08 | 0x7f => {
                if let Some(search) = &mut self.search {
                    search.pattern.pop();
                    search.found = None;
                }
                self.show_search(false);
            }
            0x20..=0x7e => {
                if let Some(search) = &mut self.search {
                    search.pattern.push(char::from(byte));
                }
                self.show_search(false);
            }
            _ => {
                self.end_search(byte != 0x03);
                return false;
            }
        }
        true
    }

    /// Shows the newest line that has the pattern in it, from the one that is shown on, or an older one.
    fn show_search(&mut self, older: bool) {
        let Some(search) = &mut self.search else {
            return;
        };
        let pattern: String = search.pattern.iter().collect();
        let upto = match (search.found, older) {
            (Some(at), true) => at,
            (Some(at), false) => at + 1,
            (None, _) => self.history.len(),
        };
        let lines = self.history.iter().take(upto);
        let found = match pattern.is_empty() {
            true => None,
            false => lines.enumerate().rfind(|(_, l)| l.contains(&pattern)),
        };
        match found {
            Some((at, line)) => {
                search.found = Some(at);
                self.line = line.chars().collect();
            }
            None if pattern.is_empty() => self.line = search.before.clone(),
            None => self.output.push('\x07'),
        }
        self.prompt = format!("search \"{pattern}\": ");
        self.cursor = self.line.len();
        self.redraw();
    }

    fn clear(&mut self) {
        self.line.clear();
        self.cursor = 0;
        self.row = 0;
        self.recall = None;
    }

    fn multibyte(&mut self, byte: u8) {
        if self.utf8.is_empty() != (byte >= 0xc0) {
            // Not where a character can begin or go on.
            self.utf8.clear();
            if byte < 0xc0 {
                return;
            }
        }
        self.utf8.push(byte);
        match core::str::from_utf8(&self.utf8) {
            Ok(text) => {
                let c = text.chars().next();
                self.utf8.clear();
                if let Some(c) = c.filter(|c| !c.is_control()) {
                    self.end_search(true);
                    self.insert(c);
                }
            }
            Err(e) if e.error_len().is_some() => self.utf8.clear(),
            Err(_) => {}
        }
    }

    /// A byte of an escape sequence: `ESC [ 1 ; 5 C`, `ESC O H`, `ESC b` …
    fn escaped(&mut self, byte: u8) {
        self.escape.push(byte);
        let csi = self.escape.get(1) == Some(&b'[');
        let done = match self.escape.len() {
            2 => !matches!(byte, b'[' | b'O'),
            n => !csi || (0x40..=0x7e).contains(&byte) || n >= MAX_ESCAPE,
        };
        if !done {
            return;
        }
        let sequence = core::mem::take(&mut self.escape);
        match sequence.get(1..).unwrap_or_default() {
            b"[A" | b"OA" => self.recall(true),
            b"[B" | b"OB" => self.recall(false),
            b"[C" | b"OC" => self.move_to(self.cursor + 1),
            b"[D" | b"OD" => self.move_to(self.cursor.saturating_sub(1)),
            b"[H" | b"OH" | b"[1~" | b"[7~" => self.move_to(0),
            b"[F" | b"OF" | b"[4~" | b"[8~" => self.move_to(self.line.len()),
            b"[3~" => self.remove(self.cursor, self.cursor + 1),
            b"[1;5C" | b"[1;3C" | b"f" => self.move_to(self.word_forward()),
            b"[1;5D" | b"[1;3D" | b"b" => self.move_to(self.word_back()),
            b"d" => self.kill(self.cursor, self.word_forward()),
            b"\x7f" | b"\x08" => self.kill(self.word_back(), self.cursor),
            _ => {}
        }
    }

    fn word_back(&self) -> usize {
        let before = self.line.iter().take(self.cursor).rev();
        let blanks = before.clone().take_while(|c| **c == ' ').count();
        let letters = before.skip(blanks).take_while(|c| **c != ' ').count();
        self.cursor - blanks - letters
    }

    fn word_forward(&self) -> usize {
        let after = self.line.iter().skip(self.cursor);
        let blanks = after.clone().take_while(|c| **c == ' ').count();
        let letters = after.skip(blanks).take_while(|c| **c != ' ').count();
        self.cursor + blanks + letters
    }

    fn insert(&mut self, c: char) {
        if self.line.len() >= MAX_LINE {
            self.output.push('\x07');
            return;
        }
        let at_end = self.cursor == self.line.len();
        self.line.insert(self.cursor, c);
        self.cursor += 1;
        if at_end {
            self.output.push(c);
            self.row = self.place(self.cursor).0;
            self.wrap();
        } else {
            self.redraw();
        }
    }

    fn remove(&mut self, from: usize, to: usize) {
        let to = to.min(self.line.len());
        if from >= to {
            self.output.push('\x07');
            return;
        }
        self.line.drain(from..to);
        self.cursor = from;
        self.redraw();
    }

    fn kill(&mut self, from: usize, to: usize) {
        if let Some(killed) = self.line.get(from..to).filter(|k| !k.is_empty()) {
            self.killed = killed.to_vec();
            self.remove(from, to);
        }
    }

    fn recall(&mut self, older: bool) {
        let at = match (self.recall, older) {
            (None, true) => self.history.len().checked_sub(1),
            (Some(at), true) => at.checked_sub(1),
            (Some(at), false) => Some(at + 1),
            (None, false) => None,
        };
        let Some(at) = at else {
            self.output.push('\x07');
            return;
        };
        if self.recall.is_none() {
            self.typed = self.line.clone();
        }
        match self.history.get(at) {
            Some(line) => {
                self.line = line.chars().collect();
                self.recall = Some(at);
            }
            None => {
                self.line = core::mem::take(&mut self.typed);
                self.recall = None;
            }
        }
        self.cursor = self.line.len();
        self.redraw();
    }

    /// Row and column of a place in the line, from the prompt's start on.
    fn place(&self, at: usize) -> (usize, usize) {
        let n = self.prompt.chars().count() + at;
        (n / self.width, n % self.width)
    }

    /// A terminal holds its cursor back at the end of a row; this moves it on.
    fn wrap(&mut self) {
        if self.cursor > 0 && self.place(self.cursor).1 == 0 {
            self.output.push_str(" \r");
        }
    }

    fn rewind(&mut self) {
        if self.row > 0 {
            self.output.push_str(&format!("\x1b[{}A", self.row));
        }
        self.output.push('\r');
    }

    fn redraw(&mut self) {
        self.rewind();
        self.output.push_str("\x1b[J");
        self.draw();
    }

    /// Shows prompt and line from the start of a row on.
    fn draw(&mut self) {
        self.output.push_str(&self.prompt);
        self.output.extend(self.line.iter());
        let cursor = self.cursor;
        self.cursor = self.line.len();
        self.row = self.place(self.cursor).0;
        self.wrap();
        self.move_to(cursor);
    }

    fn move_to(&mut self, at: usize) {
        let at = at.min(self.line.len());
        let (row, column) = self.place(at);
        let now = self.place(self.cursor);
        if at == self.cursor {
            return;
        }
        match row.cmp(&now.0) {
            core::cmp::Ordering::Less => {
                self.output.push_str(&format!("\x1b[{}A", now.0 - row));
            }
            core::cmp::Ordering::Greater => {
                self.output.push_str(&format!("\x1b[{}B", row - now.0));
            }
            core::cmp::Ordering::Equal => {}
        }
        match column.cmp(&now.1) {
            core::cmp::Ordering::Less => {
                self.output.push_str(&format!("\x1b[{}D", now.1 - column));
            }
            core::cmp::Ordering::Greater => {
                self.output.push_str(&format!("\x1b[{}C", column - now.1));
            }
            core::cmp::Ordering::Equal => {}
        }
        self.cursor = at;
        self.row = row;
    }
}

#[cfg(test)]
mod tests;
