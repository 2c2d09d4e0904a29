//! The core of towline: BAR policies, dirty tracking, the migration stream, the VFIO migration state machine and
//! the forecast. `no_std` with `alloc`, without dependencies and without I/O, so that the native library, the
//! wasm build and a Rust VMM share one implementation.
#![no_std]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod bar;
pub mod bucket;
pub mod channel;
pub mod crc;
pub mod dirty;
pub mod forecast;
pub mod fsm;
pub mod memory;
pub mod stream;
