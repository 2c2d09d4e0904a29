//! How long a migration will take, how long its downtime will be, and whether it comes to an end at all.
//!
//! # The model
//! One pass over all memory, then rounds that each send what was dirtied during the one before. With bandwidth `B`, a
//! round of `n` bytes takes `n / B + round_overhead_ms`; what is dirtied in a time `t` at rate `r` is
//! * `min(r t, memory)` where nothing is known of the working set;
//! * `W (1 - e^(-r t / W))` where it is known to be `W` bytes: writes that hit a page that is dirty already add nothing;
//! * beside that, `H (1 - e^(-h t / H))` for `H` bytes of pages that are written all the time, at rate `h`.
//!
//! A stop now would take `stop + residual / B + save + state / B + load + round trips + journal syncs`, nothing of which is
//! assumed to overlap. The first round after which that is at most `max_downtime_ms` is the last one. So, without
//! overheads, the residual after `k` rounds is `M (r/B)^k`.
//!
//! What devices write and what everybody else writes are two such writers, each with its own rate and working set: slowing the vCPUs down
//! changes only the one, a rate limit on the devices only the other.
//!
//! # p50 and p95
//! p50 is the model at the means. For p95 the number of rounds is kept, each of bandwidth, the dirty rates, state size and what a stop
//! takes is by itself made worse by one standard deviation (bandwidth down to no less than a tenth of its mean), and the
//! increases of the downtime are added as independent errors: `p95 = p50 + 1.645 √(Δb² + Δr² + Δd² + Δs² + Δstop²)`. The 1.645 is the
//! normal distribution's; a distribution with a heavy tail exceeds it more often. Without variances p95 equals p50. What a stop takes
//! is known from a few stops only, so that its deviation is that of a prediction ([`Estimate::of_next`]).
//!
//! A stream whose working set is not known may go over memory that is dirty already, and then the migration may stop rounds earlier than the
//! model has it, at the first downtime that fits. Where that is possible, with a round or more still to come before, p95 is at least the limit.
//!
//! # What can be relied on
//! Every number in a [`Forecast`] is finite and at least 0, whatever the input. All else being equal, more bandwidth never
//! gives a longer total, a lower dirty rate never either, and neither turns a migration that converges into one that
//! does not. (Downtime is not monotonic: more bandwidth may need fewer rounds and then stops with more left, within the limit.)

mod forecaster;
mod math;
mod model;
mod needs;
mod writer;

pub use forecaster::{Forecaster, RoundObserved};
pub use writer::{Count, Writer};

/// The longest time that is forecast, in milliseconds (some 31 000 years): longer ones are cut to this.
pub const MAX_MS: f64 = 1e15;
/// The most rounds that are forecast; a higher limit counts as this.
pub const MAX_ROUNDS: u32 = 10_000;
/// The most by which vCPUs can be throttled, in percent: some of them has to be left.
pub const MAX_THROTTLE_PERCENT: f64 = 99.0;

/// A quantity as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// Mean. What is no number or negative counts as 0.
    pub mean: f64,
    /// Variance, in the square of the mean's unit. What is no number or negative counts as 0.
    pub variance: f64,
}

impl Estimate {
    /// Known exactly.
    #[must_use]
    pub const fn exact(mean: f64) -> Self {
        Self { mean, variance: 0.0 }
    }

    /// Mean and variance (of the sample, with n - 1) of measured values; those that are not finite or negative are left out.
    /// Without any: 0.
    #[must_use]
    pub fn of_samples(samples: &[f64]) -> Self {
        let usable = || samples.iter().copied().filter(|x| x.is_finite() && *x >= 0.0).map(math::clean);
        let count = usable().count() as f64;
        if count == 0.0 {
            return Self::default();
        }
        let mean = usable().sum::<f64>() / count;
        let squares: f64 = usable().map(|x| (x - mean) * (x - mean)).sum();
        Self { mean, variance: if count > 1.0 { squares / (count - 1.0) } else { 0.0 } }
    }

    /// What the next value may be, where `samples` are the earlier ones: their mean, and a variance that is as much larger than theirs as so
    /// few tell too little. 1.645 deviations above the mean is the upper end of the prediction interval, `mean + t s √(1 + 1/n)` with the
    /// 95 % quantile `t` of Student's distribution for n - 1 degrees of freedom. Of a single value it is assumed that it varies by as much as
    /// it is. Without any: 0.
    #[must_use]
    pub fn of_next(samples: &[f64]) -> Self {
        let Self { mean, variance } = Self::of_samples(samples);
        let count = samples.iter().filter(|x| x.is_finite() && **x >= 0.0).count();
        match count {
            0 => Self::default(),
            1 => Self { mean, variance: mean * mean },
            n => {
                let wider = math::student95(n - 1) / math::Z95;
                Self { mean, variance: variance * (1.0 + 1.0 / n as f64) * wider * wider }
            }
        }
    }

    pub(crate) fn cleaned(self) -> Self {
        Self { mean: math::clean(self.mean), variance: math::clean_variance(self.variance) }
    }
}

/// Pages that are written all the time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Hot {
    /// How many, in bytes.
    pub bytes: f64,
    /// Writes to them, in bytes of pages a second.
    pub bytes_per_s: f64,
}

