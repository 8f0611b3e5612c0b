// SPDX-License-Identifier: MIT OR Apache-2.0
use super::*;
use crate::editor::Completion;
use crate::fake::{Fake, run as wait};
use crate::host::{DiskFacts, Facts, MachineFacts, ShutdownCode};
use crate::life::tests::toolstack;
use serde_json::Value;

const CFG: &str =
    "name = 'linux'\nuuid='bdc998cb-c010-4165-97c2-c3167a8060e3'\nkernel = '/guests/Image'
memory = 16\nvcpus = 2\ndisk = ['/guests/a.img,raw,xvda,w']\n";

fn ready() -> Toolstack<Fake> {
    let t = toolstack();
    t.host()
        .files
        .borrow_mut()
        .insert("/guests/linux.cfg".to_owned(), CFG.into());
    t
}

/// Runs a line that must succeed.
fn good(t: &Toolstack<Fake>, line: &str) -> String {
    let mut out = String::new();
    let status = wait(run(t, line, &mut out));
    assert_eq!(status, Status::Done, "{line}: {out}");
    out
}

fn bad(t: &Toolstack<Fake>, line: &str) -> String {
    let mut out = String::new();
    assert_eq!(
        wait(run(t, line, &mut out)),
        Status::Failed,
        "{line}: {out}"
    );
    out
}

fn misused(t: &Toolstack<Fake>, line: &str) -> String {
    let mut out = String::new();
    assert_eq!(wait(run(t, line, &mut out)), Status::Usage, "{line}: {out}");
    out
}

fn json(t: &Toolstack<Fake>, line: &str) -> Value {
    serde_json::from_str(&good(t, line)).unwrap()
}

