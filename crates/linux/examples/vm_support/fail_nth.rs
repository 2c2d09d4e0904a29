//! Allocations of the kernel that fail on demand (`CONFIG_FAILSLAB`, Documentation/fault-injection): the n-th one that this
//! thread causes.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{pread, pwrite};

use towline_linux::errno::errno_text;

use super::descriptors;

/// The switch of the thread that made it.
pub struct FailNth {
    file: OwnedFd,
}

impl FailNth {
    /// `None` where the kernel has no such thing. Allocations that may wait, which nearly all are, fail only after
    /// `ignore-gfp-wait` is off; a stack trace in the log at each would look like a warning.
    pub fn new() -> Option<Self> {
        let failslab = std::path::Path::new("/sys/kernel/debug/failslab");
        if !failslab.is_dir() {
            return None;
        }
        for (name, value) in [("ignore-gfp-wait", "N"), ("verbose", "0"), ("task-filter", "N"), ("probability", "0")] {
            std::fs::write(failslab.join(name), value).unwrap();
        }
        let file = open("/proc/thread-self/fail-nth", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).ok()?;
        Some(Self { file })
    }

    /// Runs `f` with its `n`-th allocation failing: its result, and whether there was one that failed.
    fn with<T>(&self, n: u32, f: &mut dyn FnMut() -> T) -> (T, bool) {
        let number = n.to_string();
        assert_eq!(pwrite(&self.file, number.as_bytes(), 0), Ok(number.len()));
        let result = f();
        let mut text = [0; 16];
        let len = pread(&self.file, &mut text, 0).unwrap();
        let left: u32 = std::str::from_utf8(&text[..len]).unwrap().trim().parse().unwrap();
        pwrite(&self.file, b"0", 0).unwrap();
        (result, left == 0)
    }
}

/// How a sequence failed.
#[derive(Debug)]
pub struct Failed {
    pub errno: Option<i32>,
    pub words: String,
}

impl From<towline_core::channel::ChannelError> for Failed {
    fn from(error: towline_core::channel::ChannelError) -> Self {
        Self { errno: error.errno, words: error.message }
    }
}

impl From<towline_linux::sysfs::HostError> for Failed {
    fn from(error: towline_linux::sysfs::HostError) -> Self {
        Self { errno: error.errno, words: error.to_string() }
    }
}

/// Which errors without `ENOMEM` are right.
pub type Also<'a> = &'a dyn Fn(&Failed) -> bool;

/// Fails the first allocation of `sequence`, then the second, until it needs no more. After each, `mend` sees to it that
/// nothing was left behind and puts things as they were; in the end the sequence works.
///
/// An injection is told, with `ENOMEM` by name, or survived, where the kernel can do without. What was survived is right,
/// as the sequence checks its own results. `also` knows what else the kernel makes of it. `budget`: where a run takes long, steps grow once it is used up.
pub fn each_allocation(
    fail: &FailNth,
    name: &str,
    budget: Duration,
    also: Also<'_>,
    sequence: &mut dyn FnMut() -> Result<(), Failed>,
    mend: &mut dyn FnMut(),
) {
    sequence().unwrap_or_else(|error| panic!("{name} without a fault: {error:?}"));
    mend();
    let before = descriptors();
    let began = Instant::now();
    let (mut n, mut told, mut survived, mut step) = (1, 0, 0, 1);
    let mut others: BTreeMap<String, usize> = BTreeMap::new();
    let mut calls = BTreeSet::new();
    loop {
        let (result, injected) = fail.with(n, sequence);
        let leaked: Vec<_> = descriptors().difference(&before).cloned().collect();
        assert!(leaked.is_empty(), "{name}, allocation {n}: leaked {leaked:?}, {result:?}");
        mend();
        match (&result, injected) {
            (Ok(()), false) => break,
            (Err(error), false) => panic!("{name}: fails without a fault after {n} allocations: {error:?}"),
            (Ok(()), true) => survived += 1,
            (Err(error), true) => {
                told += 1;
                let what = error.words.split(": E").next().unwrap_or_default();
                calls.insert(what.chars().filter(|c| !c.is_ascii_digit()).collect::<String>());
                let named = |number| error.errno == Some(number) && error.words.contains(&errno_text(number));
                let right = named(12) || also(error);
                if !right {
                    *others.entry(error.words.clone()).or_default() += 1;
                }
            }
        }
        if began.elapsed() > budget {
            step += 1;
        }
        n += step;
    }
    println!("# {name}: {} injections, {told} told, {survived} survived, of {n} allocations{}", told + survived, {
        if step > 1 { ", not each of them" } else { "" }
    });
    calls.iter().for_each(|call| println!("#   told of {call}"));
    others.iter().for_each(|(words, count)| println!("#   by another errno, {count} times: {words}"));
    assert!(told + survived > 0, "{name}: nothing was injected");
    assert!(told > 0, "{name}: no error was told");
    sequence().unwrap_or_else(|error| panic!("{name} afterwards: {error:?}"));
    mend();
    assert!(others.is_empty(), "{name}: errors that don't say why");
}
