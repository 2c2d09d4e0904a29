//! The stream codec: what is written is read, in any cuts, and every rule has a stream that breaks it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use proptest::prelude::*;
use towline_core::crc::crc32c;
use towline_core::stream::{
    Decoder, Encoder, Event, FRAME_HEADER_BYTES, FrameHeader, FrameType, Limits, OPTIONAL, PagesFault, PagesRun,
    RoundEnd, RunKind, SectionBegin, SectionDigest, SectionKind, StreamError, StreamErrorReason as Reason,
    StreamHeader, encode_pages_table,
};

fn section(kind: SectionKind) -> SectionBegin<'static> {
    SectionBegin { kind, function: [1; 16], format: [2; 16], format_version: 4, name: "name" }
}

fn decode_in(bytes: &[u8], limits: Limits, cut: usize) -> Result<Vec<String>, StreamError> {
    let mut events = Vec::new();
    let mut decoder = Decoder::new(limits);
    for piece in bytes.chunks(cut) {
        if let Err(error) = decoder.push(piece, &mut |event| events.push(format!("{event:?}"))) {
            assert_eq!(decoder.finish(), Err(error), "an error stays");
            assert_eq!(decoder.push(b"x", &mut |_| panic!("an event after an error")), Err(error));
            return Err(error);
        }
    }
    decoder.finish().map(|()| events)
}

fn reason(bytes: &[u8]) -> Reason {
    let whole = decode_in(bytes, Limits::default(), usize::MAX).unwrap_err();
    assert_eq!(decode_in(bytes, Limits::default(), 1).unwrap_err(), whole, "cuts make no difference");
    whole.reason
}

/// Frames made by hand, with right checksums and sequence numbers, whatever else they break.
struct Raw {
    bytes: Vec<u8>,
    sequence: u32,
}

impl Raw {
    fn new() -> Self {
        Self { bytes: StreamHeader::new([9; 16]).encode().to_vec(), sequence: 0 }
    }

    fn frame(mut self, frame_type: u16, flags: u16, channel: u32, payload: &[u8]) -> Self {
        let length = payload.len() as u32;
        let crc = crc32c(0, payload);
        let header = FrameHeader { frame_type, flags, channel, sequence: self.sequence, length, payload_crc: crc };
        self.bytes.extend(header.encode());
        self.bytes.extend(payload);
        self.sequence = self.sequence.wrapping_add(1);
        self
    }

    fn begin(self, channel: u32, kind: SectionKind) -> Self {
        let mut payload = Vec::new();
        section(kind).encode(&Limits::default(), &mut payload).unwrap();
        self.frame(1, 0, channel, &payload)
    }

    fn reason(self) -> Reason {
        reason(&self.bytes)
    }
}

fn whole() -> (Vec<u8>, Vec<usize>) {
    let mut encoder = Encoder::new(StreamHeader::new([3; 16]), Limits::default()).unwrap();
    let mut out = encoder.stream_header().to_vec();
    let mut starts = Vec::new();
    let mut step = |out: &mut Vec<u8>, f: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), StreamError>| {
        starts.push(out.len());
        f(out).unwrap();
    };
    step(&mut out, &mut |o| encoder.begin_section(5, &section(SectionKind::DeviceState), o));
    for n in 0..4u8 {
        step(&mut out, &mut |o| encoder.opaque(FrameType::StateChunk, 5, &[n; 10], o));
    }
    step(&mut out, &mut |o| encoder.manifest(5, o));
    step(&mut out, &mut |o| encoder.end(o));
    starts.push(out.len());
    (out, starts)
}

#[test]
fn frames_that_are_lost_repeated_or_swapped() {
    let (bytes, starts) = whole();
    assert!(decode_in(&bytes, Limits::default(), 3).is_ok());
    let frame = |n: usize| &bytes[starts[n]..starts[n + 1]];
    for n in 0..starts.len() - 1 {
        let lost = [&bytes[..starts[n]], &bytes[starts[n + 1]..]].concat();
        let repeated = [&bytes[..starts[n + 1]], &bytes[starts[n]..]].concat();
        assert!(matches!(reason(&lost), Reason::Sequence { .. } | Reason::Incomplete), "{n}");
        assert!(matches!(reason(&repeated), Reason::Sequence { .. }), "{n}");
        if n + 2 < starts.len() {
            let swapped = [&bytes[..starts[n]], frame(n + 1), frame(n), &bytes[starts[n + 2]..]].concat();
            let error = decode_in(&swapped, Limits::default(), 1000).unwrap_err();
            assert_eq!(error.offset, starts[n] as u64);
            assert_eq!(error.sequence, Some(n as u32));
            assert_eq!(error.reason, Reason::Sequence { expected: n as u32, found: n as u32 + 1 });
        }
    }
}

