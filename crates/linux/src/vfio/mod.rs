//! VFIO devices that migrate: how they are opened, and their device state as a
//! [`StateChannel`](towline_core::channel::StateChannel) (`include/uapi/linux/vfio.h`, migration protocol version 2).
//!
//! The numbers of VFIO's ioctls mean different things on containers, groups, devices and data_fds, so each kind of
//! descriptor has a type of its own here and no ioctl is issued on any other.

mod abi;
mod channel;
mod device;
mod error;
mod ioctl;
mod port;

pub use channel::VfioChannel;
pub use device::{Container, Region, VfioDevice};
