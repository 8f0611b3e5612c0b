// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian 12's packages: installed where the host needs them, unpacked into the cache where only a guest does.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{output, which, with_download_bar, with_spinner};
use crate::project::Project;

/// The suite that newer packages for Debian 12 come from.
pub const BACKPORTS: &str = "bookworm-backports";
const BACKPORTS_FILE: &str = "/etc/apt/sources.list.d/paravane-backports.sources";

/// The suites that Debian 12 itself consists of.
const SUITES: &[&str] = &["bookworm", "bookworm-updates", "bookworm-security"];

/// Package management on a Debian 12 machine.
pub struct Apt {
    updated: Cell<bool>,
}

/// One version of a package, as `apt-cache show` has it.
pub struct Version {
    pub version: String,
    pub depends: String,
    pub size: u64,
}

/// An entry of apt's sources.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    signed_by: Option<String>,
}

impl Apt {
    /// On Debian 12 only.
    pub fn find() -> Option<Self> {
        let release = fs::read_to_string("/etc/os-release").ok()?;
        let value = |key: &str| {
            release
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .map(|v| v.trim_matches('"'))
        };
        (value("ID") == Some("debian") && value("VERSION_ID") == Some("12")).then(|| Self {
            updated: Cell::new(false),
        })
    }

    /// Fails early, and clearly, when packages are to be installed and cannot be from this account.
    pub fn require_root(&self, needed: bool) -> Result<()> {
        if needed {
            root("true").map(drop)
        } else {
            Ok(())
        }
    }

    /// Whether some source has [`BACKPORTS`].
    pub fn has_backports(&self) -> bool {
        sources()
            .iter()
            .any(|source| source.suites.iter().any(|suite| suite == BACKPORTS))
    }

    /// What [`Apt::add_backports`] will do, in words.
    pub fn backports_plan(&self) -> String {
        let uris = backports_source()
            .map(|source| source.uris.join(" "))
            .unwrap_or_default();
        format!("apt source {BACKPORTS_FILE} ({uris} {BACKPORTS} main)")
    }

    /// Adds a source for [`BACKPORTS`] from the mirror and with the key that the machine already uses for Debian 12.
    pub fn add_backports(&self) -> Result<()> {
        let source = backports_source()?;
        let key = source
            .signed_by
            .map_or(String::new(), |key| format!("Signed-By: {key}\n"));
        let text = format!(
            "# Written by Paravane's `cargo xtask setup`.\nTypes: deb\nURIs: {}\nSuites: {BACKPORTS}\nComponents: main\n{key}",
            source.uris.join(" ")
        );
        let temporary =
            std::env::temp_dir().join(format!("paravane-backports-{}", std::process::id()));
        fs::write(&temporary, text)?;
        let copied = output(
            root("install")?
                .args(["-m", "644"])
                .arg(&temporary)
                .arg(BACKPORTS_FILE),
        );
        fs::remove_file(&temporary)?;
        copied.context("cannot add the apt source")?;
        self.update()
    }

    /// Whether apt knows arm64 packages on this machine.
    pub fn has_arm64(&self) -> bool {
        let own = output(Command::new("dpkg").arg("--print-architecture")).unwrap_or_default();
        let foreign =
            output(Command::new("dpkg").arg("--print-foreign-architectures")).unwrap_or_default();
        own.lines()
            .chain(foreign.lines())
            .any(|name| name == "arm64")
    }

    /// Lets apt know arm64 packages.
    pub fn add_arm64(&self) -> Result<()> {
        output(root("dpkg")?.args(["--add-architecture", "arm64"]))?;
        self.update()
    }

    fn update(&self) -> Result<()> {
        with_spinner("apt-get update", root("apt-get")?.args(["update", "-q"]))?;
        self.updated.set(true);
        Ok(())
    }

