// SPDX-License-Identifier: MIT OR Apache-2.0
//! Xen's advisories and the tests that stand for them: the table in docs/SECURITY.md cannot rot.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Where the table is.
const DOCUMENT: &str = "docs/SECURITY.md";
const BEGIN: &str = "<!-- table of advisories, held by `cargo xtask lint` -->";
const END: &str = "<!-- end of table -->";

/// Published advisories (`xenbits.xen.org/xsa`) on what Arm has of Xen: its own code and the common one, xenstored and the
/// tools, and the protocols of front and back ends.
const PUBLISHED: &[u16] = &[
    // Arm's code.
    91, 93, 94, 98, 101, 102, 103, 117, 118, 141, 145, 146, 147, 181, 201, 223, 225, 235, 245, 254,
    263, 268, 295, 301, 303, 312, 351, 372, 379, 380, 383, 384, 393, 394, 398, 409, 410, 436, 437,
    447, 453, 473, 493, //
    // The common code.
    77, 213, 217, 218, 222, 224, 226, 228, 230, 231, 232, 234, 236, 252, 255, 276, 284, 296, 298,
    302, 316, 318, 327, 333, 334, 338, 340, 342, 343, 344, 346, 355, 358, 359, 364, 382, 385, 411,
    448, 486, 492, 496, 499, 500, 501, 502, 505, 506, //
    // xenstored and the tools.
    115, 180, 322, 323, 324, 325, 326, 330, 352, 353, 414, 415, 416, 417, 418, 419, 420, 421, 425,
    443, 476, 481, 483, 484, 497, 508, //
    // Front and back ends.
    39, 155, 157, 216, 349, 350, 362, 365, 367, 376, 390, 391, 392, 396, 403, 405, 423, 424, 432,
];

/// What a row says instead of naming a test.
const NO_SURFACE: &str = "no surface: ";

/// Those that have no test yet, whose rows begin with this and say what is so instead.
const OPEN: &[u16] = &[];
const NOT_YET: &str = "not yet: ";

/// Checks the table.
///
/// # Errors
/// An advisory without a row, or with two; a row that names neither a test that exists nor a reason; a test that is
/// named after an advisory and is not in its row.
pub fn check(root: &Path) -> Result<()> {
    let text = fs::read_to_string(root.join(DOCUMENT))?;
    let mut tests = BTreeSet::new();
    for part in [
        "hv",
        "platform",
        "guest-abi",
        "pv-frontends",
        "dom0-tools",
        "tests",
        "xtask",
    ] {
        collect(&root.join(part), &mut tests)?;
    }
    let wrong = mistakes(&text, &tests)?;
    ensure!(wrong.is_empty(), "{DOCUMENT}: {}", wrong.join("; "));
    Ok(())
}

/// Names of functions that are tests, and of QEMU scenarios.
fn collect(dir: &Path, tests: &mut BTreeSet<String>) -> Result<()> {
    let function =
        regex::Regex::new(r"#\[test\](?s:\s*(?:///?[^\n]*|#\[[^\n]*\])\s*)*\s*fn (\w+)\s*\(")?;
    let scenario = regex::Regex::new(r#"\bscenario\(\s*"([\w.-]+)""#)?;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            if !path.ends_with("target") {
                collect(&path, tests)?;
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path)?;
            for found in function
                .captures_iter(&text)
                .chain(scenario.captures_iter(&text))
            {
                tests.insert(found[1].to_owned());
            }
        }
    }
    Ok(())
}

/// The numbers in the name of a test that is named after advisories: `xsa_12_34_what` is after 12 and 34.
fn named_after(test: &str) -> impl Iterator<Item = u16> {
    let rest = test.strip_prefix("xsa_").unwrap_or_default();
    rest.split('_').map_while(|part| part.parse().ok())
}

