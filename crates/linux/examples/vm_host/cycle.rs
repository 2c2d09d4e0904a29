//! VFs between the kernel's driver and vfio-pci, back and forth, while the others stay as they are.

use std::sync::mpsc;
use std::time::Duration;

use towline_linux::sysfs::HostErrorKind as Kind;
use towline_nvme::resources::{Resource, VirtualizationAction as Action};

use crate::passthrough::{client, same_secondaries};
use crate::provision::{bring_online, told};
use crate::tap::Tap;
use crate::tools::{link, run};
use crate::{IGB, NVME, control, function};

const ROUNDS: usize = 3;
/// 16 blocks of the namespace, written through the PF.
const BYTES: usize = 8192;

/// Gives a function to a driver, whatever has it.
fn give(address: &str, driver: &str) {
    let function = control(address);
    function.unbind().unwrap();
    function.set_driver_override(Some(driver)).unwrap();
    assert_eq!(function.probe().unwrap(), driver);
    let folder = format!("/sys/bus/pci/devices/{address}");
    assert_eq!(link(&format!("{folder}/driver")).as_deref(), Some(driver));
    let lspci = run("lspci", &["-D", "-k", "-s", address]);
    assert!(lspci.contains(&format!("Kernel driver in use: {driver}\n")), "{lspci}");
}

