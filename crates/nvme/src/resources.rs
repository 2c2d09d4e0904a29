//! What a primary controller hands out to secondary controllers: flexible queues and interrupts, and namespaces.

use crate::command::{AdminCommand, opcode};
use crate::identify::IDENTIFY_BYTES;
use crate::status::StatusCode;
use crate::wire::{DecodeError, records};
use crate::wire_struct;

wire_struct! {
    /// Primary Controller Capabilities (CNS 14h). VQ are queue pairs, VI are interrupt vectors.
    pub struct PrimaryCapabilities [4096] {
        /// Controller identifier.
        cntlid: u16 = 0,
        /// Port identifier.
        portid: u16 = 2,
        /// Resource types: bit 0 VQ, bit 1 VI.
        crt: u8 = 4,
        /// VQ flexible total.
        vqfrt: u32 = 32,
        /// VQ flexible assigned to secondaries.
        vqrfa: u32 = 36,
        /// VQ flexible allocated to the primary.
        vqrfap: u16 = 40,
        /// VQ private to the primary.
        vqprt: u16 = 42,
        /// VQ flexible, most for one secondary.
        vqfrsm: u16 = 44,
        /// VQ preferred granularity.
        vqgran: u16 = 46,
        /// VI flexible total.
        vifrt: u32 = 64,
        /// VI flexible assigned to secondaries.
        virfa: u32 = 68,
        /// VI flexible allocated to the primary.
        virfap: u16 = 72,
        /// VI private to the primary.
        viprt: u16 = 74,
        /// VI flexible, most for one secondary.
        vifrsm: u16 = 76,
        /// VI preferred granularity.
        vigran: u16 = 78,
    }
}

wire_struct! {
    /// One entry of the secondary controller list (CNS 15h).
    pub struct SecondaryController [32] {
        /// Controller identifier of the secondary.
        scid: u16 = 0,
        /// Controller identifier of its primary.
        pcid: u16 = 2,
        /// State; bit 0: online.
        scs: u8 = 4,
        /// Virtual function number, from 1; 0 where it is not an SR-IOV function.
        vfn: u16 = 8,
        /// Flexible queues assigned.
        nvq: u16 = 10,
        /// Flexible interrupts assigned.
        nvi: u16 = 12,
    }
}

impl SecondaryController {
    /// Whether the controller is online.
    #[must_use]
    pub fn online(&self) -> bool {
        self.scs & 1 != 0
    }
}

/// Most entries in one page of the secondary controller list.
pub const MAX_SECONDARY_LIST: usize = 127;

/// Reads a page of the secondary controller list. Ask for the rest from the last `scid` + 1 on.
///
/// # Errors
/// The count exceeds [`MAX_SECONDARY_LIST`], or the identifiers do not ascend.
pub fn decode_secondary_list(bytes: &[u8; IDENTIFY_BYTES]) -> Result<Vec<SecondaryController>, DecodeError> {
    let (header, entries) = bytes.split_at(32);
    let count = usize::from(header.first().copied().unwrap_or(0));
    if count > MAX_SECONDARY_LIST {
        let limit = MAX_SECONDARY_LIST as u64;
        return Err(DecodeError::Limit { what: "number of secondary controllers", value: count as u128, limit });
    }
    let list: Vec<_> = records::<32>(entries, count).map(SecondaryController::decode).collect();
    match list.array_windows().find(|[a, b]| a.scid >= b.scid) {
        Some([_, at]) => {
            Err(DecodeError::Invalid { what: "secondary controller list", why: format!("{} is out of order", at.scid) })
        }
        None => Ok(list),
    }
}

/// Writes a page of the secondary controller list; entries after the first [`MAX_SECONDARY_LIST`] are left out.
#[must_use]
pub fn encode_secondary_list(list: &[SecondaryController]) -> [u8; IDENTIFY_BYTES] {
    let mut bytes = [0; IDENTIFY_BYTES];
    let (header, entries) = bytes.split_at_mut(32);
    for (slot, entry) in entries.as_chunks_mut::<32>().0.iter_mut().zip(list) {
        *slot = entry.encode();
    }
    if let Some(count) = header.first_mut() {
        *count = list.len().min(MAX_SECONDARY_LIST) as u8;
    }
    bytes
}

/// What is handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Resource {
    /// Queue pairs; the admin queue counts as one.
    Queues = 0,
    /// Interrupt vectors.
    Interrupts = 1,
}

/// Action of Virtualization Management.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum VirtualizationAction {
    /// Allocates flexible resources to the primary itself; takes effect after a reset other than Controller Reset.
    AllocatePrimary = 1,
    /// Takes a secondary offline and its flexible resources away.
    Offline = 7,
    /// Assigns flexible resources to an offline secondary.
    Assign = 8,
    /// Brings a secondary online.
    Online = 9,
}

/// Virtualization Management (1Ch). The result's bits 15:0 are the number of resources that were really changed, which may be
/// more or fewer than asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualizationManagement {
    /// Which controller.
    pub cntlid: u16,
    /// What to do.
    pub action: VirtualizationAction,
    /// Which resource; [`Resource::Queues`] where the action has none.
    pub resource: Resource,
    /// How many.
    pub count: u16,
}

impl VirtualizationManagement {
    /// The command.
    #[must_use]
    pub fn encode(&self) -> AdminCommand {
        AdminCommand {
            cdw10: u32::from(self.cntlid) << 16 | (self.resource as u32) << 8 | self.action as u32,
            cdw11: u32::from(self.count),
            ..AdminCommand::new(opcode::VIRTUALIZATION_MANAGEMENT)
        }
    }

    /// Reads the command.
    ///
    /// # Errors
    /// The status to complete it with: Invalid Field for an action, Invalid Resource Identifier for a resource type.
    pub fn decode(cmd: &AdminCommand) -> Result<Self, StatusCode> {
        let action = match cmd.cdw10 & 0xf {
            1 => VirtualizationAction::AllocatePrimary,
            7 => VirtualizationAction::Offline,
            8 => VirtualizationAction::Assign,
            9 => VirtualizationAction::Online,
            _ => return Err(StatusCode::InvalidField),
        };
        let resource = match cmd.cdw10 >> 8 & 7 {
            0 => Resource::Queues,
            1 => Resource::Interrupts,
            _ => return Err(StatusCode::InvalidResourceIdentifier),
        };
        Ok(Self { cntlid: (cmd.cdw10 >> 16) as u16, action, resource, count: cmd.cdw11 as u16 })
    }
}

/// Namespace Attachment (15h). The data is a controller list of 4096 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceAttachment {
    /// Which namespace.
    pub nsid: u32,
    /// Attach (SEL 0) or detach (SEL 1).
    pub attach: bool,
}

impl NamespaceAttachment {
    /// The command.
    #[must_use]
    pub fn encode(&self) -> AdminCommand {
        let cdw10 = u32::from(!self.attach);
        AdminCommand { nsid: self.nsid, cdw10, ..AdminCommand::new(opcode::NAMESPACE_ATTACHMENT) }
    }

    /// Reads the command.
    ///
    /// # Errors
    /// Invalid Field for another SEL.
    pub fn decode(cmd: &AdminCommand) -> Result<Self, StatusCode> {
        match cmd.cdw10 & 0xf {
            sel @ (0 | 1) => Ok(Self { nsid: cmd.nsid, attach: sel == 0 }),
            _ => Err(StatusCode::InvalidField),
        }
    }
}
