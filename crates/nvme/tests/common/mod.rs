//! A small NVMe host for the tests: guest memory in a vector, a driver that speaks only through the BAR and that memory.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use towline_core::bar::BarTarget;
use towline_core::memory::{GuestMemory, MemoryError, MemoryErrorKind, MemoryRange};
use towline_nvme::command::{CompletionEntry, CreateIoCq, CreateIoSq, SubmissionEntry, io_opcode, opcode};
use towline_nvme::model::{Controller, DOORBELLS, InterruptSink, NamespaceConfig, Subsystem, SubsystemConfig};
use towline_nvme::status::Status;

/// How long a test waits for something that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Guest memory in ranges that come and go; counts what is touched outside of them.
#[derive(Default)]
pub struct Memory {
    ranges: RwLock<BTreeMap<u64, Vec<u8>>>,
    pub outside: AtomicU64,
    /// Pages written since the last look, by whoever wrote them through [`GuestMemory`].
    pub written: Mutex<std::collections::BTreeSet<u64>>,
}

impl Memory {
    pub fn new(len: usize) -> Arc<Self> {
        let memory = Self::default();
        memory.add(0, len);
        Arc::new(memory)
    }

    pub fn add(&self, gpa: u64, len: usize) {
        self.ranges.write().unwrap().insert(gpa, vec![0; len]);
    }

    pub fn remove(&self, gpa: u64) -> Option<Vec<u8>> {
        self.ranges.write().unwrap().remove(&gpa)
    }

    pub fn put(&self, gpa: u64, bytes: Vec<u8>) {
        self.ranges.write().unwrap().insert(gpa, bytes);
    }

    /// Everything, as it is: what a migration would carry.
    pub fn copy(&self) -> Arc<Self> {
        let ranges = self.ranges.read().unwrap().clone();
        Arc::new(Self { ranges: RwLock::new(ranges), ..Self::default() })
    }

    fn error(&self, gpa: u64, len: usize, kind: MemoryErrorKind) -> MemoryError {
        self.outside.fetch_add(1, Ordering::Relaxed);
        MemoryError { gpa, len: len as u64, kind }
    }

    fn place(ranges: &BTreeMap<u64, Vec<u8>>, gpa: u64, len: usize) -> Option<(u64, usize)> {
        let (base, bytes) = ranges.range(..=gpa).next_back()?;
        let at = usize::try_from(gpa - base).ok()?;
        (at.checked_add(len)? <= bytes.len()).then_some((*base, at))
    }

    /// As the guest's CPU does.
    pub fn poke(&self, gpa: u64, data: &[u8]) {
        let mut ranges = self.ranges.write().unwrap();
        let (base, at) = Self::place(&ranges, gpa, data.len()).expect("the guest writes to its memory");
        ranges.get_mut(&base).unwrap()[at..at + data.len()].copy_from_slice(data);
    }

    pub fn peek(&self, gpa: u64, len: usize) -> Vec<u8> {
        let ranges = self.ranges.read().unwrap();
        let (base, at) = Self::place(&ranges, gpa, len).expect("the guest reads its memory");
        ranges[&base][at..at + len].to_vec()
    }
}

impl GuestMemory for Memory {
    fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        let ranges = self.ranges.read().unwrap();
        let Some((base, at)) = Self::place(&ranges, gpa, out.len()) else {
            return Err(self.error(gpa, out.len(), MemoryErrorKind::Unmapped));
        };
        out.copy_from_slice(&ranges[&base][at..at + out.len()]);
        Ok(())
    }

    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), MemoryError> {
        let mut ranges = self.ranges.write().unwrap();
        let Some((base, at)) = Self::place(&ranges, gpa, data.len()) else {
            return Err(self.error(gpa, data.len(), MemoryErrorKind::Unmapped));
        };
        ranges.get_mut(&base).unwrap()[at..at + data.len()].copy_from_slice(data);
        let last = gpa + data.len().max(1) as u64 - 1;
        self.written.lock().unwrap().extend(gpa / 4096..=last / 4096);
        Ok(())
    }

    fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError> {
        if !gpa.is_multiple_of(4) {
            return Err(self.error(gpa, 4, MemoryErrorKind::Misaligned));
        }
        let mut raw = [0; 4];
        self.read(gpa, &mut raw)?;
        Ok(u32::from_le_bytes(raw))
    }

    fn store_u32(&self, gpa: u64, value: u32) -> Result<(), MemoryError> {
        if !gpa.is_multiple_of(4) {
            return Err(self.error(gpa, 4, MemoryErrorKind::Misaligned));
        }
        self.write(gpa, &value.to_le_bytes())
    }

    fn ranges(&self) -> Vec<MemoryRange> {
        let ranges = self.ranges.read().unwrap();
        ranges.iter().map(|(gpa, bytes)| MemoryRange { gpa: *gpa, len: bytes.len() as u64 }).collect()
    }
}

