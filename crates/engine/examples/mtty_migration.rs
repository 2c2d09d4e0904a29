//! Migrates one of the kernel's `mtty` sample devices to another by two sessions over a UNIX socket, with a guest's memory
//! that is written all the while. Needs five mediated devices: the third of type `mtty-1`, the others of `mtty-2`. Run by
//! `test/kernel`.
//!
//! `mtty_migration UUID UUID UUID UUID UUID …` prints TAP; the exit code is 1 where anything failed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::IoSlice;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use towline_core::channel::{ChannelErrorKind, StateChannel};
use towline_core::dirty::MarkLog;
use towline_core::fsm::DeviceState;
use towline_core::memory::GuestMemory;
use towline_engine::cancel::Cancel;
use towline_engine::error::{EngineError, LinkError};
use towline_engine::faultpoints::FaultPoints;
use towline_engine::journal::Journal;
use towline_engine::link::{Address, Link, LinkOptions, Listener, connect};
use towline_engine::session::{
    DestinationConfig, DestinationSession, DestinationTarget, FunctionOutcome, Incoming, NamedSource, SessionFunction,
    SourceConfig, SourceSession,
};
use towline_linux::memory::{MappedMemory, memfd};
use towline_linux::vfio::{Container, VfioChannel, VfioDevice};

const MEMORY: u64 = 4 << 20;
const PAGE: u64 = 4096;
/// A register of a UART that only keeps a byte.
const SCRATCH: u64 = 7;

/// What is done with two devices and an empty folder.
type Test = fn(&[String], &Path);

struct Host {
    devices: Vec<Arc<VfioDevice>>,
    memory: Arc<MappedMemory>,
    journal: Arc<Journal>,
}

fn open(uuid: &str) -> Arc<VfioDevice> {
    let group = std::fs::read_link(format!("/sys/bus/mdev/devices/{uuid}/iommu_group")).unwrap();
    let group: u32 = group.file_name().unwrap().to_str().unwrap().parse().unwrap();
    Arc::new(Container::open().unwrap().device(group, uuid).unwrap())
}

/// The scratch register of the first port, as a place in the device's descriptor.
fn scratch_register(device: &VfioDevice) -> (std::fs::File, u64) {
    let file = std::fs::File::from(device.as_fd().try_clone_to_owned().unwrap());
    (file, device.region(0).unwrap().offset + SCRATCH)
}

impl Host {
    /// Devices in RUNNING; the registers of the first have `scratch`, of the next one more.
    fn new(uuids: &[&String], journal: &Path, scratch: u8) -> Self {
        let devices: Vec<_> = uuids.iter().map(|uuid| open(uuid)).collect();
        for (device, value) in devices.iter().zip(scratch..) {
            VfioChannel::open(device).unwrap().reset().unwrap();
            let (file, at) = scratch_register(device);
            file.write_all_at(&[value], at).unwrap();
        }
        let memory = Arc::new(MappedMemory::new());
        let fd = memfd("guest", MEMORY).unwrap();
        memory.add_region(0, fd.as_fd(), 0, MEMORY).unwrap();
        Self { devices, memory, journal: Arc::new(Journal::open(journal).unwrap()) }
    }

    fn scratch(&self) -> Vec<u8> {
        let value = |device: &Arc<VfioDevice>| {
            let (file, at) = scratch_register(device);
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            byte[0]
        };
        self.devices.iter().map(value).collect()
    }

    /// Whether the kernel has every device in this state.
    fn all_in(&self, state: DeviceState) -> bool {
        self.devices.iter().all(|device| VfioChannel::open(device).unwrap().state() == Ok(state))
    }

    fn functions(&self) -> Vec<SessionFunction> {
        let function = |(n, device)| SessionFunction {
            id: format!("mtty{n}"),
            channel: Box::new(VfioChannel::open(device).unwrap()),
        };
        self.devices.iter().enumerate().map(function).collect()
    }

    fn contents(&self) -> Vec<u8> {
        let mut all = vec![0; MEMORY as usize];
        self.memory.read(0, &mut all).unwrap();
        all
    }
}

/// `MTTY_MAGIC`, the first 8 bytes of its state.
const MAGIC: [u8; 8] = 0x7e9d_0989_8c3e_2c4e_u64.to_le_bytes();

/// Flips a bit of the first port's registers in device state that passes.
struct Damage {
    inner: Box<dyn Link>,
    is_on: bool,
}

impl Link for Damage {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, LinkError> {
        self.inner.read(out)
    }

    fn write_all(&mut self, bufs: &mut [IoSlice<'_>]) -> Result<(), LinkError> {
        let mut bytes: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).collect();
        if self.is_on
            && let Some(at) = bytes.windows(MAGIC.len()).position(|w| w == MAGIC)
            && let Some(byte) = bytes.get_mut(at + 24 + 5)
        {
            *byte ^= 1;
        }
        self.inner.write_all(&mut [IoSlice::new(&bytes)])
    }

