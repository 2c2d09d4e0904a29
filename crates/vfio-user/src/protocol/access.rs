//! REGION_READ, REGION_WRITE, REGION_WRITE_MULTI.

use super::fields::{Fields, words};
use super::{DecodeError, MAX_DATA_BYTES, MAX_MULTI_WRITES};

/// Bytes of what describes an access.
const ACCESS_BYTES: usize = 16;
/// Bytes of one write of a REGION_WRITE_MULTI, of which the last eight are data.
const MULTI_BYTES: usize = 24;

/// An access to a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionAccess {
    /// Where in the region, in bytes.
    pub offset: u64,
    /// The region.
    pub region: u32,
    /// Length in bytes, 1 to [`MAX_DATA_BYTES`]; `offset + count` does not overflow.
    pub count: u32,
}

impl RegionAccess {
    fn check(self, most: usize) -> Result<Self, DecodeError> {
        let fits = self.count != 0 && self.count as usize <= most;
        if !fits || self.offset.checked_add(self.count.into()).is_none() {
            return Err(DecodeError::field("count of an access", self.count));
        }
        Ok(self)
    }

    /// Decodes and checks the body of a REGION_READ.
    ///
    /// # Errors
    /// A wrong length, a count of 0 or beyond the cap.
    pub fn decode_read(body: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::exactly(body, ACCESS_BYTES)?;
        Self { offset: fields.u64()?, region: fields.u32()?, count: fields.u32()? }.check(MAX_DATA_BYTES)
    }

    /// Decodes and checks the body of a REGION_WRITE, and returns its data: `count` bytes.
    ///
    /// # Errors
    /// A wrong length, a count of 0, beyond the cap, or other than the data there is.
    pub fn decode_write(body: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let mut fields = Fields::at_least(body, ACCESS_BYTES)?;
        let access = Self { offset: fields.u64()?, region: fields.u32()?, count: fields.u32()? };
        let access = access.check(MAX_DATA_BYTES)?;
        let data = fields.rest();
        if data.len() != access.count as usize {
            return Err(DecodeError::Length { actual: body.len(), wanted: ACCESS_BYTES + access.count as usize });
        }
        Ok((access, data))
    }

    /// What the answer begins with.
    #[must_use]
    pub fn encode(&self) -> [u8; ACCESS_BYTES] {
        let mut out = [0; ACCESS_BYTES];
        let bytes = self.offset.to_le_bytes().into_iter().chain(words([self.region, self.count]));
        out.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        out
    }
}

/// One write of a REGION_WRITE_MULTI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MultiWrite {
    /// Where; `count` is 1 to 8.
    pub access: RegionAccess,
    bytes: [u8; 8],
}

impl MultiWrite {
    /// What to write.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        self.bytes.get(..self.access.count as usize).unwrap_or_default()
    }
}

/// Decodes and checks a whole REGION_WRITE_MULTI: nothing of it is written where any of it is wrong.
///
/// # Errors
/// A wrong length, more than [`MAX_MULTI_WRITES`] writes, one of no or more than eight bytes.
pub fn decode_write_multi(body: &[u8]) -> Result<Vec<MultiWrite>, DecodeError> {
    let mut fields = Fields::at_least(body, 8)?;
    let count = fields.u64()?;
    let count = usize::try_from(count)
        .ok()
        .filter(|count| *count <= MAX_MULTI_WRITES)
        .ok_or(DecodeError::field("wr_cnt", count))?;
    let entries = Fields::exactly(fields.rest(), count * MULTI_BYTES)?.rest();
    let decode = |entry: &[u8]| {
        let mut fields = Fields::exactly(entry, MULTI_BYTES)?;
        let access = RegionAccess { offset: fields.u64()?, region: fields.u32()?, count: fields.u32()? };
        Ok(MultiWrite { access: access.check(8)?, bytes: fields.u64()?.to_le_bytes() })
    };
    entries.chunks_exact(MULTI_BYTES).map(decode).collect()
}
