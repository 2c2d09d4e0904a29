//! Whole migrations between two threads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::sync::Arc;

use common::*;
use towline_core::dirty::MarkLog;
use towline_core::fsm::DeviceState;
use towline_core::memory::{GuestMemory, MemoryRange};
use towline_engine::dialogue::Mismatch;
use towline_engine::error::EngineError;
use towline_engine::faultpoints::FaultPoints;
use towline_engine::fence::{Record, Role};
use towline_engine::link::Link;
use towline_engine::session::{DestinationSession, Incoming, SourceSession};
use uuid::Uuid;

const ALL: &[(&str, u64)] = &[("plain", 1), ("p2p", 3), ("everything", 7)];

/// Migrates under write load; returns the pages that differ after the stop, and both hosts.
fn migrate(links: (Box<dyn Link>, Box<dyn Link>), points: FaultPoints) -> (Vec<u64>, Host, Host, Uuid) {
    let mut here = Host::new(ALL, RANGES);
    let there = Host::new(ALL, RANGES);
    here.fill(0x5A);
    here.points = Arc::new(points);
    let log = Arc::new(MarkLog::new());
    let session = Uuid::new_v4();
    let config = here.source(session, &log, SECTION_NAMES);
    let mut writers = Writers::start(&here.memory, &log, 0, 1 << 20, 2);
    let mut stale = vec![];
    let end = std::thread::scope(|scope| {
        let (there_config, target) = (there.destination(), there.target());
        let receiving = scope.spawn(move || run_destination(there_config, target, links.1));
        let (here_memory, there_memory) = (here.memory.clone(), there.memory.clone());
        let end = run_source(config, links.0, &mut || writers.stop_after_more(), &mut || {
            stale = differing(here_memory.as_ref(), there_memory.as_ref());
        });
        let (result, destination) = receiving.join().unwrap();
        let sections = result.unwrap();
        for ((name, data), got) in SECTIONS.iter().zip(&sections) {
            assert_eq!((*name, *data), (got.name.as_str(), got.data.as_slice()));
        }
        assert_eq!(sections.len(), SECTIONS.len());
        assert!(destination.timings().ms("journal-commit") > 0.0);
        end
    });
    let stats = end.result.unwrap();
    assert!(stats.state_bytes >= 3 * 5016 + 100);
    for timing in ["journal-intent", "stop", "final-memory", "final-state", "memory-passes"] {
        assert!(end.session.timings().phases.iter().any(|p| p.name == timing), "{timing}");
    }
    assert!(there.states().iter().all(|s| *s == DeviceState::Running));
    for (a, b) in here.devices.iter().zip(&there.devices) {
        assert_eq!(a.1.lock().unwrap().registers, b.1.lock().unwrap().registers);
        assert_eq!(b.1.lock().unwrap().resets, 0);
    }
    (stale, here, there, session)
}

fn check_committed(here: &Host, there: &Host, session: Uuid) {
    assert!(here.states().iter().all(|s| *s == DeviceState::Stop));
    assert_eq!(here.fence().records(session, Role::Source).unwrap().last(), Some(&Record::Released));
    let committed = there.fence().records(session, Role::Destination).unwrap();
    assert!(matches!(committed.last(), Some(Record::Committed { epoch: 1 })));
}

#[test]
fn tcp_moves_everything_under_load() {
    let (stale, here, there, session) = migrate(link_pair("tcp://127.0.0.1:0"), FaultPoints::default());
    assert_eq!(stale, Vec::<u64>::new());
    check_committed(&here, &there, session);
    // Several functions were quiesced together before any was stopped.
    let p2p = here.devices[1].1.lock().unwrap().history.clone();
    assert!(p2p.contains(&DeviceState::RunningP2p));
}

#[test]
fn unix_moves_everything_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("unix://{}", dir.path().join("s").display());
    let (stale, here, there, session) = migrate(link_pair(&address), FaultPoints::default());
    assert_eq!(stale, Vec::<u64>::new());
    check_committed(&here, &there, session);
}

#[test]
fn a_passed_socket_moves_everything() {
    let (stale, here, there, session) = migrate(socket_pair(), FaultPoints::default());
    assert_eq!(stale, Vec::<u64>::new());
    check_committed(&here, &there, session);
}

