//! Interrupts to the client: one eventfd a vector.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, readlink};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use towline_nvme::model::InterruptSink;

/// How often it is looked whether a write to an eventfd waits.
const LOOK: Duration = Duration::from_millis(20);
/// How often a full eventfd is read in a row: its owner may fill it again at once.
const READS: usize = 64;

#[derive(Debug, Default)]
struct Vector {
    trigger: Option<Arc<OwnedFd>>,
    /// Raised while nothing was wired: delivered once something is, and shown in the pending bits.
    pending: bool,
}

#[derive(Debug, Default)]
struct Inner {
    vectors: Vec<Vector>,
    /// What is being written to now, by a number that is never used again.
    writes: BTreeMap<u64, Arc<OwnedFd>>,
    next_write: u64,
    /// The client is gone, or going.
    ended: bool,
}

/// The interrupt vectors of a function as its client has wired them. The table with addresses and masks belongs to the VMM: a raised
/// vector is one count of its eventfd.
///
/// The client shares the eventfd and its flags. It can make it blocking and full, and no write to it can be told not to wait: so writes are
/// done without a lock, and `watch` looks for those that wait, and reads the eventfd empty.
#[derive(Debug)]
pub struct Interrupts {
    inner: Mutex<Inner>,
    ended: Condvar,
    raised: AtomicU64,
}

impl Interrupts {
    /// `vectors` vectors, none of them wired.
    #[must_use]
    pub fn new(vectors: u16) -> Self {
        let vectors = std::iter::repeat_with(Vector::default).take(vectors.into()).collect();
        let inner = Inner { vectors, ..Inner::default() };
        Self { inner: Mutex::new(inner), ended: Condvar::new(), raised: AtomicU64::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many vectors there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.lock().vectors.len()).unwrap_or(u32::MAX)
    }

    /// How many have been raised so far.
    #[must_use]
    pub fn raised(&self) -> u64 {
        self.raised.load(Ordering::Relaxed)
    }

    /// Raises a vector. One that does not exist is ignored.
    pub fn raise(&self, vector: u16) {
        self.raised.fetch_add(1, Ordering::Relaxed);
        self.deliver(vector.into());
    }

    fn deliver(&self, number: usize) {
        let mut inner = self.lock();
        loop {
            let Inner { vectors, writes, next_write, .. } = &mut *inner;
            let Some(vector) = vectors.get_mut(number) else { return };
            vector.pending = true;
            let Some(trigger) = vector.trigger.clone() else { return };
            let write = *next_write;
            *next_write = next_write.wrapping_add(1);
            writes.insert(write, Arc::clone(&trigger));
            drop(inner);
            let done = signal(&trigger);
            inner = self.lock();
            inner.writes.remove(&write);
            let Some(vector) = inner.vectors.get_mut(number) else { return };
            // Where it was wired anew meanwhile, who reads the new eventfd has to hear of it; once too often does no harm.
            if vector.trigger.as_ref().is_none_or(|now| Arc::ptr_eq(now, &trigger)) {
                vector.pending = !done;
                return;
            }
        }
    }

    /// Wires vectors from `start` on: one eventfd each, `None` takes it away. What is pending is delivered. Vectors beyond the last are
    /// ignored: whoever calls has compared with [`Interrupts::count`].
    pub(crate) fn wire(&self, start: usize, triggers: impl Iterator<Item = Option<OwnedFd>>) {
        let mut waiting = Vec::new();
        let mut inner = self.lock();
        for ((number, vector), trigger) in inner.vectors.iter_mut().enumerate().skip(start).zip(triggers) {
            vector.trigger = trigger.map(Arc::new);
            if vector.pending && vector.trigger.is_some() {
                waiting.push(number);
            }
        }
        drop(inner);
        waiting.into_iter().for_each(|number| self.deliver(number));
    }

    /// The eventfd of each vector.
    pub(crate) fn share(&self) -> Vec<Option<Arc<OwnedFd>>> {
        self.lock().vectors.iter().map(|vector| vector.trigger.clone()).collect()
    }

    /// Takes eventfds over from another process; they were checked.
    pub(crate) fn adopt(&self, triggers: Vec<Option<Arc<OwnedFd>>>) {
        self.lock().vectors.iter_mut().zip(triggers).for_each(|(vector, trigger)| vector.trigger = trigger);
    }

