//! Which pages a device wrote, by its own log (`VFIO_DEVICE_FEATURE_DMA_LOGGING_*`).

use std::fmt;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;
use towline_core::channel::{ChannelError, ChannelErrorKind, DirtySink, DirtySource, normalise_ranges};
use towline_core::memory::MemoryRange;
use vfio_bindings::bindings::vfio::{VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, vfio_device_feature_dma_logging_range};

use super::device::{OpenedWay, VfioDevice};
use super::error::{failed, told};
use super::ioctl;
use crate::address_space::locked::LockedBits;

/// The most ranges that the kernel takes (`LOG_MAX_RANGES`, `drivers/vfio/vfio_main.c`): a page of them.
const MOST_RANGES: usize = 256;
/// The smallest page of a log.
const LEAST_PAGE: u64 = 4096;
/// The most words of the bitmap of one report: 64 KiB, which is 2 GiB in pages of 4 KiB.
const MOST_WORDS: usize = 8192;
/// As many as are taken where the process may lock no more: one page, which is 128 MiB.
const LEAST_WORDS: usize = 512;
/// The lengths at which a range is cut where the device finds it too long; `mlx5` has 2^42 at most.
const CUTS: [u64; 4] = [1 << 42, 1 << 40, 1 << 36, 1 << 32];

/// The three calls of a log, behind which tests have a device that refuses.
pub(super) trait LogPort: Send {
    /// Starts it; the page size in force.
    fn start(&self, page_size: u64, ranges: &[MemoryRange]) -> Result<u64, Errno>;
    /// Sets bits. The kernel pins the bitmap, and where it can't, the bits are lost and it says that all is well
    /// (`drivers/iommu/iommufd/iova_bitmap.c`): `bitmap` is memory that is locked.
    fn report(&self, range: MemoryRange, page_size: u64, bitmap: &mut [u64]) -> Result<(), Errno>;
    /// Ends it.
    fn stop(&self) -> Result<(), Errno>;
}

impl LogPort for Arc<VfioDevice> {
    fn start(&self, page_size: u64, ranges: &[MemoryRange]) -> Result<u64, Errno> {
        let ranges: Vec<_> =
            ranges.iter().map(|r| vfio_device_feature_dma_logging_range { iova: r.gpa, length: r.len }).collect();
        ioctl::dma_logging_start(self.as_fd(), page_size, &ranges)
    }

    fn report(&self, range: MemoryRange, page_size: u64, bitmap: &mut [u64]) -> Result<(), Errno> {
        ioctl::dma_logging_report(self.as_fd(), range.gpa, range.len, page_size, bitmap)
    }

    fn stop(&self) -> Result<(), Errno> {
        ioctl::feature_do(self.as_fd(), VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP)
    }
}

/// What a device took.
struct Started {
    ranges: Vec<MemoryRange>,
    page_size: u64,
}

struct Active {
    started: Started,
    bits: LockedBits,
}

/// The log of one device. It covers the whole device and lasts from [`DirtySource::start`] to [`DirtySource::stop`], whatever
/// the state of its migration; a reset may end it, which the next harvest tells as an error.
///
/// Addresses are those that the device uses (IOVA): guest-physical ones where guest memory is mapped at those.
pub struct VfioDmaLog {
    port: Box<dyn LogPort>,
    name: String,
    active: Option<Active>,
}

impl fmt::Debug for VfioDmaLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioDmaLog")
            .field("name", &self.name)
            .field("ranges", &self.active.as_ref().map_or(0, |a| a.started.ranges.len()))
            .finish_non_exhaustive()
    }
}

fn limit(message: String) -> ChannelError {
    ChannelError::new(ChannelErrorKind::Limit, message)
}

/// The same memory in whole pages, sorted and merged.
fn in_pages(ranges: &[MemoryRange], page_size: u64) -> Result<Vec<MemoryRange>, ChannelError> {
    let mask = page_size - 1;
    let mut whole = Vec::with_capacity(ranges.len());
    for r in ranges.iter().filter(|r| r.len > 0) {
        let end = r.end().and_then(|end| end.checked_add(mask)).map(|end| end & !mask);
        let gpa = r.gpa & !mask;
        let end = end.ok_or_else(|| limit(format!("{:#x}+{:#x} is beyond the end of memory", r.gpa, r.len)))?;
        whole.push(MemoryRange { gpa, len: end - gpa });
    }
    Ok(normalise_ranges(&whole))
}

