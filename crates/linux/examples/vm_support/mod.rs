//! What the programs that run in the guest share: TAP, a check for leaked descriptors, and random numbers with a seed that
//! is printed. Not all of them use all of it.
#![allow(dead_code)]

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

pub mod fail_nth;
pub mod hosts;
pub mod mock;

/// A test and its name.
pub type Test<'a> = (&'a str, Box<dyn Fn() + 'a>);

/// What descriptors this process has, and what they are of.
pub fn descriptors() -> BTreeSet<(u32, String)> {
    let entries: Vec<_> = std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path()).collect();
    // The folder's own descriptor is among the entries, and gone by now.
    let of = |path: &std::path::Path| {
        let number = path.file_name()?.to_str()?.parse().ok()?;
        Some((number, std::fs::read_link(path).ok()?.to_string_lossy().into_owned()))
    };
    entries.iter().filter_map(|path| of(path)).collect()
}

/// Runs the tests in order, each also checked for leaked descriptors, and prints TAP.
pub fn run(tests: &[Test<'_>]) -> ExitCode {
    println!("1..{}", tests.len());
    let mut failed = false;
    for (n, (name, test)) in tests.iter().enumerate() {
        let before = descriptors();
        let mut ok = catch_unwind(AssertUnwindSafe(test)).is_ok();
        let leaked: Vec<_> = descriptors().difference(&before).cloned().collect();
        if !leaked.is_empty() {
            println!("# leaked {leaked:?}");
            ok = false;
        }
        failed |= !ok;
        println!("{}ok {} - {name}", if ok { "" } else { "not " }, n + 1);
    }
    ExitCode::from(u8::from(failed))
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Random(pub u64);

impl Random {
    /// By the argument of this number, otherwise by the clock. Prints it.
    pub fn seeded(argument: usize) -> Self {
        let clock = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::args().nth(argument).map_or_else(clock, |text| text.parse().unwrap());
        println!("# seed {seed}");
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for n in (1..items.len()).rev() {
            items.swap(n, self.below(n as u64 + 1) as usize);
        }
    }
}
