//! Both sides of a migration as objects of JavaScript: each step of the engine's sessions is a promise.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use napi::Env;
use napi::bindgen_prelude::{
    ClassInstance, FromNapiValue, Function, JsObjectValue as _, Object, Uint8Array, ValidateNapiValue,
};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi_derive::napi;
use serde::Deserialize;
use serde_json::{Value, json};
use towline_core::channel::{ChannelError, DirtySink, DirtySource};
use towline_core::memory::{GuestMemory as _, MemoryRange};
use towline_engine::cancel::Cancel;
use towline_engine::dialogue::{AskOutcome, Mismatch};
use towline_engine::faultpoints::FaultPoints;
use towline_engine::fence::Fence;
use towline_engine::link::Link;
use towline_engine::session::{
    DestinationConfig, DestinationSession, DestinationTarget, FunctionOutcome, Incoming, NamedSource, ReceiveProgress,
    RoundStats, SessionFunction, SourceConfig, SourceSession, Terms, Timings,
};
use towline_linux::memory::MappedMemory;
use uuid::Uuid;

use crate::channel::{NativeDirtySource, NativeStateChannel, Range};
use crate::fault::Fault;
use crate::journal::NativeFence;
use crate::link::NativeLink;
use crate::memory::GuestMemory;
use crate::numbers::u64_of_json;
use crate::promise::run;

const PAGE_SIZE_BYTES: u64 = 4096;
/// The caller's sections are held in memory until they are restored.
const MAX_SECTION_BYTES: u64 = 64 << 20;
/// Progress beyond what JavaScript has taken is dropped: the next one says more.
const PROGRESS_QUEUE: usize = 16;
/// A caller that owns its connection ends it itself.
const NO_LIMIT: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

type Progress = ThreadsafeFunction<String, (), String, napi::Status, false, true, PROGRESS_QUEUE>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigJson {
    session: Option<Uuid>,
    bandwidth_bytes_per_second: Option<f64>,
    record_path: Option<PathBuf>,
    #[serde(default)]
    sections: Vec<String>,
    faults: Option<FaultsJson>,
    /// What is left to the caller; nothing by default.
    #[serde(default)]
    terms: Terms,
    /// Decimal; an epoch below is not taken.
    least_epoch: Option<Value>,
    /// The caller knows that the destination's memory was never written.
    #[serde(default)]
    fresh_destination: bool,
    /// Of the link, in milliseconds; its own where this is missing, none where it is 0.
    idle_timeout_ms: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FaultsJson {
    kill_at: Option<String>,
    fail_at: Option<String>,
    skip_final_pages: Option<RangeJson>,
    skip_device_dirty: Option<RangeJson>,
    drop_last_state: bool,
    run_after_release: bool,
}

#[derive(Deserialize)]
struct RangeJson {
    gpa: Value,
    len: Value,
}

impl RangeJson {
    fn range(&self) -> Result<MemoryRange, Fault> {
        Ok(MemoryRange { gpa: u64_of_json("gpa", &self.gpa)?, len: u64_of_json("len", &self.len)? })
    }
}

/// What both sides are made of, taken out of JavaScript's objects.
struct Parts {
    link: Box<dyn Link>,
    fence: Arc<dyn Fence>,
    memory: Arc<MappedMemory>,
    functions: Vec<SessionFunction>,
    dirty: Vec<NamedSource>,
    progress: Option<Progress>,
}

/// A rehearsed hole in a dirty source: what it reports about `range` is lost.
struct Deaf {
    inner: Box<dyn DirtySource>,
    range: MemoryRange,
}

struct DeafSink<'a> {
    sink: &'a mut dyn DirtySink,
    range: MemoryRange,
}

