use std::os::unix::fs::symlink;

use rustix::io::Errno;

use super::{PF, VF, nvme};
use crate::pci::{PciControl, meaning};
use crate::sysfs::{HostError, HostErrorKind as Kind, Meaning};

#[test]
fn what_is_written_where() {
    let tree = nvme();
    tree.file("sys/bus/pci/drivers_probe", "").file("sys/bus/pci/drivers/vfio-pci/unbind", "");
    tree.function(VF, &[("sriov_vf_msix_count", "0"), ("reset", "")]);
    let device = |address: &str, name: &str| format!("sys/bus/pci/devices/{address}/{name}");
    let vf = tree.control(VF);
    tree.control(PF).set_autoprobe(true).unwrap();
    assert!(tree.read(&device(PF, "sriov_drivers_autoprobe")).starts_with('1'));
    vf.set_vf_msix(7).unwrap();
    assert_eq!(tree.read(&device(VF, "sriov_vf_msix_count")), "7");
    vf.unbind().unwrap();
    assert_eq!(tree.read("sys/bus/pci/drivers/vfio-pci/unbind"), VF);
    assert_eq!(vf.probe().unwrap(), "vfio-pci");
    assert_eq!(tree.read("sys/bus/pci/drivers_probe"), VF);
    vf.reset().unwrap();
    assert_eq!(tree.read(&device(VF, "reset")), "1");
    tree.file(&device(VF, "driver_override"), "");
    vf.set_driver_override(Some("nvme")).unwrap();
    assert_eq!(tree.read(&device(VF, "driver_override")), "nvme\n");
    let wrong = vf.probe().unwrap_err();
    assert_eq!(wrong.kind, Kind::State, "{wrong}");
    tree.file(&device(VF, "driver_override"), "");
    vf.set_driver_override(None).unwrap();
    assert_eq!(tree.read(&device(VF, "driver_override")), "\n");
    // A file of a tree is not a kernel: it holds what was there behind what was written.
    tree.file(&device(PF, "sriov_numvfs"), "");
    tree.control(PF).set_num_vfs(3).unwrap();
    assert_eq!(tree.read(&device(PF, "sriov_numvfs")), "3");
}

#[test]
fn fewer_vfs_than_asked_for_are_told() {
    let tree = nvme();
    // The kernel takes the write and tells another number.
    tree.function(PF, &[("sriov_numvfs", "12\n")]);
    let error = tree.control(PF).set_num_vfs(3).unwrap_err();
    assert_eq!(error.kind, Kind::Limit);
    assert!(error.to_string().contains("made 32 VFs"), "{error}");
}

#[test]
fn a_probe_that_ends_at_no_driver_is_an_error() {
    let tree = nvme();
    tree.file("sys/bus/pci/drivers_probe", "");
    let device = tree.folder.path().join(format!("sys/bus/pci/devices/{VF}"));
    std::fs::remove_file(device.join("driver")).unwrap();
    let told = |words: &str| {
        let error = tree.control(VF).probe().unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        error.kind
    };
    assert_eq!(told("modprobe vfio-pci"), Kind::Unsupported);
    std::fs::create_dir_all(tree.path("sys/bus/pci/drivers/vfio-pci/x")).unwrap();
    assert_eq!(told("no IOMMU group"), Kind::Unsupported);
    symlink("../../../../kernel/iommu_groups/6", device.join("iommu_group")).unwrap();
    assert_eq!(told("dmesg"), Kind::Device);
    std::fs::write(device.join("driver_override"), "(null)\n").unwrap();
    assert_eq!(told("sriov_drivers_autoprobe of its PF is 0"), Kind::Unsupported);
    tree.function(PF, &[("sriov_drivers_autoprobe", "1\n")]);
    assert_eq!(told("load the module"), Kind::Unsupported);
}

#[test]
fn what_is_not_there_is_told() {
    let tree = nvme();
    let missing = PciControl::of(&tree.sysfs, "0000:99:00.0".parse().unwrap()).unwrap_err();
    assert_eq!(missing.kind, Kind::NotFound);
    let vf = tree.control(VF);
    assert_eq!(vf.set_num_vfs(1).unwrap_err().kind, Kind::Unsupported);
    let reset = vf.reset().unwrap_err();
    assert_eq!((reset.kind, reset.errno_name().as_deref()), (Kind::Unsupported, Some("ENOENT")), "{reset}");
    assert_eq!(vf.set_vf_msix(u32::MAX).unwrap_err().kind, Kind::Argument);
    std::fs::remove_dir_all(tree.folder.path().join(format!("sys/bus/pci/devices/{VF}"))).unwrap();
    for error in [vf.reset().unwrap_err(), vf.set_driver_override(None).unwrap_err(), vf.read().unwrap_err()] {
        assert_eq!(error.kind, Kind::Gone, "{error}");
    }
}

#[test]
fn names_of_drivers_stay_in_their_folder() {
    let tree = nvme();
    for name in ["", ".", "..", "../nvme", "a/b", "a\nb", "a b", "a\0b", &"x".repeat(65)] {
        assert_eq!(tree.control(VF).set_driver_override(Some(name)).unwrap_err().kind, Kind::Argument, "{name:?}");
    }
    assert_eq!(tree.read(&format!("sys/bus/pci/devices/{VF}/driver_override")), "vfio-pci\n");
}

/// Each errno of each file has words, a kind and its name.
#[test]
fn errnos_have_meanings() {
    type Means = fn(Errno) -> Option<Meaning>;
    let cases: [(Means, Errno, Kind, &str); 9] = [
        (meaning::num_vfs, Errno::RANGE, Kind::Limit, "ERANGE"),
        (meaning::num_vfs, Errno::BUSY, Kind::State, "EBUSY"),
        (meaning::num_vfs, Errno::NOENT, Kind::Unsupported, "ENOENT"),
        (meaning::num_vfs, Errno::ACCESS, Kind::Permission, "EACCES"),
        (meaning::num_vfs, Errno::ROFS, Kind::Permission, "EROFS"),
        (meaning::vf_msix, Errno::BUSY, Kind::Busy, "EBUSY"),
        (meaning::unbind, Errno::NODEV, Kind::State, "ENODEV"),
        (meaning::reset, Errno::NOTTY, Kind::Unsupported, "ENOTTY"),
        (meaning::probe, Errno::NODEV, Kind::Gone, "ENODEV"),
    ];
    for (means, errno, kind, name) in cases {
        let error = HostError::refused("writing 1 to /x", errno, means(errno));
        assert_eq!((error.kind, error.errno_name().as_deref()), (kind, Some(name)));
        let text = error.to_string();
        assert!(text.starts_with(&format!("writing 1 to /x: {name}: ")) && !error.meaning.is_empty(), "{text}");
    }
}
