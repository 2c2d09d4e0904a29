//! Dirty sources over memory of this process: a KVM virtual machine's, and mappings that are watched.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use napi::Env;
use napi::bindgen_prelude::{BigInt, Object};
use napi_derive::napi;
use towline_linux::TrackError;
use towline_linux::kvm::{KvmDirty, KvmHandle, KvmMode, KvmOptions, KvmSlot};
use towline_linux::write_watch::{WatchHandle, WatchedRange, WriteWatch};

use crate::channel::NativeDirtySource;
use crate::fault::Fault;
use crate::numbers::u64_of;
use crate::promise::run;

impl From<TrackError> for Fault {
    fn from(error: TrackError) -> Self {
        let code = match error {
            TrackError::Refused(error) => return error.into(),
            TrackError::Exists(_) => "ERR_TOWLINE_EXISTS",
            TrackError::NotFound(_) => "ERR_TOWLINE_NOT_FOUND",
            // The enum is non-exhaustive.
            _ => "ERR_TOWLINE_INVALID_ARGUMENT",
        };
        Self::new(code, error.to_string())
    }
}

fn descriptor(what: &str, fd: i32) -> Result<BorrowedFd<'static>, Fault> {
    if fd < 0 {
        return Err(Fault::argument(format!("{fd} is not a file descriptor of {what}")));
    }
    // SAFETY: only borrowed for the call, which duplicates it first; a number that is not open makes that fail with EBADF.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// See `KvmSlot` in `ts/dirty/kvm.ts`.
#[napi(object)]
pub struct NativeKvmSlot {
    pub slot: u32,
    pub gpa: BigInt,
    pub len: BigInt,
    pub userspace_addr: BigInt,
    pub flags: u32,
}

impl NativeKvmSlot {
    fn to_slot(&self) -> Result<KvmSlot, Fault> {
        Ok(KvmSlot {
            slot: self.slot,
            gpa: u64_of("gpa", &self.gpa)?,
            len: u64_of("len", &self.len)?,
            userspace_addr: u64_of("userspaceAddr", &self.userspace_addr)?,
            flags: self.flags,
        })
    }
}

#[napi(object)]
pub struct NativeKvmRing {
    pub vcpu_fds: Vec<i32>,
    pub entries: Option<u32>,
}

/// See `NativeKvmDirty` in `ts/native/dirty-binding.ts`.
#[napi(js_name = "KvmDirty")]
pub struct NativeKvmDirty {
    handle: Mutex<Option<KvmHandle>>,
    source: Mutex<Option<KvmDirty>>,
}

impl NativeKvmDirty {
    fn handle(&self) -> Result<KvmHandle, Fault> {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner).clone();
        handle.ok_or_else(|| Fault::closed("the dirty source"))
    }
}

#[napi]
impl NativeKvmDirty {
    #[napi(constructor)]
    pub fn new(
        vm_fd: i32,
        slots: Vec<NativeKvmSlot>,
        ring: Option<NativeKvmRing>,
        manual_protect: bool,
    ) -> napi::Result<Self> {
        let slots = slots.iter().map(NativeKvmSlot::to_slot).collect::<Result<Vec<_>, _>>()?;
        let vcpus = ring.iter().flat_map(|ring| &ring.vcpu_fds).map(|fd| descriptor("a vCPU", *fd));
        let vcpus = vcpus.collect::<Result<Vec<_>, _>>()?;
        let mode = match &ring {
            None => KvmMode::Log,
            Some(ring) => KvmMode::Ring { vcpus: &vcpus, entries: ring.entries },
        };
        let options = KvmOptions { slots: &slots, mode, manual_protect };
        // SAFETY: what a slot has to be is told in `ts/dirty/kvm.ts`, and the VMM is who knows it. What can be checked is checked there.
        let source = unsafe { KvmDirty::new(descriptor("the VM", vm_fd)?, options) }.map_err(Fault::from)?;
        Ok(Self { handle: Mutex::new(Some(source.handle())), source: Mutex::new(Some(source)) })
    }

    /// Once.
    #[napi]
    pub fn source(&self) -> napi::Result<NativeDirtySource> {
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(NativeDirtySource::new(Box::new(source.ok_or_else(|| Fault::closed("the dirty source"))?)))
    }

    #[napi]
    pub fn full_event_fd(&self) -> napi::Result<Option<i32>> {
        Ok(self.handle()?.full_event().map(|fd| fd.as_raw_fd()))
    }

    #[napi]
    pub fn add_slot<'e>(&self, env: &'e Env, slot: NativeKvmSlot) -> napi::Result<Object<'e>> {
        let (handle, slot) = (self.handle()?, slot.to_slot()?);
        run(env, "add-slot", move || Ok(handle.add_slot(slot)?))
    }

    #[napi]
    pub fn remove_slot<'e>(&self, env: &'e Env, slot: u32, quiesced: bool) -> napi::Result<Object<'e>> {
        let handle = self.handle()?;
        run(env, "remove-slot", move || Ok(handle.remove_slot(slot, quiesced)?))
    }

    #[napi]
    pub fn close(&self) {
        *self.handle.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.source.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// See `WatchedRange` in `ts/dirty/process.ts`.
#[napi(object)]
pub struct NativeWatchedRange {
    pub address: BigInt,
    pub len: BigInt,
    pub gpa: BigInt,
}

impl NativeWatchedRange {
    fn to_range(&self) -> Result<WatchedRange, Fault> {
        let address = u64_of("address", &self.address)?;
        Ok(WatchedRange { address, len: u64_of("len", &self.len)?, gpa: u64_of("gpa", &self.gpa)? })
    }
}

/// See `NativeProcessDirty` in `ts/native/dirty-binding.ts`.
#[napi(js_name = "ProcessDirty")]
pub struct NativeProcessDirty {
    handle: WatchHandle,
    source: Mutex<Option<WriteWatch>>,
}

#[napi]
impl NativeProcessDirty {
    #[napi(constructor)]
    pub fn new(ranges: Vec<NativeWatchedRange>) -> napi::Result<Self> {
        let ranges = ranges.iter().map(NativeWatchedRange::to_range).collect::<Result<Vec<_>, _>>()?;
        let source = WriteWatch::of_ranges(&ranges).map_err(Fault::from)?;
        Ok(Self { handle: source.handle(), source: Mutex::new(Some(source)) })
    }

    /// Once.
    #[napi]
    pub fn source(&self) -> napi::Result<NativeDirtySource> {
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(NativeDirtySource::new(Box::new(source.ok_or_else(|| Fault::closed("the dirty source"))?)))
    }

    #[napi]
    pub fn add_range<'e>(&self, env: &'e Env, range: NativeWatchedRange) -> napi::Result<Object<'e>> {
        let (handle, range) = (self.handle.clone(), range.to_range()?);
        run(env, "add-range", move || Ok(handle.add_range(range)?))
    }

    #[napi]
    pub fn remove_range<'e>(&self, env: &'e Env, range: NativeWatchedRange) -> napi::Result<Object<'e>> {
        let (handle, range) = (self.handle.clone(), range.to_range()?);
        run(env, "remove-range", move || Ok(handle.remove_range(&range)?))
    }
}
