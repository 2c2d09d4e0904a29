//! Native threads calling JavaScript: state channels, dirty sources, fences and byte streams that are written in
//! TypeScript. The call goes out by a weak, bounded threadsafe function; the answer comes back by `reply`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use napi::bindgen_prelude::{FnArgs, Function, Uint8Array};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi_derive::napi;
use serde_json::Value;
use towline_core::channel::{
    ChannelError, ChannelErrorKind, DirtySink, DirtySource, Pending, ReadOutcome, StateChannel,
};
use towline_core::fsm::{DeviceState, MigrationFlags};
use towline_core::memory::MemoryRange;

use crate::fault::Fault;
use crate::numbers::u64_of_json;

type Args = FnArgs<(u32, String, String, Uint8Array)>;
type Callback = ThreadsafeFunction<Args, (), Args, napi::Status, false, true, 64>;
type Answer = Result<(Value, Vec<u8>), Fault>;

/// How long the bridge waits between looks at whether it was closed meanwhile.
const LOOK: Duration = Duration::from_millis(200);

pub struct BridgeInner {
    callback: Callback,
    waiting: Mutex<HashMap<u32, SyncSender<Answer>>>,
    next: AtomicU32,
    closed: AtomicBool,
}

impl BridgeInner {
    fn waiting(&self) -> MutexGuard<'_, HashMap<u32, SyncSender<Answer>>> {
        self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Calls `method` and waits for the answer. Never to be called on the main thread.
    pub fn call(&self, method: &str, json: &Value, bytes: &[u8]) -> Answer {
        if self.closed.load(Ordering::Acquire) {
            return Err(Fault::closed("the bridge to JavaScript"));
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver): (SyncSender<Answer>, Receiver<Answer>) = sync_channel(1);
        self.waiting().insert(id, sender);
        let args = (id, method.to_owned(), json.to_string(), Uint8Array::new(bytes.to_vec())).into();
        let status = self.callback.call(args, ThreadsafeFunctionCallMode::Blocking);
        if status != napi::Status::Ok {
            self.waiting().remove(&id);
            return Err(Fault::new(
                "ERR_TOWLINE_GONE",
                format!("JavaScript could not be called for {method}: {status}"),
            ));
        }
        loop {
            match receiver.recv_timeout(LOOK) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Timeout) if !self.closed.load(Ordering::Acquire) => {}
                Err(_) => {
                    self.waiting().remove(&id);
                    return Err(Fault::closed("the bridge to JavaScript"));
                }
            }
        }
    }

    fn answer(&self, id: u32, answer: Answer) {
        if let Some(sender) = self.waiting().remove(&id) {
            // The waiting side may have given up a moment ago.
            let _ = sender.try_send(answer);
        }
    }
}

/// See `NativeBridge` in `ts/native/binding.ts`.
#[napi]
pub struct Bridge {
    inner: Arc<BridgeInner>,
}

#[napi]
impl Bridge {
    #[napi(constructor)]
    pub fn new(callback: Function<'_, Args, ()>) -> napi::Result<Self> {
        let callback = callback
            .build_threadsafe_function::<Args>()
            .callee_handled::<false>()
            .weak::<true>()
            .max_queue_size::<64>()
            .build()?;
        Ok(Self {
            inner: Arc::new(BridgeInner {
                callback,
                waiting: Mutex::default(),
                next: AtomicU32::new(1),
                closed: AtomicBool::new(false),
            }),
        })
    }

    #[napi]
    pub fn reply(&self, id: u32, json: Option<String>, bytes: Option<Uint8Array>) -> napi::Result<()> {
        let value = match json {
            None => Value::Null,
            Some(text) => {
                serde_json::from_str(&text).map_err(|e| Fault::argument(format!("the answer is not JSON: {e}")))?
            }
        };
        self.inner.answer(id, Ok((value, bytes.map(|b| b.to_vec()).unwrap_or_default())));
        Ok(())
    }

    #[napi]
    pub fn fail(&self, id: u32, fault_json: String) {
        self.inner.answer(id, Err(fault_of_js(&fault_json)));
    }

    #[napi]
    pub fn state_channel(&self, flags: u32) -> crate::channel::NativeStateChannel {
        crate::channel::NativeStateChannel::new(Box::new(JsChannel {
            bridge: self.inner.clone(),
            flags: MigrationFlags(u64::from(flags)),
        }))
    }

    #[napi]
    pub fn dirty_source(&self) -> crate::channel::NativeDirtySource {
        crate::channel::NativeDirtySource::new(Box::new(JsDirty { bridge: self.inner.clone() }))
    }

    #[napi]
    pub fn fence(&self) -> crate::journal::NativeFence {
        crate::journal::NativeFence::of_bridge(self.inner.clone())
    }

    #[napi]
    pub fn link(&self) -> crate::link::NativeLink {
        crate::link::NativeLink::of_bridge(self.inner.clone())
    }

    #[napi]
    pub fn close(&self) {
        self.inner.closed.store(true, Ordering::Release);
        self.inner.waiting().clear();
    }
}

fn fault_of_js(text: &str) -> Fault {
    let value: Value = serde_json::from_str(text).unwrap_or(Value::Null);
    let message = value.get("message").and_then(Value::as_str).unwrap_or(text).to_owned();
    let mut fault = Fault::new("ERR_TOWLINE_DEVICE", message);
    fault.errno = value.get("errno").and_then(Value::as_i64).and_then(|n| i32::try_from(n).ok());
    fault.details = value.get("code").cloned();
    fault
}

