//! NVMe admin commands through the kernel's driver: `NVME_IOCTL_ADMIN64_CMD` on `/dev/nvmeN` (`include/uapi/linux/nvme_ioctl.h`).

mod ioctl;
mod secondary;

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;
use towline_nvme::admin::{AdminTransport, Completion, Data, TransportError};
use towline_nvme::command::AdminCommand;
use towline_nvme::identify::{IDENTIFY_BYTES, IdentifyCommand, IdentifyController, cns};
use towline_nvme::status::Status;

use self::ioctl::PassthruCmd64;
pub use self::secondary::SecondaryReset;
use crate::errno::errno_text;
use crate::pci::PciAddress;
use crate::sysfs::{HostError, HostErrorKind as Kind, Meaning, Sysfs, entries, index_of, link_name, small};

/// The least time that a command is given. When it expires Linux resets the controller, and with it every secondary controller goes
/// offline (`nvme_timeout` in `drivers/nvme/host/pci.c`): a shorter time of a caller would only do harm.
pub const LEAST_TIMEOUT: Duration = Duration::from_secs(60);
/// The most that the kernel's driver transfers at once (`NVME_MAX_BYTES`).
const MOST_TRANSFER_BYTES: u32 = 8 << 20;
/// A page of the host memory, and with it the least that CAP.MPSMIN and so MDTS can mean.
const PAGE: u32 = 4096;
/// Segments of one request where nothing tells (`NVME_MAX_SEGS` of older kernels). Memory of a process is pages that lie anywhere.
const LEAST_SEGMENTS: u32 = 127;

/// Admin commands by the kernel's own driver of a controlling function. The function stays in that driver's hands; everything else
/// that uses it goes on.
#[derive(Debug)]
pub struct NvmePassthrough {
    device: File,
    path: PathBuf,
    max_transfer_bytes: u32,
}

impl NvmePassthrough {
    /// Opens `/dev/nvmeN` and asks for its limits.
    ///
    /// # Errors
    /// [`Kind::Permission`] without root, [`Kind::NotFound`], [`Kind::State`] where the controller is being reset or is dead, or as the
    /// kernel says.
    pub fn open(path: &Path, sysfs: &Sysfs) -> Result<Self, HostError> {
        let what = || format!("opening {}", path.display());
        let device = OpenOptions::new()
            .read(true)
            .custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed())
            .open(path)
            .map_err(|e| {
                let errno = Errno::from_io_error(&e).unwrap_or(Errno::IO);
                HostError::refused(what(), errno, open_means(errno))
            })?;
        let is_device = device.metadata().is_ok_and(|metadata| metadata.file_type().is_char_device());
        if !is_device {
            let no = HostError::argument(what(), "this is not a character device");
            return Err(no.mend("give the controller, /dev/nvme0, not one of its namespaces"));
        }
        let mut opened = Self { device, path: path.to_owned(), max_transfer_bytes: PAGE };
        let identify = IdentifyCommand { cns: cns::CONTROLLER, ..Default::default() }.encode();
        let mut bytes = Box::new([0; IDENTIFY_BYTES]);
        let completion = opened
            .submit(&identify, Data::ToHost(bytes.as_mut_slice()), LEAST_TIMEOUT)
            .map_err(|e| opened.identify_failed(&e))?;
        if !completion.status.is_success() {
            let meaning = format!("Identify Controller failed: {}", completion.status);
            return Err(HostError::new(Kind::Device, what(), meaning).mend("look at dmesg"));
        }
        let limit = path
            .file_name()
            .and_then(|name| name.to_str())
            .map_or(MOST_TRANSFER_BYTES, |name| queue_limit(sysfs, name));
        opened.max_transfer_bytes = IdentifyController::decode(&bytes).max_transfer_bytes(limit);
        Ok(opened)
    }

    fn identify_failed(&self, error: &TransportError) -> HostError {
        let what = format!("Identify Controller on {}", self.path.display());
        match error {
            TransportError::Io { errno, .. } => HostError::refused(what, Errno::from_raw_os_error(*errno), None),
            other => HostError::new(Kind::Device, what, other.to_string()),
        }
    }

    /// `NVME_IOCTL_RESET`: a controller reset by the driver. It takes every secondary controller offline, and is not the reset that
    /// lets an allocation of flexible resources come into effect: that is an FLR, [`crate::pci::PciControl::reset`].
    ///
    /// # Errors
    /// As the kernel says.
    pub fn reset(&self) -> Result<(), HostError> {
        let what = || format!("NVME_IOCTL_RESET on {}", self.path.display());
        ioctl::reset(self.device.as_fd()).map_err(|errno| HostError::refused(what(), errno, None))
    }

    /// The PCI function of a controller: `/dev/nvme0` → its address.
    #[must_use]
    pub fn pci_address(path: &Path, sysfs: &Sysfs) -> Option<PciAddress> {
        let name = path.file_name()?.to_str().filter(|name| index_of(name, "nvme").is_some())?;
        link_name(&sysfs.path("class/nvme").join(name).join("device"))?.parse().ok()
    }
}

