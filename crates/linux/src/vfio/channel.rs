//! The state channel of a VFIO device.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use towline_core::channel::{ChannelError, ChannelErrorKind, Pending, ReadOutcome, StateChannel};
use towline_core::fsm::{DeviceState, MigrationFlags, Path, opens_data_fd, path};
use vfio_bindings::bindings::vfio::VFIO_PRECOPY_INFO_REINIT;

use super::device::VfioDevice;
use super::error::{failed, failed_as, in_state, refused};
use super::port::Port;
use super::reset::reset_with_retries;

/// Carries the state of a VFIO device through `VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE` and its data_fd.
///
/// The kernel walks combined arcs itself. After a change that failed the state is asked from the device, as the kernel may
/// have stopped at any step of the way.
pub struct VfioChannel {
    port: Box<dyn Port>,
    name: String,
    flags: MigrationFlags,
    /// As last told by the device or set successfully.
    state: DeviceState,
    /// The session of the state, open in `PRE_COPY*`, `STOP_COPY` and `RESUMING`.
    data_fd: Option<OwnedFd>,
    /// A write failed. Drivers go on from wherever they were then, and several don't notice what is missing.
    is_void: bool,
    format: Option<String>,
    /// The kernel has `PRECOPY_INFO` version 2: flags mean something.
    has_precopy_v2: bool,
    /// How often the device announced new initial data in this pre-copy.
    reinits: u32,
}

impl fmt::Debug for VfioChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioChannel")
            .field("name", &self.name)
            .field("flags", &self.flags)
            .field("state", &self.state)
            .field("data_fd", &self.data_fd)
            .finish_non_exhaustive()
    }
}

/// Whether the data_fd that is open at the beginning of a way still belongs to the session at its end.
fn keeps_data_fd(way: &Path) -> bool {
    use DeviceState::{PreCopy, PreCopyP2p, StopCopy};
    way.arcs()
        .all(|arc| matches!(arc, (PreCopy, PreCopyP2p) | (PreCopyP2p, PreCopy) | (PreCopy | PreCopyP2p, StopCopy)))
}

impl VfioChannel {
    /// Opens the channel of a device, in whatever state that is.
    ///
    /// # Errors
    /// [`ChannelErrorKind::Unsupported`] for a device that doesn't migrate, otherwise what the kernel said.
    pub fn open(device: &Arc<VfioDevice>) -> Result<Self, ChannelError> {
        let channel = Self::over(Box::new(Arc::clone(device)), device.name(), true)?;
        Ok(Self { format: device.format().map(str::to_owned), ..channel })
    }

    /// As [`VfioChannel::open`], without asking for version 2 of `VFIO_MIG_GET_PRECOPY_INFO`: for a descriptor whose other users
    /// (a VMM) don't expect it, as it changes what all of them are told.
    ///
    /// # Errors
    /// As for [`VfioChannel::open`].
    pub fn open_v1(device: &Arc<VfioDevice>) -> Result<Self, ChannelError> {
        let channel = Self::over(Box::new(Arc::clone(device)), device.name(), false)?;
        Ok(Self { format: device.format().map(str::to_owned), ..channel })
    }

    /// How often the device announced, in this pre-copy, that it has new initial data (`VFIO_PRECOPY_INFO_REINIT`): both
    /// estimates of [`Pending`] began anew then. Always 0 where the kernel has no version 2 of `VFIO_MIG_GET_PRECOPY_INFO`.
    #[must_use]
    pub fn precopy_reinits(&self) -> u32 {
        self.reinits
    }

    /// Whether the kernel has version 2 of `VFIO_MIG_GET_PRECOPY_INFO` for it.
    #[must_use]
    pub fn has_precopy_info_v2(&self) -> bool {
        self.has_precopy_v2
    }

    pub(super) fn over(port: Box<dyn Port>, name: &str, wants_v2: bool) -> Result<Self, ChannelError> {
        let flags = port.flags().map_err(|errno| failed(&format!("{name}: VFIO_DEVICE_FEATURE_MIGRATION"), errno))?;
        let flags = MigrationFlags(flags);
        if !flags.can_migrate() {
            let message = format!("{name} has no STOP_COPY: its state can't be read");
            return Err(ChannelError::new(ChannelErrorKind::Unsupported, message));
        }
        let state = DeviceState::Error;
        // Without it the flags of its answers are whatever was in memory. It lasts until the device's last descriptor is closed.
        let has_precopy_v2 = wants_v2
            && flags.has_pre_copy()
            && match port.precopy_info_v2() {
                Ok(()) => true,
                // EINVAL of a kernel that doesn't know the feature for this device.
                Err(Errno::NOTTY | Errno::INVAL | Errno::OPNOTSUPP) => false,
                Err(errno) => {
                    return Err(failed(&format!("{name}: VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2"), errno));
                }
            };
        let name = name.to_owned();
        let (data_fd, format) = (None, None);
        let mut channel =
            Self { port, name, flags, state, data_fd, is_void: false, format, has_precopy_v2, reinits: 0 };
        channel.state = channel.ask()?;
        Ok(channel)
    }

