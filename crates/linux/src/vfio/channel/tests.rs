//! The channel over a port with the kernel's rules that fails on demand: what a sample driver can't be made to do.

use std::os::fd::BorrowedFd;
use std::sync::Mutex;

use towline_core::fsm::driver_arcs;

use super::*;
use crate::vfio::port::PrecopyInfo;

/// The device behind a port, as the kernel sees it.
struct Kernel {
    flags: u64,
    state: u32,
    /// Fails the n-th arc from now on with this errno; the arcs before it are done.
    fail_arc: Option<(usize, Errno)>,
    /// What a failure leaves the device in, in place of where it was.
    fails_into: Option<DeviceState>,
    /// The other end of the open session.
    peer: Option<OwnedFd>,
    forget_fd: bool,
    surplus_fd: bool,
    reset: Vec<Result<(), Errno>>,
    data_size: Result<u64, Errno>,
    precopy_info: Result<PrecopyInfo, Errno>,
    precopy_info_v2: Result<(), Errno>,
    gone: bool,
    opened: usize,
}

#[derive(Clone)]
struct Fake(Arc<Mutex<Kernel>>);

fn fake(flags: u64) -> Fake {
    Fake(Arc::new(Mutex::new(Kernel {
        flags,
        state: DeviceState::Running.into(),
        fail_arc: None,
        fails_into: None,
        peer: None,
        forget_fd: false,
        surplus_fd: false,
        reset: vec![],
        data_size: Ok(77),
        precopy_info: Ok(PrecopyInfo { flags: u32::MAX, initial_bytes: 5, dirty_bytes: 6 }),
        precopy_info_v2: Err(Errno::NOTTY),
        gone: false,
        opened: 0,
    })))
}

impl Fake {
    fn channel(&self) -> VfioChannel {
        VfioChannel::over(Box::new(self.clone()), "fake", true).unwrap()
    }

    fn with<T>(&self, change: impl FnOnce(&mut Kernel) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }

    /// Writes into the session as the driver does, or reads what was written.
    fn peer(&self) -> OwnedFd {
        self.with(|k| k.peer.as_ref().unwrap().try_clone().unwrap())
    }
}

impl Kernel {
    /// A pair of sockets: one end is the data_fd.
    fn open_session(&mut self) -> OwnedFd {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        self.peer = Some(b.into());
        self.opened += 1;
        a.into()
    }
}

impl Port for Fake {
    fn flags(&self) -> Result<u64, Errno> {
        self.with(|k| if k.gone { Err(Errno::NODEV) } else { Ok(k.flags) })
    }

    fn state(&self) -> Result<u32, Errno> {
        self.with(|k| if k.gone { Err(Errno::NODEV) } else { Ok(k.state) })
    }

    fn set_state(&self, to: u32) -> Result<Option<OwnedFd>, Errno> {
        self.with(|k| {
            let from = DeviceState::try_from(k.state).unwrap();
            let to = DeviceState::try_from(to).unwrap();
            let way = path(MigrationFlags(k.flags), from, to).ok_or(Errno::INVAL)?;
            let mut opened = None;
            for (n, (a, b)) in way.arcs().enumerate() {
                if let Some((at, errno)) = k.fail_arc
                    && at == n
                {
                    if let Some(into) = k.fails_into {
                        k.state = into.into();
                    }
                    return Err(errno);
                }
                opened = opens_data_fd(a, b).then(|| k.open_session());
                k.state = b.into();
            }
            if k.surplus_fd {
                opened = Some(k.open_session());
            }
            Ok(if k.forget_fd { None } else { opened })
        })
    }

    fn data_size(&self) -> Result<u64, Errno> {
        self.with(|k| k.data_size)
    }

    fn precopy_info_v2(&self) -> Result<(), Errno> {
        self.with(|k| k.precopy_info_v2)
    }

    fn precopy_info(&self, _: BorrowedFd<'_>) -> Result<PrecopyInfo, Errno> {
        self.with(|k| k.precopy_info)
    }

    fn reset(&self) -> Result<(), Errno> {
        self.with(|k| {
            let result = if k.reset.is_empty() { Ok(()) } else { k.reset.remove(0) };
            if result.is_ok() {
                k.state = DeviceState::Running.into();
                k.peer = None;
            }
            result
        })
    }
}