/// A fault from JavaScript as a channel's error; the code of the JavaScript error decides the kind.
fn channel_error(fault: Fault) -> ChannelError {
    let code = fault.details.as_ref().and_then(Value::as_str).unwrap_or(fault.code);
    let kind = match code {
        "ERR_TOWLINE_STATE" => ChannelErrorKind::State,
        "ERR_TOWLINE_BAD_STATE" => ChannelErrorKind::BadState,
        "ERR_TOWLINE_LIMIT" => ChannelErrorKind::Limit,
        "ERR_TOWLINE_GONE" | "ERR_TOWLINE_CLOSED" => ChannelErrorKind::Gone,
        "ERR_TOWLINE_UNSUPPORTED" => ChannelErrorKind::Unsupported,
        "ERR_TOWLINE_ABORTED" | "ABORT_ERR" => ChannelErrorKind::Cancelled,
        _ => ChannelErrorKind::Device,
    };
    let mut error = ChannelError::new(kind, fault.message);
    error.errno = fault.errno;
    error
}

fn malformed(method: &str) -> ChannelError {
    ChannelError::new(
        ChannelErrorKind::Device,
        format!("the JavaScript implementation of {method} answered something that is not its documented shape"),
    )
}

struct JsChannel {
    bridge: Arc<BridgeInner>,
    flags: MigrationFlags,
}

impl JsChannel {
    fn call(&self, method: &str, json: &Value, bytes: &[u8]) -> Result<(Value, Vec<u8>), ChannelError> {
        self.bridge.call(method, json, bytes).map_err(channel_error)
    }
}

impl StateChannel for JsChannel {
    fn flags(&self) -> MigrationFlags {
        self.flags
    }

    fn state(&mut self) -> Result<DeviceState, ChannelError> {
        let (value, _) = self.call("state", &Value::Null, &[])?;
        value
            .as_u64()
            .and_then(|n| u32::try_from(n).ok())
            .and_then(crate::channel::device_state)
            .ok_or_else(|| malformed("state"))
    }

    fn set_state(&mut self, to: DeviceState) -> Result<(), ChannelError> {
        self.call("setState", &Value::from(to as u32), &[]).map(drop)
    }

    fn read(&mut self, out: &mut [u8]) -> Result<ReadOutcome, ChannelError> {
        let (kind, bytes) = self.call("read", &Value::from(out.len()), &[])?;
        match kind.as_str() {
            Some("end") => Ok(ReadOutcome::End),
            Some("empty-for-now") => Ok(ReadOutcome::EmptyForNow),
            Some("bytes") if !bytes.is_empty() => {
                let target = out.get_mut(..bytes.len()).ok_or_else(|| {
                    ChannelError::new(ChannelErrorKind::Limit, "the JavaScript channel read more than it was asked for")
                })?;
                target.copy_from_slice(&bytes);
                Ok(ReadOutcome::Bytes(bytes.len()))
            }
            _ => Err(malformed("read")),
        }
    }

    fn write(&mut self, data: &[u8]) -> Result<(), ChannelError> {
        self.call("write", &Value::Null, data).map(drop)
    }

    fn pending(&mut self) -> Result<Pending, ChannelError> {
        let (value, _) = self.call("pending", &Value::Null, &[])?;
        let field =
            |name: &str| u64_of_json(name, value.get(name).unwrap_or(&Value::Null)).map_err(|_| malformed("pending"));
        Ok(Pending {
            initial_bytes: field("initialBytes")?,
            dirty_bytes: field("dirtyBytes")?,
            // Left out, or null: unknown.
            stop_copy_bytes: match value.get("stopCopyBytes") {
                None | Some(Value::Null) => None,
                Some(_) => Some(field("stopCopyBytes")?),
            },
        })
    }

    fn reset(&mut self) -> Result<(), ChannelError> {
        self.call("reset", &Value::Null, &[]).map(drop)
    }
}

struct JsDirty {
    bridge: Arc<BridgeInner>,
}

/// More runs than this in one answer is a mistake of the implementation, not a workload.
const MOST_RUNS: usize = 1 << 22;

impl DirtySource for JsDirty {
    fn start(&mut self, ranges: &[MemoryRange], page_size_bytes: u64) -> Result<u64, ChannelError> {
        let ranges: Vec<Value> =
            ranges.iter().map(|r| Value::from(vec![r.gpa.to_string(), r.len.to_string()])).collect();
        let json = serde_json::json!({ "ranges": ranges, "pageSizeBytes": page_size_bytes });
        let (value, _) = self.bridge.call("start", &json, &[]).map_err(channel_error)?;
        value.as_u64().filter(|n| n.is_power_of_two()).ok_or_else(|| malformed("start"))
    }

    fn harvest(&mut self, sink: &mut dyn DirtySink) -> Result<(), ChannelError> {
        let (value, _) = self.bridge.call("harvest", &Value::Null, &[]).map_err(channel_error)?;
        let runs = value.get("ranges").and_then(Value::as_array).ok_or_else(|| malformed("harvest"))?;
        if runs.len() > MOST_RUNS {
            return Err(malformed("harvest"));
        }
        for run in runs {
            let number =
                |i: usize| run.get(i).and_then(|v| u64_of_json("run", v).ok()).ok_or_else(|| malformed("harvest"));
            sink.mark(number(0)?, number(1)?);
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), ChannelError> {
        self.bridge.call("stop", &Value::Null, &[]).map(drop).map_err(channel_error)
    }
}