    /// Makes sure that apt's lists have these packages.
    pub fn know(&self, packages: &[&str]) -> Result<()> {
        if packages
            .iter()
            .all(|package| !self.versions(package).is_empty())
        {
            return Ok(());
        }
        self.refresh()?;
        for package in packages {
            ensure!(
                !self.versions(package).is_empty(),
                "apt knows no package {package}, even after apt-get update"
            );
        }
        Ok(())
    }

    /// `apt-get update`, at most once in one set-up.
    pub fn refresh(&self) -> Result<()> {
        if self.updated.get() {
            Ok(())
        } else {
            self.update()
        }
    }

    /// All versions of a package that apt could fetch, newest first.
    pub fn versions(&self, package: &str) -> Vec<Version> {
        let text = output(Command::new("apt-cache").args(["show", package])).unwrap_or_default();
        let mut versions = Vec::new();
        for stanza in text.split("\n\n") {
            let field = |key: &str| {
                stanza
                    .lines()
                    .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
                    .unwrap_or_default()
            };
            // Without a file name it is only installed, not to be had.
            if !field("Filename").is_empty() {
                versions.push(Version {
                    version: field("Version").to_owned(),
                    depends: field("Depends").to_owned(),
                    size: field("Size").parse().unwrap_or(0),
                });
            }
        }
        versions
    }

    /// The package whose name begins with `prefix` among the dependencies of the newest `package`.
    pub fn dependency(&self, package: &str, prefix: &str) -> Result<String> {
        let versions = self.versions(package);
        let newest = versions
            .first()
            .with_context(|| format!("apt knows no package {package}"))?;
        newest
            .depends
            .split([',', '|'])
            .filter_map(|dependency| dependency.split_whitespace().next())
            .find(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .with_context(|| format!("{package} does not depend on a {prefix}* package"))
    }

    /// Installs packages, from `suite` if one is named.
    pub fn install(&self, packages: &[&str], suite: Option<&str>) -> Result<()> {
        self.know(packages)?;
        let mut command = root("apt-get")?;
        command.args([
            "install",
            "-q",
            "-y",
            "--no-install-recommends",
            "-o",
            "Dpkg::Use-Pty=0",
        ]);
        if let Some(suite) = suite {
            command.args(["-t", suite]);
        }
        with_spinner(
            &format!("installing {}", packages.join(" ")),
            command.args(packages),
        )
    }

    /// Downloads packages (`NAME`, `NAME:ARCH` or `NAME=VERSION`) and unpacks them into `tree`, installing nothing.
    pub fn unpack(&self, project: &Project, packages: &[&str], tree: &Path) -> Result<()> {
        let dir = project.path("download");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir)?;
        for package in packages {
            let (name, version) = package.split_once('=').unwrap_or((package, ""));
            let versions = self.versions(name);
            let size = versions
                .iter()
                .find(|v| version.is_empty() || v.version == version)
                .map_or(0, |v| v.size);
            let mut command = Command::new("apt-get");
            command.current_dir(&dir).args(["download", "-q"]);
            if rustix::process::geteuid().is_root() {
                command.args(["-o", "APT::Sandbox::User=root"]);
            }
            with_download_bar(
                &format!("downloading {name}"),
                &dir,
                size,
                command.arg(package),
            )?;
            for deb in debs(&dir)? {
                unpack(&deb, tree)?;
                fs::remove_file(deb)?;
            }
        }
        fs::remove_dir_all(&dir)?;
        Ok(())
    }
}

impl Apt {
    /// Downloads a package of Debian 12's from a component that this machine's sources need not have, and unpacks it
    /// into `tree`. apt's lists are kept apart, in the cache: nothing of the machine changes.
    pub fn unpack_apart(
        &self,
        project: &Project,
        package: &str,
        component: &str,
        tree: &Path,
    ) -> Result<()> {
        let source = backports_source()?;
        let apart = Apart::new(project)?;
        let key = source
            .signed_by
            .map_or(String::new(), |key| format!("[signed-by={key}] "));
        let lines = source
            .uris
            .iter()
            .map(|uri| format!("deb {key}{uri} bookworm {component}\n"));
        fs::write(apart.dir.join("sources.list"), lines.collect::<String>())?;
        with_spinner(
            &format!("looking for {package} in Debian's {component}"),
            &mut apart.apt_get(&["update"]),
        )?;
        with_spinner(
            &format!("downloading {package}"),
            &mut apart.apt_get(&["download", package]),
        )?;
        let debs = debs(&apart.dir)?;
        ensure!(!debs.is_empty(), "no package was downloaded");
        for deb in debs {
            unpack(&deb, tree)?;
        }
        Ok(())
    }

