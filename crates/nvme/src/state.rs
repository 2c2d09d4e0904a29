//! The controller state that Migration Receive gives and Migration Send sets (Base 2.1, "Controller State data structure"):
//! a header, the NVMe part (I/O queues), and a vendor specific part ([`crate::vendor_state`]).

use crate::wire::{DecodeError, records};
use crate::wire_struct;

/// The version of the structures here.
pub const STATE_VERSION: u16 = 0;

/// The versions that this crate reads.
pub const KNOWN_STATE_VERSIONS: [u16; 1] = [STATE_VERSION];

/// The largest controller state that is accepted, in bytes: 65535 queue pairs take 3 MiB.
pub const MAX_STATE_BYTES: u64 = 64 << 20;

wire_struct! {
    /// Header of the controller state.
    pub struct StateHeader [48] {
        /// Version, 0.
        version: u16 = 0,
        /// Bit 0: the controller was suspended throughout.
        attributes: u8 = 2,
        /// Size of the NVMe part in dwords.
        nvme_dwords: u128 = 16,
        /// Size of the vendor specific part in dwords.
        vendor_dwords: u128 = 32,
    }
}

impl StateHeader {
    /// Bit 0 of `attributes`.
    pub const SUSPENDED: u8 = 1;

    /// Whether the controller was suspended throughout, so that the state is consistent.
    #[must_use]
    pub fn suspended(&self) -> bool {
        self.attributes & Self::SUSPENDED != 0
    }

    /// Length of the whole state in bytes, header included.
    ///
    /// # Errors
    /// More than [`MAX_STATE_BYTES`].
    pub fn total_bytes(&self) -> Result<u64, DecodeError> {
        let dwords = self.nvme_dwords.saturating_add(self.vendor_dwords);
        let value = dwords.saturating_mul(4).saturating_add(Self::SIZE as u128);
        u64::try_from(value).ok().filter(|bytes| *bytes <= MAX_STATE_BYTES).ok_or(DecodeError::Limit {
            what: "controller state size",
            value,
            limit: MAX_STATE_BYTES,
        })
    }
}

wire_struct! {
    /// Header of the NVMe part.
    pub struct NvmeStateHeader [8] {
        /// Version, 0.
        version: u16 = 0,
        /// Number of I/O submission queues.
        submission_queues: u16 = 2,
        /// Number of I/O completion queues.
        completion_queues: u16 = 4,
    }
}

wire_struct! {
    /// State of one I/O submission queue.
    pub struct SqState [24] {
        /// PRP entry 1 of the command that created it.
        prp1: u64 = 0,
        /// Size, 0's-based.
        size: u16 = 8,
        /// Queue identifier.
        qid: u16 = 10,
        /// Its completion queue.
        cqid: u16 = 12,
        /// Bit 0 physically contiguous, bits 2:1 priority.
        attributes: u16 = 14,
        /// Head pointer.
        head: u16 = 16,
        /// Tail pointer: the doorbell as last written.
        tail: u16 = 18,
    }
}

wire_struct! {
    /// State of one I/O completion queue.
    pub struct CqState [24] {
        /// PRP entry 1 of the command that created it.
        prp1: u64 = 0,
        /// Size, 0's-based.
        size: u16 = 8,
        /// Queue identifier.
        qid: u16 = 10,
        /// Head pointer: the doorbell as last written.
        head: u16 = 12,
        /// Tail pointer.
        tail: u16 = 14,
        /// Bit 0 physically contiguous, bit 1 interrupts enabled, bit 2 phase of slot 0, bits 31:16 interrupt vector.
        attributes: u32 = 16,
    }
}

impl CqState {
    /// Bit 2 of `attributes`: the phase bit that is in slot 0 now.
    pub const SLOT_0_PHASE: u32 = 4;

    /// The interrupt vector.
    #[must_use]
    pub fn vector(&self) -> u16 {
        (self.attributes >> 16) as u16
    }

    /// The phase with which the controller posts its next entry, at the tail. Slot 0 was posted in this lap unless the tail is
    /// there again: then the next lap, with the opposite phase, starts.
    #[must_use]
    pub fn next_phase(&self) -> bool {
        let slot_0 = self.attributes & Self::SLOT_0_PHASE != 0;
        if self.tail == 0 { !slot_0 } else { slot_0 }
    }

    /// The slot 0 phase to report for a queue that posts its next entry with `next_phase` at `tail`.
    #[must_use]
    pub fn slot_0_phase(next_phase: bool, tail: u16) -> bool {
        if tail == 0 { !next_phase } else { next_phase }
    }
}

/// A whole controller state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControllerState {
    /// The controller was suspended throughout.
    pub suspended: bool,
    /// I/O submission queues, by ascending identifier.
    pub submission_queues: Vec<SqState>,
    /// I/O completion queues, by ascending identifier.
    pub completion_queues: Vec<CqState>,
    /// Vendor specific part, whole dwords.
    pub vendor: Vec<u8>,
}

