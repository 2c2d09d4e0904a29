//! Log pages, and the counters that they show.

use std::collections::VecDeque;
use std::time::Instant;

use super::engine::Engine;
use super::queue::Outcome;
use crate::command::{SubmissionEntry, feature, io_opcode, opcode};
use crate::counts::bytes_of_numd_zeroes_based;
use crate::status::{Status, StatusCode};

/// Entries of the error log (Identify ELPE + 1).
pub(crate) const ERROR_ENTRIES: usize = 64;
/// Composite temperature in kelvin: a file has none, this is a plausible room.
const TEMPERATURE: u16 = 300;
/// Firmware revision, in slot 1.
const FIRMWARE: &[u8; 8] = b"1.0     ";

mod lid {
    pub const SUPPORTED: u8 = 0x00;
    pub const ERRORS: u8 = 0x01;
    pub const SMART: u8 = 0x02;
    pub const FIRMWARE: u8 = 0x03;
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    pub const EFFECTS: u8 = 0x05;
    pub const FEATURE_EFFECTS: u8 = 0x12;
    pub const ALL: [u8; 7] = [SUPPORTED, ERRORS, SMART, FIRMWARE, CHANGED_NAMESPACES, EFFECTS, FEATURE_EFFECTS];
}

/// I/O counters since the controller was made.
#[derive(Clone, Debug)]
pub(crate) struct Stats {
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub reads: u64,
    pub writes: u64,
    pub started: Instant,
}

impl Stats {
    /// Bytes of data that commands moved, either way.
    pub fn data_bytes(&self) -> u64 {
        self.bytes_read.wrapping_add(self.bytes_written)
    }
}

impl Default for Stats {
    fn default() -> Self {
        Self { bytes_read: 0, bytes_written: 0, reads: 0, writes: 0, started: Instant::now() }
    }
}

#[derive(Clone, Copy, Debug)]
struct ErrorEntry {
    number: u64,
    sqid: u16,
    cid: u16,
    status: Status,
}

/// The last errors, newest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct ErrorLog {
    entries: VecDeque<ErrorEntry>,
    count: u64,
}

impl ErrorLog {
    pub(crate) fn note(&mut self, sqid: u16, cid: u16, status: Status) {
        self.count += 1;
        self.entries.push_front(ErrorEntry { number: self.count, sqid, cid, status });
        self.entries.truncate(ERROR_ENTRIES);
    }

    /// An error that belongs to no command.
    pub(crate) fn note_internal(&mut self) {
        self.note(0xffff, 0xffff, StatusCode::InternalError.into());
    }
}

/// Writes little-endian fields into a page; what would leave it is dropped.
fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    page.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
}

impl Engine {
    pub(crate) fn get_log_page(&mut self, entry: &SubmissionEntry) -> Outcome {
        let numd = entry.cdw10 >> 16 | entry.cdw11 << 16;
        let bytes = bytes_of_numd_zeroes_based(numd);
        let offset = u64::from(entry.cdw12) | u64::from(entry.cdw13) << 32;
        // Bit 23 of CDW14 makes the offset an index, which no page here has.
        if !offset.is_multiple_of(4) || entry.cdw14 & 1 << 23 != 0 || bytes > self.max_transfer() as u64 {
            return Err(StatusCode::InvalidField.into());
        }
        let id = entry.cdw10 as u8;
        let page = match id {
            lid::SUPPORTED => supported(),
            lid::ERRORS => self.error_page(),
            lid::SMART => self.smart_page(),
            lid::FIRMWARE => firmware(),
            lid::CHANGED_NAMESPACES => self.changed_page(),
            lid::EFFECTS => effects(self.subsystem.is_some()),
            lid::FEATURE_EFFECTS => feature_effects(),
            _ => return Err(StatusCode::InvalidLogPage.into()),
        };
        let start = usize::try_from(offset).ok().filter(|at| *at <= page.len()).ok_or(StatusCode::InvalidField)?;
        let len = usize::try_from(bytes).map_err(|_| StatusCode::InvalidField)?;
        let mut out = page.get(start..).unwrap_or_default().to_vec();
        // Beyond the end of a page the specification leaves the content open; zeroes tell nothing.
        out.resize(len, 0);
        let done = self.reply(entry, &out)?;
        if entry.cdw10 & 1 << 15 == 0 {
            self.events.unmask(id);
        }
        Ok(done)
    }