    /// Downloads what a new arm64 system of Debian 12 is made of: these packages (or apt's patterns) and all that they
    /// depend on. Returns what holds the package files, and the files.
    pub fn system(&self, project: &Project, packages: &[&str]) -> Result<(Apart, Vec<PathBuf>)> {
        let apart = Apart::new(project)?;
        let sources = system_sources(true);
        ensure!(
            !sources.is_empty(),
            "no apt source for Debian 12 (bookworm main) is configured on this machine"
        );
        fs::write(apart.dir.join("sources.list"), sources)?;
        fs::write(apart.dir.join("status"), "")?;
        let status = apart.dir.join("status");
        let options = [
            "-o".to_owned(),
            format!("Dir::State::Status={}", status.display()),
            "-o".to_owned(),
            "APT::Architecture=arm64".to_owned(),
            "-o".to_owned(),
            "APT::Architectures=arm64".to_owned(),
        ];
        with_spinner(
            "looking for Debian's arm64 packages",
            apart.apt_get(&["update"]).args(&options),
        )?;
        with_spinner(
            "downloading Debian's arm64 packages",
            apart
                .apt_get(&[
                    "install",
                    "-y",
                    "--download-only",
                    "--no-install-recommends",
                    "-o",
                    "Debug::NoLocking=true",
                ])
                .args(&options)
                .args(packages),
        )?;
        let debs = debs(&apart.dir.join("cache/archives"))?;
        ensure!(!debs.is_empty(), "no package was downloaded");
        Ok((apart, debs))
    }
}

/// apt with lists and a cache of its own, so that nothing of the machine changes; gone when it is dropped.
pub struct Apart {
    dir: PathBuf,
}

impl Apart {
    fn new(project: &Project) -> Result<Self> {
        let dir = project.path("apt");
        let _ = fs::remove_dir_all(&dir);
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part))?;
        }
        Ok(Self { dir })
    }

    fn apt_get(&self, words: &[&str]) -> Command {
        let mut command = Command::new("apt-get");
        command.current_dir(&self.dir);
        for (option, value) in [
            ("Dir::Etc::SourceList", self.dir.join("sources.list")),
            ("Dir::Etc::SourceParts", PathBuf::from("-")),
            ("Dir::State::Lists", self.dir.join("lists")),
            ("Dir::Cache", self.dir.join("cache")),
        ] {
            command
                .arg("-o")
                .arg(format!("{option}={}", value.display()));
        }
        if rustix::process::geteuid().is_root() {
            command.args(["-o", "APT::Sandbox::User=root"]);
        }
        command.arg("-q").args(words);
        command
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The lines of a `sources.list` for Debian 12 itself, from where this machine has it; with the keys that are named here, or
/// for a system that has those of its own.
pub fn system_sources(keys: bool) -> String {
    let mut lines = String::new();
    for source in sources() {
        let suites = source
            .suites
            .iter()
            .filter(|suite| SUITES.contains(&suite.as_str()));
        for suite in suites.filter(|_| source.components.iter().any(|name| name == "main")) {
            for uri in &source.uris {
                let key = match &source.signed_by {
                    Some(key) if keys => format!("[signed-by={key}] "),
                    _ => String::new(),
                };
                lines += &format!("deb {key}{uri} {suite} main\n");
            }
        }
    }
    lines
}

/// Unpacks one package file into `tree`.
pub fn unpack(deb: &Path, tree: &Path) -> Result<()> {
    fs::create_dir_all(tree)?;
    let name = deb
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    with_spinner(
        &format!("unpacking {name}"),
        Command::new("dpkg-deb").arg("-x").arg(deb).arg(tree),
    )
}

/// The package files in a folder.
pub fn debs(dir: &Path) -> Result<Vec<PathBuf>> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(Vec::new());
    };
    let paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    Ok(paths
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect())
}

