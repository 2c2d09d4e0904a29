//! Typed admin commands over an [`AdminTransport`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{AdminError, AdminTransport, Data};
use crate::command::AdminCommand;
use crate::identify::{
    IDENTIFY_BYTES, IdentifyCommand, IdentifyController, IdentifyNamespace, MAX_CONTROLLER_LIST, MAX_NAMESPACE_LIST,
    NamespaceIds, cns, decode_controller_list, decode_namespace_list, encode_controller_list,
};
use crate::migration::StateFormats;
use crate::resources::{
    MAX_SECONDARY_LIST, NamespaceAttachment, PrimaryCapabilities, Resource, SecondaryController, VirtualizationAction,
    VirtualizationManagement, decode_secondary_list,
};
use crate::wire::DecodeError;

/// The most namespaces that a listing returns.
const MAX_NAMESPACES: usize = 65536;

/// How long to wait for commands. Linux resets the controlling function when a command does not complete in time, and every
/// secondary controller goes offline with it: generous is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Commands that only ask or configure; 60 s by default.
    pub command: Duration,
    /// Suspend, which waits until every fetched command has completed; 10 min by default.
    pub suspend: Duration,
    /// Resume and parts of a controller state; 5 min by default.
    pub state: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { command: Duration::from_secs(60), suspend: Duration::from_secs(600), state: Duration::from_secs(300) }
    }
}

/// The admin commands of one controlling function. Clones share the transport.
#[derive(Clone)]
pub struct AdminClient {
    transport: Arc<dyn AdminTransport>,
    timeouts: Timeouts,
}

impl fmt::Debug for AdminClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminClient").field("timeouts", &self.timeouts).finish_non_exhaustive()
    }
}

impl AdminClient {
    /// A client with the default timeouts.
    #[must_use]
    pub fn new(transport: Arc<dyn AdminTransport>) -> Self {
        Self::with_timeouts(transport, Timeouts::default())
    }

    /// A client with timeouts of one's own.
    #[must_use]
    pub fn with_timeouts(transport: Arc<dyn AdminTransport>, timeouts: Timeouts) -> Self {
        Self { transport, timeouts }
    }

    /// The timeouts.
    #[must_use]
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// The most bytes of data that one command carries; a multiple of 4096.
    #[must_use]
    pub fn max_transfer_bytes(&self) -> u32 {
        (self.transport.max_transfer_bytes() / 4096 * 4096).max(4096)
    }

    /// Sends any command; `name` is for errors. Returns DW0 | DW1 << 32.
    ///
    /// # Errors
    /// No completion, or a status other than success.
    pub fn submit(
        &self,
        name: &'static str,
        cmd: &AdminCommand,
        data: Data<'_>,
        timeout: Duration,
    ) -> Result<u64, AdminError> {
        let completion = self
            .transport
            .submit(cmd, data, timeout)
            .map_err(|source| AdminError::Transport { command: name, source })?;
        if completion.status.is_success() {
            Ok(completion.result)
        } else {
            Err(AdminError::Status { command: name, status: completion.status, result: completion.result })
        }
    }

    fn identify(&self, name: &'static str, cmd: &IdentifyCommand) -> Result<Box<[u8; IDENTIFY_BYTES]>, AdminError> {
        let mut bytes = Box::new([0; IDENTIFY_BYTES]);
        self.submit(name, &cmd.encode(), Data::ToHost(bytes.as_mut_slice()), self.timeouts.command)?;
        Ok(bytes)
    }

    /// Identify Controller of the controller that the commands go to. (No command asks it of another one.)
    ///
    /// # Errors
    /// See [`AdminClient::submit`]; so for every method.
    pub fn identify_controller(&self) -> Result<IdentifyController, AdminError> {
        let cmd = IdentifyCommand { cns: cns::CONTROLLER, ..Default::default() };
        Ok(IdentifyController::decode(&*self.identify("Identify Controller", &cmd)?))
    }

    /// Identify Namespace of an active namespace; all zero where it is not active.
    ///
    /// # Errors
    /// Invalid Namespace or Format, or as above.
    pub fn identify_namespace(&self, nsid: u32) -> Result<IdentifyNamespace, AdminError> {
        let cmd = IdentifyCommand { cns: cns::NAMESPACE, nsid, ..Default::default() };
        Ok(IdentifyNamespace::decode(&*self.identify("Identify Namespace", &cmd)?))
    }

