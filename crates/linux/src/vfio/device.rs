//! Opening a device by its group.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use towline_core::channel::{ChannelError, ChannelErrorKind};
use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_GROUP_FLAGS_CONTAINER_SET, VFIO_GROUP_FLAGS_VIABLE, VFIO_TYPE1v2_IOMMU,
};

use super::error::failed;
use super::ioctl;

/// An address space that groups share: a `/dev/vfio/vfio` with the type1 (version 2) IOMMU model.
#[derive(Debug)]
pub struct Container {
    fd: OwnedFd,
}

fn device_error(message: String) -> ChannelError {
    ChannelError::new(ChannelErrorKind::Device, message)
}

fn open_node(path: &Path) -> Result<OwnedFd, ChannelError> {
    open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| failed(&format!("open {}", path.display()), errno))
}

impl Container {
    /// Opens a new container.
    ///
    /// # Errors
    /// [`ChannelErrorKind::Unsupported`] for another version of VFIO or without the type1 (version 2) model; what the kernel said.
    pub fn open() -> Result<Arc<Self>, ChannelError> {
        let fd = open_node(Path::new("/dev/vfio/vfio"))?;
        let version = ioctl::api_version(fd.as_fd()).map_err(|errno| failed("VFIO_GET_API_VERSION", errno))?;
        let extension = ioctl::check_extension(fd.as_fd(), VFIO_TYPE1v2_IOMMU)
            .map_err(|errno| failed("VFIO_CHECK_EXTENSION", errno))?;
        if u32::try_from(version) != Ok(VFIO_API_VERSION) || extension != 1 {
            let message = format!("VFIO speaks version {version} and has the type1 model: {extension}");
            return Err(ChannelError::new(ChannelErrorKind::Unsupported, message));
        }
        Ok(Arc::new(Self { fd }))
    }

    /// Opens device `name` (`0000:01:10.0`, or the UUID of a mediated device) of the group with this number. The device
    /// keeps its group and the container open. A group is opened once, by one process.
    ///
    /// # Errors
    /// [`ChannelErrorKind::Device`] where a device of the group is still bound to a kernel driver; what the kernel said
    /// otherwise, `EBUSY` where the group is open already.
    pub fn device(self: &Arc<Self>, group: u32, name: &str) -> Result<VfioDevice, ChannelError> {
        let path = format!("/dev/vfio/{group}");
        let group_fd = open_node(Path::new(&path))?;
        let status = ioctl::group_status(group_fd.as_fd()).map_err(|errno| failed("VFIO_GROUP_GET_STATUS", errno))?;
        if status & VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err(device_error(format!("{path}: some device of the group is bound to another driver")));
        }
        if status & VFIO_GROUP_FLAGS_CONTAINER_SET == 0 {
            ioctl::set_container(group_fd.as_fd(), self.fd.as_fd())
                .map_err(|errno| failed(&format!("{path}: VFIO_GROUP_SET_CONTAINER"), errno))?;
        }
        match ioctl::set_iommu(self.fd.as_fd(), VFIO_TYPE1v2_IOMMU) {
            // EINVAL: another group has set it. It is gone again once the container's last group is.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(failed("VFIO_SET_IOMMU type1v2", errno)),
        }
        let c_name = CString::new(name)
            .map_err(|_| ChannelError::new(ChannelErrorKind::Limit, format!("a device's name with NUL: {name:?}")))?;
        let fd = ioctl::device_fd(group_fd.as_fd(), &c_name)
            .map_err(|errno| failed(&format!("{path}: VFIO_GROUP_GET_DEVICE_FD {name}"), errno))?;
        VfioDevice::new(fd, name, Some((group_fd, Arc::clone(self))))
    }
}

/// One region of a device as `VFIO_DEVICE_GET_REGION_INFO` describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where it begins in the device's descriptor, in bytes, for `pread` and `pwrite`.
    pub offset: u64,
    /// Its length in bytes; 0 where the device doesn't have it.
    pub size: u64,
    /// `VFIO_REGION_INFO_FLAG_*`: bit 0 read, bit 1 write, bit 2 mmap.
    pub flags: u32,
}

/// An open VFIO device. Its descriptor ([`AsFd`]) takes `pread` and `pwrite` within its regions.
#[derive(Debug)]
pub struct VfioDevice {
    // Fields are dropped in this order: a group is let go of before its container, and after its device.
    fd: OwnedFd,
    name: String,
    _opened_by: Option<(OwnedFd, Arc<Container>)>,
}

impl VfioDevice {
    /// A device that somebody else opened, by its group or its `/dev/vfio/devices/vfioN`, and bound to an address space.
    /// `name` is for messages.
    ///
    /// # Errors
    /// [`ChannelErrorKind::Unsupported`] where the descriptor is not that of a VFIO device.
    pub fn from_fd(fd: OwnedFd, name: &str) -> Result<Self, ChannelError> {
        Self::new(fd, name, None)
    }

    fn new(fd: OwnedFd, name: &str, opened_by: Option<(OwnedFd, Arc<Container>)>) -> Result<Self, ChannelError> {
        // The numbers of other ioctls here mean other things on other descriptors of VFIO; that of this one doesn't.
        match ioctl::device_info(fd.as_fd()) {
            Ok(_) => Ok(Self { fd, name: name.to_owned(), _opened_by: opened_by }),
            Err(errno @ (Errno::INVAL | Errno::NOTTY)) => {
                let error = failed(&format!("{name} is not a VFIO device: VFIO_DEVICE_GET_INFO"), errno);
                Err(ChannelError { kind: ChannelErrorKind::Unsupported, ..error })
            }
            Err(errno) => Err(failed(&format!("{name}: VFIO_DEVICE_GET_INFO"), errno)),
        }
    }

    /// The name by which it was opened.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where region `index` is (0 to 5 are the BARs of a PCI device, 7 its configuration space).
    ///
    /// # Errors
    /// What the kernel said, `EINVAL` for a region that no such device has.
    pub fn region(&self, index: u32) -> Result<Region, ChannelError> {
        let info = ioctl::region_info(self.as_fd(), index)
            .map_err(|errno| failed(&format!("{}: VFIO_DEVICE_GET_REGION_INFO {index}", self.name), errno))?;
        Ok(Region { offset: info.offset, size: info.size, flags: info.flags })
    }
}

impl AsFd for VfioDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_vfio_device_is_refused() {
        let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let error = VfioDevice::from_fd(null, "null").unwrap_err();
        assert_eq!(error.kind, ChannelErrorKind::Unsupported);
        assert_eq!(error.errno, Some(Errno::NOTTY.raw_os_error()));
    }
}