/// Counts interrupts by vector.
#[derive(Default)]
pub struct Interrupts(Mutex<BTreeMap<u16, u64>>);

impl Interrupts {
    pub fn count(&self, vector: u16) -> u64 {
        self.0.lock().unwrap().get(&vector).copied().unwrap_or(0)
    }
}

impl InterruptSink for Interrupts {
    fn raise(&self, vector: u16) {
        *self.0.lock().unwrap().entry(vector).or_default() += 1;
    }
}

/// A queue pair as the guest keeps it.
#[derive(Clone, Debug)]
pub struct Pair {
    pub qid: u16,
    pub sq: u64,
    pub cq: u64,
    pub entries: u16,
    pub tail: u16,
    pub head: u16,
    pub phase: bool,
}

/// Doorbells and registers of a function, wherever they are.
#[derive(Clone)]
pub struct Bars {
    pub registers: Arc<dyn BarTarget>,
    pub doorbells: Arc<dyn BarTarget>,
    pub doorbell_offset: u64,
}

impl Bars {
    pub fn of(controller: &Arc<Controller>) -> Self {
        let bar: Arc<dyn BarTarget> = controller.clone();
        Self { registers: bar.clone(), doorbells: bar, doorbell_offset: DOORBELLS }
    }

    pub fn of_siov(subsystem: &Subsystem, controller: &Arc<Controller>) -> Self {
        Self {
            registers: controller.synthesised_registers(),
            doorbells: subsystem.parent_bar(),
            doorbell_offset: controller.siov_doorbell_offset().unwrap(),
        }
    }
}

/// The driver. Its memory: admin SQ at 0, admin CQ at 1000h, queue pair n at 10000h * n, scratch data from 80000h.
#[derive(Clone)]
pub struct Host {
    pub memory: Arc<Memory>,
    pub bars: Bars,
    pub pairs: BTreeMap<u16, Pair>,
    pub next_cid: u16,
    /// Completions that came while another was waited for.
    pub others: Vec<CompletionEntry>,
}

pub const DATA: u64 = 0x8_0000;
pub const MEMORY: usize = 0x40_0000;

impl Host {
    pub fn new(memory: Arc<Memory>, bars: Bars) -> Self {
        Self { memory, bars, pairs: BTreeMap::new(), next_cid: 0, others: Vec::new() }
    }

    pub fn read32(&self, offset: u64) -> u32 {
        let mut raw = [0; 4];
        self.bars.registers.read(offset, &mut raw);
        u32::from_le_bytes(raw)
    }

    pub fn write32(&self, offset: u64, value: u32) {
        self.bars.registers.write(offset, &value.to_le_bytes());
    }

    pub fn csts(&self) -> u32 {
        self.read32(0x1c)
    }

