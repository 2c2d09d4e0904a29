//! The source's session.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use napi::Env;
use napi::bindgen_prelude::{Object, Uint8Array};
use napi_derive::napi;
use serde_json::{Value, json};
use towline_core::memory::MemoryRange;
use towline_engine::cancel::Cancel;
use towline_engine::dialogue::{AskOutcome, MAX_SECTION_DESCRIPTORS};
use towline_engine::error::EngineError;
use towline_engine::faultpoints::FaultPoints;
use towline_engine::session::{
    CheckpointMode, DirtySample, MemoryBy, RoundStats, SectionOut, SourceConfig, SourcePages, SourceSession,
};
use uuid::Uuid;

use super::parts::{ConfigJson, PAGE_SIZE_BYTES, Parts, config_of, link_of, parts, points};
use super::{Progress, SectionFdJson, SectionJson, Shared, outcomes_json, send_progress, timings_json};
use crate::channel::Range;
use crate::fault::Fault;
use crate::numbers::u64_of_json;
use crate::promise::run;

fn round_json(stats: &RoundStats, total_wire_bytes: u64, dirtied: &[SourcePages]) -> Value {
    json!({
        "dirtyBySource": dirtied_json(dirtied),
        "round": stats.round, "pages": stats.pages, "zeroPages": stats.zero_pages, "holePages": stats.skipped_hole_pages,
        "pageSizeBytes": PAGE_SIZE_BYTES, "memoryBytes": stats.bytes, "wireBytes": stats.wire_bytes,
        "totalWireBytes": total_wire_bytes, "ms": stats.ms, "dirtyPagesAfter": stats.dirty_pages_after,
    })
}

/// A section on its way to another thread: its descriptors may be closed here before they are sent.
struct OwnedSection {
    name: String,
    bytes: std::ops::Range<usize>,
    fds: Vec<(String, OwnedFd)>,
}

impl OwnedSection {
    fn of(SectionJson { name, bytes, fds }: SectionJson, at: usize) -> Result<Self, Fault> {
        if fds.len() > MAX_SECTION_DESCRIPTORS {
            let what = format!("section {name} has more than {MAX_SECTION_DESCRIPTORS} descriptors");
            return Err(Fault::argument(what));
        }
        let own = |SectionFdJson { name, fd }| duplicate(fd).map(|fd| (name, fd));
        let fds = fds.into_iter().map(own).collect::<Result<Vec<_>, Fault>>()?;
        let end = at.checked_add(bytes).ok_or_else(|| Fault::argument("the sections are too long"))?;
        Ok(Self { name, bytes: at..end, fds })
    }

    /// All that are in so many bytes, one after the other.
    fn all(layout_json: &str, length: usize) -> Result<Vec<Self>, Fault> {
        let layout: Vec<SectionJson> = serde_json::from_str(layout_json)
            .map_err(|e| Fault::argument(format!("the sections have not their documented shape: {e}")))?;
        let mut sections: Vec<Self> = Vec::with_capacity(layout.len());
        for section in layout {
            let at = sections.last().map_or(0, |s| s.bytes.end);
            sections.push(Self::of(section, at)?);
        }
        match sections.last().map_or(0, |s| s.bytes.end) {
            end if end == length => Ok(sections),
            end => Err(Fault::argument(format!("the sections have {end} bytes, and {length} came"))),
        }
    }
}

fn duplicate(fd: i32) -> Result<OwnedFd, Fault> {
    if fd < 0 {
        return Err(Fault::argument(format!("{fd} is not a file descriptor")));
    }
    // SAFETY: the descriptor is only borrowed for this call, which duplicates it; a number that is not open makes that fail with EBADF.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    borrowed.try_clone_to_owned().map_err(|e| Fault {
        errno: e.raw_os_error(),
        ..Fault::new("ERR_TOWLINE_SYSTEM", format!("descriptor {fd} can't be duplicated: {e}"))
    })
}

fn dirtied_json(dirtied: &[SourcePages]) -> Vec<Value> {
    dirtied.iter().map(|d| json!({ "source": d.source, "pages": d.pages })).collect()
}

fn sample_json(sample: &DirtySample) -> Value {
    let source = |s: &towline_engine::session::SourceSample| json!({ "source": s.source, "windowBytes": s.window_bytes, "wholeBytes": s.whole_bytes });
    json!({
        "windows": sample.windows, "ms": sample.ms, "sources": sample.sources.iter().map(source).collect::<Vec<_>>(),
    })
}

/// See `NativeSourceSession` in `ts/native/binding.ts`.
#[napi]
pub struct NativeSourceSession {
    shared: Arc<Shared<SourceSession>>,
    cancel: Cancel,
    points: Arc<FaultPoints>,
}

impl Drop for NativeSourceSession {
    fn drop(&mut self) {
        self.shared.close();
    }
}

