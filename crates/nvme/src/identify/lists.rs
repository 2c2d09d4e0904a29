//! The lists that Identify returns: namespaces, controllers, identifiers of a namespace.

use super::IDENTIFY_BYTES;
use crate::wire::{DecodeError, records};

/// Most identifiers in a namespace list.
pub const MAX_NAMESPACE_LIST: usize = 1024;

/// Reads a namespace list (CNS 02h, 10h): ascending, ended by 0.
///
/// # Errors
/// Not ascending: paging through it would not end.
pub fn decode_namespace_list(bytes: &[u8; IDENTIFY_BYTES]) -> Result<Vec<u32>, DecodeError> {
    let mut out = Vec::new();
    for nsid in records::<4>(bytes, MAX_NAMESPACE_LIST).map(|b| u32::from_le_bytes(*b)).take_while(|n| *n != 0) {
        if out.last().is_some_and(|last| *last >= nsid) {
            return Err(DecodeError::Invalid { what: "namespace list", why: format!("{nsid} is out of order") });
        }
        out.push(nsid);
    }
    Ok(out)
}

/// Writes a namespace list; what exceeds [`MAX_NAMESPACE_LIST`] is left out, to be asked for from the last one on.
#[must_use]
pub fn encode_namespace_list(nsids: &[u32]) -> [u8; IDENTIFY_BYTES] {
    let mut bytes = [0; IDENTIFY_BYTES];
    for (slot, nsid) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(nsids) {
        *slot = nsid.to_le_bytes();
    }
    bytes
}

/// Most identifiers in a controller list.
pub const MAX_CONTROLLER_LIST: usize = 2047;

/// Reads a controller list (CNS 12h, 13h, and the data of Namespace Attachment).
///
/// # Errors
/// The count exceeds [`MAX_CONTROLLER_LIST`], or the identifiers do not ascend.
pub fn decode_controller_list(bytes: &[u8; IDENTIFY_BYTES]) -> Result<Vec<u16>, DecodeError> {
    let mut words = bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b));
    let count = usize::from(words.next().unwrap_or(0));
    if count > MAX_CONTROLLER_LIST {
        let limit = MAX_CONTROLLER_LIST as u64;
        return Err(DecodeError::Limit { what: "number of controllers", value: count as u128, limit });
    }
    let ids: Vec<u16> = words.take(count).collect();
    match ids.array_windows().find(|[a, b]| a >= b) {
        Some([_, id]) => Err(DecodeError::Invalid { what: "controller list", why: format!("{id} is out of order") }),
        None => Ok(ids),
    }
}

/// Writes a controller list; `None` where there are more than [`MAX_CONTROLLER_LIST`].
#[must_use]
pub fn encode_controller_list(ids: &[u16]) -> Option<[u8; IDENTIFY_BYTES]> {
    let count = u16::try_from(ids.len()).ok().filter(|n| usize::from(*n) <= MAX_CONTROLLER_LIST)?;
    let mut bytes = [0; IDENTIFY_BYTES];
    for (slot, value) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(std::iter::once(&count).chain(ids)) {
        *slot = value.to_le_bytes();
    }
    Some(bytes)
}

/// The identifiers of a namespace (CNS 03h). All big-endian, as they are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamespaceIds {
    /// IEEE EUI-64.
    pub eui64: Option<[u8; 8]>,
    /// Namespace globally unique identifier.
    pub nguid: Option<[u8; 16]>,
    /// Namespace UUID.
    pub uuid: Option<[u8; 16]>,
    /// Command set identifier.
    pub csi: Option<u8>,
}

impl NamespaceIds {
    /// Reads the descriptor list. Descriptors of other types are skipped.
    ///
    /// # Errors
    /// A descriptor has another length than its type or leaves the structure.
    pub fn decode(bytes: &[u8; IDENTIFY_BYTES]) -> Result<Self, DecodeError> {
        let mut out = Self::default();
        let mut rest: &[u8] = bytes;
        while let Some((&[kind, len, _, _], after)) = rest.split_first_chunk::<4>() {
            if kind == 0 || len == 0 {
                break;
            }
            let Some((value, next)) = after.split_at_checked(usize::from(len)) else {
                let (needed, got) = (u64::from(len), after.len() as u64);
                return Err(DecodeError::Truncated { what: "namespace identification descriptor", needed, got });
            };
            let fits = match kind {
                1 => value.try_into().map(|v| out.eui64 = Some(v)).is_ok(),
                2 => value.try_into().map(|v| out.nguid = Some(v)).is_ok(),
                3 => value.try_into().map(|v| out.uuid = Some(v)).is_ok(),
                4 => <[u8; 1]>::try_from(value).map(|[v]| out.csi = Some(v)).is_ok(),
                _ => true,
            };
            if !fits {
                let why = format!("a descriptor of type {kind} has {len} bytes");
                return Err(DecodeError::Invalid { what: "namespace identification descriptor", why });
            }
            rest = next;
        }
        Ok(out)
    }

    /// Writes the descriptor list.
    #[must_use]
    pub fn encode(&self) -> [u8; IDENTIFY_BYTES] {
        let mut out = Vec::with_capacity(64);
        let mut put = |kind: u8, value: Option<&[u8]>| {
            if let Some(value) = value {
                out.extend_from_slice(&[kind, value.len() as u8, 0, 0]);
                out.extend_from_slice(value);
            }
        };
        put(1, self.eui64.as_ref().map(<[u8; 8]>::as_slice));
        put(2, self.nguid.as_ref().map(<[u8; 16]>::as_slice));
        put(3, self.uuid.as_ref().map(<[u8; 16]>::as_slice));
        put(4, self.csi.as_ref().map(std::slice::from_ref));
        let mut bytes = [0; IDENTIFY_BYTES];
        bytes.iter_mut().zip(out).for_each(|(to, from)| *to = from);
        bytes
    }
}
