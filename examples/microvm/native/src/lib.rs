//! The native half of the microvm. `native/index.d.ts` documents what JavaScript sees; `exports` is the binding, everything else does not know of it.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod boot;
pub mod bus;
pub mod control;
pub mod counters;
pub mod device;
pub mod error;
pub mod exports;
pub mod filter;
pub mod layout;
pub mod machine;
pub mod prefault;
pub mod ram;
pub mod records;
pub mod sections;
pub mod state;
pub mod throttle;
pub mod vcpu;
pub mod vm;
