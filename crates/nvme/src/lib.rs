//! NVMe for live migration: the commands and structures of host managed live migration (NVM Express Base 2.1), a client
//! that drives a controlling function by them, a state channel and a dirty source on top of that client, and an embedded
//! subsystem (`model`) that obeys them.
//!
//! Everything that reads bytes takes them as untrusted: counts are checked against limits before anything is allocated, and
//! damaged structures are errors.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod admin;
pub mod command;
pub mod counts;
pub mod hmlm;
pub mod identify;
pub mod limit;
pub mod migration;
pub mod model;
pub mod resources;
pub mod state;
pub mod status;
pub mod track;
pub mod vendor_state;
pub mod wire;
