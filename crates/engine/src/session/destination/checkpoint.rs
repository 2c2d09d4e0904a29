//! A destination whose other end is a file: everything is checked before it is touched, and the commit is a claim.

use std::path::{Path, PathBuf};
use std::time::Instant;

use uuid::Uuid;

use super::{Answered, DestinationConfig, DestinationSession, DestinationTarget, Incoming, Step};
use crate::checkpoint::{CheckpointMode, Claim, History, OpenCheckpoint, Verified, find, open_attempt};
use crate::checkpoint::{peek, verify_open};
use crate::dialogue::{MAX_EPOCH, Message, Mismatch, Offer, epoch_step_limit};
use crate::error::EngineError;
use crate::fence::{Fence, Record, Role, not_ours};
use crate::link::NoLink;
use crate::session::Terms;

/// What a session has that restores a checkpoint.
pub(in crate::session) struct Restore {
    path: PathBuf,
    open: Option<OpenCheckpoint>,
    verified: Option<Verified>,
    /// Identities of the functions here; those of a copy are not those of the offer.
    ids: Vec<String>,
    /// The session by which the fence knows this restore.
    pub session: Option<Uuid>,
    claim: Option<Claim>,
}

impl Restore {
    fn mode(&self) -> Option<CheckpointMode> {
        self.verified.as_ref().map(|v| v.mode)
    }
}

impl DestinationSession {
    /// Makes a session that restores the checkpoint at `path`. Its steps: [`DestinationSession::read_checkpoint`], `answer`, `receive`,
    /// `prepared`, [`DestinationSession::take_checkpoint`], `resume`, `running`, [`DestinationSession::empty_checkpoint`].
    ///
    /// # Errors
    /// [`EngineError::Config`].
    pub fn restore(config: DestinationConfig, path: &Path) -> Result<Self, EngineError> {
        let mut session = Self::new(config, Box::new(NoLink(path.display().to_string())))?;
        session.restore = Some(Box::new(Restore {
            path: path.to_owned(),
            open: None,
            verified: None,
            ids: Vec::new(),
            session: None,
            claim: None,
        }));
        Ok(session)
    }