    fn arm(&mut self, cancel: &Cancel) {
        self.inner.arm(cancel);
    }

    fn disarm(&mut self) {
        self.inner.disarm();
    }

    fn idle_timeout(&self) -> Duration {
        self.inner.idle_timeout()
    }
    fn set_idle_timeout(&mut self, timeout: Duration) {
        self.inner.set_idle_timeout(timeout);
    }

    fn peer(&self) -> &str {
        self.inner.peer()
    }
}

struct End {
    source: Result<(), EngineError>,
    /// What the source's functions are in, where it gave up.
    back: Vec<FunctionOutcome>,
    destination: Result<(), EngineError>,
    same_memory: bool,
    /// Bytes of device state that the source read.
    state_bytes: u64,
}

fn source_steps(s: &mut SourceSession, with_precopy: bool, end: &mut End, stop: &dyn Fn()) -> Result<(), EngineError> {
    let offer = s.offer(serde_json::json!({}))?;
    assert_eq!(offer.mismatches, vec![]);
    s.start_tracking()?;
    if with_precopy {
        let stats = s.precopy_state()?;
        assert_eq!(stats.bytes, 24 * stats.functions as u64);
    }
    for _ in 0..3 {
        s.memory_pass(&mut |_| {})?;
    }
    if with_precopy {
        assert_eq!(s.precopy_state()?.bytes, 0);
    }
    stop();
    s.quiesce()?;
    s.stop()?;
    end.state_bytes = s.final_pass()?.state_bytes;
    s.prepare()?;
    s.commit()?;
    s.wait_running()?;
    s.release()?;
    Ok(())
}

fn migrate(a: &Host, b: &Host, dir: &Path, with_precopy: bool, is_damaged: bool) -> End {
    let options = LinkOptions { idle_timeout: Duration::from_secs(60), ..LinkOptions::default() };
    let socket = dir.join("socket");
    let _ = std::fs::remove_file(&socket);
    let address: Address = format!("unix://{}", socket.display()).parse().unwrap();
    let listener = Listener::bind(&address, options.clone()).unwrap();
    let log = Arc::new(MarkLog::new());
    let config = SourceConfig {
        session: uuid::Uuid::new_v4(),
        functions: a.functions(),
        memory: a.memory.clone(),
        dirty_sources: vec![NamedSource { name: "guest".into(), source: Box::new(log.source()) }],
        page_size_bytes: PAGE,
        sections: vec![],
        fence: a.journal.clone(),
        cancel: Cancel::new(),
        bandwidth_limit_bytes_per_s: None,
        points: Arc::new(FaultPoints::default()),
        record_to: None,
    };
    let running = AtomicBool::new(true);
    let mut end = End { source: Ok(()), back: vec![], destination: Ok(()), same_memory: false, state_bytes: 0 };
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let link = listener.accept(Duration::from_secs(60), &Cancel::new()).unwrap();
            let config = DestinationConfig {
                fence: b.journal.clone(),
                expected: Vec::new(),
                cancel: Cancel::new(),
                points: Arc::new(FaultPoints::default()),
                max_section_bytes: 1 << 20,
            };
            let mut s = DestinationSession::new(config, Box::new(link)).unwrap();
            let Incoming::Offer(_) = s.read_offer()? else { panic!("no offer") };
            s.answer(DestinationTarget { functions: b.functions(), memory: b.memory.clone() }, vec![])?;
            s.receive(&mut |_| {})?;
            s.prepared()?;
            s.wait_commit()?;
            s.resume()?;
            s.running()?;
            Ok::<_, EngineError>(())
        });
        // A guest that writes its memory until it is stopped.
        let guest = scope.spawn(|| {
            let mut n = 0u64;
            while running.load(Ordering::Acquire) {
                n += 1;
                let at = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % (MEMORY - 8);
                a.memory.write(at, &n.to_le_bytes()).unwrap();
                log.mark(at, 8);
                if n.is_multiple_of(64) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        let guest = std::cell::Cell::new(Some(guest));
        let stop = || {
            running.store(false, Ordering::Release);
            if let Some(guest) = guest.take() {
                guest.join().unwrap();
            }
        };
        let link = connect(&address, &options, &Cancel::new()).unwrap();
        let link = Damage { inner: Box::new(link), is_on: is_damaged };
        let mut s = SourceSession::new(config, Box::new(link)).unwrap();
        end.source = source_steps(&mut s, with_precopy, &mut end, &stop);
        stop();
        if end.source.is_err() {
            end.back = s.abort("the other side refused").unwrap_or_default();
        }
        end.destination = receiving.join().unwrap();
        end.same_memory = a.contents() == b.contents();
    });
    end
}

