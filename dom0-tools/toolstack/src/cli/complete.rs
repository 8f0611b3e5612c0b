// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the word before the cursor may become.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::GUESTS;
use super::verbs::{self, VERBS, Verb, Word};
use crate::editor::Completion;
use crate::host::{DomId, Host};
use crate::life::Toolstack;

/// Finds completions of a line up to the cursor: verbs, options, names of domains, files, nodes of
/// xenstore.
pub async fn complete<H: Host>(tools: &Toolstack<H>, line: &str) -> Completion {
    let Ok(mut words) = verbs::split(line) else {
        return Completion::default();
    };
    let typed = match line.ends_with(char::is_whitespace) || words.is_empty() {
        true => String::new(),
        false => words.pop().unwrap_or_default(),
    };
    // A word with quotes in it is not what the line shows.
    if !line.ends_with(&typed) {
        return Completion::default();
    }
    let mut words = words
        .iter()
        .map(String::as_str)
        .skip_while(|w| matches!(*w, "vane" | "xl"));
    let mut candidates = match words.next() {
        None => VERBS.iter().map(|v| v.name.to_owned()).collect(),
        Some(name) => match verbs::find(name) {
            None => Vec::new(),
            Some(verb) if typed.starts_with('-') => options(verb),
            Some(verb) => {
                let before: Vec<&str> = words.filter(|w| !w.starts_with('-')).collect();
                arguments(tools, verb, &before, &typed).await
            }
        },
    };
    candidates.retain(|c| c.starts_with(&typed));
    candidates.sort();
    candidates.dedup();
    Completion {
        typed: typed.chars().count(),
        candidates,
    }
}

fn options(verb: &Verb) -> Vec<String> {
    let short = verb
        .options
        .iter()
        .filter_map(|o| o.short)
        .map(|c| format!("-{c}"));
    let long = verbs::options(verb).map(|o| format!("--{}", o.long));
    short.chain(long).chain(["--help".to_owned()]).collect()
}

async fn arguments<H: Host>(
    tools: &Toolstack<H>,
    verb: &Verb,
    before: &[&str],
    typed: &str,
) -> Vec<String> {
    if before.len() >= verb.count.1 {
        return Vec::new();
    }
    match verb.words.get(before.len()).or(verb.words.last()) {
        None | Some(Word::Other) => Vec::new(),
        Some(Word::Verb) => VERBS.iter().map(|v| v.name.to_owned()).collect(),
        Some(Word::Domain) => domains(tools, true),
        Some(Word::Guest) => domains(tools, false),
        Some(Word::Disk) => {
            let guest = before.first().and_then(|g| tools.find_guest(g).ok());
            let blocks = guest.map(|g| tools.blocks(g.dom)).unwrap_or_default();
            blocks.into_iter().map(|b| b.name).collect()
        }
        Some(Word::Vif) => {
            let guest = before.first().and_then(|g| tools.find_guest(g).ok());
            let vifs = guest.map(|g| tools.vifs(g.dom)).unwrap_or_default();
            vifs.into_iter().map(|v| v.devid.to_string()).collect()
        }
        Some(Word::Node) => {
            let parent = typed.rsplit_once('/').map_or("", |(parent, _)| parent);
            let listed = if parent.is_empty() { "/" } else { parent };
            let names = tools.host().xs_list(listed).unwrap_or_default();
            let full = |n: &String| format!("{parent}/{n}");
            let more = |p: String| match tools.host().xs_list(&p) {
                Ok(below) if !below.is_empty() => format!("{p}/"),
                _ => p,
            };
            names.iter().map(full).map(more).collect()
        }
        Some(Word::File) => files(tools, typed).await,
    }
}

fn domains<H: Host>(tools: &Toolstack<H>, all: bool) -> Vec<String> {
    let list = tools.host().domain_list().unwrap_or_default();
    let wanted = list.iter().filter(|i| all || i.dom != DomId(0));
    wanted.filter_map(|i| tools.name_of(i.dom)).collect()
}

/// Files of a folder, or configurations of `/guests` where no folder is named.
async fn files<H: Host>(tools: &Toolstack<H>, typed: &str) -> Vec<String> {
    let Some((parent, _)) = typed.rsplit_once('/') else {
        let entries = tools.host().list_dir(GUESTS).await.unwrap_or_default();
        let names = entries
            .iter()
            .filter(|e| !e.dir && e.name.ends_with(".cfg"));
        return names.map(|e| e.name.to_string()).collect();
    };
    let listed = if parent.is_empty() { "/" } else { parent };
    let entries = tools.host().list_dir(listed).await.unwrap_or_default();
    let full = |name: &str, dir: bool| format!("{parent}/{name}{}", if dir { "/" } else { "" });
    entries.iter().map(|e| full(&e.name, e.dir)).collect()
}
