//! The system calls: one function an ioctl, each with the structure that the header gives it.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::ioctl::Opcode;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_BIND_FLAG_TOKEN, VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
    VFIO_DEVICE_FEATURE_GET, VFIO_DEVICE_FEATURE_PROBE, VFIO_DEVICE_FEATURE_SET, vfio_device_attach_iommufd_pt,
    vfio_device_bind_iommufd, vfio_device_detach_iommufd_pt, vfio_device_feature_dma_logging_control,
    vfio_device_feature_dma_logging_range, vfio_device_feature_dma_logging_report, vfio_device_info, vfio_group_status,
    vfio_irq_info, vfio_precopy_info, vfio_region_info,
};

use super::abi::{self, Feature};
use crate::raw_ioctl::{with_argument, with_struct, with_words};

/// # Safety
/// On a descriptor of the kind of `fd`, `opcode` takes a number, or takes no argument.
unsafe fn with_number(fd: BorrowedFd<'_>, opcode: Opcode, number: usize) -> Result<i32, Errno> {
    // SAFETY: by the caller's promise the kernel doesn't use the argument as a pointer.
    unsafe { with_argument(fd, opcode, std::ptr::without_provenance_mut(number)) }
}

/// The size of a structure as its `argsz`.
const fn argsz<T>() -> u32 {
    size_of::<T>() as u32
}

