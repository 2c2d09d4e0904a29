//! Checkpoints: a migration stream in a file, with nobody at its other end yet.
//!
//! The file holds what a connection would carry from the source: header, Offer, Ready, memory, device state and sections with
//! their manifests, STREAM_END, and last of all Commit. Without that Commit it is no checkpoint. It is written under a temporary name
//! in its own folder, and gets its name once it is durable.
//!
//! ```text
//! move, at the source                         move, where it is restored
//!   opened      (fence)                         the whole file is read and checked
//!   stream      NAME.SESSION.partial, synced    everything is compared, then loaded
//!   intent      (fence)                         opened     (fence, under the next free attempt of the session)
//!   Commit      in the file, synced             claimed    NAME -> NAME.SESSION.TOKEN.claimed, folder synced
//!   named       -> NAME, folder synced          committed  (fence)
//!   released    (fence)                         restored   -> NAME.SESSION.restored, folder synced; emptied once they run
//! ```
//! The rename to NAME is what commits a `move`: before it the source owns the functions, after it the file does. A source that died
//! between its intent and its release is in doubt, and [`recover`] asks the folder: the name, or what became of it, says that the file owns
//! them; the temporary name says that it does not, and is removed before that is concluded. Where neither is there, somebody has
//! carried the file away, and a person has to look.
//!
//! A restore has to win twice. In its fence, where the attempts of one checkpoint are a chain of sessions ([`attempt_id`]), each of which
//! is refused, durably, before the next is opened, and of which one at most commits. And in the folder, where the claim is a rename that
//! one process can make, so that restores with different fences exclude each other as well. **A copy of the file that was carried
//! elsewhere is out of reach of both**, unless its restorer shares the fence.
//!
//! A `copy` has no owner to move: the source goes on, and the restored functions are others, with epochs of their own.

mod attempt;
mod claim;
mod place;
mod read;
mod settle;
mod verify;
mod write;

pub use attempt::{MAX_ATTEMPTS, attempt_id};
pub use settle::recover;
pub use verify::{Verified, verify};
pub use write::CheckpointFile;

pub(crate) use attempt::{History, open_attempt};
pub(crate) use claim::{Claim, find};
pub(crate) use read::OpenCheckpoint;
pub(crate) use verify::{peek, verify_open};

pub use crate::session::CheckpointMode;
