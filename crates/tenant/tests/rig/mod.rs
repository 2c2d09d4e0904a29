//! One host with an embedded subsystem, a guest's memory, a function and a collector of the tenant's log.
#![allow(dead_code)]

use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use towline_core::dirty::MarkLog;
use towline_core::memory::GuestMemory;
use towline_linux::memory::{MappedMemory, memfd};
use towline_nvme::admin::AdminClient;
use towline_nvme::model::{
    CONTROLLING_CNTLID, Controller, EmbeddedAdmin, InterruptSink, NamespaceConfig, Subsystem, SubsystemConfig,
};
use towline_nvme::resources::{Resource, VirtualizationAction};
use towline_tenant::block::{self, Found};
use towline_tenant::record::{Kind, RECORD_BYTES, Record};
use towline_tenant::{DeviceView, RunOptions, Tenant, TenantHandle, TenantInterrupts, TenantSpec};

pub const MEMORY: u64 = 48 << 20;
pub const UNITS: u64 = 2048;

#[derive(Clone, Copy, Debug)]
pub enum Function {
    Pf,
    Vf,
    Siov,
}

pub struct Rig {
    pub subsystem: Arc<Subsystem>,
    pub controller: Arc<Controller>,
    pub admin: AdminClient,
    pub memory: Arc<MappedMemory>,
    pub marks: Arc<MarkLog>,
    pub interrupts: Arc<TenantInterrupts>,
    pub view: DeviceView,
    path: PathBuf,
    /// Removes the disk in the end.
    owns_disk: bool,
}

impl Rig {
    pub fn new(function: Function, lba_size_bytes: u32) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("towline-tenant-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::File::create(&path).unwrap().set_len(UNITS * 4096).unwrap();
        let mut rig = Self::on(path, function, lba_size_bytes);
        rig.owns_disk = true;
        rig
    }

    /// Another host with the same disk.
    pub fn beside(&self, function: Function, lba_size_bytes: u32) -> Self {
        Self::on(self.path.clone(), function, lba_size_bytes)
    }

    fn on(path: PathBuf, function: Function, lba_size_bytes: u32) -> Self {
        let namespace = NamespaceConfig {
            path: path.clone(),
            size_bytes: UNITS * 4096,
            lba_size_bytes,
            nguid: [1; 16],
            uuid: [2; 16],
            shared: true,
        };
        let config = SubsystemConfig { uuid: [3; 16], namespaces: vec![namespace], ..Default::default() };
        let subsystem = Subsystem::open(config).unwrap();
        let admin = AdminClient::new(Arc::new(EmbeddedAdmin::new(&subsystem).unwrap()));
        let controller = provision(&subsystem, &admin, function);
        let memory = Arc::new(MappedMemory::new());
        memory.add_region(0, memfd("tenant", MEMORY).unwrap().as_fd(), 0, MEMORY).unwrap();
        let interrupts = Arc::new(TenantInterrupts::new());
        let view = DeviceView::of_embedded(&subsystem, &controller).unwrap();
        let rig = Self {
            subsystem,
            controller,
            admin,
            memory,
            marks: Arc::default(),
            interrupts,
            view,
            path,
            owns_disk: false,
        };
        rig.plug(rig.interrupts.clone());
        rig
    }

    /// Gives the function the guest's memory.
    pub fn plug(&self, interrupts: Arc<dyn InterruptSink>) {
        self.controller.attach(self.memory.clone(), interrupts);
    }

    pub fn spec(&self) -> TenantSpec {
        TenantSpec {
            memory_len: MEMORY,
            units: UNITS,
            working_set_pages: 256,
            target_iops: 2000,
            doorbell_base: self.view.doorbell_base,
            ..TenantSpec::default()
        }
    }

    pub fn boot(&self, spec: TenantSpec) -> Tenant {
        let (registers, doorbells) = (self.view.registers.clone(), self.view.doorbells.clone());
        Tenant::boot(self.memory.clone(), registers, doorbells, spec).unwrap()
    }

    pub fn attach(&self) -> Tenant {
        let (registers, doorbells) = (self.view.registers.clone(), self.view.doorbells.clone());
        Tenant::attach(self.memory.clone(), registers, doorbells, 0, self.view.doorbell_base).unwrap()
    }

    pub fn run(&self, tenant: Tenant, host_tag: u8) -> (TenantHandle, Log) {
        self.run_with(tenant, RunOptions { host_tag, flush_only: false }, Duration::ZERO)
    }

    /// The log's reader sleeps for `reader_sleeps` before every read.
    pub fn run_with(&self, tenant: Tenant, options: RunOptions, reader_sleeps: Duration) -> (TenantHandle, Log) {
        let (reader, writer) = std::io::pipe().unwrap();
        let handle = tenant.run(OwnedFd::from(writer), self.marks.clone(), self.interrupts.clone(), options).unwrap();
        (handle, Log::collect(reader, reader_sleeps))
    }