/// Somebody who numbers frames anew hides nothing from the manifest.
#[test]
fn loss_and_reordering_with_right_sequence_numbers_are_caught_by_the_manifest() {
    let (bytes, starts) = whole();
    let frames: Vec<(FrameHeader, &[u8])> = starts
        .windows(2)
        .map(|w| {
            let raw = bytes[w[0]..].first_chunk().unwrap();
            (FrameHeader::decode(raw, &Limits::default()).unwrap(), &bytes[w[0] + FRAME_HEADER_BYTES..w[1]])
        })
        .collect();
    let rebuild = |order: &[usize]| {
        order.iter().fold(Raw::new(), |raw, n| {
            let (header, payload) = frames[*n];
            raw.frame(header.frame_type, header.flags, header.channel, payload)
        })
    };
    assert!(decode_in(&rebuild(&[0, 1, 2, 3, 4, 5, 6]).bytes, Limits::default(), 99).is_ok());
    assert_eq!(rebuild(&[0, 2, 1, 3, 4, 5, 6]).reason(), Reason::ManifestMismatch(5));
    assert_eq!(rebuild(&[0, 1, 2, 3, 5, 6]).reason(), Reason::ManifestMismatch(5));
    assert_eq!(rebuild(&[0, 1, 1, 2, 3, 4, 5, 6]).reason(), Reason::ManifestMismatch(5));
}

#[test]
fn a_digest_tells_orders_apart() {
    let header =
        |n: u32| FrameHeader { frame_type: 2, flags: 0, channel: 1, sequence: n, length: n, payload_crc: n * 7 };
    let digest = |order: &[u32]| {
        let mut d = SectionDigest::new();
        order.iter().for_each(|n| d.add(&header(*n)));
        d.hash()
    };
    let all = [digest(&[]), digest(&[0]), digest(&[1, 2, 3]), digest(&[1, 3, 2]), digest(&[1, 2]), digest(&[2, 3])];
    for (i, a) in all.iter().enumerate() {
        assert!(all[i + 1..].iter().all(|b| a != b));
    }
}

