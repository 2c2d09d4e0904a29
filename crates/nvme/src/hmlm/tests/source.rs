use std::sync::Arc;

use towline_core::channel::{ChannelErrorKind, DirtySink, DirtySource};
use towline_core::memory::MemoryRange;

use super::device::{CNTLID, Device, Fault};
use crate::admin::TransportError;
use crate::command::opcode;
use crate::hmlm::{TrackConfig, TrackReceiveSource};
use crate::status::StatusCode;
use crate::track::{ChangedRange, TrackRanges};

#[derive(Default)]
struct Marks(Vec<(u64, u64)>);

impl DirtySink for Marks {
    fn mark(&mut self, gpa: u64, len: u64) {
        self.0.push((gpa, len));
    }
    fn merge_bitmap(&mut self, _: u64, _: u64, _: &[u8]) {
        panic!("this source reports ranges");
    }
}

fn source(device: &Arc<Device>) -> TrackReceiveSource {
    TrackReceiveSource::new(device.client(), TrackConfig::new(CNTLID))
}

fn memory() -> Vec<MemoryRange> {
    vec![MemoryRange { gpa: 0, len: 64 << 20 }]
}

fn dirty(n: u64) -> Vec<ChangedRange> {
    (0..n).map(|n| ChangedRange { address: n * 0x3000, len: 4096 }).collect()
}

#[test]
fn everything_that_was_written_is_found_once() {
    let device = Device::new(4096);
    let mut source = source(&device);
    assert_eq!(source.start(&memory(), 4096).unwrap(), 4096);
    device.with(|inner| inner.dirty = dirty(10));
    let mut marks = Marks::default();
    source.harvest(&mut marks).unwrap();
    let expected: Vec<_> = dirty(10).iter().map(|range| (range.address, u64::from(range.len))).collect();
    assert_eq!(marks.0, expected);
    assert!(!source.is_complete());
    // Nothing new, nothing again.
    source.harvest(&mut marks).unwrap();
    assert_eq!(marks.0.len(), 10);
    // The last harvest, after the suspend.
    device.with(|inner| {
        inner.dirty = dirty(4);
        inner.suspended = true;
    });
    source.harvest(&mut marks).unwrap();
    assert_eq!(marks.0.len(), 14);
    assert!(source.is_complete());
}

#[test]
fn too_fine_is_asked_again_coarser() {
    let device = Device::new(4096);
    device.with(|inner| inner.affordable_granularity = 5);
    assert_eq!(source(&device).start(&memory(), 4096).unwrap(), 4096 << 5);
    assert_eq!(device.with(|inner| inner.log.iter().filter(|op| **op == opcode::TRACK_SEND).count()), 2);
}

#[test]
fn a_device_that_can_never_afford_it_ends_the_tries() {
    let device = Device::new(4096);
    device.with(|inner| inner.affordable_granularity = 11);
    let error = source(&device).start(&memory(), 4096).unwrap_err();
    assert_eq!((error.kind, error.nvme_status), (ChannelErrorKind::Limit, Some(0x138)));
    // And one that does not even say what it could afford.
    let device = Device::new(4096);
    device.with(|inner| {
        for _ in 0..100 {
            inner.faults.push((opcode::TRACK_SEND, 0, Fault::Status(StatusCode::NotEnoughResources)));
        }
    });
    assert_eq!(source(&device).start(&memory(), 4096).unwrap_err().nvme_status, Some(0x138));
    assert_eq!(device.with(|inner| inner.log.iter().filter(|op| **op == opcode::TRACK_SEND).count()), 11);
}

#[test]
fn pages_finer_and_coarser_than_the_device_tracks() {
    let device = Device::new(4096);
    device.with(|inner| (inner.min_granularity, inner.max_granularity) = (2, 4));
    assert_eq!(source(&device).start(&memory(), 4096).unwrap(), 16384);
    let device = Device::new(4096);
    device.with(|inner| (inner.min_granularity, inner.max_granularity) = (2, 4));
    assert_eq!(source(&device).start(&memory(), 2 << 20).unwrap(), 65536);
    let device = Device::new(4096);
    assert_eq!(source(&device).start(&memory(), 512).unwrap(), 4096);
}

#[test]
fn many_ranges_are_merged_into_what_the_device_has() {
    let device = Device::new(4096);
    device.with(|inner| inner.max_ranges = 4);
    let ranges: Vec<_> = (0..100).map(|n| MemoryRange { gpa: n << 20, len: 8192 }).collect();
    source(&device).start(&ranges, 4096).unwrap();
    let tracked = device.with(|inner| inner.tracking.clone().unwrap());
    assert!(tracked.ranges.len() <= 4);
    for range in &ranges {
        let inside = |part: &crate::track::TrackRange| {
            part.address <= range.gpa && range.gpa + range.len <= part.address + u64::from(part.len)
        };
        assert!(tracked.ranges.iter().any(inside));
    }
}

