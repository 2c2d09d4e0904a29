use std::os::unix::fs::symlink;

use super::*;

const UUID: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
const PARENT: &str = "devices/virtual/mtty/mtty";

fn tree() -> (tempfile::TempDir, Sysfs) {
    let folder = tempfile::tempdir().unwrap();
    let file = |below: &str, content: &str| {
        let path = folder.path().join(below);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    for (id, available) in [("mtty-1", "24\n"), ("mtty-2", "12\n")] {
        let at = |name: &str| format!("{PARENT}/mdev_supported_types/{id}/{name}");
        file(&at("device_api"), "vfio-pci\n");
        file(&at("available_instances"), available);
        file(&at("name"), "Serial port\n");
        file(&at("create"), "");
    }
    file(&format!("{PARENT}/mdev_supported_types/mtty-2/devices/{UUID}/x"), "");
    file(&format!("{PARENT}/mdev_supported_types/mtty-2/devices/not-a-uuid/x"), "");
    file(&format!("bus/mdev/devices/{UUID}/remove"), "");
    file(&format!("bus/mdev/devices/{UUID}/vfio-dev/vfio0/dev"), "");
    file(&format!("kernel/debug/vfio/{UUID}/migration/state"), "STOP_COPY\n");
    symlink("../../../../bus/mdev/drivers/mtty", folder.path().join(format!("bus/mdev/devices/{UUID}/driver")))
        .unwrap();
    symlink("../../../../kernel/iommu_groups/9", folder.path().join(format!("bus/mdev/devices/{UUID}/iommu_group")))
        .unwrap();
    std::fs::create_dir_all(folder.path().join("class/mdev_bus")).unwrap();
    symlink(format!("../../{PARENT}"), folder.path().join("class/mdev_bus/mtty")).unwrap();
    let sysfs = Sysfs::at(folder.path());
    (folder, sysfs)
}

#[test]
fn parents_types_and_devices() {
    let (_folder, sysfs) = tree();
    let found = parents(&sysfs);
    let [parent] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((parent.path.as_str(), parent.name.as_str()), (PARENT, "mtty"));
    let types: Vec<(&str, u32)> = parent.types.iter().map(|t| (t.id.as_str(), t.available_instances)).collect();
    assert_eq!(types, [("mtty-1", 24), ("mtty-2", 12)]);
    assert_eq!(
        (parent.types[0].device_api.as_str(), parent.types[0].name.as_deref()),
        ("vfio-pci", Some("Serial port"))
    );
    let device = MdevDevice {
        uuid: UUID.into(),
        type_id: "mtty-2".into(),
        driver: Some("mtty".into()),
        iommu_group: Some(9),
        vfio_device: Some("vfio0".into()),
        vfio_state: Some("STOP_COPY".into()),
    };
    assert_eq!(parent.devices, [device]);
}

#[test]
fn a_parent_outside_of_sysfs_is_none() {
    let (folder, sysfs) = tree();
    let outside = tempfile::tempdir().unwrap();
    let class = folder.path().join("class/mdev_bus");
    symlink(outside.path(), class.join("outside")).unwrap();
    symlink("/", class.join("all")).unwrap();
    symlink("../../nowhere", class.join("dangling")).unwrap();
    symlink("loop", class.join("loop")).unwrap();
    symlink("../../bus", class.join("bus")).unwrap();
    assert_eq!(parents(&sysfs).len(), 1);
}

#[test]
fn hostile_types_are_types_without_words() {
    for (name, content) in [
        ("available_instances", "-1"),
        ("available_instances", "99999999999"),
        ("name", "\u{1b}[2J"),
        ("device_api", "\0\0"),
    ] {
        let (folder, sysfs) = tree();
        std::fs::write(folder.path().join(PARENT).join("mdev_supported_types/mtty-1").join(name), content).unwrap();
        let found = &parents(&sysfs)[0].types[0];
        assert!(
            found.available_instances == 0 || found.name.is_none() || found.device_api.is_empty(),
            "{name} {content:?}"
        );
    }
}

#[test]
fn what_is_written_where() {
    let (folder, sysfs) = tree();
    create(&sysfs, PARENT, "mtty-1", &UUID.to_uppercase()).unwrap();
    let written =
        std::fs::read_to_string(folder.path().join(PARENT).join("mdev_supported_types/mtty-1/create")).unwrap();
    assert_eq!(written, UUID);
    remove(&sysfs, UUID).unwrap();
    let written = std::fs::read_to_string(folder.path().join(format!("bus/mdev/devices/{UUID}/remove"))).unwrap();
    assert_eq!(written, "1");
}

#[test]
fn nothing_outside_is_written() {
    let (_folder, sysfs) = tree();
    let long = "a/".repeat(100);
    for (parent, kind, uuid) in [
        ("", "mtty-1", UUID),
        ("devices", "mtty-1", UUID),
        ("devices/../../etc", "mtty-1", UUID),
        ("/devices/virtual/mtty/mtty", "mtty-1", UUID),
        ("devices//virtual", "mtty-1", UUID),
        (long.as_str(), "mtty-1", UUID),
        (PARENT, "", UUID),
        (PARENT, "..", UUID),
        (PARENT, "a/b", UUID),
        (PARENT, "mtty-1", ""),
        (PARENT, "mtty-1", "83b8f4f2-509f-382f-3c1e-e6bfe0fa100"),
        (PARENT, "mtty-1", "83b8f4f2-509f-382f-3c1e-e6bfe0fa100g"),
        (PARENT, "mtty-1", "83b8f4f2509f-382f-3c1e-e6bfe0fa1001-"),
    ] {
        let error = create(&sysfs, parent, kind, uuid).unwrap_err();
        assert_eq!(error.kind, Kind::Argument, "{parent} {kind} {uuid}: {error}");
    }
    assert_eq!(remove(&sysfs, "../../../x").unwrap_err().kind, Kind::Argument);
    let missing = create(&sysfs, PARENT, "mtty-9", UUID).unwrap_err();
    assert_eq!((missing.kind, missing.errno_name().as_deref()), (Kind::NotFound, Some("ENOENT")), "{missing}");
    let gone = remove(&sysfs, "83b8f4f2-509f-382f-3c1e-e6bfe0fa1002").unwrap_err();
    assert_eq!(gone.kind, Kind::NotFound, "{gone}");
}
