// SPDX-License-Identifier: MIT OR Apache-2.0
use super::*;
use crate::config::{Action, Disk, Vif};
use crate::fake::{Fake, image, run};
use crate::host::{GicVersion, HvmParam, Perm, ShutdownCode};

const CONFIG: &str = "name = 'g'
uuid = 'bdc998cb-c010-4165-97c2-c3167a8060e3'
kernel = '/guests/Image'
ramdisk = '/guests/initrd'
cmdline = 'console=hvc0'
memory = 256
vcpus = 2
disk = [ '/guests/a.img,raw,xvda,w', '/guests/b.img,raw,xvdb,r' ]
vuart = 'sbsa_uart'
cpus = '0'
cpu_weight = 512
";

pub(crate) fn config(overrides: &[&str]) -> DomainConfig {
    DomainConfig::parse(CONFIG, "g.cfg", overrides).unwrap().0
}

pub(crate) fn toolstack() -> Toolstack<Fake> {
    let t = Toolstack::new(Fake::new());
    t.start().unwrap();
    t
}

/// A second guest cannot have the first one's UUID.
const OTHER: &str = "uuid=11111111-c010-4165-97c2-c3167a8060e3";

fn create_error(t: &Toolstack<Fake>, overrides: &[&str]) -> String {
    let before = t.host().state.borrow().clone();
    let e = run(t.create(&config(overrides), false)).unwrap_err();
    assert!(*t.host().state.borrow() == before);
    assert_eq!(t.host().open.get(), 0);
    e.0
}

#[test]
fn a_whole_guest() {
    let t = toolstack();
    let dom = run(t.create(&config(&[]), false)).unwrap();
    assert_eq!(dom, DomId(1));
    let state = t.host().state.borrow();
    let d = &state.doms[&1];
    // 256 MiB and the four shared pages.
    assert_eq!(d.info.tot_pages, 65536 + 4);
    assert_eq!(d.info.max_pages, (262_144 + 1024) / 4);
    assert!(!d.info.paused);
    assert_eq!(
        *t.host().extents.borrow(),
        BTreeMap::from([(9, 128), (0, 4)])
    );
    assert_eq!(
        d.written[&0x4000_0000],
        t.host().files.borrow()["/guests/Image"]
    );
    assert_eq!(
        d.written[&0x4800_0000],
        t.host().files.borrow()["/guests/initrd"]
    );
    let c = d.contexts[&0];
    assert_eq!(
        (c.pc, c.x0, c.cpsr, c.sctlr),
        (0x4000_0000, 0x4800_2000, 0x3c5, 0xc5_0078)
    );
    assert!(d.written[&c.x0].starts_with(&[0xd0, 0x0d, 0xfe, 0xed]));
    for page in [
        0x40000, 0x40004, 0x48000, 0x48001, 0x48002, 0x39000, 0x39003,
    ] {
        assert!(d.flushed.contains(&page), "{page:x}");
    }
    assert_eq!(d.params[&HvmParam::ConsolePfn], 0x39000);
    assert_eq!(d.params[&HvmParam::StorePfn], 0x39001);
    assert_eq!(
        (
            d.params[&HvmParam::StoreEvtchn],
            d.params[&HvmParam::ConsoleEvtchn]
        ),
        (1, 2)
    );
    assert_eq!(d.params[&HvmParam::CallbackIrq], 0x0200_0000_0000_021f);
    assert_eq!(
        d.grants,
        Some((crate::host::Gfn(0x39000), crate::host::Gfn(0x39001)))
    );
    assert_eq!(d.pool, (512 + 256 + 128) * 4096);
    assert_eq!((d.weight, &d.affinity[&1]), (512, &alloc::vec![1]));
    assert_eq!((d.request.nr_spis, d.request.max_grant_frames), (32, 64));
    assert_eq!(state.blocks.len(), 2);
    assert_eq!(t.host().open.get(), 0);
    assert_eq!(t.name_of(dom).as_deref(), Some("g"));
}

