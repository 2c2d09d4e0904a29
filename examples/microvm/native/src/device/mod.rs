//! The device at the other end of a vfio-user socket, and what the VMM has of it: its BAR, its interrupts, its doorbells.

pub mod bar;
pub mod client;
pub mod doorbells;
pub mod message;
pub mod msix;

/// Config space, as vfio numbers regions.
pub const CONFIG_REGION: u32 = 7;
/// `VFIO_PCI_MSIX_IRQ_INDEX`
pub const MSIX_INDEX: u32 = 2;
