//! The messages: sixteen bytes of header, then a body whose form the command tells. Every decoder here is given a whole body, checks
//! its length to the byte, and never panics, whatever the bytes.
//!
//! Numbers are in the host's byte order, which is little-endian on every platform this is built for; the code says so in one place.

mod access;
mod dma;
mod fields;
mod header;
mod info;
mod irqs;
mod version;

pub use access::{MultiWrite, RegionAccess, decode_write_multi};
pub use dma::{DmaMap, DmaUnmap, dma_flags, unmap_flags};
pub use header::{Header, MessageType, flags};
pub use info::{DeviceInfo, IrqInfo, RegionInfo, RegionInfoRequest, device_flags, region_flags};
pub use irqs::{IrqAction, IrqData, SetIrqs};
pub use version::{PeerCapabilities, Version};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 16;
/// The most data of one access, in bytes; told to the client as `max_data_xfer_size`.
pub const MAX_DATA_BYTES: usize = 1 << 20;
/// The longest message that is read, in bytes: the data and what describes it.
pub const MAX_MESSAGE_BYTES: usize = MAX_DATA_BYTES + 4096;
/// The most file descriptors of one message; told to the client as `max_msg_fds`. QEMU sends as many at most.
pub const MAX_FDS: usize = 16;
/// The most DMA mappings of one client; told to it as `max_dma_maps`.
pub const MAX_DMA_MAPS: usize = 4096;
/// The longest capabilities of a VERSION message, in bytes.
pub const MAX_CAPABILITIES_BYTES: usize = 16 << 10;
/// The most writes of one REGION_WRITE_MULTI; QEMU sends 200.
pub const MAX_MULTI_WRITES: usize = 1024;

/// Commands.
pub mod command {
    /// The first message in either direction.
    pub const VERSION: u16 = 1;
    /// Maps a range of guest memory.
    pub const DMA_MAP: u16 = 2;
    /// Takes a range of guest memory away.
    pub const DMA_UNMAP: u16 = 3;
    /// `VFIO_DEVICE_GET_INFO`
    pub const GET_INFO: u16 = 4;
    /// `VFIO_DEVICE_GET_REGION_INFO`
    pub const GET_REGION_INFO: u16 = 5;
    /// File descriptors by which a region is reached without messages. Answered: not supported.
    pub const GET_REGION_IO_FDS: u16 = 6;
    /// `VFIO_DEVICE_GET_IRQ_INFO`
    pub const GET_IRQ_INFO: u16 = 7;
    /// `VFIO_DEVICE_SET_IRQS`
    pub const SET_IRQS: u16 = 8;
    /// Reads a region.
    pub const REGION_READ: u16 = 9;
    /// Writes a region.
    pub const REGION_WRITE: u16 = 10;
    /// Server to client: reads guest memory.
    pub const DMA_READ: u16 = 11;
    /// Server to client: writes guest memory.
    pub const DMA_WRITE: u16 = 12;
    /// `VFIO_DEVICE_RESET`
    pub const RESET: u16 = 13;
    /// Several small writes of regions.
    pub const REGION_WRITE_MULTI: u16 = 15;
    /// `VFIO_DEVICE_FEATURE`. Answered: not supported.
    pub const DEVICE_FEATURE: u16 = 16;
}

/// Why a body was refused; the `errno` goes into the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The body has another length than the command wants.
    #[error("a body of {actual} bytes where {wanted} are wanted")]
    Length {
        /// Bytes that it has.
        actual: usize,
        /// Bytes that it has to have, at least.
        wanted: usize,
    },
    /// A field has a value that cannot be.
    #[error("{field} is {value:#x}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

impl DecodeError {
    pub(crate) fn field(field: &'static str, value: impl Into<u64>) -> Self {
        Self::Field { field, value: value.into() }
    }
}

#[cfg(test)]
mod tests;