impl DirtySink for DeafSink<'_> {
    fn mark(&mut self, gpa: u64, len: u64) {
        let (start, end) = (self.range.gpa, self.range.gpa.saturating_add(self.range.len));
        let run_end = gpa.saturating_add(len);
        if gpa < start {
            self.sink.mark(gpa, run_end.min(start) - gpa);
        }
        if run_end > end {
            let from = gpa.max(end);
            self.sink.mark(from, run_end - from);
        }
    }

    fn merge_bitmap(&mut self, base: u64, page_size_bytes: u64, bitmap: &[u8]) {
        for (i, byte) in bitmap.iter().enumerate() {
            for bit in (0..8u64).filter(|bit| byte >> bit & 1 == 1) {
                self.mark(base.saturating_add((i as u64 * 8 + bit).saturating_mul(page_size_bytes)), page_size_bytes);
            }
        }
    }
}

impl DirtySource for Deaf {
    fn start(&mut self, ranges: &[MemoryRange], page_size_bytes: u64) -> Result<u64, ChannelError> {
        self.inner.start(ranges, page_size_bytes)
    }
    fn harvest(&mut self, sink: &mut dyn DirtySink) -> Result<(), ChannelError> {
        self.inner.harvest(&mut DeafSink { sink, range: self.range })
    }
    fn stop(&mut self) -> Result<(), ChannelError> {
        self.inner.stop()
    }
}

/// A property of `object`, whatever its type is.
fn property<T: FromNapiValue + ValidateNapiValue>(object: &Object<'_>, name: &str) -> Result<T, Fault> {
    object.get_named_property::<T>(name).map_err(|e| Fault::argument(format!("{name}: {}", e.reason)))
}

fn parts(object: &Object<'_>, deaf: Option<MemoryRange>) -> Result<Parts, Fault> {
    let mut functions = Vec::new();
    let mut dirty = Vec::new();
    for function in property::<Vec<Object<'_>>>(object, "functions")? {
        let id: String = property(&function, "uuid")?;
        let channel = property::<ClassInstance<'_, NativeStateChannel>>(&function, "channel")?.lend();
        let sources: Vec<ClassInstance<'_, NativeDirtySource>> = property(&function, "dirty")?;
        for (i, source) in sources.iter().enumerate() {
            let inner = source.lend();
            let source = match deaf {
                Some(range) => Box::new(Deaf { inner, range }),
                None => inner,
            };
            dirty.push(NamedSource { name: format!("{id}#{i}"), source });
        }
        functions.push(SessionFunction { id, channel });
    }
    let extra: Vec<ClassInstance<'_, NativeDirtySource>> = property(object, "extraDirty")?;
    dirty.extend(extra.iter().enumerate().map(|(i, s)| NamedSource { name: format!("extra#{i}"), source: s.lend() }));
    let memory = match property::<Option<ClassInstance<'_, GuestMemory>>>(object, "memory")? {
        Some(memory) => memory.parts()?.memory,
        None => Arc::new(MappedMemory::new()),
    };
    let progress = property::<Option<Function<'_, String, ()>>>(object, "progress")?
        .map(|f| {
            f.build_threadsafe_function::<String>()
                .callee_handled::<false>()
                .weak::<true>()
                .max_queue_size::<PROGRESS_QUEUE>()
                .build()
        })
        .transpose()
        .map_err(|e| Fault::argument(format!("progress: {}", e.reason)))?;
    // The link last: it is taken, and a failure before must leave it usable.
    let fence = property::<ClassInstance<'_, NativeFence>>(object, "fence")?.get()?;
    let link = property::<ClassInstance<'_, NativeLink>>(object, "link")?.take()?;
    Ok(Parts { link, fence, memory, functions, dirty, progress })
}

/// Sets the link's idle timeout as the configuration says.
fn set_idle_timeout(link: &mut dyn Link, config: &ConfigJson) {
    match config.idle_timeout_ms {
        None => {}
        Some(0) => link.set_idle_timeout(NO_LIMIT),
        Some(ms) => link.set_idle_timeout(Duration::from_millis(u64::from(ms))),
    }
}

