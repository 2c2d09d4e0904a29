//! An open device.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use towline_core::channel::{ChannelError, ChannelErrorKind};
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FEATURE_MIGRATION, VFIO_DEVICE_FEATURE_PCI_VF_TOKEN, vfio_device_feature_migration,
};

use super::container::{Container, open_node, token_meaning};
use super::error::{failed, told};
use super::features::Features;
use super::ioctl;
use super::place::Place;
use super::reset::reset_with_retries;
use super::token::VfToken;

/// By what a device was opened, and what that keeps open.
#[derive(Debug)]
pub(super) enum OpenedBy {
    /// Somebody else did, and passed the descriptor.
    Others,
    // Fields are dropped in this order: a group is let go of before its container.
    Group {
        _group: OwnedFd,
        container: Arc<Container>,
    },
    /// The kernel keeps the iommufd for as long as the device is bound to it.
    Cdev {
        devid: u32,
    },
}

/// By which way a device was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenedWay {
    /// By its group and a container.
    Group,
    /// By its own node and an iommufd.
    Cdev,
    /// By somebody else.
    Fd,
}

/// An open VFIO device. Its descriptor ([`AsFd`]) takes `pread` and `pwrite` within its regions.
#[derive(Debug)]
pub struct VfioDevice {
    // Dropped before what it was opened by.
    fd: OwnedFd,
    name: String,
    /// What `VFIO_DEVICE_GET_INFO` told: flags, regions, interrupt indexes.
    info: (u32, u32, u32),
    format: Option<String>,
    opened_by: OpenedBy,
}

impl VfioDevice {
    /// A device that somebody else opened, by its group or its `/dev/vfio/devices/vfioN`, and bound to an address space.
    /// `name` is its PCI address or UUID; where there is no such device it is for messages only.
    ///
    /// # Errors
    /// [`ChannelErrorKind::Unsupported`] where the descriptor is not that of a VFIO device.
    pub fn from_fd(fd: OwnedFd, name: &str) -> Result<Self, ChannelError> {
        Self::new(fd, name, OpenedBy::Others)
    }

    /// Opens a device by its own node (`/dev/vfio/devices/vfioN`, see [`Place::cdev`]) and binds it to an iommufd. It reaches
    /// no memory until it is attached to an address space of that ([`VfioDevice::attach`]). A device is open once, by its
    /// group or by its node.
    ///
    /// # Errors
    /// What the kernel said: `EBUSY` where it is open, `EACCES` for a VF without its token or with a wrong one, `EINVAL` for a
    /// token where none is taken.
    pub fn open_cdev(
        node: &Path,
        name: &str,
        iommufd: BorrowedFd<'_>,
        token: Option<&VfToken>,
    ) -> Result<Self, ChannelError> {
        let fd = open_node(node)?;
        let devid = ioctl::bind_iommufd(fd.as_fd(), iommufd, token.map(VfToken::bytes)).map_err(|errno| {
            let what = format!("{}: VFIO_DEVICE_BIND_IOMMUFD of {name}", node.display());
            told(&what, errno, token_meaning(errno, token.is_some()))
        })?;
        Self::new(fd, name, OpenedBy::Cdev { devid })
    }

