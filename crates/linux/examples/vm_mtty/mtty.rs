//! A `mtty` device, opened either way, and what the kernel's own files tell of it.

use std::fmt;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use rustix::io::{pread, pwrite};
use towline_core::channel::{ReadOutcome, StateChannel};
use towline_core::fsm::DeviceState;
use towline_linux::iommufd::{Ioas, Iommufd};
use towline_linux::vfio::{Container, Place, VfioChannel, VfioDevice};

/// `struct mtty_data` before its ports, and `struct serial_port` (`samples/vfio-mdev/mtty.c`).
pub const HEADER: usize = 24;
pub const PORT: usize = 36;
pub const STATE: usize = HEADER + 2 * PORT;
/// Where a UART has its scratch register, which does nothing but keep a byte.
const SCRATCH: u64 = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Group,
    Cdev,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Way::Group { "group" } else { "cdev" })
    }
}

/// Whether this device can be opened by a node of its own.
pub fn has_nodes(uuid: &str) -> bool {
    Path::new("/dev/iommu").exists() && Place::find(uuid).unwrap().cdev().is_some_and(|node| node.exists())
}

pub struct Mtty {
    pub device: Arc<VfioDevice>,
    /// After the device: an address space goes when nobody is attached to it.
    pub ioas: Option<Arc<Ioas>>,
}

impl Mtty {
    pub fn open(uuid: &str, way: Way) -> Self {
        let place = Place::find(uuid).unwrap();
        match way {
            Way::Group => {
                let device = Container::open().unwrap().device(place.group().unwrap(), uuid).unwrap();
                Self { device: Arc::new(device), ioas: None }
            }
            Way::Cdev => {
                let iommufd = Iommufd::open().unwrap();
                let device = VfioDevice::open_cdev(&place.cdev().unwrap(), uuid, iommufd.as_fd(), None).unwrap();
                let ioas = Ioas::allocate(&iommufd).unwrap();
                device.attach(ioas.id()).unwrap();
                Self { device: Arc::new(device), ioas: Some(ioas) }
            }
        }
    }

    pub fn channel(&self) -> VfioChannel {
        VfioChannel::open(&self.device).unwrap()
    }

    /// The channel of a device that is in RUNNING and has these scratch registers.
    pub fn fresh(&self, scratch: [u8; 2]) -> VfioChannel {
        let mut channel = self.channel();
        channel.reset().unwrap();
        self.set_scratch(scratch);
        channel
    }

    pub fn set_scratch(&self, scratch: [u8; 2]) {
        for (bar, byte) in scratch.iter().enumerate() {
            let region = self.device.region(bar as u32).unwrap();
            assert!(region.size > SCRATCH, "{region:?}");
            assert_eq!(pwrite(self.device.as_fd(), &[*byte], region.offset + SCRATCH), Ok(1));
        }
    }

    /// The scratch register of each of the two ports: state that a guest can see.
    pub fn scratch(&self) -> [u8; 2] {
        [0, 1].map(|bar| {
            let mut byte = [0];
            let region = self.device.region(bar).unwrap();
            assert_eq!(pread(self.device.as_fd(), &mut byte, region.offset + SCRATCH), Ok(1));
            byte[0]
        })
    }

    /// The state by `/sys/kernel/debug/vfio/…/migration/state`.
    pub fn debugfs_state(&self) -> Option<String> {
        let path = format!("/sys/kernel/debug/vfio/{}/migration/state", self.device.name());
        std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
    }

    /// The whole state, by STOP_COPY alone.
    pub fn whole(&self, scratch: [u8; 2]) -> Vec<u8> {
        save(&mut self.fresh(scratch))
    }
}

/// Reads until there is nothing more, in pieces.
pub fn drain(channel: &mut dyn StateChannel, piece: usize) -> (Vec<u8>, ReadOutcome) {
    let (mut all, mut buf) = (vec![], vec![0; piece]);
    loop {
        match channel.read(&mut buf).unwrap() {
            ReadOutcome::Bytes(n) => all.extend_from_slice(&buf[..n]),
            other => return (all, other),
        }
        assert!(all.len() < 1 << 20, "a device without an end");
    }
}

/// The whole state, by STOP_COPY alone.
pub fn save(channel: &mut dyn StateChannel) -> Vec<u8> {
    channel.set_state(DeviceState::StopCopy).unwrap();
    let (state, end) = drain(channel, 4096);
    assert_eq!(end, ReadOutcome::End);
    channel.set_state(DeviceState::Running).unwrap();
    state
}

/// Every state but ERROR.
pub fn states() -> impl Iterator<Item = DeviceState> {
    DeviceState::ALL.into_iter().filter(|state| *state != DeviceState::Error)
}
