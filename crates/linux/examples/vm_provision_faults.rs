//! The kernel runs out of memory at every allocation of what provisioning asks of it: a function's driver by sysfs, its reset, admin
//! commands by passthrough to the controlling function, devlink. Errors are told with `ENOMEM`, nothing is left open or bound, and the same
//! sequence then works. Run by `test/kernel`.
//!
//! `vm_provision_faults ADDRESS` prints TAP; the exit code is 1 where anything failed. The address is that of an NVMe PF with SR-IOV that the
//! kernel's driver has.
//!
//! What the kernel itself doesn't survive is left out, all seen with 7.3.4: making functions, as `vm_faults` says, and binding them. On the way to
//! vfio-pci it warns where it can't make a VFIO group (`vfio_group_release` in `drivers/vfio/group.c`); on the way of a PF to any driver its ACPI
//! follows a pointer that it did not get (`acpi_ns_repair_PRT`); on the way of a VF to nvme it warns about an interrupt's entry in /proc.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use towline_linux::devlink::{Devlink, EswitchMode, FunctionChange, Handle};
use towline_linux::errno::errno_text;
use towline_linux::nvme::NvmePassthrough;
use towline_linux::pci::{PciAddress, PciControl, PciFunction};
use towline_linux::sysfs::HostErrorKind;
use towline_nvme::admin::{AdminClient, AdminError, TransportError};
use towline_nvme::resources::{Resource, VirtualizationAction as Action};
use vm_support::Test;
use vm_support::fail_nth::{FailNth, Failed, each_allocation};
use vm_support::hosts::sysfs;

mod vm_support;

/// What one sequence may take before it no longer fails every single allocation, on an emulated processor.
const BUDGET: Duration = Duration::from_secs(30);
const DEVICE: &str = "/dev/nvme0";

fn nothing_else(_: &Failed) -> bool {
    false
}

fn wrong(words: &str) -> Failed {
    Failed { errno: None, words: words.to_owned() }
}

impl From<AdminError> for Failed {
    fn from(error: AdminError) -> Self {
        let errno = match &error {
            AdminError::Transport { source: TransportError::Io { errno, .. }, .. } => Some(*errno),
            _ => None,
        };
        Self { errno, words: error.to_string() }
    }
}

fn control(address: &str) -> PciControl {
    PciControl::of(&sysfs(), address.parse::<PciAddress>().unwrap()).unwrap()
}

fn driver(address: &str) -> Option<String> {
    PciFunction::find(&sysfs(), address.parse().unwrap()).unwrap().driver
}

/// One VF, for as long as this lives.
struct Vf {
    pf: PciControl,
    address: String,
}

impl Vf {
    fn of(pf: &str) -> Self {
        let control = control(pf);
        control.set_autoprobe(false).unwrap();
        control.set_num_vfs(1).unwrap();
        let address = control.read().unwrap().virtfns[0].to_string();
        Self { pf: control, address }
    }
}

impl Drop for Vf {
    fn drop(&mut self) {
        let vf = control(&self.address);
        vf.unbind().unwrap();
        vf.set_driver_override(None).unwrap();
        self.pf.set_num_vfs(0).unwrap();
        self.pf.set_autoprobe(true).unwrap();
    }
}

/// A VF's reset, its way from vfio-pci, and which driver it is for.
fn unbind(fail: &FailNth, pf: &str) {
    let vf = Vf::of(pf);
    let control = control(&vf.address);
    let mut mend = || {
        if driver(&vf.address).is_none() {
            control.set_driver_override(Some("vfio-pci")).unwrap();
            assert_eq!(control.probe().unwrap(), "vfio-pci");
        }
    };
    mend();
    let mut sequence = || {
        control.reset()?;
        control.unbind()?;
        control.set_driver_override(None)?;
        control.set_driver_override(Some("vfio-pci"))?;
        control.set_driver_override(None)?;
        Ok(())
    };
    each_allocation(fail, "reset, unbind, override", BUDGET, &nothing_else, &mut sequence, &mut mend);
}

/// Takes the flexible resources from QEMU's PF, which begins with all of them; that comes into effect with a reset. Gives the controller of its
/// first VF.
fn free_resources(pf: &str) -> u16 {
    let client = client().unwrap();
    for resource in [Resource::Queues, Resource::Interrupts] {
        client.virtualization_manage(Action::AllocatePrimary, 0, resource, 0).unwrap();
    }
    let cntlid = client.secondary_controllers().unwrap().iter().find(|one| one.vfn == 1).unwrap().scid;
    control(pf).set_num_vfs(0).unwrap();
    control(pf).reset().unwrap();
    live();
    control(pf).set_num_vfs(1).unwrap();
    cntlid
}

fn client() -> Result<AdminClient, Failed> {
    Ok(AdminClient::new(Arc::new(NvmePassthrough::open(Path::new(DEVICE), &sysfs())?)))
}

