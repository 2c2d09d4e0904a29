//! What towline asks of Linux. Every system call that needs `unsafe` is here, so that no other crate of the data plane has any.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod clock;
pub mod errno;
pub mod host;
pub mod mdev;
pub mod memory;
pub mod nvme;
pub mod pci;
pub mod sysfs;
pub mod vfio;
