//! The section of its own that the exposure has in a migration stream: what the guest has set in the config space that the server keeps, and the
//! interrupts that have not been delivered. The MSI-X table with its masks is the VMM's, and eventfds are each client's own; which vectors
//! had one is information.
//!
//! Restored in this order, on a destination whose guest does not run yet:
//! 1. The guest's interrupt controller, by the caller: an interrupt that fires before its controller is restored is lost.
//! 2. The device's state, the function stays stopped.
//! 3. This section: BARs, lines, PCI Express, MSI-X, pending vectors, then `PCI_COMMAND` and with it the function's access to memory.
//! 4. The function runs. What was pending fires now, each vector once; one without an eventfd stays pending until it gets one.

use towline_core::crc::crc32c;

use crate::pci::ConfigState;

const MAGIC: [u8; 4] = *b"TLVU";
/// The version that is written, and the only one that is read.
const VERSION: u16 = 1;
/// Bytes before the vectors.
const FIXED_BYTES: usize = 72;
/// The most vectors: MSI-X.
const MOST_VECTORS: u16 = 2048;

/// Why a section can't be taken or put in place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SectionError {
    /// Its bytes are not a section of this version.
    #[error("the exposure's section {0}")]
    Format(String),
    /// It is another function's, or the guest would see another one.
    #[error("the exposure's section does not fit: {0}")]
    Mismatch(String),
    /// The function runs, or does not have the state that the section belongs to.
    #[error("{0}")]
    NotStopped(&'static str),
    /// The client's requests could not be brought to an end in time.
    #[error("{0}")]
    Busy(&'static str),
    /// This function's exposure has none.
    #[error("this function does not migrate")]
    Unsupported,
}

/// What a function is to a guest. Both sides of a migration have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionIdentity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Class, subclass, programming interface and revision.
    pub class_revision: u32,
    /// Bytes of BAR0.
    pub bar0_bytes: u64,
    /// Bytes of BAR4.
    pub bar4_bytes: u64,
    /// MSI-X vectors, 1 to 2048.
    pub vectors: u16,
}

impl std::fmt::Display for SectionIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { vendor, device, class_revision, bar0_bytes, bar4_bytes, vectors } = self;
        write!(f, "vfio-user:{VERSION}:{vendor:04x}:{device:04x}:{class_revision:08x}:")?;
        write!(f, "bar0={bar0_bytes}:bar4={bar4_bytes}:vectors={vectors}")
    }
}

/// See the description of the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExposureSection {
    /// What the function is.
    pub identity: SectionIdentity,
    /// Config space.
    pub config: ConfigState,
    /// Vectors that had an eventfd, bit `n % 8` of byte `n / 8`; whole bytes for all vectors. Information: the destination's are its client's.
    pub wired: Vec<u8>,
    /// Vectors that were raised and not delivered, in the same way.
    pub pending: Vec<u8>,
}

/// Bytes of a bitmap.
fn bitmap_bytes(vectors: u16) -> usize {
    usize::from(vectors).div_ceil(8)
}

/// `bits` as a bitmap of `vectors` vectors.
fn bitmap(bits: &[u8], vectors: u16) -> Vec<u8> {
    bits.iter().copied().chain(std::iter::repeat(0)).take(bitmap_bytes(vectors)).collect()
}

