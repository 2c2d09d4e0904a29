//! The payload of PAGES: run count u32, page size u32, the runs, and then the bytes of the data runs one after another.

use alloc::vec::Vec;

use super::error::{PagesFault, StreamErrorReason};
use super::limits::Limits;
use super::{u32_at, u64_at};
use crate::dirty::page_size_is_valid;

/// Bytes of a PAGES payload before the runs.
pub const PAGES_PREFIX_BYTES: usize = 8;
/// Bytes of one run in the table: gpa u64, length u32, kind u32.
pub const PAGES_RUN_BYTES: usize = 16;

/// Whether a run carries its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum RunKind {
    /// Its bytes follow.
    Data = 0,
    /// Every byte is 0; nothing follows.
    Zero = 1,
}

/// Pages next to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagesRun {
    /// Guest-physical address, a multiple of the page size.
    pub gpa: u64,
    /// Bytes, a multiple of the page size, not 0.
    pub len: u32,
    /// What follows for it.
    pub kind: RunKind,
}

/// What the first 8 bytes of a PAGES payload say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagesPrefix {
    /// Bytes in a page.
    pub page_size_bytes: u32,
    /// Runs in the table, from 1 to the limit.
    pub runs: u32,
    /// Bytes up to the first data byte, these 8 included; not more than the payload.
    pub table_bytes: usize,
}

/// What a valid table adds up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagesSummary {
    /// Bytes in a page.
    pub page_size_bytes: u32,
    /// Bytes up to the first data byte.
    pub table_bytes: usize,
    /// Bytes of the data runs.
    pub data_bytes: u64,
    /// Pages, zero pages included.
    pub pages: u64,
}

/// A PAGES frame, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages<'a> {
    /// What it adds up to.
    pub summary: PagesSummary,
    /// The runs, by ascending address, without overlap.
    pub runs: &'a [PagesRun],
    /// The bytes of the data runs, one after another.
    pub data: &'a [u8],
}

