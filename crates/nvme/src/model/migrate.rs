//! Host managed live migration, as the controlling function obeys it: Track Send and Receive, Migration Send and Receive
//! (Base 2.1, 5.1.16, 5.1.17, 5.1.27, 5.1.28).

use std::sync::Arc;

use towline_core::memory::MemoryRange;

use super::controller::Controller;
use super::engine::{Engine, Suspension, Waiter};
use super::execute::Execution;
use super::queue::{Failure, Outcome};
use super::signal::lock;
use super::subsystem::Inner;
use super::tracking::{MAX_DESCRIPTORS, MAX_GRANULARITY, Tracking};
use crate::command::{AdminCommand, SubmissionEntry};
use crate::counts::bytes_of_numd_zeroes_based;
use crate::migration::{FormatIndex, MigrationReceive, MigrationSend, Sequence, StateFormats, SuspendType};
use crate::state::{MAX_STATE_BYTES, STATE_VERSION};
use crate::status::StatusCode;
use crate::track::{
    TrackRange, TrackRangesHeader, TrackResources, TrackSend, TrackedMemory, TrackedMemoryHeader, granularity_bytes,
};
use crate::vendor_state::VENDOR_STATE_UUID;
use crate::wire::records;

/// A controller state on its way in, until its last part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Staged {
    format: FormatIndex,
    data: Vec<u8>,
    /// Which bytes have come, as ascending ranges that do not touch.
    covered: Vec<(u64, u64)>,
}

/// The formats that the controlling function lists (CNS 20h).
pub(crate) fn formats() -> StateFormats {
    StateFormats { versions: vec![STATE_VERSION], uuids: vec![VENDOR_STATE_UUID] }
}

/// Index 1 of each list; 0 for "no vendor specific part".
fn known_format(format: FormatIndex) -> Result<(), StatusCode> {
    if format.version == 1 && format.uuid <= 1 { Ok(()) } else { Err(StatusCode::InvalidField) }
}

impl Engine {
    /// The controller that a migration command names: any of the subsystem but the one that got the command, and not one that
    /// has no function behind it.
    pub(crate) fn target(&self, inner: &Inner, cntlid: u16) -> Result<Arc<Controller>, StatusCode> {
        if cntlid == self.id.cntlid {
            return Err(StatusCode::InvalidControllerIdentifier);
        }
        inner.controller(cntlid).ok_or(StatusCode::InvalidControllerIdentifier)
    }

    pub(crate) fn track_send(&mut self, inner: &Inner, entry: &SubmissionEntry) -> Outcome {
        match TrackSend::decode(&AdminCommand::from(entry))? {
            // TRATTR bit 1 is 0: user data changes are not logged, and there are no queues to log them to.
            TrackSend::LogUserData { .. } => Err(StatusCode::InvalidField.into()),
            TrackSend::TrackMemory { start: false, cntlid } => self.target(inner, cntlid)?.with(|target| {
                if target.suspension == Suspension::Suspended {
                    return Err(StatusCode::ControllerSuspended.into());
                }
                target.set_tracking(None);
                Ok(0)
            }),
            TrackSend::TrackMemory { start: true, cntlid } => {
                let target = self.target(inner, cntlid)?;
                let tracking = Arc::new(self.new_tracking(entry)?);
                target.with(|target| target.set_tracking(Some(tracking)));
                Ok(0)
            }
        }
    }

    fn new_tracking(&self, entry: &SubmissionEntry) -> Result<Tracking, Failure> {
        let header = self.fetch_data(entry, TrackRangesHeader::SIZE)?;
        let header = TrackRangesHeader::decode_prefix(&header).ok_or(StatusCode::InternalError)?;
        if header.version != 0 || header.count == 0 {
            return Err(StatusCode::InvalidField.into());
        }
        let too_much = |granularity: u8| {
            let resources = TrackResources { granularity: granularity.into(), descriptors: MAX_DESCRIPTORS.into() };
            Failure { code: StatusCode::NotEnoughResources, result: resources.to_result() }
        };
        if header.granularity > MAX_GRANULARITY {
            return Err(too_much(MAX_GRANULARITY));
        }
        if header.count > u32::from(MAX_DESCRIPTORS) {
            return Err(too_much(header.granularity));
        }
        let count = header.count as usize;
        let len = TrackRangesHeader::SIZE + count * TrackRange::SIZE;
        if len > self.max_transfer() {
            return Err(StatusCode::InvalidField.into());
        }
        let data = self.fetch_data(entry, len)?;
        let body = data.get(TrackRangesHeader::SIZE..).unwrap_or_default();
        let page_size = granularity_bytes(header.granularity).ok_or(StatusCode::InvalidField)?;
        let mut ranges = Vec::with_capacity(count);
        for range in records::<12>(body, count).map(TrackRange::decode) {
            let range = MemoryRange { gpa: range.address, len: range.len.into() };
            if range.len == 0 || range.end().is_none() {
                return Err(StatusCode::InvalidField.into());
            }
            ranges.push(range);
        }
        // 1024 descriptors of 4 GiB each are more than is tracked in the finest pages.
        Tracking::new(&ranges, page_size).ok_or_else(|| too_much(MAX_GRANULARITY))
    }