    /// Takes every eventfd away.
    pub(crate) fn unwire(&self) {
        self.lock().vectors.iter_mut().for_each(|vector| vector.trigger = None);
    }

    /// Looks for writes that wait, and ends them, until [`Interrupts::end`]. A thread of its own does this as long as anybody may raise, or
    /// wait for one who does.
    pub(crate) fn watch(&self) {
        let mut inner = self.lock();
        let mut before = 0;
        while !inner.ended {
            // One that was there at the last look already.
            let long: Vec<_> = inner.writes.range(..before).map(|(_, fd)| Arc::clone(fd)).collect();
            before = inner.next_write;
            if !long.is_empty() {
                drop(inner);
                long.iter().for_each(|fd| make_room(fd));
                inner = self.lock();
            }
            inner = self.ended.wait_timeout(inner, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Before [`Interrupts::watch`], also once more after [`Interrupts::end`].
    pub(crate) fn begin(&self) {
        self.lock().ended = false;
    }

    /// Ends [`Interrupts::watch`].
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.ended.notify_all();
    }

    /// Forgets what is pending, as a function level reset does.
    pub fn clear_pending(&self) {
        self.lock().vectors.iter_mut().for_each(|vector| vector.pending = false);
    }

    /// Which vectors have an eventfd now, as [`Interrupts::pending_bits`] has it.
    #[must_use]
    pub fn wired_bits(&self) -> Vec<u8> {
        self.bits(|vector| vector.trigger.is_some())
    }

    /// The pending bit array of MSI-X: bit `n % 8` of byte `n / 8` is vector `n`.
    #[must_use]
    pub fn pending_bits(&self) -> Vec<u8> {
        self.bits(|vector| vector.pending)
    }

    fn bits(&self, which: impl Fn(&Vector) -> bool) -> Vec<u8> {
        let inner = self.lock();
        let byte = |chunk: &[Vector]| (0u8..).zip(chunk).fold(0, |byte, (bit, v)| byte | u8::from(which(v)) << bit);
        inner.vectors.chunks(8).map(byte).collect()
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

/// Empties an eventfd that is full, so that who writes to it goes on. Its count says nothing any more: it is as good as signalled.
fn make_room(trigger: &OwnedFd) {
    for _ in 0..READS {
        let mut fds = [PollFd::new(trigger, PollFlags::OUT)];
        if !matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0)) {
            return;
        }
        if let Ok(flags) = fcntl_getfl(trigger) {
            let _ = fcntl_setfl(trigger, flags | OFlags::NONBLOCK);
        }
        // Never waits, whatever its owner makes of the flags: it may be empty by now. The offset is that of a file without one.
        let mut raw = [0; 8];
        let _ = preadv2(trigger, &mut [IoSliceMut::new(&mut raw)], u64::MAX, ReadWriteFlags::NOWAIT);
    }
}

/// Checks that a descriptor is an eventfd, and makes writes to it not wait, as long as its owner leaves it so.
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

    /// The owner of an eventfd makes it blocking and full.
    #[test]
    fn a_write_that_waits_is_ended() {
        let fd = eventfd(0, EventfdFlags::empty()).unwrap();
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let interrupts = Interrupts::new(1);
        interrupts.wire(0, [Some(fd.try_clone().unwrap())].into_iter());
        let raised = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                interrupts.raise(0);
                raised.store(true, Ordering::SeqCst);
                interrupts.end();
            });
            std::thread::sleep(Duration::from_millis(200));
            assert!(!raised.load(Ordering::SeqCst), "without the watch it waits");
            assert_eq!(interrupts.pending_bits(), [1], "and nobody waits for it");
            interrupts.unwire();
            interrupts.watch();
        });
        assert_eq!(count(&fd), 1, "signalled");
        // What is empty is not waited for either.
        make_room(&fd);
    }

    #[test]
    fn nothing_but_an_eventfd_is_taken() {
        let (reader, writer) = std::io::pipe().unwrap();
        assert_eq!(check_eventfd(&OwnedFd::from(reader)), Err(Errno::INVAL));
        assert_eq!(check_eventfd(&OwnedFd::from(writer)), Err(Errno::INVAL));
        assert_eq!(check_eventfd(&std::fs::File::open("/dev/null").unwrap().into()), Err(Errno::INVAL));
    }
}
