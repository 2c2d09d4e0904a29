//! The device: controller 0 migrates controller 7.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::admin::{AdminClient, AdminTransport, Completion, Data, TransportError};
use crate::command::{AdminCommand, opcode};
use crate::identify::{IdentifyCommand, IdentifyController, cns, oacs, trattr};
use crate::migration::{FormatIndex, MigrationReceive, MigrationSend, Sequence, StateFormats, SuspendType};
use crate::state::{ControllerState, SqState, StateHeader};
use crate::status::{Status, StatusCode};
use crate::track::{
    ChangedRange, TrackRanges, TrackReceive, TrackResources, TrackSend, TrackedMemory, TrackedMemoryHeader,
};

pub(super) const CNTLID: u16 = 7;

pub(super) enum Fault {
    Status(StatusCode),
    Lost(TransportError),
    /// The command is executed, and its completion is lost.
    LostAfter(TransportError),
}

#[derive(Default)]
pub(super) struct Inner {
    pub formats: StateFormats,
    pub suspended: bool,
    /// The state that Migration Receive gives and that a committed Set State leaves.
    pub state: Vec<u8>,
    pub staged: Option<Vec<u8>>,
    pub commits: usize,
    pub set_format: Option<FormatIndex>,
    pub sequences: Vec<Sequence>,
    /// Opcodes in the order in which they came.
    pub log: Vec<u8>,
    /// The n-th command from now on (0: the next) of an opcode fails.
    pub faults: Vec<(u8, usize, Fault)>,
    /// Says "not suspended" although it is.
    pub lies_about_suspend: bool,
    /// Flips a bit in what it gives.
    pub corrupts: bool,
    pub min_granularity: u8,
    pub max_granularity: u8,
    pub max_ranges: usize,
    pub power_of_two: bool,
    /// Answers 38h below this granularity.
    pub affordable_granularity: u8,
    pub tracking: Option<TrackRanges>,
    pub dirty: Vec<ChangedRange>,
    pub reports_garbage: Option<ChangedRange>,
    /// Always more, never anything.
    pub stuck: bool,
    /// Always more.
    pub endless: bool,
    pub per_report: usize,
}

pub(super) struct Device {
    pub inner: Mutex<Inner>,
    pub max_transfer: u32,
}

impl Device {
    pub(super) fn new(max_transfer: u32) -> Arc<Self> {
        let inner = Inner {
            formats: StateFormats { versions: vec![0], uuids: vec![[9; 16], crate::vendor_state::VENDOR_STATE_UUID] },
            max_granularity: 10,
            max_ranges: 64,
            per_report: 3,
            ..Inner::default()
        };
        Arc::new(Self { inner: Mutex::new(inner), max_transfer })
    }

    pub(super) fn client(self: &Arc<Self>) -> AdminClient {
        AdminClient::new(Arc::clone(self) as Arc<dyn AdminTransport>)
    }

    pub(super) fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock().unwrap())
    }
}

/// A state of so many bytes of vendor data that no two parts of it are the same.
pub(super) fn state(vendor_bytes: usize) -> Vec<u8> {
    let submission_queues = (1..4).map(|qid| SqState { qid, cqid: qid, size: 31, ..SqState::default() }).collect();
    let vendor = (0..vendor_bytes).map(|n| (n % 251) as u8 ^ (n >> 9) as u8).collect();
    ControllerState { suspended: true, submission_queues, vendor, ..Default::default() }.encode().unwrap()
}

impl Inner {
    fn identify(&self, cmd: &IdentifyCommand) -> Result<[u8; 4096], StatusCode> {
        match cmd.cns {
            cns::CONTROLLER => Ok(IdentifyController {
                oacs: oacs::HOST_MANAGED_LIVE_MIGRATION,
                minmrtg: self.min_granularity,
                maxmrtg: self.max_granularity,
                cmmrtd: self.max_ranges as u16,
                trattr: trattr::HOST_MEMORY_CHANGES | if self.power_of_two { trattr::POWER_OF_TWO_LENGTH } else { 0 },
                ..Default::default()
            }
            .encode()),
            cns::CONTROLLER_STATE_FORMATS => Ok(self.formats.encode().unwrap()),
            _ => Err(StatusCode::InvalidField),
        }
    }

    fn send(&mut self, cmd: MigrationSend, data: &[u8]) -> Result<u64, StatusCode> {
        match cmd {
            MigrationSend::Suspend { kind: SuspendType::Suspend, .. } => self.suspended = true,
            MigrationSend::Suspend { .. } => {}
            MigrationSend::Resume { .. } => {
                if !self.suspended {
                    return Err(StatusCode::ControllerNotSuspended);
                }
                if self.staged.is_some() {
                    return Err(StatusCode::CommandSequenceError);
                }
                self.suspended = false;
            }
            MigrationSend::SetState { sequence, format, offset, data_bytes, .. } => {
                assert_eq!(data_bytes, data.len() as u64, "a 1's-based count");
                self.sequences.push(sequence);
                self.set_format = Some(format);
                if matches!(sequence, Sequence::First | Sequence::Only) {
                    self.staged = Some(Vec::new());
                }
                let staged = self.staged.as_mut().ok_or(StatusCode::CommandSequenceError)?;
                assert_eq!(offset, staged.len() as u64);
                staged.extend_from_slice(data);
                if matches!(sequence, Sequence::Last | Sequence::Only) {
                    let staged = self.staged.take().unwrap();
                    ControllerState::decode(&staged).map_err(|_| StatusCode::InvalidField)?;
                    self.state = staged;
                    self.commits += 1;
                }
            }
        }
        Ok(0)
    }

