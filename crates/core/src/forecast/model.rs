//! Plays a migration through, round by round, at fixed rates.

use super::math::{Z95, clean, sqrt};
use super::{
    Convergence, DeviceCost, Downtime, Estimate, Forecast, ForecastInput, Hot, MAX_MS, MAX_ROUNDS, Writer, needs,
};

/// Below this nothing is sent: one byte in a thousand seconds.
const LEAST_BANDWIDTH: f64 = 1e-3;

/// Where a migration stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    pub elapsed_ms: f64,
    pub rounds: u32,
    /// Bytes to be sent by the next round, or in the stop.
    pub pending: f64,
}

impl Position {
    pub fn start(input: &ForecastInput) -> Self {
        Self { elapsed_ms: clean(input.elapsed_ms).min(MAX_MS), rounds: 0, pending: input.memory_bytes as f64 }
    }
}

/// Inputs as clean numbers; times in milliseconds, rates in bytes a millisecond.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    pub bandwidth: f64,
    /// Who is not a device, and at what share of its pace.
    pub others: Writer,
    pub others_share: f64,
    pub device: Writer,
    pub device_share: f64,
    pub state: f64,
    pub memory: f64,
    pub save: DeviceCost,
    pub load: DeviceCost,
    pub fixed_ms: f64,
    pub overhead_ms: f64,
    pub max_downtime_ms: f64,
    pub max_rounds: u32,
    pub max_total_ms: f64,
}

impl Rates {
    pub fn of(input: &ForecastInput) -> Self {
        let memory = input.memory_bytes as f64;
        let fixed_ms = clean(input.stop_ms.mean)
            + clean(input.rtt_ms) * f64::from(input.round_trips)
            + clean(input.journal_sync_ms) * f64::from(input.journal_syncs);
        Self {
            bandwidth: clean(input.bandwidth_bytes_per_s.mean) / 1e3,
            others: writer(input.dirty_bytes_per_s, input.working_set_bytes, input.hot, input.memory_bytes),
            others_share: 1.0,
            device: writer(
                input.device_dirty_bytes_per_s,
                input.device_working_set_bytes,
                input.device_hot,
                input.memory_bytes,
            ),
            device_share: 1.0,
            state: clean(input.state_bytes.mean),
            memory,
            save: input.save,
            load: input.load,
            fixed_ms: fixed_ms.min(MAX_MS),
            overhead_ms: clean(input.round_overhead_ms).min(MAX_MS),
            max_downtime_ms: clean(input.limits.max_downtime_ms),
            max_rounds: input.limits.max_rounds.clamp(1, MAX_ROUNDS),
            max_total_ms: input.limits.max_total_ms.map_or(f64::INFINITY, clean),
        }
    }

    pub fn has_bandwidth(&self) -> bool {
        self.bandwidth >= LEAST_BANDWIDTH
    }

    fn send_ms(&self, bytes: f64) -> f64 {
        (bytes / self.bandwidth.max(LEAST_BANDWIDTH)).min(MAX_MS)
    }

    pub fn round_ms(&self, bytes: f64) -> f64 {
        (self.send_ms(bytes) + self.overhead_ms).min(MAX_MS)
    }

    /// Bytes dirtied in `ms`.
    pub fn dirtied(&self, ms: f64) -> f64 {
        let both = self.others.dirtied(ms, self.others_share) + self.device.dirtied(ms, self.device_share);
        both.min(self.memory)
    }

    /// The downtime if `residual` bytes are left.
    pub fn downtime_ms(&self, residual: f64) -> f64 {
        let device = |cost: &DeviceCost| {
            let by_size = cost.bytes_per_s.map_or(0.0, |rate| self.state / (clean(rate) / 1e3).max(LEAST_BANDWIDTH));
            clean(cost.fixed_ms) + by_size
        };
        let sum =
            self.fixed_ms + self.send_ms(residual) + self.send_ms(self.state) + device(&self.save) + device(&self.load);
        sum.min(MAX_MS)
    }
}

fn writer(stream: Estimate, working_set_bytes: Option<u64>, hot: Hot, memory_bytes: u64) -> Writer {
    Writer {
        bytes_per_s: clean(stream.mean),
        working_set_bytes: working_set_bytes.map(|set| set.min(memory_bytes)),
        hot_bytes: clean(hot.bytes).min(memory_bytes as f64),
        hot_bytes_per_s: clean(hot.bytes_per_s),
    }
}

/// What playing it through gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Played {
    pub rounds: u32,
    pub elapsed_ms: f64,
    pub residual: f64,
    pub sent: f64,
    /// Whether the downtime fits after these rounds.
    pub fits: bool,
}

