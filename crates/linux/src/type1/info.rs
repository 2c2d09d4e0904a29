//! What `VFIO_IOMMU_GET_INFO` tells, with its chain of capabilities.

use towline_core::channel::ChannelError;
use towline_core::memory::MemoryRange;
use vfio_bindings::bindings::vfio::{
    VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_INFO_PGSIZES, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
};

use crate::iommu_error::limit;

/// The most bytes that are taken from the kernel, and with that the most capabilities.
pub(super) const MAX_INFO_BYTES: usize = 1 << 20;
const MAX_CAPABILITIES: usize = 64;
/// `struct vfio_info_cap_header`: u16 id, u16 version, u32 offset of the next, from the start of the structure.
const HEADER: usize = 8;

/// What a container's IOMMU can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Type1Info {
    /// Bit `n` where pages of `2^n` bytes can be mapped; 0 where the kernel doesn't tell.
    pub page_sizes: u64,
    /// Where mappings may be, ascending; empty where the kernel doesn't tell.
    pub ranges: Vec<MemoryRange>,
    /// How many more mappings there may be, where the kernel tells.
    pub available: Option<u32>,
    /// What tracking of dirty pages there is.
    pub migration: Option<MigrationInfo>,
}

/// Capability 2, `VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigrationInfo {
    /// The page size in bytes that bitmaps are in: the smallest one that the kernel names.
    pub page_size: u64,
    /// The largest bitmap that it fills, in bytes.
    pub max_bitmap_bytes: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_ne_bytes(*b))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_ne_bytes(*b))
}

impl Type1Info {
    /// Reads the bytes of the ioctl. A chain that leaves them, goes back or is endless is an error.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ChannelError> {
        let short = || limit(format!("VFIO_IOMMU_GET_INFO: {} bytes", bytes.len()));
        let flags = u32_at(bytes, 4).ok_or_else(short)?;
        let mut info = Self::default();
        if flags & VFIO_IOMMU_INFO_PGSIZES != 0 {
            info.page_sizes = u64_at(bytes, 8).ok_or_else(short)?;
        }
        if flags & VFIO_IOMMU_INFO_CAPS == 0 {
            return Ok(info);
        }
        let mut at = u32_at(bytes, 16).ok_or_else(short)? as usize;
        let mut behind = 24;
        for _ in 0..MAX_CAPABILITIES {
            if at == 0 {
                return Ok(info);
            }
            let bad = || limit(format!("VFIO_IOMMU_GET_INFO: a capability at byte {at} of {}", bytes.len()));
            // Ascending, so that it ends; the kernel writes them so.
            if at < behind {
                return Err(bad());
            }
            let (id, next) = u16_at(bytes, at).zip(u32_at(bytes, at + 4)).ok_or_else(bad)?;
            info.capability(u32::from(id), bytes.get(at + HEADER..).unwrap_or(&[])).ok_or_else(bad)?;
            behind = at + HEADER;
            at = next as usize;
        }
        Err(limit("VFIO_IOMMU_GET_INFO: too many capabilities"))
    }

    /// `None` where its bytes are not all there.
    fn capability(&mut self, id: u32, body: &[u8]) -> Option<()> {
        match id {
            VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => {
                let count = u32_at(body, 0)? as usize;
                // Checked against what is there before anything is reserved.
                let ranges = body.get(8..)?.get(..count.checked_mul(16)?)?;
                for range in ranges.as_chunks::<16>().0 {
                    let (start, end) = (u64_at(range, 0)?, u64_at(range, 8)?);
                    let len = end.checked_sub(start)?.saturating_add(1).min(u64::MAX - start);
                    self.ranges.push(MemoryRange { gpa: start, len });
                }
            }
            VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION => {
                let (sizes, max) = (u64_at(body, 8)?, u64_at(body, 16)?);
                // Without a page size there is nothing that could be asked.
                if sizes != 0 {
                    let page_size = 1 << sizes.trailing_zeros();
                    self.migration = Some(MigrationInfo { page_size, max_bitmap_bytes: max });
                }
            }
            VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => self.available = Some(u32_at(body, 0)?),
            _ => {}
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A structure with these capabilities: id and body.
    fn info(capabilities: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = vec![0; 24];
        bytes[4..8].copy_from_slice(&3u32.to_ne_bytes());
        bytes[8..16].copy_from_slice(&0x4020_1000u64.to_ne_bytes());
        let mut link = 16;
        for (id, body) in capabilities {
            let at = bytes.len();
            bytes[link..link + 4].copy_from_slice(&(at as u32).to_ne_bytes());
            bytes.extend(id.to_ne_bytes());
            bytes.extend([1, 0, 0, 0, 0, 0]);
            bytes.extend(body);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            link = at + 4;
        }
        bytes
    }

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }

    #[test]
    fn reads_all_three_capabilities() {
        let bytes = info(&[
            (1, words(&[2, 0, 0xfedf_ffff, 0xfef0_0000, u64::MAX])),
            (9, vec![1, 2, 3]),
            (3, 65535u32.to_ne_bytes().to_vec()),
            (2, words(&[0, 0x4020_1000, 256 << 20])),
        ]);
        let info = Type1Info::parse(&bytes).unwrap();
        assert_eq!(info.page_sizes, 0x4020_1000);
        assert_eq!(info.available, Some(65535));
        assert_eq!(info.migration, Some(MigrationInfo { page_size: 4096, max_bitmap_bytes: 256 << 20 }));
        let ranges = [(0, 0xfee0_0000), (0xfef0_0000, u64::MAX - 0xfef0_0000)];
        assert_eq!(info.ranges, ranges.map(|(gpa, len)| MemoryRange { gpa, len }));
    }

    #[test]
    fn says_nothing_of_what_the_kernel_does_not_tell() {
        assert_eq!(Type1Info::parse(&[0; 24]).unwrap(), Type1Info::default());
        // No page size at all.
        assert_eq!(Type1Info::parse(&info(&[(2, words(&[0, 0, 1]))])).unwrap().migration, None);
    }

    #[test]
    fn a_chain_that_is_cut_goes_back_or_lies_is_refused() {
        let whole = info(&[(1, words(&[1, 0, 4095])), (2, words(&[0, 4096, 1]))]);
        assert!(Type1Info::parse(&whole).is_ok());
        for len in 0..whole.len() {
            let error = Type1Info::parse(&whole[..len]).unwrap_err();
            assert!(error.message.contains("VFIO_IOMMU_GET_INFO"), "{error}");
        }
        for (at, value) in
            [(16, 8u32), (16, u32::MAX), (16, whole.len() as u32), (28, 24), (28, 16), (32, 3), (32, u32::MAX)]
        {
            let mut bad = whole.clone();
            bad[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            assert!(Type1Info::parse(&bad).is_err(), "{at} {value:#x}");
        }
        // A range that ends before it begins.
        assert!(Type1Info::parse(&info(&[(1, words(&[1, 4096, 0]))])).is_err());
        assert!(Type1Info::parse(&info(&vec![(7, vec![]); MAX_CAPABILITIES + 1])).is_err());
        assert!(Type1Info::parse(&info(&vec![(7, vec![]); MAX_CAPABILITIES - 1])).is_ok());
    }
}
