//! A source in doubt: another session for the same functions must neither begin nor let them run, and once the doubt is settled
//! nothing of the old session is in the way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::sync::Arc;

use common::*;
use towline_core::dirty::MarkLog;
use towline_core::fsm::DeviceState;
use towline_engine::dialogue::AskOutcome;
use towline_engine::error::{EngineError, FenceError};
use towline_engine::faultpoints::FaultPoints;
use towline_engine::fence::{Fence, NotOurs, Record, Role, not_ours};
use towline_engine::journal::Journal;
use towline_engine::recover::{Verdict, settle};
use towline_engine::session::SourceSession;
use uuid::Uuid;

const SMALL: &[(u64, u64)] = &[(0, 64 << 10)];
const FIRST: Uuid = Uuid::from_u128(1);
const SECOND: Uuid = Uuid::from_u128(2);

/// A source whose COMMIT never left: the destination aborts, and the source can't know.
fn in_doubt(log: &Arc<MarkLog>) -> (Host, Host) {
    let (mut source, destination) = (Host::new(&[("f", 3)], SMALL), Host::new(&[("f", 3)], SMALL));
    source.fill(5);
    source.points =
        Arc::new(FaultPoints { fail_at: Some("source:commit-intent-durable".into()), ..FaultPoints::default() });
    let result = migrate(&source, &destination, FIRST, log);
    assert!(matches!(result, Err(EngineError::InDoubt { session: FIRST, .. })), "{result:?}");
    source.points = Arc::default();
    (source, destination)
}

fn migrate(source: &Host, destination: &Host, session: Uuid, log: &Arc<MarkLog>) -> Result<(), EngineError> {
    let (here, there) = socket_pair();
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| run_destination(destination.destination(), destination.target(), there));
        let names: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
        let end = run_source(source.source(session, log, &names), here, &mut || {}, &mut || {});
        // The session ends with its link, so that the other side ends too.
        drop(end.session);
        let _ = receiving.join().unwrap();
        end.result.map(drop)
    })
}

#[test]
fn another_session_is_refused_and_nothing_runs() {
    let log = Arc::new(MarkLog::new());
    let (source, destination) = in_doubt(&log);
    assert_eq!(source.states(), [DeviceState::StopCopy]);
    assert_eq!(not_ours(source.fence(), &["f".into()]).unwrap(), Some(NotOurs::InDoubt(FIRST)));
    assert_eq!(not_ours(source.fence(), &["another".into()]).unwrap(), None);
    assert_eq!(not_ours(destination.fence(), &["f".into()]).unwrap(), None);

    let (here, _there) = socket_pair();
    let mut second = SourceSession::new(source.source(SECOND, &log, &[]), here).unwrap();
    let refused = second.offer(serde_json::json!({})).unwrap_err();
    assert!(matches!(refused, EngineError::Fence(FenceError::Refused { session: SECOND, .. })), "{refused}");
    let outcomes = second.abort("it can't be offered").unwrap();
    assert_eq!(outcomes[0].state, Some(DeviceState::StopCopy));
    drop(second);
    assert_eq!(source.states(), [DeviceState::StopCopy]);
    assert!(source.fence().records(SECOND, Role::Source).unwrap().is_empty());
}

#[test]
fn what_came_back_out_of_doubt_migrates_again() {
    let log = Arc::new(MarkLog::new());
    let (source, destination) = in_doubt(&log);
    let verdict = settle(source.fence(), FIRST, Role::Source, Some(AskOutcome::Refused)).unwrap();
    assert_eq!(verdict, Verdict::ResumeSource);
    source.functions()[0].channel.set_state(DeviceState::Running).unwrap();
    migrate(&source, &destination, SECOND, &log).unwrap();
    assert_eq!(destination.states(), [DeviceState::Running]);
    assert_eq!(source.states(), [DeviceState::Stop]);
}

#[test]
fn what_was_released_is_not_offered_again_until_it_has_come_back() {
    let log = Arc::new(MarkLog::new());
    let (source, destination) = (Host::new(&[("f", 3)], SMALL), Host::new(&[("f", 3)], SMALL));
    source.fill(5);
    migrate(&source, &destination, FIRST, &log).unwrap();
    assert_eq!(not_ours(source.fence(), &["g".into(), "f".into()]).unwrap(), Some(NotOurs::Released(FIRST)));

    let (here, _there) = socket_pair();
    let mut again = SourceSession::new(source.source(SECOND, &log, &[]), here).unwrap();
    let refused = again.offer(serde_json::json!({})).unwrap_err();
    assert!(refused.to_string().contains("owned by the destination"), "{refused}");
    // Neither the abort nor the drop runs it here.
    again.abort("it can't be offered").unwrap();
    drop(again);
    assert_eq!((source.states(), destination.states()), (vec![DeviceState::Stop], vec![DeviceState::Running]));

    // An attempt to bring it back that failed changes nothing; one that commits does.
    let third = Uuid::from_u128(3);
    let open = |session, epoch| {
        let record =
            Record::Opened { session, role: Role::Destination, functions: vec!["f".into()], epoch, file: None };
        source.journal.append(session, Role::Destination, record).unwrap();
    };
    open(third, 7);
    source.journal.append(third, Role::Destination, Record::Aborted { reason: "no".into() }).unwrap();
    assert_eq!(not_ours(source.fence(), &["f".into()]).unwrap(), Some(NotOurs::Released(FIRST)));
    let fourth = Uuid::from_u128(4);
    open(fourth, 8);
    source.journal.append(fourth, Role::Destination, Record::Committed { epoch: 8 }).unwrap();
    assert_eq!(not_ours(source.fence(), &["f".into()]).unwrap(), None);
}

/// A source's record with one damaged line: `line` 0 names the functions, 1 is what follows.
fn damaged(line: usize, functions: &[&str]) -> Result<Option<NotOurs>, FenceError> {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let opened =
        Record::Opened { session: FIRST, role: Role::Source, functions: vec!["f".into()], epoch: 1, file: None };
    journal.append(FIRST, Role::Source, opened).unwrap();
    journal.append(FIRST, Role::Source, Record::Intent { epoch: 1 }).unwrap();
    drop(journal);
    let path = dir.path().join(format!("{FIRST}.source.journal"));
    let mut lines: Vec<Vec<u8>> = std::fs::read(&path).unwrap().split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    lines[line][20] ^= 1;
    std::fs::write(&path, lines.join(&b'\n')).unwrap();
    not_ours(&Journal::open(dir.path()).unwrap(), &functions.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>())
}

#[test]
fn a_damaged_source_fails_closed() {
    assert!(matches!(damaged(1, &["f"]), Err(FenceError::Damaged { record: 1, .. })));
    assert_eq!(damaged(1, &["g"]).unwrap(), None);
    // Nobody can say which functions it was about.
    assert!(matches!(damaged(0, &["g"]), Err(FenceError::Damaged { record: 0, .. })));
}

#[test]
fn a_file_that_is_too_large_damages_its_session_only() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(format!("{FIRST}.destination.journal")), vec![b'x'; (16 << 20) + 1]).unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.sessions().unwrap(), [(FIRST, Role::Destination)]);
    assert!(matches!(journal.records(FIRST, Role::Destination), Err(FenceError::Damaged { .. })));
    let opened =
        Record::Opened { session: SECOND, role: Role::Source, functions: vec!["f".into()], epoch: 1, file: None };
    journal.append(SECOND, Role::Source, opened).unwrap();
}
