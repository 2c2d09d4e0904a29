//! The names at which a crash or a failure can be rehearsed.

use napi_derive::napi;
use towline_engine::faultpoints::POINTS;

/// Every named point, in the order in which a migration reaches them on each side.
#[napi]
pub fn fault_points() -> Vec<String> {
    POINTS.iter().map(|point| (*point).to_owned()).collect()
}
