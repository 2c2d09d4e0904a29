//! Every truncation and every single-bit flip of a recorded stream is noticed.

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

/// Everything that an event says: which it is, two numbers, and the CRC32C of its bytes.
type Said = (u8, u64, u64, u32);

fn said(event: Event<'_>) -> Said {
    let digest = |tag, channel: u32, d: SectionDigest| (tag, u64::from(channel), d.hash(), crc32c(0, &d.encode()));
    match event {
        Event::Header(h) => (1, u64::from(h.major), u64::from(h.minor), crc32c(0, &h.session)),
        Event::SectionBegin { channel, section: s } => {
            let crc = crc32c(crc32c(crc32c(0, &s.function), &s.format), s.name.as_bytes());
            (2, u64::from(channel), u64::from(s.format_version) << 8 | s.kind as u64, crc)
        }
        Event::StateChunk { channel, data } => (3, u64::from(channel), data.len() as u64, crc32c(0, data)),
        Event::Pages { channel, pages } => {
            let mut table = Vec::new();
            encode_pages_table(pages.summary.page_size_bytes, pages.runs, &Limits::default(), &mut table).unwrap();
            (4, u64::from(channel), pages.data.len() as u64, crc32c(crc32c(0, &table), pages.data))
        }
        Event::SectionData { channel, data } => (5, u64::from(channel), data.len() as u64, crc32c(0, data)),
        Event::RoundEnd { channel, round } => (6, u64::from(channel), 0, crc32c(0, &round.encode())),
        Event::Manifest { channel, digest: d } => digest(7, channel, d),
        Event::Dialogue(data) => (8, 0, data.len() as u64, crc32c(0, data)),
        Event::Skipped { frame_type, channel, length } => {
            (9, u64::from(channel), u64::from(frame_type) << 32 | u64::from(length), 0)
        }
        Event::StreamEnd { digest: d } => digest(10, 0, d),
    }
}

fn decode(bytes: &[u8], limits: Limits) -> (Vec<Said>, Result<(), StreamError>) {
    let mut events = Vec::new();
    let mut decoder = Decoder::new(limits);
    let result = decoder.push(bytes, &mut |event| events.push(said(event)));
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
