//! Checkpoints: written, restored, refused, and failing at every point.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod checkpoints;
mod common;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use checkpoints::*;
use common::*;
use towline_core::fsm::DeviceState;
use towline_core::memory::GuestMemory;
use towline_engine::cancel::Cancel;
use towline_engine::checkpoint::{CheckpointMode, verify};
use towline_engine::error::EngineError;
use towline_engine::faultpoints::{CHECKPOINT_POINTS, FaultPoints, POINTS};
use towline_engine::fence::{Fence, Role};
use towline_engine::journal::Journal;
use towline_engine::recover::Verdict;
use uuid::Uuid;

const TWO: &[(&str, u64)] = &[("f", 3), ("g", 7)];

#[test]
fn a_move_is_restorable_once() {
    let (source, folder) = (Host::new(TWO, RANGES), tempfile::tempdir().unwrap());
    source.fill(3);
    let path = folder.path().join("guest");
    let end = write(&source, &path, CheckpointMode::Move);
    end.result.unwrap();
    assert_eq!(source.states(), [DeviceState::Stop; 2]);
    assert_eq!(names(folder.path()), ["guest"]);
    assert_eq!(record(&source, end.id, Role::Source), "released");

    let target = Host::new(TWO, RANGES);
    // Not fresh: what the checkpoint does not hold has to be zeros.
    target.memory.write(0, &[0xAA; PAGE as usize]).unwrap();
    let sections = restore(&target, &path).unwrap();
    assert_eq!(sections.iter().map(|s| (s.name.as_str(), s.data.as_slice())).collect::<Vec<_>>(), SECTIONS);
    same_guest(&source, &target);
    assert_eq!(target.states(), [DeviceState::Running; 2]);
    assert_eq!(names(folder.path()), [format!("guest.{}.restored", end.id)]);
    assert_eq!(fs::metadata(folder.path().join(format!("guest.{}.restored", end.id))).unwrap().len(), 0);
    assert_eq!(record(&target, end.id, Role::Destination), "committed");

    assert_eq!(restore(&Host::new(TWO, RANGES), &path).unwrap_err().code(), "ERR_TOWLINE_FENCED");
}

#[test]
fn a_move_comes_back_into_the_same_journal_and_can_go_again() {
    let (mut host, folder) = (Host::new(TWO, RANGES), tempfile::tempdir().unwrap());
    host.fill(3);
    let before = Host::new(TWO, RANGES);
    before.fill(3);
    // The first host's folder holds the journal.
    let mut hosts = Vec::new();
    for name in ["one", "two", "three"] {
        let path = folder.path().join(name);
        write(&host, &path, CheckpointMode::Move).result.unwrap();
        // Another process: devices and memory are new, the journal is the same.
        let mut next = Host::new(TWO, RANGES);
        next.journal = Arc::clone(&host.journal);
        restore(&next, &path).unwrap();
        same_guest(&before, &next);
        hosts.push(std::mem::replace(&mut host, next));
    }
}

#[test]
fn a_file_that_was_copied_is_refused_by_every_fence_that_has_seen_more() {
    let (source, folder) = (Host::new(TWO, RANGES), tempfile::tempdir().unwrap());
    source.fill(1);
    let (path, kept) = (folder.path().join("guest"), folder.path().join("kept"));
    let id = write(&source, &path, CheckpointMode::Move).id;
    fs::copy(&path, &kept).unwrap();
    let host = Host::new(TWO, RANGES);
    restore(&host, &path).unwrap();
    // The fence that restored it.
    let again = sharing(&host);
    assert!(mismatch(restore(&again, &kept)).contains(&"checkpoint-consumed".to_owned()));
    // The source's, once the functions have come back to it by another way.
    let second = folder.path().join("second");
    write(&host, &second, CheckpointMode::Move).result.unwrap();
    let back = sharing(&source);
    restore(&back, &second).unwrap();
    assert_eq!(mismatch(restore(&sharing(&source), &kept)), ["checkpoint-stale"]);
    assert_eq!(record(&source, id, Role::Destination), "none");
    // A fence that knows nothing of it can't tell: the guide says so.
    restore(&Host::new(TWO, RANGES), &kept).unwrap();
}

