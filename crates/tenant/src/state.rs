//! The page of state: everything that a tenant is, but for its tables.

use crate::error::TenantError;
use crate::guest::Guest;
use crate::layout::{Layout, MAX_IO_QUEUE_PAIRS, TenantSpec};
use crate::ring::Ring;

/// "TWLTEN01", little-endian.
const MAGIC: u64 = 0x3130_4e45_544c_5754;
const RINGS: usize = 1 + MAX_IO_QUEUE_PAIRS as usize;

macro_rules! state {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// All words are 64 bits, little-endian, in the order of the fields, behind the magic; the rings follow, four words each.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub(crate) struct State {
            $($(#[$doc])* pub(crate) $name: u64,)*
            /// The admin queue pair, then I/O queue pairs 1 to 8.
            pub(crate) rings: [Ring; RINGS],
        }

        const FIELDS: usize = [$(stringify!($name)),*].len();

        impl State {
            fn fields(&mut self) -> [&mut u64; FIELDS] {
                [$(&mut self.$name),*]
            }
        }
    };
}

state! {
    base_gpa,
    memory_len,
    queue_depth,
    /// As granted.
    io_queue_pairs,
    /// As specified: the layout depends on it.
    layout_pairs,
    units,
    nsid,
    working_set_pages,
    cpu_dirty_bytes_per_s,
    target_iops,
    read_percent,
    seed,
    doorbell_stride,
    /// Logical blocks of a unit.
    blocks_per_unit,
    /// The most units that the controller transfers by one command (MDTS), at most 16.
    max_units,
    /// How often the tenant was started, here or elsewhere.
    epoch,
    /// Sequence of the next command. 0 stands for what was there before.
    next_seq,
    next_cid,
    next_queue,
    rng,
    cpu_page,
    cpu_pages_written,
    admin_cid,
    /// Command identifier of the SMART poll under way, plus 1; 0 is none.
    smart_pending,
    smart_polls,
    writes,
    reads,
    flushes,
    duplicates,
    errors,
    mismatches,
}

pub(crate) const STATE_BYTES: usize = (1 + FIELDS + 4 * RINGS) * 8;
const _: () = assert!(STATE_BYTES <= 4096);

impl State {
    pub(crate) fn new(spec: &TenantSpec) -> Self {
        Self {
            base_gpa: spec.base_gpa,
            memory_len: spec.memory_len,
            queue_depth: spec.queue_depth.into(),
            io_queue_pairs: spec.io_queue_pairs.into(),
            layout_pairs: spec.io_queue_pairs.into(),
            units: spec.units,
            nsid: spec.nsid.into(),
            working_set_pages: spec.working_set_pages,
            cpu_dirty_bytes_per_s: spec.cpu_dirty_bytes_per_s,
            target_iops: spec.target_iops.into(),
            read_percent: spec.read_percent.into(),
            seed: spec.seed,
            doorbell_stride: spec.doorbell_stride.into(),
            next_seq: 1,
            // An all-zero start would stay zero for ever.
            rng: spec.seed ^ 0x9e37_79b9_7f4a_7c15 | 1,
            rings: [Ring::new(); RINGS],
            ..Self::default()
        }
    }

    /// The specification that it was booted with; the doorbells are where the caller says.
    pub(crate) fn spec(&self, doorbell_base: u64) -> Option<TenantSpec> {
        Some(TenantSpec {
            base_gpa: self.base_gpa,
            memory_len: self.memory_len,
            queue_depth: self.queue_depth.try_into().ok()?,
            io_queue_pairs: self.layout_pairs.try_into().ok()?,
            units: self.units,
            nsid: self.nsid.try_into().ok()?,
            working_set_pages: self.working_set_pages,
            cpu_dirty_bytes_per_s: self.cpu_dirty_bytes_per_s,
            target_iops: self.target_iops.try_into().ok()?,
            read_percent: self.read_percent.try_into().ok()?,
            seed: self.seed,
            doorbell_base,
            doorbell_stride: self.doorbell_stride.try_into().ok()?,
        })
    }

