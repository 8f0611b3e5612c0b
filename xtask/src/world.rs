// SPDX-License-Identifier: MIT OR Apache-2.0
//! The world that a machine's network leads to, for tests: servers on this host's loopback interface, on ports that
//! the host chooses, and a client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// How long a peer may be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// The most bytes of a request's head.
const MAX_HEAD: u64 = 8 << 10;
/// The most bytes of a frame.
const MAX_FRAME: u32 = 70_000;
/// The most bytes of an answer.
const MAX_ANSWER: u64 = 64 << 20;

/// A file as its path and contents.
pub type File = (String, Vec<u8>);

/// Serves files by HTTP until this process ends; the port.
pub fn serve_files(files: Vec<File>) -> Result<u16> {
    serve_files_at(Ipv4Addr::LOCALHOST, files)
}

/// The same at another of this host's addresses.
pub fn serve_files_at(address: Ipv4Addr, files: Vec<File>) -> Result<u16> {
    let file = move |path: &str| {
        let found = files.iter().find(|(name, _)| name == path);
        found.map(|(_, content)| content.clone())
    };
    serve(address, move |stream| answer(stream, &file))
}

/// Lets `each` have every connection until this process ends; the port.
fn serve(
    address: Ipv4Addr,
    each: impl Fn(&TcpStream) -> Result<()> + Send + Sync + 'static,
) -> Result<u16> {
    let listener = TcpListener::bind((address, 0))?;
    let port = listener.local_addr()?.port();
    let each = Arc::new(each);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let each = each.clone();
            thread::spawn(move || each(&stream));
        }
    });
    Ok(port)
}

/// Takes whatever comes until this process ends; the port.
pub fn serve_sink() -> Result<u16> {
    serve(Ipv4Addr::LOCALHOST, |mut stream| {
        stream.set_read_timeout(Some(SILENCE))?;
        std::io::copy(&mut stream, &mut std::io::sink())?;
        Ok(())
    })
}

/// The instructions that a QEMU with `-icount` has executed, without the time in which it had none to execute.
#[derive(Clone, Copy)]
pub struct Counter {
    /// The port that QEMU's `-qmp` is to connect to.
    pub monitor: u16,
    /// The port of the figure by HTTP.
    port: u16,
}

/// Waits for a QEMU, and serves what it counts until this process ends.
pub fn serve_counter() -> Result<Counter> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let monitor = listener.local_addr()?.port();
    let connected = Mutex::new(None);
    let count = move |path: &str| {
        let mut connected = connected.lock().ok().filter(|_| path == "/instructions")?;
        if connected.is_none() {
            *connected = Some(BufReader::new(listener.accept().ok()?.0));
            command(connected.as_mut()?, "qmp_capabilities").ok()?;
        }
        let counted = command(connected.as_mut()?, "query-replay").ok()?;
        Some(counted["icount"].as_u64()?.to_string().into_bytes())
    };
    let port = serve(Ipv4Addr::LOCALHOST, move |stream| answer(stream, &count))?;
    Ok(Counter { monitor, port })
}

/// Has QEMU's monitor do a command without arguments; what that returns.
fn command(monitor: &mut BufReader<TcpStream>, command: &str) -> Result<Value> {
    writeln!(monitor.get_ref(), "{{\"execute\": \"{command}\"}}")?;
    loop {
        let mut line = String::new();
        ensure!(monitor.read_line(&mut line)? > 0, "QEMU is gone");
        let said: Value = serde_json::from_str(&line)?;
        ensure!(said.get("error").is_none(), "QEMU says {line}");
        // The others are its greeting and events.
        if let Some(value) = said.get("return") {
            return Ok(value.clone());
        }
    }
}

impl Counter {
    pub fn read(self) -> Result<u64> {
        Ok(String::from_utf8(fetch(self.port, "/instructions")?)?.parse()?)
    }

    /// Where those in QEMU's own network read it.
    pub fn url(self) -> String {
        format!("http://10.0.2.2:{}/instructions", self.port)
    }
}

