//! What sysfs tells about PCI functions.

use std::collections::HashMap;
use std::path::Path;

use super::PciAddress;
use crate::sysfs::{self, Sysfs, entries, index_of, link_name, number, small, text};

/// `IORESOURCE_*` have 64 bits in the kernel; those that tell what a BAR is are in the lower 32.
const RESOURCE_FLAGS: u64 = 0xffff_ffff;
/// BARs 0 to 5 stand first in `resource`; the expansion ROM, the VFs' BARs and bridge windows follow.
const BARS: usize = 6;

/// One memory or I/O BAR that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// 0 to 5. A 64-bit BAR takes two numbers and has the first.
    pub index: u8,
    /// Length in bytes.
    pub size_bytes: u64,
    /// `IORESOURCE_*` (`include/linux/ioport.h`), the lower 32 bits.
    pub flags: u32,
}

/// The files of a function with SR-IOV.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sriov {
    /// The most VFs (`sriov_totalvfs`).
    pub total_vfs: u16,
    /// VFs that exist (`sriov_numvfs`).
    pub num_vfs: u16,
    /// Whether new VFs are bound to a driver at once.
    pub drivers_autoprobe: bool,
    /// First VF offset.
    pub offset: u16,
    /// VF stride.
    pub stride: u16,
    /// Device ID of the VFs.
    pub vf_device: u16,
    /// MSI-X vectors to share out among the VFs, where the driver of the PF does that.
    pub vf_total_msix: Option<u32>,
}

/// What the class device of an NVMe controller tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmeClass {
    /// `nvme0`.
    pub name: String,
    /// CNTLID.
    pub cntlid: Option<u16>,
    /// NQN of its subsystem.
    pub subsystem_nqn: Option<String>,
    /// `live`, `resetting`, `dead`, ….
    pub state: Option<String>,
}

/// One PCI function. What sysfs doesn't tell is `None`, empty or, for numbers that every function has, 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciFunction {
    /// Where it is.
    pub address: PciAddress,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem_device: u16,
    /// 24 bits: class, subclass, programming interface.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
    /// What module aliases are matched with: `pci:v…`.
    pub modalias: String,
    /// The driver that it is bound to.
    pub driver: Option<String>,
    /// The only driver that it may be bound to, where there is one.
    pub driver_override: Option<String>,
    /// Number of its IOMMU group.
    pub iommu_group: Option<u32>,
    /// Its NUMA node.
    pub numa_node: Option<u32>,
    /// Of a PF with SR-IOV.
    pub sriov: Option<Sriov>,
    /// Its VFs, by index.
    pub virtfns: Vec<PciAddress>,
    /// Of a VF: its PF.
    pub physfn: Option<PciAddress>,
    /// Of a VF: its index among those of the PF, from 0.
    pub vf_index: Option<u32>,
    /// Of a VF whose PF's driver has it: MSI-X vectors (`sriov_vf_msix_count`).
    pub vf_msix_count: Option<u32>,
    /// How the kernel would reset it, in this order: `flr`, `bus`, ….
    pub reset_methods: Vec<String>,
    /// `vfio2` for `/dev/vfio/devices/vfio2`.
    pub vfio_device: Option<String>,
    /// BARs in use.
    pub bars: Vec<Bar>,
    /// Of an NVMe controller that the kernel's driver has.
    pub nvme: Option<NvmeClass>,
    /// Migration state as the kernel's debugfs tells it.
    pub vfio_state: Option<String>,
}

impl PciFunction {
    /// Whether it is an NVMe controller by its class.
    #[must_use]
    pub fn is_nvme(&self) -> bool {
        self.class == 0x01_0802
    }

    /// Whether it is or may be a controlling or controlled function: SR-IOV, a VF, NVMe, or in the hands of VFIO.
    #[must_use]
    pub fn is_of_interest(&self) -> bool {
        let vfio_driver = self.driver.as_ref().is_some_and(|name| name.contains("vfio"));
        self.sriov.is_some() || self.physfn.is_some() || self.is_nvme() || self.vfio_device.is_some() || vfio_driver
    }
}

/// Every PCI function, by address.
#[must_use]
pub fn functions(sysfs: &Sysfs) -> Vec<PciFunction> {
    let bus = sysfs.path("bus/pci/devices");
    let addresses = entries(&bus).into_iter().filter_map(|name| name.parse::<PciAddress>().ok());
    let mut all: Vec<PciFunction> = addresses.filter_map(|address| PciFunction::read(sysfs, address)).collect();
    all.sort_by_key(|function| function.address);
    all.dedup_by_key(|function| function.address);
    let vfs: HashMap<(PciAddress, PciAddress), u32> =
        all.iter().flat_map(|pf| (0..).zip(&pf.virtfns).map(|(index, vf)| ((pf.address, *vf), index))).collect();
    for function in &mut all {
        function.vf_index = function.physfn.and_then(|pf| vfs.get(&(pf, function.address)).copied());
    }
    all
}

impl PciFunction {
    /// One function; `None` where there is none at this address. Of a VF, `vf_index` is told too.
    #[must_use]
    pub fn find(sysfs: &Sysfs, address: PciAddress) -> Option<Self> {
        let mut function = Self::read(sysfs, address)?;
        if let Some(pf) = function.physfn {
            let vfs = virtfns(&directory(sysfs, pf));
            function.vf_index = (0..).zip(vfs).find(|(_, vf)| *vf == address).map(|(index, _)| index);
        }
        Some(function)
    }