#[test]
fn each_rule_is_broken_once() {
    use SectionKind::{Caller, DeviceState, Memory};
    let digest = SectionDigest::new().encode();
    let round = |round, is_final, pages| RoundEnd { round, is_final, pages, bytes: 0 }.encode();
    let mut zero_pages = Vec::new();
    let run = PagesRun { gpa: 0, len: 8192, kind: RunKind::Zero };
    encode_pages_table(4096, &[run], &Limits::default(), &mut zero_pages).unwrap();
    let raw = Raw::new;

    assert_eq!(raw().frame(99, 0, 0, b"").reason(), Reason::UnknownType(99));
    assert_eq!(raw().frame(0, 0, 0, b"").reason(), Reason::UnknownType(0));
    assert_eq!(raw().frame(99, OPTIONAL, 4, b"").reason(), Reason::ChannelNotOpen(4));
    assert_eq!(raw().frame(99, 2, 0, b"").reason(), Reason::FrameFlags(2));
    assert_eq!(raw().frame(7, OPTIONAL, 0, b"x").reason(), Reason::FrameFlags(1));
    assert_eq!(raw().frame(7, 0, 1, b"x").reason(), Reason::ChannelWrong(1));
    assert_eq!(raw().frame(7, 0, 0, b"").reason(), Reason::PayloadLength { frame_type: 7, length: 0 });
    assert_eq!(raw().frame(2, 0, 0, b"x").reason(), Reason::ChannelWrong(0));
    assert_eq!(raw().frame(2, 0, 1, b"x").reason(), Reason::ChannelNotOpen(1));
    assert_eq!(raw().begin(1, DeviceState).begin(1, Memory).reason(), Reason::ChannelUsed(1));
    assert_eq!(
        raw().begin(1, DeviceState).frame(2, 0, 1, b"").reason(),
        Reason::PayloadLength { frame_type: 2, length: 0 }
    );
    assert_eq!(
        raw().begin(1, Memory).frame(2, 0, 1, b"x").reason(),
        Reason::NotInSection { frame_type: 2, channel: 1 }
    );
    assert_eq!(
        raw().begin(1, Caller).frame(3, 0, 1, b"x").reason(),
        Reason::NotInSection { frame_type: 3, channel: 1 }
    );
    assert_eq!(raw().begin(1, Caller).frame(6, 0, 1, &digest).reason(), Reason::ManifestMismatch(1));
    assert_eq!(
        raw().begin(1, Caller).frame(6, 0, 1, b"x").reason(),
        Reason::PayloadLength { frame_type: 6, length: 1 }
    );
    assert_eq!(raw().begin(1, Caller).frame(8, 0, 0, &digest).reason(), Reason::SectionsOpen(1));
    assert_eq!(raw().frame(8, 0, 0, &[0; 32]).reason(), Reason::EndMismatch);
    assert_eq!(raw().frame(8, 0, 0, &digest).frame(7, 0, 0, b"x").reason(), Reason::AfterEnd);
    assert_eq!(raw().begin(1, Memory).frame(6, 0, 1, &digest).reason(), Reason::RoundOrder(1));
    assert_eq!(raw().begin(1, Memory).frame(5, 0, 1, &round(1, false, 0)).reason(), Reason::RoundOrder(1));
    assert_eq!(raw().begin(1, Memory).frame(5, 0, 1, &round(0, false, 1)).reason(), Reason::RoundMismatch(1));
    let paged = || raw().begin(1, Memory).frame(3, 0, 1, &zero_pages);
    assert_eq!(paged().frame(5, 0, 1, &round(0, false, 1)).reason(), Reason::RoundMismatch(1));
    let finished = || paged().frame(5, 0, 1, &round(0, true, 2));
    assert_eq!(finished().reason(), Reason::Incomplete);
    assert_eq!(finished().frame(3, 0, 1, &zero_pages).reason(), Reason::RoundOrder(1));
    assert_eq!(finished().frame(5, 0, 1, &round(1, true, 0)).reason(), Reason::RoundOrder(1));
    let mut flagged = round(0, true, 0);
    flagged[4] = 2;
    assert_eq!(raw().begin(1, Memory).frame(5, 0, 1, &flagged).reason(), Reason::PayloadReserved);

    let mut begin = Vec::new();
    section(Caller).encode(&Limits::default(), &mut begin).unwrap();
    let changed = |at: usize, value: u8| {
        let mut payload = begin.clone();
        payload[at] = value;
        payload
    };
    assert_eq!(raw().frame(1, 0, 0, &begin).reason(), Reason::ChannelWrong(0));
    for kind in [0, 5, 6, 7, 200] {
        assert_eq!(raw().frame(1, 0, 1, &changed(0, kind)).reason(), Reason::SectionKind(kind));
    }
    assert_eq!(raw().frame(1, 0, 1, &changed(1, 1)).reason(), Reason::PayloadReserved);
    assert_eq!(raw().frame(1, 0, 1, &changed(2, 5)).reason(), Reason::PayloadLength { frame_type: 1, length: 44 });
    assert_eq!(raw().frame(1, 0, 1, &changed(3, 1)).reason(), Reason::NameTooLong { length: 260, limit: 255 });
    assert_eq!(raw().frame(1, 0, 1, &changed(40, 0xff)).reason(), Reason::Name);
    assert_eq!(raw().frame(1, 0, 1, &begin[..39]).reason(), Reason::PayloadLength { frame_type: 1, length: 39 });
}

#[test]
fn the_stream_header() {
    let good = StreamHeader::new([5; 16]).encode();
    let with = |at: usize, bytes: &[u8]| {
        let mut raw = good;
        raw[at..at + bytes.len()].copy_from_slice(bytes);
        let crc = crc32c(0, &raw[..36]);
        raw[36..].copy_from_slice(&crc.to_le_bytes());
        raw
    };
    assert_eq!(reason(&good), Reason::Incomplete);
    assert_eq!(reason(&with(0, b"QEMU")), Reason::Magic);
    assert_eq!(reason(&with(8, &[0, 0])), Reason::Version { major: 0, minor: 0 });
    assert_eq!(reason(&with(8, &[2, 0, 9])), Reason::Version { major: 2, minor: 9 });
    assert_eq!(reason(&with(10, &[200])), Reason::Incomplete, "any minor version is read");
    assert_eq!(reason(&with(12, &[1])), Reason::HeaderReserved);
    assert_eq!(reason(&with(32, &[1])), Reason::HeaderReserved);
    assert!(Encoder::new(StreamHeader { major: 2, minor: 0, session: [0; 16] }, Limits::default()).is_err());
}