#[test]
fn a_copy_leaves_the_source_running_and_is_restorable_often() {
    let (source, folder) = (Host::new(TWO, RANGES), tempfile::tempdir().unwrap());
    source.fill(9);
    let path = folder.path().join("guest");
    let end = write(&source, &path, CheckpointMode::Copy);
    end.result.unwrap();
    assert_eq!(source.states(), [DeviceState::Running; 2]);
    assert_eq!(record(&source, end.id, Role::Source), "aborted");
    assert!(source.devices.iter().all(|d| d.1.lock().unwrap().resets == 0));

    assert_eq!(mismatch(restore(&Host::new(TWO, RANGES), &path)), ["copy-identity", "copy-identity"]);
    let fence = Host::new(&[("x", 3), ("y", 7)], RANGES);
    for _ in 0..3 {
        let target = sharing(&fence);
        restore(&target, &path).unwrap();
        same_guest(&source, &target);
    }
    assert_eq!(names(folder.path()), ["guest"]);
    assert!(fence.journal.highest_epoch(&["x".into()]).unwrap() >= 3);
    assert_eq!(fence.journal.highest_epoch(&["f".into()]).unwrap(), 0);
    // The source is free for anything.
    write(&source, &folder.path().join("moved"), CheckpointMode::Move).result.unwrap();
}

#[test]
fn what_is_written_during_a_copy_is_in_it_as_it_was_at_the_stop() {
    let (source, folder) = (Host::new(&[("f", 3)], RANGES), tempfile::tempdir().unwrap());
    source.fill(2);
    let at_stop = memory(RANGES);
    let path = folder.path().join("guest");
    let writing = Writing { writers: true, at_stop: Some(&at_stop), ..Writing::default() };
    write_with(&source, &path, CheckpointMode::Copy, writing).result.unwrap();
    // The guest goes on.
    source.memory.write(0, b"later").unwrap();
    let target = Host::new(&[("x", 3)], RANGES);
    restore(&target, &path).unwrap();
    assert_eq!(differing(at_stop.as_ref(), target.memory.as_ref()), Vec::<u64>::new());
}

#[test]
fn zeros_and_holes_are_not_stored() {
    let (source, folder) = (Host::new(&[("f", 3)], &[(0, 64 << 20)]), tempfile::tempdir().unwrap());
    source.memory.write(PAGE, &[7; PAGE as usize]).unwrap();
    source.memory.write(5 * PAGE, &[0; PAGE as usize]).unwrap();
    let path = folder.path().join("guest");
    write(&source, &path, CheckpointMode::Move).result.unwrap();
    let bytes = fs::metadata(&path).unwrap().len();
    assert!(bytes < 4 * PAGE, "{bytes}");
    let target = Host::new(&[("f", 3)], &[(0, 64 << 20)]);
    restore(&target, &path).unwrap();
    assert_eq!(differing(source.memory.as_ref(), target.memory.as_ref()), Vec::<u64>::new());
}

