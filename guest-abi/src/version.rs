// SPDX-License-Identifier: MIT OR Apache-2.0
//! Version, features, limits (`version.h`, `features.h`).

numbers! {
    /// Operations of `xen_version` (`XENVER_*`).
    pub enum VersionOp: u64 {
        /// Returns major << 16 | minor.
        Version = 0, "version";
        /// A [`Extraversion`].
        Extraversion = 1, "extraversion";
        /// A [`CompileInfo`].
        CompileInfo = 2, "compile_info";
        /// A [`CapabilitiesInfo`].
        Capabilities = 3, "capabilities";
        /// A [`ChangesetInfo`].
        Changeset = 4, "changeset";
        /// A [`PlatformParameters`].
        PlatformParameters = 5, "platform_parameters";
        /// A [`FeatureInfo`].
        GetFeatures = 6, "get_features";
        /// Returns the page size in bytes.
        Pagesize = 7, "pagesize";
        /// The caller's [`DomainHandle`](crate::xen::DomainHandle).
        GuestHandle = 8, "guest_handle";
        /// A [`Commandline`]; privileged.
        Commandline = 9, "commandline";
        /// A [`BuildId`] and its bytes; privileged.
        BuildId = 10, "build_id";
    }

    /// Bits of the feature map, submap 0 (`XENFEAT_*`).
    pub enum Feature: u32 {
        /// Pages can be mapped writable though they are page tables.
        WritablePageTables = 0, "writable_page_tables";
        /// x86.
        WritableDescriptorTables = 1, "writable_descriptor_tables";
        /// The hypervisor translates addresses.
        AutoTranslatedPhysmap = 2, "auto_translated_physmap";
        /// The kernel runs at its architectural level.
        SupervisorModeKernel = 3, "supervisor_mode_kernel";
        /// x86.
        PaePgdirAbove4gb = 4, "pae_pgdir_above_4gb";
        /// x86.
        MmuPtUpdatePreserveAd = 5, "mmu_pt_update_preserve_ad";
        /// Gone.
        HighmemAssist = 6, "highmem_assist";
        /// x86.
        GnttabMapAvailBits = 7, "gnttab_map_avail_bits";
        /// x86.
        HvmCallbackVector = 8, "hvm_callback_vector";
        /// x86.
        HvmSafePvclock = 9, "hvm_safe_pvclock";
        /// x86.
        HvmPirqs = 10, "hvm_pirqs";
        /// The caller is the control domain.
        Dom0 = 11, "dom0";
        /// Gone.
        GrantMapIdentity = 12, "grant_map_identity";
        /// `memory_op` knows virtual nodes.
        MemoryOpVnodeSupported = 13, "memory_op_vnode_supported";
        /// Calls by Arm's calling convention are answered.
        ArmSmcccSupported = 14, "ARM_SMCCC_supported";
        /// x86.
        LinuxRsdpUnrestricted = 15, "linux_rsdp_unrestricted";
        /// Guest physical addresses differ from machine addresses.
        NotDirectMapped = 16, "not_direct_mapped";
        /// Guest physical addresses are machine addresses.
        DirectMapped = 17, "direct_mapped";
    }
}

impl Feature {
    /// Its bit in the submap.
    #[must_use]
    pub const fn bit(self) -> u32 {
        1 << self.number()
    }
}

/// How many submaps of features there are (`XENFEAT_NR_SUBMAPS`).
pub const NR_SUBMAPS: u32 = 1;

/// Extra version, a string that ends at the first zero byte.
pub type Extraversion = [u8; 16];
/// Capabilities; what an arm64 hypervisor writes there names `xen-3.0-aarch64`.
pub type CapabilitiesInfo = [u8; 1024];
/// Change set.
pub type ChangesetInfo = [u8; 64];
/// Command line of the hypervisor.
pub type Commandline = [u8; 1024];

abi! {
    /// A submap of features.
    ["xen_feature_info_t", 8, "version.h"]
    pub struct FeatureInfo {
        /// In: which submap.
        pub submap_idx: u32,
        /// Out: one bit for each [`Feature`].
        pub submap: u32,
    }

    /// How the hypervisor was built; strings end at the first zero byte.
    ["xen_compile_info_t", 144, "version.h"]
    pub struct CompileInfo {
        /// The compiler.
        pub compiler: [u8; 64],
        /// Who.
        pub compile_by: [u8; 16],
        /// Where.
        pub compile_domain: [u8; 32],
        /// When.
        pub compile_date: [u8; 32],
    }

    /// The hypervisor's build id; its bytes follow.
    ["xen_build_id_t", 4, "version.h"]
    pub struct BuildId {
        /// In: room for bytes.
        pub len: u32,
    }

    /// Where the hypervisor's part of the address space starts.
    ["xen_platform_parameters", 8, "version.h"]
    pub struct PlatformParameters {
        /// Virtual address.
        pub virt_start: u64,
    }
}
