//! The CPU of a tenant: its loop.

mod complete;
mod pace;
mod submit;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use towline_linux::clock::monotonic_ns;

use self::pace::Pace;
use crate::control::{Shared, TenantStats, Wish};
use crate::error::TenantError;
use crate::guest::{Device, Guest, Queues};
use crate::layout::{ADMIN_ENTRIES, IO_ENTRIES, Layout, UNIT_BYTES};
use crate::record::{Kind, LogWriter, Record};
use crate::slot::Slots;
use crate::state::State;
use crate::tenant::{RunOptions, Tenant};

/// Nothing to do is looked at again after this long.
const TICK: Duration = Duration::from_millis(1);

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
        let share = self.shared.share();
        let mut due = self.io_pace.due(share);
        while due > 0 && self.shared.wish() == Wish::Run && self.submit()? {
            self.io_pace.took_one();
            due -= 1;
        }
        if self.options.flush_only {
            return Ok(());
        }
        self.poll_smart()?;
        let mut due = if self.state.working_set_pages == 0 { 0 } else { self.cpu_pace.due(share) };
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