#[test]
fn a_name_that_is_taken_stays_as_it_is() {
    let (source, folder) = (Host::new(TWO, RANGES), tempfile::tempdir().unwrap());
    source.fill(1);
    let path = folder.path().join("guest");
    fs::write(&path, b"mine").unwrap();
    assert_eq!(write(&source, &path, CheckpointMode::Move).result.unwrap_err().code(), "ERR_TOWLINE_EXISTS");
    assert_eq!(source.states(), [DeviceState::Running; 2]);
    // Somebody takes the name meanwhile.
    let late = folder.path().join("late");
    let writing = Writing { before_seal: Some(&|| fs::write(&late, b"mine").unwrap()), ..Writing::default() };
    let end = write_with(&source, &late, CheckpointMode::Move, writing);
    assert_eq!(end.result.unwrap_err().code(), "ERR_TOWLINE_EXISTS");
    assert_eq!(source.states(), [DeviceState::Running; 2]);
    assert_eq!(record(&source, end.id, Role::Source), "aborted");
    assert_eq!(names(folder.path()), ["guest", "late"]);
    assert_eq!(fs::read(&late).unwrap(), b"mine");
    // Unless it is asked for.
    let writing = Writing { overwrite: true, ..Writing::default() };
    write_with(&source, &late, CheckpointMode::Move, writing).result.unwrap();
    restore(&Host::new(TWO, RANGES), &late).unwrap();
    // And what is no file is never replaced.
    fs::create_dir(folder.path().join("folder")).unwrap();
    let writing = Writing { overwrite: true, ..Writing::default() };
    let end = write_with(&Host::new(TWO, RANGES), &folder.path().join("folder"), CheckpointMode::Move, writing);
    assert_eq!(end.result.unwrap_err().code(), "ERR_TOWLINE_FILE");
}

/// Everything that was there before a failed restore is there after it.
fn untouched(target: &Host) {
    for (_, device, _) in &target.devices {
        let device = device.lock().unwrap();
        assert_eq!((device.history.as_slice(), device.resets), ([].as_slice(), 0));
    }
    assert!(target.memory.ranges().iter().all(|r| target.memory.populated(*r).is_empty()));
    assert!(target.journal.sessions().unwrap().is_empty());
}

/// A small checkpoint, and where its frames begin.
fn small(folder: &Path, mode: CheckpointMode) -> Vec<u8> {
    let source = Host::new(&[("f", 3)], &[(0, 2 * PAGE)]);
    source.devices[0].1.lock().unwrap().registers = vec![5; 20];
    source.memory.write(PAGE, &[7; 16]).unwrap();
    let path = folder.join("small");
    write(&source, &path, mode).result.unwrap();
    fs::read(&path).unwrap()
}

/// One try with these bytes in place of the checkpoint.
fn try_bytes(folder: &Path, bytes: &[u8]) -> Result<(), EngineError> {
    let path = folder.join("tried");
    fs::write(&path, bytes).unwrap();
    verify(&path, &Cancel::new(), &mut |_, _| {}).map(drop)
}

const DAMAGE: &[&str] =
    &["ERR_TOWLINE_STREAM", "ERR_TOWLINE_STREAM_VERSION", "ERR_TOWLINE_PROTOCOL", "ERR_TOWLINE_LIMIT"];

#[test]
fn every_cut_and_every_bit_is_noticed_before_anything_is_touched() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let good = small(folder.path(), CheckpointMode::Move);
    try_bytes(folder.path(), &good).unwrap();
    for cut in 0..good.len() {
        let error = try_bytes(folder.path(), &good[..cut]).unwrap_err();
        assert!(DAMAGE.contains(&error.code()), "cut at {cut}: {error}");
    }
    // Of page content one bit a byte: its checksum is the same for all of it.
    let mut bytes = good.clone();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            if bit != at % 8 && (200..bytes.len() - 200).contains(&at) {
                continue;
            }
            bytes[at] ^= 1 << bit;
            let error = try_bytes(folder.path(), &bytes).unwrap_err();
            assert!(DAMAGE.contains(&error.code()), "bit {bit} of {at}: {error}");
            bytes[at] ^= 1 << bit;
        }
    }
    // As a restore meets them: nothing is loaded, nothing is in the fence, and the file stays.
    let step = good.len() / 40;
    for cut in (0..good.len()).step_by(step) {
        let mut flipped = good.clone();
        flipped[cut] ^= 0x10;
        for bytes in [&good[..cut], &flipped] {
            let path = folder.path().join("tried");
            fs::write(&path, bytes).unwrap();
            let target = Host::new(&[("f", 3)], &[(0, 2 * PAGE)]);
            let error = restore(&target, &path).unwrap_err();
            assert!(DAMAGE.contains(&error.code()), "{cut}: {error}");
            untouched(&target);
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }
}

