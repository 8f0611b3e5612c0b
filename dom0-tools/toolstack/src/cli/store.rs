// SPDX-License-Identifier: MIT OR Apache-2.0
//! The verbs on xenstore.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde_json::{Map, Value, json};

use super::verbs::Command;
use crate::error::{Context, Result, fail};
use crate::host::{Errno, Host, Output};
use crate::life::Toolstack;
use crate::race::{First, first};
use crate::text;

/// Nodes shown at once before others may run.
const SLICE: usize = 64;
/// Deeper nodes are not shown.
const MAX_DEPTH: usize = 64;

/// A path as xenstore wants it: relative ones are dom0's, no slash at the end.
fn path(word: &str) -> Result<String> {
    let word = match word.len() {
        0 | 1 => word,
        _ => word.strip_suffix('/').unwrap_or(word),
    };
    if word.is_empty() || word.contains("//") || word.contains('\0') {
        return fail!("\"{word}\" is no path; write for instance /local/domain");
    }
    Ok(match word.starts_with(['/', '@']) {
        true => word.to_owned(),
        false => format!("/local/domain/0/{word}"),
    })
}

/// A value with what cannot be shown written as C would.
fn shown(value: &[u8]) -> String {
    let mut out = String::new();
    for chunk in value.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => out.extend(['\\', c]),
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '\r' => out.push_str("\\r"),
                c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

fn child(path: &str, name: &str) -> String {
    format!("{}/{name}", path.trim_end_matches('/'))
}

/// A node's own part of the path.
fn leaf(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn perms<H: Host>(t: &Toolstack<H>, path: &str) -> String {
    let perms = t.host().xs_get_perms(path).unwrap_or_default();
    let parts: Vec<String> = perms
        .iter()
        .map(|p| format!("{}{}", p.letter(), p.dom))
        .collect();
    parts.join(",")
}

/// `xenstore-ls`.
pub(super) async fn ls<H: Host>(
    t: &Toolstack<H>,
    c: &Command,
    out: &mut impl Output,
) -> Result<()> {
    let top = path(c.words.first().map_or("/", String::as_str))?;
    t.host().xs_list(&top).during(&top)?;
    if c.has("json") {
        let mut all = Map::new();
        let mut stack = alloc::vec![(top, 0)];
        while let Some((path, depth)) = stack.pop() {
            if let Ok(value) = t.host().xs_read(&path) {
                let text = String::from_utf8_lossy(&value).into_owned();
                all.insert(
                    path.clone(),
                    json!({ "value": text, "perms": perms(t, &path) }),
                );
            }
            push_children(t, &mut stack, &path, depth);
        }
        out.write(&format!("{}\n", super::show::pretty(&Value::Object(all))));
        return Ok(());
    }
    let mut stack = Vec::new();
    push_children(t, &mut stack, &top, 0);
    let mut count = 0;
    while let Some((path, depth)) = stack.pop() {
        // It may have gone since its parent was listed.
        let Ok(value) = t.host().xs_read(&path) else {
            continue;
        };
        let name = match c.has("full") {
            true => path.clone(),
            false => format!("{:1$}{2}", "", depth - 1, leaf(&path)),
        };
        let perms = match c.has("perms") {
            true => format!("   ({})", perms(t, &path)),
            false => String::new(),
        };
        out.write(&format!("{name} = \"{}\"{perms}\n", shown(&value)));
        push_children(t, &mut stack, &path, depth);
        count += 1;
        if count % SLICE == 0 {
            out.flush().await;
            t.host().pause_point().await;
        }
    }
    Ok(())
}

fn push_children<H: Host>(
    t: &Toolstack<H>,
    stack: &mut Vec<(String, usize)>,
    path: &str,
    depth: usize,
) {
    if depth < MAX_DEPTH {
        let names = t.host().xs_list(path).unwrap_or_default();
        stack.extend(names.iter().rev().map(|n| (child(path, n), depth + 1)));
    }
}

/// `xenstore-read`.
pub(super) fn read<H: Host>(t: &Toolstack<H>, c: &Command, out: &mut impl Output) -> Result<()> {
    let mut all = Map::new();
    for word in &c.words {
        let path = path(word)?;
        let value = t.host().xs_read(&path).during(&path)?;
        if c.has("json") {
            all.insert(path, Value::String(shown(&value)));
            continue;
        }
        let prefix = if c.has("prefix") {
            format!("{path}: ")
        } else {
            String::new()
        };
        out.write(&format!("{prefix}{}\n", shown(&value)));
    }
    if c.has("json") {
        out.write(&format!("{}\n", super::show::pretty(&Value::Object(all))));
    }
    Ok(())
}

/// `xenstore-write`.
pub(super) fn write<H: Host>(t: &Toolstack<H>, c: &Command) -> Result<()> {
    if !c.words.len().is_multiple_of(2) {
        return fail!(
            "\"{}\" has no value; write PATH VALUE pairs",
            c.word(c.words.len() - 1)
        );
    }
    for pair in c.words.chunks(2) {
        if let [word, value] = pair {
            let path = path(word)?;
            t.host().xs_write(&path, value.as_bytes()).during(&path)?;
        }
    }
    Ok(())
}

/// `xenstore-rm`.
pub(super) fn rm<H: Host>(t: &Toolstack<H>, c: &Command) -> Result<()> {
    for word in &c.words {
        let path = path(word)?;
        t.host().xs_rm(&path).during(&path)?;
    }
    Ok(())
}

/// `xenstore-list`.
pub(super) fn list<H: Host>(t: &Toolstack<H>, c: &Command, out: &mut impl Output) -> Result<()> {
    let mut all = Vec::new();
    for word in &c.words {
        let path = path(word)?;
        for name in t.host().xs_list(&path).during(&path)? {
            match (c.has("json"), c.has("prefix")) {
                (true, _) => all.push(Value::String(child(&path, &name))),
                (_, true) => out.write(&format!("{}\n", child(&path, &name))),
                _ => out.write(&format!("{name}\n")),
            }
        }
    }
    if c.has("json") {
        out.write(&format!("{}\n", super::show::pretty(&Value::Array(all))));
    }
    Ok(())
}

/// `xenstore-watch`.
pub(super) async fn watch<H: Host>(
    t: &Toolstack<H>,
    c: &Command,
    out: &mut impl Output,
) -> Result<()> {
    let path = path(c.word(0))?;
    let mut left = match c.value("number") {
        None => None,
        Some(n) => match text::number(n) {
            Some(n) => Some(n),
            None => return fail!("\"{n}\" is no number of changes"),
        },
    };
    let mut watch = t.host().xs_watch(&path).during(&path)?;
    while left != Some(0) {
        match first(t.host().xs_next(&mut watch, None), out.interrupted()).await {
            First::A(Some(changed)) => {
                if c.has("json") {
                    let value = t.host().xs_read(&changed).ok().map(|v| shown(&v));
                    out.write(&format!("{}\n", json!({ "path": changed, "value": value })));
                    out.flush().await;
                    left = left.map(|n| n - 1);
                    continue;
                }
                let value = match t.host().xs_read(&changed) {
                    Ok(value) => format!(" = \"{}\"", shown(&value)),
                    Err(Errno::ENOENT) if changed.starts_with('@') => String::new(),
                    Err(e) => format!(" ({e})"),
                };
                out.write(&format!("{changed}{value}\n"));
                out.flush().await;
                left = left.map(|n| n - 1);
            }
            First::A(None) => return fail!("{path}: the watch has ended"),
            First::B(()) => return Ok(()),
        }
    }
    Ok(())
}
