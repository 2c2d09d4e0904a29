//! A guest for tests: a fake device behind a `StateChannel`, memory with writers, and both sides of a migration on two threads.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use towline_core::channel::{ChannelError, ChannelErrorKind, Pending, ReadOutcome, StateChannel};
use towline_core::dirty::MarkLog;
use towline_core::fsm::{self, DeviceState, MigrationFlags};
use towline_core::memory::{GuestMemory, MemoryErrorKind};
use towline_engine::cancel::Cancel;
use towline_engine::error::{EngineError, LinkError};
use towline_engine::faultpoints::FaultPoints;
use towline_engine::fence::Fence;
use towline_engine::journal::Journal;
use towline_engine::link::{Address, Link, LinkOptions, Listener, connect};
use towline_engine::session::{
    DestinationConfig, DestinationSession, DestinationTarget, FinalStats, FunctionOutcome, Incoming, MemoryBy,
    NamedSource, Section, SectionOut, SessionFunction, SourceConfig, SourceSession, Terms,
};
use towline_linux::memory::{MappedMemory, memfd};
use uuid::Uuid;

pub const PAGE: u64 = 4096;
pub const TEST_LIMIT: Duration = Duration::from_secs(20);

/// What a device is. Shared, so that a test sees it while a session holds the channel.
#[derive(Debug)]
pub struct Device {
    pub state: DeviceState,
    /// What migrates.
    pub registers: Vec<u8>,
    pub resets: u32,
    /// Was RUNNING with registers, so it could execute.
    pub history: Vec<DeviceState>,
    pub fail_at: Option<DeviceState>,
    /// Takes its time to get there.
    pub delay: Option<(DeviceState, Duration)>,
}

/// Carries a [`Device`]: length, bytes, checksum by addition. With PRE_COPY it gives a copy of the first half while running.
pub struct Channel {
    pub device: Arc<Mutex<Device>>,
    flags: MigrationFlags,
    out: Vec<u8>,
    at: usize,
    input: Vec<u8>,
    piece: usize,
}

pub fn device(registers: Vec<u8>) -> Arc<Mutex<Device>> {
    Arc::new(Mutex::new(Device {
        state: DeviceState::Running,
        registers,
        resets: 0,
        history: vec![],
        fail_at: None,
        delay: None,
    }))
}