#[test]
fn what_is_no_checkpoint_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = small(folder.path(), CheckpointMode::Move);
    let code = |bytes: &[u8]| try_bytes(folder.path(), bytes).unwrap_err().code();
    for junk in [&b"x"[..], &[0; 100], &good] {
        assert_eq!(code(&[&good, junk].concat()), "ERR_TOWLINE_STREAM");
    }
    // Sparse: as long as it should be, with a hole in it.
    let mut holed = good.clone();
    let (from, to) = (good.len() / 2, good.len());
    holed[from..to].fill(0);
    assert_eq!(code(&holed), "ERR_TOWLINE_STREAM");
    let path = folder.path().join("sparse");
    OpenOptions::new().create(true).write(true).truncate(true).open(&path).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(restore(&Host::new(&[("f", 3)], RANGES), &path).unwrap_err().code(), "ERR_TOWLINE_STREAM");
    // Another version, told before its checksum, which it may have elsewhere.
    let mut later = good.clone();
    later[8] = 9;
    assert_eq!(code(&later), "ERR_TOWLINE_STREAM_VERSION");
    let mut magic = good.clone();
    magic[0] = b't';
    assert_eq!(code(&magic), "ERR_TOWLINE_STREAM");
    assert_eq!(code(b""), "ERR_TOWLINE_STREAM");
    // A recording of a migration has all of the state, and no commit.
    let recorded = recording(folder.path());
    assert!(try_bytes(folder.path(), &recorded).unwrap_err().to_string().contains("no checkpoint"));
    // No file at all.
    let host = Host::new(&[("f", 3)], RANGES);
    assert_eq!(restore(&host, &folder.path().join("none")).unwrap_err().code(), "ERR_TOWLINE_NOT_FOUND");
    assert_eq!(restore(&host, folder.path()).unwrap_err().code(), "ERR_TOWLINE_FILE");
    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert_eq!(restore(&host, &pipe).unwrap_err().code(), "ERR_TOWLINE_FILE");
    untouched(&host);
}

#[test]
fn a_file_that_changes_while_it_is_restored_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = small(folder.path(), CheckpointMode::Move);
    let path = folder.path().join("tried");
    type Change<'a> = &'a dyn Fn();
    let grow = || OpenOptions::new().append(true).open(&path).unwrap().write_all(b"more").unwrap();
    let shrink = || OpenOptions::new().write(true).open(&path).unwrap().set_len(300).unwrap();
    let damage = || {
        let mut bytes = good.clone();
        bytes[good.len() / 2] ^= 1;
        fs::write(&path, bytes).unwrap();
    };
    let replace = || {
        fs::write(folder.path().join("other"), &good).unwrap();
        fs::rename(folder.path().join("other"), &path).unwrap();
    };
    let remove = || fs::remove_file(&path).unwrap();
    let second_name = || fs::hard_link(&path, folder.path().join(Uuid::new_v4().to_string())).unwrap();
    let changes: [Change<'_>; 6] = [&grow, &shrink, &damage, &replace, &remove, &second_name];
    for (i, change) in changes.into_iter().enumerate() {
        fs::write(&path, &good).unwrap();
        let target = Host::new(&[("f", 3)], &[(0, 2 * PAGE)]);
        let error = restore_with(&target, &path, &mut |at| {
            if at == "answered" {
                change();
            }
        });
        let error = error.unwrap_err();
        assert!(["ERR_TOWLINE_FILE", "ERR_TOWLINE_STREAM"].contains(&error.code()), "{i}: {error}");
        assert!(target.states().iter().all(|s| *s == DeviceState::Running), "{i}");
        let committed = |(session, role)| {
            target.journal.records(session, role).unwrap().last().is_some_and(|r| r.name() == "committed")
        };
        assert!(!target.journal.sessions().unwrap().into_iter().any(committed), "{i}");
        let _ = fs::remove_file(&path);
    }
}

