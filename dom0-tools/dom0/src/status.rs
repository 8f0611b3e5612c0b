// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an HTTP client gets of the control domain: one page of text, and nothing else.

use alloc::format;
use alloc::vec::Vec;

/// Most bytes of a request's head.
pub const MAX_HEAD: usize = 4 << 10;
/// Most bytes of the page; what goes beyond is cut off.
pub const MAX_PAGE: usize = 64 << 10;
/// Most fields of a request's head.
const FIELDS: usize = 64;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// That is not clear yet: more of the request is to come.
    More,
    /// The page.
    Page,
    /// What is not to be had; the answer's status.
    Else(&'static str),
}

/// Understands the beginning of a request.
#[must_use]
pub fn asked(head: &[u8]) -> Asked {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Partial) if head.len() < MAX_HEAD => Asked::More,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            Asked::Else("431 Request Header Fields Too Large")
        }
        Ok(httparse::Status::Complete(_)) => match (request.method, request.path) {
            (Some("GET"), Some("/")) => Asked::Page,
            (Some("GET"), _) => Asked::Else("404 Not Found"),
            _ => Asked::Else("405 Method Not Allowed"),
        },
        Err(_) => Asked::Else("400 Bad Request"),
    }
}

/// An answer with text.
#[must_use]
pub fn answer(status: &str, mut text: &str) -> Vec<u8> {
    let end = text.floor_char_boundary(MAX_PAGE);
    text = text.get(..end).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Allow: GET\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
        text.len()
    );
    [head.as_bytes(), text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_page_is_to_be_had() {
        let good = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        assert_eq!(asked(good), Asked::Page);
        for n in 0..good.len() {
            assert_eq!(asked(&good[..n]), Asked::More, "{n}");
        }
        let status = |head: &[u8]| match asked(head) {
            Asked::Else(status) => status[..3].to_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!(status(b"GET /x HTTP/1.1\r\n\r\n"), "404");
        assert_eq!(status(b"POST / HTTP/1.1\r\n\r\n"), "405");
        assert_eq!(status(b"\x16\x03\x01\x02\x00\x01"), "400");
        assert_eq!(status(b"GET / HTTP/9.9\r\n\r\n"), "400");
        let mut long = b"GET / HTTP/1.1\r\nCookie: ".to_vec();
        long.resize(MAX_HEAD, b'x');
        assert_eq!(status(&long), "431");
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(FIELDS + 1));
        assert_eq!(status(many.as_bytes()), "431");
    }

    #[test]
    fn answers_are_whole_and_bounded() {
        let text = String::from_utf8(answer("200 OK", "ä\n")).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(text.contains("Content-Length: 3\r\n"));
        assert!(text.ends_with("\r\n\r\nä\n"));
        let long = answer("200 OK", &"ä".repeat(MAX_PAGE));
        assert!(long.len() < MAX_PAGE + 512);
        let odd = format!("x{}", "ä".repeat(MAX_PAGE));
        assert!(String::from_utf8(answer("200 OK", &odd)).is_ok());
    }
}
