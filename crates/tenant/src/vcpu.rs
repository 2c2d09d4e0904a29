//! The CPU of a tenant: takes completions, submits commands, writes memory.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use towline_linux::clock::monotonic_ns;

use crate::block::{self, Found, Version};
use crate::boot::AER_CID;
use crate::control::{Shared, TenantStats, Wish};
use crate::error::TenantError;
use crate::guest::{Command, Completion, Device, Guest, Queues};
use crate::layout::{ADMIN_ENTRIES, IO_ENTRIES, Layout, UNIT_BYTES};
use crate::record::{FLAG_UNEXPECTED, FOUND_INVALID, Kind, LogWriter, Record};
use crate::slot::{Op, Slot, Slots};
use crate::state::State;
use crate::tenant::{RunOptions, Tenant};

/// Nothing to do is looked at again after this long.
const TICK: Duration = Duration::from_millis(1);
/// How often the SMART log is read.
const SMART_PERIOD: Duration = Duration::from_millis(5);
/// What a pause or a slow turn may leave to catch up with.
const MOST_OWED: Duration = Duration::from_millis(20);

/// Lets things happen at a rate. Not part of the tenant's state: time does not migrate.
struct Pace {
    per_second: f64,
    owed: f64,
    last: Instant,
}

impl Pace {
    fn new(per_second: f64) -> Self {
        Self { per_second, owed: 0.0, last: Instant::now() }
    }

    /// How many may happen now.
    fn due(&mut self) -> u64 {
        let now = Instant::now();
        self.owed += now.duration_since(self.last).as_secs_f64() * self.per_second;
        self.owed = self.owed.min((self.per_second * MOST_OWED.as_secs_f64()).max(1.0));
        self.last = now;
        self.owed as u64
    }

    fn took_one(&mut self) {
        self.owed -= 1.0;
    }
}

pub(crate) struct Vcpu {
    guest: Guest,
    device: Device,
    layout: Layout,
    state: State,
    slots: Slots,
    log: LogWriter,
    shared: Arc<Shared>,
    options: RunOptions,
    io_pace: Pace,
    cpu_pace: Pace,
    smart_next: Instant,
    last_ack_ns: u64,
    first_ack_ns: u64,
}

impl Vcpu {
    pub(crate) fn new(
        guest: Guest,
        tenant: Tenant,
        log: OwnedFd,
        shared: Arc<Shared>,
        options: RunOptions,
    ) -> Result<Self, TenantError> {
        let Tenant { device, layout, spec, .. } = tenant;
        let (state, _) = State::load(&guest, spec.base_gpa, spec.doorbell_base)?;
        let slots = Slots::load(&guest, &layout)?;
        Ok(Self {
            io_pace: Pace::new(state.target_iops as f64),
            cpu_pace: Pace::new(state.cpu_dirty_bytes_per_s as f64 / UNIT_BYTES as f64),
            guest,
            device,
            layout,
            state,
            slots,
            log: LogWriter::new(log),
            shared,
            options,
            smart_next: Instant::now(),
            last_ack_ns: 0,
            first_ack_ns: 0,
        })
    }

    /// Runs until it is told to stop or cannot go on.
    pub(crate) fn run(&mut self) -> Result<(), TenantError> {
        self.state.epoch = self.state.epoch.saturating_add(1).min(u32::MAX.into());
        self.save()?;
        self.mark_time(Kind::Started)?;
        loop {
            match self.shared.wish() {
                Wish::Run => self.turn()?,
                Wish::Pause => {
                    self.mark_time(Kind::Stopped)?;
                    self.shared.stand_still(false, self.stats());
                    self.first_ack_ns = 0;
                    if self.shared.wish() != Wish::Stop {
                        self.mark_time(Kind::Started)?;
                    }
                }
                Wish::Drain => {
                    let late = self.shared.drain_until().is_none_or(|until| Instant::now() >= until);
                    self.reap()?;
                    if self.slots.in_flight() == 0 || late {
                        self.mark_time(Kind::Drained)?;
                        self.shared.stand_still(true, self.stats());
                    }
                }
                Wish::Stop => {
                    self.shared.publish(self.stats());
                    return self.mark_time(Kind::Stopped);
                }
            }
            self.log.flush()?;
            if self.shared.wish() == Wish::Run || self.shared.wish() == Wish::Drain {
                self.shared.publish(self.stats());
                self.shared.interrupts.wait(TICK);
            }
        }
    }

