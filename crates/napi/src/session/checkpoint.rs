//! The steps of a session whose other end is a file.

use napi::Env;
use napi::bindgen_prelude::Object;
use napi_derive::napi;
use serde_json::json;

use super::destination::{AnswerJson, NativeDestinationSession, incoming_json};
use super::source::NativeSourceSession;
use super::{outcomes_json, send_progress};
use crate::fault::Fault;

#[napi]
impl NativeSourceSession {
    #[napi]
    pub fn resume_copied<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "resume-copied", |s, _| Ok(outcomes_json(&s.resume_copied()?)))
    }

    #[napi]
    pub fn seal<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "seal", |s, _| {
            let bytes = s.seal()?;
            Ok(json!({
                "epoch": s.epoch().to_string(), "bytes": bytes, "syncMs": s.timings().ms("sync"),
                "journalMs": s.timings().ms("journal-intent"),
            })
            .to_string())
        })
    }
}

#[napi]
impl NativeDestinationSession {
    #[napi]
    pub fn read_checkpoint<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "read-checkpoint", |r, progress| {
            let offer = r.session.read_checkpoint(&mut |done, total| {
                send_progress(progress, &json!({ "checkedBytes": done, "totalBytes": total }));
            })?;
            let mut value = incoming_json(offer);
            if let (Some(map), Some(verified)) = (value.as_object_mut(), r.session.verified()) {
                map.insert("mode".into(), json!(verified.mode));
                map.insert("bytes".into(), json!(verified.bytes));
                map.insert("pages".into(), json!(verified.pages));
            }
            Ok(value.to_string())
        })
    }

    #[napi]
    pub fn answer_checkpoint<'e>(&self, env: &'e Env, json: String) -> napi::Result<Object<'e>> {
        let answer = AnswerJson::of(&json)?;
        self.step(env, "answer-checkpoint", move |r, _| {
            let target = r.target.take().ok_or_else(|| Fault::closed("the target of the session"))?;
            let answered = r.session.answer_checkpoint(target, answer.mismatches)?;
            Ok(json!({ "accepted": answered.accepted, "mismatches": answered.mismatches }).to_string())
        })
    }

    #[napi]
    pub fn take_checkpoint<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "take-checkpoint", |r, _| {
            let epoch = r.session.take_checkpoint()?;
            let journal_ms = r.session.timings().ms("journal-commit");
            Ok(json!({ "epoch": epoch.to_string(), "journalMs": journal_ms }).to_string())
        })
    }

    #[napi]
    pub fn empty_checkpoint<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.step(env, "empty-checkpoint", |r, _| Ok(r.session.empty_checkpoint()?))
    }
}
