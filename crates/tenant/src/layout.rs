//! Where in guest memory a tenant keeps what.

use towline_core::memory::MemoryRange;

use crate::error::TenantError;

/// Bytes of a unit, the piece that is written, read and verified as one: a page and a multiple of every common block size.
pub const UNIT_BYTES: u64 = 4096;
/// The most commands in flight: queues have 64 entries, of which one stays empty.
pub const MAX_QUEUE_DEPTH: u32 = 63;
/// The most I/O queue pairs.
pub const MAX_IO_QUEUE_PAIRS: u32 = 8;
/// The most units of one read or write, 64 KiB: with more than two pages a PRP list is needed.
pub const MAX_UNITS_PER_COMMAND: u32 = 16;

pub(crate) const PAGE: u64 = 4096;
/// Entries of every I/O queue.
pub(crate) const IO_ENTRIES: u32 = 64;
/// Entries of the admin queue pair, as Linux has it.
pub(crate) const ADMIN_ENTRIES: u32 = 32;
/// Twice what may be in flight, so that a buffer rests before it is used again.
pub(crate) const SLOTS: u64 = 64;
/// Bytes of an entry of the unit table.
pub(crate) const UNIT_ENTRY: u64 = 16;
/// 1 TiB of units: the table is then 4 GiB.
const MAX_UNITS: u64 = 1 << 28;
const MAX_WORKING_SET_PAGES: u64 = 1 << 28;

/// What a tenant is and does. All of it but `doorbell_base` is kept in guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantSpec {
    /// First guest-physical address of the tenant's memory, page aligned.
    pub base_gpa: u64,
    /// Bytes of the tenant's memory from there, a multiple of the page size; [`Layout::end`] tells how much is needed.
    pub memory_len: u64,
    /// Reads and writes in flight, 1 to [`MAX_QUEUE_DEPTH`].
    pub queue_depth: u32,
    /// I/O queue pairs to ask for, 1 to [`MAX_IO_QUEUE_PAIRS`]; the controller may grant fewer.
    pub io_queue_pairs: u32,
    /// Units of the namespace that it uses, from block 0 on.
    pub units: u64,
    /// The namespace.
    pub nsid: u32,
    /// Pages that its CPU writes to.
    pub working_set_pages: u64,
    /// How fast its CPU writes them, whole pages, in bytes a second; 0 is not at all.
    pub cpu_dirty_bytes_per_s: u64,
    /// Commands a second, at most.
    pub target_iops: u32,
    /// Share of reads among reads and writes, 0 to 100.
    pub read_percent: u32,
    /// Start of its random numbers; also marks its blocks.
    pub seed: u64,
    /// Offset of the doorbells in the register space that is given for them: 0x1000 in a BAR of its own.
    pub doorbell_base: u64,
    /// Bytes from one doorbell to the next: 4 << CAP.DSTRD.
    pub doorbell_stride: u32,
}

impl Default for TenantSpec {
    fn default() -> Self {
        Self {
            base_gpa: 0,
            memory_len: 64 << 20,
            queue_depth: 32,
            io_queue_pairs: 2,
            units: 8192,
            nsid: 1,
            working_set_pages: 4096,
            cpu_dirty_bytes_per_s: 8 << 20,
            target_iops: 1500,
            read_percent: 50,
            seed: 1,
            doorbell_base: 0x1000,
            doorbell_stride: 4,
        }
    }
}

/// Guest-physical addresses of everything that a tenant has, from its base on, each page aligned, in this order:
///
/// | what | pages |
/// |---|---|
/// | state: 64-bit little-endian words, see `state.rs` | 1 |
/// | admin submission queue, admin completion queue | 1 + 1 |
/// | buffer for Identify | 1 |
/// | telemetry: the SMART log page as polled; only the device writes here | 1 |
/// | slots: 64 commands of 64 bytes | 1 |
/// | for each queue pair: submission queue, completion queue | 2 each |
/// | for each slot: PRP list | 64 |
/// | for each slot: data | 64 * 16 |
/// | units: expected {sequence u64, epoch u32, 0 u32} of each | 16 bytes each |
/// | working set of the CPU | as specified |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    base: u64,
    pairs: u64,
    units: u64,
    working_set_pages: u64,
}