/// The most bytes that the queues of the controller's block devices take in one request, where there are some: they have the limits
/// of the controller, which its own queue doesn't show.
fn queue_limit(sysfs: &Sysfs, controller: &str) -> u32 {
    let class = sysfs.path("class/nvme").join(controller);
    let mut limit = MOST_TRANSFER_BYTES;
    let mut segments = None;
    for namespace in entries(&class).iter().filter(|name| name.starts_with("nvme")) {
        let at = |name: &str| class.join(namespace).join("queue").join(name);
        if let Some(kib) = small::<u32>(&at("max_hw_sectors_kb")).filter(|kib| *kib > 0) {
            limit = limit.min(kib.saturating_mul(1024));
        }
        segments = segments.or(small::<u32>(&at("max_segments"))).filter(|n| *n > 1);
    }
    // A buffer that is not aligned to a page touches one page more.
    let by_segments = segments.unwrap_or(LEAST_SEGMENTS).saturating_sub(1).saturating_mul(PAGE);
    (limit.min(by_segments) / PAGE * PAGE).max(PAGE)
}

fn open_means(errno: Errno) -> Option<Meaning> {
    Some(match errno {
        Errno::ACCESS | Errno::PERM => Meaning(
            Kind::Permission,
            "not permitted",
            "admin commands need root: CAP_SYS_ADMIN, and read access to the device node",
        ),
        Errno::NOENT | Errno::NXIO | Errno::NODEV => Meaning(
            Kind::NotFound,
            "there is no such NVMe controller",
            "bind the function to the nvme driver; nvme list -v shows those that are",
        ),
        Errno::AGAIN => Meaning(
            Kind::State,
            "the controller is not live: it is being reset, or is dead",
            "see /sys/class/nvme/nvmeN/state; wait for the reset, or unbind and bind it",
        ),
        _ => return None,
    })
}

/// The direction that the opcode tells has to be that of the data: the kernel goes by the opcode alone.
fn fits(opcode: u8, data: &Data<'_>) -> bool {
    match data {
        Data::None => true,
        Data::FromHost(_) => opcode & 3 == 1,
        Data::ToHost(_) => opcode & 3 == 2,
    }
}

impl AdminTransport for NvmePassthrough {
    fn submit(&self, cmd: &AdminCommand, data: Data<'_>, timeout: Duration) -> Result<Completion, TransportError> {
        if !fits(cmd.opcode, &data) {
            let message = format!("the data goes against the direction of opcode {:#04x}", cmd.opcode);
            return Err(TransportError::Unsendable { message });
        }
        if data.len() > self.max_transfer_bytes as usize {
            let message = format!("{} bytes of data, one command carries {}", data.len(), self.max_transfer_bytes);
            return Err(TransportError::Unsendable { message });
        }
        let timeout = timeout.max(LEAST_TIMEOUT);
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let call = PassthruCmd64::new(cmd, timeout_ms);
        let started = Instant::now();
        match ioctl::admin64(self.device.as_fd(), call, data) {
            Ok((status, result)) => Ok(Completion { result, status: Status::from_field(status) }),
            Err(errno) => Err(self.failed(cmd.opcode, errno, timeout_ms, started.elapsed())),
        }
    }

    fn max_transfer_bytes(&self) -> u32 {
        self.max_transfer_bytes
    }
}

impl NvmePassthrough {
    /// What an errno of the ioctl means (`drivers/nvme/host/ioctl.c`).
    fn failed(&self, opcode: u8, errno: Errno, timeout_ms: u32, took: Duration) -> TransportError {
        let path = self.path.display();
        let name = errno_text(errno.raw_os_error());
        let io = |why: &str| TransportError::Io {
            errno: errno.raw_os_error(),
            message: format!("admin command {opcode:#04x} on {path}: {name}: {why}"),
        };
        match errno {
            // The request was cancelled: it ran out of time, or the controller was reset for another reason.
            Errno::INTR if took >= Duration::from_millis(timeout_ms.into()) => {
                TransportError::Timeout { opcode, timeout_ms: timeout_ms.into() }
            }
            Errno::INTR => TransportError::Gone {
                message: format!(
                    "admin command {opcode:#04x} on {path}: {name}: the kernel cancelled it, since it reset the controller"
                ),
            },
            Errno::NODEV | Errno::NXIO | Errno::SHUTDOWN => TransportError::Gone {
                message: format!(
                    "admin command {opcode:#04x} on {path}: {name}: the controller is dead or was removed"
                ),
            },
            Errno::ACCESS | Errno::PERM => {
                io("not permitted: admin commands other than some Identify need CAP_SYS_ADMIN; \
                 some features are the driver's own and may be set by nobody else")
            }
            Errno::INVAL => {
                io("the kernel does not accept the command: a transfer of this length, or a flag, is refused")
            }
            Errno::AGAIN => io("the controller is not ready; it may be being reset"),
            Errno::NOMEM => io("the kernel has no memory for it"),
            Errno::NOTTY => io("this is no NVMe controller, or the kernel is too old (5.5 has it)"),
            _ => io("the kernel could not send it; look at dmesg"),
        }
    }
}

#[cfg(test)]
mod tests;
