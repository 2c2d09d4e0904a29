//! The rehearsal tenant as an object of JavaScript.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use napi::Env;
use napi::bindgen_prelude::{BigInt, Object};
use napi_derive::napi;
use serde_json::{Value, json};
use towline_tenant::{
    DeviceView, Layout, MAX_THROTTLE_PERCENT, RunOptions, Tenant, TenantError, TenantHandle, TenantInterrupts,
    TenantSpec,
};

use crate::fault::Fault;
use crate::memory::{GuestMemory, MemoryParts};
use crate::numbers::{u64_of, u64_of_json};
use crate::promise::run;
use crate::subsystem::NativeSubsystem;

impl From<TenantError> for Fault {
    fn from(e: TenantError) -> Self {
        let code = match &e {
            TenantError::Spec(_) => "ERR_TOWLINE_INVALID_ARGUMENT",
            _ => "ERR_TOWLINE_DEVICE",
        };
        Self::new(code, format!("the tenant: {e}"))
    }
}

struct Inner {
    memory: MemoryParts,
    view: DeviceView,
    interrupts: Arc<TenantInterrupts>,
    base_gpa: u64,
    /// Stands still, or is where `handle` came from.
    still: Option<Tenant>,
    handle: Option<Arc<TenantHandle>>,
}

/// See `NativeTenant` in `ts/native/binding.ts`.
#[napi]
pub struct NativeTenant {
    inner: Arc<Mutex<Inner>>,
    layout: Layout,
    host_tag: u8,
}

fn spec_of(json: &str) -> Result<(TenantSpec, u8), Fault> {
    let value: Value =
        serde_json::from_str(json).map_err(|e| Fault::argument(format!("the tenant's spec is not JSON: {e}")))?;
    let defaults = TenantSpec::default();
    let long = |name: &str, default: u64| value.get(name).map_or(Ok(default), |v| u64_of_json(name, v));
    let short = |name: &str, default: u32| {
        u32::try_from(long(name, u64::from(default))?)
            .map_err(|_| Fault::argument(format!("{name} has to be below 2^32")))
    };
    let tag = u8::try_from(long("hostTag", 1)?).map_err(|_| Fault::argument("hostTag has to be 0 to 255"))?;
    let spec = TenantSpec {
        base_gpa: long("baseGpa", defaults.base_gpa)?,
        memory_len: long("memoryBytes", defaults.memory_len)?,
        queue_depth: short("queueDepth", defaults.queue_depth)?,
        io_queue_pairs: short("ioQueuePairs", defaults.io_queue_pairs)?,
        units: long("units", defaults.units)?,
        nsid: short("nsid", defaults.nsid)?,
        working_set_pages: long("workingSetPages", defaults.working_set_pages)?,
        cpu_dirty_bytes_per_s: long("cpuDirtyBytesPerSecond", defaults.cpu_dirty_bytes_per_s)?,
        target_iops: short("targetIops", defaults.target_iops)?,
        read_percent: short("readPercent", defaults.read_percent)?,
        seed: long("seed", defaults.seed)?,
        doorbell_base: defaults.doorbell_base,
        doorbell_stride: defaults.doorbell_stride,
    };
    Ok((spec, tag))
}

fn view_of(subsystem: &NativeSubsystem, cntlid: u32) -> Result<DeviceView, Fault> {
    let (subsystem, controller) = subsystem.controller(cntlid)?;
    Ok(DeviceView::of_embedded(&subsystem, &controller)?)
}

/// Boots a tenant on an embedded function.
#[napi]
pub fn boot_tenant<'e>(
    env: &'e Env,
    subsystem: &NativeSubsystem,
    cntlid: u32,
    memory: &GuestMemory,
    spec_json: String,
) -> napi::Result<Object<'e>> {
    let view = view_of(subsystem, cntlid)?;
    let interrupts = subsystem.interrupts(cntlid)?;
    let memory = memory.parts()?;
    let (mut spec, host_tag) = spec_of(&spec_json)?;
    spec.doorbell_base = view.doorbell_base;
    run(env, "boot", move || {
        let base_gpa = spec.base_gpa;
        let tenant = Tenant::boot(memory.memory.clone(), view.registers.clone(), view.doorbells.clone(), spec)?;
        let layout = tenant.layout().clone();
        let inner = Inner { memory, view, interrupts, base_gpa, still: Some(tenant), handle: None };
        Ok(NativeTenant { inner: Arc::new(Mutex::new(inner)), layout, host_tag })
    })
}

