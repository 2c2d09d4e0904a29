//! Faults and rates, for those who rehearse a migration: which command, which time, what happens.

use std::sync::{Mutex, Weak};
use std::time::Duration;

use super::signal::{Signal, lock};
use crate::status::Status;

/// Which queue a command came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CommandSet {
    /// The admin queue.
    Admin,
    /// An I/O queue.
    Io,
}

/// What happens to a command that a rule hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultAction {
    /// It is not executed and completes with this status.
    Status(Status),
    /// It is executed so many milliseconds later.
    DelayMs(u32),
    /// It is executed, and its completion never posted.
    DropCompletion,
    /// It is executed twice and completes twice (once where the queue has no room for another entry).
    Repeat,
    /// It is not executed until the rule is removed; then it is.
    Hang,
}

/// A rule. The first of the list that hits a command acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultRule {
    /// Which controller; every one where `None`.
    pub cntlid: Option<u16>,
    /// Which kind of queue.
    pub set: CommandSet,
    /// Which opcode; every one where `None`.
    pub opcode: Option<u8>,
    /// The first command that is hit, counted from 1 among those that match. 0 counts as 1.
    pub nth: u64,
    /// How many in a row are hit from there on; `u64::MAX` is all.
    pub count: u64,
    /// What happens.
    pub action: FaultAction,
}

/// Names a rule of [`Faults`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FaultId(u64);

/// How slow the device is. Everything 0 is as fast as it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Bytes per second of Migration Receive; 0 is no limit.
    pub save_bytes_per_s: u64,
    /// Bytes per second of Migration Send, Set Controller State; 0 is no limit.
    pub load_bytes_per_s: u64,
    /// Added to every Migration Receive, in milliseconds.
    pub save_latency_ms: u32,
    /// Added to every Set Controller State, in milliseconds.
    pub load_latency_ms: u32,
    /// Added to every I/O command, in microseconds. Commands overlap: it costs latency, not depth.
    pub io_latency_us: u32,
}

impl Rates {
    pub(crate) fn save_delay(&self, bytes: u64) -> Duration {
        delay(bytes, self.save_bytes_per_s, self.save_latency_ms)
    }

    pub(crate) fn load_delay(&self, bytes: u64) -> Duration {
        delay(bytes, self.load_bytes_per_s, self.load_latency_ms)
    }
}

/// A delay longer than an hour is an hour: a rate of a byte a second is a mistake, not a rehearsal.
fn delay(bytes: u64, bytes_per_s: u64, latency_ms: u32) -> Duration {
    let transfer = bytes.saturating_mul(1_000_000).checked_div(bytes_per_s).unwrap_or(0);
    Duration::from_micros(transfer.saturating_add(u64::from(latency_ms) * 1000).min(3_600_000_000))
}

struct Active {
    id: FaultId,
    rule: FaultRule,
    matched: u64,
    hits: u64,
}

#[derive(Default)]
struct State {
    rules: Vec<Active>,
    next: u64,
    rates: Rates,
    workers: Vec<Weak<Signal>>,
}

/// The faults of a subsystem. Changes take effect with the next command that is fetched.
#[derive(Default)]
pub struct Faults {
    state: Mutex<State>,
}

impl Faults {
    /// Adds a rule after the others.
    pub fn add(&self, rule: FaultRule) -> FaultId {
        let mut state = lock(&self.state);
        state.next += 1;
        let id = FaultId(state.next);
        state.rules.push(Active { id, rule, matched: 0, hits: 0 });
        id
    }

    /// Removes a rule, and lets go on what hangs by it. `false` where there is no such rule.
    pub fn remove(&self, id: FaultId) -> bool {
        let mut state = lock(&self.state);
        let before = state.rules.len();
        state.rules.retain(|active| active.id != id);
        wake(&mut state);
        state.rules.len() != before
    }

    /// Removes every rule.
    pub fn clear(&self) {
        let mut state = lock(&self.state);
        state.rules.clear();
        wake(&mut state);
    }

    /// How many commands a rule has hit; `None` where there is no such rule.
    pub fn hits(&self, id: FaultId) -> Option<u64> {
        lock(&self.state).rules.iter().find(|active| active.id == id).map(|active| active.hits)
    }

    /// Sets the rates.
    pub fn set_rates(&self, rates: Rates) {
        lock(&self.state).rates = rates;
    }

    /// The rates.
    pub fn rates(&self) -> Rates {
        lock(&self.state).rates
    }

    pub(crate) fn register(&self, worker: Weak<Signal>) {
        let mut state = lock(&self.state);
        state.workers.retain(|worker| worker.strong_count() > 0);
        state.workers.push(worker);
    }

    /// What happens to a command that was just fetched.
    pub(crate) fn strike(&self, cntlid: u16, set: CommandSet, opcode: u8) -> Option<(FaultId, FaultAction)> {
        let mut state = lock(&self.state);
        let mut struck = None;
        for active in &mut state.rules {
            let rule = &active.rule;
            let matches = rule.cntlid.is_none_or(|id| id == cntlid)
                && rule.set == set
                && rule.opcode.is_none_or(|wanted| wanted == opcode);
            if !matches {
                continue;
            }
            active.matched += 1;
            let first = rule.nth.max(1);
            if struck.is_none() && active.matched >= first && active.matched - first < rule.count {
                active.hits += 1;
                struck = Some((active.id, rule.action));
            }
        }
        struck
    }

    pub(crate) fn exists(&self, id: FaultId) -> bool {
        lock(&self.state).rules.iter().any(|active| active.id == id)
    }
}

fn wake(state: &mut State) {
    state.workers.iter().filter_map(Weak::upgrade).for_each(|worker| worker.set());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nth_and_count() {
        let faults = Faults::default();
        let rule = FaultRule {
            cntlid: Some(3),
            set: CommandSet::Io,
            opcode: Some(1),
            nth: 2,
            count: 2,
            action: FaultAction::Repeat,
        };
        let id = faults.add(rule);
        assert!(faults.strike(4, CommandSet::Io, 1).is_none());
        assert!(faults.strike(3, CommandSet::Admin, 1).is_none());
        let hits: Vec<bool> = (0..5).map(|_| faults.strike(3, CommandSet::Io, 1).is_some()).collect();
        assert_eq!(hits, [false, true, true, false, false]);
        assert_eq!(faults.hits(id), Some(2));
        assert!(faults.remove(id) && !faults.remove(id));
    }

    #[test]
    fn delays_are_bounded() {
        let rates = Rates { save_bytes_per_s: 1000, load_bytes_per_s: 1, load_latency_ms: 5, ..Rates::default() };
        assert_eq!(rates.save_delay(500), Duration::from_millis(500));
        assert_eq!(rates.load_delay(0), Duration::from_millis(5));
        assert_eq!(rates.load_delay(u64::MAX), Duration::from_secs(3600));
    }
}
