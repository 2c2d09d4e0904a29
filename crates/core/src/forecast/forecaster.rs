//! A forecast that learns from what is measured during the run.

use super::math::{clean, neg_ln_one_minus};
use super::model::{self, Position, Rates};
use super::{Count, DeviceCost, Downtime, Estimate, Forecast, ForecastInput, Hot, Writer};

/// What a given estimate weighs against measurements: as much as this many milliseconds of them.
const PRIOR_MS: f64 = 20.0;
/// What earlier rounds still weigh when a new one comes: rates change during a run.
const KEEP: f64 = 0.5;
/// With more of the working set dirty than this, the number of writes is anybody's guess.
const SATURATED: f64 = 0.95;

/// One memory pass, as measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RoundObserved {
    /// Bytes sent.
    pub bytes: u64,
    /// Milliseconds from the first byte to the last.
    pub ms: f64,
    /// Bytes of distinct pages that were dirtied meanwhile, as the harvest at the end of the round found them: what the next round sends.
    pub dirtied_bytes: u64,
    /// How many of these were dirtied by devices.
    pub device_dirtied_bytes: u64,
    /// Milliseconds between that harvest and the one before.
    pub interval_ms: f64,
}

/// A running mean and variance, weighted by the time that was measured and forgetting older rounds.
#[derive(Clone, Copy, Debug)]
struct Running {
    mean: f64,
    squares: f64,
    weight: f64,
}

impl Running {
    fn new(prior: Estimate) -> Self {
        let prior = prior.cleaned();
        // An estimate of nothing is not one: the first measurement replaces it.
        let weight = if prior.mean > 0.0 { PRIOR_MS } else { 0.0 };
        Self { mean: prior.mean, squares: prior.variance * weight, weight }
    }

    fn add(&mut self, value: f64, weight: f64) {
        let (value, weight) = (clean(value), clean(weight));
        if weight <= 0.0 {
            return;
        }
        self.weight = self.weight * KEEP + weight;
        let before = value - self.mean;
        self.mean = clean(self.mean + before * weight / self.weight);
        self.squares = self.squares * KEEP + weight * before * (value - self.mean);
    }

    /// So many bytes written in `ms`; a lower bound counts only where it exceeds what is known.
    fn add_writes(&mut self, (bytes, at_least): (f64, bool), ms: f64) {
        let rate = bytes / ms * 1e3;
        if !at_least || rate > self.mean {
            self.add(rate, ms);
        }
    }

    fn estimate(&self) -> Estimate {
        let variance = if self.weight > 0.0 { self.squares / self.weight } else { 0.0 };
        Estimate { mean: self.mean, variance }.cleaned()
    }
}

/// Bytes written that leave so many distinct ones dirty: more than these, where the working set is known. And whether that is only
/// a lower bound, since nearly all of the working set is dirty.
fn writes(dirtied: f64, working_set_bytes: Option<u64>, memory_bytes: u64) -> (f64, bool) {
    match working_set_bytes {
        Some(set) if set > 0 => {
            let set = set.min(memory_bytes).max(1) as f64;
            let share = dirtied / set;
            (set * neg_ln_one_minus(share.min(SATURATED)), share >= SATURATED)
        }
        _ => (dirtied, false),
    }
}

impl Hot {
    /// How many of `dirtied` bytes were these, in so long a time. Where even these were not dirtied, they are fewer.
    fn seen(&mut self, dirtied: f64, ms: f64) -> f64 {
        let bytes = clean(self.bytes);
        let writer = Writer { hot_bytes: bytes, hot_bytes_per_s: clean(self.bytes_per_s), ..Writer::default() };
        let seen = writer.dirtied(ms, 1.0);
        if seen > dirtied {
            self.bytes = bytes * (dirtied / seen);
        }
        seen.min(dirtied)
    }
}

/// A working set holds at least what was seen dirty at once.
fn widened(working_set_bytes: Option<u64>, dirtied_bytes: u64) -> Option<u64> {
    working_set_bytes.map(|set| set.max(dirtied_bytes))
}

/// Forecasts a migration while it runs.
#[derive(Clone, Debug)]
pub struct Forecaster {
    input: ForecastInput,
    bandwidth: Running,
    dirty: Running,
    device: Running,
    position: Position,
    frozen: Option<Forecast>,
}

impl Forecaster {
    /// From what is known before the start.
    #[must_use]
    pub fn new(input: ForecastInput) -> Self {
        Self {
            bandwidth: Running::new(input.bandwidth_bytes_per_s),
            dirty: Running::new(input.dirty_bytes_per_s),
            device: Running::new(input.device_dirty_bytes_per_s),
            position: Position::start(&input),
            input,
            frozen: None,
        }
    }

    /// The input as corrected so far.
    #[must_use]
    pub const fn input(&self) -> &ForecastInput {
        &self.input
    }

