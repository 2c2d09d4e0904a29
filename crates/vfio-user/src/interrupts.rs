//! Interrupts to the client: one eventfd a vector.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, readlink};
use rustix::io::Errno;
use towline_nvme::model::InterruptSink;

#[derive(Debug, Default)]
struct Vector {
    trigger: Option<OwnedFd>,
    /// Raised while nothing was wired: delivered once something is, and shown in the pending bits.
    pending: bool,
}

/// The interrupt vectors of a function as its client has wired them. The table with addresses and masks belongs to the VMM: a raised
/// vector is one count of its eventfd.
#[derive(Debug)]
pub struct Interrupts {
    vectors: Mutex<Vec<Vector>>,
    raised: AtomicU64,
}

impl Interrupts {
    /// `vectors` vectors, none of them wired.
    #[must_use]
    pub fn new(vectors: u16) -> Self {
        let vectors = std::iter::repeat_with(Vector::default).take(vectors.into()).collect();
        Self { vectors: Mutex::new(vectors), raised: AtomicU64::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vector>> {
        self.vectors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many vectors there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.lock().len()).unwrap_or(u32::MAX)
    }

    /// How many have been raised so far.
    #[must_use]
    pub fn raised(&self) -> u64 {
        self.raised.load(Ordering::Relaxed)
    }

    /// Raises a vector. One that does not exist is ignored.
    pub fn raise(&self, vector: u16) {
        self.raised.fetch_add(1, Ordering::Relaxed);
        if let Some(vector) = self.lock().get_mut(usize::from(vector)) {
            vector.pending = !vector.trigger.as_ref().is_some_and(signal);
        }
    }

    /// Wires vectors from `start` on: one eventfd each, `None` takes it away. What is pending is delivered. Vectors beyond the last are
    /// ignored: whoever calls has compared with [`Interrupts::count`].
    pub(crate) fn wire(&self, start: usize, triggers: impl Iterator<Item = Option<OwnedFd>>) {
        for (vector, trigger) in self.lock().iter_mut().skip(start).zip(triggers) {
            vector.trigger = trigger;
            if vector.pending {
                vector.pending = !vector.trigger.as_ref().is_some_and(signal);
            }
        }
    }

    /// Takes every eventfd away.
    pub(crate) fn unwire(&self) {
        self.lock().iter_mut().for_each(|vector| vector.trigger = None);
    }

    /// Forgets what is pending, as a function level reset does.
    pub fn clear_pending(&self) {
        self.lock().iter_mut().for_each(|vector| vector.pending = false);
    }

    /// The pending bit array of MSI-X: bit `n % 8` of byte `n / 8` is vector `n`.
    #[must_use]
    pub fn pending_bits(&self) -> Vec<u8> {
        let vectors = self.lock();
        let byte = |chunk: &[Vector]| (0u8..).zip(chunk).fold(0, |byte, (bit, v)| byte | u8::from(v.pending) << bit);
        vectors.chunks(8).map(byte).collect()
    }
}

impl InterruptSink for Interrupts {
    fn raise(&self, vector: u16) {
        Self::raise(self, vector);
    }
}

/// Adds one to an eventfd. A counter that is full is as good as signalled.
fn signal(trigger: &OwnedFd) -> bool {
    matches!(rustix::io::write(trigger, &1u64.to_ne_bytes()), Ok(_) | Err(Errno::AGAIN))
}

/// Checks that a descriptor is an eventfd, and makes writes to it never wait: the controller's own thread writes to it.
///
/// # Errors
/// `EINVAL` for anything else.
pub(crate) fn check_eventfd(fd: &OwnedFd) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    let what = readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
    if what.as_bytes() != b"anon_inode:[eventfd]" {
        return Err(Errno::INVAL);
    }
    let flags = fcntl_getfl(fd.as_fd())?;
    if !flags.contains(OFlags::NONBLOCK) {
        fcntl_setfl(fd.as_fd(), flags | OFlags::NONBLOCK)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn count(fd: &OwnedFd) -> u64 {
        let mut raw = [0; 8];
        match rustix::io::read(fd, &mut raw) {
            Ok(_) => u64::from_ne_bytes(raw),
            Err(_) => 0,
        }
    }

    #[test]
    fn raises_into_eventfds_and_keeps_what_is_not_wired() {
        let interrupts = Interrupts::new(10);
        interrupts.raise(9);
        interrupts.raise(200);
        assert_eq!(interrupts.pending_bits(), [0, 2]);
        let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        interrupts.wire(9, [Some(fd.try_clone().unwrap()), None].into_iter());
        assert_eq!(count(&fd), 1, "what was pending");
        assert_eq!(interrupts.pending_bits(), [0, 0]);
        interrupts.raise(9);
        interrupts.raise(9);
        assert_eq!(count(&fd), 2);
        interrupts.unwire();
        interrupts.raise(9);
        assert_eq!((count(&fd), interrupts.pending_bits()), (0, vec![0, 2]));
        interrupts.clear_pending();
        assert_eq!(interrupts.pending_bits(), [0, 0]);
        assert_eq!(interrupts.raised(), 5);
    }

    #[test]
    fn a_full_counter_does_not_wait() {
        let fd = eventfd(0, EventfdFlags::empty()).unwrap();
        check_eventfd(&fd).unwrap();
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let interrupts = Interrupts::new(1);
        interrupts.wire(0, [Some(fd)].into_iter());
        interrupts.raise(0);
        assert_eq!(interrupts.pending_bits(), [0]);
    }

    #[test]
    fn nothing_but_an_eventfd_is_taken() {
        let (reader, writer) = std::io::pipe().unwrap();
        assert_eq!(check_eventfd(&OwnedFd::from(reader)), Err(Errno::INVAL));
        assert_eq!(check_eventfd(&OwnedFd::from(writer)), Err(Errno::INVAL));
        assert_eq!(check_eventfd(&std::fs::File::open("/dev/null").unwrap().into()), Err(Errno::INVAL));
    }
}
