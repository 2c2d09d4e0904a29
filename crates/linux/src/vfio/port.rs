//! What a channel asks of a device: the few calls behind which tests have a device that fails on demand.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2,
    VFIO_DEVICE_FEATURE_MIGRATION, vfio_device_feature_mig_data_size, vfio_device_feature_mig_state,
    vfio_device_feature_migration,
};

use super::device::VfioDevice;
use super::ioctl;

/// What `VFIO_MIG_GET_PRECOPY_INFO` tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PrecopyInfo {
    /// `VFIO_PRECOPY_INFO_REINIT`; whatever was there before, without version 2.
    pub flags: u32,
    pub initial_bytes: u64,
    pub dirty_bytes: u64,
}

/// The migration calls of one device.
pub(super) trait Port: Send {
    /// `VFIO_DEVICE_FEATURE_MIGRATION`.
    fn flags(&self) -> Result<u64, Errno>;
    /// `VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE`, GET.
    fn state(&self) -> Result<u32, Errno>;
    /// `VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE`, SET: the data_fd, where one was opened.
    fn set_state(&self, to: u32) -> Result<Option<OwnedFd>, Errno>;
    /// `VFIO_DEVICE_FEATURE_MIG_DATA_SIZE`, in bytes.
    fn data_size(&self) -> Result<u64, Errno>;
    /// `VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2`: from now on, the flags of [`Port::precopy_info`] mean something.
    fn precopy_info_v2(&self) -> Result<(), Errno>;
    /// `VFIO_MIG_GET_PRECOPY_INFO`.
    fn precopy_info(&self, data_fd: BorrowedFd<'_>) -> Result<PrecopyInfo, Errno>;
    /// `VFIO_DEVICE_RESET`.
    fn reset(&self) -> Result<(), Errno>;
}

impl Port for Arc<VfioDevice> {
    fn flags(&self) -> Result<u64, Errno> {
        let data = vfio_device_feature_migration::default();
        // SAFETY: the structure of this feature: one number.
        let got = unsafe { ioctl::feature_get(self.as_fd(), VFIO_DEVICE_FEATURE_MIGRATION, data) }?;
        Ok(got.flags)
    }

    fn state(&self) -> Result<u32, Errno> {
        let data = vfio_device_feature_mig_state::default();
        // SAFETY: the structure of this feature: two numbers.
        let got = unsafe { ioctl::feature_get(self.as_fd(), VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, data) }?;
        Ok(got.device_state)
    }

    fn set_state(&self, to: u32) -> Result<Option<OwnedFd>, Errno> {
        let data = vfio_device_feature_mig_state { device_state: to, data_fd: -1 };
        // SAFETY: the structure of this feature: two numbers.
        let got = unsafe { ioctl::feature_set(self.as_fd(), VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, data) }?;
        // SAFETY: the data_fd of a change that succeeded, taken once.
        Ok(unsafe { ioctl::take_data_fd(got.data_fd) })
    }

    fn data_size(&self) -> Result<u64, Errno> {
        let data = vfio_device_feature_mig_data_size::default();
        // SAFETY: the structure of this feature: one number.
        let got = unsafe { ioctl::feature_get(self.as_fd(), VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, data) }?;
        Ok(got.stop_copy_length)
    }

    fn precopy_info_v2(&self) -> Result<(), Errno> {
        ioctl::feature_do(self.as_fd(), VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2)
    }

    fn precopy_info(&self, data_fd: BorrowedFd<'_>) -> Result<PrecopyInfo, Errno> {
        let info = ioctl::precopy_info(data_fd)?;
        Ok(PrecopyInfo { flags: info.flags, initial_bytes: info.initial_bytes, dirty_bytes: info.dirty_bytes })
    }

    fn reset(&self) -> Result<(), Errno> {
        ioctl::reset(self.as_fd())
    }
}
