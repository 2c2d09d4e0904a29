//! iommufd (`include/uapi/linux/iommufd.h`): address spaces for devices that are opened by their own node, and the IOMMU's
//! record of the pages that they wrote.

mod abi;
mod dirty;
mod hwpt;
mod ioas;
mod ioctl;
mod object;

pub use dirty::IommufdDirty;
pub(crate) use dirty::{checked, tell_all};
pub use hwpt::Hwpt;
pub(crate) use ioas::address;
pub use ioas::{Ioas, IovaRanges};
pub use object::{HwInfo, Iommufd};
