//! [`Areas`]: what is mapped in one address space, and what becomes of the dirty pages of what is unmapped while somebody
//! tracks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use towline_core::channel::{ChannelError, DirtySink};
use towline_core::memory::MemoryRange;

use crate::iommu_error::{limit, state};
use crate::memory::HeldMemory;

/// The most mappings of one address space: type1's own limit (`dma_entry_limit`, 65535), which iommufd doesn't have.
pub(crate) const MAX_AREAS: usize = 65535;
/// How much a [`Watch`] keeps of bitmaps of unmapped areas, in bytes. Beyond it whole areas count as dirty.
const MAX_LOST_BYTES: usize = 16 << 20;
/// How many things a [`Watch`] keeps; beyond it everything counts as dirty.
const MAX_LOST: usize = 4096;

#[derive(Debug)]
struct Area {
    len: u64,
    writable: bool,
    /// Of several areas where one mapping was made in pieces.
    held: Option<Arc<HeldMemory>>,
}

/// Dirty pages of an area that is gone.
#[derive(Debug)]
pub(crate) enum Lost {
    /// Nobody knows which.
    Whole(MemoryRange),
    /// Those of this bitmap (as [`DirtySink::merge_bitmap`] takes it).
    Bitmap { base: u64, page_size: u64, bitmap: Vec<u8> },
}

impl Lost {
    fn tell(&self, sink: &mut dyn DirtySink) {
        match self {
            Self::Whole(range) => sink.mark(range.gpa, range.len),
            Self::Bitmap { base, page_size, bitmap } => sink.merge_bitmap(*base, *page_size, bitmap),
        }
    }
}

/// What one dirty source has yet to tell of areas that were unmapped since its last harvest.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    lost: Mutex<(Vec<Lost>, usize)>,
}

impl Watch {
    fn push(&self, area: MemoryRange, dirty: Option<(u64, &[u8])>) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let (list, bytes) = &mut *lost;
        if list.len() >= MAX_LOST {
            list.clear();
            *bytes = 0;
            list.push(Lost::Whole(MemoryRange { gpa: 0, len: u64::MAX }));
        }
        match dirty {
            Some((page_size, bitmap)) if *bytes + bitmap.len() <= MAX_LOST_BYTES => {
                *bytes += bitmap.len();
                list.push(Lost::Bitmap { base: area.gpa, page_size, bitmap: bitmap.to_vec() });
            }
            _ => list.push(Lost::Whole(area)),
        }
    }

    /// Tells it all, once.
    pub(crate) fn tell(&self, sink: &mut dyn DirtySink) {
        // No lock is held while the sink runs: it is foreign code.
        let (list, _) = std::mem::take(&mut *self.lost.lock().unwrap_or_else(PoisonError::into_inner));
        list.iter().for_each(|lost| lost.tell(sink));
    }
}

/// What unmapping one area gave.
pub(crate) struct Unmapped {
    /// By the kernel.
    pub(crate) bytes: u64,
    /// Page size and bitmap of its dirty pages, where they could be had; `None`: all of them count as dirty.
    pub(crate) dirty: Option<(u64, Vec<u8>)>,
}

/// Maps (offset in the backing, I/O address, length).
pub(crate) type MapOne<'a> = &'a mut dyn FnMut(u64, u64, u64) -> Result<(), ChannelError>;
/// Unmaps (I/O address, length, whether dirty pages matter).
pub(crate) type UnmapOne<'a> = &'a mut dyn FnMut(u64, u64, bool) -> Result<Unmapped, ChannelError>;

#[derive(Debug, Default)]
struct Table {
    areas: BTreeMap<u64, Area>,
    watches: Vec<Weak<Watch>>,
}

/// The mappings of one address space.
///
/// Mapping and unmapping hold the lock for writing for as long as the kernel works, and a harvest holds it for reading: a
/// range that is queried is mapped during the whole query.
#[derive(Debug, Default)]
pub(crate) struct Areas {
    table: RwLock<Table>,
    /// For spaces in which only one source may track.
    tracked: Mutex<bool>,
}

/// The only source that tracks, until it is dropped.
#[derive(Debug)]
pub(crate) struct Claim(Arc<Areas>);

impl Drop for Claim {
    fn drop(&mut self) {
        *self.0.tracked() = false;
    }
}

impl Areas {
    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn tracked(&self) -> MutexGuard<'_, bool> {
        self.tracked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims the space for one source.
    pub(crate) fn claim(self: &Arc<Self>) -> Option<Claim> {
        let mut tracked = self.tracked();
        (!std::mem::replace(&mut *tracked, true)).then(|| Claim(Arc::clone(self)))
    }

