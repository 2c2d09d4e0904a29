//! Guest memory that is passed: its files are mapped here, and nothing of this process writes it before the commit.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{FileType, fstat};
use towline_core::memory::GuestMemory as _;
use towline_linux::memory::{Access, MapError, MappedMemory, RegionOptions};

use super::{DestinationSession, Step};
use crate::dialogue::{Message, Offer, OfferedRange, PassedRegion};
use crate::error::EngineError;
use crate::session::MemoryBy;

const DURING: &str = "taking over guest memory";

fn refuse(what: String) -> EngineError {
    EngineError::Protocol { during: DURING, what }
}

impl DestinationSession {
    /// Takes the session into the fence, then the files of guest memory off the link, and maps them. Where [`MemoryBy::Passed`] was agreed.
    ///
    /// The guest runs on at the source in this very memory, so what is returned refuses every write until the commit is durable
    /// ([`towline_core::memory::MemoryErrorKind::NotOurs`]); reading it is possible at any time. What the caller maps by itself out of the same files is
    /// not held up by anything: it must not write there either. After a rollback the memory stays shut for good, and is to be let go of.
    ///
    /// `allow_shrinkable` as in [`RegionOptions::allow_shrinkable`]: what the source has found is not believed, every file is looked at again.
    ///
    /// # Errors
    /// [`EngineError::Protocol`] for regions or descriptors that are not what was offered, and files that can't be taken: only regular files,
    /// which memfds and those of hugetlbfs are as well.
    pub fn receive_memory(&mut self, allow_shrinkable: bool) -> Result<Arc<MappedMemory>, EngineError> {
        self.expect("receive_memory", &[Step::Answered])?;
        if self.terms.memory != MemoryBy::Passed {
            return Err(self.misuse("receive_memory"));
        }
        self.attempt(|s| {
            let start = std::time::Instant::now();
            let Some(offer) = s.offer.clone() else { return Err(s.misuse("receive_memory")) };
            // Before the message that comes first: a read never goes beyond what was sent with descriptors, but may reach it.
            s.link.expect_descriptors(offer.memory.len());
            s.open(&offer)?;
            let memory = Arc::new(MappedMemory::shut());
            s.take_regions(&offer, &memory, allow_shrinkable)?;
            s.link.expect_descriptors(0);
            s.passed = Some(memory.clone());
            s.step = Step::Mapped;
            s.timings.add("map-memory", start);
            s.config.points.hit("destination:memory-pass")?;
            // The caller may take its time to build on it.
            s.lend_link();
            Ok(memory)
        })
    }

    fn take_regions(&mut self, offer: &Offer, memory: &MappedMemory, shrinkable: bool) -> Result<(), EngineError> {
        let mut offered = offer.memory.iter();
        while memory.ranges().len() < offer.memory.len() {
            let regions = match self.receiver.message_or_filler(self.link.as_mut(), DURING)? {
                None => {
                    self.refuse_stray_descriptors()?;
                    continue;
                }
                Some(Message::Memory { regions }) => regions,
                Some(other) => {
                    self.refuse_stray_descriptors()?;
                    self.aside(other, DURING)?;
                    continue;
                }
            };
            let fds = self.link.take_descriptors();
            if regions.is_empty() || fds.len() != regions.len() {
                return Err(refuse(format!("{} descriptors came for {} regions", fds.len(), regions.len())));
            }
            for (region, fd) in regions.iter().zip(&fds) {
                if offered.next() != Some(&OfferedRange { gpa: region.gpa, len: region.len }) {
                    return Err(refuse(format!(
                        "region {:#x} (+{:#x} bytes) is not the next of the offer",
                        region.gpa, region.len
                    )));
                }
                map(memory, region, fd.as_fd(), shrinkable)?;
            }
        }
        Ok(())
    }

    /// The caller has all that it needs of the passed memory: the source may stop the functions from here on.
    ///
    /// # Errors
    /// Those of the link; the session is over then.
    pub fn memory_taken(&mut self) -> Result<(), EngineError> {
        self.expect("memory_taken", &[Step::Mapped])?;
        self.attempt(|s| {
            s.say(&Message::MemoryTaken)?;
            s.step = Step::Taken;
            Ok(())
        })
    }
}

fn map(memory: &MappedMemory, region: &PassedRegion, fd: BorrowedFd<'_>, shrinkable: bool) -> Result<(), EngineError> {
    let stat = fstat(fd).map_err(|e| refuse(format!("fstat of a descriptor that came: {e}")))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if !kind.is_file() {
        return Err(refuse(format!(
            "the descriptor of region {:#x} is a {kind:?}, no file that memory lies in",
            region.gpa
        )));
    }
    let access = if region.read_only { Access::ReadOnly } else { Access::ReadWrite };
    let options = RegionOptions { access, allow_shrinkable: shrinkable };
    memory.add_region_with(region.gpa, fd, region.fd_offset, region.len, options).map_err(|e| {
        let mend = match &e {
            MapError::Shrinkable => "; the destination takes it only where it is told to (shrinkable)",
            _ => "",
        };
        refuse(format!("region {:#x} (+{:#x} bytes): {e}{mend}", region.gpa, region.len))
    })
}
