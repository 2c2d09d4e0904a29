//! What a device, its regions and its interrupts are: the structures of the kernel's `vfio.h`.

use super::DecodeError;
use super::fields::{Fields, words};

/// Bits of [`DeviceInfo::flags`] (`VFIO_DEVICE_FLAGS_*`).
pub mod device_flags {
    /// It can be reset.
    pub const RESET: u32 = 1;
    /// It is a PCI function.
    pub const PCI: u32 = 1 << 1;
}

/// Bits of [`RegionInfo::flags`] (`VFIO_REGION_INFO_FLAG_*`).
pub mod region_flags {
    /// It can be read.
    pub const READ: u32 = 1;
    /// It can be written.
    pub const WRITE: u32 = 1 << 1;
}

/// `struct vfio_device_info`, without capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// See [`device_flags`].
    pub flags: u32,
    /// Number of region indices.
    pub regions: u32,
    /// Number of interrupt indices.
    pub irqs: u32,
}

impl DeviceInfo {
    const BYTES: usize = 16;

    /// Checks the body of a GET_INFO.
    ///
    /// # Errors
    /// A wrong length, an `argsz` in which the answer has no room.
    pub fn check_request(body: &[u8]) -> Result<(), DecodeError> {
        // Clients with a newer vfio.h send its longer structure; what is beyond is 0.
        let argsz = Fields::at_least(body, Self::BYTES)?.u32()?;
        if (argsz as usize) < Self::BYTES {
            return Err(DecodeError::field("GET_INFO argsz", argsz));
        }
        Ok(())
    }

    /// The body of the answer.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        words([Self::BYTES as u32, self.flags, self.regions, self.irqs]).collect()
    }
}

/// What is asked by GET_REGION_INFO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionInfoRequest {
    /// The region.
    pub index: u32,
}

impl RegionInfoRequest {
    /// Decodes and checks the body of a GET_REGION_INFO.
    ///
    /// # Errors
    /// A wrong length, an `argsz` in which the answer has no room.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::at_least(body, RegionInfo::BYTES)?;
        let (argsz, _flags, index) = (fields.u32()?, fields.u32()?, fields.u32()?);
        if (argsz as usize) < RegionInfo::BYTES {
            return Err(DecodeError::field("GET_REGION_INFO argsz", argsz));
        }
        Ok(Self { index })
    }
}

/// `struct vfio_region_info`, without capabilities: nothing can be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// See [`region_flags`].
    pub flags: u32,
    /// The region.
    pub index: u32,
    /// Length in bytes; 0 where it is absent.
    pub size: u64,
}

impl RegionInfo {
    const BYTES: usize = 32;

    /// The body of the answer.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let numbers = [self.size, 0].into_iter().flat_map(u64::to_le_bytes);
        words([Self::BYTES as u32, self.flags, self.index, 0]).chain(numbers).collect()
    }
}

/// `struct vfio_irq_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqInfo {
    /// `VFIO_IRQ_INFO_*`
    pub flags: u32,
    /// The interrupt index.
    pub index: u32,
    /// Vectors of this index.
    pub count: u32,
}

impl IrqInfo {
    const BYTES: usize = 16;
    /// `VFIO_IRQ_INFO_EVENTFD`
    pub const EVENTFD: u32 = 1;

    /// Decodes the body of a GET_IRQ_INFO and returns the index.
    ///
    /// # Errors
    /// A wrong length, an `argsz` in which the answer has no room.
    pub fn decode_request(body: &[u8]) -> Result<u32, DecodeError> {
        let mut fields = Fields::at_least(body, Self::BYTES)?;
        let (argsz, _flags, index) = (fields.u32()?, fields.u32()?, fields.u32()?);
        if (argsz as usize) < Self::BYTES {
            return Err(DecodeError::field("GET_IRQ_INFO argsz", argsz));
        }
        Ok(index)
    }

    /// The body of the answer.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        words([Self::BYTES as u32, self.flags, self.index, self.count]).collect()
    }
}
