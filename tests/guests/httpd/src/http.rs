// SPDX-License-Identifier: MIT OR Apache-2.0
//! HTTP/1.0 and 1.1 (RFC 9112) without I/O: a connection takes bytes and gives bytes.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;
use httparse::{Error, Header, Request, Status};
use rt::crc::{self, Crc};

/// Most bytes of a request's line and headers, and most headers.
pub const MAX_HEAD: usize = 4096;
const MAX_HEADERS: usize = 32;
/// Most bytes of a request's body.
pub const MAX_BODY: u64 = 1 << 32;
/// Most bytes of `/bytes/N`.
pub const MAX_BYTES: u64 = 1 << 40;

/// What is served.
pub struct Site {
    /// What the guest is.
    pub about: String,
    /// How long it has run, in milliseconds.
    pub up_ms: u64,
    /// Requests that were answered.
    pub served: u64,
    /// Whether `/stall` is there.
    pub stall: bool,
    /// It was asked to stall.
    pub stalled: bool,
}

/// One client's connection.
#[derive(Default)]
pub struct Connection {
    stage: Stage,
    /// A request's line and headers as far as they have come.
    head: Vec<u8>,
}

#[derive(Default)]
enum Stage {
    /// A request's head is awaited.
    #[default]
    Head,
    /// A body whose sum was asked for.
    Body {
        sum: Crc,
        len: u64,
        left: u64,
        keep: bool,
    },
    /// An answer goes out.
    Answer(Answer),
    /// All was said; whatever comes is thrown away.
    Over,
}

struct Answer {
    text: Vec<u8>,
    /// How much of it has gone.
    at: usize,
    /// Bytes of `/bytes` that follow.
    bytes: Range<u64>,
    then: Then,
}

/// What follows an answer.
enum Then {
    Request,
    /// The body, for which the client waits until it is told to go on.
    Body {
        len: u64,
        keep: bool,
    },
    End,
}

impl Connection {
    /// Takes bytes from the client: how many. It is less than all while an answer goes out.
    pub fn input(&mut self, bytes: &[u8], site: &mut Site) -> usize {
        let mut taken = 0;
        while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
            taken += match &mut self.stage {
                Stage::Head => self.take_head(rest, site),
                Stage::Body {
                    sum,
                    len,
                    left,
                    keep,
                } => {
                    let now = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    sum.add(&rest[..now]);
                    *left -= now as u64;
                    if *left == 0 {
                        let answer = summed(core::mem::take(sum), *len, *keep);
                        self.enter(Stage::Answer(answer), site);
                    }
                    now
                }
                Stage::Answer(_) => break,
                Stage::Over => rest.len(),
            };
        }
        taken
    }

    /// Gives bytes for the client: how many.
    pub fn output(&mut self, room: &mut [u8]) -> usize {
        let mut given = 0;
        while let Stage::Answer(answer) = &mut self.stage {
            let room = room.get_mut(given..).unwrap_or_default();
            let text = answer.text.get(answer.at..).unwrap_or_default();
            if !text.is_empty() {
                let n = text.len().min(room.len());
                room[..n].copy_from_slice(&text[..n]);
                answer.at += n;
                given += n;
            } else if !answer.bytes.is_empty() {
                let left = answer.bytes.end - answer.bytes.start;
                let n = room.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                fill(answer.bytes.start, &mut room[..n]);
                answer.bytes.start += n as u64;
                given += n;
            } else {
                self.stage = match answer.then {
                    Then::Request => Stage::Head,
                    Then::Body { len, keep } => body(len, keep),
                    Then::End => Stage::Over,
                };
                continue;
            }
            if room.len() == given || room.is_empty() {
                break;
            }
        }
        given
    }

    /// Nothing more is said: the connection is to be closed.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    /// An answer goes out.
    pub fn is_answering(&self) -> bool {
        matches!(self.stage, Stage::Answer(_))
    }

    /// A request's head is awaited, or has come in part.
    pub fn awaits_head(&self) -> bool {
        matches!(self.stage, Stage::Head)
    }

    /// The client took too long. Whether there is an answer to that: not when it sent nothing, or does not take what it is sent.
    pub fn too_late(&mut self) -> bool {
        let answer = match self.stage {
            Stage::Head => !self.head.is_empty(),
            Stage::Body { .. } => true,
            Stage::Answer(_) | Stage::Over => false,
        };
        self.stage = if answer {
            Stage::Answer(refusal("408 Request Timeout", ""))
        } else {
            Stage::Over
        };
        answer
    }

    fn enter(&mut self, stage: Stage, site: &mut Site) {
        if let Stage::Answer(answer) = &stage
            && !matches!(answer.then, Then::Body { .. })
        {
            site.served += 1;
        }
        self.stage = stage;
    }

    /// Takes what belongs to a request's head; when that is whole, acts on it.
    fn take_head(&mut self, bytes: &[u8], site: &mut Site) -> usize {
        for (n, byte) in bytes.iter().enumerate() {
            // Empty lines before a request are none of it.
            if self.head.is_empty() && matches!(byte, b'\r' | b'\n') {
                continue;
            }
            self.head.push(*byte);
            if *byte == b'\n' && (self.head.ends_with(b"\n\n") || self.head.ends_with(b"\n\r\n")) {
                let head = core::mem::take(&mut self.head);
                let stage = request(&head, site);
                self.enter(stage, site);
                return n + 1;
            }
            if self.head.len() == MAX_HEAD {
                self.head = Vec::new();
                self.enter(refuse("431 Request Header Fields Too Large", ""), site);
                return n + 1;
            }
        }
        bytes.len()
    }
}

