//! Admin commands: who may send which, queues, aborts, asynchronous events.

use super::engine::Engine;
use super::execute::Execution;
use super::queue::{CompletionQueue, Outcome, SubmissionQueue};
use crate::command::{AdminCommand, CreateIoCq, CreateIoSq, SubmissionEntry, opcode};
use crate::status::StatusCode;

/// Outstanding asynchronous event requests, at most (Identify AERL + 1).
pub(crate) const MAX_ASYNC_EVENTS: usize = 4;

impl Engine {
    pub(crate) fn admin(&mut self, entry: &SubmissionEntry) -> Execution {
        match entry.opcode {
            opcode::IDENTIFY => self.identify(entry).into(),
            opcode::GET_LOG_PAGE => self.get_log_page(entry).into(),
            opcode::SET_FEATURES => self.set_features(entry).into(),
            opcode::GET_FEATURES => self.get_features(entry).into(),
            opcode::CREATE_IO_CQ => self.create_cq(entry).into(),
            opcode::CREATE_IO_SQ => self.create_sq(entry).into(),
            opcode::DELETE_IO_SQ => self.delete_sq(entry).into(),
            opcode::DELETE_IO_CQ => self.delete_cq(entry).into(),
            opcode::ABORT => self.abort(entry).into(),
            opcode::ASYNC_EVENT_REQUEST => self.async_event_request(entry),
            // Everything else belongs to the controlling function; on any other controller it does not exist (Base 2.1: only
            // the controller with HMLMS has it).
            _ => match self.subsystem.as_ref().and_then(std::sync::Weak::upgrade) {
                Some(inner) => self.controlling(&inner, entry),
                None => StatusCode::InvalidOpcode.into(),
            },
        }
    }

    /// Sends `data` to where the PRPs of the command point.
    pub(crate) fn reply(&self, entry: &SubmissionEntry, data: &[u8]) -> Outcome {
        let dma = self.dma.as_ref().ok_or(StatusCode::DataTransferError)?;
        let segments = dma.prp(entry.prp1, entry.prp2, data.len(), self.page_size)?;
        dma.scatter(&segments, data)?;
        Ok(0)
    }

    /// Fetches `len` bytes from where the PRPs of the command point. The caller has checked `len` against the largest transfer.
    pub(crate) fn fetch_data(&self, entry: &SubmissionEntry, len: usize) -> Result<Vec<u8>, StatusCode> {
        let dma = self.dma.as_ref().ok_or(StatusCode::DataTransferError)?;
        let segments = dma.prp(entry.prp1, entry.prp2, len, self.page_size)?;
        let mut data = vec![0; len];
        dma.gather(&segments, &mut data)?;
        Ok(data)
    }

    /// Checks what Create I/O SQ and Create I/O CQ have in common.
    fn new_queue(&self, qid: u16, entries: u32, contiguous: bool, base: u64, taken: bool) -> Result<u16, StatusCode> {
        if qid == 0 || qid >= self.queues || taken {
            return Err(StatusCode::InvalidQueueIdentifier);
        }
        let entries = u16::try_from(entries).ok().filter(|entries| (2..=self.id.max_entries).contains(entries));
        let entries = entries.ok_or(StatusCode::InvalidQueueSize)?;
        // CAP.CQR: queues are contiguous.
        if !contiguous {
            return Err(StatusCode::InvalidField);
        }
        if base & (self.page_size - 1) != 0 {
            return Err(StatusCode::InvalidPrpOffset);
        }
        Ok(entries)
    }

    fn create_cq(&mut self, entry: &SubmissionEntry) -> Outcome {
        let create = CreateIoCq::decode(&AdminCommand::from(entry));
        let taken = self.cqs.contains_key(&create.qid);
        let entries = self.new_queue(create.qid, create.entries, create.contiguous, entry.prp1, taken)?;
        if self.entry_sizes().1 != 4 {
            return Err(StatusCode::InvalidQueueSize.into());
        }
        if create.vector >= self.vectors_max {
            return Err(StatusCode::InvalidInterruptVector.into());
        }
        self.cqs.insert(
            create.qid,
            CompletionQueue {
                qid: create.qid,
                base: entry.prp1,
                entries,
                head: 0,
                tail: 0,
                phase: true,
                vector: create.vector,
                interrupts: create.interrupts,
                reserved: 0,
            },
        );
        Ok(0)
    }

