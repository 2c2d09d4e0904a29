//! Who restores: the attempts at one checkpoint in one fence, of which one at most commits.

use uuid::Uuid;

use crate::dialogue::{Mismatch, Offer};
use crate::error::{EngineError, FenceError};
use crate::fence::{Fence, Record, Role, epoch_of};

/// How often one checkpoint can be tried in one fence.
pub const MAX_ATTEMPTS: u32 = 1 << 16;

/// The session of an attempt at the checkpoint of `session`. The first one is that of the checkpoint itself.
#[must_use]
pub fn attempt_id(session: Uuid, attempt: u32) -> Uuid {
    Uuid::from_u128(session.as_u128() ^ u128::from(attempt))
}

fn is_attempt(session: Uuid, of: Uuid) -> bool {
    (session.as_u128() ^ of.as_u128()) < u128::from(MAX_ATTEMPTS)
}

/// What a fence knows about a `move` before anything is done for it.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// An attempt that has committed.
    consumed: bool,
    /// The highest epoch of any of the functions by another session.
    seen: u64,
    /// The last record of the source, where this fence is also the source's.
    source: Option<Record>,
}

impl History {
    pub fn of(fence: &dyn Fence, offer: &Offer) -> Result<Self, EngineError> {
        let mut history = Self::default();
        let concerns = |named: &[String]| named.iter().any(|id| offer.functions.iter().any(|f| f.id == *id));
        for (session, role) in fence.sessions()? {
            let records = match fence.records(session, role) {
                // What can't be read may be that it was restored already.
                Err(FenceError::Damaged { functions, .. }) if !functions.is_empty() && !concerns(&functions) => {
                    continue;
                }
                other => other?,
            };
            match role {
                Role::Destination if is_attempt(session, offer.session) => {
                    history.consumed |= matches!(records.last(), Some(Record::Committed { .. }));
                }
                Role::Source if session == offer.session => history.source = records.last().cloned(),
                _ => {
                    if let Some(Record::Opened { functions, epoch, .. }) = records.first()
                        && concerns(functions)
                    {
                        history.seen = history.seen.max(*epoch);
                    }
                }
            }
        }
        Ok(history)
    }

    /// Why it must not be restored.
    pub fn mismatches(&self, offer: &Offer) -> Vec<Mismatch> {
        let mut found = Vec::new();
        let mut add = |code: &str, message: String, mend: &str| {
            found.push(Mismatch { code: code.into(), message, mend: mend.into() });
        };
        if self.consumed {
            let message = format!("checkpoint {} was restored already, and is restorable once", offer.session);
            add("checkpoint-consumed", message, "take a checkpoint of what runs now, or use copies");
        }
        if self.seen >= offer.epoch {
            let message = format!(
                "the checkpoint has epoch {}, and its functions were seen here with epoch {} since: somebody has restored it elsewhere",
                offer.epoch, self.seen
            );
            add("checkpoint-stale", message, "use a newer checkpoint of these functions");
        }
        if let Some(record @ (Record::Opened { .. } | Record::Aborted { .. } | Record::DeclaredDead { .. })) =
            &self.source
        {
            let message =
                format!("the source has kept its functions: its last record of this session is {}", record.name());
            add("checkpoint-withdrawn", message, "remove this file: it owns nothing");
        }
        found
    }
}

/// Takes the next attempt at the checkpoint of `offer` into the fence, with a name for its claim. Every attempt before it has a durable
/// refusal then, so that only one can ever commit.
pub(crate) fn open_attempt(
    fence: &dyn Fence,
    offer: &Offer,
    ids: &[String],
    claim: &str,
) -> Result<(Uuid, u64), EngineError> {
    for attempt in 0..MAX_ATTEMPTS {
        let session = attempt_id(offer.session, attempt);
        let records = fence.records(session, Role::Destination)?;
        match records.last() {
            None => {
                let epoch = fence.highest_epoch(ids)?.max(offer.epoch).saturating_add(1);
                let (functions, file) = (ids.to_vec(), Some(claim.to_owned()));
                let record = Record::Opened { session, role: Role::Destination, functions, epoch, file };
                fence.append(session, Role::Destination, record)?;
                return Ok((session, epoch));
            }
            Some(Record::Committed { .. }) => return Err(consumed(session)),
            // Whoever made it is dead, or loses here: its commit is refused from now on.
            Some(Record::Opened { .. }) => refuse(fence, session, &records)?,
            Some(_) => {}
        }
    }
    Err(EngineError::Limit {
        what: "attempts at one checkpoint",
        value: u64::from(MAX_ATTEMPTS),
        limit: u64::from(MAX_ATTEMPTS),
    })
}

fn consumed(session: Uuid) -> EngineError {
    FenceError::Refused { session, refused: "opened", why: "the checkpoint was restored already".into() }.into()
}

/// Makes durable that an attempt never commits.
pub(super) fn refuse(fence: &dyn Fence, session: Uuid, records: &[Record]) -> Result<(), EngineError> {
    let epoch = epoch_of(records).unwrap_or(0);
    let refusal = Record::Refused { epoch, reason: "another attempt follows".into() };
    match fence.append(session, Role::Destination, refusal) {
        Ok(()) => Ok(()),
        // It has ended in between, one way or the other.
        Err(error @ FenceError::Refused { .. }) => match fence.records(session, Role::Destination)?.last() {
            Some(Record::Committed { .. }) => Err(consumed(session)),
            Some(Record::Refused { .. } | Record::Aborted { .. }) => Ok(()),
            _ => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}
