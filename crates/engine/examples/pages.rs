//! The page pipeline against raw TCP of the same bytes, interleaved: `cargo run --release --example pages [MiB] [samples]`.
//!
//! Prints one JSON object a case: medians in milliseconds and the median of the ratios of neighbouring samples.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench stops at the first surprise")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use towline_core::channel::{ChannelError, Pending, ReadOutcome, StateChannel};
use towline_core::dirty::MarkLog;
use towline_core::fsm::{DeviceState, MigrationFlags};
use towline_core::memory::GuestMemory;
use towline_engine::cancel::Cancel;
use towline_engine::journal::Journal;
use towline_engine::link::{Address, LinkOptions, Listener, connect};
use towline_engine::session::{
    DestinationConfig, DestinationSession, DestinationTarget, NamedSource, SessionFunction, SourceConfig, SourceSession,
};
use towline_linux::memory::{MappedMemory, memfd};
use uuid::Uuid;

/// A device without state.
struct Nothing(DeviceState);

impl StateChannel for Nothing {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags(MigrationFlags::STOP_COPY)
    }
    fn state(&mut self) -> Result<DeviceState, ChannelError> {
        Ok(self.0)
    }
    fn set_state(&mut self, to: DeviceState) -> Result<(), ChannelError> {
        self.0 = to;
        Ok(())
    }
    fn read(&mut self, _: &mut [u8]) -> Result<ReadOutcome, ChannelError> {
        Ok(ReadOutcome::End)
    }
    fn write(&mut self, _: &[u8]) -> Result<(), ChannelError> {
        Ok(())
    }
    fn pending(&mut self) -> Result<Pending, ChannelError> {
        Ok(Pending::default())
    }
    fn reset(&mut self) -> Result<(), ChannelError> {
        self.0 = DeviceState::Running;
        Ok(())
    }
}

fn function() -> SessionFunction {
    SessionFunction { id: "none".into(), channel: Box::new(Nothing(DeviceState::Running)) }
}

/// Written all over, so that neither side pays for page faults.
fn memory(bytes: u64, seed: u64) -> Arc<MappedMemory> {
    let fd = memfd("bench", bytes).unwrap();
    let memory = MappedMemory::new();
    memory.add_region(0, fd.as_fd(), 0, bytes).unwrap();
    let mut x = seed | 1;
    let mut page = vec![0; 4096];
    for gpa in (0..bytes).step_by(4096) {
        for word in page.as_chunks_mut::<8>().0 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *word = x.to_le_bytes();
        }
        memory.write(gpa, &page).unwrap();
    }
    Arc::new(memory)
}

/// Sends `bytes` in pieces of 1 MiB and waits for one byte back.
fn raw(bytes: u64) -> Duration {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let reader = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 1 << 20];
        let mut left = bytes;
        while left > 0 {
            let n = (buffer.len() as u64).min(left) as usize;
            left -= socket.read(&mut buffer[..n]).unwrap() as u64;
        }
        socket.write_all(&[1]).unwrap();
    });
    let mut socket = TcpStream::connect(at).unwrap();
    socket.set_nodelay(true).unwrap();
    let buffer = vec![0x5A; 1 << 20];
    let start = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let n = (buffer.len() as u64).min(left) as usize;
        socket.write_all(&buffer[..n]).unwrap();
        left -= n as u64;
    }
    socket.read_exact(&mut [0]).unwrap();
    let took = start.elapsed();
    reader.join().unwrap();
    took
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u64>().expect("MiB and samples are numbers"));
    let bytes = args.next().unwrap_or(512) << 20;
    let samples = args.next().unwrap_or(9);
    let dir = std::env::temp_dir().join(format!("towline-bench-{}", std::process::id()));
    let (here, there) = (memory(bytes, 1), memory(bytes, 2));
    let fence = |name: &str| Arc::new(Journal::open(dir.join(name)).unwrap());
    let listener = Listener::bind(&"tcp://127.0.0.1:0".parse::<Address>().unwrap(), LinkOptions::default()).unwrap();
    let at = listener.address().clone();
    let config = DestinationConfig {
        fence: fence("there"),
        cancel: Cancel::new(),
        points: Arc::default(),
        max_section_bytes: 0,
    };
    let there_memory = there.clone();
    let receiving = std::thread::spawn(move || {
        let link = listener.accept(Duration::from_secs(10), &Cancel::new()).unwrap();
        let mut session = DestinationSession::new(config, Box::new(link)).unwrap();
        session.read_offer().unwrap();
        let target = DestinationTarget { functions: vec![function()], memory: there_memory };
        session.answer(target, vec![]).unwrap();
        // Ends with the source's abort.
        session.receive(&mut |_| {}).unwrap_err();
    });
    let log = Arc::new(MarkLog::new());
    let link = connect(&at, &LinkOptions::default(), &Cancel::new()).unwrap();
    let mut session = SourceSession::new(
        SourceConfig {
            session: Uuid::new_v4(),
            functions: vec![function()],
            memory: here.clone(),
            dirty_sources: vec![NamedSource { name: "marks".into(), source: Box::new(log.source()) }],
            page_size_bytes: 4096,
            sections: vec![],
            fence: fence("here"),
            cancel: Cancel::new(),
            bandwidth_limit_bytes_per_s: None,
            points: Arc::default(),
            record_to: None,
        },
        Box::new(link),
    )
    .unwrap();
    session.offer(serde_json::Value::Null).unwrap();
    session.start_tracking().unwrap();
    session.memory_pass(&mut |_| {}).unwrap();
    for (case, percent, goal) in [("full", 100, 1.25), ("10% random", 10, 1.35)] {
        let (mut ours, mut theirs, mut ratios) = (vec![], vec![], vec![]);
        let mut x = 0x1234_5678_9ABC_DEF1u64;
        for _ in 0..samples {
            for page in 0..bytes / 4096 {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                if x % 100 < percent {
                    log.mark(page * 4096, 1);
                }
            }
            let stats = session.memory_pass(&mut |_| {}).unwrap();
            let raw_ms = raw(stats.wire_bytes).as_secs_f64() * 1000.0;
            ours.push(stats.ms);
            theirs.push(raw_ms);
            ratios.push(stats.ms / raw_ms);
        }
        let (ours, theirs, ratio) = (median(ours), median(theirs), median(ratios));
        let met = ratio <= goal;
        println!(
            "{{\"bench\":\"pages\",\"case\":\"{case}\",\"unit\":\"ms\",\"ours\":{ours:.2},\"peer\":\"raw TCP\",\
             \"theirs\":{theirs:.2},\"ratio\":{ratio:.3},\"goal\":\"<= {goal}\",\"met\":{met}}}"
        );
    }
    session.abort("the bench is over").unwrap();
    receiving.join().unwrap();
    let _ = std::fs::remove_dir_all(dir);
}
