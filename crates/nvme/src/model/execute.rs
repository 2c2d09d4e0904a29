//! From doorbell to completion: fetching, faults, parking, posting.

use std::time::{Duration, Instant};

use super::engine::{Engine, Parked, Parking, Run, Suspension};
use super::events::Event;
use super::faults::{CommandSet, FaultAction};
use super::queue::{Completed, Outcome};
use super::signal::lock;
use crate::command::SubmissionEntry;
use crate::status::{Status, StatusCode};

/// What executing a command came to.
#[derive(Debug)]
pub(crate) enum Execution {
    /// Complete it now.
    Done(Outcome),
    /// Complete it after so long.
    After(Duration, Outcome),
    /// Complete it when mail with this token comes.
    Mail(u64),
    /// It stays outstanding by itself (an asynchronous event request).
    Outstanding,
}

impl From<Outcome> for Execution {
    fn from(outcome: Outcome) -> Self {
        Self::Done(outcome)
    }
}

impl From<StatusCode> for Execution {
    fn from(code: StatusCode) -> Self {
        Self::Done(Err(code.into()))
    }
}

/// The status of a failed command. Retrying helps only where the cause may go away by itself.
fn failed(code: StatusCode) -> Status {
    let passing = matches!(
        code,
        StatusCode::InternalError
            | StatusCode::AbortRequested
            | StatusCode::AbortedSqDeletion
            | StatusCode::NotEnoughResources
            | StatusCode::WriteFault
            | StatusCode::AbortLimitExceeded
            | StatusCode::AsyncEventLimitExceeded
            | StatusCode::ControllerSuspended
            | StatusCode::ControllerNotSuspended
    );
    Status { dnr: !passing, ..Status::from(code) }
}

impl Engine {
    /// One step of the worker: registers, doorbells, what is due, and at most one new command. Returns whether there may be
    /// another command right away.
    pub(crate) fn step(&mut self) -> bool {
        self.apply_registers();
        self.apply_doorbells();
        self.finish_parked();
        self.take_mail();
        self.post_events();
        let fetched = self.fetch_one();
        self.settle_suspension();
        fetched
    }

    /// Tells the host, after a batch of steps: one interrupt for many completions.
    pub(crate) fn flush_interrupts(&mut self) {
        if self.suspension != Suspension::Suspended {
            self.vectors.deliver(self.sink.as_ref());
        }
    }

