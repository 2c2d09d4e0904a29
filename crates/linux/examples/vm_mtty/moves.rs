//! State goes from one device to another, and the guest sees it there.

use towline_core::channel::{ChannelErrorKind, ReadOutcome, StateChannel};
use towline_core::fsm::DeviceState;
use towline_linux::vfio::VfioChannel;

use super::mtty::{HEADER, Mtty, PORT, STATE, Way, drain, save};

pub fn with_pre_copy(a: &Mtty, b: &Mtty) {
    let (mut from, mut to) = (a.fresh([0xA5, 0x5A]), b.fresh([0x00, 0xFF]));
    let (from, to): (&mut dyn StateChannel, &mut dyn StateChannel) = (&mut from, &mut to);
    assert_eq!(from.flags().0, 7);
    assert_eq!(from.format(), to.format());
    assert!(!from.verifies());
    assert_ne!(a.scratch(), b.scratch());

    from.set_state(DeviceState::PreCopy).unwrap();
    let (mut state, outcome) = drain(from, 10);
    assert_eq!((state.len(), outcome), (HEADER, ReadOutcome::EmptyForNow));
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

pub fn without_pre_copy(a: &Mtty, b: &Mtty) {
    let state = a.whole([0x01, 0x02]);
    assert_eq!(state.len(), STATE);
    let mut to = b.fresh([0x03, 0x04]);
    to.set_state(DeviceState::Resuming).unwrap();
    to.write(&state).unwrap();
    assert_eq!(b.scratch(), [0x03, 0x04], "only leaving RESUMING loads it");
    to.set_state(DeviceState::Running).unwrap();
    assert_eq!(b.scratch(), [0x01, 0x02]);
}

pub fn given_up(a: &Mtty) {
    let mut channel = a.fresh([7, 8]);
    for _ in 0..3 {
        channel.set_state(DeviceState::PreCopy).unwrap();
        assert_eq!(drain(&mut channel, 4096).0.len(), HEADER);
        channel.set_state(DeviceState::Running).unwrap();
    }
    assert_eq!(save(&mut channel).len(), STATE);
    assert_eq!(a.scratch(), [7, 8]);
}

/// Version 2 lasts until the device's last close, so each version has a device that was just opened.
pub fn precopy_info(uuid: &str, way: Way) {
    for version in [1, 2] {
        let a = Mtty::open(uuid, way);
        let channel = &mut if version == 1 { VfioChannel::open_v1(&a.device).unwrap() } else { a.channel() };
        assert_eq!(channel.has_precopy_info_v2(), version == 2, "version {version} on this kernel's mtty");
        channel.reset().unwrap();
        assert_eq!(channel.pending().unwrap().initial_bytes, 0, "RUNNING has no pre-copy to ask about");
        for state in [DeviceState::PreCopy, DeviceState::PreCopyP2p] {
            channel.set_state(state).unwrap();
            let before = channel.pending().unwrap();
            assert_eq!(before.dirty_bytes, 0);
            if state == DeviceState::PreCopy {
                assert_eq!(before.initial_bytes, HEADER as u64);
                let mut some = [0; 10];
                assert_eq!(channel.read(&mut some), Ok(ReadOutcome::Bytes(10)));
                assert_eq!(channel.pending().unwrap().initial_bytes, HEADER as u64 - 10);
                assert_eq!(drain(channel, 64).0.len(), HEADER - 10);
            }
            assert_eq!(channel.pending().unwrap().initial_bytes, 0);
        }
        assert_eq!(channel.precopy_reinits(), 0);
        // Pre-copy that somebody else ended: the kernel says EINVAL, or that the descriptor is dead.
        channel.set_state(DeviceState::StopCopy).unwrap();
        assert_eq!(channel.pending().unwrap().initial_bytes, 0);
        channel.reset().unwrap();
        channel.set_state(DeviceState::PreCopy).unwrap();
        a.device.reset().unwrap();
        let error = channel.pending().unwrap_err();
        assert!(matches!(error.kind, ChannelErrorKind::State | ChannelErrorKind::Gone), "{error}");
        assert_eq!(channel.state(), Ok(DeviceState::Running));
        assert_eq!(channel.pending().unwrap().initial_bytes, 0);
    }
}

/// The driver's estimate is the size of its whole state, whatever it is asked in.
pub fn data_size(a: &Mtty, b: &Mtty) {
    let whole = b.whole([0, 0]);
    let mut channel = a.fresh([0, 0]);
    for state in super::mtty::states() {
        channel.set_state(state).unwrap();
        assert_eq!(channel.pending().unwrap().stop_copy_bytes, Some(STATE as u64), "{state}");
        if state == DeviceState::Resuming {
            channel.write(&whole).unwrap();
        }
        channel.set_state(DeviceState::Running).unwrap();
    }
}
