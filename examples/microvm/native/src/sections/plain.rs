//! State that KVM reads and writes as one structure of fixed size: the number of the ioctl tells how large it is.

use std::io;
use std::os::fd::RawFd;

use super::Kind;

/// The pair of ioctls of a kind (include/uapi/linux/kvm.h, x86-64).
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub get: u64,
    pub set: u64,
    /// Of the structure, in bytes.
    pub bytes: usize,
}

const READ: u64 = 2;
const WRITE: u64 = 1;
const KVMIO: u64 = 0xae;

const fn number(direction: u64, nr: u64, bytes: usize) -> u64 {
    direction << 30 | (bytes as u64) << 16 | KVMIO << 8 | nr
}

const fn pair(get: u64, set: u64, bytes: usize) -> Pair {
    Pair { get: number(READ, get, bytes), set: number(WRITE, set, bytes), bytes }
}

/// `KVM_GET_SREGS` for kernels without `KVM_CAP_SREGS2`.
pub const SREGS: Pair = pair(0x83, 0x84, 312);
/// With the page directory pointers of a 32-bit guest.
pub const SREGS2: Pair = pair(0xcc, 0xcd, 320);
pub const CLOCK: Pair = pair(0x7c, 0x7b, 48);
/// `KVM_GET_IRQCHIP` also reads which chip is meant.
pub const IRQCHIP: Pair = Pair { get: number(READ | WRITE, 0x62, 520), set: number(READ, 0x63, 520), bytes: 520 };

/// Of the kinds that are a vCPU's and need nothing but this; `sregs` is what the kernel has.
pub fn of(kind: Kind, sregs: Pair) -> Option<Pair> {
    Some(match kind {
        Kind::MpState => pair(0x98, 0x99, 4),
        Kind::Regs => pair(0x81, 0x82, 144),
        Kind::Sregs => sregs,
        Kind::Xsave => pair(0xa4, 0xa5, 4096),
        Kind::Xcrs => pair(0xa6, 0xa7, 392),
        Kind::Debugregs => pair(0xa1, 0xa2, 128),
        Kind::Lapic => pair(0x8e, 0x8f, 1024),
        Kind::Events => pair(0x9f, 0xa0, 64),
        _ => return None,
    })
}

/// Reads a structure; `start` is what it begins with for the kernel, else zeroes.
pub fn get(fd: RawFd, pair: Pair, start: &[u8]) -> io::Result<Vec<u8>> {
    // 64-bit words, so that the structure is aligned.
    let mut words = vec![0u64; pair.bytes.div_ceil(8)];
    let buffer = words.as_mut_ptr().cast::<u8>();
    let given = start.len().min(pair.bytes);
    // SAFETY: `given` bytes fit into the buffer, and do not overlap it.
    unsafe { std::ptr::copy_nonoverlapping(start.as_ptr(), buffer, given) };
    // SAFETY: the descriptor is KVM's, and the buffer has the bytes that the number of the ioctl says.
    if unsafe { libc::ioctl(fd, pair.get as _, buffer) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(words.iter().flat_map(|w| w.to_ne_bytes()).take(pair.bytes).collect())
}

/// Writes a structure; KVM checks what is in it.
pub fn set(fd: RawFd, pair: Pair, bytes: &[u8]) -> io::Result<()> {
    if bytes.len() != pair.bytes {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut words = vec![0u64; pair.bytes.div_ceil(8)];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut eight = [0; 8];
        eight.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        *word = u64::from_ne_bytes(eight);
    }
    // SAFETY: as for `get`; the kernel only reads.
    if unsafe { libc::ioctl(fd, pair.set as _, words.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{
        kvm_clock_data, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_sregs2,
        kvm_vcpu_events, kvm_xcrs, kvm_xsave,
    };

    use super::*;

    #[test]
    fn sizes_are_those_of_the_structures() {
        let of = |kind| of(kind, SREGS2).unwrap().bytes;
        assert_eq!(of(Kind::MpState), size_of::<kvm_mp_state>());
        assert_eq!(of(Kind::Regs), size_of::<kvm_regs>());
        assert_eq!(of(Kind::Sregs), size_of::<kvm_sregs2>());
        assert_eq!(of(Kind::Xsave), size_of::<kvm_xsave>());
        assert_eq!(of(Kind::Xcrs), size_of::<kvm_xcrs>());
        assert_eq!(of(Kind::Debugregs), size_of::<kvm_debugregs>());
        assert_eq!(of(Kind::Lapic), size_of::<kvm_lapic_state>());
        assert_eq!(of(Kind::Events), size_of::<kvm_vcpu_events>());
        assert_eq!(SREGS.bytes, size_of::<kvm_sregs>());
        assert_eq!(CLOCK.bytes, size_of::<kvm_clock_data>());
        assert_eq!(IRQCHIP.bytes, size_of::<kvm_irqchip>());
        assert_eq!(SREGS2.get, 0x8140_aecc);
    }
}
