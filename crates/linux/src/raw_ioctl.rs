//! An ioctl with a structure, a pointer or a number as its argument, for the modules that pair the two.

use std::os::fd::BorrowedFd;
use std::os::raw::c_void;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};

struct Call {
    opcode: Opcode,
    argument: *mut c_void,
}

// SAFETY: whoever makes a `Call` has paired `opcode` and `argument`; the result is the return value and nothing is read
// through the pointer. Every call counts as mutating.
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
/// On a descriptor of the kind of `fd`, `opcode` takes `argument`: as a number, or as a pointer that is good for what the kernel does with it.
pub(crate) unsafe fn with_argument(fd: BorrowedFd<'_>, opcode: Opcode, argument: *mut c_void) -> Result<i32, Errno> {
    // SAFETY: by the caller's promise.
    unsafe { rustix::ioctl::ioctl(fd, Call { opcode, argument }) }
}

/// # Safety
/// On a descriptor of the kind of `fd`, `opcode` takes a pointer to a `T`, of which the kernel reads and writes at most
/// `size_of::<T>()` bytes (as the structure's own size field tells it), any bytes are a valid `T`, and addresses in it are
/// good for what the kernel does with them.
pub(crate) unsafe fn with_struct<T>(fd: BorrowedFd<'_>, opcode: Opcode, argument: &mut T) -> Result<i32, Errno> {
    // SAFETY: the pointer is valid for the call, exclusive, and of the type that the caller promises.
    unsafe { with_argument(fd, opcode, std::ptr::from_mut(argument).cast()) }
}

/// # Safety
/// As [`with_struct`], for a structure with data behind it: the kernel reads and writes at most `argument.len()` words.
pub(crate) unsafe fn with_words(fd: BorrowedFd<'_>, opcode: Opcode, argument: &mut [u64]) -> Result<i32, Errno> {
    // SAFETY: as above; words are aligned for every structure of these interfaces.
    unsafe { with_argument(fd, opcode, argument.as_mut_ptr().cast()) }
}
