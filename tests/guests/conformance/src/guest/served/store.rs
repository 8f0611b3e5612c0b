// SPDX-License-Identifier: MIT OR Apache-2.0
//! xenstore: every operation, with good and bad arguments; transactions, watches, permissions, limits, and messages as
//! bytes.

use super::wire::message;
use super::{MS, Served, show};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use guest_abi::io::xs_wire::{
    CONNECTED, CONNECTION, ERROR, RECONNECT, REQ, RSP, SERVER_FEATURE_RECONNECTION, SERVER_FEATURES,
};

const CONTROL: u32 = 0;
const DIRECTORY: u32 = 1;
const READ: u32 = 2;
const GET_PERMS: u32 = 3;
const WATCH: u32 = 4;
const UNWATCH: u32 = 5;
const START: u32 = 6;
const END: u32 = 7;
const INTRODUCE: u32 = 8;
const RELEASE: u32 = 9;
const GET_DOMAIN_PATH: u32 = 10;
const WRITE: u32 = 11;
const MKDIR: u32 = 12;
const RM: u32 = 13;
const SET_PERMS: u32 = 14;
const IS_INTRODUCED: u32 = 17;
const RESUME: u32 = 18;
const SET_TARGET: u32 = 19;
const RESET_WATCHES: u32 = 21;
const DIRECTORY_PART: u32 = 22;

