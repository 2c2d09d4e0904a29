//! Guest memory as a client gives it: ranges with a file are mapped, all others are reached by messages.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustix::io::Errno;
use towline_core::memory::{GuestMemory, MappedSlice, MemoryError, MemoryErrorKind, MemoryRange};
use towline_linux::memory::{Access, MapError, MappedMemory, RegionOptions};

use crate::peer::{Peer, PeerError, Ticket};
use crate::protocol::{DmaMap, DmaUnmap, MAX_DMA_MAPS, dma_flags};

/// How long unmapping waits for messages under way. Longer would be a deadlock with a client that waits for the unmapping before it
/// answers them, as QEMU's does, which holds its lock meanwhile.
const DRAIN: Duration = Duration::from_millis(50);

/// Why a range was neither mapped nor unmapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DmaError {
    /// It overlaps one that is there.
    #[error("guest memory {gpa:#x} (+{len:#x} bytes) overlaps the range at {other:#x}")]
    Overlap {
        /// First guest address.
        gpa: u64,
        /// Length in bytes.
        len: u64,
        /// First guest address of the range that is there.
        other: u64,
    },
    /// There are as many as there can be.
    #[error("more than {MAX_DMA_MAPS} ranges of guest memory")]
    TooMany,
    /// It would cut a range in two.
    #[error("{gpa:#x} (+{len:#x} bytes) is only a part of a range of guest memory")]
    Part {
        /// First guest address.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The file can't be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
}

