//! PCI functions as a server sees them.

mod config;

use std::sync::Arc;

use towline_core::memory::GuestMemory;

use crate::{ExposureSection, Interrupts, SectionError};

pub use config::{ConfigSpace, ConfigState, ConfigWrite, FunctionDescription, MSIX_PBA_OFFSET, MSIX_TABLE_OFFSET};

/// Region of config space (`VFIO_PCI_CONFIG_REGION_INDEX`); regions 0 to 5 are the BARs.
pub const CONFIG_REGION: u32 = 7;
/// Number of regions (`VFIO_PCI_NUM_REGIONS`): six BARs, the ROM, config space, VGA.
pub const REGIONS: u32 = 9;
/// Interrupt index of MSI-X (`VFIO_PCI_MSIX_IRQ_INDEX`).
pub const MSIX_IRQ: u32 = 2;
/// Number of interrupt indices (`VFIO_PCI_NUM_IRQS`): INTx, MSI, MSI-X, errors, requests.
pub const IRQS: u32 = 5;

/// A PCI function that a [`crate::VfioUserServer`] serves. Reads and writes are inside of the region: the server has checked.
///
/// Reads and writes come one after the other. They must not wait for DMA of the function, since the client's answers to it come over the
/// same connection as the access did; a write that does wait says so by [`PciFunction::waits`].
pub trait PciFunction: Send + Sync {
    /// A client is about to come: what the function is to it, its config space and vectors, is settled here, and stays so until
    /// [`PciFunction::detach`].
    fn prepare(&self);

    /// Bytes of a region, 0 where it is absent. Does not change while a client is there.
    fn region_bytes(&self, region: u32) -> u64;

    /// MSI-X vectors. Does not change while a client is there.
    fn vectors(&self) -> u16;

    /// A client has come. The function is as after a reset; it may do DMA once the client lets it by its config space.
    fn attach(&self, memory: Arc<dyn GuestMemory>, interrupts: Arc<Interrupts>);

    /// The client is gone, whatever it left under way: no DMA from here on, and the function is reset, as VFIO does when the last user of
    /// a device closes it. One that is [`PciFunction::sealed`] is reset when the next client comes.
    fn detach(&self);

    /// Reads a region.
    fn read(&self, region: u32, offset: u64, out: &mut [u8]);

    /// Writes a region.
    fn write(&self, region: u32, offset: u64, data: &[u8]);

    /// Whether this write may wait until DMA has ended: a function level reset, say.
    fn waits(&self, region: u32, offset: u64, data: &[u8]) -> bool;

    /// Resets the function (`VFIO_DEVICE_RESET`); no DMA of before happens afterwards.
    fn reset(&self);

    /// What identifies it to a guest, the same at both ends of a migration. `None` where its exposure has no section of its own.
    fn section_format(&self) -> Option<String> {
        None
    }

    /// Takes the exposure's section of a function that was stopped for a migration. What the client wrote before is part of the function's state; from
    /// here on nothing that it writes changes that, until the function runs again, and then nothing of it is lost.
    ///
    /// # Errors
    /// [`SectionError`]; the function is as it was.
    fn save_section(&self) -> Result<ExposureSection, SectionError> {
        Err(SectionError::Unsupported)
    }

    /// Puts a section in place: after the function's state was loaded, before it runs. The client may be there, or come later and find it so:
    /// then the function does no DMA before that client has written `PCI_COMMAND` or to a BAR, as it does once its memory is mapped.
    ///
    /// # Errors
    /// [`SectionError`]; nothing has changed then.
    fn restore_section(&self, _section: &ExposureSection) -> Result<(), SectionError> {
        Err(SectionError::Unsupported)
    }

    /// Undoes [`PciFunction::restore_section`] for a function that did not become ours: config space is as after a reset.
    fn forget_section(&self) {}

    /// Whether it was stopped by its controlling function, so that it does no DMA and raises nothing.
    fn stopped(&self) -> bool {
        false
    }

    /// Whether its state is on its way to another host, so that it may be neither reset nor given to another client until it runs here again. Does
    /// not wait for anything.
    fn sealed(&self) -> bool {
        false
    }
}
