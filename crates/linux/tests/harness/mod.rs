//! Runs tests and reports them as the standard harness does. That one can't tell at run time that a test was ignored, and why.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// A test: its name and what it does.
pub type Case = (&'static str, fn());

/// Runs the cases whose name contains the first argument that is no option, or all, but for those that `reason` gives a reason not to run.
pub fn run(cases: &[Case], reason: impl Fn(&str) -> Option<String>) -> ExitCode {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let wanted: Vec<&Case> =
        cases.iter().filter(|(name, _)| filter.as_ref().is_none_or(|f| name.contains(f.as_str()))).collect();
    let (mut passed, mut failed, mut ignored) = (0, 0, 0);
    println!("running {} test{}", wanted.len(), if wanted.len() == 1 { "" } else { "s" });
    for (name, case) in &wanted {
        let outcome = if let Some(reason) = reason(name) {
            ignored += 1;
            format!("ignored, {reason}")
        } else if catch_unwind(AssertUnwindSafe(case)).is_ok() {
            passed += 1;
            "ok".to_owned()
        } else {
            failed += 1;
            "FAILED".to_owned()
        };
        println!("test {name} ... {outcome}");
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    let left = cases.len() - wanted.len();
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; {left} filtered out"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
