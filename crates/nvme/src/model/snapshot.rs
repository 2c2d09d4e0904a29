//! A controller as a controller state, and back. Taking one changes nothing; putting one in place checks all of it first.

use std::collections::BTreeMap;

use super::admin::MAX_ASYNC_EVENTS;
use super::engine::{Engine, Run, Suspension};
use super::events::Events;
use super::features::Features;
use super::front::{CC_EN, CSTS_CFS, CSTS_RDY, MPS_MAX, SHUTDOWN_COMPLETE, VERSION};
use super::interrupts::Vectors;
use super::queue::{CompletionQueue, SubmissionQueue};
use super::signal::lock;
use crate::state::{ControllerState, CqState, SqState};
use crate::status::StatusCode;
use crate::vendor_state::{
    AdminQueueState, AsyncEventState, Compatibility, InterruptState, MsixEntry, NamespaceIdentity, RegisterState,
    VendorState,
};

/// A checked vendor specific part.
struct Checked {
    registers: RegisterState,
    admin: AdminQueueState,
    page_size: u64,
    run: Run,
    features: Features,
    events: Events,
    aers: Vec<u16>,
    vectors: Option<Vectors>,
    admin_sq: Option<SubmissionQueue>,
    admin_cq: Option<CompletionQueue>,
}

impl Engine {
    /// The encoded controller state; with or without what NVMe leaves out.
    pub(crate) fn capture(&self, vendor: bool) -> Result<Vec<u8>, StatusCode> {
        let submission_queues = self.sqs.values().filter(|sq| sq.qid != 0).map(|sq| SqState {
            prp1: sq.base,
            size: sq.entries - 1,
            qid: sq.qid,
            cqid: sq.cqid,
            attributes: 1 | u16::from(sq.priority) << 1,
            head: sq.head,
            tail: sq.tail,
        });
        let completion_queues = self.cqs.values().filter(|cq| cq.qid != 0).map(|cq| {
            let slot_0 = CqState::slot_0_phase(cq.phase, cq.tail);
            CqState {
                prp1: cq.base,
                size: cq.entries - 1,
                qid: cq.qid,
                head: cq.head,
                tail: cq.tail,
                attributes: 1
                    | u32::from(cq.interrupts) << 1
                    | if slot_0 { CqState::SLOT_0_PHASE } else { 0 }
                    | u32::from(cq.vector) << 16,
            }
        });
        let state = ControllerState {
            suspended: self.suspension == Suspension::Suspended,
            submission_queues: submission_queues.collect(),
            completion_queues: completion_queues.collect(),
            vendor: if vendor {
                self.capture_vendor().encode().map_err(|_| StatusCode::InternalError)?
            } else {
                Vec::new()
            },
        };
        state.encode().map_err(|_| StatusCode::InternalError)
    }

    fn capture_vendor(&self) -> VendorState {
        let front = lock(&self.front);
        let (sq, cq) = (self.sqs.get(&0), self.cqs.get(&0));
        let (waiting, masked_types) = self.events.export();
        let mut pending = vec![0u64; usize::from(self.vectors_max).div_ceil(64)];
        let mut table = Vec::with_capacity(usize::from(self.vectors_max));
        for vector in 0..self.vectors_max {
            table.push(MsixEntry { control: u32::from(self.vectors.masked(vector)), ..MsixEntry::default() });
            if let Some(word) = pending.get_mut(usize::from(vector) / 64) {
                *word |= u64::from(self.vectors.pending(vector)) << (vector % 64);
            }
        }
        let attached = self.disks.iter().filter(|disk| self.attached.contains(&disk.nsid));
        VendorState {
            registers: RegisterState { cc: front.cc, csts: front.csts, intms: front.interrupt_mask(), power_state: 0 },
            admin_queue: AdminQueueState {
                asq: front.asq,
                acq: front.acq,
                aqa: front.aqa,
                sq_head: sq.map_or(0, |sq| sq.head),
                sq_tail: sq.map_or(0, |sq| sq.tail),
                cq_head: cq.map_or(0, |cq| cq.head),
                cq_tail: cq.map_or(0, |cq| cq.tail),
                cq_phase: cq.map_or(1, |cq| u8::from(cq.phase)),
            },
            features: self.features.export(),
            async_events: AsyncEventState { outstanding: self.aers.iter().copied().collect(), waiting, masked_types },
            interrupts: Some(InterruptState { enabled: true, function_mask: false, table, pending }),
            namespaces: attached
                .map(|disk| NamespaceIdentity {
                    nsid: disk.nsid,
                    block_shift: disk.lba_shift() as u8,
                    blocks: disk.blocks(),
                    nguid: disk.config.nguid,
                })
                .collect(),
            compatibility: Some(Compatibility {
                cap: front.cap(),
                vs: VERSION,
                io_queues: self.queues.saturating_sub(1),
                vectors: self.vectors_max,
                mdts: self.id.mdts,
            }),
        }
    }