fn mistakes(document: &str, tests: &BTreeSet<String>) -> Result<Vec<String>> {
    let table = document
        .split_once(BEGIN)
        .and_then(|(_, rest)| rest.split_once(END))
        .context("no table of advisories")?
        .0;
    let mut wrong = Vec::new();
    let mut rows: BTreeMap<u16, &str> = BTreeMap::new();
    let quoted = regex::Regex::new(r"`([^`]+)`")?;
    for line in table.lines().filter(|l| l.starts_with('|')).skip(2) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [numbers, what, how] = cells[..] else {
            wrong.push(format!("not three cells: {line}"));
            continue;
        };
        if what.is_empty() {
            wrong.push(format!("{numbers}: what it is about is not said"));
        }
        let named: Vec<&str> = quoted
            .captures_iter(how)
            .filter_map(|c| Some(c.get(1)?.as_str()))
            .collect();
        for name in named.iter().filter(|n| !tests.contains(**n)) {
            wrong.push(format!("{numbers}: there is no test `{name}`"));
        }
        let open = OPEN.iter().any(|n| n.to_string() == numbers);
        let instead = if open { NOT_YET } else { NO_SURFACE };
        let reason = how.strip_prefix(instead).is_some_and(|why| !why.is_empty());
        if named.is_empty() && !reason {
            wrong.push(format!(
                "{numbers}: neither a test nor \"{NO_SURFACE}\" and the reason"
            ));
        }
        for number in numbers.split(',').map(str::trim) {
            match number.parse() {
                Ok(number) if rows.insert(number, how).is_some() => {
                    wrong.push(format!("{number} has two rows"));
                }
                Ok(_) => {}
                Err(_) => wrong.push(format!("{number} is no number")),
            }
        }
    }
    for number in PUBLISHED.iter().filter(|n| !rows.contains_key(n)) {
        wrong.push(format!("XSA-{number} has no row"));
    }
    for test in tests {
        for number in named_after(test) {
            let there = rows
                .get(&number)
                .is_some_and(|how| how.contains(&format!("`{test}`")));
            if !there {
                wrong.push(format!("`{test}` is not in the row of {number}"));
            }
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[&str]) -> String {
        let mut text = format!("# Security\n{BEGIN}\n| advisory | what | here |\n|---|---|---|\n");
        for row in rows {
            text += &format!("{row}\n");
        }
        text + END
    }

    fn all_but(rows: &[&str], tests: &[&str]) -> Vec<String> {
        let tests = tests.iter().map(|t| (*t).to_owned()).collect();
        let mut wrong = mistakes(&table(rows), &tests).unwrap();
        wrong.retain(|w| !w.ends_with("has no row"));
        wrong
    }

    #[test]
    fn what_is_wrong_with_a_table() {
        assert!(mistakes("no table", &BTreeSet::new()).is_err());
        assert_eq!(
            mistakes(&table(&[]), &BTreeSet::new()).unwrap().len(),
            PUBLISHED.len()
        );
        let good = [
            "| 1, 2 | a | `xsa_1_2_t`, and `scen-ario` |",
            "| 3 | b | no surface: none |",
        ];
        assert!(all_but(&good, &["xsa_1_2_t", "scen-ario", "other"]).is_empty());
        assert_eq!(
            all_but(&good, &["xsa_1_2_t"]),
            ["1, 2: there is no test `scen-ario`"]
        );
        assert_eq!(
            all_but(&["| 1 | a | to come |"], &[]),
            ["1: neither a test nor \"no surface: \" and the reason"]
        );
        assert_eq!(all_but(&["| 1 | a | no surface: |"], &[]).len(), 1);
        assert_eq!(
            all_but(
                &["| 1 | a | `t` |", "| 1 | a | `t` |", "| x | | `t` |"],
                &["t"]
            ),
            [
                "1 has two rows",
                "x: what it is about is not said",
                "x is no number"
            ]
        );
        assert_eq!(
            all_but(&["| 1 | a | `t` |"], &["t", "xsa_1_x", "xsa_2_y"]),
            [
                "`xsa_1_x` is not in the row of 1",
                "`xsa_2_y` is not in the row of 2"
            ]
        );
    }

    /// Nothing at EL2 unmasks interrupts: what is masked on entry stays so until the `eret`. (`A`, for SErrors at a
    /// place that is made for them, may be.)
    #[test]
    fn xsa_303_interrupts_stay_masked_at_el2() {
        let hv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hv");
        let mut files = vec![hv.clone()];
        let mut unmasks = Vec::new();
        let mut seen = 0;
        let allowed = regex::Regex::new(r"(?i)daifclr,\s*#?(4|0x4)\b").unwrap();
        while let Some(path) = files.pop() {
            if path.is_dir() {
                files.extend(fs::read_dir(path).unwrap().map(|e| e.unwrap().path()));
                continue;
            }
            let Ok(text) = fs::read_to_string(&path) else {
                continue;
            };
            seen += usize::from(text.to_lowercase().contains("daifset"));
            let writes = |l: &&str| {
                let l = l.to_lowercase();
                l.contains("daifclr") && !allowed.is_match(&l) || l.contains("msr daif,")
            };
            unmasks.extend(
                text.lines()
                    .filter(writes)
                    .map(|l| format!("{}: {l}", path.display())),
            );
        }
        assert!(seen > 0, "the entry code masks, so it was looked at");
        assert!(unmasks.is_empty(), "{unmasks:?}");
    }

    #[test]
    fn every_advisory_is_listed_once() {
        let all: BTreeSet<_> = PUBLISHED.iter().collect();
        assert_eq!(all.len(), PUBLISHED.len());
    }
}