#[test]
fn an_optional_section_of_an_unknown_kind_is_passed_over_and_still_checked() {
    let mut payload = [77u8; 60];
    payload[1] = 255;
    let stream = |last: &[u8]| {
        let mut digest = SectionDigest::new();
        let mut total = SectionDigest::new();
        let mut raw = Raw::new();
        for (frame_type, flags, payload) in
            [(1, OPTIONAL, &payload[..]), (4, 0, b"a"), (2, 0, b"b"), (500, OPTIONAL, b"")]
        {
            let at = raw.bytes.len();
            raw = raw.frame(frame_type, flags, 6, payload);
            let header = FrameHeader::decode(raw.bytes[at..].first_chunk().unwrap(), &Limits::default()).unwrap();
            digest.add(&header);
            total.add(&header);
        }
        let mut manifest = digest.encode();
        manifest[31] ^= last[0];
        let at = raw.bytes.len();
        raw = raw.frame(6, 0, 6, &manifest);
        total.add(&FrameHeader::decode(raw.bytes[at..].first_chunk().unwrap(), &Limits::default()).unwrap());
        raw.frame(8, 0, 0, &total.encode()).bytes
    };
    assert_eq!(decode_in(&stream(&[0]), Limits::default(), 7).unwrap().len(), 7);
    assert_eq!(reason(&stream(&[1])), Reason::ManifestMismatch(6));
}

#[test]
fn limits_hold_before_anything_is_kept() {
    let header = FrameHeader { frame_type: 7, flags: 0, channel: 0, sequence: 0, length: u32::MAX, payload_crc: 0 };
    let bytes = [&StreamHeader::new([0; 16]).encode()[..], &header.encode()].concat();
    assert_eq!(reason(&bytes), Reason::FrameTooLarge { length: u32::MAX, limit: 16 << 20 });

    let limits = Limits { max_sections: 2, max_name_bytes: 3, max_frame_bytes: 100, max_runs: 1, ..Limits::default() };
    let three = (1..4).fold(Raw::new(), |raw, n| {
        let mut payload = Vec::new();
        SectionBegin { name: "abc", ..section(SectionKind::Caller) }.encode(&limits, &mut payload).unwrap();
        raw.frame(1, 0, n, &payload)
    });
    assert_eq!(decode_in(&three.bytes, limits, 5).unwrap_err().reason, Reason::TooManySections(2));
    let named = Raw::new().begin(1, SectionKind::Caller);
    assert_eq!(decode_in(&named.bytes, limits, 5).unwrap_err().reason, Reason::NameTooLong { length: 4, limit: 3 });

    let mut encoder = Encoder::new(StreamHeader::new([0; 16]), limits).unwrap();
    let mut out = Vec::new();
    let error = encoder.opaque(FrameType::Dialogue, 0, &[1; 101], &mut out).unwrap_err();
    assert_eq!(error.reason, Reason::FrameTooLarge { length: 101, limit: 100 });
    assert!(encoder.begin_section(1, &section(SectionKind::Caller), &mut out).is_err());
    let run = |gpa| PagesRun { gpa, len: 512, kind: RunKind::Zero };
    let error = encoder.pages_table(512, &[run(0), run(512)], &mut out).unwrap_err();
    assert_eq!(error.reason, Reason::Pages(PagesFault::RunCount(2)));
    assert!(out.is_empty() && encoder.rules().next_sequence() == Some(0), "a refusal changes nothing");
}

#[test]
fn a_dialogue_may_follow_the_end_of_a_connection() {
    let mut encoder = Encoder::new(StreamHeader::new([0; 16]), Limits::connection()).unwrap();
    let mut out = encoder.stream_header().to_vec();
    encoder.end(&mut out).unwrap();
    encoder.opaque(FrameType::Dialogue, 0, b"commit", &mut out).unwrap();
    assert!(encoder.end(&mut out).is_err());
    assert_eq!(decode_in(&out, Limits::connection(), 10).unwrap().len(), 3);
    assert_eq!(reason(&out), Reason::AfterEnd);
}

