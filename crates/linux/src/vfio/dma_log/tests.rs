//! The log over a device with limits of its own, which keeps what it "wrote" and refuses on demand.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

use super::*;

const PAGE: u64 = 4096;
const MOST_PAGES: u64 = MOST_WORDS as u64 * 64;

#[derive(Debug)]
struct Device {
    most_ranges: usize,
    longest: u64,
    /// What it answers beyond its limits.
    refusal: Errno,
    /// Its own page size; that asked for, if larger.
    page: u64,
    ranges: Vec<MemoryRange>,
    /// Bytes that it wrote, each at some address.
    wrote: BTreeSet<u64>,
    starts: Vec<usize>,
    stops: usize,
    reports: usize,
    /// Fails the n-th report from now on.
    fail_report: Option<usize>,
    fail_stop: Option<Errno>,
    /// Answers any page size.
    odd_page: Option<u64>,
    /// Sets bits behind the end of what was asked.
    sloppy: bool,
}

#[derive(Clone)]
struct Fake(Arc<Mutex<Device>>);

impl Fake {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Device {
            most_ranges: 256,
            longest: u64::MAX,
            refusal: Errno::TOOBIG,
            page: PAGE,
            ranges: vec![],
            wrote: BTreeSet::new(),
            starts: vec![],
            stops: 0,
            reports: 0,
            fail_report: None,
            fail_stop: None,
            odd_page: None,
            sloppy: false,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Device> {
        self.0.lock().unwrap()
    }

    fn log(&self) -> VfioDmaLog {
        VfioDmaLog::over(Box::new(self.clone()), "fake")
    }
}

impl LogPort for Fake {
    fn start(&self, page_size: u64, ranges: &[MemoryRange]) -> Result<u64, Errno> {
        let mut d = self.lock();
        d.starts.push(ranges.len());
        // The rules of `vfio_ioctl_device_feature_logging_start`.
        assert!(!ranges.is_empty());
        for (a, b) in ranges.iter().zip(ranges.iter().skip(1)) {
            assert!(a.gpa + a.len <= b.gpa, "ranges overlap: {a:?} {b:?}");
        }
        if ranges.len() > 256 {
            return Err(Errno::TOOBIG);
        }
        if !page_size.is_power_of_two()
            || ranges.iter().any(|r| r.gpa % page_size != 0 || r.len % page_size != 0 || r.len == 0)
        {
            return Err(Errno::INVAL);
        }
        if ranges.len() > d.most_ranges || ranges.iter().any(|r| r.len > d.longest) {
            return Err(d.refusal);
        }
        d.ranges = ranges.to_vec();
        Ok(d.odd_page.unwrap_or(d.page.max(page_size)))
    }

    fn report(&self, range: MemoryRange, page_size: u64, bitmap: &mut [u64]) -> Result<(), Errno> {
        let mut d = self.lock();
        d.reports += 1;
        if let Some(n) = &mut d.fail_report {
            if *n == 0 {
                return Err(Errno::IO);
            }
            *n -= 1;
        }
        assert!(range.gpa.is_multiple_of(page_size) && range.len.is_multiple_of(page_size));
        assert!(d.ranges.iter().any(|r| r.gpa <= range.gpa && range.gpa + range.len <= r.gpa + r.len), "{range:?}");
        assert!(bitmap.len() as u64 * 64 >= range.len / page_size);
        let here: Vec<u64> = d.wrote.range(range.gpa..range.gpa + range.len).copied().collect();
        for address in here {
            d.wrote.remove(&address);
            let n = (address - range.gpa) / page_size;
            bitmap[n as usize / 64] |= 1 << (n % 64);
        }
        if d.sloppy {
            *bitmap.last_mut().unwrap() |= 1 << 63;
        }
        Ok(())
    }

    fn stop(&self) -> Result<(), Errno> {
        let mut d = self.lock();
        d.stops += 1;
        d.fail_stop.map_or(Ok(()), Err)
    }
}

/// Pages of 4 KiB.
#[derive(Default)]
struct Pages(BTreeSet<u64>);

impl DirtySink for Pages {
    fn mark(&mut self, gpa: u64, len: u64) {
        self.0.extend(gpa / PAGE..(gpa + len).div_ceil(PAGE));
    }