/// Against what the real toolstack was seen to make for a guest with one disk, but for what its
/// front-ends and hotplug scripts add, and for the paths of programs.
#[test]
fn the_nodes_are_those_of_xen() {
    let t = toolstack();
    let over = [
        "vcpus=1",
        "vuart=unknown",
        "name=u2",
        "disk=['/guests/a.img,raw,xvda,w']",
    ];
    run(t.create(&config(&over), true)).unwrap();
    let expected = "\
/local/domain/0/backend/console = \"\"   (n0)
/local/domain/0/backend/console/1 = \"\"   (n0)
/local/domain/0/backend/console/1/0 = \"\"   (n0,r1)
/local/domain/0/backend/console/1/0/frontend = \"/local/domain/1/console\"   (n0,r1)
/local/domain/0/backend/console/1/0/frontend-id = \"1\"   (n0,r1)
/local/domain/0/backend/console/1/0/online = \"1\"   (n0,r1)
/local/domain/0/backend/console/1/0/protocol = \"vt100\"   (n0,r1)
/local/domain/0/backend/console/1/0/state = \"1\"   (n0,r1)
/local/domain/0/backend/vbd = \"\"   (n0)
/local/domain/0/backend/vbd/1 = \"\"   (n0)
/local/domain/0/backend/vbd/1/51712 = \"\"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/bootable = \"1\"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/dev = \"xvda\"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/device-type = \"disk\"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/discard-enable = \"1\"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/frontend = \"/local/domain/1/device/vbd/51712\"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/frontend-id = \"1\"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/hotplug-status = \"connected\"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/mode = \"w\"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/online = \"1\"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/params = \"/guests/a.img\"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/removable = \"0\"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/specification = \"xen\"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/state = \"1\"   (n0,r1)
/local/domain/0/backend/vbd/1/51712/type = \"phy\"   (n0,r1)";
    assert_eq!(
        t.host().tree("/local/domain/0/backend/").join("\n"),
        expected
    );
    let expected = "\
/local/domain/1 = \"\"   (n0,r1)
/local/domain/1/attr = \"\"   (n1)
/local/domain/1/console = \"\"   (n0,r1)
/local/domain/1/console/backend = \"/local/domain/0/backend/console/1/0\"   (n0,r1)
/local/domain/1/console/backend-id = \"0\"   (n1,r0)
/local/domain/1/console/limit = \"1048576\"   (n0,r1)
/local/domain/1/console/output = \"pty\"   (n0,r1)
/local/domain/1/console/port = \"2\"   (n0,r1)
/local/domain/1/console/ring-ref = \"233472\"   (n0,r1)
/local/domain/1/console/tty = \"\"   (n0,r1)
/local/domain/1/console/type = \"xenconsoled\"   (n0,r1)
/local/domain/1/control = \"\"   (n0,r1)
/local/domain/1/control/feature-poweroff = \"\"   (n1)
/local/domain/1/control/feature-reboot = \"\"   (n1)
/local/domain/1/control/feature-suspend = \"\"   (n1)
/local/domain/1/control/platform-feature-multiprocessor-suspend = \"1\"   (n0,r1)
/local/domain/1/control/platform-feature-xs_reset_watches = \"1\"   (n0,r1)
/local/domain/1/control/shutdown = \"\"   (n1)
/local/domain/1/control/sysrq = \"\"   (n1)
/local/domain/1/cpu = \"\"   (n0,r1)
/local/domain/1/cpu/0 = \"\"   (n0,r1)
/local/domain/1/cpu/0/availability = \"online\"   (n0,r1)
/local/domain/1/data = \"\"   (n1)
/local/domain/1/device = \"\"   (n0,r1)
/local/domain/1/device/suspend = \"\"   (n0,r1)
/local/domain/1/device/suspend/event-channel = \"\"   (n1)
/local/domain/1/device/vbd = \"\"   (n0,r1)
/local/domain/1/device/vbd/51712 = \"\"   (n1,r0)
/local/domain/1/device/vbd/51712/backend = \"/local/domain/0/backend/vbd/1/51712\"   (n1,r0)
/local/domain/1/device/vbd/51712/backend-id = \"0\"   (n1,r0)
/local/domain/1/device/vbd/51712/device-type = \"disk\"   (n1,r0)
/local/domain/1/device/vbd/51712/state = \"1\"   (n1,r0)
/local/domain/1/device/vbd/51712/trusted = \"1\"   (n1,r0)
/local/domain/1/device/vbd/51712/virtual-device = \"51712\"   (n1,r0)
/local/domain/1/domid = \"1\"   (n0,r1)
/local/domain/1/drivers = \"\"   (n1)
/local/domain/1/error = \"\"   (n1)
/local/domain/1/feature = \"\"   (n1)
/local/domain/1/memory = \"\"   (n0,r1)
/local/domain/1/memory/static-max = \"262144\"   (n0,r1)
/local/domain/1/memory/target = \"262144\"   (n0,r1)
/local/domain/1/memory/videoram = \"0\"   (n0,r1)
/local/domain/1/name = \"u2\"   (n0,r1)
/local/domain/1/store = \"\"   (n0,r1)
/local/domain/1/store/port = \"1\"   (n0,r1)
/local/domain/1/store/ring-ref = \"233473\"   (n0,r1)
/local/domain/1/vm = \"/vm/bdc998cb-c010-4165-97c2-c3167a8060e3\"   (n0,r1)";
    assert_eq!(t.host().tree("/local/domain/1").join("\n"), expected);
    assert_eq!(t.host().tree("/vm/").len(), 4);
    assert_eq!(
        t.host().node("/libxl/1/device/vbd/51712/params").as_deref(),
        Some("/guests/a.img")
    );
    assert!(t.host().state.borrow().doms[&1].info.paused);
}