    /// Puts a state in place. All or nothing: whatever does not fit this controller is found before anything is changed.
    ///
    /// # Errors
    /// Invalid Field, and nothing has changed.
    pub(crate) fn restore(&mut self, bytes: &[u8], vendor: bool) -> Result<(), StatusCode> {
        let bad = StatusCode::InvalidField;
        let state = ControllerState::decode(bytes).map_err(|_| bad)?;
        if state.vendor.is_empty() == vendor || !state.suspended {
            return Err(bad);
        }
        let checked = if vendor {
            let vendor = VendorState::decode(&state.vendor).map_err(|_| bad)?;
            Some(self.check_vendor(&vendor).ok_or(bad)?)
        } else {
            None
        };
        let run = checked.as_ref().map_or(self.run, |checked| checked.run);
        let page_size = checked.as_ref().map_or(self.page_size, |checked| checked.page_size);
        let (sqs, cqs) = self.check_queues(&state, page_size).ok_or(bad)?;
        // Queues belong to an enabled controller.
        if run == Run::Disabled && !(sqs.is_empty() && cqs.is_empty()) {
            return Err(bad);
        }
        // From here on nothing fails.
        if let Some(checked) = checked {
            self.put_vendor(checked);
        }
        self.sqs.extend(sqs);
        self.cqs.extend(cqs);
        Ok(())
    }

    #[allow(clippy::type_complexity)]
    fn check_queues(
        &self,
        state: &ControllerState,
        page_size: u64,
    ) -> Option<(BTreeMap<u16, SubmissionQueue>, BTreeMap<u16, CompletionQueue>)> {
        let fits = |qid: u16, prp1: u64, size: u16, contiguous: bool| {
            let entries = size.checked_add(1).filter(|entries| (2..=self.id.max_entries).contains(entries))?;
            (qid != 0 && qid < self.queues && contiguous && prp1 & (page_size - 1) == 0).then_some(entries)
        };
        let mut cqs = BTreeMap::new();
        for cq in &state.completion_queues {
            let entries = fits(cq.qid, cq.prp1, cq.size, cq.attributes & 1 != 0)?;
            if cq.head >= entries || cq.tail >= entries || cq.vector() >= self.vectors_max {
                return None;
            }
            cqs.insert(
                cq.qid,
                CompletionQueue {
                    qid: cq.qid,
                    base: cq.prp1,
                    entries,
                    head: cq.head,
                    tail: cq.tail,
                    phase: cq.next_phase(),
                    vector: cq.vector(),
                    interrupts: cq.attributes & 2 != 0,
                    reserved: 0,
                },
            );
        }
        let mut sqs = BTreeMap::new();
        for sq in &state.submission_queues {
            let entries = fits(sq.qid, sq.prp1, sq.size, sq.attributes & 1 != 0)?;
            if sq.head >= entries || sq.tail >= entries || !cqs.contains_key(&sq.cqid) {
                return None;
            }
            sqs.insert(
                sq.qid,
                SubmissionQueue {
                    qid: sq.qid,
                    base: sq.prp1,
                    entries,
                    cqid: sq.cqid,
                    priority: (sq.attributes >> 1) as u8 & 3,
                    head: sq.head,
                    tail: sq.tail,
                },
            );
        }
        Some((sqs, cqs))
    }