const QUEUE_DWORDS: u128 = 6;
const NVME_HEADER_DWORDS: u128 = 2;

impl ControllerState {
    /// The bytes. The vendor part is padded with zeroes to whole dwords.
    ///
    /// # Errors
    /// More than 65535 queues of a kind, or more than [`MAX_STATE_BYTES`].
    pub fn encode(&self) -> Result<Vec<u8>, DecodeError> {
        let count = |what, len: usize| {
            let limit = u64::from(u16::MAX);
            u16::try_from(len).map_err(|_| DecodeError::Limit { what, value: len as u128, limit })
        };
        let submission_queues = count("number of submission queues", self.submission_queues.len())?;
        let completion_queues = count("number of completion queues", self.completion_queues.len())?;
        let queues = u128::from(submission_queues) + u128::from(completion_queues);
        let header = StateHeader {
            version: STATE_VERSION,
            attributes: u8::from(self.suspended),
            nvme_dwords: NVME_HEADER_DWORDS + QUEUE_DWORDS * queues,
            vendor_dwords: self.vendor.len().div_ceil(4) as u128,
        };
        let total = header.total_bytes()? as usize;
        let mut out = Vec::with_capacity(total);
        out.extend_from_slice(&header.encode());
        out.extend_from_slice(
            &NvmeStateHeader { version: STATE_VERSION, submission_queues, completion_queues }.encode(),
        );
        self.submission_queues.iter().for_each(|q| out.extend_from_slice(&q.encode()));
        self.completion_queues.iter().for_each(|q| out.extend_from_slice(&q.encode()));
        out.extend_from_slice(&self.vendor);
        out.resize(total, 0);
        Ok(out)
    }

    /// Reads a whole state. Its parts have to fill `bytes` exactly.
    ///
    /// # Errors
    /// Cut short, too long, of an unknown version, or queues that are not in ascending order or contradict the sizes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let what = "controller state";
        let got = bytes.len() as u64;
        let truncated = |needed: u64| DecodeError::Truncated { what, needed, got };
        let (header, rest) = bytes.split_first_chunk::<48>().ok_or_else(|| truncated(48))?;
        let header = StateHeader::decode(header);
        if header.version != STATE_VERSION {
            return Err(DecodeError::Version { what, version: u32::from(header.version), known: 0 });
        }
        let total = header.total_bytes()?;
        if got < total {
            return Err(truncated(total));
        }
        if got > total {
            return Err(DecodeError::Trailing { what, extra: got - total });
        }
        // total_bytes() bounds both sizes, so this fits.
        let nvme_bytes = (header.nvme_dwords * 4) as usize;
        let (nvme, vendor) = rest.split_at_checked(nvme_bytes).ok_or_else(|| truncated(total))?;
        let (nvme_header, queues) = nvme.split_first_chunk::<8>().ok_or(DecodeError::Truncated {
            what: "NVMe controller state",
            needed: 8,
            got: nvme.len() as u64,
        })?;
        let nvme_header = NvmeStateHeader::decode(nvme_header);
        if nvme_header.version != STATE_VERSION {
            let version = u32::from(nvme_header.version);
            return Err(DecodeError::Version { what: "NVMe controller state", version, known: 0 });
        }
        let (nsq, ncq) = (usize::from(nvme_header.submission_queues), usize::from(nvme_header.completion_queues));
        if queues.len() != 24 * (nsq + ncq) {
            let why = format!("{nsq} submission and {ncq} completion queues do not take {} bytes", queues.len());
            return Err(DecodeError::Invalid { what: "NVMe controller state", why });
        }
        let (sqs, cqs) = queues.split_at_checked(24 * nsq).unwrap_or_default();
        let submission_queues: Vec<_> = records::<24>(sqs, nsq).map(SqState::decode).collect();
        let completion_queues: Vec<_> = records::<24>(cqs, ncq).map(CqState::decode).collect();
        ascending("submission queue", submission_queues.iter().map(|q| q.qid))?;
        ascending("completion queue", completion_queues.iter().map(|q| q.qid))?;
        Ok(Self { suspended: header.suspended(), submission_queues, completion_queues, vendor: vendor.to_vec() })
    }
}

/// Identifiers ascend and none is 0: the admin queue is not in the NVMe part.
fn ascending(what: &'static str, qids: impl Iterator<Item = u16>) -> Result<(), DecodeError> {
    let mut last = 0;
    for qid in qids {
        if qid <= last {
            return Err(DecodeError::Invalid { what, why: format!("identifier {qid} after {last}") });
        }
        last = qid;
    }
    Ok(())
}
