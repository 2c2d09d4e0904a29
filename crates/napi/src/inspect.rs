//! A migration stream, explained event by event.

use std::sync::{Mutex, PoisonError};

use napi_derive::napi;
use serde_json::{Value, json};
use towline_core::stream::{Decoder, Event, Limits, RunKind, StreamError};
use uuid::Uuid;

use crate::fault::Fault;

/// See `NativeStreamInspector` in `ts/native/binding.ts`.
#[napi]
pub struct StreamInspector {
    decoder: Mutex<Decoder>,
}

#[napi]
impl StreamInspector {
    /// `limits_json`: `{maxFrameBytes?, maxSections?, maxRuns?, connection?}`.
    #[napi(constructor)]
    pub fn new(limits_json: String) -> napi::Result<Self> {
        let json: Value =
            serde_json::from_str(&limits_json).map_err(|e| Fault::argument(format!("the limits are not JSON: {e}")))?;
        let mut limits = if json.get("connection").and_then(Value::as_bool) == Some(true) {
            Limits::connection()
        } else {
            Limits::default()
        };
        let field = |name: &str| json.get(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        limits.max_frame_bytes = field("maxFrameBytes").unwrap_or(limits.max_frame_bytes);
        limits.max_sections = field("maxSections").unwrap_or(limits.max_sections);
        limits.max_runs = field("maxRuns").unwrap_or(limits.max_runs);
        Ok(Self { decoder: Mutex::new(Decoder::new(limits)) })
    }

    /// The events that `bytes` complete, and the damage where there is some: `{events, damage: null | {offset, sequence, message}}`.
    #[napi]
    pub fn push(&self, bytes: &[u8]) -> String {
        let mut events = Vec::new();
        let mut decoder = self.decoder.lock().unwrap_or_else(PoisonError::into_inner);
        let damage = decoder.push(bytes, &mut |event| events.push(describe(&event))).err().map(damage);
        json!({ "events": events, "damage": damage }).to_string()
    }

    /// Whether the stream is complete: `{damage: null | {…}}`.
    #[napi]
    pub fn finish(&self) -> String {
        let decoder = self.decoder.lock().unwrap_or_else(PoisonError::into_inner);
        json!({ "damage": decoder.finish().err().map(damage) }).to_string()
    }
}

fn damage(e: StreamError) -> Value {
    json!({ "offset": e.offset.to_string(), "sequence": e.sequence, "message": e.to_string() })
}

fn describe(event: &Event<'_>) -> Value {
    match event {
        Event::Header(h) => json!({
            "type": "header", "major": h.major, "minor": h.minor, "session": Uuid::from_bytes(h.session).to_string(),
        }),
        Event::SectionBegin { channel, section } => json!({
            "type": "section-begin", "channel": channel, "kind": format!("{:?}", section.kind).to_lowercase(),
            "function": Uuid::from_bytes(section.function).to_string(), "name": section.name, "format": section.format,
        }),
        Event::StateChunk { channel, data } => {
            json!({ "type": "state-chunk", "channel": channel, "bytes": data.len() })
        }
        Event::Pages { channel, pages } => {
            let (mut data, mut zero, mut first, mut last) = (0u64, 0u64, u64::MAX, 0u64);
            for run in pages.runs {
                match run.kind {
                    RunKind::Zero => zero += u64::from(run.len),
                    RunKind::Data => data += u64::from(run.len),
                }
                first = first.min(run.gpa);
                last = last.max(run.gpa.saturating_add(u64::from(run.len)));
            }
            json!({
                "type": "pages", "channel": channel, "pageSizeBytes": pages.summary.page_size_bytes, "dataBytes": data, "zeroBytes": zero,
                "from": first.to_string(), "to": last.to_string(),
            })
        }
        Event::SectionData { channel, data } => {
            json!({ "type": "section-data", "channel": channel, "bytes": data.len() })
        }
        Event::RoundEnd { channel, round } => json!({
            "type": "round-end", "channel": channel, "round": round.round, "pages": round.pages, "bytes": round.bytes,
            "final": round.is_final,
        }),
        Event::Manifest { channel, digest } => json!({
            "type": "manifest", "channel": channel, "frames": digest.frames(), "bytes": digest.bytes(),
        }),
        Event::Dialogue(message) => json!({
            "type": "dialogue", "bytes": message.len(),
            "message": serde_json::from_slice::<Value>(message).ok().and_then(|v| v.get("type").cloned()),
        }),
        Event::Skipped { frame_type, channel, length } => json!({
            "type": "skipped", "frameType": frame_type, "channel": channel, "bytes": length,
        }),
        Event::StreamEnd { .. } => json!({ "type": "stream-end" }),
        _ => json!({ "type": "unknown" }),
    }
}