/// At most `most` ranges that cover the same memory: those with the smallest gaps between them become one. What lies in a gap
/// is no guest memory, and whoever gets the pages ignores it.
fn merged(ranges: &[MemoryRange], most: usize) -> Vec<MemoryRange> {
    let mut out = ranges.to_vec();
    if out.len() <= most {
        return out;
    }
    let mut gaps: Vec<(u64, usize)> = out
        .windows(2)
        .enumerate()
        .filter_map(|(at, pair)| match pair {
            [a, b] => Some((b.gpa.saturating_sub(a.gpa.saturating_add(a.len)), at + 1)),
            _ => None,
        })
        .collect();
    gaps.sort_unstable();
    gaps.truncate(out.len() - most.max(1));
    let closed: std::collections::HashSet<usize> = gaps.into_iter().map(|(_, at)| at).collect();
    out.clear();
    for (at, r) in ranges.iter().enumerate() {
        match out.last_mut() {
            Some(last) if closed.contains(&at) => last.len = (r.gpa + r.len).saturating_sub(last.gpa),
            _ => out.push(*r),
        }
    }
    out
}

/// The same ranges, none longer than `most` bytes.
fn cut(ranges: &[MemoryRange], most: u64) -> Vec<MemoryRange> {
    let mut out = Vec::new();
    for r in ranges {
        let mut at = 0;
        // More than the kernel takes need not be told apart.
        while at < r.len && out.len() <= MOST_RANGES {
            let len = most.min(r.len - at);
            out.push(MemoryRange { gpa: r.gpa + at, len });
            at += len;
        }
    }
    out
}

/// Whether the kernel can report at all. One without `iova_bitmap` (nothing selects `CONFIG_IOMMUFD_DRIVER`) lets a log be started,
/// and has `EOPNOTSUPP` for every report. Asked before the log is started, which drivers answer with nothing written, or refuse
/// in other words.
fn can_report(port: &dyn LogPort) -> bool {
    let page = MemoryRange { gpa: 0, len: LEAST_PAGE };
    port.report(page, LEAST_PAGE, &mut [0]) != Err(Errno::OPNOTSUPP)
}

impl VfioDmaLog {
    /// The log of `device`, not started.
    ///
    /// # Errors
    /// [`ChannelErrorKind::Unsupported`] for a device that has none, or on a kernel that can't report it.
    pub fn new(device: &Arc<VfioDevice>) -> Result<Self, ChannelError> {
        if !device.features()?.logs_dma() {
            let message =
                format!("{} does not log which pages it writes (VFIO_DEVICE_FEATURE_DMA_LOGGING_START)", device.name());
            return Err(ChannelError::new(ChannelErrorKind::Unsupported, message));
        }
        // Who else has the device open may have started its log, and would lose what this report has.
        if device.opened_way() != OpenedWay::Fd && !can_report(device) {
            let message = format!(
                "{} logs which pages it writes, and this kernel can't report them: EOPNOTSUPP, without CONFIG_IOMMUFD_DRIVER",
                device.name()
            );
            return Err(ChannelError::new(ChannelErrorKind::Unsupported, message));
        }
        Ok(Self::over(Box::new(Arc::clone(device)), device.name()))
    }

    pub(super) fn over(port: Box<dyn LogPort>, name: &str) -> Self {
        Self { port, name: name.to_owned(), active: None }
    }

    /// Starts the log for `ranges`, which fit `page_size`; with fewer or shorter ranges where the device wants that.
    fn try_start(&self, ranges: &[MemoryRange], page_size: u64) -> Result<Started, ChannelError> {
        let attempt = |ranges: Vec<MemoryRange>| match self.port.start(page_size, &ranges) {
            Ok(page_size) => Ok(Started { ranges, page_size }),
            Err(errno) => Err((errno, ranges)),
        };
        let mut most = MOST_RANGES;
        let (first, mut tried) = match attempt(merged(ranges, most)) {
            Ok(started) => return Ok(started),
            Err(refused) => refused,
        };
        let mut last = first;
        // How a device says that it takes fewer ranges, or shorter ones, is its driver's choice.
        while matches!(last, Errno::TOOBIG | Errno::NOSPC | Errno::NOMEM | Errno::INVAL | Errno::OPNOTSUPP)
            && tried.len() > 1
        {
            most = tried.len() / 2;
            match attempt(merged(ranges, most)) {
                Ok(started) => return Ok(started),
                Err(refused) => (last, tried) = refused,
            }
        }
        let longest = ranges.iter().map(|r| r.len).max().unwrap_or(0);
        for most in CUTS.into_iter().filter(|most| *most < longest) {
            let shorter = cut(ranges, most);
            if !matches!(last, Errno::TOOBIG | Errno::INVAL | Errno::OPNOTSUPP | Errno::RANGE)
                || shorter.len() > MOST_RANGES
            {
                break;
            }
            match attempt(shorter) {
                Ok(started) => return Ok(started),
                Err(refused) => (last, _) = refused,
            }
        }
        let meaning = match first {
            Errno::TOOBIG | Errno::INVAL | Errno::OPNOTSUPP => {
                "the device takes neither these ranges nor fewer or shorter ones"
            }
            Errno::BUSY | Errno::EXIST => "it logs already, for somebody else",
            _ => "",
        };
        let what = format!("{}: VFIO_DEVICE_FEATURE_DMA_LOGGING_START of {} ranges", self.name, ranges.len());
        Err(told(&what, first, meaning))
    }
}