/// The counterpart of the comparison above: a page left out on purpose is found.
#[test]
fn a_skipped_page_is_found() {
    // The writers touch all of it, so that the final pass has something there.
    let skip = MemoryRange { gpa: 0, len: 1 << 20 };
    let mut found = false;
    // A page that is dirty may still hold what was sent (written between its mark's harvest and its reading): then try again.
    for _ in 0..20 {
        let points = FaultPoints { skip_page_in: Some(skip), ..FaultPoints::default() };
        let (stale, here, ..) = migrate(socket_pair(), points);
        assert!(stale.len() <= usize::from(here.points.fired()), "only the page that was skipped");
        if !stale.is_empty() {
            found = true;
            break;
        }
    }
    assert!(found, "the final pass never had a dirty page");
}

/// A dirty source that is not listened to loses pages, and the comparison finds them.
#[test]
fn a_deaf_source_is_found() {
    let points = FaultPoints { deaf_to_source: Some("marks".into()), ..FaultPoints::default() };
    let (stale, ..) = migrate(socket_pair(), points);
    assert!(!stale.is_empty());
}

/// A hole in what devices report is fired only where something fell into it, and sources that are no devices' have none.
#[test]
fn a_hole_in_a_devices_reports_is_found() {
    let lost = |name: &str, range: MemoryRange| {
        let mut here = Host::new(&[("f", 1)], RANGES);
        here.points = Arc::new(FaultPoints { deaf_to_range: Some(range), ..FaultPoints::default() });
        let log = Arc::new(MarkLog::new());
        let (a, b) = socket_pair();
        let mut config = here.source(Uuid::new_v4(), &log, &[]);
        config.dirty_sources[0].name = name.into();
        let there = Host::new(&[("f", 1)], RANGES);
        let mut dirty = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| drop(run_destination(there.destination(), there.target(), b)));
            let mut session = SourceSession::new(config, a).unwrap();
            session.offer(serde_json::Value::Null).unwrap();
            session.start_tracking().unwrap();
            session.memory_pass(&mut |_| {}).unwrap();
            log.mark(PAGE, 4 * PAGE);
            dirty = session.memory_pass(&mut |_| {}).unwrap().pages;
            session.abort("the test is over").unwrap();
        });
        (dirty, here.points.fired())
    };
    let inside = MemoryRange { gpa: 2 * PAGE, len: 2 * PAGE };
    assert_eq!(lost("f#0", inside), (2, true));
    assert_eq!(lost("extra#0", inside), (4, false));
    assert_eq!(lost("f#0", MemoryRange { gpa: 32 * PAGE, len: PAGE }), (4, false));
}

#[test]
fn what_is_measured_keeps_to_the_limit_and_is_counted_apart() {
    const LIMIT: u64 = 4 << 20;
    let (here, there) = (Host::new(&[("f", 1)], RANGES), Host::new(&[("f", 1)], RANGES));
    here.fill(3);
    let log = Arc::new(MarkLog::new());
    let (a, b) = socket_pair();
    let mut config = here.source(Uuid::new_v4(), &log, &[]);
    config.bandwidth_limit_bytes_per_s = Some(LIMIT);
    std::thread::scope(|scope| {
        scope.spawn(|| drop(run_destination(there.destination(), there.target(), b)));
        let mut session = SourceSession::new(config, a).unwrap();
        session.offer(serde_json::Value::Null).unwrap();
        session.start_tracking().unwrap();
        let before = session.wire_bytes();
        let start = std::time::Instant::now();
        let measured = session.measure(std::time::Duration::ZERO).unwrap();
        assert!(measured.bandwidth_bytes_per_s.iter().all(|b| *b <= LIMIT as f64), "{measured:?}");
        // Four samples of a quarter of a second, of which the first may have a burst for free.
        assert!(start.elapsed() > std::time::Duration::from_millis(700), "{:?}", start.elapsed());
        assert!(session.wire_bytes() - before < 4096, "the filler is no part of the migration");
        session.abort("the test is over").unwrap();
    });
}

