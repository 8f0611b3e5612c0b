// SPDX-License-Identifier: MIT OR Apache-2.0
//! The syntax of xl.cfg: `key = value` settings with strings, numbers and lists (`xl.cfg(5)`).

use alloc::borrow::ToOwned;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::iter::Peekable;
use core::str::CharIndices;

/// Where something stands in a file, counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's name.
    pub file: String,
    /// The line.
    pub line: usize,
    /// The column in characters.
    pub col: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.col)
    }
}

/// What is wrong with a configuration: `file:line:col: what is wrong; what would be right`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where.
    pub place: Place,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl core::error::Error for ConfigError {}

/// A value. Numbers stay text until somebody wants a number, as in xl.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A string or a number.
    Atom(String),
    /// A list with each element's place.
    List(Vec<(Place, Value)>),
}

/// One `key = value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Where the key stands.
    pub key_place: Place,
    /// The key.
    pub key: String,
    /// Where the value stands.
    pub place: Place,
    /// The value.
    pub value: Value,
}

/// Lists may hold lists, but not without end.
const MAX_DEPTH: usize = 8;

struct Parser<'a> {
    text: &'a str,
    file: &'a str,
    chars: Peekable<CharIndices<'a>>,
    line: usize,
    col: usize,
}

/// Reads all settings of a text. A key that is set twice has its last value; `+=` appends to a list
/// or string.
///
/// # Errors
/// The first thing that is not as the syntax says.
pub fn parse(text: &str, file: &str) -> Result<Vec<Setting>, ConfigError> {
    let mut p = Parser {
        text,
        file,
        chars: text.char_indices().peekable(),
        line: 1,
        col: 1,
    };
    let mut settings = Vec::new();
    loop {
        p.skip(true);
        match p.peek() {
            None => return Ok(settings),
            Some(';') => {
                p.next();
            }
            Some(_) => p.setting(&mut settings)?,
        }
    }
}