    /// Identify Namespace of a namespace of the subsystem, attached to this controller or not.
    ///
    /// # Errors
    /// Invalid Namespace or Format, or as above.
    pub fn identify_allocated_namespace(&self, nsid: u32) -> Result<IdentifyNamespace, AdminError> {
        let cmd = IdentifyCommand { cns: cns::ALLOCATED_NAMESPACE, nsid, ..Default::default() };
        Ok(IdentifyNamespace::decode(&*self.identify("Identify Allocated Namespace", &cmd)?))
    }

    /// The identifiers of a namespace.
    ///
    /// # Errors
    /// As above, or a damaged list.
    pub fn namespace_ids(&self, nsid: u32) -> Result<NamespaceIds, AdminError> {
        let command = "Identify Namespace Identification Descriptors";
        let cmd = IdentifyCommand { cns: cns::NAMESPACE_DESCRIPTORS, nsid, ..Default::default() };
        NamespaceIds::decode(&*self.identify(command, &cmd)?).map_err(|source| AdminError::Answer { command, source })
    }

    /// The namespaces that are attached to the controller that the commands go to, ascending.
    ///
    /// # Errors
    /// As above, or a damaged list.
    pub fn active_namespaces(&self) -> Result<Vec<u32>, AdminError> {
        self.namespace_list("Identify Active Namespaces", cns::ACTIVE_NAMESPACES)
    }

    /// The namespaces of the subsystem, ascending.
    ///
    /// # Errors
    /// As above, or a damaged list.
    pub fn allocated_namespaces(&self) -> Result<Vec<u32>, AdminError> {
        self.namespace_list("Identify Allocated Namespaces", cns::ALLOCATED_NAMESPACES)
    }

    fn namespace_list(&self, command: &'static str, cns: u8) -> Result<Vec<u32>, AdminError> {
        let mut all: Vec<u32> = Vec::new();
        loop {
            let nsid = all.last().copied().unwrap_or(0);
            let bytes = self.identify(command, &IdentifyCommand { cns, nsid, ..Default::default() })?;
            let page = decode_namespace_list(&bytes).map_err(|source| AdminError::Answer { command, source })?;
            starts_at(command, page.first().map(|first| u64::from(*first)), u64::from(nsid) + 1)?;
            limit(command, all.len() + page.len(), MAX_NAMESPACES)?;
            let full = page.len() == MAX_NAMESPACE_LIST;
            all.extend(page);
            if !full {
                return Ok(all);
            }
        }
    }

    /// The controllers that have a namespace attached, ascending.
    ///
    /// # Errors
    /// As above, or a damaged list.
    pub fn attached_controllers(&self, nsid: u32) -> Result<Vec<u16>, AdminError> {
        self.controller_list("Identify Attached Controllers", cns::ATTACHED_CONTROLLERS, nsid)
    }

    /// Every controller of the subsystem, ascending.
    ///
    /// # Errors
    /// As above, or a damaged list.
    pub fn controllers(&self) -> Result<Vec<u16>, AdminError> {
        self.controller_list("Identify Controllers", cns::CONTROLLERS, 0)
    }

    fn controller_list(&self, command: &'static str, cns: u8, nsid: u32) -> Result<Vec<u16>, AdminError> {
        let mut all: Vec<u16> = Vec::new();
        let mut next = Some(0);
        while let Some(cntid) = next {
            let bytes = self.identify(command, &IdentifyCommand { cns, nsid, cntid, ..Default::default() })?;
            let page = decode_controller_list(&bytes).map_err(|source| AdminError::Answer { command, source })?;
            starts_at(command, page.first().map(|first| u64::from(*first)), u64::from(cntid))?;
            next = page.last().filter(|_| page.len() == MAX_CONTROLLER_LIST).and_then(|last| last.checked_add(1));
            all.extend(page);
        }
        Ok(all)
    }

    /// Primary Controller Capabilities.
    ///
    /// # Errors
    /// As above.
    pub fn primary_capabilities(&self) -> Result<PrimaryCapabilities, AdminError> {
        let cmd = IdentifyCommand { cns: cns::PRIMARY_CAPABILITIES, ..Default::default() };
        Ok(PrimaryCapabilities::decode(&*self.identify("Identify Primary Controller Capabilities", &cmd)?))
    }

