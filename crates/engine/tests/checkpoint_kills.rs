//! A process that writes a checkpoint, or restores one, is killed (SIGKILL) at every point, or meets a full disk. Then its journal is
//! opened again and recovered, and the functions have exactly one owner: the source, or whoever restores the file, once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod checkpoints;
mod common;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;

use checkpoints::*;
use common::*;
use towline_engine::checkpoint::{self, CheckpointMode};
use towline_engine::error::EngineError;
use towline_engine::faultpoints::{CHECKPOINT_POINTS, FaultPoints, POINTS};
use towline_engine::fence::{Fence, Role};
use towline_engine::journal::Journal;
use towline_engine::recover::{self, Verdict};
use uuid::Uuid;

const SMALL: &[(u64, u64)] = &[(0, 64 << 10)];
const SESSION: Uuid = Uuid::from_u128(0x1234_0000_0000_4000_8000_0000_0000_0000);

fn host(dir: &Path, name: &str, id: &str, kill_at: Option<String>) -> Host {
    let mut host = Host::new(&[(id, 3)], SMALL);
    host.journal = Arc::new(Journal::open(dir.join(name)).unwrap());
    host.points = Arc::new(FaultPoints { kill_at, ..FaultPoints::default() });
    host
}

fn work(dir: &Path, what: &str, kill_at: Option<String>) -> Result<(), EngineError> {
    let path = dir.join("guest");
    if what == "restore" {
        return restore(&host(dir, "destination", "f", kill_at), &path).map(drop);
    }
    let source = host(dir, "source", "f", kill_at);
    source.fill(5);
    if let Some(bytes) = std::env::var("TOWLINE_KILL_STATE").ok().and_then(|b| b.parse().ok()) {
        source.devices[0].1.lock().unwrap().registers = vec![5; bytes];
    }
    let mode = if what == "copy" { CheckpointMode::Copy } else { CheckpointMode::Move };
    let writing = Writing { id: Some(SESSION), ..Writing::default() };
    let result = write_with(&source, &path, mode, writing).result.map(drop);
    if result.is_err() {
        let states = source.states();
        assert!(states.iter().all(|s| *s == towline_core::fsm::DeviceState::Running), "{states:?}");
    }
    result
}

/// The process that is killed: this test, started again by those below. Without being told where, it only checks that it is not
/// killed at a point that it does not pass.
#[test]
fn child() {
    let Ok(dir) = std::env::var("TOWLINE_KILL_DIR") else {
        let dir = tempfile::tempdir().unwrap();
        work(dir.path(), "move", Some("restore:claimed".into())).unwrap();
        return;
    };
    let kill_at = std::env::var("TOWLINE_KILL_AT").ok();
    if let Err(error) = work(Path::new(&dir), &std::env::var("TOWLINE_KILL_WHAT").unwrap(), kill_at) {
        eprintln!("{} {:?}", error.code(), error.errno());
        std::process::exit(3);
    }
    std::process::exit(0);
}

