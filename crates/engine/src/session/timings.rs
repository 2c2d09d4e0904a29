//! How long everything took.

use std::time::Instant;

/// A named stretch of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// Its name.
    pub name: &'static str,
    /// Milliseconds, all times that it was entered together.
    pub ms: f64,
    /// How many times it was entered.
    pub times: u32,
}

/// The phases of one side, in the order in which they were first entered. Journal syncs and the devices' own save and load
/// times stand apart from the phase that they happen in: `journal-…` and `device-…` phases overlap others, which are disjoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timings {
    /// The phases.
    pub phases: Vec<Phase>,
}

impl Timings {
    /// Adds the time since `start` to the phase `name`.
    pub fn add(&mut self, name: &'static str, start: Instant) {
        self.add_ms(name, start.elapsed().as_secs_f64() * 1000.0);
    }

    /// Adds `ms` to the phase `name`.
    pub fn add_ms(&mut self, name: &'static str, ms: f64) {
        match self.phases.iter_mut().find(|p| p.name == name) {
            Some(phase) => {
                phase.ms += ms;
                phase.times += 1;
            }
            None => self.phases.push(Phase { name, ms, times: 1 }),
        }
    }

    /// Milliseconds of one phase, 0 where it never happened.
    #[must_use]
    pub fn ms(&self, name: &str) -> f64 {
        self.phases.iter().find(|p| p.name == name).map_or(0.0, |p| p.ms)
    }
}