    /// Everything but the index of a VF, which its PF tells.
    fn read(sysfs: &Sysfs, address: PciAddress) -> Option<Self> {
        let folder = directory(sysfs, address);
        let at = |name: &str| folder.join(name);
        let id = |name: &str| small::<u16>(&at(name));
        let virtfns = virtfns(&folder);
        Some(Self {
            address,
            // Without them it is no PCI function, or it went away just now.
            vendor: id("vendor")?,
            device: id("device")?,
            subsystem_vendor: id("subsystem_vendor").unwrap_or(0),
            subsystem_device: id("subsystem_device").unwrap_or(0),
            class: number(&at("class")).and_then(|class| u32::try_from(class).ok()).unwrap_or(0) & 0xff_ffff,
            revision: small(&at("revision")).unwrap_or(0),
            modalias: text(&at("modalias")).unwrap_or_default(),
            driver: link_name(&at("driver")),
            driver_override: text(&at("driver_override")).filter(|name| !name.is_empty() && name != "(null)"),
            iommu_group: link_name(&at("iommu_group")).and_then(|name| index_of(&name, "")),
            // The kernel writes -1 for none.
            numa_node: small(&at("numa_node")),
            sriov: sriov(&folder),
            virtfns,
            physfn: link_name(&at("physfn")).and_then(|name| name.parse().ok()),
            vf_index: None,
            vf_msix_count: small(&at("sriov_vf_msix_count")),
            reset_methods: text(&at("reset_method"))
                .map(|all| all.split_ascii_whitespace().map(str::to_owned).collect())
                .unwrap_or_default(),
            vfio_device: vfio_device(&folder),
            bars: text(&at("resource")).map(|lines| bars(&lines)).unwrap_or_default(),
            nvme: nvme(&folder),
            vfio_state: vfio_state(sysfs, &address.to_string()),
        })
    }
}

/// The directory of a function.
pub(super) fn directory(sysfs: &Sysfs, address: PciAddress) -> std::path::PathBuf {
    sysfs.path("bus/pci/devices").join(address.to_string())
}

fn sriov(folder: &Path) -> Option<Sriov> {
    let at = |name: &str| folder.join(name);
    Some(Sriov {
        total_vfs: small(&at("sriov_totalvfs"))?,
        num_vfs: small(&at("sriov_numvfs"))?,
        drivers_autoprobe: sysfs::flag(&at("sriov_drivers_autoprobe")).unwrap_or(true),
        offset: small(&at("sriov_offset")).unwrap_or(0),
        stride: small(&at("sriov_stride")).unwrap_or(0),
        // Written in hexadecimal without a prefix.
        vf_device: text(&at("sriov_vf_device"))
            .filter(|id| id.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|id| u16::from_str_radix(&id, 16).ok())
            .unwrap_or(0),
        vf_total_msix: small(&at("sriov_vf_total_msix")),
    })
}

/// VFs by index. While VFs come and go there may be holes; what follows one is left out, for indices have to be right.
fn virtfns(folder: &Path) -> Vec<PciAddress> {
    let mut links: Vec<(u32, PciAddress)> = entries(folder)
        .iter()
        .filter_map(|name| Some((index_of(name, "virtfn")?, link_name(&folder.join(name))?.parse().ok()?)))
        .collect();
    links.sort_unstable();
    (0..).zip(links).take_while(|(expected, (index, _))| expected == index).map(|(_, (_, vf))| vf).collect()
}

/// The VFIO device node of a device, by its `vfio-dev` directory.
pub(crate) fn vfio_device(folder: &Path) -> Option<String> {
    entries(&folder.join("vfio-dev")).into_iter().find(|name| index_of(name, "vfio").is_some())
}

/// The state of a device by VFIO's debugfs (`drivers/vfio/debugfs.c`), where it is mounted and may be read.
pub(crate) fn vfio_state(sysfs: &Sysfs, device: &str) -> Option<String> {
    let state = text(&sysfs.path("kernel/debug/vfio").join(device).join("migration/state"))?;
    (!state.is_empty() && state.len() <= 32).then_some(state)
}

fn nvme(folder: &Path) -> Option<NvmeClass> {
    let class = folder.join("nvme");
    let name = entries(&class).into_iter().find(|name| index_of(name, "nvme").is_some())?;
    let at = |attribute: &str| class.join(&name).join(attribute);
    Some(NvmeClass {
        cntlid: small(&at("cntlid")),
        subsystem_nqn: text(&at("subsysnqn")).filter(|nqn| !nqn.is_empty()),
        state: text(&at("state")).filter(|state| !state.is_empty()),
        name,
    })
}

/// Lines of `start end flags` in hexadecimal; all zero where a BAR is not there.
fn bars(lines: &str) -> Vec<Bar> {
    let bar = |(index, line): (u8, &str)| {
        let mut words = line.split_ascii_whitespace().map(sysfs::parse_number);
        let (start, end, flags) = (words.next()??, words.next()??, words.next()??);
        let size_bytes = end.checked_sub(start)?.checked_add(1)?;
        let there = end != 0 && flags != 0;
        there.then_some(Bar { index, size_bytes, flags: (flags & RESOURCE_FLAGS) as u32 })
    };
    (0..).zip(lines.lines().take(BARS)).filter_map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_read_line_by_line() {
        let lines = "0x00000000fe800000 0x00000000fe803fff 0x0000000000140204\n\
            0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
            0x0000000000000000 0x0000000000003fff 0x0000000000040200\n\
            0xffffffffffffffff 0x0 0x200\n\
            0x0 0xffffffffffffffff 0x200\n\
            nonsense\n\
            0x1000 0x1fff 0x200\n";
        assert_eq!(
            bars(lines),
            [
                Bar { index: 0, size_bytes: 0x4000, flags: 0x14_0204 },
                Bar { index: 2, size_bytes: 0x4000, flags: 0x4_0200 },
            ]
        );
        assert_eq!(bars(""), []);
    }
}