impl<'a> Pages<'a> {
    /// Calls `f` for each run, with its bytes where it carries them.
    pub fn each(&self, mut f: impl FnMut(&PagesRun, Option<&'a [u8]>)) {
        let mut rest = self.data;
        for run in self.runs {
            match run.kind {
                RunKind::Zero => f(run, None),
                RunKind::Data => {
                    // The table was checked against the length of the data.
                    let Some((bytes, after)) = rest.split_at_checked(run.len as usize) else { return };
                    f(run, Some(bytes));
                    rest = after;
                }
            }
        }
    }
}

fn fault<T>(fault: PagesFault) -> Result<T, StreamErrorReason> {
    Err(StreamErrorReason::Pages(fault))
}

/// Reads the first 8 bytes of a payload of `payload_bytes`, so that a fast path knows how long the table is.
///
/// # Errors
/// `Pages`: the page size, the run count, or a table that does not fit.
pub fn decode_pages_prefix(
    prefix: &[u8; PAGES_PREFIX_BYTES],
    payload_bytes: u32,
    limits: &Limits,
) -> Result<PagesPrefix, StreamErrorReason> {
    let (runs, page_size_bytes) = (u32_at(prefix, 0), u32_at(prefix, 4));
    if !page_size_is_valid(u64::from(page_size_bytes)) {
        return fault(PagesFault::PageSize(page_size_bytes));
    }
    if runs == 0 || runs > limits.max_runs {
        return fault(PagesFault::RunCount(runs));
    }
    let table_bytes = PAGES_PREFIX_BYTES as u64 + u64::from(runs) * PAGES_RUN_BYTES as u64;
    match usize::try_from(table_bytes) {
        Ok(bytes) if table_bytes <= u64::from(payload_bytes) => {
            Ok(PagesPrefix { page_size_bytes, runs, table_bytes: bytes })
        }
        _ => fault(PagesFault::Table),
    }
}

/// Reads and checks a whole table into `runs` (whose former content goes). `table` is the first
/// [`PagesPrefix::table_bytes`] bytes of a payload of `payload_bytes`, or more of it.
///
/// # Errors
/// See [`PagesFault`].
pub fn decode_pages_table(
    table: &[u8],
    payload_bytes: u32,
    limits: &Limits,
    runs: &mut Vec<PagesRun>,
) -> Result<PagesSummary, StreamErrorReason> {
    runs.clear();
    let Some(prefix) = table.first_chunk::<PAGES_PREFIX_BYTES>() else { return fault(PagesFault::Table) };
    let prefix = decode_pages_prefix(prefix, payload_bytes, limits)?;
    let Some(raw_runs) = table.get(PAGES_PREFIX_BYTES..prefix.table_bytes) else { return fault(PagesFault::Table) };
    // Capped by the limit and by bytes that are here.
    runs.reserve(raw_runs.len() / PAGES_RUN_BYTES);
    for raw in raw_runs.as_chunks::<PAGES_RUN_BYTES>().0 {
        let kind = match u32_at(raw, 12) {
            0 => RunKind::Data,
            1 => RunKind::Zero,
            other => return fault(PagesFault::Kind(other)),
        };
        runs.push(PagesRun { gpa: u64_at(raw, 0), len: u32_at(raw, 8), kind });
    }
    let summary = summarise(prefix.page_size_bytes, runs, limits)?;
    if summary.data_bytes != u64::from(payload_bytes) - summary.table_bytes as u64 {
        return fault(PagesFault::DataLength);
    }
    Ok(summary)
}

/// Appends the table for `runs` and says how many bytes of data have to follow.
///
/// # Errors
/// See [`PagesFault`]: what a reader would refuse is not written. `FrameTooLarge` where table and data exceed the limit.
pub fn encode_pages_table(
    page_size_bytes: u32,
    runs: &[PagesRun],
    limits: &Limits,
    out: &mut Vec<u8>,
) -> Result<PagesSummary, StreamErrorReason> {
    let summary = summarise(page_size_bytes, runs, limits)?;
    let length = summary.data_bytes + summary.table_bytes as u64;
    if length > u64::from(limits.max_frame_bytes) {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        return Err(StreamErrorReason::FrameTooLarge { length, limit: limits.max_frame_bytes });
    }
    out.reserve(summary.table_bytes);
    // At most `max_runs`, a u32.
    out.extend_from_slice(&(runs.len() as u32).to_le_bytes());
    out.extend_from_slice(&page_size_bytes.to_le_bytes());
    for run in runs {
        out.extend_from_slice(&run.gpa.to_le_bytes());
        out.extend_from_slice(&run.len.to_le_bytes());
        out.extend_from_slice(&(run.kind as u32).to_le_bytes());
    }
    Ok(summary)
}

/// The rules that hold for a table on both sides.
fn summarise(page_size_bytes: u32, runs: &[PagesRun], limits: &Limits) -> Result<PagesSummary, StreamErrorReason> {
    if !page_size_is_valid(u64::from(page_size_bytes)) {
        return fault(PagesFault::PageSize(page_size_bytes));
    }
    if runs.is_empty() || runs.len() > limits.max_runs as usize {
        return fault(PagesFault::RunCount(u32::try_from(runs.len()).unwrap_or(u32::MAX)));
    }
    let (mut data_bytes, mut pages, mut free_from) = (0u64, 0u64, 0u64);
    for run in runs {
        if run.len == 0 {
            return fault(PagesFault::Empty);
        }
        if !(run.gpa | u64::from(run.len)).is_multiple_of(u64::from(page_size_bytes)) {
            return fault(PagesFault::Misaligned(run.gpa));
        }
        // Ascending order makes the check for overlap one comparison.
        if run.gpa < free_from {
            return fault(PagesFault::Overlap(run.gpa));
        }
        free_from = match run.gpa.checked_add(u64::from(run.len)) {
            Some(end) => end,
            None => return fault(PagesFault::Overflow(run.gpa)),
        };
        // At most 2^32 runs of less than 2^32 bytes: no overflow.
        pages += u64::from(run.len / page_size_bytes);
        if run.kind == RunKind::Data {
            data_bytes += u64::from(run.len);
        }
    }
    let table_bytes = PAGES_PREFIX_BYTES + runs.len() * PAGES_RUN_BYTES;
    Ok(PagesSummary { page_size_bytes, table_bytes, data_bytes, pages })
}