fn seal(bytes: &[u8]) -> Vec<u8> {
    let mut out = (bytes.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(bytes);
    let sum = bytes.iter().fold(7u64, |a, b| a.wrapping_mul(31).wrapping_add(u64::from(*b)));
    out.extend_from_slice(&sum.to_le_bytes());
    out
}

impl Channel {
    pub fn new(device: &Arc<Mutex<Device>>, flags: u64, piece: usize) -> Self {
        Self { device: Arc::clone(device), flags: MigrationFlags(flags), out: vec![], at: 0, input: vec![], piece }
    }

    fn enter(&mut self, to: DeviceState) -> Result<(), ChannelError> {
        let device = Arc::clone(&self.device);
        let mut device = device.lock().unwrap();
        let from = device.state;
        if let Some((_, time)) = device.delay.filter(|(state, _)| *state == to) {
            std::thread::sleep(time);
        }
        if device.fail_at == Some(to) {
            device.state = DeviceState::Error;
            device.fail_at = None;
            return Err(ChannelError {
                errno: Some(5),
                nvme_status: Some(0x106),
                ..ChannelError::new(ChannelErrorKind::Device, "the device failed")
            });
        }
        match to {
            DeviceState::PreCopy if from == DeviceState::Running => {
                // Stale on purpose: only what STOP_COPY gives counts.
                self.out = vec![0xEE; 100];
                self.at = 0;
            }
            DeviceState::StopCopy => {
                self.out = seal(&device.registers);
                self.at = 0;
            }
            DeviceState::Resuming => self.input.clear(),
            DeviceState::Stop if from == DeviceState::Resuming => {
                // Pre-copy bytes come before the sealed state.
                let skip = if self.flags.has_pre_copy() { 100 } else { 0 };
                let sealed = self.input.get(skip..).unwrap_or_default();
                let n = sealed.first_chunk::<8>().map_or(u64::MAX, |l| u64::from_le_bytes(*l));
                let bytes = usize::try_from(n).ok().and_then(|n| sealed.get(8..8usize.checked_add(n)?));
                match bytes {
                    Some(bytes) if seal(bytes) == sealed => device.registers = bytes.to_vec(),
                    _ => {
                        device.state = DeviceState::Error;
                        return Err(ChannelError::new(ChannelErrorKind::BadState, "the state is not whole"));
                    }
                }
            }
            _ => {}
        }
        device.state = to;
        device.history.push(to);
        Ok(())
    }
}

impl StateChannel for Channel {
    fn flags(&self) -> MigrationFlags {
        self.flags
    }

    fn state(&mut self) -> Result<DeviceState, ChannelError> {
        Ok(self.device.lock().unwrap().state)
    }

    fn set_state(&mut self, to: DeviceState) -> Result<(), ChannelError> {
        let from = self.device.lock().unwrap().state;
        let path = fsm::path(self.flags, from, to)
            .ok_or_else(|| ChannelError::new(ChannelErrorKind::State, format!("no way from {from:?} to {to:?}")))?;
        path.steps().iter().try_for_each(|s| self.enter(*s))
    }

    fn read(&mut self, out: &mut [u8]) -> Result<ReadOutcome, ChannelError> {
        let state = self.device.lock().unwrap().state;
        let rest = &self.out[self.at..];
        let n = rest.len().min(self.piece).min(out.len());
        out[..n].copy_from_slice(&rest[..n]);
        self.at += n;
        match state {
            DeviceState::StopCopy if n == 0 => Ok(ReadOutcome::End),
            DeviceState::PreCopy | DeviceState::PreCopyP2p if n == 0 => Ok(ReadOutcome::EmptyForNow),
            DeviceState::StopCopy | DeviceState::PreCopy | DeviceState::PreCopyP2p => Ok(ReadOutcome::Bytes(n)),
            _ => Err(ChannelError::new(ChannelErrorKind::State, "nothing to read in this state")),
        }
    }

    fn write(&mut self, data: &[u8]) -> Result<(), ChannelError> {
        if self.device.lock().unwrap().state != DeviceState::Resuming {
            return Err(ChannelError::new(ChannelErrorKind::State, "not in RESUMING"));
        }
        self.input.extend_from_slice(data);
        Ok(())
    }

    fn pending(&mut self) -> Result<Pending, ChannelError> {
        Ok(Pending { initial_bytes: 100, dirty_bytes: 0, stop_copy_bytes: Some(1) })
    }

    fn reset(&mut self) -> Result<(), ChannelError> {
        let mut device = self.device.lock().unwrap();
        device.state = DeviceState::Running;
        device.registers.clear();
        device.resets += 1;
        Ok(())
    }
}

pub fn memory(ranges: &[(u64, u64)]) -> Arc<MappedMemory> {
    let memory = MappedMemory::new();
    for (gpa, len) in ranges {
        let fd = memfd("engine-test", *len).unwrap();
        memory.add_region(*gpa, fd.as_fd(), 0, *len).unwrap();
    }
    Arc::new(memory)
}

/// Guest addresses of pages that differ.
pub fn differing(a: &dyn GuestMemory, b: &dyn GuestMemory) -> Vec<u64> {
    let (mut left, mut right) = (vec![0; PAGE as usize], vec![0; PAGE as usize]);
    let mut found = vec![];
    for range in a.ranges() {
        for gpa in (range.gpa..range.end().unwrap()).step_by(PAGE as usize) {
            a.read(gpa, &mut left).unwrap();
            b.read(gpa, &mut right).unwrap();
            if left != right {
                found.push(gpa);
            }
        }
    }
    found
}

/// Threads that write while the guest runs: a counter in each page of the range, some pages set to zero again.
pub struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    pub writes: Arc<AtomicU64>,
}

