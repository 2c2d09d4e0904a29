//! Which guest pages were written: bitmaps that are marked and harvested at the same time, and the ledger that merges
//! every source of dirty pages and hands out runs to send.
//!
//! The rule that everything here serves: **a page that was marked is handed out at least once after its last mark**,
//! whatever the interleaving. A writer writes first and marks then, a sender takes the page first and reads it then;
//! so the last write is always sent.
//!
//! * [`DirtyBitmap`]: a bit a page with two levels of summary; marking and harvesting need no lock.
//! * [`PageMap`]: guest addresses to dense page numbers, over ranges with holes.
//! * [`Ledger`]: the merge of all sources over guest memory.
//! * [`MarkLog`]: the source for writes that the caller reports itself.

mod bitmap;
mod foreign;
mod ledger;
mod levels;
mod lock;
mod mark_log;
mod page_map;
mod sync;

pub use bitmap::DirtyBitmap;
pub use ledger::{FinalIncomplete, FinalPass, FinalReport, Ledger, PageRun};
pub use mark_log::{MarkLog, MarkSource};
pub(crate) use page_map::page_size_is_valid;
pub use page_map::{MAX_PAGES, PageMap, PageMapError, PageMapErrorKind};
