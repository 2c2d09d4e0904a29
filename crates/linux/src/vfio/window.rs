//! A part of a BAR mapped into this process.

use std::fmt;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use towline_core::bar::MmapRun;
use towline_core::channel::{ChannelError, ChannelErrorKind};

use super::device::VfioDevice;
use super::error::told;
use super::region::Region;

/// Registers of a device, mapped. Accesses are single loads and stores of 1, 2, 4 or 8 bytes.
pub(super) struct Window {
    start: NonNull<u8>,
    run: MmapRun,
    len: usize,
}

// SAFETY: the mapping belongs to no thread; the accesses below are single volatile ones, as registers want them.
unsafe impl Send for Window {}
// SAFETY: as above. What two threads do to one register at once is the device's affair, as on its bus.
unsafe impl Sync for Window {}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window").field("run", &self.run).finish_non_exhaustive()
    }
}

impl Window {
    /// Maps `run` of `region`, readable and writable as the region is.
    pub(super) fn new(device: &VfioDevice, region: &Region, run: MmapRun) -> Result<Self, ChannelError> {
        let limit = |message: String| ChannelError::new(ChannelErrorKind::Limit, message);
        let len = usize::try_from(run.len).map_err(|_| limit(format!("{:#x} bytes can't be mapped here", run.len)))?;
        let at = region.at(run.offset, len)?;
        let mut protection = ProtFlags::empty();
        protection.set(ProtFlags::READ, region.is_readable());
        protection.set(ProtFlags::WRITE, region.is_writable());
        let mapped = {
            // SAFETY: a new mapping at an address of the kernel's choice.
            unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, device.as_fd(), at) }
        };
        let start = mapped.map_err(|errno| {
            let what = format!("{}: map {:#x}+{len:#x} of region {}", device.name(), run.offset, region.index);
            told(&what, errno, "the kernel doesn't let this part be mapped")
        })?;
        let start = NonNull::new(start.cast()).ok_or_else(|| limit("a mapping at address 0".to_owned()))?;
        Ok(Self { start, run, len })
    }

    /// Where `len` bytes at `offset` of the BAR are, if they are here and make one register access.
    fn at(&self, offset: u64, len: usize) -> Option<*mut u8> {
        if !matches!(len, 1 | 2 | 4 | 8) || !offset.is_multiple_of(len as u64) {
            return None;
        }
        let inside = usize::try_from(offset.checked_sub(self.run.offset)?).ok()?;
        if inside.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: inside of the mapping, as was just checked.
        Some(unsafe { self.start.as_ptr().add(inside) })
    }

    /// Reads a register; `false` where it isn't here.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> bool {
        let Some(at) = self.at(offset, out.len()) else { return false };
        // SAFETY: `at` is inside of the mapping and aligned for the length, the mapping being page aligned and `offset` a
        // multiple of the length; the mapping lives as long as `self`. A device that vanishes gives all ones or SIGBUS, as
        // for any program that maps registers.
        unsafe {
            match out.len() {
                1 => out.copy_from_slice(&at.read_volatile().to_ne_bytes()),
                2 => out.copy_from_slice(&at.cast::<u16>().read_volatile().to_ne_bytes()),
                4 => out.copy_from_slice(&at.cast::<u32>().read_volatile().to_ne_bytes()),
                _ => out.copy_from_slice(&at.cast::<u64>().read_volatile().to_ne_bytes()),
            }
        }
        true
    }

    /// Writes a register; `false` where it isn't here.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> bool {
        let Some(at) = self.at(offset, data.len()) else { return false };
        // SAFETY: as above.
        unsafe {
            match *data {
                [a] => at.write_volatile(a),
                [a, b] => at.cast::<u16>().write_volatile(u16::from_ne_bytes([a, b])),
                [a, b, c, d] => at.cast::<u32>().write_volatile(u32::from_ne_bytes([a, b, c, d])),
                [a, b, c, d, e, f, g, h] => {
                    at.cast::<u64>().write_volatile(u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
                }
                _ => return false,
            }
        }
        true
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made, of this length; nobody has a pointer into it beyond `self`.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}