#[test]
fn words() {
    let split = |line: &str| verbs::split(line).unwrap();
    assert_eq!(split(""), [""; 0]);
    assert_eq!(split("  a  b\t c "), ["a", "b", "c"]);
    assert_eq!(
        split(r#"a "b c" 'd "e\' f\ g "\"h\\\n" x"y"'z'"#),
        ["a", "b c", "d \"e\\", "f g", "\"h\\\\n", "xyz"]
    );
    assert_eq!(split("a '' \"\" # comment"), ["a", "", ""]);
    assert_eq!(split("a#b"), ["a#b"]);
    assert_eq!(verbs::split("a 'b").unwrap_err(), "a ' is not closed");
    assert_eq!(verbs::split("a \"b\\").unwrap_err(), "a \" is not closed");
    assert!(verbs::split("a\\").is_err());
}

#[test]
fn misuse_is_told_with_the_usage() {
    let t = ready();
    for (line, error) in [
        (
            "lst",
            "error: there is no \"lst\"; did you mean \"list\"?\n",
        ),
        (
            "frobnicate",
            "error: there is no \"frobnicate\"; see: help\n",
        ),
        (
            "create",
            "error: create: too few words\nusage: create [-c] [-p] [-n] [-d] [-q] [-F] [--json] FILE [KEY=VALUE]...\n",
        ),
        (
            "list -x",
            "error: list: there is no option -x\nusage: list [-l] [-v] [--json] [DOMAIN]...\n",
        ),
        (
            "list --jsn",
            "error: list: there is no option --jsn\nusage: list [-l] [-v] [--json] [DOMAIN]...\n",
        ),
        (
            "info x",
            "error: info: \"x\" is one word too many\nusage: info [-n] [--json]\n",
        ),
        (
            "shutdown -t",
            "error: shutdown: -t needs its SECONDS\nusage: shutdown [-w] [-t SECONDS] [-a] [-F] [--json] GUEST... | -a\n",
        ),
        ("list 'x", "error: a ' is not closed\n"),
    ] {
        assert_eq!(misused(&t, line), error);
    }
    assert!(misused(&t, "list --json=x").starts_with("error: list: "));
    assert_eq!(
        [Status::Done, Status::Failed, Status::Usage].map(Status::code),
        [0, 1, 2]
    );
}

#[test]
fn help_for_everything() {
    let t = ready();
    let all = good(&t, "help");
    for v in verbs::VERBS {
        assert!(all.contains(&format!("\n  {} ", v.name)), "{}", v.name);
        let help = good(&t, &format!("help {}", v.name));
        assert_eq!(help, good(&t, &format!("{} -h", v.name)));
        assert_eq!(help, good(&t, &format!("vane {} --help", v.name)));
        assert!(help.starts_with(&format!("usage: {}", v.name)) && help.contains("-h, --help"));
        assert!(help.lines().all(|l| l.len() <= 79), "{help}");
        let mut letters: Vec<_> = v
            .options
            .iter()
            .filter_map(|o| o.short)
            .chain(['h'])
            .collect();
        letters.sort_unstable();
        assert!(letters.windows(2).all(|w| w[0] != w[1]), "{}", v.name);
    }
    assert_eq!(good(&t, "-h"), all);
    assert_eq!(
        bad(&t, "help lits"),
        "error: there is no \"lits\"; did you mean \"list\"?\n"
    );
    assert_eq!(
        good(&t, "help clear"),
        "usage: clear [--json]\n\nclear: clear the screen\n\n      --json  as JSON, for programs\n  -h, --help  show this\n"
    );
}

#[test]
fn a_session() {
    let t = ready();
    assert_eq!(good(&t, ""), "");
    assert_eq!(good(&t, "# nothing"), "");
    assert_eq!(
        good(&t, "create linux memory=8"),
        "domain 1 (linux) created\n"
    );
    assert_eq!(
        good(&t, "list"),
        "Name                                        ID   Mem VCPUs\tState\tTime(s)\n\
         Domain-0                                     0   128     1     r-----       2.3\n\
         linux                                        1     8     1     ------       1.5\n"
    );
    assert_eq!(good(&t, "domid linux"), "1\n");
    assert_eq!(good(&t, "domname 1"), "linux\n");
    good(&t, "pause linux");
    assert!(good(&t, "list linux").contains("--p---"));
    good(&t, "unpause 1");
    good(&t, "rename linux tux");
    assert_eq!(
        good(&t, "vcpu-list tux"),
        "Name                                ID  VCPU   CPU State   Time(s) Affinity (Hard / Soft)\n\
         tux                                  1     0     1   -b-       0.7 all / all\n\
         tux                                  1     1     -   --p       0.7 all / all\n"
    );
    assert_eq!(
        good(&t, "block-list tux"),
        "Vdev  BE  handle state evt-ch ring-ref BE-path\n\
         51712 0   1      1     -1     -1       /local/domain/0/backend/vbd/1/51712\n"
    );
    // What a front end with several queues writes.
    for (key, value) in [
        ("queue-0", "x"),
        ("queue-1", "x"),
        ("queue-0/ring-ref0", "9"),
        ("queue-0/event-channel", "5"),
        ("queue-1/ring-ref0", "10"),
        ("queue-1/event-channel", "6"),
    ] {
        good(
            &t,
            &format!("xenstore-write /local/domain/1/device/vbd/51712/{key} {value}"),
        );
    }
    let first = &json(&t, "block-list tux --json")[0];
    assert_eq!(
        (&first["event_channel"], &first["ring_ref"]),
        (&Value::from(5), &Value::from(9))
    );
    good(&t, "block-attach tux /guests/b.img,raw xvdb r");
    assert_eq!(json(&t, "block-list tux --json")[1]["vdev"], "xvdb");
    good(&t, "block-detach tux xvdb");
    assert_eq!(
        bad(&t, "block-detach tux xvdb"),
        "error: domain 1 has no disk xvdb; it has xvda\n"
    );
    assert!(bad(&t, "block-attach tux /guests/b.img").contains("there is no vdev"));
    assert_eq!(
        good(&t, "network-attach tux mac=00:16:3e:00:00:07 rate=8Mb/s"),
        "domain 1 has interface 0 now\n"
    );
    assert_eq!(
        good(&t, "network-list tux"),
        "Idx BE Mac Addr.         handle state evt-ch   tx-/rx-ring-ref BE-path\n\
         0   0  00:16:3e:00:00:07 0      1     -1/-1    -1/-1           /local/domain/0/backend/vif/1/0\n"
    );
    assert_eq!(json(&t, "network-list tux --json")[0]["bridge"], "xenbr0");
    assert_eq!(
        t.host()
            .node("/local/domain/0/backend/vif/1/0/rate")
            .as_deref(),
        Some("50000,50000")
    );
    assert_eq!(
        good(&t, "bridge-list"),
        "Bridge          Port     Mac Addr.         Link  In: frames / bytes / refused     Out: frames / bytes / dropped\n\
         xenbr0          eth0     52:54:00:12:34:56 down  7 / 700 / 0                      0 / 0 / 4\n\
         xenbr0          vif1.0   00:16:3e:00:00:07 up    3 / 180 / 1                      2 / 120 / 0\n"
    );
    let bridges = json(&t, "bridge-list --json");
    assert_eq!(bridges[0]["ports"][0]["mac"], "52:54:00:12:34:56");
    assert_eq!(bridges[0]["ports"][1]["in"]["refused"], 1);
    assert_eq!(bridges[0]["ports"][1]["macs"][0], "00:16:3e:00:00:07");
    assert_eq!(
        bad(&t, "network-attach tux devid=0"),
        "error: domain 1 has an interface 0 already; give another devid\n"
    );
    assert!(bad(&t, "network-attach tux brigde=x").contains("did you mean \"bridge\"?"));
    good(&t, "network-detach tux 00:16:3e:00:00:07");
    assert_eq!(
        bad(&t, "network-detach tux 0"),
        "error: domain 1 has no interface 0; see: network-list 1\n"
    );
    good(&t, "vcpu-set tux 1");
    good(&t, "mem-set tux 4096k");
    assert_eq!(
        t.host().node("/local/domain/1/memory/target").as_deref(),
        Some("4096")
    );
    assert_eq!(
        bad(&t, "mem-set tux much"),
        "error: \"much\" is no size; write for instance 256, 256m or 1g\n"
    );
    good(&t, "console tux");
    assert_eq!(*t.host().attached.borrow(), [DomId(1)]);
    assert_eq!(
        bad(&t, "console Domain-0"),
        "error: domain 0 is the control domain; this is for guests only\n"
    );
    assert_eq!(good(&t, "dmesg"), "(XEN) hello\n");
    assert_eq!(good(&t, "dmesg -c"), "last\n");
    assert!(good(&t, "uptime").contains("tux                                  1  0:00:0"));
    assert!(good(&t, "info").contains("\nfree_memory            : "));
    *t.host().machine.borrow_mut() = MachineFacts {
        board: "a board".to_owned(),
        facts: Some(Facts {
            uart: 2,
            uart_base: 0xfe21_5040,
            uart_intid: 125,
            list_registers: 4,
            interrupts: 224,
            cpus: 4,
            dma_limit: 0x4000_0000,
            ..Facts::default()
        }),
        gic: 2,
        started: 4,
        counter_hz: 54_000_000,
        memory: alloc::vec![(0x3000_0000, 0x800_0000)],
        disks: alloc::vec![DiskFacts {
            name: "volume".to_owned(),
            kind: "SD card",
            bytes: 1 << 30,
            read_only: false,
        }],
        volume: true,
        troubles: Vec::new(),
    };
    let said = good(&t, "doctor");
    for line in [
        "  board       a board\n",
        "  console     mini-UART at 0xfe215040, interrupt 125\n",
        "  interrupts  GICv2, 4 list registers, 224 interrupts\n",
        "  cpus        4 of 4 run\n",
        "  counter     54.000 MHz\n",
        "  dom0        128 MiB at 0x30000000; DMA reaches the first 1024 MiB\n",
        "  disk        volume: SD card, 1024 MiB\n",
        "  guests      on the disk volume\n",
        "? network     eth0 52:54:00:12:34:56, link down, on xenbr0; dom0 has no address\n",
        "? seed        none from the firmware\n",
    ] {
        assert!(said.contains(line), "{line} not in\n{said}");
    }
    {
        let mut m = t.host().machine.borrow_mut();
        (m.started, m.volume) = (3, false);
        m.memory = alloc::vec![(0x4000_0000, 0x800_0000)];
        m.troubles = alloc::vec!["no card answers".to_owned()];
    }
    let said = bad(&t, "doctor");
    for line in [
        "! cpus        3 of 4 run\n",
        "! dom0        128 MiB at 0x40000000; DMA",
        "? disk        no card answers\n",
        "! guests      no disk",
        "error: 3 things are wrong\n",
    ] {
        assert!(said.contains(line), "{line} not in\n{said}");
    }
    t.host().stop(DomId(1), ShutdownCode::Crash);
    assert!(good(&t, "list tux").contains("---sc-"));
    good(&t, "destroy tux");
    assert_eq!(
        bad(&t, "destroy tux"),
        "error: there is no domain \"tux\"; see: list\n"
    );
    assert_eq!(t.host().open.get(), 0);
}

#[test]
fn what_is_said_of_other_words() {
    let t = ready();
    for (word, part) in [
        ("exit", "poweroff ends it"),
        ("quit", "poweroff ends it"),
        ("trigger linux power", "no triggers"),
        ("debug-keys q", "no debug keys"),
        ("migrate", "neither saved nor moved"),
    ] {
        assert!(misused(&t, word).contains(part), "{word}");
    }
    assert!(bad(&t, "help exit").contains("poweroff ends it"));
    assert!(good(&t, "help").contains("Ctrl-R searches"));
    assert_eq!(good(&t, "clear"), "\x1b[H\x1b[2J");
}

/// A terminal with lines that were entered.
#[derive(Default)]
struct Entered(String);

impl Output for Entered {
    fn write(&mut self, text: &str) {
        self.0.push_str(text);
    }
    async fn flush(&mut self) {}
    async fn interrupted(&mut self) {
        core::future::pending::<()>().await;
    }
    fn history(&self) -> Vec<String> {
        ["list", "info", "history"].map(ToOwned::to_owned).into()
    }
}

#[test]
fn lines_of_before() {
    let t = ready();
    let shown = |line: &str| {
        let mut out = Entered::default();
        assert_eq!(wait(run(&t, line, &mut out)), Status::Done);
        out.0
    };
    assert_eq!(
        shown("history"),
        "    1  list\n    2  info\n    3  history\n"
    );
    assert_eq!(shown("history 1"), "    3  history\n");
    assert_eq!(
        shown("history 9 --json"),
        "[\n  \"list\",\n  \"info\",\n  \"history\"\n]\n"
    );
    assert!(bad(&t, "history x").contains("no number"));
}

#[test]
fn flags_of_xl() {
    let t = ready();
    assert_eq!(good(&t, "create -q linux"), "");
    assert!(good(&t, "list -v linux").contains("bdc998cb-c010-4165-97c2-c3167a8060e3 -\n"));
    assert_eq!(bad(&t, "unpause linux"), "error: domain 1 is not paused\n");
    assert!(good(&t, "info -n").contains("\nnuma_info "));
    assert_eq!(json(&t, "info -n --json")["numa_info"][0]["node"], 0);
    assert_eq!(
        good(&t, "console linux -t pv -n 0"),
        "console of linux (domain 1), from its beginning as far as kept; Ctrl-] leaves\n"
    );
    assert_eq!(
        bad(&t, "console linux -t vuart"),
        "error: domain 1 has no virtual UART; its configuration needs vuart = \"sbsa_uart\"\n"
    );
    assert!(bad(&t, "console -t serial linux").contains("there are pv and vuart"));
    assert!(bad(&t, "console -n 1 linux").contains("only 0"));
    // Several at once, and patterns.
    good(
        &t,
        "create -q linux name=web-a uuid=11111111-c010-4165-97c2-c3167a8060e3 disk=[]",
    );
    good(
        &t,
        "create -q linux name=web-b uuid=21111111-c010-4165-97c2-c3167a8060e3 disk=[]",
    );
    assert_eq!(
        bad(&t, "rename linux web-a"),
        "error: the name \"web-a\" is taken by domain 2; choose another\n"
    );
    good(&t, "rename linux linux");
    good(&t, "pause web-*");
    assert!(t.find("web-a").unwrap().paused && t.find("web-b").unwrap().paused);
    good(&t, "unpause web-? web-a");
    assert_eq!(
        bad(&t, "destroy db*"),
        "error: no guest's name is like \"db*\"; see: list\n"
    );
    good(&t, "destroy web-* linux");
    assert_eq!(t.host().domain_list().unwrap().len(), 1);
    // In the foreground until it is gone or kept.
    let said = good(&t, "create linux -d name=fore");
    assert!(
        said.starts_with('{') && said.ends_with("domain 4 (fore) created\n"),
        "{said}"
    );
    let mut out = Impatient::default();
    assert_eq!(
        wait(run(
            &t,
            "create linux -F name=two disk=[] uuid=31111111-c010-4165-97c2-c3167a8060e3",
            &mut out
        )),
        Status::Done
    );
    assert!(!t.is_over(DomId(5)));
    t.host().stop(DomId(5), ShutdownCode::Poweroff);
    wait(t.reap());
    assert!(t.is_over(DomId(5)));
    assert_eq!(bad(&t, "reboot"), "error: name a guest, or all with -a\n");
    t.host().obeys.set(true);
    assert!(good(&t, "reboot -a -w").starts_with("note: domain 4"));
}

/// A small terminal whose person presses keys one after the other.
struct Small(String, Vec<u8>);

impl Output for Small {
    fn write(&mut self, text: &str) {
        self.0.push_str(text);
    }
    async fn flush(&mut self) {}
    async fn interrupted(&mut self) {}
    async fn key(&mut self) -> u8 {
        self.1.remove(0)
    }
    fn size(&self) -> Option<Size> {
        Some(Size {
            rows: 6,
            columns: 30,
        })
    }
}

#[test]
fn what_domains_use() {
    let t = ready();
    good(&t, "create -q linux \"vif=['']\"");
    let once = good(&t, "top -1 -d 1");
    let lines: Vec<&str> = once.lines().collect();
    assert!(
        lines[0].ends_with("2 domains: 1 running, 1 blocked, 0 paused, 0 crashed"),
        "{once}"
    );
    assert_eq!(
        lines[2..],
        [
            "NAME         STATE  CPU(s) CPU(%)   MEM(k) MEM(%) VCPUS NETTX(k) NETRX(k) NETS VBDS",
            "Domain-0     r-----      2    0.0   131072   11.1     1        0        0    0    0",
            "linux        ------      1    0.0    16400    1.3     1        0        0    1    1",
        ]
    );
    // One that ran half of the time is first.
    t.host().busy.set(500);
    let rows = json(&t, "top --json -d 1");
    assert_eq!(
        (&rows[0]["name"], &rows[0]["cpu_percent"]),
        (&"linux".into(), &49.9.into())
    );
    assert_eq!(
        (&rows[0]["bytes_sent"], &rows[0]["bytes_received"]),
        (&180.into(), &120.into())
    );
    t.host().busy.set(0);
    // On a screen it is drawn in place, no wider and no higher than that, until q.
    let mut out = Small(String::new(), b" xq".to_vec());
    assert_eq!(wait(run(&t, "top", &mut out)), Status::Done);
    assert_eq!(out.1, b"");
    let frames: Vec<&str> = out.0.split("\x1b[H").collect();
    assert_eq!(frames.len(), 4);
    assert!(frames[0] == "\x1b[2J" && frames[3].ends_with("q leaves\r\x1b[K"));
    for frame in &frames[1..] {
        let rows: Vec<&str> = frame.lines().collect();
        assert_eq!(rows.len(), 5, "{frame}");
        assert!(
            rows.iter()
                .all(|r| r.trim_end_matches("\x1b[K").len() <= 30),
            "{frame}"
        );
    }
    for wrong in ["top -d 0", "top -d x", "top -d 3601"] {
        assert!(bad(&t, wrong).contains("no number of seconds"));
    }
}

#[test]
fn shares_and_limits() {
    let t = ready();
    good(&t, "create -q linux");
    good(&t, "vcpu-pin linux 1 0");
    assert_eq!(json(&t, "vcpu-list --json linux")[1]["affinity"], "0");
    good(&t, "vcpu-pin linux all 0-1 all");
    assert_eq!(json(&t, "vcpu-list --json linux")[1]["affinity"], "all");
    assert!(bad(&t, "vcpu-pin linux 2 0").contains("it has 0 to 1"));
    assert_eq!(
        bad(&t, "vcpu-pin linux 0 7"),
        "error: the machine has CPUs 0 to 1, none of \"7\"\n"
    );
    assert!(bad(&t, "vcpu-pin linux 0 x").contains("names no CPUs"));
    assert!(bad(&t, "vcpu-pin linux 0 0 1").contains("no soft affinity"));
    good(&t, "sched-credit2 -d linux -w 512");
    assert_eq!(
        good(&t, "sched-credit2"),
        "Name                                ID Weight\n\
         Domain-0                             0    256\n\
         linux                                1    512\n"
    );
    assert_eq!(json(&t, "sched-credit2 -d linux --json")[0]["weight"], 512);
    for wrong in ["-w 512", "-d linux -w 0", "-d linux -w 65536"] {
        assert!(bad(&t, &format!("sched-credit2 {wrong}")).contains("1 to 65535"));
    }
    good(&t, "mem-max linux 32");
    assert_eq!(t.find("linux").unwrap().max_pages, 33 * 256);
    assert!(bad(&t, "mem-max linux 8").contains("mem-set 1 8"));
    assert!(
        good(&t, "vcpu-set linux 2").starts_with("note: domain 1 brings 1 vcpus more up itself")
    );
    good(&t, "sysrq linux s");
    assert_eq!(
        t.host().node("/local/domain/1/control/sysrq").as_deref(),
        Some("s")
    );
    assert!(bad(&t, "sysrq linux sync").contains("is no key"));
    // What it was created with is not what it is started anew with.
    good(&t, "config-update linux linux memory=24 name=other");
    let long = json(&t, "list -l linux");
    assert_eq!(long[0]["config"]["memory"], 24);
    assert_eq!(long[0]["config"]["name"], "linux");
    // With the pages that it shares with dom0.
    assert_eq!(long[0]["memory_given_kib"], (16 << 10) + 16);
    good(&t, "reboot -F linux");
    assert_eq!(json(&t, "list linux --json")[0]["memory_mib"], 24);
    assert_eq!(
        json(&t, "list linux --json")[0]["uuid"],
        "bdc998cb-c010-4165-97c2-c3167a8060e3"
    );
}

#[test]
fn every_verb_has_json() {
    let t = ready();
    let made = json(&t, "create linux --json \"vif=['']\"");
    assert_eq!(
        (&made["domid"], &made["name"]),
        (&1.into(), &"linux".into())
    );
    assert!(json(&t, "list -l linux")[0]["vif"][0]["mac"].is_string());
    assert_eq!(json(&t, "dmesg --json")["lines"][0], "(XEN) hello");
    assert_eq!(json(&t, "domid linux --json")["domid"], 1);
    assert_eq!(json(&t, "domname 1 --json")["name"], "linux");
    assert_eq!(
        json(&t, "xenstore-read --json /local/domain/1/name")["/local/domain/1/name"],
        "linux"
    );
    t.host().polite.set(true);
    good(&t, "xenstore-write /tool/w 1");
    assert_eq!(json(&t, "xenstore-watch --json /tool/w -n 1")["value"], "6");
    t.host().polite.set(false);
    assert_eq!(
        json(
            &t,
            "create -n --json linux name=x disk=[] uuid=11111111-c010-4165-97c2-c3167a8060e3"
        )["config"]["name"],
        "x"
    );
    // What fails says so in JSON as well.
    let failed: Value = serde_json::from_str(&bad(&t, "domid nobody --json")).unwrap();
    assert!(failed["error"].as_str().unwrap().contains("nobody"));
    assert!(bad(&t, "console linux --json").contains("a console has no JSON"));
    assert!(bad(&t, "create linux --json -c").contains("a console has no JSON"));
    // And those that say nothing, or words.
    for v in verbs::VERBS {
        if !matches!(v.id, Id::Console | Id::XenstoreWatch) {
            let mut out = String::new();
            let words = ["linux"; 4].iter().take(v.count.0).copied();
            let line = words.fold(format!("{} --json", v.name), |line, w| {
                format!("{line} {w}")
            });
            wait(run(&t, &line, &mut out));
            let value = serde_json::from_str::<Value>(&out);
            assert!(value.is_ok(), "{line}: {out}");
        }
    }
}

#[test]
fn creating() {
    let t = ready();
    assert_eq!(
        bad(&t, "create nothing"),
        "error: /guests/nothing or /guests/nothing.cfg: there is no such file; /guests has linux.cfg\n"
    );
    assert!(bad(&t, "create /guests/Image").contains("UTF-8"));
    assert_eq!(
        bad(&t, "create linux.cfg memory=x"),
        "error: command line:1:8: memory = \"x\" is no number; write a whole number from 1 to 1043456\n"
    );
    t.host().files.borrow_mut().insert(
        "/guests/typo.cfg".to_owned(),
        format!("{CFG}memroy = 1\nvif = ['']\n").into(),
    );
    assert_eq!(
        good(&t, "create typo -p"),
        "warning: /guests/typo.cfg:7: unknown key \"memroy\" is ignored; did you mean \"memory\"?\n\
         domain 1 (linux) created\n"
    );
    assert!(t.find("linux").unwrap().paused);
    good(&t, "destroy linux");
    // A dry run makes nothing, and tells what would go wrong.
    let before = t.host().state.borrow().clone();
    let config: Value = json(
        &t,
        "create -n linux \"disk=['/guests/b.img,raw,xvdb,r']\" name=dry",
    );
    assert_eq!(
        (&config["name"], &config["disk"][0]["vdev"]),
        (&"dry".into(), &"xvdb".into())
    );
    assert!(bad(&t, "create -n linux kernel=/guests/none").contains("there is no such file"));
    assert!(
        bad(
            &t,
            "create -n linux ramdisk=/guests/initrd memory=1 \"cmdline=a\nb\" vcpus=200"
        )
        .contains("out of range")
    );
    assert!(*t.host().state.borrow() == before);
    good(&t, "create linux -c");
    assert_eq!(t.host().attached.borrow().len(), 1);
}

#[test]
fn shutting_down() {
    let t = ready();
    good(&t, "create linux");
    assert_eq!(bad(&t, "shutdown"), "error: name a guest, or all with -a\n");
    assert_eq!(
        bad(&t, "shutdown linux -t 3"),
        "note: domain 1 has not said that it listens to this; to end it at once: destroy 1\n\
         error: domain 1 has not stopped after 3 s; to end it at once: destroy 1\n"
    );
    t.host().obeys.set(true);
    good(
        &t,
        "xenstore-write /local/domain/1/control/feature-poweroff 1",
    );
    assert_eq!(good(&t, "shutdown -w linux"), "");
    assert_eq!(wait(t.reap()).len(), 1);
    assert_eq!(good(&t, "shutdown -a -w"), "");

    t.host().obeys.set(false);
    good(&t, "create linux");
    assert_eq!(good(&t, "reboot -F linux"), "domain 2 is domain 3 now\n");

    // One that listens is asked, another is ended; what their configurations say is not done.
    good(
        &t,
        "create linux name=two uuid=11111111-c010-4165-97c2-c3167a8060e3 on_poweroff=restart disk=[]",
    );
    good(
        &t,
        "xenstore-write /local/domain/4/control/feature-poweroff 1",
    );
    t.host().obeys.set(true);
    assert_eq!(good(&t, "poweroff"), "asking domain 4 (two) to power off\n");
    assert_eq!(t.host().powered.get(), Some(false));
    assert!(wait(t.reap()).is_empty() && t.host().state.borrow().doms.is_empty());
}

/// A terminal whose person presses Ctrl-C at once.
#[derive(Default)]
struct Impatient(String);

impl Output for Impatient {
    fn write(&mut self, text: &str) {
        self.0.push_str(text);
    }
    async fn flush(&mut self) {}
    async fn interrupted(&mut self) {}
}

#[test]
fn waiting_can_be_interrupted() {
    let t = ready();
    good(&t, "create linux");
    let mut out = Impatient::default();
    assert_eq!(wait(run(&t, "reboot -w linux", &mut out)), Status::Failed);
    assert!(
        out.0
            .ends_with("error: interrupted; domain 1 has not stopped yet\n"),
        "{}",
        out.0
    );
    assert_eq!(
        wait(run(&t, "xenstore-watch -n 0 /local", &mut out)),
        Status::Done
    );
}

#[test]
fn the_store() {
    let t = ready();
    good(&t, "create linux disk=[]");
    assert_eq!(
        good(&t, "xenstore-ls -fp /local/domain/1/memory"),
        "/local/domain/1/memory/static-max = \"16384\"   (n0,r1)\n\
         /local/domain/1/memory/target = \"16384\"   (n0,r1)\n\
         /local/domain/1/memory/videoram = \"0\"   (n0,r1)\n"
    );
    let tree = good(&t, "xenstore-ls");
    assert!(
        tree.contains("local = \"\"\n domain = \"\"\n  0 = \"\"\n"),
        "{tree}"
    );
    assert_eq!(
        json(&t, "xenstore-ls --json /vm")["/vm/bdc998cb-c010-4165-97c2-c3167a8060e3/name"]["value"],
        "linux"
    );
    good(&t, "xenstore-write a 'x \"y\"\n' /tool/b 2");
    assert_eq!(good(&t, "xenstore-read a /tool/b"), "x \\\"y\\\"\\n\n2\n");
    assert_eq!(
        good(&t, "xenstore-read -p /local/domain/0/name"),
        "/local/domain/0/name: Domain-0\n"
    );
    assert_eq!(good(&t, "xenstore-list /local"), "domain\npool\n");
    assert_eq!(json(&t, "xenstore-list --json /local")[0], "/local/domain");
    good(&t, "xenstore-rm /tool/b");
    assert_eq!(
        bad(&t, "xenstore-read /tool/b"),
        "error: /tool/b: there is no such thing (ENOENT)\n"
    );
    assert_eq!(
        bad(&t, "xenstore-write a 1 b"),
        "error: \"b\" has no value; write PATH VALUE pairs\n"
    );
    assert!(bad(&t, "xenstore-read a//b").contains("is no path"));
    t.host().polite.set(true);
    good(&t, "xenstore-write /tool/w 1");
    assert_eq!(good(&t, "xenstore-watch /tool/w -n 1"), "/tool/w = \"6\"\n");
}

#[test]
fn json_for_programs() {
    let t = ready();
    good(&t, "create linux cpus=1");
    let list = json(&t, "list --json");
    assert_eq!(
        (&list[1]["name"], &list[1]["domid"], &list[1]["state"]),
        (&"linux".into(), &1.into(), &"blocked".into())
    );
    let long = json(&t, "list -l linux");
    assert_eq!(long[0]["config"]["kernel"], "/guests/Image");
    assert_eq!(json(&t, "info --json")["nr_cpus"], 2);
    assert_eq!(json(&t, "vcpu-list --json linux")[0]["affinity"], "1");
    assert_eq!(json(&t, "vcpu-list --json linux")[1]["online"], false);
    assert_eq!(json(&t, "uptime --json")[0]["name"], "Domain-0");
    assert_eq!(
        json(&t, "block-list linux --json")[0]["target"],
        "/guests/a.img"
    );
}

#[test]
fn completion_of_everything() {
    let t = ready();
    good(&t, "create linux");
    let found = |line: &str| wait(complete(&t, line));
    let words = |line: &str| found(line).candidates;
    assert_eq!(words("cre"), ["create"]);
    assert_eq!(
        found("xenstore-r"),
        Completion {
            typed: 10,
            candidates: alloc::vec!["xenstore-read".into(), "xenstore-rm".into()],
        }
    );
    assert_eq!(words("").len(), verbs::VERBS.len());
    assert_eq!(words("vane li"), ["list"]);
    assert_eq!(words("destroy "), ["linux"]);
    assert_eq!(words("list D"), ["Domain-0"]);
    assert_eq!(words("list --j"), ["--json"]);
    assert_eq!(words("create l"), ["linux.cfg"]);
    assert_eq!(words("create /guests/a"), ["/guests/a.img"]);
    assert_eq!(words("create linux.cfg m"), [""; 0]);
    assert_eq!(words("console -h li"), ["linux"]);
    assert_eq!(words("console linux "), [""; 0]);
    assert_eq!(words("block-detach linux x"), ["xvda"]);
    assert_eq!(words("xenstore-ls /local/d"), ["/local/domain/"]);
    assert_eq!(
        words("xenstore-read /local/domain/0/n"),
        ["/local/domain/0/name"]
    );
    assert_eq!(words("xenstore-ls /lo"), ["/local/"]);
    assert_eq!(words("help unp"), ["unpause"]);
    assert_eq!(words("nothing x"), [""; 0]);
    assert_eq!(words("create '/guests/a"), [""; 0]);
}

#[test]
fn sizes() {
    for (text, kib) in [
        ("256", Some(262_144)),
        ("256m", Some(262_144)),
        ("1G", Some(1 << 20)),
        ("8k", Some(8)),
        ("m", None),
        ("1t", None),
        ("", None),
        ("99999999999999999999", None),
        ("18446744073709551615g", None),
    ] {
        assert_eq!(size_kib(text), kib, "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn never_panics(line in "(create|list|shutdown|xenstore-ls|xenstore-read|block-attach|mem-set|help)?[ -~é]{0,40}") {
        let t = ready();
        let mut out = String::new();
        wait(run(&t, &line, &mut out));
        let _ = wait(complete(&t, &line));
    }
}
