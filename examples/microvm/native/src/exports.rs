//! The Node binding: carries calls, and nothing else. What each one does is documented in `native/index.d.ts`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use napi::bindgen_prelude::{AsyncTask, BigInt, Object, Uint8Array};
use napi::{Env, Result, Task};
use napi_derive::napi;

use crate::boot::Wanted;
use crate::error::Error;
use crate::filter::{Filter, Target};
use crate::layout::{PAGE, Status};
use crate::machine;
use crate::ram::RangeSpec;
use crate::sections::Id;
use crate::vm::{DeviceSpec, Vm, VmSpec};

impl From<Error> for napi::Error {
    fn from(e: Error) -> Self {
        Self::from_reason(format!("microvm: {e}"))
    }
}

fn argument(what: impl Into<String>) -> napi::Error {
    Error::Argument(what.into()).into()
}

fn u64_of(name: &str, value: &BigInt) -> Result<u64> {
    match value.get_u64() {
        (false, value, true) => Ok(value),
        _ => Err(argument(format!("{name} is not in 0..2^64"))),
    }
}

fn big(value: u64) -> BigInt {
    BigInt::from(value)
}

/// A number of JavaScript that has to be a whole one in a range.
fn whole(name: &str, value: f64, most: u64) -> Result<u64> {
    if value.fract() == 0.0 && value >= 0.0 && value <= most as f64 {
        return Ok(value as u64);
    }
    Err(argument(format!("{name} is {value}; whole numbers from 0 to {most} are possible")))
}

fn duration(name: &str, ms: f64) -> Result<Duration> {
    Ok(Duration::from_millis(whole(name, ms, 1 << 31)?))
}

/// Why none can run here.
#[napi]
pub fn unavailable() -> Option<String> {
    machine::unavailable()
}

#[napi(object)]
pub struct RamRange {
    pub gpa: BigInt,
    pub len: BigInt,
    pub fd: i32,
    pub fd_offset: Option<BigInt>,
}

#[napi(object)]
pub struct VmOptions {
    pub vcpus: Option<f64>,
    pub memory: Vec<RamRange>,
    pub dirty_ring_entries: Option<f64>,
    pub log_fd: Option<i32>,
    pub host_tag: Option<f64>,
}

#[napi(object)]
pub struct MemorySlot {
    pub slot: u32,
    pub gpa: BigInt,
    pub len: BigInt,
    pub userspace_address: BigInt,
    pub flags: u32,
}

#[napi(object)]
pub struct GuestParameters {
    pub seed: Option<BigInt>,
    pub units: Option<f64>,
    pub queue_depth: Option<f64>,
    pub max_units: Option<f64>,
    pub nsid: Option<f64>,
    pub warm: Option<bool>,
    pub doorbells: Option<String>,
}

#[napi(object)]
pub struct Load {
    pub iops: Option<f64>,
    pub read_percent: Option<f64>,
    pub dirty_pages_per_s: Option<f64>,
    pub working_set_pages: Option<f64>,
    pub heartbeat_us: Option<f64>,
}

#[napi(object)]
pub struct DeviceOptions {
    pub socket_path: String,
    pub filter: Option<Uint8Array>,
    pub doorbells: Option<String>,
    pub timeout_ms: Option<f64>,
}

#[napi(object)]
pub struct DeviceInfo {
    pub bar0_bytes: BigInt,
    pub bar4_bytes: BigInt,
    pub vectors: u32,
}

#[napi(object)]
pub struct Drained {
    pub pending: f64,
    pub next_seq: BigInt,
}

/// Sections, one after the other.
#[napi(object)]
pub struct Packed {
    /// How many bytes each has.
    pub lengths: Vec<u32>,
    pub bytes: Uint8Array,
}

fn by_ioeventfd(word: Option<&str>) -> Result<bool> {
    match word {
        None | Some("mmio") => Ok(false),
        Some("ioeventfd") => Ok(true),
        Some(other) => Err(argument(format!("doorbells is {other}, neither mmio nor ioeventfd"))),
    }
}

fn u32_option(name: &str, value: Option<f64>, default: u32) -> Result<u32> {
    value.map_or(Ok(default), |v| whole(name, v, u32::MAX.into()).map(|v| v as u32))
}

