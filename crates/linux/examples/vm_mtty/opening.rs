//! Opening, by group and by node, alone and with an address space.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;
use towline_core::channel::{ChannelErrorKind, StateChannel};
use towline_core::fsm::DeviceState;
use towline_core::memory::MemoryRange;
use towline_linux::iommufd::{Hwpt, Iommufd};
use towline_linux::memory::{MappedMemory, memfd};
use towline_linux::vfio::{
    Container, DirtyBy, OpenBy, OpenedWay, Place, VfToken, VfioChannel, VfioDevice, VfioFunction, VfioOptions,
};

use super::mtty::{Mtty, STATE, Way, save};

pub fn tells(a: &Mtty, way: Way) {
    let device = &a.device;
    assert_eq!(device.opened_way(), if way == Way::Group { OpenedWay::Group } else { OpenedWay::Cdev });
    assert_eq!((device.container().is_some(), device.devid().is_some()), (way == Way::Group, way == Way::Cdev));
    assert_eq!(device.format(), Some("vfio:mtty:mtty-2"));
    assert_eq!(device.migration_flags(), Ok(7));
    let features: Vec<u32> = device.features().unwrap().numbers().collect();
    println!("# features {features:?}");
    assert_eq!(features, [1, 2, 6, 7, 8, 9, 12]);

    // As a VMM hands it over.
    let mut channel = a.fresh([5, 5]);
    channel.set_state(DeviceState::StopCopy).unwrap();
    let passed = VfioFunction::from_fd(device.as_fd().try_clone_to_owned().unwrap(), device.name()).unwrap();
    assert_eq!(passed.device().opened_way(), OpenedWay::Fd);
    assert_eq!(VfioChannel::open(passed.device()).unwrap().state(), Ok(DeviceState::StopCopy));
    assert_eq!(passed.map_memory(&MappedMemory::new()).unwrap_err().kind, ChannelErrorKind::Unsupported);
    channel.reset().unwrap();

    if let (Some(ioas), Some(devid)) = (&a.ioas, device.devid()) {
        // A mediated device is no piece of hardware: it takes address spaces only, and what isn't there is told.
        let error = Hwpt::allocate(ioas, devid, false).unwrap_err();
        println!("# {error}");
        assert!(error.errno.is_some());
        let error = device.attach(0x7777).unwrap_err();
        assert_eq!(error.errno, Some(Errno::NOENT.raw_os_error()), "{error}");
        device.detach().unwrap();
        device.detach().unwrap();
        device.attach(ioas.id()).unwrap();
    } else {
        assert_eq!(device.attach(1).unwrap_err().errno, Some(Errno::NOTTY.raw_os_error()));
    }
}

pub fn parts(a: &Mtty) {
    let device = &a.device;
    let bar = device.region(0).unwrap();
    assert!(bar.is_readable() && bar.is_writable() && bar.mappable.is_empty(), "{bar:?}");
    a.set_scratch([0x42, 0]);
    let mut byte = [0];
    device.read_region(&bar, 7, &mut byte).unwrap();
    assert_eq!(byte, [0x42]);
    assert_eq!(device.read_region(&bar, bar.size, &mut byte).unwrap_err().kind, ChannelErrorKind::Limit);
    assert_eq!(device.write_region(&bar, u64::MAX, &[0]).unwrap_err().kind, ChannelErrorKind::Limit);
    let config = device.region(7).unwrap();
    let mut id = [0; 4];
    device.read_region(&config, 0, &mut id).unwrap();
    assert_eq!(id, [0x48, 0x43, 0x53, 0x32], "PCI 4348:3253, by mtty.c");
    assert_eq!(device.region(1000).unwrap_err().errno, Some(Errno::INVAL.raw_os_error()));
    let intx = device.irq_info(0).unwrap();
    assert_eq!(intx.count, 1);
    assert_eq!(device.irq_info(1000).unwrap_err().errno, Some(Errno::INVAL.raw_os_error()));
    assert_eq!(device.wire_irqs(0, 1, &[None]).unwrap_err().kind, ChannelErrorKind::Limit);
    // A transmit register that is empty raises INTx once that is wired and enabled; the FIFOs are cleared first.
    device.write_region(&bar, 2, &[0x06]).unwrap();
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK)
        .unwrap();
    device.wire_irqs(0, 0, &[Some(event.as_fd())]).unwrap();
    device.write_region(&bar, 1, &[0x02]).unwrap();
    let mut count = [0; 8];
    assert_eq!(rustix::io::read(&event, &mut count), Ok(8), "no interrupt");
    assert!(u64::from_ne_bytes(count) >= 1);
    device.write_region(&bar, 1, &[0]).unwrap();
    device.disable_irqs(0).unwrap();
    device.disable_irqs(0).unwrap();
}

