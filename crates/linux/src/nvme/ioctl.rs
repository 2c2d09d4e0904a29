//! The ioctls of an NVMe controller's character device, and their structure.

use core::mem::{offset_of, size_of};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, opcode};
use towline_nvme::admin::Data;
use towline_nvme::command::AdminCommand;

use crate::raw_ioctl::with_struct;

/// `struct nvme_passthru_cmd64`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PassthruCmd64 {
    pub opcode: u8,
    pub flags: u8,
    pub rsvd1: u16,
    pub nsid: u32,
    pub cdw2: u32,
    pub cdw3: u32,
    pub metadata: u64,
    pub addr: u64,
    pub metadata_len: u32,
    pub data_len: u32,
    pub cdw10: u32,
    pub cdw11: u32,
    pub cdw12: u32,
    pub cdw13: u32,
    pub cdw14: u32,
    pub cdw15: u32,
    pub timeout_ms: u32,
    pub rsvd2: u32,
    /// DW0 | DW1 << 32 of the completion.
    pub result: u64,
}

const ADMIN64_CMD: Opcode = opcode::read_write::<PassthruCmd64>(b'N', 0x47);
const RESET: Opcode = opcode::none(b'N', 0x44);

const _: () = {
    assert!(ADMIN64_CMD == 0xc050_4e47);
    assert!(RESET == 0x4e44);
    assert!(size_of::<PassthruCmd64>() == 80);
    assert!(offset_of!(PassthruCmd64, flags) == 1);
    assert!(offset_of!(PassthruCmd64, nsid) == 4);
    assert!(offset_of!(PassthruCmd64, cdw2) == 8);
    assert!(offset_of!(PassthruCmd64, cdw3) == 12);
    assert!(offset_of!(PassthruCmd64, metadata) == 16);
    assert!(offset_of!(PassthruCmd64, addr) == 24);
    assert!(offset_of!(PassthruCmd64, metadata_len) == 32);
    assert!(offset_of!(PassthruCmd64, data_len) == 36);
    assert!(offset_of!(PassthruCmd64, cdw10) == 40);
    assert!(offset_of!(PassthruCmd64, cdw15) == 60);
    assert!(offset_of!(PassthruCmd64, timeout_ms) == 64);
    assert!(offset_of!(PassthruCmd64, result) == 72);
};

impl PassthruCmd64 {
    /// A command without its data. Flags (fused operations, SGLs) stay 0: the kernel takes nothing else.
    pub(super) fn new(cmd: &AdminCommand, timeout_ms: u32) -> Self {
        Self {
            opcode: cmd.opcode,
            nsid: cmd.nsid,
            cdw2: cmd.cdw2,
            cdw3: cmd.cdw3,
            cdw10: cmd.cdw10,
            cdw11: cmd.cdw11,
            cdw12: cmd.cdw12,
            cdw13: cmd.cdw13,
            cdw14: cmd.cdw14,
            cdw15: cmd.cdw15,
            timeout_ms,
            ..Self::default()
        }
    }
}

/// Sends an admin command. Returns the status field of the completion (as above the phase bit) and DW0 | DW1 << 32.
pub(super) fn admin64(
    device: BorrowedFd<'_>,
    mut call: PassthruCmd64,
    mut data: Data<'_>,
) -> Result<(u16, u64), Errno> {
    // The kernel maps the buffer for reading the device where bit 0 is clear, and would write to what is only lent for reading.
    let to_device = call.opcode & 1 == 1;
    (call.addr, call.data_len) = match &mut data {
        Data::None => (0, 0),
        Data::FromHost(bytes) if to_device => (bytes.as_ptr().expose_provenance() as u64, length(bytes)?),
        Data::ToHost(bytes) if !to_device => (bytes.as_mut_ptr().expose_provenance() as u64, length(bytes)?),
        _ => return Err(Errno::INVAL),
    };
    // SAFETY: on a descriptor of another kind the number is unknown, for it has the size in it. `addr` and `data_len` are null or describe
    // `data`, borrowed until this returns, exclusively where the kernel fills it: by bit 0 of the opcode, checked above.
    let status = unsafe { with_struct(device, ADMIN64_CMD, &mut call) }?;
    Ok((u16::try_from(status).map_err(|_| Errno::PROTO)?, call.result))
}

fn length(bytes: &[u8]) -> Result<u32, Errno> {
    u32::try_from(bytes.len()).map_err(|_| Errno::INVAL)
}

/// `NVME_IOCTL_RESET`.
pub(super) fn reset(device: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: takes no argument.
    unsafe { rustix::ioctl::ioctl(device, rustix::ioctl::NoArg::<RESET>::new()) }
}
