//! Drivers and VFs by sysfs, put back on drop, and what sysfs tells of a function.

use std::path::Path;

use towline_core::channel::ChannelError;
use towline_linux::vfio::{OpenBy, Place, VfToken, VfioFunction, VfioOptions};

fn device(address: &str) -> String {
    format!("/sys/bus/pci/devices/{address}")
}

fn write(path: &str, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|error| panic!("write {text:?} to {path}: {error}"));
}

/// A function bound to a driver for as long as this lives; afterwards to the one that it had.
pub struct Bound {
    address: String,
    before: Option<String>,
}

fn bind(address: &str, driver: Option<&str>) {
    if Path::new(&format!("{}/driver", device(address))).exists() {
        write(&format!("{}/driver/unbind", device(address)), address);
    }
    write(&format!("{}/driver_override", device(address)), driver.unwrap_or("\n"));
    if driver.is_some() {
        write("/sys/bus/pci/drivers_probe", address);
    }
}

impl Bound {
    pub fn to(address: &str, driver: &str) -> Self {
        let before = Place::find(address).unwrap().driver();
        bind(address, Some(driver));
        assert_eq!(Place::find(address).unwrap().driver().as_deref(), Some(driver));
        Self { address: address.to_owned(), before }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        bind(&self.address, self.before.as_deref());
        write(&format!("{}/driver_override", device(&self.address)), "\n");
    }
}

/// VFs of a PF, bound to nothing, for as long as this lives.
pub struct Vfs {
    pf: String,
}

impl Vfs {
    pub fn of(pf: &str, count: u32) -> Self {
        write(&format!("{}/sriov_drivers_autoprobe", device(pf)), "0");
        write(&format!("{}/sriov_numvfs", device(pf)), &count.to_string());
        Self { pf: pf.to_owned() }
    }

    pub fn address(&self, index: u32) -> String {
        let link = std::fs::read_link(format!("{}/virtfn{index}", device(&self.pf))).unwrap();
        let address = link.file_name().unwrap().to_str().unwrap().to_owned();
        // `vfio-pci` as the driver of the PF gives its VFs an override, and autoprobe is off.
        if Place::find(&self.pf).unwrap().driver().as_deref() == Some("vfio-pci") {
            bind(&address, Some("vfio-pci"));
        }
        address
    }
}

impl Drop for Vfs {
    fn drop(&mut self) {
        write(&format!("{}/sriov_numvfs", device(&self.pf)), "0");
        write(&format!("{}/sriov_drivers_autoprobe", device(&self.pf)), "1");
    }
}

/// Lets `vfio-pci` make VFs.
pub fn enable_sriov() {
    write("/sys/module/vfio_pci/parameters/enable_sriov", "Y");
}

pub fn way(by: OpenBy) -> &'static str {
    if by == OpenBy::Group { "group" } else { "cdev" }
}

pub fn has_node(address: &str) -> bool {
    Path::new("/dev/iommu").exists() && Place::find(address).unwrap().cdev().is_some_and(|node| node.exists())
}

pub fn open(address: &str, by: OpenBy) -> VfioFunction {
    try_open(address, by, None).unwrap()
}

pub fn try_open(address: &str, by: OpenBy, token: Option<VfToken>) -> Result<VfioFunction, ChannelError> {
    VfioFunction::open(address, &VfioOptions { by, token, ..VfioOptions::default() })
}

/// The lengths of the six BARs and the ROM by `resource`.
pub fn resource_sizes(address: &str) -> Vec<u64> {
    let text = std::fs::read_to_string(format!("{}/resource", device(address))).unwrap();
    let number = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap();
    let size = |line: &str| {
        let mut words = line.split_whitespace().map(number);
        let (start, end) = (words.next().unwrap(), words.next().unwrap());
        if end == 0 { 0 } else { end - start + 1 }
    };
    text.lines().take(6).map(size).collect()
}

/// Configuration space by sysfs, which reads the hardware.
pub fn config(address: &str) -> Vec<u8> {
    std::fs::read(format!("{}/config", device(address))).unwrap()
}

/// How many vectors MSI-X has, by the capability in configuration space.
pub fn msix_vectors(address: &str) -> u32 {
    let config = config(address);
    let mut at = usize::from(config[0x34]);
    while at != 0 {
        if config[at] == 0x11 {
            return u32::from(u16::from_le_bytes([config[at + 2], config[at + 3]]) & 0x7ff) + 1;
        }
        at = usize::from(config[at + 1]);
    }
    0
}

/// How many MSI-X vectors of `vfio-pci` the kernel has for this function.
pub fn wired_vectors(address: &str) -> usize {
    let text = std::fs::read_to_string("/proc/interrupts").unwrap();
    text.lines().filter(|line| line.contains("vfio-msix") && line.contains(address)).count()
}
