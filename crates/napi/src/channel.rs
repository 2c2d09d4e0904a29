//! State channels and dirty sources as objects of JavaScript. A session borrows them, and JavaScript may use them itself
//! before and after, which is how the conformance kit exercises a native implementation.

use std::sync::{Arc, Mutex, PoisonError};

use napi::Env;
use napi::bindgen_prelude::{BigInt, Object, Uint8Array};
use napi_derive::napi;
use towline_core::channel::{
    ChannelError, ChannelErrorKind, DirtySink, DirtySource, Pending, ReadOutcome, StateChannel,
};
use towline_core::fsm::{DeviceState, MigrationFlags};
use towline_core::memory::MemoryRange;

use crate::fault::Fault;
use crate::numbers::u64_of;
use crate::promise::run;

/// The kernel's numbers of device states.
pub fn device_state(number: u32) -> Option<DeviceState> {
    Some(match number {
        0 => DeviceState::Error,
        1 => DeviceState::Stop,
        2 => DeviceState::Running,
        3 => DeviceState::StopCopy,
        4 => DeviceState::Resuming,
        5 => DeviceState::RunningP2p,
        6 => DeviceState::PreCopy,
        7 => DeviceState::PreCopyP2p,
        _ => return None,
    })
}

/// One read returns at most this, whatever is asked: it is a copy.
const MOST_READ_BYTES: u32 = 16 << 20;

/// Something that JavaScript and a session share, used by one thread at a time.
pub struct Slot<T: ?Sized>(Arc<Mutex<Option<Box<T>>>>);

impl<T: ?Sized> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: ?Sized> Slot<T> {
    pub fn new(inner: Box<T>) -> Self {
        Self(Arc::new(Mutex::new(Some(inner))))
    }

    pub fn with<R>(&self, what: &str, f: impl FnOnce(&mut T) -> Result<R, Fault>) -> Result<R, Fault> {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        f(guard.as_mut().ok_or_else(|| Fault::closed(what))?)
    }

    pub fn close(&self) {
        // A call that is under way on another thread keeps the lock; closing must not wait for a device.
        if let Ok(mut guard) = self.0.try_lock() {
            *guard = None;
        }
    }
}

#[napi(object)]
pub struct ReadResult {
    pub kind: String,
    pub bytes: Option<Uint8Array>,
}

#[napi(object)]
pub struct PendingResult {
    pub initial_bytes: BigInt,
    pub dirty_bytes: BigInt,
    pub stop_copy_bytes: Option<BigInt>,
}

#[napi(object)]
pub struct Range {
    pub gpa: BigInt,
    pub len: BigInt,
}

impl Range {
    pub fn of(range: MemoryRange) -> Self {
        Self { gpa: BigInt::from(range.gpa), len: BigInt::from(range.len) }
    }

    pub fn to_core(&self) -> Result<MemoryRange, Fault> {
        Ok(MemoryRange { gpa: u64_of("gpa", &self.gpa)?, len: u64_of("len", &self.len)? })
    }
}

/// See `NativeStateChannel` in `ts/native/binding.ts`.
#[napi]
pub struct NativeStateChannel {
    slot: Slot<dyn StateChannel>,
    fixed: Fixed,
}

/// What never changes of a channel.
#[derive(Clone, Default)]
struct Fixed {
    flags: u64,
    format: Option<String>,
    verifies: bool,
}

const CHANNEL: &str = "the state channel";

impl NativeStateChannel {
    pub fn new(inner: Box<dyn StateChannel>) -> Self {
        let fixed = Fixed { flags: inner.flags().0, format: inner.format(), verifies: inner.verifies() };
        Self { slot: Slot::new(inner), fixed }
    }

    /// For a session: the same channel, which stays usable here afterwards.
    pub fn lend(&self) -> Box<dyn StateChannel> {
        Box::new(Lent { slot: self.slot.clone(), fixed: self.fixed.clone() })
    }
}

