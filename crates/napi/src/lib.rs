//! The Node.js binding: every class and function here only carries calls to the crates below. No logic lives in it.
#![allow(missing_docs)] // The documentation of this surface is `ts/native/binding.ts`, where its only caller is.

mod bridge;
mod channel;
mod engine_fault;
mod fault;
mod journal;
mod link;
mod memory;
mod numbers;
mod promise;