impl DmaError {
    /// What the client is told.
    pub(crate) fn errno(&self) -> Errno {
        match self {
            Self::Overlap { .. } => Errno::EXIST,
            Self::TooMany => Errno::NOSPC,
            Self::Map(MapError::System { source, .. }) => {
                source.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
            }
            Self::Part { .. } | Self::Map(_) => Errno::INVAL,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Range {
    gpa: u64,
    /// Checked not to overflow.
    end: u64,
    mapped: bool,
    readable: bool,
    writable: bool,
}

/// A range as another process gets it.
pub(crate) struct SharedRange {
    pub(crate) map: DmaMap,
    /// Where it is mapped.
    pub(crate) file: Option<OwnedFd>,
}

/// The guest memory of one client. Ranges come and go while the function does DMA: unmapping waits for what is under way.
pub struct ClientMemory {
    mapped: Arc<MappedMemory>,
    /// Ascending, not overlapping. Held for reading while a message is begun, so that unmapping finds it.
    ranges: RwLock<Vec<Range>>,
    peer: Arc<Peer>,
    allow_shrinkable: bool,
}

impl ClientMemory {
    pub(crate) fn new(peer: Arc<Peer>, allow_shrinkable: bool) -> Self {
        Self { mapped: Arc::new(MappedMemory::new()), ranges: RwLock::default(), peer, allow_shrinkable }
    }

    /// The mapped part.
    #[must_use]
    pub fn mapped(&self) -> Arc<MappedMemory> {
        Arc::clone(&self.mapped)
    }

    /// How many ranges are mapped, and how many are reached by messages.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let mapped = ranges.iter().filter(|range| range.mapped).count();
        (mapped, ranges.len() - mapped)
    }

    /// Adds a range. One whose file could shrink under us, or that is not page aligned, is reached by messages all the same: whoever
    /// can shrink a mapped file can kill this process, which may serve others.
    pub(crate) fn map(&self, map: &DmaMap, fd: Option<&OwnedFd>) -> Result<(), DmaError> {
        let (gpa, len) = (map.address, map.size);
        let end = gpa.saturating_add(len);
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let index = ranges.partition_point(|range| range.end <= gpa);
        if let Some(other) = ranges.get(index).filter(|range| range.gpa < end) {
            return Err(DmaError::Overlap { gpa, len, other: other.gpa });
        }
        if ranges.len() >= MAX_DMA_MAPS {
            return Err(DmaError::TooMany);
        }
        let (readable, writable) = (map.flags & dma_flags::READ != 0, map.flags & dma_flags::WRITE != 0);
        let mut mapped = false;
        // What may be written only cannot be expressed by a mapping.
        if let Some(fd) = fd.filter(|_| readable) {
            let access = if writable { Access::ReadWrite } else { Access::ReadOnly };
            let options = RegionOptions { access, allow_shrinkable: self.allow_shrinkable };
            match self.mapped.add_region_with(gpa, fd.as_fd(), map.offset, len, options) {
                Ok(()) => mapped = true,
                Err(MapError::Shrinkable | MapError::Misaligned { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        ranges.insert(index, Range { gpa, end, mapped, readable, writable });
        Ok(())
    }

    /// Takes away every range inside of the one that is named, or all there are. On return no access to them is under way and none begins.
    ///
    /// As the kernel's type 1 IOMMU does it (version 2): ranges are taken whole, and none at all is no error. A client with a virtual IOMMU relies
    /// on both: it unmaps what a guest invalidates, which may be much or nothing.
    pub(crate) fn unmap(&self, unmap: &DmaUnmap) -> Result<(), DmaError> {
        if unmap.all() {
            self.unmap_all();
            return Ok(());
        }
        let (gpa, len) = (unmap.address, unmap.size);
        let end = gpa.saturating_add(len);
        let taken: Vec<Range> = {
            let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
            let first = ranges.partition_point(|range| range.end <= gpa);
            let after = ranges.partition_point(|range| range.gpa < end);
            let touched = ranges.get(first..after).unwrap_or_default();
            if touched.iter().any(|range| range.gpa < gpa || range.end > end) {
                return Err(DmaError::Part { gpa, len });
            }
            if touched.is_empty() { Vec::new() } else { ranges.drain(first..after).collect() }
        };
        taken.iter().for_each(|range| self.finish(range));
        Ok(())
    }

    /// Every range, with a duplicate of its file's descriptor where it is mapped.
    pub(crate) fn share(&self) -> Result<Vec<SharedRange>, MapError> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        // Both are ascending, and of what is mapped there is one for one.
        let mut files = self.mapped.files()?.into_iter().peekable();
        let mut share = |range: &Range| {
            let flag = |has: bool, flag: u32| if has { flag } else { 0 };
            let flags = flag(range.readable, dma_flags::READ) | flag(range.writable, dma_flags::WRITE);
            let file = files.next_if(|file| range.mapped && file.gpa == range.gpa);
            let offset = file.as_ref().map_or(0, |file| file.fd_offset);
            let map = DmaMap { flags, offset, address: range.gpa, size: range.end - range.gpa };
            SharedRange { map, file: file.map(|file| file.fd) }
        };
        Ok(ranges.iter().map(&mut share).collect())
    }

    /// Takes every range away.
    pub(crate) fn unmap_all(&self) {
        let all = std::mem::take(&mut *self.ranges.write().unwrap_or_else(PoisonError::into_inner));
        all.iter().for_each(|range| self.finish(range));
    }

    fn finish(&self, range: &Range) {
        let len = range.end - range.gpa;
        if range.mapped {
            // It was added as exactly this one.
            let _ = self.mapped.remove_region(range.gpa, len);
        } else {
            self.peer.drain(range.gpa, len, DRAIN);
        }
    }

    /// Splits an access at the borders of ranges and calls `each` with: guest address, whether it is mapped, range of the access.
    fn pieces(
        &self,
        gpa: u64,
        len: usize,
        write: bool,
        mut each: impl FnMut(u64, bool, std::ops::Range<usize>) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let fail = |kind| MemoryError { gpa, len: len as u64, kind };
        let end = gpa.checked_add(len as u64).ok_or_else(|| fail(MemoryErrorKind::Unmapped))?;
        let mut pieces = Vec::new();
        {
            let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
            let mut next = gpa;
            let index = ranges.partition_point(|range| range.end <= gpa);
            for range in ranges.get(index..).unwrap_or_default() {
                if next >= end || range.gpa > next {
                    break;
                }
                if write && !range.writable {
                    return Err(fail(MemoryErrorKind::ReadOnly));
                }
                if !write && !range.readable {
                    return Err(fail(MemoryErrorKind::Unmapped));
                }
                let to = range.end.min(end);
                // Both are at most `len` away from `gpa`.
                pieces.push((next, range.mapped, (next - gpa) as usize..(to - gpa) as usize));
                next = to;
            }
            if next < end {
                return Err(fail(MemoryErrorKind::Unmapped));
            }
        }
        pieces.into_iter().try_for_each(|(at, mapped, piece)| each(at, mapped, piece))
    }

    /// Begins a message for a piece that lies in one range that is reached by messages, and is still there.
    fn begin(
        &self,
        gpa: u64,
        len: usize,
        begin: impl FnOnce() -> Result<Ticket, PeerError>,
    ) -> Result<Ticket, MemoryError> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let index = ranges.partition_point(|range| range.end <= gpa);
        let inside = ranges
            .get(index)
            .is_some_and(|range| !range.mapped && range.gpa <= gpa && gpa.saturating_add(len as u64) <= range.end);
        if !inside {
            return Err(MemoryError { gpa, len: len as u64, kind: MemoryErrorKind::Unmapped });
        }
        begin().map_err(|error| failed(gpa, len, error))
    }

    fn ask(&self, gpa: u64, count: usize) -> Result<Vec<u8>, MemoryError> {
        let ticket = self.begin(gpa, count, || self.peer.ask(gpa, count))?;
        self.peer.wait(ticket).map_err(|error| failed(gpa, count, error))
    }

    fn read_by_messages(&self, gpa: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        let mut at = gpa;
        for chunk in out.chunks_mut(self.peer.max_data().max(1)) {
            let body = self.ask(at, chunk.len())?;
            if !self.peer.unpack(&body, chunk) {
                self.settle_layout(at, chunk.len(), &body)?;
                self.peer.unpack(&body, chunk);
            }
            at = at.saturating_add(chunk.len() as u64);
        }
        Ok(())
    }

    /// An answer could be read in two ways. A short read of the bytes that would differ tells which is right.
    fn settle_layout(&self, gpa: u64, count: usize, body: &[u8]) -> Result<(), MemoryError> {
        let Some(offset) = Peer::doubtful_offset(body).filter(|offset| *offset < count) else { return Ok(()) };
        let at = gpa.saturating_add(offset as u64);
        let len = (count - offset).min(4);
        let answer = self.ask(at, len)?;
        self.peer.settle(&answer);
        Ok(())
    }

    fn write_by_messages(&self, gpa: u64, data: &[u8]) -> Result<(), MemoryError> {
        let mut at = gpa;
        for chunk in data.chunks(self.peer.max_data().max(1)) {
            let ticket = self.begin(at, chunk.len(), || self.peer.give(at, chunk))?;
            self.peer.wait(ticket).map_err(|error| failed(at, chunk.len(), error))?;
            at = at.saturating_add(chunk.len() as u64);
        }
        Ok(())
    }
}

fn failed(gpa: u64, len: usize, error: PeerError) -> MemoryError {
    let kind = match error {
        // EPERM: the client does not let it be written.
        PeerError::Refused(errno) if errno == Errno::PERM.raw_os_error().unsigned_abs() => MemoryErrorKind::ReadOnly,
        PeerError::Refused(_) | PeerError::Cancelled => MemoryErrorKind::Unmapped,
        PeerError::Gone => MemoryErrorKind::Gone,
    };
    MemoryError { gpa, len: len as u64, kind }
}

impl GuestMemory for ClientMemory {
    fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        match self.mapped.read(gpa, out) {
            Err(error) if error.kind == MemoryErrorKind::Unmapped => {
                self.pieces(gpa, out.len(), false, |at, mapped, piece| {
                    let out = out.get_mut(piece).unwrap_or_default();
                    if mapped { self.mapped.read(at, out) } else { self.read_by_messages(at, out) }
                })
            }
            result => result,
        }
    }

    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), MemoryError> {
        match self.mapped.write(gpa, data) {
            Err(error) if error.kind == MemoryErrorKind::Unmapped => {
                self.pieces(gpa, data.len(), true, |at, mapped, piece| {
                    let data = data.get(piece).unwrap_or_default();
                    if mapped { self.mapped.write(at, data) } else { self.write_by_messages(at, data) }
                })
            }
            result => result,
        }
    }

    fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError> {
        match self.mapped.load_u32(gpa) {
            Err(error) if error.kind == MemoryErrorKind::Unmapped => {
                let mut raw = [0; 4];
                self.read(gpa, &mut raw)?;
                fence(Ordering::Acquire);
                Ok(u32::from_le_bytes(raw))
            }
            result => result,
        }
    }

    fn store_u32(&self, gpa: u64, value: u32) -> Result<(), MemoryError> {
        match self.mapped.store_u32(gpa, value) {
            // Messages are carried out in order, and each write has been answered: nobody sees this one before an earlier one.
            Err(error) if error.kind == MemoryErrorKind::Unmapped => self.write(gpa, &value.to_le_bytes()),
            result => result,
        }
    }

    fn ranges(&self) -> Vec<MemoryRange> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        ranges.iter().map(|range| MemoryRange { gpa: range.gpa, len: range.end - range.gpa }).collect()
    }

    fn with_mapped(&self, gpa: u64, len: usize, f: &mut dyn FnMut(MappedSlice)) -> Result<bool, MemoryError> {
        match self.mapped.with_mapped(gpa, len, f) {
            Err(error) if error.kind == MemoryErrorKind::Unmapped => {
                self.pieces(gpa, len, false, |_, _, _| Ok(()))?;
                Ok(false)
            }
            result => result,
        }
    }

    fn populated(&self, range: MemoryRange) -> Vec<MemoryRange> {
        let (_, by_message) = self.counts();
        if by_message == 0 { self.mapped.populated(range) } else { vec![range] }
    }
}
