// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the toolstack needs of the control domain that it runs in: the [`Host`] port.
//!
//! One real implementation lives in `dom0`, one strict fake in this crate's tests. Everything is
//! `&self` (the implementation keeps its own cells), single threaded, and says what failed with an
//! [`Errno`]; the toolstack adds which domain, path or device it was about. Calls that may take long
//! (files, back-ends, waiting) are `async`; hypervisor calls are not, and are kept short by handing
//! them bounded pieces with [`Host::pause_point`] between.

#![allow(async_fn_in_trait)]

use alloc::string::String;
use alloc::vec::Vec;
pub use builder::facts::Facts;
use core::net::IpAddr;

pub use crate::config::{Mac, Rate};
pub use crate::extents::Extents;
pub use crate::terminal::Size;
pub use guest_abi::{DomId, Errno, Gfn, Port};

/// The interrupt controller that a guest sees.
pub use builder::GicVersion;

/// What a domain is created with (`XEN_DOMCTL_createdomain`, `public/domctl.h`). Guests always have
/// `hvm | hap` and grant table version 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateDomain {
    /// The domain's UUID (`handle`).
    pub handle: [u8; 16],
    /// The number of vcpus.
    pub max_vcpus: u32,
    /// The highest event-channel port that the domain may use.
    pub max_evtchn_port: u32,
    /// The most grant-table frames (4 KiB, 512 version-1 entries each).
    pub max_grant_frames: u32,
    /// The most maptrack frames.
    pub max_maptrack_frames: u32,
    /// `None` is the host's own version (`XEN_DOMCTL_CONFIG_GIC_NATIVE`).
    pub gic: Option<GicVersion>,
    /// The number of shared interrupts (SPIs): 0 for none, 32 when there is a virtual UART.
    pub nr_spis: u32,
}

/// What the hypervisor made of a [`CreateDomain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreatedDomain {
    /// The new domain.
    pub dom: DomId,
    /// The interrupt controller that it got.
    pub gic: GicVersion,
    /// The timer's frequency in Hz if firmware's own register is wrong, else 0.
    pub clock_frequency: u32,
}

/// Why a domain stopped (`SHUTDOWN_*`, `public/sched.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownCode {
    /// It was powered off (0).
    Poweroff,
    /// It wants to be started anew (1).
    Reboot,
    /// It wants to be saved (2).
    Suspend,
    /// It crashed (3).
    Crash,
    /// Its watchdog ran out (4).
    Watchdog,
    /// It asked for a soft reset (5).
    SoftReset,
    /// Any other number.
    Other(u8),
}

impl ShutdownCode {
    /// From the number in `getdomaininfo.flags` bits 16 to 23.
    #[must_use]
    pub const fn from_number(n: u8) -> Self {
        match n {
            0 => Self::Poweroff,
            1 => Self::Reboot,
            2 => Self::Suspend,
            3 => Self::Crash,
            4 => Self::Watchdog,
            5 => Self::SoftReset,
            n => Self::Other(n),
        }
    }
    /// The word for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Poweroff => "poweroff",
            Self::Reboot => "reboot",
            Self::Suspend => "suspend",
            Self::Crash => "crash",
            Self::Watchdog => "watchdog",
            Self::SoftReset => "soft-reset",
            Self::Other(_) => "unknown",
        }
    }
}

/// A domain as the hypervisor sees it (`xen_domctl_getdomaininfo`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomInfo {
    /// The domain.
    pub dom: DomId,
    /// Its UUID.
    pub handle: [u8; 16],
    /// Being destroyed (flag bit 0).
    pub dying: bool,
    /// Stopped, and why (flag bit 2 and bits 16 to 23).
    pub shutdown: Option<ShutdownCode>,
    /// Paused by the toolstack (flag bit 3).
    pub paused: bool,
    /// Every vcpu waits (flag bit 4).
    pub blocked: bool,
    /// Some vcpu runs now (flag bit 5).
    pub running: bool,
    /// Pages that it has now.
    pub tot_pages: u64,
    /// Pages that it may have.
    pub max_pages: u64,
    /// The time its vcpus have run, in nanoseconds.
    pub cpu_time_ns: u64,
    /// Vcpus that are online.
    pub online_vcpus: u32,
    /// The highest vcpu number.
    pub max_vcpu_id: u32,
    /// The width of guest physical addresses in bits.
    pub gpaddr_bits: u8,
}

