//! What to do with a session after a crash or a broken link. The decision is a pure function of the durable records and of
//! what the peer answers.

use serde::{Deserialize, Serialize};

use uuid::Uuid;

use crate::dialogue::{AskOutcome, Message};
use crate::error::{EngineError, FenceError};
use crate::fence::{Fence, Record, Role, check_append};
use crate::link::Link;
use crate::wire::{Receiver, Sender};

/// What [`decide`] concludes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Source: it owns the functions and may run them.
    ResumeSource,
    /// Source: stopped and fenced until the destination answers, or is declared dead.
    InDoubt,
    /// Source: the destination owns the functions; what is left here may be torn down.
    Released,
    /// Destination: it owns the functions.
    RunDestination,
    /// Destination: it does not own them and never will by this session; a refusal has to be durable.
    Refuse,
}

/// The rules of the handoff.
///
/// `answer` is what the destination said when asked about the epoch; only a source in doubt needs it, and
/// [`AskOutcome::Unknown`] is no answer.
#[must_use]
pub fn decide(role: Role, records: &[Record], answer: Option<AskOutcome>) -> Verdict {
    match (role, records.last()) {
        (Role::Destination, Some(Record::Committed { .. })) => Verdict::RunDestination,
        (Role::Destination, _) => Verdict::Refuse,
        (Role::Source, Some(Record::Intent { .. })) => match answer {
            Some(AskOutcome::Committed) => Verdict::Released,
            Some(AskOutcome::Refused) => Verdict::ResumeSource,
            Some(AskOutcome::Unknown) | None => Verdict::InDoubt,
        },
        (Role::Source, Some(Record::Released)) => Verdict::Released,
        // Without a durable intent not one byte of COMMIT has left.
        (Role::Source, _) => Verdict::ResumeSource,
    }
}

/// Decides and makes the decision durable. A source that is in doubt stays so until `answer` tells.
///
/// # Errors
/// [`FenceError`]; nothing may be concluded then.
pub fn settle(fence: &dyn Fence, session: Uuid, role: Role, answer: Option<AskOutcome>) -> Result<Verdict, FenceError> {
    let records = fence.records(session, role)?;
    let verdict = decide(role, &records, answer);
    let epoch = crate::fence::epoch_of(&records);
    let record = match (verdict, epoch) {
        (Verdict::Released, _) => Record::Released,
        (Verdict::ResumeSource, _) => Record::Aborted { reason: "recovered".into() },
        (Verdict::Refuse, Some(epoch)) => Record::Refused { epoch, reason: "recovered without a commit".into() },
        (Verdict::InDoubt | Verdict::RunDestination, _) | (Verdict::Refuse, None) => return Ok(verdict),
    };
    // Already durable (released, aborted, refused), or never opened: there is nothing to add.
    if check_append(role, &records, &record).is_ok() {
        fence.append(session, role, record)?;
    }
    Ok(verdict)
}

/// A person takes the functions back from a destination that is dead for good. The only way out of doubt without an answer; two
/// owners are possible where the person is wrong.
///
/// # Errors
/// [`FenceError::Refused`] where the session is not in doubt.
pub fn declare_destination_dead(fence: &dyn Fence, session: Uuid, reason: &str) -> Result<(), FenceError> {
    fence.append(session, Role::Source, Record::DeclaredDead { reason: reason.into() })
}

/// A destination's answer about `epoch`. What is not committed is refused, durably, before this returns.
///
/// # Errors
/// [`FenceError`]: then nothing is answered but [`AskOutcome::Unknown`].
pub fn answer_ask(fence: &dyn Fence, session: Uuid, epoch: u64) -> Result<AskOutcome, FenceError> {
    let records = fence.records(session, Role::Destination)?;
    match records.last() {
        Some(Record::Committed { epoch: committed }) if *committed == epoch => return Ok(AskOutcome::Committed),
        // The session has another epoch here than there: a person has to look.
        Some(_) if crate::fence::epoch_of(&records) != Some(epoch) => return Ok(AskOutcome::Unknown),
        Some(Record::Refused { .. } | Record::Aborted { .. }) => return Ok(AskOutcome::Refused),
        _ => {}
    }
    let refusal = Record::Refused { epoch, reason: "asked before it was committed".into() };
    match fence.append(session, Role::Destination, refusal) {
        Ok(()) => Ok(AskOutcome::Refused),
        // The commit came in between: the fence compares and sets in one step, so that exactly one of both is there.
        Err(FenceError::Refused { .. }) => {
            let records = fence.records(session, Role::Destination)?;
            Ok(match records.last() {
                Some(Record::Committed { epoch: committed }) if *committed == epoch => AskOutcome::Committed,
                Some(Record::Refused { .. } | Record::Aborted { .. }) => AskOutcome::Refused,
                _ => AskOutcome::Unknown,
            })
        }
        Err(error) => Err(error),
    }
}

/// Asks the destination behind `link` what became of `epoch`. Whatever can't be answered is [`AskOutcome::Unknown`] only where
/// the destination says so itself; a link that fails is an error.
///
/// # Errors
/// [`EngineError::Link`], [`EngineError::Protocol`], [`EngineError::Stream`].
pub fn ask(link: &mut dyn Link, session: Uuid, epoch: u64, functions: Vec<String>) -> Result<AskOutcome, EngineError> {
    let mut sender = Sender::new(session, None)?;
    sender.message(link, &Message::Ask { session, epoch, functions })?;
    match Receiver::new(Some(session)).message(link, "waiting for the answer about an epoch")? {
        Message::AskAnswer { outcome } => Ok(outcome),
        other => Err(EngineError::Protocol {
            during: "waiting for the answer about an epoch",
            what: format!("it said {:?} instead", other.name()),
        }),
    }
}
