//! The descriptor and the life of objects in it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use iommufd_bindings::{
    iommufd_hw_capabilities_IOMMU_HW_CAP_DIRTY_TRACKING as CAP_DIRTY_TRACKING,
    iommufd_option_IOMMU_OPTION_RLIMIT_MODE as OPTION_RLIMIT_MODE,
};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use towline_core::channel::{ChannelError, ChannelErrorKind};

use super::ioctl;
use crate::iommu_error::failed;

const NODE: &str = "/dev/iommu";

/// An open `/dev/iommu`. Devices are bound to it (`VFIO_DEVICE_BIND_IOMMUFD`), and objects live in it until it is closed.
#[derive(Debug)]
pub struct Iommufd {
    fd: OwnedFd,
}

/// What the IOMMU in front of a device can do (`IOMMU_GET_HW_INFO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HwInfo {
    /// Whose IOMMU it is: `enum iommu_hw_info_type`, 0 where its driver doesn't tell.
    pub data_type: u32,
    /// `enum iommufd_hw_capabilities`.
    pub capabilities: u64,
}

impl HwInfo {
    /// Whether [`super::Hwpt`]s for the device can track dirty pages.
    #[must_use]
    pub fn can_track_dirty(&self) -> bool {
        self.capabilities & u64::from(CAP_DIRTY_TRACKING) != 0
    }
}

impl Iommufd {
    /// Opens `/dev/iommu`.
    ///
    /// # Errors
    /// `Unsupported` where the kernel has none (`CONFIG_IOMMUFD`), otherwise what `open` said.
    pub fn open() -> Result<Arc<Self>, ChannelError> {
        let (flags, path) = (OFlags::RDWR | OFlags::CLOEXEC, Path::new(NODE));
        match open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(Arc::new(Self { fd })),
            Err(errno @ (Errno::NOENT | Errno::NODEV | Errno::NXIO)) => {
                let error = failed(&format!("open {NODE}"), errno, "this kernel has no iommufd (CONFIG_IOMMUFD)");
                Err(ChannelError { kind: ChannelErrorKind::Unsupported, ..error })
            }
            Err(errno) => Err(failed(&format!("open {NODE}"), errno, "")),
        }
    }

    /// What the IOMMU in front of a bound device can do. `dev_id` is what binding it gave (`out_devid`).
    ///
    /// # Errors
    /// `ENOENT` for what is no bound device, mediated devices included: they have no IOMMU of their own.
    pub fn hw_info(&self, dev_id: u32) -> Result<HwInfo, ChannelError> {
        match ioctl::hw_info(self.as_fd(), dev_id) {
            Ok((data_type, capabilities)) => Ok(HwInfo { data_type, capabilities }),
            Err(errno) => Err(failed(&format!("IOMMU_GET_HW_INFO of device {dev_id}"), errno, no_device(errno))),
        }
    }

    /// Whether pinned memory counts against `RLIMIT_MEMLOCK` of the process, as with type1, and not of the user.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn accounts_by_process(&self) -> Result<bool, ChannelError> {
        ioctl::option_get(self.as_fd(), 0, OPTION_RLIMIT_MODE)
            .map(|mode| mode != 0)
            .map_err(|errno| failed("IOMMU_OPTION RLIMIT_MODE", errno, ""))
    }

    /// Sets [`Iommufd::accounts_by_process`]. Only before there is any object; needs `CAP_SYS_RESOURCE`.
    ///
    /// # Errors
    /// `EPERM`, `EBUSY`.
    pub fn set_accounts_by_process(&self, by_process: bool) -> Result<(), ChannelError> {
        ioctl::option_set(self.as_fd(), 0, OPTION_RLIMIT_MODE, by_process.into()).map_err(|errno| {
            let meaning = match errno {
                Errno::BUSY => "it is set before there is any object",
                Errno::PERM => "it takes CAP_SYS_RESOURCE",
                _ => "",
            };
            failed("IOMMU_OPTION RLIMIT_MODE", errno, meaning)
        })
    }
}

impl AsFd for Iommufd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What an errno of a call with a device's id means.
pub(super) fn no_device(errno: Errno) -> &'static str {
    match errno {
        Errno::NOENT => "no such device is bound; a mediated device has no IOMMU of its own",
        _ => "",
    }
}

/// An object in a descriptor, destroyed once.
#[derive(Debug)]
pub(super) struct Object {
    iommu: Arc<Iommufd>,
    what: &'static str,
    /// Also after it is gone: the kernel may give the number to another object, so nobody else destroys by it.
    id: AtomicU32,
    is_gone: Mutex<bool>,
}

impl Object {
    /// An object that an ioctl has just made.
    pub(super) fn new(iommu: &Arc<Iommufd>, what: &'static str, id: u32) -> Self {
        Self { iommu: Arc::clone(iommu), what, id: AtomicU32::new(id), is_gone: Mutex::new(false) }
    }

    pub(super) fn iommu(&self) -> &Arc<Iommufd> {
        &self.iommu
    }

    /// 0, which is no object, once it is destroyed.
    pub(super) fn id(&self) -> u32 {
        self.id.load(Ordering::Acquire)
    }

    /// `IOMMU_DESTROY`, once.
    pub(super) fn destroy(&self) -> Result<(), ChannelError> {
        let mut is_gone = self.is_gone.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_gone {
            return Ok(());
        }
        let id = self.id();
        ioctl::destroy(self.iommu.as_fd(), id).map_err(|errno| {
            let meaning = if errno == Errno::BUSY { "a device or another object still uses it" } else { "" };
            failed(&format!("IOMMU_DESTROY of {} {id}", self.what), errno, meaning)
        })?;
        *is_gone = true;
        self.id.store(0, Ordering::Release);
        Ok(())
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // It goes with the descriptor, where somebody still uses it.
        let _ = self.destroy();
    }
}