    pub(super) fn new(fd: OwnedFd, name: &str, opened_by: OpenedBy) -> Result<Self, ChannelError> {
        // The numbers of other ioctls here mean other things on other descriptors of VFIO; that of this one doesn't.
        match ioctl::device_info(fd.as_fd()) {
            Ok(info) => {
                let format = Place::find(name).ok().and_then(|place| place.format());
                let info = (info.flags, info.num_regions, info.num_irqs);
                Ok(Self { fd, name: name.to_owned(), info, format, opened_by })
            }
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

    /// By which way it was opened.
    #[must_use]
    pub fn opened_way(&self) -> OpenedWay {
        match self.opened_by {
            OpenedBy::Others => OpenedWay::Fd,
            OpenedBy::Group { .. } => OpenedWay::Group,
            OpenedBy::Cdev { .. } => OpenedWay::Cdev,
        }
    }

    /// The container that it was opened by, if it was by its group.
    #[must_use]
    pub fn container(&self) -> Option<&Arc<Container>> {
        match &self.opened_by {
            OpenedBy::Group { container, .. } => Some(container),
            _ => None,
        }
    }

    /// Its number in the iommufd that it is bound to, if it was opened by its own node.
    #[must_use]
    pub fn devid(&self) -> Option<u32> {
        match self.opened_by {
            OpenedBy::Cdev { devid } => Some(devid),
            _ => None,
        }
    }

    /// What its state bytes are ([`Place::format`]), where sysfs tells.
    #[must_use]
    pub fn format(&self) -> Option<&str> {
        self.format.as_deref()
    }

    /// `VFIO_DEVICE_FLAGS_*`: bit 0 reset, bit 1 PCI. A device may take a reset without telling.
    #[must_use]
    pub fn flags(&self) -> u32 {
        self.info.0
    }

    /// How many region indexes it has. Those of a PCI device are fixed: 0 to 5 BARs, 6 ROM, 7 configuration space, 8 VGA; others follow.
    #[must_use]
    pub fn region_count(&self) -> u32 {
        self.info.1
    }

    /// How many interrupt indexes it has. Those of a PCI device are fixed: 0 INTx, 1 MSI, 2 MSI-X, 3 errors, 4 requests.
    #[must_use]
    pub fn irq_index_count(&self) -> u32 {
        self.info.2
    }

    /// Attaches it to `pt_id` of the iommufd that it is bound to: an IOAS, or for PCI devices also an HWPT. What it was attached
    /// to before is replaced. Returns the HWPT that it uses now; for an IOAS the kernel chooses or makes one.
    ///
    /// # Errors
    /// What the kernel said: `EINVAL` for a page table that doesn't fit it (a mediated device with an HWPT), `ENOENT` for an
    /// object that isn't there.
    pub fn attach(&self, pt_id: u32) -> Result<u32, ChannelError> {
        ioctl::attach(self.as_fd(), pt_id).map_err(|errno| {
            let meaning = match errno {
                Errno::NOENT => "the iommufd has no such address space or page table",
                Errno::INVAL => "it can't use that: a mediated device takes an IOAS only, others one of their IOMMU",
                Errno::NOTTY => "it was not opened by its own node",
                _ => "",
            };
            told(&format!("{}: VFIO_DEVICE_ATTACH_IOMMUFD_PT {pt_id}", self.name), errno, meaning)
        })
    }

    /// Detaches it: afterwards it reaches no memory.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn detach(&self) -> Result<(), ChannelError> {
        ioctl::detach(self.as_fd())
            .map_err(|errno| failed(&format!("{}: VFIO_DEVICE_DETACH_IOMMUFD_PT", self.name), errno))
    }

    /// What it can do, by probing; changes nothing.
    ///
    /// # Errors
    /// What the kernel said to a probe, other than that the feature isn't there.
    pub fn features(&self) -> Result<Features, ChannelError> {
        Features::probe(&self.name, |index, operation| ioctl::feature_probe(self.as_fd(), index, operation))
    }

    /// Its migration flags (`VFIO_MIGRATION_*`: bit 0 STOP_COPY, 1 P2P, 2 PRE_COPY); 0 for a device that doesn't migrate.
    ///
    /// # Errors
    /// What the kernel said, other than that it doesn't migrate.
    pub fn migration_flags(&self) -> Result<u64, ChannelError> {
        let data = vfio_device_feature_migration::default();
        // SAFETY: the structure of this feature: one number.
        match unsafe { ioctl::feature_get(self.as_fd(), VFIO_DEVICE_FEATURE_MIGRATION, data) } {
            Ok(got) => Ok(got.flags),
            Err(Errno::NOTTY) => Ok(0),
            Err(errno) => Err(failed(&format!("{}: VFIO_DEVICE_FEATURE_MIGRATION", self.name), errno)),
        }
    }

    /// Sets the token that users of its VFs have to know. Of a PF on `vfio-pci`.
    ///
    /// # Errors
    /// [`ChannelErrorKind::Unsupported`] where it has no VFs to protect.
    pub fn set_vf_token(&self, token: &VfToken) -> Result<(), ChannelError> {
        // SAFETY: the structure of this feature: the 16 bytes of a UUID.
        unsafe { ioctl::feature_set(self.as_fd(), VFIO_DEVICE_FEATURE_PCI_VF_TOKEN, *token.bytes()) }
            .map(drop)
            .map_err(|errno| failed(&format!("{}: VFIO_DEVICE_FEATURE_PCI_VF_TOKEN", self.name), errno))
    }

    /// Resets the function alone (`VFIO_DEVICE_RESET`). The kernel only tries the locks that it needs, so it is tried again for up to
    /// a second where they are held.
    ///
    /// # Errors
    /// What the kernel said: `EINVAL` where the function can't be reset alone.
    pub fn reset(&self) -> Result<(), ChannelError> {
        reset_with_retries(|| ioctl::reset(self.as_fd())).map_err(|errno| {
            let meaning = match errno {
                Errno::INVAL | Errno::NOTTY => "it can't be reset alone",
                Errno::AGAIN => "its locks were held all the time",
                _ => "",
            };
            told(&format!("{}: VFIO_DEVICE_RESET", self.name), errno, meaning)
        })
    }
}

impl AsFd for VfioDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags, open};

    use super::*;

    fn null() -> OwnedFd {
        open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    #[test]
    fn what_is_no_vfio_device_is_refused() {
        let error = VfioDevice::from_fd(null(), "null").unwrap_err();
        assert_eq!(error.kind, ChannelErrorKind::Unsupported);
        assert_eq!(error.errno, Some(Errno::NOTTY.raw_os_error()));
        let error = VfioDevice::open_cdev(Path::new("/dev/null"), "null", null().as_fd(), None).unwrap_err();
        assert_eq!(error.errno, Some(Errno::NOTTY.raw_os_error()));
        assert!(error.message.contains("ENOTTY"), "{error}");
        let error = VfioDevice::open_cdev(Path::new("/dev/vfio/devices/none"), "n", null().as_fd(), None).unwrap_err();
        assert_eq!(error.errno, Some(Errno::NOENT.raw_os_error()));
    }
}
