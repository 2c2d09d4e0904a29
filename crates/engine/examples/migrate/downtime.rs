//! What the engine adds to the downtime.
//!
//! The downtime counted here goes from the instant the source's function is told to stop to the instant the destination's runs.
//! Taken off are the times when a device (either side's) or a journal is busy. What is left is compared with what raw TCP
//! needs for the last pages and the state, at the bandwidth that it has in the same round.

use std::time::Duration;

use crate::Size;
use crate::device::Timing;
use crate::guest::{PAGE, Random};
use crate::report::{Case, median};
use crate::sessions::{Pair, Resumed};

const GOAL_MS: f64 = 0.5;

/// What raw TCP is measured by.
const PROBE_BYTES: usize = 64 << 20;

struct Scenario {
    name: &'static str,
    residual_pages: u64,
    timing: Timing,
}

const SCENARIOS: [Scenario; 2] = [
    Scenario {
        name: "downtime added: 64 KiB of state, no pages left",
        residual_pages: 0,
        timing: Timing { state_bytes: 64 << 10, save: Duration::ZERO, load: Duration::ZERO },
    },
    Scenario {
        name: "downtime added: 1 MiB of state, 1024 pages left, a device of 5 + 5 ms",
        residual_pages: 1024,
        timing: Timing { state_bytes: 1 << 20, save: Duration::from_millis(5), load: Duration::from_millis(5) },
    },
];

pub fn run(size: Size) {
    for scenario in &SCENARIOS {
        run_scenario(scenario, size);
    }
}

fn run_scenario(scenario: &Scenario, size: Size) {
    let mut random = Random::new(0x0DD0_57A7_E5EE_D001);
    let guest_bytes = size.guest_bytes.min(64 << 20);
    let probe = vec![0x3C; PROBE_BYTES.min(size.guest_bytes as usize)];
    let mut pair = Pair::new(guest_bytes, probe.len(), scenario.timing);
    pair.guest.fill(&mut random);
    let bytes = scenario.residual_pages * PAGE + scenario.timing.state_bytes as u64;
    let (mut ours, mut theirs, mut added) = (vec![], vec![], vec![]);
    for round in 0..=size.samples {
        let raw_ms = pair.raw.send(&probe) * bytes as f64 / probe.len() as f64;
        let ours_ms = migrate(&mut pair, scenario, &mut random);
        pair.guest.assert_same(&pair.other_guest());
        if round > 0 {
            ours.push(ours_ms);
            theirs.push(raw_ms);
            added.push(ours_ms - raw_ms);
        }
    }
    let added = median(&added);
    let goal = format!("ours - theirs <= {GOAL_MS} ms");
    let peer = "(pages left + state) / raw TCP";
    Case { name: scenario.name, unit: "ms", peer, goal: &goal, ours, theirs }.print(|_, _, _| added <= GOAL_MS);
}

/// One migration. Returns the milliseconds of downtime in which neither a device nor a journal was busy.
fn migrate(pair: &mut Pair, scenario: &Scenario, random: &mut Random) -> f64 {
    let (mut session, log) = pair.session(scenario.timing);
    session.memory_pass(&mut |_| {}).unwrap();
    for _ in 0..scenario.residual_pages {
        let page = random.next() % pair.guest.pages();
        pair.guest.touch(page, random);
        log.mark(page * PAGE, PAGE);
    }
    pair.busy.lock().unwrap().clear();
    let stopped = session.stop().unwrap();
    session.final_pass().unwrap();
    session.prepare().unwrap();
    session.commit().unwrap();
    session.wait_running().unwrap();
    let busy = pair.busy.lock().unwrap().clone();
    session.release().unwrap();
    pair.comes_back();
    let resumed: Resumed = serde_json::from_str(&pair.said.next().expect("the destination ended").unwrap()).unwrap();
    let mut stretches: Vec<(u64, u64)> = busy.into_iter().chain(resumed.busy).collect();
    let total = resumed.at_ns.saturating_sub(stopped.asked_ns);
    (total - covered(&mut stretches, stopped.asked_ns, resumed.at_ns)) as f64 / 1e6
}

/// Nanoseconds of `from .. to` that any of the stretches covers.
fn covered(stretches: &mut [(u64, u64)], from: u64, to: u64) -> u64 {
    stretches.sort_unstable();
    let (mut sum, mut counted_to) = (0, from);
    for &mut (start, end) in stretches {
        let (start, end) = (start.max(counted_to), end.min(to));
        if start < end {
            sum += end - start;
            counted_to = end;
        }
    }
    sum
}
