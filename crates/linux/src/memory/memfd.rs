//! Anonymous files that guest memory is made of.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

/// Makes an anonymous file of `len` bytes, all zero and all holes, that can neither shrink nor grow any more
/// (`memfd_create(2)`, `F_SEAL_SHRINK`, `F_SEAL_GROW`): a mapping of it cannot raise `SIGBUS`, whoever else has it. It is closed on `exec`.
///
/// `name` shows up in `/proc/<pid>/maps`; at most 249 bytes, without NUL.
///
/// # Errors
/// `InvalidInput` for a `len` of 0, what `memfd_create`, `ftruncate` and `fcntl` say otherwise.
pub fn memfd(name: &str, len: u64) -> io::Result<OwnedFd> {
    if len == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "guest memory of 0 bytes"));
    }
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&fd, len)?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_sized_sealed_and_closed_on_exec() {
        let fd = memfd("towline-test", 8192).unwrap();
        assert_eq!(rustix::fs::fstat(&fd).unwrap().st_size, 8192);
        assert_eq!(ftruncate(&fd, 4096), Err(rustix::io::Errno::PERM));
        assert_eq!(ftruncate(&fd, 16384), Err(rustix::io::Errno::PERM));
        assert!(rustix::io::fcntl_getfd(&fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn refuses_what_cannot_be() {
        assert_eq!(memfd("x", 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(memfd("x", u64::MAX).is_err());
        assert!(memfd("a\0b", 4096).is_err());
        assert!(memfd(&"x".repeat(300), 4096).is_err());
    }
}
