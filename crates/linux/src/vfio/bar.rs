//! A BAR of a VFIO device as a target of a BAR filter.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use towline_core::bar::{BarTarget, MmapRun};
use towline_core::channel::{ChannelError, ChannelErrorKind};

use super::device::VfioDevice;
use super::region::Region;
use super::window::Window;

/// The most windows of one BAR.
const MOST_WINDOWS: usize = 1024;

/// A BAR of a device. What was mapped is reached by loads and stores, the rest by the kernel.
///
/// As on PCI nothing fails: a read that the device or the kernel doesn't answer gives all ones, a write is dropped; both are counted.
#[derive(Debug)]
pub struct VfioBar {
    // Windows go before the device: their mappings keep it open.
    windows: Vec<Window>,
    device: Arc<VfioDevice>,
    region: Region,
    failures: AtomicU64,
}

impl VfioBar {
    /// BAR `index` (0 to 5), reached by the kernel.
    ///
    /// # Errors
    /// [`ChannelErrorKind::Unsupported`] where the device has no such BAR; what the kernel said.
    pub fn open(device: &Arc<VfioDevice>, index: u32) -> Result<Self, ChannelError> {
        let region = device.region(index)?;
        if region.size == 0 {
            let message = format!("{} has no region {index}", device.name());
            return Err(ChannelError::new(ChannelErrorKind::Unsupported, message));
        }
        Ok(Self { windows: Vec::new(), device: Arc::clone(device), region, failures: AtomicU64::new(0) })
    }

    /// Its region.
    #[must_use]
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Maps `plan` ([`Region::mmap_plan`]), in place of what was mapped before; an empty plan unmaps all.
    ///
    /// While the function's memory is disabled (bit 1 of `PCI_COMMAND`), or it sleeps, the kernel answers loads and stores of what is
    /// mapped with `SIGBUS`, which ends a process. Whoever lets a guest disable it unmaps first, and maps again once it is enabled.
    ///
    /// # Errors
    /// [`ChannelErrorKind::Limit`] for more runs than anybody maps; what the kernel said. Nothing is mapped then.
    pub fn map(&mut self, plan: &[MmapRun]) -> Result<(), ChannelError> {
        self.windows.clear();
        if plan.len() > MOST_WINDOWS {
            let message = format!("{} runs of a BAR to map; at most {MOST_WINDOWS}", plan.len());
            return Err(ChannelError::new(ChannelErrorKind::Limit, message));
        }
        self.windows =
            plan.iter().map(|run| Window::new(&self.device, &self.region, *run)).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// How many accesses the device or the kernel didn't answer.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

impl BarTarget for VfioBar {
    fn read(&self, offset: u64, out: &mut [u8]) {
        if self.windows.iter().any(|window| window.read(offset, out)) {
            return;
        }
        if self.device.read_region(&self.region, offset, out).is_err() {
            out.fill(0xff);
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if self.windows.iter().any(|window| window.write(offset, data)) {
            return;
        }
        if self.device.write_region(&self.region, offset, data).is_err() {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }
}
