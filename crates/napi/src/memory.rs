//! Guest memory as an object of JavaScript: the mapped regions and the log of pages that were marked.

use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use napi::Env;
use napi::bindgen_prelude::{BigInt, Object, Uint8Array};
use napi_derive::napi;
use towline_core::channel::DirtySource;
use towline_core::dirty::MarkLog;
use towline_core::memory::GuestMemory as _;
use towline_linux::memory::{MapError, MappedMemory, RegionOptions};
use towline_linux::write_watch::WriteWatch;

use crate::channel::{NativeDirtySource, Range};
use crate::fault::Fault;
use crate::numbers::u64_of;
use crate::promise::run;

/// One copy out of guest memory is at most this long.
const MOST_COPY_BYTES: u32 = 64 << 20;

impl From<MapError> for Fault {
    fn from(e: MapError) -> Self {
        let errno = std::error::Error::source(&e)
            .and_then(|s| s.downcast_ref::<std::io::Error>())
            .and_then(std::io::Error::raw_os_error);
        let code = if errno.is_some() { "ERR_TOWLINE_SYSTEM" } else { "ERR_TOWLINE_INVALID_ARGUMENT" };
        let message = match &e {
            MapError::Shrinkable => format!(
                "{e}: seal it with F_SEAL_SHRINK, or give shrinkable: true where nobody who could shrink it is distrusted"
            ),
            _ => e.to_string(),
        };
        Self { errno, ..Self::new(code, message) }
    }
}

impl From<towline_core::memory::MemoryError> for Fault {
    fn from(e: towline_core::memory::MemoryError) -> Self {
        Self::new("ERR_TOWLINE_INVALID_ARGUMENT", e.to_string())
    }
}

/// What sessions, devices and tenants share of a guest's memory.
#[derive(Clone)]
pub struct MemoryParts {
    pub memory: Arc<MappedMemory>,
    pub marks: Arc<MarkLog>,
}

/// See `NativeGuestMemory` in `ts/native/binding.ts`.
#[napi]
pub struct GuestMemory {
    parts: Mutex<Option<MemoryParts>>,
    lent: AtomicBool,
}

impl GuestMemory {
    /// Memory whose regions somebody else adds and removes.
    pub fn of(memory: Arc<MappedMemory>) -> Self {
        let parts = MemoryParts { memory, marks: Arc::new(MarkLog::new()) };
        Self { parts: Mutex::new(Some(parts)), lent: AtomicBool::new(false) }
    }

    pub fn parts(&self) -> Result<MemoryParts, Fault> {
        self.parts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .ok_or_else(|| Fault::closed("the guest memory"))
    }
}

/// A range of guest memory and the descriptor behind it, which stays the memory's.
#[napi(object)]
pub struct RegionFile {
    pub gpa: BigInt,
    pub len: BigInt,
    pub fd: i32,
    pub fd_offset: BigInt,
}

/// Makes a memfd of `length_bytes`; the caller closes the descriptor.
#[napi]
pub fn memfd(name: String, length_bytes: BigInt) -> napi::Result<i32> {
    use std::os::fd::IntoRawFd;
    let length = u64_of("lengthBytes", &length_bytes)?;
    let fd = towline_linux::memory::memfd(&name, length).map_err(|e| Fault {
        errno: e.raw_os_error(),
        ..Fault::new("ERR_TOWLINE_SYSTEM", format!("memfd_create of {length} bytes: {e}"))
    })?;
    Ok(fd.into_raw_fd())
}

/// CLOCK_MONOTONIC in nanoseconds.
#[napi]
pub fn monotonic_ns() -> BigInt {
    BigInt::from(towline_linux::clock::monotonic_ns())
}

