//! An embedded NVMe subsystem: the controlling PF with host managed live migration, further PFs, VFs and SIOV-like controllers
//! over namespaces in files. It needs no root and no hardware, and obeys the same commands as a device would.
//!
//! A guest reaches a controller by its BAR ([`Controller`] is a [`towline_core::bar::BarTarget`]), the controller reaches the
//! guest by [`towline_core::memory::GuestMemory`] and [`InterruptSink`]. Whatever a guest writes there ends in an NVMe status
//! or in CSTS.CFS. One worker thread a controller; it sleeps while there is nothing to do.

mod admin;
mod config;
mod controller;
mod dma;
mod embedded_admin;
mod engine;
mod events;
mod execute;
mod faults;
mod features;
mod front;
mod host_memory;
mod identify;
mod interrupts;
mod io;
mod limit;
mod log;
mod migrate;
mod namespace;
mod parent_bar;
mod pools;
mod queue;
mod signal;
mod snapshot;
mod subsystem;
mod tracking;
mod virt;

pub use config::{
    MAX_FURTHER_PFS, MAX_NAMESPACES, MAX_QUEUES_PER_FUNCTION, MAX_SECONDARIES, MAX_VECTORS_PER_FUNCTION, ModelError,
    NamespaceConfig, SubsystemConfig,
};
pub use controller::{Controller, ControllerKind};
pub use embedded_admin::EmbeddedAdmin;
pub use faults::{CommandSet, FaultAction, FaultId, FaultRule, Faults, Rates};
pub use front::DOORBELLS;
pub use interrupts::InterruptSink;
pub use subsystem::{CONTROLLING_CNTLID, Subsystem};