    fn merge_bitmap(&mut self, base: u64, page_size_bytes: u64, bitmap: &[u8]) {
        for n in (0..bitmap.len() as u64 * 8).filter(|n| bitmap[*n as usize / 8] >> (n % 8) & 1 == 1) {
            self.mark(base + n * page_size_bytes, page_size_bytes);
        }
    }
}

fn harvest(log: &mut VfioDmaLog) -> BTreeSet<u64> {
    let mut pages = Pages::default();
    log.harvest(&mut pages).unwrap();
    pages.0
}

fn ranges(count: u64, len: u64) -> Vec<MemoryRange> {
    // Ever larger gaps, so that it shows which are closed.
    (0..count).map(|n| MemoryRange { gpa: n * 64 * PAGE + n * n * PAGE, len }).collect()
}

#[test]
fn every_page_written_is_told_once() {
    let fake = Fake::new();
    let mut log = fake.log();
    let memory = [MemoryRange { gpa: 0, len: 100 * PAGE }, MemoryRange { gpa: 1 << 32, len: 1000 * PAGE }];
    assert_eq!(log.start(&memory, PAGE), Ok(PAGE));
    assert!(harvest(&mut log).is_empty());
    fake.lock().wrote.extend([0, 99 * PAGE + 7, (1 << 32) + 63 * PAGE, (1 << 32) + 64 * PAGE, (1 << 32) + 999 * PAGE]);
    let base = (1 << 32) / PAGE;
    assert_eq!(harvest(&mut log), BTreeSet::from([0, 99, base + 63, base + 64, base + 999]));
    assert!(harvest(&mut log).is_empty());
    log.stop().unwrap();
    log.stop().unwrap();
    assert_eq!(fake.lock().stops, 1);
    assert_eq!(log.harvest(&mut Pages::default()).unwrap_err().kind, ChannelErrorKind::State);
}

#[test]
fn long_ranges_are_reported_in_parts() {
    let fake = Fake::new();
    let mut log = fake.log();
    let memory = [MemoryRange { gpa: PAGE, len: 2 * MOST_PAGES * PAGE + 3 * PAGE }];
    log.start(&memory, PAGE).unwrap();
    let wrote = [1, MOST_PAGES, MOST_PAGES + 1, 2 * MOST_PAGES, 2 * MOST_PAGES + 1, 2 * MOST_PAGES + 3];
    fake.lock().wrote.extend(wrote.map(|page| page * PAGE));
    assert_eq!(harvest(&mut log), BTreeSet::from(wrote));
    assert_eq!(fake.lock().reports, 3);
}

/// Whether the mapping that has this address is locked.
fn is_locked(address: u64) -> bool {
    let mut here = false;
    for line in std::fs::read_to_string("/proc/thread-self/smaps").unwrap().lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((Ok(start), Ok(end))) =
            first.split_once('-').map(|(a, b)| (u64::from_str_radix(a, 16), u64::from_str_radix(b, 16)))
        {
            here = (start..end).contains(&address);
        } else if here && first == "VmFlags:" {
            return words.any(|flag| flag == "lo");
        }
    }
    panic!("{address:#x} is in no mapping");
}

#[test]
fn the_kernel_gets_memory_that_it_can_pin() {
    struct Pinning;
    impl LogPort for Pinning {
        fn start(&self, page_size: u64, _: &[MemoryRange]) -> Result<u64, Errno> {
            Ok(page_size)
        }
        fn report(&self, _: MemoryRange, _: u64, bitmap: &mut [u64]) -> Result<(), Errno> {
            let range = bitmap.as_ptr_range();
            assert!(is_locked(range.start.addr() as u64) && is_locked(range.end.addr() as u64 - 1));
            bitmap[0] |= 1;
            Ok(())
        }
        fn stop(&self) -> Result<(), Errno> {
            Ok(())
        }
    }
    let other = vec![0u64; 1 << 15];
    assert!(!is_locked(other.as_ptr().addr() as u64), "all memory of this process is locked");
    let mut log = VfioDmaLog::over(Box::new(Pinning), "fake");
    log.start(&[MemoryRange { gpa: 0, len: (MOST_PAGES + 1) * PAGE }], PAGE).unwrap();
    for _ in 0..2 {
        assert_eq!(harvest(&mut log), BTreeSet::from([0, MOST_PAGES]));
    }
}