    pub(crate) fn track_receive(&mut self, inner: &Inner, entry: &SubmissionEntry) -> Outcome {
        if entry.cdw10 & 0xff != 0 {
            return Err(StatusCode::InvalidField.into());
        }
        let cntlid = entry.cdw11 as u16;
        let target = self.target(inner, cntlid)?;
        let len = bytes_of_numd_zeroes_based(entry.cdw12);
        let len =
            usize::try_from(len).ok().filter(|len| *len <= self.max_transfer()).ok_or(StatusCode::InvalidField)?;
        if len < TrackedMemoryHeader::SIZE {
            return Err(StatusCode::InvalidField.into());
        }
        let dma = self.dma.clone().ok_or(StatusCode::DataTransferError)?;
        // The list is walked before anything is taken: reading is destructive, and a bad PRP would lose pages.
        let segments = dma.prp(entry.prp1, entry.prp2, len, self.page_size)?;
        target.with(|target| {
            let tracking = target.tracking.clone().ok_or(StatusCode::InvalidField)?;
            let (ranges, more) = tracking.receive(TrackedMemory::capacity(len));
            let suspended = target.suspension == Suspension::Suspended;
            let attributes =
                (u8::from(more) * TrackedMemoryHeader::MORE) | (u8::from(suspended) * TrackedMemoryHeader::SUSPENDED);
            let page_granularity = tracking.granularity();
            let header = TrackedMemoryHeader { attributes, cntlid, page_granularity, ..TrackedMemoryHeader::default() };
            let report = TrackedMemory { header, ranges };
            let sent = dma.scatter(&segments, &report.encode());
            if sent.is_err() {
                // The host did not get them: they are dirty still.
                report.ranges.iter().for_each(|range| tracking.mark(range.address, range.len.into()));
            }
            sent.map(|()| 0).map_err(Failure::from)
        })
    }

    pub(crate) fn migration_send(&mut self, inner: &Inner, entry: &SubmissionEntry) -> Execution {
        let command = match MigrationSend::decode(&AdminCommand::from(entry)) {
            Ok(command) => command,
            Err(code) => return code.into(),
        };
        match command {
            // There are no user data migration queues, so there is none to delete.
            MigrationSend::Suspend { delete_queue: true, .. } => StatusCode::InvalidField.into(),
            MigrationSend::Suspend { cntlid, kind, .. } => match self.target(inner, cntlid) {
                Ok(target) => self.suspend(&target, kind),
                Err(code) => code.into(),
            },
            MigrationSend::Resume { cntlid } => match self.target(inner, cntlid) {
                Ok(target) => target.with(Engine::resume).into(),
                Err(code) => code.into(),
            },
            MigrationSend::SetState { cntlid, sequence, format, offset, data_bytes, .. } => {
                let set = || -> Outcome {
                    let target = self.target(inner, cntlid)?;
                    known_format(format)?;
                    let len = usize::try_from(data_bytes).ok().filter(|len| *len <= self.max_transfer());
                    let data = self.fetch_data(entry, len.ok_or(StatusCode::InvalidField)?)?;
                    target.with(|target| target.set_state(sequence, format, offset, &data))
                };
                let outcome = set();
                match self.faults.rates().load_delay(data_bytes) {
                    delay if delay.is_zero() || outcome.is_err() => Execution::Done(outcome),
                    delay => Execution::After(delay, outcome),
                }
            }
        }
    }

    fn suspend(&mut self, target: &Controller, kind: SuspendType) -> Execution {
        if kind == SuspendType::Notification {
            // Nothing here gets slower or faster by knowing.
            return Execution::Done(Ok(0));
        }
        let token = self.token();
        let mailbox = Arc::clone(&self.mailbox);
        target.with(|target| {
            if target.presence() != super::front::Presence::Online {
                return StatusCode::InvalidControllerIdentifier.into();
            }
            match target.suspension {
                Suspension::Suspended => return Execution::Done(Ok(0)),
                Suspension::Active => {
                    // A doorbell or a register that was written before the command has been seen.
                    target.apply_registers();
                    target.apply_doorbells();
                    target.suspension = Suspension::Suspending;
                }
                Suspension::Suspending => {}
            }
            target.waiters.push(Waiter { mailbox, token });
            target.settle_suspension();
            // Where nothing had to be drained the mail is there already.
            Execution::Mail(token)
        })
    }

    /// The target's part of Resume.
    fn resume(&mut self) -> Outcome {
        if self.staged.is_some() {
            return Err(StatusCode::CommandSequenceError.into());
        }
        if self.suspension != Suspension::Suspended {
            return Err(StatusCode::ControllerNotSuspended.into());
        }
        self.suspension = Suspension::Active;
        lock(&self.front).unseal();
        // Interrupts may have been lost with the source: a host that finds nothing new ignores one too many.
        let unread: Vec<u16> =
            self.cqs.values().filter(|cq| cq.interrupts && cq.used() > 0).map(|cq| cq.vector).collect();
        unread.into_iter().for_each(|vector| self.vectors.set_pending(vector));
        self.vectors.deliver(self.sink.as_ref());
        Ok(0)
    }