    /// A memory pass has ended. A time that is not finite or not above 0 leaves its rate as it was; the rest still counts.
    pub fn observe_round(&mut self, round: RoundObserved) {
        let (ms, interval_ms) = (clean(round.ms), clean(round.interval_ms));
        if ms > 0.0 && round.bytes > 0 {
            self.bandwidth.add(round.bytes as f64 / ms * 1e3, ms);
            self.input.bandwidth_bytes_per_s = self.bandwidth.estimate();
        }
        // A guest that writes where it never wrote before has more memory than the first pass found.
        self.input.memory_bytes = self.input.memory_bytes.max(round.dirtied_bytes);
        if interval_ms > 0.0 {
            let memory = self.input.memory_bytes;
            let device = round.device_dirtied_bytes.min(round.dirtied_bytes);
            self.input.working_set_bytes = widened(self.input.working_set_bytes, round.dirtied_bytes - device);
            self.input.device_working_set_bytes = widened(self.input.device_working_set_bytes, device);
            let others = (round.dirtied_bytes - device) as f64;
            let (hot, set) = (&mut self.input.hot, self.input.working_set_bytes);
            self.dirty.add_writes(writes(others - hot.seen(others, interval_ms), set, memory), interval_ms);
            let (hot, set) = (&mut self.input.device_hot, self.input.device_working_set_bytes);
            let device = device as f64;
            self.device.add_writes(writes(device - hot.seen(device, interval_ms), set, memory), interval_ms);
            self.input.dirty_bytes_per_s = self.dirty.estimate();
            self.input.device_dirty_bytes_per_s = self.device.estimate();
        }
        self.position.rounds = self.position.rounds.saturating_add(1);
        self.position.elapsed_ms += ms.max(interval_ms);
        self.position.pending = round.dirtied_bytes as f64;
    }

    /// The writers were measured by themselves, for `ms` milliseconds: they are these from now on.
    pub fn observe_writers(&mut self, others: Writer, devices: Writer, ms: f64) {
        let fresh = |writer: Writer| Running { mean: clean(writer.bytes_per_s), squares: 0.0, weight: clean(ms) };
        let hot = |writer: Writer| Hot { bytes: clean(writer.hot_bytes), bytes_per_s: clean(writer.hot_bytes_per_s) };
        self.dirty = fresh(others);
        self.device = fresh(devices);
        self.input.dirty_bytes_per_s = self.dirty.estimate();
        self.input.device_dirty_bytes_per_s = self.device.estimate();
        (self.input.working_set_bytes, self.input.hot) = (others.working_set_bytes, hot(others));
        (self.input.device_working_set_bytes, self.input.device_hot) = (devices.working_set_bytes, hot(devices));
    }

    /// The writers as they are believed to be: all but devices, and devices.
    #[must_use]
    pub fn writers(&self) -> (Writer, Writer) {
        let rates = Rates::of(&self.input);
        (rates.others, rates.device)
    }

    /// What was dirtied in so short a time that nothing is known of the memory that is gone over: the same writers at another pace, which
    /// is what a throttle of vCPUs and a rate limit of devices make of them.
    pub fn observe_pace(&mut self, others: Count, devices: Count) {
        let (was, were) = self.writers();
        self.observe_writers(was.at_pace_of(others), were.at_pace_of(devices), others.ms.max(devices.ms));
    }

    /// The device state's size is known now, in bytes.
    pub const fn observe_state_size(&mut self, bytes: u64) {
        self.input.state_bytes = Estimate::exact(bytes as f64);
    }

    /// Saving the device state was measured (in a rehearsal, or for a state of this size before), in milliseconds as a whole.
    pub fn observe_save(&mut self, ms: f64) {
        self.input.save = DeviceCost { fixed_ms: clean(ms), bytes_per_s: None };
    }

    /// Loading the device state was measured, in milliseconds as a whole.
    pub fn observe_load(&mut self, ms: f64) {
        self.input.load = DeviceCost { fixed_ms: clean(ms), bytes_per_s: None };
    }

    /// The pages to be sent changed for another reason (a range came or went), in bytes.
    pub const fn observe_pending(&mut self, bytes: u64) {
        self.position.pending = bytes as f64;
    }

    /// A round trip took this long, in milliseconds. Of several the latest counts.
    pub fn observe_rtt(&mut self, ms: f64) {
        self.input.rtt_ms = clean(ms);
    }

    /// A durable write of the journal took this long, in milliseconds. Of several the longest counts.
    pub fn observe_journal_sync(&mut self, ms: f64) {
        self.input.journal_sync_ms = clean(self.input.journal_sync_ms).max(clean(ms));
    }

    /// The forecast of the whole, what has passed included.
    #[must_use]
    pub fn forecast(&self) -> Forecast {
        model::forecast(&self.input, self.position)
    }

    /// The forecast of another attempt from the start, by what was learned in this one.
    #[must_use]
    pub fn forecast_again(&self) -> Forecast {
        model::forecast(&self.input, Position::start(&self.input))
    }

    /// The downtime if the function were stopped now.
    #[must_use]
    pub fn downtime_now(&self) -> Downtime {
        model::downtime(&self.input, &Rates::of(&self.input), self.position, self.position.rounds)
    }

    /// Keeps the forecast as it is now for the report, and returns it. Only the first call keeps one.
    pub fn freeze(&mut self) -> Forecast {
        let now = self.frozen.unwrap_or_else(|| self.forecast());
        self.frozen = Some(now);
        now
    }

    /// What [`Forecaster::freeze`] kept.
    #[must_use]
    pub const fn frozen(&self) -> Option<Forecast> {
        self.frozen
    }
}
