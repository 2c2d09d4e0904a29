//! The vendor specific part of the controller state of towline's embedded controller: what the NVMe part leaves out.
//!
//! It starts with a header of 8 bytes (magic `TLVS`, version u16, reserved u16), then records: type u16, flags u16 (bit 0:
//! a reader that does not know the type has to refuse the state), length u32, content, zeroes up to a multiple of 4. A record
//! of type 0 ends it; what follows has to be zero. Everything is little-endian. Lengths are checked against what is there
//! before anything is allocated.

use crate::wire::DecodeError;

mod records;
pub use records::{
    AdminQueueState, AsyncEventState, Compatibility, FeatureHeader, FeatureValue, InterruptState, MAX_FEATURES,
    MsixEntry, NamespaceIdentity, RegisterState,
};

/// The UUID of this format, in the list of controller state formats (CNS 20h).
pub const VENDOR_STATE_UUID: [u8; 16] =
    [0xce, 0xe4, 0x49, 0x92, 0xfd, 0x49, 0x43, 0x38, 0xb9, 0x44, 0x68, 0x61, 0x5f, 0x55, 0xfb, 0x72];

/// The version that is written. Another one is refused.
pub const VENDOR_STATE_VERSION: u16 = 1;

/// The largest vendor specific part that is accepted, in bytes.
pub const MAX_VENDOR_STATE_BYTES: usize = 4 << 20;

const MAGIC: [u8; 4] = *b"TLVS";
const WHAT: &str = "vendor specific state";
/// A reader that does not know the type refuses the state.
const REQUIRED: u16 = 1;

/// What the NVMe part of the controller state leaves out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VendorState {
    /// Controller registers.
    pub registers: RegisterState,
    /// The admin queue pair.
    pub admin_queue: AdminQueueState,
    /// Features that differ from their defaults.
    pub features: Vec<FeatureValue>,
    /// Asynchronous events.
    pub async_events: AsyncEventState,
    /// MSI-X, where the controller owns it; `None` where its exposure does.
    pub interrupts: Option<InterruptState>,
    /// Attached namespaces. For comparison only: a state never grants a namespace.
    pub namespaces: Vec<NamespaceIdentity>,
    /// What the source was capable of, for comparison.
    pub compatibility: Option<Compatibility>,
}

mod kind {
    pub const END: u16 = 0;
    pub const REGISTERS: u16 = 1;
    pub const ADMIN_QUEUE: u16 = 2;
    pub const FEATURES: u16 = 3;
    pub const ASYNC_EVENTS: u16 = 4;
    pub const INTERRUPTS: u16 = 5;
    pub const NAMESPACES: u16 = 6;
    pub const COMPATIBILITY: u16 = 7;
}

