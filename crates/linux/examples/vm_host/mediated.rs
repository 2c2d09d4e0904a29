//! Mediated devices of the kernel's mtty sample.

use towline_linux::mdev::{create, parents, remove};
use towline_linux::sysfs::{HostErrorKind as Kind, Sysfs};

use crate::provision::told;
use crate::tap::Tap;
use crate::tools::{link, run};

const UUID: &str = "22222222-0000-4000-8000-000000000001";
const OTHER: &str = "22222222-0000-4000-8000-000000000002";
const PARENT: &str = "devices/virtual/mtty/mtty";

pub fn tests(tap: &mut Tap) {
    run("modprobe", &["mtty"]);
    let sysfs = Sysfs::default();
    tap.test("parents and types of mediated devices as in /sys/class/mdev_bus", || {
        let found = parents(&sysfs);
        let ours: Vec<&str> = found.iter().map(|p| p.name.as_str()).collect();
        let theirs = run("ls", &["/sys/class/mdev_bus"]);
        assert_eq!(ours, theirs.lines().collect::<Vec<_>>());
        let mtty = found.iter().find(|p| p.path == PARENT).unwrap();
        let shell = run("sh", &["-c", &format!("cd /sys/{PARENT}/mdev_supported_types; for t in *; do echo $t $(cat $t/device_api $t/available_instances); done")]);
        let ours: Vec<String> = mtty.types.iter().map(|t| format!("{} {} {}", t.id, t.device_api, t.available_instances)).collect();
        assert_eq!(ours, shell.lines().collect::<Vec<_>>());
        assert_eq!(ours.len(), 2);
    });
    tap.test("a mediated device is made, found and removed", || {
        let available = || parents(&sysfs)[0].types[1].available_instances;
        let before = available();
        create(&sysfs, PARENT, "mtty-2", UUID).unwrap();
        let device = parents(&sysfs)[0].devices.iter().find(|d| d.uuid == UUID).unwrap().clone();
        let folder = format!("/sys/bus/mdev/devices/{UUID}");
        assert_eq!(link(&format!("{folder}/mdev_type")), Some(device.type_id));
        assert_eq!(link(&format!("{folder}/driver")), device.driver);
        assert_eq!(link(&format!("{folder}/iommu_group")), device.iommu_group.map(|n| n.to_string()));
        let state = std::fs::read_to_string(format!("/sys/kernel/debug/vfio/{UUID}/migration/state")).ok();
        assert_eq!(device.vfio_state.as_deref(), state.as_deref().map(str::trim));
        assert!(available() < before);
        told(&create(&sysfs, PARENT, "mtty-2", UUID).unwrap_err(), Kind::Exists, "EEXIST", "choose another");
        remove(&sysfs, &UUID.to_uppercase()).unwrap();
        assert!(!std::path::Path::new(&folder).exists());
        assert_eq!(available(), before);
        told(&remove(&sysfs, UUID).unwrap_err(), Kind::NotFound, "ENOENT", "no such mediated device");
    });
    tap.test("types and parents that are not there", || {
        told(&create(&sysfs, PARENT, "mtty-9", UUID).unwrap_err(), Kind::NotFound, "ENOENT", "no such parent or type");
        told(
            &create(&sysfs, "devices/virtual/none", "mtty-2", UUID).unwrap_err(),
            Kind::NotFound,
            "ENOENT",
            "no such parent",
        );
        for (path, kind, uuid) in [
            ("../etc", "mtty-2", UUID),
            ("/sys/devices/virtual/mtty/mtty", "mtty-2", UUID),
            (PARENT, "../mtty-2", UUID),
            (PARENT, "mtty-2", "not-a-uuid"),
        ] {
            assert_eq!(create(&sysfs, path, kind, uuid).unwrap_err().kind, Kind::Argument, "{path} {kind} {uuid}");
        }
    });
    tap.test("a parent that has none left", || {
        let name = |n: usize| format!("22222222-0000-4000-8000-1000000000{n:02}");
        let mut made = 0;
        let error = loop {
            match create(&sysfs, PARENT, "mtty-2", &name(made)) {
                Ok(()) => made += 1,
                Err(error) => break error,
            }
            assert!(made < 64, "it never ends");
        };
        println!("# after {made}: {error}");
        let counts: Vec<u32> = parents(&sysfs)[0].types.iter().map(|t| t.available_instances).collect();
        for n in 0..made {
            remove(&sysfs, &name(n)).unwrap();
        }
        assert_eq!(error.kind, Kind::Limit, "{error}");
        assert_eq!(counts[1], 0);
        assert!(made > 0);
        create(&sysfs, PARENT, "mtty-1", OTHER).unwrap();
        remove(&sysfs, OTHER).unwrap();
    });
    run("modprobe", &["-r", "mtty"]);
}