    fn receive(&self, cmd: MigrationReceive, out: &mut [u8]) -> Result<u64, StatusCode> {
        assert_eq!(cmd.data_bytes, out.len() as u64, "a 0's-based count");
        let start = usize::try_from(cmd.offset).unwrap();
        let mut state = self.state.clone();
        if !self.suspended {
            state[2] &= !StateHeader::SUSPENDED;
        }
        let part = state.get(start..start + out.len()).ok_or(StatusCode::InvalidField)?;
        out.copy_from_slice(part);
        if self.corrupts && start > 0 {
            out[0] ^= 1;
        }
        Ok(u64::from(self.suspended && !self.lies_about_suspend))
    }

    fn track(&mut self, cmd: TrackSend, data: &[u8]) -> Result<u64, (StatusCode, u64)> {
        let TrackSend::TrackMemory { start, cntlid } = cmd else { return Err((StatusCode::InvalidField, 0)) };
        assert_eq!(cntlid, CNTLID);
        if !start {
            if self.suspended {
                return Err((StatusCode::ControllerSuspended, 0));
            }
            self.tracking = None;
            return Ok(0);
        }
        if self.tracking.is_some() {
            return Err((StatusCode::CommandSequenceError, 0));
        }
        let ranges = TrackRanges::decode(data).unwrap();
        assert!((self.min_granularity..=self.max_granularity).contains(&ranges.granularity));
        assert!(!self.power_of_two || ranges.ranges.iter().all(|range| range.len.is_power_of_two()));
        if ranges.granularity < self.affordable_granularity || ranges.ranges.len() > self.max_ranges {
            let granularity = u16::from(self.affordable_granularity.max(ranges.granularity));
            let possible = TrackResources { granularity, descriptors: self.max_ranges as u32 };
            return Err((StatusCode::NotEnoughResources, possible.to_result()));
        }
        self.tracking = Some(ranges);
        Ok(0)
    }

    fn report(&mut self, cmd: TrackReceive, out: &mut [u8]) -> Result<u64, StatusCode> {
        assert_eq!(cmd.data_bytes, out.len() as u64, "a 0's-based count");
        let n = self.per_report.min(self.dirty.len());
        let mut ranges: Vec<_> = if self.stuck { Vec::new() } else { self.dirty.drain(..n).collect() };
        ranges.extend(self.reports_garbage.take());
        if self.endless {
            ranges.push(ChangedRange { address: 0, len: 4096 });
        }
        let more = self.stuck || self.endless || !self.dirty.is_empty();
        let attributes = u8::from(more) | u8::from(self.suspended) << 1;
        let header = TrackedMemoryHeader { attributes, cntlid: CNTLID, ..Default::default() };
        let bytes = TrackedMemory { header, ranges }.encode();
        out[..bytes.len()].copy_from_slice(&bytes);
        Ok(0)
    }

    fn execute(&mut self, cmd: &AdminCommand, data: Data<'_>) -> Completion {
        let done: Result<u64, (StatusCode, u64)> = match (cmd.opcode, data) {
            (opcode::IDENTIFY, Data::ToHost(out)) => self
                .identify(&IdentifyCommand::decode(cmd))
                .map(|bytes| {
                    out.copy_from_slice(&bytes);
                    0
                })
                .map_err(|code| (code, 0)),
            (opcode::MIGRATION_SEND, Data::FromHost(data)) => {
                self.send(MigrationSend::decode(cmd).unwrap(), data).map_err(|code| (code, 0))
            }
            (opcode::MIGRATION_SEND, Data::None) => {
                self.send(MigrationSend::decode(cmd).unwrap(), &[]).map_err(|code| (code, 0))
            }
            (opcode::MIGRATION_RECEIVE, Data::ToHost(out)) => {
                self.receive(MigrationReceive::decode(cmd).unwrap(), out).map_err(|code| (code, 0))
            }
            (opcode::TRACK_SEND, Data::FromHost(data)) => self.track(TrackSend::decode(cmd).unwrap(), data),
            (opcode::TRACK_RECEIVE, Data::ToHost(out)) => {
                self.report(TrackReceive::decode(cmd).unwrap(), out).map_err(|code| (code, 0))
            }
            (opcode, data) => panic!("command {opcode:#x} with {data:?}"),
        };
        match done {
            Ok(result) => Completion { result, status: Status::SUCCESS },
            Err((code, result)) => Completion { result, status: Status { dnr: true, ..code.into() } },
        }
    }
}

impl AdminTransport for Device {
    fn submit(&self, cmd: &AdminCommand, data: Data<'_>, _: Duration) -> Result<Completion, TransportError> {
        assert!(data.len() <= self.max_transfer as usize);
        let mut inner = self.inner.lock().unwrap();
        inner.log.push(cmd.opcode);
        let mut fault = None;
        if let Some(at) = inner.faults.iter().position(|(opcode, ..)| *opcode == cmd.opcode) {
            match inner.faults[at].1 {
                0 => fault = Some(inner.faults.remove(at).2),
                _ => inner.faults[at].1 -= 1,
            }
        }
        match fault {
            Some(Fault::Status(code)) => Ok(Completion { result: 0, status: code.into() }),
            Some(Fault::Lost(error)) => Err(error),
            Some(Fault::LostAfter(error)) => {
                inner.execute(cmd, data);
                Err(error)
            }
            None => Ok(inner.execute(cmd, data)),
        }
    }

    fn max_transfer_bytes(&self) -> u32 {
        self.max_transfer
    }
}
