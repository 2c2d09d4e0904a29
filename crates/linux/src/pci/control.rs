//! The files that make VFs and change drivers.

use std::path::PathBuf;

use rustix::io::Errno;

use super::function::directory;
use super::{PciAddress, PciFunction, meaning};
use crate::sysfs::{self, HostError, HostErrorKind, Meaning, Sysfs, is_plain_name, link_name, small, text};

/// What may be changed of one PCI function. It holds nothing open: every call finds the function anew.
///
/// Each call writes one file and blocks as long as the kernel does: removing or unbinding a function that somebody has open through
/// VFIO waits until that is closed, without a limit.
#[derive(Clone, Debug)]
pub struct PciControl {
    sysfs: Sysfs,
    address: PciAddress,
}

impl PciControl {
    /// That of a function.
    ///
    /// # Errors
    /// [`HostErrorKind::NotFound`] where there is no such function.
    pub fn of(sysfs: &Sysfs, address: PciAddress) -> Result<Self, HostError> {
        let folder = directory(sysfs, address);
        if folder.is_dir() {
            return Ok(Self { sysfs: sysfs.clone(), address });
        }
        let found = HostError::new(
            HostErrorKind::NotFound,
            format!("{}", folder.display()),
            "there is no such PCI function here",
        );
        Err(found.mend("towline list shows what there is; after a hot plug, rescan the bus"))
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> PciAddress {
        self.address
    }

    fn file(&self, name: &str) -> PathBuf {
        directory(&self.sysfs, self.address).join(name)
    }

    fn write(&self, file: PathBuf, value: &str, means: fn(Errno) -> Option<Meaning>) -> Result<(), HostError> {
        sysfs::write(&file, value.as_bytes()).map_err(|errno| {
            let what = format!("writing {:?} to {}", value.trim_end(), file.display());
            if errno == Errno::NOENT && !directory(&self.sysfs, self.address).is_dir() {
                let gone = Meaning(HostErrorKind::Gone, "the function is gone", "list the functions again");
                return HostError::refused(what, errno, Some(gone));
            }
            HostError::refused(what, errno, means(errno))
        })
    }

    /// Makes `count` VFs, or removes all with 0 (`sriov_numvfs`). Removing blocks while one of them is open through VFIO.
    ///
    /// # Errors
    /// [`HostErrorKind::Limit`] for more than the device has or can be given; [`HostErrorKind::State`] where there are VFs and
    /// `count` is another number than 0; [`HostErrorKind::Unsupported`] where the PF's driver makes none; as the kernel says.
    pub fn set_num_vfs(&self, count: u16) -> Result<(), HostError> {
        let file = self.file("sriov_numvfs");
        if text(&file).is_none() && !file.exists() && directory(&self.sysfs, self.address).is_dir() {
            let none =
                HostError::new(HostErrorKind::Unsupported, format!("{}", file.display()), "the function has no SR-IOV");
            return Err(none.mend("choose a PF with SR-IOV, and enable it in the firmware and the device"));
        }
        self.write(file.clone(), &count.to_string(), meaning::num_vfs)?;
        // The write succeeds also where the driver made fewer (`drivers/pci/iov.c`, sriov_numvfs_store).
        match small::<u16>(&file) {
            Some(made) if made != count => {
                let what = format!("writing {count} to {}", file.display());
                let meaning = format!("the driver of the PF made {made} VFs");
                Err(HostError::new(HostErrorKind::Limit, what, meaning).mend("look at dmesg; write 0 to remove them"))
            }
            _ => Ok(()),
        }
    }

    /// Whether new VFs are bound to a driver at once (`sriov_drivers_autoprobe`). VFs that exist stay as they are.
    ///
    /// # Errors
    /// [`HostErrorKind::Unsupported`] without SR-IOV, or as the kernel says.
    pub fn set_autoprobe(&self, on: bool) -> Result<(), HostError> {
        self.write(self.file("sriov_drivers_autoprobe"), if on { "1" } else { "0" }, meaning::autoprobe)
    }

    /// Gives a VF, which must be bound to no driver, this many MSI-X vectors; 0 restores the default of the device.
    ///
    /// # Errors
    /// [`HostErrorKind::Busy`] for a VF with a driver, [`HostErrorKind::Unsupported`] where the PF's driver does not do it, or as
    /// the kernel says.
    pub fn set_vf_msix(&self, count: u32) -> Result<(), HostError> {
        if count > i32::MAX.cast_unsigned() {
            return Err(HostError::argument(
                format!("{count} MSI-X vectors"),
                "the most that a function can have are 2048",
            ));
        }
        self.write(self.file("sriov_vf_msix_count"), &count.to_string(), meaning::vf_msix)
    }

    /// Lets only this driver have the function, whatever it says that it supports; `None` lets any. Nothing is bound by it.
    ///
    /// # Errors
    /// [`HostErrorKind::Argument`] for what is no name of a driver, or as the kernel says.
    pub fn set_driver_override(&self, driver: Option<&str>) -> Result<(), HostError> {
        if let Some(name) = driver {
            check_driver_name(name)?;
        }
        // An empty line clears it; an empty write would not arrive.
        let value = driver.map_or_else(|| "\n".to_owned(), |name| format!("{name}\n"));
        self.write(self.file("driver_override"), &value, meaning::driver_override)
    }

    /// Takes the function from its driver. Done, where it has none. Blocks while it is open through VFIO.
    ///
    /// # Errors
    /// [`HostErrorKind::State`] where another driver got it meanwhile, or as the kernel says.
    pub fn unbind(&self) -> Result<(), HostError> {
        let Some(driver) = link_name(&self.file("driver")) else { return Ok(()) };
        let unbound = self.write(self.driver_file(&driver, "unbind"), &self.address.to_string(), meaning::unbind);
        match unbound {
            // Somebody was faster.
            Err(e) if e.kind == HostErrorKind::State && link_name(&self.file("driver")).is_none() => Ok(()),
            other => other,
        }
    }

    fn driver_file(&self, driver: &str, name: &str) -> PathBuf {
        self.sysfs.path("bus/pci/drivers").join(driver).join(name)
    }

    /// Lets the kernel find a driver for the function (`drivers_probe`), heeding `driver_override`. A function that has a driver
    /// keeps it. Returns the driver that it has afterwards.
    ///
    /// # Errors
    /// Where it ends at no driver, or at another one than `driver_override` says: the kernel tells success in either case.
    pub fn probe(&self) -> Result<String, HostError> {
        let file = self.sysfs.path("bus/pci/drivers_probe");
        self.write(file.clone(), &self.address.to_string(), meaning::probe)?;
        let wanted = text(&self.file("driver_override")).filter(|name| !name.is_empty() && name != "(null)");
        let found = link_name(&self.file("driver"));
        let what = format!("writing {} to {}", self.address, file.display());
        match (wanted, found) {
            (None, Some(found)) => Ok(found),
            (Some(wanted), Some(found)) if wanted == found => Ok(found),
            (None, None) => {
                let none = HostError::new(HostErrorKind::Unsupported, what, "no driver took the function");
                // `pci_device_can_probe` in `drivers/pci/pci-driver.c`.
                let autoprobe = sysfs::flag(&self.file("physfn").join("sriov_drivers_autoprobe"));
                Err(none.mend(match autoprobe {
                    Some(false) => "sriov_drivers_autoprobe of its PF is 0: name the driver in driver_override",
                    _ => "load the module of its driver; dmesg tells where a driver refused",
                }))
            }
            (Some(wanted), Some(found)) => {
                let meaning = format!("it is bound to {found}, driver_override says {wanted}");
                Err(HostError::new(HostErrorKind::State, what, meaning).mend("unbind it first"))
            }
            (Some(wanted), None) => Err(self.not_taken(what, &wanted)),
        }
    }

    fn not_taken(&self, what: String, wanted: &str) -> HostError {
        if !self.sysfs.path("bus/pci/drivers").join(wanted).is_dir() {
            let meaning = format!("there is no driver {wanted}");
            let mend = format!("load its module: modprobe {wanted}");
            return HostError::new(HostErrorKind::Unsupported, what, meaning).mend(mend);
        }
        // vfio-pci needs the IOMMU's group: without one it refuses every device.
        let no_group = wanted.contains("vfio") && link_name(&self.file("iommu_group")).is_none();
        let (kind, mend) = if no_group {
            let mend =
                "the function has no IOMMU group: switch the IOMMU on in the firmware and the kernel (intel_iommu=on)";
            (HostErrorKind::Unsupported, mend)
        } else {
            (HostErrorKind::Device, "dmesg tells why")
        };
        HostError::new(kind, what, format!("driver {wanted} refused the function")).mend(mend)
    }

    /// Resets the function by the first way of `reset_method` that works. Whoever uses it loses what it was doing.
    ///
    /// # Errors
    /// [`HostErrorKind::Unsupported`] where there is no way, [`HostErrorKind::Busy`] where it is locked, or as the kernel says.
    pub fn reset(&self) -> Result<(), HostError> {
        self.write(self.file("reset"), "1", meaning::reset)
    }

    /// What sysfs tells about it now.
    ///
    /// # Errors
    /// [`HostErrorKind::Gone`] where it went away.
    pub fn read(&self) -> Result<PciFunction, HostError> {
        PciFunction::find(&self.sysfs, self.address).ok_or_else(|| {
            let what = format!("{}", directory(&self.sysfs, self.address).display());
            HostError::new(HostErrorKind::Gone, what, "the function is gone").mend("list the functions again")
        })
    }
}

fn check_driver_name(name: &str) -> Result<(), HostError> {
    if is_plain_name(name) && name.len() <= 64 {
        return Ok(());
    }
    let shown: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
    Err(HostError::argument(format!("{shown:?}"), "this is not the name of a driver"))
}