#[test]
fn whatever_call_fails_all_is_undone() {
    let mut failures = 0;
    for n in 1.. {
        let t = toolstack();
        let before = t.host().state.borrow().clone();
        t.host().calls.set(0);
        t.host().fail_at.set(Some((n, Errno::EIO)));
        let result = run(t.create(&config(&["memory=8"]), false));
        let reached = t.host().calls.get() >= n;
        t.host().fail_at.set(None);
        match result {
            Ok(dom) => {
                // The call did not matter, or there is none with this number.
                assert!(!t.host().state.borrow().doms[&dom.0].info.paused);
                run(t.destroy(dom)).unwrap();
            }
            Err(e) => {
                failures += 1;
                assert!(!e.0.contains("undoing failed"), "{e}");
            }
        }
        assert!(*t.host().state.borrow() == before, "after call {n} failed");
        assert_eq!(t.host().open.get(), 0, "after call {n} failed");
        assert!(
            t.kept.borrow().is_empty() && t.busy.borrow().is_empty() && t.uses.borrow().is_empty(),
            "after call {n} failed"
        );
        if !reached {
            break;
        }
        // And the same guest can be made after it.
        run(t.create(&config(&["memory=8"]), false)).unwrap();
    }
    assert!(failures > 150, "{failures}");
}

#[test]
fn what_goes_wrong_is_said() {
    let t = toolstack();
    let files = |name: &str, bytes: alloc::vec::Vec<u8>| {
        t.host().files.borrow_mut().insert(name.to_owned(), bytes);
    };
    assert_eq!(
        create_error(&t, &["kernel=/guests/no"]),
        "command line: kernel /guests/no: there is no such file; /guests has Image, initrd"
    );
    files("/guests/text", b"hello, world".to_vec());
    assert_eq!(
        create_error(&t, &["kernel=/guests/text"]),
        "command line: kernel /guests/text: the file is cut short: it has 12 bytes and needs at least 64; copy it anew"
    );
    files("/guests/gz", [&b"\x1f\x8b"[..], &[0; 100]].concat());
    assert!(create_error(&t, &["kernel=/guests/gz"]).contains("compressed with gzip"));
    assert_eq!(
        create_error(&t, &["ramdisk=/guests/none"]),
        "command line: ramdisk /guests/none: there is no such file; /guests has Image, gz, initrd, text"
    );
    files("/guests/empty", Vec::new());
    assert_eq!(
        create_error(&t, &["ramdisk=/guests/empty"]),
        "command line: ramdisk /guests/empty: the file is empty; give a cpio archive, or leave ramdisk out"
    );
    assert_eq!(
        create_error(&t, &["memory=2000"]),
        "command line: 2010 MiB of memory are needed (2000 MiB and its page tables), 1024 MiB are free; destroy a \
         guest or lower memory"
            .replace("2010 MiB", "2058560 KiB")
    );
    files("/guests/big", image(0x3000, 40 << 20));
    assert_eq!(
        create_error(&t, &["kernel=/guests/big", "memory=32"]),
        "g: command line: the kernel (40 MiB), ramdisk (5 KiB) and device tree (2 KiB) do not fit in the first 32 MiB of \
         memory; at least 41 MiB are needed"
    );
    assert_eq!(
        create_error(&t, &["disk=['/guests/no.img,raw,xvda,w']"]),
        "command line: disk /guests/no.img: there is no such file; did you mean \"/guests/a.img\"?"
    );
    assert_eq!(
        create_error(&t, &["disk=['/guests/empty,raw,xvda,w']"]),
        "command line: disk /guests/empty: it has no whole sector of 512 bytes"
    );
    assert_eq!(
        create_error(
            &t,
            &["disk=['/guests/a.img,raw,xvda,w','/guests/a.img,raw,xvdb,r']"]
        ),
        "command line: disk /guests/a.img: it is given twice; both must have access r"
    );
    t.host()
        .readonly_files
        .borrow_mut()
        .insert("/guests/a.img".to_owned());
    assert_eq!(
        create_error(&t, &[]),
        "g.cfg:8: disk /guests/a.img: it cannot be written; give it access r"
    );
    t.host().readonly_files.borrow_mut().clear();
    t.host().cut.set(Some(4096));
    assert_eq!(
        create_error(&t, &[]),
        "g: kernel /guests/Image: it is cut short: only 4096 of its 12288 bytes can be read"
    );
    t.host().cut.set(None);
    // Memory that looks free but cannot be had.
    t.host().largest_order.set(Some(0));
    assert!(
        run(t.create(&config(&["name=small"]), false)).is_ok(),
        "small pages do as well"
    );
    assert_eq!(
        create_error(&t, &["name=small"]),
        "command line: the name \"small\" is taken by domain 7; destroy that one or give another with name=…"
            .replace(
                "domain 7",
                &format!("domain {}", t.host().next_dom.get() - 1)
            )
    );
    assert_eq!(
        create_error(&t, &["disk=['/guests/a.img,raw,xvda,r']", OTHER]),
        format!(
            "command line: disk /guests/a.img: domain {} has it as xvda; a disk can be shared only if all have access r",
            t.host().next_dom.get() - 1
        )
    );
    let shared = ["disk=['/guests/b.img,raw,xvda,r']", OTHER];
    assert!(run(t.create(&config(&shared), false)).is_ok());
    assert_eq!(
        create_error(&t, &["name=third", OTHER]),
        format!(
            "command line: the uuid is that of domain {}; give another or leave it out",
            t.host().next_dom.get() - 1
        )
    );
}

