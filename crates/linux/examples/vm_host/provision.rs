//! VFs come and go; what the kernel refuses is told with its errno and what it means.

use towline_linux::sysfs::{HostError, HostErrorKind as Kind};
use towline_nvme::resources::{Resource, VirtualizationAction as Action};
use towline_nvme::status::StatusCode;

use crate::passthrough::{client, same_secondaries};
use crate::tap::Tap;
use crate::tools::run;
use crate::{IGB, NVME, control, function};

/// What an error has to be.
pub fn told(error: &HostError, kind: Kind, errno: &str, words: &str) {
    assert_eq!((error.kind, error.errno_name().as_deref()), (kind, Some(errno)), "{error}");
    assert!(error.to_string().contains(words), "{error}");
    println!("# {error}");
}

fn vfs(pf: &str) -> usize {
    run("sh", &["-c", &format!("ls -d /sys/bus/pci/devices/{pf}/virtfn* 2>/dev/null | wc -l")]).trim().parse().unwrap()
}

/// Gives a secondary controller what it needs.
pub fn bring_online(cntlid: u16) {
    let manage = |action, resource, count| client().virtualization_manage(action, cntlid, resource, count).unwrap();
    manage(Action::Offline, Resource::Queues, 0);
    assert_eq!(manage(Action::Assign, Resource::Interrupts, 1), 1);
    assert_eq!(manage(Action::Assign, Resource::Queues, 2), 2);
    manage(Action::Online, Resource::Queues, 0);
    same_secondaries();
}

pub fn tests(tap: &mut Tap) {
    tap.test("more VFs than there can be: ERANGE", || {
        told(&control(NVME).set_num_vfs(5).unwrap_err(), Kind::Limit, "ERANGE", "sriov_totalvfs");
        told(&control(IGB).set_num_vfs(8).unwrap_err(), Kind::Limit, "ERANGE", "sriov_totalvfs");
        assert_eq!((vfs(NVME), vfs(IGB)), (0, 0));
    });
    tap.test("VFs without autoprobe are bound to no driver", || {
        for pf in [NVME, IGB] {
            control(pf).set_autoprobe(false).unwrap();
            assert!(!function(pf).sriov.unwrap().drivers_autoprobe);
            control(pf).set_num_vfs(2).unwrap();
            assert_eq!(vfs(pf), 2);
            for vf in function(pf).virtfns {
                assert_eq!(function(&vf.to_string()).driver, None);
            }
        }
    });
    tap.test("another number of VFs while there are some: EBUSY; the same number is no change", || {
        told(&control(NVME).set_num_vfs(3).unwrap_err(), Kind::State, "EBUSY", "write 0 first");
        told(&control(IGB).set_num_vfs(1).unwrap_err(), Kind::State, "EBUSY", "write 0 first");
        control(NVME).set_num_vfs(2).unwrap();
        assert_eq!((vfs(NVME), vfs(IGB)), (2, 2));
    });
    tap.test("a PF without a driver makes no VFs: ENOENT", || {
        control(IGB).set_num_vfs(0).unwrap();
        control(IGB).unbind().unwrap();
        told(&control(IGB).set_num_vfs(1).unwrap_err(), Kind::Unsupported, "ENOENT", "bound to no driver");
        assert_eq!(control(IGB).probe().unwrap(), "igb");
        control(IGB).set_num_vfs(2).unwrap();
    });
    tap.test("a PF whose driver makes none: vfio-pci without enable_sriov, ENOENT", || {
        control(IGB).set_num_vfs(0).unwrap();
        control(IGB).unbind().unwrap();
        control(IGB).set_driver_override(Some("vfio-pci")).unwrap();
        assert_eq!(control(IGB).probe().unwrap(), "vfio-pci");
        told(&control(IGB).set_num_vfs(1).unwrap_err(), Kind::Unsupported, "ENOENT", "enable_sriov=1");
        control(IGB).unbind().unwrap();
        control(IGB).set_driver_override(None).unwrap();
        assert_eq!(control(IGB).probe().unwrap(), "igb");
        control(IGB).set_num_vfs(2).unwrap();
    });
    tap.test("a function without SR-IOV says so", || {
        let port = control("0000:00:03.0");
        assert_eq!(port.set_num_vfs(1).unwrap_err().kind, Kind::Unsupported);
        told(&port.set_autoprobe(true).unwrap_err(), Kind::Unsupported, "ENOENT", "no SR-IOV");
    });
    tap.test("MSI-X counts are not this driver's to set, and say who sets them", || {
        let vf = function(NVME).virtfns[0].to_string();
        told(&control(&vf).set_vf_msix(3).unwrap_err(), Kind::Unsupported, "EOPNOTSUPP", "Virtualization Management");
        told(&control(NVME).set_vf_msix(3).unwrap_err(), Kind::Unsupported, "ENOENT", "it is no VF");
    });
    tap.test("secondary controllers in the wrong order are refused by the controller", || {
        let online = client().virtualization_manage(Action::Online, 1, Resource::Queues, 0).unwrap_err();
        assert!(online.is(StatusCode::InvalidSecondaryControllerState), "online without resources: {online}");
        let most = client().virtualization_manage(Action::Assign, 1, Resource::Queues, 9).unwrap_err();
        assert!(most.is(StatusCode::InvalidNumberOfControllerResources), "{most}");
        same_secondaries();
    });
    tap.test("queues and vectors assigned by passthrough, then online: as nvme list-secondary says", || {
        for cntlid in [1, 2] {
            bring_online(cntlid);
        }
        let late = client().virtualization_manage(Action::Assign, 1, Resource::Queues, 1).unwrap_err();
        assert!(late.is(StatusCode::InvalidSecondaryControllerState), "{late}");
        let both: Vec<bool> = client().secondary_controllers().unwrap().iter().map(|s| s.online()).collect();
        assert_eq!(both, [true, true, false, false]);
    });
}

pub fn undo(tap: &mut Tap) {
    tap.test("VFs are removed, and everything is as before", || {
        for pf in [NVME, IGB] {
            for vf in function(pf).virtfns {
                let vf = control(&vf.to_string());
                vf.unbind().unwrap();
                vf.set_driver_override(None).unwrap();
            }
        }
        for cntlid in [1, 2] {
            client().virtualization_manage(Action::Offline, cntlid, Resource::Queues, 0).unwrap();
        }
        for pf in [NVME, IGB] {
            control(pf).set_num_vfs(0).unwrap();
            control(pf).set_autoprobe(true).unwrap();
            assert_eq!((vfs(pf), function(pf).virtfns.len()), (0, 0));
        }
    });
}
