// SPDX-License-Identifier: MIT OR Apache-2.0
use super::*;

fn read(text: &str) -> (DomainConfig, Vec<String>) {
    let (config, warnings) = DomainConfig::parse(text, "g.cfg", &[]).unwrap();
    (config, warnings.into_iter().map(|w| w.0).collect())
}

fn error(text: &str, overrides: &[&str]) -> String {
    DomainConfig::parse(text, "g.cfg", overrides)
        .unwrap_err()
        .to_string()
}

const MIN: &str = "name = 'g'\nkernel = '/guests/Image'\n";

fn with(line: &str) -> String {
    format!("{MIN}{line}")
}

#[test]
fn defaults() {
    let (c, w) = read(MIN);
    assert!(w.is_empty());
    assert_eq!(
        (c.memory_mib, c.maxmem_mib, c.vcpus, c.maxvcpus),
        (32, 32, 1, 1)
    );
    assert_eq!(
        (c.on_poweroff, c.on_reboot, c.on_crash),
        (Action::Destroy, Action::Restart, Action::Destroy)
    );
    assert_eq!(
        (
            c.max_grant_frames,
            c.max_maptrack_frames,
            c.max_event_channels
        ),
        (64, 64, 1023)
    );
    assert_eq!(
        (c.cmdline.as_str(), c.ramdisk, c.gic, c.vuart),
        ("", None, None, false)
    );
}

#[test]
fn all_keys() {
    let (c, w) = read(
        "# a guest
type = \"pvh\"
name = \"linux\"; uuid = \"bdc998cb-c010-4165-97c2-c3167a8060e3\"
kernel = \"/guests/Image\"
ramdisk = '/guests/initrd'
root = '/dev/xvda1 ro'
extra = 'console=hvc0'
memory = 0x100
maxmem = '512'
vcpus = 2
maxvcpus = 4
cpus = [ '0-1', '^0,all' ]
cpu_weight = 512
disk = [
   '/guests/a.img,raw,xvda,w',
   'format=raw, vdev=xvdb, access=ro, target=/guests/b.img', # the second
]
vif = [ 'bridge=xenbr0', '' ]
vuart = 'sbsa_uart'
gic_version = 'v3'
on_poweroff = 'preserve'
on_reboot = 'rename-restart'
on_crash = 'coredump-restart'
max_grant_frames = 32
",
    );
    assert_eq!(
        w,
        ["g.cfg:23: on_crash: core dumps are not written; taken as \"restart\""]
    );
    assert_eq!(
        c.uuid.unwrap().to_string(),
        "bdc998cb-c010-4165-97c2-c3167a8060e3"
    );
    assert_eq!(c.cmdline, "root=/dev/xvda1 ro console=hvc0");
    assert_eq!(
        (c.memory_mib, c.maxmem_mib, c.vcpus, c.maxvcpus),
        (256, 512, 2, 4)
    );
    assert_eq!(c.cpus, [3, u64::MAX]);
    assert_eq!(
        c.disks.iter().map(|d| d.devid).collect::<Vec<_>>(),
        [51712, 51728]
    );
    assert_eq!(c.vifs.len(), 2);
    assert_eq!(
        (c.vuart, c.gic, c.cpu_weight),
        (true, Some(GicVersion::V3), Some(512))
    );
    assert_eq!(
        (c.on_poweroff, c.on_reboot, c.on_crash),
        (Action::Preserve, Action::RenameRestart, Action::Restart)
    );
}

#[test]
fn remarks() {
    let (_, w) = read(&with(
        "vcpu = 2\nbootloader = 'pygrub'\nzzzz = 1\ncmdline = 'a'\nextra = 'b'",
    ));
    assert_eq!(
        w,
        [
            "g.cfg:3: unknown key \"vcpu\" is ignored; did you mean \"vcpus\"?",
            "g.cfg:4: \"bootloader\" is not supported and is ignored",
            "g.cfg:5: unknown key \"zzzz\" is ignored",
            "g.cfg:7: extra is ignored as there is a cmdline",
        ]
    );
}

