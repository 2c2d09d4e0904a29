//! The time stamp counter, which goes on over a migration by the time that has passed.
//!
//! Payload: u64 the guest's counter, u64 `CLOCK_REALTIME` in nanoseconds at the same time, u32 its frequency in kHz, u32 0.

use std::os::fd::AsRawFd;

use kvm_bindings::kvm_device_attr;
use kvm_ioctls::VcpuFd;

use super::registers;

const BYTES: usize = 24;
/// `KVM_VCPU_TSC_CTRL`, `KVM_VCPU_TSC_OFFSET` (Documentation/virt/kvm/devices/vcpu.rst, 4.1)
const TSC_CONTROL: u32 = 0;
const TSC_OFFSET: u64 = 0;
/// Frequencies of two measurements of one machine differ a little.
const SLACK_KHZ: u32 = 1000;

/// `KVM_SET_DEVICE_ATTR` (include/uapi/linux/kvm.h); kvm-ioctls has it for other architectures only.
const SET_DEVICE_ATTR: u64 = 0x4018_aee1;

/// Sets the offset of a vCPU's counter to the host's; `ENXIO` where the kernel has no such attribute.
fn set_offset(vcpu: &VcpuFd, offset: u64) -> std::io::Result<()> {
    let attribute =
        kvm_device_attr { group: TSC_CONTROL, attr: TSC_OFFSET, addr: &raw const offset as u64, ..Default::default() };
    // SAFETY: the descriptor is a vCPU's; the attribute points to the 8 bytes that it has, which live until the call returns.
    if unsafe { libc::ioctl(vcpu.as_raw_fd(), SET_DEVICE_ATTR as _, &raw const attribute) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// A moment, as one vCPU had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    pub guest_tsc: u64,
    pub real_ns: u64,
    pub khz: u32,
}

fn real_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec of this frame.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn host_tsc() -> u64 {
    // SAFETY: every x86-64 processor on which KVM runs has the instruction.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The moment now, by the host's clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    real_ns: u64,
    host_tsc: u64,
}

impl Now {
    pub fn read() -> Self {
        Self { real_ns: real_ns(), host_tsc: host_tsc() }
    }
}

impl Moment {
    pub fn of(vcpu: &VcpuFd, khz: u32) -> Option<Self> {
        Some(Self { real_ns: real_ns(), guest_tsc: registers::get(vcpu, registers::TSC)?, khz })
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BYTES);
        out.extend_from_slice(&self.guest_tsc.to_le_bytes());
        out.extend_from_slice(&self.real_ns.to_le_bytes());
        out.extend_from_slice(&u64::from(self.khz).to_le_bytes());
        out
    }

    pub fn decode(payload: &[u8]) -> Result<Self, String> {
        let words = payload.as_chunks::<8>();
        let ([tsc, real, khz], []) = words else { return Err(format!("{} bytes of time", payload.len())) };
        let khz = u32::try_from(u64::from_le_bytes(*khz)).ok().filter(|k| *k != 0).ok_or("no frequency")?;
        Ok(Self { guest_tsc: u64::from_le_bytes(*tsc), real_ns: u64::from_le_bytes(*real), khz })
    }

    /// The counter at `now`. A clock that went back counts as one that stood still: the counter never goes back.
    fn at(&self, now: Now) -> u64 {
        let passed = u128::from(now.real_ns.saturating_sub(self.real_ns));
        let ticks = passed * u128::from(self.khz) / 1_000_000;
        self.guest_tsc.wrapping_add(u64::try_from(ticks).unwrap_or(0))
    }

    /// Has a vCPU's counter go on from here.
    pub fn restore(&self, vcpu: &VcpuFd, khz: u32, now: Now) -> Result<(), String> {
        if self.khz.abs_diff(khz) > SLACK_KHZ {
            return Err(format!("the counter has {} kHz there and {khz} kHz here", self.khz));
        }
        let offset = self.at(now).wrapping_sub(now.host_tsc);
        match set_offset(vcpu, offset) {
            Ok(()) => return Ok(()),
            Err(e) if e.raw_os_error() != Some(libc::ENXIO) => return Err(format!("KVM_VCPU_TSC_OFFSET: {e}")),
            Err(_) => {}
        }
        // Older kernels: less exact, since time passes until it is written.
        if registers::set(vcpu, registers::TSC, self.at(Now::read())) {
            return Ok(());
        }
        Err("the counter can't be set".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_by_the_time_that_passed_and_never_back() {
        let moment = Moment { guest_tsc: 1000, real_ns: 5_000_000, khz: 2_000_000 };
        let now = |real_ns| Now { real_ns, host_tsc: 0 };
        assert_eq!(moment.at(now(5_000_000)), 1000);
        assert_eq!(moment.at(now(5_000_500)), 2000);
        assert_eq!(moment.at(now(0)), 1000);
        assert_eq!(Moment::decode(&moment.encode()), Ok(moment));
        assert!(Moment::decode(&moment.encode()[..23]).is_err());
        assert!(Moment::decode(&[0; 24]).is_err());
    }
}