    pub(crate) fn save(&mut self, guest: &Guest, layout: &Layout) -> Result<(), TenantError> {
        let mut words = [0u64; STATE_BYTES / 8];
        let rings = self.rings;
        let sources =
            std::iter::once(MAGIC).chain(self.fields().map(|f| *f)).chain(rings.iter().flat_map(|r| r.words()));
        for (word, source) in words.iter_mut().zip(sources) {
            *word = source.to_le();
        }
        let mut bytes = [0u8; STATE_BYTES];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        guest.write(layout.state(), &bytes)
    }

    /// Reads a state at `base_gpa` and checks that it can be gone on with.
    pub(crate) fn load(guest: &Guest, base_gpa: u64, doorbell_base: u64) -> Result<(Self, TenantSpec), TenantError> {
        let bad = |what: &str| TenantError::NoState { gpa: base_gpa, what: what.into() };
        let mut bytes = [0u8; STATE_BYTES];
        guest.read(base_gpa, &mut bytes)?;
        let mut words = bytes.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w));
        if words.next() != Some(MAGIC) {
            return Err(bad("the magic is not there"));
        }
        let mut state = Self::default();
        for (field, word) in state.fields().into_iter().zip(&mut words) {
            *field = word;
        }
        for ring in &mut state.rings {
            let mut take = || words.next().unwrap_or(0);
            *ring = Ring::from_words([take(), take(), take(), take()]);
        }
        let spec = state.spec(doorbell_base).ok_or_else(|| bad("a number is out of range"))?;
        Layout::new(&spec).map_err(|e| bad(&e.to_string()))?;
        if state.base_gpa != base_gpa {
            return Err(bad("it belongs to another address"));
        }
        if !(1..=state.layout_pairs).contains(&state.io_queue_pairs)
            || !(1..=16).contains(&state.max_units)
            || !(1..=8).contains(&state.blocks_per_unit)
            || state.next_seq == 0
            || state.rings.iter().any(|r| !r.valid())
        {
            return Err(bad("a position is out of range"));
        }
        Ok((state, spec))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::Arc;

    use towline_core::memory::GuestMemory;
    use towline_linux::memory::{MappedMemory, memfd};

    use super::*;

    fn guest() -> (Arc<MappedMemory>, Guest) {
        let memory = Arc::new(MappedMemory::new());
        memory.add_region(0, memfd("t", 64 << 20).unwrap().as_fd(), 0, 64 << 20).unwrap();
        (Arc::clone(&memory), Guest::new(memory, None))
    }

    fn saved() -> (Arc<MappedMemory>, Guest, State) {
        let (memory, guest) = guest();
        let spec = TenantSpec::default();
        let mut state = State::new(&spec);
        (state.blocks_per_unit, state.max_units, state.epoch, state.next_seq) = (8, 16, 3, 1 << 33);
        state.rings[2].sq_tail = 17;
        state.save(&guest, &Layout::new(&spec).unwrap()).unwrap();
        (memory, guest, state)
    }

    #[test]
    fn the_state_survives_memory() {
        let (_, guest, state) = saved();
        let (loaded, spec) = State::load(&guest, 0, 0x2000).unwrap();
        assert_eq!(loaded, state);
        assert_eq!(spec, TenantSpec { doorbell_base: 0x2000, ..TenantSpec::default() });
    }

    #[test]
    fn no_word_of_a_damaged_state_makes_it_panic() {
        let (memory, guest, _) = saved();
        let mut refused = 0;
        for word in 0..STATE_BYTES as u64 / 8 {
            let mut before = [0; 8];
            memory.read(word * 8, &mut before).unwrap();
            for value in [0, u64::MAX, 1 << 31, 1 << 63] {
                memory.write(word * 8, &u64::to_le_bytes(value)).unwrap();
                refused += u32::from(State::load(&guest, 0, 0).is_err());
            }
            memory.write(word * 8, &before).unwrap();
        }
        assert!(refused > 60, "{refused}");
        memory.write(0, &[0]).unwrap();
        assert!(matches!(State::load(&guest, 0, 0), Err(TenantError::NoState { .. })));
        assert!(matches!(State::load(&guest, 1 << 40, 0), Err(TenantError::Memory(_))));
    }
}
