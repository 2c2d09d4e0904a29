//! Who dirties how much: by source, in harvests and in samples.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::*;
use towline_core::dirty::MarkLog;
use towline_engine::error::EngineError;
use towline_engine::link::Link;
use towline_engine::session::{CommitBy, MemoryBy, NamedSource, SourcePages, SourceSession, Terms};
use uuid::Uuid;

const BY_CALLER: Terms =
    Terms { memory: MemoryBy::Caller, commit: CommitBy::Caller, duplex: false, descriptors: false, checkpoint: None };

/// A session that tracks two writers, `marks` and `other`, with nothing dirty.
struct Rig {
    session: SourceSession,
    marks: Arc<MarkLog>,
    other: Arc<MarkLog>,
    _host: Host,
    _peer: Box<dyn Link>,
}

fn rig() -> Rig {
    let host = Host::new(&[("plain", 1)], &[(0, 4 << 20)]);
    let (marks, other) = (Arc::new(MarkLog::new()), Arc::new(MarkLog::new()));
    let (link, _peer) = socket_pair();
    let mut config = host.source(Uuid::new_v4(), &marks, &[]);
    config.dirty_sources.push(NamedSource { name: "other".into(), source: Box::new(other.source()) });
    let mut session = SourceSession::with_terms(config, BY_CALLER, link).unwrap();
    session.offer(serde_json::Value::Null).unwrap();
    session.start_tracking().unwrap();
    session.harvest().unwrap();
    take_all(&session);
    session.take_dirtied();
    Rig { session, marks, other, _host: host, _peer }
}

fn take_all(session: &SourceSession) -> u64 {
    let (mut runs, mut pages) = (vec![], 0);
    loop {
        match session.ledger().next_runs(1 << 20, &mut runs) {
            0 => return pages,
            taken => pages += taken,
        }
    }
}

fn pages(counts: [u64; 2]) -> Vec<SourcePages> {
    let of = |source: &str, pages| SourcePages { source: source.into(), pages };
    vec![of("marks", counts[0]), of("other", counts[1])]
}

#[test]
fn each_source_is_counted_for_what_was_not_dirty_before() {
    let Rig { mut session, marks, other, _host, _peer } = rig();
    marks.mark(0, 3 * PAGE);
    marks.mark(PAGE, PAGE);
    other.mark(2 * PAGE, 4 * PAGE);
    session.harvest().unwrap();
    assert_eq!(session.take_dirtied(), pages([3, 3]), "page 2 is of whoever told first");
    assert_eq!(session.take_dirtied(), pages([0, 0]), "asked for, forgotten");
    other.mark(0, PAGE);
    session.harvest().unwrap();
    assert_eq!(session.take_dirtied(), pages([0, 0]), "it was dirty still");
    assert_eq!(take_all(&session), 6);
    other.mark(0, PAGE);
    session.stop().unwrap();
    session.harvest().unwrap();
    assert_eq!(session.take_dirtied(), pages([0, 1]), "the last harvest counts too");
}

#[test]
fn a_sample_tells_hot_pages_from_a_stream_and_loses_nothing() {
    let Rig { mut session, marks, other, _host, _peer } = rig();
    let stop = AtomicBool::new(false);
    let sample = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut next = 0;
            while !stop.load(Ordering::Relaxed) {
                marks.mark(0, 4 * PAGE);
                if next < 500 {
                    next += 1;
                    other.mark((10 + next) * PAGE, PAGE);
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let sample = session.sample_dirty(Duration::from_millis(400)).unwrap();
        stop.store(true, Ordering::Relaxed);
        sample
    });
    assert_eq!(sample.windows, 4);
    assert!(sample.ms >= 400.0);
    let [hot, stream] = sample.sources.as_slice() else { panic!("{sample:?}") };
    assert_eq!((hot.source.as_str(), stream.source.as_str()), ("marks", "other"));
    assert_eq!(hot.whole_bytes, 4 * PAGE, "the same four pages, again and again");
    assert!(hot.window_bytes > hot.whole_bytes, "in more than one window: {sample:?}");
    assert_eq!(stream.window_bytes, stream.whole_bytes, "never the same page");
    assert!(stream.whole_bytes > 0, "{sample:?}");
    // What was found by looking is dirty all the same.
    session.harvest().unwrap();
    let counted: u64 = session.take_dirtied().iter().map(|s| s.pages).sum();
    let left = take_all(&session);
    assert!(left >= (hot.whole_bytes + stream.whole_bytes) / PAGE, "{left} pages, {sample:?}");
    assert_eq!(counted, left, "and counted once");
}

#[test]
fn nobody_samples_for_long_or_out_of_order() {
    let Rig { mut session, _host, _peer, .. } = rig();
    assert!(matches!(session.sample_dirty(Duration::from_secs(11)), Err(EngineError::Limit { .. })));
    session.stop().unwrap();
    assert!(matches!(session.sample_dirty(Duration::from_millis(1)), Err(EngineError::Misuse { .. })));
}
