//! What the engine costs, beside raw TCP of the same bytes: `cargo run --release --example migrate -- [--smoke] [GROUP…]`.
//!
//! Groups: `passes`, `downtime`, `memory`; all of them where none is named. Prints one JSON object a case and line; what is
//! measured how is told in `benches/README.md`, which also names the command that prints it as a table.
//!
//! Source and destination are two processes, each on a processor of its own where there are two. Every group is one more
//! process, so that none inherits what another has allocated.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench stops at the first surprise")]

mod destination;
mod device;
mod downtime;
mod guest;
mod machine;
mod memory;
mod passes;
mod raw;
mod report;
mod sessions;

use std::process::Command;

/// How much is measured.
#[derive(Clone, Copy)]
pub struct Size {
    /// Guest memory in bytes.
    pub guest_bytes: u64,
    /// Rounds of each case.
    pub samples: usize,
}

impl Size {
    const FULL: Self = Self { guest_bytes: 512 << 20, samples: 21 };
    /// Only whether it runs.
    const SMOKE: Self = Self { guest_bytes: 32 << 20, samples: 3 };
}

const GROUPS: [&str; 3] = ["passes", "downtime", "memory"];

const USAGE: &str = "usage: migrate [--smoke] [--guest-mib N] [--samples N] [passes] [downtime] [memory]";

struct Options {
    size: Size,
    /// Set in the process of one group.
    is_group: bool,
    groups: Vec<String>,
}

fn options(args: &[String]) -> Option<Options> {
    let mut options = Options { size: Size::FULL, is_group: false, groups: Vec::new() };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--smoke" => options.size = Size::SMOKE,
            // The least that every case has pages for; the most that is sure to fit in memory four times.
            "--guest-mib" => {
                let mib = args.next()?.parse::<u64>().ok().filter(|mib| (16..=16 << 10).contains(mib))?;
                options.size.guest_bytes = mib << 20;
            }
            "--samples" => {
                options.size.samples = args.next()?.parse::<usize>().ok().filter(|n| (1..=1000).contains(n))?
            }
            "--group" => options.is_group = true,
            group if GROUPS.contains(&group) => options.groups.push(group.to_owned()),
            _ => return None,
        }
    }
    Some(options)
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [role, folder] = &args[..]
        && role == "--destination"
    {
        return destination::run(folder.as_ref());
    }
    let Some(Options { size, is_group, groups }) = options(&args) else {
        eprintln!("{USAGE}");
        std::process::exit(2);
    };
    if let ([group], true) = (&groups[..], is_group) {
        return match group.as_str() {
            "passes" => passes::run(size),
            "downtime" => downtime::run(size),
            _ => memory::run(size),
        };
    }
    for group in GROUPS.into_iter().filter(|g| groups.is_empty() || groups.iter().any(|a| a == g)) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--guest-mib").arg((size.guest_bytes >> 20).to_string());
        command.arg("--samples").arg(size.samples.to_string());
        let status = command.args(["--group", group]).status().unwrap();
        if !status.success() {
            eprintln!("the group {group} ended with {status}");
            std::process::exit(1);
        }
    }
}