/// mtty has no open of its own: what it was in when it was closed it is in afterwards.
pub fn survives(uuid: &str, way: Way) {
    for (state, scratch) in
        [(DeviceState::Stop, [0x77, 0x78]), (DeviceState::RunningP2p, [1, 2]), (DeviceState::StopCopy, [3, 4])]
    {
        {
            let a = Mtty::open(uuid, way);
            a.fresh(scratch).set_state(state).unwrap();
        }
        let a = Mtty::open(uuid, way);
        assert_eq!(a.channel().state(), Ok(state));
        if let Some(told) = a.debugfs_state() {
            assert_eq!(told, state.to_string());
        }
        assert_eq!(a.scratch(), scratch);
        // And a reset makes it new.
        let mut channel = a.channel();
        channel.reset().unwrap();
        assert_eq!(save(&mut channel).len(), STATE);
    }
}

pub fn once(uuid: &str, way: Way) {
    let open = Mtty::open(uuid, way);
    let place = Place::find(uuid).unwrap();
    let container = Container::open().unwrap();
    let busy = container.device(place.group().unwrap(), uuid).unwrap_err();
    println!("# {busy}");
    assert_eq!(busy.errno, Some(Errno::BUSY.raw_os_error()), "{busy}");
    let missing = container.device(u32::MAX, uuid).unwrap_err();
    assert_eq!(missing.errno, Some(Errno::NOENT.raw_os_error()), "{missing}");
    for name in ["a\0b", "a vf_token=b"] {
        let nul = container.device(place.group().unwrap(), name).unwrap_err();
        assert_eq!(nul.kind, ChannelErrorKind::Limit, "{nul}");
    }
    if let Some(node) = place.cdev().filter(|node| node.exists()) {
        let iommufd = Iommufd::open().unwrap();
        let busy = VfioDevice::open_cdev(&node, uuid, iommufd.as_fd(), None).unwrap_err();
        println!("# {busy}");
        // `vfio_df_open` in drivers/vfio/vfio_main.c has one for each way.
        let errno = if way == Way::Group { Errno::BUSY } else { Errno::INVAL };
        assert_eq!(busy.errno, Some(errno.raw_os_error()), "{busy}");
    }
    let node = std::fs::File::options().read(true).write(true).open("/dev/vfio/vfio").unwrap();
    let error = VfioDevice::from_fd(node.into(), "a container").unwrap_err();
    assert_eq!(error.kind, ChannelErrorKind::Unsupported, "{error}");
    drop(open);
    // A token where none is taken: whatever the kernel says to it, the device stays usable.
    let token = VfToken::new([7; 16]);
    let by = if way == Way::Group { OpenBy::Group } else { OpenBy::Cdev };
    let with_token = VfioFunction::open(uuid, &VfioOptions { by, token: Some(token), ..VfioOptions::default() });
    println!("# with a token: {:?}", with_token.as_ref().map(|_| ()).map_err(|error| &error.message));
    drop(with_token);
    Mtty::open(uuid, way);
}

pub fn function(uuid: &str, way: Way) {
    let by = if way == Way::Group { OpenBy::Group } else { OpenBy::Cdev };
    let function = VfioFunction::open(uuid, &VfioOptions { by, ..VfioOptions::default() }).unwrap();
    let reports = std::path::Path::new("/dev/iommu").exists();
    assert_eq!(function.dirty_by(), if reports { DirtyBy::Device } else { DirtyBy::Type1 });
    let memory = MappedMemory::new();
    let len = 4 << 20;
    let file = memfd("guest", 2 * len).unwrap();
    memory.add_region(0, file.as_fd(), 0, len).unwrap();
    memory.add_region(1 << 32, file.as_fd(), len, len).unwrap();
    function.map_memory(&memory).unwrap();
    let space = function.address_space().unwrap();
    assert_eq!(space.mapped(), [MemoryRange { gpa: 0, len }, MemoryRange { gpa: 1 << 32, len }]);
    assert_eq!(function.map_memory(&memory).unwrap_err().kind, ChannelErrorKind::State);
    let mut source = function.dirty_source().unwrap().unwrap();
    source.start(&[MemoryRange { gpa: 0, len }], 4096).unwrap();
    source.stop().unwrap();
    function.unmap_memory().unwrap();
    function.unmap_memory().unwrap();
    assert_eq!(space.mapped(), []);
    function.map_memory(&memory).unwrap();
    // A channel outlives it; the memory is out of the device's reach all the same.
    let mut channel = VfioChannel::open(function.device()).unwrap();
    channel.reset().unwrap();
    drop(function);
    assert_eq!(channel.state(), Ok(DeviceState::Running));
    assert_eq!(space.mapped(), []);
    drop((source, channel, space));
    if way == Way::Cdev {
        let auto = VfioFunction::open(uuid, &VfioOptions::default()).unwrap();
        assert_eq!(auto.device().opened_way(), OpenedWay::Cdev);
    }
}

/// A PCI function on `vfio-pci` is a VFIO device, in a group with an IOMMU, and doesn't migrate.
pub fn without_migration(address: &str) {
    let function = VfioFunction::open(address, &VfioOptions { by: OpenBy::Group, ..VfioOptions::default() }).unwrap();
    let device: &Arc<VfioDevice> = function.device();
    assert!(device.region(0).unwrap().size > 0);
    assert_eq!(device.migration_flags(), Ok(0));
    let error = VfioChannel::open(device).unwrap_err();
    let expected = (ChannelErrorKind::Unsupported, Some(Errno::NOTTY.raw_os_error()));
    assert_eq!((error.kind, error.errno), expected, "{error}");
}