#[test]
fn destroying_twice_and_in_between() {
    let t = toolstack();
    let before = t.host().state.borrow().clone();
    let dom = run(t.create(&config(&[]), false)).unwrap();
    run(t.destroy(dom)).unwrap();
    assert!(*t.host().state.borrow() == before);
    assert!(run(t.destroy(dom)).is_ok());
    assert_eq!(
        run(t.destroy(DomId(0))).unwrap_err().0,
        "domain 0 is the control domain; to end everything use poweroff"
    );
    // 200 times, and nothing is left.
    for _ in 0..200 {
        let dom = run(t.create(&config(&["memory=16"]), false)).unwrap();
        run(t.destroy(dom)).unwrap();
    }
    assert!(*t.host().state.borrow() == before);
}

#[test]
fn exits_do_as_the_configuration_says() {
    let t = toolstack();
    let dom = run(t.create(&config(&[]), false)).unwrap();
    assert!(run(t.reap()).is_empty());

    // A restart: a new domain with the same configuration and UUID.
    t.host().stop(dom, ShutdownCode::Reboot);
    let exits = run(t.reap());
    assert_eq!(exits.len(), 1);
    assert_eq!(
        exits[0].to_string(),
        "domain 1 (g) asked for a restart: started anew as domain 2"
    );
    assert!(!t.host().state.borrow().doms.contains_key(&1));
    assert_eq!(t.find("g").unwrap().dom, DomId(2));
    assert_eq!(t.config_of(DomId(2)).unwrap(), config(&[]));
    // It was waited for, as the first one lived for a moment only.
    assert!(t.host().clock_ns.get() > 12_000_000_000);

    t.host().stop(DomId(2), ShutdownCode::Poweroff);
    assert_eq!(
        run(t.reap())[0].to_string(),
        "domain 2 (g) powered off: destroyed"
    );
    assert!(t.host().state.borrow().doms.is_empty());

    // A domain that is kept is reported once.
    let dom = run(t.create(&config(&["on_crash=preserve"]), false)).unwrap();
    t.host().stop(dom, ShutdownCode::Crash);
    assert_eq!(
        run(t.reap())[0].to_string(),
        "domain 3 (g) crashed: kept as it is"
    );
    assert!(run(t.reap()).is_empty());
    run(t.destroy(dom)).unwrap();

    // A domain that is renamed keeps its memory and gives its disks to the new one.
    let dom = run(t.create(&config(&["on_crash=rename-restart"]), false)).unwrap();
    t.host().stop(dom, ShutdownCode::Crash);
    assert_eq!(
        run(t.reap())[0].to_string(),
        "domain 4 (g) crashed: started anew as domain 5"
    );
    assert_eq!(t.find("g-4").unwrap().dom, DomId(4));
    assert_eq!(t.find("g").unwrap().dom, DomId(5));
    assert!(t.blocks(DomId(4)).is_empty() && t.blocks(DomId(5)).len() == 2);
    assert!(run(t.reap()).is_empty());

    // A restart that fails is told, and leaves nothing.
    t.host().files.borrow_mut().remove("/guests/Image");
    t.host().stop(DomId(5), ShutdownCode::Reboot);
    assert_eq!(
        run(t.reap())[0].to_string(),
        "domain 5 (g) asked for a restart: restart failed: g.cfg:3: kernel /guests/Image: there is no such file; /guests has initrd"
    );
    assert_eq!(
        t.find("g").unwrap_err().0,
        "there is no domain \"g\"; see: list"
    );
    assert_eq!(config(&[]).on_reboot, Action::Restart);
}