#[test]
fn a_recording_is_a_new_private_file() {
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;
    let here = Host::new(&[("f", 1)], &[(0, 64 << 10)]);
    let log = Arc::new(MarkLog::new());
    let path = here.dir.path().join("recording");
    let record = |path: &std::path::Path| {
        let (a, _b) = socket_pair();
        let mut config = here.source(Uuid::new_v4(), &log, &[]);
        config.record_to = Some(path.to_owned());
        SourceSession::new(config, a).map(drop)
    };
    std::fs::write(&path, "old").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let mut reader = std::fs::File::open(&path).unwrap();
    record(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "old", "who had it open sees nothing of the new one");

    let link = here.dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(matches!(record(&link), Err(EngineError::File { .. })));
    assert!(matches!(record(here.dir.path()), Err(EngineError::File { .. })));
}

#[test]
fn holes_and_zeros_are_not_sent() {
    let here = Host::new(&[("f", 1)], &[(0, 4 << 20)]);
    let there = Host::new(&[("f", 1)], &[(0, 4 << 20)]);
    here.fill(3);
    let log = Arc::new(MarkLog::new());
    let (a, b) = socket_pair();
    let config = here.source(Uuid::new_v4(), &log, &[]);
    std::thread::scope(|scope| {
        let (config_b, target) = (there.destination(), there.target());
        let receiving = scope.spawn(move || {
            let mut session = DestinationSession::new(config_b, b).unwrap();
            session.read_offer().unwrap();
            session.answer(target, vec![]).unwrap();
            session.receive(&mut |_| {})
        });
        let mut session = SourceSession::new(config, a).unwrap();
        session.offer(serde_json::Value::Null).unwrap();
        session.start_tracking().unwrap();
        let stats = session.memory_pass(&mut |_| {}).unwrap();
        // 1024 pages: a quarter holes, a quarter zeros.
        assert_eq!((stats.round, stats.skipped_hole_pages, stats.pages, stats.zero_pages), (1, 256, 768, 256));
        assert_eq!(stats.bytes, 512 * PAGE);
        assert!(stats.wire_bytes >= stats.bytes && stats.wire_bytes < stats.bytes + (64 << 10), "{stats:?}");
        let second = session.memory_pass(&mut |_| {}).unwrap();
        assert_eq!((second.round, second.pages), (2, 0));
        // A page becomes zero again.
        here.memory.write(2 * PAGE, &[0; PAGE as usize]).unwrap();
        log.mark(2 * PAGE, PAGE);
        let third = session.memory_pass(&mut |_| {}).unwrap();
        assert_eq!((third.pages, third.zero_pages, third.bytes), (1, 1, 0));
        assert_eq!(differing(here.memory.as_ref(), there.memory.as_ref()), Vec::<u64>::new());
        drop(session);
        assert!(receiving.join().unwrap().is_err());
    });
}

#[test]
fn a_destination_that_is_not_fresh_gets_the_holes_too() {
    let here = Host::new(&[("f", 1)], RANGES);
    let there = Host::new(&[("f", 1)], RANGES);
    here.fill(3);
    for page in 0..256 {
        there.memory.write(page * PAGE, &[0xAA; PAGE as usize]).unwrap();
    }
    let log = Arc::new(MarkLog::new());
    let (a, b) = socket_pair();
    let config = here.source(Uuid::new_v4(), &log, SECTION_NAMES);
    std::thread::scope(|scope| {
        let (config_b, target) = (there.destination(), there.target());
        let receiving = scope.spawn(move || run_destination(config_b, target, b).0);
        let mut stale = vec![];
        let end = run_source(config, a, &mut || {}, &mut || {
            stale = differing(here.memory.as_ref(), there.memory.as_ref());
        });
        end.result.unwrap();
        assert_eq!(stale, Vec::<u64>::new());
        receiving.join().unwrap().unwrap();
    });
}