/// A command as root: itself, or through sudo.
fn root(program: &str) -> Result<Command> {
    let path = which(program).with_context(|| format!("there is no program {program}"))?;
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("env")
    } else if let Some(sudo) = which("sudo") {
        let mut sudo = Command::new(sudo);
        sudo.arg("env");
        sudo
    } else {
        bail!("installing packages needs root: run this as root, or install sudo");
    };
    // Through `env`, since sudo does not pass the environment on.
    command.arg("DEBIAN_FRONTEND=noninteractive").arg(path);
    Ok(command)
}

/// The source that Debian 12 itself comes from, to be used for its backports.
fn backports_source() -> Result<Source> {
    sources()
        .into_iter()
        .find(|source| {
            source
                .suites
                .iter()
                .any(|suite| suite == "bookworm" || suite == "bookworm-updates")
                && source
                    .components
                    .iter()
                    .any(|component| component == "main")
        })
        .context("no apt source for Debian 12 (bookworm main) is configured on this machine")
}

fn sources() -> Vec<Source> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => found.extend(text.lines().filter_map(one_line_source)),
            Some("sources") => found.extend(text.split("\n\n").filter_map(deb822_source)),
            _ => {}
        }
    }
    found
}

/// `deb [option=value ...] URI SUITE COMPONENT...` (sources.list(5)).
fn one_line_source(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line
        .strip_prefix("deb")?
        .strip_prefix(char::is_whitespace)?
        .trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let signed_by = options
        .split_whitespace()
        .find_map(|option| option.strip_prefix("signed-by="))
        .map(str::to_owned);
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source {
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        components: words.collect(),
        signed_by,
    })
}

/// A stanza of a `.sources` file (sources.list(5), deb822).
fn deb822_source(stanza: &str) -> Option<Source> {
    let field = |key: &str| {
        stanza
            .lines()
            .filter(|line| !line.starts_with('#'))
            .find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case(key).then(|| value.trim())
            })
    };
    let words = |key: &str| {
        field(key)
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    if !words("Types").iter().any(|kind| kind == "deb") || field("Enabled") == Some("no") {
        return None;
    }
    // A key in the stanza itself (a multi-line field) cannot be carried over by name.
    let signed_by = field("Signed-By")
        .filter(|value| value.starts_with('/'))
        .map(str::to_owned);
    Some(Source {
        uris: words("URIs"),
        suites: words("Suites"),
        components: words("Components"),
        signed_by,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_in_both_formats() {
        let line = one_line_source(
            "deb [arch=amd64 signed-by=/k.gpg] http://mirror/debian bookworm main contrib # x",
        );
        let line = line.unwrap();
        assert_eq!(
            (line.uris, line.suites),
            (vec!["http://mirror/debian".into()], vec!["bookworm".into()])
        );
        assert_eq!(
            (line.components.len(), line.signed_by),
            (2, Some("/k.gpg".into()))
        );
        assert_eq!(
            one_line_source("# deb http://mirror/debian bookworm main"),
            None
        );
        assert_eq!(
            one_line_source("deb-src http://mirror/debian bookworm main"),
            None
        );

        let stanza = "Types: deb\n# a note\nURIs: http://m/debian\nSuites: bookworm bookworm-updates\nComponents: main\nSigned-By: /k.gpg";
        let source = deb822_source(stanza).unwrap();
        assert_eq!(source.suites, ["bookworm", "bookworm-updates"]);
        assert_eq!(source.signed_by.as_deref(), Some("/k.gpg"));
        assert_eq!(
            deb822_source(&stanza.replace("Types: deb", "Types: deb-src")),
            None
        );
        assert_eq!(deb822_source(&format!("{stanza}\nEnabled: no")), None);
    }
}