fn config_of(json: &str) -> Result<ConfigJson, Fault> {
    serde_json::from_str(json)
        .map_err(|e| Fault::argument(format!("the session's configuration has not its documented shape: {e}")))
}

fn points(faults: Option<&FaultsJson>) -> Result<(FaultPoints, Option<MemoryRange>), Fault> {
    let Some(faults) = faults else { return Ok((FaultPoints::default(), None)) };
    let mut points = FaultPoints::default();
    points.kill_at.clone_from(&faults.kill_at);
    points.fail_at.clone_from(&faults.fail_at);
    points.skip_page_in = faults.skip_final_pages.as_ref().map(RangeJson::range).transpose()?;
    points.drop_last_state = faults.drop_last_state;
    points.run_after_release = faults.run_after_release;
    Ok((points, faults.skip_device_dirty.as_ref().map(RangeJson::range).transpose()?))
}

fn timings_json(timings: &Timings) -> String {
    let phases: Vec<Value> =
        timings.phases.iter().map(|p| json!({ "name": p.name, "ms": p.ms, "times": p.times })).collect();
    Value::from(phases).to_string()
}

fn outcomes_json(outcomes: &[FunctionOutcome]) -> String {
    let list: Vec<Value> = outcomes
        .iter()
        .map(|o| {
            json!({
                "function": o.id, "state": o.state.map(|s| s as u32), "wasReset": o.was_reset, "error": o.error,
            })
        })
        .collect();
    Value::from(list).to_string()
}

fn round_json(stats: &RoundStats, total_wire_bytes: u64) -> Value {
    json!({
        "round": stats.round, "pages": stats.pages, "zeroPages": stats.zero_pages, "holePages": stats.skipped_hole_pages,
        "pageSizeBytes": PAGE_SIZE_BYTES, "memoryBytes": stats.bytes, "wireBytes": stats.wire_bytes,
        "totalWireBytes": total_wire_bytes, "ms": stats.ms, "dirtyPagesAfter": stats.dirty_pages_after,
    })
}

fn send_progress(progress: Option<&Progress>, value: &Value) {
    if let Some(progress) = progress {
        // A full queue drops it: the next one says more.
        let _ = progress.call(value.to_string(), ThreadsafeFunctionCallMode::NonBlocking);
    }
}

struct Shared<T> {
    session: Mutex<Option<T>>,
    progress: Option<Progress>,
}

impl<T> Shared<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T, Option<&Progress>) -> Result<R, Fault>) -> Result<R, Fault> {
        let mut guard = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        f(guard.as_mut().ok_or_else(|| Fault::closed("the session"))?, self.progress.as_ref())
    }

    /// Drops the session on a thread of its own: dropping one that is not over rolls back, which waits for devices.
    fn close(self: &Arc<Self>)
    where
        T: Send + 'static,
    {
        let this = self.clone();
        let dropped = move || drop(this.session.lock().unwrap_or_else(PoisonError::into_inner).take());
        // Where no thread can be had, the last reference drops it.
        let _ = std::thread::Builder::new().name("towline-close".into()).spawn(dropped);
    }

    /// As [`Shared::close`], for who has to know when it is done: what the session held is free then.
    fn end<'e>(self: &Arc<Self>, env: &'e Env) -> napi::Result<Object<'e>>
    where
        T: Send + 'static,
    {
        let this = self.clone();
        run(env, "end", move || {
            drop(this.session.lock().unwrap_or_else(PoisonError::into_inner).take());
            Ok(())
        })
    }
}

/// See `NativeSourceSession` in `ts/native/binding.ts`.
#[napi]
pub struct NativeSourceSession {
    shared: Arc<Shared<SourceSession>>,
    cancel: Cancel,
    memory: Arc<MappedMemory>,
}

