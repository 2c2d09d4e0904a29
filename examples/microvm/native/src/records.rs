//! The log that a witness reads: records of the guest, with what only the process knows that it runs in.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::layout::{RECORD_BYTES, RECORDS_MAX};
use crate::ram::Ram;

/// Kinds that the VMM makes; the others are the guest's.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Kind {
    Started = 5,
    Stopped = 6,
    Drained = 7,
}

/// `PIPE_BUF` of Linux.
const PIPE_BUF: usize = 4096;
/// How often a write that waits looks whether it still has to.
const LOOK_MS: i32 = 20;

const HOST_TAG: usize = 1;
const EPOCH: usize = 4;
const TIME: usize = 40;
const NEXT_SEQ: usize = 48;
const IN_FLIGHT: usize = 56;

/// See the module. Threads of several vCPUs write to it.
pub struct RecordLog {
    file: Option<Mutex<File>>,
    host_tag: u8,
    epoch: AtomicU32,
    written: AtomicU64,
    /// Nobody waits for a reader any more.
    closing: AtomicBool,
}

/// `CLOCK_MONOTONIC` in nanoseconds.
fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec of this frame.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn put<const N: usize>(record: &mut [u8; RECORD_BYTES], at: usize, value: [u8; N]) {
    if let Some(to) = record.get_mut(at..at + N) {
        to.copy_from_slice(&value);
    }
}

impl RecordLog {
    /// `fd` is duplicated.
    pub fn new(fd: Option<RawFd>, host_tag: u8) -> Result<Self> {
        let file = match fd {
            None => None,
            Some(fd) if fd < 0 => return Err(Error::Argument("logFd is negative".into())),
            Some(fd) => {
                // SAFETY: open during the call that it was given to; it is duplicated here.
                let fd = unsafe { BorrowedFd::borrow_raw(fd) };
                let file = File::from(fd.try_clone_to_owned().map_err(Error::system("dup of the log's descriptor"))?);
                Some(Mutex::new(file))
            }
        };
        Ok(Self {
            file,
            host_tag,
            epoch: AtomicU32::new(0),
            written: AtomicU64::new(0),
            closing: AtomicBool::new(false),
        })
    }

    pub fn set_epoch(&self, epoch: u32) {
        self.epoch.store(epoch, Ordering::SeqCst);
    }

    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Takes `count` records from guest memory.
    pub fn take(&self, ram: &Ram, gpa: u64, count: u32) -> Result<()> {
        if count > RECORDS_MAX {
            return Err(Error::Argument(format!("the guest has {count} records at once")));
        }
        let mut bytes = vec![0; count as usize * RECORD_BYTES];
        if !ram.read(gpa, &mut bytes) {
            return Err(Error::Argument("the guest's records are not in RAM".into()));
        }
        self.write(&mut bytes)
    }

    /// Writes one of the VMM's own.
    pub fn say(&self, kind: Kind, next_seq: u64, in_flight: u64) -> Result<()> {
        let mut record = [0; RECORD_BYTES];
        put(&mut record, 0, [kind as u8]);
        put(&mut record, NEXT_SEQ, next_seq.to_le_bytes());
        put(&mut record, IN_FLIGHT, in_flight.to_le_bytes());
        self.write(&mut record)
    }

    fn write(&self, bytes: &mut [u8]) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that the times of one log never go back.
        let time = now_ns();
        let (records, _) = bytes.as_chunks_mut::<RECORD_BYTES>();
        for record in records.iter_mut() {
            put(record, HOST_TAG, [self.host_tag]);
            put(record, EPOCH, self.epoch.load(Ordering::SeqCst).to_le_bytes());
            put(record, TIME, time.to_le_bytes());
        }
        self.written.fetch_add(records.len() as u64, Ordering::Relaxed);
        self.write_all(&mut file, bytes).map_err(Error::system("writing the log"))
    }

    /// Has a write that waits for its reader fail, and those to come.
    pub fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    /// Waits for room first, so that whoever closes is noticed; no record is dropped before that.
    fn write_all(&self, file: &mut File, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
            // SAFETY: one pollfd of this frame.
            if unsafe { libc::poll(&raw mut poll, 1, LOOK_MS) } <= 0 {
                if self.closing.load(Ordering::SeqCst) {
                    return Err(ErrorKind::TimedOut.into());
                }
                continue;
            }
            // A pipe that has room takes so much without waiting.
            let piece = bytes.get(..PIPE_BUF.min(bytes.len())).unwrap_or_default();
            match file.write(piece) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
