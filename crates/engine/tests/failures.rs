//! Everything that breaks: links cut and damaged at many places, failures and cancellation at every named point. Whatever
//! happens, at most one side ends as the owner, it holds what the guest had, and in doubt is said where it is so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::*;
use towline_core::channel::{ChannelError, Pending, ReadOutcome, StateChannel};
use towline_core::dirty::MarkLog;
use towline_core::fsm::{DeviceState, MigrationFlags};
use towline_core::memory::{GuestMemory, MemoryRange};
use towline_engine::dialogue::MAX_SECTION_BYTES;
use towline_engine::error::EngineError;
use towline_engine::faultpoints::{FaultPoints, POINTS};
use towline_engine::fence::{Record, Role};
use towline_engine::link::Link;
use towline_engine::recover::{self, Verdict};
use towline_engine::session::{DestinationSession, SourceSession};
use uuid::Uuid;

const SMALL: &[(u64, u64)] = &[(0, 64 << 10)];
const DEVICES: &[(&str, u64)] = &[("a", 3), ("b", 7)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Source,
    Destination,
}

#[derive(Debug)]
struct Outcome {
    owner: Owner,
    was_in_doubt: bool,
    intent: bool,
    error: Option<&'static str>,
    destination_error: Option<&'static str>,
}

fn owns(host: &Host, registers: &[Vec<u8>]) -> bool {
    host.devices.iter().zip(registers).all(|(d, r)| {
        let d = d.1.lock().unwrap();
        d.state == DeviceState::Running && d.registers == *r
    })
}

/// How guest memory gets to the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    Copied,
    Passed,
}

const BOTH: [Memory; 2] = [Memory::Copied, Memory::Passed];

fn contents(memory: &dyn GuestMemory) -> Vec<Vec<u8>> {
    let read = |range: &MemoryRange| {
        let mut out = vec![0; range.len as usize];
        memory.read(range.gpa, &mut out).unwrap();
        out
    };
    memory.ranges().iter().map(read).collect()
}

