//! What needs no device.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use towline_core::memory::MemoryRange;

use super::*;
use crate::address_space::Backing;
use crate::memory::memfd;

const PAGE: u64 = 4096;

/// An address space that unmaps when it is told to.
#[derive(Debug, Default)]
struct Stubborn {
    refuses: AtomicBool,
    mapped: Mutex<Vec<MemoryRange>>,
}

impl AddressSpace for Stubborn {
    fn map(&self, gpa: u64, len: u64, _: Backing<'_>, _: bool) -> Result<(), ChannelError> {
        self.mapped.lock().unwrap().push(MemoryRange { gpa, len });
        Ok(())
    }

    fn unmap(&self, gpa: u64, len: u64) -> Result<u64, ChannelError> {
        if self.refuses.load(Ordering::Relaxed) && gpa == 0 {
            return Err(ChannelError::new(ChannelErrorKind::Device, "EIO"));
        }
        self.mapped.lock().unwrap().retain(|r| r.gpa != gpa);
        Ok(len)
    }

    fn usable(&self) -> Result<Vec<MemoryRange>, ChannelError> {
        Ok(vec![])
    }

    fn mapped(&self) -> Vec<MemoryRange> {
        self.mapped.lock().unwrap().clone()
    }
}

#[test]
fn what_could_not_be_unmapped_is_tried_again() {
    let memory = MappedMemory::new();
    for gpa in [0, 16 * PAGE] {
        memory.add_region(gpa, memfd("t", PAGE).unwrap().as_fd(), 0, PAGE).unwrap();
    }
    let space = Arc::new(Stubborn::default());
    let mut mapping = Some(GuestMapping::new(Arc::clone(&space) as Arc<dyn AddressSpace>, &memory).unwrap());
    space.refuses.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        assert!(unmap(&mut mapping).is_err());
        assert!(mapping.is_some(), "it is still mapped");
        assert_eq!(space.mapped(), [MemoryRange { gpa: 0, len: PAGE }]);
    }
    space.refuses.store(false, Ordering::Relaxed);
    assert_eq!(unmap(&mut mapping), Ok(()));
    assert!(mapping.is_none() && space.mapped().is_empty());
    assert_eq!(unmap(&mut mapping), Ok(()));
}

#[test]
fn only_a_kernel_that_does_not_know_tracks_nothing() {
    let said = |errno: Option<i32>| ChannelError { errno, ..ChannelError::new(ChannelErrorKind::Device, "x") };
    assert_eq!(where_known(Ok(7)), Ok(Some(7)));
    for errno in [Errno::OPNOTSUPP, Errno::NOENT, Errno::NOTTY] {
        assert_eq!(where_known::<()>(Err(said(Some(errno.raw_os_error())))), Ok(None));
    }
    for errno in [None, Some(Errno::NOMEM), Some(Errno::PERM), Some(Errno::NODEV), Some(Errno::INVAL), Some(Errno::IO)]
    {
        let error = said(errno.map(Errno::raw_os_error));
        assert_eq!(where_known::<()>(Err(error.clone())), Err(error));
    }
}