#[napi]
pub fn source_session(config_json: String, parts_object: Object<'_>) -> napi::Result<NativeSourceSession> {
    let config = config_of(&config_json)?;
    let (points, deaf) = points(config.faults.as_ref())?;
    points.check().map_err(Fault::from)?;
    let mut parts = parts(&parts_object, deaf)?;
    set_idle_timeout(parts.link.as_mut(), &config);
    let least_epoch = config.least_epoch.as_ref().map(|e| u64_of_json("leastEpoch", e)).transpose()?;
    let cancel = Cancel::new();
    let memory = parts.memory.clone();
    let source = SourceConfig {
        session: config.session.unwrap_or_else(Uuid::new_v4),
        functions: parts.functions,
        memory: parts.memory,
        dirty_sources: parts.dirty,
        page_size_bytes: PAGE_SIZE_BYTES,
        sections: config.sections,
        fence: parts.fence,
        cancel: cancel.clone(),
        bandwidth_limit_bytes_per_s: config.bandwidth_bytes_per_second.map(|b| b as u64),
        points: Arc::new(points),
        record_to: config.record_path,
    };
    let mut session = SourceSession::with_terms(source, config.terms, parts.link).map_err(Fault::from)?;
    if config.fresh_destination {
        session.destination_memory_is_fresh().map_err(Fault::from)?;
    }
    if let Some(epoch) = least_epoch {
        session.set_least_epoch(epoch).map_err(Fault::from)?;
    }
    let shared = Arc::new(Shared { session: Mutex::new(Some(session)), progress: parts.progress });
    Ok(NativeSourceSession { shared, cancel, memory })
}

impl NativeSourceSession {
    fn step<'e, T, F>(&self, env: &'e Env, what: &'static str, work: F) -> napi::Result<Object<'e>>
    where
        T: napi::bindgen_prelude::ToNapiValue + Send + 'static,
        F: FnOnce(&mut SourceSession, Option<&Progress>) -> Result<T, Fault> + Send + 'static,
    {
        let shared = self.shared.clone();
        run(env, what, move || shared.with(work))
    }
}

