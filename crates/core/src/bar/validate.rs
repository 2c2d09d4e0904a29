//! Checks the bytes of a filter that somebody else may have written.

use alloc::vec::Vec;

use super::error::LayoutError;
use super::layout::{
    CLASS_BYTES, Class, GRANULE_SHIFT, HEADER_BYTES, Kind, MAGIC, MAX_PALETTE, MIXED, MIXED_BYTES, NO_SHADOW,
    OP_SHADOW, PAGE_BYTES, PAGE_SHIFT, RULE_BYTES, RuleRecord, VERSION, at, get_u32, get_u64,
};
use super::{MAX_BAR_BYTES, MAX_FILTER_BYTES, MAX_RULES, MAX_SHADOW_BYTES};

/// Where a section begins and how many records it has. Checked to lie inside of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Section {
    pub at: usize,
    pub count: usize,
}

/// The header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub bar_bytes: u64,
    pub visible_bytes: u64,
    pub pages: Section,
    pub mixed: Section,
    pub classes: Section,
    pub read_rules: Section,
    pub write_rules: Section,
    pub shadow_bytes: usize,
    pub rules: u32,
}

pub(super) fn validate(bytes: &[u8]) -> Result<Header, LayoutError> {
    let header = header(bytes)?;
    classes(bytes, &header)?;
    mixed(bytes, &header)?;
    pages(bytes, &header)?;
    let reads = rules(bytes, &header, header.read_rules)?;
    let writes = rules(bytes, &header, header.write_rules)?;
    // What is about both directions by its nature must be the same in both tables.
    let shared = |r: &&RuleRecord| r.kind == Kind::WriteOneToClear as u32 || r.kind == Kind::Hide as u32;
    if !reads.iter().filter(shared).eq(writes.iter().filter(shared)) {
        return Err(LayoutError::Rule(0));
    }
    Ok(header)
}

fn header(bytes: &[u8]) -> Result<Header, LayoutError> {
    let u32_at = |at: usize| get_u32(bytes, at).ok_or(LayoutError::Length);
    let u64_at = |at: usize| get_u64(bytes, at).ok_or(LayoutError::Length);
    if bytes.len() < HEADER_BYTES {
        return Err(LayoutError::Length);
    }
    if !bytes.starts_with(&MAGIC) {
        return Err(LayoutError::Magic);
    }
    match u32_at(at::VERSION)? {
        VERSION => {}
        other => return Err(LayoutError::Version(other)),
    }
    for (field, expected) in
        [(at::HEADER, HEADER_BYTES as u32), (at::PAGE_SHIFT, PAGE_SHIFT), (at::GRANULE_SHIFT, GRANULE_SHIFT)]
    {
        if u32_at(field)? != expected {
            return Err(LayoutError::Header(field));
        }
    }
    if u64_at(at::ZERO)? != 0 {
        return Err(LayoutError::Header(at::ZERO));
    }
    let bar_bytes = u64_at(at::BAR)?;
    if bar_bytes == 0 || bar_bytes > MAX_BAR_BYTES {
        return Err(LayoutError::Cap(at::BAR));
    }
    let visible_bytes = u64_at(at::VISIBLE)?;
    if visible_bytes == 0 || visible_bytes > bar_bytes {
        return Err(LayoutError::Header(at::VISIBLE));
    }
    let total = u64_at(at::TOTAL)?;
    if total > MAX_FILTER_BYTES {
        return Err(LayoutError::Cap(at::TOTAL));
    }
    if total != bytes.len() as u64 {
        return Err(LayoutError::Length);
    }
    let mut end = HEADER_BYTES as u64;
    let mut section = |field: usize, size: usize, least: u64, most: u64| {
        let count = u64_at(field + 8)?;
        if count < least || count > most {
            return Err(LayoutError::Cap(field + 8));
        }
        if u64_at(field)? != end {
            return Err(LayoutError::Header(field));
        }
        let start = end as usize;
        let used = end + count * size as u64; // count is capped well below 2^32
        end = used.next_multiple_of(8);
        if end > total {
            return Err(LayoutError::Length);
        }
        // `end` is at most the length of the slice, so this fits.
        if bytes.get(used as usize..end as usize).is_none_or(|pad| pad.iter().any(|b| *b != 0)) {
            return Err(LayoutError::Header(field));
        }
        Ok(Section { at: start, count: count as usize })
    };
    let page_count = visible_bytes.div_ceil(PAGE_BYTES);
    let many = MAX_FILTER_BYTES / 8;
    let pages = section(at::PAGES, 4, page_count, page_count)?;
    let mixed = section(at::MIXED, MIXED_BYTES, 0, page_count)?;
    let classes = section(at::CLASSES, CLASS_BYTES, 1, many)?;
    let read_rules = section(at::READ_RULES, RULE_BYTES, 0, MAX_RULES as u64)?;
    let write_rules = section(at::WRITE_RULES, RULE_BYTES, 0, MAX_RULES as u64)?;
    if end != total {
        return Err(LayoutError::Length);
    }
    let shadow_bytes = u32_at(at::SHADOW)?;
    if u64::from(shadow_bytes) > MAX_SHADOW_BYTES {
        return Err(LayoutError::Cap(at::SHADOW));
    }
    let rules = u32_at(at::RULES)?;
    if rules as usize > MAX_RULES {
        return Err(LayoutError::Cap(at::RULES));
    }
    Ok(Header {
        bar_bytes,
        visible_bytes,
        pages,
        mixed,
        classes,
        read_rules,
        write_rules,
        shadow_bytes: shadow_bytes as usize,
        rules,
    })
}

