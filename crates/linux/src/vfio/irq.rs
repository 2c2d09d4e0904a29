//! Interrupts of a device, by eventfds.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io::Errno;
use towline_core::channel::{ChannelError, ChannelErrorKind};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_MASKABLE, VFIO_IRQ_INFO_NORESIZE, VFIO_IRQ_SET_ACTION_MASK,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK,
};

use super::device::VfioDevice;
use super::error::told;
use super::ioctl::{self, IrqData, IrqRefusal};

/// The most vectors of one call.
const CHUNK: usize = 256;
/// The most vectors that MSI-X has.
const MOST_VECTORS: u32 = 2048;

/// One index of interrupts as `VFIO_DEVICE_GET_IRQ_INFO` describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqInfo {
    /// Its number: 0 INTx, 1 MSI, 2 MSI-X, 3 errors, 4 requests, for PCI.
    pub index: u32,
    /// How many vectors it has; 0 where the device doesn't have it.
    pub count: u32,
    /// `VFIO_IRQ_INFO_*`.
    pub flags: u32,
}

impl IrqInfo {
    /// Whether its vectors can be wired to eventfds.
    #[must_use]
    pub fn takes_eventfds(&self) -> bool {
        self.flags & VFIO_IRQ_INFO_EVENTFD != 0
    }

    /// Whether its vectors can be masked.
    #[must_use]
    pub fn is_maskable(&self) -> bool {
        self.flags & VFIO_IRQ_INFO_MASKABLE != 0
    }

    /// Whether how many vectors there are is settled by the first call that wires any.
    #[must_use]
    pub fn is_fixed_once_wired(&self) -> bool {
        self.flags & VFIO_IRQ_INFO_NORESIZE != 0
    }

    fn check(&self, name: &str, start: u32, count: usize) -> Result<(), ChannelError> {
        let end = u32::try_from(count).ok().and_then(|count| start.checked_add(count));
        if end.is_some_and(|end| end <= self.count && end <= MOST_VECTORS) {
            return Ok(());
        }
        let message =
            format!("{name}: {count} vectors from {start} on of index {}, which has {}", self.index, self.count);
        Err(ChannelError::new(ChannelErrorKind::Limit, message))
    }
}

/// Calls `set` for `fds` in parts, the last one first: the first call settles how many vectors an index has where that is fixed, and
/// it has to be all of them.
fn in_chunks<E>(start: u32, fds: &[i32], mut set: impl FnMut(u32, &[i32]) -> Result<(), E>) -> Result<(), E> {
    let chunks: Vec<_> = fds.chunks(CHUNK).enumerate().collect();
    for (n, chunk) in chunks.into_iter().rev() {
        set(start.saturating_add((n * CHUNK) as u32), chunk)?;
    }
    Ok(())
}

impl VfioDevice {
    /// Index `index` of its interrupts.
    ///
    /// # Errors
    /// What the kernel said, `EINVAL` for an index that no such device has.
    pub fn irq_info(&self, index: u32) -> Result<IrqInfo, ChannelError> {
        let info = ioctl::irq_info(self.as_fd(), index)
            .map_err(|errno| told(&format!("{}: VFIO_DEVICE_GET_IRQ_INFO {index}", self.name()), errno, ""))?;
        Ok(IrqInfo { index: info.index, count: info.count, flags: info.flags })
    }

    /// Wires eventfds to the vectors from `start` on; `None` leaves a vector without one. The kernel keeps the eventfds. Wiring
    /// any vector of MSI or MSI-X enables that.
    ///
    /// # Errors
    /// [`ChannelErrorKind::Limit`] for vectors that there aren't; what the kernel said: `EINVAL` where another of INTx, MSI and MSI-X is
    /// enabled, `ENOSPC` where the host has too few, with their number in the message. Then the whole index is disabled.
    pub fn wire_irqs(&self, index: u32, start: u32, eventfds: &[Option<BorrowedFd<'_>>]) -> Result<(), ChannelError> {
        let info = self.irq_info(index)?;
        info.check(self.name(), start, eventfds.len())?;
        if eventfds.is_empty() {
            return Ok(());
        }
        let fds: Vec<i32> = eventfds.iter().map(|fd| fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)).collect();
        let wired = in_chunks(start, &fds, |start, chunk| {
            ioctl::set_irqs(self.as_fd(), index, start, VFIO_IRQ_SET_ACTION_TRIGGER, IrqData::Eventfds(chunk))
        });
        wired.map_err(|refusal| {
            // Half of them is worse than none.
            let _ = self.disable_irqs(index);
            let meaning = match refusal.errno {
                Errno::INVAL => "another kind of interrupts is enabled, or more vectors than it was enabled with",
                Errno::NOSPC => "the host has no more vectors",
                Errno::BADF => "one of the descriptors is no eventfd",
                _ => "",
            };
            self.irq_failed("wire", index, refusal, meaning)
        })
    }