impl DirtySource for VfioDmaLog {
    fn start(&mut self, ranges: &[MemoryRange], page_size_bytes: u64) -> Result<u64, ChannelError> {
        if self.active.is_some() {
            // Several drivers would take a second start, and lose what the first one had.
            let message = format!("{}: the log of its writes is started already", self.name);
            return Err(ChannelError::new(ChannelErrorKind::State, message));
        }
        if !page_size_bytes.is_power_of_two() || page_size_bytes < LEAST_PAGE {
            let message =
                format!("a log's page size is a power of two of at least {LEAST_PAGE}, not {page_size_bytes}");
            return Err(limit(message));
        }
        // Before anything is started, which would have to be stopped where there is no memory.
        let bits = LockedBits::new(MOST_WORDS).or_else(|_| LockedBits::new(LEAST_WORDS))?;
        let mut page_size = page_size_bytes;
        // A device may have coarser pages than it was asked for. Ranges that don't fit them are started anew with some that do.
        for _ in 0..4 {
            let whole = in_pages(ranges, page_size)?;
            if whole.is_empty() {
                return Err(limit(format!("{}: a log of no memory at all", self.name)));
            }
            let started = self.try_start(&whole, page_size)?;
            let got = started.page_size;
            let fits = got.is_power_of_two()
                && got >= LEAST_PAGE
                && started.ranges.iter().all(|r| r.gpa % got == 0 && r.len % got == 0);
            if fits {
                self.active = Some(Active { started, bits });
                return Ok(got.max(page_size_bytes));
            }
            let stopped = self.port.stop();
            if !got.is_power_of_two() || got < LEAST_PAGE || got <= page_size {
                let message =
                    format!("{}: it logs in pages of {got} bytes where {page_size} were asked for", self.name);
                return Err(ChannelError::new(ChannelErrorKind::Device, message));
            }
            stopped.map_err(|errno| failed(&format!("{}: VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP", self.name), errno))?;
            page_size = got;
        }
        let message = format!("{}: its log's page size grows with every start", self.name);
        Err(ChannelError::new(ChannelErrorKind::Device, message))
    }

    fn harvest(&mut self, sink: &mut dyn DirtySink) -> Result<(), ChannelError> {
        let Some(Active { started, bits }) = &mut self.active else {
            let message = format!("{}: the log of its writes is not started", self.name);
            return Err(ChannelError::new(ChannelErrorKind::State, message));
        };
        let most = started.page_size.saturating_mul(bits.words() as u64 * 64);
        for range in &started.ranges {
            let mut at = 0;
            while at < range.len {
                let len = most.min(range.len - at);
                let part = MemoryRange { gpa: range.gpa + at, len };
                let pages = len / started.page_size;
                // The kernel only sets bits.
                let bitmap = bits.zeroed(pages.div_ceil(64) as usize);
                if let Err(errno) = self.port.report(part, started.page_size, bitmap) {
                    // What was reported before is forgotten by the device, and what this one had is unknown.
                    started.ranges.iter().for_each(|r| sink.mark(r.gpa, r.len));
                    let what = format!("{}: VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT", self.name);
                    return Err(told(&what, errno, "every page that it can write counts as written"));
                }
                // Bits behind the last page belong to nothing.
                if let (Some(last), left @ 1..) = (bitmap.last_mut(), pages % 64) {
                    *last &= (1 << left) - 1;
                }
                if bitmap.iter().any(|word| *word != 0) {
                    let bytes: Vec<u8> = bitmap.iter().flat_map(|word| word.to_ne_bytes()).collect();
                    sink.merge_bitmap(part.gpa, started.page_size, &bytes);
                }
                at += len;
            }
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), ChannelError> {
        if self.active.take().is_none() {
            return Ok(());
        }
        match self.port.stop() {
            // A reset, or a driver that ends it with the stop of the device, was first.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(errno) => Err(failed(&format!("{}: VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP", self.name), errno)),
        }
    }
}

impl Drop for VfioDmaLog {
    fn drop(&mut self) {
        // A log that nobody reads costs the device bandwidth. There is nobody to tell an error to.
        let _ = self.stop();
    }
}

#[cfg(test)]
mod tests;
