//! Sessions inside of a caller's own migration: it moves memory, carries the commit, has a stream of one direction only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use common::*;
use towline_core::channel::{ChannelError, ChannelErrorKind, DirtySink, DirtySource};
use towline_core::dirty::MarkLog;
use towline_core::fsm::DeviceState;
use towline_core::memory::{GuestMemory, MemoryRange};
use towline_engine::cancel::Cancel;
use towline_engine::dialogue::AskOutcome;
use towline_engine::error::{EngineError, LinkError};
use towline_engine::fence::{Record, Role};
use towline_engine::link::Link;
use towline_engine::recover::{Verdict, answer_ask, decide};
use towline_engine::session::{
    CommitBy, DestinationSession, Incoming, MemoryBy, NamedSource, SourceSession, Stopped, Terms,
};
use uuid::Uuid;

const ALL: &[(&str, u64)] = &[("plain", 1), ("p2p", 3), ("everything", 7)];
const BY_CALLER: Terms =
    Terms { memory: MemoryBy::Caller, commit: CommitBy::Caller, duplex: true, descriptors: false, checkpoint: None };
const ONE_WAY: Terms = Terms { duplex: false, ..BY_CALLER };

/// One end of a link of one direction: using it the other way is an error, and noticed.
struct Half {
    inner: Box<dyn Link>,
    reads: bool,
    misused: Arc<AtomicBool>,
}

impl Half {
    fn refuse(&self) -> LinkError {
        self.misused.store(true, Ordering::Release);
        LinkError::Closed { peer: "one way".into() }
    }
}

