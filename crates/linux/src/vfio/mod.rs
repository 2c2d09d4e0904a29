//! VFIO devices: how they are opened, what they have, and their device state as a
//! [`StateChannel`](towline_core::channel::StateChannel) (`include/uapi/linux/vfio.h`, migration protocol version 2).
//!
//! The numbers of VFIO's ioctls mean different things on containers, groups, devices and data_fds, so each kind of
//! descriptor has a type of its own here and no ioctl is issued on any other.

mod abi;
mod bar;
mod channel;
mod container;
mod device;
mod dma_log;
mod error;
mod exposure;
mod features;
mod function;
mod ioctl;
mod irq;
mod place;
mod port;
mod region;
mod reset;
mod token;
mod window;

pub use bar::VfioBar;
pub use channel::VfioChannel;
pub use container::Container;
pub use device::{OpenedWay, VfioDevice};
pub use dma_log::VfioDmaLog;
pub use exposure::{ExposurePort, ExposureSection, VfioExposure, Wiring};
pub use features::Features;
pub use function::{DirtyBy, OpenBy, VfioFunction, VfioOptions};
pub use irq::IrqInfo;
pub use place::Place;
pub use region::Region;
pub use token::VfToken;