const ALL: &[u64] = &[1, 3, 5, 7];

fn states(flags: u64) -> impl Iterator<Item = DeviceState> {
    DeviceState::ALL.into_iter().filter(move |s| s.is_supported(MigrationFlags(flags)))
}

#[test]
fn a_device_without_stop_copy_is_refused() {
    for flags in [0, 2, 4, 6] {
        let error = VfioChannel::over(Box::new(fake(flags)), "fake", true).unwrap_err();
        assert_eq!(error.kind, ChannelErrorKind::Unsupported);
    }
}

#[test]
fn every_arc_of_a_driver_opens_keeps_or_closes_the_session() {
    for &flags in ALL {
        for (from, to) in driver_arcs(MigrationFlags(flags)) {
            let fake = fake(flags);
            let mut channel = fake.channel();
            channel.set_state(from).unwrap();
            let opened = fake.with(|k| k.opened);
            channel.set_state(to).unwrap();
            let has_opened = fake.with(|k| k.opened) > opened;
            assert_eq!(has_opened, opens_data_fd(from, to), "{from} to {to}");
            let carries = READABLE.contains(&to) || to == DeviceState::Resuming;
            assert_eq!(channel.data_fd.is_some(), carries, "{from} to {to} with {flags}");
        }
    }
}

/// Fails every arc of every way, and finds the channel in the state that the device is really in.
#[test]
fn a_failure_on_any_arc_is_found_where_it_stopped() {
    let mut failures = 0;
    for &flags in ALL {
        for (from, to) in states(flags).flat_map(|from| states(flags).map(move |to| (from, to))) {
            let Some(way) = path(MigrationFlags(flags), from, to) else { continue };
            for (n, (stopped, _)) in way.arcs().enumerate() {
                let fake = fake(flags);
                let mut channel = fake.channel();
                channel.set_state(from).unwrap();
                let had = channel.data_fd.is_some();
                fake.with(|k| k.fail_arc = Some((n, Errno::IO)));
                let error = channel.set_state(to).unwrap_err();
                assert_eq!((error.kind, error.errno), (ChannelErrorKind::Device, Some(5)), "{way} at {n}");
                assert_eq!(error.state, Some(stopped), "{way} at {n}");
                assert_eq!(channel.state(), Ok(stopped));
                // The session lives only where the device never left it.
                let alive = had && (n == 0 || way.steps()[..n].iter().all(|s| READABLE.contains(s)));
                assert_eq!(channel.data_fd.is_some(), alive, "{way} at {n}");
                // And it can go on from there, or at least be reset.
                fake.with(|k| k.fail_arc = None);
                channel.reset().unwrap();
                assert_eq!(channel.state(), Ok(DeviceState::Running));
                assert!(channel.data_fd.is_none());
                failures += 1;
            }
        }
    }
    assert!(failures > 100, "{failures}");
}

#[test]
fn a_device_in_error_says_so_and_is_reset() {
    let fake = fake(7);
    let mut channel = fake.channel();
    fake.with(|k| (k.fail_arc, k.fails_into) = (Some((0, Errno::IO)), Some(DeviceState::Error)));
    let error = channel.set_state(DeviceState::StopCopy).unwrap_err();
    assert_eq!((error.kind, error.state), (ChannelErrorKind::Device, Some(DeviceState::Error)));
    assert_eq!(channel.state(), Ok(DeviceState::Error));
    assert_eq!(channel.set_state(DeviceState::Running).unwrap_err().kind, ChannelErrorKind::State);
    channel.reset().unwrap();
    assert_eq!(channel.state(), Ok(DeviceState::Running));
}

#[test]
fn refused_state_is_told_from_a_failing_device() {
    for (errno, kind) in [
        (Errno::INVAL, ChannelErrorKind::BadState),
        (Errno::IO, ChannelErrorKind::Device),
        (Errno::NODEV, ChannelErrorKind::Gone),
    ] {
        let fake = fake(1);
        let mut channel = fake.channel();
        channel.set_state(DeviceState::Resuming).unwrap();
        fake.with(|k| k.fail_arc = Some((0, errno)));
        let error = channel.set_state(DeviceState::Stop).unwrap_err();
        assert_eq!((error.kind, error.state), (kind, Some(DeviceState::Resuming)));
        // EINVAL out of another state is not about anything that was written.
        fake.with(|k| k.fail_arc = None);
        channel.reset().unwrap();
        fake.with(|k| k.fail_arc = Some((0, errno)));
        assert_ne!(channel.set_state(DeviceState::Stop).unwrap_err().kind, ChannelErrorKind::BadState);
    }
}