impl Played {
    pub fn downtime_ms(&self, rates: &Rates) -> f64 {
        rates.downtime_ms(self.residual)
    }

    pub fn total_ms(&self, rates: &Rates) -> f64 {
        (self.elapsed_ms + self.downtime_ms(rates)).min(MAX_MS)
    }

    pub fn converges(&self, rates: &Rates) -> bool {
        rates.has_bandwidth() && self.fits && self.total_ms(rates) <= rates.max_total_ms
    }
}

/// Rounds until the downtime fits, to `max_rounds` at most; at least one pass is made. With `exactly` the limit of the
/// downtime is not looked at and that many rounds are made.
pub(super) fn play(rates: &Rates, from: Position, max_rounds: u32, exactly: Option<u32>) -> Played {
    let mut at = Played {
        rounds: from.rounds,
        elapsed_ms: clean(from.elapsed_ms).min(MAX_MS),
        residual: clean(from.pending),
        sent: 0.0,
        fits: false,
    };
    loop {
        at.fits = at.rounds > 0 && at.downtime_ms(rates) <= rates.max_downtime_ms;
        let enough = match exactly {
            Some(rounds) => at.rounds >= rounds,
            None => at.fits || at.rounds >= max_rounds,
        };
        if enough {
            at.sent += at.residual;
            return at;
        }
        let ms = rates.round_ms(at.residual);
        at.sent += at.residual;
        at.elapsed_ms = (at.elapsed_ms + ms).min(MAX_MS);
        at.residual = rates.dirtied(ms);
        at.rounds += 1;
    }
}

pub(super) fn forecast(input: &ForecastInput, from: Position) -> Forecast {
    let rates = Rates::of(input);
    let played = play(&rates, from, rates.max_rounds, None);
    let convergence = if played.converges(&rates) {
        Convergence::Converges
    } else {
        Convergence::Fails { obstacle: needs::obstacle(&rates, from, &played), needs: needs::needs(&rates, from) }
    };
    let mut downtime_ms = downtime(input, &rates, from, played.rounds);
    if played.fits && may_stop_earlier(&rates, from, played.rounds) {
        downtime_ms.p95 = downtime_ms.p95.max(rates.max_downtime_ms.min(MAX_MS));
    }
    // What misses only its time limit ends where the downtime fits; what never fits runs to its last round.
    Forecast {
        total_ms: played.total_ms(&rates),
        downtime_ms,
        rounds: played.rounds,
        memory_bytes: played.sent.min(f64::MAX),
        convergence,
    }
}

/// Whether fewer rounds, but one at least, would do if streams went over memory that is dirty already. That can't be told of those whose
/// working set is not known.
fn may_stop_earlier(rates: &Rates, from: Position, rounds: u32) -> bool {
    let unknown = |writer: Writer| writer.working_set_bytes.is_none() && writer.bytes_per_s > 0.0;
    if rounds < from.rounds.saturating_add(2) || !(unknown(rates.others) || unknown(rates.device)) {
        return false;
    }
    let least = |writer| if unknown(writer) { Writer { bytes_per_s: 0.0, ..writer } } else { writer };
    let least = Rates { others: least(rates.others), device: least(rates.device), ..*rates };
    let played = play(&least, from, rounds, None);
    played.fits && played.rounds < rounds
}

/// The downtime after exactly `rounds` rounds, with its uncertainty as the module says.
pub(super) fn downtime(input: &ForecastInput, rates: &Rates, from: Position, rounds: u32) -> Downtime {
    let at = |rates: &Rates| play(rates, from, rounds, Some(rounds)).downtime_ms(rates);
    let deviation = |e: Estimate| sqrt(e.cleaned().variance);
    let p50 = at(rates);
    let more = |writer: Writer, e: Estimate| Writer { bytes_per_s: writer.bytes_per_s + deviation(e), ..writer };
    let slower = (rates.bandwidth - deviation(input.bandwidth_bytes_per_s) / 1e3).max(0.1 * rates.bandwidth);
    let worse = [
        Rates { bandwidth: slower, ..*rates },
        Rates { others: more(rates.others, input.dirty_bytes_per_s), ..*rates },
        Rates { device: more(rates.device, input.device_dirty_bytes_per_s), ..*rates },
        Rates { state: rates.state + deviation(input.state_bytes), ..*rates },
        Rates { fixed_ms: rates.fixed_ms + deviation(input.stop_ms), ..*rates },
    ];
    let squares: f64 = worse.iter().map(|rates| (at(rates) - p50).max(0.0)).map(|d| d * d).sum();
    Downtime { p50, p95: (p50 + Z95 * sqrt(squares)).min(MAX_MS) }
}
