//! The golden stream of version 1: what was written once has to be read for ever, and is written alike.
//!
//! To make the golden stream of a new version: `TOWLINE_WRITE_GOLDEN=1 cargo test -p towline-core --test stream_golden`.
//! One that is committed is never written again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::PathBuf;

use towline_core::crc::crc32c;
use towline_core::stream::{
    Decoder, Encoder, Event, FrameType, Limits, PagesRun, RunKind, SectionBegin, SectionKind, StreamHeader,
};

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden-v1.towline")
}

const SESSION: [u8; 16] =
    [0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0x46, 0xa7, 0x88, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf];
const FUNCTION: [u8; 16] =
    [0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0x46, 0xf7, 0x88, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff];

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 7) as u8).collect()
}

fn pages(encoder: &mut Encoder, channel: u32, runs: &[PagesRun], seed: u64, out: &mut Vec<u8>) {
    let mut payload = Vec::new();
    let summary = encoder.pages_table(4096, runs, &mut payload).unwrap();
    payload.extend(pattern(summary.data_bytes as usize, seed));
    out.extend(encoder.pages_header(channel, &summary, crc32c(0, &payload)).unwrap());
    out.extend(payload);
}

/// Every frame type, every section kind, two rounds, an optional frame. Interleaved, as a migration of two functions is.
fn golden() -> Vec<u8> {
    let mut encoder = Encoder::new(StreamHeader { major: 1, minor: 0, session: SESSION }, Limits::default()).unwrap();
    let mut out = encoder.stream_header().to_vec();
    let section = |kind, function, format: &[u8; 16], name| SectionBegin {
        kind,
        function,
        format: *format,
        format_version: 3,
        name,
    };
    encoder.opaque(FrameType::Dialogue, 0, b"{\"offer\":1}", &mut out).unwrap();
    let memory = section(SectionKind::Memory, [0; 16], &[0; 16], "memory");
    encoder.begin_section(1, &memory, &mut out).unwrap();
    let state = section(SectionKind::DeviceState, FUNCTION, b"towline-nvme\0\0\0\0", "nvme0 \u{2192} vf 3");
    encoder.begin_section(7, &state, &mut out).unwrap();
    let data = |gpa, pages: u32| PagesRun { gpa, len: pages * 4096, kind: RunKind::Data };
    let zero = |gpa, pages: u32| PagesRun { gpa, len: pages * 4096, kind: RunKind::Zero };
    pages(&mut encoder, 1, &[data(0, 2), zero(0x2000, 30), data(0x1_0000_0000, 1)], 1, &mut out);
    encoder.round_end(1, false, &mut out).unwrap();
    encoder.opaque(FrameType::StateChunk, 7, &pattern(1000, 2), &mut out).unwrap();
    pages(&mut encoder, 1, &[data(0x1000, 1)], 3, &mut out);
    encoder.round_end(1, true, &mut out).unwrap();
    encoder.manifest(1, &mut out).unwrap();
    encoder.opaque(FrameType::StateChunk, 7, &pattern(1, 4), &mut out).unwrap();
    encoder.manifest(7, &mut out).unwrap();
    encoder.begin_section(2, &section(SectionKind::Caller, [0; 16], &[0; 16], "vcpu"), &mut out).unwrap();
    encoder.opaque(FrameType::SectionData, 2, &pattern(64, 5), &mut out).unwrap();
    encoder.opaque(FrameType::SectionData, 2, b"", &mut out).unwrap();
    encoder.optional(0x8001, 2, b"from a later minor version", &mut out).unwrap();
    encoder.manifest(2, &mut out).unwrap();
    encoder.begin_section(3, &section(SectionKind::Exposure, FUNCTION, &[0; 16], ""), &mut out).unwrap();
    encoder.manifest(3, &mut out).unwrap();
    encoder.end(&mut out).unwrap();
    out
}

