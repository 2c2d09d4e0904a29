//! The claim: a rename that one process can make, by which a checkpoint has at most one restorer.

use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::attempt::refuse;
use super::place::{Place, file_error, is_name_of, problem, rename_new};
use super::read::OpenCheckpoint;
use crate::error::{CheckpointProblem, EngineError};
use crate::fence::{Fence, Record, Role};

/// A claim that is going to be made, or was.
pub(crate) struct Claim {
    place: Place,
    session: Uuid,
    name: PathBuf,
    made: bool,
}

impl Claim {
    /// With a name that nobody else has.
    pub fn new(checkpoint: &OpenCheckpoint, session: Uuid) -> Result<Self, EngineError> {
        let place = Place::of(&checkpoint.path)?;
        let name = place.claimed(session, Uuid::new_v4());
        Ok(Self { place, session, name, made: false })
    }

    /// As the fence records it.
    pub fn name(&self) -> String {
        self.name.display().to_string()
    }

    /// Claims the file, durably. It has to be the one that was checked.
    pub fn make(&mut self, checkpoint: &OpenCheckpoint) -> Result<(), EngineError> {
        checkpoint.check_single_name()?;
        checkpoint.check_size()?;
        let path = self.place.path();
        rename_new(&path, &self.name).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => problem(&path, CheckpointProblem::Changed),
            _ => file_error(&path)(error),
        })?;
        self.made = true;
        if !is_name_of(&self.name, &checkpoint.file).map_err(file_error(&self.name))? {
            self.undo()?;
            return Err(problem(&path, CheckpointProblem::Changed));
        }
        self.place.sync()
    }

    /// Gives the file its name back.
    pub fn undo(&mut self) -> Result<(), EngineError> {
        if !std::mem::take(&mut self.made) {
            return Ok(());
        }
        let path = self.place.path();
        rename_new(&self.name, &path).map_err(file_error(&path))?;
        self.place.sync()
    }

    /// Marks the file as restored: the commit is durable.
    pub fn consume(&mut self) -> Result<(), EngineError> {
        self.made = false;
        mark_restored(&self.place, &self.name, self.session)
    }

    /// Empties what is left of the file; its name goes on telling that it was restored.
    pub fn empty(&self, checkpoint: &OpenCheckpoint) -> Result<(), EngineError> {
        let restored = self.place.restored(self.session);
        if !is_name_of(&restored, &checkpoint.file).map_err(file_error(&restored))? {
            return Err(problem(&restored, CheckpointProblem::Changed));
        }
        let file = std::fs::OpenOptions::new().write(true).open(&restored).map_err(file_error(&restored))?;
        file.set_len(0).map_err(file_error(&restored))
    }
}

fn mark_restored(place: &Place, claim: &Path, session: Uuid) -> Result<(), EngineError> {
    std::fs::rename(claim, place.restored(session)).map_err(file_error(claim))?;
    place.sync()
}

/// Opens the checkpoint at `path`. Where there is none, but a claim of it that a dead restore has left, that is settled first, by `fence`:
/// a claim that is in no record of it is somebody else's.
pub(crate) fn find(path: &Path, fence: &dyn Fence) -> Result<OpenCheckpoint, EngineError> {
    let place = Place::of(path)?;
    let here = place.path();
    match OpenCheckpoint::open(&here) {
        Err(EngineError::Checkpoint { problem: CheckpointProblem::Missing, .. }) => {}
        other => return other,
    }
    let consumed = |why: &str| problem(&here, CheckpointProblem::Consumed(why.to_owned()));
    for (_, claim) in place.claims(None)? {
        let Some((session, records)) = attempt_of(fence, &claim)? else {
            return Err(consumed(&format!(
                "it is claimed by a restore that this fence does not know, as {}; recover with the journal of that restore",
                claim.display()
            )));
        };
        settle_claim(fence, session, &records, &claim)?;
    }
    match OpenCheckpoint::open(&here) {
        Err(EngineError::Checkpoint { problem: CheckpointProblem::Missing, .. })
            if place.restored_session()?.is_some() =>
        {
            Err(consumed("it was restored already, and is restorable once"))
        }
        other => other,
    }
}

/// The attempt that has made `claim`, as the fence has it.
fn attempt_of(fence: &dyn Fence, claim: &Path) -> Result<Option<(Uuid, Vec<Record>)>, EngineError> {
    for (session, role) in fence.sessions()? {
        if role != Role::Destination {
            continue;
        }
        // One that is damaged says nothing, and then the claim is nobody's here.
        let Ok(records) = fence.records(session, role) else { continue };
        if let Some(Record::Opened { file: Some(file), .. }) = records.first()
            && Path::new(file) == claim
        {
            return Ok(Some((session, records)));
        }
    }
    Ok(None)
}

/// Ends what a dead attempt has left: the file is restored where it has committed, and has its name again where it never can.
pub(super) fn settle_claim(
    fence: &dyn Fence,
    attempt: Uuid,
    records: &[Record],
    claim: &Path,
) -> Result<(), EngineError> {
    let Some(place) = Place::of_claim(claim) else { return Ok(()) };
    let open = match OpenCheckpoint::open(claim) {
        Err(EngineError::Checkpoint { problem: CheckpointProblem::Missing, .. }) => return Ok(()),
        other => other?,
    };
    // Whoever holds it lives.
    open.lock(true)?;
    let committed = match records.last() {
        Some(Record::Committed { .. }) => true,
        Some(Record::Opened { .. }) => match refuse(fence, attempt, records) {
            Ok(()) => false,
            Err(EngineError::Fence(crate::error::FenceError::Refused { .. })) => true,
            Err(error) => return Err(error),
        },
        _ => false,
    };
    if committed {
        let session = place.claims(None)?.into_iter().find(|(_, path)| path == claim).map(|(session, _)| session);
        return mark_restored(&place, claim, session.unwrap_or(attempt));
    }
    rename_new(claim, &place.path()).map_err(file_error(claim))?;
    place.sync()
}
