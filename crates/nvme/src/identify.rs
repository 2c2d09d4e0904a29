//! Identify (06h) and the data structures it returns.

mod lists;

pub use lists::{
    MAX_CONTROLLER_LIST, MAX_NAMESPACE_LIST, NamespaceIds, decode_controller_list, decode_namespace_list,
    encode_controller_list, encode_namespace_list,
};

use crate::command::{AdminCommand, opcode};
use crate::wire_struct;

/// Length of every Identify data structure in bytes.
pub const IDENTIFY_BYTES: usize = 4096;

/// Controller or namespace structure selectors (CNS).
pub mod cns {
    /// Identify Namespace of one NSID.
    pub const NAMESPACE: u8 = 0x00;
    /// Identify Controller, of the controller that is asked.
    pub const CONTROLLER: u8 = 0x01;
    /// Active namespaces greater than NSID.
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    /// Namespace identification descriptors.
    pub const NAMESPACE_DESCRIPTORS: u8 = 0x03;
    /// I/O command set specific Identify Namespace.
    pub const IO_NAMESPACE: u8 = 0x05;
    /// I/O command set specific Identify Controller.
    pub const IO_CONTROLLER: u8 = 0x06;
    /// I/O command set independent Identify Namespace.
    pub const INDEPENDENT_NAMESPACE: u8 = 0x08;
    /// Allocated namespaces greater than NSID.
    pub const ALLOCATED_NAMESPACES: u8 = 0x10;
    /// Identify Namespace of an allocated NSID.
    pub const ALLOCATED_NAMESPACE: u8 = 0x11;
    /// Controllers attached to NSID, from CNTID on.
    pub const ATTACHED_CONTROLLERS: u8 = 0x12;
    /// All controllers of the subsystem, from CNTID on.
    pub const CONTROLLERS: u8 = 0x13;
    /// Primary Controller Capabilities.
    pub const PRIMARY_CAPABILITIES: u8 = 0x14;
    /// Secondary controllers, from CNTID on.
    pub const SECONDARY_CONTROLLERS: u8 = 0x15;
    /// UUID list.
    pub const UUID_LIST: u8 = 0x17;
    /// Supported Controller State Formats.
    pub const CONTROLLER_STATE_FORMATS: u8 = 0x20;
}

/// The dwords of an Identify command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdentifyCommand {
    /// What to return, see [`cns`].
    pub cns: u8,
    /// First controller of a list, or the controller meant.
    pub cntid: u16,
    /// The namespace meant, or the one that a list starts after.
    pub nsid: u32,
    /// Command set identifier.
    pub csi: u8,
    /// CNS specific identifier.
    pub cnssid: u16,
    /// UUID index, 0 to 127.
    pub uuid_index: u8,
}

impl IdentifyCommand {
    /// The command.
    #[must_use]
    pub fn encode(&self) -> AdminCommand {
        AdminCommand {
            nsid: self.nsid,
            cdw10: u32::from(self.cntid) << 16 | u32::from(self.cns),
            cdw11: u32::from(self.csi) << 24 | u32::from(self.cnssid),
            cdw14: u32::from(self.uuid_index & 0x7f),
            ..AdminCommand::new(opcode::IDENTIFY)
        }
    }

    /// Reads the command.
    #[must_use]
    pub fn decode(cmd: &AdminCommand) -> Self {
        Self {
            cns: cmd.cdw10 as u8,
            cntid: (cmd.cdw10 >> 16) as u16,
            nsid: cmd.nsid,
            csi: (cmd.cdw11 >> 24) as u8,
            cnssid: cmd.cdw11 as u16,
            uuid_index: cmd.cdw14 as u8 & 0x7f,
        }
    }
}

/// Bits of [`IdentifyController::oacs`].
pub mod oacs {
    /// Namespace Management and Attachment.
    pub const NAMESPACE_MANAGEMENT: u16 = 1 << 3;
    /// Virtualization Management.
    pub const VIRTUALIZATION_MANAGEMENT: u16 = 1 << 7;
    /// Doorbell Buffer Config.
    pub const DOORBELL_BUFFER: u16 = 1 << 8;
    /// Host Managed Live Migration: this controller migrates others and is itself never migrated.
    pub const HOST_MANAGED_LIVE_MIGRATION: u16 = 1 << 11;
}