    /// Disables the whole index: what it had as vectors and eventfds is given back. Does nothing where it is disabled.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn disable_irqs(&self, index: u32) -> Result<(), ChannelError> {
        let none = IrqData::None { count: 0 };
        match ioctl::set_irqs(self.as_fd(), index, 0, VFIO_IRQ_SET_ACTION_TRIGGER, none) {
            // It was not enabled.
            Ok(()) | Err(IrqRefusal { errno: Errno::INVAL, .. }) => Ok(()),
            Err(refusal) => Err(self.irq_failed("disable", index, refusal, "")),
        }
    }

    /// Lets the kernel raise vectors as the device would: those from `start` on for which `which` says so.
    ///
    /// # Errors
    /// [`ChannelErrorKind::Limit`] for vectors that there aren't; what the kernel said, `EINVAL` while the index is disabled.
    pub fn raise_irqs(&self, index: u32, start: u32, which: &[bool]) -> Result<(), ChannelError> {
        self.irq_info(index)?.check(self.name(), start, which.len())?;
        let which: Vec<u8> = which.iter().map(|raise| u8::from(*raise)).collect();
        ioctl::set_irqs(self.as_fd(), index, start, VFIO_IRQ_SET_ACTION_TRIGGER, IrqData::Bool(&which))
            .map_err(|refusal| self.irq_failed("raise", index, refusal, "is it enabled?"))
    }

    /// Masks or unmasks `count` vectors from `start` on. INTx is masked whenever it has fired, and has to be unmasked after the device
    /// was served.
    ///
    /// # Errors
    /// [`ChannelErrorKind::Limit`] for vectors that there aren't; what the kernel said, `ENOTTY` for MSI and MSI-X, which the kernel doesn't mask.
    pub fn mask_irqs(&self, index: u32, start: u32, count: u32, mask: bool) -> Result<(), ChannelError> {
        self.irq_info(index)?.check(self.name(), start, count as usize)?;
        let action = if mask { VFIO_IRQ_SET_ACTION_MASK } else { VFIO_IRQ_SET_ACTION_UNMASK };
        ioctl::set_irqs(self.as_fd(), index, start, action, IrqData::None { count })
            .map_err(|refusal| self.irq_failed(if mask { "mask" } else { "unmask" }, index, refusal, ""))
    }

    /// Lets an eventfd unmask INTx: the other half of a level-triggered interrupt in a guest. `None` ends that.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn unmask_irq_by(&self, index: u32, eventfd: Option<BorrowedFd<'_>>) -> Result<(), ChannelError> {
        let fd = eventfd.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        ioctl::set_irqs(self.as_fd(), index, 0, VFIO_IRQ_SET_ACTION_UNMASK, IrqData::Eventfds(&[fd]))
            .map_err(|refusal| self.irq_failed("unmask by eventfd", index, refusal, ""))
    }

    fn irq_failed(&self, what: &str, index: u32, refusal: IrqRefusal, meaning: &str) -> ChannelError {
        refused(&format!("{}: VFIO_DEVICE_SET_IRQS: {what} index {index}", self.name()), refusal, meaning)
    }
}

fn refused(what: &str, refusal: IrqRefusal, meaning: &str) -> ChannelError {
    match refusal.could {
        Some(could) => told(what, refusal.errno, &format!("the host has no more than {could} vectors")),
        None => told(what, refusal.errno, meaning),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_begin_with_the_last_and_cover_all_once() {
        for (count, start) in [(1, 0), (256, 3), (257, 0), (2048, 0), (700, 5)] {
            let fds: Vec<i32> = (0..count).collect();
            let mut seen = vec![];
            let mut calls = vec![];
            in_chunks(start, &fds, |at, chunk| {
                assert!(chunk.len() <= CHUNK);
                calls.push(at + chunk.len() as u32);
                seen.extend(chunk.iter().enumerate().map(|(n, fd)| (at - start + n as u32, *fd)));
                Ok::<(), ()>(())
            })
            .unwrap();
            assert_eq!(calls.first(), Some(&(start + count as u32)), "the first call has the last vector");
            seen.sort_unstable();
            assert_eq!(seen, (0..count).map(|n| (n as u32, n)).collect::<Vec<_>>());
        }
        let mut calls = 0;
        let failed = in_chunks(0, &[-1; 600], |_, _| {
            calls += 1;
            if calls == 2 { Err(7) } else { Ok(()) }
        });
        assert_eq!((failed, calls), (Err(7), 2));
    }

    #[test]
    fn vectors_are_kept_inside() {
        let info = IrqInfo { index: 2, count: 20, flags: VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE };
        assert!(info.takes_eventfds() && info.is_fixed_once_wired() && !info.is_maskable());
        assert!(info.check("x", 0, 20).is_ok() && info.check("x", 20, 0).is_ok());
        for (start, count) in [(0, 21), (20, 1), (u32::MAX, 1), (0, usize::MAX)] {
            assert_eq!(info.check("x", start, count).unwrap_err().kind, ChannelErrorKind::Limit);
        }
        let liar = IrqInfo { count: u32::MAX, ..info };
        assert!(liar.check("x", 0, 1 << 20).is_err());
    }
    #[test]
    fn too_few_vectors_are_told_with_their_number() {
        let error = refused("x", IrqRefusal { errno: Errno::NOSPC, could: Some(3) }, "");
        assert_eq!((error.kind, error.errno), (ChannelErrorKind::Limit, Some(Errno::NOSPC.raw_os_error())));
        assert!(error.message.contains("ENOSPC") && error.message.ends_with("no more than 3 vectors"), "{error}");
        assert!(refused("x", Errno::INVAL.into(), "why").message.ends_with(": why"));
    }
}