fn line(event: Event<'_>) -> String {
    match event {
        Event::Header(h) => format!("header {}.{} session {:02x}{:02x}", h.major, h.minor, h.session[0], h.session[15]),
        Event::SectionBegin { channel, section: s } => {
            format!("begin {channel} {:?} {:?} format {:?} v{}", s.kind, s.name, s.format[0], s.format_version)
        }
        Event::StateChunk { channel, data } => format!("state {channel} {} {:08x}", data.len(), crc32c(0, data)),
        Event::Pages { channel, pages } => {
            let mut out = format!("pages {channel}");
            pages.each(|run, data| {
                out += &format!(" {:x}+{:x}={:08x}", run.gpa, run.len, data.map_or(0, |d| crc32c(0, d)));
            });
            out
        }
        Event::SectionData { channel, data } => format!("data {channel} {} {:08x}", data.len(), crc32c(0, data)),
        Event::RoundEnd { channel, round: r } => {
            format!("round {channel} {} final {} pages {} bytes {}", r.round, r.is_final, r.pages, r.bytes)
        }
        Event::Manifest { channel, digest: d } => {
            format!("manifest {channel} {} {} {:08x} {:016x}", d.frames(), d.bytes(), d.crc(), d.hash())
        }
        Event::Dialogue(data) => format!("dialogue {}", String::from_utf8_lossy(data)),
        Event::Skipped { frame_type, channel, length } => format!("skipped {frame_type:x} {channel} {length}"),
        Event::StreamEnd { digest: d } => {
            format!("end {} {} {:08x} {:016x}", d.frames(), d.bytes(), d.crc(), d.hash())
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn the_golden_stream_is_read_as_it_was() {
    if std::env::var_os("TOWLINE_WRITE_GOLDEN").is_some() {
        // Fails where the file is there already.
        use std::io::Write;
        std::fs::File::create_new(path()).unwrap().write_all(&golden()).unwrap();
    }
    let bytes = std::fs::read(path()).unwrap();
    let mut decoder = Decoder::new(Limits::default());
    let mut lines = Vec::new();
    decoder.push(&bytes, &mut |event| lines.push(line(event))).unwrap();
    decoder.finish().unwrap();
    assert_eq!(lines.join("\n"), EVENTS.trim(), "\n{}", lines.join("\n"));
}

#[test]
fn the_golden_stream_is_written_as_it_was() {
    assert!(golden() == std::fs::read(path()).unwrap());
}

/// The digest by its documentation, on bytes, with nothing of the implementation: over every frame but DIALOGUE and
/// STREAM_END.
#[test]
fn the_digest_is_the_documented_one() {
    let bytes = std::fs::read(path()).unwrap();
    let (mut at, mut frames, mut total, mut chain, mut hash) = (40, 0u64, 0u64, Vec::new(), 0x746F_776C_696E_6531u64);
    let (k1, k2, k3) = (0x9E37_79B9_7F4A_7C15u64, 0xD6E8_FEB8_6659_FD93u64, 0xA076_1D64_78BD_642Fu64);
    loop {
        let header = &bytes[at..at + 24];
        let frame_type = u16::from_le_bytes(header[0..2].try_into().unwrap());
        let length = u32::from_le_bytes(header[12..16].try_into().unwrap());
        at += 24 + length as usize;
        if frame_type == 8 {
            break;
        }
        if frame_type == 7 {
            continue;
        }
        frames += 1;
        total += u64::from(length);
        chain.extend_from_slice(header);
        for word in header.chunks(8) {
            let w = u64::from_le_bytes(word.try_into().unwrap());
            hash = (hash ^ w.wrapping_mul(k1)).rotate_left(29).wrapping_mul(k2).wrapping_add(k3);
        }
    }
    let x = (hash ^ (hash >> 32)).wrapping_mul(k2);
    let mut expected = Vec::new();
    expected.extend(frames.to_le_bytes());
    expected.extend(total.to_le_bytes());
    expected.extend(u64::from(crc32c(0, &chain)).to_le_bytes());
    expected.extend((x ^ (x >> 29)).to_le_bytes());
    assert_eq!(at, bytes.len());
    assert_eq!(bytes[at - 32..], expected);
}

const EVENTS: &str = r#"
header 1.0 session a0af
dialogue {"offer":1}
begin 1 Memory "memory" format 0 v3
begin 7 DeviceState "nvme0 → vf 3" format 116 v3
pages 1 0+2000=145f36be 2000+1e000=00000000 100000000+1000=d9f22099
round 1 0 final false pages 33 bytes 12288
state 7 1000 34e2df15
pages 1 1000+1000=411b9fcb
round 1 1 final true pages 1 bytes 4096
manifest 1 5 16558 9a60660c e5660074df76ce82
state 7 1 412da0a5
manifest 7 3 1055 07d67866 0f4bd7db2295ca8a
begin 2 Caller "vcpu" format 0 v3
data 2 64 07e7ea22
data 2 0 00000000
skipped 8001 2 26
manifest 2 4 134 34af1041 55396e8587955ad7
begin 3 Exposure "" format 0 v3
manifest 3 1 40 3e6bc1bb 2eaf0f529201cc4f
end 17 17915 6db8366d 8e9e88c121d250a6
"#;