/// Runs a migration over `links`, settles whatever doubt there is, and checks the rules.
fn run(how: Memory, here: &Host, there: &Host, links: (Box<dyn Link>, Box<dyn Link>)) -> Outcome {
    // Reading a hole fills it, which would leave pages to send that were none.
    let watch = || if how == Memory::Passed { contents(here.memory.as_ref()) } else { Vec::new() };
    let before = watch();
    let mut got = Passed::default();
    let began = std::time::Instant::now();
    let session = Uuid::new_v4();
    let log = Arc::new(MarkLog::new());
    let registers: Vec<Vec<u8>> = here.devices.iter().map(|d| d.1.lock().unwrap().registers.clone()).collect();
    let config = here.source(session, &log, SECTION_NAMES);
    let (mut end, destination_result) = std::thread::scope(|scope| {
        let (config_b, target) = (there.destination(), there.target());
        let got = &mut got;
        let receiving = scope.spawn(move || match how {
            Memory::Copied => run_destination(config_b, target, links.1).0.map(drop),
            Memory::Passed => run_passed_destination(config_b, target, links.1, got).0,
        });
        let end = match how {
            Memory::Copied => run_source(config, links.0, &mut || {}, &mut || {}),
            Memory::Passed => run_passing_source(config, here.memory.clone(), links.0),
        };
        // A source that is through lets go of its link by being dropped; one that has failed has already.
        (end, receiving.join().unwrap())
    });
    let source_records = here.fence().records(session, Role::Source).unwrap();
    let intent = source_records.contains(&Record::Intent { epoch: 1 });
    let error = end.result.as_ref().err().map(EngineError::code);
    let was_in_doubt = error == Some("ERR_TOWLINE_IN_DOUBT");

    if was_in_doubt {
        assert!(intent, "in doubt without an intent");
        assert!(here.states().iter().all(|s| !s.is_running()), "in doubt, and yet something runs at the source");
        // Nothing but the destination's answer ends it.
        assert!(matches!(end.session.abort("impatient"), Err(EngineError::Misuse { .. })));
        let answer = recover::answer_ask(there.fence(), session, 1).unwrap();
        match end.session.settle(answer).unwrap() {
            Verdict::Released => drop(end.session.release().unwrap()),
            Verdict::ResumeSource => drop(end.session.abort("the destination refused").unwrap()),
            other => panic!("{other:?}"),
        }
    } else if error.is_some() && !intent {
        assert!(end.outcomes.iter().all(|o| o.state == Some(DeviceState::Running) && !o.was_reset));
    }
    // A broken link is noticed at once, not by a timeout.
    assert!(began.elapsed() < TEST_LIMIT / 2, "{error:?} took {:?}", began.elapsed());
    // Nobody writes in these tests: whatever went wrong, the guest's memory is as it was.
    assert!(watch() == before, "memory was written, {error:?}");
    // A destination that had crashed starts what it owns.
    let records = there.fence().records(session, Role::Destination).unwrap();
    let destination_owns = recover::decide(Role::Destination, &records, None) == Verdict::RunDestination;
    if destination_owns {
        for mut f in there.functions() {
            f.channel.set_state(DeviceState::Running).unwrap();
        }
        if how == Memory::Copied {
            assert_eq!(differing(here.memory.as_ref(), there.memory.as_ref()), Vec::<u64>::new());
        }
    }
    if let Some(memory) = &got.memory {
        // It may be written by who owns the guest, and by nobody else.
        let written = memory.write(0, &[before[0][0]]);
        assert_eq!(written.is_ok(), destination_owns, "{error:?}, {records:?}");
    }
    let (at_source, at_destination) = (owns(here, &registers), owns(there, &registers));
    assert!(
        at_source != at_destination,
        "owners: source {at_source}, destination {at_destination}, {error:?}, {records:?}"
    );
    assert_eq!(at_destination, destination_owns);
    let destination_error = destination_result.err().map(|e| e.code());
    let owner = if at_source { Owner::Source } else { Owner::Destination };
    Outcome { owner, was_in_doubt, intent, error, destination_error }
}

fn hosts() -> (Host, Host) {
    let (here, there) = (Host::new(DEVICES, SMALL), Host::new(DEVICES, SMALL));
    here.fill(0x21);
    (here, there)
}

/// How many bytes each side writes in an undisturbed migration.
fn totals(how: Memory) -> (u64, u64) {
    let (here, there) = hosts();
    let (a, b) = socket_pair();
    let ((a, sent), (b, answered)) = (Tamper::wrap(a, None, None), Tamper::wrap(b, None, None));
    let outcome = run(how, &here, &there, (a, b));
    assert_eq!((outcome.owner, outcome.error), (Owner::Destination, None));
    (sent.load(Ordering::Relaxed), answered.load(Ordering::Relaxed))
}

/// How much two runs may differ in what they answer, in bytes: the digits of their times.
const SLACK: u64 = 16;

/// Places near both ends byte by byte, in between every `step`.
fn places(total: u64, ends: u64, step: u64) -> Vec<u64> {
    let middle = (ends..total.saturating_sub(ends)).step_by(step as usize);
    let mut places: Vec<u64> = (0..ends.min(total)).chain(middle).chain(total.saturating_sub(ends)..total).collect();
    places.dedup();
    places
}

#[test]
fn a_cut_link_leaves_one_owner_and_says_when_it_is_in_doubt() {
    BOTH.into_iter().for_each(cut_everywhere);
}

