//! Counts as NVMe writes them. Some fields say "n means n + 1" (0's-based), others mean what they say (1's-based); both
//! occur among the migration commands, and mixing them up is a known mistake. Every conversion is here.

/// A count does not fit its field, or bytes are not whole dwords.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes_or_count} cannot be expressed in this count field")]
pub struct CountError {
    /// What was to be expressed.
    pub bytes_or_count: u64,
}

/// The field that says `count` (at least 1) in 0's-based form.
///
/// # Errors
/// `count` is 0 or more than 2^32.
pub fn zeroes_based_field(count: u64) -> Result<u32, CountError> {
    count.checked_sub(1).and_then(|raw| u32::try_from(raw).ok()).ok_or(CountError { bytes_or_count: count })
}

/// The count that a 0's-based field says: 1 to 2^32.
#[must_use]
pub fn count_of_zeroes_based(field: u32) -> u64 {
    u64::from(field) + 1
}

/// The 16-bit field that says `count` (1 to 65536) in 0's-based form: queue sizes, CAP.MQES.
///
/// # Errors
/// `count` is 0 or more than 65536.
pub fn zeroes_based_u16_field(count: u32) -> Result<u16, CountError> {
    let raw = count.checked_sub(1).and_then(|raw| u16::try_from(raw).ok());
    raw.ok_or(CountError { bytes_or_count: u64::from(count) })
}

/// The count that a 16-bit 0's-based field says: 1 to 65536.
#[must_use]
pub fn count_of_zeroes_based_u16(field: u16) -> u32 {
    u32::from(field) + 1
}

/// Whole dwords in `bytes`.
///
/// # Errors
/// `bytes` is not a multiple of 4.
pub fn dwords_of_bytes(bytes: u64) -> Result<u64, CountError> {
    if bytes.is_multiple_of(4) { Ok(bytes / 4) } else { Err(CountError { bytes_or_count: bytes }) }
}

/// NUMD of Track Receive, Migration Receive and Get Log Page, which is 0's-based: `bytes` is a multiple of 4, at least 4.
///
/// # Errors
/// Not whole dwords, none, or too many.
pub fn numd_zeroes_based(bytes: u64) -> Result<u32, CountError> {
    zeroes_based_field(dwords_of_bytes(bytes)?)
}

/// Bytes that a 0's-based NUMD says.
#[must_use]
pub fn bytes_of_numd_zeroes_based(numd: u32) -> u64 {
    count_of_zeroes_based(numd) * 4
}

/// NUMD of Migration Send (Set Controller State), which is 1's-based: `bytes` is a multiple of 4 and may be 0.
///
/// # Errors
/// Not whole dwords, or too many.
pub fn numd_ones_based(bytes: u64) -> Result<u32, CountError> {
    u32::try_from(dwords_of_bytes(bytes)?).map_err(|_| CountError { bytes_or_count: bytes })
}

/// Bytes that a 1's-based NUMD says; 0 is 0.
#[must_use]
pub fn bytes_of_numd_ones_based(numd: u32) -> u64 {
    u64::from(numd) * 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forty_eight_bytes_are_eleven_or_twelve() {
        assert_eq!(numd_zeroes_based(48), Ok(11));
        assert_eq!(numd_ones_based(48), Ok(12));
        assert_eq!(bytes_of_numd_zeroes_based(11), 48);
        assert_eq!(bytes_of_numd_ones_based(12), 48);
    }

    #[test]
    fn the_edges() {
        assert!(numd_zeroes_based(0).is_err());
        assert_eq!(numd_ones_based(0), Ok(0));
        assert!(numd_zeroes_based(6).is_err());
        assert!(numd_ones_based(6).is_err());
        assert_eq!(zeroes_based_field(1 << 32), Ok(u32::MAX));
        assert!(zeroes_based_field((1 << 32) + 1).is_err());
        assert!(numd_ones_based(1 << 34).is_err());
        assert_eq!(zeroes_based_u16_field(65536), Ok(u16::MAX));
        assert!(zeroes_based_u16_field(65537).is_err());
        assert!(zeroes_based_u16_field(0).is_err());
        assert_eq!(count_of_zeroes_based_u16(u16::MAX), 65536);
        assert_eq!(count_of_zeroes_based(u32::MAX), 1 << 32);
    }
}
