//! Every arc, every reset.

use rustix::io::Errno;
use towline_core::channel::{ChannelErrorKind, StateChannel};
use towline_core::fsm::{DeviceState, opens_data_fd, path};

use super::mtty::{Mtty, STATE, drain, save, states};

pub fn out_of_state(a: &Mtty) {
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

/// Every way between two states, with the kernel against core's table. `check` sees the device after each change.
fn ways(a: &Mtty, check: &dyn Fn(DeviceState)) {
    let whole = a.whole([1, 2]);
    let mut count = 0;
    for from in states() {
        for to in states() {
            let mut channel = a.fresh([1, 2]);
            check(DeviceState::Running);
            channel.set_state(from).unwrap();
            check(from);
            if from == DeviceState::Resuming {
                channel.write(&whole).unwrap();
            }
            let way = path(channel.flags(), from, to);
            match channel.set_state(to) {
                Ok(()) => {
                    let way = way.expect("the kernel knows a way that core doesn't know");
                    assert_eq!(channel.state(), Ok(to), "{way}");
                    check(to);
                    let readable = matches!(to, DeviceState::PreCopy | DeviceState::PreCopyP2p | DeviceState::StopCopy);
                    assert_eq!(channel.read(&mut [0; 8]).is_ok(), readable, "{way}");
                    count += 1;
                }
                Err(error) => {
                    assert!(way.is_none(), "{from} to {to}: {error}");
                    check(from);
                }
            }
        }
    }
    assert_eq!(count, 47, "49 pairs, without the two from STOP_COPY back to pre-copy");
    assert!(opens_data_fd(DeviceState::Stop, DeviceState::StopCopy));
}

pub fn every_way(a: &Mtty) {
    ways(a, &|_| {});
}

/// The kernel's own word, by a file that has nothing to do with the descriptor.
pub fn by_debugfs(a: &Mtty) {
    ways(a, &|state| assert_eq!(a.debugfs_state().as_deref(), Some(state.to_string().as_str())));
}

pub fn reset_anywhere(a: &Mtty) {
    let whole = a.whole([3, 4]);
    for state in states() {
        for written in [0, 10, whole.len()] {
            let mut channel = a.fresh([5, 6]);
            channel.set_state(state).unwrap();
            if state == DeviceState::Resuming {
                channel.write(&whole[..written]).unwrap();
            }
            channel.reset().unwrap();
            assert_eq!(channel.state(), Ok(DeviceState::Running), "{state}");
            if let Some(told) = a.debugfs_state() {
                assert_eq!(told, "RUNNING");
            }
            assert_eq!(channel.read(&mut [0; 8]).unwrap_err().kind, ChannelErrorKind::State);
            assert_eq!(a.scratch(), [5, 6], "what was written before the reset is void, and mtty's registers stay");
            assert_eq!(save(&mut channel).len(), STATE);
        }
    }
}

pub fn reset_cuts(a: &Mtty) {
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