fn cut_everywhere(how: Memory) {
    let (sent, answered) = totals(how);
    let mut doubts = 0;
    let mut committed = 0;
    for at in places(sent, 150, 997) {
        let (here, there) = hosts();
        let (a, b) = socket_pair();
        let outcome = run(how, &here, &there, (Tamper::wrap(a, Some(at), None).0, b));
        if !outcome.intent {
            assert_eq!(outcome.owner, Owner::Source, "cut at {at} of {sent}");
        }
        doubts += u32::from(outcome.was_in_doubt);
        assert!(outcome.error.is_some(), "cut at {at} of {sent} went unnoticed");
    }
    assert!(doubts > 0, "COMMIT was never cut");
    let mut refused = 0;
    for at in places(answered, 150, 41) {
        let (here, there) = hosts();
        let (a, b) = socket_pair();
        let (b, written) = Tamper::wrap(b, Some(at), None);
        let outcome = run(how, &here, &there, (a, b));
        if written.load(Ordering::Relaxed) & CUT == 0 {
            // Times in the answers have as many digits as they need: this run said less than the first one.
            assert!(at + SLACK >= answered, "a run of {answered} bytes was not cut at {at}");
            continue;
        }
        assert!(outcome.error.is_some(), "cut at {at} of {answered} went unnoticed");
        match outcome.owner {
            Owner::Destination => committed += 1,
            Owner::Source => refused += 1,
        }
        if outcome.owner == Owner::Destination {
            assert!(outcome.intent);
        }
    }
    assert!(committed > 0 && refused > 0, "cuts of the answers: {committed} committed, {refused} not");
}

#[test]
fn a_flipped_bit_never_arrives_as_something_else() {
    BOTH.into_iter().for_each(flip_everywhere);
}

fn flip_everywhere(how: Memory) {
    let (sent, answered) = totals(how);
    for (n, at) in places(sent, 120, 1499).into_iter().enumerate() {
        let (here, there) = hosts();
        let (a, b) = socket_pair();
        let outcome = run(how, &here, &there, (Tamper::wrap(a, None, Some((at, (n % 8) as u8))).0, b));
        assert!(outcome.error.is_some() || outcome.destination_error.is_some(), "a flip at {at} went unnoticed");
        assert_eq!(outcome.owner, Owner::Source, "flip at {at} of {sent}: {outcome:?}");
    }
    for (n, at) in places(answered, 120, 41).into_iter().enumerate() {
        let (here, there) = hosts();
        let (a, b) = socket_pair();
        let (b, written) = Tamper::wrap(b, None, Some((at, (n % 8) as u8)));
        let outcome = run(how, &here, &there, (a, b));
        if written.load(Ordering::Relaxed) <= at {
            assert!(at + SLACK >= answered, "a run of {answered} bytes had no byte {at}");
            continue;
        }
        assert!(outcome.error.is_some(), "a flip at {at} of the answers went unnoticed");
    }
}

#[test]
fn a_failure_at_every_point_leaves_one_owner() {
    BOTH.into_iter().for_each(fail_everywhere);
}

fn fail_everywhere(how: Memory) {
    let mut reached = vec![];
    for point in POINTS {
        let (mut here, mut there) = hosts();
        let points = Arc::new(FaultPoints { fail_at: Some((*point).to_owned()), ..FaultPoints::default() });
        if point.starts_with("source:") {
            here.points = Arc::clone(&points);
        } else {
            there.points = Arc::clone(&points);
        }
        let outcome = run(how, &here, &there, socket_pair());
        if points.fired() {
            reached.push(*point);
            assert!(outcome.error.is_some() || outcome.destination_error.is_some(), "{point}");
        }
    }
    // These four are only passed by a session that fails otherwise.
    let missing: Vec<&&str> = POINTS.iter().filter(|p| !reached.contains(*p)).collect();
    let only_on_failure = ["source:aborting", "source:aborted", "destination:refusal-durable", "destination:aborted"];
    // And no pages are left over where none are sent.
    let no_pages = if how == Memory::Passed { &["source:final-memory"][..] } else { &[] };
    assert_eq!(missing, no_pages.iter().chain(&only_on_failure).collect::<Vec<_>>());
}