/// Bits of [`IdentifyController::trattr`].
pub mod trattr {
    /// Tracks memory changed by controllers (Track Send with SEL 1).
    pub const HOST_MEMORY_CHANGES: u8 = 1 << 0;
    /// Tracks user data changed by controllers.
    pub const USER_DATA_CHANGES: u8 = 1 << 1;
    /// The length of a tracked range has to be a power of two.
    pub const POWER_OF_TWO_LENGTH: u8 = 1 << 2;
}

wire_struct! {
    /// Identify Controller (CNS 01h; Base 2.1, "Identify Controller Data Structure"). Fields that nothing here uses are left
    /// out and encode as zero.
    pub struct IdentifyController [4096] {
        /// PCI vendor.
        vid: u16 = 0,
        /// PCI subsystem vendor.
        ssvid: u16 = 2,
        /// Serial number, ASCII, padded with spaces.
        sn: [u8; 20] = 4,
        /// Model number, ASCII, padded with spaces.
        mn: [u8; 40] = 24,
        /// Firmware revision, ASCII, padded with spaces.
        fr: [u8; 8] = 64,
        /// Recommended arbitration burst, as a power of two.
        rab: u8 = 72,
        /// IEEE OUI.
        ieee: [u8; 3] = 73,
        /// Bit 0 several ports, bit 1 several controllers, bit 2 SR-IOV VF, bit 3 ANA.
        cmic: u8 = 76,
        /// Largest transfer as a power of two of CAP.MPSMIN pages; 0 is no limit.
        mdts: u8 = 77,
        /// Controller identifier.
        cntlid: u16 = 78,
        /// Version, as the VS register has it.
        ver: u32 = 80,
        /// RTD3 resume latency in microseconds.
        rtd3r: u32 = 84,
        /// RTD3 entry latency in microseconds.
        rtd3e: u32 = 88,
        /// Optional asynchronous events.
        oaes: u32 = 92,
        /// Controller attributes.
        ctratt: u32 = 96,
        /// 1 I/O, 2 discovery, 3 administrative.
        cntrltype: u8 = 111,
        /// FRU globally unique identifier.
        fguid: [u8; 16] = 112,
        /// Command retry delays in units of 100 ms.
        crdt1: u16 = 128,
        /// See [`oacs`].
        oacs: u16 = 256,
        /// Abort command limit, 0's-based.
        acl: u8 = 258,
        /// Asynchronous event request limit, 0's-based.
        aerl: u8 = 259,
        /// Firmware updates.
        frmw: u8 = 260,
        /// Log page attributes.
        lpa: u8 = 261,
        /// Error log entries, 0's-based.
        elpe: u8 = 262,
        /// Power states, 0's-based.
        npss: u8 = 263,
        /// Autonomous power state transitions.
        apsta: u8 = 265,
        /// Warning temperature in kelvin.
        wctemp: u16 = 266,
        /// Critical temperature in kelvin.
        cctemp: u16 = 268,
        /// Preferred host memory buffer in 4 KiB; 0 on every controller of a subsystem that migrates.
        hmpre: u32 = 272,
        /// Total NVM capacity in bytes.
        tnvmcap: u128 = 280,
        /// Unallocated NVM capacity in bytes.
        unvmcap: u128 = 296,
        /// Keep alive granularity in units of 100 ms.
        kas: u16 = 320,
        /// Sanitize capabilities.
        sanicap: u32 = 328,
        /// Asymmetric namespace access capabilities.
        anacap: u8 = 343,
        /// Bits 3:0 smallest, 7:4 largest submission entry, as powers of two.
        sqes: u8 = 512,
        /// Bits 3:0 smallest, 7:4 largest completion entry, as powers of two.
        cqes: u8 = 513,
        /// Most outstanding commands.
        maxcmd: u16 = 514,
        /// Highest namespace identifier.
        nn: u32 = 516,
        /// Optional NVM commands.
        oncs: u16 = 520,
        /// Fused operations.
        fuses: u16 = 522,
        /// Format NVM attributes.
        fna: u8 = 524,
        /// Bit 0: there is a volatile write cache.
        vwc: u8 = 525,
        /// Atomic write unit normal, 0's-based blocks.
        awun: u16 = 526,
        /// Atomic write unit power fail, 0's-based blocks.
        awupf: u16 = 528,
        /// SGL support.
        sgls: u32 = 536,
        /// Most allowed namespaces.
        mnan: u32 = 540,
        /// Most domain namespace attachments.
        maxdna: u128 = 544,
        /// Most namespaces attached to one I/O controller; 0 is no limit.
        maxcna: u32 = 560,
        /// Most memory range tracking descriptors of one controller (CMMRTD).
        cmmrtd: u16 = 570,
        /// Most memory range tracking descriptors of the NVM subsystem (NMMRTD).
        nmmrtd: u16 = 572,
        /// Finest tracking granularity, as a power of two of 4 KiB.
        minmrtg: u8 = 574,
        /// Coarsest tracking granularity, as a power of two of 4 KiB.
        maxmrtg: u8 = 575,
        /// See [`trattr`].
        trattr: u8 = 576,
        /// Most controller user data migration queues.
        mcudmq: u16 = 578,
        /// Most NVM subsystem user data migration queues.
        mnsudmq: u16 = 580,
        /// Most controllers whose memory one controller tracks (MCMR).
        mcmr: u16 = 582,
        /// Most controllers whose memory the subsystem tracks (NMCMR).
        nmcmr: u16 = 584,
        /// Most controller data queue PRP entries.
        mcdqpc: u16 = 586,
        /// Subsystem NQN, UTF-8, ended by a zero byte.
        subnqn: [u8; 256] = 768,
        /// Largest power of power state 0 in units of 10 mW.
        psd0_max_power: u16 = 2048,
    }
}

