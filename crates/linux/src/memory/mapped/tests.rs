use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::memory::memfd;

const PAGE: u64 = 4096;

fn memory(pages: u64) -> MappedMemory {
    let mem = MappedMemory::new();
    mem.add_region(0x10_0000, memfd("t", pages * PAGE).unwrap().as_fd(), 0, pages * PAGE).unwrap();
    mem
}

#[test]
fn copies_of_every_alignment_and_length_arrive() {
    let mem = memory(1);
    let pattern: Vec<u8> = (0..64u8).map(|i| i ^ 0x5a).collect();
    for offset in 0..17u64 {
        for len in 0..40usize {
            mem.write(0x10_0000, &[0xee; 128]).unwrap();
            mem.write(0x10_0000 + offset, &pattern[..len]).unwrap();
            let mut all = [0u8; 128];
            mem.read(0x10_0000, &mut all).unwrap();
            let mut want = [0xee; 128];
            want[offset as usize..offset as usize + len].copy_from_slice(&pattern[..len]);
            assert_eq!(all, want, "write at {offset}, {len} bytes");
            let mut out = vec![0; len];
            mem.read(0x10_0000 + offset, &mut out).unwrap();
            assert_eq!(out, &pattern[..len], "read at {offset}, {len} bytes");
        }
    }
}

/// Long copies go another way than short ones, by which they are checked here.
#[test]
fn long_copies_do_as_many_short_ones() {
    const BYTES: usize = 3 * PAGE as usize;
    let mem = memory(3);
    let pattern: Vec<u8> = (0..BYTES).map(|i| (i * 31 / 7) as u8).collect();
    for offset in [0, 1, 7, 8, 63, 4095] {
        for len in [1023, 1024, 1025, 4096, 4097, 8192, BYTES - 4095] {
            for piece in (0..BYTES).step_by(512) {
                mem.write(0x10_0000 + piece as u64, &[0xee; 512]).unwrap();
            }
            mem.write(0x10_0000 + offset as u64, &pattern[..len]).unwrap();
            let mut all = vec![0; BYTES];
            for (index, piece) in all.chunks_mut(512).enumerate() {
                mem.read(0x10_0000 + index as u64 * 512, piece).unwrap();
            }
            let mut want = vec![0xee; BYTES];
            want[offset..offset + len].copy_from_slice(&pattern[..len]);
            assert!(all == want, "write at {offset}, {len} bytes");
            let mut out = vec![0; len + 2];
            mem.read(0x10_0000 + offset as u64, &mut out[1..=len]).unwrap();
            assert!(
                out[1..=len] == pattern[..len] && out[0] == 0 && out[len + 1] == 0,
                "read at {offset}, {len} bytes"
            );
        }
    }
}

#[test]
fn hostile_addresses_are_refused_and_touch_nothing() {
    let mem = memory(2);
    let end = 0x10_0000 + 2 * PAGE;
    let mut buf = [0u8; 16];
    for gpa in [0, 0xf_fff8, end - 8, end, u64::MAX, u64::MAX - 8, u64::MAX - 15, 1 << 63] {
        let kind = MemoryErrorKind::Unmapped;
        assert_eq!(mem.read(gpa, &mut buf).unwrap_err(), MemoryError { gpa, len: 16, kind });
        assert_eq!(mem.write(gpa, &[7; 16]).unwrap_err(), MemoryError { gpa, len: 16, kind });
        assert!(mem.with_mapped(gpa, 16, &mut |_| panic!("called")).is_err());
    }
    for gpa in [end, u64::MAX - 3, 0xf_fffc] {
        assert_eq!(mem.load_u32(gpa).unwrap_err().kind, MemoryErrorKind::Unmapped);
        assert_eq!(mem.store_u32(gpa, 1).unwrap_err().kind, MemoryErrorKind::Unmapped);
    }
    for gpa in [0x10_0001, u64::MAX, end - 2] {
        assert_eq!(mem.load_u32(gpa).unwrap_err().kind, MemoryErrorKind::Misaligned);
        assert_eq!(mem.store_u32(gpa, 1).unwrap_err().kind, MemoryErrorKind::Misaligned);
    }
    // The write that straddled the end left its first half alone.
    mem.read(end - 8, &mut buf[..8]).unwrap();
    assert_eq!(buf[..8], [0; 8]);
    mem.read(u64::MAX, &mut []).unwrap();
}