#[test]
fn a_failure_after_the_durable_commit_is_no_rollback() {
    for point in ["destination:commit-durable", "destination:committed-sent"] {
        let (here, mut there) = hosts();
        there.points = Arc::new(FaultPoints { fail_at: Some(point.into()), ..FaultPoints::default() });
        let (a, b) = socket_pair();
        let log = Arc::new(MarkLog::new());
        let config = here.source(Uuid::new_v4(), &log, SECTION_NAMES);
        std::thread::scope(|scope| {
            scope.spawn(move || drop(run_source(config, a, &mut || {}, &mut || {})));
            let mut session = DestinationSession::new(there.destination(), b).unwrap();
            session.read_offer().unwrap();
            session.answer(there.target(), vec![]).unwrap();
            session.receive(&mut |_| {}).unwrap();
            assert!(session.progress().zero_pages > 0 && session.progress().zero_pages < session.progress().pages);
            session.prepared().unwrap();
            assert_eq!(session.wait_commit().unwrap(), 1, "{point}");
            assert!(matches!(session.resume(), Err(EngineError::Rehearsed { point: p }) if p == point));
            assert!(there.states().iter().all(|s| *s == DeviceState::Running));
            session.running().unwrap();
        });
    }
}

#[test]
fn a_function_that_does_not_start_holds_no_other_back() {
    let (here, there) = hosts();
    there.devices[0].1.lock().unwrap().fail_at = Some(DeviceState::Running);
    let (a, b) = socket_pair();
    let log = Arc::new(MarkLog::new());
    let config = here.source(Uuid::new_v4(), &log, SECTION_NAMES);
    std::thread::scope(|scope| {
        let source = scope.spawn(move || run_source(config, a, &mut || {}, &mut || {}).result);
        let (config, target) = (there.destination(), there.target());
        let mut session = DestinationSession::new(config, b).unwrap();
        session.read_offer().unwrap();
        session.answer(target, vec![]).unwrap();
        session.receive(&mut |_| {}).unwrap();
        session.prepared().unwrap();
        session.wait_commit().unwrap();
        assert_eq!(session.resume().unwrap_err().function(), Some("a"));
        assert_eq!(there.states(), [DeviceState::Error, DeviceState::Running]);
        session.running().unwrap();
        let told = source.join().unwrap().unwrap_err().to_string();
        assert!(told.contains("function a"), "{told}");
    });
}

/// Drives a source up to the final pass of a session whose destination takes whatever comes.
fn up_to_the_stop(here: &Host, there: &Host, then: impl FnOnce(&mut SourceSession)) {
    let (a, b) = socket_pair();
    let log = Arc::new(MarkLog::new());
    std::thread::scope(|scope| {
        scope.spawn(|| drop(run_destination(there.destination(), there.target(), b)));
        let mut session = SourceSession::new(here.source(Uuid::new_v4(), &log, SECTION_NAMES), a).unwrap();
        session.offer(serde_json::json!({})).unwrap();
        session.start_tracking().unwrap();
        session.memory_pass(&mut |_| {}).unwrap();
        session.stop().unwrap();
        then(&mut session);
        session.abort("the test is over").unwrap();
    });
}

#[test]
fn memory_that_came_later_is_not_left_behind() {
    let (here, there) = hosts();
    up_to_the_stop(&here, &there, |session| {
        let fd = towline_linux::memory::memfd("late", PAGE).unwrap();
        here.memory.add_region(1 << 40, std::os::fd::AsFd::as_fd(&fd), 0, PAGE).unwrap();
        let error = session.final_pass().unwrap_err();
        assert!(matches!(&error, EngineError::Config { what } if what.contains("ranges")), "{error}");
    });
    assert!(here.states().iter().all(|s| *s == DeviceState::Running));
}

#[test]
fn sections_have_one_limit_on_both_sides() {
    let (here, there) = hosts();
    up_to_the_stop(&here, &there, |session| {
        session.final_pass().unwrap();
        let before = session.wire_bytes();
        let error = session.send_section("vcpu", &vec![0; MAX_SECTION_BYTES as usize + 1]).unwrap_err();
        assert!(matches!(error, EngineError::Limit { limit: MAX_SECTION_BYTES, .. }), "{error}");
        assert_eq!(session.wire_bytes(), before, "nothing is sent of it");
        session.send_section("vcpu", &[0; 1 << 20]).unwrap();
        let rest = vec![0; MAX_SECTION_BYTES as usize - (1 << 20) + 1];
        assert!(matches!(session.send_section("empty", &rest), Err(EngineError::Limit { .. })));
    });
}