#[napi]
pub fn source_session(config_json: String, parts_object: Object<'_>) -> napi::Result<NativeSourceSession> {
    let config = config_of(&config_json)?;
    let points = points(config.faults.as_ref())?;
    let mut parts = parts(&parts_object)?;
    let passed = (config.terms.memory == MemoryBy::Passed).then(|| parts.memory.clone());
    let link = link_of(parts.link.take(), &config)?;
    let least_epoch = config.least_epoch.as_ref().map(|e| u64_of_json("leastEpoch", e)).transpose()?;
    let (terms, fresh_destination) = (config.terms, config.fresh_destination);
    NativeSourceSession::of(config, points, parts, |source| {
        let mut session = SourceSession::with_terms(source, terms, link)?;
        if let Some(memory) = passed {
            session.set_passed_memory(memory)?;
        }
        if fresh_destination {
            session.destination_memory_is_fresh()?;
        }
        if let Some(epoch) = least_epoch {
            session.set_least_epoch(epoch)?;
        }
        Ok(session)
    })
}

/// A session that writes a checkpoint to `path`; `mode` is `move` or `copy`.
#[napi]
pub fn checkpoint_session(
    config_json: String,
    parts_object: Object<'_>,
    path: String,
    mode: String,
    overwrite: bool,
) -> napi::Result<NativeSourceSession> {
    let config = config_of(&config_json)?;
    let points = points(config.faults.as_ref())?;
    let parts = parts(&parts_object)?;
    let mode: CheckpointMode =
        serde_json::from_value(Value::from(mode)).map_err(|_| Fault::argument("the mode is move or copy"))?;
    NativeSourceSession::of(config, points, parts, |source| {
        SourceSession::checkpoint(source, Path::new(&path), mode, overwrite)
    })
}

impl NativeSourceSession {
    fn of(
        config: ConfigJson,
        points: Arc<FaultPoints>,
        parts: Parts,
        make: impl FnOnce(SourceConfig) -> Result<SourceSession, EngineError>,
    ) -> napi::Result<Self> {
        let cancel = Cancel::new();
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
            points: points.clone(),
            record_to: config.record_path,
        };
        let session = make(source).map_err(Fault::from)?;
        let shared = Arc::new(Shared { session: Mutex::new(Some(session)), progress: parts.progress });
        Ok(Self { shared, cancel, points })
    }

    pub(super) fn step<'e, T, F>(&self, env: &'e Env, what: &'static str, work: F) -> napi::Result<Object<'e>>
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
                "journalSyncMs": m.journal_sync_ms, "dirty": sample_json(&m.dirty),
            })
            .to_string())
        })
    }

    #[napi]
    pub fn sample_dirty<'e>(&self, env: &'e Env, ms: u32) -> napi::Result<Object<'e>> {
        self.step(env, "sample-dirty", move |s, _| {
            Ok(sample_json(&s.sample_dirty(Duration::from_millis(u64::from(ms)))?).to_string())
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
            let dirtied = s.take_dirtied();
            Ok(round_json(&stats, s.wire_bytes(), &dirtied).to_string())
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
            let dirtied = s.take_dirtied();
            let mut value = round_json(&stats.memory, s.wire_bytes(), &dirtied);
            if let Value::Object(map) = &mut value {
                let pages_ms = s.timings().ms("final-harvest") + s.timings().ms("final-memory");
                map.insert("pagesMs".into(), json!(pages_ms));
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
                "dirtyBySource": dirtied_json(&s.take_dirtied()),
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

    /// One after the other, without a turn of JavaScript between them: the guest waits.
    #[napi]
    pub fn send_sections<'e>(&self, env: &'e Env, layout_json: String, bytes: Uint8Array) -> napi::Result<Object<'e>> {
        let sections = OwnedSection::all(&layout_json, bytes.len())?;
        let bytes = bytes.to_vec();
        self.step(env, "section", move |s, _| {
            let fds: Vec<Vec<(&str, BorrowedFd<'_>)>> = sections
                .iter()
                .map(|section| section.fds.iter().map(|(of, fd)| (of.as_str(), fd.as_fd())).collect())
                .collect();
            let all: Vec<SectionOut<'_>> = sections
                .iter()
                .zip(&fds)
                .map(|(section, descriptors)| SectionOut {
                    name: &section.name,
                    data: bytes.get(section.bytes.clone()).unwrap_or_default(),
                    descriptors,
                })
                .collect();
            Ok(s.send_sections(&all)?)
        })
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
            Ok(json!({
                "epoch": info.epoch.to_string(), "journalMs": info.intent_ms + info.peer_journal_ms,
                "roundTripMs": info.round_trip_ms, "totalWireBytes": s.wire_bytes(),
            })
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

    /// Whether a rehearsed fault has really happened.
    #[napi]
    pub fn fired(&self) -> bool {
        self.points.fired()
    }

    #[napi]
    pub fn cancel(&self) -> bool {
        self.cancel.cancel()
    }

    #[napi]
    pub fn may_abort(&self) -> napi::Result<bool> {
        Ok(self.shared.with(|s, _| Ok(s.may_abort()))?)
    }

    #[napi]
    pub fn timings(&self) -> napi::Result<String> {
        Ok(self.shared.with(|s, _| Ok(timings_json(s.timings())))?)
    }

    #[napi]
    pub fn end<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.shared.end(env)
    }
}