fn body(len: u64, keep: bool) -> Stage {
    let sum = Crc::new();
    if len == 0 {
        return Stage::Answer(summed(sum, len, keep));
    }
    let left = len;
    Stage::Body {
        sum,
        len,
        left,
        keep,
    }
}

/// What a request's headers say.
struct Headers {
    length: Option<u64>,
    keep: bool,
    /// The client waits before it sends the body.
    expects: bool,
}

/// Reads them.
///
/// # Errors
/// The status that says what is wrong.
fn headers(list: &[Header<'_>], version: u8) -> Result<Headers, &'static str> {
    let mut all = Headers {
        length: None,
        keep: version > 0,
        expects: false,
    };
    let mut hosts = 0;
    for Header { name, value } in list {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is("content-length") {
            let text = core::str::from_utf8(value).map_err(|_| "400 Bad Request")?;
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            // Of a number that is too large there is nothing to say but that.
            let length = match text.parse() {
                Ok(length) if digits => length,
                Err(_) if digits => u64::MAX,
                _ => return Err("400 Bad Request"),
            };
            if all.length.is_some_and(|other| other != length) {
                return Err("400 Bad Request");
            }
            all.length = Some(length);
        } else if is("transfer-encoding") {
            return Err("501 Not Implemented");
        } else if is("host") {
            hosts += 1;
        } else if is("expect") {
            if !value.eq_ignore_ascii_case(b"100-continue") {
                return Err("417 Expectation Failed");
            }
            all.expects = version > 0;
        } else if is("connection") {
            for word in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                if word.eq_ignore_ascii_case(b"close") {
                    all.keep = false;
                } else if word.eq_ignore_ascii_case(b"keep-alive") {
                    all.keep = true;
                }
            }
        }
    }
    if hosts > 1 || (version > 0 && hosts == 0) {
        return Err("400 Bad Request");
    }
    Ok(all)
}

/// What comes of a request's head.
fn request(head: &[u8], site: &mut Site) -> Stage {
    let mut list = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = Request::new(&mut list);
    let wrong = match request.parse(head) {
        Ok(Status::Complete(n)) if n == head.len() => None,
        Ok(_) => Some("400 Bad Request"),
        Err(Error::TooManyHeaders) => Some("431 Request Header Fields Too Large"),
        Err(Error::Version) => Some("505 HTTP Version Not Supported"),
        Err(_) => Some("400 Bad Request"),
    };
    let (Some(method), Some(target), Some(version), None) =
        (request.method, request.path, request.version, wrong)
    else {
        return refuse(wrong.unwrap_or("400 Bad Request"), "");
    };
    let Headers {
        length,
        keep,
        expects,
    } = match headers(request.headers, version) {
        Ok(headers) => headers,
        Err(status) => return refuse(status, ""),
    };
    let Some(path) = path(target) else {
        return refuse("400 Bad Request", "");
    };
    if path == "/sum" {
        if !matches!(method, "PUT" | "POST") {
            return refuse("405 Method Not Allowed", "Allow: PUT, POST\r\n");
        }
        let Some(len) = length else {
            return refuse("411 Length Required", "");
        };
        if len > MAX_BODY {
            return refuse("413 Content Too Large", "");
        }
        if expects && len > 0 {
            return Stage::Answer(Answer {
                text: b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(),
                at: 0,
                bytes: 0..0,
                then: Then::Body { len, keep },
            });
        }
        return body(len, keep);
    }
    // A body that nobody asked for is not looked for.
    let keep = keep && length.unwrap_or(0) == 0;
    if path == "/stall" && site.stall {
        if method != "POST" {
            return refuse("405 Method Not Allowed", "Allow: POST\r\n");
        }
        site.stalled = true;
        return Stage::Answer(success(false, "text/plain", "", "stalled\n", 0..0, false));
    }
    let (kind, extra, text, bytes) = if path == "/" {
        ("text/html; charset=utf-8", String::new(), page(site), 0..0)
    } else if let Some(n) = path.strip_prefix("/bytes/") {
        let digits = !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
        let Some(n) = n.parse().ok().filter(|n| digits && *n <= MAX_BYTES) else {
            return refuse("400 Bad Request", "");
        };
        let sum = format!("X-CRC32: {:08x}\r\n", sum_of(n));
        ("application/octet-stream", sum, String::new(), 0..n)
    } else {
        return refuse("404 Not Found", "");
    };
    match method {
        "GET" | "HEAD" => {
            Stage::Answer(success(method == "HEAD", kind, &extra, &text, bytes, keep))
        }
        _ => refuse("405 Method Not Allowed", "Allow: GET, HEAD\r\n"),
    }
}

/// A target's path without its query; `None` when it is no path of a server's.
fn path(target: &str) -> Option<&str> {
    let target = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    };
    let path = target.split('?').next()?;
    path.starts_with('/').then_some(path)
}

