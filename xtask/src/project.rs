// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the project's folders are.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};

/// The bare-metal target of the hypervisor, dom0 and the Rust guests.
pub const TARGET: &str = "aarch64-unknown-none-softfloat";

/// The project's root, and the cache that holds everything set-up and runs make.
pub struct Project {
    /// The folder of the workspace's `Cargo.toml`.
    pub root: PathBuf,
    cache: PathBuf,
}

impl Project {
    /// Finds the project from this crate's own place; `PARAVANE_CACHE` moves the cache.
    pub fn find() -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest
            .parent()
            .context("xtask has no parent folder")?
            .to_path_buf();
        let cache = env::var_os("PARAVANE_CACHE").map_or_else(|| root.join("cache"), PathBuf::from);
        fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
        writable(&cache)?;
        let cache = cache
            .canonicalize()
            .with_context(|| format!("cannot use {}", cache.display()))?;
        Ok(Self { root, cache })
    }

    /// A folder in the cache, made if it is not there.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.cache.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// A path in the cache, which may not exist.
    pub fn path(&self, name: &str) -> PathBuf {
        self.cache.join(name)
    }

    /// A path as the user sees it: relative to the project where it is inside.
    pub fn show<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }
}

/// Fails, in one line, where the folder cannot be written: the checkout is somebody else's then.
fn writable(cache: &Path) -> Result<()> {
    if rustix::fs::access(
        cache,
        rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
    )
    .is_ok()
    {
        return Ok(());
    }
    let owner = fs::metadata(cache)?.uid();
    anyhow::bail!(
        "{} belongs to the user with number {owner}, and you cannot write there: make a checkout of your own, or set \
         PARAVANE_CACHE and CARGO_TARGET_DIR to folders of yours",
        cache.display()
    )
}

/// What tells whether a file changed without reading it: size in bytes and modification time in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    pub size: u64,
    pub mtime: u128,
}

impl Fingerprint {
    /// Of the file at `path`.
    pub fn of(path: &Path) -> Result<Self> {
        let meta = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mtime = meta
            .modified()?
            .duration_since(UNIX_EPOCH)
            .map_or(0, |t| t.as_nanos());
        Ok(Self {
            size: meta.len(),
            mtime,
        })
    }
}

/// Writes a file whole or not at all: to a temporary name beside it, then renamed.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = temporary_beside(path);
    fs::write(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// A name in the same folder as `path`, so that a rename to `path` stays on one file system.
pub fn temporary_beside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".paravane-tmp");
    path.with_file_name(name)
}

/// A file's content; the error names it.
pub fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}
