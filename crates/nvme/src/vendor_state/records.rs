//! The records of [`super::VendorState`].

use crate::wire::{DecodeError, records};
use crate::wire_struct;

/// Most features in a state: Interrupt Vector Configuration once for each vector, and one for each other feature identifier.
pub const MAX_FEATURES: usize = MAX_MSIX_VECTORS + 256;
/// Longest data of one feature in bytes.
pub const MAX_FEATURE_DATA_BYTES: usize = 4096;
/// Most outstanding asynchronous event requests in a state: AERL is 0's-based and 8 bits wide.
pub const MAX_ASYNC_EVENTS: usize = 256;
/// Most MSI-X vectors of a function (PCI Base, MSI-X table size).
pub const MAX_MSIX_VECTORS: usize = 2048;
/// Most namespaces in a state.
pub const MAX_NAMESPACES: usize = 4096;

wire_struct! {
    /// Controller registers that a host wrote or sees change.
    pub struct RegisterState [24] {
        /// Controller Configuration.
        cc: u32 = 0,
        /// Controller Status: RDY, CFS, SHST, NSSRO, PP as they are.
        csts: u32 = 4,
        /// Interrupt mask (pin-based and MSI).
        intms: u32 = 8,
        /// Bits 2:0 power state.
        power_state: u32 = 12,
    }
}

wire_struct! {
    /// The admin queue pair.
    pub struct AdminQueueState [48] {
        /// Admin Submission Queue Base Address.
        asq: u64 = 0,
        /// Admin Completion Queue Base Address.
        acq: u64 = 8,
        /// Admin Queue Attributes: sizes, 0's-based.
        aqa: u32 = 16,
        /// Submission queue head.
        sq_head: u16 = 20,
        /// Submission queue tail: the doorbell as last written.
        sq_tail: u16 = 22,
        /// Completion queue head: the doorbell as last written.
        cq_head: u16 = 24,
        /// Completion queue tail.
        cq_tail: u16 = 26,
        /// Phase of the next entry to post, 0 or 1.
        cq_phase: u8 = 28,
    }
}

wire_struct! {
    /// What a controller was capable of. For comparison.
    pub struct Compatibility [24] {
        /// CAP.
        cap: u64 = 0,
        /// VS.
        vs: u32 = 8,
        /// I/O queue pairs it had.
        io_queues: u16 = 12,
        /// Interrupt vectors it had.
        vectors: u16 = 14,
        /// MDTS.
        mdts: u8 = 16,
    }
}

wire_struct! {
    /// One entry of the MSI-X table.
    pub struct MsixEntry [16] {
        /// Message address.
        address: u64 = 0,
        /// Message data.
        data: u32 = 8,
        /// Vector control; bit 0: masked.
        control: u32 = 12,
    }
}

wire_struct! {
    /// A namespace that was attached to the controller.
    pub struct NamespaceIdentity [32] {
        /// Namespace identifier.
        nsid: u32 = 0,
        /// Block size as a power of two.
        block_shift: u8 = 4,
        /// Size in blocks.
        blocks: u64 = 8,
        /// Globally unique identifier.
        nguid: [u8; 16] = 16,
    }
}

macro_rules! exact_read {
    ($($name:ident, $what:literal;)*) => {$(
        impl $name {
            /// Reads the record, which has exactly this size.
            pub(super) fn read(content: &[u8]) -> Result<Self, DecodeError> {
                match content.try_into() {
                    Ok(bytes) => Ok(Self::decode(bytes)),
                    Err(_) => Err(wrong_size($what, Self::SIZE, content.len())),
                }
            }
        }
    )*};
}
exact_read! {
    RegisterState, "register state";
    AdminQueueState, "admin queue state";
    Compatibility, "compatibility record";
}

fn wrong_size(what: &'static str, expected: usize, got: usize) -> DecodeError {
    DecodeError::Invalid { what, why: format!("has {got} bytes instead of {expected}") }
}

