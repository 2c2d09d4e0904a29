//! The Node.js binding: every class and function here only carries calls to the crates below. No logic lives in it.
#![allow(missing_docs)]
// The documentation of this surface is `ts/native/binding.ts`, where its only caller is.
// Exports are reached by napi's registration only, which is left out of tests.
#![cfg_attr(test, allow(dead_code, clippy::expect_used, clippy::panic))]

mod admin;
mod bar;
mod bridge;
mod channel;
mod devlink;
mod dirty_sources;
mod engine_fault;
mod fault;
mod faultpoints;
mod forecast;
mod host;
mod inspect;
mod journal;
mod link;
mod memory;
mod numbers;
mod promise;
mod session;
mod subsystem;
mod tenant;
mod vfio;
mod vfio_user;
mod workers;

/// The version of this library.
#[napi_derive::napi]
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}