impl VendorState {
    /// The bytes, whole dwords.
    ///
    /// # Errors
    /// A list is longer than its limit.
    pub fn encode(&self) -> Result<Vec<u8>, DecodeError> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&VENDOR_STATE_VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        let mut put = |kind: u16, flags: u16, content: &[u8]| {
            out.extend_from_slice(&kind.to_le_bytes());
            out.extend_from_slice(&flags.to_le_bytes());
            out.extend_from_slice(&(content.len() as u32).to_le_bytes());
            out.extend_from_slice(content);
            out.resize(out.len().next_multiple_of(4), 0);
        };
        put(kind::REGISTERS, REQUIRED, &self.registers.encode());
        put(kind::ADMIN_QUEUE, REQUIRED, &self.admin_queue.encode());
        put(kind::FEATURES, REQUIRED, &records::encode_features(&self.features)?);
        put(kind::ASYNC_EVENTS, REQUIRED, &self.async_events.encode()?);
        if let Some(interrupts) = &self.interrupts {
            put(kind::INTERRUPTS, REQUIRED, &interrupts.encode()?);
        }
        put(kind::NAMESPACES, 0, &records::encode_namespaces(&self.namespaces)?);
        if let Some(compatibility) = &self.compatibility {
            put(kind::COMPATIBILITY, 0, &compatibility.encode());
        }
        put(kind::END, 0, &[]);
        if out.len() > MAX_VENDOR_STATE_BYTES {
            return Err(too_long(out.len()));
        }
        Ok(out)
    }

    /// Reads the bytes.
    ///
    /// # Errors
    /// Cut short, damaged in its structure, of an unknown version, with an unknown required record, with a record twice, or
    /// without registers, admin queue, features or asynchronous events.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > MAX_VENDOR_STATE_BYTES {
            return Err(too_long(bytes.len()));
        }
        let cut = |needed: usize| DecodeError::Truncated { what: WHAT, needed: needed as u64, got: bytes.len() as u64 };
        let invalid = |why: String| DecodeError::Invalid { what: WHAT, why };
        let (&[m0, m1, m2, m3, v0, v1, _, _], mut rest) = bytes.split_first_chunk::<8>().ok_or_else(|| cut(8))?;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(invalid("is not of this format: its magic is another".into()));
        }
        let version = u16::from_le_bytes([v0, v1]);
        if version != VENDOR_STATE_VERSION {
            let (version, known) = (u32::from(version), u32::from(VENDOR_STATE_VERSION));
            return Err(DecodeError::Version { what: WHAT, version, known });
        }
        let (mut registers, mut admin_queue, mut features, mut async_events) = (None, None, None, None);
        let (mut interrupts, mut namespaces, mut compatibility) = (None, None, None);
        loop {
            let at = bytes.len() - rest.len();
            let (&[k0, k1, f0, f1, l0, l1, l2, l3], after) =
                rest.split_first_chunk::<8>().ok_or_else(|| cut(at.saturating_add(8)))?;
            let (kind, flags) = (u16::from_le_bytes([k0, k1]), u16::from_le_bytes([f0, f1]));
            let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
            let padded = len.checked_next_multiple_of(4).ok_or_else(|| invalid("a record is too long".into()))?;
            let (content, next) =
                after.split_at_checked(padded).ok_or_else(|| cut(at.saturating_add(8).saturating_add(padded)))?;
            let (content, padding) = content.split_at_checked(len).ok_or_else(|| cut(at))?;
            if padding.iter().any(|byte| *byte != 0) {
                return Err(invalid(format!("the padding of the record at {at} is not zero")));
            }
            rest = next;
            match kind {
                kind::END => break,
                kind::REGISTERS => once(kind, &mut registers, RegisterState::read(content)?)?,
                kind::ADMIN_QUEUE => once(kind, &mut admin_queue, AdminQueueState::read(content)?)?,
                kind::FEATURES => once(kind, &mut features, records::decode_features(content)?)?,
                kind::ASYNC_EVENTS => once(kind, &mut async_events, AsyncEventState::decode(content)?)?,
                kind::INTERRUPTS => once(kind, &mut interrupts, InterruptState::decode(content)?)?,
                kind::NAMESPACES => once(kind, &mut namespaces, records::decode_namespaces(content)?)?,
                kind::COMPATIBILITY => once(kind, &mut compatibility, Compatibility::read(content)?)?,
                unknown if flags & REQUIRED != 0 => {
                    return Err(invalid(format!("record type {unknown} is required and not known here")));
                }
                _ => {}
            }
        }
        if rest.iter().any(|byte| *byte != 0) {
            return Err(invalid("there is something after its end".into()));
        }
        let missing = |what: &str| invalid(format!("{what} are missing"));
        Ok(Self {
            registers: registers.ok_or_else(|| missing("registers"))?,
            admin_queue: admin_queue.ok_or_else(|| missing("admin queues"))?,
            features: features.ok_or_else(|| missing("features"))?,
            async_events: async_events.ok_or_else(|| missing("asynchronous events"))?,
            interrupts,
            namespaces: namespaces.unwrap_or_default(),
            compatibility,
        })
    }
}

fn once<T>(kind: u16, slot: &mut Option<T>, value: T) -> Result<(), DecodeError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(DecodeError::Invalid { what: WHAT, why: format!("record type {kind} is there twice") }),
    }
}

fn too_long(len: usize) -> DecodeError {
    DecodeError::Limit {
        what: "size of the vendor specific state",
        value: len as u128,
        limit: MAX_VENDOR_STATE_BYTES as u64,
    }
}