#[test]
fn overrides_win() {
    let over = [
        "memory=128",
        "name=other",
        "cmdline=root=/dev/xvda rw",
        "disk=['/x,raw,xvdc,r']",
        "vcpus='3'",
    ];
    let (c, w) = DomainConfig::parse(&with("memory = 64\nmaxmem = 128"), "g.cfg", &over).unwrap();
    assert!(w.is_empty());
    assert_eq!((c.memory_mib, c.name.as_str(), c.vcpus), (128, "other", 3));
    assert_eq!(c.cmdline, "root=/dev/xvda rw");
    assert_eq!(c.disks[0].vdev, "xvdc");
    assert_eq!(
        error(MIN, &["memory"]),
        "command line:1:1: \"memory\" is no setting; write key=value"
    );
    assert_eq!(
        error(MIN, &["memory=lots"]),
        "command line:1:8: memory = \"lots\" is no number; write a whole number from 1 to 1043456"
    );
    assert_eq!(
        error(MIN, &["disk=['x'"]),
        "command line:1:6: the list of \"disk\" is not closed; put a ] behind its last element"
    );
}

#[test]
fn each_mistake() {
    for (text, expected) in [
        (
            "kernel = 'x'",
            "g.cfg:1:1: there is no name; write: name = \"guest\"",
        ),
        (
            "name = 'x'",
            "g.cfg:1:1: there is no kernel; write: kernel = \"/guests/Image\"",
        ),
        (
            "name = ''\nkernel='x'",
            "g.cfg:1:8: name = \"\": a name has at least one letter",
        ),
        (
            "name = '12'\nkernel='x'",
            "g.cfg:1:8: name = \"12\": a name of digits alone would be taken for a domain's number; add a letter",
        ),
        (
            "name = 'a/b'\nkernel='x'",
            "g.cfg:1:8: name = \"a/b\": a name has no blanks, control characters or slashes in it",
        ),
        (
            "name = ['a']\nkernel='x'",
            "g.cfg:1:8: name is a list; write one value: name = …",
        ),
    ] {
        assert_eq!(error(text, &[]), expected, "{text}");
    }
    for (line, expected) in [
        (
            "memory = 'big'",
            "g.cfg:3:10: memory = \"big\" is no number; write a whole number from 1 to 1043456",
        ),
        (
            "memory = -1",
            "g.cfg:3:10: memory = \"-1\" is no number; write a whole number from 1 to 1043456",
        ),
        (
            "memory = 0",
            "g.cfg:3:10: memory = 0 is out of range; it is 1 to 1043456",
        ),
        (
            "memory = 256\nmaxmem = 128",
            "g.cfg:4:10: maxmem = 128 is less than memory = 256; make it at least as much",
        ),
        (
            "vcpus = 200",
            "g.cfg:3:9: vcpus = 200 is out of range; it is 1 to 64",
        ),
        (
            "vcpus = 4\nmaxvcpus = 2",
            "g.cfg:4:12: maxvcpus = 2 is less than vcpus = 4; make it at least as many",
        ),
        (
            "vcpus = 9\ngic_version = 'v2'",
            "g.cfg:3:9: 9 vcpus are too many for gic_version = \"v2\"; at most 8, or use v3",
        ),
        (
            "gic_version = 'v4'",
            "g.cfg:3:15: gic_version = \"v4\" is unknown; it is one of default, v2, v3",
        ),
        (
            "type = 'hvm'",
            "g.cfg:3:8: type = \"hvm\" is a kind of x86 guest; leave type out or write \"pvh\"",
        ),
        (
            "on_crash = 'restrat'",
            "g.cfg:3:12: on_crash = \"restrat\" is unknown; did you mean \"restart\"?",
        ),
        (
            "on_crash = 'explode'",
            "g.cfg:3:12: on_crash = \"explode\" is unknown; it is one of destroy, restart, rename-restart, preserve, coredump-destroy, coredump-restart",
        ),
        (
            "uuid = 'x'",
            "g.cfg:3:8: uuid = \"x\" is none; write 32 hexadecimal digits, such as bdc998cb-c010-4165-97c2-c3167a8060e3",
        ),
        (
            "cpus = '4-2'",
            "g.cfg:3:8: cpus \"4-2\" names no CPUs; write for instance \"0-3,^1\" or \"all\" (CPUs 0 to 63)",
        ),
        (
            "disk = '/a,raw,xvda,w'",
            "g.cfg:3:8: disk is not a list; write: disk = [ '/guests/disk.img,raw,xvda,w' ]",
        ),
        (
            "disk = [ '/a,raw,xvda,q' ]",
            "g.cfg:3:10: disk \"/a,raw,xvda,q\": \"q\" is no access; write r (or ro) or w (or rw)",
        ),
        (
            "disk = [ '/a,raw,xvda,w',\n  '/b,raw,xvda,w' ]",
            "g.cfg:4:3: disk \"/b,raw,xvda,w\": there is already a disk xvda; give it another vdev",
        ),
        (
            "vif = [ 'mac=1' ]",
            "g.cfg:3:9: vif \"mac=1\": \"1\" is no Ethernet address; write six pairs such as 00:16:3e:12:34:56",
        ),
        (
            "vuart = 'pl011'",
            "g.cfg:3:9: vuart = \"pl011\" is unknown; it is one of sbsa_uart, unknown",
        ),
    ] {
        assert_eq!(error(&with(line), &[]), expected, "{line}");
    }
}