#[napi]
impl NativeStateChannel {
    #[napi]
    pub fn flags(&self) -> u32 {
        (self.fixed.flags & 7) as u32
    }

    #[napi]
    pub fn format(&self) -> Option<String> {
        self.fixed.format.clone()
    }

    #[napi]
    pub fn verifies(&self) -> bool {
        self.fixed.verifies
    }

    #[napi]
    pub fn state<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        let slot = self.slot.clone();
        run(env, "state", move || slot.with(CHANNEL, |c| Ok(c.state()? as u32)))
    }

    #[napi]
    pub fn set_state<'e>(&self, env: &'e Env, to: u32) -> napi::Result<Object<'e>> {
        let slot = self.slot.clone();
        let to = device_state(to).ok_or_else(|| Fault::argument(format!("{to} is not a device state (0 to 7)")))?;
        run(env, "set-state", move || slot.with(CHANNEL, |c| Ok(c.set_state(to)?)))
    }

    #[napi]
    pub fn read<'e>(&self, env: &'e Env, max_bytes: u32) -> napi::Result<Object<'e>> {
        let slot = self.slot.clone();
        run(env, "read", move || {
            slot.with(CHANNEL, |c| {
                let mut buffer = vec![0; max_bytes.clamp(1, MOST_READ_BYTES) as usize];
                Ok(match c.read(&mut buffer)? {
                    ReadOutcome::Bytes(n) => {
                        buffer.truncate(n);
                        ReadResult { kind: "bytes".into(), bytes: Some(Uint8Array::new(buffer)) }
                    }
                    ReadOutcome::EmptyForNow => ReadResult { kind: "empty-for-now".into(), bytes: None },
                    ReadOutcome::End => ReadResult { kind: "end".into(), bytes: None },
                })
            })
        })
    }

    #[napi]
    pub fn write<'e>(&self, env: &'e Env, data: Uint8Array) -> napi::Result<Object<'e>> {
        let slot = self.slot.clone();
        let data = data.to_vec();
        run(env, "write", move || slot.with(CHANNEL, |c| Ok(c.write(&data)?)))
    }

    #[napi]
    pub fn pending<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        let slot = self.slot.clone();
        run(env, "pending", move || {
            slot.with(CHANNEL, |c| {
                let p = c.pending()?;
                Ok(PendingResult {
                    initial_bytes: BigInt::from(p.initial_bytes),
                    dirty_bytes: BigInt::from(p.dirty_bytes),
                    stop_copy_bytes: p.stop_copy_bytes.map(BigInt::from),
                })
            })
        })
    }

    #[napi]
    pub fn reset<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        let slot = self.slot.clone();
        run(env, "reset", move || slot.with(CHANNEL, |c| Ok(c.reset()?)))
    }

    #[napi]
    pub fn close(&self) {
        self.slot.close();
    }
}

/// See `NativeDirtySource` in `ts/native/binding.ts`.
#[napi]
pub struct NativeDirtySource {
    slot: Slot<dyn DirtySource>,
}

const SOURCE: &str = "the dirty source";

impl NativeDirtySource {
    pub fn new(inner: Box<dyn DirtySource>) -> Self {
        Self { slot: Slot::new(inner) }
    }

    /// For a session: the same source, which stays usable here afterwards.
    pub fn lend(&self) -> Box<dyn DirtySource> {
        Box::new(Lent { slot: self.slot.clone(), fixed: Fixed::default() })
    }
}

struct Lent<T: ?Sized> {
    slot: Slot<T>,
    fixed: Fixed,
}

impl<T: ?Sized> Lent<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> Result<R, ChannelError>) -> Result<R, ChannelError> {
        let mut guard = self.slot.0.lock().unwrap_or_else(PoisonError::into_inner);
        match guard.as_mut() {
            Some(inner) => f(inner),
            None => Err(ChannelError::new(ChannelErrorKind::Gone, "it was closed while a session used it")),
        }
    }
}

