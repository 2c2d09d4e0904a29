//! Every truncation and every single-bit flip of a recorded stream is noticed.

use alloc::string::String;
use alloc::vec::Vec;

use super::*;
use crate::crc::crc32c;

/// A stream with every frame type, a skipped frame, a skipped section and empty payloads.
fn recorded() -> Vec<u8> {
    let limits = Limits::default();
    let mut encoder = Encoder::new(StreamHeader::new(*b"0123456789abcdef"), limits).unwrap();
    let mut out = encoder.stream_header().to_vec();
    let section = |kind, name| SectionBegin { kind, function: [7; 16], format: [0; 16], format_version: 1, name };
    encoder.opaque(FrameType::Dialogue, 0, b"offer", &mut out).unwrap();
    encoder.begin_section(1, &section(SectionKind::Memory, "memory"), &mut out).unwrap();
    for round in 0..2u64 {
        let runs = [
            PagesRun { gpa: 0x1000, len: 0x400, kind: RunKind::Data },
            PagesRun { gpa: 0x2000 + round * 0x400, len: 0x800, kind: RunKind::Zero },
            PagesRun { gpa: u64::MAX - 0x3ff - 0x400, len: 0x400, kind: RunKind::Data },
        ];
        let mut payload = Vec::new();
        let summary = encoder.pages_table(512, &runs, &mut payload).unwrap();
        payload.extend((0..summary.data_bytes).map(|n| (n * 31 + round) as u8));
        let raw = encoder.pages_header(1, &summary, crc32c(0, &payload)).unwrap();
        out.extend_from_slice(&raw);
        out.extend_from_slice(&payload);
        encoder.round_end(1, round == 1, &mut out).unwrap();
    }
    encoder.begin_section(2, &section(SectionKind::DeviceState, "nvme0"), &mut out).unwrap();
    encoder.opaque(FrameType::StateChunk, 2, &[0x5a; 300], &mut out).unwrap();
    encoder.begin_section(3, &section(SectionKind::Caller, "vcpu"), &mut out).unwrap();
    encoder.opaque(FrameType::SectionData, 3, b"", &mut out).unwrap();
    encoder.opaque(FrameType::SectionData, 3, b"registers", &mut out).unwrap();
    encoder.optional(900, 3, b"later", &mut out).unwrap();
    encoder.optional(901, 0, b"", &mut out).unwrap();
    for channel in 1..4 {
        encoder.manifest(channel, &mut out).unwrap();
    }
    encoder.end(&mut out).unwrap();
    assert!(out.len() < 64 * 1024);
    out
}

fn decode(bytes: &[u8], limits: Limits) -> (Vec<String>, Result<(), StreamError>) {
    let mut events = Vec::new();
    let mut decoder = Decoder::new(limits);
    let result = decoder.push(bytes, &mut |event| events.push(alloc::format!("{event:?}")));
    let result = result.and_then(|()| decoder.finish());
    (events, result)
}

/// How many flips were accepted, and how many were refused only after a wrong event had been delivered.
fn undetected_flips(limits: Limits) -> (usize, usize) {
    let original = recorded();
    let (events, result) = decode(&original, limits);
    assert_eq!(result, Ok(()));
    let (mut accepted, mut delivered) = (0, 0);
    let mut damaged = original.clone();
    for bit in 0..original.len() * 8 {
        damaged[bit / 8] ^= 1 << (bit % 8);
        let (seen, result) = decode(&damaged, limits);
        accepted += usize::from(result.is_ok());
        delivered += usize::from(!events.starts_with(&seen));
        damaged[bit / 8] ^= 1 << (bit % 8);
    }
    (accepted, delivered)
}

#[test]
fn every_single_bit_flip_is_detected_before_it_is_delivered() {
    assert_eq!(undetected_flips(Limits::default()), (0, 0));
}

#[test]
fn without_checksums_the_same_check_finds_flips() {
    let (accepted, delivered) = undetected_flips(Limits { ignore_checksums: true, ..Limits::default() });
    assert!(accepted > 1000, "{accepted}");
    assert!(delivered > 1000, "{delivered}");
}

#[test]
fn every_truncation_is_detected() {
    let original = recorded();
    let (events, _) = decode(&original, Limits::default());
    for length in 0..original.len() {
        let (seen, result) = decode(&original[..length], Limits::default());
        assert_eq!(result.unwrap_err().reason, StreamErrorReason::Incomplete, "{length} bytes");
        assert!(events.starts_with(&seen));
    }
}
