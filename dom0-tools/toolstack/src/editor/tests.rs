// SPDX-License-Identifier: MIT OR Apache-2.0
use super::*;
use alloc::borrow::ToOwned;
use alloc::string::ToString;

/// As much of a VT100 as the editor needs, its automatic margin included.
struct Screen {
    width: usize,
    rows: Vec<Vec<char>>,
    row: usize,
    col: usize,
    held: bool,
}

impl Screen {
    fn new(width: usize) -> Self {
        Self {
            width,
            rows: alloc::vec![Vec::new()],
            row: 0,
            col: 0,
            held: false,
        }
    }

    fn down(&mut self) {
        self.row += 1;
        if self.row == self.rows.len() {
            self.rows.push(Vec::new());
        }
    }

    fn show(&mut self, text: &str) {
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '\x07' => {}
                '\r' => (self.col, self.held) = (0, false),
                '\n' => self.down(),
                '\x1b' => {
                    assert_eq!(chars.next(), Some('['));
                    let mut n = String::new();
                    let end = loop {
                        match chars.next().unwrap() {
                            d if d.is_ascii_digit() => n.push(d),
                            end => break end,
                        }
                    };
                    let n = n.parse().unwrap_or(1);
                    self.held = false;
                    match end {
                        'A' => self.row -= n,
                        'B' => {
                            self.row += n;
                            assert!(self.row < self.rows.len());
                        }
                        'C' => self.col += n,
                        'D' => self.col -= n,
                        'J' => {
                            self.rows[self.row].truncate(self.col);
                            self.rows.truncate(self.row + 1);
                        }
                        other => panic!("sequence {other}"),
                    }
                }
                c => {
                    if self.held {
                        self.down();
                        (self.col, self.held) = (0, false);
                    }
                    let row = &mut self.rows[self.row];
                    if row.len() <= self.col {
                        row.resize(self.col + 1, ' ');
                    }
                    row[self.col] = c;
                    match self.col + 1 == self.width {
                        true => self.held = true,
                        false => self.col += 1,
                    }
                }
            }
        }
    }

    fn text(&self) -> String {
        self.rows.iter().flatten().collect()
    }
}

fn editor() -> Editor {
    let mut e = Editor::new("> ");
    e.prompt();
    e
}

/// Feeds keys and answers the lines.
fn feed(e: &mut Editor, keys: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for byte in keys.bytes() {
        if let Event::Line(line) = e.input(byte) {
            lines.push(line);
        }
    }
    lines
}

fn one(keys: &str) -> String {
    feed(&mut editor(), &format!("{keys}\r")).remove(0)
}

#[test]
fn keys() {
    for (keys, line) in [
        ("list", "list"),
        ("lst\x1b[D\x1b[Di", "list"),
        ("ist\x01l", "list"),
        ("ist\x1b[Hl\x1b[F x", "list x"),
        ("lisst\x02\x02\x08", "list"),
        ("llist\x01\x04", "list"),
        ("llist\x1b[1~\x1b[3~", "list"),
        ("list all of\x1bb\x1bb\x0b", "list "),
        ("junk list\x1b[1;5D\x15", "list"),
        ("list two three\x17\x17", "list "),
        ("one two\x17\x01\x19 ", "two one "),
        ("caf\u{e9} \u{20ac}\x7f\x7f", "caf\u{e9}"),
        ("a\x1b[99;99Xb\x1bOPc", "abc"),
        ("ab\x1b[Z\x00\x1c", "ab"),
        ("x\x03list", "list"),
        ("\x7f\x1b[A\x1b[B\x1b[Dlist", "list"),
        ("ab cd\x01\x1bf\x1bd", "ab"),
    ] {
        assert_eq!(one(keys), line, "{keys:?}");
    }
    assert_eq!(editor().input(4), Event::Eof);
    assert_eq!(editor().input(3), Event::Interrupt);
}