#[test]
fn lengths_are_powers_of_two_where_they_have_to_be() {
    let device = Device::new(4096);
    device.with(|inner| inner.power_of_two = true);
    source(&device).start(&[MemoryRange { gpa: 0x1000, len: 0x7000 }], 4096).unwrap();
    assert_eq!(device.with(|inner| inner.tracking.clone().unwrap().ranges.len()), 3);
}

#[test]
fn what_is_refused_is_not_started() {
    let device = Device::new(4096);
    let mut source = source(&device);
    assert_eq!(source.start(&[], 4096).unwrap_err().kind, ChannelErrorKind::Limit);
    assert_eq!(source.start(&memory(), 5000).unwrap_err().kind, ChannelErrorKind::Limit);
    assert_eq!(source.harvest(&mut Marks::default()).unwrap_err().kind, ChannelErrorKind::State);
    source.stop().unwrap();
    assert!(device.with(|inner| inner.log.is_empty()));
    source.start(&memory(), 4096).unwrap();
    assert_eq!(source.start(&memory(), 4096).unwrap_err().kind, ChannelErrorKind::State);
}

#[test]
fn tracking_that_somebody_left_on_is_taken_over() {
    let device = Device::new(4096);
    device.with(|inner| inner.tracking = Some(TrackRanges::default()));
    source(&device).start(&memory(), 4096).unwrap();
    assert_eq!(device.with(|inner| inner.tracking.clone().unwrap().ranges.len()), 1);
}

#[test]
fn an_error_between_two_reports_says_that_pages_may_be_lost() {
    let device = Device::new(4096);
    let mut source = source(&device);
    source.start(&memory(), 4096).unwrap();
    device.with(|inner| {
        inner.dirty = dirty(10);
        let lost = TransportError::Io { errno: 4, message: "ioctl".into() };
        inner.faults.push((opcode::TRACK_RECEIVE, 1, Fault::LostAfter(lost)));
    });
    let mut marks = Marks::default();
    let error = source.harvest(&mut marks).unwrap_err();
    assert_eq!(error.errno, Some(4));
    assert!(error.message.contains("take every page as written"), "{error}");
    // Shown to be true: the report that was lost does not come again.
    source.harvest(&mut marks).unwrap();
    assert_eq!(marks.0.len(), 7);
}

#[test]
fn impossible_reports_are_errors_and_end() {
    for garbage in [ChangedRange { address: 0, len: 0 }, ChangedRange { address: u64::MAX - 4095, len: 8192 }] {
        let device = Device::new(4096);
        let mut source = source(&device);
        source.start(&memory(), 4096).unwrap();
        device.with(|inner| inner.reports_garbage = Some(garbage));
        let error = source.harvest(&mut Marks::default()).unwrap_err();
        assert_eq!(error.kind, ChannelErrorKind::Device);
    }
    let device = Device::new(4096);
    let mut source = source(&device);
    source.start(&memory(), 4096).unwrap();
    device.with(|inner| inner.stuck = true);
    assert!(source.harvest(&mut Marks::default()).is_err());
    // Endless while it runs: the rest is for the next harvest. Endless while suspended: that cannot be.
    device.with(|inner| (inner.stuck, inner.endless) = (false, true));
    source.harvest(&mut Marks::default()).unwrap();
    assert!(!source.is_complete());
    device.with(|inner| inner.suspended = true);
    assert!(source.harvest(&mut Marks::default()).is_err());
}

#[test]
fn what_was_stopped_while_suspended_starts_anew() {
    let device = Device::new(4096);
    let mut source = source(&device);
    source.start(&memory(), 4096).unwrap();
    assert!(source.start(&memory(), 4096).is_err());
    device.with(|inner| inner.suspended = true);
    source.stop().unwrap_err();
    device.with(|inner| inner.suspended = false);
    source.start(&memory(), 4096).unwrap();
    assert!(device.with(|inner| inner.tracking.is_some()));
    assert!(source.start(&memory(), 4096).is_err());
}

#[test]
fn stopping_a_suspended_controller_can_be_repeated_when_it_runs_again() {
    let device = Device::new(4096);
    let mut source = source(&device);
    source.start(&memory(), 4096).unwrap();
    device.with(|inner| inner.suspended = true);
    assert_eq!(source.stop().unwrap_err().nvme_status, Some(0x139));
    device.with(|inner| inner.suspended = false);
    source.stop().unwrap();
    assert!(device.with(|inner| inner.tracking.is_none()));
    source.stop().unwrap();
    source.start(&memory(), 4096).unwrap();
}