/// A descriptor that an ioctl made for us.
///
/// # Safety
/// `number` came out of a successful ioctl that installs a new descriptor, and nobody else has taken it.
unsafe fn taken(number: i32) -> Option<OwnedFd> {
    // SAFETY: the caller's promise, and -1 is kept out.
    (number >= 0).then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// `VFIO_GET_API_VERSION` on a container.
pub(super) fn api_version(container: BorrowedFd<'_>) -> Result<i32, Errno> {
    // SAFETY: takes no argument.
    unsafe { with_number(container, abi::GET_API_VERSION, 0) }
}

/// `VFIO_CHECK_EXTENSION` on a container.
pub(super) fn check_extension(container: BorrowedFd<'_>, extension: u32) -> Result<i32, Errno> {
    // SAFETY: takes a number.
    unsafe { with_number(container, abi::CHECK_EXTENSION, extension as usize) }
}

/// `VFIO_SET_IOMMU` on a container that has a group.
pub(super) fn set_iommu(container: BorrowedFd<'_>, model: u32) -> Result<(), Errno> {
    // SAFETY: takes a number.
    unsafe { with_number(container, abi::SET_IOMMU, model as usize) }.map(drop)
}

/// `VFIO_GROUP_GET_STATUS`: the flags.
pub(super) fn group_status(group: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut status = vfio_group_status { argsz: argsz::<vfio_group_status>(), ..Default::default() };
    // SAFETY: the structure of this ioctl, with its size.
    unsafe { with_struct(group, abi::GROUP_GET_STATUS, &mut status) }?;
    Ok(status.flags)
}

/// `VFIO_GROUP_SET_CONTAINER`.
pub(super) fn set_container(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut fd = container.as_raw_fd();
    // SAFETY: takes a pointer to an int, and only reads it.
    unsafe { with_struct(group, abi::GROUP_SET_CONTAINER, &mut fd) }.map(drop)
}

/// `VFIO_GROUP_GET_DEVICE_FD`: the descriptor is the return value.
pub(super) fn device_fd(group: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    // SAFETY: takes a pointer to a string that ends with NUL, and only reads it.
    let number = unsafe { with_argument(group, abi::GROUP_GET_DEVICE_FD, name.as_ptr().cast_mut().cast()) }?;
    // SAFETY: this ioctl returns a new descriptor.
    unsafe { taken(number) }.ok_or(Errno::BADF)
}

/// `VFIO_DEVICE_GET_INFO`.
pub(super) fn device_info(device: BorrowedFd<'_>) -> Result<vfio_device_info, Errno> {
    let mut info = vfio_device_info { argsz: argsz::<vfio_device_info>(), ..Default::default() };
    // SAFETY: the structure of this ioctl, with its size. On other kinds of VFIO descriptors the number is not used.
    unsafe { with_struct(device, abi::DEVICE_GET_INFO, &mut info) }?;
    Ok(info)
}

/// `VFIO_DEVICE_GET_REGION_INFO` into words, which have the structure at their start and its capabilities behind it, as far as
/// they fit; the `argsz` that the kernel leaves tells how many bytes it takes. `words` are at least those of the structure.
pub(super) fn region_info(device: BorrowedFd<'_>, index: u32, words: &mut [u64]) -> Result<vfio_region_info, Errno> {
    let bytes = u32::try_from(size_of_val(words)).map_err(|_| Errno::TOOBIG)?;
    if bytes < argsz::<vfio_region_info>() {
        return Err(Errno::INVAL);
    }
    words.fill(0);
    let info = vfio_region_info { argsz: bytes, index, ..Default::default() };
    let start = words.as_mut_ptr().cast::<vfio_region_info>();
    // SAFETY: there is room for the structure, as was just checked, and words are aligned for it.
    unsafe { start.write(info) };
    // SAFETY: the structure of this ioctl, with the size of all of `words`: capabilities that don't fit are left out.
    unsafe { with_words(device, abi::DEVICE_GET_REGION_INFO, words) }?;
    // SAFETY: as above; any bytes are a valid one.
    Ok(unsafe { words.as_ptr().cast::<vfio_region_info>().read() })
}

/// `VFIO_DEVICE_GET_IRQ_INFO`.
pub(super) fn irq_info(device: BorrowedFd<'_>, index: u32) -> Result<vfio_irq_info, Errno> {
    let mut info = vfio_irq_info { argsz: argsz::<vfio_irq_info>(), index, ..Default::default() };
    // SAFETY: the structure of this ioctl, with its size.
    unsafe { with_struct(device, abi::DEVICE_GET_IRQ_INFO, &mut info) }?;
    Ok(info)
}

/// What a `VFIO_DEVICE_SET_IRQS` carries.
#[derive(Clone, Copy, Debug)]
pub(super) enum IrqData<'a> {
    /// `VFIO_IRQ_SET_DATA_NONE`: all `count` of them alike.
    None { count: u32 },
    /// `VFIO_IRQ_SET_DATA_BOOL`: those that are not 0.
    Bool(&'a [u8]),
    /// `VFIO_IRQ_SET_DATA_EVENTFD`: -1 for none.
    Eventfds(&'a [i32]),
}

/// Why a `VFIO_DEVICE_SET_IRQS` did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IrqRefusal {
    pub(super) errno: Errno,
    /// How many vectors could be had, where the kernel says so instead of an errno; then `errno` is `ENOSPC`.
    pub(super) could: Option<u32>,
}

impl From<Errno> for IrqRefusal {
    fn from(errno: Errno) -> Self {
        Self { errno, could: None }
    }
}

/// What a `VFIO_DEVICE_SET_IRQS` that didn't fail returned. Only 0 is success: where the host has fewer vectors than were asked
/// for, the kernel enables none and returns how many there are (`drivers/vfio/pci/vfio_pci_intrs.c`, `vfio_msi_enable`).
fn irqs_were_set(answer: i32) -> Result<(), IrqRefusal> {
    match u32::try_from(answer) {
        Ok(0) => Ok(()),
        could => Err(IrqRefusal { errno: Errno::NOSPC, could: could.ok() }),
    }
}

/// `VFIO_DEVICE_SET_IRQS`. `action` is one of `VFIO_IRQ_SET_ACTION_*`.
pub(super) fn set_irqs(
    device: BorrowedFd<'_>,
    index: u32,
    start: u32,
    action: u32,
    data: IrqData<'_>,
) -> Result<(), IrqRefusal> {
    use vfio_bindings::bindings::vfio::{VFIO_IRQ_SET_DATA_BOOL, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE};
    let (kind, count, bytes): (u32, usize, Vec<u8>) = match data {
        IrqData::None { count } => (VFIO_IRQ_SET_DATA_NONE, count as usize, Vec::new()),
        IrqData::Bool(which) => (VFIO_IRQ_SET_DATA_BOOL, which.len(), which.to_vec()),
        IrqData::Eventfds(fds) => {
            (VFIO_IRQ_SET_DATA_EVENTFD, fds.len(), fds.iter().flat_map(|fd| fd.to_ne_bytes()).collect())
        }
    };
    let header = [0, kind | action, index, start, u32::try_from(count).map_err(|_| Errno::TOOBIG)?];
    let mut all: Vec<u8> = header.iter().flat_map(|field| field.to_ne_bytes()).chain(bytes).collect();
    let len = u32::try_from(all.len()).map_err(|_| Errno::TOOBIG)?;
    if let Some(argsz) = all.get_mut(..4) {
        argsz.copy_from_slice(&len.to_ne_bytes());
    }
    all.resize(all.len().next_multiple_of(8), 0);
    let word = |chunk: &[u8]| chunk.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
    let mut words: Vec<u64> = all.chunks_exact(8).map(|chunk| u64::from_le(word(chunk))).collect();
    // SAFETY: struct vfio_irq_set, its five fields and the data behind them, with its size; it only reads.
    irqs_were_set(unsafe { with_words(device, abi::DEVICE_SET_IRQS, &mut words) }?)
}

/// `VFIO_DEVICE_BIND_IOMMUFD` on a device's own node: the number of the device in the iommufd.
pub(super) fn bind_iommufd(
    device: BorrowedFd<'_>,
    iommufd: BorrowedFd<'_>,
    token: Option<&[u8; 16]>,
) -> Result<u32, Errno> {
    let mut bind = vfio_device_bind_iommufd { iommufd: iommufd.as_raw_fd(), ..Default::default() };
    match token {
        // Kernels without tokens know only the first 16 bytes.
        None => bind.argsz = abi::BIND_WITHOUT_TOKEN,
        Some(token) => {
            bind.argsz = argsz::<vfio_device_bind_iommufd>();
            bind.flags = VFIO_DEVICE_BIND_FLAG_TOKEN;
            bind.token_uuid_ptr = token.as_ptr() as u64;
        }
    }
    // SAFETY: the structure of this ioctl, with a size that is no larger; the address in it is that of 16 bytes, which are
    // only read.
    unsafe { with_struct(device, abi::DEVICE_BIND_IOMMUFD, &mut bind) }?;
    Ok(bind.out_devid)
}

/// `VFIO_DEVICE_ATTACH_IOMMUFD_PT`: returns what it was attached to.
pub(super) fn attach(device: BorrowedFd<'_>, pt_id: u32) -> Result<u32, Errno> {
    // Without the PASID, which older kernels don't know: `argsz` ends before it.
    let mut attach = vfio_device_attach_iommufd_pt { argsz: 12, pt_id, ..Default::default() };
    // SAFETY: the structure of this ioctl, with a size that is no larger.
    unsafe { with_struct(device, abi::DEVICE_ATTACH_IOMMUFD_PT, &mut attach) }?;
    Ok(attach.pt_id)
}

/// `VFIO_DEVICE_DETACH_IOMMUFD_PT`.
pub(super) fn detach(device: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut detach = vfio_device_detach_iommufd_pt { argsz: 8, ..Default::default() };
    // SAFETY: the structure of this ioctl, with a size that is no larger.
    unsafe { with_struct(device, abi::DEVICE_DETACH_IOMMUFD_PT, &mut detach) }.map(drop)
}

/// `VFIO_DEVICE_FEATURE` with `VFIO_DEVICE_FEATURE_PROBE`: whether feature `index` has `operation`
/// (`VFIO_DEVICE_FEATURE_GET`, `VFIO_DEVICE_FEATURE_SET`).
pub(super) fn feature_probe(device: BorrowedFd<'_>, index: u32, operation: u32) -> Result<(), Errno> {
    let mut feature = Feature { argsz: 8, flags: index | operation | VFIO_DEVICE_FEATURE_PROBE, data: () };
    // SAFETY: the header of this ioctl's structure, with its size; a probe has no data.
    unsafe { with_struct(device, abi::DEVICE_FEATURE, &mut feature) }.map(drop)
}

/// `VFIO_DEVICE_FEATURE` with `VFIO_DEVICE_FEATURE_SET`, for a feature without data.
pub(super) fn feature_do(device: BorrowedFd<'_>, index: u32) -> Result<(), Errno> {
    // SAFETY: no data is the structure of such a feature.
    unsafe { feature_set(device, index, ()) }
}

/// `VFIO_DEVICE_FEATURE_DMA_LOGGING_START`: the page size in force.
pub(super) fn dma_logging_start(
    device: BorrowedFd<'_>,
    page_size: u64,
    ranges: &[vfio_device_feature_dma_logging_range],
) -> Result<u64, Errno> {
    let data = vfio_device_feature_dma_logging_control {
        page_size,
        num_ranges: u32::try_from(ranges.len()).map_err(|_| Errno::TOOBIG)?,
        ranges: ranges.as_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the structure of this feature; the address in it is that of so many ranges, which are only read.
    let got = unsafe { feature_set(device, VFIO_DEVICE_FEATURE_DMA_LOGGING_START, data) }?;
    Ok(got.page_size)
}

/// `VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT`: sets bits of `bitmap`, which has one for each page of the range.
pub(super) fn dma_logging_report(
    device: BorrowedFd<'_>,
    iova: u64,
    length: u64,
    page_size: u64,
    bitmap: &mut [u64],
) -> Result<(), Errno> {
    let bits = length.checked_div(page_size).ok_or(Errno::INVAL)?;
    if !length.is_multiple_of(page_size) || bits.div_ceil(64) > bitmap.len() as u64 {
        return Err(Errno::INVAL);
    }
    let data = vfio_device_feature_dma_logging_report { iova, length, page_size, bitmap: bitmap.as_mut_ptr() as u64 };
    // SAFETY: the structure of this feature; the address in it is that of `bitmap`, which has a bit for each page, as was just
    // checked, and any bits are valid there.
    unsafe { feature_get(device, VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, data) }.map(drop)
}

/// `VFIO_DEVICE_RESET`.
pub(super) fn reset(device: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: takes no argument.
    unsafe { with_number(device, abi::DEVICE_RESET, 0) }.map(drop)
}

/// `VFIO_DEVICE_FEATURE` with `VFIO_DEVICE_FEATURE_GET`.
///
/// # Safety
/// `T` is the structure of feature `index`, addresses in it are good for what the kernel does with them, and any bytes are a
/// valid one.
pub(super) unsafe fn feature_get<T: Copy>(device: BorrowedFd<'_>, index: u32, data: T) -> Result<T, Errno> {
    let mut feature = Feature { argsz: argsz::<Feature<T>>(), flags: index | VFIO_DEVICE_FEATURE_GET, data };
    // SAFETY: the structure of this ioctl with that of the feature behind it, by the caller's promise, and its size.
    unsafe { with_struct(device, abi::DEVICE_FEATURE, &mut feature) }?;
    Ok(feature.data)
}

/// `VFIO_DEVICE_FEATURE` with `VFIO_DEVICE_FEATURE_SET`. Returns the structure as the kernel left it.
///
/// # Safety
/// As for [`feature_get`].
pub(super) unsafe fn feature_set<T: Copy>(device: BorrowedFd<'_>, index: u32, data: T) -> Result<T, Errno> {
    let mut feature = Feature { argsz: argsz::<Feature<T>>(), flags: index | VFIO_DEVICE_FEATURE_SET, data };
    // SAFETY: as above.
    unsafe { with_struct(device, abi::DEVICE_FEATURE, &mut feature) }?;
    Ok(feature.data)
}

/// Takes the data_fd that a state change made; `None` for -1.
///
/// # Safety
/// `number` is the `data_fd` of a successful `VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE` SET, taken once.
pub(super) unsafe fn take_data_fd(number: i32) -> Option<OwnedFd> {
    // SAFETY: the kernel installed it for this process, by the caller's promise.
    unsafe { taken(number) }
}

/// `VFIO_MIG_GET_PRECOPY_INFO` on a data_fd.
pub(super) fn precopy_info(data_fd: BorrowedFd<'_>) -> Result<vfio_precopy_info, Errno> {
    let mut info = vfio_precopy_info { argsz: argsz::<vfio_precopy_info>(), ..Default::default() };
    // SAFETY: the structure of this ioctl, with its size.
    unsafe { with_struct(data_fd, abi::MIG_GET_PRECOPY_INFO, &mut info) }?;
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_that_could_be_had_are_no_success() {
        assert_eq!(irqs_were_set(0), Ok(()));
        assert_eq!(irqs_were_set(3), Err(IrqRefusal { errno: Errno::NOSPC, could: Some(3) }));
        assert_eq!(irqs_were_set(i32::MAX).unwrap_err().could, Some(i32::MAX as u32));
        assert_eq!(irqs_were_set(-1).unwrap_err().could, None);
    }
}
