//! A tenant that stands still: booted, or found in the memory of a guest.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use towline_core::bar::BarTarget;
use towline_core::dirty::MarkLog;
use towline_core::memory::GuestMemory;

use crate::boot;
use crate::control::TenantHandle;
use crate::error::TenantError;
use crate::guest::{Device, Guest};
use crate::interrupts::TenantInterrupts;
use crate::layout::{Layout, TenantSpec};
use crate::state::State;

/// How a tenant runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunOptions {
    /// Says in every record which process it is; must differ from host to host.
    pub host_tag: u8,
    /// Submits flushes and nothing else, leaves its working set alone and does not poll. What it does then shows only in its log.
    pub flush_only: bool,
}

/// A tenant that stands still. See the crate's documentation.
pub struct Tenant {
    pub(crate) memory: Arc<dyn GuestMemory>,
    pub(crate) device: Device,
    pub(crate) spec: TenantSpec,
    pub(crate) layout: Layout,
}

impl Tenant {
    /// Resets the controller, brings it up as Linux would and writes the tenant's first state into `memory`.
    ///
    /// `registers` is the controller's register page (CAP at 0); `doorbells` the register space in which its doorbells are at
    /// `spec.doorbell_base`, often the same. The namespace is expected to be all zero.
    ///
    /// # Errors
    /// What the specification, the memory or the controller does not allow. The controller is then left as it is.
    pub fn boot(
        memory: Arc<dyn GuestMemory>,
        registers: Arc<dyn BarTarget>,
        doorbells: Arc<dyn BarTarget>,
        spec: TenantSpec,
    ) -> Result<Self, TenantError> {
        let layout = Layout::new(&spec)?;
        let device = Device {
            registers,
            doorbells,
            doorbell_base: spec.doorbell_base,
            doorbell_stride: spec.doorbell_stride.into(),
        };
        boot::boot(&Guest::new(Arc::clone(&memory), None), &device, &spec, &layout)?;
        Ok(Self { memory, device, spec, layout })
    }

    /// Finds the tenant whose state is at `base_gpa`. Writes nothing: memory is as it was, byte for byte, until [`Tenant::run`].
    ///
    /// # Errors
    /// [`TenantError::NoState`] where there is none.
    pub fn attach(
        memory: Arc<dyn GuestMemory>,
        registers: Arc<dyn BarTarget>,
        doorbells: Arc<dyn BarTarget>,
        base_gpa: u64,
        doorbell_base: u64,
    ) -> Result<Self, TenantError> {
        let (_, spec) = State::load(&Guest::new(Arc::clone(&memory), None), base_gpa, doorbell_base)?;
        let layout = Layout::new(&spec)?;
        let device = Device { registers, doorbells, doorbell_base, doorbell_stride: spec.doorbell_stride.into() };
        Ok(Self { memory, device, spec, layout })
    }

    /// What it is.
    #[must_use]
    pub fn spec(&self) -> &TenantSpec {
        &self.spec
    }

    /// Where it has what.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Starts its CPU: a thread. The epoch in its memory goes up by one first.
    ///
    /// Its records go to `log`, a pipe or file that blocks while its reader is slow. Every write to memory is followed by a
    /// mark in `marks`. `interrupts` is what the device raises into.
    ///
    /// # Errors
    /// [`TenantError::NoState`], [`TenantError::Memory`], [`TenantError::Thread`]; nothing runs then.
    pub fn run(
        self,
        log: OwnedFd,
        marks: Arc<MarkLog>,
        interrupts: Arc<TenantInterrupts>,
        options: RunOptions,
    ) -> Result<TenantHandle, TenantError> {
        TenantHandle::start(self, log, marks, interrupts, options)
    }
}