#[test]
fn what_is_not_whole_pages_is_made_whole() {
    let fake = Fake::new();
    let mut log = fake.log();
    let memory = [
        MemoryRange { gpa: PAGE + 1, len: 1 },
        MemoryRange { gpa: 2 * PAGE - 1, len: 2 },
        MemoryRange { gpa: 9 * PAGE, len: 0 },
    ];
    log.start(&memory, PAGE).unwrap();
    assert_eq!(fake.lock().ranges, [MemoryRange { gpa: PAGE, len: 2 * PAGE }]);
    fake.lock().sloppy = true;
    assert!(harvest(&mut log).is_empty(), "bits behind the end are nobody's");
}

#[test]
fn more_ranges_than_the_kernel_takes_are_merged() {
    let fake = Fake::new();
    let mut log = fake.log();
    let memory = ranges(1000, PAGE);
    log.start(&memory, PAGE).unwrap();
    let d = fake.lock();
    assert_eq!(d.starts, [256]);
    // All of memory is covered, and the largest gaps are left out.
    for r in &memory {
        assert!(d.ranges.iter().any(|c| c.gpa <= r.gpa && r.gpa + r.len <= c.gpa + c.len), "{r:?}");
    }
    assert_eq!(d.ranges.iter().filter(|r| r.len == PAGE).count(), 255);
}

#[test]
fn a_device_that_takes_fewer_ranges_gets_fewer() {
    for (most, refusal) in [(100, Errno::TOOBIG), (8, Errno::NOSPC), (1, Errno::OPNOTSUPP), (3, Errno::INVAL)] {
        let fake = Fake::new();
        (fake.lock().most_ranges, fake.lock().refusal) = (most, refusal);
        let mut log = fake.log();
        let memory = ranges(200, PAGE);
        assert_eq!(log.start(&memory, PAGE), Ok(PAGE), "{most}");
        assert!(fake.lock().ranges.len() <= most);
        fake.lock().wrote.extend(memory.iter().map(|r| r.gpa + 5));
        let found = harvest(&mut log);
        assert!(memory.iter().all(|r| found.contains(&(r.gpa / PAGE))));
    }
}

#[test]
fn a_device_that_takes_shorter_ranges_gets_shorter() {
    let fake = Fake::new();
    (fake.lock().longest, fake.lock().refusal) = (1 << 42, Errno::OPNOTSUPP);
    let mut log = fake.log();
    log.start(&[MemoryRange { gpa: 0, len: 3 << 42 }], PAGE).unwrap();
    assert_eq!(fake.lock().ranges.len(), 3);
    assert!(fake.lock().ranges.iter().all(|r| r.len == 1 << 42));
}

#[test]
fn coarser_pages_are_honoured() {
    let fake = Fake::new();
    fake.lock().page = 64 << 10;
    let mut log = fake.log();
    // Fits 4 KiB, not 64: it is stopped and started anew around it.
    assert_eq!(log.start(&[MemoryRange { gpa: PAGE, len: PAGE }], PAGE), Ok(64 << 10));
    assert_eq!(fake.lock().stops, 1);
    assert_eq!(fake.lock().starts.len(), 2);
    assert_eq!(fake.lock().ranges, [MemoryRange { gpa: 0, len: 64 << 10 }]);
    fake.lock().wrote.insert(PAGE);
    assert_eq!(harvest(&mut log), (0..16).collect());
    drop(log);
    assert_eq!(fake.lock().stops, 2, "nobody leaves a log running");

    // Fits already.
    let mut log = fake.log();
    assert_eq!(log.start(&[MemoryRange { gpa: 1 << 20, len: 1 << 20 }], PAGE), Ok(64 << 10));
    assert_eq!(fake.lock().stops, 2);
}

#[test]
fn page_sizes_that_are_none_are_refused() {
    for odd in [0, 1, 512, 4095, 12288] {
        let fake = Fake::new();
        fake.lock().odd_page = Some(odd);
        let mut log = fake.log();
        let error = log.start(&[MemoryRange { gpa: 0, len: PAGE }], PAGE).unwrap_err();
        assert_eq!(error.kind, ChannelErrorKind::Device, "{odd}: {error}");
        assert_eq!(fake.lock().stops, 1);
        assert_eq!(log.harvest(&mut Pages::default()).unwrap_err().kind, ChannelErrorKind::State);
    }
    let mut log = Fake::new().log();
    for asked in [0, 1, 2048, 4097] {
        assert_eq!(log.start(&[MemoryRange { gpa: 0, len: PAGE }], asked).unwrap_err().kind, ChannelErrorKind::Limit);
    }
}

