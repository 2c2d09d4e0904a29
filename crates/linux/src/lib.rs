//! What towline asks of Linux. Every system call that needs `unsafe` is here, so that no other crate of the data plane has any.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod address_space;
pub mod clock;
pub mod devlink;
pub mod errno;
pub mod host;
mod iommu_error;
pub mod iommufd;
pub mod kvm;
pub mod mdev;
pub mod memory;
pub mod nvme;
pub mod pci;
mod raw_ioctl;
mod self_maps;
pub mod sysfs;
mod track_error;
pub mod type1;
#[cfg(test)]
mod uapi_layout;
pub mod vfio;
pub mod write_watch;

pub use track_error::TrackError;
