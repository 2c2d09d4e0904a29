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
use towline_engine::fence::{Role, doubt_about};
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
    source.points = Arc::new(FaultPoints {
        fail_at: Some("source:commit-intent-durable".into()),
        ..FaultPoints::default()
    });
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
    assert_eq!(doubt_about(source.fence(), &["f".into()]).unwrap(), Some(FIRST));
    assert_eq!(doubt_about(source.fence(), &["another".into()]).unwrap(), None);
    assert_eq!(doubt_about(destination.fence(), &["f".into()]).unwrap(), None);

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
