//! What is no state of the device: refused by whichever call the driver refuses it in, with the errno that its source has.

use rustix::io::Errno;
use towline_core::channel::{ChannelErrorKind, StateChannel};
use towline_core::fsm::DeviceState;

use super::mtty::{HEADER, Mtty, PORT, STATE, save};

/// Writes `state` into a device that has to refuse it, by whichever call the kernel does it, and leaves it as it was.
fn refuse(device: &Mtty, state: &[u8], errno: Errno, on_write: bool) {
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
    if let Some(told) = device.debugfs_state() {
        assert_eq!(told, "RESUMING");
    }
    channel.reset().unwrap();
    assert_eq!(channel.state(), Ok(DeviceState::Running));
    assert_eq!(device.scratch(), scratch);
}

pub fn cut(a: &Mtty, b: &Mtty) {
    let whole = a.whole([0xAB, 0xCD]);
    (0..STATE).for_each(|n| refuse(b, &whole[..n], Errno::INVAL, false));
}

pub fn flipped(a: &Mtty, b: &Mtty) {
    let whole = a.whole([0xAB, 0xCD]);
    for bit in 0..HEADER * 8 {
        let mut state = whole.clone();
        state[bit / 8] ^= 1 << (bit % 8);
        refuse(b, &state, Errno::FAULT, true);
    }
}

pub fn too_long(a: &Mtty, b: &Mtty) {
    let whole = a.whole([0xAB, 0xCD]);
    refuse(b, &[whole.as_slice(), &[0]].concat(), Errno::NOMEM, true);
    refuse(b, &[whole.as_slice(), &[0; 5000]].concat(), Errno::NOMEM, true);
}

pub fn foreign(a: &Mtty, other: &Mtty) {
    let mut channel = other.channel();
    channel.reset().unwrap();
    let foreign = save(&mut channel);
    assert_eq!(foreign.len(), HEADER + PORT);
    assert_ne!(channel.format(), a.channel().format(), "the offer tells it before anything stops");
    refuse(a, &foreign, Errno::FAULT, true);
}