#[test]
fn interfaces_come_and_go() {
    let t = toolstack();
    let vifs = "vif=['', 'devid=0, ip=10.0.0.2, mtu=1400', 'bridge=other, mac=00:16:3e:00:00:09']";
    let config = config(&["disk=[]", vifs]);
    let dom = run(t.create(&config, false)).unwrap();
    let vifs = t.vifs(dom);
    let seen: Vec<_> = vifs.iter().map(|v| (v.devid, &*v.bridge)).collect();
    assert_eq!(seen, [(0, "xenbr0"), (1, "xenbr0"), (2, "other")]);
    assert!(vifs.iter().all(|v| v.mac.starts_with("00:16:3e:")));
    assert!(vifs[0].mac != vifs[1].mac && vifs[2].mac == "00:16:3e:00:00:09");
    {
        let state = t.host().state.borrow();
        let start = &state.nets[&(dom.0, 0)];
        let ips: &[_] = &[("10.0.0.2".parse().unwrap(), 128)];
        assert_eq!((&*start.ips, start.mtu, start.rate), (ips, 1400, None));
        assert_eq!(state.nets[&(dom.0, 1)].mac.to_string(), vifs[1].mac);
        assert_eq!(state.nets[&(dom.0, 1)].mtu, 1500);
    }
    for (key, value) in [
        ("mac", &*vifs[1].mac),
        ("backend-id", "0"),
        ("handle", "1"),
        ("mtu", "1500"),
    ] {
        let path = format!("/local/domain/{dom}/device/vif/1/{key}");
        assert_eq!(t.host().node(&path).as_deref(), Some(value), "{path}");
    }
    // It keeps its addresses when it is started anew.
    let again = run(t.force_reboot(dom)).unwrap();
    let macs = |v: Vec<VifState>| v.into_iter().map(|v| v.mac).collect::<Vec<_>>();
    assert_eq!(macs(t.vifs(again)), macs(vifs));
    let dom = again;
    let before = t.host().state.borrow().clone();
    assert_eq!(run(t.attach_vif(dom, &Vif::default())), Ok(3));
    // The guest is connected and does not let go.
    t.write_text(&format!("/local/domain/{dom}/device/vif/3/state"), "4")
        .unwrap();
    let e = run(t.detach_vif(dom, "3", false)).unwrap_err().0;
    assert!(e.contains("does not let go"), "{e}");
    t.host().polite.set(true);
    run(t.detach_vif(dom, "3", false)).unwrap();
    assert!(*t.host().state.borrow() == before);
    // A failed attach leaves nothing.
    let n = t.host().calls.get();
    for k in 1..80 {
        t.host().calls.set(n);
        t.host().fail_at.set(Some((n + k, Errno::EIO)));
        let attached = run(t.attach_vif(dom, &Vif::default()));
        t.host().fail_at.set(None);
        if attached.is_ok() {
            run(t.detach_vif(dom, "3", true)).unwrap();
        }
        assert_eq!(
            (t.vifs(dom).len(), t.host().state.borrow().nets.len()),
            (3, 3)
        );
    }
    run(t.destroy(dom)).unwrap();
    assert!(t.host().state.borrow().nets.is_empty());
    let mut twice = config;
    twice.vifs[0].devid = Some(0);
    assert_eq!(
        run(t.create(&twice, false)).unwrap_err().0,
        "vif: devid 0 is given twice; give another"
    );
}

