//! The clock that times are taken from.

/// Nanoseconds of `CLOCK_MONOTONIC`: the same for every process of one machine, never set back, standing still while the
/// machine is suspended. Wraps after 584 years.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // The kernel never reports negative monotonic times.
    (t.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(t.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::monotonic_ns;

    #[test]
    fn goes_forward_by_the_time_that_passes() {
        let before = monotonic_ns();
        std::thread::sleep(std::time::Duration::from_millis(5));
        let passed = monotonic_ns() - before;
        assert!((5_000_000..60_000_000_000).contains(&passed), "{passed} ns");
    }
}