impl Parser<'_> {
    fn peek(&mut self) -> Option<char> {
        self.chars.peek().map(|(_, c)| *c)
    }

    fn next(&mut self) -> Option<char> {
        let (_, c) = self.chars.next()?;
        if c == '\n' {
            self.line += 1;
            self.col = 1;
        } else {
            self.col += 1;
        }
        Some(c)
    }

    fn offset(&mut self) -> usize {
        self.chars.peek().map_or(self.text.len(), |(i, _)| *i)
    }

    fn place(&self) -> Place {
        Place {
            file: self.file.to_owned(),
            line: self.line,
            col: self.col,
        }
    }

    fn error<T>(&self, place: Place, message: impl Into<String>) -> Result<T, ConfigError> {
        Err(ConfigError {
            place,
            message: message.into(),
        })
    }

    /// Skips blanks and comments, and line ends too if asked.
    fn skip(&mut self, lines: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' | '\r' => {}
                '\n' if lines => {}
                '#' => {
                    while self.peek().is_some_and(|c| c != '\n') {
                        self.next();
                    }
                    continue;
                }
                _ => return,
            }
            self.next();
        }
    }

    fn word(&mut self) -> &str {
        let start = self.offset();
        while self
            .peek()
            .is_some_and(|c| c.is_ascii_alphanumeric() || c == '_')
        {
            self.next();
        }
        let end = self.offset();
        self.text.get(start..end).unwrap_or_default()
    }

    fn setting(&mut self, settings: &mut Vec<Setting>) -> Result<(), ConfigError> {
        let key_place = self.place();
        let key = match self.peek() {
            Some(c) if c.is_ascii_alphabetic() || c == '_' => self.word().to_owned(),
            other => {
                return self.error(
                    key_place,
                    alloc::format!("{} where a key should be; write: key = value", shown(other)),
                );
            }
        };
        self.skip(false);
        let append = self.peek() == Some('+');
        if append {
            self.next();
        }
        let here = self.place();
        if self.peek() != Some('=') {
            let found = shown(self.peek());
            return self.error(
                here,
                alloc::format!("{found} after \"{key}\"; write: {key} = value"),
            );
        }
        self.next();
        self.skip(false);
        let place = self.place();
        let value = self.value(&key, 0)?;
        self.skip(false);
        match self.peek() {
            None => {}
            Some('\n' | ';') => {
                self.next();
            }
            other => {
                let here = self.place();
                let found = shown(other);
                return self.error(
                    here,
                    alloc::format!(
                        "{found} after the value of \"{key}\"; each setting has its own line"
                    ),
                );
            }
        }
        let old = settings.iter().position(|s| s.key == key);
        let new = Setting {
            key_place,
            key,
            place,
            value,
        };
        match old.and_then(|i| settings.get_mut(i)) {
            None => settings.push(new),
            Some(old) if !append => *old = new,
            Some(old) => match (&mut old.value, new.value) {
                (Value::Atom(a), Value::Atom(b)) => a.push_str(&b),
                (Value::List(a), Value::List(b)) => a.extend(b),
                (Value::List(a), atom) => a.push((new.place, atom)),
                (Value::Atom(_), Value::List(_)) => {
                    return self.error(
                        new.place,
                        alloc::format!("a list cannot be appended to the string \"{}\"", new.key),
                    );
                }
            },
        }
        Ok(())
    }

    fn value(&mut self, key: &str, depth: usize) -> Result<Value, ConfigError> {
        let here = self.place();
        match self.peek() {
            Some('"' | '\'') => Ok(Value::Atom(self.string()?)),
            Some('[') if depth < MAX_DEPTH => self.list(key, depth),
            Some('[') => self.error(here, "lists in lists go too deep"),
            Some(c) if c.is_ascii_digit() || c == '-' => {
                let start = self.offset();
                self.next();
                self.word();
                let end = self.offset();
                let number = self.text.get(start..end).unwrap_or_default();
                let digits = number.strip_prefix('-').unwrap_or(number);
                if crate::text::number(digits).is_none() {
                    return self.error(
                        here,
                        alloc::format!("\"{number}\" is no number; write 123, 0x7b or 0173, or put text in quotes"),
                    );
                }
                Ok(Value::Atom(number.to_string()))
            }
            Some(c) if c.is_alphanumeric() || c == '/' || c == '_' || c == '.' => {
                let start = self.offset();
                while self
                    .peek()
                    .is_some_and(|c| !c.is_whitespace() && !";,]#'\"".contains(c))
                {
                    self.next();
                }
                let end = self.offset();
                let word = self.text.get(start..end).unwrap_or_default().to_owned();
                self.error(
                    here,
                    alloc::format!("{word} is not in quotes; write: \"{word}\""),
                )
            }
            None | Some('\n' | ';') => self.error(
                here,
                alloc::format!("\"{key}\" has no value; write: {key} = value"),
            ),
            other => self.error(
                here,
                alloc::format!(
                    "{} where a value should be; a value is \"text\", a number, or [ a, list ]",
                    shown(other)
                ),
            ),
        }
    }

    fn list(&mut self, key: &str, depth: usize) -> Result<Value, ConfigError> {
        let start = self.place();
        self.next();
        let mut items = Vec::new();
        loop {
            self.skip(true);
            let here = self.place();
            match self.peek() {
                Some(']') => {
                    self.next();
                    return Ok(Value::List(items));
                }
                None => {
                    return self.error(
                        start,
                        alloc::format!(
                            "the list of \"{key}\" is not closed; put a ] behind its last element"
                        ),
                    );
                }
                _ => {}
            }
            let item = self.value(key, depth + 1)?;
            items.push((here, item));
            self.skip(true);
            let here = self.place();
            match self.peek() {
                Some(',') => {
                    self.next();
                }
                Some(']') | None => {}
                other => {
                    return self.error(
                        here,
                        alloc::format!("{} between elements of the list of \"{key}\"; put a comma between them, and ] behind the last", shown(other)),
                    );
                }
            }
        }
    }

    fn string(&mut self) -> Result<String, ConfigError> {
        let start = self.place();
        let quote = self.next().unwrap_or('"');
        let mut out = String::new();
        loop {
            let here = self.place();
            match self.peek() {
                None | Some('\n') => {
                    return self.error(
                        start,
                        alloc::format!(
                            "the string is not closed; put a {quote} at its end, on the same line"
                        ),
                    );
                }
                Some('\0') => return self.error(here, "a NUL character in a string"),
                Some(c) if c == quote => {
                    self.next();
                    return Ok(out);
                }
                Some('\\') => {
                    self.next();
                    out.push(self.escape(here)?);
                }
                Some(c) => {
                    self.next();
                    out.push(c);
                }
            }
        }
    }

    /// What follows a backslash: one of C's letters, `xHH`, or up to three octal digits.
    fn escape(&mut self, here: Place) -> Result<char, ConfigError> {
        let radix = |p: &mut Self, n: u32, radix: u32, most: usize| {
            let mut value = n;
            for _ in 0..most {
                let Some(d) = p.peek().and_then(|c| c.to_digit(radix)) else {
                    break;
                };
                p.next();
                value = value * radix + d;
            }
            value
        };
        let code = match self.next() {
            Some('a') => 7,
            Some('b') => 8,
            Some('e') => 27,
            Some('f') => 12,
            Some('n') => 10,
            Some('r') => 13,
            Some('t') => 9,
            Some('v') => 11,
            Some('x') if self.peek().is_some_and(|c| c.is_ascii_hexdigit()) => {
                radix(self, 0, 16, 2)
            }
            Some(c @ '0'..='7') => radix(self, c.to_digit(8).unwrap_or(0), 8, 2),
            Some(c @ ('\\' | '\'' | '"')) => return Ok(c),
            other => {
                return self.error(
                    here,
                    alloc::format!("\\ before {}; for a backslash write \\\\", shown(other)),
                );
            }
        };
        match char::from_u32(code) {
            None | Some('\0') => self.error(here, "a NUL character in a string"),
            Some(c) => Ok(c),
        }
    }
}