impl Layout {
    /// Checks `spec` and lays it out.
    ///
    /// # Errors
    /// [`TenantError::Spec`] names the first thing that is out of its range or does not fit.
    pub fn new(spec: &TenantSpec) -> Result<Self, TenantError> {
        let check = |ok: bool, what: &str| if ok { Ok(()) } else { Err(TenantError::Spec(what.into())) };
        check(spec.base_gpa.is_multiple_of(PAGE), "base_gpa is not page aligned")?;
        check(spec.memory_len.is_multiple_of(PAGE), "memory_len is not a multiple of the page size")?;
        check((1..=MAX_QUEUE_DEPTH).contains(&spec.queue_depth), "queue_depth is not in 1..=63")?;
        check((1..=MAX_IO_QUEUE_PAIRS).contains(&spec.io_queue_pairs), "io_queue_pairs is not in 1..=8")?;
        check((1..=MAX_UNITS).contains(&spec.units), "units is not in 1..=2^28")?;
        check(spec.working_set_pages <= MAX_WORKING_SET_PAGES, "working_set_pages exceeds 2^28")?;
        check(spec.read_percent <= 100, "read_percent exceeds 100")?;
        check((1..=10_000_000).contains(&spec.target_iops), "target_iops is not in 1..=10000000")?;
        check(spec.nsid != 0 && spec.nsid != u32::MAX, "nsid is not that of one namespace")?;
        let stride = spec.doorbell_stride;
        check(stride.is_power_of_two() && (4..=4 << 15).contains(&stride), "doorbell_stride is not 4 << 0..=15")?;
        let layout = Self {
            base: spec.base_gpa,
            pairs: u64::from(spec.io_queue_pairs),
            units: spec.units,
            working_set_pages: spec.working_set_pages,
        };
        // The sizes are capped above, so only the base can make this overflow.
        let needed = layout.size();
        let top = spec.base_gpa.checked_add(spec.memory_len.max(needed));
        check(top.is_some(), "the memory ends beyond the address space")?;
        if needed > spec.memory_len {
            return Err(TenantError::Spec(format!("needs {needed} bytes of memory, has {}", spec.memory_len)));
        }
        Ok(layout)
    }

    fn page(&self, n: u64) -> u64 {
        self.base + n * PAGE
    }

    fn prp_page(&self) -> u64 {
        6 + 2 * self.pairs
    }

    fn data_page(&self) -> u64 {
        self.prp_page() + SLOTS
    }

    fn units_page(&self) -> u64 {
        self.data_page() + SLOTS * u64::from(MAX_UNITS_PER_COMMAND)
    }

    fn working_set_page(&self) -> u64 {
        self.units_page() + (self.units * UNIT_ENTRY).div_ceil(PAGE)
    }

    fn size(&self) -> u64 {
        (self.working_set_page() + self.working_set_pages) * PAGE
    }

    /// The page of state.
    #[must_use]
    pub fn state(&self) -> u64 {
        self.page(0)
    }

    /// The admin submission queue.
    #[must_use]
    pub fn admin_sq(&self) -> u64 {
        self.page(1)
    }

    /// The admin completion queue.
    #[must_use]
    pub fn admin_cq(&self) -> u64 {
        self.page(2)
    }

    /// The buffer that Identify data goes to at boot.
    #[must_use]
    pub fn identify(&self) -> u64 {
        self.page(3)
    }

    /// The page that the SMART log is polled into. Nothing but the device writes it and the tenant never looks at it: if it
    /// is stale after a migration, then what the device wrote was not tracked.
    #[must_use]
    pub fn telemetry(&self) -> MemoryRange {
        MemoryRange { gpa: self.page(4), len: PAGE }
    }

    /// The table of slots.
    #[must_use]
    pub fn slots(&self) -> u64 {
        self.page(5)
    }

    /// Submission queue of I/O queue `qid`, which counts from 1.
    #[must_use]
    pub fn io_sq(&self, qid: u16) -> u64 {
        self.page(6 + 2 * (u64::from(qid.max(1)) - 1))
    }

