//! Sessions, transports, the page pipeline, the journal and the handoff: the data plane of a migration.
//!
//! The way of the data:
//! * device state: state channel → chunker (digest) → link → verifier → state channel
//! * memory: dirty sources → ledger → page sender → link → page receiver → guest memory
//!
//! Everything blocks the thread that calls it; a [`cancel::Cancel`] ends every wait. A migration is a
//! [`session::SourceSession`] on one side and a [`session::DestinationSession`] on the other, each driven step by step by
//! its caller. What decides who owns the functions is in [`fence`], [`journal`] and [`recover`].
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod cancel;
pub mod checkpoint;
pub mod dialogue;
pub mod error;
pub mod faultpoints;
pub mod fence;
pub mod journal;
pub mod link;
pub mod pacer;
pub mod recover;
pub mod session;
mod wire;
