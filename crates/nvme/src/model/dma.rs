//! The one way into guest memory. Every address, length and list that a guest names is checked here; what fails is an
//! NVMe status, and nothing outside of the ranges that [`GuestMemory`] allows is touched.

use std::sync::Arc;

use towline_core::memory::{GuestMemory, MemoryError};

use super::tracking::Tracking;
use crate::status::StatusCode;
use crate::wire::WireField;

/// A contiguous piece of a data buffer in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// First guest address.
    pub gpa: u64,
    /// Length in bytes, never 0.
    pub len: usize,
}

/// Guest memory as one controller sees it. Every write is reported to the tracker, after it was made: a harvest in between
/// then hands the page out again.
#[derive(Clone)]
pub(crate) struct Dma {
    memory: Arc<dyn GuestMemory>,
    tracking: Option<Arc<Tracking>>,
}

impl Dma {
    pub(crate) fn new(memory: Arc<dyn GuestMemory>, tracking: Option<Arc<Tracking>>) -> Self {
        Self { memory, tracking }
    }

    /// The same memory with another tracker.
    pub(crate) fn with_tracking(self, tracking: Option<Arc<Tracking>>) -> Self {
        Self { tracking, ..self }
    }

    pub(crate) fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        self.memory.read(gpa, out)
    }

    pub(crate) fn write(&self, gpa: u64, data: &[u8]) -> Result<(), MemoryError> {
        let written = self.memory.write(gpa, data);
        self.mark(gpa, data.len() as u64);
        written
    }

    pub(crate) fn store_u32(&self, gpa: u64, value: u32) -> Result<(), MemoryError> {
        let written = self.memory.store_u32(gpa, value);
        self.mark(gpa, 4);
        written
    }

    /// Also after a failed write: an implementation that fails halfway may have written some of it.
    fn mark(&self, gpa: u64, len: u64) {
        if let Some(tracking) = &self.tracking {
            tracking.mark(gpa, len);
        }
    }

    /// Copies `data` into `segments`, which hold at least as many bytes. Less data than room leaves the rest untouched.
    pub(crate) fn scatter(&self, segments: &[Segment], data: &[u8]) -> Result<(), StatusCode> {
        let mut rest = data;
        for segment in segments {
            if rest.is_empty() {
                return Ok(());
            }
            let (now, later) = rest.split_at(segment.len.min(rest.len()));
            self.write(segment.gpa, now).map_err(|_| StatusCode::DataTransferError)?;
            rest = later;
        }
        if rest.is_empty() { Ok(()) } else { Err(StatusCode::DataTransferError) }
    }

    /// Fills `out` from `segments`, which hold at least as many bytes.
    pub(crate) fn gather(&self, segments: &[Segment], out: &mut [u8]) -> Result<(), StatusCode> {
        let mut rest = out;
        for segment in segments {
            if rest.is_empty() {
                return Ok(());
            }
            let (now, later) = rest.split_at_mut(segment.len.min(rest.len()));
            self.read(segment.gpa, now).map_err(|_| StatusCode::DataTransferError)?;
            rest = later;
        }
        if rest.is_empty() { Ok(()) } else { Err(StatusCode::DataTransferError) }
    }

    /// The segments that PRP1 and PRP2 describe for `len` bytes (Base 2.1, 4.3.1). `len` is capped by the caller (MDTS),
    /// so the walk is bounded: each list page after the first holds `page_size / 8 - 1` pages of data at least.
    ///
    /// # Errors
    /// PRP Offset Invalid for an offset that the specification forbids, Data Transfer Error for a list that is not readable.
    pub(crate) fn prp(&self, prp1: u64, prp2: u64, len: usize, page_size: u64) -> Result<Vec<Segment>, StatusCode> {
        let mut out = Vec::new();
        if len == 0 {
            return Ok(out);
        }
        if prp1 & 3 != 0 {
            return Err(StatusCode::InvalidPrpOffset);
        }
        let offset_mask = page_size - 1;
        let page = usize::try_from(page_size).map_err(|_| StatusCode::InternalError)?;
        let first = page - (prp1 & offset_mask) as usize;
        push(&mut out, prp1, first.min(len));
        let mut left = len - first.min(len);
        if left == 0 {
            return Ok(out);
        }
        if left <= page {
            if prp2 & offset_mask != 0 {
                return Err(StatusCode::InvalidPrpOffset);
            }
            push(&mut out, prp2, left);
            return Ok(out);
        }
        if prp2 & 7 != 0 {
            return Err(StatusCode::InvalidPrpOffset);
        }
        let mut list = prp2;
        while left > 0 {
            let slots = (page - (list & offset_mask) as usize) / 8;
            let pages_left = left.div_ceil(page);
            // The last slot of a list page is a pointer to the next one only where more than one page is left for it.
            let (entries, chained) = if pages_left > slots { (slots - 1, true) } else { (pages_left, false) };
            let mut raw = vec![0u8; (entries + usize::from(chained)) * 8];
            self.read(list, &mut raw).map_err(|_| StatusCode::DataTransferError)?;
            let mut values = raw.chunks_exact(8).map(u64::load);
            for entry in values.by_ref().take(entries) {
                if entry & offset_mask != 0 {
                    return Err(StatusCode::InvalidPrpOffset);
                }
                push(&mut out, entry, left.min(page));
                left -= left.min(page);
            }
            if chained {
                list = values.next().unwrap_or(0);
                // Only the first list may start inside of a page, or a list could point at its own last slot for ever.
                if list & offset_mask != 0 {
                    return Err(StatusCode::InvalidPrpOffset);
                }
            }
        }
        Ok(out)
    }
}

