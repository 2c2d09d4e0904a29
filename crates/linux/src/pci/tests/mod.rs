//! Discovery and changes over trees in a folder, also hostile ones. What a real kernel says is in `examples/vm_host`.

mod changes;
mod discovery;
mod kernel;

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use crate::pci::PciControl;
use crate::sysfs::Sysfs;

pub const PF: &str = "0000:01:00.0";
pub const VF: &str = "0000:01:00.1";

/// A tree that goes away with its test.
pub struct Tree {
    pub folder: tempfile::TempDir,
    pub sysfs: Sysfs,
}

impl Tree {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sysfs = Sysfs::at(folder.path().join("sys"));
        std::fs::create_dir_all(sysfs.root()).unwrap();
        Self { folder, sysfs }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        let path = self.folder.path().join(below);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    pub fn file(&self, below: &str, content: impl AsRef<[u8]>) -> &Self {
        std::fs::write(self.path(below), content).unwrap();
        self
    }

    pub fn link(&self, below: &str, to: &str) -> &Self {
        symlink(to, self.path(below)).unwrap();
        self
    }

    pub fn function(&self, address: &str, files: &[(&str, &str)]) -> &Self {
        for (name, content) in files {
            self.file(&format!("sys/bus/pci/devices/{address}/{name}"), content);
        }
        self
    }

    pub fn read(&self, below: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(below)).unwrap()
    }

    pub fn control(&self, address: &str) -> PciControl {
        PciControl::of(&self.sysfs, address.parse().unwrap()).unwrap()
    }
}

/// An NVMe PF with a VF, as Linux 7.3 shows QEMU's.
pub fn nvme() -> Tree {
    let tree = Tree::new();
    tree.function(
        PF,
        &[
            ("vendor", "0x1b36\n"),
            ("device", "0x0010\n"),
            ("subsystem_vendor", "0x1af4\n"),
            ("subsystem_device", "0x1100\n"),
            ("class", "0x010802\n"),
            ("revision", "0x02\n"),
            ("modalias", "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02\n"),
            ("driver_override", "(null)\n"),
            ("numa_node", "-1\n"),
            ("sriov_totalvfs", "4\n"),
            ("sriov_numvfs", "1\n"),
            ("sriov_drivers_autoprobe", "0\n"),
            ("sriov_offset", "1\n"),
            ("sriov_stride", "1\n"),
            ("sriov_vf_device", "10\n"),
            ("sriov_vf_total_msix", "0\n"),
            ("reset_method", "flr bus\n"),
            ("resource", "0x00000000fe200000 0x00000000fe203fff 0x0000000000140204\n"),
            ("nvme/nvme0/cntlid", "0\n"),
            ("nvme/nvme0/subsysnqn", "nqn.2019-08.org.qemu:ss0\n"),
            ("nvme/nvme0/state", "live\n"),
            ("reset", ""),
        ],
    );
    tree.link(&format!("sys/bus/pci/devices/{PF}/driver"), "../../../../bus/pci/drivers/nvme");
    tree.link(&format!("sys/bus/pci/devices/{PF}/iommu_group"), "../../../../kernel/iommu_groups/6");
    tree.link(&format!("sys/bus/pci/devices/{PF}/virtfn0"), &format!("../{VF}"));
    tree.function(
        VF,
        &[
            ("vendor", "0x1b36\n"),
            ("device", "0x0010\n"),
            ("class", "0x010802\n"),
            ("driver_override", "vfio-pci\n"),
            ("numa_node", "1\n"),
            ("sriov_vf_msix_count", "3\n"),
            ("vfio-dev/vfio2/dev", "510:2\n"),
        ],
    );
    tree.link(&format!("sys/bus/pci/devices/{VF}/physfn"), &format!("../{PF}"));
    tree.link(&format!("sys/bus/pci/devices/{VF}/driver"), "../../../../bus/pci/drivers/vfio-pci");
    tree.file(&format!("sys/kernel/debug/vfio/{VF}/migration/state"), "RUNNING\n");
    tree
}
