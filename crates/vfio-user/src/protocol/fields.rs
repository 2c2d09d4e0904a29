//! Numbers out of bytes and into them, in order.

use super::DecodeError;

/// Reads a body from front to back.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// A body of exactly `len` bytes.
    pub(crate) fn exactly(body: &'a [u8], len: usize) -> Result<Self, DecodeError> {
        if body.len() == len {
            Ok(Self { rest: body })
        } else {
            Err(DecodeError::Length { actual: body.len(), wanted: len })
        }
    }

    /// A body of `len` bytes or more.
    pub(crate) fn at_least(body: &'a [u8], len: usize) -> Result<Self, DecodeError> {
        if body.len() >= len {
            Ok(Self { rest: body })
        } else {
            Err(DecodeError::Length { actual: body.len(), wanted: len })
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (first, rest) =
            self.rest.split_first_chunk::<N>().ok_or(DecodeError::Length { actual: self.rest.len(), wanted: N })?;
        self.rest = rest;
        Ok(*first)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.take().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.take().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.take().map(u64::from_le_bytes)
    }

    /// What was not read yet.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }
}

/// Bytes of several 32-bit numbers.
pub(crate) fn words<const N: usize>(values: [u32; N]) -> impl Iterator<Item = u8> {
    values.into_iter().flat_map(u32::to_le_bytes)
}
