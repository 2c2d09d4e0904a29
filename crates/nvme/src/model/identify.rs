//! Identify (06h): what a controller says about itself, its namespaces and its secondary controllers.

use super::ControllerKind;
use super::admin::MAX_ASYNC_EVENTS;
use super::engine::Engine;
use super::events::NAMESPACE_NOTICES;
use super::front::VERSION;
use super::log::ERROR_ENTRIES;
use super::migrate;
use super::namespace::Namespace;
use super::queue::Outcome;
use super::tracking::{MAX_DESCRIPTORS, MAX_GRANULARITY, MIN_GRANULARITY};
use crate::command::{AdminCommand, SubmissionEntry};
use crate::identify::{
    IDENTIFY_BYTES, IdentifyCommand, IdentifyController, IdentifyNamespace, NamespaceIds, cns, encode_controller_list,
    encode_namespace_list, nvm_controller, oacs, trattr,
};
use crate::resources::encode_secondary_list;
use crate::status::StatusCode;

/// ONCS: Dataset Management and Write Zeroes.
const ONCS: u16 = 1 << 2 | 1 << 3;
/// LPA: bit 1 effects log, bit 2 offsets and long counts.
const LPA: u8 = 1 << 1 | 1 << 2;
/// Sizes of queue entries that Linux and the specification know.
const SQES: u8 = 0x66;
const CQES: u8 = 0x44;
/// I/O Command Set vector and combination structures of CSI lists (CNS 1Ch).
const IO_COMMAND_SETS: u8 = 0x1c;
const WZSL: usize = 1;

/// `text` padded with spaces.
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [b' '; N];
    out.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
    out
}

impl Engine {
    pub(crate) fn identify(&mut self, entry: &SubmissionEntry) -> Outcome {
        let command = IdentifyCommand::decode(&AdminCommand::from(entry));
        let page = self.identify_page(&command)?;
        self.reply(entry, &page)
    }

    fn identify_page(&self, command: &IdentifyCommand) -> Result<[u8; IDENTIFY_BYTES], StatusCode> {
        let nothing = [0; IDENTIFY_BYTES];
        let attached = |nsid: u32| self.disks.iter().find(|disk| disk.nsid == nsid && self.attached.contains(&nsid));
        match command.cns {
            cns::CONTROLLER => Ok(self.identify_controller().encode()),
            cns::NAMESPACE | cns::IO_NAMESPACE | cns::INDEPENDENT_NAMESPACE | cns::ALLOCATED_NAMESPACE => {
                if command.nsid == u32::MAX && command.cns == cns::NAMESPACE {
                    // What all namespaces have in common: nothing but that there is one LBA format.
                    return Ok(nothing);
                }
                let disk = self.disks.iter().find(|disk| disk.nsid == command.nsid);
                let disk = disk.ok_or(StatusCode::InvalidNamespaceOrFormat)?;
                // A namespace that exists and is not attached reads as zeroes (Base 2.1, 5.1.13.2.1).
                if command.cns != cns::ALLOCATED_NAMESPACE && attached(disk.nsid).is_none() {
                    return Ok(nothing);
                }
                if command.cns != cns::ALLOCATED_NAMESPACE && command.cns != cns::NAMESPACE && command.csi != 0 {
                    return Err(StatusCode::InvalidField);
                }
                match command.cns {
                    // Nothing of the NVM command set's own: no metadata, no protection information.
                    cns::IO_NAMESPACE => Ok(nothing),
                    cns::INDEPENDENT_NAMESPACE => Ok(independent_namespace(disk)),
                    _ => Ok(identify_namespace(disk).encode()),
                }
            }
            cns::ACTIVE_NAMESPACES | cns::ALLOCATED_NAMESPACES => {
                if command.nsid >= u32::MAX - 1 {
                    return Err(StatusCode::InvalidNamespaceOrFormat);
                }
                if command.cns == cns::ALLOCATED_NAMESPACES && self.subsystem.is_none() {
                    return Err(StatusCode::InvalidField);
                }
                let all = command.cns == cns::ALLOCATED_NAMESPACES;
                let list: Vec<u32> = self
                    .disks
                    .iter()
                    .map(|disk| disk.nsid)
                    .filter(|nsid| *nsid > command.nsid && (all || self.attached.contains(nsid)))
                    .collect();
                Ok(encode_namespace_list(&list))
            }
            cns::NAMESPACE_DESCRIPTORS => {
                let disk = attached(command.nsid).ok_or(StatusCode::InvalidNamespaceOrFormat)?;
                let (nguid, uuid) = (Some(disk.config.nguid), Some(disk.config.uuid));
                Ok(NamespaceIds { nguid, uuid, csi: Some(0), eui64: None }.encode())
            }
            cns::IO_CONTROLLER if command.csi == 0 => {
                let mut page = nothing;
                if let Some(wzsl) = page.get_mut(WZSL) {
                    *wzsl = self.id.mdts;
                }
                // LBA migration queue entries would be of type 0; there is no such queue.
                debug_assert!(page.get(nvm_controller::LBAMQF) == Some(&0));
                Ok(page)
            }
            IO_COMMAND_SETS => {
                let mut page = nothing;
                // Combination 0: the NVM command set.
                if let Some(first) = page.first_mut() {
                    *first = 1;
                }
                Ok(page)
            }
            _ => self.identify_subsystem(command),
        }
    }