impl IdentifyController {
    /// Whether this controller migrates others.
    #[must_use]
    pub fn migrates_others(&self) -> bool {
        self.oacs & oacs::HOST_MANAGED_LIVE_MIGRATION != 0
    }

    /// Largest transfer in bytes for CAP.MPSMIN = 0, capped at `cap` (also where the controller has no limit).
    #[must_use]
    pub fn max_transfer_bytes(&self, cap: u32) -> u32 {
        match self.mdts {
            0 => cap,
            n => 4096u32.checked_shl(u32::from(n)).filter(|bytes| *bytes >= 4096).unwrap_or(cap).min(cap),
        }
    }
}

wire_struct! {
    /// Identify Namespace (CNS 00h and 11h; NVM command set). Fields that nothing here uses encode as zero.
    pub struct IdentifyNamespace [4096] {
        /// Size in blocks; 0 where the namespace is not active.
        nsze: u64 = 0,
        /// Capacity in blocks.
        ncap: u64 = 8,
        /// Blocks in use.
        nuse: u64 = 16,
        /// Features.
        nsfeat: u8 = 24,
        /// Number of LBA formats, 0's-based.
        nlbaf: u8 = 25,
        /// Bits 3:0 the format in use.
        flbas: u8 = 26,
        /// Metadata capabilities.
        mc: u8 = 27,
        /// Protection capabilities.
        dpc: u8 = 28,
        /// Protection settings.
        dps: u8 = 29,
        /// Bit 0: may be attached to several controllers.
        nmic: u8 = 30,
        /// Reservation capabilities.
        rescap: u8 = 31,
        /// What reads of deallocated blocks give.
        dlfeat: u8 = 33,
        /// NVM capacity in bytes.
        nvmcap: u128 = 48,
        /// Globally unique identifier, big-endian; zero where there is none.
        nguid: [u8; 16] = 104,
        /// IEEE EUI-64, big-endian; zero where there is none.
        eui64: [u8; 8] = 120,
        /// LBA format 0: bits 15:0 metadata bytes, 23:16 block size as a power of two.
        lbaf0: u32 = 128,
    }
}

impl IdentifyNamespace {
    /// Block size of LBA format 0 in bytes; `None` where the device reports one outside of 512 bytes to 1 MiB, or uses
    /// another format.
    #[must_use]
    pub fn block_bytes(&self) -> Option<u32> {
        let shift = self.lbaf0 >> 16 & 0xff;
        (self.flbas & 0x6f == 0 && (9..=20).contains(&shift)).then(|| 1 << shift)
    }
}

/// Identify Controller of the NVM command set (CNS 06h, CSI 0): only what migration asks.
pub mod nvm_controller {
    /// Byte offset of LBAMQF, the format of LBA migration queue entries; 0 is type 0.
    pub const LBAMQF: usize = 24;
}
