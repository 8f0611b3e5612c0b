// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask lint`: what must hold of the source beside its tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::build::{bare_metal_packages, metadata};
use crate::process::{inherit, output};
use crate::project::Project;
use crate::toolchain;

#[derive(clap::Args)]
pub struct Args {
    /// Check only the architecture: dependency arrows, `unsafe` boundaries, sizes
    #[arg(long)]
    architecture: bool,
}

/// Which packages of the workspace each one may depend on, beside itself and for more than its tests.
const ARROWS: &[(&str, &[&str])] = &[
    ("guest-abi", &[]),
    ("platform", &[]),
    ("hv-mech", &[]),
    ("hv-core", &["guest-abi", "hv-mech"]),
    (
        "hv-aarch64",
        &["guest-abi", "hv-mech", "hv-core", "platform", "builder"],
    ),
    (
        "hv",
        &[
            "guest-abi",
            "hv-mech",
            "hv-core",
            "hv-aarch64",
            "platform",
            "builder",
        ],
    ),
    ("pv-frontends", &["guest-abi"]),
    ("builder", &[]),
    ("xenstore", &["guest-abi"]),
    ("backends", &["guest-abi"]),
    ("toolstack", &["guest-abi", "builder"]),
    ("el1", &["guest-abi"]),
    (
        "dom0",
        &[
            "guest-abi",
            "platform",
            "el1",
            "xenstore",
            "backends",
            "toolstack",
            "builder",
        ],
    ),
    ("xtask", &[]),
];

/// Packages that may hold `unsafe` code: the mechanism.
const UNSAFE: &[&str] = &["platform", "hv-mech", "hv-aarch64", "hv", "el1"];

/// Packages that may hold `unsafe` code in one module: the call instruction.
const ONE_MODULE: &[&str] = &["guest-abi"];

/// The most lines that a package's source may have, empty ones and comments not counted.
const SIZES: &[(&str, usize)] = &[("hv-aarch64", 3300)];

pub fn main(project: &Project, args: &Args) -> Result<ExitCode> {
    let mut failed = Vec::new();
    let mut step = |name: &str, result: Result<()>| match result {
        Ok(()) => println!("ok    {name}"),
        Err(error) => {
            println!("FAIL  {name}: {error:#}");
            failed.push(name.to_owned());
        }
    };
    let workspace = metadata(project)?;
    step("dependency arrows", arrows(&workspace));
    step("unsafe boundaries", unsafe_boundaries(&workspace));
    step("sizes", sizes(&workspace));
    step("code in documents", excerpts(project));
    step(
        "tests of advisories",
        crate::advisories::check(&project.root),
    );
    if !args.architecture {
        let host = |arguments: &[&str]| {
            let mut cargo = Command::new("cargo");
            cargo
                .current_dir(&project.root)
                .env("RUSTDOCFLAGS", "-D warnings")
                .args(arguments);
            inherit(&mut cargo)
        };
        let bare_metal = |arguments: &[&str], end: &[&str]| {
            let toolchain = toolchain::find(project)
                .context("the Rust target is missing: run `cargo xtask setup`")?;
            let mut cargo = toolchain.cargo(project, arguments.first().unwrap_or(&"check"))?;
            cargo
                .env("RUSTDOCFLAGS", "-D warnings")
                .args(arguments.get(1..).unwrap_or_default());
            for package in bare_metal_packages() {
                cargo.args(["-p", package]);
            }
            inherit(cargo.args(end))
        };
        step("oldest Rust", oldest_rust(project, &workspace));
        step("formatting", host(&["fmt", "--all", "--check"]));
        step(
            "clippy, host",
            host(&[
                "clippy",
                "--quiet",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ]),
        );
        step(
            "clippy, bare metal",
            bare_metal(
                &["clippy", "--quiet", "--release"],
                &["--", "-D", "warnings"],
            ),
        );
        step(
            "documentation, host",
            host(&["doc", "--quiet", "--workspace", "--no-deps"]),
        );
        step(
            "documentation, bare metal",
            bare_metal(
                &[
                    "doc",
                    "--quiet",
                    "--release",
                    "--no-deps",
                    "-p",
                    "hv-aarch64",
                ],
                &[],
            ),
        );
        let quiet = crate::build::Args {
            quiet: true,
            ..Default::default()
        };
        step(
            "image size",
            crate::build::build(project, &quiet)
                .and_then(|built| crate::build::weigh(project, &built, false)),
        );
    }
    if failed.is_empty() {
        println!("lint: all good");
        Ok(ExitCode::SUCCESS)
    } else {
        println!("lint: failed: {}", failed.join(", "));
        Ok(ExitCode::FAILURE)
    }
}

/// Documents whose code is taken from source files.
const EXCERPTS: &[&str] = &["docs/PORTING.md"];