fn run_child(dir: &Path, what: &str, point: Option<&str>, limit: Option<(u64, u64)>) -> (ExitStatus, String) {
    // A file that may not grow further is told by an error, where the signal that comes first is ignored.
    let script = match limit {
        Some((kib, _)) => format!("trap '' XFSZ; ulimit -f {kib}; exec \"$0\" \"$@\""),
        None => "exec \"$0\" \"$@\"".into(),
    };
    let mut command = Command::new("bash");
    command.args(["-c", &script]).arg(std::env::current_exe().unwrap()).args(["--exact", "child", "--nocapture"]);
    command.env("TOWLINE_KILL_DIR", dir).env("TOWLINE_KILL_WHAT", what);
    if let Some(point) = point {
        command.env("TOWLINE_KILL_AT", point);
    }
    if let Some((_, state_bytes)) = limit {
        command.env("TOWLINE_KILL_STATE", state_bytes.to_string());
    }
    let ended = command.stdout(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
    (ended.status, String::from_utf8_lossy(&ended.stderr).into_owned())
}

fn settle(dir: &Path, name: &str, session: Uuid, role: Role) -> Verdict {
    let journal = Journal::open(dir.join(name)).unwrap();
    match checkpoint::recover(&journal, session, role).unwrap() {
        Some((verdict, _)) => verdict,
        None => recover::settle(&journal, session, role, None).unwrap(),
    }
}

/// Restores as often as it goes, by the journal of the killed process and by another one; how often it went.
fn restores(dir: &Path) -> usize {
    let path = dir.join("guest");
    let wins = ["destination", "elsewhere", "destination"].map(|j| restore(&host(dir, j, "f", None), &path).is_ok());
    wins.into_iter().filter(|won| *won).count()
}

#[test]
fn one_owner_after_the_source_was_killed_at_every_point_of_a_move() {
    let (mut killed, mut by_file, mut settled_by_folder) = (0, 0, 0);
    for point in POINTS.iter().chain(CHECKPOINT_POINTS) {
        let dir = tempfile::tempdir().unwrap();
        let (status, words) = run_child(dir.path(), "move", Some(point), None);
        if status.signal() != Some(9) {
            assert_eq!(status.code(), Some(0), "{point}: {words}");
            continue;
        }
        killed += 1;
        let in_doubt = {
            let journal = Journal::open(dir.path().join("source")).unwrap();
            let records = journal.records(SESSION, Role::Source).unwrap();
            recover::decide(Role::Source, &records, None) == Verdict::InDoubt
        };
        settled_by_folder += usize::from(in_doubt);
        let verdict = settle(dir.path(), "source", SESSION, Role::Source);
        let left = names(dir.path()).into_iter().filter(|n| n.ends_with(".partial")).count();
        // What was made before the session was on record is nobody's; it has no commit.
        assert_eq!(left, usize::from(matches!(*point, "checkpoint:created" | "source:offered")), "{point}");
        let wins = restores(dir.path());
        by_file += wins;
        match verdict {
            Verdict::ResumeSource => assert_eq!(wins, 0, "{point}: two owners"),
            Verdict::Released => assert_eq!(wins, 1, "{point}: no owner, or two"),
            other => panic!("{point}: {other:?}"),
        }
    }
    assert!(killed >= 15 && by_file >= 3 && settled_by_folder >= 4, "{killed} {by_file} {settled_by_folder}");
}

#[test]
fn a_restore_settles_a_source_that_died_before_its_release_where_both_have_one_journal() {
    for point in ["checkpoint:renamed", "checkpoint:durable"] {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(run_child(dir.path(), "move", Some(point), None).0.signal(), Some(9));
        restore(&host(dir.path(), "source", "f", None), &dir.path().join("guest")).unwrap();
        assert_eq!(settle(dir.path(), "source", SESSION, Role::Source), Verdict::Released, "{point}");
    }
}

#[test]
fn the_source_goes_on_wherever_it_is_killed_during_a_copy() {
    let mut whole = 0;
    for point in POINTS.iter().chain(CHECKPOINT_POINTS) {
        let dir = tempfile::tempdir().unwrap();
        let (status, words) = run_child(dir.path(), "copy", Some(point), None);
        if status.signal() != Some(9) {
            assert_eq!(status.code(), Some(0), "{point}: {words}");
            continue;
        }
        assert_eq!(settle(dir.path(), "source", SESSION, Role::Source), Verdict::ResumeSource, "{point}");
        // Never a half file: with its name it is whole.
        let path = dir.path().join("guest");
        if path.exists() {
            whole += 1;
            restore(&host(dir.path(), "destination", "x", None), &path).unwrap();
        }
    }
    assert_eq!(whole, 2);
}

#[test]
fn one_owner_after_a_restore_was_killed_at_every_point() {
    let (mut killed, mut again) = (0, 0);
    for point in POINTS.iter().chain(CHECKPOINT_POINTS) {
        for recovers in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            work(dir.path(), "move", None).unwrap();
            let (status, words) = run_child(dir.path(), "restore", Some(point), None);
            if status.signal() != Some(9) {
                assert_eq!(status.code(), Some(0), "{point}: {words}");
                continue;
            }
            killed += 1;
            let committed = |journal: &Journal| {
                let all = journal.sessions().unwrap().into_iter();
                all.filter(|(s, r)| journal.records(*s, *r).unwrap().last().unwrap().name() == "committed").count()
            };
            let owned = committed(&Journal::open(dir.path().join("destination")).unwrap());
            // Before anybody settles it, nobody else may take it from a restore that may have committed.
            let claimed = names(dir.path()).iter().any(|n| n.ends_with(".claimed"));
            if claimed {
                let stranger = host(dir.path(), "stranger", "f", None);
                assert!(restore(&stranger, &dir.path().join("guest")).is_err(), "{point}: two owners");
            }
            if recovers {
                let sessions = Journal::open(dir.path().join("destination")).unwrap().sessions().unwrap();
                for (session, role) in sessions {
                    let verdict = settle(dir.path(), "destination", session, role);
                    assert_eq!(verdict == Verdict::RunDestination, owned == 1, "{point}");
                }
            }
            let wins = restores(dir.path());
            again += wins;
            assert_eq!(owned + wins, 1, "{point}, recovers: {recovers}");
            assert!(!names(dir.path()).iter().any(|n| n.ends_with(".claimed")), "{point}");
        }
    }
    assert!(killed >= 20 && again >= 10, "{killed} {again}");
}

#[test]
fn a_disk_that_is_full_leaves_the_source_running_and_nothing_behind() {
    // A state with which the file fits but for its last frame, the commit, which is larger than 50 bytes.
    let (room_kib, mut just_too_much) = (100_u64, 60_000_u64);
    loop {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(run_child(dir.path(), "move", None, Some((1 << 20, just_too_much))).0.code(), Some(0));
        let excess = std::fs::metadata(dir.path().join("guest")).unwrap().len() as i64 - (room_kib << 10) as i64;
        if (1..=50).contains(&excess) {
            break;
        }
        just_too_much = just_too_much.checked_add_signed(25 - excess).unwrap();
    }
    for what in ["move", "copy"] {
        // In the middle of the state; then at the last frame, which is the commit: behind the intent of a move.
        for state_bytes in [200_000, just_too_much] {
            let dir = tempfile::tempdir().unwrap();
            let (status, words) = run_child(dir.path(), what, None, Some((room_kib, state_bytes)));
            assert_eq!(status.code(), Some(3), "{what} {state_bytes}: {words}");
            // EFBIG, as ENOSPC and EDQUOT would come.
            assert!(words.contains("ERR_TOWLINE_FILE Some(27)"), "{what} {state_bytes}: {words}");
            assert!(!names(dir.path()).iter().any(|n| n.starts_with("guest")), "{what} {state_bytes}");
            let journal = Journal::open(dir.path().join("source")).unwrap();
            let records: Vec<_> = journal.records(SESSION, Role::Source).unwrap().iter().map(|r| r.name()).collect();
            let intent = what == "move" && state_bytes == just_too_much;
            let expected = if intent { vec!["opened", "intent", "aborted"] } else { vec!["opened", "aborted"] };
            assert_eq!(records, expected, "{what} {state_bytes}");
        }
    }
}