/// The block device of a controller that is live.
fn disk(address: &str) -> String {
    for _ in 0..100 {
        let script = format!(
            "for n in /sys/bus/pci/devices/{address}/nvme/nvme*; do [ \"$(cat $n/state)\" = live ] && ls -d $n/nvme*n1 2>/dev/null; done; true"
        );
        let found = run("sh", &["-c", &script]);
        if let Some(path) = found.lines().next() {
            let name = path.rsplit('/').next().unwrap();
            // With native multipath the path's disk is hidden: nvme0c1n1 belongs to the head nvme0n1.
            let head = match (name.split_once('c'), name.split_once('n')) {
                (Some((controller, rest)), Some(_)) => format!("{controller}n{}", rest.split_once('n').unwrap().1),
                _ => name.to_owned(),
            };
            return format!("/dev/{head}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("no live controller at {address}");
}

fn read_direct(disk: &str) -> String {
    run("sh", &["-c", &format!("dd if={disk} iflag=direct bs={BYTES} count=1 2>/dev/null | sha256sum")])
}

pub fn tests(tap: &mut Tap) {
    let nvme: Vec<String> = function(NVME).virtfns.iter().map(ToString::to_string).collect();
    let igb: Vec<String> = function(IGB).virtfns.iter().map(ToString::to_string).collect();
    tap.test("a driver that is not there, and names that are none", || {
        let vf = control(&nvme[0]);
        vf.set_driver_override(Some("no-such-driver")).unwrap();
        let missing = vf.probe().unwrap_err();
        assert_eq!(missing.kind, Kind::Unsupported);
        assert!(missing.to_string().contains("modprobe no-such-driver"), "{missing}");
        vf.set_driver_override(None).unwrap();
        assert_eq!(function(&nvme[0]).driver_override, None);
        let none = vf.probe().unwrap_err();
        assert!(none.to_string().contains("sriov_drivers_autoprobe"), "{none}");
        for name in ["", "a/b", "../x", "a\nb"] {
            assert_eq!(vf.set_driver_override(Some(name)).unwrap_err().kind, Kind::Argument, "{name:?}");
        }
        vf.unbind().unwrap();
    });
    tap.test(
        "a driver that refuses, nvme where the secondary controller is offline, is told with where to look",
        || {
            client().virtualization_manage(Action::Offline, 1, Resource::Queues, 0).unwrap();
            let vf = control(&nvme[0]);
            vf.set_driver_override(Some("nvme")).unwrap();
            let refused = vf.probe().unwrap_err();
            assert!(
                refused.to_string().contains("refused the function") && refused.to_string().contains("dmesg"),
                "{refused}"
            );
            println!("# {refused}");
            assert_eq!((refused.kind, function(&nvme[0]).driver), (Kind::Device, None));
            vf.set_driver_override(None).unwrap();
            bring_online(1);
        },
    );
    tap.test("an NVMe VF goes from nvme to vfio-pci and back, with the data that the PF wrote, while the other keeps vfio-pci", || {
        run("modprobe", &["igbvf"]);
        let pf = disk(NVME);
        run("sh", &["-c", &format!("dd if=/dev/urandom of={pf} oflag=direct bs={BYTES} count=1 2>/dev/null")]);
        let written = read_direct(&pf);
        give(&nvme[1], "vfio-pci");
        for _ in 0..ROUNDS {
            give(&nvme[0], "nvme");
            assert_eq!(read_direct(&disk(&nvme[0])), written);
            give(&nvme[0], "vfio-pci");
            assert_eq!(function(&nvme[1]).driver.as_deref(), Some("vfio-pci"));
            assert_eq!(function(NVME).driver.as_deref(), Some("nvme"));
            same_secondaries();
        }
        assert_eq!(read_direct(&pf), written);
    });
    tap.test("igb VFs go from igbvf to vfio-pci and back, crosswise, while the NVMe VFs keep vfio-pci", || {
        for round in 0..ROUNDS {
            let (a, b) = (&igb[round % 2], &igb[(round + 1) % 2]);
            give(a, "igbvf");
            give(b, "vfio-pci");
            let netdev = run("ls", &[&format!("/sys/bus/pci/devices/{a}/net")]);
            assert!(!netdev.trim().is_empty(), "the VF has a network interface");
            for vf in &nvme {
                assert_eq!(function(vf).driver.as_deref(), Some("vfio-pci"));
            }
        }
    });
    tap.test("the node of a device on vfio-pci is that of its vfio-dev folder", || {
        let folder = format!("/sys/bus/pci/devices/{}/vfio-dev", nvme[0]);
        let theirs = run("sh", &["-c", &format!("ls {folder} 2>/dev/null; true")]);
        let ours = function(&nvme[0]).vfio_device;
        assert_eq!(ours.as_deref().unwrap_or_default(), theirs.trim());
        if std::path::Path::new("/dev/vfio/devices").exists() {
            let node = format!("/dev/vfio/devices/{}", ours.unwrap());
            assert!(std::path::Path::new(&node).exists(), "{node}");
        }
    });
    tap.test("unbinding waits until the function is no longer open through VFIO", || {
        let group = function(&nvme[0]).iommu_group.unwrap();
        let container = std::fs::File::options().read(true).write(true).open("/dev/vfio/vfio").unwrap();
        let device = vfio_open(&container, group, &nvme[0]);
        let (done, waiting) = mpsc::channel();
        let address = nvme[0].clone();
        let thread = std::thread::spawn(move || {
            let result = control(&address).unbind();
            done.send(()).unwrap();
            result
        });
        assert!(waiting.recv_timeout(Duration::from_millis(1500)).is_err(), "it did not wait");
        drop(device);
        waiting.recv_timeout(Duration::from_secs(30)).expect("it went on once the function was closed");
        thread.join().unwrap().unwrap();
        assert_eq!(function(&nvme[0]).driver, None);
        give(&nvme[0], "vfio-pci");
    });
    tap.test("a reset of a VF, by the ways that the kernel names", || {
        let theirs = std::fs::read_to_string(format!("/sys/bus/pci/devices/{}/reset_method", nvme[1])).unwrap();
        assert_eq!(function(&nvme[1]).reset_methods, theirs.split_whitespace().collect::<Vec<_>>());
        control(&nvme[1]).reset().unwrap();
        same_secondaries();
        told(&control("0000:00:1f.0").reset().unwrap_err(), Kind::Unsupported, "ENOENT", "no way to reset");
    });
    tap.test("a reset of the PF by FLR takes the secondary controllers offline, as nvme-cli sees it too", || {
        for vf in &nvme {
            control(vf).unbind().unwrap();
        }
        control(NVME).reset().unwrap();
        let online = client().secondary_controllers().unwrap().iter().filter(|s| s.online()).count();
        assert_eq!(online, 0);
        same_secondaries();
    });
}

/// A device opened by its group; the descriptors of group and device keep it open.
fn vfio_open(_container: &std::fs::File, group: u32, name: &str) -> impl Sized {
    let container = towline_linux::vfio::Container::open().unwrap();
    container.device(group, name).unwrap()
}