/// What `towline provision` asks of a controlling function, but for namespaces, which stay as they are.
fn resources(fail: &FailNth, pf: &str) {
    let vf = Vf::of(pf);
    let cntlid = free_resources(pf);
    let state = |client: &AdminClient| -> Result<(bool, u16, u16), Failed> {
        let all = client.secondary_controllers()?;
        let one = all.iter().find(|one| one.scid == cntlid).ok_or_else(|| wrong("it is gone"))?;
        Ok((one.online(), one.nvq, one.nvi))
    };
    let offline = || {
        let client = client().unwrap();
        client.virtualization_manage(Action::Offline, cntlid, Resource::Queues, 0).unwrap();
        for resource in [Resource::Queues, Resource::Interrupts] {
            client.virtualization_manage(Action::Assign, cntlid, resource, 0).unwrap();
        }
        assert_eq!(state(&client).unwrap(), (false, 0, 0));
    };
    offline();
    let mut sequence = || {
        let client = client()?;
        let caps = client.primary_capabilities()?;
        client.identify_controller()?;
        client.active_namespaces()?;
        for (resource, count) in [(Resource::Interrupts, 1), (Resource::Queues, 2)] {
            if client.virtualization_manage(Action::Assign, cntlid, resource, count)? != count {
                return Err(wrong("other resources than were asked for"));
            }
        }
        client.virtualization_manage(Action::Online, cntlid, Resource::Queues, 0)?;
        if state(&client)? != (true, 2, 1) {
            return Err(wrong("it is not what it was told to be"));
        }
        client.virtualization_manage(Action::Offline, cntlid, Resource::Queues, 0)?;
        if client.primary_capabilities()?.cntlid == caps.cntlid { Ok(()) } else { Err(wrong("another controller")) }
    };
    each_allocation(fail, "admin commands", BUDGET, &nothing_else, &mut sequence, &mut || offline());
    drop(vf);
}

/// Waits until the kernel's driver has its controller again.
fn live() {
    for _ in 0..300 {
        let state = std::fs::read_to_string("/sys/class/nvme/nvme0/state").unwrap_or_default();
        if state.trim() == "live" {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("the controller is not live");
}

/// Reads everything and changes the port of a VF, which its driver has no way to do: what was refused is refused for that reason or for want of
/// memory.
fn devlink(fail: &FailNth) {
    let write = |path: &str, text: &str| std::fs::write(path, text).unwrap_or_else(|e| panic!("{text} > {path}: {e}"));
    write("/sys/bus/netdevsim/new_device", "9 1");
    write("/sys/bus/netdevsim/devices/netdevsim9/sriov_numvfs", "1");
    let handle = Handle::new("netdevsim", "netdevsim9").unwrap();
    Devlink::open().unwrap().set_eswitch_mode(&handle, EswitchMode::Switchdev).unwrap();
    let mut sequence = || {
        let mut devlink = Devlink::open()?;
        if !devlink.devices()?.contains(&handle) {
            return Err(wrong("the device is not there"));
        }
        let ports = devlink.ports()?;
        let vf = ports.iter().find(|port| port.device == handle && port.vf == Some(0)).ok_or_else(|| wrong("no VF"))?;
        if devlink.port(&handle, vf.index)? != *vf {
            return Err(wrong("the port is another one"));
        }
        if devlink.eswitch_mode(&handle)? != EswitchMode::Switchdev {
            return Err(wrong("the eswitch is in another mode"));
        }
        let change = FunctionChange { migratable: Some(true), ..FunctionChange::default() };
        match devlink.set_port(&handle, vf.index, &change) {
            Err(error) if error.kind == HostErrorKind::Unsupported => Ok(()),
            Err(error) => Err(error.into()),
            Ok(()) => Err(wrong("it was changed")),
        }
    };
    // Netlink's own words for want of memory: no buffer, and where it was for the socket, no file.
    let by_netlink = |error: &Failed| {
        [105, 23].into_iter().any(|number| error.errno == Some(number) && error.words.contains(&errno_text(number)))
    };
    each_allocation(fail, "devlink", BUDGET, &by_netlink, &mut sequence, &mut || {});
    write("/sys/bus/netdevsim/del_device", "9");
}

fn main() -> ExitCode {
    let Some(pf) = std::env::args().nth(1) else { panic!("vm_provision_faults ADDRESS") };
    let Some(fail) = FailNth::new() else { panic!("this kernel has no CONFIG_FAILSLAB") };
    live();
    let tests: [Test<'_>; 3] = [
        ("from vfio-pci, and the driver that a function is for", Box::new(|| unbind(&fail, &pf))),
        ("admin commands by passthrough", Box::new(|| resources(&fail, &pf))),
        ("ports by devlink", Box::new(|| devlink(&fail))),
    ];
    vm_support::run(&tests)
}