impl GuestParameters {
    fn wanted(&self) -> Result<Wanted> {
        let default = Wanted::default();
        Ok(Wanted {
            seed: self.seed.as_ref().map_or(Ok(default.seed), |s| u64_of("seed", s))?,
            units: self.units.map_or(Ok(default.units), |u| whole("units", u, u32::MAX.into()))?,
            queue_depth: u32_option("queueDepth", self.queue_depth, default.queue_depth)?,
            max_units: u32_option("maxUnits", self.max_units, default.max_units)?,
            nsid: u32_option("nsid", self.nsid, default.nsid)?,
            warm: self.warm.unwrap_or(default.warm),
            shadow_doorbells: by_ioeventfd(self.doorbells.as_deref())?,
        })
    }
}

/// What a promise's work is done by, on a thread of Node's pool.
pub struct Job<T: Send + 'static> {
    work: Option<Box<dyn FnOnce() -> std::result::Result<T, Error> + Send>>,
}

impl<T: Send + 'static> Job<T> {
    fn run(work: impl FnOnce() -> std::result::Result<T, Error> + Send + 'static) -> AsyncTask<Self>
    where
        Self: Task,
    {
        AsyncTask::new(Self { work: Some(Box::new(work)) })
    }

    fn work(&mut self) -> Result<T> {
        let work = self.work.take().ok_or_else(|| argument("the work was done already"))?;
        Ok(work()?)
    }
}

impl Task for Job<()> {
    type Output = ();
    type JsValue = ();

    fn compute(&mut self) -> Result<()> {
        self.work()
    }

    fn resolve(&mut self, _: Env, (): ()) -> Result<()> {
        Ok(())
    }
}

impl Task for Job<crate::vm::DeviceInfo> {
    type Output = crate::vm::DeviceInfo;
    type JsValue = DeviceInfo;

    fn compute(&mut self) -> Result<Self::Output> {
        self.work()
    }

    fn resolve(&mut self, _: Env, info: Self::Output) -> Result<DeviceInfo> {
        Ok(DeviceInfo { bar0_bytes: big(info.bar0_bytes), bar4_bytes: big(info.bar4_bytes), vectors: info.vectors })
    }
}

impl Task for Job<crate::vm::Drained> {
    type Output = crate::vm::Drained;
    type JsValue = Drained;

    fn compute(&mut self) -> Result<Self::Output> {
        self.work()
    }

    fn resolve(&mut self, _: Env, drained: Self::Output) -> Result<Drained> {
        Ok(Drained { pending: drained.pending as f64, next_seq: big(drained.next_seq) })
    }
}

/// `Vm` of `index.d.ts`, but for what `index.js` makes of it. Closing it takes the machine away at once: nothing waits for the collector.
#[napi(js_name = "Vm")]
pub struct NativeVm(Mutex<Option<Arc<Vm>>>);

impl NativeVm {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<Vm>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn vm(&self) -> Result<Arc<Vm>> {
        self.lock().clone().ok_or_else(|| Error::State("the VM is closed").into())
    }
}