/// Answers a request for a file, which may come to be by the request.
fn answer(mut stream: &TcpStream, file: &impl Fn(&str) -> Option<Vec<u8>>) -> Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut head = Vec::new();
    for byte in BufReader::new(stream.take(MAX_HEAD)).bytes() {
        head.push(byte?);
        if head.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    let head = String::from_utf8(head)?;
    let path = head.split(' ').nth(1).unwrap_or_default();
    match file(path) {
        Some(content) => {
            let size = content.len();
            write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {size}\r\n\r\n")?;
            stream.write_all(&content)?;
        }
        None => write!(stream, "HTTP/1.0 404 Not Found\r\n\r\n")?,
    }
    Ok(())
}

/// What an HTTP server on this host's loopback interface gives for a path.
pub fn fetch(port: u16, path: &str) -> Result<Vec<u8>> {
    fetch_from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), path)
}

/// The same of a server elsewhere.
pub fn fetch_from(server: SocketAddrV4, path: &str) -> Result<Vec<u8>> {
    ask(server, path, &format!("GET {path} HTTP/1.0\r\n"), &[])
}

/// What it answers to what is sent to a path.
pub fn post(port: u16, path: &str, content: &[u8]) -> Result<Vec<u8>> {
    let len = content.len();
    let head = format!("POST {path} HTTP/1.0\r\nContent-Length: {len}\r\n");
    let server = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    ask(server, path, &head, content)
}

fn ask(server: SocketAddrV4, path: &str, head: &str, content: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    write!(stream, "{head}Host: localhost\r\n\r\n")?;
    stream.write_all(content)?;
    let mut all = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut all)?;
    let end = all.windows(4).position(|w| w == b"\r\n\r\n");
    let content = all.split_off(end.with_context(|| format!("{path}: an answer without end"))? + 4);
    let head = String::from_utf8_lossy(&all).into_owned();
    ensure!(
        head.split(' ').nth(1) == Some("200"),
        "{path}: the server says {head:?}"
    );
    Ok(content)
}

/// Answers questions for the IPv4 address of a name until this process ends; the port.
pub fn serve_name(name: &str, address: Ipv4Addr) -> Result<u16> {
    serve_name_at(Ipv4Addr::LOCALHOST, name, address)
}

/// The same at another of this host's addresses.
pub fn serve_name_at(own: Ipv4Addr, name: &str, address: Ipv4Addr) -> Result<u16> {
    let socket = UdpSocket::bind((own, 0))?;
    let port = socket.local_addr()?.port();
    // As it stands in messages: each part with its length before it, and an empty one at the end.
    let name: Vec<u8> = name
        .split('.')
        .chain([""])
        .flat_map(|part| std::iter::once(part.len() as u8).chain(part.bytes()))
        .collect();
    thread::spawn(move || {
        let mut message = [0; 512];
        while let Ok((len, peer)) = socket.recv_from(&mut message) {
            if let Some(answer) = answer_name(&message[..len], &name, address) {
                let _ = socket.send_to(&answer, peer);
            }
        }
    });
    Ok(port)
}

