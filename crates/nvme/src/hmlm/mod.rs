//! Host managed live migration as towline's engine sees it: a state channel and a dirty source for one controlled
//! controller, over the admin commands of its controlling one.
//!
//! ```text
//!   RUNNING --Suspend--> STOP --(cursor)--> STOP_COPY    read: Migration Receive, part by part
//!   RUNNING <--Resume--- STOP <--Set State, last part-- RESUMING    write: Migration Send, part by part
//! ```

mod channel;
mod incoming;
mod outgoing;
pub mod payload;
mod ranges;
mod source;
#[cfg(test)]
mod tests;

pub use channel::{FunctionReset, HmlmChannel, HmlmConfig};
pub use source::{TrackConfig, TrackReceiveSource};