fn classes(bytes: &[u8], header: &Header) -> Result<(), LayoutError> {
    for n in 0..header.classes.count {
        let class = bytes.get(header.classes.at + n * CLASS_BYTES..).and_then(Class::get);
        let class = class.ok_or(LayoutError::Length)?;
        let known = class.read_ops.iter().chain(&class.write_ops).all(|op| *op <= OP_SHADOW);
        // A shadow is one for reads and writes; entry 0 means "pass" to whoever looks no further.
        let paired = (0..4).all(|i| (class.read_ops[i] == OP_SHADOW) == (class.write_ops[i] == OP_SHADOW));
        if !known || !paired || (n == 0 && class != Class::PASS) {
            return Err(LayoutError::Class(n as u64));
        }
    }
    Ok(())
}

fn mixed(bytes: &[u8], header: &Header) -> Result<(), LayoutError> {
    for n in 0..header.mixed.count {
        let start = header.mixed.at + n * MIXED_BYTES;
        let record = bytes.get(start..start + MIXED_BYTES).ok_or(LayoutError::Length)?;
        let (base, codes) = (get_u32(record, 0), get_u32(record, 4));
        let (Some(base), Some(codes)) = (base, codes) else { return Err(LayoutError::Length) };
        let (base, codes) = (base as usize, codes as usize);
        let inside = base < header.classes.count && codes <= header.classes.count - base;
        let used = record.get(8..).unwrap_or(&[]).iter().fold(0, |most, code| most.max(*code));
        if !inside || codes == 0 || codes > MAX_PALETTE || usize::from(used) >= codes {
            return Err(LayoutError::MixedPage(n as u64));
        }
    }
    Ok(())
}

fn pages(bytes: &[u8], header: &Header) -> Result<(), LayoutError> {
    let table = bytes.get(header.pages.at..header.pages.at + 4 * header.pages.count).ok_or(LayoutError::Length)?;
    for (n, entry) in table.as_chunks::<4>().0.iter().enumerate() {
        let entry = u32::from_le_bytes(*entry);
        let limit = if entry & MIXED == 0 { header.classes.count } else { header.mixed.count };
        if (entry & !MIXED) as usize >= limit {
            return Err(LayoutError::PageEntry(n as u64));
        }
    }
    Ok(())
}

fn rules(bytes: &[u8], header: &Header, section: Section) -> Result<Vec<RuleRecord>, LayoutError> {
    let mut out: Vec<RuleRecord> = Vec::with_capacity(section.count);
    let mut at = 0u64;
    for n in 0..section.count {
        let wrong = LayoutError::Rule(n as u64);
        let record = bytes.get(section.at + n * RULE_BYTES..).and_then(RuleRecord::get).ok_or(LayoutError::Length)?;
        let kind = Kind::from_number(record.kind).ok_or(wrong)?;
        let end = record.offset.checked_add(record.len).ok_or(wrong)?;
        if record.len == 0 || record.offset < at || end > header.visible_bytes || record.rule >= header.rules {
            return Err(wrong);
        }
        let consistent = if kind == Kind::WriteOneToClear {
            let inside = u64::from(record.shadow).checked_add(record.len);
            let fits = match record.period {
                1 => record.initial <= 0xff,
                2 => record.initial <= 0xffff,
                4 => record.initial <= 0xffff_ffff,
                8 => true,
                _ => false,
            };
            fits && inside.is_some_and(|end| end <= header.shadow_bytes as u64)
        } else {
            (record.shadow, record.period, record.initial) == (NO_SHADOW, 0, 0)
        };
        if !consistent {
            return Err(wrong);
        }
        at = end;
        out.push(record);
    }
    Ok(out)
}
