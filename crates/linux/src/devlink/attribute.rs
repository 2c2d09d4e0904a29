//! Netlink attributes.

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED, NlasIterator};

use crate::sysfs::{HostError, HostErrorKind};

/// Set in the type of an attribute that has attributes in it.
pub(super) const NESTED: u16 = NLA_F_NESTED;
/// The most attributes of one message or nest.
const MOST_ATTRIBUTES: usize = 1024;
/// The longest text: names of buses, devices and interfaces, and what the kernel says about errors.
const MOST_TEXT: usize = 512;

/// Appends an attribute, padded.
pub(super) fn put(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let attribute = DefaultNla::new(kind, value.to_vec());
    let start = out.len();
    out.resize(start + attribute.buffer_len(), 0);
    if let Some(space) = out.get_mut(start..) {
        attribute.emit(space);
    }
}

/// Appends text with the zero byte at its end.
pub(super) fn put_text(out: &mut Vec<u8>, kind: u16, text: &str) {
    let mut value = text.as_bytes().to_vec();
    value.push(0);
    put(out, kind, &value);
}

pub(super) fn put_u16(out: &mut Vec<u8>, kind: u16, value: u16) {
    put(out, kind, &value.to_ne_bytes());
}

pub(super) fn put_u32(out: &mut Vec<u8>, kind: u16, value: u32) {
    put(out, kind, &value.to_ne_bytes());
}

/// The attributes of a message, and what it is for errors.
pub(super) struct Attributes<'a> {
    what: &'a str,
    all: Vec<(u16, &'a [u8])>,
}

impl<'a> Attributes<'a> {
    pub(super) fn parse(what: &'a str, bytes: &'a [u8]) -> Result<Self, HostError> {
        let mut all = Vec::new();
        for attribute in NlasIterator::new(bytes) {
            let attribute = attribute.map_err(|e| damaged(what, &e.to_string()))?;
            if all.len() == MOST_ATTRIBUTES {
                return Err(damaged(what, "it has too many attributes"));
            }
            let length = usize::from(attribute.length());
            // `value()` borrows from the iterator's item, the bytes behind it live longer.
            let value = attribute.into_inner().get(netlink_packet_core::NLA_HEADER_SIZE..length);
            let value = value.ok_or_else(|| damaged(what, "an attribute leaves the message"))?;
            all.push((attribute.kind(), value));
        }
        Ok(Self { what, all })
    }

    pub(super) fn bytes(&self, kind: u16) -> Option<&'a [u8]> {
        self.all.iter().find(|(found, _)| *found == kind).map(|(_, value)| *value)
    }

    fn number<const N: usize>(&self, kind: u16) -> Result<Option<[u8; N]>, HostError> {
        let Some(bytes) = self.bytes(kind) else { return Ok(None) };
        let number = bytes.try_into().map_err(|_| {
            damaged(self.what, &format!("attribute {kind} has {} bytes, a number of {N} was expected", bytes.len()))
        })?;
        Ok(Some(number))
    }

    pub(super) fn u8(&self, kind: u16) -> Result<Option<u8>, HostError> {
        Ok(self.number(kind)?.map(u8::from_ne_bytes))
    }

    pub(super) fn u16(&self, kind: u16) -> Result<Option<u16>, HostError> {
        Ok(self.number(kind)?.map(u16::from_ne_bytes))
    }

    pub(super) fn u32(&self, kind: u16) -> Result<Option<u32>, HostError> {
        Ok(self.number(kind)?.map(u32::from_ne_bytes))
    }

    /// `struct nla_bitfield32`: the bits, of those that are told.
    pub(super) fn bitfield(&self, kind: u16) -> Result<Option<Bitfield>, HostError> {
        Ok(self.number::<8>(kind)?.map(|[a, b, c, d, e, f, g, h]| Bitfield {
            value: u32::from_ne_bytes([a, b, c, d]),
            selector: u32::from_ne_bytes([e, f, g, h]),
        }))
    }

    /// Text up to its zero byte. Characters that a terminal acts on are damage.
    pub(super) fn text(&self, kind: u16) -> Result<Option<String>, HostError> {
        let Some(bytes) = self.bytes(kind) else { return Ok(None) };
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        let text = bytes.get(..end.min(MOST_TEXT)).and_then(|bytes| std::str::from_utf8(bytes).ok());
        match text {
            Some(text) if end <= MOST_TEXT && !text.chars().any(char::is_control) => Ok(Some(text.to_owned())),
            _ => Err(damaged(self.what, &format!("attribute {kind} is not text"))),
        }
    }

    pub(super) fn nested(&self, kind: u16) -> Result<Option<Self>, HostError> {
        self.bytes(kind).map(|bytes| Self::parse(self.what, bytes)).transpose()
    }

    pub(super) fn required<T>(&self, name: &str, value: Option<T>) -> Result<T, HostError> {
        value.ok_or_else(|| damaged(self.what, &format!("it lacks {name}")))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

/// Bits and which of them are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bitfield {
    pub value: u32,
    pub selector: u32,
}

impl Bitfield {
    pub(super) fn told(self, bit: u32) -> Option<bool> {
        (self.selector & bit != 0).then_some(self.value & bit != 0)
    }

    pub(super) fn bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        let (value, selector) = bytes.split_at_mut(4);
        value.copy_from_slice(&self.value.to_ne_bytes());
        selector.copy_from_slice(&self.selector.to_ne_bytes());
        bytes
    }
}

pub(super) fn damaged(what: &str, why: &str) -> HostError {
    HostError::new(HostErrorKind::System, what, format!("the answer can't be read: {why}"))
}