#[test]
fn cpus_and_uuids() {
    assert_eq!(parse_cpus("0-3,^2,5"), Some(0b10_1011));
    assert_eq!(parse_cpus("0-63"), Some(u64::MAX));
    for bad in ["", "64", "1-", "^1", "all,^all", "x", "0--3"] {
        assert_eq!(parse_cpus(bad), None, "{bad}");
    }
    assert_eq!(
        Uuid::random([0xff; 16]).to_string(),
        "ffffffff-ffff-4fff-bfff-ffffffffffff"
    );
    assert_eq!(
        Uuid::parse("bdc998cbc010416597c2c3167a8060e3").unwrap().0[0],
        0xbd
    );
    assert_eq!(Uuid::parse("bdc998cb-c010-4165-97c2-c3167a8060e3f"), None);
}

proptest::proptest! {
    #[test]
    fn never_panics(
        lines in proptest::collection::vec("(name|kernel|memory|vcpus|cpus|disk|vif|uuid|on_crash)? ?=? ?['\"\\[]?[ -~é]{0,20}['\"\\]]?", 0..6),
        over in proptest::collection::vec("[a-z]{0,6}=?[ -~]{0,10}", 0..3),
    ) {
        let text = lines.join("\n");
        let over: Vec<&str> = over.iter().map(String::as_str).collect();
        let _ = DomainConfig::parse(&text, "f", &over);
    }
}

#[test]
fn numbers_are_taken_up_to_the_hypervisors_limits() {
    for (key, limit) in [
        ("vcpus", 64),
        ("maxvcpus", 64),
        ("max_grant_frames", 64),
        ("max_maptrack_frames", 1024),
        ("max_event_channels", 131_071),
        ("cpu_weight", 65_535),
        ("memory", 1_043_456),
        ("maxmem", 1_043_456),
    ] {
        let text = |n: u64| with(&format!("{key} = {n}"));
        DomainConfig::parse(&text(limit), "g.cfg", &[]).unwrap();
        let e = DomainConfig::parse(&text(limit + 1), "g.cfg", &[]).unwrap_err();
        let e = e.to_string();
        assert!(
            e.starts_with("g.cfg:3:")
                && e.contains(&format!("{key} = {} is out of range", limit + 1))
                && e.ends_with(&limit.to_string()),
            "{e}"
        );
    }
}

#[test]
fn a_needed_key_that_is_misspelt_is_named() {
    let e = |text: &str| {
        DomainConfig::parse(text, "g.cfg", &[])
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        e("name = 'g'\nkernal = '/guests/Image'"),
        "g.cfg:1:1: there is no kernel; line 2 has an unknown key \"kernal\": did you mean \"kernel\"?"
    );
    assert_eq!(
        e("kernel = '/guests/Image'\nnmae = 'g'"),
        "g.cfg:1:1: there is no name; line 2 has an unknown key \"nmae\": did you mean \"name\"?"
    );
}

/// xl warns and goes on.
#[test]
fn a_type_of_x86_that_xl_takes_is_taken() {
    let (_, w) = DomainConfig::parse(&with("type = 'pv'"), "g.cfg", &[]).unwrap();
    assert!(w.iter().any(|w| w.0.contains("taken as \"pvh\"")), "{w:?}");
}
