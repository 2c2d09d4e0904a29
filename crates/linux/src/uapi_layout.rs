//! `tests/uapi-layout.txt`, read: numbers, sizes and offsets that a C compiler computed from the kernel's headers.

const LAYOUT: &str = include_str!("../tests/uapi-layout.txt");

fn after<'a>(start: &str) -> &'a str {
    let mut found = LAYOUT.lines().filter_map(|line| line.trim_start().strip_prefix(start));
    found.next().unwrap_or_else(|| panic!("uapi-layout.txt has no {start:?}")).trim()
}

/// The value of a constant: `NAME value`, hexadecimal with 0x or decimal.
pub(crate) fn number(name: &str) -> u64 {
    let value = after(&format!("{name} "));
    match value.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).unwrap(),
        None => value.parse().unwrap(),
    }
}

/// `sizeof(struct name) = size`.
pub(crate) fn size(name: &str) -> usize {
    let rest = after(&format!("sizeof(struct {name} "));
    rest.rsplit_once('=').unwrap().1.trim().parse().unwrap()
}

/// `structure.field @offset (size)`.
pub(crate) fn field(name: &str) -> (usize, usize) {
    let (offset, size) = after(&format!("{name} @")).split_once(" (").unwrap();
    (offset.parse().unwrap(), size.trim_end_matches(')').parse().unwrap())
}
