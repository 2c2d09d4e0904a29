//! Brings a controller up as the Linux driver does, and writes the first state.

use std::time::{Duration, Instant};

use crate::error::TenantError;
use crate::guest::{Command, Completion, Device, Guest, Queues};
use crate::layout::{ADMIN_ENTRIES, IO_ENTRIES, Layout, MAX_UNITS_PER_COMMAND, TenantSpec, UNIT_BYTES};
use crate::ring::Ring;
use crate::slot::Slots;
use crate::state::State;

const CAP: u64 = 0x00;
const VS: u64 = 0x08;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;

const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Command identifier of the Asynchronous Event Request; other admin commands count below it.
pub(crate) const AER_CID: u16 = 0x7fff;

/// The admin queue pair, before anything else runs on it.
struct Admin<'a> {
    guest: &'a Guest,
    device: &'a Device,
    queues: Queues,
    ring: Ring,
    cid: u16,
}

impl Admin<'_> {
    /// Sends a command and waits for its completion.
    fn run(&mut self, what: &'static str, command: Command) -> Result<Completion, TenantError> {
        self.cid += 1;
        let cid = self.cid;
        self.queues.submit(self.guest, self.device, &mut self.ring, &Command { cid, ..command })?;
        let until = Instant::now() + ADMIN_TIMEOUT;
        while Instant::now() < until {
            if let Some(completion) = self.queues.poll(self.guest, &mut self.ring)? {
                self.queues.done(self.device, &self.ring);
                if completion.cid == cid {
                    return Ok(completion);
                }
            } else if self.device.read32(CSTS) & 2 != 0 {
                return Err(TenantError::Controller(format!("fatal status during {what}")));
            } else {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        Err(TenantError::Timeout(what))
    }

    fn must(&mut self, what: &'static str, command: Command) -> Result<u32, TenantError> {
        let completion = self.run(what, command)?;
        // More and DNR aside.
        match completion.status & 0x7ff {
            0 => Ok(completion.dw0),
            status => Err(TenantError::Command { what, status }),
        }
    }

    fn identify(&mut self, what: &'static str, nsid: u32, cns: u32, buffer: u64) -> Result<[u8; 4096], TenantError> {
        self.must(what, Command { opcode: 0x06, nsid, prp1: buffer, dw10: cns, ..Command::default() })?;
        let mut data = [0; 4096];
        self.guest.read(buffer, &mut data)?;
        Ok(data)
    }
}

fn wait_ready(device: &Device, ready: bool, limit: Duration) -> Result<(), TenantError> {
    let until = Instant::now() + limit;
    loop {
        let csts = device.read32(CSTS);
        if csts == u32::MAX {
            return Err(TenantError::Controller("no function answers".into()));
        }
        if ready && csts & 2 != 0 {
            return Err(TenantError::Controller("fatal status (CSTS.CFS)".into()));
        }
        if (csts & 1 == 1) == ready {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(TenantError::Timeout(if ready { "CC.EN = 1" } else { "CC.EN = 0" }));
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Resets and enables the controller, creates the I/O queues and leaves everything in guest memory.
pub(crate) fn boot(guest: &Guest, device: &Device, spec: &TenantSpec, layout: &Layout) -> Result<(), TenantError> {
    let cap = device.read64(CAP);
    if device.read32(VS) == u32::MAX || cap == u64::MAX {
        return Err(TenantError::Controller("no function answers".into()));
    }
    let limit = Duration::from_millis(500 * ((cap >> 24 & 0xff) + 1));
    if (cap & 0xffff) + 1 < u64::from(IO_ENTRIES) {
        return Err(TenantError::Controller(format!("queues have at most {} entries", (cap & 0xffff) + 1)));
    }
    if 4u64 << (cap >> 32 & 0xf) != u64::from(spec.doorbell_stride) {
        return Err(TenantError::Controller("CAP.DSTRD differs from doorbell_stride".into()));
    }
    if cap >> 48 & 0xf != 0 {
        return Err(TenantError::Controller("pages of 4 KiB are not supported (CAP.MPSMIN)".into()));
    }
    device.write32(CC, device.read32(CC) & !1);
    wait_ready(device, false, limit)?;

    for page in [layout.admin_sq(), layout.admin_cq(), layout.identify(), layout.telemetry().gpa] {
        guest.zero(page, 4096)?;
    }
    device.write32(AQA, (ADMIN_ENTRIES - 1) << 16 | (ADMIN_ENTRIES - 1));
    device.write64(ASQ, layout.admin_sq());
    device.write64(ACQ, layout.admin_cq());
    // Entry sizes 64 and 16 bytes; without EN first, and CAP read again, as Linux does for controllers with several
    // command sets.
    let cc = 4 << 20 | 6 << 16;
    device.write32(CC, cc);
    let _ = device.read64(CAP);
    device.write32(CC, cc | 1);
    wait_ready(device, true, limit)?;

    let queues = Queues { qid: 0, sq: layout.admin_sq(), cq: layout.admin_cq(), entries: ADMIN_ENTRIES };
    let mut admin = Admin { guest, device, queues, ring: Ring::new(), cid: 0 };
    let mut state = State::new(spec);

    let controller = admin.identify("Identify Controller", 0, 1, layout.identify())?;
    // MDTS: a power of two of CAP.MPSMIN pages, 0 is no limit.
    let mdts = controller.get(77).copied().unwrap_or(0);
    state.max_units = match mdts {
        0 => MAX_UNITS_PER_COMMAND,
        1..=3 => 1 << mdts,
        _ => MAX_UNITS_PER_COMMAND,
    }
    .into();

    let ask = spec.io_queue_pairs - 1;
    let granted = admin
        .must("Set Features 07h", Command { opcode: 0x09, dw10: 7, dw11: ask << 16 | ask, ..Command::default() })?;
    let pairs = ((granted & 0xffff).min(granted >> 16) + 1).min(spec.io_queue_pairs);
    state.io_queue_pairs = pairs.into();

    for qid in 1..=pairs as u16 {
        guest.zero(layout.io_sq(qid), 4096)?;
        guest.zero(layout.io_cq(qid), 4096)?;
        let dw10 = (IO_ENTRIES - 1) << 16 | u32::from(qid);
        // Physically contiguous, interrupts enabled, vector = queue id.
        let cq = Command {
            opcode: 0x05,
            prp1: layout.io_cq(qid),
            dw10,
            dw11: u32::from(qid) << 16 | 3,
            ..Command::default()
        };
        admin.must("Create I/O Completion Queue", cq)?;
        let sq = Command {
            opcode: 0x01,
            prp1: layout.io_sq(qid),
            dw10,
            dw11: u32::from(qid) << 16 | 1,
            ..Command::default()
        };
        admin.must("Create I/O Submission Queue", sq)?;
    }

    // Optional, as in Linux: controllers without the list still have the namespace.
    admin.run(
        "Identify, active namespaces",
        Command { opcode: 0x06, prp1: layout.identify(), dw10: 2, ..Command::default() },
    )?;
    let descriptors = Command { opcode: 0x06, nsid: spec.nsid, prp1: layout.identify(), dw10: 3, ..Command::default() };
    admin.run("Identify, namespace descriptors", descriptors)?;
    let namespace = admin.identify("Identify Namespace", spec.nsid, 0, layout.identify())?;
    let (blocks, block_bytes) = geometry(&namespace)?;
    state.blocks_per_unit = UNIT_BYTES / block_bytes;
    if blocks / state.blocks_per_unit < spec.units {
        return Err(TenantError::Spec(format!(
            "the namespace has {} units of 4 KiB, not {}",
            blocks / state.blocks_per_unit,
            spec.units
        )));
    }

    let aer = Command { opcode: 0x0c, cid: AER_CID, ..Command::default() };
    admin.queues.submit(guest, device, &mut admin.ring, &aer)?;

    state.admin_cid = admin.cid.into();
    let [first, ..] = &mut state.rings;
    *first = admin.ring;
    guest.zero(layout.unit_table().gpa, layout.unit_table().len)?;
    Slots::boot(guest, layout)?;
    state.save(guest, layout)
}

/// Number of logical blocks and bytes of each, out of Identify Namespace.
fn geometry(data: &[u8; 4096]) -> Result<(u64, u64), TenantError> {
    let size = data.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b));
    let format = usize::from(data.get(26).copied().unwrap_or(0) & 0xf);
    let shift = data.get(128 + 4 * format + 2).copied().unwrap_or(0);
    if size == 0 || !(9..=12).contains(&shift) {
        return Err(TenantError::Controller(format!("a namespace of {size} blocks of 2^{shift} bytes")));
    }
    Ok((size, 1 << shift))
}