/// A count as u32; it exceeds `limit`: an error.
fn capped(what: &'static str, count: usize, limit: usize) -> Result<u32, DecodeError> {
    match u32::try_from(count) {
        Ok(n) if count <= limit => Ok(n),
        _ => Err(DecodeError::Limit { what, value: count as u128, limit: limit as u64 }),
    }
}

fn take_u32<'a>(what: &'static str, bytes: &'a [u8]) -> Result<(u32, &'a [u8]), DecodeError> {
    let short = DecodeError::Truncated { what, needed: 4, got: bytes.len() as u64 };
    let (head, rest) = bytes.split_first_chunk::<4>().ok_or(short)?;
    Ok((u32::from_le_bytes(*head), rest))
}

/// Takes a count of `N`-byte records and those records off `bytes`.
fn take_list<'a, const N: usize>(
    what: &'static str,
    bytes: &'a [u8],
    limit: usize,
) -> Result<(impl Iterator<Item = &'a [u8; N]>, &'a [u8]), DecodeError> {
    let (count, rest) = take_u32(what, bytes)?;
    let count = capped(what, count as usize, limit)? as usize;
    let needed = count * N;
    let short = DecodeError::Truncated { what, needed: needed as u64, got: rest.len() as u64 };
    let (body, rest) = rest.split_at_checked(needed).ok_or(short)?;
    Ok((records::<N>(body, count), rest))
}

fn nothing_left(what: &'static str, rest: &[u8]) -> Result<(), DecodeError> {
    if rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing { what, extra: rest.len() as u64 }) }
}

/// A feature that a host set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeatureValue {
    /// Feature identifier.
    pub fid: u8,
    /// The namespace it is set for; 0 for the controller.
    pub nsid: u32,
    /// What distinguishes several values of one feature: CDW11 bits that select one (an interrupt vector, a sensor); else 0.
    pub selector: u32,
    /// CDW11 as it was set.
    pub value: u32,
    /// Data, for features that have some; at most 4096 bytes.
    pub data: Vec<u8>,
}

wire_struct! {
    /// Fixed part of a feature.
    pub struct FeatureHeader [20] {
        /// Feature identifier.
        fid: u8 = 0,
        /// Namespace.
        nsid: u32 = 4,
        /// Selector.
        selector: u32 = 8,
        /// Value.
        value: u32 = 12,
        /// Bytes of data that follow.
        data_len: u32 = 16,
    }
}

pub(super) fn encode_features(features: &[FeatureValue]) -> Result<Vec<u8>, DecodeError> {
    let mut out = capped("number of features", features.len(), MAX_FEATURES)?.to_le_bytes().to_vec();
    for feature in features {
        let data_len = capped("length of feature data", feature.data.len(), MAX_FEATURE_DATA_BYTES)?;
        let FeatureValue { fid, nsid, selector, value, .. } = *feature;
        out.extend_from_slice(&FeatureHeader { fid, nsid, selector, value, data_len }.encode());
        out.extend_from_slice(&feature.data);
    }
    Ok(out)
}

pub(super) fn decode_features(bytes: &[u8]) -> Result<Vec<FeatureValue>, DecodeError> {
    let what = "feature state";
    let (count, mut rest) = take_u32(what, bytes)?;
    let count = capped("number of features", count as usize, MAX_FEATURES)?;
    let mut features = Vec::new();
    for _ in 0..count {
        let short = |needed: usize, rest: &[u8]| {
            let (needed, got) = (needed as u64, rest.len() as u64);
            DecodeError::Truncated { what, needed, got }
        };
        let (header, after) = rest.split_first_chunk::<20>().ok_or_else(|| short(FeatureHeader::SIZE, rest))?;
        let FeatureHeader { fid, nsid, selector, value, data_len } = FeatureHeader::decode(header);
        let len = capped("length of feature data", data_len as usize, MAX_FEATURE_DATA_BYTES)? as usize;
        let (data, next) = after.split_at_checked(len).ok_or_else(|| short(len, after))?;
        features.push(FeatureValue { fid, nsid, selector, value, data: data.to_vec() });
        rest = next;
    }
    nothing_left(what, rest)?;
    Ok(features)
}

