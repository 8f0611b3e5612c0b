// SPDX-License-Identifier: MIT OR Apache-2.0
//! Size and field offsets of every structure against `layout.tsv`, which a C compiler measured on
//! the public headers of Xen 4.17 for arm64. Names there have no `struct` and no array lengths;
//! fields of nested structures and unions are paths.

use guest_abi::layout::{ALL, Field, Layout, TOOLSTACK};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Every structure.
fn all() -> impl Iterator<Item = &'static Layout> {
    ALL.iter().chain(TOOLSTACK)
}

struct Row {
    field: &'static str,
    offset: usize,
    size: usize,
}

fn table() -> BTreeMap<&'static str, Vec<Row>> {
    let mut table: BTreeMap<_, Vec<Row>> = BTreeMap::new();
    for line in include_str!("layout.tsv").lines().skip(1) {
        let mut columns = line.split('\t');
        let mut next = || columns.next().expect("four columns");
        let name = next();
        table.entry(name).or_default().push(Row {
            field: next(),
            offset: next().parse().expect("an offset"),
            size: next().parse().expect("a size"),
        });
    }
    table
}

/// The rows that a field stands for: its own, or those of its parts.
fn rows_of<'a>(rows: &'a [Row], field: &Field) -> Vec<&'a Row> {
    if field.path == "x0..x30" {
        return (0..31)
            .map(|i| {
                let row = rows.iter().find(|r| r.field == format!("x{i}"));
                let row = row.expect("a register's row");
                assert_eq!((row.offset, row.size), (i * 8, 8));
                row
            })
            .collect();
    }
    let own: Vec<_> = rows.iter().filter(|r| r.field == field.path).collect();
    if !own.is_empty() {
        return own;
    }
    let prefix = format!("{}.", field.path);
    rows.iter()
        .filter(|r| r.field.starts_with(&prefix))
        .collect()
}

fn check(layout: &Layout, rows: &[Row]) {
    let name = layout.c_name;
    let total = rows.iter().find(|r| r.field == "(total)").expect(name);
    assert_eq!(layout.size, total.size, "size of {name}");

    let mut end = 0;
    let mut covered = BTreeSet::new();
    for field in layout.fields {
        assert_eq!(field.offset, end, "{name}.{} leaves a gap", field.path);
        end += field.size;
        if field.path == "-" {
            continue;
        }
        let rows = rows_of(rows, field);
        assert!(!rows.is_empty(), "{name}.{} has no row", field.path);
        let first = rows.iter().map(|r| r.offset).min().unwrap();
        let last = rows.iter().map(|r| r.offset + r.size).max().unwrap();
        assert_eq!(first, field.offset, "offset of {name}.{}", field.path);
        if rows.len() == 1 {
            assert_eq!(last, end, "size of {name}.{}", field.path);
        } else {
            // A nested structure may end in padding.
            assert!(
                last <= end && last + 8 > end,
                "size of {name}.{}",
                field.path
            );
        }
        covered.extend(rows.iter().map(|r| r.field));
    }
    assert_eq!(end, layout.size, "{name} ends early");

    for row in rows {
        // Of a union, a structure holds one shape; the others only have to lie in it.
        let ok =
            row.field == "(total)" || covered.contains(row.field) || row.field.starts_with("u.");
        assert!(ok, "{name}.{} has no field", row.field);
        assert!(row.offset + row.size <= layout.size);
    }
}

#[test]
fn every_structure_has_the_measured_layout() {
    let table = table();
    for layout in all() {
        let rows = table
            .get(layout.c_name)
            .unwrap_or_else(|| panic!("{} has no rows", layout.c_name));
        check(layout, rows);
    }
    let ours: BTreeSet<_> = all().map(|l| l.c_name).collect();
    assert_eq!(ours, table.keys().copied().collect(), "rows without use");
    assert_eq!(ours.len(), all().count(), "two structures of one name");
}

#[test]
fn a_wrong_layout_is_found() {
    let rows = [("(total)", 0, 8), ("a", 0, 4), ("b", 4, 2)].map(|(field, offset, size)| Row {
        field,
        offset,
        size,
    });
    let field = |path, offset, size| Field { path, offset, size };
    let layout = |fields| Layout {
        rust_name: "T",
        c_name: "t",
        header: "t.h",
        size: 8,
        fields,
    };
    let good: &[Field] = &[field("a", 0, 4), field("b", 4, 2), field("-", 6, 2)];
    check(&layout(Vec::leak(good.to_vec())), &rows);
    for bad in [
        vec![field("a", 0, 4), field("b", 4, 4)],
        vec![field("a", 0, 4), field("-", 4, 2), field("b", 6, 2)],
        vec![field("b", 0, 4), field("a", 4, 2), field("-", 6, 2)],
        vec![field("a", 0, 4), field("-", 4, 4)],
        vec![field("a", 0, 4), field("c", 4, 2), field("-", 6, 2)],
        vec![field("a", 0, 4), field("b", 4, 2)],
    ] {
        let layout = layout(Vec::leak(bad));
        assert!(std::panic::catch_unwind(|| check(&layout, &rows)).is_err());
    }
}

/// Every structure that the sources declare with a C name is in [`ALL`] or [`TOOLSTACK`], and every other public
/// structure with fields is one that is known to have no counterpart in C.
#[test]
fn no_structure_is_left_out() {
    const NOT_OF_THE_ABI: &[&str] = &[
        "Layout",
        "Field",
        "RingError",
        "FrontRing",
        "BackRing",
        "ByteRing",
        "Page",
        "Grant",
        "GrantTable",
        "Area",
        "Events",
        "Upcall",
        "Channel",
        "WallClock",
        "HypervisorNode",
    ];
    fn sources(dir: &Path, to: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, to);
            } else {
                to.push(std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut files = Vec::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut files,
    );
    let ours: BTreeSet<_> = all().map(|l| l.rust_name).collect();
    let mut found = 0;
    for file in &files {
        for line in file.lines() {
            let Some(rest) = line.trim().strip_prefix("pub struct ") else {
                continue;
            };
            let Some(name) = rest.strip_suffix(" {") else {
                continue;
            };
            let name = name.split(['<', ':']).next().unwrap();
            if name.starts_with('$') || NOT_OF_THE_ABI.contains(&name) {
                continue;
            }
            assert!(ours.contains(name), "{name} is not in layout::ALL");
            found += 1;
        }
    }
    assert_eq!(found, all().count());
}