    /// Reads and checks the whole file, and holds it from here on: another restore of a `move` is refused meanwhile. `progress` is told
    /// the bytes so far and in all.
    ///
    /// # Errors
    /// As [`crate::checkpoint::verify`]; [`EngineError::Checkpoint`] also where it was restored already, or is held by somebody.
    pub fn read_checkpoint(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<Incoming, EngineError> {
        self.expect("read_checkpoint", &[Step::New])?;
        self.needs_restore("read_checkpoint")?;
        self.attempt(|s| {
            let start = Instant::now();
            let Some(restore) = s.restore.as_deref_mut() else { return Err(s.misuse("read_checkpoint")) };
            let open = find(&restore.path, s.config.fence.as_ref())?;
            // Restores of a copy do not disturb each other.
            let mode = peek(&open)?;
            open.lock(mode == CheckpointMode::Move)?;
            if mode == CheckpointMode::Move {
                open.check_single_name()?;
            }
            let verified = verify_open(&open, &s.config.cancel, progress)?;
            s.link = Box::new(open.link());
            s.link.arm(&s.config.cancel);
            s.terms = Terms::checkpoint(mode);
            restore.open = Some(open);
            restore.verified = Some(verified);
            s.timings.add("check", start);
            s.config.points.hit("restore:checked")?;
            s.step = Step::New;
            s.read_offer()
        })
    }

    /// What the file holds, once it was checked.
    #[must_use]
    pub fn verified(&self) -> Option<&Verified> {
        self.restore.as_ref().and_then(|r| r.verified.as_ref())
    }

    fn needs_restore(&self, call: &'static str) -> Result<(), EngineError> {
        if self.restore.is_some() { Ok(()) } else { Err(self.misuse(call)) }
    }

    /// Answers as [`DestinationSession::answer`], with all mismatches of either side, whatever the caller has found already.
    ///
    /// # Errors
    /// As [`DestinationSession::answer`].
    pub fn answer_checkpoint(
        &mut self,
        mut target: DestinationTarget,
        mut mismatches: Vec<Mismatch>,
    ) -> Result<Answered, EngineError> {
        self.expect("answer_checkpoint", &[Step::Offered])?;
        self.needs_restore("answer_checkpoint")?;
        self.attempt(|s| {
            let (Some(offer), Some(restore)) = (s.offer.as_ref(), s.restore.as_deref_mut()) else {
                return Err(s.misuse("answer_checkpoint"));
            };
            restore.ids = target.functions.iter().map(|f| f.id.clone()).collect();
            let fence = s.config.fence.as_ref();
            if restore.mode() == Some(CheckpointMode::Copy) {
                mismatches.extend(compare_copy(fence, offer, &restore.ids)?);
                // Their state is in the stream under the names of those that were copied.
                for (function, offered) in target.functions.iter_mut().zip(&offer.functions) {
                    function.id.clone_from(&offered.id);
                }
            } else {
                epoch_step_limit(offer.epoch, fence.highest_epoch(&restore.ids)?)?;
                mismatches.extend(History::of(fence, offer)?.mismatches(offer));
            }
            s.do_answer(Some(target), mismatches)
        })
    }

    /// Guest memory in which nothing is, before the first page comes: what the checkpoint does not hold is zeros.
    pub(super) fn empty_memory(&mut self) -> Result<(), EngineError> {
        const ZEROS_BYTES: u64 = 64 << 10;
        let Some(memory) = self.memory.clone() else { return Ok(()) };
        let zeros = vec![0; ZEROS_BYTES as usize];
        for part in memory.ranges().into_iter().flat_map(|range| memory.populated(range)) {
            let mut done = 0;
            while done < part.len {
                self.config.cancel.check()?;
                let n = (part.len - done).min(ZEROS_BYTES);
                memory
                    .write(part.gpa.saturating_add(done), zeros.get(..n as usize).unwrap_or_default())
                    .map_err(|source| EngineError::Memory { during: "emptying guest memory", source })?;
                done += n;
            }
        }
        Ok(())
    }

    /// Takes the functions over. A move: the file is claimed, and the commit made durable; from then on nobody else can restore it. When
    /// this returns `Ok`, this side owns the functions; nothing runs yet.
    ///
    /// # Errors
    /// What fails before the commit is durable is rolled back: the checkpoint is restorable again. As
    /// [`DestinationSession::wait_commit`].
    pub fn take_checkpoint(&mut self) -> Result<u64, EngineError> {
        self.expect("take_checkpoint", &[Step::Prepared])?;
        self.needs_restore("take_checkpoint")?;
        self.take(Self::claim_checkpoint)
    }

    fn claim_checkpoint(&mut self) -> Result<(), EngineError> {
        let Some(offer) = self.offer.clone() else { return Err(self.misuse("take_checkpoint")) };
        match self.receiver.message(self.link.as_mut(), "reading the commit of the checkpoint")? {
            Message::Commit { epoch } if epoch == offer.epoch => {}
            other => {
                return Err(EngineError::Protocol {
                    during: "reading the commit of the checkpoint",
                    what: format!("it says {:?} instead", other.name()),
                });
            }
        }
        let fence = std::sync::Arc::clone(&self.config.fence);
        let digests = &self.digests;
        let Some(restore) = self.restore.as_deref_mut() else { return Ok(()) };
        let Some(open) = &restore.open else { return Ok(()) };
        open.check_size()?;
        if restore.verified.as_ref().is_some_and(|v| v.digests != *digests) {
            return Err(EngineError::Protocol {
                during: "restoring the checkpoint",
                what: "the file is another one than was checked before".into(),
            });
        }
        if restore.mode() == Some(CheckpointMode::Copy) {
            let session = Uuid::new_v4();
            let epoch = fence.highest_epoch(&restore.ids)?.saturating_add(1).min(MAX_EPOCH);
            let functions = restore.ids.clone();
            let record = Record::Opened { session, role: Role::Destination, functions, epoch, file: None };
            fence.append(session, Role::Destination, record)?;
            (restore.session, self.epoch, self.opened) = (Some(session), epoch, true);
            return self.config.points.hit("destination:opened");
        }
        let claim = restore.claim.insert(Claim::new(open, offer.session)?);
        let (session, epoch) = open_attempt(fence.as_ref(), &offer, &restore.ids, &claim.name())?;
        (restore.session, self.epoch, self.opened) = (Some(session), epoch, true);
        self.config.points.hit("destination:opened")?;
        claim.make(open)?;
        self.config.points.hit("restore:claimed")?;
        release_source(fence.as_ref(), &offer)
    }

    /// Gives a file that was claimed its name back: nothing was committed.
    pub(super) fn unclaim(&mut self) {
        if let Some(claim) = self.restore.as_deref_mut().and_then(|r| r.claim.as_mut()) {
            // Where that fails, the claim is in the fence as one that was refused: whoever restores next settles it.
            let _ = claim.undo();
        }
    }

    /// The commit is durable: the file tells so.
    pub(super) fn consume_checkpoint(&mut self) {
        let Some(claim) = self.restore.as_deref_mut().and_then(|r| r.claim.as_mut()) else { return };
        if let Err(error) = claim.consume() {
            self.late_error.get_or_insert(error);
        }
        self.note_late("restore:consumed");
    }

    /// Gives the room of a `move` that was restored back; a file without contents stays, whose name says so. Once the functions run.
    ///
    /// # Errors
    /// [`EngineError::File`], [`EngineError::Checkpoint`]; nothing hangs by it.
    pub fn empty_checkpoint(&mut self) -> Result<(), EngineError> {
        self.expect("empty_checkpoint", &[Step::Running])?;
        self.needs_restore("empty_checkpoint")?;
        if self.resume_error.is_some() {
            return Ok(());
        }
        let Some(restore) = self.restore.as_deref() else { return Ok(()) };
        if let (Some(claim), Some(open)) = (&restore.claim, &restore.open) {
            claim.empty(open)?;
            self.config.points.hit("restore:emptied")?;
        }
        Ok(())
    }
}

/// A copy must not be a function twice, and its place not somebody else's.
fn compare_copy(fence: &dyn Fence, offer: &Offer, ids: &[String]) -> Result<Vec<Mismatch>, EngineError> {
    let mut found = Vec::new();
    for id in ids.iter().filter(|id| offer.functions.iter().any(|f| f.id == **id)) {
        found.push(Mismatch {
            code: "copy-identity".into(),
            message: format!("function {id} is the one that was copied: it would exist twice"),
            mend: "provision a function with another UUID for the copy".into(),
        });
    }
    if let Some(owner) = not_ours(fence, ids)? {
        found.push(Mismatch {
            code: "copy-identity".into(),
            message: owner.to_string(),
            mend: "provision a function with a UUID that was never used for the copy".into(),
        });
    }
    Ok(found)
}

/// Where this fence is the source's too, and the source has died between its intent and its release: the claim proves that it has none.
fn release_source(fence: &dyn Fence, offer: &Offer) -> Result<(), EngineError> {
    match fence.records(offer.session, Role::Source)?.last() {
        None | Some(Record::Released) => Ok(()),
        Some(Record::Intent { .. }) => Ok(fence.append(offer.session, Role::Source, Record::Released)?),
        Some(other) => Err(EngineError::Protocol {
            during: "restoring the checkpoint",
            what: format!("its source has kept the functions: its last record is {}", other.name()),
        }),
    }
}
