//! Rows of a program that runs on kernels which lack some of what it is about: a row runs, or is skipped with the reason.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use super::descriptors;

/// One row of TAP.
pub struct Row<'a> {
    name: String,
    what: Result<Box<dyn Fn() + 'a>, String>,
}

/// A row that runs.
pub fn row<'a>(name: impl Into<String>, test: impl Fn() + 'a) -> Row<'a> {
    Row { name: name.into(), what: Ok(Box::new(test)) }
}

/// A row that this kernel can't run.
pub fn skipped<'a>(name: impl Into<String>, why: impl Into<String>) -> Row<'a> {
    Row { name: name.into(), what: Err(why.into()) }
}

/// The output of one program: rows in any number of parts, and the plan at the end.
#[derive(Default)]
pub struct Tap {
    rows: usize,
    failed: bool,
}

impl Tap {
    /// Runs the rows in order, each also checked for leaked descriptors.
    pub fn run(&mut self, rows: &[Row<'_>]) {
        for row in rows {
            self.rows += 1;
            let (number, name) = (self.rows, &row.name);
            let test = match &row.what {
                Ok(test) => test,
                Err(why) => {
                    println!("ok {number} - {name} # SKIP {why}");
                    continue;
                }
            };
            let before = descriptors();
            let mut ok = catch_unwind(AssertUnwindSafe(test)).is_ok();
            let leaked: Vec<_> = descriptors().difference(&before).cloned().collect();
            if !leaked.is_empty() {
                println!("# leaked {leaked:?}");
                ok = false;
            }
            self.failed |= !ok;
            println!("{}ok {number} - {name}", if ok { "" } else { "not " });
        }
    }

    /// The plan, and the exit code.
    pub fn finish(self) -> ExitCode {
        println!("1..{}", self.rows);
        ExitCode::from(u8::from(self.failed || self.rows == 0))
    }
}