    fn check_vendor(&self, vendor: &VendorState) -> Option<Checked> {
        let registers = vendor.registers;
        let mps = registers.cc >> 7 & 15;
        if mps > MPS_MAX || registers.power_state != 0 {
            return None;
        }
        let page_size = 4096u64 << mps;
        let run = match (registers.csts & CSTS_CFS != 0, registers.csts >> 2 & 3, registers.csts & CSTS_RDY != 0) {
            (true, ..) => Run::Failed,
            (_, SHUTDOWN_COMPLETE, true) => Run::ShutDown,
            (_, _, true) => Run::Ready,
            (_, _, false) => Run::Disabled,
        };
        let admin = vendor.admin_queue;
        let (mut admin_sq, mut admin_cq) = (None, None);
        if registers.csts & CSTS_RDY != 0 {
            let (sq_entries, cq_entries) = ((admin.aqa & 0xfff) as u16 + 1, (admin.aqa >> 16 & 0xfff) as u16 + 1);
            let aligned = (admin.asq | admin.acq) & (page_size - 1) == 0;
            let inside = admin.sq_head.max(admin.sq_tail) < sq_entries && admin.cq_head.max(admin.cq_tail) < cq_entries;
            if registers.cc & CC_EN == 0 || sq_entries < 2 || cq_entries < 2 || !aligned || !inside {
                return None;
            }
            if registers.cc >> 4 & 7 != 0 || registers.cc >> 11 & 7 != 0 || admin.cq_phase > 1 {
                return None;
            }
            admin_sq = Some(SubmissionQueue {
                qid: 0,
                base: admin.asq,
                entries: sq_entries,
                cqid: 0,
                priority: 0,
                head: admin.sq_head,
                tail: admin.sq_tail,
            });
            admin_cq = Some(CompletionQueue {
                qid: 0,
                base: admin.acq,
                entries: cq_entries,
                head: admin.cq_head,
                tail: admin.cq_tail,
                phase: admin.cq_phase == 1,
                vector: 0,
                interrupts: true,
                reserved: 0,
            });
        }
        let events = &vendor.async_events;
        if events.outstanding.len() > MAX_ASYNC_EVENTS || (admin_sq.is_none() && !events.outstanding.is_empty()) {
            return None;
        }
        let vectors = match &vendor.interrupts {
            None => None,
            Some(interrupts) => Some(self.check_vectors(interrupts)?),
        };
        if !self.same_namespaces(&vendor.namespaces) || !self.compatible(vendor.compatibility) {
            return None;
        }
        Some(Checked {
            registers,
            admin,
            page_size,
            run,
            features: Features::import(&vendor.features, self.vectors_max)?,
            events: Events::import(&events.waiting, events.masked_types),
            aers: events.outstanding.clone(),
            vectors,
            admin_sq,
            admin_cq,
        })
    }

    fn check_vectors(&self, state: &InterruptState) -> Option<Vectors> {
        if state.table.len() > usize::from(self.vectors_max) {
            return None;
        }
        let mut vectors = Vectors::default();
        vectors.resize(self.vectors_max);
        for (vector, entry) in (0..self.vectors_max).zip(&state.table) {
            vectors.mask(vector, entry.control & 1 != 0);
        }
        for (word, bits) in state.pending.iter().enumerate() {
            for bit in (0..64).filter(|bit| bits >> bit & 1 != 0) {
                let vector = u16::try_from(word * 64 + bit).ok().filter(|vector| *vector < self.vectors_max)?;
                vectors.set_pending(vector);
            }
        }
        Some(vectors)
    }

    /// Every namespace of the source is attached here, with the same number, size and identity: a state never grants one.
    fn same_namespaces(&self, namespaces: &[NamespaceIdentity]) -> bool {
        namespaces.iter().all(|theirs| {
            self.disk(theirs.nsid).is_ok_and(|disk| {
                disk.config.nguid == theirs.nguid
                    && disk.blocks() == theirs.blocks
                    && disk.lba_shift() == u32::from(theirs.block_shift)
            })
        })
    }

    /// What the host has been told at the source has to hold here: queue sizes, transfer size, and enough queues and vectors.
    fn compatible(&self, theirs: Option<Compatibility>) -> bool {
        theirs.is_none_or(|theirs| {
            lock(&self.front).cap() == theirs.cap
                && theirs.vs == VERSION
                && theirs.mdts == self.id.mdts
                && theirs.io_queues < self.queues.max(1)
                && theirs.vectors <= self.vectors_max
        })
    }

    fn put_vendor(&mut self, checked: Checked) {
        self.page_size = checked.page_size;
        self.run = checked.run;
        self.features = checked.features;
        // Namespaces that changed at this controller are this controller's news.
        let changed = std::mem::take(&mut self.events.changed);
        self.events = checked.events;
        self.events.changed = changed;
        self.aers = checked.aers.into();
        if let Some(vectors) = checked.vectors {
            self.vectors = vectors;
        }
        self.sqs = checked.admin_sq.map(|sq| (0, sq)).into_iter().collect();
        self.cqs = checked.admin_cq.map(|cq| (0, cq)).into_iter().collect();
        lock(&self.front).restore(&checked.registers, &checked.admin);
    }
}
