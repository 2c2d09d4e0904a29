//! What a session is made of, taken out of JSON and of JavaScript's objects.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use napi::bindgen_prelude::{ClassInstance, FromNapiValue, Function, JsObjectValue as _, Object, ValidateNapiValue};
use serde::Deserialize;
use serde_json::Value;
use towline_core::memory::MemoryRange;
use towline_engine::faultpoints::FaultPoints;
use towline_engine::fence::Fence;
use towline_engine::link::Link;
use towline_engine::session::{NamedSource, SessionFunction, Terms};
use towline_linux::memory::MappedMemory;
use uuid::Uuid;

use super::{PROGRESS_QUEUE, Progress};
use crate::channel::{NativeDirtySource, NativeStateChannel};
use crate::fault::Fault;
use crate::journal::NativeFence;
use crate::link::NativeLink;
use crate::memory::GuestMemory;
use crate::numbers::u64_of_json;

pub(super) const PAGE_SIZE_BYTES: u64 = 4096;
/// A caller that owns its connection ends it itself.
const NO_LIMIT: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ConfigJson {
    pub session: Option<Uuid>,
    pub bandwidth_bytes_per_second: Option<f64>,
    pub record_path: Option<PathBuf>,
    #[serde(default)]
    pub sections: Vec<String>,
    pub faults: Option<FaultsJson>,
    /// What is left to the caller; nothing by default.
    #[serde(default)]
    pub terms: Terms,
    /// Decimal; an epoch below is not taken.
    pub least_epoch: Option<Value>,
    /// The caller knows that the destination's memory was never written.
    #[serde(default)]
    pub fresh_destination: bool,
    /// Of the link, in milliseconds; its own where this is missing, none where it is 0.
    pub idle_timeout_ms: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FaultsJson {
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
pub(super) struct Parts {
    /// Left out where the session makes its own.
    pub link: Option<Box<dyn Link>>,
    pub fence: Arc<dyn Fence>,
    pub memory: Arc<MappedMemory>,
    pub functions: Vec<SessionFunction>,
    pub dirty: Vec<NamedSource>,
    pub progress: Option<Progress>,
}

/// A property of `object`, whatever its type is.
fn property<T: FromNapiValue + ValidateNapiValue>(object: &Object<'_>, name: &str) -> Result<T, Fault> {
    object.get_named_property::<T>(name).map_err(|e| Fault::argument(format!("{name}: {}", e.reason)))
}

pub(super) fn parts(object: &Object<'_>) -> Result<Parts, Fault> {
    let mut functions = Vec::new();
    let mut dirty = Vec::new();
    for function in property::<Vec<Object<'_>>>(object, "functions")? {
        let id: String = property(&function, "uuid")?;
        let channel = property::<ClassInstance<'_, NativeStateChannel>>(&function, "channel")?.lend();
        let sources: Vec<ClassInstance<'_, NativeDirtySource>> = property(&function, "dirty")?;
        for (i, source) in sources.iter().enumerate() {
            dirty.push(NamedSource { name: format!("{id}#{i}"), source: source.lend() });
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
    let link = property::<Option<ClassInstance<'_, NativeLink>>>(object, "link")?.map(|l| l.take()).transpose()?;
    Ok(Parts { link, fence, memory, functions, dirty, progress })
}

/// The link, with its idle timeout as the configuration says.
pub(super) fn link_of(link: Option<Box<dyn Link>>, config: &ConfigJson) -> Result<Box<dyn Link>, Fault> {
    let mut link = link.ok_or_else(|| Fault::argument("link: it is missing"))?;
    match config.idle_timeout_ms {
        None => {}
        Some(0) => link.set_idle_timeout(NO_LIMIT),
        Some(ms) => link.set_idle_timeout(Duration::from_millis(u64::from(ms))),
    }
    Ok(link)
}

pub(super) fn config_of(json: &str) -> Result<ConfigJson, Fault> {
    serde_json::from_str(json)
        .map_err(|e| Fault::argument(format!("the session's configuration has not its documented shape: {e}")))
}

pub(super) fn points(faults: Option<&FaultsJson>) -> Result<Arc<FaultPoints>, Fault> {
    let Some(faults) = faults else { return Ok(Arc::default()) };
    let mut points = FaultPoints::default();
    points.kill_at.clone_from(&faults.kill_at);
    points.fail_at.clone_from(&faults.fail_at);
    points.skip_page_in = faults.skip_final_pages.as_ref().map(RangeJson::range).transpose()?;
    points.drop_last_state = faults.drop_last_state;
    points.run_after_release = faults.run_after_release;
    points.deaf_to_range = faults.skip_device_dirty.as_ref().map(RangeJson::range).transpose()?;
    points.check()?;
    Ok(Arc::new(points))
}