fn shown(c: Option<char>) -> String {
    match c {
        None => "the end of the file".to_string(),
        Some('\n') => "the end of the line".to_string(),
        Some(c) if c.is_control() => alloc::format!("the control character {}", u32::from(c)),
        Some(c) => alloc::format!("\"{c}\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn atoms(text: &str) -> Vec<(String, String)> {
        parse(text, "t")
            .unwrap()
            .into_iter()
            .map(|s| match s.value {
                Value::Atom(a) => (s.key, a),
                Value::List(l) => (
                    s.key,
                    l.into_iter()
                        .map(|(_, v)| {
                            if let Value::Atom(a) = v {
                                a
                            } else {
                                "[]".into()
                            }
                        })
                        .collect::<Vec<_>>()
                        .join("|"),
                ),
            })
            .collect()
    }

    fn pair(k: &str, v: &str) -> (String, String) {
        (k.into(), v.into())
    }

    #[test]
    fn good_texts() {
        assert_eq!(
            atoms("# all kinds\nname = \"a b\" # tail\n\nmemory=0x100; vcpus = 2;\r\nx='it\"s'"),
            vec![
                pair("name", "a b"),
                pair("memory", "0x100"),
                pair("vcpus", "2"),
                pair("x", "it\"s")
            ]
        );
        assert_eq!(
            atoms("disk = [ # none\n 'a,b', \n\n \"c\", # last\n ]\nl=[]"),
            vec![pair("disk", "a,b|c"), pair("l", "")]
        );
        assert_eq!(
            atoms(r#"s = "\t\x41\101\\\"\'é""#),
            vec![pair("s", "\tAA\\\"'é")]
        );
        assert_eq!(
            atoms("a=1\na=2\nb='x'\nb+='y'\nc=['1']\nc+=['2']"),
            vec![pair("a", "2"), pair("b", "xy"), pair("c", "1|2")]
        );
        assert_eq!(atoms(""), vec![]);
    }

    #[test]
    fn each_mistake_has_its_place_and_a_remedy() {
        for (text, error) in [
            (
                "name \"x\"",
                "t:1:6: \"\"\" after \"name\"; write: name = value",
            ),
            (
                "\n  = 3",
                "t:2:3: \"=\" where a key should be; write: key = value",
            ),
            ("a =", "t:1:4: \"a\" has no value; write: a = value"),
            ("a = \nb = 1", "t:1:5: \"a\" has no value; write: a = value"),
            (
                "kernel = /guests/Image",
                "t:1:10: /guests/Image is not in quotes; write: \"/guests/Image\"",
            ),
            (
                "a = 'b",
                "t:1:5: the string is not closed; put a ' at its end, on the same line",
            ),
            (
                "a = \"b\nc = 1",
                "t:1:5: the string is not closed; put a \" at its end, on the same line",
            ),
            (
                "a = ['x' 'y']",
                "t:1:10: \"'\" between elements of the list of \"a\"; put a comma between them, and ] behind the last",
            ),
            (
                "\nd = ['x',\n'y'",
                "t:2:5: the list of \"d\" is not closed; put a ] behind its last element",
            ),
            (
                "a = 1 b = 2",
                "t:1:7: \"b\" after the value of \"a\"; each setting has its own line",
            ),
            (
                "a = 12q",
                "t:1:5: \"12q\" is no number; write 123, 0x7b or 0173, or put text in quotes",
            ),
            (
                "a = '\\q'",
                "t:1:6: \\ before \"q\"; for a backslash write \\\\",
            ),
            ("a = '\\0'", "t:1:6: a NUL character in a string"),
            (
                "a = {}",
                "t:1:5: \"{\" where a value should be; a value is \"text\", a number, or [ a, list ]",
            ),
            (
                "a = 'x'\na += ['y']",
                "t:2:6: a list cannot be appended to the string \"a\"",
            ),
            (
                "a = [[[[[[[[[[]]]]]]]]]]",
                "t:1:13: lists in lists go too deep",
            ),
        ] {
            assert_eq!(parse(text, "t").unwrap_err().to_string(), error, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "(?s)[a-z0-9 =+'\"\\[\\],;#\\\\\n\\PC]{0,80}") {
            let _ = parse(&text, "t");
        }

        #[test]
        fn any_string_can_be_written(text in "[^\0\n\\\\\"]{0,40}") {
            let settings = parse(&alloc::format!("k = \"{text}\""), "t").unwrap();
            proptest::prop_assert_eq!(&settings[0].value, &Value::Atom(text));
        }
    }
}