#[test]
fn an_access_crosses_regions_and_stops_at_gaps() {
    let mem = MappedMemory::new();
    let (a, b) = (memfd("a", 2 * PAGE).unwrap(), memfd("b", PAGE).unwrap());
    mem.add_region(PAGE, a.as_fd(), PAGE, PAGE).unwrap();
    mem.add_region(2 * PAGE, b.as_fd(), 0, PAGE).unwrap();
    mem.add_region(4 * PAGE, a.as_fd(), 0, PAGE).unwrap();
    let data: Vec<u8> = (0..200u8).collect();
    mem.write(2 * PAGE - 100, &data).unwrap();
    let mut out = vec![0; 200];
    mem.read(2 * PAGE - 100, &mut out).unwrap();
    assert_eq!(out, data);
    assert!(!mem.with_mapped(2 * PAGE - 100, 200, &mut |_| panic!("not contiguous")).unwrap());
    assert!(mem.write(3 * PAGE - 4, &[1; 8]).is_err());
    assert!(mem.write(3 * PAGE, &[1; 8]).is_err());
    mem.read(3 * PAGE - 4, &mut out[..4]).unwrap();
    assert_eq!(out[..4], [0; 4]);
    assert_eq!(mem.ranges().iter().map(|r| r.gpa).collect::<Vec<_>>(), [PAGE, 2 * PAGE, 4 * PAGE]);
}

#[test]
fn regions_that_cannot_be_are_refused() {
    let mem = memory(4);
    let fd = memfd("t", 4 * PAGE).unwrap();
    let add = |gpa, offset, len| mem.add_region(gpa, fd.as_fd(), offset, len);
    assert!(matches!(add(1, 0, PAGE), Err(MapError::Misaligned { .. })));
    assert!(matches!(add(0, 1, PAGE), Err(MapError::Misaligned { .. })));
    assert!(matches!(add(0, 0, 100), Err(MapError::Misaligned { .. })));
    assert!(matches!(add(0, 0, 0), Err(MapError::Misaligned { .. })));
    assert!(matches!(add(u64::MAX - PAGE + 1, 0, PAGE), Err(MapError::Overflow { .. })));
    assert!(matches!(add(0, u64::MAX - PAGE + 1, PAGE), Err(MapError::Overflow { .. })));
    assert!(matches!(add(0, 4 * PAGE, PAGE), Err(MapError::BeyondFile { .. })));
    assert!(matches!(add(0, 0, 5 * PAGE), Err(MapError::BeyondFile { .. })));
    assert!(matches!(add(0x10_3000, 0, PAGE), Err(MapError::Overlap { .. })));
    assert!(matches!(add(0xf_f000, 0, 2 * PAGE), Err(MapError::Overlap { .. })));
    assert!(matches!(add(0xf_f000, 0, 4 * PAGE), Err(MapError::Overlap { .. })));
    assert!(matches!(mem.remove_region(0x10_0000, PAGE), Err(MapError::NoSuchRegion { .. })));
    assert!(matches!(mem.remove_region(0, PAGE), Err(MapError::NoSuchRegion { .. })));
    add(0xf_f000, 3 * PAGE, PAGE).unwrap();
    assert_eq!(mem.ranges().len(), 2);
}

#[test]
fn the_count_of_regions_is_capped() {
    let mem = MappedMemory::new();
    let fd = memfd("t", PAGE).unwrap();
    for i in 0..MAX_REGIONS as u64 {
        mem.add_region(i * 2 * PAGE, fd.as_fd(), 0, PAGE).unwrap();
    }
    assert!(matches!(mem.add_region(1 << 40, fd.as_fd(), 0, PAGE), Err(MapError::TooMany)));
}

#[test]
fn a_file_that_can_shrink_needs_to_be_allowed() {
    let mem = MappedMemory::new();
    let fd = rustix::fs::memfd_create("t", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, PAGE).unwrap();
    assert!(matches!(mem.add_region(0, fd.as_fd(), 0, PAGE), Err(MapError::Shrinkable)));
    let options = RegionOptions { allow_shrinkable: true, ..Default::default() };
    mem.add_region_with(0, fd.as_fd(), 0, PAGE, options).unwrap();
}

/// Needs no huge page: it is refused before it is mapped.
#[test]
fn a_seal_on_hugetlbfs_is_none() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
    let mem = MappedMemory::new();
    for (flags, refused) in [(MemfdFlags::empty(), false), (MemfdFlags::HUGETLB, true)] {
        let fd = memfd_create("t", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | flags).unwrap();
        ftruncate(&fd, 1 << 30).unwrap();
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        let added = mem.add_region(0, fd.as_fd(), 0, 1 << 30);
        assert_eq!(matches!(added, Err(MapError::Shrinkable)), refused, "{added:?}");
        assert_eq!(added.is_ok(), !refused);
    }
}

#[test]
fn a_read_only_region_is_not_written() {
    let mem = MappedMemory::new();
    let fd = memfd("t", PAGE).unwrap();
    rustix::io::pwrite(&fd, b"rom", 0).unwrap();
    mem.add_region_with(0, fd.as_fd(), 0, PAGE, RegionOptions { access: Access::ReadOnly, ..Default::default() })
        .unwrap();
    assert_eq!(mem.write(0, &[1]).unwrap_err().kind, MemoryErrorKind::ReadOnly);
    assert_eq!(mem.store_u32(0, 1).unwrap_err().kind, MemoryErrorKind::ReadOnly);
    let mut out = [0; 3];
    mem.read(0, &mut out).unwrap();
    assert_eq!(&out, b"rom");
}

