//! Where a device is in sysfs, and by which nodes it is opened.

use std::path::{Path, PathBuf};

use towline_core::channel::{ChannelError, ChannelErrorKind};

/// A device as sysfs has it. Looking at it opens nothing that has a single owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    name: String,
    path: PathBuf,
    is_mdev: bool,
}

fn unsupported(message: String) -> ChannelError {
    ChannelError::new(ChannelErrorKind::Unsupported, message)
}

/// The last part of where a link goes.
fn link_name(link: &Path) -> Option<String> {
    Some(std::fs::read_link(link).ok()?.file_name()?.to_str()?.to_owned())
}

/// A hexadecimal attribute, `0x1b36`, without its prefix.
fn hex(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let digits = text.trim().strip_prefix("0x")?;
    (!digits.is_empty() && digits.len() <= 8 && digits.chars().all(|c| c.is_ascii_hexdigit()))
        .then(|| digits.to_owned())
}

impl Place {
    /// Finds the PCI function (`0000:01:10.0`) or mediated device (its UUID) with this name.
    ///
    /// # Errors
    /// [`ChannelErrorKind::Limit`] for what is no name, [`ChannelErrorKind::Gone`] where there is no such device.
    pub fn find(name: &str) -> Result<Self, ChannelError> {
        Self::find_below(Path::new("/sys"), name)
    }

    /// As [`Place::find`], below another root than `/sys`.
    ///
    /// # Errors
    /// As [`Place::find`].
    pub fn find_below(sysfs: &Path, name: &str) -> Result<Self, ChannelError> {
        let plain = |c: char| c.is_ascii_hexdigit() || matches!(c, ':' | '.' | '-');
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) || name.contains("..") {
            let message = format!("{name:?} is neither a PCI address nor the UUID of a mediated device");
            return Err(ChannelError::new(ChannelErrorKind::Limit, message));
        }
        for (bus, is_mdev) in [("pci", false), ("mdev", true)] {
            let path = sysfs.join("bus").join(bus).join("devices").join(name);
            if path.exists() {
                return Ok(Self { name: name.to_owned(), path, is_mdev });
            }
        }
        let message = format!("no PCI function and no mediated device here is {name}");
        Err(ChannelError::new(ChannelErrorKind::Gone, message))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is a mediated device. Its DMA is the software's of its parent: it attaches to address spaces, not to hardware
    /// page tables.
    #[must_use]
    pub fn is_mdev(&self) -> bool {
        self.is_mdev
    }

    /// The kernel driver that it is bound to.
    #[must_use]
    pub fn driver(&self) -> Option<String> {
        link_name(&self.path.join("driver"))
    }

    /// The number of its IOMMU group: `/dev/vfio/NUMBER`.
    ///
    /// # Errors
    /// [`ChannelErrorKind::Unsupported`] where it is in none.
    pub fn group(&self) -> Result<u32, ChannelError> {
        let number = link_name(&self.path.join("iommu_group")).and_then(|name| name.parse().ok());
        number.ok_or_else(|| {
            let message = format!("{} is in no IOMMU group ({}/iommu_group)", self.name, self.path.display());
            unsupported(format!("{message}: turn the IOMMU on, and bind it to a driver of VFIO"))
        })
    }

    /// Its own node, `/dev/vfio/devices/vfioN`, where the kernel has such (`CONFIG_VFIO_DEVICE_CDEV`) and it is bound to a driver of
    /// VFIO.
    #[must_use]
    pub fn cdev(&self) -> Option<PathBuf> {
        let entries = std::fs::read_dir(self.path.join("vfio-dev")).ok()?;
        let name = entries.take(16).flatten().find_map(|entry| {
            let name = entry.file_name().to_str()?.to_owned();
            let number = name.strip_prefix("vfio")?;
            (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some(name)
        })?;
        // Older kernels number the device without giving it a node.
        std::fs::symlink_metadata(self.path.join("vfio-dev").join(&name).join("dev")).ok()?;
        Some(Path::new("/dev/vfio/devices").join(name))
    }

    /// What its state bytes are: `vfio:<kernel driver>:<vendor>:<device>`, `vfio:<kernel driver>:<type>` for a mediated device.
    #[must_use]
    pub fn format(&self) -> Option<String> {
        let driver = self.driver()?;
        if self.is_mdev {
            return Some(format!("vfio:{driver}:{}", link_name(&self.path.join("mdev_type"))?));
        }
        Some(format!("vfio:{driver}:{}:{}", hex(&self.path.join("vendor"))?, hex(&self.path.join("device"))?))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{create_dir_all, write};
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let pci = root.path().join("bus/pci/devices/0000:01:00.1");
        create_dir_all(pci.join("vfio-dev/vfio7")).unwrap();
        write(pci.join("vfio-dev/vfio7/dev"), "511:7\n").unwrap();
        write(pci.join("vendor"), "0x15b3\n").unwrap();
        write(pci.join("device"), "0x101e\n").unwrap();
        symlink("../../../drivers/mlx5_vfio_pci", pci.join("driver")).unwrap();
        symlink("../../../../kernel/iommu_groups/21", pci.join("iommu_group")).unwrap();
        let mdev = root.path().join("bus/mdev/devices/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001");
        create_dir_all(mdev.join("vfio-dev/vfio0")).unwrap();
        symlink("../../mdev_supported_types/mtty-2", mdev.join("mdev_type")).unwrap();
        symlink("../../../../bus/mdev/drivers/mtty", mdev.join("driver")).unwrap();
        root
    }

    #[test]
    fn a_pci_function_and_a_mediated_device() {
        let root = tree();
        let pci = Place::find_below(root.path(), "0000:01:00.1").unwrap();
        assert_eq!(pci.group(), Ok(21));
        assert_eq!(pci.cdev(), Some(PathBuf::from("/dev/vfio/devices/vfio7")));
        assert_eq!(pci.format().as_deref(), Some("vfio:mlx5_vfio_pci:15b3:101e"));
        assert!(!pci.is_mdev());
        let mdev = Place::find_below(root.path(), "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001").unwrap();
        assert_eq!(mdev.group().unwrap_err().kind, ChannelErrorKind::Unsupported);
        assert_eq!(mdev.cdev(), None, "without a device number there is no node");
        assert_eq!(mdev.format().as_deref(), Some("vfio:mtty:mtty-2"));
        assert!(mdev.is_mdev());
    }

    #[test]
    fn names_are_not_paths() {
        let root = tree();
        for name in ["", "..", "../devices/0000:01:00.1", "0000:01:00.1/driver", "0000:01:00.1\0", &"0".repeat(65)] {
            assert_eq!(Place::find_below(root.path(), name).unwrap_err().kind, ChannelErrorKind::Limit, "{name:?}");
        }
        let missing = Place::find_below(root.path(), "0000:02:00.0").unwrap_err();
        assert_eq!(missing.kind, ChannelErrorKind::Gone);
    }
}