/// Adds a segment, or lengthens the last one where the new one continues it: fewer and longer copies.
fn push(out: &mut Vec<Segment>, gpa: u64, len: usize) {
    if let Some(last) = out.last_mut()
        && last.gpa.checked_add(last.len as u64) == Some(gpa)
    {
        last.len += len;
        return;
    }
    out.push(Segment { gpa, len });
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use towline_core::memory::{MemoryErrorKind, MemoryRange};

    use super::*;

    struct Flat(Mutex<Vec<u8>>);

    impl Flat {
        fn at(&self, gpa: u64, len: usize) -> Result<(usize, usize), MemoryError> {
            let error = MemoryError { gpa, len: len as u64, kind: MemoryErrorKind::Unmapped };
            let start = usize::try_from(gpa).map_err(|_| error)?;
            let end = start.checked_add(len).filter(|end| *end <= self.0.lock().unwrap().len()).ok_or(error)?;
            Ok((start, end))
        }
    }

    impl GuestMemory for Flat {
        fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), MemoryError> {
            let (start, end) = self.at(gpa, out.len())?;
            out.copy_from_slice(&self.0.lock().unwrap()[start..end]);
            Ok(())
        }
        fn write(&self, gpa: u64, data: &[u8]) -> Result<(), MemoryError> {
            let (start, end) = self.at(gpa, data.len())?;
            self.0.lock().unwrap()[start..end].copy_from_slice(data);
            Ok(())
        }
        fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError> {
            let mut raw = [0; 4];
            self.read(gpa, &mut raw)?;
            Ok(u32::from_le_bytes(raw))
        }
        fn store_u32(&self, gpa: u64, value: u32) -> Result<(), MemoryError> {
            self.write(gpa, &value.to_le_bytes())
        }
        fn ranges(&self) -> Vec<MemoryRange> {
            vec![MemoryRange { gpa: 0, len: self.0.lock().unwrap().len() as u64 }]
        }
    }

    fn flat(pages: usize) -> Arc<dyn GuestMemory> {
        Arc::new(Flat(Mutex::new(vec![0; pages * 4096])))
    }

    fn walk(memory: &Arc<dyn GuestMemory>, prp1: u64, prp2: u64, len: usize) -> Result<Vec<Segment>, StatusCode> {
        Dma::new(Arc::clone(memory), None).prp(prp1, prp2, len, 4096)
    }

    #[test]
    fn one_and_two_pages() {
        let memory = flat(8);
        assert_eq!(walk(&memory, 0x1010, 0, 32).unwrap(), [Segment { gpa: 0x1010, len: 32 }]);
        let two = walk(&memory, 0x1800, 0x5000, 4096).unwrap();
        assert_eq!(two, [Segment { gpa: 0x1800, len: 2048 }, Segment { gpa: 0x5000, len: 2048 }]);
        assert_eq!(walk(&memory, 0x1800, 0x5004, 4096), Err(StatusCode::InvalidPrpOffset));
        assert_eq!(walk(&memory, 0x1001, 0, 32), Err(StatusCode::InvalidPrpOffset));
    }

    #[test]
    fn chained_list_with_an_offset() {
        let memory = flat(64);
        // A list that starts at the last two slots of page 1: one entry, then a pointer to page 2.
        memory.write(0x1ff0, &0x8000u64.to_le_bytes()).unwrap();
        memory.write(0x1ff8, &0x2000u64.to_le_bytes()).unwrap();
        for n in 0..3u64 {
            memory.write(0x2000 + n * 8, &(0x10000 + n * 0x2000).to_le_bytes()).unwrap();
        }
        let segments = walk(&memory, 0x4000, 0x1ff0, 5 * 4096).unwrap();
        let gpas: Vec<u64> = segments.iter().map(|s| s.gpa).collect();
        assert_eq!(gpas, [0x4000, 0x8000, 0x10000, 0x12000, 0x14000]);
        assert_eq!(segments.iter().map(|s| s.len).sum::<usize>(), 5 * 4096);
    }

    #[test]
    fn a_list_that_points_at_itself_ends() {
        let memory = flat(4);
        memory.write(0x1ff8, &0x1ff8u64.to_le_bytes()).unwrap();
        assert_eq!(walk(&memory, 0x2000, 0x1ff8, 4 * 4096), Err(StatusCode::InvalidPrpOffset));
        assert_eq!(walk(&memory, 0x2000, 0x9000, 4 * 4096), Err(StatusCode::DataTransferError));
    }
}
