//! Links: what may listen where, waits that end, and a caller's own stream.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::io::{self, IoSlice, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::*;
use towline_core::dirty::MarkLog;
use towline_core::fsm::DeviceState;
use towline_engine::cancel::Cancel;
use towline_engine::error::{EngineError, LinkError};
use towline_engine::link::{
    Address, ByteSink, ByteSource, CallbackLink, Link, LinkOptions, Listener, SocketLink, connect,
};
use towline_engine::session::{DestinationSession, SourceSession};
use uuid::Uuid;

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

#[test]
fn plain_tcp_listens_on_loopback_only() {
    let refused = Listener::bind(&address("tcp://0.0.0.0:0"), LinkOptions::default());
    assert!(matches!(refused, Err(LinkError::Address { .. })));
    let options = LinkOptions { allow_remote_plaintext: true, ..LinkOptions::default() };
    Listener::bind(&address("tcp://0.0.0.0:0"), options).unwrap();
}

#[test]
fn a_unix_socket_is_private_and_goes_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let at = Address::Unix(path.clone());
    let listener = Listener::bind(&at, LinkOptions::default()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(Listener::bind(&at, LinkOptions::default()), Err(LinkError::Address { .. })));
    drop(listener);
    assert!(!path.exists());
    // The file of a listener that died is replaced; other files are not.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    drop(Listener::bind(&at, LinkOptions::default()).unwrap());
    std::fs::write(&path, "precious").unwrap();
    assert!(Listener::bind(&at, LinkOptions::default()).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn waits_end() {
    let listener = Listener::bind(&address("tcp://127.0.0.1:0"), LinkOptions::default()).unwrap();
    let none = listener.accept(Duration::from_millis(30), &Cancel::new());
    assert!(matches!(none, Err(LinkError::Timeout { .. })));
    let cancel = Cancel::new();
    cancel.cancel();
    assert!(matches!(listener.accept(TEST_LIMIT, &cancel), Err(LinkError::Cancelled)));
    let nobody = LinkOptions { connect_timeout: Duration::from_millis(50), ..LinkOptions::default() };
    let missing = tempfile::tempdir().unwrap().path().join("nobody");
    let result = connect(&Address::Unix(missing), &nobody, &Cancel::new());
    assert!(matches!(result, Err(LinkError::Timeout { .. })));
}

#[test]
fn a_silent_peer_is_noticed_in_both_directions() {
    let (a, b) = UnixStream::pair().unwrap();
    let options = LinkOptions { idle_timeout: Duration::from_millis(150), ..LinkOptions::default() };
    let mut link = SocketLink::from_fd(a.into(), &options).unwrap();
    assert!(matches!(link.read(&mut [0; 8]), Err(LinkError::Idle { .. })));
    // The peer reads nothing: the socket's buffer fills up.
    let block = vec![0; 8 << 20];
    assert!(matches!(link.write_all(&mut [IoSlice::new(&block)]), Err(LinkError::Idle { .. })));
    drop(b);
    assert!(matches!(link.write_all(&mut [IoSlice::new(&block)]), Err(LinkError::Closed { .. })));
}

#[test]
fn cancelling_ends_a_blocked_read_at_once() {
    let (a, _b) = UnixStream::pair().unwrap();
    let mut link = SocketLink::from_fd(a.into(), &LinkOptions::default()).unwrap();
    let cancel = Cancel::new();
    link.arm(&cancel);
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            assert!(cancel.cancel());
        });
        assert!(matches!(link.read(&mut [0; 8]), Err(LinkError::Cancelled)));
    });
    assert!(start.elapsed() < TEST_LIMIT);
    // What is left to say can still be said.
    link.disarm();
    link.write_all(&mut [IoSlice::new(b"bye")]).unwrap();
}

#[test]
fn many_small_slices_arrive_whole() {
    let (a, b) = UnixStream::pair().unwrap();
    let mut link = SocketLink::from_fd(a.into(), &LinkOptions::default()).unwrap();
    let data: Vec<u8> = (0..5000u32).map(|i| i as u8).collect();
    let mut slices: Vec<IoSlice<'_>> = data.chunks(1).map(IoSlice::new).collect();
    slices.insert(0, IoSlice::new(&[]));
    link.write_all(&mut slices).unwrap();
    link.write_all(&mut [IoSlice::new(&[]), IoSlice::new(&[])]).unwrap();
    drop(link);
    let mut got = vec![];
    (&b).read_to_end(&mut got).unwrap();
    assert_eq!(got, data);
}

#[test]
fn a_passed_fd_that_is_no_stream_socket_is_refused() {
    let file = tempfile::tempfile().unwrap();
    assert!(matches!(SocketLink::from_fd(file.into(), &options()), Err(LinkError::Address { .. })));
    let (a, _b) = std::os::unix::net::UnixDatagram::pair().unwrap();
    assert!(matches!(SocketLink::from_fd(a.into(), &options()), Err(LinkError::Address { .. })));
}

