//! The system calls: one function an ioctl, each with the structure that the header gives it.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::raw::c_void;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FEATURE_GET, VFIO_DEVICE_FEATURE_SET, vfio_device_info, vfio_group_status, vfio_precopy_info,
    vfio_region_info,
};

use super::abi::{self, Feature};

/// An ioctl with the value of its argument, a pointer or a number, and its return value as the result.
struct Call {
    opcode: Opcode,
    argument: *mut c_void,
}

// SAFETY: `opcode` and `argument` are what the functions below paired, by the header; the result is the return value and
// nothing is read through the pointer. Every call counts as mutating.
unsafe impl Ioctl for Call {
    type Output = IoctlOutput;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<IoctlOutput> {
        Ok(out)
    }
}

/// # Safety
/// On a descriptor of the kind of `fd`, `opcode` takes a number, or takes no argument.
unsafe fn with_number(fd: BorrowedFd<'_>, opcode: Opcode, number: usize) -> Result<i32, Errno> {
    // SAFETY: by the caller's promise the kernel doesn't use the argument as a pointer.
    unsafe { rustix::ioctl::ioctl(fd, Call { opcode, argument: std::ptr::without_provenance_mut(number) }) }
}

/// # Safety
/// On a descriptor of the kind of `fd`, `opcode` takes a pointer to a `T`, of which the kernel reads and writes at most
/// `size_of::<T>()` bytes (as `argsz` tells it, where there is one), and any bytes are a valid `T`.
unsafe fn with_struct<T: Copy>(fd: BorrowedFd<'_>, opcode: Opcode, argument: &mut T) -> Result<i32, Errno> {
    // SAFETY: the pointer is valid for the call, exclusive, and of the type that the caller promises.
    unsafe { rustix::ioctl::ioctl(fd, Call { opcode, argument: std::ptr::from_mut(argument).cast() }) }
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
    let call = Call { opcode: abi::GROUP_GET_DEVICE_FD, argument: name.as_ptr().cast_mut().cast() };
    // SAFETY: takes a pointer to a string that ends with NUL, and only reads it.
    let number = unsafe { rustix::ioctl::ioctl(group, call) }?;
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

/// `VFIO_DEVICE_GET_REGION_INFO`, without its capabilities.
pub(super) fn region_info(device: BorrowedFd<'_>, index: u32) -> Result<vfio_region_info, Errno> {
    let mut info = vfio_region_info { argsz: argsz::<vfio_region_info>(), index, ..Default::default() };
    // SAFETY: the structure of this ioctl, with its size: capabilities that don't fit are left out.
    unsafe { with_struct(device, abi::DEVICE_GET_REGION_INFO, &mut info) }?;
    Ok(info)
}

/// `VFIO_DEVICE_RESET`.
pub(super) fn reset(device: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: takes no argument.
    unsafe { with_number(device, abi::DEVICE_RESET, 0) }.map(drop)
}

/// `VFIO_DEVICE_FEATURE` with `VFIO_DEVICE_FEATURE_GET`.
///
/// # Safety
/// `T` is the structure of feature `index`, holds no pointers, and any bytes are a valid one.
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