fn excerpts(project: &Project) -> Result<()> {
    let mut wrong = Vec::new();
    for document in EXCERPTS {
        let text = fs::read_to_string(project.root.join(document))?;
        let source = |path: &str| Ok(fs::read_to_string(project.root.join(path))?);
        wrong.extend(check_excerpts(&text, source)?.map(|w| format!("{document}: {w}")));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

/// What is wrong with a document's Rust code, each block of which follows a line `<!-- FILE: NAME -->` and is in FILE between
/// `// [NAME]` and `// [/NAME]`, but for the indentation; and with its numbers of lines, `N<!-- lines: FILE: NAME NAME; FILE: NAME -->`.
fn check_excerpts(
    document: &str,
    source: impl Fn(&str) -> Result<String>,
) -> Result<impl Iterator<Item = String>> {
    let block = regex::Regex::new(r"(?m)(?:^<!-- (\S+): (\w+) -->\n)?^```rust\n((?s:.*?))^```$")?;
    let lines = regex::Regex::new(r"(\d+)<!-- lines: (.+?) -->")?;
    let mut wrong = Vec::new();
    for found in block.captures_iter(document) {
        let (Some(file), Some(name)) = (found.get(1), found.get(2)) else {
            wrong.push(format!("a block without its source: {}", &found[3]));
            continue;
        };
        if region(&source(file.as_str())?, name.as_str())? != found[3] {
            wrong.push(format!("{} is not as in {}", name.as_str(), file.as_str()));
        }
    }
    for found in lines.captures_iter(document) {
        let mut count = 0;
        for part in found[2].split("; ") {
            let (file, names) = part.split_once(": ").context("lines: FILE: NAME")?;
            let text = source(file)?;
            for name in names.split(' ') {
                count += code(&region(&text, name)?).count();
            }
        }
        if found[1] != count.to_string() {
            wrong.push(format!("{} lines of {} are {count}", &found[1], &found[2]));
        }
    }
    Ok(wrong.into_iter())
}

/// The lines between `// [name]` and `// [/name]`, without the indentation that all of them have.
fn region(text: &str, name: &str) -> Result<String> {
    let (begin, end) = (format!("// [{name}]"), format!("// [/{name}]"));
    let lines: Vec<&str> = text
        .lines()
        .skip_while(|line| line.trim() != begin)
        .skip(1)
        .take_while(|line| line.trim() != end)
        .collect();
    let indented = |line: &&str| line.len() - line.trim_start().len();
    let filled = lines.iter().filter(|line| !line.trim().is_empty());
    let indent = filled.map(indented).min().context(begin)?;
    Ok(lines
        .iter()
        .map(|line| format!("{}\n", line.get(indent..).unwrap_or_default()))
        .collect())
}

fn packages(workspace: &Value) -> impl Iterator<Item = (&str, &Value)> {
    workspace["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|package| Some((package["name"].as_str()?, package)))
}

fn folder(package: &Value) -> PathBuf {
    Path::new(package["manifest_path"].as_str().unwrap_or_default())
        .parent()
        .unwrap_or(Path::new(""))
        .to_path_buf()
}

/// Tests and test guests may use what they test.
fn is_test(package: &Value) -> bool {
    folder(package)
        .components()
        .any(|part| part.as_os_str() == "tests")
}

fn arrows(workspace: &Value) -> Result<()> {
    let own: BTreeSet<&str> = packages(workspace).map(|(name, _)| name).collect();
    let mut wrong = Vec::new();
    for (name, package) in packages(workspace).filter(|(_, package)| !is_test(package)) {
        let Some((_, allowed)) = ARROWS.iter().find(|(from, _)| *from == name) else {
            wrong.push(format!(
                "{name} is not in the table of arrows (xtask/src/lint.rs)"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().unwrap_or_default();
            if dependency["kind"].as_str() != Some("dev")
                && own.contains(to)
                && !allowed.contains(&to)
            {
                wrong.push(format!("{name} must not depend on {to}"));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

/// What other kernels link must build with the Rust that its manifest names. That toolchain is installed when it is not
/// there; where it cannot be had, this says so and is no failure.
fn oldest_rust(project: &Project, workspace: &Value) -> Result<()> {
    const PUBLISHED: [&str; 2] = ["guest-abi", "pv-frontends"];
    let version = packages(workspace)
        .find(|(name, _)| *name == PUBLISHED[0])
        .and_then(|(_, package)| package["rust_version"].as_str())
        .context("guest-abi names no rust-version")?;
    let there = output(Command::new("rustup").args(["toolchain", "list"])).is_ok_and(|list| {
        list.lines()
            .any(|line| line.starts_with(&format!("{version}-")))
    });
    let mut rustup = Command::new("rustup");
    rustup.args(["toolchain", "install", version, "--profile", "minimal"]);
    if !there && output(&mut rustup).is_err() {
        println!("there is no Rust {version}, and rustup cannot install it: not tried with it");
        return Ok(());
    }
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(&project.root)
        .arg(format!("+{version}"))
        .args(["check", "--quiet", "--all-features"])
        // Apart from what the other toolchain made.
        .args(["--target-dir", "target/oldest-rust"]);
    for package in PUBLISHED {
        cargo.args(["-p", package]);
    }
    inherit(&mut cargo)
}

fn unsafe_boundaries(workspace: &Value) -> Result<()> {
    let mut wrong = Vec::new();
    for (name, package) in packages(workspace).filter(|(_, package)| !is_test(package)) {
        if ONE_MODULE.contains(&name) {
            let files = files_with_unsafe(&folder(package).join("src"))?;
            if files.len() > 1 {
                wrong.push(format!(
                    "{name} has unsafe code in more than one module: {files:?}"
                ));
            }
        }
        if UNSAFE.contains(&name) || ONE_MODULE.contains(&name) {
            continue;
        }
        for target in package["targets"].as_array().into_iter().flatten() {
            let kind = target["kind"][0].as_str().unwrap_or_default();
            let root = target["src_path"].as_str().unwrap_or_default();
            if matches!(kind, "lib" | "bin" | "rlib") && !forbids_unsafe(&fs::read_to_string(root)?)
            {
                wrong.push(format!("{name}: {root} does not forbid unsafe code"));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

/// Whether a crate's root forbids `unsafe`, or is no more than a few lines that start a library which does
/// (a bare-metal entry needs an exported symbol, which the compiler counts as unsafe).
fn forbids_unsafe(root: &str) -> bool {
    root.contains("#![forbid(unsafe_code)]")
        || (code(root).count() <= 10 && !root.contains("unsafe"))
}

fn files_with_unsafe(dir: &Path) -> Result<Vec<PathBuf>> {
    let unsafe_code = regex::Regex::new(r"\bunsafe\s*(\{|fn\b|impl\b|extern\b|\()")?;
    let mut found = Vec::new();
    for path in sources(dir)? {
        if code(&fs::read_to_string(&path)?).any(|line| unsafe_code.is_match(line)) {
            found.push(path);
        }
    }
    Ok(found)
}

fn sizes(workspace: &Value) -> Result<()> {
    for (name, most) in SIZES {
        let Some((_, package)) = packages(workspace).find(|(package, _)| package == name) else {
            continue;
        };
        let lines = lines_of_code(&folder(package).join("src"))?;
        if lines > *most {
            bail!("{name} has {lines} lines of code, of {most} at most");
        }
    }
    Ok(())
}

fn lines_of_code(dir: &Path) -> Result<usize> {
    sources(dir)?
        .iter()
        .map(|path| Ok(code(&fs::read_to_string(path)?).count()))
        .sum()
}

/// Lines that are neither empty nor comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
}

/// Rust and assembly files below a folder.
fn sources(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path
            .extension()
            .is_some_and(|extension| extension == "rs" || extension == "S" || extension == "s")
        {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn workspace(dependencies: &[(&str, Option<&str>)]) -> Value {
        let dependencies: Vec<_> = dependencies
            .iter()
            .map(|(name, kind)| json!({"name": name, "kind": kind}))
            .collect();
        json!({"packages": [
            {"name": "hv-core", "manifest_path": "/p/hv/core/Cargo.toml", "dependencies": dependencies},
            {"name": "platform", "manifest_path": "/p/platform/Cargo.toml"},
            {"name": "guest-abi", "manifest_path": "/p/guest-abi/Cargo.toml"},
        ]})
    }

    #[test]
    fn code_in_documents_is_the_sources() {
        let source = |path: &str| {
            assert_eq!(path, "a.rs");
            Ok(
                "    // [one]\n    fn f() {\n        g();\n\n    }\n    // [/one]\n    fn g() {}\n"
                    .into(),
            )
        };
        let check = |text: &str| -> Vec<String> { check_excerpts(text, source).unwrap().collect() };
        let good = "x\n<!-- a.rs: one -->\n```rust\nfn f() {\n    g();\n\n}\n```\n| 9<!-- lines: a.rs: one one; a.rs: one -->\n";
        assert!(check(good).is_empty());
        assert_eq!(
            check(&good.replace("g();", "h();")),
            ["one is not as in a.rs"]
        );
        assert_eq!(
            check(&good.replace("| 9", "| 8")),
            ["8 lines of a.rs: one one; a.rs: one are 9"]
        );
        assert_eq!(
            check("```rust\nx\n```\n"),
            ["a block without its source: x\n"]
        );
        assert!(check_excerpts("<!-- a.rs: two -->\n```rust\n```\n", source).is_err());
    }

    #[test]
    fn arrows_point_as_designed() {
        assert!(
            arrows(&workspace(&[
                ("guest-abi", None),
                ("zerocopy", None),
                ("platform", Some("dev"))
            ]))
            .is_ok()
        );
        let error = arrows(&workspace(&[("platform", None)]))
            .unwrap_err()
            .to_string();
        assert_eq!(error, "hv-core must not depend on platform");
        assert!(arrows(&workspace(&[("platform", Some("build"))])).is_err());
    }
}
