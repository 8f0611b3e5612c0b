// SPDX-License-Identifier: MIT OR Apache-2.0
//! The xenstore nodes of domains and their devices, with their permissions, as Xen's toolstack
//! makes them (`docs/misc/xenstore-paths.pandoc`).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::config::Uuid;
use crate::error::{Context, Result};
use crate::host::{DomId, Errno, Gfn, Host, Perm, Port};

/// The control domain.
const DOM0: DomId = DomId(0);

/// Who owns a node and who reads it besides.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// The control domain's alone.
    Private,
    /// The control domain's, read by the guest.
    ForGuest(DomId),
    /// The guest's alone.
    Guest(DomId),
    /// The guest's, read by the back-end.
    Front(DomId),
}

impl Kind {
    fn perms(self) -> Vec<Perm> {
        match self {
            Self::Private => alloc::vec![Perm::none(DOM0)],
            Self::ForGuest(guest) => alloc::vec![Perm::none(DOM0), Perm::read(guest)],
            Self::Guest(guest) => alloc::vec![Perm::none(guest)],
            Self::Front(guest) => alloc::vec![Perm::none(guest), Perm::read(DOM0)],
        }
    }
}

/// Writes a node and its permissions.
pub(super) fn put(host: &impl Host, path: &str, value: &str, kind: Kind) -> Result<()> {
    host.xs_write(path, value.as_bytes())
        .and_then(|()| host.xs_set_perms(path, &kind.perms()))
        .during(format!("xenstore: writing {path}"))
}

/// Writes several nodes below one.
pub(super) fn put_all(
    host: &impl Host,
    dir: &str,
    kind: Kind,
    nodes: &[(&str, &str)],
) -> Result<()> {
    nodes
        .iter()
        .try_for_each(|(name, value)| put(host, &format!("{dir}/{name}"), value, kind))
}

/// Makes a node that others share, with an empty value, unless it is there.
pub(super) fn ensure(host: &impl Host, path: &str, kind: Kind) -> Result<()> {
    match host.xs_read(path) {
        Ok(_) => Ok(()),
        Err(Errno::ENOENT) => put(host, path, "", kind),
        Err(e) => Err(e).during(format!("xenstore: reading {path}")),
    }
}

/// Removes a node, and then its parents below `stop` that have no children left.
pub(super) fn prune(host: &impl Host, path: &str, stop: &str) {
    let _ = host.xs_rm(path);
    let mut path = path;
    while let Some((parent, _)) = path.rsplit_once('/') {
        if parent.len() <= stop.len() || host.xs_list(parent).map_or(true, |l| !l.is_empty()) {
            return;
        }
        let _ = host.xs_rm(parent);
        path = parent;
    }
}

/// The nodes that are there before any guest.
pub(super) fn control_domain(host: &impl Host) -> Result<()> {
    for path in [
        "/tool",
        "/tool/xenstored",
        "/local",
        "/local/domain",
        "/local/domain/0",
        "/local/domain/0/backend",
        "/vm",
        "/libxl",
    ] {
        ensure(host, path, Kind::Private)?;
    }
    put_all(
        host,
        "/local/domain/0",
        Kind::Private,
        &[("domid", "0"), ("name", "Domain-0")],
    )?;
    for path in ["/local/pool", "/local/pool/0"] {
        ensure(host, path, Kind::Private)?;
    }
    put(host, "/local/pool/0/name", "Pool-0", Kind::Private)
}

/// What a guest's own nodes tell.
pub(super) struct GuestNodes<'a> {
    pub dom: DomId,
    pub uuid: Uuid,
    pub name: &'a str,
    pub maxmem_kib: u64,
    pub memory_kib: u64,
    pub vcpus: u32,
    pub maxvcpus: u32,
    pub start_time: u64,
}

/// The guest's nodes but for its devices, its console and its xenstore ring.
pub(super) fn guest(host: &impl Host, g: &GuestNodes<'_>) -> Result<()> {
    let dom = g.dom;
    let d = &format!("/local/domain/{dom}");
    let vm = &format!("/vm/{}", g.uuid);
    let guest_reads = Kind::ForGuest(dom);
    let domid = &dom.to_string();

    put(host, d, "", guest_reads)?;
    put_all(
        host,
        d,
        guest_reads,
        &[("vm", vm), ("name", g.name), ("cpu", ""), ("memory", "")],
    )?;
    for vcpu in 0..g.maxvcpus {
        let availability = if vcpu < g.vcpus { "online" } else { "offline" };
        put(host, &format!("{d}/cpu/{vcpu}"), "", guest_reads)?;
        put(
            host,
            &format!("{d}/cpu/{vcpu}/availability"),
            availability,
            guest_reads,
        )?;
    }
    put_all(
        host,
        &format!("{d}/memory"),
        guest_reads,
        &[
            ("static-max", &g.maxmem_kib.to_string()),
            ("target", &g.memory_kib.to_string()),
            ("videoram", "0"),
        ],
    )?;
    put_all(
        host,
        d,
        guest_reads,
        &[("device", ""), ("device/suspend", "")],
    )?;
    put(
        host,
        &format!("{d}/device/suspend/event-channel"),
        "",
        Kind::Guest(dom),
    )?;
    put(host, &format!("{d}/control"), "", guest_reads)?;
    put_all(
        host,
        &format!("{d}/control"),
        Kind::Guest(dom),
        &[
            ("shutdown", ""),
            ("feature-poweroff", ""),
            ("feature-reboot", ""),
            ("feature-suspend", ""),
            ("sysrq", ""),
        ],
    )?;
    put_all(
        host,
        &format!("{d}/control"),
        guest_reads,
        &[
            ("platform-feature-multiprocessor-suspend", "1"),
            ("platform-feature-xs_reset_watches", "1"),
        ],
    )?;
    put_all(
        host,
        d,
        Kind::Guest(dom),
        &[
            ("data", ""),
            ("drivers", ""),
            ("feature", ""),
            ("attr", ""),
            ("error", ""),
        ],
    )?;
    put(host, &format!("{d}/domid"), domid, guest_reads)?;

    put(host, vm, "", guest_reads)?;
    put_all(
        host,
        vm,
        guest_reads,
        &[
            ("name", g.name),
            ("uuid", &g.uuid.to_string()),
            ("start_time", &format!("{}.00", g.start_time)),
        ],
    )?;
    let libxl = &format!("/libxl/{dom}");
    put(host, libxl, "", Kind::Private)?;
    put(host, &format!("{libxl}/type"), "pvh", Kind::Private)
}

