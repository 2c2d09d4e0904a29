//! What this kernel has for VFIO, by looking only.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::pci::{VfioAlias, vfio_aliases};
use crate::sysfs::{Sysfs, entries, text};

/// What a kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostKernel {
    /// `uname -r`; empty where it isn't told.
    pub release: String,
    /// An IOMMU is in use, with groups.
    pub iommu: bool,
    /// `/dev/vfio/vfio`
    pub container: bool,
    /// `/dev/vfio/devices`. The kernel makes it with the first device, so it may be missing where cdev is there.
    pub cdev: bool,
    /// `/dev/iommu`
    pub iommufd: bool,
    /// Registered PCI drivers.
    pub pci_drivers: Vec<String>,
    /// The bus of mediated devices.
    pub mdev: bool,
    /// VFIO's part of debugfs, readable.
    pub vfio_debugfs: bool,
    /// Aliases of variant drivers.
    pub vfio_aliases: Vec<VfioAlias>,
}

impl HostKernel {
    /// That of the kernel whose sysfs this is.
    #[must_use]
    pub fn read(sysfs: &Sysfs) -> Self {
        let release = text(&sysfs.beside("proc/sys/kernel/osrelease")).unwrap_or_default();
        let some = |path: &str| !entries(&sysfs.path(path)).is_empty();
        Self {
            // Groups alone don't tell: mediated devices and the mode without an IOMMU have some too.
            iommu: some("class/iommu") && some("kernel/iommu_groups"),
            container: is_device(&sysfs.beside("dev/vfio/vfio")),
            cdev: sysfs.beside("dev/vfio/devices").is_dir(),
            iommufd: is_device(&sysfs.beside("dev/iommu")),
            pci_drivers: entries(&sysfs.path("bus/pci/drivers")),
            mdev: sysfs.path("bus/mdev").is_dir(),
            vfio_debugfs: std::fs::read_dir(sysfs.path("kernel/debug/vfio")).is_ok(),
            vfio_aliases: vfio_aliases(sysfs, &release),
            release,
        }
    }
}

fn is_device(path: &Path) -> bool {
    // A tree for tests can't have device nodes without root: a regular file stands for one there.
    std::fs::metadata(path).is_ok_and(|m| m.file_type().is_char_device() || m.is_file())
}
