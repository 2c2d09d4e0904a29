//! Both ends of a checkpoint, each driven through all of its steps.
#![allow(dead_code)]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use towline_core::dirty::MarkLog;
use towline_core::memory::GuestMemory;
use towline_engine::checkpoint::CheckpointMode;
use towline_engine::dialogue::Mismatch;
use towline_engine::error::EngineError;
use towline_engine::fence::{Fence, Role};
use towline_engine::session::{DestinationSession, Incoming, Section, SourceSession};
use towline_linux::memory::MappedMemory;
use uuid::Uuid;

use crate::common::*;

/// How a checkpoint is written.
#[derive(Default)]
pub struct Writing<'a> {
    pub overwrite: bool,
    /// Threads write guest memory until the stop.
    pub writers: bool,
    /// Gets what memory holds once everything has stopped.
    pub at_stop: Option<&'a Arc<MappedMemory>>,
    pub before_seal: Option<&'a dyn Fn()>,
    pub id: Option<Uuid>,
}

/// How writing one ended.
pub struct Written {
    pub id: Uuid,
    pub result: Result<u64, EngineError>,
}

pub fn write(host: &Host, path: &Path, mode: CheckpointMode) -> Written {
    write_with(host, path, mode, Writing::default())
}

pub fn write_with(host: &Host, path: &Path, mode: CheckpointMode, writing: Writing<'_>) -> Written {
    let id = writing.id.unwrap_or_else(Uuid::new_v4);
    let log = Arc::new(MarkLog::new());
    let config = host.source(id, &log, SECTION_NAMES);
    let mut session = match SourceSession::checkpoint(config, path, mode, writing.overwrite) {
        Ok(session) => session,
        Err(error) => return Written { id, result: Err(error) },
    };
    let mut writers = writing.writers.then(|| Writers::start(&host.memory, &log, 0, host.memory.ranges()[0].len, 2));
    let result = (|| {
        session.offer(serde_json::json!({"kind": "test"}))?;
        session.start_tracking()?;
        session.precopy_state()?;
        session.memory_pass(&mut |_| {})?;
        if let Some(writers) = &mut writers {
            writers.stop_after_more();
        }
        session.quiesce()?;
        session.stop()?;
        if let Some(copy) = writing.at_stop {
            copy_memory(host.memory.as_ref(), copy.as_ref());
        }
        session.final_pass()?;
        for (name, data) in SECTIONS {
            session.send_section(name, data)?;
        }
        session.prepare()?;
        if let Some(hook) = writing.before_seal {
            hook();
        }
        if mode == CheckpointMode::Copy {
            session.resume_copied()?;
            return session.seal();
        }
        let bytes = session.seal()?;
        session.release()?;
        Ok(bytes)
    })();
    if result.is_err() {
        let _ = session.abort("the test's checkpoint failed");
    }
    Written { id, result }
}

pub fn copy_memory(from: &dyn GuestMemory, to: &dyn GuestMemory) {
    let mut page = vec![0; PAGE as usize];
    for range in from.ranges() {
        for gpa in (range.gpa..range.end().unwrap()).step_by(PAGE as usize) {
            from.read(gpa, &mut page).unwrap();
            to.write(gpa, &page).unwrap();
        }
    }
}

pub fn restore(host: &Host, path: &Path) -> Result<Vec<Section>, EngineError> {
    restore_with(host, path, &mut |_| {})
}

/// `at` is told how far it is.
pub fn restore_with(host: &Host, path: &Path, at: &mut dyn FnMut(&'static str)) -> Result<Vec<Section>, EngineError> {
    let mut session = DestinationSession::restore(host.destination(), path)?;
    let Incoming::Offer(_) = session.read_checkpoint(&mut |_, _| {})? else { panic!("no offer") };
    at("checked");
    let answered = session.answer_checkpoint(host.target(), vec![])?;
    if !answered.accepted {
        return Err(EngineError::Mismatch(answered.mismatches));
    }
    at("answered");
    session.receive(&mut |_| {})?;
    at("received");
    let sections = session.sections().to_vec();
    session.prepared()?;
    session.take_checkpoint()?;
    at("taken");
    session.resume()?;
    session.running()?;
    session.empty_checkpoint()?;
    Ok(sections)
}

/// Codes of the mismatches.
pub fn mismatch(result: Result<Vec<Section>, EngineError>) -> Vec<String> {
    match result {
        Err(EngineError::Mismatch(found)) => found.into_iter().map(|m: Mismatch| m.code).collect(),
        other => panic!("{other:?}"),
    }
}

/// Names in a folder.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The last record of a session.
pub fn record(host: &Host, session: Uuid, role: Role) -> &'static str {
    host.journal.records(session, role).unwrap().last().map_or("none", |r| r.name())
}

pub fn same_guest(a: &Host, b: &Host) {
    assert_eq!(differing(a.memory.as_ref(), b.memory.as_ref()), Vec::<u64>::new());
    for (x, y) in a.devices.iter().zip(&b.devices) {
        assert_eq!(x.1.lock().unwrap().registers, y.1.lock().unwrap().registers);
    }
}

/// Another process with the same fence.
pub fn sharing(host: &Host) -> Host {
    let devices: Vec<(&str, u64)> = host.devices.iter().map(|d| (d.0.as_str(), d.2)).collect();
    let ranges: Vec<(u64, u64)> = host.memory.ranges().iter().map(|r| (r.gpa, r.len)).collect();
    let mut other = Host::new(&devices, &ranges);
    other.journal = Arc::clone(&host.journal);
    other
}

/// What a migration leaves with `record_to`.
pub fn recording(folder: &Path) -> Vec<u8> {
    let (source, target) = (Host::new(&[("f", 3)], RANGES), Host::new(&[("f", 3)], RANGES));
    source.fill(1);
    let (a, b) = socket_pair();
    let path = folder.join("recorded");
    let log = Arc::new(MarkLog::new());
    let mut config = source.source(Uuid::new_v4(), &log, SECTION_NAMES);
    config.record_to = Some(path.clone());
    std::thread::scope(|scope| {
        scope.spawn(|| run_destination(target.destination(), target.target(), b).0.unwrap());
        run_source(config, a, &mut || {}, &mut || {}).result.unwrap();
    });
    fs::read(path).unwrap()
}