    /// The state by the device.
    fn ask(&self) -> Result<DeviceState, ChannelError> {
        let what = || format!("{}: read the migration state", self.name);
        let number = self.port.state().map_err(|errno| failed(&what(), errno))?;
        DeviceState::try_from(number)
            .map_err(|unknown| ChannelError::new(ChannelErrorKind::Device, format!("{}: {unknown}", what())))
    }

    /// Takes over the state that the device told. A data_fd that doesn't belong to it any more is closed.
    fn settle(&mut self, real: DeviceState) {
        if !path(self.flags, self.state, real).is_some_and(|way| keeps_data_fd(&way)) {
            self.data_fd = None;
            self.is_void = false;
        }
        self.state = real;
    }

    fn wrong_state(&self, what: &str) -> ChannelError {
        let message = format!("{} is in {}: {what}", self.name, self.state);
        in_state(ChannelError::new(ChannelErrorKind::State, message), self.state)
    }

    /// An error of a change from `from` to `to`, told after the device was asked where it stands.
    fn change_failed(&mut self, from: DeviceState, to: DeviceState, errno: Errno) -> ChannelError {
        let what = format!("{}: from {from} to {to}", self.name);
        let real = self.ask();
        // Out of RESUMING the driver judges what was written; it stays there where it refuses.
        let error = match (from, &real) {
            (DeviceState::Resuming, Ok(DeviceState::Resuming)) => refused(&what, errno),
            (_, Ok(DeviceState::Error)) => failed_as(ChannelErrorKind::Device, &what, errno),
            _ => failed(&what, errno),
        };
        match real {
            Ok(real) => {
                self.settle(real);
                in_state(error, real)
            }
            Err(_) => ChannelError { kind: ChannelErrorKind::Gone, ..error },
        }
    }

    /// The data_fd, if the state is one of `states`.
    fn session(&self, states: &[DeviceState], what: &str) -> Result<&OwnedFd, ChannelError> {
        if !states.contains(&self.state) {
            return Err(self.wrong_state(what));
        }
        self.data_fd.as_ref().ok_or_else(|| self.wrong_state("its data_fd belongs to somebody else"))
    }
}

/// Where state is read.
const READABLE: &[DeviceState] = &[DeviceState::PreCopy, DeviceState::PreCopyP2p, DeviceState::StopCopy];

impl StateChannel for VfioChannel {
    fn flags(&self) -> MigrationFlags {
        self.flags
    }

    fn format(&self) -> Option<String> {
        self.format.clone()
    }

    /// Which damage its driver finds is the driver's affair: `mlx5` and `virtio` take a state that was cut.
    fn verifies(&self) -> bool {
        false
    }

    fn state(&mut self) -> Result<DeviceState, ChannelError> {
        let real = self.ask()?;
        self.settle(real);
        Ok(real)
    }

    fn set_state(&mut self, to: DeviceState) -> Result<(), ChannelError> {
        // Others have the device open too (a VMM resets it), and which descriptor to expect depends on where it is.
        let from = self.state()?;
        let Some(way) = path(self.flags, from, to) else {
            return Err(self.wrong_state(&format!("there is no way to {to}")));
        };
        if from == DeviceState::Resuming && to != from && self.is_void {
            let message = format!("{}: what was written is void, it needs a reset", self.name);
            return Err(in_state(ChannelError::new(ChannelErrorKind::BadState, message), from));
        }
        let opened = match self.port.set_state(to.into()) {
            Ok(opened) => opened,
            Err(errno) => return Err(self.change_failed(from, to, errno)),
        };
        let is_due = way.arcs().last().is_some_and(|(a, b)| opens_data_fd(a, b));
        let has_come = opened.is_some();
        self.state = to;
        if has_come || !keeps_data_fd(&way) {
            self.data_fd = opened;
            self.is_void = false;
            self.reinits = 0;
        }
        if has_come != is_due {
            let message = format!(
                "{}: the way {way} {} a data_fd",
                self.name,
                if is_due { "did not open" } else { "should not have opened" }
            );
            return Err(in_state(ChannelError::new(ChannelErrorKind::Device, message), to));
        }
        Ok(())
    }