#[napi]
impl NativeVm {
    #[napi(constructor)]
    pub fn new(options: VmOptions) -> Result<Self> {
        let memory = options
            .memory
            .iter()
            .map(|r| {
                Ok(RangeSpec {
                    gpa: u64_of("gpa", &r.gpa)?,
                    len: u64_of("len", &r.len)?,
                    fd: r.fd,
                    fd_offset: r.fd_offset.as_ref().map_or(Ok(0), |o| u64_of("fdOffset", o))?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let spec = VmSpec {
            vcpus: options.vcpus.map_or(Ok(2), |v| whole("vcpus", v, 64))? as usize,
            memory,
            dirty_ring_entries: u32_option("dirtyRingEntries", options.dirty_ring_entries, 0)?,
            log_fd: options.log_fd,
            host_tag: options.host_tag.map_or(Ok(0), |v| whole("hostTag", v, 255))? as u8,
        };
        Ok(Self(Mutex::new(Some(Arc::new(Vm::new(&spec)?)))))
    }

    #[napi(getter)]
    pub fn vm_fd(&self) -> Result<i32> {
        Ok(self.vm()?.vm_fd())
    }

    #[napi(getter)]
    pub fn vcpu_fds(&self) -> Result<Vec<i32>> {
        Ok(self.vm()?.vcpu_fds())
    }

    #[napi]
    pub fn slots(&self) -> Result<Vec<MemorySlot>> {
        let slot = |(n, r): (usize, &crate::ram::Range)| MemorySlot {
            slot: n as u32,
            gpa: big(r.gpa),
            len: big(r.len),
            userspace_address: big(r.host),
            flags: 0,
        };
        Ok(self.vm()?.ram().ranges().iter().enumerate().map(slot).collect())
    }

    #[napi(getter)]
    pub fn dirty_ring_entries(&self) -> Result<u32> {
        Ok(self.vm()?.ring_entries())
    }

    #[napi]
    pub fn set_ring_full_event(&self, fd: Option<i32>) -> Result<()> {
        Ok(self.vm()?.set_ring_full_event(fd)?)
    }

    #[napi]
    pub fn warm(&self) -> Result<AsyncTask<Job<()>>> {
        let vm = self.vm()?;
        Ok(Job::run(move || vm.warm()))
    }

    #[napi]
    pub fn connect(&self, options: DeviceOptions) -> Result<AsyncTask<Job<crate::vm::DeviceInfo>>> {
        let spec = DeviceSpec {
            socket: options.socket_path,
            filter: options.filter.map(|f| f.to_vec()),
            ioeventfd: by_ioeventfd(options.doorbells.as_deref())?,
            timeout: duration("timeoutMs", options.timeout_ms.unwrap_or(10_000.0))?.max(Duration::from_millis(1)),
        };
        let vm = self.vm()?;
        Ok(Job::run(move || vm.connect(&spec)))
    }

    #[napi]
    pub fn disconnect(&self) -> Result<()> {
        Ok(self.vm()?.disconnect()?)
    }

    #[napi]
    pub fn reset_device(&self) -> Result<AsyncTask<Job<()>>> {
        let vm = self.vm()?;
        Ok(Job::run(move || vm.reset_device()))
    }

    #[napi]
    pub fn read_config(&self, offset: f64, length: f64) -> Result<Uint8Array> {
        let offset = whole("offset", offset, PAGE)?;
        let mut out = vec![0; whole("length", length, PAGE)? as usize];
        self.vm()?.read_config(offset, &mut out)?;
        Ok(out.into())
    }

    #[napi]
    pub fn write_config(&self, offset: f64, data: Uint8Array) -> Result<()> {
        if !matches!(data.len(), 1 | 2 | 4) {
            return Err(argument(format!("{} bytes; 1, 2 or 4 are possible", data.len())));
        }
        Ok(self.vm()?.write_config(whole("offset", offset, PAGE)?, &data)?)
    }

    #[napi]
    pub fn set_filter(&self, filter: Option<Uint8Array>) -> Result<()> {
        Ok(self.vm()?.set_filter(filter.as_deref())?)
    }

    #[napi]
    pub fn boot(&self, image: Uint8Array, parameters: Option<GuestParameters>) -> Result<()> {
        let wanted = parameters.map_or_else(|| Ok(Wanted::default()), |p| p.wanted())?;
        Ok(self.vm()?.boot(&image, &wanted)?)
    }

    #[napi]
    pub fn arm_interrupts(&self) -> Result<()> {
        Ok(self.vm()?.arm_interrupts()?)
    }

    #[napi(getter)]
    pub fn interrupts_armed(&self) -> Result<bool> {
        Ok(self.vm()?.armed())
    }

    #[napi]
    pub fn run(&self) -> Result<()> {
        Ok(self.vm()?.run()?)
    }

    #[napi]
    pub fn pause(&self) -> Result<AsyncTask<Job<()>>> {
        let vm = self.vm()?;
        Ok(Job::run(move || vm.pause()))
    }

    #[napi(getter)]
    pub fn running(&self) -> bool {
        self.lock().as_ref().is_some_and(|vm| vm.running())
    }

    #[napi]
    pub fn ready(&self, timeout_ms: f64) -> Result<AsyncTask<Job<()>>> {
        let timeout = duration("timeoutMs", timeout_ms)?;
        let vm = self.vm()?;
        Ok(Job::run(move || vm.ready(timeout)))
    }

    #[napi]
    pub fn drain(&self, timeout_ms: f64) -> Result<AsyncTask<Job<crate::vm::Drained>>> {
        let timeout = duration("timeoutMs", timeout_ms)?;
        let vm = self.vm()?;
        Ok(Job::run(move || vm.drain(timeout)))
    }

    #[napi]
    pub fn undrain(&self) -> Result<()> {
        Ok(self.vm()?.undrain()?)
    }

    #[napi]
    pub fn set_load(&self, load: Load) -> Result<()> {
        let now = self.vm()?.load();
        Ok(self.vm()?.set_load(crate::control::Load {
            iops: u32_option("iops", load.iops, now.iops)?,
            read_percent: u32_option("readPercent", load.read_percent, now.read_percent)?,
            dirty_pages_per_s: u32_option("dirtyPagesPerS", load.dirty_pages_per_s, now.dirty_pages_per_s)?,
            working_set_pages: load
                .working_set_pages
                .map_or(Ok(now.working_set_pages), |p| whole("workingSetPages", p, 1 << 40))?,
            heartbeat_us: u32_option("heartbeatUs", load.heartbeat_us, now.heartbeat_us)?,
        })?)
    }

    #[napi]
    pub fn load(&self) -> Result<Load> {
        let load = self.vm()?.load();
        Ok(Load {
            iops: Some(load.iops.into()),
            read_percent: Some(load.read_percent.into()),
            dirty_pages_per_s: Some(load.dirty_pages_per_s.into()),
            working_set_pages: Some(load.working_set_pages as f64),
            heartbeat_us: Some(load.heartbeat_us.into()),
        })
    }

    #[napi]
    pub fn set_throttle(&self, percent: f64) -> Result<()> {
        Ok(self.vm()?.set_throttle(whole("percent", percent, 100)? as u32)?)
    }

    #[napi]
    pub fn reset_gaps(&self) -> Result<()> {
        self.vm()?.control.reset_gaps();
        Ok(())
    }

    #[napi]
    pub fn section_names(&self) -> Result<Vec<String>> {
        Ok(Id::all(self.vm()?.vcpus.len()).iter().map(Id::name).collect())
    }

    /// All sections, in the order of their names. `index.js` makes a record of it.
    #[napi]
    pub fn save_packed(&self) -> Result<Packed> {
        let sections = self.vm()?.save()?;
        let lengths = sections.iter().map(|(_, bytes)| bytes.len() as u32).collect();
        Ok(Packed { lengths, bytes: sections.into_iter().flat_map(|(_, bytes)| bytes).collect::<Vec<u8>>().into() })
    }

    /// What `index.js` has made of a record.
    #[napi]
    pub fn restore_packed(&self, names: Vec<String>, lengths: Vec<u32>, bytes: Uint8Array) -> Result<()> {
        let mut rest: &[u8] = &bytes;
        let mut sections = Vec::with_capacity(names.len());
        for (name, length) in names.into_iter().zip(lengths) {
            let (own, left) =
                rest.split_at_checked(length as usize).ok_or_else(|| argument("the sections are too short"))?;
            sections.push((name, own.to_vec()));
            rest = left;
        }
        Ok(self.vm()?.restore(&sections)?)
    }

    #[napi]
    pub fn status<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        let vm = self.vm()?;
        let mut out = Object::new(env)?;
        let each: Vec<Status> = vm.vcpus.iter().map(|v| vm.status(v.index)).collect();
        let generation = vm.control.gap_generation();
        let gap = each.iter().filter(|s| s.gap_generation == generation).map(|s| s.largest_gap).max().unwrap_or(0);
        out.set("phases", each.iter().map(|s| s.phase).collect::<Vec<_>>())?;
        out.set("failure", vm.failure())?;
        out.set("tscKhz", vm.machine.tsc_khz)?;
        out.set("heartbeatGapMs", gap as f64 / f64::from(vm.machine.tsc_khz))?;
        let first = each.first().copied().unwrap_or_default();
        out.set("nextSeq", big(first.next_seq))?;
        out.set("workingSetLimit", first.working_set_limit as f64)?;
        let mut vcpus = Vec::new();
        for status in &each {
            let mut vcpu = Object::new(env)?;
            for (name, value) in fields(status) {
                vcpu.set(name, big(value))?;
            }
            vcpus.push(vcpu);
        }
        out.set("vcpus", vcpus)?;
        Ok(out)
    }

    #[napi]
    pub fn counters<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        let vm = self.vm()?;
        let count = |c: &AtomicU64| big(c.load(Ordering::Relaxed));
        let c = &vm.bus.counters;
        let mut out = Object::new(env)?;
        let mut exits = Object::new(env)?;
        exits.set("mmioRead", count(&c.mmio_read))?;
        exits.set("mmioWrite", count(&c.mmio_write))?;
        exits.set("pio", count(&c.pio))?;
        exits.set("halt", count(&c.halt))?;
        exits.set("interrupted", count(&c.interrupted))?;
        exits.set("ringFull", count(&c.ring_full))?;
        exits.set("other", count(&c.other))?;
        out.set("exits", exits)?;
        let (mmio, ioeventfd) = vm.doorbell_counts();
        let mut doorbells = Object::new(env)?;
        doorbells.set("mmio", big(mmio))?;
        doorbells.set("ioeventfd", big(ioeventfd))?;
        out.set("doorbells", doorbells)?;
        let device = vm.bus.device();
        let mut filter = Object::new(env)?;
        let filtered = |f: fn(&crate::device::bar::FilterCounts) -> &AtomicU64| {
            device.as_ref().map_or_else(|| big(0), |d| count(f(&d.bar0.counts)))
        };
        filter.set("passed", filtered(|c| &c.passed))?;
        filter.set("changed", filtered(|c| &c.changed))?;
        filter.set("denied", filtered(|c| &c.denied))?;
        out.set("filter", filter)?;
        out.set("records", big(vm.bus.log.written()))?;
        let (messages, waits) = device.map_or((0, 0), |d| d.client.counts());
        out.set("deviceMessages", big(messages))?;
        out.set("deviceWaits", big(waits))?;
        out.set("throttledNs", count(&c.throttled_ns))?;
        Ok(out)
    }

    #[napi(getter)]
    pub fn failure(&self) -> Option<String> {
        self.lock().as_ref().and_then(|vm| vm.failure())
    }

    #[napi]
    pub fn close(&self) {
        // A call under way keeps it until it ends, soon: it sees that the machine closes.
        if let Some(vm) = self.lock().take() {
            vm.close();
        }
    }
}

fn fields(s: &Status) -> [(&'static str, u64); 19] {
    [
        ("heartbeats", s.heartbeats),
        ("lastTsc", s.last_tsc),
        ("largestGapTicks", s.largest_gap),
        ("writes", s.writes),
        ("reads", s.reads),
        ("flushes", s.flushes),
        ("inFlight", s.in_flight),
        ("duplicates", s.duplicates),
        ("errors", s.errors),
        ("mismatches", s.mismatches),
        ("memoryErrors", s.memory_errors),
        ("stateErrors", s.state_errors),
        ("tscErrors", s.tsc_errors),
        ("interrupts", s.interrupts),
        ("lostInterrupts", s.lost_interrupts),
        ("pagesWritten", s.pages_written),
        ("doorbells", s.doorbells),
        ("phase", s.phase.into()),
        ("failureCode", s.failure.into()),
    ]
}

/// The evaluator of the vCPU's thread over an array of bytes, for comparing it with others.
#[napi]
pub struct FilteredBytes {
    filter: Filter,
    target: Bytes,
}

struct Bytes(Mutex<Vec<u8>>);

impl Target for Bytes {
    fn read(&self, offset: u64, out: &mut [u8]) {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (n, to) in out.iter_mut().enumerate() {
            *to = bytes.get((offset as usize).saturating_add(n)).copied().unwrap_or(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (n, from) in data.iter().enumerate() {
            if let Some(to) = bytes.get_mut((offset as usize).saturating_add(n)) {
                *to = *from;
            }
        }
    }
}

#[napi]
impl FilteredBytes {
    #[napi(constructor)]
    pub fn new(filter: Uint8Array, target: Uint8Array) -> Result<Self> {
        Ok(Self { filter: Filter::parse(&filter)?, target: Bytes(Mutex::new(target.to_vec())) })
    }

    #[napi]
    pub fn read(&self, offset: BigInt, length: f64) -> Result<Uint8Array> {
        let mut out = vec![0; whole("length", length, 8)? as usize];
        self.filter.read(&self.target, u64_of("offset", &offset)?, &mut out);
        Ok(out.into())
    }

    #[napi]
    pub fn write(&self, offset: BigInt, data: Uint8Array) -> Result<()> {
        self.filter.write(&self.target, u64_of("offset", &offset)?, &data);
        Ok(())
    }

    #[napi]
    pub fn target(&self) -> Uint8Array {
        self.target.0.lock().unwrap_or_else(PoisonError::into_inner).clone().into()
    }
}