    fn turn(&mut self) -> Result<(), TenantError> {
        self.reap()?;
        let mut due = self.io_pace.due();
        while due > 0 && self.shared.wish() == Wish::Run && self.submit()? {
            self.io_pace.took_one();
            due -= 1;
        }
        if self.options.flush_only {
            return Ok(());
        }
        self.poll_smart()?;
        let mut due = if self.state.working_set_pages == 0 { 0 } else { self.cpu_pace.due() };
        while due > 0 && self.shared.wish() == Wish::Run {
            self.write_working_set()?;
            self.cpu_pace.took_one();
            due -= 1;
        }
        self.save()
    }

    fn save(&mut self) -> Result<(), TenantError> {
        self.state.save(&self.guest, &self.layout)
    }

    fn queues(&self, qid: u16) -> Queues {
        match qid {
            0 => Queues { qid, sq: self.layout.admin_sq(), cq: self.layout.admin_cq(), entries: ADMIN_ENTRIES },
            _ => Queues { qid, sq: self.layout.io_sq(qid), cq: self.layout.io_cq(qid), entries: IO_ENTRIES },
        }
    }

    /// Takes every new completion of every queue.
    fn reap(&mut self) -> Result<(), TenantError> {
        for qid in 0..=self.state.io_queue_pairs as u16 {
            let queues = self.queues(qid);
            let mut took = 0;
            // One lap at most: a device that posts without end does not keep the CPU here.
            while took < queues.entries {
                let Some(ring) = self.state.rings.get_mut(usize::from(qid)) else { break };
                let Some(completion) = queues.poll(&self.guest, ring)? else { break };
                took += 1;
                if qid == 0 {
                    self.completed_admin(completion)?;
                } else {
                    self.completed(qid, completion)?;
                }
                self.save()?;
            }
            if let Some(ring) = self.state.rings.get(usize::from(qid)).filter(|_| took > 0) {
                queues.done(&self.device, ring);
            }
        }
        Ok(())
    }

    fn completed_admin(&mut self, completion: Completion) -> Result<(), TenantError> {
        if u64::from(completion.cid) + 1 == self.state.smart_pending {
            self.state.smart_pending = 0;
            self.state.smart_polls += 1;
        } else if completion.cid == AER_CID && completion.status & 0x7ff == 0 {
            self.submit_admin(Command { opcode: 0x0c, cid: AER_CID, ..Command::default() })?;
        } else if completion.cid != AER_CID {
            self.duplicate(completion);
        }
        Ok(())
    }

    fn completed(&mut self, qid: u16, completion: Completion) -> Result<(), TenantError> {
        let Some((index, slot)) = self.slots.find(qid, completion.cid).filter(|_| completion.sqid == qid) else {
            self.duplicate(completion);
            return Ok(());
        };
        let Some(op) = slot.op else { return Ok(()) };
        self.slots.free(&self.guest, &self.layout, index, self.state.next_seq)?;
        let now = monotonic_ns();
        let record = Record {
            units: slot.units as u8,
            seq: slot.seq,
            unit: slot.unit,
            status: completion.status,
            cid: completion.cid,
            t_ns: now,
            ..self.record(Kind::Error)
        };
        if completion.status & 0x7ff != 0 {
            self.state.errors += 1;
            self.log.push(&Record { flags: op.opcode() << 4, found_epoch: slot.epoch, ..record });
            return Ok(());
        }
        self.last_ack_ns = now;
        if self.first_ack_ns == 0 {
            self.first_ack_ns = now;
        }
        match op {
            Op::Flush => {
                self.state.flushes += 1;
                self.log.push(&Record { kind: Kind::Flush, ..record });
            }
            Op::Write => {
                self.state.writes += 1;
                let version = Version { seq: slot.seq, epoch: slot.epoch };
                for unit in slot.unit..slot.unit + u64::from(slot.units) {
                    self.expect(unit, version)?;
                }
                self.log.push(&Record { kind: Kind::Write, found_seq: slot.seq, found_epoch: slot.epoch, ..record });
            }
            Op::Read => {
                self.state.reads += 1;
                for n in 0..u64::from(slot.units) {
                    self.verify(index, n, Record { kind: Kind::Read, units: 1, unit: slot.unit + n, ..record })?;
                }
            }
        }
        Ok(())
    }

    /// Notes what `unit` holds from now on.
    fn expect(&mut self, unit: u64, version: Version) -> Result<(), TenantError> {
        let mut entry = [0; 16];
        entry[..8].copy_from_slice(&version.seq.to_le_bytes());
        entry[8..12].copy_from_slice(&version.epoch.to_le_bytes());
        self.guest.write(self.layout.unit(unit), &entry)
    }

