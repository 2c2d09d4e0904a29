//! File descriptors that belong to the caller's sections.

use std::os::fd::OwnedFd;

use super::receive::Expected;
use super::{DestinationSession, Step};
use crate::dialogue::MAX_DESCRIPTORS;
use crate::error::EngineError;

/// One that has come.
pub(super) struct SectionDescriptor {
    section: String,
    name: String,
    fd: OwnedFd,
}

fn refuse(what: String) -> EngineError {
    EngineError::Protocol { during: "taking the descriptors of a section", what }
}

impl DestinationSession {
    /// How many may come while the stream does.
    pub(super) fn expect_descriptors(&mut self) {
        let offered = self.offer.as_ref().is_some_and(|o| o.terms.descriptors);
        self.link.expect_descriptors(if offered { MAX_DESCRIPTORS } else { 0 });
    }

    /// Takes what came with the message that names it. `sections` are those of the offer.
    pub(super) fn section_descriptors(
        &mut self,
        section: &str,
        names: Vec<String>,
        sections: &[Expected],
    ) -> Result<(), EngineError> {
        let fds = self.link.take_descriptors();
        if fds.len() != names.len() {
            return Err(refuse(format!("{} came, {} are named for section {section:?}", fds.len(), names.len())));
        }
        if !sections.iter().any(|s| s.is_to_come(section)) || self.descriptors.iter().any(|d| d.section == section) {
            return Err(refuse(format!("section {section:?} was not offered, has begun, or has them already")));
        }
        let together = self.descriptors.len().saturating_add(fds.len());
        if together > MAX_DESCRIPTORS {
            let (value, limit) = (together as u64, MAX_DESCRIPTORS as u64);
            return Err(EngineError::Limit { what: "descriptors of the caller's sections", value, limit });
        }
        let of_section = names.into_iter().zip(fds);
        let section = || section.to_owned();
        self.descriptors.extend(of_section.map(|(name, fd)| SectionDescriptor { section: section(), name, fd }));
        Ok(())
    }

    /// A descriptor that came with anything but the message that names it.
    pub(super) fn refuse_stray_descriptors(&self) -> Result<(), EngineError> {
        match self.link.descriptors_held() {
            0 => Ok(()),
            stray => Err(refuse(format!("{stray} came that no message names"))),
        }
    }

    /// Takes the descriptors that came with a section, by their names and in their order; they are the caller's then. What nobody has taken
    /// is closed with the session.
    ///
    /// # Errors
    /// [`EngineError::Misuse`] before everything is loaded, and once the session was given up.
    pub fn take_section_descriptors(&mut self, section: &str) -> Result<Vec<(String, OwnedFd)>, EngineError> {
        let after = [Step::Loaded, Step::Prepared, Step::Committed, Step::Resumed, Step::Running];
        self.expect("take_section_descriptors", &after)?;
        let (taken, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.descriptors).into_iter().partition(|d| d.section == section);
        self.descriptors = left;
        Ok(taken.into_iter().map(|d| (d.name, d.fd)).collect())
    }

    /// The names of the descriptors that came with a section and were not taken.
    #[must_use]
    pub fn section_descriptor_names(&self, section: &str) -> Vec<&str> {
        self.descriptors.iter().filter(|d| d.section == section).map(|d| d.name.as_str()).collect()
    }
}
