//! PAGES frames: tables that are refused, and the path that puts data straight into memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use towline_core::crc::crc32c;
use towline_core::stream::{
    Decoder, Disposition, Encoder, FRAME_HEADER_BYTES, FrameRules, FrameType, Limits, PAGES_PREFIX_BYTES, PagesFault,
    PagesRun, RunKind, SectionBegin, SectionKind, StreamError, StreamErrorReason as Reason, StreamHeader,
    decode_pages_prefix, decode_pages_table, encode_pages_table,
};

const SECTION: SectionBegin<'static> =
    SectionBegin { kind: SectionKind::Memory, function: [0; 16], format: [0; 16], format_version: 0, name: "" };

fn decode(bytes: &[u8]) -> Result<(), StreamError> {
    let mut decoder = Decoder::new(Limits::default());
    decoder.push(bytes, &mut |_| {})?;
    decoder.finish()
}

#[test]
fn page_tables_that_cannot_be() {
    let limits = Limits::default();
    let data = |gpa, len| PagesRun { gpa, len, kind: RunKind::Data };
    let fault = |page, runs: &[PagesRun]| match encode_pages_table(page, runs, &limits, &mut Vec::new()).unwrap_err() {
        Reason::Pages(fault) => fault,
        other => panic!("{other:?}"),
    };
    assert_eq!(fault(4096, &[]), PagesFault::RunCount(0));
    assert_eq!(fault(4095, &[data(0, 4096)]), PagesFault::PageSize(4095));
    assert_eq!(fault(0, &[data(0, 4096)]), PagesFault::PageSize(0));
    assert_eq!(fault(4096, &[data(0, 0)]), PagesFault::Empty);
    assert_eq!(fault(4096, &[data(0, 4097)]), PagesFault::Misaligned(0));
    assert_eq!(fault(4096, &[data(512, 4096)]), PagesFault::Misaligned(512));
    assert_eq!(fault(4096, &[data(0u64.wrapping_sub(4096), 4096)]), PagesFault::Overflow(0u64.wrapping_sub(4096)));
    assert_eq!(fault(4096, &[data(0, 8192), data(4096, 4096)]), PagesFault::Overlap(4096));
    assert_eq!(fault(4096, &[data(8192, 4096), data(0, 4096)]), PagesFault::Overlap(0));

    // The same rules when reading, and what only a reader meets.
    let mut table = Vec::new();
    encode_pages_table(4096, &[data(0, 4096), data(8192, 4096)], &limits, &mut table).unwrap();
    let mut runs = Vec::new();
    let mut read = |table: &[u8], payload: u32| decode_pages_table(table, payload, &limits, &mut runs);
    assert_eq!(read(&table, 40 + 8192).unwrap().pages, 2);
    assert_eq!(read(&table, 40 + 8191), Err(Reason::Pages(PagesFault::DataLength)));
    assert_eq!(read(&table, 40 + 8193), Err(Reason::Pages(PagesFault::DataLength)));
    assert_eq!(read(&table[..39], 40 + 8192), Err(Reason::Pages(PagesFault::Table)));
    assert_eq!(read(&table, 39), Err(Reason::Pages(PagesFault::Table)));
    assert_eq!(read(&table[..7], 7), Err(Reason::Pages(PagesFault::Table)));
    let mut changed = table.clone();
    changed[20] = 2;
    assert_eq!(read(&changed, 40 + 8192), Err(Reason::Pages(PagesFault::Kind(2))));
    let mut changed = table.clone();
    changed[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(read(&changed, 40 + 8192), Err(Reason::Pages(PagesFault::RunCount(u32::MAX))));
    let mut changed = table;
    changed[24] = 1;
    assert_eq!(read(&changed, 40 + 8192), Err(Reason::Pages(PagesFault::Misaligned(8193))));
}

/// The fast path, as an engine uses it, beside the decoder.
#[test]
fn pages_that_go_straight_to_memory_obey_the_same_rules() {
    let mut encoder = Encoder::new(StreamHeader::new([0; 16]), Limits::default()).unwrap();
    let mut out = encoder.stream_header().to_vec();
    encoder.begin_section(1, &SECTION, &mut out).unwrap();
    let run = |gpa, kind| PagesRun { gpa, len: 512, kind };
    let mut table = Vec::new();
    let summary = encoder
        .pages_table(512, &[run(0, RunKind::Data), run(512, RunKind::Zero), run(1024, RunKind::Data)], &mut table)
        .unwrap();
    let data = [[1u8; 512], [2; 512]].concat();
    out.extend(encoder.pages_header(1, &summary, crc32c(crc32c(0, &table), &data)).unwrap());
    out.extend_from_slice(&table);
    out.extend_from_slice(&data);
    encoder.round_end(1, true, &mut out).unwrap();
    encoder.manifest(1, &mut out).unwrap();
    encoder.end(&mut out).unwrap();
    assert!(decode(&out).is_ok());

    let receive = |out: &[u8]| -> Result<(), StreamError> {
        let mut rules = FrameRules::new(Limits::default());
        let (mut at, mut runs) = (40, Vec::new());
        while at < out.len() {
            let (header, disposition) = rules.header(out[at..].first_chunk().unwrap())?;
            let payload = &out[at + FRAME_HEADER_BYTES..][..header.length as usize];
            if disposition == Disposition::Known(FrameType::Pages) {
                let locate = |rules: &FrameRules, reason| rules.locate(reason);
                let first = payload.first_chunk::<PAGES_PREFIX_BYTES>().unwrap();
                let prefix =
                    decode_pages_prefix(first, header.length, rules.limits()).map_err(|r| locate(&rules, r))?;
                let (table, data) = payload.split_at(prefix.table_bytes);
                let summary = decode_pages_table(table, header.length, rules.limits(), &mut runs)
                    .map_err(|r| locate(&rules, r))?;
                let crc = data.chunks(100).fold(crc32c(0, table), crc32c);
                rules.pages_received(&header, &summary, crc)?;
            } else {
                rules.payload(&header, payload, &mut runs)?;
            }
            at += FRAME_HEADER_BYTES + payload.len();
        }
        rules.finish()
    };
    assert_eq!(receive(&out), Ok(()));
    for bit in (40 * 8..out.len() * 8).step_by(3) {
        let mut damaged = out.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        // A length that is damaged is refused with its header, before the payload is looked at. The reasons may differ: the
        // table is read before the checksum of the data is known.
        let (fast, slow) = (receive(&damaged).unwrap_err(), decode(&damaged).unwrap_err());
        assert_eq!((fast.offset, fast.sequence), (slow.offset, slow.sequence), "bit {bit}");
    }
}