/// A string with its zero.
fn z(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

/// Strings, each with its zero.
fn zs(texts: &[&str]) -> Vec<u8> {
    texts.iter().flat_map(|t| z(t)).collect()
}

/// A path and a value.
fn value(path: &str, value: &[u8]) -> Vec<u8> {
    [&z(path)[..], value].concat()
}

impl Served {
    pub fn store(&mut self) {
        self.reading();
        self.writing();
        self.making();
        self.removing();
        self.listing();
        self.permissions();
        self.transactions();
        self.watches();
        self.others();
        self.bytes();
        self.limits();
    }

    /// A case of one call.
    fn try_one(&mut self, name: &str, kind: u32, payload: &[u8]) {
        let r = self.ask(kind, 0, payload);
        self.case(format!("xs.{name}"), r);
    }

    fn reading(&mut self) {
        for (name, payload) in [
            ("name", z("name")),
            ("domid", z("domid")),
            ("absolute", z(&format!("/local/domain/{}/name", self.own))),
            ("missing", z("data/nothing")),
            ("missing_above", z("data/nothing/at/all")),
            ("unterminated", b"name".to_vec()),
            ("nothing", Vec::new()),
            ("empty_string", z("")),
            ("two_strings", zs(&["name", "name"])),
            ("zero_within", b"na\0me\0".to_vec()),
            ("root", z("/")),
            ("trailing_slash", z("data/")),
            ("double_slash", z("data//x")),
            ("leading_double_slash", z("//local")),
            ("only_slashes", z("//")),
            ("space", z("data/a b")),
            ("dot", z("data/a.b")),
            ("dots", z("data/../name")),
            ("colon", z("data/a:b")),
            ("comma", z("data/a,b")),
            ("tilde", z("data/a~b")),
            ("plus", z("data/a+b")),
            ("at_within", z("data/a@b")),
            ("at_in_front", z("data/@ab")),
            ("special", z("@releaseDomain")),
            ("high_byte", b"data/\xe9\0".to_vec()),
            ("newline", z("data/a\nb")),
            ("upper_case", z("Name")),
            ("of_dom0", z("/local/domain/0/name")),
            ("folder_of_dom0", z("/local/domain/0")),
            ("missing_of_dom0", z("/local/domain/0/nothing")),
            ("domain", z("/local/domain")),
            ("local", z("/local")),
            ("of_nobody", z("/local/domain/77/name")),
            ("libxl", z(&format!("/libxl/{}/type", self.own))),
            ("tool", z("/tool/xenstored")),
            ("missing_at_root", z("/nothing")),
            ("missing_at_root_below", z("/nothing/at/all")),
            ("relative_dots", z("./name")),
            ("relative_2047", z(&"a".repeat(2047))),
            ("relative_2048", z(&"a".repeat(2048))),
            ("relative_2049", z(&"a".repeat(2049))),
            ("absolute_3071", z(&format!("/{}", "a".repeat(3070)))),
            ("absolute_3072", z(&format!("/{}", "a".repeat(3071)))),
            ("absolute_3073", z(&format!("/{}", "a".repeat(3072)))),
            ("absolute_4000", z(&format!("/{}", "a".repeat(3999)))),
        ] {
            self.try_one(&format!("read.{name}"), READ, &payload);
        }
    }

    fn writing(&mut self) {
        let full = [&z("data/full")[..], &[b'x'; 4096 - 10][..]].concat();
        for (name, payload, back) in [
            ("new", value("data/w", b"one"), "data/w"),
            ("again", value("data/w", b"two"), "data/w"),
            ("nothing", value("data/w", b""), "data/w"),
            ("bytes", value("data/w", b"\x01\0\xff\n"), "data/w"),
            ("with_zero", value("data/w", b"text\0"), "data/w"),
            ("below_missing", value("data/p/q/r", b"deep"), "data/p/q/r"),
            ("above_is_empty", value("data/p/q/s", b""), "data/p/q"),
            ("value_1900", value("data/w", &[b'v'; 1900]), "data/w"),
            ("value_2047", value("data/w", &[b'v'; 2047]), "data/w"),
            ("value_2048", value("data/w", &[b'v'; 2048]), "data/w"),
            ("value_2049", value("data/w", &[b'v'; 2049]), "data/w"),
            ("payload_4096", full, "data/full"),
            ("no_value", b"data/w".to_vec(), "data/w"),
            ("empty_payload", Vec::new(), "data/w"),
            ("no_path", value("", b"x"), "data/w"),
            ("not_own", value("name", b"other"), "name"),
            ("new_not_own", value("fresh", b"x"), "fresh"),
            ("root", value("/", b"x"), "/"),
            ("at_root", value("/fresh", b"x"), "/fresh"),
            ("of_dom0", value("/local/domain/0/name", b"x"), "name"),
            ("trailing_slash", value("data/t/", b"x"), "data/t"),
            ("double_slash", value("data//t", b"x"), "data/t"),
            ("bad_character", value("data/a b", b"x"), "data"),
            ("special", value("@releaseDomain", b"x"), "data"),
            (
                "long_name",
                value(&format!("data/{}", "n".repeat(1000)), b"x"),
                "data",
            ),
        ] {
            self.ask(WRITE, 0, &value("data/w", b"before"));
            self.try_one(&format!("write.{name}"), WRITE, &payload);
            self.try_one(&format!("write.{name}.read"), READ, &z(back));
        }
        // Components, of which the domain's folder has three.
        for depth in [60, 61, 62] {
            let path = format!("data{}", "/d".repeat(depth - 4));
            let r = self.ask(WRITE, 0, &value(&path, b"x"));
            self.case(format!("xs.write.depth_{depth}"), r);
        }
        for depth in [64, 65, 66, 100] {
            let path = format!("data{}", "/e".repeat(depth - 4));
            let r = self.ask(WRITE, 0, &value(&path, b"x"));
            self.case(format!("xs.write.depth_{depth}"), r);
        }
        for path in ["data/w", "data/p", "data/d", "data/e", "data/full"] {
            self.ask(RM, 0, &z(path));
        }
    }

    fn making(&mut self) {
        self.ask(WRITE, 0, &value("data/m", b"kept"));
        for (name, payload, back) in [
            ("new", z("data/n"), "data/n"),
            ("there", z("data/m"), "data/m"),
            ("below_missing", z("data/a/b/c"), "data/a/b"),
            ("not_own", z("fresh"), "fresh"),
            ("there_not_own", z("name"), "name"),
            ("root", z("/"), "/"),
            ("at_root", z("/fresh"), "/fresh"),
            ("of_dom0", z("/local/domain/0/fresh"), "name"),
            ("unterminated", b"data/u".to_vec(), "data/u"),
            ("two_strings", zs(&["data/x", "data/y"]), "data/x"),
            ("empty_string", z(""), "data"),
            ("nothing", Vec::new(), "data"),
            ("trailing_slash", z("data/t/"), "data/t"),
            ("special", z("@fresh"), "data"),
        ] {
            self.try_one(&format!("mkdir.{name}"), MKDIR, &payload);
            self.try_one(&format!("mkdir.{name}.read"), READ, &z(back));
        }
    }

    fn removing(&mut self) {
        self.ask(WRITE, 0, &value("data/tree/a/b", b"x"));
        self.ask(WRITE, 0, &value("data/leaf", b"x"));
        for (name, payload, back) in [
            ("leaf", z("data/leaf"), "data/leaf"),
            ("again", z("data/leaf"), "data/leaf"),
            ("missing_below_missing", z("data/no/no"), "data"),
            ("missing_far_below", z("data/no/no/no"), "data"),
            ("tree", z("data/tree"), "data/tree/a/b"),
            ("tree_is_gone", z("data/tree/a"), "data/tree"),
            ("root", z("/"), "/"),
            ("not_own", z("name"), "name"),
            ("home", z(&format!("/local/domain/{}", self.own)), "name"),
            ("of_dom0", z("/local/domain/0/name"), "name"),
            ("missing_not_own", z("nothing"), "name"),
            ("missing_at_root", z("/nothing"), "/"),
            ("unterminated", b"data/a".to_vec(), "data/a"),
            ("two_strings", zs(&["data/a", "data/n"]), "data/a"),
            ("empty_string", z(""), "data"),
            ("nothing", Vec::new(), "data"),
            ("special", z("@releaseDomain"), "data"),
            ("own_in_foreign", z("attr"), "attr"),
            ("own_in_foreign_again", z("attr"), "attr"),
        ] {
            self.try_one(&format!("rm.{name}"), RM, &payload);
            self.try_one(&format!("rm.{name}.read"), READ, &z(back));
        }
        self.try_one("mkdir.own_in_foreign", MKDIR, &z("attr"));
        for path in ["data/m", "data/n", "data/a", "data/x"] {
            self.ask(RM, 0, &z(path));
        }
    }

    fn listing(&mut self) {
        for name in ["one", "two", "three"] {
            self.ask(WRITE, 0, &value(&format!("data/l/{name}"), b""));
        }
        for (name, payload) in [
            ("three", z("data/l")),
            ("none", z("data/l/one")),
            ("missing", z("data/nothing")),
            ("root", z("/")),
            ("home_by_number", z(&format!("/local/domain/{}", self.own))),
            ("home_relative", z("")),
            ("domains", z("/local/domain")),
            ("of_dom0", z("/local/domain/0")),
            ("unterminated", b"data/l".to_vec()),
            ("two_strings", zs(&["data/l", "data"])),
            ("control", z("control")),
            ("devices", z("device")),
        ] {
            self.try_one(&format!("directory.{name}"), DIRECTORY, &payload);
        }
        self.ask(RM, 0, &z("data/l/two"));
        self.ask(WRITE, 0, &value("data/l/four", b""));
        self.try_one("directory.order_after_rm", DIRECTORY, &z("data/l"));
        // Its first string is the node's generation, which is a number.
        let part = |s: &mut Self, payload: &[u8]| {
            let reply = s.call(DIRECTORY_PART, 0, payload);
            if reply.kind != DIRECTORY_PART {
                return format!("error {}", show(&reply.payload));
            }
            let at = reply.payload.iter().position(|b| *b == 0).unwrap_or(0);
            let (generation, rest) = reply.payload.split_at(at);
            let number = !generation.is_empty() && generation.iter().all(u8::is_ascii_digit);
            let rest = rest.get(1..).unwrap_or_default();
            if rest.len() > 200 {
                format!(
                    "number {number}, {} bytes, ended {}",
                    rest.len(),
                    rest.ends_with(b"\0\0")
                )
            } else {
                format!("number {number}, {}", show(rest))
            }
        };
        for (name, payload) in [
            ("begin", zs(&["data/l", "0"])),
            ("second", zs(&["data/l", "4"])),
            ("within_name", zs(&["data/l", "2"])),
            ("end", zs(&["data/l", "15"])),
            ("beyond", zs(&["data/l", "1000"])),
            ("of_none", zs(&["data/l/one", "0"])),
            ("no_number", zs(&["data/l", "x"])),
            ("empty_number", zs(&["data/l", ""])),
            ("minus", zs(&["data/l", "-1"])),
            ("no_offset", z("data/l")),
            ("missing", zs(&["data/nothing", "0"])),
            ("of_dom0", zs(&["/local/domain/0", "0"])),
            ("three_strings", zs(&["data/l", "0", "x"])),
        ] {
            let r = part(self, &payload);
            self.case(format!("xs.directory_part.{name}"), r);
        }
        for i in 0..7 {
            self.ask(
                WRITE,
                0,
                &value(&format!("data/many/{i}{}", "x".repeat(240)), b""),
            );
        }
        let r = self.call(DIRECTORY, 0, &z("data/many")).payload.len();
        self.case("xs.directory.long", r);
        let r = part(self, &zs(&["data/many", "0"]));
        self.case("xs.directory_part.long", r);
        let r = part(self, &zs(&["data/many", "968"]));
        self.case("xs.directory_part.rest_of_long", r);
        self.ask(RM, 0, &z("data/many"));
        self.ask(RM, 0, &z("data/l"));
    }

    fn permissions(&mut self) {
        self.ask(WRITE, 0, &value("data/o", b"x"));
        for (name, path) in [
            ("home", format!("/local/domain/{}", self.own)),
            ("name", "name".to_string()),
            ("domid", "domid".to_string()),
            ("data", "data".to_string()),
            ("new", "data/o".to_string()),
            ("control", "control".to_string()),
            ("shutdown", "control/shutdown".to_string()),
            ("poweroff", "control/feature-poweroff".to_string()),
            (
                "platform",
                "control/platform-feature-xs_reset_watches".to_string(),
            ),
            ("device", "device".to_string()),
            ("suspend", "device/suspend".to_string()),
            ("suspend_port", "device/suspend/event-channel".to_string()),
            ("console", "console".to_string()),
            ("console_backend", "console/backend".to_string()),
            ("console_backend_id", "console/backend-id".to_string()),
            ("store_port", "store/port".to_string()),
            ("memory_target", "memory/target".to_string()),
            ("cpu", "cpu/0/availability".to_string()),
            ("vm", "vm".to_string()),
            ("drivers", "drivers".to_string()),
            ("feature", "feature".to_string()),
            ("error", "error".to_string()),
            ("root", "/".to_string()),
            ("local", "/local".to_string()),
            ("dom0", "/local/domain/0".to_string()),
            ("tool", "/tool".to_string()),
            ("missing", "data/nothing".to_string()),
            ("release", "@releaseDomain".to_string()),
            ("introduce", "@introduceDomain".to_string()),
            ("other_special", "@nothing".to_string()),
        ] {
            self.try_one(&format!("get_perms.{name}"), GET_PERMS, &z(&path));
        }
        self.try_one("get_perms.unterminated", GET_PERMS, b"data");
        let own = self.own;
        let me = |letter: &str| format!("{letter}{own}");
        let many: Vec<String> = (0..6).map(|_| "r0".to_string()).collect();
        let list = |first: String, rest: usize| -> Vec<String> {
            core::iter::once(first)
                .chain(many.iter().take(rest).cloned())
                .collect()
        };
        for (name, path, perms) in [
            ("private", "data/o", [me("n")].to_vec()),
            ("read_for_dom0", "data/o", [me("n"), "r0".into()].to_vec()),
            ("both_for_all", "data/o", [me("b")].to_vec()),
            ("four_others", "data/o", list(me("n"), 4)),
            ("five_others", "data/o", list(me("n"), 5)),
            ("six_others", "data/o", list(me("n"), 6)),
            ("owner_dom0", "data/o", ["n0".into(), me("b")].to_vec()),
            ("owner_nobody", "data/o", ["n77".into()].to_vec()),
            (
                "other_is_nobody",
                "data/o",
                [me("n"), "r77".into()].to_vec(),
            ),
            ("other_is_self", "data/o", [me("n"), me("w")].to_vec()),
            ("bad_letter", "data/o", [me("x")].to_vec()),
            ("no_letter", "data/o", [me("")].to_vec()),
            ("no_number", "data/o", ["n".into()].to_vec()),
            ("text_after", "data/o", [format!("n{own}x")].to_vec()),
            ("minus", "data/o", ["n-1".into()].to_vec()),
            ("large", "data/o", [me("n"), "r99999".into()].to_vec()),
            ("reserved", "data/o", [me("n"), "r32752".into()].to_vec()),
            ("empty_entry", "data/o", [String::new()].to_vec()),
            ("second_empty", "data/o", [me("n"), String::new()].to_vec()),
            ("none", "data/o", Vec::new()),
            ("missing", "data/nothing", [me("n")].to_vec()),
            ("not_own", "name", [me("b")].to_vec()),
            ("of_dom0", "/local/domain/0", [me("b")].to_vec()),
            ("release", "@releaseDomain", [me("b")].to_vec()),
            ("other_special", "@nothing", [me("b")].to_vec()),
            ("bad_path", "data/o/", [me("n")].to_vec()),
        ] {
            let usual = [z("data/o"), z(&me("n"))].concat();
            self.ask(SET_PERMS, 0, &usual);
            let perms: Vec<&str> = perms.iter().map(String::as_str).collect();
            let payload = [z(path), zs(&perms)].concat();
            self.try_one(&format!("set_perms.{name}"), SET_PERMS, &payload);
            self.try_one(&format!("set_perms.{name}.after"), GET_PERMS, &z("data/o"));
        }
        self.try_one(
            "set_perms.unterminated",
            SET_PERMS,
            &[&z("data/o")[..], b"n1"].concat(),
        );
        // What is made below has them too.
        self.ask(SET_PERMS, 0, &[z("data/o"), z(&me("r")), z("b0")].concat());
        self.ask(WRITE, 0, &value("data/o/below", b""));
        self.try_one("get_perms.inherited", GET_PERMS, &z("data/o/below"));
        self.ask(RM, 0, &z("data/o"));
    }

    /// Starts a transaction.
    fn start(&mut self) -> u32 {
        let reply = self.call(START, 0, b"\0");
        let digits = reply.payload.split(|b| *b == 0).next().unwrap_or_default();
        core::str::from_utf8(digits)
            .ok()
            .and_then(|t| t.parse().ok())
            .unwrap_or(0)
    }

    fn transactions(&mut self) {
        self.ask(WRITE, 0, &value("data/t", b"before"));
        let reply = self.call(START, 0, b"\0");
        let number = reply
            .payload
            .iter()
            .take_while(|b| b.is_ascii_digit())
            .count();
        self.case(
            "xs.tx.start",
            format!(
                "kind {} number {} rest {}",
                reply.kind,
                number > 0,
                show(&reply.payload[number..])
            ),
        );
        let digits = core::str::from_utf8(&reply.payload[..number]);
        let tx: u32 = digits.ok().and_then(|t| t.parse().ok()).unwrap_or(0);
        let steps: &[(&str, u32, bool, Vec<u8>)] = &[
            ("write", WRITE, true, value("data/t", b"inside")),
            ("read_inside", READ, true, z("data/t")),
            ("read_outside", READ, false, z("data/t")),
            ("new", WRITE, true, value("data/t/new", b"x")),
            ("new_inside", READ, true, z("data/t/new")),
            ("new_outside", READ, false, z("data/t/new")),
            ("directory_inside", DIRECTORY, true, z("data/t")),
            ("directory_outside", DIRECTORY, false, z("data/t")),
            ("start_within", START, true, z("")),
            ("watch_within", WATCH, true, zs(&["data/none", "within"])),
            (
                "unwatch_within",
                UNWATCH,
                true,
                zs(&["data/none", "within"]),
            ),
            ("perms_within", GET_PERMS, true, z("data/t/new")),
            ("domain_path_within", GET_DOMAIN_PATH, true, z("0")),
            ("not_own_within", WRITE, true, value("name", b"x")),
            ("missing_within", READ, true, z("data/nothing")),
            ("bad_path_within", READ, true, z("data//")),
            ("end_bad_word", END, true, z("X")),
            ("end_after_bad_word", END, true, z("T")),
            ("end_again", END, true, z("T")),
            ("after", READ, false, z("data/t")),
        ];
        for (name, kind, inside, payload) in steps {
            let r = self.ask(*kind, if *inside { tx } else { 0 }, payload);
            self.case(format!("xs.tx.{name}"), r);
        }
        self.wire.events.clear();
        let tx = self.start();
        self.ask(WRITE, tx, &value("data/t", b"committed"));
        let r = self.ask(END, tx, &z("T"));
        self.case("xs.tx.commit", r);
        self.try_one("tx.commit.after", READ, &z("data/t"));
        let tx = self.start();
        self.ask(WRITE, tx, &value("data/t", b"aborted"));
        self.ask(RM, tx, &z("data/t"));
        let r = self.ask(END, tx, &z("F"));
        self.case("xs.tx.abort", r);
        self.try_one("tx.abort.after", READ, &z("data/t"));
        let tx = self.start();
        let r = self.ask(END, tx, &z("T"));
        self.case("xs.tx.empty", r);
        // Something changes outside in the meantime.
        for (name, inside, outside) in [
            (
                "write_write",
                (WRITE, value("data/t", b"in")),
                (WRITE, value("data/t", b"out")),
            ),
            (
                "read_write",
                (READ, z("data/t")),
                (WRITE, value("data/t", b"out")),
            ),
            (
                "write_elsewhere",
                (WRITE, value("data/t", b"in")),
                (WRITE, value("data/u", b"out")),
            ),
            (
                "write_rm",
                (WRITE, value("data/t", b"in")),
                (RM, z("data/t")),
            ),
            (
                "rm_write",
                (RM, z("data/u")),
                (WRITE, value("data/u", b"out")),
            ),
            (
                "new_new",
                (WRITE, value("data/v", b"in")),
                (WRITE, value("data/v", b"out")),
            ),
            (
                "new_new_beside",
                (WRITE, value("data/v/a", b"in")),
                (WRITE, value("data/v/b", b"out")),
            ),
            (
                "missing_made",
                (READ, z("data/x")),
                (WRITE, value("data/x", b"out")),
            ),
            (
                "list_child",
                (DIRECTORY, z("data/v")),
                (WRITE, value("data/v/c", b"out")),
            ),
            (
                "read_perms",
                (READ, z("data/v")),
                (
                    SET_PERMS,
                    [z("data/v"), z(&format!("b{}", self.own))].concat(),
                ),
            ),
            ("mkdir_mkdir", (MKDIR, z("data/y")), (MKDIR, z("data/y"))),
            (
                "same_value",
                (READ, z("data/u")),
                (WRITE, value("data/u", b"out")),
            ),
        ] {
            let tx = self.start();
            self.ask(inside.0, tx, &inside.1);
            self.ask(outside.0, 0, &outside.1);
            let r = self.ask(END, tx, &z("T"));
            self.case(format!("xs.tx.conflict.{name}"), r);
            self.try_one(&format!("tx.conflict.{name}.after"), READ, &z("data/t"));
            self.ask(WRITE, 0, &value("data/t", b"again"));
        }
        let (a, b) = (self.start(), self.start());
        self.case("xs.tx.two.differ", a != b);
        self.ask(WRITE, a, &value("data/t", b"a"));
        self.ask(WRITE, b, &value("data/t", b"b"));
        let first = self.ask(END, a, &z("T"));
        let second = self.ask(END, b, &z("T"));
        self.case("xs.tx.two.same_node", format!("{first} {second}"));
        self.try_one("tx.two.same_node.after", READ, &z("data/t"));
        let (a, b) = (self.start(), self.start());
        self.ask(WRITE, a, &value("data/t", b"a"));
        self.ask(WRITE, b, &value("data/u", b"b"));
        let first = self.ask(END, b, &z("T"));
        let second = self.ask(END, a, &z("T"));
        self.case("xs.tx.two.other_nodes", format!("{first} {second}"));
        for (name, kind, tx, payload) in [
            ("unknown_read", READ, 12345, z("name")),
            ("unknown_end", END, 12345, z("T")),
            ("unknown_start", START, 12345, z("")),
            ("unknown_max", READ, u32::MAX, z("name")),
            ("end_none", END, 0, z("T")),
            ("end_none_bad_word", END, 0, z("X")),
            ("end_no_word", END, 0, Vec::new()),
            ("start_no_payload", START, 0, Vec::new()),
            ("start_with_text", START, 0, z("text")),
            ("start_unterminated", START, 0, b"text".to_vec()),
        ] {
            let reply = self.call(kind, tx, &payload);
            // A transaction's number is no matter.
            let r = if reply.kind == START {
                "number".into()
            } else {
                show(&reply.payload)
            };
            self.case(format!("xs.tx.{name}"), r);
        }
        self.ask(RESET_WATCHES, 0, b"\0");
        // How many may be open.
        let mut open = Vec::new();
        let r = loop {
            let reply = self.call(START, 0, b"\0");
            if reply.kind != START || open.len() > 100 {
                break format!("{} then {}", open.len(), show(&reply.payload));
            }
            open.push(reply.payload);
        };
        self.case("xs.tx.open", r);
        self.ask(RESET_WATCHES, 0, b"\0");
        self.try_one("tx.start_after_reset", END, &z("F"));
        for path in ["data/t", "data/u", "data/v", "data/x", "data/y"] {
            self.ask(RM, 0, &z(path));
        }
    }

    /// Does something; the events that come of it.
    fn fired(&mut self, name: &str, kind: u32, payload: &[u8]) {
        let r = self.ask(kind, 0, payload);
        let events = self.events();
        self.case(format!("xs.event.{name}"), format!("{r}; {events}"));
    }

    fn watches(&mut self) {
        self.wire.events.clear();
        self.ask(WRITE, 0, &value("data/w/a", b"x"));
        for (name, path, token) in [
            ("relative", "data/w", "rel"),
            ("again", "data/w", "rel"),
            ("other_token", "data/w", "two"),
            (
                "absolute",
                &format!("/local/domain/{}/data/w", self.own),
                "abs",
            ),
            ("missing", "data/later", "later"),
            ("below_missing", "data/no/no", "far"),
            ("of_dom0", "/local/domain/0/name", "zero"),
            ("root", "/", "root"),
            ("release", "@releaseDomain", "rd"),
            ("introduce", "@introduceDomain", "id"),
            ("other_special", "@nothing", "xx"),
            ("special_slash", "@a/b", "xx"),
            ("special_alone", "@", "xx"),
            ("empty_token", "data/e", ""),
            ("odd_token", "data/e", "a b/c:\x01"),
            ("empty_path", "", "ep"),
            ("trailing_slash", "data/w/", "ts"),
            ("double_slash", "data//w", "ds"),
            ("bad_character", "data/a.b", "bc"),
        ] {
            self.fired(&format!("watch.{name}"), WATCH, &zs(&[path, token]));
        }
        for (name, payload) in [
            ("no_token", z("data/w")),
            ("unterminated", b"data/w\0x".to_vec()),
            ("three_strings", zs(&["data/w3", "t", "x"])),
            ("nothing", Vec::new()),
        ] {
            self.fired(&format!("watch.{name}"), WATCH, &payload);
        }
        for (name, length) in [("1000", 1000), ("2000", 2000), ("3000", 3000)] {
            let reply = self.call(WATCH, 0, &zs(&["data/tok", &"t".repeat(length)]));
            self.case(format!("xs.event.watch.token_{name}"), show(&reply.payload));
            self.events();
            self.call(UNWATCH, 0, &zs(&["data/tok", &"t".repeat(length)]));
        }
        self.ask(UNWATCH, 0, &zs(&["/", "root"]));
        self.ask(UNWATCH, 0, &zs(&["data/w", "two"]));
        self.events();
        for (name, kind, payload) in [
            ("write", WRITE, value("data/w/a", b"y")),
            ("write_same", WRITE, value("data/w/a", b"y")),
            ("write_itself", WRITE, value("data/w", b"y")),
            ("write_new", WRITE, value("data/w/b", b"y")),
            ("write_deep", WRITE, value("data/w/c/d/e", b"y")),
            ("mkdir_new", MKDIR, z("data/w/m")),
            ("mkdir_there", MKDIR, z("data/w/m")),
            ("read", READ, z("data/w")),
            (
                "set_perms",
                SET_PERMS,
                [z("data/w/b"), z(&format!("r{}", self.own))].concat(),
            ),
            ("rm_below", RM, z("data/w/c")),
            ("rm_missing", RM, z("data/w/c")),
            ("rm_itself", RM, z("data/w")),
            ("later", WRITE, value("data/later", b"z")),
            ("far", WRITE, value("data/no/no/no", b"z")),
            ("above_far", WRITE, value("data/no", b"z")),
            ("rm_above_far", RM, z("data/no")),
            ("beside", WRITE, value("data/beside", b"z")),
            ("refused", WRITE, value("name", b"z")),
            ("name_begins_alike", WRITE, value("data/later2", b"z")),
        ] {
            self.fired(name, kind, &payload);
        }
        // Of a transaction all come at its end.
        let tx = self.start();
        self.ask(WRITE, tx, &value("data/w/a", b"1"));
        self.ask(WRITE, tx, &value("data/later", b"2"));
        self.ask(WRITE, tx, &value("data/w/b", b"3"));
        let events = self.events();
        self.case("xs.event.in_transaction", events);
        let r = self.ask(END, tx, &z("T"));
        let events = self.events();
        self.case("xs.event.commit", format!("{r}; {events}"));
        let tx = self.start();
        self.ask(WRITE, tx, &value("data/w/a", b"1"));
        self.ask(END, tx, &z("F"));
        let events = self.events();
        self.case("xs.event.abort", events);
        let tx = self.start();
        self.ask(WRITE, tx, &value("data/w/z", b"1"));
        self.ask(RM, tx, &z("data/w/z"));
        let r = self.ask(END, tx, &z("T"));
        let events = self.events();
        self.case("xs.event.made_and_removed", format!("{r}; {events}"));
        for (name, path, token) in [
            ("wrong_token", "data/w", "none"),
            (
                "other_form",
                &format!("/local/domain/{}/data/w", self.own),
                "rel",
            ),
            ("good", "data/w", "rel"),
            ("again", "data/w", "rel"),
            ("missing", "data/none", "none"),
            ("special", "@releaseDomain", "rd"),
            ("special_again", "@releaseDomain", "rd"),
            ("bad_path", "data//w", "ds"),
        ] {
            self.fired(&format!("unwatch.{name}"), UNWATCH, &zs(&[path, token]));
        }
        self.fired("unwatch.no_token", UNWATCH, &z("data/w"));
        self.fired("after_unwatch", WRITE, &value("data/w/a", b"y"));
        self.fired("reset", RESET_WATCHES, b"\0");
        self.fired("after_reset", WRITE, &value("data/w/a", b"y"));
        // How many may be set.
        let mut set = 0;
        let r = loop {
            let reply = self.call(WATCH, 0, &zs(&["data/q", &format!("{set}")]));
            if reply.kind != WATCH || set > 2000 {
                break format!("{set} then {}", show(&reply.payload));
            }
            set += 1;
        };
        self.case("xs.watches", r);
        self.ask(RESET_WATCHES, 0, b"\0");
        self.events();
        self.ask(RM, 0, &z("data/w"));
        self.ask(RM, 0, &z("data/later"));
        self.ask(RM, 0, &z("data/later2"));
        self.ask(RM, 0, &z("data/beside"));
    }

    fn others(&mut self) {
        let own = self.own.to_string();
        for (name, kind, payload) in [
            ("domain_path.own", GET_DOMAIN_PATH, z(&own)),
            ("domain_path.dom0", GET_DOMAIN_PATH, z("0")),
            ("domain_path.nobody", GET_DOMAIN_PATH, z("999")),
            ("domain_path.text", GET_DOMAIN_PATH, z("x")),
            ("domain_path.empty", GET_DOMAIN_PATH, z("")),
            ("domain_path.minus", GET_DOMAIN_PATH, z("-1")),
            ("domain_path.large", GET_DOMAIN_PATH, z("70000")),
            ("domain_path.text_after", GET_DOMAIN_PATH, z("1x")),
            ("domain_path.zeros", GET_DOMAIN_PATH, z("007")),
            ("domain_path.unterminated", GET_DOMAIN_PATH, b"0".to_vec()),
            ("introduced.own", IS_INTRODUCED, z(&own)),
            ("introduced.dom0", IS_INTRODUCED, z("0")),
            ("introduced.nobody", IS_INTRODUCED, z("77")),
            ("introduced.text", IS_INTRODUCED, z("x")),
            ("introduced.reserved", IS_INTRODUCED, z("32752")),
            ("introduced.large", IS_INTRODUCED, z("70000")),
            ("introduce", INTRODUCE, zs(&["77", "1", "1"])),
            ("introduce.nothing", INTRODUCE, Vec::new()),
            ("release", RELEASE, z("77")),
            ("release.own", RELEASE, z(&own)),
            ("release.dom0", RELEASE, z("0")),
            ("resume", RESUME, z(&own)),
            ("set_target", SET_TARGET, zs(&[&own, "0"])),
            ("control", CONTROL, z("help")),
            ("control.nothing", CONTROL, Vec::new()),
            ("op_15", 15, z("x")),
            ("op_16", 16, z("x")),
            ("op_20", 20, z("x")),
            ("op_23", 23, z("x")),
            ("op_24", 24, z("x")),
            ("op_128", 128, z("x")),
            ("op_max", u32::MAX, z("x")),
            ("op_23.nothing", 23, Vec::new()),
            ("reset.nothing", RESET_WATCHES, Vec::new()),
            ("reset.text", RESET_WATCHES, z("x")),
        ] {
            self.try_one(name, kind, &payload);
        }
    }

    /// Messages as bytes.
    fn bytes(&mut self) {
        let features = self.wire.page.read32(SERVER_FEATURES);
        self.case("xs.page.features", format!("{features:#x}"));
        let connection = self.wire.page.read32(CONNECTION);
        self.case("xs.page.connection", connection);
        // Several in one go.
        let mut all = Vec::new();
        for (id, path) in [(1, "name"), (2, "data/nothing"), (3, "domid")] {
            all.extend(message(READ, id, 0, &z(path)));
        }
        self.put_bytes(&all);
        let mut text = String::new();
        for _ in 0..3 {
            if let Some(reply) = self.answer(1000 * MS) {
                text += &format!("{}:{} ", reply.id, show(&reply.payload));
            }
        }
        self.case("xs.bytes.three_in_one", text.trim_end());
        // One byte at a time.
        for byte in message(READ, 4, 0, &z("name")) {
            self.put_bytes(&[byte]);
        }
        let reply = self.answer(1000 * MS);
        self.case(
            "xs.bytes.one_by_one",
            reply.map_or("none".into(), |r| show(&r.payload)),
        );
        // A head without its payload is not yet a request.
        let whole = message(READ, 5, 0, &z("name"));
        self.put_bytes(&whole[..16]);
        let early = self.answer(50 * MS).is_some();
        self.put_bytes(&whole[16..]);
        let reply = self.answer(1000 * MS);
        self.case(
            "xs.bytes.head_first",
            format!(
                "{early} {}",
                reply.map_or("none".into(), |r| show(&r.payload))
            ),
        );
        // The numbers come back, whatever they are.
        self.put_bytes(&message(READ, u32::MAX, 0, &z("name")));
        let reply = self.answer(1000 * MS);
        self.case(
            "xs.bytes.id",
            reply.map_or("none".into(), |r| format!("{:#x} {}", r.id, r.tx)),
        );
        self.put_bytes(&message(READ, 0, 0x8000_0000, &z("name")));
        let reply = self.answer(1000 * MS);
        self.case(
            "xs.bytes.tx",
            reply.map_or("none".into(), |r| {
                format!("{} {:#x} {}", r.id, r.tx, show(&r.payload))
            }),
        );
        // Longer than the ring, both ways.
        let long = "l".repeat(1500);
        self.try_one(
            "bytes.long_write",
            WRITE,
            &value("data/long", long.as_bytes()),
        );
        let reply = self.call(READ, 0, &z("data/long"));
        self.case("xs.bytes.long_read", reply.payload == long.as_bytes());
        self.ask(RM, 0, &z("data/long"));
        // Around the ring's end, wherever it is.
        let mut good = 0;
        for n in 0..100 {
            let reply = self.call(READ, 0, &z(&format!("data/{}", "n".repeat(n))));
            good += u32::from(reply.kind == 16);
        }
        self.case("xs.bytes.round_the_ring", good);
        // Many requests whose answers are not fetched.
        let mut sent = 0_u32;
        while sent < 200 {
            let request = message(READ, 10_000 + sent, 0, &z("name"));
            let free = REQ.free(&self.wire.page).unwrap_or(0) as usize;
            if free < request.len() {
                break;
            }
            self.put_bytes(&request);
            sent += 1;
            if sent.is_multiple_of(16) {
                self.wait(el1::time::now_ns() + 5 * MS);
            }
        }
        let mut order = true;
        let mut got = 0;
        while got < sent {
            let Some(reply) = self.answer(1000 * MS) else {
                break;
            };
            order &= reply.id == 10_000 + got;
            got += 1;
        }
        self.case(
            "xs.bytes.unfetched",
            format!("all {} in order {order}", got == sent),
        );
    }

    /// What a domain may use.
    fn limits(&mut self) {
        // A node's size is limited, so they are in several.
        let mut made = 0;
        let r = loop {
            let path = format!("data/q/{}/{made}", made / 100);
            let reply = self.call(MKDIR, 0, &z(&path));
            if reply.kind != MKDIR || made > 2000 {
                break show(&reply.payload);
            }
            made += 1;
        };
        self.case("xs.nodes", r);
        self.case("xs.nodes.about_1000", (900..1010).contains(&made));
        self.try_one("nodes.write_there", WRITE, &value("data/q/0/0", b"x"));
        self.try_one("nodes.rm", RM, &z("data/q/0/0"));
        self.try_one("nodes.after_rm", MKDIR, &z("data/q/0/new"));
        let tx = self.start();
        let r = self.ask(MKDIR, tx, &z("data/q/0/in_transaction"));
        self.case("xs.nodes.in_transaction", r);
        let r = self.ask(END, tx, &z("F"));
        self.case("xs.nodes.in_transaction.end", r);
        self.ask(RM, 0, &z("data/q"));
    }

    /// What ends the connection, and taking it up again.
    pub fn last_of_store(&mut self) {
        self.put_bytes(&[READ, 7, 0, 4097].map(u32::to_le_bytes).concat());
        let answered = self.answer(300 * MS).is_some();
        self.case("xs.too_long.answered", answered);
        let error = self.wire.page.read32(ERROR);
        self.case("xs.too_long.error", error);
        self.put_bytes(&message(READ, 8, 0, &z("name")));
        let served = self.answer(300 * MS).is_some();
        self.case("xs.too_long.served_after", served);
        // A reconnection sets everything back, where it is offered.
        if self.wire.page.read32(SERVER_FEATURES) & SERVER_FEATURE_RECONNECTION == 0 {
            return;
        }
        self.wire.page.write32(CONNECTION, RECONNECT);
        self.send(self.wire.port);
        let done = self.within(2000 * MS, |s| {
            (s.wire.page.read32(CONNECTION) == CONNECTED).then_some(())
        });
        self.case("xs.reconnect", done.is_some());
        let page = self.wire.page;
        let empty = [REQ.prod, REQ.cons, RSP.prod, RSP.cons].map(|at| page.read32(at));
        self.case("xs.reconnect.indexes", format!("{empty:?}"));
        let error = self.wire.page.read32(ERROR);
        self.case("xs.reconnect.error", error);
        let r = self.ask(READ, 0, &z("name"));
        self.case("xs.reconnect.read", r);
    }
}
