//! Guest memory that is mapped into this process, out of file descriptors.
//!
//! A region is a range of guest-physical addresses behind which lies a piece of a file, mapped shared. The guest, its
//! devices and other processes write the same bytes at any time. Every access is therefore made of relaxed atomic words:
//! what is read may be torn between words, as it is for a real device, but it is never undefined and never outside of a region.

mod drain;
mod mapped;
mod mapping;
mod memfd;

pub use mapped::{Access, HeldMemory, MAX_REGIONS, MapError, MappedMemory, RegionFile, RegionOptions};
pub use memfd::memfd;
