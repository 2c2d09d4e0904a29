//! Who owns the functions of a session: durable records, each accepted only where it does not contradict what is durable
//! already.
//!
//! An append is a compare-and-set: [`check_append`] compares, the fence sets. The epoch of a session exceeds every epoch
//! that either side has seen for any of its functions, so that an older session can never take them back.
//!
//! ```text
//! source:       opened -> intent -> released                      destination:  opened -> committed
//!                 |          |-> aborted   (peer refused)                         |-> refused
//!                 |          `-> declared-dead                                    `-> aborted
//!                 `-> aborted
//! ```

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::FenceError;

/// Which side of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Where the functions come from.
    Source,
    /// Where they go to.
    Destination,
}

impl Role {
    /// `source` or `destination`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// One durable fact of a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Record {
    /// The session exists, with its functions and its epoch.
    Opened {
        /// The session.
        session: Uuid,
        /// This side.
        role: Role,
        /// Identities of all its functions.
        functions: Vec<String>,
        /// The fencing token.
        epoch: u64,
        /// A checkpoint's path: at the source that of the file, at the destination the name by which it was claimed. Not written
        /// where the session is none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file: Option<String>,
    },
    /// Source: COMMIT counts as sent from here on.
    Intent {
        /// The epoch.
        epoch: u64,
    },
    /// Destination: it owns the functions.
    Committed {
        /// The epoch.
        epoch: u64,
    },
    /// Destination: this epoch can never commit.
    Refused {
        /// The epoch.
        epoch: u64,
        /// Why.
        reason: String,
    },
    /// Source: the destination has committed; the functions here are nobody's.
    Released,
    /// Source: it keeps the functions. Destination: this epoch can never commit.
    Aborted {
        /// Why.
        reason: String,
    },
    /// Source: a person declared that the destination is dead and stays dead, and took the functions back.
    DeclaredDead {
        /// Who, why.
        reason: String,
    },
}

impl Record {
    /// The record's name, for errors.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Opened { .. } => "opened",
            Self::Intent { .. } => "intent",
            Self::Committed { .. } => "committed",
            Self::Refused { .. } => "refused",
            Self::Released => "released",
            Self::Aborted { .. } => "aborted",
            Self::DeclaredDead { .. } => "declared-dead",
        }
    }
}

/// Durable ownership. The default is [`crate::journal::Journal`]; a lease in an outside store implements the same.
pub trait Fence: Send + Sync {
    /// The highest epoch seen for any of `functions`, 0 where there is none.
    ///
    /// # Errors
    /// [`FenceError`] where that can't be told.
    fn highest_epoch(&self, functions: &[String]) -> Result<u64, FenceError>;

    /// Makes `record` durable if [`check_append`] accepts it; for [`Record::Opened`] the epoch must also exceed
    /// [`Fence::highest_epoch`] of its functions. Comparing and setting are one step.
    ///
    /// # Errors
    /// [`FenceError::Refused`] where the comparison fails; nothing was written then. After any other error the record may or
    /// may not be durable.
    fn append(&self, session: Uuid, role: Role, record: Record) -> Result<(), FenceError>;

    /// All records of one side of a session, in order; none where it is unknown.
    ///
    /// # Errors
    /// [`FenceError`] where they can't be read.
    fn records(&self, session: Uuid, role: Role) -> Result<Vec<Record>, FenceError>;

    /// All sessions with the side taken in each.
    ///
    /// # Errors
    /// [`FenceError`] where they can't be listed.
    fn sessions(&self) -> Result<Vec<(Uuid, Role)>, FenceError>;
}

