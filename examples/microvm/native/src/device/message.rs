//! The bytes of the vfio-user protocol: QEMU's `docs/interop/vfio-user.rst`.

pub const VERSION: u16 = 1;
pub const DMA_MAP: u16 = 2;
pub const GET_INFO: u16 = 4;
pub const GET_REGION_INFO: u16 = 5;
pub const GET_IRQ_INFO: u16 = 7;
pub const SET_IRQS: u16 = 8;
pub const REGION_READ: u16 = 9;
pub const REGION_WRITE: u16 = 10;
pub const DMA_READ: u16 = 11;
pub const DMA_WRITE: u16 = 12;
pub const RESET: u16 = 13;

pub const HEADER_BYTES: usize = 16;
/// The most that is taken from a server in one message; said to it as `max_data_xfer_size`, with room for what describes the data.
pub const MAX_MESSAGE: usize = MAX_DATA + 4096;
/// The most data of one access.
pub const MAX_DATA: usize = 1 << 20;

const TYPE_MASK: u32 = 0xf;
const REPLY: u32 = 1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub id: u16,
    pub command: u16,
    /// Of the whole message, in bytes.
    pub size: u32,
    pub flags: u32,
    pub errno: u32,
}

impl Header {
    /// Of a command.
    pub fn command(id: u16, command: u16, body: usize, wants_reply: bool) -> Self {
        let flags = if wants_reply { 0 } else { NO_REPLY };
        Self { id, command, size: (HEADER_BYTES + body) as u32, flags, errno: 0 }
    }

    /// Of the answer to this one.
    pub fn reply(&self, body: usize, errno: u32) -> Self {
        let flags = if errno == 0 { REPLY } else { REPLY | ERROR };
        Self { size: (HEADER_BYTES + body) as u32, flags, errno, ..*self }
    }

    pub fn is_reply(&self) -> bool {
        self.flags & TYPE_MASK == REPLY
    }

    pub fn wants_reply(&self) -> bool {
        self.flags & NO_REPLY == 0
    }

    pub fn is_error(&self) -> bool {
        self.flags & ERROR != 0
    }

    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let words = [u32::from(self.id) | u32::from(self.command) << 16, self.size, self.flags, self.errno];
        for (to, word) in out.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// `None` where the size can't be.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let mut words = bytes.as_chunks::<4>().0.iter().map(|w| u32::from_le_bytes(*w));
        let (first, size, flags, errno) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let fits = (HEADER_BYTES..=MAX_MESSAGE).contains(&(size as usize));
        fits.then_some(Self { id: first as u16, command: (first >> 16) as u16, size, flags, errno })
    }
}

/// Numbers of 16, 32 and 64 bits one after the other.
#[derive(Default)]
pub struct Body(pub Vec<u8>);

impl Body {
    pub fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub fn bytes(mut self, value: &[u8]) -> Self {
        self.0.extend_from_slice(value);
        self
    }
}

/// The number at a place of a body, where there is one.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// As [`u32_at`].
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_and_sizes_are_checked() {
        let header = Header { id: 0x1234, command: 9, size: 32, flags: 0x21, errno: 22 };
        assert_eq!(header.encode()[..4], [0x34, 0x12, 9, 0]);
        assert_eq!(Header::decode(&header.encode()), Some(header));
        for size in [0, 15, MAX_MESSAGE as u32 + 1, u32::MAX] {
            assert_eq!(Header::decode(&Header { size, ..header }.encode()), None);
        }
    }
}