/// Takes up the tenant whose state is in guest memory.
#[napi]
pub fn attach_tenant<'e>(
    env: &'e Env,
    subsystem: &NativeSubsystem,
    cntlid: u32,
    memory: &GuestMemory,
    state_gpa: BigInt,
    host_tag: u32,
) -> napi::Result<Object<'e>> {
    let view = view_of(subsystem, cntlid)?;
    let interrupts = subsystem.interrupts(cntlid)?;
    let memory = memory.parts()?;
    let base_gpa = u64_of("stateGpa", &state_gpa)?;
    let host_tag = u8::try_from(host_tag).map_err(|_| Fault::argument("hostTag has to be 0 to 255"))?;
    run(env, "attach", move || {
        let tenant = attach(&memory, &view, base_gpa)?;
        let layout = tenant.layout().clone();
        let inner = Inner { memory, view, interrupts, base_gpa, still: Some(tenant), handle: None };
        Ok(NativeTenant { inner: Arc::new(Mutex::new(inner)), layout, host_tag })
    })
}

fn attach(memory: &MemoryParts, view: &DeviceView, base_gpa: u64) -> Result<Tenant, Fault> {
    let (registers, doorbells) = (view.registers.clone(), view.doorbells.clone());
    Ok(Tenant::attach(memory.memory.clone(), registers, doorbells, base_gpa, view.doorbell_base)?)
}

#[napi(object)]
pub struct TenantRun {
    pub log_fd: i32,
    pub flush_only: bool,
}

impl NativeTenant {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self) -> Result<Arc<TenantHandle>, Fault> {
        self.lock().handle.clone().ok_or_else(|| Fault::new("ERR_TOWLINE_STATE", "the tenant does not run"))
    }
}

#[napi]
impl NativeTenant {
    #[napi]
    pub fn layout(&self) -> String {
        let range =
            |r: towline_core::memory::MemoryRange| json!({ "gpa": r.gpa.to_string(), "len": r.len.to_string() });
        json!({
            "stateGpa": self.layout.state().to_string(),
            "telemetry": range(self.layout.telemetry()),
            "workingSet": range(self.layout.working_set()),
            "data": range(self.layout.buffers()),
        })
        .to_string()
    }

    #[napi]
    pub fn run(&self, options: TenantRun) -> napi::Result<()> {
        if options.log_fd < 0 {
            return Err(Fault::argument(format!("{} is not a file descriptor", options.log_fd)).into());
        }
        // SAFETY: borrowed for the duplication in the same statement; a number that is not open fails there with EBADF.
        let borrowed = unsafe { BorrowedFd::borrow_raw(options.log_fd) };
        let log = borrowed
            .try_clone_to_owned()
            .map_err(|e| Fault { errno: e.raw_os_error(), ..Fault::new("ERR_TOWLINE_SYSTEM", format!("dup: {e}")) })?;
        let mut inner = self.lock();
        if inner.handle.is_some() {
            return Err(Fault::new("ERR_TOWLINE_STATE", "the tenant runs already").into());
        }
        let tenant = match inner.still.take() {
            Some(tenant) => tenant,
            None => attach(&inner.memory, &inner.view, inner.base_gpa)?,
        };
        let how = RunOptions { host_tag: self.host_tag, flush_only: options.flush_only };
        let handle = tenant.run(log, inner.memory.marks.clone(), inner.interrupts.clone(), how).map_err(Fault::from)?;
        inner.handle = Some(Arc::new(handle));
        Ok(())
    }

    #[napi]
    pub fn pause<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        let handle = self.handle()?;
        run(env, "tenant-pause", move || {
            handle.pause();
            Ok(())
        })
    }

    #[napi]
    pub fn resume(&self) -> napi::Result<()> {
        self.handle()?.resume();
        Ok(())
    }

    #[napi]
    pub fn throttle(&self, percent: u32) -> napi::Result<()> {
        let percent = u8::try_from(percent).ok().filter(|p| *p <= MAX_THROTTLE_PERCENT);
        let percent = percent.ok_or_else(|| Fault::argument("a tenant is throttled by 0 to 99 percent"))?;
        self.handle()?.throttle(percent);
        Ok(())
    }

    #[napi]
    pub fn drain<'e>(&self, env: &'e Env, timeout_ms: u32) -> napi::Result<Object<'e>> {
        let handle = self.handle()?;
        run(env, "tenant-drain", move || {
            let drained = handle.drain(Duration::from_millis(u64::from(timeout_ms)));
            Ok(json!({ "pending": drained.pending, "nextSeq": drained.next_seq.to_string() }).to_string())
        })
    }

    #[napi]
    pub fn stop<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        let handle = self.lock().handle.take();
        run(env, "tenant-stop", move || {
            if let Some(handle) = handle {
                handle.stop();
            }
            Ok(())
        })
    }

    #[napi]
    pub fn stats(&self) -> napi::Result<String> {
        let handle = self.handle()?;
        let stats = handle.stats();
        Ok(json!({
            "epoch": stats.epoch, "inFlight": stats.in_flight, "nextSeq": stats.next_seq.to_string(), "writes": stats.writes,
            "reads": stats.reads, "flushes": stats.flushes, "duplicates": stats.duplicates, "errors": stats.errors,
            "failure": handle.failure(),
        })
        .to_string())
    }

    #[napi]
    pub fn close(&self) {
        if let Some(handle) = self.lock().handle.take() {
            handle.stop();
        }
    }
}