#[test]
fn a_pasted_script_loses_nothing() {
    let lines = feed(&mut editor(), "one\r\ntwo\nthree\r\rfour\n\r\nfive\n");
    assert_eq!(lines, ["one", "two", "three", "", "four", "", "five"]);
}

#[test]
fn a_pipe_gets_plain_text() {
    let mut e = editor();
    feed(&mut e, "list\n");
    e.prompt();
    assert_eq!(e.take_output(), "> list\r\n> ");
    assert_eq!(e.take_output(), "");
}

#[test]
fn history() {
    let mut e = editor();
    assert_eq!(feed(&mut e, "one\rtwo\rtwo\r\r"), ["one", "two", "two", ""]);
    assert_eq!(e.history().collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(feed(&mut e, "\x1b[A\r"), ["two"]);
    assert_eq!(feed(&mut e, "\x10\x10\x10\r"), ["one"]);
    assert_eq!(
        feed(&mut e, "half\x1b[A\x1b[A\x1b[B\x1b[B more\r"),
        ["half more"]
    );
    for n in 0..300 {
        feed(&mut e, &format!("{n}\r"));
    }
    assert_eq!(e.history().count(), MAX_HISTORY);
    assert_eq!(e.history().last(), Some("299"));
}

#[test]
fn completion() {
    let found = |typed: usize, words: &[&str]| Completion {
        typed,
        candidates: words.iter().map(ToString::to_string).collect(),
    };
    let mut e = editor();
    feed(&mut e, "cr");
    assert_eq!(e.input(b'\t'), Event::Complete("cr".to_owned()));
    e.complete(&found(2, &["create"]));
    feed(&mut e, "/g");
    assert_eq!(e.input(b'\t'), Event::Complete("create /g".to_owned()));
    e.complete(&found(2, &["/guests/"]));
    e.input(b'\t');
    e.complete(&found(8, &["/guests/hello.cfg", "/guests/help.txt"]));
    // Nothing more in common: the second Tab shows them.
    e.input(b'\t');
    let _ = e.take_output();
    e.complete(&found(11, &["/guests/hello.cfg", "/guests/help.txt"]));
    assert_eq!(
        e.take_output(),
        "\r\n/guests/hello.cfg  /guests/help.txt\r\n> create /guests/hel"
    );
    e.input(b'l');
    e.input(b'\t');
    e.complete(&found(12, &["/guests/hello.cfg"]));
    assert_eq!(feed(&mut e, "-c\r"), ["create /guests/hello.cfg -c"]);

    // In the middle of a line, and with another spelling.
    feed(&mut e, "CR file\x1b[H\x1b[C\x1b[C");
    assert_eq!(e.input(b'\t'), Event::Complete("CR".to_owned()));
    e.complete(&found(2, &["create"]));
    assert_eq!(feed(&mut e, "\r"), ["create file"]);

    // Nothing to be found: a bell.
    let _ = e.take_output();
    e.input(b'\t');
    e.complete(&found(0, &[]));
    e.input(b'\t');
    e.complete(&found(1000, &["a", "b"]));
    assert_eq!(e.take_output(), "\x07\r\na  b\r\n> ");
}

#[test]
fn a_message_in_between() {
    let mut e = editor();
    let mut screen = Screen::new(80);
    feed(&mut e, "lis");
    e.hide();
    screen.show(&e.take_output());
    screen.show("domain 1 stopped\r\n");
    e.prompt();
    screen.show(&e.take_output());
    assert_eq!(screen.text(), "domain 1 stopped> lis");
    assert_eq!(feed(&mut e, "t\r"), ["list"]);
}

#[test]
fn a_line_has_an_end() {
    let mut e = editor();
    let line = feed(&mut e, &format!("{}\r", "x".repeat(MAX_LINE + 100))).remove(0);
    assert_eq!(line.len(), MAX_LINE);
}

proptest::proptest! {
    #[test]
    fn never_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        let mut e = editor();
        for b in bytes {
            if let Event::Complete(line) = e.input(b) {
                e.complete(&Completion { typed: line.len() / 2, candidates: alloc::vec![line, "x".into()] });
            }
        }
    }

    /// Whatever is typed, the terminal shows prompt and line with its cursor in the right place.
    #[test]
    fn the_screen_shows_the_line(
        width in 10usize..24,
        keys in proptest::collection::vec(
            proptest::sample::select(alloc::vec![
                "a", "b", "é", "word ", "\x01", "\x02", "\x05", "\x06", "\x08", "\x04x", "\x0b", "\x15", "\x17",
                "\x19", "\x1bb", "\x1bf", "\x1b[A", "\x1b[B", "\x1b[3~", "longer than a row of it ",
            ]),
            0..60,
        ),
    ) {
        let mut e = Editor::new("> ");
        e.set_width(width as u16);
        for line in ["first", "second line, a long one"] {
            feed(&mut e, &format!("{line}\r"));
        }
        let _ = e.take_output();
        let mut screen = Screen::new(width);
        e.prompt();
        screen.show(&e.take_output());
        for key in keys {
            if e.line.is_empty() && key.starts_with('\x04') {
                continue;
            }
            feed(&mut e, key);
            screen.show(&e.take_output());
            let line: String = e.line.iter().collect();
            proptest::prop_assert_eq!(screen.text().trim_end().to_owned(), format!("> {line}").trim_end().to_owned());
            let at = (2 + e.cursor) % width;
            proptest::prop_assert_eq!((screen.col, screen.row), (at, (2 + e.cursor) / width));
            proptest::prop_assert!(!screen.held);
        }
    }
}

