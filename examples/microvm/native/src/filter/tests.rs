//! Filters put together by hand from the documentation of their bytes. That towline's own evaluation says the same is a test in TypeScript.

use std::cell::RefCell;

use super::*;

const BAR: u64 = 0x2000;

struct Class {
    read: [u8; 4],
    write: [u8; 4],
    masks: [[u8; 4]; 4],
}

const PASS: Class = Class { read: [0; 4], write: [0; 4], masks: [[0xff; 4], [0; 4], [0xff; 4], [0; 4]] };
const ZEROS: Class = Class { read: [1; 4], write: [1; 4], masks: [[0; 4]; 4] };
/// Byte 0 passes with bit 0 set on reads and clear on writes; byte 1 traps; byte 2 is fixed; byte 3 is a shadow.
const MIX: Class = Class {
    read: [0, 2, 1, 3],
    write: [0, 2, 1, 3],
    masks: [[0xff, 0, 0, 0], [1, 0xff, 0x5a, 0], [0xfe, 0, 0, 0], [0, 0, 0, 0]],
};

/// Page 0 passes. Page 1 is mixed: granule 0 gives zeroes, granule 1 is [`MIX`], the others pass. Bytes from `visible` on are not there.
fn bytes(visible: u64) -> Vec<u8> {
    let mut mixed = vec![0u8; 8 + 1024];
    mixed[4] = 3;
    mixed[8] = 1;
    mixed[9] = 2;
    let mut body: Vec<u8> = [0u32, MIXED].iter().flat_map(|w| w.to_le_bytes()).collect();
    let pages_at = HEADER as u64;
    let mixed_at = pages_at + body.len() as u64;
    body.extend(mixed);
    let classes_at = pages_at + body.len() as u64;
    for class in [PASS, ZEROS, MIX] {
        body.extend(class.read);
        body.extend(class.write);
        class.masks.iter().for_each(|mask| body.extend(mask));
    }
    let rules_at = pages_at + body.len() as u64;
    for _ in 0..2 {
        body.extend([0x1007u64, 1].iter().flat_map(|w| w.to_le_bytes()));
        body.extend([0u32, 4, 0, 1].iter().flat_map(|w| w.to_le_bytes()));
        body.extend(0xf0u64.to_le_bytes());
    }
    let mut out = MAGIC.to_vec();
    out.extend([1u32, HEADER as u32].iter().flat_map(|w| w.to_le_bytes()));
    out.extend([pages_at + body.len() as u64, BAR, visible].iter().flat_map(|w| w.to_le_bytes()));
    out.extend([12u32, 2].iter().flat_map(|w| w.to_le_bytes()));
    let sections = [(pages_at, 2), (mixed_at, 1), (classes_at, 3), (rules_at, 1), (rules_at + RULE_BYTES as u64, 1)];
    out.extend(sections.iter().flat_map(|(at, n)| [*at, *n]).flat_map(u64::to_le_bytes));
    out.extend([1u32, 1].iter().flat_map(|w| w.to_le_bytes()));
    out.extend(0u64.to_le_bytes());
    out.extend(body);
    out
}

/// Offset, data of a write, length.
type Access = (u64, Option<Vec<u8>>, usize);

#[derive(Default)]
struct Log(RefCell<Vec<Access>>);

impl Target for Log {
    fn read(&self, offset: u64, out: &mut [u8]) {
        self.0.borrow_mut().push((offset, None, out.len()));
        out.fill(0x10);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.borrow_mut().push((offset, Some(data.to_vec()), data.len()));
    }
}

fn read(filter: &Filter, offset: u64, len: usize) -> (Vec<u8>, Outcome, usize) {
    let (log, mut out) = (Log::default(), vec![0; len]);
    let outcome = filter.read(&log, offset, &mut out);
    (out, outcome, log.0.into_inner().len())
}

#[test]
fn every_kind_of_byte_is_read_as_its_class_says() {
    let filter = Filter::parse(&bytes(BAR)).unwrap();
    assert_eq!(read(&filter, 0x14, 4), (vec![0x10; 4], Outcome::Passed, 1));
    assert_eq!(read(&filter, 0x1000, 4), (vec![0; 4], Outcome::Denied, 0));
    assert_eq!(read(&filter, 0x1004, 4), (vec![0x11, 0xff, 0x5a, 0xf0], Outcome::Changed, 1));
    assert_eq!(read(&filter, 0x1000, 8).0, [0, 0, 0, 0, 0x11, 0xff, 0x5a, 0xf0]);
    assert_eq!(read(&filter, 0x1008, 8), (vec![0x10; 8], Outcome::Passed, 1));
    // Half before the end of the BAR, half beyond.
    assert_eq!(read(&filter, BAR - 2, 4), (vec![0x10, 0x10, 0xff, 0xff], Outcome::Changed, 1));
    assert_eq!(read(&filter, u64::MAX - 1, 4), (vec![0xff; 4], Outcome::Denied, 0));
    assert_eq!(read(&filter, 0, 9), (vec![0xff; 9], Outcome::Denied, 0));
}

#[test]
fn writes_reach_the_target_only_as_they_may() {
    let filter = Filter::parse(&bytes(BAR)).unwrap();
    let log = Log::default();
    assert_eq!(filter.write(&log, 0x14, &[1, 2, 3, 4]), Outcome::Passed);
    assert_eq!(filter.write(&log, 0x1000, &[1, 2, 3, 4]), Outcome::Denied);
    assert_eq!(filter.write(&log, 0x1004, &[0xff, 2, 3, 0x30]), Outcome::Changed);
    let seen = log.0.into_inner();
    assert_eq!(seen, [(0x14, Some(vec![1, 2, 3, 4]), 4), (0x1004, Some(vec![0xfe]), 1)]);
    // The shadow was f0h.
    assert_eq!(read(&filter, 0x1007, 1).0, [0xc0]);
    assert!(filter.passes_write32(0x1008) && !filter.passes_write32(0x1004) && !filter.passes_write32(BAR - 2));
}

#[test]
fn a_truncated_bar_ends_where_it_says() {
    let filter = Filter::parse(&bytes(0x1008)).unwrap();
    assert_eq!(read(&filter, 0x1008, 4), (vec![0xff; 4], Outcome::Denied, 0));
    assert_eq!(read(&filter, 0x14, 4).1, Outcome::Passed);
}

#[test]
fn no_change_of_its_bytes_makes_it_panic() {
    let whole = bytes(BAR);
    for len in 0..whole.len() {
        assert!(Filter::parse(&whole[..len]).is_err(), "cut to {len}");
    }
    let mut refused = 0;
    for at in 0..whole.len() {
        for value in [0, 1, 2, 0x7f, 0x80, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] = value;
            let Ok(filter) = Filter::parse(&damaged) else {
                refused += 1;
                continue;
            };
            for offset in [0, 0xffc, 0x1000, 0x1004, 0x1006, BAR - 4, BAR - 2, u64::MAX - 3] {
                for len in [1, 2, 4, 8] {
                    read(&filter, offset, len);
                    filter.write(&Log::default(), offset, &vec![0xff; len]);
                }
            }
        }
    }
    assert!(refused > 500, "{refused}");
}