#[test]
fn an_address_is_one_interfaces_on_a_bridge() {
    let t = toolstack();
    let vif = |spec: &str| Vif::parse(spec).unwrap();
    let same = "mac=00:16:3e:00:00:09";
    let twice = format!("vif=['{same}', '{same}']");
    let e = run(t.create(&config(&["disk=[]", &twice]), false))
        .unwrap_err()
        .0;
    let has = "vif1.0 on xenbr0 has 00:16:3e:00:00:09 already; give another mac";
    assert_eq!(e, format!("g: vif 1: {has}"));
    assert!(t.host().state.borrow().nets.is_empty());
    let dom = run(t.create(&config(&["disk=[]", &format!("vif=['{same}']")]), false)).unwrap();
    let has = has.replace("vif1", &format!("vif{dom}"));
    for (spec, error) in [
        (same, format!("vif 1: {has}")),
        (
            "mac=52:54:00:12:34:56",
            "vif 1: eth0 on xenbr0 has 52:54:00:12:34:56 already; give another mac".into(),
        ),
    ] {
        assert_eq!(run(t.attach_vif(dom, &vif(spec))).unwrap_err().0, error);
        assert_eq!(t.vifs(dom).len(), 1);
    }
    assert_eq!(
        run(t.attach_vif(dom, &vif(&format!("{same},bridge=other")))),
        Ok(1)
    );
}

#[test]
fn a_number_that_is_given_again() {
    let t = toolstack();
    let host = t.host();
    let dom = run(t.create(&config(&["disk=[]"]), false)).unwrap();
    let vif = Vif {
        devid: Some(0),
        ..Vif::default()
    };
    let front = "/local/domain/1/device/vif/0/state";
    let back = "/local/domain/0/backend/vif/1/0/state";
    let begin = host.clock_ns.get();
    run(t.attach_vif(dom, &vif)).unwrap();
    // Nobody looks at it: it goes at once.
    run(t.detach_vif(dom, "0", false)).unwrap();
    run(t.attach_vif(dom, &vif)).unwrap();
    assert_eq!(host.clock_ns.get(), begin);
    // Its driver is at its beginning: it is asked to end, and does.
    host.watched
        .borrow_mut()
        .insert("/local/domain/1/device".into());
    *host.states.borrow_mut() = alloc::vec![("6", "6")];
    run(t.detach_vif(dom, "0", false)).unwrap();
    assert!(host.states.borrow().is_empty());
    // The guest has not forgotten it yet, and then it has.
    host.watched.borrow_mut().insert(back.into());
    let e = run(t.attach_vif(dom, &vif)).unwrap_err().0;
    assert!(e.contains("still holds on to the device vif/0"), "{e}");
    assert!(t.vifs(dom).is_empty());
    host.polite.set(true);
    // The driver of the old one closes the new one, which then begins anew.
    *host.states.borrow_mut() = alloc::vec![("4", "4"), ("1", "2"), ("6", "6")];
    run(t.attach_vif(dom, &vif)).unwrap();
    assert!(host.states.borrow().is_empty());
    assert_eq!(host.node(front).as_deref(), Some("4"));
    run(t.detach_vif(dom, "0", false)).unwrap();
    // One that closes everything gets nothing.
    *host.states.borrow_mut() = alloc::vec![("6", "6"); 10];
    let e = run(t.attach_vif(dom, &vif)).unwrap_err().0;
    assert!(e.contains("closes the device vif/0 at once"), "{e}");
    assert_eq!(host.states.borrow().len(), 6);
    host.states.borrow_mut().clear();
    assert!(t.vifs(dom).is_empty() && host.state.borrow().nets.is_empty());
    // Another number is nobody's, and no driver need answer.
    host.polite.set(false);
    assert_eq!(
        run(t.attach_vif(
            dom,
            &Vif {
                devid: Some(1),
                ..vif.clone()
            }
        )),
        Ok(1)
    );
    // A driver that never answers has nothing of it.
    run(t.detach_vif(dom, "1", false)).unwrap();
    assert!(t.vifs(dom).is_empty());
    // Disks are no different.
    let disk = Disk::parse("/guests/a.img,raw,xvdc,w").unwrap();
    for _ in 0..2 {
        *host.states.borrow_mut() = alloc::vec![("4", "4")];
        run(t.attach(dom, &disk)).unwrap();
        *host.states.borrow_mut() = alloc::vec![("6", "6")];
        run(t.detach(dom, 51744, false)).unwrap();
    }
}