/// The rules: whether `next` may follow `records`. Pure, so that every fence uses the same.
///
/// # Errors
/// Why not.
pub fn check_append(role: Role, records: &[Record], next: &Record) -> Result<(), &'static str> {
    if matches!(next, Record::Opened { role: r, .. } if *r != role) {
        return Err("it was opened for the other role");
    }
    let Some(Record::Opened { epoch: opened, .. }) = records.first() else {
        return match next {
            Record::Opened { .. } if records.is_empty() => Ok(()),
            // A destination asked about a session that it never heard of refuses it, for good.
            Record::Refused { .. } if role == Role::Destination && records.is_empty() => Ok(()),
            _ if records.is_empty() => Err("the session was never opened"),
            _ => Err("the session was refused before it was opened"),
        };
    };
    let last = records.last();
    match (role, last, next) {
        (_, _, Record::Opened { .. }) => Err("the session is open already"),
        (_, _, Record::Intent { epoch } | Record::Committed { epoch } | Record::Refused { epoch, .. })
            if epoch != opened =>
        {
            Err("it carries another epoch than the session")
        }
        (Role::Source, Some(Record::Opened { .. }), Record::Intent { .. } | Record::Aborted { .. })
        | (
            Role::Source,
            Some(Record::Intent { .. }),
            Record::Released | Record::Aborted { .. } | Record::DeclaredDead { .. },
        )
        | (
            Role::Destination,
            Some(Record::Opened { .. }),
            Record::Committed { .. } | Record::Refused { .. } | Record::Aborted { .. },
        ) => Ok(()),
        (Role::Destination, Some(Record::Committed { .. }), _) => Err("the epoch is committed"),
        (Role::Destination, Some(Record::Refused { .. } | Record::Aborted { .. }), _) => Err("the epoch is refused"),
        (Role::Source, Some(Record::Released), _) => Err("the functions are released"),
        (Role::Source, Some(Record::Aborted { .. } | Record::DeclaredDead { .. }), _) => Err("the session is over"),
        (Role::Source, Some(Record::Opened { .. }), _) => Err("there was no intent"),
        _ => Err("the record does not belong to this role"),
    }
}

/// Why functions are not this side's to offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOurs {
    /// This session left one of them in doubt here, as its source.
    InDoubt(Uuid),
    /// This session has released one of them: its destination owns it, and nothing has brought it back since.
    Released(Uuid),
}

impl std::fmt::Display for NotOurs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InDoubt(session) => {
                write!(f, "session {session} is in doubt about the same functions; recover it first")
            }
            Self::Released(session) => {
                write!(f, "a function is owned by the destination of session {session}, which has released it here")
            }
        }
    }
}

/// Whether one of `functions` is not this side's: left in doubt, or released and not back since. Until that is settled they must
/// neither run here nor be offered to anybody. Of every function the session with the highest epoch counts, of those that say
/// something about its owner: a destination that refused, and a source that aborted, leave it as it was.
///
/// # Errors
/// [`FenceError`] where the sessions can't be listed, and [`FenceError::Damaged`] where the damaged records of a source may be about
/// one of the functions. Of a session that takes no more records (poisoned) nothing is concluded.
pub fn not_ours(fence: &dyn Fence, functions: &[String]) -> Result<Option<NotOurs>, FenceError> {
    let mut last: Vec<(u64, Option<NotOurs>)> = vec![(0, None); functions.len()];
    for (session, role) in fence.sessions()? {
        let records = match fence.records(session, role) {
            Err(FenceError::Poisoned { .. }) => continue,
            Err(FenceError::Damaged { functions: named, path, record, what }) => {
                // A destination's at worst lacks the commit that brought a function back.
                let concerns = named.is_empty() || named.iter().any(|f| functions.contains(f));
                if role == Role::Source && concerns {
                    return Err(FenceError::Damaged { functions: named, path, record, what });
                }
                continue;
            }
            other => other?,
        };
        let owner = match (role, records.last()) {
            (Role::Source, Some(Record::Intent { .. })) => Some(NotOurs::InDoubt(session)),
            (Role::Source, Some(Record::Released)) => Some(NotOurs::Released(session)),
            (Role::Source, Some(Record::DeclaredDead { .. })) | (Role::Destination, Some(Record::Committed { .. })) => {
                None
            }
            _ => continue,
        };
        let Some(Record::Opened { functions: opened, epoch, .. }) = records.first() else { continue };
        for (function, known) in functions.iter().zip(&mut last) {
            if *epoch >= known.0 && opened.contains(function) {
                *known = (*epoch, owner);
            }
        }
    }
    Ok(last.into_iter().find_map(|(_, owner)| owner))
}

/// The epoch of a session as its records tell it.
#[must_use]
pub fn epoch_of(records: &[Record]) -> Option<u64> {
    records.iter().find_map(|r| match r {
        Record::Opened { epoch, .. } | Record::Refused { epoch, .. } => Some(*epoch),
        _ => None,
    })
}