impl Writers {
    pub fn start(memory: &Arc<MappedMemory>, log: &Arc<MarkLog>, base: u64, len: u64, threads: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let writes = Arc::new(AtomicU64::new(0));
        let threads = (0..threads)
            .map(|t| {
                let (memory, log) = (Arc::clone(memory), Arc::clone(log));
                let (stop, writes) = (Arc::clone(&stop), Arc::clone(&writes));
                std::thread::spawn(move || {
                    let mut x = 0x9E37_79B9_7F4A_7C15u64.wrapping_mul(t + 1);
                    let pages = len / PAGE;
                    while !stop.load(Ordering::Acquire) {
                        x ^= x << 13;
                        x ^= x >> 7;
                        x ^= x << 17;
                        let page = base + (x % pages) * PAGE;
                        let bytes = if x & 0xF00 == 0 { vec![0; PAGE as usize] } else { x.to_le_bytes().to_vec() };
                        memory.write(page, &bytes).unwrap();
                        log.mark(page, bytes.len() as u64);
                        writes.fetch_add(1, Ordering::Relaxed);
                        if x & 7 == 0 {
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        Self { stop, threads, writes }
    }

    /// Waits until some hundred more writes were made, so that something is dirty, and stops.
    pub fn stop_after_more(&mut self) {
        let enough = self.writes.load(Ordering::Relaxed) + 300;
        while self.writes.load(Ordering::Relaxed) < enough {
            std::thread::yield_now();
        }
        self.stop();
    }

    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One host.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub journal: Arc<Journal>,
    pub memory: Arc<MappedMemory>,
    pub devices: Vec<(String, Arc<Mutex<Device>>, u64)>,
    pub cancel: Cancel,
    pub points: Arc<FaultPoints>,
}

pub const RANGES: &[(u64, u64)] = &[(0, 1 << 20), (1 << 32, 256 << 10)];

impl Host {
    /// Devices are (identity, flags).
    pub fn new(devices: &[(&str, u64)], ranges: &[(u64, u64)]) -> Self {
        // Thousands of sessions: their journals needn't survive a power failure of this machine.
        let shm = std::path::Path::new("/dev/shm");
        let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
        let journal = Arc::new(Journal::open(dir.path().join("journal")).unwrap());
        Self {
            dir,
            journal,
            memory: memory(ranges),
            devices: devices.iter().map(|(id, flags)| ((*id).to_owned(), device(vec![]), *flags)).collect(),
            cancel: Cancel::new(),
            points: Arc::new(FaultPoints::default()),
        }
    }

    pub fn functions(&self) -> Vec<SessionFunction> {
        self.devices
            .iter()
            .map(|(id, device, flags)| SessionFunction {
                id: id.clone(),
                channel: Box::new(Channel::new(device, *flags, 1000)),
            })
            .collect()
    }

    pub fn states(&self) -> Vec<DeviceState> {
        self.devices.iter().map(|(_, d, _)| d.lock().unwrap().state).collect()
    }

    pub fn fill(&self, seed: u8) {
        for (i, (_, device, _)) in self.devices.iter().enumerate() {
            device.lock().unwrap().registers = (0..5000u32).map(|n| (n as u8) ^ seed ^ (i as u8)).collect();
        }
        for (k, range) in self.memory.ranges().iter().enumerate() {
            // Every fourth page stays a hole, every fourth is zeros.
            for page in 0..range.len / PAGE {
                match page % 4 {
                    0 => {}
                    1 => self.memory.write(range.gpa + page * PAGE, &[0; PAGE as usize]).unwrap(),
                    _ => {
                        let data: Vec<u8> =
                            (0..PAGE).map(|b| (b as u8) ^ seed ^ (page as u8) ^ (k as u8) | 1).collect();
                        self.memory.write(range.gpa + page * PAGE, &data).unwrap();
                    }
                }
            }
        }
    }

    pub fn source(&self, session: Uuid, log: &Arc<MarkLog>, sections: &[&str]) -> SourceConfig {
        SourceConfig {
            session,
            functions: self.functions(),
            memory: self.memory.clone(),
            dirty_sources: vec![NamedSource { name: "marks".into(), source: Box::new(log.source()) }],
            page_size_bytes: PAGE,
            sections: sections.iter().map(|s| (*s).to_owned()).collect(),
            fence: self.journal.clone(),
            cancel: self.cancel.clone(),
            bandwidth_limit_bytes_per_s: None,
            points: self.points.clone(),
            record_to: None,
        }
    }

    pub fn destination(&self) -> DestinationConfig {
        DestinationConfig {
            fence: self.journal.clone(),
            expected: self.devices.iter().map(|(id, ..)| id.clone()).collect(),
            cancel: self.cancel.clone(),
            points: self.points.clone(),
            max_section_bytes: 1 << 20,
        }
    }

    pub fn target(&self) -> DestinationTarget {
        DestinationTarget { functions: self.functions(), memory: self.memory.clone() }
    }

    pub fn fence(&self) -> &dyn Fence {
        self.journal.as_ref()
    }
}

pub fn options() -> LinkOptions {
    LinkOptions { idle_timeout: TEST_LIMIT, ..LinkOptions::default() }
}

/// Two connected links.
pub fn link_pair(address: &str) -> (Box<dyn Link>, Box<dyn Link>) {
    let listener = Listener::bind(&address.parse::<Address>().unwrap(), options()).unwrap();
    let at = listener.address().clone();
    let connecting = std::thread::spawn(move || connect(&at, &options(), &Cancel::new()).unwrap());
    let accepted = listener.accept(TEST_LIMIT, &Cancel::new()).unwrap();
    (Box::new(connecting.join().unwrap()), Box::new(accepted))
}

pub fn socket_pair() -> (Box<dyn Link>, Box<dyn Link>) {
    use towline_engine::link::SocketLink;
    let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
    let link = |s: std::os::unix::net::UnixStream| -> Box<dyn Link> {
        Box::new(SocketLink::from_fd(s.into(), &options()).unwrap())
    };
    (link(a), link(b))
}

pub const SECTIONS: &[(&str, &[u8])] = &[("vcpu", b"registers of a cpu"), ("empty", b"")];

/// How the source ended.
pub struct SourceEnd {
    pub session: SourceSession,
    pub result: Result<FinalStats, EngineError>,
    pub outcomes: Vec<FunctionOutcome>,
}

/// Drives a source through all steps; on an error before the intent it aborts. `stopped` is called once the functions are
/// stopped, `prepared` once the destination has everything.
pub fn run_source(
    config: SourceConfig,
    link: Box<dyn Link>,
    before_stop: &mut dyn FnMut(),
    prepared: &mut dyn FnMut(),
) -> SourceEnd {
    let mut session = SourceSession::new(config, link).unwrap();
    let sections: Vec<&(&str, &[u8])> = SECTIONS.iter().collect();
    let result = (|| {
        let offer = session.offer(serde_json::json!({"kind": "test"}))?;
        if !offer.mismatches.is_empty() {
            return Err(EngineError::Mismatch(offer.mismatches));
        }
        session.start_tracking()?;
        session.precopy_state()?;
        for _ in 0..3 {
            session.memory_pass(&mut |_| {})?;
        }
        before_stop();
        session.quiesce()?;
        session.stop()?;
        let stats = session.final_pass()?;
        let all: Vec<SectionOut<'_>> =
            sections.iter().map(|(name, data)| SectionOut { name, data, descriptors: &[] }).collect();
        session.send_sections(&all)?;
        session.prepare()?;
        prepared();
        session.commit()?;
        // Whether it could be told or not, the destination owns the functions.
        let running = session.wait_running();
        session.release()?;
        running.map(|_| stats)
    })();
    let mut outcomes = vec![];
    if result.is_err()
        && let Ok(back) = session.abort("the test's source failed")
    {
        outcomes = back;
    }
    SourceEnd { session, result, outcomes }
}

/// Guest memory is passed, and sections may have descriptors.
pub const PASSED: Terms = Terms {
    memory: MemoryBy::Passed,
    commit: towline_engine::session::CommitBy::Session,
    duplex: true,
    descriptors: true,
    checkpoint: None,
};

/// As [`run_source`], with `memory` passed. The first section has a descriptor.
pub fn run_passing_source(config: SourceConfig, memory: Arc<MappedMemory>, link: Box<dyn Link>) -> SourceEnd {
    let mut session = SourceSession::with_terms(config, PASSED, link).unwrap();
    session.set_passed_memory(memory).unwrap();
    let result = (|| {
        let offer = session.offer(serde_json::json!({"kind": "test"}))?;
        if !offer.mismatches.is_empty() {
            return Err(EngineError::Mismatch(offer.mismatches));
        }
        session.start_tracking()?;
        session.precopy_state()?;
        session.quiesce()?;
        session.stop()?;
        let state = session.save_state()?;
        let file = memfd("section", PAGE).unwrap();
        for (i, (name, data)) in SECTIONS.iter().enumerate() {
            let fds: &[(&str, BorrowedFd<'_>)] = if i == 0 { &[("file", file.as_fd())] } else { &[] };
            session.send_section_with(name, data, fds)?;
        }
        session.prepare()?;
        session.commit()?;
        let running = session.wait_running();
        session.release()?;
        running.map(|_| FinalStats { state_bytes: state.state_bytes, ..FinalStats::default() })
    })();
    let mut outcomes = vec![];
    if result.is_err()
        && let Ok(back) = session.abort("the test's source failed")
    {
        outcomes = back;
    }
    SourceEnd { session, result, outcomes }
}

/// What a destination got that memory was passed to.
#[derive(Default)]
pub struct Passed {
    pub memory: Option<Arc<MappedMemory>>,
    pub sections: Vec<Section>,
    pub descriptors: Vec<(String, OwnedFd)>,
}

/// As [`run_destination`], with memory passed. Before the commit every attempt to write it has to fail.
pub fn run_passed_destination(
    config: DestinationConfig,
    target: DestinationTarget,
    link: Box<dyn Link>,
    got: &mut Passed,
) -> (Result<(), EngineError>, DestinationSession) {
    let mut session = DestinationSession::with_terms(config, PASSED, link).unwrap();
    let try_to_write = |memory: &MappedMemory| {
        for range in memory.ranges() {
            assert_eq!(memory.write(range.gpa, &[0xBD; 9]).unwrap_err().kind, MemoryErrorKind::NotOurs);
            assert_eq!(memory.store_u32(range.gpa, 7).unwrap_err().kind, MemoryErrorKind::NotOurs);
            memory.read(range.gpa, &mut [0; 9]).unwrap();
        }
    };
    let result = (|| {
        let Incoming::Offer(_) = session.read_offer()? else { panic!("no offer") };
        session.answer(target, vec![])?;
        let memory = session.receive_memory(false)?;
        got.memory = Some(memory.clone());
        try_to_write(&memory);
        session.memory_taken()?;
        session.receive(&mut |_| {})?;
        try_to_write(&memory);
        got.sections = session.sections().to_vec();
        got.descriptors = session.take_section_descriptors("vcpu")?;
        session.prepared()?;
        try_to_write(&memory);
        session.wait_commit()?;
        session.resume()?;
        session.running()?;
        Ok(())
    })();
    (result, session)
}

/// Drives a destination through all steps.
pub fn run_destination(
    config: DestinationConfig,
    target: DestinationTarget,
    link: Box<dyn Link>,
) -> (Result<Vec<Section>, EngineError>, DestinationSession) {
    let mut session = DestinationSession::new(config, link).unwrap();
    let result = (|| {
        let Incoming::Offer(_) = session.read_offer()? else { panic!("no offer") };
        session.answer(target, vec![])?;
        session.receive(&mut |_| {})?;
        let sections = session.sections().to_vec();
        session.prepared()?;
        session.wait_commit()?;
        session.resume()?;
        session.running()?;
        Ok(sections)
    })();
    (result, session)
}

pub const SECTION_NAMES: &[&str] = &["vcpu", "empty"];

/// A link that cuts or damages what is written through it.
pub struct Tamper {
    pub inner: Option<Box<dyn Link>>,
    pub written: Arc<AtomicU64>,
    /// Closes the link before this byte.
    pub cut_at: Option<u64>,
    /// Flips this bit of this byte.
    pub flip: Option<(u64, u8)>,
}

/// Set in the count of a [`Tamper`] that has cut its link.
pub const CUT: u64 = 1 << 63;

impl Tamper {
    pub fn wrap(inner: Box<dyn Link>, cut_at: Option<u64>, flip: Option<(u64, u8)>) -> (Box<dyn Link>, Arc<AtomicU64>) {
        let written = Arc::new(AtomicU64::new(0));
        (Box::new(Self { inner: Some(inner), written: Arc::clone(&written), cut_at, flip }), written)
    }

    fn closed() -> LinkError {
        LinkError::Closed { peer: "tampered".into() }
    }
}

impl Link for Tamper {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, LinkError> {
        self.inner.as_mut().ok_or_else(Self::closed)?.read(out)
    }

    fn write_all(&mut self, bufs: &mut [IoSlice<'_>]) -> Result<(), LinkError> {
        self.write_all_with(bufs, &[])
    }

    fn why_no_descriptors(&self) -> Option<String> {
        self.inner.as_ref().and_then(|inner| inner.why_no_descriptors())
    }

    fn expect_descriptors(&mut self, most: usize) {
        if let Some(inner) = &mut self.inner {
            inner.expect_descriptors(most);
        }
    }

    fn descriptors_held(&self) -> usize {
        self.inner.as_ref().map_or(0, |inner| inner.descriptors_held())
    }

    fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        self.inner.as_mut().map(|inner| inner.take_descriptors()).unwrap_or_default()
    }

    fn write_all_with(&mut self, bufs: &mut [IoSlice<'_>], with: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        let inner = self.inner.as_mut().ok_or_else(Self::closed)?;
        let mut bytes: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).collect();
        let start = self.written.load(Ordering::Relaxed);
        if let Some((at, bit)) = self.flip
            && let Some(byte) = at.checked_sub(start).and_then(|i| bytes.get_mut(i as usize))
        {
            *byte ^= 1 << bit;
        }
        let cut = self.cut_at.and_then(|c| c.checked_sub(start)).filter(|c| *c < bytes.len() as u64);
        if let Some(cut) = cut {
            bytes.truncate(cut as usize);
        }
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        // Descriptors go with a first byte, and a cut may leave none.
        let with = if bytes.is_empty() { &[] } else { with };
        let result = inner.write_all_with(&mut [IoSlice::new(&bytes)], with);
        if cut.is_some() {
            self.written.fetch_or(CUT, Ordering::Relaxed);
            self.inner = None;
            return Err(Self::closed());
        }
        result
    }

    fn arm(&mut self, cancel: &Cancel) {
        if let Some(inner) = &mut self.inner {
            inner.arm(cancel);
        }
    }

    fn disarm(&mut self) {
        if let Some(inner) = &mut self.inner {
            inner.disarm();
        }
    }

    fn idle_timeout(&self) -> Duration {
        self.inner.as_ref().map_or(TEST_LIMIT, |inner| inner.idle_timeout())
    }

    fn set_idle_timeout(&mut self, timeout: Duration) {
        if let Some(inner) = &mut self.inner {
            inner.set_idle_timeout(timeout);
        }
    }

    fn peer(&self) -> &str {
        "tampered"
    }
}
