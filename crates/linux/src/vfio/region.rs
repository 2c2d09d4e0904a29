//! Regions: what there is, reads and writes, and what may be mapped.

use std::os::fd::AsFd;

use rustix::io::Errno;
use towline_core::bar::{Filter, MmapRun};
use towline_core::channel::{ChannelError, ChannelErrorKind};
use vfio_bindings::bindings::vfio::{
    VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_CAP_TYPE,
    VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
    vfio_region_info,
};

use super::device::VfioDevice;
use super::error::{failed, told};
use super::ioctl;

/// The bytes of `struct vfio_region_info` before its capabilities.
const INFO_BYTES: usize = size_of::<vfio_region_info>();
/// More than this is no description of a region.
const MOST_INFO_BYTES: usize = 64 << 10;

/// One region of a device as `VFIO_DEVICE_GET_REGION_INFO` describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Its number.
    pub index: u32,
    /// Where it begins in the device's descriptor, in bytes, for `pread` and `pwrite`.
    pub offset: u64,
    /// Its length in bytes; 0 where the device doesn't have it.
    pub size: u64,
    /// `VFIO_REGION_INFO_FLAG_*`: bit 0 read, bit 1 write, bit 2 mmap.
    pub flags: u32,
    /// What the kernel lets be mapped, ascending.
    pub mappable: Vec<MmapRun>,
    /// The part with the MSI-X table may be mapped with the rest.
    pub msix_mappable: bool,
    /// Type and subtype, of a region that is not one of the bus.
    pub kind: Option<(u32, u32)>,
}

impl Region {
    /// Whether it can be read.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.flags & VFIO_REGION_INFO_FLAG_READ != 0
    }

    /// Whether it can be written.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.flags & VFIO_REGION_INFO_FLAG_WRITE != 0
    }

    /// What of it a guest may reach without anybody looking: what passes `filter` in whole pages, as far as the kernel lets it
    /// be mapped. `page_size_bytes` is the host's.
    ///
    /// # Errors
    /// [`ChannelErrorKind::Limit`] for what is no page size.
    pub fn mmap_plan(&self, filter: &Filter, page_size_bytes: u64) -> Result<Vec<MmapRun>, ChannelError> {
        let passes = filter
            .mmap_plan(page_size_bytes)
            .map_err(|error| ChannelError::new(ChannelErrorKind::Limit, error.to_string()))?;
        Ok(intersection(&passes, &self.mappable, page_size_bytes))
    }

    /// Checks that `len` bytes at `offset` are inside, and returns where they are in the device's descriptor.
    pub(super) fn at(&self, offset: u64, len: usize) -> Result<u64, ChannelError> {
        let end = u64::try_from(len).ok().and_then(|len| offset.checked_add(len));
        match (end, self.offset.checked_add(offset)) {
            (Some(end), Some(at)) if end <= self.size => Ok(at),
            _ => {
                let message = format!("{offset:#x}+{len:#x} is beyond region {} of {:#x} bytes", self.index, self.size);
                Err(ChannelError::new(ChannelErrorKind::Limit, message))
            }
        }
    }
}

/// What is in both, in whole pages. Both are ascending and without overlaps.
fn intersection(a: &[MmapRun], b: &[MmapRun], page: u64) -> Vec<MmapRun> {
    let mut out = Vec::new();
    for x in a {
        for y in b {
            let start = x.offset.max(y.offset).next_multiple_of(page);
            let end = (x.offset + x.len).min(y.offset + y.len) / page * page;
            if start < end {
                out.push(MmapRun { offset: start, len: end - start });
            }
        }
    }
    out
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// Where a capability of a region is, and what it is.
fn capabilities(bytes: &[u8], first: u32) -> Result<Vec<(u32, usize)>, String> {
    let mut found = Vec::new();
    let (mut at, mut before) = (first as usize, INFO_BYTES - 1);
    while at != 0 {
        // The kernel appends them one behind the other. A chain that doesn't ascend may go in a circle.
        if at <= before {
            return Err(format!("the capability at {at} is not behind {before}"));
        }
        // struct vfio_info_cap_header: u16 id, u16 version, u32 next.
        let (Some(id), Some(next)) = (u32_at(bytes, at), u32_at(bytes, at.saturating_add(4))) else {
            return Err(format!("the capability at {at} is beyond {} bytes", bytes.len()));
        };
        // Little-endian hosts: the id is the lower half.
        found.push((if cfg!(target_endian = "little") { id & 0xffff } else { id >> 16 }, at));
        (before, at) = (at, next as usize);
    }
    Ok(found)
}

/// The areas of `struct vfio_region_info_cap_sparse_mmap` at `at`.
fn sparse_areas(bytes: &[u8], at: usize, size: u64) -> Result<Vec<MmapRun>, String> {
    let count = u32_at(bytes, at + 8).ok_or("its sparse areas have no count")? as usize;
    let areas = bytes.get(at + 16..).unwrap_or_default();
    if count > areas.len() / 16 {
        return Err(format!("{count} sparse areas don't fit into {} bytes", areas.len()));
    }
    let mut out = Vec::with_capacity(count);
    for area in areas.chunks_exact(16).take(count) {
        let (Some(offset), Some(len)) = (u64_at(area, 0), u64_at(area, 8)) else { break };
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(format!("its sparse area {offset:#x}+{len:#x} is beyond its {size:#x} bytes"));
        }
        if len > 0 {
            out.push(MmapRun { offset, len });
        }
    }
    out.sort_unstable_by_key(|run| run.offset);
    match out.windows(2).any(|pair| matches!(pair, [a, b] if a.offset + a.len > b.offset)) {
        true => Err("its sparse areas overlap".to_owned()),
        false => Ok(out),
    }
}

