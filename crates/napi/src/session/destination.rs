//! The destination's session.

use std::os::fd::{IntoRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use napi::Env;
use napi::bindgen_prelude::{Object, Uint8Array};
use napi_derive::napi;
use serde::Deserialize;
use serde_json::{Value, json};
use towline_engine::cancel::Cancel;
use towline_engine::dialogue::{MAX_SECTION_BYTES, Mismatch};
use towline_engine::faultpoints::FaultPoints;
use towline_engine::session::{DestinationConfig, DestinationSession, DestinationTarget, Incoming, ReceiveProgress};

use super::parts::{Parts, config_of, link_of, parts, points};
use super::{Progress, SectionFdJson, SectionJson, Shared, outcomes_json, send_progress, timings_json};
use crate::fault::Fault;
use crate::memory::GuestMemory;
use crate::numbers::u64_of_json;
use crate::promise::run;

/// The destination's session, and what it is received into until the answer takes it.
pub(super) struct Receiving {
    pub(super) session: DestinationSession,
    pub(super) target: Option<DestinationTarget>,
}

/// See `NativeDestinationSession` in `ts/native/binding.ts`.
#[napi]
pub struct NativeDestinationSession {
    shared: Arc<Shared<Receiving>>,
    cancel: Cancel,
    points: Arc<FaultPoints>,
}

impl Drop for NativeDestinationSession {
    fn drop(&mut self) {
        self.shared.close();
    }
}

#[napi]
pub fn destination_session(config_json: String, parts_object: Object<'_>) -> napi::Result<NativeDestinationSession> {
    let config = config_of(&config_json)?;
    let points = points(config.faults.as_ref())?;
    let mut parts = parts(&parts_object)?;
    let link = link_of(parts.link.take(), &config)?;
    let cancel = Cancel::new();
    let destination = destination_config(&parts, &cancel, &points);
    let session = DestinationSession::with_terms(destination, config.terms, link).map_err(Fault::from)?;
    Ok(NativeDestinationSession::of(session, parts, cancel, points))
}

/// A session that restores the checkpoint at `path`.
#[napi]
pub fn restore_session(
    config_json: String,
    parts_object: Object<'_>,
    path: String,
) -> napi::Result<NativeDestinationSession> {
    let config = config_of(&config_json)?;
    let points = points(config.faults.as_ref())?;
    let parts = parts(&parts_object)?;
    let cancel = Cancel::new();
    let destination = destination_config(&parts, &cancel, &points);
    let session = DestinationSession::restore(destination, Path::new(&path)).map_err(Fault::from)?;
    Ok(NativeDestinationSession::of(session, parts, cancel, points))
}

fn destination_config(parts: &Parts, cancel: &Cancel, points: &Arc<FaultPoints>) -> DestinationConfig {
    DestinationConfig {
        fence: parts.fence.clone(),
        expected: parts.functions.iter().map(|f| f.id.clone()).collect(),
        cancel: cancel.clone(),
        points: points.clone(),
        max_section_bytes: MAX_SECTION_BYTES,
    }
}

/// The sections that came.
#[napi(object)]
pub struct ReceivedSections {
    /// Their layout, as JSON.
    pub layout: String,
    /// Their bytes, one after the other.
    pub bytes: Uint8Array,
}

#[derive(Deserialize)]
pub(super) struct AnswerJson {
    pub(super) mismatches: Vec<Mismatch>,
}

impl AnswerJson {
    pub(super) fn of(json: &str) -> Result<Self, Fault> {
        serde_json::from_str(json).map_err(|e| Fault::argument(format!("the answer has not its documented shape: {e}")))
    }
}

pub(super) fn incoming_json(incoming: Incoming) -> Value {
    match incoming {
        Incoming::Offer(offer) => {
            let memory: Vec<Value> =
                offer.memory.iter().map(|m| json!({ "gpa": m.gpa.to_string(), "len": m.len.to_string() })).collect();
            json!({
                "type": "offer", "session": offer.session.to_string(), "epoch": offer.epoch.to_string(),
                "descriptor": offer.descriptor, "memory": memory, "sections": offer.sections,
            })
        }
        Incoming::Asked { session, epoch, outcome } => json!({
            "type": "asked", "session": session.to_string(), "epoch": epoch.to_string(), "outcome": outcome,
        }),
    }
}

fn progress_json(p: &ReceiveProgress) -> Value {
    json!({
        "round": p.rounds, "rounds": p.rounds, "pages": p.pages, "memoryBytes": p.memory_bytes, "stateBytes": p.state_bytes,
        "zeroPages": p.zero_pages, "wireBytes": p.wire_bytes,
    })
}

impl NativeDestinationSession {
    fn of(session: DestinationSession, parts: Parts, cancel: Cancel, points: Arc<FaultPoints>) -> Self {
        let target = DestinationTarget { functions: parts.functions, memory: parts.memory };
        let receiving = Receiving { session, target: Some(target) };
        let shared = Arc::new(Shared { session: Mutex::new(Some(receiving)), progress: parts.progress });
        Self { shared, cancel, points }
    }

    pub(super) fn step<'e, T, F>(&self, env: &'e Env, what: &'static str, work: F) -> napi::Result<Object<'e>>
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
        self.step(env, "read-offer", |r, _| Ok(incoming_json(r.session.read_offer()?).to_string()))
    }

    #[napi]
    pub fn answer<'e>(&self, env: &'e Env, json: String) -> napi::Result<Object<'e>> {
        let answer = AnswerJson::of(&json)?;
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

    /// Where memory is passed: maps it. The object is JavaScript's from then on.
    #[napi]
    pub fn receive_memory<'e>(&self, env: &'e Env, shrinkable: bool) -> napi::Result<Object<'e>> {
        self.step(env, "receive-memory", move |r, _| Ok(GuestMemory::of(r.session.receive_memory(shrinkable)?)))
    }

    #[napi]
    pub fn memory_taken<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "memory-taken", |r, _| Ok(r.session.memory_taken()?))
    }

    #[napi]
    pub fn receive<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "receive", |r, progress| {
            r.session.receive(&mut |p| send_progress(progress, &progress_json(p)))?;
            Ok(progress_json(&r.session.progress()).to_string())
        })
    }

    /// All sections, in the order in which they were offered; their descriptors are the caller's from then on. In one piece: the guest waits, and
    /// each value that JavaScript gets takes its time.
    #[napi]
    pub fn take_sections(&self) -> napi::Result<ReceivedSections> {
        Ok(self.shared.with(|r, _| {
            let names: Vec<String> = r.session.sections().iter().map(|s| s.name.clone()).collect();
            let fds: Result<Vec<_>, _> = names.iter().map(|name| r.session.take_section_descriptors(name)).collect();
            // Descriptors are let go of only once nothing can fail any more.
            let fds = fds?;
            let mut bytes = Vec::new();
            let mut layout = Vec::new();
            for (section, fds) in r.session.sections().iter().zip(fds) {
                bytes.extend_from_slice(&section.data);
                let own = |(name, fd): (String, OwnedFd)| SectionFdJson { name, fd: fd.into_raw_fd() };
                let fds = fds.into_iter().map(own).collect();
                layout.push(SectionJson { name: section.name.clone(), bytes: section.data.len(), fds });
            }
            Ok(ReceivedSections { layout: json!(layout).to_string(), bytes: Uint8Array::new(bytes) })
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
    pub fn timings(&self) -> napi::Result<String> {
        Ok(self.shared.with(|r, _| Ok(timings_json(r.session.timings())))?)
    }

    #[napi]
    pub fn end<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.shared.end(env)
    }
}
