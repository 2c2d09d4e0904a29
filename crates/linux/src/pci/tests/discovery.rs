use std::os::unix::fs::symlink;

use super::{PF, Tree, VF, nvme};
use crate::host::HostKernel;
use crate::pci::{Bar, NvmeClass, PciFunction, Sriov, functions};

#[test]
fn everything_of_a_pf_and_its_vf_is_read() {
    let tree = nvme();
    let all = functions(&tree.sysfs);
    let [pf, vf] = all.as_slice() else { panic!("{all:?}") };
    let expected = PciFunction {
        address: PF.parse().unwrap(),
        vendor: 0x1b36,
        device: 0x10,
        subsystem_vendor: 0x1af4,
        subsystem_device: 0x1100,
        class: 0x01_0802,
        revision: 2,
        modalias: "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02".into(),
        driver: Some("nvme".into()),
        driver_override: None,
        iommu_group: Some(6),
        numa_node: None,
        sriov: Some(Sriov {
            total_vfs: 4,
            num_vfs: 1,
            drivers_autoprobe: false,
            offset: 1,
            stride: 1,
            vf_device: 0x10,
            vf_total_msix: Some(0),
        }),
        virtfns: vec![VF.parse().unwrap()],
        physfn: None,
        vf_index: None,
        vf_msix_count: None,
        reset_methods: vec!["flr".into(), "bus".into()],
        vfio_device: None,
        bars: vec![Bar { index: 0, size_bytes: 16384, flags: 0x14_0204 }],
        nvme: Some(NvmeClass {
            name: "nvme0".into(),
            cntlid: Some(0),
            subsystem_nqn: Some("nqn.2019-08.org.qemu:ss0".into()),
            state: Some("live".into()),
        }),
        vfio_state: None,
    };
    assert_eq!(*pf, expected);
    assert_eq!((vf.physfn, vf.vf_index), (Some(pf.address), Some(0)));
    assert_eq!(vf.driver_override.as_deref(), Some("vfio-pci"));
    assert_eq!((vf.vf_msix_count, vf.numa_node), (Some(3), Some(1)));
    assert_eq!((vf.vfio_device.as_deref(), vf.vfio_state.as_deref()), (Some("vfio2"), Some("RUNNING")));
    assert_eq!(PciFunction::find(&tree.sysfs, vf.address).as_ref(), Some(vf));
    assert!(pf.is_nvme() && pf.is_of_interest() && vf.is_of_interest());
}

#[test]
fn where_there_is_nothing_nothing_is_found() {
    let tree = Tree::new();
    assert_eq!(functions(&tree.sysfs), []);
    assert_eq!(PciFunction::find(&tree.sysfs, PF.parse().unwrap()), None);
    let kernel = HostKernel::read(&tree.sysfs);
    assert_eq!((kernel.release.as_str(), kernel.iommu, kernel.pci_drivers.len()), ("", false, 0));
}

/// Whatever a file holds, the rest of the function is read.
#[test]
fn hostile_contents_are_missing_attributes() {
    let numbers = [
        "",
        "\n",
        "0x",
        "-1",
        "99999999999999999999",
        "0x10000000000000000",
        "1\n2",
        "\0",
        "\u{7f}",
        "0x1g",
        " ",
        "٣",
        "1e9",
        "0x-1",
    ];
    let names = [
        "subsystem_vendor",
        "class",
        "revision",
        "modalias",
        "numa_node",
        "sriov_vf_msix_count",
        "resource",
        "reset_method",
    ];
    for content in numbers {
        for name in names {
            let tree = nvme();
            tree.function(VF, &[(name, content)]);
            let all = functions(&tree.sysfs);
            assert_eq!(all.len(), 2, "{name} {content:?}");
            assert_eq!(all[1].vfio_device.as_deref(), Some("vfio2"));
        }
        let tree = nvme();
        tree.function(PF, &[("sriov_totalvfs", content)]);
        assert_eq!(functions(&tree.sysfs)[0].sriov, None, "{content:?}");
        tree.function(PF, &[("vendor", content)]);
        assert_eq!(functions(&tree.sysfs).len(), 1, "without a vendor it is no function: {content:?}");
    }
}

#[test]
fn oversize_files_and_other_sorts_of_files_are_missing_attributes() {
    let tree = nvme();
    let at = |name: &str| tree.folder.path().join(format!("sys/bus/pci/devices/{PF}/{name}"));
    std::fs::write(at("modalias"), "x".repeat(5000)).unwrap();
    std::fs::remove_file(at("reset_method")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("reset_method"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    std::fs::remove_file(at("resource")).unwrap();
    std::fs::create_dir(at("resource")).unwrap();
    std::fs::remove_file(at("revision")).unwrap();
    symlink("/dev/zero", at("revision")).unwrap();
    let pf = &functions(&tree.sysfs)[0];
    assert_eq!((pf.modalias.as_str(), pf.reset_methods.len(), pf.bars.len(), pf.revision), ("", 0, 0, 0));
}

#[test]
fn links_lead_nowhere_but_to_a_name() {
    for target in
        ["/", "..", "../..", "../x y", "../.hidden", "../a\u{1b}[0m", "../0000:01:00.9", "../../../../etc/passwd"]
    {
        let tree = nvme();
        let at = |name: &str| tree.folder.path().join(format!("sys/bus/pci/devices/{VF}/{name}"));
        std::fs::remove_file(at("physfn")).unwrap();
        symlink(target, at("physfn")).unwrap();
        symlink(target, at("iommu_group")).unwrap();
        let vf = &functions(&tree.sysfs)[1];
        assert_eq!((vf.physfn, vf.vf_index, vf.iommu_group), (None, None, None), "{target}");
    }
}

#[test]
fn indices_of_vfs_have_no_holes() {
    let tree = nvme();
    for (name, to) in [("virtfn2", "../0000:01:00.3"), ("virtfn01", "../0000:01:00.4"), ("virtfnx", "../0000:01:00.5")]
    {
        tree.link(&format!("sys/bus/pci/devices/{PF}/{name}"), to);
    }
    let virtfns = |tree: &Tree| functions(&tree.sysfs)[0].virtfns.len();
    assert_eq!(virtfns(&tree), 1);
    tree.link(&format!("sys/bus/pci/devices/{PF}/virtfn1"), "../0000:01:00.2");
    assert_eq!(virtfns(&tree), 3);
    // A VF whose PF does not know it has no index.
    tree.function("0000:01:00.7", &[("vendor", "0x1\n"), ("device", "0x1\n")]);
    tree.link("sys/bus/pci/devices/0000:01:00.7/physfn", &format!("../{PF}"));
    let stray = PciFunction::find(&tree.sysfs, "0000:01:00.7".parse().unwrap()).unwrap();
    assert_eq!((stray.physfn.map(|pf| pf.to_string()).as_deref(), stray.vf_index), (Some(PF), None));
}

#[test]
fn names_on_the_bus_that_are_no_addresses_are_left_out() {
    let tree = nvme();
    for name in ["nonsense", "0000:01:00.8", "0000:01:20.0", "..x"] {
        tree.function(name, &[("vendor", "0x1\n"), ("device", "0x1\n")]);
    }
    // The same function under two spellings is one.
    tree.function("0000:0A:00.0", &[("vendor", "0x1\n"), ("device", "0x1\n")]);
    assert!(functions(&tree.sysfs).len() <= 3);
}