/// Reads what the kernel told: `info` and all of its bytes.
fn parse(info: &vfio_region_info, bytes: &[u8]) -> Result<Region, String> {
    let mut region =
        Region { index: info.index, offset: info.offset, size: info.size, flags: info.flags, ..Region::default() };
    info.offset.checked_add(info.size).ok_or("it is beyond the end of the descriptor")?;
    let mut sparse = None;
    if info.flags & VFIO_REGION_INFO_FLAG_CAPS != 0 {
        for (id, at) in capabilities(bytes, info.cap_offset)? {
            match id {
                VFIO_REGION_INFO_CAP_SPARSE_MMAP => sparse = Some(sparse_areas(bytes, at, info.size)?),
                VFIO_REGION_INFO_CAP_MSIX_MAPPABLE => region.msix_mappable = true,
                VFIO_REGION_INFO_CAP_TYPE => region.kind = u32_at(bytes, at + 8).zip(u32_at(bytes, at + 12)),
                _ => {}
            }
        }
    }
    if info.flags & VFIO_REGION_INFO_FLAG_MMAP != 0 && info.size > 0 {
        region.mappable = sparse.unwrap_or_else(|| vec![MmapRun { offset: 0, len: info.size }]);
    }
    Ok(region)
}

impl VfioDevice {
    /// Region `index` (0 to 5 are the BARs of a PCI device, 7 its configuration space).
    ///
    /// # Errors
    /// What the kernel said, `EINVAL` for a region that no such device has; [`ChannelErrorKind::Device`] for a description that
    /// contradicts itself.
    pub fn region(&self, index: u32) -> Result<Region, ChannelError> {
        let what = || format!("{}: VFIO_DEVICE_GET_REGION_INFO {index}", self.name());
        let mut words = vec![0u64; INFO_BYTES / 8];
        // The size may grow between two calls, hardly more than once.
        for _ in 0..4 {
            let info = ioctl::region_info(self.as_fd(), index, &mut words).map_err(|errno| failed(&what(), errno))?;
            let needed = info.argsz as usize;
            if needed > MOST_INFO_BYTES {
                let message = format!("{}: {needed} bytes", what());
                return Err(ChannelError::new(ChannelErrorKind::Limit, message));
            }
            if needed > words.len() * 8 {
                words.resize(needed.div_ceil(8), 0);
                continue;
            }
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            return parse(&info, bytes.get(..needed.max(INFO_BYTES)).unwrap_or(&bytes))
                .map_err(|wrong| ChannelError::new(ChannelErrorKind::Device, format!("{}: {wrong}", what())));
        }
        Err(ChannelError::new(ChannelErrorKind::Device, format!("{}: its size keeps growing", what())))
    }

    /// Reads bytes of a region. Registers are read whole where `offset` and the length are those of one (1, 2, 4 or 8 bytes,
    /// aligned); the kernel cuts anything else into such.
    ///
    /// # Errors
    /// [`ChannelErrorKind::Limit`] beyond its end, otherwise what the kernel said (`EIO` of a BAR while memory is disabled).
    pub fn read_region(&self, region: &Region, offset: u64, out: &mut [u8]) -> Result<(), ChannelError> {
        let (mut at, mut left) = (region.at(offset, out.len())?, out);
        while !left.is_empty() {
            match rustix::io::pread(self.as_fd(), &mut *left, at) {
                Ok(n) if n > 0 && n <= left.len() => {
                    at += n as u64;
                    left = left.get_mut(n..).unwrap_or_default();
                }
                Ok(_) => return Err(self.short("read", region)),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.access_failed("read", region, errno)),
            }
        }
        Ok(())
    }

    /// Writes bytes of a region, as [`VfioDevice::read_region`] reads them.
    ///
    /// # Errors
    /// As for [`VfioDevice::read_region`]; what comes before the byte that failed may be written.
    pub fn write_region(&self, region: &Region, offset: u64, data: &[u8]) -> Result<(), ChannelError> {
        let (mut at, mut left) = (region.at(offset, data.len())?, data);
        while !left.is_empty() {
            match rustix::io::pwrite(self.as_fd(), left, at) {
                Ok(n) if n > 0 && n <= left.len() => {
                    at += n as u64;
                    left = left.get(n..).unwrap_or_default();
                }
                Ok(_) => return Err(self.short("write", region)),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.access_failed("write", region, errno)),
            }
        }
        Ok(())
    }

    fn short(&self, what: &str, region: &Region) -> ChannelError {
        let message = format!("{}: {what} of region {}: the kernel moves nothing", self.name(), region.index);
        ChannelError::new(ChannelErrorKind::Device, message)
    }

    fn access_failed(&self, what: &str, region: &Region, errno: Errno) -> ChannelError {
        let meaning = match errno {
            Errno::IO => "its memory is disabled (PCI_COMMAND), or it sleeps",
            Errno::FAULT | Errno::INVAL => "there is nothing there, or the kernel keeps it",
            _ => "",
        };
        told(&format!("{}: {what} of region {}", self.name(), region.index), errno, meaning)
    }
}

#[cfg(test)]
mod tests;
