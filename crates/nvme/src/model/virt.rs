//! What only the controlling function obeys: virtualization management, namespace attachment, and the way to the migration
//! commands (Base 2.1, 5.1.29, 8.2.6).

use super::engine::Engine;
use super::events::Event;
use super::execute::Execution;
use super::queue::{Failure, Outcome};
use super::subsystem::Inner;
use crate::command::{AdminCommand, SubmissionEntry, opcode};
use crate::identify::decode_controller_list;
use crate::resources::{NamespaceAttachment, VirtualizationManagement};
use crate::status::StatusCode;
use crate::wire::DecodeError;

impl Engine {
    pub(crate) fn controlling(&mut self, inner: &Inner, entry: &SubmissionEntry) -> Execution {
        match entry.opcode {
            opcode::VIRTUALIZATION_MANAGEMENT => {
                let manage = |command: VirtualizationManagement| inner.manage(&command).map_err(Failure::from);
                let outcome = VirtualizationManagement::decode(&AdminCommand::from(entry)).map_err(Failure::from);
                outcome.and_then(manage).map(u64::from).into()
            }
            opcode::NAMESPACE_ATTACHMENT => self.namespace_attachment(inner, entry).into(),
            // There is no unallocated capacity to make one of, and none is ever given up.
            opcode::NAMESPACE_MANAGEMENT => match entry.cdw10 & 15 {
                0 => StatusCode::NamespaceInsufficientCapacity.into(),
                1 => StatusCode::OperationDenied.into(),
                _ => StatusCode::InvalidField.into(),
            },
            opcode::TRACK_SEND => self.track_send(inner, entry).into(),
            opcode::TRACK_RECEIVE => self.track_receive(inner, entry).into(),
            opcode::MIGRATION_SEND => self.migration_send(inner, entry),
            opcode::MIGRATION_RECEIVE => self.migration_receive(inner, entry),
            _ => StatusCode::InvalidOpcode.into(),
        }
    }

    fn namespace_attachment(&mut self, inner: &Inner, entry: &SubmissionEntry) -> Outcome {
        let command = NamespaceAttachment::decode(&AdminCommand::from(entry))?;
        let shared = self.disks.iter().find(|disk| disk.nsid == command.nsid).map(|disk| disk.config.shared);
        let shared = shared.ok_or(StatusCode::InvalidNamespaceOrFormat)?;
        let data = self.fetch_data(entry, 4096)?;
        let page = data.first_chunk::<4096>().ok_or(StatusCode::InternalError)?;
        let ids = decode_controller_list(page).map_err(|error: DecodeError| match error {
            DecodeError::Limit { .. } | DecodeError::Invalid { .. } => StatusCode::ControllerListInvalid,
            _ => StatusCode::InvalidField,
        })?;
        let own = self.id.cntlid;
        // A controller that is not in the subsystem makes the whole list invalid; nothing has changed by then.
        if ids.is_empty() || ids.iter().any(|id| *id != own && inner.controller(*id).is_none()) {
            return Err(StatusCode::ControllerListInvalid.into());
        }
        let mut holders = inner.attached_to(command.nsid);
        if self.attached.contains(&command.nsid) {
            holders.push(own);
        }
        if command.attach {
            if ids.iter().any(|id| holders.contains(id)) {
                return Err(StatusCode::NamespaceAlreadyAttached.into());
            }
            if !shared && holders.len() + ids.len() > 1 {
                return Err(StatusCode::NamespaceIsPrivate.into());
            }
        } else if ids.iter().any(|id| !holders.contains(id)) {
            return Err(StatusCode::NamespaceNotAttached.into());
        }
        for id in ids {
            if id == own {
                self.set_attached(command.nsid, command.attach);
            } else if let Some(controller) = inner.controller(id) {
                controller.with(|engine| engine.set_attached(command.nsid, command.attach));
            }
        }
        Ok(0)
    }

    fn set_attached(&mut self, nsid: u32, attached: bool) {
        if attached {
            self.attached.insert(nsid)
        } else {
            self.attached.remove(&nsid)
        };
        if !self.events.changed.contains(&nsid) {
            self.events.changed.push(nsid);
            self.events.changed.sort_unstable();
        }
        self.events.add(Event::NAMESPACES_CHANGED);
    }
}
