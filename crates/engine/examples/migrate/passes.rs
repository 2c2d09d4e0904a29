//! Passes over guest memory beside raw TCP of the same pages.
//!
//! In each round both send the same pages of the same contents, one right after the other, and change places in every round. Raw
//! TCP has the pages next to each other in memory of its own; it sends all of them, zeros too.

use crate::Size;
use crate::device::Timing;
use crate::guest::{PAGE, Random};
use crate::report::Case;
use crate::sessions::Pair;

/// Which pages a round sends.
enum Dirty {
    All,
    /// Each with this probability.
    Percent(u64),
    /// A tenth of all, in runs of so many.
    Runs(u64),
}

struct Scenario {
    name: &'static str,
    dirty: Dirty,
    zero_percent: u64,
    goal: f64,
}

const SCENARIOS: [Scenario; 5] = [
    Scenario { name: "full pass, no zero pages", dirty: Dirty::All, zero_percent: 0, goal: 1.25 },
    Scenario { name: "full pass, 50 % zero pages", dirty: Dirty::All, zero_percent: 50, goal: 0.65 },
    Scenario { name: "10 % of the pages, random", dirty: Dirty::Percent(10), zero_percent: 0, goal: 1.35 },
    Scenario { name: "1 % of the pages, random", dirty: Dirty::Percent(1), zero_percent: 0, goal: 2.0 },
    Scenario { name: "10 % of the pages, runs of 64", dirty: Dirty::Runs(64), zero_percent: 0, goal: 1.35 },
];

pub fn run(size: Size) {
    let mut pair = Pair::new(size.guest_bytes, size.guest_bytes as usize, Timing::default());
    for scenario in &SCENARIOS {
        run_scenario(&mut pair, scenario, size.samples);
    }
}

fn run_scenario(pair: &mut Pair, scenario: &Scenario, samples: usize) {
    let mut random = Random::new(0x1234_5678_9ABC_DEF1);
    let pages = pair.guest.pages();
    pair.guest.fill(&mut random);
    for page in 0..pages {
        if random.next() % 100 < scenario.zero_percent {
            pair.guest.clear(page);
        }
    }
    let (mut session, log) = pair.session(Timing::default());
    let (mut ours, mut theirs, mut packed) = (vec![], vec![], vec![]);
    // The first round warms both up and is not counted; its pass is the session's first, so it sends everything.
    for round in 0..=samples {
        let dirty = choose(&scenario.dirty, pages, &mut random);
        for &page in &dirty {
            if !matches!(scenario.dirty, Dirty::All) {
                pair.guest.touch(page, &mut random);
            }
            log.mark(page * PAGE, PAGE);
        }
        pair.guest.gather(&dirty, &mut packed);
        let (mut ours_ms, mut raw_ms) = (0.0, 0.0);
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                let stats = session.memory_pass(&mut |_| {}).unwrap();
                assert!(round == 0 || stats.pages == dirty.len() as u64, "the pass sent other pages");
                ours_ms = stats.ms;
            } else {
                raw_ms = pair.raw.send(&packed);
            }
        }
        pair.guest.assert_same(&pair.other_guest());
        if round > 0 {
            ours.push(ours_ms);
            theirs.push(raw_ms);
        }
    }
    session.abort("the bench has its figures").unwrap();
    let goal = format!("ratio <= {}", scenario.goal);
    let case = Case { name: scenario.name, unit: "ms", peer: "raw TCP", goal: &goal, ours, theirs };
    case.print(|_, _, ratio| ratio <= scenario.goal);
}

fn choose(dirty: &Dirty, pages: u64, random: &mut Random) -> Vec<u64> {
    match *dirty {
        Dirty::All => (0..pages).collect(),
        Dirty::Percent(percent) => (0..pages).filter(|_| random.next() % 100 < percent).collect(),
        Dirty::Runs(length) => (0..pages / length)
            .filter(|_| random.next().is_multiple_of(10))
            .flat_map(|run| run * length..(run + 1) * length)
            .collect(),
    }
}