struct Own(UnixStream);

impl ByteSource for Own {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        // In small pieces, as a caller's stream may.
        let n = out.len().min(777);
        self.0.read(&mut out[..n])
    }
}

impl ByteSink for Own {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(&data[..data.len().min(1234)])
    }
}

fn own_link(stream: UnixStream) -> Box<dyn Link> {
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let other = stream.try_clone().unwrap();
    Box::new(CallbackLink::new(Box::new(Own(stream)), Box::new(Own(other)), "own".into(), &options()))
}

#[test]
fn a_callers_stream_carries_a_migration() {
    let here = Host::new(&[("f", 7)], &[(0, 256 << 10)]);
    let there = Host::new(&[("f", 7)], &[(0, 256 << 10)]);
    here.fill(8);
    let (a, b) = UnixStream::pair().unwrap();
    let log = Arc::new(MarkLog::new());
    let config = here.source(Uuid::new_v4(), &log, SECTION_NAMES);
    std::thread::scope(|scope| {
        let (config_b, target) = (there.destination(), there.target());
        let receiving = scope.spawn(move || run_destination(config_b, target, own_link(b)).0.unwrap());
        let mut stale = vec![];
        let end = run_source(config, own_link(a), &mut || {}, &mut || {
            stale = differing(here.memory.as_ref(), there.memory.as_ref());
        });
        end.result.unwrap();
        assert_eq!(stale, Vec::<u64>::new());
        receiving.join().unwrap();
    });
}

struct Liar;

impl ByteSource for Liar {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        Ok(out.len() + 1)
    }
}

impl ByteSink for Liar {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        Ok(data.len() + 1)
    }
}

#[test]
fn callbacks_are_not_believed() {
    let mut link = CallbackLink::new(Box::new(Liar), Box::new(Liar), "liar".into(), &options());
    assert!(matches!(link.read(&mut [0; 4]), Err(LinkError::Io { .. })));
    assert!(matches!(link.write_all(&mut [IoSlice::new(b"abc")]), Err(LinkError::Io { .. })));
}

const IDLE: Duration = Duration::from_millis(600);
const LONG: Duration = Duration::from_millis(1500);

/// A migration over links with a short idle timeout, in which `slow` waits for long at the places that are told to it.
fn patient(delay_at: Option<DeviceState>, at_source: bool, slow: &(dyn Fn(&str) + Sync)) {
    let (here, there) = (Host::new(&[("f", 1)], &[(0, 64 << 10)]), Host::new(&[("f", 1)], &[(0, 64 << 10)]));
    here.fill(9);
    let host = if at_source { &here } else { &there };
    host.devices[0].1.lock().unwrap().delay = delay_at.map(|state| (state, LONG));
    let (mut a, mut b) = socket_pair();
    a.set_idle_timeout(IDLE);
    b.set_idle_timeout(IDLE);
    let log = Arc::new(MarkLog::new());
    std::thread::scope(|scope| {
        let (config, target) = (there.destination(), there.target());
        let receiving = scope.spawn(move || -> Result<(), EngineError> {
            let mut session = DestinationSession::new(config, b)?;
            session.read_offer()?;
            session.answer(target, vec![])?;
            session.receive(&mut |_| {})?;
            slow("destination: loaded");
            session.prepared()?;
            session.wait_commit()?;
            session.resume()?;
            session.running().map(drop)
        });
        let mut session = SourceSession::new(here.source(Uuid::new_v4(), &log, &[]), a).unwrap();
        let result = (|| -> Result<(), EngineError> {
            session.offer(serde_json::Value::Null)?;
            session.start_tracking()?;
            session.memory_pass(&mut |_| {})?;
            slow("source: before the stop");
            session.stop()?;
            session.final_pass()?;
            session.prepare()?;
            slow("source: prepared");
            session.commit()?;
            session.wait_running()?;
            session.release().map(drop)
        })();
        drop(session);
        let received = receiving.join().unwrap();
        assert!(result.is_ok() && received.is_ok(), "{result:?} {received:?}");
    });
    assert_eq!((here.states(), there.states()), (vec![DeviceState::Stop], vec![DeviceState::Running]));
}

#[test]
fn a_device_that_loads_slowly_is_waited_for() {
    patient(Some(DeviceState::Stop), false, &|_| {});
}

#[test]
fn a_device_that_saves_slowly_is_waited_for() {
    patient(Some(DeviceState::StopCopy), true, &|_| {});
}

#[test]
fn a_slow_hook_is_waited_for() {
    for place in ["destination: loaded", "source: before the stop", "source: prepared"] {
        let seen = std::sync::atomic::AtomicBool::new(false);
        patient(None, true, &|at| {
            if at == place {
                seen.store(true, std::sync::atomic::Ordering::Relaxed);
                std::thread::sleep(LONG);
            }
        });
        assert!(seen.into_inner(), "{place}");
    }
}