    fn verify(&mut self, slot: usize, n: u64, mut record: Record) -> Result<(), TenantError> {
        let mut data = [0; UNIT_BYTES as usize];
        self.guest.read(self.layout.data(slot) + n * UNIT_BYTES, &mut data)?;
        let mut entry = [0; 16];
        self.guest.read(self.layout.unit(record.unit), &mut entry)?;
        let word = u128::from_le_bytes(entry);
        let expected = Version { seq: word as u64, epoch: (word >> 64) as u32 };
        let found = match block::inspect(&data, record.unit, self.state.seed) {
            Found::Blank => Some(Version { seq: 0, epoch: 0 }),
            Found::Version(version) => Some(version),
            Found::Invalid => None,
        };
        record.found_seq = found.map_or(FOUND_INVALID, |v| v.seq);
        record.found_epoch = found.map_or(0, |v| v.epoch);
        if found != Some(expected) {
            record.flags |= FLAG_UNEXPECTED;
            self.state.mismatches += 1;
        }
        self.log.push(&record);
        Ok(())
    }

    fn duplicate(&mut self, completion: Completion) {
        self.state.duplicates += 1;
        let record = Record { status: completion.status, cid: completion.cid, ..self.record(Kind::Duplicate) };
        self.log.push(&record);
    }

    /// Submits one command. `false` where there is no room or no free units.
    fn submit(&mut self) -> Result<bool, TenantError> {
        if self.slots.in_flight() as u64 >= self.state.queue_depth {
            return Ok(false);
        }
        let Some(index) = self.slots.rested() else { return Ok(false) };
        let qid = (self.state.next_queue % self.state.io_queue_pairs) as u16 + 1;
        if self.state.rings.get(usize::from(qid)).is_none_or(|ring| ring.full(IO_ENTRIES)) {
            return Ok(false);
        }
        let dice = self.random();
        let op = match dice % 100 {
            _ if self.options.flush_only => Op::Flush,
            0 => Op::Flush,
            _ if dice / 100 % 100 < self.state.read_percent => Op::Read,
            _ => Op::Write,
        };
        let (unit, units) = match op {
            Op::Flush => (0, 0),
            _ => match self.choose_units() {
                Some(range) => range,
                None => return Ok(false),
            },
        };
        let slot = Slot {
            op: Some(op),
            cid: self.next_cid(),
            qid,
            units: units as u16,
            unit,
            seq: self.state.next_seq,
            epoch: self.state.epoch as u32,
            rested: 0,
        };
        self.state.next_seq += 1;
        self.state.next_queue = self.state.next_queue.wrapping_add(1);
        if op == Op::Write {
            self.fill(index, &slot)?;
        }
        let command = self.command(index, &slot, op)?;
        self.slots.set(&self.guest, &self.layout, index, slot)?;
        let queues = self.queues(qid);
        if let Some(ring) = self.state.rings.get_mut(usize::from(qid)) {
            queues.submit(&self.guest, &self.device, ring, &command)?;
        }
        self.save()?;
        Ok(true)
    }

    /// Free units: half of the commands go to the first eighth of the namespace, so that much is overwritten and read soon.
    fn choose_units(&mut self) -> Option<(u64, u64)> {
        let most = self.state.max_units.min(self.state.units);
        for _ in 0..8 {
            let (size, place) = (self.random(), self.random());
            // Half are one unit, the others up to all.
            let units = if size & 1 == 0 { 1 } else { (size >> 1) % most + 1 };
            let space = self.state.units - units + 1;
            let space = if place & 1 == 0 { space.div_ceil(8) } else { space };
            let unit = (place >> 1) % space;
            if !self.slots.overlaps(unit, units) {
                return Some((unit, units));
            }
        }
        None
    }

    fn fill(&mut self, index: usize, slot: &Slot) -> Result<(), TenantError> {
        let mut data = [0; UNIT_BYTES as usize];
        let version = Version { seq: slot.seq, epoch: slot.epoch };
        for n in 0..u64::from(slot.units) {
            block::fill(&mut data, slot.unit + n, version, self.options.host_tag, self.state.seed);
            self.guest.write(self.layout.data(index) + n * UNIT_BYTES, &data)?;
        }
        Ok(())
    }