    /// Completion queue of I/O queue `qid`, which counts from 1.
    #[must_use]
    pub fn io_cq(&self, qid: u16) -> u64 {
        self.io_sq(qid) + PAGE
    }

    /// PRP list of a slot.
    #[must_use]
    pub fn prp_list(&self, slot: usize) -> u64 {
        self.page(self.prp_page() + slot as u64 % SLOTS)
    }

    /// Data buffer of a slot: 16 pages.
    #[must_use]
    pub fn data(&self, slot: usize) -> u64 {
        self.page(self.data_page() + slot as u64 % SLOTS * u64::from(MAX_UNITS_PER_COMMAND))
    }

    /// The data buffers of all slots.
    #[must_use]
    pub fn buffers(&self) -> MemoryRange {
        MemoryRange { gpa: self.data(0), len: SLOTS * u64::from(MAX_UNITS_PER_COMMAND) * PAGE }
    }

    /// Entry of a unit in the table of what is expected.
    #[must_use]
    pub fn unit(&self, unit: u64) -> u64 {
        self.page(self.units_page()) + unit % self.units * UNIT_ENTRY
    }

    /// The whole table of what is expected, in bytes.
    #[must_use]
    pub fn unit_table(&self) -> MemoryRange {
        MemoryRange { gpa: self.page(self.units_page()), len: self.units * UNIT_ENTRY }
    }

    /// What the CPU writes; the tenant never verifies it. `len` is 0 where there is none.
    #[must_use]
    pub fn working_set(&self) -> MemoryRange {
        MemoryRange { gpa: self.page(self.working_set_page()), len: self.working_set_pages * PAGE }
    }

    /// One past the last byte in use.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.base + self.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps_and_everything_is_inside() {
        for pairs in [1, 2, 8] {
            let spec = TenantSpec { base_gpa: 0x10_0000, io_queue_pairs: pairs, units: 1000, ..TenantSpec::default() };
            let l = Layout::new(&spec).unwrap();
            let mut parts = vec![(l.state(), PAGE), (l.admin_sq(), PAGE), (l.admin_cq(), PAGE), (l.identify(), PAGE)];
            parts.extend([(l.telemetry().gpa, PAGE), (l.slots(), PAGE), (l.unit_table().gpa, l.unit_table().len)]);
            parts.extend((1..=pairs as u16).flat_map(|q| [(l.io_sq(q), PAGE), (l.io_cq(q), PAGE)]));
            parts.extend((0..SLOTS as usize).flat_map(|s| [(l.prp_list(s), PAGE), (l.data(s), 16 * PAGE)]));
            parts.push((l.working_set().gpa, l.working_set().len));
            parts.sort_unstable();
            for pair in parts.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
            }
            let last = parts.last().unwrap();
            assert_eq!(last.0 + last.1, l.end());
            assert_eq!((parts[0].0, l.unit(999)), (0x10_0000, l.unit_table().gpa + 999 * 16));
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let bad = |change: fn(&mut TenantSpec)| {
            let mut spec = TenantSpec::default();
            Layout::new(&spec).unwrap();
            change(&mut spec);
            assert!(matches!(Layout::new(&spec), Err(TenantError::Spec(_))), "{spec:?}");
        };
        bad(|s| s.base_gpa = 1);
        bad(|s| s.base_gpa = u64::MAX - 4095);
        bad(|s| s.memory_len = 1 << 20);
        bad(|s| (s.base_gpa, s.memory_len) = (8192, u64::MAX - 4095));
        bad(|s| s.queue_depth = 0);
        bad(|s| s.queue_depth = 64);
        bad(|s| s.io_queue_pairs = 0);
        bad(|s| s.io_queue_pairs = 9);
        bad(|s| s.units = 0);
        bad(|s| s.units = u64::MAX);
        bad(|s| s.working_set_pages = u64::MAX);
        bad(|s| s.read_percent = 101);
        bad(|s| s.target_iops = 0);
        bad(|s| s.nsid = 0);
        bad(|s| s.nsid = u32::MAX);
        bad(|s| s.doorbell_stride = 6);
        bad(|s| s.doorbell_stride = 2);
    }
}
