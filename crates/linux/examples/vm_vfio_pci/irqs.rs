//! Interrupts by eventfd, and the exposure's own section on a real function.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use towline_linux::vfio::{ExposureSection, OpenBy, VfioExposure, Wiring};

use super::bars::enable;
use super::sysfs::{config, open, wired_vectors};

pub fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// How often it was raised since the last time.
pub fn count(event: &OwnedFd) -> u64 {
    let mut bytes = [0; 8];
    match rustix::io::read(event, &mut bytes) {
        Ok(8) => u64::from_ne_bytes(bytes),
        Err(Errno::AGAIN) => 0,
        other => panic!("{other:?}"),
    }
}

pub fn loopback(address: &str, by: OpenBy) {
    let function = open(address, by);
    let device = function.device();
    enable(device);
    let vectors = device.irq_info(2).unwrap().count as usize;
    let events: Vec<OwnedFd> = (0..vectors).map(|_| event()).collect();
    let hole = 1;
    let wired: Vec<_> = events.iter().enumerate().map(|(n, fd)| (n != hole).then(|| fd.as_fd())).collect();
    assert_eq!(device.raise_irqs(2, 0, &[true]).unwrap_err().errno, Some(Errno::INVAL.raw_os_error()), "disabled");
    device.wire_irqs(2, 0, &wired).unwrap();
    assert_eq!(wired_vectors(address), vectors - 1, "by /proc/interrupts");
    device.raise_irqs(2, 0, &vec![true; vectors]).unwrap();
    for (n, event) in events.iter().enumerate() {
        assert_eq!(count(event), u64::from(n != hole), "vector {n}");
    }
    // One of them, twice.
    for _ in 0..2 {
        device.raise_irqs(2, 0, &[false, false, true]).unwrap();
    }
    assert_eq!(events.iter().map(count).collect::<Vec<_>>()[..4], [0, 0, 2, 0]);
    // Another eventfd for one vector, and none for another, while the rest stay.
    let fresh = event();
    device.wire_irqs(2, 2, &[Some(fresh.as_fd()), None]).unwrap();
    device.raise_irqs(2, 0, &vec![true; vectors]).unwrap();
    assert_eq!((count(&fresh), count(&events[2]), count(&events[3]), count(&events[0])), (1, 0, 0, 1));
    assert_eq!(wired_vectors(address), vectors - 2);
    // What is no eventfd leaves the index disabled, not half wired.
    let null = std::fs::File::open("/dev/null").unwrap();
    let error = device.wire_irqs(2, 0, &[Some(null.as_fd())]).unwrap_err();
    println!("# {error}");
    assert_eq!(wired_vectors(address), 0);
    assert!(device.wire_irqs(2, 0, &vec![None; vectors + 1]).is_err());
    device.disable_irqs(2).unwrap();
    // INTx and MSI-X exclude each other, and whichever is closed last takes its vectors along.
    device.wire_irqs(2, 0, &[Some(fresh.as_fd())]).unwrap();
    assert!(device.irq_info(0).unwrap().count == 0 || device.wire_irqs(0, 0, &[Some(fresh.as_fd())]).is_err());
    drop(function);
    assert_eq!(wired_vectors(address), 0);
}

/// The real `PCI_COMMAND`.
fn command(address: &str) -> u16 {
    let config = config(address);
    u16::from_le_bytes([config[4], config[5]])
}

pub fn section(address: &str, by: OpenBy) {
    let function = open(address, by);
    let device = function.device();
    enable(device);
    let vectors = 5;
    let events: Vec<OwnedFd> = (0..vectors).map(|_| event()).collect();
    let wiring = Wiring { index: 2, vectors: vec![true, false, true, true, false] };
    let wired: Vec<_> = events.iter().zip(&wiring.vectors).map(|(fd, wired)| wired.then(|| fd.as_fd())).collect();
    device.wire_irqs(2, 0, &wired).unwrap();
    // None for what is not wired: holes are as they are.
    let own = events.into_iter().zip(&wiring.vectors).map(|(fd, wired)| wired.then_some(fd)).collect();
    let port = VfioExposure::new(device, Some((2, own))).unwrap();
    let section = ExposureSection::save(&port, Some(wiring)).unwrap();
    println!("# {section:x?}");
    assert_eq!(section.command & 6, 6);
    assert_eq!(section.msix_control, Some(0x8000), "MSI-X is enabled");
    let bytes = section.encode();

    // What a destination is before: nothing enabled, nothing wired.
    device.disable_irqs(2).unwrap();
    device.reset().unwrap();
    device.write_region(&device.region(7).unwrap(), 4, &[0, 0]).unwrap();
    assert_eq!((command(address) & 6, wired_vectors(address)), (0, 0));
    let there = ExposureSection::decode(&bytes).unwrap();
    there.restore(&port).unwrap();
    assert_eq!((command(address) & 6, wired_vectors(address)), (6, 3));
    assert_eq!(ExposureSection::save(&port, there.wiring.clone()).unwrap(), there);
    device.raise_irqs(2, 0, &[true; 3]).unwrap();
}