/// A refusal, after which the connection ends.
fn refuse(status: &str, extra: &str) -> Stage {
    Stage::Answer(refusal(status, extra))
}

fn refusal(status: &str, extra: &str) -> Answer {
    let len = status.len() + 1;
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len}\r\n{extra}Connection: close\r\n\r\n{status}\n"
    );
    Answer {
        text: text.into_bytes(),
        at: 0,
        bytes: 0..0,
        then: Then::End,
    }
}

/// What was asked for; `head`: without its body, which is `body` or `bytes`.
fn success(
    head: bool,
    kind: &str,
    extra: &str,
    body: &str,
    bytes: Range<u64>,
    keep: bool,
) -> Answer {
    let len = body.len() as u64 + bytes.end;
    let connection = if keep { "keep-alive" } else { "close" };
    let (body, bytes) = if head { ("", 0..0) } else { (body, bytes) };
    let text = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\n{extra}Connection: {connection}\r\n\r\n{body}"
    );
    Answer {
        text: text.into_bytes(),
        at: 0,
        bytes,
        then: if keep { Then::Request } else { Then::End },
    }
}

/// The answer to `/sum`.
fn summed(sum: Crc, len: u64, keep: bool) -> Answer {
    let text = format!("crc32 {:08x} of {len} bytes\n", sum.value());
    success(false, "text/plain", "", &text, 0..0, keep)
}

fn page(site: &Site) -> String {
    let (s, ms) = (site.up_ms / 1000, site.up_ms % 1000);
    format!(
        "<!doctype html>\n<title>httpd on Paravane</title>\n<h1>It works</h1>\n\
         <p>{}</p>\n<p>up {s}.{ms:03} s, {} requests before this one</p>\n",
        site.about, site.served
    )
}

/// After so many bytes `/bytes` begins again. It is odd, so that no two of its pages and no two of a transfer's packets
/// are alike.
const PERIOD: u64 = 65_521;

/// The bytes of `/bytes` from `at` on.
fn fill(at: u64, to: &mut [u8]) {
    let mut n = (at % PERIOD) as u32;
    for byte in to {
        *byte = (n.wrapping_mul(2_654_435_761) >> 24) as u8;
        n += 1;
        if u64::from(n) == PERIOD {
            n = 0;
        }
    }
}