/// What a device needs to save or load its state while it is stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DeviceCost {
    /// Milliseconds, whatever the size.
    pub fixed_ms: f64,
    /// Bytes a second; `None` where the size does not matter.
    pub bytes_per_s: Option<f64>,
}

/// What the caller accepts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Longest downtime in milliseconds.
    pub max_downtime_ms: f64,
    /// Most memory passes before the stop, the full one included; 0 counts as 1, and more than [`MAX_ROUNDS`] as that.
    pub max_rounds: u32,
    /// Longest total time in milliseconds; `None` for any.
    pub max_total_ms: Option<f64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_downtime_ms: 300.0, max_rounds: 30, max_total_ms: None }
    }
}

/// Everything that a forecast is made from. Numbers that are not finite or negative count as 0 (an infinite one as very large).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ForecastInput {
    /// Bytes that the first pass sends: guest memory without its holes.
    pub memory_bytes: u64,
    /// Bytes that are written again and again by all but devices, where that is known.
    pub working_set_bytes: Option<u64>,
    /// Bytes of pages dirtied a second by all but devices, each write counting its whole page.
    pub dirty_bytes_per_s: Estimate,
    /// Bytes of pages that all but devices write all the time, and how fast: beside the stream of `dirty_bytes_per_s`.
    pub hot: Hot,
    /// Bytes that devices write again and again, where that is known.
    pub device_working_set_bytes: Option<u64>,
    /// Bytes of pages that devices dirty a second, on top of the others.
    pub device_dirty_bytes_per_s: Estimate,
    /// Bytes of pages that devices write all the time: completion queues, say.
    pub device_hot: Hot,
    /// Bytes sent a second.
    pub bandwidth_bytes_per_s: Estimate,
    /// Bytes of device state, of all functions together, that are sent in the downtime.
    pub state_bytes: Estimate,
    /// Saving the device state at the source.
    pub save: DeviceCost,
    /// Loading it at the destination.
    pub load: DeviceCost,
    /// Stopping and starting the functions and what the caller has beside them: drain, last harvest, sections, resume. Milliseconds.
    pub stop_ms: Estimate,
    /// One round trip. Milliseconds.
    pub rtt_ms: f64,
    /// Round trips within the downtime.
    pub round_trips: u32,
    /// One durable write of the handoff's journal. Milliseconds.
    pub journal_sync_ms: f64,
    /// Durable writes within the downtime, of both sides, one after another.
    pub journal_syncs: u32,
    /// What each round costs besides its bytes: harvesting, one round trip. Milliseconds.
    pub round_overhead_ms: f64,
    /// What had passed when the first pass began: agreeing, measuring. Milliseconds, which count in the total.
    pub elapsed_ms: f64,
    /// What the caller accepts.
    pub limits: Limits,
}

/// Why a migration does not converge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Obstacle {
    /// Nothing can be sent.
    NoBandwidth,
    /// What a stop costs exceeds the limit even with no memory left to send.
    StopCost,
    /// Memory is dirtied so fast that what is left never gets small enough.
    DirtyRate,
    /// It would get small enough, after more rounds than allowed.
    RoundLimit,
    /// It would get small enough, in more time than allowed.
    TimeLimit,
}

/// What would make it converge, each by itself with everything else as it is. `None` where that alone cannot.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Needs {
    /// At least this bandwidth, in bytes a second.
    pub bandwidth_bytes_per_s: Option<f64>,
    /// At most this dirty rate of all together, in bytes a second: every writer slowed by the same factor.
    pub dirty_bytes_per_s: Option<f64>,
    /// At least so many percent off the rate of all but devices, at most [`MAX_THROTTLE_PERCENT`].
    pub throttle_percent: Option<f64>,
    /// At most this dirty rate of devices, in bytes a second.
    pub device_dirty_bytes_per_s: Option<f64>,
    /// At least this limit of the downtime, in milliseconds.
    pub max_downtime_ms: Option<f64>,
}

/// Whether a migration comes to an end within its limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Convergence {
    /// It does.
    Converges,
    /// It does not.
    Fails {
        /// Why.
        obstacle: Obstacle,
        /// What it would take.
        needs: Needs,
    },
}

impl Convergence {
    /// Whether it does.
    #[must_use]
    pub const fn converges(&self) -> bool {
        matches!(self, Self::Converges)
    }
}

/// A downtime in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Downtime {
    /// As likely exceeded as not.
    pub p50: f64,
    /// Exceeded one time in twenty. At least p50.
    pub p95: f64,
}

/// A forecast. Where it does not converge, the times are those of stopping after the last round allowed all the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    /// Until the function runs at the destination, milliseconds, [`ForecastInput::elapsed_ms`] and what has passed of a run included.
    pub total_ms: f64,
    /// The downtime.
    pub downtime_ms: Downtime,
    /// Memory passes before the stop, the full one included. During a run: those that are done are included.
    pub rounds: u32,
    /// Bytes of memory sent, in the downtime too, without those that were sent before the forecast.
    pub memory_bytes: f64,
    /// Whether it stays within the limits, and if not, why.
    pub convergence: Convergence,
}

impl ForecastInput {
    /// The forecast before anything is sent.
    #[must_use]
    pub fn forecast(&self) -> Forecast {
        model::forecast(self, model::Position::start(self))
    }
}
