//! Failures on their way to JavaScript: the message of the thrown `Error` is the JSON of [`Fault`], and one place in
//! TypeScript (`ts/errors.ts`) makes the typed error of it.

use serde_json::{Map, Value, json};
use towline_core::channel::{ChannelError, ChannelErrorKind};

/// What went wrong, in the words of the layer that knows.
#[derive(Debug, Clone)]
pub struct Fault {
    pub code: &'static str,
    pub message: String,
    pub errno: Option<i32>,
    pub nvme_status: Option<u16>,
    pub state: Option<String>,
    pub details: Option<Value>,
}

impl Fault {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), errno: None, nvme_status: None, state: None, details: None }
    }

    /// A caller's argument does not fit.
    pub fn argument(message: impl Into<String>) -> Self {
        Self::new("ERR_TOWLINE_INVALID_ARGUMENT", message)
    }

    /// The object was closed, or its part was handed to a session already.
    pub fn closed(what: &str) -> Self {
        Self::new("ERR_TOWLINE_CLOSED", format!("{what} is closed, or was handed to a session already"))
    }

    pub fn to_json(&self) -> String {
        let mut map = Map::new();
        map.insert("code".into(), json!(self.code));
        map.insert("message".into(), json!(self.message));
        if let Some(errno) = self.errno {
            map.insert("errno".into(), json!(errno));
        }
        if let Some(status) = self.nvme_status {
            map.insert("nvmeStatus".into(), json!(status));
        }
        if let Some(state) = &self.state {
            map.insert("state".into(), json!(state));
        }
        if let Some(details) = &self.details {
            map.insert("details".into(), details.clone());
        }
        Value::Object(map).to_string()
    }
}

impl From<Fault> for napi::Error {
    fn from(fault: Fault) -> Self {
        napi::Error::new(napi::Status::GenericFailure, fault.to_json())
    }
}

impl From<ChannelError> for Fault {
    fn from(e: ChannelError) -> Self {
        let code = match e.kind {
            ChannelErrorKind::State => "ERR_TOWLINE_STATE",
            ChannelErrorKind::BadState => "ERR_TOWLINE_BAD_STATE",
            ChannelErrorKind::Limit => "ERR_TOWLINE_LIMIT",
            ChannelErrorKind::Gone => "ERR_TOWLINE_GONE",
            ChannelErrorKind::Unsupported => "ERR_TOWLINE_UNSUPPORTED",
            ChannelErrorKind::Cancelled => "ERR_TOWLINE_ABORTED",
            // The enum is non-exhaustive: what is new there is a failure of the device until it has a code of its own.
            _ => "ERR_TOWLINE_DEVICE",
        };
        Self {
            code,
            message: e.message,
            errno: e.errno,
            nvme_status: e.nvme_status,
            state: e.state.map(|s| format!("{s:?}")),
            details: None,
        }
    }
}