    fn error_page(&self) -> Vec<u8> {
        let mut page = vec![0; ERROR_ENTRIES * 64];
        for (slot, error) in page.chunks_exact_mut(64).zip(&self.errors.entries) {
            put(slot, 0, &error.number.to_le_bytes());
            put(slot, 8, &error.sqid.to_le_bytes());
            put(slot, 10, &error.cid.to_le_bytes());
            put(slot, 12, &(error.status.field() << 1).to_le_bytes());
            put(slot, 14, &0xffffu16.to_le_bytes());
        }
        page
    }

    fn smart_page(&self) -> Vec<u8> {
        let mut page = vec![0; 512];
        put(&mut page, 1, &TEMPERATURE.to_le_bytes());
        put(&mut page, 3, &[100, 10]);
        // Data units are thousands of 512 bytes, rounded up.
        put(&mut page, 32, &self.stats.bytes_read.div_ceil(512_000).to_le_bytes());
        put(&mut page, 48, &self.stats.bytes_written.div_ceil(512_000).to_le_bytes());
        put(&mut page, 64, &self.stats.reads.to_le_bytes());
        put(&mut page, 80, &self.stats.writes.to_le_bytes());
        put(&mut page, 112, &1u64.to_le_bytes());
        put(&mut page, 128, &(self.stats.started.elapsed().as_secs() / 3600).to_le_bytes());
        put(&mut page, 176, &self.errors.count.to_le_bytes());
        page
    }

    fn changed_page(&self) -> Vec<u8> {
        crate::identify::encode_namespace_list(&self.events.changed).to_vec()
    }
}

fn supported() -> Vec<u8> {
    let mut page = vec![0; 1024];
    for id in lid::ALL {
        put(&mut page, usize::from(id) * 4, &1u32.to_le_bytes());
    }
    page
}

fn firmware() -> Vec<u8> {
    let mut page = vec![0; 512];
    put(&mut page, 0, &[1]);
    put(&mut page, 8, FIRMWARE);
    page
}

/// Commands Supported and Effects. Only CSUPP (and LBCC, which does not freeze anything): with CSE bits Linux would freeze the I/O
/// of the controlling function during a migration command, and wait for ever for I/O of a suspended one.
fn effects(controlling: bool) -> Vec<u8> {
    let mut page = vec![0; 4096];
    let common = [
        opcode::DELETE_IO_SQ,
        opcode::CREATE_IO_SQ,
        opcode::GET_LOG_PAGE,
        opcode::DELETE_IO_CQ,
        opcode::CREATE_IO_CQ,
        opcode::IDENTIFY,
        opcode::ABORT,
        opcode::SET_FEATURES,
        opcode::GET_FEATURES,
        opcode::ASYNC_EVENT_REQUEST,
    ];
    let privileged = [
        opcode::NAMESPACE_MANAGEMENT,
        opcode::NAMESPACE_ATTACHMENT,
        opcode::VIRTUALIZATION_MANAGEMENT,
        opcode::TRACK_SEND,
        opcode::TRACK_RECEIVE,
        opcode::MIGRATION_SEND,
        opcode::MIGRATION_RECEIVE,
    ];
    for code in common.iter().chain(privileged.iter().filter(|_| controlling)) {
        put(&mut page, usize::from(*code) * 4, &1u32.to_le_bytes());
    }
    for (code, effects) in [
        (io_opcode::FLUSH, 1u32),
        (io_opcode::WRITE, 3),
        (io_opcode::READ, 1),
        (io_opcode::WRITE_ZEROES, 3),
        (io_opcode::DATASET_MANAGEMENT, 3),
    ] {
        put(&mut page, 1024 + usize::from(code) * 4, &effects.to_le_bytes());
    }
    page
}

/// Feature Identifiers Supported and Effects: FSUPP and controller scope.
fn feature_effects() -> Vec<u8> {
    let mut page = vec![0; 1024];
    for fid in [
        feature::ARBITRATION,
        feature::POWER_MANAGEMENT,
        feature::TEMPERATURE_THRESHOLD,
        feature::ERROR_RECOVERY,
        feature::VOLATILE_WRITE_CACHE,
        feature::NUMBER_OF_QUEUES,
        feature::INTERRUPT_COALESCING,
        feature::INTERRUPT_VECTOR_CONFIGURATION,
        feature::WRITE_ATOMICITY,
        feature::ASYNC_EVENT_CONFIGURATION,
    ] {
        put(&mut page, usize::from(fid) * 4, &(1u32 | 1 << 21).to_le_bytes());
    }
    page
}