    /// Maps `iova .. iova + len` in pieces of at most `piece` bytes, all of them or none.
    pub(crate) fn map(
        &self,
        (iova, len): (u64, u64),
        writable: bool,
        held: Option<HeldMemory>,
        piece: u64,
        map_one: MapOne<'_>,
        unmap_one: UnmapOne<'_>,
    ) -> Result<(), ChannelError> {
        let end = iova.checked_add(len).filter(|_| len != 0 && piece != 0);
        let end = end.ok_or_else(|| limit(format!("a mapping of {len:#x} bytes at {iova:#x} for a device")))?;
        if let Some(held) = &held {
            if held.len_bytes() != len {
                return Err(limit(format!("{:#x} bytes of memory behind a mapping of {len:#x}", held.len_bytes())));
            }
            if writable && !held.is_writable() {
                return Err(limit(format!("read-only memory at {iova:#x} to be written by a device")));
            }
        }
        let mut table = self.write();
        if let Some((at, area)) = table.areas.range(..end).next_back()
            && at + area.len > iova
        {
            return Err(state(format!(
                "{iova:#x} (+{len:#x} bytes): {at:#x} (+{:#x} bytes) is mapped already",
                area.len
            )));
        }
        let pieces = len.div_ceil(piece);
        if pieces > (MAX_AREAS - table.areas.len().min(MAX_AREAS)) as u64 {
            return Err(limit(format!("more than {MAX_AREAS} mappings for a device")));
        }
        let held = held.map(Arc::new);
        for n in 0..pieces {
            let offset = n * piece;
            let (at, size) = (iova + offset, piece.min(len - offset));
            if let Err(error) = map_one(offset, at, size) {
                // Backwards, and what cannot be unmapped stays in the table, so that its memory stays held.
                while let Some((&at, area)) = table.areas.range(iova..end).next_back()
                    && unmap_one(at, area.len, false).is_ok()
                {
                    table.areas.remove(&at);
                }
                return Err(error);
            }
            table.areas.insert(at, Area { len: size, writable, held: held.clone() });
        }
        Ok(())
    }

    /// Unmaps all areas of `iova .. iova + len`, one by one.
    pub(crate) fn unmap(&self, iova: u64, len: u64, unmap_one: UnmapOne<'_>) -> Result<u64, ChannelError> {
        let end = iova.checked_add(len).filter(|_| len != 0);
        let end = end.ok_or_else(|| limit(format!("{len:#x} bytes at {iova:#x} to unmap")))?;
        let mut table = self.write();
        let cut = |at: u64, area: &Area| at < iova || at + area.len > end;
        let before = table.areas.range(..iova).next_back().filter(|(at, area)| *at + area.len > iova);
        let last = table.areas.range(iova..end).next_back().filter(|(at, area)| cut(**at, area));
        if let Some((at, area)) = before.or(last) {
            let message =
                format!("{iova:#x} (+{len:#x} bytes) cuts the mapping {at:#x} (+{:#x} bytes) in two", area.len);
            return Err(state(message));
        }
        let mut bytes = 0u64;
        while let Some((&at, area)) = table.areas.range(iova..end).next() {
            let (len, writable) = (area.len, area.writable);
            bytes = bytes.saturating_add(Self::unmap_area(&mut table, at, len, writable, unmap_one)?);
        }
        Ok(bytes)
    }

    fn unmap_area(
        table: &mut Table,
        at: u64,
        len: u64,
        writable: bool,
        unmap_one: UnmapOne<'_>,
    ) -> Result<u64, ChannelError> {
        table.watches.retain(|watch| watch.strong_count() != 0);
        let watched = writable && !table.watches.is_empty();
        let unmapped = unmap_one(at, len, watched)?;
        table.areas.remove(&at);
        if watched {
            let dirty = unmapped.dirty.as_ref().map(|(page_size, bitmap)| (*page_size, bitmap.as_slice()));
            for watch in table.watches.iter().filter_map(Weak::upgrade) {
                watch.push(MemoryRange { gpa: at, len }, dirty);
            }
        }
        Ok(unmapped.bytes)
    }

    /// Unmaps everything, as far as the kernel lets.
    pub(crate) fn unmap_all(&self, unmap_one: UnmapOne<'_>) {
        self.write().areas.retain(|&at, area| unmap_one(at, area.len, false).is_err());
    }

    /// What is left is gone from the kernel: lets go of its memory.
    pub(crate) fn forget(&self) {
        self.write().areas.clear();
    }

    /// What is left may still be reached by a device: its memory is never let go of.
    pub(crate) fn leak(&self) {
        for area in std::mem::take(&mut self.write().areas).into_values() {
            std::mem::forget(area.held);
        }
    }

    /// From now on, what is unmapped is told to the watch.
    pub(crate) fn watch(&self) -> Arc<Watch> {
        let watch = Arc::new(Watch::default());
        self.write().watches.push(Arc::downgrade(&watch));
        watch
    }

    /// Calls `each` with every area that a device may write and that touches one of `ranges` (sorted and merged). Nothing is
    /// mapped or unmapped meanwhile.
    pub(crate) fn each_writable(
        &self,
        ranges: &[MemoryRange],
        each: &mut dyn FnMut(MemoryRange) -> Result<(), ChannelError>,
    ) -> Result<(), ChannelError> {
        let table = self.read();
        for (&gpa, area) in table.areas.iter().filter(|(_, area)| area.writable) {
            let next = ranges.partition_point(|r| r.gpa.saturating_add(r.len) <= gpa);
            if ranges.get(next).is_some_and(|r| r.gpa < gpa + area.len) {
                each(MemoryRange { gpa, len: area.len })?;
            }
        }
        Ok(())
    }

    /// What is mapped, ascending.
    pub(crate) fn all(&self) -> Vec<MemoryRange> {
        self.read().areas.iter().map(|(&gpa, area)| MemoryRange { gpa, len: area.len }).collect()
    }
}

#[cfg(test)]
mod tests;