#[test]
fn every_mismatch_is_listed_and_nothing_is_touched() {
    let here = Host::new(&[("f", 1), ("g", 1)], RANGES);
    let there = Host::new(&[("f", 1)], &[(0, 1 << 20)]);
    let log = Arc::new(MarkLog::new());
    let (a, b) = socket_pair();
    let session_id = Uuid::new_v4();
    let config = here.source(session_id, &log, &[]);
    std::thread::scope(|scope| {
        let (config_b, target) = (there.destination(), there.target());
        scope.spawn(move || {
            let mut session = DestinationSession::new(config_b, b).unwrap();
            let Incoming::Offer(offer) = session.read_offer().unwrap() else { panic!() };
            assert_eq!(offer.descriptor, serde_json::json!({"model": "x"}));
            let own = Mismatch { code: "namespace".into(), message: "not shared".into(), mend: "share it".into() };
            assert!(!session.answer(target, vec![own]).unwrap().accepted);
            assert!(matches!(session.receive(&mut |_| {}), Err(EngineError::Misuse { .. })));
        });
        let mut session = SourceSession::new(config, a).unwrap();
        let outcome = session.offer(serde_json::json!({"model": "x"})).unwrap();
        let codes: Vec<&str> = outcome.mismatches.iter().map(|m| m.code.as_str()).collect();
        assert_eq!(codes, ["namespace", "function-missing", "memory-layout"]);
        assert!(matches!(session.start_tracking(), Err(EngineError::Misuse { .. })));
    });
    assert!(here.fence().records(session_id, Role::Source).unwrap().is_empty());
    assert!(there.fence().records(session_id, Role::Destination).unwrap().is_empty());
    assert!(here.devices.iter().chain(&there.devices).all(|d| d.1.lock().unwrap().history.is_empty()));
}

#[test]
fn a_recorded_stream_is_whole() {
    let here = Host::new(&[("f", 7)], RANGES);
    let there = Host::new(&[("f", 7)], RANGES);
    here.fill(1);
    let log = Arc::new(MarkLog::new());
    let (a, b) = socket_pair();
    let mut config = here.source(Uuid::new_v4(), &log, SECTION_NAMES);
    let file = here.dir.path().join("stream");
    config.record_to = Some(file.clone());
    std::thread::scope(|scope| {
        let (config_b, target) = (there.destination(), there.target());
        scope.spawn(move || run_destination(config_b, target, b).0.unwrap());
        run_source(config, a, &mut || {}, &mut || {}).result.unwrap();
    });
    let bytes = std::fs::read(file).unwrap();
    let read = |bytes: &[u8]| {
        let mut decoder = towline_core::stream::Decoder::new(towline_core::stream::Limits::default());
        decoder.push(bytes, &mut |_| {}).and_then(|()| decoder.finish())
    };
    read(&bytes).unwrap();
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 4;
    assert!(read(&damaged).is_err());
    assert!(read(&bytes[..bytes.len() - 1]).is_err());
}

#[test]
fn steps_out_of_order_are_refused_and_change_nothing() {
    let here = Host::new(&[("f", 1)], RANGES);
    let log = Arc::new(MarkLog::new());
    let (a, _b) = socket_pair();
    let mut session = SourceSession::new(here.source(Uuid::new_v4(), &log, &[]), a).unwrap();
    assert!(matches!(session.stop(), Err(EngineError::Misuse { call: "stop", .. })));
    assert!(matches!(session.commit(), Err(EngineError::Misuse { call: "commit", .. })));
    assert!(matches!(session.release(), Err(EngineError::Misuse { .. })));
    assert!(matches!(session.memory_pass(&mut |_| {}), Err(EngineError::Misuse { .. })));
    assert_eq!(here.states(), [DeviceState::Running]);
}

#[test]
fn the_limit_holds_the_passes_back() {
    let here = Host::new(&[("f", 1)], &[(0, 4 << 20)]);
    let there = Host::new(&[("f", 1)], &[(0, 4 << 20)]);
    here.fill(9);
    let log = Arc::new(MarkLog::new());
    let (a, b) = socket_pair();
    let mut config = here.source(Uuid::new_v4(), &log, SECTION_NAMES);
    // 2 MiB of content at 8 MiB/s: a quarter of a second at least, less the bucket of 20 ms.
    config.bandwidth_limit_bytes_per_s = Some(8 << 20);
    std::thread::scope(|scope| {
        let (config_b, target) = (there.destination(), there.target());
        scope.spawn(move || run_destination(config_b, target, b).0.unwrap());
        let end = run_source(config, a, &mut || {}, &mut || {});
        end.result.unwrap();
        assert!(end.session.timings().ms("memory-passes") >= 200.0);
    });
}
