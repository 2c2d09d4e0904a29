//! The pages that this process wrote through a mapping of its own: userfaultfd write protection in asynchronous mode, and `PAGEMAP_SCAN`
//! (Documentation/admin-guide/mm/userfaultfd.rst and pagemap.rst, Linux 6.7).
//!
//! It is the mapping that is watched, not the memory: writes through another mapping, from another process or by a device are not seen.

mod abi;
mod source;
mod tracker;
mod watcher;

pub use source::{WatchHandle, WriteWatch};
pub use tracker::WatchedRange;
