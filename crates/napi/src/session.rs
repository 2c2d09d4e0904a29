//! Both sides of a migration as objects of JavaScript: each step of the engine's sessions is a promise.

mod checkpoint;
mod destination;
mod parts;
mod source;

use std::sync::{Arc, Mutex, PoisonError};

use napi::Env;
use napi::bindgen_prelude::Object;
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use towline_engine::session::{FunctionOutcome, Timings};

use crate::fault::Fault;
use crate::promise::run;

/// Progress beyond what JavaScript has taken is dropped: the next one says more.
const PROGRESS_QUEUE: usize = 16;

type Progress = ThreadsafeFunction<String, (), String, napi::Status, false, true, PROGRESS_QUEUE>;

/// One of several sections, whose bytes lie one after the other.
#[derive(Deserialize, Serialize)]
struct SectionJson {
    name: String,
    /// How many.
    bytes: usize,
    fds: Vec<SectionFdJson>,
}

/// A descriptor of a section.
#[derive(Deserialize, Serialize)]
struct SectionFdJson {
    name: String,
    fd: i32,
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
        if self.session.try_lock().is_ok_and(|session| session.is_none()) {
            return;
        }
        let this = self.clone();
        let dropped = move || drop(this.session.lock().unwrap_or_else(PoisonError::into_inner).take());
        // Where no thread can be had, the last reference drops it.
        let _ = std::thread::Builder::new().name("towline-close".into()).spawn(dropped);
    }

    /// As [`Shared::close`], and tells when it is done: what the session held is free then.
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
