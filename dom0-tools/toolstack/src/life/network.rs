// SPDX-License-Identifier: MIT OR Apache-2.0
//! Network interfaces: their nodes, their back-ends, attaching and detaching.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::tree::{self, Kind};
use super::{Claim, Toolstack};
use crate::config::{Mac, Uuid, Vif};
use crate::error::{Context, Result, fail};
use crate::host::{DEFAULT_BRIDGE, DomId, Host, NetStart};

/// The largest packet of interfaces that say nothing of it.
const MTU: u16 = 1500;
/// The first bytes of Xen's Ethernet addresses.
const OUI: [u8; 3] = [0x00, 0x16, 0x3e];

/// A network interface as xenstore shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VifState {
    /// Its number.
    pub devid: u32,
    /// Its Ethernet address.
    pub mac: String,
    /// The bridge that it is on.
    pub bridge: String,
    /// The back-end's domain.
    pub backend_id: u32,
    /// The front-end's state (`XenbusState*`, 4 is connected).
    pub state: u32,
    /// The front-end's event channels for sending and receiving, once it has them.
    pub event_channels: (Option<u64>, Option<u64>),
    /// The front-end's first rings for sending and receiving, once it has them.
    pub ring_refs: (Option<u64>, Option<u64>),
    /// The back-end's folder.
    pub backend: String,
}

/// Interfaces with the numbers that they get.
pub(super) fn numbered(vifs: &[Vif]) -> Result<Vec<Vif>> {
    let mut taken: Vec<u32> = vifs.iter().filter_map(|v| v.devid).collect();
    taken.sort_unstable();
    if let Some(twice) = taken.iter().zip(taken.iter().skip(1)).find(|(a, b)| a == b) {
        return fail!("vif: devid {} is given twice; give another", twice.0);
    }
    let mut all = Vec::new();
    for vif in vifs {
        let devid = vif.devid.unwrap_or_else(|| free(&taken));
        taken.push(devid);
        all.push(Vif {
            devid: Some(devid),
            ..vif.clone()
        });
    }
    Ok(all)
}

/// The least number that is not taken.
fn free(taken: &[u32]) -> u32 {
    (0..).find(|n| !taken.contains(n)).unwrap_or(0)
}

/// An address that follows from the guest and the interface's number.
fn derived_mac(uuid: Uuid, devid: u32, attempt: u32) -> Mac {
    // FNV-1a.
    let bytes = uuid
        .0
        .into_iter()
        .chain(devid.to_le_bytes())
        .chain(attempt.to_le_bytes());
    let hash = bytes.fold(0x811c_9dc5_u32, |h, b| {
        (h ^ u32::from(b)).wrapping_mul(0x0100_0193)
    });
    let [a, b, c, d] = hash.to_be_bytes();
    // As xl does, without the upper half of the addresses.
    Mac([OUI[0], OUI[1], OUI[2], (a ^ b) & 0x7f, c, d])
}

impl<H: Host> Toolstack<H> {
    /// Makes an interface's nodes and starts its back-end.
    pub(super) async fn add_vif(&self, dom: DomId, uuid: Uuid, vif: &Vif) -> Result<()> {
        let devid = vif.devid.unwrap_or(0);
        let dev = &devid.to_string();
        let mac = vif.mac.unwrap_or_else(|| self.free_mac(uuid, devid));
        let bridge = vif.bridge.as_deref().unwrap_or(DEFAULT_BRIDGE);
        if let Some(port) = self.port_with(bridge, mac) {
            return fail!("vif {devid}: {port} on {bridge} has {mac} already; give another mac");
        }
        let start = NetStart {
            dom,
            devid,
            mac,
            bridge: bridge.to_owned(),
            ips: vif.nets(),
            rate: vif.rate,
            mtu: vif.mtu.unwrap_or(MTU),
        };
        let back = &tree::backend_path(dom, "vif", dev);
        let front = &format!("/local/domain/{dom}/device/vif/{dev}");
        let (mac, mtu) = (&mac.to_string(), &start.mtu.to_string());
        tree::ensure(
            &self.host,
            &format!("/local/domain/{dom}/device/vif"),
            Kind::ForGuest(dom),
        )?;
        let rate = start
            .rate
            .map(|r| format!("{},{}", r.bytes(), r.interval_us));
        let ip = (!vif.ip.is_empty()).then(|| vif.ip.join(" "));
        let id = dom.to_string();
        let mut nodes = alloc::vec![
            ("frontend", front.as_str()),
            ("frontend-id", &id),
            ("online", "1"),
            ("state", "1"),
            ("mac", mac),
            ("mtu", mtu),
            ("bridge", &start.bridge),
            ("handle", dev),
            ("type", "vif"),
            ("hotplug-status", "connected"),
        ];
        let optional = [
            ("ip", &ip),
            ("rate", &rate),
            ("vifname", &vif.vifname),
            ("script", &vif.script),
        ];
        nodes.extend(
            optional
                .iter()
                .filter_map(|(key, v)| Some((*key, v.as_deref()?))),
        );
        tree::backend(&self.host, dom, "vif", dev, &nodes)?;
        // The guest's watch fires on these: the back-end's folder is whole by then.
        tree::put(&self.host, front, "", Kind::Front(dom))?;
        tree::put_all(
            &self.host,
            front,
            Kind::Front(dom),
            &[
                ("backend", back),
                ("backend-id", "0"),
                ("state", "1"),
                ("handle", dev),
                ("mac", mac),
                ("trusted", if vif.untrusted { "0" } else { "1" }),
            ],
        )?;
        // Not the guest's to change, as xl has it.
        tree::put(
            &self.host,
            &format!("{front}/mtu"),
            mtu,
            Kind::ForGuest(dom),
        )?;
        self.host
            .net_start(&start)
            .await
            .during(format!("vif {dev}"))
    }

