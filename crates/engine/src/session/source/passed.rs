//! Guest memory that is passed: the destination maps the files that it lies in.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use towline_core::memory::GuestMemory as _;
use towline_linux::memory::MappedMemory;

use super::{SourceSession, Step, unexpected};
use crate::dialogue::{MAX_PASSED_REGIONS, Message, PassedRegion};
use crate::error::EngineError;
use crate::link::MAX_DESCRIPTORS_PER_WRITE;
use crate::session::MemoryBy;

impl SourceSession {
    /// The memory whose files the destination gets, where [`MemoryBy::Passed`] was agreed. Before the offer. Its ranges must not change
    /// while the session lasts, and nobody of this process writes it once the functions have stopped and the caller's sections are sent.
    ///
    /// It stays the caller's: after the release both processes have it mapped, and this one has to let go of it.
    ///
    /// # Errors
    /// [`EngineError::Misuse`]; [`EngineError::Limit`] for more than [`MAX_PASSED_REGIONS`] regions.
    pub fn set_passed_memory(&mut self, memory: Arc<MappedMemory>) -> Result<(), EngineError> {
        self.expect("set_passed_memory", &[Step::New])?;
        self.needs("set_passed_memory", self.terms.memory == MemoryBy::Passed)?;
        let ranges = memory.ranges();
        if ranges.len() > MAX_PASSED_REGIONS {
            let (value, limit) = (ranges.len() as u64, MAX_PASSED_REGIONS as u64);
            return Err(EngineError::Limit { what: "number of memory regions that are passed", value, limit });
        }
        self.ranges = ranges;
        self.config.memory = memory.clone();
        self.passed = Some(memory);
        Ok(())
    }

    /// There is something to pass where that was agreed.
    pub(super) fn check_passed(&self) -> Result<(), EngineError> {
        if self.terms.memory == MemoryBy::Passed && self.passed.is_none() {
            return Err(EngineError::Config {
                what: "memory is to be passed, and the session was given none with files".into(),
            });
        }
        Ok(())
    }

    /// Passes every region and waits until the destination has them all.
    pub(super) fn pass_memory(&mut self) -> Result<(), EngineError> {
        self.check_ranges()?;
        let files = match &self.passed {
            Some(memory) => memory.files().map_err(|e| EngineError::Config { what: e.to_string() })?,
            None => Vec::new(),
        };
        for batch in files.chunks(MAX_DESCRIPTORS_PER_WRITE) {
            self.config.cancel.check()?;
            let regions = batch
                .iter()
                .map(|f| PassedRegion { gpa: f.gpa, len: f.len, fd_offset: f.fd_offset, read_only: !f.is_writable })
                .collect();
            let descriptors: Vec<BorrowedFd<'_>> = batch.iter().map(|f| f.fd.as_fd()).collect();
            self.sender.message_with(self.link.as_mut(), &Message::Memory { regions }, &descriptors)?;
        }
        self.config.points.hit("source:memory-pass")?;
        match self.hear("waiting until the destination has taken guest memory")? {
            Message::MemoryTaken => Ok(()),
            other => Err(unexpected("waiting until the destination has taken guest memory", &other)),
        }
    }
}
