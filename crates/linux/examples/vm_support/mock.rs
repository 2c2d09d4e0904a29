//! The kernel's mock IOMMU (`CONFIG_IOMMUFD_TEST`, `drivers/iommu/iommufd/iommufd_test.h`): a page table with real dirty
//! bits, which are set by a call instead of by a device.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, opcode};
use towline_linux::iommufd::Iommufd;

/// Where mock domains map: nothing below, nothing above.
pub const APERTURE: std::ops::RangeInclusive<u64> = 0x100_0000..=0x7fff_ffff;
/// The mock page table's smallest page in bytes.
pub const PAGE: u64 = 2048;

/// `IOMMU_TEST_CMD`.
const TEST_CMD: Opcode = opcode::none(b';', 0xa0);
/// `IOMMU_DESTROY`.
const DESTROY: Opcode = opcode::none(b';', 0x80);
/// `IOMMU_HWPT_GET_DIRTY_BITMAP`, for what the library doesn't do.
const GET_DIRTY_BITMAP: Opcode = opcode::none(b';', 0x8c);

const OP_MOCK_DOMAIN: u32 = 2;
const OP_MD_CHECK_MAP: u32 = 3;
const OP_MOCK_DOMAIN_FLAGS: u32 = 12;
const OP_DIRTY: u32 = 13;
/// `MOCK_FLAGS_DEVICE_NO_DIRTY`.
const NO_DIRTY: u32 = 1;

/// `struct iommu_test_cmd`: 72 bytes, the arguments from byte 16 to 64.
#[repr(C)]
struct TestCmd {
    size: u32,
    op: u32,
    id: u32,
    reserved: u32,
    arguments: [u64; 6],
    last: u32,
    pad: u32,
}

const _: () = assert!(size_of::<TestCmd>() == 72);

fn call(iommu: BorrowedFd<'_>, op: u32, id: u32, arguments: [u64; 6]) -> Result<[u64; 6], Errno> {
    let mut cmd = TestCmd { size: 72, op, id, reserved: 0, arguments, last: 0, pad: 0 };
    // SAFETY: the structure of this ioctl, with its size; addresses in it are good for what the operation does, as the
    // functions below see to.
    unsafe { rustix::ioctl::ioctl(iommu, Updater::<TEST_CMD, _>::new(&mut cmd)) }?;
    Ok(cmd.arguments)
}

/// A device behind the mock IOMMU, attached to an IOAS by a page table that the kernel made.
#[derive(Debug)]
pub struct MockDevice<'a> {
    iommu: &'a Iommufd,
    /// The test object that stands for its driver.
    standing: u32,
    /// What binding a real device gives.
    pub dev_id: u32,
    /// The page table that the kernel made.
    pub hwpt_id: u32,
}

impl<'a> MockDevice<'a> {
    pub fn try_new(iommu: &'a Iommufd, ioas_id: u32, tracks: bool) -> Result<Self, Errno> {
        let (op, flags) = if tracks { (OP_MOCK_DOMAIN, 0) } else { (OP_MOCK_DOMAIN_FLAGS, NO_DIRTY) };
        // out_stdev_id, out_hwpt_id, out_idev_id, dev_flags: four u32.
        let out = call(iommu.as_fd(), op, ioas_id, [0, u64::from(flags) << 32, 0, 0, 0, 0])?;
        let [standing, hwpt_id] = [out[0] as u32, (out[0] >> 32) as u32];
        Ok(Self { iommu, standing, hwpt_id, dev_id: out[1] as u32 })
    }

    pub fn new(iommu: &'a Iommufd, ioas_id: u32) -> Self {
        Self::try_new(iommu, ioas_id, true).unwrap()
    }
}

impl Drop for MockDevice<'_> {
    fn drop(&mut self) {
        // `struct iommu_destroy`; the driver's object takes the device with it.
        let mut cmd = [8u32, self.standing];
        // SAFETY: the structure of this ioctl, with its size.
        if let Err(errno) = unsafe { rustix::ioctl::ioctl(self.iommu.as_fd(), Updater::<DESTROY, _>::new(&mut cmd)) } {
            println!("# IOMMU_DESTROY of a mock device: {errno}");
        }
    }
}

/// Sets dirty bits: of every page of `iova ..` whose bit is set. Returns how many that were, by the kernel's count.
pub fn dirty(iommu: &Iommufd, hwpt_id: u32, iova: u64, len: u64, page: u64, bits: &[u64]) -> Result<u64, Errno> {
    assert!((len / page).div_ceil(64) <= bits.len() as u64);
    let address = bits.as_ptr().expose_provenance() as u64;
    // flags, iova, length, page_size, uptr, out_nr_dirty.
    call(iommu.as_fd(), OP_DIRTY, hwpt_id, [0, iova, len, page, address, 0]).map(|out| out[5])
}

/// Whether `iova .. iova + len` is mapped to just the physical pages that this process has at `address`.
pub fn is_mapped_to(iommu: &Iommufd, hwpt_id: u32, iova: u64, len: u64, address: u64) -> bool {
    match call(iommu.as_fd(), OP_MD_CHECK_MAP, hwpt_id, [iova, len, address, 0, 0, 0]) {
        Ok(_) => true,
        Err(Errno::INVAL) => false,
        Err(errno) => panic!("IOMMU_TEST_OP_MD_CHECK_MAP: {errno}"),
    }
}

/// `IOMMU_HWPT_GET_DIRTY_BITMAP` into any address, such as one that can't be written.
///
/// # Safety
/// The kernel may write `len / page` bits at `bitmap`, or can't.
pub unsafe fn raw_get_dirty(
    iommu: &Iommufd,
    hwpt_id: u32,
    iova: u64,
    len: u64,
    page: u64,
    bitmap: u64,
) -> Result<(), Errno> {
    // size and hwpt_id, flags and reserved, iova, length, page_size, data.
    let mut cmd = [48 | u64::from(hwpt_id) << 32, 0, iova, len, page, bitmap];
    // SAFETY: the structure of this ioctl, with its size; the caller vouches for `bitmap`.
    unsafe { rustix::ioctl::ioctl(iommu.as_fd(), Updater::<GET_DIRTY_BITMAP, _>::new(&mut cmd)) }
}