pub(super) fn encode_namespaces(namespaces: &[NamespaceIdentity]) -> Result<Vec<u8>, DecodeError> {
    let mut out = capped("number of namespaces", namespaces.len(), MAX_NAMESPACES)?.to_le_bytes().to_vec();
    namespaces.iter().for_each(|namespace| out.extend_from_slice(&namespace.encode()));
    Ok(out)
}

pub(super) fn decode_namespaces(bytes: &[u8]) -> Result<Vec<NamespaceIdentity>, DecodeError> {
    let what = "namespace list of a state";
    let (list, rest) = take_list::<32>(what, bytes, MAX_NAMESPACES)?;
    let namespaces = list.map(NamespaceIdentity::decode).collect();
    nothing_left(what, rest)?;
    Ok(namespaces)
}

/// Asynchronous event requests and events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AsyncEventState {
    /// Command identifiers of the outstanding requests, in the order in which they came.
    pub outstanding: Vec<u16>,
    /// Events that wait for a request: completion DW0 | DW1 << 32.
    pub waiting: Vec<u64>,
    /// Event types (bit n: type n) that are masked until the host reads the log page.
    pub masked_types: u32,
}

impl AsyncEventState {
    pub(super) fn encode(&self) -> Result<Vec<u8>, DecodeError> {
        let mut out = self.masked_types.to_le_bytes().to_vec();
        let count = capped("number of asynchronous event requests", self.outstanding.len(), MAX_ASYNC_EVENTS)?;
        out.extend_from_slice(&count.to_le_bytes());
        self.outstanding.iter().for_each(|cid| out.extend_from_slice(&cid.to_le_bytes()));
        let count = capped("number of waiting asynchronous events", self.waiting.len(), MAX_ASYNC_EVENTS)?;
        out.extend_from_slice(&count.to_le_bytes());
        self.waiting.iter().for_each(|event| out.extend_from_slice(&event.to_le_bytes()));
        Ok(out)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let what = "asynchronous event state";
        let (masked_types, rest) = take_u32(what, bytes)?;
        let (cids, rest) = take_list::<2>(what, rest, MAX_ASYNC_EVENTS)?;
        let outstanding = cids.map(|cid| u16::from_le_bytes(*cid)).collect();
        let (events, rest) = take_list::<8>(what, rest, MAX_ASYNC_EVENTS)?;
        let waiting = events.map(|event| u64::from_le_bytes(*event)).collect();
        nothing_left(what, rest)?;
        Ok(Self { outstanding, waiting, masked_types })
    }
}

/// MSI-X of a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterruptState {
    /// MSI-X Enable of the capability.
    pub enabled: bool,
    /// Function Mask of the capability.
    pub function_mask: bool,
    /// The table.
    pub table: Vec<MsixEntry>,
    /// Pending bits: vector n is bit n % 64 of word n / 64.
    pub pending: Vec<u64>,
}

impl InterruptState {
    pub(super) fn encode(&self) -> Result<Vec<u8>, DecodeError> {
        let flags = u32::from(self.enabled) | u32::from(self.function_mask) << 1;
        let mut out = flags.to_le_bytes().to_vec();
        out.extend_from_slice(&capped("number of vectors", self.table.len(), MAX_MSIX_VECTORS)?.to_le_bytes());
        self.table.iter().for_each(|entry| out.extend_from_slice(&entry.encode()));
        out.extend_from_slice(
            &capped("words of pending bits", self.pending.len(), MAX_MSIX_VECTORS / 64)?.to_le_bytes(),
        );
        self.pending.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
        Ok(out)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let what = "interrupt state";
        let (flags, rest) = take_u32(what, bytes)?;
        let (entries, rest) = take_list::<16>(what, rest, MAX_MSIX_VECTORS)?;
        let table = entries.map(MsixEntry::decode).collect();
        let (words, rest) = take_list::<8>(what, rest, MAX_MSIX_VECTORS / 64)?;
        let pending = words.map(|word| u64::from_le_bytes(*word)).collect();
        nothing_left(what, rest)?;
        Ok(Self { enabled: flags & 1 != 0, function_mask: flags & 2 != 0, table, pending })
    }
}
