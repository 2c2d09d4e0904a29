//! One side is a process of its own and is killed (SIGKILL) at every named point. The other side lives on. Then the dead one's
//! journal is opened again, what is in doubt is asked for, and exactly one side owns the functions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;

use common::*;
use towline_core::dirty::MarkLog;
use towline_engine::cancel::Cancel;
use towline_engine::error::EngineError;
use towline_engine::faultpoints::{FaultPoints, POINTS};
use towline_engine::fence::{Fence, Role};
use towline_engine::journal::Journal;
use towline_engine::link::{Address, Listener, connect};
use towline_engine::recover::{self, Verdict};
use uuid::Uuid;

const SMALL: &[(u64, u64)] = &[(0, 64 << 10)];
const SESSION: Uuid = Uuid::from_u128(0x1234);

/// Points that only a failing session passes; the in-process tests crash there.
const NOT_PASSED: &[&str] =
    &["source:aborting", "source:aborted", "destination:refusal-durable", "destination:aborted"];

/// Whether guest memory is passed rather than copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Passes(bool);

fn host(dir: &Path, name: &str, kill_at: Option<String>) -> Host {
    let mut host = Host::new(&[("f", 3)], SMALL);
    host.journal = Arc::new(Journal::open(dir.join(name)).unwrap());
    host.points = Arc::new(FaultPoints { kill_at, ..FaultPoints::default() });
    host
}

fn source(host: &Host, address: &Address, Passes(passes): Passes) -> SourceEnd {
    host.fill(5);
    let log = Arc::new(MarkLog::new());
    let link = Box::new(connect(address, &options(), &Cancel::new()).unwrap());
    let config = host.source(SESSION, &log, SECTION_NAMES);
    match passes {
        true => run_passing_source(config, host.memory.clone(), link),
        false => run_source(config, link, &mut || {}, &mut || {}),
    }
}

fn destination(host: &Host, listener: &Listener, Passes(passes): Passes) -> Result<(), EngineError> {
    let link = Box::new(listener.accept(TEST_LIMIT, &Cancel::new()).unwrap());
    match passes {
        true => run_passed_destination(host.destination(), host.target(), link, &mut Passed::default()).0,
        false => run_destination(host.destination(), host.target(), link).0.map(drop),
    }
}

/// The process that is killed: this test, started again by the one below. Without being told where, it only checks that a
/// point that doesn't exist is refused.
#[test]
fn child() {
    let Ok(dir) = std::env::var("TOWLINE_KILL_DIR") else {
        let points = FaultPoints { kill_at: Some("source:nowhere".into()), ..FaultPoints::default() };
        assert!(matches!(points.check(), Err(EngineError::Config { .. })));
        return;
    };
    let (dir, point) = (Path::new(&dir), std::env::var("TOWLINE_KILL_AT").unwrap());
    let address = Address::Unix(dir.join("socket"));
    let passes = Passes(std::env::var("TOWLINE_KILL_PASSES").unwrap() == "true");
    if point.starts_with("source:") {
        source(&host(dir, "source", Some(point)), &address, passes).result.unwrap();
    } else {
        let listener = Listener::bind(&address, options()).unwrap();
        destination(&host(dir, "destination", Some(point)), &listener, passes).unwrap();
    }
    panic!("it was not killed");
}

fn start_child(dir: &Path, point: &str, Passes(passes): Passes) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child"])
        .env("TOWLINE_KILL_DIR", dir)
        .env("TOWLINE_KILL_AT", point)
        .env("TOWLINE_KILL_PASSES", passes.to_string())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn one_owner_after_a_kill_at_every_point() {
    // One after the other: a child has this process's journals open, and locked, until it is another program.
    kill_everywhere(Passes(false));
    kill_everywhere(Passes(true));
}

fn kill_everywhere(passes: Passes) {
    let mut in_doubt = 0;
    // Where memory is passed no pages are left over.
    let never = |point: &str| NOT_PASSED.contains(&point) || (passes.0 && point == "source:final-memory");
    for point in POINTS.iter().filter(|p| !never(p)) {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Unix(dir.path().join("socket"));
        let kills_source = point.starts_with("source:");
        // The survivor, here; then both journals.
        let (mut child, survivor_error);
        if kills_source {
            let listener = Listener::bind(&address, options()).unwrap();
            child = start_child(dir.path(), point, passes);
            survivor_error = destination(&host(dir.path(), "destination", None), &listener, passes).err();
        } else {
            child = start_child(dir.path(), point, passes);
            survivor_error = source(&host(dir.path(), "source", None), &address, passes).result.err();
        }
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "{point}: {status:?}");

        let here = Journal::open(dir.path().join("source")).unwrap();
        let there = Journal::open(dir.path().join("destination")).unwrap();
        let alone = recover::settle(&here, SESSION, Role::Source, None).unwrap();
        in_doubt += u32::from(alone == Verdict::InDoubt);
        if !kills_source {
            let says_so = matches!(survivor_error, Some(EngineError::InDoubt { .. }));
            assert_eq!(says_so, alone == Verdict::InDoubt, "{point}: {survivor_error:?}");
        }
        let epoch = towline_engine::fence::epoch_of(&here.records(SESSION, Role::Source).unwrap()).unwrap_or(1);
        let answer = recover::answer_ask(&there, SESSION, epoch).unwrap();
        let source = recover::settle(&here, SESSION, Role::Source, Some(answer)).unwrap();
        let destination = recover::settle(&there, SESSION, Role::Destination, None).unwrap();
        let owners = (source == Verdict::ResumeSource, destination == Verdict::RunDestination);
        assert!(owners.0 != owners.1, "{point}: {source:?}, {destination:?}");
    }
    assert!(in_doubt > 0);
}