#[napi]
impl GuestMemory {
    #[napi(constructor)]
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let parts = MemoryParts { memory: Arc::new(MappedMemory::new()), marks: Arc::new(MarkLog::new()) };
        Self { parts: Mutex::new(Some(parts)), lent: AtomicBool::new(false) }
    }

    #[napi]
    pub fn add_region(
        &self,
        gpa: BigInt,
        fd: i32,
        fd_offset: BigInt,
        len: BigInt,
        shrinkable: Option<bool>,
    ) -> napi::Result<()> {
        if fd < 0 {
            return Err(Fault::argument(format!("{fd} is not a file descriptor")).into());
        }
        // SAFETY: the descriptor is only borrowed for this call, which duplicates it first; a number that is not open makes
        // that duplication fail with EBADF.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        let (gpa, offset, len) = (u64_of("gpa", &gpa)?, u64_of("fdOffset", &fd_offset)?, u64_of("len", &len)?);
        let options = RegionOptions { allow_shrinkable: shrinkable.unwrap_or(false), ..RegionOptions::default() };
        Ok(self.parts()?.memory.add_region_with(gpa, borrowed, offset, len, options).map_err(Fault::from)?)
    }

    #[napi]
    pub fn remove_region<'e>(&self, env: &'e Env, gpa: BigInt, len: BigInt) -> napi::Result<Object<'e>> {
        let parts = self.parts()?;
        let (gpa, len) = (u64_of("gpa", &gpa)?, u64_of("len", &len)?);
        run(env, "unmap", move || Ok(parts.memory.remove_region(gpa, len)?))
    }

    #[napi]
    pub fn ranges(&self) -> napi::Result<Vec<Range>> {
        Ok(self.parts()?.memory.ranges().into_iter().map(Range::of).collect())
    }

    #[napi]
    pub fn regions(&self) -> napi::Result<Vec<RegionFile>> {
        let mut regions = Vec::new();
        self.parts()?.memory.for_each_file(&mut |gpa, len, fd, offset| {
            regions.push(RegionFile {
                gpa: BigInt::from(gpa),
                len: BigInt::from(len),
                fd: fd.as_raw_fd(),
                fd_offset: BigInt::from(offset),
            });
        });
        Ok(regions)
    }

    #[napi]
    pub fn read(&self, gpa: BigInt, len: u32) -> napi::Result<Uint8Array> {
        if len > MOST_COPY_BYTES {
            return Err(Fault::argument(format!("len is {len}; one copy is at most {MOST_COPY_BYTES} bytes")).into());
        }
        let mut out = vec![0; len as usize];
        self.parts()?.memory.read(u64_of("gpa", &gpa)?, &mut out).map_err(Fault::from)?;
        Ok(Uint8Array::new(out))
    }

    #[napi]
    pub fn write(&self, gpa: BigInt, data: &[u8]) -> napi::Result<()> {
        let parts = self.parts()?;
        let gpa = u64_of("gpa", &gpa)?;
        parts.memory.write(gpa, data).map_err(Fault::from)?;
        parts.marks.mark(gpa, data.len() as u64);
        Ok(())
    }

    #[napi]
    pub fn mark_dirty(&self, gpa: BigInt, len: BigInt) -> napi::Result<()> {
        self.parts()?.marks.mark(u64_of("gpa", &gpa)?, u64_of("len", &len)?);
        Ok(())
    }

    #[napi]
    pub fn marked_source(&self) -> napi::Result<NativeDirtySource> {
        if self.lent.swap(true, Ordering::AcqRel) {
            return Err(
                Fault::new("ERR_TOWLINE_BUSY", "the marked pages of this memory have a dirty source already").into()
            );
        }
        let source: Box<dyn DirtySource> = Box::new(self.parts()?.marks.source());
        Ok(NativeDirtySource::new(source))
    }

    #[napi]
    pub fn watched_source(&self) -> napi::Result<NativeDirtySource> {
        let source = WriteWatch::of_memory(&self.parts()?.memory).map_err(Fault::from)?;
        Ok(NativeDirtySource::new(Box::new(source)))
    }

    #[napi]
    pub fn close(&self) {
        *self.parts.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
