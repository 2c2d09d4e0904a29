use std::path::Path;

use super::{Tree, nvme};
use crate::host::HostKernel;
use crate::pci::{functions, variant_driver};
use crate::sysfs::Sysfs;

fn kernel(tree: &Tree) -> HostKernel {
    HostKernel::read(&tree.sysfs)
}

#[test]
fn variant_drivers_are_found_by_their_aliases() {
    let tree = nvme();
    tree.file("proc/sys/kernel/osrelease", "7.3.4\n");
    tree.file(
        "lib/modules/7.3.4/modules.alias",
        "# Aliases extracted from modules themselves.\n\
         alias pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_core\n\
         alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci\n\
         alias vfio_pci:v*d*sv*sd*bc*sc*i* anything_vfio_pci\n\
         alias vfio_pci:broken\n\
         alias vfio_pci:v* ../../evil\n",
    );
    tree.file(
        "lib/modules/7.3.4/modules.builtin.modinfo",
        "hisi_acc_vfio_pci.alias=vfio_pci:v000019E5d0000A251sv*sd*bc*sc*i*\0x.license=GPL\0",
    );
    std::fs::create_dir_all(tree.path("sys/module/hisi_acc_vfio_pci/drivers/pci:hisi-acc-vfio-pci/x")).unwrap();
    let aliases = kernel(&tree).vfio_aliases;
    assert_eq!(aliases.len(), 3);
    assert_eq!(aliases[2].driver.as_deref(), Some("hisi-acc-vfio-pci"));
    let mut function = functions(&tree.sysfs).remove(0);
    let mut found = |modalias: &str| {
        function.modalias = modalias.into();
        variant_driver(&function, &aliases).map(|alias| alias.module.as_str())
    };
    assert_eq!(
        found("pci:v000015B3d0000101Esv000015B3sd00000061bc02sc00i00"),
        Some("mlx5_vfio_pci"),
        "the closest one"
    );
    assert_eq!(found("pci:v000019E5d0000A251sv0sd0bc12sc00i00"), Some("hisi_acc_vfio_pci"));
    assert_eq!(found("pci:v00008086d000010CAsv0sd0bc02sc00i00"), Some("anything_vfio_pci"));
    assert_eq!(found("usb:v1"), None);
    assert_eq!(found(""), None);
}

#[test]
fn a_release_that_is_no_name_leads_nowhere() {
    let tree = Tree::new();
    tree.file("proc/sys/kernel/osrelease", "../../tmp\n");
    tree.file("tmp/modules.alias", "alias vfio_pci:v* evil\n");
    assert_eq!(kernel(&tree).vfio_aliases, []);
}

#[test]
fn what_a_kernel_has_is_looked_for_beside_sysfs() {
    let tree = Tree::new();
    tree.file("sys/class/iommu/dmar0/x", "")
        .file("sys/kernel/iommu_groups/0/x", "")
        .file("sys/bus/pci/drivers/vfio-pci/x", "");
    tree.file("dev/vfio/vfio", "").file("dev/vfio/devices/vfio0", "").file("dev/iommu", "");
    tree.file("sys/bus/mdev/x", "").file("sys/kernel/debug/vfio/x", "");
    let kernel = kernel(&tree);
    assert_eq!(
        [kernel.iommu, kernel.container, kernel.cdev, kernel.iommufd, kernel.mdev, kernel.vfio_debugfs],
        [true; 6]
    );
    assert_eq!(kernel.pci_drivers, ["vfio-pci"]);
    let nothing = HostKernel::read(&Sysfs::at(Path::new("/nonexistent/sys")));
    assert_eq!([nothing.iommu, nothing.container, nothing.cdev, nothing.iommufd, nothing.mdev], [false; 5]);
}
