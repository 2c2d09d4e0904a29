//! The tenant: an NVMe host as a guest's driver and workload would be one, made to be migrated.
//!
//! Its whole state (queue positions, commands in flight, what it expects in every block, random numbers, counters) is in
//! guest memory, at addresses that [`Layout`] gives. What a run keeps outside is a write-through copy. So a tenant that is
//! attached in another process goes on only with what was migrated.
//!
//! It encodes its commands by itself instead of using the device's types, so that a mistake in those does not cancel itself out.
//! It follows what the Linux driver does (`drivers/nvme/host/pci.c`, `core.c`): registers in 32-bit halves, CC written before EN, Set
//! Features 07h, one AER, MSI-X vector = queue id, PRP lists.
//!
//! Every completion goes to a log that somebody else judges ([`record`]); the tenant itself proves nothing.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod block;
mod boot;
mod control;
mod error;
mod guest;
mod interrupts;
mod layout;
pub mod record;
mod ring;
mod slot;
mod state;
mod tenant;
mod vcpu;
mod view;

pub use control::{Drained, MAX_THROTTLE_PERCENT, TenantHandle, TenantStats};
pub use error::TenantError;
pub use interrupts::TenantInterrupts;
pub use layout::{Layout, MAX_IO_QUEUE_PAIRS, MAX_QUEUE_DEPTH, MAX_UNITS_PER_COMMAND, TenantSpec, UNIT_BYTES};
pub use tenant::{RunOptions, Tenant};
pub use view::DeviceView;
