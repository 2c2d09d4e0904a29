//! Tests one after the other, as lines of TAP. A panic fails a test; what it said follows as comments.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// Counts tests.
#[derive(Default)]
pub struct Tap {
    count: usize,
    failed: usize,
}

impl Tap {
    /// Tests whose panics are comments.
    pub fn new() -> Self {
        std::panic::set_hook(Box::new(|info| {
            for line in info.to_string().lines() {
                println!("# {line}");
            }
        }));
        Self::default()
    }

    /// Runs one test.
    pub fn test(&mut self, name: &str, body: impl FnOnce()) {
        self.count += 1;
        let passed = catch_unwind(AssertUnwindSafe(body)).is_ok();
        self.failed += usize::from(!passed);
        println!("{} {} - {name}", if passed { "ok" } else { "not ok" }, self.count);
    }

    /// The plan, and whether all passed.
    pub fn finish(self) -> ExitCode {
        println!("1..{}", self.count);
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// The open descriptors of this process, without that of the listing itself.
pub fn descriptors() -> Vec<String> {
    let mut all: Vec<String> = std::fs::read_dir("/proc/self/fd")
        .expect("procfs")
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let target = std::fs::read_link(entry.path()).ok()?;
            let number = entry.file_name().into_string().ok()?;
            (!target.ends_with("fd")).then(|| format!("{number} {}", target.display()))
        })
        .collect();
    all.sort_unstable();
    all
}
