//! The processors, and what the kernel says about a process.

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

/// Which side of a migration this process is.
#[derive(Clone, Copy)]
pub enum Side {
    Source,
    Destination,
}

/// Keeps this process on one processor: the source on the first that it may use, the destination on the second. Does
/// nothing where there is only one. To be called before any thread is started, since threads inherit it.
pub fn pin(side: Side) {
    let allowed = sched_getaffinity(None::<Pid>).unwrap();
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
    let [first, second, ..] = cpus[..] else { return };
    let mut one = CpuSet::new();
    one.set(match side {
        Side::Source => first,
        Side::Destination => second,
    });
    sched_setaffinity(None::<Pid>, &one).unwrap();
}

/// Bytes of memory that a process uses (`/proc/<pid>/status`, proc(5)).
pub struct Footprint {
    /// The most that was resident at once.
    peak: u64,
    /// Resident memory of shared mappings now: the guest's.
    shared: u64,
}

impl Footprint {
    pub fn of(pid: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
            line.trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
        };
        Self { peak: field("VmHWM:"), shared: field("RssShmem:") }
    }

    /// The most that was resident at once, code included, without the guest's memory. That only grew, so that no more of it
    /// was resident at the peak than now.
    pub fn beyond_guest(&self) -> u64 {
        self.peak.saturating_sub(self.shared)
    }
}

/// Average number of processes that wanted a processor during the last minute.
pub fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}