#[test]
fn disks_come_and_go() {
    let t = toolstack();
    let dom = run(t.create(&config(&["disk=[]"]), false)).unwrap();
    let before = t.host().state.borrow().clone();
    let disk = Disk::parse("/guests/a.img,raw,xvdc,w").unwrap();
    run(t.attach(dom, &disk)).unwrap();
    let blocks = t.blocks(dom);
    assert_eq!(blocks.len(), 1);
    assert_eq!(
        (blocks[0].vdev, &*blocks[0].name, blocks[0].read_only),
        (51744, "xvdc", false)
    );
    assert_eq!(
        run(t.attach(dom, &disk)).unwrap_err().0,
        "domain 1 has a disk xvdc already; give another vdev"
    );
    assert_eq!(
        run(t.detach(dom, 51712, false)).unwrap_err().0,
        "domain 1 has no disk 51712; see: block-list 1"
    );
    // The guest is connected and does not let go.
    t.write_text("/local/domain/1/device/vbd/51744/state", "4")
        .unwrap();
    assert!(
        run(t.detach(dom, 51744, false))
            .unwrap_err()
            .0
            .contains("does not let go")
    );
    assert_eq!(
        t.host()
            .node("/local/domain/0/backend/vbd/1/51744/state")
            .as_deref(),
        Some("5")
    );
    t.host().polite.set(true);
    run(t.detach(dom, 51744, false)).unwrap();
    assert!(t.blocks(dom).is_empty());
    // Only the folder for disks, which the guest may watch, stays.
    let mut after = t.host().state.borrow().clone();
    let folder = after.nodes.remove("/local/domain/1/device/vbd").unwrap();
    assert_eq!(folder.1, [Perm::none(DomId(0)), Perm::read(dom)]);
    after.nodes.remove("/libxl/1/device/vbd").unwrap();
    assert!(after == before);
    // A failed attach leaves nothing.
    let n = t.host().calls.get();
    for k in 1..80 {
        t.host().calls.set(n);
        t.host().fail_at.set(Some((n + k, Errno::EIO)));
        let attached = run(t.attach(dom, &disk));
        t.host().fail_at.set(None);
        if attached.is_ok() {
            run(t.detach(dom, 51744, true)).unwrap();
        }
        assert!(t.blocks(dom).is_empty() && t.host().state.borrow().blocks.is_empty());
    }
}

#[test]
fn changes_while_it_runs() {
    let t = toolstack();
    let dom = run(t.create(&config(&["vcpus=1", "maxvcpus=3", "maxmem=512"]), false)).unwrap();
    let availability = |n: u32| {
        t.host()
            .node(&format!("/local/domain/1/cpu/{n}/availability"))
            .unwrap()
    };
    assert_eq!(
        [0, 1, 2].map(availability),
        ["online", "offline", "offline"]
    );
    let info = t.find("g").unwrap();
    t.set_vcpus(&info, 2).unwrap();
    assert_eq!([0, 1, 2].map(availability), ["online", "online", "offline"]);
    assert!(t.set_vcpus(&info, 4).is_err() && t.set_vcpus(&info, 0).is_err());

    t.set_memory(dom, 128 << 10).unwrap();
    assert_eq!(
        t.host().node("/local/domain/1/memory/target").as_deref(),
        Some("131072")
    );
    assert_eq!(
        t.host().state.borrow().doms[&1].info.max_pages,
        (131_072 + 1024) / 4
    );
    assert_eq!(
        t.set_memory(dom, 600 << 10).unwrap_err().0,
        "600 MiB is more than the most that domain 1 may have, 512 MiB; set maxmem in its configuration"
    );
    assert!(t.set_memory(dom, 100).is_err());

    t.rename(dom, "other").unwrap();
    assert_eq!(t.find("other").unwrap().dom, dom);
    assert_eq!(
        t.host()
            .node("/vm/bdc998cb-c010-4165-97c2-c3167a8060e3/name")
            .as_deref(),
        Some("other")
    );
    assert_eq!(
        t.find("othre").unwrap_err().0,
        "there is no domain \"othre\"; did you mean \"other\"?"
    );
    assert!(t.rename(dom, "Domain-0").is_err() && t.rename(dom, "7").is_err());
    assert_eq!(
        t.find("9").unwrap_err().0,
        "there is no domain 9; see: list"
    );

    assert!(!t.request_shutdown(&info, false).unwrap());
    t.write_text("/local/domain/1/control/feature-reboot", "1")
        .unwrap();
    assert!(t.request_shutdown(&info, true).unwrap());
    assert_eq!(
        t.host().node("/local/domain/1/control/shutdown").as_deref(),
        Some("reboot")
    );
    t.pause(dom).unwrap();
    assert!(t.find("1").unwrap().paused);
    t.unpause(dom).unwrap();
    assert!(!t.has_stopped(dom) && t.has_stopped(DomId(9)));
}

#[test]
fn a_guest_with_gicv3_and_two_banks() {
    let t = toolstack();
    t.host().total_pages.set(4 << 20);
    run(t.create(
        &config(&["memory=4096", "gic_version=v3", "vcpus=9"]),
        false,
    ))
    .unwrap();
    assert_eq!(t.host().extents.borrow()[&9], 2048);
    assert_eq!(
        t.host().state.borrow().doms[&1].request.gic,
        Some(GicVersion::V3)
    );
    assert_eq!(
        create_error(&t, &["name=h", "vcpus=9", "disk=[]", "memory=64", OTHER]),
        "h: command line: 9 vcpus: there can be 1 to 8 with this interrupt controller"
    );
}