    pub fn until(what: &str, mut f: impl FnMut() -> bool) {
        let start = Instant::now();
        while !f() {
            assert!(start.elapsed() < PATIENCE, "{what} did not happen");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// As Linux does: CC without EN, then with it.
    pub fn enable(&mut self) {
        let entries = 32u16;
        self.write32(0x24, u32::from(entries - 1) << 16 | u32::from(entries - 1));
        for (offset, value) in [(0x28, 0u64), (0x30, 0x1000)] {
            self.write32(offset, value as u32);
            self.write32(offset + 4, (value >> 32) as u32);
        }
        self.memory.poke(0x1000, &[0; 32 * 16]);
        self.write32(0x14, 6 << 16 | 4 << 20);
        self.write32(0x14, 6 << 16 | 4 << 20 | 1);
        Self::until("CSTS.RDY", || self.csts() & 3 != 0);
        assert_eq!(self.csts(), 1, "CSTS after enable");
        self.pairs.clear();
        self.pairs.insert(0, Pair { qid: 0, sq: 0, cq: 0x1000, entries, tail: 0, head: 0, phase: true });
    }

    pub fn disable(&mut self) {
        self.write32(0x14, 6 << 16 | 4 << 20);
        Self::until("CSTS.RDY = 0", || self.csts() & 1 == 0);
        self.pairs.clear();
    }

    pub fn ring(&self, index: u16, value: u32) {
        self.bars.doorbells.write(self.bars.doorbell_offset + u64::from(index) * 4, &value.to_le_bytes());
    }

    /// Puts a command into a queue without ringing. Returns its identifier.
    pub fn push(&mut self, qid: u16, mut entry: SubmissionEntry) -> u16 {
        self.next_cid = self.next_cid.wrapping_add(1);
        entry.cid = self.next_cid;
        let pair = self.pairs.get_mut(&qid).unwrap();
        self.memory.poke(pair.sq + u64::from(pair.tail) * 64, &entry.encode());
        pair.tail = (pair.tail + 1) % pair.entries;
        entry.cid
    }

    pub fn submit(&mut self, qid: u16, entry: SubmissionEntry) -> u16 {
        let cid = self.push(qid, entry);
        self.ring(qid * 2, self.pairs[&qid].tail.into());
        cid
    }

    /// The next completion of a queue, where there is one.
    pub fn poll(&mut self, qid: u16) -> Option<CompletionEntry> {
        let pair = self.pairs.get_mut(&qid).unwrap();
        let raw = self.memory.peek(pair.cq + u64::from(pair.head) * 16, 16);
        let entry = CompletionEntry::decode(raw.as_slice().try_into().unwrap());
        if entry.phase() != pair.phase {
            return None;
        }
        pair.head = (pair.head + 1) % pair.entries;
        if pair.head == 0 {
            pair.phase = !pair.phase;
        }
        let head = pair.head;
        self.ring(qid * 2 + 1, head.into());
        Some(entry)
    }

    pub fn next(&mut self, qid: u16) -> CompletionEntry {
        let start = Instant::now();
        loop {
            if let Some(entry) = self.poll(qid) {
                return entry;
            }
            assert!(start.elapsed() < PATIENCE, "no completion on queue {qid}; CSTS {:#x}", self.csts());
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// No completion of a queue for a while.
    pub fn silent(&mut self, qid: u16, during: Duration) {
        let start = Instant::now();
        while start.elapsed() < during {
            if let Some(entry) = self.poll(qid) {
                panic!("completion {entry:?} on queue {qid}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn wait(&mut self, qid: u16, cid: u16) -> CompletionEntry {
        loop {
            if let Some(at) = self.others.iter().position(|entry| entry.cid == cid) {
                return self.others.remove(at);
            }
            let entry = self.next(qid);
            if entry.cid == cid {
                return entry;
            }
            self.others.push(entry);
        }
    }

    pub fn run(&mut self, qid: u16, entry: SubmissionEntry) -> CompletionEntry {
        let cid = self.submit(qid, entry);
        self.wait(qid, cid)
    }

    pub fn admin(&mut self, entry: SubmissionEntry) -> CompletionEntry {
        self.run(0, entry)
    }

    pub fn admin_ok(&mut self, entry: SubmissionEntry) -> u64 {
        let done = self.admin(entry);
        assert!(done.status().is_success(), "opcode {:#x}: {}", entry.opcode, done.status());
        done.result()
    }

    /// Creates queue pair `qid` on vector `vector`.
    pub fn create_pair(&mut self, qid: u16, entries: u16, vector: u16) {
        let (sq, cq) = (0x1_0000 * u64::from(qid), 0x1_0000 * u64::from(qid) + 0x8000);
        self.memory.poke(cq, &vec![0; usize::from(entries) * 16]);
        let create = CreateIoCq { qid, entries: entries.into(), contiguous: true, interrupts: true, vector };
        self.admin_ok(create.encode().unwrap().to_entry(0, cq, 0));
        let create = CreateIoSq { qid, entries: entries.into(), contiguous: true, priority: 0, cqid: qid };
        self.admin_ok(create.encode().unwrap().to_entry(0, sq, 0));
        self.pairs.insert(qid, Pair { qid, sq, cq, entries, tail: 0, head: 0, phase: true });
    }

    pub fn identify(&mut self, cns: u8, nsid: u32) -> Result<Vec<u8>, Status> {
        self.identify_from(cns, nsid, 0)
    }

    pub fn identify_from(&mut self, cns: u8, nsid: u32, cntid: u16) -> Result<Vec<u8>, Status> {
        let cdw10 = u32::from(cntid) << 16 | u32::from(cns);
        let entry = SubmissionEntry { opcode: opcode::IDENTIFY, nsid, prp1: DATA, cdw10, ..Default::default() };
        let done = self.admin(entry);
        if done.status().is_success() { Ok(self.memory.peek(DATA, 4096)) } else { Err(done.status()) }
    }

    /// A whole-page read or write of `pages` pages of 4096 bytes at page `at` of a namespace with blocks of 512 bytes.
    pub fn transfer(&mut self, qid: u16, op: u8, at: u64, pages: u64, data: u64) -> Status {
        let entry = self.transfer_entry(op, at, pages, data);
        self.run(qid, entry).status()
    }

    pub fn transfer_entry(&mut self, op: u8, at: u64, pages: u64, data: u64) -> SubmissionEntry {
        let list = DATA - 0x1000;
        let prp2 = match pages {
            1 => 0,
            2 => data + 4096,
            _ => {
                let entries: Vec<u8> = (1..pages).flat_map(|n| (data + n * 4096).to_le_bytes()).collect();
                self.memory.poke(list, &entries);
                list
            }
        };
        SubmissionEntry {
            opcode: op,
            nsid: 1,
            prp1: data,
            prp2,
            cdw10: (at * 8) as u32,
            cdw11: ((at * 8) >> 32) as u32,
            cdw12: (pages * 8 - 1) as u32,
            ..Default::default()
        }
    }

    /// Writes a pattern to page `at` and reads it back into other memory.
    pub fn verified(&mut self, qid: u16, at: u64, pages: u64, seed: u8) {
        let len = pages as usize * 4096;
        let pattern: Vec<u8> =
            (0..len).map(|n| (n as u8).wrapping_mul(7).wrapping_add((n >> 8) as u8) ^ seed).collect();
        self.memory.poke(DATA, &pattern);
        assert_eq!(self.transfer(qid, io_opcode::WRITE, at, pages, DATA), Status::SUCCESS);
        let back = DATA + 0x10_0000;
        self.memory.poke(back, &vec![0xee; len]);
        assert_eq!(self.transfer(qid, io_opcode::READ, at, pages, back), Status::SUCCESS);
        assert!(self.memory.peek(back, len) == pattern, "page {at} reads back as it was written");
    }
}

/// A namespace file that is removed with its owner.
pub struct Disk {
    pub path: PathBuf,
    pub bytes: u64,
}

static NEXT: AtomicU64 = AtomicU64::new(0);

impl Disk {
    pub fn new(bytes: u64) -> Self {
        let name = format!("towline-model-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        File::create(&path).unwrap().set_len(bytes).unwrap();
        Self { path, bytes }
    }

    pub fn config(&self, number: u8, shared: bool) -> NamespaceConfig {
        NamespaceConfig {
            path: self.path.clone(),
            size_bytes: self.bytes,
            lba_size_bytes: 512,
            nguid: [number; 16],
            uuid: [number | 0x80; 16],
            shared,
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.path));
    }
}

pub fn config(disk: &Disk) -> SubsystemConfig {
    SubsystemConfig { uuid: [7; 16], namespaces: vec![disk.config(1, true)], ..SubsystemConfig::default() }
}

/// A further PF, enabled, with `pairs` queue pairs.
pub fn pf_host(subsystem: &Arc<Subsystem>, pairs: u16) -> (Host, Arc<Controller>, Arc<Interrupts>) {
    let controller = subsystem.controller(2).unwrap();
    let memory = Memory::new(MEMORY);
    let interrupts = Arc::new(Interrupts::default());
    controller.attach(memory.clone(), interrupts.clone());
    let mut host = Host::new(memory, Bars::of(&controller));
    host.enable();
    for qid in 1..=pairs {
        host.create_pair(qid, 64, qid);
    }
    (host, controller, interrupts)
}
