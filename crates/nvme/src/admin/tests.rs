//! Listings that do not fit one page, devices whose pages make no sense, and what errors mean to a migration.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use towline_core::channel::ChannelErrorKind;
use towline_core::fsm::DeviceState;

use super::{AdminClient, AdminError, AdminTransport, Completion, Data, TransportError};
use crate::command::{AdminCommand, opcode};
use crate::identify::{
    IDENTIFY_BYTES, IdentifyCommand, cns, decode_controller_list, encode_controller_list, encode_namespace_list,
};
use crate::resources::{Resource, SecondaryController, VirtualizationAction, encode_secondary_list};
use crate::status::{Status, StatusCode};
use crate::track::TrackResources;

type Handler = Box<dyn FnMut(&AdminCommand, Data<'_>) -> Result<Completion, TransportError> + Send>;

struct Scripted(Mutex<Handler>);

impl AdminTransport for Scripted {
    fn submit(&self, cmd: &AdminCommand, data: Data<'_>, _: Duration) -> Result<Completion, TransportError> {
        (self.0.lock().unwrap())(cmd, data)
    }
    fn max_transfer_bytes(&self) -> u32 {
        8192
    }
}

fn client(
    handler: impl FnMut(&AdminCommand, Data<'_>) -> Result<Completion, TransportError> + Send + 'static,
) -> AdminClient {
    AdminClient::new(Arc::new(Scripted(Mutex::new(Box::new(handler)))))
}

/// Answers every Identify with the page that `page` makes of it.
fn identify(mut page: impl FnMut(IdentifyCommand) -> [u8; IDENTIFY_BYTES] + Send + 'static) -> AdminClient {
    client(move |cmd, data| {
        assert_eq!(cmd.opcode, opcode::IDENTIFY);
        let Data::ToHost(out) = data else { panic!("Identify returns data") };
        out.copy_from_slice(&page(IdentifyCommand::decode(cmd)));
        Ok(Completion::default())
    })
}

#[test]
fn namespaces_over_several_pages() {
    let client = identify(|cmd| {
        assert_eq!(cmd.cns, cns::ACTIVE_NAMESPACES);
        let rest: Vec<u32> = (cmd.nsid + 1..=2500).collect();
        encode_namespace_list(&rest)
    });
    assert_eq!(client.active_namespaces().unwrap(), (1..=2500).collect::<Vec<u32>>());
}

#[test]
fn controllers_over_several_pages_up_to_the_last_identifier() {
    let all: Vec<u16> = (1..=u16::MAX).filter(|id| id % 13 == 0 || *id > 65000).collect();
    let expected = all.clone();
    let client = identify(move |cmd| {
        let rest: Vec<u16> = all.iter().copied().filter(|id| *id >= cmd.cntid).take(2047).collect();
        encode_controller_list(&rest).unwrap()
    });
    assert_eq!(client.controllers().unwrap(), expected);
    assert_eq!(client.attached_controllers(1).unwrap(), expected);
}

#[test]
fn secondaries_over_several_pages() {
    let client = identify(|cmd| {
        assert_eq!(cmd.cns, cns::SECONDARY_CONTROLLERS);
        let entry = |scid| SecondaryController { scid, pcid: 1, ..Default::default() };
        let rest: Vec<_> = (cmd.cntid.max(5)..400).map(entry).collect();
        encode_secondary_list(&rest)
    });
    let scids: Vec<u16> = client.secondary_controllers().unwrap().iter().map(|entry| entry.scid).collect();
    assert_eq!(scids, (5..400).collect::<Vec<u16>>());
}

#[test]
fn a_device_that_repeats_its_first_page_is_noticed() {
    let client = identify(|cmd| match cmd.cns {
        cns::ACTIVE_NAMESPACES => encode_namespace_list(&(1..=1024).collect::<Vec<u32>>()),
        cns::SECONDARY_CONTROLLERS => {
            let entry = |scid| SecondaryController { scid, ..Default::default() };
            encode_secondary_list(&(1..=127).map(entry).collect::<Vec<_>>())
        }
        _ => encode_controller_list(&(1..=2047).collect::<Vec<u16>>()).unwrap(),
    });
    assert!(matches!(client.active_namespaces(), Err(AdminError::Answer { .. })));
    assert!(matches!(client.secondary_controllers(), Err(AdminError::Answer { .. })));
    assert!(matches!(client.controllers(), Err(AdminError::Answer { .. })));
}

#[test]
fn more_namespaces_than_anybody_has_are_refused() {
    let client = identify(|cmd| encode_namespace_list(&(cmd.nsid + 1..=cmd.nsid + 1024).collect::<Vec<u32>>()));
    assert!(matches!(client.allocated_namespaces(), Err(AdminError::Answer { .. })));
}

#[test]
fn attachment_sends_a_sorted_list_without_doubles() {
    let client = client(|cmd, data| {
        assert_eq!((cmd.opcode, cmd.nsid, cmd.cdw10), (opcode::NAMESPACE_ATTACHMENT, 3, 1));
        let Data::FromHost(list) = data else { panic!("it sends a list") };
        assert_eq!(decode_controller_list(list.try_into().unwrap()).unwrap(), [2, 7, 9]);
        Ok(Completion::default())
    });
    client.namespace_detach(3, &[9, 2, 7, 2]).unwrap();
    let too_many: Vec<u16> = (0..3000).collect();
    assert!(matches!(client.namespace_attach(3, &too_many), Err(AdminError::Request { .. })));
}

#[test]
fn the_number_of_resources_really_changed_is_returned() {
    let client = client(|_, _| Ok(Completion { result: 0xdead_0003, status: Status::SUCCESS }));
    let changed = client.virtualization_manage(VirtualizationAction::Assign, 4, Resource::Queues, 5);
    assert_eq!(changed, Ok(3));
}

#[test]
fn a_refused_start_says_what_is_possible() {
    let resources = TrackResources { granularity: 9, descriptors: 16 };
    let refused = client(move |_, _| {
        let status = StatusCode::NotEnoughResources.into();
        Ok(Completion { result: resources.to_result(), status })
    });
    let error = refused.track_memory_start(4, 0, &[]).unwrap_err();
    assert_eq!(error.track_resources(), Some(resources));
    let other = client(|_, _| Ok(Completion { result: 77, status: StatusCode::InvalidField.into() }));
    assert_eq!(other.track_memory_start(4, 0, &[]).unwrap_err().track_resources(), None);
}

#[test]
fn what_errors_mean_to_a_migration() {
    let status = |code: StatusCode| AdminError::Status { command: "x", status: code.into(), result: 0 };
    let lost = |source| AdminError::Transport { command: "x", source };
    let io = TransportError::Io { errno: 5, message: "ioctl".into() };
    let timeout = TransportError::Timeout { opcode: 0x41, timeout_ms: 1 };
    let unsendable = TransportError::Unsendable { message: "too long".into() };
    for (error, kind, errno, nvme_status, ambiguous) in [
        (status(StatusCode::InvalidOpcode), ChannelErrorKind::Unsupported, None, Some(0x001), false),
        (status(StatusCode::ControllerSuspended), ChannelErrorKind::State, None, Some(0x139), false),
        (status(StatusCode::NotEnoughResources), ChannelErrorKind::Limit, None, Some(0x138), false),
        (status(StatusCode::InvalidControllerIdentifier), ChannelErrorKind::Gone, None, Some(0x11f), false),
        (status(StatusCode::InternalError), ChannelErrorKind::Device, None, Some(0x006), false),
        (lost(io), ChannelErrorKind::Device, Some(5), None, true),
        (lost(timeout), ChannelErrorKind::Gone, None, None, true),
        (lost(unsendable), ChannelErrorKind::Limit, None, None, false),
    ] {
        assert_eq!(error.is_ambiguous(), ambiguous, "{error}");
        let channel = error.into_channel_error(Some(DeviceState::Stop));
        assert_eq!((channel.kind, channel.errno, channel.nvme_status), (kind, errno, nvme_status), "{channel}");
        assert_eq!(channel.state, Some(DeviceState::Stop));
    }
}