/// FAT has many names for a file: `/guests/a.img`, `/guests/A.IMG`, `/guests//a.img`, `guests/a.img`, `/guests/A~1.IMG`.
#[test]
fn a_disk_is_its_sectors_whatever_it_is_called() {
    let t = toolstack();
    for (alias, file) in [
        ("/guests/A.IMG", "a.img"),
        ("/guests//a.img", "a.img"),
        ("guests/image", "Image"),
    ] {
        let file = format!("/guests/{file}");
        t.host().aliases.borrow_mut().insert(alias.to_owned(), file);
    }
    let image = |size| image(size, 0x5000);
    t.host()
        .files
        .borrow_mut()
        .insert("/guests/Image".to_owned(), image(0x3000));
    let dom = run(t.create(&config(&[]), false)).unwrap();
    for alias in ["/guests/A.IMG", "/guests//a.img"] {
        for access in ["w", "r"] {
            let disk = format!("disk=['{alias},raw,xvda,{access}']");
            assert_eq!(
                create_error(&t, &["name=h", &disk, OTHER]),
                format!(
                    "command line: disk {alias}: domain 1 has it as xvda (/guests/a.img); a disk can be shared only if all have access r"
                )
            );
        }
    }
    // A kernel or ramdisk is read whenever the domain is made anew.
    for key in ["kernel", "ramdisk"] {
        let named = format!("{key}=/guests//a.img");
        assert_eq!(
            create_error(&t, &["name=h", "disk=[]", OTHER, &named]),
            format!(
                "command line: {key} /guests//a.img: domain 1 has it as xvda (/guests/a.img) and can write it; give that disk access r, or copy the file"
            )
        );
    }
    assert_eq!(
        create_error(&t, &["name=h", "disk=['guests/image,raw,xvda,w']", OTHER]),
        "command line: disk guests/image: it is the kernel, too (/guests/Image); give the disk access r, or copy the file"
    );
    assert_eq!(
        create_error(
            &t,
            &[
                "name=h",
                "disk=['/guests/b.img,raw,xvda,r','/guests/b.img,raw,xvdb,w']",
                OTHER
            ]
        ),
        "command line: disk /guests/b.img: domain 1 has it as xvdb; a disk can be shared only if all have access r"
    );
    // Attaching and detaching know it, too.
    let disk = config(&["disk=['/guests/A.IMG,raw,xvdc,w']"])
        .disks
        .remove(0);
    assert_eq!(
        run(t.attach(dom, &disk)).unwrap_err().0,
        "disk /guests/A.IMG: domain 1 has it as xvda (/guests/a.img); a disk can be shared only if all have access r"
    );
    run(t.detach(dom, 51712, true)).unwrap();
    run(t.attach(dom, &disk)).unwrap();
    run(t.destroy(dom)).unwrap();
    assert!(t.uses.borrow().is_empty());
    run(t.create(&config(&["disk=['/guests//a.img,raw,xvda,w']"]), false)).unwrap();
    assert_eq!(t.host().open.get(), 0);
}

#[test]
fn a_guest_begins_with_all_that_it_may_have() {
    let t = toolstack();
    let dom = run(t.create(&config(&["memory=256", "maxmem=400"]), false)).unwrap();
    let node = |name: &str| {
        t.host()
            .node(&format!("/local/domain/{dom}/memory/{name}"))
            .unwrap()
    };
    {
        let state = t.host().state.borrow();
        let info = &state.doms[&dom.0].info;
        // What Linux takes for what it began with is what it began with; it gets no page back that it gave.
        assert_eq!((info.tot_pages - 4) * 4, 400 << 10);
        assert_eq!(info.max_pages, ((256 << 10) + 1024) / 4);
    }
    assert_eq!(
        (node("static-max"), node("target")),
        ("409600".to_owned(), "262144".to_owned())
    );
    t.set_memory(dom, 400 << 10).unwrap();
    assert_eq!(
        t.host().state.borrow().doms[&dom.0].info.max_pages,
        ((400 << 10) + 1024) / 4
    );
    assert_eq!(
        create_error(
            &t,
            &["name=h", "disk=[]", OTHER, "memory=100", "maxmem=800"]
        ),
        "command line: 824960 KiB of memory are needed (800 MiB and its page tables, as a guest begins with all that it may have and gives back what is above memory), 634800 KiB are free; destroy a guest or lower maxmem"
    );
}
