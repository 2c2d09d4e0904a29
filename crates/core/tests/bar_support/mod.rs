//! A model of a filtered BAR that looks at every byte by itself and knows nothing of pages, granules or classes.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::sync::Mutex;

use towline_core::bar::{Access, Action, BarTarget, DefaultAction, Fill, Policy, Trap, TrapHandler};

/// Plain memory that insists on the widths and the range that a target is promised.
pub struct Memory(pub Mutex<Vec<u8>>);

impl Memory {
    pub fn new(len: usize) -> Self {
        Self(Mutex::new((0..len).map(|n| (n as u8).wrapping_mul(37) ^ (n >> 8) as u8).collect()))
    }

    pub fn byte(&self, offset: u64) -> Option<u8> {
        self.0.lock().unwrap().get(offset as usize).copied()
    }

    pub fn contents(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

fn allowed(offset: u64, len: usize, size: usize) {
    assert!(matches!(len, 1 | 2 | 4 | 8), "a target was asked for {len} bytes");
    assert!(offset + len as u64 <= size as u64, "a target was asked for {offset:#x}+{len} of {size:#x}");
}

impl BarTarget for Memory {
    fn read(&self, offset: u64, out: &mut [u8]) {
        let memory = self.0.lock().unwrap();
        allowed(offset, out.len(), memory.len());
        out.copy_from_slice(&memory[offset as usize..][..out.len()]);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut memory = self.0.lock().unwrap();
        allowed(offset, data.len(), memory.len());
        memory[offset as usize..][..data.len()].copy_from_slice(data);
    }
}

/// Offset, rule, and for writes the value.
pub type TrapByte = (u64, Option<u32>, Option<u8>);

/// Answers traps by a formula and logs each byte.
#[derive(Default)]
pub struct Traps(pub Mutex<Vec<TrapByte>>);

pub fn trapped(offset: u64, rule: Option<u32>) -> u8 {
    (offset as u8).wrapping_mul(11) ^ rule.map_or(0x5a, |r| r as u8)
}

impl TrapHandler for Traps {
    fn read(&self, trap: Trap, _: &dyn BarTarget, out: &mut [u8]) {
        assert!((1..=8).contains(&out.len()) && out.iter().all(|b| *b == 0xff));
        for (at, byte) in (trap.offset..).zip(out) {
            *byte = trapped(at, trap.rule);
            self.0.lock().unwrap().push((at, trap.rule, None));
        }
    }

    fn write(&self, trap: Trap, _: &dyn BarTarget, data: &[u8]) {
        for (at, byte) in (trap.offset..).zip(data) {
            self.0.lock().unwrap().push((at, trap.rule, Some(*byte)));
        }
    }
}

/// What a model can be made to do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    None,
    RuleEndsLate,
    PatternFromGranule,
    DropsOr,
    ClearSetsBits,
    TruncationReadsZero,
    ReadRuleForWrites,
}

pub struct Model {
    pub policy: Policy,
    pub memory: Vec<u8>,
    pub shadow: BTreeMap<u64, u8>,
    pub traps: Vec<TrapByte>,
    pub flaw: Flaw,
}

fn covers(access: Access, read: bool) -> bool {
    match access {
        Access::Both => true,
        Access::Read => read,
        Access::Write => !read,
    }
}

impl Model {
    pub fn new(policy: Policy, memory: Vec<u8>, flaw: Flaw) -> Self {
        let mut shadow = BTreeMap::new();
        for rule in &policy.rules {
            if let Action::WriteOneToClear { initial } = rule.action {
                shadow.extend((0..rule.len).map(|n| (rule.offset + n, initial.byte(n))));
            }
        }
        Self { policy, memory, shadow, traps: Vec::new(), flaw }
    }

    fn end(&self) -> u64 {
        let cut = self.policy.rules.iter().find(|r| r.action == Action::Truncate);
        cut.map_or(self.policy.bar_bytes, |r| r.offset)
    }

    /// The rule for one byte: its index, its action, and the byte's place in it.
    fn rule(&self, offset: u64, read: bool) -> Option<(u32, Action, u64)> {
        let read = read || self.flaw == Flaw::ReadRuleForWrites;
        let late = u64::from(self.flaw == Flaw::RuleEndsLate);
        self.policy.rules.iter().enumerate().find_map(|(index, rule)| {
            let inside =
                rule.action != Action::Truncate && offset >= rule.offset && offset < rule.offset + rule.len + late;
            let place =
                if self.flaw == Flaw::PatternFromGranule { offset % 4 } else { offset.wrapping_sub(rule.offset) };
            (inside && covers(rule.access, read)).then_some((index as u32, rule.action, place))
        })
    }

    fn action(&self, offset: u64, read: bool) -> (Option<u32>, Action, u64) {
        if let Some((index, action, place)) = self.rule(offset, read) {
            return (Some(index), action, place);
        }
        let default = if read { self.policy.default_read } else { self.policy.default_write };
        let action = match default {
            DefaultAction::Pass => Action::Pass,
            DefaultAction::Deny(fill) => Action::Deny(fill),
            DefaultAction::Trap => Action::Trap,
        };
        (None, action, 0)
    }

    pub fn read(&mut self, offset: u64, out: &mut [u8]) {
        for (n, out) in out.iter_mut().enumerate() {
            *out = match offset.checked_add(n as u64).filter(|at| *at < self.end()) {
                None if self.flaw == Flaw::TruncationReadsZero => 0,
                None => 0xff,
                Some(at) => self.read_byte(at),
            };
        }
    }

    fn read_byte(&mut self, at: u64) -> u8 {
        let (rule, action, place) = self.action(at, true);
        let memory = self.memory[at as usize];
        match action {
            Action::Pass => memory,
            Action::Deny(Fill::Ones) => 0xff,
            Action::Deny(Fill::Zeros) | Action::Hide => 0,
            Action::Bits { and, or } => {
                let or = if self.flaw == Flaw::DropsOr { 0 } else { or.byte(place) };
                (memory & and.byte(place)) | or
            }
            Action::WriteOneToClear { .. } => self.shadow.get(&at).copied().unwrap_or(0),
            Action::Trap => {
                self.traps.push((at, rule, None));
                trapped(at, rule)
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        for (n, value) in data.iter().enumerate() {
            let Some(at) = offset.checked_add(n as u64).filter(|at| *at < self.end()) else { continue };
            let (rule, action, place) = self.action(at, false);
            match action {
                Action::Pass => self.memory[at as usize] = *value,
                Action::Deny(_) | Action::Hide => {}
                Action::Bits { and, or } => self.memory[at as usize] = (value & and.byte(place)) | or.byte(place),
                Action::WriteOneToClear { .. } => {
                    let byte = self.shadow.entry(at).or_default();
                    *byte = if self.flaw == Flaw::ClearSetsBits { *byte | value } else { *byte & !value };
                }
                Action::Trap => self.traps.push((at, rule, Some(*value))),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Whether a host may map the page at `offset`: every byte of it exists and passes both ways.
    pub fn passes(&self, offset: u64, len: u64) -> bool {
        (offset..offset + len).all(|at| {
            at < self.end() && self.action(at, true).1 == Action::Pass && self.action(at, false).1 == Action::Pass
        })
    }
}