/// A vcpu (`xen_domctl_getvcpuinfo`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuInfo {
    /// It has been started and not stopped.
    pub online: bool,
    /// It waits for an event.
    pub blocked: bool,
    /// It runs now.
    pub running: bool,
    /// The time it has run, in nanoseconds.
    pub cpu_time_ns: u64,
    /// The physical CPU that it runs on or ran on last.
    pub cpu: u32,
}

/// The machine (`xen_sysctl_physinfo`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysInfo {
    /// CPUs online.
    pub nr_cpus: u32,
    /// The timer's frequency in kHz, which Arm reports as the CPU's.
    pub cpu_khz: u32,
    /// Pages of memory in all.
    pub total_pages: u64,
    /// Pages that are free.
    pub free_pages: u64,
    /// Free pages that wait to be scrubbed.
    pub scrub_pages: u64,
}

/// What the control domain itself holds: what domains that came and went must leave as it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnUse {
    /// Event channels that it has open.
    pub ports: u32,
    /// Pages of other domains' that it has mapped, by grants or by their frames.
    pub mapped_pages: u64,
    /// Bytes of its heap that are taken, and all.
    pub heap: (u64, u64),
    /// Its own IP address, if it has one, and how many bits of it are its network's.
    pub address: Option<(IpAddr, u8)>,
}

/// What is known of the machine under the hypervisor, for [`Host::machine`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineFacts {
    /// The board's name.
    pub board: String,
    /// What the hypervisor says, if it does.
    pub facts: Option<Facts>,
    /// The interrupt controller's version.
    pub gic: u8,
    /// CPUs that run.
    pub started: u32,
    /// Ticks of the counter in a second.
    pub counter_hz: u64,
    /// The control domain's own memory: first address and bytes.
    pub memory: Vec<(u64, u64)>,
    /// Disks.
    pub disks: Vec<DiskFacts>,
    /// One of them has the volume with the guests.
    pub volume: bool,
    /// What did not work, in words.
    pub troubles: Vec<String>,
}

/// A disk of the machine's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskFacts {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: &'static str,
    /// Its size in bytes.
    pub bytes: u64,
    /// It cannot be written.
    pub read_only: bool,
}

/// What the hypervisor says of itself (`xen_version`, `public/version.h`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionInfo {
    /// The major version of the ABI.
    pub major: u16,
    /// The minor version of the ABI.
    pub minor: u16,
    /// What follows them.
    pub extra: String,
    /// Such as `xen-3.0-aarch64`.
    pub capabilities: String,
    /// The source's revision.
    pub changeset: String,
    /// What compiled it.
    pub compiler: String,
    /// Who built it.
    pub compile_by: String,
    /// Where it was built.
    pub compile_domain: String,
    /// When it was built.
    pub compile_date: String,
    /// Its command line.
    pub command_line: String,
    /// The scheduler's name.
    pub scheduler: String,
    /// Guests see addresses from here on as the hypervisor's (`platform_parameters`).
    pub virt_start: u64,
}

/// The HVM parameters that a toolstack sets (`public/hvm/params.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum HvmParam {
    /// How events reach the guest.
    CallbackIrq = 0,
    /// The xenstore ring's frame.
    StorePfn = 1,
    /// The xenstore ring's port.
    StoreEvtchn = 2,
    /// The console ring's frame.
    ConsolePfn = 17,
    /// The console ring's port.
    ConsoleEvtchn = 18,
    /// The frame of the memory-event ring.
    MonitorRingPfn = 28,
}