impl ExposureSection {
    /// The vectors that are pending.
    pub fn pending_vectors(&self) -> impl Iterator<Item = u16> + '_ {
        let set = |n: &u16| self.pending.get(usize::from(*n / 8)).is_some_and(|byte| byte >> (n % 8) & 1 == 1);
        (0..self.identity.vectors).filter(set)
    }

    /// Its bytes, little-endian: magic `TLVU`, version u16, 0 u16; vendor u16, device u16, class and revision u32, bytes of BAR0 and of BAR4 u64,
    /// vectors u16, 0 u16; `PCI_COMMAND` u16, cache line u8, interrupt line u8, BAR0 u64, BAR4 u64, control of power, device, link,
    /// device 2, link 2 and MSI-X u16 each, 0 u32; a bit for each vector that had an eventfd, whole bytes; likewise those that are
    /// pending; CRC32C of all of it u32.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Self { identity, config, wired, pending } = self;
        let mut out = MAGIC.to_vec();
        let mut put = |bytes: &[u8]| out.extend_from_slice(bytes);
        let half = |numbers: &[u16]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
        put(&half(&[VERSION, 0, identity.vendor, identity.device]));
        put(&identity.class_revision.to_le_bytes());
        put(&identity.bar0_bytes.to_le_bytes());
        put(&identity.bar4_bytes.to_le_bytes());
        put(&half(&[identity.vectors, 0, config.command]));
        put(&[config.cache_line, config.interrupt_line]);
        put(&config.bar0.to_le_bytes());
        put(&config.bar4.to_le_bytes());
        put(&half(&[config.power_control, config.device_control, config.link_control]));
        put(&half(&[config.device_control_2, config.link_control_2, config.msix_control, 0, 0]));
        put(&bitmap(wired, identity.vectors));
        put(&bitmap(pending, identity.vectors));
        let crc = crc32c(0, &out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads what [`ExposureSection::encode`] wrote.
    ///
    /// # Errors
    /// [`SectionError::Format`] for anything else: another version, cut, longer, a byte that is wrong, bits that mean nothing.
    pub fn decode(bytes: &[u8]) -> Result<Self, SectionError> {
        let bad = |what: String| SectionError::Format(what);
        let mut reader = Reader(bytes);
        let short = || bad(format!("has {} bytes, which is too few", bytes.len()));
        let mut read = || -> Option<_> {
            let (magic, version, zero) = (reader.take::<4>()?, reader.u16()?, reader.u16()?);
            let identity = SectionIdentity {
                vendor: reader.u16()?,
                device: reader.u16()?,
                class_revision: reader.u32()?,
                bar0_bytes: reader.u64()?,
                bar4_bytes: reader.u64()?,
                vectors: reader.u16()?,
            };
            let zero = zero | reader.u16()?;
            let config = ConfigState {
                command: reader.u16()?,
                cache_line: reader.u8()?,
                interrupt_line: reader.u8()?,
                bar0: reader.u64()?,
                bar4: reader.u64()?,
                power_control: reader.u16()?,
                device_control: reader.u16()?,
                link_control: reader.u16()?,
                device_control_2: reader.u16()?,
                link_control_2: reader.u16()?,
                msix_control: reader.u16()?,
            };
            Some((magic, version, identity, config, u32::from(zero) | reader.u32()?))
        };
        let (magic, version, identity, config, zero) = read().ok_or_else(short)?;
        if magic != MAGIC {
            return Err(bad("is not one of a vfio-user exposure".into()));
        }
        if version != VERSION {
            return Err(bad(format!("is of version {version}; {VERSION} is read here")));
        }
        let vectors = identity.vectors;
        if vectors == 0 || vectors > MOST_VECTORS {
            return Err(bad(format!("has {vectors} vectors")));
        }
        let each = bitmap_bytes(vectors);
        let whole = FIXED_BYTES + 2 * each + 4;
        if bytes.len() != whole {
            return Err(bad(format!("has {} bytes, not {whole}", bytes.len())));
        }
        let (content, crc) = bytes.split_at(whole - 4);
        if crc != crc32c(0, content).to_le_bytes() {
            return Err(bad("is damaged: its checksum is another".into()));
        }
        let (wired, pending) = content.get(FIXED_BYTES..).unwrap_or_default().split_at(each);
        let behind = |bits: &[u8]| vectors % 8 != 0 && bits.last().is_some_and(|last| last >> (vectors % 8) != 0);
        if zero != 0 || behind(wired) || behind(pending) {
            return Err(bad("has bits set that mean nothing".into()));
        }
        Ok(Self { identity, config, wired: wired.to_vec(), pending: pending.to_vec() })
    }
}

/// Takes little-endian numbers off the front.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn section(vectors: u16) -> ExposureSection {
        let identity = SectionIdentity {
            vendor: 0x1234,
            device: 0x7456,
            class_revision: 0x0108_0201,
            bar0_bytes: 0x2000,
            bar4_bytes: 0x2000,
            vectors,
        };
        let config = ConfigState {
            command: 0x406,
            cache_line: 16,
            interrupt_line: 11,
            bar0: 0xfe00_0004,
            bar4: 0x3_fe00_4004,
            power_control: 8,
            device_control: 0x2830,
            link_control: 0x40,
            device_control_2: 0x10,
            link_control_2: 3,
            msix_control: 0x8000 | (vectors - 1),
        };
        let each = bitmap_bytes(vectors);
        let bits: Vec<u8> = (0..each).map(|n| if n + 1 == each { 1 } else { 0x5a }).collect();
        ExposureSection { identity, config, wired: bits.iter().map(|b| b >> 1).collect(), pending: bits }
    }

    #[test]
    fn back_and_forth() {
        for vectors in [1, 8, 9, 64, 2048] {
            let section = section(vectors);
            let bytes = section.encode();
            assert_eq!(bytes.len(), FIXED_BYTES + 2 * bitmap_bytes(vectors) + 4);
            assert_eq!(ExposureSection::decode(&bytes), Ok(section));
        }
        let nine: Vec<u16> = section(9).pending_vectors().collect();
        assert_eq!(nine, [1, 3, 4, 6, 8]);
        assert_eq!(section(9).identity.to_string(), "vfio-user:1:1234:7456:01080201:bar0=8192:bar4=8192:vectors=9");
    }

    #[test]
    fn whatever_is_wrong_with_it_is_noticed() {
        let good = section(9).encode();
        for len in 0..good.len() {
            assert!(ExposureSection::decode(&good[..len]).is_err(), "cut to {len}");
        }
        assert!(ExposureSection::decode(&[good.as_slice(), &[0]].concat()).is_err());
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << bit;
                assert!(ExposureSection::decode(&bytes).is_err(), "bit {bit} of byte {at}");
            }
        }
        // With a checksum that is right: what means nothing is refused all the same.
        for (at, value, what) in [
            (4, 2, "version"),
            (6, 1, "reserved"),
            (34, 1, "reserved"),
            (68, 1, "reserved"),
            (33, 9, "vectors"),
            (73, 2, "wired"),
            (75, 2, "pending"),
        ] {
            let mut bytes = good[..good.len() - 4].to_vec();
            bytes[at] = value;
            let crc = crc32c(0, &bytes).to_le_bytes();
            assert!(ExposureSection::decode(&[bytes, crc.to_vec()].concat()).is_err(), "{what} at {at}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(ExposureSection::decode(&bytes).is_err());
        }
    }
}