    fn read(&mut self, out: &mut [u8]) -> Result<ReadOutcome, ChannelError> {
        let data_fd = self.session(READABLE, "device state is read in PRE_COPY, PRE_COPY_P2P and STOP_COPY")?;
        if out.is_empty() {
            // It would give 0 and be taken for the end.
            return Err(ChannelError::new(ChannelErrorKind::Limit, "a read of device state into 0 bytes"));
        }
        let is_stopped = self.state == DeviceState::StopCopy;
        loop {
            return match rustix::io::read(data_fd, &mut *out) {
                Ok(0) if is_stopped => Ok(ReadOutcome::End),
                Ok(0) => Ok(ReadOutcome::EmptyForNow),
                Ok(n) => Ok(ReadOutcome::Bytes(n)),
                Err(Errno::NOMSG | Errno::AGAIN) if !is_stopped => Ok(ReadOutcome::EmptyForNow),
                Err(Errno::INTR) => continue,
                Err(errno) => Err(in_state(failed(&format!("{}: read device state", self.name), errno), self.state)),
            };
        }
    }

    fn write(&mut self, data: &[u8]) -> Result<(), ChannelError> {
        let data_fd = self.session(&[DeviceState::Resuming], "device state is written in RESUMING")?;
        let what = || format!("{}: write device state", self.name);
        if self.is_void {
            let message = format!("{} after a write that failed: it needs a reset", what());
            return Err(in_state(ChannelError::new(ChannelErrorKind::BadState, message), self.state));
        }
        let mut left = data;
        let error = loop {
            if left.is_empty() {
                return Ok(());
            }
            match rustix::io::write(data_fd, left) {
                Ok(0) => break ChannelError::new(ChannelErrorKind::Device, format!("{}: it takes nothing", what())),
                Ok(n) => match left.get(n..) {
                    Some(rest) => left = rest,
                    None => {
                        let message = format!("{}: it says that it took {n} of {} bytes", what(), left.len());
                        break ChannelError::new(ChannelErrorKind::Device, message);
                    }
                },
                Err(Errno::INTR) => {}
                Err(errno) => break refused(&what(), errno),
            }
        };
        self.is_void = true;
        Err(in_state(error, self.state))
    }

    fn pending(&mut self) -> Result<Pending, ChannelError> {
        let mut pending = Pending::default();
        if matches!(self.state, DeviceState::PreCopy | DeviceState::PreCopyP2p)
            && let Some(data_fd) = &self.data_fd
        {
            let info = self.port.precopy_info(data_fd.as_fd()).map_err(|errno| {
                let what = format!("{}: VFIO_MIG_GET_PRECOPY_INFO", self.name);
                // Also what the kernel says where somebody else has ended pre-copy.
                let is_state = errno == Errno::INVAL;
                if is_state { failed_as(ChannelErrorKind::State, &what, errno) } else { failed(&what, errno) }
            })?;
            (pending.initial_bytes, pending.dirty_bytes) = (info.initial_bytes, info.dirty_bytes);
            if self.has_precopy_v2 && info.flags & VFIO_PRECOPY_INFO_REINIT != 0 {
                self.reinits = self.reinits.saturating_add(1);
            }
        }
        pending.stop_copy_bytes = match self.port.data_size() {
            // Several drivers say 0 where they can't tell.
            Ok(bytes) => (bytes > 0).then_some(bytes),
            // Older kernels, and drivers without it.
            Err(Errno::NOTTY) => None,
            Err(errno) => return Err(failed(&format!("{}: VFIO_DEVICE_FEATURE_MIG_DATA_SIZE", self.name), errno)),
        };
        Ok(pending)
    }

    fn reset(&mut self) -> Result<(), ChannelError> {
        let what = || format!("{}: VFIO_DEVICE_RESET", self.name);
        reset_with_retries(|| self.port.reset()).map_err(|errno| failed(&what(), errno))?;
        // A reset cuts it off from the device.
        self.data_fd = None;
        self.is_void = false;
        self.state = DeviceState::Error;
        self.state = self.ask()?;
        if self.state != DeviceState::Running {
            let message = format!("{}: it is in {} afterwards", what(), self.state);
            return Err(in_state(ChannelError::new(ChannelErrorKind::Device, message), self.state));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