/// The checksum of the first `len` of them. Those of one period are looked at; the others follow from it.
fn sum_of(len: u64) -> u32 {
    let mut buffer = [0; 1024];
    let mut of = |len: u64| {
        let mut sum = Crc::new();
        let mut at = 0;
        while at < len {
            let n = (len - at).min(buffer.len() as u64);
            fill(at, &mut buffer[..n as usize]);
            sum.add(&buffer[..n as usize]);
            at += n;
        }
        sum.value()
    };
    let (mut all, mut times) = (0, len / PERIOD);
    let (mut power, mut bytes) = (of(PERIOD), PERIOD);
    while times > 0 {
        if times & 1 != 0 {
            all = crc::append(all, power, bytes);
        }
        power = crc::append(power, power, bytes);
        bytes *= 2;
        times >>= 1;
    }
    crc::append(all, of(len % PERIOD), len % PERIOD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn site() -> Site {
        Site {
            about: "a test".into(),
            up_ms: 12_034,
            served: 0,
            stall: false,
            stalled: false,
        }
    }

    /// All that a connection says to these bytes, given whole; and whether it ends.
    fn say_to(site: &mut Site, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut c = Connection::default();
        let (mut at, mut said) = (0, Vec::new());
        loop {
            let taken = c.input(&bytes[at..], site);
            let mut room = [0; 777];
            let given = c.output(&mut room);
            at += taken;
            said.extend(&room[..given]);
            if taken + given == 0 {
                assert!(at == bytes.len(), "it takes no more");
                return (said, c.is_over());
            }
        }
    }

    fn text(bytes: &str) -> (String, bool) {
        let (said, over) = say_to(&mut site(), bytes.as_bytes());
        (String::from_utf8(said).unwrap(), over)
    }

    const HOST: &str = "Host: x\r\n\r\n";

    #[test]
    fn pages() {
        let (said, over) = text("GET / HTTP/1.0\r\n\r\n");
        assert!(
            said.starts_with("HTTP/1.1 200 OK\r\n") && said.contains("\r\nConnection: close\r\n")
        );
        assert!(said.contains("<p>a test</p>") && said.contains("up 12.034 s, 0 requests") && over);
        let (head, body) = said.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
        // Without the body; and one after the other, on one connection.
        let two = format!("\r\n\r\nHEAD /?a=b HTTP/1.1\r\n{HOST}GET http://x HTTP/1.1\n{HOST}");
        let (said, over) = text(&two);
        assert_eq!(said.matches("HTTP/1.1 200 OK").count(), 2);
        assert_eq!(said.matches("It works").count(), 1);
        assert!(said.contains("1 requests before") && !over);
        let (_, over) = text(&format!("GET / HTTP/1.1\r\nConnection: x, Close\r\n{HOST}"));
        assert!(over);
    }

    #[test]
    fn bytes_and_their_sums() {
        for n in [0u32, 1, 1000, 65_521, 65_522, 200_000, 300_001] {
            let (said, _) = say_to(
                &mut site(),
                format!("GET /bytes/{n} HTTP/1.0\r\n\r\n").as_bytes(),
            );
            let at = said.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
            let head = core::str::from_utf8(&said[..at]).unwrap();
            let body = &said[at..];
            let expected = (0..n).map(|i| ((i % 65_521).wrapping_mul(2_654_435_761) >> 24) as u8);
            assert!(body.iter().copied().eq(expected));
            let mut crc = Crc::new();
            crc.add(body);
            let crc = crc.value();
            assert!(
                head.contains(&format!("X-CRC32: {crc:08x}\r\n")),
                "{n}: {head}"
            );
            assert!(
                head.contains(&format!("Content-Length: {n}\r\n")),
                "{n}: {head}"
            );
            // And back again.
            for method in ["PUT", "POST"] {
                let mut put =
                    format!("{method} /sum HTTP/1.0\r\nContent-Length: {n}\r\n\r\n").into_bytes();
                put.extend(body);
                let (said, over) = say_to(&mut site(), &put);
                let answer = format!("\r\n\r\ncrc32 {crc:08x} of {n} bytes\n");
                assert!(over && String::from_utf8(said).unwrap().ends_with(&answer));
            }
        }
        // As long as may be: nobody waits for the sum of these.
        let head = text(&format!("HEAD /bytes/{MAX_BYTES} HTTP/1.0\r\n\r\n")).0;
        assert!(head.contains("200 OK") && head.contains("Content-Length: 1099511627776\r\n"));
    }

    #[test]
    fn a_client_that_waits_is_told_to_go_on() {
        let put = format!(
            "PUT /sum HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 5\r\n{HOST}hello"
        );
        let (said, over) = text(&put);
        assert!(said.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n") && !over);
        assert!(said.ends_with("crc32 3610a686 of 5 bytes\n"));
    }

    #[test]
    fn requests_that_are_refused() {
        let long = "x".repeat(5000);
        let many: String = (0..40).map(|n| format!("H{n}: x\r\n")).collect();
        for (request, status) in [
            ("GET /nothing HTTP/1.0\r\n\r\n", "404"),
            ("GET /stall HTTP/1.0\r\n\r\n", "404"),
            ("POST / HTTP/1.0\r\n\r\n", "405"),
            ("BREW / HTTP/1.0\r\n\r\n", "405"),
            ("GET /sum HTTP/1.0\r\n\r\n", "405"),
            ("GET / HTTP/1.1\r\n\r\n", "400"),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"),
            ("GET / HTTP/2.0\r\n\r\n", "505"),
            ("GET /\r\n\r\n", "400"),
            ("GET * HTTP/1.0\r\n\r\n", "400"),
            ("\0\0\0\n\n", "400"),
            ("GET / HTTP/1.0\r\n: x\r\n\r\n", "400"),
            ("GET /bytes/ HTTP/1.0\r\n\r\n", "400"),
            ("GET /bytes/-1 HTTP/1.0\r\n\r\n", "400"),
            ("GET /bytes/+1 HTTP/1.0\r\n\r\n", "400"),
            ("GET /bytes/1099511627777 HTTP/1.0\r\n\r\n", "400"),
            ("GET /bytes/99999999999999999999 HTTP/1.0\r\n\r\n", "400"),
            ("PUT /sum HTTP/1.0\r\n\r\n", "411"),
            (
                "PUT /sum HTTP/1.0\r\nContent-Length: 4294967297\r\n\r\n",
                "413",
            ),
            (
                "PUT /sum HTTP/1.0\r\nContent-Length: 99999999999999999999\r\n\r\n",
                "413",
            ),
            (
                "PUT /sum HTTP/1.0\r\nContent-Length: +5\r\n\r\nhello",
                "400",
            ),
            ("PUT /sum HTTP/1.0\r\nContent-Length: \r\n\r\n", "400"),
            (
                "PUT /sum HTTP/1.0\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
                "400",
            ),
            (
                "PUT /sum HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
                "501",
            ),
            ("PUT /sum HTTP/1.0\r\nExpect: tea\r\n\r\n", "417"),
            (&format!("GET /{long} HTTP/1.0\r\n\r\n"), "431"),
            (&format!("GET / HTTP/1.0\r\n{many}\r\n"), "431"),
        ] {
            let (said, over) = text(request);
            assert!(
                said.starts_with(&format!("HTTP/1.1 {status} ")),
                "{request}: {said}"
            );
            assert!(
                over && said.matches("HTTP/1.1").count() == 1,
                "{request}: {said}"
            );
        }
        // What follows a body that nobody asked for is no request.
        let (said, over) = text(&format!(
            "GET / HTTP/1.1\r\nContent-Length: 20\r\n{HOST}GET / HTTP/1.1\r\n{HOST}"
        ));
        assert!(over && said.matches("HTTP/1.1").count() == 1);
    }

    #[test]
    fn stalling_is_asked_for() {
        let mut site = site();
        site.stall = true;
        say_to(&mut site, b"GET /stall HTTP/1.0\r\n\r\n");
        assert!(!site.stalled);
        let (said, over) = say_to(&mut site, b"POST /stall HTTP/1.0\r\n\r\n");
        assert!(site.stalled && over && said.ends_with(b"stalled\n"));
    }

    #[test]
    fn clients_that_take_too_long() {
        let mut c = Connection::default();
        assert!(c.awaits_head() && !c.too_late() && c.is_over());
        for begun in [
            "GET / HT",
            "PUT /sum HTTP/1.0\r\nContent-Length: 9\r\n\r\nabc",
        ] {
            let mut c = Connection::default();
            c.input(begun.as_bytes(), &mut site());
            assert!(c.too_late());
            let mut room = [0; 200];
            let n = c.output(&mut room);
            assert!(room[..n].starts_with(b"HTTP/1.1 408 ") && c.is_over());
        }
        let mut c = Connection::default();
        c.input(b"GET /bytes/100000 HTTP/1.0\r\n\r\n", &mut site());
        assert!(!c.too_late() && c.is_over());
    }

    proptest! {
        /// Whatever a client sends, in whatever pieces: memory is bounded, and every byte is taken in the end.
        #[test]
        fn hostile_client(
            pieces in prop::collection::vec((prop_oneof![
                prop::collection::vec(any::<u8>(), 0..300),
                "(GET|PUT|HEAD|POST|X) /(sum|bytes/[0-9]{1,5}|stall|)[ ?]HTTP/1\\.[01]\r\n".prop_map(String::into_bytes),
                "(Host|Content-Length|Connection|Expect): ?([0-9]{1,4}|close|100-continue)\r\n".prop_map(String::into_bytes),
                "\r?\n".prop_map(String::into_bytes),
            ], 0usize..300), 0..40),
        ) {
            let (mut site, mut c) = (site(), Connection::default());
            site.stall = true;
            for (bytes, room) in pieces {
                let mut room = vec![0; room];
                let mut at = 0;
                for _ in 0..400 {
                    let taken = c.input(&bytes[at..], &mut site);
                    at += taken;
                    prop_assert!(c.head.len() < MAX_HEAD);
                    let given = c.output(&mut room);
                    prop_assert!(given <= room.len());
                    if taken + given == 0 {
                        break;
                    }
                }
                prop_assert!(at == bytes.len() || room.is_empty() || c.is_answering());
            }
        }
    }
}