    /// When the next parked command is due.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let due = |parked: &Parked| match parked.parking {
            Parking::RunAt(at) | Parking::FinishAt(at, _) => Some(at),
            Parking::Hang(_) | Parking::Mail(_) => None,
        };
        self.dma.as_ref().and_then(|_| self.parked.iter().filter_map(due).chain(self.limiter.deadline()).min())
    }

    pub(crate) fn apply_doorbells(&mut self) {
        if self.run != Run::Ready {
            return;
        }
        loop {
            let mut front = lock(&self.front);
            // A reset was asked for: what was rung before it means nothing any more. A sealed state does not change.
            if front.reset_pending() || front.sealed() {
                return;
            }
            if front.take_stray_doorbell() {
                self.events.add(Event::INVALID_DOORBELL_REGISTER);
            }
            let Some(rung) = front.take_doorbell() else { return };
            drop(front);
            let qid = rung.index / 2;
            let event = if rung.index % 2 == 0 {
                match self.sqs.get_mut(&qid) {
                    None => Some(Event::INVALID_DOORBELL_REGISTER),
                    Some(sq) => match u16::try_from(rung.value).ok().filter(|tail| *tail < sq.entries) {
                        None => Some(Event::INVALID_DOORBELL_VALUE),
                        Some(tail) => {
                            sq.tail = tail;
                            None
                        }
                    },
                }
            } else {
                match self.cqs.get_mut(&qid) {
                    None => Some(Event::INVALID_DOORBELL_REGISTER),
                    Some(cq) => (!cq.consume(rung.value)).then_some(Event::INVALID_DOORBELL_VALUE),
                }
            };
            if let Some(event) = event {
                self.events.add(event);
            }
        }
    }

    /// The submission queue to fetch from: admin first, then round robin (CAP.AMS = 0). A queue whose completion queue has
    /// no room waits.
    fn next_queue(&self) -> Option<u16> {
        let ready = |qid: u16| {
            let sq = self.sqs.get(&qid)?;
            let room = self.cqs.get(&sq.cqid).is_some_and(super::queue::CompletionQueue::has_room);
            (!sq.is_empty() && room).then_some(qid)
        };
        ready(0).or_else(|| {
            let from = self.next_sq.max(1);
            self.sqs.range(from..).chain(self.sqs.range(1..from)).find_map(|(qid, _)| ready(*qid))
        })
    }

    fn fetch_one(&mut self) -> bool {
        self.limiter.release();
        if self.run != Run::Ready || self.suspension != Suspension::Active {
            return false;
        }
        let Some(sqid) = self.next_queue() else { return false };
        // The admin queue came first, so nothing else is ready.
        if sqid != 0 && self.limiter.holds() {
            return false;
        }
        let (Some(dma), Some(sq)) = (&self.dma, self.sqs.get_mut(&sqid)) else { return false };
        let Ok(entry) = sq.fetch(dma) else {
            self.fail();
            return false;
        };
        let cqid = sq.cqid;
        if sqid != 0 {
            self.next_sq = sqid.saturating_add(1);
        }
        if let Some(cq) = self.cqs.get_mut(&cqid) {
            cq.reserved += 1;
        }
        let outstanding = self.parked.iter().any(|parked| parked.sqid == sqid && parked.entry.cid == entry.cid);
        if outstanding || (sqid == 0 && self.aers.contains(&entry.cid)) {
            self.complete(sqid, cqid, entry.cid, Err(StatusCode::CommandIdConflict.into()));
            return true;
        }
        let set = if sqid == 0 { CommandSet::Admin } else { CommandSet::Io };
        match self.faults.strike(self.id.cntlid, set, entry.opcode) {
            None => self.execute(sqid, cqid, &entry),
            Some((id, action)) => match action {
                FaultAction::Status(status) => self.post(sqid, cqid, entry.cid, 0, status),
                FaultAction::DelayMs(ms) => {
                    let at = Instant::now() + Duration::from_millis(ms.into());
                    self.park(sqid, cqid, &entry, Parking::RunAt(at));
                }
                FaultAction::Hang => self.park(sqid, cqid, &entry, Parking::Hang(id)),
                FaultAction::DropCompletion => {
                    if !matches!(self.run_command(sqid, &entry), Execution::Outstanding) {
                        self.unreserve(cqid);
                    }
                }
                FaultAction::Repeat => {
                    let first = self.run_command(sqid, &entry);
                    if let Some(cq) = self.cqs.get_mut(&cqid)
                        && cq.has_room()
                        && !matches!(first, Execution::Outstanding | Execution::Mail(_))
                    {
                        cq.reserved += 1;
                        self.conclude(sqid, cqid, &entry, first);
                    }
                    self.execute(sqid, cqid, &entry);
                }
            },
        }
        true
    }

    fn execute(&mut self, sqid: u16, cqid: u16, entry: &SubmissionEntry) {
        let execution = self.run_command(sqid, entry);
        self.conclude(sqid, cqid, entry, execution);
    }

    fn run_command(&mut self, sqid: u16, entry: &SubmissionEntry) -> Execution {
        // PRPs only (SGLS = 0) and no fused operations (FUSES = 0).
        if entry.flags != 0 {
            return StatusCode::InvalidField.into();
        }
        if sqid == 0 {
            return self.admin(entry);
        }
        let before = self.stats.data_bytes();
        let execution = self.io(entry);
        self.limiter.charge(self.stats.data_bytes().wrapping_sub(before));
        execution
    }

    fn conclude(&mut self, sqid: u16, cqid: u16, entry: &SubmissionEntry, execution: Execution) {
        match execution {
            Execution::Done(outcome) => self.complete(sqid, cqid, entry.cid, outcome),
            Execution::After(delay, outcome) => {
                self.park(sqid, cqid, entry, Parking::FinishAt(Instant::now() + delay, outcome));
            }
            Execution::Mail(token) => self.park(sqid, cqid, entry, Parking::Mail(token)),
            Execution::Outstanding => self.unreserve(cqid),
        }
    }

    fn park(&mut self, sqid: u16, cqid: u16, entry: &SubmissionEntry, parking: Parking) {
        self.parked.push(Parked { sqid, cqid, entry: *entry, parking });
    }

    fn unreserve(&mut self, cqid: u16) {
        if let Some(cq) = self.cqs.get_mut(&cqid) {
            cq.reserved = cq.reserved.saturating_sub(1);
        }
    }

    fn finish_parked(&mut self) {
        // Without guest memory nothing can be completed: it waits for memory, or for a reset.
        if self.parked.is_empty() || self.dma.is_none() {
            return;
        }
        let now = Instant::now();
        let faults = std::sync::Arc::clone(&self.faults);
        let mut due: Vec<Parked> = self
            .parked
            .extract_if(.., |parked| match &parked.parking {
                Parking::RunAt(at) | Parking::FinishAt(at, _) => *at <= now,
                Parking::Hang(id) => !faults.exists(*id),
                Parking::Mail(_) => false,
            })
            .collect();
        due.sort_by_key(|parked| match parked.parking {
            Parking::RunAt(at) | Parking::FinishAt(at, _) => at,
            Parking::Hang(_) | Parking::Mail(_) => now,
        });
        for parked in due {
            // A reset or a failure in between has forgotten the queues, and with them this command.
            if self.run != Run::Ready {
                return;
            }
            match parked.parking {
                Parking::FinishAt(_, outcome) => self.complete(parked.sqid, parked.cqid, parked.entry.cid, outcome),
                _ => self.execute(parked.sqid, parked.cqid, &parked.entry),
            }
        }
    }

    fn take_mail(&mut self) {
        if self.dma.is_none() {
            return;
        }
        for (token, outcome) in self.mailbox.take() {
            let at = self.parked.iter().position(|parked| matches!(parked.parking, Parking::Mail(t) if t == token));
            if let Some(at) = at {
                let parked = self.parked.remove(at);
                self.complete(parked.sqid, parked.cqid, parked.entry.cid, outcome);
            }
        }
    }

    /// Completes a command that holds a slot of its completion queue.
    pub(crate) fn complete(&mut self, sqid: u16, cqid: u16, cid: u16, outcome: Outcome) {
        let (status, result) = match outcome {
            Ok(result) => (Status::SUCCESS, result),
            Err(failure) => (failed(failure.code), failure.result),
        };
        self.post(sqid, cqid, cid, result, status);
    }

    fn post(&mut self, sqid: u16, cqid: u16, cid: u16, result: u64, status: Status) {
        if !status.is_success() {
            self.errors.note(sqid, cid, status);
        }
        let sq_head = self.sqs.get(&sqid).map_or(0, |sq| sq.head);
        self.unreserve(cqid);
        let (Some(cq), Some(dma)) = (self.cqs.get_mut(&cqid), &self.dma) else { return };
        if cq.post(dma, &Completed { sqid, sq_head, cid, result, status }).is_err() {
            self.fail();
            return;
        }
        if cq.interrupts {
            let vector = cq.vector;
            self.vectors.set_pending(vector);
        }
    }

    /// Completes asynchronous event requests for what has happened.
    fn post_events(&mut self) {
        while self.run == Run::Ready && self.suspension == Suspension::Active && self.dma.is_some() {
            let config = self.features.async_event_config();
            let room = self.cqs.get(&0).is_some_and(super::queue::CompletionQueue::has_room);
            if self.aers.is_empty() || !room {
                return;
            }
            let Some(event) = self.events.take(config) else { return };
            let Some(cid) = self.aers.pop_front() else { return };
            if let Some(cq) = self.cqs.get_mut(&0) {
                cq.reserved += 1;
            }
            self.complete(0, 0, cid, Ok(event.result()));
        }
    }

    /// A token for [`Execution::Mail`].
    pub(crate) fn token(&mut self) -> u64 {
        self.next_token = self.next_token.wrapping_add(1);
        self.next_token
    }
}