#[test]
fn the_history_is_searched() {
    let mut e = editor();
    e.remember(["create linux", "list\x07", "create shell", "", "info"]);
    assert_eq!(
        e.history().collect::<Vec<_>>(),
        ["create linux", "list", "create shell", "info"]
    );
    for (keys, line) in [
        // The newest that has it, an older one, and a longer pattern from there.
        ("\x12crea\r", "create shell"),
        ("\x12crea\x12\r", "create linux"),
        ("\x12cre\x12ate l\r", "create linux"),
        // A key that goes elsewhere leaves what was found, to be changed.
        ("\x12lis\x1b[D\x1b[C -l\r", "list -l"),
        ("x\x12info\x07y\r", "xy"),
        ("x\x12zz\r", "x"),
        ("\x12infox\x7f\x7f\x7f\x7f\x7fli\r", "list"),
        ("\x12info\x03list\r", "list"),
    ] {
        let mut e = editor();
        e.remember(["create linux", "list", "create shell", "info"]);
        let got = feed(&mut e, keys);
        assert_eq!(got, [line], "{keys:?}");
    }
}

#[test]
fn a_search_is_shown_and_taken_away() {
    let mut e = editor();
    e.set_width(20);
    e.remember(["block-attach linux /guests/a.img"]);
    let mut screen = Screen::new(20);
    feed(&mut e, "\x12atta");
    screen.show(&e.take_output());
    assert_eq!(
        screen.text(),
        "search \"atta\": block-attach linux /guests/a.img"
    );
    feed(&mut e, "\x07ab");
    screen.show(&e.take_output());
    assert_eq!(screen.text(), "> ab");
}

#[test]
fn a_line_is_edited_at_the_width_that_the_terminal_tells() {
    let mut e = editor();
    let mut screen = Screen::new(30);
    let line = "create /guests/linux.cfg memory=512 vcpus=2";
    screen.show(&e.take_output());
    // It tells after the prompt was shown.
    e.set_width(30);
    feed(&mut e, line);
    feed(&mut e, "\x01\x1b[C\x7fC\x05\x7f3");
    screen.show(&e.take_output());
    assert_eq!(
        screen.text(),
        "> Create /guests/linux.cfg memory=512 vcpus=3"
    );
}