#[napi]
impl NativeSourceSession {
    #[napi]
    pub fn offer<'e>(&self, env: &'e Env, json: String) -> napi::Result<Object<'e>> {
        let descriptor: Value =
            serde_json::from_str(&json).map_err(|e| Fault::argument(format!("the offer is not JSON: {e}")))?;
        self.step(env, "offer", move |s, _| {
            let outcome = s.offer(descriptor)?;
            Ok(json!({ "epoch": s.epoch().to_string(), "mismatches": outcome.mismatches, "rttMs": outcome.rtt_ms })
                .to_string())
        })
    }

    #[napi]
    pub fn start_tracking<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "start-tracking", |s, _| Ok(s.start_tracking()?))
    }

    #[napi]
    pub fn measure<'e>(&self, env: &'e Env, sample_ms: u32) -> napi::Result<Object<'e>> {
        self.step(env, "measure", move |s, _| {
            let m = s.measure(Duration::from_millis(u64::from(sample_ms)))?;
            Ok(json!({
                "memoryBytes": m.memory_bytes, "dirtyBytesPerSecond": m.dirty_bytes_per_s,
                "bandwidthBytesPerSecond": m.bandwidth_bytes_per_s, "stateBytes": m.state_bytes, "rttMs": m.rtt_ms,
                "journalSyncMs": m.journal_sync_ms,
            })
            .to_string())
        })
    }

    #[napi]
    pub fn memory_pass<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "memory-pass", |s, progress| {
            let total = s.ledger().dirty_pages();
            let stats = s.memory_pass(&mut |so_far| {
                let value = json!({
                    "round": so_far.round, "sentPages": so_far.pages, "totalPages": total, "wireBytes": so_far.wire_bytes,
                });
                send_progress(progress, &value);
            })?;
            Ok(round_json(&stats, s.wire_bytes()).to_string())
        })
    }

    #[napi]
    pub fn precopy_state<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "precopy-state", |s, _| {
            let stats = s.precopy_state()?;
            Ok(json!({
                "functions": stats.functions, "bytes": stats.bytes, "initialBytesLeft": stats.initial_bytes_left,
                "dirtyBytesLeft": stats.dirty_bytes_left, "stopCopyBytes": stats.stop_copy_bytes,
            })
            .to_string())
        })
    }

    #[napi]
    pub fn quiesce<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "quiesce", |s, _| Ok(s.quiesce()?))
    }

    #[napi]
    pub fn stop<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "stop", |s, _| {
            let stopped = s.stop()?;
            Ok(json!({ "askedNs": stopped.asked_ns.to_string(), "stoppedNs": stopped.stopped_ns.to_string() })
                .to_string())
        })
    }

    #[napi]
    pub fn final_pass<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "final-pass", |s, _| {
            let stats = s.final_pass()?;
            let mut value = round_json(&stats.memory, s.wire_bytes());
            if let Value::Object(map) = &mut value {
                map.insert("pagesMs".into(), json!(s.timings().ms("final-memory")));
                map.insert("stateMs".into(), json!(s.timings().ms("final-state")));
                map.insert("stateBytes".into(), json!(stats.state_bytes));
                map.insert("saveMs".into(), json!(stats.device_save_ms));
                map.insert("failedSources".into(), json!(stats.failed_sources));
            }
            Ok(value.to_string())
        })
    }

    #[napi]
    pub fn harvest<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "harvest", |s, _| {
            let stats = s.harvest()?;
            Ok(json!({
                "dirtyPages": stats.dirty_pages, "isLast": stats.is_last, "failedSources": stats.failed_sources,
            })
            .to_string())
        })
    }

    #[napi]
    pub fn save_state<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "save-state", |s, _| {
            let stats = s.save_state()?;
            Ok(json!({ "stateBytes": stats.state_bytes, "saveMs": stats.device_save_ms }).to_string())
        })
    }

    #[napi]
    pub fn intent<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "intent", |s, _| {
            let info = s.intent()?;
            Ok(json!({ "epoch": info.epoch.to_string(), "journalMs": info.intent_ms }).to_string())
        })
    }

    #[napi]
    pub fn refused<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "refused", |s, _| Ok(s.refused_by_caller()?))
    }

    /// `answer`: `committed`, `refused` or `unknown`. Resolves with the verdict.
    #[napi]
    pub fn settle<'e>(&self, env: &'e Env, answer: String) -> napi::Result<Object<'e>> {
        let answer: AskOutcome = serde_json::from_value(Value::from(answer))
            .map_err(|_| Fault::argument("the answer is committed, refused or unknown"))?;
        self.step(env, "settle", move |s, _| Ok(json!({ "verdict": s.settle(answer)? }).to_string()))
    }

    #[napi]
    pub fn send_section<'e>(&self, env: &'e Env, name: String, data: Uint8Array) -> napi::Result<Object<'e>> {
        let data = data.to_vec();
        self.step(env, "section", move |s, _| Ok(s.send_section(&name, &data)?))
    }

    #[napi]
    pub fn prepare<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "prepare", |s, _| {
            let info = s.prepare()?;
            Ok(json!({ "loadMs": info.load_ms, "digests": info.digests }).to_string())
        })
    }

    #[napi]
    pub fn commit<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "commit", |s, _| {
            let info = s.commit()?;
            Ok(json!({ "epoch": info.epoch.to_string(), "journalMs": info.intent_ms, "roundTripMs": info.round_trip_ms })
                .to_string())
        })
    }

    #[napi]
    pub fn wait_running<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "wait-running", |s, _| Ok(json!({ "resumeMs": s.wait_running()? }).to_string()))
    }

    #[napi]
    pub fn release<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "release", |s, _| Ok(outcomes_json(&s.release()?)))
    }

    #[napi]
    pub fn abort<'e>(&self, env: &'e Env, reason: String) -> napi::Result<Object<'e>> {
        self.step(env, "abort", move |s, _| Ok(outcomes_json(&s.abort(&reason)?)))
    }

    #[napi]
    pub fn take_dirty_runs<'e>(&self, env: &'e Env, max_pages: u32) -> napi::Result<Object<'e>> {
        self.step(env, "dirty-runs", move |s, _| {
            let mut runs = Vec::new();
            s.ledger().next_runs(u64::from(max_pages), &mut runs);
            Ok(runs.into_iter().map(|r| Range::of(MemoryRange { gpa: r.gpa, len: r.len })).collect::<Vec<_>>())
        })
    }

    /// Guest memory that the session would send, in bytes.
    #[napi]
    pub fn memory_bytes(&self) -> f64 {
        self.memory.ranges().iter().map(|r| r.len as f64).sum()
    }

    #[napi]
    pub fn cancel(&self) -> bool {
        self.cancel.cancel()
    }

    #[napi]
    pub fn timings(&self) -> napi::Result<String> {
        Ok(self.shared.with(|s, _| Ok(timings_json(s.timings())))?)
    }

    #[napi]
    pub fn close(&self) {
        self.shared.close();
    }

    #[napi]
    pub fn end<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.shared.end(env)
    }
}

