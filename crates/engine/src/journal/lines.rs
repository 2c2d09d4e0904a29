//! The text of a journal.

use std::io;

use towline_core::crc::crc32c;

use crate::fence::Record;

/// A complete line that can't be believed.
pub(super) struct Damage {
    /// The records before it.
    pub before: Vec<Record>,
    /// Its index.
    pub record: usize,
    /// What is wrong with it.
    pub what: String,
}

pub(super) fn encode(record: &Record) -> io::Result<Vec<u8>> {
    let json = serde_json::to_string(record)?;
    Ok(format!("{:08x} {json}\n", crc32c(0, json.as_bytes())).into_bytes())
}

fn decode(line: &[u8]) -> Result<Record, String> {
    let (crc, json) = line.split_at_checked(9).ok_or("it is too short")?;
    let digits = crc.strip_suffix(b" ").and_then(|d| std::str::from_utf8(d).ok()).ok_or("it has no checksum")?;
    let expected = u32::from_str_radix(digits, 16).map_err(|_| "it has no checksum")?;
    let found = crc32c(0, json);
    if found != expected {
        return Err(format!("its CRC32C is {found:08x}, not {expected:08x}"));
    }
    serde_json::from_slice(json).map_err(|e| format!("it is no record: {e}"))
}

/// What a journal's text holds.
pub(super) struct Parsed {
    /// All records.
    pub records: Vec<Record>,
    /// Bytes of whole lines; what follows was torn by a crash.
    pub good_bytes: u64,
    /// The last line lacks nothing but its line feed. Nobody acted on it, but taking it as written is safe on either
    /// side, and dropping it would not be if the file was damaged later instead of torn.
    pub lacks_line_feed: bool,
}

/// All records. What follows the last line feed was torn by a crash.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, Damage> {
    let mut records = Vec::new();
    let mut good_bytes = 0_u64;
    let mut rest = bytes;
    while let Some(end) = rest.iter().position(|b| *b == b'\n') {
        let (line, after) = rest.split_at(end);
        match decode(line) {
            Ok(record) => records.push(record),
            Err(what) => return Err(Damage { record: records.len(), before: records, what }),
        }
        good_bytes += end as u64 + 1;
        rest = after.get(1..).unwrap_or_default();
    }
    if rest.split_last().is_some_and(|(_, line)| decode(line).is_ok()) {
        return Err(Damage { record: records.len(), before: records, what: "its line feed is damaged".into() });
    }
    let lacks_line_feed = match decode(rest) {
        Ok(record) => {
            records.push(record);
            good_bytes += rest.len() as u64;
            true
        }
        Err(_) => false,
    };
    Ok(Parsed { records, good_bytes, lacks_line_feed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fence::Role;
    use uuid::Uuid;

    fn records() -> Vec<Record> {
        vec![
            Record::Opened {
                session: Uuid::nil(),
                role: Role::Source,
                functions: vec!["f\n\"x".into()],
                epoch: 9,
                file: None,
            },
            Record::Intent { epoch: 9 },
            Record::Released,
        ]
    }

    fn text() -> Vec<u8> {
        records().iter().flat_map(|r| encode(r).unwrap()).collect()
    }

    #[test]
    fn every_truncation_gives_a_prefix() {
        let bytes = text();
        let ends: Vec<usize> = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1).collect();
        for cut in 0..=bytes.len() {
            let Ok(parsed) = parse(&bytes[..cut]) else { panic!("cut at {cut} is taken for damage") };
            // A record that lacks only its line feed counts.
            let whole = ends.iter().filter(|e| **e <= cut + 1).count();
            assert_eq!(parsed.records, records()[..whole], "cut at {cut}");
            assert_eq!(parsed.lacks_line_feed, ends.contains(&(cut + 1)));
        }
    }

    #[test]
    fn every_bit_flip_is_noticed() {
        let bytes = text();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(parsed) = parse(&flipped) {
                // Digits of a checksum in the other case mean the same.
                assert_eq!(parsed.records, records(), "bit {bit}");
            }
        }
    }
}