#[test]
fn words_are_little_endian_and_shared_with_the_file() {
    let mem = MappedMemory::new();
    let fd = memfd("t", PAGE).unwrap();
    mem.add_region(PAGE, fd.as_fd(), 0, PAGE).unwrap();
    mem.store_u32(PAGE + 8, 0x0102_0304).unwrap();
    let mut raw = [0; 4];
    rustix::io::pread(&fd, &mut raw, 8).unwrap();
    assert_eq!(raw, [4, 3, 2, 1]);
    assert_eq!(mem.load_u32(PAGE + 8).unwrap(), 0x0102_0304);
}

#[test]
fn holes_are_told_from_pages_that_were_written() {
    let mem = memory(1024);
    let whole = MemoryRange { gpa: 0, len: u64::MAX };
    assert_eq!(mem.populated(whole), []);
    for page in [0u64, 1, 2, 500, 1023] {
        mem.write(0x10_0000 + page * PAGE + 17, &[1]).unwrap();
    }
    let at = |page: u64, pages: u64| MemoryRange { gpa: 0x10_0000 + page * PAGE, len: pages * PAGE };
    assert_eq!(mem.populated(whole), [at(0, 3), at(500, 1), at(1023, 1)]);
    assert_eq!(mem.populated(at(1, 499)), [at(1, 2)]);
    assert_eq!(mem.populated(at(1, 500)), [at(1, 2), at(500, 1)]);
    assert_eq!(mem.populated(MemoryRange { gpa: 0, len: PAGE }), []);
}

/// Without the wait, `remove_region` would return while the reader is still inside.
#[test]
fn removing_a_region_waits_for_the_accesses_under_way() {
    let mem = Arc::new(memory(1));
    let (inside, leaving) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let reader = {
        let (mem, inside, leaving) = (Arc::clone(&mem), Arc::clone(&inside), Arc::clone(&leaving));
        std::thread::spawn(move || {
            mem.with_mapped(0x10_0000, 4096, &mut |_| {
                inside.store(true, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(80));
                leaving.store(true, Ordering::SeqCst);
            })
            .unwrap()
        })
    };
    while !inside.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    let started = Instant::now();
    mem.remove_region(0x10_0000, PAGE).unwrap();
    assert!(leaving.load(Ordering::SeqCst), "removed under an access, after {:?}", started.elapsed());
    assert!(mem.read(0x10_0000, &mut [0]).is_err());
    assert!(reader.join().unwrap());
}

#[test]
fn regions_come_and_go_under_concurrent_accesses() {
    let mem = Arc::new(MappedMemory::new());
    let (a, b) = (memfd("a", 4 * PAGE).unwrap(), memfd("b", 4 * PAGE).unwrap());
    mem.add_region(0, a.as_fd(), 0, 4 * PAGE).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (hits, misses) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let users: Vec<_> = (0..3u64)
        .map(|i| {
            let (mem, stop, hits, misses) =
                (Arc::clone(&mem), Arc::clone(&stop), Arc::clone(&hits), Arc::clone(&misses));
            std::thread::spawn(move || {
                let mut buf = [i as u8; 5000];
                let mut n = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    // Crosses from the region that stays into the one that comes and goes.
                    let gpa = 3 * PAGE + n % 8;
                    let done = match n % 4 {
                        0 => mem.read(gpa, &mut buf),
                        1 => mem.write(gpa, &buf),
                        2 => mem.store_u32(4 * PAGE, n as u32),
                        _ => mem.with_mapped(5 * PAGE, 4096, &mut |_| ()).map(|_| ()),
                    };
                    match done {
                        Ok(()) => hits.fetch_add(1, Ordering::Relaxed),
                        Err(e) => {
                            assert_eq!(e.kind, MemoryErrorKind::Unmapped);
                            misses.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                }
            })
        })
        .collect();
    let until = Instant::now() + Duration::from_millis(400);
    let mut turns = 0;
    while Instant::now() < until || hits.load(Ordering::Relaxed) == 0 || misses.load(Ordering::Relaxed) == 0 {
        mem.add_region(4 * PAGE, b.as_fd(), 0, 4 * PAGE).unwrap();
        std::thread::sleep(Duration::from_micros(300));
        mem.remove_region(4 * PAGE, 4 * PAGE).unwrap();
        turns += 1;
        assert!(turns < 1_000_000);
    }
    stop.store(true, Ordering::Relaxed);
    for user in users {
        user.join().unwrap();
    }
}
