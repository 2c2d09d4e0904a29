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

use super::device::{OpenedBy, VfioDevice};
use super::error::{failed, told};
use super::ioctl;
use super::token::VfToken;

/// An address space that groups share: a `/dev/vfio/vfio` with the type1 (version 2) IOMMU model.
#[derive(Debug)]
pub struct Container {
    fd: OwnedFd,
}

pub(super) fn open_node(path: &Path) -> Result<OwnedFd, ChannelError> {
    open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
        let meaning = match errno {
            Errno::NOENT => "it doesn't exist: load the modules of VFIO, and bind the device to one of its drivers",
            Errno::ACCESS | Errno::PERM => "this user may not: a udev rule gives it to a group",
            Errno::BUSY => "somebody has it open, a VMM perhaps: it has one user at a time",
            Errno::NODEV => "the device was unbound, or its driver isn't loaded",
            _ => "",
        };
        told(&format!("open {}", path.display()), errno, meaning)
    })
}

/// What the kernel means when it refuses a device that may need a token.
pub(super) fn token_meaning(errno: Errno, has_token: bool) -> &'static str {
    match (errno, has_token) {
        (Errno::ACCESS, false) => "its PF is on vfio-pci: the VF token that the PF's user has set is needed",
        (Errno::ACCESS, true) => "this is not the VF token that the PF's user has set, or there is none to know yet",
        (Errno::INVAL, true) => "a VF token was given, and this device takes none: leave it out",
        (Errno::INVAL, false) => "somebody has the device open by its own node already",
        (Errno::NODEV, true) => "the group has no such device that takes a VF token",
        (Errno::BUSY, _) => "somebody has the device open, by its group or by its own node",
        (Errno::NODEV, _) => "the group has no such device: it isn't bound to a driver of VFIO",
        _ => "",
    }
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
        self.device_with_token(group, name, None)
    }

    /// As [`Container::device`], for a VF whose PF is on `vfio-pci`, or for such a PF itself.
    ///
    /// # Errors
    /// As [`Container::device`]; `EACCES` for a VF without its token or with a wrong one, `EINVAL` for a token where none
    /// is taken.
    pub fn device_with_token(
        self: &Arc<Self>,
        group: u32,
        name: &str,
        token: Option<&VfToken>,
    ) -> Result<VfioDevice, ChannelError> {
        // Before anything is opened: a name is part of what the kernel parses.
        if name.contains([' ', '\0']) {
            let message = format!("a device's name with a space or NUL: {name:?}");
            return Err(ChannelError::new(ChannelErrorKind::Limit, message));
        }
        let path = format!("/dev/vfio/{group}");
        let group_fd = open_node(Path::new(&path))?;
        let status = ioctl::group_status(group_fd.as_fd())
            .map_err(|errno| failed(&format!("{path}: VFIO_GROUP_GET_STATUS"), errno))?;
        if status & VFIO_GROUP_FLAGS_VIABLE == 0 {
            let message =
                format!("{path}: some device of the group is bound to another driver; bind it to vfio-pci too");
            return Err(ChannelError::new(ChannelErrorKind::Device, message));
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
        let whole = token.map_or_else(|| name.to_owned(), |token| format!("{name} vf_token={}", token.text()));
        let c_name = CString::new(whole)
            .map_err(|_| ChannelError::new(ChannelErrorKind::Limit, format!("a device's name with NUL: {name:?}")))?;
        let fd = ioctl::device_fd(group_fd.as_fd(), &c_name).map_err(|errno| {
            let meaning = token_meaning(errno, token.is_some());
            told(&format!("{path}: VFIO_GROUP_GET_DEVICE_FD {name}"), errno, meaning)
        })?;
        VfioDevice::new(fd, name, OpenedBy::Group { _group: group_fd, container: Arc::clone(self) })
    }
}

impl AsFd for Container {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