    /// The port of a bridge where this address is, by its own right.
    fn port_with(&self, bridge: &str, mac: Mac) -> Option<String> {
        let bridges = self.host.bridges().into_iter();
        let mut ports = bridges.filter(|b| b.name == bridge).flat_map(|b| b.ports);
        ports.find(|p| p.mac == Some(mac)).map(|p| p.name)
    }

    /// An address for an interface that is given none, which no other interface here has.
    fn free_mac(&self, uuid: Uuid, devid: u32) -> Mac {
        let doms = self.host.xs_list("/local/domain/0/backend/vif");
        let taken: Vec<String> = doms
            .unwrap_or_default()
            .iter()
            .filter_map(|d| d.parse().ok().map(DomId))
            .flat_map(|dom| self.vifs(dom))
            .map(|v| v.mac)
            .collect();
        let mut all = (0..).map(|n| derived_mac(uuid, devid, n));
        all.find(|mac| !taken.contains(&mac.to_string()))
            .unwrap_or_else(|| derived_mac(uuid, devid, 0))
    }

    /// Removes an interface at once, back-end and nodes.
    pub(super) async fn remove_vif(&self, dom: DomId, devid: u32) {
        self.host.net_stop(dom, devid).await;
        tree::remove_device(&self.host, dom, "vif", &devid.to_string());
    }

    /// A domain's network interfaces, in the order of their numbers.
    pub fn vifs(&self, dom: DomId) -> Vec<VifState> {
        let state = |devid| {
            let backend = tree::backend_path(dom, "vif", &format!("{devid}"));
            let front = format!("/local/domain/{dom}/device/vif/{devid}");
            let number = |name: &str| {
                self.read_number(&format!("{front}/{name}"))
                    .or_else(|| self.read_number(&format!("{front}/queue-0/{name}")))
            };
            let back_text = |name: &str| {
                self.read_text(&format!("{backend}/{name}"))
                    .unwrap_or_default()
            };
            let channel = |name: &str| number(name).or_else(|| number("event-channel"));
            VifState {
                devid,
                mac: back_text("mac"),
                bridge: back_text("bridge"),
                backend_id: 0,
                state: number("state")
                    .and_then(|n| u32::try_from(n).ok())
                    .unwrap_or(0),
                event_channels: (channel("event-channel-tx"), channel("event-channel-rx")),
                ring_refs: (number("tx-ring-ref"), number("rx-ring-ref")),
                backend,
            }
        };
        self.devids(dom, "vif").into_iter().map(state).collect()
    }

    /// Gives a running guest a further interface. Its number.
    ///
    /// # Errors
    /// The number is taken, or the interface cannot be served.
    pub async fn attach_vif(&self, dom: DomId, vif: &Vif) -> Result<u32> {
        let Some(_claim) = self.claim(Claim::Domain(dom)) else {
            return fail!("domain {dom} is being changed; try again");
        };
        let taken = self.listed_devids(dom, "vif")?;
        let devid = vif.devid.unwrap_or_else(|| free(&taken));
        if taken.contains(&devid) {
            return fail!("domain {dom} has an interface {devid} already; give another devid");
        }
        let info = self.host.domain_info(dom).during("finding its UUID")?;
        let vif = Vif {
            devid: Some(devid),
            ..vif.clone()
        };
        let again = self.number_is_free(dom, "vif", devid).await?;
        let mut added = self.add_vif(dom, Uuid(info.handle), &vif).await;
        if added.is_ok() && again {
            added = self.taken_up(dom, "vif", devid).await;
        }
        if let Err(e) = added {
            self.remove_vif(dom, devid).await;
            return Err(e);
        }
        if let Some(kept) = self.kept.borrow_mut().get_mut(&dom.0) {
            kept.config.vifs.push(vif);
        }
        Ok(devid)
    }

    /// Takes an interface from a guest, by its number or Ethernet address: asks it to let go and
    /// waits, or does not wait if `force`.
    ///
    /// # Errors
    /// There is no such interface, or the guest does not let go of it.
    pub async fn detach_vif(&self, dom: DomId, which: &str, force: bool) -> Result<()> {
        let Some(_claim) = self.claim(Claim::Domain(dom)) else {
            return fail!("domain {dom} is being changed; try again");
        };
        let mac = which.parse::<Mac>().ok().map(|m| m.to_string());
        let number: Option<u32> = which.parse().ok();
        let found = self
            .vifs(dom)
            .into_iter()
            .find(|v| Some(v.devid) == number || Some(&v.mac) == mac.as_ref());
        let Some(VifState { devid, .. }) = found else {
            return fail!("domain {dom} has no interface {which}; see: network-list {dom}");
        };
        if !force && !self.let_go(dom, "vif", devid).await? {
            return fail!("domain {dom} does not let go of the interface; detach it with -f");
        }
        self.remove_vif(dom, devid).await;
        if let Some(kept) = self.kept.borrow_mut().get_mut(&dom.0) {
            kept.config.vifs.retain(|v| v.devid != Some(devid));
            kept.used.insert(("vif", devid));
        }
        Ok(())
    }
}