/// The state in which a vcpu starts (`vcpu_guest_context`, `public/arch-arm.h`). Whatever is not
/// named is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuContext {
    /// The program counter.
    pub pc: u64,
    /// Register x0: the device tree's guest physical address.
    pub x0: u64,
    /// The processor state.
    pub cpsr: u64,
    /// `SCTLR_EL1`.
    pub sctlr: u64,
}

/// Who may do what with a xenstore node: its letter (`n r w b`) with a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Perm {
    /// The domain. The first entry's is the owner.
    pub dom: DomId,
    /// May read.
    pub read: bool,
    /// May write.
    pub write: bool,
}

impl Perm {
    /// No rights but the owner's (`nN`).
    #[must_use]
    pub const fn none(dom: DomId) -> Self {
        Self {
            dom,
            read: false,
            write: false,
        }
    }
    /// Reading (`rN`).
    #[must_use]
    pub const fn read(dom: DomId) -> Self {
        Self {
            dom,
            read: true,
            write: false,
        }
    }
    /// The letter.
    #[must_use]
    pub const fn letter(self) -> char {
        match (self.read, self.write) {
            (false, false) => 'n',
            (true, false) => 'r',
            (false, true) => 'w',
            (true, true) => 'b',
        }
    }
}

/// A disk that a back-end is to serve. Its xenstore nodes are there already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockStart {
    /// The guest.
    pub dom: DomId,
    /// The virtual device number, such as 51712 for `xvda`.
    pub vdev: u32,
    /// What the file or device was called: a path on dom0's volume (`/guests/…`) or a whole disk (`/dev/…`).
    pub target: String,
    /// It may not be written.
    pub read_only: bool,
    /// The guest may discard sectors.
    pub discard: bool,
}

/// What is known of a disk's store before it is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockTarget {
    /// Its size in sectors of 512 bytes.
    pub sectors: u64,
    /// It can be written.
    pub writable: bool,
}

/// The bridge of interfaces that name none; it is always there.
pub const DEFAULT_BRIDGE: &str = "xenbr0";
/// The name of the port of a bridge where the machine's network card is.
pub const CARD: &str = "eth0";

/// A network interface that a back-end is to serve. Its xenstore nodes are there already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetStart {
    /// The guest.
    pub dom: DomId,
    /// The interface's number.
    pub devid: u32,
    /// Its Ethernet address.
    pub mac: Mac,
    /// The bridge that it is put on, which is made if there is none of that name.
    pub bridge: String,
    /// The IP addresses that it may send from, each with how many of its bits matter; any when there
    /// are none. If there are, it may not use another Ethernet address than its own either.
    pub ips: Vec<(IpAddr, u8)>,
    /// A limit on what the guest sends.
    pub rate: Option<Rate>,
    /// The largest packet.
    pub mtu: u16,
}

/// A bridge of the control domain's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeInfo {
    /// Its name.
    pub name: String,
    /// What is connected with it.
    pub ports: Vec<BridgePort>,
}

/// A bridge's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgePort {
    /// Its name: `vif1.0` for a guest's interface, [`CARD`] for the machine's, `dom0` for the control domain itself.
    pub name: String,
    /// The guest, and its interface's number.
    pub guest: Option<(DomId, u32)>,
    /// The Ethernet address of what is there.
    pub mac: Option<Mac>,
    /// The guest is connected; the card's link is up; the control domain has an IP address.
    pub link: bool,
    /// Frames and bytes that came in there.
    pub came: (u64, u64),
    /// Frames and bytes that went out there.
    pub went: (u64, u64),
    /// Frames that came in and were refused, as from an address that is not the guest's own.
    pub refused: u64,
    /// Frames that were to go out and were dropped, as when a guest does not keep up.
    pub dropped: u64,
    /// The Ethernet addresses that were seen there.
    pub macs: Vec<Mac>,
}

/// An entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name.
    pub name: String,
    /// It is a folder.
    pub dir: bool,
}

/// The control domain's side of everything: hypervisor calls, files, xenstore, back-ends, time.
pub trait Host {
    /// An open file.
    type File;
    /// A xenstore watch, which ends when it is dropped.
    type Watch;