    /// The target's part of Set Controller State.
    fn set_state(&mut self, sequence: Sequence, format: FormatIndex, offset: u64, data: &[u8]) -> Outcome {
        if self.suspension != Suspension::Suspended {
            return Err(StatusCode::ControllerNotSuspended.into());
        }
        if self.sqs.keys().chain(self.cqs.keys()).any(|qid| *qid != 0) {
            return Err(StatusCode::InvalidField.into());
        }
        match sequence {
            Sequence::First | Sequence::Only => {
                self.staged = Some(Staged { format, data: Vec::new(), covered: Vec::new() });
            }
            Sequence::Middle | Sequence::Last => {}
        }
        let Some(staged) = &mut self.staged else { return Err(StatusCode::CommandSequenceError.into()) };
        if staged.format != format {
            return Err(StatusCode::InvalidField.into());
        }
        staged.add(offset, data)?;
        if matches!(sequence, Sequence::First | Sequence::Middle) {
            return Ok(0);
        }
        // Until it is committed, or a reset, the staged state stays: Resume has to refuse after a failed commit, too.
        let Some(staged) = self.staged.clone().filter(Staged::complete) else {
            return Err(StatusCode::InvalidField.into());
        };
        self.restore(&staged.data, format.uuid != 0)?;
        self.staged = None;
        Ok(0)
    }

    pub(crate) fn migration_receive(&mut self, inner: &Inner, entry: &SubmissionEntry) -> Execution {
        let get = || -> Result<(u64, usize), Failure> {
            let command = MigrationReceive::decode(&AdminCommand::from(entry))?;
            let target = self.target(inner, command.cntlid)?;
            known_format(command.format)?;
            let len = usize::try_from(command.data_bytes).ok().filter(|len| *len <= self.max_transfer());
            let len = len.ok_or(StatusCode::InvalidField)?;
            let (state, suspended) = target.with(|target| {
                if target.presence() != super::front::Presence::Online {
                    return (Err(StatusCode::InvalidControllerIdentifier), false);
                }
                target.apply_registers();
                target.apply_doorbells();
                let suspended = target.suspension == Suspension::Suspended;
                (target.capture(command.format.uuid != 0), suspended)
            });
            let state = state?;
            let start = usize::try_from(command.offset).ok().filter(|at| *at <= state.len());
            let mut out = state.get(start.ok_or(StatusCode::InvalidField)?..).unwrap_or_default().to_vec();
            out.resize(len, 0);
            self.reply(entry, &out)?;
            Ok((if suspended { MigrationReceive::RESULT_SUSPENDED } else { 0 }, len))
        };
        match get() {
            Err(failure) => Execution::Done(Err(failure)),
            Ok((result, len)) => match self.faults.rates().save_delay(len as u64) {
                delay if delay.is_zero() => Execution::Done(Ok(result)),
                delay => Execution::After(delay, Ok(result)),
            },
        }
    }
}

impl Staged {
    /// Puts a part where it belongs. Parts may come in any order and again; what is allocated is what has come.
    fn add(&mut self, offset: u64, data: &[u8]) -> Result<(), StatusCode> {
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= MAX_STATE_BYTES);
        let end = end.ok_or(StatusCode::InvalidField)?;
        let (from, to) = (offset as usize, end as usize);
        if data.is_empty() {
            return Ok(());
        }
        if self.data.len() < to {
            self.data.resize(to, 0);
        }
        let slot = self.data.get_mut(from..to).ok_or(StatusCode::InternalError)?;
        slot.copy_from_slice(data);
        let (mut start, mut stop) = (offset, end);
        self.covered.retain(|(a, b)| {
            let apart = *b < start || *a > stop;
            if !apart {
                (start, stop) = (start.min(*a), stop.max(*b));
            }
            apart
        });
        self.covered.push((start, stop));
        Ok(())
    }

    /// Whether every byte from 0 to the last one has come.
    fn complete(&self) -> bool {
        self.covered.as_slice() == [(0, self.data.len() as u64)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staged() -> Staged {
        Staged { format: FormatIndex { version: 1, uuid: 1 }, data: Vec::new(), covered: Vec::new() }
    }

    #[test]
    fn parts_in_any_order() {
        let mut state = staged();
        state.add(8, &[3; 4]).unwrap();
        assert!(!state.complete());
        state.add(0, &[1; 4]).unwrap();
        state.add(4, &[2; 4]).unwrap();
        assert!(state.complete());
        assert_eq!(state.data, [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]);
        assert_eq!(state.add(MAX_STATE_BYTES - 2, &[0; 4]), Err(StatusCode::InvalidField));
        assert_eq!(state.add(u64::MAX - 1, &[0; 4]), Err(StatusCode::InvalidField));
    }
}
