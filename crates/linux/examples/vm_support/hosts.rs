//! Devices of the guest, by the library's own ways.

use std::sync::Arc;

use towline_linux::pci::{PciAddress, PciControl};
use towline_linux::sysfs::Sysfs;
use towline_linux::vfio::{Container, Place, VfioDevice};

/// This guest's.
pub fn sysfs() -> Sysfs {
    Sysfs::at("/sys")
}

/// A device by its group, in a container of its own or in one that is there.
pub fn by_group(container: &Arc<Container>, name: &str) -> VfioDevice {
    container.device(Place::find(name).unwrap().group().unwrap(), name).unwrap()
}

/// A PCI function on a driver, and on what it was before when this is dropped.
pub struct Bound {
    control: PciControl,
    /// Whether something has to be done then.
    had_other: bool,
}

impl Bound {
    pub fn to(address: &str, driver: &str) -> Self {
        let control = PciControl::of(&sysfs(), address.parse::<PciAddress>().unwrap()).unwrap();
        let now = || Place::find(address).unwrap().driver();
        let before = now();
        let bound = Self { control, had_other: before.as_deref().is_some_and(|name| name != driver) };
        if before.as_deref() != Some(driver) {
            bound.rebind(before.is_some(), Some(driver));
        }
        assert_eq!(now().as_deref(), Some(driver));
        bound
    }

    fn rebind(&self, is_bound: bool, driver: Option<&str>) {
        if is_bound {
            self.control.unbind().unwrap();
        }
        self.control.set_driver_override(driver).unwrap();
        self.control.probe().unwrap();
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if self.had_other {
            self.rebind(true, None);
        }
    }
}
