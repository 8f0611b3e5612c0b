// SPDX-License-Identifier: MIT OR Apache-2.0
//! Networks with the Rust guest `httpd`, which serves a page, bytes and checksums.

use std::path::Path;

use super::*;

/// Linux's address; its network has 24 bits.
const LINUX_IP: &str = "10.0.0.1";
const HTTPD_IP: &str = "10.0.0.80";

/// The checksum of the first `len` bytes of httpd's `/bytes`.
pub(super) fn sum(len: u32) -> String {
    let mut crc = flate2::Crc::new();
    let period: Vec<u8> = (0..65_521_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut left = len as usize;
    while left > 0 {
        let now = left.min(period.len());
        crc.update(&period[..now]);
        left -= now;
    }
    format!("{:08x}", crc.sum())
}

/// Writes a configuration of httpd's, with words for its command line.
fn httpd_config(guests: &Path, name: &str, cmdline: &str) -> Result<()> {
    let text = format!(
        "name = \"{name}\"\nkernel = \"/guests/httpd.bin\"\nmemory = 8\ncmdline = \"{cmdline}\"\n\
         vif = [ \"mac={}\" ]\non_reboot = \"restart\"\n",
        mac(name)
    );
    Ok(fs::write(guests.join(format!("{name}.cfg")), text)?)
}

/// The Ethernet address of every interface that a guest of this name has: its peers still know it when the guest or the
/// interface is made again, and Linux asks for another one only after a minute or more.
fn mac(name: &str) -> String {
    let last = name.as_bytes().first().unwrap_or(&0);
    format!("00:16:3e:00:00:{last:02x}")
}

/// A guest's console, where what was shown before is shown again.
fn shows(session: &mut Session, guest: &str, pattern: &str) -> Result<()> {
    session.attach(guest)?;
    session.expect(pattern, LINUX)?;
    session.detach()
}

/// Starts Linux 6.1 without a disk, with a network interface that is up.
fn linux_on_bridge(session: &mut Session) -> Result<()> {
    session.vane("create linux disk=[] \"vif=['']\"")?;
    linux_gets_address(session, "linux", LINUX_IP)
}

/// Runs commands in Linux's shell; what the last one prints.
fn in_linux(session: &mut Session, commands: &[&str]) -> Result<String> {
    in_linux_within(session, commands, LINUX)
}

fn in_linux_within(session: &mut Session, commands: &[&str], time: Duration) -> Result<String> {
    session.attach("linux")?;
    let mut output = String::new();
    for command in commands {
        output = session.shell_within(command, time)?;
    }
    session.detach()?;
    Ok(output)
}

/// The Rust guest serves a Linux guest: pages, bytes, checksums, several at a time, whatever is asked; it gives memory
/// back, sleeps when nobody asks, lives on without its interface, and leaves nothing.
pub(super) fn httpd(stage: &Stage) -> Result<()> {
    const BYTES: u32 = 3_000_001;
    let guests = stage.fresh_guests()?;
    httpd_config(&guests, "fixed", &format!("ip={HTTPD_IP}/24"))?;
    httpd_config(&guests, "wrong", "ip=10.0.0.300/24")?;
    let url = &format!("http://{HTTPD_IP}");
    stage.play_on(&machine(3, 1), |session| {
        // The first ones may leave what is made once and kept.
        session.vane("create linux disk=[] \"vif=['']\"")?;
        session.vane("create fixed")?;
        session.vane("destroy linux fixed")?;
        let before = resources(session)?;

        // The demo guest finds no DHCP server, and has another address then.
        session.vane("create httpd")?;
        shows(
            session,
            "httpd",
            r"^httpd: serving http://10\.0\.0\.80/ \(10\.0\.0\.80/24, no DHCP server answers\)$",
        )?;
        session.vane_within("shutdown -w httpd", HELLO)?;
        ended(session, "httpd")?;
        session.vane("create wrong")?;
        ended(session, "wrong")?;

        linux_on_bridge(session)?;
        session.vane("create fixed")?;
        shows(session, "fixed", r"^httpd: serving http://10\.0\.0\.80/ \(10\.0\.0\.80/24, fixed\)$")?;
        let expected = sum(BYTES);
        in_linux(session, &[
            &format!("ping -c 3 -W 5 {HTTPD_IP} && ping -c 2 -W 5 -s 1400 {HTTPD_IP}"),
            &format!("wget -q -O - {url}/ | grep 'This is fixed, a kernel in Rust'"),
            &format!("wget -S -O /tmp/got {url}/bytes/{BYTES} 2>&1 | grep 'X-CRC32: {expected}'"),
            &format!("[ $(crc32 </tmp/got) = {expected} ]"),
            // And back again.
            &format!(
                "(printf 'PUT /sum HTTP/1.0\\r\\nContent-Length: {BYTES}\\r\\n\\r\\n'; cat /tmp/got) | nc {HTTPD_IP} 80 | grep 'crc32 {expected} of {BYTES} bytes'"
            ),
            // Several at a time, and one after the other.
            &format!(
                "for i in 1 2 3 4 5 6; do wget -q -O /tmp/$i {url}/bytes/300000 & done; wait; for i in 1 2 3 4 5 6; do [ $(crc32 </tmp/$i) = {} ] || false || break; done",
                sum(300_000)
            ),
            &format!("for i in $(seq 20); do wget -q -O /dev/null {url}/ || break; done; [ $i = 20 ]"),
            // What it does not serve, and what is none of HTTP.
            &format!("! wget -q -O - {url}/nothing"),
            &format!("printf 'DELETE / HTTP/1.0\\r\\n\\r\\n' | nc {HTTPD_IP} 80 | grep '^HTTP/1.1 405'"),
            &format!("printf '\\1\\2\\3\\r\\n\\r\\n' | nc {HTTPD_IP} 80 | grep '^HTTP/1.1 400'"),
            &format!(
                "printf 'PUT /sum HTTP/1.0\\r\\nContent-Length: 99999999999\\r\\n\\r\\n' | nc {HTTPD_IP} 80 | grep '^HTTP/1.1 413'"
            ),
            &format!("head -c 100000 /dev/urandom | nc {HTTPD_IP} 80; wget -q -O - {url}/ | grep '3[0-9] requests'"),
        ])?;

        // Nobody asks: it sleeps.
        let time = |session: &mut Session| -> Result<u64> {
            let list = session.json("list fixed --json")?;
            let ns = list[0]["cpu_time_ns"].as_u64();
            ns.with_context(|| format!("no time in {list}"))
        };
        let (used, from) = (time(session)?, Instant::now());
        std::thread::sleep(Duration::from_secs(5));
        let used = Duration::from_nanos(time(session)? - used);
        ensure!(used * 20 < from.elapsed(), "idle, it runs for {used:?}");

        // Memory is given back and taken again, and what is left suffices.
        for (mib, says) in [(6, "2048 KiB given back"), (8, "0 KiB given back")] {
            session.vane(&format!("mem-set fixed {mib}"))?;
            shows(session, "fixed", &format!("^httpd: {says}$"))?;
            session.vane_shows("list", &format!(r"^fixed +\d+ +{mib} "))?;
            in_linux(session, &[&format!("wget -q -O - {url}/bytes/300000 | crc32 | grep {}", sum(300_000))])?;
        }

        // The interface goes in the midst of a transfer, and another one comes.
        in_linux(session, &[&format!("wget -q -O /dev/null {url}/bytes/1000000000 & sleep 1")])?;
        session.vane("network-detach fixed 0")?;
        shows(
            session,
            "fixed",
            r"(?s)^httpd: interface 0: the other end is gone$.*^httpd: waiting for a network interface$",
        )?;
        in_linux(session, &["kill %1 && wait; ! ping -c 1 -W 1 10.0.0.80"])?;
        session.vane(&format!("network-attach fixed mac={}", mac("fixed")))?;
        shows(session, "fixed", r"(?s)is gone$.*^httpd: serving http://10\.0\.0\.80/")?;
        in_linux(session, &[&format!("wget -q -O - {url}/bytes/{BYTES} | crc32 | grep {expected}")])?;

        // It begins anew, and ends, when it is asked.
        let id = session.vane("domid fixed")?.trim().parse::<u32>()?;
        session.vane_within("reboot fixed", HELLO)?;
        restarted(session, "fixed", id + 1)?;
        shows(session, "fixed", "^httpd: serving")?;
        in_linux(session, &[&format!("wget -q -O - {url}/ | grep '0 requests'")])?;
        session.vane_within("shutdown -w fixed", HELLO)?;
        ended(session, "fixed")?;
        session.vane("destroy linux")?;
        unchanged(session, &before)
    })
}

/// A number that a person may choose by an environment variable.
fn by_hand(variable: &str, otherwise: u32, most: u32) -> Result<u32> {
    let Ok(text) = std::env::var(variable) else {
        return Ok(otherwise);
    };
    let number = text.parse().ok().filter(|n| (1..=most).contains(n));
    number.with_context(|| format!("{variable} is no number from 1 to {most}"))
}

/// Many bytes from the Rust guest to Linux, and then there and back at once, all as they were sent.
/// `PARAVANE_CHAIN_MB` says how many megabytes, each way.
pub(super) fn chain(stage: &Stage) -> Result<()> {
    let megabytes = by_hand("PARAVANE_CHAIN_MB", 8, 4000)?;
    let bytes = megabytes * 1_000_000;
    let expected = sum(bytes);
    let guests = stage.fresh_guests()?;
    httpd_config(&guests, "fixed", &format!("ip={HTTPD_IP}/24"))?;
    let url = &format!("http://{HTTPD_IP}/bytes/{bytes}");
    stage.play_on(&machine(3, 2), |session| {
        session.vane("create fixed")?;
        linux_on_bridge(session)?;
        for command in [
            format!("wget -q -O - {url} | crc32 | grep {expected}"),
            format!(
                "(printf 'PUT /sum HTTP/1.0\\r\\nContent-Length: {bytes}\\r\\n\\r\\n'; wget -q -O - {url}) | nc {HTTPD_IP} 80 | grep 'crc32 {expected} of {bytes} bytes'"
            ),
        ] {
            in_linux_within(session, &[&command], LINUX + megabytes * Duration::from_secs(8))?;
        }
        session.vane("destroy linux fixed").map(drop)
    })
}

/// Gives a guest an interface and takes it away at once.
fn attach_and_detach(session: &mut Session, guest: &str, number: u32) -> Result<()> {
    let attached = session.vane(&format!("network-attach {guest} devid={number}"))?;
    ensure!(attached.contains("now"), "it is not attached: {attached}");
    let detached = session.vane(&format!("network-detach {guest} {number}"))?;
    ensure!(detached.is_empty(), "it is not detached: {detached}");
    Ok(())
}

/// What goes wrong between guests stays there: interfaces that come and go a hundred times without a pause, a guest that ends
/// in the midst of a transfer, one that leaves its full ring alone. Others transfer what they should meanwhile, and nothing is
/// lost. `PARAVANE_FULL_SECONDS` says how long the ring is full.
pub(super) fn faults(stage: &Stage) -> Result<()> {
    const BYTES: u32 = 2_000_000;
    /// How many frames at least are sent to the full ring each second.
    const SENT: u64 = 10;
    let seconds = by_hand("PARAVANE_FULL_SECONDS", 20, 600)?;
    let guests = stage.fresh_guests()?;
    httpd_config(&guests, "fixed", &format!("ip={HTTPD_IP}/24"))?;
    httpd_config(&guests, "victim", "ip=10.0.0.81/24 stall")?;
    let transfer = &format!(
        "wget -q -O - http://{HTTPD_IP}/bytes/{BYTES} | crc32 | grep {}",
        sum(BYTES)
    );
    let endless =
        "wget -q -O /dev/null http://10.0.0.81/bytes/1000000000 & sleep 1; jobs | grep -i running";
    stage.play_on(&machine(3, 2), |session| {
        // The first ones may leave what is made once and kept.
        session.vane("create linux disk=[] \"vif=['']\"")?;
        session.vane("create fixed")?;
        session.vane("create victim")?;
        session.vane("destroy linux fixed victim")?;
        let before = resources(session)?;
        session.vane("create fixed")?;
        session.vane("create victim")?;
        linux_on_bridge(session)?;

        // The number is the same each time. Neither guest is given time; both have the last one in the end.
        session.vane("network-detach victim 0")?;
        for (guest, number) in [("linux", 1), ("victim", 0)] {
            let before = held(session)?;
            for _ in 0..100 {
                attach_and_detach(session, guest, number)?;
            }
            let after = held(session)?;
            ensure!(after == before, "{guest}: {before} before, {after} after");
        }
        session.vane(&format!("network-attach victim devid=0 mac={}", mac("victim")))?;
        session.vane("network-attach linux devid=1")?;
        in_linux(session, &[
            "ip link set eth0 down; until ip link set eth1 up; do sleep 1; done; ip address add 10.0.0.2/24 dev eth1",
            transfer,
            "ip link set eth1 down; ip link set eth0 up",
            transfer,
        ])?;
        session.vane("network-detach linux 1")?;

        // The one that sends is destroyed, and comes again.
        in_linux(session, &[endless])?;
        session.vane("destroy victim")?;
        in_linux(session, &["kill %1; wait", transfer])?;
        session.vane("create victim")?;
        shows(session, "victim", "^httpd: serving")?;

        // It hangs; what is sent to it fills its ring, and then goes nowhere. Nobody else waits.
        in_linux(session, &[
            "wget -q -O - --post-data=x http://10.0.0.81/stall | grep stalled",
            // Its address is known for longer than it does not answer.
            "echo 10000000 >/proc/sys/net/ipv4/neigh/eth0/base_reachable_time_ms",
            "ping -q -i 0.002 -s 1400 10.0.0.81 >/dev/null & sleep 1; jobs | grep -i running",
            ],
        )?;
        shows(session, "victim", "^httpd: stalled$")?;
        let dropped = |session: &mut Session| -> Result<u64> {
            let bridges = session.json("bridge-list --json")?;
            let ports = bridges[0]["ports"].as_array().into_iter().flatten();
            Ok(ports.filter_map(|p| p["out"]["dropped"].as_u64()).sum())
        };
        wait_until(session, LINUX, |session| Ok(dropped(session)? > 1000))?;
        let (before_full, full) = (dropped(session)?, Instant::now());
        while full.elapsed() < Duration::from_secs(seconds.into()) {
            in_linux(session, &[transfer])?;
        }
        let sent = dropped(session)? - before_full;
        ensure!(sent > SENT * u64::from(seconds), "{sent} frames in {seconds} s found the ring full");
        session.vane_shows("network-detach victim 0", "does not let go of the interface; detach it with -f$")?;
        session.vane("network-detach -f victim 0")?;
        in_linux(session, &["kill %1; wait", transfer])?;
        session.vane_within("shutdown -w victim", HELLO)?;
        ended(session, "victim")?;

        // The one that receives is destroyed.
        in_linux(session, &[&format!("wget -q -O /dev/null http://{HTTPD_IP}/bytes/1000000000 & sleep 1")])?;
        session.vane("destroy linux")?;
        session.vane_within("shutdown -w fixed", HELLO)?;
        ended(session, "fixed")?;
        unchanged(session, &before)
    })
}
