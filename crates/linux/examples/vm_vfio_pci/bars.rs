//! Regions, and registers reached both ways.

use std::sync::Arc;

use rustix::io::Errno;
use towline_core::bar::{BarTarget, Fill, FilteredBar, NoTraps, Policy, Rule};
use towline_core::channel::ChannelErrorKind;
use towline_linux::vfio::{DirtyBy, OpenBy, VfioBar, VfioChannel, VfioDevice};

use super::sysfs::{config, msix_vectors, open, resource_sizes};

pub fn as_sysfs_tells(address: &str, by: OpenBy) {
    let function = open(address, by);
    let device = function.device();
    for (index, size) in resource_sizes(address).into_iter().enumerate() {
        assert_eq!(device.region(index as u32).unwrap().size, size, "BAR {index}");
    }
    let space = device.region(7).unwrap();
    let mut id = [0; 4];
    device.read_region(&space, 0, &mut id).unwrap();
    // A VF has no ids of its own in hardware; the kernel makes them.
    let by_sysfs = |name: &str| {
        let text = std::fs::read_to_string(format!("/sys/bus/pci/devices/{address}/{name}")).unwrap();
        u16::from_str_radix(text.trim().trim_start_matches("0x"), 16).unwrap().to_le_bytes()
    };
    assert_eq!((id[..2].to_vec(), id[2..].to_vec()), (by_sysfs("vendor").to_vec(), by_sysfs("device").to_vec()));
    let msix = device.irq_info(2).unwrap();
    assert_eq!(msix.count, msix_vectors(address));
    assert!(msix.count > 0 && msix.takes_eventfds());
    assert!(device.flags() & 2 != 0, "PCI");
    assert!(device.format().unwrap().starts_with("vfio:vfio-pci:"));
    println!("# {} regions of {address}, format {:?}", device.region_count(), device.format().unwrap());
    // QEMU's IOMMUs don't track dirty pages, and a container has all that is mapped as dirty.
    let expected = if by == OpenBy::Group { DirtyBy::Type1 } else { DirtyBy::Nobody };
    assert_eq!(function.dirty_by(), expected);
    function.device().reset().unwrap();
}

pub fn without_migration(address: &str, by: OpenBy) {
    let function = open(address, by);
    assert_eq!(function.device().migration_flags(), Ok(0));
    let features: Vec<u32> = function.device().features().unwrap().numbers().collect();
    println!("# features {features:?}");
    assert!(!features.contains(&1));
    let error = VfioChannel::open(function.device()).unwrap_err();
    assert_eq!((error.kind, error.errno), (ChannelErrorKind::Unsupported, Some(Errno::NOTTY.raw_os_error())));
    println!("# {error}");
}

/// Sets bits of `PCI_COMMAND`: memory, and bus mastering.
pub fn enable(device: &VfioDevice) {
    device.write_region(&device.region(7).unwrap(), 4, &6u16.to_le_bytes()).unwrap();
}

fn register(bar: &dyn BarTarget, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    bar.read(offset, &mut bytes);
    u64::from_le_bytes(bytes)
}

pub fn mapped(address: &str, by: OpenBy) {
    let function = open(address, by);
    let device = function.device();
    let is_vf = std::path::Path::new(&format!("/sys/bus/pci/devices/{address}/physfn")).exists();
    let plain = VfioBar::open(device, 0).unwrap();
    // While memory is disabled nobody answers. That of a VF is its PF's to disable.
    device.write_region(&device.region(7).unwrap(), 4, &[0, 0]).unwrap();
    assert_eq!(register(&plain, 0) == u64::MAX, !is_vf);
    let unanswered = u64::from(!is_vf);
    assert_eq!(plain.failures(), unanswered);
    enable(device);

    let mut windows = VfioBar::open(device, 0).unwrap();
    let size = windows.region().size;
    let everything = windows.region().mmap_plan(&Policy::new(size).compile().unwrap(), 4096).unwrap();
    windows.map(&everything).unwrap();
    println!("# BAR 0 of {size:#x} bytes, mapped {everything:x?}");
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(maps.lines().any(|line| line.contains("vfio")), "nothing of the device is mapped");
    // CAP: a register that doesn't change, and is never 0 nor all ones; but QEMU gives 0 for a VF that is offline.
    let cap = register(&plain, 0);
    assert!((cap != 0 || is_vf) && cap != u64::MAX, "{cap:#x}");
    println!("# CAP {cap:#x}, CSTS {:#x}", register(&plain, 0x18) >> 32);
    assert_eq!(register(&windows, 0x18), register(&plain, 0x18));
    assert_eq!(register(&windows, 0), cap);
    let mut half = [0; 4];
    windows.read(4, &mut half);
    assert_eq!(u64::from(u32::from_le_bytes(half)), cap >> 32);
    // Odd accesses go by the kernel, which cuts them into registers.
    let mut odd = [0; 3];
    windows.read(1, &mut odd);
    assert_eq!(odd, cap.to_le_bytes()[1..4]);
    assert_eq!((windows.failures(), plain.failures()), (0, unanswered));
    // Beyond the end, as on PCI.
    assert_eq!(register(&windows, size), u64::MAX);
    assert_eq!(windows.failures(), 1);

    // Under a policy: CAP hidden, so the page with it is not mapped, and the rest is.
    let filter = Arc::new(Policy::new(size).rule(Rule::deny("cap", 0, 8, Fill::Zeros)).compile().unwrap());
    let plan = windows.region().mmap_plan(&filter, 4096).unwrap();
    assert!(
        plan.iter().all(|run| run.offset >= 4096) && plan.first().is_some_and(|run| run.offset == 4096),
        "{plan:x?}"
    );
    windows.map(&plan).unwrap();
    let filtered = FilteredBar::new(filter, Arc::new(windows), Arc::new(NoTraps));
    assert_eq!(register(&filtered, 0), 0);
    assert_eq!(register(&filtered, 8), register(&plain, 8));
    assert_eq!(config(address).len().min(256), 256);
}
