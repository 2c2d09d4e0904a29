//! Maps RAM for the guest before it runs: the first touch of a page by a guest is dear.

use crate::ram::Ram;
use crate::vcpu::Vcpu;

/// struct kvm_pre_fault_memory
#[repr(C)]
struct Range {
    gpa: u64,
    size: u64,
    flags: u64,
    padding: [u64; 5],
}

/// `KVM_PRE_FAULT_MEMORY`, Linux 6.11
const PRE_FAULT_MEMORY: u64 = 3 << 30 | 64 << 16 | 0xae << 8 | 0xd5;

/// Does what KVM can: kernels without it, and ways of paging that it does not serve, leave it to the guest's first touch. Returns bytes mapped.
pub fn prefault(vcpu: &Vcpu, ram: &Ram) -> u64 {
    let fd = vcpu.fd();
    let mut mapped = 0;
    for range in ram.ranges() {
        let mut rest = Range { gpa: range.gpa, size: range.len, flags: 0, padding: [0; 5] };
        while rest.size > 0 {
            let before = rest.size;
            // SAFETY: the descriptor is KVM's and locked here; the structure is the one that the ioctl wants. It is advanced by the kernel.
            let r = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&*fd), PRE_FAULT_MEMORY as _, &raw mut rest) };
            mapped += before - rest.size;
            let interrupted = r < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR);
            if r < 0 && !interrupted || r == 0 && rest.size == before {
                return mapped;
            }
        }
    }
    mapped
}
