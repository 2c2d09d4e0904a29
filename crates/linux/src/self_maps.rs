//! What is mapped into this process, from `/proc/self/maps` and `/proc/self/smaps` (`proc(5)`).

use std::fs::File;
use std::io::{self, BufRead, BufReader};

/// One mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub start: u64,
    pub end: u64,
    pub readable: bool,
    pub writable: bool,
    /// What the processor's page tables are made of for it, in bytes; of huge pages only where they are those of hugetlbfs.
    pub page_size: Option<u64>,
}

/// `start-end perms …`
fn head(line: &str) -> Option<Mapped> {
    let (addresses, rest) = line.split_once(' ')?;
    let (start, end) = addresses.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    let perms = rest.as_bytes();
    let (readable, writable) = (perms.first() == Some(&b'r'), perms.get(1) == Some(&b'w'));
    Some(Mapped { start, end, readable, writable, page_size: None })
}

/// The mappings that `wanted` touches, ascending; with their page sizes where `sizes`, which takes the kernel much longer.
pub(crate) fn mappings(wanted: std::ops::Range<u64>, sizes: bool) -> io::Result<Vec<Mapped>> {
    let file = File::open(if sizes { "/proc/self/smaps" } else { "/proc/self/maps" })?;
    let mut found: Vec<Mapped> = Vec::new();
    let mut of_last = false;
    for line in BufReader::new(file).lines() {
        let line = line?;
        if let Some(size) = line.strip_prefix("KernelPageSize:") {
            if let Some(last) = found.last_mut().filter(|_| of_last) {
                last.page_size =
                    size.trim().strip_suffix(" kB").and_then(|kb| kb.parse::<u64>().ok()).map(|kb| kb << 10);
            }
        } else if let Some(mapped) = head(&line) {
            if mapped.start >= wanted.end {
                break;
            }
            of_last = mapped.end > wanted.start;
            if of_last {
                found.push(mapped);
            }
        }
    }
    Ok(found)
}

/// Whether every byte of `wanted` is mapped, readable, and writable where `write`.
pub(crate) fn is_mapped(wanted: std::ops::Range<u64>, write: bool) -> io::Result<bool> {
    let mut at = wanted.start;
    for mapped in mappings(wanted.clone(), false)? {
        if mapped.start > at || !mapped.readable || (write && !mapped.writable) {
            return Ok(false);
        }
        at = mapped.end;
    }
    Ok(at >= wanted.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mapped_here_is_told_apart_from_what_is_not() {
        let bytes = vec![1_u8; 3 << 20];
        let start = bytes.as_ptr() as u64;
        let range = start..start + bytes.len() as u64;
        assert!(is_mapped(range.clone(), true).unwrap());
        assert!(!is_mapped(0..4096, false).unwrap());
        assert!(!is_mapped(start..1 << 63, false).unwrap());
        // This program's own code may be read and not written.
        let code = what_is_mapped_here_is_told_apart_from_what_is_not as *const () as u64;
        assert!(is_mapped(code..code + 1, false).unwrap());
        assert!(!is_mapped(code..code + 1, true).unwrap());
        let sizes = mappings(range, true).unwrap();
        assert!(sizes.iter().all(|m| m.page_size == Some(rustix::param::page_size() as u64)), "{sizes:?}");
    }

    #[test]
    fn lines_are_read() {
        let line = "7f01a000-7f01b000 rw-s 00000000 00:01 1031  /memfd:guest (deleted)";
        let want = Mapped { start: 0x7f01_a000, end: 0x7f01_b000, readable: true, writable: true, page_size: None };
        assert_eq!(head(line), Some(want));
        assert_eq!(head("Size:                  4 kB"), None);
        assert_eq!(head(""), None);
    }
}