#[test]
fn a_failure_at_any_point_leaves_the_source_running_and_no_file() {
    let points = POINTS.iter().chain(CHECKPOINT_POINTS).filter(|p| !p.starts_with("destination:"));
    for point in points.filter(|p| !p.starts_with("restore:")) {
        for mode in [CheckpointMode::Move, CheckpointMode::Copy] {
            let folder = tempfile::tempdir_in("/dev/shm").unwrap();
            let mut source = Host::new(&[("f", 3), ("g", 7)], RANGES);
            source.fill(4);
            source.points = Arc::new(FaultPoints { fail_at: Some((*point).into()), ..FaultPoints::default() });
            let end = write(&source, &folder.path().join("guest"), mode);
            if !source.points.fired() {
                assert!(end.result.is_ok(), "{point}");
                continue;
            }
            if *point == "source:released" {
                // The release is durable: the file owns the functions.
                assert_eq!(names(folder.path()), ["guest"]);
                continue;
            }
            assert!(matches!(end.result, Err(EngineError::Rehearsed { .. })), "{point}: {:?}", end.result);
            assert_eq!(source.states(), [DeviceState::Running; 2], "{point} {mode:?}");
            assert_eq!(names(folder.path()), Vec::<String>::new(), "{point} {mode:?}");
            assert!(source.devices.iter().all(|d| d.1.lock().unwrap().resets == 0), "{point}");
            if record(&source, end.id, Role::Source) != "none" {
                assert_eq!(record(&source, end.id, Role::Source), "aborted", "{point} {mode:?}");
            }
            // And the next one succeeds.
            source.points = Arc::default();
            write(&source, &folder.path().join("guest"), mode).result.unwrap();
        }
    }
}

#[test]
fn a_restore_that_fails_before_its_commit_leaves_the_checkpoint_restorable() {
    let points = POINTS.iter().chain(CHECKPOINT_POINTS).filter(|p| !p.starts_with("source:"));
    let mut fired = 0;
    for point in points.filter(|p| !p.starts_with("checkpoint:")) {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let (source, path) = (Host::new(TWO, RANGES), folder.path().join("guest"));
        source.fill(4);
        let id = write(&source, &path, CheckpointMode::Move).id;
        let mut target = Host::new(TWO, RANGES);
        target.points = Arc::new(FaultPoints { fail_at: Some((*point).into()), ..FaultPoints::default() });
        let result = restore(&target, &path);
        if !target.points.fired() {
            result.unwrap();
            continue;
        }
        fired += 1;
        assert!(matches!(result, Err(EngineError::Rehearsed { .. })), "{point}");
        let attempts = target.journal.sessions().unwrap();
        let committed = attempts.iter().any(|(s, r)| record(&target, *s, *r) == "committed");
        if committed {
            // Behind the commit a failure takes nothing back: the functions are here, and run.
            assert_eq!(target.states(), [DeviceState::Running; 2], "{point}");
            assert!(restore(&Host::new(TWO, RANGES), &path).is_err(), "{point}");
            continue;
        }
        assert_eq!(names(folder.path()), ["guest"], "{point}");
        // By the same fence, and then it is used up.
        let again = sharing(&target);
        restore(&again, &path).unwrap();
        same_guest(&source, &again);
        assert_eq!(names(folder.path()), [format!("guest.{id}.restored")], "{point}");
    }
    assert!(fired >= 12, "{fired}");
}