#[test]
fn a_kernel_that_breaks_its_promise_about_data_fds_is_noticed() {
    let fake = fake(7);
    let mut channel = fake.channel();
    fake.with(|k| k.forget_fd = true);
    let error = channel.set_state(DeviceState::PreCopy).unwrap_err();
    assert_eq!((error.kind, error.state), (ChannelErrorKind::Device, Some(DeviceState::PreCopy)));
    assert_eq!(channel.read(&mut [0; 4]).unwrap_err().kind, ChannelErrorKind::State);
    fake.with(|k| (k.forget_fd, k.surplus_fd) = (false, true));
    assert_eq!(channel.set_state(DeviceState::Running).unwrap_err().kind, ChannelErrorKind::Device);
}

#[test]
fn zero_bytes_end_only_what_is_stopped() {
    let fake = fake(5);
    let mut channel = fake.channel();
    let mut buf = [0; 16];
    channel.set_state(DeviceState::PreCopy).unwrap();
    assert_eq!(rustix::io::write(fake.peer(), b"abc"), Ok(3));
    assert_eq!(channel.read(&mut buf), Ok(ReadOutcome::Bytes(3)));
    rustix::net::shutdown(fake.peer(), rustix::net::Shutdown::Both).unwrap();
    assert_eq!(channel.read(&mut buf), Ok(ReadOutcome::EmptyForNow));
    channel.set_state(DeviceState::StopCopy).unwrap();
    assert_eq!(channel.read(&mut buf), Ok(ReadOutcome::End));
    assert_eq!(channel.read(&mut []).unwrap_err().kind, ChannelErrorKind::Limit);
}

#[test]
fn nothing_for_now_may_also_be_an_errno_but_not_once_stopped() {
    let fake = fake(5);
    let mut channel = fake.channel();
    channel.set_state(DeviceState::PreCopy).unwrap();
    // EAGAIN of a descriptor that somebody made non-blocking.
    rustix::io::ioctl_fionbio(channel.data_fd.as_ref().unwrap(), true).unwrap();
    assert_eq!(channel.read(&mut [0; 4]), Ok(ReadOutcome::EmptyForNow));
    channel.set_state(DeviceState::StopCopy).unwrap();
    let error = channel.read(&mut [0; 4]).unwrap_err();
    assert_eq!((error.kind, error.errno), (ChannelErrorKind::Device, Some(Errno::AGAIN.raw_os_error())));
}

#[test]
fn writes_are_whole_and_void_after_an_error() {
    let fake = fake(1);
    let mut channel = fake.channel();
    channel.set_state(DeviceState::Resuming).unwrap();
    // More than a socket takes at once.
    let data: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
    let peer = fake.peer();
    let reader = std::thread::spawn(move || {
        let (mut all, mut buf) = (vec![], vec![0; 65536]);
        while all.len() < 3_000_000 {
            let n = rustix::io::read(&peer, &mut buf).unwrap();
            all.extend_from_slice(&buf[..n]);
        }
        all
    });
    channel.write(&data).unwrap();
    assert!(reader.join().unwrap() == data);
    channel.write(&[]).unwrap();
    // A descriptor that nothing can be written to.
    channel.data_fd =
        Some(rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap());
    let error = channel.write(&[1]).unwrap_err();
    assert_eq!(error.errno, Some(Errno::BADF.raw_os_error()));
    for _ in 0..2 {
        assert_eq!(channel.write(&[1]).unwrap_err().kind, ChannelErrorKind::BadState);
        assert_eq!(channel.set_state(DeviceState::Running).unwrap_err().kind, ChannelErrorKind::BadState);
    }
    assert_eq!(channel.state(), Ok(DeviceState::Resuming), "it was not even asked");
    channel.reset().unwrap();
    channel.set_state(DeviceState::Resuming).unwrap();
    channel.write(&[1]).unwrap();
}