    // ---- domains (domctl) --------------------------------------------------------------------

    /// Makes an empty, paused domain.
    fn create_domain(&self, req: &CreateDomain) -> Result<CreatedDomain, Errno>;
    /// Allocates its vcpus (`XEN_DOMCTL_max_vcpus`).
    fn set_max_vcpus(&self, dom: DomId, n: u32) -> Result<(), Errno>;
    /// The most memory that it may have, in KiB (`XEN_DOMCTL_max_mem`).
    fn set_max_mem(&self, dom: DomId, kib: u64) -> Result<(), Errno>;
    /// The pool for its page tables, in bytes (`XEN_DOMCTL_set_paging_mempool_size`).
    /// May return [`Errno::ERESTART`]: call again.
    fn set_paging_pool(&self, dom: DomId, bytes: u64) -> Result<(), Errno>;
    /// Starts destroying it, or goes on ([`Errno::ERESTART`] or [`Errno::EAGAIN`]: call again).
    fn destroy_domain(&self, dom: DomId) -> Result<(), Errno>;
    /// Stops its vcpus from running.
    fn pause_domain(&self, dom: DomId) -> Result<(), Errno>;
    /// Lets its vcpus run.
    fn unpause_domain(&self, dom: DomId) -> Result<(), Errno>;
    /// Where vcpu 0 starts (`XEN_DOMCTL_setvcpucontext`).
    fn set_vcpu_context(&self, dom: DomId, vcpu: u32, context: &VcpuContext) -> Result<(), Errno>;
    /// The physical CPUs that a vcpu may run on: bit n of the words is CPU n.
    fn set_vcpu_affinity(&self, dom: DomId, vcpu: u32, cpus: &[u64]) -> Result<(), Errno>;
    /// The domain's share of the CPUs (256 is everybody's; `XEN_DOMCTL_SCHEDOP_putinfo`).
    fn set_weight(&self, dom: DomId, weight: u16) -> Result<(), Errno>;
    /// Its share (`XEN_DOMCTL_SCHEDOP_getinfo`).
    fn weight(&self, dom: DomId) -> Result<u16, Errno>;
    /// Cleans guest memory to the point of coherency (`XEN_DOMCTL_cacheflush`).
    fn cache_flush(&self, dom: DomId, start: Gfn, pages: u64) -> Result<(), Errno>;
    /// Gives it a virtual PL011 whose bytes go to the frame `gfn`, and answers the console's port
    /// (`XEN_DOMCTL_vuart_op` init).
    fn vuart_init(&self, dom: DomId, gfn: Gfn) -> Result<Port, Errno>;
    /// One domain, or [`Errno::ESRCH`].
    fn domain_info(&self, dom: DomId) -> Result<DomInfo, Errno>;
    /// Every domain, in the order of their numbers.
    fn domain_list(&self) -> Result<Vec<DomInfo>, Errno>;
    /// One vcpu.
    fn vcpu_info(&self, dom: DomId, vcpu: u32) -> Result<VcpuInfo, Errno>;
    /// The CPUs that a vcpu may run on (hard affinity): bit n of the words is CPU n.
    fn vcpu_affinity(&self, dom: DomId, vcpu: u32) -> Result<Vec<u64>, Errno>;

    // ---- memory and events on a domain's behalf ----------------------------------------------