impl Link for Half {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, LinkError> {
        if self.reads { self.inner.read(out) } else { Err(self.refuse()) }
    }
    fn write_all(&mut self, bufs: &mut [IoSlice<'_>]) -> Result<(), LinkError> {
        if self.reads { Err(self.refuse()) } else { self.inner.write_all(bufs) }
    }
    fn arm(&mut self, cancel: &Cancel) {
        self.inner.arm(cancel);
    }
    fn disarm(&mut self) {
        self.inner.disarm();
    }
    fn idle_timeout(&self) -> Duration {
        self.inner.idle_timeout()
    }
    fn set_idle_timeout(&mut self, timeout: Duration) {
        self.inner.set_idle_timeout(timeout);
    }
    fn peer(&self) -> &str {
        "one way"
    }
}

fn links(terms: Terms) -> (Box<dyn Link>, Box<dyn Link>, Arc<AtomicBool>) {
    let (a, b) = socket_pair();
    let misused = Arc::new(AtomicBool::new(false));
    if terms.duplex {
        return (a, b, misused);
    }
    let half = |inner, reads| -> Box<dyn Link> { Box::new(Half { inner, reads, misused: Arc::clone(&misused) }) };
    (half(a, false), half(b, true), misused)
}

/// What the callers say to each other beside the session.
enum Word {
    Prepared,
    Commit(u64),
    Committed,
}

/// The caller's way of moving memory: takes what is dirty and copies it, apart from the first run after the stop where it is told to
/// `ignore` that.
fn move_memory(session: &SourceSession, from: &dyn GuestMemory, to: &dyn GuestMemory, mut ignore: bool) -> u64 {
    let (mut runs, mut pages) = (vec![], 0);
    loop {
        let taken = session.ledger().next_runs(64, &mut runs);
        if taken == 0 {
            return pages;
        }
        pages += taken;
        for run in &runs {
            if std::mem::take(&mut ignore) {
                continue;
            }
            let mut data = vec![0; run.len as usize];
            from.read(run.gpa, &mut data).unwrap();
            to.write(run.gpa, &data).unwrap();
        }
    }
}

struct Moved {
    here: Host,
    there: Host,
    session: Uuid,
    stale: Vec<u64>,
    ignored: bool,
    misused: bool,
}

/// A whole migration under write load, on any terms.
fn migrate(terms: Terms, ignore: bool) -> Moved {
    let (here, there) = (Host::new(ALL, RANGES), Host::new(ALL, RANGES));
    here.fill(0x3C);
    let log = Arc::new(MarkLog::new());
    let session = Uuid::new_v4();
    let (a, b, misused) = links(terms);
    let mut writers = Writers::start(&here.memory, &log, 0, 1 << 20, 2);
    let (to_there, at_there) = channel();
    let (to_here, at_here) = channel();
    let (mut stale, mut ignored) = (vec![], false);
    std::thread::scope(|scope| {
        let (config, target) = (there.destination(), there.target());
        let receiving = scope.spawn(move || {
            let mut d = DestinationSession::with_terms(config, terms, b).unwrap();
            assert!(matches!(d.read_offer().unwrap(), Incoming::Offer(_)));
            assert!(d.answer(target, vec![]).unwrap().accepted);
            d.receive(&mut |_| {}).unwrap();
            d.prepared().unwrap();
            if terms.commit == CommitBy::Caller {
                to_here.send(Word::Prepared).unwrap();
                let Word::Commit(epoch) = at_there.recv().unwrap() else { panic!() };
                assert!(matches!(d.commit_by_caller(epoch + 1), Err(EngineError::Config { .. })));
                d.commit_by_caller(epoch).unwrap();
                to_here.send(Word::Committed).unwrap();
            } else {
                d.wait_commit().unwrap();
            }
            d.resume().unwrap();
            assert_eq!(d.running().unwrap(), terms.duplex);
            d.digests().to_vec()
        });
        let mut s = SourceSession::with_terms(here.source(session, &log, &[]), terms, a).unwrap();
        assert!(s.offer(serde_json::Value::Null).unwrap().mismatches.is_empty());
        s.start_tracking().unwrap();
        s.precopy_state().unwrap();
        for _ in 0..3 {
            if terms.memory == MemoryBy::Caller {
                assert!(!s.harvest().unwrap().is_last);
                move_memory(&s, here.memory.as_ref(), there.memory.as_ref(), false);
            } else {
                s.memory_pass(&mut |_| {}).unwrap();
            }
        }
        let before = writers.writes.load(Ordering::Relaxed);
        while writers.writes.load(Ordering::Relaxed) < before + 100 {
            std::thread::yield_now();
        }
        writers.stop();
        s.quiesce().unwrap();
        let _: Stopped = s.stop().unwrap();
        if terms.memory == MemoryBy::Caller {
            let harvest = s.harvest().unwrap();
            assert!(harvest.is_last && harvest.failed_sources == 0);
            ignored = ignore && harvest.dirty_pages > 0;
            s.save_state().unwrap();
            assert_eq!(move_memory(&s, here.memory.as_ref(), there.memory.as_ref(), ignore), harvest.dirty_pages);
        } else {
            s.final_pass().unwrap();
        }
        let prepared = s.prepare().unwrap();
        if terms.commit == CommitBy::Caller {
            assert!(matches!(at_here.recv().unwrap(), Word::Prepared));
        }
        stale = differing(here.memory.as_ref(), there.memory.as_ref());
        if terms.commit == CommitBy::Caller {
            assert!(matches!(s.commit(), Err(EngineError::Misuse { .. })));
            let epoch = s.intent().unwrap().epoch;
            to_there.send(Word::Commit(epoch)).unwrap();
            assert!(matches!(at_here.recv().unwrap(), Word::Committed));
        } else {
            assert!(matches!(s.intent(), Err(EngineError::Misuse { .. })));
            s.commit().unwrap();
        }
        if terms.duplex {
            s.wait_running().unwrap();
        } else {
            assert!(matches!(s.wait_running(), Err(EngineError::Misuse { .. })));
        }
        s.release().unwrap();
        assert_eq!(receiving.join().unwrap(), prepared.digests);
    });
    Moved { here, there, session, stale, ignored, misused: misused.load(Ordering::Acquire) }
}

fn check(moved: &Moved) {
    assert_eq!(moved.stale, Vec::<u64>::new());
    assert!(!moved.misused, "a link of one direction was used in the other");
    assert!(moved.here.states().iter().all(|s| *s == DeviceState::Stop));
    assert!(moved.there.states().iter().all(|s| *s == DeviceState::Running));
    for (a, b) in moved.here.devices.iter().zip(&moved.there.devices) {
        assert_eq!(a.1.lock().unwrap().registers, b.1.lock().unwrap().registers);
        assert_eq!(b.1.lock().unwrap().resets, 0);
    }
    let last = |host: &Host, role| host.fence().records(moved.session, role).unwrap().last().cloned();
    assert_eq!(last(&moved.here, Role::Source), Some(Record::Released));
    assert!(matches!(last(&moved.there, Role::Destination), Some(Record::Committed { .. })));
}

#[test]
fn a_caller_moves_memory() {
    check(&migrate(Terms { memory: MemoryBy::Caller, ..Terms::default() }, false));
}

#[test]
fn a_caller_moves_memory_and_carries_the_commit() {
    check(&migrate(BY_CALLER, false));
}

#[test]
fn a_stream_of_one_direction() {
    check(&migrate(ONE_WAY, false));
}

#[test]
fn the_engine_moves_memory_over_a_stream_of_one_direction() {
    check(&migrate(Terms { memory: MemoryBy::Engine, ..ONE_WAY }, false));
}

/// The counterpart of the comparison above: a caller that ignores a run is found out.
#[test]
fn a_run_that_a_caller_ignores_is_found() {
    // What was written last may be what was there before: then try again.
    let found = (0..20).any(|_| {
        let moved = migrate(BY_CALLER, true);
        moved.ignored && !moved.stale.is_empty()
    });
    assert!(found);
}

/// Both sides up to PREPARED, without a guest.
fn prepared(here: &Host, there: &Host, terms: Terms) -> (SourceSession, DestinationSession) {
    let log = Arc::new(MarkLog::new());
    let (a, b, _) = links(terms);
    let mut d = DestinationSession::with_terms(there.destination(), terms, b).unwrap();
    let mut s = SourceSession::with_terms(here.source(Uuid::new_v4(), &log, &[]), terms, a).unwrap();
    std::thread::scope(|scope| {
        let target = there.target();
        let receiving = scope.spawn(|| {
            d.read_offer().unwrap();
            assert!(d.answer(target, vec![]).unwrap().accepted);
            d.receive(&mut |_| {}).unwrap();
            d.prepared().unwrap();
        });
        s.offer(serde_json::Value::Null).unwrap();
        s.start_tracking().unwrap();
        s.stop().unwrap();
        s.harvest().unwrap();
        s.save_state().unwrap();
        move_memory(&s, here.memory.as_ref(), there.memory.as_ref(), false);
        s.prepare().unwrap();
        receiving.join().unwrap();
    });
    (s, d)
}

fn hosts() -> (Host, Host) {
    let (here, there) = (Host::new(&[("f", 1)], RANGES), Host::new(&[("f", 1)], RANGES));
    here.fill(9);
    (here, there)
}

#[test]
fn memory_that_cannot_be_complete_is_not_prepared() {
    let (here, _) = hosts();
    let log = Arc::new(MarkLog::new());
    let (a, _b, _) = links(ONE_WAY);
    let mut s = SourceSession::with_terms(here.source(Uuid::new_v4(), &log, &[]), ONE_WAY, a).unwrap();
    assert!(matches!(s.harvest(), Err(EngineError::Misuse { .. })));
    s.offer(serde_json::Value::Null).unwrap();
    s.start_tracking().unwrap();
    assert!(matches!(s.memory_pass(&mut |_| {}), Err(EngineError::Misuse { .. })));
    assert!(matches!(s.ping(), Err(EngineError::Misuse { .. })));
    let mut runs = vec![];
    while s.ledger().next_runs(1 << 20, &mut runs) > 0 {}
    s.stop().unwrap();
    assert!(matches!(s.final_pass(), Err(EngineError::Misuse { .. })));
    s.save_state().unwrap();
    // Nothing is dirty that anybody knows of, but nobody was asked since the stop.
    assert!(matches!(s.prepare(), Err(EngineError::Config { .. })));
    log.mark(0, 1);
    assert_eq!(s.harvest().unwrap().dirty_pages, 1);
    let refused = s.prepare().unwrap_err();
    assert!(refused.to_string().contains("1 dirty pages were not taken"), "{refused}");
    assert_eq!(s.ledger().next_runs(1, &mut runs), 1);
    s.prepare().unwrap();
    assert!(matches!(s.release(), Err(EngineError::Misuse { .. })));
    s.abort("enough").unwrap();
    assert_eq!(here.states(), [DeviceState::Running]);
}

/// Loses what it knows at its last harvest.
struct Fragile(u32);

impl DirtySource for Fragile {
    fn start(&mut self, _: &[MemoryRange], page: u64) -> Result<u64, ChannelError> {
        Ok(page)
    }
    fn harvest(&mut self, _: &mut dyn DirtySink) -> Result<(), ChannelError> {
        self.0 += 1;
        if self.0 > 1 { Err(ChannelError::new(ChannelErrorKind::Device, "it forgot")) } else { Ok(()) }
    }
    fn stop(&mut self) -> Result<(), ChannelError> {
        Ok(())
    }
}

#[test]
fn a_source_that_fails_after_the_stop_costs_all_of_memory() {
    let (here, _) = hosts();
    let log = Arc::new(MarkLog::new());
    let (a, _b, _) = links(ONE_WAY);
    let mut config = here.source(Uuid::new_v4(), &log, &[]);
    config.dirty_sources.push(NamedSource { name: "fragile".into(), source: Box::new(Fragile(0)) });
    let mut s = SourceSession::with_terms(config, ONE_WAY, a).unwrap();
    s.offer(serde_json::Value::Null).unwrap();
    s.start_tracking().unwrap();
    s.harvest().unwrap();
    let mut runs = vec![];
    while s.ledger().next_runs(1 << 20, &mut runs) > 0 {}
    s.stop().unwrap();
    let harvest = s.harvest().unwrap();
    assert_eq!((harvest.failed_sources, harvest.dirty_pages), (1, s.ledger().pages()));
}

/// A quarter of the pages was never written.
#[test]
fn holes_need_not_be_moved_to_fresh_memory() {
    let (here, _) = hosts();
    let dirty = |is_fresh: bool| {
        let log = Arc::new(MarkLog::new());
        let (a, _b, _) = links(ONE_WAY);
        let mut s = SourceSession::with_terms(here.source(Uuid::new_v4(), &log, &[]), ONE_WAY, a).unwrap();
        if is_fresh {
            s.destination_memory_is_fresh().unwrap();
        }
        s.offer(serde_json::Value::Null).unwrap();
        s.start_tracking().unwrap();
        assert!(matches!(s.destination_memory_is_fresh(), Err(EngineError::Misuse { .. })));
        (s.ledger().dirty_pages(), s.ledger().pages())
    };
    let (all, pages) = dirty(false);
    assert_eq!(all, pages);
    assert_eq!(dirty(true), (pages / 4 * 3, pages));
}

#[test]
fn terms_that_differ_are_a_mismatch() {
    let (here, there) = hosts();
    let log = Arc::new(MarkLog::new());
    let (a, b, _) = links(Terms::default());
    let mut s = SourceSession::with_terms(here.source(Uuid::new_v4(), &log, &[]), BY_CALLER, a).unwrap();
    let mut d = DestinationSession::new(there.destination(), b).unwrap();
    std::thread::scope(|scope| {
        let target = there.target();
        let receiving = scope.spawn(move || {
            d.read_offer().unwrap();
            d.answer(target, vec![]).unwrap()
        });
        let outcome = s.offer(serde_json::Value::Null).unwrap();
        assert!(outcome.mismatches.iter().any(|m| m.code == "terms"), "{outcome:?}");
        assert!(!receiving.join().unwrap().accepted);
    });
}

#[test]
fn an_epoch_that_was_seen_is_refused_where_nothing_can_be_answered() {
    let (here, there) = hosts();
    let opened = Record::Opened {
        session: Uuid::new_v4(),
        role: Role::Destination,
        functions: vec!["f".into()],
        epoch: 5,
        file: None,
    };
    let Record::Opened { session, .. } = &opened else { panic!() };
    there.fence().append(*session, Role::Destination, opened.clone()).unwrap();
    let offer = |least: u64| {
        let log = Arc::new(MarkLog::new());
        let (a, b, _) = links(ONE_WAY);
        let mut s = SourceSession::with_terms(here.source(Uuid::new_v4(), &log, &[]), ONE_WAY, a).unwrap();
        s.set_least_epoch(least).unwrap();
        s.offer(serde_json::Value::Null).unwrap();
        let mut d = DestinationSession::with_terms(there.destination(), ONE_WAY, b).unwrap();
        d.read_offer().unwrap();
        d.answer(there.target(), vec![]).unwrap()
    };
    for stale in [1, 5] {
        let answered = offer(stale);
        assert!(!answered.accepted);
        assert_eq!(answered.mismatches.first().unwrap().code, "epoch-stale");
        assert!(answered.mismatches.first().unwrap().mend.contains("at least 6"));
    }
    assert!(offer(6).accepted);
}

#[test]
fn a_refusal_that_the_caller_brings_lets_the_source_run() {
    for terms in [BY_CALLER, ONE_WAY] {
        let (here, there) = hosts();
        let (mut s, mut d) = prepared(&here, &there, terms);
        assert!(matches!(s.refused_by_caller(), Err(EngineError::Misuse { .. })));
        let epoch = s.intent().unwrap().epoch;
        assert!(matches!(s.abort("too late"), Err(EngineError::Misuse { .. })));
        assert_eq!(here.states(), [DeviceState::StopCopy]);
        d.abort("no").unwrap();
        assert!(d.commit_by_caller(epoch).is_err());
        let records = there.fence().records(s.session(), Role::Destination).unwrap();
        assert!(matches!(records.last(), Some(Record::Aborted { .. })));
        if terms.duplex {
            // It was said on the stream, too.
            assert!(matches!(s.wait_running(), Err(EngineError::CommitRefused { .. })));
        } else {
            s.refused_by_caller().unwrap();
        }
        s.abort("refused").unwrap();
        assert_eq!(here.states(), [DeviceState::Running]);
        assert!(matches!(
            here.fence().records(s.session(), Role::Source).unwrap().last(),
            Some(Record::Aborted { .. })
        ));
    }
}

/// The caller dies between the intent and its message: the question makes the refusal durable, and what comes late is refused.
#[test]
fn a_caller_that_dies_in_its_commit_leaves_one_owner() {
    let (here, there) = hosts();
    let (mut s, mut d) = prepared(&here, &there, ONE_WAY);
    let (session, epoch) = (s.session(), s.intent().unwrap().epoch);
    drop(s);
    assert_eq!(here.states(), [DeviceState::StopCopy], "dropping a session in doubt starts nothing");
    let records = here.fence().records(session, Role::Source).unwrap();
    assert_eq!(decide(Role::Source, &records, None), Verdict::InDoubt);
    let answer = answer_ask(there.fence(), session, epoch).unwrap();
    assert_eq!(answer, AskOutcome::Refused);
    assert_eq!(decide(Role::Source, &records, Some(answer)), Verdict::ResumeSource);
    assert!(matches!(d.commit_by_caller(epoch), Err(EngineError::CommitRefused { .. })));
    assert!(matches!(d.resume(), Err(EngineError::Misuse { .. })));

    // The other way round: the destination has committed, and its word is lost.
    let (here, there) = hosts();
    let (mut s, mut d) = prepared(&here, &there, ONE_WAY);
    let epoch = s.intent().unwrap().epoch;
    d.commit_by_caller(epoch).unwrap();
    assert!(matches!(d.abort("changed its mind"), Err(EngineError::Misuse { .. })));
    let answer = answer_ask(there.fence(), s.session(), epoch).unwrap();
    assert_eq!(s.settle(answer).unwrap(), Verdict::Released);
    assert!(matches!(s.abort("no"), Err(EngineError::Misuse { .. })));
    s.release().unwrap();
}

/// A recovery beside a session that is still there has made the same durable.
#[test]
fn a_recovery_beside_the_session_is_no_contradiction() {
    let (here, there) = hosts();
    let (mut s, d) = prepared(&here, &there, BY_CALLER);
    let epoch = s.intent().unwrap().epoch;
    drop(d);
    let answer = answer_ask(there.fence(), s.session(), epoch).unwrap();
    let verdict = towline_engine::recover::settle(here.fence(), s.session(), Role::Source, Some(answer)).unwrap();
    assert_eq!(verdict, Verdict::ResumeSource);
    assert!(matches!(s.release(), Err(EngineError::Fence(_))));
    assert_eq!(s.settle(answer).unwrap(), Verdict::ResumeSource);
    s.abort("settled").unwrap();
    assert_eq!(here.states(), [DeviceState::Running]);
}
