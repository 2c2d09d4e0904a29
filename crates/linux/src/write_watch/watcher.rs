//! [`Watcher`]: the system calls. The kernel notes the first write to each page of what is registered, and tells.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::mm::{MsyncFlags, UserfaultfdFlags, msync, userfaultfd};
use towline_core::channel::{ChannelError, ChannelErrorKind};

use super::abi;
use crate::errno::errno_text;
use crate::raw_ioctl::with_struct;
use crate::self_maps::mappings;

/// Regions that one scan tells: 96 KiB of them. What is more is in the next scan.
pub(super) const SCAN_REGIONS: usize = 4096;

/// Addresses of this process.
pub(super) type Span = Range<u64>;

/// A userfaultfd in asynchronous write protection, and this process's page map.
#[derive(Debug)]
pub(super) struct Watcher {
    uffd: OwnedFd,
    pagemap: File,
    regions: Vec<abi::Region>,
}

fn error(kind: ChannelErrorKind, errno: Errno, message: String) -> ChannelError {
    ChannelError { errno: Some(errno.raw_os_error()), ..ChannelError::new(kind, message) }
}

const KERNEL: &str =
    "the kernel is older than Linux 6.7, or was built without CONFIG_USERFAULTFD and CONFIG_PTE_MARKER_UFFD_WP";

impl Watcher {
    pub(super) fn new() -> Result<Self, ChannelError> {
        use ChannelErrorKind as Kind;
        let flags = UserfaultfdFlags::CLOEXEC
            | UserfaultfdFlags::NONBLOCK
            | UserfaultfdFlags::from_bits_retain(abi::USER_MODE_ONLY);
        // SAFETY: the call itself is; by this descriptor, memory is only write-protected asynchronously, which nobody can see but by the
        // page map.
        let uffd = unsafe { userfaultfd(flags) }.map_err(|errno| {
            let name = errno_text(errno.raw_os_error());
            match errno {
                Errno::NOSYS => error(Kind::Unsupported, errno, format!("userfaultfd: {name}: {KERNEL}")),
                Errno::PERM | Errno::ACCESS => {
                    let why =
                        "a security policy (seccomp, LSM) or vm.unprivileged_userfaultfd of an old kernel forbids it";
                    error(Kind::Unsupported, errno, format!("userfaultfd: {name}: {why}"))
                }
                errno => error(Kind::Limit, errno, format!("userfaultfd: {name}")),
            }
        })?;
        let features = abi::FEATURE_WP_ASYNC | abi::FEATURE_WP_UNPOPULATED | abi::FEATURE_WP_HUGETLBFS_SHMEM;
        let mut api = abi::Api { api: abi::API, features, ioctls: 0 };
        // SAFETY: the structure of this ioctl.
        unsafe { with_struct(uffd.as_fd(), abi::UFFDIO_API, &mut api) }.map_err(|errno| {
            let what = format!("UFFDIO_API with WP_ASYNC: {}: {KERNEL}", errno_text(errno.raw_os_error()));
            error(Kind::Unsupported, errno, what)
        })?;
        let pagemap = File::open("/proc/self/pagemap").map_err(|e| {
            let errno = e.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
            error(Kind::Unsupported, errno, format!("/proc/self/pagemap: {e}"))
        })?;
        Ok(Self { uffd, pagemap, regions: vec![abi::Region::default(); SCAN_REGIONS] })
    }