/// The destination's session, and what it is received into until the answer takes it.
struct Receiving {
    session: DestinationSession,
    target: Option<DestinationTarget>,
}

/// See `NativeDestinationSession` in `ts/native/binding.ts`.
#[napi]
pub struct NativeDestinationSession {
    shared: Arc<Shared<Receiving>>,
    cancel: Cancel,
}

#[napi]
pub fn destination_session(config_json: String, parts_object: Object<'_>) -> napi::Result<NativeDestinationSession> {
    let config = config_of(&config_json)?;
    let (points, _) = points(config.faults.as_ref())?;
    points.check().map_err(Fault::from)?;
    let mut parts = parts(&parts_object, None)?;
    set_idle_timeout(parts.link.as_mut(), &config);
    let cancel = Cancel::new();
    let destination = DestinationConfig {
        fence: parts.fence,
        cancel: cancel.clone(),
        points: Arc::new(points),
        max_section_bytes: MAX_SECTION_BYTES,
    };
    let session = DestinationSession::with_terms(destination, config.terms, parts.link).map_err(Fault::from)?;
    let target = DestinationTarget { functions: parts.functions, memory: parts.memory };
    let receiving = Receiving { session, target: Some(target) };
    let shared = Arc::new(Shared { session: Mutex::new(Some(receiving)), progress: parts.progress });
    Ok(NativeDestinationSession { shared, cancel })
}

#[derive(Deserialize)]
struct AnswerJson {
    mismatches: Vec<Mismatch>,
}

fn progress_json(p: &ReceiveProgress) -> Value {
    json!({
        "round": p.rounds, "rounds": p.rounds, "pages": p.pages, "memoryBytes": p.memory_bytes, "stateBytes": p.state_bytes,
        "wireBytes": p.wire_bytes,
    })
}

impl NativeDestinationSession {
    fn step<'e, T, F>(&self, env: &'e Env, what: &'static str, work: F) -> napi::Result<Object<'e>>
    where
        T: napi::bindgen_prelude::ToNapiValue + Send + 'static,
        F: FnOnce(&mut Receiving, Option<&Progress>) -> Result<T, Fault> + Send + 'static,
    {
        let shared = self.shared.clone();
        run(env, what, move || shared.with(work))
    }
}

