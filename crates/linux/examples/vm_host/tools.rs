//! The oracles: tools that others wrote, and what the kernel's files say to them.
#![allow(dead_code)]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// What a program prints. It has to succeed.
pub fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let text = String::from_utf8(out.stdout).expect("UTF-8");
    assert!(out.status.success(), "{program} {args:?}: {text} {}", String::from_utf8_lossy(&out.stderr));
    text
}

/// What a program prints as JSON.
pub fn json(program: &str, args: &[&str]) -> Value {
    let text = run(program, args);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{program} {args:?}: {e}: {text}"))
}

/// What a program says when it has to fail.
pub fn refused(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(!out.status.success(), "{program} {args:?} succeeded");
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

/// The last part of where a link leads, by `readlink`; `None` where there is none.
pub fn link(path: &str) -> Option<String> {
    let out = Command::new("readlink").args(["-f", path]).output().expect("readlink");
    let there = Path::new(path).is_symlink();
    let target = String::from_utf8(out.stdout).expect("UTF-8");
    there.then(|| target.trim().rsplit('/').next().expect("a part").to_owned())
}