/// `count` functions in one session.
fn moves(uuids: &[String], dir: &Path, count: usize, with_precopy: bool) {
    let (here, there) = sides(uuids, count);
    let (a, b) = (Host::new(&here, &dir.join("a"), 0x6B), Host::new(&there, &dir.join("b"), 0x00));
    let scratch = a.scratch();
    assert_ne!(scratch, b.scratch());
    let end = migrate(&a, &b, dir, with_precopy, false);
    end.source.unwrap();
    end.destination.unwrap();
    assert_eq!(end.state_bytes, 96 * count as u64);
    assert!(end.same_memory);
    assert_eq!(b.scratch(), scratch);
    assert!(a.all_in(DeviceState::Stop) && b.all_in(DeviceState::Running));
}

/// The source goes on as if nothing had been, without a reset, and can begin anew.
fn came_back(a: &Host, end: &End) {
    assert!(end.source.is_err() && end.destination.is_err(), "{:?} {:?}", end.source, end.destination);
    assert_eq!(end.back.len(), 1);
    assert!(!end.back[0].was_reset, "{:?}", end.back);
    assert!(a.all_in(DeviceState::Running));
    assert_eq!(a.scratch(), [0x6C]);
}

/// A bit of the device state itself on its way, which `mtty` has no checksum for: it is found before anything runs with it.
fn damage_is_found(uuids: &[String], dir: &Path) {
    let (here, there) = sides(uuids, 1);
    let (a, b) = (Host::new(&here, &dir.join("a"), 0x6C), Host::new(&there, &dir.join("b"), 0x01));
    came_back(&a, &migrate(&a, &b, dir, false, true));
    assert!(b.all_in(DeviceState::Running));
    assert_eq!(b.scratch(), [0x01]);
    migrate(&a, &b, dir, true, false).source.unwrap();
    assert_eq!(b.scratch(), [0x6C]);
}

/// What pre-copy sends first is there for this: another model says no while the source still runs.
fn another_model_refuses(uuids: &[String], dir: &Path) {
    let (here, _) = sides(uuids, 1);
    let (a, b) = (Host::new(&here, &dir.join("a"), 0x6C), Host::new(&[&uuids[OTHER_MODEL]], &dir.join("b"), 0x01));
    let end = migrate(&a, &b, dir, true, false);
    came_back(&a, &end);
    assert_eq!(end.state_bytes, 0, "it was never stopped");
    let Err(EngineError::Channel { source, .. }) = &end.destination else { panic!("{:?}", end.destination) };
    assert_eq!((source.kind, source.errno), (ChannelErrorKind::BadState, Some(14)), "EFAULT");
    assert!(b.all_in(DeviceState::Running));
    assert_eq!(b.scratch(), [0x01]);
}

/// Where the device of another model is among the arguments.
const OTHER_MODEL: usize = 2;

/// The devices of the source and of the destination.
fn sides(uuids: &[String], count: usize) -> (Vec<&String>, Vec<&String>) {
    let same: Vec<&String> = uuids.iter().enumerate().filter(|(n, _)| *n != OTHER_MODEL).map(|(_, u)| u).collect();
    let side = |first: usize| same.iter().skip(first).step_by(2).take(count).copied().collect();
    (side(0), side(1))
}

fn main() -> ExitCode {
    let uuids: Vec<String> = std::env::args().skip(1).take(5).collect();
    if uuids.len() != 5 {
        eprintln!("usage: mtty_migration UUID UUID UUID UUID UUID");
        return ExitCode::from(2);
    }
    let tests: [(&str, Test); 6] = [
        ("a function moves with its memory, with pre-copy", |uuids, dir| moves(uuids, dir, 1, true)),
        ("a function moves with its memory, without pre-copy", |uuids, dir| moves(uuids, dir, 1, false)),
        ("two functions move together, with pre-copy", |uuids, dir| moves(uuids, dir, 2, true)),
        ("two functions move together, without pre-copy", |uuids, dir| moves(uuids, dir, 2, false)),
        ("damaged device state never runs and the source goes on", damage_is_found),
        ("another model refuses before the source was stopped", another_model_refuses),
    ];
    println!("1..{}", tests.len());
    let mut failed = false;
    for (n, (name, test)) in tests.iter().enumerate() {
        let dir = std::env::temp_dir().join(format!("mtty-migration-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let ok = catch_unwind(AssertUnwindSafe(|| test(&uuids, &dir))).is_ok();
        failed |= !ok;
        println!("{}ok {} - {name}", if ok { "" } else { "not " }, n + 1);
    }
    ExitCode::from(u8::from(failed))
}
