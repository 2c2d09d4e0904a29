//! The log of DMA, whose calls mtty has, and which it never fills. So this shows that the kernel takes the calls, and not that a page
//! which was written is told.

use towline_core::channel::{ChannelErrorKind, DirtySink, DirtySource};
use towline_core::memory::MemoryRange;
use towline_linux::vfio::VfioDmaLog;

use super::mtty::Mtty;

#[derive(Default)]
struct Marks(Vec<(u64, u64)>);

impl DirtySink for Marks {
    fn mark(&mut self, gpa: u64, len: u64) {
        self.0.push((gpa, len));
    }

    fn merge_bitmap(&mut self, base: u64, page_size_bytes: u64, bitmap: &[u8]) {
        for n in (0..bitmap.len() as u64 * 8).filter(|n| bitmap[*n as usize / 8] >> (n % 8) & 1 == 1) {
            self.mark(base + n * page_size_bytes, page_size_bytes);
        }
    }
}

pub fn log(a: &Mtty) {
    let mut log = match VfioDmaLog::new(&a.device) {
        Ok(log) => log,
        // A kernel without iommufd has no bitmaps to report in; its mtty has the feature all the same.
        Err(error) => {
            println!("# {error}");
            assert_eq!(error.kind, ChannelErrorKind::Unsupported);
            assert!(!std::path::Path::new("/dev/iommu").exists());
            return;
        }
    };
    // More than the kernel takes, and one that takes several reports.
    let mut ranges: Vec<MemoryRange> = (0..300).map(|n| MemoryRange { gpa: n << 20, len: 4096 * (n + 1) }).collect();
    ranges.push(MemoryRange { gpa: 1 << 40, len: 20 << 30 });
    assert_eq!(log.start(&ranges, 4096), Ok(4096));
    assert_eq!(log.start(&ranges, 4096).unwrap_err().kind, ChannelErrorKind::State);
    for _ in 0..3 {
        let mut marks = Marks::default();
        log.harvest(&mut marks).unwrap();
        assert_eq!(marks.0, []);
    }
    log.stop().unwrap();
    log.stop().unwrap();
    for page_size in [4096, 65536, 2 << 20] {
        assert_eq!(log.start(&[MemoryRange { gpa: 5, len: 1 }], page_size), Ok(page_size));
        log.harvest(&mut Marks::default()).unwrap();
        log.stop().unwrap();
    }
}