    /// Gives it `count` extents of 2^`order` pages from `first` on (`XENMEM_populate_physmap`), and
    /// answers how many it got: fewer means that memory ran out.
    fn populate(&self, dom: DomId, first: Gfn, order: u8, count: u64) -> Result<u64, Errno>;
    /// Takes a port of `dom` that `remote` may bind to (`EVTCHNOP_alloc_unbound`).
    fn alloc_unbound(&self, dom: DomId, remote: DomId) -> Result<Port, Errno>;
    /// Sets an HVM parameter (`HVMOP_set_param`).
    fn set_hvm_param(&self, dom: DomId, param: HvmParam, value: u64) -> Result<(), Errno>;
    /// Writes the reserved grants into its table: entry 0 lets dom0 at the console's frame, entry
    /// 1 at xenstore's (`XENMEM_acquire_resource`).
    fn seed_grants(&self, dom: DomId, console: Gfn, store: Gfn) -> Result<(), Errno>;
    /// Copies into guest memory through a foreign mapping. `gpa` need not be aligned.
    fn write_guest(&self, dom: DomId, gpa: u64, bytes: &[u8]) -> Result<(), Errno>;
    /// Clears guest memory.
    fn zero_guest(&self, dom: DomId, gpa: u64, len: u64) -> Result<(), Errno>;

    // ---- the machine (sysctl, xen_version) ---------------------------------------------------

    /// CPUs and memory.
    fn phys_info(&self) -> Result<PhysInfo, Errno>;
    /// What the control domain holds.
    fn own_use(&self) -> OwnUse;
    /// What is known of the machine.
    fn machine(&self) -> Result<MachineFacts, Errno>;
    /// The hypervisor's own words.
    fn version_info(&self) -> Result<VersionInfo, Errno>;
    /// The hypervisor's log, cleared afterwards if asked (`XEN_SYSCTL_readconsole`).
    fn read_console(&self, clear: bool) -> Result<Vec<u8>, Errno>;
    /// Powers the machine off, or restarts it. Files have been flushed by then.
    async fn power(&self, restart: bool) -> Result<(), Errno>;

    // ---- time and chance ---------------------------------------------------------------------

    /// Nanoseconds since the machine started.
    fn uptime_ns(&self) -> u64;
    /// Seconds since 1970, 0 if unknown.
    fn wall_clock_s(&self) -> u64;
    /// Random bytes, for UUIDs, MAC addresses and the guest's `rng-seed`.
    fn random(&self, out: &mut [u8]);
    /// Waits.
    async fn sleep_ms(&self, ms: u64);
    /// Lets other tasks run once.
    async fn pause_point(&self);

    // ---- files -------------------------------------------------------------------------------

    /// Opens a file for reading.
    async fn open(&self, path: &str) -> Result<Self::File, Errno>;
    /// Where it is: what it is, whatever it is called.
    fn extents(&self, file: &Self::File) -> Result<Extents, Errno>;
    /// Its size in bytes.
    async fn file_size(&self, file: &Self::File) -> Result<u64, Errno>;
    /// Reads up to `out.len()` bytes; fewer only at the end.
    async fn read_at(&self, file: &Self::File, offset: u64, out: &mut [u8])
    -> Result<usize, Errno>;
    /// Streams `len` bytes of the file into guest memory at `gpa`, a multiple of 4096, and answers
    /// how many there were.
    async fn load_file(
        &self,
        file: &Self::File,
        offset: u64,
        dom: DomId,
        gpa: u64,
        len: u64,
    ) -> Result<u64, Errno>;
    /// What is in a folder.
    async fn list_dir(&self, path: &str) -> Result<Vec<DirEntry>, Errno>;

    // ---- back-ends ---------------------------------------------------------------------------