    fn command(&mut self, index: usize, slot: &Slot, op: Op) -> Result<Command, TenantError> {
        let mut command =
            Command { opcode: op.opcode(), cid: slot.cid, nsid: self.state.nsid as u32, ..Command::default() };
        if op == Op::Flush {
            return Ok(command);
        }
        let data = self.layout.data(index);
        command.prp1 = data;
        match slot.units {
            1 => {}
            2 => command.prp2 = data + UNIT_BYTES,
            units => {
                let mut list = [0; 16 * 8];
                for (n, entry) in (1..u64::from(units)).zip(list.chunks_exact_mut(8)) {
                    entry.copy_from_slice(&(data + n * UNIT_BYTES).to_le_bytes());
                }
                command.prp2 = self.layout.prp_list(index);
                self.guest.write(command.prp2, &list)?;
            }
        }
        let lba = slot.unit * self.state.blocks_per_unit;
        command.dw10 = lba as u32;
        command.dw11 = (lba >> 32) as u32;
        command.dw12 = (u64::from(slot.units) * self.state.blocks_per_unit - 1) as u32;
        Ok(command)
    }

    /// The next identifier: none comes again for 65535 commands, so that a completion that is repeated is recognised. FFFFh is
    /// reserved.
    fn next_cid(&mut self) -> u16 {
        loop {
            let cid = (self.state.next_cid % 0xffff) as u16;
            self.state.next_cid = u64::from(cid) + 1;
            // Commands whose completion never came keep theirs.
            if !self.slots.uses_cid(cid) {
                return cid;
            }
        }
    }

    fn submit_admin(&mut self, command: Command) -> Result<(), TenantError> {
        let queues = self.queues(0);
        match self.state.rings.first_mut().filter(|ring| !ring.full(ADMIN_ENTRIES)) {
            Some(ring) => queues.submit(&self.guest, &self.device, ring, &command),
            None => Ok(()),
        }
    }

    fn poll_smart(&mut self) -> Result<(), TenantError> {
        if self.state.smart_pending != 0 || Instant::now() < self.smart_next {
            return Ok(());
        }
        self.smart_next = Instant::now() + SMART_PERIOD;
        let cid = ((self.state.admin_cid + 1) % u64::from(AER_CID)) as u16;
        self.state.admin_cid = cid.into();
        self.state.smart_pending = u64::from(cid) + 1;
        // Get Log Page 02h, 512 bytes (a 0's-based count of dwords), of the whole controller.
        let command = Command {
            opcode: 0x02,
            cid,
            nsid: u32::MAX,
            prp1: self.layout.telemetry().gpa,
            dw10: 127 << 16 | 2,
            ..Command::default()
        };
        self.submit_admin(command)
    }

    fn write_working_set(&mut self) -> Result<(), TenantError> {
        let page = self.random() % self.state.working_set_pages;
        self.state.cpu_pages_written += 1;
        let count = self.state.cpu_pages_written;
        let mut data = [0; UNIT_BYTES as usize];
        for (n, word) in (0u64..).zip(data.chunks_exact_mut(8)) {
            word.copy_from_slice(&(count ^ page << 32 ^ n << 56).to_le_bytes());
        }
        self.guest.write(self.layout.working_set().gpa + page * UNIT_BYTES, &data)
    }

    /// xorshift64* (Vigna 2016).
    fn random(&mut self) -> u64 {
        let mut x = self.state.rng;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.state.rng = x;
        x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 1
    }

    fn record(&self, kind: Kind) -> Record {
        Record {
            kind,
            host_tag: self.options.host_tag,
            units: 0,
            flags: 0,
            epoch: self.state.epoch as u32,
            seq: 0,
            unit: 0,
            found_seq: 0,
            found_epoch: 0,
            status: 0,
            cid: 0,
            t_ns: monotonic_ns(),
            next_seq: self.state.next_seq,
            in_flight: self.slots.in_flight() as u64,
        }
    }

    /// Writes everything that is due, and a record without a command. The state is complete in memory then.
    fn mark_time(&mut self, kind: Kind) -> Result<(), TenantError> {
        self.save()?;
        let record = self.record(kind);
        self.log.push(&record);
        self.log.flush()
    }

    fn stats(&self) -> TenantStats {
        let s = &self.state;
        TenantStats {
            epoch: s.epoch as u32,
            next_seq: s.next_seq,
            in_flight: self.slots.in_flight() as u64,
            writes: s.writes,
            reads: s.reads,
            flushes: s.flushes,
            duplicates: s.duplicates,
            errors: s.errors,
            mismatches: s.mismatches,
            cpu_pages_written: s.cpu_pages_written,
            smart_polls: s.smart_polls,
            last_ack_ns: self.last_ack_ns,
            first_ack_ns: self.first_ack_ns,
        }
    }
}
