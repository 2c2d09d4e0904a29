//! [`Type1Dirty`]: the pages that devices of a container wrote, as far as type1 knows.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use std::os::fd::AsFd;

use rustix::io::Errno;
use towline_core::channel::{ChannelError, ChannelErrorKind, DirtySink, DirtySource};
use towline_core::memory::MemoryRange;

use super::info::MigrationInfo;
use super::{Type1, ioctl, to_bytes, words_of};
use crate::address_space::areas::{Areas, Claim, Watch};
use crate::iommu_error::{failed, limit, state};
use crate::iommufd::{checked, tell_all};

/// The calls of a container, so that tests have one that does what no machine does.
pub(super) trait Log: std::fmt::Debug + Send {
    fn migration(&self) -> Result<Option<MigrationInfo>, ChannelError>;
    fn set_tracking(&self, on: bool) -> Result<(), Errno>;
    fn get(&self, area: MemoryRange, page_size: u64, bits: &mut [u64]) -> Result<(), Errno>;
    /// Unmapping asks for bitmaps in this page size from now on; 0: no more.
    fn tracks_in(&self, page_size: u64);
    fn areas(&self) -> &Arc<Areas>;
}

impl Log for Arc<Type1> {
    fn migration(&self) -> Result<Option<MigrationInfo>, ChannelError> {
        self.info().map(|info| info.migration)
    }

    fn set_tracking(&self, on: bool) -> Result<(), Errno> {
        ioctl::set_tracking(self.container.as_fd(), on)
    }

    fn get(&self, area: MemoryRange, page_size: u64, bits: &mut [u64]) -> Result<(), Errno> {
        ioctl::get_bitmap(self.container.as_fd(), (area.gpa, area.len), page_size, bits)
    }

    fn tracks_in(&self, page_size: u64) {
        self.tracking.store(page_size, Ordering::Release);
    }

    fn areas(&self) -> &Arc<Areas> {
        &self.areas
    }
}

/// The dirty source of a container.
///
/// **It knows little.** Pages count as dirty that a driver of mediated devices pinned or wrote since the last harvest; where
/// a device has DMA of its own behind an IOMMU, all mapped pages do, every time (`update_user_bitmap` in
/// `drivers/vfio/vfio_iommu_type1.c`). So it is right for every device and helps only with mediated ones.
#[derive(Debug)]
pub struct Type1Dirty {
    log: Box<dyn Log>,
    tracked: Option<Tracked>,
}

#[derive(Debug)]
struct Tracked {
    ranges: Vec<MemoryRange>,
    info: MigrationInfo,
    watch: Arc<Watch>,
    _claim: Claim,
}

impl Type1Dirty {
    /// Nothing is tracked before [`DirtySource::start`].
    #[must_use]
    pub fn new(space: &Arc<Type1>) -> Self {
        Self::over(Box::new(Arc::clone(space)))
    }

    pub(super) fn over(log: Box<dyn Log>) -> Self {
        Self { log, tracked: None }
    }
}

/// Fails where the bitmap of a mapping would be larger than the kernel makes them.
fn words_for(area: MemoryRange, info: MigrationInfo) -> Result<usize, ChannelError> {
    let words = words_of(area.len, info.page_size);
    if words as u64 > info.max_bitmap_bytes / 8 {
        let message = format!(
            "the mapping {:#x} (+{:#x} bytes) is too large for a bitmap of at most {} bytes",
            area.gpa, area.len, info.max_bitmap_bytes
        );
        return Err(limit(message));
    }
    Ok(words)
}

impl Tracked {
    fn harvest(&self, log: &dyn Log, sink: &mut dyn DirtySink) -> Result<(), ChannelError> {
        let mut bits = vec![];
        let page_size = self.info.page_size;
        // One mapping at a time: a request may not cut one in two, and one that spans several leaves the bits of holes and,
        // within a word, of the next mapping as they were.
        log.areas().each_writable(&self.ranges, &mut |area| {
            bits.resize(words_for(area, self.info)?, 0);
            bits.fill(0);
            log.get(area, page_size, &mut bits).map_err(|errno| {
                let what = format!("VFIO_IOMMU_DIRTY_PAGES GET_BITMAP of {:#x} (+{:#x} bytes)", area.gpa, area.len);
                let meaning = match errno {
                    Errno::INVAL => "tracking was stopped by somebody else, or the IOMMU's smallest page has changed",
                    _ => "",
                };
                failed(&what, errno, meaning)
            })?;
            if bits.iter().any(|word| *word != 0) {
                sink.merge_bitmap(area.gpa, page_size, &to_bytes(&bits));
            }
            Ok(())
        })?;
        self.watch.tell(sink);
        Ok(())
    }
}

impl DirtySource for Type1Dirty {
    /// The granularity is the container's smallest page size, which `page_size_bytes` may be below or above.
    ///
    /// # Errors
    /// `Unsupported` where the container tells of no dirty tracking, `State` while a source of the container tracks
    /// already, `Limit` for what can't be tracked.
    fn start(&mut self, ranges: &[MemoryRange], page_size_bytes: u64) -> Result<u64, ChannelError> {
        let ranges = checked(ranges, page_size_bytes)?;
        let Some(info) = self.log.migration()? else {
            let message = "VFIO_IOMMU_GET_INFO tells of no dirty tracking (capability 2)";
            return Err(ChannelError::new(ChannelErrorKind::Unsupported, message));
        };
        let areas = self.log.areas();
        let claim = areas.claim().ok_or_else(|| state("this container is tracked already"))?;
        areas.each_writable(&ranges, &mut |area| words_for(area, info).map(drop))?;
        let watch = areas.watch();
        self.log.set_tracking(true).map_err(|errno| failed("VFIO_IOMMU_DIRTY_PAGES START", errno, ""))?;
        self.log.tracks_in(info.page_size);
        self.tracked = Some(Tracked { ranges, info, watch, _claim: claim });
        Ok(info.page_size)
    }

    /// # Errors
    /// What the kernel said; then everything has been told to `sink` as dirty.
    fn harvest(&mut self, sink: &mut dyn DirtySink) -> Result<(), ChannelError> {
        let Some(tracked) = &self.tracked else { return Err(state("this container is not tracked")) };
        tracked.harvest(&*self.log, sink).inspect_err(|_| tell_all(&tracked.ranges, sink))
    }

    fn stop(&mut self) -> Result<(), ChannelError> {
        let Some(_tracked) = self.tracked.take() else { return Ok(()) };
        self.log.tracks_in(0);
        self.log.set_tracking(false).map_err(|errno| failed("VFIO_IOMMU_DIRTY_PAGES STOP", errno, ""))
    }
}

impl Drop for Type1Dirty {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = self.stop();
    }
}

#[cfg(test)]
mod tests;