#[test]
fn what_can_t_be_tracked_is_refused() {
    let fake = Fake::new();
    let mut log = fake.log();
    assert_eq!(log.start(&[], PAGE).unwrap_err().kind, ChannelErrorKind::Limit);
    assert_eq!(log.start(&[MemoryRange { gpa: 5, len: 0 }], PAGE).unwrap_err().kind, ChannelErrorKind::Limit);
    let beyond = MemoryRange { gpa: u64::MAX - 5, len: 6 };
    assert_eq!(log.start(&[beyond], PAGE).unwrap_err().kind, ChannelErrorKind::Limit);
    fake.lock().most_ranges = 0;
    fake.lock().refusal = Errno::BUSY;
    let error = log.start(&[MemoryRange { gpa: 0, len: PAGE }], PAGE).unwrap_err();
    assert_eq!(error.errno, Some(Errno::BUSY.raw_os_error()));
    assert_eq!(fake.lock().starts.len(), 1, "an errno that is not about ranges is not tried again");
    fake.lock().refusal = Errno::OPNOTSUPP;
    let error = log.start(&ranges(256, PAGE), PAGE).unwrap_err();
    assert_eq!(error.kind, ChannelErrorKind::Unsupported);
    assert!(fake.lock().starts.len() < 12, "{:?}", fake.lock().starts);
    fake.lock().most_ranges = 1;
    log.start(&[MemoryRange { gpa: 0, len: PAGE }], PAGE).unwrap();
    assert_eq!(log.start(&[MemoryRange { gpa: 0, len: PAGE }], PAGE).unwrap_err().kind, ChannelErrorKind::State);
}

#[test]
fn after_an_error_everything_is_dirty() {
    for failing in 0..2 {
        let fake = Fake::new();
        let mut log = fake.log();
        log.start(&ranges(2, 3 * PAGE), PAGE).unwrap();
        fake.lock().fail_report = Some(failing);
        let mut pages = Pages::default();
        let error = log.harvest(&mut pages).unwrap_err();
        assert_eq!(error.errno, Some(5));
        assert_eq!(pages.0, BTreeSet::from([0, 1, 2, 65, 66, 67]), "{failing}");
        // And it goes on.
        fake.lock().fail_report = None;
        fake.lock().wrote.insert(PAGE);
        assert_eq!(harvest(&mut log), BTreeSet::from([1]));
    }
}

#[test]
fn a_kernel_that_reports_nothing_is_found_before_anything_starts() {
    struct Kernel(Result<(), Errno>);
    impl LogPort for Kernel {
        fn start(&self, _: u64, _: &[MemoryRange]) -> Result<u64, Errno> {
            panic!("started")
        }
        fn report(&self, range: MemoryRange, page_size: u64, bitmap: &mut [u64]) -> Result<(), Errno> {
            assert_eq!((range.len / page_size, bitmap.len()), (1, 1));
            self.0
        }
        fn stop(&self) -> Result<(), Errno> {
            panic!("stopped")
        }
    }
    assert!(!can_report(&Kernel(Err(Errno::OPNOTSUPP))));
    // Drivers that have one say that it isn't started, or that nothing was written.
    for answer in [Ok(()), Err(Errno::INVAL), Err(Errno::IO)] {
        assert!(can_report(&Kernel(answer)));
    }
}

#[test]
fn a_stop_that_fails_stops_all_the_same() {
    let fake = Fake::new();
    for (errno, told) in [(Errno::IO, true), (Errno::INVAL, false)] {
        let mut log = fake.log();
        log.start(&[MemoryRange { gpa: 0, len: PAGE }], PAGE).unwrap();
        fake.lock().fail_stop = Some(errno);
        assert_eq!(log.stop().is_err(), told);
        assert_eq!(log.stop(), Ok(()));
        fake.lock().fail_stop = None;
        log.start(&[MemoryRange { gpa: 0, len: PAGE }], PAGE).unwrap();
    }
}
