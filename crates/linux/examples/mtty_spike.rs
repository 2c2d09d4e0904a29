//! Moves the state of one of the kernel's `mtty` sample devices to another through `VfioChannel`, and lets the kernel refuse
//! what it has to. Needs mediated devices, two of type `mtty-2` and then one of `mtty-1` (two more are not used), and a PCI
//! function on `vfio-pci`. Run by `test/kernel`.
//!
//! `mtty_spike UUID UUID UUID UUID UUID PCI-ADDRESS` prints TAP; the exit code is 1 where anything failed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;

use rustix::io::{Errno, pread, pwrite};
use towline_core::channel::{ChannelErrorKind, ReadOutcome, StateChannel};
use towline_core::fsm::{DeviceState, opens_data_fd, path};
use towline_linux::vfio::{Container, VfioChannel, VfioDevice};

/// `struct mtty_data` before its ports, and `struct serial_port` (`samples/vfio-mdev/mtty.c`).
const HEADER: usize = 24;
const PORT: usize = 36;
const STATE: usize = HEADER + 2 * PORT;
/// Where a UART has its scratch register, which does nothing but keep a byte.
const SCRATCH: u64 = 7;

/// A test and its name.
type Test<'a> = (&'a str, Box<dyn Fn() + 'a>);

/// The number of a device's group.
fn group(bus: &str, name: &str) -> u32 {
    let link = std::fs::read_link(format!("/sys/bus/{bus}/devices/{name}/iommu_group")).unwrap();
    link.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

struct Device {
    device: Arc<VfioDevice>,
}

impl Device {
    fn open(uuid: &str) -> Self {
        Self { device: Arc::new(Container::open().unwrap().device(group("mdev", uuid), uuid).unwrap()) }
    }

    fn channel(&self) -> VfioChannel {
        VfioChannel::open(&self.device).unwrap()
    }

    /// The channel of a device that is in RUNNING and has these scratch registers.
    fn fresh(&self, scratch: [u8; 2]) -> VfioChannel {
        let mut channel = self.channel();
        channel.reset().unwrap();
        self.set_scratch(scratch);
        channel
    }

    fn set_scratch(&self, scratch: [u8; 2]) {
        for (bar, byte) in scratch.iter().enumerate() {
            let region = self.device.region(bar as u32).unwrap();
            assert!(region.size > SCRATCH, "{region:?}");
            assert_eq!(pwrite(self.device.as_fd(), &[*byte], region.offset + SCRATCH), Ok(1));
        }
    }

    /// The scratch register of each of the two ports: state that a guest can see.
    fn scratch(&self) -> [u8; 2] {
        [0, 1].map(|bar| {
            let mut byte = [0];
            let region = self.device.region(bar).unwrap();
            assert_eq!(pread(self.device.as_fd(), &mut byte, region.offset + SCRATCH), Ok(1));
            byte[0]
        })
    }
}

/// Reads until there is nothing more, in pieces.
fn drain(channel: &mut dyn StateChannel, piece: usize) -> (Vec<u8>, ReadOutcome) {
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
fn save(channel: &mut dyn StateChannel) -> Vec<u8> {
    channel.set_state(DeviceState::StopCopy).unwrap();
    let (state, end) = drain(channel, 4096);
    assert_eq!(end, ReadOutcome::End);
    channel.set_state(DeviceState::Running).unwrap();
    state
}

/// Writes `state` into a device that has to refuse it, by whichever call the kernel does it, and leaves it as it was.
fn refuse(device: &Device, state: &[u8], errno: Errno, on_write: bool) {
    let scratch = [0x11, 0x22];
    let mut fresh = device.fresh(scratch);
    let channel: &mut dyn StateChannel = &mut fresh;
    channel.set_state(DeviceState::Resuming).unwrap();
    let written = channel.write(state);
    let error = if on_write {
        let error = written.unwrap_err();
        // The driver would take more now, and mtty even what is left of a whole state.
        assert_eq!(channel.write(&[0]).unwrap_err().kind, ChannelErrorKind::BadState);
        assert_eq!(channel.set_state(DeviceState::Stop).unwrap_err().kind, ChannelErrorKind::BadState);
        error
    } else {
        written.unwrap();
        channel.set_state(DeviceState::Running).unwrap_err()
    };
    assert_eq!((error.kind, error.errno), (ChannelErrorKind::BadState, Some(errno.raw_os_error())), "{error}");
    assert_eq!(error.state, Some(DeviceState::Resuming));
    assert_eq!(channel.state(), Ok(DeviceState::Resuming));
    channel.reset().unwrap();
    assert_eq!(channel.state(), Ok(DeviceState::Running));
    assert_eq!(device.scratch(), scratch);
}

fn moves_with_pre_copy(a: &Device, b: &Device) {
    let (mut from, mut to) = (a.fresh([0xA5, 0x5A]), b.fresh([0x00, 0xFF]));
    let (from, to): (&mut dyn StateChannel, &mut dyn StateChannel) = (&mut from, &mut to);
    assert_eq!(from.flags().0, 7);
    assert_ne!(a.scratch(), b.scratch());

    from.set_state(DeviceState::PreCopy).unwrap();
    let pending = from.pending().unwrap();
    assert_eq!((pending.initial_bytes, pending.dirty_bytes, pending.stop_copy_bytes), (24, 0, Some(STATE as u64)));
    let (mut state, outcome) = drain(from, 10);
    assert_eq!((state.len(), outcome), (HEADER, ReadOutcome::EmptyForNow));
    assert_eq!(from.pending().unwrap().initial_bytes, 0);
    // It runs: what the guest writes now is moved too.
    a.set_scratch([0x3C, 0xC3]);
    from.set_state(DeviceState::PreCopyP2p).unwrap();
    assert_eq!(drain(from, 10), (vec![], ReadOutcome::EmptyForNow));
    from.set_state(DeviceState::StopCopy).unwrap();
    let (rest, outcome) = drain(from, 10);
    assert_eq!((rest.len(), outcome), (2 * PORT, ReadOutcome::End));
    assert_eq!(drain(from, 10), (vec![], ReadOutcome::End));
    state.extend(rest);

    to.set_state(DeviceState::Resuming).unwrap();
    for piece in state.chunks(7) {
        to.write(piece).unwrap();
    }
    to.set_state(DeviceState::Stop).unwrap();
    to.set_state(DeviceState::Running).unwrap();
    from.set_state(DeviceState::Stop).unwrap();
    assert_eq!(b.scratch(), [0x3C, 0xC3]);
    assert_eq!((from.state(), to.state()), (Ok(DeviceState::Stop), Ok(DeviceState::Running)));
    from.set_state(DeviceState::Running).unwrap();
}

fn moves_without_pre_copy(a: &Device, b: &Device) {
    let state = save(&mut a.fresh([0x01, 0x02]));
    assert_eq!(state.len(), STATE);
    let mut to = b.fresh([0x03, 0x04]);
    to.set_state(DeviceState::Resuming).unwrap();
    to.write(&state).unwrap();
    assert_eq!(b.scratch(), [0x03, 0x04], "only leaving RESUMING loads it");
    to.set_state(DeviceState::Running).unwrap();
    assert_eq!(b.scratch(), [0x01, 0x02]);
}

fn pre_copy_can_be_given_up(a: &Device) {
    let mut channel = a.fresh([7, 8]);
    for _ in 0..3 {
        channel.set_state(DeviceState::PreCopy).unwrap();
        assert_eq!(drain(&mut channel, 4096).0.len(), HEADER);
        channel.set_state(DeviceState::Running).unwrap();
    }
    assert_eq!(save(&mut channel).len(), STATE);
    assert_eq!(a.scratch(), [7, 8]);
}

fn calls_out_of_state(a: &Device) {
    let mut channel = a.fresh([0, 0]);
    assert_eq!(channel.read(&mut [0; 8]).unwrap_err().kind, ChannelErrorKind::State);
    assert_eq!(channel.write(&[0]).unwrap_err().kind, ChannelErrorKind::State);
    assert_eq!(channel.set_state(DeviceState::Error).unwrap_err().kind, ChannelErrorKind::State);
    channel.set_state(DeviceState::StopCopy).unwrap();
    assert_eq!(channel.read(&mut []).unwrap_err().kind, ChannelErrorKind::Limit);
    assert_eq!(channel.write(&[0]).unwrap_err().kind, ChannelErrorKind::State);
    assert_eq!(channel.set_state(DeviceState::PreCopy).unwrap_err().kind, ChannelErrorKind::State);
    assert_eq!(drain(&mut channel, 4096).0.len(), STATE);
    channel.reset().unwrap();
}

/// Every way between two states, with the kernel against core's table.
fn every_way(a: &Device, whole: &[u8]) {
    let mut ways = 0;
    let states = || DeviceState::ALL.into_iter().filter(|s| *s != DeviceState::Error);
    for from in states() {
        for to in states() {
            let mut channel = a.fresh([1, 2]);
            channel.set_state(from).unwrap();
            if from == DeviceState::Resuming {
                channel.write(whole).unwrap();
            }
            let way = path(channel.flags(), from, to);
            match channel.set_state(to) {
                Ok(()) => {
                    let way = way.expect("the kernel went a way that core doesn't know");
                    assert_eq!(channel.state(), Ok(to), "{way}");
                    let readable = matches!(to, DeviceState::PreCopy | DeviceState::PreCopyP2p | DeviceState::StopCopy);
                    assert_eq!(channel.read(&mut [0; 8]).is_ok(), readable, "{way}");
                    ways += 1;
                }
                Err(error) => assert!(way.is_none(), "{from} to {to}: {error}"),
            }
        }
    }
    assert_eq!(ways, 47, "49 pairs, without the two from STOP_COPY back to pre-copy");
    assert!(opens_data_fd(DeviceState::Stop, DeviceState::StopCopy));
}

fn reset_cuts_a_session(a: &Device) {
    let (mut reader, mut other) = (a.fresh([9, 9]), a.channel());
    reader.set_state(DeviceState::StopCopy).unwrap();
    assert_eq!(other.state(), Ok(DeviceState::StopCopy));
    // The session is the one that opened it.
    assert_eq!(other.read(&mut [0; 8]).unwrap_err().kind, ChannelErrorKind::State);
    other.reset().unwrap();
    let error = reader.read(&mut [0; 8]).unwrap_err();
    assert_eq!((error.kind, error.errno), (ChannelErrorKind::Gone, Some(Errno::NODEV.raw_os_error())));
    assert_eq!(reader.state(), Ok(DeviceState::Running));
    assert_eq!(save(&mut reader).len(), STATE);
}

/// Only the descriptor of a device is taken for one, and a group is open once.
fn opening(a: &Device, uuid: &str) {
    let container = Container::open().unwrap();
    let busy = container.device(group("mdev", uuid), uuid).unwrap_err();
    assert_eq!(busy.errno, Some(Errno::BUSY.raw_os_error()), "{busy}");
    let missing = container.device(u32::MAX, uuid).unwrap_err();
    assert_eq!(missing.errno, Some(Errno::NOENT.raw_os_error()), "{missing}");
    let nul = container.device(group("mdev", uuid), "a\0b").unwrap_err();
    assert!(matches!(nul.kind, ChannelErrorKind::Limit | ChannelErrorKind::Device), "{nul}");

    let node = std::fs::File::options().read(true).write(true).open("/dev/vfio/vfio").unwrap();
    let error = VfioDevice::from_fd(node.into(), "a container").unwrap_err();
    assert_eq!(error.kind, ChannelErrorKind::Unsupported, "{error}");
    let mut channel = a.fresh([5, 5]);
    channel.set_state(DeviceState::StopCopy).unwrap();

    // As a VMM hands it over.
    let passed = a.device.as_fd().try_clone_to_owned().unwrap();
    let passed = Arc::new(VfioDevice::from_fd(passed, "passed").unwrap());
    assert_eq!(VfioChannel::open(&passed).unwrap().state(), Ok(DeviceState::StopCopy));
    channel.reset().unwrap();
}

/// A PCI function on `vfio-pci` is a VFIO device, in a group with an IOMMU, and doesn't migrate.
fn without_migration(address: &str) {
    let device = Arc::new(Container::open().unwrap().device(group("pci", address), address).unwrap());
    assert!(device.region(0).unwrap().size > 0);
    let error = VfioChannel::open(&device).unwrap_err();
    assert_eq!(
        (error.kind, error.errno),
        (ChannelErrorKind::Unsupported, Some(Errno::NOTTY.raw_os_error())),
        "{error}"
    );
}

fn main() -> ExitCode {
    let uuids: Vec<String> = std::env::args().skip(1).collect();
    let [a, b, c, _, _, address] = uuids.as_slice() else {
        eprintln!("usage: mtty_spike UUID UUID UUID UUID UUID PCI-ADDRESS");
        return ExitCode::from(2);
    };
    let uuid = a.as_str();
    let (a, b, other) = (Device::open(a), Device::open(b), Device::open(c));
    let whole = save(&mut a.fresh([0xAB, 0xCD]));
    let foreign = {
        let mut channel = other.channel();
        channel.reset().unwrap();
        save(&mut channel)
    };

    let tests: Vec<Test<'_>> = vec![
        ("state moves from one device to the other, with pre-copy", Box::new(|| moves_with_pre_copy(&a, &b))),
        ("state moves back, without pre-copy", Box::new(|| moves_without_pre_copy(&b, &a))),
        ("pre-copy can be given up and begun anew", Box::new(|| pre_copy_can_be_given_up(&a))),
        ("calls that don't fit the state are refused", Box::new(|| calls_out_of_state(&a))),
        ("the kernel goes every way that core knows and no other", Box::new(|| every_way(&a, &whole))),
        ("a reset by somebody else ends the session and is noticed", Box::new(|| reset_cuts_a_session(&a))),
        ("only the descriptor of a device is one, and a group is open once", Box::new(|| opening(&a, uuid))),
        ("a PCI function without migration is refused", Box::new(|| without_migration(address))),
        (
            "a state that lacks bytes is refused at every length",
            Box::new(|| (0..STATE).for_each(|n| refuse(&b, &whole[..n], Errno::INVAL, false))),
        ),
        (
            "a header with any bit flipped is refused",
            Box::new(|| {
                for bit in 0..HEADER * 8 {
                    let mut state = whole.clone();
                    state[bit / 8] ^= 1 << (bit % 8);
                    refuse(&b, &state, Errno::FAULT, true);
                }
            }),
        ),
        (
            "a state that is too long is refused",
            Box::new(|| refuse(&b, &[whole.as_slice(), &[0]].concat(), Errno::NOMEM, true)),
        ),
        (
            "the state of another model is refused",
            Box::new(|| {
                assert_eq!(foreign.len(), HEADER + PORT);
                refuse(&b, &foreign, Errno::FAULT, true);
            }),
        ),
    ];

    println!("1..{}", tests.len());
    let mut failed = false;
    for (n, (name, test)) in tests.iter().enumerate() {
        let ok = catch_unwind(AssertUnwindSafe(test)).is_ok();
        failed |= !ok;
        println!("{}ok {} - {name}", if ok { "" } else { "not " }, n + 1);
    }
    ExitCode::from(u8::from(failed))
}
