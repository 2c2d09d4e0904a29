//! Both ends of a session, as every group opens them.

use std::io::BufRead;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use towline_core::dirty::MarkLog;
use towline_core::fsm::DeviceState;
use towline_engine::cancel::Cancel;
use towline_engine::fence::{Fence, Record, Role};
use towline_engine::journal::Journal;
use towline_engine::link::{Address, LinkOptions, connect};
use towline_engine::session::{NamedSource, SessionFunction, SourceConfig, SourceSession};
use uuid::Uuid;

use crate::device::{Device, Stretches, TimedFence, Timing};
use crate::guest::{Guest, PAGE};
use crate::machine::{Side, pin};
use crate::raw::Raw;

/// What the destination is told, in a file of its folder.
#[derive(Serialize, Deserialize)]
pub struct Order {
    pub guest_bytes: u64,
    /// Whether every page of it is written before the first session.
    pub is_prefaulted: bool,
    /// The longest transfer of raw TCP.
    pub raw_bytes: usize,
    pub state_bytes: usize,
    pub load_us: u64,
}

/// Where it can be reached, its first line.
#[derive(Serialize, Deserialize)]
pub struct Reach {
    pub engine: String,
    pub raw: std::net::SocketAddr,
}

/// What it says after each session that it ran to the end.
#[derive(Serialize, Deserialize)]
pub struct Resumed {
    /// `CLOCK_MONOTONIC` in nanoseconds when the function ran.
    pub at_ns: u64,
    /// When its device or its journal was busy.
    pub busy: Vec<(u64, u64)>,
}

/// A folder that goes away with its owner.
pub struct Folder(pub PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("towline-bench-{}-{count}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that stays in the place for temporary things does no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The source's process: its guest, and the destination's process.
pub struct Pair {
    pub guest: Guest,
    /// The destination's guest, which this process looks at only after a session.
    file: OwnedFd,
    pub child: Child,
    /// Its lines.
    pub said: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
    engine: Address,
    pub raw: Raw,
    pub fence: Arc<TimedFence>,
    pub busy: Stretches,
    _folder: Folder,
}

impl Drop for Pair {
    fn drop(&mut self) {
        // It waits for the next session; there is nothing to lose.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Pair {
    /// `raw_bytes` 0: raw TCP is not wanted, and the destination starts with fresh memory.
    pub fn new(guest_bytes: u64, raw_bytes: usize, timing: Timing) -> Self {
        let folder = Folder::new();
        let file = crate::guest::file(guest_bytes);
        // The order goes in by the folder, the destination's memory by its standard input.
        let order = Order {
            guest_bytes,
            is_prefaulted: raw_bytes != 0,
            raw_bytes,
            state_bytes: timing.state_bytes,
            load_us: timing.load.as_micros() as u64,
        };
        std::fs::write(folder.0.join("order"), serde_json::to_vec(&order).unwrap()).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("--destination")
            .arg(&folder.0)
            .stdin(Stdio::from(file.try_clone().unwrap()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Not before: the other process would be kept on the same processor, with no way off it.
        pin(Side::Source);
        let mut said = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let reach: Reach = serde_json::from_str(&said.next().expect("the destination did not start").unwrap()).unwrap();
        let busy = Stretches::default();
        let journal = Journal::open(folder.0.join("source")).unwrap();
        Self {
            guest: Guest::map(crate::guest::file(guest_bytes), guest_bytes),
            file,
            child,
            said,
            engine: reach.engine.parse().unwrap(),
            raw: Raw::connect(reach.raw),
            fence: Arc::new(TimedFence { journal, busy: busy.clone() }),
            busy,
            _folder: folder,
        }
    }

    /// The destination's guest as it is now. Mapping it costs memory, so it is not done before it is asked for.
    pub fn other_guest(&self) -> Guest {
        Guest::map(&self.file, self.guest.bytes)
    }

    /// As if the function had been migrated back: this host may offer it again.
    pub fn comes_back(&self) {
        let (session, role, functions) = (Uuid::new_v4(), Role::Destination, vec![FUNCTION.to_owned()]);
        let epoch = self.fence.highest_epoch(&functions).unwrap() + 1;
        self.fence.append(session, role, Record::Opened { session, role, functions, epoch, file: None }).unwrap();
        self.fence.append(session, role, Record::Committed { epoch }).unwrap();
    }

    /// A session that has begun to track what is written.
    pub fn session(&self, timing: Timing) -> (SourceSession, Arc<MarkLog>) {
        let log = Arc::new(MarkLog::new());
        let link = connect(&self.engine, &LinkOptions::default(), &Cancel::new()).unwrap();
        let config = SourceConfig {
            session: Uuid::new_v4(),
            functions: vec![function(timing, DeviceState::Running, &self.busy)],
            memory: self.guest.memory.clone(),
            dirty_sources: vec![NamedSource { name: "marks".into(), source: Box::new(log.source()) }],
            page_size_bytes: PAGE,
            sections: vec![],
            fence: self.fence.clone(),
            cancel: Cancel::new(),
            bandwidth_limit_bytes_per_s: None,
            points: Arc::default(),
            record_to: None,
        };
        let mut session = SourceSession::new(config, Box::new(link)).unwrap();
        let outcome = session.offer(serde_json::Value::Null).unwrap();
        assert!(outcome.mismatches.is_empty(), "the destination refused: {:?}", outcome.mismatches);
        session.start_tracking().unwrap();
        (session, log)
    }
}

/// The name of the one function of every session.
const FUNCTION: &str = "device";

/// It.
pub fn function(timing: Timing, state: DeviceState, busy: &Stretches) -> SessionFunction {
    SessionFunction { id: FUNCTION.into(), channel: Box::new(Device::new(timing, state, busy)) }
}

pub fn fence(folder: &Path, busy: &Stretches) -> Arc<dyn Fence> {
    Arc::new(TimedFence { journal: Journal::open(folder).unwrap(), busy: busy.clone() })
}
