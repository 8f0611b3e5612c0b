// SPDX-License-Identifier: MIT OR Apache-2.0
//! The small hypercalls: `xen_version`, `hvm_op`, `console_io`, `vm_assist`, `platform_op`.

use super::{Answer, Call, OK, done};
use crate::console::Speaker;
use crate::machine::{Machine, cost};
use crate::types::{DomId, Errno, Pa};
use guest_abi::console::ConsoleOp;
use guest_abi::hvm::{HvmOp, HvmParam, NR_PARAMS, Param};
use guest_abi::platform::{INTERFACE_VERSION, PlatformCmd, PlatformOp};
use guest_abi::version::{CompileInfo, Feature, FeatureInfo, PlatformParameters, VersionOp};
use guest_abi::xen::{VmAssist, VmAssistCmd, offset};

const VERSION: i64 = (4 << 16) | 17;

fn text<const N: usize>(s: &str) -> [u8; N] {
    let mut b = [0; N];
    for (to, from) in b.iter_mut().take(N.saturating_sub(1)).zip(s.bytes()) {
        *to = from;
    }
    b
}

impl<M: Machine> Call<'_, M> {
    #[inline(never)]
    pub(super) fn xen_version(&mut self, a: &mut [u64; 5]) -> Answer {
        let op = VersionOp::from_number(u64::from(a[0] as u32)).ok_or(Errno::ENOSYS)?;
        let d = self.hv.domains.get(self.who.slot).ok_or(Errno::ESRCH)?;
        match op {
            VersionOp::Version => return done(VERSION),
            VersionOp::Pagesize if a[1] == 0 => return done(4096i64),
            VersionOp::Pagesize => return Err(Errno::EINVAL),
            VersionOp::Extraversion => self.guest().put(a[1], &text::<16>(".0-paravane"))?,
            VersionOp::CompileInfo => {
                let info = CompileInfo {
                    compiler: text("rustc"),
                    compile_by: text("paravane"),
                    compile_domain: text(""),
                    compile_date: text(""),
                };
                self.guest().put(a[1], &info)?;
            }
            VersionOp::Capabilities => {
                self.guest().put(a[1], &text::<1024>("xen-3.0-aarch64 "))?;
            }
            VersionOp::Changeset => self.guest().put(a[1], &text::<64>("unavailable"))?,
            VersionOp::PlatformParameters => {
                self.guest()
                    .put(a[1], &PlatformParameters { virt_start: 0 })?;
            }
            VersionOp::GetFeatures => {
                let mut f: FeatureInfo = self.guest().get(a[1])?;
                if f.submap_idx != 0 {
                    return Err(Errno::EINVAL);
                }
                f.submap = {
                    let mut bits = Feature::WritablePageTables.bit()
                        | Feature::AutoTranslatedPhysmap.bit()
                        | Feature::MemoryOpVnodeSupported.bit()
                        | Feature::ArmSmcccSupported.bit();
                    bits |= if d.direct_mapped {
                        Feature::DirectMapped.bit()
                    } else {
                        Feature::NotDirectMapped.bit()
                    };
                    bits | if d.privileged { Feature::Dom0.bit() } else { 0 }
                };
                self.guest().put(a[1], &f)?;
            }
            VersionOp::GuestHandle => self.guest().put(a[1], &d.handle)?,
            VersionOp::Commandline => {
                self.guest().put(
                    a[1],
                    &text::<1024>(if self.privileged { "" } else { "<denied>" }),
                )?;
            }
            VersionOp::BuildId => {
                return Err(if self.privileged {
                    Errno::ENODATA
                } else {
                    Errno::EPERM
                });
            }
        }
        OK
    }

    #[inline(never)]
    pub(super) fn hvm_op(&mut self, a: &mut [u64; 5]) -> Answer {
        let op = HvmOp::from_number(u64::from(a[0] as u32)).ok_or(Errno::ENOSYS)?;
        if op == HvmOp::GuestRequestVmEvent {
            // Nobody monitors.
            return if a[1] == 0 { OK } else { Err(Errno::EINVAL) };
        }
        if !matches!(op, HvmOp::SetParam | HvmOp::GetParam) {
            return Err(Errno::ENOSYS);
        }
        let mut p: HvmParam = self.guest().get(a[1])?;
        if p.index >= NR_PARAMS {
            return Err(Errno::EINVAL);
        }
        let target = self.live_target(p.domid)?;
        let guest_may_read = matches!(
            Param::from_number(p.index),
            Some(
                Param::CallbackIrq
                    | Param::StorePfn
                    | Param::StoreEvtchn
                    | Param::ConsolePfn
                    | Param::ConsoleEvtchn
            )
        );
        let known = guest_may_read || Param::from_number(p.index) == Some(Param::MonitorRingPfn);
        if !known {
            return Err(Errno::EINVAL);
        }
        if op == HvmOp::SetParam || !guest_may_read {
            self.require_privilege()?;
        }
        let d = self.hv.domains.get_mut(target).ok_or(Errno::ESRCH)?;
        let place = d.params.get_mut(p.index as usize).ok_or(Errno::EINVAL)?;
        if op == HvmOp::SetParam {
            *place = p.value;
        } else {
            p.value = *place;
            self.guest().put(a[1], &p)?;
        }
        OK
    }

    #[inline(never)]
    pub(super) fn console_io(&mut self, a: &mut [u64; 5]) -> Answer {
        let op = ConsoleOp::from_number(u64::from(a[0] as u32)).ok_or(Errno::ENOSYS)?;
        let count = usize::try_from(a[1] as u32 as i32).map_err(|_| Errno::EINVAL)?;
        let mut buf = [0u8; 256];
        let part = buf.get_mut(..count.min(256)).ok_or(Errno::EINVAL)?;
        match op {
            ConsoleOp::Write => {
                if part.is_empty() {
                    return OK;
                }
                self.guest().read(a[2], part)?;
                let (taken, until) = if self.privileged {
                    let taken = self.m.put(Speaker::Control, part);
                    // About a hundred bytes leave at 115,200 baud meanwhile.
                    let until = self.m.now().saturating_add(10_000_000);
                    (taken, (taken == 0).then_some(until))
                } else {
                    self.hv.print(self.m, self.who.slot, part)
                };
                if let Some(until) = until {
                    self.hv.sleep(self.m, self.who, Some(until));
                }
                a[1] = a[1].saturating_sub(taken as u64);
                a[2] = a[2].wrapping_add(taken as u64);
                if a[1] as u32 == 0 {
                    OK
                } else {
                    Ok(super::Reply::Again)
                }
            }
            ConsoleOp::Read => {
                self.require_privilege()?;
                self.guest().check_writable(a[2], part.len())?;
                let n = self.hv.console.read_input(part);
                let got = part.get(..n).ok_or(Errno::EINVAL)?;
                self.guest().write(a[2], got)?;
                done(n as i64)
            }
        }
    }

    #[inline(never)]
    pub(super) fn vm_assist(&mut self, a: &mut [u64; 5]) -> Answer {
        if a[1] != VmAssist::RUNSTATE_UPDATE_FLAG {
            return Err(Errno::EINVAL);
        }
        let cmd = VmAssistCmd::from_number(a[0] & 0xffff_ffff).ok_or(Errno::ENOSYS)?;
        let d = self.hv.domains.get_mut(self.who.slot).ok_or(Errno::ESRCH)?;
        let bit = 1 << VmAssist::RUNSTATE_UPDATE_FLAG;
        match cmd {
            VmAssistCmd::Enable => d.assist |= bit,
            VmAssistCmd::Disable => d.assist &= !bit,
        }
        OK
    }

    /// XENPF_settime64: the control domain knows the time of day.
    #[inline(never)]
    pub(super) fn platform_op(&mut self, a: &mut [u64; 5]) -> Answer {
        let op: PlatformOp = self.guest().get(a[0])?;
        if op.interface_version != INTERFACE_VERSION {
            return Err(Errno::EACCES);
        }
        if PlatformCmd::from_number(op.cmd) != Some(PlatformCmd::Settime64) {
            return Err(Errno::ENOSYS);
        }
        let t = op.settime64;
        if t.mbz != 0 {
            return Err(Errno::EINVAL);
        }
        self.hv.info.wall_sec = t.secs.saturating_sub(t.system_time / 1_000_000_000);
        let pages: [Option<Pa>; crate::types::MAX_DOMAINS] = {
            let mut all = [None; crate::types::MAX_DOMAINS];
            for (place, d) in all.iter_mut().zip(self.hv.domains.iter()) {
                *place = Some(Pa(d.shared_info.addr()));
            }
            all
        };
        for page in pages.into_iter().flatten() {
            self.m.spend(8 * cost::ENTRY);
            self.hv.write_wall_clock(self.m, page);
        }
        OK
    }
}