/// The rings of console 0 and xenstore.
pub(super) fn rings(
    host: &impl Host,
    dom: DomId,
    console: (Gfn, Port),
    store: (Gfn, Port),
) -> Result<()> {
    let d = &format!("/local/domain/{dom}");
    let guest_reads = Kind::ForGuest(dom);
    put(host, &format!("{d}/store"), "", guest_reads)?;
    put_all(
        host,
        &format!("{d}/store"),
        guest_reads,
        &[
            ("port", &store.1.to_string()),
            ("ring-ref", &store.0.to_string()),
        ],
    )?;

    let back = &format!("/local/domain/0/backend/console/{dom}/0");
    let front = &format!("{d}/console");
    let common: &[(&str, &str)] = &[
        ("frontend", front),
        ("frontend-id", &dom.to_string()),
        ("online", "1"),
        ("state", "1"),
        ("protocol", "vt100"),
    ];
    put(host, front, "", guest_reads)?;
    put_all(host, front, guest_reads, &[("backend", back)])?;
    put(host, &format!("{front}/backend-id"), "0", Kind::Front(dom))?;
    put_all(
        host,
        front,
        guest_reads,
        &[
            ("limit", "1048576"),
            ("type", "xenconsoled"),
            ("output", "pty"),
            ("tty", ""),
            ("port", &console.1.to_string()),
            ("ring-ref", &console.0.to_string()),
        ],
    )?;
    backend(host, dom, "console", "0", common)
}

/// A back-end's folder and the toolstack's own copy of it.
pub(super) fn backend(
    host: &impl Host,
    dom: DomId,
    class: &str,
    dev: &str,
    nodes: &[(&str, &str)],
) -> Result<()> {
    let back = backend_path(dom, class, dev);
    ensure(
        host,
        &format!("/local/domain/0/backend/{class}"),
        Kind::Private,
    )?;
    ensure(
        host,
        &format!("/local/domain/0/backend/{class}/{dom}"),
        Kind::Private,
    )?;
    put(host, &back, "", Kind::ForGuest(dom))?;
    put_all(host, &back, Kind::ForGuest(dom), nodes)?;

    let own = format!("/libxl/{dom}/device");
    ensure(host, &own, Kind::Private)?;
    ensure(host, &format!("{own}/{class}"), Kind::Private)?;
    let own = format!("{own}/{class}/{dev}");
    put(host, &own, "", Kind::Private)?;
    put(host, &format!("{own}/backend"), &back, Kind::Private)?;
    put_all(host, &own, Kind::Private, nodes)
}

/// The folder of a back-end.
pub(super) fn backend_path(dom: DomId, class: &str, dev: &str) -> String {
    format!("/local/domain/0/backend/{class}/{dom}/{dev}")
}

/// Removes a device's three folders.
pub(super) fn remove_device(host: &impl Host, dom: DomId, class: &str, dev: &str) {
    let _ = host.xs_rm(&format!("/local/domain/{dom}/device/{class}/{dev}"));
    prune(
        host,
        &backend_path(dom, class, dev),
        "/local/domain/0/backend",
    );
    let _ = host.xs_rm(&format!("/libxl/{dom}/device/{class}/{dev}"));
}

/// Removes all nodes of a guest.
pub(super) fn remove(host: &impl Host, dom: DomId) {
    // The guest cannot have changed `vm`, which it may only read.
    let vm = host.xs_read(&format!("/local/domain/{dom}/vm")).ok();
    if let Some(vm) = vm
        .and_then(|vm| String::from_utf8(vm).ok())
        .filter(|v| v.starts_with("/vm/"))
    {
        let _ = host.xs_rm(&vm);
    }
    for class in host.xs_list("/local/domain/0/backend").unwrap_or_default() {
        let class = format!("/local/domain/0/backend/{class}");
        let _ = host.xs_rm(&format!("{class}/{dom}"));
        if host.xs_list(&class).is_ok_and(|l| l.is_empty()) {
            let _ = host.xs_rm(&class);
        }
    }
    let _ = host.xs_rm(&format!("/libxl/{dom}"));
    let _ = host.xs_rm(&format!("/local/domain/{dom}"));
}