    /// Every secondary controller of this primary, by ascending identifier.
    ///
    /// # Errors
    /// As above, or a damaged list.
    pub fn secondary_controllers(&self) -> Result<Vec<SecondaryController>, AdminError> {
        let command = "Identify Secondary Controllers";
        let mut all: Vec<SecondaryController> = Vec::new();
        let mut next = Some(0);
        while let Some(cntid) = next {
            let cmd = IdentifyCommand { cns: cns::SECONDARY_CONTROLLERS, cntid, ..Default::default() };
            let page = decode_secondary_list(&*self.identify(command, &cmd)?)
                .map_err(|source| AdminError::Answer { command, source })?;
            starts_at(command, page.first().map(|first| u64::from(first.scid)), u64::from(cntid))?;
            next = page.last().filter(|_| page.len() == MAX_SECONDARY_LIST).and_then(|last| last.scid.checked_add(1));
            all.extend(page);
        }
        Ok(all)
    }

    /// The controller state formats that this controller reads and writes.
    ///
    /// # Errors
    /// As above, or a damaged structure.
    pub fn state_formats(&self) -> Result<StateFormats, AdminError> {
        let command = "Identify Supported Controller State Formats";
        let cmd = IdentifyCommand { cns: cns::CONTROLLER_STATE_FORMATS, ..Default::default() };
        StateFormats::decode(&*self.identify(command, &cmd)?).map_err(|source| AdminError::Answer { command, source })
    }

    /// Virtualization Management. Returns how many resources were really changed (NRM): compare it with what was asked.
    ///
    /// # Errors
    /// Invalid Controller Identifier, Invalid Secondary Controller State, Invalid Number of Controller Resources, Invalid
    /// Resource Identifier, or as above.
    pub fn virtualization_manage(
        &self,
        action: VirtualizationAction,
        cntlid: u16,
        resource: Resource,
        count: u16,
    ) -> Result<u16, AdminError> {
        let command = match action {
            VirtualizationAction::AllocatePrimary => "Virtualization Management (allocate to the primary)",
            VirtualizationAction::Offline => "Virtualization Management (secondary offline)",
            VirtualizationAction::Assign => "Virtualization Management (assign to a secondary)",
            VirtualizationAction::Online => "Virtualization Management (secondary online)",
        };
        let cmd = VirtualizationManagement { cntlid, action, resource, count }.encode();
        self.submit(command, &cmd, Data::None, self.timeouts.command).map(|result| result as u16)
    }

    /// Attaches a namespace to controllers.
    ///
    /// # Errors
    /// Namespace Already Attached, Controller List Invalid, Invalid Namespace or Format, or as above. Which controllers were
    /// done before the error is not known: ask [`AdminClient::attached_controllers`].
    pub fn namespace_attach(&self, nsid: u32, cntlids: &[u16]) -> Result<(), AdminError> {
        self.namespace_attachment("Namespace Attachment (attach)", nsid, cntlids, true)
    }

    /// Detaches a namespace from controllers.
    ///
    /// # Errors
    /// Namespace Not Attached and as for [`AdminClient::namespace_attach`].
    pub fn namespace_detach(&self, nsid: u32, cntlids: &[u16]) -> Result<(), AdminError> {
        self.namespace_attachment("Namespace Attachment (detach)", nsid, cntlids, false)
    }

    fn namespace_attachment(
        &self,
        command: &'static str,
        nsid: u32,
        cntlids: &[u16],
        attach: bool,
    ) -> Result<(), AdminError> {
        let mut sorted = cntlids.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let list = encode_controller_list(&sorted).ok_or_else(|| AdminError::Request {
            command,
            message: format!("{} controllers, the limit is {MAX_CONTROLLER_LIST}", sorted.len()),
        })?;
        let cmd = NamespaceAttachment { nsid, attach }.encode();
        self.submit(command, &cmd, Data::FromHost(&list), self.timeouts.command).map(|_| ())
    }
}

/// A page has to start at or after what was asked for: otherwise paging would not end.
fn starts_at(command: &'static str, first: Option<u64>, asked: u64) -> Result<(), AdminError> {
    match first {
        Some(first) if first < asked => {
            let why = format!("it starts with {first}, asked for was {asked} on");
            Err(AdminError::Answer { command, source: DecodeError::Invalid { what: "list", why } })
        }
        _ => Ok(()),
    }
}

fn limit(command: &'static str, count: usize, limit: usize) -> Result<(), AdminError> {
    if count <= limit {
        return Ok(());
    }
    let (value, limit) = (count as u128, limit as u64);
    Err(AdminError::Answer { command, source: DecodeError::Limit { what: "length of the list", value, limit } })
}
