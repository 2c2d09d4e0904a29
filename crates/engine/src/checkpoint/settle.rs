//! What became of a checkpoint whose process has died: the folder says.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use towline_core::stream::{Limits, STREAM_HEADER_BYTES, StreamHeader};
use uuid::Uuid;

use super::claim::settle_claim;
use super::place::{Place, file_error, is_name_of};
use super::read::OpenCheckpoint;
use crate::dialogue::AskOutcome;
use crate::error::{CheckpointProblem, EngineError};
use crate::fence::{Fence, Record, Role};
use crate::recover::{Verdict, decide, settle};

/// Settles a session that is one of a checkpoint, as [`crate::recover::settle`] does it for others; `None` where it is none. A source in
/// doubt asks the folder. What a dead process has left there is put in order: a file that never became a checkpoint is removed, one that was
/// claimed has its name again, or is marked as restored.
///
/// # Errors
/// [`EngineError::Fence`], [`EngineError::File`]; nothing may be concluded then.
pub fn recover(
    fence: &dyn Fence,
    session: Uuid,
    role: Role,
) -> Result<Option<(Verdict, Option<AskOutcome>)>, EngineError> {
    let records = fence.records(session, role)?;
    let Some(Record::Opened { file: Some(file), .. }) = records.first() else { return Ok(None) };
    let file = Path::new(file);
    if role == Role::Destination {
        let verdict = settle(fence, session, role, None)?;
        match settle_claim(fence, session, &fence.records(session, role)?, file) {
            // Somebody lives who holds it, and will do it.
            Err(EngineError::Checkpoint { problem: CheckpointProblem::Busy, .. }) => {}
            other => other?,
        }
        return Ok(Some((verdict, None)));
    }
    let place = Place::of(file)?;
    let answer = match decide(role, &records, None) {
        Verdict::InDoubt => Some(ask(&place, session)?),
        _ => None,
    };
    let verdict = settle(fence, session, role, answer)?;
    if verdict == Verdict::ResumeSource {
        sweep(&place, session)?;
    }
    Ok(Some((verdict, answer)))
}

/// Whether the file of `session` has become a checkpoint. What has not can never become one once this has answered so.
fn ask(place: &Place, session: Uuid) -> Result<AskOutcome, EngineError> {
    match OpenCheckpoint::open(&place.path()) {
        Ok(named) if session_of(&named.file)? == Some(session) => {
            if named.lock(true).is_err() {
                return Ok(AskOutcome::Unknown);
            }
            // Its rename may not have been durable.
            named.file.sync_all().map_err(file_error(&named.path))?;
            // Where a rename is a second name first, the temporary one may be left.
            let partial = place.partial(session);
            if is_name_of(&partial, &named.file).map_err(file_error(&partial))? {
                std::fs::remove_file(&partial).map_err(file_error(&partial))?;
            }
            place.sync()?;
            return Ok(AskOutcome::Committed);
        }
        Ok(_) | Err(EngineError::Checkpoint { .. }) => {}
        Err(error) => return Err(error),
    }
    let restored = place.restored(session).symlink_metadata().is_ok();
    if restored || !place.claims(Some(session))?.is_empty() {
        return Ok(AskOutcome::Committed);
    }
    // With its temporary name it never had another, and after this it never will.
    if sweep(place, session)? { Ok(AskOutcome::Refused) } else { Ok(AskOutcome::Unknown) }
}

/// Removes the file with the temporary name, durably, unless somebody writes it. Whether there was one.
fn sweep(place: &Place, session: Uuid) -> Result<bool, EngineError> {
    let path = place.partial(session);
    let open = match OpenCheckpoint::open(&path) {
        Err(EngineError::Checkpoint { problem: CheckpointProblem::Missing, .. }) => return Ok(false),
        other => other?,
    };
    if open.lock(true).is_err() || !is_name_of(&path, &open.file).map_err(file_error(&path))? {
        return Ok(false);
    }
    std::fs::remove_file(&path).map_err(file_error(&path))?;
    place.sync()?;
    Ok(true)
}

/// The session of a stream, as its header says.
fn session_of(mut file: &File) -> Result<Option<Uuid>, EngineError> {
    let mut raw = [0; STREAM_HEADER_BYTES];
    if file.read_exact(&mut raw).is_err() {
        return Ok(None);
    }
    Ok(StreamHeader::decode(&raw, &Limits::connection()).ok().map(|h| Uuid::from_bytes(h.session)))
}
