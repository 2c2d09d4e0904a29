//! Submission and completion queues of one controller.

use crate::command::{CompletionEntry, SubmissionEntry};
use crate::status::{Status, StatusCode};
use crate::wire::WireField;

use super::dma::Dma;

/// Guest memory that holds a queue is not there: the controller can only fail (CSTS.CFS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueGone;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SubmissionQueue {
    pub qid: u16,
    pub base: u64,
    /// Number of entries, 2 to 4096.
    pub entries: u16,
    pub cqid: u16,
    pub priority: u8,
    pub head: u16,
    pub tail: u16,
}

impl SubmissionQueue {
    pub(crate) fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// Takes the entry at the head.
    pub(crate) fn fetch(&mut self, dma: &Dma) -> Result<SubmissionEntry, QueueGone> {
        let mut raw = [0u8; 64];
        let at = self.base.checked_add(u64::from(self.head) * 64).ok_or(QueueGone)?;
        dma.read(at, &mut raw).map_err(|_| QueueGone)?;
        self.head = (self.head + 1) % self.entries;
        Ok(SubmissionEntry::decode(&raw))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CompletionQueue {
    pub qid: u16,
    pub base: u64,
    /// Number of entries, 2 to 4096.
    pub entries: u16,
    pub head: u16,
    pub tail: u16,
    /// Phase of the next entry to be posted.
    pub phase: bool,
    pub vector: u16,
    pub interrupts: bool,
    /// Slots kept for commands that were fetched and are not completed yet.
    pub reserved: u16,
}

impl CompletionQueue {
    /// Entries posted that the host has not taken.
    pub(crate) fn used(&self) -> u16 {
        (self.tail + self.entries - self.head) % self.entries
    }

    /// Whether one more command may be fetched whose completion goes here.
    pub(crate) fn has_room(&self) -> bool {
        u32::from(self.used()) + u32::from(self.reserved) < u32::from(self.entries) - 1
    }

    /// Moves the head to what the host wrote. `false` for a value that passes the tail or leaves the queue.
    pub(crate) fn consume(&mut self, head: u32) -> bool {
        let Some(head) = u16::try_from(head).ok().filter(|head| *head < self.entries) else { return false };
        let taken = (head + self.entries - self.head) % self.entries;
        if taken > self.used() {
            return false;
        }
        self.head = head;
        true
    }

    /// Posts one entry. The caller made sure that there is room.
    pub(crate) fn post(&mut self, dma: &Dma, completion: &Completed) -> Result<(), QueueGone> {
        let at = self.base.checked_add(u64::from(self.tail) * 16).ok_or(QueueGone)?;
        let mut entry = CompletionEntry {
            dw0: completion.result as u32,
            dw1: (completion.result >> 32) as u32,
            sq_head: completion.sq_head,
            sq_id: completion.sqid,
            cid: completion.cid,
            status_and_phase: 0,
        };
        entry.set_status(completion.status, self.phase);
        let raw = entry.encode();
        let (head, last) = raw.split_at(12);
        // The phase goes last and with release ordering: whoever sees it sees the entry and the data.
        dma.write(at, head).map_err(|_| QueueGone)?;
        dma.store_u32(at + 12, u32::load(last)).map_err(|_| QueueGone)?;
        self.tail += 1;
        if self.tail == self.entries {
            self.tail = 0;
            self.phase = !self.phase;
        }
        Ok(())
    }
}

/// A completion on its way into a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Completed {
    pub sqid: u16,
    pub sq_head: u16,
    pub cid: u16,
    pub result: u64,
    pub status: Status,
}

/// Why a command failed, with what its result says beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub code: StatusCode,
    pub result: u64,
}

impl From<StatusCode> for Failure {
    fn from(code: StatusCode) -> Self {
        Self { code, result: 0 }
    }
}

/// What executing a command gave: its result, `DW0 | DW1 << 32`.
pub(crate) type Outcome = Result<u64, Failure>;

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(head: u16, tail: u16) -> CompletionQueue {
        let (qid, base, entries) = (1, 0, 4);
        CompletionQueue { qid, base, entries, head, tail, phase: true, vector: 0, interrupts: true, reserved: 0 }
    }

    #[test]
    fn room_counts_what_is_kept() {
        let mut cq = queue(0, 2);
        assert!(cq.has_room());
        cq.reserved = 1;
        assert!(!cq.has_room());
        assert!(cq.consume(1) && cq.has_room());
    }

    #[test]
    fn a_head_beyond_the_tail_is_refused() {
        let mut cq = queue(0, 2);
        assert!(!cq.consume(3) && !cq.consume(4) && !cq.consume(u32::MAX));
        assert_eq!(cq.head, 0);
        assert!(cq.consume(2));
    }
}