    fn create_sq(&mut self, entry: &SubmissionEntry) -> Outcome {
        let create = CreateIoSq::decode(&AdminCommand::from(entry));
        let taken = self.sqs.contains_key(&create.qid);
        // The completion queue is looked at first, as the order of the specification's status codes suggests: a host that probes
        // for a queue pair sees what is missing.
        if create.cqid == 0 || create.cqid >= self.queues {
            return Err(StatusCode::InvalidQueueIdentifier.into());
        }
        if !self.cqs.contains_key(&create.cqid) {
            return Err(StatusCode::CompletionQueueInvalid.into());
        }
        let entries = self.new_queue(create.qid, create.entries, create.contiguous, entry.prp1, taken)?;
        if self.entry_sizes().0 != 6 {
            return Err(StatusCode::InvalidQueueSize.into());
        }
        self.sqs.insert(
            create.qid,
            SubmissionQueue {
                qid: create.qid,
                base: entry.prp1,
                entries,
                cqid: create.cqid,
                priority: create.priority,
                head: 0,
                tail: 0,
            },
        );
        Ok(0)
    }

    /// CC.IOSQES and CC.IOCQES.
    fn entry_sizes(&self) -> (u32, u32) {
        let cc = super::signal::lock(&self.front).cc;
        (cc >> 16 & 15, cc >> 20 & 15)
    }

    fn delete_sq(&mut self, entry: &SubmissionEntry) -> Outcome {
        let qid = entry.cdw10 as u16;
        if qid == 0 || !self.sqs.contains_key(&qid) {
            return Err(StatusCode::InvalidQueueIdentifier.into());
        }
        // Commands that were fetched and are not done end first.
        for parked in self.parked.extract_if(.., |parked| parked.sqid == qid).collect::<Vec<_>>() {
            self.complete(qid, parked.cqid, parked.entry.cid, Err(StatusCode::AbortedSqDeletion.into()));
        }
        self.sqs.remove(&qid);
        Ok(0)
    }

    fn delete_cq(&mut self, entry: &SubmissionEntry) -> Outcome {
        let qid = entry.cdw10 as u16;
        if qid == 0 || !self.cqs.contains_key(&qid) {
            return Err(StatusCode::InvalidQueueIdentifier.into());
        }
        if self.sqs.values().any(|sq| sq.cqid == qid) {
            return Err(StatusCode::InvalidQueueDeletion.into());
        }
        self.cqs.remove(&qid);
        Ok(0)
    }

    /// Bit 0 of the result: the command was not aborted.
    fn abort(&mut self, entry: &SubmissionEntry) -> Outcome {
        let (sqid, cid) = (entry.cdw10 as u16, (entry.cdw10 >> 16) as u16);
        if !self.sqs.contains_key(&sqid) {
            return Err(StatusCode::InvalidField.into());
        }
        if sqid == 0
            && let Some(at) = self.aers.iter().position(|aer| *aer == cid)
        {
            let room = self.cqs.get(&0).is_some_and(CompletionQueue::has_room);
            if !room {
                return Ok(1);
            }
            self.aers.remove(at);
            if let Some(cq) = self.cqs.get_mut(&0) {
                cq.reserved += 1;
            }
            self.complete(0, 0, cid, Err(StatusCode::AbortRequested.into()));
            return Ok(0);
        }
        let Some(at) = self.parked.iter().position(|parked| parked.sqid == sqid && parked.entry.cid == cid) else {
            return Ok(1);
        };
        let parked = self.parked.remove(at);
        self.complete(sqid, parked.cqid, cid, Err(StatusCode::AbortRequested.into()));
        Ok(0)
    }

    fn async_event_request(&mut self, entry: &SubmissionEntry) -> Execution {
        if self.aers.len() >= MAX_ASYNC_EVENTS {
            return StatusCode::AsyncEventLimitExceeded.into();
        }
        self.aers.push_back(entry.cid);
        Execution::Outstanding
    }
}