    /// What only the controlling function answers.
    fn identify_subsystem(&self, command: &IdentifyCommand) -> Result<[u8; IDENTIFY_BYTES], StatusCode> {
        let inner = self.subsystem.as_ref().and_then(std::sync::Weak::upgrade).ok_or(StatusCode::InvalidField)?;
        let from = |ids: Vec<u16>| {
            let ids: Vec<u16> = ids.into_iter().filter(|id| *id >= command.cntid).collect();
            encode_controller_list(&ids).ok_or(StatusCode::InternalError)
        };
        match command.cns {
            cns::CONTROLLERS => from(inner.ids()),
            cns::ATTACHED_CONTROLLERS => {
                if !self.disks.iter().any(|disk| disk.nsid == command.nsid) {
                    return Err(StatusCode::InvalidNamespaceOrFormat);
                }
                let mut ids = inner.attached_to(command.nsid);
                if self.attached.contains(&command.nsid) {
                    ids.push(self.id.cntlid);
                }
                ids.sort_unstable();
                from(ids)
            }
            cns::PRIMARY_CAPABILITIES => Ok(inner.capabilities().encode()),
            cns::SECONDARY_CONTROLLERS => {
                let list: Vec<_> =
                    inner.secondaries().into_iter().filter(|secondary| secondary.scid >= command.cntid).collect();
                Ok(encode_secondary_list(&list))
            }
            cns::CONTROLLER_STATE_FORMATS => migrate::formats().encode().ok_or(StatusCode::InternalError),
            _ => Err(StatusCode::InvalidField),
        }
    }

    fn identify_controller(&self) -> IdentifyController {
        let controlling = self.subsystem.is_some();
        let capacity: u128 = self.disks.iter().map(|disk| u128::from(disk.config.size_bytes)).sum();
        let mut subnqn = [0; 256];
        subnqn.iter_mut().zip(self.id.nqn.bytes()).for_each(|(to, from)| *to = from);
        let mut page = IdentifyController {
            // Red Hat's and QEMU's vendor identifier would be a lie; 1234h is used by nobody who registers.
            vid: 0x1234,
            ssvid: 0x1234,
            sn: padded(&self.id.serial),
            mn: padded("towline embedded NVMe controller"),
            fr: padded("1.0"),
            cmic: 0b10 | u8::from(self.id.kind == ControllerKind::Vf) << 2,
            mdts: self.id.mdts,
            cntlid: self.id.cntlid,
            ver: VERSION,
            oaes: NAMESPACE_NOTICES,
            cntrltype: 1,
            acl: 3,
            aerl: MAX_ASYNC_EVENTS as u8 - 1,
            // One firmware slot, read-only.
            frmw: 0b11,
            lpa: LPA,
            elpe: ERROR_ENTRIES as u8 - 1,
            wctemp: 343,
            cctemp: 353,
            sqes: SQES,
            cqes: CQES,
            nn: self.disks.len() as u32,
            mnan: self.disks.len() as u32,
            oncs: ONCS,
            // No write cache; bits 2:1 say that Flush takes FFFFFFFFh.
            vwc: 0b110,
            subnqn,
            psd0_max_power: 2500,
            ..IdentifyController::default()
        };
        if controlling {
            page.oacs =
                oacs::NAMESPACE_MANAGEMENT | oacs::VIRTUALIZATION_MANAGEMENT | oacs::HOST_MANAGED_LIVE_MIGRATION;
            page.tnvmcap = capacity;
            page.cmmrtd = MAX_DESCRIPTORS;
            page.nmmrtd = u16::MAX;
            page.minmrtg = MIN_GRANULARITY;
            page.maxmrtg = MAX_GRANULARITY;
            page.trattr = trattr::HOST_MEMORY_CHANGES;
            page.mcmr = self.id.max_secondaries;
            page.nmcmr = self.id.max_secondaries;
        }
        page
    }
}

fn identify_namespace(disk: &Namespace) -> IdentifyNamespace {
    let blocks = disk.blocks();
    IdentifyNamespace {
        nsze: blocks,
        ncap: blocks,
        nuse: blocks,
        nmic: u8::from(disk.config.shared),
        // Deallocated blocks read as zeroes.
        dlfeat: 1,
        nvmcap: disk.config.size_bytes.into(),
        nguid: disk.config.nguid,
        lbaf0: disk.lba_shift() << 16,
        ..IdentifyNamespace::default()
    }
}

/// I/O command set independent Identify Namespace: NMIC at byte 1, NSTAT (ready) at byte 14.
fn independent_namespace(disk: &Namespace) -> [u8; IDENTIFY_BYTES] {
    let mut page = [0; IDENTIFY_BYTES];
    for (at, value) in [(1, u8::from(disk.config.shared)), (14, 1)] {
        if let Some(byte) = page.get_mut(at) {
            *byte = value;
        }
    }
    page
}