/// The answer to a question (RFC 1035, section 4): the address, nothing for other types, an error for other names.
fn answer_name(question: &[u8], name: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let id = question.get(..2)?;
    let rest = question.get(HEADER..)?;
    // The root's empty part ends the name; type and class follow.
    let end = rest.iter().position(|byte| *byte == 0)? + 1;
    let asked = rest.get(..end + 4)?;
    let known = asked[..end].eq_ignore_ascii_case(name);
    let found = known && asked[end..] == [0, 1, 0, 1];
    let mut answer = id.to_vec();
    answer.extend([0x84, if known { 0 } else { 3 }]);
    answer.extend([0, 1, 0, u8::from(found), 0, 0, 0, 0]);
    answer.extend(asked);
    if found {
        answer.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

/// The other end of a machine's wire (QEMU's `socket,connect`): frames go over a TCP connection, each with its length
/// before it in four bytes, the highest first.
pub struct Wire {
    stream: TcpStream,
    received: Receiver<Vec<u8>>,
}

impl Wire {
    /// Waits for a machine on a port, which is given; the wire when there is one.
    pub fn wait() -> Result<(u16, thread::JoinHandle<Result<Self>>)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let wire = thread::spawn(move || {
            let (stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            stream.set_write_timeout(Some(SILENCE))?;
            let mut from = BufReader::new(stream.try_clone()?);
            let (sender, received) = mpsc::channel();
            thread::spawn(move || -> Result<()> {
                loop {
                    let mut len = [0; 4];
                    from.read_exact(&mut len)?;
                    let len = u32::from_be_bytes(len);
                    ensure!(len <= MAX_FRAME, "a frame of {len} bytes");
                    let mut frame = vec![0; len as usize];
                    from.read_exact(&mut frame)?;
                    sender.send(frame)?;
                }
            });
            Ok(Self { stream, received })
        });
        Ok((port, wire))
    }

    /// Sends a frame.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        let len = u32::try_from(frame.len())?.to_be_bytes();
        Ok(self.stream.write_all(&[&len[..], frame].concat())?)
    }

    /// Waits for the next frame of which `what` tells something; others are dropped.
    pub fn expect<T>(&mut self, timeout: Duration, what: impl Fn(&[u8]) -> Option<T>) -> Result<T> {
        let until = Instant::now() + timeout;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let frame = self.received.recv_timeout(left);
            if let Some(told) = what(&frame.context("no such frame came")?) {
                return Ok(told);
            }
        }
    }
}

/// A TCP port of the loopback interface that is free just now.
pub fn free_port() -> Result<SocketAddrV4> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()? {
        std::net::SocketAddr::V4(place) => Ok(place),
        std::net::SocketAddr::V6(_) => bail!("no IPv4"),
    }
}

/// Bytes that look random and are the same each time (xorshift).
pub fn bytes(mut seed: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        out.extend(seed.to_le_bytes());
    }
    out.truncate(len);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_served_and_fetched() {
        let file = bytes(1, 100_000);
        let port = serve_files(vec![("/a".into(), file.clone())]).unwrap();
        assert_eq!(fetch(port, "/a").unwrap(), file);
        assert!(fetch(port, "/b").unwrap_err().to_string().contains("404"));
    }

    #[test]
    fn instructions_are_served() {
        let counter = serve_counter().unwrap();
        let monitor = TcpStream::connect((Ipv4Addr::LOCALHOST, counter.monitor)).unwrap();
        // Plays QEMU.
        thread::spawn(move || {
            let mut out = &monitor;
            out.write_all(b"{\"QMP\": {}}\n").unwrap();
            for line in BufReader::new(&monitor).lines() {
                let said: &[u8] = match line.unwrap().contains("query-replay") {
                    true => b"{\"event\": \"STOP\"}\n{\"return\": {\"icount\": 77}}\n",
                    false => b"{\"return\": {}}\n",
                };
                out.write_all(said).unwrap();
            }
        });
        assert_eq!(counter.read().unwrap(), 77);
        assert_eq!(counter.read().unwrap(), 77);
        assert!(fetch(counter.port, "/other").is_err());
    }

    #[test]
    fn names_are_answered() {
        let port = serve_name("world.test", Ipv4Addr::new(10, 0, 2, 2)).unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        let ask = |name: &[u8], kind| {
            let mut message = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            message.extend(name);
            message.extend([0, kind, 0, 1]);
            socket
                .send_to(&message, (Ipv4Addr::LOCALHOST, port))
                .unwrap();
            let mut answer = [0; 512];
            let len = socket.recv(&mut answer).unwrap();
            answer[..len].to_vec()
        };
        let found = ask(b"\x05World\x04test\0", 1);
        assert_eq!((&found[..4], found[7]), (&[7, 9, 0x84, 0][..], 1));
        assert!(found.ends_with(&[0, 4, 10, 0, 2, 2]));
        assert_eq!(ask(b"\x05world\x04test\0", 28)[7], 0);
        assert_eq!(ask(b"\x05world\0", 1)[3], 3);
    }
}