#[test]
fn of_two_restores_at_once_one_wins() {
    for round in 0..8 {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let (source, path) = (Host::new(TWO, RANGES), folder.path().join("guest"));
        source.fill(round);
        write(&source, &path, CheckpointMode::Move).result.unwrap();
        let hosts: Vec<Host> = (0..3).map(|_| Host::new(TWO, RANGES)).collect();
        let shared = Arc::clone(&hosts[0].journal);
        // Each host's folder holds a journal: none goes before all have ended.
        let ended: Vec<(Host, Result<(), EngineError>)> = std::thread::scope(|scope| {
            let threads: Vec<_> = hosts
                .into_iter()
                .enumerate()
                .map(|(i, mut host)| {
                    // Two of them have one fence, and then even a file of their own.
                    let own = folder.path().join("own");
                    if i == 1 {
                        host.journal = Arc::clone(&shared);
                    }
                    let path = if i == 1 && round % 2 == 0 {
                        fs::copy(&path, &own).map(|_| own).unwrap_or(path.clone())
                    } else {
                        path.clone()
                    };
                    scope.spawn(move || {
                        let result = restore(&host, &path).map(drop);
                        (host, result)
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let results: Vec<&Result<(), EngineError>> = ended.iter().map(|(_, result)| result).collect();
        // The third has a fence of its own: it and the one with the copied file can't know of each other.
        let most = if round % 2 == 0 { 2 } else { 1 };
        let winners = results.iter().filter(|r| r.is_ok()).count();
        assert!(winners >= 1 && winners <= most, "{round}: {results:?}");
        assert!(!(results[0].is_ok() && results[1].is_ok()), "{round}: both by one fence");
        assert!(!(results[0].is_ok() && results[2].is_ok()), "{round}: both by one file");
    }
}

#[test]
fn a_claim_that_nobody_here_knows_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (source, path) = (Host::new(TWO, RANGES), folder.path().join("guest"));
    source.fill(4);
    let id = write(&source, &path, CheckpointMode::Move).id;
    let claim = folder.path().join(format!("guest.{id}.{}.claimed", Uuid::new_v4()));
    fs::rename(&path, &claim).unwrap();
    let error = restore(&Host::new(TWO, RANGES), &path).unwrap_err();
    assert_eq!(error.code(), "ERR_TOWLINE_FENCED", "{error}");
    assert!(claim.exists());
}

#[test]
fn a_source_that_kept_its_functions_is_believed() {
    let folder = tempfile::tempdir().unwrap();
    let (source, path) = (Host::new(TWO, RANGES), folder.path().join("guest"));
    source.fill(4);
    // The file was carried away before its source knew that it was durable: only a person can help, by a word.
    let end = write(&source, &path, CheckpointMode::Move);
    let doubtful = Journal::open(folder.path().join("journal")).unwrap();
    let records = source.journal.records(end.id, Role::Source).unwrap();
    for record in records.iter().take(2) {
        doubtful.append(end.id, Role::Source, record.clone()).unwrap();
    }
    let kept = folder.path().join("kept");
    fs::rename(&path, &kept).unwrap();
    let verdict = towline_engine::checkpoint::recover(&doubtful, end.id, Role::Source).unwrap().unwrap().0;
    assert_eq!(verdict, Verdict::InDoubt);
    towline_engine::recover::declare_destination_dead(&doubtful, end.id, "lost").unwrap();
    let mut target = Host::new(TWO, RANGES);
    target.journal = Arc::new(doubtful);
    assert_eq!(mismatch(restore(&target, &kept)), ["checkpoint-withdrawn"]);
}

#[test]
fn every_mismatch_is_told_at_once_and_nothing_is_touched() {
    let (source, folder) = (Host::new(TWO, RANGES), tempfile::tempdir().unwrap());
    source.fill(4);
    let path = folder.path().join("guest");
    write(&source, &path, CheckpointMode::Move).result.unwrap();
    let target = Host::new(&[("f", 3), ("z", 3)], &[(0, 1 << 20)]);
    let found = mismatch(restore(&target, &path));
    for code in ["function-missing", "function-extra", "memory-layout"] {
        assert!(found.iter().any(|f| f == code), "{code}: {found:?}");
    }
    untouched(&target);
    restore(&Host::new(TWO, RANGES), &path).unwrap();
}