#[test]
fn estimates() {
    let fake = fake(7);
    let mut channel = fake.channel();
    assert_eq!(channel.pending(), Ok(Pending { stop_copy_bytes: Some(77), ..Pending::default() }));
    channel.set_state(DeviceState::PreCopy).unwrap();
    assert_eq!(channel.pending(), Ok(Pending { initial_bytes: 5, dirty_bytes: 6, stop_copy_bytes: Some(77) }));
    fake.with(|k| k.data_size = Err(Errno::NOTTY));
    assert_eq!(channel.pending().map(|p| p.stop_copy_bytes), Ok(None));
    fake.with(|k| k.data_size = Ok(0));
    assert_eq!(channel.pending().map(|p| p.stop_copy_bytes), Ok(None));
    fake.with(|k| k.data_size = Err(Errno::IO));
    assert_eq!(channel.pending().unwrap_err().errno, Some(5));
    fake.with(|k| (k.data_size, k.precopy_info) = (Ok(1), Err(Errno::INVAL)));
    assert_eq!(channel.pending().unwrap_err().kind, ChannelErrorKind::State);
}

#[test]
fn new_initial_data_is_noticed_only_where_flags_mean_something() {
    for (v2, seen) in [(Err(Errno::NOTTY), 0), (Err(Errno::INVAL), 0), (Ok(()), 2)] {
        let fake = fake(7);
        fake.with(|k| k.precopy_info_v2 = v2);
        let mut channel = fake.channel();
        assert_eq!(channel.has_precopy_info_v2(), v2.is_ok());
        channel.set_state(DeviceState::PreCopy).unwrap();
        channel.pending().unwrap();
        // The estimates that come with it are those that count.
        let again = PrecopyInfo { flags: VFIO_PRECOPY_INFO_REINIT, initial_bytes: 99, dirty_bytes: 0 };
        fake.with(|k| k.precopy_info = Ok(again));
        let pending = channel.pending().unwrap();
        assert_eq!((pending.initial_bytes, pending.dirty_bytes), (99, 0));
        fake.with(|k| k.precopy_info = Ok(PrecopyInfo { flags: 0, ..again }));
        channel.pending().unwrap();
        assert_eq!(channel.precopy_reinits(), seen);
        channel.set_state(DeviceState::Running).unwrap();
        channel.set_state(DeviceState::PreCopy).unwrap();
        assert_eq!(channel.precopy_reinits(), 0);
    }
    let fake = fake(1);
    fake.with(|k| k.precopy_info_v2 = Err(Errno::IO));
    assert!(!fake.channel().has_precopy_info_v2(), "it is not even asked without PRE_COPY");
    fake.with(|k| k.flags = 5);
    assert_eq!(VfioChannel::over(Box::new(fake.clone()), "fake", true).unwrap_err().errno, Some(5));
}

#[test]
fn a_reset_is_tried_again_where_a_lock_was_held() {
    let fake = fake(7);
    let mut channel = fake.channel();
    fake.with(|k| k.reset = vec![Err(Errno::AGAIN), Err(Errno::INTR), Err(Errno::AGAIN)]);
    channel.reset().unwrap();
    fake.with(|k| k.reset = vec![Err(Errno::INVAL)]);
    assert_eq!(channel.reset().unwrap_err().errno, Some(Errno::INVAL.raw_os_error()));
    fake.with(|k| k.reset = vec![Err(Errno::AGAIN); 1000]);
    assert_eq!(channel.reset().unwrap_err().errno, Some(Errno::AGAIN.raw_os_error()));
}

#[test]
fn what_somebody_else_did_is_noticed() {
    let fake = fake(7);
    let mut channel = fake.channel();
    channel.set_state(DeviceState::StopCopy).unwrap();
    fake.with(|k| k.state = DeviceState::Running.into());
    assert_eq!(channel.state(), Ok(DeviceState::Running));
    assert!(channel.data_fd.is_none());
    // From RUNNING, not from where it was left.
    channel.set_state(DeviceState::PreCopy).unwrap();
    fake.with(|k| k.gone = true);
    assert_eq!(channel.state().unwrap_err().kind, ChannelErrorKind::Gone);
    fake.with(|k| (k.gone, k.state) = (false, 99));
    assert_eq!(channel.state().unwrap_err().kind, ChannelErrorKind::Device);
}
