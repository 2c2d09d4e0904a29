//! Why a migration does not converge, and what would make it.

use super::model::{Played, Position, Rates, play};
use super::{MAX_ROUNDS, MAX_THROTTLE_PERCENT, Needs, Obstacle, Writer};

/// Bisection steps: the answer is exact to a millionth.
const STEPS: u32 = 40;
/// No link is faster, in bytes a millisecond (a petabyte a second).
const FASTEST: f64 = 1e12;

pub(super) fn obstacle(rates: &Rates, from: Position, played: &Played) -> Obstacle {
    if !rates.has_bandwidth() {
        return Obstacle::NoBandwidth;
    }
    if rates.downtime_ms(0.0) > rates.max_downtime_ms {
        return Obstacle::StopCost;
    }
    if played.fits {
        return Obstacle::TimeLimit;
    }
    // Something shrinks for ever and fits at last, or settles above the limit.
    if play(rates, from, MAX_ROUNDS, None).fits { Obstacle::RoundLimit } else { Obstacle::DirtyRate }
}

/// All that it writes, in bytes of pages a second.
fn speed(writer: &Writer) -> f64 {
    super::math::clean(writer.bytes_per_s + writer.hot_bytes_per_s)
}

pub(super) fn needs(rates: &Rates, from: Position) -> Needs {
    let converges = |rates: &Rates| play(rates, from, rates.max_rounds, None).converges(rates);
    Needs {
        bandwidth_bytes_per_s: {
            let with = |bandwidth: f64| Rates { bandwidth, ..*rates };
            // Convergence is monotonic in the bandwidth and in the dirty rate, so bisection finds the edge.
            converges(&with(FASTEST)).then(|| edge(rates.bandwidth, FASTEST, |b| converges(&with(b))) * 1e3)
        },
        dirty_bytes_per_s: {
            let with = |share: f64| Rates { others_share: share, device_share: share, ..*rates };
            let edge = || edge(1.0, 0.0, |share| converges(&with(share)));
            converges(&with(0.0)).then(|| edge() * (speed(&rates.others) + speed(&rates.device)))
        },
        throttle_percent: {
            let with = |left: f64| Rates { others_share: left, ..*rates };
            let least = 1.0 - MAX_THROTTLE_PERCENT / 100.0;
            let can = speed(&rates.others) > 0.0 && converges(&with(least));
            can.then(|| (1.0 - edge(1.0, least, |left| converges(&with(left)))) * 100.0)
        },
        device_dirty_bytes_per_s: {
            let with = |share: f64| Rates { device_share: share, ..*rates };
            let can = speed(&rates.device) > 0.0 && converges(&with(0.0));
            can.then(|| edge(1.0, 0.0, |share| converges(&with(share))) * speed(&rates.device))
        },
        max_downtime_ms: downtime(rates, from),
    }
}

/// The least downtime that is reached within the other limits. With it as the limit, the migration stops there or earlier.
fn downtime(rates: &Rates, from: Position) -> Option<f64> {
    if !rates.has_bandwidth() {
        return None;
    }
    let mut best: Option<f64> = None;
    let mut at = from;
    let first = from.rounds.max(1);
    for rounds in first..=rates.max_rounds.max(first) {
        let here = play(rates, at, rounds, Some(rounds));
        if here.total_ms(rates) > rates.max_total_ms {
            break;
        }
        let ms = here.downtime_ms(rates);
        best = Some(best.map_or(ms, |b| b.min(ms)));
        // What one round leaves grows with what it sent, so a residual that does not shrink once never does.
        if rounds > first && here.residual >= at.pending {
            break;
        }
        at = Position { elapsed_ms: here.elapsed_ms, rounds: here.rounds, pending: here.residual };
    }
    best
}

/// The value nearest to `bad` for which `holds`, which is true at `good`. Works on either side of `bad`.
fn edge(mut bad: f64, mut good: f64, holds: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..STEPS * 2 {
        // The ranges span many powers of ten: halve their logarithm as long as both ends are above zero.
        let ratio = if bad > 0.0 && good > 0.0 { bad / good } else { 0.0 };
        let middle = if (0.5..2.0).contains(&ratio) || ratio == 0.0 {
            0.5 * (bad + good)
        } else {
            super::math::sqrt(bad) * super::math::sqrt(good)
        };
        if holds(middle) {
            good = middle;
        } else {
            bad = middle;
        }
    }
    good
}