#[derive(Clone, Debug)]
enum Step {
    Dialogue(Vec<u8>),
    Chunk(Vec<u8>),
    Data(Vec<u8>),
    Optional(u16, Vec<u8>),
    Pages(Vec<(u64, u32, bool)>),
    Round,
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = |from| prop::collection::vec(any::<u8>(), from..200);
    prop_oneof![
        bytes(1).prop_map(Step::Dialogue),
        bytes(1).prop_map(Step::Chunk),
        bytes(0).prop_map(Step::Data),
        (9u16.., bytes(0)).prop_map(|(t, b)| Step::Optional(t, b)),
        prop::collection::vec((0u64..5, 1u32..4, any::<bool>()), 1..5).prop_map(Step::Pages),
        Just(Step::Round),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_written_is_read_in_any_cuts(steps in prop::collection::vec(step(), 0..20), cut in 1usize..400) {
        let mut encoder = Encoder::new(StreamHeader::new([8; 16]), Limits::default()).unwrap();
        let mut out = encoder.stream_header().to_vec();
        let mut expected: Vec<Step> = Vec::new();
        for (channel, kind) in [(1, SectionKind::Memory), (2, SectionKind::DeviceState), (3, SectionKind::Exposure)] {
            encoder.begin_section(channel, &section(kind), &mut out).unwrap();
        }
        for step in &steps {
            match step {
                Step::Dialogue(b) => encoder.opaque(FrameType::Dialogue, 0, b, &mut out).unwrap(),
                Step::Chunk(b) => encoder.opaque(FrameType::StateChunk, 2, b, &mut out).unwrap(),
                Step::Data(b) => encoder.opaque(FrameType::SectionData, 3, b, &mut out).unwrap(),
                Step::Optional(t, b) => encoder.optional(*t, 3, b, &mut out).unwrap(),
                Step::Pages(parts) => {
                    let mut gpa = 0;
                    let runs: Vec<PagesRun> = parts.iter().map(|(hole, pages, zero)| {
                        gpa += hole * 512;
                        let kind = if *zero { RunKind::Zero } else { RunKind::Data };
                        let run = PagesRun { gpa, len: pages * 512, kind };
                        gpa += u64::from(run.len);
                        run
                    }).collect();
                    let mut payload = Vec::new();
                    let summary = encoder.pages_table(512, &runs, &mut payload).unwrap();
                    payload.extend((0..summary.data_bytes).map(|n| (n / 3) as u8));
                    let raw = encoder.pages_header(1, &summary, crc32c(0, &payload)).unwrap();
                    out.extend(raw);
                    out.extend(payload);
                }
                Step::Round => encoder.round_end(1, false, &mut out).unwrap(),
            }
            expected.push(step.clone());
        }
        encoder.round_end(1, true, &mut out).unwrap();
        (1..4).for_each(|channel| encoder.manifest(channel, &mut out).unwrap());
        encoder.end(&mut out).unwrap();

        let mut read = Vec::new();
        let mut decoder = Decoder::new(Limits::default());
        let mut on_event = |event: Event<'_>| match event {
            Event::Dialogue(b) => read.push(Step::Dialogue(b.to_vec())),
            Event::StateChunk { channel: 2, data } => read.push(Step::Chunk(data.to_vec())),
            Event::SectionData { channel: 3, data } => read.push(Step::Data(data.to_vec())),
            Event::Skipped { frame_type, length, .. } => read.push(Step::Optional(frame_type, vec![0; length as usize])),
            Event::RoundEnd { round, .. } if !round.is_final => read.push(Step::Round),
            Event::Pages { pages, .. } => {
                let (mut parts, mut gpa, mut n) = (Vec::new(), 0, 0u64);
                pages.each(|run, data| {
                    parts.push(((run.gpa - gpa) / 512, run.len / 512, data.is_none()));
                    gpa = run.gpa + u64::from(run.len);
                    for byte in data.unwrap_or(&[]) {
                        assert_eq!(*byte, (n / 3) as u8);
                        n += 1;
                    }
                });
                read.push(Step::Pages(parts));
            }
            _ => {}
        };
        for piece in out.chunks(cut) {
            decoder.push(piece, &mut on_event).unwrap();
        }
        decoder.finish().unwrap();
        for step in &mut expected {
            if let Step::Optional(_, bytes) = step {
                bytes.fill(0);
            }
        }
        prop_assert_eq!(format!("{read:?}"), format!("{expected:?}"));
    }

    #[test]
    fn noise_never_panics_and_is_never_a_stream(noise in prop::collection::vec(any::<u8>(), 0..300), cut in 1usize..50) {
        prop_assert!(decode_in(&noise, Limits::default(), cut).is_err());
        let after_header = [&StreamHeader::new([0; 16]).encode()[..], &noise].concat();
        prop_assert!(decode_in(&after_header, Limits::default(), cut).is_err());
        // With right checksums, so that the payload is reached.
        for frame_type in 1..9 {
            for kind in [SectionKind::Memory, SectionKind::Caller] {
                let channel = if frame_type < 7 { 1 } else { 0 };
                let raw = Raw::new().begin(1, kind).frame(frame_type, 0, channel, &noise);
                prop_assert!(decode_in(&raw.bytes, Limits::default(), cut).is_err());
            }
        }
    }
}
