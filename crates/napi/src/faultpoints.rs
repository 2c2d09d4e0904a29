//! The names at which a crash or a failure can be rehearsed.

use napi_derive::napi;
use towline_engine::faultpoints::{CHECKPOINT_POINTS, POINTS};

/// Every named point, in the order in which a migration reaches them on each side.
#[napi]
pub fn fault_points() -> Vec<String> {
    POINTS.iter().map(|point| (*point).to_owned()).collect()
}

/// Those that only a checkpoint or its restore passes.
#[napi]
pub fn checkpoint_points() -> Vec<String> {
    CHECKPOINT_POINTS.iter().map(|point| (*point).to_owned()).collect()
}