    /// What every unit of the disk holds.
    pub fn disk(&self, seed: u64) -> Vec<Found> {
        let bytes = std::fs::read(&self.path).unwrap();
        let blocks = bytes.as_chunks::<4096>().0;
        blocks.iter().zip(0..).map(|(block, unit)| block::inspect(block, unit, seed)).collect()
    }

    /// Overwrites the first `units` units of the disk behind everybody's back.
    pub fn damage(&self, units: usize) {
        use std::os::unix::fs::FileExt;
        let file = std::fs::OpenOptions::new().write(true).open(&self.path).unwrap();
        file.write_all_at(&vec![0x55; units * 4096], 0).unwrap();
    }

    pub fn snapshot(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY as usize];
        self.memory.read(0, &mut bytes).unwrap();
        bytes
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.subsystem.close();
        if self.owns_disk {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn provision(subsystem: &Subsystem, admin: &AdminClient, function: Function) -> Arc<Controller> {
    let cntlid = match function {
        Function::Pf => CONTROLLING_CNTLID + 1,
        Function::Vf => {
            subsystem.set_num_vfs(1).unwrap();
            admin.secondary_controllers().unwrap().iter().find(|s| s.vfn == 1).unwrap().scid
        }
        Function::Siov => subsystem.create_siov().unwrap(),
    };
    if !matches!(function, Function::Pf) {
        let manage = |action, resource, count| admin.virtualization_manage(action, cntlid, resource, count).unwrap();
        manage(VirtualizationAction::Offline, Resource::Queues, 0);
        manage(VirtualizationAction::Assign, Resource::Queues, 4);
        manage(VirtualizationAction::Assign, Resource::Interrupts, 4);
    }
    // A PF has shared namespaces attached from the start.
    if !matches!(function, Function::Pf) {
        admin.namespace_attach(1, &[cntlid]).unwrap();
        admin.virtualization_manage(VirtualizationAction::Online, cntlid, Resource::Queues, 0).unwrap();
    }
    subsystem.controller(cntlid).unwrap()
}

/// Reads a log to its end.
pub struct Log(JoinHandle<Vec<u8>>);

impl Log {
    fn collect(mut reader: std::io::PipeReader, sleep: Duration) -> Self {
        Self(std::thread::spawn(move || {
            let (mut all, mut part) = (Vec::new(), vec![0; 4096]);
            loop {
                std::thread::sleep(sleep);
                match reader.read(&mut part).unwrap() {
                    0 => return all,
                    n => all.extend_from_slice(&part[..n]),
                }
            }
        }))
    }

    /// Call it after the tenant was stopped.
    pub fn records(self) -> Vec<Record> {
        let bytes = self.0.join().unwrap();
        let (records, rest) = bytes.as_chunks::<RECORD_BYTES>();
        assert!(rest.is_empty());
        records.iter().map(|r| Record::decode(r).unwrap()).collect()
    }
}

/// What a log says, by rules as simple as can be: the demo's witness has the full ones.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Sequences below the final one that were never completed.
    pub missing: Vec<u64>,
    pub duplicates: usize,
    pub errors: usize,
    /// Reads and units of the disk that show what was not written last.
    pub wrong: Vec<String>,
}

pub fn judge(rig: &Rig, records: &[Record]) -> Judgement {
    let mut judgement = Judgement::default();
    let mut current = vec![Found::Blank; UNITS as usize];
    let mut completed = BTreeSet::new();
    for r in records {
        if matches!(r.kind, Kind::Write | Kind::Read | Kind::Flush) {
            completed.insert(r.seq);
        }
        match r.kind {
            Kind::Write => {
                let version = block::Version { seq: r.found_seq, epoch: r.found_epoch };
                current[r.unit as usize..][..usize::from(r.units)].fill(Found::Version(version));
            }
            Kind::Read => {
                let found = match r.found_seq {
                    0 => Found::Blank,
                    u64::MAX => Found::Invalid,
                    seq => Found::Version(block::Version { seq, epoch: r.found_epoch }),
                };
                let right = found == current[r.unit as usize];
                if !right || r.flags != 0 {
                    judgement.wrong.push(format!("{r:?}: not {:?}", current[r.unit as usize]));
                }
            }
            Kind::Duplicate => judgement.duplicates += 1,
            Kind::Error => judgement.errors += 1,
            _ => {}
        }
    }
    let last = records.iter().rev().find(|r| r.kind == Kind::Drained).expect("not drained");
    judgement.missing = (1..last.next_seq).filter(|seq| !completed.contains(seq)).collect();
    for (unit, found) in rig.disk(rig.spec().seed).into_iter().enumerate() {
        let unfinished = matches!(found, Found::Version(v) if judgement.missing.contains(&v.seq));
        if found != current[unit] && !unfinished {
            judgement.wrong.push(format!("unit {unit}: {found:?}, not {:?}", current[unit]));
        }
    }
    judgement
}