/// Gives something more whenever it is read.
struct Endless(Channel);

impl StateChannel for Endless {
    fn flags(&self) -> MigrationFlags {
        self.0.flags()
    }
    fn state(&mut self) -> Result<DeviceState, ChannelError> {
        self.0.state()
    }
    fn set_state(&mut self, to: DeviceState) -> Result<(), ChannelError> {
        self.0.set_state(to)
    }
    fn read(&mut self, out: &mut [u8]) -> Result<ReadOutcome, ChannelError> {
        out.fill(7);
        Ok(ReadOutcome::Bytes(out.len()))
    }
    fn write(&mut self, data: &[u8]) -> Result<(), ChannelError> {
        self.0.write(data)
    }
    fn pending(&mut self) -> Result<Pending, ChannelError> {
        Ok(Pending { initial_bytes: 3 << 20, dirty_bytes: 1, stop_copy_bytes: Some(1) })
    }
    fn reset(&mut self) -> Result<(), ChannelError> {
        self.0.reset()
    }
}

#[test]
fn a_device_that_never_has_given_all_ends_the_call_too() {
    let (here, there) = hosts();
    let (a, b) = socket_pair();
    let log = Arc::new(MarkLog::new());
    let mut config = here.source(Uuid::new_v4(), &log, SECTION_NAMES);
    config.functions[1].channel = Box::new(Endless(Channel::new(&here.devices[1].1, 7, 1000)));
    std::thread::scope(|scope| {
        scope.spawn(|| drop(run_destination(there.destination(), there.target(), b)));
        let mut session = SourceSession::new(config, a).unwrap();
        session.offer(serde_json::json!({})).unwrap();
        session.start_tracking().unwrap();
        for _ in 0..2 {
            let stats = session.precopy_state().unwrap();
            // The estimate is 3 MiB and a byte, read by chunks of 1 MiB.
            assert_eq!((stats.bytes, stats.initial_bytes_left, stats.dirty_bytes_left), (4 << 20, 3 << 20, 1));
        }
        session.abort("the test is over").unwrap();
    });
}

#[test]
fn points_of_failing_sessions_are_passed_too() {
    use std::sync::Mutex;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let observe = |fail_at: Option<&str>| {
        let seen = Arc::clone(&seen);
        Arc::new(FaultPoints {
            fail_at: fail_at.map(str::to_owned),
            observer: Some(Box::new(move |p| seen.lock().unwrap().push(p))),
            ..FaultPoints::default()
        })
    };
    for (source, destination) in [(Some("source:stopped"), None), (None, Some("destination:commit-received"))] {
        let (mut here, mut there) = hosts();
        (here.points, there.points) = (observe(source), observe(destination));
        run(Memory::Passed, &here, &there, socket_pair());
    }
    let seen = seen.lock().unwrap();
    for point in ["source:aborting", "source:aborted", "destination:refusal-durable", "destination:aborted"] {
        assert!(seen.contains(&point), "{point}");
    }
}

#[test]
fn cancelling_at_every_point_before_the_intent_leaves_the_source_running() {
    for (how, point) in BOTH.into_iter().flat_map(|how| POINTS.iter().map(move |p| (how, p))) {
        let (mut here, there) = hosts();
        let cancel = here.cancel.clone();
        let accepted = Arc::new(std::sync::Mutex::new(None));
        let note = Arc::clone(&accepted);
        here.points = Arc::new(FaultPoints {
            observer: Some(Box::new(move |p| {
                if p == *point {
                    *note.lock().unwrap() = Some(cancel.cancel());
                }
            })),
            ..FaultPoints::default()
        });
        let outcome = run(how, &here, &there, socket_pair());
        match *accepted.lock().unwrap() {
            Some(true) => {
                assert_eq!((outcome.owner, outcome.error), (Owner::Source, Some("ERR_TOWLINE_CANCELLED")), "{point}");
            }
            // Too late, or a point of the other side: it goes through.
            _ => assert_eq!((outcome.owner, outcome.error), (Owner::Destination, None), "{point}"),
        }
    }
}