    fn uffd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }

    /// Watches `span`, whose ends are at page boundaries: what is written after this returns is told. Returns what is really watched,
    /// which is more where huge pages of hugetlbfs go beyond it.
    pub(super) fn watch(&self, span: Span) -> Result<Span, ChannelError> {
        let registered = match self.register(&span) {
            // Of hugetlbfs only whole huge pages can be registered.
            Err(Errno::INVAL) => huge(&span).and_then(|whole| self.register(&whole).map(|()| whole)),
            other => other.map(|()| span.clone()),
        };
        let watched = registered.map_err(|errno| {
            use ChannelErrorKind as Kind;
            let name = errno_text(errno.raw_os_error());
            let (kind, why) = match errno {
                Errno::BUSY => (Kind::State, ": another userfaultfd has registered it"),
                Errno::NOENT | Errno::INVAL | Errno::NOMEM => {
                    (Kind::Gone, ": not all of it is mapped, or of memory that can't be watched")
                }
                Errno::PERM => (Kind::Unsupported, ": it is shared and not writable here"),
                _ => (Kind::Device, ""),
            };
            error(kind, errno, format!("UFFDIO_REGISTER of {:#x} .. {:#x}: {name}{why}", span.start, span.end))
        })?;
        // Also where no page is yet: otherwise the first access that only reads would look like a write.
        let range = abi::Range { start: watched.start, len: watched.end - watched.start };
        let mut protect = abi::WriteProtect { range, mode: abi::WRITEPROTECT_MODE_WP };
        loop {
            // SAFETY: the structure of this ioctl; what it does to this process's memory is seen in the page map only.
            match unsafe { with_struct(self.uffd(), abi::UFFDIO_WRITEPROTECT, &mut protect) } {
                Ok(_) => return Ok(watched),
                // Somebody maps or unmaps at the same time.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => {
                    self.unwatch(&watched);
                    let what = format!("UFFDIO_WRITEPROTECT: {}", errno_text(errno.raw_os_error()));
                    return Err(error(ChannelErrorKind::Device, errno, what));
                }
            }
        }
    }

    fn register(&self, span: &Span) -> Result<(), Errno> {
        let range = abi::Range { start: span.start, len: span.end - span.start };
        let mut register = abi::Register { range, mode: abi::REGISTER_MODE_WP, ioctls: 0 };
        // SAFETY: the structure of this ioctl. Registered in this mode only, memory stays usable as before.
        unsafe { with_struct(self.uffd(), abi::UFFDIO_REGISTER, &mut register) }.map(drop)
    }

    /// Lets go of what was watched. Where it is not mapped any more, there is nothing to be let go of.
    pub(super) fn unwatch(&self, span: &Span) {
        let mut range = abi::Range { start: span.start, len: span.end - span.start };
        // SAFETY: the structure of this ioctl, which only takes protection away that this descriptor has put there.
        let _ = unsafe { with_struct(self.uffd(), abi::UFFDIO_UNREGISTER, &mut range) };
    }

    /// Tells what of `span` was written since the last time, and watches for it again. On an error some of it was forgotten.
    pub(super) fn scan(&mut self, span: &Span, each: &mut dyn FnMut(Span)) -> Result<(), ChannelError> {
        // A part that is not mapped any more is told by nobody else: the scan below passes over it.
        // SAFETY: MS_ASYNC writes nothing and changes nothing (`mm/msync.c`); it only looks whether all of it is mapped.
        let mapped = unsafe {
            let at = std::ptr::with_exposed_provenance_mut(span.start as usize);
            msync(at, (span.end - span.start) as usize, MsyncFlags::ASYNC)
        };
        let failed = |call: &str, errno: Errno| {
            let (kind, why) = match errno {
                Errno::NOMEM | Errno::PERM => (
                    ChannelErrorKind::Gone,
                    ": watched memory was unmapped, or mapped anew, and nobody has told before",
                ),
                Errno::NOTTY | Errno::INVAL => (ChannelErrorKind::Unsupported, ": the kernel is older than Linux 6.7"),
                _ => (ChannelErrorKind::Device, ""),
            };
            let name = errno_text(errno.raw_os_error());
            error(kind, errno, format!("{call} of {:#x} .. {:#x}: {name}{why}", span.start, span.end))
        };
        mapped.map_err(|errno| failed("msync", errno))?;
        let mut at = span.start;
        while at < span.end {
            let mut scan = abi::ScanArg {
                size: size_of::<abi::ScanArg>() as u64,
                flags: abi::SCAN_WP_MATCHING | abi::SCAN_CHECK_WPASYNC,
                start: at,
                end: span.end,
                walk_end: 0,
                vec: self.regions.as_mut_ptr() as u64,
                vec_len: self.regions.len() as u64,
                max_pages: 0,
                category_inverted: 0,
                category_mask: abi::PAGE_IS_WRITTEN,
                category_anyof_mask: 0,
                return_mask: abi::PAGE_IS_WRITTEN,
            };
            // SAFETY: the structure of this ioctl with its size; `vec` is as long as `vec_len` says, and any bytes are regions.
            let count = match unsafe { with_struct(self.pagemap.as_fd(), abi::PAGEMAP_SCAN, &mut scan) } {
                Ok(count) => count,
                Err(errno) => return Err(failed("PAGEMAP_SCAN", errno)),
            };
            let count = usize::try_from(count).unwrap_or(0).min(self.regions.len());
            for region in self.regions.iter().take(count) {
                let told = region.start.max(span.start)..region.end.min(span.end);
                if told.start < told.end {
                    each(told);
                }
            }
            // It goes on where it ended: with a full vector before the end.
            if scan.walk_end <= at {
                return Err(failed("PAGEMAP_SCAN, which does not get on,", Errno::IO));
            }
            at = scan.walk_end;
        }
        Ok(())
    }
}

/// The span in whole huge pages, where it is of hugetlbfs.
fn huge(span: &Span) -> Result<Span, Errno> {
    let parts = mappings(span.clone(), true).map_err(|_| Errno::INVAL)?;
    let size = |part: Option<&crate::self_maps::Mapped>| part.and_then(|p| p.page_size).filter(|s| s.is_power_of_two());
    let (Some(first), Some(last)) = (size(parts.first()), size(parts.last())) else { return Err(Errno::INVAL) };
    let end = span.end.checked_next_multiple_of(last).ok_or(Errno::INVAL)?;
    let whole = span.start / first * first..end;
    if whole == *span { Err(Errno::INVAL) } else { Ok(whole) }
}
