//! What an [`HmlmChannel`](super::HmlmChannel) reads and writes: a prologue of 48 bytes, the controller state as Migration
//! Receive gave it, and an epilogue of 8 bytes.
//!
//! The prologue names the state format by version and UUID, since the indices in the commands belong to one controller. It
//! does not name the controller. The epilogue carries a checksum, since devices do not notice a truncated state: the last part
//! of the state is sent to the device only when the checksum is right.

use crate::wire::DecodeError;
use crate::wire_struct;

/// First bytes of a payload.
pub const MAGIC: [u8; 8] = *b"TLNVMEST";
/// The version that is written, and the only one that is read.
pub const PAYLOAD_VERSION: u16 = 1;
/// Bit 0 of the flags: there is a UUID.
const HAS_UUID: u16 = 1;

wire_struct! {
    /// Before the controller state.
    pub struct RawPrologue [48] {
        /// [`MAGIC`].
        magic: [u8; 8] = 0,
        /// [`PAYLOAD_VERSION`].
        version: u16 = 8,
        /// Bit 0: the UUID is there; others have to be 0.
        flags: u16 = 10,
        /// Version of the controller state, as CNS 20h lists it.
        state_version: u16 = 12,
        /// UUID of the vendor specific part, as CNS 20h lists it.
        uuid: [u8; 16] = 16,
        /// Length of the controller state in bytes.
        state_bytes: u64 = 32,
        /// CRC32C of the bytes before.
        crc: u32 = 40,
    }
}

wire_struct! {
    /// After the controller state.
    pub struct Epilogue [8] {
        /// CRC32C of prologue and controller state.
        crc: u32 = 0,
        /// CRC32C of the four bytes before, so that an epilogue is told from a piece of state.
        check: u32 = 4,
    }
}

/// What the prologue says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prologue {
    /// Version of the controller state.
    pub state_version: u16,
    /// UUID of its vendor specific part; `None` where it has none.
    pub uuid: Option<[u8; 16]>,
    /// Length of the controller state in bytes, a multiple of 4, at least 48.
    pub state_bytes: u64,
}

impl Prologue {
    /// Length on the wire in bytes.
    pub const SIZE: usize = RawPrologue::SIZE;

    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut raw = RawPrologue {
            magic: MAGIC,
            version: PAYLOAD_VERSION,
            flags: if self.uuid.is_some() { HAS_UUID } else { 0 },
            state_version: self.state_version,
            uuid: self.uuid.unwrap_or_default(),
            state_bytes: self.state_bytes,
            crc: 0,
        };
        raw.crc = raw.own_crc();
        raw.encode()
    }

    /// Reads the bytes. `cap` is the largest controller state that is accepted.
    ///
    /// # Errors
    /// Not a payload, damaged, of another version, or a state of an impossible size.
    pub fn decode(bytes: &[u8; Self::SIZE], cap: u64) -> Result<Self, DecodeError> {
        let what = "payload of the state channel";
        let invalid = |why: &str| DecodeError::Invalid { what, why: why.into() };
        let raw = RawPrologue::decode(bytes);
        if raw.magic != MAGIC {
            return Err(invalid("is not the state of an NVMe controller: its magic is another"));
        }
        if raw.version != PAYLOAD_VERSION {
            let (version, known) = (u32::from(raw.version), u32::from(PAYLOAD_VERSION));
            return Err(DecodeError::Version { what, version, known });
        }
        // Reserved bytes are under the checksum too: what re-encodes differently was damaged there.
        if raw.crc != raw.own_crc() || raw.encode() != *bytes {
            return Err(invalid("its prologue is damaged"));
        }
        if raw.flags & !HAS_UUID != 0 || (raw.flags == 0 && raw.uuid != [0; 16]) {
            return Err(invalid("its flags are not known here"));
        }
        if raw.state_bytes > cap {
            let value = u128::from(raw.state_bytes);
            return Err(DecodeError::Limit { what: "controller state size", value, limit: cap });
        }
        if raw.state_bytes < 48 || !raw.state_bytes.is_multiple_of(4) {
            return Err(invalid("its controller state has an impossible size"));
        }
        let uuid = (raw.flags & HAS_UUID != 0).then_some(raw.uuid);
        Ok(Self { state_version: raw.state_version, uuid, state_bytes: raw.state_bytes })
    }
}

impl RawPrologue {
    fn own_crc(&self) -> u32 {
        let bytes = self.encode();
        towline_core::crc::crc32c(0, bytes.get(..40).unwrap_or_default())
    }
}

impl Epilogue {
    /// The epilogue for a checksum.
    #[must_use]
    pub fn new(crc: u32) -> Self {
        Self { crc, check: towline_core::crc::crc32c(0, &crc.to_le_bytes()) }
    }

    /// Whether this is the epilogue for `crc`.
    #[must_use]
    pub fn matches(&self, crc: u32) -> bool {
        *self == Self::new(crc)
    }
}
