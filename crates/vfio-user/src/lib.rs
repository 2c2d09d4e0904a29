//! A vfio-user server: a PCI function in this process, on a UNIX socket, for a VMM that speaks the vfio-user protocol (QEMU's
//! `vfio-user-pci`, cloud-hypervisor's `--user-device`).
//!
//! Both directions share one socket: while the client's requests come in, the function's DMA to guest memory that the client gave
//! no file for goes out as DMA_READ and DMA_WRITE, and the answers come back between the requests. One thread reads and never waits
//! for the function; what may wait (reset, unmapping) is done by a second one, in order.
//!
//! [`VfioUserServer`] serves any [`pci::PciFunction`]; [`nvme::NvmeFunction`] is the one for a controller of the embedded subsystem.
//!
//! Protocol: QEMU's `docs/interop/vfio-user.rst`, version 0.0, without its migration: a function that is migrated is commanded by its
//! controlling function. What the exposure itself keeps of it travels as an [`ExposureSection`].
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod control;
mod handover;
mod interrupts;
mod memory;
pub mod nvme;
pub mod pci;
mod peer;
pub mod protocol;
mod section;
mod server;
mod socket;

pub use handover::{Handover, HandoverError, MAX_HANDOVER_BYTES, MAX_HANDOVER_FDS};
pub use interrupts::Interrupts;
pub use memory::{ClientMemory, DmaError};
pub use section::{ExposureSection, SectionError, SectionIdentity};
pub use server::{ServerError, ServerOptions, ServerStatus, VfioUserListener, VfioUserServer};
