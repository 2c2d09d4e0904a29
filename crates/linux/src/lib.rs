//! What towline asks of Linux. Every system call that needs `unsafe` is here, so that no other crate of the data plane has any.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod clock;
pub mod memory;
pub mod vfio;
