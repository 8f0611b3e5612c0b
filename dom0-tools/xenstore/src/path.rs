// SPDX-License-Identifier: MIT OR Apache-2.0
//! Paths: which are valid, and how they hang together.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use guest_abi::io::xs_wire::{ABS_PATH_MAX, REL_PATH_MAX};
use guest_abi::{DomId, Errno};

use crate::perm::parse_domid;

/// The special path whose watches fire when a domain is introduced.
pub(crate) const INTRODUCE: &str = "@introduceDomain";
/// The special path whose watches fire when a domain shuts down or goes.
pub(crate) const RELEASE: &str = "@releaseDomain";

/// A domain's home, `/local/domain/<id>`.
pub(crate) fn home(domid: DomId) -> String {
    format!("/local/domain/{domid}")
}

/// The absolute path that a client of `domid` means by `raw`; `EINVAL` if it is no valid path of a node.
pub(crate) fn canonical(domid: DomId, raw: &[u8]) -> Result<Arc<str>, Errno> {
    let text = core::str::from_utf8(raw).map_err(|_| Errno::EINVAL)?;
    if text == "/" {
        return Ok(text.into());
    }
    let absolute = text.starts_with('/');
    // An absolute path below a domain's home may be longer by that.
    let limit = (home_len(text) + REL_PATH_MAX).min(ABS_PATH_MAX);
    let names = text.strip_prefix('/').unwrap_or(text);
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'@');
    let valid = text.len() <= limit
        && !text.starts_with('@')
        && names
            .split('/')
            .all(|n| !n.is_empty() && n.bytes().all(good));
    if !valid {
        return Err(Errno::EINVAL);
    }
    if absolute {
        Ok(text.into())
    } else {
        Ok(format!("{}/{text}", home(domid)).into())
    }
}

/// How many bytes of an absolute path name a domain's home, its slash included; 0 if it is not below one.
fn home_len(text: &str) -> usize {
    let below = text.strip_prefix("/local/domain/");
    match below.and_then(|rest| rest.split_once('/')) {
        Some((domid, rest)) if parse_domid(domid.as_bytes()).is_some() => text.len() - rest.len(),
        _ => 0,
    }
}

/// Whether `raw` can name a special event: `@`, and letters if any.
pub(crate) fn special(raw: &[u8]) -> Option<Arc<str>> {
    let text = core::str::from_utf8(raw).ok()?;
    let name = text.strip_prefix('@')?;
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'/');
    (text.len() <= REL_PATH_MAX && name.bytes().all(good)).then(|| text.into())
}

/// The path of the node above; `None` for `/` and for a special path.
pub(crate) fn parent(path: &str) -> Option<&str> {
    match path.rfind('/') {
        Some(0) if path.len() > 1 => Some("/"),
        Some(0) | None => None,
        Some(_) if path.starts_with('@') => None,
        Some(at) => path.get(..at),
    }
}

/// The last component.
pub(crate) fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The path of child `name` of `parent`.
pub(crate) fn child(parent: &str, name: &str) -> String {
    if parent == "/" {
        format!("/{name}")
    } else {
        format!("{parent}/{name}")
    }
}

/// Components of an absolute path: 0 for `/`.
pub(crate) fn depth(path: &str) -> usize {
    if path == "/" {
        0
    } else {
        path.bytes().filter(|b| *b == b'/').count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_paths() {
        let ok = |p: &str| canonical(DomId(3), p.as_bytes()).map(|s| s.to_string());
        assert_eq!(ok("/"), Ok("/".into()));
        assert_eq!(ok("/a-b/_c@d/0"), Ok("/a-b/_c@d/0".into()));
        assert_eq!(ok("x/y"), Ok("/local/domain/3/x/y".into()));
        for bad in [
            "", "//", "/a/", "/a//b", "a/", "/a b", "/a\u{e9}", "/a.b", "@x", "/a\0",
        ] {
            assert_eq!(ok(bad), Err(Errno::EINVAL), "{bad:?}");
        }
        assert_eq!(canonical(DomId(0), &[b'/', 0xff]), Err(Errno::EINVAL));
        for (head, most) in [
            ("/", 2048),
            ("/local/domain/7/", 2064),
            ("/local/domain/x/", 2048),
        ] {
            assert!(ok(&format!("{head}{}", "a".repeat(most - head.len()))).is_ok());
            assert!(ok(&format!("{head}{}", "a".repeat(most + 1 - head.len()))).is_err());
        }
        assert!(ok(&"a".repeat(2048)).is_ok());
        assert!(ok(&"a".repeat(2049)).is_err());
    }

    #[test]
    fn relations() {
        assert_eq!(parent("/a/b"), Some("/a"));
        assert_eq!(parent("/a"), Some("/"));
        assert_eq!(parent("/"), None);
        assert_eq!(parent(RELEASE), None);
        assert_eq!(name("/a/b"), "b");
        assert_eq!(child("/", "a"), "/a");
        assert_eq!(child("/a", "b"), "/a/b");
        assert_eq!((depth("/"), depth("/a"), depth("/a/b")), (0, 1, 2));
        assert_eq!(special(b"@releaseDomain").as_deref(), Some(RELEASE));
        assert!(special(b"@").is_some() && special(b"@a b").is_none());
    }
}