#[test]
fn cancelling_the_destination_rolls_back_too() {
    for (how, point) in
        BOTH.into_iter().flat_map(|how| POINTS.iter().filter(|p| p.starts_with("destination:")).map(move |p| (how, p)))
    {
        let (here, mut there) = hosts();
        let cancel = there.cancel.clone();
        let accepted = Arc::new(std::sync::Mutex::new(None));
        let note = Arc::clone(&accepted);
        there.points = Arc::new(FaultPoints {
            observer: Some(Box::new(move |p| {
                if p == *point {
                    *note.lock().unwrap() = Some(cancel.cancel());
                }
            })),
            ..FaultPoints::default()
        });
        let outcome = run(how, &here, &there, socket_pair());
        let owner = if *accepted.lock().unwrap() == Some(true) { Owner::Source } else { Owner::Destination };
        assert_eq!(outcome.owner, owner, "{point}: {outcome:?}");
        assert!(!outcome.was_in_doubt, "{point}: a refusal is an answer");
    }
}

#[test]
fn a_device_that_fails_is_reset_and_reported() {
    for (state, point) in [(DeviceState::Stop, "stop"), (DeviceState::StopCopy, "save")] {
        let (here, there) = hosts();
        here.devices[0].1.lock().unwrap().fail_at = Some(state);
        let log = Arc::new(MarkLog::new());
        let (a, b) = socket_pair();
        let config = here.source(Uuid::new_v4(), &log, SECTION_NAMES);
        std::thread::scope(|scope| {
            let (config_b, target) = (there.destination(), there.target());
            scope.spawn(move || drop(run_destination(config_b, target, b)));
            let end = run_source(config, a, &mut || {}, &mut || {});
            let error = end.result.unwrap_err();
            assert_eq!(
                (error.code(), error.errno(), error.nvme_status()),
                ("ERR_TOWLINE_CHANNEL", Some(5), Some(0x106))
            );
            assert_eq!(error.function(), Some("a"), "{point}");
            assert!(matches!(error, EngineError::Channel { state: Some(DeviceState::Error), .. }));
            assert!(end.outcomes[0].was_reset && end.outcomes[0].error.is_some());
            assert!(!end.outcomes[1].was_reset);
            assert!(end.outcomes.iter().all(|o| o.state == Some(DeviceState::Running)));
        });
    }
    // At the destination: the source has everything back.
    let (here, there) = hosts();
    there.devices[1].1.lock().unwrap().fail_at = Some(DeviceState::Resuming);
    let outcome = run(Memory::Copied, &here, &there, socket_pair());
    assert_eq!((outcome.owner, outcome.error), (Owner::Source, Some("ERR_TOWLINE_PEER_ABORTED")));
}

#[test]
fn a_lost_chunk_of_state_is_found_before_the_commit() {
    let (mut here, there) = hosts();
    here.points = Arc::new(FaultPoints { drop_last_state: true, ..FaultPoints::default() });
    let outcome = run(Memory::Copied, &here, &there, socket_pair());
    assert!(here.points.fired());
    assert_eq!((outcome.owner, outcome.error), (Owner::Source, Some("ERR_TOWLINE_PEER_ABORTED")));
    assert_eq!(outcome.destination_error, Some("ERR_TOWLINE_STREAM"));
    assert!(!outcome.intent);
}

/// The counterpart of the count of owners: a source that runs on after the release is found.
#[test]
fn two_owners_are_found() {
    for how in BOTH {
        let (mut here, there) = hosts();
        here.points = Arc::new(FaultPoints { run_after_release: true, ..FaultPoints::default() });
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(how, &here, &there, socket_pair())));
        let message = caught.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("owners: source true, destination true"), "{message}");
    }
}