    /// Starts serving a domain's console ring. Its output is kept until [`Host::console_stop`].
    async fn console_start(&self, dom: DomId, ring: Gfn, port: Port) -> Result<(), Errno>;
    /// Starts serving a domain's virtual UART into the same log.
    async fn vuart_start(&self, dom: DomId, ring: Gfn, port: Port) -> Result<(), Errno>;
    /// Ends serving its consoles. Not an error if there are none.
    async fn console_stop(&self, dom: DomId);
    /// Connects the terminal with its console, until the person leaves or the domain ends.
    /// [`Errno::ENOENT`]: it has no console.
    async fn console_attach(&self, dom: DomId) -> Result<(), Errno>;
    /// Looks at a disk's store.
    fn block_probe(&self, file: &Self::File) -> Result<BlockTarget, Errno>;
    /// Starts serving a disk from a file. From here on the back-end keeps `state` and its features in
    /// `/local/domain/0/backend/vbd/<dom>/<vdev>`, until it is closed there.
    async fn block_start(&self, disk: &BlockStart, file: Self::File) -> Result<(), Errno>;
    /// Ends serving a disk at once, whatever its state; flushes its store. Not an error if there
    /// is none.
    async fn block_stop(&self, dom: DomId, vdev: u32);
    /// Starts serving a network interface. From here on the back-end keeps `state` and its features
    /// in `/local/domain/0/backend/vif/<dom>/<devid>`, until it is closed there.
    async fn net_start(&self, net: &NetStart) -> Result<(), Errno>;
    /// Ends serving a network interface at once, whatever its state. Not an error if there is none.
    async fn net_stop(&self, dom: DomId, devid: u32);
    /// The bridges.
    fn bridges(&self) -> Vec<BridgeInfo>;

    // ---- xenstore ----------------------------------------------------------------------------

    /// A node's value.
    fn xs_read(&self, path: &str) -> Result<Vec<u8>, Errno>;
    /// Sets a node's value, making it and its parents. A new node has its parent's permissions.
    fn xs_write(&self, path: &str, value: &[u8]) -> Result<(), Errno>;
    /// Makes a node with an empty value. Not an error if it is there.
    fn xs_mkdir(&self, path: &str) -> Result<(), Errno>;
    /// Removes a node and all below. [`Errno::ENOENT`] if there is none.
    fn xs_rm(&self, path: &str) -> Result<(), Errno>;
    /// The names of its children.
    fn xs_list(&self, path: &str) -> Result<Vec<String>, Errno>;
    /// Its permissions, the owner first.
    fn xs_get_perms(&self, path: &str) -> Result<Vec<Perm>, Errno>;
    /// Sets its permissions, the owner first.
    fn xs_set_perms(&self, path: &str, perms: &[Perm]) -> Result<(), Errno>;
    /// Makes the domain known to xenstore (`XS_INTRODUCE`).
    fn xs_introduce(&self, dom: DomId, ring: Gfn, port: Port) -> Result<(), Errno>;
    /// Makes xenstore forget the domain (`XS_RELEASE`). Not an error if it does not know it.
    fn xs_release(&self, dom: DomId) -> Result<(), Errno>;
    /// Watches a path (or `@introduceDomain`, `@releaseDomain`). Fires once at first.
    fn xs_watch(&self, path: &str) -> Result<Self::Watch, Errno>;
    /// The path of the next change, or `None` if `timeout_ms` ran out.
    async fn xs_next(&self, watch: &mut Self::Watch, timeout_ms: Option<u64>) -> Option<String>;
    /// Whether a guest watches a path, itself or one above it.
    fn xs_is_watched(&self, dom: DomId, path: &str) -> bool;
    /// Waits until it does not any more, and has come to rest, which tells that it did what belongs to that; false if
    /// `timeout_ms` ran out.
    async fn xs_unwatched(&self, dom: DomId, path: &str, timeout_ms: u64) -> bool;
}

/// The terminal that a command writes to.
pub trait Output {
    /// Adds text. It may be held until [`Output::flush`].
    fn write(&mut self, text: &str);
    /// Waits until the text so far is out.
    async fn flush(&mut self);
    /// Waits until the person wants the command to end (Ctrl-C). Pending for ever if nobody can.
    async fn interrupted(&mut self);
    /// The next byte that the person types. Pending for ever if there is nobody.
    async fn key(&mut self) -> u8 {
        core::future::pending().await
    }
    /// The terminal's size, if it is known.
    fn size(&self) -> Option<Size> {
        None
    }
    /// The lines that were entered, the oldest first.
    fn history(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A buffer, for tests and for one-shot commands.
impl Output for String {
    fn write(&mut self, text: &str) {
        self.push_str(text);
    }
    async fn flush(&mut self) {}
    async fn interrupted(&mut self) {
        core::future::pending::<()>().await;
    }
}