#[napi]
impl NativeDestinationSession {
    /// `{type: 'offer', …}` or `{type: 'asked', …}`: somebody asked about an earlier session and was answered; the link is done.
    #[napi]
    pub fn read_offer<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "read-offer", |r, _| {
            Ok(match r.session.read_offer()? {
                Incoming::Offer(offer) => {
                    let memory: Vec<Value> = offer
                        .memory
                        .iter()
                        .map(|m| json!({ "gpa": m.gpa.to_string(), "len": m.len.to_string() }))
                        .collect();
                    json!({
                        "type": "offer", "session": offer.session.to_string(), "epoch": offer.epoch.to_string(),
                        "descriptor": offer.descriptor, "memory": memory, "sections": offer.sections,
                    })
                }
                Incoming::Asked { session, epoch, outcome } => json!({
                    "type": "asked", "session": session.to_string(), "epoch": epoch.to_string(), "outcome": outcome,
                }),
            }
            .to_string())
        })
    }

    #[napi]
    pub fn answer<'e>(&self, env: &'e Env, json: String) -> napi::Result<Object<'e>> {
        let answer: AnswerJson = serde_json::from_str(&json)
            .map_err(|e| Fault::argument(format!("the answer has not its documented shape: {e}")))?;
        self.step(env, "answer", move |r, _| {
            let answered = if answer.mismatches.is_empty() {
                let target = r.target.take().ok_or_else(|| Fault::closed("the target of the session"))?;
                r.session.answer(target, Vec::new())?
            } else {
                r.session.refuse(answer.mismatches)?
            };
            Ok(json!({ "accepted": answered.accepted, "mismatches": answered.mismatches }).to_string())
        })
    }

    #[napi]
    pub fn receive<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "receive", |r, progress| {
            r.session.receive(&mut |p| send_progress(progress, &progress_json(p)))?;
            let mut value = progress_json(&r.session.progress());
            let names: Vec<&str> = r.session.sections().iter().map(|s| s.name.as_str()).collect();
            if let Value::Object(map) = &mut value {
                map.insert("sections".into(), json!(names));
            }
            Ok(value.to_string())
        })
    }

    #[napi]
    pub fn section(&self, name: String) -> napi::Result<Option<Uint8Array>> {
        Ok(self.shared.with(|r, _| {
            Ok(r.session.sections().iter().find(|s| s.name == name).map(|s| Uint8Array::new(s.data.clone())))
        })?)
    }

    #[napi]
    pub fn prepared<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "prepared", |r, _| {
            r.session.prepared()?;
            Ok(json!({ "digests": r.session.digests() }).to_string())
        })
    }

    #[napi]
    pub fn wait_commit<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "wait-commit", |r, _| {
            let epoch = r.session.wait_commit()?;
            let journal_ms = r.session.timings().ms("journal-commit");
            Ok(json!({ "epoch": epoch.to_string(), "journalMs": journal_ms }).to_string())
        })
    }

    #[napi]
    pub fn commit_by_caller<'e>(&self, env: &'e Env, epoch: String) -> napi::Result<Object<'e>> {
        let epoch = u64_of_json("epoch", &Value::from(epoch))?;
        self.step(env, "commit-by-caller", move |r, _| {
            let epoch = r.session.commit_by_caller(epoch)?;
            let journal_ms = r.session.timings().ms("journal-commit");
            Ok(json!({ "epoch": epoch.to_string(), "journalMs": journal_ms }).to_string())
        })
    }

    #[napi]
    pub fn resume<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "resume", |r, _| Ok(json!({ "resumedNs": r.session.resume()?.to_string() }).to_string()))
    }

    #[napi]
    pub fn running<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "running", |r, _| Ok(r.session.running()?))
    }

    #[napi]
    pub fn abort<'e>(&self, env: &'e Env, reason: String) -> napi::Result<Object<'e>> {
        self.step(env, "abort", move |r, _| Ok(outcomes_json(&r.session.abort(&reason)?)))
    }

    #[napi]
    pub fn cancel(&self) -> bool {
        self.cancel.cancel()
    }

    #[napi]
    pub fn timings(&self) -> napi::Result<String> {
        Ok(self.shared.with(|r, _| Ok(timings_json(r.session.timings())))?)
    }

    #[napi]
    pub fn close(&self) {
        self.shared.close();
    }

    #[napi]
    pub fn end<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.shared.end(env)
    }
}
