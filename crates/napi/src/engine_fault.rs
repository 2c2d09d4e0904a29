//! Errors of the engine on their way to JavaScript.

use serde_json::json;
use towline_engine::error::{EngineError, FenceError, LinkError};

use crate::fault::Fault;

impl From<EngineError> for Fault {
    fn from(e: EngineError) -> Self {
        let mut fault = Self::new(e.code(), e.to_string());
        fault.errno = e.errno();
        fault.nvme_status = e.nvme_status();
        if let EngineError::Channel { state, .. } = &e {
            fault.state = state.map(|s| format!("{s:?}"));
        }
        fault.details = match &e {
            EngineError::Mismatch(mismatches) => Some(json!({ "mismatches": mismatches })),
            _ => e.function().map(|f| json!({ "function": f })),
        };
        fault
    }
}

impl From<LinkError> for Fault {
    fn from(e: LinkError) -> Self {
        EngineError::from(e).into()
    }
}

impl From<FenceError> for Fault {
    fn from(e: FenceError) -> Self {
        EngineError::from(e).into()
    }
}