impl StateChannel for Lent<dyn StateChannel> {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags(self.fixed.flags)
    }
    fn format(&self) -> Option<String> {
        self.fixed.format.clone()
    }
    fn verifies(&self) -> bool {
        self.fixed.verifies
    }
    fn state(&mut self) -> Result<DeviceState, ChannelError> {
        self.with(|c| c.state())
    }
    fn set_state(&mut self, to: DeviceState) -> Result<(), ChannelError> {
        self.with(|c| c.set_state(to))
    }
    fn read(&mut self, out: &mut [u8]) -> Result<ReadOutcome, ChannelError> {
        self.with(|c| c.read(out))
    }
    fn write(&mut self, data: &[u8]) -> Result<(), ChannelError> {
        self.with(|c| c.write(data))
    }
    fn pending(&mut self) -> Result<Pending, ChannelError> {
        self.with(|c| c.pending())
    }
    fn reset(&mut self) -> Result<(), ChannelError> {
        self.with(|c| c.reset())
    }
}

impl DirtySource for Lent<dyn DirtySource> {
    fn start(&mut self, ranges: &[MemoryRange], page_size_bytes: u64) -> Result<u64, ChannelError> {
        self.with(|s| s.start(ranges, page_size_bytes))
    }
    fn harvest(&mut self, sink: &mut dyn DirtySink) -> Result<(), ChannelError> {
        self.with(|s| s.harvest(sink))
    }
    fn stop(&mut self) -> Result<(), ChannelError> {
        self.with(|s| s.stop())
    }
}

/// Collects runs for JavaScript; a bitmap becomes runs, and what follows each other one run.
#[derive(Default)]
struct Runs(Vec<MemoryRange>);

impl DirtySink for Runs {
    fn mark(&mut self, gpa: u64, len: u64) {
        match self.0.last_mut() {
            Some(last) if last.end() == Some(gpa) && gpa.checked_add(len).is_some() => last.len += len,
            _ => self.0.push(MemoryRange { gpa, len }),
        }
    }

    fn merge_bitmap(&mut self, base: u64, page_size_bytes: u64, bitmap: &[u8]) {
        for (i, byte) in bitmap.iter().enumerate().filter(|(_, b)| **b != 0) {
            for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                let page = (i as u64).checked_mul(8).and_then(|p| p.checked_add(bit));
                if let Some(gpa) = page.and_then(|p| p.checked_mul(page_size_bytes)).and_then(|o| base.checked_add(o)) {
                    self.mark(gpa, page_size_bytes);
                }
            }
        }
    }
}

#[napi]
impl NativeDirtySource {
    #[napi]
    pub fn start<'e>(&self, env: &'e Env, ranges: Vec<Range>, page_size_bytes: u32) -> napi::Result<Object<'e>> {
        let slot = self.slot.clone();
        let ranges = ranges.iter().map(Range::to_core).collect::<Result<Vec<_>, _>>()?;
        run(env, "dirty-start", move || {
            slot.with(SOURCE, |s| {
                let granularity = s.start(&ranges, u64::from(page_size_bytes))?;
                u32::try_from(granularity).map_err(|_| Fault::new("ERR_TOWLINE_LIMIT", "the granularity exceeds 2 GiB"))
            })
        })
    }

    #[napi]
    pub fn harvest<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        let slot = self.slot.clone();
        run(env, "dirty-harvest", move || {
            slot.with(SOURCE, |s| {
                let mut runs = Runs::default();
                s.harvest(&mut runs)?;
                Ok(runs.0.into_iter().map(Range::of).collect::<Vec<_>>())
            })
        })
    }

    #[napi]
    pub fn stop<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        let slot = self.slot.clone();
        run(env, "dirty-stop", move || slot.with(SOURCE, |s| Ok(s.stop()?)))
    }

    #[napi]
    pub fn close(&self) {
        self.slot.close();
    }
}
