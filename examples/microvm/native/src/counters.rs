//! What the VMM counts.

use std::sync::atomic::AtomicU64;

/// Exits by kind, and time that vCPUs were held back.
#[derive(Default)]
pub struct Counters {
    pub mmio_read: AtomicU64,
    pub mmio_write: AtomicU64,
    pub pio: AtomicU64,
    pub halt: AtomicU64,
    pub interrupted: AtomicU64,
    pub ring_full: AtomicU64,
    pub other: AtomicU64,
    pub doorbells: AtomicU64,
    pub throttled_ns: AtomicU64,
}