impl crate::hypervisor::Hypervisor {
    /// Tells a domain the time of day at which the hypervisor started (`wc_*` of `shared_info`),
    /// odd versions while it changes.
    pub fn write_wall_clock<M: Machine>(&self, m: &M, shared_info: Pa) {
        let version = shared_info.add(offset::WC_VERSION as u64);
        let next = (m.load32(version) | 1).wrapping_add(1);
        m.store32(version, next.wrapping_sub(1));
        m.store32(
            shared_info.add(offset::WC_SEC as u64),
            self.info.wall_sec as u32,
        );
        m.store32(shared_info.add(offset::WC_NSEC as u64), 0);
        m.store32(
            shared_info.add(offset::WC_SEC_HI as u64),
            (self.info.wall_sec >> 32) as u32,
        );
        m.store32(version, next);
    }

    /// A guest prints; see [`Lines::write`](crate::console::Lines::write).
    fn print<M: Machine>(
        &mut self,
        m: &M,
        slot: crate::types::Slot,
        bytes: &[u8],
    ) -> (usize, Option<u64>) {
        let Some(d) = self.domains.get_mut(slot) else {
            return (bytes.len(), None);
        };
        let put = |line: &[u8]| m.put(Speaker::Guest, line) != 0;
        d.lines.write(bytes, &mut self.console.guests, m.now(), put)
    }

    /// A guest ends: what it printed last may not have been a whole line.
    pub(crate) fn print_last<M: Machine>(&mut self, m: &M, slot: crate::types::Slot) {
        if let Some(d) = self.domains.get_mut(slot) {
            let put = |line: &[u8]| m.put(Speaker::Guest, line) != 0;
            d.lines.flush(&mut self.console.guests, m.now(), put);
        }
    }

    /// The number of a slot's domain, for messages.
    #[must_use]
    pub fn domid(&self, slot: crate::types::Slot) -> DomId {
        self.domains.get(slot).map_or(DomId::INVALID, |d| d.domid)
    }
}
